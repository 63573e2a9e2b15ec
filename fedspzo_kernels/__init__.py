"""The fused kernels of fedspzo: seeded noise, perturbation, restore and update in one op.

`perturb_` is the op, `noise` shows what it adds, `parameter_key` names a parameter, `info` tells
which backend serves which device. Imports nothing of `fedspzo`: it knows neither models nor
federation.
"""

from __future__ import annotations

from .backends import info, load
from .functional import noise, perturb_
from .streams import STREAMS, parameter_key

__all__ = ["STREAMS", "info", "noise", "parameter_key", "perturb_"]

load()
