"""The server's command line as ``argparse`` knows it: what may be said, and what each word means.

It reads text and checks it. What the options do, ``__main__`` and the library know.
"""

from __future__ import annotations

import argparse
import os
import re
from typing import Any, List

from ... import protocol
from ...handlers import MessageRequestHandler
from ...server.access import expand
from ...server.server import Server
from ...transport import affinity
from ...version import __version__
from .. import arguments
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


def parser() -> arguments.ArgumentParser:
    """The parser; ``read_environment`` of it adds what containers are told by."""
    parser = arguments.ArgumentParser(
        prog=PROG,
        description="An echo server: each message comes back, until one is 'exit'.",
        epilog="Each option may be given in the environment as well, where it counts less: ECHO_PORT, ECHO_BIND,"
        " ECHO_MAX_CONNECTIONS, ...; ECHO_QUIET=1; several values of one option with spaces between them.",
    )
    add: Any = parser.add_argument
    add(
        "port",
        nargs="?",
        type=arguments.port,
        default=protocol.DEFAULT_PORT,
        help="the port to listen on, 0 for any free one (default: %(default)s)",
    )
    add(
        "-b",
        "--bind",
        metavar="ADDRESS",
        default=protocol.DEFAULT_HOST,
        help="the address to listen on; :: is all of this machine's, IPv6 and IPv4 (default: %(default)s)",
    )
    add("--unix", type=arguments.unix, metavar="PATH", help="listen on a Unix socket instead; @NAME is an abstract one")
    add(
        "--unix-mode",
        type=_mode,
        metavar="MODE",
        help="its permissions, in octal, like 660 (default: as the umask says)",
    )
    arguments.add_framing(parser, only_if_given=True)
    add(
        "--handler",
        metavar="MODULE:CLASS",
        help="serve with this request handler, from the current folder or an installed module, instead of the echo",
    )
    add(
        "--mixin",
        metavar="MODULE:CLASS",
        action="append",
        default=[],
        help="put this mixin on the handler; the first one given is the outermost",
    )
    limits = parser.add_argument_group("limits", "durations are like 500ms, 30s, 5m; a bare number is seconds")
    add = limits.add_argument
    add(
        "-m",
        "--max-connections",
        type=arguments.count,
        metavar="N",
        default=Server.max_connections,
        help="clients at a time; more wait in the backlog (default: %(default)s)",
    )
    add(
        "--max-per-host", type=arguments.count, metavar="N", help="clients at a time from one address; more are refused"
    )
    add(
        "--allow",
        type=_networks,
        action="append",
        metavar="CIDR",
        default=[],
        help="let only these networks in; @FILE names a file of them, which SIGHUP reads again",
    )
    add(
        "--deny",
        type=_networks,
        action="append",
        metavar="CIDR",
        default=[],
        help="keep these networks out; @FILE as above",
    )
    add(
        "-i",
        "--idle-timeout",
        dest="timeout",
        default=argparse.SUPPRESS,
        type=arguments.duration,
        metavar="TIME",
        help="end a session in which nothing arrives for so long, 0 for never (default: never)",
    )
    add(
        "--message-timeout",
        type=arguments.duration,
        metavar="TIME",
        default=argparse.SUPPRESS,
        help="from a message's first byte to its last, 0 for no limit"
        f" (default: {MessageRequestHandler.message_timeout:g} s)",
    )
    add(
        "--send-timeout",
        type=arguments.duration,
        metavar="TIME",
        default=argparse.SUPPRESS,
        help="end a session whose client takes no byte of a reply for so long, 0 for never"
        f" (default: {MessageRequestHandler.send_timeout:g} s)",
    )
    add(
        "--shutdown-timeout",
        type=arguments.duration,
        metavar="TIME",
        default=Server.shutdown_timeout,
        help="what a stop leaves all sessions together (default: %(default)g s)",
    )
    security = parser.add_argument_group("TLS", "SIGHUP reads the files again")
    add = security.add_argument
    add("--tls-cert", metavar="FILE", help="speak TLS, with this certificate and what links it to its CA (PEM)")
    add("--tls-key", metavar="FILE", help="its key (default: in the same file)")
    add("--tls-client-ca", metavar="FILE", help="let only clients in that have a certificate of this CA (PEM)")
    add(
        "--handshake-timeout",
        type=arguments.duration,
        metavar="TIME",
        default=Server.handshake_timeout,
        help="for the TLS handshake, and for a PROXY header; 0 for no limit (default: %(default)g s)",
    )
    proxies = parser.add_argument_group("behind a load balancer")
    add = proxies.add_argument
    add(
        "--proxy-protocol",
        action="store_true",
        help="each connection has to begin with a PROXY header, version 1 or 2, that says who the client is",
    )
    add(
        "--proxy-allow-from",
        type=_networks,
        action="append",
        metavar="CIDR",
        default=[],
        help="only these networks may send one; all others are refused (default: all may)",
    )
    speed = parser.add_argument_group("speed")
    add = speed.add_argument
    add(
        "--workers",
        type=_workers,
        metavar="N",
        default=1,
        help="processes that share the port, each with limits of its own; auto is one for each processor, and one"
        " where there is no GIL (default: %(default)s)",
    )
    add(
        "--cpu-affinity",
        type=_processors,
        metavar="LIST",
        default="auto",
        help="processors to keep to, like 0,2-3; auto is one for each process, and no choice where there is no GIL;"
        " off is no choice (default: %(default)s)",
    )
    logs = parser.add_argument_group("logs", "written to stderr")
    add = logs.add_argument
    add("--log-level", choices=["debug", "info", "warning", "error"], default="info", help="(default: %(default)s)")
    add(
        "--log-format",
        choices=["text", "json"],
        default="text",
        help="lines for people, or JSON (default: %(default)s)",
    )
    add("--no-log-messages", dest="log_messages", action="store_false", help="log sessions, but no messages")
    add("-q", "--quiet", action="store_true", help="log only warnings and errors")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    return parser
