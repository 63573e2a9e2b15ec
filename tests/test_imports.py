"""What is not imported: a library is brought in by what uses it, so that the rest is quick.

The seconds are `python benchmarks/import_time.py`'s to measure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
OPTIONAL = {
    *("triton", "transformers", "tokenizers", "safetensors", "accelerate", "peft", "datasets"),
    *("scipy", "pandas", "sklearn", "matplotlib", "plotly", "PIL", "rich", "flwr", "tensorboard"),
    "lightning",
}
"""Libraries that only some parts of the package use."""


def imported(code: str) -> set[str]:
    """Run `code` in a new process, and list the packages that it imports and torch does not."""
    code = (
        f"import json, sys; {code}\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_the_optimizer_needs_torch_alone() -> None:
    found = imported("import torch; before = set(sys.modules); from fedspzo import *")
    assert "fedspzo_kernels" in found
    assert not found & OPTIONAL


@pytest.mark.slow
def test_a_federation_and_a_journal_need_torch_alone() -> None:
    found = imported(
        "import torch; before = set(sys.modules); from fedspzo.federated import *;"
        "from fedspzo.journal import *; import fedspzo.baselines"
    )
    assert "fedspzo_kernels" in found
    assert not found & OPTIONAL


HELP = """
import argparse
from contextlib import redirect_stdout
from io import StringIO
from fedspzo.app import cli

def every(parser, words=()):
    yield words
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, parser in action.choices.items():
                yield from every(parser, (*words, name))

found = list(every(cli._parser()))
assert {(), ("run",), ("journal", "show")} <= set(found), found
for words in found:
    printed = StringIO()
    try:
        with redirect_stdout(printed):
            cli.main([*words, "--help"])
    except SystemExit as end:
        assert end.code == 0, words
    assert printed.getvalue().startswith("usage: " + " ".join(("fedspzo", *words))), words
"""


def test_the_help_of_every_command_needs_no_library() -> None:
    found = imported(f"before = set(sys.modules)\n{HELP}")
    assert "fedspzo" in found
    assert not found & {"torch", "numpy", "fedspzo_kernels", *OPTIONAL}


def test_the_package_needs_no_library_until_a_name_of_it_is_used() -> None:
    found = imported("before = set(sys.modules); import fedspzo")
    assert "fedspzo" in found
    assert not found & {"torch", "numpy", "fedspzo_kernels", *OPTIONAL}
