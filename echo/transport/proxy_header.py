"""A proxy's header on a connection; ``proxy_protocol`` knows what the bytes mean.

On an accepted connection it is a step of admission, in the session's own thread and with a deadline. A client sends one
to test such a server.
"""

from __future__ import annotations

import socket
import time
from typing import Optional

from ..server.admission import Refused
from ..sockets import set_deadline
from .guarded import GuardedSocket
from .proxy_protocol import Header, HeaderParser, InvalidHeader, encode


def receive_header(sock: GuardedSocket, timeout: Optional[float]) -> Header:
    """Read a PROXY header, and not a byte of what follows it, within ``timeout`` seconds; None: no limit. It comes
    before the TLS handshake, and is read underneath. Raises ``Refused``."""
    parser = HeaderParser()
    deadline = None if timeout is None else time.monotonic() + timeout
    begun = False
    before = sock.gettimeout()
    try:
        while parser.header is None:
            set_deadline(sock, deadline)
            data = super(GuardedSocket, sock).recv(parser.missing)
            if not data:
                break
            begun = True
            parser.feed(data)
        sock.settimeout(before)
    except InvalidHeader as exc:
        raise Refused("proxy", str(exc)) from None
    except OSError as exc:
        if isinstance(exc, socket.timeout) and exc.errno is None:  # else the connection itself is lost (ETIMEDOUT)
            raise Refused("proxy", f"no whole header after {timeout:g} s") from None
        raise Refused("proxy", exc.strerror or str(exc), left=not begun) from None
    if parser.header is None:
        raise Refused("proxy", "left in mid-header" if begun else "left without a header", left=not begun)
    return parser.header


def send_header(sock: socket.socket, version: int = 2) -> None:
    """Send a PROXY header in front of all else on a connected socket, as a proxy does: it names the two ends of this
    connection. Of a Unix socket, version 1 says UNKNOWN. Call it before a TLS handshake. Raises ``OSError``."""
    sock.sendall(encode(Header(version, False, sock.getsockname(), sock.getpeername())))
