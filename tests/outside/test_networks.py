"""Separate hosts: two network namespaces with a cable that is pulled, peers that vanish, IPv6 with its zones.

Each side is a process here. Its log, its verdicts and its exit code show what it has met.
"""

import contextlib
import json
import os
import re
import signal
import socket
import threading

import pytest

import echo
from echo.sockets import KEEP_ALIVE, undelivered
from support import DEADLINE, TESTS, Recorder, eventually, read_all, read_exactly, reset
from support.measuring import Endless, every_framing, finish, one_complaint, read_until
from support.networks import Host, Lan, LossyLan, Stream, all_that_was_lost_came_late, bench_finds_nothing_wrong
from support.processes import descriptors_of

pytestmark = pytest.mark.needs_namespaces

LIMITS = ["--max-connections", "1", "--log-level", "debug", "--no-log-messages"]
"""One slot, so that the next client shows whether it is free; and each session's end with its cause."""

vanishing = pytest.mark.parametrize("how", ["unplugged", "deleted", "unrouted"])


@pytest.fixture
def lan(request):
    """A ``Lan``, or the class that the test names; removed after the test (``needs_namespaces``)."""
    with contextlib.ExitStack() as stack:
        hosts = {name: stack.enter_context(contextlib.closing(Host())) for name in Lan.NAMES}
        yield stack.enter_context(contextlib.closing(getattr(request, "param", Lan)(hosts)))


@pytest.fixture
def far_server(lan, server_command):
    """``far_server(*options)``: ``python -m echo.server`` on the server's host, at its IPv4 address."""

    def start(*options, bind="0.0.0.0", **popen_options):
        with lan.server:
            process = server_command("-b", bind, *options, **popen_options)
        process.port = str(process.address[1])
        process.address = (Lan.IPV4["server"], process.address[1])
        return process

    return start


@pytest.fixture
def far_client(lan, run):
    """``far_client(server, *options, host=...)``: ``python -m echo.client`` on the client's host."""

    def start(server, *options, host=Lan.IPV4["server"], **popen_options):
        with lan.client:
            return run("echo.client", host, server.port, *options, **popen_options)

    return start


@pytest.fixture
def far_socket(lan, dial):
    """``far_socket(server)``: a raw socket from the client's host."""

    def connect(server):
        with lan.client:
            return dial(server.address)

    return connect


def echoes(sock, line=b"anybody there\n"):
    sock.sendall(line)
    return read_exactly(sock, len(line)) == line


def statistics(server):
    """The log record after SIGUSR1."""
    before = len(server.log)
    server.popen.send_signal(signal.SIGUSR1)
    return server.read_log_until(rf"(?s)\A.{{{before}}}.*?statistics: ([^\n]*)\n").group(1)


@contextlib.contextmanager
def reading(sock):
    """A thread reads the replies. The block begins after a megabyte, or at the end: on a busy machine this client may
    be too slow, and its server then rightly ends the session."""
    begun, over = threading.Event(), threading.Event()

    def read():
        received = 0
        with contextlib.suppress(OSError):
            while not over.is_set():
                data = sock.recv(65536)
                received += len(data)
                if received >= 1 << 20:
                    begun.set()
                if not data:
                    break
        begun.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(DEADLINE)
    try:
        yield
    finally:
        over.set()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RD)
        thread.join(DEADLINE)


def is_free_again(lan, server, before):
    """Whether the server's one slot and its descriptor are free: the next client is served."""

    def is_served():
        with contextlib.suppress(ConnectionError):  # on a busy machine a client may be idle before its first message
            with socket.create_connection(("127.0.0.1", server.address[1]), DEADLINE) as sock:
                return echoes(sock)

    with lan.server:
        eventually(is_served, "the next client is not served")
    eventually(lambda: descriptors_of(server.pid) == before, "a descriptor is left")
    eventually(lambda: "active 0" in statistics(server), "a slot is left")
    return True


# An ordinary day.


def test_clients_on_another_host_are_served_and_logged_with_their_address(far_server, far_client, far_socket):
    server = far_server()
    sock = far_socket(server)
    assert echoes(sock, b"hello from afar\n")
    sock.sendall(b"exit\n")
    assert read_all(sock) == b""
    server.read_log_until(r"192\.0\.2\.2:\d+ disconnected: exit; 2 in \(1 exit\), 1 out; 21 B read, 16 B written")
    client = far_client(server, "-m", "one", "-m", "two")
    assert client.finish() == (0, b"one\ntwo\n")
    data = b"".join(b"line %06d\n" % number for number in range(20_000))
    assert far_client(server).finish(data) == (0, data)
    code, out = finish(far_client(server, "--ping", "-c", "3", "-i", "20ms"))
    assert code == 0 and "3 received, 0 corrupted, 0 lost, 0% loss" in out
    bench_finds_nothing_wrong(far_client(server, "--bench", "-d", "10m", "-P", "4", "-J"))
    assert server.terminate() == 0


def test_a_network_that_is_refused_is_refused_by_its_address(far_server, far_socket):
    server = far_server("--deny", "192.0.2.2/31")
    assert read_all(far_socket(server)) == b""
    server.read_log_until(r"192\.0\.2\.2:\d+ refused: denied")


# The cable is pulled and put back.


@pytest.mark.parametrize("end", Lan.NAMES)
def test_a_stream_outlives_a_pulled_cable_and_every_byte_is_right(lan, far_server, far_socket, end):
    server = far_server("--no-log-messages")
    stream = Stream(far_socket(server))
    stream.advance()
    for _ in range(2):
        lan.unplug(end)
        eventually(lan.is_losing, "nothing was lost")
        lan.plug(end)
        stream.advance()
    stream.finish()
    server.read_log_until(r"disconnected: eof")
    assert server.terminate() == 0


lossy = pytest.mark.parametrize("lan", [LossyLan], indirect=True, ids=["lossy"])


@lossy
def test_a_stream_over_a_cable_that_loses_and_swaps_packets_is_right_to_the_byte(lan, far_server, far_socket):
    server = far_server("--no-log-messages")
    stream = Stream(far_socket(server))
    stream.advance(30000)
    eventually(lambda: lan.lost > 10 and lan.overtaken > 10)
    stream.finish()
    lines = str(stream.returned)
    server.read_log_until(f"disconnected: eof; {lines} in, {lines} out")


@lossy
@every_framing
def test_ping_and_bench_over_a_cable_that_loses_packets_find_late_replies_and_no_wrong_ones(
    lan, far_server, far_client, framing
):
    server = far_server("--no-log-messages", "--framing", framing)
    options = ("--framing", framing, "-w", "1m")
    code, out = far_client(server, *options, "--ping", "-c", "60", "-i", "10ms").finish()
    assert (code, "60 transmitted, 60 received, 0 corrupted, 0 lost, 0% loss" in out.decode()) == (0, True), out
    bench_finds_nothing_wrong(far_client(server, *options, "--bench", "-d", "10m", "--depth", "20", "-J"))
    assert lan.lost and lan.overtaken


def test_a_pipe_outlives_a_pulled_cable(lan, far_server, far_client):
    server = far_server("--no-log-messages")
    client = far_client(server)
    line = b"line %09d\n"
    client.popen.stdin.write(line % 1)
    client.popen.stdin.flush()
    assert os.read(client.popen.stdout.fileno(), 100) == line % 1
    lan.unplug("client")
    rest = b"".join(line % number for number in range(2, 10_000))
    writer = threading.Thread(target=client.popen.stdin.write, args=(rest,))
    writer.start()
    eventually(lan.is_losing, "nothing was lost")
    lan.plug("client")
    writer.join(DEADLINE)
    assert client.finish() == (0, rest)
    assert server.terminate() == 0


def test_ping_reports_lost_and_late_replies_and_the_end_of_the_outage(lan, far_server, far_client):
    client = far_client(far_server(), "--ping", "-i", "50ms", "-w", "300ms")
    read_until(client, r"seq=\d+ time=")
    lan.unplug("client")
    lost = read_until(client, r"seq=(\d+) lost: no reply after 0\.3 s").group(1)
    lan.plug("client")
    assert all_that_was_lost_came_late(client, lost)


# The client vanishes.


@vanishing
def test_a_client_that_vanished_is_idle_and_its_slot_is_free_again(lan, far_server, far_socket, how):
    server = far_server(*LIMITS, "-i", "300ms")
    before = descriptors_of(server.pid)
    sock = far_socket(server)
    lan.lose("client", how)
    sock.close()  # with a FIN that reaches nobody
    server.read_log_until(r"192\.0\.2\.2:\d+ disconnected: idle; 0 in")
    assert is_free_again(lan, server, before)
    assert server.terminate() == 0


def test_a_client_that_vanished_inside_a_message_is_slow(lan, far_server, far_socket):
    server = far_server(*LIMITS, "--message-timeout", "300ms")
    before = descriptors_of(server.pid)
    sock = far_socket(server)
    assert echoes(sock)
    sock.sendall(b"half a li")
    eventually(lambda: not undelivered(sock))
    lan.lose("client")
    server.read_log_until(r"slow: a message was not complete after 0\.3 s")
    server.read_log_until(r"192\.0\.2\.2:\d+ disconnected: slow; 1 in")
    assert is_free_again(lan, server, before)


def test_a_client_that_vanished_with_replies_on_their_way_is_slow(lan, far_server, far_socket, dial):
    server = far_server(*LIMITS, "--send-timeout", "300ms", "--handler", "support.measuring:Endless", cwd=TESTS)
    before = descriptors_of(server.pid)
    with reading(far_socket(server)):
        lan.lose("client")
    server.read_log_until(r"slow: the peer does not read what is sent to it")
    server.read_log_until(r"192\.0\.2\.2:\d+ disconnected: slow;")
    eventually(lambda: descriptors_of(server.pid) == before, "a descriptor is left")
    with lan.server:
        assert dial(("127.0.0.1", server.address[1])).recv(1)


def hasten_keep_alive(sock):
    """Probe once, after a second, and wait a second for an answer or an acknowledgement; only where probes are on."""
    for name, value in KEEP_ALIVE.items():
        if sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value:
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), 1000 if name == "TCP_USER_TIMEOUT" else 1)


def test_without_any_timeout_keep_alive_finds_out_on_both_sides(lan):
    handler = Recorder.of(echo.EchoRequestHandler)
    with lan.server:
        server = echo.Server(("0.0.0.0", 0), handler)
    hasten_keep_alive(server.socket)  # accepted sockets inherit it
    with server.start():
        with lan.client:
            client = echo.connect((Lan.IPV4["server"], server.server_address[1]), timeout=None)
        hasten_keep_alive(client.connection.socket)
        assert client.echo(b"anybody there") == b"anybody there"
        lan.lose("client")
        with pytest.raises(echo.ConnectionClosed, match="the connection was lost"):
            client.recv()
        assert handler.ended.wait(DEADLINE)
        assert handler.reasons == ["reset"]
        eventually(lambda: not server.connections, "a slot is left")
        client.close()


def test_replies_that_nobody_acknowledges_find_out_before_the_send_timeout(lan, dial):
    """Row 66: the system's default takes a quarter of an hour."""
    with lan.server:
        server = echo.Server(("0.0.0.0", 0), type("Endless", (Endless,), {"send_timeout": 2 * DEADLINE}))
    hasten_keep_alive(server.socket)
    with server.start():
        with lan.client:
            sock = dial((Lan.IPV4["server"], server.server_address[1]))
        assert len(read_exactly(sock, 1 << 20)) == 1 << 20
        with lan.server:
            waiting = dial(("127.0.0.1", server.server_address[1]))
        lan.lose("client", "unrouted")
        eventually(lambda: server.stats().ended == {"reset": 1})
        assert waiting.recv(1)
        reset(waiting)


# A stop after a peer has vanished.


def test_a_stop_does_not_wait_for_an_idle_client_that_vanished(lan, far_server, far_socket):
    server = far_server("--shutdown-timeout", "60s")
    assert echoes(far_socket(server))
    lan.lose("client")
    assert server.terminate() == 0  # no side waits
    assert "disconnected: drain" in server.log and "1 session drained, 0 cut" in server.log


def test_a_stop_ends_in_time_though_replies_are_on_their_way_to_a_client_that_vanished(
    lan,
    far_server,
    far_socket,
):
    server = far_server("--shutdown-timeout", "300ms", "--handler", "support.measuring:Endless", cwd=TESTS)
    sock = far_socket(server)
    assert len(read_exactly(sock, 1 << 20)) == 1 << 20
    lan.lose("client")
    assert server.terminate() == 1
    assert "draining 1 session, for 0.3 s at most" in server.log
    assert re.search(r"192\.0\.2\.2:\d+ cut: not done in time", server.log)
    assert "0 sessions drained, 1 cut" in server.log


def test_a_stop_waits_for_a_last_reply_to_a_client_that_vanished_no_longer_than_it_may(lan, far_server, far_socket):
    server = far_server("--shutdown-timeout", "300ms")
    sock = far_socket(server)
    assert echoes(sock)
    lan.server.ip("route", "add", "blackhole", Lan.IPV4["client"] + "/32")  # it arrives, and gets no reply
    sock.sendall(b"lost on its way back\n")
    server.read_log_until(r"sent 20 bytes: lost on its way back")
    assert server.terminate() == 1
    assert re.search(r"192\.0\.2\.2:\d+ disconnected: drain; 2 in, 2 out", server.log)
    assert "0 sessions drained, 1 cut" in server.log


# The server vanishes.


def test_a_client_command_gives_a_server_up_that_cannot_be_reached(lan, far_server, far_client):
    server = far_server()
    lan.lose("server")
    for mode in (["-m", "hello"], ["--bench"], []):
        client = far_client(server, "-w", "300ms", *mode)
        assert finish(client) == (1, "")
        assert one_complaint(client, f"cannot connect to 192.0.2.1:{server.port}: timed out")
    code, out = finish(far_client(server, "-w", "300ms", "--ping", "-c", "2", "-i", "10ms"))
    assert code == 1 and out.count("lost: cannot connect: timed out") == 2 and "100% loss" in out


def test_a_client_gives_a_server_up_that_vanished(lan, far_server):
    server = far_server("--no-log-messages")
    with lan.client, echo.connect(server.address, timeout=DEADLINE) as patient:
        assert patient.echo(b"still there") == b"still there"
        client = echo.Client(patient.connection.socket, timeout=0.1)
        lan.lose("server")
        with pytest.raises(echo.ReceiveTimeout):
            client.echo(b"gone")
        with pytest.raises(echo.SendTimeout):
            while True:
                client.send(b"x" * 60_000)
        with pytest.raises(echo.SendTimeout):  # part of a message went out: no other may follow
            client.send(b"x")


def test_a_pipe_to_a_server_that_vanished_says_how_much_is_missing(lan, far_server, far_client):
    server = far_server("--no-log-messages")
    client = far_client(server, "-w", "300ms")
    server.read_log_until("connected")
    lan.lose("server")
    assert client.finish(b"never to return\n") == (1, b"")
    assert one_complaint(client, "nothing came back for 0.3 s; 16 bytes are missing")


def test_a_bench_of_a_server_that_vanished_ends_and_counts_the_loss(lan, far_server, far_client):
    server = far_server("--no-log-messages")
    client = far_client(server, "--bench", "-P", "2", "-d", "10m", "-w", "300ms", "-J")
    eventually(lambda: "messages_in 0" not in statistics(server))
    lan.lose("server")
    read_until(client, r'"lost": [1-9]')
    client.popen.send_signal(signal.SIGINT)
    code, out = finish(client)
    summary = json.loads(out.splitlines()[-1])
    assert code == 1 and summary["wrong"] == {} and summary["lost"] > 0, out


# IPv6.


@pytest.mark.parametrize(
    "host, peer", [("fd00::1", "fd00::2"), ("fe80::1%veth0", "fe80::2%veth0"), ("192.0.2.1", "192.0.2.2")]
)
def test_a_server_on_all_addresses_serves_both_families(far_server, far_client, host, peer):
    server = far_server(bind="::")
    client = far_client(server, "-m", "hello", "-v", host=host)
    assert client.finish() == (0, b"hello\n")
    shown = f"[{host}]" if ":" in host else host
    assert f"connected to {shown}:{server.port}" in client.log
    named = server.read_log_until(r"INFO    (\S+):\d+ disconnected: eof; 1 in").group(1)
    assert named == (f"[{peer}]" if ":" in peer else peer)


def test_access_lists_know_a_client_by_its_own_address_on_a_socket_for_both_families(far_server, far_client):
    server = far_server("--allow", "192.0.2.0/24", "--allow", "fe80::/10", bind="::")
    for host in ("192.0.2.1", "fe80::1%veth0"):
        assert far_client(server, "-m", "hello", host=host).finish() == (0, b"hello\n")
    client = far_client(server, "-m", "hello", host="fd00::1")
    assert client.finish() == (1, b"")
    server.read_log_until(r"\[fd00::2\]:\d+ refused: denied")


def test_a_server_on_an_ipv6_address_serves_that_alone(far_server, far_client):
    server = far_server(bind="fd00::1")
    assert far_client(server, "-m", "hello", host="fd00::1").finish() == (0, b"hello\n")
    for host in ("192.0.2.1", "fe80::1%veth0"):
        client = far_client(server, "-m", "hello", host=host)
        assert finish(client) == (1, "")
        assert one_complaint(client, "nothing listens on")


@pytest.mark.parametrize("zone", ["veth0", "index"])
def test_a_server_on_a_link_local_address_serves_its_link(lan, far_server, far_client, zone):
    with lan.server:
        index = socket.if_nametoindex("veth0")
    server = far_server(bind="fe80::1%veth0" if zone == "veth0" else f"fe80::1%{index}")
    assert f"listening on [fe80::1%veth0]:{server.port}" in server.log
    assert far_client(server, "-m", "hello", host="fe80::1%veth0").finish() == (0, b"hello\n")
    server.read_log_until(r"\[fe80::2%veth0\]:\d+ disconnected: eof; 1 in")


def test_a_link_local_address_without_its_zone_is_refused_with_the_advice_to_give_it(lan, far_server, far_client, run):
    client = far_client(far_server(bind="::"), "-m", "hello", host="fe80::1")
    assert finish(client) == (1, "")
    assert one_complaint(client, "a link-local address needs its interface, like fe80::1%eth0")
    with lan.server:
        server = run("echo.server", "0", "-b", "fe80::1")
    assert finish(server) == (1, "")
    assert server.log.endswith("a link-local address needs its interface, like fe80::1%eth0\n")


def test_ping_and_bench_reach_a_link_local_address_by_its_zone(far_server, far_client):
    server = far_server("--no-log-messages", bind="::")
    code, out = finish(far_client(server, "--ping", "-c", "2", "-i", "10ms", host="fe80::1%veth0"))
    assert code == 0 and out.count(f"64 bytes from [fe80::1%veth0]:{server.port}: seq=") == 2
    bench = far_client(server, "--bench", "-P", "2", "-d", "10m", "-J", host="fe80::1%veth0")
    assert f'"address": "[fe80::1%veth0]:{server.port}"' in bench_finds_nothing_wrong(bench)


# A connection to itself.


def test_a_client_never_takes_its_own_port_for_a_server(lan, run):
    """Row 48: without a listener, TCP may connect a port in the range of client ports to itself."""
    with lan.client:
        with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as file:
            file.write("40000 40003")
        process = run("echo.client", "127.0.0.1", "40002", "--ping", "-i", "10ms", "-c", "30", "-w", "1s")
    code, out = process.finish()
    assert code == 1
    assert "nothing listens on 127.0.0.1:40002" in process.log or b" 0 received" in out
