"""A prompt as the user's turn of a conversation, as the tokenizer's chat template writes it."""

from __future__ import annotations

from typing import Any

from fedspzo.errors import InputError

_FIXED = {
    # Llama's templates write the date; with today's, a run would give other bits tomorrow.
    "date_string": "26 Jul 2024",
    # Qwen's let the model think first; the answer has to follow at once.
    "enable_thinking": False,
}
"""Variables of chat templates. A template that does not know one ignores it."""


class Chat:
    """Writes the user's turn, and the start of the assistant's.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.

    Attributes:
        blank: the blanks, if any, that the template has between the turns and an answer.

    Raises:
        InputError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.chat_template is None:
            raise InputError(
                "[task] chat is true, but the model's tokenizer has no chat template; name a model"
                " that is tuned for chat, or remove chat"
            )
        self.tokenizer = tokenizer
        self.blank = self._blank()

    def turn(self, content: str) -> str:
        """Return the text before an answer, without the blanks that stand before the answer."""
        return self._render({"user": content}, open_turn=True).rstrip(" ")

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text that the template wrote, with its own special tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _blank(self) -> str:
        """Find the blanks by an answer of one word.

        Where a template writes a finished answer in another way than it opens one (it may add what
        the model thought), the blanks are those at the end of the opening.
        """
        opened = self._render({"user": "word"}, open_turn=True)
        before = opened.rstrip(" ")
        whole = self._render({"user": "word", "assistant": "word"}, open_turn=False)
        answer = whole[len(before) :]
        if whole.startswith(before) and answer.lstrip(" ").startswith("word"):
            return answer[: len(answer) - len(answer.lstrip(" "))]
        return opened[len(before) :]

    def _render(self, turns: dict[str, str], *, open_turn: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns.items()]
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=open_turn, **_FIXED
        )
        return text
