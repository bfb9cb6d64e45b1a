"""The second layer of ``Server``: sessions, from the accepted socket to the closed one.

It knows no accept loop: a program's own loop may hand over sockets, too (``process_request``). The life of a session::

    process_request            in the accepting thread: it gets a thread
          |
    process_request_thread     in the session's thread: the rest of admission, then
          |
    finish_request             makes the handler, which serves the session
          |
    shutdown_request           the handler is done: nothing that it has sent is lost
          |
    close_request              the session is over, and counted

A subclass may replace any of these methods. So each of them finds the session by its socket, and does what the ones
before it have left out. There is one end, ``_echo_end_session``: it calls the last two, and does what they have left
out. A client that gets no session (``_echo_turn_away``) ends there, too.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import sys
import threading
from typing import Any, Iterable, List, Mapping, Optional

from ..class_body import check_behind
from ..sockets import LINGER_SILENCE, LINGER_TIMEOUT, expect_shut_down, linger, prepare
from ..text import format_address
from . import forking, threads
from .access import as_tuple
from .admission import Admission, Refused, import_what_options_need, log_refused
from .listening import FORKING, ListeningServer, check_addresses
from .options import Options
from .registry import Registry
from .reporting import log_event
from .sessions import Session, descriptor_of, is_loss
from .statistics import ConnectionInfo, Statistics
from .stopping import Stop


class Connections:
    """``Server.connections``. Not a property: a subclass may assign something of its own to that name."""

    def __get__(self, server: SessionServer, owner: Any = None) -> List[ConnectionInfo]:
        registry = server._echo_registry
        registry.reap()
        return [session.info() for session in registry.sessions()]


class SessionServer(ListeningServer):
    """The part of ``Server`` that has the sessions."""

    _echo_stop: Optional[Stop] = None
    """The one stop of this server, from its beginning on."""

    _echo_linger_silence = LINGER_SILENCE

    def _echo_prepare(self) -> None:
        super()._echo_prepare()
        cls, own = type(self), SessionServer
        replaced = cls.process_request, cls.process_request_thread
        self._echo_registry = Registry(replaced != (own.process_request, own.process_request_thread))
        self._echo_admission = Admission(self._echo_registry)
        self._echo_session_threads = threads.Threads()

    def _echo_choose(self, given: Mapping[str, Any], family: Any) -> Options:
        options = super()._echo_choose(given, family)
        self._echo_set_access(options, options.allow, options.deny, options.proxy_allow_from)
        import_what_options_need(self)
        return options

    # Statistics.

    connections = Connections()
    """The live connections, as they are now."""

    def stats(self) -> Statistics:
        """Sums since the server was made."""
        self._echo_registry.reap()
        return self._echo_registry.statistics()

    # Admission.

    def set_access(
        self, allow: Iterable[str], deny: Iterable[str], proxy_allow_from: Optional[Iterable[str]] = None
    ) -> None:
        """Replace ``allow`` and ``deny``, and ``proxy_allow_from`` if it is given, for the clients to come.
        ``ValueError`` names an invalid network, and nothing changes. It also means that the clients have no addresses
        (a Unix socket without ``proxy_protocol``). ``RuntimeError`` before the constructor, which sets them anew."""
        if "socket" not in vars(self):
            raise RuntimeError("the server is not made yet; call set_access() after super().__init__()")
        self._echo_set_access(self._echo_options, allow, deny, proxy_allow_from)

    def _echo_set_access(self, options: Options, allow: Any, deny: Any, proxy_allow_from: Any) -> None:
        lists = {"allow": as_tuple("allow", allow), "deny": as_tuple("deny", deny)}
        if proxy_allow_from is not None:
            lists["proxy_allow_from"] = as_tuple("proxy_allow_from", proxy_allow_from)
        check_addresses(self, **lists)
        self._echo_admission.set_access(**lists)
        for name, networks in lists.items():
            if getattr(self, name) is getattr(options, name):  # otherwise the name is an attribute of a subclass's own
                vars(self)[name] = networks  # a tuple, since a change inside a list would have no effect
            setattr(options, name, networks)

    def _echo_refuse(self, session: Session, exc: Refused) -> None:
        """Log that admission has refused a client. If it was the stop that ended the client's input, that is an
        orderly end."""
        # Its input_ended would be too late: StandIn.drain() wakes this thread, and sets it afterwards.
        if session.state == "draining":
            session.refused = None
            session.handler.ended_as = "drain"
            peer = format_address(session.client_address)
            log_event(logging.DEBUG, "drained", "%s drained before its session began", peer, peer=peer)
        else:
            if exc.reason != "handshake":  # which was answered, so that this client may linger: it keeps its slot
                self._echo_registry.release_host(session)
            log_refused(session.client_address, exc, None if session.unnamed else session.via)

    def _echo_turn_away(self, session: Session, reason: str) -> None:
        """Close a connection that gets no session. Does not linger: this is the accepting thread. A client that its own
        session's thread refuses ends as every session does."""
        session.seal()  # a subclass that says goodbye must not wait here for a handshake
        self._echo_registry.forget(session)  # first: shutdown_request() lingers only for a session
        self._echo_registry.refused(reason)
        self._echo_end_session(session)

    # The life of a session.

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name in ("process_request", "process_request_thread"):
            check_behind(cls, name, SessionServer)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the session a thread of its own."""
        session = self._echo_registry.get(request) or self._echo_adopt(request, client_address)
        session.begun = True
        task = self._echo_begin_thread, (session, request, client_address)

        def not_begun() -> None:
            session.begun = False

        if self.daemon_threads and self._echo_options.reuse_threads:
            self._echo_session_threads.run(task, not_begun)
        else:  # at its exit the interpreter waits for threads that are not daemons; they must not wait for a session
            threads.start(*task, not_begun, daemon=self.daemon_threads)

    def _echo_begin_thread(self, session: Session, request: Any, client_address: Any) -> None:
        """The session's thread. An exception ends the session also where a subclass lets it pass: the socket that the
        standard library drops then would stay open here, and keep its slot."""
        try:
            self.process_request_thread(request, client_address)
        except BaseException as exc:
            if not session.over:
                session.failed(exc)
                self._echo_end_session(session)
            raise

    def _echo_adopt(self, request: Any, client_address: Any) -> Session:
        """Make a session for a request that this server has not accepted itself, unless it wraps the socket of one."""
        taken_over = self._echo_registry.take_over(request, client_address)
        if taken_over is not None:
            return taken_over
        session = Session(request, client_address)
        if isinstance(request, socket.socket):
            with contextlib.suppress(OSError):  # it is lost already; its first use reports that
                prepare(request)
        try:
            self._echo_admission.check_unknown(self, request, client_address)
        except Refused as exc:
            log_refused(client_address, exc)
            self._echo_turn_away(session, exc.reason)
            raise
        except TypeError:
            self._echo_turn_away(session, "error")
            raise
        self._echo_registry.add(session)
        return session

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """A session, in its own thread, from admission to the closed socket."""
        session = self._echo_registry.get(request) or self._echo_adopt(request, client_address)
        session.begun = session.ours = True
        session.thread_id = threading.get_ident()
        try:
            if session.opening is not None:
                session.opening()
                client_address = session.client_address
            self.finish_request(request, client_address)
        except Exception as exc:
            if isinstance(exc, Refused) and session.refused is not None:
                self._echo_refuse(session, exc)
            else:
                if session.refused is not None:
                    self._echo_registry.release_host(session)
                session.failed(exc)
                self.handle_error(request, session.client_address)
        except BaseException as exc:  # sys.exit() in a handler ends the thread, but not silently (bpo-23430)
            session.failed(exc)
            peer, name = format_address(session.client_address), type(exc).__name__
            log_event(logging.ERROR, "error", "%s: %s in the handler; its session ends", peer, name, peer=peer)
            raise
        finally:
            self._echo_end_session(session)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Make the handler, which serves the session. ``request`` may be a wrapper of what was accepted (TLS).

        A wrapper without a descriptor is the session's if this is the session's thread and client. A thread may also
        serve a client that the program has accepted itself, so the thread alone does not decide."""
        session = self._echo_registry.find(request, client_address)
        if session is not None:
            if session.opening is not None:
                session.opening()
            if session.via is not None:  # a subclass that has wrapped the socket knows only the proxy
                client_address = session.client_address
            if session.thread_id is None:
                session.thread_id = threading.get_ident()
            if request is not session.request:
                session.wrapped(request)
            if type(request) is not socket.socket:
                expect_shut_down(request)
        elif not self._echo_registry.serves(threading.get_ident(), client_address):  # accepted by a program's own loop
            self._echo_admission.check_unknown(self, request, client_address)
        forking.call(super().finish_request, request, client_address)

    def attach(self, handler: Any) -> Optional[int]:
        """Let a handler take part in its session.

        The server adds up what ``handler.connection`` counts (``messages_in``, ``messages_out``, ``bytes_in``,
        ``bytes_out``), counts ``handler.reason`` as the session's end, and calls ``handler.drain()``, which must not
        block, when it stops. ``aborted``, ``peer_ended``, ``input_ended`` and ``send_timeout`` of the connection decide
        how the socket is closed. Sets ``handler.via`` and ``handler.unnamed``, which say what is known of a proxy.
        Returns the session's number, from 1 on; None if this server does not track the handler's request.
        """
        return self._echo_attach(handler)

    # Our own handlers call this: a subclass of the server may use the name attach for a method of its own.
    def _echo_attach(self, handler: Any) -> Optional[int]:
        session = self._echo_registry.find(handler.request)
        if session is None:
            return None
        handler.via, handler.unnamed = session.via, session.unnamed
        session.attach(handler)
        if type(session.stream) is not socket.socket:
            expect_shut_down(session.stream)
        return session.number

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the exception that is being handled: one record, with the client's address.

        A client that is gone is not an error: a DEBUG record without a traceback.
        """
        exc = sys.exc_info()[1]
        peer = format_address(client_address)
        session = self._echo_registry.find(request)
        if session is not None and exc is not None:
            if isinstance(exc, Refused) and session.refused is not None:  # by the first use of the socket
                self._echo_refuse(session, exc)
                return
            session.failed(exc)
        if is_loss(exc, request) if session is None else session.is_loss(exc):
            log_event(logging.DEBUG, "reset", "%s: %s", peer, exc, peer=peer)
        else:
            log_event(logging.ERROR, "error", "%s: unhandled exception in the session", peer, exc_info=exc, peer=peer)

    # Its end.

    def _echo_end_session(self, session: Session) -> None:
        """Close the socket, and count the end; what a subclass has done already is left out."""
        try:
            if session.state != "closed":
                self.shutdown_request(session.request)
        except BaseException as exc:  # a subclass may even call sys.exit()
            log_event(logging.ERROR, "error", "exception in shutdown_request()", exc_info=exc)
            with contextlib.suppress(Exception):
                self.close_request(session.request)  # no memory for a gentle end, for example
            if not isinstance(exc, Exception):
                raise
        finally:
            if session.state != "closed":  # a subclass closes in its own way
                session.closed()
            if not session.over:  # it did not call close_request()
                self._echo_registry.end(session)

    def shutdown_request(self, request: Any) -> None:
        """Close an accepted socket; after a session gently, so that no reply is lost."""
        session = self._echo_registry.get(request)
        if session is None:
            was_let_go = self._echo_registry.was_let_go  # in a child of ForkingMixIn, for example
            interrupted = was_let_go and isinstance(self, FORKING) and forking.is_interrupted()
            try:
                if was_let_go:
                    # Rejected: as long as a session. Clients of max_children that read nothing would hold up the loop.
                    linger(request, shared=True)
                super().shutdown_request(request)
            finally:
                if interrupted:  # the mixin would exit with a code, as after any exception, and nothing count as cut
                    forking.end_by_interrupt()
            return
        session.closing()
        connection = session.handler.connection
        # A wrapper may have taken the descriptor over. A plain handler may have handed it on, as with socketserver.
        stream = session.stream if session.attached and descriptor_of(request) == -1 else request
        if connection.aborted:
            ended = True  # a FIN must not come before the reset
        elif session.refused not in (None, "handshake"):  # nothing was sent to it, and it must not stay by sending
            ended = linger(stream, silence=0.0, timeout=0.0, shared=True)
        elif connection.peer_ended:  # nothing more can arrive that a close would answer with a reset
            # close() ends the connection. It does not where a forked child has a copy of the socket, and TLS has to
            # send its own end first. shutdown() takes 7 % of a short session, since it releases the GIL.
            ended = type(request) is socket.socket and not forking.has_forked
        else:
            delivery_timeout = self._echo_delivery_timeout() if connection.input_ended else None
            timeouts = delivery_timeout, self._echo_linger_silence, LINGER_TIMEOUT, connection.send_timeout
            ended = linger(stream, *timeouts, shared=not session.attached)
        if ended:
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def close_request(self, request: Any) -> None:
        """Close an accepted socket at once. Here, at the latest, its session is over."""
        session = self._echo_registry.get(request)
        if session is None:
            super().close_request(request)
            return
        if session.state != "closing":
            session.closing()
        session.closed()
        try:
            super().close_request(request)
        finally:
            self._echo_registry.end(session)

    def _echo_delivery_timeout(self) -> float:
        """Without a stop, another thread has called ``close()``: ``send_timeout`` is the limit."""
        timeout = None if self._echo_stop is None else self._echo_stop.delivery_timeout()
        return math.inf if timeout is None else timeout
