"""From base weights and a journal to any round's weights, on every backend, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from federated_toys import ToyTask, toy, toy_data
from journal_toys import federate, save_base
from kernel_backends import CAPABILITIES, REFERENCE, why_not
from safetensors.torch import load_file, save_file

from fedspzo import SPZO
from fedspzo.app import replay
from fedspzo.app.cli import main
from fedspzo.app.show import lines
from fedspzo.blocks.cut import Blocks
from fedspzo.errors import InputError
from fedspzo.federated import FederationConfig, OptimizerConfig, RunResult, run
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.journal.header import Header
from fedspzo.journal.reader import TERMS, JournalError, JournalReader
from fedspzo.journal.records import Record, Terms, digest, merged
from fedspzo.journal.steps import StepJournal
from fedspzo.journal.writer import write_whole
from fedspzo_kernels import parameter_key, perturb_

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=DTYPES, ids=str)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, RunResult]:
    """A base, a journal, and the run that made it."""
    base = save_base(tmp_path, toy(request.param))
    path = tmp_path / "journal.fspz"
    return base, path, federate(path, toy(request.param))


def test_every_round_is_rebuilt_to_the_bit(made: tuple[str, Path, RunResult]) -> None:
    base, path, result = made
    for done in result.rounds:
        again = replay.replay(base, path, round=done.round)
        assert (again.round, again.digest) == (done.round, done.digest)
    assert replay.replay(base, path).digest == result.final.digest != result.rounds[0].digest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "threads"),
    [
        ("reference", 1),
        pytest.param("triton", 1, marks=pytest.mark.slow),
        *((name, n) for name in CAPABILITIES for n in (1, 2)),
    ],
)
def test_every_backend_instruction_set_and_thread_count_agrees(
    made: tuple[str, Path, RunResult], name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, path, result = made
    before, round = torch.get_num_threads(), 5
    if name in CAPABILITIES:
        if reason := why_not(name):
            pytest.skip(reason)
        monkeypatch.setenv("FEDSPZO_CPU_CAPABILITY", name)
    elif name == "triton":
        if torch.cuda.is_available():
            pytest.skip("Triton is not interpreted here; tests/test_gpu.py runs it")
        triton = pytest.importorskip("fedspzo_kernels.triton")
        monkeypatch.setattr(torch.ops.fedspzo, "perturb_", triton.perturb_)
        round = 1  # the interpreter is slow
    else:
        monkeypatch.setattr(torch.ops.fedspzo, "perturb_", REFERENCE)
    torch.set_num_threads(threads)
    try:
        assert replay.replay(base, path, round=round).digest == result.rounds[round].digest
    finally:
        torch.set_num_threads(before)


def test_shards_put_together_agree(made: tuple[str, Path, RunResult]) -> None:
    base, path, result = made
    tensors = load_file(base)
    log = DecodedJournal(path)
    for record, _ in log.records():
        for terms, group in zip(record.terms, log.header.groups(tensors), strict=True):
            for name, tensor in group:
                flat, start = tensor.view(-1), 0
                while start < flat.numel():  # of uneven sizes, not aligned to anything
                    end = min(start + 3 + 2 * start, flat.numel())
                    perturb_(
                        [flat[start:end]],
                        [parameter_key(name)],
                        torch.from_numpy(terms.seeds.view("int64")),
                        torch.from_numpy(terms.coeffs),
                        offsets=[start],
                        rounding="nearest" if record.rounding_seed is None else "stochastic",
                        rounding_seed=record.rounding_seed,
                    )
                    start = end
    assert digest(tensors.items()) == result.final.digest


def test_passes_are_merged_where_that_changes_no_bit(made: tuple[str, Path, RunResult]) -> None:
    base, path, result = made
    log = DecodedJournal(path)
    records = [record for record, _ in log.records()]
    groups = log.header.groups(load_file(base))
    float32 = groups[0][0][1].dtype == torch.float32
    # a round has 2 clients, 2 steps, 1 and 2 directions: 4 terms in block 1, 8 in block 2
    for terms, passes in ((1, 5), (16, 3), (4096, 1)):
        pieces = list(merged(records, groups, terms=terms))
        assert len(pieces) == (passes if float32 else 5)
        assert pieces[-1].round == 4
        assert replay.replay(base, path, terms=terms).digest == result.final.digest
    assert sum(len(r.terms[1].seeds) for r in merged(records, groups)) == 40


def test_float32_rounds_stochastically_to_the_same_bits_in_one_pass(tmp_path: Path) -> None:
    blocks = toy()
    base, path = save_base(tmp_path, blocks), tmp_path / "journal.fspz"
    with RunJournal(path, source="toy") as journal:
        result = run(
            blocks,
            ToyTask(),
            toy_data([9, 5]),
            FederationConfig(clients=2, rounds=4),
            OptimizerConfig(lr=0.05, perturbations=(1, 2), rounding="stochastic"),
            journal=journal,
        )
    assert replay.replay(base, path).digest == result.final.digest


def test_the_weights_are_saved_as_they_came(made: tuple[str, Path, RunResult]) -> None:
    base, path, result = made
    out = path.parent / "out"
    done = replay.replay(base, path, round=3)
    replay.save(done, out)
    saved = load_file(out / "model.safetensors")
    assert digest(saved.items()) == result.rounds[3].digest
    verdict = replay.verify(str(out), path)
    assert (verdict.matches, verdict.found, verdict.round) == (False, 3, 5)
    assert replay.verify(str(out), path, round=3).matches
    with pytest.raises(InputError, match="is there already; name a new folder"):
        replay.save(done, out)
    saved["head.bias"][0] += 1
    save_file(saved, out / "model.safetensors")
    assert replay.verify(str(out), path, round=3).found is None


def test_a_base_in_several_files_and_with_more_in_it(
    made: tuple[str, Path, RunResult], tmp_path: Path
) -> None:
    base, path, result = made
    tensors = load_file(base) | {"a.buffer": torch.arange(3)}
    folder = tmp_path / "several"
    folder.mkdir()
    places = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text("{}")
    replay.save(replay.replay(str(folder), path), tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert saved.pop("a.buffer").tolist() == [0, 1, 2]
    assert digest(saved.items()) == result.final.digest
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    index.write_text(json.dumps({"weight_map": {"a": "../base.safetensors"}}))
    with pytest.raises(InputError, match=r"names '../base.safetensors', which is not in"):
        replay.replay(str(folder), path)


@pytest.mark.parametrize("missing", ["twin", "head.weight"])
def test_tied_parameters_follow_their_owner(tmp_path: Path, missing: str) -> None:
    model = toy().model
    model.twin = torch.nn.Parameter(model.head.weight.data)  # two Parameters over one storage
    model.layers[0].weight.requires_grad_(False)
    blocks = Blocks.single(model)
    tensors = {n: p.detach() for n, p in model.named_parameters() if n != missing}
    save_file(tensors, tmp_path / "base.safetensors")
    with StepJournal(tmp_path / "steps", blocks, source="toy") as journal:
        optimizer = SPZO(blocks, lr=0.01, evaluation="layerwise")
        x = torch.ones(2, 8)
        for _ in range(3):
            optimizer.step(lambda: model(x).square().mean())
            assert optimizer.last_step is not None
            journal.log(optimizer.last_step)
    done = replay.replay(str(tmp_path / "base.safetensors"), tmp_path / "steps")
    assert done.digest == digest(model.named_parameters())
    rows = {p.name: p for p in DecodedJournal(tmp_path / "steps").header.parameters}
    assert (rows["twin"].block, rows["twin"].tied) == (1, None)
    assert (rows["head.weight"].block, rows["head.weight"].tied) == (0, "twin")
    assert (rows["layers.0.weight"].block, rows["layers.0.weight"].tied) == (0, None)
    replay.save(done, tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize("dtype", DTYPES)
def test_central_training_is_logged_and_replayed(tmp_path: Path, dtype: torch.dtype) -> None:
    blocks = toy(dtype)
    base, path = save_base(tmp_path, blocks), tmp_path / "steps.fspz"
    optimizer = SPZO(blocks, lr=0.05, perturbations=(1, 2), evaluation="layerwise", seed=2)
    x, digests = torch.ones(2, 8, dtype=dtype), [digest(blocks.model.named_parameters())]
    with StepJournal(path, blocks, source="toy", digest_every=2) as journal:
        for step in range(5):
            if step == 3:  # a skipped step is a record without terms
                with pytest.warns(UserWarning, match="skipped"):
                    optimizer.step(lambda: blocks.model(x).float().square().mean() * torch.nan)
            else:
                optimizer.step(lambda: blocks.model(x).float().square().mean())
            assert optimizer.last_step is not None
            journal.log(optimizer.last_step)
            digests.append(digest(blocks.model.named_parameters()))
    known = [known for _, known in DecodedJournal(path).records()]
    assert known == [None, digests[2], None, digests[4], None]
    for number, expected in enumerate(digests):
        assert replay.replay(base, path, round=number).digest == expected
    assert digests[3] == digests[4] != digests[5]
    shown = list(lines(path))
    assert sum("not computed" in line for line in shown) == 3
    assert shown[-1].startswith("5 rounds, 12 terms, ")
    optimizer_seeds = [seed for block in optimizer.last_step.seeds for seed in block]
    for seed, line in zip(optimizer_seeds, list(lines(path, 5))[2:], strict=True):
        assert line.endswith(f"along seed {seed}")


def test_steps_in_place_are_found_out(tmp_path: Path) -> None:
    blocks = toy()
    base, path = save_base(tmp_path, blocks), tmp_path / "steps.fspz"
    optimizer = SPZO(blocks, lr=0.05, perturbations=(1, 2), evaluation="in_place")
    with StepJournal(path, blocks, source="toy") as journal:
        for _ in range(20):
            optimizer.step(lambda: blocks.model(torch.ones(2, 8)).square().mean())
            assert optimizer.last_step is not None
            journal.log(optimizer.last_step)
    with pytest.raises(InputError, match="round 20 replays to weights with digest"):
        replay.replay(base, path)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_record_for_other_blocks_is_named(
    tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = toy()
    base, path = save_base(tmp_path, blocks), tmp_path / "forged.fspz"
    terms = Terms(np.arange(2, dtype=np.uint64), np.ones(2, np.float32))
    record = Record(0, (terms,) * count).encode()
    write_whole(path, Header.of(blocks, "toy").to_json(), [(TERMS, record)])
    assert main(["replay", base, str(path), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"record 1 at byte {path.stat().st_size - len(record) - 13} is damaged" in error
    assert f"the number of its blocks is {count}, the header's is 2" in error


def test_a_run_for_other_blocks_than_its_header_is_refused(tmp_path: Path) -> None:
    federate(tmp_path / "journal.fspz", toy(), rounds=1)
    reader = JournalReader(tmp_path / "journal.fspz")
    entries = [(entry.kind, entry.body) for entry in reader]
    parameters = [{**row, "block": 1} for row in reader.header["parameters"]]
    write_whole(tmp_path / "forged.fspz", {**reader.header, "parameters": parameters}, entries)
    with pytest.raises(JournalError, match=r"number of the run's blocks is 2, .* parameters' 1"):
        replay.replay(save_base(tmp_path, toy()), tmp_path / "forged.fspz")


def test_another_base_another_round_and_other_shapes_are_named(
    made: tuple[str, Path, RunResult], tmp_path: Path
) -> None:
    base, path, _ = made
    with pytest.raises(InputError, match="round is 6; the journal has rounds 0 to 5"):
        replay.replay(base, path, round=6)
    tensors = load_file(base)
    tensors["head.bias"][0] += 1
    wrong = str(tmp_path / "wrong.safetensors")
    save_file(tensors, wrong)
    with pytest.raises(InputError, match=r"the journal starts from \w+ \(source: 'toy'\); give"):
        replay.replay(wrong, path)
    save_file(tensors | {"head.bias": torch.zeros(4)}, wrong)
    with pytest.raises(InputError, match=r"the model's 'head.bias' is \w+ of shape \(4,\)"):
        replay.replay(wrong, path)
    del tensors["head.bias"]
    save_file(tensors, wrong)
    with pytest.raises(InputError, match=r"no parameter 'head.bias', the journal's has"):
        replay.replay(wrong, path)
    with pytest.raises(InputError, match="holds no weights that can be read"):
        replay.replay(str(tmp_path / "none"), path)
