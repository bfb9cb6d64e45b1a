"""``python -m echo.client``: a session at the terminal, single messages, a pipe, a ping, or a load.

It parses, wires and gives the exit code. Results go to stdout, everything else to stderr. Exit codes: 0 all came
back, 1 no connection, replies missing or input behind an ``exit``, 2 a command line that makes no sense, 3 what came
back differs from what was sent, 130 interrupted (``--ping`` and ``--bench`` then tell what they know, and how it was).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shlex
import signal
import socket
import ssl
import sys
import time
from types import FrameType
from typing import Any, Callable, Iterator, List, Optional

from ... import protocol
from ...client.client import Client
from ...client.endpoint import Endpoint, Security
from ...exceptions import EchoError, EchoMismatch, MessageTooLong, ReceiveTimeout
from ...framing import FRAMINGS, Framing, LineFraming, RawFraming
from ...measure.probes import CLOSED_DEPTH, MIN_SIZE, OPEN_DEPTH, FixedFraming
from ...measure.report import Report, milliseconds
from ...text import escape, plural
from ...transport.tls import TLSSocket
from ...transport.tls_messages import explain
from ...version import __version__
from .. import arguments
from ..arguments import Group, Row
from .exchange import Exchange
from .pipe import Pipe
from .terminal import Terminal

PROG = arguments.program("echo.client")


def main(argv: Optional[List[str]] = None) -> int:
    """Run the client; return the exit code."""
    options = _parser().parse_complete(argv)
    if not options.port:
        arguments.fail(PROG, "nothing listens on port 0; give the port that the server has told", 2)
    if options.host.isdigit():
        arguments.fail(PROG, f"{options.host!r} is no host; the host comes first, as in: {PROG} 127.0.0.1 65432", 2)
    _check(options)
    framing = FRAMINGS[options.framing](options.max_message)
    options.endpoint = _endpoint(options)
    messages = [_message(framing, text) for text in options.text]
    try:
        return _run(options, framing, messages)
    except KeyboardInterrupt:
        return 130
    except EchoMismatch as exc:
        arguments.fail(PROG, str(exc), 3)
    except ReceiveTimeout as exc:
        arguments.fail(PROG, f"{exc}; the server may be full, or have another --framing", 1)
    except EchoError as exc:
        arguments.fail(PROG, str(exc), 1)
    except OSError as exc:
        # Standard output cannot be written. Nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(exc, BrokenPipeError):
            return 1  # whoever read it has had enough
        arguments.fail(PROG, f"cannot write standard output: {exc.strerror}", 1)


def _run(options: argparse.Namespace, framing: Framing, messages: List[bytes]) -> int:
    if None in ([sys.stdout] if messages or options.ping or options.bench else [sys.stdin, sys.stdout]):
        arguments.fail(PROG, "standard input or output is closed; there is nothing to do", 1)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # whatever the terminal can show
    report = Report(_print, as_json=options.json, quiet=options.quiet, verbose=options.verbose, stderr=sys.stderr)
    if options.ping or options.bench:
        return _measure(options, framing, report)
    at_terminal = not messages and sys.stdin.isatty() and sys.stdout.isatty()
    began = time.perf_counter_ns()
    with _connecting(options, report):
        client = Client(
            options.endpoint.open(options.timeout),
            framing if messages or at_terminal else Pipe.wire(framing),
            timeout=options.timeout,
        )
    where = str(options.endpoint)
    sock = client.connection.socket
    tls = [f"{sock.version()} {sock.cipher()[0]}", sock.subject] if isinstance(sock, TLSSocket) else []
    took = f"{milliseconds(time.perf_counter_ns() - began)} ms"
    report.detail(f"connected to {where} in {', '.join(filter(None, [took, *tls]))}")
    with client:
        if messages:
            Exchange(client, messages, _show, report).run()
        elif at_terminal:
            if not options.quiet:
                print(f"connected to {where} ({framing.name} framing); exit or Ctrl-D leaves", file=sys.stderr)
            return Terminal(client.connection, options.timeout).run()
        else:
            Pipe(client.connection, framing, sys.stdin.fileno(), _write).run()
            report.detail(f"{plural(client.connection.bytes_in, 'byte')} came back, as sent")
        return 0


def _measure(options: argparse.Namespace, framing: Framing, report: Report) -> int:
    if isinstance(framing, RawFraming):
        framing = FixedFraming(options.size)
    # Imported only here: with multiprocessing they take 20 of the 75 ms that a client needs to start.
    if options.ping:
        from ...measure.ping import Ping

        ping = Ping(
            options.endpoint,
            framing,
            report,
            size=options.size,
            count=options.count,
            interval=options.interval,
            timeout=options.timeout,
        )
        _on_signals(ping.stop)
        with _connecting(options, report):
            ping.resolve()
        code = ping.run()
        rtt = ping.rtt
    else:
        from ...measure.bench import Bench

        bench = Bench(
            options.endpoint,
            framing,
            report,
            connections=options.connections,
            duration=options.duration,
            size=options.size,
            depth=options.depth,
            rate=options.rate,
            timeout=options.timeout,
        )
        _on_signals(bench.stop)
        with contextlib.closing(bench):
            with _connecting(options, report):
                bench.connect()
            code = bench.run()
        rtt = bench.total.rtt
    if options.histogram:
        from ...measure.figures import histogram

        report.picture(histogram(rtt, sys.stdout.encoding))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])  # the exit code is settled
    return code


def _on_signals(stop: Callable[[], None]) -> None:
    """Call ``stop`` once for Ctrl-C and for SIGTERM, which timeout(1) sends, and may send twice."""
    stopped = False

    def handler(signum: int, frame: Optional[FrameType]) -> None:
        # Not SIG_IGN: Python complains about a signal that has come and is not handled any more.
        nonlocal stopped
        if not stopped:
            stopped = True
            stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _check(options: argparse.Namespace) -> None:
    """Refuse a measurement that cannot be made."""
    if options.bench and not options.duration:
        arguments.fail(PROG, "--bench with a duration of 0 measures nothing; give it a second or more", 2)
    if (options.ping or options.bench) and options.framing != "raw" and options.size > options.max_message:
        arguments.fail(
            PROG, f"--size {options.size} is over --max-message {options.max_message}; raise that on both sides", 2
        )


def _probe_size(text: str) -> int:
    size = arguments.size(text)
    if size < MIN_SIZE:
        raise argparse.ArgumentTypeError(
            f"{text!r} is too small: a message carries its number and a checksum, {MIN_SIZE} bytes"
        )
    return size


def _endpoint(options: argparse.Namespace) -> Endpoint:
    address: Any = (options.host, options.port)
    if options.unix is not None:
        if address != (protocol.DEFAULT_HOST, protocol.DEFAULT_PORT):
            arguments.fail(PROG, "--unix is in place of host and port; give one of them", 2)
        address = arguments.unix_address(options.unix)
    if not options.tls:
        return Endpoint(address)
    security = Security(
        options.sni or options.host, options.cacert, options.cert, options.key, verify=not options.insecure
    )
    if options.insecure and options.cacert:
        arguments.fail(PROG, "--insecure verifies nothing, and --cacert is to verify by; give one of them", 2)
    if options.unix is not None and not (options.sni or options.insecure):
        arguments.fail(PROG, "--tls over --unix needs --sni, the name that the server's certificate must have", 2)
    if options.key and not options.cert:
        arguments.fail(PROG, "--key is the key of a --cert; give that, too", 2)
    try:
        security.context()
    except ValueError as exc:
        arguments.fail(PROG, str(exc), 2)
    return Endpoint(address, security)


_UNKNOWN_CA = "give the CA that issued it as --cacert"
_CERTIFICATE_ADVICE = {  # by OpenSSL's X509_V_ERR_...
    9: "it is not valid yet; check this machine's clock",
    10: "whoever runs the server has to renew it",
    62: "give the name that stands in it as --sni",
    64: "give the name that stands in it as --sni",
}


@contextlib.contextmanager
def _connecting(options: argparse.Namespace, report: Report) -> Iterator[None]:
    """What keeps a connection from being made ends the program, in one line, and is the summary in JSON."""
    where = str(options.endpoint)
    why: Optional[str] = None
    try:
        yield
    except socket.gaierror as exc:
        why = f"cannot find the host {options.host!r}: {exc.strerror}; check its name"
    except UnicodeError:
        why = f"{options.host!r} is no host name; check it"
    except ssl.SSLCertVerificationError as exc:
        why = f"no TLS with {where}: {explain(exc)}; {_CERTIFICATE_ADVICE.get(exc.verify_code, _UNKNOWN_CA)}"
    except ssl.SSLError as exc:
        why = f"no TLS with {where}: {explain(exc)}; check that the server speaks it, and what it asks for"
    except (ConnectionRefusedError, FileNotFoundError):
        command = "echo-server" if PROG == "echo-client" else "python3 -m echo.server"
        if options.unix is not None:
            command += f" --unix {shlex.quote(options.unix)}"
        elif options.port != protocol.DEFAULT_PORT:
            command += f" {options.port}"
        why = f"nothing listens on {where}; start a server there: {command}"
    except OSError as exc:
        advice = "check the address, the network, firewalls"
        if exc.errno == errno.EMFILE:
            advice = "raise the limit (ulimit -n), or ask for fewer connections"
        elif exc.errno is None and "handshake" in str(exc):
            advice = "it may speak no TLS; try without --tls"
        elif options.unix is not None:
            advice = "check the path, and who may use it"
        elif exc.errno == errno.EINVAL and ":" in options.host and "%" not in options.host:
            advice = f"a link-local address needs its interface, like {options.host}%eth0"
        why = f"cannot connect to {where}: {exc.strerror or exc}; {advice}"
    if why is not None:
        report.summarize("", error=why)
        arguments.fail(PROG, why, 1)


def _message(framing: Framing, text: str) -> bytes:
    message = os.fsencode(text)
    try:
        framing.encode(message)
    except (ValueError, MessageTooLong) as exc:
        arguments.fail(PROG, f"-m: {exc}", 2)
    return message


def _print(line: str) -> None:
    print(line, flush=True)


def _show(message: bytes) -> None:
    _write(message + b"\n")


def _write(data: bytes) -> None:
    """To standard output: as it is, but escaped, line by line, if that is a terminal."""
    if sys.stdout.isatty():
        sys.stdout.write("\n".join(escape(line, exact=False) for line in data.split(b"\n")))
        sys.stdout.flush()
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


_MEASURING = ("ping", "bench")

GROUPS = [
    Group(
        "",
        "",
        Row("host", default=protocol.DEFAULT_HOST),
        Row("port", "", arguments.port, protocol.DEFAULT_PORT),
        Row("-m TEXT", "send this and print the reply; may be given again", many=True, mode=True),
        Row("--ping", "send one message a second, and time and check what comes back; Ctrl-C ends it", mode=True),
        Row(
            "--bench",
            "send as much as comes back, or --rate, and tell how much that was and how long it took",
            mode=True,
        ),
        *arguments.framing_rows(LineFraming()),
        Row("--unix PATH", "connect to a Unix socket; @NAME is an abstract one", arguments.unix),
        Row(
            "-w, --timeout TIME",
            "how long to wait for the connection, and for a reply; 500ms, 30s, 5m, a bare number is seconds,"
            " 0 waits for ever",
            arguments.duration,
            10.0,
        ),
        Row("-J, --json", "with -m, --ping, --bench: one JSON object a line", needs=("text", *_MEASURING)),
        Row("-q, --quiet", "tell only how it went, at the end"),
        Row("-v, --verbose", "tell details, on stderr"),
    ),
    Group(
        "TLS",
        "the server's certificate is verified, by the system's CAs",
        Row("--tls", "speak TLS"),
        Row("--cacert FILE", "the CAs to verify by instead (PEM)", needs=("tls",)),
        Row("--cert FILE", "our own certificate, for a server that asks for one (PEM)", needs=("tls",)),
        Row("--key FILE", "its key", shown="in the same file", needs=("tls",)),
        Row("--sni NAME", "the name that the server's certificate must have", shown="the host", needs=("tls",)),
        Row("--insecure", "do not verify: whoever answers is believed", needs=("tls",)),
    ),
    Group(
        "--ping and --bench",
        "",
        Row("-s, --size BYTES", f"the length of a message, {MIN_SIZE} at least", _probe_size, 64, needs=_MEASURING),
        Row("--histogram", "show how the round trips are distributed", needs=_MEASURING),
        Row("-c, --count N", "--ping: end after so many", arguments.count, shown="never", needs=("ping",)),
        Row(
            "-i, --interval TIME",
            "--ping: from one message to the next; 0 sends each when the one before is back",
            arguments.seconds,
            1.0,
            needs=("ping",),
        ),
        Row("-P, --connections N", "--bench: connections at a time", arguments.count, 10, needs=("bench",)),
        Row(
            "-d, --duration TIME",
            "--bench: how long, after a warm-up of a tenth of that, 1 s at most",
            arguments.duration,
            10.0,
            needs=("bench",),
        ),
        Row(
            "--depth N",
            "--bench: messages on their way at a time in a connection",
            arguments.count,
            shown=f"{CLOSED_DEPTH}, {OPEN_DEPTH} with --rate",
            needs=("bench",),
        ),
        Row(
            "--rate N",
            "--bench: messages a second, over all connections, however long replies take",
            arguments.count,
            shown="as many as come back",
            needs=("bench",),
        ),
    ),
]
"""Every option of the command, as --help shows them."""


def _parser() -> arguments.ArgumentParser:
    commands = arguments.ArgumentParser(
        prog=PROG,
        description="Talk to an echo server: at the terminal line by line; with -m message by message; from a pipe all"
        " of standard input. What comes back goes to standard output, and is compared with what was sent. --ping and"
        " --bench measure.",
        groups=GROUPS,
    )
    commands.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return commands


if __name__ == "__main__":
    sys.exit(main())
