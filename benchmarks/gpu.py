"""The kernels and whole training steps on a GPU, beside the published forms, in one run.

`python benchmarks/gpu.py OUT` writes OUT/gpu.json and OUT/gpu.png. Times are medians of CUDA
events, over buffers that together exceed the second-level cache.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from forms import EPS, GRADIENT, LR, SEED, decomfl, fused, mezo
from torch import Tensor

import fedspzo_kernels
from fedspzo import SPZO, Blocks, split
from fedspzo_kernels import perturb_

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FLAT = 10**9
TERMS = (1, 16, 1024)


def milliseconds(run: Callable[[], object], repeats: int = 5) -> float:
    """The median time of `run` on the device, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def copy_time(tensors: list[Tensor]) -> float:
    """Milliseconds of a copy of the tensors on the device: as many bytes as one pass over them."""
    spare = [torch.empty_like(t) for t in tensors]
    return milliseconds(lambda: [b.copy_(a) for a, b in zip(tensors, spare, strict=True)])


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


def flat_normal(tensors: list[Tensor]) -> None:
    """One flat buffer: the parameters as views of it, one torch.normal for all; four passes."""
    for scale in (EPS, -2 * EPS, EPS, -LR * GRADIENT):
        torch.manual_seed(SEED)
        for theta in tensors:
            z = torch.normal(0.0, 1.0, theta.shape, dtype=theta.dtype, device=theta.device)
            theta.add_(z, alpha=scale)


def kernels(shapes: list[torch.Size], dtype: torch.dtype) -> dict[str, Any]:
    """Milliseconds and shares of copy bandwidth for one set of shapes and one dtype."""
    tensors = [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]
    keys = list(range(len(tensors)))
    elements = sum(t.numel() for t in tensors)
    copy = copy_time(tensors)
    result: dict[str, Any] = {"elements": elements, "copy_ms": copy}
    for count in TERMS:
        seeds = torch.arange(count, device="cuda")
        coeffs = torch.full((count,), 1e-6, device="cuda")
        time = milliseconds(lambda s=seeds, c=coeffs: perturb_(tensors, keys, s, c), 5)
        result[f"perturb_{count}_ms"] = time
        result[f"perturb_{count}_terms_per_s"] = elements * count / time * 1e3
    result["share_of_copy"] = copy / result["perturb_1_ms"]
    compiled = torch.compile(lambda t, s: t.add_(torch.randn_like(t), alpha=s))

    def decomfl_compiled(tensors: list[Tensor]) -> None:
        for scale in (EPS, -2 * EPS, EPS, -LR * GRADIENT):
            torch.manual_seed(SEED)
            for theta in tensors:
                compiled(theta, scale)

    flat = [torch.cat([t.flatten() for t in tensors])] if len(tensors) > 1 else tensors
    forms = {
        "fused": (fused, tensors),
        "mezo": (mezo, tensors),
        "decomfl": (decomfl, tensors),
        "flat_normal": (flat_normal, flat),
        "decomfl_compiled": (decomfl_compiled, flat),
    }
    for name, (form, weights) in forms.items():
        result[f"step_{name}_ms"] = milliseconds(lambda f=form, w=weights: f(w), 3)
        if name != "fused":
            result[f"step_{name}_over_fused"] = result[f"step_{name}_ms"] / result["step_fused_ms"]
    return result


def models() -> Iterator[tuple[str, Any]]:
    """Randomly initialised, bfloat16, on the GPU."""
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
        yield "OPT-1.3B", OPTForCausalLM(opt_config()).to(torch.bfloat16).eval()
        yield "Llama-3.2-3B", LlamaForCausalLM(llama).to(torch.bfloat16).eval()


@torch.no_grad()
def training(model: Any, batch: int, length: int) -> dict[str, float]:
    """One step's time over that of its forward passes alone, and the peak memory over theirs."""
    ids = torch.randint(0, model.config.vocab_size, (batch, length), device="cuda")

    def closure() -> Tensor:
        return model(input_ids=ids, labels=ids, use_cache=False).loss  # type: ignore[no-any-return]

    def peak(run: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()

    forward = milliseconds(closure)
    inference = peak(closure)
    result = {"forward_ms": forward}
    weights = [p.detach() for p in model.parameters()]

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
        time = milliseconds(lambda o=optimizer: o.step(closure), 3)
        report = optimizer.last_step
        assert report is not None
        result[f"{name}_over_forwards"] = time / (forward * report.forwards)
        result[f"{name}_memory"] = peak(lambda o=optimizer: o.step(closure)) / inference
    result["mezo_form_over_forwards"] = milliseconds(mezo_step, 3) / (2 * forward)
    result["mezo_form_memory"] = peak(mezo_step) / inference
    return result


def plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    rows = results["kernels"]
    axes[0].barh(list(rows), [r["share_of_copy"] for r in rows.values()], color="#1f5fa8")
    axes[0].set_title("perturb_, one term: share of copy bandwidth", loc="left")
    axes[0].axvline(1, color="#8a8a8a", linestyle="--")
    names = [k for k in next(iter(rows.values())) if k.endswith("_over_fused")]
    for place, name in enumerate(names):
        heights = [place + 0.2 * number for number in range(len(rows))]
        axes[1].barh(heights, [r[name] for r in rows.values()], height=0.18)
    axes[1].set_yticks(range(len(names)), [n[5:-11] for n in names])
    axes[1].set_title("passes of a step: times slower than the fused ones", loc="left")
    figure.suptitle(f"{results['gpu']}, {results['date']}")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    backends = fedspzo_kernels.info()["backends"]
    results: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "date": str(datetime.date.today()),
        "torch": torch.__version__,
        "backends": {name: backend.reason for name, backend in backends.items()},
        "kernels": {},
        "training": {},
    }

    def save() -> None:
        (out / "gpu.json").write_text(json.dumps(results, indent=1))

    for (shape, shapes), (name, dtype) in (
        (s, d)
        for s in (("flat 1e9", [torch.Size([FLAT])]), ("OPT-1.3B", opt_shapes()))
        for d in DTYPES.items()
    ):
        results["kernels"][f"{shape}, {name}"] = kernels(shapes, dtype)
        torch.cuda.empty_cache()
        save()
    for name, model in models():
        for batch, length in ((8, 512), (1, 128)):
            results["training"][f"{name}, {batch} x {length}"] = training(model, batch, length)
            save()
    plot(results, out / "gpu.png")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
