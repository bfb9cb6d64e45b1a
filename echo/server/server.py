"""``Server``: ``socketserver.ThreadingTCPServer`` with an accept loop that stops, bounds and survives.

It accepts, tracks, limits and drains. It runs any ``socketserver`` handler class and imports none: a handler that
wants more attaches itself (``attach``). The life of a connection::

    _accept ------> admission, at the door ------> process_request         in the accepting thread
                                                        |
                                               process_request_thread      in the session's thread
                                                        |
                              admission, in the thread, then finish_request: the handler's whole life
                                                        |
                                                   _end_session            the one place that releases it all

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
from typing import TYPE_CHECKING, Any, ContextManager, Iterable, List, Optional, TypeVar

from ..sockets import LINGER_SILENCE, LINGER_TIMEOUT, expect_shut_down, linger
from ..text import format_address
from . import forking, threads
from .accepting import BackOff, Serving, SharedPort, is_held
from .admission import Admission, Refused, import_what_options_need, log_refused
from .listening import ListeningServer, check_addresses, is_listening
from .options import OPTIONS
from .reporting import log_event
from .sessions import Registry, Session, is_loss
from .statistics import ConnectionInfo, Statistics
from .stopping import CUT_GRACE, Past, Stop

if TYPE_CHECKING:
    from typing_extensions import Unpack  # none of the checkers' packages is needed to run

    from .options import ServerOptions

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_Self = TypeVar("_Self", bound="Server")


class Server(ListeningServer):
    """A TCP server with one thread for each client.

    ``server_address`` is ``(host, port)``, port 0 for any free one, or a Unix socket's path.
    ``RequestHandlerClass`` is any ``socketserver`` handler class. The options (``Options``) are class attributes, as
    in ``socketserver``, and keyword arguments. Raises ``TypeError`` for an unknown option, ``TypeError`` or
    ``ValueError`` with the option's name for a wrong value, and ``OSError`` if the address is not available.

    Use it as ``with Server(...) as server: server.serve_forever()``, or ``server.start()`` to serve in the background
    and ``server.stop()`` to end. All methods may be called in any order and from any thread, a handler's
    and a signal handler's among them.

    It differs from the standard library's server in three points: only one thread serves at a time
    (``RuntimeError``); an exception in ``service_actions()`` does not end the loop; ``shutdown_timeout`` takes the
    place of ``block_on_close``.
    """

    balance: Optional[SharedPort] = None
    """Keeps the sessions even over several processes that share the port; None: this process is alone."""

    _cut_grace = CUT_GRACE
    _linger_silence = LINGER_SILENCE
    _stop_under_way: Optional[Stop] = None
    """The one stop of this server, from its beginning on."""

    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: Any,  # noqa: N803 (socketserver's name)
        bind_and_activate: bool = True,
        **options: Unpack[ServerOptions],
    ) -> None:
        self._lock = threading.RLock()
        self._registry = Registry()
        self._admission = Admission(self._registry)
        self._session_threads = threads.Threads()
        self._past = Past.NOTHING
        self._serving: Optional[Serving] = None
        self._thread: Optional[threading.Thread] = None  # of start()
        self._failures = BackOff()
        super().__init__(server_address, RequestHandlerClass, bind_and_activate, **options)

    def _apply_options(self) -> None:
        self.set_access(self.allow, self.deny, self.proxy_allow_from)
        import_what_options_need(self)
        if self.cpu_affinity is not None:
            from ..transport import affinity

            self.cpu_affinity = affinity.checked(self.cpu_affinity)

    # Serving.

    def serve_forever(self, poll_interval: Optional[float] = 0.5) -> None:
        """Accept connections until ``shutdown()``, ``stop()`` or ``server_close()``; then return. The last two drain
        the sessions first, so that a program does not end in the middle of that.

        Sleeps while there is nothing to do. ``poll_interval``, in seconds, matters only to a subclass with
        ``service_actions()``, which is called that often. Returns at once if ``shutdown()`` came first or the
        server is closed; raises ``RuntimeError`` if it is serving already.
        """
        serving = self._new_serving()
        if serving is not None:
            self._serve(serving, poll_interval)

    def handle_request(self) -> None:
        """Accept one connection and start its session; after ``timeout`` seconds call ``handle_timeout()`` instead.
        Returns at once if the server is closed; raises ``RuntimeError`` if it is serving already."""
        serving = self._new_serving()
        if serving is not None:
            timeouts = [seconds for seconds in (serving.listener_timeout, self.timeout) if seconds is not None]
            self._serve(serving, min(timeouts, default=None), once=True)

    def start(self: _Self) -> _Self:
        """Serve in a background thread; return the server. Does nothing if it is serving already; ``RuntimeError`` if
        it is closed."""
        serving = thread = None
        try:
            with self._lock:
                if self._stop_under_way is not None:
                    raise RuntimeError("the server is closed; make a new one")
                if self._serving is not None:
                    return self
                if self._past is Past.SHUTDOWN:
                    self._past = Past.NOTHING
                serving = self._new_serving()
                if serving is None:  # a stop() has begun since the look above; it takes no lock
                    raise RuntimeError("the server is closed; make a new one")
                self._begin_serving(serving)
                thread = threading.Thread(target=self._serve, args=(serving,), name="echo-server", daemon=True)
                self._thread = thread
            # Without the lock: starting waits for the thread, and a signal handler may run in the meantime.
            atexit.register(self._close_at_exit)  # daemon threads would die in mid-reply (gh-113964)
            thread.start()
            serving.thread_id = thread.ident or 0  # from here on this thread may wait for it
        except BaseException:
            if serving is not None and (thread is None or thread.ident is None):
                self._end_serving(serving)
            raise
        return self

    def _new_serving(self) -> Optional[Serving]:
        """Return what a run needs, before the run is known to anybody; None if the server is closed.

        Apart from ``_begin_serving``, so that the ``try`` whose end is ``_end_serving`` can stand around that:
        KeyboardInterrupt may come between any two lines, and a run that has begun and never ends would make each later
        stop wait.
        """
        with self._lock:
            if self._stop_under_way is not None:
                return None
            if self._serving is not None:
                raise RuntimeError("the server is serving already")
            try:
                expect_shut_down(self.socket)
                return Serving(self.socket, shared=self._inherited)
            except OSError:
                if self._stop_under_way is not None:  # a signal handler has stopped the server meanwhile
                    return None
                raise

    def _begin_serving(self, serving: Serving) -> None:
        """Begin this run, unless start() has begun it."""
        with self._lock:
            if self._serving is serving:
                return
            if self._serving is not None:
                raise RuntimeError("the server is serving already")
            if (
                self._past < Past.REQUEST
            ):  # until then a child may serve, too: that is how several processes share a port
                forking.in_child(self._let_go)
            self._serving = serving
            # Only now: the shutdown() of a signal handler either found no Serving, and is in _past, or found this one.
            if self._past is Past.SHUTDOWN or self._stop_under_way is not None:
                serving.stop()
            self._past = max(self._past, Past.REQUEST)

    def _end_serving(self, serving: Serving) -> None:
        with self._lock:
            stop = self._stop_under_way
            serving.close(restore=stop is None and self._serving in (serving, None))
            if self._serving is not serving:
                return  # it has not begun
            self._serving = None
            left_to_us = stop is not None and stop.thread_id is None
            if stop is not None and left_to_us:
                stop.thread_id = threading.get_ident()
        serving.ended.set()
        if stop is not None:
            if left_to_us:
                self._run_stop(stop)
            else:
                stop.ended.wait()  # the stop has waited for this run, and for nothing that comes after it

    def _serve(self, serving: Serving, seconds: Optional[float] = 0.5, *, once: bool = False) -> None:
        """Accept clients in the calling thread until a stop or, if ``once``, until a client or ``seconds`` are over."""
        try:
            self._begin_serving(serving)
            serving.enter()
            if self.balance is not None:
                self._registry.publish = self.balance.set
            if once:
                self._accept_clients(serving, seconds, once)
            else:
                self._past = Past.LOOP
                with self._kept_to_processors():
                    self._accept_clients(serving, seconds, once)
        finally:
            self._end_serving(serving)

    def _kept_to_processors(self) -> ContextManager[None]:
        if self.cpu_affinity is None:
            return contextlib.nullcontext()
        from ..transport import affinity

        return affinity.kept_to_some(self.cpu_affinity)

    def _accept_clients(self, serving: Serving, seconds: Optional[float], once: bool) -> None:
        """The accept loop, of ``serve_forever()`` and, with ``once``, of ``handle_request()``."""
        # Polling is for subclasses that asked for it by overriding service_actions(); others sleep (gh-85265).
        service_actions = getattr(self.service_actions, "__func__", None)
        polls = not once and service_actions is not socketserver.BaseServer.service_actions
        deadline = _after(seconds if polls or once else None)
        while not serving.stopping:
            try:
                self._wait(serving, deadline)
                while not serving.stopping and self._accept(serving):
                    if once:
                        return
                    if _is_over(deadline) or (self.balance is not None and self.balance.is_ahead()):
                        break
            except MemoryError as exc:  # wherever it came: it passes, as want of descriptors does
                self._back_off(exc)
                time.sleep(self._failures.pause)
            if polls:
                self._call_service_actions()
                deadline = _after(seconds)
            elif _is_over(deadline):
                self.handle_timeout()
                return

    def _call_service_actions(self) -> None:
        try:
            self.service_actions()
        except Exception as exc:
            log_event(logging.ERROR, "error", "exception in service_actions(); serving on", exc_info=exc)

    def _wait(self, serving: Serving, deadline: Optional[float]) -> None:
        """Sleep until a client may be accepted, the run is to end, or the deadline has come."""
        # First the flag, then the look: a session that ends in between sees the flag and wakes us.
        serving.full = True
        listening = self._has_room()
        if listening:
            serving.full = False
            if self._failures.resting():
                listening = False
                deadline = self._failures.resume_at if deadline is None else min(deadline, self._failures.resume_at)
        serving.wait(listening, deadline)
        if self.balance is not None:
            self.balance.hold_back()

    def _has_room(self) -> bool:
        return self.max_connections is None or len(self._registry) < self.max_connections

    def _accept(self, serving: Serving) -> bool:
        """Accept one connection and begin its session; return whether to go on accepting."""
        if not self._has_room() or self._failures.resting():
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
            self._registry.accept_failed()
            if exc.errno in _EXHAUSTED:
                self._back_off(exc)
                return False
            # accept(2) reports errors of the connection that it would have returned, and a subclass's get_request()
            # may fail with its client, in a handshake for example: neither must delay the next client.
            return True
        except Exception as exc:  # a subclass's get_request()
            self._registry.accept_failed()
            self._back_off(exc)
            return False
        self._registry.accepted()
        session = Session(request, client_address, proxied=self.proxy_protocol)
        try:
            if self.proxy_protocol or self.ssl_context is not None:
                self._admission.guard(self, session)
            self._admission.check_at_door(self, session)
            self._registry.add(session)
            self.process_request(session.request, client_address)
        except Refused as exc:
            log_refused(client_address, exc)
            self._turn_away(session, exc.reason)
        except threads.NotStarted as exc:
            self._registry.accept_failed()
            self._turn_away(session, "error")
            self._back_off(exc)
            return False
        except BaseException as exc:
            if isinstance(exc, Exception):
                self._report(session.request, client_address)
            if session.thread_id == threading.get_ident():  # a subclass serves clients in this thread
                session.failed(exc)
                self._end_session(session)
            elif not session.begun:  # else its thread runs, and closes it
                self._turn_away(session, "error")
            if not isinstance(exc, Exception):
                raise
        if self._failures.succeeded():
            log_event(logging.INFO, "accept-recovered", "accepting connections again")
        return True

    def _back_off(self, exc: Exception) -> None:
        if self._failures.failed():  # once a burst, however often it fails
            why = str(exc) or type(exc).__name__
            log_event(logging.WARNING, "accept-failed", "cannot accept connections for now: %s; trying again", why)

    # Admission.

    def set_access(
        self, allow: Iterable[str], deny: Iterable[str], proxy_allow_from: Optional[Iterable[str]] = None
    ) -> None:
        """Replace ``allow`` and ``deny``, and ``proxy_allow_from`` if it is given, for the clients to come.
        ``ValueError`` names an invalid network, and nothing changes. It also means that the clients have no addresses
        (a Unix socket without ``proxy_protocol``)."""
        check_addresses(self, allow, deny, proxy_allow_from)
        self._admission.set_access(allow, deny, proxy_allow_from)

    def _turn_away(self, session: Session, reason: str) -> None:
        """Close a connection that gets no session. Does not linger: this is the accepting thread."""
        self._registry.forget(session)
        self._registry.refused(reason)
        self._close_quietly(session)

    def _close_quietly(self, session: Session) -> None:
        try:
            self.shutdown_request(session.request)
        except Exception as exc:
            log_event(logging.ERROR, "error", "exception in shutdown_request()", exc_info=exc)
            with contextlib.suppress(Exception):
                self.close_request(session.request)  # no memory for a gentle end, for example
        session.closed()  # a subclass may close in its own way

    # Sessions.

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the session a thread of its own."""
        session = self._session(request, client_address)
        session.begun = True
        task = self.process_request_thread, (request, client_address)

        def not_begun() -> None:
            session.begun = False

        if self.daemon_threads:
            self._session_threads.run(task, not_begun)
        else:  # the interpreter waits for such threads at its exit; they must not wait for another session then
            threads.start(*task, not_begun, daemon=False)

    def _session(self, request: Any, client_address: Any) -> Session:
        """The session of a request; a new one for a request that this server has not accepted itself."""
        session = self._registry.get(request)
        if session is None:
            session = Session(request, client_address)
            self._registry.add(session)
        return session

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """A session, in its own thread, from admission to the closed socket."""
        session = self._session(request, client_address)
        session.begun = session.ours = True
        session.thread_id = threading.get_ident()
        try:
            if session.opening is not None:
                session.opening()
                client_address = session.client_address
            self.finish_request(request, client_address)
        except Exception as exc:
            if isinstance(exc, Refused) and session.refused is not None:
                self._refuse(session, exc)
            else:
                if session.refused is not None:
                    self._registry.release_host(session)
                session.failed(exc)
                self.handle_error(request, session.client_address)
        except BaseException as exc:  # sys.exit() in a handler: the thread's end, but not in silence (bpo-23430)
            session.failed(exc)
            peer, name = format_address(session.client_address), type(exc).__name__
            log_event(logging.ERROR, "error", "%s: %s in the handler; its session ends", peer, name, peer=peer)
            raise
        finally:
            self._end_session(session)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Make the handler, which serves the session. ``request`` may be a wrapper of what was accepted (TLS)."""
        session = self._registry.find(request)
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
        handler_class: Any = self.RequestHandlerClass
        handler_class(request, client_address, self)

    def _refuse(self, session: Session, exc: Refused) -> None:
        """Log that admission has refused a client. If it was the stop that ended the client's input, that is an
        orderly end."""
        if session.state == "draining":  # not input_ended: the stop wakes this thread before it sets that
            session.refused = None
            session.handler.ended_as = "drain"
            peer = format_address(session.client_address)
            log_event(logging.DEBUG, "drained", "%s drained before its session began", peer, peer=peer)
        else:
            self._registry.release_host(session)
            log_refused(session.client_address, exc, None if session.unnamed else session.via)

    def _end_session(self, session: Session) -> None:
        """Close the socket, if that has not been done, and count the end."""
        if self._registry.get(session.request) is session:
            self._close_quietly(session)
            self._count_end(session)

    def _count_end(self, session: Session) -> None:
        serving = self._serving
        if self._registry.end(session) and serving is not None and serving.full:
            serving.full = False
            serving.wake()  # there is room again

    def shutdown_request(self, request: Any) -> None:
        """Close an accepted socket; after a session gently, so that no reply is lost."""
        session = self._registry.get(request)
        if session is not None:
            session.closing()
            connection = session.handler.connection
            if connection.aborted:
                self.close_request(request)  # without the FIN that would come before the reset
                return
            if not connection.peer_ended:  # else nothing more can arrive that a close would answer with a reset
                delivery_timeout = self._delivery_timeout() if connection.input_ended else None
                timeouts = delivery_timeout, self._linger_silence, LINGER_TIMEOUT, connection.send_timeout
                linger(request, *timeouts, shared=not session.attached)
        super().shutdown_request(request)

    def close_request(self, request: Any) -> None:
        """Close an accepted socket at once. Here, at the latest, its session is over."""
        session = self._registry.get(request)
        if session is None:
            super().close_request(request)
            return
        session.closing()
        session.closed()
        try:
            super().close_request(request)
        finally:
            self._count_end(session)

    def _delivery_timeout(self) -> float:
        timeout = None if self._stop_under_way is None else self._stop_under_way.delivery_timeout()
        return LINGER_TIMEOUT if timeout is None else timeout

    def attach(self, handler: Any) -> Optional[int]:
        """Let a handler take part in its session.

        The server adds up what ``handler.connection`` counts (``messages_in``, ``messages_out``, ``bytes_in``,
        ``bytes_out``), counts ``handler.reason`` as the session's end, and calls ``handler.drain()``, which must not
        block, when it stops. ``aborted``, ``peer_ended``, ``input_ended`` and ``send_timeout`` of the connection decide
        how the socket is closed. Sets ``handler.via`` and ``handler.unnamed``, which say what is known of a proxy.
        Returns the session's number, from 1 on; None if this server does not track the handler's request.
        """
        session = self._registry.find(handler.request)
        if session is None:
            return None
        handler.via, handler.unnamed = session.via, session.unnamed
        session.attach(handler)
        return session.number

    def _report(self, request: Any, client_address: Any) -> None:
        try:
            self.handle_error(request, client_address)
        except Exception as exc:
            log_event(logging.ERROR, "error", "exception in handle_error()", exc_info=exc)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the exception that is being handled: one record, with the client's address.

        A client that is gone is not an error: a DEBUG record without a traceback.
        """
        exc = sys.exc_info()[1]
        peer = format_address(client_address)
        session = self._registry.find(request)
        if session is not None and exc is not None:
            if isinstance(exc, Refused) and session.refused is not None:  # by the first use of the socket
                self._refuse(session, exc)
                return
            session.failed(exc)
        if is_loss(exc, request) if session is None else session.is_loss(exc):
            log_event(logging.DEBUG, "reset", "%s: %s", peer, exc, peer=peer)
        else:
            log_event(logging.ERROR, "error", "%s: exception while it was served", peer, exc_info=exc, peer=peer)

    # Statistics.

    @property
    def connections(self) -> List[ConnectionInfo]:
        """The live connections, as they are now."""
        self._registry.reap()
        return [session.info() for session in self._registry.sessions()]

    def stats(self) -> Statistics:
        """Sums since the server was made."""
        self._registry.reap()
        return self._registry.statistics()

    # Stopping.

    def shutdown(self) -> None:
        """End ``serve_forever()`` and wait until it has ended; sessions go on.

        Without a run it returns at once. Before the first run, it makes that one return at once: a stop must not
        lose against the start of a thread. In the serving thread itself (a signal handler) it does not wait.
        """
        with self._lock:
            serving = self._serving
            if serving is None:
                self._past = max(self._past, Past.SHUTDOWN)
                return
            serving.stop()
        if serving.thread_id != threading.get_ident() and not self._holds_lock():
            serving.ended.wait()

    def _holds_lock(self) -> bool:
        """Whether the calling thread holds a lock that others need to end: a signal handler has interrupted a method
        that holds it, and must not wait for them."""
        serving = self._serving
        in_loop = serving is not None and serving.is_locked_here()
        return in_loop or is_held(self._lock) or self._registry.is_locked_here()

    def stop(self, timeout: Optional[float] = None) -> bool:
        """Stop serving, drain, close; return whether all sessions finished in time.

        ``timeout``, in seconds, replaces ``shutdown_timeout``, and brings the deadline of a stop that is under way
        forward: 0 cuts what is left. Idempotent. In a session's own thread or the serving thread it begins the stop
        and returns at once, and the value that it returns means nothing.
        """
        if timeout is not None:
            OPTIONS["shutdown_timeout"].check(timeout)
            with self._lock:
                if self._stop_under_way is None or self.shutdown_timeout is None:
                    self.shutdown_timeout = timeout
                else:
                    self.shutdown_timeout = min(timeout, self.shutdown_timeout)
                if self._stop_under_way is not None:
                    self._stop_under_way.hurry(timeout)
        self.server_close()
        return self._stop_under_way is not None and self._stop_under_way.cut == 0

    def server_close(self) -> None:
        """Stop serving and accepting, drain the sessions until one deadline, cut the rest, and log how many.

        Idle sessions end at once; a busy one answers what has reached this host. Waits until all that is done, except
        in a session's own thread and in the serving thread: there it begins the stop and returns.
        """
        me = threading.get_ident()
        must_not_wait = self._registry.serves(me) or self._holds_lock()
        new = Stop(self._registry, me, self._cut_grace)
        # setdefault() is atomic. After an "if", the handler of a signal could begin another stop.
        stop = vars(self).setdefault("_stop_under_way", new)
        serving = self._serving
        in_loop = serving is not None and serving.thread_id == me
        if stop is not new:
            if in_loop or must_not_wait or stop.thread_id == me:  # the last: a signal handler has interrupted the stop
                return
            stop.ended.wait()
            if self._stop_under_way is not stop:  # its thread did not start
                self.server_close()
                return
        elif in_loop and self._leave_to_loop(stop):
            return
        elif must_not_wait:
            self._run_stop_in_thread(stop)
            return
        else:
            self._run_stop(stop)
        thread = self._thread
        if thread is not None and thread.ident not in (None, me):
            thread.join()

    def _leave_to_loop(self, stop: Stop) -> bool:
        """Let the thread that serves run the stop when its loop has ended; return whether one serves."""
        with self._lock:
            if self._serving is None:
                return False
            stop.thread_id = None
            self._serving.stop()
            return True

    def _run_stop_in_thread(self, stop: Stop) -> None:
        stop.thread_id = 0  # not this thread's: its next call may have to wait
        try:
            threading.Thread(target=self._run_stop, args=(stop,), name="echo-server-close").start()
        except (RuntimeError, MemoryError):  # the system has no thread now
            if not self._leave_to_loop(stop):
                vars(self).pop("_stop_under_way")  # so that another thread can stop the server
                stop.ended.set()
                raise

    def _run_stop(self, stop: Stop) -> None:
        stop.thread_id = threading.get_ident()
        try:
            self.shutdown()
            with self._lock:
                timeout = self.shutdown_timeout
                stop.begin(timeout)
                hurried = self.shutdown_timeout
                if hurried is not None and hurried != timeout:  # by a signal handler, before begin() had its effect
                    stop.hurry(hurried)
            self._release_path()
            if timeout != 0:
                self._accept_waiting(stop)
            super().server_close()
            stop.finish(log_end=self._past >= Past.REQUEST)
            self._session_threads.close()
        finally:
            stop.ended.set()
            # Last: an exit that comes during the stop waits for it, and holds the lock of atexit.
            atexit.unregister(self._close_at_exit)

    def _accept_waiting(self, stop: Stop) -> None:
        """Accept the clients that wait in the backlog: closing the listening socket would reset them, together with
        what they have sent, and a load balancer would take that for an answer. At most as many as the backlog holds,
        since others may go on coming, and as many as there is room for (``max_connections``)."""
        if self._past is Past.LOOP and not self._inherited and is_listening(self.socket):
            try:
                serving = Serving(self.socket)
            except OSError:
                return  # out of descriptors: nobody could be let in
            try:
                for number in range(max(1, self.request_queue_size)):
                    if not self._accept(serving) or stop.is_over():
                        break
                    if number == 0:
                        stop.start_draining()  # now: after a flood of others, the sessions would have no time left
            finally:
                serving.close(restore=False)

    def _close_at_exit(self) -> None:
        if self._stop_under_way is not None:
            self._thread = None  # not to be joined: after its stop it may wait for the lock of atexit, held now
        self.server_close()

    def _let_go(self) -> None:
        """In a forked child: a server that serves is its parent's. Here it is closed, and nobody's sessions end."""
        self._lock = threading.RLock()
        self._registry.let_go()
        serving, self._serving, self._thread = self._serving, None, None
        if serving is not None:
            serving.let_go()
        self._session_threads = threads.Threads()
        self._stop_under_way = stop = Stop(self._registry, threading.get_ident(), self._cut_grace)
        stop.cut = 0
        stop.ended.set()
        self.socket.close()  # so that the port is free when the parent closes it, however long the child lives


def _after(seconds: Optional[float]) -> Optional[float]:
    """The time so many seconds from now; None, which never comes, for None."""
    return None if seconds is None else time.monotonic() + seconds


def _is_over(deadline: Optional[float]) -> bool:
    return deadline is not None and time.monotonic() >= deadline
