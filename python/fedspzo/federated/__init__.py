"""Federated fine-tuning: clients keep their examples, and exchange only scalars with a server.

May import `optim`, `journal` and the packages below them. Names are imported when they are first
used, so that the settings can be read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedspzo.lazy import lazy_names

if TYPE_CHECKING:
    from fedspzo.privacy import Privacy

    from .aggregation import AggregationRule, register_rule
    from .client import Client
    from .exchange import Link
    from .journal.compaction import compact
    from .journal.writer import RunJournal
    from .participation import sample
    from .partition import dirichlet, iid
    from .protocol.messages import Plan, Report
    from .protocol.probes import Probe, ProbeReport
    from .rejections import DigestError, QuorumError, Rejection
    from .results import RoundResult, RunResult
    from .server import Server
    from .settings import FederationConfig, OptimizerConfig
    from .simulation import run
    from .strategy import Played, Reply, Setup, Strategy
    from .task import PrivateTask, Task

_HOMES = {
    "AggregationRule": ".aggregation",
    "Client": ".client",
    "DigestError": ".rejections",
    "FederationConfig": ".settings",
    "Link": ".exchange",
    "OptimizerConfig": ".settings",
    "Plan": ".protocol.messages",
    "Played": ".strategy",
    "Privacy": "fedspzo.privacy",
    "PrivateTask": ".task",
    "Probe": ".protocol.probes",
    "ProbeReport": ".protocol.probes",
    "QuorumError": ".rejections",
    "Rejection": ".rejections",
    "Reply": ".strategy",
    "Report": ".protocol.messages",
    "RoundResult": ".results",
    "RunJournal": ".journal.writer",
    "RunResult": ".results",
    "Server": ".server",
    "Setup": ".strategy",
    "Strategy": ".strategy",
    "Task": ".task",
    "compact": ".journal.compaction",
    "dirichlet": ".partition",
    "iid": ".partition",
    "register_rule": ".aggregation",
    "run": ".simulation",
    "sample": ".participation",
}

__all__ = [
    "AggregationRule",
    "Client",
    "DigestError",
    "FederationConfig",
    "Link",
    "OptimizerConfig",
    "Plan",
    "Played",
    "Privacy",
    "PrivateTask",
    "Probe",
    "ProbeReport",
    "QuorumError",
    "Rejection",
    "Reply",
    "Report",
    "RoundResult",
    "RunJournal",
    "RunResult",
    "Server",
    "Setup",
    "Strategy",
    "Task",
    "compact",
    "dirichlet",
    "iid",
    "register_rule",
    "run",
    "sample",
]

__getattr__ = lazy_names(__name__, _HOMES)
