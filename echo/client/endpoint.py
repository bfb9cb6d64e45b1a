"""Where and how a client connects: a host and port or the path of a Unix socket, with or without TLS.

This module opens blocking sockets and knows no messages. An ``Endpoint`` can be sent to another process.
"""

from __future__ import annotations

import functools
import socket
import ssl
import time
from typing import Any, NamedTuple, Optional, Tuple

from ..files import read_file
from ..sockets import check_path, prepare
from ..text import format_address
from ..transport.certificates import client_context
from ..transport.tls import TLSSocket
from .dialing import connect_to_first, connect_to_host, connect_to_path, look_up


class Security(NamedTuple):
    """The TLS settings of a client: the name that the server's certificate must have, and PEM files.

    ``certificates.client_context`` explains the files. ``contents``: theirs, once ``read`` has read them.
    """

    server_hostname: str
    authorities: Optional[str] = None
    certificate: Optional[str] = None
    key: Optional[str] = None
    verify: bool = True
    contents: Tuple[Tuple[str, bytes], ...] = ()

    def read(self) -> Security:
        """Return these settings with the contents of the files: a process to which they are sent could not read a pipe
        again. Raises ``ValueError``, which names the file, if a file cannot be read."""
        paths = [path for path in (self.authorities, self.certificate, self.key) if path is not None]
        return self._replace(contents=tuple({path: read_file(path) for path in paths}.items()))

    def context(self) -> ssl.SSLContext:
        """Return the context, which is made once in a process: reading the system's CAs takes 40 to 190 ms.

        Raises ``ValueError``, which names the file, if a file is invalid.
        """
        return _context(self)


@functools.lru_cache(maxsize=None)
def _context(security: Security) -> ssl.SSLContext:
    read = dict(security.contents).__getitem__ if security.contents else read_file
    return client_context(security.authorities, security.certificate, security.key, verify=security.verify, read=read)


class Endpoint(NamedTuple):
    """A server. ``address``: ``(host, port)`` or a path; ``security``: the TLS settings; default: None, no TLS.

    ``found``: what ``resolve`` has found. Without it, ``open`` looks the host up each time. ``family`` and ``source``
    are as for ``connect_to_host``; a path has none. ``proxy``: the version of the PROXY header that each connection
    begins with; default: None, no header.
    """

    address: Any
    security: Optional[Security] = None
    found: Tuple[Any, ...] = ()
    family: int = 0
    source: Optional[str] = None
    proxy: Optional[int] = None

    def __str__(self) -> str:
        return format_address(self.address)

    @property
    def is_named(self) -> bool:
        """Whether it has a host name, and not an address or a path."""
        return bool(self.found) and self.found[0][4][0] != self.address[0]

    def resolve(self, timeout: Optional[float] = None) -> Endpoint:
        """Look up the host within ``timeout`` seconds; default: None, no limit. Return the endpoint with what was
        found. Raises ``TimeoutError``, and ``socket.gaierror`` or ``UnicodeError`` if it has no address."""
        if not isinstance(self.address, tuple):
            return self
        return self._replace(found=tuple(look_up(*_host_and_port(self.address), timeout, self.family)))

    def open(self, timeout: Optional[float]) -> socket.socket:
        """Return a connected socket. ``timeout`` in seconds and the errors are those of ``echo.connect``."""
        context = name = None
        if self.security is not None:
            context, name = self.security.context(), self.security.server_hostname
        return open_socket(self.address, timeout, context, name, self)


def open_socket(
    address: Any,
    timeout: Optional[float],
    ssl_context: Optional[ssl.SSLContext] = None,
    server_hostname: Optional[str] = None,
    endpoint: Optional[Endpoint] = None,
) -> socket.socket:
    """Return a connected, blocking socket. Parameters and errors are those of ``echo.connect``.

    With an ``ssl_context`` that verifies names, ``server_hostname`` must be given. ``endpoint``: what else is known
    about the way to the address.
    """
    way = endpoint or Endpoint(address)
    if way.found:
        deadline = None if timeout is None else time.monotonic() + timeout
        sock = connect_to_first(way.found, deadline, way.source)
    elif isinstance(address, tuple):
        sock = connect_to_host(*_host_and_port(address), timeout, way.family, way.source)
    else:
        check_path(address)
        if not isinstance(
            address, (str, bytes, bytearray)
        ):  # a list from a file, for example, or a variable that is not set
            raise TypeError(f"the address is {address!r}; expected (host, port) or the path of a Unix socket")
        sock = connect_to_path(address, timeout)
    try:
        prepare(sock)  # keep-alive: else a loss could stay unnoticed, without a timeout or at a prompt
        sock.settimeout(None)  # Connection sets kernel timeouts
        if way.proxy is not None:
            from ..transport.proxy_header import send_header  # here: few clients need it

            send_header(sock, way.proxy)  # a new socket has room for it
        if ssl_context is not None:
            sock = TLSSocket(sock)
            sock.handshake(ssl_context, server_hostname=server_hostname, timeout=timeout)
    except BaseException:
        sock.close()
        raise
    return sock


def _host_and_port(address: Any) -> Tuple[str, int]:
    """Return ``(host, port)``, with the zone that the address of an IPv6 server has as its fourth part."""
    host, port, *more = address
    if str(port).isdigit() and int(port) > 65535:  # the look-up takes the lowest 16 bits: another server's port
        raise ValueError(f"invalid port {port}: expected 0 to 65535")
    return (f"{host}%{more[1]}" if more and more[1] else host), port
