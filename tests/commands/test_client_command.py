"""``python -m echo.client`` as a process, with ``-m`` and in a pipe: output, its one line of complaint, exit code."""

import collections
import hashlib
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading

import pytest

import echo
from echo.client import pipe
from echo.client.pipe import CHUNK
from echo.sockets import unread
from support import DEADLINE, ROOT, Recorder, eventually, plain, read_all, read_exactly

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and descriptors")

PERHAPS = "the server may be full, or have another --framing"

LEFT_BEHIND = "is an exit, which ends the session; what follows it was not sent"

MEASURE = """\
import resource, subprocess, sys
code = subprocess.call([sys.executable, "-m", *sys.argv[2:]])
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print("peak", peak, file=sys.stderr)
sys.exit(code)
"""
"""``python -c MEASURE -m MODULE ...`` runs the module in a child, small enough to tell the child's memory by."""


@pytest.fixture
def client(run):
    """``client(server, *options)``: a running ``python -m echo.client`` that was given the server's address."""

    def start(server, *options, python_options=(), **popen_options):
        address = server if isinstance(server, tuple) else getattr(server, "server_address", None) or server.address
        arguments = ("echo.client", address[0], str(address[1]), *options)
        return run(*arguments, python_options=python_options, **popen_options)

    return start


def echo_of(name):
    """An echo handler under the framing of that name."""
    framing = {"line": echo.LineFraming, "length": echo.LengthFraming, "raw": echo.RawFraming}[name]
    return type("Handler", (echo.EchoRequestHandler,), {"framing": framing()})


def silent(sock):
    """Read to the end, answer nothing."""
    read_all(sock)


def one_complaint(process, *words):
    """The process wrote exactly one line to stderr, as the client's own, and these words are in it."""
    assert re.fullmatch(r"echo\.client: [^\n]+\n", process.log), process.log
    assert "Traceback" not in process.log
    for word in words:
        assert word in process.log
    return True


# -m: message by message.


def test_the_reply_to_one_message_is_printed(serve, client):
    process = client(serve(), "-m", "hello")
    assert process.finish() == (0, b"hello\n")
    assert process.log == ""


def test_each_message_has_its_reply_in_order(serve, client):
    handler = Recorder.of(echo.EchoRequestHandler)
    process = client(serve(handler), "-m", "one", "-m", "", "-m", "three words here")
    assert process.finish() == (0, b"one\n\nthree words here\n")
    assert process.log == ""
    assert handler.ended.wait(DEADLINE)
    assert handler.events == ["made", b"one", b"", b"three words here", "lost"]


@pytest.mark.parametrize("framing", ["line", "length", "raw"])
def test_messages_go_under_every_framing(serve, client, framing):
    process = client(serve(echo_of(framing)), "--framing", framing, "-m", "one", "-m", "two")
    assert process.finish() == (0, b"one\ntwo\n")


def test_exit_as_the_last_message_ends_the_session_in_peace(serve, client):
    handler = Recorder.of(echo.EchoRequestHandler)
    process = client(serve(handler), "-m", "one", "-m", " EXIT ")
    assert process.finish() == (0, b"one\n")
    assert process.log == ""
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["exit"]


def test_messages_after_exit_are_told_as_missing(serve, client):
    process = client(serve(), "-m", "one", "-m", "exit", "-m", "two", "-m", "three")
    assert process.finish() == (1, b"one\n")
    assert one_complaint(process, "2 of 3 replies are missing")


def test_messages_after_the_servers_end_are_told_as_missing(serve, client):
    class Once(echo.EchoRequestHandler):
        def message_received(self, message):
            self.send(message)
            self.close()

    process = client(serve(Once), "-m", "one", "-m", "two", "-m", "three")
    assert process.finish() == (1, b"one\n")
    assert one_complaint(process, "2 of 3 replies are missing")


def test_half_a_reply_is_told_as_missing(serve, client):
    def talk(sock):
        sock.recv(4096)
        sock.sendall(b"on")

    process = client(serve(plain(talk)), "-m", "one")
    assert process.finish()[0] == 1
    assert one_complaint(process, "1 of 1 replies are missing")


@posix
def test_bytes_that_are_no_utf8_pass_untouched_from_the_command_line(serve, client):
    handler = Recorder.of(echo.EchoRequestHandler)
    process = client(serve(handler), "-m", b"\xff caf\xc3\xa9 \x80\r")
    assert process.finish() == (0, b"\xff caf\xc3\xa9 \x80\r\n")
    assert handler.events[1] == b"\xff caf\xc3\xa9 \x80\r"


def test_a_different_reply_is_shown_and_has_its_own_exit_code(serve, client):
    class Shout(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(message.upper())

    process = client(serve(Shout), "-m", "12ab", "-m", "34", "-m", "cd")
    assert process.finish() == (3, b"12AB\n34\nCD\n")
    assert one_complaint(process, "differs", "byte 2")


def test_no_reply_in_time_is_a_failure(serve, client):
    process = client(serve(plain(silent)), "-m", "one", "-w", "300ms")
    assert process.finish() == (1, b"")
    assert one_complaint(process, f"nothing arrived for 0.3 s; {PERHAPS}\n")


@pytest.mark.parametrize("options", [["-m", "one\ntwo"], ["-m", "ok", "-m", "x" * 11, "--max-message", "10"]])
def test_a_message_that_the_framing_cannot_carry_is_refused_before_connecting(client, options):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen: connecting would fail with another exit code
        process = client(nobody.getsockname(), *options)
        assert process.finish() == (2, b"")
    assert one_complaint(process, "-m: ")


# -m with -J, -q and -v.


def messages_of(*texts):
    """Them as options."""
    return [option for text in texts for option in ("-m", text)]


def objects(out):
    """The JSON objects of the lines, which are printable ASCII."""
    assert re.fullmatch(rb"([ -~]+\n)*", out), out
    return [json.loads(line) for line in out.splitlines()]


def without_time(told):
    """The same without how long it took, which is a time at least."""
    assert 0 < told["rtt_us"] < DEADLINE * 1e6
    return {name: value for name, value in told.items() if name != "rtt_us"}


def reply(sent, received=None):
    received = sent if received is None else received
    return {"event": "reply", "sent": sent, "received": received, "matches": sent == received}


def summary(sent, received, different=0):
    figures = {"sent": sent, "received": received, "different": different, "missing": sent - received}
    return {"event": "summary", **figures}


class Shout(echo.MessageRequestHandler):
    """No echo: letters come back as capitals."""

    def message_received(self, message):
        self.send(message.upper())


@pytest.mark.parametrize("framing", ["line", "length", "raw"])
def test_in_json_each_reply_is_an_object_and_the_summary_the_last(serve, client, framing):
    process = client(serve(echo_of(framing)), "--framing", framing, "-J", "-m", "one", "-m", "two words")
    code, out = process.finish()
    assert (code, process.log) == (0, "")
    *replies, last = objects(out)
    assert [without_time(told) for told in replies] == [reply("one"), reply("two words")]
    assert last == summary(2, 2)


@posix
def test_any_bytes_are_text_in_json(serve, client):
    messages = [b"", b'"quoted\\"', b"\xff\x1b[31m\r", "naïve 猫".encode()]
    code, out = client(serve(), *messages_of(*messages), "--json").finish()
    assert code == 0
    texts = ["", r'"quoted\\"', r"\xff\x1b[31m\r", "naïve 猫"]
    assert [told["received"] for told in objects(out)[:-1]] == texts
    assert [told["sent"] for told in objects(out)[:-1]] == texts


def test_exit_is_no_message_in_the_summary(serve, client):
    process = client(serve(), "-J", "-m", "one", "-m", "exit")
    code, out = process.finish()
    assert (code, process.log) == (0, "")
    first, last = objects(out)
    assert (without_time(first), last) == (reply("one"), summary(1, 1))


def test_in_json_a_reply_that_differs_says_so_and_the_exit_code_does(serve, client):
    process = client(serve(Shout), "-J", "-m", "12", "-m", "ab", "-m", "CD", "-m", "ef")
    code, out = process.finish()
    assert code == 3
    assert one_complaint(process, "differs", "byte 0")
    *replies, last = objects(out)
    assert [without_time(told) for told in replies] == [reply("12"), reply("ab", "AB"), reply("CD"), reply("ef", "EF")]
    assert last == summary(4, 4, different=2)


def once(sock):
    """Send back one line and end the session."""
    sock.sendall(read_exactly(sock, 4))


def once_abruptly(sock):
    """Send back one line; when the next one has come, reset the connection."""
    sock.sendall(read_exactly(sock, 4))
    read_exactly(sock, 4)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def once_and_half(sock):
    """Send back one line, and half of the next."""
    sock.sendall(read_exactly(sock, 4))
    sock.sendall(read_exactly(sock, 4)[:2])


def once_and_silent(sock):
    """Send back one line, read everything else."""
    sock.sendall(read_exactly(sock, 4))
    silent(sock)


@pytest.mark.parametrize("talk", [once, once_abruptly, once_and_half, once_and_silent], ids=lambda talk: talk.__name__)
def test_the_summary_comes_last_when_replies_are_missing_too(serve, client, talk):
    process = client(serve(plain(talk)), "-J", "-w", "1s", "-m", "one", "-m", "two", "-m", "ten")
    code, out = process.finish()
    assert code == 1
    assert one_complaint(process)
    first, last = objects(out)
    assert (without_time(first), last) == (reply("one"), summary(3, 1))


STUCK = """\
import threading
import echo

class Stuck(echo.EchoRequestHandler):
    def message_received(self, message):
        if message == b"two":
            threading.Event().wait()
        super().message_received(message)
"""


def test_the_summary_comes_last_when_the_server_is_killed_in_the_middle(server_command, client, tmp_path):
    (tmp_path / "stuck.py").write_text(STUCK)
    server = server_command("--handler", "stuck:Stuck", cwd=str(tmp_path))
    process = client(server, "-J", "-w", "0", "-m", "one", "-m", "two", "-m", "ten")
    begun = process.popen.stdout.readline()
    server.popen.kill()  # and nothing listens there any more
    code, out = process.finish()
    assert code == 1
    assert one_complaint(process, "2 of 3 replies are missing")
    first, last = objects(begun + out)
    assert (without_time(first), last) == (reply("one"), summary(3, 1))


def test_a_verbose_pipe_tells_the_connection_and_how_much_came_back(serve, client):
    process = client(serve(), "-v")
    assert process.finish(b"a\nbc") == (0, b"a\nbc")
    assert re.fullmatch(r"connected to 127\.0\.0\.1:\d+ in [\d.]+ ms\n4 bytes came back, as sent\n", process.log)


@pytest.mark.parametrize("options", [["-J"], ["-q"], ["-v"], ["-J", "-q", "-v"]], ids="".join)
def test_where_nothing_listens_the_complaint_is_all_and_the_summary_in_json(client, options):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        process = client(nobody.getsockname(), "-m", "one", *options)
        code, out = process.finish()
    assert code == 1
    assert one_complaint(process, "nothing listens")
    if "-J" in options:
        (told,) = objects(out)
        assert told["event"] == "summary" and "nothing listens" in told["error"]
    else:
        assert out == b""


@posix
def test_the_summary_comes_last_after_an_interruption(serve, client):
    waiting = threading.Event()

    def talk(sock):
        once(sock)
        read_exactly(sock, 4)
        waiting.set()
        silent(sock)

    process = client(serve(plain(talk)), "-J", "-w", "0", "-m", "one", "-m", "two")
    assert waiting.wait(DEADLINE)
    process.popen.send_signal(signal.SIGINT)
    code, out = process.finish()
    assert (code, process.log) == (130, "")
    assert objects(out)[-1] == summary(2, 1)


@pytest.mark.parametrize(
    "handler, messages, code, told",
    [
        (echo.EchoRequestHandler, ["ab", "", "cd"], 0, "3 sent, 3 came back, 0 of them different, 0 missing"),
        (echo.EchoRequestHandler, ["ab", "exit"], 0, "1 sent, 1 came back, 0 of them different, 0 missing"),
        (echo.EchoRequestHandler, ["exit", "ab"], 1, "1 sent, 0 came back, 0 of them different, 1 missing"),
        (Shout, ["ab", "12", "cd"], 3, "3 sent, 3 came back, 2 of them different, 0 missing"),
        (plain(once), ["one", "two", "six"], 1, "3 sent, 1 came back, 0 of them different, 2 missing"),
    ],
)
def test_quietly_only_the_summary_is_told(serve, client, handler, messages, code, told):
    process = client(serve(type("Handler", (handler,), {})), "-q", *messages_of(*messages))
    assert process.finish() == (code, f"{told}\n".encode())
    assert process.log == "" if code == 0 else one_complaint(process)


def test_quietly_in_json_the_summary_alone_is_told(serve, client):
    process = client(serve(), "-q", "-J", "-m", "one", "-m", "two")
    code, out = process.finish()
    assert (code, process.log) == (0, "")
    assert objects(out) == [summary(2, 2)]


@pytest.mark.parametrize("options", [[], ["-J"], ["-q"]], ids=["text", "json", "quiet"])
def test_details_go_to_stderr(serve, client, options):
    process = client(serve(), "-v", *options, "-m", "one", "-m", "a")
    code, out = process.finish()
    assert code == 0
    connected, *details = process.log.splitlines()
    assert re.fullmatch(r"connected to 127\.0\.0\.1:\d+ in \d+(\.\d+)? ms", connected)
    assert re.fullmatch(r"3 bytes back after \d+(\.\d+)? ms\n1 byte back after \d+(\.\d+)? ms", "\n".join(details))
    if not options:
        assert out == b"one\na\n"
    elif options == ["-J"]:
        assert [told["event"] for told in objects(out)] == ["reply", "reply", "summary"]
    else:
        assert out == b"2 sent, 2 came back, 0 of them different, 0 missing\n"


@posix
def test_a_reader_of_json_that_goes_away_ends_the_client_without_a_word(serve, client):
    process = client(serve(), "-J", *messages_of(*["x" * 100] * 3000))
    assert process.popen.stdout.read(1) == b"{"
    process.popen.stdout.close()
    assert process.finish()[0] == 1
    assert process.log == ""


@pytest.mark.parametrize("options", [["-J"], ["--json", "-q"], ["-J", "-v", "--framing", "raw"]], ids=" ".join)
def test_json_needs_something_to_tell(serve, client, options):
    handler = Recorder.of(echo.EchoRequestHandler)
    process = client(serve(handler), *options)
    assert process.finish(b"one\n") == (2, b"")
    assert one_complaint(process, "--json is for -m, --ping or --bench")
    assert handler.events == []


# A pipe: all of standard input.


@pytest.mark.parametrize("framing", ["raw", "length"])
def test_any_bytes_in_a_pipe_come_back_as_they_were(serve, client, framing):
    data = random.Random(framing).getrandbits(8 * 20_000_000).to_bytes(20_000_000, "big")
    process = client(serve(echo_of(framing)), "--framing", framing)
    code, out = process.finish(data)
    assert (code, process.log) == (0, "")
    assert out == data


def test_lines_in_a_pipe_come_back_as_they_were(serve, client):
    source = random.Random("lines")
    block = b"".join(
        bytes(source.choices([c for c in range(256) if c != 10], k=source.choice([0, 1, 5, 80, 3000]))) + b"\n"
        for _ in range(1000)
    )
    data = block * (20_000_000 // len(block))
    process = client(serve())
    code, out = process.finish(data)
    assert (code, process.log) == (0, "")
    assert out == data


@pytest.mark.parametrize("options", [["-q"], ["-v"], ["-q", "-v"]], ids=" ".join)
@pytest.mark.parametrize("framing", ["line", "length", "raw"])
def test_quiet_and_verbose_change_nothing_of_what_a_pipe_brings_back(serve, client, framing, options):
    data = b"one\n\xff\x00\r\n" * 50_000 + b"last"
    process = client(serve(echo_of(framing)), "--framing", framing, *options)
    assert process.finish(data) == (0, data)
    assert bool(process.log) == ("-v" in options)


@pytest.mark.parametrize("option", ["-q", "-v"])
def test_quiet_and_verbose_hide_no_failure_of_a_pipe(serve, client, option):
    process = client(serve(plain(lambda sock: sock.sendall(read_all(sock)[:-3]))), option)
    assert process.finish(b"one\ntwo\n") == (1, b"one\nt")
    *details, complaint = process.log.splitlines()
    assert complaint == "echo.client: the server ended the session; 3 bytes did not come back"
    assert len(details) == (option == "-v") and "as sent" not in process.log


@posix
@pytest.mark.parametrize("framing", ["line", "raw"])
def test_memory_stays_small_however_much_goes_through(server_command, run, tmp_path, framing):
    block = random.Random(1).getrandbits(8 << 20).to_bytes(1 << 20, "big")
    block = b"\n".join(block[start : start + 1000] for start in range(0, len(block), 1001))  # no line over the limit
    digest = hashlib.sha256()
    with open(tmp_path / "in", "wb") as file:
        for _ in range(200):
            file.write(block)
            digest.update(block)
    server = server_command("--framing", framing, "--no-log-messages")
    with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as result:
        process = run(
            *("echo.client", "127.0.0.1", str(server.address[1]), "--framing", framing),
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
def test_a_last_line_needs_no_end(serve, client, data):
    process = client(serve())
    assert process.finish(data) == (0, data)
    assert process.log == ""


@pytest.mark.parametrize("word", [b"exit\n", b" EXIT \r\n", b"Exit"])
def test_exit_in_a_pipe_ends_the_session_in_peace(serve, client, word):
    handler = Recorder.of(echo.EchoRequestHandler)
    process = client(serve(handler))
    assert process.finish(b"one\ntwo\n" + word) == (0, b"one\ntwo\n")
    assert process.log == ""
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["exit"]


def test_nothing_goes_out_after_exit_in_a_pipe(serve, client):
    received = []

    def talk(sock):
        data = read_all(sock)
        sock.sendall(data.split(b"exit")[0])
        received.append(data)

    process = client(serve(plain(talk)))
    assert process.finish(b"one\nexit\n" + b"junk\n" * 100_000) == (1, b"one\n")
    assert process.log == f"echo.client: line 2 of the input {LEFT_BEHIND}\n"
    assert received == [b"one\nexit\n"]


@pytest.mark.parametrize("exit_word", [b"exit", None], ids=["known", "unknown"])
@pytest.mark.parametrize("word", [b"exit\n", b" EXIT \r\n"])
@pytest.mark.parametrize(
    "before, after",
    [(b"", b"more\n"), (b"one\ntwo\n", b"without an end"), (b"one\n", b"\n"), (b"12345\n" * 30_000, b"exit\n")],
    ids=["first", "unended", "empty", "late"],
)
def test_input_after_an_exit_is_told_to_be_left_behind(serve, client, exit_word, word, before, after):
    handler = type("Handler", (echo.EchoRequestHandler,), {"exit_word": exit_word})
    process = client(serve(handler), "-w", "0")
    back = before if exit_word else before + word
    assert process.finish(before + word + after) == (1, back)
    number = before.count(b"\n") + 1
    assert process.log == f"echo.client: line {number} of the input {LEFT_BEHIND}\n"


@pytest.mark.parametrize("exit_word", [b"exit", None], ids=["known", "unknown"])
@pytest.mark.parametrize("after", [b"", b"more\n"], ids=["nothing", "more"])
def test_what_follows_an_exit_may_be_in_another_read(serve, client, tmp_path, exit_word, after):
    handler = type("Handler", (echo.EchoRequestHandler,), {"exit_word": exit_word})
    data = b"x\n".rjust(CHUNK - 5, b"y") + b"exit\n"
    (tmp_path / "in").write_bytes(data + after)
    with open(tmp_path / "in", "rb") as source:
        process = client(serve(handler), stdin=source)
        code, out = process.finish()
    assert (code, out == (data[:-5] if exit_word else data)) == (1 if after else 0, True)
    assert process.log == (f"echo.client: line 2 of the input {LEFT_BEHIND}\n" if after else "")


@pytest.mark.parametrize("framing", ["raw", "length"])
@pytest.mark.parametrize("after", [b"", b"more"], ids=["nothing", "more"])
def test_without_lines_it_is_a_part_of_the_input_that_is_an_exit(serve, client, framing, after):
    handler = echo_of(framing)
    handler.framing = type(handler.framing)(4)
    process = client(serve(handler), "--framing", framing, "--max-message", "4")
    assert process.finish(b"one.exit" + after) == (1 if after else 0, b"one.")
    assert process.log == (f"echo.client: a part of the input {LEFT_BEHIND}\n" if after else "")


@pytest.mark.parametrize("framing", ["line", "raw"])
def test_exit_in_a_pipe_is_a_peaceful_end_every_time(serve, client, framing):
    # The server's end may come before the sending side of the client has noticed its own.
    server = serve(echo_of(framing))
    for _ in range(4):
        batch = [client(server, "--framing", framing) for _ in range(10)]
        assert [process.finish(b"exit\n") for process in batch] == [(0, b"")] * 10
        assert [process.log for process in batch] == [""] * 10


def test_exit_ends_a_pipe_whose_writer_goes_on(serve, client):
    process = client(serve())
    process.popen.stdin.write(b"one\nexit\n")
    process.popen.stdin.flush()
    assert process.popen.wait(DEADLINE) == 0
    assert process.popen.stdout.read() == b"one\n"


def test_a_service_that_knows_no_exit_may_send_it_back(serve, client):
    handler = type("Handler", (echo.EchoRequestHandler,), {"exit_word": None})
    process = client(serve(handler))
    assert process.finish(b"one\nexit\n") == (0, b"one\nexit\n")
    assert process.log == ""


def test_replies_are_written_while_the_input_is_still_open(serve, client):
    process = client(serve())
    for line in (b"one\n", b"two\n", b"three\n"):
        process.popen.stdin.write(line)
        process.popen.stdin.flush()
        assert process.popen.stdout.readline() == line
    assert process.finish() == (0, b"")


def test_an_idle_input_is_no_timeout(serve, client):
    handler = Recorder.of(echo.EchoRequestHandler)
    process = client(serve(handler), "-w", "100ms")
    eventually(lambda: handler.events)
    with pytest.raises(subprocess.TimeoutExpired):
        process.popen.wait(0.6)  # several times what a reply may take
    assert process.finish(b"late\n") == (0, b"late\n")


def test_of_a_line_over_the_limit_nothing_is_sent(serve, client):
    handler = Recorder.of(echo.EchoRequestHandler)
    process = client(serve(handler), "--max-message", "10")
    assert process.finish(b"short\n" + b"x" * 11 + b"\nnever\n") == (1, b"short\n")
    assert one_complaint(process, "line 2", "10 bytes")
    assert handler.ended.wait(DEADLINE)
    assert handler.events == ["made", b"short", "lost"]


def test_of_an_endless_line_nothing_is_sent(serve, client):
    received = []
    process = client(serve(plain(lambda sock: received.append(read_all(sock)))))
    assert process.finish(b"x" * 5_000_000) == (1, b"")
    assert one_complaint(process, "line 1", "65536 bytes")
    assert eventually(lambda: received) == [b""]


def test_a_flipped_byte_in_a_pipe_has_its_own_exit_code(serve, client):
    data = bytes(1_000_000)

    def talk(sock):
        received = read_all(sock)
        sock.sendall(received[:700_000] + b"\x01" + received[700_001:])

    process = client(serve(plain(talk)), "--framing", "raw", "-w", "30s")
    code, out = process.finish(data)
    assert code == 3
    assert one_complaint(process, "differs", "byte 700000 ")
    assert out[:700_000] == data[:700_000]


def test_more_than_was_sent_differs_too(serve, client):
    process = client(serve(plain(lambda sock: sock.sendall(read_all(sock) + b"!"))))
    assert process.finish(b"one\n") == (3, b"one\n!")
    assert one_complaint(process, "differs", "byte 4 ")


def test_missing_bytes_at_the_end_are_a_failure(serve, client):
    process = client(serve(plain(lambda sock: sock.sendall(read_all(sock)[:-300]))), "--framing", "raw")
    assert process.finish(b"y" * 1000) == (1, b"y" * 700)
    assert one_complaint(process, "300 bytes did not come back")


def test_a_server_that_dies_in_mid_session_is_a_failure(server_command, client):
    server = server_command("--no-log-messages")
    process = client(server)
    process.popen.stdin.write(b"one\n")
    process.popen.stdin.flush()
    assert process.popen.stdout.readline() == b"one\n"
    server.popen.kill()
    assert process.popen.wait(DEADLINE) == 1  # at once, although the input is still open
    process.finish()
    assert one_complaint(process)


def test_no_reply_in_time_is_a_failure_in_a_pipe(serve, client):
    done = threading.Event()
    process = client(serve(plain(lambda sock: done.wait(DEADLINE * 3))), "-w", "300ms")
    try:
        assert process.finish(b"one\n") == (1, b"")
    finally:
        done.set()
    assert one_complaint(process, f"nothing came back for 0.3 s; 4 bytes are missing; {PERHAPS}\n")


def test_a_server_that_does_not_read_ends_the_client_in_time(serve, client):
    done = threading.Event()
    process = client(serve(plain(lambda sock: done.wait(DEADLINE * 3))), "--framing", "raw", "-w", "300ms")
    try:
        assert process.finish(bytes(30_000_000))[0] == 1
    finally:
        done.set()
    assert one_complaint(process)


@pytest.fixture
def much(tmp_path):
    """An input of more than what fits between a client and a server that does not read."""
    with open(tmp_path / "much", "wb+") as file:
        file.write(b"first\n" + b"0123456789\n" * 3_000_000)
        file.seek(0)
        yield file


@pytest.fixture
def deaf():
    """``deaf(answer)``: a handler that reads the first line alone, and sends ``answer`` when all buffers are full."""
    done = threading.Event()

    def handler(answer):
        def talk(sock):
            read_exactly(sock, 6)
            seen = collections.deque([0], maxlen=60)
            eventually(lambda: seen.append(unread(sock)) or (len(seen) == 60 and len(set(seen)) == 1))
            sock.sendall(answer)
            done.wait(DEADLINE * 3)

        return plain(talk)

    yield handler
    done.set()


@pytest.mark.parametrize("patience", ["0", "5m"])
def test_a_mismatch_ends_the_client_at_once_although_the_server_does_not_read(serve, client, much, deaf, patience):
    process = client(serve(deaf(b"junk\n")), "-w", patience, stdin=much)
    assert process.popen.wait(DEADLINE) == 3
    assert process.finish() == (3, b"junk\n")
    assert one_complaint(process, "differs", "byte 0 ")


def sleeps(pid):
    """Whether its main thread waits for the system; true where nobody can tell."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "S"
    except FileNotFoundError:
        return True


@posix
@pytest.mark.parametrize("patience", ["0", "5m"])
def test_sigint_ends_the_client_at_once_although_the_server_does_not_read(serve, client, much, deaf, patience):
    process = client(serve(deaf(b"first\n")), "-w", patience, stdin=much)
    assert process.popen.stdout.readline() == b"first\n"
    eventually(lambda: sleeps(process.popen.pid))  # a signal in the moment before it does is acted on only after it
    process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(DEADLINE) == 130
    process.finish()
    assert process.log == ""


# Command lines and addresses that lead nowhere: one line, the right code.


def test_a_refused_connection_is_one_line(client):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        process = client(("127.0.0.1", port))
        assert process.finish() == (1, b"")
    advice = f"nothing listens on 127.0.0.1:{port}; start a server there: python3 -m echo.server {port}\n"
    assert one_complaint(process, advice)


def test_started_through_its_script_it_calls_itself_and_the_server_by_their_names(run, tmp_path):
    script = tmp_path / "echo-client"
    script.write_text("import sys\nfrom echo.client.__main__ import main\nsys.exit(main())\n")
    options = {"program": [sys.executable, str(script)]}
    told = run("--version", **options)
    assert told.finish() == (0, f"echo-client {echo.__version__}\n".encode())
    told = run("--help", **options)
    code, out = told.finish()
    assert code == 0 and out.startswith(b"usage: echo-client ")
    refused = run("--json", **options)
    assert refused.finish() == (2, b"")
    assert refused.log == "echo-client: --json is for -m, --ping or --bench; see --help\n"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        refused = run("127.0.0.1", str(port), "-m", "hello", **options)
        assert refused.finish() == (1, b"")
    where = f"127.0.0.1:{port}"
    assert refused.log == f"echo-client: nothing listens on {where}; start a server there: echo-server {port}\n"


@pytest.mark.parametrize("host", ["nohost.invalid", "", "a" * 80, "a..b"], ids=["unknown", "empty", "long", "dots"])
def test_a_host_that_cannot_be_found_is_one_line(run, host):
    process = run("echo.client", host, "9", "-m", "x")
    assert process.finish() == (1, b"")
    assert one_complaint(process, repr(host))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["127.0.0.1", "http"], ["'http' is no port", "0 to 65535"]),
        (["127.0.0.1", "65536"], ["'65536' is no port", "0 to 65535"]),
        (["127.0.0.1", "9" * 20], ["is no port"]),
        (["127.0.0.1", "-1"], []),
        (["127.0.0.1", "1.5"], ["'1.5' is no port"]),
        (["127.0.0.1", "\u0661"], ["is no port"]),
        (["65432"], ["'65432' is no host", "the host comes first"]),
        (["127.0.0.1", "9", "extra"], ["extra"]),
        (["--nonsense"], ["--nonsense"]),
        (["--vers"], ["--vers"]),
        (["-m"], ["-m"]),
        (["-w", "soon"], ["'soon' is no duration", "500ms"]),
        (["-w", "5 s"], ["'5 s' is no duration"]),
        (["-w", "-1"], ["-w"]),
        (["--framing", "xml"], ["xml", "line", "length", "raw"]),
        (["--max-message", "0"], ["'0' is no size"]),
        (["--max-message", "many"], ["'many' is no size"]),
    ],
)
def test_a_command_line_that_makes_no_sense_is_one_line(run, arguments, words):
    process = run("echo.client", *arguments)
    assert process.finish() == (2, b"")
    assert one_complaint(process, *words)


@pytest.mark.parametrize("time", ["99999999999999999h", "9" * 400], ids=["long", "infinite"])
def test_a_duration_beyond_measure_gives_no_traceback(serve, client, time):
    process = client(serve(), "-m", "x", "-w", time)
    assert process.finish() in [(0, b"x\n"), (2, b"")]
    assert process.log == "" or one_complaint(process)


@pytest.mark.parametrize("time", ["500ms", "30s", "5m", "1h", "1.5", "30", "0"])
def test_durations_have_units(serve, client, time):
    process = client(serve(), "-m", "x", "-w", time)
    assert process.finish() == (0, b"x\n")


# What the reader of the output, the user and the interpreter may do.


@posix
def test_a_reader_that_goes_away_ends_the_client_without_a_word(serve, client, tmp_path):
    with open(tmp_path / "in", "wb+") as source:
        source.write(b"0123456789\n" * 500_000)
        source.seek(0)
        process = client(serve(), stdin=source)
        assert process.popen.stdout.read(1) == b"0"
        process.popen.stdout.close()
        assert process.finish()[0] == 1
    assert process.log == ""


@posix
def test_a_reader_that_has_gone_before_the_first_reply_gives_no_traceback(serve, client):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = client(serve(), "-m", "one", stdout=writer)
    finally:
        os.close(writer)
    assert process.finish()[0] == 1
    assert process.log == ""


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("options", [["-m", "one"], []], ids=["messages", "pipe"])
def test_a_full_disk_is_one_line(serve, client, options):
    with open("/dev/full", "wb") as full:
        process = client(serve(), *options, stdout=full)
        assert process.finish(b"one\n")[0] == 1
    assert one_complaint(process)


@posix
@pytest.mark.parametrize("closing", ["<&-", ">&-"])
@pytest.mark.parametrize("options", ["-m one", ""])
def test_standard_streams_that_are_closed_give_no_traceback(serve, tmp_path, closing, options):
    port = serve().server_address[1]
    command = f'printf "two\\n" | "{sys.executable}" -m echo.client 127.0.0.1 {port} {options} {closing}'
    done = subprocess.run(
        ["sh", "-c", command],
        env=dict(os.environ, PYTHONPATH=ROOT),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=DEADLINE,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") <= 1


@posix
def test_sigint_ends_a_pipe_without_a_traceback(serve, client):
    process = client(serve())
    process.popen.stdin.write(b"one\n")
    process.popen.stdin.flush()
    assert process.popen.stdout.readline() == b"one\n"
    process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(DEADLINE) == 130
    process.finish()
    assert process.log == ""


@posix
def test_sigint_ends_the_wait_for_a_reply_without_a_traceback(serve, client):
    waiting = threading.Event()

    def talk(sock):
        sock.recv(4096)
        waiting.set()
        silent(sock)

    process = client(serve(plain(talk)), "-m", "one", "-w", "0")
    assert waiting.wait(DEADLINE)
    process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(DEADLINE) == 130
    process.finish()
    assert process.log == ""


@pytest.mark.parametrize("module", ["echo.client", "echo.server"])
def test_the_version_is_told_without_a_warning(run, module):
    process = run(module, "--version", python_options=("-W", "error"))
    assert process.finish() == (0, f"{module} {echo.__version__}\n".encode())
    assert process.log == ""


def test_a_whole_session_warns_of_nothing(serve, client):
    process = client(serve(), python_options=("-W", "error", "-X", "dev"))
    assert process.finish(b"one\n") == (0, b"one\n")
    assert process.log == ""


def test_a_line_behind_an_exit_that_is_too_long_is_left_behind_as_well(serve, client):
    process = client(serve(), "--max-message", "10")
    assert process.finish(b"one\nexit\n" + b"x" * 36 + b"\n") == (1, b"one\n")
    assert process.log == f"echo.client: line 2 of the input {LEFT_BEHIND}\n"


@posix
def test_whether_there_is_more_is_seen_and_nothing_taken(monkeypatch):
    monkeypatch.setattr(pipe, "PATIENCE", 0)
    source, sink = os.pipe()
    assert not pipe._has_more(source)
    os.write(sink, b"more")
    assert pipe._has_more(source)
    assert os.read(source, 10) == b"more"
    os.close(sink)
    assert not pipe._has_more(source)  # the end is readable, too
    os.close(source)


@posix
def test_what_is_typed_ahead_at_a_terminal_is_the_shells(monkeypatch):
    master, slave = os.openpty()
    os.write(master, b"ls\n")
    assert not pipe._has_more(slave)
    assert os.read(slave, 10) == b"ls\n"
    os.close(master)
    os.close(slave)
