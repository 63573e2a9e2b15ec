"""The input of a layer, kept so that a later input can be compared with it bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
NESTED = "nested Tensor"
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class LayerInput:
    """Keeps a layer's arguments, if they can be compared.

    Tensors are copied, as the layer may write into its input.

    Args:
        args: the positional arguments.
        kwargs: the keyword arguments.

    Attributes:
        foreign: what the first argument that cannot be compared is; None if all can. An object may
            hold state that a layer changes, as a key-value cache does.
    """

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        leaves, self._form = _flat(args, kwargs)
        self.foreign = next((_kind(x) for x in leaves if not _is_comparable(x)), None)
        self._leaves = [
            leaf.clone() if isinstance(leaf, Tensor) and not self.foreign else leaf
            for leaf in ([] if self.foreign else leaves)
        ]

    def pairs(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> list[tuple[Tensor, Tensor]] | None:
        """Return the pairs of tensors in which other arguments may differ from these.

        Returns None if they differ in anything else: form, shapes, dtypes, plain values.
        """
        leaves, form = _flat(args, kwargs)
        if self.foreign or form != self._form:
            return None
        pairs = []
        for kept, given in zip(self._leaves, leaves, strict=True):
            if isinstance(kept, Tensor) and isinstance(given, Tensor):
                if (kept.shape, kept.dtype, kept.device) != (
                    given.shape,
                    given.dtype,
                    given.device,
                ):
                    return None
                pairs.append((kept, given))
            elif type(kept) is not type(given) or kept != given:
                return None
        return pairs


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors of one shape and dtype have the same bits."""
    return torch.equal(_bits(one), _bits(other))


def same_bits_later(one: Tensor, other: Tensor) -> Tensor:
    """Tell what `same_bits` tells by a bool tensor, (), so that nobody waits for the device."""
    return (_bits(one) == _bits(other)).all()


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(_BITS[tensor.element_size()]) if tensor.is_floating_point() else tensor


def _flat(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], Any]:
    # a cache may be registered with pytree, whose flattening would hide its state
    leaves, form = tree_flatten(
        (tuple(args), dict(kwargs)), is_leaf=lambda x: not isinstance(x, tuple | list | dict)
    )
    return leaves, form


def _is_comparable(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.layout == torch.strided and not leaf.is_nested
    return isinstance(leaf, _PLAIN)


def _kind(leaf: Any) -> str:
    """Say what an argument is that cannot be compared."""
    if isinstance(leaf, Tensor):
        return NESTED if leaf.is_nested else f"{str(leaf.layout).removeprefix('torch.')} Tensor"
    return type(leaf).__name__
