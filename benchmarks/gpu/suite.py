"""Runs the suite's parts one after another, each in a process of its own and within a time.

    python -m gpu.suite OUT [--libraries DIR] [--only PART] [--deadline SECONDS] [--dry]

A part that fails, hangs or is killed loses no row that it wrote, and the next one runs all the
same. After every part OUT has all rows so far (rows.jsonl), the report of them (gpu.md) and what
the parts printed (suite.log). The status is 0 where nothing failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

from . import libraries, report, rows
from .parts import Part, parts

ROOT = libraries.ROOT
STUBS = Path(__file__).parent / "stubs"
DEADLINE = 450.0
"""Seconds after which no part runs any more; with the machine's own delays that is 8 minutes."""


class Suite:
    """Runs parts into one folder.

    Args:
        out: the folder of the results.
        places: by variant, what comes first on PYTHONPATH.
        deadline: seconds from now after which no part runs.
        dry: on the CPU, at tiny sizes, with stand-ins for ncu and compute-sanitizer.
    """

    def __init__(
        self, out: Path, places: Mapping[str, Path], deadline: float = DEADLINE, *, dry: bool
    ) -> None:
        self.out, self.places, self.dry = out, dict(places), dry
        self.rows = out / "rows.jsonl"
        self._end = time.monotonic() + deadline
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, chosen: Iterable[Part]) -> None:
        """Run the parts, and write the report after each."""
        for part in chosen:
            self.one(part)
            self.report()

    def report(self) -> None:
        """Write the report on the rows so far. A row that it cannot read stops no part."""
        try:
            report.write(self.rows, self.out / "gpu.md")
        except Exception as error:
            say(f"no report: {type(error).__name__}: {error}; mend it, then python -m gpu.report")

    def one(self, part: Part) -> bool:
        """Run one part to its end or to its time's; say whether it ended well."""
        seconds = min(part.seconds, self._end - time.monotonic())
        begin, before = time.monotonic(), len(rows.read(self.rows))
        failed = self._process(part, seconds) if seconds > 1 else "no time was left"
        made = rows.read(self.rows)[before:]
        made_by = {
            name: made[-1][name] if made else "unknown" for name in ("backend", "card", "torch")
        }
        ended = {
            "part": part.name,
            "variant": part.variant,
            **made_by,
            "date": rows.now(),
            "dry": self.dry,
            "what": "end of part",
            "seconds": round(time.monotonic() - begin, 1),
            "rows": len(made),
        }
        rows.append(self.rows, {**ended, "failed": failed} if failed else ended)
        lines = sum("failed" in row for row in made)
        problem = report.cell(failed or (f"{lines} lines failed" if lines else ""))
        say(f"{part.name} ({part.variant}): {len(made)} rows, {ended['seconds']} s. {problem}")
        return not failed

    def _process(self, part: Part, seconds: float) -> str | None:
        """Run a part's process; return why it failed, or None."""
        with (self.out / "suite.log").open("ab") as log:
            log.write(f"\n== {part.name} ({part.variant}): {' '.join(part.module)}\n".encode())
            log.flush()
            start = log.tell()
            self._child = subprocess.Popen(
                [sys.executable, "-m", *part.module],
                cwd=ROOT,
                env=self._environment(part),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # one of its own, to be killed with its children
            )
            try:
                status = self._child.wait(seconds)
            except subprocess.TimeoutExpired:
                return f"killed after {seconds:.0f} s"
            finally:
                self.stop()
        if status == 0:
            return None
        with (self.out / "suite.log").open("rb") as log:
            log.seek(start)
            text = log.read().decode(errors="replace")
        return f"status {status}: {text[-1000:]}"

    def stop(self) -> None:
        """End the part that runs, with its children."""
        if self._child is not None:
            with suppress(ProcessLookupError):  # all of them have ended
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
            self._child = None

    def _environment(self, part: Part) -> dict[str, str]:
        python = [self.places.get(part.variant), ROOT]
        python += [ROOT / name for name in ("python", "benchmarks", "tests")]
        given = os.environ.get("PYTHONPATH")
        path = [os.environ["PATH"]]
        if self.dry:
            path.insert(0, str(STUBS))
        added = {
            "PYTHONPATH": os.pathsep.join(str(p) for p in (*python, given) if p),
            "PYTHONSAFEPATH": "1",  # the working directory's kernels have no libraries
            "PYTHONUNBUFFERED": "1",
            "PATH": os.pathsep.join(path),
            "FEDSPZO_BACKEND": part.backend,
            "FEDSPZO_GPU_ROWS": str(self.rows),
            "FEDSPZO_GPU_PART": part.name,
            "FEDSPZO_GPU_VARIANT": part.variant,
            "HF_HUB_OFFLINE": "1",
        }
        if self.dry:
            added |= {"FEDSPZO_GPU_DRY": "1", "OMP_NUM_THREADS": "1"}
            if part.backend == "triton":
                added["TRITON_INTERPRET"] = "1"
            else:
                added["FEDSPZO_BACKEND"] = "cpu"
        return {**os.environ, **added}


def say(line: str) -> None:
    """Print a line, where someone still reads: the suite goes on without a terminal."""
    with suppress(OSError):
        print(line, flush=True)


def dry_libraries(folder: Path) -> None:
    """Lay out what `libraries.build` makes, from the tree's CPU backend alone.

    Raises:
        SystemExit: the CPU backend is not built.
    """
    built = sorted((ROOT / "fedspzo_kernels").glob("_C.*so"))
    if not built:
        sys.exit("gpu_suite: a dry run needs the CPU backend; run setup.py build_ext --inplace")
    shutil.copy(built[0], folder / libraries.CPU)


def checked(suite: Suite, wanted: list[Part], rebuild: Callable[[], dict[str, Path]]) -> list[Part]:
    """Run the first part, and build anew where the libraries given do not serve.

    What was built elsewhere may not load here.

    Args:
        suite: with the libraries given.
        wanted: the parts, the one that finds out first.
        rebuild: returns the new libraries' places.

    Returns:
        The parts that are left to run: with new libraries, all of them.
    """
    if suite.one(wanted[0]):
        return wanted[1:]
    say("the libraries given do not serve; building them here")
    suite.places |= rebuild()
    return wanted


def rebuilt(work: Path) -> dict[str, Path]:
    """Build and stage the libraries once more, where those that were given do not serve."""
    try:
        libraries.build(work / "built", seconds=150)
    except (subprocess.SubprocessError, OSError) as error:
        say(f"they were not built: {error}")
        return {}
    names = libraries.variants(work / "built")
    return {name: libraries.stage(work / "built", name, work / "again") for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a folder for the results, new or empty")
    parser.add_argument("--libraries", type=Path, help="built before, by gpu_suite.sh --build DIR")
    parser.add_argument("--only", action="append", default=[], help="the parts to run, by name")
    parser.add_argument("--deadline", type=float, default=DEADLINE, help="seconds")
    parser.add_argument("--dry", action="store_true", help="without a GPU: see that all of it runs")
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if (out / "rows.jsonl").exists():
        parser.error(f"{out} has the rows of another run; give a new folder")
    begin = time.monotonic()
    signal.signal(signal.SIGTERM, _interrupted)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        found = given.libraries.resolve() if given.libraries else work / "built"
        if given.dry:
            found = work / "dry"
            found.mkdir()
            dry_libraries(found)
        elif not given.libraries:
            libraries.build(found, seconds=150)
        names = ["default", "other"] if given.dry else libraries.variants(found)
        if "default" not in names:
            sys.exit(
                f"gpu_suite: {found} has no default/{libraries.CUDA}; see gpu_suite.sh --build"
            )
        wanted = [part for part in parts(names) if not given.only or part.name in given.only]
        if not wanted:
            parser.error(f"no part is called {', '.join(given.only)}")
        if given.dry:  # where other work may keep the processors busy
            wanted = [replace(part, seconds=4 * part.seconds) for part in wanted]
        places = {name: libraries.stage(found, name, work / "staged") for name in names}
        left = given.deadline - (time.monotonic() - begin)
        suite = Suite(out, places, left, dry=given.dry)
        try:
            if given.libraries and not given.only:
                wanted = checked(suite, wanted, lambda: rebuilt(work))
            suite.run(wanted)
        finally:
            suite.stop()
            suite.report()
    with suppress(Exception):
        say(report.verdicts(rows.read(suite.rows)))
    if any("failed" in row for row in rows.read(suite.rows)):
        sys.exit("gpu_suite: some lines failed; gpu.md lists them, suite.log has all output")


def _interrupted(signum: int, frame: FrameType | None) -> None:
    sys.exit(f"gpu_suite: ended by signal {signum}")


if __name__ == "__main__":
    main()
