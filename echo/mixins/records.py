"""Log records of sessions, made in a cheap way.

``Logger.log()`` looks for the caller's file and line, and asks the system for what does not change. A record made from
a template costs a third of that. A server that logs every message makes two records for each.

Filters, handlers, a record factory and a logger class of the program's own work as with any other record.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import Any, Dict

from ..log_calls import is_of_logging, out_of_context, print_fault, with_fields
from ..text import raise_if_deep

_template: Dict[str, Any] = {}


def _make_template() -> Dict[str, Any]:
    """Keep what is the same for all records of this process. It is made with the first one: a process may get its name
    after it was forked, and after this import."""
    global _template
    _template = {**vars(logging.LogRecord("", 0, __file__, 0, "", (), None, "emit")), **_NO_TASK}
    return _template


def _let_go() -> None:
    global _template
    _template = {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)

_RECORD = logging.LogRecord("", 0, "", 0, "", (), None)
_STARTED = time.time() - _RECORD.relativeCreated / 1000
_NO_TASK = {"taskName": None} if hasattr(_RECORD, "taskName") else {}
"""A session is no task of asyncio. (CPython 3.12 or later.)"""


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
            with_fields(logger.log, level, message, fields=fields)
            return
        now = time.time()
        attributes = {**(_template or _make_template()), **fields}
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
            out_of_context(logger.handle, record)
    except Exception as exc:
        raise_if_deep(exc)
        print_fault(logger.name, level, message)


def _replaces_extra(logger: Any) -> bool:
    """Whether ``logger`` is an adapter that puts its own ``extra`` in the place of the call's, as Python's does."""
    return (
        isinstance(logger, logging.LoggerAdapter)
        and is_of_logging(logger.process)
        and is_of_logging(logger.log)
        and not getattr(logger, "merge_extra", False)  # since 3.13
    )


def makes_plain_records(logger: Any) -> bool:
    """Whether ``logger`` is a ``Logger`` whose records are those of the ``logging`` module: neither its class, nor a
    method that a program has replaced, nor a record factory changes them."""
    return (
        isinstance(logger, logging.Logger)
        and is_of_logging(logger.log)
        and is_of_logging(logger._log)
        and is_of_logging(logger.makeRecord)
        and logging.getLogRecordFactory() is logging.LogRecord
    )
