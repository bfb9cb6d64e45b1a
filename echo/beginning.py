"""A thread that begins in time or not at all, as ``threading.Thread`` does not promise.

``threading.Thread.start()`` waits until the new thread has run its first lines. Without memory for these, CPython ends
the thread, and ``start()`` waits for ever (seen on 3.11 to 3.13, where the first line of a thread needs 16 KB from the
system). After that an accept loop would neither serve nor stop. CPython reports the end of such a thread
nowhere, so ``start()`` gives it up after a time. If the thread was only late, it does nothing.

Before 3.10 a thread also needs something for its end: see ``prepare_ends``.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import sys
import threading
from typing import Any, Dict, Optional

PATIENCE = 5.0
"""Maximum time in seconds for the first lines of a thread. Ten thousand busy threads may take some of them."""


@functools.lru_cache(maxsize=None)
def prepare_ends() -> None:
    """Load now what CPython before 3.10 loads on Linux when the first thread of the process ends (bpo-44434). Without a
    free descriptor at that time the process is aborted. Raises ``OSError`` if none is free now."""
    if sys.version_info < (3, 10) and sys.platform == "linux":
        socket.socket(socket.AF_UNIX).close()  # what follows reports a lack of descriptors in many ways
        with contextlib.suppress(ImportError, OSError):
            import ctypes

            ctypes.CDLL("libgcc_s.so.1")


class Thread(threading.Thread):
    """``start()`` raises ``RuntimeError``, as for want of threads, if the first lines do not run in time, or if the end
    could abort the process. ``patience``: that time in seconds (default and maximum: ``PATIENCE``)."""

    _started: Any

    def start(self, patience: Optional[float] = None) -> None:
        try:
            prepare_ends()
        except OSError as exc:
            raise RuntimeError(f"can't start new thread: {exc.strerror}") from None
        self._started = _FirstLines(self, PATIENCE if patience is None else min(patience, PATIENCE))
        super().start()
        if self._started.given_up:
            raise RuntimeError("can't start new thread: no memory for its first line")

    def has_begun(self) -> bool:
        """Whether the thread runs, or has run, although ``start()`` may have raised an exception."""
        return self.ident is not None and not self._started.given_up

    def run(self) -> None:
        if not self._started.given_up:
            super().run()


class _FirstLines(threading.Event):
    """``Thread.start()`` waits for this, and the new thread sets it. The first one of them decides."""

    def __init__(self, thread: threading.Thread, patience: float) -> None:
        super().__init__()
        self._patience = patience
        self.given_up = False
        self._thread: Optional[threading.Thread] = thread
        self._deciding = threading.Lock()

    def wait(self, timeout: Optional[float] = None) -> bool:
        if not super().wait(self._patience if timeout is None else timeout):
            with self._deciding:
                self.given_up = not self.is_set()
                if self.given_up:
                    _limbo.pop(self._thread, None)  # it would stay in threading.enumerate()
        if not self.given_up:
            self._thread = None  # no cycle: what a thread holds must not wait for the garbage collector
        return self.is_set()

    def set(self) -> None:
        with self._deciding:
            if self.given_up:
                _limbo[self._thread] = self._thread  # the next of the first lines removes it
            super().set()


_limbo: Dict[Any, Any] = getattr(threading, "_limbo", {})
