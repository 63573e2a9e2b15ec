"""The command line: `fedspzo demo`, `fedspzo run CONFIG.toml`, `fedspzo info`.

Everything a user can get wrong is checked before torch is imported. Exit codes: 0 done, 2 wrong
input (one line on stderr), 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import NoReturn

from . import config as configuration
from .tables import InputError

DEMO_CONFIG = Path(str(files("fedspzo.demo"))) / "config.toml"


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see '{self.prog} --help'")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    try:
        options = _parser().parse_args(arguments)
        if options.command == "info":
            from .info import print_info

            print_info()
        elif options.command == "demo":
            _run(options, DEMO_CONFIG, overwrite=True)
        else:
            _run(options, options.config, overwrite=options.overwrite)
    except InputError as error:
        print(f"fedspzo: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fedspzo: interrupted", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace, path: Path, *, overwrite: bool) -> None:
    from .data import read_splits
    from .output import OutputFolder

    config = configuration.load(path).with_overrides(
        output=options.output, seed=options.seed, rounds=options.rounds
    )
    splits = read_splits(config.data, config.task)
    clients = config.federation.clients
    if clients > len(splits.train):
        raise InputError(
            f"{path}: [federation] clients is {clients}, but '{config.data.train}' has "
            f"{len(splits.train)} examples; give each client one at least"
        )
    folder = OutputFolder(config.output_dir, overwrite=overwrite)
    if not options.quiet:
        print(f"fedspzo: loading {config.model.name}", file=sys.stderr, flush=True)

    from .experiment import run  # Brings torch and transformers.

    run(config, splits, folder, quiet=options.quiet)


def _version() -> str:
    try:
        return metadata.version("fedspzo")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fedspzo", description="Federated zeroth-order fine-tuning of language models."
    )
    parser.add_argument("--version", action="version", version=f"fedspzo {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="fine-tune the packaged model, beside MeZO")
    run = commands.add_parser("run", help="fine-tune as a config file says")
    run.add_argument("config", type=Path, metavar="CONFIG.toml")
    run.add_argument("--overwrite", action="store_true", help="replace an earlier run's folder")
    for command in (demo, run):
        command.add_argument("--output", type=Path, metavar="DIR", help="folder for the results")
        command.add_argument("--seed", type=int, metavar="N", help="in place of the config's")
        command.add_argument("--rounds", type=int, metavar="N", help="in place of the config's")
        command.add_argument("--quiet", action="store_true", help="print nothing but errors")
    commands.add_parser("info", help="versions, backends, CPU and GPU")
    return parser
