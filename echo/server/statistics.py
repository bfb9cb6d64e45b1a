"""A server's statistics: its live connections and its totals. Values only; the registry fills them in."""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional


class ConnectionInfo(NamedTuple):
    """A live connection at the time of the call. Handlers that do not work in messages count nothing."""

    peer: str
    """The client's address as text."""
    client_address: Any
    """The client's address as the socket module gives it."""
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
    """Sums since the server was made."""

    accepted: int
    """Connections that accept() returned."""
    active: int
    """Sessions that live now."""
    refused: Dict[str, int]
    """Accepted connections that got no session, by reason: ``denied``, ``limit``, ``proxy``, ``handshake`` or
    ``error``."""
    ended: Dict[str, int]
    """Sessions that are over, by reason; ``other`` for all reasons after the first 100."""
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int
    accept_errors: int
    """Failed attempts to accept a connection or to start its thread."""


class Traffic:
    """Sums of what connections have counted."""

    def __init__(self) -> None:
        self.messages_in = self.messages_out = self.bytes_in = self.bytes_out = 0

    def add(self, connection: Any) -> None:
        self.messages_in += connection.messages_in
        self.messages_out += connection.messages_out
        self.bytes_in += connection.bytes_in
        self.bytes_out += connection.bytes_out
