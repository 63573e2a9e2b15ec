"""Messages of any bytes: a plan or report is refused in one line, or can be used."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federated_toys import toy
from fuzzing import accidents, damage, fuzz
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_json import DIGEST, check_line

from fedspzo.baselines.pool_messages import PoolPlan, PoolReport, as_pairs
from fedspzo.federated.optimizers import probing, retake
from fedspzo.federated.protocol.framing import frame
from fedspzo.federated.protocol.messages import Plan, Report
from fedspzo.federated.protocol.probes import DTYPES, Probe, ProbeReport, StepLosses
from fedspzo.federated.protocol.updates import EVERYBODY, Scalars, Update, record
from fedspzo.federated.settings import OptimizerConfig

FRAME, CHECKSUM = 10, 4

Message = Plan | Report | Probe | ProbeReport

PROBING = OptimizerConfig(
    lr="auto", perturbations=(1, 2), rounding="nearest", sides="one", newton=False
)
EVALUATIONS = 7
"""Those of a step of PROBING without a trial."""


@st.composite
def scalars(draw: Any, local_steps: int, columns: int) -> Scalars:
    steps = sorted(draw(st.sets(st.integers(0, local_steps - 1), max_size=3)))
    width = {"width": 32, "allow_nan": False, "allow_infinity": False}
    rows = [[draw(st.floats(**width)) for _ in range(columns)] for _ in steps]
    values = np.array(rows, np.float32).reshape(len(steps), columns)
    return Scalars(local_steps, tuple(steps), values)


@st.composite
def plans(draw: Any) -> Plan:
    local_steps = draw(st.sampled_from([1, 3, 9]))
    estimator = draw(st.sampled_from(["anchored", "balanced", "coupled", "mezo"]))
    counts: Any = draw(st.integers(1, 3)) if estimator == "mezo" else (1, draw(st.integers(2, 3)))
    optimizer = OptimizerConfig(
        lr=(1e-3,) if estimator == "mezo" else (1e-3, 2e-3),
        estimator=estimator,
        perturbations=counts,
        rounding=draw(st.sampled_from(["nearest", "stochastic"])),
        stream=draw(st.sampled_from(["normal-v1", "rademacher-v1"])),
    )
    number, missed = draw(st.integers(2, 5)), draw(st.integers(0, 2))
    updates = []
    for round in range(number - missed, number):
        clients = draw(st.sampled_from([(), (0,), (1, 4), (EVERYBODY,)]))
        part = scalars(local_steps, sum(optimizer.directions))
        updates.append(Update(round, tuple((client, draw(part)) for client in clients)))
    return Plan(
        round=number,
        client=draw(st.sampled_from([0, EVERYBODY - 1])),
        run_seed=draw(st.integers(0, 2**64 - 1)),
        digest=DIGEST,
        train=draw(st.booleans()),
        local_steps=local_steps,
        batch_size=8,
        seeds=draw(st.sampled_from(["per-client", "shared"])),
        optimizer=optimizer,
        updates=tuple(updates),
    )


@st.composite
def reports(draw: Any) -> Report:
    return Report(
        round=draw(st.integers(0, 2**32 - 1)),
        client=3,
        digest=DIGEST,
        examples=draw(st.integers(1, 2**32 - 1)),
        gradients=draw(scalars(draw(st.sampled_from([1, 3, 9])), 3)),
        loss=draw(st.none() | st.just(0.5)),
        forwards=draw(st.sampled_from([0.0, 12.5])),
    )


@st.composite
def step_losses(draw: Any) -> StepLosses:
    dtype = draw(st.sampled_from(DTYPES))
    width = 64 if dtype == "float64" else 32
    values = draw(st.lists(st.floats(width=width), max_size=4))
    return StepLosses(dtype, np.array(values, np.float64))


@st.composite
def probes(draw: Any) -> Probe:
    plan = draw(plans())
    finds_rates = draw(st.booleans())
    return Probe(
        client=plan.client,
        digest=DIGEST,
        batch_size=draw(st.integers(1, 2**32 - 1)),
        optimizer=replace(plan.optimizer, lr="auto") if finds_rates else plan.optimizer,
        samples=draw(st.booleans()),
        earlier=tuple(draw(st.lists(step_losses(), max_size=3))) if finds_rates else (),
    )


@st.composite
def probe_reports(draw: Any) -> ProbeReport:
    return ProbeReport(
        client=3,
        step=draw(st.integers(0, 7)),
        digest=DIGEST,
        forwards=draw(st.sampled_from([0.0, 12.5])),
        cost_shares=tuple(draw(st.lists(st.floats(1e-9, 1.0), max_size=3))),
        losses=draw(step_losses()),
    )


def examples(messages: st.SearchStrategy[Any], count: int = 40) -> list[bytes]:
    """Some encoded messages, the same ones each time."""
    found: list[bytes] = []

    @settings(max_examples=count, derandomize=True, database=None, deadline=None)
    @given(messages)
    def collect(message: Message) -> None:
        found.append(message.encode())

    collect()
    return found


def wrong(messages: list[bytes]) -> st.SearchStrategy[bytes]:
    """A message with a damaged body in a frame that is right, as a liar sends it; or damaged."""

    def spoil(choice: tuple[bytes, Any, int]) -> bytes:
        message, happened, whole = choice
        if whole == 0:
            return damage(message, happened)
        return frame(message[5], damage(message[FRAME:-CHECKSUM], happened))

    return st.tuples(st.sampled_from(messages), accidents, st.integers(0, 3)).map(spoil)


@fuzz(800, plans() | reports() | probes() | probe_reports())
def test_messages_survive_the_wire(message: Message, scratch: Path) -> None:
    assert type(message).decode(message.encode()) == message


@fuzz(2500, wrong(examples(plans())))
def test_a_plan_is_refused_or_usable(message: bytes, scratch: Path) -> None:
    try:
        plan = Plan.decode(message)
    except ValueError as error:
        check_line(error)
        return
    assert Plan.decode(plan.encode()) == plan
    for update in plan.updates:  # what a client does first
        record(
            update,
            run_seed=plan.run_seed,
            local_steps=plan.local_steps,
            optimizer=plan.optimizer,
        )


@fuzz(2000, wrong(examples(reports())))
def test_a_report_is_refused_or_usable(message: bytes, scratch: Path) -> None:
    try:
        report = Report.decode(message)
    except ValueError as error:
        check_line(error)
        return
    assert Report.decode(report.encode()) == report


@fuzz(1500, wrong(examples(probes())))
def test_a_probe_is_refused_or_usable(message: bytes, scratch: Path) -> None:
    try:
        probe = Probe.decode(message)
    except ValueError as error:
        check_line(error)
        return
    assert Probe.decode(probe.encode()) == probe


@fuzz(1500, wrong(examples(probe_reports())))
def test_a_probes_report_is_refused_or_usable(message: bytes, scratch: Path) -> None:
    try:
        report = ProbeReport.decode(message)
    except ValueError as error:
        check_line(error)
        return
    assert ProbeReport.decode(report.encode()) == report


@fuzz(300, step_losses())
def test_whatever_losses_a_client_tells_they_are_refused_or_learned_from(
    losses: StepLosses, scratch: Path
) -> None:
    optimizer = probing(toy(), PROBING, samples=False)
    for count in (len(losses.values), EVALUATIONS, EVALUATIONS + 1):
        told = StepLosses(losses.dtype, np.resize(losses.values, count))
        try:
            retake(optimizer, told, move=False)
        except ValueError as error:
            check_line(error)
    if optimizer.steps:
        assert optimizer.auto is not None
        assert all(math.isfinite(rate) and rate > 0 for rate in optimizer.auto.rates)


KNOWN = np.zeros(5, np.float32)

POOL = PoolPlan(1, 2, DIGEST, np.arange(5, dtype=np.float32), KNOWN).encode(KNOWN)

PAIRS = PoolPlan(1, 2, DIGEST, np.array([0, 0, 7, 0, 0], np.float32)).encode(KNOWN)

POOL_REPORT = PoolReport(1, 2, 0.5, 3.0, 1, as_pairs([1, 4], [0.1, 0.2])).encode()


@fuzz(500, wrong([POOL, PAIRS, POOL_REPORT]))
def test_fedkseeds_messages_are_refused_or_usable(message: bytes, scratch: Path) -> None:
    for decode in (lambda: PoolPlan.decode(message, KNOWN), lambda: PoolReport.decode(message)):
        try:
            decode()
        except ValueError as error:
            check_line(error)


@fuzz(1500, st.binary(max_size=80))
def test_noise_is_no_message(message: bytes, scratch: Path) -> None:
    for kind in (Plan, Report, Probe, ProbeReport):
        with pytest.raises(ValueError, match="message"):
            kind.decode(message)
