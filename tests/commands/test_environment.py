"""The environment of the commands: variables, process 1 of a container, terminals, SIGHUP, early Ctrl-C."""

import contextlib
import errno
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import types

import pytest

import echo
from echo.cli.client.command import main as client_main
from echo.cli.server import command as command
from echo.cli.server import workers
from echo.cli.server.command import main
from echo.cli.server.options import ROWS, parser
from echo.server.back_off import BackOff
from support import DEADLINE, ROOT, eventually, read_all, read_exactly, tiers
from support.background import Background
from support.commands import call
from support.processes import processes_of
from support.usage_errors import error_line

on_posix = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
needs_fork = pytest.mark.skipif(not workers.SUPPORTED, reason="this system has no fork()")
COUNTS = ["1", pytest.param("2", marks=needs_fork)]


# Variables.

SAMPLES = {
    # option: a value as text, the same parsed; another value for the command line, the same parsed
    "PORT": ("1234", (None, 1234), "localhost:4321", ("localhost", 4321)),
    "BIND": ("192.0.2.1", ("192.0.2.1", None), "[::]:4321", ("::", 4321)),
    "UNIX": ("/run/echo/s", "/run/echo/s", "@echo", "@echo"),
    "UNIX_MODE": ("660", 0o660, "0600", 0o600),
    "FRAMING": ("length", "length", "raw", "raw"),
    "MAX_MESSAGE": ("1k", 1024, "2M", 2 * 1024**2),
    "HANDLER": ("mine:Mine", "mine:Mine", "your:Your", "your:Your"),
    "MIXIN": ("a:A b:B", ["a:A", "b:B"], "c:C", ["c:C"]),
    "MAX_CONNECTIONS": ("5", 5, "6", 6),
    "MAX_PER_HOST": ("5", 5, "6", 6),
    "ALLOW": ("192.0.2.0/24  ::1", ["192.0.2.0/24", "::1"], "10.0.0.1", ["10.0.0.1"]),
    "DENY": ("192.0.2.0/24", ["192.0.2.0/24"], "10.0.0.1", ["10.0.0.1"]),
    "IDLE_TIMEOUT": ("1m", 60.0, "500ms", 0.5),
    "MESSAGE_TIMEOUT": ("1m", 60.0, "0", None),
    "SEND_TIMEOUT": ("0", None, "1m", 60.0),
    "SHUTDOWN_TIMEOUT": ("1m", 60.0, "0", 0.0),
    "TLS_CERT": ("a.pem", "a.pem", "b.pem", "b.pem"),
    "TLS_KEY": ("a.pem", "a.pem", "b.pem", "b.pem"),
    "TLS_CLIENT_CA": ("a.pem", "a.pem", "b.pem", "b.pem"),
    "HANDSHAKE_TIMEOUT": ("0", None, "5", 5.0),
    "PROXY_PROTOCOL": ("1", True, None, True),
    "PROXY_ALLOW_FROM": ("192.0.2.1 192.0.2.2", ["192.0.2.1", "192.0.2.2"], "10.0.0.1", ["10.0.0.1"]),
    "WORKERS": ("3", 3, "4", 4),
    "CPU_AFFINITY": ("0,2-3", [0, 2, 3], "off", None),
    "LOG_LEVEL": ("debug", "debug", "error", "error"),
    "LOG_FORMAT": ("json", "json", "text", "text"),
    "LOG_THREADS": ("1", True, None, True),
    "NO_LOG_MESSAGES": ("1", True, None, True),
    "QUIET": ("1", True, None, True),
    "COLOR": ("never", "never", "always", "always"),
}

JUNK = {
    "PORT": "http",
    "BIND": "[::1",
    "UNIX_MODE": "rw",
    "FRAMING": "morse",
    "MAX_MESSAGE": "0",
    "MAX_CONNECTIONS": "0",
    "MAX_PER_HOST": "-1",
    "ALLOW": "192.0.2.0/24 example",
    "DENY": "10.0.0.0/99",
    "IDLE_TIMEOUT": "soon",
    "MESSAGE_TIMEOUT": "1 day",
    "SEND_TIMEOUT": "-3",
    "SHUTDOWN_TIMEOUT": "1d",
    "HANDSHAKE_TIMEOUT": "x",
    "PROXY_PROTOCOL": "yes",
    "PROXY_ALLOW_FROM": "example",
    "WORKERS": "0",
    "CPU_AFFINITY": "3-1",
    "LOG_LEVEL": "loud",
    "LOG_FORMAT": "xml",
    "LOG_THREADS": "on",
    "NO_LOG_MESSAGES": "true",
    "QUIET": "2",
    "COLOR": "red",
}


def read(environment, *argv):
    commands = parser()
    commands.read_environment(environment)
    return vars(commands.parse_args(argv))


def flag(name, *value):
    return list(value) if name == "PORT" else [f"--{name.lower().replace('_', '-')}", *value]


def test_every_option_is_tried_here():
    assert {row.variable for row in ROWS} == {f"ECHO_{name}" for name in SAMPLES}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_each_option_has_its_variable_which_the_command_line_overrides(name):
    text, value, other_text, other = SAMPLES[name]
    dest = name.lower()
    unset, set_ = read({}), read({f"ECHO_{name}": text})
    assert set_ == {**unset, dest: value} != unset
    given = [] if other_text is None else [other_text]
    assert read({f"ECHO_{name}": text}, *flag(name, *given)) == {**unset, dest: other}


GUARDS = {"ALLOW", "DENY", "PROXY_ALLOW_FROM", "TLS_CLIENT_CA"}

EMPTY = pytest.mark.parametrize("text", ["", " ", "\t\n"], ids=repr)


@pytest.mark.parametrize("name", sorted(set(SAMPLES) - GUARDS))
@EMPTY
def test_an_empty_variable_counts_as_not_set(name, text):
    assert read({f"ECHO_{name}": text}) == read({})


@pytest.mark.parametrize("name", sorted(GUARDS))
@EMPTY
def test_an_empty_variable_that_decides_who_gets_in_is_a_usage_error(name, text, capsys):
    with pytest.raises(SystemExit) as caught:
        read({f"ECHO_{name}": text})
    assert caught.value.code == 2
    advice = "give a value, or unset it to let everybody in"
    assert capsys.readouterr().err == f"echo.server: ECHO_{name} is empty; {advice}; see --help\n"


@pytest.mark.parametrize("name", ["PROXY_PROTOCOL", "NO_LOG_MESSAGES", "QUIET"])
def test_a_switch_that_is_0_is_off_and_the_command_line_may_turn_it_on(name):
    assert read({f"ECHO_{name}": "0"}) == read({})
    assert read({f"ECHO_{name}": "0"}, *flag(name)) == read({}, *flag(name)) != read({})


@pytest.mark.parametrize(
    "argv, environment, address",
    [
        ("", "", ("127.0.0.1", 65432)),
        ("7000", "PORT=8000", ("127.0.0.1", 7000)),
        ("0", "PORT=8000", ("127.0.0.1", 0)),
        ("", "PORT=8000 BIND=::1", ("::1", 8000)),
        ("", "BIND=[::1]:8000", ("::1", 8000)),
        ("", "PORT=[::1]:8000", ("::1", 8000)),
        ("-b 127.0.0.2", "BIND=[::1]:8000", ("127.0.0.2", 8000)),
        ("localhost:7000", "BIND=::1 PORT=8000", ("localhost", 7000)),
        ("7000 -b 127.0.0.2:7000", "", ("127.0.0.2", 7000)),
        ("7000 -b [::1]", "", ("::1", 7000)),
        ("7000", "UNIX=s", ("127.0.0.1", 7000)),
        ("7000", "UNIX=s UNIX_MODE=660", ("127.0.0.1", 7000)),
    ],
)
def test_the_parts_of_an_address_come_together_and_the_command_line_wins(monkeypatch, argv, environment, address):
    """Row 75."""
    for setting in environment.split():
        monkeypatch.setenv(*f"ECHO_{setting}".split("="))
    options = command._options(argv.split())
    assert (options.bind, options.port) == address
    assert options.unix is options.unix_mode is None


def test_other_variables_and_names_in_small_letters_are_ignored():
    others = {"ECHO_HISTFILE": "/dev/null", "ECHO_COLOUR": "red", "ECHO_HELP": "1", "ECHO_VERSION": "1"}
    assert read({**others, "echo_port": "1", "PORT": "1", "XECHO_PORT": "1"}) == read({})


def test_repeated_options_add_up_and_together_replace_the_environments():
    environment = {"ECHO_DENY": "192.0.2.1 192.0.2.2", "ECHO_ALLOW": "10.0.0.0/8"}
    options = read(environment, "--deny", "192.0.2.3", "--deny", "192.0.2.4")
    assert options["deny"] == ["192.0.2.3", "192.0.2.4"]
    assert options["allow"] == ["10.0.0.0/8"]


def test_a_parser_keeps_nothing_of_an_earlier_command_line():
    commands = parser()
    commands.read_environment({"ECHO_DENY": "192.0.2.1"})
    assert [commands.parse_args(["--deny", host]).deny for host in ("::1", "::2")] == [["::1"], ["::2"]]
    assert commands.parse_args([]).deny == ["192.0.2.1"]


@pytest.mark.parametrize("name", sorted(JUNK))
def test_an_invalid_value_is_one_line_that_names_the_variable(name, capsys):
    with pytest.raises(SystemExit) as caught:
        read({f"ECHO_{name}": JUNK[name]})
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"echo.server: ECHO_{name}: ") and repr(JUNK[name].split()[-1])[1:] in err


@on_posix
def test_the_command_reads_its_environment(run, tmp_path):
    (tmp_path / "deny").write_text("192.0.2.1\n")
    environment = {"ECHO_PORT": "0", "ECHO_FRAMING": "length", "ECHO_LOG_FORMAT": "json", "ECHO_DENY": "@deny ::1"}
    server = run("echo.server", "--log-format", "text", env=environment, cwd=str(tmp_path))
    port = server.read_log_until(r" listening on 127\.0\.0\.1:(\d+)").group(1)
    with echo.connect(("127.0.0.1", int(port)), framing=echo.LengthFraming(), timeout=DEADLINE) as client:
        assert client.echo(b"two\nlines") == b"two\nlines"
    assert server.terminate() == 0


@pytest.mark.parametrize("name, text", [("PORT", "junk"), ("DENY", "nowhere"), ("WORKERS", "0"), ("QUIET", "yes")])
def test_the_command_refuses_an_invalid_variable_in_one_line_with_code_2(capsys, monkeypatch, name, text):
    monkeypatch.setenv(f"ECHO_{name}", text)
    code, line = error_line(capsys, main)
    assert code == 2
    assert f"ECHO_{name}: " in line


@pytest.mark.parametrize("name, text", [*sorted(JUNK.items()), ("SHUTDOWN_TIMEOUT", "0"), ("HANDSHAKE_TIMEOUT", "0")])
def test_help_and_the_version_are_printed_whatever_is_in_the_environment(monkeypatch, name, text):
    """``--help`` must not end with the error message that points to it."""
    monkeypatch.setenv(f"ECHO_{name}", text)
    helping = call(main, "--help")
    assert (helping.code, helping.err) == (0, "") and "--max-connections" in helping.out
    assert call(main, "--version") == (0, f"echo.server {echo.__version__}\n", "")


# Process 1 of a container.

AS_PROCESS_1 = """\
import os, sys
os.execvp("unshare", ["unshare", *os.environ["UNSHARE"].split(), sys.executable, *sys.argv[1:]])
"""
"""``python -c AS_PROCESS_1 -m MODULE ...`` in a process namespace of its own."""


@pytest.fixture(scope="module")
def unshare(request):
    own = "" if hasattr(os, "getuid") and os.getuid() == 0 else "--user --map-root-user "
    options = own + "--pid --fork --mount-proc --kill-child"
    command = ["unshare", *options.split(), "sh", "-c", "echo $$"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=DEADLINE)
    except OSError as exc:
        tiers.missing(request.config, f"unshare cannot be started: {exc.strerror}")
    if done.returncode or done.stdout != b"1\n":
        tiers.missing(request.config, f"this system gives us no process namespace: {done.stderr.decode().strip()}")
    return options


@pytest.fixture
def process_1(server_command, unshare):
    """``process_1(*options)``: the server command as process 1; ``inner`` is its number outside the namespace."""

    def start(*options, **popen_options):
        process = server_command(
            *options, python_options=("-c", AS_PROCESS_1), env={"UNSHARE": unshare}, **popen_options
        )
        process.inner = processes_of(process.pid)[0]
        return process

    return start


@pytest.mark.needs_namespaces
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_process_1_stops_with_code_0_on_a_signal(process_1, dial, count, signum):
    """The kernel keeps a signal from process 1 unless it has a handler: SIGTERM's default does nothing there."""
    server = process_1("--workers", count)
    with open(f"/proc/{server.inner}/status") as file:
        assert [line.split()[-1] for line in file if line.startswith("NSpid:")] == ["1"]
    client = dial(server.address)
    client.sendall(b"hello\n")
    assert read_exactly(client, 6) == b"hello\n"
    os.kill(server.inner, signum)
    assert read_all(client) == b""
    assert server.finish()[0] == 0
    assert f"{signal.Signals(signum).name}: stopping" in server.log and "Traceback" not in server.log


ORPHANS = """
import echo, subprocess, threading

class Orphans(echo.MessageRequestHandler):
    def message_received(self, message):
        # The shell ends; the process that it has started becomes a child of process 1, and ends too.
        orphan = int(subprocess.check_output(["sh", "-c", "sleep 0.01 >/dev/null & echo $!"]))
        while runs(orphan):
            threading.Event().wait(0.005)
        self.send(b"it has ended")

def runs(pid):
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
"""


@pytest.mark.needs_namespaces
@pytest.mark.parametrize("count", COUNTS)
def test_orphans_that_process_1_inherits_do_no_harm(process_1, tmp_path, count):
    (tmp_path / "orphans.py").write_text(ORPHANS)
    server = process_1("--workers", count, "--handler", "orphans:Orphans", cwd=str(tmp_path))
    for _ in range(4):
        with echo.connect(server.address, timeout=DEADLINE) as client:
            client.send(b"make one")
            assert client.recv() == b"it has ended"
    os.kill(server.inner, signal.SIGTERM)
    assert server.finish()[0] == 0
    assert server.log.count("is process") == (0 if count == "1" else 2)  # none was mistaken for a dead worker
    assert "Traceback" not in server.log


# Without a terminal.


@on_posix
def test_without_a_terminal_nothing_is_coloured_and_there_is_no_prompt(run, server_command):
    server = server_command(env={"TERM": "xterm-256color"})
    host, port = "127.0.0.1", str(server.address[1])
    text = b"one\n\x1b[31mtwo\n"
    talking = run("echo.client", host, port, "-v", "--timeout", "60", env={"TERM": "xterm-256color"})
    assert talking.finish(text) == (0, text)  # only the reply, without a prompt
    pinging = run(
        "echo.client", host, port, "--ping", "-c", "1", "--histogram", "--timeout", "60", env={"TERM": "xterm-256color"}
    )
    code, out = pinging.finish()
    assert code == 0
    assert server.terminate() == 0
    assert r"\x1b[31mtwo" in server.log  # a client's bytes color nothing in the log
    for text in (talking.log, pinging.log, out.decode(), server.log):
        assert "\x1b" not in text and not any(line.startswith("> ") for line in text.splitlines())


@pytest.mark.parametrize("main", [main, client_main], ids=["server", "client"])
def test_without_a_terminal_help_and_errors_are_not_coloured(monkeypatch, main):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("FORCE_COLOR", "PYTHON_COLORS"):
        monkeypatch.delenv(name, raising=False)
    for option, code in (("--help", 0), ("--nonsense", 2)):
        outcome = call(main, option)
        assert outcome.code == code
        assert "\x1b" not in outcome.out + outcome.err


# SIGHUP.


def hang_up(server, pattern, times=1):
    """Send SIGHUP and wait for the log lines about it."""
    seen = len(server.log)
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until(r"(?s).{%d}" % seen + ".*".join([pattern] * times))


def serves(address):
    """Whether a new client is let in. (Any other is disconnected, or reset if it has sent something.)"""
    with socket.create_connection(address, DEADLINE) as sock:
        try:
            sock.sendall(b"hello\n")
            return read_exactly(sock, 6) == b"hello\n"
        except ConnectionError:
            return False


def reloading(count):
    """How many processes log a reload: the parent and each worker."""
    return 1 if count == "1" else 3


def wait_for_workers(server, count):
    if count != "1":
        server.read_log_until(r"(?s)worker \d is process.*worker \d is process")


WHO = r"(?:\[\d+\] )?"
"""The number of the process, which log lines have if there are several."""

READ_AGAIN = rf"INFO +{WHO}SIGHUP: certificates and networks read again"


@on_posix
@pytest.mark.parametrize(
    "count, option, closed",
    [("1", "--deny", "127.0.0.0/8"), pytest.param("2", "--allow", "192.0.2.0/24", marks=needs_fork)],
)
def test_sighup_reads_the_lists_again_for_new_clients(server_command, dial, tmp_path, count, option, closed):
    networks = tmp_path / "networks"
    opened = "192.0.2.1  # not us\n" if option == "--deny" else "127.0.0.0/8  # all\n"
    networks.write_text(opened)
    server = server_command(option, "@networks", "--workers", count, cwd=str(tmp_path))
    wait_for_workers(server, count)
    live = dial(server.address)
    live.sendall(b"a\n")
    assert read_exactly(live, 2) == b"a\n"
    for text, lets_in in ((closed, False), (opened, True), (f"\n{closed}\r\n", False)):
        networks.write_text(text)
        hang_up(server, READ_AGAIN, reloading(count))
        assert [serves(server.address) for _ in range(6)] == [lets_in] * 6
        live.sendall(b"b\n")
        assert read_exactly(live, 2) == b"b\n"  # an admitted client stays
    assert server.terminate() == 0


@on_posix
@pytest.mark.parametrize("count, option", [("1", "--allow"), pytest.param("2", "--deny", marks=needs_fork)])
def test_a_broken_file_keeps_the_old_lists_and_is_logged(server_command, tmp_path, count, option):
    networks = tmp_path / "networks"
    networks.write_text("127.0.0.0/8\n")
    let_in = option == "--allow"
    server = server_command(option, "@networks", "--workers", count, cwd=str(tmp_path))
    wait_for_workers(server, count)
    networks.write_text("10.0.0.0/8\n# a remark\nexample\n")
    words = "SIGHUP: networks, line 3: invalid network 'example': .*; all stays as it was"
    hang_up(server, f"WARNING {WHO}{words}")
    assert [serves(server.address) for _ in range(6)] == [let_in] * 6
    networks.unlink()
    hang_up(server, f"WARNING {WHO}SIGHUP: cannot read networks: .*; all stays as it was")
    assert [serves(server.address) for _ in range(6)] == [let_in] * 6
    networks.write_text("10.0.0.0/8\n")
    hang_up(server, READ_AGAIN, reloading(count))
    assert [serves(server.address) for _ in range(6)] == [not let_in] * 6
    assert server.terminate() == 0


@on_posix
def test_an_allow_file_that_is_empty_for_a_moment_lets_no_other_client_in(server_command, tmp_path):
    (tmp_path / "allow").write_text("192.0.2.1\n")
    server = server_command("--allow", "@allow", cwd=str(tmp_path))
    (tmp_path / "allow").write_text("")
    hang_up(server, "WARNING SIGHUP: allow names no network; all stays as it was")
    assert not serves(server.address)


def test_the_thread_of_a_signal_handler_does_not_wait_for_a_reload_and_calls_that_wait_together_are_one():
    """Row 62: a slow file never blocks serving, and a thousand signals do not mean a thousand reloads."""
    begun, may_go_on, ended = threading.Event(), threading.Event(), threading.Event()
    threads = []

    def work():
        threads.append(threading.current_thread())
        begun.set()
        assert may_go_on.wait(DEADLINE)

    later = command.in_thread()
    later(work)
    assert begun.wait(DEADLINE)
    for _ in range(1000):
        later(work)  # after the first has begun, so one more is needed
    later(ended.set)
    may_go_on.set()
    assert ended.wait(DEADLINE)
    assert threading.current_thread() not in threads and len(threads) == 2 and len(set(threads)) == 1


def test_the_thread_of_a_signal_handler_outlives_a_lack_of_memory_between_any_two_calls(monkeypatch):
    """Row 65: to ignore the lack needs memory, too. Later signals did nothing, and nobody said so."""
    lacks, acted = threading.Event(), threading.Event()

    def suppress(*classes):
        if not lacks.is_set():
            lacks.set()
            raise MemoryError
        return contextlib.suppress(*classes)

    monkeypatch.setattr(command, "contextlib", types.SimpleNamespace(suppress=suppress))
    later = command.in_thread()
    assert lacks.wait(DEADLINE)
    later(acted.set)
    assert acted.wait(DEADLINE)


@pytest.mark.parametrize(
    "failure, why",
    [
        (ValueError("no luck"), "no luck"),
        (OSError("no luck"), "no luck"),
        (MemoryError(), "out of memory"),
        (AssertionError(), "AssertionError"),
    ],
    ids=lambda parameter: type(parameter).__name__,
)
def test_a_reload_that_fails_for_any_reason_changes_nothing_and_the_next_one_runs(caplog, failure, why):
    """Row 61: the thread that reloads ended with an unexpected exception, and later SIGHUPs did nothing."""

    class Files:
        kept, lacks, networks = (), False, ()

        def server_options(self):
            if failures:
                raise failures.pop()
            return {"allow": [], "deny": ["192.0.2.2"], "proxy_allow_from": [], "ssl_context": None}

    failures = [failure]
    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, deny=["192.0.2.1"]) as server:
        command._reload(server, Files())
        assert server.deny == ("192.0.2.1",)
        [record] = caplog.records
        retries = "; trying again" if isinstance(failure, MemoryError) else ""
        assert record.message.startswith(f"SIGHUP: {why}; ")
        assert record.message.endswith(f"; all stays as it was{retries}")
        command._reload(server, Files())
        assert server.deny == ("192.0.2.2",)


def test_a_reload_keeps_the_networks_that_a_handler_has_set_until_a_list_changes(tmp_path):
    """Row 61: SIGHUP, for a new certificate, let a client in whom a handler had banned."""
    networks = tmp_path / "networks"
    networks.write_text("192.0.2.1\n")
    files = command.Files(command._parsed(["0", "--deny", f"@{networks}"]))
    given = files.server_options()
    files.networks = command.networks_in(given)
    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, **given) as server:
        server.set_access([], ["192.0.2.7"])
        assert command._reload(server, files)
        assert server.deny == ("192.0.2.7",)
        networks.write_text("192.0.2.2\n")
        assert command._reload(server, files)
        assert list(map(str, server.deny)) == ["192.0.2.2/32"]


def test_a_reload_for_which_no_descriptor_is_free_is_tried_again_until_it_is_done(caplog, monkeypatch):
    """Row 61: workers without descriptors kept the old list, after the parent had read the new one."""
    caplog.set_level("INFO")
    monkeypatch.setattr(command, "RETRY", 0.001)
    failures = [errno.EMFILE, errno.ENFILE]

    class Files:
        kept, lacks, networks = (), False, ()

        def server_options(self):
            if failures:
                try:
                    raise OSError(failures.pop(), "no descriptor")
                except OSError as exc:
                    raise ValueError(f"cannot read deny: {exc.strerror}") from None  # as read_file() does
            return {"allow": [], "deny": ["192.0.2.2"], "proxy_allow_from": [], "ssl_context": None}

    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        server._echo_failures = BackOff(clock=lambda: 1000.0)  # no rest ends by itself
        command.in_thread()(functools.partial(command._reload_or_retry, server, Files()))
        eventually(lambda: len(caplog.records) == 2)
        assert server.deny == ("192.0.2.2",)
        assert not server._echo_failures.resting()  # else it accepts nobody for two more seconds
    assert [record.message for record in caplog.records[:2]] == [
        "SIGHUP: cannot read deny: no descriptor; all stays as it was; trying again",
        "SIGHUP: certificates and networks read again",
    ]


def test_while_a_reload_lacks_descriptors_no_client_gets_those_that_others_free(serve, dial, monkeypatch):
    """Row 61: certificates need several, and a flood of clients kept a new list from being in force for 45 s."""

    class Files:
        lacks, failure = False, OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        def server_options(self):
            raise self.failure

    monkeypatch.setattr(command, "REST", 3 * DEADLINE)
    files, server = Files(), serve()
    session = dial(server)
    assert echoes(session)
    monkeypatch.setattr(command, "RETRY", 0.05)
    command._reload(server, files)
    assert echoes(dial(server))  # it waits until then, and not for ever
    files.failure = MemoryError()
    monkeypatch.setattr(command, "RETRY", DEADLINE)
    command._reload(server, files)
    assert not server._echo_failures.resting()
    files.failure, rests_until = OSError(errno.ENFILE, os.strerror(errno.ENFILE)), files.rests_until
    files.rests_until = 0.0  # the sessions may stay, and too few descriptors be free for ever
    command._reload(server, files)
    assert not server._echo_failures.resting()
    files.rests_until = rests_until
    command._reload(server, files)
    assert server._echo_failures.resting()
    accepted = server.stats().accepted
    waiting = dial(server)
    waiting.sendall(b"hello\n")
    assert echoes(session)
    assert server.stats().accepted == accepted
    server.shutdown()
    stop = Background(server.stop, DEADLINE)
    with contextlib.suppress(ConnectionResetError):  # a stop does not let it in, either: the new list may deny it
        assert waiting.recv(1) == b""
    session.close()
    assert stop.result()


def echoes(sock):
    sock.sendall(b"hello\n")
    return read_exactly(sock, 6) == b"hello\n"


@on_posix
@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="no names for pipes here")
def test_a_list_from_a_pipe_is_in_force_and_stays_so_when_the_files_are_read_again(server_command, tmp_path):
    """Row 61: ``--deny @<(...)`` was read twice, was empty the second time, and let everybody in."""
    reading, writing = os.pipe()
    with open(writing, "wb") as file:
        file.write(b"127.0.0.0/8\n")
    (tmp_path / "allow").write_text("192.0.2.0/24\n")
    pipe = f"/dev/fd/{reading}"
    try:
        server = server_command("--deny", f"@{pipe}", "--allow", "@allow", pass_fds=[reading], cwd=str(tmp_path))
    finally:
        os.close(reading)
    assert not serves(server.address)
    (tmp_path / "allow").write_text("127.0.0.1\n")
    hang_up(server, f"{READ_AGAIN}, except {pipe}: a pipe can be read only once\n")
    assert not serves(server.address)
    assert server.terminate() == 0


@on_posix
@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="no names for descriptors here")
@pytest.mark.parametrize(
    "option, path, number",
    [
        ("--deny", "@/dev/stdin", 0),
        ("--deny", "@/dev/fd/1", 1),
        ("--deny", "@/dev/fd/3", 3),
        ("--deny", "@/dev/fd/5", 5),
        ("--allow", "@/dev/fd/3", 3),
        ("--tls-cert", "/dev/fd/3", 3),
    ],
)
def test_a_descriptor_that_did_not_reach_the_server_is_not_an_empty_list(run, option, path, number):
    """Row 61: the server had opened one of its own with this number, such as the null device, and denied nobody."""
    process = run("echo.server", "0", option, path, preexec_fn=lambda: os.close(number) if number < 2 else None)
    assert process.popen.wait(DEADLINE) == 2
    why = f"cannot read {path.lstrip('@')}: descriptor {number} was not passed to this program"
    process.read_log_until("\n")
    assert process.log == f"echo.server: {why}; see --help\n"


@on_posix
def test_a_file_of_denied_networks_that_is_empty_for_a_moment_lets_no_client_in(server_command, tmp_path):
    """Row 61."""
    (tmp_path / "deny").write_text("127.0.0.1\n")
    server = server_command("--deny", "@deny", cwd=str(tmp_path))
    (tmp_path / "deny").write_text("")
    hang_up(server, "WARNING SIGHUP: deny names no network now, but did before; .*; all stays as it was")
    assert not serves(server.address)


@on_posix
def test_a_list_that_has_become_a_pipe_is_not_waited_for_and_the_server_serves(server_command, tmp_path):
    """Row 62."""
    (tmp_path / "allow").write_text("127.0.0.1\n")
    server = server_command("--allow", "@allow", cwd=str(tmp_path))
    (tmp_path / "allow").unlink()
    os.mkfifo(str(tmp_path / "allow"))
    hang_up(server, "WARNING SIGHUP: the pipe allow did not end in time: .*; all stays as it was")
    assert serves(server.address)


@on_posix
def test_if_one_of_two_files_is_broken_neither_counts(server_command, tmp_path):
    for name in ("allow", "deny"):
        (tmp_path / name).write_text("192.0.2.1\n")
    (tmp_path / "allow").write_text("127.0.0.1\n")
    server = server_command("--allow", "@allow", "--deny", "@deny", cwd=str(tmp_path))
    (tmp_path / "allow").write_text("192.0.2.1\n")
    (tmp_path / "deny").write_text("example\n")
    hang_up(server, "WARNING SIGHUP: deny, line 1: ")
    assert serves(server.address)


@on_posix
def test_lists_and_certificates_are_the_same_files_when_a_handler_changes_the_current_folder(server_command, tmp_path):
    """Row 61: a list of the same name in the other folder was put in force."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "deny").write_text("192.0.2.1\n")
    (tmp_path / "deny").write_text("127.0.0.0/8\n")
    (tmp_path / "moving.py").write_text(
        "import echo, os\nos.chdir('other')\nclass Echo(echo.EchoRequestHandler): pass\n"
    )
    server = server_command("--deny", "@deny", "--handler", "moving:Echo", cwd=str(tmp_path))
    assert not serves(server.address)
    hang_up(server, READ_AGAIN)
    assert not serves(server.address)


@pytest.mark.skipif(not workers.SUPPORTED, reason="this system has no fork()")
def test_a_worker_that_replaces_another_begins_with_the_lists_in_force(server_command, tmp_path):
    (tmp_path / "deny").write_text("")
    server = server_command("--deny", "@deny", "--workers", "2", cwd=str(tmp_path))
    victims = [int(server.read_log_until(r"worker %d is process (\d+)" % number).group(1)) for number in (0, 1)]
    (tmp_path / "deny").write_text("127.0.0.0/8\n")
    hang_up(server, READ_AGAIN, 3)
    (tmp_path / "deny").write_text("")  # not in force yet
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    for number in (0, 1):
        server.read_log_until(r"(?s)worker %d: process \d+ was killed.*worker %d is process" % (number, number))
    assert not any(serves(server.address) for _ in range(6))


@on_posix
@pytest.mark.parametrize("count", COUNTS)
def test_under_nohup_sighup_stays_ignored(server_command, tmp_path, count):
    def nohup():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    server = server_command("--workers", count, preexec_fn=nohup)
    wait_for_workers(server, count)
    server.popen.send_signal(signal.SIGHUP)
    server.popen.send_signal(signal.SIGUSR1)
    server.read_log_until("statistics: ")  # it came after
    assert serves(server.address)
    assert server.terminate() == 0
    assert "SIGHUP" not in server.log


OWN_TERMINAL = """\
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""``python -c OWN_TERMINAL -m MODULE ...`` in a session whose terminal is standard input."""


@pytest.fixture
def at_terminal(server_command):
    """``at_terminal(*options)``: the server command started at a terminal, and a function that closes that."""
    pty = pytest.importorskip("pty", reason="this platform has no pseudo-terminals")
    masters = []

    def start(*options, command=server_command, **popen_options):
        master, slave = pty.openpty()
        masters.append(master)
        try:
            server = command(
                *options, python_options=("-c", OWN_TERMINAL), stdin=slave, start_new_session=True, **popen_options
            )
        finally:
            os.close(slave)
        return server, lambda: os.close(masters.pop())

    yield start
    for master in masters:
        os.close(master)


@pytest.mark.parametrize("count", COUNTS)
def test_a_terminal_that_hangs_up_stops_the_server_with_code_0(at_terminal, dial, count):
    server, close_terminal = at_terminal("--workers", count)
    wait_for_workers(server, count)
    client = dial(server.address)
    client.sendall(b"hello\n")
    assert read_exactly(client, 6) == b"hello\n"
    close_terminal()
    assert read_all(client) == b""
    server.popen.stdin = None
    assert server.finish()[0] == 0
    assert "SIGHUP: stopping" in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("waits_for", ["an import", "a pipe"])
def test_a_terminal_that_hangs_up_while_the_server_starts_stops_it(at_terminal, run, tmp_path, waits_for, count):
    """SIGHUP counted as a reload, and the server stayed for ever."""
    os.mkfifo(str(tmp_path / "pipe"))
    # Not one long read: a signal that comes just before it waits for its end, in any program (1 in 1,000).
    (tmp_path / "slow.py").write_text("import time\nwith open('pipe'):\n    while True:\n        time.sleep(0.01)\n")
    options = ("--handler", "slow:Echo") if waits_for == "an import" else ("--deny", "@pipe")
    start = functools.partial(run, "echo.server", "0")
    server, close_terminal = at_terminal(*options, "--workers", count, command=start, cwd=str(tmp_path))
    with (tmp_path / "pipe").open("w"):  # the server reads it now
        close_terminal()
        server.popen.stdin = None
        assert server.finish()[0] == 0
    assert server.log == ""


@pytest.mark.parametrize("count", COUNTS)
def test_sighup_at_a_terminal_that_is_there_reads_the_lists_again(at_terminal, tmp_path, count):
    (tmp_path / "deny").write_text("")
    server, close_terminal = at_terminal("--deny", "@deny", "--workers", count, cwd=str(tmp_path))
    wait_for_workers(server, count)
    (tmp_path / "deny").write_text("127.0.0.0/8")
    hang_up(server, READ_AGAIN, reloading(count))
    assert not serves(server.address)
    close_terminal()
    assert server.finish()[0] == 0


@pytest.mark.parametrize("count", COUNTS)
def test_a_log_that_was_written_to_the_terminal_is_no_reason_to_fail_when_that_hangs_up(run, count):
    pty = pytest.importorskip("pty", reason="this platform has no pseudo-terminals")
    master, slave = pty.openpty()
    try:
        server = run(
            "echo.server",
            "0",
            "--workers",
            count,
            python_options=("-c", OWN_TERMINAL),
            start_new_session=True,
            **{name: slave for name in ("stdin", "stdout", "stderr")},
        )
        os.close(slave)
        screen = b""
        while screen.count(b"is process" if count != "1" else b"listening") < int(count):
            screen += os.read(master, 4096)
    finally:
        os.close(master)
    assert server.popen.wait(DEADLINE * 2) == 0


# Ctrl-C while Python imports a command.

INTERRUPT = """
import os, signal, sys

class Finder:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
"""
"""A ``sitecustomize`` that sends SIGINT when that module is about to be imported."""


def interrupted(tmp_path, module, *command):
    """Run the command with ``INTERRUPT``; return its exit code and what it printed."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT.format(module=module))
    path = os.pathsep.join([str(tmp_path), ROOT])
    done = subprocess.run(
        [sys.executable, *command],
        env=dict(os.environ, PYTHONPATH=path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=DEADLINE,
    )
    return done.returncode, done.stdout.decode()


@on_posix
@pytest.mark.parametrize(
    "program, module",
    [
        ("echo.server", "socketserver"),
        ("echo.server", "echo.cli.server.command"),
        ("echo.client", "ssl"),
        ("echo.client", "echo.measure"),
    ],
)
def test_ctrl_c_while_a_command_is_imported_ends_it_without_a_word(tmp_path, program, module):
    assert interrupted(tmp_path, module, "-m", program, "--version") == (130, "")


@on_posix
@pytest.mark.parametrize("name, module", [("echo.client", "socketserver"), ("echo.server", "argparse")])
def test_ctrl_c_while_an_installed_command_is_imported_ends_it_without_a_word(tmp_path, name, module):
    script = tmp_path / "command"
    script.write_text(
        f"import sys\nfrom {name}.__main__ import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    assert interrupted(tmp_path, module, str(script), "--version") == (130, "")


@on_posix
def test_ctrl_c_in_a_program_that_imports_the_library_is_pythons_own(tmp_path):
    (tmp_path / "program.py").write_text("try:\n    import echo\nexcept KeyboardInterrupt:\n    print('interrupted')\n")
    assert interrupted(tmp_path, "socketserver", "-m", "program") == (0, "interrupted\n")
    again = "import echo, signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert interrupted(tmp_path, "none", "-c", again) == (0, "True\n")


@on_posix
def test_ctrl_c_in_a_process_that_an_installed_command_starts_is_pythons_own(tmp_path):
    """Row 80: the process imports the script again; Ctrl-C ended it at once, whatever its code did at its end."""
    script = tmp_path / "command.py"
    script.write_text(
        "import multiprocessing, signal\n"
        "from echo.server.__main__ import main\n"
        "def show():\n"
        "    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, flush=True)\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=show)\n"
        "    process.start()\n"
        "    process.join()\n"
    )
    assert interrupted(tmp_path, "none", str(script)) == (0, "True\n")


def test_a_program_may_import_a_command_in_any_thread_and_have_any_variables():
    program = """\
import signal, threading

class Array:
    def __eq__(self, other):
        raise ValueError("not a single truth")

def run():
    name = mod_name = Array()
    from echo.client.__main__ import main
    main(["--version"])

thread = threading.Thread(target=run)
thread.start()
thread.join()
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=DEADLINE
    )
    assert done.stderr == b"" and done.stdout.splitlines()[1:] == [b"True"]


@on_posix
def test_ctrl_c_is_ignored_while_a_command_is_imported_if_it_was_ignored_before(tmp_path):
    starter = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "os.execv(sys.executable, [sys.executable, '-m', 'echo.client', '--version'])"
    )
    code, out = interrupted(tmp_path, "echo.framing", "-c", starter)
    assert code == 0 and out.startswith("echo.client ")


@on_posix
def test_ctrl_c_before_a_client_has_connected_ends_it_with_code_130(monkeypatch):
    def parse(self, argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("echo.cli.arguments.ArgumentParser.parse_complete", parse)
    assert call(client_main) == (130, "", "")
