"""Every class of transformers with a head is cut, or an error says why not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from family_sweep import examine, page, prepared, sweep
from small_models import classes

from fedspzo.blocks.cut import split
from fedspzo.optim.spzo import SPZO

PAGE = Path(__file__).parent.parent / "docs/models.md"

pytestmark = pytest.mark.usefixtures("one_thread")

# one of each form: decoder, encoder, hybrid, shared layers, encoder-decoder, text and image, image
SAMPLE = {
    "Qwen3ForCausalLM": "model.layers.7",
    "ModernBertForSequenceClassification": "model.layers.7",
    "JambaForCausalLM": "model.layers.7",
    "AlbertForMaskedLM": "albert.encoder",
    "FunnelForMaskedLM": "funnel.decoder.layers.6",
    "BartForConditionalGeneration": "model.decoder.layers.6",
    "WhisperForConditionalGeneration": "model.decoder.layers.6",
    "LlavaForConditionalGeneration": "model.language_model.layers.7",
    "ViTForImageClassification": "vit.layers.7",
}

# a layer's output is not all that what comes next reads; the first step says so
NOT_EXACT = {"Inkling2ForCausalLM", "PoolFormerForImageClassification"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_class_of_each_form_is_cut_and_replayed_bit_for_bit(name: str) -> None:
    family, kind = classes()[name]
    row = examine(family, name, kind)
    assert row.problem == ""
    assert row.cut == SAMPLE[name]
    assert row.share < 0.35


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NOT_EXACT))
def test_a_class_that_cannot_be_replayed_is_told_in_the_first_step(name: str) -> None:
    family, kind = classes()[name]
    model, batch = prepared(family, name, kind)
    with pytest.raises(RuntimeError, match=r"before block 2.*[Cc]ut elsewhere, or pass Blocks"):
        SPZO(split(model)).step(lambda: model(**batch).loss)


@pytest.mark.sweep
def test_every_class_that_can_be_tried_is_exact() -> None:
    """Writes docs/models.md, whose changes are to be looked at."""
    start = time.monotonic()
    rows, others = sweep()
    minutes = f"{(time.monotonic() - start) / 60:.0f} minutes on one processor"
    PAGE.write_text(page(rows, others, minutes))
    print(PAGE.read_text())
    for name, why in (others | {row.name: row.problem for row in rows if row.problem}).items():
        print(name, why)
    assert {row.name for row in rows if row.problem} <= NOT_EXACT
    assert len(rows) >= 330
