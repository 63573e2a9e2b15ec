"""The noise streams. A name always means the same bits: a new transform gets a new name."""

from __future__ import annotations

import hashlib

NORMAL, RADEMACHER = 0, 1

STREAMS = {"normal-v1": NORMAL, "rademacher-v1": RADEMACHER}
"""The code that the ops take for each stream's name."""


def parameter_key(name: str) -> int:
    """Return the 64-bit key of a parameter: BLAKE2b of its fully qualified name, little-endian.

    So the same name has the same noise in all processes and on all machines.

    >>> parameter_key("model.embed_tokens.weight")
    17744852841324204394
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
