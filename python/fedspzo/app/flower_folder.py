"""Writes a config as an app folder, which `flwr run` takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fedspzo.errors import InputError
from fedspzo.files import folder_atomic

from .arguments import check_new_folder
from .config import Config, to_toml
from .data import check_clients, check_repeated, read_splits
from .toml import dump_value

PACKAGE = "fedspzo_app"
"""The Python package in an app folder."""

CONFIG, LABELS, ELSEWHERE = "config.toml", "labels.json", "elsewhere.jsonl"
"""Files of the package. The last one stands for the data that a participant has not."""

_NAME = 32
"""Most characters of an app's name."""
_VALID = f"[a-zA-Z][a-zA-Z0-9-]{{0,{_NAME - 1}}}"
"""The names that Flower takes for an app and its folder."""

_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = {name}
version = "1.0.0"
description = "A federation of fedspzo, written by 'fedspzo flower'"
license = {{ text = "Apache-2.0" }}
dependencies = ["flwr>=1.41,<2"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "fedspzo"

[tool.flwr.app.components]
serverapp = "{package}.server:app"
clientapp = "{package}.client:app"

# `flwr run . --run-config "rounds=10"` sets these for one run.
[tool.flwr.app.config]
# The folder of the results, on the machine of the server. A run that was begun there goes on.
output = {output}
# 0: as many as {package}/config.toml says.
rounds = 0
# Replace a finished run in the folder.
overwrite = false
# A folder with the public keys of the clients' SuperNodes, 0.pub for client 0 and so on, as
# ssh-keygen writes them. Nobody else is then taken for these clients. It needs a SuperLink that was
# started with --enable-supernode-auth. "": a SuperNode is the client that it says.
keys = ""
"""

_MODULE = """\
\"\"\"The {which} of this federation. What it does is said by config.toml beside it.\"\"\"

from pathlib import Path

from fedspzo.app.flower_{which} import {which}_app

app = {which}_app(Path(__file__).parent)
"""

_README = """\
# {name}

A federation of fedspzo on Flower, of {clients} clients and {rounds} rounds. Its settings are in
`{package}/config.toml`. Every machine needs fedspzo with its extra `flower`, and the model.

    export FLWR_TELEMETRY_ENABLED=0    # Flower sends usage statistics otherwise

The server's machine, with the data to test on:

    flower-superlink --disable-runtime-dependency-installation \\
        --ssl-ca-certfile ca.crt --ssl-certfile server.pem --ssl-keyfile server.key \\
        --host 0.0.0.0 --database state.db

Each client's machine, with a file or folder of its own examples, which never leave it:

    flower-supernode --superlink HOST:8000 --root-certificates ca.crt \\
        --node-config 'partition-id=0 data="/path/to/its/examples"'

Then, with the SuperLink's address and ca.crt under [superlink.NAME] in ~/.flwr/config.toml:

    flwr run . NAME --stream

The results are in `{output}`. A run that was cut short goes on if it is started
again. docs/federation.md of fedspzo has more: what a round costs, and what of Flower is used.
"""


def write(config: Config, folder: Path) -> Iterator[str]:
    """Write an app folder, and yield lines that say what it is.

    Args:
        config: the config.
        folder: the folder. It must not exist, or be empty.

    Raises:
        InputError: the config or its data have a mistake, or need what Flower's clients cannot do.
    """
    if config.privacy is not None:
        raise InputError(
            f"{config.path}: [privacy] is given, whose account Flower's clients do not keep between"
            " messages; remove it"
        )
    if isinstance(config.data.validation, float):
        raise InputError(
            f"{config.path}: [data] validation is {config.data.validation:g}, a share of the"
            " training examples, which the server has not; give a file"
        )
    if config.data.test_share is not None:
        raise InputError(
            f"{config.path}: [data] test_share is {config.data.test_share:g}, a share of the"
            " training examples, which the server has not; give test a file"
        )
    if not re.fullmatch(_VALID, folder.resolve().name):
        raise InputError(
            f"output '{folder}' is no name that Flower takes: letters, digits and hyphens, a letter"
            " first, 32 characters at most; name another with --output"
        )
    check_new_folder(folder, "name another with --output")
    splits = read_splits(config.data, config.task, config.federation.seed)
    check_repeated(config.data, splits)
    check_clients(config, splits)
    output = str(config.output_dir.resolve())
    name = _name(config.name)
    text = to_toml(replace(config, mezo=None, engine=None))
    words = {
        "package": PACKAGE,
        "name": dump_value(name),
        "output": dump_value(output),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder_atomic(folder) as new:
        (new / PACKAGE).mkdir()
        files = {
            "pyproject.toml": _PYPROJECT.format(**words),
            "README.md": _README.format(
                name=name,
                clients=config.federation.clients,
                rounds=config.federation.rounds,
                package=PACKAGE,
                output=output,
            ),
            f"{PACKAGE}/__init__.py": "",
            f"{PACKAGE}/server.py": _MODULE.format(which="server"),
            f"{PACKAGE}/client.py": _MODULE.format(which="client"),
            f"{PACKAGE}/{CONFIG}": text,
            f"{PACKAGE}/{LABELS}": json.dumps(splits.labels),
            f"{PACKAGE}/{ELSEWHERE}": "",
        }
        for place, content in files.items():
            (new / place).write_text(content, encoding="utf-8")
    yield f"{folder} is an app of Flower: 'flwr run {folder}' runs it, and its README.md says how"
    if config.mezo is not None:
        yield "[mezo] is left out of it: the comparison needs all data in one place"


def labels(folder: Path) -> tuple[str, ...]:
    """Return the labels that an app's package names."""
    return tuple(json.loads((folder / LABELS).read_text(encoding="utf-8")))


def _name(name: str) -> str:
    """Return a name for the app: letters, digits and hyphens, a letter first."""
    plain = re.sub("[^a-zA-Z0-9]+", "-", name).strip("-")
    return f"fedspzo-{plain}"[:_NAME].rstrip("-")
