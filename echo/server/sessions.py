"""The live sessions: the clients that are connected, their traffic, and how each session ended.

A ``Session`` lasts from ``accept`` to the close of its socket, whatever methods a subclass of the server replaces in
between; the handler's session begins later, after admission. The registry
knows sockets and addresses, no handler class and no accept loop. It is the one place that counts, and
the one place that ends a session from outside; both under locks of its own, so that its figures are right on a
build without the GIL too (gh-128277, gh-153935).
"""

from __future__ import annotations

import collections
import logging
import os
import socket
import threading
import time
from typing import Any, Callable, Counter, Dict, List, Optional

from ..sockets import SEND_TIMEOUT, is_dead, shut_down
from ..text import format_address, unmapped
from .accepting import is_held
from .reporting import log_event
from .statistics import ConnectionInfo, Statistics, Traffic


class StandIn:
    """Takes a handler's place in its session until the handler attaches itself; many never do. It counts nothing, and
    is drained by the end of its input."""

    __slots__ = ("ended_as", "input_ended", "request")

    messages_in = messages_out = bytes_in = bytes_out = 0
    peer_ended = aborted = False
    send_timeout = SEND_TIMEOUT

    def __init__(self, request: Any) -> None:
        self.request = request
        self.input_ended = False
        self.ended_as: Optional[str] = None
        """A reason that counts more than how its input ended."""

    @property
    def connection(self) -> StandIn:
        return self  # not an attribute: a reference to itself would keep each one until the garbage collector comes

    @property
    def reason(self) -> str:
        return self.ended_as or ("drain" if self.input_ended else "exit")

    def drain(self) -> None:
        shut_down(self.request, socket.SHUT_RD)
        self.input_ended = True


class Session:
    """One accepted connection, from accept to close.

    ``handler`` is the handler that has attached itself (``Server.attach``), or a ``StandIn``. It has a ``connection``
    that counts and knows which side has ended it, a ``reason``, and ``drain()``.

    ``request`` is what ``get_request`` returned, of any type, and ``stream`` what the handler uses: a wrapper that has
    taken the descriptor over, if there is one.
    """

    __slots__ = (
        "_drained",
        "_lock",
        "begun",
        "client_address",
        "descriptor",
        "handler",
        "host",
        "number",
        "opening",
        "ours",
        "over",
        "refused",
        "request",
        "since",
        "state",
        "stream",
        "thread_id",
        "unnamed",
        "via",
    )

    def __init__(self, request: Any, client_address: Any, *, proxied: bool = False) -> None:
        self.request = self.stream = request
        try:
            self.descriptor = request.fileno()
        except Exception:  # not a socket
            self.descriptor = -1
        self.client_address = client_address
        # Behind a proxy the client is not known until Registry.identify.
        self.host = None if proxied else host_of(client_address)
        self.via = format_address(client_address) if proxied else None
        self.unnamed = proxied
        self.since = time.time()
        self.state = "open"
        self.handler: Any = StandIn(request)
        self.thread_id: Optional[int] = None
        self.number = 0  # given by the registry
        self.begun = False  # a thread has it, or will have it at once
        self.over = False  # the registry has counted it, and knows it no more
        self.ours = False  # and that thread runs the server's own method, which ends it
        self.opening: Optional[Callable[[], None]] = None  # the steps of admission that its first use has to do
        self.refused: Optional[str] = None  # why admission ended it
        # Held, or _drained not set yet, while another thread acts on the socket, so that it is not closed under that
        # thread's hands and its descriptor given to another connection (gh-116912).
        self._lock = threading.Lock()

    @property
    def attached(self) -> bool:
        """Whether the handler reports its end itself."""
        return not isinstance(self.handler, StandIn)

    def opened(self) -> None:
        """Admission is done: anybody may use the socket."""
        self.opening = None
        self.request.release()

    def wrapped(self, stream: Any) -> None:
        """The handler uses ``stream``, which has taken the connection over (TLS, for example)."""
        with self._lock:
            self.stream = stream
            if not self.attached:
                self.handler.request = stream
            draining = self.state == "draining"
        if draining:  # the stop was faster
            self._end_input(self.handler)

    def failed(self, exc: BaseException) -> None:
        """The handler has raised ``exc``."""
        if not self.attached:
            self.handler.ended_as = "reset" if self.is_loss(exc) else "error"

    def is_loss(self, exc: Optional[BaseException]) -> bool:
        """Whether an exception of the handler only says that its client is gone."""
        # An attached handler reports its own peer's end by its reason; an exception is about something else.
        return not self.attached and is_loss(exc, self.stream)

    def drain(self) -> None:
        """Let the session answer what has arrived, and end."""
        with self._lock:
            if self.state != "open":
                return
            self._drained = threading.Event()
            self.state = "draining"
            handler = self.handler
        self._end_input(handler)  # without the lock, which abort() needs: a handler's own drain() may block
        self._drained.set()

    def attach(self, handler: Any) -> None:
        with self._lock:
            self.handler = handler
            draining = self.state == "draining"
        if draining:  # the stop was faster
            self._end_input(handler)

    def _end_input(self, handler: Any) -> None:
        try:
            handler.drain()
        except OSError:
            pass
        except BaseException as exc:  # a handler's own drain(), which may even call sys.exit(); the deadline ends it
            log_event(
                logging.ERROR, "error", "%s: exception in drain()", format_address(self.client_address), exc_info=exc
            )

    def abort(self) -> None:
        """End the session now. A thread that reads or sends on the socket wakes up."""
        with self._lock:
            if self.state != "closed":
                try:
                    shut_down(self.stream, socket.SHUT_RDWR)
                except Exception:  # closed, or something without a descriptor: there is no way to end that
                    pass

    def closing(self) -> None:
        """The handler is done; from here on the socket lingers, and draining would only disturb that."""
        with self._lock:
            if self.state != "draining":
                self.state = "closing" if self.state == "open" else self.state
                return
        self._drained.wait()  # until then drain() acts on the socket, which must not be closed under it
        with self._lock:
            self.state = "closing"

    def closed(self) -> None:
        """From here on no other thread touches the socket."""
        with self._lock:
            self.state = "closed"
        if self.opening is not None:  # refused; the socket's guard refers to this session
            self.opening = self.request.guard = None

    def is_only_lingering(self) -> bool:
        """Whether the handler is done and its input was not cut off: the close only waits for the client's own end."""
        return self.state == "closing" and not self.handler.connection.input_ended

    def was_closed(self) -> bool:
        """Whether other code than the server's own has closed the socket."""
        return not self.ours and isinstance(self.stream, socket.socket) and self.stream.fileno() == -1

    def info(self) -> ConnectionInfo:
        """Take a snapshot."""
        traffic = self.handler.connection
        state = "closing" if self.state == "closed" else self.state  # not forgotten yet
        return ConnectionInfo(
            format_address(self.client_address),
            self.client_address,
            self.since,
            state,
            traffic.messages_in,
            traffic.messages_out,
            traffic.bytes_in,
            traffic.bytes_out,
            self.via,
        )


def is_loss(exc: Optional[BaseException], request: Any) -> bool:
    """Whether an exception says that this connection is lost. A ``ConnectionError`` may come from any other one: from a
    database, or a pipe to another process."""
    if not isinstance(exc, ConnectionError):
        return False
    try:
        return is_dead(request) or bool(getattr(request, "input_failed", False))
    except Exception:  # closed, or not a socket
        return False


def host_of(client_address: Any) -> Optional[str]:
    """The host part of a socket address, of an IPv4 client always as IPv4; None where there is none (Unix sockets)."""
    return unmapped(str(client_address[0])) if isinstance(client_address, tuple) and client_address else None


class Registry:
    """All sessions of a server, and the sums over those that have ended.

    ``publish``, if it is not None, is called with the number of sessions whenever that has changed: under the lock, so
    that of two changes the later one is the last that is published.
    """

    def __init__(self) -> None:
        self.publish: Optional[Callable[[int], None]] = None
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # that the last session has ended, or wake() was called
        self._live: Dict[int, Session] = {}  # by id(): what get_request() returns need not be hashable
        self._hosts: Dict[str, int] = {}
        self._numbers = 0
        self._accepted = 0
        self._accept_errors = 0
        self._refused: Counter[str] = collections.Counter()
        self._ended: Counter[str] = collections.Counter()
        self._totals = Traffic()

    def __len__(self) -> int:
        return len(self._live)

    def get(self, request: Any) -> Optional[Session]:
        """The session of an accepted socket."""
        # Not with get(), for whose lock the threads of CPython 3.13t spin and yield eighty times a short session, which
        # took 240 to 257 us of CPU and takes 161 to 200.
        try:
            return self._live[id(request)]
        except KeyError:
            return None

    def find(self, stream: Any) -> Optional[Session]:
        """The session of an accepted socket, or of what has taken its descriptor over (``ssl.SSLSocket``)."""
        session = self.get(stream)
        if session is not None:
            return session
        try:
            descriptor = stream.fileno()
        except Exception:  # not a socket
            return None
        # The newest: a handler may have closed its socket itself, and the system has used the number again.
        for session in reversed(self.sessions()):
            if session.descriptor == descriptor != -1:
                return session
        return None

    def from_host(self, host: Optional[str]) -> int:
        """How many sessions this host has; 0 for None."""
        return 0 if host is None else self._hosts.get(host, 0)

    def accepted(self) -> None:
        with self._lock:
            self._accepted += 1

    def accept_failed(self) -> None:
        with self._lock:
            self._accept_errors += 1

    def refused(self, reason: str) -> None:
        with self._lock:
            self._refused[reason] += 1

    def add(self, session: Session) -> None:
        with self._lock:
            self._numbers += 1
            session.number = self._numbers
            self._live[id(session.request)] = session
            self._count_host(session.host)
            if self.publish is not None:
                self.publish(len(self._live))

    def _count_host(self, host: Optional[str]) -> int:
        """One more session from there; how many there were."""
        if host is None:
            return 0
        before = self._hosts.get(host, 0)
        self._hosts[host] = before + 1
        return before

    def identify(self, session: Session, client_address: Any) -> int:
        """Set who the client is, as its proxy says; None: the proxy does not say. Return how many sessions that host
        had before."""
        with self._lock:
            if client_address is not None:
                session.unnamed = False
                session.client_address = client_address
            if self._live.get(id(session.request)) is not session:  # closed meanwhile
                return 0
            session.host = host_of(session.client_address)
            return self._count_host(session.host)

    def release_host(self, session: Session) -> None:
        """Release the host's slot now: the socket of a rejected client may stay open for a while, and must not keep the
        host's next client out."""
        with self._lock:
            host, session.host = session.host, None
            if host is not None:
                if self._hosts[host] == 1:
                    del self._hosts[host]
                else:
                    self._hosts[host] -= 1

    def forget(self, session: Session) -> bool:
        """Remove a session, and count nothing; return whether it was here."""
        with self._lock:
            if self._live.pop(id(session.request), None) is None:
                return False
            session.over = True
            self.release_host(session)
            if self.publish is not None:
                self.publish(len(self._live))
            if not self._live:
                self._changed.notify_all()
            return True

    def end(self, session: Session) -> bool:
        """Remove a session, and count how it ended or, if it never began, why it was refused; return whether it was
        here."""
        with self._lock:
            if not self.forget(session):
                return False
            if session.refused is not None:
                self._refused[session.refused] += 1
            else:
                self._ended[session.handler.reason] += 1
                self._totals.add(session.handler.connection)
            return True

    def may_close_unseen(self) -> bool:
        """Whether code of a subclass may close a session's socket without the server."""
        return any(not session.ours for session in self.sessions())

    def reap(self) -> bool:
        """End the sessions whose socket was closed without the server; return whether there were any. A subclass that
        serves clients in threads of its own may do so."""
        with self._lock:
            left = [session for session in self._live.values() if session.was_closed()]
            for session in left:
                self.end(session)
            return bool(left)

    def let_go(self) -> None:
        """In a forked child: the sessions are its parent's, except the one whose thread has forked, which the child may
        talk to. The others' sockets are closed here, so that their clients see the end when the parent closes them."""
        me = threading.get_ident()
        for session in self._live.values():
            session._lock = threading.Lock()
            if session.thread_id not in (None, me):
                try:  # not with close(), which waits for the end of makefile()'s files
                    os.close(socket.socket.detach(session.stream))
                except Exception:
                    pass
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._live, self._hosts, self.publish = {}, {}, None

    def sessions(self) -> List[Session]:
        """A snapshot."""
        with self._lock:
            return list(self._live.values())

    def serves(self, thread_id: int) -> bool:
        """Whether this thread is one of the sessions'."""
        return any(session.thread_id == thread_id for session in self.sessions())

    def is_locked_here(self) -> bool:
        """Whether the calling thread holds the registry's lock."""
        return is_held(self._lock)

    def wait_until_empty(self, deadline: Callable[[], float]) -> None:
        """Wait for the last session to end, until ``deadline()`` (of ``time.monotonic()``), which may come forward:
        ``wake`` then."""
        with self._changed:
            while self._live:
                if self.reap():
                    continue
                left = deadline() - time.monotonic()
                if left <= 0:
                    break
                # In steps: a signal that comes just before the wait begins is acted on only after it.
                self._changed.wait(min(left, 0.5))

    def wake(self) -> None:
        """Let ``wait_until_empty`` return early."""
        with self._changed:
            self._changed.notify_all()

    def statistics(self) -> Statistics:
        """Take the sums. A live session's counts are read as they are."""
        with self._lock:
            totals = Traffic()
            totals.add(self._totals)
            for session in self._live.values():
                totals.add(session.handler.connection)
            return Statistics(
                self._accepted,
                len(self._live),
                dict(self._refused),
                dict(self._ended),
                totals.messages_in,
                totals.messages_out,
                totals.bytes_in,
                totals.bytes_out,
                self._accept_errors,
            )
