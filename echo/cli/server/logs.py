"""Where the command's log goes: a bounded queue and a thread that writes it, so that a slow reader blocks no client.

A thread that logs puts the record into the queue and goes on. The writing thread formats the records, and writes many
lines at once. While nobody reads the log, at most ``CAPACITY`` records wait. Further ones are dropped and counted, and
the log reports their number when it is read again.

The writing thread uses the bare descriptor. Rejected: ``logging.StreamHandler`` on ``sys.stderr``. A writer that is
stuck in a full pipe would hold the lock of its buffer, the interpreter flushes that buffer at exit, and not getting
the lock then is a fatal error.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import stat
import threading
import time
from typing import Iterator, List, Optional, Tuple, Union

from ...text import plural
from .formatters import TextFormatter

CAPACITY = 10_000
"""Maximum number of records that wait for the writing thread."""

FLUSH_TIMEOUT = 2.0
"""Seconds that the end of the program waits for the log to be written."""

MAX_FLUSHES = 30
"""How often it waits again while the reader is not the cause: the descriptor has room, but the writing thread got no
turn on a busy machine."""

BATCH_DELAY = 0.01
"""Seconds that the writing thread waits for more records before it writes. Woken for each record, it would take the
interpreter from the sessions each time."""

_Line = Tuple[float, int, str]  # time, level, text

_TRACEBACKS = logging.Formatter()


class LogQueue(logging.Handler):
    """A logging handler with a thread that writes to a file descriptor. ``close`` ends the thread.

    ``shared`` says that other processes write to the descriptor too.
    """

    def __init__(
        self,
        descriptor: int,
        formatter: logging.Formatter,
        capacity: int = CAPACITY,
        shared: bool = False,
        flush_timeout: float = FLUSH_TIMEOUT,
    ) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._descriptor = descriptor
        self._capacity = capacity
        self._flush_timeout = flush_timeout
        self._records: queue.SimpleQueue[Union[logging.LogRecord, _Line, None]] = queue.SimpleQueue()
        self._counting = threading.RLock()  # reentrant: a signal handler may log while its thread counts
        self._dropped = 0
        self._ending = threading.Event()
        self._shared = shared
        self._thread = threading.Thread(target=self._write_all, name="echo-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write the records that wait, and end the thread. Give up if nobody reads for ``flush_timeout`` seconds."""
        super().close()
        self._ending.set()
        self._records.put(None)
        for _ in range(MAX_FLUSHES):
            self._thread.join(self._flush_timeout)
            if not self._thread.is_alive() or not _has_room(self._descriptor):
                break

    def handle(self, record: logging.LogRecord) -> bool:
        """Queue the record. The handler's own lock is not needed, since the queue has one."""
        if self.filters and not self.filter(record):
            return False
        if self._is_full():
            return True
        # Format now what may change before the writing thread comes to it, or would keep a frame's objects alive.
        if record.args:
            record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            record.exc_text = _TRACEBACKS.formatException(record.exc_info)
            record.exc_info = None
        self._records.put(record)
        return True

    @property
    def takes_lines(self) -> bool:
        """Whether ``put_line`` is enough: the formatter needs no record."""
        return isinstance(self.formatter, TextFormatter)

    def put_line(self, level: int, message: str) -> None:
        """Queue a message in place of a record that has nothing else to show."""
        if not self._is_full():
            self._records.put((time.time(), level, message))

    def _is_full(self) -> bool:
        """Whether the next record must be dropped; if so, count it."""
        full = self._records.qsize() >= self._capacity
        if full:
            with self._counting:
                self._dropped += 1
        return full

    def _write_all(self) -> None:
        reported = 0
        ended = False
        while not ended:
            batch = [self._records.get()]
            self._ending.wait(BATCH_DELAY)
            try:
                while len(batch) < self._capacity:
                    batch.append(self._records.get_nowait())
            except queue.Empty:
                pass
            ended = None in batch
            lines = [self._line(record) for record in batch if record is not None]
            dropped = self._dropped
            if dropped > reported:
                lines.append(self._line(_dropped_note(dropped - reported)))
                reported = dropped
            encoded = [line.encode("utf-8", "backslashreplace") for line in lines]
            for data in _pieces(encoded) if self._shared else [b"".join(encoded)]:
                self._write(data)

    def _line(self, record: Union[logging.LogRecord, _Line]) -> str:
        if isinstance(record, tuple):
            assert isinstance(self.formatter, TextFormatter)
            return self.formatter.line(*record) + "\n"
        try:
            return self.format(record) + "\n"
        except Exception as exc:  # a record of another library, whose arguments do not fit its format
            return f"a log record could not be formatted: {exc!r}\n"

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[os.write(self._descriptor, view) :]
                except BlockingIOError:  # the descriptor is shared, and another program has made it non-blocking
                    select.select([], [self._descriptor], [])
        except OSError:
            pass  # closed, or the disk is full: there is no other place to report it


class DirectLog(logging.Handler):
    """A logging handler for a process that must not have a second thread, since it forks.

    It writes at once, and drops a record that cannot be written without waiting.
    """

    def __init__(self, descriptor: int, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._descriptor = descriptor
        self._own: Optional[int] = None
        try:
            # A regular file never blocks, and must not be opened again: all its writers share one position.
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                # Another process may fill the pipe after select() and before the write. A descriptor that is opened
                # anew can be non-blocking without changing that of the others. A socket cannot be opened so; for it
                # select() has to do.
                self._own = self._descriptor = os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            pass

    def close(self) -> None:
        super().close()
        if self._own is not None:
            os.close(self._own)
            self._own = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if select.select([], [self._descriptor], [], 0)[1]:
                os.write(self._descriptor, (self.format(record) + "\n").encode("utf-8", "backslashreplace"))
        except OSError:
            pass


def _has_room(descriptor: int) -> bool:
    """Whether a write would not block now."""
    try:
        return bool(select.select([], [descriptor], [], 0)[1])
    except (OSError, ValueError):
        return False


def _pieces(lines: List[bytes]) -> Iterator[bytes]:
    """Group whole lines into pieces that a pipe takes in one go, so that another writer's lines cannot come between."""
    piece = b""
    for line in lines:
        if piece and len(piece) + len(line) > select.PIPE_BUF:
            yield piece
            piece = b""
        piece += line
    if piece:
        yield piece


def _dropped_note(dropped: int) -> logging.LogRecord:
    text = f"{plural(dropped, 'log record')} dropped: the log was not read"
    record = logging.LogRecord("echo.server", logging.WARNING, "", 0, text, None, None)
    record.event, record.dropped = "dropped", dropped
    return record
