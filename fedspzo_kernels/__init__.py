"""The fused kernels of fedspzo: seeded noise, perturbation, restore and update in one op.

`perturb_` is the op in place, `perturb` out of place, `perturb_rows` for an embedding's lookup;
`Perturber` checks the tensors once for many calls. `noise` shows what they add, `parameter_key`
names a parameter, `serving` tells which backend serves a device, `info` why another one does not.
Imports nothing of `fedspzo`: it knows neither models nor federation.
"""

from __future__ import annotations

from .backends import info, load, serving
from .functional import noise, perturb, perturb_, perturb_rows
from .perturber import Perturber
from .streams import STREAMS, parameter_key

__all__ = [
    "STREAMS",
    "Perturber",
    "info",
    "noise",
    "parameter_key",
    "perturb",
    "perturb_",
    "perturb_rows",
    "serving",
]

load()
