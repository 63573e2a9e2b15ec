"""What benchmarks/gpu.py measures: each function returns plain numbers for its JSON file."""

from __future__ import annotations

import importlib.util
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from forms import EPS, GRADIENT, LR, SEED, decomfl, fused, mezo
from torch import Tensor

import fedspzo_kernels
from fedspzo import SPZO, Blocks, split
from fedspzo_kernels import perturb_

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TERMS = {1: 5, 16: 5, 1024: 1}
"""Numbers of terms, and how often each is timed."""
AHEAD = 10**8
"""Clock cycles, some 50 ms."""


def milliseconds(run: Callable[[], object], repeats: int = 5, *, device: bool = True) -> float:
    """The median time of `run`, after one that is not counted.

    With `device`, the time of the device: it is first kept busy while the host queues the work.
    Otherwise the time that passes, with the host's part in it.
    """
    run()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if device:
            torch.cuda._sleep(AHEAD)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def copy_time(elements: int, dtype: torch.dtype) -> float:
    """Milliseconds of a copy in one piece: as many bytes as one pass over `elements` weights."""
    a, b = (torch.zeros(elements, dtype=dtype, device="cuda") for _ in range(2))
    return milliseconds(lambda: b.copy_(a))


def bits_equal() -> bool:
    """Whether the GPU's backend gives the CPU's bits: every dtype, stream and rounding."""
    equal = True
    for dtype, stream, random in itertools.product(
        DTYPES.values(), fedspzo_kernels.STREAMS, (None, 7)
    ):
        for seeds in ([1], [2, 3, 4]):
            on_cpu = torch.linspace(-2, 2, 100_003).to(dtype)
            on_gpu = on_cpu.cuda()
            for tensor in (on_cpu, on_gpu):
                perturb_(
                    [tensor],
                    [5],
                    seeds,
                    [0.1] * len(seeds),
                    rounding="nearest" if random is None else "stochastic",
                    rounding_seed=random,
                    offsets=[2**34 - 777],
                    stream=stream,
                )
            equal &= torch.equal(on_gpu.cpu().view(torch.uint8), on_cpu.view(torch.uint8))
    return equal


def launch() -> dict[str, float]:
    """The table of tensors travels in the kernel's arguments: is that the faster way?

    Returns:
        `small_tensors_us`: one launch for 388 tensors of 8 elements. `table_copy_us`: copying a
        table of that size to the device, which each call would need on top if it lay there.
    """
    tensors = list(torch.zeros(388, 8, device="cuda").unbind())
    seeds, coeffs = torch.tensor([1], device="cuda"), torch.tensor([1.0], device="cuda")
    keys = list(range(len(tensors)))
    table = torch.zeros(512 * 40, dtype=torch.uint8).pin_memory()  # csrc/cuda/layout.h
    there = table.cuda()
    return {
        "small_tensors_us": 1e3 * milliseconds(lambda: perturb_(tensors, keys, seeds, coeffs), 20),
        "table_copy_us": 1e3 * milliseconds(lambda: there.copy_(table, non_blocking=True), 20),
    }


def opt_config() -> Any:
    """OPT-1.3B's."""
    from transformers import OPTConfig

    return OPTConfig(
        hidden_size=2048,
        ffn_dim=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        word_embed_proj_dim=2048,
        dtype=torch.bfloat16,
    )


def opt_shapes() -> list[torch.Size]:
    from transformers import OPTForCausalLM

    with torch.device("meta"):
        return [p.shape for p in OPTForCausalLM(opt_config()).parameters()]


SHAPES: dict[str, Callable[[], list[torch.Size]]] = {
    "flat 1e9": lambda: [torch.Size([10**9])],
    "OPT-1.3B": opt_shapes,
}


def flat_normal(tensors: list[Tensor]) -> None:
    """One flat buffer: the parameters as views of it, one torch.normal for all; four passes."""
    for scale in (EPS, -2 * EPS, EPS, -LR * GRADIENT):
        torch.manual_seed(SEED)
        for theta in tensors:
            z = torch.normal(0.0, 1.0, theta.shape, dtype=theta.dtype, device=theta.device)
            theta.add_(z, alpha=scale)


def kernels(shape: str, dtype: torch.dtype) -> dict[str, Any]:
    """Milliseconds and shares of copy bandwidth for one of SHAPES and one dtype."""
    tensors = [torch.randn(shape, device="cuda").to(dtype) for shape in SHAPES[shape]()]
    keys = list(range(len(tensors)))
    elements = sum(t.numel() for t in tensors)
    copy = copy_time(elements, dtype)
    result: dict[str, Any] = {"elements": elements, "copy_ms": copy}
    for count, repeats in TERMS.items():
        seeds = torch.arange(count, device="cuda")
        coeffs = torch.full((count,), 1e-6, device="cuda")
        time = milliseconds(lambda s=seeds, c=coeffs: perturb_(tensors, keys, s, c), repeats)
        result[f"perturb_{count}_ms"] = time
        result[f"perturb_{count}_terms_per_s"] = elements * count / time * 1e3
    result["share_of_copy"] = copy / result["perturb_1_ms"]
    if importlib.util.find_spec("triton") is not None:
        from fedspzo_kernels import triton

        scalars = torch.tensor([1], device="cuda"), torch.tensor([1e-6], device="cuda")
        zeros = [0] * len(tensors)
        time = milliseconds(lambda: triton.perturb_(tensors, keys, zeros, *scalars, None, 0))
        result["triton_share_of_copy"] = copy / time

    # Sizes as symbols and the scale as a tensor: one compilation for each number of dimensions.
    torch._dynamo.reset()
    compiled = torch.compile(lambda t, s: t.add_(torch.randn_like(t) * s), dynamic=True)
    scales = [torch.tensor(s, device="cuda") for s in (EPS, -2 * EPS, EPS, -LR * GRADIENT)]

    def decomfl_compiled(tensors: list[Tensor]) -> None:
        for scale in scales:
            torch.manual_seed(SEED)
            for theta in tensors:
                compiled(theta, scale)

    flat = [torch.cat([t.flatten() for t in tensors])] if len(tensors) > 1 else list(tensors)
    forms = {
        "fused": (fused, tensors),
        "decomfl": (decomfl, tensors),
        "flat_normal": (flat_normal, flat),
        "decomfl_compiled": (decomfl_compiled, tensors),
        "mezo": (mezo, list(tensors)),  # puts new tensors into its list
    }
    for name, (form, weights) in forms.items():
        result[f"step_{name}_ms"] = milliseconds(lambda f=form, w=weights: f(w), 3)
        if name != "fused":
            result[f"step_{name}_over_fused"] = result[f"step_{name}_ms"] / result["step_fused_ms"]
    return result


def build(name: str) -> Any:
    """A model, randomly initialised, bfloat16, on the GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM, OPTForCausalLM

    llama = LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    with torch.device("cuda"):
        model = OPTForCausalLM(opt_config()) if name == "OPT-1.3B" else LlamaForCausalLM(llama)
    return model.to(torch.bfloat16).eval()


def training(name: str) -> dict[str, dict[str, float]]:
    """The steps of one model, by batch and length."""
    model = build(name)
    return {f"{b} x {n}": steps(model, b, n) for b, n in ((8, 512), (1, 128))}


class ModelWeights(list[Tensor]):
    """A model's weights; a tensor put in becomes the model's, as in MeZO, and frees the old one."""

    def __init__(self, model: Any) -> None:
        self.parameters = list(model.parameters())
        super().__init__(parameter.data for parameter in self.parameters)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.parameters[index].data = value
        super().__setitem__(index, value)


@torch.no_grad()
def steps(model: Any, batch: int, length: int) -> dict[str, float]:
    """One step's time over that of its forward passes alone, and the peak memory over theirs."""
    ids = torch.randint(0, model.config.vocab_size, (batch, length), device="cuda")

    def closure() -> Tensor:
        return model(input_ids=ids, labels=ids, use_cache=False).loss  # type: ignore[no-any-return]

    def peak(run: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()

    forward = milliseconds(closure, device=False)
    inference = peak(closure)
    result = {"forward_ms": forward}
    weights = ModelWeights(model)

    def mezo_step() -> None:
        mezo(weights)
        closure()
        closure()

    optimizers = {
        "spzo_in_place": SPZO(split(model), lr=1e-7, evaluation="in_place"),
        "spzo_layerwise": SPZO(split(model), lr=1e-7, evaluation="layerwise"),
        "mezo_on_fused": SPZO(Blocks.single(model), lr=1e-7, evaluation="in_place"),
    }
    for name, optimizer in optimizers.items():
        optimizer.step(closure)
        time = milliseconds(lambda o=optimizer: o.step(closure), device=False)
        report = optimizer.last_step
        assert report is not None
        result[f"{name}_over_forwards"] = time / (forward * report.forwards)
        result[f"{name}_memory"] = peak(lambda o=optimizer: o.step(closure)) / inference
    result["mezo_form_over_forwards"] = milliseconds(mezo_step, device=False) / (2 * forward)
    result["mezo_form_memory"] = peak(mezo_step) / inference
    return result
