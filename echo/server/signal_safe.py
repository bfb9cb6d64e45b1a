"""Waiting where a signal handler may come in: it runs between any two lines, in a thread that may hold a lock.

It knows locks and nothing else.
"""

from __future__ import annotations

import threading
import time
from typing import Any

STEP = 0.5
"""Seconds after which a wait is begun again: the handler of a signal that comes just before it begins runs only after
it."""

MOMENT = 1.0
"""Maximum time in seconds that a thread is expected to take for its first and last lines."""


def is_held(lock: Any) -> bool:
    """Whether the calling thread holds this ``threading.RLock``."""
    return bool(lock._is_owned())  # threading.Condition asks the same way


def blocked_by_caller() -> bool:
    """Whether no thread can begin or end before the caller returns: a signal handler may have interrupted
    ``threading.Thread.start()``, which holds a lock that each thread needs to begin and to end."""
    lock: Any = getattr(threading, "_active_limbo_lock", None)
    if lock is None:
        return False
    if hasattr(lock, "_is_owned"):
        return is_held(lock)
    free: bool = lock.acquire(timeout=MOMENT)  # before Python 3.10 it does not know its owner
    if free:
        lock.release()
    return not free


class ReentrantEvent:
    """``threading.Event`` with a reentrant lock: a signal handler may wait for it although it interrupted a wait."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._value = False

    def is_set(self) -> bool:
        return self._value

    def set(self) -> None:
        with self._changed:
            self._value = True
            self._changed.notify_all()

    def wait(self, deadline: float = threading.TIMEOUT_MAX) -> bool:
        """Wait until it is set, or until ``deadline`` (of ``time.monotonic()``); return whether it is set."""
        with self._changed:
            while not self._value and time.monotonic() < deadline:
                self._changed.wait(min(STEP, max(0.0, deadline - time.monotonic())))
            return self._value
