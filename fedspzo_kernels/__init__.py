"""The fused kernels of fedspzo: one op perturbs, restores and updates weights by seeded noise.

`perturb_` adds the noise in place, `perturb` out of place, and `perturb_rows` to the rows of an
embedding's lookup. A `Perturber` checks its tensors once for many calls. `noise` returns the noise
itself, and `parameter_key` a parameter's key. `serving` names the backend that serves a device, and
`info` tells the state of all backends. Imports nothing of `fedspzo`, and has no notion of models or
federation.
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
