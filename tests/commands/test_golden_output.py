"""The output of both commands, compared with the files in ``golden/``, so that each change for users is seen.

``ECHO_UPDATE_GOLDEN=1`` writes the files again; then read their diff. Text that differs from run to run (times, ports,
process numbers) is masked.
"""

import json
import os
import re
import signal
import socket

import pytest

import echo
from echo.cli.client.command import main as client_main
from echo.cli.server.command import main as server_main
from support import DEADLINE, read_all, reset

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")


def same_as(name, text):
    """Whether ``golden/name`` holds this text."""
    path = os.path.join(FOLDER, name)
    if os.environ.get("ECHO_UPDATE_GOLDEN") == "1":
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    with open(path, encoding="utf-8") as file:
        assert text == file.read()
    return True


@pytest.mark.parametrize("name, main", [("server", server_main), ("client", client_main)])
def test_help_is_as_it_was(name, main, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    captured = capsys.readouterr()
    assert (ended.value.code, captured.err) == (0, "")
    assert max(map(len, captured.out.splitlines())) <= 80
    assert same_as(f"help-{name}.txt", captured.out)


# Wrong command lines.

SERVER_ERRORS = [
    ["port"],
    ["70000"],
    ["--framing", "xml"],
    ["--max-message", "0"],
    ["-m", "0"],
    ["-i", "soon"],
    ["--allow", "192.0.2.0/33"],
    ["--allow", "@no-such-file"],
    ["--deny", "somewhere"],
    ["--unix", "path", "--bind", "::1"],
    ["--unix-mode", "999"],
    ["--unix-mode", "660"],
    ["--tls-cert", "no-such-file"],
    ["--tls-key", "no-such-file"],
    ["--proxy-allow-from", "192.0.2.1"],
    ["--proxy-protocol", "--handshake-timeout", "1s"],
    ["--handler", "json"],
    ["--handler", "no_such_module:Handler"],
    ["--handler", "json:Nothing"],
    ["--mixin", "json:JSONDecoder"],
    ["--workers", "none"],
    ["--cpu-affinity", "two"],
    ["--log-level", "loud"],
    ["--log-format", "xml"],
    ["--no-such-option"],
]

CLIENT_ERRORS = [
    ["host", "port"],
    ["-w", "soon"],
    ["--framing", "xml"],
    ["--ping", "--bench"],
    ["--ping", "-m", "hello"],
    ["--ping", "-P", "2"],
    ["--bench", "-c", "2"],
    ["--ping", "-s", "19"],
    ["--ping", "-c", "0"],
    ["--bench", "--depth", "0"],
    ["--cacert", "no-such-file"],
    ["--tls", "--cacert", "no-such-file"],
    ["--tls", "--key", "no-such-file"],
    ["--unix", "path", "host"],
    ["-J"],
    ["--no-such-option"],
]


@pytest.mark.parametrize(
    "name, main, lines", [("server", server_main, SERVER_ERRORS), ("client", client_main, CLIENT_ERRORS)]
)
def test_errors_are_as_they_were(name, main, lines, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for variable in [variable for variable in os.environ if variable.startswith("ECHO_")]:
        if variable != "ECHO_UPDATE_GOLDEN":
            monkeypatch.delenv(variable)
    told = []
    for arguments in lines:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = capsys.readouterr()
        assert captured.out == ""
        # Python 3.9 to 3.12 have quoted choices differently.
        error = re.sub(r"\(choose from .*\)", "(choose from ...)", captured.err)
        told.append(f"$ {name} {' '.join(arguments)}\n{error}code {ended.value.code}\n")
    assert same_as(f"errors-{name}.txt", "\n".join(told))


# The log.


def sessions(server):
    """One of each kind of session, one after the other."""

    def connected():
        return socket.create_connection(server.address, DEADLINE)

    with connected() as sock:
        sock.sendall(b"hello\n\x1b[31m\xff\nexit\n")
        read_all(sock)
    yield "exit"
    with connected() as sock:
        sock.sendall(b"no line feed")
        sock.shutdown(socket.SHUT_WR)
        read_all(sock)
    yield "eof"
    with connected() as sock:
        sock.sendall(b"x" * 101)
        read_all(sock)
    yield "too-long"
    sock = connected()
    sock.sendall(b"hello\n")
    sock.recv(6)
    reset(sock)
    yield "reset"


def wait_until_counted(server):
    """Wait until the server has no session: a session is counted after its last line in the log."""
    active = True
    while active:
        server.popen.send_signal(signal.SIGUSR1)
        line = server.read_log_until(r".*statistics.*\n")[0]
        server.log = server.log.replace(line, "")
        active = re.search(r'active"?:? 0\b', line) is None


def logged(server_command, *options):
    """The masked log of a server that has had each kind of session, from its start to its end."""
    server = server_command("--max-message", "100", "--log-level", "debug", *options)
    for reason in sessions(server):
        server.read_log_until(f"disconnected: {reason}")
        wait_until_counted(server)
    server.popen.send_signal(signal.SIGUSR1)
    server.read_log_until("statistics")
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until("read again")
    with echo.connect(server.address, timeout=DEADLINE) as client:
        client.echo(b"hello")
        server.popen.send_signal(signal.SIGTERM)
        assert client.connection.socket.recv(1) == b""
    assert server.finish()[0] == 0
    return re.sub(r"\[Errno \d+\]", "[Errno N]", server.log)


@posix
def test_the_text_log_is_as_it_was(server_command):
    text = re.sub(r"(?m)^\d{4}-\S+ \S+ ", "TIME ", logged(server_command))
    text = re.sub(r"echo \S+ \(process \d+; \S+ stops it\)", "echo VERSION (process N; SIGNAL stops it)", text)
    text = re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", text)
    assert same_as("log.txt", re.sub(r"\d+\.\d+ s", "N s", text))


@posix
def test_the_json_log_has_the_fields_it_had(server_command):
    fields = {}
    for line in logged(server_command, "--log-format", "json").splitlines():
        record = json.loads(line)
        key = record["event"] + (f" {record['reason']}" if "reason" in record else "")
        fields.setdefault(key, []).append(
            " ".join(sorted(f"{name}:{type(value).__name__}" for name, value in record.items()))
        )
    assert same_as(
        "log-json-fields.txt",
        "".join(f"{key}: {' | '.join(sorted(set(each)))}\n" for key, each in sorted(fields.items())),
    )
