"""The command line's processes use freed memory again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}):
    pytest.skip("another C library than glibc", allow_module_level=True)

CODE = """
import resource
from fedspzo.app.allocator import keep_freed_memory
print(keep_freed_memory())
for _ in range(2):  # 64 MiB, written and freed
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(64 << 20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = (64 << 20) // os.sysconf("SC_PAGESIZE")


def first_and_second(**environment: str) -> tuple[str, int, int]:
    """What was set, and the page faults of the first block and of the second."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**mine, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    was_set, first, second = done.stdout.split()
    return was_set, int(first), int(second)


def test_freed_memory_is_used_again() -> None:
    was_set, first, second = first_and_second()
    assert was_set == "True"
    assert first >= 0.9 * PAGES
    assert second < 0.01 * PAGES


@pytest.mark.parametrize(
    "chosen", [{"MALLOC_TRIM_THRESHOLD_": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=7"}]
)
def test_the_users_own_settings_stay(chosen: dict[str, str]) -> None:
    was_set, first, second = first_and_second(**chosen)
    assert was_set == "False"
    assert min(first, second) >= 0.9 * PAGES  # a mapping of its own each time
