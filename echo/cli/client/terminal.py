"""The interactive session: a prompt, and the server's messages above it.

One thread receives and prints, the main thread is at the prompt. The server's bytes are shown escaped, so that they
cannot control the terminal. The connection is the caller's; this module opens none.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import Optional

from ...connection import Connection
from ...exceptions import EchoError, MessageTimeout, ReceiveTimeout
from ...protocol import is_exit
from ...text import escape, plural
from .history import History

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

try:
    import readline
except ImportError:  # Windows: the console edits lines by itself
    _line_buffer = None
else:
    _line_buffer = readline.get_line_buffer

PROMPT = "> "

_STEP = 0.2  # maximum time of one wait in seconds: a signal that comes right before a wait takes effect after it


class Terminal:
    """One session at the terminal, over ``connection``.

    ``timeout`` is the maximum time in seconds to wait for a reply before the prompt comes back (None: no limit).
    """

    def __init__(self, connection: Connection, timeout: Optional[float]) -> None:
        self._connection = connection
        self._timeout = timeout
        self._changed = threading.Condition()
        self._received = 0
        self._ended = False
        self._at_prompt = False
        self._error: Optional[EchoError] = None

    def run(self) -> int:
        """Hold the session; return the exit code: 0 if the user ended it, 1 if the server did."""
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # so that any bytes can be typed
        receiver = threading.Thread(target=self._receive, name="echo-receive", daemon=True)
        receiver.start()
        left = False
        history = History()
        try:
            left = self._converse()
        except KeyboardInterrupt:
            left = not self._ended  # if the session has ended, the interrupt came from _receive(), not from the user
            print()
        history.save()
        try:
            if not self._ended:
                self._connection.end_output()
                receiver.join(self._timeout)
        except (KeyboardInterrupt, EchoError):
            pass
        if not left:
            _discard_typed()
            _print_status("the server has ended the session" if self._error is None else str(self._error))
        sent, received = self._connection.messages_out, self._connection.messages_in
        _print_status(f"{plural(sent, 'message')} sent, {received} received")
        return 0 if left else 1

    def _converse(self) -> bool:
        """Send each line, until the user leaves (return true) or the server ends the session (return false)."""
        while True:
            try:
                with self._changed:
                    if self._ended:
                        return False
                    self._at_prompt = True  # from now on _receive() may interrupt, even before input() begins
                line = input(PROMPT)
            except EOFError:
                print()
                return True
            finally:
                self._at_prompt = False
            message = line.encode(sys.stdin.encoding, "surrogateescape")
            if not message and not self._connection.framing.keeps_boundaries:
                continue  # without boundaries, there is no empty message
            with self._changed:  # otherwise a message that is being shown right now would count as the reply
                awaited = self._received + 1
            try:
                self._connection.send(message)
            except (EchoError, ValueError) as exc:
                if self._ended or getattr(exc, "connection", None) is self._connection:
                    return False
                _print_status(str(exc))
                continue
            if not self._wait_for(awaited):
                _print_status(f"no reply after {self._timeout:g} s")
            elif self._ended and is_exit(message):
                return True

    def _wait_for(self, awaited: int) -> bool:
        """Wait until so many messages have been received or the session has ended; return false after the timeout."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        with self._changed:
            while not (self._ended or self._received >= awaited):
                left = _STEP if deadline is None else min(_STEP, deadline - time.monotonic())
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def _receive(self) -> None:
        try:
            while True:
                try:
                    messages = self._connection.receive()
                except (ReceiveTimeout, MessageTimeout):
                    continue  # nothing is lost
                if not messages:
                    break
                for message in messages:
                    self._show(message)
            rest = self._connection.finish_input()
            if rest:
                self._show(rest)
        except EchoError as exc:
            self._error = exc
        with self._changed:
            self._ended = True
            self._changed.notify()
            # The main thread may be in a system call of input(). Only a signal to that thread ends the call, and not
            # if it comes right before the call begins. So it is sent again and again until the prompt is left.
            main = threading.main_thread().ident
            while self._at_prompt and hasattr(signal, "pthread_kill") and main is not None:
                signal.pthread_kill(main, signal.SIGINT)
                self._changed.wait(_STEP)

    def _show(self, message: bytes) -> None:
        text = escape(message, exact=False)
        with self._changed:
            if self._at_prompt:  # print above the prompt, and keep what the user has typed so far
                typed = _line_buffer() if _line_buffer is not None else ""
                print(f"\r\x1b[K{text}\n{PROMPT}{typed}", end="", flush=True)
            else:
                print(text, flush=True)
            self._received += 1
            self._changed.notify()


def _discard_typed() -> None:
    """Discard input that was typed for the server, so that the shell does not run it as a command."""
    if termios is not None:
        try:
            termios.tcflush(sys.stdin, termios.TCIFLUSH)
        except (OSError, termios.error):
            pass


def _print_status(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
