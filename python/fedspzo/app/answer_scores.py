"""Scores of generated answers: exact match and token F1, as SQuAD computes them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation and English articles.

    White space is a single blank. This is `normalize_answer` of SQuAD's official evaluation
    (Rajpurkar et al., arXiv 1606.05250).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> float:
    """Return 1.0 if two texts are the same once normalized, else 0.0."""
    return float(normalized(answer) == normalized(reference))


def token_f1(answer: str, reference: str) -> float:
    """Return the F1 of an answer's words as a multiset, once normalized, from 0 to 1.

    Two texts without words are alike: 1.0, as in SQuAD 2.0.
    """
    given, wanted = normalized(answer).split(), normalized(reference).split()
    if not given or not wanted:
        return float(given == wanted)
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted))


def answer_scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the means of "exact_match" and "token_f1" over one or more answers, 0 to 1."""
    pairs = list(zip(answers, references, strict=True))
    return {
        "exact_match": sum(exact_match(*pair) for pair in pairs) / len(pairs),
        "token_f1": sum(token_f1(*pair) for pair in pairs) / len(pairs),
    }
