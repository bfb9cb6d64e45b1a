"""Hosts apart: two network namespaces with a cable that is pulled, peers that vanish, IPv6 with its zones; and a bad
path over the loopback, which delays, cuts up, stalls and breaks.

Each side is a program in its own right here, and says by its log, its verdicts and its exit code what it has met.
"""

import contextlib
import json
import os
import random
import re
import signal
import socket
import threading

import pytest

import echo
from echo.sockets import KEEP_ALIVE, undelivered
from support import DEADLINE, TESTS, Recorder, eventually, read_all, read_exactly
from support.measuring import echo_of, every_framing, finish, one_complaint, read_until
from support.networks import Host, Lan, LossyLan, Relay, Stream
from support.processes import descriptors_of

LIMITS = ["--max-connections", "1", "--log-level", "debug", "--no-log-messages"]
"""One slot, so that whoever comes next shows whether it is free; and each session's end with its cause."""

vanishing = pytest.mark.parametrize("how", ["unplugged", "deleted", "unrouted"])


@pytest.fixture
def lan(request):
    """A ``Lan``, or the kind that the test asks for; gone after the test (``needs_namespaces``)."""
    with contextlib.ExitStack() as stack:
        hosts = {name: stack.enter_context(contextlib.closing(Host())) for name in Lan.NAMES}
        yield stack.enter_context(contextlib.closing(getattr(request, "param", Lan)(hosts)))


@pytest.fixture
def relay():
    """``relay(server, seed=0)``: a ``Relay`` to a server or a process of one, closed after the test."""
    with contextlib.ExitStack() as stack:

        def start(server, seed=0):
            address = getattr(server, "server_address", None) or server.address
            return stack.enter_context(contextlib.closing(Relay(address, seed)))

        yield start


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
    """What SIGUSR1 brings."""
    before = len(server.log)
    server.popen.send_signal(signal.SIGUSR1)
    return server.read_log_until(rf"(?s)\A.{{{before}}}.*?statistics: ([^\n]*)\n").group(1)


def is_free_again(server, waiting, before):
    """Whether the server's one slot, and the descriptor of whoever had it, are free: who waited is served."""
    assert echoes(waiting)
    waiting.close()
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
    server.read_log_until(r"192\.0\.2\.2:\d+ disconnected: exit; 2 in \(21 B\), 1 out \(16 B\)")
    client = far_client(server, "-m", "one", "-m", "two")
    assert client.finish() == (0, b"one\ntwo\n")
    data = b"".join(b"line %06d\n" % number for number in range(20_000))
    assert far_client(server).finish(data) == (0, data)
    code, out = finish(far_client(server, "--ping", "-c", "3", "-i", "20ms"))
    assert code == 0 and "3 received, 0 corrupted, 0% loss" in out
    code, out = finish(far_client(server, "--bench", "-d", "1s", "-P", "4", "-J"))
    summary = json.loads(out.splitlines()[-1])
    assert code == 0 and summary["lost"] == 0 < summary["messages"], summary
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
    server.read_log_until(f"disconnected: eof; {lines} in .* {lines} out")


@lossy
@every_framing
def test_ping_and_bench_over_a_cable_that_loses_packets_find_late_replies_and_no_wrong_ones(
    lan, far_server, far_client, framing
):
    server = far_server("--no-log-messages", "--framing", framing)
    code, out = far_client(server, "--framing", framing, "--ping", "-c", "60", "-i", "10ms").finish()
    assert (code, "60 transmitted, 60 received, 0 corrupted, 0% loss" in out.decode()) == (0, True), out
    code, out = far_client(server, "--framing", framing, "--bench", "-d", "1s", "--depth", "20").finish()
    assert code == 0, out
    assert re.search(r"^wrong +0$", out.decode(), re.MULTILINE)
    assert re.search(r"^lost +0$", out.decode(), re.MULTILINE)
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


def test_ping_tells_what_was_lost_what_came_late_and_that_all_is_well_again(lan, far_server, far_client):
    client = far_client(far_server(), "--ping", "-i", "50ms", "-w", "300ms")
    read_until(client, r"seq=\d+ time=")
    lan.unplug("client")
    lost = read_until(client, r"seq=(\d+) lost: no reply after 0\.3 s").group(1)
    lan.plug("client")
    assert all_that_was_lost_came_late(client, lost)


def all_that_was_lost_came_late(ping, lost):
    """Whether a path recovers as TCP has it: what was given up comes late, all of it, in order."""
    read_until(ping, rf"seq={lost} late")
    well_again = int(read_until(ping, r"seq=(\d+) time=").group(1))
    ping.popen.send_signal(signal.SIGINT)
    code, out = finish(ping)
    told = {what: re.findall(rf"seq=(\d+) {what}", out) for what in ("lost", "late", "time")}
    late = [seq for seq in told["late"] if int(seq) < well_again]
    assert lost in late == [seq for seq in told["lost"] if int(seq) < well_again]
    assert told["time"] == sorted(told["time"], key=int)
    assert re.search(r" received, 0 corrupted, \d+ late, ([^,]+ on the way, )?[\d.]+% loss", out), out
    assert code == 1
    return True


# The client vanishes.


@vanishing
def test_a_client_that_vanished_is_idle_and_its_slot_is_free_again(lan, far_server, far_socket, dial, how):
    server = far_server(*LIMITS, "-i", "500ms")
    before = descriptors_of(server.pid)
    sock = far_socket(server)
    assert echoes(sock)
    with lan.server:
        waiting = dial(("127.0.0.1", server.address[1]))  # in the backlog: the only slot is taken
    lan.lose("client", how)
    sock.close()  # with a FIN that reaches nobody
    server.read_log_until(r"192\.0\.2\.2:\d+ disconnected: idle; 1 in")
    assert is_free_again(server, waiting, before)
    assert server.terminate() == 0


def test_a_client_that_vanished_inside_a_message_is_slow(lan, far_server, far_socket, dial):
    server = far_server(*LIMITS, "--message-timeout", "500ms")
    before = descriptors_of(server.pid)
    sock = far_socket(server)
    assert echoes(sock)
    sock.sendall(b"half a li")
    eventually(lambda: not undelivered(sock))
    with lan.server:
        waiting = dial(("127.0.0.1", server.address[1]))
    lan.lose("client")
    server.read_log_until(r"slow: a message was not complete after 0\.5 s")
    server.read_log_until(r"192\.0\.2\.2:\d+ disconnected: slow; 1 in")
    assert is_free_again(server, waiting, before)


def test_a_client_that_vanished_with_replies_on_their_way_is_slow(lan, far_server, far_socket, dial):
    server = far_server(*LIMITS, "--send-timeout", "500ms", "--handler", "support.measuring:Endless", cwd=TESTS)
    before = descriptors_of(server.pid)
    sock = far_socket(server)
    assert len(read_exactly(sock, 1 << 20)) == 1 << 20
    lan.lose("client")
    server.read_log_until(r"slow: the peer does not read what is sent to it")
    server.read_log_until(r"192\.0\.2\.2:\d+ disconnected: slow;")
    eventually(lambda: descriptors_of(server.pid) == before, "a descriptor is left")
    with lan.server:
        assert dial(("127.0.0.1", server.address[1])).recv(1)


def test_without_any_timeout_keep_alive_finds_out_on_both_sides(lan, monkeypatch):
    monkeypatch.setattr("echo.sockets.KEEP_ALIVE", dict.fromkeys(KEEP_ALIVE, 1))  # seconds, and one try
    handler = Recorder.of(echo.EchoRequestHandler)
    with lan.server:
        server = echo.Server(("0.0.0.0", 0), handler)
    with server.start():
        with lan.client:
            client = echo.connect((Lan.IPV4["server"], server.server_address[1]), timeout=None)
        assert client.echo(b"anybody there") == b"anybody there"
        lan.lose("client")
        with pytest.raises(echo.ConnectionClosed, match="the connection was lost"):
            client.recv()
        assert handler.ended.wait(DEADLINE)
        assert handler.reasons == ["reset"]
        eventually(lambda: not server.connections, "a slot is left")
        client.close()


def test_without_a_send_timeout_replies_that_nobody_acknowledges_find_out(lan, far_server, far_socket, dial):
    lan.server.set("ipv4/tcp_retries2", 2)  # the system's default takes a quarter of an hour
    server = far_server(*LIMITS, "--send-timeout", "0", "--handler", "support.measuring:Endless", cwd=TESTS)
    sock = far_socket(server)
    assert len(read_exactly(sock, 1 << 20)) == 1 << 20
    with lan.server:
        waiting = dial(("127.0.0.1", server.address[1]))
    lan.lose("client", "unrouted")
    server.read_log_until(r"reset: the connection was lost: \[Errno 110\] Connection timed out")
    server.read_log_until(r"192\.0\.2\.2:\d+ disconnected: reset;")
    assert waiting.recv(1)


# A stop while somebody has vanished.


def test_a_stop_does_not_wait_for_an_idle_client_that_vanished(lan, far_server, far_socket):
    server = far_server("--shutdown-timeout", "60s")
    assert echoes(far_socket(server))
    lan.lose("client")
    assert server.terminate() == 0  # nobody waits for anything
    assert "disconnected: drain" in server.log and "1 session drained, 0 cut" in server.log


def test_a_stop_ends_in_time_though_replies_are_on_their_way_to_a_client_that_vanished(
    lan,
    far_server,
    far_socket,
):
    server = far_server("--shutdown-timeout", "500ms", "--handler", "support.measuring:Endless", cwd=TESTS)
    sock = far_socket(server)
    assert len(read_exactly(sock, 1 << 20)) == 1 << 20
    lan.lose("client")
    assert server.terminate() == 1
    assert "draining 1 session, for 0.5 s at most" in server.log
    assert re.search(r"192\.0\.2\.2:\d+ cut: not done in time", server.log)
    assert "0 sessions drained, 1 cut" in server.log


def test_a_stop_waits_for_a_last_reply_to_a_client_that_vanished_no_longer_than_it_may(lan, far_server, far_socket):
    server = far_server("--shutdown-timeout", "500ms")
    sock = far_socket(server)
    assert echoes(sock)
    lan.server.ip("route", "add", "blackhole", Lan.IPV4["client"] + "/32")  # it is heard, and not answered
    sock.sendall(b"lost on its way back\n")
    server.read_log_until(r"sent 20 bytes: lost on its way back")
    assert server.terminate() == 1
    assert re.search(r"192\.0\.2\.2:\d+ disconnected: drain; 2 in .*, 2 out", server.log)
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
    with lan.client, echo.connect(server.address, timeout=0.3) as client:
        assert client.echo(b"still there") == b"still there"
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
    client = far_client(server, "-w", "500ms")
    client.popen.stdin.write(b"there and back\n")
    client.popen.stdin.flush()
    assert os.read(client.popen.stdout.fileno(), 100) == b"there and back\n"
    lan.lose("server")
    assert client.finish(b"never to return\n") == (1, b"")
    assert one_complaint(client, "nothing came back for 0.5 s; 16 bytes are missing")


def test_a_bench_of_a_server_that_vanished_ends_and_counts_the_loss(lan, far_server, far_client):
    server = far_server("--no-log-messages")
    client = far_client(server, "--bench", "-P", "2", "-d", "1s", "-w", "300ms")
    eventually(lambda: "messages_in 0" not in statistics(server))
    lan.lose("server")
    code, out = finish(client)
    assert (
        code == 1 and re.search(r"^lost +[1-9]", out, re.MULTILINE) and re.search(r"^wrong +0$", out, re.MULTILINE)
    ), out


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
    code, out = finish(far_client(server, "--bench", "-P", "2", "-d", "500ms", host="fe80::1%veth0"))
    assert code == 0 and f"BENCH [fe80::1%veth0]:{server.port}" in out


# A bad path: late, and in pieces.


def messages_for(framing, chance):
    """Messages of many lengths and of any bytes that the framing can carry."""
    lengths = [
        0,
        1,
        4095,
        4096,
        4097,
        60_000,
        *(chance.choice([1, 10, 100, 4000]) + chance.randrange(9) for _ in range(60)),
    ]
    chance.shuffle(lengths)
    made = [chance.getrandbits(8 * size or 1).to_bytes(size or 1, "big")[:size] for size in lengths]
    if framing == "line":
        made = [message.replace(b"\n", b"\r") for message in made]
    return [message for message in made if message or framing != "raw"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", ["ping-pong", "pipelined"])
@every_framing
def test_what_comes_late_and_in_pieces_comes_right(serve, relay, framing, how, seed):
    handler = Recorder.of(echo_of(framing))
    path = relay(serve(handler), seed)
    messages = messages_for(framing, random.Random(seed))
    with echo.connect(path.address, framing=handler.framing, timeout=DEADLINE) as client:
        if how == "ping-pong":
            assert [client.echo(message) for message in messages] == messages
        else:
            assert list(client.echo_many(messages)) == messages
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["eof"]
    received = handler.events[1:-1]
    if framing == "raw":
        messages, received = b"".join(messages), b"".join(received)
    assert received == messages


@every_framing
def test_a_pipe_through_a_bad_path_returns_every_byte(server_command, relay, run, framing):
    path = relay(server_command("--framing", framing, "--no-log-messages"))
    data = random.Random(framing).getrandbits(8 * 300_000).to_bytes(300_000, "big")
    client = run("echo.client", *where(path), "--framing", framing)
    assert client.finish(data) == (0, data)


@every_framing
def test_ping_and_bench_find_nothing_wrong_with_a_path_that_is_merely_bad(server_command, relay, run, framing):
    path = relay(server_command("--framing", framing, "--no-log-messages"))
    options = [*where(path), "--framing", framing, "-s", "2000"]
    code, out = finish(run("echo.client", *options, "--ping", "-c", "20", "-i", "0"))
    assert code == 0 and "20 received, 0 corrupted, 0% loss" in out
    code, out = finish(run("echo.client", *options, "--bench", "-P", "3", "--depth", "5", "-d", "500ms", "-J"))
    summary = json.loads(out.splitlines()[-1])
    assert code == 0 and summary["wrong"] == {} and summary["lost"] == 0 < summary["messages"], summary


def test_a_stop_behind_a_bad_path_cuts_no_reply_in_two(server_command, relay):
    server = server_command("--no-log-messages")
    path = relay(server)
    lines = [b"line %d of many" % number for number in range(20_000)]
    with echo.connect(path.address, timeout=DEADLINE) as client:
        replies = client.echo_many(lines, window=5000)
        returned = [next(replies) for _ in range(100)]
        server.popen.send_signal(signal.SIGTERM)
        with pytest.raises(echo.ConnectionClosed):
            returned.extend(replies)
        assert returned == lines[: len(returned)]
    assert server.finish()[0] == 0
    assert "disconnected: drain" in server.log


# A path that stalls, with somebody's patience at its end.


def where(path):
    return [path.address[0], str(path.address[1])]


@pytest.mark.parametrize("after, expected", [(0, echo.ReceiveTimeout), (40, echo.MessageTimeout)])
@pytest.mark.parametrize("framing", ["line", "length"])
def test_a_reply_that_stalls_is_a_timeout_and_comes_whole_when_it_goes_on(serve, relay, framing, after, expected):
    handler = echo_of(framing)
    path = relay(serve(handler))
    with echo.connect(path.address, framing=handler.framing, timeout=0.2) as client:
        path.replies.hold(after)
        client.send(b"x" * 100)
        assert path.replies.held.wait(DEADLINE)
        for _ in range(2):  # and again
            with pytest.raises(expected):
                client.recv()
        path.replies.go_on()
        assert until_it_comes(client) == b"x" * 100
        client.send(b"as before")
        assert until_it_comes(client) == b"as before"


def until_it_comes(client):
    while True:
        with contextlib.suppress(echo.ReceiveTimeout, echo.MessageTimeout):
            return client.recv()


def test_a_request_that_stalls_half_way_ends_as_slow(server_command, relay):
    server = server_command("--message-timeout", "500ms", "--log-level", "debug")
    path = relay(server)
    with echo.connect(path.address, timeout=DEADLINE) as client:
        assert client.echo(b"well") == b"well"
        path.requests.hold(after=40)
        client.send(b"x" * 100)
        with pytest.raises(echo.ConnectionClosed, match="ended the session"):
            client.recv()
    server.read_log_until(r"slow: a message was not complete after 0\.5 s\n")
    server.read_log_until(r"disconnected: slow; 1 in \(45 B\), 1 out")


def test_a_request_that_never_arrives_ends_as_idle(server_command, relay):
    server = server_command("-i", "500ms", "--log-level", "debug")
    path = relay(server)
    with echo.connect(path.address, timeout=DEADLINE) as client:
        assert client.echo(b"well") == b"well"
        path.requests.hold()
        client.send(b"x" * 100)
        with pytest.raises(echo.ConnectionClosed, match="ended the session"):
            client.recv()
    server.read_log_until(r"idle: nothing arrived for 0\.5 s\n")
    server.read_log_until(r"disconnected: idle; 1 in \(5 B\), 1 out")


def test_a_path_that_takes_no_replies_ends_as_slow(server_command, relay):
    server = server_command("--send-timeout", "300ms", "--log-level", "debug", "--no-log-messages")
    path = relay(server)
    before = descriptors_of(server.pid)
    path.replies.hold(after=100_000)
    lines = [b"%09d" % number * 100 for number in range(20_000)]
    returned = []
    with echo.connect(path.address, timeout=DEADLINE) as client:
        with pytest.raises(echo.ConnectionClosed):
            for line in client.echo_many(lines, window=len(lines)):
                returned.append(line)
    assert returned == lines[: len(returned)]
    server.read_log_until(r"slow: the peer does not read what is sent to it\n")
    server.read_log_until(r"disconnected: slow;")
    eventually(lambda: descriptors_of(server.pid) == before, "a descriptor is left")


def test_a_ping_over_a_path_that_stalls_tells_what_is_lost_and_what_is_late(server_command, relay, run):
    path = relay(server_command())
    client = run("echo.client", *where(path), "--ping", "-i", "20ms", "-w", "200ms")
    read_until(client, r"seq=\d+ time=")
    path.replies.hold(after=10)
    lost = read_until(client, r"seq=(\d+) lost: no reply after 0\.2 s").group(1)
    path.replies.go_on()
    assert all_that_was_lost_came_late(client, lost)


# A path that breaks.


def test_a_path_that_breaks_is_a_lost_connection_on_both_sides(server_command, relay):
    server = server_command("--no-log-messages", "--log-level", "debug")
    path = relay(server)
    lines = [b"line %09d" % number for number in range(50_000)]
    path.replies.hold(after=12_345)  # inside a line
    returned = []
    with echo.connect(path.address, timeout=DEADLINE) as client:
        breaker = threading.Thread(target=lambda: path.replies.held.wait(DEADLINE) and path.reset())
        breaker.start()
        with pytest.raises(echo.ConnectionClosed, match="the connection was lost"):
            for line in client.echo_many(lines):
                returned.append(line)
        breaker.join(DEADLINE)
    assert returned == lines[: len(returned)] and len(returned) <= 12_345 // 15
    server.read_log_until(r"reset: the connection was lost: \[Errno 104\]")
    server.read_log_until(r"disconnected: reset;")
    path.replies.go_on()
    with echo.connect(path.address, timeout=DEADLINE) as client:
        assert client.echo(b"a new day") == b"a new day"


def test_a_ping_over_a_path_that_breaks_connects_again(server_command, relay, run):
    server = server_command("--no-log-messages")
    path = relay(server)
    client = run("echo.client", *where(path), "--ping", "-i", "20ms", "-w", "20s")
    read_until(client, r"seq=\d+ time=")
    path.replies.hold(after=10)  # bytes of a reply
    assert path.replies.held.wait(DEADLINE)
    path.reset()
    path.replies.go_on()
    read_until(client, r"lost: the connection was lost: Connection reset by peer")
    read_until(client, r"connected in")
    read_until(client, r"seq=\d+ time=")
    client.popen.send_signal(signal.SIGINT)
    code, out = finish(client)
    assert code == 1 and " 0 corrupted" in out
    server.read_log_until(r"disconnected: reset;")


def test_a_pipe_over_a_path_that_breaks_ends_with_what_has_come_back(server_command, relay, run):
    path = relay(server_command("--no-log-messages"))
    data = b"".join(b"line %09d\n" % number for number in range(10_000))
    path.replies.hold(after=12_345)
    client = run("echo.client", *where(path))
    breaker = threading.Thread(target=lambda: path.replies.held.wait(DEADLINE) and path.reset())
    breaker.start()
    code, out = client.finish(data)
    breaker.join(DEADLINE)
    assert code == 1 and data.startswith(out)
    assert one_complaint(client, "the connection was lost: [Errno 104] Connection reset by peer")


def test_a_path_that_falls_silent_is_given_up_by_the_clients_command(server_command, relay, run):
    path = relay(server_command("--no-log-messages"))
    path.replies.hold()
    client = run("echo.client", *where(path), "-w", "300ms", "-m", "hello")
    assert finish(client) == (1, "")
    assert one_complaint(client, "nothing arrived for 0.3 s")
    client = run("echo.client", *where(path), "-w", "300ms", "--bench", "-P", "2", "-d", "200ms", "-J")
    code, out = finish(client)
    assert code == 1 and json.loads(out.splitlines()[-1])["lost"] == 2
