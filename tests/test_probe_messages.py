"""The messages before the first round: a probe and its report, byte by byte."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from federated_toys import ToyTask, toy, toy_data
from test_messages import DIGEST, OPTIMIZER, forge

from fedspzo.federated import (
    FederationConfig,
    Link,
    OptimizerConfig,
    Plan,
    Probe,
    ProbeReport,
    run,
)
from fedspzo.federated.protocol.framing import PROBE, kind_of
from fedspzo.federated.protocol.probes import DTYPES, StepLosses

SETTINGS_END = 26 + 15 + len("anchored") + 2 * 10  # where the number of earlier steps stands


def losses(*values: float, dtype: str = "float32") -> StepLosses:
    return StepLosses(dtype, np.array(values, np.float64))


def a_probe(**changes: Any) -> Probe:
    probe = Probe(
        client=3,
        digest=DIGEST,
        batch_size=8,
        optimizer=replace(OPTIMIZER, lr="auto"),
        samples=True,
        earlier=(losses(0.5, 0.25), losses(0.125, dtype="float64")),
    )
    return replace(probe, **changes)


def a_report(**changes: Any) -> ProbeReport:
    report = ProbeReport(
        client=3,
        step=2,
        digest=DIGEST,
        forwards=12.25,
        cost_shares=(0.75, 0.125),
        losses=losses(0.5, 0.25),
    )
    return replace(report, **changes)


PROBES = {
    "usual": a_probe(),
    "first step": a_probe(earlier=()),
    "measures": a_probe(optimizer=OPTIMIZER, earlier=(), samples=False),
    "last step": a_probe(earlier=tuple(losses(float(n)) for n in range(7))),
    "mezo": a_probe(
        optimizer=OptimizerConfig(estimator="mezo", perturbations=3, rounding="stochastic")
    ),
    "not finite": a_probe(earlier=(losses(math.nan, math.inf, -math.inf),)),
    "every dtype": a_probe(earlier=tuple(losses(1.5, dtype=dtype) for dtype in DTYPES)),
}
REPORTS = {
    "found rates": a_report(cost_shares=()),
    "measured": a_report(losses=losses()),
    "exact in float64": a_report(losses=losses(math.pi, 1e300, dtype="float64")),
}


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_a_probe_survives_the_wire(probe: Probe) -> None:
    assert Probe.decode(probe.encode()) == probe


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_its_report_survives_the_wire(report: ProbeReport) -> None:
    assert ProbeReport.decode(report.encode()) == report


def test_the_layout_is_the_documented_one() -> None:
    body = struct.pack("<I16sI??", 3, bytes.fromhex(DIGEST), 8, True, True)
    body += struct.pack("<BBBBBdBB", 1, 0, 0, 0, 0, math.nan, 2, 8)
    body += b"anchored" + struct.pack("<HdHd", 1, 1.0, 2, 2.0)  # rates that say nothing
    body += struct.pack("<BBHffBHd", 2, 0, 2, 0.5, 0.25, 1, 1, 0.125)
    message = struct.pack("<4sBBI", b"FSPZ", 1, 4, len(body)) + body
    assert a_probe().encode() == message + struct.pack("<I", zlib.crc32(message))

    body = struct.pack("<IB16sfB", 3, 2, bytes.fromhex(DIGEST), 12.25, 2)
    body += struct.pack("<ddBHff", 0.75, 0.125, 0, 2, 0.5, 0.25)
    message = struct.pack("<4sBBI", b"FSPZ", 1, 5, len(body)) + body
    assert a_report().encode() == message + struct.pack("<I", zlib.crc32(message))


@pytest.mark.parametrize(("kind", "data"), [(Probe, a_probe()), (ProbeReport, a_report())])
def test_every_damage_is_a_value_error(kind: Any, data: Any) -> None:
    data = data.encode()
    for position in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= flip
            with pytest.raises(ValueError):  # noqa: PT011  (any message: which field is damaged)
                kind.decode(bytes(damaged))
        with pytest.raises(ValueError, match="bytes"):
            kind.decode(data[:position])
    with pytest.raises(ValueError, match="kind"):
        Plan.decode(data)


@pytest.mark.parametrize(
    ("kind", "offset", "layout", "value", "message"),
    [
        (Probe, 0, "<I", 2**32 - 1, "client is 4294967295"),
        (Probe, 20, "<I", 0, "batch_size is 0"),
        (Probe, 24, "<B", 0, "number of earlier steps is 2; give a whole number from 0 to 0"),
        (Probe, 26, "<B", 3, "sides has code 3"),
        (Probe, 40, "<B", 255, "body ends at byte"),
        (Probe, SETTINGS_END, "<B", 255, "body ends at byte"),
        (Probe, SETTINGS_END, "<B", 1, "11 bytes after its last field"),
        (Probe, SETTINGS_END + 1, "<B", 4, "dtype of the losses has code 4"),
        (Probe, SETTINGS_END + 2, "<H", 65535, "body ends at byte"),
        (ProbeReport, 4, "<B", 8, "step is 8; give a whole number from 0 to 7"),
        (ProbeReport, 21, "<f", math.nan, "forwards is nan"),
        (ProbeReport, 21, "<f", -1.0, "forwards is -1"),
        (ProbeReport, 25, "<B", 255, "body ends at byte"),
        (ProbeReport, 26, "<d", 0.0, "cost_shares has 0.0; each is above 0"),
        (ProbeReport, 26, "<d", math.nan, "cost_shares has nan"),
        (ProbeReport, 26, "<d", 5e-324, r"cost_shares has 5e-324; .* none is below 1e-12"),
        (ProbeReport, 34, "<d", 9e-13, r"cost_shares has 9e-13; .* none is below 1e-12"),
        (ProbeReport, 34, "<d", 1.5, "cost_shares has 1.5; each is above 0, and at most 1"),
        (ProbeReport, 42, "<B", 9, "dtype of the losses has code 9"),
        (ProbeReport, 43, "<H", 65535, "body ends at byte"),
        (ProbeReport, 43, "<H", 1, "4 bytes after its last field"),
    ],
)
def test_forged_values_are_named(
    kind: Any, offset: int, layout: str, value: object, message: str
) -> None:
    data = {Probe: a_probe(), ProbeReport: a_report()}[kind].encode()
    with pytest.raises(ValueError, match=message):
        kind.decode(forge(data, offset, layout, value))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: a_probe(digest="0" * 31), "digest is"),
        (lambda: a_probe(optimizer=replace(OPTIMIZER, rounding=None)), "rounding is None"),
        (lambda: a_probe(earlier=(losses(),) * 8), "number of earlier steps is 8"),
        (lambda: a_report(cost_shares=(0.5,) * 256), "number of cost shares is 256"),
        (lambda: losses(1.0, dtype="int64"), "dtype of the losses is 'int64'; give one of"),
        (lambda: StepLosses("float32", np.zeros(3, np.float32)), "losses is a float32 array"),
        (lambda: StepLosses("float32", np.zeros((3, 1))), r"of shape \(3, 1\)"),
        (lambda: losses(*[0.0] * 65536), "number of losses is 65536"),
    ],
)
def test_no_message_with_a_wrong_value_can_be_made(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


class Costless:
    """Client 0 says that the last block costs nothing."""

    def __init__(self, link: Link) -> None:
        self.link = link

    def exchange(self, client: int, message: bytes, weights: Iterable[bytes]) -> Iterable[bytes]:
        answer = list(self.link.exchange(client, message, weights))
        if client == 0 and kind_of(message) == PROBE:
            return [forge(data, 26, "<d", 5e-324) for data in answer]
        return answer


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["anchored", "balanced", "coupled"])
def test_a_client_that_tells_a_cost_near_0_is_passed_over(
    estimator: str, caplog: pytest.LogCaptureFixture
) -> None:
    federation = FederationConfig(clients=2, rounds=1, seed=11)
    settings = OptimizerConfig(lr=1e-2, estimator=estimator)
    others = toy_data([5, 9])
    result = run(toy(), ToyTask(), others, federation, settings, link=Costless)
    assert "before round 0: client 0: cost_shares has 5e-324" in caplog.text
    assert result.optimizer == run(toy(), ToyTask(), others, federation, settings).optimizer
