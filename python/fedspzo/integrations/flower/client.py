"""Flower's ClientApp: it hands messages to a fedspzo client, and keeps the client's weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from .envelopes import ACTION, Answer, unpack
from .kept_weights import KeptWeights

if TYPE_CHECKING:
    from fedspzo.federated.client import Client

logger = logging.getLogger(__name__)

PARTITION = "partition-id"
"""The key of a node's config that says which client the node is, as Flower's simulation sets it."""

_held: dict[tuple[str, int], Client] = {}
"""The clients of this process, by run and id. Flower's simulation uses a process again."""


def client_app(
    make: Callable[[Context], Client],
    *,
    keep: Callable[[Context], Path | None] | None = None,
    timeout: float | None = None,
) -> ClientApp:
    """Return a ClientApp whose nodes are clients of a federation.

    A node is the client that its config names by "partition-id", as in `flower-supernode
    --node-config "partition-id=0"`.

    Args:
        make: creates a node's client, with the base model. Called once in each process. Clients may
            share a replica.
        keep: returns the folder in which a node keeps its weights from message to message. Nodes of
            one machine may share it. Default None, and where it returns None: each process starts
            from the base, and needs all updates since.
        timeout: seconds that a client may take for its steps. Default None: no limit.
    """
    app = ClientApp()

    @app.train(ACTION)
    def ask(message: Message, context: Context) -> Message:
        node = _Node(context, *unpack(message.content), keep)
        return Message(node.answer(make, timeout).pack(), reply_to=message)

    @app.query(ACTION)
    def tell(message: Message, context: Context) -> Message:
        node = _Node(context, *unpack(message.content), keep)
        return Message(node.told().pack(), reply_to=message)

    return app


class _Node:
    """Handles one message of the server.

    Args:
        context: Flower's context; its node config names the client.
        run: names the run.
        message: the encoded message for the client.
        weights: the messages of a download.
        keep: as for `client_app`.

    Raises:
        ValueError: the node config does not say which client the node is.
    """

    def __init__(
        self,
        context: Context,
        run: str,
        message: bytes,
        weights: Iterable[bytes],
        keep: Callable[[Context], Path | None] | None,
    ) -> None:
        number = context.node_config.get(PARTITION)
        if type(number) is not int or number < 0:
            raise ValueError(
                f"the node's {PARTITION} is {number!r}; start the SuperNode with --node-config"
                f' "{PARTITION}=N", N being its client from 0 on'
            )
        self._context = context
        self._number = number
        self._run = run
        self._message = message
        self._weights = weights
        folder = None if keep is None else keep(context)
        self._kept = None if folder is None else KeptWeights(folder, run)

    def told(self) -> Answer:
        """Return who the node is, and which weights it has."""
        if (held := _held.get((self._run, self._number))) is not None:
            replica = held.replica
            return Answer(self._number, replica.round, replica.digest())
        latest = None if self._kept is None else self._kept.latest()
        return Answer(self._number, *(latest or (0, "")))

    def answer(self, make: Callable[[Context], Client], timeout: float | None) -> Answer:
        """Let the client do what the message asks for, and return its answer, or its failure."""
        from fedspzo.federated import DigestError
        from fedspzo.federated.exchange import InProcess

        key = (self._run, self._number)
        messages: tuple[bytes, ...] = ()
        reason = ""
        try:
            if key not in _held:
                _held[key] = make(self._context)
            if self._kept is not None:
                self._kept.load(_held[key].replica)
            link = InProcess({self._number: _held[key]}, timeout)
            messages = tuple(link.exchange(self._number, self._message, self._weights))
        except Exception as error:  # the server names the client, and goes on without it
            logger.exception("client %d", self._number)
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, ValueError | DigestError):
                # its weights may be wrong; the base and all updates lead to the right ones
                _held.pop(key, None)
                if self._kept is not None:
                    self._kept.forget()
        if key not in _held:
            return Answer(self._number, 0, "", error=reason)
        replica = _held[key].replica
        digest = replica.digest()
        if self._kept is not None:
            self._kept.save(replica, digest)
        return Answer(self._number, replica.round, digest, messages, reason)
