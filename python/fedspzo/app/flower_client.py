"""The clients of a config, as an app of Flower.

An app folder that `fedspzo flower` has written names `client_app`. A node has its own examples, in
a folder or file that its SuperNode's --node-config names.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedspzo.errors import InputError
from fedspzo.integrations.flower import client_app as nodes

from . import config as configuration
from .data import read_splits
from .flower_folder import CONFIG, ELSEWHERE, labels
from .toml import read_toml

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.clientapp import ClientApp

    from fedspzo.federated import Client
    from fedspzo.journal.replica import Replica

    from .tasks import Encoded, Task


def client_app(folder: Path) -> ClientApp:
    """Return the ClientApp of an app folder.

    A node's config has "partition-id", and these keys where they are not as in a simulation:

    * data: a file with the client's examples, or a folder with such files. Default: the client's
      share of [data] train.
    * model: the model's folder on this machine. Default: [model] name.
    * device: as [model] device.
    * state: the folder for the weights of the latest round. Default: a cache in the user's home.
    """
    text = (folder / CONFIG).read_bytes()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    keep = home / "fedspzo" / "flower" / hashlib.blake2b(text, digest_size=8).hexdigest()
    return node_app(folder / CONFIG, keep=keep)


def node_app(path: Path, *, keep: Path | None, threads: int | None = None) -> ClientApp:
    """Return the ClientApp of a config.

    Args:
        path: the config's file. Beside it are the other files of an app folder, if nodes have data
            of their own.
        keep: folder for the weights of the latest round. None: they are kept in memory alone.
        threads: torch's number of threads. Default None: as it is.
    """

    def make(context: Context) -> Client:
        import torch

        from fedspzo.federated import Client

        if threads is not None:
            torch.set_num_threads(threads)
        own = [str(context.node_config.get(key, "")) for key in ("data", "model", "device")]
        replica, task, examples = _load(path, *own)
        number = int(context.node_config["partition-id"])
        if own[0]:
            return Client(number, replica, examples[0], task)
        if number >= len(examples):
            raise InputError(f"partition-id is {number}, of {len(examples)} clients from 0 on")
        return Client(number, replica, examples[number], task)

    def kept(context: Context) -> Path | None:
        given = context.node_config.get("state")
        return keep if given is None else Path(str(given)).expanduser()

    return nodes(make, keep=kept, timeout=read_toml(path).get("federation", {}).get("timeout"))


@functools.cache
def _load(
    path: Path, data: str, model: str, device: str
) -> tuple[Replica, Task, Sequence[Sequence[Encoded]]]:
    """Load the model and the examples of a node. Clients in one process share both.

    Args:
        path: the config's file.
        data: the file or folder with the node's examples; empty: it has its share of the config's.
        model: the model's folder; empty: as in the config.
        device: the device; empty: as in the config.

    Returns:
        The model, the task, and the node's examples; or those of all clients, without `data`.

    Raises:
        InputError: something cannot be loaded; one line names it.
    """
    from fedspzo.journal.replica import Replica

    from . import models
    from .clients import deal
    from .cutting import cut

    changes: dict[str, dict[str, str | None]] = {"model": {}}
    if model:
        changes["model"]["name"] = str(Path(model).expanduser())
    if device:
        changes["model"]["device"] = device
    if data:
        own: dict[str, str | None] = {"train": str(Path(data).expanduser())}
        own |= dict.fromkeys(("client", "validation", "test_share"))
        changes["data"] = {**own, "test": str(path.parent / ELSEWHERE)}
        changes["federation"] = {"partition": None}
    config = configuration.load(path, changes)
    seed = config.federation.seed
    if data:
        splits = read_splits(
            config.data, config.task, seed, only=("train",), known=labels(path.parent)
        )
    else:
        splits = read_splits(config.data, config.task, seed)
    loaded, task, _ = models.load(config, splits)
    encode = functools.partial(models.encode, config.model.name, task, loaded)
    examples = [encode(splits.train)] if data else deal(config, splits, encode)
    blocks = cut(config, task, loaded, examples[0][:1], config.optimizer)
    return Replica(blocks), task, examples
