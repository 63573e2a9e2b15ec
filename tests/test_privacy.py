"""Differentially private steps: what is clipped, what is added, what is told, what is counted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from random import Random

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting.rdp import RdpAccountant
from federated_toys import ToyTask, toy, toy_data
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedspzo import privacy
from fedspzo.app import show as journal_view
from fedspzo.federated import FederationConfig, OptimizerConfig, Plan, Report, RunResult, run
from fedspzo.federated.client import Client
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.federated.server import Server
from fedspzo.journal.reader import JournalError
from fedspzo.journal.replica import Replica
from fedspzo.optim.spzo import SPZO
from fedspzo.privacy import Mechanism, Privacy

MODERATE = Privacy(clip=1.0, noise_multiplier=0.5)
NOISELESS = 1e-9  # a noise multiplier: the noise is below the tests' tolerance
OPTIMIZER = OptimizerConfig(lr=0.05, perturbations=(2, 4), sides="one", rounding="nearest")


class PrivateToy(ToyTask):
    def losses(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x), y, reduction="none")


def everything(noise_multiplier: float, examples: int, clip: float = 1.0) -> Mechanism:
    """A mechanism whose batches are the whole dataset."""
    settings = Privacy(clip=clip, noise_multiplier=noise_multiplier, delta=1e-9)
    return Mechanism(settings, examples, random=Random(0))


def total(rows: Tensor, clip: float = 1.0) -> Tensor:
    """The clipped sum, all but without noise."""
    mechanism = everything(NOISELESS, len(rows), clip)
    mechanism.sample(len(rows))
    return torch.tensor(mechanism.release(rows), dtype=torch.float64) * len(rows)


# The mechanism


def test_an_example_is_cut_to_the_clip_as_one_vector() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [-30.0, 40.0]])
    expected = torch.tensor([0.6 + 0.3 - 0.6, 0.8 + 0.4 + 0.8], dtype=torch.float64)
    torch.testing.assert_close(total(rows), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(total(rows, 100.0), rows.double().sum(0), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_example_that_is_not_finite_counts_as_zeros(value: float) -> None:
    rows = torch.tensor([[0.5, 0.0], [value, 0.1]])
    torch.testing.assert_close(total(rows), torch.tensor([0.5, 0.0]).double())


numbers = st.floats(-1e6, 1e6, width=32) | st.just(math.inf) | st.just(math.nan)
vectors = st.integers(1, 5).flatmap(
    lambda d: st.lists(st.lists(numbers, min_size=d, max_size=d), min_size=2, max_size=6)
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(vectors, st.floats(1e-3, 1e3))
def test_one_example_changes_the_sum_by_the_clip_at_most(
    rows: list[list[float]], clip: float
) -> None:
    # The property on which all accounting rests: with or without an example, and twice as much
    # where one takes another's place.
    batch, zero = torch.tensor(rows), torch.zeros(1, len(rows[0]))
    with_it, without = total(batch, clip), total(torch.cat([batch[:-1], zero]), clip)
    assert torch.dist(with_it, without) <= clip * (1 + 1e-6)
    replaced = total(torch.cat([batch[:-1], -batch[:1]]), clip)
    assert torch.dist(with_it, replaced) <= 2 * clip * (1 + 1e-6)


def test_the_noise_has_the_stated_deviation_and_the_coordinates_are_independent() -> None:
    mechanism = everything(2.0, 4, clip=3.0)
    draws = []
    for _ in range(4000):
        mechanism.sample(4)
        draws.append(mechanism.release(torch.zeros(4, 3)))
    values = np.array(draws) * 4  # of the sum
    # 4000 draws: the standard error of a mean is 6 / 63, of a deviation 6 / 89
    assert np.abs(values.mean(0)).max() < 0.5
    assert np.abs(values.std(0) - 6.0).max() < 0.35
    assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.08
    kurtosis = ((values / values.std(0)) ** 4).mean(0)
    assert np.abs(kurtosis - 3).max() < 0.4


def test_a_batch_holds_each_example_independently() -> None:
    mechanism = Mechanism(Privacy(clip=1, noise_multiplier=1), 50, random=Random(0))
    member = np.zeros((4000, 50))
    for row in member:
        row[mechanism.sample(10)] = 1
    assert np.abs(member.mean(0) - 0.2).max() < 0.03  # standard error 0.006
    assert abs(member.sum(1).var() - 50 * 0.2 * 0.8) < 1.0  # binomial: not a fixed number


def test_the_sum_is_divided_by_the_mean_size_of_a_batch() -> None:
    mechanism = Mechanism(Privacy(clip=9, noise_multiplier=NOISELESS), 50, random=Random(0))
    for _ in range(5):
        size = len(mechanism.sample(10))
        assert mechanism.release(torch.ones(size, 1)) == [pytest.approx(size / 10)]


def test_secret_randomness_has_no_seed() -> None:
    # Python's and torch's generators are seeded alike; nobody may guess noise or batch from that.
    noise, batches = set(), set()
    for _ in range(4):
        torch.manual_seed(0)
        np.random.seed(0)
        mechanism = Mechanism(MODERATE, 64)
        batch = mechanism.sample(32)
        batches.add(tuple(batch))
        noise.add(tuple(mechanism.release(torch.zeros(len(batch), 2))))
    assert len(noise) == len(batches) == 4


# The account


@pytest.mark.parametrize(
    ("batch_size", "noise", "steps", "expected"),
    [(1, 1.0, 1000, 2.1078), (100, 5.0, 100, 10.8017), (20, 2.0, 100, 5.5552)],
)
def test_epsilon_is_that_of_dp_accounting(
    batch_size: int, noise: float, steps: int, expected: float
) -> None:
    mechanism = Mechanism(Privacy(clip=7.0, noise_multiplier=noise), 100)
    assert mechanism.epsilon() == 0
    mechanism.count(batch_size, steps)
    assert mechanism.epsilon() == pytest.approx(expected, abs=1e-3)
    # dp-accounting's own orders: ours leave some out, which can only make it larger
    event = dp_accounting.GaussianDpEvent(noise)
    accountant = RdpAccountant()
    accountant.compose(dp_accounting.PoissonSampledDpEvent(batch_size / 100, event), steps)
    assert accountant.get_epsilon(1e-5) <= mechanism.epsilon() < 1.02 * accountant.get_epsilon(1e-5)


def test_each_release_is_counted_at_the_rate_it_was_drawn_with() -> None:
    mechanism, other = (Mechanism(MODERATE, 40, random=Random(0)) for _ in range(2))
    for size in (4, 4, 20, 400):
        mechanism.release(torch.zeros(len(mechanism.sample(size)), 2))
    for size, count in ((4, 2), (20, 1), (40, 1)):  # a batch is at most everything
        other.count(size, count)
    assert mechanism.epsilon() == other.epsilon()
    assert mechanism.epsilon() > 0


def test_a_batch_is_released_once_and_whole() -> None:
    mechanism = Mechanism(MODERATE, 40, random=Random(0))
    with pytest.raises(ValueError, match="call sample before each step"):
        mechanism.release(torch.zeros(4, 2))
    size = len(mechanism.sample(20))
    with pytest.raises(ValueError, match=f"the sample has {size} examples"):
        mechanism.release(torch.zeros(size + 1, 2))
    mechanism.release(torch.zeros(size, 2))
    with pytest.raises(ValueError, match="call sample before each step"):
        mechanism.release(torch.zeros(size, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": 0.0}, "clip is 0.0; give a number from 1e-09 to 1e\\+09"),
        ({"clip": "1"}, "clip is '1'"),
        ({"noise_multiplier": math.inf}, "noise_multiplier is inf"),
        ({"noise_multiplier": -1}, "noise_multiplier is -1"),
        ({"delta": 1.0}, "delta is 1.0; give a number from 1e-50 to 0.5"),
        ({"delta": True}, "delta is True"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Privacy(**{"clip": 1.0, "noise_multiplier": 1.0, **changes})


def test_a_mechanism_that_can_promise_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"give less than 0\.01"):
        Mechanism(replace(MODERATE, delta=0.01), 100)
    with pytest.raises(ValueError, match="examples is 0"):
        Mechanism(MODERATE, 0)
    monkeypatch.setattr(privacy, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'fedspzo\[privacy\]'"):
        Mechanism(MODERATE, 100)


# A step


ESTIMATORS = [
    ("anchored", "one", (2, 3)),
    ("anchored", "two", (2, 3)),
    ("balanced", "one", (1, 4)),
    ("balanced", "two", (2, 2)),
    ("coupled", "two", (1, 3)),
    ("mezo", "one", 3),
    ("mezo", "two", 3),
]


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
@pytest.mark.parametrize(("name", "sides", "perturbations"), ESTIMATORS)
def test_without_clip_and_noise_a_step_is_the_usual_one(
    name, sides, perturbations, evaluation
) -> None:
    ((*data,),) = toy_data([12])
    task = PrivateToy()
    batch, results = task.collate(data), []
    for private in (False, True):
        blocks = toy(single=name == "mezo")
        mechanism = everything(NOISELESS, 12, clip=1e6) if private else None
        optimizer = SPZO(
            blocks,
            1e-2,
            estimator=name,
            sides=sides,
            perturbations=perturbations,
            evaluation=evaluation,
            privacy=mechanism,
        )
        for _ in range(2):
            if mechanism is not None:
                assert mechanism.sample(12) == list(range(12))
            function = task.losses if private else task.loss
            optimizer.step(lambda f=function, b=blocks: f(b.model, batch))
        results.append((optimizer.last_step, list(blocks.model.parameters())))
    (usual, weights), (private, others) = results
    for mine, expected in zip(private.gradients, usual.gradients, strict=True):
        # differences of losses over eps: float32's rounding of a loss over 1e-3
        assert mine == pytest.approx(expected, abs=5e-4)
    assert private.loss == pytest.approx(usual.loss, rel=1e-5)
    assert private.forwards == usual.forwards
    for mine, expected in zip(others, weights, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_a_private_step_is_never_skipped_for_what_a_loss_is() -> None:
    blocks = toy()
    mechanism = everything(1.0, 2)
    optimizer = SPZO(blocks, 1e-2, perturbations=(1, 2), privacy=mechanism, cost_shares=(0.5,))
    before = [p.clone() for p in blocks.model.parameters()]
    for losses in (torch.tensor([math.nan, math.inf]), torch.tensor([1.0, math.nan])):
        mechanism.sample(2)

        def closure(losses: Tensor = losses) -> Tensor:
            blocks.model(torch.zeros(2, 8))
            return losses

        optimizer.step(closure)
        assert not optimizer.last_step.skipped
        assert all(g != 0 for block in optimizer.last_step.gradients for g in block)
    after = blocks.model.parameters()
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_closure_of_a_private_step_returns_a_loss_an_example() -> None:
    blocks, mechanism = toy(), everything(1.0, 4)
    optimizer = SPZO(blocks, privacy=mechanism)
    mechanism.sample(4)
    task, batch = PrivateToy(), PrivateToy().collate(toy_data([4])[0])
    with pytest.raises(ValueError, match=r"with privacy return one an example, \(B,\)"):
        optimizer.step(lambda: task.loss(blocks.model, batch))
    with pytest.raises(ValueError, match="the sample has 4 examples"):
        optimizer.step(lambda: task.losses(blocks.model, batch)[:3])


# A client and a federation


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
