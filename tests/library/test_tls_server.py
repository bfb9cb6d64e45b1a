"""``echo.Server`` with ``ssl_context``: sessions are what they are without, and no handshake is anybody else's affair.

The peers are the standard library's ``ssl``, which tells an end that was said from a connection that was dropped, and
``echo.connect``.
"""

import contextlib
import http.server
import logging
import os
import socket
import socketserver
import ssl
import threading
import time
import urllib.request

import pytest

import echo
from echo.certificates import client_context, server_context
from support import DEADLINE, Recorder, eventually, read_all, read_exactly

pytestmark = pytest.mark.skipif(os.name != "posix", reason="deadlines as POSIX has them")

FRAMINGS = {"line": echo.LineFraming, "length": echo.LengthFraming, "raw": echo.RawFraming}


@pytest.fixture
def secure(serve, certificates):
    """``secure(handler_class, **options)``: as ``serve``, with TLS."""

    def start(handler_class=echo.EchoRequestHandler, **options):
        options.setdefault("ssl_context", server_context(*certificates.server))
        return serve(handler_class, **options)

    return start


@pytest.fixture
def connect(certificates):
    """``connect(server)``: an ``echo.Client`` that believes the tests' CA."""
    context = client_context(certificates.authority.certificate)

    def connect(server, **options):
        options = dict(dict(timeout=DEADLINE, ssl_context=context, server_hostname="localhost"), **options)
        return echo.connect(server.server_address, **options)

    return connect


@pytest.fixture
def stock(certificates, dial):
    """``stock(server)``: a connected ``ssl.SSLSocket``. Without ``close_notify`` the end is ``ssl.SSLEOFError``."""
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


# Sessions.


@pytest.mark.parametrize("framing", ["line", "length", "raw"])
def test_messages_come_back_over_tls_under_every_framing(secure, connect, framing):
    handler = type("Handler", (echo.EchoRequestHandler,), {"framing": FRAMINGS[framing]()})
    with connect(secure(handler), framing=FRAMINGS[framing]()) as client:
        for message in (b"hello", b"x" * 60_000, b"\xff\x00\r"):
            assert client.echo(message) == message


def test_many_messages_on_their_way_over_tls_come_back_in_order(secure, connect):
    server = secure()
    with connect(server) as client:
        messages = [b"message %d " % number + b"x" * (number % 3000) for number in range(5000)]
        assert list(client.echo_many(messages, 1000)) == messages
    eventually(lambda: not server.stats().active)
    assert (server.stats().messages_in, server.stats().ended) == (5000, {"eof": 1})


def test_a_hundred_clients_at_a_time_are_served_over_tls(secure, connect):
    server = secure()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(100)]
        for turn in range(3):
            for number, client in enumerate(clients):
                client.send(b"%d of %d" % (turn, number))
            for number, client in enumerate(clients):
                assert client.recv() == b"%d of %d" % (turn, number)
        assert server.stats().active == 100
    eventually(lambda: not server.stats().active)
    assert server.stats().ended == {"eof": 100}


def test_exit_over_tls_is_answered_by_the_end_of_output_and_junk_after_it_loses_no_reply(secure, dial, stock):
    handler = Recorder.of(echo.EchoRequestHandler)
    server = secure(handler)
    sock = dial(server)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # the replies have to wait on the server's side
    client = stock(server, sock)
    lines = b"".join(b"line %d\n" % number for number in range(2000))

    def send():
        with contextlib.suppress(OSError):
            client.sendall(lines + b"exit\n" + b"junk\n" * 20_000)

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    eventually(lambda: server.stats().ended == {"exit": 1})  # the server's socket is closed, too
    assert read_all(client) == lines  # and the end was said, else it were an SSLEOFError
    sending.join(DEADLINE)


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


class Slow(echo.EchoRequestHandler):
    """Takes its time with each message until ``go`` is set."""

    def message_received(self, message):
        self.server.begun.set()
        assert self.server.go.wait(DEADLINE)
        super().message_received(message)


@pytest.fixture
def slow(secure):
    def start(**options):
        server = secure(Slow, **options)
        server.begun, server.go = threading.Event(), threading.Event()
        return server

    return start


def test_a_stop_answers_what_had_arrived_over_tls_and_says_the_end(slow, stock):
    server = slow(shutdown_timeout=DEADLINE)
    idle, busy = stock(server), stock(server)
    busy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else the second record waits to be sent, and is late
    lines = b"".join(b"line %d\n" % number for number in range(2000))
    busy.sendall(lines)
    assert server.begun.wait(DEADLINE)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    assert idle.recv(1) == b""
    server.go.set()
    assert read_all(busy) == lines
    idle.close()
    busy.close()
    stopping.join(DEADLINE)
    assert not stopping.is_alive()
    assert server.stats().ended == {"drain": 2}


class Farewell(echo.EchoRequestHandler):
    """Has more to say at its end than a client has room for."""

    def message_received(self, message):
        self.server.begun.set()

    def connection_lost(self, reason):
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)  # and the system has: this does not wait
        for _ in range(10):
            self.send(b"x" * 10_000)
        self.server.said.set()
        super().connection_lost(reason)


def test_a_stop_in_mid_upload_delivers_the_whole_reply(secure, stock):
    server = secure(Farewell, shutdown_timeout=DEADLINE)
    server.begun, server.said = threading.Event(), threading.Event()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    sock.settimeout(DEADLINE)
    sock.connect(server.server_address)
    client = stock(server, sock)
    client.sendall(b"up\n")
    assert server.begun.wait(DEADLINE)
    outcome = []
    stopping = threading.Thread(target=lambda: outcome.append(server.stop()))
    stopping.start()
    while not server.said.is_set():
        client.sendall(b"up\n" * 1000)
    for _ in range(20):
        client.sendall(b"up\n" * 20_000)
    assert read_all(client) == (b"x" * 10_000 + b"\n") * 10
    client.close()
    stopping.join(DEADLINE)
    assert outcome == [True]
    assert server.stats().ended == {"drain": 1}


def test_a_tls_client_that_does_not_read_is_cut_when_the_server_stops(secure, stock):
    server = secure(shutdown_timeout=0.3)
    client = stock(server)
    client.settimeout(0.3)
    with pytest.raises(OSError):
        while True:
            client.sendall(b"x" * 60_000 + b"\n")
    began = time.monotonic()
    assert server.stop() is False
    assert time.monotonic() - began < 10


class Brief(echo.EchoRequestHandler):
    timeout = 0.2
    message_timeout = 0.2
    send_timeout = 0.2
    framing = echo.LineFraming(70_000)


@pytest.mark.parametrize(
    "sent, reason",
    [(b"", "idle"), (b"half a message", "slow"), (b"x" * 70_001, "too-long")],
    ids=["idle", "slow", "long"],
)
def test_limits_end_a_session_over_tls_with_their_reasons_and_say_the_end(secure, stock, sent, reason):
    handler = Recorder.of(Brief)
    client = stock(secure(handler))
    client.sendall(b"first\n")
    assert read_exactly(client, 6) == b"first\n"
    client.sendall(sent)
    assert read_all(client) == b""
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == [reason]


def test_a_message_whose_bytes_drip_in_records_of_their_own_ends_as_slow(secure, stock):
    handler = Recorder.of(Brief)
    client = stock(secure(handler))
    with contextlib.suppress(OSError):
        while not handler.ended.wait(0.02):
            client.sendall(b"x")
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["slow"]


def test_a_tls_client_that_never_reads_ends_as_slow(secure, stock):
    handler = Recorder.of(type("Unread", (Brief,), {"timeout": None, "message_timeout": None}))
    client = stock(secure(handler))
    with contextlib.suppress(OSError):
        while not handler.ended.is_set():
            client.sendall(b"x" * 60_000 + b"\n")
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["slow"]


def test_the_end_of_a_tls_connection_inside_a_message_is_incomplete_however_it_comes(secure, stock):
    class Greets(echo.MessageRequestHandler):
        def connection_made(self):
            self.send(b"welcome")

    handler = Recorder.of(Greets)
    server = secure(handler)
    said, dropped = stock(server), stock(server)
    for client in (said, dropped):  # or the close would be a reset
        assert read_exactly(client, 8) == b"welcome\n"
    said.sendall(b"half")
    said.unwrap().close()
    assert handler.ended.wait(DEADLINE)
    dropped.sendall(b"half")
    dropped.close()  # without a word
    eventually(lambda: len(handler.reasons) == 2)
    assert handler.reasons == ["incomplete", "incomplete"]


def test_messages_that_other_threads_send_over_tls_arrive_whole(secure, connect):
    class Feed(echo.EchoRequestHandler):
        def connection_made(self):
            self.server.session_handler = self

    server = secure(Feed)
    with connect(server) as client:
        client.echo(b"hello")
        handler = server.session_handler

        def send(number):
            for turn in range(200):
                handler.send(b"%d %d " % (number, turn) + b"%d" % number * 3000)

        threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(4)]
        for thread in threads:
            thread.start()
        for number in range(200):
            client.send(b"9 %d " % number + b"9" * 3000)
        turns = {number: 0 for number in (0, 1, 2, 3, 9)}
        for _ in range(1000):
            number, turn, rest = client.recv().split()
            assert rest == number * 3000 and int(turn) == turns[int(number)]
            turns[int(number)] += 1
        assert set(turns.values()) == {200}
        for thread in threads:
            thread.join(DEADLINE)


def test_an_abort_is_a_reset_over_tls_and_no_word_is_said(secure, stock):
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


def test_a_tls_client_that_resets_is_reset_and_leaves_no_error(secure, stock, caplog):
    handler = Recorder.of(echo.EchoRequestHandler)
    client = stock(secure(handler))
    client.sendall(b"hello\n")
    assert read_exactly(client, 6) == b"hello\n"
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["reset"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# Stock handlers.


class Shout(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


def test_a_stock_handler_serves_over_tls_and_is_drained(secure, stock):
    server = secure(Shout)
    client = stock(server)
    client.sendall(b"hello\n")
    assert read_exactly(client, 6) == b"HELLO\n"
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    assert client.recv(1) == b""
    client.close()
    stopping.join(DEADLINE)
    assert server.stats().ended == {"drain": 1}


class Patient(socketserver.StreamRequestHandler):
    """Gives up on a client that does not read, and sets no deadline for what comes then."""

    def handle(self):
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)  # less than waits encrypted
        self.request.settimeout(0.1)
        with contextlib.suppress(socket.timeout):
            while True:
                self.request.sendall(b"x" * 65536)
        self.request.settimeout(None)


def test_a_session_whose_client_does_not_read_its_end_over_tls_holds_no_slot_and_no_stop(secure, stock):
    server = secure(Patient, shutdown_timeout=None)
    stock(server)
    eventually(lambda: server.stats().ended == {"exit": 1})
    assert not server.stats().active
    assert server.stop() is True


def test_urllib_reads_from_a_stock_http_handler_over_https(secure, certificates, tmp_path):
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


# Mixins that see through the socket.


def test_faults_are_done_to_messages_over_tls(secure, connect):
    class Chopped(echo.FaultMixin, echo.EchoRequestHandler):
        chunk = 7
        delay = 0.0001
        corrupt_every = 1000

    with connect(secure(Chopped)) as client:
        client.echo(b"short")
        with pytest.raises(echo.EchoMismatch):
            client.echo(b"x" * 3000)


def test_a_transcript_shows_what_was_said_and_not_what_was_encrypted(secure, connect, tmp_path):
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


# The handshake is the affair of its own thread.


def refusals(caplog):
    return [record for record in caplog.records if getattr(record, "event", "") == "refused"]


@pytest.fixture
def log(caplog):
    """The records of refusals, as they come."""
    caplog.set_level(logging.DEBUG, "echo.server")
    return lambda: refusals(caplog)


def silent(sock):
    """It says nothing."""


def begins(sock):
    sock.sendall(b"\x16\x03\x01\x02\x00\x01")


def speaks_plainly(sock):
    sock.sendall(b"hello\n")


def asks_for_http(sock):
    sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


def resets(sock):
    begins(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def leaves_in_the_middle(sock):
    begins(sock)
    sock.close()


@pytest.mark.parametrize(
    "client, why",
    [
        (silent, "the handshake was not done after 0.3 s"),
        (begins, "the handshake was not done after 0.3 s"),
        (speaks_plainly, "what came is no TLS"),
        (asks_for_http, "what came is no TLS"),
        (leaves_in_the_middle, "the peer left in mid-handshake"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_client_that_does_no_handshake_is_told_in_one_line_and_counted(secure, dial, log, client, why):
    server = secure(handshake_timeout=0.3)
    sock = dial(server)
    peer = "127.0.0.1:%d" % sock.getsockname()[1]
    client(sock)
    eventually(lambda: server.stats().refused == {"handshake": 1} and not server.stats().active)
    assert [record.getMessage() for record in log()] == [f"{peer} refused: handshake ({why})"]
    assert [(record.levelno, record.peer, record.reason) for record in log()] == [(logging.INFO, peer, "handshake")]
    assert server.stats().ended == {}


def test_a_client_that_resets_in_its_handshake_is_told_in_one_line_and_counted(secure, dial, log):
    server = secure()
    resets(dial(server))
    eventually(lambda: server.stats().refused == {"handshake": 1} and not server.stats().active)
    (record,) = log()
    # the reset may be faster than the read of what came before it
    assert record.getMessage().endswith("refused: handshake (Connection reset by peer)")


def test_a_dripping_handshake_ends_at_its_deadline(secure, dial, log):
    server = secure(handshake_timeout=0.3)
    client = dial(server)
    client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    began = time.monotonic()
    with contextlib.suppress(OSError):
        while not server.stats().refused and time.monotonic() - began < DEADLINE / 2:
            client.sendall(b"\0")
            threading.Event().wait(0.03)
    assert server.stats().refused == {"handshake": 1}
    assert "the handshake was not done after 0.3 s" in log()[0].getMessage()


def test_a_probe_that_connects_and_leaves_is_logged_for_those_who_look_closely(secure, dial, log):
    server = secure()
    dial(server).close()
    eventually(lambda: server.stats().refused == {"handshake": 1})
    assert [(record.levelno, record.reason) for record in log()] == [(logging.DEBUG, "handshake")]


def test_a_silent_client_delays_nobody_elses_handshake(secure, dial, connect):
    server = secure(handshake_timeout=None)
    quiet = [dial(server) for _ in range(20)]
    for client in quiet[::2]:
        begins(client)
    eventually(lambda: server.stats().active == 20)
    for _ in range(3):
        with connect(server) as client:
            assert client.echo(b"hello") == b"hello"


def test_a_client_may_take_its_time_before_its_handshake(secure, dial, stock):
    server = secure()
    sock = dial(server)
    eventually(lambda: server.stats().active == 1)
    client = stock(server, sock)
    client.sendall(b"hello\n")
    assert read_exactly(client, 6) == b"hello\n"


def test_the_deadline_of_the_handshake_is_none_of_the_session(secure, stock):
    class Waits(echo.EchoRequestHandler):
        def message_received(self, message):
            threading.Event().wait(0.5)  # longer than the handshake may take
            super().message_received(message)

    client = stock(secure(Waits, handshake_timeout=0.3))
    threading.Event().wait(0.5)
    client.sendall(b"hello\n")
    assert read_exactly(client, 6) == b"hello\n"


def test_a_stop_while_handshakes_are_pending_ends_at_once(secure, dial, log):
    server = secure(handshake_timeout=None, shutdown_timeout=600.0)
    clients = [dial(server) for _ in range(5)]
    begins(clients[0])
    eventually(lambda: server.stats().active == 5)
    start = time.monotonic()
    stopping = threading.Thread(target=server.stop, daemon=True)
    stopping.start()
    for client in clients:
        read_all(client)
        client.close()
    stopping.join(DEADLINE)
    assert not stopping.is_alive()
    assert time.monotonic() - start < 10
    assert server.stats().ended == {"drain": 5}
    assert log() == []


def test_the_limit_of_a_host_counts_those_in_their_handshake(secure, dial):
    server = secure(max_connections_per_host=2)
    quiet = [dial(server), dial(server)]
    eventually(lambda: server.stats().active == 2)
    assert read_all(dial(server)) == b""
    assert server.stats().refused == {"limit": 1}
    del quiet


def test_a_slot_comes_back_from_a_failed_handshake(secure, dial, connect):
    server = secure(max_connections=1)
    for _ in range(5):
        client = dial(server)
        speaks_plainly(client)
        read_all(client)
        client.close()
    with connect(server) as client:
        assert client.echo(b"hello") == b"hello"
    assert server.stats().refused == {"handshake": 5}


def test_the_context_may_be_replaced_while_it_serves(secure, connect, certificates):
    server = secure()
    with connect(server) as old:
        assert old.connection.socket.subject == "CN=localhost"
        server.ssl_context = server_context(*certificates.next_server)
        with connect(server) as new:
            assert new.connection.socket.subject == "O=Next,CN=localhost"
            assert new.echo(b"new") == b"new"
        assert old.echo(b"old") == b"old"


def test_only_clients_of_the_ca_get_in_and_the_log_has_their_name(secure, stock, certificates, caplog, log):
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


def test_a_proxys_header_comes_before_the_handshake(secure, dial, stock):
    class Tells(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(f"{self.peer} via {self.via}".encode())

    server = secure(Tells, proxy_protocol=True)
    sock = dial(server)
    sock.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n")
    client = stock(server, sock)
    client.sendall(b"who\n")
    assert client.recv(100) == b"192.0.2.7:4711 via 127.0.0.1:%d\n" % client.getsockname()[1]


def test_a_get_request_that_returns_another_socket_is_told_what_it_should_return(certificates, dial, caplog):
    class Own(echo.Server):
        def get_request(self):
            return self.socket.accept()

    context = server_context(*certificates.server)
    with Own(("127.0.0.1", 0), echo.EchoRequestHandler, ssl_context=context) as server:
        server.start()
        assert read_all(dial(server)) == b""
        eventually(lambda: server.stats().refused == {"error": 1})
    assert any(
        "get_request() has to return a TLSSocket" in (record.exc_text or str(record.exc_info))
        for record in caplog.records
    )


def test_what_is_no_context_is_refused_at_once():
    with pytest.raises(TypeError, match="ssl_context is 'cert"):
        echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, ssl_context="cert.pem")


# The client.


def test_the_host_of_the_address_is_the_name_that_is_verified(secure, certificates):
    context = client_context(certificates.authority.certificate)
    port = secure().server_address[1]
    for host in ("localhost", "127.0.0.1"):
        with echo.connect((host, port), ssl_context=context) as client:
            assert client.echo(b"hello") == b"hello"
    with pytest.raises(ssl.SSLCertVerificationError):
        echo.connect(("127.0.0.1", port), ssl_context=context, server_hostname="elsewhere.example")


def test_a_server_that_never_shakes_hands_is_a_timeout(sock_that_is_silent, certificates):
    context = client_context(certificates.authority.certificate)
    with pytest.raises(TimeoutError, match=r"the handshake was not done after 0\.2 s"):
        echo.connect(sock_that_is_silent, timeout=0.2, ssl_context=context, server_hostname="localhost")


@pytest.fixture
def sock_that_is_silent():
    """The address of a server that accepts in its backlog and does no more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()
