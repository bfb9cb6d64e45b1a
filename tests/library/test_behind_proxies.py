"""The server behind a proxy that sends a PROXY header: which address counts as the client's, and what is rejected."""

import contextlib
import http.server
import json
import logging
import os
import re
import select
import signal
import socket
import socketserver
import ssl
import threading

import pytest

import echo
from echo.cli.server.command import main
from echo.sockets import undelivered
from echo.transport.guarded import GuardedSocket
from support import DEADLINE, eventually, read_all, read_exactly, reset
from support.proxy_headers import BLOCK, INVALID, LOCAL, PROXY, block, checked, inet, tlv, unix
from support.usage_errors import error_line

CLIENT = "192.0.2.1:56324"
LINE = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
PROBE = block(LOCAL, 0)


def line_of(host, port=1000):
    """A version 1 header for a client with this address."""
    return b"PROXY TCP4 %s 198.51.100.2 %d 443\r\n" % (host.encode(), port)


class AddressRecorder(echo.EchoRequestHandler):
    """Records for each session its client address, ``peer`` and ``via``."""

    met = None  # a list, of each server's own subclass

    def connection_made(self):
        self.met.append((self.client_address, self.peer, self.via))
        super().connection_made()


class Logged(echo.LoggingMixin, echo.EchoRequestHandler):
    pass


@pytest.fixture
def proxied(serve):
    """``proxied(handler_class, **options)``: a started server that requires a header, however long that takes.

    Its sessions are over before the next test, which may read the log.
    """
    servers = []

    def start(handler_class=Logged, cls=echo.Server, **options):
        options = dict({"handshake_timeout": None, "shutdown_timeout": DEADLINE}, **options)
        servers.append(serve(handler_class, cls, proxy_protocol=True, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop(DEADLINE)


@pytest.fixture
def log(caplog):
    """The library's log, from DEBUG on."""
    caplog.set_level(logging.DEBUG, "echo")
    return caplog


def lines(log, level=logging.INFO):
    """The messages of this level and above."""
    return [record.getMessage() for record in log.records if record.levelno >= level]


def record_of(log, event):
    (record,) = [record for record in log.records if record.event == event]
    return record


def wait_for_ends(server, count=1):
    """Wait until this many connections have been accepted and have ended."""

    def are_counted():
        stats = server.stats()
        return not stats.active and sum(stats.ended.values()) + sum(stats.refused.values()) == count

    eventually(are_counted)


def wait_for_delivery(sock):
    """Wait until the server's host has everything that was sent."""
    eventually(lambda: not undelivered(sock))


def own_address(sock):
    return "%s:%d" % sock.getsockname()[:2]


def converse(sock, header, message=b"hello\n"):
    """Send both as one segment, and wait for the echo."""
    sock.sendall(header + message)
    assert read_exactly(sock, len(message)) == message


# The client's address.

NAMED = {
    "v1, IPv4": (LINE, ("192.0.2.1", 56324), CLIENT),
    "v1, IPv6": (b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n", ("2001:db8::1", 1, 0, 0), "[2001:db8::1]:1"),
    "v2, IPv4": (BLOCK, ("192.0.2.1", 56324), CLIENT),
    "v2, IPv6": (
        block(PROXY, 0x21, inet("2001:db8::1", "::1", 1, 2)),
        ("2001:db8::1", 1, 0, 0),
        "[2001:db8::1]:1",
    ),
    "v2, IPv4 mapped": (
        block(PROXY, 0x21, inet("::ffff:192.0.2.1", "::1", 1, 2)),
        ("::ffff:192.0.2.1", 1, 0, 0),
        "192.0.2.1:1",
    ),
    "v2, Unix": (block(PROXY, 0x31, unix(b"/run/app.sock", b"/b")), "/run/app.sock", "/run/app.sock"),
    "v2, Unix without a name": (block(PROXY, 0x31, unix()), "unix", "unix"),
    "v2, Unix with the name of an address": (block(PROXY, 0x31, unix(b"192.0.2.1:80")), *2 * ("./192.0.2.1:80",)),
    "v2, Unix with the name of a record": (block(PROXY, 0x31, unix(b"192.0.2.1:80 a/b")), *2 * ("./192.0.2.1:80 a/b",)),
    "v2, with TLVs and a checksum": (
        checked(PROXY, 0x11, inet(), tlv(2, b"example.com"), tlv(4, bytes(9))),
        ("192.0.2.1", 56324),
        CLIENT,
    ),
    "v2, as long as can be": (
        block(PROXY, 0x11, inet() + tlv(4, bytes(65535 - 12 - 3))),
        ("192.0.2.1", 56324),
        CLIENT,
    ),
}

UNNAMED = {
    "v1, unknown": b"PROXY UNKNOWN\r\n",
    "v1, unknown with addresses": b"PROXY UNKNOWN 192.0.2.1 198.51.100.2 1 2\r\n",
    "v2, unspecified": block(PROXY, 0),
    "v2, datagrams": block(PROXY, 0x12, inet()),
    "v2, local": PROBE,
    "v2, local with addresses": block(LOCAL, 0x11, inet()),
}


@pytest.mark.parametrize("header, address, peer", NAMED.values(), ids=NAMED)
def test_the_address_in_the_header_is_the_clients_and_the_proxys_is_via(proxied, dial, log, header, address, peer):
    class Guest(echo.LoggingMixin, AddressRecorder):
        met = []

    server = proxied(Guest)
    sock = dial(server)
    proxy = own_address(sock)
    converse(sock, header)
    assert Guest.met == [(address, peer, proxy)]
    (info,) = server.connections
    assert (info.client_address, info.peer, info.via) == (address, peer, proxy)
    record = record_of(log, "connected")
    assert (record.levelname, record.peer, record.via) == ("INFO", peer, proxy)
    assert record.getMessage() == f"{peer} connected via {proxy}"
    sock.close()
    wait_for_ends(server)
    assert record_of(log, "disconnected").peer == peer
    assert server.stats().refused == {}


@pytest.mark.parametrize("header", UNNAMED.values(), ids=UNNAMED)
def test_without_an_address_in_the_header_the_proxy_itself_is_the_client(proxied, dial, log, header):
    class Guest(echo.LoggingMixin, AddressRecorder):
        met = []

    server = proxied(Guest)
    sock = dial(server)
    proxy = own_address(sock)
    converse(sock, header)
    assert Guest.met == [(sock.getsockname(), proxy, proxy)]
    (info,) = server.connections
    assert (info.client_address, info.peer, info.via) == (sock.getsockname(), proxy, proxy)
    record = record_of(log, "connected")
    assert record.getMessage() == f"{proxy} connected"
    assert not hasattr(record, "via")


def test_without_the_proxy_protocol_there_is_no_via_and_a_header_is_a_message(serve, dial, log):
    class Guest(echo.LoggingMixin, AddressRecorder):
        met = []

    server = serve(Guest)
    sock = dial(server)
    converse(sock, b"", LINE)
    assert Guest.met == [(sock.getsockname(), own_address(sock), None)]
    assert server.connections[0].via is None
    assert not hasattr(record_of(log, "connected"), "via")


def test_until_the_header_has_arrived_the_proxy_is_the_peer(proxied, dial):
    server = proxied()
    sock = dial(server)
    (info,) = eventually(lambda: server.connections)
    assert info.peer == info.via == own_address(sock)


@pytest.mark.parametrize("header", [LINE, BLOCK])
def test_the_bytes_after_the_header_in_its_segment_are_the_first_messages(proxied, dial, header):
    server = proxied()
    messages = b"".join(b"%d\n" % number for number in range(1000))
    for piece in (header + messages, header + b"PROXY UNKNOWN\r\n", header + BLOCK + b"\n"):
        sock = dial(server)
        sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == piece[len(header) :]  # every byte, and no second header is read


def test_a_header_may_arrive_byte_by_byte(proxied, dial):
    server = proxied()
    for header in (LINE, BLOCK):
        sock = dial(server)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in header:
            sock.sendall(bytes([byte]))
        converse(sock, b"")
        assert CLIENT in [info.peer for info in server.connections]


def test_a_handler_that_was_written_for_socketserver_gets_the_real_address(proxied, dial):
    class Stock(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(repr(self.client_address).encode() + self.rfile.readline())

    sock = dial(proxied(Stock))
    sock.sendall(LINE + b" said this\n")
    assert read_all(sock) == b"('192.0.2.1', 56324) said this\n"


def test_the_log_of_http_server_shows_the_real_address(proxied, dial, capsys):
    class Files(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

    sock = dial(proxied(Files))
    sock.sendall(BLOCK + b"GET /none HTTP/1.0\r\n\r\n")
    assert read_all(sock).startswith(b"HTTP/1.0 404 ")
    assert all(line.startswith("192.0.2.1 - - ") for line in capsys.readouterr().err.splitlines())


def test_an_error_in_a_handler_is_logged_with_the_real_address(proxied, dial, log):
    class Broken(socketserver.BaseRequestHandler):
        def handle(self):
            raise LookupError("broken")

    server = proxied(Broken)
    sock = dial(server)
    sock.sendall(LINE)
    sock.close()
    wait_for_ends(server)
    record = record_of(log, "error")
    assert (record.peer, record.levelname) == (CLIENT, "ERROR")
    assert server.stats().ended == {"error": 1}


def test_a_server_on_a_unix_socket_reads_headers_too(tmp_path):
    class Guest(AddressRecorder):
        met = []

    options = {"proxy_protocol": True, "handshake_timeout": None}
    with echo.Server(str(tmp_path / "s"), Guest, **options) as server:
        server.start()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(server.server_address)
            converse(sock, LINE)
    ((address, peer, via),) = Guest.met
    assert (address, peer) == (("192.0.2.1", 56324), CLIENT)
    assert via.startswith("unix")


# Allowed and denied addresses.


@pytest.mark.parametrize(
    "access",
    [
        {"allow": ["203.0.113.0/24", "127.0.0.1"]},
        {"deny": ["192.0.2.0/24"]},
        {"allow": ["192.0.2.0/24"], "deny": ["192.0.2.1"]},
    ],
    ids=["allow", "deny", "both"],
)
def test_allow_and_deny_apply_to_the_real_address(proxied, dial, log, access):
    server = proxied(**access)
    sock = dial(server)
    proxy = own_address(sock)
    sock.sendall(LINE + b"hello\n")
    assert read_all(sock) == b""
    sock.close()
    wait_for_ends(server)
    assert lines(log) == [f"{CLIENT} refused: denied (not from this address)"]
    record = record_of(log, "refused")
    assert (record.peer, record.reason, record.via) == (CLIENT, "denied", proxy)
    assert server.stats().refused == {"denied": 1}
    assert server.stats().ended == {}


@pytest.mark.parametrize(
    "access",
    [{"allow": ["192.0.2.0/24"]}, {"deny": ["127.0.0.0/8"]}],
    ids=["not allowed itself", "denied itself"],
)
def test_allow_and_deny_apply_to_the_proxys_address_only_for_its_own_connections(proxied, dial, log, access):
    server = proxied(**access)
    converse(dial(server), LINE)
    probe = dial(server)
    probe.sendall(PROBE)
    address = own_address(probe)
    assert read_all(probe) == b""
    probe.close()
    eventually(lambda: server.stats().refused == {"denied": 1})
    assert record_of(log, "refused").peer == address


def test_proxy_allow_from_applies_to_the_proxys_address(proxied, dial, log):
    server = proxied(proxy_allow_from=["192.0.2.0/24"])
    sock = dial(server)
    with contextlib.suppress(ConnectionError):  # a socket that is closed with unread input sends a reset
        sock.sendall(LINE + b"hello\n")
        assert read_all(sock) == b""
    eventually(lambda: lines(log))  # the accept loop counts it first
    assert lines(log) == [f"{own_address(sock)} refused: proxy (not in proxy_allow_from)"]
    assert server.stats().refused == {"proxy": 1}
    ours = proxied(proxy_allow_from=["192.0.2.0/24", "127.0.0.0/8"])
    converse(dial(ours), LINE)


def test_networks_of_proxies_are_refused_where_no_header_is_read():
    """Row 59: they had no effect, and every client got in."""
    with pytest.raises(ValueError, match=r"^proxy_allow_from needs proxy_protocol"):
        echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, proxy_allow_from=["192.0.2.0/24"])
    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        with pytest.raises(ValueError, match=r"^proxy_allow_from needs proxy_protocol"):
            server.set_access([], [], ["192.0.2.0/24"])


def test_new_lists_of_clients_do_not_change_the_list_of_proxies(proxied, dial):
    server = proxied(proxy_allow_from=["203.0.113.0/24"])
    server.set_access(allow=["127.0.0.1"], deny=[])
    assert read_all(dial(server)) == b""
    server.set_access([], [], ["127.0.0.1"])
    converse(dial(server), LINE)
    with pytest.raises(ValueError, match="proxy_allow_from: invalid network 'example'"):
        server.set_access([], ["192.0.2.1"], ["example"])
    converse(dial(server), LINE)


@pytest.mark.parametrize("name", [b"/run/app.sock", b""], ids=["with a name", "without"])
def test_for_a_client_of_its_proxys_unix_socket_the_proxys_address_is_checked(proxied, dial, name):
    header = block(PROXY, 0x31, unix(name))
    converse(dial(proxied(allow=["127.0.0.1"])), header)
    server = proxied(allow=["192.0.2.0/24"])
    sock = dial(server)
    sock.sendall(header)
    assert read_all(sock) == b""
    sock.close()
    wait_for_ends(server)
    assert server.stats().refused == {"denied": 1}


def test_proxy_allow_from_knows_ipv4_proxies_of_a_dual_stack_server(dial):
    try:
        server = echo.Server(
            ("::", 0), Logged, proxy_protocol=True, proxy_allow_from=["127.0.0.1"], handshake_timeout=None
        )
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        server.start()
        converse(dial(("127.0.0.1", server.server_address[1])), LINE)
        stranger = dial(("::1", server.server_address[1]))
        with contextlib.suppress(ConnectionError):
            assert read_all(stranger) == b""
        eventually(lambda: server.stats().refused == {"proxy": 1})


def test_verify_request_sees_the_real_address(proxied, dial):
    class Picky(echo.Server):
        seen = []

        def verify_request(self, request, client_address):
            self.seen.append(client_address)
            return client_address[0] != "192.0.2.1"

    server = proxied(cls=Picky)
    sock = dial(server)
    sock.sendall(LINE)
    assert read_all(sock) == b""
    sock.close()
    converse(dial(server), line_of("192.0.2.2"))
    assert Picky.seen == [("192.0.2.1", 56324), ("192.0.2.2", 1000)]
    eventually(lambda: server.stats().refused == {"denied": 1})


def test_an_exception_out_of_verify_request_refuses_that_client_and_is_logged_with_its_address(proxied, dial, log):
    class Broken(echo.Server):
        def verify_request(self, request, client_address):
            if client_address[0] == "192.0.2.1":
                raise LookupError("broken")
            return True

    server = proxied(cls=Broken)
    sock = dial(server)
    sock.sendall(LINE)
    assert read_all(sock) == b""
    sock.close()
    wait_for_ends(server)
    assert record_of(log, "error").peer == CLIENT
    assert server.stats().refused == {"error": 1}  # as it is without a proxy
    assert server.stats().ended == {}
    converse(dial(server), line_of("192.0.2.2"))


WITHOUT_AN_ADDRESS = {name: header for name, header in UNNAMED.items()}
WITHOUT_AN_ADDRESS["v2, Unix"] = block(PROXY, 0x31, unix(b"/run/app.sock", b"/b"))
WITHOUT_AN_ADDRESS["v2, Unix without a name"] = block(PROXY, 0x31, unix())


@pytest.fixture(scope="module")
def guarded_unix_socket(tmp_path_factory):
    """A server on a Unix socket behind a proxy. It has networks."""
    path = str(tmp_path_factory.mktemp("guarded") / "s")
    options = {"proxy_protocol": True, "allow": ["192.0.2.0/24"], "handshake_timeout": None}
    with echo.Server(path, echo.EchoRequestHandler, **options) as server:
        yield server.start()


@pytest.mark.parametrize("header", WITHOUT_AN_ADDRESS.values(), ids=WITHOUT_AN_ADDRESS)
@pytest.mark.parametrize("lists", [{"allow": ["192.0.2.0/24"]}, {"deny": ["203.0.113.0/24"]}], ids=["allow", "deny"])
def test_a_client_of_which_no_address_is_known_is_in_no_network(guarded_unix_socket, header, lists):
    """Row 89: neither its proxy nor the connection, which is one over a Unix socket, has an address."""
    server = guarded_unix_socket
    server.set_access(lists.get("allow", []), lists.get("deny", []))
    for data, reply in ((header, b""), (LINE, b"hello\n")):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(server.server_address)
            sock.sendall(data + b"hello\n")
            assert read_exactly(sock, 6) == reply


# The limit for each host.


class SessionCounter(echo.EchoRequestHandler):
    """Counts the sessions that are open, ``now``, and the maximum so far, ``most``."""

    lock = threading.Lock()
    now = most = 0

    def connection_made(self):
        cls = type(self)
        with cls.lock:
            cls.now += 1
            cls.most = max(cls.most, cls.now)

    def connection_lost(self, reason):
        cls = type(self)
        with cls.lock:
            cls.now -= 1


@pytest.mark.parametrize("limit, clients", [(5, 40), pytest.param(50, 400, marks=pytest.mark.stress)])
def test_of_many_simultaneous_clients_of_a_host_only_the_limit_gets_in(proxied, dial, limit, clients):
    class Own(SessionCounter):
        lock = threading.Lock()

    server = proxied(Own, max_connections_per_host=limit)
    socks = [dial(server) for _ in range(clients)]
    together = threading.Barrier(8)

    def send(mine):
        together.wait(DEADLINE)
        for sock in mine:
            sock.sendall(LINE + b"in\n")

    threads = [threading.Thread(target=send, args=(socks[start::8],)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    answers = {sock: read_exactly(sock, 3) for sock in socks}
    assert sorted(answers.values()) == [b""] * (clients - limit) + [b"in\n"] * limit
    assert Own.most == limit
    for sock, answer in answers.items():
        if not answer:
            sock.close()
    eventually(lambda: server.stats().refused == {"limit": clients - limit})


def test_the_limit_is_for_each_real_host_and_slots_come_back(proxied, dial, log):
    server = proxied(max_connections_per_host=2)
    first, second = dial(server), dial(server)
    converse(first, line_of("192.0.2.1", 1))
    converse(second, line_of("192.0.2.1", 2))
    converse(dial(server), line_of("192.0.2.2"))  # another host through the same proxy
    converse(dial(server), b"PROXY TCP6 ::ffff:192.0.2.3 ::1 1 2\r\n")
    third = dial(server)
    third.sendall(line_of("192.0.2.1", 3))
    assert read_all(third) == b""
    third.close()
    refusal = record_of(log, "refused")
    assert refusal.getMessage() == "192.0.2.1:3 refused: limit (2 sessions from this address)"
    first.close()
    eventually(lambda: len([info for info in server.connections if info.peer.startswith("192.0.2.1:")]) < 2)
    converse(dial(server), line_of("192.0.2.1", 4))


def test_a_denied_client_cannot_stay_and_fill_the_server(proxied, dial):
    """Row 89: as long as it went on sending, it had one of the sessions, for 5 s."""
    server = proxied(deny=["192.0.2.0/24"])
    server._echo_linger_silence = 2 * DEADLINE
    stays = dial(server)
    stays.sendall(LINE + b"hello\n")
    assert read_all(stays) == b""
    eventually(lambda: server.stats().active == 0)
    assert server.stats().refused == {"denied": 1}


def test_a_refused_client_that_stays_connected_takes_no_slot(proxied, dial):
    server = proxied(max_connections_per_host=1)
    first = dial(server)
    converse(first, LINE)
    stays = dial(server)
    stays.sendall(LINE)
    assert read_all(stays) == b""
    first.sendall(b"exit\n")
    assert read_all(first) == b""
    first.close()
    eventually(lambda: server.stats().ended == {"exit": 1})
    converse(dial(server), LINE)


def test_a_refused_client_is_counted_once_while_it_stays_and_after_it_has_left(proxied, dial):
    server = proxied()
    stays = dial(server)
    stays.sendall(b"GET / HTTP")
    assert read_all(stays) == b""
    for _ in range(2):
        stats = server.stats()
        assert stats.accepted == 1 == stats.active + sum(stats.refused.values()) + sum(stats.ended.values())
        stays.close()
        wait_for_ends(server)
    assert server.stats().refused == {"proxy": 1}


def test_a_client_whose_header_has_not_arrived_takes_no_slot(proxied, dial):
    server = proxied(max_connections_per_host=1)
    for _ in range(3):
        dial(server)
    eventually(lambda: server.stats().active == 3)
    converse(dial(server), PROBE)  # the proxy's own host
    converse(dial(server), LINE)


def test_slots_come_back_after_ends_of_every_kind(proxied, dial):
    class Frail(echo.EchoRequestHandler):
        def message_received(self, message):
            if message == b"raise":
                raise LookupError("raise")
            super().message_received(message)

    server = proxied(Frail, max_connections_per_host=1)

    ends = [
        lambda sock: sock.sendall(b"exit\n"),
        lambda sock: sock.sendall(b"raise\n"),
        lambda sock: sock.shutdown(socket.SHUT_WR),
        reset,
    ]
    for count, end in enumerate(ends, 1):
        sock = dial(server)
        converse(sock, LINE)
        end(sock)
        sock.close()
        wait_for_ends(server, count)
    assert server.stats().refused == {}
    assert sum(server.stats().ended.values()) == len(ends)


# Refused input.

MALFORMED = ["HTTP", "TLS", "LF alone", "CRLF too early", "an octet of 256", "a port of 65536", "version 3"]
MALFORMED += ["an IPv4 line without end", "a line of 108 bytes", "an unassigned family"]
REFUSED = {name: INVALID[name] for name in MALFORMED}
REFUSED["a message instead"] = (b"hello\nworld\n" * 2, "not a PROXY header: hello")
REFUSED["a wrong checksum"] = (checked(PROXY, 0x11, inet(), flip=1), "a PROXY v2 checksum is")
REFUSED["a TLV past the end"] = (block(PROXY, 0x11, inet() + tlv(4, b"", 9)), "a PROXY v2 TLV runs past")
REFUSED["addresses cut short"] = (block(PROXY, 0x21, inet()), "a PROXY v2 length of 12 is too short")


@pytest.mark.parametrize("data, words", REFUSED.values(), ids=REFUSED)
def test_input_that_is_not_a_header_is_refused_with_one_line(proxied, dial, log, data, words):
    server = proxied()
    sock = dial(server)
    proxy = own_address(sock)
    sock.sendall(data)
    assert read_all(sock) == b""
    sock.close()
    wait_for_ends(server)
    (line,) = lines(log)
    assert line.startswith(f"{proxy} refused: proxy (")
    assert re.search(words.rstrip("$"), line)
    record = record_of(log, "refused")
    assert (record.peer, record.reason, record.levelname) == (proxy, "proxy", "INFO")
    assert not hasattr(record, "via")  # no header has named a client behind it
    assert server.stats().refused == {"proxy": 1}
    assert server.stats().ended == {}


@pytest.mark.parametrize("begun", [LINE[:1], LINE[:-1], BLOCK[:5], BLOCK[:15], BLOCK[:-1]])
def test_a_client_that_leaves_within_the_header_is_refused_with_one_line(proxied, dial, log, begun):
    server = proxied()
    sock = dial(server)
    sock.sendall(begun)
    sock.close()
    wait_for_ends(server)
    assert [line.partition(" ")[2] for line in lines(log)] == ["refused: proxy (left in mid-header)"]
    assert server.stats().refused == {"proxy": 1}


def test_a_client_that_resets_within_the_header_is_refused_with_one_line(proxied, dial, log):
    taken = threading.Event()

    class Watched(socket.socket):
        def recv(self, *arguments):
            data = super().recv(*arguments)
            taken.set()
            return data

    class Guarded(GuardedSocket, Watched):
        pass

    class Watching(echo.Server):
        def get_request(self):
            request, client_address = super().get_request()
            return Guarded(request), client_address

    server = proxied(cls=Watching)
    sock = dial(server)
    sock.sendall(LINE[:15])
    assert taken.wait(DEADLINE)  # a reset may discard what has not been read, and then the header has not begun
    reset(sock)
    wait_for_ends(server)
    assert [line.partition(" ")[2] for line in lines(log)] == ["refused: proxy (Connection reset by peer)"]
    assert server.stats().refused == {"proxy": 1}


@pytest.fixture
def impatient(proxied):
    """``proxied``, with a deadline that is too short for the option, which allows for a lost packet."""

    def start(*arguments, **options):
        server = proxied(*arguments, **options)
        server._echo_options.handshake_timeout = 0.05
        return server

    return start


@pytest.mark.parametrize("begun", [b"", LINE[:-1], BLOCK[:-1]], ids=["absent", "v1", "v2"])
def test_a_client_whose_header_does_not_arrive_in_time_is_refused_with_one_line(impatient, dial, log, begun):
    server = impatient()
    sock = dial(server)
    with contextlib.suppress(ConnectionError):  # if this thread is slow: the server has closed already
        sock.sendall(begun)
        assert read_all(sock) == b""
    sock.close()
    wait_for_ends(server)
    (line,) = lines(log)
    assert line.endswith(" refused: proxy (no whole header after 0.05 s)")
    assert server.stats().refused == {"proxy": 1}


def test_dripping_bytes_do_not_renew_the_headers_deadline(impatient, dial, log):
    server = impatient()
    sock = dial(server)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(ConnectionError):
        sock.sendall(block(PROXY, 0, length=65535))
        eventually(lambda: sock.send(b"x") and sock in select.select([sock], [], [], 0.005)[0])  # until it is closed
    sock.close()
    wait_for_ends(server)
    assert [line.partition(" ")[2] for line in lines(log)] == ["refused: proxy (no whole header after 0.05 s)"]


def test_the_headers_deadline_does_not_outlive_it(proxied, dial):
    class Stock(socketserver.BaseRequestHandler):
        def handle(self):
            timeouts.append(self.request.gettimeout())

    timeouts = []
    sock = dial(proxied(Stock, handshake_timeout=DEADLINE))
    for piece in (LINE[:20], LINE[20:]):
        sock.sendall(piece)
    assert read_all(sock) == b""
    assert timeouts == [None]


@pytest.mark.parametrize("seconds", [0.001, 1, 2.999])
def test_less_than_three_seconds_for_a_header_are_refused(seconds):
    with pytest.raises(ValueError, match=r"handshake_timeout is .* needs 3 s or more"):
        echo.Server(("127.0.0.1", 0), Logged, proxy_protocol=True, handshake_timeout=seconds)


@pytest.mark.parametrize("seconds", [3, 3.0, None])
def test_three_seconds_for_a_header_are_enough_and_there_may_be_no_limit(seconds):
    with echo.Server(("127.0.0.1", 0), Logged, proxy_protocol=True, handshake_timeout=seconds) as server:
        assert server.handshake_timeout == seconds


def test_others_are_served_while_headers_are_awaited(proxied, dial):
    server = proxied()
    silent = [dial(server) for _ in range(20)]
    eventually(lambda: server.stats().active == 20)
    converse(dial(server), LINE)
    for sock in silent:
        converse(sock, LINE)  # and no client was refused meanwhile
    assert server.stats().refused == {}


# Probes.


@pytest.mark.parametrize("way", ["end of input", "reset"])
def test_a_client_that_connects_and_leaves_is_logged_at_debug_only(proxied, dial, log, way):
    server = proxied()
    sock = dial(server)
    if way == "reset":
        reset(sock)
    sock.close()
    wait_for_ends(server)
    assert lines(log) == []
    (line,) = lines(log, logging.DEBUG)
    assert "refused: proxy (" in line
    assert server.stats().refused == {"proxy": 1}


@pytest.mark.parametrize("header", UNNAMED.values(), ids=UNNAMED)
@pytest.mark.parametrize("way", ["end of input", "reset"])
def test_a_proxys_own_connection_without_messages_is_logged_at_debug_only(proxied, dial, log, header, way):
    server = proxied()
    sock = dial(server)
    sock.sendall(header)
    if way == "reset":
        eventually(lambda: [record for record in log.records if record.event == "connected"])  # it has read the header
        reset(sock)
    sock.close()
    wait_for_ends(server)
    assert lines(log) == []
    assert any("connected" in line for line in lines(log, logging.DEBUG))
    assert server.stats().refused == {}


def test_a_proxys_own_connection_with_messages_is_logged_at_info(proxied, dial, log):
    server = proxied()
    sock = dial(server)
    proxy = own_address(sock)
    converse(sock, PROBE)
    sock.close()
    wait_for_ends(server)
    assert record_of(log, "connected").levelname == "DEBUG"
    end = record_of(log, "disconnected")
    assert (end.levelname, end.peer, end.bytes_in) == ("INFO", proxy, 6)


def test_a_client_that_sends_nothing_is_logged_at_info(proxied, dial, log):
    server = proxied()
    sock = dial(server)
    sock.sendall(LINE)
    sock.close()
    wait_for_ends(server)
    assert [record.event for record in log.records if record.levelno >= logging.INFO] == ["connected", "disconnected"]


# Stopping.


@pytest.mark.parametrize("begun", [b"", LINE[:-1], BLOCK[:-1]], ids=["absent", "v1", "v2"])
def test_a_stop_does_not_wait_for_headers_and_refuses_nobody(proxied, dial, log, begun):
    server = proxied(shutdown_timeout=10 * DEADLINE)  # a stop that waited for the header would not return in time
    sock = dial(server)
    sock.sendall(begun)
    wait_for_delivery(sock)
    eventually(lambda: server.stats().active == 1)
    stopped = threading.Event()
    threading.Thread(target=lambda: (server.stop(), stopped.set()), daemon=True).start()
    assert read_all(sock) == b""
    sock.close()
    assert stopped.wait(DEADLINE)
    assert {record.event for record in log.records} == {"draining", "drained", "stopped"}
    assert record_of(log, "drained").levelname == "DEBUG"
    assert server.stats().refused == {}
    assert server.stats().ended == {"drain": 1}


def test_a_stop_answers_what_had_arrived_behind_the_header(proxied, dial):
    entered, go = threading.Event(), threading.Event()

    class Slow(echo.EchoRequestHandler):
        def message_received(self, message):
            entered.set()
            assert go.wait(DEADLINE)
            super().message_received(message)

    server = proxied(Slow)
    sock = dial(server)
    sock.sendall(LINE + b"one\ntwo\nthree\n")
    wait_for_delivery(sock)
    assert entered.wait(DEADLINE)
    stopper = threading.Thread(target=server.stop, daemon=True)
    stopper.start()
    eventually(lambda: [info.state for info in server.connections] == ["draining"])
    go.set()
    assert read_all(sock) == b"one\ntwo\nthree\n"
    sock.close()
    stopper.join(DEADLINE)
    assert server.stats().ended == {"drain": 1}


# TLS behind the header.


@pytest.fixture
def server_context(certificates):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.server)
    return context


class TLSClient:
    """The client's side of TLS in memory, so that a test decides which bytes go into a segment."""

    def __init__(self, sock, certificates):
        context = ssl.create_default_context(cafile=certificates.authority.certificate)
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def hello(self):
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()

    def _until_done(self, action):
        while True:
            try:
                return action()
            except ssl.SSLWantReadError:
                self.flush()
                data = self.sock.recv(65536)
                assert data, "the server has ended"
                self.incoming.write(data)

    def flush(self):
        self.sock.sendall(self.outgoing.read())

    def converse(self, message):
        self._until_done(self.tls.do_handshake)
        self.tls.write(message)
        self.flush()
        reply = b""
        while len(reply) < len(message):
            reply += self._until_done(lambda: self.tls.read(65536))
        assert reply == message


@pytest.mark.parametrize("header", [LINE, BLOCK, block(PROXY, 0x11, inet() + tlv(4, bytes(2000)))])
def test_the_handshake_may_follow_the_header_in_one_segment(proxied, dial, log, server_context, certificates, header):
    server = proxied(ssl_context=server_context)
    sock = dial(server)
    client = TLSClient(sock, certificates)
    sock.sendall(header + client.hello())
    client.converse(b"hello\n")
    (info,) = server.connections
    assert (info.peer, info.via) == (CLIENT, own_address(sock))
    assert record_of(log, "connected").getMessage().startswith(f"{CLIENT} connected via {info.via}, TLSv1.")


def test_a_handshake_without_a_header_is_refused_as_proxy(proxied, dial, log, server_context, certificates):
    server = proxied(ssl_context=server_context)
    sock = dial(server)
    sock.sendall(TLSClient(sock, certificates).hello())
    assert read_all(sock) == b""
    sock.close()
    wait_for_ends(server)
    assert server.stats().refused == {"proxy": 1}


def test_a_header_inside_tls_is_a_message(proxied, dial, server_context, certificates):
    server = proxied(ssl_context=server_context)
    sock = dial(server)
    client = TLSClient(sock, certificates)
    sock.sendall(line_of("192.0.2.2") + client.hello())
    client.converse(LINE)
    assert server.connections[0].peer == "192.0.2.2:1000"


def test_a_denied_client_is_refused_before_its_handshake(proxied, dial, server_context, certificates):
    server = proxied(ssl_context=server_context, deny=["192.0.2.1"])
    sock = dial(server)
    sock.sendall(LINE + TLSClient(sock, certificates).hello())
    assert read_all(sock) == b""  # no ServerHello
    sock.close()
    wait_for_ends(server)
    assert server.stats().refused == {"denied": 1}


def test_a_failed_handshake_behind_a_header_is_refused_with_both_addresses(proxied, dial, log, server_context):
    server = proxied(ssl_context=server_context)
    sock = dial(server)
    sock.sendall(LINE + b"hello, this is no TLS\n")
    read_all(sock)  # the alert
    proxy = own_address(sock)
    sock.close()
    wait_for_ends(server)
    record = record_of(log, "refused")
    assert record.getMessage() == f"{CLIENT} refused: handshake (the data received is not TLS)"
    assert (record.peer, record.via, record.levelname) == (CLIENT, proxy, "INFO")
    assert server.stats().refused == {"handshake": 1}


def test_a_probe_that_leaves_before_its_handshake_is_logged_at_debug_only(proxied, dial, log, server_context):
    server = proxied(ssl_context=server_context)
    sock = dial(server)
    sock.sendall(PROBE)
    sock.close()
    wait_for_ends(server)
    assert lines(log) == []


# The command.

posix = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")


@posix
def test_the_commands_log_has_both_addresses(server_command, dial):
    server = server_command("--proxy-protocol", "--handshake-timeout", "0")
    assert "listening on 127.0.0.1:%d, behind a proxy\n" % server.address[1] in server.log
    sock = dial(server.address)
    proxy = own_address(sock)
    converse(sock, LINE)
    sock.close()
    server.read_log_until(rf"{CLIENT} disconnected: eof; 1 in, 1 out; 6 B read, 6 B written; .*\n")
    assert f"{CLIENT} connected via {proxy}\n" in server.log
    assert f"{CLIENT} received 5 bytes: hello\n" in server.log
    assert server.terminate() == 0


@posix
def test_the_commands_json_has_via(server_command, dial):
    options = ["--proxy-protocol", "--handshake-timeout", "0", "--log-format", "json", "--deny", "203.0.113.0/24"]
    server = server_command(*options)
    sock = dial(server.address)
    proxy = own_address(sock)
    converse(sock, BLOCK)
    sock.close()
    other = dial(server.address)
    other.sendall(line_of("203.0.113.9"))
    assert read_all(other) == b""
    other_proxy = own_address(other)
    other.close()
    server.read_log_until('"refused"')
    assert server.terminate() == 0
    records = {}
    for line in server.log.splitlines():
        record = json.loads(line)
        records[record["event"]] = record
    assert (records["connected"]["peer"], records["connected"]["via"]) == (CLIENT, proxy)
    refused = records["refused"]
    assert (refused["peer"], refused["via"], refused["reason"]) == ("203.0.113.9:1000", other_proxy, "denied")


def refuse_as_strangers(server, dial):
    """Connect as a proxy that ``--proxy-allow-from`` does not name, and wait for the log line."""
    sock = dial(server.address)
    with contextlib.suppress(ConnectionError):
        sock.sendall(LINE)
        assert read_all(sock) == b""
    server.read_log_until(rf"INFO    {own_address(sock)} refused: proxy \(not in proxy_allow_from\)\n")


@posix
def test_the_command_refuses_proxies_outside_the_networks_of_a_file_which_sighup_reads_again(
    server_command, dial, tmp_path
):
    path = tmp_path / "proxies"
    path.write_text("# ours\n192.0.2.0/24  # the first floor\n\n2001:db8::/32\n")
    server = server_command("--proxy-protocol", "--handshake-timeout", "0", "--proxy-allow-from", f"@{path}")
    refuse_as_strangers(server, dial)
    path.write_text("127.0.0.1\n")
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until("SIGHUP: .* read again")
    converse(dial(server.address), LINE)


@pytest.mark.slow
@posix
def test_the_command_refuses_proxies_outside_the_networks_of_the_option(server_command, dial):
    options = ["--proxy-protocol", "--handshake-timeout", "0", "--proxy-allow-from", "192.0.2.0/24"]
    refuse_as_strangers(server_command(*options), dial)
    ours = server_command(*options, "--proxy-allow-from", "127.0.0.1")
    converse(dial(ours.address), LINE)


@posix
@pytest.mark.parametrize(
    "options, words",
    [
        (["--proxy-allow-from", "127.0.0.1"], "--proxy-allow-from needs --proxy-protocol"),
        (["--proxy-protocol", "--proxy-allow-from", "127.0.0.256"], "invalid network '127.0.0.256'"),
        (["--proxy-protocol", "--proxy-allow-from", "@/nowhere/at/all"], "cannot read /nowhere/at/all"),
        (["--proxy-protocol", "--handshake-timeout", "2s"], "needs 3 s or more"),
    ],
)
def test_options_that_do_not_fit_together_end_the_command_with_code_2(capsys, options, words):
    code, line = error_line(capsys, main, "0", *options)
    assert code == 2
    assert words in line
