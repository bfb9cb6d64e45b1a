"""Where a client connects, and how: a host and port or a Unix socket's path, with TLS or without.

It opens sockets, blocking and ready for messages, and knows nothing of those. It can be sent to another process.
"""

from __future__ import annotations

import functools
import socket
import ssl
from typing import Any, NamedTuple, Optional

from ..sockets import INET, keep_alive
from ..text import format_address
from ..transport.certificates import client_context
from ..transport.tls import TLSSocket


class Security(NamedTuple):
    """What TLS needs on the client's side: the name that the server's certificate must have, and PEM files (see
    ``certificates.client_context``)."""

    server_hostname: str
    authorities: Optional[str] = None
    certificate: Optional[str] = None
    key: Optional[str] = None
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """Made once in a process: reading the system's CAs takes 40 to 190 ms. ``ValueError`` tells which file is no
        good."""
        return _context(self)


@functools.lru_cache(maxsize=None)
def _context(security: Security) -> ssl.SSLContext:
    return client_context(security.authorities, security.certificate, security.key, verify=security.verify)


class Endpoint(NamedTuple):
    """``address`` is ``(host, port)`` or a path."""

    address: Any
    security: Optional[Security] = None

    def __str__(self) -> str:
        return format_address(self.address)

    def resolve(self) -> None:
        """Look the host's name up: ``socket.gaierror`` or ``UnicodeError`` if it has no address at all."""
        if isinstance(self.address, tuple):
            host, port = self.address
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)

    def open(self, timeout: Optional[float]) -> socket.socket:
        """A connected socket; ``echo.connect`` says what it raises."""
        if self.security is None:
            return open_socket(self.address, timeout)
        return open_socket(self.address, timeout, self.security.context(), self.security.server_hostname)


def open_socket(
    address: Any,
    timeout: Optional[float],
    ssl_context: Optional[ssl.SSLContext] = None,
    server_hostname: Optional[str] = None,
) -> socket.socket:
    """Connect a blocking socket, to be used without ``settimeout``;
    ``timeout``, in seconds, bounds the connecting and the handshake."""
    try:
        sock = _connected(address, timeout)
    except socket.timeout as exc:
        if isinstance(exc, TimeoutError):
            raise
        raise TimeoutError(str(exc)) from None  # which it is by itself since Python 3.10
    try:
        if sock.family in INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(sock)  # there may be no deadline; and at a prompt nobody waits for anything
        sock.settimeout(None)  # the connection's deadlines are the kernel's
        if ssl_context is not None:
            sock = TLSSocket(sock)
            sock.handshake(ssl_context, server_hostname=server_hostname, timeout=timeout)
    except BaseException:
        sock.close()
        raise
    return sock


def _connected(address: Any, timeout: Optional[float]) -> socket.socket:
    if isinstance(address, tuple):
        return socket.create_connection(_host_and_port(address), timeout)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(timeout)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _host_and_port(address: Any) -> Any:
    """An IPv6 server's address has four parts, the last of them the zone."""
    host, port, *more = address
    return (f"{host}%{more[1]}" if more and more[1] else host), port
