"""Several processes behind one port: for a build with the GIL, where one process keeps one processor busy.

The parent forks them, before there is any thread, and then only watches: it passes signals on, and starts another for
one that died. All accept from the one listening socket that they inherit, so that what waits in its backlog is
lost with none of them (with ``SO_REUSEPORT`` each would have a backlog of its own, lost with it).

The parent's signals are blocked and waited for, one by one: there is no handler, and no moment at which one comes
amiss. What the processes do, and on which socket, whoever starts them knows.
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
"""Seconds before a worker that died is replaced; each further death of the same one doubles them."""

SETTLED = 10.0
"""Seconds after which a worker counts as one that can live."""

GIVE_UP = 5
"""Deaths in a row, of each of them, after which it is no use."""

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
            pass  # None, or nobody reads it, or closed


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals
        return f"signal {number}"


class _Worker:
    """One of them, through all its lives."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid: Optional[int] = None
        self.started_at = 0.0
        self.deaths = 0  # in a row
        self.due_at: Optional[float] = 0.0  # when it is to be started; None while it runs, or is over

    def log_event(self, level: int, event: str, text: str, *args: Any, **fields: Any) -> None:
        log_event(level, event, "worker %d" + text, self.number, *args, worker=self.number, **fields)


class Workers:
    """``count`` processes, each doing ``work(number, ready)``, with a number from 0 on; what that returns is the exit
    code. It has to call ``ready`` when it can be told to stop, by SIGTERM. ``stop`` is called in the parent when that
    is told to stop, by SIGINT or SIGTERM, and ``reload`` when SIGHUP comes, which is passed on: who is started later
    begins with what the parent has; if ``hung_up()``, SIGHUP is another way to tell it to stop."""

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
        self._leash, self._hand = os.pipe()  # each worker reads its end, which is the parent's
        self.balance = Balance(count)
        # With a handler: one that is ignored, as its default is, or as whoever started us left it, is not waited for.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._waited = set(_WAITED)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # by nohup(1); it would be waited for all the same
            self._waited.remove(signal.SIGHUP)
        # From the beginning: whoever is told that it listens may stop it at once.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._waited)

    def run(self) -> int:
        """Watch over them until all have ended; return the exit code: 0 if each one's was, else 1."""
        try:
            while True:
                self._start_due()
                if not any(worker.pid for worker in self._workers) and (self._stopped or self._failed):
                    return 1 if self._failed else 0
                number = signal.sigwait(self._waited)
                if number == signal.SIGCHLD:
                    self._bury()
                elif number == signal.SIGUSR1:
                    self._signal(number)
                elif number == signal.SIGHUP and not self._hung_up():
                    self._reload()
                    self._signal(number)
                elif number != signal.SIGALRM:
                    self._end(number)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            os.close(self._leash)
            os.close(self._hand)

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
        _flush()  # else what waits in a buffer is written by each child, too
        try:
            worker.pid = os.fork()
        except OSError as exc:
            self.balance.ended(worker.number)
            self._died(worker, f"could not be started: {exc.strerror}")
            return
        if not worker.pid:
            self._be(worker)
        worker.log_event(logging.INFO, "worker-started", " is process %d", worker.pid, pid=worker.pid)

    def _be(self, worker: _Worker) -> NoReturn:
        """The worker's own life, from the fork to its end."""
        code = 1
        try:
            os.close(self._hand)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.balance.become(worker.number)
            threading.Thread(target=self._follow_parent, name="echo-parent", daemon=True).start()
            code = self._work(worker.number, self._ready)
        except BaseException:
            traceback.print_exc()
        finally:
            _flush()
            os._exit(code)  # what the parent has to do at its exit is not for its children

    def _ready(self) -> None:
        # SIGINT stays blocked: Ctrl-C reaches all of them, and is the parent's to pass on.
        signal.pthread_sigmask(signal.SIG_SETMASK, {*self._mask, signal.SIGINT})

    def _follow_parent(self) -> None:
        os.read(self._leash, 1)
        os.kill(os.getpid(), signal.SIGTERM)  # nobody is left who could tell this process to end

    def _bury(self) -> None:
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

    def _end(self, number: int) -> None:
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
                os.kill(worker.pid, number)  # at worst it has died and is not buried yet, and nobody has its number
