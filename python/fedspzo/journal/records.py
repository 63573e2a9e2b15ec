"""The journal's records, by which alone the global weights change, and the digest of weights.

A record is one round's terms. Whoever holds the base weights and applies the same records in the
same order holds the same bits, on any hardware and with any backend. The digest proves it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedspzo.blocks.shards import whole
from fedspzo.byte_reader import Reader
from fedspzo.choices import Stream
from fedspzo_kernels import parameter_key, perturb_

DIGEST_BYTES = 16

_RECORD = struct.Struct(f"<IBHQ{DIGEST_BYTES}s")  # round, flags, blocks, rounding seed, digest
_COUNT = struct.Struct("<I")
_STOCHASTIC, _DIGEST = 1, 2

Group = Sequence[tuple[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms that one round adds to one block: sum_k coeffs[k] z(seeds[k]), in this order.

    Attributes:
        seeds: the directions' seeds, uint64 (K,).
        coeffs: their coefficients, float32 (K,), finite.

    Raises:
        TypeError, ValueError: a dtype, a shape or a value is another one.
    """

    seeds: npt.NDArray[np.uint64]
    coeffs: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        for name, array, dtype in (
            ("seeds", self.seeds, np.uint64),
            ("coeffs", self.coeffs, np.float32),
        ):
            if array.dtype != dtype or array.ndim != 1:
                raise TypeError(
                    f"{name} is a {array.dtype} array of shape {array.shape};"
                    f" pass a {np.dtype(dtype)} array of shape (K,)"
                )
        if len(self.seeds) != len(self.coeffs):
            raise ValueError(
                f"coeffs has {len(self.coeffs)} entries for {len(self.seeds)} seeds;"
                " pass one coefficient a seed"
            )
        wrong = np.flatnonzero(~np.isfinite(self.coeffs))
        if wrong.size:
            value = self.coeffs[wrong[0]]
            raise ValueError(f"coeffs[{wrong[0]}] is {value}; a term's coefficient must be finite")


@dataclass(frozen=True, eq=False)
class Record:
    """Leads from the weights of `round` to those of `round + 1`.

    Attributes:
        round: the number of records before it.
        terms: one `Terms` for each block, block 1 first.
        rounding_seed: the seed of stochastic rounding to the weights' dtype. None (default): the
            weights are rounded to nearest.
        stream: the noise stream of its directions. Default "normal-v1".
    """

    round: int
    terms: tuple[Terms, ...]
    rounding_seed: int | None = None
    stream: Stream = "normal-v1"

    def encode(self, digest: str | None = None) -> bytes:
        """Return the record with its seeds as bytes, 12 a term (docs/journal.md, kind 3).

        Args:
            digest: the digest of the weights after it; None if it was not computed.
        """
        flags = _STOCHASTIC * (self.rounding_seed is not None) + _DIGEST * (digest is not None)
        known = bytes.fromhex(digest or "00" * DIGEST_BYTES)
        head = _RECORD.pack(self.round, flags, len(self.terms), self.rounding_seed or 0, known)
        return head + b"".join(
            _COUNT.pack(len(terms.seeds))
            + terms.seeds.astype("<u8").tobytes()
            + terms.coeffs.astype("<f4").tobytes()
            for terms in self.terms
        )

    @classmethod
    def decode(cls, body: bytes, stream: Stream = "normal-v1") -> tuple[Record, str | None]:
        """Return the record and the digest that these bytes hold; the digest may be None.

        Args:
            body: what `encode` returned.
            stream: the noise stream, which a journal's header names for all records.

        Raises:
            ValueError: the bytes hold no record.
        """
        reader = Reader(body)
        number, flags, blocks, seed, known = reader.take(_RECORD)
        if flags > _STOCHASTIC + _DIGEST:
            raise ValueError(f"flags is {flags}; known are 0 to {_STOCHASTIC + _DIGEST}")
        terms = []
        for _ in range(blocks):
            count = reader.take(_COUNT)[0]
            seeds = np.frombuffer(reader.read(8 * count), dtype="<u8").astype(np.uint64)
            coeffs = np.frombuffer(reader.read(4 * count), dtype="<f4").astype(np.float32)
            terms.append(Terms(seeds, coeffs))
        reader.finish()
        record = cls(number, tuple(terms), seed if flags & _STOCHASTIC else None, stream)
        return record, known.hex() if flags & _DIGEST else None


def apply(record: Record, groups: Sequence[Group]) -> None:
    """Add a record's terms to the weights, in place, by one `perturb_` call a block.

    Args:
        record: the record to add.
        groups: the (name, parameter) pairs of each block; a name gives the parameter its noise.

    Raises:
        ValueError: the record has another number of blocks; no weight has changed then.
    """
    if len(record.terms) != len(groups):
        raise ValueError(
            f"the record of round {record.round} has terms for {len(record.terms)} blocks, the"
            f" model has {len(groups)}; cut the model as the run did"
        )
    for terms, group in zip(record.terms, groups, strict=True):
        if not len(terms.seeds):
            continue
        perturb_(
            [tensor for _, tensor in group],
            [parameter_key(name) for name, _ in group],
            torch.from_numpy(terms.seeds.view(np.int64)),
            torch.from_numpy(terms.coeffs),
            rounding="nearest" if record.rounding_seed is None else "stochastic",
            rounding_seed=record.rounding_seed,
            stream=record.stream,
        )


def merged(
    records: Iterable[Record], groups: Sequence[Group], *, terms: int = 4096
) -> Iterator[Record]:
    """Join consecutive records into fewer ones that change the weights alike, to the bit.

    In float32 a sum is rounded to the weights' dtype after every term, so consecutive rounds can be
    added in one pass over the weights. In bfloat16 and float16 a round's sum is rounded once, so
    each round stays a pass of its own.

    Args:
        records: consecutive records.
        groups: the (name, parameter) pairs of each block.
        terms: number of a block's terms at which a pass is full. A longer record is not divided.

    Yields:
        Records, each with the number of its last round.
    """
    whole = all(tensor.dtype == torch.float32 for group in groups for _, tensor in group)
    waiting: list[Record] = []
    count = 0
    for record in records:
        longest = max((len(block.seeds) for block in record.terms), default=0)
        if waiting and (not whole or count + longest > terms):
            yield _joined(waiting)
            waiting, count = [], 0
        waiting.append(record)
        count += longest
    if waiting:
        yield _joined(waiting)


def _joined(records: Sequence[Record]) -> Record:
    if len(records) == 1:
        return records[0]
    blocks = zip(*(record.terms for record in records), strict=True)
    return Record(
        records[-1].round,
        tuple(
            Terms(
                np.concatenate([terms.seeds for terms in block]),
                np.concatenate([terms.coeffs for terms in block]),
            )
            for block in blocks
        ),
        stream=records[-1].stream,
    )


def tensor_digest(tensor: Tensor) -> bytes:
    """Return BLAKE2b-128 of a tensor's bits in row-major order, 16 bytes.

    A sharded tensor is gathered, for which all processes have to call this together.
    """
    data = whole(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(data.numpy().data, digest_size=DIGEST_BYTES).digest()


def digest(named: Iterable[tuple[str, Tensor]], *, known: Mapping[str, bytes] | None = None) -> str:
    """Return the digest of weights: BLAKE2b-128 over names, dtypes, shapes and tensors' digests.

    The tensors are sorted by name.

    Args:
        named: (name, tensor) pairs, such as `model.named_parameters()`, of any dtype and device;
            tied storages are allowed.
        known: the `tensor_digest` of tensors that need not be read again, by name. Default: none.

    Returns:
        32 hexadecimal digits. They are equal for two models if and only if all bits are, but for a
        collision, of probability 2**-128.

    Raises:
        ValueError: two tensors have the same name.
    """
    known = known or {}
    total = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"fedspzo-digest-1")
    last = None
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        if name == last:
            raise ValueError(f"the name {name!r} is there twice; give each tensor its own")
        last = name
        shape = "x".join(map(str, tensor.shape))
        header = f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{shape}\0"
        total.update(header.encode())
        total.update(known.get(name) or tensor_digest(tensor))
    return total.hexdigest()
