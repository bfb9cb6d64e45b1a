"""The interactive session: a prompt, what the server says, and an end that leaves nothing hanging.

One thread receives and prints; the main thread sits at the prompt. What the peer sends is shown escaped, so that
no server can drive the terminal. It gets a connection and opens none.
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

_STEP = 0.2  # seconds; a Ctrl-C that comes in the moment before a wait begins is acted on only after it


class Terminal:
    """One session at the terminal, over ``connection``. ``timeout``: seconds to wait for a reply before the prompt
    comes back without it."""

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
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # bytes pass, text or not
        receiver = threading.Thread(target=self._receive, name="echo-receive", daemon=True)
        receiver.start()
        left = False
        history = History()
        try:
            left = self._converse()
        except KeyboardInterrupt:
            left = not self._ended  # or it was _receive() that called us away from the prompt
            print()
        history.save()
        try:
            if not self._ended:
                self._connection.end_output()
                receiver.join(self._timeout)
        except (KeyboardInterrupt, EchoError):
            pass
        if not left:
            _forget_typed()
            _tell("the server has ended the session" if self._error is None else str(self._error))
        sent, received = self._connection.messages_out, self._connection.messages_in
        _tell(f"{plural(sent, 'message')} sent, {received} received")
        return 0 if left else 1

    def _converse(self) -> bool:
        """Send what is typed, until the user leaves (true) or the server does (false)."""
        while True:
            try:
                with self._changed:
                    if self._ended:
                        return False
                    self._at_prompt = True  # from here on _receive() may interrupt, before input() begins, too
                line = input(PROMPT)
            except EOFError:
                print()
                return True
            finally:
                self._at_prompt = False
            message = line.encode(sys.stdin.encoding, "surrogateescape")
            if not message and not self._connection.framing.keeps_boundaries:
                continue  # no bytes are no message there
            with self._changed:  # else what is just being shown would count as the reply
                awaited = self._received + 1
            try:
                self._connection.send(message)
            except (EchoError, ValueError) as exc:
                if self._ended or getattr(exc, "connection", None) is self._connection:
                    return False
                _tell(str(exc))
                continue
            if not self._wait_for(awaited):
                _tell(f"no reply after {self._timeout:g} s")
            elif self._ended and is_exit(message):
                return True

    def _wait_for(self, awaited: int) -> bool:
        """Wait for so many replies, or the session's end; false when the time is over."""
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
            # input() is inside a system call; a signal to its very thread is what ends it, unless it comes in the
            # moment before the call. Hence again.
            main = threading.main_thread().ident
            while self._at_prompt and hasattr(signal, "pthread_kill") and main is not None:
                signal.pthread_kill(main, signal.SIGINT)
                self._changed.wait(_STEP)

    def _show(self, message: bytes) -> None:
        text = escape(message, exact=False)
        with self._changed:
            if self._at_prompt:  # above the prompt, and what is being typed stays
                typed = _line_buffer() if _line_buffer is not None else ""
                print(f"\r\x1b[K{text}\n{PROMPT}{typed}", end="", flush=True)
            else:
                print(text, flush=True)
            self._received += 1
            self._changed.notify()


def _forget_typed() -> None:
    """What was being typed was for the server; the shell must not run it."""
    if termios is not None:
        try:
            termios.tcflush(sys.stdin, termios.TCIFLUSH)
        except (OSError, termios.error):
            pass


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
