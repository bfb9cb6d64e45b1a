"""Functions on a socket: how it is closed so that the peer loses no reply."""

import contextlib
import socket
import threading
import time
import tracemalloc

import pytest

from echo.sockets import (
    has_input,
    has_room,
    is_readable,
    linger,
    receive_timeout,
    set_deadline,
    set_receive_timeout,
    set_send_timeout,
    undelivered,
    unread,
)
from support import DEADLINE, eventually, read_all


@pytest.fixture
def sockets():
    """A socket and its peer, connected over TCP on the loopback, closed after the test."""
    with contextlib.ExitStack() as stack:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # has room for an upload
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            peer = stack.enter_context(socket.create_connection(listener.getsockname(), DEADLINE))
            sock = stack.enter_context(listener.accept()[0])
        yield sock, peer


REPLY = b"the reply"
UPLOAD = b"x" * 150_000


def test_a_peer_that_is_still_sending_gets_the_reply(sockets):
    sock, peer = sockets
    peer.sendall(UPLOAD)
    sock.sendall(REPLY)

    def close():
        linger(sock, silence=DEADLINE, timeout=DEADLINE)
        sock.close()

    closing = threading.Thread(target=close)
    closing.start()
    peer.sendall(UPLOAD)
    assert read_all(peer) == REPLY
    peer.sendall(UPLOAD)
    peer.close()
    closing.join(DEADLINE)
    assert not closing.is_alive()


def test_bytes_that_arrived_before_the_timeout_are_read(sockets):
    """As if the thread had got no processor until then."""
    sock, peer = sockets
    peer.sendall(UPLOAD)
    eventually(lambda: unread(sock) == len(UPLOAD))
    sock.sendall(REPLY)
    linger(sock, timeout=0)
    assert unread(sock) == 0
    sock.close()
    assert read_all(peer) == REPLY


def test_a_peer_that_goes_on_sending_cannot_keep_the_socket_open(sockets):
    sock, peer = sockets
    flooding = threading.Thread(target=flood, args=(peer,))
    flooding.start()
    linger(sock, silence=DEADLINE, timeout=0)
    sock.close()
    flooding.join(DEADLINE)
    assert not flooding.is_alive()


def flood(peer):
    with contextlib.suppress(ConnectionError):
        while True:
            peer.sendall(UPLOAD)


def test_a_peer_that_is_silent_is_not_waited_for_for_ever(sockets):
    sock, _peer = sockets
    linger(sock, silence=0.01, timeout=DEADLINE)


@pytest.mark.parametrize("seconds", [3e6, 1e10, 1e300, float("inf")])
def test_a_timeout_may_have_any_length(sockets, seconds):
    sock, peer = sockets
    set_receive_timeout(sock, seconds)
    set_send_timeout(sock, seconds)
    assert receive_timeout(sock) >= 3e6
    set_deadline(sock, time.monotonic() + seconds)
    assert not has_input(peer, 0)
    sock.sendall(REPLY)
    assert has_input(peer, seconds) and has_room(sock, seconds)


def test_to_wait_for_a_socket_needs_no_descriptor(sockets):
    """Row 79: an epoll object would need one, and a session must not end because none is free."""
    resource = pytest.importorskip("resource")
    sock, peer = sockets
    peer.sendall(REPLY)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        assert has_input(sock, DEADLINE) and has_room(sock, DEADLINE) and is_readable(sock, DEADLINE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


REPLIES = b"x" * (8 << 20)  # more than the buffers of both sides hold


def reply(sock, data=REPLIES):
    """Send as much as fits; return how much that was."""
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(data)
    sock.setblocking(True)
    return sent


def test_a_silent_peer_that_has_not_taken_every_reply_is_waited_for(sockets):
    """Row 83: a byte that it sends to a closed socket would reset the connection, and lose the rest."""
    sock, peer = sockets
    sent = reply(sock)

    def close():
        linger(sock, silence=0.01, timeout=0, send_timeout=DEADLINE)
        sock.close()

    closing = threading.Thread(target=close)
    closing.start()
    closing.join(0.2)  # many times the silence
    peer.sendall(b"?")
    assert len(read_all(peer)) == sent
    peer.close()
    closing.join(DEADLINE)
    assert not closing.is_alive()


def test_a_peer_that_takes_replies_is_waited_for_however_short_the_send_timeout_is(sockets, monkeypatch):
    """The time before the first look at what it has taken does not count."""
    sock, _peer = sockets
    left = iter([500, 400, 300, 0])
    monkeypatch.setattr("echo.sockets.not_taken", lambda sock: next(left))
    linger(sock, silence=0.001, timeout=0, send_timeout=1e-6)
    assert not list(left)


def test_a_peer_that_takes_no_reply_is_not_waited_for_for_ever(sockets):
    sock, _peer = sockets
    reply(sock)
    linger(sock, silence=0.01, timeout=0, send_timeout=0.05)
    assert undelivered(sock)


def test_a_peer_that_has_taken_every_reply_is_not_waited_for_any_longer(sockets):
    """The end of our output, which a lost peer does not acknowledge, is not a reply."""
    sock, _peer = sockets
    sock.sendall(REPLY)
    eventually(lambda: not undelivered(sock))
    linger(sock, silence=0.01, timeout=0, send_timeout=None)


def test_after_the_end_of_the_input_a_peer_that_takes_nothing_is_not_waited_for_for_ever(sockets):
    sock, _peer = sockets
    sock.shutdown(socket.SHUT_RD)
    reply(sock)
    linger(sock, float("inf"), silence=0.01, timeout=0, send_timeout=0.05)
    assert undelivered(sock)


def test_after_the_end_of_the_input_a_peer_that_takes_replies_is_waited_for(sockets, monkeypatch):
    sock, _peer = sockets
    sock.shutdown(socket.SHUT_RD)
    left = iter([*range(40, 0, -1), *[0] * 10])
    monkeypatch.setattr("echo.sockets.undelivered", lambda sock: time.sleep(0.005) or next(left))
    linger(sock, float("inf"), silence=0.001, timeout=0, send_timeout=0.1)
    assert next(left) == 0


def test_delivery_is_waited_for_although_another_thread_has_not_ended_the_input_yet(sockets):
    """``Connection.end_input`` says that it is ended before it is."""
    sock, peer = sockets
    sent = reply(sock)

    def close():
        linger(sock, float("inf"), silence=0.01, timeout=0, send_timeout=DEADLINE)
        sock.close()

    closing = threading.Thread(target=close)
    closing.start()
    time.sleep(0.1)
    sock.shutdown(socket.SHUT_RD)
    peer.sendall(b"?")
    assert len(read_all(peer)) == sent
    peer.close()
    closing.join(DEADLINE)
    assert not closing.is_alive()


def test_what_is_dropped_needs_no_memory(sockets):
    """Row 65: a session that had ended well was logged as an error, and its reply could be lost."""
    sock, peer = sockets
    reply(peer)
    tracemalloc.start()
    try:
        linger(sock, silence=0.01, timeout=0.1)
        _size, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8192


def test_a_socket_that_its_handler_has_closed_is_no_error(sockets):
    sock, _peer = sockets
    sock.close()
    linger(sock)
