"""The client as a library: what it sends, what it waits for, and what it says when that does not come."""

import contextlib
import socket
import struct
import threading
import time
import tracemalloc

import pytest

import echo
from echo.sockets import unread
from support import DEADLINE, Recorder, eventually, plain, read_all, read_exactly

FRAMINGS = [echo.LineFraming, echo.LengthFraming, echo.RawFraming]


@pytest.fixture
def connect():
    """``connect(server, **options)``: an ``echo.Client``, closed after the test."""
    clients = []

    def start(server, **options):
        client = echo.connect(server.server_address, **options)
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.close()


@pytest.fixture
def narrow(serve):
    """``narrow(handler_class, framing)``: a client of such a server, with little room for bytes on their way between
    the two."""
    with contextlib.ExitStack() as stack:

        def start(handler_class, framing, **options):
            server = serve(handler_class)
            sock = socket.socket()
            for each in (server.socket, sock):  # the server's sockets have what its listener has
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 15)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
            sock.connect(server.server_address)
            return stack.enter_context(echo.Client(sock, framing, **dict({"timeout": DEADLINE}, **options)))

        yield start


def echo_of(framing):
    """An echo handler with that framing."""
    return type("Handler", (echo.EchoRequestHandler,), {"framing": framing})


class Flip(echo.MessageRequestHandler):
    """Every message comes back with its fourth byte changed."""

    def message_received(self, message):
        self.send(message[:3] + bytes([message[3] ^ 0x20]) + message[4:])


def patiently(receive, timeout=TimeoutError):
    """Call ``receive`` until it does not time out."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            return receive()
        except timeout:
            assert time.monotonic() < deadline, "nothing came"


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
    client = connect(serve(Late), timeout=DEADLINE)

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


def test_a_raw_reply_that_differs_is_not_waited_for_to_its_end(serve, connect):
    def talk(sock):
        read_exactly(sock, 6)
        sock.sendall(b"abX")
        read_exactly(sock, 1)  # and goes on to listen

    client = connect(serve(plain(talk)), framing=echo.RawFraming(), timeout=DEADLINE * 10)
    with pytest.raises(echo.EchoMismatch) as caught:
        client.echo(b"abcdef")
    assert caught.value.offset == 2


# Many messages without waiting for each.


def numbered(count, size=0):
    """So many different messages, of at least so many bytes."""
    return [(b"%d " % number).ljust(size, b".") for number in range(count)]


def on_the_wire(framing, messages):
    """The bytes that carry them."""
    return b"".join(map(framing.encode, messages))


def at_once(framing, messages, change=lambda data: data):
    """A server that has all of them before it sends anything, and then sends all in one go, or what ``change`` makes
    of it."""
    data = on_the_wire(framing, messages)

    def talk(sock):
        assert read_exactly(sock, len(data)) == data
        sock.sendall(change(data))
        read_all(sock)

    return plain(talk)


def still_to_come(client, yielded):
    """The replies to what was sent beyond the messages whose replies were yielded."""
    return [client.recv() for _ in range(client.connection.messages_out - yielded)]


def sending_threads():
    return [thread for thread in threading.enumerate() if thread.name == "echo-send"]


@pytest.mark.parametrize("window", [1, 2, 5, 100, 10**9])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_many_messages_come_back_in_order(serve, connect, framing, window):
    handler = Recorder.of(echo_of(framing()))
    client = connect(serve(handler), framing=framing(), timeout=DEADLINE)
    messages = [b"", b"first", b"\r", b"", b"\x00\xff\x80", b"x" * 65536, b"x", *numbered(300), b""]
    assert list(client.echo_many(messages, window)) == messages
    assert client.echo(b"and on") == b"and on"
    if framing.keeps_boundaries:
        assert handler.events == ["made", *messages, b"and on"]


@pytest.mark.parametrize("window", [1, 3, 100])
def test_raw_replies_that_come_in_pieces_are_put_together(serve, connect, window):
    # One read hands on three bytes at a time at most.
    client = connect(serve(echo_of(echo.RawFraming())), framing=echo.RawFraming(max_message=3))
    messages = [b"hello, world", b"a", b"bc", b"def", b"", b"ghij", *numbered(50)]
    assert list(client.echo_many(messages, window)) == messages


@pytest.mark.parametrize("limit", [1, 7, 65536])
def test_raw_replies_that_come_glued_together_are_taken_apart(serve, connect, limit):
    messages = [b"hello, world", b"a", b"", b"bc", *numbered(50), b"z"]
    client = connect(serve(at_once(echo.RawFraming(), messages)), framing=echo.RawFraming(limit))
    assert list(client.echo_many(messages)) == messages


def test_of_raw_replies_what_comes_after_the_last_one_differs(serve, connect):
    server = serve(at_once(echo.RawFraming(), [b"one", b"two"], lambda data: data + b"!"))
    client = connect(server, framing=echo.RawFraming())
    with pytest.raises(echo.EchoMismatch) as caught:
        list(client.echo_many([b"one", b"two"]))
    assert (caught.value.sent, caught.value.received, caught.value.offset) == (b"two", b"two!", 3)


@pytest.mark.parametrize("window", [1, 2, 100])
def test_messages_are_read_so_far_ahead_and_no_further(serve, connect, window):
    client = connect(serve(), timeout=DEADLINE)
    read = yielded = 0
    ahead = []

    def messages():
        nonlocal read
        for message in numbered(300):
            ahead.append(read - yielded)  # before it is read
            read += 1
            yield message

    for reply in client.echo_many(messages(), window):
        assert reply == b"%d " % yielded
        assert client.connection.messages_out <= yielded + window  # this reply has come
        yielded += 1
    assert (read, yielded) == (300, 300)
    assert max(ahead) == window - 1


def test_a_whole_window_is_on_its_way_without_a_reply(serve, connect):
    window, count = 20, 100
    arrived = []

    class Late(echo.MessageRequestHandler):
        def connection_made(self):
            self.held = []

        def message_received(self, message):
            arrived.append(message)
            self.held.append(message)
            if len(self.held) == window or len(arrived) == count:
                for held in self.held if len(arrived) == count else [self.held.pop(0)]:
                    self.send(held)

    client = connect(serve(Late), timeout=DEADLINE)
    assert list(client.echo_many(numbered(count), window)) == numbered(count)


def test_the_messages_are_read_in_the_callers_thread(serve, connect):
    readers = set()

    def messages():
        for message in numbered(10):
            readers.add(threading.get_ident())
            yield message

    assert list(connect(serve()).echo_many(messages(), 3)) == numbered(10)
    assert readers == {threading.get_ident()}


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_server_that_does_not_read_before_its_replies_are_read_halts_nobody(narrow, framing):
    # The echo writes in the thread that reads. What is on its way is a hundred times what all buffers hold.
    messages = numbered(300, 60000)
    client = narrow(echo_of(framing()), framing())
    assert list(client.echo_many(messages, window=300)) == messages


def test_memory_is_bounded_by_the_window(serve, connect):
    count, size, window = 2000, 20000, 10
    client = connect(serve(), timeout=DEADLINE)
    assert client.echo(b"what a first message needs") == b"what a first message needs"
    messages = ((b"%d " % number).ljust(size, b".") for number in range(count))
    received = 0
    tracemalloc.start()
    try:
        for reply in client.echo_many(messages, window):
            received += len(reply)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert received == count * size
    assert window * size < peak < count * size // 10


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("place", [0, 6])
def test_a_reply_in_the_middle_that_differs_is_named_and_the_rest_can_be_read(serve, connect, framing, place):
    framing = framing()
    messages = numbered(10, 20)
    damaged = messages[5][:place] + b"#" + messages[5][place + 1 :]
    server = serve(at_once(framing, messages, lambda data: data.replace(messages[5], damaged)))
    client = connect(server, framing=framing, timeout=DEADLINE)
    yielded = []
    with pytest.raises(echo.EchoMismatch) as caught:
        for reply in client.echo_many(messages):
            yielded.append(reply)
    assert yielded == messages[:5]
    assert caught.value.offset == place
    assert (caught.value.sent, caught.value.received[: place + 1]) == (messages[5], damaged[: place + 1])
    left = b""
    while not left.endswith(messages[-1]):
        left += client.recv()
    assert left.endswith(b"".join(messages[6:]))


@pytest.mark.parametrize("bad, error", [(b"two\nlines", ValueError), (b"x" * 101, echo.MessageTooLong)])
@pytest.mark.parametrize("window", [1, 3, 100])
def test_a_message_that_the_framing_cannot_carry_ends_it_and_not_the_session(serve, connect, bad, error, window):
    handler = Recorder.of(echo.EchoRequestHandler)
    client = connect(serve(handler), framing=echo.LineFraming(100))
    before = numbered(10)
    received = []
    with pytest.raises(error):
        for reply in client.echo_many([*before, bad, b"never"], window):
            received.append(reply)
    assert len(received) >= len(before) - window + 1
    received += still_to_come(client, len(received))
    assert received == before[: len(received)]
    assert client.echo(b"usable") == b"usable"
    assert handler.events == ["made", *received, b"usable"]


@pytest.mark.parametrize("taken", [1, 40])
@pytest.mark.parametrize("framing", [echo.LineFraming, echo.LengthFraming])
def test_whoever_leaves_early_has_the_other_replies_from_recv(serve, connect, framing, taken):
    messages = numbered(200)
    client = connect(serve(echo_of(framing())), framing=framing(), timeout=DEADLINE)
    received = []
    for reply in client.echo_many(messages, window=50):
        received.append(reply)
        if len(received) == taken:
            break
    assert not sending_threads()
    assert taken <= client.connection.messages_out < taken + 50
    received += still_to_come(client, taken)
    assert received == messages[: len(received)]
    assert client.echo(b"and on") == b"and on"


@pytest.mark.parametrize("reading_on", [True, False], ids=["reading on", "closing"])
def test_whoever_leaves_early_is_not_held_up_by_a_server_that_does_not_read(narrow, reading_on):
    messages = numbered(100, 60000)
    handler = Recorder.of(echo.EchoRequestHandler)
    client = narrow(handler, echo.LineFraming(), timeout=DEADLINE * 10)
    began = time.monotonic()
    replies = client.echo_many(messages, window=100)
    received = [next(replies), next(replies)]
    replies.close()
    assert not sending_threads()
    if reading_on:
        received += still_to_come(client, 2)
        assert client.echo(b"and on") == b"and on"
        assert received == messages[: len(received)]
    client.close()
    assert time.monotonic() - began < DEADLINE
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["eof"]


@pytest.mark.parametrize("abruptly", [False, True], ids=["end", "reset"])
def test_a_server_that_goes_away_in_the_middle_is_told_after_its_replies(serve, connect, abruptly):
    come = threading.Event()

    def talk(sock):
        sock.sendall(read_exactly(sock, 4))
        assert come.wait(DEADLINE)
        if abruptly:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    client = connect(serve(plain(talk)), timeout=DEADLINE)
    replies = client.echo_many([b"one", b"two", b"three", *numbered(100)], window=3)
    assert next(replies) == b"one"
    come.set()
    with pytest.raises(echo.ConnectionClosed):
        next(replies)
    assert not sending_threads()
    with pytest.raises(echo.ConnectionClosed):
        client.recv()


def test_an_end_inside_a_reply_is_told_with_what_had_come_of_it(serve, connect):
    server = serve(plain(lambda sock: sock.sendall(read_exactly(sock, 8)[:6])))
    yielded = []
    with pytest.raises(echo.IncompleteMessage) as caught:
        for reply in connect(server).echo_many([b"one", b"two"]):
            yielded.append(reply)
    assert (yielded, caught.value.rest) == ([b"one"], b"tw")


@pytest.mark.parametrize("begun, error", [(b"", echo.ReceiveTimeout), (b"ha", echo.MessageTimeout)])
def test_a_reply_that_does_not_come_in_time_is_not_lost(serve, connect, begun, error):
    messages = [b"0", b"1", b"2", b"half", *numbered(20)]
    go = threading.Event()

    def talk(sock):
        sock.sendall(b"0\n1\n2\n" + begun)
        assert go.wait(DEADLINE)
        sock.sendall(on_the_wire(echo.LineFraming(), messages)[6 + len(begun) :])
        read_all(sock)

    client = connect(serve(plain(talk)), timeout=0.2)
    eventually(lambda: unread(client.connection.socket) == 6 + len(begun))
    yielded = []
    with pytest.raises(error):
        for reply in client.echo_many(messages, window=10):
            yielded.append(reply)
    assert yielded == messages[:3]
    assert not sending_threads()
    go.set()
    assert [patiently(client.recv) for _ in messages[3:]] == messages[3:]


def test_a_server_that_neither_reads_nor_answers_ends_it_in_time(narrow):
    done = threading.Event()
    client = narrow(plain(lambda sock: done.wait(DEADLINE)), echo.RawFraming(), timeout=0.2)
    try:
        with pytest.raises(TimeoutError):
            list(client.echo_many(numbered(300, 60000), window=300))
        assert not sending_threads()
        with pytest.raises(echo.SendTimeout):
            client.send(b"more")  # how much of the last message arrived is unknown
    finally:
        done.set()


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_of_nothing_is_refused_before_anything_is_sent(serve, connect, window):
    client = connect(serve())
    with pytest.raises(ValueError, match=f"window is {window}"):
        list(client.echo_many([b"x"], window))
    assert client.connection.messages_out == 0
    assert not sending_threads()


@pytest.mark.parametrize("framing", FRAMINGS)
def test_no_messages_have_no_replies(serve, connect, framing):
    client = connect(serve(echo_of(framing())), framing=framing())
    assert list(client.echo_many([])) == []
    assert list(client.echo_many(iter(()), window=1)) == []
    assert client.connection.bytes_out == 0
    assert client.echo(b"and on") == b"and on"


def test_a_closed_client_echoes_no_many(serve, connect):
    client = connect(serve())
    client.close()
    with pytest.raises(echo.ConnectionClosed, match="closed"):
        list(client.echo_many([b"x"]))
    assert not sending_threads()


def test_an_error_of_the_messages_themselves_passes_and_the_session_goes_on(serve, connect):
    def messages():
        yield from numbered(5)
        raise KeyError("no sixth")

    client = connect(serve(), timeout=DEADLINE)
    received = []
    with pytest.raises(KeyError, match="no sixth"):
        for reply in client.echo_many(messages(), window=2):
            received.append(reply)
    received += still_to_come(client, len(received))
    assert received == numbered(5)[: len(received)]
    assert client.echo(b"and on") == b"and on"


def test_other_threads_may_send_at_the_same_time(serve, connect):
    noted = []

    class Notes(echo.EchoRequestHandler):
        def message_received(self, message):
            if message.startswith(b"#"):
                noted.append(message)
            else:
                super().message_received(message)

    senders, each = 4, 100
    client = connect(serve(Notes), timeout=DEADLINE)

    def note(number):
        for index in range(each):
            client.send((b"#%d %d " % (number, index)).ljust(5000, b"-"))

    threads = [threading.Thread(target=note, args=(number,), daemon=True) for number in range(senders)]
    messages = numbered(400, 5000)
    for thread in threads:
        thread.start()
    assert list(client.echo_many(messages, window=30)) == messages
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert client.echo(b"last") == b"last"
    for number in range(senders):
        assert [note for note in noted if note.startswith(b"#%d " % number)] == [
            (b"#%d %d " % (number, index)).ljust(5000, b"-") for index in range(each)
        ]


def test_each_use_ends_its_thread(serve, connect):
    client = connect(serve(), timeout=DEADLINE)
    for count in (10, 0, 1, 7, 30):
        assert list(client.echo_many(numbered(count), window=5)) == numbered(count)
        assert not sending_threads()
    replies = client.echo_many(numbered(3))
    assert not sending_threads()  # nothing happens before the first reply is asked for
    assert next(replies) == numbered(3)[0]
    replies.close()
    assert not sending_threads()


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


def test_an_end_inside_a_message_is_told_with_what_had_come_of_it(serve, connect):
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

    client = connect(serve(plain(talk)), timeout=0.1)
    with pytest.raises(echo.ReceiveTimeout):
        client.recv()
    first.set()
    with pytest.raises(echo.MessageTimeout):
        patiently(client.recv, echo.ReceiveTimeout)  # on a slow machine the three bytes may take longer than that
    second.set()
    assert patiently(client.recv) == b"half"
    assert patiently(client.recv) == b"whole"


def test_a_timeout_is_the_built_in_one_too(serve, connect):
    client = connect(serve(), timeout=0.05)
    with pytest.raises(TimeoutError):
        client.recv()


def test_the_wait_after_a_message_timeout_is_as_long_as_any(serve, connect):
    pieces = [threading.Event(), threading.Event()]

    def talk(sock):
        sock.sendall(b"a")
        assert pieces[0].wait(DEADLINE)
        sock.sendall(b"b")
        assert pieces[1].wait(DEADLINE)
        sock.sendall(b"c\n")
        read_exactly(sock, 1)

    timeout = 1.0
    client = connect(serve(plain(talk)), timeout=timeout)
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
    client = connect(serve(plain(lambda sock: done.wait(DEADLINE))), framing=echo.RawFraming(), timeout=0.2)
    try:
        with pytest.raises(echo.SendTimeout):
            for _ in range(1000):
                client.send(bytes(1 << 20))
        with pytest.raises(echo.SendTimeout):
            client.send(b"more")  # how much of the last message arrived is unknown
    finally:
        done.set()


def test_without_a_timeout_the_client_waits(serve, connect):
    go = threading.Event()

    class Late(echo.MessageRequestHandler):
        def message_received(self, message):
            assert go.wait(DEADLINE)
            self.send(message)

    client = connect(serve(Late), timeout=None)
    timer = threading.Timer(0.3, go.set)
    timer.start()
    assert client.echo(b"late") == b"late"
    timer.join()


# Connecting and closing.


def test_nothing_listening_is_the_built_in_error(serve):
    server = serve()
    address = server.server_address
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        echo.connect(address)


def test_an_address_that_does_not_answer_is_the_built_in_error(monkeypatch):
    """Of which Python 3.8 and 3.9 know nothing: to them a socket's timeout is another error."""

    def unanswered(*arguments, **options):
        raise socket.timeout("timed out")

    monkeypatch.setattr(socket, "create_connection", unanswered)
    with pytest.raises(TimeoutError, match="timed out"):
        echo.connect(("192.0.2.1", 9))


def test_a_socket_that_has_a_timeout_of_its_own_has_the_clients(serve):
    sock = socket.create_connection(serve().server_address, timeout=0.1)
    with echo.Client(sock, timeout=0.3) as client:
        with pytest.raises(echo.ReceiveTimeout, match=r"nothing arrived for 0\.3 s"):
            client.recv()
        assert client.echo(b"hello") == b"hello"


def test_closing_twice_is_closing_once(serve, connect):
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
    with echo.connect(server.server_address) as client:
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


def test_what_had_arrived_can_be_read_after_closing(serve, connect):
    client = connect(serve(plain(lambda sock: sock.sendall(b"1\n2\n3\n"))))
    assert client.recv() == b"1"
    waiting = client.connection.messages_in - 1
    client.close()
    assert list(client) == [b"2", b"3"][:waiting]


def test_closing_over_unread_replies_loses_nothing_that_was_sent(serve):
    handler = Recorder.of(echo.EchoRequestHandler)
    server = serve(handler)
    with echo.connect(server.server_address, timeout=DEADLINE) as client:
        for _ in range(2000):
            client.send(b"z" * 500)
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["eof"]
    assert handler.events == ["made"] + [b"z" * 500] * 2000 + ["lost"]


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("message", ["text", "text over the limit" * 5000, 7, None], ids=["text", "long", "7", "None"])
def test_what_is_no_bytes_is_refused_by_name(serve, framing, message):
    with echo.connect(serve(echo_of(framing())).server_address, framing=framing()) as client:
        for attempt in (client.send, client.echo, lambda message: list(client.echo_many([message]))):
            with pytest.raises(TypeError, match=f"a message is bytes, not {type(message).__name__}; encode it first"):
                attempt(message)
        assert client.echo(b"hello") == b"hello"


@pytest.mark.parametrize("message", ["a text of more bytes than there may be", [10]])
def test_what_is_no_bytes_is_told_so_whatever_else_is_wrong_with_it(serve, message):
    with echo.connect(serve().server_address, framing=echo.LineFraming(8)) as client:
        with pytest.raises(TypeError, match="a message is bytes, not "):
            client.send(message)
