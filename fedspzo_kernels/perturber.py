"""The `Perturber`: it perturbs the same tensors many times, and checks them once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _ops  # noqa: F401  (defines the ops)
from .arguments import Rounding, Terms, check_offset, check_out, check_tensor, signed, stream_code


class _Group(NamedTuple):
    """The tensors on one device.

    Attributes:
        device: the device.
        places: the tensors' indices among all tensors.
        views: the tensors, detached from autograd.
        strided: indices of the views that are not contiguous.
        keys: the tensors' keys, as int64.
        offsets: indices of the tensors' first elements.
    """

    device: torch.device
    places: list[int]
    views: list[Tensor]
    strided: list[int]
    keys: list[int]
    offsets: list[int]


class Perturber:
    """Adds seeded noise to the same tensors in many calls.

    Checking many small tensors takes longer than perturbing them. A `Perturber` checks them once.
    `perturb_` and `perturb` are its forms for a single call.

    The tensors must keep their memory. After `tensor.data = ...`, or a move to another device,
    create a new `Perturber`. A call raises RuntimeError otherwise.

    Args:
        tensors: float32, bfloat16 or float16 tensors of any shape. They must not overlap.
        keys: a 64-bit key for each tensor, usually `parameter_key(name)`.
        offsets: for each tensor the index of its first element in the whole parameter, so that a
            shard gets its slice of the noise. Default None: 0 for all.
        stream: "normal-v1" or "rademacher-v1". Default "normal-v1".

    Attributes:
        tensors: the tensors.

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it, the value and the
            remedy.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        keys: Sequence[int],
        *,
        offsets: Sequence[int] | None = None,
        stream: str = "normal-v1",
    ) -> None:
        self.tensors = list(tensors)
        keys = [signed(key, f"keys[{j}]") for j, key in enumerate(keys)]
        offsets = [0] * len(self.tensors) if offsets is None else list(offsets)
        for j, tensor in enumerate(self.tensors):
            check_tensor(tensor, f"tensors[{j}]")
        for name, values in (("keys", keys), ("offsets", offsets)):
            if len(values) != len(self.tensors):
                raise ValueError(
                    f"{name}: {len(values)} for {len(self.tensors)} tensors; pass one a tensor"
                )
        for j, (tensor, offset) in enumerate(zip(self.tensors, offsets, strict=True)):
            check_offset(offset, tensor, f"offsets[{j}]")
        self._stream = stream_code(stream)
        self._addresses = [tensor.data_ptr() for tensor in self.tensors]
        places_on = defaultdict(list)
        for j, tensor in enumerate(self.tensors):
            places_on[tensor.device].append(j)
        self._groups: list[_Group] = []
        for device, places in places_on.items():
            views = [self.tensors[j].detach() for j in places]
            strided = [i for i, view in enumerate(views) if not view.is_contiguous()]
            mine = [keys[j] for j in places], [offsets[j] for j in places]
            self._groups.append(_Group(device, places, views, strided, *mine))

    @torch.no_grad()
    def add_(
        self,
        seeds: Tensor | Sequence[int],
        coeffs: Tensor | Sequence[float],
        *,
        rounding: Rounding = "nearest",
        rounding_seed: Tensor | int | None = None,
    ) -> None:
        """Add noise in place, with the arguments and errors of `perturb_`."""
        terms = Terms.of(seeds, coeffs, rounding, rounding_seed)
        self._check_memory()
        for group in self._groups:
            dense = list(group.views)
            for i in group.strided:
                dense[i] = dense[i].contiguous()
            scalars = (*terms.to(group.device), self._stream)
            torch.ops.fedspzo.perturb_(dense, group.keys, group.offsets, *scalars)
            for i in group.strided:
                group.views[i].copy_(dense[i])
        torch.autograd.graph.increment_version(self.tensors)

    @torch.no_grad()
    def add(
        self,
        seeds: Tensor | Sequence[int],
        coeffs: Tensor | Sequence[float],
        *,
        out: Sequence[Tensor] | None = None,
        rounding: Rounding = "nearest",
        rounding_seed: Tensor | int | None = None,
    ) -> list[Tensor]:
        """Write the tensors plus noise to others, with the arguments and errors of `perturb`."""
        terms = Terms.of(seeds, coeffs, rounding, rounding_seed)
        if out is None:
            contiguous = torch.contiguous_format
            out = [torch.empty_like(t.detach(), memory_format=contiguous) for t in self.tensors]
        out = list(out)
        self.into(out)(terms)
        return out

    def into(self, out: Sequence[Tensor]) -> Callable[[Terms], None]:
        """Prepare many calls of `add` that write to the same tensors, which it checks once.

        Args:
            out: for each tensor one of its shape, dtype and device to write to, as in `perturb`.

        Returns:
            A function that writes the tensors plus the noise of some `Terms` to `out`.

        Raises:
            TypeError, ValueError: as in `perturb`.
        """
        out = list(out)
        if len(out) != len(self.tensors):
            raise ValueError(
                f"out: {len(out)} for {len(self.tensors)} tensors; pass one a tensor, or None"
            )
        for j, (written, tensor) in enumerate(zip(out, self.tensors, strict=True)):
            check_out(written, tensor, tensor.shape, f"out[{j}]")
        calls = []
        for group in self._groups:
            outs = [out[j].detach() for j in group.places]
            dense = [x.contiguous() for x in outs]
            copied = [(x, result) for x, result in zip(outs, dense, strict=True) if x is not result]
            calls.append((group, dense, copied))

        def write(terms: Terms) -> None:
            self._check_memory()
            for group, dense, copied in calls:
                sources = list(group.views)
                for i in group.strided:  # the copy uses the result's memory
                    sources[i] = dense[i].copy_(sources[i])
                scalars = (*terms.to(group.device), self._stream)
                torch.ops.fedspzo.perturb_out(sources, dense, group.keys, group.offsets, *scalars)
                for x, result in copied:
                    x.copy_(result)
            torch.autograd.graph.increment_version(out)

        return write

    def _check_memory(self) -> None:
        for j, (tensor, address) in enumerate(zip(self.tensors, self._addresses, strict=True)):
            if tensor.data_ptr() != address:
                raise RuntimeError(
                    f"tensors[{j}] has other memory than when this Perturber was made (it was"
                    " moved, or its .data assigned); make a new one"
                )


def perturb_unchecked(
    tensors: list[Tensor],
    out: list[Tensor],
    keys: list[int],
    offsets: list[int],
    terms: Terms,
    code: int,
) -> None:
    """Write tensors plus noise to others, as `Perturber.into` does, without its checks.

    It is for a caller that perturbs hundreds of small tensors, each by a call of its own, and knows
    that they fit.

    Args:
        tensors: contiguous, detached tensors on one device.
        out: for each tensor a contiguous one of its shape, dtype and device.
        keys: the tensors' keys, as int64.
        offsets: indices of the tensors' first elements.
        terms: the terms, on the tensors' device.
        code: the stream's code.
    """
    torch.ops.fedspzo.perturb_out(tensors, out, keys, offsets, *terms, code)
