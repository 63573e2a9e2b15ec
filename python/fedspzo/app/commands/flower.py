"""`fedspzo flower`."""

from __future__ import annotations

import argparse

from .. import arguments as types
from .. import config as configuration


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    flower = commands.add_parser("flower", help="write an app that runs a config on Flower")
    flower.set_defaults(function=_flower)
    flower.add_argument("config", type=types.path, metavar="CONFIG.toml")
    flower.add_argument("-o", "--output", type=types.path, metavar="APP", required=True)


def _flower(options: argparse.Namespace) -> None:
    from ..flower_folder import write

    config = configuration.load(options.config)
    for line in write(config, options.output):
        print(line)
