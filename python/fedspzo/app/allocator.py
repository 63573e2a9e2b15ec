"""Keeps freed memory in the process, so that the next pass's activations use it again.

glibc asks the kernel for each block above 32 MiB and gives it back when it is freed, so that every
pass of a language model touches its logits' pages anew. What that costs is measured by
benchmarks/allocator.py.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory: no mapping for a single block, and no shorter heap.

    Nothing is set under another C library, or where the environment has settings of malloc's own.

    Returns:
        True if it was set.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # -1 is the largest size: the heap's end is never given back
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
