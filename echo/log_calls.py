"""Calls of the program's log: its loggers, filters, handlers and record factory may be anything, and may fail.

``logging`` raises ``KeyError`` for a name in ``extra`` that the record has already, and the record is lost. A factory
(``logging.setLogRecordFactory``) may set any name, such as ``session``.

The exception of a session may hold what a client sent. While the session is being logged, Python makes it the
``__context__`` of each exception that comes up. If a log handler of the program fails then (its disk is full),
``logging`` prints that exception with its contexts, as they are: bytes of the client could control a terminal, or look
like lines of a log.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from types import FunctionType, MethodType
from typing import Any, Callable, Dict


def with_fields(log: Callable[..., Any], *args: Any, fields: Dict[str, Any]) -> Any:
    """Return ``log(*args, extra=fields)``, called out of context. Fields whose names the factory has taken are left
    out: its own stay.

    ``log`` is called again only after the ``KeyError`` that names one of them: then nothing has handled the record yet.
    """
    while True:
        try:
            return out_of_context(log, *args, extra=fields)
        except KeyError as exc:
            others = {name: value for name, value in fields.items() if not _is_taken(name, exc)}
            if len(others) == len(fields):
                raise
            fields = others


def _is_taken(name: str, exc: KeyError) -> bool:
    return bool(exc.args) and str(exc.args[0]).startswith(f"Attempt to overwrite {name!r} ")


class _Beginning(Exception):
    """Where the chain of contexts that is shown begins."""


def out_of_context(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return ``function(*args, **options)``. An exception of it is shown without the one that is being handled now."""
    if sys.exc_info()[1] is None:
        return function(*args, **options)
    try:
        raise _Beginning("another exception was being logged") from None
    except _Beginning:
        return function(*args, **options)


_OF_LOGGING = vars(logging)
"""The ``__globals__`` of each function of the ``logging`` module."""


def is_of_logging(method: Any) -> bool:
    """Whether a method of a logger is that of ``logging``: neither that of a subclass, nor what a program has put in
    its place, maybe before this import. (A wrapper of wrapt has all attributes of what it wraps, but its own type.)"""
    if type(method) is not MethodType:
        return False
    function = method.__func__
    return type(function) is FunctionType and function.__globals__ is _OF_LOGGING


def print_fault(name: str, level: int, message: str, *args: Any) -> None:
    """Print the exception that is being handled as ``logging`` prints those of its own handlers. ``name``: that of the
    logger; ``message`` and ``args``: what was to be logged."""
    with contextlib.suppress(ValueError):  # standard error is closed
        logging.Handler().handleError(logging.LogRecord(name, level, "", 0, message, args, None))
