"""Differentially private steps: clip each example, add secret noise, keep the account.

What a step learns from the data are the projected gradients of its D directions. So an example's
share in a step is one vector of D numbers: the estimator's formulas on that example's losses. It is
clipped to a length, the batch's vectors are added up, and Gaussian noise is added to the sum. For
D = 1 this is DP-ZO (arXiv 2401.04343) and DPZero (arXiv 2310.09639). What it promises and what not:
docs/privacy.md.

Nothing heavy is imported here.
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
"""Of the Renyi divergences. Between whole ones dp-accounting's series may fail to converge."""

NOT_PRIVATE = "lr is 'auto', which is found from losses that are not private; give a number"


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """How private a step is.

    Attributes:
        clip: the length C to which an example's vector of projected gradients is cut.
        noise_multiplier: the standard deviation of the noise on each number of the sum, over C.
        delta: the probability that the guarantee's epsilon does not hold.

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
    """The private steps on one dataset, and what they have spent.

    Each step draws its batch by `sample`, evaluates the losses of just these examples, and hands
    their projected gradients to `release`.

    Args:
        privacy: clip, noise and delta.
        examples: how many the dataset has. This number counts as public.
        random: draws batches and noise. Default: the operating system's cryptographic source, which
            has no seed that anybody could know. Another one is for tests alone: who knows its
            seed can take the noise off.

    Raises:
        ValueError: delta is so large that it allows to publish an example; or dp-accounting is not
            installed, without which nothing could be promised.
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
        self._releases: Counter[float] = Counter()  # how many there were at each sampling rate

    def sample(self, batch_size: int) -> list[int]:
        """The indices of a step's examples, ascending: each is in with the same probability.

        Args:
            batch_size: how many there are on average; there may be more, fewer, or none.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give at least 1")
        rate = self._rate(batch_size)
        chosen = [i for i in range(self.examples) if self._random.random() < rate]
        self._drawn = rate, len(chosen)
        return chosen

    def release(self, gradients: Tensor) -> list[float]:
        """The step's private projected gradients, D numbers: the noisy sum over the batch size.

        An example with a number that is not finite counts as zeros. The sum is divided by the mean
        size of a batch, not by the size of this one, which is secret.

        Args:
            gradients: (B, D), a row for each example of the last `sample`.

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
        """Add releases that another object made on the same dataset, before a run was resumed."""
        self._releases[self._rate(batch_size)] += releases

    def epsilon(self) -> float:
        """What all releases together have spent, at `delta`; 0 before the first one."""
        releases = tuple(sorted(self._releases.items()))
        return _epsilon(self.privacy.noise_multiplier, self.privacy.delta, releases)

    def _rate(self, batch_size: int) -> float:
        return min(1.0, batch_size / self.examples)


@cache
def _epsilon(
    noise_multiplier: float, delta: float, releases: tuple[tuple[float, int], ...]
) -> float:
    """By Renyi divergences of Poisson-sampled Gaussian mechanisms, added up over the releases."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    if not any(count for _, count in releases):
        return 0.0
    accountant = RdpAccountant(_ORDERS)
    for rate, count in releases:
        event = PoissonSampledDpEvent(rate, GaussianDpEvent(noise_multiplier))
        accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))
