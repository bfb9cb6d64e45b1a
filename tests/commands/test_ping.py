"""``python -m echo.client --ping``: what it calls each thing that may come back, or not; its summary; its end."""

import contextlib
import errno
import os
import re
import signal
import socket
import threading

import pytest

import echo
from support import DEADLINE, Recorder, eventually, plain
from support.measuring import (
    THROUGH_TIMEOUT,
    WITHOUT_INPUT,
    ClosesAtTheFourth,
    Counting,
    CutsEachThird,
    DropsEachFifth,
    Endless,
    FlipsAByteOfEachThird,
    Greets,
    NeverAnswers,
    ResetsAtTheFourth,
    SaysItTwice,
    SpeaksUnasked,
    SwapsPairs,
    arguments_for,
    echo_of,
    events,
    every_framing,
    finish,
    have_units,
    needs_socat,
    one_complaint,
    posix,
    read_until,
    send_back,
    socat_that_echoes,
    twice,
)


@pytest.fixture
def ping(run):
    """``ping(server, *options)``: a running ping of the server."""

    def start(server, *options, **popen_options):
        return run("echo.client", *arguments_for(server), "--ping", *options, **popen_options)

    return start


def counts(text):
    """What the one summary counts: ``{"transmitted": 3, ...}``, ``loss`` in percent."""
    (line,) = re.findall(r"^--- \S+ echo statistics ---\n(.*)\n", text, re.MULTILINE)
    (before, loss) = re.fullmatch(r"(.*), ([\d.]+)% loss, time \d+ ms", line).groups()
    found = {name: int(number) for number, name in (part.split(" ", 1) for part in before.split(", "))}
    return dict(found, loss=float(loss))


def all_right(text, number):
    return counts(text) == {"transmitted": number, "received": number, "corrupted": 0, "loss": 0}


def told_of(text, seq):
    """What is told of one number, without its time: a list."""
    lines = re.findall(rf"^.*\bseq={seq}\b.*$", text, re.MULTILINE)
    return [re.sub(r" time=[\d.]+ ms", "", line).partition(f"seq={seq}")[2].strip() for line in lines]


# Services that are echoes.


@every_framing
def test_each_reply_is_told_and_all_are_summed_up(serve, ping, framing):
    server = serve(echo_of(framing))
    process = ping(server, "--framing", framing, "-c", "3", "-i", "10ms")
    code, text = finish(process)
    assert (code, process.log) == (0, "")
    where = re.escape("%s:%s" % server.server_address)
    reply = rf"64 bytes from {where}: seq=%d time=[\d.]+ ms\n"
    assert re.fullmatch(
        rf"ECHO {where}: 64 bytes, connected in [\d.]+ ms\n"
        + "".join(reply % seq for seq in (1, 2, 3))
        + rf"\n--- {where} echo statistics ---\n"
        r"3 transmitted, 3 received, 0 corrupted, 0% loss, time \d+ ms\n"
        r"rtt min/avg/max/mdev = [\d.]+/[\d.]+/[\d.]+/[\d.]+ ms\n"
        r"rtt p50 = [\d.]+ ms\n"
        r"connect [\d.]+ ms\n",
        text,
    ), text


@every_framing
def test_a_plain_echo_of_bytes_is_right_under_every_framing(serve, ping, framing):
    process = ping(serve(plain(send_back)), "--framing", framing, "-c", "20", "-i", "0", "-s", "2500")
    code, text = finish(process)
    assert (code, process.log) == (0, "")
    assert all_right(text, 20)


@needs_socat
@every_framing
def test_socat_is_right_under_every_framing(ping, framing):
    with socat_that_echoes() as address:
        code, text = finish(ping(address, "--framing", framing, "-c", "3", "-i", "10ms"))
    assert code == 0
    assert all_right(text, 3)


@pytest.mark.parametrize("size", ["20", "64", "9k", "64k"])
def test_a_message_is_as_long_as_was_asked_for(serve, ping, size):
    handler = Recorder.of(echo.EchoRequestHandler)
    code, text = finish(ping(serve(handler), "-c", "2", "-i", "0", "-s", size))
    assert code == 0
    assert all_right(text, 2)
    expected = int(size.replace("k", "")) * (1024 if "k" in size else 1)
    assert [len(message) for message in handler.events[1:3]] == [expected] * 2
    assert f": {expected} bytes, connected" in text and f"{expected} bytes from" in text


def test_under_raw_framing_a_message_may_be_longer_than_any_read(serve, ping):
    code, text = finish(ping(serve(plain(send_back)), "--framing", "raw", "-c", "3", "-i", "0", "-s", "300k"))
    assert code == 0
    assert all_right(text, 3)


def test_messages_are_printable_and_no_two_are_alike(serve, ping):
    handler = Recorder.of(echo.EchoRequestHandler)
    finish(ping(serve(handler), "-c", "100", "-i", "0"))
    messages = handler.events[1:101]
    assert len(set(messages)) == 100
    assert all(message.decode("ascii").isprintable() for message in messages)


def test_without_an_interval_each_is_sent_when_the_one_before_is_back(serve, ping):
    crowded = []

    class Watchful(Counting):
        def answer(self, message):
            if self.number <= 3:  # a moment in which another one could arrive
                self.request.settimeout(0.1)
                with contextlib.suppress(socket.timeout):
                    crowded.append(self.request.recv(1, socket.MSG_PEEK))
                self.request.settimeout(None)
            self.send(message)

    code, text = finish(ping(serve(Watchful), "-i", "0", "-c", "50"))
    assert code == 0
    assert all_right(text, 50)
    assert crowded == []


def test_a_long_wait_is_no_loss_when_there_is_no_limit(serve, ping):
    release = threading.Event()
    handler = type("Handler", (Counting,), {"answer": lambda self, message: release.wait() and self.send(message)})
    process = ping(serve(handler), "-w", "0", "-c", "2", "-i", "10ms")
    read_until(process, "connected in")
    release.set()
    code, text = finish(process)
    assert code == 0
    assert all_right(text, 2)


# Services that are none, or bad ones: each is called what it is.


def test_a_flipped_byte_is_corrupted_and_told_where(serve, ping):
    process = ping(serve(FlipsAByteOfEachThird), "-c", "6", "-i", "0", "-v")
    code, text = finish(process)
    assert code == 3
    assert counts(text) == {"transmitted": 6, "received": 4, "corrupted": 2, "loss": 0}
    flipped = ["corrupted from byte 30 on"]
    assert [told_of(text, seq) for seq in (2, 3, 6)] == [[""], flipped, flipped]
    sent, received = re.match(r"  sent     (.{64})\n  received (.{64})\n", process.log).groups()
    assert sent.startswith("00000003") and sent != received
    assert sent[:30] + sent[31:] == received[:30] + received[31:]


def test_without_v_nothing_is_told_on_stderr(serve, ping):
    process = ping(serve(FlipsAByteOfEachThird), "-c", "3", "-i", "0")
    assert finish(process)[0] == 3
    assert process.log == ""


def test_a_reply_that_is_cut_off_is_corrupted_from_there_on(serve, ping):
    code, text = finish(ping(serve(CutsEachThird), "-c", "3", "-i", "0"))
    assert code == 3
    assert told_of(text, 3) == ["corrupted from byte 57 on"]
    assert "57 bytes from" in text


def test_a_dropped_reply_is_lost(serve, ping):
    code, text = finish(ping(serve(DropsEachFifth), "-c", "6", "-i", "0", "-w", "1s"))
    assert code == 1
    assert counts(text) == {"transmitted": 6, "received": 5, "corrupted": 0, "loss": 16.67}
    assert told_of(text, 5) == ["lost: no reply after 1 s"]


def test_replies_in_another_order_are_told(serve, ping):
    code, text = finish(ping(serve(SwapsPairs), "-c", "4", "-i", "20ms"))
    assert code == 3
    assert counts(text) == {"transmitted": 4, "received": 4, "corrupted": 0, "out of order": 2, "loss": 0}
    assert [told_of(text, seq) for seq in (1, 2, 3, 4)] == [["out of order"], [""]] * 2


def test_a_reply_that_comes_twice_is_doubled(serve, ping):
    code, text = finish(ping(serve(SaysItTwice), "-c", "3", "-i", "20ms"))
    assert code == 3
    assert counts(text)["received"] == 3
    assert told_of(text, 1) == ["", "doubled"]
    assert told_of(text, 2) == ["", "doubled"]


def test_a_reply_after_the_time_is_lost_and_late_when_it_comes(serve, ping):
    release = threading.Event()

    class HoldsTheFirst(Counting):
        def answer(self, message):
            if self.number == 1:
                self.held = message
                return
            if self.held and release.is_set():
                self.send(self.held)
                self.held = None
            self.send(message)

    process = ping(serve(HoldsTheFirst), "-i", "30ms", "-w", "150ms")
    read_until(process, r"seq=1 lost: no reply after 0\.15 s\n")
    release.set()
    read_until(process, r"seq=1 late\n")
    process.popen.send_signal(signal.SIGINT)
    code, text = finish(process)
    assert code == 1  # it is missing; nothing was wrong with it
    assert counts(text)["late"] == 1
    assert counts(text)["loss"] > 0


def test_a_word_that_nobody_asked_for_is_told(serve, ping):
    process = ping(serve(SpeaksUnasked), "-c", "4", "-i", "20ms", "-v")
    code, text = finish(process)
    assert code == 3
    assert counts(text) == {"transmitted": 4, "received": 4, "corrupted": 0, "not asked for": 1, "loss": 0}
    assert re.search(r"^10 bytes from \S+: not asked for$", text, re.MULTILINE)
    assert "received by the way\n" in process.log


def test_a_greeting_is_something_wrong(serve, ping):
    code, text = finish(ping(serve(Greets), "-c", "3", "-i", "10ms"))
    assert code == 3
    assert [told_of(text, seq) for seq in (2, 3)] == [[""], [""]]


def test_a_reply_that_belongs_to_another_connection_is_told(serve, ping):
    heard = []

    class MixesUp(echo.EchoRequestHandler):
        def message_received(self, message):
            heard.append(message)
            if len(heard) == 1:
                self.send(message)
                self.close()  # so that the next one comes by another connection
            elif len(heard) == 2:
                self.send(heard[0])
            else:
                self.send(message)

    process = ping(serve(MixesUp), "-c", "3", "-i", "200ms", "-w", "1s")
    code, text = finish(process)
    assert code == 3
    assert counts(text)["another connection's"] == 1
    assert re.search(r"^64 bytes from \S+: another connection's$", text, re.MULTILINE)


def test_a_closed_connection_costs_what_was_on_its_way_and_the_next_is_made(serve, ping):
    code, text = finish(ping(serve(ClosesAtTheFourth), "-c", "6", "-i", "20ms"))
    assert code == 1
    assert counts(text) == {"transmitted": 6, "received": 5, "corrupted": 0, "loss": 16.67}
    assert told_of(text, 4) == ["lost: the server has ended the session"]
    assert text.count("connected in") == 2
    assert re.search(r"^connect min/avg/max/mdev = ", text, re.MULTILINE)


def test_an_end_between_two_messages_costs_nothing(serve, ping):
    class Once(echo.EchoRequestHandler):
        def message_received(self, message):
            self.send(message)
            self.close()

    process = ping(serve(Once), "-c", "2", "-i", "500ms")
    code, text = finish(process)
    assert code == 0
    assert all_right(text, 2)
    assert re.search(r"^\S+: the server has ended the session$", text, re.MULTILINE)
    assert text.count("connected in") == 2


def test_a_reset_connection_is_told_as_one(serve, ping):
    code, text = finish(ping(serve(ResetsAtTheFourth), "-c", "5", "-i", "20ms"))
    assert code == 1
    assert told_of(text, 4) == [f"lost: the connection was lost: {os.strerror(errno.ECONNRESET)}"]
    assert told_of(text, 5) == [""]


def test_a_server_that_never_answers_loses_everything(serve, ping):
    code, text = finish(ping(serve(NeverAnswers), "-c", "3", "-i", "10ms", "-w", "100ms"))
    assert code == 1
    assert counts(text) == {"transmitted": 3, "received": 0, "corrupted": 0, "loss": 100}
    assert [told_of(text, seq) for seq in (1, 2, 3)] == [["lost: no reply after 0.1 s"]] * 3
    assert "rtt" not in text


def test_an_endless_line_ends_that_connection(serve, ping):
    code, text = finish(ping(serve(Endless), "-c", "2", "-i", "10ms"))
    assert code == 1
    assert counts(text)["loss"] == 100
    assert told_of(text, 1) == ["lost: a message is longer than the limit of 65536 bytes"]


def test_half_a_reply_at_the_end_is_lost(serve, ping):
    def talk(sock):
        sock.sendall(sock.recv(1000)[:17])

    code, text = finish(ping(serve(plain(talk)), "-c", "1"))
    assert code == 1
    assert told_of(text, 1) == ["lost: the input ended inside a message, after 17 bytes of it"]


def test_a_server_that_is_not_there_loses_everything(ping):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        process = ping(nobody.getsockname(), "-c", "3", "-i", "10ms")
        code, text = finish(process)
    assert (code, process.log) == (1, "")
    assert counts(text) == {"transmitted": 3, "received": 0, "corrupted": 0, "loss": 100}
    assert told_of(text, 3) == [f"lost: cannot connect: {os.strerror(errno.ECONNREFUSED)}"]
    assert "connected in" not in text and "rtt" not in text


def test_a_server_that_goes_and_comes_back_is_found_again(serve, ping):
    server = serve()
    process = ping(server, "-i", "20ms")
    read_until(process, "seq=2 time=")
    server.stop()
    read_until(process, "lost: cannot connect: ")
    with echo.Server(server.server_address, echo.EchoRequestHandler) as again:
        again.start()
        read_until(process, r"connected in [\d.]+ ms\n.*seq=\d+ time=.*\n.*seq=\d+ time=")
        process.popen.send_signal(signal.SIGINT)
        code, text = finish(process)
    assert code == 1
    found = counts(text)
    assert found["received"] >= 4
    assert found["loss"] > 0
    assert found["corrupted"] == 0
    assert text.count("connected in") == 2


# The end that a user makes.


@posix
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_a_signal_ends_it_with_the_summary(serve, ping, signum, again):
    process = ping(serve(), "-i", "20ms")
    read_until(process, "seq=3 time=")
    if again:
        twice(process, signum)
    else:
        process.popen.send_signal(signum)
    code, text = finish(process)
    assert code == 0
    found = counts(text)
    assert found["received"] >= 3
    assert found["loss"] == 0
    assert text.endswith(" ms\n")


@posix
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_tells_of_a_loss_of_all_too(serve, ping, signum):
    process = ping(serve(NeverAnswers), "-i", "100ms", "-w", "250ms")
    read_until(process, "seq=1 lost")
    process.popen.send_signal(signum)
    code, text = finish(process)
    assert code == 1
    found = counts(text)
    assert found["received"] == 0
    assert found["on the way"] >= 1
    assert found["loss"] == 100  # of those whose fate is known


@posix
def test_what_is_on_its_way_at_the_end_is_neither_back_nor_lost(serve, ping):
    handler = Recorder.of(type("Handler", (NeverAnswers,), {}))
    process = ping(serve(handler))
    eventually(lambda: len(handler.events) > 1)
    process.popen.send_signal(signal.SIGINT)
    code, text = finish(process)
    assert code == 1
    assert counts(text) == {"transmitted": 1, "received": 0, "corrupted": 0, "on the way": 1, "loss": 0}


@posix
def test_under_timeout_which_signals_twice_there_is_one_summary(serve, run):
    process = run(
        *("echo.client", *arguments_for(serve()), "--ping", "-i", "20ms"), python_options=("-c", THROUGH_TIMEOUT)
    )
    read_until(process, "seq=2 time=")
    process.popen.send_signal(signal.SIGTERM)  # timeout(1) passes it on as if the time had come
    code, text = finish(process)
    assert code == 0
    assert counts(text)["loss"] == 0


def test_ctrl_c_at_a_terminal_ends_it_with_the_summary(serve, run):
    from support.terminal import CTRL_C, Terminal  # skips where there are no pseudo-terminals

    user = Terminal(run, "echo.client", *arguments_for(serve()), "--ping", "-i", "20ms")
    try:
        user.until(rb"seq=2 time=")
        user.type(CTRL_C)
        assert user.leave() == 0
    finally:
        os.close(user.master)
    assert user.screen.count(b"echo statistics") == 1
    assert user.screen.endswith(b" ms\r\n")


# How it is told.


def test_quiet_is_the_summary_alone(serve, ping):
    process = ping(serve(FlipsAByteOfEachThird), "-c", "3", "-i", "0", "-q")
    code, text = finish(process)
    assert (code, process.log) == (3, "")
    assert text.lstrip("\n").startswith("--- ")
    assert counts(text)["corrupted"] == 1
    assert "seq=" not in text and "connected" not in text


def test_json_is_one_object_a_line_and_the_summary_last(serve, ping):
    server = serve(FlipsAByteOfEachThird)
    process = ping(server, "-c", "3", "-i", "0", "-J", "--histogram")
    code, text = finish(process)
    assert (code, process.log) == (3, "")
    connected, *replies, summary = events(text)
    assert all(have_units(event) for event in (connected, *replies, summary))
    assert (connected["event"], connected["address"]) == ("connected", "%s:%s" % server.server_address)
    assert connected["size_bytes"] == 64
    assert connected["connect_us"] > 0
    assert [(reply["event"], reply["seq"], reply["verdict"], reply.get("offset")) for reply in replies] == [
        ("reply", 1, "right", None),
        ("reply", 2, "right", None),
        ("reply", 3, "corrupted", 30),
    ]
    assert all(reply["rtt_us"] > 0 for reply in replies)
    expected = {"transmitted": 3, "received": 2, "corrupted": 1, "lost": 0, "doubled": 0, "late": 0, "on_the_way": 0}
    assert {name: summary[name] for name in expected} == expected
    assert (summary["rtt_samples"], summary["connect_samples"], summary["loss_percent"]) == (2, 1, 0)
    assert 0 < summary["rtt_min_us"] <= summary["rtt_avg_us"] <= summary["rtt_max_us"]
    assert summary["rtt_min_us"] == min(reply["rtt_us"] for reply in replies[:2])
    assert summary["duration_s"] * 1e6 >= summary["rtt_max_us"]


def test_json_tells_losses_and_lost_connections(serve, ping):
    code, text = finish(ping(serve(ClosesAtTheFourth), "-c", "5", "-i", "20ms", "-J"))
    assert code == 1
    told = events(text)
    assert all(map(have_units, told))
    (lost,) = [event for event in told if event["event"] == "lost"]
    assert lost == {"event": "lost", "seq": 4, "why": "the server has ended the session"}
    assert (told[-1]["lost"], told[-1]["loss_percent"]) == (1, 20.0)


@pytest.mark.parametrize("options", [["-J"], ["-J", "-q"]], ids=["all", "quiet"])
def test_json_has_a_summary_at_a_loss_of_all_too(serve, ping, options):
    code, text = finish(ping(serve(NeverAnswers), "-c", "2", "-i", "10ms", "-w", "50ms", *options))
    assert code == 1
    summary = events(text)[-1]
    assert len(events(text)) == (1 if "-q" in options else 4)
    assert (summary["transmitted"], summary["lost"], summary["loss_percent"]) == (2, 2, 100.0)
    assert summary["rtt_samples"] == 0 and "rtt_avg_us" not in summary


@pytest.mark.parametrize(
    "count, line",
    [
        (1, r"rtt [\d.]+ ms"),
        (2, r"rtt p50 = \S+ ms"),
        (10, r"rtt p50/p90 = \S+ ms"),
        (100, r"rtt p50/p90/p99 = \S+ ms"),
    ],
)
def test_percentiles_are_told_when_there_are_samples_enough(serve, ping, count, line):
    text = finish(ping(serve(), "-c", str(count), "-i", "0", "-q"))[1]
    assert re.search(rf"^{line}$", text, re.MULTILINE), text
    assert ("p50" in text) == (count > 1)


@pytest.mark.parametrize("encoding, bar", [("utf-8", "[█▏▎▍▌▋▊▉]+"), ("ascii", "#+")])
def test_the_histogram_is_drawn_with_what_the_encoding_has(serve, ping, encoding, bar):
    process = ping(serve(), "-c", "30", "-i", "0", "-q", "--histogram", env={"PYTHONIOENCODING": encoding})
    code, text = finish(process)
    assert (code, process.log) == (0, "")
    picture = text.partition("round trips\n")[2].splitlines()
    rows = [re.fullmatch(rf" *([\d.]+) - +([\d.]+) +(\d+)(?: ({bar}))?", row).groups() for row in picture]
    assert sum(int(number) for _, _, number, _ in rows) == 30
    assert all(bool(int(number)) == bool(drawn) for _, _, number, drawn in rows)
    assert [low for low, _, _, _ in rows[1:]] == [high for _, high, _, _ in rows[:-1]]


def test_without_a_round_trip_there_is_no_histogram(serve, ping):
    text = finish(ping(serve(NeverAnswers), "-c", "1", "-w", "50ms", "--histogram"))[1]
    assert "round trips" not in text


def test_it_warns_of_nothing(serve, ping):
    process = ping(serve(), "-c", "2", "-i", "0", python_options=("-W", "error", "-X", "dev"))
    assert finish(process)[0] == 0
    assert process.log == ""


# Command lines and addresses that lead nowhere.


@pytest.mark.parametrize(
    "options, words",
    [
        (["--ping", "--bench"], ["--ping", "--bench", "not allowed with"]),
        (["--ping", "-m", "x"], ["-m", "--ping", "not allowed with"]),
        (["--ping", "-P", "2"], ["--connections is for --bench"]),
        (["--ping", "--rate", "2"], ["--rate is for --bench"]),
        (["--ping", "-s", "19"], ["'19' is too small", "20 bytes"]),
        (["--ping", "-s", "65537"], ["--size 65537 is over --max-message 65536"]),
        (["--ping", "-s", "300", "--max-message", "200"], ["--size 300 is over --max-message 200"]),
        (["--ping", "-c", "0"], ["'0' is no count"]),
        (["--ping", "-i", "soon"], ["'soon' is no duration"]),
        (["-c", "3"], ["--count is for --ping"]),
        (["-s", "64"], ["--size is for --ping or --bench"]),
        (["--histogram"], ["--histogram is for --ping or --bench"]),
        (["-J"], ["--json is for -m, --ping or --bench"]),
        (["-m", "x", "-c", "3"], ["--count is for --ping"]),
    ],
    ids=" ".join,
)
def test_options_that_make_no_sense_are_one_line(serve, run, options, words):
    handler = Recorder.of(echo.EchoRequestHandler)
    process = run("echo.client", *arguments_for(serve(handler)), *options)
    assert process.finish() == (2, b"")
    assert one_complaint(process, *words)
    assert handler.events == []


@pytest.mark.parametrize("host", ["nohost.invalid", "", "a" * 80, "a..b"], ids=["unknown", "empty", "long", "dots"])
def test_a_host_that_cannot_be_found_is_one_line(ping, host):
    process = ping((host, 9), "-c", "1")
    assert process.finish() == (1, b"")
    assert one_complaint(process, repr(host))


# What the reader of the output may do.


@posix
def test_a_reader_that_has_enough_ends_it_without_a_word(serve, ping):
    process = ping(serve(), "-i", "10ms")
    read_until(process, r"connected in .*\n")
    process.popen.stdout.close()
    assert process.popen.wait(DEADLINE) == 1
    process.finish()
    assert process.log == ""


@posix
def test_a_reader_that_has_gone_before_gives_no_traceback(serve, ping):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = ping(serve(), "-c", "1", stdout=writer)
    finally:
        os.close(writer)
    assert process.finish()[0] == 1
    assert process.log == ""


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(serve, ping):
    with open("/dev/full", "wb") as full:
        process = ping(serve(), "-c", "1", stdout=full)
        assert process.finish()[0] == 1
    assert one_complaint(process, "cannot write standard output")


def test_it_needs_no_input(serve, ping):
    code, text = finish(ping(serve(), "-c", "2", "-i", "0", python_options=("-c", WITHOUT_INPUT)))
    assert code == 0
    assert all_right(text, 2)
