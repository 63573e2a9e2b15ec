"""Readers of what others wrote, given what nobody should write: one clear error, or a value.

Messages, journals, configs and data files. Whatever the bytes are, a reader either refuses them
with its own kind of error, on one line, in bounded time, or gives a value that can be used.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import PLANNED, accidents, damage, damaged, fuzz, limited
from hypothesis import given, settings
from hypothesis import strategies as st

from fedspzo.app import config, data
from fedspzo.app import resume as resuming
from fedspzo.app import show as journal_view
from fedspzo.app.run_folder import JOURNAL, RunFolder
from fedspzo.baselines.pool_messages import PoolPlan, PoolReport, as_pairs
from fedspzo.errors import InputError
from fedspzo.federated.coefficients import averaged
from fedspzo.federated.journal import compaction, round_codec
from fedspzo.federated.journal.merged_rounds import MergedRounds
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.rounds import EvaluationResult, Round
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.federated.protocol.framing import frame
from fedspzo.federated.protocol.messages import Plan, Report
from fedspzo.federated.protocol.updates import EVERYBODY, Scalars, Update, record
from fedspzo.federated.rejections import Rejection
from fedspzo.federated.settings import FederationConfig, OptimizerConfig
from fedspzo.journal.header import Header, Parameter
from fedspzo.journal.reader import EVALUATION, MAGIC, ROUND, ROUNDS, TERMS, JournalError
from fedspzo.journal.records import Record, Terms
from fedspzo_kernels import parameter_key

DIGEST = "00112233445566778899aabbccddeeff"
FRAME, CHECKSUM = 10, 4


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "net").mkdir()
    (folder / "net" / "config.json").write_text("{}")
    (folder / "net" / "model.safetensors").write_bytes(b"")
    (folder / "train.jsonl").write_text('{"text": "a", "label": "good"}\n')
    (folder / "test.csv").write_text("text,label\na,good\n")
    return folder


def test_the_usual_test_run_tries_ten_thousand_inputs() -> None:
    assert sum(PLANNED.values()) >= 10_000


# Messages


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


def examples(messages: st.SearchStrategy[Any], count: int = 40) -> list[bytes]:
    """Some encoded messages, the same ones each time."""
    found: list[bytes] = []

    @settings(max_examples=count, derandomize=True, database=None, deadline=None)
    @given(messages)
    def collect(message: Plan | Report) -> None:
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


@fuzz(500, plans() | reports())
def test_messages_survive_the_wire(message: Plan | Report, scratch: Path) -> None:
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
    for kind in (Plan, Report):
        with pytest.raises(ValueError, match="message"):
            kind.decode(message)


# Journals


FEDERATION = FederationConfig(clients=3, rounds=4, local_steps=2)
OPTIMIZER = OptimizerConfig(lr=(1e-3, 2e-3), perturbations=(1, 2), sides="one", rounding="nearest")
HEADER = Header(
    base=DIGEST,
    source="net",
    parameters=tuple(
        Parameter(
            name=name,
            shape=(2, 3),
            dtype="float32",
            key=f"{parameter_key(name):016x}",
            block=block,
            tied="a" if name == "c" else None,
        )
        for name, block in (("a", 1), ("b", 2), ("c", 0))
    ),
    model={"dtype": "float32", "kind": "causal", "labels": [], "seed": 0},
    run={
        "federation": asdict(FEDERATION),
        "optimizer": asdict(OPTIMIZER),
        "privacy": {"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5},
        "auto": {
            "effective_clients": 2.5,
            "factor": 1.0,
            "steps": 8,
            "first_loss": 0.7,
            "blocks": [
                {
                    "weight_rms": 0.1,
                    "turns": 8,
                    "square_sum": 2.0,
                    "trace_sum": trace,
                    "smoothed_square": 0.5,
                }
                for trace in (None, 3.0)
            ],
        },
        "config": "[federation]\nclients = 3\n",
        "data": {"train": DIGEST, "test": DIGEST},
    },
).to_json()


def a_round(number: int) -> Round:
    part = Scalars(2, (1,), np.array([[0.5, -1.0, 2.0]], np.float32))
    answers = [
        Report(
            round=number,
            client=client,
            digest=DIGEST,
            examples=7,
            gradients=part,
            loss=None if client else 0.5,
            forwards=3.0,
        )
        for client in (0, 2)
    ]
    added = ((0, part), (2, part))  # clipped, as it were; or as it follows from the reports
    if number % 4 == 2:
        added = averaged(answers, FEDERATION, OPTIMIZER)
    return Round(
        rejected=(Rejection(1, "no report came"),),
        reports=tuple(answers),
        update=Update(number, added),
        digest=DIGEST,
        bytes_down=100,
        bytes_up=50,
        seconds=1.5 * number,
        lr=(0.5, 0.25) if number else OPTIMIZER.learning_rates,
        evaluation=EvaluationResult(round=number, loss=0.5, accuracy=1.0)
        if number % 4 == 2
        else None,
    )


def encoded(number: int) -> bytes:
    return round_codec.encode(a_round(number), FEDERATION, OPTIMIZER)


TERMS_OF_A_STEP = tuple(Terms(np.arange(2, dtype=np.uint64), np.ones(2, np.float32)) for _ in "ab")
BODIES = [
    (EVALUATION, EvaluationResult(round=0, loss=1.0, accuracy=None).encode()),
    (ROUND, encoded(0)),
    (TERMS, Record(1, TERMS_OF_A_STEP, rounding_seed=4).encode(DIGEST)),
    (ROUND, encoded(2)),
]
COMPACTED = [  # a journal that no run goes on with; a live round may follow what was merged
    (ROUNDS, MergedRounds(tuple(a_round(n).update for n in (0, 1)), DIGEST).encode()),
    (ROUNDS, MergedRounds((Update(2, ()), a_round(3).update), DIGEST).encode()),
    (ROUND, encoded(4)),
]


def journal(header: bytes, bodies: list[tuple[int, bytes]]) -> bytes:
    """A journal with right checksums, whatever its bodies are."""
    result = MAGIC + (3).to_bytes(4, "little")
    chain = zlib.crc32(result)
    for kind, body in [(1, header), *bodies]:
        head = len(body).to_bytes(4, "little") + bytes([kind])
        chain = zlib.crc32(head, chain)
        result += head + chain.to_bytes(4, "little") + body
        chain = zlib.crc32(body, chain)
        result += chain.to_bytes(4, "little")
    return result


def text(header: Any) -> bytes:
    return json.dumps(header).encode()


WHOLE = journal(text(HEADER), BODIES)
SHORT = journal(text(HEADER), COMPACTED)


def read_journal(content: bytes, scratch: Path) -> None:
    """Everything that reads a journal refuses it or gives what it holds; nobody changes it."""
    path = scratch / JOURNAL
    path.write_bytes(content)
    readers = (
        lambda: list(DecodedJournal(path).records()),
        lambda: list(journal_view.lines(path)),
        lambda: list(journal_view.lines(path, round=1)),
        lambda: compaction.compact(path, scratch / "short.fspz"),
        lambda: resuming.check_same_run(RunFolder(scratch), run_config(scratch)),
    )
    for read in readers:
        try:
            read()
        except InputError as error:
            check_line(error)
    assert path.read_bytes() == content
    try:
        RunJournal(path, source="net").close()
    except JournalError:
        assert path.read_bytes() == content
    assert content.startswith(path.read_bytes())  # but for a torn end, which it cut off
    path.unlink()
    (scratch / "short.fspz").unlink(missing_ok=True)


def run_config(scratch: Path) -> config.Config:
    path = scratch / "run.toml"
    if not path.exists():
        path.write_text(TOML)
    return config.load(path)


@fuzz(600, damaged(WHOLE) | damaged(SHORT))
def test_a_damaged_journal_is_refused_or_cut(content: bytes, scratch: Path) -> None:
    read_journal(content, scratch)


def one_damaged(choice: tuple[list[tuple[int, bytes]], int, Any]) -> list[tuple[int, bytes]]:
    bodies, number, happened = choice
    number %= len(bodies)
    kind, body = bodies[number]
    return [*bodies[:number], (kind, damage(body, happened)), *bodies[number + 1 :]]


@fuzz(
    800,
    st.tuples(st.sampled_from([BODIES, COMPACTED]), st.integers(0, 3), accidents).map(one_damaged)
    | st.lists(st.tuples(st.integers(0, 6), st.binary(max_size=60)), max_size=3)
    | st.permutations(BODIES + COMPACTED),
)
def test_records_with_right_checksums_are_checked(
    bodies: list[tuple[int, bytes]], scratch: Path
) -> None:
    read_journal(journal(text(HEADER), bodies), scratch)


ODD = [
    *(None, True, 0, -1, 1, 2**31, 2**64, 10**400, 1e-300, 1e300, 0.5, math.nan, math.inf),
    *("", "a", "..", "/etc/passwd", "../../x", "load", "\n", "\ud800", DIGEST),
    *([], {}, [[]], [{}], {"a": 1}, [1, "a"]),
]
odd: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(ODD) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list | tuple):
            yield from places(inner, (*path, key))


def planted(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a JSON value with another value at the path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = planted(copy[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("place", list(places(HEADER)), ids=str)
def test_any_value_in_any_place_of_a_header(place: tuple[Any, ...], scratch: Path) -> None:
    for value in ODD:
        with limited():
            read_journal(journal(text(planted(HEADER, place, value)), BODIES), scratch)


@fuzz(
    300,
    st.tuples(st.sampled_from(list(places(HEADER))), odd).map(
        lambda change: text(planted(HEADER, *change))
    )
    | odd.map(text)
    | damaged(text(HEADER)),
)
def test_a_header_of_any_json_is_refused_or_usable(header: bytes, scratch: Path) -> None:
    read_journal(journal(header, BODIES), scratch)


# Configs


TOML = """
[model]
name = "net"
dtype = "float32"
[task]
type = "prompt"
template = "{text} it was"
verbalizers = { good = "great", bad = "awful" }
[data]
train = "train.jsonl"
test = "test.csv"
max_length = 64
[federation]
clients = 2
rounds = 4
participation = 0.5
partition = "dirichlet"
alpha = 0.5
[optimizer]
lr = [1e-3, 2e-3]
perturbations = [1, 2]
at = -1
[privacy]
clip = 1.0
noise_multiplier = 1.0
[output]
dir = "out"
evaluate_every = 2
"""
LINES = TOML.strip().split("\n")

TOML_VALUES = [
    *("true", "0", "-1", "1", "2.5", "nan", "inf", "-inf", "1e400", "9" * 400, "9" * 5000),
    *('""', '"a"', '"x\\u0000y"', '"~nobody/x"', '"~"', '".."', '"/"', '"\\n"', "'a'"),
    *('"{text}"', '"{text} {mask}"', '"{}"', '"' + "a" * 5000 + '"', '"train.jsonl"'),
    *("[]", "[1]", "[[1]]", "[1, 2.5]", '["a", "b"]', "{}", "{ a = 1 }", '{ a = "b" }'),
    *("[1e-3, " + "9" * 400 + "]", "1979-05-27", "07:32:00", "[" * 2000, "{a=" * 2000),
    *('"mezo"', '"balanced"', '"coupled"', '"lm"', '"auto"', '"classification"', '"iid"', '"demo"'),
]
toml_values = st.sampled_from(TOML_VALUES) | st.text(max_size=8)


@st.composite
def tomls(draw: Any) -> bytes:
    """The config with lines changed, lost, doubled or moved; at times with bytes damaged."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        action = draw(st.sampled_from(["value", "value", "key", "drop", "double", "move"]))
        key, equals, value = lines[at].partition(" = ")
        if action == "value":
            lines[at] = f"{key} = {draw(toml_values)}"
        elif action == "key":
            names = [
                "lr",
                "clients",
                "name",
                "seed",
                "sides",
                "dir",
                "eps",
                "evaluation",
                "a.b",
                '"\\n"',
            ]
            lines[at] = f"{draw(st.sampled_from(names))}{equals}{value}"
        elif action == "drop" and len(lines) > 1:
            lines.pop(at)
        elif action == "double":
            lines.insert(draw(st.integers(0, len(lines))), lines[at])
        elif action == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def read_config(content: bytes, scratch: Path) -> None:
    path = scratch / "some.toml"
    path.write_bytes(content)
    try:
        found = config.load(path)
    except InputError as error:
        check_line(error)
        return
    again = scratch / "again.toml"
    again.write_text(config.to_toml(found), encoding="utf-8")
    copy = config.load(again)
    assert (copy.federation, copy.optimizer, copy.task) == (
        found.federation,
        found.optimizer,
        found.task,
    )


@pytest.mark.parametrize("number", range(len(LINES)), ids=LINES)
def test_any_value_in_any_place_of_a_config(number: int, scratch: Path) -> None:
    key, _, _ = LINES[number].partition(" = ")
    for value in TOML_VALUES:
        with limited():
            lines = [*LINES[:number], f"{key} = {value}", *LINES[number + 1 :]]
            read_config("\n".join(lines).encode(), scratch)


@fuzz(500, tomls() | tomls() | damaged(TOML.encode()))
def test_a_config_is_refused_in_one_line_or_can_be_run(content: bytes, scratch: Path) -> None:
    read_config(content, scratch)


# Data files


JSONL = b'{"text": "a fine film", "label": "good"}\n\n{"text": "dull \\u00e9", "label": "bad"}\n'
CSV = b'text,label\n"a fine, ""long"" film",good\n\ndull,bad\n'
json_lines = st.lists(
    st.fixed_dictionaries({"text": odd | st.just("a film"), "label": odd}).map(text)
    | st.dictionaries(st.sampled_from(["text", "label", "x"]), odd, max_size=3).map(text)
    | odd.map(text)
    | st.sampled_from([b"[" * 5000, b'{"text": ' + b"9" * 5000 + b"}", b"NaN", b'{"text":'])
    | st.binary(max_size=20),
    max_size=3,
).map(b"\n".join)
cells = st.text(max_size=6) | st.sampled_from(['"', '""', "\0", "\r", "\n", ",", "text", "label"])
csv_lines = st.lists(st.lists(cells, max_size=3).map(",".join), max_size=4).map(
    lambda rows: "\n".join(["text,label", *rows]).encode("utf-8", "surrogatepass")
)


def read_data(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    labels = ("good", "bad")
    for label, allowed in ((None, None), ("label", None), ("label", labels)):
        try:
            examples = data.read(path, "text", label, allowed, "correct it")
        except InputError as error:
            check_line(error)
            continue
        for example in examples:
            assert example.text.strip()
            assert example.text.encode()
            assert (example.label is None) == (label is None)
            assert (example.label or "good").encode()  # it is written to config and journal


@fuzz(800, damaged(JSONL) | json_lines)
def test_a_jsonl_file_is_refused_in_one_line_or_read(content: bytes, scratch: Path) -> None:
    read_data(content, scratch / "rows.jsonl")


@fuzz(800, damaged(CSV) | csv_lines | st.binary(max_size=60))
def test_a_csv_file_is_refused_in_one_line_or_read(content: bytes, scratch: Path) -> None:
    read_data(content, scratch / "rows.csv")


def check_line(error: Exception) -> None:
    """The error's message is one line that says something, and is short enough to be read."""
    message = str(error)
    assert message
    assert "\n" not in message
    assert len(message) < 2000, message
