"""What a term costs in a run's journal, in bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from federated_toys import ToyTask, toy, toy_data
from journal_toys import federate

from fedspzo.federated import FederationConfig, OptimizerConfig, run
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.rounds import EvaluationResult, Round
from fedspzo.federated.journal.writer import RunJournal


def test_a_term_costs_at_most_sixteen_bytes(tmp_path: Path) -> None:
    # 4 bytes: a gradient, which the coefficient follows from. The rest is its share of its client's
    # and its round's.
    sizes = {}
    for p, steps in (((1, 6), 1), ((1, 2), 2), ((1, 60), 1)):
        path = tmp_path / str(p)
        federate(path, toy(), p=p, local_steps=steps, rounds=4, participation=1.0)
        log = DecodedJournal(path)
        entries = [(e, c) for e, c in log.entries() if e.kind == 2]
        entry, done = entries[-1]
        clients, terms = len(done.reports), done.terms
        assert terms == clients * steps * sum((p[0], p[0] * p[1]))
        # docs/journal.md: a record's frame, a round, a client, a term
        evaluated = 16 * (done.evaluation is not None)
        assert entry.size == 13 + 29 + evaluated + clients * (1 + 4) + 4 * terms
        sizes[p] = entry.size / terms
    assert max(sizes[1, 2], sizes[1, 6]) <= 7
    assert sizes[1, 60] < 4.4


@pytest.mark.slow
def test_one_direction_of_eight_clients_costs_at_most_sixteen_bytes_with_evaluations(
    tmp_path: Path,
) -> None:
    # the fewest terms that the README's comparison has in a round: MeZO's
    path = tmp_path / "journal.fspz"
    with RunJournal(path, source="toy") as journal:
        run(
            toy(single=True),
            ToyTask(),
            toy_data([9] * 8),
            FederationConfig(clients=8, rounds=40, batch_size=4),
            OptimizerConfig(lr=0.01, estimator="mezo", perturbations=1, sides="two"),
            evaluate=lambda model: {"loss": 0.5, "accuracy": 0.5},
            evaluate_every=2,
            journal=journal,
        )
    log = DecodedJournal(path)
    contents = [content for _, content in log.entries()]
    rounds = [content for content in contents if isinstance(content, Round)]
    evaluated = [done.round for done in rounds if done.evaluation is not None]
    assert evaluated == list(range(0, 40, 2))
    assert contents[-1] == EvaluationResult(round=40, loss=0.5, accuracy=0.5)
    terms = sum(done.terms for done in rounds)
    assert terms == 40 * 8
    assert path.stat().st_size - log.reader.start <= 16 * terms
