"""Count a model's floating point operations, for the model as a whole.

torch's counter brings in Triton where that is installed, a tenth of the time that torch itself
takes to import. So this module is imported where operations are counted, and not before.
"""

from __future__ import annotations

from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker


class _NoModules(ModuleTracker):
    """Tracks no modules, so that operations are counted for the whole model alone.

    Without gradients the tracker's hooks fail on a module whose input is a parameter (DeBERTa).
    """

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


def flop_counter() -> FlopCounterMode:
    """Return a context that counts the operations inside it: `get_total_flops()` tells them."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    return counter
