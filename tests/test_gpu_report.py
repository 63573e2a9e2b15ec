"""What the GPU suite reads off its tools and makes of its rows: counters, bounds, verdicts."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from gpu import bound, counters, models, passes, report, rows, sanitizer
from gpu.bound import Passes, block_passes, forward_share_bound
from gpu.goals import GOALS, share_of_copy

ROOT = Path(__file__).parent.parent


NCU = """==PROF== Connected to process 4711 (/usr/bin/python3.12)
==PROF== Profiling "perturb_kernel" - 0: 0%....50%....100% - 12 passes
"ID","Kernel Name","gpu__time_duration.sum","dram__bytes_read.sum","dram__bytes_write.sum",\
"l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum","launch__registers_per_thread"
"","","ns","byte","byte","",""
"0","void perturb_kernel<Bfloat16, NormalNoise>(TensorTable, Terms)","190,112","40,000",\
"20,000","5,000","n/a"
"""


def test_ncus_counters_are_read() -> None:
    (launch,) = counters.parse(NCU)
    found = counters.values(launch, terms=2)
    assert found["duration_ns"] == 190112
    assert found["registers"] is found["alu_percent"] is None
    assert found["bytes_a_weight"] == 60000 / counters.WEIGHTS
    assert found["wavefronts_an_access"] == 5000 / (counters.WEIGHTS * 2 / 32)
    with pytest.raises(RuntimeError, match="ncu left no counters: ==ERROR== no permission"):
        counters.parse("==ERROR== no permission")


@pytest.mark.parametrize(
    ("tool", "output", "errors"),
    [
        ("memcheck", "========= ERROR SUMMARY: 0 errors", 0),
        ("memcheck", "========= ERROR SUMMARY: 1 error", 1),
        ("racecheck", "==== RACECHECK SUMMARY: 12 hazards displayed (10 errors, 2 warnings)", 12),
    ],
)
def test_sanitizer_summaries_are_read(tool: str, output: str, errors: int) -> None:
    assert sanitizer.found(tool, output) == errors
    with pytest.raises(RuntimeError, match="gave no summary: no such device"):
        sanitizer.found(tool, "no such device")


def test_the_bound_on_forward_throughput() -> None:
    assert block_passes(100, directions=3, sides=2) == Passes(100, 7)
    assert block_passes(100, directions=0, sides=2).passes == 0
    # 10 forward passes of 20 ms; 3 and 5 passes over 1e9 and 2e8 weights of 2 bytes at 4 TB/s
    blocks = [Passes(10**9, 3), Passes(2 * 10**8, 5)]
    assert math.isclose(forward_share_bound(10, 20, blocks, 2, 4e12), 200 / (200 + 4))
    assert forward_share_bound(10, 20, [], 2, 4e12) == 1


def test_the_page_on_gpus_shows_the_bounds_that_are_computed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bound.main()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) > 5
    assert "\n".join(printed) in (ROOT / "benchmarks/results/gpu.md").read_text()


def test_opts_shapes_are_those_of_its_library() -> None:
    model = models.build("OPT-1.3B", "meta")
    assert Counter(passes.opt_shapes()) == Counter(tuple(p.shape) for p in model.parameters())


def test_the_forms_of_the_library_are_compared() -> None:
    stamp = dict.fromkeys(rows.STAMP, "x") | {"part": "variants", "what": "1 term"}
    found = [
        {**stamp, "variant": variant, "share_of_copy": share}
        for variant, share in (("default", 0.9), ("other", 0.8), ("default", 0.87))
    ]
    lines = report.comparison(found).splitlines()
    assert lines[0] == "| share of a copy | default | other |"
    assert lines[2] == "| 1 term | 0.870 to 0.900 | 0.800 |"


def test_verdicts() -> None:
    stamp = {"part": "variants", "variant": "default", "dtype": "float32"}
    copies = [{**stamp, "what": "copy, float32", "ms": ms} for ms in (3.8, 4.2)]
    line = {**stamp, "what": "one term", "rounding": "nearest", "terms": 1}
    goal = next(g for g in GOALS if g.what.startswith("perturb_, one term, float32"))
    for ms, verdict in ((4.0, "held"), (4.5, "MISSED"), (math.nan, "MISSED")):
        found = [*copies, {**line, "ms": ms}, {**line, "failed": "out of memory"}]
        (value,) = share_of_copy("float32")(found).values()
        assert goal.verdict(value) == verdict
    assert goal.values([*copies, {**line, "variant": "other", "ms": 4.0}]) == {}
    assert goal.values([]) == {}


def test_a_failed_line_is_named_first(tmp_path: Path) -> None:
    row = dict.fromkeys(rows.STAMP, "x") | {"what": "1 term", "failed": "RuntimeError: no\nmemory"}
    rows.append(tmp_path / "rows.jsonl", row)
    report.write(tmp_path / "rows.jsonl", tmp_path / "gpu.md")
    text = (tmp_path / "gpu.md").read_text()
    assert "| x | x | 1 term | memory |" in text.split("## x")[0]
