"""Where the server listens: IPv6, IPv6 and IPv4 together, Unix sockets, a listening socket made elsewhere."""

import contextlib
import json
import os
import secrets
import signal
import socket
import ssl
import stat
import struct
import sys
import tempfile
import threading

import pytest

import echo
from echo.cli.client import command as client_program
from echo.cli.server import command as server_program
from echo.cli.server import options, workers
from echo.running import looked_up
from support import DEADLINE, eventually, read_all, read_exactly
from support.usage_errors import error_line


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")
needs_unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
needs_fork = pytest.mark.skipif(not workers.SUPPORTED, reason="this system has no fork()")
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as Linux does it")
on_posix = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")


def echoes(sock, line=b"hello\n"):
    sock.sendall(line)
    return read_exactly(sock, len(line)) == line


def link_local_addresses():
    """Addresses of this machine that need their zone, like ``fe80::1%eth0``."""
    with contextlib.suppress(OSError), open("/proc/net/if_inet6", encoding="ascii") as file:
        for line in file:
            digits, _, _, scope, _, interface = line.split()
            if scope == "20":
                address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
                with socket.socket(socket.AF_INET6) as sock:
                    with contextlib.suppress(OSError):  # not ready yet, or its interface is down
                        sock.bind((address, 0, 0, socket.if_nametoindex(interface)))
                        yield f"{address}%{interface}"


# IPv6, and both families together.


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
def test_a_dual_stack_server_limits_ipv4_clients_by_their_ipv4_address(dual, dial):
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
def test_a_dual_stack_server_allows_and_denies_ipv4_clients_by_their_ipv4_address(dual, dial, options, v4_may, v6_may):
    server = dual(**options)
    for address, may in ((server.v4, v4_may), (server.v6, v6_may)):
        sock = dial(address)
        assert echoes(sock) if may else read_all(sock) == b""


@needs_ipv6
def test_the_dual_stack_of_a_socket_made_elsewhere_cannot_be_switched_off():
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", 0))
        listener.listen()
        with pytest.raises(ValueError, match="dual_stack=False needs an address that the server itself binds"):
            echo.Server.from_socket(listener, echo.EchoRequestHandler, dual_stack=False)
        assert listener.fileno() != -1
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(("::", 0))
        listener.listen()
        echo.Server.from_socket(listener, echo.EchoRequestHandler, dual_stack=False).server_close()


@needs_ipv6
def test_the_dual_stack_can_be_switched_off(dial):
    with contextlib.ExitStack() as stack:

        def beside_a_socket_that_does_not_listen():
            other = stack.enter_context(socket.socket())
            other.bind(("127.0.0.1", 0))
            try:
                return echo.Server(("::", other.getsockname()[1]), echo.EchoRequestHandler, dual_stack=False)
            except OSError:
                return None  # another program uses this port on IPv6

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


@pytest.mark.slow
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
        with echo.connect(server.server_address, timeout=DEADLINE) as client:
            assert client.echo(b"hello") == b"hello"


@needs_ipv6
def test_a_link_local_address_is_served_in_its_zone():
    address = None
    for address in link_local_addresses():
        try:
            with echo.Server((address, 0), echo.EchoRequestHandler, allow=["fe80::/10"]).start() as server:
                for target in ((address, server.server_address[1]), server.server_address):
                    with echo.connect(target, timeout=DEADLINE) as client:
                        assert client.echo(b"hello") == b"hello"
        except (OSError, echo.EchoError):
            if address in link_local_addresses():
                raise
            continue  # its interface was removed meanwhile, as other programs and tests do
        return
    pytest.skip("no interface with a link-local address")


@needs_ipv6
@on_posix
def test_an_unknown_zone_ends_the_command_with_one_line_and_code_1(capsys):
    code, line = error_line(capsys, server_program.main, "0", "-b", "fe80::1%nowhere")
    assert code == 1
    assert "cannot listen on [fe80::1%nowhere]:0" in line


@pytest.mark.parametrize(
    "found, address",
    [
        (["192.0.2.1"], ("192.0.2.1", 7000)),
        (["2001:db8::1", "192.0.2.1"], ("192.0.2.1", 7000)),
        (["2001:db8::1"], ("2001:db8::1", 7000, 0, 0)),
    ],
)
def test_a_host_name_stands_for_an_address_of_ipv4_if_it_has_one(monkeypatch, found, address):
    def look_up(host, port, family, kind, flags=0):
        if flags:
            raise socket.gaierror(socket.EAI_NONAME, "not an address")
        return [
            (socket.AF_INET6, kind, 6, "", (each, port, 0, 0))
            if ":" in each
            else (socket.AF_INET, kind, 6, "", (each, port))
            for each in found
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert looked_up(("host.example", 7000)) == address
    # The look-up would take * for this machine alone.
    for other in (("::1", 7000), ("127.0.0.1", 7000), ("", 7000), ("*", 7000), (b"host.example", 7000), "path"):
        assert looked_up(other) == other


@on_posix
@pytest.mark.parametrize(
    "start",
    [
        lambda: server_program.main(["0", "-b", "host.example"]),
        lambda: echo.run(echo.EchoRequestHandler, ("host.example", 0)),
    ],
    ids=["the command", "echo.run"],
)
def test_a_signal_ends_a_start_that_waits_for_name_servers(start, monkeypatch, capsys):
    """``bind()`` would wait for a minute, and no signal handler runs meanwhile."""

    def look_up(host, port, family, kind, flags=0):
        if not flags:
            os.kill(os.getpid(), signal.SIGTERM)
            answered.wait(DEADLINE)
        raise socket.gaierror(socket.EAI_NONAME, "not an address")

    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        assert start() == 0
    finally:
        answered.set()
    assert capsys.readouterr() == ("", "")


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
    """``unix_command(*options)``: a ``python -m echo.server`` that listens on ``path``, or on ``at``."""

    def start(*options, at=path, **popen_options):
        process = run("echo.server", "--unix", at, *options, **popen_options)
        process.read_log_until("listening on ")
        return process

    return start


def leave_dead_socket(path):
    """Leave a socket at ``path`` like a server that was killed."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)


@on_posix
def test_the_command_serves_on_a_unix_socket_and_removes_its_path(unix_command, path):
    """Row 1: also if a server that was killed has left its path."""
    leave_dead_socket(path)
    server = unix_command("--unix-mode", "660")
    assert f"listening on {path}\n" in server.log
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    with dial_unix(path) as sock:
        assert echoes(sock)
        peer = f"unix:pid={os.getpid()},uid={os.getuid()}" if sys.platform == "linux" else "unix"
        server.read_log_until(f"{peer} received 5 bytes: hello")
    assert server.terminate() == 0
    assert not os.path.exists(path)


@pytest.mark.parametrize("parser", [options.parser, client_program._parser], ids=["server", "client"])
def test_without_unix_sockets_in_the_system_the_option_is_an_error_with_code_2(parser, monkeypatch, capsys):
    monkeypatch.delattr(socket, "AF_UNIX", raising=False)
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["--unix", "s"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--unix: this system has no Unix sockets" in line


@pytest.mark.parametrize("address", ["s", b"s"], ids=["text", "bytes"])
def test_without_unix_sockets_in_the_system_a_path_is_an_invalid_address(address, monkeypatch):
    monkeypatch.delattr(socket, "AF_UNIX", raising=False)
    with pytest.raises(ValueError, match="this system has no Unix sockets"):
        echo.Server(address, echo.EchoRequestHandler)


@pytest.fixture
def umask():
    """``umask(mask)``: set it for the rest of the test."""
    before = os.umask(0o022)
    os.umask(before)
    yield os.umask
    os.umask(before)


@needs_unix
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
def test_a_unix_socket_has_the_given_mode_whatever_the_umask(path, umask, mode):
    umask(0o077)
    with echo.Server(path, echo.EchoRequestHandler, unix_mode=mode):
        assert stat.S_IMODE(os.stat(path).st_mode) == mode


@needs_unix
def test_without_a_given_mode_the_umask_decides(path, umask):
    umask(0o027)
    with echo.Server(path, echo.EchoRequestHandler):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o750


@needs_unix
@pytest.mark.parametrize("text, mode", [("600", 0o600), ("666", 0o666), ("0777", 0o777)])
def test_the_command_takes_the_mode_in_octal(text, mode):
    assert options.parser().parse_args(["--unix", "s", "--unix-mode", text]).unix_mode == mode


@needs_unix
def test_a_unix_socket_has_its_mode_before_a_client_can_connect(path, monkeypatch):
    refused = []

    def chmod(name, mode, **options):
        with socket.socket(socket.AF_UNIX) as sock:
            refused.append(sock.connect_ex(path) != 0)
        real(name, mode, **options)

    real = os.chmod
    monkeypatch.setattr(os, "chmod", chmod)
    with echo.Server(path, echo.EchoRequestHandler, unix_mode=0o600):
        assert refused == [True]
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


@on_posix
@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--unix-mode", "660"], "--unix-mode needs --unix"),
        (["--unix", "s", "--unix-mode", "rw"], "invalid permissions 'rw'"),
        (["--unix", "s", "--unix-mode", "668"], "invalid permissions '668'"),
        (["--unix", "s", "--unix-mode", "66"], "invalid permissions '66'"),
        (["--unix", "@s", "--unix-mode", "660"], "--unix-mode needs --unix with a path"),
        (["--unix", "s", "--allow", "192.0.2.0/24"], "clients of a Unix socket have none"),
        (["--unix", "s", "--deny", "192.0.2.0/24"], "clients of a Unix socket have none"),
        (["--unix", "s", "--max-per-host", "1"], "clients of a Unix socket have none"),
        (["--unix", "s", "7000"], "--unix excludes the port and --bind"),
        (["--unix", "s", "-b", "0.0.0.0"], "--unix excludes the port and --bind"),
        (["--unix", ""], "invalid path ''"),
    ],
)
def test_options_that_do_not_fit_a_unix_socket_end_the_command_with_one_line_and_code_2(
    capsys, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    code, line = error_line(capsys, server_program.main, *arguments)
    assert code == 2
    assert words in line
    assert not list(tmp_path.iterdir())


@on_posix
@pytest.mark.parametrize("where", [["192.0.2.1"], ["127.0.0.1", "7000"]])
def test_the_client_takes_a_unix_socket_or_a_host_but_not_both(capsys, path, where):
    code, line = error_line(capsys, client_program.main, "--unix", path, *where, "-m", "hello")
    assert (code, line) == (2, "echo.client: --unix excludes host and port; give one of them")


@needs_unix
def test_behind_a_proxy_allow_applies_to_the_clients_of_a_unix_socket(path):
    options = {"proxy_protocol": True, "allow": ["192.0.2.0/24"], "handshake_timeout": None}
    with echo.Server(path, echo.EchoRequestHandler, **options).start() as server:
        with dial_unix(path) as sock:
            sock.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 1000 80\r\n")
            assert echoes(sock)
        with dial_unix(path) as sock:
            sock.sendall(b"PROXY TCP4 198.51.100.7 192.0.2.1 1000 80\r\n")
            assert sock.recv(1) == b""
        eventually(lambda: server.stats().refused == {"denied": 1})


@pytest.mark.slow
@on_posix
def test_behind_a_proxy_the_command_allows_networks_on_a_unix_socket(unix_command, path):
    server = unix_command("--proxy-protocol", "--handshake-timeout", "0", "--allow", "192.0.2.0/24")
    with dial_unix(path) as sock:
        sock.sendall(b"PROXY TCP4 198.51.100.7 192.0.2.1 1000 80\r\n")
        assert sock.recv(1) == b""
    server.read_log_until(r"198\.51\.100\.7:1000 refused: denied")
    assert server.terminate() == 0


@pytest.mark.slow
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
    leave_dead_socket("s")
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


def cannot_listen(capsys, path, *words):
    """Check that the command cannot listen there, and says so in one line, with code 1."""
    code, line = error_line(capsys, server_program.main, "--unix", path)
    assert code == 1
    for word in (f"cannot listen on {path}: ", *words):
        assert word in line


@on_posix
def test_the_path_of_a_live_server_is_refused_and_that_server_goes_on(capsys, path):
    """Row 1."""
    with echo.Server(path, echo.EchoRequestHandler).start():
        before = os.stat(path)
        cannot_listen(capsys, path, f"another server listens on {path}; give another path")
        assert os.path.samestat(before, os.stat(path))
        with dial_unix(path) as sock:
            assert echoes(sock)


@on_posix
def test_a_file_that_is_not_a_socket_is_refused_and_left_alone(capsys, path):
    """Row 1."""
    with open(path, "w") as file:
        file.write("precious")
    cannot_listen(capsys, path, "is not a socket; it is left alone; give another path")
    with open(path) as file:
        assert file.read() == "precious"


@on_posix
def test_a_link_to_a_socket_is_refused_and_left_alone(capsys, path):
    """Row 1: the link's target may be another program's, which bound it under another name."""
    leave_dead_socket(path)
    os.symlink(path, path + "2")
    cannot_listen(capsys, path + "2", "is not a socket")
    assert os.path.islink(path + "2") and os.path.exists(path)


@on_posix
def test_another_programs_datagram_socket_is_refused_and_left_alone(capsys, path):
    """Row 1."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)
        cannot_listen(capsys, path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"still here", path)
        assert other.recv(100) == b"still here"


@needs_fork
@pytest.mark.parametrize(
    "signum",
    [
        pytest.param(getattr(signal, "SIGKILL", None), id="SIGKILL"),
        pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_the_path_stays_when_a_worker_ends_and_goes_with_the_last(unix_command, path, signum):
    server = unix_command("--workers", "2")
    inode = os.stat(path).st_ino
    victim = int(server.read_log_until(r"worker 0 is process (\d+)").group(1))
    server.read_log_until(r"worker 1 is process")
    eventually(lambda: ready(victim))
    os.kill(victim, signum)
    server.read_log_until(r"worker 0: process %d (was killed by SIGKILL|ended with exit code 0)" % victim)
    assert os.stat(path).st_ino == inode
    server.read_log_until(r"(?s)worker 0: process .*worker 0 is process")
    for _ in range(10):
        with dial_unix(path) as sock:
            assert echoes(sock)
    assert server.terminate() == 0
    assert not os.path.exists(path)


DYING = """
import os, sys
from echo.cli.server.command import main
from echo.cli.server.workers import Workers

Workers.min_pause = 0.001
os.register_at_fork(after_in_child=lambda: os._exit(1))

if __name__ == "__main__":
    sys.exit(main())
"""
"""The server's command, whose workers end as soon as they are forked."""


@needs_fork
def test_the_path_is_removed_when_no_worker_can_live(run, path, tmp_path):
    (tmp_path / "dying.py").write_text(DYING)
    server = run("dying", "--unix", path, "--workers", "2", cwd=str(tmp_path))
    assert server.finish()[0] == 1
    assert "no worker can live, giving up" in server.log
    assert not os.path.exists(path)


def ready(pid):
    """Whether a worker can get SIGTERM yet. Its signals are blocked until it is ready."""
    if not os.path.isdir("/proc/self"):
        return True
    with open(f"/proc/{pid}/status") as file:
        blocked = next(line for line in file if line.startswith("SigBlk:"))
    return not int(blocked.split()[1], 16) & 1 << (signal.SIGTERM - 1)


@on_linux
def test_an_abstract_name_is_served_and_leaves_no_file(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"echo-test-{secrets.token_hex(8)}"
    with echo.Server("\0" + name, echo.EchoRequestHandler).start():
        with echo.connect("\0" + name, timeout=DEADLINE) as client:
            assert client.echo(b"hello") == b"hello"
        assert client_program.main(["-w", "60", "--unix", "@" + name, "-m", "hello"]) == 0
        assert capsys.readouterr() == ("hello\n", "")
        cannot_listen(capsys, "@" + name, "Address already in use")
    with echo.Server("\0" + name, echo.EchoRequestHandler):  # it is free at once
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize("count", ["1", "2"])
def test_the_command_serves_an_abstract_name(unix_command, tmp_path, count):
    name = f"echo-test-{secrets.token_hex(8)}"
    server = unix_command("--workers", count, at="@" + name, cwd=str(tmp_path))
    assert f"listening on @{name}\n" in server.log
    with dial_unix("\0" + name) as sock:
        assert echoes(sock)
    assert server.terminate() == 0
    assert not list(tmp_path.iterdir())
    unix_command(at="@" + name)  # it is free at once


@on_posix
@pytest.mark.parametrize("length", [108, 300, 5000])
def test_a_path_that_is_too_long_ends_the_command_with_one_line_and_code_1(capsys, path, length):
    cannot_listen(capsys, path + "x" * (length - len(os.fsencode(path))), "of 107 bytes at most")


@on_linux
def test_a_name_that_is_too_long_or_in_use_ends_the_command_with_one_line_and_code_1(capsys):
    """Row 57."""
    cannot_listen(capsys, "@" + "x" * 108, "; give a name of 107 bytes at most")
    name = f"echo-test-{secrets.token_hex(8)}"
    with echo.Server("\0" + name.ljust(107, "x"), echo.EchoRequestHandler):
        cannot_listen(capsys, "@" + name.ljust(107, "x"), "Address already in use; give another name")


@on_posix
def test_a_missing_folder_ends_the_command_with_one_line_and_code_1(capsys, path):
    cannot_listen(capsys, path + "/at/all", "No such file or directory")


@on_posix
def test_a_folder_that_is_a_file_ends_the_command_with_one_line_and_code_1(capsys, path):
    with open(path, "w"):
        pass
    cannot_listen(capsys, path + "/s", "Not a directory")


AS_NOBODY = """\
import os, sys
from echo.cli.server.command import main, parser
parser().parse_args([])
if os.getuid() == 0:  # root may write everywhere
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(main(sys.argv[3:]))
"""
"""``python -c AS_NOBODY -m echo.server ...``. It parses once before it gives up its rights, so that argparse has
imported all modules that it needs."""


@on_posix
def test_a_folder_without_write_permission_ends_the_command_with_one_line_and_code_1(run):
    folder = tempfile.mkdtemp(prefix="echo")  # not in tmp_path, which other users cannot enter
    try:
        os.chmod(folder, 0o555)
        server = run("echo.server", "--unix", folder + "/s", python_options=("-c", AS_NOBODY))
        assert server.finish() == (1, b"")
        assert server.log.count("\n") == 1
        assert "Permission denied; give another path" in server.log and "folder that you may write to" in server.log
    finally:
        os.rmdir(folder)


OF_ANOTHER_USER = pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can leave another user's socket"
)


@needs_unix
@pytest.mark.parametrize(
    "folder_mode, mode, why",
    [
        pytest.param(0o777, 0, "is a socket that you may not use; it is left alone", id="used"),
        pytest.param(
            *(0o1777, 0o666, "is the socket of a dead server, and only its owner may remove it"),
            marks=OF_ANOTHER_USER,
            id="removed, in a sticky folder",
        ),
    ],
)
def test_a_socket_that_may_not_be_used_or_removed_is_not_a_lack_of_rights_in_its_folder(run, folder_mode, mode, why):
    """Row 57: root's dead socket in a folder that everybody may write to."""
    folder = tempfile.mkdtemp(prefix="echo")  # not in tmp_path, which other users cannot enter
    path = folder + "/s"
    try:
        os.chmod(folder, folder_mode)
        leave_dead_socket(path)
        os.chmod(path, mode)
        server = run("echo.server", "--unix", path, python_options=("-c", AS_NOBODY))
        assert server.finish() == (1, b"")
        assert server.log == f"echo.server: cannot listen on {path}: {path} {why}; give another path\n"
    finally:
        os.unlink(path)
        os.rmdir(folder)


@needs_unix
def test_clients_connect_to_a_unix_socket_by_a_path_of_text_or_bytes(capsys, path):
    with echo.Server(path, echo.EchoRequestHandler).start():
        with echo.connect(path, timeout=DEADLINE) as one, echo.connect(os.fsencode(path), timeout=DEADLINE) as two:
            assert one.echo(b"hello") == two.echo(b"hello") == b"hello"
        assert client_program.main(["-w", "60", "--unix", path, "-m", "hello", "-m", "again"]) == 0
        assert capsys.readouterr() == ("hello\nagain\n", "")


@pytest.mark.slow
@on_posix
def test_the_client_command_pipes_pings_and_measures_over_a_unix_socket(run, path):
    with echo.Server(path, echo.EchoRequestHandler).start():
        assert run("echo.client", "-w", "60", "--unix", path).finish(b"one\ntwo\n") == (0, b"one\ntwo\n")
        ping = run("echo.client", "-w", "60", "--unix", path, "--ping", "-c", "2", "-i", "0", "-J")
        code, out = ping.finish()
        assert code == 0, ping.log
        assert json.loads(out.splitlines()[-1])["received"] == 2
        bench = run("echo.client", "-w", "60", "--unix", path, "--bench", "-d", "2s", "-P", "2", "-J")
        code, out = bench.finish()
        assert code == 0, bench.log
        assert json.loads(out.splitlines()[-1])["messages"] > 0


@on_posix
def test_the_client_reports_a_path_where_nothing_listens(capsys, path):
    code, line = error_line(capsys, client_program.main, "--unix", path, "-m", "hello")
    assert code == 1
    assert path in line


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


def test_a_client_in_the_backlog_when_a_server_ends_is_served_by_the_next():
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


@pytest.mark.parametrize("family", FAMILIES, ids=["IPv4", "IPv6", "Unix"])
def test_tls_works_on_a_socket_made_elsewhere(family, path, certificates):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.server)
    listener = listener_of(family, path)
    with echo.Server.from_socket(listener, echo.EchoRequestHandler, ssl_context=context).start() as server:
        trusting = ssl.create_default_context(cafile=certificates.authority.certificate)
        with echo.connect(
            server.server_address, timeout=DEADLINE, ssl_context=trusting, server_hostname="localhost"
        ) as client:
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
        (datagram, "not a stream socket"),
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


def test_a_connection_is_refused_as_a_listening_socket():
    ends = socket.socketpair()
    with ends[0], ends[1], pytest.raises(ValueError, match="does not listen"):
        echo.Server.from_socket(ends[0], echo.EchoRequestHandler)


def test_an_invalid_option_leaves_the_socket_as_it_was():
    with tcp_listener() as listener:
        with pytest.raises(TypeError, match="no option 'colour'"):
            echo.Server.from_socket(listener, echo.EchoRequestHandler, colour="red")
        assert listener.gettimeout() is None
        with echo.Server.from_socket(listener, echo.EchoRequestHandler).start(), dial_listener(listener) as client:
            assert echoes(client)


def is_blocking(sock):
    return os.get_blocking(sock.fileno())


def in_time(function):
    """Call the function in a thread; fail if it blocks. Return its result."""
    done = []
    thread = threading.Thread(target=lambda: done.append(function()), daemon=True)
    thread.start()
    thread.join(2 * DEADLINE)
    assert done, "it blocks"
    return done[0]


@on_posix
@pytest.mark.parametrize("first_to_stop", [0, 1])
def test_of_two_servers_over_one_socket_either_may_stop_and_the_other_never_blocks(first_to_stop):
    """All servers on a socket share its blocking mode. A server that restored the mode would make the other one's
    accept block, and no stop could end that."""
    with tcp_listener() as listener:
        pair = [
            echo.Server.from_socket(listener.dup(), echo.EchoRequestHandler, shutdown_timeout=DEADLINE).start()
            for _ in range(2)
        ]
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
def test_a_shutdown_does_not_change_the_blocking_mode_of_a_shared_socket():
    with tcp_listener() as listener:
        with echo.Server.from_socket(listener.dup(), echo.EchoRequestHandler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            with dial_listener(listener) as client:
                assert echoes(client)
            in_time(lambda: (server.shutdown(),))
            thread.join(DEADLINE)
            assert not is_blocking(listener)


@pytest.mark.slow
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
        thread.join(0.1)
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
    """The backlog in the kernel: tcpi_sacked of struct tcp_info, linux/tcp.h."""
    return struct.unpack_from("I", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 28)[0]


@on_linux
def test_the_backlog_of_a_socket_made_elsewhere_is_kept():
    with tcp_listener(backlog=7) as listener:
        assert backlog(listener) == 7
        with echo.Server.from_socket(listener, echo.EchoRequestHandler).start():
            assert backlog(listener) == 7
    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        assert backlog(server.socket) > 7
