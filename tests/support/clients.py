"""Clients as a library: ``echo.Client`` and servers that echo under each framing."""

import contextlib
import time

import echo

from . import DEADLINE

FRAMINGS = [echo.LineFraming, echo.CRLFFraming, echo.LengthFraming, echo.RawFraming]


@contextlib.contextmanager
def connections():
    """``connect(server, **options)``: an ``echo.Client``, closed at the end. Its timeout is ``DEADLINE`` by default."""
    with contextlib.ExitStack() as stack:

        def connect(server, **options):
            options.setdefault("timeout", DEADLINE)
            return stack.enter_context(echo.connect(server.server_address, **options))

        yield connect


def echo_of(framing):
    """An echo handler class with that framing."""
    return type("Handler", (echo.EchoRequestHandler,), {"framing": framing})


def patiently(receive, timeout=TimeoutError):
    """Call ``receive`` again until it does not time out."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            return receive()
        except timeout:
            assert time.monotonic() < deadline, "nothing came"
