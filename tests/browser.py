"""A real browser without a window, steered by its DevTools protocol over two pipes.

It needs Chromium or Chrome, and no other package.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 60.0


def find() -> str:
    """Return the browser's path. Raise RuntimeError, which says what to install."""
    for name in (os.environ.get("FEDSPZO_BROWSER", ""), *NAMES):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise RuntimeError(
        "this test opens a page in a real browser, and there is none: install chromium ('apt-get"
        " install chromium'), or set FEDSPZO_BROWSER to the path of a Chromium or Chrome"
    )


class Browser:
    """A browser with one empty tab. It is a context manager that ends the browser.

    Attributes:
        requests: the addresses that pages have asked for.
        errors: what scripts threw, and what the browser logged as an error or a warning.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._number = 0
        self._rest = b""
        self._profile = tempfile.mkdtemp(prefix="fedspzo-browser-")

    def __enter__(self) -> Browser:
        theirs, self._to = _high(*os.pipe())
        self._from, ours = _high(*os.pipe())
        command = [
            *(find(), "--headless", "--remote-debugging-pipe", f"--user-data-dir={self._profile}"),
            *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
        ]
        silent = [(os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_WRONLY, 0) for n in (1, 2)]
        pipes = [(os.POSIX_SPAWN_DUP2, theirs, 3), (os.POSIX_SPAWN_DUP2, ours, 4)]
        self._process = os.posix_spawn(
            command[0], command, os.environ, file_actions=[*silent, *pipes], setpgroup=0
        )
        os.close(theirs)
        os.close(ours)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            answer = self._next(end)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self._note(answer)
        raise TimeoutError(f"{method}: no answer within {SECONDS:.0f} s")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page. A promise is waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression in the page is true."""
        end = time.monotonic() + SECONDS
        while not self.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} is not true after {SECONDS:.0f} s: {self.errors}")
            time.sleep(0.05)

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a file in a window of some size, in pixels, and a light or a dark system."""
        self.resize(width, height)
        self.look(dark=dark)
        self.call("Page.navigate", url=path.resolve().as_uri())

    def look(self, *, dark: bool) -> None:
        """Choose the system's colour scheme."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def resize(self, width: int, height: int) -> None:
        """Choose the window's size, in pixels. A narrow one is a phone's."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def point_at(self, selector: str, across: float, down: float) -> None:
        """Move the mouse to a place in an element, in shares of its width and height."""
        left, top, width, height = self.evaluate(f"""(() => {{
            const node = document.querySelector({selector!r});
            node.scrollIntoView({{ block: "center" }});
            const box = node.getBoundingClientRect();
            return [box.x, box.y, box.width, box.height];
        }})()""")
        for step in (5, 0):
            place = {"x": left + across * width - step, "y": top + down * height}
            self.call("Input.dispatchMouseEvent", type="mouseMoved", **place)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write a PNG file of the window, or of the whole page."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            wait = max(end - time.monotonic(), 0)
            if not select.select([self._from], [], [], wait)[0]:
                raise TimeoutError(f"the browser says nothing for {SECONDS:.0f} s")
            part = os.read(self._from, 2**16)
            if not part:
                raise RuntimeError("the browser has ended")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.errors.append(str([one.get("value") for one in parameters["args"]]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.errors.append(parameters["entry"]["text"])


def _high(*handles: int) -> tuple[int, ...]:
    """Move file handles out of the way of 3 and 4, which the browser uses."""
    moved = tuple(fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 10) for handle in handles)
    for handle in handles:
        os.close(handle)
    return moved
