"""Who takes part in a round."""

from __future__ import annotations

from fedspzo.federated.protocol.updates import sample_seed

from .partition import draw
from .settings import FederationConfig


def sample(federation: FederationConfig, round: int) -> tuple[int, ...]:
    """Draw the clients of a round, ascending: a function of the run's seed and the round alone."""
    drawn = draw(federation.clients, federation.participants, sample_seed(federation.seed, round))
    return tuple(sorted(int(client) for client in drawn))
