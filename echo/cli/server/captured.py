"""Text that is printed on stderr beside the log, as records of the log.

Python prints unhandled exceptions of threads and of ``__del__`` there, warnings, and the tracebacks of
``multiprocessing`` and of logging handlers. A handler's module prints there, too. All of it may quote data of a peer,
and it is not JSON. Only text that is written to the descriptor itself, by C code or by other programs, is out of reach.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
from threading import current_thread
from typing import Any, Dict, Iterable, Iterator, Tuple

from ...logs.printed import logged, put_back
from ...server import forking
from ...text import LONGEST
from ..streams import best_effort

MOST_BEGUN = 100
"""Threads whose lines without an end are kept. That bounds the memory."""


_Writer = Tuple[threading.Thread, str]


class Stderr(io.TextIOBase):
    """Takes the place of ``sys.stderr``: each line becomes a record for ``log``, a handler. Without one, text goes to
    the original stream as it is."""

    name = "<stderr>"
    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, original: Any) -> None:
        self.log: Any = None  # a logging handler
        self.buffer = _Bytes(self)
        self._original = best_effort(original)
        self._begun: Dict[_Writer, str] = {}  # lines without an end
        forking.in_child(self._let_go)

    def write(self, text: str) -> int:
        if self.log is None:
            self._original.write(text)
        else:
            me = _writer()
            ended = [each for each in list(self._begun) if not (each[0].is_alive() and each[0].name == each[1])]
            self._end([each for each in ended if each != me])  # the main thread writes after its end
            *lines, rest = (self._begun.pop(me, "") + text).split("\n")
            if len(rest) >= LONGEST or len(self._begun) >= MOST_BEGUN:
                lines.append(rest)
            elif rest:
                self._begun[me] = rest
            for line in lines:
                self._log(line)
        return len(text)

    def _end(self, writers: Iterable[_Writer]) -> None:
        for each in writers:
            self._log(self._begun.pop(each, ""))

    def flush(self) -> None:
        self._end([_writer()])
        if self.log is None:
            self._original.flush()

    def flush_all(self) -> None:
        """Log the lines without an end of all threads."""
        self._end(list(self._begun))

    def _let_go(self) -> None:
        """In a forked child: what was begun is its parent's."""
        self._begun = {}

    def _log(self, line: str) -> None:
        if line and self.log is not None:
            # Not through a logger: a handler of the program's own may write to this stream.
            record = logging.LogRecord("stderr", logging.WARNING, "", 0, f"stderr: {line}", None, None)
            record.event = "stderr"
            self.log.handle(record)

    def close(self) -> None:
        """Do nothing: the log needs it."""

    def writable(self) -> bool:
        return True

    def detach(self) -> Any:
        """Return the stream of bytes, for a module that wraps it in a stream of its own. This one goes on."""
        return self.buffer

    def reconfigure(self, **options: Any) -> None:
        """Do nothing: records need no encoding. The stream that this replaces has such a method."""

    def fileno(self) -> int:
        return self._original.fileno()


def _writer() -> _Writer:
    """The thread, not its number, which is used again; and its name, since a thread that serves one client after
    another has a new name for each."""
    thread = current_thread()
    return thread, thread.name


class _Bytes(io.RawIOBase):
    """``sys.stderr.buffer``."""

    name = "<stderr>"
    mode = "wb"

    def __init__(self, stream: Stderr) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._stream.write(bytes(data).decode("utf-8", "backslashreplace"))
        return len(data)

    def fileno(self) -> int:
        return self._stream.fileno()

    def close(self) -> None:
        """Do nothing, as ``Stderr.close``."""


@contextlib.contextmanager
def captured_stderr() -> Iterator[Stderr]:
    """Replace ``sys.stderr``, and the functions that print exceptions of threads, unraisable ones and warnings."""
    stream = Stderr(sys.stderr)
    with contextlib.ExitStack() as stack:
        for name in ("stderr", "__stderr__"):
            stack.callback(put_back, sys, name, stream, getattr(sys, name))
            setattr(sys, name, stream)
        stack.enter_context(logged())
        yield stream
