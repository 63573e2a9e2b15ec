"""The noise streams: a name is forever, another transform is another name."""

from __future__ import annotations

import hashlib

NORMAL, RADEMACHER = 0, 1

STREAMS = {"normal-v1": NORMAL, "rademacher-v1": RADEMACHER}
"""Public names to the codes the op takes."""


def parameter_key(name: str) -> int:
    """The 64-bit key of a parameter: BLAKE2b of its fully qualified name, little-endian.

    The same name has the same noise in every process, on every machine.

    >>> parameter_key("model.embed_tokens.weight")
    17744852841324204394
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
