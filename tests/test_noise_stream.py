"""The noise stream as a setting: signs in place of normal noise, from a step to a journal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from federated_toys import ToyTask, toy, toy_data
from layerwise_toys import by_copies
from small_federation import FEDERATION, OPTIMIZER, SIZES, digests, train
from spzo_toys import llama, loss_of, weights
from tiny_run import write_run

from fedspzo import SPZO, split
from fedspzo.app.cli import main
from fedspzo.baselines import METHODS
from fedspzo.choices import Stream
from fedspzo.federated import OptimizerConfig, RunJournal
from fedspzo.federated.journal.reader import DecodedJournal, settings
from fedspzo.journal import JournalError, StepJournal
from fedspzo.journal.records import apply
from fedspzo.journal.replica import Replica
from fedspzo.journal.steps import step_record
from fedspzo_kernels import STREAMS, noise, parameter_key

SIGNS = "rademacher-v1"

pytestmark = pytest.mark.usefixtures("one_thread")


def test_settings_and_messages_have_the_kernels_streams_and_codes():
    assert {name: code for code, name in enumerate(get_args(Stream))} == STREAMS


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_a_step_moves_weights_along_the_streams_noise(evaluation: str):
    model = llama()
    optimizer = SPZO(split(model), 1e-2, evaluation=evaluation, stream=SIGNS)
    before = weights(model)
    optimizer.step(loss_of(model))
    done = optimizer.last_step
    assert done.stream == SIGNS
    for group, seeds, coefficients in zip(
        optimizer.param_groups, done.seeds, done.coefficients, strict=True
    ):
        for name, weight in zip(group["param_names"], group["params"], strict=True):
            expected = before[name].clone()
            for seed, c in zip(seeds, coefficients, strict=True):
                z = noise(weight.numel(), parameter_key(name), seed, stream=SIGNS)
                assert set(z.tolist()) <= {-1.0, 1.0}
                expected += (c * z).view_as(weight)
            # in place, the moves there and back leave their rounding
            assert torch.allclose(weight, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layerwise_evaluation_sees_the_streams_noise_in_rows_and_whole_weights(dtype: torch.dtype):
    model = llama(dtype)
    optimizer = SPZO(split(model), 0.0, evaluation="layerwise", stream=SIGNS)
    optimizer.step(loss_of(model))
    copies = by_copies(optimizer, model, loss_of(model))
    assert optimizer.last_step.losses == pytest.approx(copies, rel=1e-6)
    assert len(set(copies)) > 1


def test_both_streams_differ_and_a_state_keeps_its_own():
    models = [llama(), llama(), llama()]
    normal, signs, loaded = (
        SPZO(split(model), 1e-2, stream=stream, evaluation="layerwise")
        for model, stream in zip(models, ("normal-v1", SIGNS, "normal-v1"), strict=True)
    )
    for optimizer, model in ((normal, models[0]), (signs, models[1])):
        optimizer.step(loss_of(model))
    assert normal.last_step.losses[0] == signs.last_step.losses[0]
    assert normal.last_step.losses[1] != signs.last_step.losses[1]
    models[2].load_state_dict(models[1].state_dict())
    loaded.load_state_dict(signs.state_dict())
    for optimizer, model in ((signs, models[1]), (loaded, models[2])):
        optimizer.step(loss_of(model))
    assert loaded.last_step == signs.last_step


def test_a_step_journal_replays_its_stream_and_refuses_another(tmp_path: Path):
    model, other = llama(), llama()
    blocks = split(model)
    optimizer = SPZO(blocks, 1e-2, evaluation="layerwise", stream=SIGNS)
    with StepJournal(tmp_path / "steps", blocks, source="toy", stream=SIGNS) as journal:
        for _ in range(2):
            optimizer.step(loss_of(model))
            journal.log(optimizer.last_step)
    log = DecodedJournal(tmp_path / "steps")
    assert log.header.stream == SIGNS
    groups = log.header.groups(dict(other.named_parameters()))
    for record, _ in log.records():
        apply(record, groups)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with (
        StepJournal(tmp_path / "wrong", blocks, source="toy") as journal,
        pytest.raises(JournalError, match="pass stream='rademacher-v1' to StepJournal"),
    ):
        journal.log(optimizer.last_step)
    assert step_record(optimizer.last_step, 0).stream == SIGNS


@pytest.mark.parametrize("seeds", ["per-client", "shared"])
def test_a_federation_of_signs_is_replayed_and_resumed_to_the_same_bits(tmp_path: Path, seeds: str):
    federation = replace(FEDERATION, seeds=seeds)
    signs = replace(OPTIMIZER, stream=SIGNS)
    whole = train(federation, signs)
    assert digests(whole)[-1] != digests(train(federation))[-1]
    replica = Replica(toy())
    for done, record in zip(whole.rounds[1:], whole.records, strict=True):
        replica.catch_up([record])
        assert replica.digest() == done.digest
    path = tmp_path / "journal.fspz"
    with RunJournal(path, source="toy") as journal:
        train(replace(federation, rounds=2), signs, journal=journal)
    assert DecodedJournal(path).header.stream == SIGNS
    with (
        RunJournal(path, source="toy") as journal,
        pytest.raises(JournalError, match="its run has stream = 'rademacher-v1', this one"),
    ):
        train(federation, OPTIMIZER, journal=journal)
    with RunJournal(path, source="toy") as journal:
        assert digests(train(federation, signs, journal=journal)) == digests(whole)


def test_a_header_that_names_another_stream_than_its_settings_is_refused(tmp_path: Path):
    path = tmp_path / "journal.fspz"
    with RunJournal(path, source="toy") as journal:
        train(FEDERATION, replace(OPTIMIZER, stream=SIGNS), journal=journal)
        header = journal.header
    with pytest.raises(ValueError, match="optimizer has stream 'rademacher-v1', its header 'norm"):
        settings(replace(header, stream="normal-v1"))


@pytest.mark.parametrize("name", ["fedkseed", "decomfl", "fedmezo"])
def test_baselines_take_the_stream(name: str):
    """Their clients compare digests with the server's in each round."""
    optimizer = OptimizerConfig(lr=1e-2, estimator="mezo", stream=SIGNS)
    federation = replace(FEDERATION, seeds="shared")
    ends = {
        stream: METHODS[name](
            toy(), ToyTask(), toy_data(SIZES), federation, replace(optimizer, stream=stream)
        )
        for stream in (SIGNS, "normal-v1")
    }
    assert ends[SIGNS].final.digest != ends["normal-v1"].final.digest


@pytest.mark.slow
def test_a_compacted_journal_keeps_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path)
    config = Path("run.toml")
    config.write_text(config.read_text().replace("[optimizer]", f"[optimizer]\nstream = '{SIGNS}'"))
    for command in (
        "run run.toml --quiet --output out",
        "journal compact out/journal.fspz -o short --after 2",
        "replay net out/journal.fspz --round 2 -o two --quiet",
        "replay two short -o four --quiet",
        "verify four out/journal.fspz",
        "journal show short",
    ):
        capsys.readouterr()
        assert main(command.split()) in (0, 4), command
    assert f"noise    {SIGNS}" in capsys.readouterr().out
