"""``python -m echo.server``: its log, its end and its exit code."""

import json
import logging
import os
import re
import signal
import socket
import sys
import threading

import pytest

import echo
from echo.cli.server import command, workers
from echo.cli.server.command import Files, main
from echo.cli.server.loading import combine
from echo.cli.server.options import parser
from echo.mixins.logging import SessionLoggingMixin
from support import DEADLINE, eventually, read_all, read_exactly
from support.commands import (
    SLOW_HANDLER,
    UNREAD,
    client_that_does_not_read,
    start_changed,
    when_logged,
    write_changed_command,
)
from support.processes import Process
from support.usage_errors import error_line

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")

needs_fork = pytest.mark.skipif(not workers.SUPPORTED, reason="this system has no fork()")

needs_sigusr1 = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 here")


@pytest.fixture(scope="module")
def server():
    """One server for all tests that neither stop it nor need options."""
    process = Process("echo.server", "0")
    process.address = ("127.0.0.1", int(process.read_log_until(r"listening on \S+:(\d+)").group(1)))
    yield process
    process.kill()


@pytest.fixture
def changed_command(run, tmp_path):
    """``changed_command(change, *options)``: the server command, which first executes these statements."""
    return lambda change, *options: start_changed(run, tmp_path, change, *options)


def test_the_first_line_has_version_process_and_how_to_stop_it_and_ends_with_the_real_port(server):
    how = rf"\(process {server.popen.pid}; (Ctrl-C|SIGTERM) stops it\)"
    banner = rf"echo {re.escape(echo.__version__)} {how} listening on 127\.0\.0\.1:\d+"
    assert re.match(rf"\S+ \S+ INFO    {banner}\n", server.log)
    with echo.connect(server.address, timeout=DEADLINE) as client:
        assert client.echo(b"hello") == b"hello"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_code_0_and_idle_clients_see_the_end(server_command, dial, signum):
    server = server_command()
    client = dial(server.address)
    client.sendall(b"a\n")
    assert read_exactly(client, 2) == b"a\n"
    assert server.terminate(signum) == 0
    assert read_all(client) == b""
    assert "stopped: 1 session drained, 0 cut" in server.log
    assert "Traceback" not in server.log


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_log_that_cannot_be_written_changes_neither_service_nor_exit_code(run, tmp_path):
    """Row 50."""
    with open("/dev/full", "wb") as full:
        server = run("echo.server", "--unix", "socket", cwd=str(tmp_path), stderr=full)
    path = str(tmp_path / "socket")
    eventually(lambda: os.path.exists(path))
    with socket.socket(socket.AF_UNIX) as client:
        eventually(lambda: client.connect_ex(path) == 0)
        client.sendall(b"hello\n")
        assert read_exactly(client, 6) == b"hello\n"
    assert server.terminate() == 0


def test_messages_are_logged_with_the_clients_address(server):
    with echo.connect(server.address, timeout=DEADLINE) as client:
        client.echo(b"hello")
        peer = "127.0.0.1:%d" % client.connection.socket.getsockname()[1]
    server.read_log_until(f"{peer} disconnected")
    assert f"{peer} connected" in server.log
    assert f"{peer} received 5 bytes: hello" in server.log
    assert f"{peer} sent 5 bytes: hello" in server.log
    assert f"{peer} disconnected: eof; 1 in, 1 out; 6 B read, 6 B written" in server.log


def test_messages_can_be_left_out_of_the_log(server_command):
    server = server_command("--no-log-messages")
    with echo.connect(server.address, timeout=DEADLINE) as client:
        client.echo(b"hello")
    server.read_log_until("disconnected")
    assert "hello" not in server.log


@pytest.fixture
def quiet(serve_over):
    """``quiet(*options)``: a server command that does not log its address, and a client."""

    def start(*options):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            server = serve_over(listener, *options, until=None)
            return server, echo.connect(listener.getsockname(), timeout=DEADLINE)

    return start


def test_quiet_logs_nothing_while_all_goes_well(quiet):
    server, client = quiet("-q")
    with client:
        client.echo(b"hello")
    assert server.terminate() == 0
    assert server.log == ""


@pytest.mark.parametrize("framing", [pytest.param("line", marks=pytest.mark.slow), "crlf", "length", "raw"])
def test_each_framing_can_be_chosen(server_command, framing):
    server = server_command("--framing", framing, "--max-message", "1k")
    chosen = echo.framing.FRAMINGS[framing]
    with echo.connect(server.address, framing=chosen(), timeout=DEADLINE) as client:
        assert client.echo(b"x" * 1024) == b"x" * 1024
        if framing != "raw":
            client.send(b"x" * 1025)
            with pytest.raises(echo.ConnectionClosed):
                client.recv()


# Stopping.


def test_a_second_signal_cuts_and_the_code_is_1(server_command, dial):
    server = server_command("--shutdown-timeout", "10m", *UNREAD)
    client = client_that_does_not_read(server, dial)
    server.popen.send_signal(signal.SIGTERM)
    server.read_log_until("draining 1 session, for 600 s at most")
    threading.Event().wait(0.3)  # signals that come together count as one
    assert server.terminate() == 1
    assert "SIGTERM: stopping now" in server.log
    assert "stopped: 0 sessions drained, 1 cut" in server.log
    assert "127.0.0.1:%d cut: not done in time" % client.getsockname()[1] in server.log


def test_the_shutdown_timeout_cuts_and_the_code_is_1(server_command, dial):
    server = server_command("--shutdown-timeout", "100ms", *UNREAD)
    client_that_does_not_read(server, dial)
    assert server.terminate() == 1
    assert "1 cut" in server.log


TOGETHER = "running.SAME_SIGNAL = 3600\n"
"""Signals that come together count as one, however late a busy machine lets the process notice the second."""


def stopped_while_busy(server, dial, tmp_path, *signals):
    """Send the signals while a session is busy; return the exit code, once that session has got its reply."""
    client = dial(server.address)
    client.sendall(b"slow\n")
    server.read_log_until("received")
    for each in signals:
        server.popen.send_signal(each)
    server.read_log_until("draining 1 session")
    (tmp_path / "go").write_text("")
    assert read_all(client) == b"slow\n"
    return server.finish()[0]


@pytest.fixture
def slow(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_HANDLER)
    return ("--handler", "slow:Slow", "--shutdown-timeout", "10m")


def test_signals_that_come_together_are_one(changed_command, slow, dial, tmp_path):
    """A wrapper like timeout(1) signals the process and then its group."""
    server = changed_command(TOGETHER, *slow)
    assert stopped_while_busy(server, dial, tmp_path, signal.SIGTERM, signal.SIGINT) == 0
    assert "stopping now" not in server.log


def test_a_second_signal_inside_the_first_ones_handler_is_one_with_it(changed_command, slow, dial, tmp_path):
    again = "logging.getLogger('echo.server').removeFilter(before); os.kill(os.getpid(), 15)"
    server = changed_command(TOGETHER + when_logged("signal", again), *slow)
    assert stopped_while_busy(server, dial, tmp_path, signal.SIGTERM) == 0
    assert server.log.count("SIGTERM: stopping") == 1


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_signal_right_when_the_log_says_listening_stops_the_server(run, tmp_path, count):
    write_changed_command(tmp_path, when_logged("listening", "os.kill(os.getpid(), 15)"))
    server = run("changed", "0", "--workers", count, cwd=str(tmp_path))
    assert server.finish()[0] == 0


# Limits.


def test_the_idle_timeout_is_off_unless_asked_for(server_command, dial):
    server = server_command("--idle-timeout", "100ms")
    assert read_all(dial(server.address)) == b""
    server.read_log_until("disconnected: idle")


def test_networks_hosts_and_connections_are_bounded(server_command, dial):
    server = server_command("--deny", "127.0.0.0/8", "--allow", "0.0.0.0/0", "--max-per-host", "5", "-m", "7")
    assert read_all(dial(server.address)) == b""
    server.read_log_until(r"127\.0\.0\.1:\d+ refused: denied")


# Statistics.


@needs_sigusr1
def test_sigusr1_logs_the_statistics_and_serving_goes_on(server):
    with echo.connect(server.address, timeout=DEADLINE) as client:
        client.echo(b"hello")
        server.popen.send_signal(signal.SIGUSR1)
        server.read_log_until(r"statistics: accepted \d+, active \d+, .*messages_in \d+, .*bytes_in \d+")
        client.echo(b"again")


@needs_sigusr1
@pytest.mark.parametrize("options", [["--log-level", "error"], ["-q", "--log-format", "json"]], ids=" ".join)
def test_sigusr1_logs_the_statistics_whatever_the_level(quiet, options):
    server, client = quiet(*options)
    with client:
        client.echo(b"hello")
        server.popen.send_signal(signal.SIGUSR1)
        server.read_log_until(r"statistics: accepted 1, active 1, .*messages_in 1, .*bytes_in 6.*\n")
    assert server.terminate() == 0
    assert server.log.count("\n") == 1
    assert "INFO" in server.log  # it is not a warning


# Usage errors and addresses.


def test_a_usage_error_ends_the_process_with_one_line_and_code_2(run):
    server = run("echo.server", "none")
    assert server.finish() == (2, b"")
    assert server.log.count("\n") == 1
    assert server.log.startswith("echo.server: argument port: invalid port 'none'") and server.log.endswith(
        "; see --help\n"
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["none"], "invalid port 'none'"),
        (["65536"], "invalid port '65536'"),
        (["9" * 5000], "invalid port '999"),
        (["-m", "9" * 5000], "invalid number '999"),
        (["--max-message", "9" * 5000], "invalid size '999"),
        (["-1"], "-1"),
        (["--framing", "morse"], "morse"),
        (["--max-message", "0"], "invalid size '0'"),
        (["-m", "-5"], "-5"),
        (["-m", "0"], "invalid number '0'"),
        (["--max-per-host", "some"], "invalid number 'some'"),
        (["-b", ""], "invalid address ''"),
        (["-b", " "], "invalid address ' '"),
        (["-b", "0"], "invalid address '0': write all four numbers"),
        (["-b", "127.1:7000"], "invalid address '127.1:7000': write all four numbers"),
        (["-b", "127.0.0.010"], "invalid address '127.0.0.010': write all four numbers, and no leading zeros"),
        (["-b", "\uff10"], "invalid address '\uff10': write all four numbers"),  # the look-up reads it as 0
        (["-b", "\udcff"], "invalid host name '\\udcff': check it"),
        (["0:7000"], "invalid address '0:7000': write all four numbers"),
        (["127.0.0.010:7000"], "invalid address '127.0.0.010:7000': write all four numbers, and no leading zeros"),
        (["-b", "a..b"], "invalid host name 'a..b': check it"),
        ([f"{'a' * 64}:7000"], f"invalid host name '{'a' * 64}:7000': check it"),
        (["\xe4..b:7000"], "invalid host name '\xe4..b:7000': check it"),
        ([":7000"], "invalid address ':7000'"),
        (["7000", "-b", "127.0.0.1:8000"], "two ports are given, 8000 and 7000"),
        (["--allow", "10.0.0.0/99"], "invalid network '10.0.0.0/99'"),
        (["--deny", "example"], "invalid network 'example'"),
        (["-i", "soon"], "invalid duration 'soon'"),
        (["--message-timeout", "-3"], "-3"),
        (["--shutdown-timeout", "1 day"], "invalid duration '1 day'"),
        (["--verbose"], "--verbose"),
        (["--log-level", "loud"], "loud"),
        (["1", "2"], "2"),
        (["--handler=--"], "invalid class '--'"),
        (["-i--"], "invalid duration '--'"),
        (["-i=--"], "invalid duration '--'"),
        (["0", "--proxy-protocol", "--handshake-timeout", "1s"], "echo.server: --handshake-timeout is 1.0 s; "),
    ],
)
def test_a_usage_error_is_one_line_and_code_2(capsys, arguments, words):
    code, line = error_line(capsys, main, *arguments)
    assert code == 2
    assert words in line and line.endswith("; see --help")


SCRIPT = """
import json, sys
from echo.cli.server.command import main

for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as exc:
        print(exc.code, flush=True)
"""


def test_started_through_its_script_it_calls_itself_by_that_name(run, tmp_path):
    """An installation makes a script ``echo-server``; here it calls the command several times."""
    (tmp_path / "echo-server").write_text(SCRIPT)
    attempts = [
        ["--version"],
        ["--nonsense"],
        ["0", "--handler", "mine"],
        ["0", "-b", "203.0.113.7"],
        ["--help"],
    ]
    server = run(json.dumps(attempts), program=[sys.executable, str(tmp_path / "echo-server")])
    code, out = server.finish()
    assert code == 0
    start = f"echo-server {echo.__version__}\n0\n2\n2\n1\nusage: echo-server "
    assert out.decode().startswith(start) and out.decode().endswith("\n0\n")
    assert b"echo.server" not in out
    errors = server.log.splitlines()
    assert len(errors) == 3
    assert re.fullmatch(r"echo-server: unrecognized arguments: --nonsense; see --help", errors[0])
    assert re.fullmatch(r"echo-server: invalid class 'mine': expected MODULE:CLASS, .*; see --help", errors[1])
    assert re.fullmatch(r"echo-server: cannot listen on 203\.0\.113\.7:0: .*", errors[2])


@pytest.mark.parametrize(
    "address",
    [
        "203.0.113.7",
        pytest.param("nohost.invalid", marks=pytest.mark.slow),  # asks the resolver, which may be slow
        pytest.param("127.0.0.256", marks=pytest.mark.slow),
    ],
)
def test_an_address_that_is_not_ours_gets_one_line_and_code_1(capsys, address):
    code, line = error_line(capsys, main, "0", "-b", address)
    assert code == 1
    assert f"cannot listen on {address}:0" in line and "address of this machine" in line


@pytest.mark.parametrize("options", [[], pytest.param(["--workers", "2"], marks=needs_fork)], ids=["one", "workers"])
def test_a_port_in_use_gets_one_line_and_code_1(capsys, server, options):
    code, line = error_line(capsys, main, str(server.address[1]), *options)
    assert code == 1
    assert "another program uses this port" in line


@pytest.mark.parametrize("module", ["echo.server", "echo.client"])
def test_the_version_is_printed_without_a_warning(run, module):
    process = run(module, "--version", python_options=["-W", "error"])
    code, out = process.finish()
    assert (code, out.decode().split(), process.log) == (0, [module, echo.__version__], "")


# A log that is not read.


def test_a_closed_stderr_costs_nothing_but_the_log(server_command):
    server = server_command()
    server.popen.stderr.close()
    with echo.connect(server.address, timeout=DEADLINE) as client:
        messages = [b"hello"] * 100
        assert list(client.echo_many(messages)) == messages
    server.popen.stderr = None
    assert server.terminate() == 0


def talk_while_nobody_reads_stderr(server, count):
    """Let a client have ``count`` messages echoed, which makes two log records of each."""
    with echo.connect(server.address, timeout=DEADLINE) as client:
        messages = [b"%0100d" % number for number in range(count)]
        assert list(client.echo_many(messages)) == messages
    assert server.terminate() == 0
    assert "log records dropped" in server.log


def test_a_stderr_that_nobody_reads_blocks_no_client(changed_command):
    server = changed_command("command_log.LogQueue = functools.partial(command_log.LogQueue, capacity=100)")
    talk_while_nobody_reads_stderr(server, 3000)  # far more than a pipe and the small queue hold


@pytest.mark.slow
def test_a_stderr_that_nobody_reads_blocks_no_client_with_a_queue_of_the_usual_size(server_command):
    talk_while_nobody_reads_stderr(server_command(), 20_000)


# Handlers and mixins by name.


@pytest.fixture
def folder(tmp_path):
    """A folder with a module ``mine`` in it."""
    (tmp_path / "mine.py").write_text(
        "import echo, socketserver, threading\n"
        "class Upper(echo.MessageRequestHandler):\n"
        "    framing = echo.LengthFraming(1000)\n"
        "    message_timeout = 3600\n"
        "    def message_received(self, message):\n"
        "        self.send(message.upper())\n"
        "class Logged(echo.LoggingMixin, Upper):\n"
        "    pass\n"
        "class Twice(echo.MessageRequestHandler):\n"
        "    def message_received(self, message):\n"
        "        super().message_received(message * 2)\n"
        "class Bang(echo.MessageRequestHandler):\n"
        "    def message_received(self, message):\n"
        "        super().message_received(message + b'!')\n"
        "class Stock(socketserver.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        self.wfile.write(self.rfile.readline())\n"
        "class Login(socketserver.StreamRequestHandler):\n"
        "    session = threading.local()\n"
        "    def handle(self):\n"
        "        user = getattr(self.session, 'user', 'nobody')\n"
        "        self.session.user = self.rfile.readline().decode().strip()\n"
        "        self.wfile.write(user.encode())\n"
        "class NoHandler:\n"
        "    pass\n"
        "def function(): pass\n"
    )
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "lacking.py").write_text("import something_that_is_not_there\n")
    (tmp_path / "quitting.py").write_text("import sys\nsys.exit('no')\n")
    (tmp_path / "raising.py").write_text("raise GeneratorExit('no')\n")
    (tmp_path / "lazy.py").write_text("def __getattr__(name):\n    import something_that_is_not_there\n")
    (tmp_path / "named.py").write_text(
        "import echo\n"
        "class Named(echo.EchoRequestHandler):\n"
        "    names = set()\n"
        "    def __init_subclass__(cls, **options):\n"
        "        super().__init_subclass__(**options)\n"
        "        if cls.__name__ in Named.names:\n"
        "            raise KeyError(cls.__name__)\n"
        "        Named.names.add(cls.__name__)\n"
        "class Once(Named):\n"
        "    pass\n"
    )
    return str(tmp_path)


@pytest.mark.parametrize("name", [pytest.param("Upper", marks=pytest.mark.slow), "Logged"])
def test_any_handler_of_the_current_folder_serves_with_its_own_framing(server_command, folder, name):
    server = server_command("--handler", f"mine:{name}", cwd=folder)
    with echo.connect(server.address, framing=echo.LengthFraming(), timeout=DEADLINE) as client:
        client.send(b"abc")
        assert client.recv() == b"ABC"
        client.send(b"x" * 1001)
        with pytest.raises(echo.ConnectionClosed):
            client.recv()
    server.read_log_until("received 3 bytes: abc")
    assert server.terminate() == 0


def test_each_client_of_a_handler_written_for_socketserver_has_a_thread_of_its_own(server_command, folder, dial):
    """Row 61: a login that the handler kept in a ``threading.local`` was there for the next client."""
    server = server_command("--handler", "mine:Login", cwd=folder)
    for _ in range(30):  # a thread would serve again only once it is idle
        with dial(server.address) as sock:
            sock.sendall(b"alice\n")
            assert read_all(sock) == b"nobody"
    assert server.terminate() == 0


def test_the_command_line_overrides_the_handlers_own_attributes(server_command, folder):
    options = ("--framing", "line", "--message-timeout", "100ms")
    server = server_command("--handler", "mine:Upper", *options, cwd=folder)
    with echo.connect(server.address, timeout=DEADLINE) as client:
        client.send(b"abc")
        assert client.recv() == b"ABC"
        client.connection.socket.sendall(b"part of a line")
        with pytest.raises(echo.ConnectionClosed):
            client.recv()
    server.read_log_until("disconnected: slow")


class FieldFraming(echo.Framing):
    """Messages end with ``mark``. ``size`` is the limit that its decoder has; default: ``max_message``."""

    def __init__(self, mark, size=None):
        super().__init__()
        self.mark, self.size = mark, size

    def encode(self, message):
        return message + self.mark

    def decoder(self):
        return echo.Decoder(self.size or self.max_message)


def test_a_limit_on_the_command_line_leaves_a_framing_of_the_handlers_own_as_it_is(monkeypatch):
    class Fields(echo.EchoRequestHandler):
        framing = FieldFraming(b"|")

    monkeypatch.setattr(command, "load_handler", lambda name: Fields)
    options = ["--handler", "fields:Fields", "--max-message", "1k"]
    framing = command._handler(parser().parse_args(options)).framing
    assert (type(framing), framing.mark, framing.decoder().limit) == (FieldFraming, b"|", 1024)
    assert Fields.framing.max_message == 65536
    framing = command._handler(parser().parse_args([*options, "--framing", "line"])).framing
    assert (type(framing), framing.max_message) == (echo.LineFraming, 1024)


def test_a_limit_that_the_handlers_framing_would_ignore_is_a_usage_error(monkeypatch):
    class Fields(echo.EchoRequestHandler):
        framing = FieldFraming(b"|", 100)

    monkeypatch.setattr(command, "load_handler", lambda name: Fields)
    with pytest.raises(ValueError, match="fields:Fields has its own framing; --max-message cannot change its limit"):
        command._handler(parser().parse_args(["--handler", "fields:Fields", "--max-message", "1k"]))


def test_mixins_are_put_on_in_their_order(server_command, folder):
    server = server_command("--mixin", "mine:Twice", "--mixin", "mine:Bang", cwd=folder)
    with echo.connect(server.address, timeout=DEADLINE) as client:
        client.send(b"a")
        assert client.recv() == b"aa!"


@pytest.mark.parametrize(
    "arguments, sessions, messages",
    [
        ([], True, True),
        (["--log-level", "debug"], True, True),
        (["--no-log-messages"], True, False),
        (["--no-log-messages", "--mixin", "echo:LoggingMixin"], True, True),  # the option is off
        (["--log-level", "warning"], False, False),
        (["-q"], False, False),
    ],
)
def test_a_session_that_logs_nothing_has_no_logging_step(arguments, sessions, messages):
    handler = command._handler(parser().parse_args(arguments))
    assert issubclass(handler, SessionLoggingMixin) is sessions
    assert issubclass(handler, echo.LoggingMixin) is messages
    if "--no-log-messages" in arguments:
        assert handler.message_level is None


class Short(echo.LoggingMixin):
    shown_bytes = 3


@pytest.mark.parametrize("mixins", [[], [echo.LoggingMixin], [Short]])
def test_names_of_a_handler_that_does_not_know_of_the_logging_mixins_are_its_own(
    monkeypatch, serve, dial, caplog, mixins
):
    caplog.set_level(logging.INFO)

    class Own(echo.EchoRequestHandler):
        def log(self, text):
            self.texts.append(text)

        _log_message = log

        def connection_made(self):
            self._began = self.texts = []

        def message_received(self, message):
            self.log("a")
            self._log_message("b")
            self.log = self.send
            self.log(b"%d" % len(self._began))

    monkeypatch.setattr(command, "load_handler", lambda name: Own)
    monkeypatch.setattr(command, "load_mixin", lambda name: mixins[0])
    arguments = ["--handler", "own:Own", *["--mixin=some:Mixin"] * len(mixins)]
    with dial(serve(command._handler(parser().parse_args(arguments)))) as client:
        client.sendall(b"hello\n")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"2\n"
    events = [record.event for record in caplog.records if record.name == "echo.session"]
    assert events == ["connected", "received", "sent", "disconnected"]


def test_a_mixin_that_another_one_derives_from_is_put_on_once():
    class Logged(echo.LoggingMixin):
        pass

    class Handler(Logged, echo.EchoRequestHandler):
        pass

    assert combine(echo.EchoRequestHandler, [echo.LoggingMixin, Logged]).__bases__ == (Logged, echo.EchoRequestHandler)
    assert combine(Handler, [echo.LoggingMixin, Logged, echo.FaultMixin]).__bases__ == (echo.FaultMixin, Handler)
    assert combine(Handler, [Handler]).__bases__ == (Handler,)
    twice = [echo.LoggingMixin, echo.FaultMixin, echo.LoggingMixin]  # its last place counts
    assert combine(echo.EchoRequestHandler, twice).__bases__ == (*twice[1:], echo.EchoRequestHandler)


def test_classes_that_hide_each_other_are_a_usage_error():
    class Silent(echo.MessageRequestHandler):
        def send(self, message):
            pass

    with pytest.raises(
        ValueError, match=r"cannot combine these classes: .*LoggingMixin\.send\(\) would never be called"
    ):
        combine(echo.EchoRequestHandler, [Silent, echo.LoggingMixin])


def test_a_stock_handler_serves_under_the_servers_limits(server_command, folder, dial):
    server = server_command("--handler", "mine:Stock", "--max-per-host", "1", cwd=folder)
    client = dial(server.address)
    assert read_all(dial(server.address)) == b""
    client.sendall(b"line\n")
    assert read_all(client) == b"line\n"
    client.close()  # else the server would wait for that
    assert server.terminate() == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--handler", "mine"], "invalid class 'mine': expected MODULE:CLASS"),
        (["--handler", "absent:X"], "cannot find the module 'absent'"),
        (["--handler", "mine:Absent"], "the module mine has no class 'Absent'"),
        (["--handler", "mine:NoHandler"], "mine:NoHandler is not a request handler"),
        (["--handler", "mine:function"], "mine:function is not a request handler"),
        (["--handler", "broken:X"], "importing broken failed: ZeroDivisionError"),
        (["--handler", "lacking:X"], "importing lacking failed: No module named 'something_that_is_not_there'"),
        (["--handler", "lazy:X"], "importing lazy failed: No module named 'something_that_is_not_there'"),
        (["--handler", "named:Once"], "cannot combine these classes: KeyError: 'Once'"),
        (["--handler", "mine:Absent.Upper"], "the module mine has no class 'Absent.Upper'; it has Upper, Logged"),
        (["--handler", "quitting:X"], "importing quitting failed: SystemExit: no"),
        (["--handler", "raising:X"], "importing raising failed: GeneratorExit: no"),
        (["--mixin", "mine:Stock"], "mine:Stock is not a mixin"),
        (["--handler", "mine:Stock", "--framing", "raw"], "mine:Stock is not a MessageRequestHandler"),
    ],
)
def test_a_handler_that_cannot_be_loaded_gets_one_line_that_says_why_and_code_2(
    capsys, monkeypatch, folder, arguments, words
):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    try:
        code, line = error_line(capsys, main, "0", *arguments)
    finally:
        for name in set(sys.modules) - modules:
            del sys.modules[name]
    assert code == 2
    assert words in line


def test_a_module_that_closes_all_descriptors_does_not_get_the_log_into_its_own_files(server_command, tmp_path):
    """Rows 46 and 68: as a module does that makes the process a daemon. Its files got the log, and one was emptied."""
    (tmp_path / "closing.py").write_text(
        """
import echo, os
os.closerange(3, 100)
files = [open(f"file{number}", "wb", buffering=0) for number in range(8)]
for file in files:
    file.write(b"precious")
Echo = echo.EchoRequestHandler
"""
    )
    server = server_command("--handler", "closing:Echo", cwd=str(tmp_path))
    with echo.connect(server.address, timeout=DEADLINE) as client:
        assert client.echo(b"x" * 5000) == b"x" * 5000  # a record that one write to a pipe may not take whole
    server.read_log_until(" disconnected")
    assert server.terminate() == 0
    assert {path.read_bytes() for path in tmp_path.glob("file*")} == {b"precious"}


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")
@pytest.mark.parametrize("workers", [[], pytest.param(["--workers", "2"], marks=needs_fork)], ids=["one", "workers"])
def test_a_module_that_closes_all_descriptors_and_opens_a_standard_error_gets_the_log_there(run, tmp_path, workers):
    """Row 46."""
    (tmp_path / "daemon.py").write_text(
        """
import echo, os
os.closerange(0, 100)
log = os.open("log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
for number in range(3):
    os.dup2(log, number)
Echo = echo.EchoRequestHandler
"""
    )
    path = str(tmp_path / "socket")
    server = run("echo.server", "--unix", path, "--handler", "daemon:Echo", *workers, cwd=str(tmp_path))
    eventually(lambda: os.path.exists(path) and b"listening on" in (tmp_path / "log").read_bytes())
    assert server.terminate() == 0
    assert b" stopp" in (tmp_path / "log").read_bytes()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")
def test_a_unix_sockets_path_is_the_same_when_a_handler_changes_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {name: Files(parser().parse_args(["--unix", name])) for name in ("s", "/tmp/s", "@s")}
    assert [each.address() for each in files.values()] == ["s", "/tmp/s", "\0s"]
    monkeypatch.chdir("/")
    assert [each.address() for each in files.values()] == [str(tmp_path / "s"), "/tmp/s", "\0s"]


def test_a_handler_is_searched_for_although_the_current_folder_is_gone(run, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    server = run(
        *("echo.server", "0", "--handler", "nothere:X"), cwd=str(folder), preexec_fn=lambda: os.rmdir(str(folder))
    )
    assert server.finish() == (2, b"")
    assert server.log.count("\n") == 1
    assert "cannot find the module 'nothere'" in server.log


# A JSON log.


def test_the_log_as_json_has_an_object_a_line_with_stable_names(server_command):
    server = server_command("--log-format", "json", "--max-message", "10")
    with echo.connect(server.address, timeout=DEADLINE) as client:
        client.echo(b"hello")
        peer = "127.0.0.1:%d" % client.connection.socket.getsockname()[1]
    server.read_log_until('"disconnected"')
    with echo.connect(server.address, timeout=DEADLINE) as client:
        client.send(b"x" * 11)
        with pytest.raises(echo.ConnectionClosed):
            client.recv()
    server.read_log_until('(?s)"disconnected".*"disconnected"')
    assert server.terminate() == 0
    records = [json.loads(line) for line in server.log.splitlines()]
    records = [record for record in records if record["event"] != "draining"]  # if the last session is still closing
    for record in records:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"])
        assert record["level"] in ("INFO", "WARNING")
        assert record["message"]
    assert [record["event"] for record in records] == [
        "listening",
        "connected",
        "received",
        "sent",
        "disconnected",
        "connected",
        "failed",
        "disconnected",
        "signal",
        "stopped",
    ]
    assert records[0]["address"] == "127.0.0.1:%d" % server.address[1]
    assert (records[0]["version"], records[0]["pid"]) == (echo.__version__, server.popen.pid)
    session = records[1:5]
    assert {(record["peer"], record["session"]) for record in session} == {(peer, 1)}
    assert (session[1]["size"], session[1]["text"]) == (5, "hello")
    end = session[3]
    assert (end["reason"], end["messages_in"], end["bytes_in"], end["bytes_out"]) == ("eof", 1, 6, 6)
    assert end["duration_s"] >= 0
    assert (records[6]["session"], records[6]["reason"]) == (2, "too-long")
    assert records[9]["cut"] == 0


def test_a_traceback_is_one_json_object_too(server_command, tmp_path):
    (tmp_path / "failing.py").write_text(
        "import echo\nclass Fails(echo.MessageRequestHandler):\n    def connection_made(self):\n        1 / 0\n"
    )
    server = server_command("--log-format", "json", "--handler", "failing:Fails", cwd=str(tmp_path))
    with echo.connect(server.address, timeout=DEADLINE) as client, pytest.raises(echo.ConnectionClosed):
        client.recv()
    server.terminate()
    errors = [record for record in map(json.loads, server.log.splitlines()) if record["level"] == "ERROR"]
    assert len(errors) == 1
    assert errors[0]["event"] == "error"
    assert errors[0]["exception"].endswith("ZeroDivisionError: division by zero")
