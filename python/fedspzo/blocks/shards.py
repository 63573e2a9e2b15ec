"""Parameters that are sharded over processes: DTensors, as torch's fully_shard (FSDP2) makes them.

Each process holds some consecutive rows of a parameter. Noise is addressed by an element's index in
the whole parameter, so a process perturbs its rows alone, and all processes together do what one
would do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .every_module import every_module


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether a tensor is a DTensor."""
    # who has one has imported its module, which takes long
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, in the same memory; the tensor itself if whole."""
    if not is_sharded(tensor):
        return tensor
    placed: Any = tensor
    with torch.no_grad():
        part: Tensor = placed.to_local()
    return part


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor on every process. All of them have to call this together."""
    if not is_sharded(tensor):
        return tensor
    placed: Any = tensor
    with torch.no_grad():
        full: Tensor = placed.full_tensor()
    return full


def first_index(tensor: Tensor) -> int:
    """Return the index of this process's first element in the whole parameter."""
    if not is_sharded(tensor) or not local(tensor).numel():
        return 0
    placed: Any = tensor
    return _first_index(placed.shape, placed.device_mesh, placed.placements)


@cache
def _first_index(shape: torch.Size, mesh: Any, placements: Any) -> int:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, starts = compute_local_shape_and_global_offset(shape, mesh, placements)
    return int(starts[0]) * (shape.numel() // shape[0]) if starts else 0


def mesh_group(tensors: Iterable[Tensor]) -> Any:
    """Return the process group over which the first DTensor is sharded; None if there is none."""
    mesh: Any = next((t.device_mesh for t in tensors if is_sharded(t)), None)  # type: ignore[attr-defined]
    if mesh is None:
        return None
    return mesh.get_group() if mesh.ndim == 1 else mesh._flatten().get_group()


def check_shards(model: nn.Module | None, named: Iterable[tuple[str, Tensor]]) -> None:
    """Check that parameters are sharded in a way that a step can follow, or not at all.

    Args:
        model: the model, or None.
        named: the (name, parameter) pairs.

    Raises:
        ValueError: they are not; the message names the parameter and the remedy.
    """
    remedy = "shard the model with torch.distributed.fsdp.fully_shard (FSDP2), along dimension 0"
    for name, tensor in named:
        if hasattr(tensor, "ds_id"):
            raise ValueError(f"parameter {name!r} is partitioned by DeepSpeed ZeRO-3; {remedy}")
        if not is_sharded(tensor):
            continue
        placements: Any = tensor.placements  # type: ignore[attr-defined]
        for placement in placements:
            # a strided shard is a subclass of Shard, and its rows are not consecutive
            rows = type(placement).__name__ == "Shard" and placement.dim == 0
            if not rows and not placement.is_replicate():
                raise ValueError(
                    f"parameter {name!r} is placed as {placements}, whose parts are not"
                    f" consecutive rows, as tensor parallel plans have it; {remedy}"
                )
        if model is None:
            raise ValueError(
                f"parameter {name!r} is sharded and came without its model, which has to gather it"
                " anew for every evaluation; pass split(model) or Blocks.single(model)"
            )
    if model is None:
        return
    size = getattr(model, "tp_size", None) or 1
    if size > 1:
        raise ValueError(f"model has a tensor parallel plan over {size} processes; {remedy}")
    flat = next((n for n, m in model.named_modules() if _is_flat(m)), None)
    if flat is not None:
        raise ValueError(f"module {flat!r} is a FullyShardedDataParallel (FSDP1); {remedy}")


def _is_flat(module: nn.Module) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel)


def gathering_modules(model: nn.Module | None) -> dict[str, Any]:
    """Return the modules that fully_shard made gather their parameters, by name."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or model is None:
        return {}
    if not any(isinstance(module, fsdp.FSDPModule) for module in every_module(model)):
        return {}  # names take longer, and a step asks
    return {name: m for name, m in model.named_modules() if isinstance(m, fsdp.FSDPModule)}


def reshard(gathering: Mapping[str, Any]) -> None:
    """Let go of what modules have gathered, so that they gather it as the shards are then.

    The outermost module keeps its parameters after a forward pass, for a backward pass to come.

    Args:
        gathering: the modules, as `gathering_modules` returns them.
    """
    for module in gathering.values():
        module.reshard()
