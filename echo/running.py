"""A server from its start to its exit code: ``run``, and the parts of it that the server command uses, too.

**Signals.** SIGINT and SIGTERM are handled from before the server is made until ``run`` returns. The first one begins
a stop, a later one cuts what is left. Wrappers like timeout(1) signal a process and then its group, so that the same
signal comes twice; a second one within ``SAME_SIGNAL`` is the first one again. A signal handler runs in the main
thread, between any two lines of it, and only calls methods of the server that may be called there.

``run`` takes only signals that have Python's own handler, as asyncio does. A handler of the program's own stays, and so
does a signal that is ignored (``nohup``, a shell's background job). The server command is a process of its own
and takes all of them.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import io
import logging
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple, Type

from . import protocol
from .descriptors import open_missing
from .server import forking
from .server.options import no_option
from .server.reporting import log, log_event
from .server.server import Server
from .server.signal_safe import ReentrantEvent
from .sockets import trouble_with_path
from .text import format_address

if TYPE_CHECKING:
    from typing_extensions import Unpack  # none of the checkers' packages is needed to run

    from .server.options import ServerOptions

SAME_SIGNAL = 0.25
"""Seconds within which a second signal is the first one again."""

PATIENCE = 2.0
"""Seconds after the second signal: it has had time to cut all sessions, and a further one has its usual effect."""

LOG_PATIENCE = 0.2
"""Maximum time in seconds that a signal handler waits until its record is logged."""

STOPPING = (signal.SIGINT, signal.SIGTERM)

_FILES = "close other programs, or raise the limit of open files (ulimit -n)"
_MEMORY = "close other programs, or raise the limit of memory (ulimit -v)"
SHORTAGES = {
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOMEM: _MEMORY,
    errno.ENOBUFS: _MEMORY,
    errno.ENOSPC: "free some space on the disk",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), which holds for files in memory, too",
}
"""Advice for the user, by the error that names what the system lacks."""


class Stopped(BaseException):
    """A signal to stop has come before there was a server."""


class StopSignals:
    """The signals that stop a program. They are handled while this context lasts, if the main thread enters it."""

    numbers: Tuple[int, ...] = STOPPING

    def __init__(self) -> None:
        self._first: Optional[float] = None  # when the first signal to stop came
        self._second: Optional[float] = None
        self._is_second: Callable[[], bool] = self.is_later
        self._on_stop: Optional[Callable[[int, bool], None]] = None
        self._early_stop: Optional[int] = None
        self._interrupts = False
        self._found: Dict[int, Any] = {}
        self._let_go: Set[int] = set()
        self.in_main_thread = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> StopSignals:
        forking.in_child(self.let_go)
        if self.in_main_thread:
            _blocked_at_forks.update(self.numbers)
            self._take(self.numbers)
        return self

    def _take(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            found = signal.getsignal(number)
            if number not in self._found and self._takes(number, found):
                try:
                    signal.signal(number, self._handle)
                except ValueError:  # the main thread of a subinterpreter, which no signal reaches
                    self.in_main_thread = False
                    break
                self._found[number] = found

    def __exit__(self, *exc_info: object) -> None:
        _blocked_at_forks.difference_update(self.numbers)
        found, self._found = self._found, {}  # a child that is forked later has the program's own handlers
        for number, handler in found.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def let_go(self) -> None:
        """In a forked child: the default actions, as long as it is not a server, too (``take_again``)."""
        for number in self._found:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        self._let_go.update(self._found)
        self._found = {}

    def take_again(self) -> None:
        """In a forked child that serves beside its parent: its signals are handled, too."""
        self._take(self._let_go)

    def _takes(self, number: int, found: Any) -> bool:
        """Whether to handle a signal that has this handler. A program that blocks it may have a thread with
        ``sigwait``."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, []) if hasattr(signal, "pthread_sigmask") else ()
        return found in (signal.SIG_DFL, signal.default_int_handler) and number not in blocked

    def not_taken(self) -> List[str]:
        """The names of the signals that are left to the program."""
        return [signal.Signals(number).name for number in self.numbers if number not in self._found]

    def _handle(self, number: int, frame: Optional[FrameType]) -> None:
        self.stop(number)

    def stop(self, number: int) -> None:
        """A signal has asked for a stop."""
        now = time.monotonic()
        begins = self._first is None
        if self._first is None:
            self._first = now  # at once: the next signal may come inside this function
        elif self._second is None:
            if not self._is_second():
                return
            self._second = now
        elif not self._is_in_vain():
            return  # at once: handlers of a flood of signals run inside each other, to the end of the stack
        if self._is_in_vain():
            self.__exit__()
            signal.raise_signal(number)
            if signal.getsignal(number) == signal.SIG_DFL:  # process 1, of a container: the system ignores the signal
                os._exit(128 + number)
            return
        self._asked(begins)
        if self._on_stop is not None:
            self._on_stop(number, begins)
        else:
            self._early_stop = number
        self._interrupt()

    def _is_in_vain(self) -> bool:
        """Whether a signal that comes now can do nothing here: it is the second one and no server has been made yet, or
        a second one has not ended the server. The program's own code blocks then, and only the signal's usual effect
        ends the program."""
        if self._second is None:
            return False
        return self._on_stop is None or time.monotonic() - self._second >= PATIENCE

    def is_later(self) -> bool:
        """Whether a signal to stop that comes now is another one than the first."""
        return self._first is not None and time.monotonic() - self._first >= SAME_SIGNAL

    def _asked(self, begins: bool) -> None:
        """A stop has been asked for; ``begins`` is false for a second signal."""

    def may_interrupt(self) -> None:
        """From now on a signal to stop raises ``Stopped`` in the main thread, once: nothing has been opened yet that an
        exception would leave behind, and what comes now may take for ever."""
        self._interrupts = True
        self._interrupt()

    def must_not_interrupt(self) -> None:
        """From now on a signal is acted on when there is something to stop."""
        self._interrupts = False

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """In this context, too, a signal to stop raises ``Stopped``. It is acted on first."""
        try:
            self.may_interrupt()
            yield
        finally:
            self._interrupts = False

    def _interrupt(self) -> None:
        if self._interrupts and self.is_stopping():
            self._interrupts = False
            raise Stopped

    def is_stopping(self) -> bool:
        """Whether a signal to stop has come."""
        return self._first is not None

    def pass_stops(self, on_stop: Callable[[int, bool], None]) -> None:
        """From now on call ``on_stop(number, begins)`` for a signal to stop; at once if one has come already.
        ``begins`` is false for a second signal."""
        self._on_stop = on_stop
        if self._early_stop is not None:
            on_stop(self._early_stop, True)


def serve(
    server: Server,
    signals: StopSignals,
    ready: Callable[[], None],
    stopping: Callable[[], object] = lambda: None,
) -> int:
    """Serve until a signal or a stop, and close; return 0 if all sessions ended in time, else 1.

    ``ready`` is called once signals are acted on: a stop may follow at once. ``stopping`` is called when a signal
    begins a stop.

    The first signal is logged when the loop has ended, and not in the signal handler. The main thread, which a signal
    handler interrupts, may hold the lock of a logging handler, and such a lock is seldom reentrant: that of
    ``logging.handlers.QueueHandler`` is not. For the same reason a thread logs the second one.
    """
    stopped_by: List[int] = []

    def stop(number: int, begins: bool) -> None:
        if begins:
            stopped_by.append(number)
            stopping()
            server.shutdown()
            if server._echo_registry.serves(threading.get_ident()):  # a subclass serves its clients in the accept loop
                Server.server_close(server)  # which only begins the stop here; the session drains
        else:
            _log_in_thread(lambda: log_stop(number, "stopping now"))
            server._echo_hurry(0)

    def log_stop(number: int, what: str) -> None:
        name = signal.Signals(number).name
        log_event(logging.INFO, "signal", "%s: %s", name, what, signal=name)

    with server:  # an exception in a signal handler of the program drains, too
        server._echo_when_serving = signals.take_again
        signals.pass_stops(stop)
        ready()
        server.serve_forever()
        for number in stopped_by:
            log_stop(number, "stopping")
    return 0 if server.stop() else 1


def _log_in_thread(log: Callable[[], None]) -> None:
    """Call ``log`` in a thread, and wait for a moment, so that records are in order. The caller may have interrupted
    ``threading.Thread.start()``, whose lock a ``Thread`` would need."""
    logged = ReentrantEvent()

    def call() -> None:
        threading.current_thread().name = "echo-signal"
        log()
        logged.set()

    with contextlib.suppress(RuntimeError, MemoryError):  # the system has no thread now: the stop matters more
        _thread.start_new_thread(call, ())
        logged.wait(time.monotonic() + LOG_PATIENCE)


def run(
    RequestHandlerClass: Any,  # noqa: N803 (socketserver's name)
    address: Any = (protocol.DEFAULT_HOST, protocol.DEFAULT_PORT),
    *,
    server_class: Type[Server] = Server,
    **options: Unpack[ServerOptions],
) -> int:
    """Serve until Ctrl-C or SIGTERM; return the exit code. This is a whole program::

        sys.exit(echo.run(Upper, ("127.0.0.1", 65432), max_connections=100))

    It takes what ``echo.Server`` takes: any ``socketserver`` handler class, an address, and the options as keyword
    arguments, except ``timeout``. ``server_class`` is a subclass of ``echo.Server`` to make the server of; its
    constructor gets the options.

    The log goes to stderr at the level INFO, unless ``logging`` has been configured. It begins with the address.
    In place of each standard descriptor that is closed, the null device is opened, if the system has one.

    SIGINT (Ctrl-C) or SIGTERM stops accepting, and lets the sessions answer what has arrived, within
    ``shutdown_timeout``. A second signal cuts what is left. After that the handlers of both signals are as before. So
    they are for a signal that finds the main thread blocked by the program's own code: for the second one before the
    server is made, and for one that comes two seconds after the second. While the name of the host is looked up, the
    first signal ends that.
    If the program handles or blocks one of them itself, that stays: a handler may stop the server, or raise an
    exception like ``SystemExit``, which passes through here when the sessions have ended. (An ``Exception`` may be
    taken for one of the client that is being accepted, as in ``socketserver``.)

    If another thread than the main thread calls this, signals do not stop the server, since Python allows signal
    handlers in the main thread only. Then it serves until ``stop()`` or ``shutdown()`` of the server is called, in
    a handler as ``self.server.stop()``. The log says which signals do not stop the server.

    The exit code is 0 if all sessions ended in time, and 1 if any was cut, if the address is not available, or if the
    system has no descriptors or memory for the server. The last two are one line in the log. Wrong arguments
    raise ``TypeError`` or ``ValueError``, as ``echo.Server`` does.
    """
    if "timeout" in options and server_class.__init__ is Server.__init__:  # it is for handle_request()
        raise TypeError(no_option("run", "timeout", "timeout"))
    open_missing()
    with StopSignals() as signals, _log_to_stderr():
        try:
            signals.may_interrupt()
            found = looked_up(address, getattr(server_class, "address_family", 0))
            signals.must_not_interrupt()
            server = server_class(found, RequestHandlerClass, **options)
        except Stopped:
            return 0
        except OSError as exc:
            lacks_files = exc.errno in (errno.EMFILE, errno.ENFILE)  # at any file, even one of the standard library
            if exc.filename not in (None, address) and not lacks_files:  # a file that server_class opens
                raise
            log_event(logging.ERROR, "error", "%s", why_not_listening(exc, address))
            return 1
        try:
            return serve(server, signals, lambda: _announce(server, signals))
        except OSError as exc:
            if exc.errno not in SHORTAGES:
                raise
            log_event(logging.ERROR, "error", "the server cannot run: %s; %s", exc.strerror, SHORTAGES[exc.errno])
            return 1


def looked_up(address: Any, family: int = 0) -> Any:
    """Return the address with the IP address of its host: one of IPv4, if the host has any. ``family``: that of the
    address; default: 0, any. A signal ends the look-up; it would have to wait for the one of ``bind()``, which may take
    a minute."""
    if not _has_name(address):
        return address
    from .client.dialing import look_up  # here: few servers need it

    host, port = address
    try:
        found = look_up(host, 0, None, family)
    except UnicodeError:
        return address  # bind() says what is wrong
    ip, _, *more = min(found, key=lambda entry: int(entry[0] != socket.AF_INET))[4]
    return (ip, port, *more)


def _has_name(address: Any) -> bool:
    """Whether an address has a host name, and is neither an IP address, a path nor anything else."""
    if not (isinstance(address, tuple) and len(address) == 2 and isinstance(address[0], str)):
        return False
    try:
        socket.inet_aton(address[0])
    except (OSError, UnicodeError):
        # The look-up takes * for this machine alone; bind() rejects it.
        return address[0] not in ("", "*") and ":" not in address[0]
    return False


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Unless the program has configured its log, log to standard error, without waiting for a reader who stalls: that
    would hold up all sessions, and the stop. What Python prints there goes to the log, too, while this lasts."""
    if log.hasHandlers() and _log_handler() is None:
        yield
        return
    from .logs.printed import logged

    if not log.hasHandlers():
        _configure_log()
    with logged(also_replaced=False):
        yield


def _log_handler() -> Any:
    """Return the handler that the first ``run`` has added, or None. It stays when that run is over, as handlers of
    ``logging`` do, and later runs use it."""
    return next((each for each in logging.getLogger().handlers if hasattr(each, "of_run")), None)


def _configure_log() -> None:
    from .logs.formatters import TextFormatter
    from .logs.log_handlers import DirectLog
    from .logs.output import new_lock

    handler: Any = _StreamHandler()
    if type(sys.stderr) is io.TextIOWrapper:  # an object of the program's own may keep, show or copy what it gets
        with contextlib.suppress(OSError, ValueError):  # it is closed, or has no descriptor
            handler = DirectLog(sys.stderr.fileno(), TextFormatter(), new_lock())  # a handler may fork
            forking.show = _show_in_log
    handler.of_run = True
    handler.setFormatter(TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if _log_handler() is not handler:  # another thread was faster
        handler.close()


def _show_in_log(title: str, lines: List[str]) -> None:
    """In a forked child. Not through a logger: another handler of the program may wait for a thread of the parent."""
    from .logs.log_handlers import DirectLog

    handler = _log_handler()
    is_plain = type(sys.stderr) in (io.TextIOWrapper, type(None))  # else an object of the program's own
    if not (is_plain and isinstance(handler, DirectLog) and handler.takes_what_is_written_to(sys.stderr)):
        forking.show_on_stderr(title, lines)
        return
    record = logging.LogRecord(log.name, logging.ERROR, "", 0, "%s", (title,), None)
    record.event, record.exc_text = "error", "\n".join(lines)
    handled = False
    with contextlib.suppress(Exception):  # a filter of the program has failed
        handled = bool(handler.handle(record))
    if not handled:
        handler.emit(record)  # which never waits for a slow reader, as print() would


class _StreamHandler(logging.StreamHandler):  # type: ignore[type-arg]  # a generic class for checkers only
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        with contextlib.suppress(ValueError):  # standard error is closed: the code that logs goes on
            super().handleError(record)


def _announce(server: Server, signals: StopSignals) -> None:
    log_listening(server)
    not_taken = signals.not_taken()
    if not_taken:
        why = "the program handles, blocks or ignores it"
        if not signals.in_main_thread:
            why = "this is not the main thread"
        text = "%s does not stop this server, since %s; call its stop()"
        log_event(logging.INFO, "signals", text, " or ".join(not_taken), why)


def log_listening(server: Server, banner: str = "", **fields: Any) -> str:
    """Log where the server listens; return the text. ``banner``: what the line begins with. Its end is the address:
    programs read it there."""
    address = format_address(server.server_address)
    options = server._echo_options  # those in force: a subclass may have attributes of its own with these names
    how = (" with TLS" if options.ssl_context else "") + (", behind a proxy" if options.proxy_protocol else "")
    text = f"listening on {address}{how}"
    log_event(logging.INFO, "listening", "%s%s", banner, text, address=address, **fields)
    return text


def why_not_listening(exc: OSError, address: Any) -> str:
    """Return one line: why nothing can listen on this address, and what to do."""
    return f"cannot listen on {format_address(address)}: {exc.strerror or exc}; {_advice(exc, address)}"


def _advice(exc: OSError, address: Any) -> str:
    if exc.errno in SHORTAGES:
        return SHORTAGES[exc.errno]
    if exc.errno == errno.EAFNOSUPPORT:
        return "this system does not support addresses of this kind; give another one, like 127.0.0.1"
    if isinstance(address, (str, bytes)):
        path = os.fsdecode(address)
        other = "give another name" if path.startswith("\0") else "give another path"
        if exc.errno == errno.EADDRINUSE:
            return other
        return trouble_with_path(path) or f"{other}, in a folder that you may write to"
    if isinstance(exc, socket.gaierror):
        servers = " and the name servers" if exc.errno == socket.EAI_AGAIN else ""
        return (
            f"check the name{servers}, or give an address of this machine, like 127.0.0.1, or 0.0.0.0 for all of them"
        )
    if exc.errno == errno.EADDRINUSE and address[1] == 0:
        return "all local ports are in use; wait a minute, close other programs, or choose a port"
    if exc.errno == errno.EADDRINUSE:
        return "another program uses this port; stop it, or choose another port (0 takes any free one)"
    if exc.errno in (errno.EACCES, errno.EPERM):
        if 0 < address[1] < 1024:
            return "ports below 1024 need privileges; choose a higher one"
        return "a security policy of this system forbids it; choose another port or address"
    host = str(address[0])
    if exc.errno == errno.EINVAL and ":" in host and "%" not in host:
        return f"a link-local address needs its interface, like {host}%eth0"
    return "give an address of this machine, like 127.0.0.1, or 0.0.0.0 for all of them"


# A child has the default actions again. A signal that comes at once, as ``multiprocessing`` sends it,
# waits until then; otherwise Python would drop it.
_blocked_at_forks: Set[int] = set()
_mask = threading.local()


def _block() -> None:
    _mask.value = signal.pthread_sigmask(signal.SIG_BLOCK, _blocked_at_forks)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.value)


def _unblock_in_child() -> None:
    # Python would drop a KeyboardInterrupt that is raised here.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and signal.SIGINT in signal.sigpending():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _unblock()


if hasattr(os, "register_at_fork"):  # after that of forking, which brings back the default actions
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_unblock_in_child)
