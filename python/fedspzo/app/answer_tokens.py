"""Answers as tokens: those of a verbalizer, where they stand in a batch, and what they score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedspzo.errors import InputError

IGNORED = -100
"""A target that is no token: `cross_entropy` leaves it out."""

Tokens = tuple[int, ...]


def label_tokens(
    tokenizer: Any, before: str, blank: str, verbalizers: Mapping[str, str], *, masked: bool
) -> tuple[Tokens, ...]:
    """Return the tokens of each label's verbalizer, in the order of the labels.

    A word's tokens depend on the text before it ("▁great", "Ġgreat", "great"). So it is tokenized
    behind that text, and its tokens are those that this adds.

    Args:
        tokenizer: a Hugging Face tokenizer.
        before: the text before the words, or its end.
        blank: the blank between the text and the words, if there is one.
        verbalizers: the word, or several, for each label.
        masked: the model is a masked one, which fills a {mask} with a single token.

    Raises:
        InputError: a verbalizer cannot be told from the text before it, has an unknown token, or
            several tokens for a masked model; or two verbalizers are the same tokens.
    """
    prefix = tokenizer(before, add_special_tokens=False).input_ids
    owner: dict[Tokens, str] = {}
    for label, word in verbalizers.items():
        ids = tokenizer(before + blank + word.strip(), add_special_tokens=False).input_ids
        new = tuple(ids[len(prefix) :])
        where = f"[task.verbalizers] {label} is {word!r}"
        if ids[: len(prefix)] != prefix or not new:
            raise InputError(
                f"{where}, which the model's tokenizer does not read apart from what stands before"
                f" it, {before[-20:]!r}; change the end of [task] template, or choose another word"
            )
        if masked and len(new) > 1:
            parts = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(new)))
            raise InputError(
                f"{where}, which the model's tokenizer reads as {len(new)} tokens ({parts}), but a"
                " masked model fills {mask} with one; choose a word that is one token, or a causal"
                " model and a template without {mask}"
            )
        if tokenizer.unk_token_id in new:
            raise InputError(f"{where}, a word the model's tokenizer does not know; choose one")
        if new in owner:
            same = "token" if len(new) == 1 else "tokens"
            raise InputError(
                f"{where}, the same {same} as the verbalizer of {owner[new]!r}; choose another word"
            )
        owner[new] = label
    return tuple(owner)


def padded_targets(rows: Sequence[tuple[int, Sequence[int]]]) -> dict[str, Tensor]:
    """Return "targets" and "positions", int64 (R, K), of R rows with up to K target tokens.

    The logits at a target's position predict it. Where a row has fewer than K, the target is
    `IGNORED`.

    Args:
        rows: of each row the position that predicts its first target, and its targets.
    """
    most = max(len(tokens) for _, tokens in rows)
    targets = torch.full((len(rows), most), IGNORED)
    positions = torch.tensor([first for first, _ in rows])[:, None].repeat(1, most)
    for row, (_, tokens) in enumerate(rows):
        targets[row, : len(tokens)] = torch.tensor(tokens)
        positions[row, : len(tokens)] += torch.arange(len(tokens))
    return {"targets": targets, "positions": positions}


def mean_log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean log-probability of each row's target tokens, in nats: float32 (R,).

    The mean makes labels of different lengths comparable; the sum would prefer short ones (the
    length normalization of Brown et al., arXiv 2005.14165, section 2.4).

    Args:
        logits: (R, K, V).
        targets: token ids, int64 (R, K), at least one a row. `IGNORED` where a row has fewer.
    """
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -losses.view_as(targets).sum(1) / (targets != IGNORED).sum(1)
