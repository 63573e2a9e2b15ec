"""Participation: it samples the clients of a round."""

from __future__ import annotations

from fedspzo.federated.protocol.updates import sample_seed

from .partition import draw
from .settings import FederationConfig


def sample(federation: FederationConfig, round: int) -> tuple[int, ...]:
    """Sample the clients of a round.

    Args:
        federation: the run's settings.
        round: the round, from 0.

    Returns:
        The clients' ids, ascending. They are a function of the arguments alone.
    """
    drawn = draw(federation.clients, federation.participants, sample_seed(federation.seed, round))
    return tuple(sorted(int(client) for client in drawn))
