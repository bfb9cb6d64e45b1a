"""The server's TLS handshake, as a step of admission. It runs in the session's own thread, with a deadline."""

from __future__ import annotations

import ssl
from typing import Any, Optional

from ..server.admission import Refused
from .tls import TLSSocket
from .tls_messages import explain


def shake_hands(sock: Any, context: ssl.SSLContext, timeout: Optional[float]) -> None:
    """Do the server's part of a TLS handshake on an accepted ``TLSSocket``, within ``timeout`` seconds; None: no
    limit. Raises ``Refused``."""
    if not isinstance(sock, TLSSocket):
        raise TypeError("with ssl_context, get_request() has to return a TLSSocket, as it does by default")
    try:
        sock.handshake(context, server_side=True, timeout=timeout)
    except OSError as exc:  # ssl.SSLError is one
        raise Refused("handshake", explain(exc), left=sock.untouched and isinstance(exc, ConnectionError)) from None
