"""``echo_many`` and ``echo`` when they are left, refused or cut short; and an ``exit`` that comes back."""

# ruff: noqa: F811 (pytest finds fixtures by their import)

import json
import socket
import threading
import time

import pytest
from conftest import DEADLINE, eventually, read_all, read_exactly
from test_client import connect, echo_of, narrow, numbered, on_the_wire, patiently, plain, sending_threads  # noqa: F401
from test_client_command import client as command  # noqa: F401

import echo
from echo.sockets import unread


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
