"""What others do, on the same kernels: each method's `run` is called as `federated.run` is.

All take the same examples, settings and options, draw the same clients and batches from the same
seed, and yield the same `RoundResult`s, so that a comparison differs in the method alone. How each
differs from its published form: docs/baselines.md. May import `federated` and everything below it.
"""

from __future__ import annotations

from . import decomfl, fedavg, fedkseed, fedmezo, last_block, lora, mezo
from .loop import Method, Options

METHODS: dict[str, Method] = {
    "mezo": mezo.run,
    "last-block": last_block.run,
    "fedmezo": fedmezo.run,
    "fedkseed": fedkseed.run,
    "fedkseed-pro": fedkseed.run_weighted,
    "decomfl": decomfl.run,
    "fedavg": fedavg.run,
    "fedavg-lora": lora.run,
}
"""Every baseline by its name."""

__all__ = ["METHODS", "Method", "Options"]
