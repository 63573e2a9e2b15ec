"""The state that continues an optimizer bit for bit, and the settings that steps follow from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .param_groups import Group

STATE = (
    *("sides", "rounding", "evaluation", "stream", "scratch_bytes", "seed", "steps"),
    *("skipped", "forwards", "cost_shares", "newton"),
)
"""Attributes of `SPZO` that are saved and restored. The estimator is saved too, and compared."""

TOLD = "told_of_equal_losses"
"""Whether the warning of equal losses was given. States of older releases do not say it."""


def checked_state(
    state_dict: dict[str, Any], estimator: str, groups: Sequence[Group]
) -> dict[str, Any]:
    """Return the part of a `SPZO.state_dict()` that is not torch's.

    Args:
        state_dict: the state to load.
        estimator: the name of the optimizer's estimator.
        groups: the optimizer's param groups.

    Raises:
        ValueError: it is another optimizer's, or its parameters have other names.
    """
    state: dict[str, Any] = state_dict.get("spzo", {})
    if state.keys() - {TOLD} != {"estimator", "auto", *STATE}:
        raise ValueError("state_dict is not what SPZO.state_dict() returned; pass that")
    if state["estimator"] != estimator:
        raise ValueError(
            f"state_dict is of estimator {state['estimator']!r}; build SPZO with it, not with"
            f" {estimator!r}"
        )
    saved = [group["param_names"] for group in state_dict["param_groups"]]
    if saved != [group["param_names"] for group in groups]:
        raise ValueError(
            "state_dict names other parameters than this optimizer's; build SPZO from the same"
            " model, split at the same layer"
        )
    return state


def settings_of(optimizer: Any) -> dict[str, Any]:
    """Return what the steps of a `SPZO` follow from, besides the weights and the losses."""
    groups = optimizer.param_groups
    options = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    frozen = [
        name
        for group in groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        if not parameter.requires_grad
    ]
    names = ("estimator", "sides", "rounding", "evaluation", "stream", "seed", "steps")
    settings = {name: getattr(optimizer, name) for name in (*names, "cost_shares", "newton")}
    return {"param_groups": options, "frozen parameters": frozen, **settings}
