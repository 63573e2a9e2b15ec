"""`fedspzo demo` and `fedspzo run`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from fedspzo.errors import InputError

from .. import arguments as types
from .. import config as configuration

if TYPE_CHECKING:
    from ..config import Config
    from ..run_folder import RunFolder

DEMO_CONFIG = Path(str(files("fedspzo.demo"))) / "config.toml"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    demo = commands.add_parser("demo", help="fine-tune the packaged model, beside MeZO")
    demo.set_defaults(function=_demo)
    run = commands.add_parser("run", help="fine-tune as a config file says")
    run.set_defaults(function=_run_or_resume)
    run.add_argument("config", type=types.path, nargs="?", metavar="CONFIG.toml")
    run.add_argument(
        "--resume", type=types.path, metavar="DIR", help="go on with the run in a folder"
    )
    run.add_argument(
        "--salvage", action="store_true", help="--resume a damaged journal before the damage"
    )
    run.add_argument("--overwrite", action="store_true", help="replace an earlier run's folder")
    for command in (demo, run):
        command.add_argument(
            "--output", type=types.path, metavar="DIR", help="folder for the results"
        )
        command.add_argument("--seed", type=int, metavar="N", help="in place of the config's")
        command.add_argument(
            "--rounds",
            type=int,
            metavar="N",
            help="in place of the config's; extends with --resume",
        )
        types.add_quiet(command)


def _demo(options: argparse.Namespace) -> int:
    return _run(options, DEMO_CONFIG, overwrite=True)


def _run_or_resume(options: argparse.Namespace) -> int:
    if options.resume is not None:
        return _resume(options)
    if options.salvage:
        raise InputError("salvage is given without --resume; name the run's folder after --resume")
    if options.config is None:
        raise InputError("name a CONFIG.toml, or a run's folder after --resume")
    return _run(options, options.config, overwrite=options.overwrite)


def _run(options: argparse.Namespace, path: Path, *, overwrite: bool) -> int:
    from ..run_folder import RunFolder

    config = configuration.load(path).with_overrides(
        output=options.output, seed=options.seed, rounds=options.rounds
    )
    with RunFolder(config.output_dir, overwrite=overwrite) as folder:
        return _train(options, config, folder)


def _resume(options: argparse.Namespace) -> int:
    from ..resume import rounds_done
    from ..run_folder import CONFIG, RunFolder

    path: Path = options.resume
    for name in ("config", "output", "seed", "overwrite"):
        value = getattr(options, name)
        if value is not None and value is not False:
            raise InputError(f"{name} is given with --resume, which goes on as begun; leave it out")
    with RunFolder(path, resume=True) as folder:
        if folder.finished and options.rounds is None:
            line = f"the run in '{path}' is finished; --rounds N extends it to N rounds"
            print(f"fedspzo: {line}", file=sys.stderr)
            return 0
        if options.salvage:
            for copy in folder.salvage():
                print(f"fedspzo: the damaged file is kept as {copy}", file=sys.stderr)
        config = configuration.load(path / CONFIG).with_overrides(output=path)
        if options.rounds is not None:
            done = rounds_done(folder)
            if options.rounds < done or (folder.finished and options.rounds == done):
                raise InputError(
                    f"--rounds is {options.rounds}, but the run in '{path}' has {done} rounds"
                    " already; give more"
                )
            config = config.with_overrides(rounds=options.rounds)
            if folder.finished:  # patience may have ended it, and would again
                config = replace(config, output=replace(config.output, patience=None))
                folder.extend()
        return _train(options, config, folder, resolved=True)


def _train(
    options: argparse.Namespace, config: Config, folder: RunFolder, *, resolved: bool = False
) -> int:
    """Train, and return the exit code."""
    from ..allocator import keep_freed_memory
    from ..data import check_clients, check_repeated, read_splits
    from ..installed import check_installed
    from ..removal import check_removal
    from ..resume import check_same_run
    from ..waiting import Count, waiting

    if config.on_flower:
        check_installed(f"{config.path}: [engine] name = 'flower'", "flower", "flwr", "ray")
    count = Count()
    with waiting("reading the data", count=count, quiet=options.quiet):
        splits = read_splits(config.data, config.task, config.federation.seed, count)
    check_repeated(config.data, splits)
    check_clients(config, splits)
    check_removal(folder, config)
    if folder.resumes:
        check_same_run(folder, config, splits, resolved=resolved)
    level = logging.ERROR if options.quiet else logging.WARNING  # clients that fail are warnings
    logging.basicConfig(format="fedspzo: %(message)s", level=level)
    if not options.quiet:
        for key, skipped in splits.skipped.items():
            if skipped:
                source = config.data.sources[key]
                line = f"{skipped} rows of '{source}' have no text or no label, and are skipped"
                print(f"fedspzo: {line}", file=sys.stderr)
        if splits.repeated:
            print(
                f"fedspzo: {splits.repeated} of the {len(splits.test)} texts in"
                f" '{config.data.test}' are also in '{config.data.train}'",
                file=sys.stderr,
            )
        print(f"fedspzo: loading {config.model.name}", file=sys.stderr, flush=True)

    fresh = "torch" not in sys.modules  # else the process is another program's
    if fresh:
        keep_freed_memory()
    ours = fresh and "OMP_NUM_THREADS" not in os.environ
    from ..run import run  # Brings torch and transformers.

    bad = run(config, splits, folder, quiet=options.quiet, choose_threads=ours).get("fault")
    if bad is not None:
        print(f"fedspzo: error: {bad}", file=sys.stderr)
    return 0 if bad is None else 4
