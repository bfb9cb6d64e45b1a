"""Several processes behind one port: for a build with the GIL, where one process keeps one processor busy.

The parent forks the workers before it starts any thread. Then it only watches: it passes signals on, and replaces a
worker that died. All workers accept from one listening socket, which they inherit. So a connection that waits in its
backlog is not lost when a worker dies. (Rejected: ``SO_REUSEPORT``, where each worker has a backlog of its own, which
is lost with it.)

The parent's signal handlers only take notes and wake it, so that no signal can come at a wrong moment. It stops its
workers with SIGTERM. One that still lives after the deadline, since it is stopped or its C code keeps the interpreter's
lock, is killed. This module does not know what the workers do; its caller passes that in.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import mmap
import os
import signal
import socket
import time
import traceback
from typing import Any, Callable, Deque, NoReturn, Optional, Tuple

from ...beginning import Thread
from ...descriptors import Owned
from ...running import Stopped
from ...server import forking
from ...server.reporting import log_event
from ...text import plural
from .balance import Balance
from .failures import SHORTAGE, log_failure
from .process import HANDLED, Process, flush

MIN_PAUSE = 0.1
MAX_PAUSE = 10.0
"""Seconds before a worker that died is replaced: the first pause and the longest one. Each further death of the same
worker doubles its pause."""

SETTLED = 10.0
"""Seconds after which a worker counts as stable: its next death counts as its first."""

GIVE_UP = 5
QUICK = 0.2
"""Number of deaths in a row, of each worker, after which the parent gives up. They count if the worker died within so
many seconds, without a session, for the same reason each time, and not by a signal that only others send: then it
cannot live. Workers that served in between, were killed, or lacked memory, threads or descriptors, are replaced for
ever, after longer and longer pauses. A client whose messages crash a worker must not end the service."""

FROM_OUTSIDE = {"SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"}

KILL_GRACE = 0.9
"""Seconds after the deadline at which workers that still live are killed."""

RETRY = 1.0
"""Seconds after which a reload is tried again for which the system lacked something."""

LONGEST_WAIT = 3600.0
"""Seconds; the system's calls take no number above some weeks."""

SUPPORTED = hasattr(os, "fork")


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
        self.failures = 0  # in a row, and at once
        self.reason = ""  # of the last one
        self.due_at: Optional[float] = 0.0  # when to start it; None while it runs, or if it is not to start again

    def log_event(self, level: int, event: str, text: str, *args: Any, **fields: Any) -> None:
        log_event(level, event, "worker %d" + text, self.number, *args, worker=self.number, **fields)


class Workers:
    """``count`` processes, each of which calls ``work(number, ready)`` and exits with the code that this returns.

    Numbers count from 0. ``work`` must call ``ready`` as soon as SIGTERM can stop it. ``process`` has the signals
    and the deadline: the parent's, and in each worker that worker's.

    The other functions are called in the parent: ``stop`` on SIGINT or SIGTERM; ``reload`` on SIGHUP, which is then
    passed on to the workers if ``reload`` returns true: all of them read the files again, or none (one that is started
    later inherits what the parent has read). If it returns None, it is called again after ``RETRY``. Where
    ``hung_up()`` is true, SIGHUP stops it too.
    """

    min_pause = MIN_PAUSE
    max_pause = MAX_PAUSE
    settled = SETTLED
    quick = QUICK
    give_up = GIVE_UP

    def __init__(
        self,
        count: int,
        work: Callable[[int, Callable[[], None]], int],
        process: Process,
        stop: Callable[[], None],
        reload: Callable[[], Optional[bool]] = lambda: True,
        hung_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._work = work
        self._process = process
        process.become_parent()
        self._stop = stop
        self._reload = reload
        self._reload_at: Optional[float] = None
        self._hung_up = hung_up
        self._workers = [_Worker(number) for number in range(count)]
        self._stopped = False
        self._failed = False
        self._killed = False
        # Only the parent has the writing end. A worker that reads sees the end of the pipe when the parent has died.
        self._lifeline, self._lifeline_end = map(Owned, os.pipe())
        self.balance = Balance(count)
        self._in_haste = mmap.mmap(-1, 1)  # shared with the workers: whether the parent has had a second signal
        self._done = mmap.mmap(-1, count)  # shared, too: which workers have come to their own end
        self._orphaned = False
        self._notes: Deque[Tuple[Callable[[int], None], int]] = collections.deque()
        self._alarm, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        forking.in_child(self._let_go)

    def run(self) -> int:
        """Start and watch the workers until all have ended. Return the exit code: 0 if each worker's was 0, else 1."""
        # It needs a handler: a signal that is ignored wakes nobody, and SIGCHLD is by default.
        found = signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        wakeup = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        self._process.pass_stops(self._note_stop)
        self._process.pass_signals(self._note)
        try:
            while True:
                try:
                    self._look_around()
                    if not any(worker.pid for worker in self._workers) and (self._stopped or self._failed):
                        return 1 if self._failed else 0
                    if not self._notes:
                        self._wait()
                except MemoryError:  # the workers serve on, and need their parent when memory is there again
                    time.sleep(RETRY)
        finally:
            signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if found is None else found)
            self._alarm.close()
            self._bell.close()
            self._lifeline.close()
            self._lifeline_end.close()

    def _look_around(self) -> None:
        self._reap()
        for _ in range(len(self._notes)):  # those that come meanwhile are acted on after the next look around
            note = self._notes.popleft()
            act, number = note
            try:
                act(number)
            except MemoryError:
                if act == self._stop_all and not self._stopped:  # else it is done, and again it would cut the sessions
                    self._notes.appendleft(note)
                raise
        self._kill_late()
        self._start_due()
        if self._reload_at is not None and self._reload_at <= time.monotonic():
            self._reload_all()

    def _note_stop(self, number: int, begins: bool) -> None:
        self._notes.appendleft((self._stop_all, number))  # before a reload: that of a long list takes a second

    def _note(self, number: int) -> None:
        if (self._pass_on, number) not in self._notes:  # of many that wait, one does
            self._notes.append((self._pass_on, number))

    def _pass_on(self, number: int) -> None:
        if number != getattr(signal, "SIGHUP", None):
            self._signal(number)
        elif self._hung_up():
            self._process.stop(number)
        elif not self._stopped:
            self._reload_all()

    def _reload_all(self) -> None:
        self._reload_at = time.monotonic() + RETRY  # unless it gets to its end
        done: Optional[bool] = False
        with contextlib.suppress(Stopped):
            done = self._reload()
        if done is not None:
            self._reload_at = None
        if done:
            self._signal(signal.SIGHUP)

    def _wait(self) -> None:
        """Wait for a signal, or until something is due."""
        times = [worker.due_at for worker in self._workers if worker.due_at is not None]
        if self._reload_at is not None:
            times.append(self._reload_at)
        if self._process.deadline is not None and not self._killed:
            times.append(self._process.deadline + KILL_GRACE)
        left = min(times) - time.monotonic() if times else LONGEST_WAIT
        self._alarm.settimeout(min(max(left, 0.001), LONGEST_WAIT))
        try:
            self._alarm.recv(4096)
        except socket.timeout:
            pass

    def _start_due(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.due_at is not None and worker.due_at <= now and not self._process.is_stopping():
                self._start(worker)

    def _start(self, worker: _Worker) -> None:
        worker.started_at = time.monotonic()
        self._done[worker.number] = 0
        self.balance.began(worker.number)
        flush()  # otherwise each child would write what waits in the buffers, too
        # Blocked until the worker has its own handlers: the default action would kill it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            worker.pid = os.fork()
            worker.due_at = None
        except OSError as exc:
            self._died(worker, f"could not be started: {exc.strerror}", from_outside=True)
            return
        finally:
            if worker.pid != 0:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if not worker.pid:
            self._run_worker(worker)
        worker.log_event(logging.INFO, "worker-started", " is process %d", worker.pid, pid=worker.pid)

    def _run_worker(self, worker: _Worker) -> NoReturn:
        """The worker's process, from the fork to its exit."""
        if self._process.is_stopping():  # since just before the fork: faulthandler would wait for its parent's thread
            self._done[worker.number] = 1
            os._exit(0)
        code = 1
        try:
            self._process.become_worker(self._is_second)
            self.balance.become(worker.number)
            Thread(target=self._end_with_parent, name="echo-parent", daemon=True).start()
            code = self._work(worker.number, self._process.unblock)
        except Exception as exc:
            code = SHORTAGE if log_failure(exc) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            self._done[worker.number] = 1
            try:
                self._process.exit(code)
            finally:  # no memory
                os._exit(1)

    def _let_go(self) -> None:
        """In a forked child, a worker or a child of a thread of the handler's module: it is not the parent."""
        signal.set_wakeup_fd(-1, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._alarm.close()
        self._bell.close()
        self._lifeline_end.close()

    def _is_second(self) -> bool:
        """In a worker that stops: whether a further SIGTERM is to cut."""
        return self._in_haste[0] != 0 or (self._orphaned and self._process.is_later())

    def _end_with_parent(self) -> None:
        os.read(self._lifeline.number, 1)
        if not self._process.is_stopping():  # else it has been killed in the stop, which goes on
            os.kill(os.getpid(), signal.SIGTERM)  # nothing else would stop this process
        self._orphaned = True

    def _reap(self) -> None:
        for worker in self._workers:
            if worker.pid is None:
                continue
            try:
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
            except ChildProcessError:  # a thread of the handler's module waits for any child
                gone = worker.pid
                self._free(worker)
                self._died(
                    worker, f"process {gone} ended, and code in the parent took its exit code", "unknown exit code"
                )
                continue
            if pid:
                self._free(worker)
                if os.WIFSIGNALED(status):
                    name = _name(os.WTERMSIG(status))
                    how = f"process {pid} was killed by {name}" + (", not done in time" if self._killed else "")
                    self._died(worker, how, name, from_outside=name in FROM_OUTSIDE)
                elif self._stopped and self._done[worker.number]:
                    self._failed = self._failed or os.WEXITSTATUS(status) != 0
                else:
                    code = os.WEXITSTATUS(status)
                    reason = "a shortage" if code == SHORTAGE else f"exit code {code}"
                    how = f"process {pid} ended with {reason}" + (", before it was done" if self._stopped else "")
                    self._died(worker, how, reason, from_outside=code == SHORTAGE)

    def _free(self, worker: _Worker) -> None:
        worker.pid = None
        if not self._stopped:
            worker.due_at = time.monotonic() + self.max_pause  # unless _died() says when; memory may lack for that

    def _died(self, worker: _Worker, how: str, reason: str = "", *, from_outside: bool = False) -> None:
        now = time.monotonic()
        lived = now - worker.started_at
        worker.deaths = 1 if lived >= self.settled else worker.deaths + 1
        if from_outside or lived >= self.quick or self.balance.has_sessions(worker.number):
            worker.failures = 0
        else:
            worker.failures = worker.failures + 1 if reason == worker.reason else 1
        worker.reason = reason
        self.balance.ended(worker.number)
        if self._stopped:
            self._failed = True
            worker.log_event(logging.WARNING, "worker-died", ": %s", how)
        elif all(each.pid is None and each.failures >= self.give_up for each in self._workers):
            self._failed = True
            for each in self._workers:
                each.due_at = None
            why = f"for the {self.give_up}th time within {self.quick:g} s of the start"
            worker.log_event(logging.ERROR, "worker-died", ": %s, %s; no worker can live, giving up", how, why)
        else:
            pause = min(self.min_pause * 2 ** min(worker.deaths - 1, 20), self.max_pause)
            worker.due_at = now + pause
            worker.log_event(logging.WARNING, "worker-died", ": %s; the next in %g s", how, pause)

    def _stop_all(self, number: int) -> None:
        count = plural(len([worker for worker in self._workers if worker.pid is not None]), "worker")
        name = signal.Signals(number).name
        if not self._stopped:
            self._reload_at = None
            for worker in self._workers:
                worker.due_at = None
            self._stop()
        else:
            self._in_haste[0] = 1
        self._signal(signal.SIGTERM)
        self._stopped = True  # only here: if memory lacks before, all of this is done again
        # Last: the handler's module may have a logging handler that blocks.
        log_event(logging.INFO, "signal", "%s: stopping %s", name, count, signal=name)

    def _signal(self, number: int) -> None:
        for worker in self._workers:
            if worker.pid is not None:
                with contextlib.suppress(ProcessLookupError):  # other code has waited for it; else its number is kept
                    os.kill(worker.pid, number)

    def _kill_late(self) -> None:
        deadline = self._process.deadline
        if self._stopped and not self._killed and deadline is not None and time.monotonic() >= deadline + KILL_GRACE:
            self._killed = True
            self._signal(signal.SIGKILL)
