"""The server of a config, as an app of Flower.

An app folder that `fedspzo flower` has written names `server_app`. The server has the examples to
test on, and needs none to train on.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedspzo.errors import InputError, one_line
from fedspzo.files import write_atomic
from fedspzo.integrations.flower import FlowerLink

from . import config as configuration
from .config import Config
from .data import read_splits
from .flower_folder import CONFIG, ELSEWHERE, labels

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp

    from fedspzo.federated import Link, RunResult

    from .run_folder import RunFolder

TOKEN = ".flower"
"""The file of a run's folder with the name by which the clients know the run."""


def server_app(folder: Path) -> ServerApp:
    """Return the ServerApp of an app folder.

    It does what `fedspzo run` does, with clients that are nodes. The keys of its run config are
    `output`, the folder of the results, `rounds` (0: as in the config), `overwrite`, and `keys`, a
    folder with the public keys of the clients' nodes, N.pub for client N ("": none).
    """
    from flwr.serverapp import ServerApp

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        given = context.run_config
        serve(
            folder,
            grid,
            output=Path(str(given["output"])),
            rounds=int(given["rounds"]) or None,
            overwrite=bool(given["overwrite"]),
            keys=Path(str(given["keys"])) if given["keys"] else None,
        )

    return app


def serve(
    folder: Path,
    grid: Grid,
    *,
    output: Path,
    rounds: int | None = None,
    overwrite: bool = False,
    keys: Path | None = None,
) -> None:
    """Run the server of an app folder. A run that was begun in the output folder goes on.

    Args:
        folder: the app folder.
        grid: Flower's way to the nodes.
        output: folder of the results.
        rounds: number of rounds. Default None: as in the config.
        overwrite: replace a finished run. Default False.
        keys: a folder with the nodes' public keys. Default None: a node is the client that it says.

    Raises:
        InputError: the config or a file has a mistake, or the output holds a finished run.
    """
    from .removal import check_removal
    from .resume import check_same_run
    from .run import run
    from .run_folder import RunFolder

    elsewhere = {"train": str(folder / ELSEWHERE), "client": None}
    config = configuration.load(
        folder / CONFIG, {"data": elsewhere, "federation": {"partition": None}}
    ).with_overrides(output=output, rounds=rounds)
    config = replace(config, name=output.name)
    known = None if keys is None else public_keys(keys, config.federation.clients)
    here = tuple(key for key in config.data.sources if key != "train")
    seed = config.federation.seed
    splits = read_splits(config.data, config.task, seed, only=here, known=labels(folder))
    with RunFolder(output, overwrite=overwrite) as out:
        check_removal(out, config)
        if out.resumes:
            check_same_run(out, config, splits)
        run(config, splits, out, engine=_over(grid, out, config, known))


def _over(
    grid: Grid, out: RunFolder, config: Config, keys: Mapping[int, bytes] | None
) -> Callable[[Callable[[Link | None], RunResult]], RunResult]:
    """Return the engine whose clients are Flower's nodes."""

    def rounds(play: Callable[[Link | None], RunResult]) -> RunResult:
        token = out.path / TOKEN
        if not (out.resumes and token.exists()):
            write_atomic(token, uuid.uuid4().hex)
        link = FlowerLink(grid, run=token.read_text(), keys=keys, timeout=config.federation.timeout)
        return play(link)

    return rounds


def public_keys(folder: Path, clients: int) -> dict[int, bytes]:
    """Return the public key of each client's node, as Flower has it.

    Args:
        folder: holds N.pub for client N, as ssh-keygen writes it.
        clients: number of clients.

    Raises:
        InputError: a key is missing, or cannot be read.
    """
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_ssh_public_key,
    )

    keys = {}
    for number in range(clients):
        path = folder / f"{number}.pub"
        try:
            key = load_ssh_public_key(path.read_bytes())
            keys[number] = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: holds no public key ({one_line(error)}); give that of client {number}'s"
                " SuperNode, as ssh-keygen writes it"
            ) from None
    return keys
