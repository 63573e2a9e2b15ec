"""Greedy generation of answers, in batches that are padded on the left."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from fedspzo.blocks.evaluation_mode import evaluating


@torch.no_grad()
def greedy(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    room: int,
    ends: Collection[int],
    pad: int,
) -> list[list[int]]:
    """Continue each prompt by its likeliest tokens, with dropout off.

    Of the checkpoint's own generation settings (sampling, penalties, forced tokens) none applies.

    Args:
        model: a Hugging Face model that generates.
        prompts: token ids, one at least in each.
        room: the most tokens of a continuation, its end included.
        ends: tokens that end it.
        pad: a token to pad with.

    Returns:
        The new tokens of each prompt, without the end.
    """
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    settings = GenerationConfig(
        do_sample=False,
        use_cache=True,
        max_new_tokens=room,
        eos_token_id=sorted(ends),
        pad_token_id=pad,
    )
    with evaluating(model), _own_settings_off(model):
        output = model.generate(  # type: ignore[operator]
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
        )
    return [_until(row, ends) for row in output[:, longest:].tolist()]


def _until(tokens: list[int], ends: Collection[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:end]


@contextmanager
def _own_settings_off(model: Any) -> Iterator[None]:
    """Put defaults in place of the model's generation settings, which would fill in for ours."""
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept
