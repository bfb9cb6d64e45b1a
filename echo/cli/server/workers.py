"""Several processes behind one port: for a build with the GIL, where one process keeps one processor busy.

The parent forks the workers before it starts any thread. Then it only watches: it passes signals on, and replaces a
worker that died. All workers accept from one listening socket, which they inherit. So a connection that waits in its
backlog is not lost when a worker dies. (Rejected: ``SO_REUSEPORT``, where each worker has a backlog of its own, which
is lost with it.)

The parent blocks its signals and waits for them, one by one. It has no signal handlers, so that no signal can come at
a wrong moment. This module does not know what the workers do; its caller passes that in.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any, Callable, NoReturn, Optional

from ...server.reporting import log_event
from ...text import plural
from .balance import Balance

MIN_PAUSE = 0.1
MAX_PAUSE = 10.0
"""Seconds before a worker that died is replaced: the first pause and the longest one. Each further death of the same
worker doubles its pause."""

SETTLED = 10.0
"""Seconds after which a worker counts as stable: its next death counts as its first."""

GIVE_UP = 5
"""Number of deaths in a row, of each worker, after which the parent gives up."""

SUPPORTED = hasattr(os, "fork")

_WAITED = (
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGALRM}
    if SUPPORTED
    else set()
)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass  # it is None, closed, or a pipe that nobody reads


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals
        return f"signal {number}"


class _Worker:
    """One worker, with the processes that it is one after the other."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid: Optional[int] = None
        self.started_at = 0.0
        self.deaths = 0  # in a row
        self.due_at: Optional[float] = 0.0  # when to start it; None while it runs, or if it is not to start again

    def log_event(self, level: int, event: str, text: str, *args: Any, **fields: Any) -> None:
        log_event(level, event, "worker %d" + text, self.number, *args, worker=self.number, **fields)


class Workers:
    """``count`` processes, each of which calls ``work(number, ready)`` and exits with the code that this returns.

    Numbers count from 0. ``work`` must call ``ready`` as soon as SIGTERM can stop it.

    The other functions are called in the parent: ``stop`` on SIGINT or SIGTERM; ``reload`` on SIGHUP, which is also
    passed on to the workers (one that is started later inherits what the parent has read). Where ``hung_up()`` is true,
    SIGHUP stops it too.
    """

    min_pause = MIN_PAUSE
    max_pause = MAX_PAUSE
    settled = SETTLED
    give_up = GIVE_UP

    def __init__(
        self,
        count: int,
        work: Callable[[int, Callable[[], None]], int],
        stop: Callable[[], None],
        reload: Callable[[], None] = lambda: None,
        hung_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._work = work
        self._stop = stop
        self._reload = reload
        self._hung_up = hung_up
        self._workers = [_Worker(number) for number in range(count)]
        self._stopped = False
        self._failed = False
        # Only the parent has the writing end. A worker that reads sees the end of the pipe when the parent has died.
        self._lifeline, self._lifeline_end = os.pipe()
        self.balance = Balance(count)
        # It needs a handler: sigwait() does not return a signal that is ignored, and SIGCHLD is by default.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._waited = set(_WAITED)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # by nohup(1); a blocked SIGHUP would arrive all the same
            self._waited.remove(signal.SIGHUP)
        # Blocked from now on: a program that learns that the server listens may stop it at once.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._waited)

    def run(self) -> int:
        """Start and watch the workers until all have ended. Return the exit code: 0 if each worker's was 0, else 1."""
        try:
            while True:
                self._start_due()
                if not any(worker.pid for worker in self._workers) and (self._stopped or self._failed):
                    return 1 if self._failed else 0
                number = signal.sigwait(self._waited)
                if number == signal.SIGCHLD:
                    self._reap()
                elif number == signal.SIGUSR1:
                    self._signal(number)
                elif number == signal.SIGHUP and not self._hung_up():
                    self._reload()
                    self._signal(number)
                elif number != signal.SIGALRM:
                    self._stop_all(number)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_IGN)  # drops one that is pending, and would kill this process now
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            os.close(self._lifeline)
            os.close(self._lifeline_end)

    def _start_due(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.due_at is not None and worker.due_at <= now:
                self._start(worker)
        waits = [worker.due_at - now for worker in self._workers if worker.due_at is not None]
        if waits:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, min(waits)))

    def _start(self, worker: _Worker) -> None:
        worker.due_at = None
        worker.started_at = time.monotonic()
        self.balance.began(worker.number)
        _flush()  # otherwise each child would write what waits in the buffers, too
        try:
            worker.pid = os.fork()
        except OSError as exc:
            self.balance.ended(worker.number)
            self._died(worker, f"could not be started: {exc.strerror}")
            return
        if not worker.pid:
            self._run_worker(worker)
        worker.log_event(logging.INFO, "worker-started", " is process %d", worker.pid, pid=worker.pid)

    def _run_worker(self, worker: _Worker) -> NoReturn:
        """The worker's process, from the fork to its exit."""
        code = 1
        try:
            os.close(self._lifeline_end)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.balance.become(worker.number)
            threading.Thread(target=self._end_with_parent, name="echo-parent", daemon=True).start()
            code = self._work(worker.number, self._ready)
        except BaseException:
            traceback.print_exc()
        finally:
            _flush()
            os._exit(code)  # not sys.exit(): the parent's exit functions must not run in its children

    def _ready(self) -> None:
        # SIGINT stays blocked: Ctrl-C reaches all processes, and the parent passes it on as SIGTERM.
        signal.pthread_sigmask(signal.SIG_SETMASK, {*self._mask, signal.SIGINT})

    def _end_with_parent(self) -> None:
        os.read(self._lifeline, 1)
        os.kill(os.getpid(), signal.SIGTERM)  # the parent has died, and nothing else would stop this process

    def _reap(self) -> None:
        for worker in self._workers:
            if worker.pid is None:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                worker.pid = None
                self.balance.ended(worker.number)
                if os.WIFSIGNALED(status):
                    self._died(worker, f"process {pid} was killed by {_name(os.WTERMSIG(status))}")
                elif self._stopped:
                    self._failed = self._failed or os.WEXITSTATUS(status) != 0
                else:
                    self._died(worker, f"process {pid} ended with exit code {os.WEXITSTATUS(status)}")

    def _died(self, worker: _Worker, how: str) -> None:
        now = time.monotonic()
        worker.deaths = 1 if now - worker.started_at >= self.settled else worker.deaths + 1
        if self._stopped:
            self._failed = True
            worker.log_event(logging.WARNING, "worker-died", ": %s", how)
        elif all(each.pid is None and each.deaths >= self.give_up for each in self._workers):
            self._failed = True
            for each in self._workers:
                each.due_at = None
            worker.log_event(logging.ERROR, "worker-died", ": %s; no worker can live, giving up", how)
        else:
            pause = min(self.min_pause * 2 ** (worker.deaths - 1), self.max_pause)
            worker.due_at = now + pause
            worker.log_event(logging.WARNING, "worker-died", ": %s; the next in %g s", how, pause)

    def _stop_all(self, number: int) -> None:
        count = plural(len([worker for worker in self._workers if worker.pid is not None]), "worker")
        name = signal.Signals(number).name
        log_event(logging.INFO, "signal", "%s: stopping %s", name, count, signal=name)
        if not self._stopped:
            self._stopped = True
            self._stop()
            for worker in self._workers:
                worker.due_at = None
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        for worker in self._workers:
            if worker.pid is not None:
                os.kill(worker.pid, number)  # safe: until waitpid(), no other process gets the number of a dead one
