"""Virtual parameters: an operation that is given one computes with the perturbed weight.

A `VirtualParameter` has a parameter's shape but no memory. An operation that is given one runs with
the perturbed weight in a scratch buffer, which the next operation uses again. An embedding is
perturbed only in the rows that it looks up. A linear layer that is too large for the buffer, such
as a head, runs with some rows of its weight at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from fedspzo_kernels import perturb_rows
from fedspzo_kernels.arguments import signed

from .in_place import key_of
from .layerwise_block import LayerwiseBlock
from .scratch_buffer import footprint


class VirtualParameter(Tensor):
    """A parameter as if it were perturbed: it has the shape, dtype and device, but no memory.

    Attributes:
        called: the parameter's name.
        key: the 64-bit key of its noise, as an int64.
        weight: the parameter in this step, which is only read.
        block: the block in this step, whose terms are added to the weight.
        fits_scratch: the scratch buffer holds a copy of it.
    """

    _is_param = True  # isinstance(parameter, nn.Parameter)
    called: str
    key: int
    weight: Tensor
    block: LayerwiseBlock
    fits_scratch: bool
    _form: tuple[Any, ...]

    @classmethod
    def of(cls, name: str, weight: Tensor) -> VirtualParameter:
        """Make the virtual parameter of a parameter. `bind` it before it is used.

        Args:
            name: the parameter's name.
            weight: the parameter.
        """
        self: VirtualParameter = Tensor._make_wrapper_subclass(
            cls,
            weight.shape,
            strides=weight.stride(),
            dtype=weight.dtype,
            device=weight.device,
            requires_grad=weight.requires_grad,
        )
        self.called, self.key, self._form = name, signed(key_of(name), name), _form(weight)
        return self

    def fits(self, weight: Tensor) -> bool:
        """Tell whether it has a parameter's shape, strides, dtype and device."""
        return self._form == _form(weight)

    def bind(self, weight: Tensor, block: LayerwiseBlock) -> None:
        """Be the virtual parameter of this parameter and in this block, until `release`."""
        self.weight, self.block = weight.detach(), block
        self.fits_scratch = footprint([weight]) <= block.scratch.limit

    def release(self) -> None:
        """Let go of the parameter's memory: the model may give it up between steps."""
        del self.weight, self.block

    def part(self, rows: slice) -> Tensor:
        """Return the weight, or some rows of it."""
        return self.weight if rows == slice(None) else self.weight[rows]

    def first(self, rows: slice) -> int:
        """Return the index of the rows' first element in the parameter."""
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
        # a graph may keep an operation's weight, so that has to be the virtual parameter itself
        special = not torch.is_grad_enabled()
        with torch._C.DisableTorchFunctionSubclass():
            # a shape or dtype is answered at once; a computation comes to __torch_dispatch__
            return (_SPECIAL.get(func, func) if special else func)(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        flat, spec = tree_flatten((args, kwargs))
        found = {id(x): x for x in flat if isinstance(x, VirtualParameter)}
        # a view outlives its operation, so it may not lie in the scratch buffer
        lasting = func.is_view or func in _UNMARKED_VIEWS
        tensors = _perturbed(list(found.values()), lasting=lasting)
        filled = dict(zip(found, tensors, strict=True))
        args, kwargs = tree_unflatten([filled.get(id(x), x) for x in flat], spec)
        return func(*args, **kwargs)


_UNMARKED_VIEWS = {
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.unsafe_split.Tensor,
    torch.ops.aten.unsafe_split_with_sizes.default,
}
"""Operations whose results share memory with their input, which their schemas do not say."""


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _whole(parameter: VirtualParameter) -> Tensor:
    """Return one perturbed weight, valid until the next call: what most operations need."""
    weight, block = parameter.weight, parameter.block
    if not block.terms:
        return weight
    out = block.scratch.take([weight], parameter.called)
    block.write([weight], [parameter.key], [0], out)
    return out[0]


def _perturbed(
    parameters: Sequence[VirtualParameter], rows: slice = slice(None), *, lasting: bool = False
) -> list[Tensor]:
    """Return the perturbed weights, or some rows of each; without terms, the weights themselves.

    They are valid until the next call, or for good if `lasting`.
    """
    scratch = parameters[0].block.scratch
    weights = [parameter.part(rows) for parameter in parameters]
    # while reads of weights are recorded, a view may not lie in them even without terms
    every = lasting and scratch.watched
    moved = [i for i, parameter in enumerate(parameters) if every or parameter.block.terms]
    if not moved:
        return weights
    likes = [weights[i] for i in moved]
    if lasting:
        copies = [torch.empty_like(like, memory_format=torch.contiguous_format) for like in likes]
    else:
        copies = scratch.take(likes, parameters[moved[0]].called)
    out = list(weights)
    for i, copy in zip(moved, copies, strict=True):
        out[i] = copy if parameters[i].block.terms else copy.copy_(weights[i])
    for own in dict.fromkeys(p.block for p in parameters if p.block.terms):
        mine = [i for i in moved if parameters[i].block is own]
        own.write(
            [weights[i] for i in mine],
            [parameters[i].key for i in mine],
            [parameters[i].first(rows) for i in mine],
            [out[i] for i in mine],
        )
    return out


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute F.linear with as many rows of the weight at a time as the scratch buffer holds."""
    if isinstance(input, VirtualParameter):  # both have to lie in the scratch buffer together
        return F.linear(input, weight, bias)
    if bias is None and isinstance(weight, VirtualParameter) and weight.fits_scratch:
        with weight.block.scratch.aside((input,)):
            return F.linear(input, _whole(weight))
    if weight.dim() != 2 or not isinstance(weight, VirtualParameter):
        return F.linear(input, weight, bias)
    members = [t for t in (weight, bias) if isinstance(t, VirtualParameter)]
    scratch, rows, most = members[0].block.scratch, weight.shape[0], weight.shape[0]
    if any(member.block.terms for member in members):
        most = scratch.rows(members)

    def part(some: slice) -> Tensor:
        w, *others = _perturbed(members, some)
        b = others[0] if others else None if bias is None else bias[some]
        return F.linear(input, w, b)

    with scratch.aside((input, bias)):
        if most >= rows:
            return part(slice(None))
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
    """Compute F.embedding, perturbing only the rows that are looked up."""
    if not isinstance(weight, VirtualParameter) or isinstance(input, VirtualParameter):
        return F.embedding(input, weight, padding_idx, max_norm, norm_type)
    block = weight.block
    with block.scratch.aside((input,)):
        if not block.terms or not input.numel():
            return F.embedding(input, weight.weight, padding_idx, max_norm, norm_type)
        few = len(weight) <= min(input.numel(), block.scratch.rows([weight]))
        if few or max_norm is not None:
            return F.embedding(input, _whole(weight), padding_idx, max_norm, norm_type)
        return _looked_up(weight, input.reshape(-1).long()).view(*input.shape, -1)


def _getitem(weight: Tensor, index: Any) -> Tensor:
    """Compute weight[index], perturbing only the rows of an index that is a list of rows."""
    rows = isinstance(index, Tensor) and index.dtype == torch.int64 and index.dim() == 1
    if not isinstance(weight, VirtualParameter) or weight.dim() != 2 or not rows:
        return weight[index]
    with weight.block.scratch.aside((index,)):
        if not weight.block.terms:
            return weight.weight[index]
        index = index.to(weight.device)
        return _looked_up(weight, torch.where(index < 0, index + len(weight), index))


def _looked_up(weight: VirtualParameter, rows: Tensor) -> Tensor:
    """Return some rows of the perturbed weight, which has terms: int64 (R,) gives (R, D)."""
    block = weight.block
    seeds, coeffs, _ = block.scalars(rows.device)
    return perturb_rows(weight.weight, rows, weight.key, seeds, coeffs, stream=block.stream)


def _mul(input: Any, other: Any) -> Tensor:
    """Compute input * other, as a norm does with its weight, without the way through dispatch."""
    first = isinstance(input, VirtualParameter)
    weight, factor = (input, other) if first else (other, input)
    if isinstance(factor, VirtualParameter):
        product: Tensor = input.mul(other)
        return product
    with weight.block.scratch.aside((factor,)):
        whole = _whole(weight)
        return whole.mul(factor) if first else factor.mul(whole)


_SPECIAL = {
    F.linear: _linear,
    F.embedding: _embedding,
    Tensor.__getitem__: _getitem,
    Tensor.mul: _mul,
}
