"""Session threads, which are reused: a thread whose session is over waits a moment for another session.

Starting a thread costs more than a short session: handing the connection to a waiting thread doubled the number of
short sessions per second. There are as many threads as sessions at a time; two sessions never share one.

Each session runs in a context of its own (``contextvars``), and its thread has a name of its own: programs know a
connection by that. A ``threading.local`` stays for the next session, as in any pool, and may hold what is expensive to
make; ``reuse_threads = False`` gives each session a new thread.

Nothing here knows sockets or sessions, only tasks.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import itertools
import queue
import threading
import time
from typing import Any, Callable, Deque, List, Optional, Tuple, TypeVar

from ..beginning import Thread, prepare_ends
from .signal_safe import MOMENT

IDLE_TIMEOUT = 5.0
"""Seconds that a thread waits for another session."""

_Result = TypeVar("_Result")
_Task = Tuple[Callable[..., None], Tuple[Any, ...]]
_Waiting = Tuple["queue.SimpleQueue[Optional[_Task]]", threading.Thread]


class Threads:
    """The threads of one server.

    No lock: a waiting thread is a queue in ``_idle``. Taking it out is atomic, so only one caller gets it, to give it a
    task or to end it. The thread that began to wait last works first, so that the others can time out.
    """

    def __init__(self, idle_timeout: float = IDLE_TIMEOUT) -> None:
        with contextlib.suppress(OSError):  # it is tried again for the first thread
            prepare_ends()
        self.idle_timeout = idle_timeout
        self._idle: Deque[_Waiting] = collections.deque()
        self._closed = False

    def run(self, task: _Task, otherwise: Callable[[], None]) -> None:
        """Call a function with its arguments in a thread that waits, or in a new one. If that does not start,
        ``otherwise`` is called and the exception raised, ``NotStarted`` if the system has no thread."""
        try:
            waiting = self._idle.pop()
        except IndexError:
            start(self._work, ([task],), otherwise)
            return
        try:
            waiting[0].put(task)
        except MemoryError as exc:
            self._idle.append(waiting)
            otherwise()
            raise NotStarted("no memory for its task") from exc

    def let_go(self) -> None:
        """In a forked child: it has none of these threads, except the one that forked, which ends after its task."""
        self._closed = True
        self._idle = collections.deque()

    def close(self) -> None:
        """End the threads that wait, and let the others end after their session. Wait for their ends, but not for
        long: the end of a thread destroys what a handler keeps in a ``threading.local``, and that may block."""
        self._closed = True
        deadline = time.monotonic() + MOMENT
        ending: List[threading.Thread] = []
        while True:
            try:
                tasks, thread = self._idle.pop()
            except IndexError:
                break
            tasks.put(None)
            ending.append(thread)
        for thread in ending:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self, first: List[_Task]) -> None:
        """``first`` is emptied, since a thread keeps its arguments for as long as it lives."""
        task: Optional[_Task] = first.pop()
        waiting: Optional[_Waiting] = None
        while task is not None:
            function, args = task
            if waiting is not None:
                _patiently(_rename)
            _patiently(contextvars.Context).run(function, *args)
            del task, function, args  # a waiting thread must not keep a session alive
            waiting = waiting or (queue.SimpleQueue(), threading.current_thread())
            task = self._next(waiting)

    def _next(self, waiting: _Waiting) -> Optional[_Task]:
        tasks, _ = waiting
        self._idle.append(waiting)
        try:
            # Not with a timeout of 0: CPython 3.8 would wait for ever if a microsecond passes inside of get().
            return tasks.get(not self._closed, self.idle_timeout)
        except (queue.Empty, MemoryError):
            try:
                self._idle.remove(waiting)
            except ValueError:
                return _patiently(tasks.get)  # run() or close() has just taken it, and puts something in
            return None


_numbers = itertools.count(1)


def _name() -> str:
    return f"echo-session-{next(_numbers)}"


def _rename() -> None:
    threading.current_thread().name = _name()


def _patiently(make: Callable[[], _Result]) -> _Result:
    """Return what ``make`` returns, as soon as there is memory for it: a session must not be lost to a thread that
    ends."""
    while True:
        try:
            try:
                return make()
            except MemoryError:
                time.sleep(0.01)
        except MemoryError:  # for the pause
            pass


class NotStarted(RuntimeError):
    """The system has no thread for another session at the moment."""


def start(
    target: Callable[..., None], args: Tuple[Any, ...], otherwise: Callable[[], None], *, daemon: bool = True
) -> None:
    """Call ``target`` in a new thread; if that does not run, call ``otherwise`` and raise, ``NotStarted`` if the system
    has no thread."""
    thread: Optional[Thread] = None
    try:
        thread = Thread(target=target, args=args, name=_name(), daemon=daemon)
        thread.start()
    except BaseException as exc:
        if thread is not None and thread.has_begun():  # it runs; a signal handler has raised this
            raise
        otherwise()
        if isinstance(exc, (RuntimeError, MemoryError)):
            raise NotStarted(str(exc) or type(exc).__name__) from exc
        raise
