"""The command line: a module of `commands` has each command.

A config is checked before torch is imported. Exit codes: 0, done; 1, `verify` found other weights;
2, wrong input (one line on stderr); 3, too few clients answered; 4, the run ended badly; 130,
interrupted.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from fedspzo.errors import InputError
from fedspzo.federated.rejections import QuorumError
from fedspzo.journal.damage import JournalWarning

from .arguments import Parser
from .commands import info, journal, predict, replay, report, run
from .streams import discard, print_any_text, say

OURS = tuple(
    str(Path(spec.origin).parent)
    for spec in map(find_spec, ("fedspzo", "fedspzo_kernels"))
    if spec is not None and spec.origin is not None
)
"""The folders of our own code."""


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


def _version() -> str:
    try:
        return metadata.version("fedspzo")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _parser() -> Parser:
    parser = Parser(
        prog="fedspzo", description="Federated zeroth-order fine-tuning of language models."
    )
    parser.add_argument("--version", action="version", version=f"fedspzo {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (run, predict, replay, journal, report, info):
        module.add(commands)
    return parser
