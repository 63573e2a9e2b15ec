"""The goals of the GPU half, and what rows say of each."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from .rows import Row

Values = dict[str, float]


@dataclass(frozen=True)
class Goal:
    """A number to reach, in one case or in several.

    Attributes:
        what: the goal, in words that a report shows.
        values: reads rows: case to value; empty where nothing was measured.
        least: the value is to be at least that.
        most: the value is to be at most that.
    """

    what: str
    values: Callable[[list[Row]], Values]
    least: float | None = None
    most: float | None = None

    def verdict(self, value: float) -> str:
        """Whether a value reaches the goal: "held" or "MISSED"."""
        low = self.least is not None and value < self.least
        high = self.most is not None and value > self.most
        return "MISSED" if low or high or math.isnan(value) else "held"


def matching(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows that have these values, of the library's default form unless another is named."""
    wanted = {"variant": "default", **wanted}
    return [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]


def _by(rows: Iterable[Row], case: str, field: str) -> Values:
    """The mean of a field over the rows of each case."""
    found = defaultdict(list)
    for row in rows:
        if row.get(field) is not None:
            found[str(row[case])].append(float(row[field]))
    return {name: fmean(values) for name, values in found.items()}


def _count(rows: list[Row], failing: Callable[[Row], float]) -> Values:
    return {f"{len(rows)} lines": sum(map(failing, rows))} if rows else {}


def bits(rows: list[Row]) -> Values:
    """Elements that differ from the CPU's, for each form of the library and for Triton."""
    lines = [row for row in rows if row["what"] == "bits, all"]
    return {f"{row['part']}, {row['variant']}": row["differing"] for row in lines}


def tests(rows: list[Row]) -> Values:
    """Tests that failed; none where no test ran."""
    ran = [
        row for row in matching(rows, part="tests") if row.get("outcome") in ("passed", "failed")
    ]
    return _count(ran, lambda row: row["outcome"] == "failed")


def share_of_copy(dtype: str) -> Callable[[list[Row]], Values]:
    """One term over a copy: means of both turns, and of the copies before and after."""

    def values(rows: list[Row]) -> Values:
        variants = matching(rows, part="variants", dtype=dtype)
        copies = [row["ms"] for row in variants if row["what"].startswith("copy")]
        ours = [row["ms"] for row in matching(variants, rounding="nearest", terms=1) if "ms" in row]
        return {"10^9 weights": fmean(copies) / fmean(ours)} if copies and ours else {}

    return values


def replay(rows: list[Row]) -> Values:
    """Terms a second where there are 1024."""
    lines = matching(rows, part="variants", rounding="nearest", terms=1024)
    return _by(lines, "dtype", "terms_per_s")


def over_fused(form: str) -> Callable[[list[Row]], Values]:
    """A published form's passes over ours, by shape and dtype."""

    def values(rows: list[Row]) -> Values:
        lines = matching(rows, part="passes", form=form)
        return {
            f"{row['shape']}, {row['dtype']}": row["over_fused"]
            for row in lines
            if "over_fused" in row
        }

    return values


def share_of_bound(rows: list[Row]) -> Values:
    """SPZO's share of the bound on forward throughput, at the larger batch of each model."""
    lines = [row for row in rows if row["part"].startswith("training") and "share_of_bound" in row]
    largest = max((row["batch"] for row in lines), default=0)
    return {
        row["what"]: row["share_of_bound"]
        for row in lines
        if row["batch"] == largest and row["form"].startswith("SPZO")
    }


def memory(rows: list[Row]) -> Values:
    """SPZO's peak memory over inference's."""
    lines = matching(rows, part="memory")
    return {
        row["what"]: row["over_inference"]
        for row in lines
        if row.get("form", "").startswith("SPZO") and "over_inference" in row
    }


def wavefronts(rows: list[Row]) -> Values:
    """Shared-memory wavefronts for each access of the table, one term."""
    return _by(matching(rows, part="counters", terms=1), "what", "wavefronts_an_access")


def errors(tool: str) -> Callable[[list[Row]], Values]:
    """What a tool of compute-sanitizer found."""
    return lambda rows: _by(matching(rows, part=tool), "what", "errors")


GOALS = (
    Goal("bits: elements that differ from the CPU's", bits, most=0),
    Goal("tests/test_gpu.py: tests that fail", tests, most=0),
    Goal("perturb_, one term, float32: share of a copy", share_of_copy("float32"), least=0.95),
    Goal("perturb_, one term, bfloat16: share of a copy", share_of_copy("bfloat16"), least=0.90),
    Goal("replay, 1024 terms: terms a second", replay, least=1.3e12),
    Goal("shared-memory wavefronts an access", wavefronts, most=4.5),
    Goal("MeZO's passes over ours", over_fused("MeZO"), least=10),
    Goal("DeComFL's passes over ours", over_fused("DeComFL"), least=5),
    Goal("SPZO's steps: share of the bound on forward throughput", share_of_bound, least=0.95),
    Goal("SPZO's peak memory over inference's", memory, most=1.03),
    Goal("compute-sanitizer memcheck: errors", errors("memcheck"), most=0),
    Goal("compute-sanitizer racecheck: hazards", errors("racecheck"), most=0),
)
