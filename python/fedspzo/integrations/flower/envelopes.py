"""What a Flower message holds: fedspzo's encoded messages, as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

ACTION = "fedspzo"
"""The name of the functions of the ClientApp."""

ASK, TELL = f"train.{ACTION}", f"query.{ACTION}"
"""Types of Flower messages: a message for a client; and a question who a node is."""

_PART, _WEIGHTS = "fedspzo", "weights"


@dataclass(frozen=True)
class Answer:
    """What a node answers.

    Attributes:
        client: the id of the client that the node is.
        round: the round whose weights the client holds. 0: it holds the base.
        digest: the digest of these weights. Empty in round 0.
        messages: encoded messages: the answer of `Client`. Empty if it failed, or was only asked
            who it is.
        error: name and text of the exception with which the client failed. Empty if it did not.
    """

    client: int
    round: int
    digest: str
    messages: tuple[bytes, ...] = ()
    error: str = ""

    def pack(self) -> RecordDict:
        """Return the content of a Flower message."""
        values = {**vars(self), "messages": list(self.messages)}
        return RecordDict({_PART: ConfigRecord(values)})

    @classmethod
    def unpack(cls, content: RecordDict) -> Answer:
        """Return what a Flower message holds.

        Raises:
            ValueError: it is no answer.
        """
        values = content.config_records.get(_PART, {})
        wanted = {"client": int, "round": int, "digest": str, "messages": list, "error": str}
        for name, kind in wanted.items():
            value = values.get(name)
            if type(value) is not kind or (isinstance(value, int) and value < 0):
                raise ValueError(f"a node's answer has {name} {value!r}")
        messages = tuple(values["messages"])
        if not all(isinstance(message, bytes) for message in messages):
            raise ValueError("a node's answer has messages that are not bytes")
        given = {name: values[name] for name in wanted if name != "messages"}
        return cls(messages=messages, **given)


def pack(run: str, message: bytes = b"", weights: Iterable[bytes] = ()) -> RecordDict:
    """Return the content of a Flower message for a client.

    Args:
        run: names the run. A client keeps weights for one run.
        message: the encoded message. Default: none, a question who the node is.
        weights: the messages of a download. They travel as arrays of bytes, as Flower cuts an array
            into pieces, and so may be large.
    """
    content = RecordDict({_PART: ConfigRecord({"run": run, "message": message})})
    parts = {
        f"{number}": Array("uint8", (len(part),), "bytes", part)
        for number, part in enumerate(weights)
    }
    if parts:
        content[_WEIGHTS] = ArrayRecord(parts)
    return content


def unpack(content: RecordDict) -> tuple[str, bytes, Iterator[bytes]]:
    """Return the run, the message and the download that a Flower message holds.

    Raises:
        ValueError: it is no message of fedspzo.
    """
    values = content.config_records.get(_PART, {})
    run, message = values.get("run"), values.get("message")
    if not isinstance(run, str) or not isinstance(message, bytes):
        raise ValueError("the message is not from fedspzo; its server has another app")
    parts = content.array_records.get(_WEIGHTS, {})
    return run, message, (part.data for part in parts.values())
