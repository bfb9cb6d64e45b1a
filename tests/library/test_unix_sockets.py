"""Unix sockets: who the client is, and whose path it is when a server starts, stops or has died. Rows 1, 24 and 25 of
README.md here."""

import os
import socket
import socketserver
import sys
import threading

import pytest

import echo
from support import DEADLINE
from support.servers import echoes

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")


@pytest.fixture
def unix_path(tmp_path):
    return str(tmp_path / "echo.sock")


def dial_unix(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE)
    sock.connect(path)
    return sock


def test_a_unix_socket_serves_names_its_client_and_goes_with_the_server(unix_path):
    """Rows 24 and 25: no TCP_NODELAY there, and an address '' tells nothing."""
    with echo.Server(unix_path, echo.EchoRequestHandler, max_connections_per_host=1).start() as server:
        with dial_unix(unix_path) as one, dial_unix(unix_path) as two:
            assert echoes(one) and echoes(two)
            assert all(info.peer.startswith("unix") for info in server.connections)
            if sys.platform == "linux":
                assert server.connections[0].peer == f"unix:pid={os.getpid()},uid={os.getuid()}"
    assert not os.path.exists(unix_path)


def test_a_dead_servers_path_is_taken_over(unix_path):
    """Row 1."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(unix_path)
    with echo.Server(unix_path, echo.EchoRequestHandler).start(), dial_unix(unix_path) as sock:
        assert echoes(sock)


def test_a_live_servers_path_is_refused_and_stays(unix_path):
    """Row 1."""
    with echo.Server(unix_path, echo.EchoRequestHandler).start():
        with pytest.raises(OSError, match="another server listens"):
            echo.Server(unix_path, echo.EchoRequestHandler)
        with dial_unix(unix_path) as sock:
            assert echoes(sock)


def test_a_regular_file_is_refused_and_stays(unix_path):
    """Row 1."""
    with open(unix_path, "w") as file:
        file.write("precious")
    with pytest.raises(OSError, match="no socket"):
        echo.Server(unix_path, echo.EchoRequestHandler)
    with open(unix_path) as file:
        assert file.read() == "precious"


def test_a_live_server_whose_backlog_is_full_is_refused_at_once(unix_path):
    """Row 1."""
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(unix_path)
        live.listen(0)
        waiting = []
        try:
            while True:
                sock = socket.socket(socket.AF_UNIX)
                waiting.append(sock)
                sock.setblocking(False)
                sock.connect(unix_path)
        except BlockingIOError:
            pass
        with pytest.raises(OSError, match="another server listens"):
            echo.Server(unix_path, echo.EchoRequestHandler)
        for sock in waiting:
            sock.close()


def test_the_path_is_removed_before_the_socket_is_closed(unix_path):
    """Row 1: the number of a closed socket's inode may be the next server's at once."""
    path_was_there = []

    class Watched(socket.socket):
        def close(self):
            path_was_there.append(os.path.exists(unix_path))
            super().close()

    server = echo.Server(unix_path, echo.EchoRequestHandler)
    server.socket = Watched(fileno=server.socket.detach())
    server.server_close()
    assert path_was_there == [False]


def test_a_relative_path_is_removed_wherever_the_process_has_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = echo.Server("echo.sock", echo.EchoRequestHandler, allow_reuse_port=True)
    monkeypatch.chdir("/")
    server.server_close()
    assert not list(tmp_path.iterdir())


def test_the_path_of_a_server_that_came_after_is_left_alone(unix_path):
    """Row 1."""
    first = echo.Server(unix_path, echo.EchoRequestHandler)
    os.unlink(unix_path)
    with echo.Server(unix_path, echo.EchoRequestHandler).start():
        first.server_close()
        with dial_unix(unix_path) as sock:
            assert echoes(sock)


def test_a_unix_socket_of_a_stock_server_has_no_nagle_to_switch_off(unix_path):
    """Row 24: our handlers switch it off themselves where the server is a stock one, but only for TCP."""
    with socketserver.ThreadingUnixStreamServer(unix_path, echo.EchoRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with dial_unix(unix_path) as sock:
            assert echoes(sock)
        server.shutdown()
        thread.join()
