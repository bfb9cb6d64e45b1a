"""The server's TLS handshake, as a step of admission. It runs in the session's own thread, with a deadline."""

from __future__ import annotations

import ssl
from typing import Optional

from ..server.admission import Refused
from .tls import TLSSocket
from .tls_messages import explain


def shake_hands(sock: TLSSocket, context: ssl.SSLContext, timeout: Optional[float]) -> None:
    """Do the server's part of a TLS handshake on an accepted ``TLSSocket``, within ``timeout`` seconds; None: no
    limit. Raises ``Refused``."""
    try:
        sock.handshake(context, server_side=True, timeout=timeout)
    except OSError as exc:  # ssl.SSLError is one
        raise Refused("handshake", explain(exc), left=sock.untouched and isinstance(exc, ConnectionError)) from None
    except ValueError as exc:  # the context ignores its revocation lists. (Some of ssl.SSLError are both.)
        raise Refused("handshake", str(exc)) from None
