"""What every test may use: servers on free ports of the loopback, raw sockets, the command lines as processes.

Everything here has a deadline and is cleaned up; nothing waits by sleeping a guessed time.
"""

import contextlib
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from certificates import Certificates

import echo

pytest.register_assert_rewrite("measuring")  # else its assertions are none under -O

DEADLINE = 20.0
"""Seconds that anything may take before a test calls it lost; generous, since machines differ."""

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def eventually(condition, message="it never became true"):
    """Wait until ``condition()`` is true; return its value."""
    deadline = time.monotonic() + DEADLINE
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, message
        pause.wait(0.005)


def read_all(sock):
    """Everything that comes until the peer's end of output."""
    parts = []
    while True:
        data = sock.recv(65536)
        if not data:
            return b"".join(parts)
        parts.append(data)


def read_exactly(sock, size):
    """So many bytes; fewer only at the end of input."""
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            break
        data += more
    return data


@pytest.fixture
def trials(request):
    """``for rng in trials(100)``: so many times, each with a generator of its own. ``ECHO_TEST_SEED`` changes them all;
    without it a run repeats. The seed of a trial that fails is printed."""
    base = os.environ.get("ECHO_TEST_SEED", "1")
    under_way = []

    def repeat(count):
        for number in range(count):
            under_way[:] = [number]
            yield random.Random(f"{base}/{request.node.name}/{number}")
        under_way.clear()

    yield repeat
    if under_way:  # pytest shows it of a test that has failed
        print(f"trial {under_way[0]} of ECHO_TEST_SEED={base}")


class Recorder:
    """A mixin's worth of memory: which hooks were called, in which order."""

    @staticmethod
    def of(handler_class):
        """A subclass of ``handler_class`` that records its hooks in ``events`` and its ends in ``reasons``."""

        class Recorded(handler_class):
            events = []
            reasons = []
            ended = threading.Event()

            def connection_made(self):
                self.events.append("made")
                super().connection_made()

            def message_received(self, message):
                self.events.append(message)
                super().message_received(message)

            def connection_lost(self, reason):
                super().connection_lost(reason)
                self.reasons.append(reason)
                self.events.append("lost")
                self.ended.set()

        return Recorded


@pytest.fixture
def serve():
    """``serve(handler_class, **options)``: a started ``echo.Server`` on a free port, stopped after the test."""
    with contextlib.ExitStack() as stack:

        def start(handler_class=echo.EchoRequestHandler, cls=echo.Server, **options):
            server = cls(("127.0.0.1", 0), handler_class, **options)
            stack.callback(server.stop, 1.0)
            return server.start()

        yield start


@pytest.fixture
def dial():
    """``dial(server_or_address)``: a connected raw socket with a timeout, closed after the test."""
    with contextlib.ExitStack() as stack:

        def connect(target):
            address = getattr(target, "server_address", target)
            return stack.enter_context(socket.create_connection(address[:2], DEADLINE))

        yield connect


class Process:
    """``python -m MODULE ARGUMENTS`` with pipes; killed at the end whatever happens.

    ``env`` is put on top of the environment; None takes a variable away. No history is kept unless it says where: it
    would be that of whoever runs the tests. Warnings are errors, so that a socket which is left open shows in stderr.
    """

    def __init__(self, *arguments, python_options=(), program=None, **popen_options):
        own = {"PYTHONPATH": ROOT, "ECHO_HISTFILE": os.devnull, "PYTHONWARNINGS": "error"}
        own.update(popen_options.pop("env", {}))
        environment = {name: value for name, value in dict(os.environ, **own).items() if value is not None}
        for stream in ("stdin", "stdout", "stderr"):
            popen_options.setdefault(stream, subprocess.PIPE)
        program = program or [sys.executable, *python_options, "-m"]
        self.popen = subprocess.Popen([*program, *arguments], env=environment, **popen_options)
        self.pid = self.popen.pid
        self.log = ""

    def read_log_until(self, pattern):
        """Read stderr until a line matches; return the match."""
        deadline = time.monotonic() + DEADLINE
        while True:
            match = re.search(pattern, self.log)
            if match:
                return match
            left = deadline - time.monotonic()
            ready = select.select([self.popen.stderr], [], [], max(0, left))[0]
            assert ready, f"no {pattern!r} in {self.log!r}"
            data = os.read(self.popen.stderr.fileno(), 65536)
            assert data, f"stderr ended without {pattern!r}: {self.log!r}"
            self.log += data.decode()

    def finish(self, data=None, timeout=DEADLINE * 2):
        """Give it ``data`` on stdin, wait for its end; return (exit code, stdout); stderr is added to ``log``."""
        out, err = self.popen.communicate(data, timeout=timeout)
        self.log += (err or b"").decode()
        return self.popen.returncode, out

    def terminate(self, signum=signal.SIGTERM, **options):
        """Send a signal, wait for the end; return the exit code."""
        self.popen.send_signal(signum)
        return self.finish(**options)[0]

    def kill(self):
        if self.popen.poll() is None:
            self.popen.kill()
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self.popen.wait()


@pytest.fixture
def run():
    """``run("echo.client", ...)``: a ``Process``, killed after the test."""
    processes = []

    def start(*arguments, **options):
        process = Process(*arguments, **options)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()


@pytest.fixture
def server_command(run):
    """``server_command(*options)``: a running ``python -m echo.server`` whose ``address`` is known."""

    def start(*options, **popen_options):
        process = run("echo.server", "0", *options, **popen_options)
        port = process.read_log_until(r"listening on \S+:(\d+)").group(1)
        process.address = ("127.0.0.1", int(port))
        return process

    return start


@pytest.fixture
def serve_over(run):
    """``serve_over(listener, *options)``: a ``python -m echo.server`` to which this listening socket was passed.

    It is there when its log says what ``until`` is, a pattern.
    """
    pytest.importorskip("fcntl", reason="nobody passes descriptors here")
    from activation import copies_of, launcher

    def start(listener, *options, env=None, until="listening on", **popen_options):
        copies = copies_of(listener)
        try:
            process = run(
                "echo.server",
                *options,
                python_options=launcher(copies),
                pass_fds=copies,
                env=dict(env or {}, LISTEN_FDS="1", LISTEN_FDNAMES="echo.socket"),
                **popen_options,
            )
        finally:
            os.close(*copies)
        if until is not None:
            process.read_log_until(until)
        return process

    return start


class Program:
    """A program that people have, with pipes; what it says on both streams is in ``seen``."""

    def __init__(self, *command):
        self.popen = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.seen = b""

    def type(self, data):
        self.popen.stdin.write(data)
        self.popen.stdin.flush()

    def until(self, pattern):
        """Read until ``pattern`` stands in what came; return the match."""
        while True:
            match = re.search(pattern, self.seen)
            if match:
                return match
            assert select.select([self.popen.stdout], [], [], DEADLINE)[0], f"no {pattern!r} in {self.seen!r}"
            data = os.read(self.popen.stdout.fileno(), 65536)
            assert data, f"it ended without {pattern!r}: {self.seen!r}"
            self.seen += data

    def finish(self, data=None):
        """Give it ``data`` and the end of input, wait for its end; return (exit code, all that it said)."""
        self.seen += self.popen.communicate(data, timeout=DEADLINE)[0]
        return self.popen.returncode, self.seen

    def kill(self):
        if self.popen.poll() is None:
            self.popen.kill()
        for stream in (self.popen.stdin, self.popen.stdout):
            with contextlib.suppress(OSError):
                stream.close()
        self.popen.wait()


@pytest.fixture
def program():
    """``program("openssl", ...)``: a ``Program``, killed after the test, which is skipped where there is none."""
    programs = []

    def start(name, *arguments):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
        programs.append(Program(name, *arguments))
        return programs[-1]

    yield start
    for each in programs:
        each.kill()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """``Certificates`` of a CA of our own, made once for all tests."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates, is not installed")
    return Certificates(tmp_path_factory.mktemp("certificates"))
