"""The server command's options, as rows.

A new option is a row in ``GROUPS``: a ``ServerRow`` sets an option of ``Server``, a ``HandlerRow`` an attribute of the
handler class, and any other ``Row`` is for ``command``.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
from typing import Any, Callable, Dict, List

from ... import protocol
from ...handlers import MessageRequestHandler
from ...server.options import OPTIONS
from ...server.server import Server
from ...transport import affinity
from .. import arguments
from ..arguments import Group, Row
from ..color import COLOR
from ..help import GENERAL, CommandParser, Manual, Notes
from . import networks, workers
from .networks import NetworkLists

PROG = arguments.program("echo.server")


def _networks(text: str) -> str:
    try:
        return networks.checked(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _bind(text: str) -> arguments.Address:
    return _checked(arguments.host(text), text)


def _port(text: str) -> arguments.Address:
    return _checked(arguments.port_or_address(text), text)


def _checked(address: arguments.Address, text: str) -> arguments.Address:
    """Return an address to listen on as it is, unless the look-up would read another one."""
    name = address.host or ""
    try:
        # As the look-up does, which reads other scripts' digits and full stops as ASCII's.
        ascii_name = name.encode("idna").decode("ascii")
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"invalid host name {text!r}: check it") from None
    try:
        packed = socket.inet_aton(ascii_name)
    except OSError:
        return address
    if socket.inet_ntoa(packed) != name:  # 0 would be 0.0.0.0, and 127.0.0.010 would be 127.0.0.8
        raise argparse.ArgumentTypeError(
            f"invalid address {text!r}: write all four numbers, and no leading zeros, like 127.0.0.1"
        )
    return address


def _mode(text: str) -> int:
    if re.fullmatch("0?[0-7]{3}", text, re.ASCII) is None:
        raise argparse.ArgumentTypeError(f"invalid permissions {text!r}: expected three octal digits, like 660")
    return int(text, 8)


def _processors(text: str) -> affinity.Affinity:
    """``auto``, ``off``, or a list like taskset's: ``0,2-3``."""
    if text in ("auto", "off"):
        return None if text == "off" else text
    numbers: List[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part, re.ASCII)
        if match is None:
            raise argparse.ArgumentTypeError(
                f"invalid processors {text!r}: expected a list like 0,2-3, or auto, or off"
            )
        first, last = int(match.group(1)), int(match.group(2) or match.group(1))
        if last < first:
            raise argparse.ArgumentTypeError(f"invalid range {part!r}: expected {last}-{first}")
        numbers += range(first, last + 1)
    return numbers


def auto_workers(processors: int, useful: bool) -> int:
    """``auto``: one worker for each processor; one in all where several are not ``useful``: without the GIL or fork."""
    return processors if useful else 1


MAX_WORKERS = 1024
"""A greater number is most likely a typing error. To start so many processes would take all memory."""


def _workers(text: str) -> int:
    if text == "auto":
        return auto_workers(len(affinity.usable()) or os.cpu_count() or 1, affinity.has_gil() and workers.SUPPORTED)
    try:
        count = arguments.count(text)
    except argparse.ArgumentTypeError:
        count = 0
    if not 1 <= count <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"invalid number {text!r}: expected 1 to {MAX_WORKERS}, or auto")
    if count > 1 and not workers.SUPPORTED:
        raise argparse.ArgumentTypeError("this system has no fork(); start several servers on several ports")
    return count


class ServerRow(Row):
    """An option of ``Server``. Unless given here, its meaning, its default and the name of that are the declared ones.

    ``load`` turns the parsed value into the option's. It may read lists of networks, and SIGHUP calls it again.
    """

    def __init__(
        self,
        option: str,
        names: str,
        read: Callable[[str], Any] = str,
        meaning: str = "",
        *,
        load: Callable[[NetworkLists, Any], Any] = lambda lists, value: value,
        **more: Any,
    ) -> None:
        declared = OPTIONS[option]
        more.setdefault("default", getattr(Server, option) or None)
        more.setdefault("shown", "" if more["default"] else declared.none)
        if not meaning:
            meaning = declared.meaning + (f"; 0: {declared.none}" if read is arguments.duration else "")
        super().__init__(names, meaning, read, **more)
        self.option, self.load = option, load


class HandlerRow(Row):
    """An attribute of the handler class. It is left out unless given, since the class has a value of its own."""

    def __init__(self, attribute: str, names: str, read: Callable[[str], Any], meaning: str, **more: Any) -> None:
        default = getattr(MessageRequestHandler, attribute)
        super().__init__(names, meaning, read, default, left_out=True, **more)
        self.attribute = attribute


GROUPS = [
    Group(
        "address",
        "",
        Row(
            "port",
            "port to listen on, or ADDRESS:PORT; 0: any free port, which the log shows",
            _port,
            shown=str(protocol.DEFAULT_PORT),
        ),
        Row(
            "-b, --bind ADDRESS",
            "address to listen on; :: for all addresses of this machine, 0.0.0.0 for all its IPv4 addresses",
            _bind,
            shown=protocol.DEFAULT_HOST,
        ),
        Row("--unix PATH", "listen on a Unix socket instead; @NAME for an abstract one", arguments.unix),
        ServerRow("unix_mode", "--unix-mode MODE", _mode, "permissions of the Unix socket's path, in octal, like 660"),
    ),
    Group(
        "messages",
        "",
        *arguments.framing_rows(MessageRequestHandler.framing, left_out=True),
        Row(
            "--handler MODULE:CLASS",
            "handler class that serves the clients, from a module in the current folder or an installed one",
            shown="the echo",
        ),
        Row(
            "--mixin MODULE:CLASS", "mixin class to add to the handler; the first one given is the outermost", many=True
        ),
    ),
    Group(
        "limits",
        "TIME is a duration, like 500ms, 30s, 5m or 1h; a bare number is seconds.",
        ServerRow("max_connections", "-m, --max-connections N", arguments.count),
        ServerRow("max_connections_per_host", "--max-per-host N", arguments.count),
        ServerRow(
            "allow",
            "--allow CIDR|@FILE",
            _networks,
            "network that may connect, like 192.0.2.0/24; @FILE: a file with one network a line, read again at SIGHUP",
            load=NetworkLists.allowed,
            many=True,
            guards=True,
            shown="all",
            more="comments in it begin with #",
        ),
        ServerRow(
            "deny",
            "--deny CIDR|@FILE",
            _networks,
            "network that may not connect, even if --allow has it",
            load=NetworkLists.denied,
            many=True,
            guards=True,
            shown="none",
        ),
        HandlerRow(
            "timeout",
            "-i, --idle-timeout TIME",
            arguments.duration,
            "maximum time without input between messages; 0: no limit",
            shown="no limit",
        ),
        HandlerRow(
            "message_timeout",
            "--message-timeout TIME",
            arguments.duration,
            "maximum time from a message's first byte to its last; 0: no limit",
        ),
        HandlerRow(
            "send_timeout",
            "--send-timeout TIME",
            arguments.duration,
            "maximum time in which a client takes no byte of its replies; 0: no limit",
        ),
        ServerRow(
            "shutdown_timeout",
            "--shutdown-timeout TIME",
            arguments.seconds,
            more="threads and exit functions of the handler's module have the same time, and one second later the"
            " process is gone",
        ),
    ),
    Group(
        "TLS",
        "Files are in PEM format, and are read again at SIGHUP.",
        Row(
            "--tls-cert FILE",
            "serve TLS with this certificate, and its intermediate certificates in the same file",
            arguments.file,
            shown=OPTIONS["ssl_context"].none,
        ),
        Row(
            "--tls-key FILE",
            "private key of the certificate",
            arguments.file,
            shown="in the same file",
            needs=("tls_cert",),
        ),
        Row(
            "--tls-client-ca FILE",
            "require a client certificate that this CA has issued",
            arguments.file,
            shown="not required",
            needs=("tls_cert",),
            guards=True,
        ),
        ServerRow("handshake_timeout", "--handshake-timeout TIME", arguments.duration),
    ),
    Group(
        "behind a load balancer",
        "",
        ServerRow("proxy_protocol", "--proxy-protocol"),
        ServerRow(
            "proxy_allow_from",
            "--proxy-allow-from CIDR|@FILE",
            _networks,
            "network that may send a PROXY header; other connections are closed at once",
            load=NetworkLists.allowed,
            many=True,
            guards=True,
            shown="all",
            needs=("proxy_protocol",),
        ),
    ),
    Group(
        "speed",
        "",
        Row(
            "--workers N|auto",
            "number of processes that share the port, each with its own limits; auto: one for each processor; one in"
            " all on a Python without the GIL",
            _workers,
            1,
        ),
        ServerRow(
            "cpu_affinity",
            "--cpu-affinity LIST|auto|off",
            _processors,
            "processors to run on, like 0,2-3; auto: one for each process, or all of them on a Python without the"
            " GIL; off: all of them",
            default="auto",  # the echo handler is fastest on one; a program's handlers may need them all
        ),
    ),
    Group(
        "log",
        "The log goes to standard error.",
        Row("--log-level debug|info|warning|error", "minimum level of a log record", default="info"),
        Row("--log-format text|json", "lines for people, or one JSON object a line", default="text"),
        Row("--log-threads", "show the name of the thread in each log record"),
        Row("--no-log-messages", "log sessions, but not their messages"),
        Row("-q, --quiet", "log only warnings and errors"),
        COLOR,
    ),
    GENERAL,
]
"""Every option of the command, as --help shows them."""

MANUAL = Manual(
    script="echo-server",
    summary="A TCP server that sends each message back, or serves a handler class of yours.",
    examples=[
        ("", f"listen on {protocol.DEFAULT_HOST}:{protocol.DEFAULT_PORT}"),
        ("7000 --bind ::", "port 7000, all addresses"),
        ("--handler shout:Upper", "serve class Upper of shout.py"),
    ],
    description=[
        "Each client is served by a thread of its own. A message is a line, unless --framing says otherwise, and comes"
        " back as it was sent. A message that reads exit, in any letter case and with spaces around it, ends the"
        " session; so does the end of the client's input. Every reply before the end arrives.",
        "By default only this machine can connect. Connections and messages are logged on standard error.",
    ],
    groups=GROUPS,
    notes=[
        Notes(
            "environment",
            [
                (
                    "ECHO_...",
                    "any option, under its long name: ECHO_PORT=7000, ECHO_MAX_CONNECTIONS=100, ECHO_QUIET=1;"
                    " spaces separate several values; the command line overrides it",
                ),
            ],
        ),
        Notes(
            "signals",
            [
                (
                    "INT, TERM",
                    "stop: accept no more clients, and give the sessions the --shutdown-timeout to finish; a"
                    " second signal cuts them",
                ),
                (
                    "HUP",
                    "read the files of TLS and networks again, for new clients; if one is invalid, nothing changes",
                ),
                ("USR1", "log the statistics"),
            ],
        ),
        Notes(
            "exit codes",
            [
                ("0", "every session ended by itself"),
                ("1", "something was cut, or the server cannot listen on its address"),
                ("2", "usage error, or a file that cannot be used"),
            ],
        ),
    ],
)

ROWS = [row for group in GROUPS for row in group.rows if row.prints is None]


def parser() -> CommandParser:
    """The parser. Its ``read_environment`` takes defaults from variables."""
    commands = CommandParser(PROG, MANUAL)
    commands.mistaken = {
        **dict.fromkeys(("-p", "--port"), f"give the port alone, as in {arguments.invocation(PROG)} 7000"),
        "--host": "write --bind ADDRESS",
        **dict.fromkeys(("--tls", "--cert"), "write --tls-cert FILE"),
    }
    return commands


def settings(options: argparse.Namespace, lists: NetworkLists) -> Dict[str, Any]:
    """The parsed options of ``Server``. Raises ``ValueError`` for an unusable file."""
    return {row.option: row.load(lists, getattr(options, row.dest)) for row in ROWS if isinstance(row, ServerRow)}


def handler_attributes(options: argparse.Namespace) -> Dict[str, Any]:
    """The attributes of the handler class that were given, and ``framing`` and ``max_message``."""
    rows = [row for row in ROWS if row.left_out and hasattr(options, row.dest)]
    return {row.attribute if isinstance(row, HandlerRow) else row.dest: getattr(options, row.dest) for row in rows}
