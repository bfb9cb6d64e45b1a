"""The server command under a service manager: a listening socket is passed to it, and it tells how it is.

``test_systemd.py`` has the two protocols by themselves; here is what the command makes of them.
"""

import collections
import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time

import pytest

from echo.server import workers
from support import DEADLINE, eventually, read_all, read_exactly

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no Unix, and no service manager that speaks this")

needs_fork = pytest.mark.skipif(not workers.SUPPORTED, reason="this system cannot fork")

TELLS = """
import echo, os

class Tells(echo.MessageRequestHandler):
    def message_received(self, message):
        names = sorted(name for name in os.environ if name.startswith("LISTEN_") or name == "NOTIFY_SOCKET")
        self.send(("%d %s" % (os.getpid(), " ".join(names))).encode())
"""

SLOW = """
import echo, os, threading

class Slow(echo.EchoRequestHandler):
    def message_received(self, message):
        while message == b"slow" and not os.path.exists("go"):
            threading.Event().wait(0.005)
        super().message_received(message)
"""


@pytest.fixture
def listener():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(128)
        yield sock


def name_of(listener):
    return "%s:%d" % listener.getsockname()


def ask(address, line=b"hello\n"):
    with socket.create_connection(address, DEADLINE) as sock:
        sock.sendall(line)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


# The socket that is passed.


@pytest.mark.parametrize("count", ["1", pytest.param("2", marks=needs_fork)])
def test_the_socket_that_was_passed_is_served_whatever_port_was_asked_for(serve_over, listener, count):
    server = serve_over(listener, "1", "-b", "203.0.113.7", "--workers", count)
    assert f"listening on {name_of(listener)}\n" in server.log
    assert ask(listener.getsockname()) == b"hello\n"
    assert server.terminate() == 0
    assert "Traceback" not in server.log
    with socket.create_connection(listener.getsockname(), DEADLINE):
        pass  # it still listens: its maker has it


def test_limits_and_networks_hold_for_the_socket_that_was_passed(serve_over, listener):
    serve_over(listener, "--deny", "127.0.0.1")
    assert ask(listener.getsockname(), b"") == b""


def test_the_path_of_a_unix_socket_that_was_passed_is_left_alone(serve_over, tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(16)
        for _ in range(2):  # the second is the restart
            server = serve_over(listener)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(DEADLINE)
                sock.connect(str(tmp_path / "s"))
                sock.sendall(b"hello\n")
                assert read_exactly(sock, 6) == b"hello\n"
            assert server.terminate() == 0
            assert (tmp_path / "s").exists()


def test_what_was_passed_and_does_not_listen_gets_one_line_and_code_2(serve_over):
    with socket.socket() as sock:
        server = serve_over(sock, until=None)
        assert server.finish() == (2, b"")
    assert server.log.count("\n") == 1 and "stream socket that does not listen" in server.log


def test_who_comes_while_no_server_runs_waits_and_is_served_by_the_next(serve_over, listener):
    assert serve_over(listener).terminate() == 0
    with socket.create_connection(listener.getsockname(), DEADLINE) as sock:
        sock.sendall(b"early\n")
        serve_over(listener)
        assert read_exactly(sock, 6) == b"early\n"


# A restart under load.


class Load:
    """Clients that connect, send a line and compare its echo, one after the other, all the time, until ``end()``.

    ``outcomes`` counts what each of them met: ``right``, or what else it was.
    """

    def __init__(self, address, count=4):
        self.outcomes = collections.Counter()
        self._address = address
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, number):
        turn = 0
        while not self._over.is_set():
            turn += 1
            outcome = self._one(b"client %d, line %d\n" % (number, turn))
            with self._lock:
                self.outcomes[outcome] += 1

    def _one(self, line):
        try:
            sock = socket.create_connection(self._address, DEADLINE)
        except OSError as exc:
            return f"no connection: {exc!r}"
        with sock:
            try:
                sock.sendall(line)
                reply = read_exactly(sock, len(line))
            except OSError as exc:
                return f"lost: {type(exc).__name__}"
        return "right" if reply == line else f"wrong: {reply!r}" if reply else "lost: the end"

    def goes_on(self):
        """Wait for a number of echoes from now on."""
        least = self.outcomes["right"] + 50
        eventually(lambda: self.outcomes["right"] >= least, f"the load has stopped: {self.outcomes}")

    def end(self):
        self._over.set()
        for thread in self._threads:
            thread.join(DEADLINE)


@contextlib.contextmanager
def load_on(listener):
    load = Load(listener.getsockname())
    try:
        yield load
    finally:
        load.end()


def restart(serve_over, listener, load, order, options=()):
    """Three times another server takes over."""
    server = serve_over(listener, "-q", "--no-log-messages", *options)
    load.goes_on()
    for _ in range(3):
        if order == "the new one first":
            successor = serve_over(listener, "-q", "--no-log-messages", *options)
            load.goes_on()
            assert server.terminate() == 0
        else:
            assert server.terminate() == 0
            successor = serve_over(listener, "-q", "--no-log-messages", *options)
        load.goes_on()
        server = successor
    return server


ORDERS = ["the new one first", "the old one ends first"]


@pytest.fixture
def quiet_over(serve_over, tmp_path):
    """``serve_over`` for a server that logs nothing: systemd is told that it listens."""

    def start(listener, *options):
        with notified(tmp_path) as (receiver, environment):
            server = serve_over(listener, *options, env=environment, until=None)
            assert receiver.recv(4096).startswith(b"READY=1\n")
        return server

    return start


@pytest.mark.skipif(not hasattr(socket, "TCP_DEFER_ACCEPT"), reason="a client is accepted before its request is there")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("options", [[], pytest.param(["--workers", "2"], marks=needs_fork)], ids=["one", "workers"])
def test_a_restart_under_load_refuses_no_connection_and_loses_no_echo(quiet_over, listener, order, options):
    """With ``DeferAcceptSec=`` a client is accepted with its request, which a stop answers: nobody loses anything."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, int(DEADLINE))
    with load_on(listener) as load:
        server = restart(quiet_over, listener, load, order, options)
    assert set(load.outcomes) == {"right"}, load.outcomes
    assert server.terminate() == 0


@pytest.mark.parametrize("order", ORDERS)
def test_a_restart_under_load_refuses_no_connection_whenever_the_request_comes(quiet_over, listener, order):
    """Without it a client may be accepted just before the stop and send just after: it sees the end of an idle
    session. But none is refused, and no echo is wrong."""
    with load_on(listener) as load:
        server = restart(quiet_over, listener, load, order)
    met = dict(load.outcomes)
    right = met.pop("right")
    assert all(outcome.startswith("lost: ") for outcome in met), met
    assert sum(met.values()) <= 3 * 4 < right  # each stop may meet each client once
    assert server.terminate() == 0


def test_a_session_of_the_old_server_ends_there_while_the_new_one_serves(serve_over, listener, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    old = serve_over(listener, "--handler", "slow:Slow", cwd=str(tmp_path))
    with socket.create_connection(listener.getsockname(), DEADLINE) as sock:
        sock.sendall(b"slow\n")
        old.read_log_until("received 4 bytes: slow")
        old.popen.send_signal(signal.SIGTERM)
        old.read_log_until("draining 1 session")
        new = serve_over(listener, "--handler", "slow:Slow", cwd=str(tmp_path))
        assert ask(listener.getsockname()) == b"hello\n"
        (tmp_path / "go").write_text("")
        assert read_all(sock) == b"slow\n"
    assert old.finish()[0] == 0
    assert new.terminate() == 0


# What it tells.


@contextlib.contextmanager
def notified(folder):
    """A socket as the service manager's, and the environment that says where it is."""
    path = str(folder / f"notify{time.monotonic_ns()}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        sock.bind(path)
        yield sock, {"NOTIFY_SOCKET": path}


@pytest.fixture
def receiver(tmp_path):
    with notified(tmp_path) as (sock, environment):
        yield sock, environment


def told(sock):
    """The next message, a dictionary of its assignments."""
    return dict(line.split("=", 1) for line in sock.recv(4096).decode().split("\n"))


def nothing_more(sock):
    """Whether nothing was told since; to be asked when who could is gone."""
    sock.setblocking(False)
    try:
        return not sock.recv(4096)
    except BlockingIOError:
        return True


COUNTS = ["1", pytest.param("2", marks=needs_fork)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_it_tells_once_that_it_listens_that_it_reloads_and_that_it_stops(run, receiver, count, signum):
    sock, environment = receiver
    server = run("echo.server", "0", "--workers", count, env=environment)
    ready = told(sock)
    address = re.fullmatch(r"listening on (127\.0\.0\.1:\d+)", ready.pop("STATUS")).group(1)
    assert ready == {"READY": "1"}
    host, port = address.split(":")
    assert ask((host, int(port))) == b"hello\n"
    if count != "1":
        server.read_log_until("worker 1 is process")
    for _ in range(2):
        before = time.monotonic_ns() // 1000
        server.popen.send_signal(signal.SIGHUP)
        reloading = told(sock)
        assert reloading.pop("RELOADING") == "1"
        assert before <= int(reloading.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
        assert not reloading
        assert told(sock) == {"READY": "1"}
        seen = r"(?s)" + r".*".join(["SIGHUP: certificates and networks read again"] * (1 if count == "1" else 3))
        server.read_log_until(seen)
        server.log = ""
    server.popen.send_signal(signum)
    assert told(sock) == {"STOPPING": "1"}
    assert server.finish()[0] == 0
    assert nothing_more(sock)


def test_a_reload_that_failed_is_over_all_the_same(run, receiver, tmp_path):
    sock, environment = receiver
    (tmp_path / "deny").write_text("192.0.2.1\n")
    server = run("echo.server", "0", "--deny", "@deny", env=environment, cwd=str(tmp_path))
    assert told(sock)["READY"] == "1"
    (tmp_path / "deny").write_text("broken\n")
    server.popen.send_signal(signal.SIGHUP)
    assert told(sock)["RELOADING"] == "1"
    assert told(sock) == {"READY": "1"}


def test_a_second_signal_is_not_told(serve_over, listener, receiver, tmp_path):
    sock, environment = receiver
    (tmp_path / "slow.py").write_text(SLOW)
    server = serve_over(listener, "--handler", "slow:Slow", env=environment, cwd=str(tmp_path))
    assert told(sock)["READY"] == "1"
    with socket.create_connection(listener.getsockname(), DEADLINE) as client:
        client.sendall(b"slow\n")
        server.read_log_until("received 4 bytes: slow")
        server.popen.send_signal(signal.SIGTERM)
        server.read_log_until("draining 1 session")
        threading.Event().wait(0.3)  # signals that come together count as one
        assert server.terminate() == 1
    assert "SIGTERM: stopping now" in server.log
    assert told(sock) == {"STOPPING": "1"}
    assert nothing_more(sock)


def test_who_is_told_may_have_gone(run, receiver):
    sock, environment = receiver
    server = run("echo.server", "0", env=environment)
    assert told(sock)["READY"] == "1"
    sock.close()
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until("read again")
    assert server.terminate() == 0
    assert "Traceback" not in server.log


@needs_fork
def test_workers_know_nothing_of_it_and_one_that_is_replaced_tells_nothing(serve_over, listener, receiver, tmp_path):
    sock, environment = receiver
    (tmp_path / "tells.py").write_text(TELLS)
    server = serve_over(
        listener, "--workers", "2", "--handler", "tells:Tells", env=environment, cwd=str(tmp_path), until="worker 1 is"
    )
    assert told(sock)["READY"] == "1"

    def answers_of(count):
        answers = {}

        def all_there():
            pid, *names = ask(listener.getsockname()).split()
            answers[int(pid)] = names
            return len(answers) == count

        with contextlib.ExitStack() as stack:  # who has more sessions leaves the next to the other
            eventually(lambda: stack.enter_context(talking(listener)) and all_there())
        return answers

    first = answers_of(2)
    assert server.pid not in first and set(map(tuple, first.values())) == {()}
    victim = min(first)
    os.kill(victim, signal.SIGKILL)
    server.read_log_until(r"(?s)was killed by SIGKILL.*worker \d is process")
    second = answers_of(2)
    assert victim not in second and set(map(tuple, second.values())) == {()}
    assert server.terminate() == 0
    assert told(sock) == {"STOPPING": "1"}
    assert nothing_more(sock)


@contextlib.contextmanager
def talking(listener):
    with socket.create_connection(listener.getsockname(), DEADLINE) as sock:
        sock.sendall(b"hello\n")
        sock.recv(100)
        yield sock


def test_a_handler_sees_nothing_of_the_socket_that_was_passed(serve_over, listener, receiver, tmp_path):
    (tmp_path / "tells.py").write_text(TELLS)
    server = serve_over(listener, "--handler", "tells:Tells", env=receiver[1], cwd=str(tmp_path))
    assert ask(listener.getsockname()).split() == [b"%d" % server.pid, b"NOTIFY_SOCKET"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has abstract addresses")
def test_who_is_told_may_have_an_abstract_address(run):
    name = f"echo-test-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        sock.bind("\0" + name)
        server = run("echo.server", "0", env={"NOTIFY_SOCKET": "@" + name})
        assert told(sock)["READY"] == "1"
        assert server.terminate() == 0
        assert told(sock) == {"STOPPING": "1"}


def test_nobody_is_told_that_a_server_listens_which_does_not(run, receiver, listener):
    sock, environment = receiver
    assert run("echo.server", str(listener.getsockname()[1]), env=environment).finish()[0] == 1
    assert nothing_more(sock)
