"""Bytes and addresses as text that is safe to show: in a log line, on a terminal, in an error message.

What a peer sent must not be able to forge a log line or drive a terminal (gh-100001): whatever is not
printable is escaped, the backslash too, so that the text tells exactly which bytes there were. Where it is shown is
not known here.
"""

from __future__ import annotations

import os
import socket
from typing import Any, Optional

_BACKSLASH = 92  # a number is looked for ten times as fast as b"\\"


def escape(data: bytes, limit: Optional[int] = None, *, exact: bool = True) -> str:
    """Show ``data`` on one line: UTF-8 where it is printable, ``\\n`` and ``\\xff`` where it is not.

    With a ``limit``, at most that many bytes are shown, and how many more there are. If it need not be ``exact``, a
    backslash and a tab stay what they are: as safe on a terminal, and what its user typed.

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
    # \x80 to \xff stand for bytes that are no UTF-8, so a character of that range needs another form.
    if "\x80" <= character <= "\xff":
        return f"\\u{ord(character):04x}"
    return character.encode("unicode_escape").decode("ascii")


def format_address(address: Any) -> str:
    """Name a socket address: ``192.0.2.1:80``, ``[2001:db8::1]:80``, ``[fe80::1%eth0]:80``, a path, or ``unix`` for a
    nameless peer.

    An IPv4 client of a dual-stack socket is shown as the IPv4 client that it is (no ``::ffff:``).
    """
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = unmapped(str(address[0])), address[1]
        if len(address) == 4 and address[3] and "%" not in host:  # accept() tells the zone as a number alone
            host = f"{host}%{_zone(address[3])}"
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(address, (str, bytes)) and address:
        path = os.fsencode(address)
        shown = b"@" + path[1:] if path[:1] == b"\0" else path  # an abstract one, as systemd and socat write it
        return escape(shown)  # a client chooses its own
    return "unix"


def unmapped(host: str) -> str:
    """``192.0.2.1`` for ``::ffff:192.0.2.1``, which is how an IPv6 socket sees an IPv4 client."""
    return host[len("::ffff:") :] if host.startswith("::ffff:") and "." in host else host


def _zone(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # gone, or another host's
        return str(index)


def plural(count: int, noun: str) -> str:
    """``1 byte``, ``2 bytes``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
