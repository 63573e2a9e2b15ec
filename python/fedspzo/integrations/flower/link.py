"""The server's link to clients behind Flower: SuperNodes, or the simulation's nodes."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import DEFAULT_TTL, Message
from flwr.serverapp import Grid

from fedspzo.errors import one_line

from .envelopes import ASK, TELL, Answer, pack

logger = logging.getLogger(__name__)

PATIENCE = 90.0
"""Seconds that a link waits for a client that is not there, by default.

It is more than the minute after which a SuperLink calls a silent SuperNode offline.
"""


_REASON = 500
"""Most characters of an error of Flower's that are shown. It may be a whole traceback."""


class ClientFailed(RuntimeError):
    """Reports a client that failed, with the name and text of its exception."""


@dataclass
class _Sent:
    """A message that is under way.

    Attributes:
        node: the node that was asked.
        client: the client that the node is. None: the node is asked who it is.
        message: the encoded message.
        since: the time at which it was first sent.
        alone: no download goes with it.
        error: why no answer will come.
        done: True if nothing more will come.
    """

    node: int
    client: int | None
    message: bytes
    since: float
    alone: bool = True
    error: Exception | None = None
    done: bool = False


@dataclass
class _Client:
    """What is known of a client.

    Attributes:
        node: the node that says it is this client.
        round: the round whose weights it holds.
        digest: their digest.
        arrived: encoded messages that have come from it and were not returned yet.
        sent: the message that it is working on.
    """

    node: int
    round: int = 0
    digest: str = ""
    arrived: list[bytes] = field(default_factory=list)
    sent: _Sent | None = None


class FlowerLink:
    """Carries messages to clients behind Flower. It is a `RemoteLink`.

    Each node that Flower knows is asked once which client it is. Where two nodes say that they are
    the same client, the one that came last is: a SuperNode that was started again. A message that
    its predecessor did not answer is then sent to it.

    Args:
        grid: Flower's grid, as a ServerApp's function gets it.
        run: names the run, so that clients do not mix weights of two runs. A run that goes on after
            a crash has to have the same name. Default None: a new name.
        keys: the public key of each client's node, as Flower has it (PEM). No other node is then
            the client. A SuperLink checks the keys if it was started with --enable-supernode-auth.
            Default None: a node is the client that it says.
        timeout: seconds that a client may take, with the start of its process. Default None: no
            limit but Flower's, which tells that a node is gone.
        patience: seconds to wait for clients that are not there, while nothing is heard of any.
            Default `PATIENCE`.
        poll: seconds from one look for answers to the next. Default 0.2.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        run: str | None = None,
        keys: Mapping[int, bytes] | None = None,
        timeout: float | None = None,
        patience: float = PATIENCE,
        poll: float = 0.2,
    ) -> None:
        self.run = uuid.uuid4().hex if run is None else run
        self._grid = grid
        self._keys = keys
        self._timeout = timeout
        self._patience = patience
        self._poll = poll
        self._clients: dict[int, _Client] = {}
        self._nodes: dict[int, bytes] = {}  # those that were asked who they are, with their keys
        self._under_way: dict[str, _Sent] = {}  # by Flower's id of the message
        self._absent: set[int] = set()  # clients that were waited for, and did not come
        self._looked = -1.0
        self._waited = 0.0  # seconds of waiting since something was heard
        self._closed = threading.Event()

    def close(self) -> None:
        """End all waiting: what waits, and whatever is called later, raises KeyboardInterrupt."""
        self._closed.set()

    def holds(self, client: int) -> tuple[int, str] | None:
        """Return the round whose weights a client says it holds, and their digest.

        None: it holds the base, or is not there within the link's patience.
        """
        self._absent.discard(client)
        found = self._find(client)
        if found is None:
            self._absent.add(client)
        return None if found is None or not found.round else (found.round, found.digest)

    def start(self, client: int, message: bytes, weights: Iterable[bytes]) -> None:
        """Send a client a message, if the client is there. `exchange` then waits for the answer."""
        found = self._find(client)
        if found is not None:
            found.sent = self._send(found.node, client, message, weights)

    def exchange(self, client: int, message: bytes, weights: Iterable[bytes]) -> list[bytes]:
        """Send a client a message, unless `start` has sent it, and return what has come from it.

        Raises:
            ClientFailed: the client failed; the text has its exception.
            ConnectionError: the client is not there, or has gone.
            TimeoutError: the client took too long.
        """
        found = self._find(client)
        if found is None:
            raise ConnectionError(
                f"no node is client {client}; start a SuperNode with --node-config"
                f' "partition-id={client}"'
            )
        if found.sent is None or found.sent.message != message:
            found.sent = self._send(found.node, client, message, weights)
        sent, found.sent = found.sent, None
        while not sent.done:
            self._wait()
            if self._timeout is not None and time.monotonic() - sent.since > self._timeout:
                raise TimeoutError(f"no answer within {self._timeout:g} s")
            if found.node != sent.node and not sent.done:
                if not sent.alone:  # the download was made once, as it was taken
                    raise ConnectionError("its node was started again during a download")
                logger.info("client %d: asked again, as its node was started again", client)
                since = sent.since
                sent = self._send(found.node, client, message)
                sent.since = since
        arrived, found.arrived = found.arrived, []
        if sent.error is not None:
            raise sent.error
        return arrived

    def _find(self, client: int) -> _Client | None:
        """Return a client once it is there. Return None if it does not come.

        One that `holds` has waited for is not waited for again.
        """
        self._look()
        while client not in self._clients:
            if client in self._absent or self._waited > self._patience:
                return None
            self._wait()
        return self._clients[client]

    def _send(
        self, node: int, client: int | None, message: bytes = b"", weights: Iterable[bytes] = ()
    ) -> _Sent:
        """Send a node a message for its client. None: ask it who it is."""
        parts = list(weights)
        sent = _Sent(node, client, message, time.monotonic(), alone=not parts)
        kind = TELL if client is None else ASK
        content = pack(self.run, message, parts)
        envelope = Message(content, node, kind, ttl=self._timeout or DEFAULT_TTL)
        (number,) = self._grid.push_messages([envelope]) or (None,)
        if number is None:
            sent.error = ConnectionError("Flower did not take the message; see its log")
            sent.done = True
        else:
            self._under_way[number] = sent
        return sent

    def _wait(self) -> None:
        """Wait a moment, and take what has come."""
        start = time.monotonic()
        if self._closed.wait(self._poll):
            raise KeyboardInterrupt
        self._look()
        for reply in self._grid.pull_messages(list(self._under_way)) if self._under_way else ():
            sent = self._under_way.pop(reply.metadata.reply_to_message_id, None)
            if sent is not None:
                self._take(sent, reply)
                sent.done = True
                self._waited, start = 0.0, time.monotonic()
        self._waited += time.monotonic() - start

    def _look(self) -> None:
        """Ask new nodes who they are. Forget clients whose node is gone. Once a second."""
        now = time.monotonic()
        if now - self._looked < 1:
            return
        self._looked = now
        nodes = {node.node_id: node.public_key for node in self._grid.get_nodes()}
        for number in [n for n, known in self._clients.items() if known.node not in nodes]:
            if self._clients[number].sent is None:
                del self._clients[number]
        new = sorted(set(nodes) - set(self._nodes))
        self._nodes = nodes
        for node in new:
            self._send(node, None)
            self._waited = 0.0

    def _take(self, sent: _Sent, reply: Message) -> None:
        """Note what a node has answered."""
        if reply.has_error():
            reason = one_line(reply.error.reason)[:_REASON]
            sent.error = ConnectionError(reason)
            if sent.client is None:
                logger.warning("node %d does not say who it is: %s", sent.node, reason)
            return
        try:
            answer = Answer.unpack(reply.content)
        except ValueError as error:
            sent.error = error
            logger.warning("node %d: %s", sent.node, error)
            return
        if sent.client is None:
            self._meet(sent.node, answer)
            return
        if answer.client != sent.client:
            sent.error = ClientFailed(f"its node says now that it is client {answer.client}")
            return
        client = self._clients.setdefault(sent.client, _Client(sent.node))
        if client.node == sent.node:
            client.round, client.digest = answer.round, answer.digest
        client.arrived += answer.messages
        if answer.error:
            sent.error = ClientFailed(answer.error)

    def _meet(self, node: int, answer: Answer) -> None:
        """Note which client a node is."""
        number = answer.client
        if self._keys is not None and self._keys.get(number) != self._nodes.get(node):
            logger.warning(
                "node %d says that it is client %d, but has another key, and is not used",
                node,
                number,
            )
            return
        client = self._clients.setdefault(number, _Client(node))
        if client.node != node:
            logger.warning(
                "client %d: node %d takes the place of node %d", number, node, client.node
            )
        client.node, client.round, client.digest = node, answer.round, answer.digest
