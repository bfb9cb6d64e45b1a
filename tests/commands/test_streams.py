"""The standard streams of both commands: pipes, files that are full, closed descriptors, non-blocking ones, signals."""

import contextlib
import io
import os
import signal
import sys
import threading

import pytest

try:
    import termios
    import tty
except ImportError:  # Windows
    pass

import echo
from echo.cli import streams
from support import DEADLINE, Recorder, eventually
from support.client import address_options, call_client
from support.measuring import one_complaint
from support.processes import processes_of

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and descriptors")

dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")

DATA = b"".join(b"%09d\n" % number for number in range(40_000))
"""Bytes; more than a pipe holds."""


class SlowReader(threading.Thread):
    """Reads a pipe to its end, so slowly that it is full most of the time. ``sink``: the end to write to."""

    def __init__(self):
        super().__init__(name="reader")
        self._source, self.sink = os.pipe()
        self._parts = []
        self.start()

    def run(self):
        pause = threading.Event()
        with open(self._source, "rb", buffering=0) as source:
            for part in iter(lambda: source.read(8192), b""):
                self._parts.append(part)
                pause.wait(0.001)

    def result(self):
        """All bytes, when the other end is closed."""
        self.join(DEADLINE)
        return b"".join(self._parts)


class Stingy(io.FileIO):
    """Writes at most 1000 bytes at a time, like a disk that is nearly full."""

    def write(self, data):
        return super().write(memoryview(data)[:1000])


def unbuffered(raw):
    """Standard output of ``python -u``."""
    return io.TextIOWrapper(raw, encoding="utf-8", write_through=True)


def test_an_output_that_takes_only_a_part_at_a_time_gets_all(serve, tmp_path):
    with unbuffered(Stingy(tmp_path / "out", "w")) as out:
        done = call_client(*address_options(serve()), data=DATA, stdout=out)
    assert (done.code, done.log) == (0, "")
    assert (tmp_path / "out").read_bytes() == DATA


def test_long_lines_of_json_are_whole_too(serve, tmp_path):
    with unbuffered(Stingy(tmp_path / "out", "w")) as out:
        done = call_client(*address_options(serve()), "-J", "-m", "x" * 50_000, stdout=out)
    assert (done.code, done.log) == (0, "")
    reply, summary = (tmp_path / "out").read_text().splitlines()
    assert reply.count("x") == 2 * 50_000 and summary.endswith("}")


@posix
def test_signals_during_a_write_lose_nothing(serve):
    reader = SlowReader()
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        with unbuffered(io.FileIO(reader.sink, "w")) as out:
            done = call_client(*address_options(serve()), data=DATA, stdout=out)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (done.code, done.log) == (0, "")
    assert reader.result() == DATA


@posix
@pytest.mark.parametrize("buffering", [-1, 1], ids=["pipe", "lines"])
def test_a_nonblocking_output_is_waited_for(serve, buffering):
    reader = SlowReader()
    os.set_blocking(reader.sink, False)
    with open(reader.sink, "w", buffering=buffering) as out:
        done = call_client(*address_options(serve()), data=DATA, stdout=out)
    assert (done.code, done.log) == (0, "")
    assert reader.result() == DATA


@posix
def test_a_nonblocking_input_is_waited_for(serve):
    received = threading.Event()

    class Handler(echo.EchoRequestHandler):
        def message_received(self, message):
            super().message_received(message)
            received.set()

    source, sink = os.pipe()
    os.set_blocking(source, False)

    def write():
        os.write(sink, b"one\n")
        received.wait(DEADLINE)
        os.write(sink, b"two\n")
        os.close(sink)

    writer = threading.Thread(target=write)
    writer.start()
    with open(source) as stdin:
        assert call_client(*address_options(serve(Handler)), stdin=stdin) == (0, b"one\ntwo\n", "")
    writer.join(DEADLINE)


@pytest.fixture
def typing():
    """A terminal without echo: the end to type at, and its program's standard input."""
    keys, terminal = os.openpty()
    settings = termios.tcgetattr(terminal)
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, settings)
    with open(terminal) as stdin:
        yield keys, stdin
    os.close(keys)


@posix
@pytest.mark.parametrize("end", [b"\n", b"\x04"], ids=["line feed", "Ctrl-D"])
def test_a_line_that_the_terminal_has_cut_is_reported_and_not_sent(serve, typing, end):
    keys, stdin = typing
    os.write(keys, b"one\n")
    os.write(keys, b"x" * 3000)
    os.write(keys, b"y" * 3000 + end + b"\x04")  # and the end of the input
    done = call_client(*address_options(serve()), stdin=stdin)
    why = f"the terminal has cut a line at {streams.LONGEST_TYPED} bytes; give longer lines in a file"
    assert done == (1, b"one\n", f"echo.client: cannot read standard input: {why}\n")


@posix
def test_what_a_terminal_returns_whole_is_sent(serve, typing):
    keys, stdin = typing
    line = b"x" * (streams.LONGEST_TYPED - 1) + b"\n"
    os.write(keys, line[:2000])
    os.write(keys, line[2000:])
    assert streams.read(stdin.fileno(), 65536) == line
    tty.setraw(stdin)  # a program that needs each byte loses none
    os.write(keys, line)
    got = b""
    while len(got) < len(line):
        got += streams.read(stdin.fileno(), 65536)
    assert got == line


@posix
@dev_full
@pytest.mark.parametrize("module", ["echo.client", "echo.server"])
def test_a_usage_error_has_its_code_where_stderr_cannot_be_written(run, module):
    with open("/dev/full", "wb") as full:
        assert run(module, "--nonsense", stderr=full).finish() == (2, b"")


@posix
@dev_full
def test_a_reply_is_printed_where_stderr_cannot_be_written(serve, run):
    with open("/dev/full", "wb") as full:
        process = run("echo.client", *address_options(serve()), "-v", "-m", "hi", stderr=full)
        assert process.finish() == (0, b"hi\n")


@dev_full
@pytest.mark.parametrize(
    "options",
    [["-m", "hi"], ["-m", "hi", "-J"], ["-m", "hi", "-q"], ["--ping", "-c", "1"], ["--ping", "-J"], ["--help"]],
    ids=" ".join,
)
def test_output_that_cannot_be_written_is_one_line_in_each_mode(serve, options):
    handler = Recorder.of(echo.EchoRequestHandler)
    with open("/dev/full", "w") as full:
        done = call_client(*address_options(serve(handler)), *options, stdout=full)
    assert done.code == 1
    assert one_complaint(done, "cannot write standard output: No space left on device")


def test_help_that_nobody_reads_ends_silently():
    source, sink = os.pipe()
    os.close(source)
    with open(sink, "w") as out:
        done = call_client("--help", stdout=out)
    assert (done.code, done.log) == (1, "")


class Failing(io.FileIO):
    def write(self, data):
        raise OSError(28, "No space left on device")


def test_a_stream_that_failed_has_nothing_left_to_write(tmp_path):
    stream = io.TextIOWrapper(io.BufferedWriter(Failing(tmp_path / "out", "w")))
    out = streams.whole(stream)
    with pytest.raises(streams.CannotWrite, match="cannot write standard output: No space left on device"):
        print("text", file=out, flush=True)
    out.flush()
    stream.close()


def test_best_effort_drops_what_cannot_be_written(tmp_path):
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    failing = io.TextIOWrapper(io.BufferedWriter(Failing(tmp_path / "out", "w")))
    for stream in (closed, failing, None):
        out = streams.best_effort(stream)
        print("text", file=out, flush=True)
        assert not (stream is not closed and out.isatty())
    failing.close()


def test_characters_that_the_output_does_not_have_are_escaped():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("naïve \udcff", file=streams.whole(stream), flush=True)
    assert stream.buffer.getvalue() == b"na\\xefve \\udcff\n"


def test_the_command_leaves_the_streams_of_its_caller_alone(serve):
    before = sys.stdout, sys.stderr
    with contextlib.suppress(SystemExit):
        call_client(*address_options(serve()), "--nonsense")
    assert (sys.stdout, sys.stderr) == before


CLOSED = """exec "$0" "$@" <&- >&- 2>&-"""
"""A shell script that starts its arguments as a command without standard descriptors."""


def standard_descriptors(pid):
    return [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)]


def is_inherited(pid, number):
    """Whether programs that the process starts have the descriptor, too."""
    with open(f"/proc/{pid}/fdinfo/{number}") as file:
        flags = dict(line.split(":", 1) for line in file)["flags"]
    return not int(flags, 8) & os.O_CLOEXEC


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_standard_descriptors_that_were_closed_are_not_taken_by_sockets(serve, run, tmp_path):
    waiting, answered = threading.Event(), threading.Event()

    class Handler(echo.EchoRequestHandler):
        def message_received(self, message):
            waiting.set()
            answered.wait(DEADLINE)
            super().message_received(message)

    program = ["sh", "-c", CLOSED.replace(">&- ", ""), sys.executable, "-m"]
    client = run("echo.client", *address_options(serve(Handler)), "-m", "hi", program=program)
    assert waiting.wait(DEADLINE)
    source, sink, errors = standard_descriptors(client.pid)
    answered.set()
    assert (source, sink.partition(":")[0], errors) == (os.devnull, "pipe", os.devnull)
    assert client.finish() == (0, b"hi\n")


RUN = "import echo, sys; sys.exit(echo.run(echo.EchoRequestHandler, sys.argv[-1]))"


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize(
    "how, options",
    [(["-m"], ["--unix"]), (["-m"], ["--workers", "2", "--unix"]), (["-c", RUN], [])],
    ids=["alone", "workers", "run"],
)
def test_a_server_without_standard_descriptors_serves_and_ends_with_code_0(run, tmp_path, how, options):
    path = str(tmp_path / "socket")
    server = run("echo.server", *options, path, program=["sh", "-c", CLOSED, sys.executable, *how])
    eventually(lambda: os.path.exists(path))
    with eventually(lambda: connected(path)) as client:
        assert client.echo(b"hi") == b"hi"
    for pid in (server.pid, *processes_of(server.pid)):
        assert standard_descriptors(pid) == [os.devnull] * 3
        assert all(is_inherited(pid, number) for number in range(3)), "programs that a handler starts lack it"
    assert server.terminate() == 0


BARE = "import os; os.devnull = {0!r}; from echo.cli.{1}.command import {2}; {2}()"
"""A program that starts a command as in a folder of ``chroot`` without devices."""


@pytest.mark.parametrize(
    "device, why", [("/nonexistent", "No such file or directory"), (f"{os.devnull}/null", "Not a directory")]
)
def test_a_system_without_the_null_device_is_no_traceback(run, device, why):
    """Row 46."""
    server = run("0", program=[sys.executable, "-c", BARE.format(device, "server", "run")])
    assert server.finish() == (1, b"")
    assert server.log == f"echo.server: cannot open {device}: {why}\n"
    program = ["sh", "-c", """exec "$0" "$@" <&-""", sys.executable, "-c", BARE.format(device, "client", "main")]
    client = run("--version", program=program)
    assert client.finish() == (0, f"echo.client {echo.__version__}\n".encode())


def connected(path):
    """A client, or None while nothing listens there."""
    with contextlib.suppress(ConnectionRefusedError):
        return echo.connect(path)
