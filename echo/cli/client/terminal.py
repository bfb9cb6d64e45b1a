"""The interactive session: a prompt, and the server's messages above it.

One thread receives and prints, the main thread is at the prompt. The server's bytes are shown escaped, so that they
cannot control the terminal. The connection is the caller's; this module opens none.
"""

from __future__ import annotations

import sys
from typing import List, Optional

from ...connection import Connection
from ...exceptions import EchoError, MessageTimeout, ReceiveTimeout
from ...framing import LineFraming
from ...protocol import is_exit
from ...sockets import LINGER_SILENCE
from ...text import escape, plural
from ..color import Paint, plain
from .history import History
from .letters import Letters
from .prompt import Prompt
from .threads import start_thread


class Terminal:
    """One session at the terminal, over ``connection``.

    ``timeout`` is the maximum time in seconds to wait for a reply before the prompt comes back (None: no limit).
    ``paint`` is for standard error.
    """

    def __init__(self, connection: Connection, timeout: Optional[float], paint: Paint = plain) -> None:
        self._connection = connection
        self._timeout = timeout
        self._paint = paint
        self._exits = 0  # messages that ended the session
        self._history = History()
        self._prompt = Prompt(self._history.save)
        self._received = 0
        self._ended = False
        self._error: Optional[Exception] = None
        self.interrupted = False
        """Whether the user has left with Ctrl-C, or has ended the wait for the rest with it."""

    def run(self) -> int:
        """Hold the session; return the exit code: 0 if the user ended it, 1 if the server did."""
        with self._prompt:
            start_thread(self._receive, "echo-receive")
            left = self._converse()
            self._history.save()
            self.interrupted, self._prompt.interrupted = self._prompt.interrupted, False
            try:
                if not self._ended:
                    self._connection.end_output()
                    patience = self._timeout  # the service may have more to say at the end
                    if self.interrupted and (patience is None or patience > LINGER_SILENCE):
                        patience = LINGER_SILENCE
                    self._prompt.wait(lambda: self._ended, patience)  # another Ctrl-C ends it
            except EchoError:
                pass
            self.interrupted |= self._prompt.interrupted
            if not left:
                self._prompt.discard_typed()
        if self._error is not None and not isinstance(self._error, EchoError):
            raise self._error
        if not left:
            why = "the server has ended the session" if self._error is None else str(self._error)
            _print_status(self._paint("doubtful" if self._error is None else "bad", why))
        sent, received = self._connection.messages_out, self._connection.messages_in
        exits = f" ({self._exits} exit)" if self._exits else ""
        _print_status(f"{plural(sent, 'message')} sent{exits}, {received} received")
        return 0 if left else 1

    def _converse(self) -> bool:
        """Send each line, until the user leaves (return true) or the server ends the session (return false)."""
        while True:
            try:
                typed = self._prompt.ask()
            except EOFError:
                return True
            if typed is None:
                return not self._ended
            for message in self._messages(typed):
                left = None if self._prompt.interrupted else self._exchange(message)
                if left is not None:
                    return left

    def _messages(self, typed: bytes) -> List[bytes]:
        """Return the typed text as messages. Readline takes lines that are pasted together as one line."""
        if not typed and not self._connection.framing.keeps_boundaries:
            return []  # without boundaries, an empty message cannot be sent
        if not isinstance(self._connection.framing, LineFraming):
            return [typed]
        return (typed[:-1] if typed.endswith(b"\n") else typed).split(b"\n")

    def _exchange(self, message: bytes) -> Optional[bool]:
        """Send a message and wait for its reply. At the end of the session return whether the user has left."""
        with self._prompt.changed:
            awaited = self._received + 1
        try:
            self._connection.send(message)
        except (EchoError, ValueError) as exc:
            if self._ended or getattr(exc, "connection", None) is self._connection:
                return False
            _print_status(str(exc))
            return None
        if not self._wait_for(awaited):
            _print_status(self._paint("doubtful", f"no reply after {self._timeout:g} s"))
        elif self._ended and is_exit(message):
            self._exits = 1
            return True
        return None

    def _wait_for(self, awaited: int) -> bool:
        """Wait until so many messages have been received or the session has ended; return false after the timeout."""
        return self._prompt.wait(lambda: self._ended or self._received >= awaited, self._timeout)

    def _receive(self) -> None:
        in_pieces = not self._connection.framing.keeps_boundaries
        letters = Letters()
        try:
            while True:
                try:
                    messages = self._connection.receive()
                except (ReceiveTimeout, MessageTimeout):  # nothing is lost
                    self._show_rest(letters.finish())
                    continue
                if not messages:
                    break
                for message in messages:
                    if in_pieces:
                        self._show_rest(letters.feed(message))
                    else:
                        self._show(message)
            self._show_rest(letters.finish() + self._connection.finish_input())
        except Exception as exc:  # whatever it is, the user must not wait for replies that nobody receives
            self._error = exc
        self._ended = True
        self._prompt.close()

    def _show_rest(self, message: bytes) -> None:
        if message:
            self._show(message)

    def _show(self, message: bytes) -> None:
        with self._prompt.changed:  # a message that is shown and not counted would count as the reply to the next line
            self._prompt.show(escape(message, exact=False))
            self._received += 1
            self._prompt.notify()


def _print_status(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
