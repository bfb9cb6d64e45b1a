"""``Server``: ``socketserver.ThreadingTCPServer`` with an accept loop that stops, bounds and survives.

It accepts, tracks, limits and drains. It runs any ``socketserver`` handler class and imports none: a handler that
wants more attaches itself (``attach``).

The rules:

* Nothing a client, a handler or the system does ends the accept loop; only a stop does, or the loss of the
  listening socket.
* A stop belongs to one run of the loop (``Serving``). A flag on the server, as the standard library has it, lets
  a second ``shutdown()`` poison the next ``serve_forever()``, and an early one wait for ever.
* Who waits, waits only where waiting can end: a session's thread does not wait for sessions, the serving
  thread does not wait for its own loop, a signal handler does not wait for what it interrupted.
* Whatever is acquired after ``accept`` is released in one place, ``_end_session``.
* Locks are reentrant, since a signal handler may stop the server in the middle of anything.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import random
import socket
import socketserver
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Iterable, List, Optional, Tuple, Type, TypeVar

from ..cli.server.balance import Balance
from ..sockets import INET, LINGER_SILENCE, LINGER_TIMEOUT, keep_alive, linger
from ..text import format_address, plural
from ..transport import affinity
from ..transport.tls import TLSSocket
from . import listening as listeners
from . import threads
from .accepting import BackOff, ReentrantEvent, Serving
from .access import AccessList
from .admission import Refused, receive_header, shake_hands
from .options import OPTIONS, Options, set_options
from .reporting import log_event
from .sessions import ConnectionInfo, Registry, Session, Statistics, host_of

if TYPE_CHECKING:
    from typing_extensions import Unpack  # none of the checkers' packages is needed to run

    from .options import ServerOptions

CUT_GRACE = 1.0
"""Seconds that sessions which were cut at the deadline have to notice it."""

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_ACCEPTED_BLOCK = sys.platform.startswith("linux")  # elsewhere accepted sockets have the listening one's mode

_Self = TypeVar("_Self", bound="Server")


class Server(Options, socketserver.ThreadingTCPServer):
    """A TCP server with one thread for each client.

    ``server_address`` is ``(host, port)``, port 0 for any free one, or a Unix socket's path.
    ``RequestHandlerClass`` is any ``socketserver`` handler class. The options (``Options``) are class attributes, as
    in ``socketserver``, and keyword arguments; an unknown one is a ``TypeError``, a wrong value a ``TypeError`` or
    ``ValueError`` that names the option. ``OSError`` if the address cannot be had.

    Use it as ``with Server(...) as server: server.serve_forever()``, or ``server.start()`` to serve in the background
    and ``server.stop()`` to end. All methods may be called in any order and from any thread, a handler's
    and a signal handler's among them.

    It differs from the standard library's where that cannot be kept: only one thread serves at a time
    (``RuntimeError``); an exception in ``service_actions()`` does not end the loop; ``shutdown_timeout`` takes the
    place of ``block_on_close``.
    """

    server_address: Any
    """Where it listens: ``(host, port)``, two numbers more with IPv6, or a Unix socket's path."""
    # Any: socketserver's type knows no paths, and checkers would refuse a wider one where it goes to echo.connect().

    balance: Optional[Balance] = None
    """What keeps the sessions even over several processes that share the port; None: this process is alone."""

    _cut_grace = CUT_GRACE
    _linger_silence = LINGER_SILENCE

    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: Any,  # noqa: N803 (socketserver's name)
        bind_and_activate: bool = True,
        **options: Unpack[ServerOptions],
    ) -> None:
        self._lock = threading.RLock()
        self._registry = Registry()
        self._session_threads = threads.Threads()
        self._run: Optional[Serving] = None
        self._stop_early = False  # shutdown() came before the first run
        self._served = self._looped = False
        self._thread: Optional[threading.Thread] = None
        self._closer: Optional[int] = None  # the thread that closes
        self._close_after_run = False
        self._closed = ReentrantEvent()
        self._deadline: Optional[float] = None  # of the drain; set while closing
        self._cut = 0
        self._full = False
        self._failures = BackOff()
        set_options(self, options)
        self.set_access(self.allow, self.deny, self.proxy_allow_from)
        processors = affinity.choose(self.cpu_affinity, 0)  # so that a senseless one is told here
        if not isinstance(self.cpu_affinity, str):
            self.cpu_affinity = processors  # an iterator can be asked once
        self.address_family = listeners.family_of(server_address) or self.address_family
        self._inherited = False  # the listening socket was made elsewhere
        self._path: Any = None
        self._inode: Optional[listeners.Inode] = None
        super().__init__(server_address, RequestHandlerClass, bind_and_activate)

    @classmethod
    def from_socket(
        cls: Type[_Self],
        sock: socket.socket,
        RequestHandlerClass: Any,  # noqa: N803
        **options: Unpack[ServerOptions],
    ) -> _Self:
        """Serve on a listening socket made elsewhere: by systemd, a parent process, the server before this one.

        It is this server's from now on, and is closed with it; its address, and a Unix socket's path, are left to
        whoever bound it. Its mode becomes non-blocking and stays so, since other processes may share that. Raises
        ``ValueError`` for a socket that does not listen, and the rest as ``Server`` does.
        """
        listeners.check_listening(sock)
        server = cls(sock.getsockname(), RequestHandlerClass, False, **options)
        server.socket.close()
        server.socket = sock
        server.address_family = sock.family
        server._inherited = True
        sock.setblocking(False)
        server.server_activate()
        return server

    # The listening socket.

    def server_bind(self) -> None:
        if os.name == "nt":
            self.socket.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE"), 1)  # noqa: B009
        if self.address_family not in INET:
            self.allow_reuse_port = False  # there are no ports
        if self.allow_reuse_port and hasattr(socket, "SO_REUSEPORT"):  # the standard library does it since 3.11
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not self.dual_stack)
        if self.address_family != getattr(socket, "AF_UNIX", None):
            self.server_address = listeners.with_zone(self.server_address)
            super().server_bind()
        else:
            self._path = listeners.absolute(self.server_address)
            listeners.claim_path(self.server_address)
            super().server_bind()
            self._inode = listeners.inode_of(self._path)
            self._bound_by = os.getpid()  # a forked worker's end is not the path's
            if self._inode is not None and self.unix_mode is not None:
                os.chmod(self._path, self.unix_mode)  # nobody can have connected: it does not listen yet

    def server_activate(self) -> None:
        # Accepted sockets inherit both: no system call for each connection. A lost peer is noticed at last, and a
        # small reply never waits 40 ms for the acknowledgement of the one before (gh-108736).
        keep_alive(self.socket)
        if self.address_family in INET:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._inherited:  # else its backlog is its maker's affair
            super().server_activate()

    def get_request(self) -> Tuple[socket.socket, Any]:
        request, client_address = self.socket.accept()
        if not _ACCEPTED_BLOCK or request.gettimeout() is not None:  # socket.setdefaulttimeout()
            request.setblocking(True)
        if self.address_family == getattr(socket, "AF_UNIX", None):
            client_address = listeners.peer_name(request)
        if self.ssl_context is not None:
            request = TLSSocket(request)
        return request, client_address

    # Serving.

    def serve_forever(self, poll_interval: Optional[float] = 0.5) -> None:
        """Accept connections until ``shutdown()``, ``stop()`` or ``server_close()``; then return.

        Sleeps while there is nothing to do. ``poll_interval``, in seconds, matters only to a subclass with
        ``service_actions()``, which is called that often. Returns at once if ``shutdown()`` came first or the
        server is closed; raises ``RuntimeError`` if it is serving already.
        """
        run = self._begin_run()
        if run is not None:
            self._serve(run, poll_interval)

    def handle_request(self) -> None:
        """Accept one connection and start its session; after ``timeout`` seconds call ``handle_timeout()`` instead.
        Returns at once if the server is closed; raises ``RuntimeError`` if it is serving already."""
        run = self._begin_run()
        if run is None:
            return
        timeouts = [seconds for seconds in (run.listener_timeout, self.timeout) if seconds is not None]
        try:
            run.enter()
            deadline = time.monotonic() + min(timeouts) if timeouts else None
            while not run.stopping:
                self._wait(run, deadline)
                if not run.stopping and self._accept(run):
                    break
                if deadline is not None and time.monotonic() >= deadline:
                    self.handle_timeout()
                    break
        finally:
            self._end_run(run)

    def start(self: _Self) -> _Self:
        """Serve in a background thread; return the server. Does nothing if it is serving already; ``RuntimeError`` if
        it is closed."""
        with self._lock:
            if self._closer is not None or self._closed.is_set():
                raise RuntimeError("the server is closed; make a new one")
            if self._run is not None:
                return self
            self._stop_early = False
            run = self._begin_run()
            assert run is not None
            self._thread = threading.Thread(target=self._serve, args=(run,), name="echo-server", daemon=True)
        # Without the lock: starting waits for the thread, and a signal handler may run in the meantime.
        try:
            atexit.register(self._close_at_exit, os.getpid())  # daemon threads would die in mid-reply (gh-113964)
            self._thread.start()
            run.thread_id = self._thread.ident or 0  # from here on this thread may wait for it
        except BaseException:
            if self._thread.ident is None:
                self._end_run(run)
            raise
        return self

    def _begin_run(self) -> Optional[Serving]:
        with self._lock:
            if self._closer is not None or self._closed.is_set():
                return None
            if self._run is not None:
                raise RuntimeError("the server is serving already")
            self._run = Serving(self.socket, shared=self._inherited)
            self._served = True
            # Asked only now: a signal handler's shutdown() finds either no run, and leaves word, or this one.
            if self._stop_early:
                self._stop_early = False
                self._run.stop()
            return self._run

    def _end_run(self, run: Serving) -> None:
        with self._lock:
            run.close()
            self._run = None
            close, self._close_after_run = self._close_after_run, False
        run.ended.set()
        if close:
            self.server_close()

    def _serve(self, run: Serving, poll_interval: Optional[float] = 0.5) -> None:
        try:
            run.enter()
            self._looped = True
            with affinity.kept_to(affinity.choose(self.cpu_affinity, random.randrange(1 << 16))):
                self._accept_until_stopped(run, poll_interval)
        finally:
            self._end_run(run)

    def _accept_until_stopped(self, run: Serving, poll_interval: Optional[float]) -> None:
        # Polling is for those who asked for it by overriding service_actions(); all others sleep (gh-85265).
        polls = getattr(self.service_actions, "__func__", None) is not socketserver.BaseServer.service_actions
        while not run.stopping:
            deadline = time.monotonic() + poll_interval if polls and poll_interval is not None else None
            self._wait(run, deadline)
            while not run.stopping and self._accept(run):
                if deadline is not None and time.monotonic() >= deadline:
                    break
                if self.balance is not None and self.balance.is_ahead():
                    break
            if polls:
                try:
                    self.service_actions()
                except Exception as exc:
                    log_event(logging.ERROR, "error", "exception in service_actions(); serving on", exc_info=exc)

    def _wait(self, run: Serving, deadline: Optional[float]) -> None:
        """Sleep until a client may be accepted, the run is to end, or the deadline has come."""
        # First the flag, then the look: a session that ends in between sees the flag and wakes us.
        self._full = True
        listening = self._has_room()
        if listening:
            self._full = False
            if self._failures.resting():
                listening = False
                deadline = self._failures.resume_at if deadline is None else min(deadline, self._failures.resume_at)
        run.wait(listening, deadline)
        self._tell_balance()  # again: of two sessions that ended at once, the last to tell may have told an older count
        if self.balance is not None:
            self.balance.hold_back()

    def _has_room(self) -> bool:
        return self.max_connections is None or len(self._registry) < self.max_connections

    def _accept(self, run: Serving) -> bool:
        """Accept one connection and begin its session; whether to go on accepting."""
        if not self._has_room() or self._failures.resting():
            return False
        try:
            request, client_address = self.get_request()
        except BlockingIOError:
            return False
        except OSError as exc:
            if not self._is_listening():
                if not run.stopping:
                    log_event(logging.ERROR, "listener-gone", "the listening socket is gone (%s); serving ends", exc)
                run.stop()
                return False
            self._registry.accept_failed()
            if exc.errno in _EXHAUSTED:
                self._back_off(exc)
                return False
            # accept(2) reports what befell the connection that it would have returned, and a subclass's
            # get_request() may fail with its client, in a handshake say: neither must hold up the next.
            return True
        except Exception as exc:  # a subclass's get_request()
            self._registry.accept_failed()
            self._back_off(exc)
            return False
        self._registry.accepted()
        try:
            if self.proxy_protocol:
                self._check_proxy(client_address)
            else:
                host = host_of(client_address)
                self._check_client(request, client_address, host, self._registry.from_host(client_address))
            self.process_request(request, client_address)
        except Refused as exc:
            self._registry.refused(exc.reason)
            self._log_refused(client_address, exc)
            self._close_quietly(request)
        except threads.NotStarted as exc:
            self._registry.refused("error")
            self._registry.accept_failed()
            self._close_quietly(request)
            self._back_off(exc)
            return False
        except BaseException as exc:
            if isinstance(exc, Exception):
                self._report(request, client_address)
            if self._registry.get(request) is None:  # else its thread runs, and closes it
                self._registry.refused("error")
                self._close_quietly(request)
            if not isinstance(exc, Exception):
                raise
        if self._failures.succeeded():
            log_event(logging.INFO, "accept-recovered", "accepting connections again")
        return True

    def _is_listening(self) -> bool:
        try:
            return bool(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        except OSError:  # closed
            return False

    def _back_off(self, exc: Exception) -> None:
        if self._failures.failed():  # once a burst, however often it fails
            log_event(logging.WARNING, "accept-failed", "cannot accept connections for now: %s; trying again", exc)

    # Admission.

    def set_access(
        self, allow: Iterable[str], deny: Iterable[str], proxy_allow_from: Optional[Iterable[str]] = None
    ) -> None:
        """Replace ``allow`` and ``deny``, and ``proxy_allow_from`` if it is given, for the clients to come.
        ``ValueError`` names what is no network, and nothing changes."""
        access = AccessList(allow, deny)
        if proxy_allow_from is not None:
            self._proxies = AccessList(proxy_allow_from, option="proxy_allow_from")
        self._access = access

    def _check_proxy(self, client_address: Any) -> None:
        if not self._proxies.permits(host_of(client_address)):
            raise Refused("proxy", "no proxy of ours")

    def _check_client(self, request: Any, client_address: Any, host: Optional[str], others: int) -> None:
        """Refuse who may not come in; ``others`` are the sessions that its host has already."""
        if not self._access.permits(host):
            raise Refused("denied", "not from this address")
        limit = self.max_connections_per_host
        if limit is not None and others >= limit:
            raise Refused("limit", f"{plural(limit, 'session')} from this address")
        if not self.verify_request(request, client_address):
            raise Refused("denied", "verify_request")

    def _welcome(self, session: Session) -> None:
        """What comes between accept and the handler, in the session's thread: a header, a handshake."""
        request = session.request
        if self.proxy_protocol:
            header = receive_header(request, self.handshake_timeout)
            own = host_of(session.client_address)
            others = self._registry.identify(session, "unix" if header.source == "" else header.source)
            # A client that has no host, by what its proxy says, is a local one of the proxy's, and not of ours.
            self._check_client(request, session.client_address, session.host or own, others)
        if self.ssl_context is not None:
            shake_hands(request, self.ssl_context, self.handshake_timeout)

    def _log_refused(self, client_address: Any, refused: Refused, via: Optional[str] = None) -> None:
        peer = format_address(client_address)
        level = logging.DEBUG if refused.left else logging.INFO
        fields = {"peer": peer, "reason": refused.reason}
        if via is not None:
            fields["via"] = via
        log_event(level, "refused", "%s refused: %s", peer, refused, **fields)

    def _close_quietly(self, request: socket.socket) -> None:
        try:
            self.shutdown_request(request)
        except Exception as exc:
            log_event(logging.ERROR, "error", "exception in shutdown_request()", exc_info=exc)

    # Sessions.

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the session a thread of its own."""
        session = Session(request, client_address, proxied=self.proxy_protocol)
        self._registry.add(session)
        self._tell_balance()

        def forget() -> None:
            self._registry.remove(session, None)
            self._tell_balance()

        arguments = (request, client_address)
        if self.daemon_threads:
            self._session_threads.run((self.process_request_thread, arguments), forget)
        else:  # the interpreter waits for such threads at its exit; they must not wait for another session then
            threads.start(self.process_request_thread, arguments, forget, daemon=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """A session, in its own thread, from the handler's first line to the closed socket."""
        session = self._registry.get(request) or Session(request, client_address)
        session.thread_id = threading.get_ident()
        reason: Optional[str] = None
        refusal: Optional[str] = None
        try:
            if self.proxy_protocol or self.ssl_context is not None:
                self._welcome(session)
                client_address = session.client_address
            reason = "exit"
            self.finish_request(request, client_address)
        except Refused as exc:
            if session.state == "draining":  # not input_ended: the stop wakes this thread before it sets that
                reason = "drain"
                peer = format_address(session.client_address)
                log_event(logging.DEBUG, "drained", "%s drained before its session began", peer, peer=peer)
            else:
                refusal = exc.reason
                self._registry.release_host(session)
                self._log_refused(session.client_address, exc, None if session.unnamed else session.via)
        except Exception as exc:
            if reason is None:
                refusal = "error"
                self._registry.release_host(session)
            else:
                reason = "reset" if _peer_gone(exc, session) else "error"
            self._report(request, session.client_address)
        except BaseException as exc:  # sys.exit() in a handler: the thread's end, but not in silence (bpo-23430)
            reason = "error"
            peer = format_address(session.client_address)
            log_event(
                logging.ERROR, "error", "%s: %s in the handler; its session ends", peer, type(exc).__name__, peer=peer
            )
            raise
        finally:
            self._end_session(session, reason, refusal)

    def _end_session(self, session: Session, reason: Optional[str], refusal: Optional[str] = None) -> None:
        """``reason`` is None for what never became a session: it was refused, for ``refusal``."""
        session.closing()
        if session.handler is not None:
            reason = session.handler.reason
        elif session.input_ended and reason == "exit":
            reason = "drain"
        self._close_quietly(session.request)
        session.closed()
        if self._registry.get(session.request) is session:
            self._registry.remove(session, reason, refusal)
            self._tell_balance()
        if self._full:
            self._full = False
            run = self._run
            if run is not None:
                run.wake()

    def _tell_balance(self) -> None:
        if self.balance is not None:
            self.balance.set(len(self._registry))

    def shutdown_request(self, request: Any) -> None:
        """Close an accepted socket; after a session gently, so that no reply is lost."""
        session = self._registry.get(request)
        if session is not None:
            if session.aborted:
                session.closed()
                self.close_request(request)  # without the FIN that would come before the reset
                return
            if not session.peer_ended:  # else nothing more can arrive that a close would answer with a reset
                linger(request, self._delivery_timeout() if session.input_ended else None, self._linger_silence)
            session.closed()
        super().shutdown_request(request)

    def _delivery_timeout(self) -> float:
        if self._deadline is None:
            return LINGER_TIMEOUT
        # Past the deadline: who is not done by then is cut, and counted, and that ends this wait. If both waited for
        # the same moment, it would be chance whether replies that nobody got make an orderly stop.
        return max(0.0, self._deadline + self._cut_grace / 2 - time.monotonic())

    def attach(self, handler: Any) -> Optional[int]:
        """Let a handler take part: the server counts what ``handler.connection`` counts (``messages_in``,
        ``messages_out``, ``bytes_in``, ``bytes_out``), records ``handler.reason`` as its end, and calls
        ``handler.drain()``, which must not block, when it stops. Sets ``handler.via`` and ``handler.unnamed``, what
        is known of a proxy. Returns the session's number, from 1 on; None if this server does not
        track the handler's request.
        """
        session = self._registry.get(handler.request)
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

        That a client is gone is no error, and is a DEBUG record without a traceback.
        """
        exc = sys.exc_info()[1]
        peer = format_address(client_address)
        if _peer_gone(exc, self._registry.get(request)):
            log_event(logging.DEBUG, "reset", "%s: %s", peer, exc, peer=peer)
        else:
            log_event(logging.ERROR, "error", "%s: exception while it was served", peer, exc_info=True, peer=peer)

    # Telling.

    @property
    def connections(self) -> List[ConnectionInfo]:
        """The live connections, as they are now."""
        return [session.info() for session in self._registry.sessions()]

    def stats(self) -> Statistics:
        """What the server has done since it was made."""
        return self._registry.statistics()

    # Stopping.

    def shutdown(self) -> None:
        """End ``serve_forever()`` and wait until it has ended; sessions go on.

        Without a run it returns at once. Before the first, it makes that one return at once: a stop must not
        lose against the start of a thread. From the serving thread itself (a signal handler) it does not wait.
        """
        with self._lock:
            run = self._run
            if run is None:
                self._stop_early = not self._served
                return
            run.stop()
        if run.thread_id != threading.get_ident():
            run.ended.wait()

    def stop(self, timeout: Optional[float] = None) -> bool:
        """Stop serving, drain, close; whether every session ended by itself.

        ``timeout``, in seconds, replaces ``shutdown_timeout``, and brings the deadline of a stop that is under way
        forward: 0 cuts what is left. Idempotent. From a session's own thread or the serving thread it begins the stop
        and returns at once, and what it returns means nothing.
        """
        if timeout is not None:
            OPTIONS["shutdown_timeout"].check(timeout)
            with self._lock:
                self.shutdown_timeout = timeout
                if self._deadline is not None:
                    self._deadline = min(self._deadline, time.monotonic() + timeout)
            self._registry.wake()
        self.server_close()
        return not self._cut

    def server_close(self) -> None:
        """Stop serving and accepting, drain the sessions to one deadline, cut the rest, and say how many.

        Idle sessions end at once; a busy one answers what had reached this host. Waits until all that is done,
        but for calls from a session's own thread or from the serving thread: those begin it and return.
        """
        me = threading.get_ident()
        with self._lock:
            run = self._run
            if run is not None and run.thread_id == me:
                self._close_after_run = True
                run.stop()
                return
            if self._closed.is_set() or self._closer == me:
                return
            mine = self._closer is None
            in_session = self._registry.serves(me)
            if mine and not in_session:
                self._closer = me
        if in_session:
            if mine:
                threading.Thread(target=self.server_close, name="echo-server-close").start()
            return
        if not mine:
            self._closed.wait()
        else:
            try:
                self._close()
            finally:
                self._closed.set()
                # An exit in the midst of this waits for its end, and holds the lock of atexit meanwhile.
                atexit.unregister(self._close_at_exit)
        # After that: the serving thread may close, too, and then waits for the same end.
        thread = self._thread
        if thread is not None and thread.ident is not None and thread is not threading.current_thread():
            thread.join()

    def _close(self) -> None:
        self.shutdown()
        with self._lock:
            timeout = self.shutdown_timeout
            self._deadline = time.monotonic() + (threading.TIMEOUT_MAX if timeout is None else timeout)
        if self._inode is not None and self._bound_by == os.getpid():
            listeners.release_path(self._path, self._inode)
        if timeout != 0:
            self._accept_waiting()
        super().server_close()
        sessions = self._registry.sessions()
        if sessions:
            left = "without limit" if timeout is None else f"for {timeout:g} s at most"
            count = plural(len(sessions), "session")
            log_event(logging.INFO, "draining", "draining %s, %s", count, left, sessions=len(sessions))
        for session in sessions:
            session.drain()
        self._registry.wait_until_empty(lambda: self._deadline or 0.0)
        left_over = self._registry.sessions()
        # One whose handler was done, and whose replies were on their way, had only its client's end to wait for.
        cut = [session for session in left_over if session.state != "closing" or session.input_ended]
        for session in left_over:
            session.abort()
        for session in cut:
            peer = format_address(session.client_address)
            log_event(logging.WARNING, "cut", "%s cut: not done in time", peer, peer=peer, session=session.number)
        self._cut = len(cut)
        grace = time.monotonic() + self._cut_grace
        self._registry.wait_until_empty(lambda: grace)
        if self._served:
            drained = len(sessions) - len(cut)
            text = f"stopped: {plural(drained, 'session')} drained, {len(cut)} cut"
            log_event(logging.INFO, "stopped", text, drained=drained, cut=len(cut))
        self._session_threads.close()

    def _accept_waiting(self) -> None:
        """Let in who is connected and waits to be accepted: closing the listening socket would reset them, together
        with what they have sent, which a load balancer takes for an answer. As many as can have waited, and no more,
        since others may go on coming; and as far as there is room (``max_connections``)."""
        if self._looped and not self._inherited and self._is_listening():
            try:
                run = Serving(self.socket)
            except OSError:
                return  # out of descriptors: nobody could be let in
            try:
                for _ in range(max(1, self.request_queue_size)):
                    if not self._accept(run) or time.monotonic() >= (self._deadline or 0.0):
                        break
            finally:
                run.close()

    def _close_at_exit(self, pid: int) -> None:
        if pid == os.getpid():  # a forked child has our registration, and none of our threads to wait for
            self.server_close()


def _peer_gone(exc: Optional[BaseException], session: Optional[Session]) -> bool:
    # An attached handler reports its own peer's end by its reason; what it raises is a mistake of its own.
    return isinstance(exc, ConnectionError) and (session is None or session.handler is None)
