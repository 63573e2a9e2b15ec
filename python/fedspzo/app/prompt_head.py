"""Computes the head at a few positions of each row, and for a few words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedspzo.blocks.output_rows import OutputRows


@contextmanager
def head_at(model: nn.Module, positions: Tensor, words: Tensor | None = None) -> Iterator[None]:
    """Compute the head at a few positions of each row, and for some words alone, within a context.

    Logits for each token and the whole vocabulary can cost more than the layers, and a prompt needs
    few of them. The others are not computed and have any values, as filling them with zeros takes
    longer than an answer's rows. The head has to be a module that reads (B, T, D), else it is
    computed in full. Only a plain `nn.Linear` or `OutputRows` is restricted to the words: adapters,
    quantized layers and patched forwards compute all words.

    Args:
        model: a Hugging Face model with output embeddings.
        positions: the positions of each row, int64 (B, K), or (B,) for one.
        words: token ids, int64 (N,). Default None: all words.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Module):
        yield
        return

    def keep(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or args[0].dim() != 3 or len(args[0]) != len(positions):
            return None
        hidden = args[0]
        return (_at(hidden, positions.view(len(positions), -1)), *args[1:])

    with ExitStack() as stack:
        stack.callback(head.register_forward_pre_hook(keep).remove)
        forward = None if words is None else _forward_for(head, words)
        if forward is not None:
            head.__dict__["forward"] = forward
            stack.callback(head.__dict__.pop, "forward")
        yield


def _forward_for(head: nn.Module, words: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return the head's forward for some words alone. None: it has to compute all."""
    if isinstance(head, OutputRows) and torch.equal(head.tokens, words.to(head.tokens.device)):
        return partial(_answers_alone, head)
    if type(head) is nn.Linear and "forward" not in vars(head):
        return partial(_some_logits, head, words)
    return None


def logits_at(model: nn.Module, inputs: Mapping[str, Tensor], positions: Tensor) -> Tensor:
    """Return a model's logits at a few positions of each row, (B, K, vocabulary).

    Args:
        model: a Hugging Face model with output embeddings.
        inputs: its inputs, with "input_ids" (B, T).
        positions: the positions of each row, int64 (B, K).
    """
    length = inputs["input_ids"].shape[1]
    few = positions.shape[1] < length
    with head_at(model, positions) if few else nullcontext():
        logits: Tensor = model(**inputs).logits
    if few and logits.shape[1] < length:
        return logits
    return _at(logits, positions)  # a head that is no module, or reads other shapes


def _at(values: Tensor, positions: Tensor) -> Tensor:
    """Return values (B, K, D) of (B, T, D) at positions (B, K)."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, positions.to(values.device)]


def _answers_alone(head: OutputRows, hidden: Tensor) -> Tensor:
    """Return logits (..., vocabulary): those of the head's separate rows alone."""
    answers = head.answers(hidden)
    logits = answers.new_empty(*hidden.shape[:-1], len(head.base.weight))
    logits[..., head.tokens] = answers
    return logits


def _some_logits(head: nn.Linear, words: Tensor, hidden: Tensor) -> Tensor:
    """Return logits (..., vocabulary): those of `words` (N,) alone."""
    words = words.to(hidden.device)
    # as an embedding lookup, of which layerwise evaluation perturbs only the rows it reads
    answers = F.linear(hidden, F.embedding(words, head.weight))
    if head.bias is not None:
        answers = answers + head.bias[words]
    logits = answers.new_empty(*hidden.shape[:-1], len(head.weight))
    logits[..., words] = answers
    return logits
