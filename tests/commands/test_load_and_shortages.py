"""A server process under load: stopped at full load, without descriptors, flooded, reset, fed byte by byte.

The figures of the process come from /proc.
"""

import contextlib
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time

import pytest

import echo
from echo.server import back_off
from support import DEADLINE, ROOT, eventually, read_all, read_exactly, reset
from support.commands import start_changed
from support.processes import cpu_seconds, descriptors_of, rss, threads_of

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc to look at a process in")

MB = 1 << 20


class NumberedLines:
    """Many connections with numbered lines in flight, in one thread, until the server ends them."""

    def __init__(self, address, size):
        self.members = [socket.create_connection(address, DEADLINE) for _ in range(size)]
        self.sent = {sock: 0 for sock in self.members}
        self.received = {sock: bytearray() for sock in self.members}
        self.thread = threading.Thread(target=self._load, daemon=True)
        self.thread.start()

    @staticmethod
    def lines(start, count):
        return b"".join(b"line %09d\n" % number for number in range(start, start + count))

    def _load(self):
        poll = select.poll()
        by_fd = {}
        for sock in self.members:
            sock.setblocking(False)
            by_fd[sock.fileno()] = sock
            poll.register(sock, select.POLLIN)
            self._send(sock)
        while by_fd:
            for fd, _ in poll.poll(1000):
                sock = by_fd[fd]
                try:
                    data = sock.recv(65536)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                if not data:
                    poll.unregister(sock)
                    del by_fd[fd]
                    continue
                self.received[sock] += data
                if len(self.received[sock]) >= 15 * self.sent[sock]:
                    self._send(sock)

    def _send(self, sock):
        try:
            sock.send(self.lines(self.sent[sock], 10))
            self.sent[sock] += 10
        except OSError:
            pass  # its end will be read next

    def wait_for_echoes(self, count):
        """Wait until so many lines have come back, and at least one to each member."""
        eventually(
            lambda: sum(map(len, list(self.received.values()))) >= 15 * count and all(map(len, self.received.values()))
        )

    def verify(self):
        """Check that each member has received whole lines: those that it sent, from its first on."""
        self.thread.join(2 * DEADLINE)
        assert not self.thread.is_alive()
        for sock in self.members:
            data = self.received[sock]
            sock.close()
            assert len(data) % 15 == 0, data[-30:]
            assert data == self.lines(0, len(data) // 15)


@pytest.mark.parametrize(
    "size, count, attempts", [(20, 1000, 1), pytest.param(200, 14_000, 20, marks=pytest.mark.stress)]
)
def test_a_sigterm_under_full_load_cuts_no_message_and_ends_with_code_0(server_command, size, count, attempts):
    for _ in range(attempts):
        server = server_command("--no-log-messages", "--shutdown-timeout", "10m")
        load = NumberedLines(server.address, size)
        load.wait_for_echoes(count)
        assert server.terminate() == 0
        load.verify()


IMPATIENT_THREADS = """
class Impatient(command.Server):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._echo_session_threads.idle_timeout = 0.1

command.Server = Impatient
"""
"""Threads that wait for another session do so for a moment only."""


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.stress)])
def test_clients_that_reset_at_any_point_leave_no_error_and_nothing_behind(run, tmp_path, count):
    server = start_changed(run, tmp_path, IMPATIENT_THREADS, "--log-level", "debug")

    def in_use():
        return (descriptors_of(server.pid), threads_of(server.pid))

    with echo.connect(server.address, timeout=DEADLINE) as client:
        assert client.echo(b"hello") == b"hello"
    eventually(lambda: threads_of(server.pid) == 3)  # the one that accepts, the log's, and the one that reloads
    idle = in_use()

    def at_connect(sock):
        pass

    def after_half_a_message(sock):
        sock.sendall(b"half")

    def after_a_message(sock):
        sock.sendall(b"whole\n")

    def with_the_reply_unread(sock):
        sock.sendall(b"whole\n")
        select.select([sock], [], [], DEADLINE)

    def after_a_flood(sock):
        sock.setblocking(False)
        try:
            while True:
                sock.send(b"flood\n" * 10_000)
        except OSError:
            pass

    def after_exit(sock):
        sock.sendall(b"a\nexit\nmore\n")

    points = [at_connect, after_half_a_message, after_a_message, with_the_reply_unread, after_a_flood, after_exit]
    for number in range(count):
        sock = socket.create_connection(server.address, DEADLINE)
        points[number % len(points)](sock)
        reset(sock)
    eventually(lambda: in_use() == idle)
    with echo.connect(server.address, timeout=DEADLINE) as client:
        assert client.echo(b"hello") == b"hello"
    assert server.terminate() == 0
    assert "ERROR" not in server.log
    assert "Traceback" not in server.log


def test_out_of_descriptors_it_rests_and_recovers(server_command):
    """64 descriptors and 100 clients: almost no CPU time while full, and serving again when they leave."""
    began = time.monotonic()
    server = server_command("-m", "100000", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    clients = [socket.create_connection(server.address, DEADLINE) for _ in range(100)]
    server.read_log_until("cannot accept connections for now: .*Too many open files")

    def rests():
        before, since = cpu_seconds(server.pid), time.monotonic()
        threading.Event().wait(0.2)
        return cpu_seconds(server.pid) - before < 0.1 * (time.monotonic() - since)

    eventually(rests)  # a server that retries without a pause never sleeps
    for client in clients:
        client.close()
    with echo.connect(server.address, timeout=DEADLINE) as client:
        assert client.echo(b"hello") == b"hello"
    server.read_log_until("accepting connections again")
    assert server.terminate() == 0
    periods = 1 + (time.monotonic() - began) // back_off.SILENCE
    assert server.log.count("cannot accept connections for now") <= periods


def test_a_client_that_sends_much_and_never_reads_costs_little_memory_and_no_one_else_time(server_command, dial):
    server = server_command("--no-log-messages", "--send-timeout", "200ms")
    with echo.connect(server.address, timeout=DEADLINE) as other:
        other.echo(b"warm")
        before = rss(server.pid)
        greedy = dial(server.address)
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line = b"x" * 60_000 + b"\n"
        sent = 0
        try:
            while sent < 50 * MB:
                greedy.sendall(line)
                sent += len(line)
                if sent % (20 * len(line)) == 0:
                    assert other.echo(b"meanwhile") == b"meanwhile"
        except OSError:
            pass  # it was cut, since it does not read
        other.echo(b"after")
        assert rss(server.pid) - before < 32 * MB
    server.read_log_until("disconnected: slow")


@pytest.mark.parametrize("megabytes", [100, pytest.param(1024, marks=pytest.mark.stress)])
def test_a_gigabyte_without_a_line_feed_costs_little_memory(server_command, dial, megabytes):
    server = server_command("--no-log-messages", "--max-message", "4M")
    with echo.connect(server.address, timeout=DEADLINE) as other:
        other.echo(b"warm")
        before = rss(server.pid)
        flood = dial(server.address)
        chunk = b"x" * MB
        most = 0
        try:
            for number in range(megabytes):
                flood.sendall(chunk)
                if number % 16 == 0:
                    other.echo(b"meanwhile")
                    most = max(most, rss(server.pid) - before)
        except OSError:
            pass  # it was cut long before
        other.echo(b"after")
        assert max(most, rss(server.pid) - before) < 32 * MB
    server.read_log_until("disconnected: too-long")


def test_a_length_prefix_of_4_gb_costs_little_memory(server_command, dial):
    server = server_command("--framing", "length")
    before = rss(server.pid)
    liar = dial(server.address)
    liar.sendall(b"\xff\xff\xff\xff" + b"x" * 1000)
    assert read_all(liar) == b""
    assert rss(server.pid) - before < 8 * MB
    server.read_log_until("disconnected: too-long")


SERVER = """
import echo

server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
server._echo_session_threads.idle_timeout = 0.1
server.start()
print(server.server_address[1], flush=True)
while True:
    input()
    print(len(server.connections), len(server._echo_registry._hosts), server.stats().ended, flush=True)
"""
"""A server that prints its port, and for each line of its input the number of connections and hosts in its registry."""


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.stress)])
def test_ten_thousand_short_sessions_leave_nothing_behind(count):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            address = ("127.0.0.1", int(process.stdout.readline()))

            def sessions(count):
                for _ in range(count):
                    with socket.create_connection(address, DEADLINE) as sock:
                        sock.sendall(b"hello\nexit\n")
                        assert read_all(sock) == b"hello\n"

            def books():
                process.stdin.write("\n")
                process.stdin.flush()
                return process.stdout.readline()

            sessions(count // 10)
            eventually(lambda: threads_of(process.pid) == 2)
            idle = (descriptors_of(process.pid), rss(process.pid))
            sessions(count)
            eventually(lambda: threads_of(process.pid) == 2)
            eventually(lambda: descriptors_of(process.pid) == idle[0])
            assert rss(process.pid) - idle[1] < 4 * MB
            eventually(lambda: books() == f"0 0 {{'exit': {count + count // 10}}}\n")
        finally:
            process.kill()


INTERVAL = """
import sys
import echo

class Interval(echo.MessageRequestHandler):
    def message_received(self, message):
        self.send(b"%g" % sys.getswitchinterval())
"""


@pytest.mark.parametrize(("limit", "seconds"), [("1024", b"0.005"), ("2000", b"0.1"), ("100000", b"0.5")])
def test_thousands_of_waiting_threads_do_not_take_all_processors(server_command, tmp_path, limit, seconds):
    """How often a waiting thread asks for the GIL. With the default, 5 ms, 10,000 threads left no time for others."""
    (tmp_path / "interval.py").write_text(INTERVAL)
    server = server_command("--handler", "interval:Interval", "-m", limit, cwd=tmp_path)
    with echo.connect(server.address, timeout=DEADLINE) as client:
        client.send(b"?")
        assert client.recv() == seconds


def close_at_their_end(clients):
    """Close each client when it sees the server's end, which waits for that. Otherwise thousands of sessions would wait
    a second, and then all compete for the GIL."""
    for client in clients:
        with contextlib.suppress(OSError):
            read_all(client)
        client.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.stress)])
def test_ten_thousand_connections_at_once_each_get_their_echo(server_command, count):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + 500
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"only {hard} descriptors may be opened here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    clients = []
    try:
        server = server_command("--no-log-messages", "-m", str(count + 10), "--shutdown-timeout", "10m")
        before = rss(server.pid)
        for _ in range(count):
            clients.append(socket.create_connection(server.address, DEADLINE * 3))
        for number, client in enumerate(clients):
            client.sendall(b"%d\n" % number)
        for number, client in enumerate(clients):
            expected = b"%d\n" % number
            assert read_exactly(client, len(expected)) == expected
        if getattr(sys, "_is_gil_enabled", lambda: True)():
            # 29 to 31 KB are usual, and 40 to 44 before 3.11, where each frame of a waiting thread is an object.
            most = 40 if sys.version_info >= (3, 11) else 56
            assert rss(server.pid) - before < 8 * MB + most * 1024 * count
        ending = threading.Thread(target=close_at_their_end, args=(clients,), daemon=True)
        ending.start()
        assert server.terminate(timeout=DEADLINE * 5) == 0
        ending.join(DEADLINE)
        assert f"stopped: {count} sessions drained, 0 cut" in server.log
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_each_kind_of_bad_client_ends_as_its_reason_says(server_command, dial):
    """Two servers, one for idle sessions and one for messages that take too long: on a busy machine any client may be
    silent for that time."""
    for_idle = server_command("-i", "100ms")
    silent = dial(for_idle.address)
    for_slow = server_command("--message-timeout", "300ms")
    dripping, half_closing, leaving = (dial(for_slow.address) for _ in range(3))
    half_closing.sendall(b"a\n")
    half_closing.shutdown(socket.SHUT_WR)
    assert read_all(half_closing) == b"a\n"
    leaving.sendall(b"exit\n")
    assert read_all(leaving) == b""
    gone = threading.Event()

    def drip():
        try:
            while not gone.wait(0.05):
                dripping.sendall(b"x")
        except OSError:
            pass

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        assert read_all(silent) == b""
        for server, sock, reason in (
            (for_idle, silent, "idle"),
            (for_slow, half_closing, "eof"),
            (for_slow, leaving, "exit"),
            (for_slow, dripping, "slow"),
        ):
            port = sock.getsockname()[1]
            server.read_log_until(rf":{port} disconnected: {reason};")
    finally:
        gone.set()
        thread.join()
