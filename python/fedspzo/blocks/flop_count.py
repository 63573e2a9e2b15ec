"""Count a model's floating point operations, for the model as a whole.

torch's counter knows matrix products, convolutions and attention. It takes other operations for
free, so those that hold most of some models' work are told to it here: products by experts and by
quantized weights, and whole layers as one operation.

torch's counter brings in Triton where that is installed, a tenth of the time that torch itself
takes to import. So this module is imported where operations are counted, and not before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

Shape = Sequence[int]


class _NoModules(ModuleTracker):
    """Tracks no modules, so that operations are counted for the whole model alone.

    Without gradients the tracker's hooks fail on a module whose input is a parameter (DeBERTa).
    """

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


class _Counter(FlopCounterMode):
    """Takes operations on nested tensors, which have no shape, for free."""

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        if any(isinstance(x, torch.Tensor) and x.is_nested for x in args):
            return out
        return super()._count_flops(func_packet, out, args, kwargs)


def flop_counter() -> FlopCounterMode:
    """Return a context that counts the operations inside it: `get_total_flops()` tells them."""
    counter = _Counter(display=False, custom_mapping=_formulas())
    counter.mod_tracker = _NoModules()
    return counter


def _formulas() -> dict[Any, Callable[..., int]]:
    """Return the formulas that torch's counter lacks. They are given shapes in place of tensors."""
    aten, quantized = torch.ops.aten, torch.ops.quantized
    products = [aten._grouped_mm, aten._int_mm, aten._weight_int4pack_mm, aten._weight_int8pack_mm]
    products.append(quantized.linear_dynamic)
    if hasattr(torch.ops.transformers, "grouped_mm_fallback"):  # once its experts are imported
        products.append(torch.ops.transformers.grouped_mm_fallback)
    return {
        **dict.fromkeys(products, _product),
        aten.mkldnn_rnn_layer: _recurrent_layer,
        aten._cudnn_rnn: _recurrent_layers,
        aten._native_multi_head_attention: _attention,
        aten._transformer_encoder_layer_fwd: _encoder_layer,
    }


def _product(x: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    """Each number of the result is a sum of products along the last dimension of x."""
    return 2 * math.prod(out_shape) * x[-1]


def _layer(x: Shape, *args: Any, **kwargs: Any) -> int:
    """Each matrix among the operands is applied at each position of x, (..., features)."""
    shapes = [shape for arg in args if isinstance(arg, Sequence) for shape in _shapes(arg)]
    return 2 * math.prod(x[:-1]) * sum(math.prod(shape) for shape in shapes if len(shape) == 2)


def _recurrent_layer(x: Shape, *args: Any, **kwargs: Any) -> int:
    """The 4 operands after x are weights; states come later, and may be matrices too."""
    return _layer(x, *args[:4])


def _recurrent_layers(x: Shape, weights: Sequence[Shape], *args: Any, **kwargs: Any) -> int:
    """All layers' weights are one list."""
    return _layer(x, weights)


def _attention(x: Shape, *args: Any, **kwargs: Any) -> int:
    """Projections of x, (batch, length, features); scores, and the sums that they weigh."""
    # the 8 operands after x end with the projections; a mask, which is no weight, comes later
    return _layer(x, *args[:8]) + 4 * math.prod(x) * x[1]


def _encoder_layer(x: Shape, *args: Any, **kwargs: Any) -> int:
    """Attention and two linear layers."""
    return _layer(x, *args[:17]) + 4 * math.prod(x) * x[1]


def _shapes(arg: Sequence[Any]) -> Sequence[Shape]:
    """Return the shape of a tensor, or those of a list of tensors."""
    return arg if arg and isinstance(arg[0], Sequence) else (arg,)
