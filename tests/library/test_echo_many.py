"""``echo_many``: many messages without waiting for each reply; also if it is left early, refused, or cut short."""

import collections
import contextlib
import os
import socket
import struct
import threading
import time
import tracemalloc

import pytest

import echo
from echo.sockets import unread
from support import DEADLINE, Recorder, eventually, plain, read_all, read_exactly, reset
from support.clients import FRAMINGS, connections, echo_of, patiently


@pytest.fixture
def connect():
    """``connect(server, **options)``: an ``echo.Client``, closed after the test."""
    with connections() as start:
        yield start


@pytest.fixture
def narrow(serve):
    """``narrow(handler_class, framing)``: a client and its server with small socket buffers, which many messages
    overfill."""
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


def numbered(count, size=0):
    """``count`` different messages, of at least ``size`` bytes."""
    return [(b"%d " % number).ljust(size, b".") for number in range(count)]


def send_timeout(sock):
    """A socket's timeout for the kernel, in seconds."""
    if os.name != "posix":
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO) / 1000
    seconds, microseconds = struct.unpack("@ll", sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16))
    return seconds + microseconds / 1e6


def on_the_wire(framing, messages):
    """The encoded messages."""
    return b"".join(map(framing.encode, messages))


def at_once(framing, messages, change=lambda data: data):
    """A handler class that reads all the messages before it replies, and then sends them all in one call, as
    ``change`` alters them."""
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
    client = connect(serve(handler), framing=framing())
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


def test_bytes_after_the_last_raw_reply_are_a_mismatch(serve, connect):
    server = serve(at_once(echo.RawFraming(), [b"one", b"two"], lambda data: data + b"!"))
    client = connect(server, framing=echo.RawFraming())
    with pytest.raises(echo.EchoMismatch) as caught:
        list(client.echo_many([b"one", b"two"]))
    assert (caught.value.sent, caught.value.received, caught.value.offset) == (b"two", b"two!", 3)


@pytest.mark.parametrize("window", [1, 2, 100])
def test_messages_are_read_ahead_by_the_window_at_most(serve, connect, window):
    client = connect(serve())
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


def test_a_whole_window_is_sent_without_a_reply(serve, connect):
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

    client = connect(serve(Late))
    assert list(client.echo_many(numbered(count), window)) == numbered(count)


def test_the_iterable_is_read_in_the_callers_thread(serve, connect):
    readers = set()

    def messages():
        for message in numbered(10):
            readers.add(threading.get_ident())
            yield message

    assert list(connect(serve()).echo_many(messages(), 3)) == numbered(10)
    assert readers == {threading.get_ident()}


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_server_that_reads_only_when_its_replies_are_read_causes_no_deadlock(narrow, framing):
    # The server writes in the thread that reads. The messages are far longer than all buffers together.
    messages = numbered(100, 60000)
    client = narrow(echo_of(framing()), framing())
    assert list(client.echo_many(messages, window=100)) == messages


def test_memory_is_bounded_by_the_window(serve, connect):
    count, size, window = 2000, 20000, 10
    client = connect(serve())
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
def test_a_mismatch_in_the_middle_is_raised_and_the_rest_can_be_read(serve, connect, framing, place):
    framing = framing()
    messages = numbered(10, 20)
    damaged = messages[5][:place] + b"#" + messages[5][place + 1 :]
    server = serve(at_once(framing, messages, lambda data: data.replace(messages[5], damaged)))
    client = connect(server, framing=framing)
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


@pytest.mark.parametrize("taken", [1, 40])
@pytest.mark.parametrize("framing", [echo.LineFraming, echo.LengthFraming])
def test_after_leaving_early_recv_returns_the_other_replies(serve, connect, framing, taken):
    messages = numbered(200)
    client = connect(serve(echo_of(framing())), framing=framing())
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
def test_a_server_that_does_not_read_does_not_hold_up_a_caller_that_leaves_early(narrow, reading_on):
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
    assert time.monotonic() - began < DEADLINE  # a tenth of the client's timeout
    assert handler.ended.wait(DEADLINE)
    if reading_on:
        assert handler.reasons == ["eof"]


@pytest.mark.parametrize("abruptly", [False, True], ids=["end", "reset"])
def test_the_end_of_the_connection_is_raised_after_the_replies_before_it(serve, connect, abruptly):
    come = threading.Event()

    def talk(sock):
        sock.sendall(read_exactly(sock, 4))
        assert come.wait(DEADLINE)
        if abruptly:
            reset(sock)

    client = connect(serve(plain(talk)))
    replies = client.echo_many([b"one", b"two", b"three", *numbered(100)], window=3)
    assert next(replies) == b"one"
    come.set()
    with pytest.raises(echo.ConnectionClosed):
        next(replies)
    assert not sending_threads()
    with pytest.raises(echo.ConnectionClosed):
        client.recv()


def test_an_end_inside_a_reply_is_raised_with_the_bytes_received_of_it(serve, connect):
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

    client = connect(serve(plain(talk)), timeout=0.05)
    eventually(lambda: unread(client.connection.socket) == 6 + len(begun))
    yielded = []
    with pytest.raises(error):
        for reply in client.echo_many(messages, window=10):
            yielded.append(reply)
    assert yielded == messages[:3]
    assert not sending_threads()
    go.set()
    assert [patiently(client.recv) for _ in messages[3:]] == messages[3:]


def test_a_caller_that_pauses_between_two_replies_costs_no_timeout(narrow):
    messages = numbered(100, 60000)
    client = narrow(echo_of(echo.LineFraming()), echo.LineFraming(), timeout=0.02)
    client.connection.idle_timeout = client.connection.message_timeout = DEADLINE
    replies = client.echo_many(messages)
    received = [next(replies)]
    seen = collections.deque([0], maxlen=20)  # all buffers are full, and remain so for much longer than the timeout
    eventually(lambda: seen.append(client.connection.bytes_out) or (len(seen) == 20 and len(set(seen)) == 1))
    assert received + list(replies) == messages
    assert send_timeout(client.connection.socket) == pytest.approx(0.02, rel=0.5)  # in steps of the system's clock


def test_a_server_that_neither_reads_nor_answers_ends_it_in_time(narrow):
    done = threading.Event()
    client = narrow(plain(lambda sock: done.wait(DEADLINE)), echo.RawFraming(), timeout=0.05)
    try:
        with pytest.raises(TimeoutError):
            list(client.echo_many(numbered(100, 60000), window=100))
        assert not sending_threads()
    finally:
        done.set()


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_below_one_is_refused_before_anything_is_sent(serve, connect, window):
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


def test_echo_many_of_a_closed_client_raises(serve, connect):
    client = connect(serve())
    client.close()
    with pytest.raises(echo.ConnectionClosed, match="closed"):
        list(client.echo_many([b"x"]))
    assert not sending_threads()


def test_an_exception_of_the_iterable_is_raised_and_the_session_goes_on(serve, connect):
    def messages():
        yield from numbered(5)
        raise KeyError("no sixth")

    client = connect(serve())
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
    client = connect(serve(Notes))

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
    client = connect(serve())
    for count in (10, 0, 1, 7, 30):
        assert list(client.echo_many(numbered(count), window=5)) == numbered(count)
        assert not sending_threads()
    replies = client.echo_many(numbered(3))
    assert not sending_threads()  # nothing happens before the first reply is asked for
    assert next(replies) == numbered(3)[0]
    replies.close()
    assert not sending_threads()


def test_a_thread_that_has_no_processor_is_not_the_servers_fault(serve, connect, monkeypatch):
    send = echo.client.client._Sender._run

    def late(sender):
        send(sender)
        time.sleep(0.2)  # as if it had to wait: longer than the timeout

    monkeypatch.setattr(echo.client.client._Sender, "_run", late)
    with connect(serve(), timeout=0.01) as client:
        client.connection.idle_timeout = client.connection.message_timeout = DEADLINE
        assert list(client.echo_many([b"a", b"b"])) == [b"a", b"b"]
        assert client.echo(b"c") == b"c"


def test_a_lack_of_threads_leaves_the_client_as_it_was(serve, connect, monkeypatch):
    def no_thread(thread):
        raise RuntimeError("can't start new thread")

    with connect(serve()) as client:
        assert client.echo(b"here") == b"here"  # its session has a thread
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(RuntimeError):
                list(client.echo_many([b"a"]))
        assert send_timeout(client.connection.socket) == DEADLINE
        assert client.echo(b"b") == b"b"


def test_leaving_early_does_not_wait_for_replies_that_the_server_never_sends(serve, connect):
    def talk(sock):
        sock.sendall(read_exactly(sock, 1_000_001))
        threading.Event().wait(0.2)  # the sending thread blocks meanwhile, so that leaving has to wait for it
        read_all(sock)

    client = connect(serve(plain(talk)), framing=echo.LineFraming(1 << 20), timeout=DEADLINE * 10)
    replies = client.echo_many([b"x" * 1_000_000] * 20, window=20)
    next(replies)
    began = time.monotonic()
    replies.close()
    assert time.monotonic() - began < DEADLINE  # a tenth of the client's timeout


@pytest.mark.parametrize("many", [True, False], ids=["echo_many", "echo"])
def test_a_timeout_loses_no_byte_of_a_raw_reply(serve, connect, many):
    go = threading.Event()

    def talk(sock):
        sock.sendall(b"firsthal")
        assert go.wait(DEADLINE)
        sock.sendall(b"f")
        read_all(sock)

    client = connect(serve(plain(talk)), framing=echo.RawFraming(), timeout=0.05)
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


def test_half_a_reply_that_is_late_while_the_caller_leaves_is_not_lost(narrow):
    leaving, late = threading.Event(), threading.Event()

    def talk(sock):
        data = read_exactly(sock, 2 * 300_001)
        sock.sendall(data[:300_001])  # the first reply
        assert leaving.wait(DEADLINE)
        sock.sendall(data[300_001:310_000])  # a part of the second
        assert late.wait(DEADLINE)  # the sending thread is blocked, since nothing is read
        sock.sendall(data[310_000:])
        while data:
            data = sock.recv(65536)
            sock.sendall(data)

    client = narrow(plain(talk), echo.LineFraming(300_000))
    receive = client.connection.receive

    def watched():
        try:
            return receive()
        except echo.MessageTimeout:
            late.set()
            raise

    messages = numbered(20, 300_000)
    replies = client.echo_many(messages, window=20)
    received = [next(replies)]
    eventually(lambda: client.connection.messages_out > 2)  # the third fits into no buffer
    client.connection.receive = watched
    client.connection.message_timeout = 0.1
    leaving.set()
    replies.close()
    assert late.is_set()
    client.connection.message_timeout = DEADLINE
    received += [patiently(client.recv) for _ in range(client.connection.messages_out - 1)]
    assert len(received) > 1 and received == messages[: len(received)]


@pytest.mark.parametrize("timeout", [None, 3 * DEADLINE])
def test_a_server_that_ends_its_side_and_reads_nothing_does_not_block_the_caller(narrow, timeout):
    done = threading.Event()

    def talk(sock):
        sock.shutdown(socket.SHUT_WR)
        done.wait(4 * DEADLINE)

    client = narrow(plain(talk), echo.LineFraming(), timeout=timeout)
    errors = []

    def use():
        with pytest.raises(echo.ConnectionClosed) as caught:
            list(client.echo_many(numbered(100, 60000), window=100))
        errors.append(caught.value)
        client.close()

    user = threading.Thread(target=use, daemon=True)
    user.start()
    user.join(DEADLINE)
    raised = [str(error) for error in errors]
    returned = not user.is_alive()
    done.set()  # otherwise nothing would end here
    user.join(DEADLINE)
    assert (returned, raised) == (True, ["the server has ended the session"])
    assert not sending_threads()


@pytest.mark.parametrize("bad, error", [(b"two\nlines", ValueError), (b"x" * 101, echo.MessageTooLong)])
@pytest.mark.parametrize("window", [1, 3, 100])
def test_a_message_that_the_framing_cannot_carry_is_raised_after_the_replies_before_it(
    serve, connect, bad, error, window
):
    handler = Recorder.of(echo.EchoRequestHandler)
    client = connect(serve(handler), framing=echo.LineFraming(100))
    yielded = []
    with pytest.raises(error):
        for reply in client.echo_many([*numbered(10), bad, b"never"], window):
            yielded.append(reply)
    assert yielded == numbered(10)
    assert client.connection.messages_out == 10
    assert client.echo(b"usable") == b"usable"
    assert handler.events == ["made", *numbered(10), b"usable"]


def test_closing_is_not_held_up_by_an_echo_many_that_was_not_finished(narrow):
    client = narrow(echo_of(echo.LineFraming()), echo.LineFraming(), timeout=DEADLINE * 10)
    replies = client.echo_many(numbered(50, 60000), window=50)
    assert next(replies) == numbered(1, 60000)[0]
    eventually(lambda: client.connection._output.locked())
    threading.Event().wait(0.1)  # until all buffers are full
    began = time.monotonic()
    client.close()
    assert time.monotonic() - began < DEADLINE  # a tenth of the client's timeout
    assert not sending_threads()


@pytest.mark.parametrize("is_interrupted", [True, False])
@pytest.mark.parametrize("timeout", [None, DEADLINE * 10])
def test_closing_is_not_held_up_by_a_thread_that_sends_to_a_server_that_does_not_read(
    narrow, monkeypatch, timeout, is_interrupted
):
    """A second Ctrl-C ended the wait for the thread, which had no limit. Without a timeout the wait had none, too."""

    def interrupted(seconds):
        raise KeyboardInterrupt

    def leave():
        if is_interrupted:
            monkeypatch.setattr(client, "_take_in", interrupted)
            with pytest.raises(KeyboardInterrupt):
                replies.close()
        replies.close()
        client.close()

    done = threading.Event()
    monkeypatch.setattr("echo.client.client.SEND_TIMEOUT", 0.2, raising=False)
    framing = echo.LineFraming()
    client = narrow(plain(lambda sock: (sock.sendall(b"0\n"), done.wait(4 * DEADLINE))), framing, timeout=timeout)
    replies = client.echo_many([b"0", *numbered(50, 60000)], window=50)
    assert next(replies) == b"0"
    eventually(lambda: client.connection._output.locked())
    if timeout is not None and not is_interrupted:
        client._timeout = 0.2
    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()
    leaving.join(DEADLINE)
    has_left = not leaving.is_alive()
    done.set()  # otherwise nothing would end here
    leaving.join(DEADLINE)
    assert has_left and not sending_threads()


def test_an_interruption_at_the_end_of_echo_many_leaves_the_connection_as_it_is(connect, serve, monkeypatch):
    client = connect(serve())
    replies = client.echo_many(numbered(3))
    assert [next(replies) for _ in range(3)] == numbered(3)

    def interrupted(self, seconds=None):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr("echo.client.client.Thread.join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(replies)
    assert client.echo(b"usable") == b"usable"


# Input that arrives while a message is still being sent.


@pytest.fixture
def pair():
    """A client, and the socket of its server."""
    ours, theirs = socket.socketpair()
    with echo.Client(ours, timeout=0.05) as client, theirs:
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
def test_an_end_while_a_message_is_being_sent_is_raised_after_the_messages_before_it(pair, rest, error):
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
