"""A replica: a copy of the model that follows the global weights, record by record."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fedspzo.blocks.cut import Blocks
from fedspzo.blocks.parameters import storage
from fedspzo.interrupts import HeldInterrupts

from .records import Record, apply, digest, tensor_digest

_BITS = {2: torch.int16, 4: torch.int32}


class Replica:
    """Holds a model at the global weights of a round, and returns to them after local steps.

    Several clients may share one in turn, as each leaves it as it found it. To return it keeps an
    exact copy of the trainable weights in host memory, from the first `snapshot` on.

    Args:
        blocks: the model, cut into blocks; it holds the global weights of `round`.
        round: the number of records that have been applied. Default 0.
    """

    def __init__(self, blocks: Blocks, round: int = 0) -> None:
        self.blocks = blocks
        self.round = round
        self._weights = [parameter for group in blocks.groups for _, parameter in group]
        trained = {storage(parameter) for parameter in self._weights}
        # frozen weights never change, so they are hashed once
        self._frozen = {
            name: tensor_digest(parameter)
            for name, parameter in blocks.model.named_parameters()
            if storage(parameter) not in trained
        }
        self._anchor: list[Tensor] = []
        self._anchor_round: int | None = None
        self._anchor_digest: str | None = None

    @property
    def trainable_bytes(self) -> int:
        """The size of the trainable weights in bytes, which federated averaging sends each way."""
        return sum(weight.numel() * weight.element_size() for weight in self._weights)

    def copy(self) -> Replica:
        """Return a replica with weights of its own, at the same round. Tied tensors stay tied."""
        blocks = copy.deepcopy(self.blocks)
        first: dict[tuple[object, ...], Tensor] = {}
        for ours, theirs in zip(
            self.blocks.model.parameters(), blocks.model.parameters(), strict=True
        ):
            # deepcopy keeps a tied Parameter, but not two Parameters over one storage
            theirs.data = first.setdefault(storage(ours), theirs.data)
        return Replica(blocks, self.round)

    def catch_up(self, records: Iterable[Record]) -> None:
        """Apply the records of the rounds that this replica has not seen, and skip the others.

        Raises:
            ValueError: a round is missing.
        """
        for record in records:
            if record.round < self.round:
                continue
            if record.round > self.round:
                raise ValueError(
                    f"the replica is at round {self.round} and cannot apply the record of round"
                    f" {record.round}; send the records from round {self.round} on"
                )
            with HeldInterrupts():  # a record is applied whole or not at all
                apply(record, self.blocks.groups)
                self.round += 1

    def load(self, round: int, weights: Sequence[Tensor], expected: str) -> None:
        """Take over the weights of a round, bit for bit.

        Args:
            round: the round of the weights.
            weights: one tensor for each trainable parameter, in the order of the blocks, of its
                shape and dtype, on any device.
            expected: the digest of the whole model with these weights.

        Raises:
            ValueError: the digest would be another one; nothing has changed then.
        """
        new = {storage(old): tensor for old, tensor in zip(self._weights, weights, strict=True)}
        named = self.blocks.model.named_parameters()
        found = digest(((name, new.get(storage(p), p)) for name, p in named), known=self._frozen)
        if found != expected:
            raise ValueError(
                f"with the weights received the model has digest {found}, round {round} has"
                f" {expected}; start from the same base model"
            )
        self._anchor_round = None
        with HeldInterrupts():
            for weight, tensor in zip(self._weights, weights, strict=True):
                weight.detach().copy_(tensor)
            self.round = round

    def snapshot(self) -> None:
        """Keep the weights as they are now for `restore`, unless this round's are kept already."""
        if self._anchor_round == self.round:
            return
        if not self._anchor:
            self._anchor = [
                torch.empty(w.shape, dtype=w.dtype, pin_memory=w.is_cuda) for w in self._weights
            ]
        self._anchor_round = None  # invalid while it is written
        for kept, weight in zip(self._anchor, self._weights, strict=True):
            kept.copy_(weight.detach())
        self._anchor_round, self._anchor_digest = self.round, None

    def restore(self) -> None:
        """Return to the kept weights, bit for bit.

        Raises:
            RuntimeError: `snapshot` was not called in this round.
        """
        if self._anchor_round != self.round:
            raise RuntimeError(f"no snapshot of round {self.round}; call snapshot() before a step")
        with HeldInterrupts():
            for kept, weight in zip(self._anchor, self._weights, strict=True):
                weight.detach().copy_(kept)

    @contextmanager
    def local_steps(self) -> Iterator[None]:
        """Return to the global weights at the end of the `with` block, also after an exception."""
        self.snapshot()
        try:
            yield
        finally:
            self.restore()

    def digest(self) -> str:
        """Return the digest of the model's parameters as they are now (`journal.digest`).

        Frozen parameters are read once, when the replica is made. If there is a snapshot of this
        round, it is hashed once, and the weights are only compared with it bit by bit, which is
        several times faster.
        """
        if self._anchor_round != self.round or not self._at_anchor():
            return self._hash()
        if self._anchor_digest is None:
            self._anchor_digest = self._hash()
        return self._anchor_digest

    def _hash(self) -> str:
        return digest(self.blocks.model.named_parameters(), known=self._frozen)

    def _at_anchor(self) -> bool:
        return all(
            torch.equal(_bits(kept), _bits(weight.detach().cpu()))
            for kept, weight in zip(self._anchor, self._weights, strict=True)
        )


def _bits(tensor: Tensor) -> Tensor:
    """Return a tensor's bits as integers, so that NaN equals itself and -0.0 is not 0.0."""
    return tensor.contiguous().view(_BITS[tensor.element_size()])
