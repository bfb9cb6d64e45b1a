"""One connection of probes. It never blocks: not to send, not to read, not when the peer is gone."""

import contextlib
import itertools
import select
import socket
import tracemalloc

import pytest

from echo.exceptions import ConnectionClosed, IncompleteMessage, MessageTooLong
from echo.framing import LengthFraming, LineFraming
from echo.measure.lane import Lane
from echo.measure.probes import Ledger, Verdict
from support import DEADLINE, read_exactly, reset
from support.simulation import FixedFraming

FRAMINGS = {"line": LineFraming(1 << 20), "length": LengthFraming(1 << 20), "fixed": FixedFraming(64)}
EACH = pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)  # less than a large probe
        near = socket.create_connection(listener.getsockname(), DEADLINE)
        return near, listener.accept()[0]


@pytest.fixture
def connect():
    """``connect(framing, size)``: a lane, and the socket at the other end; closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(framing=FRAMINGS["line"], size=64, pair=socket.socketpair):
            near, far = pair()
            lane = Lane(near, framing, Ledger(size, 0xABC), itertools.count().__next__)  # one nanosecond for each call
            stack.callback(lane.close)
            stack.callback(far.close)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            far.settimeout(DEADLINE)
            return lane, far

        yield make


def await_input(lane):
    assert select.select([lane], [], [], DEADLINE)[0], "nothing came"


def receive(lane, count):
    """Read this number of replies, however many reads they take."""
    replies = []
    while len(replies) < count:
        await_input(lane)
        replies += lane.receive()
    return replies


# Round trips.


@EACH
def test_probes_go_out_in_their_framing_and_replies_come_back_with_their_verdicts(connect, framing):
    lane, peer = connect(framing)
    probes = [lane.send(due_at) for due_at in (-1, 0, 1)]
    assert [(probe.seq, probe.due_at, probe.sent_at) for probe in probes] == [(1, -1, 0), (2, 0, 1), (3, 1, 2)]
    first, second, third = (framing.encode(probe.message) for probe in probes)
    assert read_exactly(peer, len(first) * 3) == first + second + third
    assert not lane.is_behind
    peer.sendall(first + third + third)
    peer.sendall(second)
    replies = receive(lane, 4)
    assert [reply.seq for reply in replies] == [1, 3, 3, 2]
    assert [reply.verdict for reply in replies] == [Verdict.RIGHT, Verdict.RIGHT, Verdict.DOUBLED, Verdict.REORDERED]
    assert [reply.probe for reply in replies] == [probes[0], probes[2], None, probes[1]]
    assert not lane.ledger.outstanding


@EACH
def test_a_reply_cut_at_any_position_is_returned_once_and_when_it_is_whole(connect, framing):
    lane, peer = connect(framing)
    for position in range(1, len(framing.encode(bytes(64))) + 1):
        data = framing.encode(lane.send(0).message)
        peer.sendall(data[:position])
        await_input(lane)
        early = lane.receive()
        assert len(early) == (position == len(data)), position
        peer.sendall(data[position:])
        assert [reply.verdict for reply in early or receive(lane, 1)] == [Verdict.RIGHT], position


# A peer that does not read.


def fill(lane, encode):
    """Send until all buffers are full; return the bytes that were sent."""
    sent = b""
    for _ in range(300):
        sent += encode(lane.send(0).message)
        if lane.is_behind:
            return sent
    raise AssertionError("the socket never got full")


@pytest.mark.parametrize("pair", [socket.socketpair, tcp_pair])
@pytest.mark.parametrize("chunk", [999, 65536])
def test_what_the_peer_does_not_take_at_once_waits_in_order_and_is_sent_by_flush(connect, pair, chunk):
    framing = LengthFraming(1 << 20)
    lane, peer = connect(framing, 50_000, pair)
    expected = fill(lane, framing.encode)
    for _ in range(3):
        expected += framing.encode(lane.send(0).message)
        assert lane.is_behind
    lane.flush()  # although there is no room
    received = b""
    while len(received) < len(expected):
        received += peer.recv(chunk)
        lane.flush()
    assert received == expected
    assert not lane.is_behind
    lane.flush()
    for start in range(0, len(expected), 50_004):
        peer.sendall(expected[start : start + 50_004])
        assert [reply.verdict for reply in receive(lane, 1)] == [Verdict.RIGHT]


def test_the_next_probe_takes_along_what_has_waited(connect):
    lane, peer = connect(size=1000)
    sent = fill(lane, FRAMINGS["line"].encode)
    peer.setblocking(False)
    received = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            received += peer.recv(65536)
    assert lane.is_behind
    sent += lane.send(0).message + b"\n"
    assert not lane.is_behind
    assert received + peer.recv(65536) == sent


@pytest.fixture
def half_a_socket():
    """A socket whose system takes ``room`` more bytes; ``taken``: the bytes that it has taken."""

    class Half:
        room, taken = 0, b""
        recv = None

        def setblocking(self, flag):
            pass

        def send(self, data):
            size = min(self.room, len(data))
            if not size:
                raise BlockingIOError
            self.taken += bytes(memoryview(data)[:size])
            self.room -= size
            return size

    return Half()


def test_a_round_trip_begins_when_the_system_takes_the_first_byte(half_a_socket):
    times = iter(range(100))
    lane = Lane(half_a_socket, FixedFraming(64), Ledger(64, 1), lambda: next(times))
    half_a_socket.room = 70
    probes = [lane.send(-1) for _ in range(3)]
    begun = [probe.sent_at for probe in probes]
    assert lane.never_sent() == {3}
    half_a_socket.room = 58
    lane.flush()
    assert lane.never_sent() == {3}
    half_a_socket.room = 1
    lane.flush()
    assert lane.never_sent() == set()
    assert [probe.sent_at for probe in probes][:2] == begun[:2]
    assert probes[2].sent_at > begun[2] + 1
    half_a_socket.room = 64
    lane.flush()
    assert half_a_socket.taken == b"".join(probe.message for probe in probes)
    assert not lane.is_behind


def test_queued_bytes_are_not_copied_with_each_send(half_a_socket):
    lane = Lane(half_a_socket, FixedFraming(1 << 20), Ledger(1 << 20, 1))
    for _ in range(8):
        lane.send(0)
    tracemalloc.start()
    try:
        for _ in range(30):
            half_a_socket.room = 1000
            lane.flush()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert len(half_a_socket.taken) == 30_000


# Ends.


@EACH
@pytest.mark.parametrize("missing", [0, 1, 63])
def test_replies_before_the_end_come_first_then_the_rest_of_the_last_one_and_then_the_end(connect, framing, missing):
    lane, peer = connect(framing)
    data = framing.encode(lane.send(0).message)
    peer.sendall(data + data[:-missing] if missing else data)
    peer.shutdown(socket.SHUT_WR)
    assert [reply.verdict for reply in receive(lane, 1)] == [Verdict.RIGHT]
    if missing:
        with pytest.raises(IncompleteMessage) as caught:
            lane.receive()
        assert caught.value.rest == data[:-missing]
    for _ in range(2):
        with pytest.raises(ConnectionClosed, match="the server has ended the session"):
            lane.receive()


def test_a_reset_raises_that_the_connection_was_lost(connect):
    lane, peer = connect(pair=tcp_pair)
    lane.send(0)
    reset(peer)
    await_input(lane)
    with pytest.raises(ConnectionClosed, match=r"the connection was lost: .*reset"):
        lane.receive()


@pytest.mark.parametrize("framing", [LineFraming(100), LengthFraming(100)])
def test_replies_before_one_that_is_too_long_come_first(connect, framing):
    lane, peer = connect(framing)
    peer.sendall(framing.encode(lane.send(0).message) + type(framing)(1000).encode(b"x" * 101))
    assert [reply.verdict for reply in receive(lane, 1)] == [Verdict.RIGHT]
    for _ in range(2):
        with pytest.raises(MessageTooLong):
            lane.receive()


@pytest.mark.parametrize("pair", [socket.socketpair, tcp_pair])
@pytest.mark.parametrize("behind", [False, True])
def test_sending_to_a_peer_that_is_gone_raises_nothing_and_reading_does(connect, pair, behind):
    lane, peer = connect(size=50_000, pair=pair)
    if behind:
        fill(lane, FRAMINGS["line"].encode)
    reset(peer)
    await_input(lane)
    lane.flush()
    for _ in range(3):
        lane.send(0)
    assert not lane.is_behind  # it does not wait for room that never comes
    with pytest.raises(ConnectionClosed):
        lane.receive()


def test_reading_returns_at_once_without_input_and_closing_ends_the_peers_input(connect):
    lane, peer = connect()
    assert not lane.socket.getblocking()
    assert lane.receive() == []
    lane.close()
    assert peer.recv(1) == b""


@pytest.mark.parametrize("before", [0, 1])
def test_a_violation_of_the_framing_is_raised_although_nothing_more_comes(connect, before):
    lane, peer = connect(LengthFraming(100))
    peer.sendall(LengthFraming().encode(lane.send(0).message) * before + b"220 hello\r\n")
    await_input(lane)
    if before:
        assert [reply.verdict for reply in lane.receive()] == [Verdict.RIGHT]
        await_input(lane)
    for _ in range(2):
        with pytest.raises(MessageTooLong):
            lane.receive()


@pytest.mark.parametrize("part", [b"", b"part of a reply"])
def test_a_reset_that_a_send_meets_first_raises_that_the_connection_was_lost(connect, part):
    lane, peer = connect(pair=tcp_pair)
    peer.sendall(part)
    if part:
        await_input(lane)
        assert lane.receive() == []
    reset(peer)
    await_input(lane)
    lane.send(0)
    with pytest.raises(ConnectionClosed, match=r"the connection was lost: .*reset"):
        lane.receive()


def test_a_clean_end_that_a_send_meets_is_still_an_end(connect):
    lane, peer = connect(pair=tcp_pair)
    peer.close()
    await_input(lane)
    poll = select.poll()
    poll.register(lane, select.POLLHUP)
    lane.send(0)
    assert poll.poll(DEADLINE * 1000)
    lane.send(0)
    with pytest.raises(ConnectionClosed, match="ended the session"):
        lane.receive()
