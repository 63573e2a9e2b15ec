"""A prompt's head, computed at one position of each row and for a few words only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedspzo.blocks.output_rows import OutputRows


@contextmanager
def head_at(model: nn.Module, positions: Tensor, words: Tensor) -> Iterator[None]:
    """Compute the head at one position of each row and for some words only; other logits are 0.

    A vocabulary's logits for every token can cost more than the layers; a prompt asks for a few.
    The head has to be a module that reads (B, T, D), and for the words a linear layer as torch
    makes it: adapters, quantized weights and forwards put in its place compute all of them.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Module):
        yield
        return

    def keep(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or args[0].dim() != 3 or len(args[0]) != len(positions):
            return None
        hidden = args[0]
        rows = torch.arange(len(hidden), device=hidden.device)
        return (hidden[rows, positions.to(hidden.device)][:, None], *args[1:])

    with ExitStack() as stack:
        stack.callback(head.register_forward_pre_hook(keep).remove)
        if isinstance(head, OutputRows) and torch.equal(head.tokens, words.to(head.tokens.device)):
            head.__dict__["forward"] = partial(_answers_alone, head)
            stack.callback(head.__dict__.pop, "forward")
        elif type(head) is nn.Linear and "forward" not in vars(head):
            head.__dict__["forward"] = partial(_some_logits, head, words)
            stack.callback(head.__dict__.pop, "forward")
        yield


def _answers_alone(head: OutputRows, hidden: Tensor) -> Tensor:
    """Return logits, (..., vocabulary): those of the head's own rows, and 0 elsewhere."""
    answers = head.answers(hidden)
    logits = answers.new_zeros(*hidden.shape[:-1], len(head.base.weight))
    logits[..., head.tokens] = answers
    return logits


def _some_logits(head: nn.Linear, words: Tensor, hidden: Tensor) -> Tensor:
    """The head's logits, (..., vocabulary): those of `words`, (N,), and 0 elsewhere."""
    words = words.to(hidden.device)
    # looked up as an embedding's rows, which layerwise evaluation perturbs alone
    answers = F.linear(hidden, F.embedding(words, head.weight))
    if head.bias is not None:
        answers = answers + head.bias[words]
    logits = answers.new_zeros(*hidden.shape[:-1], len(head.weight))
    logits[..., words] = answers
    return logits
