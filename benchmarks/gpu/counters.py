"""Part 4: hardware counters of one launch each with 1, 2 and 64 terms, read by ncu.

`--launch` is what ncu runs: the launches alone. The log keeps all that ncu wrote.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from fedspzo_kernels import perturb_

from . import device
from .rows import attempt, record

WEIGHTS = device.sized(2**27, 20_000)
TERMS = (1, 2, 64)
SECTIONS = (
    *("SpeedOfLight", "MemoryWorkloadAnalysis_Tables", "ComputeWorkloadAnalysis"),
    *("SchedulerStats", "LaunchStats", "Occupancy"),
)
METRICS = {
    "duration_ns": "gpu__time_duration.sum",
    "wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum",
    "bank_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum",
    "shared_loads": "smsp__inst_executed_op_shared_ld.sum",
    "bytes_read": "dram__bytes_read.sum",
    "bytes_written": "dram__bytes_write.sum",
    "issue_active_percent": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "alu_percent": "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active",
    "fma_percent": "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active",
    "occupancy_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
}


def launch() -> None:
    """Launch the kernel once for each number of terms."""
    weights = torch.zeros(WEIGHTS, device=device.DEVICE, dtype=torch.bfloat16)
    for terms in TERMS:
        seeds = torch.arange(terms, device=device.DEVICE)
        perturb_([weights], [1], seeds, torch.full((terms,), 1e-3, device=device.DEVICE))
    device.synchronize()


def command(log: Path, *, by_name: bool) -> list[str]:
    """The call of ncu.

    Args:
        log: the file that it writes.
        by_name: ask for METRICS by name too; a version that lacks one of the names refuses them
            all.
    """
    options = ["--clock-control", "none", "--csv", "--page", "raw", "--print-units", "base"]
    options += ["--kernel-name", "regex:perturb_kernel", "--launch-count", str(len(TERMS))]
    for section in SECTIONS:
        options += ["--section", section]
    if by_name:
        options += ["--metrics", ",".join(METRICS.values())]
    options += ["--log-file", str(log), "--force-overwrite"]
    return ["ncu", *options, sys.executable, "-m", "gpu.counters", "--launch"]


def parse(text: str) -> list[dict[str, str]]:
    """Read ncu's raw page as CSV: for each launch, its counters by name."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if not lines:
        raise RuntimeError(f"ncu left no counters: {text[-1500:]}")
    names, _units, *launches = csv.reader(lines)
    return [dict(zip(names, values, strict=True)) for values in launches]


def values(counters: dict[str, str], terms: int) -> dict[str, float | None]:
    """The counters of METRICS, None where there is none, and what follows from them."""
    found: dict[str, float | None] = {}
    for name, metric in METRICS.items():
        try:
            found[name] = float(counters[metric].replace(",", ""))
        except (KeyError, ValueError):
            found[name] = None
    # a warp reads a row of the table once for each of its 32 weights and each term
    accesses = WEIGHTS * terms / 32
    wavefronts, read, written = (found[n] for n in ("wavefronts", "bytes_read", "bytes_written"))
    if wavefronts is not None:
        found["wavefronts_an_access"] = wavefronts / accesses
    if read is not None and written is not None:
        found["bytes_a_weight"] = (read + written) / WEIGHTS
    return found


def profile() -> None:
    """Run ncu, and record a row for each launch."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        for by_name in (True, False):
            run = subprocess.run(command(log, by_name=by_name), check=False)
            text = log.read_text() if log.exists() else ""
            print(text, flush=True)
            if run.returncode == 0 and '"ID"' in text:
                break
    launches = parse(text)
    for terms, counters in zip(TERMS, launches, strict=False):
        record(f"bfloat16, {terms} terms", terms=terms, **values(counters, terms))
    if len(launches) != len(TERMS):
        raise RuntimeError(f"ncu counted {len(launches)} launches, not {len(TERMS)}")


def main() -> None:
    if sys.argv[1:] == ["--launch"]:
        launch()
        return
    with attempt("ncu"):
        profile()


if __name__ == "__main__":
    main()
