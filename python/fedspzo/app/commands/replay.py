"""`fedspzo replay` and `fedspzo verify`."""

from __future__ import annotations

import argparse
import sys

from fedspzo.errors import InputError

from .. import arguments as types


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    replay = commands.add_parser("replay", help="rebuild the weights of a round from a journal")
    replay.set_defaults(function=_replay)
    replay.add_argument(
        "base", type=types.name, metavar="BASE", help="folder, hub id, .safetensors file, or demo"
    )
    replay.add_argument("journal", type=types.path, metavar="JOURNAL")
    replay.add_argument("-o", "--output", type=types.path, metavar="DIR", required=True)
    replay.add_argument("--round", type=int, metavar="N", help="in place of the last one")
    types.add_quiet(replay)
    types.add_salvage(replay)
    verify = commands.add_parser("verify", help="whether a folder holds a journal's weights")
    verify.set_defaults(function=_verify)
    verify.add_argument("folder", type=types.path, metavar="FOLDER")
    verify.add_argument("journal", type=types.path, metavar="JOURNAL")
    verify.add_argument("--round", type=int, metavar="N", help="in place of the last one")
    types.add_salvage(verify)


def _replay(options: argparse.Namespace) -> None:
    from fedspzo.federated.journal.reader import DecodedJournal

    from ..progress import ProgressReport
    from ..replay import check_output, replay, rounds, save

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
    from ..replay import verify

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
