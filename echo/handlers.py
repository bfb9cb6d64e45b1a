"""The handlers: a session as hooks, steps and actions, and the echo protocol as their first use.

A handler knows its own session. It does not know how the server accepts, counts or stops. It runs on ``echo.Server``
and on any ``socketserver`` server; only ``echo.Server`` can drain it.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import socketserver
import weakref
from operator import methodcaller
from threading import get_ident
from typing import Any, Callable, ClassVar, List, Optional

from .class_body import check_body
from .connection import Connection
from .exceptions import ConnectionClosed, EchoError, IncompleteMessage, ProtocolError
from .framing import Framing, LineFraming
from .log_calls import print_fault, with_fields
from .mixin_order import check_order
from .protocol import EXIT_WORD, is_exit
from .sockets import INET, SEND_TIMEOUT, keep_urgent_data, linger
from .text import LONGEST_PART, format_address, printable, raise_if_deep

log = logging.getLogger("echo.session")


_strip = methodcaller("strip")

HOOKS = ("connection_made", "message_received", "eof_received", "connection_lost")
STEPS = ("dispatch_made", "dispatch_message", "dispatch_eof", "dispatch_lost", "send", "stream")
_CALLED = ("messages_received", "setup", "handle", "finish", "close", "abort", "drain")
"""Other methods that the server, a mixin or the handler calls: one that is async would do nothing."""


class MessageRequestHandler(socketserver.StreamRequestHandler):
    """A session of messages. Subclass it, and write ``message_received``::

        class Upper(echo.MessageRequestHandler):
            def message_received(self, message):
                self.send(message.upper())

    The life of a session, in the session's own thread:

    1. The server has accepted the client and made this object. ``connection_made()`` is called; no message has arrived.
    2. ``message_received(message)`` is called for each message, in order, one at a time. It may block: only its own
       client waits. Replies are collected. They go out together before the next read that may block, when many
       bytes are queued, or at ``flush()``.
    3. ``eof_received(rest)`` is called if the client has ended its input. The client may still read: send replies.
    4. ``connection_lost(reason)`` is called exactly once for each ``connection_made``, even for one that raised.
       Messages sent here still reach a client that reads.
    5. The server half-closes, discards what the client still sends for a moment, and closes.

    **Hooks and steps.** These four methods are *hooks*. They belong to the handler, and never need ``super()``. A mixin
    adds a policy to any handler: it overrides the *steps* around the hooks. A step calls ``super()``; the innermost one
    calls the hook:

    ============================= ==================================
    step                          the innermost one
    ============================= ==================================
    ``dispatch_made()``           calls ``connection_made()``
    ``dispatch_message(message)`` calls ``message_received(message)``
    ``dispatch_eof(rest)``        calls ``eof_received(rest)``
    ``dispatch_lost(reason)``     calls ``connection_lost(reason)``
    ``send(message)``             queues or sends the message
    ``stream()``                  returns the socket
    ============================= ==================================

    The leftmost mixin is the outermost. It is the first to see a message that arrives and one that is sent, and its
    ``stream()`` lies closest to the connection, farthest from the network. The hooks may stand in the body of the class
    that lists the mixins, in one of its bases, or in a subclass::

        class KV(echo.LoggingMixin, echo.ThrottlingMixin, echo.MessageRequestHandler):
            def message_received(self, message): ...

        dispatch_message ---> LoggingMixin ----> ThrottlingMixin --> MessageRequestHandler --> KV.message_received
                              logs it            waits               calls the hook            calls self.send --+
                                                                                                                 |
        the queue <---------- MessageRequestHandler <-- ThrottlingMixin <-- LoggingMixin <-- send <--------------+
                              queues it                 (no such step)      logs it afterwards

    A step that does not call ``super()`` holds the message back from everything inside it. A ``dispatch_made`` that
    calls ``close`` instead of ``super()`` rejects a client before the handler sees it, as ``close`` in ``setup`` does:
    ``eof_received`` and ``connection_lost`` are called only if ``connection_made`` was. A hook that calls ``super()``
    reaches the next class's hook, inside all steps.

    A mixin may also extend ``setup``, ``finish``, ``close``, ``abort`` and ``drain``, with ``super()``. The server may
    call ``drain`` from its own thread as soon as ``super().setup()`` has attached the session: make what ``drain`` uses
    in ``setup``, before that call.

    A list of bases that hides a mixin raises ``TypeError``: one that derives from plain ``object`` behind the handler
    class, or one behind a class with the same step and no ``super()`` in it.

    **Ends.** ``reason`` is ``exit`` (this side called ``close``), ``eof``, ``incomplete`` (end of input inside a
    message), ``idle``, ``slow`` (a message took too long, or the client does not read), ``too-long``, ``drain`` (the
    server stops: all received messages were answered, or the stop has cut the session), ``reset`` (the client is gone,
    or this side called ``abort``) or ``error`` (a hook raised, or the input breaks a framing of your own; the log has
    it). For a reason of your own, ``raise self.connection.failed(Quota("..."))``, with ``class Quota(echo.EchoError):
    reason = "quota"``.

    **Exceptions.** An exception that leaves a hook or a step ends only this session, as ``error``. The server logs it
    once, with the client's address. Replies sent before it are delivered. An exception in ``connection_lost`` is logged
    too, and the session keeps its reason. A failure of the client or the network is raised by ``send`` and ``flush``
    only; a hook that lets it pass gives the session its reason.

    **Threads.** ``send``, ``close`` and ``abort`` may be called from any thread, from ``connection_made`` on. A message
    sent from another thread goes out whole and at once, without waiting for this session's next read. It blocks while
    the client does not read, for at most ``send_timeout``, and raises ``ConnectionClosed`` when the session is over.
    All other methods belong to the session's thread, except ``drain``.

    **State.** Keep the session's state on ``self``, and shared state on ``self.server``, under a lock. ``self.request``
    is the socket, as in ``socketserver``; ``self.connection`` is the ``Connection`` over it, ``self.peer`` the client's
    address as text. There is no ``rfile`` and no ``wfile``: the connection reads and writes all bytes.
    """

    framing: Framing = LineFraming()
    """How messages lie in the stream."""

    timeout: ClassVar[Optional[float]] = None
    """Seconds without a byte between messages, after which a session ends as ``idle``. None (default): no limit. Inside
    a message ``message_timeout`` applies instead, unless it is None."""

    message_timeout: Optional[float] = 30.0
    """Seconds from a message's first byte to its last, else the session ends as ``slow``. None: no limit.
    A deadline for each read would not protect: a client that sends single bytes renews it (bpo-26005)."""

    send_timeout: Optional[float] = SEND_TIMEOUT
    """Seconds (default: 60) in which the client takes no byte of a reply, then the session ends as ``slow``. A session
    that is over waits as long for a client that has not taken all replies yet. None: no limit."""

    disable_nagle_algorithm = True
    """No reply waits for the acknowledgement of the one before (40 ms); only TCP has that (gh-128916). ``echo.Server``
    ignores this attribute and always disables Nagle's algorithm."""

    server: Any
    """The server. A subclass may annotate it with its own server class, for type checkers."""

    connection: Connection
    peer: str
    session: Optional[int] = None
    """The session's number on its server, from 1 on. None on a server that does not number sessions."""
    via: Optional[str] = None
    """The address of the proxy that the client came through, as text. None without the PROXY protocol."""
    unnamed = False
    """The PROXY header names no client: ``peer`` is the proxy's own address. Most likely this is its health check."""
    reason = "error"
    """Why the session ended; valid from ``connection_lost`` on."""

    __begun = False  # connection_made was called
    __closing = False  # close() or abort() was called
    __rejected = False  # ... by a mixin's setup()
    __draining = False  # drain() was called
    __forked = False  # this is a child that a hook has forked

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        check_body(cls, (*HOOKS, *STEPS, *_CALLED))
        check_order(cls, MessageRequestHandler, HOOKS, STEPS)

    # Hooks, for the handler. They need no super().

    def connection_made(self) -> None:
        """The session begins."""

    def message_received(self, message: bytes) -> None:
        """A message has arrived."""

    def messages_received(self, messages: List[bytes]) -> None:
        """One read has completed these messages, at least two. Calls ``message_received`` for each, until the session
        is closed.

        Override it where many messages cost less together than one by one. The result must be the same, also where a
        subclass overrides ``message_received`` or ``send``. It is not called if a mixin has a ``dispatch_message``
        step, which gets each message alone.
        """
        for message in messages:
            if self.__closing:
                break
            self.message_received(message)

    def eof_received(self, rest: bytes) -> None:
        """The client has ended its input. ``rest`` is what came of a message that never ended; usually b"".

        Not called when the server ends the session. By default, a ``rest`` ends the session as ``incomplete``.
        """
        if rest:
            raise self.connection.failed(IncompleteMessage(rest))

    def connection_lost(self, reason: str) -> None:
        """The session is over."""

    # Steps, for mixins. They call super(); send() and stream() below are steps, too.

    def dispatch_made(self) -> None:
        """Begin the session, unless ``setup`` has closed it."""
        if not self.__rejected:
            self.__begun = True
            self.connection_made()

    def dispatch_message(self, message: bytes) -> None:
        """Handle a message. ``RuntimeError`` if the session has not begun: a mixin that does not let it begin has to
        keep the messages back, too."""
        if not self.__begun:
            raise RuntimeError(
                "a message came before the session began; a mixin's dispatch_made() has to call super(), or close()"
            )
        self.message_received(message)

    def dispatch_eof(self, rest: bytes) -> None:
        """Handle the end of the client's input, if the session has begun: a mixin that asks for a password first may
        have thought of messages only."""
        if self.__begun:
            self.eof_received(rest)
        elif rest:
            raise self.connection.failed(IncompleteMessage(rest))

    def dispatch_lost(self, reason: str) -> None:
        """End the session. Called exactly once after each ``dispatch_made``, even after one that raised.

        If an outer mixin has not let the session begin, an inner one gets this call alone: make its state in ``setup``.
        """
        if self.__begun:
            self.connection_lost(reason)

    # Actions.

    def send(self, message: bytes) -> None:
        """Send a message, from any thread.

        In the session's own thread the message is queued, and goes out before the next read that may block. From
        another thread it goes out whole and at once; the call blocks while the client does not read (``send_timeout``).
        Raises ``ValueError`` if the framing cannot carry the message, ``MessageTooLong`` if it is longer than the
        framing's ``max_sent`` (default: no limit), ``TypeError`` if it is not bytes, ``SendTimeout`` or
        ``ConnectionClosed`` if the client cannot be reached.
        """
        if get_ident() == self.__thread:
            self.connection.write(message)
        else:
            self.connection.send(message)

    def flush(self) -> None:
        """Send the queued replies now: for a hook that sends, works on, and sends again. Session's own thread only."""
        self.connection.flush()

    def stream(self) -> Any:
        """Return what the connection reads from and writes to: the socket. A mixin may return a wrapper of
        ``super().stream()`` with the methods of a socket, to see or change the bytes on their way.

        One whose ``recv`` may keep bytes for the next call, or returns more than it has read (decompression), needs a
        property ``buffered``: how many bytes it has to return before it reads again. Otherwise a stop, or ``close()``
        from another thread, may leave messages without an answer."""
        return self.request

    def close(self) -> None:
        """End the session, from any thread. Messages sent before are delivered; input that arrives later is ignored."""
        self.__closing = True
        if get_ident() != self.__thread:
            self.connection.end_input()

    def abort(self) -> None:
        """End the session now, from any thread, with a reset. Data in transit is lost, and ``reason`` is ``reset``."""
        self.__closing = True
        self.connection.abort()

    # The session itself: socketserver's three methods.

    def setup(self) -> None:
        self.__thread = get_ident()
        self.peer = format_address(self.client_address)
        idle_timeout = self.timeout
        if self.request.gettimeout() is not None:  # socket.setdefaulttimeout(); a connection has timeouts of its own
            idle_timeout = self.request.gettimeout() if idle_timeout is None else idle_timeout
            self.request.settimeout(None)
        self.connection = Connection(
            self.stream(),
            self.framing,
            idle_timeout=idle_timeout,
            message_timeout=self.message_timeout,
            send_timeout=self.send_timeout,
        )
        # echo.Server adds up the connection's counters, drains the handler when it stops, and lingers before it closes.
        # Other servers do none of that.
        attach = getattr(self.server, "_echo_attach", None)
        self.session = None if attach is None else attach(self)
        if self.session is None:
            _untracked[self.__thread] = self
            keep_urgent_data(self.request)
            if self.disable_nagle_algorithm and self.request.family in INET:
                self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def handle(self) -> None:
        reason = "error"
        self.__rejected = self.__closing
        try:
            self.dispatch_made()
            reason = self.__converse()
        except EchoError as exc:
            if exc.connection is not self.connection:
                raise  # of another connection, which a hook uses: an error of the hook like any other
            lost = isinstance(exc, ConnectionClosed)
            reason = "drain" if lost and self.__draining and not self.connection.aborted else exc.reason
            broken = isinstance(exc, ProtocolError) and not isinstance(exc, IncompleteMessage)
            level = logging.WARNING if broken else logging.DEBUG
            # A framing of your own may quote the client in them.
            word, why = printable(reason, LONGEST_PART), printable(str(exc), LONGEST_PART)
            fields = {"event": "failed", "peer": self.peer, "session": self.session, "reason": word}
            if not self.__forked:
                try:
                    with_fields(log.log, level, "%s %s: %s", self.peer, word, why, fields=fields)
                except Exception as fault:  # of a filter; the session has its own reason
                    raise_if_deep(fault)
                    print_fault(log.name, level, "%s %s: %s", self.peer, word, why)
            exc.with_traceback(None)  # the decoder keeps the error, whose traceback would keep this session
        finally:
            self.reason = reason
            try:
                self._echo_unless_lost(self.connection.flush)  # what was sent before a hook raised
            finally:
                if not self.__forked:
                    self._echo_unless_lost(self.dispatch_lost, reason)

    def _echo_unless_lost(self, method: Callable[..., None], *args: Any) -> None:
        """Call a method, although the client may be gone: the session has its reason already."""
        try:
            method(*args)
        except EchoError as exc:
            if exc.connection is not self.connection:
                raise

    def __converse(self) -> str:
        receive = self.connection.receive
        # Without a step around it, the hook is called directly: one call less for each message. It is looked up each
        # time, since a handler may replace it on itself, for a protocol with states.
        step = self.dispatch_message
        direct = self.__begun and getattr(step, "__func__", None) is MessageRequestHandler.dispatch_message
        while not self.__closing:
            messages = receive()
            if not messages:
                break
            if direct:
                if len(messages) == 1:
                    self.message_received(messages[0])
                else:
                    self.messages_received(messages)
            else:
                for message in messages:
                    if self.__closing:
                        break
                    step(message)
        if self.__closing:
            reason = "reset" if self.connection.aborted else "exit"
        elif self.__draining:
            reason = "drain"
        else:
            self.dispatch_eof(self.connection.finish_input())
            reason = "exit" if self.__closing else "eof"
        self.connection.flush()  # here, so that a failure to deliver becomes the reason
        return reason

    def finish(self) -> None:
        self.__thread = 0  # the system may reuse this thread's identity, for a thread that does not own the connection
        self.connection.finish_output()
        if self.session is None and not self.__forked:  # stock servers shut down and close at once
            if self.connection.aborted:
                self.request.close()  # without the FIN that would come before the reset
            elif not self.connection.peer_ended:
                delivery_timeout = math.inf if self.connection.input_ended else None  # close() in another thread
                linger(self.request, delivery_timeout, send_timeout=self.send_timeout)

    def _echo_let_go(self) -> None:
        """In a child that a hook has forked: the session goes on in its parent. Here it ends when the hook returns."""
        self.__closing = self.__forked = True
        self.connection.let_go()

    def drain(self) -> None:
        """The server stops: answer what has arrived, then end. ``echo.Server`` calls this, from its own thread."""
        self.__draining = True
        self.connection.end_input()


_untracked: weakref.WeakValueDictionary[int, MessageRequestHandler] = weakref.WeakValueDictionary()
"""By thread: the handlers of sessions that their server does not track, so that it cannot tell them of a fork."""


def _let_go() -> None:
    handler = _untracked.get(get_ident())
    if handler is not None:
        handler._echo_let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


class EchoRequestHandler(MessageRequestHandler):
    """Send every message back, until one is ``exit``, in any letter case and with surrounding white space.

    ``exit`` is not echoed. The end of input ends the session as well. A last message without its end is sent back as it
    came.
    """

    exit_word: Optional[bytes] = EXIT_WORD
    """The message, in lower case, that ends a session. None: no message does."""

    def message_received(self, message: bytes) -> None:
        # The length first: it rules out nearly all messages at a tenth of the cost of the call.
        word = self.exit_word
        if word is not None and len(message.strip()) == len(word) and is_exit(message, word):
            self.close()
        else:
            self.send(message)

    def messages_received(self, messages: List[bytes]) -> None:
        word = self.exit_word
        # A hundred pipelined messages cost as much as ten one by one.
        if (
            (word is None or len(word) not in map(len, map(_strip, messages)))
            and getattr(self.message_received, "__func__", None) is _ECHO_ONE
            and getattr(self.send, "__func__", None) is MessageRequestHandler.send
        ):
            self.connection.write_many(messages)
        else:
            super().messages_received(messages)

    def eof_received(self, rest: bytes) -> None:
        if is_exit(rest, self.exit_word):
            self.close()
        elif rest:
            self.connection.write_raw(rest)


_ECHO_ONE = EchoRequestHandler.message_received
