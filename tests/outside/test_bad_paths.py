"""A bad path over the loopback: it delays, splits, stalls and breaks. TCP shows a program nothing else of a bad path.

``support/networks.py`` has the path, a relay that tests control to the byte.
"""

import contextlib
import json
import logging
import os
import random
import signal
import threading

import pytest

import echo
from echo.sockets import unread
from support import DEADLINE, Recorder, eventually
from support.measuring import echo_of, every_framing, finish, one_complaint, read_until
from support.networks import Relay, all_that_was_lost_came_late, bench_finds_nothing_wrong
from support.processes import descriptors_of

PATIENT = ("-w", "1m")
"""For a client on a machine that may be busy."""


@pytest.fixture
def relay(serve):  # its servers stop after the relays are closed, so they wait for no client
    """``relay(server, seed=0)``: a ``Relay`` to a server or a process of one, closed after the test."""
    with contextlib.ExitStack() as stack:

        def start(server, seed=0):
            address = getattr(server, "server_address", None) or server.address
            return stack.enter_context(contextlib.closing(Relay(address, seed)))

        yield start


def where(path):
    return [path.address[0], str(path.address[1])]


def recorded(framing="line", **settings):
    """An echo handler that logs and records its hooks. Its timeouts are ``DEADLINE``, except for these settings."""
    settings = {"message_timeout": DEADLINE, "send_timeout": DEADLINE, **settings}
    return Recorder.of(type("Handler", (echo.LoggingMixin, echo_of(framing)), settings))


def ended_as(handler, reason):
    """Whether the one session has ended for this reason."""
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == [reason]
    return True


@pytest.fixture
def log(caplog):
    """The log of the servers, debug messages included."""
    caplog.set_level(logging.DEBUG)
    return lambda: caplog.text


# Late, and in pieces.


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
    if framing in ("line", "crlf"):
        made = [message.replace(b"\n", b"\r") for message in made]
    return [message for message in made if message or framing != "raw"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", ["ping-pong", "pipelined"])
@every_framing
def test_bytes_that_come_late_and_in_pieces_are_read_correctly(serve, relay, framing, how, seed):
    handler = recorded(framing)
    path = relay(serve(handler), seed)
    messages = messages_for(framing, random.Random(seed))
    with echo.connect(path.address, framing=handler.framing, timeout=DEADLINE) as client:
        if how == "ping-pong":
            assert [client.echo(message) for message in messages] == messages
        else:
            assert list(client.echo_many(messages)) == messages
    assert ended_as(handler, "eof")
    received = handler.events[1:-1]
    if framing == "raw":
        messages, received = b"".join(messages), b"".join(received)
    assert received == messages


@every_framing
def test_a_pipe_through_a_bad_path_returns_every_byte(serve, relay, run, framing):
    path = relay(serve(recorded(framing)))
    data = random.Random(framing).getrandbits(8 * 100_000).to_bytes(100_000, "big")
    client = run("echo.client", *where(path), *PATIENT, "--framing", framing)
    assert client.finish(data) == (0, data)


@every_framing
def test_ping_finds_nothing_wrong_with_a_path_that_is_merely_bad(serve, relay, run, framing):
    path = relay(serve(recorded(framing)))
    options = ("--framing", framing, "-s", "2000", "--ping", "-c", "20", "-i", "0")
    code, out = finish(run("echo.client", *where(path), *PATIENT, *options))
    assert code == 0 and "20 received, 0 corrupted, 0 lost, 0% loss" in out


@pytest.mark.slow
@every_framing
def test_bench_finds_nothing_wrong_with_a_path_that_is_merely_bad(serve, relay, run, framing):
    path = relay(serve(echo_of(framing)))
    options = ("--framing", framing, "-s", "2000", "--bench", "-P", "3", "--depth", "5", "-d", "10m", "-J")
    bench_finds_nothing_wrong(run("echo.client", *where(path), *PATIENT, *options))


def test_a_stop_behind_a_bad_path_cuts_no_reply_in_two(server_command, relay):
    server = server_command("--no-log-messages", "--shutdown-timeout", "1m")
    path = relay(server)
    path.replies.hold(after=5000)  # inside a line
    lines = [b"line %d of many" % number for number in range(20_000)]
    with echo.connect(path.address, timeout=DEADLINE) as client:
        replies = client.echo_many(lines, window=5000)
        returned = [next(replies) for _ in range(100)]
        server.popen.send_signal(signal.SIGTERM)
        server.read_log_until("draining 1 session")
        path.replies.go_on()
        with pytest.raises(echo.ConnectionClosed):
            returned.extend(replies)
        assert returned == lines[: len(returned)]
    assert server.finish()[0] == 0
    assert "disconnected: drain" in server.log


# A path that stalls, and a timeout that ends.


@pytest.mark.parametrize("after, expected", [(0, echo.ReceiveTimeout), (40, echo.MessageTimeout)])
@pytest.mark.parametrize("framing", ["line", "length"])
def test_a_reply_that_stalls_is_a_timeout_and_comes_whole_when_it_goes_on(serve, relay, dial, framing, after, expected):
    handler = echo_of(framing)
    path = relay(serve(handler))
    path.replies.hold(after)
    with echo.Client(dial(path.address), handler.framing, timeout=0.05) as client:
        client.send(b"x" * 100)
        assert path.replies.held.wait(DEADLINE)
        eventually(lambda: unread(client.connection.socket) == after)
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


def test_a_request_that_stalls_half_way_ends_as_slow(serve, relay, log):
    handler = recorded(message_timeout=0.1)
    path = relay(serve(handler))
    path.requests.hold(after=1)  # in one piece, so that no later piece reaches a closed socket
    with echo.connect(path.address, timeout=DEADLINE) as client:
        client.send(b"x" * 100)
        with pytest.raises(echo.ConnectionClosed, match="ended the session"):
            client.recv()
        path.reset()  # neither side waits for the rest
    assert ended_as(handler, "slow")
    assert handler.events == ["made", "lost"]
    assert "slow: a message was not complete after 0.1 s\n" in log()


def test_a_request_that_never_arrives_ends_as_idle(serve, relay, log):
    handler = recorded(timeout=0.1)
    path = relay(serve(handler))
    path.requests.hold()
    with echo.connect(path.address, timeout=DEADLINE) as client:
        client.send(b"x" * 100)
        with pytest.raises(echo.ConnectionClosed, match="ended the session"):
            client.recv()
        path.reset()
    assert ended_as(handler, "idle")
    assert handler.events == ["made", "lost"]
    assert "idle: nothing arrived for 0.1 s\n" in log()


def test_a_path_that_takes_no_replies_ends_as_slow(serve, relay, dial, log):
    class Repeating(echo.LoggingMixin, echo.EchoRequestHandler):
        """Replies with more than all buffers on the way hold."""

        log_messages = False
        send_timeout = 0.1

        def message_received(self, message):
            for _ in range(20_000):
                self.send(message)

    handler = Recorder.of(Repeating)
    server = serve(handler)
    path = relay(server)
    path.replies.hold(after=100_000)
    before = descriptors_of(os.getpid())
    sock = dial(path.address)
    line = b"x" * 900 + b"\n"
    sock.sendall(line)
    assert ended_as(handler, "slow")
    assert "slow: the peer does not read what is sent to it\n" in log()
    path.reset()
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while True:
            received += sock.recv(65536)
    assert received == (line * 200)[: len(received)] and len(received) <= 100_000
    sock.close()
    eventually(lambda: not server.connections, "a session is left")
    eventually(lambda: descriptors_of(os.getpid()) <= before, "a descriptor is left")


def test_a_ping_over_a_path_that_stalls_reports_lost_and_late_replies(serve, relay, run):
    path = relay(serve())
    client = run("echo.client", *where(path), "--ping", "-i", "20ms", "-w", "200ms")
    read_until(client, r"seq=\d+ time=")
    path.replies.hold(after=10)
    lost = read_until(client, r"seq=(\d+) lost: no reply after 0\.2 s").group(1)
    path.replies.go_on()
    assert all_that_was_lost_came_late(client, lost)


@pytest.mark.slow
def test_a_path_that_falls_silent_is_given_up_by_the_clients_command(serve, relay, run):
    path = relay(serve())
    path.replies.hold()
    client = run("echo.client", *where(path), "-w", "300ms", "-m", "hello")
    assert finish(client) == (1, "")
    assert one_complaint(client, "nothing arrived for 0.3 s")
    client = run("echo.client", *where(path), "-w", "300ms", "--bench", "-P", "2", "-d", "200ms", "-J")
    code, out = finish(client)
    summary = json.loads(out.splitlines()[-1])
    assert code == 1 and (summary["messages"], summary["lost"]) == (0, 2)  # both were sent in the warm-up


# A path that breaks.


@contextlib.contextmanager
def breaks(path, after):
    """The path breaks after so many bytes of the replies."""
    path.replies.hold(after)
    breaker = threading.Thread(target=lambda: path.replies.held.wait(DEADLINE) and path.reset())
    breaker.start()
    yield
    breaker.join(DEADLINE)
    path.replies.go_on()


def test_a_path_that_breaks_is_a_lost_connection_on_both_sides(serve, relay, log):
    handler = recorded(log_messages=False)
    path = relay(serve(handler))
    lines = [b"line %09d" % number for number in range(5000)]
    returned = []
    with breaks(path, after=12_345):  # inside a line
        with echo.connect(path.address, timeout=DEADLINE) as client:
            with pytest.raises(echo.ConnectionClosed, match="the connection was lost"):
                for line in client.echo_many(lines):
                    returned.append(line)
    assert returned == lines[: len(returned)] and len(returned) <= 12_345 // 15
    assert ended_as(handler, "reset")
    assert "reset: the connection was lost: [Errno 104]" in log()
    with echo.connect(path.address, timeout=DEADLINE) as client:
        assert client.echo(b"a new day") == b"a new day"


def test_a_ping_over_a_path_that_breaks_connects_again(serve, relay, run):
    handler = recorded()
    path = relay(serve(handler))
    client = run("echo.client", *where(path), *PATIENT, "--ping", "-i", "20ms")
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
    eventually(lambda: "reset" in handler.reasons)


def test_a_pipe_over_a_path_that_breaks_ends_with_what_has_come_back(serve, relay, run):
    path = relay(serve())
    data = b"".join(b"line %09d\n" % number for number in range(10_000))
    with breaks(path, after=12_345):
        client = run("echo.client", *where(path), *PATIENT)
        code, out = client.finish(data)
    assert code == 1 and data.startswith(out)
    assert one_complaint(client, "the connection was lost: [Errno 104] Connection reset by peer")
