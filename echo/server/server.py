"""``Server``: ``socketserver.ThreadingTCPServer`` with an accept loop that stops, bounds and survives.

It accepts, tracks, limits and drains. It runs any ``socketserver`` handler class and imports none: a handler that
wants more attaches itself (``attach``). The life of a connection::

    get_request --> admission, at the door ------> process_request         in the accepting thread
                                                        |
                                               process_request_thread      in the session's thread
                                                        |
                              admission, in the thread, then finish_request: the handler's whole life
                                                        |
                              shutdown_request, close_request: the session is over, whoever called them

The rules:

* Nothing that a client, a handler or the system does ends the accept loop. Only a stop does, or the loss of the
  listening socket.
* A ``shutdown()`` belongs to one run of the loop (``Serving``). With a flag on the server, as in the standard library,
  a second ``shutdown()`` poisons the next ``serve_forever()``, and an early one waits for ever.
* The states of a stop, who waits for whom, and the order of locks are in ``stopping``.
* Code that only some options need (TLS, PROXY, affinity) is imported where the option is read.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import socket
import socketserver
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, ContextManager, Iterable, List, Mapping, Optional, TypeVar

from ..sockets import LINGER_SILENCE, LINGER_TIMEOUT, expect_shut_down, is_readable, linger
from ..text import format_address
from . import forking, threads
from .accepting import STEP, BackOff, Serving, SharedPort, is_held
from .access import as_tuple
from .admission import Admission, Refused, import_what_options_need, log_refused
from .listening import ListeningServer, check_addresses, is_listening
from .options import FIXED, OPTIONS, Options, assign
from .reporting import log_event
from .sessions import Registry, Session, is_loss
from .statistics import ConnectionInfo, Statistics
from .stopping import CUT_GRACE, Past, Stop

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_Self = TypeVar("_Self", bound="Server")


class Connections:
    """``Server.connections``. Not a property: a subclass may assign something of its own to that name."""

    def __get__(self, server: Server, owner: Any = None) -> List[ConnectionInfo]:
        registry = server._echo_registry
        registry.reap()
        return [session.info() for session in registry.sessions()]


class Server(ListeningServer):
    """A TCP server with one thread for each client.

    ``server_address`` is ``(host, port)``, port 0 for any free one, or a Unix socket's path.
    ``RequestHandlerClass`` is any ``socketserver`` handler class. The options (``Options``) are class attributes, as
    in ``socketserver``, and keyword arguments. Raises ``TypeError`` for an unknown option, ``TypeError`` or
    ``ValueError`` with the option's name for a wrong value, and ``OSError`` if the address is not available.

    Use it as ``with Server(...) as server: server.serve_forever()``, or ``server.start()`` to serve in the background
    and ``server.stop()`` to end. All methods may be called in any order and from any thread, a handler's
    and a signal handler's among them. ``max_connections=1`` serves one client at a time.

    A subclass may use every name for its own attributes and methods, except those of ``socketserver`` and those that
    begin with ``_echo_``. An attribute is an option only in the body of a subclass of this class. The methods of the
    standard library may be called by name, as in ``socketserver.TCPServer.__init__(self, ...)``, and each may be
    replaced: a session is known from ``get_request()`` to ``shutdown_request()`` or ``close_request()``.

    It differs from the standard library's server in these points: only one thread serves at a time (``RuntimeError``);
    an exception in ``service_actions()`` does not end the loop; ``server_close()`` ends the sessions, within
    ``shutdown_timeout``, which takes the place of ``block_on_close``
    (``socketserver.TCPServer.server_close(server)`` closes the listening socket only).
    """

    _echo_balance: Optional[SharedPort] = None
    """Keeps the sessions even over several processes that share the port; None: this process is alone."""

    _echo_cut_grace = CUT_GRACE
    _echo_linger_silence = LINGER_SILENCE
    _echo_stop: Optional[Stop] = None
    """The one stop of this server, from its beginning on."""

    def _echo_prepare(self) -> None:
        super()._echo_prepare()
        self._echo_lock = threading.RLock()
        self._echo_registry = Registry()
        self._echo_admission = Admission(self._echo_registry)
        self._echo_session_threads = threads.Threads()
        self._echo_past = Past.NOTHING
        self._echo_serving: Optional[Serving] = None
        self._echo_thread: Optional[threading.Thread] = None  # of start()
        self._echo_failures = BackOff()

    def _echo_choose(self, given: Mapping[str, Any], family: Any) -> Options:
        options = super()._echo_choose(given, family)
        self._echo_set_access(options, options.allow, options.deny, options.proxy_allow_from)
        import_what_options_need(self)
        if options.cpu_affinity is not None:
            from ..transport import affinity

            options.cpu_affinity = affinity.checked(options.cpu_affinity)
        return options

    # Serving.

    def serve_forever(self, poll_interval: Optional[float] = 0.5) -> None:
        """Accept connections until ``shutdown()``, ``stop()`` or ``server_close()``; then return. The last two drain
        the sessions first, so that a program does not end in the middle of that.

        Sleeps while there is nothing to do. ``poll_interval``, in seconds, matters only to a subclass with
        ``service_actions()``, which is called that often. Returns at once if ``shutdown()`` came first or the
        server is closed; raises ``RuntimeError`` if it is serving already.
        """
        serving = self._echo_new_serving()
        if serving is not None:
            self._echo_serve(serving, poll_interval)

    def handle_request(self) -> None:
        """Accept one connection and start its session; after ``timeout`` seconds call ``handle_timeout()`` instead.
        Raises ``ValueError`` if the server is closed, as the standard library does: a program that calls this in a loop
        would never end. Raises ``RuntimeError`` if it is serving already."""
        if self._echo_is_closed():
            raise ValueError("the server is closed")
        serving = self._echo_new_serving()
        if serving is not None:
            timeouts = [seconds for seconds in (serving.listener_timeout, self.timeout) if seconds is not None]
            self._echo_serve(serving, min(timeouts, default=None), once=True)

    def start(self: _Self) -> _Self:
        """Serve in a background thread; return the server. Does nothing if it is serving already; ``RuntimeError`` if
        it is closed. In a subclass that is a ``threading.Thread``, too, this is the thread's ``start()``."""
        if isinstance(self, threading.Thread):
            threading.Thread.start(self)
            return self
        serving = thread = None
        try:
            with self._echo_lock:
                if self._echo_is_closed():
                    raise RuntimeError("the server is closed; make a new one")
                if self._echo_serving is not None:
                    return self
                if self._echo_past is Past.SHUTDOWN:
                    self._echo_past = Past.NOTHING
                serving = self._echo_new_serving()
                if serving is None:  # a stop() has begun since the look above; it takes no lock
                    raise RuntimeError("the server is closed; make a new one")
                self._echo_begin_serving(serving)
                thread = threading.Thread(target=self._echo_serve, args=(serving,), name="echo-server", daemon=True)
                self._echo_thread = thread
            # Without the lock: starting waits for the thread, and a signal handler may run in the meantime.
            atexit.register(self._echo_close_at_exit)  # daemon threads would die in mid-reply (gh-113964)
            thread.start()
            serving.thread_id = thread.ident or 0  # from here on this thread may wait for it
        except BaseException:
            if serving is not None and (thread is None or thread.ident is None):
                self._echo_end_serving(serving)
            raise
        return self

    def _echo_new_serving(self) -> Optional[Serving]:
        """Return what a run needs, before the run is known to anybody; None if the server is closed.

        Apart from ``_begin_serving``, so that the ``try`` whose end is ``_end_serving`` can stand around that:
        KeyboardInterrupt may come between any two lines, and a run that has begun and never ends would make each later
        stop wait.
        """
        with self._echo_lock:
            if self._echo_is_closed():
                return None
            if self._echo_serving is not None:
                raise RuntimeError("the server is serving already")
            try:
                expect_shut_down(self.socket)
                return Serving(self.socket, shared=self.socket is self._echo_inherited)
            except OSError:
                # A signal handler has stopped the server meanwhile; or the program has, in its own way, before the run.
                if self._echo_stop is not None or self._echo_past is Past.SHUTDOWN:
                    return None
                raise

    def _echo_is_closed(self) -> bool:
        """Whether the server is closed. One that has got another listening socket since then is open again."""
        stop = self._echo_stop
        if stop is None:
            return False
        if not stop.ended.is_set() or not is_listening(self.socket):
            return True
        with self._echo_lock:
            self._echo_past = Past.NOTHING
            self._echo_session_threads = threads.Threads()
            vars(self).pop("_echo_stop", None)
        return False

    def _echo_begin_serving(self, serving: Serving) -> None:
        """Begin this run, unless start() has begun it."""
        with self._echo_lock:
            if self._echo_serving is serving:
                return
            if self._echo_serving is not None:
                raise RuntimeError("the server is serving already")
            if (
                self._echo_past < Past.REQUEST
            ):  # until then a child may serve, too: that is how several processes share a port
                forking.in_child(self._echo_let_go)
            self._echo_serving = serving
            # Only now: the shutdown() of a signal handler either found no Serving, and is in _past, or found this one.
            if self._echo_past is Past.SHUTDOWN or self._echo_stop is not None:
                serving.stop()
            self._echo_past = max(self._echo_past, Past.REQUEST)

    def _echo_end_serving(self, serving: Serving) -> None:
        with self._echo_lock:
            stop = self._echo_stop
            serving.close(restore=stop is None and self._echo_serving in (serving, None))
            if self._echo_serving is not serving:
                return  # it has not begun
            self._echo_serving = None
            left_to_us = stop is not None and stop.thread_id is None
            if stop is not None and left_to_us:
                stop.thread_id = threading.get_ident()
        serving.ended.set()
        if stop is not None:
            if left_to_us:
                self._echo_run_stop(stop)
            else:
                stop.ended.wait()  # the stop has waited for this run, and for nothing that comes after it

    def _echo_serve(self, serving: Serving, seconds: Optional[float] = 0.5, *, once: bool = False) -> None:
        """Accept clients in the calling thread until a stop or, if ``once``, until a client or ``seconds`` are over."""
        try:
            self._echo_begin_serving(serving)
            serving.enter()
            if self._echo_balance is not None:
                self._echo_registry.publish = self._echo_balance.set
            if once:
                self._echo_accept_clients(serving, seconds, once)
            else:
                self._echo_past = Past.LOOP
                with self._echo_kept_to_processors():
                    self._echo_accept_clients(serving, seconds, once)
        finally:
            self._echo_end_serving(serving)

    def _echo_kept_to_processors(self) -> ContextManager[None]:
        processors = self._echo_options.cpu_affinity
        if processors is None:
            return contextlib.nullcontext()
        from ..transport import affinity

        return affinity.kept_to_some(processors)

    def _echo_accept_clients(self, serving: Serving, seconds: Optional[float], once: bool) -> None:
        """The accept loop, of ``serve_forever()`` and, with ``once``, of ``handle_request()``."""
        # Polling is for subclasses that asked for it by overriding service_actions(); others sleep (gh-85265).
        service_actions = getattr(self.service_actions, "__func__", None)
        polls = not once and service_actions is not socketserver.BaseServer.service_actions
        deadline = _after(seconds if polls or once else None)
        while not serving.stopping:
            try:
                self._echo_wait(serving, deadline)
                while not serving.stopping and self._echo_accept(serving):
                    if once:
                        return
                    if _is_over(deadline) or (self._echo_balance is not None and self._echo_balance.is_ahead()):
                        break
            except MemoryError as exc:  # wherever it came: it passes, as want of descriptors does
                self._echo_back_off(exc)
                time.sleep(self._echo_failures.pause)
            if polls:
                self._echo_call_service_actions()
                deadline = _after(seconds)
            elif _is_over(deadline):
                self.handle_timeout()
                return

    def _echo_call_service_actions(self) -> None:
        try:
            self.service_actions()
        except Exception as exc:
            log_event(logging.ERROR, "error", "exception in service_actions(); serving on", exc_info=exc)

    def _echo_wait(self, serving: Serving, deadline: Optional[float]) -> None:
        """Sleep until a client may be accepted, the run is to end, or the deadline has come."""
        # First the flag, then the look: a session that ends in between sees the flag and wakes us.
        serving.full = True
        listening = self._echo_has_room()
        if listening:
            serving.full = False
            if self._echo_failures.resting():
                listening = False
                deadline = (
                    self._echo_failures.resume_at if deadline is None else min(deadline, self._echo_failures.resume_at)
                )
        elif self._echo_registry.may_close_unseen():
            look_again = time.monotonic() + STEP
            deadline = look_again if deadline is None else min(deadline, look_again)
        serving.wait(listening, deadline)
        if self._echo_balance is not None:
            self._echo_balance.hold_back()

    def _echo_has_room(self) -> bool:
        limit = self._echo_options.max_connections
        return limit is None or len(self._echo_registry) < limit or self._echo_registry.reap()

    def _echo_accept(self, serving: Serving) -> bool:
        """Accept one connection and begin its session; return whether to go on accepting."""
        if not self._echo_has_room() or self._echo_failures.resting():
            return False
        # Trying is quicker than asking first, but a get_request() of a subclass may wait for a client.
        if type(self).get_request is not ListeningServer.get_request and not is_readable(self.socket, 0):
            return False
        try:
            request, client_address = self.get_request()
        except BlockingIOError:
            return False
        except OSError as exc:
            if not is_listening(self.socket):
                if not serving.stopping:
                    log_event(logging.ERROR, "listener-gone", "the listening socket is gone (%s); serving ends", exc)
                serving.stop()
                return False
            self._echo_registry.accept_failed()
            if exc.errno in _EXHAUSTED:
                self._echo_back_off(exc)
                return False
            # accept(2) reports errors of the connection that it would have returned, and a subclass's get_request()
            # may fail with its client, in a handshake for example: neither must delay the next client.
            return True
        except Exception as exc:  # a subclass's get_request()
            self._echo_registry.accept_failed()
            self._echo_back_off(exc)
            return False
        self._echo_registry.accepted()
        session = Session(request, client_address, proxied=self._echo_options.proxy_protocol)
        try:
            if self._echo_options.proxy_protocol or self._echo_options.ssl_context is not None:
                self._echo_admission.guard(self, session)
            self._echo_admission.check_at_door(self, session)
            self._echo_registry.add(session)
            self.process_request(session.request, client_address)
        except Refused as exc:
            log_refused(client_address, exc)
            self._echo_turn_away(session, exc.reason)
        except threads.NotStarted as exc:
            self._echo_registry.accept_failed()
            self._echo_turn_away(session, "error")
            self._echo_back_off(exc)
            return False
        except BaseException as exc:
            if isinstance(exc, Exception):
                self._echo_report(session.request, client_address)
            if session.thread_id == threading.get_ident():  # a subclass serves clients in this thread
                session.failed(exc)
                self._echo_end_session(session)
            elif not session.begun:  # else its thread runs, and closes it
                self._echo_turn_away(session, "error")
            if not isinstance(exc, Exception):
                raise
        if self._echo_failures.succeeded():
            log_event(logging.INFO, "accept-recovered", "accepting connections again")
        return True

    def _handle_request_noblock(self) -> None:
        """The standard library's own loops, and those of some programs, call this when a client has connected."""
        serving = self._echo_serving or Serving(self.socket)
        try:
            self._echo_accept(serving)
        finally:
            if serving is not self._echo_serving:
                serving.close()

    def _echo_back_off(self, exc: Exception) -> None:
        if self._echo_failures.failed():  # once a burst, however often it fails
            why = str(exc) or type(exc).__name__
            log_event(logging.WARNING, "accept-failed", "cannot accept connections for now: %s; trying again", why)

    # Admission.

    def set_access(
        self, allow: Iterable[str], deny: Iterable[str], proxy_allow_from: Optional[Iterable[str]] = None
    ) -> None:
        """Replace ``allow`` and ``deny``, and ``proxy_allow_from`` if it is given, for the clients to come.
        ``ValueError`` names an invalid network, and nothing changes. It also means that the clients have no addresses
        (a Unix socket without ``proxy_protocol``)."""
        self._echo_set_access(self._echo_options, allow, deny, proxy_allow_from)

    def _echo_set_access(self, options: Options, allow: Any, deny: Any, proxy_allow_from: Any) -> None:
        lists = {"allow": as_tuple("allow", allow), "deny": as_tuple("deny", deny)}
        if proxy_allow_from is not None:
            lists["proxy_allow_from"] = as_tuple("proxy_allow_from", proxy_allow_from)
        check_addresses(self, **lists)
        self._echo_admission.set_access(**lists)
        for name, networks in lists.items():
            if getattr(self, name) is getattr(options, name):  # else it is a subclass's own
                vars(self)[name] = networks  # a tuple: a change within a list would have no effect
            setattr(options, name, networks)

    def _echo_is_option(self, name: str, options: Options) -> bool:
        """Whether this attribute is an option, and not a subclass's own: one that does not set the option."""
        return type(self) is Server or bool(getattr(options, name) != OPTIONS[name].default)

    if not TYPE_CHECKING:  # checkers would allow the assignment of any attribute

        def __setattr__(self, name, value):
            options = vars(self).get("_echo_options") if name in FIXED else None
            if options is not None and self._echo_is_option(name, options):
                assign(options, name, value)
            super().__setattr__(name, value)

    def _echo_turn_away(self, session: Session, reason: str) -> None:
        """Close a connection that gets no session. Does not linger: this is the accepting thread."""
        self._echo_registry.forget(session)
        self._echo_registry.refused(reason)
        self._echo_close_quietly(session)

    def _echo_close_quietly(self, session: Session) -> None:
        try:
            self.shutdown_request(session.request)
        except Exception as exc:
            log_event(logging.ERROR, "error", "exception in shutdown_request()", exc_info=exc)
            with contextlib.suppress(Exception):
                self.close_request(session.request)  # no memory for a gentle end, for example
        if session.state != "closed":  # a subclass closes in its own way
            session.closed()

    # Sessions.

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the session a thread of its own."""
        session = self._echo_registry.get(request) or self._echo_adopt(request, client_address)
        session.begun = True
        task = self.process_request_thread, (request, client_address)

        def not_begun() -> None:
            session.begun = False

        if self.daemon_threads and self._echo_options.reuse_threads:
            self._echo_session_threads.run(task, not_begun)
        else:  # the interpreter waits at its exit for threads that are no daemons; they must not wait for a session
            threads.start(*task, not_begun, daemon=self.daemon_threads)

    def _echo_adopt(self, request: Any, client_address: Any) -> Session:
        """Make a session for a request that this server has not accepted itself."""
        session = Session(request, client_address)
        try:
            self._echo_admission.check_networks(client_address)
        except Refused as exc:
            log_refused(client_address, exc)
            self._echo_turn_away(session, exc.reason)
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
        except BaseException as exc:  # sys.exit() in a handler: the thread's end, but not in silence (bpo-23430)
            session.failed(exc)
            peer, name = format_address(session.client_address), type(exc).__name__
            log_event(logging.ERROR, "error", "%s: %s in the handler; its session ends", peer, name, peer=peer)
            raise
        finally:
            self._echo_end_session(session)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Make the handler, which serves the session. ``request`` may be a wrapper of what was accepted (TLS)."""
        session = self._echo_registry.get(request) or self._echo_registry.find(request)
        if session is not None:
            if session.opening is not None:
                session.opening()
                client_address = session.client_address
            if session.thread_id is None:
                session.thread_id = threading.get_ident()
            if request is not session.request:
                session.wrapped(request)
            if type(request) is not socket.socket:
                expect_shut_down(request)
        else:  # accepted by a program's own loop
            self._echo_admission.check_networks(client_address)
        handler_class: Any = self.RequestHandlerClass
        handler_class(request, client_address, self)

    def _echo_refuse(self, session: Session, exc: Refused) -> None:
        """Log that admission has refused a client. If it was the stop that ended the client's input, that is an
        orderly end."""
        if session.state == "draining":  # not input_ended: the stop wakes this thread before it sets that
            session.refused = None
            session.handler.ended_as = "drain"
            peer = format_address(session.client_address)
            log_event(logging.DEBUG, "drained", "%s drained before its session began", peer, peer=peer)
        else:
            self._echo_registry.release_host(session)
            log_refused(session.client_address, exc, None if session.unnamed else session.via)

    def _echo_end_session(self, session: Session) -> None:
        """Close the socket, if that has not been done, and count the end."""
        if not session.over:
            self._echo_close_quietly(session)
            if not session.over:  # a subclass does not call close_request()
                self._echo_count_end(session)

    def _echo_count_end(self, session: Session) -> None:
        serving = self._echo_serving
        if self._echo_registry.end(session) and serving is not None and serving.full:
            serving.full = False
            serving.wake()  # there is room again

    def shutdown_request(self, request: Any) -> None:
        """Close an accepted socket; after a session gently, so that no reply is lost."""
        session = self._echo_registry.get(request)
        if session is None:
            super().shutdown_request(request)
            return
        session.closing()
        connection = session.handler.connection
        ended = connection.aborted  # without the FIN that would come before the reset
        if not (ended or connection.peer_ended):  # else nothing more can arrive that a close would answer with a reset
            delivery_timeout = self._echo_delivery_timeout() if connection.input_ended else None
            timeouts = delivery_timeout, self._echo_linger_silence, LINGER_TIMEOUT, connection.send_timeout
            ended = linger(request, *timeouts, shared=not session.attached)
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
            self._echo_count_end(session)

    def _echo_delivery_timeout(self) -> float:
        timeout = None if self._echo_stop is None else self._echo_stop.delivery_timeout()
        return LINGER_TIMEOUT if timeout is None else timeout

    def attach(self, handler: Any) -> Optional[int]:
        """Let a handler take part in its session.

        The server adds up what ``handler.connection`` counts (``messages_in``, ``messages_out``, ``bytes_in``,
        ``bytes_out``), counts ``handler.reason`` as the session's end, and calls ``handler.drain()``, which must not
        block, when it stops. ``aborted``, ``peer_ended``, ``input_ended`` and ``send_timeout`` of the connection decide
        how the socket is closed. Sets ``handler.via`` and ``handler.unnamed``, which say what is known of a proxy.
        Returns the session's number, from 1 on; None if this server does not track the handler's request.
        """
        return self._echo_attach(handler)

    def _echo_attach(self, handler: Any) -> Optional[int]:
        session = self._echo_registry.get(handler.request) or self._echo_registry.find(handler.request)
        if session is None:
            return None
        handler.via, handler.unnamed = session.via, session.unnamed
        session.attach(handler)
        return session.number

    def _echo_report(self, request: Any, client_address: Any) -> None:
        try:
            self.handle_error(request, client_address)
        except Exception:  # for the program's own hook, as from a session's thread; the loop goes on
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))

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
            log_event(logging.ERROR, "error", "%s: exception while it was served", peer, exc_info=exc, peer=peer)

    # Statistics.

    connections = Connections()
    """The live connections, as they are now."""

    def stats(self) -> Statistics:
        """Sums since the server was made."""
        self._echo_registry.reap()
        return self._echo_registry.statistics()

    # Stopping.

    def shutdown(self) -> None:
        """End ``serve_forever()`` and wait until it has ended; sessions go on.

        Without a run it returns at once. Before the first run, it makes that one return at once: a stop must not
        lose against the start of a thread. In the serving thread itself (a signal handler) it does not wait.
        """
        self._echo_end_loop()

    def _echo_end_loop(self, *, wait: bool = True) -> None:
        with self._echo_lock:
            serving = self._echo_serving
            if serving is None:
                self._echo_past = max(self._echo_past, Past.SHUTDOWN)
                return
            serving.stop()
        if wait and serving.thread_id != threading.get_ident() and not self._echo_holds_lock():
            serving.ended.wait()

    @property
    def _BaseServer__shutdown_request(self) -> bool:  # noqa: N802 (socketserver's name)
        """The standard library's private flag. Programs set it to end ``serve_forever()`` without waiting."""
        serving = self._echo_serving
        return self._echo_past is Past.SHUTDOWN if serving is None else serving.stopping

    @_BaseServer__shutdown_request.setter
    def _BaseServer__shutdown_request(self, value: bool) -> None:  # noqa: N802
        if value:
            self._echo_end_loop(wait=False)
        elif self._echo_past is Past.SHUTDOWN:
            self._echo_past = Past.NOTHING

    def _echo_holds_lock(self) -> bool:
        """Whether the calling thread holds a lock that others need to end: a signal handler has interrupted a method
        that holds it, and must not wait for them."""
        serving = self._echo_serving
        in_loop = serving is not None and serving.is_locked_here()
        return in_loop or is_held(self._echo_lock) or self._echo_registry.is_locked_here()

    def stop(self, timeout: Optional[float] = None) -> bool:
        """Stop serving, drain, close; return whether all sessions finished in time.

        ``timeout``, in seconds, replaces ``shutdown_timeout``, and brings the deadline of a stop that is under way
        forward: 0 cuts what is left. Idempotent. In a session's own thread or the serving thread it begins the stop
        and returns at once, and the value that it returns means nothing.
        """
        if timeout is not None:
            OPTIONS["shutdown_timeout"].check(timeout)
            options = self._echo_options
            with self._echo_lock:
                if self._echo_stop is None or options.shutdown_timeout is None:
                    options.shutdown_timeout = timeout
                else:
                    options.shutdown_timeout = min(timeout, options.shutdown_timeout)
                if self._echo_stop is not None:
                    self._echo_stop.hurry(timeout)
        self.server_close()
        return self._echo_stop is not None and self._echo_stop.cut == 0

    def server_close(self) -> None:
        """Stop serving and accepting, drain the sessions until one deadline, cut the rest, and log how many.

        Idle sessions end at once; a busy one answers what has reached this host. Waits until all that is done, except
        in a session's own thread and in the serving thread: there it begins the stop and returns.
        """
        me = threading.get_ident()
        must_not_wait = self._echo_registry.serves(me) or self._echo_holds_lock()
        new = Stop(self._echo_registry, me, self._echo_cut_grace)
        # setdefault() is atomic. After an "if", the handler of a signal could begin another stop.
        stop = vars(self).setdefault("_echo_stop", new)
        serving = self._echo_serving
        in_loop = serving is not None and serving.thread_id == me
        if stop is not new:
            if in_loop or must_not_wait or stop.thread_id == me:  # the last: a signal handler has interrupted the stop
                return
            stop.ended.wait()
            if self._echo_stop is not stop:  # its thread did not start
                self.server_close()
                return
        elif in_loop and self._echo_leave_to_loop(stop):
            return
        elif must_not_wait:
            self._echo_run_stop_in_thread(stop)
            return
        else:
            self._echo_run_stop(stop)
        thread = self._echo_thread
        if thread is not None and thread.ident not in (None, me):
            thread.join()

    def _echo_leave_to_loop(self, stop: Stop) -> bool:
        """Let the thread that serves run the stop when its loop has ended; return whether one serves."""
        with self._echo_lock:
            if self._echo_serving is None:
                return False
            stop.thread_id = None
            self._echo_serving.stop()
            return True

    def _echo_run_stop_in_thread(self, stop: Stop) -> None:
        stop.thread_id = 0  # not this thread's: its next call may have to wait
        try:
            threading.Thread(target=self._echo_run_stop, args=(stop,), name="echo-server-close").start()
        except (RuntimeError, MemoryError):  # the system has no thread now
            if not self._echo_leave_to_loop(stop):
                vars(self).pop("_echo_stop")  # so that another thread can stop the server
                stop.ended.set()
                raise

    def _echo_run_stop(self, stop: Stop) -> None:
        stop.thread_id = threading.get_ident()
        try:
            self._echo_end_loop()
            with self._echo_lock:
                timeout = self._echo_options.shutdown_timeout
                stop.begin(timeout)
                hurried = self._echo_options.shutdown_timeout
                if hurried is not None and hurried != timeout:  # by a signal handler, before begin() had its effect
                    stop.hurry(hurried)
            self._echo_release_path()
            if timeout != 0:
                self._echo_accept_waiting(stop)
            super().server_close()
            stop.finish(log_end=self._echo_past >= Past.REQUEST)
            self._echo_session_threads.close()
        finally:
            stop.ended.set()
            # Last: an exit that comes during the stop waits for it, and holds the lock of atexit.
            atexit.unregister(self._echo_close_at_exit)

    def _echo_accept_waiting(self, stop: Stop) -> None:
        """Accept the clients that wait in the backlog: closing the listening socket would reset them, together with
        what they have sent, and a load balancer would take that for an answer. At most as many as the backlog holds,
        since others may go on coming, and as many as there is room for (``max_connections``)."""
        if self._echo_past is Past.LOOP and self.socket is not self._echo_inherited and is_listening(self.socket):
            try:
                serving = Serving(self.socket)
            except OSError:
                return  # out of descriptors: nobody could be let in
            try:
                for number in range(max(1, self.request_queue_size)):
                    if not self._echo_accept(serving) or stop.is_over():
                        break
                    if number == 0:
                        stop.start_draining()  # now: after a flood of others, the sessions would have no time left
            finally:
                serving.close(restore=False)

    def _echo_close_at_exit(self) -> None:
        if self._echo_stop is not None:
            self._echo_thread = None  # not to be joined: after its stop it may wait for the lock of atexit, held now
        self.server_close()

    def _echo_let_go(self) -> None:
        """In a forked child: a server that serves is its parent's. Here it is closed, and nobody's sessions end."""
        self._echo_lock = threading.RLock()
        self._echo_registry.let_go()
        serving, self._echo_serving, self._echo_thread = self._echo_serving, None, None
        if serving is not None:
            serving.let_go()
        self._echo_session_threads = threads.Threads()
        self._echo_stop = stop = Stop(self._echo_registry, threading.get_ident(), self._echo_cut_grace)
        stop.cut = 0
        stop.ended.set()
        self.socket.close()  # so that the port is free when the parent closes it, however long the child lives


def _after(seconds: Optional[float]) -> Optional[float]:
    """The time so many seconds from now; None, which never comes, for None."""
    return None if seconds is None else time.monotonic() + seconds


def _is_over(deadline: Optional[float]) -> bool:
    return deadline is not None and time.monotonic() >= deadline
