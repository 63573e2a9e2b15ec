"""Completions: loss over the answer alone, truncation, the joint of prompt and answer, files."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from task_toys import WORDS, Headless, causal, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedspzo.app import config
from fedspzo.app.completion import Completion
from fedspzo.app.data import read_splits
from fedspzo.app.examples import Example
from fedspzo.blocks.cut import split
from fedspzo.errors import InputError
from fedspzo.optim.spzo import SPZO

END = WORDS.index("[SEP]")
PAIRS = [("a fine film it was", "great"), ("dull", "awful dull film"), ("it was bad", "a film")]
EXAMPLES = [Example(prompt, answer=answer) for prompt, answer in PAIRS]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def completion(max_length: int = 32, **changes: Any) -> Completion:
    return Completion(tokenizer(eos_token="[SEP]", **changes), max_length)


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
@torch.no_grad()
def test_the_loss_is_that_of_labels_with_the_prompt_left_out(kind: str) -> None:
    task, model = completion(padding_side="left"), causal(kind)
    batch = task.collate(task.encode(EXAMPLES))
    means, counts, right = [], [], 0
    for prompt, answer in PAIRS:
        whole = torch.tensor([[*ids(prompt), *ids(answer), END]])
        labels = whole.clone()
        labels[0, : len(ids(prompt))] = -100
        output = model(input_ids=whole, labels=labels)
        means.append(output.loss)
        counts.append(len(ids(answer)) + 1)
        likeliest = output.logits[0, :-1].argmax(-1)
        right += int((likeliest == labels[0, 1:]).sum())
    expected = torch.stack(means)
    torch.testing.assert_close(task.losses(model, batch), expected, rtol=1e-5, atol=1e-5)
    total = (expected * torch.tensor(counts)).sum() / sum(counts)
    torch.testing.assert_close(task.loss(model, batch), total, rtol=1e-5, atol=1e-5)
    measured = task.measure(model, task.encode(EXAMPLES * 15))
    assert measured.loss == pytest.approx(total.item(), rel=1e-5)
    assert measured.accuracy == pytest.approx(right / sum(counts))
    assert measured.confusion is None


@torch.no_grad()
def test_the_head_is_computed_only_where_the_answer_is_predicted() -> None:
    task, model = completion(), causal("llama")
    batch = task.collate(task.encode(EXAMPLES))
    shapes: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    logits, tokens = task.scores(model, batch)
    full, _ = task.scores(Headless(model), batch)
    assert [shape[1] for shape in shapes] == [4, batch["input_ids"].shape[1]]
    torch.testing.assert_close(logits, full, rtol=1e-6, atol=1e-6)
    assert tokens.tolist() == [i for _, answer in PAIRS for i in (*ids(answer), END)]


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_the_loss_trains_in_blocks_as_with_the_full_head(evaluation: Any) -> None:
    losses = []
    for wrap in (False, True):
        torch.manual_seed(0)
        task, model = completion(), causal("llama")
        batch = task.collate(task.encode(EXAMPLES))
        blocks = split(model, (-1, "head"))
        optimizer = SPZO(blocks, 1e-3, perturbations=(1, 2, 4), evaluation=evaluation)
        seen = Headless(model) if wrap else model
        for _ in range(2):
            optimizer.step(partial(task.loss, seen, batch))
        losses.append(optimizer.last_step.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_special_tokens_stand_before_the_prompt_and_the_end_behind_the_answer() -> None:
    (encoded,) = completion(special=True).encode([Example("a film it was", answer="great")])
    words = [WORDS[i] for i in encoded.ids]
    assert words == ["[CLS]", "a", "film", "it", "was", "great", "[SEP]"]
    assert WORDS[encoded.ids[encoded.position]] == "was"


def test_the_start_of_a_long_prompt_is_cut_and_never_the_answer() -> None:
    long = Example("bad " * 300 + "film it was", answer="awful dull film")
    (encoded,) = completion(8, special=True).encode([long])
    words = [WORDS[i] for i in encoded.ids]
    assert len(words) <= 8
    assert words[0] == "[CLS]"
    assert words[-6:] == ["it", "was", "awful", "dull", "film", "[SEP]"]


def test_answers_that_do_not_fit_are_counted_and_refused() -> None:
    task = completion(6, special=True)
    task.encode([Example("a film", answer="bad bad bad")])  # with start, end and a word of prompt
    examples = [Example("a film", answer="bad " * count) for count in (1, 4, 7)]
    with pytest.raises(InputError, match=r"is 6 .*2 of 3 answers .* the longest needs 10"):
        task.encode(examples)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    with pytest.raises(InputError, match="no end-of-sequence token"):
        Completion(tokenizer(), 32)


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("it", "great", ["it", "Ġgreat", "</s>"]),
        ("it ", "great", ["it", "Ġgreat", "</s>"]),
        ("it", " great", ["it", "Ġgreat", "</s>"]),
        ("it\n", "great", ["it", "Ċ", "great", "</s>"]),
    ],
)
def test_a_blank_stands_between_prompt_and_answer_unless_white_space_does(
    prompt: str, answer: str, expected: list[str]
) -> None:
    vocabulary = {"it": 0, "Ġgreat": 1, "great": 2, "Ċ": 3, "</s>": 4, "[UNK]": 5}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="[UNK]")
    (encoded,) = Completion(tok, 32).encode([Example(prompt, answer=answer)])
    assert tok.convert_ids_to_tokens(encoded.ids) == expected


def test_a_merge_over_the_joint_leaves_the_prompts_own_tokens() -> None:
    vocabulary = {"a": 0, "b": 1, "ab": 2, "</s>": 3}
    inner = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    tok = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    assert tok("ab").input_ids == [2]
    task = Completion(tok, 32)
    # no blank in this vocabulary: the joint is "a" + "b"
    (encoded,) = task.encode([Example("a", answer=" b")])
    assert encoded.ids[0] == vocabulary["a"]
    assert encoded.ids[-2:] == (vocabulary["b"], vocabulary["</s>"])


DATA = """
[model]
name = "demo"
[task]
type = "completion"
{task}
[data]
train = "train.jsonl"
test = "test.csv"
{data}
[federation]
clients = 2
rounds = 4
{federation}
"""


def written(folder: Path, *, task: str = "", data: str = "", federation: str = "") -> Path:
    rows = [{"prompt": "1 + 1 =", "answer": 2}, {"prompt": "it was", "answer": "great"}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "test.csv").write_text("prompt,answer\n1 + 1 =,2\nit was,bad\n")
    filled = DATA.format(task=task, data=data, federation=federation)
    (folder / "mine.toml").write_text(filled)
    return folder / "mine.toml"


def test_prompts_and_answers_are_read_by_their_columns(tmp_path: Path) -> None:
    read = config.load(written(tmp_path))
    splits = read_splits(read.data, read.task)
    assert splits.train == [Example("1 + 1 =", answer="2"), Example("it was", answer="great")]
    assert splits.labels == ()
    assert splits.repeated == 1  # another answer to the same prompt is no repetition
    assert read.task.metric_rows == 200
    (tmp_path / "train.jsonl").write_text('{"q": "who", "a": "she"}\n')
    path = tmp_path / "mine.toml"
    path.write_text(
        path.read_text()
        .replace("[federation]", "[federation]")
        .replace('test = "test.csv"', 'test = "test.csv"\nprompt = "q"\nanswer = "a"')
    )
    (tmp_path / "test.csv").write_text("q,a\nwho,he\n")
    read = config.load(path)
    assert read_splits(read.data, read.task).test == [Example("who", answer="he")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "it was"}, "field 'answer' is missing .* as \\[data\\] answer"),
        ({"text": "it was", "answer": "a"}, "field 'prompt' is missing .* as \\[data\\] prompt"),
        ({"prompt": "it was", "answer": " "}, "'answer' is ' '; give a prompt and an answer"),
        ({"prompt": "it was", "answer": ["a"]}, "'answer' is \\['a'\\]; give an answer as a text"),
    ],
)
def test_a_row_without_its_answer_is_refused(
    tmp_path: Path, row: dict[str, object], message: str
) -> None:
    read = config.load(written(tmp_path))
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        read_splits(read.data, read.task)


@pytest.mark.parametrize(
    ("where", "line", "message"),
    [
        ("federation", 'partition = "dirichlet"', "needs labels, and .* 'completion' has none"),
        ("task", "metric_rows = -1", "metric_rows is -1; give 0 or more"),
        ("task", 'template = "{text}!"', "template is given, but type = 'completion'"),
        ("task", "new_head = true", "new_head is given, but type = 'completion'"),
    ],
)
def test_settings_that_do_not_fit_a_completion_are_refused(
    tmp_path: Path, where: str, line: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        config.load(written(tmp_path, **{where: line}))
