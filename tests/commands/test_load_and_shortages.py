"""Faults, injected into a server that runs as a process of its own: killed under load, starved, flooded, dripped on.

What a machine cannot do is a skip with the reason. Figures of the process come from /proc.
"""

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
from support import DEADLINE, ROOT, eventually, read_all, read_exactly, reset
from support.processes import cpu_seconds, descriptors_of, rss, threads_of

pytestmark = [
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc to look at a process in"),
    pytest.mark.timeout(180),
]

MB = 1 << 20


class Crowd:
    """Many connections that keep numbered lines in flight from one thread, until the server ends them."""

    def __init__(self, address, size):
        self.members = [socket.create_connection(address, DEADLINE) for _ in range(size)]
        self.sent = {sock: 0 for sock in self.members}
        self.received = {sock: b"" for sock in self.members}
        self.running = threading.Event()
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
            self.running.set()

    def _send(self, sock):
        try:
            sock.send(self.lines(self.sent[sock], 10))
            self.sent[sock] += 10
        except OSError:
            pass  # its end is about to be read

    def verify(self):
        """Each member's received bytes are whole lines, and what it sent from its first on."""
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive()
        for sock in self.members:
            data = self.received[sock]
            sock.close()
            assert len(data) % 15 == 0, data[-30:]
            assert data == self.lines(0, len(data) // 15)


@pytest.mark.parametrize("attempt", range(20))
def test_a_sigterm_under_full_load_cuts_no_message_and_ends_with_code_0(server_command, attempt):
    server = server_command("--no-log-messages")
    crowd = Crowd(server.address, 200)
    assert crowd.running.wait(DEADLINE)
    eventually(lambda: sum(map(len, crowd.received.values())) > 200_000)
    assert server.terminate() == 0
    crowd.verify()


def test_clients_that_reset_at_any_point_leave_no_error_and_nothing_behind(server_command):
    server = server_command("--log-level", "debug")
    idle = (descriptors_of(server.pid), threads_of(server.pid))

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
    for number in range(200):
        sock = socket.create_connection(server.address, DEADLINE)
        points[number % len(points)](sock)
        reset(sock)
    eventually(lambda: (descriptors_of(server.pid), threads_of(server.pid)) == idle)
    with echo.connect(server.address) as client:
        assert client.echo(b"hello") == b"hello"
    assert server.terminate() == 0
    assert "ERROR" not in server.log
    assert "Traceback" not in server.log


def test_out_of_descriptors_it_rests_and_recovers(server_command, dial):
    """Row 10: 64 descriptors, 300 clients, next to no CPU while full, serving again when they leave."""
    server = server_command("-m", "100000", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    clients = [socket.create_connection(server.address, DEADLINE) for _ in range(300)]
    server.read_log_until("cannot accept connections for now: .*Too many open files")
    before, began = cpu_seconds(server.pid), time.monotonic()
    threading.Event().wait(3)  # the window in which it is measured
    assert cpu_seconds(server.pid) - before < 0.1 * (time.monotonic() - began)
    for client in clients:
        client.close()
    with echo.connect(server.address, timeout=DEADLINE) as client:
        assert client.echo(b"hello") == b"hello"
    assert server.terminate() == 0
    assert server.log.count("cannot accept connections for now") == 1
    assert "accepting connections again" in server.log


def test_a_client_that_sends_much_and_never_reads_costs_little_memory_and_no_one_else_time(server_command, dial):
    server = server_command("--no-log-messages", "--send-timeout", "2s")
    with echo.connect(server.address) as other:
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
            pass  # cut for not reading, in the midst of it
        other.echo(b"after")
        assert rss(server.pid) - before < 32 * MB
    server.read_log_until("disconnected: slow")


def test_a_gigabyte_without_a_line_feed_costs_little_memory(server_command, dial):
    server = server_command("--no-log-messages", "--max-message", "4M")
    with echo.connect(server.address) as other:
        other.echo(b"warm")
        before = rss(server.pid)
        flood = dial(server.address)
        chunk = b"x" * MB
        most = 0
        try:
            for number in range(1024):
                flood.sendall(chunk)
                if number % 64 == 0:
                    other.echo(b"meanwhile")
                    most = max(most, rss(server.pid) - before)
        except OSError:
            pass  # it was told off long before
        other.echo(b"after")
        assert max(most, rss(server.pid) - before) < 32 * MB
    server.read_log_until("disconnected: too-long")


def test_a_length_prefix_of_4_gb_costs_little_memory(server_command, dial):
    """Row 33."""
    server = server_command("--framing", "length")
    before = rss(server.pid)
    liar = dial(server.address)
    liar.sendall(b"\xff\xff\xff\xff" + b"x" * 1000)
    assert read_all(liar) == b""
    assert rss(server.pid) - before < 8 * MB
    server.read_log_until("disconnected: too-long")


def test_ten_thousand_short_sessions_leave_nothing_behind(server_command):
    script = (
        "import echo, threading\n"
        "server = echo.Server(('127.0.0.1', 0), echo.EchoRequestHandler).start()\n"
        "print(server.server_address[1], flush=True)\n"
        "input()\n"
        "print(len(server.connections), len(server._registry._hosts), server.stats().ended, flush=True)\n"
        "input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            address = ("127.0.0.1", int(process.stdout.readline()))

            def sessions(count):
                for _ in range(count):
                    with socket.create_connection(address, DEADLINE) as sock:
                        sock.sendall(b"hello\nexit\n")
                        assert read_all(sock) == b"hello\n"

            sessions(1000)
            eventually(lambda: threads_of(process.pid) == 2)
            idle = (descriptors_of(process.pid), rss(process.pid))
            sessions(10_000)
            eventually(lambda: descriptors_of(process.pid) == idle[0])
            assert rss(process.pid) - idle[1] < 4 * MB
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "0 0 {'exit': 11000}\n"
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()


@pytest.mark.timeout(400)
def test_ten_thousand_connections_at_once_each_get_their_echo(server_command):
    count = 10_000
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < count + 500:
        pytest.skip(f"only {hard} descriptors may be opened here")
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 500 if hard == resource.RLIM_INFINITY else hard, hard))
    clients = []
    try:
        server = server_command("--no-log-messages", "-m", str(count + 10), "--shutdown-timeout", "2m")
        before = rss(server.pid)
        for _ in range(count):
            clients.append(socket.create_connection(server.address, DEADLINE * 3))
        for number, client in enumerate(clients):
            client.sendall(b"%d\n" % number)
        for number, client in enumerate(clients):
            expected = b"%d\n" % number
            assert read_exactly(client, len(expected)) == expected
        each = (rss(server.pid) - before) / count
        if getattr(sys, "_is_gil_enabled", lambda: True)():
            assert each < 40 * 1024, each
        assert server.terminate(timeout=120) == 0
        assert "stopped: 10000 sessions drained, 0 cut" in server.log
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_each_kind_of_bad_client_ends_as_its_reason_says(server_command, dial):
    server = server_command("-i", "1s", "--message-timeout", "1s")
    silent, dripping, half_closing, leaving = (dial(server.address) for _ in range(4))
    ports = [sock.getsockname()[1] for sock in (silent, dripping, half_closing, leaving)]
    half_closing.sendall(b"a\nb")
    half_closing.shutdown(socket.SHUT_WR)
    assert read_all(half_closing) == b"a\nb"
    leaving.sendall(b"exit\n")
    assert read_all(leaving) == b""
    gone = threading.Event()

    def drip():
        try:
            while not gone.wait(0.1):
                dripping.sendall(b"x")
        except OSError:
            pass

    thread = threading.Thread(target=drip)
    thread.start()
    assert read_all(silent) == b""
    for port, reason in zip(ports, ["idle", "slow", "eof", "exit"]):
        server.read_log_until(rf":{port} disconnected: {reason};")
    gone.set()
    thread.join()
