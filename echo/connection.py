"""One socket and one framing: messages in, messages out. The server's handlers and the client both sit on it.

It knows how to read, batch, send, and give up in time; it knows no protocol, no policy and no server.

The rules:

* One thread, the *owner*, reads (``receive``) and queues (``write``, ``flush``). Any thread may ``send``.
  The queue belongs to the owner alone and needs no lock; the socket's output does, so that messages of two
  threads never interleave (bpo-26721, eventlet #295).
* What is queued goes out in one call before the next read that may block: ten thousand pipelined lines cost
  a handful of system calls, one interactive line costs one.
* A deadline loses no byte: what came of a message stays in the decoder, and receiving again goes on
  (bpo-7322).
* Whatever goes wrong with the socket is raised as one of ``echo.exceptions``, with this connection on it, so that a
  handler can tell its own connection's failure from one of another connection that it uses.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
import weakref
from typing import Callable, List, Optional, Tuple, Type, TypeVar

from .exceptions import ConnectionClosed, EchoError, MessageTimeout, ReceiveTimeout, SendTimeout
from .framing import Framing
from .sockets import TIMED_OUT, buffered, is_dead, set_receive_timeout, set_send_timeout, unread

MIN_READ = 4 * 1024
MAX_READ = 64 * 1024
"""Bytes asked for in one read. A connection starts with the least, so that ten thousand idle ones are small, and
asks for four times as much when a read came back full, for a quarter when it came back nearly empty (Netty's
adaptive receive buffer). No more than that: glibc takes blocks from 128 KiB on from the system each time, and 64 KiB
lines came back at 12,400 a second with 256 KiB reads and at 30,300 with these."""

HIGH_WATER = 64 * 1024
"""Bytes of queued replies at which they go out although more messages are at hand, so that memory is bounded."""

_Error = TypeVar("_Error", bound=EchoError)


class Connection:
    """Messages over a connected stream socket, which has to be blocking (``settimeout(None)``).

    ``idle_timeout``: seconds to wait for the first byte of a message (``ReceiveTimeout``).
    ``message_timeout``: seconds from a message's first byte to its last (``MessageTimeout``).
    ``send_timeout``: seconds in which the peer takes no byte (``SendTimeout``).
    Each is None, no deadline, unless given.

    ``messages_in``, ``messages_out``, ``bytes_in`` and ``bytes_out`` count what has passed. ``input_ended``: this side
    has ended the input; ``peer_ended``: the peer has, and all of it was read; ``aborted``: this side has reset it.
    """

    clock = staticmethod(time.monotonic)
    """Seconds; ``message_timeout`` is measured with it."""

    def __init__(
        self,
        sock: socket.socket,
        framing: Framing,
        *,
        idle_timeout: Optional[float] = None,
        message_timeout: Optional[float] = None,
        send_timeout: Optional[float] = None,
    ) -> None:
        self.socket = sock
        self.framing = framing
        self.idle_timeout = idle_timeout
        self.message_timeout = message_timeout
        self.messages_in = self.messages_out = self.bytes_in = self.bytes_out = 0
        self._encode = framing.encode
        self._decoder = framing.decoder()
        self._recv: Callable[[int], bytes] = sock.recv
        self._read_size = MIN_READ
        self._shrink_below = 0  # bytes; a read of fewer is nearly empty
        self._queue: List[bytes] = []
        self._queued_bytes = 0
        self._output = threading.Lock()
        # Set once nothing more may be sent: how much of the last message went out is unknown, or this side is done.
        # What to raise then, not one exception for all threads, which would collect the tracebacks of all.
        self._broken: Optional[Tuple[Type[EchoError], str]] = None
        self._deadline: Optional[float] = None  # of the message that has begun
        self._paused: Optional[float] = None  # since when the owner does something else than wait for its rest
        self._armed: Optional[float] = None  # what the kernel was told last
        self.input_ended = False  # by end_input()
        self.peer_ended = False
        self.aborted = False
        self._arm(idle_timeout)
        if send_timeout is not None:
            set_send_timeout(sock, send_timeout)

    # Input, by the owner.

    def receive(self) -> List[bytes]:
        """Send what is queued, then wait for input; return the messages that one read completed, in order.

        An empty list is the end of the input; ``finish_input`` then tells what was left. Raises
        ``MessageTooLong`` when the messages before it have been returned, ``ReceiveTimeout``,
        ``MessageTimeout``, ``SendTimeout`` or ``ConnectionClosed``.
        """
        if self._queue:
            self.flush()
        if self._paused is not None:
            self._go_on(self._paused)
        decoder = self._decoder
        while True:
            if decoder.error is not None:
                raise self.failed(decoder.error)
            try:
                data = self._recv(self._read_size)
            except TIMED_OUT:
                raise self.failed(self._timed_out()) from None
            except OSError as exc:
                raise self.failed(ConnectionClosed(f"the connection was lost: {exc}")) from exc
            size = len(data)
            if not size:
                if self._output.locked() and is_dead(self.socket):
                    # The system tells of a reset once. Here it told a thread that is sending, which will say so in a
                    # moment; a socket that is dead keeps no sender waiting.
                    with self._output:
                        pass
                if self._broken is not None:
                    raise self._refusal()  # a send failed or we were aborted, and the input ended to say so
                self.peer_ended = not self.input_ended
                return []
            self.bytes_in += size
            if not self._shrink_below <= size < self._read_size:
                self._adapt(size)
            messages = decoder.feed(data)
            if decoder.pending or self._deadline is not None:
                self._keep_time(bool(messages))
            if messages:
                self.messages_in += len(messages)
                return messages

    def finish_input(self) -> bytes:
        """After the end of the input: the bytes, as they came, of a message that never ended; b"" if none."""
        return self._decoder.finish()

    def _adapt(self, size: int) -> None:
        if size < self._shrink_below:
            self._read_size //= 4
        else:
            self._read_size = min(4 * size, MAX_READ)
        self._shrink_below = self._read_size // 16 if self._read_size > MIN_READ else 0

    def _go_on(self, since: float) -> None:
        # What the owner did in the meantime is no slowness of the peer's.
        if self._deadline is not None:
            self._deadline += self.clock() - since
        self._paused = None

    def _keep_time(self, completed: bool) -> None:
        # Only a read that ended inside a message, or ended such a message, comes here: the clock costs
        # nothing where a read is a message.
        if not self._decoder.pending:
            self._deadline = None
            self._arm(self.idle_timeout)
        elif self.message_timeout is not None:
            now = self.clock()
            if completed or self._deadline is None:
                self._paused = now if completed else None
                self._deadline = now + self.message_timeout
                self._arm(self.message_timeout)
            elif now < self._deadline:
                self._arm(self._deadline - now)
            else:
                raise self.failed(self._timed_out())

    def _timed_out(self) -> EchoError:
        if self.message_timeout is None or not self._decoder.pending:
            return ReceiveTimeout(f"nothing arrived for {self.idle_timeout:g} s")
        self._paused = self.clock()  # whoever receives again has the whole time again
        self._deadline = self._paused + self.message_timeout
        self._arm(self.message_timeout)
        return MessageTimeout(f"a message was not complete after {self.message_timeout:g} s")

    def _arm(self, seconds: Optional[float]) -> None:
        if seconds != self._armed:
            set_receive_timeout(self.socket, seconds)
            self._armed = seconds

    # Output. write() and flush() are the owner's, send() is anyone's.

    def encode(self, message: bytes) -> bytes:
        """The bytes that carry a message. ``MessageTooLong`` or ``ValueError`` for one that the framing cannot carry,
        ``TypeError`` for what is none."""
        try:
            return self._encode(message)
        except Exception as exc:
            raise _explained(exc, message) from None

    def write(self, message: bytes) -> None:
        """Queue a message. It goes out with the next ``flush`` or ``receive``, or when much is queued.

        Raises what ``encode`` raises and, when much is queued, what ``flush`` raises.
        """
        try:  # not by encode(): one call more is 8 % of what a pipelined echo costs
            data = self._encode(message)
        except Exception as exc:
            raise _explained(exc, message) from None
        self._queue.append(data)
        self._queued_bytes += len(data)
        if self._queued_bytes >= HIGH_WATER:
            self.flush()

    def write_raw(self, data: bytes) -> None:
        """Send what is queued, and then bytes as they are, without framing, which count as no message."""
        self.flush()
        self.send_raw(data, 0)

    def flush(self) -> None:
        """Send what is queued. Raises ``SendTimeout`` or ``ConnectionClosed``."""
        queue = self._queue
        if queue:
            messages = len(queue)
            data = queue[0] if messages == 1 else b"".join(queue)
            queue.clear()
            self._queued_bytes = 0
            self.send_raw(data, messages)

    def send(self, message: bytes) -> None:
        """Send a whole message now, from any thread. Waits while the peer does not read, ``send_timeout`` at most.

        Raises what ``encode`` raises, before anything is sent; then ``SendTimeout`` or ``ConnectionClosed``.
        """
        self.send_raw(self.encode(message), 1)

    def send_raw(self, data: bytes, messages: int) -> None:
        """Send bytes that hold so many encoded messages: now, and from any thread, as ``send`` does."""
        with self._output:
            if self._broken is not None:
                raise self._refusal()
            # Counted before, so that whoever has a reply finds it counted.
            self.messages_out += messages
            self.bytes_out += len(data)
            try:
                self.socket.sendall(data)
            except OSError as exc:
                self.messages_out -= messages
                self.bytes_out -= len(data)
                if self._broken is not None:
                    pass  # abort() has said why
                elif isinstance(exc, TIMED_OUT):
                    self._broken = SendTimeout, "the peer does not read what is sent to it"
                else:
                    self._broken = ConnectionClosed, f"the connection was lost: {exc}"
                _shut(self.socket, socket.SHUT_RDWR)  # the owner may be reading
                raise self._refusal() from exc

    def finish_output(self) -> None:
        """Send what is queued, if the peer can be reached, and refuse whatever other threads want to send later.

        Waits for a message that another thread is sending: closing the socket under its hands could give its
        descriptor, and the rest of the message, to another connection. Nothing that the peer or the network does is
        raised.
        """
        try:
            self.flush()
        except EchoError:
            pass
        finally:
            with self._output:
                if self._broken is None:
                    self._broken = ConnectionClosed, "the session is over"

    # Ends.

    def end_output(self) -> None:
        """Half-close: the peer sees the end of our messages, and can go on sending its own. Raises as ``flush``."""
        self.flush()
        with self._output:
            _shut(self.socket, socket.SHUT_WR)

    def end_input(self) -> None:
        """End the input after what has already reached this host, and wake the owner; from any thread.

        On Linux a socket whose reading side was shut down still hands out what had arrived, and what keeps
        arriving; the count of unread bytes makes an end of that. Systems that drop the unread bytes instead
        (BSD, macOS) lose those.
        """
        if self.input_ended:
            return
        self.input_ended = True
        left = unread(self.socket)
        if left is not None:
            self._recv = _BoundedRead(self.socket, left)
        _shut(self.socket, socket.SHUT_RD)

    def abort(self) -> None:
        """Let the close of the socket be a reset, drop what is queued, and wake the owner; from any thread."""
        self.aborted = True
        self._broken = ConnectionClosed, "this side has reset the connection"
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            return  # closed already
        # A thread that is stuck sending is woken at the price of a FIN before the reset.
        _shut(self.socket, socket.SHUT_RDWR if self._output.locked() else socket.SHUT_RD)

    def _refusal(self) -> EchoError:
        assert self._broken is not None
        cls, text = self._broken
        return self.failed(cls(text))

    def failed(self, error: _Error) -> _Error:
        """Mark ``error`` as this connection's, for the caller to raise."""
        error._connection = weakref.ref(self)
        return error


class _BoundedRead:
    """``socket.recv`` up to a number of bytes, then the end of input.

    If the owner was inside a read while that number was taken, it is too high by what that read returned;
    harmless, since the reading side is shut and no further read can block. What a socket with TLS has taken from the
    system already was not counted, and has arrived, too; it comes first.
    """

    def __init__(self, sock: socket.socket, left: int) -> None:
        self._sock = sock
        self._left = left

    def __call__(self, size: int) -> bytes:
        taken = buffered(self._sock)
        if taken:
            return self._sock.recv(min(size, taken))
        data = self._sock.recv(min(size, self._left)) if self._left else b""
        self._left = max(0, self._left - len(data) - buffered(self._sock))
        return data


def _explained(exc: Exception, message: object) -> Exception:
    """What to raise for ``exc``, which a framing raised for that message."""
    if isinstance(message, (bytes, bytearray)):
        return exc
    return TypeError(f"a message is bytes, not {type(message).__name__}; encode it first")


def _shut(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:
        pass  # the peer was faster
