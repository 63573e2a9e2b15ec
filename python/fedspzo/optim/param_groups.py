"""Param groups as blocks: settle their names, ties and defaults, and check their values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedspzo.auto_lr.constants import START
from fedspzo.blocks.cut import Blocks
from fedspzo.blocks.parameters import check_apart, storage, trainable
from fedspzo.checks import check_positive
from fedspzo.choices import Sides
from fedspzo.estimators import Estimator
from fedspzo.estimators.base import check_count
from fedspzo.estimators.defaults import (
    FIRST_PERTURBATIONS,
    MOST_PERTURBATIONS,
    default_lr_scales,
    default_perturbations,
    newton_perturbations,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Group = dict[str, Any]


def named(group: Group) -> list[tuple[str, Tensor]]:
    """Return the (name, parameter) pairs of a param group that train now: some may be frozen."""
    pairs = zip(group["param_names"], group["params"], strict=True)
    return [(name, parameter) for name, parameter in pairs if parameter.requires_grad]


def check_not_meta(name: str, parameter: Tensor) -> None:
    """Raise ValueError if a parameter is on the meta device, where it has no weights."""
    if parameter.device.type == "meta":
        raise ValueError(
            f"parameter {name!r} is on meta, without weights, as accelerate's cpu_offload and disk"
            " offload leave it between two forward passes; keep the whole model on devices (no"
            " 'cpu' or 'disk' offload in device_map), in bfloat16 if memory is short"
        )


def plain(value: Any) -> Any:
    """Return a tensor, an array or a numpy scalar as Python's numbers; else the value itself."""
    found = value.tolist() if hasattr(value, "tolist") else value
    return tuple(found) if isinstance(found, list) else found


def learning_rate(group: Group) -> float:
    """Return the learning rate that a block's updates use."""
    return float(group["lr"] * group["lr_scale"])


def is_low(group: Group) -> bool:
    """Tell whether a group has bfloat16 or float16 weights."""
    return any(parameter.dtype != torch.float32 for parameter in group["params"])


def set_rates(groups: Sequence[Group], rates: Sequence[float]) -> None:
    """Set each group's `lr`."""
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate


def use_rates(groups: Sequence[Group], rates: Sequence[float]) -> None:
    """Set each block's learning rate: `lr` to the rate, and `lr_scale` to 1.

    Raises:
        ValueError: there is not one finite number above 0 for each block. Nothing has changed then.
    """
    if len(rates) != len(groups):
        raise ValueError(f"lr is {rates!r}, but there are {len(groups)} blocks; give each one")
    for rate in rates:
        check_positive("lr", rate)
    for group in groups:
        group["lr_scale"] = 1.0
    set_rates(groups, rates)


def as_groups(params: Blocks | Iterable[Any]) -> list[Group]:
    """Return new param groups.

    Args:
        params: a `Blocks`, or what torch optimizers take: tensors, named tensors, or dicts.

    Raises:
        TypeError: it is not iterable.
        ValueError: it is empty.
    """
    if isinstance(params, Blocks):
        return params.param_groups()
    if not isinstance(params, Iterable):
        raise TypeError(
            f"params is a {type(params).__name__}; pass split(model) or Blocks.single(model)"
        )
    members = [params] if isinstance(params, Tensor) else list(params)
    if not members:
        raise ValueError("params is empty; pass blocks.split(model) or model.named_parameters()")
    if all(isinstance(member, dict) for member in members):
        return [dict(member) for member in members]
    return [{"params": members}]


def as_named(members: Iterable[Any], index: int) -> list[tuple[str, Any]]:
    """Return (name, parameter) pairs. A parameter without a name is named by its index.

    Args:
        members: the group's parameters, or (name, parameter) pairs.
        index: the first one's index.
    """
    return [
        member if isinstance(member, tuple) else (str(i), member)
        for i, member in enumerate(members, index)
    ]


def distribute_settings(
    groups: Sequence[Group],
    kind: type[Estimator],
    *,
    lr: float | Sequence[float] | str,
    eps: float | Sequence[float] | None,
    perturbations: int | Sequence[int | None] | None,
) -> None:
    """Give each group its own settings, but for those that it has already.

    A setting that follows from the blocks' costs is None until `fill_defaults` knows these.

    Args:
        groups: the optimizer's groups.
        kind: the estimator's class.
        lr: one rate, or one for each group, or "auto".
        eps: one scale, or one for each group; None: the default for the dtype.
        perturbations: one number for each group, or an int if all blocks move along the same
            directions; None: the default.

    Raises:
        ValueError: there is not one value for each group.
    """
    if perturbations is None and kind.joint:
        first, most = FIRST_PERTURBATIONS, MOST_PERTURBATIONS
        perturbations = kind.default_perturbations((), first, most)[0]
    elif perturbations is None:
        perturbations = (None,) * len(groups)
    elif not kind.joint and not isinstance(perturbations, Sequence):
        raise ValueError(
            f"perturbations is {perturbations!r}; {kind.name!r} takes one number a block"
        )
    own = kind.joint or isinstance(lr, str | Sequence)
    for group in groups:
        # not folded into lr, which schedulers own
        group.setdefault("lr_scale", 1.0 if own or "lr" in group else None)
    _distribute(groups, "lr", START if isinstance(lr, str) else lr)
    _distribute(groups, "eps", eps)
    _distribute(groups, "perturbations", perturbations)


def _distribute(groups: Sequence[Group], field: str, value: Any) -> None:
    """Give each group without a value of its own the one value, or its one of a sequence."""
    own = value if isinstance(value, Sequence) else [value] * len(groups)
    if len(own) != len(groups):
        raise ValueError(
            f"{field} is {value!r}, but there are {len(groups)} blocks; pass one value, or one a"
            " block"
        )
    for group, item in zip(groups, own, strict=True):
        group.setdefault(field, item)


def check_joins(
    group: Group, others: Sequence[Group], kind: type[Estimator], *, blocks: int
) -> None:
    """Check that a group can be added to others, and give it their perturbations if it has to.

    Args:
        group: the new group.
        others: the optimizer's groups so far.
        kind: the estimator's class.
        blocks: number of blocks of the network that is replayed; 0: they are just groups.

    Raises:
        ValueError: the group cannot be added.
    """
    if blocks and len(others) == blocks:
        raise ValueError(
            "a param group is added to a network's blocks, which it is no part of; unfreeze its"
            " parameters first, and split the model then"
        )
    if kind.joint and others:
        count = others[0]["perturbations"]
        if group.setdefault("perturbations", count) != count:
            raise ValueError(
                f"perturbations is {group['perturbations']!r}, but the other groups have {count},"
                f" and {kind.name!r} moves all along the same directions; leave it out"
            )


def resolve(group: Group, others: Sequence[Group], index: int) -> Group:
    """Return a new group with named, trainable parameters, each storage once, and checked options.

    Args:
        group: `params`, a list, and options. Missing options get their defaults.
        others: the optimizer's groups so far.
        index: the first parameter's index. A parameter without a name is named by its index.

    Raises:
        TypeError, ValueError: an option or parameter is wrong; the message names it, its value and
            the remedy.
    """
    pairs = as_named(group["params"], index)
    for name, parameter in pairs:
        if not isinstance(parameter, Tensor) or parameter.dtype not in DTYPES:
            kind = getattr(parameter, "dtype", type(parameter).__name__)
            raise TypeError(
                f"parameter {name!r} is a {kind}; pass float32, bfloat16 or float16 tensors"
            )
    for name, parameter in pairs:
        check_not_meta(name, parameter)
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
    check_apart([*kept, *(pair for other in others for pair in named(other))])

    low = is_low({"params": [parameter for _, parameter in kept]})
    defaults = {
        "lr": 1e-4,
        "lr_scale": 1.0,
        "perturbations": 1,
        "weight_decay": 0.0,
        "no_decay": (),
    }
    group = {**defaults, "block": len(others) + 1, **group, "params": list(kept)}
    if group.get("eps") is None:
        group["eps"] = 5e-3 if low else 1e-3
    for field in ("lr", "eps", "weight_decay"):
        value = group[field] = plain(group[field])
        zero = field != "eps"
        fits = isinstance(value, int | float) and 0 <= value < math.inf and (zero or value > 0)
        if not fits:
            remedy = "of 0 or more" if zero else "above 0"
            raise ValueError(f"{field} is {value!r}; pass a finite number {remedy}")
    spared = group["no_decay"]
    if isinstance(spared, str) or not all(isinstance(part, str) for part in spared):
        raise ValueError(
            f"no_decay is {spared!r}; pass a sequence of parts of names, such as ('bias', 'norm')"
        )
    group["no_decay"] = tuple(spared)
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
    sides: Sides,
    newton: bool,
) -> None:
    """Fill in the settings that follow from the blocks' costs: perturbations, then `lr_scale`.

    Args:
        groups: the optimizer's groups. A setting that is None is set, if it can be told.
        estimator: the estimator's class.
        shares: as `known_shares` returned them; None: not yet measured.
        sides: the optimizer's.
        newton: the last block may take Newton steps.
    """
    if shares is not None:
        defaults = default_perturbations(
            estimator, shares, len(groups), FIRST_PERTURBATIONS, MOST_PERTURBATIONS
        )
        if newton and shares:
            defaults = (*defaults[:-1], newton_perturbations(shares[-1]) or defaults[-1])
        for group, count in zip(groups, defaults, strict=True):
            if group["perturbations"] is None:
                group["perturbations"] = count
    counts = [group["perturbations"] for group in groups]
    if None not in counts:
        scales = default_lr_scales(estimator(sides=sides, perturbations=tuple(counts)).directions)
        for group, scale in zip(groups, scales, strict=True):
            if group["lr_scale"] is None:
                group["lr_scale"] = scale
