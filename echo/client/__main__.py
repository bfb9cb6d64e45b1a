"""``python -m echo.client``: a session at the terminal, single messages, or a pipe.

It parses, wires and gives the exit code. Results go to stdout, everything else to stderr. Exit codes: 0 all came
back, 1 no connection or replies missing, 2 a command line that makes no sense, 3 what came back differs from what was
sent, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from typing import Any, List, Optional

from .. import arguments
from ..exceptions import ConnectionClosed, EchoError, EchoMismatch, IncompleteMessage, MessageTooLong
from ..framing import Framing
from ..text import escape, format_address
from ..version import __version__
from .client import Client, connect
from .pipe import Pipe
from .protocol import is_exit
from .terminal import Terminal

PROG = "echo.client"


def main(argv: Optional[List[str]] = None) -> int:
    """Run the client; return the exit code."""
    options = _parser().parse_args(argv)
    if not options.port:
        arguments.fail(PROG, "nothing listens on port 0; give the port that the server has told", 2)
    if options.host.isdigit():
        arguments.fail(PROG, f"{options.host!r} is no host; the host comes first, as in: {PROG} 127.0.0.1 65432", 2)
    framing = arguments.framing(options)
    messages = [_message(framing, text) for text in options.message]
    try:
        return _run(options, framing, messages)
    except KeyboardInterrupt:
        return 130
    except EchoMismatch as exc:
        arguments.fail(PROG, str(exc), 3)
    except EchoError as exc:
        arguments.fail(PROG, str(exc), 1)
    except OSError as exc:
        # Standard output cannot be written. Nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(exc, BrokenPipeError):
            return 1  # whoever read it has had enough
        arguments.fail(PROG, f"cannot write standard output: {exc.strerror}", 1)


def _run(options: argparse.Namespace, framing: Framing, messages: List[bytes]) -> int:
    if sys.stdout is None or (sys.stdin is None and not messages):
        arguments.fail(PROG, "standard input or output is closed; there is nothing to do", 1)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # whatever the terminal can show
    at_terminal = not messages and sys.stdin.isatty() and sys.stdout.isatty()
    with _connect(options, framing if messages or at_terminal else Pipe.wire(framing)) as client:
        if messages:
            return _exchange(client, messages)
        if at_terminal:
            where = format_address((options.host, options.port))
            print(f"connected to {where} ({framing.name} framing); exit or Ctrl-D leaves", file=sys.stderr)
            return Terminal(client.connection, options.timeout).run()
        Pipe(client.connection, framing, sys.stdin.fileno(), _write).run()
        return 0


def _connect(options: argparse.Namespace, framing: Framing) -> Client:
    where = format_address((options.host, options.port))
    try:
        return connect((options.host, options.port), framing=framing, timeout=options.timeout)
    except socket.gaierror as exc:
        arguments.fail(PROG, f"cannot find the host {options.host!r}: {exc.strerror}; check its name", 1)
    except UnicodeError:
        arguments.fail(PROG, f"{options.host!r} is no host name; check it", 1)
    except ConnectionRefusedError:
        command = "python3 -m echo.server" + ("" if options.port == arguments.DEFAULT_PORT else f" {options.port}")
        arguments.fail(PROG, f"nothing listens on {where}; start a server there: {command}", 1)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        arguments.fail(PROG, f"cannot connect to {where}: {reason}; check the address, the network, firewalls", 1)


def _message(framing: Framing, text: str) -> bytes:
    message = os.fsencode(text)
    try:
        framing.encode(message)
    except (ValueError, MessageTooLong) as exc:
        arguments.fail(PROG, f"-m: {exc}", 2)
    return message


def _exchange(client: Client, messages: List[bytes]) -> int:
    """Send each message, print each reply; a service that is no echo may answer what it likes, and have code 3."""
    mismatches: List[EchoMismatch] = []
    for index, message in enumerate(messages):
        try:
            _print(client.echo(message))
        except (ConnectionClosed, IncompleteMessage) as exc:
            due = len([each for each in messages if not is_exit(each)])
            left = len([each for each in messages[index:] if not is_exit(each)])
            if left:
                raise ConnectionClosed(f"{exc}; {left} of {due} replies are missing") from None
            break
        except EchoMismatch as exc:
            _print(exc.received)
            mismatches.append(exc)
    if mismatches:
        raise mismatches[0]
    return 0


def _print(message: bytes) -> None:
    _write(message + b"\n")


def _write(data: bytes) -> None:
    """To standard output: as it is, but escaped, line by line, if that is a terminal."""
    if sys.stdout.isatty():
        sys.stdout.write("\n".join(escape(line, exact=False) for line in data.split(b"\n")))
        sys.stdout.flush()
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _parser() -> argparse.ArgumentParser:
    parser = arguments.ArgumentParser(
        prog=PROG,
        description="Talk to an echo server: at the terminal line by line; with -m message by message; from a pipe all"
        " of standard input. What comes back goes to standard output, and is compared with what was sent.",
    )
    add: Any = parser.add_argument
    add("host", nargs="?", default=arguments.DEFAULT_HOST, help="(default: %(default)s)")
    add("port", nargs="?", type=arguments.port, default=arguments.DEFAULT_PORT, help="(default: %(default)s)")
    add(
        "-m",
        dest="message",
        metavar="TEXT",
        action="append",
        default=[],
        help="send this and print the reply; may be given again",
    )
    arguments.add_framing(parser)
    add(
        "-w",
        "--timeout",
        type=arguments.duration,
        metavar="TIME",
        default=10.0,
        help="how long to wait for the connection, and for a reply; 500ms, 30s, 5m, a bare number is seconds,"
        " 0 waits for ever (default: %(default)g s)",
    )
    add("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
