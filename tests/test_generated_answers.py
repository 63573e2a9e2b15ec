"""Generated answers: SQuAD's scores, greedy batches against a plain loop, a run's summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from task_toys import WORDS, Headless, causal, tokenizer
from tiny_run import write_run
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fedspzo.app.answer_scores import answer_scores, exact_match, normalized, token_f1
from fedspzo.app.cli import main
from fedspzo.app.completion import Completion
from fedspzo.app.examples import Example
from fedspzo.app.generation import greedy
from fedspzo.app.models import working
from fedspzo.errors import InputError

PROMPTS = ["film", "a fine film it was", "dull", "a bad bad film", "it was great"]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def lively(kind: str) -> nn.Module:
    """A model whose likeliest tokens change from step to step; a small one repeats a single one."""
    model = causal(kind)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8.0 if weight.dim() > 1 else 1.0)
    return model


@torch.no_grad()
def plain_loop(model: nn.Module, ids: list[int], room: int, ends: set[int]) -> list[int]:
    """The likeliest continuation, from a forward pass over the whole text for each token."""
    new: list[int] = []
    while len(new) < room:
        token = int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax())
        if token in ends:
            break
        new.append(token)
    return new


def test_texts_are_normalized_as_squad_does() -> None:
    assert normalized("The  Cat, a dog; an\tOwl!") == "cat dog owl"
    assert normalized("Theory of a-b") == "theory of ab"
    assert normalized("the a an .") == ""


@pytest.mark.parametrize(
    ("answer", "reference", "match", "f1"),
    [
        ("The Eiffel Tower.", "eiffel tower", 1.0, 1.0),
        ("in Paris", "Paris", 0.0, 2 / 3),
        ("red red blue", "red blue blue", 0.0, 2 / 3),
        ("green", "red", 0.0, 0.0),
        ("", "red", 0.0, 0.0),
        ("the", "an.", 1.0, 1.0),
    ],
)
def test_scores_are_squads(answer: str, reference: str, match: float, f1: float) -> None:
    assert exact_match(answer, reference) == match
    assert token_f1(answer, reference) == pytest.approx(f1)
    assert answer_scores([answer, "x"], [reference, "x"]) == pytest.approx(
        {"exact_match": (match + 1) / 2, "token_f1": (f1 + 1) / 2}
    )


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_batches_padded_on_the_left_give_the_plain_loops_tokens(kind: str) -> None:
    tok, model = tokenizer(), lively(kind)
    prompts = [tok(prompt).input_ids for prompt in PROMPTS]
    free = [plain_loop(model, prompt, 6, set()) for prompt in prompts]
    assert len({token for row in free for token in row}) > 2
    ends = {free[1][2], free[3][4]}
    expected = [plain_loop(model, prompt, 6, ends) for prompt in prompts]
    assert len({len(row) for row in expected}) > 1  # rows of a batch end at different tokens
    assert greedy(model, prompts, room=6, ends=ends, pad=0) == expected


def test_the_checkpoints_own_settings_do_not_apply_and_come_back() -> None:
    tok, model = tokenizer(), lively("llama")
    prompts = [tok(prompt).input_ids for prompt in PROMPTS]
    expected = [plain_loop(model, prompt, 5, set()) for prompt in prompts]
    own = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, no_repeat_ngram_size=1, top_k=3
    )
    model.generation_config = own
    model.train()
    never = {len(WORDS) + 1}
    assert greedy(model, prompts, room=5, ends=never, pad=0) == expected
    assert model.generation_config is own
    assert model.training


def test_a_prompt_that_leaves_little_room_gets_what_the_model_has_positions_for() -> None:
    """GPT-2 has 32 learned positions here; the others' answers stay as long as they are."""
    tok, model = tokenizer(eos_token="[SEP]"), lively("gpt2")
    task = Completion(tok, 32)
    pairs = [("a " * 40, "film"), ("dull", "film " * 20), ("bad film", "it")]
    encoded = task.encode([Example(prompt, answer=answer) for prompt, answer in pairs])
    assert len(encoded[0].ids) == 32
    end = {WORDS.index("[SEP]")}
    expected = [
        plain_loop(model, list(one.ids[: one.position + 1]), room, end)
        for one, room in zip(encoded, (2, 21, 21), strict=True)
    ]
    texts = [tok.decode(tokens, skip_special_tokens=True) for tokens in expected]
    assert task.answers(model, encoded) == texts


def test_answers_end_where_the_checkpoint_ends_a_text_too() -> None:
    tok, model = tokenizer(eos_token="[SEP]"), lively("llama")
    task = Completion(tok, 32)
    (one,) = task.encode([Example("a fine film", answer="it was a bad bad film")])
    free = plain_loop(model, list(one.ids[: one.position + 1]), 7, set())
    model.generation_config.eos_token_id = [free[3]]
    first = free.index(free[3])
    assert task.answers(model, [one]) == [tok.decode(free[:first], skip_special_tokens=True)]


def test_at_most_metric_rows_are_asked_evenly_over_the_file() -> None:
    asked: list[str] = []

    class Listening(Completion):
        def answers(self, model: nn.Module, examples: Any) -> list[str]:
            asked.extend(example.answer for example in examples)
            return [example.answer for example in examples]

    tok, model = tokenizer(eos_token="[SEP]"), causal("llama")
    examples = [Example("a film", answer=f"dull {word}") for word in WORDS[5:15]]
    task = Listening(tok, 32, metric_rows=4)
    scores = task.score_answers(model, task.encode(examples))
    assert asked == [f"dull {WORDS[5 + i]}" for i in (0, 2, 5, 7)]
    assert scores == {"exact_match": 1.0, "token_f1": 1.0}
    task.metric_rows = 0
    assert task.score_answers(model, task.encode(examples)) == {}
    task.metric_rows = 100
    asked.clear()
    task.score_answers(model, task.encode(examples))
    assert len(asked) == 10


TRAIN = [{"prompt": f"a {word} film", "answer": "was great"} for word in ("fine", "dull")]


@pytest.mark.slow
def test_a_federated_run_reports_the_scores_of_a_plain_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    base = AutoTokenizer.from_pretrained("net")
    base.eos_token = "[PAD]"
    base.save_pretrained("net")
    path = Path("run.toml")
    text = path.read_text()
    start, end = text.index("[task]"), text.index("[data]")
    path.write_text(text[:start] + '[task]\ntype = "completion"\nmetric_rows = 6\n' + text[end:])
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TRAIN * 4))
    # the first reference is what the base says, so that not all scores are 0
    model = AutoModelForCausalLM.from_pretrained("net").eval()
    said = base.decode(plain_loop(model, base("fine film").input_ids, 3, {0, 2}))
    test = [("fine film", said), ("bad film", "awful"), ("it was", "dull"), ("a", "a great a")]
    rows = "".join(f"{prompt},{answer}\n" for prompt, answer in test)
    Path("test.csv").write_text("prompt,answer\n" + rows)
    assert main(["run", str(path)]) == 0
    assert "Exact match of generated answers: " in capsys.readouterr().out
    summary = json.loads(Path("runs/run/metrics.jsonl").read_text().splitlines()[-1])
    assert main(["verify", "runs/run/model", "runs/run/journal.fspz"]) == 0
    for prefix, folder in (("zero_shot_", "net"), ("", "runs/run/model")):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        tok = AutoTokenizer.from_pretrained(folder)
        # 4 tokens: the longest reference and its end
        new = [plain_loop(model, tok(prompt).input_ids, 4, {0, 2}) for prompt, _ in test]
        answers = [tok.decode(tokens, skip_special_tokens=True) for tokens in new]
        expected = answer_scores(answers, [answer for _, answer in test])
        assert expected["token_f1"] > 0
        for name, value in expected.items():
            assert summary[prefix + name] == pytest.approx(value)
    assert {"mezo_exact_match", "mezo_token_f1"} <= summary.keys()
    assert "majority_accuracy" not in summary


def test_a_model_that_does_not_generate_is_one_line() -> None:
    task = Completion(tokenizer(eos_token="[SEP]"), 32)
    model = Headless(causal("llama"))
    with pytest.raises(InputError, match="generation does not work"), working("net", "generation"):
        task.score_answers(model, task.encode([Example("a", answer="film")]))


@pytest.mark.slow
def test_the_example_answers_more_messages_after_training_than_before(tmp_path: Path) -> None:
    """Some two fifths of the example's rounds are enough."""
    config = Path(__file__).parents[1] / "examples" / "answers" / "config.toml"
    out = tmp_path / "out"
    assert main(["run", str(config), "--rounds", "26", "--quiet", "--output", str(out)]) == 0
    summary = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert summary["exact_match"] > summary["zero_shot_exact_match"] + 0.4
    assert summary["token_f1"] > summary["zero_shot_token_f1"] + 0.2
    assert summary["loss"] < 0.2 * summary["zero_shot_loss"]
