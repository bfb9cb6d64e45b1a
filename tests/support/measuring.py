"""What ``test_ping.py`` and ``test_bench.py`` share: servers that are no good echo, and how to read what is told."""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import threading
import time

import pytest

import echo

from . import DEADLINE

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and descriptors")
needs_socat = pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")
every_framing = pytest.mark.parametrize("framing", ["line", "length", "raw"])

THROUGH_TIMEOUT = """\
import os, sys
os.execvp("timeout", ["timeout", "60", sys.executable, *sys.argv[1:]])
"""
"""``python -c THROUGH_TIMEOUT -m MODULE ...`` runs the module under timeout(1), which signals it and then its group."""

WITHOUT_INPUT = """\
import os, sys
os.close(0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""The same with its standard input closed."""


# Reading what is told.


def arguments_for(server):
    """Host and port of a server, of a process of one, or of an address."""
    address = server if isinstance(server, tuple) else getattr(server, "server_address", None) or server.address
    return address[0], str(address[1])


def read_until(process, pattern):
    """Read standard output until ``pattern`` stands in what came since the last call; return the match."""
    process.told = getattr(process, "told", "")
    seen = getattr(process, "seen", 0)
    descriptor = process.popen.stdout.fileno()
    deadline = time.monotonic() + DEADLINE
    while True:
        match = re.compile(pattern).search(process.told, seen)
        if match:
            process.seen = match.end()
            return match
        ready = select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0]
        assert ready, f"no {pattern!r} in {process.told[seen:]!r}"
        data = os.read(descriptor, 65536)
        assert data, f"the output ended without {pattern!r}: {process.told[seen:]!r} {process.finish()}"
        process.told += data.decode()


def finish(process):
    """Wait for the end; return (exit code, all that stood on standard output)."""
    code, out = process.finish()
    assert "Traceback" not in process.log, process.log
    return code, getattr(process, "told", "") + out.decode()


def events(text):
    """The JSON objects, one a line, of which the last and no other is the summary."""
    found = [json.loads(line) for line in text.splitlines()]
    assert [event["event"] for event in found].index("summary") == len(found) - 1, text
    return found


def have_units(event):
    """Whether each figure that could have one has its unit in its name, and is a number."""
    for name, value in event.items():
        if isinstance(value, float):
            assert re.search(r"_(us|s|percent)$", name), name
        if re.search(r"_(us|s|percent|bytes|samples)$", name):
            assert type(value) in (int, float) or (name, value) == ("rate_per_s", None), (name, value)
    return True


def one_complaint(process, *words):
    """The process wrote exactly one line to stderr, as the client's own, and these words are in it."""
    assert re.fullmatch(r"echo\.client: [^\n]+\n", process.log), process.log
    for word in words:
        assert word in process.log, process.log
    return True


def twice(process, signum):
    for _ in range(2):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signum)


# Servers that do it right.


def echo_of(name, base=echo.EchoRequestHandler):
    """An echo handler under the framing of that name."""
    framing = {"line": echo.LineFraming, "length": echo.LengthFraming, "raw": echo.RawFraming}[name]
    return type("Handler", (base,), {"framing": framing()})


def send_back(sock):
    """The plainest echo there is: RFC 862's, which knows no messages."""
    while True:
        data = sock.recv(1000)
        if not data:
            break
        sock.sendall(data)


@contextlib.contextmanager
def socat_that_echoes():
    """An echo service made of socat and one ``cat`` for each connection; the address of it."""
    command = ["socat", "-d", "-d", "TCP4-LISTEN:0,bind=127.0.0.1,fork", "EXEC:cat"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    try:
        log = b""
        while True:
            found = re.search(rb"listening on [^\n]*127\.0\.0\.1:(\d+)\n", log)
            if found:
                break
            assert select.select([process.stderr], [], [], DEADLINE)[0], log
            log += os.read(process.stderr.fileno(), 65536)
        # What it has to say from now on must not fill the pipe.
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        yield "127.0.0.1", int(found.group(1))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        drain.join(DEADLINE)
        process.stderr.close()


# Servers that do not. Each is a fresh class, so that what its sessions share is one test's.


class Counting(echo.EchoRequestHandler):
    """``number`` is how many messages this session had, with the one that ``answer`` gets."""

    def connection_made(self):
        self.number = 0

    def message_received(self, message):
        self.number += 1
        self.answer(message)


class FlipsAByteOfEachThird(Counting):
    def answer(self, message):
        if self.number % 3 == 0:
            message = b"%b%c%b" % (message[:30], message[30] ^ 1, message[31:])
        self.send(message)


class CutsEachThird(Counting):
    def answer(self, message):
        self.send(message if self.number % 3 else message[:-7])


class DropsEachFifth(Counting):
    def answer(self, message):
        if self.number % 5:
            self.send(message)


class SwapsPairs(Counting):
    def answer(self, message):
        if self.number % 2:
            self.held = message
        else:
            self.send(message)
            self.send(self.held)


class SaysItTwice(Counting):
    def answer(self, message):
        self.send(message)
        self.send(message)


class LagsByOne(Counting):
    """Each message is answered by the one before it."""

    held = None

    def answer(self, message):
        if self.held is not None:
            self.send(self.held)
        self.held = message


class ClosesAtTheFourth(Counting):
    def answer(self, message):
        if self.number == 4:
            self.close()
        else:
            self.send(message)


class ResetsAtTheFourth(Counting):
    def answer(self, message):
        if self.number == 4:
            self.abort()
        else:
            self.send(message)


class NeverAnswers(Counting):
    def answer(self, message):
        pass


class Greets(Counting):
    def connection_made(self):
        super().connection_made()
        self.send(b"220 welcome to a service that greets")

    answer = echo.EchoRequestHandler.send


class SpeaksUnasked(Counting):
    """Each third reply is followed by a word of its own."""

    def answer(self, message):
        self.send(message)
        if self.number % 3 == 0:
            self.send(b"by the way")


class Endless(echo.MessageRequestHandler):
    """A line that does not end."""

    def connection_made(self):
        while True:
            self.connection.send_raw(b"x" * 65536, 1)
