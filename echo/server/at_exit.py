"""Registers functions with ``atexit``, and removes them, in one thread at a time.

Without the GIL, CPython 3.13 crashes when two threads register or unregister functions at once (gh-126907).

It knows no server.
"""

from __future__ import annotations

import atexit
import os
import threading
from typing import Any, Callable

_lock = threading.RLock()  # reentrant: a signal handler may stop a server while its thread is in here


def register(function: Callable[[], Any]) -> None:
    with _lock:
        atexit.register(function)


def unregister(function: Callable[[], Any]) -> None:
    with _lock:
        atexit.unregister(function)


def _let_go() -> None:
    """In a forked child: the thread that held the lock may not be here."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
