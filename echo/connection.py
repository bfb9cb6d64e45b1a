"""One socket and one framing: messages in, messages out. The server's handlers and the client both use it.

A connection reads, batches and sends messages, and gives up in time. It knows no protocol, no policy and no server.

The rules:

* One thread, the *owner*, reads (``receive``) and queues (``write``, ``flush``). Any thread may ``send``. The queue
  belongs to the owner alone and needs no lock. The socket's output has a lock, so that the messages of two threads
  never mix (bpo-26721, eventlet #295).
* Queued messages go out in one call before the next read that may block. Ten thousand pipelined lines cost a handful
  of system calls, one interactive line costs one.
* A timeout loses no byte: the beginning of a message stays in the decoder, and the next ``receive`` goes on with it
  (bpo-7322).
* Every failure of the socket is raised as one of ``echo.exceptions`` and carries this connection. With that, a handler
  distinguishes a failure of its own connection from a failure of another one that it uses.

How a connection ends is one state, ``Connection.state``:

=============  ========================  ===========================  ======================================
state          entered when              ``receive()``                whoever closes the socket does first
=============  ========================  ===========================  ======================================
OPEN           the connection is made    waits for messages           ``linger``
PEER_ENDED     ``receive`` read the end  returns ``[]``               nothing: no more input can arrive
INPUT_ENDED    ``end_input`` is called   returns what had arrived,    ``linger`` with a ``delivery_timeout``
                                         then ``[]``
ABORTED        ``abort`` is called       raises ``ConnectionClosed``  nothing: the close is a reset
=============  ========================  ===========================  ======================================

::

    OPEN ──┬── PEER_ENDED ───┬── ABORTED
           ├── INPUT_ENDED ──┤
           └─────────────────┘

The state changes only along these lines. (When PEER_ENDED and INPUT_ENDED come at the same moment, the last one wins:
both are true.) Sending does not depend on it: a connection can send until a ``send`` fails, or until ``finish_output``
or ``abort``.
"""

from __future__ import annotations

import enum
import socket
import struct
import threading
import time
import weakref
from typing import Callable, List, Optional, Tuple, Type, TypeVar

from .exceptions import ConnectionClosed, EchoError, SendTimeout
from .framing import Framing
from .message_clock import MessageClock
from .sockets import (
    TIMED_OUT,
    buffered,
    is_dead,
    is_tls,
    is_unix,
    sends_all,
    set_send_timeout,
    share_tls,
    shut_down,
    stock_tls,
    unread,
    wait_for_room,
)

MIN_READ = 4 * 1024
MAX_READ = 64 * 1024
"""The smallest and largest number of bytes asked for in one read. A connection starts with the smallest, so that ten
thousand idle connections need little memory. It asks for four times as much after a read that came back full, and for a
quarter after one that came back nearly empty (Netty's adaptive receive buffer). The maximum is below 128 KiB because
glibc gets blocks of that size from the system each time: 64 KiB lines came back at 12,400 a second with reads of
256 KiB and at 30,300 with these."""

HIGH_WATER = 64 * 1024
"""Bytes of queued messages at which they are sent although more input is at hand, so that memory is bounded."""

_Error = TypeVar("_Error", bound=EchoError)


class State(enum.Enum):
    """How a connection ends; the module's table says what each value means."""

    OPEN = "open"
    PEER_ENDED = "peer ended"
    INPUT_ENDED = "input ended"
    ABORTED = "aborted"


OPEN, PEER_ENDED, INPUT_ENDED, ABORTED = State


class Connection:
    """Messages over a connected stream socket, which must be blocking (``settimeout(None)``).

    All timeouts are in seconds; the default, None, means no limit.

    ``idle_timeout``: maximum wait for the first byte of a message (``ReceiveTimeout``).
    ``message_timeout``: maximum time from the first byte of a message to its last (``MessageTimeout``).
    ``send_timeout``: maximum time in which the peer accepts no byte (``SendTimeout``).

    ``messages_in``, ``messages_out``, ``bytes_in`` and ``bytes_out`` count what was received and sent.
    """

    clock = staticmethod(time.monotonic)
    """Returns seconds; measures ``message_timeout``."""

    # Two fields, since other threads and signal handlers set them at any moment. If they were one, the owner could
    # overwrite an abort with PEER_ENDED.
    _end = OPEN
    aborted = False
    """Whether this side has reset the connection."""

    _over = False  # the owner reads and writes no more; whoever closes the socket may still read from it

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
        self.messages_in = self.messages_out = self.bytes_in = self.bytes_out = 0
        self._encode = framing.encode
        self._encode_many = framing.encode_many
        self._decoder = framing.decoder()
        share_tls(sock)
        self._recv: Callable[[int], bytes] = sock.recv
        self._send_all = sends_all(sock)
        self._read_size = MIN_READ
        self._shrink_below = 0  # bytes; a read of fewer is nearly empty
        self._queue: List[bytes] = []  # encoded
        self._queued_bytes = self._queued_messages = 0
        self._output = threading.Lock()
        # Why nothing more may be sent: part of a message may be missing, or this side is done. It is not an exception:
        # each thread raises its own, since a shared one would collect the tracebacks of all.
        self._broken: Optional[Tuple[Type[EchoError], str]] = None
        self._clock = MessageClock(sock, idle_timeout, message_timeout, self.clock)
        self.send_timeout = send_timeout
        if send_timeout is None:
            wait_for_room(sock, None)
        else:
            set_send_timeout(sock, send_timeout)

    @property
    def idle_timeout(self) -> Optional[float]:
        """The owner may set it, for the reads that follow."""
        return self._clock.idle_timeout

    @idle_timeout.setter
    def idle_timeout(self, seconds: Optional[float]) -> None:
        self._clock.change_idle_timeout(seconds)

    @property
    def message_timeout(self) -> Optional[float]:
        """The owner may set it. A message that has begun gets the whole new time."""
        return self._clock.message_timeout

    @message_timeout.setter
    def message_timeout(self, seconds: Optional[float]) -> None:
        self._clock.change_message_timeout(seconds, inside=bool(self._decoder.pending))

    @property
    def state(self) -> State:
        """How the connection ends, so far: see the table at the top of this module."""
        return ABORTED if self.aborted else self._end

    @property
    def peer_ended(self) -> bool:
        """Whether the peer has ended the input, and all of it was read."""
        return self._end is PEER_ENDED

    @property
    def input_ended(self) -> bool:
        """Whether this side has ended the input."""
        return self._end is INPUT_ENDED

    # Input, by the owner.

    def receive(self) -> List[bytes]:
        """Send queued messages, then wait for input. Return the messages that one read completed, in order.

        An empty list means the end of the input; ``finish_input`` then returns the unfinished message. Raises
        ``ReceiveTimeout``, ``MessageTimeout``, ``SendTimeout`` or ``ConnectionClosed``; ``MessageTooLong`` once the
        messages before it have been returned.
        """
        if self._queue:
            self.flush()
        clock = self._clock
        if clock.left is not None:
            clock.resume()
        decoder = self._decoder
        while True:
            if decoder.error is not None:
                raise self.failed(decoder.error)
            try:
                data = self._recv(self._read_size)
            except TIMED_OUT:
                raise self.failed(clock.timed_out()) from None
            except OSError as exc:
                raise self.failed(ConnectionClosed(f"the connection was lost: {exc}")) from exc
            size = len(data)
            if not size:
                self._await_failing_sender()
                if self._broken is not None:
                    raise self._refusal()  # a failed send or an abort has ended the input to wake us
                if self._end is OPEN:
                    self._end = PEER_ENDED
                return []
            self.bytes_in += size
            if not self._shrink_below <= size < self._read_size:
                self._adapt(size)
            messages = decoder.feed(data)
            if decoder.pending:
                if not clock.part_arrived(bool(messages)):
                    raise self.failed(clock.timed_out())
            elif clock.left is not None:
                clock.message_ended()
            if messages:
                self.messages_in += len(messages)
                return messages

    def finish_input(self) -> bytes:
        """Return the undecoded bytes of the message that the end of the input cut off; b"" if there is none."""
        return self._decoder.finish()

    def _await_failing_sender(self) -> None:
        """The system reports a reset only once. If a thread that is sending got it, wait until it has set ``_broken``,
        under its lock. That is soon free: a dead socket never blocks a sender."""
        if self._output.locked() and is_dead(self.socket):
            with self._output:
                pass

    def _adapt(self, size: int) -> None:
        if size < self._shrink_below:
            self._read_size //= 4
        else:
            self._read_size = min(4 * size, MAX_READ)
        self._shrink_below = self._read_size // 16 if self._read_size > MIN_READ else 0

    # Output. Only the owner calls write() and flush(), any thread send().

    def encode(self, message: bytes) -> bytes:
        """Return the bytes that carry a message.

        Raises ``MessageTooLong`` or ``ValueError`` if the framing cannot carry it, ``TypeError`` if ``message`` is not
        bytes.
        """
        try:
            return self._encode(message)
        except Exception as exc:
            raise _explained(exc, message) from None

    def write(self, message: bytes) -> None:
        """Queue a message. It is sent by the next ``flush`` or ``receive``, or when ``HIGH_WATER`` bytes are queued.

        Raises the errors of ``encode`` and, if it sends, those of ``flush``.
        """
        try:  # does not call encode(): a call more is 8 % of a pipelined echo
            data = self._encode(message)
        except Exception as exc:
            raise _explained(exc, message) from None
        self._queue.append(data)
        self._queued_messages += 1
        self._queued_bytes += len(data)
        if self._queued_bytes >= HIGH_WATER:
            self.flush()

    def write_many(self, messages: List[bytes]) -> None:
        """Queue messages, at least one, as ``write`` does each."""
        try:
            data = self._encode_many(messages)
        except Exception:
            for message in messages:
                self.write(message)  # raises the error of the one that cannot be carried, after those before it
            return
        self._queue.append(data)
        self._queued_messages += len(messages)
        self._queued_bytes += len(data)
        if self._queued_bytes >= HIGH_WATER:
            self.flush()

    def write_raw(self, data: bytes) -> None:
        """Send queued messages, then ``data`` as it is, without framing. It does not count as a message."""
        self.flush()
        self.send_raw(data, 0)

    def flush(self) -> None:
        """Send queued messages. Raises ``SendTimeout`` or ``ConnectionClosed``."""
        queue = self._queue
        if queue:
            data = b"".join(queue)  # of one: the same object, not a copy
            queue.clear()
            messages = self._queued_messages
            self._queued_bytes = self._queued_messages = 0
            self.send_raw(data, messages)

    def send(self, message: bytes) -> None:
        """Send a whole message now, from any thread. Blocks while the peer does not read, at most ``send_timeout``.

        Raises the errors of ``encode``, before anything is sent, and those of ``flush``.
        """
        self.send_raw(self.encode(message), 1)

    def send_raw(self, data: bytes, messages: int) -> None:
        """Send ``data``, which holds so many encoded messages, as ``send`` does."""
        with self._output:
            if self._broken is not None:
                raise self._refusal()
            # Counted before it is sent, so that a client that has a reply finds it in the statistics.
            self.messages_out += messages
            self.bytes_out += len(data)
            try:
                self._send_all(data)
            except BaseException as exc:  # a signal handler may raise anything, in the middle of a message
                self.messages_out -= messages
                self.bytes_out -= len(data)
                failed = isinstance(exc, OSError)
                if self._broken is not None:
                    pass  # abort() has set it
                elif isinstance(exc, TIMED_OUT):
                    self._broken = SendTimeout, "the peer does not read what is sent to it"
                else:
                    why = f"the connection was lost: {exc}" if failed else "a message was interrupted and cut off"
                    self._broken = ConnectionClosed, why
                # The owner may be reading. The peer of a Unix socket that drains has ended its input, and has not ended
                # its replies.
                if not (isinstance(exc, BrokenPipeError) and is_unix(self.socket)):
                    _shut(self.socket, socket.SHUT_RDWR)
                if not failed:
                    raise
                raise self._refusal() from exc

    def finish_output(self) -> None:
        """Send queued messages if the peer can be reached, and make every later ``send`` raise ``ConnectionClosed``.

        Waits for a message that another thread is sending: if the socket were closed meanwhile, another connection
        could get its descriptor, and with it the rest of the message. Does not raise ``EchoError``.
        """
        self._over = True
        try:
            if self._queue:
                self.flush()
        except EchoError:
            pass
        finally:
            with self._output:
                if self._broken is None:
                    self._broken = ConnectionClosed, "the session is over"

    # Ends.

    def let_go(self) -> None:
        """In a forked child: what is queued is its parent's to send, and so is what another thread is sending."""
        self._queue.clear()
        self._queued_bytes = self._queued_messages = 0
        self._output = threading.Lock()

    def end_output(self) -> None:
        """Half-close: the peer sees the end of our messages, and can go on sending. Raises the errors of ``flush``."""
        self.flush()
        with self._output:
            _shut(self.socket, socket.SHUT_WR)

    def end_input(self) -> None:
        """End the input after the bytes that have already reached this host, and wake the owner; from any thread.

        On Linux a socket whose reading side is shut down still returns what had arrived, and what goes on arriving; the
        number of unread bytes says where to end. Other systems (BSD, macOS) drop the unread bytes.
        """
        if self._over or self.state is not OPEN:
            return
        self._end = INPUT_ENDED
        if self._over:  # finish_output() came between these lines: its caller sees _end, or has begun to read
            return
        left = unread(self.socket)
        if left is not None:
            self._recv = _BoundedRead(self.socket, left)
        _shut(self.socket, socket.SHUT_RD)

    def abort(self) -> None:
        """Turn the close of the socket into a reset, drop unsent data, and wake the owner; from any thread."""
        self._broken = ConnectionClosed, "this side has reset the connection"
        self.aborted = True
        self._recv = _nothing
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            return  # closed already
        # Waking a thread that is stuck sending costs a FIN before the reset; so does waking one that closes the socket
        # and waits until the peer has everything, after end_input() has shut the reading side already.
        is_stuck = self._output.locked() or (self._over and self._end is INPUT_ENDED)
        _shut(self.socket, socket.SHUT_RDWR if is_stuck else socket.SHUT_RD)

    def _refusal(self) -> EchoError:
        assert self._broken is not None
        cls, text = self._broken
        return self.failed(cls(text))

    def failed(self, error: _Error) -> _Error:
        """Mark ``error`` as this connection's, for the caller to raise."""
        error._connection = weakref.ref(self)
        return error


def _nothing(size: int) -> bytes:
    """``socket.recv`` at the end of input. The system's would go on returning what arrives (Linux)."""
    return b""


class _BoundedRead:
    """``socket.recv`` up to a number of bytes, then the end of input.

    It takes the place of ``recv`` from the owner's next read on. The number is too high if the owner was inside a read
    while it was taken. That is harmless: the reading side is shut, so that no further read can block. Bytes that a TLS
    socket had already taken from the system are not in the number. The decrypted ones come first; the first read may
    also return a record of which a part had been taken, and does not count.
    """

    def __init__(self, sock: socket.socket, left: int) -> None:
        self._sock = sock
        self._left = left
        self._counts = not is_tls(sock)

    def __call__(self, size: int) -> bytes:
        taken = buffered(self._sock)
        if taken:
            return self._sock.recv(min(size, taken))
        if not unread(self._sock):
            self._left = 0  # a read of the end would make OpenSSL send an alert, and nothing after it
        data = self._sock.recv(min(size, self._left)) if self._left else b""
        if self._counts:
            self._left = max(0, self._left - len(data) - buffered(self._sock))
        self._counts = True
        return data


def _explained(exc: Exception, message: object) -> Exception:
    """Return the exception to raise if encoding ``message`` raised ``exc``: a clear one if it is not bytes."""
    if isinstance(message, (bytes, bytearray)):
        return exc
    hint = "; encode it first, with .encode()" if isinstance(message, str) else ""
    return TypeError(f"a message is bytes, not {type(message).__name__}{hint}")


def _shut(sock: socket.socket, how: int) -> None:
    try:
        if stock_tls(sock) is not None:
            shut_down(sock, how)
        else:
            sock.shutdown(how)
    except OSError:
        pass  # the peer or another thread was faster
