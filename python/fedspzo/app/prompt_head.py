"""Computes the head of a prompt at one position of each row, and for a few words."""

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
    """Compute the head at one position of each row, and for some words alone, within a context.

    Logits for each token and the whole vocabulary can cost more than the layers, and a prompt needs
    few of them. The others are 0. The head has to be a module that reads (B, T, D), else it is
    computed in full. Only a plain `nn.Linear` or `OutputRows` is restricted to the words: adapters,
    quantized layers and patched forwards compute all words.

    Args:
        model: a Hugging Face model with output embeddings.
        positions: the position of each row, int64 (B,).
        words: token ids, int64 (N,).
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
    """Return logits (..., vocabulary): those of the head's separate rows, and 0 elsewhere."""
    answers = head.answers(hidden)
    logits = answers.new_zeros(*hidden.shape[:-1], len(head.base.weight))
    logits[..., head.tokens] = answers
    return logits


def _some_logits(head: nn.Linear, words: Tensor, hidden: Tensor) -> Tensor:
    """Return logits (..., vocabulary): those of `words` (N,), and 0 elsewhere."""
    words = words.to(hidden.device)
    # as an embedding lookup, of which layerwise evaluation perturbs only the rows it reads
    answers = F.linear(hidden, F.embedding(words, head.weight))
    if head.bias is not None:
        answers = answers + head.bias[words]
    logits = answers.new_zeros(*hidden.shape[:-1], len(head.weight))
    logits[..., words] = answers
    return logits
