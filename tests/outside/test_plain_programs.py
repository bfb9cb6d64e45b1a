"""The simplest socket programs against this package: no lines, no lengths, only the bytes that one ``recv`` returns."""

import os
import select
import subprocess
import sys

import pytest

import echo
from support import DEADLINE, Recorder, read_all, read_exactly

SERVER = """\
import socket

with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    print(listener.getsockname()[1], flush=True)
    connection, address = listener.accept()
    with connection:
        while True:
            data = connection.recv(1024)
            if not data or data.decode().lower() == "exit":
                break
            connection.sendall(data)
"""

CLIENT = """\
import socket
import sys

with socket.socket() as connection:
    connection.connect(("127.0.0.1", int(sys.argv[1])))
    while True:
        text = input()
        connection.sendall(text.encode())
        if text.lower() == "exit":
            break
        print(connection.recv(1024).decode(), flush=True)
"""


@pytest.fixture
def script():
    """``script(source, *arguments)``: a running ``python -c``, killed after the test."""
    processes = []

    def start(source, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", source, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ, PYTHONUTF8="1"),
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def plain_server(script):
    """The plain server, running; ``port`` is its port. It serves one client and ends."""
    process = script(SERVER)
    process.port = int(process.stdout.readline())
    return process


class Raw(echo.EchoRequestHandler):
    framing = echo.RawFraming()


def end_of(process):
    """Exit code and errors of a plain program that was not stopped."""
    return process.wait(DEADLINE), process.stderr.read()


# The plain client and our server.


def test_the_plain_client_talks_to_our_server(server_command, script):
    server = server_command("--framing", "raw")
    client = script(CLIENT, server.address[1])
    for text in ("hello", "two words", "naïve Ω", "Exit?", "hello"):
        client.stdin.write(f"{text}\n".encode())
        client.stdin.flush()
        assert client.stdout.readline() == f"{text}\n".encode()
    client.stdin.write(b"EXIT\n")
    client.stdin.flush()
    assert end_of(client) == (0, b"")
    server.read_log_until(r"\bexit\b")
    assert server.terminate() == 0


def test_the_plain_client_ends_its_session_with_exit_and_no_line_feed(serve, script):
    handler = Recorder.of(Raw)
    client = script(CLIENT, serve(handler).server_address[1])
    out, err = client.communicate(b"hello\nexit\n", timeout=DEADLINE)
    assert (out, err) == (b"hello\n", b"")
    assert handler.ended.wait(DEADLINE)
    assert handler.events == ["made", b"hello", b"exit", "lost"]
    assert handler.reasons == ["exit"]


def test_under_line_framing_the_plain_client_would_wait_for_ever(serve, dial):
    # The reason for --framing raw: the server answers a line only when its line feed has come.
    server, raw_server = serve(), serve(Raw)
    lines, raw = dial(server), dial(raw_server)
    lines.sendall(b"hello")
    raw.sendall(b"hello")
    assert read_exactly(raw, 5) == b"hello"
    assert select.select([lines], [], [], 0.1)[0] == []


# Our client and the plain server.


def test_our_messages_go_to_the_plain_server(plain_server, run):
    process = run("echo.client", "127.0.0.1", str(plain_server.port), "--framing", "raw", "-m", "hello", "-m", "naïve")
    assert process.finish() == (0, "hello\nnaïve\n".encode())
    assert process.log == ""
    assert end_of(plain_server) == (0, b"")


def test_messages_longer_than_its_buffer_come_back_whole_from_the_plain_server(plain_server, run):
    texts = [("0123456789" * size)[:size] for size in (1023, 1024, 1025, 5000, 60000)] + ["after"]
    options = [option for text in texts for option in ("-m", text)]
    process = run("echo.client", "127.0.0.1", str(plain_server.port), "--framing", "raw", *options)
    assert process.finish() == (0, "".join(f"{text}\n" for text in texts).encode())
    assert end_of(plain_server) == (0, b"")


def test_our_exit_ends_the_plain_server(plain_server, run):
    options = ("--framing", "raw", "-m", "hello", "-m", "Exit")
    process = run("echo.client", "127.0.0.1", str(plain_server.port), *options)
    assert process.finish() == (0, b"hello\n")
    assert process.log == ""
    assert end_of(plain_server) == (0, b"")


def test_our_pipe_goes_through_the_plain_server(plain_server, run):
    data = b"".join(b"line %d\n" % number for number in range(20_000))
    process = run("echo.client", "127.0.0.1", str(plain_server.port), "--framing", "raw")
    assert process.finish(data) == (0, data)
    assert process.log == ""
    assert end_of(plain_server) == (0, b"")


def test_an_exit_alone_in_our_pipe_ends_the_plain_server(plain_server, run):
    process = run("echo.client", "127.0.0.1", str(plain_server.port), "--framing", "raw")
    process.popen.stdin.write(b"hello")
    process.popen.stdin.flush()
    assert os.read(process.popen.stdout.fileno(), 100) == b"hello"
    process.popen.stdin.write(b"exit")
    process.popen.stdin.flush()
    assert process.popen.wait(DEADLINE) == 0  # although the input is still open
    assert process.finish() == (0, b"")
    assert process.log == ""
    assert end_of(plain_server) == (0, b"")


def test_the_library_talks_to_the_plain_server(plain_server):
    with echo.connect(("127.0.0.1", plain_server.port), framing=echo.RawFraming()) as client:
        for message in (b"hello", b"x" * 5000, b"exit?"):
            assert client.echo(message) == message
        client.send(b"exit")
        assert list(client) == []
    assert end_of(plain_server) == (0, b"")


def test_our_terminal_talks_to_the_plain_server(plain_server, run):
    pty = pytest.importorskip("pty", reason="this platform has no pseudo-terminals")
    master, slave = pty.openpty()
    try:
        arguments = ("echo.client", "127.0.0.1", str(plain_server.port), "--framing", "raw")
        process = run(*arguments, stdin=slave, stdout=slave, stderr=slave, env={"TERM": "dumb"})
    finally:
        os.close(slave)
    screen = b""

    def until(end):
        nonlocal screen
        while not screen.endswith(end):
            assert select.select([master], [], [], DEADLINE)[0], screen
            screen += os.read(master, 65536)

    try:
        until(b"\r\n> ")
        os.write(master, b"hello\r")
        until(b"> hello\r\nhello\r\n> ")
        os.write(master, b"exit\r")
        until(b"2 messages sent (1 exit), 1 received\r\n")
        assert process.popen.wait(DEADLINE) == 0
    finally:
        os.close(master)
    assert end_of(plain_server) == (0, b"")


# The bare sockets of it.


def test_each_send_is_one_message(serve, dial):
    handler = Recorder.of(Raw)
    sock = dial(serve(handler))
    for data in (b"no line feed", b"with\none", b"\xff\x00"):
        sock.sendall(data)
        assert read_exactly(sock, len(data)) == data
    sock.sendall(b"eXiT")
    assert read_all(sock) == b""
    assert handler.ended.wait(DEADLINE)
    assert handler.events == ["made", b"no line feed", b"with\none", b"\xff\x00", b"eXiT", "lost"]
    assert handler.reasons == ["exit"]
