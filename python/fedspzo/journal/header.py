"""The header of a journal: the weights that its records start from, and how to read them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fedspzo import __version__
from fedspzo.blocks.cut import Blocks
from fedspzo.blocks.parameters import storage
from fedspzo.checks import check_text, check_whole
from fedspzo.choices import Stream
from fedspzo_kernels import STREAMS, parameter_key

from .records import DIGEST_BYTES, digest


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """Describes one parameter of the model.

    Attributes:
        name: its fully qualified name.
        shape: its shape.
        dtype: the name of its torch dtype, such as "float32".
        key: the key of its noise, a hash of its name, as 16 hexadecimal digits.
        block: the number of its block, from 1; 0: no record changes it.
        tied: the name of the parameter whose memory it shares and with which it changes, or None.

    Raises:
        ValueError: a value is wrong; the message names it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    key: str
    block: int
    tied: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("name", self.name), ("key", self.key), ("dtype", self.dtype)):
            check_text(name, value)
        if self.tied is not None:
            check_text("tied", self.tied)
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(
                f"parameter {self.name!r} has dtype {self.dtype!r}, which torch has not"
            )
        for size in self.shape:
            check_whole(f"shape of {self.name!r}", size, 0, 2**63 - 1)
        check_whole(f"block of {self.name!r}", self.block, 0, 2**16 - 1)


@dataclass(frozen=True, kw_only=True)
class Header:
    """Describes a journal. It is the journal's first record.

    Attributes:
        base: the digest of the base weights, 32 hexadecimal digits.
        source: the origin of the base weights: a hub id, a path or a name. People read it, and
            a replay loads the weights from it by default.
        parameters: all parameters of the model, frozen ones too.
        model: the way in which `models.pretrained` loads the base, for a journal of `fedspzo run`.
            None (default): the base is tensors by name.
        run: a federation's settings (docs/journal.md). None (default): the records carry their
            seeds.
        stream: the name of the noise stream.
        program: the program that wrote the journal.
    """

    base: str
    source: str
    parameters: tuple[Parameter, ...]
    model: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None
    stream: Stream = "normal-v1"
    program: str = f"fedspzo {__version__}"

    @classmethod
    def of(
        cls,
        blocks: Blocks,
        source: str,
        *,
        base: str | None = None,
        model: Mapping[str, Any] | None = None,
        run: Mapping[str, Any] | None = None,
        stream: Stream = "normal-v1",
    ) -> Header:
        """Make the header of a journal that starts from a model's weights as they are now.

        Args:
            blocks: the model, cut as the records will need it.
            source: the origin of its weights.
            base: the digest of its weights. Default: it is computed.
            model: as the attribute.
            run: as the attribute.
            stream: as the attribute.
        """
        named = list(blocks.model.named_parameters())
        block = {name: n for n, group in enumerate(blocks.groups, 1) for name, _ in group}
        owner = {storage(p): name for group in blocks.groups for name, p in group}
        first: dict[Any, str] = {}
        parameters = []
        for name, parameter in named:
            place = storage(parameter)
            original = owner.get(place) or first.setdefault(place, name)
            parameters.append(
                Parameter(
                    name=name,
                    shape=tuple(parameter.shape),
                    dtype=_dtype(parameter),
                    key=f"{parameter_key(name):016x}",
                    block=block.get(name, 0),
                    tied=original if original != name else None,
                )
            )
        return cls(
            base=base or digest(named),
            source=source,
            parameters=tuple(parameters),
            model=model,
            run=run,
            stream=stream,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the journal's first record."""
        return asdict(self)

    @classmethod
    def from_json(cls, header: Mapping[str, Any]) -> Header:
        """Return the header that a JSON object holds.

        Raises:
            ValueError: a key is missing or unknown, or a value is wrong; the message names it.
        """
        _check_keys("header", header, cls)
        rows = header["parameters"]
        if not isinstance(rows, list | tuple):
            raise ValueError("parameters is no list")
        for row in rows:
            _check_keys("a parameter of the header", row, Parameter)
            if not isinstance(row["shape"], list | tuple):
                raise ValueError(f"shape of {row['name']!r} is no list")
        parameters = tuple(Parameter(**{**row, "shape": tuple(row["shape"])}) for row in rows)
        for parameter in parameters:
            key = f"{parameter_key(parameter.name):016x}"
            if parameter.key != key:
                raise ValueError(
                    f"parameter {parameter.name!r} has key {parameter.key}, this fedspzo computes"
                    f" {key}"
                )
        for name in ("base", "source", "stream", "program"):
            check_text(name, header[name])
        for name in ("model", "run"):
            if not isinstance(header[name], dict | None):
                raise ValueError(f"{name} is no JSON object")
        if header["stream"] not in STREAMS:
            raise ValueError(f"stream is {header['stream']!r}; known are {', '.join(STREAMS)}")
        if not re.fullmatch(f"[0-9a-f]{{{2 * DIGEST_BYTES}}}", header["base"]):
            raise ValueError(f"base is {header['base']!r}; it should be a digest")
        return cls(**{**header, "parameters": parameters})

    @property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """The names of each block's parameters, in the order of the header."""
        count = max((parameter.block for parameter in self.parameters), default=0)
        return tuple(
            tuple(p.name for p in self.parameters if p.block == number)
            for number in range(1, count + 1)
        )

    def groups(self, tensors: Mapping[str, Tensor]) -> list[list[tuple[str, Tensor]]]:
        """Return each block's (name, tensor) pairs, as `journal.apply` takes them.

        Args:
            tensors: the model's parameters by name.

        Raises:
            ValueError: a parameter is missing, or has another shape or dtype; the message names it.
        """
        for p in self.parameters:
            found = tensors.get(p.name)
            if found is None:
                raise ValueError(f"the model has no parameter {p.name!r}, the journal's has")
            if (tuple(found.shape), _dtype(found)) != (p.shape, p.dtype):
                raise ValueError(
                    f"the model's {p.name!r} is {_dtype(found)} of shape {tuple(found.shape)}, the"
                    f" journal's {p.dtype} of shape {p.shape}"
                )
        return [[(name, tensors[name]) for name in group] for group in self.names]


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_keys(what: str, table: object, cls: type) -> None:
    if not isinstance(table, dict):
        raise ValueError(f"{what} is no JSON object")
    expected: Sequence[str] = [field.name for field in fields(cls)]
    if set(table) != set(expected):
        odd = sorted(set(table) ^ set(expected))
        raise ValueError(f"{what} has other keys than {', '.join(expected)}: {', '.join(odd)}")
