"""Make steps differentially private: clip each example, add secret noise, keep the account.

A step learns from the data only the projected gradients of its D directions. So an example's share
in a step is one vector of D numbers, which the estimator's formulas give from that example's
losses. Each vector is clipped to a length, the batch's vectors are added up, and Gaussian noise is
added to the sum. For D = 1 this is DP-ZO (arXiv 2401.04343) and DPZero (arXiv 2310.09639).
docs/privacy.md says what is promised and what is not.

This module imports nothing heavy.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from random import Random, SystemRandom
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_ORDERS = (*range(2, 64), 128, 256, 512, 1024)
"""Orders of the Renyi divergences. They are whole, as dp-accounting's series may fail to converge
between whole orders."""


def public_setting(lr: object, newton: object) -> str | None:
    """Return why steps with these settings cannot be private, and the remedy; None if they can."""
    if lr == "auto":
        return "lr is 'auto', which is found from losses that are not private; give a number"
    if newton:
        return "newton is True, but curvatures are not private; leave it out"
    return None


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """Settings of private steps.

    Attributes:
        clip: the length C to which an example's vector of projected gradients is clipped.
        noise_multiplier: standard deviation of the noise on each number of the sum, over C.
        delta: the probability that the guarantee's epsilon does not hold. Default 1e-5.

    Raises:
        ValueError: a value is out of range.
    """

    clip: float
    noise_multiplier: float
    delta: float = 1e-5

    def __post_init__(self) -> None:
        for name, low, high in (
            ("clip", 1e-9, 1e9),
            ("noise_multiplier", 1e-9, 1e9),
            ("delta", 1e-50, 0.5),
        ):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; give a number from {low:g} to {high:g}")


class Mechanism:
    """Makes the steps on one dataset private, and keeps the account of what they have spent.

    Each step draws its batch by `sample`, evaluates the losses of just these examples, and hands
    their projected gradients to `release`.

    Args:
        privacy: clip, noise and delta.
        examples: the dataset's number of examples. This number counts as public.
        random: draws batches and noise. Default: the operating system's cryptographic source, which
            has no seed that anybody could know. Another source is for tests alone, as whoever knows
            its seed can subtract the noise.

    Raises:
        ValueError: dp-accounting is not installed, `examples` is below 1, or delta is so large
            that it allows an example to be published.
    """

    def __init__(self, privacy: Privacy, examples: int, *, random: Random | None = None) -> None:
        if find_spec("dp_accounting") is None:
            raise ValueError(
                "privacy needs dp-accounting, which is not installed; pip install"
                " 'fedspzo[privacy]'"
            )
        if examples < 1:
            raise ValueError(f"examples is {examples}; give at least one")
        if privacy.delta * examples >= 1:
            raise ValueError(
                f"delta is {privacy.delta!r}, but of {examples} examples one may then be published;"
                f" give less than {1 / examples:.2g}"
            )
        self.privacy = privacy
        self.examples = examples
        self._random = SystemRandom() if random is None else random
        self._drawn: tuple[float, int] | None = None  # sampling rate and size of the open sample
        self._releases: Counter[float] = Counter()  # number of releases at each sampling rate

    def sample(self, batch_size: int) -> list[int]:
        """Draw the examples of a step, each with the same probability (Poisson sampling).

        Args:
            batch_size: mean number of examples. There may be more, fewer, or none.

        Returns:
            The examples' indices, ascending.

        Raises:
            ValueError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give at least 1")
        rate = self._rate(batch_size)
        chosen = [i for i in range(self.examples) if self._random.random() < rate]
        self._drawn = rate, len(chosen)
        return chosen

    def release(self, gradients: Tensor) -> list[float]:
        """Return the step's D private projected gradients: the noisy sum over the batch size.

        With rows g_i of length |g_i|, it is (sum_i g_i min(1, C / |g_i|) + noise) / (mean batch
        size), where each number's noise is normal with standard deviation C * noise_multiplier
        (DP-SGD's form: Abadi et al., arXiv 1607.00133). An example with a number that is not finite
        counts as zeros. The sum is divided by the mean size of a batch, as the size of this one is
        secret.

        Args:
            gradients: projected gradients, (B, D), a row for each example of the last `sample`.

        Raises:
            ValueError: there was no new sample, or it had another number of examples.
        """
        if self._drawn is None:
            raise ValueError("release needs a batch of its own; call sample before each step")
        rate, size = self._drawn
        if gradients.dim() != 2 or len(gradients) != size:
            raise ValueError(
                f"gradients has shape {tuple(gradients.shape)}, but the sample has {size} examples;"
                " give the losses of just these, one each"
            )
        self._drawn = None
        clip, noise = self.privacy.clip, self.privacy.clip * self.privacy.noise_multiplier
        rows = gradients.double()
        rows = rows[rows.isfinite().all(dim=1)]
        lengths = rows.norm(dim=1, keepdim=True)
        total = (rows * (clip / lengths.clamp(min=clip))).sum(dim=0).tolist()
        noisy = [value + self._random.gauss(0.0, noise) for value in total]
        self._releases[rate] += 1
        return [value / (rate * self.examples) for value in noisy]

    def count(self, batch_size: int, releases: int) -> None:
        """Add releases of another object on the same dataset, made before a run was resumed.

        Args:
            batch_size: the mean batch size of these releases.
            releases: their number.
        """
        self._releases[self._rate(batch_size)] += releases

    def epsilon(self) -> float:
        """Return the epsilon that all releases together have spent, at `delta`; 0 before any."""
        releases = tuple(sorted(self._releases.items()))
        return _epsilon(self.privacy.noise_multiplier, self.privacy.delta, releases)

    def _rate(self, batch_size: int) -> float:
        return min(1.0, batch_size / self.examples)


@cache
def _epsilon(
    noise_multiplier: float, delta: float, releases: tuple[tuple[float, int], ...]
) -> float:
    """Return the epsilon of releases, each a Gaussian mechanism on a Poisson sample.

    Their Renyi divergences are added up (Mironov, Talwar and Zhang, arXiv 1908.10530).

    Args:
        noise_multiplier: standard deviation of the noise, over the clip.
        delta: the probability that epsilon does not hold.
        releases: pairs of a sampling rate and the number of releases at it.
    """
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    if not any(count for _, count in releases):
        return 0.0
    accountant = RdpAccountant(_ORDERS)
    for rate, count in releases:
        event = PoissonSampledDpEvent(rate, GaussianDpEvent(noise_multiplier))
        accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))
