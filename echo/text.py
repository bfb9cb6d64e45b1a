"""Bytes, text, addresses and exceptions as lines that are safe to show: in a log, on a terminal, in an error message.

Bytes of a peer must not forge a log line or control a terminal (gh-100001), not even as part of an exception's text.
Everything that is not printable is escaped. In bytes a backslash is escaped too, so that the text stands for exactly
one sequence of bytes.
"""

from __future__ import annotations

import codecs
import os
import re
import socket
import sys
import traceback
from bisect import bisect_right
from itertools import accumulate
from types import FrameType
from typing import Any, Callable, Iterator, List, Mapping, Optional, Sequence, Tuple

LONGEST = 45_000
"""Maximum size of one text as it is shown, in bytes of UTF-8: a message in the log, an exception's text."""

LONGEST_PART = 44_000
"""Maximum size of a text that is a part of a message, in bytes. The rest of the message usually fits into ``LONGEST``,
too, so that the number of characters left out is not cut off."""

LONGEST_LINE = 48_000
"""Maximum size of a line of the log, in bytes. systemd's journal splits a line after 48 KiB, and shows the rest as an
entry of its own: a client that chooses where its text is split could forge one (journald.conf(5), ``LineMax=``)."""

_BACKSLASH = 92  # a number: ten times as fast to search for as b"\\"
_encode_escapes = codecs.getencoder("unicode_escape")
# Looked up here: the first look-up imports a module. A worker that is forked while another thread of its parent is in
# that import would wait for it for ever.


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
    text = printable(shown.decode("utf-8", "backslashreplace"), keep="" if exact else "\t")
    if hidden:
        text += f"... ({plural(hidden, 'more byte')})"
    return text


def printable(text: str, limit: Optional[int] = None, *, keep: str = "") -> str:
    """Return ``text`` as one line, with everything escaped that is not printable, except the characters in ``keep``.

    A backslash stays, since parts of the text may be escaped already. ``limit``: maximum size of what is shown, in
    bytes of UTF-8, followed by the number of characters left out; default: None, no limit.
    """
    if type(text) is not str:
        text = str.__str__(text)  # a subclass may override isprintable()
    shown = text if limit is None else text[:limit]
    count = len(shown)
    if not shown.isprintable():
        shown, count = _escape_parts(shown, limit, keep)
    elif limit is not None and not shown.isascii():
        shown = shown.encode()[:limit].decode("utf-8", "ignore")
        count = len(shown)
    hidden = len(text) - count
    return f"{shown}... ({plural(hidden, 'more character')})" if hidden else shown


def _escape_parts(text: str, limit: Optional[int], keep: str) -> Tuple[str, int]:
    """Return the text with escapes, and how many of its characters that shows.

    Part by part, and no further than the limit: a list of all characters takes 60 bytes for each, and all sessions may
    escape a long text at the same time. In a part each different character is looked at once.
    """
    parts = []
    count = 0
    for start in range(0, len(text), _PART):
        part = text[start : start + _PART]
        table = {
            ord(c): c if c.isprintable() or c in keep else _ESCAPES.get(c) or _escape_character(c) for c in set(part)
        }
        shown = part.translate(table)
        if limit is not None:
            size = len(shown) if shown.isascii() else len(shown.encode())
            if size > limit:
                fitting = _count_that_fit([len(table[ord(c)].encode()) for c in part], limit)
                parts.append(part[:fitting].translate(table))
                return "".join(parts), count + fitting
            limit -= size
        parts.append(shown)
        count += len(part)
    return "".join(parts), count


_PART = 1000
"""Characters that are escaped at a time."""


def _escape_character(character: str) -> str:
    # \x80 to \xff stand for bytes that are not UTF-8, so the characters of that range need another form.
    if "\x80" <= character <= "\xff":
        return f"\\u{ord(character):04x}"
    return _encode_escapes(character)[0].decode("ascii")


_ESCAPES = {c: _escape_character(c) for c in map(chr, range(256)) if not c.isprintable()}
"""The frequent ones: to make one takes 0.3 us."""


def format_exception(exc: BaseException, limit: int = LONGEST) -> List[str]:
    """Return an exception as the lines of its traceback, with its causes, all printable. Never raises, except
    for ``raise_if_deep``.

    The exception's own text may hold what a peer sent, so its line feeds are escaped, too: it stays one line.
    ``limit``: maximum size of such a text, in bytes; all lines together take about twice that.
    """
    try:
        tree = traceback.TracebackException(type(exc), exc, exc.__traceback__)
        for part in _parts(tree):
            _make_printable(part, limit)
        lines = "".join(tree.format()).rstrip("\n").split("\n")
        return shorten([printable(line, limit + _BESIDE) for line in lines], 2 * limit)
    except Exception as failure:  # RecursionError in a chain of a thousand causes (until 3.10), MemoryError, ...
        raise_if_deep(failure)
        why = f"its traceback could not be formatted: {type(failure).__name__}"
        return [printable(f"{type(exc).__name__} ({why})", limit)]


def raise_if_deep(exc: Exception) -> None:
    """Raise a ``RecursionError`` again near the end of the stack. Until Python 3.9, code that catches it there and goes
    on may end the process ("Cannot recover from stack overflow"): so one message would end a server whose handler calls
    itself and logs (bpo-36272)."""
    if isinstance(exc, RecursionError) and sys.version_info < (3, 10):
        depth = 0
        frame: Optional[FrameType] = sys._getframe()
        while frame is not None:
            frame, depth = frame.f_back, depth + 1
        if depth > sys.getrecursionlimit() / 3:  # else it was a part of the record that called itself
            raise exc


def _parts(tree: Any) -> Iterator[Any]:
    """The exception, its causes, and the members of exception groups."""
    found, seen = [tree], set()
    while found:
        part = found.pop()
        if part is not None and id(part) not in seen:
            seen.add(id(part))
            found += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]
            yield part


def _make_printable(part: Any, limit: int) -> None:
    # Where TracebackException keeps the texts of an exception: its str(), notes (3.11), and those of a SyntaxError.
    for name in ("_str", "msg", "text", "filename", "lineno"):
        value = getattr(part, name, None)
        if isinstance(value, str):
            setattr(part, name, printable(value.rstrip("\n") if name == "text" else value, limit))
    for frame in part.stack or ():
        frame.filename, frame.name = printable(frame.filename), printable(frame.name)
    notes = getattr(part, "__notes__", None)
    if notes is not None:
        if isinstance(notes, (str, bytes)) or not isinstance(notes, Sequence):
            notes = [_shown(notes, repr)]
        # Indented: in a log that does not mark the lines of a traceback, a client's text must not begin a line.
        part.__notes__ = ["  " + printable(_shown(note, str), limit) for note in notes]
    if type(part) is _SingleLines.__base__:  # else a program has put its own there
        part.__class__ = _SingleLines


class _SingleLines(traceback.TracebackException):
    """One whose lines have no line feed inside: any object may be the message of a ``SyntaxError``, and any text the
    name of a class. A line that begins with an unusual name is indented, as a note is."""

    def format_exception_only(self, *args: Any, **options: Any) -> Any:
        for line in super().format_exception_only(*args, **options):
            line = printable(line.rstrip("\n"))
            is_usual = line.startswith(" ") or _CLASS.match(line)
            yield f"{'' if is_usual else '  '}{line}\n"


_CLASS = re.compile(r"[\w.<>]+(?:: |:?$)")
"""The name of an exception's class, as it begins a line."""


def _shown(note: Any, how: Callable[[Any], str]) -> str:
    try:
        return how(note)
    except Exception as exc:
        raise_if_deep(exc)
        return "<note str() failed>"  # as Python prints it


def shorten(lines: List[str], limit: int) -> List[str]:
    """Leave out lines in the middle, so that about ``limit`` characters are left. The end of a line counts, too, with
    the mark of the next one in the log. The last line stays: in a traceback it is the exception itself."""
    sizes = [len(line) + _END for line in lines]
    if sum(sizes) <= limit:
        return lines
    head = _count_that_fit(sizes, limit // 2)
    tail = max(1, _count_that_fit(sizes[:head:-1], limit // 2))
    hidden = len(lines) - head - tail
    if hidden == 0:
        return lines
    if hidden == 1:
        return [*lines[:head], printable(lines[head], limit // 2), *lines[head + 1 :]]
    return [*lines[:head], f"... ({plural(hidden, 'more line')})", *lines[len(lines) - tail :]]


_END = 5
_BESIDE = 1000
"""Bytes for the rest of a line with an exception's text, such as the name of its class."""


def _count_that_fit(sizes: List[int], limit: int) -> int:
    return bisect_right(list(accumulate(sizes)), limit)


def format_address(address: Any) -> str:
    """Return a socket address as text: ``192.0.2.1:80``, ``[2001:db8::1]:80``, ``[fe80::1%eth0]:80`` or a path.

    A client of a Unix socket that has no name is ``unix``. An IPv4 client of a dual-stack socket is shown as an IPv4
    client, without ``::ffff:``. The text is printable: a server's ``get_request()`` may have made the address of what
    the client has sent.
    """
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = unmapped(str(address[0])), address[1]
        if len(address) == 4 and address[3] and "%" not in host:  # accept() gives the zone only as a number
            host = f"{host}%{_zone(address[3])}"
        return printable(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
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


def is_dumb(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether ``TERM`` says that the user's terminal understands no escape sequences."""
    return environment.get("TERM", "") in ("", "dumb", "unknown")


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 byte``, ``2 bytes``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
