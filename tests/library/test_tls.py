"""``TLSSocket`` over socket pairs, with TLS 1.2 and 1.3: bytes, ends, deadlines, error messages; and TLS contexts."""

import contextlib
import errno
import functools
import http.client
import http.server
import os
import random
import re
import select
import socket
import socketserver
import ssl
import sys
import threading
import time
import traceback
import types

import pytest

import echo
from echo.sockets import LINGER_TIMEOUT, has_input, linger, set_receive_timeout, set_send_timeout, unread
from echo.transport import certificates as certificates_module
from echo.transport import tls_messages
from echo.transport.certificates import client_context, server_context
from echo.transport.guarded import GuardedSocket
from echo.transport.tls import TLSSocket
from echo.transport.tls_messages import explain, format_subject
from support import DEADLINE, eventually, read_all, read_exactly, reset
from support.background import Background
from support.certificates import openssl

pytestmark = pytest.mark.skipif(os.name != "posix", reason="deadlines as POSIX has them")

TIMED_OUT = (BlockingIOError, socket.timeout)

both_sides = pytest.mark.parametrize("server_reads", [True, False], ids=["server reads", "client reads"])


class Memory:
    """A peer whose encrypted records the test can see and change: OpenSSL on memory, beside a plain socket."""

    def __init__(self, sock, context, **options):
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, **options)

    def handshake(self, last=b""):
        """``last`` is sent together with the last bytes of the handshake."""
        while True:
            try:
                self.tls.do_handshake()
                self.sock.sendall(self.outgoing.read() + (self.encrypt(last) if last else b""))
                return
            except ssl.SSLWantReadError:
                self.sock.sendall(self.outgoing.read())
                self.incoming.write(self.sock.recv(65536))

    def encrypt(self, data):
        self.tls.write(data)
        return self.outgoing.read()

    def read(self):
        """Return the next bytes, decrypted; b"" is the peer's ``close_notify``."""
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                data = self.sock.recv(65536)
                assert data, "the peer closed without close_notify"
                self.incoming.write(data)
            except ssl.SSLZeroReturnError:
                return b""


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLSv1.2", "TLSv1.3"])
def version(request):
    return request.param


@pytest.fixture
def contexts(certificates, version):
    """The server's and the client's context; both know only this version."""
    made = server_context(*certificates.server), client_context(certificates.authority.certificate)
    for context in made:
        context.minimum_version = context.maximum_version = version
    return made


@pytest.fixture
def sockets():
    """Two connected sockets, closed after the test."""
    with contextlib.ExitStack() as stack:

        def connect():
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                listener.listen()
                client = stack.enter_context(socket.create_connection(listener.getsockname(), DEADLINE))
                client.settimeout(None)
                server = stack.enter_context(listener.accept()[0])
            for sock in (server, client):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                set_receive_timeout(sock, DEADLINE)
                set_send_timeout(sock, DEADLINE)
            return server, client

        yield connect


class Bare(TLSSocket):
    """A plain socket until its handshake: for a peer without TLS, or one that makes its TLS records itself."""

    def recv(self, *arguments):
        return (super().recv if self._tls else super(GuardedSocket, self).recv)(*arguments)

    def send(self, *arguments):
        return (super().send if self._tls else super(GuardedSocket, self).send)(*arguments)

    def sendall(self, *arguments):
        return (super().sendall if self._tls else super(GuardedSocket, self).sendall)(*arguments)


@pytest.fixture
def plain(sockets):
    """``plain()``: the two ``TLSSocket`` of a connection, the server's and the client's, before the handshake."""
    with contextlib.ExitStack() as stack:

        def connect():
            return tuple(stack.enter_context(contextlib.closing(Bare(sock))) for sock in sockets())

        yield connect


def agree(server, client, contexts, **options):
    server_side = Background(server.handshake, contexts[0], server_side=True, timeout=DEADLINE)
    try:
        client.handshake(contexts[1], server_hostname="localhost", timeout=DEADLINE, **options)
    finally:
        server_side.result()


@pytest.fixture
def pair(plain, contexts):
    """The server's and the client's ``TLSSocket`` after the handshake."""
    server, client = plain()
    agree(server, client, contexts)
    return server, client


@pytest.fixture
def roles(pair, server_reads):
    """The socket that reads, and the other one."""
    return pair if server_reads else pair[::-1]


@pytest.fixture
def memory(plain, contexts):
    """A server's ``TLSSocket``, and a ``Memory`` after the handshake with it."""
    server, client = plain()
    peer = Memory(client, contexts[1], server_hostname="localhost")
    server_side = Background(server.handshake, contexts[0], server_side=True, timeout=DEADLINE)
    peer.handshake()
    server_side.result()
    server.sendall(b"!")
    assert peer.read() == b"!"  # and the session tickets before it: closing over unread input is a reset
    return server, peer


def small_buffers(sender, receiver):
    """Let the system hold less than half a megabyte on the way. Otherwise it would hold several."""
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)


def noise(size, seed=0):
    return random.Random(seed).getrandbits(8 * size).to_bytes(size, "big")


# The handshake.


def test_before_its_handshake_nothing_passes_a_tls_socket_in_clear(sockets, plain, contexts):
    raw, theirs = sockets()
    theirs.sendall(b"GET /")
    with TLSSocket(raw) as sock:
        for use in (lambda: sock.recv(1), lambda: sock.recv_into(bytearray(1)), lambda: sock.makefile("rb").read(1)):
            with pytest.raises(ConnectionAbortedError):
                use()
        for use in (sock.send, sock.sendall, sock.makefile("wb", 0).write):
            with pytest.raises(ConnectionAbortedError):
                use(b"plain")
        with pytest.raises(NotImplementedError):
            sock.dup()
        assert not has_input(theirs, 0)
    server, client = plain()
    assert server.version() is server.cipher() is None
    for use in (server.getpeercert, lambda: server.subject):
        with pytest.raises(ValueError, match="look at the certificate in the handler"):
            use()
    agree(server, client, contexts)
    client.sendall(b"encrypted")
    assert server.recv(100) == b"encrypted"


def test_both_sides_report_version_cipher_and_certificate(pair, version):
    server, client = pair
    name = {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}[version]
    assert server.version() == client.version() == name
    assert server.cipher() == client.cipher() is not None
    assert dict(pair for names in client.getpeercert()["subject"] for pair in names) == {"commonName": "localhost"}
    assert client.getpeercert(True).startswith(b"\x30")
    assert client.subject == "CN=localhost"
    assert server.subject is None and server.getpeercert() is None


def test_alpn_chooses_a_protocol_that_both_sides_know(plain, contexts):
    server, client = plain()
    contexts[0].set_alpn_protocols(["b", "c"])
    contexts[1].set_alpn_protocols(["a", "b"])
    assert client.selected_alpn_protocol() is None
    agree(server, client, contexts)
    assert server.selected_alpn_protocol() == client.selected_alpn_protocol() == "b"


def test_data_that_comes_with_the_end_of_the_handshake_counts_as_buffered(plain, contexts):
    server, client = plain()
    peer = Memory(client, contexts[1], server_hostname="localhost")
    server_side = Background(server.handshake, contexts[0], server_side=True, timeout=DEADLINE)
    peer.handshake(b"at once")
    server_side.result()
    if peer.tls.version() == "TLSv1.3":  # in TLS 1.2 the server sends the last message of the handshake
        assert server.buffered == 7
        assert has_input(server, 0)
    assert server.recv(100) == b"at once"
    assert server.buffered == 0


def test_dripping_bytes_do_not_extend_the_timeout_of_the_handshake(plain, contexts):
    server, client = plain()
    ended = threading.Event()

    def drip():
        client.sendall(b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03")  # the beginning of 16 KiB, which take minutes
        while not ended.wait(0.02):
            client.sendall(b"\0")

    dripping = Background(drip)
    try:
        with pytest.raises(TimeoutError, match=r"the handshake was not done after 0\.1 s"):
            Background(server.handshake, contexts[0], server_side=True, timeout=0.1).result()
    finally:
        ended.set()
    dripping.result()


@pytest.mark.parametrize("began, words", [(b"", "before its handshake"), (b"\x16\x03\x01", "in mid-handshake")])
def test_the_error_says_whether_a_client_left_before_or_in_its_handshake(plain, contexts, began, words):
    server, client = plain()
    client.sendall(began)
    client.close()
    with pytest.raises(ConnectionResetError, match=f"the peer left {words}"):
        server.handshake(contexts[0], server_side=True, timeout=DEADLINE)
    assert server.untouched == (not began)


def test_the_timeout_of_the_handshake_does_not_stay_on_the_socket(plain, contexts):
    server, client = plain()
    client.settimeout(7.5)
    agree(server, client, contexts)
    assert client.gettimeout() == 7.5
    assert server.gettimeout() is None


# Bytes.


def test_more_than_the_buffers_hold_arrives_whole_in_both_directions_at_once(pair):
    small_buffers(*pair)
    small_buffers(*pair[::-1])
    sent = noise(1_500_000, 1), noise(1_500_000, 2)
    reading = [Background(read_exactly, sock, 1_500_000) for sock in pair]
    sending = [Background(sock.sendall, data) for sock, data in zip(pair, sent)]
    for each in sending:
        each.result()
    assert reading[0].result() == sent[1]
    assert reading[1].result() == sent[0]


@both_sides
@pytest.mark.parametrize("messages", [40, pytest.param(400, marks=pytest.mark.stress)])
def test_each_send_goes_out_whole_while_other_threads_send_and_one_reads(roles, server_reads, messages):
    reader, writer = roles
    senders, size = 4, messages * 5000

    def send_all(number):
        for turn in range(messages):
            message = (b"%02d %04d " % (number, turn)).ljust(2 + 997 * (turn % 20), b"%d" % number) + b"\n"
            assert writer.send(message) == len(message)

    back = Background(read_exactly, writer, size)  # it reads while they send
    forth = Background(reader.sendall, noise(size))
    sending = [Background(send_all, number) for number in range(senders)]
    turns = [0] * senders
    lines = reader.makefile("rb")
    for _ in range(senders * messages):
        line = lines.readline()
        number, turn = int(line[:2]), int(line[3:7])
        assert turn == turns[number]
        assert set(line[8:-1]) <= {ord(b"%d" % number)}
        turns[number] += 1
    lines.close()
    for each in [*sending, forth]:
        each.result()
    assert back.result() == noise(size)


def test_reads_smaller_than_a_record_lose_nothing_and_the_rest_is_counted(pair):
    server, client = pair
    data = noise(16_000)
    client.sendall(data)
    got = server.recv(1)
    assert got == data[:1]
    eventually(lambda: select.select([server], [], [], 0)[0] or server.buffered == 15_999)
    while len(got) < len(data):
        piece = server.recv(7 if len(got) < 700 else 3000)
        assert 0 < len(piece) <= 3000
        got += piece
    assert got == data
    assert server.buffered == 0


def test_a_large_read_leaves_no_decrypted_bytes_that_select_would_not_see(memory):
    """A caller that asks for 64 KiB and gets less may wait with select() for more."""
    server, peer = memory
    data = noise(400_000)
    sending = Background(peer.sock.sendall, peer.encrypt(data))
    got = b""
    while len(got) < len(data):
        piece = server.recv(65536)
        assert piece
        got += piece
        assert not server.buffered
    assert got == data
    sending.result()


def test_empty_and_partial_views_of_bytes_can_be_sent(pair):
    server, client = pair
    client.sendall(b"")
    assert client.send(b"") == 0
    client.sendall(bytearray(b"a"))
    client.sendall(memoryview(b"bcd")[1:])
    assert read_exactly(server, 3) == b"acd"


def test_plain_text_never_reaches_the_wire(memory):
    server, peer = memory
    server.sendall(b"the secret " * 100)
    server.shutdown(socket.SHUT_RDWR)
    assert b"secret" not in read_all(peer.sock)


# Ends.


@both_sides
def test_the_peer_sees_a_half_close_and_reading_goes_on(roles, server_reads):
    reader, writer = roles
    data = noise(200_000)
    writer.sendall(b"request")
    writer.shutdown(socket.SHUT_WR)
    assert read_all(reader) == b"request"
    sending = Background(reader.sendall, data)
    assert read_exactly(writer, len(data)) == data
    sending.result()
    reader.shutdown(socket.SHUT_WR)
    assert writer.recv(1) == b""
    assert writer.recv(1) == b""


def test_a_half_close_sends_close_notify(memory):
    server, peer = memory
    server.sendall(b"the last words")
    server.shutdown(socket.SHUT_WR)
    assert peer.read() == b"the last words"
    assert peer.read() == b""


@both_sides
@pytest.mark.parametrize("taken", [0, 1, 20_000])
def test_input_that_was_unread_at_a_half_close_is_still_read(roles, server_reads, taken):
    reader, writer = roles
    data = noise(100_000)
    writer.sendall(data)
    got = read_exactly(reader, taken)
    reader.shutdown(socket.SHUT_WR)
    assert writer.recv(1) == b""
    writer.sendall(b"and more")
    writer.shutdown(socket.SHUT_WR)
    assert got + read_all(reader) == data + b"and more"


class Meddled:
    """A lock that lets another thread in the first time that it is released."""

    def __init__(self, lock, meddle):
        self._lock, self._meddle = lock, meddle

    def __enter__(self):
        self._lock.acquire()

    def __exit__(self, *exc_info):
        self._lock.release()
        meddle, self._meddle = self._meddle, None
        if meddle is not None:
            meddle()


def test_a_half_close_by_another_thread_at_any_moment_of_a_read_loses_no_byte(pair):
    """OpenSSL reads no more if records wait for it when it sends close_notify."""
    server, client = pair
    lock = server._lock
    ends = []

    def end():
        server._lock = lock
        ends.append(Background(server.shutdown, socket.SHUT_WR))
        ends[0].result()

    server._lock = Meddled(lock, end)
    client.sendall(b"in one record")
    assert server.recv(100) == b"in one record"
    assert ends
    client.sendall(b"and one more")
    assert server.recv(100) == b"and one more"
    assert client.recv(1) == b""


def test_a_close_without_close_notify_is_the_end_of_input(memory):
    server, peer = memory
    peer.sock.sendall(peer.encrypt(b"the last words"))
    peer.sock.close()
    assert read_all(server) == b"the last words"
    assert server.recv(1) == b""


def test_a_close_inside_a_record_is_the_end_of_input_before_that_record(memory):
    server, peer = memory
    peer.sock.sendall(peer.encrypt(b"whole") + peer.encrypt(b"in part")[:-3])
    peer.sock.close()
    assert read_all(server) == b"whole"


def test_a_shutdown_of_both_directions_sends_no_close_notify(memory):
    server, peer = memory
    server.shutdown(socket.SHUT_RDWR)
    assert read_all(peer.sock) == b""
    assert server.recv(1) == b""


def test_a_gentle_close_over_unread_input_loses_no_reply(pair):
    server, client = pair
    replies = noise(300_000)
    client.sendall(b"junk" * 20_000)
    reading = Background(read_all, client)
    server.sendall(replies)
    closing = Background(linger, server)
    assert reading.result() == replies
    client.close()
    closing.result()
    server.close()


def test_nothing_is_sent_after_the_end_of_output(pair):
    server, client = pair
    server.shutdown(socket.SHUT_WR)
    with pytest.raises(OSError):
        server.sendall(b"too late")
    server.shutdown(socket.SHUT_WR)  # again, as socketserver does
    assert read_all(client) == b""


# Deadlines.


def give_up_after(sock, how, seconds):
    if how == "settimeout":
        sock.settimeout(seconds)
    elif how == "non-blocking":
        sock.setblocking(False)
    else:
        set_receive_timeout(sock, seconds)


deadlines = pytest.mark.parametrize("how", ["SO_RCVTIMEO", "settimeout", "non-blocking"])


@deadlines
def test_a_read_that_timed_out_can_be_tried_again_and_loses_no_byte(memory, how):
    server, peer = memory
    records = peer.encrypt(noise(20_000))
    give_up_after(server, how, 0.05)
    with pytest.raises(TIMED_OUT):
        server.recv(100)
    peer.sock.sendall(records[:9000])
    assert select.select([server], [], [], DEADLINE)[0]
    with pytest.raises(TIMED_OUT):
        while True:
            server.recv(100)
    peer.sock.sendall(records[9000:])
    got = b""
    while len(got) < 20_000:
        try:
            got += server.recv(65536)
        except TIMED_OUT:
            assert select.select([server], [], [], DEADLINE)[0]
    assert got == noise(20_000)


@pytest.mark.parametrize("how", ["SO_RCVTIMEO", "settimeout"])
def test_a_record_that_drips_does_not_renew_the_deadline(memory, how):
    server, peer = memory
    record = peer.encrypt(noise(16_000))  # dripping, it takes more than two minutes
    give_up_after(server, how, 0.1)
    given_up = threading.Event()

    def drip():
        sent = 0
        while sent < len(record) and not given_up.wait(0.01):
            sent += peer.sock.send(record[sent : sent + 1])
        peer.sock.sendall(record[sent:])

    dripping = Background(drip)
    try:
        with pytest.raises(socket.timeout if how == "settimeout" else BlockingIOError):
            Background(server.recv, 10_000).result()
    finally:
        given_up.set()
    dripping.result()
    give_up_after(server, how, DEADLINE)
    assert read_exactly(server, 16_000) == noise(16_000)


def test_a_connection_times_out_over_tls_and_loses_no_byte(pair):
    server, client = pair
    connection = echo.Connection(server, echo.LineFraming(), idle_timeout=0.05, message_timeout=0.1)
    with pytest.raises(echo.ReceiveTimeout):
        connection.receive()
    client.sendall(b"a message")
    with pytest.raises(echo.MessageTimeout):
        connection.receive()
    client.sendall(b" with its end\n")
    assert connection.receive() == [b"a message with its end"]


def test_input_that_has_arrived_is_received_after_end_input_whether_decrypted_or_not(pair):
    server, client = pair
    connection = echo.Connection(server, echo.LineFraming())
    client.sendall(b"decrypted with the first read\n" * 500)
    received = connection.receive()
    assert server.buffered
    client.sendall(b"in the system still\n" * 100)
    assert select.select([server], [], [], DEADLINE)[0]
    connection.end_input()
    while True:
        messages = connection.receive()
        if not messages:
            break
        received += messages
    assert received == [b"decrypted with the first read"] * 500 + [b"in the system still"] * 100


@pytest.mark.skipif(sys.platform != "linux", reason="other systems drop unread input when the reading side is shut")
@pytest.mark.parametrize("stock", [False, True], ids=["TLSSocket", "ssl.SSLSocket"])
def test_end_input_loses_no_record_after_one_of_which_a_part_had_been_taken(plain, sockets, contexts, stock):
    """Its bytes counted as those that had arrived at that time, and the last message of a stop got no answer."""
    server, client = sockets() if stock else plain()
    peer = Memory(client, contexts[1], server_hostname="localhost")
    if stock:
        wrap = functools.partial(contexts[0].wrap_socket, server, server_side=True)
    else:
        wrap = functools.partial(server.handshake, contexts[0], server_side=True, timeout=DEADLINE)
    server_side = Background(wrap)
    peer.handshake()
    with contextlib.closing(server_side.result() or server) as server:
        connection = echo.Connection(server, echo.LineFraming(), idle_timeout=0.01)
        lines = [b"%07d" % number for number in range(16384 // 8 * 2 + 1000)]
        stream = b"".join(line + b"\n" for line in lines)
        records = b"".join(peer.encrypt(stream[begin : begin + 16384]) for begin in range(0, len(stream), 16384))
        client.sendall(records[:10_000])
        with pytest.raises(echo.ReceiveTimeout):
            connection.receive()
        connection.idle_timeout = DEADLINE
        client.sendall(records[10_000:])
        eventually(lambda: unread(server) == len(records) - 10_000)
        connection.end_input()
        assert [line for received in iter(connection.receive, []) for line in received] == lines
        connection.send(b"goodbye")  # OpenSSL sends nothing more after it has read the end inside a record
        assert peer.read() == b"goodbye\n"
        client.sendall(peer.encrypt(b"late\n"))
        eventually(lambda: unread(server))
        assert connection.receive() == []


@both_sides
def test_a_send_that_would_block_can_be_tried_again_with_the_same_bytes(roles, server_reads):
    reader, writer = roles
    data = noise(1_000_000)
    small_buffers(writer, reader)
    writer.setblocking(False)
    left, refused = memoryview(data), 0
    reading = None
    while left:
        try:
            left = left[writer.send(left) :]
        except BlockingIOError:
            refused += 1
            if reading is None:
                reading = Background(read_exactly, reader, len(data))
            assert select.select([], [writer], [], DEADLINE)[1]
    assert refused
    assert reading.result() == data


class _Interrupted(Exception):
    """What a signal handler raises."""


def test_a_read_that_is_interrupted_before_its_bytes_are_decrypted_goes_on_with_them(pair):
    """While a thread waits for the lock of the interpreter, a signal has plenty of time to come."""
    server, client = pair

    def interrupted(data):
        del client._decrypt
        raise _Interrupted

    client._decrypt = interrupted
    server.sendall(b"who")
    with pytest.raises(_Interrupted):
        client.recv(100)
    server.sendall(b"le")
    assert read_exactly(client, 5) == b"whole"


def test_a_read_that_is_interrupted_after_its_bytes_came_is_an_error_and_no_gap(pair):
    """Python runs signal handlers right after OpenSSL has decrypted, before it returns the bytes."""
    server, client = pair

    class Interrupted:
        def read(self, size):
            client._tls = tls
            tls.read(size)
            raise _Interrupted

    tls, client._tls = client._tls, Interrupted()
    server.sendall(b"lost")
    with pytest.raises(_Interrupted):
        client.recv(100)
    server.sendall(b"and found")
    for _ in range(2):
        with pytest.raises(ConnectionAbortedError, match="a read was interrupted, and its bytes are lost"):
            client.recv(100)
    client.sendall(b"the other direction works")
    assert server.recv(100) == b"the other direction works"


def test_a_send_that_timed_out_can_be_tried_again_with_the_same_bytes(pair):
    server, client = pair
    set_send_timeout(server, 0.05)
    small_buffers(server, client)
    data = noise(1_000_000)
    left, refused, reading = memoryview(data), 0, None
    while left:
        try:
            left = left[server.send(left) :]
        except BlockingIOError:
            refused += 1
            if reading is None:
                reading = Background(read_exactly, client, len(data))
    assert refused
    assert reading.result() == data


def test_after_a_send_that_timed_out_other_bytes_are_refused_and_the_same_bytes_accepted(pair):
    server, client = pair
    set_send_timeout(server, 0.05)
    small_buffers(server, client)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += server.send(b"x" * 1000)
    for others in (b"y" * 1000, b"x" * 999):
        with pytest.raises(ConnectionAbortedError, match="not tried again with the same bytes"):
            server.send(others)
    set_send_timeout(server, DEADLINE)
    reading = Background(read_all, client)
    sent += server.send(b"x" * 1000)
    server.sendall(b"and others")
    server.shutdown(socket.SHUT_WR)
    assert reading.result() == b"x" * sent + b"and others"


def fill(sender):
    """Send until all buffers to a peer that does not read are full."""
    set_send_timeout(sender, 0.05)  # not settimeout, which gives up while there is some room
    with pytest.raises(BlockingIOError):
        while True:
            sender.sendall(b"x" * 65536)
    set_send_timeout(sender, None)


@pytest.mark.parametrize(
    "linger_timeout, timeout",
    [(0.05, None), (2 * DEADLINE, 0.05), (0.05, 2 * DEADLINE)],
    ids=["linger_timeout", "settimeout", "linger_timeout below settimeout"],
)
def test_a_half_close_does_not_wait_for_a_peer_that_does_not_read(pair, linger_timeout, timeout):
    server, client = pair
    small_buffers(server, client)
    fill(server)
    server.linger_timeout = linger_timeout
    server.settimeout(timeout)
    Background(server.shutdown, socket.SHUT_WR).result()
    client.close()


@pytest.mark.parametrize("timeout", [None, DEADLINE], ids=["blocking", "settimeout"])
def test_a_half_close_waits_for_a_peer_that_reads_late_and_sends_close_notify(memory, timeout):
    server, peer = memory
    small_buffers(server, peer.sock)
    fill(server)
    server.linger_timeout = DEADLINE
    server.settimeout(timeout)
    closing = Background(server.shutdown, socket.SHUT_WR)
    while peer.read():
        pass  # the end is close_notify; an end without it is an error
    closing.result()


def test_a_half_close_waits_five_seconds_at_most_unless_told_otherwise(plain):
    assert plain()[0].linger_timeout == LINGER_TIMEOUT == 5.0


# Peers that misbehave during a session.


@pytest.mark.needs_programs("openssl")
def test_a_key_update_of_the_peer_is_accepted_while_we_read_and_answered_when_we_send(certificates, program):
    listener = socket.create_server(("127.0.0.1", 0))
    with contextlib.closing(listener):
        listener.settimeout(DEADLINE)
        where = "127.0.0.1:%d" % listener.getsockname()[1]
        peer = program("openssl", "s_client", "-connect", where, "-tls1_3", "-msg")
        server = TLSSocket(listener.accept()[0])
    with contextlib.closing(server):
        server.handshake(server_context(*certificates.server), server_side=True, timeout=DEADLINE)
        server.settimeout(DEADLINE)
        peer.until(rb"(?s)Verif.*\n---\n")
        peer.type(b"before\n")
        assert read_exactly(server, 7) == b"before\n"
        reading = Background(read_exactly, server, 6)
        peer.type(b"K\n")
        peer.until(rb">>> TLS 1.3, Handshake \[length 0005\], KeyUpdate")
        peer.type(b"after\n")
        assert reading.result() == b"after\n"
        server.sendall(b"an answer under new keys\n")
        peer.until(rb"(?s)<<< TLS 1.3, Handshake \[length 0005\], KeyUpdate.*an answer under new keys")


def test_a_forged_record_is_an_error_after_the_good_ones_and_the_peer_gets_an_alert(memory):
    server, peer = memory
    good = peer.encrypt(b"as it was sent")
    forged = bytearray(peer.encrypt(b"something"))
    forged[-1] ^= 1
    peer.sock.sendall(good + forged)
    assert server.recv(100) == b"as it was sent"
    for _ in range(2):  # each read from now on
        with pytest.raises(ConnectionAbortedError, match=r"bad record mac|decryption failed|was damaged"):
            server.recv(100)
    with pytest.raises(ssl.SSLError) as caught:
        peer.read()
    assert explain(caught.value) == "the peer says: bad record mac"


def test_an_alert_of_the_peer_is_an_error_that_names_it(pair):
    server, client = pair
    client.sendall(b"good")
    socket.socket.send(client, b"\x17\x03\x03\x00\x20" + bytes(32))  # past the encryption
    assert server.recv(100) == b"good"
    with pytest.raises(ConnectionAbortedError):
        server.recv(100)
    with pytest.raises(ConnectionAbortedError, match="the peer says: bad record mac"):
        client.recv(100)


def test_a_reset_is_a_connection_reset_error_as_without_tls(pair):
    server, client = pair
    reset(client)
    with pytest.raises(ConnectionResetError) as caught:
        server.recv(100)
    assert caught.value.errno == errno.ECONNRESET


# Files, handlers and other users of sockets.


def test_makefile_and_recv_into_work_over_tls(pair):
    server, client = pair
    with client.makefile("wb") as out:
        out.write(b"one\ntwo\nthree\n")
    with server.makefile("rb") as lines:
        assert [lines.readline() for _ in range(3)] == [b"one\n", b"two\n", b"three\n"]
    client.sendall(b"0123456789")
    buffer = bytearray(6)
    assert server.recv_into(buffer) == 6 and bytes(buffer) == b"012345"
    assert server.recv_into(buffer, 2) == 2 and bytes(buffer) == b"672345"
    assert server.recv_into(memoryview(buffer)[3:]) == 2 and bytes(buffer) == b"672895"


class Upper(socketserver.StreamRequestHandler):
    """A handler as in the documentation of ``socketserver``."""

    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


def test_a_handler_of_socketserver_reads_and_writes_over_tls(pair):
    server, client = pair
    serving = Background(Upper, server, ("127.0.0.1", 0), None)
    client.sendall(b"hello\n" * 1000)
    client.shutdown(socket.SHUT_WR)
    assert read_exactly(client, 6000) == b"HELLO\n" * 1000
    serving.result()


def test_an_http_handler_serves_a_file_over_tls(pair, tmp_path):
    (tmp_path / "file").write_bytes(noise(200_000))

    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments):
            pass

    server, client = pair
    serving = Background(Files, server, ("127.0.0.1", 0), None)
    connection = http.client.HTTPConnection("localhost")
    connection.sock = client
    connection.request("GET", "/file", headers={"Connection": "close"})
    response = connection.getresponse()
    data = response.read(200_000)
    assert (response.status, data) == (200, noise(200_000))
    serving.result()
    response.close()
    connection.close()


@pytest.mark.parametrize("offset, count", [(0, None), (1000, None), (1000, 150_000), (0, 0), (190_000, 50_000)])
def test_sendfile_encrypts_the_file(memory, tmp_path, offset, count):
    server, peer = memory
    data = b"plain text " * 18_182
    (tmp_path / "file").write_bytes(data)
    expected = data[offset:] if count is None else data[offset : offset + count]
    with open(tmp_path / "file", "rb") as file:
        sending = Background(server.sendfile, file, offset, count)
        got = b""
        while len(got) < len(expected):
            got += peer.read()
        assert sending.result() == len(expected)
    assert got == expected


@pytest.mark.parametrize(
    "method, arguments",
    [
        ("dup", ()),
        ("recvfrom", (10,)),
        ("recvfrom_into", (bytearray(1),)),
        ("recvmsg", (10,)),
        ("recvmsg_into", ([bytearray(1)],)),
        ("sendto", (b"a", ("127.0.0.1", 1))),
        ("sendmsg", ([b"a"],)),
    ],
)
def test_methods_that_would_bypass_the_encryption_are_refused(pair, method, arguments):
    with pytest.raises(NotImplementedError, match="a TLS socket has"):
        getattr(pair[0], method)(*arguments)


def test_flags_of_send_and_recv_are_refused(pair):
    server, client = pair
    client.sendall(b"data")
    for call in (
        lambda: server.recv(1, socket.MSG_PEEK),
        lambda: server.recv_into(bytearray(1), 1, socket.MSG_PEEK),
        lambda: server.send(b"a", socket.MSG_OOB),
        lambda: server.sendall(b"a", socket.MSG_OOB),
    ):
        with pytest.raises(ValueError, match="a TLS socket does not support flags"):
            call()
    assert server.recv(10) == b"data"


# Error messages.


def failed(plain, server, client, hostname="localhost"):
    """The error message of the server and of the client, from a handshake that fails or from the first read after."""
    server_socket, client_socket = plain()
    server_side = Background(server_socket.handshake, server, server_side=True, timeout=DEADLINE)
    with pytest.raises(OSError) as client_error:
        client_socket.handshake(client, server_hostname=hostname, timeout=DEADLINE)
        client_socket.recv(1)  # in TLS 1.3 the client is done first, and gets the alert with its first read
    with pytest.raises(OSError) as server_error:
        server_side.result()
    return [explain(server_error.value), explain(client_error.value)]


def test_both_sides_report_a_certificate_of_an_unknown_ca(plain, contexts, certificates):
    client = client_context(certificates.other_authority.certificate)
    assert failed(plain, contexts[0], client) == [
        "the peer says: unknown CA; it does not trust the issuer of the certificate",
        "its certificate is not accepted: unable to get local issuer certificate",
    ]


def test_both_sides_report_an_expired_certificate(plain, contexts, certificates):
    assert failed(plain, server_context(*certificates.expired), contexts[1]) == [
        "the peer says: certificate expired",
        "its certificate is not accepted: certificate has expired",
    ]


def test_both_sides_report_a_wrong_host_name(plain, contexts, certificates):
    said = failed(plain, contexts[0], contexts[1], "elsewhere.example")
    assert said[0] == "the peer says: bad certificate"
    assert "Hostname mismatch, certificate is not valid for 'elsewhere.example'" in said[1]
    said = failed(plain, contexts[0], contexts[1], "127.0.0.2")
    assert "IP address mismatch, certificate is not valid for '127.0.0.2'" in said[1]


@pytest.mark.parametrize(
    "name, server_says, client_says",
    [
        (
            None,
            "it gave no certificate",
            {"TLSv1.2": "handshake failure; ", "TLSv1.3": "a client certificate is required"},
        ),
        ("stranger", "its certificate is not accepted: unable to get local issuer certificate", "unknown CA; "),
        ("expired_client", "its certificate is not accepted: certificate has expired", "certificate expired"),
    ],
)
def test_both_sides_report_a_client_without_a_valid_certificate(
    plain, certificates, version, name, server_says, client_says
):
    server = server_context(*certificates.server, certificates.authority.certificate)
    own = () if name is None else getattr(certificates, name)
    client = client_context(certificates.authority.certificate, *own)
    client.minimum_version = client.maximum_version = version
    said = failed(plain, server, client)
    if isinstance(client_says, dict):
        client_says = client_says["TLSv1.2" if version == ssl.TLSVersion.TLSv1_2 else "TLSv1.3"]
    assert said[0] == server_says
    assert said[1].startswith("the peer says: " + client_says)


def test_both_sides_report_that_they_have_no_version_in_common(plain, certificates):
    server = server_context(*certificates.server)
    client = client_context(certificates.authority.certificate)
    server.minimum_version = ssl.TLSVersion.TLSv1_3
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert failed(plain, server, client) == [
        "it offers only versions of TLS that are too old",
        "the peer says: protocol version; it supports none of the offered versions of TLS",
    ]


def test_both_sides_report_that_they_have_no_cipher_in_common(plain, certificates):
    server = server_context(*certificates.server)
    client = client_context(certificates.authority.certificate)
    server.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    client.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    said = failed(plain, server, client)
    assert said[0] == "it offers no cipher that is allowed here, or the server has no certificate"
    assert said[1].startswith("the peer says: handshake failure; ")


@pytest.mark.parametrize(
    "text",
    [
        *(b"GET / HTTP/1.1\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n", b"hello, hello\n", b"\xff" * 50),
        b"\x16\x03\x01\xff\xff" + b"a record that is too long",
    ],
)
@pytest.mark.parametrize("server_side", [True, False], ids=["server", "client"])
def test_plain_text_is_reported_as_not_tls(plain, contexts, text, server_side):
    ours, theirs = plain()
    theirs.sendall(text)
    options = {} if server_side else {"server_hostname": "localhost"}
    with pytest.raises(ssl.SSLError) as caught:
        ours.handshake(contexts[0 if server_side else 1], server_side=server_side, timeout=DEADLINE, **options)
    assert re.fullmatch("the data received is not TLS(, or was damaged)?", explain(caught.value))


def test_errors_of_the_system_keep_their_message():
    assert explain(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")) == "Connection reset by peer"
    assert explain(TimeoutError("not done")) == "not done"
    assert explain(ValueError("anything else")) == "anything else"


@pytest.mark.parametrize(
    "name, subject, text",
    [
        (
            "all-attributes",
            "/C=DE/ST=Land/L=Town/O=Org/OU=Unit/CN=a b",
            "CN=a b,OU=Unit,O=Org,L=Town,ST=Land,C=DE",
        ),
        (
            "odd-characters",
            '/CN=caf\xe9\nINFO    forged\x1b[2J/O=root,O=Ops/OU=#1 "a" <b>',
            r"OU=\#1 \"a\" \<b\>,O=root\,O=Ops,CN=caf" + "\xe9" + r"\nINFO    forged\x1b[2J",
        ),
        (
            "long-values",
            "/CN=" + "x" * 60 + "/O=" + "y" * 60 + "/OU=" + "z" * 60 + "/L=" + "l" * 60,
            "L=" + "l" * 60 + ",OU=" + "z" * 60 + ",O=" + "y" * 60 + ",CN=" + "x" * 60,
        ),
    ],
    ids=lambda value: value if value.islower() and "=" not in value else "",
)
def test_the_subject_of_a_certificate_is_one_printable_line_that_cannot_be_forged(
    plain, certificates, name, subject, text
):
    own = certificates.issue(name, subject)
    server, client = plain()
    accepting = server_context(*certificates.server, certificates.authority.certificate)
    agree(server, client, (accepting, client_context(certificates.authority.certificate, *own)))
    assert server.subject == text
    assert server.subject.isprintable()


def test_a_subject_that_python_decodes_to_anything_is_printable_and_one_that_it_cannot_decode_is_none():
    certificate = {"subject": ((("commonName", "a\tb\ud800\x85"),),)}
    assert format_subject(certificate) == r"CN=a\tb\ud800\u0085"
    certificate = {"subject": ((("commonName", "alice"),), (("x500UniqueIdentifier", b"\n\xff"),))}
    assert format_subject(certificate) == "x500UniqueIdentifier=#0aff,CN=alice"  # a BIT STRING is bytes for CPython

    def undecodable():
        return b"\xff".decode()

    tls = types.SimpleNamespace(getpeercert=undecodable)
    assert TLSSocket.subject.fget(types.SimpleNamespace(_shaken=lambda: tls)) is None


# Contexts.


@pytest.fixture
def files(certificates, tmp_path):
    """Paths of valid and invalid files, by a description."""
    (tmp_path / "no.pem").write_text("this is no PEM\n")
    (tmp_path / "empty.pem").write_text("")
    return {
        "good": certificates.server.certificate,
        "key": certificates.server.key,
        "other key": certificates.client.key,
        "locked key": certificates.locked_key,
        "missing": str(tmp_path / "missing.pem"),
        "no PEM": str(tmp_path / "no.pem"),
        "empty": str(tmp_path / "empty.pem"),
        "folder": str(tmp_path),
    }


@pytest.mark.parametrize(
    "chain, words",
    [
        (("missing", "key"), "cannot read {0}: No such file or directory"),
        (("good", "missing"), "cannot read {1}: No such file or directory"),
        (("folder", "key"), "cannot read {0}: Is a directory"),
        (("no PEM", "key"), "{0} holds no certificate, as PEM"),
        (("key", "good"), "{0} holds no certificate, as PEM"),
        (("good", "no PEM"), "{1} holds no private key, as PEM"),
        (("good", "other key"), "the key in {1} is not that of the certificate in {0}"),
        (("good", "locked key"), "the key in {1} needs a password; give one without"),
        (("good",), "{0} holds no certificate with its key, as PEM; name the key's file, too"),
    ],
    ids=lambda value: " and ".join(value) if isinstance(value, tuple) else "",
)
def test_the_error_names_the_file_that_is_no_certificate_or_key(files, chain, words):
    paths = [files[name] for name in chain]
    expected = words.format(*paths)
    for make in (server_context, lambda *pair: client_context(None, *pair)):
        with pytest.raises(ValueError) as caught:
            make(*paths)
        assert str(caught.value) == expected


@pytest.mark.parametrize(
    "name, words",
    [
        ("missing", "cannot read {}: No such file or directory"),
        ("no PEM", "{} holds no certificate, as PEM"),
        ("empty", "{} holds no certificate, as PEM"),
        ("key", "{} holds no certificate, as PEM"),
    ],
)
def test_the_error_names_the_file_that_holds_no_ca(files, name, words):
    for make in (client_context, lambda path: server_context(files["good"], files["key"], path)):
        with pytest.raises(ValueError) as caught:
            make(files[name])
        assert str(caught.value) == words.format(files[name])


def test_the_error_names_the_file_that_cannot_be_read_to_its_end(files, monkeypatch):
    def fail(*args, **options):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", fail)
    with pytest.raises(ValueError) as caught:
        client_context(files["good"])
    assert str(caught.value) == f"cannot read {files['good']}: {os.strerror(errno.EIO)}"
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", fail)
    with pytest.raises(ValueError) as caught:
        server_context(files["good"], files["key"])
    assert str(caught.value) == f"cannot read {files['good']} or {files['key']}: {os.strerror(errno.EIO)}"


def test_a_certificate_and_its_key_may_be_in_one_file(plain, certificates, contexts, tmp_path):
    both = tmp_path / "both.pem"
    with open(certificates.server.certificate, "rb") as certificate, open(certificates.server.key, "rb") as key:
        both.write_bytes(certificate.read() + key.read())
    server, client = plain()
    agree(server, client, (server_context(str(both)), contexts[1]))
    assert client.subject == "CN=localhost"


def test_contexts_have_a_minimum_of_tls_1_2_and_do_not_renegotiate(certificates):
    authorities = certificates.authority.certificate
    for context in (server_context(*certificates.server), client_context(authorities)):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert context.options & ssl.OP_NO_COMPRESSION


def test_a_client_verifies_certificate_and_host_name_unless_told_otherwise(certificates):
    for context in (client_context(certificates.authority.certificate), client_context()):
        assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
    assert client_context(verify=False).verify_mode == ssl.CERT_NONE


def test_a_server_asks_for_a_certificate_only_if_it_has_a_ca_for_its_clients(certificates):
    assert server_context(*certificates.server).verify_mode == ssl.CERT_NONE
    asking = server_context(*certificates.server, certificates.authority.certificate)
    assert asking.verify_mode == ssl.CERT_REQUIRED


CRL_SETTINGS = """\
[ca]
default_ca = authority
[authority]
database = {folder}/index.txt
crlnumber = {folder}/crlnumber
default_md = sha256
default_crl_days = {days}
[delta]
2.5.29.27 = critical,DER:02:01:01
"""


@pytest.fixture
def revocation_list(certificates, tmp_path):
    """``revocation_list(*pairs)``: the path of a file with the CA and its list of these revoked certificates."""

    def make(*revoked, days=30, extensions=()):
        (tmp_path / "index.txt").write_text("")
        (tmp_path / "crlnumber").write_text("01\n")
        settings = tmp_path / "crl.cnf"
        settings.write_text(CRL_SETTINGS.format(folder=tmp_path, days=days))
        authority = certificates.authority
        ca = ("ca", "-config", str(settings), "-cert", authority.certificate, "-keyfile", authority.key)
        for pair in revoked:
            openssl(*ca, "-revoke", pair.certificate)
        both = tmp_path / "ca-and-crl.pem"
        openssl(*ca, "-gencrl", *extensions, "-out", str(both))
        both.write_bytes(both.read_bytes() + read_bytes(authority.certificate))
        return str(both)

    return make


def read_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def test_a_client_whose_certificate_is_revoked_by_a_list_beside_the_ca_is_rejected(
    plain, certificates, version, revocation_list
):
    """Row 72."""
    revoked = certificates.issue("revoked", "/CN=revoked")
    accepting = server_context(*certificates.server, revocation_list(revoked))
    for own, words in ((certificates.client, None), (revoked, "its certificate is not accepted: certificate revoked")):
        connecting = client_context(certificates.authority.certificate, *own)
        connecting.minimum_version = connecting.maximum_version = version
        server, client = plain()
        server_side = Background(server.handshake, accepting, server_side=True, timeout=DEADLINE)
        with contextlib.suppress(OSError):
            client.handshake(connecting, server_hostname="localhost", timeout=DEADLINE)
        if words is None:
            server_side.result()
        else:
            with pytest.raises(ssl.SSLCertVerificationError) as caught:
                server_side.result()
            assert explain(caught.value) == words


def test_a_server_whose_certificate_is_revoked_is_rejected(plain, certificates, revocation_list):
    """Row 72."""
    connecting = client_context(revocation_list(certificates.server))
    server, client = plain()
    server_side = Background(server.handshake, server_context(*certificates.server), server_side=True, timeout=DEADLINE)
    with pytest.raises(ssl.SSLCertVerificationError, match="revoked"):
        client.handshake(connecting, server_hostname="localhost", timeout=DEADLINE)
    with pytest.raises(OSError):
        server_side.result()


def test_a_context_that_ignores_its_revocation_lists_is_an_error(plain, certificates, revocation_list):
    """Row 72: OpenSSL checks them only if the context says so."""
    path = revocation_list(certificates.client)
    ignoring = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ignoring.load_cert_chain(*certificates.server)
    ignoring.load_verify_locations(path)
    address = ("127.0.0.1", 0)
    with echo.Server(address, echo.EchoRequestHandler, ssl_context=ignoring) as server:  # it asks for no certificate
        ignoring.verify_mode = ssl.CERT_REQUIRED
        with pytest.raises(ValueError, match=r"has revocation lists.*VERIFY_CRL_CHECK_CHAIN"):
            echo.Server(address, echo.EchoRequestHandler, ssl_context=ignoring)
        with pytest.raises(ValueError, match="has revocation lists"):
            server.ssl_context = ignoring
        ignoring.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        server.ssl_context = ignoring
    connecting = ssl.create_default_context(cafile=path)
    for _ in range(2):
        _, client = plain()
        with pytest.raises(ValueError, match="has revocation lists"):
            client.handshake(connecting, server_hostname="localhost", timeout=DEADLINE)


@pytest.mark.parametrize("guarded", [True, False])
def test_a_clients_context_that_verifies_only_later_is_asked_then(monkeypatch, certificates, revocation_list, guarded):
    monkeypatch.setattr(certificates_module, "_IS_GUARDED", guarded)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(revocation_list(certificates.client))
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    certificates_module.check_client(context)
    context.verify_mode = ssl.CERT_REQUIRED
    with pytest.raises(ValueError, match="has revocation lists"):
        certificates_module.check_client(context)


def test_a_context_that_does_not_know_its_revocation_lists_is_no_error(certificates, serve):
    """As truststore's, whose certificates are the system's: ``connect()`` raised ``NotImplementedError``."""

    class System(ssl.SSLContext):
        def cert_store_stats(self):
            raise NotImplementedError

    context = System(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificates.authority.certificate)
    server = serve(ssl_context=server_context(*certificates.server))
    with echo.connect(server.server_address, ssl_context=context, server_hostname="localhost") as client:
        assert client.echo(b"hello") == b"hello"


@pytest.mark.parametrize("guarded, times", [(True, 3), (False, 1)])
def test_a_context_is_not_asked_for_revocation_lists_beside_its_handshakes(
    certificates, serve, monkeypatch, guarded, times
):
    """CVE-2024-0397: the question may crash CPython 3.11.8, for example, while a handshake loads a certificate."""
    monkeypatch.setattr(certificates_module, "_IS_GUARDED", guarded)
    asked = []

    class Asked(ssl.SSLContext):
        def cert_store_stats(self):
            asked.append(self)
            return super().cert_store_stats()

    context = Asked(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificates.authority.certificate)
    server = serve(ssl_context=server_context(*certificates.server))
    for _ in range(3):
        echo.connect(server.server_address, ssl_context=context, server_hostname="localhost").close()
    assert asked == [context] * times


DAMAGED_LISTS = {
    "indented": lambda text: text.replace("-----BEGIN X509", " -----BEGIN X509"),
    "with another name": lambda text: text.replace("X509 CRL", "CRL"),
    "cut off": lambda text: text.replace("-----END X509 CRL-----", ""),
    "alone": lambda text: text[: text.index("-----BEGIN CERTIFICATE")],
}


@pytest.mark.parametrize("damage", DAMAGED_LISTS.values(), ids=DAMAGED_LISTS)
def test_a_revocation_list_that_cannot_be_used_is_an_error_and_is_not_passed_over(
    certificates, revocation_list, damage
):
    """Row 72: OpenSSL ignores blocks that it does not recognize."""
    path = revocation_list(certificates.client)
    with open(path, "r+") as file:
        text = damage(file.read())
        file.seek(0)
        file.truncate()
        file.write(text)
    with pytest.raises(ValueError) as caught:
        server_context(*certificates.server, path)
    assert path in str(caught.value)


def test_a_revocation_list_that_is_there_twice_counts_once(certificates, revocation_list):
    """Row 72: no reload of the file worked any more after a script had appended the list once again."""
    path = revocation_list(certificates.client)
    with open(path, "a+") as file:
        file.seek(0)
        file.write(file.read().replace("\n", "\r\n"))
    assert server_context(*certificates.server, path).cert_store_stats()["crl"] == 1


def test_a_revocation_list_that_adds_to_another_one_is_an_error(certificates, revocation_list):
    """Row 72: OpenSSL ignores it, and a client that only it revokes was let in."""
    path = revocation_list(certificates.client, extensions=("-crlexts", "delta"))
    with pytest.raises(ValueError, match=r"holds a delta revocation list \(CRL\), .* give the complete list"):
        server_context(*certificates.server, path)


def as_der(text):
    return ssl.PEM_cert_to_DER_cert(text.replace("X509 CRL", "CERTIFICATE"))


PASSED_OVER = {
    "binary": as_der,
    "under another name": lambda text: text.replace("X509 CRL", "CERTIFICATE REVOCATION LIST").encode(),
    "in a container": lambda text: text.replace("X509 CRL", "PKCS7").encode(),
    "in small letters": lambda text: text.lower().encode(),
    "with a dash too few": lambda text: text.replace("-----B", "----B").encode(),
    "with long dashes": lambda text: text.replace("-----", "\N{EM DASH}").encode(),
    "without its first line": lambda text: text.partition("\n")[2].encode(),
    "with a first line in two": lambda text: text.replace("BEGIN ", "BEGIN\n").encode(),
    "with a space that does not break": lambda text: text.replace("X509 ", "X509\N{NO-BREAK SPACE}").encode(),
    "with a space too many": lambda text: text.replace("CRL-", "CRL -").encode(),
    "in UTF-16": lambda text: text.encode("utf-16"),
}


@pytest.mark.parametrize("form", PASSED_OVER.values(), ids=PASSED_OVER)
def test_a_revocation_list_that_openssl_does_not_recognize_is_an_error(certificates, revocation_list, tmp_path, form):
    """Row 72: in a binary file, as CAs publish them, it was ignored without an error."""
    own, _, authority = read_bytes(revocation_list(certificates.client)).decode().partition("-----BEGIN CERTIFICATE")
    path = tmp_path / "joined.pem"
    remark = "# of the CA's website, and Zürich's\n----- CRL -----\n".encode("latin-1")
    authority = remark + b"-----BEGIN CERTIFICATE" + authority.encode()
    path.write_bytes(authority)
    server_context(*certificates.server, str(path))
    path.write_bytes(authority + form(own))
    with pytest.raises(ValueError, match=r"holds data that is not PEM, maybe a revocation list \(CRL\)"):
        server_context(*certificates.server, str(path))


@pytest.mark.parametrize("cut", [40, None], ids=["cut", "whole"])
def test_a_revocation_list_as_text_is_an_error(certificates, revocation_list, tmp_path, cut):
    """Row 72: the text that ``openssl crl -text`` writes before a list was all that a full disk had left."""
    path = tmp_path / "joined.pem"
    both = read_bytes(revocation_list(certificates.client))
    authority = read_bytes(certificates.authority.certificate)
    text = b"Certificate Revocation List (CRL):\n        Version 2 (0x1)\n    Revoked Certificates:\n"
    path.write_bytes(b"# Certificate Revocation List (CRL): none\n" + authority)
    server_context(*certificates.server, str(path))
    path.write_bytes(text + both)
    server_context(*certificates.server, str(path))
    for before in (authority, text + both):
        path.write_bytes(before + text[:cut])
        with pytest.raises(ValueError, match=r"holds the text of a revocation list \(CRL\) that no list follows"):
            server_context(*certificates.server, str(path))


@pytest.mark.skipif(not certificates_module._IS_GUARDED, reason="CPython may crash here if it is asked in use")
def test_a_revocation_list_that_is_added_to_a_context_in_use_is_not_ignored(certificates, revocation_list, serve, dial):
    """Row 72: the server asked once, when it got the context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.server)
    context.verify_mode = ssl.CERT_REQUIRED
    server = serve(ssl_context=context)
    context.load_verify_locations(revocation_list(certificates.client))
    with contextlib.suppress(ssl.SSLError, ConnectionError), dial(server) as sock:
        connecting = client_context(certificates.authority.certificate, *certificates.client)
        with connecting.wrap_socket(sock, server_hostname="localhost") as client:
            client.sendall(b"hello\n")
            assert client.recv(1) == b""
    eventually(lambda: server.stats().refused == {"handshake": 1})


def test_each_revocation_list_as_text_needs_its_own_list(certificates, tmp_path, revocation_list):
    """Row 72: an older list in PEM form made up for a newer one that was there as text only."""
    path = tmp_path / "joined.pem"
    authority = read_bytes(certificates.authority.certificate)
    heading = b"Certificate Revocation List (CRL):\n"
    text = heading + b"        Version 2 (0x1)\n    Revoked Certificates:\n"
    both = read_bytes(revocation_list(certificates.client))
    crl = both[both.index(b"-----BEGIN X509 CRL") :]
    title = b"# Certificate Revocation List (CRL):\n"
    for content in (title + authority + text + crl, text + crl + authority + text + crl, authority + crl):
        path.write_bytes(content)
        server_context(*certificates.server, str(path))
    for content in (
        authority + crl + text,
        authority + crl + heading[:-2],
        authority + crl + text[: len(heading) + 11],
        authority + crl + heading,
        text + authority + crl,
        authority + text + text + crl,
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"holds the text of a revocation list \(CRL\) that no list follows"):
            server_context(*certificates.server, str(path))


@pytest.mark.parametrize("width", [64, 76])
def test_a_revocation_list_without_its_first_and_last_line_is_an_error(certificates, tmp_path, revocation_list, width):
    """Row 72: OpenSSL passes over it."""
    path = tmp_path / "joined.pem"
    both = read_bytes(revocation_list(certificates.client)).replace(b"\r", b"")
    authority, key = read_bytes(certificates.authority.certificate), read_bytes(certificates.server.key)
    _, _, crl = both.partition(b"-----BEGIN X509 CRL-----")
    data = b"".join(crl.partition(b"-----END")[0].split())
    lines = b"\n".join(data[start : start + width] for start in range(0, len(data), width))
    path.write_bytes(b"# SHA-256 of the file:\n# " + b"0f" * 32 + b"\n" + b"/" * 64 + b"\n" + authority + key)
    server_context(*certificates.server, str(path))
    for content in (
        authority + lines,
        lines + b"\r\n" + authority + key,
        authority + b"> " + lines.replace(b"\n", b"\n> "),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"holds data outside of its PEM blocks, maybe a revocation list \(CRL\)"):
            server_context(*certificates.server, str(path))


def test_a_file_that_was_cut_in_the_first_line_of_a_revocation_list_is_an_error(certificates, tmp_path):
    """Row 72: it was accepted without the list."""
    path = tmp_path / "cut.pem"
    authority = read_bytes(certificates.authority.certificate)
    path.write_bytes(authority + b"-----\n----- END OF LIST -----\n")
    server_context(*certificates.server, str(path))
    first = b"-----BEGIN X509 CRL-----\n"
    for cut in (*(first[:length] for length in range(1, len(first) + 1)), b"-----BEGI\r\n"):
        path.write_bytes(authority + cut)
        for make in (client_context, lambda path: server_context(*certificates.server, path)):
            with pytest.raises(ValueError, match=re.escape(str(path))):
                make(str(path))


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", "utf-16"], ids=["UTF-8", "UTF-16"])
def test_a_byte_order_mark_in_a_pem_file_is_accepted(plain, certificates, contexts, tmp_path, mark):
    """Row 78."""

    def marked(path):
        data = read_bytes(path)
        copy = tmp_path / os.path.basename(path)
        copy.write_bytes(data.decode().encode(mark) if mark == "utf-16" else mark + data)
        return str(copy)

    server, client = plain()
    accepting = server_context(*map(marked, certificates.server), marked(certificates.authority.certificate))
    connecting = client_context(marked(certificates.authority.certificate), *map(marked, certificates.client))
    agree(server, client, (accepting, connecting))
    assert server.subject == "CN=alice,O=Example"


def test_a_mark_between_joined_files_hides_no_revocation_list(certificates, revocation_list):
    """Rows 72 and 78."""
    path = revocation_list(certificates.client)
    with open(path, "r+b") as file:
        data = file.read()
        file.seek(0)
        file.write(b"\xef\xbb\xbf" + data.replace(b"-----BEGIN C", b"\xef\xbb\xbf-----BEGIN C"))
    assert server_context(*certificates.server, path).cert_store_stats() == {"x509": 1, "crl": 1, "x509_ca": 1}


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="no names for pipes here")
def test_certificates_and_keys_may_come_from_pipes(plain, certificates, contexts):
    """Row 61: each is read once, even if it holds certificate and key."""
    authority = read_bytes(certificates.authority.certificate)
    both = b"".join(map(read_bytes, certificates.server))
    with piped(both) as chain, piped(authority) as clients, piped(authority) as servers:
        accepting, connecting = server_context(chain, None, clients), client_context(servers, *certificates.client)
    server, client = plain()
    agree(server, client, (accepting, connecting))
    assert (server.subject, client.subject) == ("CN=alice,O=Example", "CN=localhost")


def test_openssl_gets_the_content_that_was_checked(certificates, tmp_path):
    """Row 61: it read each file again. From one that was being written it took a part, and the rest was ignored."""
    contents = {}
    for path in (*certificates.server, certificates.authority.certificate):
        written = tmp_path / os.path.basename(path)
        written.write_bytes(b"")
        contents[str(written)] = read_bytes(path)
    assert server_context(*contents, read=contents.__getitem__).cert_store_stats()["x509_ca"] == 1


@contextlib.contextmanager
def piped(data):
    """The path of a pipe with this content, like a shell's ``<(...)``."""
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)  # as one that was passed to this process
    try:
        with open(writing, "wb") as file:
            file.write(data)
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)


def test_each_reason_why_a_certificate_is_unusable_has_its_own_words(certificates, tmp_path):
    """Row 60."""
    weak, weak_key = str(tmp_path / "weak.pem"), str(tmp_path / "weak.key")
    openssl("req", "-x509", "-newkey", "rsa:512", "-nodes", "-subj", "/CN=weak", "-keyout", weak_key, "-out", weak)
    text = read_bytes(certificates.server.certificate)
    damaged = tmp_path / "damaged.pem"
    damaged.write_bytes(text.replace(b"M", b"!", 2))
    joined = tmp_path / "joined.pem"
    joined.write_bytes(text + text[:200])
    wrong = [
        ((weak, weak_key), f"cannot use the certificate in {weak} with the key in {weak_key}: ee key too small"),
        ((str(damaged), certificates.server.key), ": one of its blocks is damaged"),
        ((str(joined), certificates.server.key), ": bad end line"),
        ((certificates.server.certificate, weak_key), f"the key in {weak_key} is not that of the certificate in"),
    ]
    for pair, words in wrong:
        with pytest.raises(ValueError) as caught:
            server_context(*pair)
        assert words in str(caught.value)
    for path in (damaged, joined):
        with pytest.raises(ValueError, match=f"^cannot use the certificates in {path}: "):
            client_context(str(path))


# Sessions that are resumed.


def resume(accepting, connecting, plain, session=None):
    """Connect with the standard library's client; return its session, and whether it was resumed."""
    server, client = plain()
    server_side = Background(server.handshake, accepting, server_side=True, timeout=DEADLINE)
    client.settimeout(DEADLINE)
    with connecting.wrap_socket(
        socket.socket(fileno=os.dup(client.fileno())), server_hostname="localhost", session=session
    ) as sock:
        server_side.result()
        server.sendall(b"x")
        assert sock.recv(1) == b"x"  # tickets come with it
        return sock.session, sock.session_reused


@pytest.fixture
def requiring(certificates, version):
    """A server's context that requires a client certificate and lets sessions be resumed, and a client's."""
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.load_cert_chain(*certificates.server)
    accepting.load_verify_locations(certificates.authority.certificate)
    accepting.verify_mode = ssl.CERT_REQUIRED
    connecting = client_context(certificates.authority.certificate, *certificates.client)
    connecting.maximum_version = version
    accepting.maximum_version = version
    return accepting, connecting


def test_a_session_whose_client_certificate_has_expired_is_not_resumed(requiring, plain, monkeypatch):
    """Row 88."""
    session, _ = resume(*requiring, plain)
    assert resume(*requiring, plain, session)[1]
    monkeypatch.setattr(tls_messages, "time", lambda: time.time() + 60 * 86400)
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        resume(*requiring, plain, session)
    assert explain(caught.value) == "its certificate is not accepted: certificate has expired"


def test_a_session_that_began_without_a_certificate_is_not_resumed_where_one_is_required(requiring, plain):
    """Row 88."""
    accepting, connecting = requiring
    accepting.verify_mode = ssl.CERT_NONE
    session, _ = resume(accepting, connecting, plain)
    accepting.verify_mode = ssl.CERT_REQUIRED
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        resume(accepting, connecting, plain, session)
    assert explain(caught.value) == "its certificate is not accepted: the session began without a certificate"


def sni(context):
    """A context that asks for no certificate, and whose sni_callback chooses this one."""
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.maximum_version = context.maximum_version

    def choose(tls, name, _):
        tls.context = context

    accepting.sni_callback = choose
    return accepting


def test_a_certificate_is_required_if_the_context_that_sni_callback_chose_requires_one(requiring, certificates, plain):
    """Row 88: OpenSSL takes the certificate and the CAs of that context, but not its mode."""
    chosen, connecting = requiring
    without = client_context(certificates.authority.certificate)
    without.maximum_version = chosen.maximum_version
    accepting = sni(chosen)
    words = "its certificate is not accepted: there is none, and one is required (by sni_callback, "
    for client in (connecting, without):  # the server's own context asks neither
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            resume(accepting, client, plain)
        assert explain(caught.value).startswith(words)
    accepting.load_verify_locations(certificates.authority.certificate)
    accepting.verify_mode = ssl.CERT_OPTIONAL
    resume(accepting, connecting, plain)
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        resume(accepting, without, plain)
    assert explain(caught.value).startswith(words)
    chosen.verify_mode = ssl.CERT_NONE
    resume(accepting, without, plain)


def test_a_certificate_that_is_only_asked_for_after_the_handshake_is_not_waited_for(requiring, plain, version):
    """Row 88: whoever does not shake hands again would be in."""
    accepting, connecting = requiring
    accepting.post_handshake_auth = True
    if version is ssl.TLSVersion.TLSv1_2:  # which asks at once
        resume(accepting, connecting, plain)
        return
    with pytest.raises(ssl.SSLCertVerificationError, match="post_handshake_auth"):
        resume(accepting, connecting, plain)


def test_a_session_is_resumed_at_a_name_without_certificates_if_it_began_with_one(
    requiring, plain, certificates, monkeypatch
):
    """Row 88: Python shows no certificate to a context that asks for none."""
    chosen, connecting = requiring
    accepting = sni(chosen)
    accepting.load_cert_chain(*certificates.server)
    accepting.load_verify_locations(certificates.authority.certificate)
    accepting.verify_mode = ssl.CERT_REQUIRED
    chosen.verify_mode = ssl.CERT_NONE
    session, _ = resume(accepting, connecting, plain)
    assert resume(accepting, connecting, plain, session)[1]
    monkeypatch.setattr(tls_messages, "time", lambda: time.time() + 60 * 86400)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        resume(accepting, connecting, plain, session)


def test_a_client_that_is_rejected_leaves_no_cycle_for_the_garbage_collector(requiring, plain):
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        resume(sni(requiring[0]), requiring[1], plain)
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    ours = [frame for frame in frames if os.path.basename(frame.f_code.co_filename) in ("tls.py", "tls_messages.py")]
    assert len(ours) == 2
    assert not [value for frame in ours for value in frame.f_locals.values() if value is caught.value]


def test_a_session_that_began_at_a_name_without_certificates_is_not_resumed_where_one_is_required(requiring, plain):
    """Row 88."""
    chosen, connecting = requiring
    accepting = sni(chosen)
    chosen.verify_mode = ssl.CERT_NONE
    session, _ = resume(accepting, connecting, plain)
    assert resume(accepting, connecting, plain, session)[1]
    chosen.verify_mode = ssl.CERT_REQUIRED
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        resume(accepting, connecting, plain, session)
    assert explain(caught.value) == "its certificate is not accepted: the session began without a certificate"


def test_a_session_whose_certificate_python_cannot_decode_is_refused_with_words_when_it_is_resumed(
    requiring, plain, monkeypatch
):
    """Row 88: UnicodeDecodeError was an exception of the session, with a traceback."""
    session, _ = resume(*requiring, plain)

    def fail(tls, binary_form=False):
        if not binary_form:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        return b"encoded"

    monkeypatch.setattr(ssl.SSLObject, "getpeercert", fail)
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        resume(*requiring, plain, session)
    assert explain(caught.value).endswith(" is not accepted: it cannot be decoded, and so not be verified again")


def test_a_server_that_requires_client_certificates_gives_no_tickets(certificates, requiring, plain, version):
    """Row 88: a resumed session is not verified again, neither its issuer nor its revocation."""
    accepting = server_context(*certificates.server, certificates.authority.certificate)
    accepting.maximum_version = version
    session, _ = resume(accepting, requiring[1], plain)
    assert not (session and session.has_ticket)
