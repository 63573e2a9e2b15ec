"""torch param groups as blocks: names, ties and defaults settled, values checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedspzo.blocks.parameters import storage, trainable
from fedspzo.estimators import Estimator
from fedspzo.estimators.base import check_count
from fedspzo.estimators.defaults import (
    FIRST_PERTURBATIONS,
    MOST_PERTURBATIONS,
    default_lr_scales,
    newton_perturbations,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Group = dict[str, Any]


def named(group: Group) -> list[tuple[str, Tensor]]:
    """A param group's (name, parameter) pairs."""
    return list(zip(group["param_names"], group["params"], strict=True))


def learning_rate(group: Group) -> float:
    """The rate that a block's updates use."""
    return float(group["lr"] * group["lr_scale"])


def is_low(group: Group) -> bool:
    """Whether a group has weights of less than float32's precision."""
    return any(parameter.dtype != torch.float32 for parameter in group["params"])


def as_groups(params: Iterable[Any]) -> list[Group]:
    """What torch optimizers take (tensors, named tensors or dicts) as a list of new dicts."""
    members = [params] if isinstance(params, Tensor) else list(params)
    if not members:
        raise ValueError("params is empty; pass blocks.split(model) or model.named_parameters()")
    if all(isinstance(member, dict) for member in members):
        return [dict(member) for member in members]
    return [{"params": members}]


def distribute(groups: Sequence[Group], field: str, value: Any) -> None:
    """Give each group without a value of its own the one value, or its one of a sequence."""
    own = value if isinstance(value, Sequence) else [value] * len(groups)
    if len(own) != len(groups):
        raise ValueError(
            f"{field} is {value!r}, but there are {len(groups)} blocks; pass one value, or one a"
            " block"
        )
    for group, item in zip(groups, own, strict=True):
        group.setdefault(field, item)


def resolve(group: Group, others: Sequence[Group], index: int) -> Group:
    """A new group with named, trainable parameters, each storage once, and checked options.

    Args:
        group: `params`, a list, and options; what is missing gets its default.
        others: the optimizer's groups so far.
        index: the first parameter's index, which is the name of one without a name.

    Raises:
        TypeError, ValueError: naming the option or parameter, its value and the remedy.
    """
    pairs = [
        member if isinstance(member, tuple) else (str(i), member)
        for i, member in enumerate(group["params"], index)
    ]
    for name, parameter in pairs:
        if not isinstance(parameter, Tensor) or parameter.dtype not in DTYPES:
            kind = getattr(parameter, "dtype", type(parameter).__name__)
            raise TypeError(
                f"parameter {name!r} is a {kind}; pass float32, bfloat16 or float16 tensors"
            )
    kept = trainable(pairs)
    if not kept:
        raise ValueError("params holds nothing with requires_grad=True; pass or unfreeze some")
    taken = {storage(parameter) for other in others for parameter in other["params"]}
    names = {name for other in others for name in other["param_names"]}
    for name, parameter in kept:
        if storage(parameter) in taken or name in names:
            raise ValueError(
                f"parameter {name!r} shares its memory or its name with another; pass each once"
            )
        names.add(name)

    low = is_low({"params": [parameter for _, parameter in kept]})
    defaults = {"lr": 1e-4, "lr_scale": 1.0, "perturbations": 1, "weight_decay": 0.0}
    group = {**defaults, "block": len(others) + 1, **group, "params": list(kept)}
    if group.get("eps") is None:
        group["eps"] = 5e-3 if low else 1e-3
    for field in ("lr", "eps", "weight_decay"):
        value, zero = group[field], field == "weight_decay"
        fits = isinstance(value, int | float) and 0 <= value < math.inf and (zero or value > 0)
        if not fits:
            remedy = "of 0 or more" if zero else "above 0"
            raise ValueError(f"{field} is {value!r}; pass a finite number {remedy}")
    if group["perturbations"] is not None:
        check_count(group["perturbations"], fewest=0)
    if low and group["weight_decay"]:
        raise ValueError(
            f"weight_decay is {group['weight_decay']}, but bfloat16 and float16 weights round"
            " 1 - lr * weight_decay away; pass 0, or train in float32"
        )
    return group


def fill_defaults(
    groups: Sequence[Group],
    estimator: type[Estimator],
    shares: Sequence[float] | None,
    *,
    newton: bool,
) -> None:
    """Fill in what follows from the blocks' costs: perturbations, and from them rates.

    Args:
        groups: an optimizer's; what is None and can be told is set.
        estimator: its class.
        shares: for each block but the first, its cost share; None: not yet measured.
        newton: whether the last block may take Newton steps.
    """
    if shares is not None:
        rule = estimator.default_perturbations(shares, FIRST_PERTURBATIONS, MOST_PERTURBATIONS)
        if newton and shares:
            rule = (*rule[:-1], newton_perturbations(shares[-1]) or rule[-1])
        for group, count in zip(groups, rule, strict=True):
            if group["perturbations"] is None:
                group["perturbations"] = count
    counts = [group["perturbations"] for group in groups]
    if None not in counts:
        scales = default_lr_scales(estimator(sides="two", perturbations=tuple(counts)).directions)
        for group, scale in zip(groups, scales, strict=True):
            if group["lr_scale"] is None:
                group["lr_scale"] = scale
