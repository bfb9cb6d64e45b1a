"""The command line's log: a bounded queue, and a thread that writes it, so that no log reader stalls a client.

Whoever logs puts a record into memory and goes on. The writer formats, and writes many lines at once. While
nobody reads stderr, at most ``CAPACITY`` records wait; later ones are dropped and counted, and the count is told
when the log flows again. What records tell is their makers' affair.

The writer uses the bare descriptor. Rejected: ``logging.StreamHandler`` on ``sys.stderr``, whose buffer's lock a
writer stuck in a full pipe would hold when the interpreter wants to flush it at exit, which is fatal.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import queue
import select
import stat
import threading
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

from ...text import plural

CAPACITY = 10_000
"""Records that wait for the writer at most."""

FLUSH_TIMEOUT = 2.0
"""Seconds that the end of the program waits for the log to be written."""

MAX_FLUSHES = 30
"""Times that it waits so long while the reader is not the one that is late: the descriptor has room, but the writing
thread got no turn on a busy machine."""

GATHER = 0.01
"""Seconds that the writer waits for more records before it writes: woken for each of them, it would take the
interpreter from the sessions each time."""

_Line = Tuple[float, int, str]  # time, level, text

_TRACEBACKS = logging.Formatter()

_STANDARD = {*vars(logging.LogRecord("", 0, "", 0, "", None, None)), "message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """Lines for people: ``2026-11-22 09:14:39.702 INFO    listening on 127.0.0.1:65432``. Where several processes
    write, each has its number in them."""

    _moment = (-1, -1)
    _prefix = ""

    def __init__(self, with_process: bool = False) -> None:
        super().__init__()
        self._process = f"[{os.getpid()}] " if with_process else ""

    def format(self, record: logging.LogRecord) -> str:
        line = self.line(record.created, record.levelno, record.getMessage())
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        return f"{line}\n{record.exc_text}" if record.exc_text else line

    def line(self, created: float, level: int, message: str) -> str:
        moment = (int(created * 1000), level)
        if moment != self._moment:  # under load many share theirs; only the writer's thread comes here
            self._moment = moment
            second, millisecond = divmod(moment[0], 1000)
            text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self._prefix = f"{text}.{millisecond:03d} {logging.getLevelName(level):7} {self._process}"
        return self._prefix + message


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for programs.

    Always there: ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``event`` and ``message``, the line for people. The
    others come with the event, under the names that the record has them by (``extra``): ``peer``, ``session``,
    ``reason``, ``messages_in``, ``bytes_in``, ``duration_s``, ...; and ``exception``, a traceback. Where several
    processes write, ``process`` is the number of each.
    """

    def __init__(self, with_process: bool = False) -> None:
        super().__init__()
        self._with_process = with_process

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        fields: Dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "event": "log",
        }
        fields.update((name, value) for name, value in vars(record).items() if name not in _STANDARD)
        if self._with_process:
            fields["process"] = record.process
        fields["message"] = record.getMessage()
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            fields["exception"] = record.exc_text
        return json.dumps(fields, default=str)


class LogQueue(logging.Handler):
    """A logging handler in front of a thread that writes to a file descriptor; ``close`` ends it. ``shared``: other
    processes write there, too."""

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
        self.take_line = self._take_line if isinstance(formatter, TextFormatter) else None
        self._counting = threading.RLock()  # a signal handler logs, too
        self._dropped = 0
        self._ending = threading.Event()
        self._shared = shared
        self._thread = threading.Thread(target=self._write_all, name="echo-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, or as much of it as is read in time."""
        super().close()
        self._ending.set()
        self._records.put(None)
        for _ in range(MAX_FLUSHES):
            self._thread.join(self._flush_timeout)
            if not self._thread.is_alive() or not _has_room(self._descriptor):
                break

    def handle(self, record: logging.LogRecord) -> bool:
        """Queue the record; without the handler's lock, since the queue has its own."""
        if self.filters and not self.filter(record):
            return False
        if self._is_full():
            return True
        # What may change, or must not be kept alive, is settled now.
        if record.args:
            record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            record.exc_text = _TRACEBACKS.formatException(record.exc_info)
            record.exc_info = None
        self._records.put(record)
        return True

    def _take_line(self, level: int, message: str) -> None:
        """Queue what would be a record of nothing but this."""
        if not self._is_full():
            self._records.put((time.time(), level, message))

    def _is_full(self) -> bool:
        """Whether what comes now is dropped; it is counted then."""
        full = self._records.qsize() >= self._capacity
        if full:
            with self._counting:
                self._dropped += 1
        return full

    def _write_all(self) -> None:
        told = 0
        ended = False
        while not ended:
            batch = [self._records.get()]
            self._ending.wait(GATHER)
            try:
                while len(batch) < self._capacity:
                    batch.append(self._records.get_nowait())
            except queue.Empty:
                pass
            ended = None in batch
            lines = [self._line(record) for record in batch if record is not None]
            dropped = self._dropped
            if dropped > told:
                lines.append(self._line(_note(dropped - told)))
                told = dropped
            encoded = [line.encode("utf-8", "backslashreplace") for line in lines]
            for data in _pieces(encoded) if self._shared else [b"".join(encoded)]:
                self._write(data)

    def _line(self, record: Union[logging.LogRecord, _Line]) -> str:
        if isinstance(record, tuple):
            assert isinstance(self.formatter, TextFormatter)
            return self.formatter.line(*record) + "\n"
        try:
            return self.format(record) + "\n"
        except Exception as exc:  # a record of somebody else's that does not fit its own format
            return f"a log record could not be formatted: {exc!r}\n"

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[os.write(self._descriptor, view) :]
                except BlockingIOError:  # somebody has made it so
                    select.select([], [self._descriptor], [])
        except OSError:
            pass  # closed, or the disk is full: there is nowhere to tell it


class DirectLog(logging.Handler):
    """For a process that must have no thread, since it forks: it writes at once, and drops what cannot be."""

    def __init__(self, descriptor: int, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._descriptor = descriptor
        self._own: Optional[int] = None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # a file never blocks, and its end is for all to share
                # Another process may fill the pipe between the look and the write: what is opened anew, and so is
                # ours alone, can be told not to block. (Where it is a socket, the look must do.)
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
    """Whole lines, as many as a pipe takes without letting another writer in between."""
    piece = b""
    for line in lines:
        if piece and len(piece) + len(line) > select.PIPE_BUF:
            yield piece
            piece = b""
        piece += line
    if piece:
        yield piece


def _note(dropped: int) -> logging.LogRecord:
    text = f"{plural(dropped, 'log record')} dropped: the log was not read"
    record = logging.LogRecord("echo.server", logging.WARNING, "", 0, text, None, None)
    record.event, record.dropped = "dropped", dropped
    return record
