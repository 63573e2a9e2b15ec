"""The command line: demo, run, replay, verify, journal show, compact and salvage, info.

A config is checked before torch is imported. Exit codes: 0, done; 1, `verify` found other weights;
2, wrong input (one line on stderr); 3, too few clients answered; 4, the run ended badly; 130,
interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from fedspzo.errors import InputError
from fedspzo.federated.rejections import QuorumError
from fedspzo.journal.damage import JournalWarning

from . import config as configuration
from .streams import discard, print_any_text, say

if TYPE_CHECKING:
    from .config import Config
    from .run_folder import RunFolder

OURS = tuple(
    str(Path(spec.origin).parent)
    for spec in map(find_spec, ("fedspzo", "fedspzo_kernels"))
    if spec is not None and spec.origin is not None
)
"""The folders of our own code."""
DEMO_CONFIG = Path(str(files("fedspzo.demo"))) / "config.toml"


class _Parser(argparse.ArgumentParser):
    """Parses arguments, and raises InputError with one line in place of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see '{self.prog} --help'")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code.

    Args:
        arguments: the arguments after the program's name. Default None: those of the process.
    """
    print_any_text()
    try:
        options = _parser().parse_args(arguments)
        with plain_warnings(quiet=getattr(options, "quiet", False)):
            code = int(options.function(options) or 0)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except InputError as error:
        say(f"fedspzo: error: {error}")
        return 2
    except QuorumError as error:
        say(f"fedspzo: error: {error}; all rounds before it are kept")
        return 3
    except KeyboardInterrupt:
        say("fedspzo: interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has closed it
        discard(sys.stdout)
        return 141
    except OSError as error:
        discard(sys.stdout)
        where = "the output" if error.filename is None else f"'{error.filename}'"
        say(f"fedspzo: error: {where} cannot be read or written ({error.strerror or error})")
        return 2


@contextmanager
def plain_warnings(*, quiet: bool) -> Iterator[None]:
    """Print a warning of ours as one line, and none of the libraries', within a context.

    A step that was skipped is counted in the progress and in the table, so it is not printed.

    Args:
        quiet: print none, but for that of a damaged journal.
    """

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        wanted = not quiet or issubclass(category, JournalWarning)
        if wanted and filename.startswith(OURS):
            print(f"fedspzo: {str(message).removeprefix('fedspzo: ')}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="step .* was skipped")
        warnings.filterwarnings("always", category=JournalWarning)
        warnings.showwarning = show
        yield


def _info(options: argparse.Namespace) -> None:
    from .info import print_info

    print_info()


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
    from .run_folder import RunFolder

    config = configuration.load(path).with_overrides(
        output=options.output, seed=options.seed, rounds=options.rounds
    )
    with RunFolder(config.output_dir, overwrite=overwrite) as folder:
        return _train(options, config, folder)


def _resume(options: argparse.Namespace) -> int:
    from .resume import rounds_done
    from .run_folder import CONFIG, RunFolder

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
    from .data import check_clients, check_repeated, read_splits
    from .removal import check_removal
    from .resume import check_same_run
    from .waiting import waiting

    with waiting("reading the data", quiet=options.quiet):
        splits = read_splits(config.data, config.task, config.federation.seed)
    check_repeated(config.data, splits)
    check_clients(config, splits)
    check_removal(folder, config)
    if folder.resumes:
        check_same_run(folder, config, splits, resolved=resolved)
    level = logging.ERROR if options.quiet else logging.WARNING  # clients that fail are warnings
    logging.basicConfig(format="fedspzo: %(message)s", level=level)
    if not options.quiet:
        for key, count in splits.skipped.items():
            if count:
                path = config.data.files[key]
                line = f"{count} rows of '{path}' have no text or no label, and are skipped"
                print(f"fedspzo: {line}", file=sys.stderr)
        if splits.repeated:
            print(
                f"fedspzo: {splits.repeated} of the {len(splits.test)} texts in"
                f" '{config.data.test}' are also in '{config.data.train}'",
                file=sys.stderr,
            )
        print(f"fedspzo: loading {config.model.name}", file=sys.stderr, flush=True)

    ours = "OMP_NUM_THREADS" not in os.environ and "torch" not in sys.modules
    from .run import run  # Brings torch and transformers.

    bad = run(config, splits, folder, quiet=options.quiet, choose_threads=ours).get("fault")
    if bad is not None:
        print(f"fedspzo: error: {bad}", file=sys.stderr)
    return 0 if bad is None else 4


def _replay(options: argparse.Namespace) -> None:
    from fedspzo.federated.journal.reader import DecodedJournal

    from .replay import check_output, replay, rounds, save
    from .report import ProgressReport

    check_output(options.output)
    total = options.round
    if total is None:
        total = rounds(DecodedJournal(options.journal, salvage=options.salvage))
    with ProgressReport("replay", total, quiet=options.quiet) as progress:
        done = replay(
            options.base,
            options.journal,
            round=options.round,
            salvage=options.salvage,
            on_round=lambda number: progress.update({"round": number}),
        )
    save(done, options.output)
    if not options.quiet:
        known = "" if done.checked else f", which {options.journal} does not have to compare"
        what = f"the weights of round {done.round}, digest {done.digest}"
        print(f"{options.output} holds {what}{known}")


def _verify(options: argparse.Namespace) -> int:
    from .replay import verify

    verdict = verify(
        str(options.folder), options.journal, round=options.round, salvage=options.salvage
    )
    what = f"{options.folder}: digest {verdict.digest}"
    if verdict.matches:
        print(f"{what}, that of round {verdict.round} of {options.journal}")
        return 0
    if verdict.expected is None:
        raise InputError(
            f"{options.journal}: has no digest of round {verdict.round} to compare with; name a"
            f" round that has one ('fedspzo journal show {options.journal}'), or replay to this one"
            f" and compare what it prints with {what}"
        )
    other = "no digest" if verdict.found is None else f"that of round {verdict.found}"
    wanted = f"round {verdict.round} has {verdict.expected}"
    print(f"{what}, {other} of {options.journal}; {wanted}", file=sys.stderr)
    return 1


def _show(options: argparse.Namespace) -> None:
    from .show import lines

    for line in lines(options.journal, options.round):
        print(line)


def _compact(options: argparse.Namespace) -> None:
    from fedspzo.federated.journal.compaction import compact

    done = compact(options.journal, options.output, after=options.after, salvage=options.salvage)
    print(f"{options.output} holds {done.rounds} rounds, {done.terms} terms, and no report")
    if done.first:
        print(
            f"it starts from the weights after {done.first} rounds: 'fedspzo replay BASE"
            f" {options.journal} --round {done.first} -o DIR' makes them"
        )
    print(f"{done.bytes_after} bytes, {options.journal} has {done.bytes_before}")
    if done.term_before is not None and done.term_after is not None:
        print(f"without the header {done.term_after:.1f} a term, before {done.term_before:.1f}")


def _salvage(options: argparse.Namespace) -> None:
    from fedspzo.journal.salvage import salvage

    done = salvage(options.journal, options.output)
    print(f"{options.output} holds {done.rounds} rounds, {done.size} bytes of {options.journal}")
    if done.damage is not None:
        print(f"{options.journal}: {done.damage}")
    elif done.torn:
        print(f"a torn record of {done.torn} bytes at its end is left out")
    else:
        print(f"{options.journal} is not damaged")


def _path(text: str) -> Path:
    """Return a path given on the command line."""
    return Path(_name(text))


def _name(text: str) -> str:
    """Return a path or name given on the command line, if it can be one."""
    try:
        if not text.strip():
            raise ValueError("it is empty")
        os.path.lexists(text)
        Path(text).exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is no path ({reason})") from None
    return text


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
    demo.set_defaults(function=_demo)
    run = commands.add_parser("run", help="fine-tune as a config file says")
    run.set_defaults(function=_run_or_resume)
    run.add_argument("config", type=_path, nargs="?", metavar="CONFIG.toml")
    run.add_argument("--resume", type=_path, metavar="DIR", help="go on with the run in a folder")
    run.add_argument(
        "--salvage", action="store_true", help="--resume a damaged journal before the damage"
    )
    run.add_argument("--overwrite", action="store_true", help="replace an earlier run's folder")
    for command in (demo, run):
        command.add_argument("--output", type=_path, metavar="DIR", help="folder for the results")
        command.add_argument("--seed", type=int, metavar="N", help="in place of the config's")
        command.add_argument(
            "--rounds",
            type=int,
            metavar="N",
            help="in place of the config's; extends with --resume",
        )
        command.add_argument("--quiet", action="store_true", help="print nothing but errors")

    replay = commands.add_parser("replay", help="rebuild the weights of a round from a journal")
    replay.set_defaults(function=_replay)
    replay.add_argument(
        "base", type=_name, metavar="BASE", help="folder, hub id, .safetensors file, or demo"
    )
    replay.add_argument("journal", type=_path, metavar="JOURNAL")
    replay.add_argument("-o", "--output", type=_path, metavar="DIR", required=True)
    replay.add_argument("--round", type=int, metavar="N", help="in place of the last one")
    replay.add_argument("--quiet", action="store_true", help="print nothing but errors")
    verify = commands.add_parser("verify", help="whether a folder holds a journal's weights")
    verify.set_defaults(function=_verify)
    verify.add_argument("folder", type=_path, metavar="FOLDER")
    verify.add_argument("journal", type=_path, metavar="JOURNAL")
    verify.add_argument("--round", type=int, metavar="N", help="in place of the last one")
    journal = commands.add_parser("journal", help="look into a journal, shorten it, or salvage it")
    verbs = journal.add_subparsers(dest="verb", required=True, metavar="VERB")
    show = verbs.add_parser("show", help="print a journal for people")
    show.set_defaults(function=_show)
    show.add_argument("journal", type=_path, metavar="JOURNAL")
    show.add_argument("--round", type=int, metavar="N", help="one round in full")
    compact = verbs.add_parser("compact", help="leave out the reports, and merge the records")
    compact.set_defaults(function=_compact)
    compact.add_argument("journal", type=_path, metavar="JOURNAL")
    compact.add_argument("-o", "--output", type=_path, metavar="NEW", required=True)
    compact.add_argument(
        "--after", type=int, metavar="N", help="start from the weights after N rounds"
    )
    salvage = verbs.add_parser("salvage", help="write what is whole of a damaged journal")
    salvage.set_defaults(function=_salvage)
    salvage.add_argument("journal", type=_path, metavar="JOURNAL")
    salvage.add_argument("-o", "--output", type=_path, metavar="NEW", required=True)
    for command in (replay, verify, compact):
        command.add_argument(
            "--salvage", action="store_true", help="take a damaged journal up to the damage"
        )
    info = commands.add_parser("info", help="versions, backends, CPU and GPU")
    info.set_defaults(function=_info)
    return parser
