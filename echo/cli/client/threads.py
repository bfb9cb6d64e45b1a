"""Threads beside the main one: each waits for something else than the main thread does."""

from __future__ import annotations

import errno
import threading
from typing import Callable


def start_thread(run: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread that does not keep the process alive. Raises ``OSError`` if the system has no thread now, like
    any other shortage."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as exc:
        raise OSError(errno.EAGAIN, str(exc)) from None
    return thread
