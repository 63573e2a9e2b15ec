"""Fine-tune language models with forward passes alone, federated by exchanging scalars.

`SPZO` is the optimizer and `split` cuts a model into blocks. `fedspzo.federated` holds the server,
the clients and the in-process loop, `fedspzo.journal` the record of a run, `fedspzo_kernels` the
fused op underneath. Imports names when they are first used; the modules beside this one (errors,
seeds, files, checks) import no package of fedspzo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy_names

if TYPE_CHECKING:
    from .blocks import Blocks, merge_rows, split, untie_rows
    from .estimators import StepReport
    from .evaluation.accumulation import accumulate
    from .optim import SPZO
    from .privacy import Mechanism, Privacy

__all__ = [
    "SPZO",
    "Blocks",
    "Mechanism",
    "Privacy",
    "StepReport",
    "__version__",
    "accumulate",
    "merge_rows",
    "split",
    "untie_rows",
]

__version__ = "0.1.0"

__getattr__ = lazy_names(
    __name__,
    {
        "Blocks": ".blocks",
        "Mechanism": ".privacy",
        "Privacy": ".privacy",
        "SPZO": ".optim",
        "StepReport": ".estimators",
        "accumulate": ".evaluation.accumulation",
        "merge_rows": ".blocks",
        "split": ".blocks",
        "untie_rows": ".blocks",
    },
)
