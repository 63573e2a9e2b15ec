"""Weights that clients keep in a file from message to message.

Flower starts a process for each message, and a client's model ends with it. With its weights in a
file, the next process need not apply all updates since the base again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fedspzo.files import file_atomic

if TYPE_CHECKING:
    from fedspzo.journal.replica import Replica

logger = logging.getLogger(__name__)

_LENGTH = struct.Struct("<I")
_SUFFIX = ".weights"


class KeptWeights:
    """A folder with the weights of the latest round that a client has handled.

    Clients of one machine may share it: all hold the same weights. A file is a line of JSON with
    the round and its digest, and then the messages of a download, each after its length (u32).
    It is read only if it leads to the digest.

    Args:
        folder: the folder. It is made when it is needed. It holds one run's weights; those of an
            earlier run are removed.
        run: names the run.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._runs = folder
        self._folder = folder / hashlib.blake2b(run.encode(), digest_size=8).hexdigest()

    def latest(self) -> tuple[int, str] | None:
        """Return the round and digest of the weights that are kept, or None."""
        for path in self._newest_first():
            try:
                with path.open("rb") as file:
                    return _head(file)
            except (OSError, ValueError):
                continue
        return None

    def load(self, replica: Replica) -> None:
        """Bring a replica to the weights that are kept, unless it is as far itself.

        A file that is damaged, or of another base, is logged and removed.
        """
        from fedspzo.federated.protocol import download

        for path in self._newest_first():
            if int(path.stem) <= replica.round:
                return
            try:
                with path.open("rb") as file:
                    round, digest = _head(file)
                    download.load(replica, round, digest, _messages(file))
                return
            except FileNotFoundError:  # another process has replaced it
                continue
            except (OSError, ValueError) as error:
                logger.warning("%s: %s; it is removed", path, error)
                path.unlink(missing_ok=True)

    def save(self, replica: Replica, digest: str) -> None:
        """Keep a replica's weights, unless weights of its round or a later one are kept.

        If they cannot be written, a warning says so. The next process then starts from the base.
        """
        kept = list(self._newest_first())
        if replica.round == 0 or (kept and int(kept[0].stem) >= replica.round):
            return
        try:
            if not self._folder.exists():
                self._remove_other_runs()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write(replica, digest)
        except OSError as error:
            logger.warning("%s: the weights cannot be kept (%s)", self._folder, error)
            return
        for path in kept:
            path.unlink(missing_ok=True)

    def _write(self, replica: Replica, digest: str) -> None:
        from fedspzo.federated.protocol import download

        with file_atomic(self._folder / f"{replica.round}{_SUFFIX}") as file:
            file.write(json.dumps({"round": replica.round, "digest": digest}).encode() + b"\n")
            for message in download.encode(replica):
                file.write(_LENGTH.pack(len(message)) + message)

    def _remove_other_runs(self) -> None:
        if self._runs.is_dir():
            for other in self._runs.iterdir():
                if other != self._folder:  # another process may have just made it
                    shutil.rmtree(other, ignore_errors=True)

    def forget(self) -> None:
        """Remove the weights."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _newest_first(self) -> Iterator[Path]:
        found = [path for path in self._folder.glob(f"*{_SUFFIX}") if path.stem.isdecimal()]
        yield from sorted(found, key=lambda path: -int(path.stem))


def _head(file: BinaryIO) -> tuple[int, str]:
    values = json.loads(file.readline(200))
    round, digest = values.get("round"), values.get("digest")
    if type(round) is not int or not isinstance(digest, str):
        raise ValueError("it does not begin with a round and a digest")
    return round, digest


def _messages(file: BinaryIO) -> Iterator[bytes]:
    while length := file.read(_LENGTH.size):
        yield file.read(*_LENGTH.unpack(length.ljust(_LENGTH.size, b"\0")))
