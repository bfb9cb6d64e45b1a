"""``python -m echo.client`` with ``-m`` and in a pipe: its output, its error message, its exit code.

Most tests call the command's ``main()`` in this process. Those about broken pipes, signals and the interpreter's end
start a process.
"""

import collections
import contextlib
import errno
import hashlib
import itertools
import multiprocessing.resource_tracker
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest

import echo
from echo.cli import streams
from echo.cli.client import command
from echo.cli.client.pipe import CHUNK, Pipe, has_more
from echo.cli.server.command import main as server_main
from echo.connection import Connection
from echo.sockets import MAX_PATH, set_receive_timeout, unread
from support import DEADLINE, ROOT, Recorder, eventually, plain, read_all, read_exactly, reset
from support.client import UnixServer, address_options, call_client
from support.measuring import echo_of, events, one_complaint
from support.processes import wait_until_it_sleeps
from support.proxy_headers import PROXY, block, unix
from support.usage_errors import error_line

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and descriptors")

unix_sockets = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")

PERHAPS = "the server may be full, have another --framing, use TLS (--tls), or expect a PROXY header (--send-proxy)"

LEFT_BEHIND = "is an exit, which ends the session; what follows it was not sent"

MEASURE = """\
import resource, subprocess, sys
code = subprocess.call([sys.executable, "-m", *sys.argv[2:]])
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print("peak", peak, file=sys.stderr)
sys.exit(code)
"""
"""``python -c MEASURE -m MODULE ...`` runs the module in a child. This process is small, so the peak is the child's."""


def client(server, *options, **streams):
    """Run the command against this server in this process; return ``(code, out, log)``."""
    return call_client(*address_options(server), *options, **streams)


@pytest.fixture
def client_process(run):
    """``client_process(server, *options)``: a running ``python -m echo.client`` with the server's address."""

    def start(server, *options, python_options=(), **popen_options):
        arguments = ("echo.client", *address_options(server), "-w", f"{DEADLINE:g}s", *options)
        return run(*arguments, python_options=python_options, **popen_options)

    return start


@pytest.fixture
def nobody():
    """An address where nothing listens during the test."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()


def silent(sock):
    """Read to the end, and never reply."""
    read_all(sock)


def test_a_client_that_does_not_measure_does_not_load_the_parts_that_do():
    """They import ``multiprocessing``, which takes long."""
    loaded = "import sys, echo.cli.client.command; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", loaded], cwd=ROOT, timeout=DEADLINE, text=True).split()
    assert "echo.client" in modules
    assert not {"multiprocessing", "echo.measure.bench", "echo.measure.ping"} & set(modules)


# -m: message by message.


def test_the_reply_to_one_message_is_printed(serve):
    assert client(serve(), "-m", "hello") == (0, b"hello\n", "")


def test_each_message_has_its_reply_in_order(serve, client_process):
    handler = Recorder.of(echo.EchoRequestHandler)
    process = client_process(serve(handler), "-m", "one", "-m", "", "-m", "three words here")
    assert process.finish() == (0, b"one\n\nthree words here\n")
    assert process.log == ""
    assert handler.ended.wait(DEADLINE)
    assert handler.events == ["made", b"one", b"", b"three words here", "lost"]


@pytest.mark.parametrize("framing", echo.framing.FRAMINGS)
def test_messages_go_under_every_framing(serve, framing):
    server = serve(echo_of(framing))
    assert client(server, "--framing", framing, "-m", "one", "-m", "two") == (0, b"one\ntwo\n", "")


def test_exit_as_the_last_message_ends_the_session_without_an_error(serve):
    handler = Recorder.of(echo.EchoRequestHandler)
    assert client(serve(handler), "-m", "one", "-m", " EXIT ") == (0, b"one\n", "")
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["exit"]


@pytest.mark.parametrize("text", ["a=--", "--a=--", "ab--", "-", "--", "=--", "--color red=--"])
def test_a_message_may_have_dashes_and_an_equals_sign(serve, text):
    arguments = ["-m", text] if " " in text or not text.startswith("--") else [f"-m{text}"]
    assert client(serve(), *arguments) == (0, f"{text}\n".encode(), "")


def test_messages_after_exit_are_reported_as_missing(serve):
    done = client(serve(), "-m", "one", "-m", "exit", "-m", "two", "-m", "three")
    assert done[:2] == (1, b"one\n")
    assert one_complaint(done, "2 of 3 replies are missing; exit ends a session: send it last\n")
    done = client(serve(), "-m", "exit", "-m", "one")  # no byte comes, as from a server that refuses the client
    assert one_complaint(
        done, "1 of 1 replies are missing; exit ends a session: send it last; the server may refuse this client"
    )


def test_messages_after_the_servers_end_are_reported_as_missing(serve):
    class Once(echo.EchoRequestHandler):
        def message_received(self, message):
            self.send(message)
            self.close()

    done = client(serve(Once), "-m", "one", "-m", "two", "-m", "three")
    assert done[:2] == (1, b"one\n")
    assert one_complaint(done, "2 of 3 replies are missing")


def test_half_a_reply_is_reported_as_missing(serve):
    def talk(sock):
        read_exactly(sock, 4)
        sock.sendall(b"on")

    done = client(serve(plain(talk)), "-m", "one")
    assert done.code == 1
    assert one_complaint(done, "1 of 1 replies are missing")


@posix
def test_bytes_that_are_no_utf8_pass_untouched_from_the_command_line(serve, client_process):
    handler = Recorder.of(echo.EchoRequestHandler)
    process = client_process(serve(handler), "-m", b"\xff caf\xc3\xa9 \x80\r")
    assert process.finish() == (0, b"\xff caf\xc3\xa9 \x80\r\n")
    assert handler.events[1] == b"\xff caf\xc3\xa9 \x80\r"


def test_a_different_reply_is_shown_and_has_its_own_exit_code(serve):
    done = client(serve(Shout), "-m", "12ab", "-m", "34", "-m", "cd")
    assert done[:2] == (3, b"12AB\n34\nCD\n")
    assert one_complaint(done, "differs", "byte 2")


@unix_sockets
def test_no_reply_in_time_is_a_failure(serve):
    done = client(serve(plain(silent), cls=UnixServer), "-m", "one", "-w", "100ms")
    assert done[:2] == (1, b"")
    assert one_complaint(done, f"nothing arrived for 0.1 s; {PERHAPS}\n")


@pytest.mark.parametrize("options", [["-m", "one\ntwo"], ["-m", "ok", "-m", "x" * 11, "--max-message", "10"]])
def test_a_message_that_the_framing_cannot_carry_is_refused_before_connecting(nobody, options):
    done = client(nobody, *options)  # connecting would fail with another exit code
    assert done[:2] == (2, b"")
    assert one_complaint(done, "-m: ")


# -m with -J, -q and -v.


def messages_of(*texts):
    """The ``-m`` options for these messages."""
    return [option for text in texts for option in ("-m", text)]


def objects(out):
    """The JSON objects of the lines, without their times, after a check that all is printable ASCII."""
    assert re.fullmatch(rb"([ -~]+\n)*", out), out
    return events(out.decode())


def without_time(event):
    """The reply without its round-trip time, after a check that this is plausible."""
    assert 0 < event["rtt_us"] < DEADLINE * 1e6
    return {name: value for name, value in event.items() if name != "rtt_us"}


def reply(sent, received=None):
    received = sent if received is None else received
    return {"event": "reply", "sent": sent, "received": received, "matches": sent == received}


def summary(sent, received, different=0, exits=0, **more):
    figures = {"sent": sent, "received": received, "different": different, "missing": sent - received, "exits": exits}
    return {"event": "summary", **figures, **more}


class Shout(echo.MessageRequestHandler):
    """Not an echo: replies are in capitals."""

    def message_received(self, message):
        self.send(message.upper())


@pytest.mark.parametrize("framing", ["line", "length", "raw"])
def test_in_json_each_reply_is_an_object_and_the_summary_the_last(serve, framing):
    code, out, log = client(serve(echo_of(framing)), "--framing", framing, "-J", "-m", "one", "-m", "two words")
    assert (code, log) == (0, "")
    *replies, last = objects(out)
    assert [without_time(event) for event in replies] == [reply("one"), reply("two words")]
    assert last == summary(2, 2)


def test_an_empty_message_under_raw_framing_is_neither_sent_nor_answered(serve):
    arguments = ("--framing", "raw", "-J", "-v", *messages_of("", "one", ""))
    code, out, log = client(serve(echo_of("raw")), *arguments)
    assert code == 0
    assert log.count("nothing was sent") == 2
    one, last = objects(out)
    assert (without_time(one), last) == (reply("one"), summary(1, 1))


@posix
def test_any_bytes_are_text_in_json(serve):
    messages = [b"", b'"quoted\\"', b"\xff\x1b[31m\r", "naïve 猫".encode()]
    code, out, log = client(serve(), *messages_of(*messages), "--json")
    assert (code, log) == (0, "")
    texts = ["", r'"quoted\\"', r"\xff\x1b[31m\r", "naïve 猫"]
    assert [event["received"] for event in objects(out)[:-1]] == texts
    assert [event["sent"] for event in objects(out)[:-1]] == texts


def test_exit_is_not_counted_as_a_message_in_the_summary(serve):
    code, out, log = client(serve(), "-J", "-m", "one", "-m", "exit")
    assert (code, log) == (0, "")
    first, last = objects(out)
    assert (without_time(first), last) == (reply("one"), summary(1, 1, exits=1))


def test_in_json_a_reply_that_differs_says_so_and_the_exit_code_does(serve):
    done = client(serve(Shout), "-J", "-m", "12", "-m", "ab", "-m", "CD", "-m", "ef")
    assert done.code == 3
    assert one_complaint(done, "differs", "byte 0")
    *replies, last = objects(done.out)
    assert [without_time(event) for event in replies] == [
        reply("12"),
        reply("ab", "AB"),
        reply("CD"),
        reply("ef", "EF"),
    ]
    assert last == summary(4, 4, different=2)


def once(sock):
    """Send back one line and end the session."""
    sock.sendall(read_exactly(sock, 4))


def once_abruptly(sock):
    """Send back one line; when the next one has come, reset the connection."""
    sock.sendall(read_exactly(sock, 4))
    read_exactly(sock, 4)
    reset(sock)


def once_and_half(sock):
    """Send back one line, and half of the next."""
    sock.sendall(read_exactly(sock, 4))
    sock.sendall(read_exactly(sock, 4)[:2])


@pytest.mark.parametrize("talk", [once, once_abruptly, once_and_half], ids=lambda talk: talk.__name__)
def test_the_summary_comes_last_when_replies_are_missing_too(serve, talk):
    done = client(serve(plain(talk)), "-J", "-m", "one", "-m", "two", "-m", "ten")
    assert done.code == 1
    assert one_complaint(done)
    first, last = objects(done.out)
    assert (without_time(first), last) == (reply("one"), summary(2, 1, never_sent=1))


@unix_sockets
def test_the_summary_comes_last_when_no_reply_came_in_time(serve):
    done = client(serve(plain(silent), cls=UnixServer), "-J", "-w", "100ms", "-m", "one", "-m", "two")
    assert done.code == 1
    assert one_complaint(done, "nothing arrived for 0.1 s")
    assert objects(done.out) == [summary(1, 0, never_sent=1)]


KILLED = """\
import os, signal
import echo

class Killed(echo.EchoRequestHandler):
    def message_received(self, message):
        if message == b"two":
            os.kill(os.getpid(), signal.SIGKILL)
        super().message_received(message)
"""
"""A handler whose server is killed by the message "two", so that nothing listens there any more."""


@pytest.fixture
def killed_by_two(server_command, tmp_path):
    """A server process that the message "two" kills."""
    (tmp_path / "killed.py").write_text(KILLED)
    return server_command("--handler", "killed:Killed", cwd=str(tmp_path))


@posix
def test_the_summary_comes_last_when_the_server_is_killed_in_the_middle(killed_by_two):
    done = client(killed_by_two, "-J", "-w", "0", "-m", "one", "-m", "two", "-m", "ten")
    assert done.code == 1
    assert one_complaint(done, "2 of 3 replies are missing")
    first, last = objects(done.out)
    assert (without_time(first), last) == (reply("one"), summary(2, 1, never_sent=1))


@pytest.mark.parametrize("framing", ["line", "length"])
@pytest.mark.parametrize(
    "data, back", [(b"a\nbc", "4 bytes came back, as sent"), (b"exit", "0 bytes came back, as sent; exit does not")]
)
def test_a_verbose_pipe_reports_the_connection_and_how_many_bytes_of_messages_came_back(serve, framing, data, back):
    handler = type("Handler", (echo.EchoRequestHandler,), {"framing": echo.framing.FRAMINGS[framing]()})
    done = client(serve(handler), "-v", "--framing", framing, data=data)
    assert done[:2] == (0, b"" if data == b"exit" else data)
    assert re.fullmatch(rf"connected to 127\.0\.0\.1:\d+ in [\d.]+ ms\n{back}\n", done.log)


@pytest.mark.parametrize("options", [["-J"], ["-q"], ["-v"], ["-J", "-q", "-v"]], ids="".join)
def test_where_nothing_listens_there_is_one_error_message_and_in_json_a_summary(nobody, options):
    done = client(nobody, "-m", "one", *options)
    assert done.code == 1
    assert one_complaint(done, "nothing listens")
    if "-J" in options:
        (last,) = objects(done.out)
        assert last["event"] == "summary" and "nothing listens" in last["error"]
    else:
        assert done.out == b""


@posix
@pytest.mark.parametrize("options", [[], ["-J"]], ids=["text", "json"])
def test_sigint_ends_the_wait_for_a_reply_silently_and_json_with_the_summary(serve, client_process, options):
    waiting = threading.Event()

    def talk(sock):
        once(sock)
        read_exactly(sock, 4)
        waiting.set()
        silent(sock)

    process = client_process(serve(plain(talk)), *options, "-w", "0", "-m", "one", "-m", "two")
    assert waiting.wait(DEADLINE)
    wait_until_it_sleeps(process.pid)
    process.popen.send_signal(signal.SIGINT)
    code, out = process.finish()
    assert (code, process.log) == (130, "")
    if options:
        assert objects(out)[-1] == summary(2, 1)
    else:
        assert out == b"one\n"


@pytest.mark.parametrize(
    "handler, messages, code, printed",
    [
        (echo.EchoRequestHandler, ["ab", "", "cd"], 0, "3 sent, 3 received, 0 different, 0 missing"),
        (echo.EchoRequestHandler, ["ab", "exit"], 0, "2 sent (1 exit), 1 received, 0 different, 0 missing"),
        (
            echo.EchoRequestHandler,
            ["exit", "ab"],
            1,
            "1 sent (1 exit), 0 received, 0 different, 0 missing, 1 never sent",
        ),
        (Shout, ["ab", "12", "cd"], 3, "3 sent, 3 received, 2 different, 0 missing"),
        (
            plain(once),
            ["one", "two", "six"],
            1,
            "2 sent, 1 received, 0 different, 1 missing, 1 never sent",
        ),
    ],
)
def test_quiet_prints_only_the_summary(serve, handler, messages, code, printed):
    done = client(serve(type("Handler", (handler,), {})), "-q", *messages_of(*messages))
    assert done[:2] == (code, f"{printed}\n".encode())
    assert done.log == "" if code == 0 else one_complaint(done)


def test_quiet_json_is_only_the_summary(serve):
    code, out, log = client(serve(), "-q", "-J", "-m", "one", "-m", "two")
    assert (code, log) == (0, "")
    assert objects(out) == [summary(2, 2)]


@pytest.mark.parametrize("options", [[], ["-J"], ["-q"]], ids=["text", "json", "quiet"])
def test_details_go_to_stderr(serve, options):
    code, out, log = client(serve(), "-v", *options, "-m", "one", "-m", "a")
    assert code == 0
    connected, *details = log.splitlines()
    assert re.fullmatch(r"connected to 127\.0\.0\.1:\d+ in \d+(\.\d+)? ms", connected)
    assert re.fullmatch(r"3 bytes back after \d+(\.\d+)? ms\n1 byte back after \d+(\.\d+)? ms", "\n".join(details))
    if not options:
        assert out == b"one\na\n"
    elif options == ["-J"]:
        assert [event["event"] for event in objects(out)] == ["reply", "reply", "summary"]
    else:
        assert out == b"2 sent, 2 received, 0 different, 0 missing\n"


@posix
def test_a_reader_of_json_that_goes_away_ends_the_client_silently(serve, client_process):
    # More than a pipe holds, so that the client still writes when its reader goes.
    process = client_process(serve(), "-J", *messages_of(*["x" * 1000] * 100))
    assert process.popen.stdout.read(1) == b"{"
    process.popen.stdout.close()
    assert process.finish()[0] == 1
    assert process.log == ""


@pytest.mark.parametrize("options", [["-J"], ["--json", "-q"], ["-J", "-v", "--framing", "raw"]], ids=" ".join)
def test_json_is_refused_for_a_pipe(nobody, options):
    done = client(nobody, *options, data=b"one\n")  # connecting would fail with another exit code
    assert done[:2] == (2, b"")
    assert one_complaint(done, "--json needs -m, --ping, --bench or --merge")


# A pipe: all of standard input.


@pytest.mark.parametrize("framing", ["raw", "length"])
def test_any_bytes_in_a_pipe_come_back_as_they_were(serve, framing):
    data = random.Random(framing).getrandbits(8 * 5_000_000).to_bytes(5_000_000, "big")
    code, out, log = client(serve(echo_of(framing)), "--framing", framing, data=data)
    assert (code, log) == (0, "")
    assert out == data


def test_lines_in_a_pipe_come_back_as_they_were(serve):
    source = random.Random("lines")
    block = b"".join(
        bytes(source.choices([c for c in range(256) if c != 10], k=source.choice([0, 1, 5, 80, 3000]))) + b"\n"
        for _ in range(300)
    )
    data = block * (5_000_000 // len(block))
    code, out, log = client(serve(), data=data)
    assert (code, log) == (0, "")
    assert out == data


def test_crlf_lines_in_a_pipe_end_with_crlf_on_the_wire_and_with_lf_on_this_side(serve):
    received = []

    def talk(sock):
        received.append(read_all(sock))
        sock.sendall(received[0])

    data = b"one\ntwo\r\n\nth\rree\r\r\nlast\r"
    done = client(serve(plain(talk)), "--framing", "crlf", data=data)
    assert received == [b"one\r\ntwo\r\n\r\nth\rree\r\r\nlast\r"]
    assert done == (0, b"one\ntwo\n\nth\rree\r\nlast\r", "")


def test_replies_in_a_crlf_pipe_do_not_depend_on_where_the_pieces_end():
    stream = b"one\r\n\r\r\nth\rree\n\r"
    for first in range(1, len(stream)):
        for second in range(first, len(stream)):
            decoder = Pipe.wire(echo.CRLFFraming()).decoder()
            pieces = [piece for piece in (stream[:first], stream[first:second], stream[second:]) if piece]
            messages = [message for piece in pieces for message in decoder.feed(piece)]
            assert b"".join(messages) + decoder.finish() == b"one\n\r\nth\rree\n\r", (first, second)
            assert b"" not in messages


@pytest.mark.parametrize("lost, missing", [(1, 1), (2, 1), (3, 2)])
def test_a_session_that_ends_inside_a_crlf_in_a_pipe_is_reported_with_the_missing_bytes(serve, lost, missing):
    done = client(serve(plain(lambda sock: sock.sendall(read_all(sock)[:-lost]))), "--framing", "crlf", data=b"one\n")
    assert done[:2] == (1, b"one"[: 4 - missing])
    assert done.log == f"echo.client: the server ended the session; {missing} bytes did not come back\n"


def test_the_limit_of_a_line_in_a_crlf_pipe_does_not_count_its_end(serve):
    done = client(serve(echo_of("crlf")), "--framing", "crlf", "--max-message", "4", data=b"four\nfour\r\nfive5\n")
    assert done == (1, b"four\nfour\n", "echo.client: line 3 of the input is over 4 bytes; it was not sent\n")


@unix_sockets
def test_input_is_sent_while_replies_are_read(serve):
    # A client that sends everything before it reads would hang here: a Unix socket holds much less than this.
    data = bytes(range(250)) * 8000

    def talk(sock):
        for part in iter(lambda: sock.recv(65536), b""):
            sock.sendall(part)

    done = client(serve(plain(talk), cls=UnixServer), "--framing", "raw", data=data)
    assert (done.code, done.log) == (0, "")
    assert done.out == data


@pytest.mark.parametrize("options", [["-q"], ["-v"], ["-q", "-v"]], ids=" ".join)
@pytest.mark.parametrize("framing", ["line", "length", "raw"])
def test_quiet_and_verbose_change_nothing_of_what_a_pipe_brings_back(serve, framing, options):
    data = b"one\n\xff\x00\r\n" * 5_000 + b"last"
    code, out, log = client(serve(echo_of(framing)), "--framing", framing, *options, data=data)
    assert (code, out) == (0, data)
    assert bool(log) == ("-v" in options)


@pytest.mark.parametrize("option", ["-q", "-v"])
def test_quiet_and_verbose_hide_no_failure_of_a_pipe(serve, option):
    done = client(serve(plain(lambda sock: sock.sendall(read_all(sock)[:-3]))), option, data=b"one\ntwo\n")
    assert done[:2] == (1, b"one\nt")
    *details, error = done.log.splitlines()
    assert error == "echo.client: the server ended the session; 3 bytes did not come back"
    assert len(details) == (option == "-v") and "as sent" not in done.log


class SmallWindow(Pipe):
    window = 100_000


@pytest.fixture
def pair():
    """Two sockets that are connected with each other."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_no_more_than_a_window_is_on_its_way(pair, tmp_path):
    # The client keeps only the messages in flight. This server replies only when it has got more than a window.
    ours, theirs = pair
    most = 0
    window = SmallWindow.window

    def talk():
        nonlocal most
        held = b""
        while True:
            data = theirs.recv(65536)
            held += data
            most = max(most, len(held))
            if len(held) > window:
                theirs.settimeout(0.01)  # the client must wait for a reply now; further bytes would be read here
                try:
                    held += theirs.recv(65536)
                except socket.timeout:
                    theirs.settimeout(None)
                most = max(most, len(held))
            if not data or len(held) > window:
                theirs.sendall(held)
                held = b""
            if not data:
                theirs.shutdown(socket.SHUT_WR)
                return

    server = threading.Thread(target=talk)
    server.start()
    data = random.Random("window").getrandbits(8 * 10 * window).to_bytes(10 * window, "big")
    (tmp_path / "in").write_bytes(data)
    out = []
    with open(tmp_path / "in", "rb") as source:
        framing = echo.RawFraming()
        SmallWindow(Connection(ours, framing), framing, source.fileno(), out.append).run()
    server.join(DEADLINE)
    assert b"".join(out) == data
    assert window < most <= window + CHUNK


@posix
@pytest.mark.stress
@pytest.mark.parametrize("framing", ["line", "raw"])
def test_memory_stays_small_however_much_goes_through(server_command, run, tmp_path, framing):
    block = random.Random(1).getrandbits(8 << 20).to_bytes(1 << 20, "big")
    block = b"\n".join(block[start : start + 1000] for start in range(0, len(block), 1001))  # no line is too long
    digest = hashlib.sha256()
    with open(tmp_path / "in", "wb") as file:
        for _ in range(200):
            file.write(block)
            digest.update(block)
    server = server_command("--framing", framing, "--no-log-messages")
    with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as result:
        process = run(
            *("echo.client", *address_options(server), "--framing", framing, "-w", "0"),
            python_options=("-c", MEASURE),
            stdin=source,
            stdout=result,
        )
        assert process.finish()[0] == 0, process.log
    returned = hashlib.sha256()
    with open(tmp_path / "out", "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            returned.update(part)
    assert returned.digest() == digest.digest()
    peak = int(re.fullmatch(r"peak (\d+)\n", process.log).group(1))
    assert 1 << 20 < peak < 100 << 20


@pytest.mark.parametrize(
    "data", [b"", b"a", b"a\nb", b"\n", b"\n\n", b"a\r\nb\r\n", b"\xff\x00\n\x80", b"exi", b"t\nexitt"]
)
def test_a_last_line_needs_no_end(serve, data):
    assert client(serve(), data=data) == (0, data, "")


@pytest.mark.parametrize("word", [b"exit\n", b" EXIT \r\n", b"Exit"])
def test_exit_in_a_pipe_ends_the_session_without_an_error(serve, word):
    handler = Recorder.of(echo.EchoRequestHandler)
    assert client(serve(handler), data=b"one\ntwo\n" + word) == (0, b"one\ntwo\n", "")
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["exit"]


def test_nothing_goes_out_after_exit_in_a_pipe(serve):
    received = []

    def talk(sock):
        received.append(read_all(sock))
        sock.sendall(received[0].split(b"exit")[0])

    done = client(serve(plain(talk)), data=b"one\nexit\n" + b"junk\n" * 100_000)
    assert done == (1, b"one\n", f"echo.client: line 2 of the input {LEFT_BEHIND}\n")
    assert received == [b"one\nexit\n"]


@pytest.mark.parametrize("exit_word", [b"exit", None], ids=["known", "unknown"])
@pytest.mark.parametrize("word", [b"exit\n", b" EXIT \r\n"])
@pytest.mark.parametrize(
    "before, after",
    [(b"", b"more\n"), (b"one\ntwo\n", b"without an end"), (b"one\n", b"\n"), (b"12345\n" * 30_000, b"exit\n")],
    ids=["first", "unended", "empty", "late"],
)
def test_input_after_an_exit_is_reported_as_not_sent(serve, exit_word, word, before, after):
    handler = type("Handler", (echo.EchoRequestHandler,), {"exit_word": exit_word})
    done = client(serve(handler), data=before + word + after)
    number = before.count(b"\n") + 1
    assert done.log == f"echo.client: line {number} of the input {LEFT_BEHIND}\n"
    assert (done.code, done.out) == (1, before if exit_word else before + word)


@pytest.mark.parametrize("exit_word", [b"exit", None], ids=["known", "unknown"])
@pytest.mark.parametrize("after", [b"", b"more\n"], ids=["nothing", "more"])
def test_bytes_after_an_exit_may_be_in_another_read(serve, tmp_path, exit_word, after):
    handler = type("Handler", (echo.EchoRequestHandler,), {"exit_word": exit_word})
    data = b"x\n".rjust(CHUNK - 5, b"y") + b"exit\n"
    (tmp_path / "in").write_bytes(data + after)
    with open(tmp_path / "in", "rb") as source:
        done = client(serve(handler), stdin=source)
    assert (done.code, done.out == (data[:-5] if exit_word else data)) == (1 if after else 0, True)
    assert done.log == (f"echo.client: line 2 of the input {LEFT_BEHIND}\n" if after else "")


class PatientPipe(Pipe):
    patience = DEADLINE


@posix
def test_bytes_after_an_exit_may_come_a_moment_later(pair):
    # The input of "(echo exit; echo more) | ..." comes from two programs.
    ours, theirs = pair
    source, sink = os.pipe()

    def talk():
        read_exactly(theirs, 5)
        os.write(sink, b"more\n")
        theirs.shutdown(socket.SHUT_WR)

    server = threading.Thread(target=talk)
    try:
        os.write(sink, b"exit\n")
        server.start()
        with pytest.raises(echo.EchoError, match=f"line 1 of the input {LEFT_BEHIND}"):
            PatientPipe(Connection(ours, echo.RawFraming()), echo.LineFraming(), source, print).run()
        server.join(DEADLINE)
    finally:
        os.close(source)
        os.close(sink)


@posix
@pytest.mark.parametrize("more", [b"", b"more\n"], ids=["nothing", "more"])
def test_a_server_may_end_the_session_before_the_end_of_the_input_is_read(pair, more):
    # As a server that replies once. Further input is lost, and reported.
    ours, theirs = pair
    source, sink = (open(end, mode, buffering=0) for end, mode in zip(os.pipe(), ("rb", "wb")))

    class EndsFirst(Connection):
        def receive(self):
            messages = super().receive()
            if not messages:
                theirs.close()
                sink.write(more)
                sink.close()
            return messages

    def talk():
        theirs.sendall(read_exactly(theirs, 4))
        theirs.shutdown(socket.SHUT_WR)

    server = threading.Thread(target=talk)
    out = []
    with source, sink:
        sink.write(b"one\n")
        server.start()
        pipe = PatientPipe(EndsFirst(ours, echo.RawFraming()), echo.LineFraming(), source.fileno(), out.append)
        failure = pytest.raises(echo.ConnectionClosed, match=r"was lost|did not come back")
        with failure if more else contextlib.nullcontext():
            pipe.run()
    server.join(DEADLINE)
    assert out == [b"one\n"]


@posix
@pytest.mark.parametrize("missing", [b"", b"two\n"], ids=["nothing", "something"])
def test_a_reset_is_an_error_only_if_something_is_missing(pair, tmp_path, missing):
    ours, theirs = pair
    (tmp_path / "in").write_bytes(b"one\n" + missing)

    class Reset(Connection):
        def receive(self):
            messages = super().receive()
            if not messages:
                raise echo.ConnectionClosed("the connection was lost: reset")
            return messages

    def talk():
        theirs.sendall(read_all(theirs)[:4])
        theirs.shutdown(socket.SHUT_WR)

    server = threading.Thread(target=talk)
    server.start()
    out = []
    with open(tmp_path / "in", "rb") as source:
        pipe = Pipe(Reset(ours, echo.RawFraming()), echo.LineFraming(), source.fileno(), out.append)
        with pytest.raises(echo.ConnectionClosed, match="reset") if missing else contextlib.nullcontext():
            pipe.run()
    server.join(DEADLINE)
    assert out == [b"one\n"]


def test_want_of_memory_for_the_input_is_one_line(serve, monkeypatch):
    def read(descriptor, size):
        raise MemoryError

    monkeypatch.setattr(streams, "read", read)
    why = "not enough memory; close other programs, or lower --max-message or --size"
    assert client(serve()) == (1, b"", f"echo.client: {why}\n")


@pytest.mark.parametrize("framing", ["raw", "length"])
@pytest.mark.parametrize("after", [b"", b"more"], ids=["nothing", "more"])
def test_without_line_framing_the_error_names_a_part_of_the_input(serve, framing, after):
    handler = echo_of(framing)
    handler.framing = type(handler.framing)(4)
    done = client(serve(handler), "--framing", framing, "--max-message", "4", data=b"one.exit" + after)
    assert done[:2] == (1 if after else 0, b"one.")
    assert done.log == (f"echo.client: a part of the input {LEFT_BEHIND}\n" if after else "")


@pytest.mark.parametrize("framing", ["line", "crlf", "raw"])
def test_exit_in_a_pipe_ends_without_an_error_every_time(serve, framing):
    # The server's end may arrive before the sending side of the client has noticed the end of its input.
    server = serve(echo_of(framing))
    for _ in range(20):
        assert client(server, "--framing", framing, data=b"exit\n") == (0, b"", "")


@pytest.mark.slow
@pytest.mark.parametrize("framing", ["line", "raw"])
def test_exit_in_a_pipe_ends_each_of_many_processes_without_an_error(serve, client_process, framing):
    server = serve(echo_of(framing))
    for _ in range(4):
        batch = [client_process(server, "--framing", framing) for _ in range(10)]
        assert [process.finish(b"exit\n") for process in batch] == [(0, b"")] * 10
        assert [process.log for process in batch] == [""] * 10


def test_exit_ends_a_pipe_whose_writer_goes_on(serve):
    assert client(serve(), data=b"one\nexit\n", stays_open=True) == (0, b"one\n", "")


def test_a_service_that_knows_no_exit_may_send_it_back(serve):
    handler = type("Handler", (echo.EchoRequestHandler,), {"exit_word": None})
    assert client(serve(handler), data=b"one\nexit\n") == (0, b"one\nexit\n", "")


def test_replies_are_written_while_the_input_is_still_open(serve, client_process):
    process = client_process(serve())
    for line in (b"one\n", b"two\n", b"three\n"):
        process.popen.stdin.write(line)
        process.popen.stdin.flush()
        assert process.popen.stdout.readline() == line
    assert process.finish() == (0, b"")


@posix
def test_an_idle_input_does_not_time_out(pair):
    # The timeout is short only while the input is idle; it is generous before there is input.
    ours, theirs = pair
    source, sink = (open(end, mode, buffering=0) for end, mode in zip(os.pipe(), ("rb", "wb")))
    timeouts = 0

    class Patient(Connection):
        def receive(self):
            nonlocal timeouts
            if timeouts == 3 and not sink.closed:
                set_receive_timeout(ours, DEADLINE)
                sink.write(b"late\n")
                sink.close()
            try:
                return super().receive()
            except echo.ReceiveTimeout:
                timeouts += 1
                raise

    def talk():
        theirs.sendall(read_all(theirs))
        theirs.shutdown(socket.SHUT_WR)

    server = threading.Thread(target=talk)
    server.start()
    out = []
    with source, sink:
        connection = Patient(ours, echo.RawFraming(), idle_timeout=0.02)
        Pipe(connection, echo.LineFraming(), source.fileno(), out.append).run()
    server.join(DEADLINE)
    assert (timeouts, b"".join(out)) == (3, b"late\n")


@posix
def test_a_reader_that_pauses_costs_no_timeout(pair, tmp_path):
    ours, theirs = pair
    data = random.Random("pause").getrandbits(8 * 3_000_000).to_bytes(3_000_000, "big")
    (tmp_path / "in").write_bytes(data)
    sent = collections.deque([0], maxlen=20)

    def talk():
        for part in iter(lambda: theirs.recv(65536), b""):
            theirs.sendall(part)
        theirs.shutdown(socket.SHUT_WR)

    out = []

    def write(part):
        if not out:  # pause until all buffers have been full for much longer than the timeout
            eventually(lambda: sent.append(connection.bytes_out) or (len(sent) == 20 and len(set(sent)) == 1))
        out.append(part)

    server = threading.Thread(target=talk)
    server.start()
    with open(tmp_path / "in", "rb") as source:
        framing = echo.RawFraming()
        connection = Connection(ours, framing, idle_timeout=DEADLINE, send_timeout=0.02)
        Pipe(connection, framing, source.fileno(), write).run()
    server.join(DEADLINE)
    assert b"".join(out) == data


@posix
def test_a_reply_that_comes_in_pieces_has_the_timeout_for_each_with_length_framing_too(pair, tmp_path):
    """The time of a whole message would count the pause of a client that is stopped by Ctrl-Z between two pieces."""
    ours, theirs = pair
    (tmp_path / "in").write_bytes(b"reply")

    class Paused(Connection):
        clock = staticmethod(itertools.count(step=DEADLINE).__next__)

    def talk():
        for sent, byte in enumerate(read_exactly(theirs, 9), 1):
            theirs.sendall(bytes([byte]))
            eventually(lambda sent=sent: connection.bytes_in == sent)
        theirs.shutdown(socket.SHUT_WR)

    out = []
    framing = echo.LengthFraming()
    connection = Paused(ours, framing, idle_timeout=DEADLINE, message_timeout=DEADLINE)
    server = threading.Thread(target=talk)
    server.start()
    with open(tmp_path / "in", "rb") as source:
        Pipe(connection, framing, source.fileno(), out.append).run()
    server.join(DEADLINE)
    assert b"".join(out) == b"reply"


@posix
def test_the_time_for_a_reply_begins_when_its_input_comes(pair):
    ours, theirs = pair
    source, sink = (open(end, mode, buffering=0) for end, mode in zip(os.pipe(), ("rb", "wb")))
    now = 0.0

    class Timed(Pipe):
        clock = staticmethod(lambda: now)

    class LateInput(Connection):
        waits = []

        def receive(self):
            nonlocal now
            self.waits.append(self.idle_timeout)
            if len(self.waits) == 1:
                now = 1.75
                sink.write(b"late\n")
                assert read_exactly(theirs, 5) == b"late\n"
                now = 2.0
                raise echo.ReceiveTimeout("nothing arrived for 2 s")
            if len(self.waits) == 2:
                theirs.sendall(b"late\n")
                sink.close()
                assert read_all(theirs) == b""
                theirs.shutdown(socket.SHUT_WR)
            set_receive_timeout(ours, DEADLINE)
            return super().receive()

    out = []
    with source, sink:
        connection = LateInput(ours, echo.RawFraming(), idle_timeout=2.0)
        Timed(connection, echo.LineFraming(), source.fileno(), out.append).run()
    assert b"".join(out) == b"late\n"
    assert connection.waits == [2.0, 1.75, 2.0]


def test_nothing_is_sent_of_a_line_over_the_limit(serve):
    handler = Recorder.of(echo.EchoRequestHandler)
    done = client(serve(handler), "--max-message", "10", data=b"short\n" + b"x" * 11 + b"\nnever\n")
    assert done[:2] == (1, b"short\n")
    assert one_complaint(done, "line 2", "10 bytes")
    assert handler.ended.wait(DEADLINE)
    assert handler.events == ["made", b"short", "lost"]


def test_nothing_is_sent_of_an_endless_line(serve):
    received = []
    done = client(serve(plain(lambda sock: received.append(read_all(sock)))), data=b"x" * 1_000_000)
    assert done[:2] == (1, b"")
    assert one_complaint(done, "line 1", "65536 bytes")
    assert eventually(lambda: received) == [b""]


def test_a_flipped_byte_in_a_pipe_has_its_own_exit_code(serve):
    data = bytes(1_000_000)

    def talk(sock):
        received = read_all(sock)
        sock.sendall(received[:700_000] + b"\x01" + received[700_001:])

    done = client(serve(plain(talk)), "--framing", "raw", data=data)
    assert done.code == 3
    assert one_complaint(done, "differs", "byte 700000 ")
    assert done.out[:700_000] == data[:700_000]


def test_more_than_was_sent_differs_too(serve):
    done = client(serve(plain(lambda sock: sock.sendall(read_all(sock) + b"!"))), data=b"one\n")
    assert done[:2] == (3, b"one\n!")
    assert one_complaint(done, "differs", "byte 4 ")


def test_missing_bytes_at_the_end_are_a_failure(serve):
    server = serve(plain(lambda sock: sock.sendall(read_all(sock)[:-300])))
    done = client(server, "--framing", "raw", data=b"y" * 1000)
    assert done[:2] == (1, b"y" * 700)
    assert one_complaint(done, "300 bytes did not come back")


@posix
def test_a_server_that_dies_in_mid_session_is_a_failure_although_the_input_is_open(killed_by_two):
    done = client(killed_by_two, "-w", "0", data=b"one\ntwo\n", stays_open=True)
    assert done.code == 1
    assert one_complaint(done)


@pytest.fixture
def stuck():
    """A handler that neither reads nor replies until the test is over."""
    over = threading.Event()
    yield plain(lambda sock: over.wait(DEADLINE))
    over.set()


@unix_sockets
def test_no_reply_in_time_is_a_failure_in_a_pipe(serve, stuck):
    done = client(serve(stuck, cls=UnixServer), "-w", "100ms", data=b"one\n")
    assert done[:2] == (1, b"")
    assert one_complaint(done, f"nothing came back for 0.1 s; 4 bytes are missing; {PERHAPS}\n")


@unix_sockets
def test_a_server_that_does_not_read_ends_the_client_in_time(serve, stuck):
    server = serve(stuck, cls=UnixServer)
    done = client(server, "--framing", "raw", "-w", "100ms", data=bytes(2_000_000))
    assert done.code == 1
    assert one_complaint(done)


class SmallBuffers(echo.Server):
    """Its sessions' sockets have small buffers, so a client soon blocks if the handler does not read."""

    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        super().server_bind()


@pytest.fixture
def much(tmp_path):
    """An input larger than all buffers between a client and a server with ``SmallBuffers`` that does not read."""
    with open(tmp_path / "much", "wb+") as file:
        file.write(b"first\n" + b"0123456789\n" * 700_000)
        file.seek(0)
        yield file


@pytest.fixture
def deaf():
    """``deaf(answer)``: a handler that reads only the first line, and sends ``answer`` when all buffers are full."""
    done = threading.Event()

    def handler(answer):
        def talk(sock):
            read_exactly(sock, 6)
            seen = collections.deque([0], maxlen=20)
            eventually(lambda: seen.append(unread(sock)) or (len(seen) == 20 and len(set(seen)) == 1))
            sock.sendall(answer)
            done.wait(DEADLINE * 3)

        return plain(talk)

    yield handler
    done.set()


@pytest.mark.parametrize("patience", ["0", "5m"])
def test_a_mismatch_ends_the_client_at_once_although_the_server_does_not_read(serve, much, deaf, patience):
    done = client(serve(deaf(b"junk\n"), cls=SmallBuffers), "-w", patience, stdin=much)
    assert done[:2] == (3, b"junk\n")
    assert one_complaint(done, "differs", "byte 0 ")


@posix
@pytest.mark.parametrize("patience", ["0", "5m"])
def test_sigint_ends_the_client_at_once_although_the_server_does_not_read(serve, client_process, much, deaf, patience):
    process = client_process(serve(deaf(b"first\n"), cls=SmallBuffers), "-w", patience, stdin=much)
    assert process.popen.stdout.readline() == b"first\n"
    wait_until_it_sleeps(process.pid)
    process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(DEADLINE) == 130
    process.finish()
    assert process.log == ""


# Usage errors and addresses where no connection can be made: one line, the right exit code.


def test_a_refused_connection_is_one_line(nobody):
    done = client(nobody)
    assert done[:2] == (1, b"")
    port = nobody[1]
    advice = f"nothing listens on 127.0.0.1:{port}; start a server there: python3 -m echo.server {port}\n"
    assert one_complaint(done, advice)


def test_the_command_in_the_advice_starts_a_server_on_this_host():
    """Row 57: with the port alone it would listen on 127.0.0.1."""
    done = call_client("localhost:1", "-m", "hello")
    assert done[:2] == (1, b"")
    assert one_complaint(done, "start a server there: python3 -m echo.server localhost:1\n")


@pytest.mark.parametrize("host, address", [("127.1", "1"), ("127.0.0.01", "1"), ("0x7f000002", "127.0.0.2:1")])
def test_the_command_in_the_advice_has_an_address_that_the_server_takes(host, address):
    """Row 57: it does not take 127.1, which the client's look-up reads as 127.0.0.1."""
    done = call_client(host, "1", "-m", "hello")
    assert done[:2] == (1, b"")
    assert one_complaint(done, f"start a server there: python3 -m echo.server {address}\n")


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "localhost:{}"])
def test_a_host_may_have_its_port(serve, form):
    """Row 75."""
    done = call_client(form.format(serve().server_address[1]), "-m", "hello")
    assert done == (0, b"hello\n", "")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["localhost:7000", "8000"], "two ports are given, 7000 and 8000"),
        (["localhost:0"], "invalid port 0: give the port that the server logs"),
        (["7000"], "invalid host '7000': the host comes first, as in: python3 -m echo.client 127.0.0.1 7000\n"),
        (["", "7000"], "invalid address ''"),
        (["/run/echo.sock"], "invalid address '/run/echo.sock'"),
        (["--unix", "s", "localhost:7000"], "--unix excludes host and port"),
        (["--unix", "localhost:7000"], "invalid path 'localhost:7000': give an address without --unix, or ./localhost"),
    ],
)
def test_an_address_that_makes_no_sense_is_a_usage_error(arguments, words):
    """Rows 75 and 76."""
    done = call_client(*arguments, "-m", "hello")
    assert done[:2] == (2, b"")
    assert one_complaint(done, words)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
@pytest.mark.parametrize(
    "path, words",
    [
        ("missing", "nothing listens on missing; start a server there: python3 -m echo.server --unix missing"),
        ("dead", "nothing listens on dead; start a server there: python3 -m echo.server --unix dead"),
        ("no/folder", "cannot connect to no/folder: the folder no does not exist; make it, or give another path"),
        ("file/s", "cannot connect to file/s: Not a directory; file is not a folder; give another path"),
        (
            "loop/s",  # as where the user may not look for the folder: nobody knows whether it exists
            f"cannot connect to loop/s: {os.strerror(errno.ELOOP)}; check the path, and who may use it",
        ),
        ("file", "cannot connect to file: that file is not a socket; give another path"),
        ("link", "cannot connect to link: that file is not a socket; give another path"),
        (
            "x" * 200,
            f"cannot connect to {'x' * 200}: AF_UNIX path too long; give a path of {MAX_PATH} bytes at most,"
            " for example one from the current folder",
        ),
    ],
)
def test_each_reason_why_a_path_has_no_server_has_its_own_words(tmp_path, monkeypatch, path, words):
    """Row 57."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("file")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("dead")
    done = call_client("--unix", path, "-m", "hello")
    assert done == (1, b"", f"echo.client: {words}\n")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a full backlog refuses clients")
def test_a_server_that_accepts_no_clients_at_its_path_is_the_reason_and_not_the_path(tmp_path, monkeypatch):
    """Row 57."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind("s")
        full.listen(0)
        first.connect("s")
        done = call_client("--unix", "s", "-w", "50ms", "-m", "hello")
    advice = "the server accepts no clients; it may be full or stopped"
    assert done == (1, b"", f"echo.client: cannot connect to s: timed out; {advice}\n")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX") or sys.platform == "darwin", reason="needs a folder to be deleted")
def test_a_current_folder_that_was_deleted_is_named_as_the_reason(serve, tmp_path, monkeypatch, capsys):
    """Row 57."""
    multiprocessing.resource_tracker.ensure_running()  # in a folder that stays: it is the one of later tests, too
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deleted").mkdir()
    os.chdir("deleted")
    os.rmdir(str(tmp_path / "deleted"))
    advice = "the current folder was deleted; change to another one, or give the whole path"
    done = call_client("--unix", "s", "-m", "hello")
    assert done == (1, b"", f"echo.client: cannot connect to s: {advice}\n")
    line = f"echo.server: cannot listen on s: No such file or directory; {advice}"
    assert error_line(capsys, server_main, "--unix", "s") == (1, line)
    done = call_client("--bench", *address_options(serve()))
    assert done == (1, b"", f"echo.client: cannot start: {advice}\n")


IN_A_LOCKED_FOLDER = """\
import encodings.idna, importlib, os, pkgutil, sys
from echo import measure
from echo.cli.client.command import _parser, main
_parser().parse_args([])
for module in pkgutil.iter_modules(measure.__path__):
    importlib.import_module(f"echo.measure.{module.name}")
os.chmod(sys.argv[-1], 0)
if os.getuid() == 0:  # root may enter every folder
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(main(sys.argv[3:-1]))
"""
"""``python -c IN_A_LOCKED_FOLDER -m echo.client ... FOLDER``. It imports all before it gives up its rights, and
parses once, for the modules that argparse needs."""


@pytest.mark.skipif(os.name != "posix", reason="needs users")
@pytest.mark.parametrize("locked", [".", ".."])
def test_a_bench_in_a_folder_that_the_user_may_not_enter_ends_with_one_line(run, tmp_path, locked):
    """Row 57: its processes ended with a traceback, and the network was blamed."""
    folder = tmp_path / "parent" / "current"
    folder.mkdir(parents=True)
    python = ("-c", IN_A_LOCKED_FOLDER)
    bench = run("echo.client", "127.0.0.1:1", "--bench", locked, cwd=str(folder), python_options=python)
    assert bench.finish() == (1, b"")
    os.chmod(str(tmp_path / "parent"), 0o700)
    os.chmod(str(folder), 0o700)
    why = "cannot connect to 127.0.0.1:1: the current folder cannot be entered; change to another one"
    assert bench.log == f"echo.client: {why}\n"


SCRIPT = """\
import sys
from echo.cli.client.command import main

for arguments in (["--version"], ["--help"], ["--json"]):
    try:
        main(arguments)
    except SystemExit as exc:
        print("code", exc.code)
sys.exit(main())
"""


def test_started_through_its_script_it_calls_itself_and_the_server_by_their_names(run, nobody, tmp_path):
    script = tmp_path / "echo-client"
    script.write_text(SCRIPT)
    process = run("127.0.0.1", str(nobody[1]), "-m", "hello", program=[sys.executable, str(script)])
    code, out = process.finish()
    assert code == 1
    assert out.startswith(f"echo-client {echo.__version__}\ncode 0\nusage: echo-client ".encode())
    assert out.endswith(b"\ncode 0\ncode 2\n")
    port = nobody[1]
    assert process.log == (
        "echo-client: --json needs -m, --ping, --bench or --merge; see --help\n"
        f"echo-client: nothing listens on 127.0.0.1:{port}; start a server there: echo-server {port}\n"
    )


@pytest.mark.parametrize("host", ["a" * 80, "a..b"], ids=["long", "dots"])
def test_an_invalid_host_name_is_one_line(host):
    done = call_client(host, "9", "-m", "x")
    assert done[:2] == (1, b"")
    assert one_complaint(done, repr(host))


@pytest.mark.parametrize(
    "number, why",
    [
        (socket.EAI_NONAME, "Name or service not known; check its name\n"),
        (socket.EAI_AGAIN, "Temporary failure in name resolution; check its name, and the name servers\n"),
    ],
)
def test_a_host_that_cannot_be_found_is_one_line(monkeypatch, number, why):
    def resolve(*arguments, **options):
        raise socket.gaierror(number, why.partition(";")[0])

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    done = call_client("nohost.invalid", "9", "-m", "x")
    assert done[:2] == (1, b"")
    assert one_complaint(done, f"cannot find the host 'nohost.invalid': {why}")


@pytest.mark.parametrize("options", [["-m", "x"], [], ["--ping", "-c", "1"]], ids=" ".join)
@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), ["raise the limit (ulimit -n)"]),
        (OSError(errno.EADDRNOTAVAIL, "all local ports for this server are in use"), ["net.ipv4.ip_local_port_range"]),
        (TimeoutError("the look-up of the name took more than 1 s"), ["check its name, and the name servers"]),
        (OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)), ["close other programs"]),
        (OSError("a process of the load has died"), ["something on this machine has killed it"]),
        (OSError("a process of the load has ended with code 1"), ["the lines above may say why"]),
        (OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH)), ["check the address, the network, firewalls"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_missing_resource_of_this_machine_is_named(monkeypatch, options, error, words):
    def lacking(*arguments):
        raise error

    monkeypatch.setattr("echo.client.endpoint.connect_to_host", lacking)
    monkeypatch.setattr("echo.client.endpoint.connect_to_first", lacking)
    done = call_client("127.0.0.1", "9", *options)
    text = error.strerror or str(error)
    if options[:1] == ["--ping"]:
        assert (done.code, done.log) == (1, "")
        assert f"lost: cannot connect: {text}\n" in done.out.decode()
    else:
        assert done[:2] == (1, b"")
        assert one_complaint(done, f"cannot connect to 127.0.0.1:9: {text}", *words)


def test_without_a_thread_to_send_in_a_pipe_ends_with_one_line(serve, monkeypatch):
    server = serve()
    start = threading.Thread.start

    def fails(thread):
        if thread.name == "echo-feed":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fails)
    done = client(server, data=b"one\n")
    assert done[:2] == (1, b"")
    assert one_complaint(done, "can't start new thread; raise the limits of threads and memory (ulimit -u, ulimit -v)")


@pytest.mark.slow  # it asks the name servers, which may take long
def test_a_host_that_the_system_does_not_know_is_one_line():
    done = call_client("nohost.invalid", "9", "-m", "x")
    assert done[:2] == (1, b"")
    assert one_complaint(done, "'nohost.invalid'")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["127.0.0.1", "http"], ["invalid port 'http'", "0 to 65535"]),
        (["127.0.0.1", "65536"], ["invalid port '65536'", "0 to 65535"]),
        (["127.0.0.1", "9" * 20], ["invalid port"]),
        (["127.0.0.1", "-1"], []),
        (["127.0.0.1", "1.5"], ["invalid port '1.5'"]),
        (["127.0.0.1", "\u0661"], ["invalid port"]),
        (["65432"], ["invalid host '65432'", "the host comes first"]),
        (["127.0.0.1", "9", "extra"], ["extra"]),
        (["--nonsense"], ["--nonsense"]),
        (["--vers"], ["--vers"]),
        (["-m"], ["-m"]),
        (["-w", "soon"], ["invalid duration 'soon'", "500ms"]),
        (["-w", "5 s"], ["invalid duration '5 s'"]),
        (["-w", "-1"], ["-w"]),
        (["-w", "99999999999999999h"], ["-w", "the maximum is a year"]),
        (["-w", "9" * 400], ["-w", "the maximum is a year"]),
        (["--framing", "xml"], ["xml", "line", "crlf", "length", "raw"]),
        (["--max-message", "0"], ["invalid size '0'"]),
        (["--max-message", "many"], ["invalid size 'many'"]),
        (["--insecure=--"], ["ignored explicit argument '--'"]),
        (["--nosuch=--"], ["unrecognized arguments: --nosuch=--"]),
        (["--compare=--"], ["cannot use '--'"]),
    ],
)
def test_a_usage_error_is_one_line(arguments, words):
    done = call_client(*arguments)
    assert done[:2] == (2, b"")
    assert one_complaint(done, *words)


@pytest.mark.parametrize("time", ["500ms", "30s", "5m", "1h", "1.5", "30", "0"])
def test_durations_have_units(nobody, time):
    done = client(nobody, "-m", "x", "-w", time)
    assert done[:2] == (1, b"")
    assert one_complaint(done, "nothing listens")


# A reader that goes away, signals, closed streams, warnings.


@posix
def test_a_reader_that_goes_away_ends_the_client_silently(serve, client_process, tmp_path):
    with open(tmp_path / "in", "wb+") as source:
        source.write(b"0123456789\n" * 100_000)
        source.seek(0)
        process = client_process(serve(), stdin=source)
        assert process.popen.stdout.read(1) == b"0"
        process.popen.stdout.close()
        assert process.finish()[0] == 1
    assert process.log == ""


@posix
def test_a_reader_that_has_gone_before_the_first_reply_gives_no_traceback(serve, client_process):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = client_process(serve(), "-m", "one", stdout=writer)
    finally:
        os.close(writer)
    assert process.finish()[0] == 1
    assert process.log == ""


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("options", [["-m", "one"], []], ids=["messages", "pipe"])
def test_a_full_disk_is_one_line(serve, client_process, options):
    with open("/dev/full", "wb") as full:
        process = client_process(serve(), *options, stdout=full)
        assert process.finish(b"one\n")[0] == 1
    assert one_complaint(process)


@posix
def test_standard_streams_that_are_closed_give_no_traceback(serve):
    port = serve().server_address[1]
    command = f'printf "two\\n" | "{sys.executable}" -m echo.client 127.0.0.1 {port} -w 60s'
    shells = [
        subprocess.Popen(
            ["sh", "-c", f"{command} {options} {closing}"],
            env=dict(os.environ, PYTHONPATH=ROOT),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for options in ("-m one", "")
        for closing in ("<&-", ">&-")
    ]
    for shell in shells:
        error = shell.communicate(timeout=DEADLINE * 2)[1]
        assert b"Traceback" not in error
        assert error.count(b"\n") <= 1


@posix
@pytest.mark.parametrize("pauses", [[], [0.004], [0.001, 0.002]], ids=["once", "twice", "three times"])
def test_sigint_ends_a_pipe_without_a_traceback(serve, client_process, pauses):
    process = client_process(serve())
    process.popen.stdin.write(b"one\n")
    process.popen.stdin.flush()
    assert process.popen.stdout.readline() == b"one\n"
    wait_until_it_sleeps(process.pid)
    process.popen.send_signal(signal.SIGINT)
    for pause in pauses:  # a shell's user who holds Ctrl-C
        time.sleep(pause)
        process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(DEADLINE) == 130
    process.finish()
    assert process.log == ""


@pytest.mark.parametrize("module", ["echo.client", "echo.server"])
def test_the_version_is_printed_without_a_warning(run, module):
    process = run(module, "--version", python_options=("-W", "error"))
    assert process.finish() == (0, f"{module} {echo.__version__}\n".encode())
    assert process.log == ""


def test_a_whole_session_warns_of_nothing(serve, client_process):
    process = client_process(serve(), python_options=("-W", "error", "-X", "dev"))
    assert process.finish(b"one\n") == (0, b"one\n")
    assert process.log == ""


def test_a_line_after_an_exit_that_is_too_long_is_also_reported_as_not_sent(serve):
    done = client(serve(), "--max-message", "10", data=b"one\nexit\n" + b"x" * 36 + b"\n")
    assert done == (1, b"one\n", f"echo.client: line 2 of the input {LEFT_BEHIND}\n")


@posix
def test_looking_for_more_input_reads_nothing():
    source, sink = os.pipe()
    assert not has_more(source, 0)
    os.write(sink, b"more")
    assert has_more(source, 0)
    assert os.read(source, 10) == b"more"
    os.close(sink)
    assert not has_more(source, DEADLINE)  # the end is readable, too
    os.close(source)


@posix
def test_input_typed_ahead_at_a_terminal_is_left_to_the_shell():
    master, slave = os.openpty()
    os.write(master, b"ls\n")
    assert not has_more(slave, DEADLINE)
    assert os.read(slave, 10) == b"ls\n"
    os.close(master)
    os.close(slave)


# Addresses to connect to and from.


@pytest.mark.parametrize("options", [["-4"], ["--ipv4"], ["--source", "127.0.0.1"], ["-4", "--source", "127.0.0.1"]])
def test_a_family_or_a_source_address_is_connected_with(serve, options):
    _, port = serve().server_address
    assert call_client("localhost", str(port), *options, "-m", "hello")[:2] == (0, b"hello\n")


@pytest.mark.parametrize(
    "options, code, words",
    [
        (["-4", "-6"], 2, "different address families"),
        (["-6", "--source", "127.0.0.1"], 2, "different address families"),
        (["--source", "localhost"], 2, "invalid address 'localhost'"),
        (["--source", ""], 2, "invalid address ''"),
        (["--unix", "/nowhere", "-4"], 2, "--unix excludes -4"),
        (["--unix", "/nowhere", "--source", "127.0.0.1"], 2, "--unix excludes -4, -6 and --source"),
        (["127.0.0.1", "9", "-6"], 1, "check its name, and that it has such an address"),
        (["127.0.0.1", "9", "--source", "192.0.2.1"], 1, "give an address of this machine as --source"),
    ],
)
def test_addresses_that_cannot_be_used_are_one_line(options, code, words):
    done = call_client(*options, "-m", "x")
    assert done[:2] == (code, b"")
    assert one_complaint(done, words)


# Services that do not echo.


def test_without_verification_whatever_comes_back_is_printed_and_right(serve):
    done = client(serve(Shout), "--no-verify", "-J", "-m", "ab", "-m", "CD")
    assert (done.code, done.log) == (0, "")
    *replies, last = objects(done.out)
    assert [without_time(event) for event in replies] == [reply("ab", "AB"), reply("CD")]
    assert last == summary(2, 2)


def test_no_verify_needs_something_to_verify():
    done = call_client("--no-verify")
    assert done[:2] == (2, b"")
    assert one_complaint(done, "--no-verify needs -m, --ping or --bench")


# A PROXY header in front of each connection.


class RemembersItsHeader(echo.EchoRequestHandler):
    """Remembers each session's client address, and whether a PROXY header named it."""

    def connection_made(self):
        self.server.met.append((self.client_address, bool(self.via)))
        super().connection_made()


class ProxiedServer(echo.Server):
    proxy_protocol = True
    handshake_timeout = None

    def __init__(self, *args, **options):
        self.met = []
        super().__init__(*args, **options)


class ProxiedUnixServer(UnixServer, ProxiedServer):
    pass


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("mode", [("-m", "hello"), (), ("--ping", "-c", "1")], ids=["message", "pipe", "ping"])
def test_a_server_that_requires_proxy_headers_gets_one_with_the_clients_address(serve, version, mode):
    server = serve(RemembersItsHeader, ProxiedServer)
    assert client(server, "--send-proxy", version, *mode, data=b"hello\n").code == 0
    (((host, port), has_header),) = server.met
    assert (host, has_header) == ("127.0.0.1", True)
    assert port != server.server_address[1]
    assert client(server, *mode, data=b"hello\n").code != 0  # without the option the server refuses it


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_each_connection_of_a_bench_begins_with_a_proxy_header(serve, version):
    server = serve(RemembersItsHeader, ProxiedServer)
    bench = client(server, "--send-proxy", version, "--bench", "-P", "3", "-d", "200ms")
    assert (bench.code, bench.log) == (0, "")
    assert [has_header for _, has_header in server.met] == [True] * 3


@unix_sockets
def test_on_a_unix_socket_a_proxy_header_has_its_paths_if_its_version_can(serve):
    received = []
    server = serve(plain(lambda sock: received.append(read_all(sock))), UnixServer)
    for version in ("v1", "v2"):
        client(server, "--send-proxy", version, data=b"hello\n")
    eventually(lambda: len(received) == 2)
    path = server.server_address.encode()
    assert sorted(received, reverse=True) == [
        b"PROXY UNKNOWN\r\nhello\n",
        block(PROXY, 0x31, unix(b"", path)) + b"hello\n",
    ]


@unix_sockets
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_server_on_a_unix_socket_takes_the_clients_header(serve, version):
    server = serve(RemembersItsHeader, ProxiedUnixServer)
    finished = client(server, "--send-proxy", version, "-m", "hello")
    assert (finished.code, finished.out) == (0, b"hello\n")
    assert len(server.met) == 1


def test_a_proxy_header_comes_before_the_handshake(serve, certificates):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.server)
    server = serve(RemembersItsHeader, ProxiedServer, ssl_context=context)
    security = ("--tls", "--cacert", certificates.authority.certificate, "--sni", "localhost")
    finished = client(server, "--send-proxy", "v2", *security, "-m", "hello")
    assert (finished.code, finished.out, finished.log) == (0, b"hello\n", "")
    assert server.met[0][1]


def test_without_the_option_no_byte_comes_before_the_first_message(serve):
    server = serve()
    assert client(server, data=b"hello\n").out == b"hello\n"
    finished = client(server, "--send-proxy", "v1", "-m", "hello")
    assert finished.code == 3
    assert finished.out.startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")


@posix
def test_a_further_signal_ends_a_measurement_whose_output_nobody_reads(monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    codes, stops = [], []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(command, "PATIENCE", 3600.0)
    try:
        command._on_signals(lambda: stops.append("summary"))
        for number in before:
            signal.raise_signal(number)
        assert (stops, codes) == (["summary"], [])
        monkeypatch.setattr(command, "PATIENCE", 0)
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (stops, codes) == (["summary"], [130])
