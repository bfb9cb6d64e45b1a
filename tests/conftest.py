"""The fixtures: servers on free ports of the loopback, raw sockets, the commands as processes.

Each fixture has a deadline and cleans up; nothing sleeps for a guessed time.
"""

# ruff: noqa: E402

import contextlib
import os
import random
import shutil
import signal
import socket
import sys

import pytest

pytest.register_assert_rewrite("support")  # before its import; otherwise its assertions do nothing under -O

import echo
from support import DEADLINE, tiers
from support.certificates import Certificates
from support.processes import Process, Program
from support.tiers import (  # noqa: F401  (pytest calls them)
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_collectreport,
    pytest_configure,
    pytest_runtest_logreport,
    pytest_runtest_setup,
    pytest_terminal_summary,
)


@pytest.fixture(scope="session", autouse=True)
def ordinary_environment(tmp_path_factory):
    """The environment and signals that the tests' processes inherit, however pytest was started."""
    ignored = {number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN}
    for number in ignored - {signal.SIGPIPE, getattr(signal, "SIGXFSZ", None)}:  # these two are Python's own choice
        # A shell's background job ignores SIGINT, nohup(1) SIGHUP.
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    for variable in ("NO_COLOR", "FORCE_COLOR"):
        os.environ.pop(variable, None)
    if sys.dont_write_bytecode:  # otherwise each would compile the package again, which is half of its start time
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(tmp_path_factory.mktemp("bytecode"))


@pytest.fixture
def trials(request):
    """``for rng in trials(100)``: 100 trials, each with its own random generator. Each run has the same trials, unless
    ``ECHO_TEST_SEED`` changes them. The seed of a trial that fails is printed."""
    base = os.environ.get("ECHO_TEST_SEED", "1")
    under_way = []

    def repeat(count):
        for number in range(count):
            under_way[:] = [number]
            yield random.Random(f"{base}/{request.node.name}/{number}")
        under_way.clear()

    yield repeat
    if under_way:  # pytest shows it if the test fails
        print(f"trial {under_way[0]} of ECHO_TEST_SEED={base}")


@pytest.fixture
def serve():
    """``serve(handler_class, **options)``: a started ``echo.Server`` on a free port, stopped after the test."""
    with contextlib.ExitStack() as stack:

        def start(handler_class=echo.EchoRequestHandler, cls=echo.Server, **options):
            server = cls(("127.0.0.1", 0), handler_class, **options)
            stack.callback(server.stop, DEADLINE)
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

    It is ready when its log matches the pattern ``until``.
    """
    pytest.importorskip("fcntl", reason="nobody passes descriptors here")
    from support.activation import copies_of, launcher

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


@pytest.fixture
def program(request):
    """``program("openssl", ...)``: a ``Program``, killed after the test, which needs it (``needs_programs``)."""
    programs = []

    def start(name, *arguments):
        if shutil.which(name) is None:
            tiers.missing(request.config, f"{name} is not installed")
        programs.append(Program(name, *arguments))
        return programs[-1]

    yield start
    for each in programs:
        each.kill()


@pytest.fixture(scope="session")
def certificates(request, tmp_path_factory):
    """``Certificates`` of a CA of our own, made once for all tests."""
    if shutil.which("openssl") is None:
        tiers.missing(request.config, "openssl, which makes the certificates, is not installed")
    return Certificates(tmp_path_factory.mktemp("certificates"))
