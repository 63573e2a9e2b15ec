"""The model card: what the Hub reads of it, what it says, and what it does not give away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from saved_toys import run

from fedspzo.app import config as configuration
from fedspzo.app.data import read_splits
from fedspzo.app.model_card import code, model_card
from fedspzo.app.recipe import Recipe

PRIVATE = "[privacy]\nclip = 1.0\nnoise_multiplier = 2.0\ndelta = 0.01\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("great", "`great`"),
        ("", "`  `"),
        (" a", "`  a `"),
        ("a`b", "`` a`b ``"),
        ("``", "``` `` ```"),
        ("a|b", "`a\\|b`"),
        ("a\nb\x7f", "`a\\nb\\x7f`"),
        ('say "ü"', '`say "ü"`'),
    ],
)
def test_a_users_text_is_code_on_one_line(text: str, shown: str) -> None:
    assert code(text) == shown


def card_of(folder: Path, kind: str, **changes: str) -> tuple[ModelCard, dict[str, Any]]:
    summary = run(folder, kind, **changes)
    return ModelCard.load(folder / "out" / "model" / "README.md"), summary


@pytest.mark.slow
def test_a_card_has_the_test_splits_measures_and_the_way_back(tmp_path: Path) -> None:
    home = tmp_path / "Jane Doe"
    home.mkdir()
    card, summary = card_of(home, "own head")
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert data.base_model is None  # a folder is no place that the Hub knows
    assert data.model_name == "out"
    found = {one.metric_name: one for one in data.eval_results}
    assert found["accuracy"].metric_value == summary["accuracy"]
    assert found["macro F1"].metric_value == summary["macro_f1"]
    assert found["loss in nats"].metric_value == summary["loss"]
    assert {one.dataset_name for one in found.values()} == {"test.jsonl (5 examples)"}
    text = card.text
    for part in (
        "from the model in the folder `net`",
        "The labels are `NEG`, `POS`.",
        "On the 5 examples of `test.jsonl`, which were not trained on.",
        f"| accuracy | {summary['zero_shot_accuracy']:.1%} | {summary['accuracy']:.1%} |",
        f"| bytes to the server | {summary['bytes_up']} B, all clients together |",
        "The clients were simulated in one process.",
        f"digest `{summary['digest']}`",
        "fedspzo replay BASE journal.fspz --round 3 -o rebuilt",
        "which is no promise of privacy",
    ):
        assert part in text, part
    for path in (home / "out" / "model").iterdir():
        for secret in ("Jane", str(tmp_path), str(Path.home()) + "/"):
            assert secret.encode() not in path.read_bytes(), path.name


@pytest.mark.slow
def test_a_card_says_how_a_prompts_answer_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    card, _ = card_of(tmp_path / "a", "prompt")
    assert card.data.pipeline_tag == "text-generation"
    assert "the template `{text} it was`." in card.text
    assert "| `good` | `great` |" in card.text
    assert "scores highest after it" in card.text
    card, _ = card_of(tmp_path, "masked")
    assert card.data.pipeline_tag == "fill-mask"
    assert "scores highest at the mask" in card.text


@pytest.mark.slow
def test_a_card_of_adapters_of_privacy_and_of_a_bad_end(tmp_path: Path) -> None:
    for name in ("lora", "private"):
        (tmp_path / name).mkdir()
    card, summary = card_of(tmp_path / "lora", "lora completion")
    assert card.data.library_name == "peft"
    assert "lora" in card.data.tags
    assert "| trained | LoRA adapters, r 2, alpha 16 |" in card.text
    assert f"{summary['exact_match']:.1%} |" in card.text
    assert "Answers were generated for 4 of the examples." in card.text
    card, summary = card_of(tmp_path / "private", "prompt", federation=PRIVATE)
    most = max(summary["epsilons"])
    assert f"| privacy | epsilon {most:.3g} at delta 0.01, a client |" in card.text
    assert "no promise of privacy" not in card.text
    path = tmp_path / "private" / "run.toml"
    config = configuration.load(path)
    splits = read_splits(config.data, config.task)
    bad = {**summary, "fault": "the run ended badly: # it | rose", "loss": None}
    content = model_card(config, splits, Recipe.of(config, splits), bad)
    assert "* **The run ended badly**: `the run ended badly: # it \\| rose`" in content
    assert "| loss (nats) |" in content
    assert "loss in nats" not in content
