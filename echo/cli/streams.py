"""The standard streams of a command: a write goes out whole or fails, a read waits.

A write to a pipe, a terminal or a disk may take only a part of the bytes: if a signal interrupts it, if the disk is
full, if the stream is non-blocking because another program that shares it wants that. Python's streams then lose the
rest, in silence with ``python -u``; and what they could not write, they try again at exit, which changes the exit code
to 120. The streams here keep nothing back: ``print`` with ``flush``, ``argparse`` and warnings use them like any other.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import Any, Optional, TextIO

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

LONGEST_TYPED = 4095 if sys.platform == "linux" else 1023
"""Maximum length of a line that a terminal keeps for its user to edit, in bytes without its end. It drops the
rest, and returns the line as if it were whole."""


class CannotWrite(Exception):
    """A stream did not take all. ``error`` is the ``OSError``.

    It is not an ``OSError`` itself, since the code that writes distinguishes the errors of its connection by that.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write standard output: {error.strerror}")
        self.error = error


def whole(stream: TextIO) -> TextIO:
    """Return a text stream to where ``stream`` writes. A write to it takes all, or raises ``CannotWrite``.

    Characters that the stream's encoding does not have are escaped. A stream without bytes below it, like a
    ``StringIO``, is returned as it is.
    """
    return _text(stream, _Whole)


def best_effort(stream: Optional[TextIO]) -> TextIO:
    """Return a text stream like that of ``whole``, except that it drops what cannot be written; all of it if ``stream``
    is None, as a standard stream is whose descriptor was closed."""
    return io.TextIOWrapper(io.BufferedWriter(_Nowhere())) if stream is None else _text(stream, _BestEffort)


def read(descriptor: int, size: int) -> bytes:
    """As ``os.read``, but wait for input if the descriptor is non-blocking, and raise ``OSError`` for a line that a
    terminal may have cut."""
    while True:
        try:
            data = os.read(descriptor, size)
        except BlockingIOError:
            select.select([descriptor], [], [])
        else:
            if len(data.rstrip(b"\n")) >= LONGEST_TYPED and _reads_lines(descriptor):
                why = f"the terminal has cut a line at {LONGEST_TYPED} bytes; give longer lines in a file"
                raise OSError(errno.EMSGSIZE, why)
            return data


def _reads_lines(descriptor: int) -> bool:
    """Whether the descriptor is a terminal that lets the user edit each line before the program gets it."""
    if termios is None or not os.isatty(descriptor):
        return False
    return bool(termios.tcgetattr(descriptor)[3] & termios.ICANON)


def _text(stream: TextIO, kind: Any) -> TextIO:
    buffer: Any = getattr(stream, "buffer", None)
    if buffer is None:
        return stream
    with contextlib.suppress(OSError, ValueError):
        stream.flush()  # from now on its buffer is passed by
    raw = getattr(buffer, "raw", buffer)  # python -u has no buffer
    return io.TextIOWrapper(kind(raw), encoding=stream.encoding, errors="backslashreplace", line_buffering=True)


class _Whole(io.RawIOBase):
    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def write(self, data: Any) -> int:
        left = memoryview(data)
        try:
            while left:
                written = self._raw.write(left)
                if written is None:  # non-blocking, and full
                    select.select([], [self._raw], [])
                else:
                    left = left[written:]
        except OSError as exc:
            raise CannotWrite(exc) from None
        return len(data)


class _BestEffort(_Whole):
    def write(self, data: Any) -> int:
        with contextlib.suppress(CannotWrite, ValueError):
            super().write(data)
        return len(data)


class _Nowhere(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)
