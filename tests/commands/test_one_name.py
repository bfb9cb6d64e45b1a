"""Both commands under one name: ``python -m echo server``, and ``echo.pyz``, the package in one file."""

import os
import re
import signal
import sys
import zipfile

import pytest

import echo
import pyz
from echo import __main__ as entrance
from support import DEADLINE, ROOT, read_exactly
from support.commands import call

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def echo_command(*arguments, started="/somewhere/echo/__main__.py"):
    """Call the main function of ``python -m echo`` in this process; return its exit code and its output."""
    before = sys.argv
    sys.argv = [started, *arguments]
    try:
        return call(lambda _: entrance.main())
    finally:
        sys.argv = before


def test_without_a_command_it_prints_both_and_the_code_is_2():
    code, out, err = echo_command()
    assert (code, out) == (2, "")
    assert err.startswith("usage: python3 -m echo server [option]...\n       python3 -m echo client ")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_goes_to_standard_output_with_code_0(option):
    assert echo_command(option) == (0, echo_command().err, "")


def test_the_version_is_that_of_the_package():
    assert echo_command("--version") == (0, f"echo {echo.__version__}\n", "")


@pytest.mark.parametrize("word", ["serve", "--ping", "-m", "127.0.0.1"])
def test_another_word_is_a_usage_error(word):
    expected = f"echo: invalid command '{word}': expected server or client; see --help\n"
    assert echo_command(word) == (2, "", expected)


def test_one_file_calls_itself_by_its_name():
    assert "\n       python3 echo.pyz client " in echo_command("--help", started="/tmp/echo.pyz").out
    assert echo_command("--version", started="/tmp/echo.pyz").out == f"echo.pyz {echo.__version__}\n"


def test_it_runs_the_client_with_the_name_that_was_typed(run):
    client = run("echo", "client", "127.0.0.1:1", "-m", "hello")
    assert client.finish() == (1, b"")
    assert client.log == (
        "echo client: nothing listens on 127.0.0.1:1; start a server there: python3 -m echo server 1\n"
    )


@posix
def test_it_runs_the_server_until_a_signal(run):
    server = run("echo", "server", "0")
    server.read_log_until(r"listening on \S+:\d+")
    assert server.terminate(signal.SIGINT) == 0


def test_the_folder_can_be_run_like_a_module(run, tmp_path):
    for folder in (os.path.join(ROOT, "echo"), os.path.join(ROOT, "echo", "")):
        version = run(
            "client", "--version", program=[sys.executable, folder], cwd=str(tmp_path), env={"PYTHONPATH": None}
        )
        assert version.finish() == (0, f"echo client {echo.__version__}\n".encode()), version.log


# One file.


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("carried") / "echo.pyz"
    pyz.build(str(path))
    return path


@pytest.fixture
def carried(archive, run, tmp_path):
    """``carried("client", ...)``: run the file's command in a folder without this project."""

    def start(*arguments):
        options = {"cwd": str(tmp_path), "env": {"PYTHONPATH": None}}
        return run(str(archive), *arguments, program=[sys.executable], **options)

    return start


def test_one_file_holds_the_package_and_its_licence_and_is_the_same_each_time(archive, tmp_path):
    pyz.build(str(tmp_path / "again.pyz"))
    assert (tmp_path / "again.pyz").read_bytes() == archive.read_bytes()
    assert archive.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    assert os.access(str(archive), os.X_OK) or os.name != "posix"
    with zipfile.ZipFile(str(archive)) as opened:
        names = opened.namelist()
        assert opened.testzip() is None
    assert {"LICENSE", "__main__.py", "echo/__main__.py", "echo/py.typed", "echo/cli/server/command.py"} <= set(names)
    folders = {os.path.dirname(name).split("/")[0] for name in names}
    assert folders == {"", "echo"} and not [name for name in names if name.endswith(".pyc")]


HANDLER = """
import echo

class Upper(echo.MessageRequestHandler):
    def message_received(self, message):
        self.send(message.upper())
"""


def port_of(server):
    return server.read_log_until(r"listening on \S+:(\d+)").group(1)


@posix
@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers need fork()")
def test_one_file_serves_with_workers_and_a_handler_from_the_current_folder(carried, dial, tmp_path):
    (tmp_path / "shout.py").write_text(HANDLER)
    server = carried("server", "0", "--handler", "shout:Upper", "--workers", "2")
    client = dial(("127.0.0.1", int(port_of(server))))
    client.sendall(b"hello\n")
    assert read_exactly(client, 6) == b"HELLO\n"
    client.close()
    assert server.terminate() == 0
    assert "Traceback" not in server.log


def test_one_file_is_a_client_too(carried, serve):
    address = serve().server_address
    client = carried("client", f"127.0.0.1:{address[1]}", "--ping", "-c", "2", "-i", "0")
    code, out = client.finish()
    assert (code, client.log) == (0, "")
    assert b"2 transmitted, 2 received" in out


@pytest.mark.slow
def test_one_file_puts_a_load_on_a_server_with_processes_of_its_own(carried, serve):
    address = serve().server_address
    client = carried("client", f"127.0.0.1:{address[1]}", "--bench", "-P", "2", "-d", "1s")
    code, out = client.finish()
    assert (code, client.log) == (0, "")
    assert re.search(rb"^lost +0$", out, re.MULTILINE), out


@posix
@pytest.mark.slow
@pytest.mark.parametrize("age", ["oldest", "newest"])
def test_one_file_runs_under_the_oldest_and_the_newest_python_here(archive, run, tmp_path, age):
    import matrix

    found = list(matrix.find_pythons(matrix.candidates()).values())
    python = found[0 if age == "oldest" else -1][0]
    options = {"cwd": str(tmp_path), "env": {"PYTHONPATH": None}, "program": [python]}
    server = run(str(archive), "server", "0", "--workers", "2", **options)
    port = port_of(server)
    for arguments in (["-m", "hello"], ["--ping", "-c", "1"], ["--bench", "-P", "2", "-d", "1s"]):
        client = run(str(archive), "client", f"127.0.0.1:{port}", *arguments, **options)
        assert client.finish(timeout=DEADLINE)[0] == 0, client.log
    assert server.terminate() == 0, server.log
