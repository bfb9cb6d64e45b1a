"""The handlers: a session as hooks and actions, and the echo protocol as their first use.

A handler knows its session and nothing of how the server accepts, counts or stops. It runs on ``echo.Server``
and, less the drain, on any ``socketserver`` server.
"""

from __future__ import annotations

import logging
import socket
import socketserver
from threading import get_ident
from typing import Any, ClassVar, Optional

from .connection import Connection
from .exceptions import ConnectionClosed, EchoError, IncompleteMessage, MessageTooLong
from .framing import Framing, LineFraming
from .protocol import EXIT_WORD, is_exit
from .sockets import INET, linger
from .text import format_address

log = logging.getLogger("echo.session")


class MessageRequestHandler(socketserver.StreamRequestHandler):
    """A session of messages. Subclass it, and write ``message_received``::

        class Upper(echo.MessageRequestHandler):
            def message_received(self, message):
                self.send(message.upper())

    The life of a session, in the session's own thread:

    1. The server has accepted the client and made this object. ``connection_made()``: nothing has been read.
    2. ``message_received(message)``, once for each message, in order, one at a time. It may take its time: only
       its own client waits. Replies are collected and go out together before the next read that may block, when
       much has been collected, or at ``flush()``.
    3. ``eof_received(rest)`` if the client has ended its input. It may still be reading: replies arrive.
    4. ``connection_lost(reason)``, exactly once for each ``connection_made``, even for one that raised. What is sent
       here still reaches a client that reads.
    5. The server half-closes, takes in what the client still sends for a moment, and closes.

    **Ends.** ``reason`` is ``exit`` (this side called ``close``), ``eof``, ``incomplete`` (end of input inside a
    message), ``idle``, ``slow`` (a message that does not end, a client that does not read), ``too-long``, ``drain``
    (the server stops; what had arrived was answered), ``reset`` (the client is gone, or this side called ``abort``) or
    ``error``.

    **Exceptions.** One that leaves a hook ends this session and no other, as ``error``; the server logs it once, with
    the client's address, and lives on. Replies sent before it are delivered. One that leaves ``connection_lost`` is
    logged as well, and the session keeps its reason. What the client or the network does is no exception to a hook:
    only ``send`` and ``flush`` raise it, and letting it pass gives the session its reason.

    **Threads.** ``send``, ``close`` and ``abort`` may be called from any thread, from ``connection_made`` on. A message
    sent from another thread goes out whole and at once, without waiting for this session's next read; it may wait for
    a client that does not read, ``send_timeout`` at most, and raises ``ConnectionClosed`` when the session is over. All
    else belongs to the session's thread.

    **State.** What belongs to the session lives on ``self``, what is shared on ``self.server``, under a lock.
    ``self.request`` is the socket, as in ``socketserver``; ``self.connection`` is the ``Connection`` over it,
    ``self.peer`` the client's address as text. There is no ``rfile`` and no ``wfile``: the bytes belong to the
    connection.
    """

    framing: Framing = LineFraming()
    """How messages lie in the stream."""

    timeout: ClassVar[Optional[float]] = None
    """Seconds without a byte, between messages, after which a session ends as ``idle``; None: never. Inside a message
    ``message_timeout`` is in its place, if there is one."""

    message_timeout: Optional[float] = 30.0
    """Seconds from a message's first byte to its last, else the session ends as ``slow``; None: no limit.
    A deadline for each read is no protection: dripping bytes renew it (bpo-26005)."""

    send_timeout: Optional[float] = 60.0
    """Seconds in which the client takes no byte of a reply, then the session ends as ``slow``; None: no limit."""

    disable_nagle_algorithm = True
    """No reply waits for the acknowledgement of the one before (40 ms); only TCP has that (gh-128916). On
    ``echo.Server`` no connection has it, whatever is said here."""

    server: Any
    """The server; a subclass that knows which may say so, and is checked by that."""

    connection: Connection
    peer: str
    session: Optional[int] = None
    """The session's number on its server, from 1 on; None on a server that keeps none."""
    via: Optional[str] = None
    """The address of the proxy that the client came through, as text; None on a server without the PROXY protocol."""
    unnamed = False
    """The proxy's header names no client: ``peer`` is the proxy's own address, and this is most likely its health
    check."""
    reason = "error"
    """Why the session ended; right once ``connection_lost`` was called."""

    # Hooks, for subclasses. A mixin's calls super().

    def connection_made(self) -> None:
        """The session begins."""

    def message_received(self, message: bytes) -> None:
        """A message has arrived."""

    def eof_received(self, rest: bytes) -> None:
        """The client has ended its input. ``rest`` is what it sent of a message without its end, as it came.

        Not called when the server ends the session. By default a ``rest`` is no message and ends the session as
        ``incomplete``.
        """
        if rest:
            raise self.connection.failed(IncompleteMessage(rest))

    def connection_lost(self, reason: str) -> None:
        """The session is over."""

    # Actions.

    def send(self, message: bytes) -> None:
        """Send a message; from any thread.

        In the session's own thread it is queued, and goes out before the next read that may block. From another
        thread it goes out at once, whole, and waits while the client does not read (``send_timeout``).
        Raises ``MessageTooLong`` or ``ValueError`` for what the framing cannot carry (its limit counts for both
        directions), ``TypeError`` for what is not bytes, ``SendTimeout`` or ``ConnectionClosed`` when the client cannot
        be reached.
        """
        if get_ident() == self._thread:
            self.connection.write(message)
        else:
            self.connection.send(message)

    def flush(self) -> None:
        """Let the replies so far go out now: for a hook that sends, works on, and sends again. Own thread only."""
        self.connection.flush()

    def stream(self) -> Any:
        """What the connection reads from and writes to: the socket. A mixin may return a wrapper of
        ``super().stream()`` with the methods of a socket, to see or change the bytes on their way."""
        return self.request

    def close(self) -> None:
        """End the session, from anywhere: what was sent before is delivered, what arrives after is ignored."""
        self._closing = True
        if get_ident() != self._thread:
            self.connection.end_input()

    def abort(self) -> None:
        """End the session now, from anywhere, with a reset: what is on its way is lost, and ``reason`` is ``reset``."""
        self._closing = True
        self.connection.abort()

    # The session itself: socketserver's three steps.

    def setup(self) -> None:
        self._thread = get_ident()
        self._closing = False
        self._draining = False
        self.peer = format_address(self.client_address)
        self.connection = Connection(
            self.stream(),
            self.framing,
            idle_timeout=self.timeout,
            message_timeout=self.message_timeout,
            send_timeout=self.send_timeout,
        )
        # echo.Server counts what the connection counts, tells the handler to drain, and lingers before it closes.
        # Other servers know nothing of that.
        attach = getattr(self.server, "attach", None)
        self.session = None if attach is None else attach(self)
        if self.disable_nagle_algorithm and self.session is None and self.request.family in INET:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def handle(self) -> None:
        reason = "error"
        try:
            self.connection_made()
            reason = self._converse()
        except EchoError as exc:
            if exc.connection is not self.connection:
                raise  # another connection's, used in a hook: a mistake of the hook like any other
            lost = isinstance(exc, ConnectionClosed)
            reason = "drain" if lost and self._draining else exc.reason
            level = logging.WARNING if isinstance(exc, MessageTooLong) else logging.DEBUG
            fields = {"event": "failed", "peer": self.peer, "session": self.session, "reason": reason}
            log.log(level, "%s %s: %s", self.peer, reason, str(exc), extra=fields)
            exc.with_traceback(None)  # the decoder keeps the error, whose traceback would keep this session
        finally:
            self.reason = reason
            try:
                self.connection.flush()  # what was sent before a hook raised
            except EchoError:
                pass  # the session has its reason already
            finally:
                self.connection_lost(reason)

    def _converse(self) -> str:
        receive = self.connection.receive
        while not self._closing:
            messages = receive()
            if not messages:
                break
            for message in messages:
                if self._closing:
                    break
                self.message_received(message)
        if self._closing:
            reason = "reset" if self.connection.aborted else "exit"
        elif self._draining:
            reason = "drain"
        else:
            self.eof_received(self.connection.finish_input())
            reason = "exit" if self._closing else "eof"
        self.connection.flush()
        return reason

    def finish(self) -> None:
        self._thread = 0  # the system may give this thread's identity to another, for which send() is not the owner's
        self.connection.finish_output()
        if self.session is None:  # stock servers shut down and close at once
            if self.connection.aborted:
                self.request.close()  # without the FIN that would come before the reset
            elif not self.connection.peer_ended:
                linger(self.request)

    def drain(self) -> None:
        """The server stops: answer what has arrived, then end. Called by ``echo.Server``, from its thread."""
        self._draining = True
        self.connection.end_input()


class EchoRequestHandler(MessageRequestHandler):
    """Every message comes back, until one is ``exit``, in any letter case and with surrounding white space.

    ``exit`` is not echoed. The end of input is as good an end, and what came without the end of its message
    comes back as it came.
    """

    exit_word: Optional[bytes] = EXIT_WORD
    """The message, in lower case, that ends a session; None switches it off."""

    def message_received(self, message: bytes) -> None:
        # The length first: it tells all but a few from the word, and costs a tenth of the call.
        word = self.exit_word
        if word is not None and len(message.strip()) == len(word) and is_exit(message, word):
            self.close()
        else:
            self.send(message)

    def eof_received(self, rest: bytes) -> None:
        if is_exit(rest, self.exit_word):
            self.close()
        elif rest:
            self.connection.write_raw(rest)
