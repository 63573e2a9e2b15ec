"""Hold Ctrl-C back while weights are moved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class HeldInterrupts:
    """Holds Ctrl-C back inside a `with` block, except inside `released()`.

    So weights that are being moved are never left between two states. The interrupt comes at the
    next `released()`, or at the block's end. Outside the main thread this does nothing, as Python
    delivers signals only there.
    """

    def __init__(self) -> None:
        self._outer: Callable[..., Any] | None = None
        self._pending: tuple[Any, ...] | None = None
        self._open = False

    def __enter__(self) -> HeldInterrupts:
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(handler):
            self._outer = handler
            signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._outer is not None:
            signal.signal(signal.SIGINT, self._outer)
            self._deliver()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Let Ctrl-C through inside the `with` block."""
        try:
            self._open = True  # handlers stay as they are: to set one takes longer than a small op
            self._deliver()
            yield
        finally:
            self._open = False

    def _receive(self, *received: Any) -> None:
        self._pending = received
        if self._open:
            self._deliver()

    def _deliver(self) -> None:
        received, self._pending = self._pending, None
        if received is not None and self._outer is not None:
            self._outer(*received)
