"""Common tools: ``nc``, ``telnet`` and ``socat``, with our server and with our client."""

import contextlib
import os
import re
import select
import subprocess

import pytest

import echo
from support import DEADLINE, Recorder

needs_nc = pytest.mark.needs_programs("nc")
needs_telnet = pytest.mark.needs_programs("telnet")
needs_socat = pytest.mark.needs_programs("socat")


@pytest.fixture
def tool():
    """``tool(*command)``: a running program with pipes, killed after the test."""
    processes = []

    def start(*command, **options):
        for stream in ("stdin", "stdout", "stderr"):
            options.setdefault(stream, subprocess.PIPE)
        processes.append(subprocess.Popen([str(part) for part in command], **options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class Raw(echo.EchoRequestHandler):
    framing = echo.RawFraming()


class Counting(echo.EchoRequestHandler):
    """Keeps how many bytes its one session sent."""

    def connection_made(self):
        type(self).sent = []
        super().connection_made()

    def connection_lost(self, reason):
        self.sent.append(self.connection.bytes_out)
        super().connection_lost(reason)


class Length(echo.EchoRequestHandler):
    framing = echo.LengthFraming()


def port_of(server):
    return server.server_address[1]


def until(process, end):
    """Read the standard output of ``process`` until it ends with ``end``; return it."""
    data = b""
    while not data.endswith(end):
        assert select.select([process.stdout], [], [], DEADLINE)[0], f"no {end!r} in {data!r}"
        more = os.read(process.stdout.fileno(), 65536)
        assert more, f"no {end!r} in {data!r}"
        data += more
    return data


# nc: -N shuts the connection down for sending at the end of the input (OpenBSD's netcat).


@pytest.fixture
def nc(tool):
    usage = subprocess.run(
        ["nc", "-h"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE, check=False
    )
    if b"-N" not in usage.stdout:
        pytest.skip("this nc has no -N; OpenBSD's has it")
    return lambda server, *options: tool("nc", *options, "-N", "127.0.0.1", port_of(server))


@needs_nc
@pytest.mark.parametrize("data", [b"a\nb", b"hello", b"a\nb\n", b"\n", b"\r\n\xff\x00\r", b""])
def test_nc_gets_back_what_it_sends_with_and_without_a_last_line_feed(serve, nc, data):
    process = nc(serve())
    assert process.communicate(data, timeout=DEADLINE) == (data, b"")
    assert process.returncode == 0


@needs_nc
def test_nc_gets_back_a_megabyte_of_lines(serve, nc):
    data = b"0123456789abcde\n" * 65536
    assert nc(serve()).communicate(data, timeout=DEADLINE)[0] == data


@needs_nc
def test_nc_gets_every_reply_before_exit_whatever_it_sends_after(serve, nc):
    lines = b"".join(b"line %d\n" % number for number in range(20_000))
    process = nc(serve())
    assert process.communicate(lines + b"exit\n" + b"junk\n" * 50_000, timeout=DEADLINE)[0] == lines


@needs_nc
@pytest.mark.parametrize(
    "data", [b"a\nb", b"\xff\x00" * 100_000, b"exit or not"], ids=["text", "binary", "exit or not"]
)
def test_nc_under_raw_framing_gets_back_what_it_sends(serve, nc, data):
    handler = Recorder.of(Raw)
    process = nc(serve(handler))
    assert process.communicate(data, timeout=DEADLINE) == (data, b"")
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["eof"]


@needs_nc
def test_nc_under_raw_framing_ends_the_session_with_a_bare_exit(serve, nc):
    handler = Recorder.of(Raw)
    process = nc(serve(handler))
    process.stdin.write(b"hello")
    process.stdin.flush()
    until(process, b"hello")
    process.stdin.write(b"exit")
    process.stdin.flush()
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["exit"]
    assert process.communicate(timeout=DEADLINE)[0] == b""


@needs_nc
def test_nc_under_length_framing_carries_the_prefixes(serve, nc):
    data = b"\x00\x00\x00\x03a\nb" + b"\x00\x00\x00\x00" + b"\x00\x00\x00\x04EXIT" + b"\x00\x00\x00\x01z"
    assert nc(serve(Length)).communicate(data, timeout=DEADLINE)[0] == data[:11]


@needs_nc
def test_our_client_talks_to_a_listening_nc(tool, run):
    process = tool("nc", "-v", "-n", "-l", "127.0.0.1", "0")
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([process.stderr], [], [], DEADLINE)[0], line
        more = os.read(process.stderr.fileno(), 65536)
        if not more:
            pytest.skip(f"this nc cannot listen on any free port: {line!r}")
        line += more
    port = re.search(rb"Listening on \S+ (\d+)", line)
    if port is None or port.group(1) == b"0":
        pytest.skip(f"this nc does not print its port: {line!r}")
    client = run("echo.client", "127.0.0.1", port.group(1).decode())
    client.popen.stdin.write(b"from the client\n")
    client.popen.stdin.flush()
    assert until(process, b"\n") == b"from the client\n"
    process.stdin.write(b"from the client\n")
    process.stdin.flush()
    assert client.popen.stdout.readline() == b"from the client\n"
    client.popen.stdin.close()
    process.stdin.close()
    assert client.popen.wait(DEADLINE) == 0
    assert client.popen.stderr.read() == b""


# telnet: a terminal's lines, each with CR LF at its end.


@needs_telnet
def test_a_telnet_session_echoes_each_line_with_its_cr_until_exit(serve, tool):
    pty = pytest.importorskip("pty", reason="this platform has no pseudo-terminals")
    handler = Recorder.of(Counting)
    server = serve(handler)
    master, slave = pty.openpty()
    try:
        process = tool("telnet", "127.0.0.1", port_of(server), stdin=slave, stdout=slave, stderr=slave)
    finally:
        os.close(slave)
    screen = b""

    def read_until(pattern):
        nonlocal screen
        while not re.search(pattern, screen):
            assert select.select([master], [], [], DEADLINE)[0], screen
            try:
                screen += os.read(master, 65536)
            except OSError:
                break  # its end
        assert re.search(pattern, screen), screen

    try:
        read_until(rb"Escape character is[^\n]*\n")
        for line in (b"hello", b"two words"):
            os.write(master, line + b"\n")
            read_until(line + rb"\r\n[^a-z]*" + line + rb"\r")  # typed, then echoed
        os.write(master, b"exit\n")
        read_until(rb"Connection closed by foreign host")
        process.wait(DEADLINE)
    finally:
        os.close(master)
    assert handler.ended.wait(DEADLINE)
    # A CR before each line's end is what telnet sends, so each is in the message, and in the echo.
    assert handler.events == ["made", b"hello\r", b"two words\r", b"exit\r", "lost"]
    assert handler.sent == [len(b"hello\r\ntwo words\r\n")]
    assert handler.reasons == ["exit"]


@needs_telnet
def test_telnet_fed_from_a_pipe_ends_with_exit_too(serve, tool):
    handler = Recorder.of(Counting)
    process = tool("telnet", "127.0.0.1", port_of(serve(handler)))
    until(process, b".\n")  # Escape character is '^]'.
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    reply = until(process, b"\n")
    process.stdin.write(b"exit\n")
    process.stdin.flush()
    process.wait(DEADLINE)
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["exit"]
    assert handler.events == ["made", b"hello\r", b"exit\r", "lost"]
    assert handler.sent == [len(b"hello\r\n")]
    assert reply == b"hello\n"  # telnet's own behaviour: on a pipe it shows the two as one


# socat.


@needs_socat
def test_socat_sends_and_gets_back(serve, tool):
    data = bytes(byte for byte in range(256)) * 4000
    process = tool("socat", "-t", DEADLINE, "-", f"TCP4:127.0.0.1:{port_of(serve())}")
    assert process.communicate(data, timeout=DEADLINE) == (data, b"")
    assert process.returncode == 0


@needs_socat
def test_socat_sees_the_end_that_exit_brings(serve, tool):
    handler = Recorder.of(echo.EchoRequestHandler)
    process = tool("socat", "-t", DEADLINE, "-", f"TCP4:127.0.0.1:{port_of(serve(handler))}")
    process.stdin.write(b"one\nEXIT\r\n")
    process.stdin.flush()
    assert until(process, b"one\n") == b"one\n"
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["exit"]
    assert process.communicate(timeout=DEADLINE) == (b"", b"")


def socat_listens(tool, target, *options):
    """A socat that listens on a free port and hands one connection to ``target``; return the port."""
    process = tool("socat", "-d", "-d", *options, "TCP4-LISTEN:0,bind=127.0.0.1", target)
    log = b""
    while True:
        found = re.search(rb"listening on [^\n]*127\.0\.0\.1:(\d+)\n", log)
        if found:
            return found.group(1).decode()
        assert select.select([process.stderr], [], [], DEADLINE)[0], log
        more = os.read(process.stderr.fileno(), 65536)
        assert more, log
        log += more


def socat_that_echoes(tool, *options):
    """An echo service made of socat and ``cat``; return its port."""
    return socat_listens(tool, "EXEC:cat", *options)


@needs_socat
@pytest.mark.parametrize("framing", ["line", "length", "raw"])
def test_our_pipe_goes_through_socat(tool, run, framing):
    data = b"0123456789abcdefghijklmnopqrstuvwxyz\n" * 30_000 + b"the last line"
    process = run("echo.client", "127.0.0.1", socat_that_echoes(tool, "-t", DEADLINE), "--framing", framing)
    assert process.finish(data) == (0, data)
    assert process.log == ""


@needs_socat
def test_our_messages_go_to_socat(tool, run):
    process = run("echo.client", "127.0.0.1", socat_that_echoes(tool), "-m", "one", "-m", "", "-m", "exit")
    assert process.finish() == (0, b"one\n\nexit\n")  # this service does not know the word
    assert process.log == ""


@needs_socat
def test_our_session_is_held_with_socat(tool, run):
    pytest.importorskip("pty", reason="this platform has no pseudo-terminals")
    from support.terminal import CTRL_D, Terminal

    user = Terminal(run, "echo.client", "127.0.0.1", socat_that_echoes(tool))
    try:
        user.until(rb"> ")
        for line in (b"hello", b"exit"):  # this service does not know the word
            user.type(line + b"\r")
            user.until(line + rb"\r\n" + line + rb"\r\n> ")
        user.type(CTRL_D)
        assert user.leave() == 0
        assert user.screen.endswith(b"2 messages sent, 2 received\r\n")
    finally:
        user.process.kill()
        os.close(user.master)


@needs_socat
def test_our_client_reaches_our_server_through_a_socat_relay(serve, tool, run):
    handler = Recorder.of(echo.EchoRequestHandler)
    server = serve(handler)
    process = run("echo.client", "127.0.0.1", socat_listens(tool, f"TCP4:127.0.0.1:{port_of(server)}", "-t", DEADLINE))
    data = b"through the relay\n" * 20_000
    assert process.finish(data + b"last") == (0, data + b"last")
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["eof"]
