"""Federations on Flower: its ServerApp and ClientApp around fedspzo's server and clients.

Flower carries the messages of docs/federation.md as bytes, and starts the processes that handle
them. `FlowerLink` is the server's side, `client_app` the clients', and `simulate` runs both on one
machine by Flower's simulation engine. May import `federated`, what is below it, and `flwr`.

A process that imports this package before `flwr` sends no telemetry of Flower or Ray, unless its
environment says otherwise.
"""

from __future__ import annotations

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# the simulation's processes share the GPUs; without this Ray would hide them
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from .client import client_app
from .link import ClientFailed, FlowerLink
from .simulation import simulate

__all__ = ["ClientFailed", "FlowerLink", "client_app", "simulate"]
