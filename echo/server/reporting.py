"""The log ``echo.server``: one record for an event, with its figures as attributes.

It decides nothing, and knows no format. Everything that it logs is printable under any formatter, since the text of an
exception may contain bytes of a peer. For a traceback it sets ``exc_text``, which formatters of the ``logging`` module
print instead of formatting ``exc_info`` themselves.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from typing import Any, Dict, Optional, Tuple

from ..log_calls import is_of_logging, out_of_context, print_fault, with_fields
from ..text import LONGEST_PART, format_exception, printable

log = logging.getLogger("echo.server")


def _format_traceback(record: logging.LogRecord) -> bool:
    exc = record.exc_info[1] if record.exc_info else None
    if exc is not None and not record.exc_text:
        record.exc_text = "\n".join(format_exception(exc))
    return True


log.addFilter(_format_traceback)  # for a logger's class with a _log of its own


def log_event(
    level: int, event: str, text: str, *args: Any, exc_info: Optional[BaseException] = None, **fields: Any
) -> None:
    """Log one record. Never raises: a log that fails (disk full, cheroot #756) must not take the server with it. The
    fault is printed as ``logging`` prints those of its own handlers."""
    try:
        if log.isEnabledFor(level):
            _log(level, event, text, args, exc_info, fields)
    except Exception:
        with contextlib.suppress(Exception):
            print_fault(log.name, level, text, *args)


def log_always(event: str, text: str, *args: Any, **fields: Any) -> None:
    """Log an answer that someone has asked for, at INFO, whatever the level of the log is. Never raises."""
    try:
        _log(logging.INFO, event, text, args, None, fields)
    except Exception:
        with contextlib.suppress(Exception):
            print_fault(log.name, logging.INFO, text, *args)


def _log(
    level: int, event: str, text: str, args: Tuple[Any, ...], exc: Optional[BaseException], fields: Dict[str, Any]
) -> None:
    fields = {name: _shown(value) if isinstance(value, str) else value for name, value in fields.items()}
    fields = {"event": event, **fields}
    args = tuple(value if isinstance(value, (int, float)) else _shown(str(value)) for value in args)
    exc_info = None if exc is None else (type(exc), exc, exc.__traceback__)
    if not is_of_logging(log._log):
        with_fields(functools.partial(log._log, exc_info=exc_info), level, text, args, fields=fields)
        return

    def make(extra: Dict[str, Any]) -> logging.LogRecord:  # by position, as logging calls what a program may replace
        return log.makeRecord(log.name, level, __file__, 0, text, args, exc_info, "log_event", extra, None)

    record = with_fields(make, fields=fields)
    _format_traceback(record)  # before all filters, which may look at it
    out_of_context(log.handle, record)


def _shown(text: str) -> str:
    return printable(text, LONGEST_PART)  # the name of a thread, or a warning, may hold a whole message of a peer
