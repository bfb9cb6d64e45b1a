"""The hint behind an error: why a server may have answered nothing, or something else.

It knows the bytes that came back, and opens no connection: a probe could do harm at a service that is not an echo.
"""

from __future__ import annotations

import argparse
import os
from typing import List

from ...exceptions import (
    ConnectionClosed,
    EchoError,
    EchoMismatch,
    IncompleteMessage,
    MessageTooLong,
    ReceiveTimeout,
)
from ...framing import DEFAULT_MAX_MESSAGE

_TLS_RECORDS = (b"\x15\x03", b"\x16\x03")
"""How an alert and a handshake begin in TLS: with their type, and the version."""


_PROXY_HEADERS = (b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n", b"\r")
"""How a PROXY header begins as a message: version 1, version 2, and version 2 up to its first line feed."""


def explained(exc: EchoError, came: int, options: argparse.Namespace) -> str:
    """Return the error as a line, with a hint. ``came``: number of bytes that have come from the server in all."""
    hint = _hint(exc, came, options)
    return f"{exc}; {hint}" if hint else str(exc)


def _hint(exc: EchoError, came: int, options: argparse.Namespace) -> str:
    rest = exc.__cause__ if isinstance(exc.__cause__, IncompleteMessage) else exc
    received = getattr(rest, "received", b"") or getattr(rest, "rest", b"")
    if received.startswith(_TLS_RECORDS) and not options.tls:
        return "the server uses TLS; add --tls"
    if isinstance(exc, EchoMismatch):
        if options.send_proxy is not None and received.startswith(_PROXY_HEADERS):
            return "the server has echoed the PROXY header; start it with --proxy-protocol, or omit --send-proxy"
        line = exc.sent.partition(b"\n")[0]
        if options.framing == "line" and received.startswith(line + b"\r"):
            return "the server's lines end with CR LF; add --framing crlf"
        return f"if this service is not an echo, {'add' if options.text else 'use -m with'} --no-verify"
    if isinstance(exc, MessageTooLong) and options.text:  # of a reply, or text was taken for the length of one
        return "raise --max-message, or give the server's --framing"
    if isinstance(exc, ReceiveTimeout):
        return unanswered(options, "be full", "have another --framing") if not came else _OTHER_FRAMING
    if isinstance(exc, ConnectionClosed) and not came and not options.tls:  # TLS gives the reason
        return unanswered(options, "refuse this client", "have another --framing", *_too_long(options))
    return ""


_OTHER_FRAMING = "the server may be full, or have another --framing"


def _too_long(options: argparse.Namespace) -> List[str]:
    """A server ends a session without a word if a message is over its limit."""
    longest = options.size if options.ping else max(len(os.fsencode(text)) for text in options.text or [""])
    return ["have a lower --max-message"] if longest > DEFAULT_MAX_MESSAGE and options.framing != "raw" else []


def unanswered(options: argparse.Namespace, *reasons: str) -> str:
    """Return why no byte may have come from the server."""
    found = list(reasons)
    if not options.tls:
        found.append("use TLS (--tls)")
    found.append("expect a PROXY header (--send-proxy)" if options.send_proxy is None else "expect no PROXY header")
    *others, last = found
    comma = "," if len(others) > 1 else ""
    return "the server may " + (f"{', '.join(others)}{comma} or {last}" if others else last)


def unanswered_ping(options: argparse.Namespace, has_connected: bool) -> str:
    """The same for many messages that were lost; empty if the line of each says enough."""
    if has_connected:
        return unanswered(options, "be full", "refuse this client", "have another --framing", *_too_long(options))
    return no_handshake(options) if options.tls else ""


def no_handshake(options: argparse.Namespace) -> str:
    """Return why a server may have taken no part in the TLS handshake."""
    return unanswered(options, "not use TLS (omit --tls)", "be full", "refuse this client")
