"""The server command under a service manager: a listening socket is passed to it, and it reports its state.

``outside/test_systemd.py`` tests the two protocols alone; this file tests how the command uses them.
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

from echo.cli.server import workers
from support import DEADLINE, eventually, read_all, read_exactly
from support.commands import SLOW_HANDLER, UNREAD, client_that_does_not_read

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no Unix, so no service manager that does this")

needs_fork = pytest.mark.skipif(not workers.SUPPORTED, reason="this system has no fork()")

TELLS = """
import echo, os

class Tells(echo.MessageRequestHandler):
    def message_received(self, message):
        names = sorted(name for name in os.environ if name.startswith("LISTEN_") or name == "NOTIFY_SOCKET")
        self.send(("%d %s" % (os.getpid(), " ".join(names))).encode())
"""

PATIENT = ("--shutdown-timeout", "10m")
"""The sessions end before this time, however busy this machine is."""


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
def test_the_socket_that_was_passed_is_served_whatever_port_was_given(serve_over, listener, count):
    server = serve_over(listener, "1", "-b", "203.0.113.7", "--workers", count)
    assert f"listening on {name_of(listener)}\n" in server.log
    assert ask(listener.getsockname()) == b"hello\n"
    assert server.terminate() == 0
    assert "Traceback" not in server.log
    with socket.create_connection(listener.getsockname(), DEADLINE):
        pass  # it still listens, since the test has it open


def test_limits_and_networks_hold_for_the_socket_that_was_passed(serve_over, listener):
    serve_over(listener, "--deny", "127.0.0.1")
    assert ask(listener.getsockname(), b"") == b""


@pytest.mark.parametrize("option", ["--allow", "--deny", "--proxy-allow-from"])
def test_networks_are_refused_for_a_unix_socket_that_was_passed(serve_over, tmp_path, option):
    """Row 59."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(16)
        proxied = ["--proxy-protocol"] if option == "--proxy-allow-from" else []
        server = serve_over(listener, *proxied, option, "10.0.0.0/8", until=None)
        assert server.finish() == (2, b"")
    words = "needs addresses, and clients of a Unix socket have none; see --help"
    assert server.log == f"echo.server: {option} {words}\n"


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


def test_a_socket_that_does_not_listen_gets_one_line_and_code_2(serve_over):
    with socket.socket() as sock:
        server = serve_over(sock, until=None)
        assert server.finish() == (2, b"")
    assert server.log.count("\n") == 1 and "stream socket that does not listen" in server.log


def test_a_client_that_connects_while_no_server_runs_is_served_by_the_next(serve_over, listener):
    assert serve_over(listener).terminate() == 0
    with socket.create_connection(listener.getsockname(), DEADLINE) as sock:
        sock.sendall(b"early\n")
        serve_over(listener)
        assert read_exactly(sock, 6) == b"early\n"


# A restart under load.


class Load:
    """Clients that connect, send a line and compare its echo, one after the other, until ``end()``.

    ``outcomes`` counts them by outcome: ``right``, or the error.
    """

    def __init__(self, address, count=3):
        self.outcomes = collections.Counter()
        self.count = count
        self._address = address
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, number):
        turn = 0
        while not self._over.wait(0.005):  # lets other processes run, such as the server that starts
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
        """Wait for this number of further echoes."""
        least = self.outcomes["right"] + 20
        eventually(lambda: self.outcomes["right"] >= least, f"the load has stopped: {self.outcomes}")

    def end(self):
        self._over.set()
        for thread in self._threads:
            thread.join(2 * DEADLINE)
            assert not thread.is_alive()


@contextlib.contextmanager
def load_on(listener):
    load = Load(listener.getsockname())
    try:
        yield load
    finally:
        load.end()


def restart(start, listener, load, order, times):
    """Replace the server by a new one this many times; return the last one. ``start(listener)`` starts one."""
    server = start(listener)
    load.goes_on()
    for _ in range(times):
        if order == "the new one first":
            successor = start(listener)
            load.goes_on()
            assert server.terminate() == 0
        else:
            assert server.terminate() == 0
            successor = start(listener)
        load.goes_on()
        server = successor
    return server


orders = pytest.mark.parametrize("order", ["the new one first", "the old one ends first"])
takeovers = pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.slow)])


@pytest.fixture
def quiet_over(serve_over, tmp_path):
    """``quiet_over(listener, *options)``: ``serve_over`` for a server that logs nothing, but notifies systemd that it
    listens."""

    def start(listener, *options):
        with notified(tmp_path) as (receiver, environment):
            server = serve_over(listener, "-q", "--no-log-messages", *PATIENT, *options, env=environment, until=None)
            assert receiver.recv(4096).startswith(b"READY=1\n")
        return server

    return start


@pytest.mark.skipif(not hasattr(socket, "TCP_DEFER_ACCEPT"), reason="a client is accepted before its request is there")
@takeovers
@orders
@pytest.mark.parametrize(
    "options",
    [[], pytest.param(["--workers", "2"], marks=[needs_fork, pytest.mark.slow])],
    ids=["one", "workers"],
)
def test_a_restart_under_load_refuses_no_connection_and_loses_no_echo(quiet_over, listener, options, order, times):
    """With ``DeferAcceptSec=`` a client is accepted when its request has come, and a stop still answers that."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, int(DEADLINE))
    with load_on(listener) as load:
        server = restart(lambda listener: quiet_over(listener, *options), listener, load, order, times)
    assert set(load.outcomes) == {"right"}, load.outcomes
    assert server.terminate() == 0


@takeovers
@orders
def test_a_restart_under_load_refuses_no_connection_whenever_the_request_comes(quiet_over, listener, order, times):
    """Without it a client may be accepted just before the stop and send just after: its idle session then ends without
    a reply. But none is refused, and no echo is wrong."""
    with load_on(listener) as load:
        server = restart(quiet_over, listener, load, order, times)
    outcomes = dict(load.outcomes)
    right = outcomes.pop("right")
    assert all(outcome.startswith("lost: ") for outcome in outcomes), outcomes
    assert sum(outcomes.values()) <= times * load.count < right  # each stop may meet each client once
    assert server.terminate() == 0


def test_a_session_of_the_old_server_ends_there_while_the_new_one_serves(serve_over, listener, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_HANDLER)
    old = serve_over(listener, "--handler", "slow:Slow", *PATIENT, cwd=str(tmp_path))
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


# The state that it reports.


@contextlib.contextmanager
def notified(folder):
    """The service manager's socket, and the environment that names it."""
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
    """Whether no further message has come; call it when the sender has ended."""
    sock.setblocking(False)
    try:
        return not sock.recv(4096)
    except BlockingIOError:
        return True


@pytest.mark.parametrize(
    "count, signum", [("1", signal.SIGINT), pytest.param("2", signal.SIGTERM, marks=needs_fork)], ids=["one", "workers"]
)
def test_it_reports_once_that_it_listens_that_it_reloads_and_that_it_stops(run, receiver, count, signum):
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


def test_a_second_signal_is_not_reported(serve_over, listener, receiver, dial):
    sock, environment = receiver
    server = serve_over(listener, *PATIENT, *UNREAD, env=environment)
    server.address = listener.getsockname()
    assert told(sock)["READY"] == "1"
    client_that_does_not_read(server, dial)
    server.popen.send_signal(signal.SIGTERM)
    server.read_log_until("draining 1 session")
    threading.Event().wait(0.3)  # signals that come together count as one
    assert server.terminate() == 1
    assert "SIGTERM: stopping now" in server.log
    assert told(sock) == {"STOPPING": "1"}
    assert nothing_more(sock)


def test_a_service_manager_that_is_gone_is_not_an_error(run, receiver):
    sock, environment = receiver
    server = run("echo.server", "0", env=environment)
    assert told(sock)["READY"] == "1"
    sock.close()
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until("read again")
    assert server.terminate() == 0
    assert "Traceback" not in server.log


@needs_fork
def test_workers_report_nothing_not_even_one_that_is_replaced(serve_over, listener, receiver, tmp_path):
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

        with contextlib.ExitStack() as stack:  # a worker that has more sessions leaves the next to the other
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
def test_the_service_manager_may_have_an_abstract_address(run):
    name = f"echo-test-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        sock.bind("\0" + name)
        server = run("echo.server", "0", env={"NOTIFY_SOCKET": "@" + name})
        assert told(sock)["READY"] == "1"
        assert server.terminate() == 0
        assert told(sock) == {"STOPPING": "1"}


def test_a_server_that_cannot_listen_reports_nothing(run, receiver, listener):
    sock, environment = receiver
    assert run("echo.server", str(listener.getsockname()[1]), env=environment).finish()[0] == 1
    assert nothing_more(sock)
