"""Virtual parameters: an operation that is given one computes with the perturbed weight.

A `VirtualParameter` has a parameter's shape but no memory. An operation that is given one runs with
the perturbed weight in a scratch buffer, which the next operation uses again. An embedding is
perturbed in the rows it looks up alone, and a linear layer too large for the buffer (a head) runs
with some rows of its weight at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from fedspzo_kernels import STREAMS

from .in_place import InPlaceBlock, key_of
from .scratch_buffer import ScratchBuffer


def signed(bits: int) -> int:
    """The int64 of these 64 bits."""
    return bits - 2**64 if bits >= 2**63 else bits


class LayerwiseBlock:
    """What a block's weights are evaluated with: the terms on top of them.

    Args:
        scratch: where its virtual parameters find memory.
        copied: (name, tensor) pairs without a virtual parameter: moved in place, from a copy.
    """

    def __init__(self, scratch: ScratchBuffer, copied: Sequence[tuple[str, Tensor]]) -> None:
        self.scratch = scratch
        self.terms: dict[int, float] = {}
        self._scalars: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.copy(copied)

    def copy(self, members: Sequence[tuple[str, Tensor]]) -> None:
        """Move these (name, tensor) pairs from now on in place."""
        self._copied = InPlaceBlock(members, snapshot=True)
        self._copied.move(self.terms)

    def move(self, target: Mapping[int, float]) -> None:
        """Evaluate from now on at the weights plus `target`, seed to coefficient."""
        self.terms = dict(target)
        self._scalars.clear()
        self._copied.move(target)

    def restore(self) -> None:
        """Copy back what had to be moved in place."""
        self._copied.restore()

    def add_to(self, tensors: Sequence[Tensor], keys: list[int], offsets: list[int]) -> None:
        """Add the terms to contiguous copies of weights, in place.

        This is `fedspzo_kernels.perturb_` less its checks, which cost more than a small weight.
        """
        device = tensors[0].device
        if device not in self._scalars:
            self._scalars[device] = (
                torch.tensor([signed(seed) for seed in self.terms]).to(device),
                torch.tensor(list(self.terms.values()), dtype=torch.float32).to(device),
            )
        torch.ops.fedspzo.perturb_(
            tensors, keys, offsets, *self._scalars[device], None, STREAMS["normal-v1"]
        )


class VirtualParameter(Tensor):
    """Stands for a perturbed parameter: has its shape, dtype and device, and no memory.

    Attributes:
        called: the parameter's name.
        weight: the parameter; it is only read.
        key: of its noise.
        block: the terms that are added to it.
    """

    _is_param = True  # isinstance(parameter, nn.Parameter)
    called: str
    weight: Tensor
    key: int
    block: LayerwiseBlock

    @classmethod
    def of(cls, name: str, weight: Tensor, block: LayerwiseBlock) -> VirtualParameter:
        """A virtual parameter for one parameter."""
        self: VirtualParameter = Tensor._make_wrapper_subclass(
            cls,
            weight.shape,
            strides=weight.stride(),
            dtype=weight.dtype,
            device=weight.device,
            requires_grad=weight.requires_grad,
        )
        self.called, self.weight, self.block = name, weight.detach(), block
        self.key = signed(key_of(name))
        return self

    def first(self, rows: slice) -> int:
        """The index of the rows' first element in the parameter."""
        return rows.start * (self.weight.numel() // len(self.weight)) if rows.start else 0

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.data_ptr:
            raise RuntimeError(
                f"a kernel outside torch asks for the address of {args[0].called!r}, which has"
                " none in layerwise evaluation; pass evaluation='in_place'"
            )
        with torch._C.DisableTorchFunctionSubclass():
            # a shape or dtype is answered at once; what computes comes to __torch_dispatch__
            return _BY_ROWS.get(func, func)(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = {id(x): x for x in tree_leaves((args, kwargs)) if isinstance(x, VirtualParameter)}
        # a view stays when the operation is done, so it may not lie in the scratch buffer
        tensors = _perturbed(list(found.values()), lasting=func.is_view)
        filled = dict(zip(found, tensors, strict=True))
        args, kwargs = tree_map_only(VirtualParameter, lambda x: filled[id(x)], (args, kwargs))
        return func(*args, **kwargs)


def _perturbed(
    parameters: Sequence[VirtualParameter], rows: slice = slice(None), *, lasting: bool = False
) -> list[Tensor]:
    """The perturbed weights, or some rows of each; without terms, the weights themselves.

    They are valid until the next call, unless `lasting`.
    """
    weights = [s.weight if rows == slice(None) else s.weight[rows] for s in parameters]
    # while it is watched who reads weights, a view may not lie in them even without terms
    every = lasting and parameters[0].block.scratch.watched
    moved = [i for i, parameter in enumerate(parameters) if every or parameter.block.terms]
    if not moved:
        return weights
    likes, first = [weights[i] for i in moved], parameters[moved[0]]
    if lasting:
        copies = [torch.empty_like(like, memory_format=torch.contiguous_format) for like in likes]
    else:
        copies = first.block.scratch.take(likes, first.called)
    for i, copy in zip(moved, copies, strict=True):
        weights[i] = copy.copy_(weights[i])
    for block in dict.fromkeys(s.block for s in parameters if s.block.terms):
        mine = [i for i in moved if parameters[i].block is block]
        keys = [parameters[i].key for i in mine]
        offsets = [parameters[i].first(rows) for i in mine]
        block.add_to([weights[i] for i in mine], keys, offsets)
    return weights


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, with as many rows of the weight at a time as the scratch buffer holds."""
    members = [t for t in (weight, bias) if isinstance(t, VirtualParameter)]
    if isinstance(input, VirtualParameter) or weight.dim() != 2:
        return F.linear(input, weight, bias)
    scratch, rows, most = members[0].block.scratch, len(weight), len(weight)
    if any(member.block.terms for member in members):
        most = scratch.rows(members)

    def part(some: slice) -> Tensor:
        filled = iter(_perturbed(members, some))
        w = next(filled) if isinstance(weight, VirtualParameter) else weight[some]
        b = (
            next(filled)
            if isinstance(bias, VirtualParameter)
            else None
            if bias is None
            else bias[some]
        )
        return F.linear(input, w, b)

    with scratch.aside():
        if most >= rows:
            return part(slice(rows))
        first = part(slice(most))
        result = first.new_empty(*first.shape[:-1], rows)
        result[..., :most] = first
        del first
        for start in range(most, rows, most):
            result[..., start : start + most] = part(slice(start, start + most))
        return result


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """F.embedding; only the rows that are looked up are perturbed."""
    if not isinstance(weight, VirtualParameter) or isinstance(input, VirtualParameter):
        return F.embedding(input, weight, padding_idx, max_norm, norm_type)
    with weight.block.scratch.aside():
        most = weight.block.scratch.rows([weight])
        if not weight.block.terms or not input.numel():
            return F.embedding(input, weight.weight, padding_idx, max_norm, norm_type)
        if most >= len(weight) or max_norm is not None:
            (whole,) = _perturbed([weight])
            return F.embedding(input, whole, padding_idx, max_norm, norm_type)
        ids = input.reshape(-1)
        result = weight.weight.new_empty(len(ids), weight.shape[1])
        for some, out in zip(ids.split(most), result.split(most), strict=True):
            _look_up(some, weight, out)
        return result.view(*input.shape, weight.shape[1])


def _look_up(ids: Tensor, weight: VirtualParameter, out: Tensor) -> None:
    """Write the perturbed rows of some ids to `out`."""
    rows, places = ids.unique(return_inverse=True)
    (table,) = weight.block.scratch.take([weight.weight[:1].expand(len(rows), -1)], weight.called)
    torch.index_select(weight.weight, 0, rows, out=table)
    # neighbours in the table that are neighbours in the weight are one tensor with one offset
    numbers = rows.tolist()
    starts = [i for i, n in enumerate(numbers) if i == 0 or n != numbers[i - 1] + 1]
    lengths = [b - a for a, b in pairwise([*starts, len(numbers)])]
    offsets = [numbers[i] * weight.shape[1] for i in starts]
    weight.block.add_to(table.split(lengths), [weight.key] * len(starts), offsets)
    torch.index_select(table, 0, places, out=out)


_BY_ROWS = {F.linear: _linear, F.embedding: _embedding}
