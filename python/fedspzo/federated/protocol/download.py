"""Downloads: they bring the trainable weights to a client whose missed updates would cost more.

A download has one message for each tensor, in the order of the blocks, so that no message holds the
whole model. A message has its tensor's bytes. No weight is loaded before the digest is checked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from fedspzo.journal.replica import Replica

from .framing import OVERHEAD, WEIGHTS, frame, unframe

_PART = struct.Struct("<II")  # round, number of the tensor


def size(replica: Replica) -> int:
    """Return the bytes of a download of the replica's weights."""
    return replica.trainable_bytes + len(_weights(replica)) * (OVERHEAD + _PART.size)


def encode(replica: Replica) -> Iterator[bytes]:
    """Yield the messages of a download (docs/federation.md). Each is made when it is taken."""
    for number, weight in enumerate(_weights(replica)):
        data = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        yield frame(WEIGHTS, _PART.pack(replica.round, number) + data)


def load(replica: Replica, round: int, digest: str, messages: Iterable[bytes]) -> None:
    """Bring a replica to the downloaded weights, bit for bit.

    Args:
        replica: a copy of the model, at any round.
        round: the round that the weights have to be of.
        digest: digest of the weights of that round.
        messages: all messages of the download, in order.

    Raises:
        ValueError: a message is damaged, missing, of another round, or of another length than its
            tensor; or the weights have another digest. The replica has not changed then.
    """
    weights = _weights(replica)
    new: list[Tensor] = []
    for number, message in enumerate(messages):
        body = unframe(WEIGHTS, message)
        found = _PART.unpack_from(body) if len(body) >= _PART.size else None
        if found != (round, number) or number >= len(weights):
            raise ValueError(
                f"download: message {number} says (round, tensor) {found}, expected"
                f" {(round, number)} of {len(weights)} tensors; send all of them once, in order"
            )
        weight = weights[number]
        if len(body) - _PART.size != weight.numel() * weight.element_size():
            raise ValueError(
                f"download: tensor {number} has {len(body) - _PART.size} bytes, here it has"
                f" {weight.numel() * weight.element_size()}; load the same model, cut alike"
            )
        # torch.frombuffer would refuse a tensor without elements
        data = np.frombuffer(bytearray(body), np.uint8, offset=_PART.size)
        new.append(torch.from_numpy(data).view(weight.dtype).reshape(weight.shape))
    if len(new) != len(weights):
        raise ValueError(f"download: {len(new)} of {len(weights)} tensors came; send all of them")
    replica.load(round, new, digest)


def _weights(replica: Replica) -> list[Tensor]:
    return [parameter for group in replica.blocks.groups for _, parameter in group]
