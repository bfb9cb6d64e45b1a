"""One run of the accept loop: the listening socket and the bell that end its sleep.

It knows the listening socket as something to wait for. It accepts nothing, and knows no session.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import threading
import time
from typing import Callable, Optional, Protocol, Set

from ..sockets import LONGEST_WAIT
from .signal_safe import ReentrantEvent, is_held

_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)


class SharedPort(Protocol):
    """Keeps the sessions even over several processes that listen on the same port."""

    def set(self, sessions: int) -> None:
        """This process has so many sessions."""

    def is_ahead(self) -> bool:
        """Whether this process has clearly more sessions than another."""
        ...

    def hold_back(self, is_stopping: Callable[[], bool]) -> None:
        """Leave a new client to the other processes while this one is ahead, for a moment at most."""


_runs: Set[Serving] = set()
"""All that are open. Two may have one socket: that of a stop, which accepts the backlog, or of a program's own loop."""


class Serving:
    """One period of serving. The loop sleeps on the listening socket, and is woken through a socket pair."""

    def __init__(self, listener: socket.socket, *, shared: bool = False) -> None:
        self.stopping = False
        self.thread_id = threading.get_ident()
        """The thread that must not wait for the end: the one that begins it, then the one that serves."""
        self.ended = ReentrantEvent()
        # A socket shared with other processes has a mode that is theirs as well: it is not put back.
        self.listener_timeout = None if shared else listener.gettimeout()
        self._shared = shared
        self._listener = listener
        self._listening = False
        self._previous_wakeup: Optional[int] = None
        self._lock = threading.RLock()
        listener.setblocking(False)  # first: it raises if the socket is closed, and nothing has been opened yet
        try:
            self._alarm, self._bell = socket.socketpair()
        except OSError:
            if not shared:
                listener.settimeout(self.listener_timeout)
            raise
        self._alarm.setblocking(False)
        self._bell.setblocking(False)
        self._selector = _Selector()
        self._selector.register(self._alarm, selectors.EVENT_READ)
        self._inode = os.fstat(listener.fileno()).st_ino  # duplicates of the socket share it, and the mode
        _runs.add(self)

    def close(self, *, restore: bool = True) -> None:
        """``restore``: put the listening socket's mode back. Not while another run uses the socket, and not before it
        is closed: forked processes share the mode, and one that goes on serving would block in accept()."""
        with self._lock:
            if self._previous_wakeup is not None:
                try:
                    signal.set_wakeup_fd(self._previous_wakeup, warn_on_full_buffer=self._previous_wakeup != -1)
                except (OSError, ValueError):  # its owner has closed it; the bell's number must not stay, either
                    with contextlib.suppress(ValueError):
                        signal.set_wakeup_fd(-1, warn_on_full_buffer=False)
                self._previous_wakeup = None
            self._selector.close()
            self._alarm.close()
            self._bell.close()
            _runs.discard(self)
            if any(other._inode == self._inode for other in list(_runs)):
                restore = False
            if restore and self._listener.fileno() != -1 and not self._shared:
                self._listener.settimeout(self.listener_timeout)

    def let_go(self) -> None:
        """In a forked child: the run is its parent's."""
        self.stopping = True
        self._lock = threading.RLock()
        if self._previous_wakeup is not None:
            self._previous_wakeup = None
            signal.set_wakeup_fd(-1, warn_on_full_buffer=False)
        self._alarm.close()
        self._bell.close()

    def enter(self) -> None:
        """Let the calling thread serve. In the main thread, a signal rings the bell: the interpreter only notes one
        that comes just before the sleep begins, and its Python handler would run after the next client.

        A full bell is as good as one that has rung once, and deserves no warning. The call that removes the bell asks
        for none, either: a signal at that moment may find the bell's number and the flag of that call."""
        self.thread_id = threading.get_ident()
        if threading.current_thread() is threading.main_thread():
            with contextlib.suppress(ValueError):  # a subinterpreter, which no signal reaches
                # In two steps: KeyboardInterrupt may come between them, and a number that stays set when the bell is
                # closed would send each signal to the client that gets this number next.
                self._previous_wakeup = signal.set_wakeup_fd(-1, warn_on_full_buffer=False)
                signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)

    def stop(self) -> None:
        """End the run, from any thread or a signal handler."""
        self.stopping = True
        self.wake()

    def wake(self) -> None:
        with self._lock:
            try:
                self._bell.send(b"\0")
            except OSError:
                pass  # full: it wakes up already; closed: it has ended

    def is_locked_here(self) -> bool:
        """Whether the calling thread holds the lock of this object."""
        return is_held(self._lock)

    def wait(self, listening: bool, deadline: Optional[float]) -> None:
        """Sleep until the bell rings, the deadline has come or, if ``listening``, a client has connected. A deadline
        that is further off than ``LONGEST_WAIT`` takes several calls."""
        if listening != self._listening:
            if listening:
                try:
                    self._selector.register(self._listener, selectors.EVENT_READ)
                except ValueError:
                    return  # closed elsewhere; accept() will raise
            else:
                self._selector.unregister(self._listener)
            self._listening = listening
        timeout = None if deadline is None else min(max(0.0, deadline - time.monotonic()), LONGEST_WAIT)
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._alarm:
                try:
                    self._alarm.recv(4096)
                except BlockingIOError:
                    pass
