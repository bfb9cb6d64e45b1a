"""Threads beside the main one: each waits for something else than the main thread does."""

from __future__ import annotations

import errno
import signal
import threading
from typing import Any, Callable, Optional, Set

from ...beginning import Thread


def start_thread(run: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread that does not keep the process alive, and takes no signal. Raises ``OSError`` if the system has no
    thread now, like any other shortage.

    All signals go to the main thread, which acts on them. When a stopped process goes on, the system gives a signal
    that has come meanwhile to any thread that may take it, and the main thread would only learn of it later: it would
    set up the terminal first, which is the shell's, and be stopped again. SIGTTIN is for the thread that causes it: it
    stops a process in the background that reads from the terminal, and the read fails where it is blocked.
    """
    thread = Thread(target=run, name=name, daemon=True)
    mask = _block_signals(None)  # the new thread inherits it
    try:
        thread.start()
    except RuntimeError as exc:
        raise OSError(errno.EAGAIN, str(exc)) from None
    finally:
        _block_signals(mask)
    return thread


def _block_signals(which: Optional[Set[Any]]) -> Set[Any]:
    """Block these signals in this thread, and no others; None: all but SIGTTIN. Return those that were blocked."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        return set()
    if which is None:
        which = signal.valid_signals() - {signal.SIGTTIN}
    return signal.pthread_sigmask(signal.SIG_SETMASK, which)
