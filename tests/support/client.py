"""The client's command without a process: its ``main()`` is called, with streams that are made for it."""

import contextlib
import io
import os
import signal
import sys
import tempfile
import threading
from typing import NamedTuple

import echo
from echo.cli.client.command import main

from . import DEADLINE


class Finished(NamedTuple):
    """The exit code of a command, and its output: stdout, and stderr as ``log``."""

    code: int
    out: bytes
    log: str


class UnixServer(echo.Server):
    """``serve(handler, cls=UnixServer)``: on a Unix socket of its own, to which a client is connected at once.

    For tests with a short ``-w``, which is the time to connect, too: on a busy machine TCP may take longer.
    """

    def __init__(self, address, handler_class, **options):
        self._folder = tempfile.TemporaryDirectory()
        super().__init__(os.path.join(self._folder.name, "socket"), handler_class, **options)

    def server_close(self):
        super().server_close()
        self._folder.cleanup()


def address_options(server):
    """The arguments that name a server's address: of a server object, or the address itself."""
    address = server if isinstance(server, (tuple, str)) else getattr(server, "server_address", None) or server.address
    return ["--unix", address] if isinstance(address, str) else [address[0], str(address[1])]


@contextlib.contextmanager
def signals_kept():
    """Restore the signal handlers that ``--ping`` and ``--bench`` set; a process would keep them to its end."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, []) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers):
            signal.signal(number, handler)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def call_client(*arguments, data=b"", stays_open=False, stdin=None, stdout=None):
    """Call ``main(arguments)`` in this thread; return its exit code and output, ``Finished``.

    Standard input is a pipe with ``data``. Its other end is closed after that or, with ``stays_open``, when ``main``
    has returned. ``stdin`` and ``stdout`` may be open files instead. An argument may be bytes. The timeout is generous
    unless there is a ``-w``.
    """
    arguments = ["-w", f"{DEADLINE:g}s", *(os.fsdecode(argument) for argument in arguments)]
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    log = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    source, writer = _pipe(data, stays_open)
    streams = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = stdin or source, stdout or out, log
    try:
        with signals_kept():
            code = main(arguments)
    except SystemExit as exc:
        code = exc.code
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
        writer.let_go()
        for thread in threading.enumerate():
            if thread.name == "echo-feed":  # a process would end here, and its threads with it
                thread.join(DEADLINE)
                assert not thread.is_alive(), "the thread that reads standard input goes on"
        source.close()  # a writer that is still busy gets EPIPE
        writer.join(DEADLINE)
    out.flush()
    log.flush()
    return Finished(code, out.buffer.getvalue(), log.buffer.getvalue().decode())


def _pipe(data, stays_open):
    reader, sink = os.pipe()
    writer = _Writer(sink, data, stays_open)
    writer.start()
    return os.fdopen(reader), writer


class _Writer(threading.Thread):
    def __init__(self, sink, data, stays_open):
        super().__init__(name="writer")
        self._sink = sink
        self._data = data
        self._may_close = threading.Event()
        if not stays_open:
            self.let_go()

    def let_go(self):
        """Close the pipe when all is written."""
        self._may_close.set()

    def run(self):
        try:
            with open(self._sink, "wb", buffering=0) as sink:
                left = memoryview(self._data)
                while left:
                    left = left[sink.write(left) :]
                self._may_close.wait(DEADLINE)
        except BrokenPipeError:
            pass  # the client has ended before all was read
