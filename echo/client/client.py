"""``connect()`` and ``Client``: messages to and from a server, on the framing that its handlers use."""

from __future__ import annotations

import collections
import socket
from typing import Any, Deque, Iterator, Optional, Tuple

from ..arguments import DEFAULT_HOST, DEFAULT_PORT
from ..connection import Connection
from ..exceptions import ConnectionClosed, EchoMismatch, IncompleteMessage
from ..framing import Framing, LineFraming
from ..sockets import linger


def connect(
    address: Tuple[str, int] = (DEFAULT_HOST, DEFAULT_PORT),
    *,
    framing: Optional[Framing] = None,
    timeout: Optional[float] = 10.0,
) -> Client:
    """Connect to ``address`` and return a ``Client``.

    ``framing`` is ``LineFraming()`` unless given, and must be the server's. ``timeout``, in seconds, bounds the
    connecting, each wait for a message, and each wait for the server to read; None waits for ever.
    Raises ``OSError`` (``ConnectionRefusedError``, ``TimeoutError``, ``socket.gaierror``) when there is no
    connection to be had.
    """
    sock = socket.create_connection(address, timeout)
    sock.settimeout(None)  # the connection's deadlines are the kernel's
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Client(sock, framing, timeout=timeout)


class Client:
    """Messages over a connected socket. Use it as ``with echo.connect(...) as client``.

    ``send`` may be called from any thread, all else from one at a time.
    """

    def __init__(
        self, sock: socket.socket, framing: Optional[Framing] = None, *, timeout: Optional[float] = 10.0
    ) -> None:
        self.framing = LineFraming() if framing is None else framing
        self.connection = Connection(
            sock, self.framing, idle_timeout=timeout, message_timeout=timeout, send_timeout=timeout
        )
        self._messages: Deque[bytes] = collections.deque()
        self._closed = False

    def send(self, message: bytes) -> None:
        """Send one message, whole, now.

        Raises ``MessageTooLong`` or ``ValueError`` before anything is sent if the framing cannot carry it,
        ``SendTimeout`` if the server does not read, ``ConnectionClosed`` if it is gone.
        """
        if self._closed:
            raise ConnectionClosed("this client is closed")
        self.connection.send(message)

    def recv(self) -> bytes:
        """Wait for the next message and return it.

        Raises ``ConnectionClosed`` at the end of the session, ``IncompleteMessage`` if it ended inside a message,
        ``ReceiveTimeout`` or ``MessageTimeout`` in time; after these two nothing is lost, and ``recv`` goes on.
        """
        if not self._messages:
            if self._closed:
                raise ConnectionClosed("this client is closed")
            self._messages.extend(self.connection.receive())
            if not self._messages:
                rest = self.connection.finish_input()
                if rest:
                    raise IncompleteMessage(rest)
                raise ConnectionClosed("the server has ended the session")
        return self._messages.popleft()

    def echo(self, message: bytes) -> bytes:
        """Send a message, wait for it to come back, and return it; ``EchoMismatch`` if something else comes back.

        Under a framing that keeps no boundaries the reply is put together until it is as long as the message.
        """
        self.send(message)
        reply = self.recv() if message or self.framing.keeps_boundaries else b""
        while not self.framing.keeps_boundaries and len(reply) < len(message) and message.startswith(reply):
            reply += self.recv()
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

    def close(self) -> None:
        """End the session: let the server see the end, take in what it still sends, close. Never raises."""
        if not self._closed:
            self._closed = True
            self.connection.finish_output()
            linger(self.connection.socket)
            self.connection.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()
