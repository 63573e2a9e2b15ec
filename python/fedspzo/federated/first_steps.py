"""Begins a run: finds what its settings leave open, by steps of clients that answer.

`perturbations` and `newton` are chosen from costs that one client's step measures, and the rates of
lr="auto" are found by steps of several clients, before the first round. Each step is a `Probe` that
goes through the link, as a round's plans do. A client that does not answer, or fails, is named and
left out of these steps.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from fedspzo import estimators
from fedspzo.blocks.cut import Blocks
from fedspzo.federated.journal.rounds import Spent
from fedspzo.federated.protocol.messages import Plan, Report
from fedspzo.federated.protocol.probes import Probe, ProbeReport, StepLosses
from fedspzo.journal.replica import Replica
from fedspzo.optim.spzo import SPZO

from .exchange import Answers, Link, RemoteLink, send
from .found_rates import FoundRates, collect, probe_clients
from .optimizers import fitting, measures, probing, resolve, retake
from .rejections import QuorumError
from .server import Server
from .settings import FederationConfig, OptimizerConfig

logger = logging.getLogger(__name__)

A = TypeVar("A", Report, ProbeReport)


def begin(
    base: Replica,
    federation: FederationConfig,
    settings: OptimizerConfig,
    link: Link,
    sizes: Mapping[int, int] | None = None,
) -> tuple[Server, Spent]:
    """Create the server of a new run, and return what the steps before its first round cost.

    Args:
        base: the base model.
        federation: the run's settings.
        settings: the step's settings, as the user gave them.
        link: carries messages to the clients.
        sizes: the number of examples of each client. Default None: if it is needed, each client
            tells it in a report without steps.

    Raises:
        QuorumError: steps are needed, and no client can take them.
        ValueError: the settings do not fit the model.
    """
    used, found, spent = first_settings(base, federation, settings, link, sizes)
    return Server(base, federation, used, found), spent


def first_settings(
    base: Replica,
    federation: FederationConfig,
    settings: OptimizerConfig,
    link: Link,
    sizes: Mapping[int, int] | None = None,
) -> tuple[OptimizerConfig, FoundRates | None, Spent]:
    """Find the settings of the first round, and what finding them cost.

    The arguments and errors are those of `begin`.

    Returns:
        The settings, resolved, but for lr="auto"; what decides the rates then; and the costs.
    """
    first = FirstSteps(base, federation, link, sizes)
    used = first.measure(settings)
    found = first.find(used) if used.lr == "auto" else None
    return used, found, first.spent


class FirstSteps:
    """Asks clients for the steps before the first round.

    The arguments are those of `begin`.

    Attributes:
        spent: the costs so far.
    """

    def __init__(
        self,
        base: Replica,
        federation: FederationConfig,
        link: Link,
        sizes: Mapping[int, int] | None = None,
    ) -> None:
        self.spent = Spent()
        self._blocks = base.blocks
        self._digest = base.digest()
        self._federation = federation
        self._link = link
        self._sizes = None if sizes is None else dict(sizes)
        self._left = list(range(federation.clients) if sizes is None else sizes)
        self._asked = len(self._left)
        self._failures: Answers[Report] = Answers(Report.decode)

    def measure(self, settings: OptimizerConfig) -> OptimizerConfig:
        """Resolve the settings. If they leave it open, a client's step measures the blocks' costs.

        Args:
            settings: the settings, as the user gave them.
        """
        if not measures(settings):
            return resolve(settings, self._blocks)
        fitting(self._blocks, settings)  # what does not fit is no client's fault
        known = _any_settings(settings, self._blocks)
        while True:
            client = self._left[0]
            report = self._ask(client, known)
            if report is not None:
                try:
                    return resolve(settings, self._blocks, report.cost_shares)
                except ValueError as error:
                    self._leave_out(client, error)

    def find(self, settings: OptimizerConfig) -> FoundRates:
        """Find the first round's rates by steps on the examples of several clients.

        One client's examples may all have one label, so the clients are drawn by `probe_clients`.
        Each step goes on where the one before ended. If a client fails, others are drawn, and the
        steps are kept up to the first one that is now another client's.

        Args:
            settings: the settings, resolved, with lr="auto".
        """
        taken: list[tuple[int, StepLosses]] = []
        while True:
            if self._sizes is None:
                self._sizes = self._ask_sizes(settings)
            counting = self._federation.counting
            drawn = [self._left[n] for n in probe_clients(self._sizes_left(), counting)]
            while [client for client, _ in taken] != drawn[: len(taken)]:
                taken.pop()
            follower = probing(self._blocks, settings, samples=self._federation.samples)
            for _, losses in taken:
                retake(follower, losses, move=False)
            for client in drawn[len(taken) :]:
                step = self._step(client, settings, [losses for _, losses in taken], follower)
                if step is None:
                    break
                taken.append((client, step))
            else:
                return self._collected(follower, settings)

    def _sizes_left(self) -> list[int]:
        """Return the numbers of examples of the clients that are not left out."""
        assert self._sizes is not None
        return [self._sizes[client] for client in self._left]

    def _collected(self, follower: SPZO, settings: OptimizerConfig) -> FoundRates:
        """Collect the rates that an optimizer has found so far. Raise ValueError as `collect`."""
        assert follower.auto is not None
        return collect(follower.auto, self._sizes_left(), self._federation, settings.directions)

    def _step(
        self,
        client: int,
        settings: OptimizerConfig,
        earlier: Sequence[StepLosses],
        follower: SPZO,
    ) -> StepLosses | None:
        """Ask a client for a step, and return its losses. None: the client is left out.

        Args:
            client: the client's id.
            settings: the step's settings.
            earlier: the losses of the steps before.
            follower: an optimizer that has learned from these steps, and learns from this one.
        """
        report = self._ask(client, settings, earlier)
        if report is None:
            return None
        try:
            retake(follower, report.losses, move=False)
            self._collected(follower, settings)  # losses of float64 may be absurdly large
        except Exception as error:  # whatever one client says, the run goes on
            self._leave_out(client, error)
            return None
        return report.losses

    def _ask(
        self, client: int, settings: OptimizerConfig, earlier: Sequence[StepLosses] = ()
    ) -> ProbeReport | None:
        """Send a client a probe, and return its report. None: the client is left out."""
        probe = Probe(
            client=client,
            digest=self._digest,
            batch_size=self._federation.batch_size,
            optimizer=settings,
            samples=self._federation.samples,
            earlier=tuple(earlier),
        )
        report = self._answer(client, probe.encode(), Answers(ProbeReport.decode))
        if report is not None:
            if report.step == probe.step:
                self.spent = replace(self.spent, forwards=self.spent.forwards + report.forwards)
                return report
            self._leave_out(client, reason=f"its report is of step {report.step}")
        return None

    def _ask_sizes(self, settings: OptimizerConfig) -> dict[int, int]:
        """Return the number of examples of each client that answers a plan without steps."""
        federation, sizes = self._federation, {}
        plan = Plan(
            round=0,
            client=0,
            run_seed=federation.seed,
            digest=self._digest,
            train=False,
            local_steps=federation.local_steps,
            batch_size=federation.batch_size,
            seeds=federation.seeds,
            optimizer=_any_settings(settings, self._blocks),
            updates=(),
        )
        plans = {client: replace(plan, client=client).encode() for client in self._left}
        if isinstance(self._link, RemoteLink):
            for client, message in plans.items():
                self._link.start(client, message, ())
        for client, message in plans.items():
            report = self._answer(client, message, Answers(Report.decode))
            if report is not None:
                sizes[client] = report.examples
        return sizes

    def _answer(self, client: int, message: bytes, answers: Answers[A]) -> A | None:
        """Return a client's last answer to a message. None: it has none, and is left out."""
        send(self._link, client, message, answers)
        self.spent = replace(
            self.spent,
            bytes_down=self.spent.bytes_down + answers.down,
            bytes_up=self.spent.bytes_up + answers.up,
        )
        usable = [report for report in answers.reports if report.digest == self._digest]
        if usable:
            return usable[-1]
        if answers.reports:
            answers.reject(client, "its weights have another digest than the base")
        reason = answers.rejected[-1].reason if answers.rejected else "no report came"
        self._leave_out(client, answers.cause, reason)
        return None

    def _leave_out(
        self, client: int, cause: BaseException | None = None, reason: str | None = None
    ) -> None:
        reason = f"{type(cause).__name__}: {cause}" if reason is None else reason
        self._failures.reject(client, reason, cause)
        logger.warning("before round 0: %s", self._failures.rejected[-1])
        self._left.remove(client)
        if not self._left:
            failures = self._failures
            error = QuorumError(0, (), failures.rejected, asked=self._asked, needed=1)
            raise error from failures.cause


def _any_settings(settings: OptimizerConfig, blocks: Blocks) -> OptimizerConfig:
    """Return settings that can be sent, with any perturbations and rates where none are known."""
    if settings.perturbations is None and not estimators.find(settings.estimator).joint:
        settings = replace(settings, perturbations=(2,) * len(blocks.groups))
    lr = 1.0 if settings.lr == "auto" else settings.lr
    return resolve(replace(settings, lr=lr, newton=settings.newton or False), blocks)
