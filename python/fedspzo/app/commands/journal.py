"""`fedspzo journal show`, `compact` and `salvage`."""

from __future__ import annotations

import argparse

from .. import arguments as types


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command with its verbs."""
    journal = commands.add_parser("journal", help="look into a journal, shorten it, or salvage it")
    verbs = journal.add_subparsers(dest="verb", required=True, metavar="VERB")
    show = verbs.add_parser("show", help="print a journal for people")
    show.set_defaults(function=_show)
    show.add_argument("journal", type=types.path, metavar="JOURNAL")
    show.add_argument("--round", type=int, metavar="N", help="one round in full")
    compact = verbs.add_parser("compact", help="leave out the reports, and merge the records")
    compact.set_defaults(function=_compact)
    compact.add_argument("journal", type=types.path, metavar="JOURNAL")
    compact.add_argument("-o", "--output", type=types.path, metavar="NEW", required=True)
    compact.add_argument(
        "--after", type=int, metavar="N", help="start from the weights after N rounds"
    )
    types.add_salvage(compact)
    salvage = verbs.add_parser("salvage", help="write what is whole of a damaged journal")
    salvage.set_defaults(function=_salvage)
    salvage.add_argument("journal", type=types.path, metavar="JOURNAL")
    salvage.add_argument("-o", "--output", type=types.path, metavar="NEW", required=True)


def _show(options: argparse.Namespace) -> None:
    from ..show import lines

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
