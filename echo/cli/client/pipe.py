"""Standard input to the server, and the replies to standard output, byte for byte.

One thread sends while the main thread receives and compares. A client that sends everything first and reads then would
block for ever as soon as the buffers on the way are full. Only the bytes on their way are kept in memory. The
connection is the caller's; this module opens none.

The timeout counts only the server's time: it runs while a reply is due and the main thread waits for it. It does not
run while standard input is idle, nor while standard output takes nothing. In that time the server may stop reading,
since its replies are not read. So a send has no timeout of its own: a server that does not read sends no replies,
either. A message has none either, under all framings: it would count the time in which the user has stopped this
process with Ctrl-Z.
"""

from __future__ import annotations

import collections
import os
import select
import threading
import time
from typing import Callable, Deque, List, Optional

from ...connection import Connection
from ...exceptions import ConnectionClosed, EchoError, EchoMismatch, MessageTooLong, ReceiveTimeout
from ...framing import CRLFFraming, Decoder, Framing, LineFraming, RawFraming
from ...protocol import is_exit
from ...sockets import is_tls, set_send_timeout, unread
from .. import streams
from .threads import start_thread

CHUNK = 64 * 1024
WINDOW = 64 * 1024 * 1024
"""Maximum number of bytes on their way. It is more than the systems' buffers hold, so that only a server that sends
nothing back reaches it."""

PATIENCE = 0.25
"""Seconds to wait for more input, or for its end, after an ``exit`` or when the server has ended the session. The input
may come from several programs, each of which starts when the one before it ends."""


TLS_PATIENCE = 1.0
"""Maximum time in seconds between the end of the input and that of the output, with TLS."""


class Pipe:
    """Streams ``descriptor`` over ``connection``, whose framing is ``wire(framing)``; ``write`` gets the replies.

    ``run`` raises ``EchoMismatch`` as soon as a reply differs from what was sent, ``MessageTooLong`` for input that the
    framing cannot carry, ``ConnectionClosed`` if the server left before everything was back or if there is input after
    an ``exit``, and ``ReceiveTimeout`` if replies are missing and nothing arrives within the connection's timeout.
    """

    window = WINDOW
    patience = PATIENCE
    tls_patience = TLS_PATIENCE
    clock = staticmethod(time.monotonic)

    def __init__(self, connection: Connection, framing: Framing, descriptor: int, write: Callable[[bytes], None]):
        self._connection = connection
        self._timeout = connection.idle_timeout
        self._framing = framing
        self._descriptor = descriptor
        self._write = write
        self._changed = threading.Condition()
        # Sent, and not back yet. Views, since the rest of a long message would be copied for each read.
        self._expected: Deque[memoryview] = collections.deque()
        self._outstanding = 0  # bytes in _expected
        self._due_since = 0.0  # when they became more than none
        self.returned = 0
        """Bytes of messages that are back."""
        self._exit_word = b""  # the "exit" that was sent; a server that does not know the word sends it back
        self._exit_at = ""  # where in the input it was
        self._in_parts = False  # whether the server may wait for more of the last message
        self._goes_on = False  # whether more input was read behind it
        self._error: Optional[Exception] = None
        self._ended = False  # all input was sent
        self._left = False  # the main thread waits for replies no more

    @staticmethod
    def wire(framing: Framing) -> Framing:
        """The framing of the connection: raw for lines, so that a last line without its end is sent as it is."""
        if isinstance(framing, CRLFFraming):
            return _CRLFStream(framing.max_message)
        return RawFraming(framing.max_message) if isinstance(framing, LineFraming) else framing

    @property
    def exit_sent(self) -> bool:
        """Whether an exit was sent that did not come back."""
        return bool(self._exit_word)

    def run(self) -> None:
        """Stream until the input has ended and all of it is back."""
        set_send_timeout(self._connection.socket, None)
        self._connection.message_timeout = None
        start_thread(self._feed, "echo-feed")
        try:
            self._receive()
        except BaseException:
            with self._changed:
                self._left = True
                on_their_way = self._outstanding
            if on_their_way:
                self._connection.abort()  # close() would wait for these bytes, and for a blocked sender
            raise

    def _receive(self) -> None:
        lost: Optional[ConnectionClosed] = None
        while True:
            try:
                messages = self._await_replies()
            except ConnectionClosed as exc:  # a reset is an end like any other if everything is back
                lost = exc
                break
            if not messages:
                break
            self._take(b"".join(messages))
        if not self._connection.framing.keeps_boundaries:
            rest = self._connection.finish_input()
            if not (self._expected and bytes(self._expected[0][:1]) == b"\n"):  # if so, it is half of a CR LF
                self._take(rest)
        with self._changed:
            if not self._outstanding:
                # A server may end the session with the last reply, before the end of the input was read.
                self._changed.wait_for(lambda: self._ended, self.patience)
        if lost is not None and (self._outstanding or not self._ended):
            raise lost
        if self._error is not None:
            raise self._error
        if not self._ended or self._outstanding:
            what = f"{self._outstanding} bytes did not come back" if self._outstanding else "not all input was sent"
            raise ConnectionClosed(f"the server ended the session; {what}")
        if self._exit_at and (self._goes_on or has_more(self._descriptor, self.patience)):
            raise EchoError(f"{self._exit_at} is an exit, which ends the session; what follows it was not sent")

    def _await_replies(self) -> List[bytes]:
        """Return what one read brought; nothing at the end of the session. Raises ``ReceiveTimeout`` if replies are
        due and nothing arrives in time."""
        began = self.clock()
        self._connection.idle_timeout = self._timeout
        while True:
            try:
                return self._connection.receive()
            except ReceiveTimeout:
                if self._error is not None:
                    raise self._error from None
                assert self._timeout is not None
                with self._changed:
                    missing, ended, due_since = self._outstanding, self._ended, self._due_since
                if not missing and ended:
                    return []  # everything is back; the server just does not end its side
                left = self._timeout
                if missing:
                    left += max(began, due_since) - self.clock()
                if left <= 0:
                    raise ReceiveTimeout(
                        f"nothing came back for {self._timeout:g} s; {missing} bytes are missing"
                    ) from None
                self._connection.idle_timeout = left

    def _take(self, data: bytes) -> None:
        """Write what came back, and compare it with what was sent."""
        if data:
            self._write(data)
        while data:
            with self._changed:
                if not self._expected and self._exit_word:
                    self._expected.append(memoryview(self._exit_word))
                    self._outstanding += len(self._exit_word)
                    self._exit_word = b""
                sent = self._expected.popleft() if self._expected else memoryview(b"")
                size = min(len(sent), len(data))
                if not size or bytes(sent[:size]) != data[:size]:
                    raise EchoMismatch(bytes(sent), data, self.returned)
                if size < len(sent):
                    self._expected.appendleft(sent[size:])
                self._outstanding -= size
                self.returned += size
                self._changed.notify_all()
            data = data[size:]

    def _feed(self) -> None:
        try:
            self._feed_all()
        except EchoError as exc:  # first: some of them are an OSError, too
            self._error = exc
        except OSError as exc:
            self._error = EchoError(f"cannot read standard input: {exc.strerror}")
        except Exception as exc:  # the main thread would wait for ever otherwise
            self._error = exc
        with self._changed:
            self._ended = True
            self._changed.notify()
            if not self._in_parts and self._outstanding and is_tls(self._connection.socket):
                # Many services, those of asyncio among them, take the end of TLS output for the end of the session, and
                # what they have not sent yet is lost.
                patience = self.tls_patience if self._timeout is None else min(self.tls_patience, self._timeout / 2)
                self._changed.wait_for(lambda: not self._outstanding or self._left, patience)
                self._due_since = self.clock()  # the server may have waited for this end
        try:
            self._connection.end_output()
        except EchoError:
            pass  # the receiving thread has met the same error

    def _feed_all(self) -> None:
        by_lines = isinstance(self._framing, LineFraming)
        decoder = self._framing.decoder() if by_lines else RawFraming(self._framing.max_message).decoder()
        lines = 0
        while True:
            chunk = streams.read(self._descriptor, CHUNK)
            if not chunk:
                break
            messages = decoder.feed(chunk)
            stop = next((index for index, message in enumerate(messages) if is_exit(message)), None)
            for message in [b"".join([line + b"\n" for line in messages[:stop]])] if by_lines else messages[:stop]:
                self._send(message)
            if stop is not None:
                self._exit_at = f"line {lines + stop + 1} of the input" if by_lines else "a part of the input"
                self._goes_on = bool(messages[stop + 1 :] or decoder.pending or decoder.error)
                self._send_exit(messages[stop] + b"\n" if by_lines else messages[stop])
                return
            lines += len(messages)
            if decoder.error is not None:
                error = MessageTooLong(self._framing.max_message)
                error.args = (f"line {lines + 1} of the input is over {error.limit} bytes; it was not sent",)
                raise error
        rest = decoder.finish()
        if is_exit(rest):
            self._send_exit(rest)
        else:
            self._in_parts = bool(rest)
            self._send(rest)

    def _send(self, data: bytes) -> None:
        if data:
            with self._changed:
                while self._outstanding > self.window:
                    self._changed.wait()
                if self._left:
                    raise ConnectionClosed("nobody waits for the reply")
                if not self._outstanding:
                    self._due_since = self.clock()
                self._expected.append(memoryview(data))
                self._outstanding += len(data)
            self._connection.send(data)

    def _send_exit(self, data: bytes) -> None:
        self._exit_word = data
        self._ended = True  # before the send, since the server answers by ending the session
        self._connection.send(data)


class _CRLFStream(RawFraming):
    """Raw bytes whose lines end with CR LF on the wire, and with LF in standard input and output."""

    def encode(self, message: bytes) -> bytes:
        return message.replace(b"\n", b"\r\n")

    def decoder(self) -> Decoder:
        return _CRLFStreamDecoder(self.max_message)


class _CRLFStreamDecoder(Decoder):
    def feed(self, data: bytes) -> List[bytes]:
        data = bytes(self.pending) + data
        known = data[:-1] if data.endswith(b"\r") else data  # the line feed after it may come with the next read
        self.pending[:] = data[len(known) :]
        return [known.replace(b"\r\n", b"\n")] if known else []


def has_more(descriptor: int, seconds: float) -> bool:
    """Whether there is more input, or will be within so many seconds. It is not read: it may be for another program."""
    if os.isatty(descriptor):
        return False  # input that was typed ahead is for the shell
    try:
        return bool(select.select([descriptor], [], [], seconds)[0] and unread(descriptor))
    except OSError:  # on Windows, select() works only for sockets
        return False
