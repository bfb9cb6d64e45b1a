"""Release a server's resources in a forked child.

A child of ``fork()`` has copies of its parent's objects and descriptors, and none of its threads. A handler that forks,
or uses ``multiprocessing``, must not thereby copy the server: the child would wait for threads that it does not have,
end its parent's sessions, or keep the port. So each object that belongs to one process registers a method here, which
releases it in a child.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Callable, Tuple

has_forked = False
"""Whether this process has forked. A child may have copies of its sockets, and then ``close()`` does not end a
connection."""

forks = 0
"""How often this process has forked, and its parents before it was forked. Another process may have any socket that was
made when this number was smaller."""

_methods: Tuple[Any, ...] = ()  # never changed in place: a child may not wait for a lock that another thread held
_lock = threading.RLock()


def in_child(method: Callable[[], None]) -> None:
    """Call this bound method in each forked child, while its object lives. It must not wait for a lock."""
    global _methods
    with _lock:
        _methods = (*(other for other in _methods if other() is not None), weakref.WeakMethod(method))


def _note() -> None:
    global forks, has_forked
    has_forked = True
    forks += 1


def _let_go() -> None:
    global _lock, has_forked
    _lock = threading.RLock()
    has_forked = False
    for reference in _methods:
        method = reference()
        if method is not None:
            method()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_note, after_in_child=_let_go)
