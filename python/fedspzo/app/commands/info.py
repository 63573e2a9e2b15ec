"""`fedspzo info`."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    info = commands.add_parser("info", help="versions, backends, CPU and GPU")
    info.set_defaults(function=_info)


def _info(options: argparse.Namespace) -> None:
    from ..info import print_info

    print_info()
