"""Federated fine-tuning: many devices, private text, and scalars alone between them.

May import `optim`, `journal` and what is below them. Names are imported when they are first used,
so that the settings can be read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedspzo.lazy import lazy_names

if TYPE_CHECKING:
    from fedspzo.privacy import Privacy

    from .client import Client, DigestError, PrivateTask, Task
    from .exchange import Link
    from .journal.compaction import compact
    from .journal.writer import RunJournal
    from .partition import dirichlet, iid
    from .protocol.messages import Plan, Report
    from .rejections import QuorumError, Rejection
    from .results import RoundResult, RunResult
    from .server import Server
    from .settings import FederationConfig, OptimizerConfig
    from .simulation import run

_HOMES = {
    "Client": ".client",
    "DigestError": ".client",
    "FederationConfig": ".settings",
    "Link": ".exchange",
    "OptimizerConfig": ".settings",
    "Plan": ".protocol.messages",
    "Privacy": "fedspzo.privacy",
    "PrivateTask": ".client",
    "QuorumError": ".rejections",
    "Rejection": ".rejections",
    "Report": ".protocol.messages",
    "RoundResult": ".results",
    "RunJournal": ".journal.writer",
    "RunResult": ".results",
    "Server": ".server",
    "Task": ".client",
    "compact": ".journal.compaction",
    "dirichlet": ".partition",
    "iid": ".partition",
    "run": ".simulation",
}

__all__ = [
    "Client",
    "DigestError",
    "FederationConfig",
    "Link",
    "OptimizerConfig",
    "Plan",
    "Privacy",
    "PrivateTask",
    "QuorumError",
    "Rejection",
    "Report",
    "RoundResult",
    "RunJournal",
    "RunResult",
    "Server",
    "Task",
    "compact",
    "dirichlet",
    "iid",
    "run",
]

__getattr__ = lazy_names(__name__, _HOMES)
