"""Where and how a client connects: a host and port or the path of a Unix socket, with or without TLS.

This module opens blocking sockets and knows no messages. An ``Endpoint`` can be sent to another process.
"""

from __future__ import annotations

import functools
import socket
import ssl
from typing import Any, NamedTuple, Optional

from ..sockets import INET, keep_alive, keep_urgent_data
from ..text import format_address
from ..transport.certificates import client_context
from ..transport.tls import TLSSocket


class Security(NamedTuple):
    """The TLS settings of a client: the name that the server's certificate must have, and PEM files.

    ``certificates.client_context`` explains the files.
    """

    server_hostname: str
    authorities: Optional[str] = None
    certificate: Optional[str] = None
    key: Optional[str] = None
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """Return the context, which is made once in a process: reading the system's CAs takes 40 to 190 ms.

        Raises ``ValueError``, which names the file, if a file is invalid.
        """
        return _context(self)


@functools.lru_cache(maxsize=None)
def _context(security: Security) -> ssl.SSLContext:
    return client_context(security.authorities, security.certificate, security.key, verify=security.verify)


class Endpoint(NamedTuple):
    """A server. ``address``: ``(host, port)`` or a path; ``security``: the TLS settings; default: None, no TLS."""

    address: Any
    security: Optional[Security] = None

    def __str__(self) -> str:
        return format_address(self.address)

    def resolve(self) -> None:
        """Look up the host. Raises ``socket.gaierror`` or ``UnicodeError`` if it has no address."""
        if isinstance(self.address, tuple):
            host, port = self.address
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)

    def open(self, timeout: Optional[float]) -> socket.socket:
        """Return a connected socket. ``timeout`` in seconds and the errors are those of ``echo.connect``."""
        if self.security is None:
            return open_socket(self.address, timeout)
        return open_socket(self.address, timeout, self.security.context(), self.security.server_hostname)


def open_socket(
    address: Any,
    timeout: Optional[float],
    ssl_context: Optional[ssl.SSLContext] = None,
    server_hostname: Optional[str] = None,
) -> socket.socket:
    """Return a connected, blocking socket. Parameters and errors are those of ``echo.connect``.

    With an ``ssl_context`` that verifies names, ``server_hostname`` must be given.
    """
    try:
        sock = _connected(address, timeout)
    except socket.timeout as exc:
        if isinstance(exc, TimeoutError):
            raise
        raise TimeoutError(str(exc)) from None  # since Python 3.10 it is one already
    try:
        if sock.family in INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(sock)  # else a loss could stay unnoticed: without a timeout, or at a prompt
            keep_urgent_data(sock)
        sock.settimeout(None)  # Connection sets kernel timeouts
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
    """Return ``(host, port)``, with the zone that the address of an IPv6 server has as its fourth part."""
    host, port, *more = address
    return (f"{host}%{more[1]}" if more and more[1] else host), port
