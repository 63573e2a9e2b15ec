"""`fedspzo report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedspzo.errors import InputError, explained

from .. import arguments as types
from ..installed import check_installed


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    report = commands.add_parser("report", help="show runs on a page, one HTML file")
    report.set_defaults(function=_report)
    report.add_argument("folders", type=types.path, nargs="+", metavar="DIR")
    report.add_argument(
        "-o",
        "--output",
        type=types.path,
        metavar="FILE.html",
        help="default: report.html in the run's folder, of several runs in the current one",
    )
    types.add_quiet(report)


def _report(options: argparse.Namespace) -> None:
    check_installed("report", "report", "altair", "vl_convert")
    from fedspzo.files import write_atomic

    from ..page.page import GENERATOR, render
    from ..page.recorded import read_all
    from ..run_folder import REPORT

    what = ", ".join(map(str, options.folders))
    with explained(f"'{what}' cannot be shown", "restore the files in it from a copy"):
        runs = read_all(options.folders)
    output: Path = options.output or (runs[0].path if len(runs) == 1 else Path()) / REPORT
    if output.is_dir():
        raise InputError(f"output '{output}' is a folder; name a file after -o")
    if output.exists() and GENERATOR.encode() not in output.read_bytes()[:1000]:
        raise InputError(
            f"output '{output}' is there already, and is no such page; name another after -o"
        )
    with explained(f"'{what}' cannot be shown", "restore the files in it from a copy"):
        page = render(runs)
    try:
        write_atomic(output, page)
    except OSError as error:
        raise InputError(
            f"output '{output}' cannot be written ({error.strerror or error}); name another file"
            " after -o"
        ) from None
    if not options.quiet:
        shown = "the run" if len(runs) == 1 else f"{len(runs)} runs"
        print(f"{output} shows {shown}; open it in a browser")
