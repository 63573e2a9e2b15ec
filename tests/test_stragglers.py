"""A client that takes too long is left out of the round, in this process too."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from federated_toys import ToyTask, toy, toy_data

from fedspzo.federated import FederationConfig, OptimizerConfig, QuorumError, run
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.privacy import Privacy

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIMIZER = OptimizerConfig(lr=(1e-2, 4e-2), perturbations=(1, 2))
FEDERATION = FederationConfig(clients=3, rounds=2, local_steps=2, batch_size=4, retries=0, seed=3)


class Straggling(ToyTask):
    """Takes long for a client whose labels are all 0."""

    def __init__(self, seconds: float = 0.3) -> None:
        self.seconds = seconds
        self.evaluations = 0

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        if not batch[1].any():
            self.evaluations += 1
            time.sleep(self.seconds)
        return super().loss(model, batch)


def data(straggling: bool = True) -> list[Any]:
    normal = [[(x, 1 + y % 2) for x, y in own] for own in toy_data([5, 7])]
    return [*normal, [(x, 0) for x, _ in toy_data([6])[0]]][: 3 if straggling else 2]


def test_a_round_goes_on_without_a_straggler(tmp_path: Path) -> None:
    task = Straggling()
    path = tmp_path / "journal.fspz"
    limited = replace(FEDERATION, timeout=0.1)
    with RunJournal(path, source="toy") as journal:
        result = run(toy(), task, data(), limited, OPTIMIZER, journal=journal)
    for done in result.rounds[1:]:
        (fault,) = done.rejected
        assert (fault.client, fault.reason) == (2, "TimeoutError: no answer within 0.1 s")
    assert task.evaluations == 2  # it is stopped at the next evaluation, once a round
    alone = run(toy(), ToyTask(), data(False), replace(FEDERATION, clients=2), OPTIMIZER)
    assert result.final.digest == alone.final.digest
    with RunJournal(path, source="toy") as journal:  # it goes on, and the client's task is its own
        again = run(toy(), task, data(), limited, OPTIMIZER, journal=journal)
    assert again.final.digest == result.final.digest


def test_a_report_that_is_ready_too_late_is_not_used() -> None:
    task = Straggling(seconds=0.05)
    evaluations = 1 + 3 + 3 + 2  # measured, two steps of 1 + P2 evaluations and a side of block 1
    limited = replace(FEDERATION, rounds=1, timeout=0.05 * (evaluations - 1.5))
    (fault,) = run(toy(), task, data(), limited, OPTIMIZER).rounds[1].rejected
    assert fault.client == 2
    assert "no answer within" in fault.reason


@pytest.mark.parametrize(
    "settings",
    [OptimizerConfig(lr="auto", perturbations=(1, 2)), OptimizerConfig(lr=1e-2)],
    ids=["rates", "perturbations"],
)
def test_a_straggler_is_left_out_of_the_steps_before_the_first_round(
    settings: OptimizerConfig, caplog: pytest.LogCaptureFixture
) -> None:
    straggler_first = data()[::-1]
    limited = replace(FEDERATION, timeout=0.1)
    result = run(toy(), Straggling(), straggler_first, limited, settings)
    assert "before round 0: client 0: TimeoutError: no answer within 0.1 s" in caplog.text
    assert [fault.client for fault in result.final.rejected] == [0]
    assert result.final.loss is not None


def test_without_a_limit_a_straggler_is_waited_for() -> None:
    task = Straggling(seconds=0.01)
    result = run(toy(), task, data(), FEDERATION, OPTIMIZER)
    assert not any(done.rejected for done in result.rounds)
    patient = replace(FEDERATION, timeout=60.0)
    assert run(toy(), task, data(), patient, OPTIMIZER).final.digest == result.final.digest


def test_too_many_stragglers_end_the_run() -> None:
    everybody = [[(x, 0) for x, _ in own] for own in toy_data([5, 7, 6])]
    with pytest.raises(QuorumError, match="client 0: TimeoutError: no answer within") as caught:
        run(toy(), Straggling(), everybody, replace(FEDERATION, timeout=0.1), OPTIMIZER)
    assert isinstance(caught.value.__cause__, TimeoutError)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf"), True])
def test_a_limit_is_a_number_of_seconds(timeout: float) -> None:
    with pytest.raises(ValueError, match=r"timeout is .*; give a finite number above 0"):
        replace(FEDERATION, timeout=timeout)


def test_a_private_straggler_is_left_out_too() -> None:
    class Private(Straggling):
        def losses(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
            x, y = batch
            if not y.any():
                time.sleep(self.seconds)
            return torch.nn.functional.cross_entropy(model(x), y, reduction="none")

    pytest.importorskip("dp_accounting")
    limited = replace(FEDERATION, rounds=1, timeout=0.1)
    privacy = Privacy(clip=1.0, noise_multiplier=1.0, delta=1e-2)
    result = run(toy(), Private(), data(), limited, OPTIMIZER, privacy=privacy)
    assert [fault.client for fault in result.rounds[1].rejected] == [2]
