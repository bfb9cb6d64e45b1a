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
gunicorn #2507). The header and the handshake live in ``echo.transport``. They are imported here, in the step that needs
them, so a server without them loads and runs none of their code.

Nothing here counts or closes: the registry counts, and the server closes what is refused.
"""

from __future__ import annotations

import logging
from typing import Any, Dict, Iterable, Optional

from ..text import format_address, plural
from .access import AccessList
from .reporting import log_event
from .sessions import Registry, Session, host_of


class Refused(Exception):
    """A connection gets no session. ``reason`` is the word for it in statistics and log, ``why`` says more.
    ``left``: the client connected and left without sending a byte, as health probes do."""

    def __init__(self, reason: str, why: str, left: bool = False) -> None:
        super().__init__(f"{reason} ({why})")
        self.reason = reason
        self.left = left


class Admission:
    """The steps of one server, with the networks that they need. ``server`` has the options."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._clients = self._proxies = AccessList()

    def set_access(self, allow: Iterable[str], deny: Iterable[str], proxies: Optional[Iterable[str]]) -> None:
        clients = AccessList(allow, deny)
        if proxies is not None:
            self._proxies = AccessList(proxies, option="proxy_allow_from")
        self._clients = clients

    def check_at_door(self, server: Any, request: Any, client_address: Any) -> None:
        """The steps that do not wait, in the accepting thread."""
        host = host_of(client_address)
        if not server.proxy_protocol:
            self._check_client(server, request, client_address, host, self._registry.from_host(host))
        elif not self._proxies.permits(host):
            raise Refused("proxy", "no proxy of ours")

    def check_in_thread(self, server: Any, session: Session) -> None:
        """The steps that wait for the client, in the session's own thread."""
        if server.proxy_protocol:
            from ..transport.proxy_header import receive_header

            header = receive_header(session.request, server.handshake_timeout)
            own = host_of(session.client_address)
            others = self._registry.identify(session, "unix" if header.source == "" else header.source)
            # A client that has no host, by what its proxy says, is local to the proxy, and not to this host.
            self._check_client(server, session.request, session.client_address, session.host or own, others)
        if server.ssl_context is not None:
            from ..transport.handshake import shake_hands

            shake_hands(session.request, server.ssl_context, server.handshake_timeout)

    def _check_client(self, server: Any, request: Any, client_address: Any, host: Optional[str], others: int) -> None:
        """Networks, share of one host, ``verify_request``. ``others``: the sessions that the host had before this one.

        Runs in the accepting thread; behind a proxy in the session's thread, so what it keeps needs a lock.
        """
        if not self._clients.permits(host):
            raise Refused("denied", "it has no address" if host is None else "not from this address")
        limit = server.max_connections_per_host
        if limit is not None and others >= limit:
            raise Refused("limit", f"{plural(limit, 'session')} from this address")
        if not server.verify_request(request, client_address):
            raise Refused("denied", "verify_request")


def log_refused(client_address: Any, refused: Refused, via: Optional[str] = None) -> None:
    """Log that a client was refused. ``via``: the proxy that named it."""
    peer = format_address(client_address)
    fields: Dict[str, Any] = {"peer": peer, "reason": refused.reason}
    if via is not None:
        fields["via"] = via
    log_event(logging.DEBUG if refused.left else logging.INFO, "refused", "%s refused: %s", peer, refused, **fields)


def import_what_options_need(server: Any) -> None:
    """Import what the options need now: later all descriptors may be taken, and no file can be opened."""
    if server.proxy_protocol:
        from ..transport import proxy_header  # noqa: F401
    if server.ssl_context is not None:
        from ..transport import handshake  # noqa: F401
