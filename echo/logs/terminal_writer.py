"""A thread that writes to a terminal which may hold up whoever writes, so that nobody else waits for it."""

from __future__ import annotations

import errno
import os
import queue
import threading
from typing import Optional

from ..beginning import Thread
from ..descriptors import Owned

START_PATIENCE = 0.25
"""Maximum time in seconds for the first lines of the thread."""


class TerminalWriter:
    """Whoever uses it calls ``write`` from one thread at a time, and in a forked child makes a new one.

    The thread begins with the first ``write``. It waits for the terminal as long as that takes.
    """

    def __init__(self) -> None:
        self._pieces: queue.SimpleQueue[_Piece] = queue.SimpleQueue()
        self._last: Optional[_Piece] = None
        self._thread: Optional[Thread] = None

    def is_busy(self) -> bool:
        """Whether the terminal has not yet taken all that it was given."""
        return self._last is not None and not self._last.done.is_set()

    def write(self, terminal: Owned, data: bytes, patience: Optional[float]) -> int:
        """Give ``data`` to the thread, and wait up to ``patience`` seconds until it is written (None: no limit). What
        the terminal has not taken by then it takes later. Returns the size of ``data``; raises the error of a write
        that failed in time, and ``OSError`` if no thread can start."""
        self._begin()
        piece = _Piece(terminal, data)
        self._pieces.put(piece)
        self._last = piece  # only now: a signal handler's exception may come between any two lines
        piece.done.wait(patience)
        if piece.error is not None:
            raise piece.error
        return len(data)

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = Thread(target=self._write_all, name="echo-log", daemon=True)
            try:
                self._thread.start(START_PATIENCE)
            except (RuntimeError, MemoryError):
                self._thread = None
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from None

    def _write_all(self) -> None:
        while True:
            try:
                self._pieces.get().write()
            except Exception:  # no memory, not even for suppress()
                pass


class _Piece:
    def __init__(self, terminal: Owned, data: bytes) -> None:
        self._terminal = terminal
        self._data = data
        self.done = threading.Event()
        self.error: Optional[Exception] = None

    def write(self) -> None:
        try:
            while self._data:
                if not self._terminal.is_ours():  # other code has closed it: the number may be a client's
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                self._data = self._data[os.write(self._terminal.number, self._data) :]
        except Exception as exc:  # for whoever waits; the thread goes on
            self.error = exc
        finally:
            self.done.set()
