"""Published methods to compare with, on the same kernels. Each is called like `federated.run`.

All take the same examples, settings and options, draw the same clients and batches from the same
seed, and return a `RunResult`, so a comparison differs in the method alone. Each file adapts the
settings for a method. If its messages are not plans and reports of scalars, it also has a strategy.
docs/baselines.md tells the differences from the published forms.

May import `federated` and the packages below it.
"""

from __future__ import annotations

from functools import partial

from . import decomfl, fedmezo, last_block, lora, mezo
from .fedavg import FedAvg
from .fedkseed import FedKSeed
from .method import Method

METHODS: dict[str, Method] = {
    "mezo": Method(mezo.adapt),
    "last-block": Method(last_block.adapt),
    "fedmezo": Method(fedmezo.adapt),
    "fedkseed": Method(strategy=FedKSeed),
    "fedkseed-pro": Method(strategy=partial(FedKSeed, weighted=True)),
    "decomfl": Method(decomfl.adapt),
    "fedavg": Method(strategy=FedAvg),
    "fedavg-lora": Method(lora.adapt, FedAvg),
}
"""The baselines by name."""

__all__ = ["METHODS", "FedAvg", "FedKSeed", "Method"]
