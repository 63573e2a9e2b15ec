"""Journal central training: each step of `SPZO` is one record."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedspzo.blocks.cut import Blocks
from fedspzo.choices import Stream
from fedspzo.estimators.step_report import StepReport, terms_of
from fedspzo.files import Closing

from .header import Header
from .reader import TERMS, JournalError
from .records import Record, Terms, digest
from .writer import JournalWriter


class StepJournal(Closing):
    """Keeps every step on disk, so that base weights and journal give back the trained ones.

    It is a context manager that closes the file. The records hold the steps' updates and nothing
    else. So train with `evaluation="layerwise"`, as in-place arithmetic leaves rounding errors
    that are no term, and without weight decay. `fedspzo replay` compares digests, and would find
    the difference.

        with StepJournal("run.fspz", blocks, source="facebook/opt-125m") as journal:
            for batch in loader:
                optimizer.step(lambda: model(**batch).loss)
                journal.log(optimizer.last_step)

    Args:
        path: the path of the new journal, which replaces any file there.
        blocks: the blocks that the optimizer trains, at the base weights.
        source: the origin of the base weights: a hub id or a path.
        digest_every: number of steps between digests, each of which reads all weights. Default 1;
            0: there are none.
        stream: the noise stream of the optimizer's directions. Default "normal-v1".

    Raises:
        JournalError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path | str,
        blocks: Blocks,
        *,
        source: str,
        digest_every: int = 1,
        stream: Stream = "normal-v1",
    ):
        self.steps = 0
        self.blocks = blocks
        self.digest_every = digest_every
        self.stream: Stream = stream
        header = Header.of(blocks, source, stream=stream)
        self._writer = JournalWriter.create(Path(path), header.to_json())

    def log(self, report: StepReport) -> None:
        """Add a step, which is on disk when this returns. Call it right after every step.

        Raises:
            JournalError: the file cannot be written; a parameter has been frozen since the journal
                was begun, so that the step left it alone and a replay would move it; or the step's
                noise stream is not the journal's.
        """
        if report.stream != self.stream:
            raise JournalError(
                f"the step's stream is {report.stream!r}, the journal's {self.stream!r}; pass"
                f" stream={report.stream!r} to StepJournal"
            )
        for name, parameter in (pair for group in self.blocks.groups for pair in group):
            if not parameter.requires_grad:
                raise JournalError(
                    f"parameter {name!r} was frozen after the journal was begun, and a replay would"
                    " move it; freeze what must not train, then split the model and begin a journal"
                )
        record = step_record(report, self.steps)
        self.steps += 1
        due = self.digest_every and self.steps % self.digest_every == 0
        known = digest(self.blocks.model.named_parameters()) if due else None
        self._writer.append(TERMS, record.encode(known))

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def step_record(report: StepReport, round: int) -> Record:
    """Return the record of a step's update, without terms of 0, as adding one turns -0.0 into 0.0.

    Args:
        report: the step.
        round: the number of records before it.
    """
    return Record(
        round,
        tuple(
            Terms(
                np.array([*terms], dtype=np.uint64),
                np.array([*terms.values()], dtype=np.float32),
            )
            for terms in map(terms_of, report.seeds, report.coefficients)
        ),
        report.rounding_seed,
        report.stream,
    )
