"""``python -m echo.server``: an echo server with everything the library offers, on the command line.

It parses, wires and returns the exit code; every policy lives in the library. Exit codes: 0 if all sessions ended
before the deadline, 1 if anything had to be cut or the address is not available, 2 for a usage error.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import errno
import functools
import logging
import os
import queue
import random
import signal
import ssl
import sys
import time
from typing import Any, Callable, ContextManager, Deque, Dict, Iterator, List, Mapping, NoReturn, Optional, Tuple

from ... import protocol
from ...beginning import Thread
from ...files import RepeatedFiles
from ...framing import FRAMINGS
from ...handlers import EchoRequestHandler, MessageRequestHandler
from ...mixins import LoggingMixin
from ...running import Stopped, log_listening, looked_up, serve, why_not_listening
from ...server.reporting import log_always, log_event
from ...server.server import Server
from ...text import escape
from ...transport import affinity
from ...transport.certificates import server_context
from ...version import __version__
from .. import arguments
from . import systemd
from .command_log import Log
from .failures import log_failure, shortage
from .loading import combine, load_handler, load_mixin
from .networks import NetworkLists
from .options import PROG, ROWS, ServerRow, handler_attributes, parser, settings
from .process import Process, stopped_by, watch_terminal
from .queue_logging import QueueLoggingMixin, names_kept
from .workers import RETRY, Workers

MANY_SESSIONS = 1024
LOOKS_PER_SECOND = 20_000
"""How often all waiting threads together look for the interpreter. Each does so every 5 ms otherwise, and thousands
of them take all processors with it: three servers that ended 10,000 sessions each, at the same time on two busy
processors, took 8 to 52 s, and two of them once more than 300 s; with this figure, three take 6 to 14 s."""


def run() -> NoReturn:
    """The whole process of the command, to its exit."""
    try:
        process = Process().__enter__()
    except OSError as exc:  # the null device is missing, as in a bare chroot, or no descriptor is free
        arguments.fail(PROG, f"cannot open {exc.filename}: {exc.strerror}", 1)
    code = 0
    try:
        process.may_interrupt()
        try:
            options = _options(None)
            code = _run(options, process, Log(options).__enter__())
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        except Exception as exc:
            log_failure(exc)
            code = 1
        process.exit(code)
    except Stopped:  # once at most, and wherever the main thread was
        process.exit(code, nothing_to_cut=True)


def main(argv: Optional[List[str]] = None) -> int:
    """Run the server until SIGINT or SIGTERM; return the exit code."""
    with Process() as process:
        try:
            process.may_interrupt()
            options = _options(argv)
            with Log(options) as log:
                return _run(options, process, log)
        except Stopped:
            return 0


def _run(options: argparse.Namespace, process: Process, log: Log) -> int:
    """``log`` has begun before a handler's module is imported: that may close descriptors, or print."""
    process.timeout = options.shutdown_timeout
    process.close_log = log.close
    files = Files(options)
    try:
        server = _server(options, files, process)
    except ValueError as exc:
        lack = shortage(exc.__cause__)
        if lack is not None:  # a service manager may start it again
            arguments.fail(PROG, f"{exc}; {lack[1]}", 1)
        arguments.fail(PROG, f"{_by_options(str(exc))}; see --help", 2)
    except OSError as exc:
        arguments.fail(PROG, why_not_listening(exc, files.address()), 1)
    logging.getLogger().setLevel("WARNING" if options.quiet else options.log_level.upper())
    _calm_waiting_threads(server.max_connections)
    with _failure_logged(), server:  # however it ends, a Unix socket's path must not stay
        if options.workers == 1:
            return _run_alone(server, process, log, files)
        return _run_workers(server, options.workers, process, log, files)


def _options(argv: Optional[List[str]]) -> argparse.Namespace:
    with arguments.standard_streams(PROG):
        return _parsed(argv)


def _parsed(argv: Optional[List[str]]) -> argparse.Namespace:
    commands = parser()
    said = commands.parse_args(argv)  # first: --help works with an invalid environment
    here = bool(said.bind or said.port)
    if said.unix is not None and here:
        arguments.fail(PROG, "--unix excludes the port and --bind; give one of them", 2)
    commands.read_environment(os.environ)
    options = commands.parse_complete(argv)
    around = commands.parse_args([])
    try:
        given, default = arguments.joined(said.bind, said.port), arguments.joined(around.bind, around.port)
    except ValueError as exc:
        commands.error(str(exc))
    options.bind = given.host or default.host or protocol.DEFAULT_HOST
    ports = (given.port, default.port, protocol.DEFAULT_PORT)
    options.port = next(port for port in ports if port is not None)
    if here:
        options.unix, options.unix_mode = None, said.unix_mode  # not the environment's
    return options


def _calm_waiting_threads(sessions: Optional[int]) -> None:
    """Let the threads of so many sessions look for the interpreter less often; None: of ten thousand. Few threads go
    on doing it every 5 ms, since one that computes makes the others wait until then."""
    sessions = min(sessions or 10_000, 10_000)
    if sessions > MANY_SESSIONS:
        sys.setswitchinterval(max(sys.getswitchinterval(), sessions / LOOKS_PER_SECOND))


def _by_options(text: str) -> str:
    """The library says ``cpu_affinity is ...``; here that is ``--cpu-affinity``."""
    name, _, rest = text.partition(" ")
    flags = [row.flags[-1] for row in ROWS if isinstance(row, ServerRow) and row.option == name]
    return f"{flags[0]} {rest}" if flags else text


def _run_alone(server: Server, process: Process, log: Log, files: Files) -> int:
    log.to(log.queue())
    reload = functools.partial(_reload_or_retry, server, files)
    return _serve(server, process, lambda: _announce(server), reload, watch_terminal())


def _run_workers(server: Server, count: int, process: Process, log: Log, files: Files) -> int:
    first = random.randrange(1 << 16)  # another server's workers should not all begin with the same processor

    def reload() -> Optional[bool]:
        reading = process.interruptible  # a stop does not wait for a long list
        return _reload(server, files, reading=reading) or (None if files.lacks else False)

    def work(number: int, ready: Callable[[], None]) -> int:
        options = server._echo_options
        options.cpu_affinity = affinity.share(options.cpu_affinity, first + number)
        os.environ.pop("NOTIFY_SOCKET", None)  # only the parent notifies
        log.to(log.queue())
        files.lacks = False  # its parent's shortage, and the rest after it, are not its own
        server._echo_failures.rest(0.0)
        return _serve(server, process, ready, functools.partial(_reload_or_retry, server, files), lambda: False)

    def stop() -> None:
        systemd.notify(systemd.STOPPING)
        server.server_close()

    server.socket.setblocking(False)  # all processes share this mode; none may restore another at its end
    log.to(log.direct())
    processes = Workers(count, work, process, stop, reload, watch_terminal())
    _announce(server)
    server._echo_balance = processes.balance
    return processes.run()


@contextlib.contextmanager
def _failure_logged() -> Iterator[None]:
    """An exception is logged, and ends the program with code 1."""
    try:
        yield
    except Exception as exc:
        log_failure(exc)
        raise SystemExit(1) from None


def _announce(server: Server) -> None:
    fields: Dict[str, Any] = {"version": __version__, "pid": os.getpid()}
    banner = f"echo {__version__} (process {os.getpid()}; {stopped_by()} stops it) "
    status = systemd.status(log_listening(server, banner, **fields))
    systemd.notify(systemd.READY, status, wait=systemd.PATIENCE)


def _serve(
    server: Server,
    process: Process,
    ready: Callable[[], None],
    reload: Callable[[], bool],
    terminal_is_gone: Callable[[], bool],
) -> int:
    """Serve until a signal. ``ready`` is called once signals are acted on: a stop may follow at once."""
    later = in_thread()

    def act(signum: int) -> None:
        if signum == getattr(signal, "SIGUSR1", None):
            later(log_statistics)
        elif terminal_is_gone():
            process.stop(signum)
        elif not process.is_stopping():
            later(reload)

    def log_statistics() -> None:
        stats = server.stats()._asdict()
        text = ", ".join(f"{name} {_sum(value) if isinstance(value, dict) else value}" for name, value in stats.items())
        log_always("statistics", "statistics: %s", text, **stats)

    process.pass_signals(act)
    return serve(server, process, ready, lambda: systemd.notify(systemd.STOPPING))


def _sum(counts: Dict[str, int]) -> str:
    parts = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    return f"{sum(counts.values())} ({parts})" if parts else "0"


def in_thread() -> Callable[[Callable[[], object]], None]:
    """Return a function for signal handlers: it lets a thread call what it gets, one by one. So no slow file delays a
    client, and older files are never put in force after newer ones. Of the same function only one call waits, so that
    a thousand signals do not mean a thousand reloads. A function that returns True is called again after ``RETRY``."""
    again: List[Callable[[], object]] = []
    waiting: Deque[Callable[[], object]] = collections.deque()
    bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # a signal handler may interrupt its put()

    def run() -> None:
        while True:
            try:
                step()
            except Exception:  # no memory, for example, not even for suppress(); the next signal needs this thread
                time.sleep(RETRY)

    def step() -> None:
        with contextlib.suppress(queue.Empty):
            bell.get(timeout=RETRY if again else None)
        waiting.extend(again)
        again.clear()
        while waiting:
            call = waiting.popleft()
            try:
                if call() is True:
                    again.append(call)
            except MemoryError:
                again.append(call)
                raise

    def later(call: Callable[[], object]) -> None:
        if call not in waiting:
            waiting.append(call)
        bell.put(None)

    Thread(target=run, name="echo-signals", daemon=True).start()
    return later


def _reload_or_retry(server: Server, files: Files) -> bool:
    """Read the files again; return True if that has to be tried again. Clients that take all descriptors must not
    prevent the list that denies them from being read, and other workers may have read it already."""
    return not _reload(server, files) and files.lacks


_NO_DESCRIPTOR = (os.strerror(errno.EMFILE), os.strerror(errno.ENFILE))

REST = 10.0
"""Maximum time in seconds that no client is accepted while a reload lacks descriptors."""


def _reload(server: Server, files: Files, reading: Callable[[], ContextManager[None]] = contextlib.nullcontext) -> bool:
    """Read the files again, and return True; if one is broken, all stays as it is. If ``files.lacks``, try again.
    ``reading`` returns the context in which the files and their lists are read."""
    systemd.notify(systemd.reloading(), wait=systemd.PATIENCE)
    why: Optional[str] = None
    lack = None
    try:
        _read_again(server, files, reading)
    except Exception as exc:  # whatever it is, the next SIGHUP needs this thread
        lack = shortage(exc)
        why = str(exc) or "; ".join(lack or [type(exc).__name__])  # a MemoryError has no text
    # From here on nothing of what was read is kept: memory may be short.
    if why is not None:
        before = files.lacks
        files.lacks = lack is not None
        if not before:
            files.rests_until = time.monotonic() + REST
        # The certificates need several, and each that is freed would go to the next client. Not for ever: those that
        # stay in use may leave too few.
        rests = lack is not None and lack[0] in _NO_DESCRIPTOR and time.monotonic() < files.rests_until
        server._echo_failures.rest(2 * RETRY if rests else 0.0)
        if not (before and files.lacks):  # each shortage once
            text = "SIGHUP: %s; all stays as it was" + ("; trying again" if files.lacks else "")
            log_event(logging.WARNING, "reload-failed", text, why, why=why)
    else:
        files.lacks = False
        server._echo_failures.rest(0.0)
        kept = files.kept
        text = f", except {', '.join(kept)}: a pipe can be read only once" if kept else ""
        log_event(logging.INFO, "reloaded", "SIGHUP: certificates and networks read again%s", text)
    systemd.notify(systemd.READY, wait=systemd.PATIENCE)
    return why is None


def _read_again(server: Server, files: Files, reading: Callable[[], ContextManager[None]]) -> None:
    with reading():
        again = files.server_options()
        networks = networks_in(again)
        if networks != files.networks:  # else those that a handler has set by set_access() stay
            server.set_access(*networks)
            files.networks = networks
    server.ssl_context = again["ssl_context"]


class Files:
    """The files that the options name. SIGHUP reads them again."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._files = RepeatedFiles()
        self._lists = NetworkLists(self._files.read)
        self.lacks = False
        """Whether the last reload failed since the system lacked descriptors or memory."""
        self.rests_until = 0.0  # of time.monotonic(): no client is accepted until then if it lacked descriptors
        self.networks: Tuple[Any, ...] = ()
        """The lists of networks, as they were put in force last."""
        self._revoked = False  # whether the file of the client CA has held revocation lists

    @property
    def kept(self) -> List[str]:
        """The files that could be read only once."""
        return [escape(os.fsencode(path)) for path in self._files.kept]

    def address(self) -> Any:
        """Where to listen. A path is relative to the folder in which the command began."""
        path = self._options.unix
        if path is None:
            return self._options.bind, self._options.port
        return arguments.unix_address(path if path.startswith("@") else self._files.place(path))

    def server_options(self) -> Dict[str, Any]:
        """Read them all; return the options of ``Server``. ``ValueError`` names a file that cannot be used."""
        options = self._options
        found = settings(options, self._lists)
        if options.tls_cert is None:
            return dict(found, ssl_context=None)
        context = server_context(options.tls_cert, options.tls_key, options.tls_client_ca, read=self._files.read)
        revokes = bool(context.verify_flags & ssl.VERIFY_CRL_CHECK_CHAIN)
        if self._revoked and not revokes:  # it is being written, or the lists were lost
            what = f"{options.tls_client_ca} holds no revocation list (CRL) now, but did before"
            raise ValueError(f"{what}; to accept revoked certificates, restart the server")
        self._revoked = revokes
        return dict(found, ssl_context=context)


def networks_in(server_options: Mapping[str, Any]) -> Tuple[Any, ...]:
    """The arguments of ``set_access()``."""
    return server_options["allow"], server_options["deny"], server_options["proxy_allow_from"]


def _server(options: argparse.Namespace, files: Files, process: Process) -> Server:
    handler = _handler(options)
    server_options = files.server_options()
    files.networks = networks_in(server_options)
    # A handler written for socketserver may keep a login in a threading.local, or as an attribute of its thread.
    server_options["reuse_threads"] = issubclass(handler, MessageRequestHandler)
    if options.unix_mode is not None and (options.unix is None or options.unix.startswith("@")):
        raise ValueError("--unix-mode needs --unix with a path; nothing else has permissions")
    passed = systemd.listening_socket()
    try:
        address = looked_up(files.address()) if passed is None else None
        process.must_not_interrupt()  # from here on an exception would leave a Unix socket's path behind
        if passed is not None:
            return Server.from_socket(passed, handler, **server_options)
    except BaseException:
        if passed is not None:
            passed.close()
        raise
    return Server(address, handler, **server_options)


def _handler(options: argparse.Namespace) -> type:
    handler = EchoRequestHandler if options.handler is None else load_handler(options.handler)
    mixins = [load_mixin(spec) for spec in options.mixin]
    given = handler_attributes(options)
    if not issubclass(handler, MessageRequestHandler):
        if given or mixins:
            raise ValueError(
                f"{options.handler} is not a MessageRequestHandler; framing, message limits and mixins need one"
            )
        return handler
    if "framing" in given:
        limit = given.pop("max_message", handler.framing.max_message)
        given["framing"] = FRAMINGS[given["framing"]](limit, handler.framing.max_sent)
    elif "max_message" in given:
        given["framing"] = copy.copy(handler.framing)  # not a new one: its class may have arguments of its own
        given["framing"].max_message = limit = given.pop("max_message")
        if getattr(given["framing"].decoder(), "limit", None) != limit:
            raise ValueError(f"{options.handler} has its own framing; --max-message cannot change its limit")
    if options.no_log_messages:
        given["message_level"] = None
    given.update(names_kept([*mixins, handler]))
    return combine(handler, [*_logging_mixins(options), *mixins], **given)


def _logging_mixins(options: argparse.Namespace) -> List[type]:
    """Only those that the log needs: what is not logged has no code in a session's path."""
    if options.quiet or options.log_level in ("warning", "error"):
        return []  # all their records are at INFO or below
    return [QueueLoggingMixin] if options.no_log_messages else [QueueLoggingMixin, LoggingMixin]


if __name__ == "__main__":
    sys.exit(main())
