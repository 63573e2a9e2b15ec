"""A stopped run goes on from its journal, to the bits of one that did not stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from federated_toys import ToyTask, toy, toy_data
from journal_toys import SETTINGS, federate

from fedspzo.blocks.cut import Blocks
from fedspzo.federated import FederationConfig, OptimizerConfig, run
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.journal.reader import JournalError
from fedspzo.journal.records import digest

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seeds", ["per-client", "shared"])
@pytest.mark.parametrize("after", [0, 3, 5])
def test_a_stopped_run_goes_on_as_if_it_had_not(
    tmp_path: Path, dtype: torch.dtype, seeds: str, after: int
) -> None:
    straight = federate(tmp_path / "straight", toy(dtype), seeds=seeds, p=None)
    path = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        federate(path, toy(dtype), seeds=seeds, p=None, stop_after=after)
    blocks = toy(dtype)
    done = federate(path, blocks, seeds=seeds, p=None)
    assert len(DecodedJournal(path).settings or ()) == 2
    for mine, theirs in zip(done.rounds, straight.rounds, strict=True):
        for field in vars(theirs):
            if field != "seconds":  # forwards, bytes, losses, evaluations, digests, clients
                assert getattr(mine, field) == getattr(theirs, field), (mine.round, field)
    assert done.optimizer == straight.optimizer
    assert digest(blocks.model.named_parameters()) == straight.final.digest
    assert path.stat().st_size == (tmp_path / "straight").stat().st_size


class Saturated(ToyTask):
    """Examples of label 0 are learned already: their loss is 0, whatever the weights are."""

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return super().loss(model, batch) * (batch[1] != 0).float().mean()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:all . losses of step")
@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
@pytest.mark.parametrize("after", [2, 3])
def test_steps_whose_losses_are_all_equal_do_not_tell_a_stopped_run_from_a_straight_one(
    tmp_path: Path, after: int, evaluation: Any
) -> None:
    def go(path: Path, stop_after: int | None = None) -> list[tuple[str, float]]:
        rounds = []

        def look(result: Any) -> None:
            rounds.append((result.digest, result.forwards))
            if result.round == stop_after:
                raise KeyboardInterrupt

        optimizer = OptimizerConfig(lr=1e-2, perturbations=(1, 4), evaluation=evaluation)
        federation = FederationConfig(clients=4, rounds=6, local_steps=4, batch_size=1, seed=11)
        data = toy_data([9, 9, 9, 9])
        with RunJournal(path, source="toy") as journal:
            run(toy(), Saturated(), data, federation, optimizer, journal=journal, on_round=look)
        return rounds

    with pytest.warns(UserWarning, match=r"are 0: no perturbation changed the loss"):
        straight = go(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "stopped", after)
    assert go(tmp_path / "stopped") == straight


def test_another_run_does_not_go_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.fspz"
    with pytest.raises(KeyboardInterrupt):
        federate(path, toy(), stop_after=2)
    before = path.read_bytes()
    with pytest.raises(JournalError, match="has seed = 3, this one 4; give the same settings"):
        federate(path, toy(), seed=4)
    with pytest.raises(JournalError, match=r"has lr = \(0.05, 0.1\), this one \(0.06, 0.12\)"):
        federate(path, toy(), lr=0.06)
    other = toy()
    with torch.no_grad():
        other.model.head.bias += 1
    with pytest.raises(JournalError, match="starts from weights with digest"):
        federate(path, other)
    frozen = toy()
    names = [name for name, _ in frozen.groups[0]]
    moved = Blocks(frozen.model, frozen.layers, (frozen.groups[0][1:], frozen.groups[1]))
    assert names
    with pytest.raises(JournalError, match="cuts the model elsewhere, or freezes"):
        federate(path, moved)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_a_run_that_was_extended_does_not_end_at_fewer_rounds_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "journal.fspz"
    federate(path, toy(), rounds=3)
    with pytest.raises(KeyboardInterrupt):
        federate(path, toy(), rounds=7, stop_after=5)
    before = path.read_bytes()
    for fewer in (3, 4):
        with pytest.raises(JournalError, match=rf"5 rounds already, .* has {fewer}; .* --resume"):
            federate(path, toy(), rounds=fewer)
    assert path.read_bytes() == before
    assert federate(path, toy(), rounds=5).final.round == 5
    assert federate(path, toy(), rounds=7).final.eval_loss is not None


def test_what_is_on_disk_is_not_evaluated_again(tmp_path: Path) -> None:
    path, asked = tmp_path / "journal.fspz", []

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        asked.append(len(asked))
        return {"loss": float(len(asked))}

    def go_on(stop_after: int | None) -> list[float | None]:
        def stop(result: Any) -> None:
            if result.round == stop_after:
                raise KeyboardInterrupt

        with RunJournal(path, source="toy") as journal:
            return [
                result.eval_loss
                for result in run(
                    toy(),
                    ToyTask(),
                    toy_data([9, 5, 7, 6]),
                    FederationConfig(**SETTINGS),
                    OptimizerConfig(lr=0.05, perturbations=(1, 2)),
                    evaluate=evaluate,
                    on_round=stop,
                    journal=journal,
                ).rounds
            ]

    with pytest.raises(KeyboardInterrupt):
        go_on(2)  # evaluated after rounds 0, 1 and 2; the last one is not on disk yet
    assert go_on(None) == [1, 2, 4, 5, 6, 7]
    assert go_on(None) == [1, 2, 4, 5, 6, 7]
    assert len(asked) == 7
