"""Unix sockets: the client's address, and who owns the path when a server starts, stops or has died. Rows 1, 24 and 25
of tests/README.md."""

import errno
import functools
import os
import socket
import socketserver
import sys
import threading
import time

import pytest

import echo
from echo.server import unix_paths
from echo.sockets import linger
from support import DEADLINE, eventually, read_all
from support.background import Background
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
    """Rows 24 and 25: there is no TCP_NODELAY, and the client's address is ''."""
    with echo.Server(unix_path, echo.EchoRequestHandler).start() as server:
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
    with pytest.raises(OSError, match="not a socket"):
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


def test_the_path_of_a_live_datagram_socket_is_refused_and_stays(unix_path):
    """Row 1."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as live:
        live.bind(unix_path)
        with pytest.raises(OSError, match="another server listens"):
            echo.Server(unix_path, echo.EchoRequestHandler)
        assert os.path.exists(unix_path)


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


@pytest.mark.parametrize("path", ["link/../echo.sock", b"link/../echo.sock"])
def test_a_path_over_a_link_to_a_folder_is_the_systems_and_no_other_servers(path, tmp_path, monkeypatch):
    """The name alone would lead to the other server: it is in the folder in which the link is."""
    (tmp_path / "real" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/folder")
    monkeypatch.chdir(tmp_path)
    with echo.Server("echo.sock", echo.EchoRequestHandler).start(), dial_unix("echo.sock") as other:
        with echo.Server(path, echo.EchoRequestHandler).start(), dial_unix("real/echo.sock") as sock:
            assert echoes(sock) and echoes(other)
        assert os.listdir("real") == ["folder"]
        with dial_unix("echo.sock") as sock:
            assert echoes(sock)


def test_a_path_is_removed_although_the_link_to_its_folder_leads_elsewhere_now(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "current").symlink_to("one")
    monkeypatch.chdir(tmp_path)
    with echo.Server("current/echo.sock", echo.EchoRequestHandler):
        (tmp_path / "current").unlink()
        (tmp_path / "current").symlink_to("two")
    assert not os.listdir("one")


def test_the_path_of_a_server_that_came_after_is_left_alone(unix_path):
    """Row 1."""
    first = echo.Server(unix_path, echo.EchoRequestHandler)
    os.unlink(unix_path)
    with echo.Server(unix_path, echo.EchoRequestHandler).start():
        first.server_close()
        with dial_unix(unix_path) as sock:
            assert echoes(sock)


@pytest.mark.parametrize(
    "options",
    [{"allow": ["0.0.0.0/0"]}, {"deny": ["192.0.2.0/24"]}, {"max_connections_per_host": 1}],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("made", ["here", "elsewhere"])
def test_options_that_need_addresses_are_refused_on_any_unix_socket(unix_path, options, made):
    """Row 59: it would do nothing, and let everybody in."""
    with pytest.raises(ValueError, match=f"^{next(iter(options))} needs addresses, and clients of a Unix socket"):
        make(unix_path, made, **options)
    assert os.path.exists(unix_path) == (made == "elsewhere")


@pytest.mark.parametrize("made", ["here", "elsewhere"])
def test_networks_of_proxies_are_refused_on_a_unix_socket(unix_path, made):
    """Row 59."""
    options = {"proxy_protocol": True, "allow": ["192.0.2.0/24"]}
    with pytest.raises(ValueError, match=r"^proxy_allow_from needs addresses"):
        make(unix_path, made, proxy_allow_from=["192.0.2.0/24"], **options)
    if made == "elsewhere":
        os.unlink(unix_path)
    with make(unix_path, made, **options) as server:
        with pytest.raises(ValueError, match=r"^proxy_allow_from needs addresses"):
            server.set_access([], [], ["192.0.2.0/24"])


def test_permissions_are_refused_where_there_is_no_path_of_its_own(unix_path):
    """Row 59: they would not be in force."""
    with pytest.raises(ValueError, match="unix_mode needs a path"):
        make(unix_path, "elsewhere", unix_mode=0o600)
    for address in [("127.0.0.1", 0), ("::1", 0)] + ["\0echo-test"] * sys.platform.startswith("linux"):
        with pytest.raises(ValueError, match="unix_mode needs a path"):
            echo.Server(address, echo.EchoRequestHandler, unix_mode=0o600)


def test_new_networks_are_refused_on_a_unix_socket(unix_path):
    """Row 59."""
    with echo.Server(unix_path, echo.EchoRequestHandler) as server:
        server.set_access([], [])
        for lists in (["192.0.2.1"], []), ([], ["192.0.2.1"]):
            with pytest.raises(ValueError, match="needs addresses"):
                server.set_access(*lists)


def make(path, made, **options):
    if made == "here":
        return echo.Server(path, echo.EchoRequestHandler, **options)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        listener.listen()
        return echo.Server.from_socket(listener, echo.EchoRequestHandler, **options)
    except BaseException:
        listener.close()
        raise


@pytest.mark.parametrize(
    "address, pair",
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        (b"localhost:80", ("localhost", 80)),
        ("[::1]:80", ("::1", 80)),
        ("127.0.0.1", "('127.0.0.1', PORT)"),
        ("::1", "('::1', PORT)"),
        ("fe80::1", "('fe80::1', PORT)"),
        ("::1:7000", ("::1", 7000)),
        ("[::1]", "('::1', PORT)"),
        ("8000\n", ("127.0.0.1", 8000)),
    ],
)
def test_a_string_that_is_a_tcp_address_is_refused_with_a_hint(address, pair, tmp_path, monkeypatch):
    """Row 75: it would become the file name of a Unix socket."""
    monkeypatch.chdir(tmp_path)
    for use in (lambda: echo.Server(address, echo.EchoRequestHandler), lambda: echo.connect(address)):
        with pytest.raises(ValueError) as caught:
            use()
        text = os.fsdecode(address).strip()
        expected = f"'{text}' is not an address; write {pair}, or './{text}' for a Unix socket with this name"
        assert str(caught.value) == expected
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["", b"", " "])
def test_an_empty_string_is_refused_as_an_address(address):
    """Row 76: the system would choose an abstract address for it."""
    for use in (lambda: echo.Server(address, echo.EchoRequestHandler), lambda: echo.connect(address)):
        with pytest.raises(ValueError, match="the address is empty"):
            use()


def test_a_path_that_is_an_object_is_refused_with_a_hint(tmp_path):
    path = tmp_path / "echo.sock"
    for use in (lambda: echo.Server(path, echo.EchoRequestHandler), lambda: echo.connect(path)):
        with pytest.raises(
            TypeError, match=r"the address is PosixPath\('.*'\); expected a string, like '.*echo\.sock'"
        ):
            use()


@pytest.mark.parametrize("address", [["127.0.0.1", 65432], None])
def test_what_a_file_or_a_missing_variable_gives_as_an_address_is_refused_as_such(address):
    with pytest.raises(TypeError) as caught:
        echo.connect(address)
    assert str(caught.value) == f"the address is {address!r}; expected (host, port) or the path of a Unix socket"


@pytest.mark.parametrize("name", ["./127.0.0.1:0", "echo.sock", "a:b"])
def test_other_names_are_those_of_unix_sockets(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with echo.Server(name, echo.EchoRequestHandler).start(), echo.connect(name) as client:
        assert client.echo(b"hello") == b"hello"


def test_permissions_are_never_those_of_a_file_that_a_link_at_the_path_points_to(unix_path, tmp_path, monkeypatch):
    """Row 45: a program that may write to the folder replaces the socket at once."""
    other = tmp_path / "other"
    other.touch(mode=0o600)
    inode_of = unix_paths.inode_of

    def replaced(path):
        os.unlink(path)
        os.symlink(other, path)
        return inode_of(path)

    monkeypatch.setattr(unix_paths, "inode_of", replaced)
    with pytest.raises(OSError, match="symbolic link"):
        echo.Server(unix_path, echo.EchoRequestHandler, unix_mode=0o666)
    assert os.stat(other).st_mode & 0o777 == 0o600


def test_between_the_look_at_a_path_and_listening_there_no_other_server_starts(unix_path, monkeypatch):
    """Row 45."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(unix_path)
    others = []

    def claim_and_wait(path):
        claim(path)
        if not others:
            others.append(Background(echo.Server, unix_path, echo.EchoRequestHandler))
            assert asked.wait(DEADLINE)

    def lock(descriptor, deadline):
        if threading.current_thread() is not threading.main_thread():
            asked.set()
        lock_folder(descriptor, deadline)

    asked = threading.Event()
    claim, lock_folder = unix_paths.claim_path, unix_paths._lock
    monkeypatch.setattr(unix_paths, "claim_path", claim_and_wait)
    monkeypatch.setattr(unix_paths, "_lock", lock)
    with echo.Server(unix_path, echo.EchoRequestHandler) as server:
        with pytest.raises(OSError, match="another server listens"):
            others[0].result()
        server.start()
        with dial_unix(unix_path) as sock:
            assert echoes(sock)


def test_permissions_that_a_program_sets_between_binding_and_listening_are_in_time(unix_path):
    early = []

    def restrict():
        with socket.socket(socket.AF_UNIX) as sock:
            early.append(sock.connect_ex(unix_path))
        os.chmod(unix_path, 0o600)

    class AfterBinding(echo.Server):
        def server_bind(self):
            super().server_bind()
            restrict()

    class BeforeListening(echo.Server):
        def server_activate(self):
            restrict()
            super().server_activate()

    def in_steps(path, handler_class):
        server = echo.Server(path, handler_class, False)
        server.server_bind()
        restrict()
        server.server_activate()
        return server

    for start in (AfterBinding, BeforeListening, in_steps):
        with start(unix_path, echo.EchoRequestHandler):
            assert early.pop() == errno.ECONNREFUSED
            assert os.stat(unix_path).st_mode & 0o777 == 0o600


def test_a_path_that_another_server_takes_between_binding_and_listening_is_an_error(unix_path):
    """Row 45: both would listen, and nobody would reach the first."""
    first = echo.Server(unix_path, echo.EchoRequestHandler, False)
    first.server_bind()
    with echo.Server(unix_path, echo.EchoRequestHandler).start():
        with pytest.raises(OSError, match=r"another server has taken .* before this one listened"):
            first.server_activate()
        first.server_close()
        with dial_unix(unix_path) as sock:
            assert echoes(sock)


def test_a_path_may_be_renamed_between_binding_and_listening(unix_path):
    server = echo.Server(unix_path + ".new", echo.EchoRequestHandler, False)
    server.server_bind()
    os.rename(unix_path + ".new", unix_path)
    server.server_activate()
    with server.start(), dial_unix(unix_path) as sock:
        assert echoes(sock)


def test_a_server_starts_although_another_one_that_stops_removes_its_socket_meanwhile(unix_path, monkeypatch):
    """Row 45."""
    other = echo.Server(unix_path, echo.EchoRequestHandler).start()
    lstat = os.lstat

    def look_and_stop_the_other(path):
        status = lstat(path)
        if path == unix_path:
            other.stop()
        return status

    monkeypatch.setattr(os, "lstat", look_and_stop_the_other)
    with echo.Server(unix_path, echo.EchoRequestHandler).start(), dial_unix(unix_path) as sock:
        assert echoes(sock)


def test_a_folder_that_another_program_has_locked_for_long_delays_a_start_and_does_not_stop_it(unix_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(unix_paths, "START_TIMEOUT", 0.01)
    folder = os.open(os.path.dirname(unix_path), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        echo.Server(unix_path, echo.EchoRequestHandler).server_close()
    finally:
        os.close(folder)


def test_a_unix_socket_of_a_stock_server_has_no_nagle_to_switch_off(unix_path):
    """Row 24: our handlers switch it off themselves where the server is a stock one, but only for TCP."""
    with socketserver.ThreadingUnixStreamServer(unix_path, echo.EchoRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with dial_unix(unix_path) as sock:
            assert echoes(sock)
        server.shutdown()
        thread.join()


class Waits(echo.EchoRequestHandler):
    """Echoes when ``release`` is set."""

    release = threading.Event()

    def message_received(self, message):
        assert self.release.wait(DEADLINE)
        super().message_received(message)


def test_a_client_that_sends_to_a_server_which_drains_gets_the_replies_to_what_had_arrived(unix_path):
    """Row 83: the client ended its input, too, when sending failed."""
    Waits.release.clear()
    server = echo.Server(unix_path, Waits, shutdown_timeout=None).start()
    with echo.connect(unix_path, timeout=DEADLINE) as client:
        for number in range(5):
            client.send(b"%d" % number)
        eventually(lambda: server.connections)  # a Unix socket has what was sent at once
        stop = Background(server.stop)
        eventually(lambda: server.connections[0].state == "draining")
        with pytest.raises(echo.ConnectionClosed):
            client.send(b"late")
        Waits.release.set()
        assert [client.recv() for _ in range(5)] == [b"%d" % number for number in range(5)]
    assert stop.result() is True


def test_a_stop_does_not_wait_for_a_client_that_does_not_read_a_reply_which_it_has(unix_path):
    """Row 83: over TCP the peer's system has the reply, and that is enough."""
    server = echo.Server(unix_path, echo.EchoRequestHandler, shutdown_timeout=None).start()
    with echo.connect(unix_path, timeout=DEADLINE) as client:
        client.send(b"hello")
        eventually(lambda: server.stats().messages_out == 1)
        stop = Background(server.stop)
        eventually(lambda: not server.connections)
        assert client.recv() == b"hello"
    assert stop.result() is True


class Ends(echo.EchoRequestHandler):
    """Says when it has ended its session, before a stock server closes the socket."""

    send_timeout = 2 * DEADLINE
    ended = threading.Event()

    def finish(self):
        super().finish()
        self.ended.set()


def test_a_session_that_exit_has_ended_does_not_wait_for_its_client_to_read(unix_path):
    """Row 83: the client can read after the close what it has not read before."""
    with echo.Server(unix_path, Ends).start() as server, dial_unix(unix_path) as sock:
        sock.sendall(b"hello\nexit\n")
        eventually(lambda: server.stats().ended)
        assert read_all(sock) == b"hello\n"


def test_nor_does_it_on_a_stock_server(unix_path):
    Ends.ended.clear()
    with socketserver.UnixStreamServer(unix_path, Ends) as server, dial_unix(unix_path) as sock:
        serving = Background(server.handle_request)
        sock.sendall(b"hello\nexit\n")
        assert Ends.ended.wait(DEADLINE)
        serving.result()
        assert read_all(sock) == b"hello\n"


def test_closing_waits_for_a_server_that_has_not_read_every_message(unix_path, monkeypatch):
    """Row 83: a server that answers a client which is gone gets an error, and would drop what it has not read."""
    monkeypatch.setattr("echo.client.client.linger", functools.partial(linger, silence=0.01, timeout=0))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(unix_path)
        listener.listen()
        client = echo.connect(unix_path, timeout=DEADLINE)
        client.send(b"hello")
        sock, _address = listener.accept()
        with sock:
            closing = Background(client.close)
            time.sleep(0.2)  # many times the silence
            sock.sendall(b"late\n")
            assert read_all(sock) == b"hello\n"
        closing.result()
