"""Bytes and addresses as text that is safe to show: in a log line, on a terminal, in an error message.

Bytes from a peer must not forge a log line or control a terminal (gh-100001). Everything that is not printable is
escaped. A backslash is escaped too, so that the text stands for exactly one sequence of bytes.
"""

from __future__ import annotations

import os
import socket
from typing import Any, Optional

_BACKSLASH = 92  # a number: ten times as fast to search for as b"\\"


def escape(data: bytes, limit: Optional[int] = None, *, exact: bool = True) -> str:
    """Return ``data`` as one line of text: printable UTF-8 as it is, the rest as ``\\n`` or ``\\xff``.

    ``limit``: maximum number of bytes to show, followed by the number of bytes left out; default: None, no limit.
    ``exact``: whether to escape backslashes and tabs too (default: True). Without it they stay as the user typed them,
    which is just as safe on a terminal.

    >>> escape(b"caf\\xc3\\xa9\\x1b[2J\\xff")
    'café\\\\x1b[2J\\\\xff'
    """
    shown = data if limit is None else data[:limit]
    hidden = len(data) - len(shown)
    if exact and _BACKSLASH in shown:
        shown = shown.replace(b"\\", b"\\\\")  # before the decoder adds backslashes of its own
    text = shown.decode("utf-8", "backslashreplace")
    if not text.isprintable():
        plain = "" if exact else "\t"
        text = "".join(c if c.isprintable() or c in plain else _escape_character(c) for c in text)
    if hidden:
        text += f"... ({plural(hidden, 'more byte')})"
    return text


def _escape_character(character: str) -> str:
    # \x80 to \xff stand for bytes that are not UTF-8, so the characters of that range need another form.
    if "\x80" <= character <= "\xff":
        return f"\\u{ord(character):04x}"
    return character.encode("unicode_escape").decode("ascii")


def format_address(address: Any) -> str:
    """Return a socket address as text: ``192.0.2.1:80``, ``[2001:db8::1]:80``, ``[fe80::1%eth0]:80`` or a path.

    A client of a Unix socket that has no name is ``unix``. An IPv4 client of a dual-stack socket is shown as an IPv4
    client, without ``::ffff:``.
    """
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = unmapped(str(address[0])), address[1]
        if len(address) == 4 and address[3] and "%" not in host:  # accept() gives the zone only as a number
            host = f"{host}%{_zone(address[3])}"
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(address, (str, bytes)) and address:
        path = os.fsencode(address)
        shown = b"@" + path[1:] if path[:1] == b"\0" else path  # abstract: written as by systemd and socat
        return escape(shown)  # a client chooses its own path
    return "unix"


def unmapped(host: str) -> str:
    """Return ``192.0.2.1`` for ``::ffff:192.0.2.1``, the form in which an IPv6 socket sees an IPv4 client."""
    return host[len("::ffff:") :] if host.startswith("::ffff:") and "." in host else host


def _zone(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # the interface is gone, or the address is from another host
        return str(index)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 byte``, ``2 bytes``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
