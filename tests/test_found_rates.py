"""A federation's learning rates with lr="auto": found, and kept sound by reports."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from federated_toys import ToyTask, toy, toy_data
from first_steps_toys import find, resolve
from found_rates_toys import (
    AUTO,
    DIRECTIONS,
    FEDERATION,
    clients_of,
    found,
    report,
    reports,
)

from fedspzo import SPZO
from fedspzo.federated import (
    Client,
)
from fedspzo.federated.found_rates import effective_clients, median, probe_clients
from fedspzo.journal.replica import Replica


@pytest.mark.parametrize(
    ("changes", "sizes", "expected"),
    [
        ({}, [5, 5, 5, 5], 4.0),
        ({}, [9, 1, 1, 1], 12**2 / 84),
        ({"weighting": "uniform"}, [9, 1, 1, 1], 4.0),
        ({"participation": 0.5}, [5, 5, 5, 5], 2.0),
        ({"participation": 0.25}, [9, 1, 1, 1], 1.0),
        ({"seeds": "shared"}, [5, 5, 5, 5], 1.0),
    ],
)
def test_a_round_averages_over_the_clients_own_directions(
    changes: dict[str, Any], sizes: list[int], expected: float
) -> None:
    assert effective_clients(sizes, replace(FEDERATION, **changes)) == pytest.approx(expected)


@pytest.mark.parametrize(("steps", "size"), [(1, 2.0), (2, math.sqrt(2)), (9, 1.0)])
def test_they_are_for_the_directions_of_a_whole_round(steps: int, size: float) -> None:
    clients = clients_of([5, 5, 5, 5])
    settings = resolve(AUTO, clients, batch_size=4)
    many = replace(FEDERATION, local_steps=steps)
    alone = replace(many, seeds="shared")  # one direction for all

    rates = find(settings, clients, many).lr, find(settings, clients, alone).lr
    assert list(np.divide(*rates)) == pytest.approx([size, size])


def test_they_are_found_on_the_clients_examples_and_the_weights_stay() -> None:
    client, other = clients_of([4, 3])
    before = client.replica.digest()
    with pytest.raises(ValueError, match="lr is 'auto'; give a number, or find it first"):
        replace(AUTO, perturbations=(1, 2)).learning_rates  # noqa: B018
    settings = resolve(AUTO, [client], batch_size=4)
    assert (settings.lr, settings.directions[0]) == ("auto", 1)
    one = replace(FEDERATION, clients=1, local_steps=1)
    made = find(settings, [client], one)
    assert client.replica.digest() == before
    assert find(settings, [client], one).lr == made.lr
    alone, task = toy(), ToyTask()  # the same steps by themselves
    optimizer = SPZO(alone, lr="auto", perturbations=settings.perturbations)
    assert optimizer.auto is not None
    optimizer.auto.takes_turns = False  # all blocks in every step, as in a round
    for step in range(8):
        batch = client.batch(0, 0, step, 4)
        optimizer.step(partial(task.loss, alone.model, batch))
    assert [seen.turns for seen in optimizer.auto.blocks] == [8, 8]
    assert made.lr == tuple(group["lr"] for group in optimizer.param_groups)
    assert made.lr[0] != made.lr[1] != 1e-4
    assert find(settings, [client, other], replace(one, clients=2)).lr != made.lr


def test_a_network_that_is_one_block_has_one() -> None:
    whole = Client(0, Replica(toy(single=True)), toy_data([4])[0], ToyTask())
    settings = resolve(replace(AUTO, estimator="mezo"), [whole], batch_size=2)
    assert len(find(settings, [whole], replace(FEDERATION, clients=1)).lr) == 1


def test_the_rate_of_a_block_that_others_lead_falls() -> None:
    rates = found()
    for _ in range(6):  # what the last steps before the first round had above their mean fades
        rates.learn(reports(size=1e-3), DIRECTIONS, "examples")
    first = rates.lr
    for _ in range(20 - 8 - 6):
        rates.learn(reports(size=1e-3), DIRECTIONS, "examples")
    assert rates.lr == first
    for _ in range(60):
        rates.learn(reports(size=1e-3), DIRECTIONS, "examples")
    assert rates.lr[0] == pytest.approx(first[0] / 4**0.75)  # after four times as many turns
    assert rates.lr[1] == first[1]


@pytest.mark.slow
def test_a_round_counts_for_as_many_turns_as_it_has_local_steps() -> None:
    def after(steps: int, rounds: int) -> float:
        rates = found(steps)
        for _ in range(rounds):
            rates.learn(reports(size=1e-3), DIRECTIONS, "examples")
        return rates.lr[0]

    # after 8 turns before the first round
    assert after(4, 72) == pytest.approx(after(4, 8) * ((8 + 4 * 8) / (8 + 4 * 72)) ** 0.75)
    assert after(8, 36) == pytest.approx(after(8, 6) * ((8 + 8 * 6) / (8 + 8 * 36)) ** 0.75)


def test_rounds_of_many_steps_notice_a_rise_in_fewer_rounds() -> None:
    def noticed(steps: int, loss: float) -> int:
        rates = found(steps)
        for _ in range(10):
            rates.learn(reports(size=1e-3, loss=1.0), DIRECTIONS, "examples")
        for number in range(1, 100):
            before = rates.lr[1]
            rates.learn(reports(size=1e-3, loss=loss), DIRECTIONS, "examples")
            if rates.lr[1] < before:
                return number
        raise AssertionError(f"a loss that rises to {loss} is not noticed")

    assert [noticed(steps, 1.5) for steps in (1, 5, 20)] == [5, 1, 1]
    assert [noticed(steps, 1.3) for steps in (1, 5, 20)] == [10, 2, 1]


def test_gradients_that_grow_lower_the_rates() -> None:
    calm, wild = found(), found()
    for _ in range(10):
        calm.learn(reports(size=1e-3), DIRECTIONS, "examples")
        wild.learn(reports(size=1e4), DIRECTIONS, "examples")
    assert all(slow < 0.01 * fast for slow, fast in zip(wild.lr, calm.lr, strict=True))


def test_a_loss_that_rises_halves_the_rates_and_is_then_the_one_to_beat() -> None:
    rates = found()
    first, halvings = rates.lr, 0
    for loss in [1.0] * 10 + [9.0] * 30:
        before = rates.lr
        rates.learn(reports(size=1e-3, loss=loss), DIRECTIONS, "examples")
        halvings += rates.lr[1] == before[1] / 2
    assert halvings == 1
    assert rates.lr[1] == first[1] / 2


def test_one_client_alone_does_not_set_the_rates() -> None:
    honest, deceived = found(), found()
    for _ in range(30):
        usual = reports(size=0.01, loss=0.5)
        honest.learn(usual, DIRECTIONS, "examples")
        deceived.learn([*usual[1:], report(0, size=1e30, loss=1e30)], DIRECTIONS, "examples")
    assert deceived.lr == honest.lr


def test_clients_count_by_their_shares() -> None:
    wild = [replace(report(0, size=1e4), examples=30), *reports(size=1e-3)[1:]]
    by_examples, by_head, expected = found(), found(), found()
    for _ in range(10):
        by_examples.learn(wild, DIRECTIONS, "examples")
        by_head.learn(wild, DIRECTIONS, "uniform")
        expected.learn(wild[:1], DIRECTIONS, "examples")
    assert by_examples.lr == expected.lr
    assert by_examples.lr[0] < 0.01 * by_head.lr[0]


@pytest.mark.parametrize(
    ("values", "shares", "expected"),
    [
        ([3.0], [1.0], 3.0),
        ([3.0, 1.0, 2.0], [1.0, 1.0, 1.0], 2.0),
        ([3.0, 1.0], [1.0, 1.0], 1.0),
        ([9.0, 1.0, 2.0], [0.6, 0.2, 0.2], 9.0),
        ([9.0, 1.0, 2.0], [0.4, 0.2, 0.4], 2.0),
    ],
)
def test_the_median_is_by_shares(values: list[float], shares: list[float], expected: float) -> None:
    assert median(values, shares) == expected


def test_the_steps_before_the_first_round_are_on_the_clients_by_their_shares() -> None:
    assert sorted(probe_clients([5] * 8, "examples")) == list(range(8))
    assert sorted(probe_clients([5] * 4, "examples")) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert probe_clients([5] * 4, "examples") == [0, 1, 3, 0, 2, 3, 1, 2]
    assert sorted(probe_clients([1, 1, 1, 13], "examples")) == [1, *[3] * 7]
    assert sorted(probe_clients([1, 1, 1, 13], "uniform")) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert probe_clients([7], "examples") == [0] * 8
    assert len(set(probe_clients([3] * 10_000, "examples"))) == 8


def test_who_took_no_step_tells_nothing() -> None:
    rates, expected = found(), found()
    rates.learn([], DIRECTIONS, "examples")
    rates.learn([report(0, steps=0)], DIRECTIONS, "examples")
    assert rates.lr == expected.lr
    rates.learn([report(0, size=50.0), report(1, steps=0)], DIRECTIONS, "examples")
    expected.learn([report(0, size=50.0)], DIRECTIONS, "examples")
    assert rates.lr == expected.lr


def test_that_rounds_are_of_other_clients_each_is_no_divergence() -> None:
    """Their labels differ, and so do their losses: rates would be halved for nothing, for ever."""
    draw, rates = random.Random(0), found(participation=0.5)
    for _ in range(500):
        rates.learn(reports(size=1e-3, loss=draw.choice([0.2, 1.5])), DIRECTIONS, "examples")
    assert rates.to_dict()["factor"] == 1
    for _ in range(60):
        rates.learn(reports(size=1e-3, loss=9.0), DIRECTIONS, "examples")
    assert rates.to_dict()["factor"] < 1


def test_a_robust_rule_counts_every_client_alike() -> None:
    for rule, expected in (("mean", "examples"), ("median", "uniform"), ("krum", "uniform")):
        federation = replace(FEDERATION, seeds="shared", aggregation=rule)
        assert federation.counting == expected


def test_rates_are_not_halved_without_end() -> None:
    rates = found()
    for turn in range(1500):
        loss = 50.0 if turn // 9 % 2 else 1.0
        rates.learn(reports(size=1e-3, loss=loss), DIRECTIONS, "examples")
    assert 0 < rates.lr[1] < 1e-16
    assert rates.to_dict()["factor"] >= 2.0**-64


def test_steps_without_a_loss_do_not_look_like_the_best_ones() -> None:
    rates, expected = found(), found()
    for _ in range(20):
        for other in (rates, expected):
            other.learn(reports(size=1e-3, loss=1.0), DIRECTIONS, "examples")
        without = [replace(one, loss=None) for one in reports(size=1e-3)]
        rates.learn(without, DIRECTIONS, "examples")
    assert rates.lr[1] == expected.lr[1]
    deceived, warned = found(), found()
    for loss in [1.0] * 10 + [9.0] * 30:
        usual = reports(size=1e-3, loss=loss)
        warned.learn(usual, DIRECTIONS, "examples")
        deceived.learn([replace(usual[0], loss=None), *usual[1:]], DIRECTIONS, "examples")
    assert deceived.lr == warned.lr
