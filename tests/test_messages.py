from __future__ import annotations

import math
import random
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest

from fedspzo.federated.protocol.messages import Plan, Report
from fedspzo.federated.protocol.updates import EVERYBODY, Scalars, Update, record
from fedspzo.federated.settings import OptimizerConfig
from fedspzo.seeds import derive, step_rounding_seed, step_seeds

DIGEST = "00112233445566778899aabbccddeeff"
OPTIMIZER = OptimizerConfig(lr=(1e-3, 4e-3), perturbations=(1, 2), sides="one", rounding="nearest")
HEADER, CHECKSUM, REPORT_BODY = 10, 4, 36
PLAN_BODY = 55 + len("anchored") + 2 * 10 + 5  # two blocks, no updates


def scalars(steps: tuple[int, ...] = (0, 2), local_steps: int = 3, columns: int = 3) -> Scalars:
    values = np.arange(len(steps) * columns, dtype=np.float32).reshape(len(steps), columns)
    return Scalars(local_steps, steps, values / 7)


def a_plan(**changes) -> Plan:
    plan = Plan(
        round=7,
        client=3,
        run_seed=2**64 - 2,
        digest=DIGEST,
        train=True,
        local_steps=3,
        batch_size=8,
        seeds="per-client",
        optimizer=OPTIMIZER,
        updates=(
            Update(5, ((0, scalars()), (3, scalars((0, 1, 2))))),
            Update(6, ((EVERYBODY, scalars((1,))),)),
        ),
    )
    return replace(plan, **changes)


def a_report(**changes) -> Report:
    report = Report(
        round=7,
        client=3,
        digest=DIGEST,
        examples=21,
        gradients=scalars(),
        loss=0.5,
        forwards=12.25,
    )
    return replace(report, **changes)


PLANS = {
    "usual": a_plan(),
    "first round": a_plan(round=0, updates=()),
    "audit": a_plan(train=False, seeds="shared"),
    "download": a_plan(updates=(), download=True),
    "nobody took a step": a_plan(updates=(Update(6, ()),)),
    "mezo": a_plan(
        optimizer=OptimizerConfig(
            estimator="mezo", lr=(1e-3,), perturbations=3, rounding="stochastic"
        ),
    ),
    "balanced": a_plan(optimizer=replace(OPTIMIZER, estimator="balanced")),
    "three blocks, one left alone": a_plan(
        optimizer=replace(OPTIMIZER, lr=(1e-3, 2e-3, 4e-3), perturbations=(1, 0, 2))
    ),
    "all settings": a_plan(
        optimizer=replace(
            OPTIMIZER,
            estimator="coupled",
            sides=None,
            eps=0.1,
            evaluation="layerwise",
            stream="rademacher-v1",
        )
    ),
}
REPORTS = {
    "usual": a_report(),
    "all skipped": a_report(gradients=scalars(()), loss=None),
    "extremes": a_report(
        round=2**32 - 1,
        client=2**32 - 2,
        examples=2**32 - 1,
        gradients=Scalars(1, (0,), np.array([[3.4e38, -1e-45]], np.float32)),
    ),
    "many steps": a_report(gradients=scalars(tuple(range(0, 65535, 7)), local_steps=65535)),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_plan_survives_the_wire(plan):
    assert Plan.decode(plan.encode()) == plan


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_a_report_survives_the_wire(report):
    assert Report.decode(report.encode()) == report


def test_random_messages_survive_the_wire():
    rng = random.Random(0)
    for _ in range(200):
        local_steps, columns = rng.randrange(1, 40), rng.randrange(2, 9)
        rest = columns - 1
        perturbations = [(1, rest), (0, columns), (rest, 0, 1), (0, 0, 1, rest)][rng.randrange(4)]
        rates = tuple(rng.random() + 1e-9 for _ in perturbations)
        optimizer = replace(OPTIMIZER, perturbations=perturbations, lr=rates)
        updates = []
        for round in range(rng.randrange(4)):
            clients = sorted(rng.sample(range(100), rng.randrange(5)))
            entries = []
            for client in clients:
                steps = tuple(s for s in range(local_steps) if rng.random() < 0.8)
                entries.append((client, scalars(steps, local_steps, columns)))
            updates.append(Update(round, tuple(entries)))
        plan = a_plan(
            round=len(updates),
            updates=tuple(updates),
            local_steps=local_steps,
            optimizer=optimizer,
        )
        assert Plan.decode(plan.encode()) == plan


def test_the_layout_is_the_documented_one():
    body = struct.pack("<II16sIffHHB", 7, 3, bytes.fromhex(DIGEST), 21, 0.5, 12.25, 3, 3, 0b101)
    body += struct.pack("<6f", *(np.arange(6, dtype=np.float32) / 7))
    message = struct.pack("<4sBBI", b"FSPZ", 1, 2, len(body)) + body
    assert a_report().encode() == message + struct.pack("<I", zlib.crc32(message))

    body = struct.pack("<IIQ16s", 7, 3, 2**64 - 2, bytes.fromhex(DIGEST))
    body += struct.pack("<BHIBBBBBBdBB", 1, 3, 8, 0, 1, 0, 0, 0, 0, math.nan, 2, 8)
    body += b"anchored" + struct.pack("<HdHd?I", 1, 1e-3, 2, 4e-3, False, 1)
    body += struct.pack("<IHI", 6, 1, EVERYBODY) + struct.pack("<HHB", 3, 3, 0b010)
    body += struct.pack("<3f", *(np.arange(3, dtype=np.float32) / 7))
    message = struct.pack("<4sBBI", b"FSPZ", 1, 1, len(body)) + body
    plan = a_plan(updates=a_plan().updates[1:])
    assert plan.encode() == message + struct.pack("<I", zlib.crc32(message))


def test_what_a_message_costs():
    fixed = HEADER + CHECKSUM
    assert len(a_plan(updates=()).encode()) == fixed + PLAN_BODY
    assert len(a_report(gradients=scalars(())).encode()) == fixed + REPORT_BODY + 5
    # the bound: 12 bytes a term. Ours: 4, and 9 for each client of a round
    for columns, clients in ((15, 8), (2, 100)):
        update = Update(6, tuple((c, scalars((0,), 1, columns)) for c in range(clients)))
        assert len(update.encode()) == 6 + clients * (9 + 4 * columns)
        assert len(update.encode()) <= 12 * clients * columns


@pytest.mark.parametrize(
    ("kind", "data"), [(Plan, a_plan().encode()), (Report, a_report().encode())]
)
def test_every_damage_is_a_value_error(kind, data):
    for position in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= flip
            with pytest.raises(ValueError):  # noqa: PT011  (any message: which field is damaged)
                kind.decode(bytes(damaged))
        with pytest.raises(ValueError, match="bytes"):
            kind.decode(data[:position])
    with pytest.raises(ValueError, match="send it whole"):
        kind.decode(data + b"\0")


def forge(data: bytes, offset: int, layout: str, *values: object) -> bytes:
    """The message with other values in its body, and a checksum that fits."""
    message = bytearray(data[:-CHECKSUM])
    struct.pack_into(layout, message, HEADER + offset, *values)
    return bytes(message) + struct.pack("<I", zlib.crc32(message))


@pytest.mark.parametrize(
    ("kind", "offset", "layout", "value", "message"),
    [
        (Plan, 4, "<I", 2**32 - 1, "client is 4294967295"),
        (Plan, 33, "<H", 0, "local_steps is 0"),
        (Plan, 33, "<H", 4, r"\(steps, directions\) \(3, 3\) for client 0; this run has \(4, 3\)"),
        (Plan, 39, "<B", 2, "seeds has code 2"),
        (Plan, 54, "<B", 7, "estimator is 'anchore'"),
        (Plan, 54, "<B", 255, "body ends at byte"),
        (Plan, 55, "<8s", b"anchoret", "estimator is 'anchoret'; give one of anchored"),
        (Plan, 55, "<8s", b"anch\xffred", r"estimator is 'anch\\\\xffred'"),
        (Plan, 40, "<B", 3, "sides has code 3"),
        (Plan, 41, "<B", 255, "rounding has code 255"),
        (Plan, 42, "<B", 3, "evaluation has code 3"),
        (Plan, 43, "<B", 2, "stream has code 2"),
        (Plan, 43, "<B", 9, "stream has code 9"),
        (Plan, 44, "<B", 3, "newton has code 3"),
        (Plan, 45, "<d", 0.0, "eps is 0.0"),
        (Plan, 53, "<B", 0, r"lr is \(\)"),
        (Plan, 53, "<B", 1, r"lr is \(0.001,\)"),
        (Plan, 53, "<B", 255, "body ends at byte"),
        (Plan, 63, "<H", 0, r"\(steps, directions\) \(3, 3\) for client 0; this run has \(3, 2\)"),
        (Plan, 63, "<H", 65534, "give 1 to 65535 directions in all"),
        (Plan, 65, "<d", math.nan, "lr is nan"),
        (Plan, 65, "<d", -1.0, "lr is -1.0"),
        (Plan, 75, "<d", math.inf, "lr is inf"),
        (Plan, 83, "<B", 1, "download is True, but updates are given"),
        (Plan, 84, "<I", 2**32 - 1, "body ends at byte"),
        (Plan, 84, "<I", 1, "updates are of rounds"),
        (Plan, 88, "<I", 4, "updates are of rounds"),
        (Report, 24, "<I", 0, "examples is 0"),
        (Report, 28, "<f", math.inf, "loss is inf"),
        (Report, 32, "<f", math.nan, "forwards is nan"),
        (Report, 36, "<H", 2, "the mask of steps names one beyond the 2"),
        (Report, 36, "<H", 65535, "body ends at byte"),
        (Report, 38, "<H", 0, "at least one direction"),
        (Report, 38, "<H", 65535, "body ends at byte"),
        (Report, 40, "<B", 0b001, "12 bytes after its last field"),
        (Report, 41, "<f", math.nan, r"values\[0, 0\] is nan"),
        (Report, 61, "<f", -math.inf, r"values\[1, 2\] is -inf"),
    ],
)
def test_forged_values_are_named(kind, offset, layout, value, message):
    data = {Plan: a_plan(), Report: a_report()}[kind].encode()
    with pytest.raises(ValueError, match=message):
        kind.decode(forge(data, offset, layout, value))


def test_forged_noise_never_gets_past_a_value_error():
    rng = random.Random(1)
    for kind, message in ((Plan, a_plan()), (Report, a_report())):
        data = message.encode()
        for _ in range(3000):
            body = bytearray(data[HEADER:-CHECKSUM])
            for _ in range(rng.randrange(1, 5)):
                body[rng.randrange(len(body))] = rng.randrange(256)
            try:
                decoded = kind.decode(forge(data, 0, f"{len(body)}s", bytes(body)))
            except ValueError:
                continue
            assert kind.decode(decoded.encode()) == decoded


def test_other_versions_kinds_and_files_are_named():
    data = a_plan().encode()
    for wrong, message in (
        (b"PK\3\4" + data[4:], "not b'FSPZ'"),
        (data[:4] + b"\2" + data[5:], "version 2, this fedspzo speaks 1"),
        (a_report().encode(), "kind 2, expected kind 1"),
        (b"", "0 bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            Plan.decode(wrong)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: scalars((1, 0)), r"steps is \(1, 0\)"),
        (lambda: scalars((0, 3)), r"steps is \(0, 3\)"),
        (lambda: Scalars(2, (0,), np.zeros((2, 3), np.float32)), r"shape \(2, 3\)"),
        (lambda: Scalars(2, (0,), np.zeros((1, 3))), "float64"),
        (lambda: Scalars(1, (0,), np.full((1, 2), np.nan, np.float32)), "is nan"),
        (lambda: Update(0, ((1, scalars()), (0, scalars()))), r"clients \[1, 0\]"),
        (lambda: a_plan(digest="0" * 31), "digest is"),
        (lambda: a_plan(updates=a_plan().updates[:1]), r"updates are of rounds \[5\]"),
        (lambda: a_plan(optimizer=replace(OPTIMIZER, rounding=None)), "rounding is None"),
        (lambda: a_report(digest="x" * 32), "digest is"),
        (lambda: a_report(loss=math.nan), "loss is nan"),
    ],
)
def test_no_message_with_a_wrong_value_can_be_made(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_record_has_every_seed_beside_its_coefficient():
    update = Update(5, ((2, scalars((0, 2))), (9, scalars((1,)))))
    made = record(update, run_seed=77, local_steps=3, optimizer=OPTIMIZER)

    seeds: tuple[list[int], ...] = ([], [])
    for client, step in ((2, 15), (2, 17), (9, 16)):
        for block, new in enumerate(step_seeds(derive(77, 3, client), step, (1, 2))):
            seeds[block].extend(new)
    assert tuple(t.seeds.tolist() for t in made.terms) == seeds
    rows = np.concatenate([s.values for _, s in update.entries])
    assert np.array_equal(made.terms[0].coeffs, rows[:, 0])
    assert np.array_equal(made.terms[1].coeffs, rows[:, 1:].ravel())
    assert made.rounding_seed is None

    shared = record(
        Update(5, ((EVERYBODY, scalars((1,))),)),
        run_seed=77,
        local_steps=3,
        optimizer=replace(OPTIMIZER, rounding="stochastic"),
    )
    assert tuple(map(tuple, (t.seeds.tolist() for t in shared.terms))) == step_seeds(77, 16, (1, 2))
    assert shared.rounding_seed == step_rounding_seed(77, 15)


def test_a_record_of_three_blocks_one_of_them_left_alone():
    optimizer = replace(OPTIMIZER, lr=(1e-3, 1e-3, 1e-3), perturbations=(1, 0, 2))
    update = Update(0, ((4, scalars((0,))),))
    made = record(update, run_seed=77, local_steps=3, optimizer=optimizer)
    seeds = step_seeds(derive(77, 3, 4), 0, (1, 0, 2))
    assert [t.seeds.tolist() for t in made.terms] == [list(block) for block in seeds]
    row = update.entries[0][1].values[0]
    assert [t.coeffs.tolist() for t in made.terms] == [[row[0]], [], [row[1], row[2]]]
