"""``echo.Server`` with ``ssl_context``: sessions are as they are without TLS, and no handshake delays another client.

The peers are ``echo.connect`` and the standard library's ``ssl``, which distinguishes ``close_notify`` from a
connection that was closed without it.
"""

import contextlib
import http.server
import logging
import os
import select
import socket
import socketserver
import ssl
import threading
import urllib.request

import pytest

import echo
from echo.sockets import receive_timeout, undelivered
from echo.transport.certificates import client_context, server_context
from support import DEADLINE, Recorder, eventually, read_all, read_exactly, reset
from support.background import Background

pytestmark = pytest.mark.skipif(os.name != "posix", reason="deadlines as POSIX has them")

FRAMINGS = {"line": echo.LineFraming, "length": echo.LengthFraming, "raw": echo.RawFraming}


@pytest.fixture
def secure(serve, certificates):
    """``secure(handler_class, **options)``: as ``serve``, with TLS, and with generous timeouts."""

    def start(handler_class=echo.EchoRequestHandler, **options):
        options.setdefault("ssl_context", server_context(*certificates.server))
        options.setdefault("handshake_timeout", DEADLINE)
        options.setdefault("shutdown_timeout", DEADLINE)
        return serve(handler_class, **options)

    return start


@pytest.fixture
def connect(certificates):
    """``connect(server)``: an ``echo.Client`` that trusts the tests' CA."""
    context = client_context(certificates.authority.certificate)

    def connect(server, **options):
        options = dict(dict(timeout=DEADLINE, ssl_context=context, server_hostname="localhost"), **options)
        return echo.connect(server.server_address, **options)

    return connect


@pytest.fixture
def stock(certificates, dial):
    """``stock(server)``: a connected ``ssl.SSLSocket``, which raises ``ssl.SSLEOFError`` if the peer closes without
    ``close_notify``."""
    with contextlib.ExitStack() as stack:

        def connect(server, sock=None, own=None):
            context = ssl.create_default_context(cafile=certificates.authority.certificate)
            if own is not None:
                context.load_cert_chain(*own)
            sock = sock or dial(server)
            return stack.enter_context(
                context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False)
            )

        yield connect


def stop_in_background(server):
    """Start ``server.stop()``; ``result()`` of what this returns waits for its end."""
    return Background(server.stop)


def with_small_buffer(sock):
    """Give the socket so small a buffer that its peer has to wait with a reply of 20 KB."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return sock


# Sessions.


@pytest.mark.parametrize("framing", ["line", "length", "raw"])
def test_messages_come_back_over_tls_under_every_framing(secure, connect, framing):
    handler = type("Handler", (echo.EchoRequestHandler,), {"framing": FRAMINGS[framing]()})
    with connect(secure(handler), framing=FRAMINGS[framing]()) as client:
        for message in (b"hello", b"x" * 60_000, b"\xff\x00\r"):
            assert client.echo(message) == message


@pytest.mark.parametrize("count", [1000, pytest.param(20_000, marks=pytest.mark.stress)])
def test_many_pipelined_messages_come_back_over_tls_in_order(secure, connect, count):
    server = secure()
    with connect(server) as client:
        messages = [b"message %d " % number + b"x" * (number % 3000) for number in range(count)]
        assert list(client.echo_many(messages, 1000)) == messages
    eventually(lambda: not server.stats().active)
    assert (server.stats().messages_in, server.stats().ended) == (count, {"eof": 1})


@pytest.mark.parametrize("count", [10, pytest.param(300, marks=pytest.mark.stress)])
def test_many_clients_are_served_over_tls_at_the_same_time(secure, connect, count):
    server = secure()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(count)]
        for turn in range(3):
            for number, client in enumerate(clients):
                client.send(b"%d of %d" % (turn, number))
            for number, client in enumerate(clients):
                assert client.recv() == b"%d of %d" % (turn, number)
        assert server.stats().active == count
    eventually(lambda: not server.stats().active)
    assert server.stats().ended == {"eof": count}


class Gated(echo.EchoRequestHandler):
    """Handles its first message only after ``go`` is set, and sets ``begun`` before."""

    def message_received(self, message):
        self.server.begun.set()
        assert self.server.go.wait(DEADLINE)
        super().message_received(message)


@pytest.fixture
def gated(secure):
    """``gated(**options)``: a server whose sessions wait in their first message."""

    def start(**options):
        server = secure(Gated, **options)
        server.begun, server.go = threading.Event(), threading.Event()
        return server

    return start


def test_exit_over_tls_is_answered_by_close_notify_and_junk_after_it_loses_no_reply(gated, dial, stock):
    server = gated()
    client = stock(server, with_small_buffer(dial(server)))
    lines = b"".join(b"line %d\n" % number for number in range(2000))
    client.sendall(lines + b"exit\n" + b"junk\n" * 6000)  # as much as the server reads at once when it closes
    socket.socket.shutdown(client, socket.SHUT_WR)  # without close_notify; the server need not wait for more junk
    server.go.set()
    eventually(lambda: server.stats().ended == {"exit": 1})  # the server's socket is closed, too
    assert read_all(client) == lines  # and then close_notify, otherwise it would raise SSLEOFError


def test_replies_arrive_after_a_tls_client_has_half_closed(secure, connect):
    handler = Recorder.of(echo.EchoRequestHandler)
    with connect(secure(handler)) as client:
        lines = [b"line %d" % number for number in range(1000)]
        for line in lines:
            client.send(line)
        client.connection.end_output()
        assert list(client) == lines
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["eof"]


def test_a_stop_answers_what_had_arrived_over_tls_and_sends_close_notify(gated, stock):
    server = gated()
    idle, busy = stock(server), stock(server)
    busy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # otherwise the second record waits, and comes too late
    lines = b"".join(b"line %d\n" % number for number in range(2000))
    busy.sendall(lines)
    assert server.begun.wait(DEADLINE)
    stopping = stop_in_background(server)
    assert idle.recv(1) == b""
    server.go.set()
    assert read_all(busy) == lines
    idle.close()
    busy.close()
    assert stopping.result() is True
    assert server.stats().ended == {"drain": 2}


class Farewell(echo.EchoRequestHandler):
    """Sends more at its end than the client's buffer holds."""

    def message_received(self, message):
        self.server.begun.set()

    def connection_lost(self, reason):
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)  # enough: no send waits
        for _ in range(10):
            self.send(b"x" * 10_000)
        self.server.said.set()
        super().connection_lost(reason)


def test_a_stop_during_an_upload_delivers_the_whole_reply(secure, stock):
    server = secure(Farewell)
    server.begun, server.said = threading.Event(), threading.Event()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    sock.settimeout(DEADLINE)
    sock.connect(server.server_address)
    client = stock(server, sock)
    client.sendall(b"up\n")
    assert server.begun.wait(DEADLINE)
    stopping = stop_in_background(server)
    # No more than the system takes at once: after a stop the server reads the rest only now and then.
    for _ in range(50):
        client.sendall(b"up\n" * 100)
        if server.said.wait(0.002):
            break
    assert server.said.wait(DEADLINE)
    for _ in range(50):
        client.sendall(b"up\n" * 100)
    # The server goes on reading while a part of its reply is not delivered. Otherwise the unread input would cause a
    # reset, which could overtake close_notify.
    eventually(lambda: not undelivered(client))
    assert read_all(client) == (b"x" * 10_000 + b"\n") * 10
    client.close()
    assert stopping.result() is True
    assert server.stats().ended == {"drain": 1}


class Talker(echo.EchoRequestHandler):
    """Replies with more than the buffers hold."""

    framing = echo.LineFraming(2_000_000)

    def message_received(self, message):
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self.server.begun.set()
        self.send(b"x" * 1_000_000)


@pytest.fixture
def talker(secure, dial, stock):
    """``talker(**attributes)``: a server, its handler class, and a client that reads nothing of a long reply."""

    def start(**attributes):
        handler = Recorder.of(type("Talker", (Talker,), attributes))
        server = secure(handler)
        server.begun = threading.Event()
        client = stock(server, with_small_buffer(dial(server)))
        client.sendall(b"talk\n")
        assert server.begun.wait(DEADLINE)
        return server, handler, client

    return start


def test_a_stop_cuts_a_tls_client_that_does_not_read(talker):
    server, _, _ = talker()
    assert Background(server.stop, 0.1).result() is False
    eventually(lambda: not server.connections)


def test_a_tls_client_that_never_reads_ends_as_slow(talker):
    _, handler, _ = talker(send_timeout=0.1)
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["slow"]


@pytest.mark.parametrize(
    "limit, sent, reason",
    [
        ({"timeout": 0.1}, b"", "idle"),
        ({"message_timeout": 0.1}, b"first\nhalf a message", "slow"),
        ({"framing": echo.LineFraming(70_000)}, b"first\n" + b"x" * 70_001, "too-long"),
    ],
    ids=["idle", "slow", "long"],
)
def test_limits_end_a_session_over_tls_with_their_reasons_and_close_notify(secure, stock, limit, sent, reason):
    handler = Recorder.of(type("Limited", (echo.EchoRequestHandler,), limit))
    client = stock(secure(handler))
    client.sendall(sent)
    assert read_all(client) == sent[:6]
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == [reason]


def test_a_message_that_drips_in_records_of_one_byte_ends_as_slow(secure, stock):
    handler = Recorder.of(type("Limited", (echo.EchoRequestHandler,), {"message_timeout": 0.1}))
    client = stock(secure(handler))
    with contextlib.suppress(OSError):
        for _ in range(int(DEADLINE / 0.02)):
            client.sendall(b"x")
            if handler.ended.wait(0.02):
                break
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["slow"]


def test_a_message_without_its_end_is_incomplete_with_and_without_close_notify(secure, stock):
    class Greets(echo.MessageRequestHandler):
        def connection_made(self):
            self.send(b"welcome")

    handler = Recorder.of(Greets)
    server = secure(handler)
    polite, abrupt = stock(server), stock(server)
    for client in (polite, abrupt):  # a close over unread input would be a reset
        assert read_exactly(client, 8) == b"welcome\n"
    polite.sendall(b"half")
    polite.unwrap().close()
    assert handler.ended.wait(DEADLINE)
    abrupt.sendall(b"half")
    abrupt.close()  # without close_notify
    eventually(lambda: len(handler.reasons) == 2)
    assert handler.reasons == ["incomplete", "incomplete"]


@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.stress)])
def test_messages_that_other_threads_send_over_tls_arrive_whole(secure, connect, count):
    class Feed(echo.EchoRequestHandler):
        def connection_made(self):
            self.server.session_handler = self

    server = secure(Feed)
    with connect(server) as client:
        client.echo(b"hello")
        handler = server.session_handler

        def send(number):
            for turn in range(count):
                handler.send(b"%d %d " % (number, turn) + b"%d" % number * 3000)

        def send_as_client():
            for turn in range(count):
                client.send(b"9 %d " % turn + b"9" * 3000)

        sending = [Background(send, number) for number in range(4)] + [Background(send_as_client)]
        turns = {number: 0 for number in (0, 1, 2, 3, 9)}
        for _ in range(5 * count):
            number, turn, rest = client.recv().split()
            assert rest == number * 3000 and int(turn) == turns[int(number)]
            turns[int(number)] += 1
        assert set(turns.values()) == {count}
        for each in sending:
            each.result()


def test_an_abort_is_a_reset_over_tls_and_sends_no_close_notify(secure, stock):
    class Aborts(echo.EchoRequestHandler):
        def message_received(self, message):
            self.abort()

    handler = Recorder.of(Aborts)
    client = stock(secure(handler))
    client.sendall(b"hello\n")
    with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
        client.recv(1)
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["reset"]


def test_a_tls_client_that_resets_ends_as_reset_without_a_warning(secure, stock, caplog):
    handler = Recorder.of(echo.EchoRequestHandler)
    client = stock(secure(handler))
    client.sendall(b"hello\n")
    assert read_exactly(client, 6) == b"hello\n"
    reset(client)
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["reset"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# Handlers of the standard library.


class Shout(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


def test_a_handler_of_socketserver_serves_over_tls_and_is_drained(secure, stock):
    server = secure(Shout)
    client = stock(server)
    client.sendall(b"hello\n")
    assert read_exactly(client, 6) == b"HELLO\n"
    stopping = stop_in_background(server)
    assert client.recv(1) == b""
    client.close()
    assert stopping.result() is True
    assert server.stats().ended == {"drain": 1}


class Patient(socketserver.StreamRequestHandler):
    """Gives up on a client that does not read, and leaves its socket without a timeout."""

    def handle(self):
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)  # TLS holds more than that, encrypted
        self.request.settimeout(0.05)
        with contextlib.suppress(socket.timeout):
            while True:
                self.request.sendall(b"x" * 65536)
        self.request.settimeout(None)


class Brisk(echo.Server):
    """Waits only a moment for a client that does not read ``close_notify``."""

    _echo_linger_silence = 0.05


def test_a_client_that_does_not_read_the_end_of_its_session_does_not_hold_up_the_server(secure, dial, stock):
    server = secure(Patient, cls=Brisk, shutdown_timeout=None)
    client = stock(server, with_small_buffer(dial(server)))
    socket.socket.shutdown(client, socket.SHUT_WR)  # the server need not wait for input
    eventually(lambda: server.stats().ended == {"exit": 1})
    assert not server.stats().active
    assert Background(server.stop).result() is True


def test_urllib_reads_from_an_http_handler_over_https(secure, certificates, tmp_path):
    (tmp_path / "file.txt").write_bytes(b"over https\n" * 50_000)

    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments):
            pass

    port = secure(Files).server_address[1]
    context = ssl.create_default_context(cafile=certificates.authority.certificate)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    with opener.open(f"https://localhost:{port}/file.txt", timeout=DEADLINE) as response:
        assert response.read() == b"over https\n" * 50_000


# Mixins.


def test_the_fault_mixin_changes_messages_over_tls(secure, connect):
    class Chopped(echo.FaultMixin, echo.EchoRequestHandler):
        chunk = 7
        delay = 0.0001
        corrupt_every = 1000

    with connect(secure(Chopped)) as client:
        client.echo(b"short")
        with pytest.raises(echo.EchoMismatch):
            client.echo(b"x" * 3000)


def test_a_transcript_shows_the_decrypted_messages(secure, connect, tmp_path):
    class Told(echo.TranscriptMixin, echo.EchoRequestHandler):
        transcript_folder = str(tmp_path)

    server = secure(Told)
    with connect(server) as client:
        client.echo(b"hello over TLS")
    eventually(lambda: not server.stats().active)
    (path,) = tmp_path.iterdir()
    lines = path.read_text().splitlines()
    assert [line.split()[1:3] for line in lines] == [[">", "00000000"], ["<", "00000000"]]
    assert all(line.endswith("hello over TLS.") for line in lines)


# Handshakes.


def refusals(caplog):
    return [record for record in caplog.records if getattr(record, "event", "") == "refused"]


@pytest.fixture
def log(caplog):
    """The log records of rejected clients, as they come."""
    caplog.set_level(logging.DEBUG, "echo.server")
    return lambda: refusals(caplog)


def says_nothing(sock):
    pass


def begins(sock):
    sock.sendall(b"\x16\x03\x01\x02\x00\x01")


def speaks_plainly(sock):
    sock.sendall(b"hello\n")


def asks_for_http(sock):
    sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


def leaves_in_the_middle(sock):
    begins(sock)
    sock.close()


@pytest.mark.parametrize(
    "client, timeout, why",
    [
        (says_nothing, 0.1, "the handshake was not done after 0.1 s"),
        (begins, 0.1, "the handshake was not done after 0.1 s"),
        (speaks_plainly, DEADLINE, "the data received is not TLS"),
        (asks_for_http, DEADLINE, "the data received is not TLS"),
        (leaves_in_the_middle, DEADLINE, "the peer left in mid-handshake"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_client_that_does_no_handshake_is_logged_in_one_line_and_counted(secure, dial, log, client, timeout, why):
    server = secure(handshake_timeout=timeout)
    sock = dial(server)
    peer = "127.0.0.1:%d" % sock.getsockname()[1]
    client(sock)
    if sock.fileno() >= 0:
        read_all(sock)
        sock.close()  # the server waits a second for that
    eventually(lambda: server.stats().refused == {"handshake": 1} and not server.stats().active)
    assert [record.getMessage() for record in log()] == [f"{peer} refused: handshake ({why})"]
    assert [(record.levelno, record.peer, record.reason) for record in log()] == [(logging.INFO, peer, "handshake")]
    assert server.stats().ended == {}


def test_a_client_that_resets_in_its_handshake_is_logged_in_one_line_and_counted(secure, dial, log):
    server = secure()
    client = dial(server)
    begins(client)
    reset(client)
    eventually(lambda: server.stats().refused == {"handshake": 1} and not server.stats().active)
    (record,) = log()
    assert record.getMessage().endswith("refused: handshake (Connection reset by peer)")


def test_a_dripping_handshake_ends_at_its_deadline(secure, dial, log):
    server = secure(handshake_timeout=0.1)
    client = dial(server)
    client.sendall(b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03")  # the rest, 16 KB, would take minutes
    with contextlib.suppress(OSError):
        for _ in range(int(DEADLINE / 0.02)):
            client.sendall(b"\0")
            if select.select([client], [], [], 0.02)[0]:  # the server has sent the end of output
                break
    client.close()
    eventually(lambda: server.stats().refused == {"handshake": 1})
    assert "the handshake was not done after 0.1 s" in log()[0].getMessage()


def test_a_probe_that_connects_and_leaves_is_logged_at_level_debug_only(secure, dial, log):
    server = secure()
    dial(server).close()
    eventually(lambda: server.stats().refused == {"handshake": 1})
    assert [(record.levelno, record.reason) for record in log()] == [(logging.DEBUG, "handshake")]


@pytest.mark.parametrize("timeout", [3e6, 1e10])
def test_any_time_for_a_handshake_is_long_enough(secure, connect, timeout):
    with connect(secure(handshake_timeout=timeout), timeout=timeout) as client:
        assert client.echo(b"hello") == b"hello"


def test_a_silent_client_delays_no_other_handshake(secure, dial, connect):
    server = secure(handshake_timeout=None)
    silent = [dial(server) for _ in range(20)]
    for client in silent[::2]:
        begins(client)
    eventually(lambda: server.stats().active == 20)
    for _ in range(3):
        with connect(server) as client:
            assert client.echo(b"hello") == b"hello"


def test_a_client_may_begin_its_handshake_late(secure, dial, stock):
    server = secure()
    sock = dial(server)
    eventually(lambda: server.stats().active == 1)
    client = stock(server, sock)
    client.sendall(b"hello\n")
    assert read_exactly(client, 6) == b"hello\n"


def test_the_timeout_of_the_handshake_does_not_apply_to_the_session(secure, stock):
    class Tells(echo.EchoRequestHandler):
        timeout = 4567.0  # seconds
        message_timeout = None

        def message_received(self, message):
            self.send(b"%r %r" % (self.request.gettimeout(), receive_timeout(self.request)))

    client = stock(secure(Tells, handshake_timeout=DEADLINE))
    client.sendall(b"hello\n")
    assert client.recv(100) == b"None 4567.0\n"


def test_a_stop_does_not_wait_for_pending_handshakes(secure, dial, log):
    server = secure(handshake_timeout=None, shutdown_timeout=10 * DEADLINE)
    clients = [dial(server) for _ in range(5)]
    begins(clients[0])
    eventually(lambda: server.stats().active == 5)
    stopping = stop_in_background(server)
    for client in clients:
        read_all(client)
        client.close()
    assert stopping.result() is True
    assert server.stats().ended == {"drain": 5}
    assert log() == []


def test_the_limit_of_a_host_counts_connections_in_their_handshake(secure, dial):
    server = secure(max_connections_per_host=2)
    silent = [dial(server), dial(server)]
    eventually(lambda: server.stats().active == len(silent))
    assert read_all(dial(server)) == b""
    eventually(lambda: server.stats().refused == {"limit": 1})


def test_a_client_that_stays_after_its_failed_handshake_keeps_its_slot(secure, dial):
    """Row 61: a host filled the server past its limit with connections that were refused and went on sending."""
    server = secure(max_connections_per_host=2)
    server._echo_linger_silence = DEADLINE
    for client in (dial(server), dial(server)):
        speaks_plainly(client)
        read_all(client)
    assert read_all(dial(server)) == b""
    eventually(lambda: server.stats().refused == {"limit": 1})
    assert server.stats().active == 2


def test_a_failed_handshake_frees_its_slot(secure, dial, connect):
    server = secure(max_connections=1)
    for _ in range(5):
        client = dial(server)
        speaks_plainly(client)
        read_all(client)
        client.close()
    with connect(server) as client:
        assert client.echo(b"hello") == b"hello"
    assert server.stats().refused == {"handshake": 5}


def test_the_context_can_be_replaced_while_the_server_serves(secure, connect, certificates):
    server = secure()
    with connect(server) as old:
        assert old.connection.socket.subject == "CN=localhost"
        server.ssl_context = server_context(*certificates.next_server)
        with connect(server) as new:
            assert new.connection.socket.subject == "O=Next,CN=localhost"
            assert new.echo(b"new") == b"new"
        assert old.echo(b"old") == b"old"


def test_only_clients_with_a_certificate_of_the_ca_get_in_and_the_log_names_them(
    secure, stock, certificates, caplog, log
):
    class Logged(echo.LoggingMixin, echo.EchoRequestHandler):
        pass

    caplog.set_level(logging.INFO, "echo.session")
    context = server_context(*certificates.server, certificates.authority.certificate)
    server = secure(Recorder.of(Logged), ssl_context=context)
    client = stock(server, own=certificates.client)
    client.sendall(b"hello\n")
    assert read_exactly(client, 6) == b"hello\n"
    (record,) = [each for each in caplog.records if getattr(each, "event", "") == "connected"]
    assert (record.tls, record.subject) == (client.version(), "CN=alice,O=Example")
    assert record.getMessage().endswith(f"connected {client.version()}, CN=alice,O=Example")
    for own, why in (
        (None, "it gave no certificate"),
        (certificates.stranger, "its certificate is not accepted: unable to get local issuer certificate"),
        (certificates.expired_client, "its certificate is not accepted: certificate has expired"),
    ):
        with pytest.raises(ssl.SSLError), stock(server, own=own) as refused:
            refused.recv(1)
        eventually(lambda: len(server.connections) == 1)
        assert log()[-1].getMessage().endswith(f"refused: handshake ({why})")
    assert server.stats().refused == {"handshake": 3}


@pytest.mark.parametrize("header", [b"", b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n"], ids=["direct", "proxied"])
def test_a_verify_request_that_looks_at_the_certificate_before_the_handshake_lets_nobody_in(
    secure, dial, stock, certificates, header
):
    """Row 61: the certificate was None, as without one, so that a client that this rejects got in."""

    class RejectsAlice(echo.Server):
        def verify_request(self, request, client_address):
            return "alice" not in str(request.getpeercert())

    context = server_context(*certificates.server, certificates.authority.certificate)
    server = secure(cls=RejectsAlice, ssl_context=context, proxy_protocol=bool(header))
    sock = dial(server)
    sock.sendall(header)
    with pytest.raises(OSError):
        stock(server, sock, certificates.client).recv(1)
    eventually(lambda: server.stats().refused == {"error": 1})


def test_the_header_of_a_proxy_comes_before_the_handshake(secure, dial, stock):
    class Tells(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(f"{self.peer} via {self.via}".encode())

    server = secure(Tells, proxy_protocol=True)
    sock = dial(server)
    sock.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n")
    client = stock(server, sock)
    client.sendall(b"who\n")
    assert client.recv(100) == b"192.0.2.7:4711 via 127.0.0.1:%d\n" % client.getsockname()[1]


def test_an_invalid_context_is_a_type_error():
    with pytest.raises(TypeError, match="ssl_context is 'cert"):
        echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, ssl_context="cert.pem")


# The client.


def test_the_name_that_is_verified_is_the_host_of_the_address(secure, certificates):
    context = client_context(certificates.authority.certificate)
    port = secure().server_address[1]
    for host in ("localhost", "127.0.0.1"):
        with echo.connect((host, port), timeout=DEADLINE, ssl_context=context) as client:
            assert client.echo(b"hello") == b"hello"
    with pytest.raises(ssl.SSLCertVerificationError):
        echo.connect(("127.0.0.1", port), timeout=DEADLINE, ssl_context=context, server_hostname="elsewhere.example")


def test_a_client_that_cannot_verify_what_it_was_given_does_not_connect(tmp_path):
    """Row 72. A Unix socket has no name to verify: any certificate of the CA was accepted. A name alone, without a
    context, meant no TLS."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        for error, words, options in (
            (ValueError, "give it as server_hostname", {"ssl_context": ssl.create_default_context()}),
            (ValueError, "server_hostname needs ssl_context", {"server_hostname": "localhost"}),
            (TypeError, "ssl_context is True; expected a context", {"ssl_context": True}),
        ):
            with pytest.raises(error, match=words):
                echo.connect(listener.getsockname(), timeout=0.1, **options)


def test_a_server_that_does_no_handshake_is_a_timeout(tmp_path, certificates):
    context = client_context(certificates.authority.certificate)
    with socket.socket(socket.AF_UNIX) as listener:  # to connect to it never takes time
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        with pytest.raises(TimeoutError, match=r"the handshake was not done after 0\.1 s"):
            echo.connect(listener.getsockname(), timeout=0.1, ssl_context=context, server_hostname="localhost")
