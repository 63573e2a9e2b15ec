"""Classification by prompt: a language model answers with a word, which stands for a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedspzo.errors import InputError

from .answer_tokens import label_tokens, mean_log_probabilities, padded_targets
from .chat import Chat
from .examples import Example
from .prompt_head import head_at, logits_at
from .tasks import AT_ONCE, Batch, Encoded, Task, model_inputs, on_device


class PromptClassification(Task):
    """Classifies by the word that a language model predicts after a template, or inside it.

    The loss is the cross entropy over the verbalizers' logits alone. They are those of the prompt's
    last token (causal model), or of the template's {mask} (masked model).

    If a verbalizer of a causal model has several tokens, a label's score is the mean
    log-probability of its tokens behind the prompt, and the loss is the cross entropy over the
    labels' scores. A batch then has a row for each pair of an example and a label, so that one
    forward pass gives all scores.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: text with {text} once and, for a masked model, {mask} once.
        verbalizers: the word, or several, for each label. A blank is put before it. For a masked
            model it has to be one token.
        max_length: number of tokens to which a prompt is cut, with the longest verbalizer behind
            it. The end of {text} is cut off, and never the template.
        chat: the template is the user's turn, as the tokenizer's chat template writes it, and the
            word is the assistant's answer. Not for a masked model. Default False.

    Attributes:
        tokens: the tokens of each label's verbalizer.
        words: each of these tokens once, int64 (N,).

    Raises:
        InputError: a word has an unknown token, or several for a masked model; two words have the
            same tokens; the template leaves no room for a text; or the tokenizer has no mask token,
            or no chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str,
        verbalizers: Mapping[str, str],
        max_length: int,
        *,
        chat: bool = False,
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.masked = "{mask}" in template
        if self.masked:
            if tokenizer.mask_token is None:
                raise InputError(
                    f"[task] template is {template!r}, but the model's tokenizer has no mask "
                    "token; remove {mask} (causal model) or name a masked model"
                )
            # a text may hold mask tokens too; the template's is the first or the last of all
            self.mask_is_last = template.index("{mask}") > template.index("{text}")
            template = template.replace("{mask}", tokenizer.mask_token)
        else:
            template = template.rstrip()  # the blank belongs to the word's token
        self.before, self.after = template.split("{text}")
        self.labels = {label: number for number, label in enumerate(verbalizers)}
        self.chat = Chat(tokenizer) if chat else None
        if self.chat is None:
            end, blank = (self.after or self.before).split(tokenizer.mask_token or "\0")[0], " "
            end = end.rstrip()
        else:
            end, blank = self.chat.turn(self.before + self.after), self.chat.blank
        self.tokens = label_tokens(tokenizer, end, blank, verbalizers, masked=self.masked)
        each_once = dict.fromkeys(token for tokens in self.tokens for token in tokens)
        self.words = torch.tensor(list(each_once))
        self.most_tokens = max(map(len, self.tokens))
        # the last token of a verbalizer is only predicted, so it takes no room
        self.prompt_length = max_length - (self.most_tokens - 1)
        if len(self._prompt("")) >= self.prompt_length:
            raise InputError(
                f"[data] max_length is {max_length}, but the template alone takes"
                f" {len(self._prompt(''))} tokens{self._and_words()}; raise max_length or shorten"
                " the template"
            )

    def _and_words(self) -> str:
        more = self.most_tokens - 1
        return f", and the longest verbalizer {more} more" if more else ""

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels of the verbalizers."""
        return tuple(self.labels)

    @property
    def rows_per_example(self) -> int:
        """The number of labels if a verbalizer has several tokens, else 1."""
        return len(self.tokens) if self.most_tokens > 1 else 1

    def _prompt(self, text: str) -> list[int]:
        return self._prompts([text])[0]

    def _prompts(self, texts: Sequence[str]) -> list[list[int]]:
        prompts = [self.before + text + self.after for text in texts]
        if self.chat is not None:
            return [self.chat.ids(self.chat.turn(prompt)) for prompt in prompts]
        every: list[list[int]] = self.tokenizer(prompts).input_ids
        for ids in every:
            if not self.masked and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
                ids.pop()  # an end-of-text token would take the word's place
        return every

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return the prompts as token ids. Texts are cut to fit. Without a label it is 0."""
        encoded: list[Encoded] = []
        for start in range(0, len(examples), AT_ONCE):
            part = examples[start : start + AT_ONCE]
            prompts = self._prompts([example.text for example in part])
            encoded += map(self._encode, part, prompts)
            self.encoded.done += len(part)
        return encoded

    def _encode(self, example: Example, ids: list[int]) -> Encoded:
        text = example.text
        while len(ids) > self.prompt_length:
            text = text[: min(len(text) - 1, len(text) * self.prompt_length // len(ids))].rstrip()
            ids = self._prompt(text)
        position = -1
        if self.masked:
            places = [i for i, token in enumerate(ids) if token == self.tokenizer.mask_token_id]
            position = places[-1 if self.mask_is_last else 0]
        number = 0 if example.label is None else self.labels[example.label]
        return Encoded(tuple(ids), number, position)

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """Pad prompts to a batch.

        Returns:
            As of the base class. If a verbalizer has several tokens, the R = B x labels rows of
            `input_ids` and `attention_mask` are the prompts with each verbalizer but for its last
            token, and `targets` and `positions` (R, K) are `padded_targets` of the verbalizers.
        """
        if self.most_tokens == 1:
            return super().collate(examples)
        rows = [(example, tokens) for example in examples for tokens in self.tokens]
        batch = super().collate([Encoded(example.ids + tokens[:-1]) for example, tokens in rows])
        batch |= padded_targets([(len(example.ids) - 1, tokens) for example, tokens in rows])
        return batch | {"labels": torch.tensor([example.label for example in examples])}

    def scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return float32 scores (B, labels), and class numbers (B,).

        The scores are the verbalizers' logits, or their mean log-probabilities if one has several
        tokens.
        """
        if self.most_tokens > 1:
            batch = on_device(model, batch)
            logits = logits_at(model, model_inputs(batch), batch["positions"])
            scores = mean_log_probabilities(logits, batch["targets"])
            return scores.view(-1, len(self.tokens)), batch["labels"]
        with head_at(model, batch["positions"], self.words):
            logits, batch = self._logits(model, batch)
        columns = (
            batch["positions"] if logits.shape[1] > 1 else torch.zeros_like(batch["positions"])
        )
        rows = torch.arange(len(columns), device=logits.device)
        # few of the whole vocabulary's logits, of which a copy would take longer than a small head
        answers = logits[rows[:, None], columns[:, None], self.words.to(logits.device)]
        return answers.float(), batch["labels"]
