"""Counts what each client did: rounds, rejections, downloads, and its share of the updates."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from .recorded import RecordedRun

MOST_ROUNDS, MOST_CLIENTS = 120, 48
"""Size of a figure of clients. More rounds are put together, and of more clients some are shown."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a client did in a round, or in some consecutive rounds together.

    Attributes:
        client: its id.
        first, last: the rounds.
        share: its mean share of these rounds' updates. None: not known, or it has none.
        rejected: number of its reports that were rejected, or did not come.
        reason: the reason of the last rejection.
        downloads: how often it was sent the weights.
    """

    client: int
    first: int
    last: int
    share: float | None
    rejected: int
    reason: str | None
    downloads: int


@dataclass(frozen=True, kw_only=True)
class ClientTotals:
    """What a client did in a whole run.

    Attributes:
        client: its id.
        examples: its number of examples. None: not known.
        asked: number of rounds in which it was asked.
        rejected: number of its reports that were rejected, or did not come.
        reason: the commonest reason.
        downloads: how often it was sent the weights.
        share: its mean share of the updates, over all rounds with reports. None: not known.
        loss: its mean training loss in the last round that has one. None: not known.
    """

    client: int
    examples: int | None
    asked: int
    rejected: int
    reason: str | None
    downloads: int
    share: float | None
    loss: float | None


def totals(run: RecordedRun) -> list[ClientTotals]:
    """Return each client's totals, by its id."""
    asked: Counter[int] = Counter()
    downloads: Counter[int] = Counter()
    reasons: dict[int, Counter[str]] = {}
    for row in run.rows:
        asked.update(row["clients"])
        downloads.update(row["downloads"])
        for one in row["rejected"]:
            reasons.setdefault(one["client"], Counter())[str(one.get("reason", ""))] += 1
    rounds = {} if run.journal is None else run.journal.rounds
    share: Counter[int] = Counter()
    examples: dict[int, int] = {}
    losses: dict[int, float] = {}
    for done in rounds.values():
        for client, facts in done.clients.items():
            share[client] += facts.share  # type: ignore[assignment]
            examples[client] = facts.examples
            if facts.loss is not None:
                losses[client] = facts.loss
    found = []
    for client in sorted({*asked, *reasons}):
        why = reasons.get(client, Counter())
        found.append(
            ClientTotals(
                client=client,
                examples=examples.get(client),
                asked=asked[client],
                rejected=why.total(),
                reason=why.most_common(1)[0][0] if why else None,
                downloads=downloads[client],
                share=share[client] / len(rounds) if rounds else None,
                loss=losses.get(client),
            )
        )
    return found


def shown(found: list[ClientTotals]) -> list[int]:
    """Return the ids of the clients that a figure shows: those with the most rejections first."""
    worst = sorted(found, key=lambda one: (-one.rejected, -(one.share or 0.0), one.client))
    return sorted(one.client for one in worst[:MOST_CLIENTS])


def cells(run: RecordedRun, clients: list[int]) -> list[Cell]:
    """Return the cells of the figure of some clients."""
    rows = [row for row in run.rows if row["round"] > 0]
    width = math.ceil(len(rows) / MOST_ROUNDS) or 1
    facts = {} if run.journal is None else run.journal.rounds
    wanted = set(clients)
    found = []
    for start in range(0, len(rows), width):
        together = rows[start : start + width]
        asked: Counter[int] = Counter()
        downloads: Counter[int] = Counter()
        reasons: dict[int, list[str]] = {}
        shares: dict[int, list[float]] = {}
        for row in together:
            asked.update(row["clients"])
            downloads.update(row["downloads"])
            for one in row["rejected"]:
                reasons.setdefault(one["client"], []).append(str(one.get("reason", "")))
            if row["round"] in facts:
                for client, fact in facts[row["round"]].clients.items():
                    shares.setdefault(client, []).append(fact.share)
        for client in sorted(wanted & {*asked, *reasons}):
            mine, why = shares.get(client), reasons.get(client, [])
            found.append(
                Cell(
                    client=client,
                    first=together[0]["round"],
                    last=together[-1]["round"],
                    share=sum(mine) / len(mine) if mine else None,
                    rejected=len(why),
                    reason=why[-1] if why else None,
                    downloads=downloads[client],
                )
            )
    return found
