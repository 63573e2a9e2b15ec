"""What a private client tells, and what a private federation spends."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from federated_toys import ToyTask, toy, toy_data
from private_toys import MODERATE, OPTIMIZER, PrivateToy
from torch import Tensor, nn

from fedspzo import privacy
from fedspzo.app import show as journal_view
from fedspzo.federated import FederationConfig, Plan, Report, RunResult, run
from fedspzo.federated.client import Client
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.federated.server import Server
from fedspzo.journal.reader import JournalError
from fedspzo.journal.replica import Replica
from fedspzo.optim.spzo import SPZO
from fedspzo.privacy import Mechanism, Privacy


class Watched(PrivateToy):
    """Keeps what it was shown."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def collate(self, examples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        self.sizes.append(len(examples))
        return super().collate(examples)


def reports(
    random: int | Random | None,
    *,
    noise: float = 1.0,
    task: ToyTask | None = None,
    examples: list[tuple[Tensor, int]] | None = None,
) -> tuple[Report, Mechanism]:
    """One round's report of a private client with 16 examples; None: with secret randomness."""
    (data,) = toy_data([16])
    federation = FederationConfig(clients=1, rounds=1, local_steps=5, batch_size=4)
    server = Server(Replica(toy()), federation, replace(OPTIMIZER, lr=(0.05, 0.1)))
    source = Random(random) if isinstance(random, int) else random
    mechanism = Mechanism(replace(MODERATE, noise_multiplier=noise), 16, random=source)
    client = Client(0, Replica(toy()), examples or data, task or PrivateToy(), privacy=mechanism)
    plan = Plan.decode(server.plan(0, since=0).encode())
    return Report.decode(client.handle(plan).encode()), mechanism


def test_a_private_report_tells_nothing_but_noisy_gradients() -> None:
    first, mechanism = reports(1)
    assert first.loss is None
    assert first.gradients.steps == tuple(range(5))
    assert first.forwards == 5 * 7  # a number of evaluations: no measurement of a batch is in it
    assert first.examples == 16
    assert mechanism.epsilon() > 0
    # other noise and batches, another report: in nothing but the gradients
    second, _ = reports(2)
    assert replace(second, gradients=first.gradients) == first
    assert (second.gradients.values != first.gradients.values).all()


def test_reports_of_the_same_round_differ_in_their_secret_randomness() -> None:
    first, second = (reports(None)[0].gradients.values for _ in range(2))
    assert (first != second).all()


def test_a_reports_noise_has_the_stated_deviation() -> None:
    # C sigma / batch size = 1000 / 4, beside which gradients of length 1 vanish
    values = np.concatenate(
        [reports(seed, noise=1000.0)[0].gradients.values.ravel() for seed in range(20)]
    )
    assert len(values) == 20 * 5 * 6
    assert abs(values.std() - 250) < 25  # standard error 7.2
    assert abs(values.mean()) < 40  # 10


class Fixed(Random):
    """Draws the same number each time."""

    def random(self) -> float:
        return 0.9


def test_an_empty_batch_is_a_step_of_noise_alone() -> None:
    task = Watched()
    report, _ = reports(Fixed(), task=task)
    assert task.sizes == [1] * 5  # one example is evaluated, and does not count
    # Box and Muller's two normals of 0.9 and 0.9, by turns
    length, angle = math.sqrt(-2 * math.log(1 - 0.9)), 2 * math.pi * 0.9
    expected = np.array([length * math.cos(angle), length * math.sin(angle)] * 15) / 4
    assert report.gradients.values.ravel() == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("outlier", [1e3, math.inf, math.nan])
def test_an_example_moves_a_report_by_no_more_than_the_clip(outlier: float) -> None:
    # The same batches and noise, another example: what reaches the server differs by at most 2 C
    # over the batch size, in the first step, whatever the example is.
    (data,) = toy_data([16])
    usual = [reports(seed, examples=data)[0] for seed in range(6)]
    data[3] = (torch.full_like(data[3][0], outlier), 0)
    other = [reports(seed, examples=data)[0] for seed in range(6)]
    moved = [
        np.linalg.norm(a.gradients.values[0] - b.gradients.values[0])
        for a, b in zip(usual, other, strict=True)
    ]
    assert max(moved) <= 2 * MODERATE.clip / 4 * (1 + 1e-5)
    assert 0.0 in moved  # where it was not drawn
    assert max(moved) > 0.0


def private_run(
    noise: float,
    *,
    rounds: int = 40,
    seeds: str = "per-client",
    privacy: bool = True,
    path: Path | None = None,
) -> RunResult:
    data = toy_data([40, 60, 50])
    task, everyone = PrivateToy(), [example for own in data for example in own]
    federation = FederationConfig(
        clients=3, rounds=rounds, local_steps=2, batch_size=20, participation=0.7, seeds=seeds
    )

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {"loss": task.loss(model, task.collate(everyone)).item()}

    return run(
        toy(),
        task,
        data,
        federation,
        OPTIMIZER,
        evaluate=evaluate,
        evaluate_every=2,
        journal=None if path is None else RunJournal(path, source="toy"),
        privacy=Privacy(clip=2.0, noise_multiplier=noise) if privacy else None,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["per-client", "shared"])
def test_a_private_federation_learns_and_tells_what_it_spent(seeds: str, monkeypatch) -> None:
    # each client's randomness is a generator of its own, as secret ones are
    sources = iter(range(100))
    monkeypatch.setattr(privacy, "SystemRandom", lambda: Random(next(sources)))
    result = private_run(0.5, seeds=seeds)
    losses = [r.eval_loss for r in result.rounds if r.eval_loss is not None]
    assert losses[-1] < 0.75 * losses[0]
    assert all(r.loss is None for r in result.rounds)
    assert result.final.skipped == 0
    assert result.rounds[0].epsilons == (0.0, 0.0, 0.0)
    assert result.rounds[1].epsilons is None
    for client, (size, epsilon) in enumerate(zip((40, 60, 50), result.final.epsilons, strict=True)):
        account = Mechanism(Privacy(clip=2.0, noise_multiplier=0.5), size)
        account.count(20, 2 * sum(client in r.clients for r in result.rounds))
        assert epsilon == account.epsilon() > 0


def test_a_run_that_is_not_private_has_no_epsilon() -> None:
    assert all(r.epsilons is None for r in private_run(0.5, rounds=2, privacy=False).rounds)


def test_a_resumed_run_goes_on_with_its_account(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(privacy, "SystemRandom", lambda: Random(0))
    path, whole = tmp_path / "journal.fspz", private_run(0.5, rounds=4).final.epsilons
    first = private_run(0.5, rounds=4, path=path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 200)  # into the last round
    result = private_run(0.5, rounds=4, path=path)
    assert result.final.epsilons == first.final.epsilons == whole
    shown = "\n".join(journal_view.lines(path))
    assert "clip 2, noise multiplier 0.5, delta 1e-05" in shown
    for client, epsilon in enumerate(whole):
        assert f"client {client} has spent epsilon {epsilon:.4g}" in shown
    for changes in ({"noise": 0.6}, {"noise": 0.5, "privacy": False}):
        with pytest.raises(JournalError, match="its run has privacy"):
            private_run(rounds=4, path=path, **changes)


def test_a_rate_found_from_losses_is_refused() -> None:
    with pytest.raises(ValueError, match="lr is 'auto', which is found from losses"):
        SPZO(toy(), "auto", privacy=Mechanism(MODERATE, 16))
    with pytest.raises(ValueError, match="lr is 'auto', which is found from losses"):
        run(
            toy(),
            PrivateToy(),
            toy_data([16]),
            FederationConfig(clients=1, rounds=1),
            replace(OPTIMIZER, lr="auto"),
            privacy=MODERATE,
        )


def test_a_client_needs_a_fitting_account_and_losses() -> None:
    ((*data,),) = toy_data([16])
    with pytest.raises(ValueError, match="ToyTask has no losses"):
        Client(0, Replica(toy()), data, ToyTask(), privacy=Mechanism(MODERATE, 16))
    with pytest.raises(ValueError, match="for 15 examples, client 0 has 16"):
        Client(0, Replica(toy()), data, PrivateToy(), privacy=Mechanism(MODERATE, 15))
