"""Run a function in two gloo processes on the CPU, and the cases of test_processes.py."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers as hf
from forked_python import ForkedPython
from spzo_toys import llama
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from fedspzo import SPZO, Blocks, split
from fedspzo.journal import digest

PROCESSES = 2
STEPS = 3
FEW = {"perturbations": (1, 2)}
IMPORTS = ("transformers.trainer", "transformers.models.llama.modeling_llama")


def _start(rank: int, function: Callable[[int], dict[str, Any]], folder: Path) -> None:
    torch.set_num_threads(1)
    where = {"init_method": f"file://{folder}/meet", "rank": rank, "world_size": PROCESSES}
    dist.init_process_group("gloo", **where)
    try:
        (folder / f"{rank}.json").write_text(json.dumps(function(rank)))
    finally:
        dist.destroy_process_group()


def fork(function: Callable[[int], dict[str, Any]], folder: Path) -> None:
    mp.start_processes(_start, (function, folder), PROCESSES, start_method="fork")


def in_processes(
    python: ForkedPython, function: Callable[[int], dict[str, Any]], folder: Path
) -> list[dict[str, Any]]:
    """Return what each process's call of `function(rank)` returned."""
    name = function.__name__
    code = f"import pathlib, process_toys, {function.__module__} as module\n"
    code += f"process_toys.fork(module.{name}, pathlib.Path({str(folder)!r}))"
    done = python("-c", code, imports=IMPORTS, folder=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


def batch(step: int, rank: int) -> Tensor:
    return (torch.arange(24).reshape(2, 12) * (step + 2) + 5 * rank) % 32


def loss_of(model: nn.Module, step: int, rank: int) -> Tensor:
    ids = batch(step, rank)
    return model(input_ids=ids, labels=ids).loss


def eager() -> nn.Module:
    """A model of which a long text takes another share of the cost in the layers."""
    model = llama()
    model.set_attn_implementation("eager")
    return model


def loss_of_length(model: nn.Module, rank: int) -> Tensor:
    """Return the loss of a batch whose length differs from process to process."""
    ids = torch.arange(2 * (4 + 56 * rank)).reshape(2, -1) % 32
    return model(input_ids=ids, labels=ids).loss


def averaged(loss: Tensor) -> Tensor:
    dist.all_reduce(loss)
    return loss / PROCESSES


def opt() -> nn.Module:
    """A model that registers its last norm before its layers, and whose head is tied.

    One of its parameters has fewer rows than there are processes.
    """
    torch.manual_seed(0)
    config = hf.OPTConfig(
        vocab_size=32,
        hidden_size=15,  # which two processes do not share evenly
        word_embed_proj_dim=15,
        ffn_dim=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        max_position_embeddings=16,
    )
    model = hf.OPTForCausalLM(config)
    model.model.decoder.layers[0].spare = nn.Parameter(torch.ones(1))
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "float32": (llama, FEW),
    "auto": (llama, {"lr": "auto"}),
    "measured": (llama, {}),
    "layerwise": (lambda: llama(torch.bfloat16), FEW),
    "uneven": (opt, FEW),
    "single": (llama, {"cut": Blocks.single, "perturbations": 2, "weight_decay": 0.1}),
}
"""Models and settings for which shards are compared with one process."""


def settings_of(name: str) -> tuple[nn.Module, Callable[[nn.Module], Blocks], dict[str, Any]]:
    build, settings = CASES[name]
    settings = {"lr": 1e-2, **settings}
    return build(), settings.pop("cut", split), settings


def train(optimizer: SPZO, losses: Callable[[int], Callable[[], Tensor]]) -> list[Any]:
    """Take the steps, and return all their losses."""
    found = []
    for step in range(STEPS):
        optimizer.step(losses(step))
        found.append(optimizer.last_step.losses)
    return found


def alone(name: str) -> tuple[str, list[Any]]:
    """Train in one process on what the two have together, and return the digest and the losses."""
    model, cut, settings = settings_of(name)

    def losses(step: int) -> Callable[[], Tensor]:
        def mean() -> Tensor:
            parts = [loss_of(model, step, rank) for rank in range(PROCESSES)]
            total = torch.stack(parts).double().sum() / PROCESSES
            return total.to(torch.promote_types(parts[0].dtype, torch.float32))

        return mean

    found = train(SPZO(cut(model), **settings), losses)
    return digest(model.named_parameters()), found


def shard(model: nn.Module, shape: tuple[int, ...] = (PROCESSES,)) -> nn.Module:
    layers = next(m for n, m in model.named_modules() if n.endswith("layers"))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "parts")[-len(shape) :])
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def raised(function: Callable[[], object]) -> str:
    try:
        function()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return ""


class TakesSteps(nn.Module):
    """A model that takes steps in its forward, as Lightning's strategy "ddp" has it."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.model, self.rank = llama(), rank
        self.optimizer = SPZO(split(self.model), lr=1e-2, **FEW)

    def forward(self) -> None:
        self.optimizer.step(lambda: loss_of(self.model, 0, self.rank))


def other_lengths(rank: int) -> dict[str, Any]:
    """Whole models, apart and in a wrapper, on batches of other lengths in every process."""
    found: dict[str, Any] = {}
    model = eager()
    optimizer = SPZO(split(model), lr="auto")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            optimizer.step(lambda: loss_of_length(model, rank))
    found["apart"] = [str(warning.message) for warning in told if warning.filename == __file__]
    found["own shares"] = optimizer.cost_shares
    wrapped = DistributedDataParallel(eager())
    optimizer = SPZO(split(wrapped), lr="auto")
    for _ in range(STEPS):
        optimizer.step(lambda: averaged(loss_of_length(wrapped, rank)))
    found["agreed"] = [digest(wrapped.module.named_parameters()), optimizer.cost_shares]
    return found


def shared_data(rank: int) -> dict[str, Any]:
    """Whole models in every process."""
    group = dist.group.WORLD
    found: dict[str, Any] = {}
    for name in ("float32", "auto", "measured"):
        model, cut, settings = settings_of(name)
        optimizer = SPZO(cut(model), **settings, process_group=group)
        losses = train(optimizer, lambda step, m=model: lambda: loss_of(m, step, rank))
        found[name] = [digest(model.named_parameters()), losses]

    wrapped = DistributedDataParallel(llama())
    optimizer = SPZO(split(wrapped), lr=1e-2, **FEW)
    before = digest(wrapped.module.named_parameters())
    found["ddp"] = raised(lambda: optimizer.step(lambda: loss_of(wrapped, 0, rank)))
    found["ddp changed nothing"] = digest(wrapped.module.named_parameters()) == before

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        reduced = raised(lambda: optimizer.step(lambda: averaged(loss_of(wrapped, 0, rank))))
    found["reduced"] = reduced
    found["told one model"] = [str(w.message) for w in told if "process_group" in str(w.message)]
    found["reduced digest"] = digest(wrapped.module.named_parameters())
    optimizer = SPZO(split(wrapped), lr=1e-2, **FEW, process_group=group)
    found["joined"] = raised(lambda: optimizer.step(lambda: loss_of(wrapped, 1, rank)))
    found["joined digest"] = digest(wrapped.module.named_parameters())

    found["inside"] = raised(DistributedDataParallel(TakesSteps(rank)))

    found |= other_lengths(rank)

    model = llama()
    with torch.no_grad():
        model.lm_head.weight[0, 0] += rank
    optimizer = SPZO(split(model), lr=1e-2, **FEW, process_group=group)
    found["other weights"] = raised(lambda: optimizer.step(lambda: loss_of(model, 0, rank)))
    model = llama()
    with torch.no_grad():
        model.model.norm.weight.requires_grad_(False)[0] += rank
    optimizer = SPZO(split(model), lr=1e-2, **FEW, process_group=group)
    found["other frozen weights"] = raised(lambda: optimizer.step(lambda: loss_of(model, 0, rank)))
    of_one = dist.new_group([0])
    optimizer = SPZO(split(model), lr=1e-2, **FEW, process_group=of_one)
    found["outside"] = raised(lambda: optimizer.step(lambda: loss_of(model, 0, rank)))
    optimizer = SPZO(split(llama()), lr=1e-2, seed=rank, **FEW, process_group=group)
    found["other seeds"] = raised(lambda: optimizer.step(lambda: loss_of(model, 0, rank)))

    model = llama()
    optimizer = SPZO(split(model), lr=1e-2, **FEW, process_group=group)
    nan = float("nan") if rank else 0.0
    optimizer.step(lambda: loss_of(model, 0, rank) + nan)
    found["skipped"] = optimizer.skipped
    return found


def shards(rank: int) -> dict[str, Any]:
    """Models of which every process holds a part."""
    group = dist.group.WORLD
    found: dict[str, Any] = {}
    for name in CASES:
        for order in ("shard, split", "split, shard"):
            model, cut, settings = settings_of(name)
            if order == "shard, split":
                blocks = cut(shard(model))
            else:
                blocks = cut(model)
                shard(model)
            optimizer = SPZO(blocks, **settings, process_group=group)
            losses = train(optimizer, lambda step, m=model: lambda: loss_of(m, step, rank))
            found[f"{name}: {order}"] = [digest(model.named_parameters()), losses]
            names = [group["param_names"] for group in optimizer.param_groups]
            found[f"{name}: {order}: names"] = names
    model, cut, settings = settings_of("float32")
    shard(model, (PROCESSES, 1))
    optimizer = SPZO(cut(model), **settings, process_group=group)
    losses = train(optimizer, lambda step, m=model: lambda: loss_of(m, step, rank))
    found["replicated"] = [digest(model.named_parameters()), losses]

    model, cut, settings = settings_of("float32")
    blocks = split(model, rows=[3, 5])
    shard(model)
    optimizer = SPZO(blocks, **settings, process_group=group)
    found["rows"] = raised(lambda: optimizer.step(lambda: loss_of(model, 0, rank)))
    found["rows of shards"] = raised(lambda: split(shard(llama()), rows=[3, 5]))

    model = shard(llama())
    found["held"] = sum(p.to_local().numel() for p in model.parameters())
    found["all"] = sum(p.numel() for p in model.parameters())

    with torch.no_grad():  # as in an evaluation, after which the root module stays gathered
        loss_of(model, 0, rank)
    optimizer = SPZO(split(model), lr=1e-2, **FEW)
    with torch.no_grad():
        loss_of(model, 0, rank)
    found["no group"] = raised(lambda: optimizer.step(lambda: loss_of(model, 0, rank)))
    found["bare"] = raised(lambda: SPZO(model.named_parameters(), lr=1e-2))
    with torch.no_grad():
        loss_of(model, 0, rank)
    found["gathered"] = raised(lambda: SPZO(split(model), lr=1e-2, **FEW))

    model = llama()
    optimizer = SPZO(split(model), lr=1e-2, **FEW, process_group=group)
    shard(model)
    found["sharded later"] = raised(lambda: optimizer.step(lambda: loss_of(model, 0, rank)))

    plan = {"gate_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
    model = llama()
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for layer in model.model.layers:
        parallelize_module(layer.mlp, mesh, plan)
    found["tensor parallel"] = raised(lambda: SPZO(split(model), lr=1e-2, **FEW))
    return found
