"""Prompts, heads and language modelling on tiny random models: loss, padding, verbalizers."""

from __future__ import annotations

from functools import partial
from typing import Any

import peft
import pytest
import torch
from task_toys import EXAMPLES, SMALL, VERBALIZERS, WORDS, Headless, causal, masked_bert, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from fedspzo.app.examples import Example
from fedspzo.app.prompts import PromptClassification
from fedspzo.app.tasks import HeadClassification, LanguageModelling
from fedspzo.blocks.cut import split
from fedspzo.errors import InputError
from fedspzo.optim.spzo import SPZO


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
@torch.no_grad()
def test_causal_prompt_scores_equal_those_of_each_prompt_alone(kind: str) -> None:
    tok, model = tokenizer(padding_side="left"), causal(kind)
    task = PromptClassification(tok, "{text} it was", VERBALIZERS, 32)
    scores, labels = task.scores(model, task.collate(task.encode(EXAMPLES)))
    assert labels.tolist() == [0, 1, 1]
    for row, example in enumerate(EXAMPLES):
        ids = torch.tensor([tok(example.text + " it was").input_ids])
        alone = model(input_ids=ids).logits[0, -1, [WORDS.index("great"), WORDS.index("awful")]]
        torch.testing.assert_close(scores[row], alone)
    expected = F.cross_entropy(scores, labels)
    torch.testing.assert_close(
        task.loss(model, task.collate(task.encode(EXAMPLES))), expected, rtol=0, atol=0
    )


@torch.no_grad()
def test_masked_prompt_reads_the_templates_mask_not_the_texts() -> None:
    config = BertConfig(vocab_size=len(WORDS), intermediate_size=32, **SMALL)
    tok, model = tokenizer(special=True), BertForMaskedLM(config).eval()
    examples = [Example("a [MASK] film", "good"), Example("dull [MASK]", "poor")]
    for template, mask in (("{text} it was {mask}", -1), ("{mask} film {text}", 0)):
        task = PromptClassification(tok, template, VERBALIZERS, 32)
        encoded = task.encode(examples)
        scores, _ = task.scores(model, task.collate(encoded))
        for row, item in enumerate(encoded):
            places = [i for i, token in enumerate(item.ids) if token == tok.mask_token_id]
            assert len(places) == 2
            logits = model(input_ids=torch.tensor([item.ids])).logits[0, places[mask]]
            wanted = logits[[WORDS.index("great"), WORDS.index("awful")]]
            torch.testing.assert_close(scores[row], wanted)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama", "bert", "llama-lora-head"])
@torch.no_grad()
def test_a_prompts_head_is_computed_at_one_position_with_the_full_heads_logits(kind: str) -> None:
    template = "{text} it was"
    if kind == "bert":
        model, template = masked_bert(), "{mask} film {text}"
    elif kind == "llama-lora-head":
        settings = peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False, r=2)
        model = peft.get_peft_model(causal("llama"), settings).eval()
    else:
        model = causal(kind)
    task = PromptClassification(tokenizer(special=kind == "bert"), template, VERBALIZERS, 32)
    batch = task.collate(task.encode(EXAMPLES))
    head = model.get_output_embeddings()
    shapes: list[torch.Size] = []
    watch = head.register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    hooks = len(head._forward_pre_hooks)
    scores, labels = task.scores(model, batch)
    full, expected_labels = task.scores(Headless(model), batch)
    watch.remove()
    rows, length = batch["input_ids"].shape
    assert [tuple(shape[:2]) for shape in shapes] == [(rows, 1), (rows, length)]
    assert torch.equal(labels, expected_labels)
    # a product of another shape may add in another order
    torch.testing.assert_close(scores, full, rtol=1e-6, atol=1e-6)
    assert len(head._forward_pre_hooks) == hooks


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
@torch.no_grad()
def test_only_the_verbalizers_logits_are_computed(kind: str) -> None:
    """A replayed head then costs next to nothing. Nothing reads the other words' logits."""
    model = masked_bert() if kind == "bert" else causal(kind)
    template = "{mask} film {text}" if kind == "bert" else "{text} it was"
    task = PromptClassification(tokenizer(special=kind == "bert"), template, VERBALIZERS, 32)
    batch = task.collate(task.encode(EXAMPLES))
    head, seen = model.get_output_embeddings(), []
    watch = head.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    torch.use_deterministic_algorithms(True)  # memory that nothing has written holds NaN
    try:
        with FlopCounterMode(display=False) as counter:
            scores, _ = task.scores(model, batch)
    finally:
        torch.use_deterministic_algorithms(False)
    whole = counter.get_total_flops()
    watch.remove()
    ((hidden, logits),) = seen
    words = task.words.tolist()
    others = [word for word in range(len(WORDS)) if word not in words]
    torch.testing.assert_close(logits[..., words], head(hidden)[..., words])
    assert logits[..., others].isnan().all()
    assert scores.isfinite().all()
    head.__dict__["forward"] = head.forward  # as accelerate keeps one of its own there
    with FlopCounterMode(display=False) as counter:
        task.scores(model, batch)
    saved = len(EXAMPLES) * len(others) * hidden.shape[-1] * 2
    assert counter.get_total_flops() - whole == saved
    assert "forward" in vars(head)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=repr)
def test_the_head_is_put_back_when_the_model_fails(error: BaseException) -> None:
    model = causal("llama")
    task = PromptClassification(tokenizer(), "{text} it was", VERBALIZERS, 32)
    batch = task.collate(task.encode(EXAMPLES))

    def fail(*_: Any) -> None:
        raise error

    broken = model.lm_head.register_forward_hook(fail)
    with pytest.raises(type(error)):
        task.loss(model, batch)
    broken.remove()
    assert not model.lm_head._forward_pre_hooks
    assert "forward" not in vars(model.lm_head)
    length = batch["input_ids"].shape[1]
    assert model(input_ids=batch["input_ids"]).logits.shape[1] == length  # every position again


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_a_prompts_loss_trains_in_three_blocks_as_with_the_full_head(evaluation: Any) -> None:
    """Capture, replay and virtual parameters take a head at one position as any other head."""
    losses = []
    for wrap in (False, True):
        torch.manual_seed(0)
        model = causal("llama")
        task = PromptClassification(tokenizer(), "{text} it was", VERBALIZERS, 32)
        batch = task.collate(task.encode(EXAMPLES))
        blocks = split(model, (-1, "head"))
        seen = Headless(model) if wrap else model
        optimizer = SPZO(blocks, 1e-3, perturbations=(1, 2, 4), evaluation=evaluation)
        for _ in range(2):
            optimizer.step(partial(task.loss, seen, batch))
        losses.append(optimizer.last_step.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_long_text_is_cut_and_the_template_stays() -> None:
    tok = tokenizer()
    task = PromptClassification(tok, "a film {text} it was", VERBALIZERS, 8)
    (encoded,) = task.encode([Example("bad " * 500, "poor")])
    words = tok.convert_ids_to_tokens(encoded.ids)
    assert len(words) <= 8
    assert words[:3] == ["a", "film", "bad"]
    assert words[-2:] == ["it", "was"]


def test_a_blank_at_the_templates_end_and_an_appended_end_token_change_nothing() -> None:
    plain = PromptClassification(tokenizer(), "{text} it was", VERBALIZERS, 32).encode(EXAMPLES)
    blank = PromptClassification(tokenizer(), "{text} it was ", VERBALIZERS, 32).encode(EXAMPLES)
    assert blank == plain
    ended = PromptClassification(
        tokenizer(special=True, eos_token="[SEP]"), "{text} it was", VERBALIZERS, 32
    ).encode(EXAMPLES)
    assert [e.ids[1:] for e in ended] == [e.ids for e in plain]


@pytest.mark.parametrize(
    ("template", "words", "expected"),
    [
        (
            "{text} it was {mask}",
            {"good": "great", "poor": "unknown"},
            ["poor is 'unknown'", "2 tokens", "'##known'", "masked", "choose a word that is one"],
        ),
        ("{text} it was", {"good": "zzz", "poor": "awful"}, ["good is 'zzz'", "does not know"]),
        ("{text} it was", {"good": "great", "poor": "un zzz"}, ["'un zzz'", "does not know"]),
        (
            "{text} it was",
            {"good": "great", "poor": " great"},
            ["poor is ' great'", "same token", "'good'"],
        ),
        (
            "{text} it was",
            {"good": "a film", "poor": "a  film"},
            ["poor is 'a  film'", "same tokens", "'good'"],
        ),
    ],
)
def test_verbalizers_are_known_tokens_of_their_own_and_a_masked_models_are_one(
    template: str, words: dict[str, str], expected: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        PromptClassification(tokenizer(), template, words, 32)
    for part in ["[task.verbalizers]", *expected]:
        assert part in str(caught.value)


def test_the_blank_before_a_word_is_part_of_its_token() -> None:
    vocabulary = {"a": 0, "Ġit": 1, "Ġgreat": 2, "great": 3, "Ġawful": 4, "[UNK]": 5}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[UNK]")
    task = PromptClassification(tok, "{text} it", VERBALIZERS, 32)
    assert task.words.tolist() == [2, 4]


def test_a_template_that_leaves_no_room_and_a_mask_without_mask_token_are_refused() -> None:
    with pytest.raises(InputError, match="max_length is 3"):
        PromptClassification(tokenizer(), "{text} it was a film", VERBALIZERS, 3)
    with pytest.raises(InputError, match="no mask token"):
        PromptClassification(tokenizer(mask_token=None), "{text} {mask}", VERBALIZERS, 32)


@torch.no_grad()
def test_head_loss_is_the_cross_entropy_of_the_heads_logits() -> None:
    config = BertConfig(vocab_size=len(WORDS), intermediate_size=32, num_labels=2, **SMALL)
    tok, model = tokenizer(special=True), BertForSequenceClassification(config).eval()
    task = HeadClassification(tok, ("good", "poor"), 5)
    encoded = task.encode(EXAMPLES)
    assert [len(e.ids) for e in encoded] == [5, 3, 5]
    logits = torch.cat([model(input_ids=torch.tensor([e.ids])).logits for e in encoded])
    expected = F.cross_entropy(logits, torch.tensor([0, 1, 1]))
    torch.testing.assert_close(task.loss(model, task.collate(encoded)), expected)


@torch.no_grad()
def test_language_modelling_loss_counts_each_real_next_token_once() -> None:
    tok, model = tokenizer(), causal("gpt2")
    task = LanguageModelling(tok, 32)
    encoded = task.encode([*EXAMPLES, Example("film")])
    assert len(encoded) == 2  # Texts of one token have no next one.
    total = torch.zeros(())
    for item in encoded:
        ids = torch.tensor([item.ids])
        total += F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")
    count = sum(len(item.ids) - 1 for item in encoded)
    torch.testing.assert_close(task.loss(model, task.collate(encoded)), total / count)
    with pytest.raises(InputError, match="single token"):
        task.encode([Example("film")])


@pytest.mark.parametrize("kind", ["prompt", "masked", "head", "lm"])
@torch.no_grad()
def test_losses_are_those_of_each_example_alone(kind: str) -> None:
    size = {"vocab_size": len(WORDS), "intermediate_size": 32, **SMALL}
    tok = tokenizer(special=kind in ("masked", "head"))
    if kind == "prompt":
        task, model = PromptClassification(tok, "{text} it was", VERBALIZERS, 32), causal("llama")
    elif kind == "masked":
        task = PromptClassification(tok, "{text} it was {mask}", VERBALIZERS, 32)
        model = masked_bert()
    elif kind == "head":
        task = HeadClassification(tok, ("good", "poor"), 32)
        model = BertForSequenceClassification(BertConfig(num_labels=2, **size)).eval()
    else:
        task, model = LanguageModelling(tok, 32), causal("gpt2")
    encoded = task.encode([*EXAMPLES, Example("a film", "good")])
    losses = task.losses(model, task.collate(encoded))
    alone = [task.loss(model, task.collate([item])) for item in encoded]
    assert len(losses) == len(encoded) > 1
    torch.testing.assert_close(losses, torch.stack(alone), rtol=1e-5, atol=1e-6)


def test_evaluation_is_the_mean_over_all_examples_with_dropout_off() -> None:
    model = causal("gpt2").train()
    task = PromptClassification(tokenizer(), "{text} it was", VERBALIZERS, 32)
    encoded = task.encode(EXAMPLES * 15)  # More than one evaluation batch.
    measured = task.evaluate(model, encoded)
    assert model.training
    model.eval()
    with torch.no_grad():
        scores, labels = task.scores(model, task.collate(encoded))
    assert measured["loss"] == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-5)
    assert measured["accuracy"] == (scores.argmax(-1) == labels).double().mean().item()
