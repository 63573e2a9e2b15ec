"""What others do, on the same kernels: each method is called as `federated.run` is.

All take the same examples, settings and options, draw the same clients and batches from the same
seed, and return the same `RunResult`, so that a comparison differs in the method alone. A file
here says how a method changes the settings, and, where its messages are not plans and reports of
scalars, what its rounds are. How each differs from its published form: docs/baselines.md.

May import `federated` and what is below it.
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
"""Every baseline by its name."""

__all__ = ["METHODS", "FedAvg", "FedKSeed", "Method"]
