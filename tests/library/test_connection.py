"""A connection: messages over a real socket in batches, in time or with the right error, and without losing a byte."""

import array
import contextlib
import signal
import socket
import sys
import threading
import time

import pytest

from echo.connection import ABORTED, HIGH_WATER, INPUT_ENDED, MAX_READ, MIN_READ, OPEN, PEER_ENDED, Connection
from echo.exceptions import ConnectionClosed, MessageTimeout, MessageTooLong, ReceiveTimeout, SendTimeout
from echo.framing import LengthFraming, LineFraming, RawFraming
from echo.sockets import TIMED_OUT, unread
from support import DEADLINE, eventually, read_all, read_exactly, reset

SHORT = 0.05
"""Seconds of the timeouts that are meant to pass."""

BIG = 16 << 20
"""More bytes than the queues of any two sockets hold."""


class SpySocket(socket.socket):
    """Records its system calls in ``calls``; ``reading`` is set before each read."""

    @classmethod
    def over(cls, sock):
        spy = cls(fileno=sock.detach())
        spy.calls = []
        spy.reading = threading.Event()
        return spy

    def sendall(self, data, *arguments):
        self.calls.append(("send", len(data)))
        return super().sendall(data, *arguments)

    def recv(self, size, *arguments):
        self.calls.append(("recv", size))
        self.reading.set()
        return super().recv(size, *arguments)

    @property
    def sends(self):
        return [call for call in self.calls if call[0] == "send"]


@pytest.fixture
def sockets():
    """``sockets(...)``: a spied-on socket and its peer, connected over TCP on the loopback, closed after the test."""
    with contextlib.ExitStack() as stack:

        def connect(buffer_size=None):
            with socket.socket() as listener:
                if buffer_size is not None:
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_size)
                listener.bind(("127.0.0.1", 0))
                listener.listen()
                peer = stack.enter_context(socket.socket())
                if buffer_size is not None:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_size)
                peer.connect(listener.getsockname())
                peer.settimeout(DEADLINE)
                accepted = stack.enter_context(SpySocket.over(listener.accept()[0]))
            return accepted, peer

        yield connect


@pytest.fixture
def connect(sockets):
    """``connect(framing, **timeouts)``: a ``Connection`` and the raw socket of its peer."""

    def start(framing=None, buffer_size=None, **timeouts):
        sock, peer = sockets(buffer_size)
        return Connection(sock, framing or LineFraming(), **timeouts), peer

    return start


class Background:
    """``function(...)`` in a thread; ``result`` returns its value or raises its exception."""

    def __init__(self, function, *arguments):
        self._outcome = None
        self._error = None
        self._thread = threading.Thread(target=self._run, args=(function, *arguments), daemon=True)
        self._thread.start()

    def _run(self, function, *arguments):
        try:
            self._outcome = function(*arguments)
        except BaseException as exc:
            self._error = exc

    def result(self):
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "it never returned"
        if self._error is not None:
            raise self._error
        return self._outcome


@contextlib.contextmanager
def dripping(peer, byte=b"x", interval=0.01):
    """The peer sends one byte at a time, to the end of the block or ``DEADLINE``, and then closes its output."""
    stop = threading.Event()
    dripped = []

    def drip():
        for _ in range(int(DEADLINE / interval)):
            if stop.wait(interval):
                return
            peer.sendall(byte)
            dripped.append(byte)
        peer.shutdown(socket.SHUT_WR)

    thread = Background(drip)
    try:
        yield dripped
    finally:
        stop.set()
        thread.result()


def arrived(connection, size):
    """Wait until ``size`` bytes can be read."""
    eventually(lambda: unread(connection.socket) == size, f"{size} bytes never arrived")


def receive_until_end(connection):
    messages = []
    while True:
        more = connection.receive()
        if not more:
            return messages
        messages += more


# Receiving.


def test_messages_are_received_in_order_and_counted(connect):
    connection, peer = connect()
    lines = [b"line %d\r" % number for number in range(20_000)]
    stream = b"".join(line + b"\n" for line in lines)
    sender = Background(lambda: (peer.sendall(stream), peer.shutdown(socket.SHUT_WR)))
    assert receive_until_end(connection) == lines
    sender.result()
    assert (connection.messages_in, connection.bytes_in) == (len(lines), len(stream))
    assert (connection.messages_out, connection.bytes_out) == (0, 0)


def test_one_read_returns_all_the_messages_it_completed(connect):
    connection, peer = connect()
    peer.sendall(b"one\n\ntwo\nthr")
    arrived(connection, 12)
    assert connection.receive() == [b"one", b"", b"two"]
    peer.sendall(b"ee\n")
    assert connection.receive() == [b"three"]
    assert connection.messages_in == 4


def test_the_end_of_the_input_is_an_empty_list_again_and_again(connect):
    connection, peer = connect()
    peer.sendall(b"one\nrest\r")
    peer.shutdown(socket.SHUT_WR)
    assert receive_until_end(connection) == [b"one"]
    assert connection.receive() == []
    assert connection.finish_input() == b"rest\r"
    assert connection.finish_input() == b""


def test_a_message_too_long_is_raised_after_those_before_it_and_kept(connect):
    connection, peer = connect(LineFraming(5))
    peer.sendall(b"one\ntwo\ntoo long\nnever\n")
    arrived(connection, 23)
    assert connection.receive() == [b"one", b"two"]
    for _ in range(2):
        with pytest.raises(MessageTooLong) as caught:
            connection.receive()
        assert caught.value.connection is connection


def test_replies_are_sent_before_a_message_too_long_is_raised(connect):
    connection, peer = connect(LineFraming(5))
    peer.sendall(b"one\ntoo long\n")
    arrived(connection, 13)
    connection.write(connection.receive()[0])
    with pytest.raises(MessageTooLong):
        connection.receive()
    assert read_exactly(peer, 4) == b"one\n"


def test_a_read_grows_with_use_and_shrinks_without(sockets):
    asked = []
    flood = [True]

    class Source:
        def setsockopt(self, *arguments):
            pass

        def recv(self, size):
            asked.append(size)
            return b"x" * size if flood[0] else b"x"

    connection = Connection(Source(), RawFraming(MAX_READ))
    for _ in range(6):
        connection.receive()
    assert asked[0] == MIN_READ
    assert asked == sorted(asked)
    assert asked[-1] == MAX_READ
    flood[0] = False
    del asked[:]
    for _ in range(6):
        connection.receive()
    assert asked == sorted(asked, reverse=True)
    assert asked[-1] == MIN_READ


def test_a_read_that_is_neither_full_nor_nearly_empty_changes_nothing(sockets):
    sock, peer = sockets()
    connection = Connection(sock, RawFraming())
    peer.sendall(b"x" * (MIN_READ // 2))
    arrived(connection, MIN_READ // 2)
    connection.receive()
    peer.sendall(b"x")
    connection.receive()
    assert sock.calls == [("recv", MIN_READ)] * 2


# Sending.


def test_queued_messages_are_sent_in_one_call_at_the_flush(connect):
    connection, peer = connect()
    lines = [b"line %d" % number for number in range(1000)]
    for line in lines:
        connection.write(line)
    assert connection.socket.sends == []
    assert connection.messages_out == 0
    connection.flush()
    expected = b"".join(line + b"\n" for line in lines)
    assert connection.socket.sends == [("send", len(expected))]
    assert read_exactly(peer, len(expected)) == expected
    assert (connection.messages_out, connection.bytes_out) == (1000, len(expected))
    connection.flush()
    assert len(connection.socket.sends) == 1


def test_queued_messages_are_sent_before_the_next_read(connect):
    connection, peer = connect()
    peer.sendall(b"question\n")
    connection.write(b"one")
    connection.write(b"two")
    assert connection.receive() == [b"question"]
    assert connection.socket.calls == [("send", 8), ("recv", MIN_READ)]
    assert read_exactly(peer, 8) == b"one\ntwo\n"


def test_a_peer_that_waits_for_the_reply_gets_it_while_we_wait_for_the_peer(connect):
    connection, peer = connect()
    connection.write(b"reply")
    receiving = Background(connection.receive)
    assert read_exactly(peer, 6) == b"reply\n"
    peer.sendall(b"next\n")
    assert receiving.result() == [b"next"]


def test_pipelined_lines_cost_a_handful_of_system_calls(connect):
    connection, peer = connect()
    count = 10_000
    stream = b"".join(b"%d\n" % number for number in range(count))
    sender = Background(lambda: (peer.sendall(stream), peer.shutdown(socket.SHUT_WR)))
    reader = Background(read_all, peer)
    while True:
        messages = connection.receive()
        if not messages:
            break
        for message in messages:
            connection.write(message)
    connection.end_output()
    sender.result()
    assert reader.result() == stream
    assert len(connection.socket.calls) < count / 10


def test_queued_messages_are_sent_when_there_are_many(connect):
    connection, peer = connect()
    line = b"x" * 1023
    for _ in range(HIGH_WATER // 1024 - 1):
        connection.write(line)
    assert connection.socket.sends == []
    connection.write(line)
    assert connection.socket.sends == [("send", HIGH_WATER)]
    assert read_exactly(peer, HIGH_WATER) == (line + b"\n") * (HIGH_WATER // 1024)
    connection.write(line)
    assert len(connection.socket.sends) == 1
    connection.flush()
    assert connection.socket.sends[1:] == [("send", 1024)]


@pytest.mark.parametrize("framing", [LineFraming(), LengthFraming(), RawFraming()], ids=repr)
def test_many_messages_are_queued_as_each_of_them_is(connect, framing):
    connection, peer = connect(framing)
    messages = [b"one", b"", b"three", bytearray(b"four")]
    connection.write_many(messages)
    connection.write(b"five")
    connection.flush()
    assert connection.messages_out == 5
    connection.end_output()
    assert read_all(peer) == b"".join(framing.encode(message) for message in [*messages, b"five"])


@pytest.mark.parametrize(("bad", "error"), [(b"too long", MessageTooLong), (b"a\nb", ValueError), ("text", TypeError)])
def test_a_message_of_many_that_cannot_be_carried_costs_none_before_it(connect, bad, error):
    connection, peer = connect(LineFraming(max_sent=5))
    with pytest.raises(error):
        connection.write_many([b"one", bad, b"two"])
    connection.end_output()
    assert read_all(peer) == b"one\n"


def test_many_messages_may_be_longer_together_than_one_may_be(connect):
    connection, peer = connect(LineFraming(max_sent=5))
    connection.write_many([b"12345"] * 3)
    connection.end_output()
    assert read_all(peer) == b"12345\n" * 3


def test_raw_bytes_are_queued_among_the_messages_without_framing(connect):
    connection, peer = connect(LengthFraming())
    connection.write(b"a")
    connection.write_raw(b"raw")
    connection.write(b"b")
    connection.end_output()
    assert read_all(peer) == b"\0\0\0\1araw\0\0\0\1b"


def test_a_message_that_cannot_be_framed_is_an_error_and_loses_no_other(connect):
    connection, peer = connect(LineFraming(max_sent=5))
    connection.write(b"one")
    for refused, error in ((b"too long", MessageTooLong), (b"a\nb", ValueError)):
        with pytest.raises(error):
            connection.write(refused)
        with pytest.raises(error):
            connection.send(refused)
    connection.write(b"two")
    connection.end_output()
    assert read_all(peer) == b"one\ntwo\n"


@pytest.mark.parametrize("framing", [LineFraming, LengthFraming, RawFraming])
@pytest.mark.parametrize("message", ["text", "text over the limit" * 5000, 7, None], ids=["text", "long", "7", "None"])
def test_a_message_that_is_not_bytes_is_a_clear_error_and_loses_no_other(connect, framing, message):
    connection, peer = connect(framing())
    connection.write(b"one")
    for refuse in (connection.write, connection.send):
        with pytest.raises(TypeError, match=f"a message is bytes, not {type(message).__name__}"):
            refuse(message)
    connection.write(b"two")
    connection.end_output()
    assert read_all(peer) == framing().encode(b"one") + framing().encode(b"two")
    assert connection.messages_out == 2


@pytest.mark.parametrize("framing", [LineFraming, LengthFraming, RawFraming])
def test_a_buffer_that_is_reused_does_not_change_queued_messages(connect, framing):
    connection, peer = connect(framing())
    buffer = bytearray(b"one")
    connection.write(buffer)
    buffer[:] = b"two"
    connection.write(buffer)
    connection.end_output()
    assert read_all(peer) == framing().encode(b"one") + framing().encode(b"two")


def test_messages_sent_by_many_threads_arrive_whole_and_in_each_threads_order(connect):
    senders, count, size = 4, 12, 400_000
    connection, peer = connect(LengthFraming(1 << 20), buffer_size=16_384)
    together = threading.Barrier(senders + 1)

    def message(sender, number):
        return bytes([sender]) + bytes([number]) * (size + 1000 * sender)

    def send(sender):
        together.wait(DEADLINE)
        for number in range(count):
            connection.send(message(sender, number))

    def own():
        together.wait(DEADLINE)
        for number in range(count):
            connection.write(message(senders, number))
        connection.flush()

    def read():
        decoder = LengthFraming(1 << 20).decoder()
        messages = []
        while len(messages) < (senders + 1) * count:
            data = peer.recv(1 << 18)
            assert data
            messages += decoder.feed(data)
            assert decoder.error is None
        assert not decoder.pending
        return messages

    reader = Background(read)
    threads = [Background(send, sender) for sender in range(senders)] + [Background(own)]
    messages = reader.result()
    for thread in threads:
        thread.result()
    for sender in range(senders + 1):
        sent = [message(sender, number) for number in range(count)]
        assert [received for received in messages if received[0] == sender] == sent
    assert connection.messages_out == (senders + 1) * count


# Deadlines.


def test_a_timeout_loses_no_byte_of_a_partial_message(connect):
    connection, peer = connect(idle_timeout=SHORT)
    peer.sendall(b"par")
    with pytest.raises(ReceiveTimeout) as caught:
        connection.receive()
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.reason == "idle"
    assert caught.value.connection is connection
    with pytest.raises(ReceiveTimeout):
        connection.receive()
    peer.sendall(b"tial\nmore\n")
    arrived(connection, 10)
    assert connection.receive() == [b"partial", b"more"]


def test_an_idle_timeout_lets_the_connection_go_on(connect):
    connection, peer = connect(idle_timeout=SHORT, message_timeout=DEADLINE)
    for number in range(2):
        with pytest.raises(ReceiveTimeout, match=f"{SHORT} s"):
            connection.receive()
        peer.sendall(b"%d\n" % number)
        arrived(connection, 2)
        assert connection.receive() == [b"%d" % number]
        connection.send(b"reply")
        assert read_exactly(peer, 6) == b"reply\n"


def test_the_idle_timeout_is_back_after_a_message_in_parts(connect):
    connection, peer = connect(idle_timeout=SHORT, message_timeout=DEADLINE)
    peer.sendall(b"one\ntw")
    arrived(connection, 6)
    assert connection.receive() == [b"one"]
    peer.sendall(b"o\n")
    assert connection.receive() == [b"two"]
    with pytest.raises(ReceiveTimeout):
        connection.receive()


def test_dripping_bytes_do_not_defeat_the_message_timeout(connect):
    connection, peer = connect(idle_timeout=DEADLINE, message_timeout=SHORT)
    with dripping(peer) as dripped:
        with pytest.raises(MessageTimeout) as caught:
            connection.receive()
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.reason == "slow"
    assert caught.value.connection is connection
    peer.sendall(b"\n")
    arrived(connection, len(dripped) + 1 - connection.bytes_in)
    assert connection.receive() == [b"x" * len(dripped)]


def test_dripping_bytes_of_a_length_prefix_do_not_defeat_the_message_timeout(connect):
    connection, peer = connect(LengthFraming(1 << 30), message_timeout=SHORT)
    with dripping(peer, b"\1"), pytest.raises(MessageTimeout):
        connection.receive()


def test_silence_inside_a_message_is_a_message_timeout(connect):
    connection, peer = connect(idle_timeout=DEADLINE, message_timeout=SHORT)
    peer.sendall(b"one\ntw")
    arrived(connection, 6)
    assert connection.receive() == [b"one"]
    with pytest.raises(MessageTimeout, match=f"{SHORT} s"):
        connection.receive()
    peer.sendall(b"o\n")
    arrived(connection, 2)
    assert connection.receive() == [b"two"]


@pytest.mark.parametrize("idle_timeout", [None, DEADLINE])
def test_a_message_that_still_does_not_end_times_out_again(connect, idle_timeout):
    connection, peer = connect(idle_timeout=idle_timeout, message_timeout=SHORT)
    peer.sendall(b"x")
    for _ in range(3):
        with pytest.raises(MessageTimeout):
            connection.receive()
    peer.sendall(b"\n")
    arrived(connection, 1)
    assert connection.receive() == [b"x"]


def test_after_an_abort_nothing_is_received_although_the_peer_sends_on(connect):
    connection, peer = connect()
    peer.sendall(b"one\n")
    arrived(connection, 4)
    connection.abort()
    for _ in range(2):
        with pytest.raises(ConnectionClosed, match="this side has reset the connection"):
            connection.receive()


def test_a_message_that_began_without_a_limit_gets_the_one_that_is_set_now(connect):
    connection, peer = connect()
    peer.sendall(b"one\nx")
    arrived(connection, 5)
    assert connection.receive() == [b"one"]
    connection.message_timeout = SHORT
    with pytest.raises(MessageTimeout):
        connection.receive()


@pytest.mark.parametrize("idle_timeout", [None, DEADLINE])
def test_the_idle_timeout_is_back_after_a_message_that_had_timed_out(connect, idle_timeout):
    connection, peer = connect(idle_timeout=idle_timeout, message_timeout=SHORT)
    peer.sendall(b"par")
    with pytest.raises(MessageTimeout):
        connection.receive()
    peer.sendall(b"tial\n")
    arrived(connection, 5)
    assert connection.receive() == [b"partial"]
    receiving = Background(connection.receive)
    threading.Event().wait(2 * SHORT)  # the time that is not to be limited
    peer.sendall(b"late\n")
    assert receiving.result() == [b"late"]


@pytest.mark.parametrize("beginning", [b"", b"one\n", b"one\ntw"])
def test_waiting_for_a_message_is_not_bound_by_the_message_timeout(connect, beginning):
    connection, peer = connect(message_timeout=SHORT)
    if beginning:
        peer.sendall(beginning)
        arrived(connection, len(beginning))
        assert connection.receive() == [b"one"]
    if not beginning.endswith(b"\n") and beginning:
        peer.sendall(b"o\n")
        arrived(connection, 2)
        assert connection.receive() == [b"two"]
    receiving = Background(connection.receive)
    threading.Event().wait(2 * SHORT)  # the time that is not to be limited
    peer.sendall(b"late\n")
    assert receiving.result() == [b"late"]


class Script:
    """A socket whose reads return given bytes, each at a given time of its ``clock``, which stands still in between.

    None in place of bytes is a read that times out.
    """

    def __init__(self, *reads):
        self.now = 0.0
        self.reads = list(reads)

    def clock(self):
        return self.now

    def setsockopt(self, *arguments):
        pass

    def recv(self, size):
        self.now, data = self.reads.pop(0)
        if data is None:
            raise TIMED_OUT[0]
        return data


def scripted(*reads):
    """A script, and a connection over it that gives each message 10 seconds."""
    script = Script(*reads)
    connection_class = type("Scripted", (Connection,), {"clock": staticmethod(script.clock)})
    return script, connection_class(script, LineFraming(), message_timeout=10)


def test_a_message_has_its_time_from_its_first_byte_to_its_last():
    script, connection = scripted((0, b"x"), (4, b"x"), (8, b"x"), (12, b"x"), (13, b"\n"))
    with pytest.raises(MessageTimeout):
        connection.receive()
    assert script.now == 12
    assert connection.receive() == [b"xxxx"]


def test_each_message_has_a_time_of_its_own():
    _, connection = scripted((0, b"one\nt"), (9, b"wo\nthr"), (15, b"e"), (18, b"e\n"), (40, b"f"), (49, b"our\n"))
    assert [connection.receive() for _ in range(4)] == [[b"one"], [b"two"], [b"three"], [b"four"]]


def test_the_time_that_the_owner_spends_between_reads_does_not_count():
    script, connection = scripted((0, b"one\ntw"), (108, b"o"), (109, b"\nthr"), (305, b"e"), (311, b"e"))
    assert connection.receive() == [b"one"]
    script.now = 100  # the owner was busy; then it waits for 9 seconds
    assert connection.receive() == [b"two"]
    script.now = 300  # this time it waits for 11 seconds
    with pytest.raises(MessageTimeout):
        connection.receive()
    assert script.now == 311


def test_after_a_message_timeout_the_message_has_the_whole_time_again():
    script, connection = scripted((0, b"a"), (8, b"b"), (11, None), (120, b"c"), (128, b"d"), (130, b"e"))
    with pytest.raises(MessageTimeout):
        connection.receive()
    script.now = 119  # the owner comes back late, which does not count either
    with pytest.raises(MessageTimeout):
        connection.receive()
    assert script.now == 130


def test_a_peer_that_never_reads_is_a_send_timeout_and_so_is_every_later_send(connect):
    connection, _peer = connect(LengthFraming(BIG), buffer_size=16_384, send_timeout=SHORT)
    with pytest.raises(SendTimeout) as caught:
        connection.send(b"x" * BIG)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.reason == "slow"
    assert caught.value.connection is connection
    calls = len(connection.socket.calls)
    connection.write(b"more")
    for action in (connection.flush, lambda: connection.send(b"more")):
        with pytest.raises(SendTimeout):
            action()
    assert len(connection.socket.calls) == calls  # no byte may follow half a message
    assert connection.messages_out == 0


def test_nothing_follows_a_message_that_a_signal_has_cut_off(connect):
    """A signal handler may raise in the middle of a send; the program may go on with the connection."""
    connection, peer = connect(LengthFraming(BIG), buffer_size=16_384)
    main = threading.get_ident()

    def interrupt():
        read_exactly(peer, 1000)
        signal.pthread_kill(main, signal.SIGALRM)

    def raise_error(number, frame):
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, raise_error)
    try:
        interrupting = Background(interrupt)
        with pytest.raises(KeyboardInterrupt):
            connection.send(b"x" * BIG)
        interrupting.result()
    finally:
        signal.signal(signal.SIGALRM, handler)
    with pytest.raises(ConnectionClosed, match="cut off"):
        connection.send(b"more")
    assert set(read_all(peer)) <= set(b"x")
    assert connection.messages_out == 0


def test_queued_messages_for_a_peer_that_never_reads_time_out_too(connect):
    connection, _peer = connect(LengthFraming(BIG), buffer_size=16_384, send_timeout=SHORT)
    with pytest.raises(SendTimeout):
        connection.write(b"x" * BIG)


@pytest.mark.parametrize("timeout", [0.2, pytest.param(2.0, marks=pytest.mark.slow)])
def test_a_peer_that_reads_slowly_is_not_timed_out(connect, timeout):
    """The timeout limits each wait in which the peer takes nothing, not the whole message."""
    message = bytes(range(256)) * 4096

    def read(peer, gaps):
        parts = []
        last = time.monotonic()
        while not parts or parts[-1]:
            if len(gaps) < 12:
                threading.Event().wait(timeout / 8)  # in all, one and a half times the timeout
            parts.append(peer.recv(65536))
            gaps.append(time.monotonic() - last)
            last += gaps[-1]
        return b"".join(parts)

    def all_is_sent():
        gaps = []
        connection, peer = connect(LengthFraming(BIG), buffer_size=16_384, send_timeout=timeout)
        reader = Background(read, peer, gaps)
        try:
            connection.send(message)
        except SendTimeout:
            reader.result()
            assert max(gaps) > timeout / 2
            return False  # the reader got no processor for most of the timeout: repeat the trial
        connection.end_output()
        assert reader.result() == LengthFraming(BIG).encode(message)
        return True

    eventually(all_is_sent)


@pytest.mark.parametrize("has_room", [True, False])
def test_a_send_whose_time_is_over_is_tried_once_more(monkeypatch, has_room):
    """Linux wakes a thread that sends when a third of the send buffer is free: there may be room all the same."""

    def send(sock, data, flags=0):
        if flags != socket.MSG_DONTWAIT or not has_room:
            raise BlockingIOError
        return sock.send(data[:3], flags)

    ours, peer = socket.socketpair()
    with ours, peer:
        connection = Connection(ours, LineFraming(), send_timeout=DEADLINE)
        monkeypatch.setattr("echo.sockets._system_send", send)
        if has_room:
            connection.send(b"hello")
            assert read_exactly(peer, 6) == b"hello\n"
        else:
            with pytest.raises(SendTimeout):
                connection.send(b"hello")


def test_an_array_whose_items_are_wider_than_a_byte_is_sent_to_its_last_byte(monkeypatch):
    message = array.array("I", range(5))
    ours, peer = socket.socketpair()
    with ours, peer:
        peer.settimeout(DEADLINE)
        # The first call sends as many bytes as there are items.
        monkeypatch.setattr("echo.sockets._system_send", lambda sock, data: sock.send(memoryview(data).cast("B")[:5]))
        Connection(ours, RawFraming()).write_raw(message)
        assert read_exactly(peer, 20) == message.tobytes()


def test_a_send_that_fails_wakes_the_owner_with_the_same_error(connect):
    connection, _peer = connect(LengthFraming(BIG), buffer_size=16_384, send_timeout=SHORT)
    receiving = Background(connection.receive)
    assert connection.socket.reading.wait(DEADLINE)
    with pytest.raises(SendTimeout) as caught:
        connection.send(b"x" * BIG)
    with pytest.raises(SendTimeout) as received:
        receiving.result()
    assert repr(received.value) == repr(caught.value)
    assert caught.value.connection is connection


def test_the_socket_never_gets_a_python_timeout(connect):
    connection, peer = connect(idle_timeout=SHORT, message_timeout=SHORT, send_timeout=SHORT)
    assert connection.socket.gettimeout() is None
    peer.sendall(b"one\ntw")
    arrived(connection, 6)
    connection.receive()
    with pytest.raises(MessageTimeout):
        connection.receive()
    connection.send(b"reply")
    assert connection.socket.gettimeout() is None
    assert connection.socket.getblocking()


# Ends.


def test_a_reset_while_receiving_is_connection_closed_and_kept(connect):
    connection, peer = connect()
    receiving = Background(connection.receive)
    assert connection.socket.reading.wait(DEADLINE)
    reset(peer)
    with pytest.raises(ConnectionClosed) as caught:
        receiving.result()
    assert isinstance(caught.value, ConnectionError)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.reason == "reset"
    assert caught.value.connection is connection


def test_a_reset_while_sending_is_connection_closed_and_kept(connect):
    connection, peer = connect(LengthFraming(BIG), buffer_size=16_384)
    sending = Background(connection.send, b"x" * BIG)
    read_exactly(peer, 1)  # it has begun
    reset(peer)
    with pytest.raises(ConnectionClosed) as caught:
        sending.result()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.connection is connection
    with pytest.raises(ConnectionClosed):
        connection.send(b"more")
    with pytest.raises(ConnectionClosed):
        connection.receive()


def test_a_reset_that_only_a_sending_thread_saw_is_not_the_end_of_the_input(sockets):
    """The system reports a reset once; the next read returns the end of the input."""
    told, read = threading.Event(), threading.Event()

    class Told(SpySocket):
        def sendall(self, data, *arguments):
            try:
                return super().sendall(data, *arguments)
            except OSError:
                told.set()
                read.wait(DEADLINE)  # the moment before the connection knows
                raise

        def recv(self, size, *arguments):
            data = super().recv(size, *arguments)
            read.set()
            return data

    ours, peer = sockets()
    with Told.over(ours) as ours:
        connection = Connection(ours, LengthFraming(BIG))
        sending = Background(connection.send, b"x" * BIG)
        read_exactly(peer, 1)  # it has begun
        reset(peer)
        assert told.wait(DEADLINE)
        with pytest.raises(ConnectionClosed, match="the connection was lost"):
            connection.receive()
        with pytest.raises(ConnectionClosed):
            sending.result()


def test_ending_the_output_sends_what_is_queued_and_leaves_the_input_open(connect):
    connection, peer = connect()
    connection.write(b"last")
    connection.end_output()
    assert read_all(peer) == b"last\n"
    peer.sendall(b"still here\n")
    assert connection.receive() == [b"still here"]
    peer.close()
    assert connection.receive() == []


def test_ending_the_output_of_a_lost_connection_does_not_raise(connect):
    connection, peer = connect()
    reset(peer)
    with pytest.raises(ConnectionClosed):
        connection.receive()
    connection.end_output()
    connection.end_input()


def test_ending_the_input_wakes_a_blocked_receive(connect):
    connection, _peer = connect()
    receiving = Background(connection.receive)
    assert connection.socket.reading.wait(DEADLINE)
    assert not connection.input_ended
    connection.end_input()
    assert receiving.result() == []
    assert connection.input_ended
    assert connection.receive() == []


def read_the_end(connection, peer):
    peer.close()
    assert connection.receive() == []


EVENTS = {
    "end": read_the_end,
    "end_input": lambda connection, peer: connection.end_input(),
    "abort": lambda connection, peer: connection.abort(),
    "end_output": lambda connection, peer: connection.end_output(),
    "finish_output": lambda connection, peer: connection.finish_output(),
}


@pytest.mark.parametrize(
    "events, state",
    [
        ("", OPEN),
        ("end_output finish_output", OPEN),
        ("end", PEER_ENDED),
        ("end end_input end", PEER_ENDED),
        ("end_input", INPUT_ENDED),
        ("end_input end", INPUT_ENDED),
        ("abort", ABORTED),
        ("abort end_input", ABORTED),
        ("end abort", ABORTED),
        ("end_input abort", ABORTED),
    ],
)
def test_the_state_changes_as_the_table_says(connect, events, state):
    connection, peer = connect()
    for event in events.split():
        EVENTS[event](connection, peer)
    assert connection.state is state
    assert connection.aborted == (state is ABORTED)
    assert connection.peer_ended == (state is PEER_ENDED or events == "end abort")
    assert connection.input_ended == (state is INPUT_ENDED or events == "end_input abort")


def test_an_abort_while_the_owner_reads_the_end_is_kept(sockets):
    """The owner has read the state before the abort, and sets the next one after it."""
    sock, peer = sockets()

    class AbortedMeanwhile(Connection):
        @property
        def _end(self):
            if self.aborting:
                self.aborting = False
                self.abort()
            return self.end

        @_end.setter
        def _end(self, end):
            self.end = end

    connection = AbortedMeanwhile(sock, LineFraming())
    connection.end, connection.aborting = OPEN, True
    peer.close()
    assert connection.receive() == []
    assert connection.state is ABORTED


def test_ending_the_input_leaves_the_output_open(connect):
    connection, peer = connect()
    connection.end_input()
    connection.write(b"goodbye")
    assert connection.receive() == []
    assert read_exactly(peer, 8) == b"goodbye\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems drop unread input when the reading side is shut")
def test_messages_before_the_end_of_the_input_are_delivered_and_later_ones_are_not(connect):
    connection, peer = connect()
    lines = [b"line %d" % number for number in range(3000)]
    stream = b"".join(line + b"\n" for line in lines)
    peer.sendall(stream)
    arrived(connection, len(stream))
    connection.end_input()
    peer.sendall(b"late\n")
    arrived(connection, len(stream) + 5)
    assert receive_until_end(connection) == lines
    assert connection.receive() == []
    assert connection.bytes_in == len(stream)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems drop unread input when the reading side is shut")
def test_the_input_ends_at_the_same_place_when_it_is_ended_twice(connect):
    connection, peer = connect()
    peer.sendall(b"one\n")
    arrived(connection, 4)
    connection.end_input()
    peer.sendall(b"late\n")
    arrived(connection, 9)
    connection.end_input()
    assert receive_until_end(connection) == [b"one"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems drop unread input when the reading side is shut")
def test_a_peer_that_goes_on_sending_cannot_keep_an_ended_input_open(connect):
    connection, peer = connect()
    peer.sendall(b"first\n")
    arrived(connection, 6)
    connection.end_input()
    with dripping(peer, b"more\n", interval=0.001) as dripped:
        eventually(lambda: len(dripped) > 5)
        assert receive_until_end(connection) == [b"first"]
