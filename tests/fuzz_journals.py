"""Journals that are right, live and compacted, for fuzz tests to spoil."""

from __future__ import annotations

import zlib
from dataclasses import asdict

import numpy as np
from odd_json import DIGEST

from fedspzo.federated.coefficients import weighted_mean
from fedspzo.federated.journal import round_codec
from fedspzo.federated.journal.merged_rounds import MergedRounds
from fedspzo.federated.journal.rounds import EvaluationResult, Round
from fedspzo.federated.protocol.messages import Report
from fedspzo.federated.protocol.updates import Scalars, Update
from fedspzo.federated.rejections import Rejection
from fedspzo.federated.settings import FederationConfig, OptimizerConfig
from fedspzo.journal.header import Header, Parameter
from fedspzo.journal.reader import EVALUATION, MAGIC, ROUND, ROUNDS, TERMS
from fedspzo.journal.records import Record, Terms
from fedspzo_kernels import parameter_key

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
                    "smoothed_eigenvalue": 0.5,
                }
                for trace in (None, 3.0)
            ],
        },
        "spent": {"forwards": 20.5, "bytes_down": 300, "bytes_up": 160},
        "threads": 2,
        "config": "[federation]\nclients = 3\n",
        "path": "run.toml",
        "data": {"train": DIGEST, "test": DIGEST},
        "files": {"config.json": DIGEST, "tokenizer.json": DIGEST},
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
        added = weighted_mean(answers, FEDERATION, OPTIMIZER)
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


def of_blocks(count: int) -> bytes:
    """Terms for so many blocks; the header has two."""
    return Record(0, TERMS_OF_A_STEP[:1] * count).encode()


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
