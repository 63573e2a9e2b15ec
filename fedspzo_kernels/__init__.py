"""The fused kernels of fedspzo: seeded noise, perturbation, restore and update in one op.

`perturb_` is the op, `noise` shows what it adds, `parameter_key` names a parameter, `serving` tells
which backend serves a device, `info` why another one does not. Nothing here knows of models or
federation.
"""

from __future__ import annotations

from .backends import info, load, serving
from .functional import noise, perturb_
from .streams import STREAMS, parameter_key

__all__ = ["STREAMS", "info", "noise", "parameter_key", "perturb_", "serving"]

load()
