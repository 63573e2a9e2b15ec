"""Runs the command line in processes of its own that are killed, by SIGKILL, at a chosen point.

Started as a program. It imports torch once and forks for each line on stdin, a JSON object with
`arguments`, and `event` (the number of the event at which the process kills itself) or `seconds`
(after which it is killed from outside); without either it runs to its end. It answers with a line:
`status` (negative: the signal), `events` (those that happened, if it lived), `error` (its stderr).

Events are what reaches the disk, and every pass over the weights: before and after it, and for a
write also half way through it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

CALLS = ("write", "fsync", "replace", "ftruncate", "unlink", "mkdir", "rmdir")


class Events:
    """Counts what happens, and ends the process at event number `fatal`."""

    def __init__(self, fatal: int | None) -> None:
        self.names: list[str] = []
        self.fatal = fatal

    def happen(self, name: str, last_act: Callable[[], object] | None = None) -> None:
        if self.fatal == len(self.names):
            if last_act is not None:
                last_act()
            os.kill(os.getpid(), signal.SIGKILL)
        self.names.append(name)

    def watch(self, owner: Any, name: str, half: Callable[..., object] | None = None) -> None:
        """Make each call of `owner.name` an event before, after, and, given `half`, within."""
        real = getattr(owner, name)

        def watched(*args: Any, **keywords: Any) -> Any:
            self.happen(f"before {name}")
            if half is not None:
                self.happen(f"half {name}", lambda: half(*args))
            result = real(*args, **keywords)
            self.happen(f"after {name}")
            return result

        setattr(owner, name, watched)


def child(arguments: list[str], fatal: int | None, answer: str) -> int:
    """What the forked process does: the command line, with its events watched."""
    import torch

    from fedspzo.app.cli import main
    from fedspzo.app.run_folder import RunFolder

    real_write = os.write
    events = Events(fatal)
    events.watch(os, "write", lambda handle, data: real_write(handle, data[: len(data) // 2]))
    for name in CALLS[1:]:
        events.watch(os, name)
    events.watch(RunFolder, "append", half_a_row)
    events.watch(torch.ops.fedspzo, "perturb_")
    status = main(arguments)
    with open(answer, "w") as file:
        json.dump(events.names, file)
    return status


def half_a_row(folder: Any, name: str, row: Any) -> None:
    text = json.dumps(row)
    with (folder.path / name).open("a") as file:
        file.write(text[: len(text) // 2])


def serve(request: dict[str, Any], scratch: str) -> dict[str, Any]:
    answer, error = os.path.join(scratch, "answer"), os.path.join(scratch, "error")
    process = os.fork()
    if process == 0:
        status = 70
        try:
            handle = os.open(error, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            status = child(request["arguments"], request.get("event"), answer)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            sys.stdout.flush()
            os._exit(status)
    if "seconds" in request:
        time.sleep(request["seconds"])
        os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    events = []
    if status == 0:
        with open(answer) as file:
            events = json.load(file)
    with open(error) as file:
        return {"status": status, "events": events, "error": file.read()}


def warm_up(scratch: str) -> None:
    """One run in this process: what is slow only once is done before the first fork."""
    import fedspzo.app.run
    from fedspzo.app.cli import main

    fedspzo.app.run.figure_png = lambda *_: b"a figure"  # half of a run's time is its drawing
    out = os.path.join(scratch, "out")
    if main(["run", "run.toml", "--quiet", "--output", out]) != 0:
        sys.exit("the run fails even if it is left alone")
    main(["replay", "net", os.path.join(out, "journal.fspz"), "--quiet", "-o", out + "2"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        warm_up(scratch)
        for line in sys.stdin:
            print(json.dumps(serve(json.loads(line), scratch)), flush=True)
