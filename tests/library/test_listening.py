"""Where the server listens: IPv6 and both families at once, Unix sockets, a listening socket made elsewhere."""

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import struct
import subprocess
import sys
import tempfile
import threading

import pytest

import echo
from echo.client import __main__ as client_command
from echo.server import options, workers
from support import DEADLINE, eventually, read_all, read_exactly


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")
needs_unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
needs_fork = pytest.mark.skipif(not workers.SUPPORTED, reason="this system cannot fork")
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as Linux does it")
on_posix = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")


def echoes(sock, line=b"hello\n"):
    sock.sendall(line)
    return read_exactly(sock, len(line)) == line


def link_local_addresses():
    """Addresses of this machine that are none without their zone."""
    with contextlib.suppress(OSError), open("/proc/net/if_inet6", encoding="ascii") as file:
        for line in file:
            digits, _, _, scope, _, interface = line.split()
            if scope == "20":
                address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
                with socket.socket(socket.AF_INET6) as sock:
                    with contextlib.suppress(OSError):  # not ready yet, or its interface is down
                        sock.bind((address, 0, 0, socket.if_nametoindex(interface)))
                        yield f"{address}%{interface}"


# IPv6, and both at once.


@pytest.fixture
def dual(serve):
    """``dual(**options)``: a started server on ``::``; its port on both loopbacks as ``v4`` and ``v6``."""

    class Dual(echo.Server):
        def __init__(self, address, handler_class, **options):
            super().__init__(("::", 0), handler_class, **options)
            port = self.server_address[1]
            self.v4, self.v6 = ("127.0.0.1", port), ("::1", port)

    return lambda **options: serve(cls=Dual, **options)


@needs_ipv6
def test_two_colons_serve_both_families_and_name_an_ipv4_client_as_one(dual, dial):
    """Row 40."""
    server = dual()
    four, six = dial(server.v4), dial(server.v6)
    assert echoes(four) and echoes(six)
    peers = {info.peer for info in server.connections}
    assert peers == {"127.0.0.1:%d" % four.getsockname()[1], "[::1]:%d" % six.getsockname()[1]}


@needs_ipv6
def test_an_ipv4_client_of_a_dual_stack_server_is_limited_as_one(dual, dial):
    server = dual(max_connections_per_host=1)
    four, six = dial(server.v4), dial(server.v6)
    assert echoes(four) and echoes(six)
    assert read_all(dial(server.v4)) == b""
    assert read_all(dial(server.v6)) == b""
    assert server.stats().refused == {"limit": 2}
    assert echoes(four) and echoes(six)


@needs_ipv6
@pytest.mark.parametrize(
    "options, v4_may, v6_may",
    [
        ({"deny": ["127.0.0.0/8"]}, False, True),
        ({"deny": ["::1"]}, True, False),
        ({"allow": ["127.0.0.1"]}, True, False),
        ({"allow": ["::1/128"]}, False, True),
        ({"deny": ["0.0.0.0/0"]}, False, True),
        ({"allow": ["127.0.0.0/8", "::1"]}, True, True),
    ],
)
def test_an_ipv4_client_of_a_dual_stack_server_is_allowed_and_denied_as_one(dual, dial, options, v4_may, v6_may):
    server = dual(**options)
    for address, may in ((server.v4, v4_may), (server.v6, v6_may)):
        sock = dial(address)
        assert echoes(sock) if may else read_all(sock) == b""


@needs_ipv6
def test_the_dual_stack_can_be_switched_off(dial):
    with contextlib.ExitStack() as stack:

        def beside_a_socket_that_does_not_listen():
            other = stack.enter_context(socket.socket())
            other.bind(("127.0.0.1", 0))
            try:
                return echo.Server(("::", other.getsockname()[1]), echo.EchoRequestHandler, dual_stack=False)
            except OSError:
                return None  # somebody has this port on IPv6

        server = stack.enter_context(eventually(beside_a_socket_that_does_not_listen)).start()
        port = server.server_address[1]
        assert echoes(dial(("::1", port)))
        with pytest.raises(ConnectionRefusedError):
            dial(("127.0.0.1", port))


@needs_ipv6
@on_posix
def test_the_command_serves_and_logs_both_families(server_command, dial):
    server = server_command("-b", "::")
    assert "listening on [::]:" in server.log
    port = server.address[1]
    for host, shown in (("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")):
        sock = dial((host, port))
        assert echoes(sock)
        server.read_log_until(r"%s:%d connected" % (shown.replace("[", r"\["), sock.getsockname()[1]))
    assert "::ffff:" not in server.log
    assert server.terminate() == 0


@needs_ipv6
@on_posix
def test_the_command_serves_on_an_ipv6_address(server_command, dial):
    server = server_command("-b", "::1")
    assert "listening on [::1]:" in server.log
    assert echoes(dial(("::1", server.address[1])))
    assert server.terminate() == 0


@needs_ipv6
def test_a_client_connects_to_the_address_that_an_ipv6_server_has():
    with echo.Server(("::1", 0), echo.EchoRequestHandler).start() as server:
        assert len(server.server_address) == 4
        with echo.connect(server.server_address) as client:
            assert client.echo(b"hello") == b"hello"


@needs_ipv6
def test_a_link_local_address_is_served_in_its_zone():
    address = next(link_local_addresses(), None)
    if address is None:
        pytest.skip("no interface with a link-local address")
    with echo.Server((address, 0), echo.EchoRequestHandler, allow=["fe80::/10"]).start() as server:
        with echo.connect((address, server.server_address[1])) as client:
            assert client.echo(b"hello") == b"hello"
        with echo.connect(server.server_address) as client:
            assert client.echo(b"hello") == b"hello"


@needs_ipv6
@on_posix
def test_an_unknown_zone_gets_one_line_and_code_1(run):
    server = run("echo.server", "0", "-b", "fe80::1%nowhere")
    assert server.finish()[0] == 1
    assert server.log.count("\n") == 1 and "cannot listen on [fe80::1%nowhere]:0" in server.log


# Unix sockets.


def dial_unix(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE)
    sock.connect(path)
    return sock


@pytest.fixture
def path(tmp_path):
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("no Unix sockets here")
    return str(tmp_path / "s")


@pytest.fixture
def unix_command(run, path):
    """``unix_command(*options)``: a ``python -m echo.server`` that listens on ``path``, or on what ``at`` says."""

    def start(*options, at=path, **popen_options):
        process = run("echo.server", "--unix", at, *options, **popen_options)
        process.read_log_until("listening on ")
        return process

    return start


@on_posix
def test_the_command_serves_on_a_unix_socket_and_removes_its_path(unix_command, path):
    server = unix_command()
    assert f"listening on {path}\n" in server.log
    with dial_unix(path) as sock:
        assert echoes(sock)
        peer = f"unix:pid={os.getpid()},uid={os.getuid()}" if sys.platform == "linux" else "unix"
        server.read_log_until(f"{peer} received 5 bytes: hello")
    assert server.terminate() == 0
    assert not os.path.exists(path)


@pytest.mark.parametrize("parser", [options.parser, client_command._parser], ids=["server", "client"])
def test_a_system_without_unix_sockets_is_told_in_one_line_with_code_2(parser, monkeypatch, capsys):
    monkeypatch.delattr(socket, "AF_UNIX", raising=False)
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["--unix", "s"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--unix: this system has no Unix sockets" in line


@pytest.mark.parametrize("address", ["s", b"s"], ids=["text", "bytes"])
def test_a_path_is_no_address_where_there_are_no_unix_sockets(address, monkeypatch):
    monkeypatch.delattr(socket, "AF_UNIX", raising=False)
    with pytest.raises(ValueError, match="this system has no Unix sockets"):
        echo.Server(address, echo.EchoRequestHandler)


@on_posix
@pytest.mark.parametrize("mode", ["600", "660", "666", "0777"])
def test_a_unix_socket_has_the_mode_that_was_asked_for(unix_command, path, mode):
    unix_command("--unix-mode", mode, preexec_fn=lambda: os.umask(0o077))
    assert stat.S_IMODE(os.stat(path).st_mode) == int(mode, 8)


@on_posix
def test_a_unix_socket_has_the_mode_that_the_umask_leaves(unix_command, path):
    unix_command(preexec_fn=lambda: os.umask(0o027))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o750


@needs_unix
def test_a_unix_socket_has_its_mode_before_anybody_can_connect(path, monkeypatch):
    refused = []

    def chmod(name, mode):
        with socket.socket(socket.AF_UNIX) as sock:
            refused.append(sock.connect_ex(path) != 0)
        real(name, mode)

    real = os.chmod
    monkeypatch.setattr(os, "chmod", chmod)
    with echo.Server(path, echo.EchoRequestHandler, unix_mode=0o600):
        assert refused == [True]
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


@on_posix
@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--unix-mode", "660"], "--unix-mode is for --unix"),
        (["--unix", "s", "--unix-mode", "rw"], "'rw' are no permissions"),
        (["--unix", "s", "--unix-mode", "668"], "'668' are no permissions"),
        (["--unix", "s", "--unix-mode", "66"], "'66' are no permissions"),
        (["--unix", "@s", "--unix-mode", "660"], "--unix-mode is for --unix with a path"),
        (["--unix", "s", "--allow", "192.0.2.0/24"], "clients of a --unix socket have none"),
        (["--unix", "s", "--deny", "192.0.2.0/24"], "clients of a --unix socket have none"),
        (["--unix", "s", "--max-per-host", "1"], "clients of a --unix socket have none"),
        (["--unix", "s", "7000"], "--unix is in place of the port and --bind"),
        (["--unix", "s", "-b", "0.0.0.0"], "--unix is in place of the port and --bind"),
        (["--unix", ""], "'' is no path"),
    ],
)
def test_what_makes_no_sense_for_a_unix_socket_gets_one_line_and_code_2(run, tmp_path, arguments, words):
    server = run("echo.server", *arguments, cwd=str(tmp_path))
    assert server.finish() == (2, b"")
    assert server.log.count("\n") == 1 and words in server.log
    assert not list(tmp_path.iterdir())


@on_posix
@pytest.mark.parametrize("where", [["192.0.2.1"], ["127.0.0.1", "7000"]])
def test_a_client_is_told_of_one_place_to_connect_to(run, path, where):
    client = run("echo.client", "--unix", path, *where, "-m", "hello")
    assert client.finish() == (2, b"")
    assert client.log == "echo.client: --unix is in place of host and port; give one of them\n"


@on_posix
def test_behind_a_proxy_a_unix_socket_has_clients_with_addresses(run, path):
    server = run("echo.server", "--unix", path, "--proxy-protocol", "--allow", "192.0.2.0/24")
    server.read_log_until("listening on")
    with dial_unix(path) as sock:
        sock.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 1000 80\r\n")
        assert echoes(sock)
    with dial_unix(path) as sock:
        sock.sendall(b"PROXY TCP4 198.51.100.7 192.0.2.1 1000 80\r\n")
        assert sock.recv(1) == b""
    server.read_log_until(r"198\.51\.100\.7:1000 refused: denied")
    assert server.terminate() == 0


@on_posix
def test_a_killed_servers_path_is_taken_over(unix_command, path):
    """Row 1."""
    first = unix_command()
    assert first.terminate(signal.SIGKILL) == -signal.SIGKILL
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    second = unix_command()
    with dial_unix(path) as sock:
        assert echoes(sock)
    assert second.terminate() == 0


@pytest.fixture
def deep(tmp_path, monkeypatch):
    """A current folder whose own path is longer than the address of a Unix socket may be."""
    folder = tmp_path / ("x" * 60) / ("y" * 60)
    folder.mkdir(parents=True)
    monkeypatch.chdir(str(folder))
    return folder


@needs_unix
def test_a_dead_servers_relative_path_is_taken_over_in_a_deep_folder(deep):
    """Row 1."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind("s")
    with echo.Server("s", echo.EchoRequestHandler).start(), dial_unix("s") as sock:
        assert echoes(sock)
    assert not list(deep.iterdir())


@needs_unix
def test_a_live_servers_relative_path_is_refused_in_a_deep_folder(deep):
    """Row 1."""
    with echo.Server("s", echo.EchoRequestHandler).start():
        with pytest.raises(OSError, match="another server listens on s"):
            echo.Server("s", echo.EchoRequestHandler)
        with dial_unix("s") as sock:
            assert echoes(sock)


def refused(run, path, *words):
    """The command cannot listen there, and says so in one line, with code 1."""
    server = run("echo.server", "--unix", path)
    assert server.finish() == (1, b"")
    assert server.log.count("\n") == 1
    for word in (f"cannot listen on {path}: ", *words):
        assert word in server.log


@on_posix
def test_the_path_of_a_server_that_lives_is_refused_and_goes_on_serving(run, unix_command, path):
    """Row 1."""
    unix_command()
    before = os.stat(path)
    refused(run, path, "another server listens on")
    assert os.path.samestat(before, os.stat(path))
    with dial_unix(path) as sock:
        assert echoes(sock)


@on_posix
def test_a_file_that_is_no_socket_is_refused_and_left_alone(run, path):
    """Row 1."""
    with open(path, "w") as file:
        file.write("precious")
    refused(run, path, "is no socket; it is left alone")
    with open(path) as file:
        assert file.read() == "precious"


@on_posix
def test_a_link_to_a_socket_is_refused_and_left_alone(run, path):
    """Row 1: what a link points to is not ours to judge, and whoever bound it meant another name."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    os.symlink(path, path + "2")
    refused(run, path + "2", "is no socket")
    assert os.path.islink(path + "2") and os.path.exists(path)


@on_posix
def test_a_datagram_socket_of_somebody_is_refused_and_left_alone(run, path):
    """Row 1."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)
        refused(run, path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"still here", path)
        assert other.recv(100) == b"still here"


@needs_fork
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_the_path_stays_when_a_worker_ends_and_goes_with_the_last(unix_command, path, signum):
    server = unix_command("--workers", "2")
    inode = os.stat(path).st_ino
    victim = int(server.read_log_until(r"worker 0 is process (\d+)").group(1))
    server.read_log_until(r"worker 1 is process")
    eventually(lambda: ready(victim))
    os.kill(victim, signum)
    server.read_log_until(r"worker 0: process %d (was killed by SIGKILL|ended with exit code 0)" % victim)
    assert os.stat(path).st_ino == inode
    server.read_log_until(r"(?s)ended|killed.*worker 0 is process")
    for _ in range(10):
        with dial_unix(path) as sock:
            assert echoes(sock)
    assert server.terminate() == 0
    assert not os.path.exists(path)


DYING = """
import sys
from echo.server import __main__ as command, workers

command._serve = lambda *_: 1
workers.Workers.min_pause = 0.001

if __name__ == "__main__":
    sys.exit(command.main())
"""


@needs_fork
def test_the_path_goes_when_no_worker_can_live(run, path, tmp_path):
    (tmp_path / "dying.py").write_text(DYING)
    server = run("dying", "--unix", path, "--workers", "2", cwd=str(tmp_path))
    assert server.finish()[0] == 1
    assert "no worker can live, giving up" in server.log
    assert not os.path.exists(path)


def ready(pid):
    """Whether a worker waits to be told to stop. (Before that, its signals are blocked, and it stops at once after.)"""
    if not os.path.isdir("/proc/self"):
        return True
    with open(f"/proc/{pid}/status") as file:
        blocked = next(line for line in file if line.startswith("SigBlk:"))
    return not int(blocked.split()[1], 16) & 1 << (signal.SIGTERM - 1)


@on_linux
@pytest.mark.parametrize("count", ["1", "2"])
def test_an_abstract_name_is_served_and_leaves_no_file(run, unix_command, tmp_path, count):
    name = f"echo-test-{os.getpid()}-{count}"
    server = unix_command("--workers", count, at="@" + name, cwd=str(tmp_path))
    assert f"listening on @{name}\n" in server.log
    with dial_unix("\0" + name) as sock:
        assert echoes(sock)
    with echo.connect("\0" + name) as client:
        assert client.echo(b"hello") == b"hello"
    assert run("echo.client", "--unix", "@" + name, "-m", "hello").finish() == (0, b"hello\n")
    refused(run, "@" + name, "Address already in use")
    assert server.terminate() == 0
    assert not list(tmp_path.iterdir())
    unix_command(at="@" + name)  # free at once


@on_posix
@pytest.mark.parametrize("length", [108, 300, 5000])
def test_a_path_that_is_too_long_gets_one_line_and_code_1(run, path, length):
    refused(run, path + "x" * (length - len(os.fsencode(path))), "of 107 bytes at most")


@on_posix
def test_a_folder_that_is_missing_gets_one_line_and_code_1(run, path):
    refused(run, path + "/at/all", "No such file or directory")


@on_posix
def test_a_folder_that_is_a_file_gets_one_line_and_code_1(run, path):
    with open(path, "w"):
        pass
    refused(run, path + "/s", "Not a directory")


AS_NOBODY = """\
import os, sys
from echo.server.__main__ import main, parser
parser().parse_args([])
if os.getuid() == 0:  # who may write everywhere
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(main(sys.argv[3:]))
"""
"""``python -c AS_NOBODY -m echo.server ...``; all that it imports, argparse's own needs too, is read before."""


@on_posix
def test_a_folder_that_may_not_be_written_to_gets_one_line_and_code_1(run):
    folder = tempfile.mkdtemp(prefix="echo")  # not in tmp_path, which is closed to others altogether
    try:
        os.chmod(folder, 0o555)
        server = run("echo.server", "--unix", folder + "/s", python_options=("-c", AS_NOBODY))
        assert server.finish() == (1, b"")
        assert server.log.count("\n") == 1
        assert "Permission denied; give another path" in server.log and "folder that you may write to" in server.log
    finally:
        os.rmdir(folder)


@on_posix
def test_the_client_does_over_a_unix_socket_what_it_does_over_tcp(run, unix_command, path):
    server = unix_command("--no-log-messages")
    with echo.connect(path) as one, echo.connect(os.fsencode(path)) as two:
        assert one.echo(b"hello") == two.echo(b"hello") == b"hello"
    assert run("echo.client", "--unix", path, "-m", "hello", "-m", "again").finish() == (0, b"hello\nagain\n")
    assert run("echo.client", "--unix", path).finish(b"one\ntwo\n") == (0, b"one\ntwo\n")
    ping = run("echo.client", "--unix", path, "--ping", "-c", "2", "-i", "0", "-J")
    code, out = ping.finish()
    assert code == 0, ping.log
    assert json.loads(out.splitlines()[-1])["received"] == 2
    bench = run("echo.client", "--unix", path, "--bench", "-d", "200ms", "-P", "2", "-J")
    code, out = bench.finish()
    assert code == 0, bench.log
    assert json.loads(out.splitlines()[-1])["messages"] > 0
    assert server.terminate() == 0


@on_posix
def test_the_client_says_where_nobody_listens(run, path):
    client = run("echo.client", "--unix", path, "-m", "hello")
    assert client.finish() == (1, b"")
    assert path in client.log and client.log.count("\n") == 1


# A listening socket made elsewhere.


def tcp_listener(backlog=16):
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(backlog)
    return sock


def listener_of(family, path):
    sock = socket.socket(family)
    sock.bind({"AF_INET": ("127.0.0.1", 0), "AF_INET6": ("::1", 0), "AF_UNIX": path}[family.name])
    sock.listen(16)
    return sock


FAMILIES = [
    socket.AF_INET,
    pytest.param(socket.AF_INET6, marks=needs_ipv6),
    pytest.param(getattr(socket, "AF_UNIX", None), marks=needs_unix),
]


def dial_listener(sock):
    client = socket.socket(sock.family)
    client.settimeout(DEADLINE)
    client.connect(sock.getsockname())
    return client


@pytest.mark.parametrize("family", FAMILIES, ids=["IPv4", "IPv6", "Unix"])
def test_a_listening_socket_made_elsewhere_is_served_and_closed_at_the_end(family, path):
    """Row 40."""
    listener = listener_of(family, path)
    address = listener.getsockname()
    with echo.Server.from_socket(listener, echo.EchoRequestHandler).start() as server:
        assert server.server_address == address
        assert server.address_family == family
        assert server.socket is listener
        with dial_listener(listener) as client:
            assert echoes(client)
    assert listener.fileno() == -1


@needs_unix
def test_the_path_of_a_socket_made_elsewhere_is_left_to_its_maker(path):
    listener = listener_of(socket.AF_UNIX, path)
    inode = os.stat(path).st_ino
    with listener.dup() as kept:
        with echo.Server.from_socket(listener, echo.EchoRequestHandler).start():
            pass
        assert os.stat(path).st_ino == inode
        with echo.Server.from_socket(kept, echo.EchoRequestHandler).start(), dial_unix(path) as client:
            assert echoes(client)
    assert os.stat(path).st_ino == inode


def test_who_waits_in_the_backlog_when_a_server_ends_is_the_next_ones():
    with tcp_listener() as listener:
        with echo.Server.from_socket(listener.dup(), echo.EchoRequestHandler).start() as first:
            with dial_listener(listener) as client:
                assert echoes(client)
        assert first.socket.fileno() == -1
        with dial_listener(listener) as client:
            client.sendall(b"early\n")
            with echo.Server.from_socket(listener.dup(), echo.EchoRequestHandler).start():
                assert read_exactly(client, 6) == b"early\n"


def test_a_proxys_header_is_read_on_a_socket_made_elsewhere():
    listener = tcp_listener()
    server = echo.Server.from_socket(
        listener, echo.EchoRequestHandler, proxy_protocol=True, proxy_allow_from=["127.0.0.1"], deny=["192.0.2.9"]
    )
    with server.start(), dial_listener(listener) as client, dial_listener(listener) as denied:
        client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 65432\r\n")
        assert echoes(client)
        assert [info.peer for info in server.connections if info.messages_in] == ["192.0.2.7:4711"]
        denied.sendall(b"PROXY TCP4 192.0.2.9 192.0.2.1 4711 65432\r\n")
        assert read_all(denied) == b""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Two files, a certificate for localhost and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-out", cert, "-keyout", key]
    subprocess.run(command, check=True, timeout=DEADLINE * 3, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return cert, key


@pytest.mark.parametrize("family", FAMILIES, ids=["IPv4", "IPv6", "Unix"])
def test_tls_is_spoken_on_a_socket_made_elsewhere(family, path, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    listener = listener_of(family, path)
    with echo.Server.from_socket(listener, echo.EchoRequestHandler, ssl_context=context).start() as server:
        trusting = ssl.create_default_context(cafile=certificate[0])
        with echo.connect(server.server_address, ssl_context=trusting, server_hostname="localhost") as client:
            assert client.echo(b"hello") == b"hello"


def unbound():
    return socket.socket()


def bound():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def datagram():
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def closed():
    sock = tcp_listener()
    sock.close()
    return sock


@pytest.mark.parametrize(
    "make, words",
    [
        (unbound, "does not listen; bind it"),
        (bound, "does not listen; bind it"),
        (datagram, "no stream socket"),
        (closed, "cannot be served"),
    ],
)
def test_a_socket_that_cannot_be_served_is_refused_in_one_line_and_not_closed(make, words):
    with make() as sock:
        before = sock.fileno()
        with pytest.raises(ValueError, match=words) as caught:
            echo.Server.from_socket(sock, echo.EchoRequestHandler)
        assert "\n" not in str(caught.value)
        assert sock.fileno() == before


def test_a_connection_is_no_socket_to_serve_on():
    ends = socket.socketpair()
    with ends[0], ends[1], pytest.raises(ValueError, match="does not listen"):
        echo.Server.from_socket(ends[0], echo.EchoRequestHandler)


def test_a_senseless_option_leaves_the_socket_as_it_was():
    with tcp_listener() as listener:
        with pytest.raises(TypeError, match="no option 'colour'"):
            echo.Server.from_socket(listener, echo.EchoRequestHandler, colour="red")
        assert listener.gettimeout() is None
        with echo.Server.from_socket(listener, echo.EchoRequestHandler).start(), dial_listener(listener) as client:
            assert echoes(client)


def is_blocking(sock):
    return os.get_blocking(sock.fileno())


def in_time(function):
    """Call it; a call that blocks is an error."""
    done = []
    thread = threading.Thread(target=lambda: done.append(function()), daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert done, "it blocks"
    return done[0]


@on_posix
@pytest.mark.parametrize("first_to_stop", [0, 1])
def test_of_two_servers_over_one_socket_either_may_stop_and_the_other_never_blocks(first_to_stop):
    """The mode is one for all who share the socket: a server that puts back what it found makes the other one's accept
    block, which no stop ends."""
    with tcp_listener() as listener:
        pair = [echo.Server.from_socket(listener.dup(), echo.EchoRequestHandler).start() for _ in range(2)]
        stays = pair.pop(1 - first_to_stop)
        for _ in range(20):
            with dial_listener(listener) as client:
                assert echoes(client)
        with dial_listener(listener) as staying:
            assert echoes(staying)
            assert in_time(pair[0].stop)
            assert not is_blocking(listener)
        for _ in range(20):
            with dial_listener(listener) as client:
                assert echoes(client)
        eventually(lambda: not stays.connections)
        assert in_time(stays.stop)
        assert not is_blocking(listener)


@on_posix
def test_a_server_that_is_shut_down_and_serves_again_leaves_the_mode_to_the_others():
    with tcp_listener() as listener:
        with echo.Server.from_socket(listener.dup(), echo.EchoRequestHandler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            with dial_listener(listener) as client:
                assert echoes(client)
            in_time(lambda: (server.shutdown(),))
            thread.join(DEADLINE)
            assert not is_blocking(listener)


@on_linux
def test_of_two_processes_over_one_socket_either_may_stop_and_the_other_never_blocks(serve_over):
    with tcp_listener() as listener:
        one, two = serve_over(listener), serve_over(listener)
        for server, left in ((one, True), (two, False)):
            for _ in range(20):
                with dial_listener(listener) as client:
                    assert echoes(client)
            assert server.terminate() == 0
            assert not is_blocking(listener)
            assert "stopped:" in server.log and "Traceback" not in server.log
            if left:
                with dial_listener(listener) as client:
                    assert echoes(client)


def test_handle_request_waits_for_a_client_on_a_socket_made_elsewhere():
    class Impatient(echo.Server):
        def handle_timeout(self):
            raise AssertionError("it did not wait")

    listener = tcp_listener()
    with Impatient.from_socket(listener, echo.EchoRequestHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        with dial_listener(listener) as client:
            assert echoes(client)
            thread.join(DEADLINE)
            assert not thread.is_alive()


def test_handle_request_gives_up_after_the_servers_timeout_on_a_socket_made_elsewhere():
    class Patient(echo.Server):
        waited_in_vain = 0

        def handle_timeout(self):
            self.waited_in_vain += 1

    with Patient.from_socket(tcp_listener(), echo.EchoRequestHandler, timeout=0.05) as server:
        server.handle_request()
        assert server.waited_in_vain == 1


def backlog(listener):
    """What listen() was told, as the kernel has it: tcpi_sacked of struct tcp_info, linux/tcp.h."""
    return struct.unpack_from("I", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 28)[0]


@on_linux
def test_the_backlog_of_a_socket_made_elsewhere_is_kept():
    with tcp_listener(backlog=7) as listener:
        assert backlog(listener) == 7
        with echo.Server.from_socket(listener, echo.EchoRequestHandler).start():
            assert backlog(listener) == 7
    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        assert backlog(server.socket) > 7
