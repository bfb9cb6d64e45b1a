"""``python -m echo.server``: an echo server with everything the library offers, on the command line.

It parses, wires and gives the exit code; every policy lives in the library. Exit codes: 0 when every session ended
by itself, 1 when some had to be cut or the port could not be had, 2 for a command line that makes no sense.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import re
import signal
import sys
import time
from types import FrameType
from typing import Any, Callable, Dict, Iterator, List, Optional

from .. import arguments
from ..framing import FRAMINGS
from ..handlers import EchoRequestHandler, MessageRequestHandler
from ..mixins import LoggingMixin
from ..text import format_address
from ..version import __version__
from . import affinity, workers
from .access import network
from .loading import combine, load_handler, load_mixin
from .logs import DirectLog, JsonFormatter, LogQueue, TextFormatter
from .server import Server
from .workers import Workers

PROG = "echo.server"

SAME_SIGNAL = 0.25
"""Seconds within which a second signal is the first one again: wrappers like timeout(1) signal the process and then
its group."""

log = logging.getLogger("echo.server")


def main(argv: Optional[List[str]] = None) -> int:
    """Run the server until SIGINT or SIGTERM; return the exit code."""
    options = _parser().parse_args(argv)
    try:
        server = _server(options)
    except ValueError as exc:
        arguments.fail(PROG, f"{exc}; see {PROG} --help", 2)
    except OSError as exc:
        where = format_address((options.bind, options.port))
        arguments.fail(PROG, f"cannot listen on {where}: {exc.strerror or exc}; {_advice(exc)}", 1)
    except OverflowError as exc:
        arguments.fail(PROG, str(exc), 2)
    logging.getLogger().setLevel("WARNING" if options.quiet else options.log_level.upper())
    descriptor = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
    json = options.log_format == "json"
    formatter = JsonFormatter(with_process=options.workers > 1) if json else TextFormatter()
    if options.workers == 1:
        with _logging_to(LogQueue(descriptor, formatter)):
            return _serve(server, lambda: _announce(server))  # who reads that it listens may stop it

    first = random.randrange(1 << 16)  # another server's workers should not all begin with the same processor

    def work(number: int, ready: Callable[[], None]) -> int:
        server.cpu_affinity = affinity.share(server.cpu_affinity, first + number)
        logging.getLogger().removeHandler(parents_log)
        with _logging_to(LogQueue(descriptor, formatter, shared=True)):
            return _serve(server, ready)

    server.socket.setblocking(False)  # the mode is one for all who inherit it; none may put back another at its end
    parents_log = DirectLog(descriptor, formatter)
    with _logging_to(parents_log):
        processes = Workers(options.workers, work, server.server_close)
        _announce(server)
        server.balance = processes.balance
        return processes.run()


@contextlib.contextmanager
def _logging_to(handler: logging.Handler) -> Iterator[None]:
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def _announce(server: Server) -> None:
    address = format_address(server.server_address)
    log.info("listening on %s", address, extra={"event": "listening", "address": address})


def _serve(server: Server, ready: Callable[[], None] = lambda: None) -> int:
    """Serve until a signal. ``ready`` is called when signals have their handlers."""
    first: Optional[float] = None

    def stop(signum: int, frame: Optional[FrameType]) -> None:
        nonlocal first
        now = time.monotonic()
        begins = first is None
        if first is None:
            first = now  # at once: the next signal may come inside this function
        elif now - first < SAME_SIGNAL:
            return
        name = signal.Signals(signum).name
        what = "stopping" if begins else "stopping now"
        log.info("%s: %s", name, what, extra={"event": "signal", "signal": name})
        if begins:
            server.shutdown()
        else:
            server.stop(timeout=0)

    def tell(signum: int, frame: Optional[FrameType]) -> None:
        stats = server.stats()._asdict()
        text = ", ".join(f"{name} {_sum(value) if isinstance(value, dict) else value}" for name, value in stats.items())
        log.info("statistics: %s", text, extra={"event": "statistics", **stats})

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, tell)
    ready()
    server.serve_forever()
    return 0 if server.stop() else 1


def _sum(counts: Dict[str, int]) -> str:
    parts = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    return f"{sum(counts.values())} ({parts})" if parts else "0"


def _server(options: argparse.Namespace) -> Server:
    return Server(
        (options.bind, options.port),
        _handler(options),
        max_connections=options.max_connections,
        max_connections_per_host=options.max_per_host,
        allow=options.allow,
        deny=options.deny,
        shutdown_timeout=options.shutdown_timeout or 0.0,
        cpu_affinity=options.cpu_affinity,
    )


def _handler(options: argparse.Namespace) -> type:
    handler = EchoRequestHandler if options.handler is None else load_handler(options.handler)
    mixins = [load_mixin(spec) for spec in options.mixin]
    given = {name: getattr(options, name) for name in _HANDLER_OPTIONS if hasattr(options, name)}
    if not issubclass(handler, MessageRequestHandler):
        if given or mixins:
            raise ValueError(
                f"{options.handler} handles no messages; framing, message limits and mixins are not for it"
            )
        return handler
    if "framing" in given or "max_message" in given:
        cls = FRAMINGS[given["framing"]] if "framing" in given else type(handler.framing)
        try:
            given["framing"] = cls(given.pop("max_message", handler.framing.max_message))
        except TypeError:
            raise ValueError(
                f"{options.handler} has a framing of its own, whose limit cannot be set from here"
            ) from None
    if not options.log_messages:
        given["message_level"] = None
    return combine(handler, [LoggingMixin, *mixins], **given)


_HANDLER_OPTIONS = ("framing", "max_message", "timeout", "message_timeout", "send_timeout")


def _advice(exc: OSError) -> str:
    import errno

    if exc.errno == errno.EADDRINUSE:
        return "another program has this port; stop it, or choose another port (0 takes any free one)"
    if exc.errno == errno.EACCES:
        return "ports below 1024 are for privileged users; choose a higher one"
    return "give an address of this machine, like 127.0.0.1, or 0.0.0.0 for all of them"


def _network(text: str) -> str:
    try:
        network(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return text


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


def _workers(text: str) -> int:
    if text == "auto":
        return max(1, len(affinity.usable()) or os.cpu_count() or 1) if affinity.has_gil() and workers.SUPPORTED else 1
    try:
        count = arguments.count(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; write a whole number from 1 on, or auto") from None
    if count > 1 and not workers.SUPPORTED:
        raise argparse.ArgumentTypeError("this system cannot fork; start several servers on several ports")
    return count


def _parser() -> argparse.ArgumentParser:
    parser = arguments.ArgumentParser(
        prog=PROG, description="An echo server: each message comes back, until one is 'exit'."
    )
    add: Any = parser.add_argument
    add(
        "port",
        nargs="?",
        type=arguments.port,
        default=arguments.DEFAULT_PORT,
        help="the port to listen on, 0 for any free one (default: %(default)s)",
    )
    add(
        "-b",
        "--bind",
        metavar="ADDRESS",
        default=arguments.DEFAULT_HOST,
        help="the address to listen on (default: %(default)s)",
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
    add("--allow", type=_network, action="append", metavar="CIDR", default=[], help="let only these networks in")
    add("--deny", type=_network, action="append", metavar="CIDR", default=[], help="keep these networks out")
    add(
        "-i",
        "--idle-timeout",
        dest="timeout",
        default=argparse.SUPPRESS,
        type=arguments.duration,
        metavar="TIME",
        help="end a session in which nothing arrives for so long (default: never)",
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


if __name__ == "__main__":
    sys.exit(main())
