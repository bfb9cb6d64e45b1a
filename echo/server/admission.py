"""What a connection owes before it is a session: a proxy's header, and the TLS handshake.

Both are waited for in the connection's own thread, with a deadline: in the accept loop one silent client would hold up
all (flask #4841, gunicorn #2507). Nothing here counts or closes; who is refused, the server closes.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any, Optional

from ..sockets import set_deadline
from ..transport.proxy_protocol import Header, HeaderParser, InvalidHeader
from ..transport.tls import TLSSocket, explain


class Refused(Exception):
    """A connection gets no session. ``reason`` is the statistics' and the log's word for it, ``why`` says more.
    ``left``: it came, and left without a byte, as health probes do."""

    def __init__(self, reason: str, why: str, left: bool = False) -> None:
        super().__init__(f"{reason} ({why})")
        self.reason = reason
        self.left = left


def receive_header(sock: socket.socket, timeout: Optional[float]) -> Header:
    """Read a PROXY header, and not a byte of what follows it. ``sock`` is blocking, and is so afterwards."""
    parser = HeaderParser()
    deadline = None if timeout is None else time.monotonic() + timeout
    begun = False
    try:
        while parser.header is None:
            set_deadline(sock, deadline)
            data = sock.recv(parser.missing)
            if not data:
                raise Refused("proxy", "left in mid-header" if begun else "left without a header", left=not begun)
            begun = True
            parser.feed(data)
        sock.settimeout(None)
    except InvalidHeader as exc:
        raise Refused("proxy", str(exc)) from None
    except OSError as exc:
        if isinstance(exc, socket.timeout) and exc.errno is None:  # else the connection itself is lost (ETIMEDOUT)
            raise Refused("proxy", f"no whole header after {timeout:g} s") from None
        raise Refused("proxy", explain(exc), left=not begun) from None
    return parser.header


def shake_hands(sock: Any, context: ssl.SSLContext, timeout: Optional[float]) -> None:
    """Do the server's part of a TLS handshake on an accepted ``TLSSocket``."""
    if not isinstance(sock, TLSSocket):
        raise TypeError("with ssl_context, get_request() has to return a TLSSocket, as it does by default")
    try:
        sock.handshake(context, server_side=True, timeout=timeout)
    except OSError as exc:  # ssl.SSLError is one
        raise Refused("handshake", explain(exc), left=sock.untouched and isinstance(exc, ConnectionError)) from None
