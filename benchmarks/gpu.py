"""The kernels and whole training steps on a GPU, beside the published forms, in one run.

`python benchmarks/gpu.py OUT` writes OUT/gpu.json and, with matplotlib, OUT/gpu.png, and prints
what it measured beside the goals. Times are medians of CUDA events, over buffers that together
exceed the second-level cache. A part that fails is recorded, and the others run.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.util
import itertools
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_measure import DTYPES, SHAPES, bits_equal, kernels, launch, training

import fedspzo_kernels


def goals(results: dict[str, Any]) -> list[str]:
    """A line for each goal of benchmarks/results/gpu.md that these results speak to."""
    lines = []

    def hold(name: str, what: str, value: float, most: float = float("inf"), least: float = 0):
        verdict = "held" if least <= value <= most else "MISSED"
        bound = f"at least {least:g}" if least else f"at most {most:.4g}"
        lines.append(f"{verdict}: {name}: {what} {value:.3f}, {bound}")

    for name, row in results["kernels"].items():
        least = {"float32": 0.95, "bfloat16": 0.90}.get(name.split(", ")[1])
        if least:
            hold(name, "share of copy bandwidth", row["share_of_copy"], least=least)
            hold(name, "MeZO's passes over ours", row["step_mezo_over_fused"], least=10)
            hold(name, "DeComFL's passes over ours", row["step_decomfl_over_fused"], least=5)
    for model, (shape, row) in (
        (m, item) for m, rows in results["training"].items() for item in rows.items()
    ):
        name = f"{model}, {shape}"
        if shape == "8 x 512":
            share = 1 / row["spzo_in_place_over_forwards"]
            hold(name, "share of forward throughput", share, least=0.95)
        hold(name, "memory over inference's", row["spzo_in_place_memory"], most=1.03)
    return lines


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
    parser.add_argument("out", type=Path, help="the folder for gpu.json and gpu.png")
    out: Path = parser.parse_args().out
    if not torch.cuda.is_available():
        sys.exit("gpu: torch finds no CUDA device")
    out.mkdir(parents=True, exist_ok=True)
    backends = fedspzo_kernels.info()["backends"]
    results: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "date": str(datetime.date.today()),
        "torch": torch.__version__,
        "backends": {name: backend.reason for name, backend in backends.items()},
        "checks": {},
        "kernels": {},
        "training": {},
        "failures": {},
    }

    def record(section: str, name: str, run: Callable[[], Any]) -> None:
        try:
            results[section][name] = run()
        except Exception:
            results["failures"][name] = traceback.format_exc()[-3000:]
            print(results["failures"][name], file=sys.stderr)
        gc.collect()
        torch.cuda.empty_cache()
        (out / "gpu.json").write_text(json.dumps(results, indent=1))

    record("checks", "bits_equal_cpu", bits_equal)
    record("checks", "launch", launch)
    for shape, (name, dtype) in itertools.product(SHAPES, DTYPES.items()):
        record("kernels", f"{shape}, {name}", lambda s=shape, d=dtype: kernels(s, d))
    for model in ("OPT-1.3B", "Llama-3.2-3B"):
        record("training", model, lambda m=model: training(m))
    if importlib.util.find_spec("matplotlib") is None:
        print("no gpu.png: matplotlib is not installed")
    elif results["kernels"]:
        plot(results, out / "gpu.png")
    print("\n".join(goals(results)))
    if results["failures"] or not results["checks"].get("bits_equal_cpu"):
        sys.exit(f"gpu: failed: {list(results['failures']) or 'bits differ from the CPU'}")


if __name__ == "__main__":
    main()
