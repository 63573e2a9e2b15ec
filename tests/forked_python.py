"""Runs Python programs as processes that need not import torch or transformers anew.

They are forked from a process that has imported those, which takes seconds, and nothing of
fedspzo. From there on a program runs as `python` has it: with its own arguments, environment,
folder and output.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class ForkedPython:
    """Stands for the command `python`."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self,
        *arguments: object,
        imports: tuple[str, ...] = ("torch",),
        folder: Path | None = None,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end.

        Args:
            arguments: as on the command line: a script's path, or -m and a module, or -c and
                code; then the program's own.
            imports: modules that are there before it begins, and for later programs too. None of
                them may depend on the environment, or be what a program is to import in its way.
            folder: where it runs. Default: here.
            environment: what it has beside this process's, one thread and no hub.
        """
        assert self._server.stdin
        assert self._server.stdout
        with tempfile.TemporaryDirectory() as scratch:
            request = {
                "arguments": list(map(str, arguments)),
                "imports": imports,
                "folder": str(folder or Path.cwd()),
                "environment": {**os.environ, **ENVIRONMENT, **environment},
                "scratch": scratch,
            }
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            status = int(self._server.stdout.readline())
            out, error = (Path(scratch, name).read_text() for name in ("1", "2"))
        return subprocess.CompletedProcess(request["arguments"], status, out, error)

    def end(self) -> None:
        """End the process that the programs are forked from."""
        self._server.communicate()


def serve() -> dict[str, Any] | None:
    """Fork for each request on stdin. In a forked process, return the request."""
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        for name in request["imports"]:
            importlib.import_module(name)
        gc.freeze()
        process = os.fork()
        if process == 0:
            return request
        status = os.waitpid(process, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def become(request: dict[str, Any]) -> int:
    """Be the program, and return its exit code."""
    files = [os.open(os.devnull, os.O_RDONLY)]
    files += [os.open(f"{request['scratch']}/{n}", os.O_WRONLY | os.O_CREAT) for n in (1, 2)]
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    kind, *rest = request["arguments"]
    try:
        if kind == "-c":
            sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        elif kind == "-m":
            sys.argv, sys.path[0] = rest, os.getcwd()
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = [kind, *rest], os.path.dirname(kind)
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    asked = serve()
    code = 0 if asked is None else become(asked)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # to free all that torch and transformers have made takes half a second
