"""Random input: messages come back however the stream is cut into pieces, and noise breaks nothing.

The inputs are the same in each run (``trials``). Decoders are compared with a model: a few simple lines that see all
bytes at once. ``--all`` runs many more trials.
"""

import collections
import itertools
import logging
import socket
import ssl
import struct
import threading

import pytest

import echo
from echo.exceptions import ProtocolError
from echo.framing import FRAMINGS, CRLFFraming, LengthFraming, LineFraming, RawFraming
from support import DEADLINE, eventually, read_all, read_exactly, reset

ALL = pytest.mark.parametrize("cls", FRAMINGS.values())
MARKING = pytest.mark.parametrize("cls", [LineFraming, CRLFFraming, LengthFraming])


def counts(few, many):
    """A test with few trials by default, and one with many more."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.stress)])


# The model of a decoder returns for a whole stream: the messages, whether one is too long, the unfinished rest.


def lines_of(stream, limit):
    *lines, rest = stream.split(b"\n")
    for index, line in enumerate(lines):
        if len(line) > limit:
            return lines[:index], True, b""
    return (lines, True, b"") if len(rest) > limit else (lines, False, rest)


def crlf_lines_of(stream, limit):
    *lines, rest = stream.split(b"\n")
    lines = [without_cr(line) for line in lines]
    for index, line in enumerate(lines):
        if len(line) > limit:
            return lines[:index], True, b""
    return (lines, True, b"") if len(without_cr(rest)) > limit else (lines, False, rest)


def without_cr(line):
    return line[:-1] if line.endswith(b"\r") else line


def length_messages_of(stream, limit):
    messages = []
    while len(stream) >= 4:
        size = int.from_bytes(stream[:4], "big")
        if size > limit:
            return messages, True, b""
        if len(stream) < 4 + size:
            break
        messages.append(stream[4 : 4 + size])
        stream = stream[4 + size :]
    return messages, False, stream


MODELS = {LineFraming: lines_of, CRLFFraming: crlf_lines_of, LengthFraming: length_messages_of}


def check(cls, limit, pieces):
    """After each piece the decoder has returned what the model returns for all bytes so far."""
    decoder = cls(limit).decoder()
    stream = b""
    messages = []
    for piece in pieces:
        stream += piece
        messages += decoder.feed(piece)
        expected, too_long, rest = MODELS[cls](stream, limit)
        assert messages == expected, (limit, pieces)
        assert isinstance(decoder.error, ProtocolError) if too_long else decoder.error is None, (limit, pieces)
        assert bytes(decoder.pending) == rest, (limit, pieces)
        assert len(decoder.pending) <= limit + 4, (limit, pieces)  # a prefix and all but the last byte
    assert decoder.finish() == rest
    assert not decoder.pending


def cuts_of(stream):
    """All the ways to cut it."""
    for bits in range(1 << (len(stream) - 1)):
        bounds = [0, *(place for place in range(1, len(stream)) if bits >> (place - 1) & 1), len(stream)]
        yield [stream[start:end] for start, end in zip(bounds, bounds[1:])]


def cut(rng, stream, most_pieces=200):
    """A random way to cut it: into bytes, small or large pieces, or all of them."""
    least = max(1, len(stream) // most_pieces)
    longest = max(least, rng.choice([1, 3, 60, 5000, len(stream)]))
    pieces = []
    start = 0
    while start < len(stream):
        end = start + rng.randint(least, longest)
        pieces.append(stream[start:end])
        start = end
    return pieces


def random_bytes(rng, size):
    """Bytes of all values, or of a few that have a meaning in a framing."""
    alphabet = rng.choice(
        [bytes(range(256)), bytes(range(256)), b"\n\r\0\1", b"a\n", b"\0\0\0\0\0\1\2\xff", b" exitEXIT\n"]
    )
    return bytes(rng.choices(alphabet, k=size))


def random_message(rng, cls, limit):
    size = rng.choice([0, 1, rng.randint(0, limit), rng.randint(0, min(limit, 40)), limit - 1, limit])
    message = random_bytes(rng, size)
    return message.replace(b"\n", b"\r") if issubclass(cls, LineFraming) else message


def random_stream(rng, cls, limit):
    """Valid messages, some of them damaged, or only noise."""
    kind = rng.random()
    if kind < 0.3:
        return random_bytes(rng, rng.randint(1, 3000))
    own_limit = limit if kind < 0.6 else 4 * limit
    messages = [random_message(rng, cls, own_limit) for _ in range(rng.randint(1, 12))]
    stream = bytearray(b"".join(map(cls(own_limit).encode, messages)) or b"\n")
    for _ in range(rng.choice([0, 0, 1, 3])):
        place = rng.randrange(len(stream))
        damage = rng.randrange(3)
        if damage == 0:
            stream[place] = rng.randrange(256)
        elif damage == 1:
            stream[place:place] = random_bytes(rng, rng.randint(1, 9))
        elif len(stream) > 1:
            del stream[place : place + rng.randint(1, len(stream) - 1)]
    return bytes(stream)


# The decoders.


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("longest", [5, pytest.param(7, marks=pytest.mark.stress)])
def test_short_lines_cut_in_every_way_give_what_the_model_gives(limit, longest):
    for size in range(1, longest + 1):
        for stream in itertools.product(b"a\n", repeat=size):
            for pieces in cuts_of(bytes(stream)):
                check(LineFraming, limit, pieces)


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("longest", [4, pytest.param(6, marks=pytest.mark.stress)])
def test_short_crlf_lines_cut_in_every_way_give_what_the_model_gives(limit, longest):
    for size in range(1, longest + 1):
        for stream in itertools.product(b"a\r\n", repeat=size):
            for pieces in cuts_of(bytes(stream)):
                check(CRLFFraming, limit, pieces)


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.stress)])
def test_short_length_messages_cut_in_every_way_give_what_the_model_gives(limit, size):
    for end in itertools.product(b"\0\1\3", repeat=size):
        for pieces in cuts_of(b"\0\0\0" + bytes(end)):
            check(LengthFraming, limit, pieces)
    for end in itertools.product(b"\0\1\3", repeat=size - 1):  # after a message
        for pieces in cuts_of(b"\0\0\0\0" + b"\0\0\0" + bytes(end)):
            check(LengthFraming, limit, pieces)


@counts(100, 2000)
@MARKING
def test_any_bytes_in_any_pieces_give_what_the_model_gives(cls, trials, count):
    for rng in trials(count):
        limit = rng.choice([1, 2, 7, 60, 1000])
        check(cls, limit, cut(rng, random_stream(rng, cls, limit)))


@counts(50, 1000)
def test_any_bytes_in_any_pieces_pass_a_raw_decoder_in_parts_of_the_limit(trials, count):
    for rng in trials(count):
        limit = rng.choice([1, 2, 7, 60, 1000])
        decoder = RawFraming(limit).decoder()
        for piece in cut(rng, random_stream(rng, RawFraming, limit)):
            parts = [piece[start : start + limit] for start in range(0, len(piece), limit)]
            assert decoder.feed(piece) == parts
            assert decoder.error is None
            assert not decoder.pending


# Through sockets.


class Sender(threading.Thread):
    """Sends pieces in a thread while the test reads, and ends the output."""

    def __init__(self, sock, pieces):
        super().__init__(daemon=True)
        self._sock = sock
        self._pieces = pieces
        self.start()

    def run(self):
        try:
            for piece in self._pieces:
                self._sock.sendall(piece)
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the reader gets it, too


def conversation(rng, cls, limit, budget=100_000):
    """Messages up to ``limit`` bytes each and about ``budget`` bytes together."""
    messages = []
    while budget > 0 and len(messages) < 60 and rng.random() > 0.03:
        messages.append(random_message(rng, cls, limit))
        budget -= limit // 8 + len(messages[-1])
    return messages


@pytest.fixture
def serve_echo(serve):
    """``serve_echo(framing)``: a server that sends back all messages, ``exit`` too."""

    def start(own, **options):
        options.update(handshake_timeout=DEADLINE, shutdown_timeout=DEADLINE)

        class Handler(echo.EchoRequestHandler):
            exit_word = None
            framing = own

        return serve(Handler, **options)

    return start


@pytest.fixture
def contexts(certificates):
    """The server's and the client's."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*certificates.server)
    return server, ssl.create_default_context(cafile=certificates.authority.certificate)


@counts(5, 100)
@ALL
@pytest.mark.parametrize("limit", [5, 300, 65536])
def test_a_stream_in_any_pieces_comes_back_byte_for_byte(cls, limit, serve_echo, trials, count):
    framing = cls(limit)
    server = serve_echo(framing)
    for rng in trials(count):
        stream = b"".join(map(framing.encode, conversation(rng, cls, limit)))
        if rng.random() < 0.3:  # it may end inside a message
            stream = stream[: rng.randint(0, len(stream))]
        with socket.create_connection(server.server_address, DEADLINE) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sender = Sender(sock, cut(rng, stream))
            assert read_all(sock) == stream
            sender.join(DEADLINE)


@counts(10, 200)
@MARKING
def test_each_piece_gets_its_replies_before_the_next_is_sent(cls, serve_echo, trials, count):
    """In lockstep, so that the server's reads end where the pieces do."""
    framing = cls(50)
    server = serve_echo(framing)
    for rng in trials(count):
        stream = b"".join(map(framing.encode, conversation(rng, cls, 50, 1000)))
        with socket.create_connection(server.server_address, DEADLINE) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sent = back = 0
            for piece in cut(rng, stream, 40):
                sock.sendall(piece)
                sent += len(piece)
                whole = sent - len(MODELS[cls](stream[:sent], 50)[2])
                assert read_exactly(sock, whole - back) == stream[back:whole]
                back = whole
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == stream[back:]


def converse(rng, client, messages):
    """Send and compare: one by one, pipelined, or by hand."""
    way = rng.randrange(3) if client.framing.keeps_boundaries else rng.randrange(2)
    if way == 0:
        for message in messages:
            assert client.echo(message) == message
    elif way == 1:
        assert list(client.echo_many(messages, rng.choice([1, 2, 50]))) == messages
    else:
        few = messages[:20]  # certainly fits into the sockets' buffers
        few = few if sum(map(len, few)) < 50_000 else few[:1]
        for message in few:
            client.send(message)
        assert [client.recv() for _ in few] == few


@counts(10, 200)
@ALL
def test_messages_come_back_through_the_client(cls, serve_echo, trials, count):
    framing = cls(20_000)
    server = serve_echo(framing)
    for rng in trials(count):
        with echo.connect(server.server_address, framing=framing, timeout=DEADLINE) as client:
            converse(rng, client, conversation(rng, cls, 20_000))
    eventually(lambda: server.stats().ended == {"eof": count})
    assert server.stats().accepted == count


@counts(5, 100)
@ALL
def test_messages_come_back_through_the_client_over_tls(cls, serve_echo, trials, contexts, count):
    framing = cls(40_000)  # more than a record
    server = serve_echo(framing, ssl_context=contexts[0])
    for rng in trials(count):
        address = server.server_address
        with echo.connect(
            address, framing=framing, timeout=DEADLINE, ssl_context=contexts[1], server_hostname="localhost"
        ) as client:
            converse(rng, client, conversation(rng, cls, 40_000))
    eventually(lambda: server.stats().ended == {"eof": count})
    assert server.stats().accepted == count


@counts(4, 60)
@ALL
def test_a_stream_in_any_pieces_comes_back_byte_for_byte_over_tls(cls, serve_echo, trials, contexts, count):
    framing = cls(300)
    server = serve_echo(framing, ssl_context=contexts[0])
    for rng in trials(count):
        stream = b"".join(map(framing.encode, conversation(rng, cls, 300)))
        # This end is the standard library's own socket. It allows one thread at a time, so the stream must fit into
        # the buffers. It has no half-close either, so the stream must end with a whole message.
        plain = socket.create_connection(server.server_address, DEADLINE)
        with contexts[1].wrap_socket(plain, server_hostname="localhost") as sock:
            for piece in cut(rng, stream, 40):
                sock.sendall(piece)
            assert read_exactly(sock, len(stream)) == stream


# Noise, into a real server.


def send_noise(rng, address, stream):
    """Send ``stream``, and leave in one of several ways."""
    with socket.create_connection(address, DEADLINE) as sock:
        try:
            for piece in cut(rng, stream, 20):
                sock.sendall(piece)
            way = rng.randrange(4)
            if way < 2:
                sock.shutdown(socket.SHUT_WR)
                read_all(sock)
            elif way == 2:
                reset(sock)
        except OSError:
            pass  # the server has ended the session


@counts(20, 300)
@ALL
def test_noise_ends_no_server_and_its_statistics_agree_with_its_log(cls, serve, trials, caplog, count):
    caplog.set_level(logging.DEBUG)

    class Handler(echo.LoggingMixin, echo.EchoRequestHandler):
        framing = cls(32)
        log = logging.getLogger("echo.session.noise")  # only those of this test

    server = serve(Handler)
    clients = 0
    for rng in trials(count):
        send_noise(rng, server.server_address, random_stream(rng, cls, 32))
        clients += 1
        if clients % 10 == 0:
            with echo.connect(server.server_address, framing=cls(), timeout=DEADLINE) as client:
                assert client.echo(b"still here") == b"still here"
            clients += 1
    eventually(lambda: sum(server.stats().ended.values()) == clients)
    stats = server.stats()
    assert (stats.accepted, stats.active, stats.refused) == (clients, 0, {})
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    ends = [record for record in caplog.records if record.name == Handler.log.name and record.event == "disconnected"]
    assert stats.ended == collections.Counter(record.reason for record in ends)
    assert set(stats.ended) <= {"exit", "eof", "incomplete", "too-long", "reset"}
    for figure in ("messages_in", "messages_out", "bytes_in", "bytes_out"):
        assert getattr(stats, figure) == sum(getattr(record, figure) for record in ends)


@counts(20, 300)
def test_noise_ends_no_server_with_tls_and_its_statistics_add_up(serve_echo, trials, contexts, caplog, count):
    caplog.set_level(logging.DEBUG)
    server = serve_echo(LineFraming(32), ssl_context=contexts[0])
    for rng in trials(count):
        stream = random_stream(rng, LineFraming, 32)
        if rng.random() < 0.5:
            stream = b"\x16\x03\x01" + struct.pack("!H", rng.choice([len(stream), 20, 60000])) + stream
        send_noise(rng, server.server_address, stream)
    address = server.server_address
    with echo.connect(address, timeout=DEADLINE, ssl_context=contexts[1], server_hostname="localhost") as client:
        assert client.echo(b"still here") == b"still here"
    eventually(lambda: not server.connections)  # a stop would end those that are still there as "drain"
    assert server.stop()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    stats = server.stats()
    assert stats.accepted == count + 1 == sum(stats.ended.values()) + sum(stats.refused.values())
    assert stats.ended == {"eof": 1}
    assert set(stats.refused) == {"handshake"}
