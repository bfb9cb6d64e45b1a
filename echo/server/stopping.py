"""How a server stops: its states, the one ``Stop`` that every caller shares, and the order of locks.

**States.** Two things are known of a server: what it has done so far (``Past``), and its stop (``Stop``), which exists
from the first ``stop()`` or ``server_close()`` on and is never replaced::

    Past       NOTHING    a new server
               SHUTDOWN   shutdown() came before any run: the next run returns at once (start() sets NOTHING again)
               SERVED     a run has begun: from now on a stop logs "stopped"
               LOOP       the run was a loop, of serve_forever() or start(): a stop also accepts the backlog first

    Stop       begun ------> deadline set -----> sessions drain -------> the rest is cut ----> ended
               the loop      the backlog is      each ends its input,    its sockets are       all callers
               ends          accepted, then      answers what has        shut down             wake
                             nobody any more     come, and closes

               Where several clients wait in the backlog, sessions begin to drain after the first of them.

    Session    open ----------------------------> closing ---------------------------> closed
                 +-- a stop --> draining --------^   the handler is done                  the socket is closed

    Serving    one object for each run of the loop, from its begin to its end

**The thread that runs it.** The first caller creates the ``Stop``. No thread waits for something that may be waiting
for it::

    the caller (the first line that fits)    a new stop is run by            the caller
    a session's thread                       a new thread                    returns at once: its session would not end
    the serving thread                       itself, when its loop ended     returns at once: the loop would never end
    a signal handler inside a method that    a new thread                    returns at once: others need the lock
    holds one of the first three locks
    a signal handler inside Thread.start()   a new thread                    returns at once: no other thread could end
    any other thread                         the caller                      returns when it has ended

At the end of its run the serving thread waits for a stop that another thread runs, so that the program does not end in
the middle of it. (A handler's own ``drain()`` is the one exception: it must not block, so it must not stop a server.)
If there is a stop already, the caller waits for it, or returns at once, by the same rules. A signal handler that has
interrupted the thread that runs it (``thread_id``) returns, too. If the system has no thread for a stop, the serving
thread runs it.

**Order of locks.** Each thread takes them inwards only, and none is held while a thread waits for another::

    Server._echo_lock         which run, which stop; never held while a session or the loop is waited for
       Registry._lock         the live sessions and the sums; the number of sessions is published under it
          Serving._lock       the socket pair that wakes the loop, as when there is room again for a session
    Session._lock             the socket: it is not closed while another thread acts on it; taken alone

Not in this order: ``Opening._lock`` (one session's admission) is held while its client is waited for, so only that
session's thread waits for it. ``forking._lock`` is taken under the first one, and nothing is done under it.

The order follows from two calls: a stop that hurries wakes those who wait for the registry, and a session's end wakes
the loop. The first three are reentrant, since a signal handler may stop the server at any line that holds one. No hook
and no log runs under any of them. A handler's ``drain()`` runs in a thread of its own: one that blocks holds up its
own session, and no other; at the deadline the stop goes on without it. The same deadline holds for the accept loop, in
which a method of a subclass may block.
"""

from __future__ import annotations

import collections
import enum
import logging
import threading
import time
from typing import List, Optional, Set

from ..beginning import Thread
from ..text import format_address, plural
from . import forking
from .registry import Registry
from .reporting import log_event
from .sessions import Session
from .signal_safe import ReentrantEvent

CUT_GRACE = 0.5
"""Seconds that sessions which were cut at the deadline have to notice it."""

DRAIN_PATIENCE = 0.1
"""Seconds that one session's ``drain()`` may take before another thread goes on with the other sessions."""

START_PATIENCE = 1.0
"""Seconds that such a thread has to begin. Without memory it never does, and the thread of the stop drains instead."""

LOOP_GRACE = 2.0
"""Seconds that the accept loop has at least to end, however busy the machine is."""


def _undelivered(sessions: List[Session], until: float) -> List[Session]:
    """Return those whose clients' hosts have not accepted all replies by then. A host may acknowledge the last ones a
    little later than it has them (40 ms on Linux, seldom 200)."""
    while True:
        is_over = time.monotonic() >= until  # first, so that the last look comes after the time
        sessions = [session for session in sessions if not session.is_delivered()]
        if not sessions or is_over:
            return sessions
        time.sleep(0.005)


class Past(enum.IntEnum):
    """The most that a server has done so far."""

    NOTHING = 0
    SHUTDOWN = 1
    """``shutdown()`` before any run: the first run ends at once, so that a stop cannot lose against a thread's
    start."""
    SERVED = 2
    LOOP = 3
    """It has accepted client after client, so the clients in the backlog count on it."""


class Stop:
    """One stop of a server. Its sessions drain until ``deadline``; the rest are cut, and counted in ``cut``.

    It knows sessions and no listening socket. ``thread_id`` is the thread that runs it; 0 before it is known.
    ``left_to_loop``: the serving thread is to run it, when its loop has ended.
    """

    def __init__(self, registry: Registry, thread_id: int, cut_grace: float = CUT_GRACE) -> None:
        self.thread_id = thread_id
        self.left_to_loop = False
        self.deadline: Optional[float] = None  # of time.monotonic(); None until begin()
        self.cut: Optional[int] = None  # until the sessions have drained
        self.ended = ReentrantEvent()
        self._cut_grace = cut_grace
        self._registry = registry
        self._timeout: Optional[float] = None
        self._sessions = 0  # that drain, or have drained
        self._last_number = 0  # of these sessions

    def begin(self, timeout: Optional[float]) -> None:
        """From now on all sessions together have ``timeout`` seconds; None: no limit."""
        self._timeout = timeout
        self.deadline = time.monotonic() + (threading.TIMEOUT_MAX if timeout is None else timeout)

    def hurry(self, timeout: float) -> None:
        """Bring the deadline forward to ``timeout`` seconds from now."""
        if self.deadline is not None:  # otherwise begin() will read shutdown_timeout, which the caller has changed
            self.deadline = min(self.deadline, time.monotonic() + timeout)
        self._registry.wake()

    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def delivery_timeout(self) -> Optional[float]:
        """Seconds for which a closing socket may wait until its client has everything; None before ``begin()``.

        They end after the deadline: a session that is not done by then is cut, and counted, and that ends the wait. If
        both ended at the same moment, it would be chance whether undelivered replies count as an orderly stop.
        """
        if self.deadline is None:
            return None
        return max(0.0, self.deadline + self._cut_grace / 2 - time.monotonic())

    def start_draining(self) -> None:
        """Let each session answer what has arrived, and end. Others may begin after this; ``finish`` drains them."""
        self._drain_each(self._new_sessions())

    def _new_sessions(self) -> List[Session]:
        """The sessions that have not been drained before."""
        sessions = [session for session in self._registry.sessions() if session.number > self._last_number]
        self._last_number = max((session.number for session in sessions), default=self._last_number)
        self._sessions += sum(session.refused is None for session in sessions)
        return sessions

    def wait_for_loop(self, ended: ReentrantEvent) -> bool:
        """Wait until the loop has ended, in time; return whether it has. A method of a subclass may block there, or
        serve a client, which drains like any other."""
        if ended.wait(time.monotonic() + DRAIN_PATIENCE):
            return True
        self.start_draining()
        least = time.monotonic() + LOOP_GRACE
        while not (self.is_over() and time.monotonic() >= least):
            if ended.wait(time.monotonic() + DRAIN_PATIENCE):  # the deadline may come forward
                return True
        return False

    def finish(self, children: Set[int], *, log_end: bool, loop_ended: bool = True) -> None:
        """Drain all sessions, and cut those that are not done by the deadline. Nobody is accepted any more.
        ``children``: processes with a session each, which end by themselves or are killed."""
        sessions = self._new_sessions()
        lost = forking.reap(children)
        self._sessions += len(children) + len(lost)
        if self._sessions:
            left = "without limit" if self._timeout is None else f"for {self._timeout:g} s at most"
            count = plural(self._sessions, "session")
            log_event(logging.INFO, "draining", "draining %s, %s", count, left, sessions=self._sessions)
        self._drain_each(sessions)
        self._registry.wait_until_empty(lambda: self.deadline or 0.0)
        lost += forking.wait_for(children, self.is_over)
        killed = forking.kill(children)
        grace = time.monotonic() + self._cut_grace
        cut = self._cut_rest()
        for session in cut:
            peer = format_address(session.client_address)
            log_event(logging.WARNING, "cut", "%s cut: not done in time", peer, peer=peer, session=session.number)
        for child in killed:
            log_event(logging.WARNING, "cut", "the session of process %d cut: not done in time", child)
        for child in lost:
            log_event(logging.WARNING, "cut", "the session of process %d cut: a signal has ended the process", child)
        self.cut = sessions_cut = len(cut) + len(killed) + len(lost)
        if not loop_ended:
            self.cut += 1
            log_event(logging.WARNING, "cut", "the accept loop cut: a method of the server's class blocks it")
        self._registry.wait_until_empty(lambda: grace)
        forking.wait_for(children, lambda: time.monotonic() >= grace)  # the end of those that were killed
        if log_end:
            drained = self._sessions - sessions_cut
            text = f"stopped: {plural(drained, 'session')} drained, {sessions_cut} cut" + (
                "; the accept loop cut" if not loop_ended else ""
            )
            log_event(logging.INFO, "stopped", text, drained=drained, cut=sessions_cut)

    def _cut_rest(self) -> List[Session]:
        """End all sessions that are left. Return those that were not done, or whose replies were not delivered."""
        left = self._registry.sessions()
        lingering = [session for session in left if session.is_only_lingering()]
        cut = [session for session in left if session not in lingering]
        for session in cut:
            session.abort()
        cut += _undelivered(lingering, time.monotonic() + self._cut_grace / 2)
        for session in lingering:
            session.abort()
        return cut

    def cut_all(self) -> None:
        """Cut all sessions without waiting: the thread that runs the stop has been interrupted."""
        for session in self._registry.sessions():
            session.abort()

    def _drain_each(self, sessions: List[Session]) -> None:
        """Drain each session for itself. ``drain()`` is quick, but a handler may have one of its own."""
        waiting = collections.deque(sessions)

        def drain_waiting() -> None:
            while True:
                try:
                    session = waiting.popleft()
                except IndexError:
                    return
                session.drain()

        while waiting:
            helper = Thread(target=drain_waiting, name="echo-drain", daemon=True)
            try:
                helper.start(START_PATIENCE)
            except (RuntimeError, MemoryError):  # the system has no thread now
                drain_waiting()
            before = None
            while waiting and len(waiting) != before:  # until one drain() holds the helper up
                before = len(waiting)
                helper.join(DRAIN_PATIENCE)
            if self.is_over():
                return
