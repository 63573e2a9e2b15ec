"""The peak memory and the time of a step, in place and layerwise: a table of docs/evaluation.md.

`python benchmarks/evaluation_memory.py`, a minute. A model of OPT's form with random weights (30 M
parameters, of which the tied embedding has half) and the demo's, on a CPU, one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from importlib.resources import files

import torch
import transformers
from machine import machine
from memory import peak_bytes
from torch import Tensor, nn

from fedspzo import SPZO, split

MIB = 1 << 20
STEPS = 5


def models() -> Iterator[tuple[str, nn.Module, Tensor]]:
    config = transformers.OPTConfig(
        vocab_size=32768,
        hidden_size=512,
        word_embed_proj_dim=512,
        ffn_dim=2048,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    yield "OPT's form, 4 x 64 tokens", transformers.OPTForCausalLM(config), ids(32768, 4, 64)
    demo = str(files("fedspzo.demo") / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(demo, dtype=torch.float32)
    yield "the demo's, 16 x 24 tokens", model, ids(2048, 16, 24)


def ids(vocabulary: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, vocabulary, shape, generator=generator)


def loss_of(model: nn.Module, batch: Tensor) -> Callable[[], Tensor]:
    return lambda: model(input_ids=batch, labels=batch).loss  # type: ignore[no-any-return]


def main() -> None:
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    print(f"{machine()}; torch {torch.__version__}; one thread\n")
    print("| model | dtype | weights, MiB | scratch_bytes, MiB | evaluation | peak, MiB | time |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, model, batch in models():
        for dtype in (torch.float32, torch.bfloat16):
            rows(name, model.to(dtype), loss_of(model, batch), dtype)


def rows(name: str, model: nn.Module, loss: Callable[[], Tensor], dtype: torch.dtype) -> None:
    weights = sum(p.nbytes for p in model.parameters()) / MIB
    optimizers = {
        evaluation: SPZO(
            split(model, -1),
            1e-6,
            evaluation=evaluation,
            perturbations=(1, 4),
            cost_shares=(0.25,),
            sides="two",
        )
        for evaluation in ("in_place", "layerwise")
    }
    times: dict[str, list[float]] = {evaluation: [] for evaluation in optimizers}
    for step in range(STEPS + 1):  # taking turns; the first is not counted
        for evaluation, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step(loss)
            times[evaluation] += [time.perf_counter() - start] if step else []
    for evaluation, optimizer in optimizers.items():
        peak = peak_bytes(lambda o=optimizer: o.step(loss)) / MIB
        ratio = statistics.median(times[evaluation]) / statistics.median(times["in_place"])
        scratch = f"{optimizer.scratch_bytes / MIB:.1f}" if evaluation == "layerwise" else ""
        print(
            f"| {name} | {str(dtype).removeprefix('torch.')} | {weights:.1f} | {scratch}"
            f" | {evaluation} | {peak:.1f} | {ratio:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
