"""The server's command line as ``argparse`` knows it: what may be said, and what each word means.

It reads text and checks it. What the options do, ``__main__`` and the library know.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
from typing import Any, Callable, Dict, List

from ... import protocol
from ...handlers import MessageRequestHandler
from ...server.access import expand
from ...server.options import OPTIONS
from ...server.server import Server
from ...transport import affinity
from ...version import __version__
from .. import arguments
from ..arguments import Group, Row
from . import workers

PROG = arguments.program("echo.server")


def _networks(text: str) -> str:
    try:
        expand([text], may_be_empty=True)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return text


def _mode(text: str) -> int:
    if re.fullmatch("[0-7]{3,4}", text, re.ASCII) is None:
        raise argparse.ArgumentTypeError(f"{text!r} are no permissions; write them in octal, like 660")
    return int(text, 8)


def _processors(text: str) -> affinity.Affinity:
    """``auto``, ``off``, or a list like taskset's: ``0,2-3``."""
    if text in ("auto", "off"):
        return None if text == "off" else text
    numbers: List[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part, re.ASCII)
        if match is None:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of processors; write it like 0,2-3, or auto, or off")
        first, last = int(match.group(1)), int(match.group(2) or match.group(1))
        if last < first:
            raise argparse.ArgumentTypeError(f"{part!r} runs backwards; write it {last}-{first}")
        numbers += range(first, last + 1)
    return numbers


def auto_workers(processors: int, useful: bool) -> int:
    """``auto``: a worker for each processor; one where several are not ``useful``: without the GIL, or without fork."""
    return processors if useful else 1


def _workers(text: str) -> int:
    if text == "auto":
        return auto_workers(len(affinity.usable()) or os.cpu_count() or 1, affinity.has_gil() and workers.SUPPORTED)
    try:
        count = arguments.count(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; write a whole number from 1 on, or auto") from None
    if count > 1 and not workers.SUPPORTED:
        raise argparse.ArgumentTypeError("this system cannot fork; start several servers on several ports")
    return count


class ServerRow(Row):
    """An option of ``Server``: its default is that class's, and its meaning the declared one unless text says more.

    ``load`` makes the option of the value that was read; it may read files, and SIGHUP does it again.
    """

    def __init__(
        self,
        option: str,
        names: str,
        read: Callable[[str], Any] = str,
        meaning: str = "",
        *,
        load: Callable[[Any], Any] = lambda value: value,
        **more: Any,
    ) -> None:
        more.setdefault("default", getattr(Server, option) or None)
        super().__init__(names, meaning or OPTIONS[option].meaning, read, **more)
        self.option, self.load = option, load


class HandlerRow(Row):
    """An attribute of the handler class. Unless given it is left out, since the class has a value of its own."""

    def __init__(self, attribute: str, names: str, read: Callable[[str], Any], meaning: str, **more: Any) -> None:
        default = getattr(MessageRequestHandler, attribute)
        super().__init__(names, meaning, read, default, left_out=True, **more)
        self.attribute = attribute


GROUPS = [
    Group(
        "",
        "",
        Row(
            "port",
            "the port to listen on, 0 for any free one",
            arguments.port,
            protocol.DEFAULT_PORT,
            more="the log's first line says which",
        ),
        Row(
            "-b, --bind ADDRESS",
            "the address to listen on; :: is all of this machine's, IPv6 and IPv4",
            default=protocol.DEFAULT_HOST,
        ),
        Row("--unix PATH", "listen on a Unix socket instead; @NAME is an abstract one", arguments.unix),
        ServerRow(
            "unix_mode", "--unix-mode MODE", _mode, "its permissions, in octal, like 660", shown="as the umask says"
        ),
        *arguments.framing_rows(MessageRequestHandler.framing, left_out=True),
        Row(
            "--handler MODULE:CLASS",
            "serve with this request handler, from the current folder or an installed module, instead of the echo",
        ),
        Row("--mixin MODULE:CLASS", "put this mixin on the handler; the first one given is the outermost", many=True),
    ),
    Group(
        "limits",
        "durations are like 500ms, 30s, 5m; a bare number is seconds",
        ServerRow(
            "max_connections", "-m, --max-connections N", arguments.count, "clients at a time; more wait in the backlog"
        ),
        ServerRow(
            "max_connections_per_host",
            "--max-per-host N",
            arguments.count,
            "clients at a time from one address; more are refused",
        ),
        ServerRow(
            "allow",
            "--allow CIDR",
            _networks,
            "let only these networks in; @FILE names a file of them, which SIGHUP reads again",
            load=expand,
            many=True,
            more="in a file one a line, # for remarks",
        ),
        ServerRow(
            "deny",
            "--deny CIDR",
            _networks,
            "keep these networks out; @FILE as above",
            load=functools.partial(expand, may_be_empty=True),
            many=True,
            more="it wins over --allow",
        ),
        HandlerRow(
            "timeout",
            "-i, --idle-timeout TIME",
            arguments.duration,
            "end a session in which nothing arrives for so long, 0 for never",
            shown="never",
        ),
        HandlerRow(
            "message_timeout",
            "--message-timeout TIME",
            arguments.duration,
            "from a message's first byte to its last, 0 for no limit",
        ),
        HandlerRow(
            "send_timeout",
            "--send-timeout TIME",
            arguments.duration,
            "end a session whose client takes no byte of a reply for so long, 0 for never",
        ),
        ServerRow(
            "shutdown_timeout",
            "--shutdown-timeout TIME",
            arguments.seconds,
            "what a stop leaves all sessions together",
            more="0 cuts them at once (and a handler that is stuck has a second to notice)",
        ),
    ),
    Group(
        "TLS",
        "SIGHUP reads the files again",
        Row("--tls-cert FILE", "speak TLS, with this certificate and what links it to its CA (PEM)"),
        Row("--tls-key FILE", "its key", shown="in the same file"),
        Row("--tls-client-ca FILE", "let only clients in that have a certificate of this CA (PEM)"),
        ServerRow(
            "handshake_timeout",
            "--handshake-timeout TIME",
            arguments.duration,
            "for the TLS handshake, and for a PROXY header; 0 for no limit",
            more="a PROXY header needs 3 s or more",
        ),
    ),
    Group(
        "behind a load balancer",
        "",
        ServerRow(
            "proxy_protocol",
            "--proxy-protocol",
            meaning="each connection has to begin with a PROXY header, version 1 or 2, that says who the client is",
        ),
        ServerRow(
            "proxy_allow_from",
            "--proxy-allow-from CIDR",
            _networks,
            "only these networks may send one; all others are refused",
            load=expand,
            many=True,
            shown="all may",
            more="@FILE, too",
        ),
    ),
    Group(
        "speed",
        "",
        Row(
            "--workers N",
            "processes that share the port, each with limits of its own; auto is one for each processor, and one"
            " where there is no GIL",
            _workers,
            1,
        ),
        ServerRow(
            "cpu_affinity",
            "--cpu-affinity LIST",
            _processors,
            "processors to keep to, like 0,2-3; auto is one for each process, and no choice where there is no GIL;"
            " off is no choice",
            default="auto",  # the echo handler is fastest on one; a program's handlers may need them all
        ),
    ),
    Group(
        "logs",
        "written to stderr",
        Row("--log-level debug|info|warning|error", default="info"),
        Row("--log-format text|json", "lines for people, or JSON", default="text"),
        Row("--no-log-messages", "log sessions, but no messages"),
        Row("-q, --quiet", "log only warnings and errors"),
    ),
]
"""Every option of the command, as --help shows them."""

ROWS = [row for group in GROUPS for row in group.rows]


def parser() -> arguments.ArgumentParser:
    """The parser; ``read_environment`` of it adds what containers are told by."""
    commands = arguments.ArgumentParser(
        prog=PROG,
        description="An echo server: each message comes back, until one is 'exit'.",
        epilog="Each option may be given in the environment as well, where it counts less: ECHO_PORT, ECHO_BIND,"
        " ECHO_MAX_CONNECTIONS, ...; ECHO_QUIET=1; several values of one option with spaces between them.",
        groups=GROUPS,
    )
    commands._action_groups[-1].add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return commands


def settings(options: argparse.Namespace) -> Dict[str, Any]:
    """The options of ``Server`` that the command line gives. Raises ``ValueError`` for an unusable file."""
    return {row.option: row.load(getattr(options, row.dest)) for row in ROWS if isinstance(row, ServerRow)}


def handler_attributes(options: argparse.Namespace) -> Dict[str, Any]:
    """What was given of a handler class's attributes, and of ``framing`` and ``max_message``."""
    rows = [row for row in ROWS if row.left_out and hasattr(options, row.dest)]
    return {row.attribute if isinstance(row, HandlerRow) else row.dest: getattr(options, row.dest) for row in rows}
