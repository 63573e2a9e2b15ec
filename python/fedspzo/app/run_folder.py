"""A run's folder. A file is replaced as a whole: after a crash it is the old one or the new one.

One process at a time writes to the folder, and holds its lock. An interrupted run can be resumed in
it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fedspzo.errors import InputError
from fedspzo.files import Closing, folder_atomic, make_folder, sync, write_atomic
from fedspzo.journal.salvage import salvage_in_place

from .arguments import check_unicode

METRICS, CONFIG, FIGURE, MODEL = "metrics.jsonl", "config.toml", "results.png", "model"
MEZO_METRICS = "mezo.jsonl"
JOURNAL, MEZO_JOURNAL = "journal.fspz", "mezo.fspz"
REPORT = "report.html"
TENSORBOARD = "tensorboard"
LOCK = ".lock"
WRITTEN = (
    *(CONFIG, METRICS, MEZO_METRICS, JOURNAL, MEZO_JOURNAL, FIGURE, REPORT),
    *(TENSORBOARD, MODEL),
)
"""All that a run writes, and removes of an earlier one."""


def remove_events(folder: Path) -> None:
    """Remove the event files that an earlier run has written for TensorBoard."""
    for left in (folder / TENSORBOARD).glob("*/events.out.tfevents.*"):
        left.unlink()


def _remove(path: Path) -> None:
    """Remove a file, a folder or a link, whose target stays; do nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class RunFolder(Closing):
    """The folder to which a run writes. It is a context manager that releases the lock.

    Nothing is created before `create`.

    Args:
        path: the folder.
        overwrite: files of an earlier run may be replaced. Default False.
        resume: the folder has to hold a run, finished or not. Default False.

    Attributes:
        finished: True if the folder holds a finished run.
        resumes: True if it holds an unfinished run, which goes on.
        extended: True if it holds a finished run, which goes on to more rounds.

    Raises:
        InputError: another process writes to the folder; it holds a finished run and `overwrite` is
            False; it holds files of something else; or it has no run, and `resume` is True.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
        self.path = path
        self.overwrite = overwrite
        self.resume = resume
        self.extended = False
        self._lock: int | None = None
        check_unicode("output", path)
        if path.exists() and not path.is_dir():
            raise InputError(f"output '{path}' is no folder; name another with --output")
        if (path / LOCK).exists():
            self._acquire()
        try:
            self._inspect()
        except InputError:
            self.close()
            raise

    def _inspect(self) -> None:
        path = self.path
        found = [name for name in WRITTEN if os.path.lexists(path / name)]
        begun = (path / JOURNAL).exists()
        self.finished = self._has_summary() and not self.extended
        self.resumes = begun and not self.finished and not self.overwrite
        if self.resume:
            if not begun:
                raise InputError(f"'{path}' holds no journal; name a run's folder after --resume")
            return
        if found and METRICS not in found and not begun:
            raise InputError(
                f"output '{path}' holds {found[0]!r}, but no run; name another with --output"
            )
        rows = (path / METRICS).exists() and (path / METRICS).stat().st_size > 0
        if self.finished or (rows and not begun):
            if self.overwrite:
                return
            raise InputError(
                f"output '{path}' holds a run; add --overwrite to replace it, or name another "
                "with --output"
            )

    def _has_summary(self) -> bool:
        try:
            last = (self.path / METRICS).read_bytes().rsplit(b"\n", 2)[-2:]
        except OSError:
            return False
        return len(last) == 2 and last[1] == b"" and b'"summary": true' in last[0]

    def _acquire(self) -> None:
        """Take the folder's lock. The system releases it when the process ends, also in a crash."""
        if self._lock is not None:
            return
        with self._explained():
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if re.fullmatch(rb"[0-9]*\n?", os.read(handle, 20)) is None:
                    raise InputError(
                        f"output '{self.path}' holds {LOCK!r}, which no run wrote; name another"
                        " with --output"
                    )
                os.lseek(handle, 0, os.SEEK_SET)
                os.ftruncate(handle, 0)
                os.write(handle, f"{os.getpid()}\n".encode())
            except BlockingIOError:
                other = os.read(handle, 20).decode(errors="replace").strip()
                os.close(handle)
                raise InputError(
                    f"output '{self.path}' is being written by process {other}; wait until it"
                    " ends, or name another with --output"
                ) from None
            except (OSError, InputError):
                os.close(handle)
                raise
            self._lock = handle

    def extend(self) -> None:
        """Let a finished run go on, to more rounds."""
        self.extended = self.resumes = True
        self.finished = False

    def salvage(self) -> list[Path]:
        """Cut damaged journals off before the damage, and return the copies of the damaged files.

        Raises:
            InputError: a journal's header is damaged, or a file cannot be written.
        """
        with self._explained():
            self._acquire()
            journals = [self.path / name for name in (JOURNAL, MEZO_JOURNAL)]
            copies = [salvage_in_place(path) for path in journals if path.exists()]
        return [copy for copy in copies if copy is not None]

    def create(self) -> None:
        """Create the folder, and take its lock.

        The results of an earlier run are removed, unless it is resumed, so that none outlives its
        config. The metrics are emptied first. So a crash in this method leaves no folder that looks
        like a finished run.

        Raises:
            InputError: another process writes to the folder, or it cannot be written.
        """
        with self._explained():
            make_folder(self.path)
            if self._lock is None:
                before = self.resumes
                self._acquire()
                self._inspect()
                if self.resumes != before:  # it has changed since it was checked
                    raise InputError(
                        f"output '{self.path}' was begun by another process just now; run the "
                        "command again, or name another with --output"
                    )
            self._remove_temporary()
            if self.resumes:
                return
            self.write(METRICS, "")
            for name in (JOURNAL, MEZO_JOURNAL, CONFIG, FIGURE, REPORT, MEZO_METRICS):
                (self.path / name).unlink(missing_ok=True)
            remove_events(self.path)
            self._remove_model()

    def write(self, name: str, content: str | bytes) -> None:
        """Create or replace a file."""
        with self._explained():
            write_atomic(self.path / name, content)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a JSON line to a metrics file."""
        with self._explained(), (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Append the summary to the metrics. The run is finished once this line is on disk."""
        self.append(METRICS, summary)
        with self._explained():
            sync(self.path / METRICS)
        self.finished = True

    def save_model(self, save: Callable[[Path], None]) -> None:
        """Replace the folder `model` by one that `save` fills."""
        with self._explained():
            self._remove_model()
            with folder_atomic(self.path / MODEL) as temporary:
                save(temporary)

    def _remove_temporary(self) -> None:
        """Remove the temporary files of a process that was killed."""
        names = "|".join(map(re.escape, WRITTEN))
        for left in self.path.glob(".*"):
            if re.fullmatch(rf"\.({names})\.[a-z0-9_]{{8}}", left.name):  # as tempfile names them
                _remove(left)

    def _remove_model(self) -> None:
        _remove(self.path / MODEL)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an OSError or SafetensorError into an InputError of one line, with the remedy."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            remedy = "name another with --output"
            if (self.path / JOURNAL).exists():
                remedy = "the journal's rounds are safe: mend that and run it again, it goes on"
            raise InputError(
                f"output '{self.path}' cannot be written ({reason}); {remedy}"
            ) from None

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
