"""The client as a library: what it sends and receives, and which errors it raises."""

import functools
import pickle
import queue
import socket
import threading
import time

import pytest

import echo
from echo.cli.client.exchange import Exchange
from echo.client import dialing
from echo.measure.report import Report
from echo.sockets import linger, receive_timeout, unread
from support import DEADLINE, Recorder, eventually, plain, read_all, read_exactly
from support.background import Background
from support.clients import FRAMINGS, connections, echo_of, patiently
from support.measuring import events


@pytest.fixture
def connect():
    """``connect(server, **options)``: an ``echo.Client``, closed after the test."""
    with connections() as start:
        yield start


class Flip(echo.MessageRequestHandler):
    """Every message comes back with its fourth byte changed."""

    def message_received(self, message):
        self.send(message[:3] + bytes([message[3] ^ 0x20]) + message[4:])


# Messages out and in.


@pytest.mark.parametrize("framing", [echo.LineFraming, echo.LengthFraming])
def test_messages_come_back_in_order_whole_and_one_by_one(serve, connect, framing):
    messages = [b"first", b"", b"\r", b"\x00\xff\x80", b"x" * 65536, b"last"]
    client = connect(serve(echo_of(framing())), framing=framing())
    for message in messages:
        client.send(message)
    assert [client.recv() for _ in messages] == messages


def test_lines_are_the_framing_unless_another_is_given(serve, connect, dial):
    received = []
    server = serve(plain(lambda sock: received.append(read_exactly(sock, 3))))
    connect(server).send(b"ab")
    eventually(lambda: received)
    assert received == [b"ab\n"]


def test_a_length_goes_before_the_message_under_length_framing(serve, connect):
    received = []
    server = serve(plain(lambda sock: received.append(read_exactly(sock, 6))))
    connect(server, framing=echo.LengthFraming()).send(b"ab")
    eventually(lambda: received)
    assert received == [b"\x00\x00\x00\x02ab"]


def test_a_message_goes_out_at_once_without_a_read_after_it(serve, connect):
    handler = Recorder.of(echo.EchoRequestHandler)
    client = connect(serve(handler))
    client.send(b"now")
    eventually(lambda: handler.events == ["made", b"now"])


def test_messages_of_many_threads_never_mix(serve, connect):
    started = threading.Event()

    class Late(echo.EchoRequestHandler):
        def connection_made(self):
            assert started.wait(DEADLINE)  # until then the senders fill every buffer, and send in pieces

    senders, each, size = 6, 40, 60000
    client = connect(serve(Late))

    def send(letter):
        for _ in range(each):
            client.send(letter * size)

    threads = [threading.Thread(target=send, args=(bytes([65 + i]),), daemon=True) for i in range(senders)]
    for thread in threads:
        thread.start()
    started.set()
    replies = [client.recv() for _ in range(senders * each)]
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert all(reply == reply[:1] * size for reply in replies)
    assert sorted(reply[:1] for reply in replies) == sorted([bytes([65 + i]) for i in range(senders)] * each)


@pytest.mark.parametrize("framing", [echo.LineFraming, echo.LengthFraming])
def test_a_message_over_the_limit_is_refused_before_anything_of_it_is_sent(serve, connect, framing):
    handler = Recorder.of(echo_of(framing()))
    client = connect(serve(handler), framing=framing(max_message=10))
    with pytest.raises(echo.MessageTooLong) as caught:
        client.send(b"x" * 11)
    assert caught.value.limit == 10
    assert client.connection.bytes_out == 0
    assert client.echo(b"x" * 10) == b"x" * 10
    assert handler.events == ["made", b"x" * 10]


@pytest.mark.parametrize("framing", [echo.LineFraming, echo.LengthFraming])
def test_a_client_may_send_more_than_it_receives_if_that_is_asked_for(serve, connect, framing):
    class Counts(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(b"%d" % len(message))

    Counts.framing = framing()
    client = connect(serve(Counts), framing=framing(max_message=10, max_sent=20))
    client.send(b"x" * 20)
    assert client.recv() == b"20"
    with pytest.raises(echo.MessageTooLong) as caught:
        client.send(b"x" * 21)
    assert caught.value.limit == 20


def test_a_message_that_holds_a_line_feed_is_refused_before_anything_of_it_is_sent(serve, connect):
    handler = Recorder.of(echo.EchoRequestHandler)
    client = connect(serve(handler))
    with pytest.raises(ValueError, match="line feed"):
        client.send(b"one\ntwo")
    with pytest.raises(ValueError, match="line feed"):
        client.echo(b"one\n")
    assert client.echo(b"whole") == b"whole"
    assert handler.events == ["made", b"whole"]


# The verified round trip.


@pytest.mark.parametrize("framing", FRAMINGS)
def test_echo_gives_the_message_back(serve, connect, framing):
    client = connect(serve(echo_of(framing())), framing=framing())
    for message in (b"hello", b"\xff\x00\r", b"", b"y" * 65000):
        assert client.echo(message) == message


def test_echo_names_the_first_byte_that_differs(serve, connect):
    client = connect(serve(Flip))
    with pytest.raises(echo.EchoMismatch) as caught:
        client.echo(b"abcdef")
    assert caught.value.offset == 3
    assert (caught.value.sent, caught.value.received) == (b"abcdef", b"abcDef")
    assert "byte 3" in str(caught.value)


@pytest.mark.parametrize("reply, offset", [(b"abcd", 4), (b"abcdefgh", 6), (b"", 0)])
def test_a_reply_that_is_shorter_or_longer_differs_where_the_one_ends(serve, connect, reply, offset):
    class Other(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(reply)

    with pytest.raises(echo.EchoMismatch) as caught:
        connect(serve(Other)).echo(b"abcdef")
    assert caught.value.offset == offset


def test_a_raw_reply_in_pieces_is_put_together(serve, connect):
    # One read hands on three bytes at a time at most, so that the reply cannot come in one piece.
    client = connect(serve(echo_of(echo.RawFraming())), framing=echo.RawFraming(max_message=3))
    assert client.echo(b"hello, world") == b"hello, world"
    assert client.echo(b"again") == b"again"


def test_a_raw_reply_of_many_reads_is_put_together(serve, connect):
    message = bytes(range(256)) * 4096
    client = connect(serve(echo_of(echo.RawFraming())), framing=echo.RawFraming())
    assert client.echo(message) == message


def test_a_raw_message_that_is_longer_than_all_buffers_comes_back():
    """A server without boundaries replies before it has all of it, and waits until these replies are read."""
    ours, theirs = socket.socketpair()
    message = bytes(range(256)) * 16_384

    def talk():
        with theirs:
            for data in iter(lambda: theirs.recv(65536), b""):
                theirs.sendall(data)

    serving = Background(talk)
    with echo.Client(ours, echo.RawFraming(), timeout=DEADLINE) as client:
        assert client.echo(message) == message
        assert client.echo(b"and a short one") == b"and a short one"
    serving.result()


def test_a_raw_reply_that_differs_is_not_waited_for_to_its_end(serve, connect):
    def talk(sock):
        read_exactly(sock, 6)
        sock.sendall(b"abX")
        read_exactly(sock, 1)  # and goes on to listen

    client = connect(serve(plain(talk)), framing=echo.RawFraming(), timeout=DEADLINE * 10)
    with pytest.raises(echo.EchoMismatch) as caught:
        client.echo(b"abcdef")
    assert caught.value.offset == 2


# The end of the session.


def test_iteration_ends_with_the_session(serve, connect):
    class Counter(echo.MessageRequestHandler):
        def connection_made(self):
            for number in (b"1", b"2", b"3"):
                self.send(number)
            self.close()

    client = connect(serve(Counter))
    assert list(client) == [b"1", b"2", b"3"]
    assert list(client) == []


def test_recv_says_that_the_session_has_ended(serve, connect):
    client = connect(serve())
    client.send(b"kept")
    client.send(b"exit")
    assert client.recv() == b"kept"
    for _ in range(2):
        with pytest.raises(echo.ConnectionClosed):
            client.recv()


def test_an_end_inside_a_message_is_reported_with_its_beginning(serve, connect):
    client = connect(serve(plain(lambda sock: sock.sendall(b"whole\nhal"))))
    assert client.recv() == b"whole"
    with pytest.raises(echo.IncompleteMessage) as caught:
        client.recv()
    assert caught.value.rest == b"hal"


def test_iteration_does_not_hide_an_end_inside_a_message(serve, connect):
    client = connect(serve(plain(lambda sock: sock.sendall(b"whole\nhal"))))
    seen = []
    with pytest.raises(echo.IncompleteMessage):
        for message in client:
            seen.append(message)
    assert seen == [b"whole"]


def test_a_reply_over_the_limit_comes_after_the_replies_before_it(serve, connect):
    client = connect(serve(plain(lambda sock: sock.sendall(b"ok\n" + b"x" * 11))), framing=echo.LineFraming(10))
    assert client.recv() == b"ok"
    with pytest.raises(echo.MessageTooLong):
        client.recv()


# Timeouts.


def test_a_wait_for_a_message_ends_in_time_and_loses_no_byte(serve, connect):
    first, second = threading.Event(), threading.Event()

    def talk(sock):
        assert first.wait(DEADLINE)
        sock.sendall(b"hal")
        assert second.wait(DEADLINE)
        sock.sendall(b"f\nwhole\n")
        read_exactly(sock, 1)

    client = connect(serve(plain(talk)), timeout=0.05)
    with pytest.raises(echo.ReceiveTimeout):
        client.recv()
    first.set()
    with pytest.raises(echo.MessageTimeout):
        patiently(client.recv, echo.ReceiveTimeout)  # on a slow machine the three bytes may take longer than that
    second.set()
    assert patiently(client.recv) == b"half"
    assert patiently(client.recv) == b"whole"


class _Interrupted(Exception):
    """The exception of a signal handler."""


def test_a_read_that_is_interrupted_while_it_waits_loses_no_byte(serve, connect):
    client = connect(serve())

    class Waiting:
        def recv(self, size):
            client.connection.socket = sock
            raise _Interrupted

    sock, client.connection.socket = client.connection.socket, Waiting()
    with pytest.raises(_Interrupted):
        client.recv()
    assert client.echo(b"whole") == b"whole"


@pytest.mark.parametrize("data", [b"first\n", b"first\nsec"])
def test_a_read_that_is_interrupted_after_its_bytes_came_is_an_error_and_no_wrong_message(data, serve, connect):
    """The rest of a message was returned as a message."""
    client = connect(serve(plain(lambda sock: (sock.sendall(data), read_exactly(sock, 1), sock.sendall(b"ond\n")))))
    feed = client.connection._decoder.feed

    def interrupted(data):
        client.connection._decoder.feed = feed
        raise _Interrupted

    client.connection._decoder.feed = interrupted
    with pytest.raises(_Interrupted):
        client.recv()
    client.send(b"")
    for _ in range(2):
        with pytest.raises(echo.ConnectionClosed, match="an earlier read was interrupted, and its bytes are lost"):
            client.recv()


def test_a_timeout_is_the_built_in_one_too(serve, connect):
    client = connect(serve(), timeout=0.05)
    with pytest.raises(TimeoutError):
        client.recv()


class Quota(echo.ConnectionClosed):
    def __init__(self, limit, unit):
        super().__init__(f"{limit} {unit} are over")
        self.unit = unit


@pytest.mark.parametrize(
    "error",
    [
        echo.EchoMismatch(b"sent", b"seen"),
        echo.MessageTooLong(5),
        echo.IncompleteMessage(b"rest"),
        echo.ConnectionClosed(2, "lost", "file"),
        echo.ReceiveTimeout("nothing came"),
        Quota(3, "MB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_passes_from_a_process_of_a_pool_to_its_parent(serve, connect, error):
    """A ``multiprocessing.Pool`` waited for ever for a result that it could not unpickle."""
    error = connect(serve()).connection.failed(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.args) == (type(error), str(error), error.args)
    assert vars(again) == {name: value for name, value in vars(error).items() if name != "_connection"}
    assert again.connection is None
    for name in "errno", "strerror", "filename":
        assert getattr(again, name, None) == getattr(error, name, None)


def test_the_wait_after_a_message_timeout_is_as_long_as_any(serve, connect):
    pieces = [threading.Event(), threading.Event()]

    def talk(sock):
        sock.sendall(b"a")
        assert pieces[0].wait(DEADLINE)
        sock.sendall(b"b")
        assert pieces[1].wait(DEADLINE)
        sock.sendall(b"c\n")
        read_exactly(sock, 1)

    timeout = 0.1
    client = connect(serve(plain(talk)), timeout=timeout)
    eventually(lambda: unread(client.connection.socket) == 1)
    late = threading.Timer(0.8 * timeout, pieces[0].set)  # little of the time is left when this piece comes
    late.start()
    with pytest.raises(echo.MessageTimeout):
        client.recv()
    late.join()
    pieces[1].set()
    assert patiently(client.recv) == b"abc"
    begin = time.monotonic()
    with pytest.raises(echo.ReceiveTimeout):
        client.recv()
    assert time.monotonic() - begin > 0.9 * timeout


def test_a_server_that_does_not_read_ends_a_send_in_time(serve, connect):
    done = threading.Event()
    client = connect(serve(plain(lambda sock: done.wait(DEADLINE))), framing=echo.RawFraming(), timeout=0.05)
    try:
        with pytest.raises(echo.SendTimeout):
            for _ in range(1000):
                client.send(bytes(1 << 20))
        with pytest.raises(echo.SendTimeout):
            client.send(b"more")  # how much of the last message arrived is unknown
    finally:
        done.set()


class Late(echo.MessageRequestHandler):
    """Each message comes back after a tenth of a second."""

    def message_received(self, message):
        threading.Event().wait(0.1)
        self.send(message)


def test_without_a_timeout_the_client_waits(serve, connect):
    client = connect(serve(Late), timeout=None)
    assert receive_timeout(client.connection.socket) is None
    assert client.echo(b"late") == b"late"


# Connecting and closing.


def test_connecting_where_nothing_listens_raises_the_built_in_error():
    with socket.socket() as bound:  # a port on which no other program can listen meanwhile
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            echo.connect(bound.getsockname())


@pytest.mark.parametrize("more", [65536, "65536"])
def test_a_port_over_65535_is_refused_and_is_not_another_servers(serve, more):
    host, port = serve().server_address
    with pytest.raises(ValueError, match=r"invalid port \d{5,6}: expected 0 to 65535"):
        echo.connect((host, type(more)(port + int(more))))


@pytest.mark.parametrize("timeout", [3e6, 1e10, float("inf")])
def test_any_timeout_is_long_enough_for_a_client(serve, timeout):
    with echo.connect(serve().server_address, timeout=timeout) as client:
        assert client.echo(b"hi") == b"hi"
        assert list(client.echo_many([b"one", b"two"])) == [b"one", b"two"]


def test_the_timeout_of_the_client_replaces_that_of_its_socket(serve):
    sock = socket.create_connection(serve(Late).server_address, DEADLINE)
    sock.settimeout(0.02)
    with echo.Client(sock, timeout=DEADLINE) as client:
        assert client.echo(b"late") == b"late"
        assert (sock.gettimeout(), receive_timeout(sock)) == (None, DEADLINE)


def test_closing_twice_does_nothing_more(serve, connect):
    handler = Recorder.of(echo.EchoRequestHandler)
    client = connect(serve(handler))
    client.close()
    client.close()
    assert handler.ended.wait(DEADLINE)
    assert handler.events == ["made", "lost"]
    assert client.connection.socket.fileno() == -1


def test_with_closes_and_the_server_sees_the_end(serve):
    handler = Recorder.of(echo.EchoRequestHandler)
    server = serve(handler)
    with echo.connect(server.server_address, timeout=DEADLINE) as client:
        assert client.echo(b"inside") == b"inside"
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["eof"]
    assert client.connection.socket.fileno() == -1


def test_a_closed_client_says_so(serve, connect):
    client = connect(serve())
    client.close()
    for action in (client.recv, lambda: client.send(b"x"), lambda: client.echo(b"x")):
        with pytest.raises(echo.ConnectionClosed, match="closed"):
            action()
    assert list(client) == []


def test_received_messages_can_be_read_after_closing(serve, connect):
    client = connect(serve(plain(lambda sock: sock.sendall(b"1\n2\n3\n"))))
    assert client.recv() == b"1"
    waiting = client.connection.messages_in - 1
    client.close()
    assert list(client) == [b"2", b"3"][:waiting]


def test_closing_over_unread_replies_loses_nothing_that_was_sent(serve):
    """A plain close over unread bytes would send a reset."""

    class Reads(echo.MessageRequestHandler):
        def connection_made(self):
            super().connection_made()
            self.send(b"unread")
            self.flush()
            assert closing.wait(DEADLINE)

    closing = threading.Event()
    handler = Recorder.of(Reads)
    server = serve(handler)
    with echo.connect(server.server_address, timeout=DEADLINE) as client:
        for _ in range(100):
            client.send(b"z" * 500)
        eventually(lambda: unread(client.connection.socket) == 7)
        closing.set()
    assert handler.ended.wait(DEADLINE)
    assert handler.events == ["made"] + [b"z" * 500] * 100 + ["lost"]
    assert handler.reasons == ["eof"]


def test_an_exception_does_not_wait_for_a_server_that_does_not_read(tmp_path, monkeypatch):
    """On a Unix socket, what it has not read is on its way. Ctrl-C would wait without end."""
    monkeypatch.setattr("echo.client.client.linger", functools.partial(linger, silence=0.01))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(KeyboardInterrupt), echo.connect(str(tmp_path / "s"), timeout=None) as client:
            client.send(b"never read")
            raise KeyboardInterrupt


def test_an_exception_does_not_wait_for_a_server_that_goes_on_sending(serve, monkeypatch):
    """Ctrl-C took five seconds."""
    waited = []
    monkeypatch.setattr("echo.client.client.linger", lambda sock, **options: waited.append(options["timeout"]))
    with pytest.raises(KeyboardInterrupt), echo.connect(serve().server_address):
        raise KeyboardInterrupt
    with echo.connect(serve().server_address):
        pass
    assert waited == [1.0, 5.0]


@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_closing_waits_for_a_server_that_still_handles_what_it_has_accepted(serve, monkeypatch, timeout):
    """Row 83: after the close its replies would be answered with a reset, and the messages that it has not read yet be
    lost."""

    class Slow(echo.MessageRequestHandler):
        def message_received(self, message):
            time.sleep(0.1)
            self.send(b"done")
            self.flush()

    monkeypatch.setattr("echo.client.client.LINGER_SILENCE", 0.01)
    monkeypatch.setattr("echo.client.client.LINGER_TIMEOUT", 0.01)
    monkeypatch.setattr("echo.client.client.linger", functools.partial(linger, silence=0.01))
    handler = Recorder.of(Slow)
    with echo.connect(serve(handler).server_address, framing=echo.LineFraming(60000), timeout=timeout) as client:
        for _ in range(10):
            client.send(b"m" * 60000)
    assert handler.ended.wait(DEADLINE)
    assert (handler.events.count(b"m" * 60000), handler.reasons) == (10, ["eof"])


def test_closing_waits_only_a_moment_for_a_server_that_is_silent_or_owes_nothing(serve, monkeypatch):
    def first_is_answered(sock):
        sock.sendall(b"done\n")
        read_all(sock)

    def interrupted():
        raise KeyboardInterrupt

    limits = []
    monkeypatch.setattr(
        "echo.client.client.linger", lambda sock, **more: limits.append((more.get("silence"), more["timeout"]))
    )
    address = serve(plain(first_is_answered)).server_address
    for sent in range(3):
        with echo.connect(address, timeout=50.0) as client:
            for _ in range(sent):
                client.send(b"work")
            assert client.recv() == b"done"
    with echo.connect(address, timeout=50.0) as client:
        client.send(b"work")
        client.send(b"work")
        assert client.recv() == b"done"
        client.connection.idle_timeout = 0.05
        with pytest.raises(echo.ReceiveTimeout):
            client.recv()
    with pytest.raises(KeyboardInterrupt), echo.connect(address, timeout=50.0) as client:
        client.send(b"work")
        raise KeyboardInterrupt
    with echo.connect(address, timeout=50.0) as client:
        client.send(b"work")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(client.connection, "receive", interrupted)
            client.recv()
    with echo.connect(address, framing=echo.RawFraming(), timeout=50.0) as client:
        client.send(b"do")
        client.send(b"ne\n")
        assert client.recv() == b"done\n"  # both, in one read
    with echo.connect(address, timeout=50.0) as client:
        replies = client.echo_many([b"done", b"work", b"work"], window=2)
        assert next(replies) == b"done"
        eventually(lambda: client.connection.messages_out == 2)
    assert limits == [
        (None, 5.0),
        (None, 5.0),
        (50.0, 60.0),
        (None, 5.0),
        (None, 1.0),
        (None, 5.0),
        (None, 5.0),
        (50.0, 60.0),
    ]


def test_closing_waits_for_a_server_that_has_not_taken_every_message(serve, monkeypatch):
    """Row 83: a reply to a closed socket would be answered with a reset, and the messages on their way be lost."""

    def late(sock):
        assert silent.wait(DEADLINE)
        sock.sendall(b"late\n")
        try:
            received.put(len(read_all(sock)))
        except ConnectionResetError as exc:
            received.put(exc)

    silent, received = threading.Event(), queue.SimpleQueue()
    monkeypatch.setattr("echo.client.client.linger", functools.partial(linger, silence=0.01, timeout=0))
    server = serve(plain(late))
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # its sessions inherit that
    client = echo.connect(server.server_address, timeout=DEADLINE)
    client.connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    client.send(b"m" * 60000)
    client._patient = False  # for the reply
    closing = threading.Thread(target=client.close)
    closing.start()
    closing.join(0.2)  # many times the silence
    silent.set()
    assert received.get(timeout=DEADLINE) == 60001


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("message", ["text", "text over the limit" * 5000, 7, None], ids=["text", "long", "7", "None"])
def test_a_message_that_is_not_bytes_is_refused_by_its_type(serve, connect, framing, message):
    client = connect(serve(echo_of(framing())), framing=framing())
    for attempt in (client.send, client.echo, lambda message: list(client.echo_many([message]))):
        with pytest.raises(TypeError, match=f"a message is bytes, not {type(message).__name__}"):
            attempt(message)
    assert client.echo(b"hello") == b"hello"


@pytest.mark.parametrize("message", ["a text of more bytes than there may be", [10]])
def test_a_message_that_is_not_bytes_is_refused_as_such_whatever_else_is_wrong_with_it(serve, connect, message):
    client = connect(serve(), framing=echo.LineFraming(8))
    with pytest.raises(TypeError, match="a message is bytes, not "):
        client.send(message)


# Single messages, as -m sends them.


@pytest.mark.parametrize("messages, due", [([b"one", b"exit"], 2), ([b"exit"], 1), ([b"exit", b"two"], 2)])
def test_an_exit_that_comes_back_is_a_reply_like_any_other(serve, connect, messages, due):
    handler = type("Handler", (echo.EchoRequestHandler,), {"exit_word": None})
    lines = []
    Exchange(connect(serve(handler)), messages, lines.append, Report(lines.append, as_json=True)).run()
    figures = {"sent": due, "received": due, "different": 0, "missing": 0, "exits": 0}
    assert events("\n".join(lines))[-1] == {"event": "summary", **figures}


# A connection to itself.


def test_a_connection_to_itself_is_refused_and_leaves_the_port_free(monkeypatch):
    """Row 48: TCP may do that if nothing listens on a port in the range of client ports."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()
        sock.connect(address)
        monkeypatch.setattr(dialing, "_begin", lambda *_: sock)
        with pytest.raises(ConnectionRefusedError):
            echo.connect(address)
        assert sock.fileno() == -1
    with socket.socket() as listener:
        listener.bind(address)  # without SO_REUSEADDR
