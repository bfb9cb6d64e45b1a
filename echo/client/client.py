"""``connect()`` and ``Client``: messages to and from a server, on the framing that its handlers use.

It knows no terminal, and not the echo service's one word: to a client all messages are alike.
"""

from __future__ import annotations

import collections
import queue
import socket
import ssl
import threading
from typing import Any, Deque, Iterable, Iterator, List, Optional, Tuple, Union

from ..connection import Connection
from ..exceptions import ConnectionClosed, EchoError, EchoMismatch, IncompleteMessage, MessageTimeout, ReceiveTimeout
from ..framing import Framing, LineFraming
from ..protocol import DEFAULT_HOST, DEFAULT_PORT
from ..sockets import has_input, linger
from .endpoint import open_socket

_STEP = 0.05  # seconds; how soon it is noticed that a thread which seemed stuck was merely slow


def connect(
    address: Union[Tuple[str, int], str, bytes] = (DEFAULT_HOST, DEFAULT_PORT),
    *,
    framing: Optional[Framing] = None,
    timeout: Optional[float] = 10.0,
    ssl_context: Optional[ssl.SSLContext] = None,
    server_hostname: Optional[str] = None,
) -> Client:
    """Connect to ``address``, ``(host, port)`` or a Unix socket's path, and return a ``Client``.

    ``framing`` is ``LineFraming()`` unless given, and must be the server's. ``timeout``, in seconds, bounds the
    connecting, the handshake, each wait for a message, and each wait for the server to read; None waits for ever.
    With ``ssl_context`` (``ssl.create_default_context()``, say) the connection speaks TLS, and the server's certificate
    has to be for ``server_hostname``, which is the host of ``address`` unless given.
    Raises ``OSError`` (``ConnectionRefusedError``, ``TimeoutError``, ``socket.gaierror``, ``ssl.SSLError``) when there
    is no connection to be had, ``UnicodeError`` for what cannot be a host's name, ``ValueError`` for an ``ssl_context``
    that verifies a name where there is none.
    """
    if server_hostname is None and isinstance(address, tuple):
        server_hostname = address[0]
    return Client(open_socket(address, timeout, ssl_context, server_hostname), framing, timeout=timeout)


class Client:
    """Messages over a connected socket. Use it as ``with echo.connect(...) as client``.

    It takes the socket over. ``framing`` and ``timeout`` are as for ``connect``; ``connection`` is the ``Connection``
    over the socket, which counts what passes. ``send`` may be called from any thread, all else from one at a time.
    """

    def __init__(
        self, sock: socket.socket, framing: Optional[Framing] = None, *, timeout: Optional[float] = 10.0
    ) -> None:
        sock.settimeout(None)  # the deadlines are the connection's
        self.framing = LineFraming() if framing is None else framing
        self.connection = Connection(
            sock, self.framing, idle_timeout=timeout, message_timeout=timeout, send_timeout=timeout
        )
        self._messages: Deque[bytes] = collections.deque()
        self._end: Optional[EchoError] = None  # that was met while a message was being sent
        self._closed = False
        self._sender: Optional[_Sender] = None

    def send(self, message: bytes) -> None:
        """Send one message, whole, now.

        Raises ``MessageTooLong`` or ``ValueError`` before anything is sent if the framing cannot carry it,
        ``SendTimeout`` if the server does not read, ``ConnectionClosed`` if it is gone; ``TypeError`` for a ``str``.
        """
        if self._closed:
            raise ConnectionClosed("this client is closed")
        self.connection.send(message)

    def recv(self) -> bytes:
        """Wait for the next message and return it.

        Raises ``ConnectionClosed`` at the end of the session, ``IncompleteMessage`` if it ended inside a message,
        ``MessageTooLong`` for one over the framing's limit; ``ReceiveTimeout`` or ``MessageTimeout`` when ``timeout``
        is over, after which nothing is lost, and ``recv`` goes on.
        """
        if not self._messages:
            if self._closed:
                raise ConnectionClosed("this client is closed")
            if self._end is not None:
                raise self._end
            self._messages.extend(self._receive())
        return self._messages.popleft()

    def _receive(self) -> List[bytes]:
        """What one read brings, one message at least; raises what ``recv`` raises."""
        messages = self.connection.receive()
        if not messages:
            rest = self.connection.finish_input()
            ended = IncompleteMessage(rest) if rest else ConnectionClosed("the server has ended the session")
            raise self.connection.failed(ended)
        return messages

    def echo(self, message: bytes) -> bytes:
        """Send a message, wait for it to come back, and return it; ``EchoMismatch`` if something else comes back.

        Under a framing that keeps no boundaries the reply is put together until it is as long as the message.
        """
        self.send(message)
        return self._await_echo(message)

    def echo_many(self, messages: Iterable[bytes], window: int = 100) -> Iterator[bytes]:
        """Send many messages without waiting for each to come back, and yield them as they do, each compared.

        ``window``: how many are on their way at a time, at most; it bounds the memory, and ``messages``, which is read
        in the caller's thread, is at most so far ahead. Sending is done by a thread of its own, so that a server which
        stops reading until its replies are read never brings both sides to a halt. Raises what ``send``, ``recv`` and
        ``echo`` raise, and ``ValueError`` for a window below 1. When the iteration ends early, ``recv`` goes on with
        the replies to what was sent until then.
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
                    refused = exc  # to be raised when the replies to what was sent before it are back
                    break
                awaited.append(message)
                if len(awaited) == window:
                    yield self._await_echo(awaited.popleft(), bool(awaited))
            while awaited:
                yield self._await_echo(awaited.popleft(), bool(awaited))
            if refused is not None:
                raise refused

    def _await_echo(self, message: bytes, more: bool = False) -> bytes:
        """``more``: other replies follow, and may come in the same read."""
        reply = self.recv() if message or self.framing.keeps_boundaries else b""
        if not self.framing.keeps_boundaries:
            while len(reply) < len(message) and message.startswith(reply):
                try:
                    reply += self.recv()
                except EchoError:
                    if reply:
                        self._messages.appendleft(reply)  # recv() goes on with it
                    raise
            if more and len(reply) > len(message):
                self._messages.appendleft(reply[len(message) :])
                reply = reply[: len(message)]
        if reply != message:
            raise EchoMismatch(message, reply)
        return reply

    def __iter__(self) -> Iterator[bytes]:
        """The messages, until the server ends the session."""
        while True:
            try:
                yield self.recv()
            except ConnectionClosed:
                return

    def _take_in(self, seconds: float) -> bool:
        """Keep for ``recv`` what comes within so many seconds; false if nothing does, or the end."""
        if not has_input(self.connection.socket, seconds):
            return False
        try:
            self._messages.extend(self._receive())
        except (ReceiveTimeout, MessageTimeout):
            return False  # recv() goes on
        except EchoError as exc:
            self._end = exc
            self.connection.abort()  # the server is done, and may never read what our thread is stuck with
            return False
        return True

    def close(self) -> None:
        """End the session: let the server see the end, take in what it still sends, close. Never raises. A message that
        another thread is sending is waited for, as long as the server goes on taking it."""
        if not self._closed:
            self._closed = True
            if self._sender is not None:
                self._sender.stop()  # an echo_many() that was left standing; its thread may be stuck
            self.connection.finish_output()
            linger(self.connection.socket)
            self.connection.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()


class _Sender:
    """Sends what it is given in a thread of its own. The end of its block waits until that thread is done."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._queue: queue.SimpleQueue[Optional[bytes]] = queue.SimpleQueue()
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="echo-send", daemon=True)

    def put(self, message: bytes) -> None:
        self._queue.put(self._client.connection.encode(message))

    def _run(self) -> None:
        while not self._abandoned:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            data = [message for message in batch if message is not None]
            try:
                self._client.connection.send_raw(b"".join(data), len(data))
            except EchoError:
                return  # the receiving thread meets it, too
            if len(data) < len(batch):
                return

    def __enter__(self) -> _Sender:
        self._thread.start()
        self._client._sender = self
        return self

    def __exit__(self, cls: Optional[type], *exc_info: Any) -> None:
        self.stop(cls is not None)

    def stop(self, abandoned: bool = True) -> None:
        """Return when the thread has ended: after what it was given, or, if ``abandoned``, what it has begun with."""
        self._client._sender = None
        self._abandoned = abandoned
        self._queue.put(None)
        self._thread.join(_STEP)
        while self._thread.is_alive():  # the server does not read before its replies are read
            if not self._client._take_in(_STEP):
                self._thread.join(_STEP)
