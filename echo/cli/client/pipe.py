"""Standard input to the server, and what comes back to standard output, byte for byte.

One thread sends while the main thread receives and compares: a client that first sends everything and then
reads would stop for ever once the buffers on the way are full. What is kept is only what is on its way. It gets a
connection and opens none.
"""

from __future__ import annotations

import collections
import os
import select
import threading
from typing import Callable, Deque, Optional

from ...connection import Connection
from ...exceptions import ConnectionClosed, EchoError, EchoMismatch, MessageTooLong, ReceiveTimeout
from ...framing import Framing, LineFraming, RawFraming
from ...protocol import is_exit
from ...sockets import unread

CHUNK = 64 * 1024
WINDOW = 64 * 1024 * 1024
"""Bytes on their way at most; more than what the systems' buffers hold means that nothing comes back."""

PATIENCE = 0.25
"""Seconds that an input which has not ended is given to go on after an ``exit``: it may come from several programs, of
which the next one begins as this one ends."""


class Pipe:
    """Streams ``descriptor`` over ``connection``, whose framing is ``wire(framing)``.

    ``write`` takes what comes back. ``run`` raises ``EchoMismatch`` as soon as that differs from what was sent,
    ``MessageTooLong`` for input that the framing cannot carry, ``ConnectionClosed`` when the server went away
    before everything was back or there is input after an ``exit``, ``ReceiveTimeout`` when nothing comes back any more.
    """

    window = WINDOW
    patience = PATIENCE

    def __init__(self, connection: Connection, framing: Framing, descriptor: int, write: Callable[[bytes], None]):
        self._connection = connection
        self._framing = framing
        self._descriptor = descriptor
        self._write = write
        self._changed = threading.Condition()
        self._expected: Deque[bytes] = collections.deque()  # sent and not back yet
        self._outstanding = 0
        self._returned = 0
        self._farewell = b""  # an "exit", which an echo service that does not know the word sends back
        self._exit_at = ""  # where in the input that is
        self._goes_on = False  # the input, behind it
        self._error: Optional[EchoError] = None
        self._ended = False

    @staticmethod
    def wire(framing: Framing) -> Framing:
        """The framing of the connection: lines travel as the bytes that they are, with and without their end."""
        return RawFraming(framing.max_message) if isinstance(framing, LineFraming) else framing

    def run(self) -> None:
        """Stream until the input has ended and all of it is back."""
        threading.Thread(target=self._feed, name="echo-feed", daemon=True).start()
        try:
            self._receive()
        except BaseException:
            if self._outstanding:
                self._connection.abort()  # a gentle close would wait for all that is on its way, and for a stuck feeder
            raise

    def _receive(self) -> None:
        while True:
            try:
                messages = self._connection.receive()
            except ReceiveTimeout:
                if self._error is not None:
                    raise self._error from None
                with self._changed:
                    missing, ended = self._outstanding, self._ended
                if not missing and ended:
                    break  # all is back; that the server does not end its side is its affair
                if not missing:
                    continue  # the input is as idle
                raise ReceiveTimeout(
                    f"nothing came back for {self._connection.idle_timeout:g} s; {missing} bytes are missing"
                ) from None
            if not messages:
                break
            data = b"".join(messages)
            self._write(data)
            self._compare(data)
        if self._error is not None:
            raise self._error
        if not self._ended or self._outstanding:
            what = f"{self._outstanding} bytes did not come back" if self._outstanding else "not all input was sent"
            raise ConnectionClosed(f"the server ended the session; {what}")
        if self._exit_at and (self._goes_on or has_more(self._descriptor, self.patience)):
            raise ConnectionClosed(f"{self._exit_at} is an exit, which ends the session; what follows it was not sent")

    def _compare(self, data: bytes) -> None:
        while data:
            with self._changed:
                if not self._expected and self._farewell:
                    self._expected.append(self._farewell)
                    self._outstanding += len(self._farewell)
                    self._farewell = b""
                sent = self._expected.popleft() if self._expected else b""
                size = min(len(sent), len(data))
                if not size or sent[:size] != data[:size]:
                    raise EchoMismatch(sent, data, self._returned)
                if size < len(sent):
                    self._expected.appendleft(sent[size:])
                self._outstanding -= size
                self._returned += size
                self._changed.notify()
            data = data[size:]

    def _feed(self) -> None:
        try:
            self._feed_all()
        except OSError as exc:
            self._error = EchoError(f"cannot read standard input: {exc.strerror}")
        except EchoError as exc:
            self._error = exc
        with self._changed:
            self._ended = True
        try:
            self._connection.end_output()
        except EchoError:
            pass  # the receiving side has noticed, too

    def _feed_all(self) -> None:
        by_lines = isinstance(self._framing, LineFraming)
        decoder = self._framing.decoder() if by_lines else RawFraming(self._framing.max_message).decoder()
        lines = 0
        while True:
            chunk = os.read(self._descriptor, CHUNK)
            if not chunk:
                break
            messages = decoder.feed(chunk)
            stop = next((index for index, message in enumerate(messages) if is_exit(message)), None)
            for message in [b"".join([line + b"\n" for line in messages[:stop]])] if by_lines else messages[:stop]:
                self._send(message)
            if stop is not None:
                self._exit_at = f"line {lines + stop + 1} of the input" if by_lines else "a part of the input"
                self._goes_on = bool(messages[stop + 1 :] or decoder.pending or decoder.error)
                self._say_exit(messages[stop] + b"\n" if by_lines else messages[stop])
                return
            lines += len(messages)
            if decoder.error is not None:
                error = MessageTooLong(self._framing.max_message)
                error.args = (f"line {lines + 1} of the input is over {error.limit} bytes; it was not sent",)
                raise error
        rest = decoder.finish()
        if is_exit(rest):
            self._say_exit(rest)
        else:
            self._send(rest)

    def _send(self, data: bytes) -> None:
        if data:
            with self._changed:
                while self._outstanding > self.window:
                    self._changed.wait()
                self._expected.append(data)
                self._outstanding += len(data)
            self._connection.send(data)

    def _say_exit(self, data: bytes) -> None:
        self._farewell = data
        self._ended = True  # before the server can answer it by its own end
        self._connection.send(data)


def has_more(descriptor: int, seconds: float) -> bool:
    """Whether there is more input, or will be within so many seconds. It is left where it is: others may read it."""
    if os.isatty(descriptor):
        return False  # what is typed ahead is for the shell
    try:
        return bool(select.select([descriptor], [], [], seconds)[0] and unread(descriptor))
    except OSError:  # Windows asks sockets alone
        return False
