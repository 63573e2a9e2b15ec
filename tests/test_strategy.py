"""A method of a user's own in the loop of `federated.run`, and a baseline with its options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from federated_toys import ToyTask, toy
from published_rules import DATA, FEDERATION, OPTIMIZER, SIZES, TASK

from fedspzo.baselines import METHODS, FedAvg, Method
from fedspzo.federated import (
    OptimizerConfig,
    Played,
    Reply,
    RoundResult,
    RunJournal,
    Server,
    Setup,
    Strategy,
    run,
    sample,
)
from fedspzo.journal.replica import Replica

pytestmark = pytest.mark.usefixtures("one_thread")

HALF = replace(FEDERATION, rounds=4, participation=0.67)


class SignSum(Strategy):
    """Clients send the sign of a loss's change; the head's bias moves by the sum of them."""

    def __init__(self, setup: Setup, *, size: float = 1e-2) -> None:
        self.setup, self.size = setup, size
        self.replica = Replica(setup.blocks)
        self.clients = setup.clients([self.replica])
        self.optimizer = setup.optimizer
        self.base = self.replica.digest()
        self.trainable_bytes = self.replica.trainable_bytes

    def play(self, round: int, clock: Callable[[], float]) -> Played:
        federation, model = self.setup.federation, self.setup.blocks.model
        replies, total = [], 0.0
        for number in sample(federation, round):
            client = self.clients[number]
            batch = client.batch(federation.seed, round, 0, federation.batch_size)
            with torch.no_grad(), self.replica.local_steps():
                before = client.task.loss(model, batch).item()
                model.head.bias[0] += self.size
                total += self.size if client.task.loss(model, batch).item() < before else -self.size
            replies.append(
                Reply(client=number, examples=SIZES[number], loss=before, forwards=2, skipped=0)
            )
        with torch.no_grad():
            model.head.bias[0] += total
        self.replica.round += 1
        return Played(
            replies=tuple(replies),
            clients=sample(federation, round),
            bytes_down=4 * len(replies),
            bytes_up=len(replies),
            digest=self.replica.digest(),
            seconds=clock(),
        )


def test_a_strategy_makes_the_rounds_and_the_loop_counts_and_reports() -> None:
    blocks, seen = toy(), []
    result = run(
        blocks,
        TASK,
        DATA,
        HALF,
        OPTIMIZER,
        evaluate=lambda model: {"loss": model.head.bias[0].item()},
        evaluate_every=2,
        on_round=seen.append,
        strategy=SignSum,
    )
    assert tuple(seen) == result.rounds
    assert [done.round for done in seen] == [0, 1, 2, 3, 4]
    assert [done.eval_loss is None for done in seen] == [False, True, False, True, False]
    assert result.final.eval_loss == blocks.model.head.bias[0].item()
    assert [done.forwards for done in seen] == [0, 4, 8, 12, 16]
    assert [done.bytes_up for done in seen] == [0, 2, 4, 6, 8]
    assert [done.bytes_down for done in seen] == [0, 8, 16, 24, 32]
    weights = 4 * sum(p.numel() for p in blocks.model.parameters())
    assert [done.fedavg_bytes for done in seen] == [2 * n * weights for n in range(5)]
    assert seen[0].loss is None
    assert len({done.digest for done in seen}) > 1
    assert result.optimizer == OPTIMIZER
    assert result.records == ()


def test_the_loss_of_a_round_weights_its_clients_as_their_updates() -> None:
    class Given(SignSum):
        def play(self, round: int, clock: Callable[[], float]) -> Played:
            done = super().play(round, clock)
            losses = [float(reply.client) for reply in done.replies]
            pairs = zip(done.replies, losses, strict=True)
            return replace(done, replies=tuple(replace(one, loss=loss) for one, loss in pairs))

    everyone = replace(FEDERATION, rounds=1)
    result = run(toy(), TASK, DATA, everyone, OPTIMIZER, strategy=Given)
    assert result.final.loss == pytest.approx((9 + 2 * 16) / (5 + 9 + 16))
    uniform = replace(everyone, weighting="uniform")
    assert run(toy(), TASK, DATA, uniform, OPTIMIZER, strategy=Given).final.loss == 1


def test_every_method_asks_the_clients_that_the_server_samples() -> None:
    server = Server(Replica(toy()), HALF, replace(OPTIMIZER, perturbations=1))
    drawn = [(), *(sample(HALF, number) for number in range(4))]
    assert server.sample() == drawn[1]
    assert len(set(drawn)) > 2
    for name in ("fedavg", "fedkseed", "fedmezo", "decomfl", "last-block"):
        result = METHODS[name](toy(), TASK, DATA, HALF, OptimizerConfig(lr=1e-3))
        assert [done.clients for done in result.rounds] == drawn


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"replicas": 2}, "replicas"),
        ({"link": lambda link: link}, "link"),
        ({"journal": object()}, "journal"),
        ({"privacy": object()}, "privacy"),
    ],
)
def test_options_of_fedspzos_rounds_are_refused_beside_a_strategy(
    options: dict[str, Any], name: str
) -> None:
    with pytest.raises(ValueError, match=f"{name} is given, but is FedSPZO's alone"):
        run(toy(), TASK, DATA, FEDERATION, OPTIMIZER, strategy=SignSum, **options)
    with pytest.raises(ValueError, match=f"{name} is given"):
        METHODS["fedavg"](toy(), TASK, DATA, FEDERATION, OptimizerConfig(lr=1e-3), **options)


def test_a_baseline_of_scalars_is_kept_in_a_journal_and_goes_on(tmp_path: Path) -> None:
    def train(path: Path, stop_after: int | None) -> list[RoundResult]:
        def look(result: RoundResult) -> None:
            if result.round == stop_after:
                raise KeyboardInterrupt

        with RunJournal(path, source="toy") as journal:
            result = METHODS["decomfl"](
                toy(), TASK, DATA, HALF, OPTIMIZER, journal=journal, on_round=look
            )
        return [replace(done, seconds=0.0) for done in result.rounds]

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", 2)
    assert train(tmp_path / "stopped", None) == train(tmp_path / "straight", None)


def test_a_method_runs_its_strategy_on_what_it_made_of_the_setup() -> None:
    longer = Method(
        lambda setup: replace(setup, federation=replace(setup.federation, rounds=3)),
        partial(FedAvg, weight_decay=0.0),
    )
    mine = longer(toy(), ToyTask(), DATA, FEDERATION, OptimizerConfig(lr=1e-3))
    assert len(mine.rounds) == 1 + 3
    federation = replace(FEDERATION, rounds=3)
    given = METHODS["fedavg"](toy(), ToyTask(), DATA, federation, OptimizerConfig(lr=1e-3))
    assert given.rounds[0].digest == mine.rounds[0].digest
    assert given.final.digest != mine.final.digest  # torch's weight decay is not zero
