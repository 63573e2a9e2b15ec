"""Federated fine-tuning: many devices, private text, and scalars alone between them.

Names are imported when they are first used, so that `settings` can be read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import Client, DigestError, PrivateTask, Task
    from .exchange import Link
    from .messages import Plan, Report
    from .partition import dirichlet, iid
    from .rejections import QuorumError, Rejection
    from .results import RoundResult, RunResult
    from .server import Server
    from .settings import FederationConfig, OptimizerConfig
    from .simulation import run

_HOME = {
    "Client": "client",
    "DigestError": "client",
    "FederationConfig": "settings",
    "Link": "exchange",
    "OptimizerConfig": "settings",
    "Plan": "messages",
    "PrivateTask": "client",
    "QuorumError": "rejections",
    "Rejection": "rejections",
    "Report": "messages",
    "RoundResult": "results",
    "RunResult": "results",
    "Server": "server",
    "Task": "client",
    "dirichlet": "partition",
    "iid": "partition",
    "run": "simulation",
}

__all__ = [
    "Client",
    "DigestError",
    "FederationConfig",
    "Link",
    "OptimizerConfig",
    "Plan",
    "PrivateTask",
    "QuorumError",
    "Rejection",
    "Report",
    "RoundResult",
    "RunResult",
    "Server",
    "Task",
    "dirichlet",
    "iid",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
