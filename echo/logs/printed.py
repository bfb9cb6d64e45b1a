"""What Python itself prints on standard error, as records: exceptions that end a thread or come up in a finalizer, and
warnings. Their text may hold what a peer sent."""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import sys
import threading
import warnings
from typing import Any, Iterator

from ..server.reporting import log_event

_lock = threading.Lock()  # a child of fork() has one of its own
_users = 0
_replaced = contextlib.ExitStack()


@contextlib.contextmanager
def logged(also_replaced: bool = True) -> Iterator[None]:
    """Replace the functions that print these. ``also_replaced``: whether to replace those of the program, too.

    Threads may use it at the same time: the last one that leaves puts the functions back.
    """
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _replace(also_replaced)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _replaced.close()


def _replace(also_replaced: bool) -> None:
    for place, name, python, ours in (
        (threading, "excepthook", getattr(_thread, "_excepthook", None), _thread_failed),
        (sys, "unraisablehook", sys.__unraisablehook__, _unraisable),
        (warnings, "showwarning", getattr(warnings, "_showwarning_orig", None), _show_warning),
    ):
        found = getattr(place, name)
        if also_replaced or found is python:
            _replaced.callback(put_back, place, name, ours, found)
            setattr(place, name, ours)


def _let_go() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def put_back(place: Any, name: str, ours: Any, value: Any) -> None:
    """Set ``place.name`` to ``value`` again, unless the program has put its own there in place of ``ours``."""
    if getattr(place, name) is ours:
        setattr(place, name, value)


def _thread_failed(args: Any) -> None:
    if args.exc_type is not SystemExit:
        name = "(unknown)" if args.thread is None else args.thread.name
        log_event(logging.ERROR, "error", "exception in thread %s", name, exc_info=_exception(args))


def _unraisable(args: Any) -> None:
    try:
        where = repr(args.object)
    except Exception:
        where = type(args.object).__name__
    what = args.err_msg or "exception ignored in"
    log_event(logging.ERROR, "error", "%s: %s", what, where, exc_info=_exception(args))


def _exception(args: Any) -> BaseException:
    return args.exc_value if args.exc_value is not None else args.exc_type()  # type: ignore[no-any-return]


def _show_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    if file is not None:
        with contextlib.suppress(OSError):
            file.write(warnings.formatwarning(message, category, filename, lineno, line))
    else:
        log_event(logging.WARNING, "warning", "%s:%d: %s: %s", filename, lineno, category.__name__, message)
