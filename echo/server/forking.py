"""Release a server's resources in a forked child.

A child of ``fork()`` has copies of its parent's objects and descriptors, and none of its threads. A handler that forks,
or uses ``multiprocessing``, must not thereby copy the server: the child would wait for threads that it does not have,
end its parent's sessions, or keep the port. So each object that belongs to one process registers a method here, which
releases it in a child.

A child must not come back into the server's code, either: it would serve its parent's clients beside its parent. So
that code calls handlers and methods of subclasses with ``call``, where such a child ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import weakref
from typing import Any, Callable, List, NoReturn, Optional, Set, Tuple

from ..text import LONGEST, format_exception, printable

has_forked = False
"""Whether this process has forked. A child may have copies of its sockets, and then ``close()`` does not end a
connection."""

forks = 0
"""How often this process has forked, and its parents before it was forked. Another process may have any socket that was
made when this number was smaller."""

_generation = 0
"""How many of its ancestors have forked this process by way of Python."""

_handled_by_parent: Optional[BaseException] = None
"""In a child: the exception in whose handling its parent forked."""

_methods: Tuple[Any, ...] = ()  # never changed in place: a child may not wait for a lock that another thread held
_lock = threading.RLock()


def in_child(method: Callable[[], None]) -> None:
    """Call this bound method in each forked child, while its object lives. It must not wait for a lock."""
    global _methods
    with _lock:
        _methods = (*(other for other in _methods if other() is not None), weakref.WeakMethod(method))


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call code of a subclass or a handler. A child that it has forked, and that returns from it or raises an
    exception, ends here."""
    generation = _generation
    try:
        result = function(*args)
    except BaseException as exc:
        if generation != _generation:
            _end(exc)
        raise
    if generation != _generation:
        del result  # a handler may have files to flush
        _end(None)
    return result


def _end(exc: Optional[BaseException]) -> NoReturn:
    """End this process as Python ends a program, except that the exit functions are its parent's. (``ForkingMixIn``,
    too, does not call them.)

    Python would print the exception. Its text may hold what a peer sent, and standard error may be the log.
    """
    code = 0
    try:
        if isinstance(exc, SystemExit):
            code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        elif exc is not None:
            code = 1
        if exc is not None and not (isinstance(exc, SystemExit) and isinstance(exc.code, (int, type(None)))):
            try:
                _report(exc)
            except BaseException:  # standard error may be closed, or full, or its reader gone; a hook may exit
                pass
        getattr(threading, "_shutdown")()  # noqa: B009  # waits for the threads that are not daemons
    finally:
        for name in ("stdout", "stderr"):
            with contextlib.suppress(Exception):
                getattr(sys, name).flush()
        os._exit(code & 0xFF)


def _report(exc: BaseException) -> None:
    """Say what has ended this process. A ``sys.excepthook`` of the program does that itself, and in its own way."""
    hook = sys.excepthook
    if isinstance(exc, SystemExit):
        show(f"process {os.getpid()}: {printable(str(exc.code), LONGEST)}", [])  # alone it could be a line of a log
    elif hook is sys.__excepthook__ or getattr(hook, "__module__", "") in _PRINT_AS_PYTHON:
        _show_exception(type(exc), exc, None)
    else:
        sys.__excepthook__ = _show_exception  # many hooks end there, as that of Ubuntu (apport)
        try:
            hook(type(exc), exc, exc.__traceback__)
        except Exception:
            _show_exception(type(exc), exc, None)


_PRINT_AS_PYTHON = ("exceptiongroup._formatting",)
"""Modules with hooks that only print: that of ``exceptiongroup``, until Python 3.10, comes with anyio and trio."""


def _show_exception(cls: Any, exc: Any, tracebacks: Any) -> None:
    show(f"exception in the forked process {os.getpid()}", format_exception(exc))


def show_on_stderr(title: str, lines: List[str]) -> None:
    """Print a title, and marked lines below it.

    Rejected: a record. The thread of a ``QueueListener`` is the parent's, and the program may have disabled the logger.
    """
    if sys.stderr is not None:  # it was closed at the start; print() would write to standard output
        print("\n  | ".join([title, *lines]), file=sys.stderr)


show = show_on_stderr
"""How a child shows what has ended it. ``echo.run`` has a function of its own for its log."""


def end_by_interrupt() -> NoReturn:
    """End this process by SIGINT, as Python ends a program after a ``KeyboardInterrupt``. So its parent sees that a
    signal has done it (``reap``)."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    finally:
        os._exit(128 + signal.SIGINT)  # it is blocked


def is_interrupted() -> bool:
    """In a child: whether a ``KeyboardInterrupt`` is ending it. Its parent may have handled another as it forked."""
    exc = sys.exc_info()[1]
    return isinstance(exc, KeyboardInterrupt) and exc is not _handled_by_parent


def reap(children: Set[int]) -> List[int]:
    """Remove the processes that have ended. Return those that a signal has ended, in the middle of their sessions."""
    killed = []
    for child in list(children):
        with contextlib.suppress(ChildProcessError):  # other code has waited for it
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                continue
            if os.WIFSIGNALED(status):
                killed.append(child)
        children.discard(child)
    return killed


def wait_for(children: Set[int], is_over: Callable[[], bool]) -> List[int]:
    """Wait until these processes have ended, or until ``is_over()``. Return what ``reap`` does."""
    pause = 0.001
    killed = reap(children)
    while children and not is_over():
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
        killed += reap(children)
    return killed


def kill(children: Set[int]) -> List[int]:
    """Kill these processes; return those that lived."""
    killed = []
    for child in children:
        with contextlib.suppress(ProcessLookupError):  # other code has just waited for it
            os.kill(child, signal.SIGKILL)
            killed.append(child)
    return killed


def _note() -> None:
    global forks, has_forked
    has_forked = True
    forks += 1


def _let_go() -> None:
    global _generation, _handled_by_parent, _lock, has_forked
    _lock = threading.RLock()
    _handled_by_parent = sys.exc_info()[1]
    has_forked = False
    _generation += 1
    for reference in _methods:
        method = reference()
        if method is not None:
            method()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_note, after_in_child=_let_go)
