"""``python -m echo.server``: what it says, when it ends, with which code."""

import json
import os
import re
import signal
import socket
import sys
import threading

import pytest

import echo
from support import DEADLINE, eventually, read_all, read_exactly

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")


def test_the_first_line_tells_the_real_port(server_command, dial):
    server = server_command()
    assert re.match(r"\S+ \S+ INFO    listening on 127\.0\.0\.1:\d+\n", server.log)
    with echo.connect(server.address) as client:
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


def test_messages_are_logged_with_the_clients_address(server_command):
    server = server_command()
    with echo.connect(server.address) as client:
        client.echo(b"hello")
        peer = "127.0.0.1:%d" % client.connection.socket.getsockname()[1]
    server.read_log_until("disconnected")
    assert f"{peer} connected" in server.log
    assert f"{peer} received 5 bytes: hello" in server.log
    assert f"{peer} sent 5 bytes: hello" in server.log
    assert f"{peer} disconnected: eof; 1 in (6 B), 1 out (6 B)" in server.log


def test_messages_can_be_left_out_of_the_log(server_command):
    server = server_command("--no-log-messages")
    with echo.connect(server.address) as client:
        client.echo(b"hello")
    server.read_log_until("disconnected")
    assert "hello" not in server.log


@pytest.fixture
def quiet(run):
    """``quiet(*options)``: a server's command that does not say where it listens, and a client of it."""

    def start(*options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = run("echo.server", str(port), *options)

        def connected():
            try:
                return echo.connect(("127.0.0.1", port))
            except OSError:
                return None

        return server, eventually(connected)

    return start


def test_quiet_says_nothing_of_what_goes_well(quiet):
    server, client = quiet("-q")
    with client:
        client.echo(b"hello")
    assert server.terminate() == 0
    assert server.log == ""


@pytest.mark.parametrize("framing", ["line", "length", "raw"])
def test_each_framing_can_be_chosen(server_command, framing):
    server = server_command("--framing", framing, "--max-message", "1k")
    chosen = {"line": echo.LineFraming, "length": echo.LengthFraming, "raw": echo.RawFraming}[framing]
    with echo.connect(server.address, framing=chosen()) as client:
        assert client.echo(b"x" * 1024) == b"x" * 1024
        if framing != "raw":
            client.send(b"x" * 1025)
            with pytest.raises(echo.ConnectionClosed):
                client.recv()


def test_a_second_signal_cuts_and_the_code_is_1(server_command, dial):
    server = server_command("--shutdown-timeout", "10m", "--send-timeout", "0", "--framing", "length")
    client = dial(server.address)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    message = echo.LengthFraming().encode(b"x" * 65536)
    client.settimeout(0.5)
    try:
        while True:  # until the server can neither send nor, therefore, read
            client.sendall(message)
    except OSError:
        pass
    server.popen.send_signal(signal.SIGTERM)
    server.read_log_until("draining 1 session, for 600 s at most")
    threading.Event().wait(0.3)  # signals that come together count as one
    assert server.terminate() == 1
    assert "SIGTERM: stopping now" in server.log
    assert "stopped: 0 sessions drained, 1 cut" in server.log
    assert "127.0.0.1:%d cut: not done in time" % client.getsockname()[1] in server.log


def test_signals_that_come_together_are_one(server_command, dial, tmp_path):
    """A wrapper like timeout(1) signals the process and then its group."""
    (tmp_path / "slow.py").write_text(
        "import echo, threading\n"
        "class Slow(echo.EchoRequestHandler):\n"
        "    def message_received(self, message):\n"
        "        threading.Event().wait(0.5)\n"
        "        super().message_received(message)\n"
    )
    server = server_command("--handler", "slow:Slow", cwd=str(tmp_path))
    client = dial(server.address)
    client.sendall(b"hello\n")
    server.read_log_until("received")
    server.popen.send_signal(signal.SIGTERM)
    server.popen.send_signal(signal.SIGINT)
    assert read_all(client) == b"hello\n"
    assert server.finish()[0] == 0


def test_the_shutdown_timeout_cuts_and_the_code_is_1(server_command, dial):
    server = server_command("--shutdown-timeout", "300ms", "--send-timeout", "0")
    client = dial(server.address)
    client.settimeout(0.5)
    try:
        while True:
            client.sendall(b"x" * 60_000 + b"\n")
    except OSError:
        pass
    assert server.terminate() == 1
    assert "1 cut" in server.log


def test_the_idle_timeout_is_off_unless_asked_for(server_command, dial):
    server = server_command("--idle-timeout", "200ms")
    assert read_all(dial(server.address)) == b""
    server.read_log_until("disconnected: idle")


def test_networks_hosts_and_connections_are_bounded(server_command, dial):
    server = server_command("--deny", "127.0.0.0/8", "--allow", "0.0.0.0/0", "--max-per-host", "5", "-m", "7")
    assert read_all(dial(server.address)) == b""
    server.read_log_until(r"127\.0\.0\.1:\d+ refused: denied")


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 here")
def test_sigusr1_logs_the_statistics_and_serving_goes_on(server_command):
    server = server_command()
    with echo.connect(server.address) as client:
        client.echo(b"hello")
        server.popen.send_signal(signal.SIGUSR1)
        server.read_log_until(r"statistics: accepted 1, active 1, .*messages_in 1, .*bytes_in 6")
        client.echo(b"again")


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 here")
@pytest.mark.parametrize("options", [["-q"], ["--log-level", "error"], ["-q", "--log-format", "json"]], ids=" ".join)
def test_sigusr1_logs_the_statistics_whatever_the_level(quiet, options):
    server, client = quiet(*options)
    with client:
        client.echo(b"hello")
        server.popen.send_signal(signal.SIGUSR1)
        server.read_log_until(r"statistics: accepted 1, active 1, .*messages_in 1, .*\n")
    assert server.terminate() == 0
    assert server.log.count("\n") == 1
    assert "INFO" in server.log  # and no alarm


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["none"], "'none' is no port"),
        (["65536"], "'65536' is no port"),
        (["-1"], "-1"),
        (["--framing", "morse"], "morse"),
        (["--max-message", "0"], "'0' is no size"),
        (["-m", "-5"], "-5"),
        (["-m", "0"], "'0' is no count"),
        (["--max-per-host", "some"], "'some' is no count"),
        (["--allow", "10.0.0.0/99"], "'10.0.0.0/99' is no network"),
        (["--deny", "example"], "'example' is no network"),
        (["-i", "soon"], "'soon' is no duration"),
        (["--message-timeout", "-3"], "-3"),
        (["--shutdown-timeout", "1 day"], "'1 day' is no duration"),
        (["--verbose"], "--verbose"),
        (["--log-level", "loud"], "loud"),
        (["1", "2"], "2"),
        (["0", "--proxy-protocol", "--handshake-timeout", "1s"], "echo.server: --handshake-timeout is 1.0; "),
    ],
)
def test_a_command_line_that_makes_no_sense_gets_one_line_and_code_2(run, arguments, words):
    server = run("echo.server", *arguments)
    code, out = server.finish()
    assert (code, out) == (2, b"")
    assert server.log.count("\n") == 1
    assert words in server.log
    assert server.log.endswith("; see --help\n")


@pytest.fixture
def echo_server(run, tmp_path):
    """``echo_server(*options)``: the command, started through a script of that name as an installation makes it."""
    script = tmp_path / "echo-server"
    script.write_text("import sys\nfrom echo.server.__main__ import main\nsys.exit(main())\n")
    return lambda *options, **popen_options: run(*options, program=[sys.executable, str(script)], **popen_options)


def test_started_through_its_script_it_calls_itself_by_that_name(echo_server):
    told = echo_server("--version")
    assert told.finish() == (0, f"echo-server {echo.__version__}\n".encode())
    told = echo_server("--help")
    code, out = told.finish()
    assert code == 0 and out.startswith(b"usage: echo-server ")
    assert b"echo.server" not in out
    for arguments, code, words in (
        (["--nonsense"], 2, r"unrecognized arguments: --nonsense; see --help"),
        (["0", "--handler", "mine"], 2, r"'mine' names no class; .*; see --help"),
        (["0", "-b", "203.0.113.7"], 1, r"cannot listen on 203\.0\.113\.7:0: .*"),
    ):
        refused = echo_server(*arguments)
        assert refused.finish() == (code, b"")
        assert re.fullmatch(rf"echo-server: {words}\n", refused.log)


@pytest.mark.parametrize("address", ["203.0.113.7", "nohost.invalid", "127.0.0.256"])
def test_an_address_that_is_not_ours_gets_one_line_and_code_1(run, address):
    server = run("echo.server", "0", "-b", address)
    assert server.finish()[0] == 1
    assert server.log.count("\n") == 1
    assert f"cannot listen on {address}:0" in server.log and "address of this machine" in server.log


def test_a_port_in_use_gets_one_line_and_code_1(run, server_command):
    first = server_command()
    second = run("echo.server", str(first.address[1]))
    assert second.finish()[0] == 1
    assert second.log.count("\n") == 1
    assert "another program has this port" in second.log


@pytest.mark.parametrize("module", ["echo.server", "echo.client"])
def test_the_version_comes_without_a_warning(run, module):
    process = run(module, "--version", python_options=["-W", "error"])
    code, out = process.finish()
    assert (code, out.decode().split(), process.log) == (0, [module, echo.__version__], "")


def test_a_closed_stderr_costs_nothing_but_the_log(run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = run("echo.server", str(port))
    server.read_log_until("listening")
    server.popen.stderr.close()
    with echo.connect(("127.0.0.1", port)) as client:
        for _ in range(100):
            client.echo(b"hello")
    server.popen.stderr = None
    assert server.terminate() == 0


def test_a_stderr_that_nobody_reads_stalls_no_client(server_command):
    server = server_command()
    with echo.connect(server.address, timeout=DEADLINE) as client:
        for number in range(20_000):  # two records each: far more than a pipe holds
            client.echo(b"message %d" % number)
    assert server.terminate() == 0
    assert "log records dropped" in server.log


# Handlers and mixins by name, and logs for programs.


@pytest.fixture
def folder(tmp_path):
    """A folder with a module ``mine`` in it."""
    (tmp_path / "mine.py").write_text(
        "import echo, socketserver\n"
        "class Upper(echo.MessageRequestHandler):\n"
        "    framing = echo.LengthFraming(1000)\n"
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
        "class NoHandler:\n"
        "    pass\n"
        "def function(): pass\n"
    )
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "lacking.py").write_text("import something_that_is_not_there\n")
    (tmp_path / "quitting.py").write_text("import sys\nsys.exit('no')\n")
    return str(tmp_path)


@pytest.mark.parametrize("name", ["Upper", "Logged"])
def test_any_handler_of_the_current_folder_serves_with_its_own_framing(server_command, folder, name):
    server = server_command("--handler", f"mine:{name}", cwd=folder)
    with echo.connect(server.address, framing=echo.LengthFraming()) as client:
        client.send(b"abc")
        assert client.recv() == b"ABC"
        client.send(b"x" * 1001)
        with pytest.raises(echo.ConnectionClosed):
            client.recv()
    server.read_log_until("received 3 bytes: abc")
    assert server.terminate() == 0


def test_the_command_line_wins_over_the_handlers_own_attributes(server_command, folder):
    server = server_command("--handler", "mine:Upper", "--framing", "line", "-i", "100ms", cwd=folder)
    with echo.connect(server.address) as client:
        client.send(b"abc")
        assert client.recv() == b"ABC"
        with pytest.raises(echo.ConnectionClosed):
            client.recv()
    server.read_log_until("disconnected: idle")


def test_mixins_are_put_on_in_their_order(server_command, folder):
    server = server_command("--mixin", "mine:Twice", "--mixin", "mine:Bang", cwd=folder)
    with echo.connect(server.address) as client:
        client.send(b"a")
        assert client.recv() == b"aa!"


def test_a_stock_handler_serves_under_the_servers_limits(server_command, folder, dial):
    server = server_command("--handler", "mine:Stock", "--max-per-host", "1", cwd=folder)
    client = dial(server.address)
    assert read_all(dial(server.address)) == b""
    client.sendall(b"line\n")
    assert read_all(client) == b"line\n"
    assert server.terminate() == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--handler", "mine"], "'mine' names no class; write MODULE:CLASS"),
        (["--handler", "absent:X"], "there is no module 'absent'"),
        (["--handler", "mine:Absent"], "the module mine has no 'Absent'"),
        (["--handler", "mine:NoHandler"], "mine:NoHandler is no request handler"),
        (["--handler", "mine:function"], "mine:function is no request handler"),
        (["--handler", "broken:X"], "importing broken failed: ZeroDivisionError"),
        (["--handler", "lacking:X"], "importing lacking failed: No module named 'something_that_is_not_there'"),
        (["--handler", "quitting:X"], "importing quitting failed: SystemExit: no"),
        (["--mixin", "mine:Stock"], "mine:Stock is no mixin"),
        (["--handler", "mine:Stock", "--framing", "raw"], "mine:Stock handles no messages"),
    ],
)
def test_a_handler_that_cannot_be_had_gets_one_line_that_says_which_and_code_2(run, folder, arguments, words):
    server = run("echo.server", "0", *arguments, cwd=folder)
    assert server.finish() == (2, b"")
    assert server.log.count("\n") == 1
    assert words in server.log


def test_a_handler_is_looked_for_although_the_current_folder_is_gone(run, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    server = run(
        *("echo.server", "0", "--handler", "nothere:X"), cwd=str(folder), preexec_fn=lambda: os.rmdir(str(folder))
    )
    assert server.finish() == (2, b"")
    assert server.log.count("\n") == 1
    assert "there is no module 'nothere'" in server.log


def test_the_log_as_json_has_an_object_a_line_with_stable_names(server_command):
    server = server_command("--log-format", "json", "--max-message", "10")
    with echo.connect(server.address) as client:
        client.echo(b"hello")
        peer = "127.0.0.1:%d" % client.connection.socket.getsockname()[1]
    with echo.connect(server.address) as client:
        client.send(b"x" * 11)
        with pytest.raises(echo.ConnectionClosed):
            client.recv()
    assert server.terminate() == 0
    records = [json.loads(line) for line in server.log.splitlines()]
    records = [record for record in records if record["event"] != "draining"]  # if the last client is still closing
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
    with echo.connect(server.address) as client, pytest.raises(echo.ConnectionClosed):
        client.recv()
    server.terminate()
    errors = [record for record in map(json.loads, server.log.splitlines()) if record["level"] == "ERROR"]
    assert len(errors) == 1
    assert errors[0]["event"] == "error"
    assert errors[0]["exception"].endswith("ZeroDivisionError: division by zero")
