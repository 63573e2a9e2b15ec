"""Output rows: some rows of an output layer as parameters of their own.

A prompt's answer reads the logits of a few words. In LLaMA, OPT and RoBERTa the output layer is
tied to the input embeddings. There the rows of these words hold most of the loss's gradient, and
yet a cut would leave them in block 1 with the embeddings. As parameters of their own they are a
block that costs next to nothing to evaluate. The embedding keeps the words' meaning as input: in
these rows the output layer is no longer tied to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .shards import is_sharded


class OutputRows(nn.Module):
    """An output layer whose logits for some tokens come from rows that train.

    Args:
        base: the model's output layer, (vocabulary, D). It computes the other logits. Only the
            weights that it shares with the input embeddings still train.
        tokens: the N tokens whose rows train.

    Attributes:
        rows: the weights of these rows, (N, D), at first the base's.
        bias: their biases, (N,), at first the base's; None if it has none.
        tokens: the tokens' numbers, (N,), int64.
    """

    tokens: Tensor

    def __init__(self, base: nn.Linear, tokens: Sequence[int]) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("tokens", torch.tensor(tokens, device=base.weight.device))
        self.rows = nn.Parameter(base.weight.detach()[self.tokens].clone())
        bias = base.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach()[self.tokens].clone())

    @property
    def weight(self) -> Tensor:
        """The base's weight, whose dtype some models (Mamba) look up; the rows are not in it."""
        return self.base.weight

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter. A weight is the base's, as where `tie_weights` ties it anew."""
        if name == "weight":
            self.base.register_parameter(name, param)
        else:
            super().register_parameter(name, param)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return all logits, (..., vocabulary), of hidden states (..., D)."""
        logits: Tensor = self.base(hidden)
        return logits.index_copy(-1, self.tokens, self.answers(hidden).to(logits.dtype))

    def answers(self, hidden: Tensor) -> Tensor:
        """Return the logits of the tokens alone, (..., N), of hidden states (..., D)."""
        return F.linear(hidden, self.rows, self.bias)


def _output_layer(model: nn.Module) -> object:
    get = getattr(model, "get_output_embeddings", None)
    return None if get is None else get()


_TIED_ALONE = ("longt5", "mt5", "t5", "whisper")
"""Encoder-decoders whose `config.tie_word_embeddings` is about the output layer alone. In others it
also ties the embeddings of encoder and decoder (BART) or scales what the head is given (UMT5)."""


def _obstacle(model: nn.Module) -> str | None:
    """Say why a model's rows cannot be untied; None if they can."""
    base = _output_layer(model)
    if type(base) is not nn.Linear:
        return f"has {type(base).__name__} as its output layer; pass a model with a linear one"
    config: Any = getattr(model, "config", None)
    both = getattr(config, "is_encoder_decoder", False)
    tied = getattr(config, "tie_word_embeddings", False)
    if both and tied and config.model_type not in _TIED_ALONE:
        return (
            "ties more than its output layer by config.tie_word_embeddings, so it would be another"
            " model once its rows are merged and saved; pass a model that is not tied"
        )
    return None


def can_untie_rows(model: nn.Module) -> bool:
    """Tell whether `untie_rows` takes the model."""
    return _obstacle(model) is None


def untie_rows(model: nn.Module, tokens: Sequence[int]) -> OutputRows:
    """Give a Hugging Face model's output layer rows of its own for some tokens.

    Args:
        model: the model, which is changed in place; `merge_rows` puts an ordinary layer back.
        tokens: the tokens' numbers, each once.

    Returns:
        The new output layer.

    Raises:
        TypeError: the model has no linear output layer, or is an encoder-decoder that ties more
            than this layer.
        ValueError: a token is out of the vocabulary or named twice, or the layer is sharded.
    """
    obstacle = _obstacle(model)
    if obstacle is not None:
        raise TypeError(f"rows: {type(model).__name__} {obstacle}, or leave rows out")
    base: Any = _output_layer(model)
    if is_sharded(base.weight):
        raise ValueError(
            "rows: the output layer is sharded; call split(model, rows=...) before fully_shard"
        )
    chosen = [int(token) for token in tokens]
    known = all(0 <= token < len(base.weight) for token in chosen)
    if not chosen or len(set(chosen)) != len(chosen) or not known:
        raise ValueError(
            f"rows is {chosen}; give different token numbers from 0 to {len(base.weight) - 1}"
        )
    head = OutputRows(base, chosen)
    _leave_to_rows(base, model.get_input_embeddings().weight, head.tokens)  # type: ignore[operator]
    model.set_output_embeddings(head)  # type: ignore[operator]
    return head


@torch.no_grad()
def _leave_to_rows(base: nn.Linear, inputs: Tensor, tokens: Tensor) -> None:
    """Bring the base to one form, whatever it holds in the rows that it no longer computes.

    It is tied to the embeddings if its other rows are theirs; else the unused rows are set to
    zero. So a model that `merge_rows` made ordinary gets its old digest back once its rows are
    untied again.
    """
    if base.weight is not inputs:
        others = torch.ones(len(base.weight), dtype=torch.bool, device=tokens.device)
        others[tokens] = False
        if base.weight.shape == inputs.shape and torch.equal(base.weight[others], inputs[others]):
            base.weight = inputs
        else:
            base.weight.requires_grad_(False)[tokens] = 0.0
    if base.bias is not None:
        base.bias = nn.Parameter(base.bias.detach().clone(), requires_grad=False)
        base.bias[tokens] = 0.0


def merge_rows(model: nn.Module) -> None:
    """Put the rows into an ordinary output layer that is not tied; logits stay the same to the bit.

    A model without `OutputRows` is left alone. Afterwards `save_pretrained` writes the model, its
    output layer beside its embeddings, as one that `from_pretrained` reads.

    Args:
        model: the model, which is changed in place.
    """
    head = _output_layer(model)
    if not isinstance(head, OutputRows):
        return
    base, tokens = head.base, head.tokens
    model.set_output_embeddings(base)  # type: ignore[operator]
    with torch.no_grad():
        # new parameters, as a tied one would not be saved under its own name
        weight = base.weight.detach().clone()
        weight[tokens] = head.rows
        base.weight = nn.Parameter(weight)
        if head.bias is not None:
            bias = base.bias.detach().clone()
            bias[tokens] = head.bias
            base.bias = nn.Parameter(bias)
    model.config.tie_word_embeddings = False  # type: ignore[union-attr]
