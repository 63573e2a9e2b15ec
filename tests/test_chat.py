"""Chat templates: the turns' tokens, the blank before an answer, cutting, refusals, a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from task_toys import EXAMPLES, VERBALIZERS, WORDS, causal, tokenizer
from tiny_run import write_run
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fedspzo.app.chat import Chat
from fedspzo.app.cli import main
from fedspzo.app.completion import Completion
from fedspzo.app.examples import Example
from fedspzo.app.model_files import model_files
from fedspzo.app.prompts import PromptClassification
from fedspzo.app.sections import TaskConfig
from fedspzo.errors import InputError

# a user's turn is "[CLS] ... [SEP]", the assistant's "[MASK] ... [SEP]"
TEMPLATE = """{%- for message in messages -%}
{{ '[CLS]' if message['role'] == 'user' else '[MASK]' }} {{ message['content'] }} [SEP]
{%- endfor -%}
{%- if add_generation_prompt -%}[MASK]{%- endif -%}"""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def chatting(template: str = TEMPLATE, **changes: Any) -> PreTrainedTokenizerFast:
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]", **changes}
    return tokenizer(chat_template=template, **names)


def ids(words: str) -> list[int]:
    return [WORDS.index(word) for word in words.split()]


@pytest.mark.parametrize("several", [False, True])
@torch.no_grad()
def test_a_prompt_is_the_users_turn_and_the_word_the_assistants(several: bool) -> None:
    words = {"good": "great film", "poor": "awful"} if several else VERBALIZERS
    model = causal("llama")
    task = PromptClassification(chatting(), "{text} it was", words, 32, chat=True)
    encoded = task.encode(EXAMPLES)
    rows = []
    for example, one in zip(EXAMPLES, encoded, strict=True):
        prompt = ids(f"[CLS] {example.text} it was [SEP] [MASK]")
        assert list(one.ids) == prompt
        scores = []
        for word in words.values():
            text, found = list(prompt), []
            for token in ids(word):
                logits = model(input_ids=torch.tensor([text])).logits[0, -1]
                found.append(F.log_softmax(logits, -1)[token].item())
                text.append(token)
            scores.append(sum(found) / len(found))
        rows.append(scores)
    expected = F.cross_entropy(torch.tensor(rows), torch.tensor([0, 1, 1]))
    torch.testing.assert_close(task.loss(model, task.collate(encoded)), expected)


def test_a_completions_prompt_is_the_users_turn() -> None:
    task = Completion(chatting(), 32, chat=True)
    (one,) = task.encode([Example("a bad film", answer="dull")])
    assert list(one.ids) == ids("[CLS] a bad film [SEP] [MASK] dull [SEP]")
    assert one.position == 5


def test_texts_are_cut_and_the_turns_stay() -> None:
    task = PromptClassification(chatting(), "{text} it was", VERBALIZERS, 8, chat=True)
    (one,) = task.encode([Example("fine bad " + "dull " * 300, "poor")])
    assert list(one.ids) == ids("[CLS] fine bad dull it was [SEP] [MASK]")
    (one,) = Completion(chatting(), 8, chat=True).encode(
        [Example("dull " * 300 + "bad film", answer="a")]
    )
    words = [WORDS[i] for i in one.ids]
    assert len(words) <= 8
    assert words[0] == "[CLS]"
    assert words[-6:] == ["bad", "film", "[SEP]", "[MASK]", "a", "[SEP]"]


@pytest.mark.parametrize(
    ("user", "opening", "answer", "blank"),
    [
        ("U{}.", "A", "A{}.", ""),  # ChatML's kind
        ("U{}.", "", " {}.", " "),  # Llama 2's kind
        ("U{}.", "A: ", "A: {}.", " "),
        ("U{}.", "A ", "think{}.", " "),  # a finished answer is written in another way
        ("U{}.", "A", "think{}.", ""),
    ],
)
def test_the_blank_before_an_answer_is_the_templates(
    user: str, opening: str, answer: str, blank: str
) -> None:
    turns = " ".join(
        f"{{% if m.role == '{role}' %}}{text.format('{{ m.content }}')}{{% endif %}}"
        for role, text in (("user", user), ("assistant", answer))
    ).replace("{% endif %} {% if", "{% endif %}{% if")
    template = f"{{% for m in messages %}}{turns}{{% endfor %}}"
    template += f"{{% if add_generation_prompt %}}{{{{ '{opening}' }}}}{{% endif %}}"
    chat = Chat(chatting(template))
    assert chat.blank == blank
    assert chat.turn("word") == f"Uword.{opening}".rstrip(" ")


@pytest.mark.parametrize(("blank", "expected"), [("", "great"), (" ", "Ġgreat")])
def test_a_word_has_the_blank_that_the_template_gives_it(blank: str, expected: str) -> None:
    vocabulary = {"it": 0, "Ġgreat": 1, "great": 2, "Ċ": 3, "[UNK]": 4, "Ġawful": 5, "awful": 6}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    template = "{% for m in messages %}{{ m.content if m.role == 'user' else '\n" + blank
    template += "' + m.content }}{% endfor %}{% if add_generation_prompt %}{{ '\n' }}{% endif %}"
    tok = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[UNK]", chat_template=template
    )
    task = PromptClassification(tok, "it{text}", VERBALIZERS, 32, chat=True)
    assert tok.convert_ids_to_tokens(task.words.tolist())[0] == expected


def test_the_date_does_not_change_the_prompt() -> None:
    template = "{{ date_string if date_string is defined else strftime_now('%d %b %Y %H:%M:%S') }}"
    assert Chat(chatting(template)).turn("a") == "26 Jul 2024"


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    for make in (
        lambda tok: PromptClassification(tok, "{text} it was", VERBALIZERS, 32, chat=True),
        lambda tok: Completion(tok, 32, chat=True),
    ):
        with pytest.raises(InputError, match=r"chat is true, .* no chat template; name a model"):
            make(tokenizer(eos_token="[SEP]"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "lm"}, "chat is given, but type = 'lm' .* 'prompt' or 'completion'"),
        ({"type": "classification"}, "chat is given, but type = 'classification'"),
        (
            {"type": "prompt", "template": "{text} {mask}", "verbalizers": VERBALIZERS},
            "a masked model has no turns; remove chat, or {mask}",
        ),
    ],
)
def test_chat_where_there_is_no_turn_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskConfig(chat=True, **settings)


@pytest.mark.slow
def test_a_run_with_chat_belongs_to_its_chat_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = Path("run.toml")
    path.write_text(path.read_text().replace("[data]", "chat = true\n[data]", 1))
    assert main(["run", str(path), "--quiet"]) == 2
    assert "no chat template" in capsys.readouterr().err
    tok = AutoTokenizer.from_pretrained("net")
    tok.chat_template = "{{ messages[0]['content'] }} film "
    tok.save_pretrained("net")
    assert main(["run", str(path), "--quiet"]) == 0
    assert main(["verify", "runs/run/model", "runs/run/journal.fspz"]) == 0
    known = model_files(str(tmp_path / "net"))
    tok.chat_template = "{{ messages[0]['content'] }} it"
    tok.save_pretrained("net")
    assert model_files(str(tmp_path / "net")) != known
