"""The prompt of an interactive session: lines that the user types, messages above them, and signals.

The main thread is at the prompt, often in C, where only a signal reaches it. So another thread has it print a message
by sending it SIGURG, which is ignored by default. A signal that comes right before the wait in C takes effect only
after it. So a helper thread reads the number of each signal from a pipe, and sends SIGURG until the main thread has run
its signal handlers.

SIGINT ends the prompt or a wait. SIGTERM and the others of ``_ENDING`` end the process and SIGTSTP stops it, as they do
by default, after the terminal has been restored. Of these, a signal that was ignored before stays ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Callable, Dict, List, Optional

from ..streams import CannotWrite
from .editors import line_editor
from .threads import start_thread

_STEP = 0.05  # seconds between two signals to the main thread
_AGAIN = 0.5  # seconds after which _Left is raised again: Python drops an exception that comes up inside a destructor
_MAX_PENDING = 64 * 1024  # characters

_WAIT_STEP = 0.2  # maximum time of one wait in seconds: on Windows a signal takes effect only after it

_ENDING = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGVTALRM", "SIGPROF")
"""Signals that other programs, limits or timers send, and that end a process by default."""

_HAS_SIGNALS = hasattr(signal, "pthread_kill") and hasattr(signal, "SIGURG")


class _Left(BaseException):
    """Raised by a signal handler to leave ``Editor.read``."""


class Prompt:
    """The terminal, while the context lasts. ``before_death`` is called before a signal ends the process.

    ``interrupted`` is set by Ctrl-C; the user of this class may set it back. ``changed`` guards what several threads
    use. Others may use it, too, and call ``notify`` when something happens. ``show`` and ``close`` are for any thread,
    all else is for the main thread.
    """

    def __init__(self, before_death: Callable[[], None]) -> None:
        self.changed = threading.Condition()
        self._news = threading.Event()
        self.interrupted = False
        self._before_death = before_death
        self._editor = line_editor()
        self._closed = False
        self._ended = False  # whether this context has ended
        self._pending: List[str] = []  # messages that are to be printed above the prompt
        self._pending_size = 0
        self._asks = False  # from now on others must not print by themselves
        self._may_raise = False  # whether a signal handler may raise _Left
        self._raised_at = 0.0
        self._seen = False  # whether the main thread has run its signal handlers
        self._handlers: Dict[int, Any] = {}  # those before, by number of their signal
        self._wake = self._wake_end = -1
        self._helper: Optional[threading.Thread] = None

    def __enter__(self) -> Prompt:
        handlers: Dict[str, Any] = dict.fromkeys(_ENDING, self._die)
        handlers.update(SIGINT=self._interrupt, SIGTSTP=self._stop, SIGCONT=self._continue)
        if _HAS_SIGNALS:
            self._wake, self._wake_end = os.pipe()
            os.set_blocking(self._wake_end, False)
            self._helper = start_thread(self._help, "echo-signals")
            signal.set_wakeup_fd(self._wake_end, warn_on_full_buffer=False)
            # The prompt needs it, even if the parent process has ignored or blocked it.
            self._handlers[signal.SIGURG] = signal.signal(signal.SIGURG, self._look)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGURG])
        for name, handler in handlers.items():
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._handlers[number] = signal.signal(number, handler)
        self._take_terminal()  # now that each signal gives it back
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended = True
        self._editor.release_terminal()
        if self._helper is not None:
            signal.set_wakeup_fd(-1, warn_on_full_buffer=False)
            with self.changed:
                os.close(self._wake_end)
                self._wake_end = -1
            self._helper.join()
            os.close(self._wake)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def ask(self) -> Optional[bytes]:
        """Return a line that the user types; None if Ctrl-C or ``close`` ended the prompt.

        Raises ``EOFError`` if the user has ended the input.
        """
        with self.changed:
            self._asks = True
        line = failure = None
        try:
            try:
                self._may_raise, self._raised_at = True, 0.0
                if not self._is_over():
                    line = self._editor.read()
            finally:
                self._may_raise = False
        except BaseException as exc:  # _Left; or SystemError, if another signal came while Python raised it
            self._may_raise = False
            failure = exc
        with self.changed:
            self._asks = False
            self._print_pending(print)
        if failure is not None and not self._is_over():
            raise failure
        return None if failure is not None else line

    def wait(self, done: Callable[[], bool], timeout: Optional[float]) -> bool:
        """Wait until ``done()`` or an interrupt; ``notify`` says when to look. Return false after the timeout.

        Not with ``changed.wait()``: no signal interrupts its end, when it takes the lock back. A thread that prints to
        a halted terminal (Ctrl-S) has that lock.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._news.clear()
            if done() or self.interrupted:
                return True
            left = _WAIT_STEP if deadline is None else min(_WAIT_STEP, deadline - time.monotonic())
            if left <= 0:
                with self.changed:  # a message is being shown, maybe; a signal interrupts this
                    return done() or self.interrupted
            self._news.wait(left)

    def notify(self) -> None:
        """Something has happened. The caller has ``changed``."""
        self.changed.notify_all()
        self._news.set()

    def show(self, text: str) -> None:
        """Print a message; soon and above the prompt, if the user is typing."""
        with self.changed:
            if self._ended:
                pass  # the user has left
            elif not self._asks:
                print(text, flush=True)
            elif self._helper is None:
                self._editor.above(text)
            else:
                self._pending.append(text)
                self._pending_size += len(text)
                self._wake_up()
                while self._pending_size > _MAX_PENDING:  # the terminal takes nothing at the moment
                    self.changed.wait()

    def discard_typed(self) -> None:
        """Discard input that was typed for the server, so that the shell does not run it as a command."""
        self._editor.discard_typed()

    def close(self) -> None:
        """End the prompt, and all later ones."""
        with self.changed:
            self._closed = True
            self._wake_up()

    def _is_over(self) -> bool:
        return self._closed or self.interrupted

    def _print_pending(self, write: Callable[[str], None]) -> None:
        if self._pending:
            text = "\n".join(self._pending)
            self._pending.clear()
            self._pending_size = 0
            self.notify()
            write(text)

    # The helper thread.

    def _wake_up(self) -> None:
        if self._wake_end >= 0:
            try:
                os.write(self._wake_end, b"\0")
            except BlockingIOError:
                pass  # the pipe is full of such bytes

    def _help(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while True:
            numbers = os.read(self._wake, 64)
            if not numbers:
                break
            with self.changed:
                self.notify()
                self._seen = not set(numbers) - {signal.SIGURG}
                while self._asks and (self._pending or self._is_over() or not self._seen):
                    signal.pthread_kill(main, signal.SIGURG)
                    self.changed.wait(_STEP)

    # Signal handlers. They run in the main thread, between any two instructions.

    def _interrupt(self, number: int, frame: Optional[FrameType]) -> None:
        self.interrupted = True
        self._leave()

    def _look(self, number: int, frame: Optional[FrameType]) -> None:
        may_raise, self._may_raise = self._may_raise, False  # an exception at the lock would leave it locked
        if may_raise and self._editor.waits():  # else another call, which this one has interrupted, prints
            with self.changed:
                self._print_pending(self._editor.above)
        self._seen = True
        self._may_raise = may_raise
        self._leave()

    def _leave(self) -> None:
        now = time.monotonic()
        if self._may_raise and self._is_over() and now - self._raised_at >= _AGAIN:
            self._raised_at = now  # not at once again: the next signal may come before the exception is handled
            raise _Left

    def _die(self, number: int, frame: Optional[FrameType]) -> None:
        with contextlib.suppress(CannotWrite):
            self._editor.give_up("\n" if self._asks else "")  # what the shell says begins on a new line
        self._before_death()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        os._exit(128 + number)  # process 1, of a container: the system ignores the signal

    def _stop(self, number: int, frame: Optional[FrameType]) -> None:
        self._editor.release_terminal()
        going_on = signal.signal(signal.SIGCONT, signal.SIG_DFL)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        # The process was stopped here, and continues.
        signal.signal(number, self._stop)
        signal.signal(signal.SIGCONT, going_on)
        self._take_terminal()

    def _continue(self, number: int, frame: Optional[FrameType]) -> None:
        self._take_terminal()  # it was stopped by SIGSTOP, and the shell has set the terminal up for itself

    def _take_terminal(self) -> None:
        may_raise, self._may_raise = self._may_raise, False  # a message in the middle would be printed into the line
        if not self._ended:
            self._editor.take_terminal()
        self._may_raise = may_raise
