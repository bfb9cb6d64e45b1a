"""Admission: the steps between ``accept`` and the session. Each returns, or raises ``Refused``.

In their order, with and without ``proxy_protocol``::

    where                         without                       with
    at the door                   networks                      networks of the proxies
    (the accepting thread:        share of one host
    must not wait)                verify_request
    ----------------------------------------------------------------------------------
    in the session's thread                                     PROXY header
    (with a deadline)                                           networks
                                                                share of one host
                                                                verify_request
                                  TLS handshake, if ssl_context is set

A step that waits for the client must not run at the door: one silent client would block all others (flask #4841,
gunicorn #2507). These steps are bound to the socket (``Opening``): whatever methods a subclass replaces, the first use
of the socket does them, if the server has not done so before.

The header and the handshake live in ``echo.transport``. They are imported here, in the step that needs them, so a
server without them loads and runs none of their code.

Nothing here counts or closes: the registry counts, and the server closes what is refused.
"""

from __future__ import annotations

import functools
import logging
import socket
import threading
from typing import Any, Dict, Iterable, Optional

from ..sockets import stock_tls
from ..text import format_address, plural
from . import forking
from .access import AccessList
from .registry import Registry
from .reporting import log_event
from .sessions import Session, host_of


class Refused(ConnectionError):
    """A connection gets no session. ``reason`` is the word for it in statistics and log, ``why`` says more.
    ``left``: the client connected and left without sending a byte, as health probes do.

    It is a ``ConnectionError``, since the first use of the socket may raise it."""

    def __init__(self, reason: str, why: str, left: bool = False) -> None:
        super().__init__(f"{reason} ({why})")
        self.reason = reason
        self.why = why
        self.left = left


_FAILED = Refused("error", "its admission failed")


class Opening:
    """The steps of one session that wait for its client. The first caller does them, once."""

    def __init__(self, admission: Admission, server: Any, session: Session) -> None:
        self.session = session
        self.request = session.request  # the guarded socket; the session may get an object that wraps it
        self._steps = functools.partial(admission.check_in_thread, server, session, self.request)
        self._lock = threading.RLock()
        self._runs = self._failed = False
        self._refused = _FAILED

    def __call__(self) -> None:
        """Do the steps, or find them done. Raises ``Refused``, each time; the first time also what ``verify_request``
        raises."""
        with self._lock:
            if self._failed:
                raise _again(self._refused)
            if self._runs:  # verify_request, which is one of the steps, uses the socket
                return
            self._runs = True
            try:
                self._steps()
            except BaseException as exc:
                self._failed = True  # first: what follows may fail, too, for want of memory
                self._refused = _again(exc)
                self.session.refused = self._refused.reason
                raise
            self.session.opening = None
            self.request.release()  # anybody may use it


def _again(exc: BaseException) -> Refused:
    """What each later use raises. Not the exception itself: its traceback has the frames, and a local variable there
    that refers to the exception makes a cycle. It would keep the session, and whatever else the first user of the
    socket has, until the garbage collector comes."""
    refused = exc if isinstance(exc, Refused) else _FAILED
    return Refused(refused.reason, refused.why, refused.left)


class Admission:
    """The steps of one server, with the networks that they need. ``server`` has the options."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._clients = self._proxies = AccessList()

    def set_access(
        self, allow: Iterable[Any], deny: Iterable[Any], proxy_allow_from: Optional[Iterable[Any]] = None
    ) -> None:
        clients = AccessList(allow, deny)
        if proxy_allow_from is not None:
            self._proxies = AccessList(proxy_allow_from, option="proxy_allow_from")
        self._clients = clients

    def guard(self, server: Any, session: Session) -> None:
        """Let the session have a socket that cannot be used before the steps that wait for the client."""
        session.request = session.stream = session.handler.request = guarded_socket(server, session.request)
        session.opening = Opening(self, server, session)

    def check_at_door(self, server: Any, session: Session) -> None:
        """The steps that do not wait, in the accepting thread. After them, and not before, the first use of a guarded
        socket does the others: a ``verify_request`` that uses it would wait here."""
        options = server._echo_options
        if not options.proxy_protocol:
            others = self._registry.from_host(session.host, options.max_connections_per_host)
            self._check_host(server, session.host, others)
            self._verify(server, session)
        elif not self._proxies.permits(host_of(session.client_address)):
            raise Refused("proxy", "not in proxy_allow_from")
        if session.opening is not None:
            session.request.guard = session.opening

    def check_in_thread(self, server: Any, session: Session, request: Any) -> None:
        """The steps that wait for the client, in the session's own thread."""
        if server._echo_options.proxy_protocol:
            from ..transport.proxy_header import receive_header

            header = receive_header(request, server._echo_options.handshake_timeout)
            own = host_of(session.client_address)
            limit = server._echo_options.max_connections_per_host
            others = self._registry.identify(session, _named(header.source), limit)
            # A client that has no host, by what its proxy says, is local to the proxy, and not to this host. Not
            # session.host: a forked child counts no hosts.
            host = host_of(session.client_address) or own
            self._check_host(server, host, others)
            self._verify(server, session)
        if server._echo_options.ssl_context is not None:
            from ..transport.handshake import shake_hands

            options = server._echo_options
            shake_hands(request, options.ssl_context, options.handshake_timeout)

    def _verify(self, server: Any, session: Session) -> None:
        answer = forking.call(server.verify_request, session.request, session.client_address)
        undecided = ("__await__", "__next__", "__anext__", "add_done_callback", "wait")
        if answer is not True and any(callable(getattr(answer, name, None)) for name in undecided):
            # By a decorator, for example; the check of the class does not see it. It is true, and has decided nothing.
            raise Refused("denied", "verify_request is async, a generator, or returns a future")
        if not answer:
            raise Refused("denied", "verify_request")

    def check_unknown(self, server: Any, request: Any, client_address: Any) -> None:
        """The step for a client that a program has accepted itself, in a loop of its own. ``TypeError`` if nobody would
        read its header or shake hands: it would be served in clear."""
        options = server._echo_options
        in_clear = options.ssl_context is not None and stock_tls(request) is None
        # One that is guarded lets nobody use it. Any other may wrap the socket, in an object or a class of the program.
        if (options.proxy_protocol or in_clear) and not hasattr(request, "pass_guard"):
            raise TypeError("with ssl_context or proxy_protocol, only the server itself can accept clients")
        host = host_of(client_address)
        self._check_host(server, host, self._registry.from_host(host, options.max_connections_per_host))

    def _check_host(self, server: Any, host: Optional[str], others: int) -> None:
        """Networks, and share of one host. ``others``: the sessions that the host had before this one.

        Runs in the accepting thread; behind a proxy in the session's thread, so what it keeps needs a lock.
        """
        if not self._clients.permits(host):
            raise Refused("denied", "it has no address" if host is None else "not from this address")
        limit = server._echo_options.max_connections_per_host
        if limit is not None and others >= limit:
            raise Refused("limit", f"{plural(limit, 'session')} from this address")


def _named(source: Any) -> Any:
    """The client's address in a header, as the log shows it. A Unix socket may have no name. A client of the proxy
    chooses the name of its own: a file that is called 192.0.2.1:80 must not pass for that address, and one that is
    called "192.0.2.1:80 connected: a/b" not for its record."""
    if source == "":
        return "unix"
    return f"./{source}" if isinstance(source, str) and not source.startswith("/") else source


def guarded_socket(server: Any, request: Any) -> Any:
    """Return the socket as one that is not used before the header has been read and the handshake is done."""
    cls: Any
    if server._echo_options.ssl_context is not None:
        from ..transport import tls

        cls = tls.TLSSocket
    else:
        from ..transport import guarded

        cls = guarded.GuardedSocket
    if isinstance(request, cls):
        return request
    if type(request) is not socket.socket:
        raise TypeError("with ssl_context or proxy_protocol, get_request() has to return a plain socket")
    return cls(request)


def log_refused(client_address: Any, refused: Refused, via: Optional[str] = None) -> None:
    """Log that a client was refused. ``via``: the proxy that named it."""
    peer = format_address(client_address)
    fields: Dict[str, Any] = {"peer": peer, "reason": refused.reason}
    if via is not None:
        fields["via"] = via
    log_event(logging.DEBUG if refused.left else logging.INFO, "refused", "%s refused: %s", peer, refused, **fields)


def import_what_options_need(server: Any) -> None:
    """Import what the options need now: later all descriptors may be taken, and no file can be opened."""
    if server._echo_options.proxy_protocol:
        from ..transport import proxy_header  # noqa: F401
    if server._echo_options.ssl_context is not None:
        from ..transport import handshake  # noqa: F401
