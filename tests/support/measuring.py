"""Helpers for the tests of ``--ping`` and ``--bench``: run the client, read its output, real servers to measure.

``simulation`` has the faulty servers.
"""

import contextlib
import io
import json
import os
import re
import select
import signal
import subprocess
import threading
import time

import pytest

import echo
from echo.cli.client.command import main

from . import DEADLINE
from .client import signals_kept

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and descriptors")
every_framing = pytest.mark.parametrize("framing", echo.framing.FRAMINGS)

PATIENT = ("-w", "60s")
"""Options for a client whose replies all come: even on a busy machine none is late."""

THROUGH_TIMEOUT = """\
import os, sys
os.execvp("timeout", ["timeout", "600", sys.executable, *sys.argv[1:]])
"""
"""``python -c THROUGH_TIMEOUT -m MODULE ...`` runs the module under timeout(1), which signals it and then its group."""

WITHOUT_INPUT = """\
import os, sys
os.close(0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""The same with its standard input closed."""


# Run the client.


def arguments_for(server):
    """Host and port of a server, of a process of one, or of an address."""
    address = server if isinstance(server, tuple) else getattr(server, "server_address", None) or server.address
    return address[0], str(address[1])


def run_client(*arguments, encoding="utf-8"):
    """``python -m echo.client`` in this process; return (exit code, standard output, standard error)."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding=encoding), io.StringIO()
    try:
        with signals_kept(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
    except SystemExit as exc:
        code = exc.code
    out.flush()
    return code, out.buffer.getvalue().decode(encoding), err.getvalue()


def signal_twice(process, number):
    """Send a process the same signal twice, unless the first has ended it."""
    for _ in range(2):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


# Read what it prints.


def read_until(process, pattern):
    """Read a process's standard output until the part since the last call matches ``pattern``; return the match."""
    process.output = getattr(process, "output", "")
    seen = getattr(process, "seen", 0)
    descriptor = process.popen.stdout.fileno()
    deadline = time.monotonic() + DEADLINE
    while True:
        match = re.compile(pattern).search(process.output, seen)
        if match:
            process.seen = match.end()
            return match
        ready = select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0]
        assert ready, f"no {pattern!r} in {process.output[seen:]!r}"
        data = os.read(descriptor, 65536)
        assert data, f"the output ended without {pattern!r}: {process.output[seen:]!r} {process.finish()}"
        process.output += data.decode()


def finish(process):
    """Wait for a process's end; return (exit code, all of its standard output)."""
    code, out = process.finish()
    assert "Traceback" not in process.log, process.log
    return code, getattr(process, "output", "") + out.decode()


def events(text):
    """The JSON objects of the output, one a line, each without its time; only the last is the summary."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("time")) for event in found), text
    assert [event["event"] for event in found].index("summary") == len(found) - 1, text
    return found


def have_units(event):
    """Whether each field of a figure is a number, and has its unit in its name."""
    for name, value in event.items():
        if isinstance(value, float):
            assert re.search(r"_(us|s|percent)$", name), name
        if re.search(r"_(us|s|percent|bytes|samples)$", name):
            assert type(value) in (int, float) or (name, value) == ("rate_per_s", None), (name, value)
    return True


def is_one_complaint(stderr, *words):
    """Whether standard error is exactly one line of the client's own, with these words in it."""
    assert re.fullmatch(r"echo\.client: [^\n]+\n", stderr), stderr
    for word in words:
        assert word in stderr, stderr
    return True


def one_complaint(process, *words):
    """The same for a process that has ended."""
    return is_one_complaint(process.log, *words)


# Servers.


def echo_of(name):
    """An echo handler class with the framing of that name."""
    return type("Handler", (echo.EchoRequestHandler,), {"framing": echo.framing.FRAMINGS[name]()})


def echo_bytes(sock):
    """The simplest echo, that of RFC 862, which knows no messages."""
    while True:
        data = sock.recv(1000)
        if not data:
            break
        sock.sendall(data)


def remembering(answer=echo.EchoRequestHandler.send):
    """A new handler class with ``sessions``, the handlers in the order of their connections, and ``messages``, all
    messages that they have received. It calls ``answer(handler, message)`` for each."""

    class Handler(echo.EchoRequestHandler):
        sessions, messages, lock = [], [], threading.Lock()

        def connection_made(self):
            with self.lock:
                self.sessions.append(self)

        def message_received(self, message):
            with self.lock:
                self.messages.append(message)
            answer(self, message)

    return Handler


def never_answers(handler, message):
    """For ``remembering``: no reply at all."""


def flips_a_byte_of_each_third(handler, message):
    """For ``remembering``: every third reply is damaged."""
    if int(message[:8], 16) % 3 == 0:
        message = b"%b%c%b" % (message[:30], message[30] ^ 1, message[31:])
    handler.send(message)


def resets_at_the_fourth(handler, message):
    """For ``remembering``: a RST in place of the fourth reply."""
    if message.startswith(b"00000004"):
        handler.abort()
    else:
        handler.send(message)


class Endless(echo.MessageRequestHandler):
    """Sends a line that does not end."""

    def connection_made(self):
        while True:
            self.connection.send_raw(b"x" * 65536, 1)


@contextlib.contextmanager
def socat_that_echoes():
    """An echo service made of socat and one ``cat`` for each connection; its address."""
    command = ["socat", "-d", "-d", "TCP4-LISTEN:0,bind=127.0.0.1,fork", "EXEC:cat"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    drain = threading.Thread(target=process.stderr.read, daemon=True)
    try:
        log = b""
        while True:
            found = re.search(rb"listening on [^\n]*127\.0\.0\.1:(\d+)\n", log)
            if found:
                break
            assert select.select([process.stderr], [], [], DEADLINE)[0], log
            log += os.read(process.stderr.fileno(), 65536)
        drain.start()  # read its further output, so that the pipe does not fill up
        yield "127.0.0.1", int(found.group(1))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if drain.ident is not None:
            drain.join(DEADLINE)
        process.stderr.close()
