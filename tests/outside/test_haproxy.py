"""Behind a real HAProxy, with the configuration that examples/haproxy/ gives: one of three servers is replaced under
load, and nobody loses a reply who was not being served by it."""

import collections
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

import echo
from support import DEADLINE, ROOT, eventually

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
CONFIGURATION = os.path.join(ROOT, "examples", "haproxy", "haproxy.cfg")
CLIENTS = "127.0.0.2"  # where the clients come from: another host than the proxy's, as far as anyone can tell
CLEAN_END = "the server has ended the session"  # what a Client says of the end of its input, and of no reset
PORTS = ["65432", "65433", "65434", "65435"]  # of the frontend, and of the three servers

pytestmark = [
    pytest.mark.skipif(HAPROXY is None, reason="there is no haproxy here"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the loopback has one address"),
]


def free_ports(count):
    with_port = [socket.socket() for _ in range(count)]
    for sock in with_port:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in with_port]
    for sock in with_port:
        sock.close()
    return ports


class Logged:
    """A process whose log goes to a file: nobody has to read a pipe while the load is on."""

    def __init__(self, start, path):
        self.path = path
        with open(path, "wb") as file:
            self.process = start(file)

    @property
    def log(self):
        with open(self.path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def until(self, pattern, count=1):
        eventually(lambda: len(re.findall(pattern, self.log)) >= count, f"not {count} times {pattern!r} in {self.path}")
        return time.monotonic()

    def peers(self, event, level="INFO"):
        """Whom the lines of this event and level are about, one entry a line."""
        return re.findall(rf" {level} +(\S+) {event}", self.log)


@pytest.fixture
def behind(run, tmp_path):
    """``behind(name, port)``: a server as README of the example starts it."""
    starts = collections.Counter()

    def start(name, port):
        options = ["--proxy-protocol", "--proxy-allow-from", "127.0.0.1", "--no-log-messages", "--log-level", "debug"]
        starts[name] += 1
        server = Logged(
            lambda file: run("echo.server", str(port), *options, stderr=file), tmp_path / f"{name}{starts[name]}.log"
        )
        server.until("listening on ")
        return server

    return start


@pytest.fixture
def haproxy(tmp_path):
    """``haproxy(ports)``: HAProxy with the example's configuration, on these ports instead of its own."""
    processes = []

    def start(ports):
        with open(CONFIGURATION, encoding="utf-8") as file:
            text = file.read()
        for written, port in zip(PORTS, ports):
            assert text.count(f":{written}\n") == 1
            text = text.replace(f":{written}\n", f":{port}\n")
        (tmp_path / "haproxy.cfg").write_text(text)
        command = [HAPROXY, "-f", str(tmp_path / "haproxy.cfg")]
        balancer = Logged(lambda file: subprocess.Popen(command, stderr=file, stdout=file), tmp_path / "haproxy.log")
        processes.append(balancer.process)

        def answers():
            assert balancer.process.poll() is None, balancer.log
            try:
                with connect(("127.0.0.1", ports[0])) as client:
                    return client.echo(b"hello") == b"hello"
            except ConnectionRefusedError:
                return False

        eventually(answers)
        balancer.until(" echo servers/")  # and that session is over, for HAProxy too
        return balancer

    yield start
    for process in processes:
        process.kill()
        process.wait()


def connect(address):
    """``echo.connect``, from where the clients are."""
    sock = socket.create_connection(address, DEADLINE, (CLIENTS, 0))
    sock.settimeout(None)
    return echo.Client(sock, timeout=DEADLINE)


def address_of(client):
    return "%s:%d" % client.connection.socket.getsockname()


class Load:
    """Clients that compare each echo, some in short sessions and some in one that lasts, and connect again."""

    def __init__(self, address, short=6, lasting=6):
        self.address = address
        self.echoes = 0
        self.own = set()  # the address of each session that has had an echo
        self.cut = set()  # the address of each session that the server ended, with one message on its way
        self.failures = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(number, 20 if number < short else None), daemon=True)
            for number in range(short + lasting)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info):
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE)

    def until_more(self, echoes):
        goal = self.echoes + echoes
        eventually(lambda: self.echoes >= goal or self.failures, f"no {echoes} more echoes")

    def _work(self, number, length):
        while not self._stop.is_set():
            try:
                self._hold_session(number, length)
            except Exception as exc:
                self.failures.append(repr(exc))

    def _hold_session(self, number, length):
        with connect(self.address) as client:
            own = address_of(client)
            done = 0
            while not self._stop.is_set() and done != length:
                message = b"%d %d of %s" % (done, number, own.encode())
                try:
                    client.echo(message)  # raises EchoMismatch if something else comes back
                except echo.ConnectionClosed as exc:
                    if str(exc) != CLEAN_END:
                        raise
                    with self._lock:
                        self.cut.add(own)
                    return
                done += 1
                with self._lock:
                    self.echoes += 1
                    self.own.add(own)


def test_a_server_is_drained_and_replaced_under_load_and_nobody_else_loses_an_echo(behind, haproxy):
    ports = free_ports(4)
    servers = {name: behind(name, port) for name, port in zip("abc", ports[1:])}
    balancer = haproxy(ports)
    address = ("127.0.0.1", ports[0])
    # One on each, since the next is always for who has the fewest.
    held = {address_of(client): client for client in [connect(address) for _ in servers]}
    for client in held.values():
        assert client.echo(b"hello") == b"hello"
    with Load(address) as load:
        for server in servers.values():
            server.until(" disconnected: eof", 5)  # each has its part of the load
        load.until_more(1000)
        old = servers["b"]
        begun = time.monotonic()
        old.process.popen.terminate()
        assert old.process.popen.wait(DEADLINE) == 0
        drained = time.monotonic() - begun
        removed = balancer.until(r"Server servers/b is DOWN") - begun
        load.until_more(1000)
        new = behind("b", ports[2])
        begun = time.monotonic()
        back = balancer.until(r"Server servers/b is UP") - begun
        new.until(" INFO .* disconnected: eof", 5)
        load.until_more(1000)
    drained_sessions = set(old.peers("disconnected: drain"))
    for own, client in held.items():
        if own in drained_sessions:
            with pytest.raises(echo.ConnectionClosed, match=CLEAN_END):
                client.recv()
        else:
            assert client.echo(b"still here") == b"still here"
        client.close()
    assert len(drained_sessions & set(held)) == 1
    rest = [servers["a"], servers["c"], new]
    for server in rest:
        assert server.process.terminate() == 0
    print(
        f"\n{load.echoes} echoes in {len(load.own)} sessions, none wrong;"
        f" {len(drained_sessions)} sessions drained in {drained:.2f} s, {len(load.cut)} with a message on its way;"
        f" out after {removed:.2f} s, back after {back:.2f} s"
    )
    assert load.failures == []
    assert re.search(r"stopped: \d+ sessions? drained, 0 cut", old.log)
    # Each session that was ended was open on that server, and its client saw a clean end, else it were a failure. Of
    # those whose header was still on its way the server has only the proxy's address.
    nameless = old.peers("drained before its session began", "DEBUG")
    assert len(load.cut - drained_sessions) <= len(nameless)

    # Those whom HAProxy first sent to the server that had just stopped were sent to another.
    assert re.search(r" echo servers/[ac] \S+ \d+ -- [\d/]+/\+\d ", balancer.log)

    # Whom the logs name: real clients, and the probes to nobody who does not ask for them.
    connected = [peer for server in [old, *rest] for peer in server.peers("connected via 127.0.0.1:")]
    assert load.own | set(held) <= set(connected)
    for server in [old, *rest]:
        assert server.peers("connected", "DEBUG"), "there were no probes"
        told = re.findall(r" INFO +(127\S+) ", server.log)
        assert {peer.partition(":")[0] for peer in told} == {CLIENTS}
        assert not re.search("WARNING|ERROR|Traceback", server.log)
