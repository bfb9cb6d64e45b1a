"""The sockets that a server listens on and accepts: their options, their addresses, and who may share one.

Unix sockets are in ``test_unix_sockets.py``; IPv6 and sockets made elsewhere are in ``test_listening.py``.
"""

import contextlib
import errno
import queue
import socket
import socketserver
import sys
import threading

import pytest

import echo
from echo.sockets import KEEP_ALIVE
from support import DEADLINE, read_all
from support.servers import echoes


def test_accepted_sockets_have_no_nagle_and_keep_alive_and_are_blocking(serve, dial):
    """Row 23."""
    seen = {}

    class Look(socketserver.BaseRequestHandler):
        def handle(self):
            seen["nodelay"] = self.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            seen["keepalive"] = self.request.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            seen["idle"] = self.request.getsockopt(socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", 1))
            seen["timeout"] = self.request.gettimeout()
            seen["inheritable"] = self.request.get_inheritable()

    server = serve(Look)
    read_all(dial(server))
    assert seen["nodelay"] and seen["keepalive"]
    assert seen["idle"] == 60 or not hasattr(socket, "TCP_KEEPIDLE")
    assert seen["timeout"] is None
    assert not seen["inheritable"] and not server.socket.get_inheritable()  # row 39


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="no TCP_USER_TIMEOUT here")
def test_replies_that_nobody_acknowledges_are_given_up_after_two_minutes(serve, dial):
    """Row 66, on both sides. ``outside/test_networks.py`` shows that it works."""
    accepted = []

    class Look(socketserver.BaseRequestHandler):
        def handle(self):
            accepted.append(self.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))

    server = serve(Look)
    with echo.connect(server.server_address, timeout=DEADLINE) as client:
        assert client.connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000
        assert list(client) == []
    assert accepted == [120_000]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="no TCP_USER_TIMEOUT here")
@pytest.mark.parametrize(
    ("send_timeout", "expected"), [(60.0, 120_000), (120.5, 120_500), (3e9, 0), (None, 0)], ids=str
)
def test_a_peer_without_room_has_the_time_that_both_sides_give_it(send_timeout, expected, serve):
    """Linux counts that time like the time without any answer: it would end the connection after two minutes."""
    seen = []

    class Look(echo.EchoRequestHandler):
        def connection_made(self):
            seen.append(self.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))

    Look.send_timeout = send_timeout
    with echo.connect(serve(Look).server_address, timeout=send_timeout) as client:
        assert client.echo(b"x") == b"x"
        seen.append(client.connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
        assert list(client.echo_many([b"y"])) == [b"y"]  # sends without a limit: its caller may pause
        seen.append(client.connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
    assert seen == [expected, expected, 0]


@pytest.mark.slow
def test_a_peer_that_has_no_room_for_long_gets_everything(serve, dial, monkeypatch):
    """As above, in real time: Linux looks at the time at its probes, the second of which comes after half a second."""
    monkeypatch.setitem(KEEP_ALIVE, "TCP_USER_TIMEOUT", 300)
    done = threading.Event()

    class Upload(echo.MessageRequestHandler):
        send_timeout = None

        def connection_made(self):
            for _ in range(200):
                self.send(bytes(60_000))
            self.flush()
            done.set()
            self.close()

    client = dial(serve(Upload))
    assert not done.wait(3)
    assert len(read_all(client)) == 200 * 60_001


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="no TCP_USER_TIMEOUT here")
def test_a_programs_own_shorter_limit_stays(serve):
    class Hasty(echo.Server):
        def server_activate(self):
            super().server_activate()
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)

    seen = []

    class Look(echo.MessageRequestHandler):
        send_timeout = None

        def connection_made(self):
            seen.append(self.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
            self.close()

    with echo.connect(serve(Look, Hasty).server_address, timeout=DEADLINE) as client:
        assert list(client) == []
    assert seen == [30_000]


def test_urgent_data_is_a_byte_of_the_stream_like_any_other(serve, dial):
    """Row 73, in both directions."""
    client = dial(serve())
    client.sendall(b"be")
    client.send(b"f", socket.MSG_OOB)
    client.sendall(b"ore\nexit\n")
    assert read_all(client) == b"before\n"

    class Urgent(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.send(b"u", socket.MSG_OOB)
            self.request.sendall(b"rgent\n")

    with echo.connect(serve(Urgent).server_address, timeout=DEADLINE) as client:
        assert client.recv() == b"urgent"


@pytest.mark.skipif(sys.platform != "linux", reason="Unix sockets have no urgent data here")
@pytest.mark.parametrize("server_class", [echo.Server, getattr(socketserver, "ThreadingUnixStreamServer", None)])
def test_urgent_data_is_kept_on_a_unix_socket(server_class, tmp_path):
    """Row 73, in both directions."""
    path = str(tmp_path / "echo.sock")
    with server_class(path, echo.EchoRequestHandler) as server, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(b"be")
        try:
            client.send(b"f", socket.MSG_OOB)
        except OSError:
            pytest.skip("this kernel has no urgent data on Unix sockets")
        client.sendall(b"ore\nexit\n")
        server.handle_request()
        assert read_all(client) == b"before\n"

    ours, theirs = socket.socketpair()
    with echo.Client(ours, timeout=DEADLINE) as client, theirs:
        theirs.sendall(b"be")
        theirs.send(b"f", socket.MSG_OOB)
        theirs.sendall(b"ore\n")
        assert client.recv() == b"before"


@contextlib.contextmanager
def pair():
    """A client, and the socket that a program's own listener has accepted from it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname(), DEADLINE) as client:
            yield client, listener.accept()


@pytest.mark.parametrize("server_class", [echo.Server, socketserver.ThreadingTCPServer])
def test_urgent_data_is_kept_of_a_client_that_the_program_has_accepted(server_class):
    """Row 73."""
    with server_class(("127.0.0.1", 0), echo.EchoRequestHandler) as server, pair() as (client, accepted):
        server.process_request(*accepted)
        client.sendall(b"be")
        client.send(b"f", socket.MSG_OOB)
        client.sendall(b"ore\nexit\n")
        assert read_all(client) == b"before\n"


def test_urgent_data_is_kept_by_a_client_over_a_socket_of_the_program():
    """Row 73."""
    with pair() as (sock, (server, _)), echo.Client(sock, timeout=DEADLINE) as client, server:
        server.sendall(b"be")
        server.send(b"f", socket.MSG_OOB)
        server.sendall(b"ore\n")
        assert client.recv() == b"before"


def test_a_client_that_the_program_has_accepted_does_not_wait_for_acknowledgements():
    seen = queue.Queue()

    class Look(echo.EchoRequestHandler):
        def connection_made(self):
            seen.put(self.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with echo.Server(("127.0.0.1", 0), Look) as server, pair() as (_, accepted):
        server.process_request(*accepted)
        assert seen.get(timeout=DEADLINE)


def test_the_backlog_takes_a_burst(dial):
    """Row 30: not 5."""
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
    clients = [dial(server) for _ in range(100)]
    with server.start():
        assert all(echoes(client) for client in clients)


def test_the_address_can_be_had_again_at_once(serve):
    """Row 31: the server closed first, so its side is in TIME_WAIT. Another program may take the port in between, but
    not five times in a row."""

    def can_be_had_again():
        server = serve(shutdown_timeout=DEADLINE)
        with socket.create_connection(server.server_address, DEADLINE) as sock:
            assert echoes(sock)
            server.stop()
            read_all(sock)
        try:
            again = echo.Server(server.server_address, echo.EchoRequestHandler)
        except OSError as exc:
            assert exc.errno == errno.EADDRINUSE
            return False
        again.server_close()
        return True

    assert any(can_be_had_again() for _ in range(5))


def test_a_port_in_use_is_refused_unless_sharing_was_asked_for(serve):
    """Row 31."""
    server = serve()
    with pytest.raises(OSError) as caught:
        echo.Server(server.server_address, echo.EchoRequestHandler)
    assert caught.value.errno == errno.EADDRINUSE
    shared = serve(allow_reuse_port=True)
    serve_too = echo.Server(shared.server_address, echo.EchoRequestHandler, allow_reuse_port=True)
    serve_too.server_close()


def test_an_ipv6_address_makes_an_ipv6_server():
    """Row 40."""
    try:
        server = echo.Server(("::1", 0), echo.EchoRequestHandler)
    except OSError as exc:
        pytest.skip(f"no IPv6 on this machine: {exc}")
    with server.start(), socket.create_connection(server.server_address[:2], DEADLINE) as sock:
        assert echoes(sock)
        assert server.connections[0].peer.startswith("[::1]:")


class Stock(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(repr(self.request.gettimeout()).encode() + b"\n")


class Messages(echo.EchoRequestHandler):
    def connection_made(self):
        self.send(repr(self.connection.idle_timeout).encode())


class Patient(Messages):
    timeout = 2 * DEADLINE


@pytest.mark.parametrize("handler_class, seconds", [(Stock, DEADLINE), (Messages, DEADLINE), (Patient, 2 * DEADLINE)])
def test_a_default_timeout_of_the_program_is_how_long_a_client_may_be_silent(serve, dial, handler_class, seconds):
    socket.setdefaulttimeout(DEADLINE)
    try:
        assert float(dial(serve(handler_class)).makefile("rb").readline()) == seconds
    finally:
        socket.setdefaulttimeout(None)
