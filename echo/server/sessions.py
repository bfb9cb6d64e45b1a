"""The live sessions: who is connected, what has passed, how each one ended.

The registry knows sockets and addresses, no handler class and no accept loop. It is the one place that counts, and
the one place that ends a session from outside; both under locks of its own, so that its figures are right on a
build without the GIL too (gh-128277, gh-153935).
"""

from __future__ import annotations

import collections
import logging
import socket
import threading
import time
from typing import Any, Callable, Counter, Dict, List, NamedTuple, Optional

from ..text import format_address, unmapped
from .reporting import log_event


class ConnectionInfo(NamedTuple):
    """A live connection, as it was at the time of asking. Handlers that do not speak in messages count nothing."""

    peer: str
    """The client's address as text."""
    client_address: Any
    """The same as the socket module gives it."""
    since: float
    """When it was accepted, in seconds since the epoch."""
    state: str
    """``open``, ``draining`` (the server stops) or ``closing``."""
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int
    via: Optional[str]
    """The address of the proxy that the client came through, as text; None without the PROXY protocol."""


class Statistics(NamedTuple):
    """What a server has done since it was made."""

    accepted: int
    """Connections that accept() returned."""
    active: int
    """Sessions that live now."""
    refused: Dict[str, int]
    """Accepted connections that got no session, by reason: ``denied``, ``limit``, ``proxy``, ``handshake`` or
    ``error``."""
    ended: Dict[str, int]
    """Sessions that are over, by reason."""
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int
    accept_errors: int
    """Failed attempts to accept a connection or to start its thread."""


class Session:
    """One accepted connection, from accept to close.

    ``handler`` is the handler that has attached itself (``Server.attach``): it has a ``connection`` that counts, a
    ``reason``, and ``drain()``. Any other handler is drained by the end of its input.
    """

    __slots__ = (
        "_lock",
        "aborted",
        "client_address",
        "handler",
        "host",
        "input_ended",
        "number",
        "peer_ended",
        "request",
        "since",
        "state",
        "thread_id",
        "unnamed",
        "via",
    )

    def __init__(self, request: socket.socket, client_address: Any, *, proxied: bool = False) -> None:
        self.request = request
        self.client_address = client_address
        # Of whoever comes through a proxy it is not known yet, and comes with Registry.identify.
        self.host = None if proxied else host_of(client_address)
        self.via = format_address(client_address) if proxied else None
        self.unnamed = proxied
        self.since = time.time()
        self.state = "open"
        self.handler: Optional[Any] = None
        self.thread_id: Optional[int] = None
        self.input_ended = False
        self.peer_ended = False
        self.aborted = False
        self.number = 0  # given by the registry
        # Held while another thread acts on the socket, so that it is not closed under that thread's hands and
        # its descriptor given to another connection (gh-116912).
        self._lock = threading.Lock()

    def drain(self) -> None:
        """Let the session answer what has arrived, and end."""
        with self._lock:
            if self.state == "open":
                self.state = "draining"
                self._end_input()

    def attach(self, handler: Any) -> None:
        with self._lock:
            self.handler = handler
            if self.state == "draining":  # the stop was faster
                self._end_input()

    def _end_input(self) -> None:
        try:
            if self.handler is not None:
                self.handler.drain()
            else:
                self.request.shutdown(socket.SHUT_RD)
                self.input_ended = True
        except OSError:
            pass
        except Exception as exc:  # a handler's own drain(); the deadline ends its session
            log_event(
                logging.ERROR, "error", "%s: exception in drain()", format_address(self.client_address), exc_info=exc
            )

    def abort(self) -> None:
        """End the session now: whoever reads or sends on the socket is woken."""
        with self._lock:
            if self.state != "closed":
                try:
                    self.request.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def closing(self) -> None:
        """The handler is done; from here on the socket lingers, and draining would only disturb that."""
        with self._lock:
            self.state = "closing"
            connection = getattr(self.handler, "connection", None)
            if connection is not None:
                self.input_ended = connection.input_ended
                self.peer_ended = connection.peer_ended
                self.aborted = connection.aborted

    def closed(self) -> None:
        """From here on no other thread touches the socket."""
        with self._lock:
            self.state = "closed"

    def info(self) -> ConnectionInfo:
        """Take a snapshot."""
        traffic = getattr(self.handler, "connection", None) or _Traffic()
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


class _Traffic:
    """What connections have counted, added up."""

    def __init__(self) -> None:
        self.messages_in = self.messages_out = self.bytes_in = self.bytes_out = 0

    def add(self, connection: Any) -> None:
        self.messages_in += connection.messages_in
        self.messages_out += connection.messages_out
        self.bytes_in += connection.bytes_in
        self.bytes_out += connection.bytes_out


def host_of(client_address: Any) -> Optional[str]:
    """The host part of a socket address, of an IPv4 client always as IPv4; None where there is none (Unix sockets)."""
    return unmapped(str(client_address[0])) if isinstance(client_address, tuple) and client_address else None


class Registry:
    """All sessions of a server, and the sums over those that have ended."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # that the last session has ended, or wake() was called
        self._live: Dict[Any, Session] = {}
        self._hosts: Dict[str, int] = {}
        self._numbers = 0
        self._accepted = 0
        self._accept_errors = 0
        self._refused: Counter[str] = collections.Counter()
        self._ended: Counter[str] = collections.Counter()
        self._totals = _Traffic()

    def __len__(self) -> int:
        return len(self._live)

    def get(self, request: Any) -> Optional[Session]:
        """The session of an accepted socket."""
        # Not with get(), for whose lock the threads of CPython 3.13t spin and yield eighty times a short session, which
        # took 240 to 257 us of CPU and takes 161 to 200.
        try:
            return self._live[request]
        except KeyError:
            return None

    def from_host(self, client_address: Any) -> int:
        """How many sessions this client's host has; none where there are no hosts."""
        return self._hosts.get(host_of(client_address) or "", 0)

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
            self._live[session.request] = session
            self._count_host(session.host)

    def _count_host(self, host: Optional[str]) -> int:
        """One more session from there; how many there were."""
        if host is None:
            return 0
        before = self._hosts.get(host, 0)
        self._hosts[host] = before + 1
        return before

    def identify(self, session: Session, client_address: Any) -> int:
        """Say who the client is, which was not known when the session was added; None if the proxy did not tell. Return
        how many sessions that host had before."""
        with self._lock:
            if client_address is not None:
                session.unnamed = False
                session.client_address = client_address
            if self._live.get(session.request) is not session:  # a subclass that keeps its own count
                return 0
            session.host = host_of(session.client_address)
            return self._count_host(session.host)

    def release_host(self, session: Session) -> None:
        """Its host has one less. A refused one's socket stays open for as long as its client likes, within limits:
        that must not keep the next one out."""
        with self._lock:
            host, session.host = session.host, None
            if host is not None and self._live.get(session.request) is session:
                if self._hosts[host] == 1:
                    del self._hosts[host]
                else:
                    self._hosts[host] -= 1

    def remove(self, session: Session, reason: Optional[str], refusal: Optional[str] = None) -> None:
        """Forget a session and count its end, or, if it never began, why it was refused."""
        with self._lock:
            self.release_host(session)
            del self._live[session.request]
            if reason is not None:
                self._ended[reason] += 1
                connection = getattr(session.handler, "connection", None)
                if connection is not None:
                    self._totals.add(connection)
            if refusal is not None:
                self._refused[refusal] += 1
            if not self._live:
                self._changed.notify_all()

    def sessions(self) -> List[Session]:
        """A snapshot."""
        with self._lock:
            return list(self._live.values())

    def serves(self, thread_id: int) -> bool:
        """Whether this thread is one of the sessions'."""
        return any(session.thread_id == thread_id for session in self.sessions())

    def wait_until_empty(self, deadline: Callable[[], float]) -> None:
        """Wait for the last session to end, until ``deadline()`` (of ``time.monotonic()``), which may come forward:
        ``wake`` then."""
        with self._changed:
            while self._live:
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
            totals = _Traffic()
            totals.add(self._totals)
            for session in self._live.values():
                connection = getattr(session.handler, "connection", None)
                if connection is not None:
                    totals.add(connection)
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
