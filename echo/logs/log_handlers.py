"""Where a log goes, so that a slow reader blocks no client.

``run`` writes each record at once, and drops those that it would have to wait for (``DirectLog``). The server command
has a bounded queue, and a thread that writes it (``LogQueue``).

A thread that logs puts the line into the queue and goes on. The writing thread writes many lines at once. While nobody
reads the log, at most ``CAPACITY`` KiB wait. Further records are dropped and counted, and the log reports their number
when it is read again. If the queue is full although the output has room, as a file always has, a thread that logs waits
for the writing one: busy clients would otherwise take all its turns, and other clients' records would be lost.

The rules:

* A record is formatted where it is logged: then its size is known, nothing that it refers to stays alive, and a record
  that logs while it is formatted cannot feed the writing thread for ever. Only ``put_line`` leaves that to the writer.
* A fault in a record costs that record, never the session that logs it.
* Each record is written as a whole, or not at all (``Output``). Lost records are counted, and the log reports their
  number later.
* ``close`` does nothing, since programs call it for all handlers there are (``logging.config.dictConfig``,
  ``logging.basicConfig(force=True)``, ``logging.shutdown``). ``end`` is the end. ``settle`` comes before
  it: nothing waits afterwards, and threads that still run may log.
* The bare descriptor is used. Rejected: ``logging.StreamHandler`` on ``sys.stderr``. A writer that is stuck in a full
  pipe would hold the lock of its buffer, the interpreter flushes that buffer at exit, and not getting the lock then is
  a fatal error.
* A forked child has no writing thread. Its records are written at once, or dropped.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import queue
import threading
import time
import traceback
from typing import Any, Callable, Counter, Deque, List, Optional, Tuple, Union

from ..beginning import Thread
from ..descriptors import Owned
from ..server import forking
from ..text import LONGEST, plural, printable, raise_if_deep
from .formatters import TextFormatter
from .output import NOT_READ, Output

CAPACITY = 10_000
"""Places in the queue. A record takes one, and one more for each further KiB."""

PLACE = 1024

FLUSH_TIMEOUT = 1.5
"""Seconds that the end of the program waits for the log to be written."""

NOTE_TIMEOUT = 0.5
"""Seconds that it waits afterwards for the number of the records that were not."""

MAX_FLUSHES = 30
"""How often it waits again while the reader is not the cause: the descriptor has room, but the writing thread got no
turn on a busy machine."""

PATIENCE = 1.0
"""Seconds that a thread that logs waits for the writing one, while that takes nothing although the output has room."""

LOOK = 0.02
"""Seconds after which it looks again whether the output has room: a slow reader may be the cause now."""

LATE = "the log was not written in time"
"""Why records are lost after that time."""

BATCH_DELAY = 0.01
"""Seconds that the writing thread waits for more records before it writes. Woken for each record, it would take the
interpreter from the sessions each time."""

BATCH_PLACES = 1000
"""Places of the queue that are written at once: the batch is in memory a second time."""

_Line = Tuple[float, int, str]  # time, level, text


class LineHandler(logging.Handler):
    """A logging handler that turns records into whole lines."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)

    def encode(self, record: logging.LogRecord) -> bytes:
        """Return the record's line. If it cannot be formatted, that is the line: the standard handlers print such a
        fault, too, and the program goes on."""
        try:
            line = self.format(record)
        except Exception as exc:
            raise_if_deep(exc)
            line = self._format_fault(_fault(record, exc))
        return line.encode("utf-8", "backslashreplace") + b"\n"

    def _format_fault(self, fault: logging.LogRecord) -> str:
        try:
            return self.format(fault)
        except Exception as exc:  # the fault is the formatter's own
            raise_if_deep(exc)
            return printable(fault.getMessage(), LONGEST)


class CountingHandler(LineHandler):
    """A logging handler that writes its lines to an output, and counts those that are lost."""

    def __init__(self, formatter: logging.Formatter, output: Output) -> None:
        super().__init__(formatter)
        self._output = output
        self._counting = threading.RLock()  # reentrant: a signal handler may log while its thread counts
        self._lost: Counter[str] = collections.Counter()  # records, by what they were lost to
        self._reported: Counter[str] = collections.Counter()
        self._writing = False
        self._batches: Deque[List[bytes]] = collections.deque()
        forking.in_child(self._let_go)

    def _let_go(self) -> None:
        """In a forked child: what waits, or is lost, is its parent's."""
        self._counting = threading.RLock()
        self._reported = self._lost.copy()
        self._writing = False
        self._batches.clear()
        self._output.let_go()

    def settle(self) -> None:
        """Write the records that wait. From now on write each at once, or drop it."""

    def end(self) -> None:
        """No more records come."""
        self.settle()
        self._output.close()

    def _drop(self, why: str, count: int = 1) -> None:
        with self._counting:
            self._lost[why] += count

    def _write(self, lines: List[bytes]) -> None:
        """Write the lines; under a lock. A signal handler or a finalizer that logs may interrupt this in the middle of
        a line: its own lines come after that one."""
        self._batches.append(lines)
        while self._batches and not self._writing:
            self._writing = True
            try:
                self._write_now(self._batches.popleft())
            finally:
                self._writing = False

    def _write_now(self, lines: List[bytes]) -> None:
        with self._counting:
            unreported = list((self._lost.copy() - self._reported).items())
        notes = [self.encode(_note(count, why)) for why, count in unreported]
        lost = self._output.write(lines + notes)
        for why, count in unreported[: max(0, len(notes) - lost)]:
            self._reported[why] += count
        if lost > len(notes):
            self._drop(self._output.problem(), lost - len(notes))


class LogQueue(CountingHandler):
    """A logging handler with a thread that writes to a file descriptor, of which it makes a duplicate. ``settle`` ends
    the thread.

    ``lock`` is what all processes share that write to the descriptor (``output.new_lock``).
    """

    patience = PATIENCE

    def __init__(
        self,
        descriptor: int,
        formatter: logging.Formatter,
        capacity: int = CAPACITY,
        flush_timeout: float = FLUSH_TIMEOUT,
        lock: Optional[Owned] = None,
    ) -> None:
        super().__init__(formatter, Output(descriptor, lock=lock))
        self._capacity = capacity
        self._flush_timeout = flush_timeout
        self._records: Any = queue.SimpleQueue()  # of lines: bytes, or a _Line; None ends the thread
        self._ended = False
        self._ending = threading.Event()
        self._taken = threading.Condition()  # the thread has taken a batch; reentrant: a signal handler may log
        self._no_room: Optional[str] = None  # why records are dropped until the thread takes the next batch
        self._thread: Optional[threading.Thread]
        self._thread = Thread(target=self._write_all, name="echo-log", daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """End the thread when it has written the records that wait. Drop those that a slow reader has not taken within
        ``flush_timeout`` seconds; give up if it does not take their number either."""
        thread, waiting = self._thread, self._records
        if thread is None:
            return
        self._ending.set()
        waiting.put(None)
        for _ in range(MAX_FLUSHES):
            thread.join(self._flush_timeout)
            if not thread.is_alive() or not self._output.has_room():
                break
        if thread.is_alive():
            self._output.hurry()
            self._drop_all()
            waiting.put(None)
            thread.join(NOTE_TIMEOUT)
        if not thread.is_alive():  # else it may be in the middle of a line
            self._output.wait_no_more()
            self._unqueue()
            with contextlib.suppress(queue.Empty):
                while True:  # what has come after the end of the thread
                    self._records.put(waiting.get_nowait())

    def _unqueue(self) -> None:
        self._thread = None
        self._records = _Unqueued(self._counting, lambda item: self._write(self._lines([item])))

    def _drop_all(self) -> None:
        # Under the lock: else the thread could take the end of the queue, and report, between these two lines.
        with self._counting, contextlib.suppress(queue.Empty):
            while True:
                if self._records.get_nowait():
                    self._drop(NOT_READ)

    def handle(self, record: logging.LogRecord) -> bool:
        """Queue the record's line. The handler's own lock is not needed, since the queue has one."""
        try:
            passed = self.filter(record) if self.filters else True
            if not passed:
                return False
            if not self._is_full():
                line = self.encode(record if passed is True else passed)  # a filter may replace it (3.12)
                if not self._is_full():  # again: many threads may have formatted at the same time
                    self._put(line)
        except Exception as exc:  # no memory, or the end of the stack, for the fault's own line too
            raise_if_deep(exc)
            self._drop(f"{type(exc).__name__} while it was formatted")
        return True

    def setFormatter(self, fmt: Optional[logging.Formatter]) -> None:  # noqa: N802 (logging's name)
        """Do nothing, once it has one: a program may set another for all handlers there are. What a client sent would
        not be escaped, and its lines would not be JSON."""
        if self.formatter is None:
            super().setFormatter(fmt)

    @property
    def takes_lines(self) -> bool:
        """Whether ``put_line`` is enough: the formatter needs no record."""
        return isinstance(self.formatter, TextFormatter) and not self.formatter.needs_records

    def put_line(self, level: int, message: str) -> None:
        """Queue a message in place of a record that has nothing else to show."""
        if not self._is_full():
            long = len(message) > PLACE // 4  # a character takes up to four bytes
            if long:
                message = printable(message, LONGEST)
            self._records.put((time.time(), level, message))
            if long:
                self._fill(len(message) if message.isascii() else 4 * len(message))

    def _put(self, line: bytes) -> None:
        self._records.put(line)
        if len(line) > PLACE:
            self._fill(len(line))

    def _fill(self, size: int) -> None:
        # A long record takes the places of many short ones. That bounds the memory without a lock and a sum.
        for _ in range(size // PLACE):
            self._records.put(b"")

    def _is_full(self) -> bool:
        """Whether the next record must be dropped; if so, count it. Wait if only the writing thread is late."""
        if self._records.qsize() < self._capacity:
            return False
        why = self._no_room or self._wait_for_room()
        if why is not None:
            self._drop(why)
        return why is not None

    def _wait_for_room(self) -> Optional[str]:
        """Return why there is none."""
        with self._taken:
            deadline = time.monotonic() + self.patience
            while self._no_room is None and self._records.qsize() >= self._capacity:
                if self._output.is_full():
                    self._no_room = NOT_READ
                elif self._taken.wait(LOOK):
                    deadline = time.monotonic() + self.patience
                elif time.monotonic() >= deadline:
                    self._no_room = LATE
            return self._no_room

    def _let_go(self) -> None:
        super()._let_go()
        self._unqueue()

    def _write_all(self) -> None:
        while not self._ended:
            self._write_batch()
        with contextlib.suppress(Exception):  # no memory
            self._write([])  # the number of records that were lost in the last batch

    def _write_batch(self) -> None:
        batch: List[Union[bytes, _Line]] = []
        try:
            self._fill_batch(batch)
            self._write(self._lines(batch))
        except Exception as exc:  # no memory; the thread must go on
            self._drop(f"{type(exc).__name__} while they were written", len(batch))

    def _fill_batch(self, batch: List[Union[bytes, _Line]]) -> None:
        first = self._records.get()
        if self._records.qsize() < BATCH_PLACES:
            self._ending.wait(BATCH_DELAY)
        with contextlib.suppress(queue.Empty):
            for place in range(BATCH_PLACES):
                item = self._records.get_nowait() if place else first
                if item is None:
                    self._ended = True
                elif item:  # else it only holds a place
                    batch.append(item)
        with self._taken:
            self._no_room = None
            self._taken.notify_all()

    def _lines(self, batch: List[Union[bytes, _Line]]) -> List[bytes]:
        """The batch as lines. Those of ``put_line`` are printable, unless a handler has put something else into what
        they are made of; so they are looked at all at once (0.1 us each, and 0.7 one by one)."""
        texts = "".join([item[2] for item in batch if isinstance(item, tuple)])
        plain = texts.isascii() and not texts.encode().translate(None, _PLAIN)
        lines = []
        for item in batch:
            if isinstance(item, tuple):
                assert isinstance(self.formatter, TextFormatter)
                created, level, message = item
                line = self.formatter.line(created, level, message if plain else printable(message))
                item = line.encode("utf-8", "backslashreplace") + b"\n"
            lines.append(item)
        return lines


class _Unqueued:
    """Takes the place of the queue: what is put into it is written at once, one by one."""

    def __init__(self, lock: Any, write: Callable[[Union[bytes, _Line]], None]) -> None:
        self._lock = lock
        self._write = write

    def qsize(self) -> int:
        return 0

    def put(self, item: Union[bytes, _Line]) -> None:
        if item:
            with self._lock:
                self._write(item)


class DirectLog(CountingHandler):
    """A logging handler for a process that must not have a second thread, since it forks.

    It writes at once, and drops a record that cannot be written without waiting.
    """

    def __init__(self, descriptor: int, formatter: logging.Formatter, lock: Optional[Owned] = None) -> None:
        super().__init__(formatter, Output(descriptor, lock=lock, waits=False))

    def takes_what_is_written_to(self, stream: Any) -> bool:
        """Whether the log is where a stream writes."""
        return self._output.takes_what_is_written_to(stream)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write([self.encode(record)])
        except Exception as exc:  # no memory, or the end of the stack
            raise_if_deep(exc)
            self._drop(f"{type(exc).__name__} while it was written")


_PLAIN = bytes(range(0x20, 0x7F))


def _fault(record: logging.LogRecord, exc: Exception) -> logging.LogRecord:
    """A record that says that this one could not be formatted."""
    what = "".join(traceback.format_exception_only(type(exc), exc)).rstrip("\n")  # with its notes
    where = f"{os.path.basename(record.pathname)}:{record.lineno}"
    text = f"a log record could not be formatted ({where}): {what}"
    return _record(logging.ERROR, text, "log-failed")


def _note(count: int, why: str) -> logging.LogRecord:
    record = _record(logging.WARNING, f"{plural(count, 'log record')} dropped: {why}", "dropped")
    record.dropped = count
    return record


def _record(level: int, text: str, event: str) -> logging.LogRecord:
    record = logging.LogRecord("echo.server", level, "", 0, text, None, None)
    record.event = event
    return record
