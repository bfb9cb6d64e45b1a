"""``connect()`` and ``Client``: messages to and from a server, on the framing that its handlers use.

It knows no terminal and not the word that ends a session: to a client all messages are alike.
"""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import socket
import ssl
import time
from typing import Any, Deque, Dict, Iterable, Iterator, Optional, Tuple, Union

from ..beginning import Thread
from ..connection import Connection
from ..exceptions import (
    ConnectionClosed,
    EchoError,
    EchoMismatch,
    IncompleteMessage,
    MessageTimeout,
    MessageTooLong,
    ReceiveTimeout,
)
from ..framing import Framing, LineFraming
from ..protocol import DEFAULT_HOST, DEFAULT_PORT
from ..sockets import (
    LINGER_SILENCE,
    LINGER_TIMEOUT,
    SEND_TIMEOUT,
    has_input,
    has_room,
    keep_urgent_data,
    linger,
    not_taken,
    set_send_timeout,
)
from .endpoint import open_socket

_FITS = 64 * 1024  # bytes that any server can send while its client does not read
_GLANCE = 0.001  # seconds to wait for what is true already
_STEP = 0.05  # seconds between two looks at whether the sending thread is stuck or was only slow

REPLIES_TIMEOUT = 60.0
"""Maximum time in seconds that ``close()`` waits for a server that owes replies: it would drop the messages that it has
not handled yet when it finds the client gone."""


def connect(
    address: Union[Tuple[str, int], str, bytes] = (DEFAULT_HOST, DEFAULT_PORT),
    *,
    framing: Optional[Framing] = None,
    timeout: Optional[float] = 10.0,
    ssl_context: Optional[ssl.SSLContext] = None,
    server_hostname: Optional[str] = None,
) -> Client:
    """Connect to a server and return a ``Client``.

    ``address``: ``(host, port)`` or the path of a Unix socket; default: ``("127.0.0.1", 65432)``.
    ``framing``: the framing of the server; default: ``LineFraming()``.
    ``timeout``: maximum time in seconds to connect, with the look-up of the host and all its addresses, to shake hands,
    to wait for a message, and to wait until the server reads (default: 10), each for itself; None: no limit.
    ``ssl_context``: use TLS with this context, for example ``ssl.create_default_context()``; default: None, no TLS.
    ``server_hostname``: the name that the server's certificate must have; default: the host of ``address``.

    Raises ``OSError`` (``ConnectionRefusedError``, ``TimeoutError``, ``socket.gaierror``, ``ssl.SSLError``) if it
    cannot connect, ``UnicodeError`` if the host is not a valid name, and ``ValueError`` if ``ssl_context`` verifies a
    name and none is known, if it ignores the revocation lists that it has, if a name is given without a context, if the
    port is over 65535, or if ``address`` is a string like ``"127.0.0.1:65432"``.
    """
    if ssl_context is None and server_hostname is not None:
        raise ValueError("server_hostname needs ssl_context; without that, nothing is encrypted or verified")
    if ssl_context is not None and not hasattr(ssl_context, "wrap_bio"):
        raise TypeError(f"ssl_context is {ssl_context!r}; expected a context, like ssl.create_default_context()")
    if server_hostname is None and isinstance(address, tuple):
        server_hostname = address[0]
    return Client(open_socket(address, timeout, ssl_context, server_hostname), framing, timeout=timeout)


class Client:
    """Messages over a connected socket. Use it as ``with echo.connect(...) as client``.

    The client owns the socket and closes it. ``framing`` and ``timeout`` are as for ``connect``. ``connection`` is the
    ``Connection`` over the socket, which counts messages and bytes. Any thread may call ``send``. Call the other
    methods from one thread at a time.
    """

    def __init__(
        self, sock: socket.socket, framing: Optional[Framing] = None, *, timeout: Optional[float] = 10.0
    ) -> None:
        sock.settimeout(None)  # the connection sets timeouts of its own
        keep_urgent_data(sock)
        self.framing = LineFraming() if framing is None else framing
        self.connection = _Connection(
            sock, self.framing, idle_timeout=timeout, message_timeout=timeout, send_timeout=timeout
        )
        self._timeout = self._delivery_timeout = timeout
        self._linger_timeout = LINGER_TIMEOUT
        # Whether close() waits for replies that the server owes. Not for those to messages that went out by way of
        # ``connection``: whoever sent these, such as a terminal, has waited as long as it wanted.
        self._patient = False
        self._limit = self.framing.max_sent
        if self._limit is None and self.framing.keeps_boundaries:
            # The server's limit is most likely the same. It would end the session, and not say why.
            self._limit = self.framing.max_message
        self._messages: Deque[bytes] = collections.deque()
        self._end: Optional[EchoError] = None  # an error that was met while sending, for recv() to raise
        self._closed = False
        self._process = os.getpid()
        self._sender: Optional[_Sender] = None

    def send(self, message: bytes) -> None:
        """Send a whole message now.

        Raises ``TypeError`` if ``message`` is not bytes, ``ValueError`` if the framing cannot carry it, and
        ``MessageTooLong`` if it is longer than the framing's ``max_sent`` (default: its ``max_message``), before
        anything is sent. Raises ``SendTimeout`` if the server does not read, and ``ConnectionClosed`` if the connection
        is lost or closed.
        """
        if self._closed:
            raise ConnectionClosed("this client is closed")
        self._patient = True
        self.connection.send_raw(self._encode(message), 1)

    def _encode(self, message: bytes) -> bytes:
        data = self.connection.encode(message)
        if self._limit is not None and len(message) > self._limit:
            raise MessageTooLong(self._limit)
        return data

    def recv(self) -> bytes:
        """Wait for the next message and return it.

        Raises ``ConnectionClosed`` at the end of the session, ``IncompleteMessage`` if it ended inside a message, and
        ``MessageTooLong`` if a message is longer than the framing allows. Raises ``ReceiveTimeout`` or
        ``MessageTimeout`` after ``timeout`` seconds; no byte is lost then, and ``recv`` can be called again. So it can
        if a signal handler's exception, like ``KeyboardInterrupt``, has ended the wait; if it has ended the work on
        bytes that had come, each later ``recv`` raises ``ConnectionClosed``. Only over an ``ssl.SSLSocket`` of your
        own, a part of a message may be missing then.
        """
        if not self._messages:
            if self._closed:
                raise ConnectionClosed("this client is closed")
            if self._end is not None:
                raise self._end
            self._receive()
        message = self._messages[0]
        del self._messages[0]  # not popleft(): signal handlers run after a call, and one may raise
        return message

    def _receive(self) -> None:
        """Add the messages of one read, at least one, to those for ``recv``. Raises the errors of ``recv``."""
        unhandled = self.connection.unhandled
        if unhandled:
            raise self.connection.failed(ConnectionClosed("an earlier read was interrupted, and its bytes are lost"))
        try:
            messages = self.connection.receive()
            if not messages:
                rest = self.connection.finish_input()
                ended = IncompleteMessage(rest) if rest else ConnectionClosed("the server has ended the session")
                raise self.connection.failed(ended)
            self._messages.extend(messages)
        except BaseException as exc:
            self._patient = False  # the server has had its time, or Ctrl-C has ended it
            if isinstance(exc, EchoError):
                unhandled.clear()
            raise
        unhandled.clear()

    def echo(self, message: bytes) -> bytes:
        """Send a message, wait for its echo, and return it. Raises ``EchoMismatch`` if the reply is different.

        If the framing keeps no boundaries, replies are joined until they are as long as the message.
        """
        if not self.framing.keeps_boundaries and len(self._encode(message)) > _FITS:
            (reply,) = self.echo_many([message])  # the server may stop reading until the first replies are read
            return reply
        self.send(message)
        return self._await_echo(message)

    def echo_many(self, messages: Iterable[bytes], window: int = 100) -> Iterator[bytes]:
        """Send many messages without waiting for each echo. Compare the replies and yield them in order.

        ``window``: maximum number of messages without a reply (default: 100). It limits the memory, and how far ahead
        ``messages`` is read. ``messages`` is read in the caller's thread.

        A separate thread sends. Otherwise both sides could block for ever, because a server may stop reading until its
        replies are read. For the same reason ``timeout`` does not run while the caller waits for no reply. If the
        iteration ends early, ``recv`` returns the replies to the messages sent until then. Raises the errors of
        ``echo``, and ``ValueError`` if ``window`` is below 1.
        """
        if window < 1:
            raise ValueError(f"window is {window!r}; at least one message must be on its way")
        with _Sender(self) as sender:
            awaited: Deque[bytes] = collections.deque()
            refused: Optional[Exception] = None
            for message in messages:
                try:
                    sender.put(message)
                except (ValueError, EchoError) as exc:
                    refused = exc  # raised after the replies to the messages before it
                    break
                awaited.append(message)
                if len(awaited) == window:
                    yield self._await_echo(awaited.popleft(), bool(awaited))
            while awaited:
                yield self._await_echo(awaited.popleft(), bool(awaited))
            if refused is not None:
                raise refused

    def _await_echo(self, message: bytes, more: bool = False) -> bytes:
        """``more``: other replies follow, and may arrive in the same read."""
        reply = self.recv() if message or self.framing.keeps_boundaries else b""
        if not self.framing.keeps_boundaries:
            parts = [reply]
            size = len(reply)
            while size < len(message) and message.startswith(parts[-1], size - len(parts[-1])):
                try:
                    parts.append(self.recv())
                except BaseException:  # of a signal handler, too
                    if size:
                        self._messages.appendleft(b"".join(parts))  # for the next recv()
                    raise
                size += len(parts[-1])
            reply = b"".join(parts)
            if more and len(reply) > len(message):
                self._messages.appendleft(reply[len(message) :])
                reply = reply[: len(message)]
        if reply != message:
            raise EchoMismatch(message, reply)
        return reply

    def __iter__(self) -> Iterator[bytes]:
        """Yield the messages until the server ends the session."""
        while True:
            try:
                yield self.recv()
            except ConnectionClosed:
                return

    def _take_in(self, seconds: float) -> bool:
        """Wait at most so many seconds for messages and keep them for ``recv``. Return whether any arrived."""
        if not has_input(self.connection.socket, seconds):
            return False
        try:
            self._receive()
        except (ReceiveTimeout, MessageTimeout):
            return False  # recv() goes on with the message
        except EchoError as exc:
            self._end = exc
            self.connection.abort()  # wake our thread, since this server may never read what it sends
            return False
        return True

    def close(self) -> None:
        """End the session: half-close, read and drop what the server still sends, then close. Never raises.

        Waits for messages that are on their way, and for one that another thread is sending, as long as the server
        accepts something within ``timeout`` seconds. If fewer messages have come back than were sent, and no ``recv``
        has failed or was interrupted since, the server may have some to handle. Then this waits until the server ends
        its side: at most ``timeout`` seconds without a byte from it, and a minute in all. To be sure that it has
        handled all, receive the replies. An exception that ends the ``with`` block waits for none of these. In a child
        that was forked since the client was made, this only closes: the session is the parent's.
        """
        if self._closed:
            return
        self._closed = True
        connection = self.connection
        try:
            if self._process == os.getpid():
                if self._sender is not None:
                    self._sender.stop()  # of an echo_many() that was not iterated to its end; it may be stuck
                connection.finish_output()
                limits: Dict[str, Any] = {"timeout": self._linger_timeout}
                if self._patient and self._is_owed_replies():
                    patience = REPLIES_TIMEOUT if self._timeout is None else max(LINGER_SILENCE, self._timeout)
                    limits = {"silence": min(patience, REPLIES_TIMEOUT), "timeout": REPLIES_TIMEOUT}
                linger(connection.socket, send_timeout=self._delivery_timeout, until_read=True, **limits)
        finally:
            connection.socket.close()

    def _is_owed_replies(self) -> bool:
        connection = self.connection
        if self.framing.keeps_boundaries:
            return connection.messages_in < connection.messages_out
        return connection.bytes_in < connection.bytes_out

    def __enter__(self) -> Client:
        return self

    def __exit__(self, cls: Optional[type] = None, *exc_info: Any) -> None:
        if cls is not None:  # Ctrl-C or a timeout, for example: do not wait once more
            self._delivery_timeout, self._linger_timeout, self._patient = 0.0, LINGER_SILENCE, False
        self.close()


class _Connection(Connection):
    """One whose ``receive`` may be interrupted: a signal handler may raise anything, after the bytes have left the
    socket and before they are messages. The next message would begin in the middle of one.

    ``unhandled``: bytes that were read; whoever has handled them clears it. It is empty if a read was interrupted while
    it waited: then nothing is lost.
    """

    def __init__(self, sock: socket.socket, framing: Framing, **timeouts: Optional[float]) -> None:
        super().__init__(sock, framing, **timeouts)
        self.unhandled: Deque[bytes] = collections.deque(maxlen=1)
        self._recv = self._keep

    def _keep(self, size: int) -> bytes:
        unhandled = self.unhandled
        unhandled.clear()  # those before are in the decoder
        unhandled.extend(map(self.socket.recv, (size,)))  # in C: no signal handler runs between the read and this
        return unhandled[0]


class _Sender:
    """Sends messages in a thread of its own. Leaving the ``with`` block waits for that thread.

    It sends without a timeout: a server that waits until its replies are read is not slow, and the caller may take its
    time between two replies. A server that reads nothing sends no reply either, and ``recv`` or ``stop`` notices.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._queue: queue.SimpleQueue[Optional[bytes]] = queue.SimpleQueue()
        self._abandoned = False
        self._thread = Thread(target=self._run, name="echo-send", daemon=True)

    def put(self, message: bytes) -> None:
        self._client._patient = True
        self._queue.put(self._client._encode(message))

    def _run(self) -> None:
        while not self._abandoned:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            data = [message for message in batch if message is not None]
            try:
                self._client.connection.send_raw(b"".join(data), len(data))
            except EchoError:
                return  # the receiving thread gets the error too
            if len(data) < len(batch):
                return

    def __enter__(self) -> _Sender:
        self._thread.start()  # first: the system may have no thread now, and then the limit stays
        self._limit_sends(None)
        self._client._sender = self
        return self

    def __exit__(self, cls: Optional[type], *exc_info: Any) -> None:
        self.stop(cls is not None)

    def stop(self, abandoned: bool = True) -> None:
        """Wait for the thread: until it has sent everything or, if ``abandoned``, only what it has begun to send.

        It may be stuck until replies are read. The connection is lost if the server neither reads nor sends in time, or
        if a signal handler's exception ends the wait: nothing else would wake the thread, and ``close`` waits for it.
        """
        client = self._client
        client._sender = None
        self._abandoned = abandoned
        self._queue.put(None)
        try:
            self._join(client._timeout if client._timeout is not None or not abandoned else SEND_TIMEOUT)
        except BaseException:
            if self._is_stuck():
                client.connection.abort()
            raise
        finally:
            self._limit_sends(client._timeout)

    def _join(self, patience: Optional[float]) -> None:
        """``patience``: maximum time in seconds in which the server neither reads nor sends; None: no limit."""
        client = self._client
        sock = client.connection.socket
        self._thread.join(_STEP)
        before, moved_at = not_taken(sock), time.monotonic()
        while self._thread.is_alive():
            received = client._take_in(_STEP)
            now, left = time.monotonic(), not_taken(sock)
            if received or left != before:
                before, moved_at = left, now
            elif patience is not None and now - moved_at >= patience and self._is_stuck():
                client.connection.abort()
            if not received:
                self._thread.join(_STEP)

    def _is_stuck(self) -> bool:
        """Whether the thread waits for the server. With room, it only waits for a processor."""
        return self._thread.is_alive() and not has_room(self._client.connection.socket, _GLANCE)

    def _limit_sends(self, seconds: Optional[float]) -> None:
        with contextlib.suppress(OSError):  # the client is closed
            set_send_timeout(self._client.connection.socket, seconds)
