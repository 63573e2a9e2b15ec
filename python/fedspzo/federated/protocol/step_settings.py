"""The settings of a client's step, as they stand in a message."""

from __future__ import annotations

import struct
from typing import get_args

from fedspzo import estimators
from fedspzo.byte_reader import Reader
from fedspzo.choices import EvaluationMode, Rounding, Sides, Stream
from fedspzo.federated.settings import OptimizerConfig

from .framing import from_optional, pick, to_optional

_SETTINGS = struct.Struct("<BBBBBdBB")
_BLOCK = struct.Struct("<Hd")  # perturbations, learning rate

_SIDES = (None, *get_args(Sides))
_ROUNDINGS = get_args(Rounding)
_EVALUATIONS = (None, *get_args(EvaluationMode))
_NEWTON = (None, False, True)
_STREAMS = get_args(Stream)


def check_resolved(settings: OptimizerConfig) -> None:
    """Raise ValueError if the settings still depend on a model's dtype."""
    if settings.rounding is None:
        raise ValueError("optimizer.rounding is None; resolve it before it travels")


def encode_settings(settings: OptimizerConfig) -> bytes:
    """Return the bytes inside a message (docs/federation.md). The settings are resolved."""
    name = settings.estimator.encode()
    counts = settings.perturbations
    counts = counts if isinstance(counts, tuple) else settings.directions
    body = _SETTINGS.pack(
        _SIDES.index(settings.sides),
        _ROUNDINGS.index(settings.rounding),
        _EVALUATIONS.index(settings.evaluation),
        _STREAMS.index(settings.stream),
        _NEWTON.index(settings.newton),
        from_optional(settings.eps),
        len(counts),
        len(name),
    )
    return body + name + b"".join(map(_BLOCK.pack, counts, settings.learning_rates))


def decode_settings(reader: Reader) -> OptimizerConfig:
    """Decode the settings that come next in a message. Raise ValueError if they are invalid."""
    sides, rounding, evaluation, stream, newton, eps, blocks, length = reader.take(_SETTINGS)
    name = reader.read(length).decode("ascii", errors="backslashreplace")
    joint = estimators.find(name).joint
    pairs = [reader.take(_BLOCK) for _ in range(blocks)]
    counts, rates = tuple(count for count, _ in pairs), tuple(rate for _, rate in pairs)
    return OptimizerConfig(
        lr=rates,
        estimator=name,
        sides=pick("sides", sides, _SIDES),
        perturbations=counts[0] if joint and blocks == 1 else counts,
        eps=to_optional(eps),
        rounding=pick("rounding", rounding, _ROUNDINGS),
        evaluation=pick("evaluation", evaluation, _EVALUATIONS),
        stream=pick("stream", stream, _STREAMS),
        newton=pick("newton", newton, _NEWTON),
    )
