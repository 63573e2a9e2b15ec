"""A round's record: byte by byte as documented, whole in every form, and small."""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import replace

import numpy as np
import pytest

from fedspzo.byte_reader import Reader, encode_whole
from fedspzo.federated import FederationConfig, OptimizerConfig, Report
from fedspzo.federated.coefficients import aggregate, weighted_mean
from fedspzo.federated.journal.round_codec import decode, encode
from fedspzo.federated.journal.rounds import EvaluationResult, Round
from fedspzo.federated.protocol.updates import EVERYBODY, Scalars, Update
from fedspzo.federated.rejections import Rejection
from fedspzo.journal.reader import OVERHEAD

BEFORE, AFTER = "00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"
FEDERATION = FederationConfig(clients=300, rounds=900, local_steps=3)
OPTIMIZER = OptimizerConfig(lr=(1e-3, 2e-3), perturbations=(1, 2), sides="one", rounding="nearest")


def report(client: int, *, steps: tuple[int, ...] = (0, 1, 2), columns: int = 3) -> Report:
    rng = np.random.RandomState(client)
    values = rng.standard_normal((len(steps), columns)).astype(np.float32)
    return Report(
        round=700,
        client=client,
        digest=BEFORE,
        examples=5 + client,
        gradients=Scalars(3, steps, values),
        loss=0.25 * client if steps else None,
        forwards=2.5,
    )


def a_round(
    reports: tuple[Report, ...], federation: FederationConfig, *, follows: bool = True
) -> Round:
    entries = weighted_mean(reports, federation, OPTIMIZER)
    if not follows:
        entries = tuple((client, replace(s, values=2 * s.values)) for client, s in entries)
    return Round(
        reports=reports,
        update=Update(700, entries),
        digest=AFTER,
        bytes_down=2**40,
        bytes_up=129,
        seconds=3.5,
        lr=OPTIMIZER.learning_rates,
    )


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32 - 1, 2**35, 2**64 - 1])
def test_whole_numbers_take_few_bytes_and_come_back(value: int) -> None:
    encoded = encode_whole(value)
    assert len(encoded) == max(1, -(-value.bit_length() // 7))
    reader = Reader(encoded + b"\x07")
    assert reader.whole() == value
    assert reader.left == 1
    with pytest.raises(ValueError, match="ends at byte"):
        Reader(encoded[:-1]).whole()


def test_a_whole_number_that_does_not_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not below 2\*\*64"):
        Reader(b"\xff" * 1000).whole()
    with pytest.raises(ValueError, match=r"not below 2\*\*64"):
        Reader(encode_whole(2**64)).whole()


def test_the_bytes_are_those_of_the_documentation() -> None:
    # By hand, from docs/journal.md: whoever reads a journal without this package reads this.
    usual = a_round((report(1), report(200)), FEDERATION)
    head = bytes.fromhex(AFTER) + struct.pack("<f", 3.5)
    head += b"\x80\x80\x80\x80\x80\x20" + b"\x81\x01"  # 2**40 and 129
    first, second = (r.gradients.values.tobytes() for r in usual.reports)
    expected = head + b"\x07" + b"\x02" + struct.pack("<f", 2.5)
    expected += b"\x01" + b"\x06" + struct.pack("<f", 0.25) + first
    expected += b"\xc8\x01" + b"\xcd\x01" + struct.pack("<f", 50.0) + second
    assert encode(usual, FEDERATION, OPTIMIZER) == expected

    reports = (report(1), replace(report(200, steps=(0, 2)), forwards=1.5))
    odd = replace(
        a_round(reports, FEDERATION, follows=False),
        downloads=(1,),
        rejected=(Rejection(7, "gone"),),
        evaluation=EvaluationResult(round=700, loss=0.75, accuracy=None),
    )
    kept = odd.reports[1].gradients.values.tobytes()
    added = [scalars.values.tobytes() for _, scalars in odd.update.entries]
    expected = head + b"\x28" + b"\x02"
    expected += b"\x01" + b"\x06" + struct.pack("<ff", 0.25, 2.5) + b"\x07" + first
    expected += b"\xc8\x01" + b"\xcd\x01" + struct.pack("<ff", 50.0, 1.5) + b"\x05" + kept
    expected += b"\x02" + b"\x01" + b"\x07" + added[0] + b"\xc8\x01" + b"\x05" + added[1]
    expected += b"\x01\x01" + b"\x01\x07\x04gone"
    expected += struct.pack("<dd", 0.75, math.nan)
    assert encode(odd, FEDERATION, OPTIMIZER) == expected

    all_of_them = replace(FEDERATION, clients=2)
    everybody = a_round((report(0), report(1)), all_of_them)
    first, second = (r.gradients.values.tobytes() for r in everybody.reports)
    expected = head + b"\x17" + struct.pack("<f", 2.5)
    expected += b"\x05" + struct.pack("<f", 0.0) + first
    expected += b"\x06" + struct.pack("<f", 0.25) + second
    assert encode(everybody, all_of_them, OPTIMIZER) == expected

    slower = replace(everybody, lr=(0.5e-3, 1e-3))
    expected = head + b"\x53" + struct.pack("<dd", 0.5e-3, 1e-3)  # what comes of them is written
    assert encode(slower, all_of_them, OPTIMIZER).startswith(expected)


FORMS = list(
    itertools.product(
        ("per-client", "shared"),
        [(0, 1, 2), (1,), ()],
        (2.5, 0.0),
        (True, False),
        [(), (Rejection(4, "no report came"), Rejection(9, "ä"))],
        ("examples", "uniform"),
        (None, EvaluationResult(round=700, loss=None, accuracy=0.5)),
    )
)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_was_written_is_read(form: tuple) -> None:
    seeds, steps, forwards, follows, rejected, weighting, evaluation = form
    federation = replace(FEDERATION, seeds=seeds, weighting=weighting)
    reports = (report(0), replace(report(9, steps=steps), forwards=forwards), report(299))
    done = a_round(reports, federation, follows=follows)
    done = replace(done, rejected=rejected, evaluation=evaluation)
    body = encode(done, federation, OPTIMIZER)
    assert decode(body, 700, BEFORE, federation, OPTIMIZER) == done
    assert done.clients == ((0, 4, 9, 299) if rejected else (0, 9, 299))


@pytest.mark.parametrize("seeds", ["per-client", "shared"])
def test_rates_are_written_where_they_are_not_the_first_rounds(seeds: str) -> None:
    federation = replace(FEDERATION, seeds=seeds)
    slower = replace(OPTIMIZER, lr=(0.3e-3, 1.7e-3))
    reports = (report(0), report(9))
    done = a_round(reports, federation)
    done = replace(
        done, lr=slower.lr, update=Update(700, weighted_mean(reports, federation, slower))
    )
    body = encode(done, federation, OPTIMIZER)
    assert decode(body, 700, BEFORE, federation, OPTIMIZER) == done
    assert len(body) == len(encode(done, federation, slower)) + 16  # the coefficients follow
    at = body.index(struct.pack("<dd", *slower.lr))
    for wrong in (0.0, -1.0, math.inf, math.nan):
        odd = body[:at] + struct.pack("<d", wrong) + body[at + 8 :]
        with pytest.raises(ValueError, match=r"lr is .*; give a finite number above 0"):
            decode(odd, 700, BEFORE, federation, OPTIMIZER)


def test_who_reported_is_written_unless_all_did() -> None:
    federation = replace(FEDERATION, clients=3)
    for clients in [(0, 1, 2), (0, 2), (1,)]:
        done = a_round(tuple(map(report, clients)), federation)
        body = encode(done, federation, OPTIMIZER)
        assert decode(body, 700, BEFORE, federation, OPTIMIZER) == done
        known = encode(done, FEDERATION, OPTIMIZER)  # of 300 clients
        assert len(known) - len(body) == (4 if len(clients) == 3 else 0)


def test_a_round_without_reports_is_read() -> None:
    nobody = a_round((), FEDERATION)
    assert nobody.update.entries == ()
    body = encode(nobody, FEDERATION, OPTIMIZER)
    assert decode(body, 700, BEFORE, FEDERATION, OPTIMIZER) == nobody


@pytest.mark.parametrize("seeds", ["per-client", "shared"])
def test_coefficients_are_written_only_where_they_do_not_follow(seeds: str) -> None:
    federation = replace(FEDERATION, seeds=seeds)
    reports = tuple(report(client, steps=(0, 1)) for client in range(8))
    usual = aggregate(reports, federation, OPTIMIZER)
    assert usual == weighted_mean(reports, federation, OPTIMIZER)  # to the bit: nothing is clipped
    far = replace(reports[3].gradients, values=reports[3].gradients.values * np.float32(1e6))
    reports = (*reports[:3], replace(reports[3], gradients=far), *reports[4:])
    clipped = aggregate(reports, federation, OPTIMIZER)
    assert clipped != weighted_mean(reports, federation, OPTIMIZER)
    done = replace(a_round(reports, federation), update=Update(700, clipped))
    body = encode(done, federation, OPTIMIZER)
    assert decode(body, 700, BEFORE, federation, OPTIMIZER).update.entries == clipped
    count = 8 if seeds == "per-client" else 1
    spared = encode(a_round(reports, federation), federation, OPTIMIZER)
    ids = sum(len(encode_whole(client)) for client, _ in clipped)
    assert len(body) - len(spared) == 1 + ids + count * (1 + 4 * 2 * 3)


def test_a_record_that_says_too_much_is_refused() -> None:
    done = a_round((report(1), report(2)), FEDERATION)
    body = encode(done, FEDERATION, OPTIMIZER)
    at = body.index(b"\x81\x01") + 2
    odd = body[:at] + b"\x87" + body[at + 1 :]
    with pytest.raises(ValueError, match="flags is 135; known are those below 128"):
        decode(odd, 700, BEFORE, FEDERATION, OPTIMIZER)
    with pytest.raises(ValueError, match="after its last field"):
        decode(body + b"\0", 700, BEFORE, FEDERATION, OPTIMIZER)
    first, second = body[-84:-42], body[-42:]  # the reports
    assert (first[0], second[0]) == (1, 2)
    for reports in (second + first, first + first):
        with pytest.raises(ValueError, match="the report of client 1 is not in its place"):
            decode(body[:-84] + reports, 700, BEFORE, FEDERATION, OPTIMIZER)


def test_clients_that_the_run_does_not_have_are_refused() -> None:
    few = replace(FEDERATION, clients=2)
    usual = a_round((report(0), report(1)), FEDERATION)
    gone = Rejection(7, "gone")
    for done in (
        a_round((report(0), report(7)), FEDERATION),
        replace(usual, rejected=(gone,)),
        replace(usual, rejected=(gone,), downloads=(7,)),
    ):
        body = encode(done, FEDERATION, OPTIMIZER)
        with pytest.raises(ValueError, match="it names client 7; the run has 2"):
            decode(body, 700, BEFORE, few, OPTIMIZER)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seeds", ["per-client", "shared"])
def test_rates_beyond_all_numbers_are_no_warning_but_an_error(seeds: str) -> None:
    federation = replace(FEDERATION, seeds=seeds)
    absurd = replace(OPTIMIZER, lr=1e308)  # the rule doubles it for block 2
    nothing = replace(report(1).gradients, values=np.zeros((3, 3), np.float32))
    done = a_round((report(0), replace(report(1), gradients=nothing)), federation)
    body = encode(done, federation, OPTIMIZER)
    with pytest.raises(ValueError, match="all must be finite"):
        decode(body, 700, BEFORE, federation, absurd)


@pytest.mark.slow
def test_many_reports_of_no_step_take_no_memory() -> None:
    # a table of clients, steps and directions would be 5 TB
    federation = replace(FEDERATION, clients=10_000, local_steps=60_000, seeds="shared")
    optimizer = replace(OPTIMIZER, perturbations=(1, 999))
    nothing = Scalars(60_000, (), np.zeros((0, 1000), np.float32))
    one = Scalars(60_000, (59_999,), np.ones((1, 1000), np.float32))
    reports = tuple(
        replace(report(0), client=client, gradients=nothing if client else one, forwards=1.0)
        for client in range(10_000)
    )
    ((client, scalars),) = weighted_mean(reports, federation, optimizer)
    assert (client, scalars.steps) == (EVERYBODY, (59_999,))


@pytest.mark.parametrize(
    ("clients", "directions", "most"),
    [(8, 7, 5.6), (8, 2, 9.3), (3, 2, 13.7), (1, 5, 13.6), (8, 1, 14.5)],
)
def test_a_term_costs_few_bytes(clients: int, directions: int, most: float) -> None:
    federation = FederationConfig(clients=clients, rounds=100)
    optimizer = OptimizerConfig(
        lr=1e-3, estimator="mezo", perturbations=directions, rounding="nearest"
    )
    reports = tuple(
        replace(
            report(client),
            round=99,
            gradients=Scalars(1, (0,), np.full((1, directions), client + 1.5, np.float32)),
        )
        for client in range(clients)
    )
    done = Round(
        reports=reports,
        update=Update(99, aggregate(reports, federation, optimizer)),
        digest=AFTER,
        bytes_down=8 * 120,
        bytes_up=8 * 80,
        seconds=1.0,
        lr=optimizer.learning_rates,
    )
    size = OVERHEAD + len(encode(done, federation, optimizer))
    assert size / done.terms <= most
