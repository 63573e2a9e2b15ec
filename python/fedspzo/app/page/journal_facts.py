"""Reads from a run's journal what its metrics do not have: projected gradients, rates, shares."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedspzo.errors import InputError
from fedspzo.federated.coefficients import weights
from fedspzo.federated.journal.merged_rounds import MergedRounds
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.rounds import Round
from fedspzo.federated.protocol.updates import EVERYBODY
from fedspzo.federated.settings import FederationConfig, OptimizerConfig
from fedspzo.journal.header import Header


@dataclass(frozen=True, kw_only=True)
class ClientFacts:
    """A client's part in a round.

    Attributes:
        examples: its number of examples.
        loss: mean training loss of its steps. None: not known, or private.
        share: its share of the round's update, from 0 to 1 (`shares_of_update`).
    """

    examples: int
    loss: float | None
    share: float


@dataclass(frozen=True, kw_only=True)
class RoundFacts:
    """One round.

    Attributes:
        gradients: for each block the root mean square of all clients' projected gradients. None:
            there is none.
        rates: the learning rate of each block.
        clients: those whose reports were used, by their ids.
    """

    gradients: tuple[float | None, ...]
    rates: tuple[float, ...]
    clients: Mapping[int, ClientFacts]


@dataclass(frozen=True, kw_only=True)
class JournalFacts:
    """A journal, as far as it can be read.

    Attributes:
        header: its header.
        config: the run's config as TOML sections; empty if the header has none.
        data: the hash of each data file.
        rounds: the rounds by their numbers, from 1.
        shared: all clients of a round have the same seeds.
        note: one line that says what could not be read. None: all was read.
    """

    header: Header
    config: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, str]
    rounds: Mapping[int, RoundFacts]
    shared: bool
    note: str | None


def read(path: Path) -> JournalFacts:
    """Read a journal up to its end, or up to the damage.

    Raises:
        InputError: the file cannot be read, or its header is damaged.
    """
    log = DecodedJournal(path, salvage=True)
    sizes = block_sizes(log.header)
    rounds: dict[int, RoundFacts] = {}
    note = None
    try:
        for _, content in log.entries():
            if isinstance(content, Round) and log.settings is not None:
                rounds[content.round + 1] = _facts(content, sizes, *log.settings)
            elif isinstance(content, MergedRounds):
                note = f"{path} was compacted, so it has no reports of the clients"
    except InputError as error:
        note = str(error)
    if log.reader.broken is not None:
        note = f"{path}: {log.reader.broken}"
    run = log.header.run or {}
    return JournalFacts(
        header=log.header,
        config=sections(run.get("config")),
        data={k: v for k, v in _table(run.get("data")).items() if isinstance(v, str)},
        rounds=rounds,
        shared=log.settings is not None and log.settings[0].seeds == "shared",
        note=note,
    )


def block_sizes(header: Header) -> npt.NDArray[np.float64]:
    """Return the number of weights of each block. A tied tensor counts once."""
    sizes = np.zeros(len(header.names))
    for parameter in header.parameters:
        if parameter.block and parameter.tied is None:
            sizes[parameter.block - 1] += math.prod(parameter.shape)
    return sizes


def sections(toml: object) -> dict[str, dict[str, Any]]:
    """Return the sections of a TOML document. It is empty if the text is none."""
    try:
        document = tomllib.loads(toml) if isinstance(toml, str) else {}
    except (ValueError, RecursionError):
        return {}
    return {name: table for name, table in document.items() if isinstance(table, dict)}


def shares_of_update(
    done: Round,
    sizes: npt.NDArray[np.float64],
    federation: FederationConfig,
    optimizer: OptimizerConfig,
) -> dict[int, float]:
    """Return each client's share of a round's update.

    With per-client seeds it is the share of the update's squared length. A term with coefficient c
    in a block of d weights has the expected squared length c^2 d, and directions that are drawn
    apart are almost orthogonal, so these lengths add up. With shared seeds clients move along the
    same directions, and the share is the client's weight in the mean.

    Args:
        done: the round.
        sizes: number of weights of each block.
        federation: the run's settings.
        optimizer: the step's settings.
    """
    entries = dict(done.update.entries)
    if federation.seeds == "shared" or EVERYBODY in entries:
        return weights(done.reports, federation.counting) if done.reports else {}
    wide = np.repeat(sizes, optimizer.directions)
    lengths = {
        client: float((scalars.values.astype(np.float64) ** 2 @ wide).sum())
        for client, scalars in entries.items()
    }
    total = sum(lengths.values())
    return {client: length / total for client, length in lengths.items()} if total else {}


def _facts(
    done: Round,
    sizes: npt.NDArray[np.float64],
    federation: FederationConfig,
    optimizer: OptimizerConfig,
) -> RoundFacts:
    share = shares_of_update(done, sizes, federation, optimizer)
    columns = [report.gradients.values.astype(np.float64) for report in done.reports]
    values = np.concatenate(columns) if columns else np.zeros((0, sum(optimizer.directions)))
    ends = np.cumsum(optimizer.directions)
    blocks = np.split(values, ends[:-1], axis=1)
    return RoundFacts(
        gradients=tuple(
            float(np.sqrt((block**2).mean())) if block.size else None for block in blocks
        ),
        rates=done.lr,
        clients={
            report.client: ClientFacts(
                examples=report.examples, loss=report.loss, share=share.get(report.client, 0.0)
            )
            for report in done.reports
        },
    )


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
