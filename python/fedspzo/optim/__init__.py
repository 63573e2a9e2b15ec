"""The optimizer `SPZO`, its param groups, and its steps.

`spzo` holds the optimizer's settings and state, `param_groups` makes blocks of torch's param
groups, and `step` estimates and makes one step. `evaluations` runs the closure for it, and
`processes` lets several processes take it together. `arguments` checks what the optimizer is built
with, `closure_checks` what a closure does, `held_parameters` whether the model has changed, and
`first_order_loops` refuses loops that were written for gradients. May import `auto_lr`,
`evaluation`, `estimators`, `blocks`, `privacy` and the root's modules.
"""

from __future__ import annotations

from .spzo import SPZO

__all__ = ["SPZO"]
