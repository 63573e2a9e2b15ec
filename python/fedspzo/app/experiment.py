"""Trains with FedSPZO and with MeZO on the same clients and data, and measures what is kept."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import nn

from fedspzo.blocks.cut import Blocks
from fedspzo.errors import InputError, one_line
from fedspzo.federated import OptimizerConfig, RoundResult
from fedspzo.federated import run as run_federation
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.journal.records import digest
from fedspzo.privacy import Mechanism

from . import models
from .best_round import best_round, out_of_patience
from .callbacks import RunCallback
from .clients import deal
from .config import Config, evaluation_interval
from .cutting import cut
from .data import Splits
from .engines import Engine, in_process
from .examples import Example
from .measures import Measured
from .metrics import Row, as_row
from .printed_tables import partition_lines
from .progress import ProgressReport
from .recipe import Recipe
from .replay import advance
from .resume import begun_threads
from .run_folder import JOURNAL, METRICS, MEZO_JOURNAL, MEZO_METRICS, RunFolder
from .tasks import Encoded, Task
from .threads import Threads

COPIES = 32_000_000
"""Number of parameters, over all clients, up to which each client has a copy of the model.

Above it the clients share one copy.
"""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model that was trained.

    Attributes:
        rows: a row for each round. Their "loss" and "accuracy" are on the validation examples, or
            on the test examples if there are none.
        optimizer: the step's settings, as a next round would have them.
        round: the round whose weights are kept.
        model: the model, with these weights.
        digest: their digest.
        before: what the untrained model is worth on the test examples. MeZO's has no `answers`.
        after: what the kept model is worth on them.
    """

    rows: list[Row]
    optimizer: OptimizerConfig
    round: int
    model: nn.Module
    digest: str
    before: Measured
    after: Measured


class Experiment:
    """Trains with FedSPZO and with MeZO, on the same clients and data.

    Args:
        config: the run's configuration.
        splits: the examples.
        model: the base model.
        task: encodes the examples, and computes the loss.
        recipe: the options with which the model was loaded.
        folder: the folder of the results.
        about: what identifies the run, for the journals' headers (`resume.identity`).
        callbacks: follow the run.
        quiet: print nothing.
        engine: runs FedSPZO's clients. Default: this process.

    Raises:
        InputError: the examples cannot be dealt as [federation] says, or do not fit [privacy].
    """

    def __init__(
        self,
        config: Config,
        splits: Splits,
        model: nn.Module,
        task: Task,
        recipe: Recipe,
        folder: RunFolder,
        about: Row,
        callbacks: Sequence[RunCallback] = (),
        *,
        quiet: bool,
        engine: Engine = in_process,
    ) -> None:
        self.config = config
        self.engine = engine
        self.about = about
        self.callbacks = callbacks
        self.splits = splits
        self.task = task
        self.recipe = recipe
        self.folder = folder
        self.quiet = quiet
        self.threads: Threads | None = None
        self.test = self._encode(model, splits.test)
        self.validation = self._encode(model, splits.validation) if splits.validation else None
        # what predicts tokens is judged by its loss, of which their accuracy is a coarse picture
        self.by_loss = config.task.type in ("lm", "completion")
        with self._naming("[federation]"):
            self.clients = deal(config, splits, partial(self._encode, model))
        self.samples = self.clients[0] or self.test  # of clients elsewhere there are none here
        self.owners = splits.owners or tuple(map(str, range(len(self.clients))))
        with self._naming("[privacy]"):
            if config.privacy is not None:
                for own in self.clients:
                    Mechanism(config.privacy, len(own))  # raises ValueError if delta does not fit

    def _encode(self, model: nn.Module, examples: list[Example]) -> list[Encoded]:
        return models.encode(self.config.model.name, self.task, model, examples)

    def cut(self, model: nn.Module, optimizer: OptimizerConfig) -> Blocks:
        """Cut the model into the blocks of `optimizer`. A joint estimator has a single block.

        Raises:
            InputError: the model cannot be cut there, or a setting does not fit the blocks.
        """
        return cut(self.config, self.task, model, self.samples[:1], optimizer)

    def choose_threads(self, model: nn.Module) -> None:
        """Set torch to the faster of one thread and all, or to the number that the run began with.

        A model on a GPU is not timed.
        """
        if next(model.parameters()).device.type != "cpu":
            return
        batch = self.task.collate(self.samples[: self.config.federation.batch_size])

        def work() -> None:
            with torch.no_grad():
                self.task.loss(model, batch)

        self.threads = Threads(work)
        begun = begun_threads(self.folder) if self.folder.resumes else None
        if begun is None:
            begun = self.threads.choose()
        torch.set_num_threads(begun)
        self.about = {**self.about, "threads": begun}

    def print_partition(self) -> None:
        """Print how many examples of which labels each client has, to stderr, if it is known."""
        if not self.splits.train:
            return
        classes = self.task.classes or ("",)
        counts = [Counter(classes[example.label] for example in own) for own in self.clients]
        for line in partition_lines(counts, self.owners):
            print(f"fedspzo: {line}", file=sys.stderr)

    def train_fedspzo(self, blocks: Blocks) -> Trained:
        """Train a model with FedSPZO, in place."""
        answers = self._answers(blocks.model)
        trained = self._train(
            blocks,
            self.config.optimizer,
            rounds=self.config.federation.rounds,
            every=self.config.output.evaluate_every,
            files=(METRICS, JOURNAL),
            title="FedSPZO",
            engine=self.engine,
        )
        return replace(trained, before=replace(trained.before, answers=answers))

    def _answers(self, model: nn.Module) -> dict[str, float]:
        """Return the scores of the answers that the model generates on the test examples."""
        with models.working(self.config.model.name, "generation"):
            return self.task.score_answers(model, self.test)

    def train_mezo(self, forwards: float, base: str) -> Trained:
        """Train with MeZO from the same start.

        Args:
            forwards: computation of all clients, in full forward passes. It sets the number of
                rounds.
            base: digest of the start.

        Raises:
            ValueError: the config has no [mezo].
            InputError: the base model has changed since the run began.
        """
        if self.config.mezo is None:
            raise ValueError("mezo is None; give the config a [mezo] section")
        settings = self.config.mezo
        optimizer = settings.optimizer()
        federation = self.config.federation
        steps = federation.participants * federation.local_steps
        return self._train(
            self.cut(self._base(base), optimizer),
            optimizer,
            rounds=max(1, round(forwards / (steps * settings.forwards_per_step))),
            every=None,
            files=(MEZO_METRICS, MEZO_JOURNAL),
            title="MeZO",
            engine=in_process,
        )

    def _base(self, expected: str) -> nn.Module:
        """Load the base model again. Raise InputError unless it has the digest `expected`."""
        model, _, _ = models.load(self.config, self.splits)
        if digest(model.named_parameters()) != expected:
            raise InputError(
                f"[model] name is {self.config.model.name!r}, whose weights have changed since the"
                " run began; restore them and run the command again, it goes on"
            )
        return model

    def _train(
        self,
        blocks: Blocks,
        optimizer: OptimizerConfig,
        *,
        rounds: int,
        every: int | None,
        files: tuple[str, str],
        title: str,
        engine: Engine,
    ) -> Trained:
        """Fine-tune a model in place. Go on after the journal's rounds if it has any.

        Args:
            blocks: the model.
            optimizer: the settings of a client's step.
            rounds: number of rounds.
            every: number of rounds from one evaluation to the next. None: about twenty evaluations
                of the run as it began.
            files: names of the metrics and the journal. The metrics of a resumed run are written
                again from the journal.
            title: the method's name, for the progress.
            engine: runs the clients.
        """
        metrics, name = files
        config = self.config
        rows: list[Row] = []
        clients = config.federation.clients
        parameters = sum(p.numel() for p in blocks.model.parameters())
        judged = self.test if self.validation is None else self.validation
        found: list[Measured] = []  # by the round that has just ended
        known: dict[int, Measured] = {}
        if self.validation is not None:
            before = self.task.measure(blocks.model, self.test)

        def evaluate(model: nn.Module) -> dict[str, float]:
            found.append(self.task.measure(model, judged))
            return {"loss": found[-1].loss, "accuracy": found[-1].accuracy}

        with (
            self._journal(name) as journal,
            ProgressReport(title, rounds, quiet=self.quiet) as progress,
        ):
            past = len(journal.rounds)
            if journal.optimizer is not None and not self.quiet:
                cut = f", a torn record of {journal.torn} bytes cut off" if journal.torn else ""
                line = f"fedspzo: going on with {title} after round {past} of {rounds}{cut}"
                print(line, file=sys.stderr, flush=True)

            def keep(result: RoundResult) -> None:
                if result.round == 0:
                    self.folder.write(metrics, "")
                rows.append(as_row(result))
                if self.threads is not None and result.round > past + 1:
                    self._look_at_threads(self.threads, rows)
                self.folder.append(metrics, rows[-1])
                for callback in self.callbacks:
                    callback.on_round(title, rows[-1])
                if found:
                    known.clear()
                    known[result.round] = found.pop()
                if result.round >= past:
                    progress.update(rows[-1])

            def stop(_: RoundResult) -> bool:
                patience = config.output.patience
                return patience is not None and out_of_patience(
                    rows, patience, by_loss=self.by_loss
                )

            federate = partial(
                run_federation,
                blocks,
                self.task,
                self.clients,
                replace(config.federation, rounds=rounds),
                optimizer,
                evaluate=evaluate,
                evaluate_every=every or evaluation_interval(journal.begun_rounds or rounds),
                on_round=keep,
                stop=stop,
                replicas=clients if clients * parameters <= COPIES else 1,
                journal=journal,
                privacy=config.privacy,
            )
            outcome = engine(lambda link: federate(link=None if link is None else lambda _: link))
        last = int(rows[-1]["round"])
        best = best_round(rows, by_loss=self.by_loss) if config.keeps_best else last
        model: nn.Module = blocks.model
        if best != last:
            model.to("meta")  # its memory is needed for the same model again
            model = self._base(rows[0]["digest"])
            advance(dict(model.named_parameters()), DecodedJournal(self.folder.path / name), best)
        if self.validation is None:
            start = rows[0]
            before = Measured(loss=_number(start["loss"]), accuracy=_number(start["accuracy"]))
        after = known.get(best) if self.validation is None else None
        after = after or self.task.measure(model, self.test)
        return Trained(
            rows=rows,
            optimizer=outcome.optimizer,
            round=best,
            model=model,
            digest=rows[best]["digest"],
            before=before,
            after=replace(after, answers=self._answers(model)),
        )

    def _look_at_threads(self, threads: Threads, rows: list[Row]) -> None:
        """Choose the threads again after a round that was far slower than those before."""
        earlier, before, now = rows[-3:]
        # the time to a round's end includes an evaluation of the weights that it starts from, so
        # these rounds are left out, unless each is one
        if before["loss"] is not None and earlier["loss"] is None:
            return
        changed = threads.after_round(now["seconds"] - before["seconds"])
        if changed and not self.quiet:
            print(f"fedspzo: going on with {threads.line}", file=sys.stderr)

    def _journal(self, name: str) -> RunJournal:
        """Open a journal. Raise InputError if its run loaded the model in another way."""
        journal = RunJournal(
            self.folder.path / name,
            source=self.config.model.name,
            model=asdict(self.recipe),
            about=self.about,
        )
        known = journal.header.model if journal.optimizer is not None else None
        if known is not None and Recipe.from_json(known) != self.recipe:
            journal.close()
            mine = asdict(self.recipe)
            theirs = {
                key: value
                for key, value in known.items()
                if mine.get(key) != (tuple(value) if isinstance(value, list) else value)
            }
            raise InputError(
                f"{journal.path}: its run loaded the model with {theirs}, which is not how it loads"
                " here; resume it on the release that began it, add --overwrite to start anew, or"
                " name another folder with --output"
            )
        return journal

    @contextmanager
    def _naming(self, section: str) -> Iterator[None]:
        """Turn a ValueError into an InputError that names the file and the section."""
        try:
            yield
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{self.config.path}: {section} {one_line(error)}") from None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
