"""Is the noise normal, and independent from element to element, seed to seed, key to key?

Over 1.1e8 draws. The seeds are fixed, so a test that passes goes on passing: the false-alarm rate
in each docstring is that of a change of the noise, or of these seeds.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import scipy.stats
import torch

from fedspzo_kernels import noise, perturb_

pytestmark = pytest.mark.statistics

PIECE, PIECES = 1 << 22, 27
DRAWS = PIECE * PIECES
CELLS = 4096
TAILS = (4.0, 4.5, 5.0, 5.5)


@functools.cache
def summary() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean powers 1 to 6, counts in equally likely cells, counts beyond each of TAILS."""
    edges = torch.from_numpy(scipy.stats.norm.ppf(np.arange(1, CELLS) / CELLS))
    powers, cells, tails = np.zeros(6), np.zeros(CELLS), np.zeros(len(TAILS))
    for piece in range(PIECES):
        z = noise(PIECE, key=piece % 3, seed=piece, offset=piece * 1_000_003)
        cells += torch.bincount(torch.bucketize(z, edges.float()), minlength=CELLS).numpy()
        tails += [(z.abs() > tail).sum().item() for tail in TAILS]
        z = z.double()
        power = torch.ones_like(z)
        for k in range(6):
            power *= z
            powers[k] += power.sum().item() / DRAWS
    return powers, cells, tails


def test_moments() -> None:
    """The first six, each within 5 standard errors: false alarm 3.4e-6 in all.

    Power: a variance off by 7e-4 or a kurtosis off by 5e-3 is found.
    """
    powers, _, _ = summary()
    moments = np.array([0, 1, 0, 3, 0, 15])
    higher = np.array([1, 3, 15, 105, 945, 10395])  # E z^(2k)
    errors = np.sqrt((higher - moments**2) / DRAWS)
    assert (np.abs(powers - moments) < 5 * errors).all(), (powers - moments) / errors


def test_kolmogorov_smirnov() -> None:
    """At 4095 points, where it is no larger than in between: false alarm below 1e-6.

    Power: a distribution function off by 5e-4 anywhere is found with near certainty.
    """
    _, cells, _ = summary()
    distance = np.abs(np.cumsum(cells) / DRAWS - np.arange(1, CELLS + 1) / CELLS).max()
    assert scipy.stats.kstwobign.sf(distance * DRAWS**0.5) > 1e-6


def test_cells() -> None:
    """Chi-squared over 4096 equally likely cells: false alarm 1e-6.

    Power: relative errors of 3e-3 in the density, of either sign in each cell, are found.
    """
    _, cells, _ = summary()
    assert scipy.stats.chisquare(cells).pvalue > 1e-6


def test_tails() -> None:
    """Counts beyond 4, 4.5, 5 and 5.5 standard deviations, two-sided: false alarm 4e-6 in all.

    Power: 65 are expected beyond 5; two thirds more or fewer are found half of the time, a
    truncation at 5 always.
    """
    _, _, tails = summary()
    for tail, count in zip(TAILS, tails, strict=True):
        expected = scipy.stats.poisson(2 * scipy.stats.norm.sf(tail) * DRAWS)
        assert expected.ppf(5e-7) <= count <= expected.isf(5e-7), tail


def assert_uncorrelated(a: torch.Tensor, b: torch.Tensor, what: object) -> None:
    """Of values and of squares, each within 5 standard errors: false alarm 1.1e-6."""
    a, b = a.double(), b.double()
    for x, y, spread in ((a, b, 1.0), (a**2 - 1, b**2 - 1, 2.0)):
        score = (x * y).sum().item() / (spread * a.numel() ** 0.5)
        assert abs(score) < 5, (what, score)


def test_elements_are_uncorrelated() -> None:
    """Lags within a counter, a vector, a span: 11 pairs of tests, 1.3e-5 in all.

    Power: a correlation of 2.5e-3 is found.
    """
    z = noise(PIECE, key=1, seed=1)
    for lag in (1, 2, 3, 4, 5, 8, 16, 32, 128, 1024, 4096):
        assert_uncorrelated(z[:-lag], z[lag:], lag)


def test_seeds_and_keys_are_uncorrelated() -> None:
    """Neighbouring and one-bit-apart seeds and keys: 14 pairs of tests, 1.6e-5 in all."""
    z = noise(PIECE, key=8, seed=8)
    for other in (9, 7, 10, 8 ^ 2**31, 8 + 2**32, 8 ^ 2**63, 0):
        assert_uncorrelated(z, noise(PIECE, key=8, seed=other), ("seed", other))
        assert_uncorrelated(z, noise(PIECE, key=other, seed=8), ("key", other))


def test_rademacher_is_fair_and_uncorrelated() -> None:
    """The mean and 6 lags within 5 standard errors: false alarm 4e-6 in all."""
    z = noise(1 << 24, key=2, seed=3, stream="rademacher-v1").double()
    assert abs(z.sum().item()) < 5 * z.numel() ** 0.5
    for lag in (1, 2, 31, 32, 128, 4096):
        assert abs((z[:-lag] * z[lag:]).sum().item()) < 5 * z.numel() ** 0.5, lag


def test_rounding_bits_are_independent_of_the_noise() -> None:
    """The same seed for both: the rounding error must not follow z. False alarm 6e-7.

    The noise stands for any update; the error of bfloat16 is uniform given the value.
    """
    n = 1 << 22
    z = noise(n, key=5, seed=6)
    x = torch.ones(n, dtype=torch.bfloat16)
    perturb_([x], [5], [6], [1e-3], rounding="stochastic", rounding_seed=6)
    error = x.double() - (1 + 1e-3 * z.double())
    score = (error * z).sum().item() / (error.std().item() * n**0.5)
    assert abs(score) < 5
