from __future__ import annotations

import numpy as np
import pytest

from fedspzo.federated.partition import dirichlet, draw, iid

IID = [[2, 3, 5], [0, 4, 7], [1, 6]]
DIRICHLET = [[0, 2, 3, 4, 6, 7, 8], [1, 5], [9]]


def skew(labels: np.ndarray, parts: list[np.ndarray]) -> float:
    """Mean over clients, by size, of the share of the client's most frequent label."""
    return sum(max(np.bincount(labels[part])) for part in parts) / len(labels)


def assert_all_used_once(parts: list[np.ndarray], examples: int) -> None:
    assert all(len(part) for part in parts)
    assert sorted(index for part in parts for index in part) == list(range(examples))


@pytest.mark.parametrize(("examples", "clients"), [(100, 7), (8, 8), (1, 1), (1000, 3)])
def test_iid_deals_everything_out_evenly(examples, clients):
    parts = iid(examples, clients, seed=3)
    assert_all_used_once(parts, examples)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_iid_shuffles():
    first = iid(1000, 2, seed=0)[0]
    # of 500 drawn from 1000, 250 +- 11 come from the first half: 6 sigma
    assert abs((first < 500).sum() - 250) < 6 * 11.2
    assert not np.array_equal(first, iid(1000, 2, seed=1)[0])


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 1.0, 1e3])
@pytest.mark.parametrize("seed", range(5))
def test_dirichlet_leaves_no_client_empty_and_no_example_out(alpha, seed):
    labels = np.arange(60) % 4
    for clients in (1, 8, 59, 60):
        assert_all_used_once(dirichlet(labels, clients, alpha, seed), 60)


def test_a_smaller_alpha_skews_more():
    labels = np.arange(4000) % 4
    skews = [
        np.mean([skew(labels, dirichlet(labels, 8, alpha, seed)) for seed in range(20)])
        for alpha in (0.05, 0.5, 5.0, 500.0)
    ]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.8
    assert skews[-1] < 0.3


def test_labels_may_be_words():
    words = ["yes", "no", "no", "yes", "maybe"]
    numbers = [0, 1, 1, 0, 2]
    for a, b in zip(dirichlet(words, 2, 1.0, 0), dirichlet(numbers, 2, 1.0, 0), strict=True):
        assert np.array_equal(a, b)


def test_partitions_are_the_same_everywhere():
    # pinned: a run's partition is part of what its seed promises
    assert [part.tolist() for part in iid(8, 3, seed=2**64 - 1)] == IID
    assert [part.tolist() for part in dirichlet([0, 1] * 5, 3, 0.5, seed=0)] == DIRICHLET


def test_draw_is_without_replacement():
    drawn = draw(10, 4, seed=5)
    assert len(set(drawn.tolist())) == 4
    assert sorted(draw(3, 8, seed=5).tolist()) == [0, 1, 2]
    counts = np.bincount(np.concatenate([draw(10, 4, seed) for seed in range(1000)]))
    assert abs(counts - 400).max() < 6 * 15.5  # binomial(1000, 0.4): sigma 15.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: iid(3, 4, 0), "clients is 4, but there are only 3 examples"),
        (lambda: iid(0, 1, 0), "examples is 0"),
        (lambda: iid(3, 0, 0), "clients is 0"),
        (lambda: iid(3, 1, -1), "seed is -1"),
        (lambda: dirichlet([0, 1], 1, 0.0, 0), "alpha is 0.0"),
        (lambda: dirichlet([0, 1], 1, float("nan"), 0), "alpha is nan"),
        (lambda: dirichlet([0, 1], 3, 1.0, 0), "clients is 3, but there are only 2"),
    ],
)
def test_errors_name_field_and_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
