"""The process of the server command: its signals from the first line to the exit, one deadline, and a short exit.

**Signals.** ``Process`` sets the handlers before anything of the user's is imported. They stay until ``os._exit()``.
Python's own way out restores the default actions some milliseconds before the end, and a signal that came then would
kill a process that has lost nothing. A signal that was ignored at the start stays ignored (``nohup``, a shell's
background job); one that was blocked is not any more. Whichever thread the system gives a signal to, Python calls its
handler in the main thread. ``signal.set_wakeup_fd()`` wakes that thread, so it does no harm if a user's
thread takes the signal. A handler's module may set its own handlers for SIGINT and SIGTERM, or block these: after the
import that is undone.

**Deadline.** The first signal to stop starts it, a second one brings it forward to now. It bounds all that comes before
the exit. In that order, after it::

    + 0.5 s  sessions that were cut have had time to notice it (stopping.CUT_GRACE)
    + 0.7 s  threads and exit functions of the user's module are cut; the log says so
    + 0.9 s  workers that still live are killed (workers.KILL_GRACE)
    + 1.0 s  the process ends even while C code keeps the interpreter's lock

The last one is a timer of ``faulthandler``, a thread without Python: nothing else would run then. (Where no thread is
free, it is an alarm, whose handler runs in the main thread.) While a parent still
has workers, its own comes a second later, so that it can kill them. From the first signal on it forks no worker: in a
child, ``faulthandler`` would wait for its parent's thread. The exit code is 1 if anything was cut.

One case is out of reach: C code already holds the lock when the first signal comes, in a process without a parent.
Python does not call the handler then, and only SIGKILL ends the process. It is the same for C code that gets the lock
later, if no thread was free.

**Exit.** What Python does at an exit for the user's sake, as ``multiprocessing`` does it in its children: wait for the
threads, call the exit functions, flush the standard streams. Then ``os._exit()``. Other files are not looked for: to
flush one may block, and each of a million objects would be touched.

**Children** that a handler forks have none of this: the default actions again, and no deadline.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import errno
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from types import FrameType
from typing import Any, Callable, List, NoReturn, Optional

from ...descriptors import Owned, open_missing
from ...running import STOPPING, StopSignals
from ...server.reporting import log_event

CUT_GRACE = 0.7
"""Seconds after the deadline at which threads and exit functions are cut."""

LEAST = 0.1
"""Seconds that they have at least."""

LAST_GRACE = 1.0
"""Seconds after the deadline at which the process ends, whatever it does."""

PARENT_GRACE = 2.0
"""The same for a parent of workers: on a busy machine it may need a moment longer to kill them."""

HANDLED = (*STOPPING, *(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name)))


class Process(StopSignals):
    """This process. ``timeout`` is what a stop has in seconds; None: no limit, until a second signal comes.

    As a context it puts everything back at its end. ``exit`` ends the process instead.
    """

    numbers = HANDLED

    def __init__(self) -> None:
        super().__init__()
        self.timeout: Optional[float] = None
        self.deadline: Optional[float] = None  # of time.monotonic()
        self._on_signal: Optional[Callable[[int], None]] = None
        self._early: List[int] = []
        self._terminal_is_gone = watch_terminal()
        self.close_log: Callable[[], None] = lambda: None
        """Writes the log's last records."""
        self._code: Optional[int] = None  # the exit code, once that is settled
        self._last_grace = LAST_GRACE
        open_missing()  # first: programs that a handler starts would not have a descriptor that is opened below
        self._nowhere = Owned(os.open(os.devnull, os.O_WRONLY))  # opened now, since later no descriptor may be free

    # Signals.

    def __enter__(self) -> Process:
        super().__enter__()
        self.unblock()
        return self

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__()
        faulthandler.cancel_dump_traceback_later()
        self._nowhere.close()

    def _takes(self, number: int, found: Any) -> bool:
        return bool(found != signal.SIG_IGN)

    def unblock(self) -> None:
        """Let the signals through, in this thread and those that it starts."""
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def _handle(self, number: int, frame: Optional[FrameType]) -> None:
        if number in STOPPING:
            self.stop(number)
        elif self._on_signal is not None:
            self._on_signal(number)
        elif number == getattr(signal, "SIGHUP", None) and self._terminal_is_gone():
            self.stop(number)  # now: an import or a list from a pipe may take for ever, and later it would be a reload
        else:
            self._early.append(number)

    def _asked(self, begins: bool) -> None:
        self._bound(self.timeout if begins else 0.0)

    def _is_in_vain(self) -> bool:
        return False  # the last deadline ends the process

    def must_not_interrupt(self) -> None:
        """If a signal has come, and the handler's module has caught its exception, raise that again. If the module has
        set a handler of its own for a signal to stop, or blocked one, that ends here. So does the default action of
        SIGPIPE: any client could end the process."""
        self.take_again()  # the module may have forked, and this is the child that goes on, as a daemon
        for number in STOPPING:
            if number in self._found:
                signal.signal(number, self._handle)
        if hasattr(signal, "SIGPIPE") and signal.getsignal(signal.SIGPIPE) == signal.SIG_DFL:
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self.unblock()
        self.may_interrupt()
        super().must_not_interrupt()

    def pass_signals(self, on_signal: Callable[[int], None]) -> None:
        """From now on call ``on_signal(number)`` for signals that are not to stop; first for those that have come
        already."""
        self._on_signal = on_signal
        while self._early:
            on_signal(self._early.pop(0))

    def _bound(self, seconds: Optional[float]) -> None:
        """This process has so many seconds left, and some grace."""
        if seconds is not None:
            now = time.monotonic()
            self.deadline = now + seconds if self.deadline is None else min(self.deadline, now + seconds)
            self._set_last_deadline()

    def _set_last_deadline(self) -> None:
        if self.deadline is not None:
            left = self.deadline + self._last_grace - time.monotonic()
            try:
                if not self._nowhere.is_ours():
                    self._nowhere = Owned(os.open(os.devnull, os.O_WRONLY))
                faulthandler.dump_traceback_later(max(left, 0.001), file=self._nowhere.number, exit=True)
            except (RuntimeError, MemoryError, OSError):  # no thread is free, or no descriptor
                self._set_alarm(max(left, 0.001))

    def _set_alarm(self, seconds: float) -> None:
        """Let the main thread itself end the process then, unless C code keeps it."""

        def end(number: int, frame: Optional[FrameType]) -> None:
            signal.signal(number, lambda *_: os._exit(1))  # if the main thread waits for the log below
            signal.setitimer(signal.ITIMER_REAL, LAST_GRACE)
            self._end_in_time()

        with contextlib.suppress(AttributeError, ValueError):  # Windows has none; this is not the main thread
            signal.signal(signal.SIGALRM, end)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
            signal.setitimer(signal.ITIMER_REAL, seconds)

    # Forks.

    def let_go(self) -> None:
        """In a forked child: it has its own signals, and no deadline."""
        super().let_go()
        self.deadline = None
        self._terminal_is_gone = lambda: False  # a module may have made a daemon, which has left its terminal

    def become_parent(self) -> None:
        """This process forks workers."""
        faulthandler.cancel_dump_traceback_later()  # the handler's module's: each worker would wait for its thread
        self._last_grace = PARENT_GRACE
        self._set_last_deadline()

    def become_worker(self, is_second: Callable[[], bool]) -> None:
        """In a worker, with its signals blocked: it is stopped by SIGTERM, which its parent sends. Ctrl-C reaches all
        processes, and the parent passes it on. The parent's exit functions are not called in it.

        ``is_second`` says whether a further SIGTERM means the second signal. Not its time: service managers signal
        all processes, and the parent may pass its own on much later.
        """
        self._is_second = is_second
        self._first = self._on_stop = self._on_signal = self._early_stop = None
        self._early.clear()
        self._last_grace = LAST_GRACE
        for number in HANDLED:
            if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                self._found[number] = signal.SIG_DFL
                signal.signal(number, _ignore if number == signal.SIGINT else self._handle)
        getattr(atexit, "_clear")()  # noqa: B009
        finalize: Any = weakref.finalize
        for each in list(finalize._registry):  # a temporary folder of the parent's, for example
            each.atexit = False
        finalize._registered_with_atexit = False
        multiprocessing = sys.modules.get("multiprocessing.util")
        if multiprocessing is not None:  # a worker may have children of its own, and the parent's are not its
            sys.modules["multiprocessing.process"]._children.clear()
            atexit.register(multiprocessing._exit_function)
        for name in ("thread", "process"):  # CPython 3.8; later versions do not use atexit
            module = sys.modules.get(f"concurrent.futures.{name}")
            if module is not None and sys.version_info < (3, 9):
                atexit.register(module._python_exit)

    # The exit.

    def exit(self, code: int, *, nothing_to_cut: bool = False) -> NoReturn:
        """End the process with this code; with 1 if something has to be cut for that. ``nothing_to_cut``: it has not
        served. If a signal has interrupted the import of a module, nothing that this has started is waited for."""
        self._interrupts = False
        self._last_grace = LAST_GRACE
        self._set_last_deadline()
        if nothing_to_cut:
            self._code = code
            self._bound(0.0)
        elif self.deadline is None:
            self._bound(self.timeout)
        try:
            _thread.start_new_thread(self._end_in_time, ())  # a Thread without memory would be waited for
        except (RuntimeError, MemoryError):
            if self.deadline is not None:
                self._set_alarm(max(self.deadline + CUT_GRACE - time.monotonic(), LEAST))
        atexit.unregister(logging.shutdown)  # last, and a log that nobody reads is not cut work
        for function in (getattr(threading, "_shutdown"), getattr(atexit, "_run_exitfuncs")):  # noqa: B009
            try:
                function()
            except BaseException:  # CPython 3.8 raises an exit function's after it has printed it
                if function is not getattr(atexit, "_run_exitfuncs"):  # noqa: B009
                    traceback.print_exc()
        if self._code is None:  # else they were cut, and have ended only since their children were killed
            self._code = code
        flush()
        with contextlib.suppress(Exception):
            self.close_log()
            logging.shutdown()
        os._exit(self._code)

    def _end_in_time(self) -> None:
        least = time.monotonic() + LEAST
        while self.deadline is None or time.monotonic() < max(self.deadline + CUT_GRACE, least):
            time.sleep(0.02)  # looked at again and again: a signal may bring it forward
        settled = self._code
        if settled is None:
            self._code = 1
            main, me = threading.main_thread(), threading.current_thread()
            names = [thread.name for thread in threading.enumerate() if not (thread.daemon or thread in (main, me))]
            what = ", ".join(f"thread {name}" for name in names) or "exit functions"
            log_event(logging.WARNING, "cut", "%s cut: not done in time", what)
        end_daemonic_children()  # a module whose import was interrupted leaves some, too
        if settled is None:
            self.close_log()  # if nobody reads it, the last deadline remains
        time.sleep(0.02)
        end_daemonic_children()  # one that was just being started
        os._exit(1 if settled is None else settled)


def _ignore(number: int, frame: Optional[FrameType]) -> None:
    """Not ``SIG_IGN``, which programs that a handler starts would inherit."""


def end_daemonic_children() -> None:
    """Kill the children of ``multiprocessing`` that end with this process, and those of a ``ProcessPoolExecutor``: the
    exit function that does that has been cut. That of a pool waits for ever if a signal has killed a child that held
    the lock of the pool's queue. The processes of an executor would wait for their next task for ever, and that of a
    ``Manager`` for its next client."""
    process: Any = sys.modules.get("multiprocessing.process")
    with contextlib.suppress(AttributeError):  # it has not been imported, or not to its end
        process.BaseProcess.start = _start_none
        for child in list(process._children):
            if child.daemon:
                with contextlib.suppress(Exception):  # it has ended
                    child.kill()
    finalizers = getattr(sys.modules.get("multiprocessing.util"), "_finalizer_registry", {})
    with contextlib.suppress(Exception):  # a session may begin one now
        for each in list(finalizers.values()):
            if each._pid == os.getpid() and getattr(each._callback, "__name__", "") == "_finalize_manager":
                with contextlib.suppress(Exception):  # it has ended
                    each._args[0].kill()
    executors = getattr(sys.modules.get("concurrent.futures.process"), "_threads_wakeups", ())
    with contextlib.suppress(Exception):  # a session may begin one now
        for thread in list(executors):  # since CPython 3.9; 3.8 has no way to them
            for child in list(getattr(thread, "processes", {}).values()):
                if child._parent_pid == os.getpid():  # a worker knows those of its parent, too
                    child.kill()


def _start_none(process: Any) -> NoReturn:
    """A pool replaces a child that is killed. The new one would wait for ever for the lock that the other held."""
    sys.exit()  # ends the thread that wants to start it; outside of the main thread, nothing is printed


def watch_terminal() -> Callable[[], bool]:
    """Return a function that says whether the terminal of this process is gone. SIGHUP means that, or reload."""
    had = _terminal() == 0
    return lambda: had and _terminal() in _GONE


_GONE = {errno.ENXIO, errno.EIO, errno.ENODEV, errno.ENOENT}
"""Errors of a terminal that is gone. Others do not mean that: all descriptors may be in use at the moment."""


def _terminal() -> int:
    """The error of opening the terminal of this process; 0: it is there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY))
    except OSError as exc:
        return exc.errno or errno.EIO
    return 0


def stopped_by() -> str:
    """How a user stops this process: with Ctrl-C, if it is in the foreground of its terminal."""
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:
            if os.tcgetpgrp(terminal.fileno()) == os.getpgrp() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
                return "Ctrl-C"
    except OSError:
        pass
    return "SIGTERM"


def flush() -> None:
    """Flush the standard streams, if they are there and can be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass  # it is None, closed, a pipe that nobody reads, or a stream of the handler's module that fails
