"""Log records of sessions, made in a cheap way.

``Logger.log()`` looks for the caller's file and line, and asks the system for what does not change. A record made from
a template costs a third of that. A server that logs every message makes two records for each.

Filters, handlers, a record factory and a logger class of the program's own work as with any other record.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from typing import Any, Dict

from .. import out_of_context
from ..record_fields import with_fields
from ..text import raise_if_deep

_TEMPLATE: Dict[str, Any] = dict(vars(logging.LogRecord("", 0, "", 0, "", None, None)))
if hasattr(os, "register_at_fork"):  # a forked worker has a process number of its own
    os.register_at_fork(after_in_child=lambda: _TEMPLATE.update(process=os.getpid()))
_STARTED = time.time() - _TEMPLATE["relativeCreated"] / 1000
OF_LOGGING = vars(logging)
"""The ``__globals__`` of each function of the ``logging`` module. A method has others if a program has replaced it,
maybe before this import."""


def emit(logger: Any, level: int, message: str, fields: Dict[str, Any]) -> None:
    """Log ``message``, which is not a format, with ``fields`` as the record's attributes.

    ``logger`` may be a ``LoggerAdapter``. The caller has checked that it is enabled for ``level``. If a filter or a
    handler raises, the session goes on. The fault is printed as ``logging`` prints the faults of its own handlers.
    """
    try:
        if _replaces_extra(logger):
            if logger.logger.isEnabledFor(level):
                emit(logger.logger, level, message, {**fields, **(logger.extra or {})})
            return
        if not makes_plain_records(logger):
            out_of_context.call(with_fields, logger.log, level, message, fields=fields)
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
        if sys.exc_info()[1] is None:
            logger.handle(record)  # 0.2 us less than the call below
        else:
            out_of_context.call(logger.handle, record)
    except Exception as exc:
        raise_if_deep(exc)
        with contextlib.suppress(ValueError):  # standard error is closed
            logging.Handler().handleError(logging.LogRecord(logger.name, level, "", 0, message, None, None))


def _replaces_extra(logger: Any) -> bool:
    """Whether ``logger`` is an adapter that puts its own ``extra`` in the place of the call's, as Python's does."""
    return (
        isinstance(logger, logging.LoggerAdapter)
        and getattr(logger.process, "__globals__", None) is OF_LOGGING
        and getattr(logger.log, "__globals__", None) is OF_LOGGING
        and not getattr(logger, "merge_extra", False)  # since 3.13
    )


def makes_plain_records(logger: Any) -> bool:
    """Whether ``logger`` is a ``Logger`` whose records are those of the ``logging`` module: neither its class, nor a
    method that a program has replaced, nor a record factory changes them."""
    return (
        isinstance(logger, logging.Logger)
        and getattr(logger.makeRecord, "__globals__", None) is OF_LOGGING
        and getattr(logger._log, "__globals__", None) is OF_LOGGING
        and logging.getLogRecordFactory() is logging.LogRecord
    )
