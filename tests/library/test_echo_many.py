"""``echo_many`` and ``echo`` when they are left, refused or cut short; and an ``exit`` that comes back."""

# ruff: noqa: F811 (pytest finds fixtures by their import)

import json
import socket
import threading
import time

import pytest
from test_client import connect, echo_of, narrow, numbered, on_the_wire, patiently, sending_threads  # noqa: F401
from test_client_command import client as command  # noqa: F401

import echo
from echo.sockets import unread
from support import DEADLINE, eventually, plain, read_all, read_exactly


def test_leaving_early_does_not_wait_for_replies_that_nobody_sends(serve, connect):
    read, left = threading.Event(), threading.Event()

    def talk(sock):
        sock.sendall(read_exactly(sock, 1_000_001))
        left.wait(1)  # the sender is stuck meanwhile, and is seen to be
        while True:
            data = sock.recv(65536)
            if not data:
                break
        read.set()

    client = connect(serve(plain(talk)), framing=echo.LineFraming(1 << 20), timeout=DEADLINE * 0.7)
    replies = client.echo_many([b"x" * 1_000_000] * 30, window=20)
    next(replies)
    began = time.monotonic()
    replies.close()
    assert time.monotonic() - began < DEADLINE / 3


@pytest.mark.parametrize("many", [True, False], ids=["echo_many", "echo"])
def test_a_timeout_loses_no_byte_of_a_raw_reply(serve, connect, many):
    go = threading.Event()

    def talk(sock):
        sock.sendall(b"firsthal")
        assert go.wait(DEADLINE)
        sock.sendall(b"f")
        read_all(sock)

    client = connect(serve(plain(talk)), framing=echo.RawFraming(), timeout=0.2)
    eventually(lambda: unread(client.connection.socket) == 8)
    with pytest.raises(echo.ReceiveTimeout):
        if many:
            list(client.echo_many([b"first", b"half"]))
        else:
            client.echo(b"firsthalf")
    go.set()
    received = b""
    while not received.endswith(b"f"):
        received += patiently(client.recv, echo.ReceiveTimeout)
    assert received == (b"half" if many else b"firsthalf")


def test_half_a_reply_that_is_late_when_the_rest_is_left_costs_no_reply(narrow):
    late = threading.Event()

    def talk(sock):
        data = read_exactly(sock, 2 * 60_001)
        sock.sendall(data[:70_000])  # the first reply, and half of the second
        while not late.wait(0.02):
            data += read_exactly(sock, 1 << 14)  # the sender is stuck, and gets on now and then
        sock.sendall(data[70_000:])
        while data:
            data = sock.recv(65536)
            sock.sendall(data)

    client = narrow(plain(talk), echo.LineFraming(), timeout=1.0)
    receive = client.connection.receive

    def watched():
        try:
            return receive()
        except echo.MessageTimeout:
            late.set()
            raise

    client.connection.receive = watched
    messages = numbered(100, 60000)
    replies = client.echo_many(messages, window=100)
    received = [next(replies)]
    replies.close()
    assert late.is_set()
    received += [patiently(client.recv) for _ in range(client.connection.messages_out - 1)]
    assert len(received) > 1 and received == messages[: len(received)]


@pytest.mark.parametrize("timeout", [None, 3 * DEADLINE])
def test_a_server_that_ends_its_side_and_reads_nothing_ends_it_at_once(narrow, timeout):
    done = threading.Event()

    def talk(sock):
        sock.shutdown(socket.SHUT_WR)
        done.wait(4 * DEADLINE)

    client = narrow(plain(talk), echo.LineFraming(), timeout=timeout)
    errors = []

    def use():
        with pytest.raises(echo.ConnectionClosed) as caught:
            list(client.echo_many(numbered(300, 60000), window=300))
        errors.append(caught.value)
        client.close()

    user = threading.Thread(target=use, daemon=True)
    user.start()
    user.join(DEADLINE)
    told = [str(error) for error in errors]
    returned = not user.is_alive()
    done.set()  # else nothing would end here
    user.join(DEADLINE)
    assert (returned, told) == (True, ["the server has ended the session"])
    assert not sending_threads()


@pytest.mark.parametrize("bad, error", [(b"two\nlines", ValueError), (b"x" * 101, echo.MessageTooLong)])
@pytest.mark.parametrize("window", [1, 3, 100])
def test_all_replies_before_a_message_that_the_framing_cannot_carry_are_yielded(serve, connect, bad, error, window):
    client = connect(serve(), framing=echo.LineFraming(100))
    yielded = []
    with pytest.raises(error):
        for reply in client.echo_many([*numbered(10), bad, b"never"], window):
            yielded.append(reply)
    assert yielded == numbered(10)
    assert client.connection.messages_out == 10
    assert client.echo(b"usable") == b"usable"


def test_closing_is_not_held_up_by_an_echo_many_that_was_left_standing(narrow):
    client = narrow(echo_of(echo.LineFraming()), echo.LineFraming())
    replies = client.echo_many(numbered(300, 60000), window=300)
    assert next(replies) == numbered(1, 60000)[0]
    eventually(lambda: client.connection._output.locked())
    pause = threading.Event()
    pause.wait(0.3)  # until all buffers are full
    began = time.monotonic()
    client.close()
    assert time.monotonic() - began < DEADLINE / 3
    assert not sending_threads()


@pytest.mark.parametrize("messages, due", [(["one", "exit"], 2), (["exit"], 1), (["exit", "two"], 2)])
def test_an_exit_that_comes_back_is_a_reply_like_any_other(serve, command, messages, due):
    handler = type("Handler", (echo.EchoRequestHandler,), {"exit_word": None})
    code, out = command(serve(handler), "-J", *[word for text in messages for word in ("-m", text)]).finish()
    assert code == 0
    figures = {"sent": due, "received": due, "different": 0, "missing": 0}
    assert json.loads(out.splitlines()[-1]) == {"event": "summary", **figures}


# What comes in while a message is still being sent.


@pytest.fixture
def pair():
    """A client, and the socket of its server."""
    ours, theirs = socket.socketpair()
    with theirs, echo.Client(ours, timeout=0.1) as client:
        yield client, theirs


def test_a_reply_that_is_slow_while_a_message_is_being_sent_is_not_lost(pair):
    client, server = pair
    server.sendall(b"first half")
    assert not client._take_in(DEADLINE)
    server.sendall(b", second half\n")
    assert client.recv() == b"first half, second half"


@pytest.mark.parametrize(
    "rest, error", [(b"", echo.ConnectionClosed), (b"half", echo.IncompleteMessage), (b"x" * 99, echo.MessageTooLong)]
)
def test_the_end_that_came_while_a_message_was_being_sent_is_told_afterwards(pair, rest, error):
    client, server = pair
    client.connection._decoder.limit = 50
    server.sendall(b"whole\n" + rest)
    server.shutdown(socket.SHUT_WR)
    assert client._take_in(DEADLINE)
    assert not client._take_in(DEADLINE)
    assert client.recv() == b"whole"
    for _ in range(2):
        with pytest.raises(error):
            client.recv()
