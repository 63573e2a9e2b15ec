"""Verbalizers of several tokens: scores against a plain loop, one forward pass, blocks, runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from task_toys import EXAMPLES, Headless, causal, tokenizer
from tiny_run import write_run
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from fedspzo.app.cli import main
from fedspzo.app.examples import Example
from fedspzo.app.prompts import PromptClassification
from fedspzo.blocks.cut import split
from fedspzo.blocks.output_rows import untie_rows
from fedspzo.errors import InputError
from fedspzo.optim.spzo import SPZO

VERBALIZERS = {"good": "a great film", "poor": "unknown", "dull": "dull"}  # 3, 2 and 1 tokens
EXAMPLES = [*EXAMPLES, Example("film", "dull")]
TEMPLATE = "{text} it was"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def plain_score(model: nn.Module, tok: Any, example: Example, word: str) -> float:
    """The mean log-probability of a verbalizer's tokens, each from a forward pass of its own."""
    ids = tok(f"{example.text} it was").input_ids
    found = []
    for token in tok(word).input_ids:
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        found.append(F.log_softmax(logits, -1)[token].item())
        ids = [*ids, token]
    return sum(found) / len(found)


def plain_scores(model: nn.Module, tok: Any) -> torch.Tensor:
    rows = [
        [plain_score(model, tok, example, word) for word in VERBALIZERS.values()]
        for example in EXAMPLES
    ]
    return torch.tensor(rows)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
@torch.no_grad()
def test_scores_are_mean_log_probabilities_of_one_forward_pass(kind: str) -> None:
    tok, model = tokenizer(padding_side="left"), causal(kind)
    task = PromptClassification(tok, TEMPLATE, VERBALIZERS, 32)
    assert [len(tokens) for tokens in task.tokens] == [3, 2, 1]
    batch = task.collate(task.encode(EXAMPLES))
    calls: list[None] = []
    model.register_forward_hook(lambda *_: calls.append(None))
    scores, labels = task.scores(model, batch)
    assert len(calls) == 1
    expected = plain_scores(model, tok)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    numbers = torch.tensor([0, 1, 1, 2])
    assert torch.equal(labels, numbers)
    losses = F.cross_entropy(expected, numbers, reduction="none")
    torch.testing.assert_close(task.losses(model, batch), losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(task.loss(model, batch), losses.mean(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_measure_is_that_of_the_plain_scores() -> None:
    tok, model = tokenizer(), causal("llama")
    task = PromptClassification(tok, TEMPLATE, VERBALIZERS, 32)
    measured = task.measure(model, task.encode(EXAMPLES * 9))  # more than one batch
    expected, numbers = plain_scores(model, tok), torch.tensor([0, 1, 1, 2])
    assert measured.loss == pytest.approx(F.cross_entropy(expected, numbers).item(), rel=1e-5)
    right = (expected.argmax(-1) == numbers).double().mean().item()
    assert measured.accuracy == pytest.approx(right)
    assert sum(map(sum, measured.confusion or ())) == 9 * len(EXAMPLES)


@torch.no_grad()
def test_one_token_each_gives_the_scores_of_the_path_for_several_up_to_the_normalizer() -> None:
    """A label's logit and its log-probability differ by a constant of the prompt."""
    tok, model = tokenizer(), causal("llama")
    words = {"good": "great", "poor": "awful", "dull": "dull"}
    task = PromptClassification(tok, TEMPLATE, words, 32)
    batch = task.collate(task.encode(EXAMPLES))
    assert len(batch["input_ids"]) == len(EXAMPLES)
    cheap = task.scores(model, batch)[0].log_softmax(-1)
    rows = [
        [plain_score(model, tok, example, word) for word in words.values()] for example in EXAMPLES
    ]
    torch.testing.assert_close(cheap, torch.tensor(rows).log_softmax(-1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_head_is_computed_only_where_a_verbalizers_token_is_predicted() -> None:
    task, model = PromptClassification(tokenizer(), TEMPLATE, VERBALIZERS, 32), causal("llama")
    batch = task.collate(task.encode(EXAMPLES))
    shapes: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    scores, _ = task.scores(model, batch)
    full, _ = task.scores(Headless(model), batch)
    rows, length = batch["input_ids"].shape
    assert [tuple(shape[:2]) for shape in shapes] == [(rows, 3), (rows, length)]
    torch.testing.assert_close(scores, full, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_the_loss_trains_in_blocks_with_rows_of_its_own(evaluation: Any, tied: bool) -> None:
    losses = []
    for wrap in (False, True):
        torch.manual_seed(0)
        config = causal("llama").config
        model = LlamaForCausalLM(
            LlamaConfig(**{**config.to_dict(), "tie_word_embeddings": tied})
        ).eval()
        task = PromptClassification(tokenizer(), TEMPLATE, VERBALIZERS, 32)
        batch = task.collate(task.encode(EXAMPLES))
        untie_rows(model, task.words.tolist())
        optimizer = SPZO(
            split(model, (-1, "head")), 1e-3, perturbations=(1, 2, 4), evaluation=evaluation
        )
        before = task.loss(model, batch).item()
        seen = Headless(model) if wrap else model
        for _ in range(2):
            optimizer.step(partial(task.loss, seen, batch))
        losses.append(optimizer.last_step.losses)
        assert task.loss(model, batch).item() != before
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_text_is_cut_so_that_the_longest_verbalizer_fits() -> None:
    task = PromptClassification(tokenizer(), TEMPLATE, VERBALIZERS, 8)
    encoded = task.encode([Example("bad " * 50, "poor")])
    batch = task.collate(encoded)
    # the verbalizer's last token is predicted, and not read
    assert batch["input_ids"].shape == (3, 8)
    assert len(encoded[0].ids) == 6
    with pytest.raises(InputError, match="takes 2 tokens, and the longest verbalizer 2 more"):
        PromptClassification(tokenizer(), TEMPLATE, VERBALIZERS, 4)


@pytest.mark.slow
def test_a_federated_run_trains_labels_of_several_tokens_and_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.toml"
    path.write_text(path.read_text().replace('"awful"', '"awful film"'))
    assert main(["run", str(path), "--quiet"]) == 0
    assert main(["verify", "runs/run/model", "runs/run/journal.fspz"]) == 0
