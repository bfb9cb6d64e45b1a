"""The log of the command: where it goes, how it looks, and what is logged beside records.

It puts together what ``output``, ``formatters``, ``logs`` and ``captured`` do.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from typing import Iterator, Type, Union

from ...descriptors import duplicate
from ...logs.formatters import JsonFormatter, TextFormatter
from ...logs.log_handlers import CountingHandler, DirectLog, LogQueue
from ...logs.output import new_lock
from ..color import is_colored
from .captured import captured_stderr
from .color_formatter import ColorFormatter


class Log:
    """The log from its beginning, which comes before a handler's module is imported: that may close descriptors,
    print, or let ``logging`` write to ``sys.stderr``. Until ``to`` it leaves alone what is printed.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        formatter: Type[Union[JsonFormatter, TextFormatter]] = JsonFormatter
        if options.log_format == "text":
            formatter = ColorFormatter if is_colored(sys.__stderr__, options.color) else TextFormatter
        self._formatter = formatter(with_process=options.workers > 1, with_thread=options.log_threads)

    def __enter__(self) -> Log:
        with contextlib.ExitStack() as stack:
            self._copy = duplicate(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2)
            stack.callback(self._copy.close)
            self._lock = new_lock()
            if self._lock is not None:
                stack.callback(self._lock.close)
            self._stderr = stack.enter_context(captured_stderr())
            for name in ("echo.server", "echo.session"):
                stack.enter_context(_enabled(logging.getLogger(name)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        handler, self._stderr.log = self._stderr.log, None
        if handler is not None:
            logging.getLogger().removeHandler(handler)
            handler.end()
        self._stack.close()

    def close(self) -> None:
        """Write the records that wait. One that comes later, of a thread that still runs, is written at once."""
        if self._stderr.log is not None:
            self._stderr.flush_all()
            self._stderr.log.settle()

    def queue(self) -> LogQueue:
        """The log of a process that serves."""
        return LogQueue(self._descriptor(), self._formatter, lock=self._lock)

    def direct(self) -> DirectLog:
        """The log of a process that forks."""
        return DirectLog(self._descriptor(), self._formatter, lock=self._lock)

    def _descriptor(self) -> int:
        """Standard error as it was at the beginning; if a handler's module has closed all descriptors, as a daemon
        does, the one that it has opened since. Programs inherit that one, but no file or socket that Python opens."""
        found = self._copy.find()
        if found == -1:
            with contextlib.suppress(OSError):
                found = 2 if os.get_inheritable(2) else -1
        return found

    def to(self, handler: CountingHandler) -> None:
        """From now on let records go to this handler alone. One of ``logging.basicConfig()`` in a handler's module
        would log each of them a second time, as text on standard error."""
        before, self._stderr.log = self._stderr.log, handler
        root = logging.getLogger()
        for other in list(root.handlers):
            if other is before or getattr(other, "stream", None) is self._stderr:
                root.removeHandler(other)
        root.addHandler(handler)
        root.handlers.insert(0, root.handlers.pop())  # it gets a record for which one of the program's own raises


@contextlib.contextmanager
def _enabled(logger: logging.Logger) -> Iterator[None]:
    """Keep a logger enabled: by default ``logging.config`` disables all loggers that exist when a handler calls it."""

    def set_attribute(self: logging.Logger, name: str, value: object) -> None:
        if name != "disabled":
            object.__setattr__(self, name, value)

    cls = type(logger)
    logger.disabled = False
    logger.__class__ = type(cls.__name__, (cls,), {"__setattr__": set_attribute})
    try:
        yield
    finally:
        logger.__class__ = cls
