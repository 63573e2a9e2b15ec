"""Maps the labels of the data to those of a checkpoint's classification head, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fedspzo.errors import InputError


def head_names(
    data: Sequence[str], head: Sequence[str], given: Mapping[str, str]
) -> dict[str, str]:
    """Return the head's label for each label of the data.

    A head without names (`LABEL_0`, `LABEL_1`, ...) is addressed by number: the label "1" is its
    output 1.

    Args:
        data: the labels of the training file.
        head: the labels of the checkpoint's head, in the order of its outputs.
        given: [task] labels, which says the head's label for a label of the data. A label that it
            lacks is looked up by name.

    Raises:
        InputError: a label has no counterpart, or two have the same; the message has both lists and
            the remedy.
    """
    unnamed = all(re.fullmatch(f"LABEL_{number}", name) for number, name in enumerate(head))
    names: dict[str, str] = {}
    for label in data:
        name = given.get(label, label)
        if unnamed and name not in head and f"LABEL_{name}" in head:
            name = f"LABEL_{name}"
        if name not in head:
            raise InputError(
                f"[data] has the labels {_listed(data)}, but the model's head {_listed(head)}, and"
                f" {name!r} is none of these; map them by [task.labels], such as {_example(label)}"
                f" = {head[0]!r}, or set [task] new_head = true to train a head from scratch"
            )
        names[label] = name
    if len(set(names.values())) < len(names):
        raise InputError(
            f"[task.labels] gives two labels of the data the same of the model's head: {names};"
            " give each its own"
        )
    return names


def _listed(labels: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(map(repr, labels[:most]))
    return f"{shown} and {len(labels) - most} more" if len(labels) > most else shown


def _example(label: str) -> str:
    return label if re.fullmatch(r"[\w-]+", label) else repr(label)
