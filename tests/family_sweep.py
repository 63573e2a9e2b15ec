"""Where every class of transformers with a head is cut, and whether that is exact.

Each class is built small and at random. `make sweep` writes the table to docs/models.md.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import transformers as hf
from families import assert_split_is_exact
from small_models import LAYERS, VOCAB, WIDTH, batches, build, classes
from torch import Tensor, nn

from fedspzo.blocks.cut import Blocks, split
from fedspzo.optim.spzo import SPZO

MOST_WEIGHTS = 20e6
INPUTS = {
    "input_ids": "text",
    "pixel_values": "image",
    "input_features": "sound",
    "input_values": "sound",
}


class NotTried(Exception):
    """A class that we cannot build small, or have no batch for."""


@dataclass(frozen=True)
class Row:
    """What the sweep found of one class.

    Attributes:
        family: the family's name.
        name: the class's name.
        cut: the module after which block 2 begins.
        share: cost of an evaluation that replays block 1, over a full one's.
        problem: why it is not exact; empty if it is.
        given: what the batch had, of text, image and sound.
    """

    family: str
    name: str
    given: str
    cut: str = ""
    share: float = 1.0
    problem: str = ""

    def __str__(self) -> str:
        exact = "yes" if not self.problem else "no, and the first step says so"
        cut = f"`{self.cut}`" if self.cut else "none"
        return (
            f"| {self.family} | {self.name} | {self.given} | {cut} | {self.share:.3f} | {exact} |"
        )


def prepared(family: str, name: str, kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a small model and a batch that it takes.

    Raises:
        NotTried: there is none.
    """
    try:
        model = build(family, name, most=MOST_WEIGHTS)
    except Exception as error:
        raise NotTried(f"not built: {_line(error)}") from error
    problem = "no batch"
    for batch in batches(model, kind):
        try:
            with torch.no_grad():
                loss = model(**batch).loss
            if loss is not None and loss.isfinite():
                return model, batch
        except Exception as error:
            problem = _line(error)
    raise NotTried(f"no batch: {problem}")


def examine(family: str, name: str, kind: str) -> Row:
    """Cut a class by default, take a step, and compare replayed losses with full ones.

    Raises:
        NotTried: it cannot be built, or there is no batch for it.
    """
    model, batch = prepared(family, name, kind)
    given = ", ".join(word for key, word in INPUTS.items() if key in batch)

    def loss() -> Tensor:
        return model(**batch).loss

    try:
        blocks = split(model)
        optimizer = SPZO(blocks)
        optimizer.step(loss)
        if optimizer.cost_shares == (1.0,):  # nothing is replayed: a warning has said why
            return Row(family, name, given, _end(blocks), 1.0)
        assert_split_is_exact(blocks, loss)
    except Exception as error:
        return Row(family, name, given, problem=_line(error))
    shares = optimizer.cost_shares or (1.0,)
    return Row(family, name, given, _end(blocks), shares[-1])


def _end(blocks: Blocks) -> str:
    names = {module: name for name, module in blocks.model.named_modules()}
    return names[blocks.layers[-1]]


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).replace("|", "/") or type(error).__name__


def sweep() -> tuple[list[Row], dict[str, str]]:
    """Examine all classes. Returns the rows, and why the others were not tried, by class."""
    hf.logging.set_verbosity_error()
    rows, others = [], {}
    for name, (family, kind) in classes().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                rows.append(examine(family, name, kind))
            except NotTried as error:
                others[name] = str(error)
    return rows, others


PAGE = """# Where models are cut

You want to know what `split(model)` does to a class of transformers. This table has every class
with a head that could be built small and at random, and that took one of our batches. Written by
`make sweep` (`tests/family_sweep.py`) with transformers {version}, in {minutes}.
For other cuts see [estimators.md](estimators.md#cut-elsewhere).

* **Last of block 1**: the module after which block 2 begins, by default.
* **Share**: the cost of an evaluation that replays block 1, over a full one's, in floating point
  operations. It is the *small* model's: {layers} layers of width {width}, {vocab} words, 12 tokens.
  A head costs more with a large vocabulary, and less after more layers.
  1.000: calls run in full, and a warning of the first step says why.
* **Exact**: losses from replayed activations are those of full evaluations bit for bit, also with
  block 2 moved.

{exact} of {count} classes, of {families} families, are exact.

| family | class | batch | last of block 1 | share | exact |
| --- | --- | --- | --- | --- | --- |
{rows}

## Not tried

{others} classes were not tried. Our sizes do not fit them together, or leave more than {most:.0f} M
weights; or they need a library that was not there, or a batch of a form of their own. That says
nothing of `split`.

{names}
"""


def page(rows: Sequence[Row], others: Mapping[str, str], minutes: str) -> str:
    """Return docs/models.md."""
    names = textwrap.fill(", ".join(sorted(others)) + ".", 100)
    return PAGE.format(
        version=hf.__version__,
        minutes=minutes,
        layers=LAYERS,
        width=WIDTH,
        vocab=VOCAB,
        exact=sum(not row.problem for row in rows),
        count=len(rows),
        families=len({row.family for row in rows}),
        rows="\n".join(map(str, sorted(rows, key=lambda row: (row.family, row.name)))),
        others=len(others),
        most=MOST_WEIGHTS / 1e6,
        names=names,
    )
