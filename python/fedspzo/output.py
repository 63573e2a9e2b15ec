"""The folder a run leaves. Its files are replaced whole: a crash leaves the old one or the new."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .tables import InputError

METRICS, CONFIG, FIGURE, MODEL = "metrics.jsonl", "config.toml", "results.png", "model"
MEZO_METRICS = "mezo.jsonl"


def write_atomic(path: Path, content: str | bytes) -> None:
    """Create or replace `path`; text is written as UTF-8."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are for their owner alone.
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class OutputFolder:
    """Where one run writes; nothing exists before `create`.

    Args:
        path: The folder.
        overwrite: Whether an earlier run's files may be replaced.

    Raises:
        InputError: `path` holds a run and `overwrite` is off, or holds files that are no run's.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise InputError(f"output '{path}' is no folder; name another with --output")
        found = [name for name in (METRICS, CONFIG, FIGURE, MODEL) if (path / name).exists()]
        if found and METRICS not in found:
            raise InputError(
                f"output '{path}' holds {found[0]!r}, but no run; name another with --output"
            )
        if found and not overwrite:
            raise InputError(
                f"output '{path}' holds a run; add --overwrite to replace it, or name another "
                "with --output"
            )

    def create(self) -> None:
        """Make the folder, and remove an earlier run's results so that none outlives its config."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write(METRICS, "")
        except OSError as error:
            raise InputError(
                f"output '{self.path}' cannot be written ({error.strerror}); "
                "name another with --output"
            ) from None
        for name in (CONFIG, FIGURE, MEZO_METRICS):
            (self.path / name).unlink(missing_ok=True)
        if (self.path / MODEL).exists():
            shutil.rmtree(self.path / MODEL)

    def write(self, name: str, content: str | bytes) -> None:
        """Create or replace one file."""
        write_atomic(self.path / name, content)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one JSON line to a metrics file: a run that stops early keeps its rows."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def save_model(self, model: Any, tokenizer: Any) -> None:
        """The model and tokenizer as `save_pretrained` writes them, under `model`."""
        temporary = Path(tempfile.mkdtemp(dir=self.path, prefix=".model."))
        try:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            os.chmod(temporary, 0o777 & ~_umask())
            os.replace(temporary, self.path / MODEL)
        except BaseException:
            shutil.rmtree(temporary)
            raise
