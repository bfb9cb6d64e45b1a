"""``python -m echo.client``: a session at the terminal, single messages, a pipe, a ping, or a load.

This module declares the options, connects the parts and returns the exit code. Results go to stdout, all else to
stderr. Exit codes: 0 all replies came back; 1 no connection, missing replies, or input after an ``exit``; 2 a usage
error; 3 a reply differs from what was sent; 4 a ``--fail-if`` condition holds; 130 interrupted (``--ping`` and
``--bench`` print their summary then, and return the code that it stands for). A new option is a row in ``GROUPS``.
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
from typing import Any, Callable, Iterator, List, Optional, Tuple

from ... import protocol
from ...client.client import Client
from ...client.endpoint import Endpoint, Security
from ...exceptions import EchoError, EchoMismatch, MessageTooLong
from ...framing import FRAMINGS, Framing, LineFraming
from ...measure.conditions import Condition
from ...measure.distribution import Distribution
from ...measure.probes import CLOSED_DEPTH, MIN_SIZE, OPEN_DEPTH
from ...measure.report import Report, milliseconds
from ...sockets import trouble_with_path
from ...starting import INTERRUPTED, Interruptible
from ...text import escape, format_address, plural
from ...transport.tls import TLSSocket
from ...transport.tls_messages import explain
from .. import arguments
from ..arguments import Group, Row
from ..color import COLOR, painter
from ..help import GENERAL, CommandParser, Manual, Notes
from . import hints
from .exchange import Exchange
from .letters import Letters
from .pipe import Pipe
from .results import COMPARED, Results, summary
from .terminal import Terminal

PROG = arguments.program("echo.client")

_STOPPING = (signal.SIGINT, signal.SIGTERM)

PATIENCE = 2.0
"""Seconds that a measurement has to end after a signal, before a further one is acted on."""


def main(argv: Optional[List[str]] = None) -> int:
    """Run the client; return the exit code."""
    try:
        with Interruptible(), arguments.standard_streams(PROG):
            if hasattr(signal, "pthread_sigmask"):  # a parent may have blocked them
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
            return _main(argv)
    except KeyboardInterrupt:
        _settle()
        return INTERRUPTED


def _settle() -> None:
    """The exit code is settled: a further signal would end the process while Python ends, and the code would be its."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)


def _main(argv: Optional[List[str]]) -> int:
    parser = _parser()
    options = parser.parse_complete(argv)
    try:
        host, port = arguments.joined(options.host, arguments.Address(port=options.port))
    except ValueError as exc:
        parser.error(str(exc))
    if port == 0:
        arguments.fail(PROG, "invalid port 0: give the port that the server logs", 2)
    if host is not None and host.isdigit():
        right = f"{arguments.invocation(PROG)} 127.0.0.1 {host}"
        arguments.fail(PROG, f"invalid host {host!r}: the host comes first, as in: {right}", 2)
    if options.merge and (host or port or options.unix is not None):
        arguments.fail(PROG, "--merge connects to no server; leave out the address", 2)
    if options.unix is not None and (host or port):
        arguments.fail(PROG, "--unix excludes host and port; give one of them", 2)
    options.host, options.port = host or protocol.DEFAULT_HOST, port or protocol.DEFAULT_PORT
    _check(options)
    try:
        return _run(options)
    except EchoError as exc:
        arguments.fail(PROG, str(exc), 1)
    except MemoryError:
        arguments.fail(PROG, "not enough memory; close other programs, or lower --max-message or --size", 1)
    except OSError as exc:
        arguments.fail(PROG, f"{exc.strerror or exc}; {_SHORTAGES.get(exc.errno or 0, 'try again')}", 1)


def _run(options: argparse.Namespace) -> int:
    framing = FRAMINGS[options.framing](options.max_message)
    framing.max_sent = framing.max_message if framing.keeps_boundaries else None
    options.endpoint = _endpoint(options)
    messages = [_message(framing, text) for text in options.text]
    measures = options.ping or options.bench or options.merge
    if None in ([sys.stdout] if messages or measures else [sys.stdin, sys.stdout]):
        arguments.fail(PROG, "standard input or output is closed; there is nothing to do", 1)
    report = Report(
        _print,
        as_json=options.json,
        quiet=options.quiet,
        verbose=options.verbose,
        timestamps=options.timestamps,
        stderr=sys.stderr,
        conditions=options.fail_if if measures else (),
        paint=painter(sys.stdout, options.color),
        stderr_paint=painter(sys.stderr, options.color),
    )
    if measures:
        with Results(PROG, options, report) as results:
            code, rtt = _merge(options, report) if options.merge else _measure(options, framing, report)
            if options.histogram:
                from ...measure.figures import histogram

                report.picture(histogram(rtt, sys.stdout.encoding))
            results.show()
        _settle()
        if report.failures:
            arguments.fail(PROG, f"failed: {'; '.join(report.failures)}", 4)
        return code
    at_terminal = not messages and sys.stdin.isatty() and sys.stdout.isatty()
    began = time.perf_counter_ns()
    with _connecting(options, report):
        client = Client(
            options.endpoint.open(options.timeout),
            framing if messages or at_terminal else Pipe.wire(framing),
            timeout=options.timeout,
        )
    with client, _explaining(client, options):
        where = str(options.endpoint)
        sock = client.connection.socket
        tls = [f"{sock.version()} {sock.cipher()[0]}", sock.subject] if isinstance(sock, TLSSocket) else []
        took = f"{milliseconds(time.perf_counter_ns() - began)} ms"
        report.detail(f"connected to {where} in {', '.join(filter(None, [took, *tls]))}")
        if messages:
            Exchange(client, messages, _show, report, not options.no_verify).run()
        elif at_terminal:
            if not options.quiet:
                print(f"connected to {where} ({framing.name} framing); Ctrl-D leaves", file=sys.stderr)
            terminal = Terminal(client.connection, options.timeout, painter(sys.stderr, options.color))
            code = terminal.run()
            if terminal.interrupted:
                with contextlib.suppress(KeyboardInterrupt):
                    client.__exit__(KeyboardInterrupt)  # as if it had been raised: do not wait for replies
            if code and not client.connection.bytes_in and not options.tls:  # TLS gives the reason
                print(hints.unanswered(options, "refuse this client", "have another --framing"), file=sys.stderr)
            return code
        else:
            with _replies() as write:
                pipe = Pipe(client.connection, framing, sys.stdin.fileno(), write)
                pipe.run()
            note = "; exit does not" if pipe.exit_sent else ""
            report.detail(f"{plural(pipe.returned, 'byte')} came back, as sent{note}")
        return 0


@contextlib.contextmanager
def _explaining(client: Client, options: argparse.Namespace) -> Iterator[None]:
    """End the program with one line, and what to do about it, if the exchange fails."""
    try:
        yield
    except EchoError as exc:
        code = 3 if isinstance(exc, EchoMismatch) else 1
        arguments.fail(PROG, hints.explained(exc, client.connection.bytes_in, options), code)


def _merge(options: argparse.Namespace, report: Report) -> Tuple[int, Distribution]:
    """Sum up the runs of several machines. Return the exit code and the round trips."""
    from ...measure.bench import PERCENTILES
    from ...measure.merging import merge

    try:
        load = merge(options.merge)
    except ValueError as exc:
        arguments.fail(PROG, f"cannot merge: {exc}", 2)
    load.report(report, options.percentiles or PERCENTILES)
    return 0, load.total.rtt


def _measure(options: argparse.Namespace, framing: Framing, report: Report) -> Tuple[int, Distribution]:
    """Ping, or put a load on the server. Return the exit code and the round trips."""
    more: Any = {"verify": not options.no_verify, "new_connection": options.new_connection}
    if options.percentiles is not None:
        more["percentiles"] = options.percentiles
    # Imported only here: with multiprocessing they take 20 of the 75 ms that a client needs to start.
    if options.ping:
        from ...measure.ping import Ping

        ping = Ping(
            options.endpoint,
            framing,
            report,
            size=options.size,
            count=options.count,
            interval=1.0 if options.interval is None else options.interval,
            timeout=options.timeout,
            **more,
        )
        _on_signals(ping.stop)
        with _connecting(options, report):
            ping.resolve()
        code = ping.run()
        hint = hints.unanswered_ping(options, ping.has_connected) if ping.is_unanswered else ""
        if hint and not (options.json or options.quiet):
            print(f"{PROG}: no reply came; {hint}", file=sys.stderr)
        return code, ping.rtt
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
        interval=options.interval,
        reconnect=options.reconnect,
        **more,
    )
    _on_signals(bench.stop)
    with contextlib.closing(bench):
        with _connecting(options, report):
            bench.connect()
        return bench.run(), bench.total.rtt


def _on_signals(stop: Callable[[], None]) -> None:
    """Call ``stop`` once for Ctrl-C and for SIGTERM, which timeout(1) sends, and may send twice.

    One that comes ``PATIENCE`` seconds later ends the process: the summary may wait for a reader without end, and so
    would all that an exception leads to. A signal that was ignored at the start stays ignored: SIGINT in a shell's
    background job.
    """
    first: Optional[float] = None

    def handler(signum: int, frame: Optional[FrameType]) -> None:
        # Not SIG_IGN: Python complains about a signal that has come and is not handled any more.
        nonlocal first
        if first is None:
            first = time.monotonic()
            stop()
        elif time.monotonic() - first >= PATIENCE:
            os._exit(INTERRUPTED)

    for number in _STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _check(options: argparse.Namespace) -> None:
    """Reject options that make a measurement impossible."""
    if options.bench and not options.duration:
        arguments.fail(PROG, "invalid --duration 0: --bench needs a second or more", 2)
    if options.bench and options.interval is not None and options.interval < _SHORTEST_INTERVAL:
        arguments.fail(PROG, f"--interval is too short: with --bench the minimum is {_SHORTEST_INTERVAL * 1000:g}ms", 2)
    if options.new_connection and options.depth is not None:
        arguments.fail(PROG, "--new-connection excludes --depth; give --connections, the number at a time", 2)
    for condition in options.fail_if or ():
        mode = "bench" if options.merge else "ping" if options.ping else "bench"
        if condition.mode not in (None, mode):
            arguments.fail(PROG, f"--fail-if {condition.text!r}: only --{condition.mode} has {condition.name}", 2)
    if (options.ping or options.bench) and options.framing != "raw" and options.size > options.max_message:
        arguments.fail(
            PROG, f"--size {options.size} is over --max-message {options.max_message}; raise that on both sides", 2
        )


def _condition(text: str) -> Condition:
    try:
        return Condition.parse(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _percentiles(text: str) -> List[float]:
    """Percentiles, separated by commas, in order."""
    try:
        percents = sorted({float(part) for part in text.split(",")})
    except ValueError:
        percents = []
    if not percents or not all(0 <= percent < 100 for percent in percents):
        raise argparse.ArgumentTypeError(f"invalid percentiles {text!r}: expected 50,95,99.99, for example")
    return percents


def _server_name(text: str) -> str:
    try:
        valid = text.encode("idna")[:1] not in (b"", b".")  # other characters, too, stand for a dot
    except UnicodeError:
        valid = False
    if not valid:
        raise argparse.ArgumentTypeError(f"invalid name {text!r}: expected one like echo.example.com")
    return text


def _probe_size(text: str) -> int:
    size = arguments.size(text)
    if size < MIN_SIZE:
        raise argparse.ArgumentTypeError(
            f"invalid size {text!r}: the minimum is {MIN_SIZE} bytes, for a number and a checksum"
        )
    return size


def _endpoint(options: argparse.Namespace) -> Endpoint:
    address: Any = (options.host, options.port)
    if options.unix is not None:
        address = arguments.unix_address(options.unix)
    way: Any = {"family": _family(options), "source": options.source}
    if options.send_proxy is not None:
        way["proxy"] = int(options.send_proxy[1:])
    if not options.tls:
        return Endpoint(address, **way)
    security = Security(
        options.sni or options.host, options.cacert, options.cert, options.key, verify=not options.insecure
    )
    if options.insecure and options.cacert:
        arguments.fail(PROG, "--insecure and --cacert exclude each other; give one of them", 2)
    if options.unix is not None and not (options.sni or options.insecure):
        arguments.fail(PROG, "--tls over --unix needs --sni, the name that the server's certificate must have", 2)
    try:
        security = security.read()
        security.context()
    except ValueError as exc:
        lack = _SHORTAGES.get(exc.__cause__.errno or 0) if isinstance(exc.__cause__, OSError) else None
        arguments.fail(PROG, f"{exc}; {lack}" if lack else str(exc), 1 if lack else 2)
    return Endpoint(address, security, **way)


def _family(options: argparse.Namespace) -> int:
    """The address family that was asked for; 0 for any."""
    families = [socket.AF_INET] * options.ipv4 + [socket.AF_INET6] * options.ipv6
    if options.source is not None:
        families.append(socket.AddressFamily(arguments.address_family(options.source)))
    if len(set(families)) > 1:
        arguments.fail(PROG, "-4, -6 and --source name different address families; give one of them", 2)
    if families and options.unix is not None:
        arguments.fail(PROG, "--unix excludes -4, -6 and --source: a Unix socket has no IP address", 2)
    return int(families[0]) if families else 0


_CERTIFICATE_ADVICE = {  # by OpenSSL's X509_V_ERR_...
    **dict.fromkeys((2, 7, 18, 19, 20, 21, 24, 79), "give the CA that issued it as --cacert"),
    **dict.fromkeys((3, 11, 12), "give a current revocation list (CRL) of its issuer in --cacert"),
    **dict.fromkeys((10, 23, 66), "the server's owner has to renew it"),
    **dict.fromkeys((62, 64), "give the name in it as --sni"),
    9: "check this machine's clock",
}


_SHORTAGES = {  # what this machine may lack
    errno.EMFILE: "raise the limit (ulimit -n), or ask for fewer connections",
    errno.ENFILE: "close other programs: this is the limit of the whole system",
    errno.EAGAIN: "raise the limits of threads and memory (ulimit -u, ulimit -v), or ask for fewer connections",
    errno.ENOMEM: "close other programs, or ask for fewer connections",
    errno.ENOBUFS: "close other programs, or ask for fewer connections",
    errno.ENOSPC: "free some space on the disk",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), which holds for files in memory, too",
}
_ADVICE = {  # by words of our own errors
    "local ports": "wait a minute, ask for fewer connections, or widen net.ipv4.ip_local_port_range",
    "look-up": "check its name, and the name servers",
    "source address": "give an address of this machine as --source",
    "load has ended": "the lines above may say why",
    "load has died": "something on this machine has killed it, perhaps for want of memory",
    "current folder": "change to another one",
}


def _advice(exc: OSError, options: argparse.Namespace) -> str:
    text = exc.strerror or str(exc)
    for words, advice in _ADVICE.items():
        if words in text:
            return advice
    if exc.errno in _SHORTAGES:
        return _SHORTAGES[exc.errno]
    if "handshake" in text:
        return hints.no_handshake(options)
    if options.unix is not None:
        if isinstance(exc, TimeoutError):  # only a full backlog makes it wait
            return "the server accepts no clients; it may be full or stopped"
        return trouble_with_path(arguments.unix_address(options.unix)) or "check the path, and who may use it"
    if exc.errno == errno.EINVAL and ":" in options.host and "%" not in options.host:
        return f"a link-local address needs its interface, like {options.host}%eth0"
    return "check the address, the network, firewalls"


def _as_for_server(host: str) -> str:
    """The host as the server takes it: all four numbers, and no leading zeros, of 127.1."""
    with contextlib.suppress(OSError, UnicodeError):
        return socket.inet_ntoa(socket.inet_aton(host.encode("idna").decode()))
    return host


@contextlib.contextmanager
def _connecting(options: argparse.Namespace, report: Report) -> Iterator[None]:
    """If no connection can be made, end the program with one line; in JSON that line is in the summary."""
    where = str(options.endpoint)
    why: Optional[str] = None
    try:
        yield
    except socket.gaierror as exc:
        advice = "check its name" if not options.endpoint.family else "check its name, and that it has such an address"
        if exc.errno == socket.EAI_AGAIN:  # no name server has answered
            advice = _ADVICE["look-up"]
        why = f"cannot find the host {options.host!r}: {exc.strerror}; {advice}"
    except UnicodeError:
        why = f"invalid host name {options.host!r}: check it"
    except ssl.SSLCertVerificationError as exc:
        advice = _CERTIFICATE_ADVICE.get(exc.verify_code, "check the server's certificate")
        why = f"TLS with {where} failed: {explain(exc)}; {advice}"
    except ssl.SSLError as exc:
        why = f"TLS with {where} failed: {explain(exc)}; check that the server uses TLS, and what it requires"
    except (ConnectionRefusedError, FileNotFoundError) as exc:
        command = arguments.invocation(f"{PROG[: -len('client')]}server")
        host = None if options.unix is not None else _as_for_server(options.host)
        if options.unix is not None:
            command += f" --unix {shlex.quote(options.unix)}"
        elif host != protocol.DEFAULT_HOST:  # where a server with the port alone would listen
            command += f" {shlex.quote(format_address((host, options.port)))}"
        elif options.port != protocol.DEFAULT_PORT:
            command += f" {options.port}"
        why = f"nothing listens on {where}; start a server there: {command}"
        if options.unix is not None:
            trouble = trouble_with_path(arguments.unix_address(options.unix))
            why = f"cannot connect to {where}: {trouble}" if trouble else why
        elif isinstance(exc, FileNotFoundError):  # not from a connection: the processes of --bench need some files
            why = f"cannot start: {trouble_with_path('') or exc}"
    except OSError as exc:
        why = f"cannot connect to {where}: {exc.strerror or exc}; {_advice(exc, options)}"
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
    sys.stdout.write(f"{line}\n")  # print() would write a long line and its line feed in two calls
    sys.stdout.flush()


@contextlib.contextmanager
def _replies() -> Iterator[Callable[[bytes], None]]:
    """Return a function that writes the pieces of a stream to standard output. A terminal gets whole letters."""
    if not sys.stdout.isatty():
        yield _write
        return
    letters = Letters()
    try:
        yield lambda data: _write(letters.feed(data))
    finally:
        _write(letters.finish())


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
_SUMMARIES = (*_MEASURING, "merge")
_SHORTEST_INTERVAL = 0.1  # seconds

GROUPS = [
    Group(
        "server",
        "",
        Row("host", "host name or address, or HOST:PORT", arguments.host, shown=protocol.DEFAULT_HOST),
        Row("port", "TCP port", arguments.port, shown=str(protocol.DEFAULT_PORT)),
        Row("--unix PATH", "connect to a Unix socket instead; @NAME for an abstract one", arguments.unix),
        Row("-4, --ipv4", "use only the IPv4 addresses of the host"),
        Row("-6, --ipv6", "use only the IPv6 addresses of the host"),
        Row("--source ADDRESS", "connect from this IP address of this machine", arguments.own_address, shown="any"),
        Row(
            "--send-proxy v1|v2",
            "begin each connection with a PROXY header of this version, as a load balancer does",
            more="it names the two ends of the connection; with TLS it comes before the handshake",
        ),
        Row(
            "-w, --timeout TIME",
            "maximum time to connect, and to wait for a reply, like 500ms, 30s or 5m; a bare number is seconds; 0: no"
            " limit",
            arguments.duration,
            10.0,
        ),
    ),
    Group(
        "what to do",
        "By default: send line by line what is typed at a terminal, or all of standard input if that is a pipe.",
        Row("-m TEXT", "send this message and print its reply", many=True, mode=True),
        Row("--ping", "send one message a second, and time and check each reply; Ctrl-C ends it", mode=True),
        Row("--bench", "put a load on the server, and print throughput and round-trip times", mode=True),
        Row(
            "--merge FILE...",
            "sum up the runs of --bench on several machines, from what --json printed there",
            summary,
            mode=True,
        ),
    ),
    Group(
        "messages",
        "",
        *arguments.framing_rows(LineFraming()),
        Row(
            "--no-verify",
            "with -m, --ping or --bench: do not compare replies, for services that are not echoes",
            more="replies are timed and counted",
            needs=("text", *_MEASURING),
        ),
    ),
    Group(
        "output",
        "",
        Row(
            "-J, --json",
            "with -m, --ping, --bench or --merge: print one JSON object a line",
            more="the last one is the summary",
            needs=("text", *_SUMMARIES),
        ),
        Row("-q, --quiet", "print only the summary", more="a pipe still writes the replies"),
        Row(
            "-v, --verbose",
            "print details on standard error",
            more="the time to connect, the TLS version and each reply of -m; with --ping and --bench, wrong replies",
        ),
        COLOR,
    ),
    Group(
        "TLS",
        "The server's certificate is verified. Files are in PEM format.",
        Row("--tls", "use TLS"),
        Row(
            "--cacert FILE",
            "CA certificates to verify the server's certificate with",
            arguments.file,
            shown="the system's",
            needs=("tls",),
        ),
        Row("--cert FILE", "client certificate, for a server that requires one", arguments.file, needs=("tls",)),
        Row(
            "--key FILE",
            "private key of the client certificate",
            arguments.file,
            shown="in the same file",
            needs=("cert",),
        ),
        Row(
            "--sni NAME",
            "name that the server's certificate must have",
            _server_name,
            shown="the host",
            needs=("tls",),
        ),
        Row("--insecure", "do not verify the server's certificate", needs=("tls",)),
    ),
    Group(
        "--ping and --bench",
        "TIME is a duration, like 500ms, 30s, 5m or 1h; a bare number is seconds.",
        Row(
            "-s, --size BYTES",
            f"length of a message, in bytes, like 64 or 16k; minimum: {MIN_SIZE}",
            _probe_size,
            64,
            needs=_MEASURING,
        ),
        Row("--histogram", "show the distribution of the round-trip times", needs=_SUMMARIES),
        Row(
            "--percentiles LIST",
            "percentiles of the round-trip times to show, like 50,95,99.99",
            _percentiles,
            shown="50,90,99,99.9; with --bench 75, too",
            needs=_SUMMARIES,
        ),
        Row(
            "--fail-if CONDITION",
            "exit with code 4 if this holds for the figures of the summary; for example 'p99 > 5ms', 'loss > 0.1%' or"
            " 'rate < 10000/s'",
            _condition,
            many=True,
            needs=_SUMMARIES,
            more="min, avg, max, mdev, lost, corrupted and never_sent are figures, too; with a condition on loss or"
            " lost, losses that it permits do not change the exit code; a percentile with too few samples fails",
        ),
        Row(
            "--new-connection",
            "open a connection for each message, to test load balancers",
            more="its time is a part of the round trip, and shown apart; --connections is how many there are at a time",
            needs=_MEASURING,
        ),
        Row("--report FILE", "write a page with charts and tables of the run (HTML)", needs=_SUMMARIES),
        Row(
            "--compare FILE...",
            f"compare with earlier runs, from what --json printed, and show them in the page; maximum: {COMPARED}",
            summary,
            needs=_SUMMARIES,
        ),
        Row("--hdr FILE", "write the percentiles of the round trips in HdrHistogram's format", needs=_SUMMARIES),
        Row("-D, --timestamps", "print the time in front of each line, in seconds since 1970", needs=_MEASURING),
        Row("-c, --count N", "--ping: number of messages", arguments.count, shown="no limit", needs=("ping",)),
        Row(
            "-i, --interval TIME",
            "--ping: time from one message to the next; 0: send it when the reply is back; --bench: print the figures"
            f" of each interval; minimum: {_SHORTEST_INTERVAL * 1000:g}ms",
            arguments.seconds,
            shown="1 s; --bench: none",
            needs=_MEASURING,
        ),
        Row("-P, --connections N", "--bench: number of connections", arguments.count, 10, needs=("bench",)),
        Row(
            "-d, --duration TIME",
            "--bench: time to measure, after a warm-up of a tenth of it, maximum 1 s",
            arguments.duration,
            10.0,
            needs=("bench",),
        ),
        Row(
            "--depth N",
            "--bench: number of messages in flight in each connection",
            arguments.count,
            shown=f"{CLOSED_DEPTH}; {OPEN_DEPTH} with --rate",
            needs=("bench",),
        ),
        Row(
            "--rate N",
            "--bench: messages a second, over all connections, however long replies take",
            arguments.count,
            shown="as many as come back",
            needs=("bench",),
        ),
        Row("--reconnect", "--bench: open connections that are lost again, as --ping does", needs=("bench",)),
    ),
    GENERAL,
]
"""Every option of the command, as --help shows them."""

MANUAL = Manual(
    script="echo-client",
    summary="Send messages to an echo server, check what comes back, and measure.",
    examples=[
        ("", f"talk to {protocol.DEFAULT_HOST}:{protocol.DEFAULT_PORT}"),
        ("-m hello", "send one message"),
        ("192.0.2.7:7000 --ping", "time one message a second"),
    ],
    description=[
        "Replies go to standard output, and are compared with what was sent; everything else goes to standard error."
        " A message is a line, unless --framing says otherwise: the server must use the same framing.",
        "At a terminal, Ctrl-D ends the session, and the arrow keys bring back what was typed. --ping and"
        " --bench work with every service that sends back what it gets; --no-verify is for other services.",
    ],
    groups=GROUPS,
    notes=[
        Notes(
            "environment",
            [("ECHO_HISTFILE", "file of the typed lines; /dev/null: none (default: ~/.local/state/echo/history)")],
        ),
        Notes(
            "exit codes",
            [
                ("0", "every reply came back, or the user left the session"),
                ("1", "no connection, missing replies that --fail-if does not permit, or output cannot be written"),
                ("2", "usage error"),
                ("3", "a reply differs from what was sent"),
                ("4", "a --fail-if condition holds"),
                ("130", "interrupted; --ping and --bench print their summary and exit with its code instead"),
            ],
        ),
    ],
)


def _parser() -> CommandParser:
    parser = CommandParser(PROG, MANUAL)
    where = f"give host and port alone, as in {arguments.invocation(PROG)} 127.0.0.1 7000"
    parser.mistaken = {**dict.fromkeys(("-p", "--port", "--host"), where), "--message": "write -m TEXT"}
    return parser


if __name__ == "__main__":
    sys.exit(main())
