"""``python -m echo.client --bench``: what it counts and times, what it calls what went wrong, how it shows and ends."""

import errno
import os
import re
import signal
import socket
import struct
import sys
import threading

import pytest

import echo
from support import DEADLINE, Recorder, eventually, plain
from support.measuring import (
    THROUGH_TIMEOUT,
    WITHOUT_INPUT,
    ClosesAtTheFourth,
    Counting,
    DropsEachFifth,
    Endless,
    FlipsAByteOfEachThird,
    Greets,
    LagsByOne,
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
from support.processes import is_alive, processes_of

needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

STDOUT_ELSEWHERE = """\
import os, sys
os.dup2(os.open(os.environ["STDOUT"], os.O_WRONLY | os.O_CREAT, 0o600), 1)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""A starter for ``Terminal``: only standard error is the terminal, standard output is the file named by ``STDOUT``."""


@pytest.fixture
def bench(run):
    """``bench(server, *options)``: a running bench of the server, 2 connections and 200 ms unless told otherwise."""

    def start(server, *options, **popen_options):
        arguments = ("echo.client", *arguments_for(server), "--bench")
        return run(*arguments, "-P", "2", "-d", "200ms", *options, **popen_options)

    return start


def rows(text):
    """What the one summary tells: ``{"messages": "10 in ...", "wrong": "0", ...}``."""
    assert len(re.findall(r"^messages ", text, re.MULTILINE)) == 1, text
    return dict(re.findall(r"^(messages|wrong|lost|errors|never sent|connect) +(.*)$", text, re.MULTILINE))


def received(text):
    return int(rows(text)["messages"].split(" in ")[0].replace(",", ""))


def all_right(text):
    found = rows(text)
    assert received(text) > 0
    return (found["wrong"], found["lost"], found["errors"]) == ("0", "0", "0") and "never sent" not in found


class Crowd(Counting):
    """An echo that knows its sessions: ``sessions``, in the order in which they came; ``everything`` they heard."""

    def __init_subclass__(cls):
        cls.sessions, cls.everything, cls.lock = [], [], threading.Lock()

    def connection_made(self):
        super().connection_made()
        with self.lock:
            self.sessions.append(self)

    def message_received(self, message):
        with self.lock:
            self.everything.append(message)
        super().message_received(message)

    answer = echo.EchoRequestHandler.send


def crowd(base=Crowd):
    """A fresh class of that kind."""
    return type("Handler", (Crowd,) if base is Crowd else (Crowd, base), {"answer": base.answer})


# Services that are echoes.


@every_framing
def test_what_it_took_and_how_long_is_told(serve, bench, framing):
    server = serve(echo_of(framing))
    code, text = finish(bench(server, "--framing", framing))
    assert code == 0
    where = re.escape("%s:%s" % server.server_address)
    assert re.fullmatch(
        rf"BENCH {where}: 2 connections, 64-byte messages, closed loop, depth 1, 0\.2 s\n"
        r"messages    [\d,]+ in 0\.2 s, [\d,]+/s, [\d.,]+ MB/s\n"
        r"wrong       0\n"
        r"lost        0\n"
        r"errors      0\n"
        r"connect     min/avg/max [\d.]+/[\d.]+/[\d.]+ ms\n"
        r"\n"
        r"ms +min +p50 +p75 +p90 +p99 +p99\.9 +max +samples\n"
        r"round trip +[\d.]+( +[\d.-]+){5} +[\d.]+ +[\d,]+\n",
        text,
    ), text


@every_framing
def test_a_plain_echo_of_bytes_is_right_under_every_framing(serve, bench, framing):
    process = bench(serve(plain(send_back)), "--framing", framing, "-s", "2500", "--depth", "3")
    code, text = finish(process)
    assert (code, process.log) == (0, "")
    assert all_right(text)
    assert "2 connections, 2500-byte messages, closed loop, depth 3" in text


@needs_socat
@every_framing
def test_socat_is_right_under_every_framing(bench, framing):
    with socat_that_echoes() as address:
        code, text = finish(bench(address, "--framing", framing))
    assert code == 0
    assert all_right(text)


@pytest.mark.parametrize("size", ["20", "64k"])
def test_it_makes_as_many_connections_and_messages_as_long_as_was_asked_for(serve, bench, size):
    handler = crowd()
    code, text = finish(bench(serve(handler), "-P", "7", "-s", size))
    assert code == 0
    assert all_right(text)
    assert len(handler.sessions) == 7
    assert {len(message) for message in handler.everything} == {20 if size == "20" else 65536}
    assert len(handler.everything) >= received(text)


@pytest.mark.parametrize("rate", [[], ["--rate", "200"]], ids=["closed", "open"])
def test_so_many_are_on_their_way_in_each_connection_and_no_more(serve, bench, rate):
    handler = crowd(NeverAnswers)
    code, text = finish(bench(serve(handler), "--depth", "5", "-w", "500ms", "-J", *rate))
    assert code == 1
    assert len(handler.everything) == 10
    summary = events(text)[-1]
    assert (summary["lost"], summary["messages"]) == (10, 0)
    assert (summary["unsent"] > 0) == bool(rate)


def test_messages_larger_than_what_the_system_buffers_come_through(serve, bench):
    options = ("--framing", "raw", "-s", "3M", "--depth", "4", "-P", "1")
    code, text = finish(bench(serve(plain(send_back)), *options))
    assert code == 0
    assert all_right(text)


def test_the_warm_up_is_not_counted(serve, bench):
    handler = crowd()
    process = bench(serve(handler), "-P", "1", "--rate", "100", "-d", "500ms", "-J")
    code, text = finish(process)
    assert code == 0
    start, summary = events(text)
    assert start["warm_up_s"] == pytest.approx(0.05)
    assert summary["rtt_samples"] == len(handler.everything) - 5  # a twentieth of a second of a hundred a second


# The open loop.


def test_with_a_rate_so_many_are_sent(serve, bench):
    handler = crowd()
    code, text = finish(bench(serve(handler), "--rate", "200", "-d", "1s"))
    assert code == 0
    assert all_right(text)
    assert 100 <= received(text) <= 220
    assert 150 <= len(handler.everything) <= 221
    assert "2 connections, 64-byte messages, 200 messages/s, 1 s\n" in text
    lines = re.findall(r"^(corrected|raw|round trip) ", text, re.MULTILINE)
    assert lines == ["corrected", "raw"]


def test_the_corrected_times_are_never_below_the_raw_ones(serve, bench):
    code, text = finish(bench(serve(), "--rate", "400", "-d", "500ms", "-J"))
    assert code == 0
    summary = events(text)[-1]
    assert summary["rtt_samples"] == summary["raw_samples"] >= 100
    for figure in ("min", "avg", "max", "p50", "p90", "p99"):
        assert summary[f"rtt_{figure}_us"] >= summary[f"raw_{figure}_us"]


def test_what_waits_for_its_turn_while_the_server_stalls_is_in_the_corrected_times(serve, bench):
    class Stalls(Counting):
        def answer(self, message):
            if self.number == 60:
                threading.Event().wait(0.3)
            self.send(message)

    options = ("-P", "1", "--depth", "1", "--rate", "200", "-d", "1s", "-J")
    code, text = finish(bench(serve(Stalls), *options))
    assert code == 0
    summary = events(text)[-1]
    assert summary["raw_max_us"] >= 300_000  # the one that met it
    assert summary["rtt_p99_us"] > summary["raw_p99_us"]
    assert summary["rtt_p90_us"] >= 100_000  # those whose turn came meanwhile: a third of all
    assert summary["rtt_avg_us"] > summary["raw_avg_us"]


def test_those_whose_turn_does_not_come_are_counted(serve, bench):
    handler = crowd(NeverAnswers)
    options = ("-P", "1", "--depth", "1", "--rate", "100", "-w", "500ms")
    code, text = finish(bench(serve(handler), *options))
    assert code == 1
    assert len(handler.everything) == 1
    found = rows(text)
    assert found["lost"] == "1"
    number, told = found["never sent"].split(", ", 1)
    assert told == "whose turn did not come in time"
    assert 18 <= int(number) <= 22  # a hundred a second, warm-up and all


# Services that are none, or bad ones: each is called what it is.


def test_flipped_bytes_are_corrupted(serve, bench):
    code, text = finish(bench(serve(FlipsAByteOfEachThird)))
    assert code == 3
    assert re.fullmatch(r"[\d,]+ corrupted", rows(text)["wrong"])
    assert received(text) > 0
    assert (rows(text)["lost"], rows(text)["errors"]) == ("0", "0")


def test_of_wrong_replies_each_process_shows_who_asks_three(serve, bench):
    process = bench(serve(FlipsAByteOfEachThird), "-P", "1", "-v")
    code, text = finish(process)
    assert code == 3
    assert int(rows(text)["wrong"].split()[0].replace(",", "")) > 3
    examples = re.findall(r"^corrupted:\n  sent     (.{64})\n  received (.{64})\n", process.log, re.MULTILINE)
    assert len(examples) == 3 and process.log.count("received") == 3
    for sent, came in examples:
        assert sent[30] != came[30]
        assert sent[:30] + sent[31:] == came[:30] + came[31:]


def test_of_words_that_nobody_asked_for_nothing_was_sent_to_show(serve, bench):
    process = bench(serve(SaysItTwice), "-P", "1", "-v")
    assert finish(process)[0] == 3
    assert len(re.findall(r"^doubled:\n  received .{64}\n", process.log, re.MULTILINE)) == 3


def test_without_v_no_wrong_reply_is_shown(serve, bench):
    process = bench(serve(FlipsAByteOfEachThird))
    assert finish(process)[0] == 3
    assert process.log == ""


def test_dropped_replies_are_lost(serve, bench):
    code, text = finish(bench(serve(DropsEachFifth), "-w", "100ms", "-d", "700ms"))
    assert code == 1
    found = rows(text)
    assert int(found["lost"]) > 0
    assert found["errors"] == f"{found['lost']} x no reply in time"
    assert received(text) > 0


def test_replies_in_another_order_are_told(serve, bench):
    code, text = finish(bench(serve(SwapsPairs), "--depth", "2"))
    assert code == 3
    assert re.fullmatch(r"[\d,]+ out of order", rows(text)["wrong"])


def test_replies_that_come_twice_are_doubled(serve, bench):
    code, text = finish(bench(serve(SaysItTwice)))
    assert code == 3
    assert re.fullmatch(r"[\d,]+ doubled", rows(text)["wrong"])


def test_replies_after_the_time_are_lost_and_late(serve, bench):
    code, text = finish(bench(serve(LagsByOne), "-P", "1", "-d", "900ms", "-w", "100ms"))
    assert code == 1  # they are missing; nothing was wrong with them
    found = rows(text)
    assert re.fullmatch(r"\d+ late", found["wrong"])
    assert int(found["lost"]) > int(found["wrong"].split()[0]) > 0
    assert found["errors"].endswith(" x no reply in time")
    assert received(text) == 0


def test_words_that_nobody_asked_for_are_told(serve, bench):
    code, text = finish(bench(serve(SpeaksUnasked)))
    assert code == 3
    assert "not asked for" in rows(text)["wrong"] or "corrupted" in rows(text)["wrong"]


def test_a_greeting_is_something_wrong(serve, bench):
    code, text = finish(bench(serve(Greets)))
    assert code == 3
    assert rows(text)["wrong"] != "0"
    assert received(text) > 0


def test_replies_of_another_connection_are_told(serve, bench):
    waiting, lock = [], threading.Lock()

    class Crosses(echo.EchoRequestHandler):
        def message_received(self, message):
            with lock:
                if not waiting:
                    waiting.append((self, message))
                    return
                other, its_message = waiting.pop()
            self.send(its_message)
            other.send(message)

    code, text = finish(bench(serve(Crosses), "-w", "300ms"))
    assert code == 3
    found = rows(text)
    assert found["wrong"] == "2 another connection's"
    assert (found["lost"], found["errors"]) == ("2", "2 x no reply in time")


def test_when_all_connections_are_closed_it_is_over_and_told(serve, bench):
    code, text = finish(bench(serve(ClosesAtTheFourth), "-d", "5m"))
    assert code == 1
    found = rows(text)
    assert found["errors"] == "2 x the server has ended the session"
    assert found["lost"] == "2"


def test_when_all_connections_are_reset_it_is_over_and_told(serve, bench):
    code, text = finish(bench(serve(ResetsAtTheFourth), "-d", "5m"))
    assert code == 1
    assert rows(text)["errors"] == f"2 x the connection was lost: {os.strerror(errno.ECONNRESET)}"


def test_when_one_connection_is_closed_the_others_go_on(serve, bench):
    class ClosesTheFirst(Crowd):
        def answer(self, message):
            if self is self.sessions[0] and self.number == 4:
                self.close()
            else:
                self.send(message)

    handler = ClosesTheFirst
    code, text = finish(bench(serve(handler), "-P", "3"))
    assert code == 1
    assert received(text) > 0
    assert rows(text)["errors"] == "1 x the server has ended the session"
    assert len(handler.sessions) == 3  # it is not opened again


def test_a_server_that_goes_away_ends_it_and_is_told(serve, bench):
    handler = crowd()
    server = serve(handler)
    process = bench(server, "-d", "5m")
    eventually(lambda: len(handler.everything) > 10)
    server.stop()
    code, text = finish(process)
    assert code == 1
    assert "the server has ended the session" in rows(text)["errors"]
    assert len(handler.sessions) == 2


def test_a_server_that_never_answers_loses_everything(serve, bench):
    code, text = finish(bench(serve(NeverAnswers), "-w", "100ms", "-P", "3"))
    assert code == 1
    found = rows(text)
    assert found["messages"].startswith("0 in 0.2 s, 0/s")
    assert found["wrong"] == "0"
    assert int(found["lost"]) >= 3
    assert found["errors"] == f"{found['lost']} x no reply in time"
    assert "samples" not in text


def test_an_endless_line_ends_that_connection(serve, bench):
    code, text = finish(bench(serve(Endless), "-d", "5m"))
    assert code == 1
    assert rows(text)["errors"] == "2 x a message is longer than the limit of 65536 bytes"


def test_a_server_that_is_not_there_is_one_line(bench):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        process = bench(nobody.getsockname())
        assert process.finish() == (1, b"")
        assert one_complaint(process, "127.0.0.1:%s" % nobody.getsockname()[1], "nothing listens")


@needs_proc
def test_a_process_of_the_load_that_dies_is_told(serve, bench):
    handler = crowd()
    process = bench(serve(handler), "-P", "1", "-d", "5m")
    eventually(lambda: handler.everything)
    for pid in processes_of(process.pid):
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if b"spawn_main" in file.read():
                os.kill(pid, signal.SIGKILL)
    code, text = finish(process)
    assert code == 1
    assert rows(text)["errors"] == "1 x a process of the load has died"


# The end that a user makes.


@posix
def test_a_signal_ends_it_with_the_summary(serve, bench):
    server = serve()
    processes = {signum: bench(server, "-d", "5s", "-J") for signum in (signal.SIGINT, signal.SIGTERM)}
    for signum, process in processes.items():
        read_until(process, '"progress"')  # one second of what counts has passed
        process.popen.send_signal(signum)
    for process in processes.values():
        code, text = finish(process)
        assert code == 0
        summary = events(text)[-1]
        assert summary["messages"] > 0
        assert 1 <= summary["duration_s"] < 5
        assert (summary["lost"], summary["errors"]) == (0, {})


@posix
@pytest.mark.parametrize("signum, kind", [(signal.SIGINT, Crowd), (signal.SIGTERM, NeverAnswers)])
def test_two_signals_in_the_warm_up_end_it_with_one_summary(serve, bench, signum, kind):
    handler = crowd(kind)
    process = bench(serve(handler), "-d", "5m")
    eventually(lambda: handler.everything)
    twice(process, signum)
    code, text = finish(process)
    assert code == 1
    assert rows(text)["messages"] == "none: it ended before the warm-up did"


@posix
def test_under_timeout_which_signals_twice_there_is_one_summary(serve, run):
    handler = crowd()
    arguments = ("echo.client", *arguments_for(serve(handler)), "--bench", "-P", "2", "-d", "5m")
    process = run(*arguments, python_options=("-c", THROUGH_TIMEOUT))
    eventually(lambda: handler.everything)
    process.popen.send_signal(signal.SIGTERM)  # timeout(1) passes it on as if the time had come
    code, text = finish(process)
    assert code == 1
    assert rows(text)["messages"].startswith("none")
    assert rows(text)["errors"] == "0"


def test_ctrl_c_at_a_terminal_ends_it_with_the_summary(serve, run):
    from support.terminal import CTRL_C, Terminal  # skips where there are no pseudo-terminals

    handler = crowd()
    user = Terminal(run, "echo.client", *arguments_for(serve(handler)), "--bench", "-d", "5m")
    try:
        eventually(lambda: handler.everything)
        user.type(CTRL_C)
        assert user.leave() == 1
    finally:
        os.close(user.master)
    text = user.screen.decode().replace("\r\n", "\n").replace("^C", "")
    assert rows(text)["messages"].startswith("none")
    assert rows(text)["errors"] == "0"


@needs_proc
@pytest.mark.parametrize(
    "signum, rate", [(signal.SIGKILL, []), (signal.SIGTERM, []), (signal.SIGKILL, ["--rate", "50"])]
)
def test_no_process_of_the_load_outlives_it(serve, bench, rate, signum):
    handler = crowd()
    process = bench(serve(handler), "-d", "5m", "-P", "4", *rate)
    eventually(lambda: handler.everything)
    children = processes_of(process.pid)
    assert children
    process.popen.send_signal(signum)
    assert process.popen.wait(DEADLINE) == (1 if signum == signal.SIGTERM else -signum)
    eventually(lambda: not any(map(is_alive, children)), "a process of the load lives on")


# How it is told.


def test_quiet_is_the_summary_alone(serve, bench):
    process = bench(serve(), "-q")
    code, text = finish(process)
    assert (code, process.log) == (0, "")
    assert text.startswith("messages ")
    assert all_right(text)


def test_json_is_one_object_a_line_and_the_summary_last(serve, bench):
    server = serve(FlipsAByteOfEachThird)
    process = bench(server, "-d", "1200ms", "-J", "--histogram")
    code, text = finish(process)
    assert (code, process.log) == (3, "")
    start, *progress, summary = events(text)
    assert all(have_units(event) for event in (start, *progress, summary))
    assert dict(start, warm_up_s=0) == {
        "event": "start",
        "address": "%s:%s" % server.server_address,
        "connections": 2,
        "size_bytes": 64,
        "depth": 1,
        "rate_per_s": None,
        "duration_s": 1.2,
        "warm_up_s": 0,
    }
    assert start["warm_up_s"] == pytest.approx(0.12)
    assert [event["event"] for event in progress] == ["progress"]
    assert 1 <= progress[0]["elapsed_s"] <= 1.7
    assert progress[0]["wrong"] > 0
    assert summary["messages"] > 0
    assert summary["wrong"] == {"corrupted": summary["corrupted"]}
    assert summary["duration_s"] == pytest.approx(1.2)
    assert summary["messages_per_s"] == pytest.approx(summary["messages"] / 1.2, abs=0.1)
    assert summary["bytes_per_s"] == pytest.approx(summary["messages"] * 64 / 1.2, abs=0.1)
    assert (summary["lost"], summary["unsent"], summary["errors"]) == (0, 0, {})
    assert 0 < summary["rtt_min_us"] <= summary["rtt_p50_us"] <= summary["rtt_p99_us"] <= summary["rtt_max_us"]
    assert summary["connect_avg_us"] > 0


@pytest.mark.parametrize("encoding, bar", [("utf-8", "[█▏▎▍▌▋▊▉]+"), ("ascii", "#+")])
def test_the_histogram_is_drawn_with_what_the_encoding_has(serve, bench, encoding, bar):
    process = bench(serve(), "--histogram", env={"PYTHONIOENCODING": encoding})
    code, text = finish(process)
    assert (code, process.log) == (0, "")
    samples = int(text.partition("\n\n")[2].splitlines()[1].split()[-1].replace(",", ""))
    picture = text.partition("round trips\n")[2].splitlines()
    drawn = [re.fullmatch(rf" *[\d.]+ - +[\d.]+ +([\d,]+)(?: ({bar}))?", row).groups() for row in picture]
    assert sum(int(number.replace(",", "")) for number, _ in drawn) == samples
    assert all((number != "0") == bool(bars) for number, bars in drawn)
    assert max(len(bars or "") for _, bars in drawn) == 40


def test_it_warns_of_nothing(serve, bench):
    process = bench(serve(), python_options=("-W", "error", "-X", "dev"))
    assert finish(process)[0] == 0
    assert process.log == ""


def test_nothing_is_drawn_on_stderr_when_that_is_no_terminal(serve, bench):
    process = bench(serve(FlipsAByteOfEachThird), "-d", "1200ms")
    assert finish(process)[0] == 3
    assert process.log == ""


def test_verbose_tells_which_process_has_how_many_connections(serve, bench):
    process = bench(serve(), "-v", "-P", "3")
    assert finish(process)[0] == 0
    lines = process.log.splitlines()
    found = [re.fullmatch(r"a process of the load has (\d+) connections?", line) for line in lines]
    assert sum(int(match.group(1)) for match in found) == 3


# The line that shows how it goes, at a terminal.


def lines_on(screen, widths):
    """What stood in the last line of a terminal, each time it was drawn anew; none of it was too long for that line.

    ``widths``: of the terminal, for each time.
    """
    *drawn, last = re.findall(r"\r\x1b\[K([^\r\n\x1b]*)", screen)
    assert last == "" or last.startswith("messages "), screen  # the summary, where that goes to the terminal too
    for text, width in zip(drawn, widths):
        assert len(text) < width
    return drawn


def set_width(terminal, columns):
    termios = pytest.importorskip("termios", reason="this platform has no terminals")
    fcntl = pytest.importorskip("fcntl")
    fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def test_a_line_at_the_terminal_shows_how_it_goes_fits_and_is_gone_at_the_end(serve, run):
    from support.terminal import Terminal  # skips where there are no pseudo-terminals

    arguments = ("--bench", "-P", "2", "-d", "2600ms")
    user = Terminal(run, "echo.client", *arguments_for(serve(FlipsAByteOfEachThird)), *arguments)
    try:
        set_width(user, 40)
        user.until(rb"\r\x1b\[K +1 of 2\.6 s  [\d,]+ messages/s")
        set_width(user, 20)  # while it stands there
        assert user.leave() == 3
    finally:
        os.close(user.master)
    screen = user.screen.decode()
    first, second = lines_on(screen, [40, 20])
    assert (len(first), len(second)) == (39, 19)
    assert re.match(r"  2 of 2\.6 s  ", second)
    # After the last one is erased, the summary begins at the left.
    assert re.search(r"\r\x1b\[Kmessages    [\d,]+ in 2\.6 s", screen)
    assert rows(screen.rpartition("\x1b[K")[2].replace("\r\n", "\n"))


def test_quiet_and_json_draw_no_line(serve, run):
    from support.terminal import Terminal

    server = serve()
    users = [
        Terminal(run, "echo.client", *arguments_for(server), "--bench", "-P", "1", "-d", "1200ms", option)
        for option in ("-q", "-J")
    ]
    for user in users:
        try:
            assert user.leave() == 0
        finally:
            os.close(user.master)
        assert b"\x1b" not in user.screen
    assert b"progress" in users[1].screen


def test_the_line_is_on_the_terminal_and_the_results_where_they_were_sent(serve, run, tmp_path):
    from support.terminal import Terminal

    server = serve(FlipsAByteOfEachThird)
    arguments = (*arguments_for(server), "--bench", "-P", "2", "-d", "1200ms")
    results = tmp_path / "results"
    user = Terminal(run, "echo.client", *arguments, starter=STDOUT_ELSEWHERE, STDOUT=str(results))
    try:
        set_width(user, 100)
        assert user.leave() == 3
    finally:
        os.close(user.master)
    (line,) = lines_on(user.screen.decode(), [100])
    assert re.fullmatch(r"  1 of 1\.2 s  [\d,]+ messages/s  p50 [\d.]+ ms  p99 [\d.]+ ms  [\d,]+ wrong\b.*", line)
    assert user.screen.endswith(b"\r\x1b[K")
    text = results.read_text()
    assert received(text) > 0
    assert "\x1b" not in text and "1 of" not in text


# Command lines and addresses that lead nowhere.


@pytest.mark.parametrize(
    "options, words",
    [
        (["--bench", "-c", "3"], ["--count is for --ping"]),
        (["--bench", "-i", "3"], ["--interval is for --ping"]),
        (["--bench", "-m", "x"], ["-m", "--bench", "not allowed with"]),
        (["--bench", "-s", "19"], ["'19' is too small", "20 bytes"]),
        (["--bench", "-s", "65537"], ["--size 65537 is over --max-message 65536"]),
        (["--bench", "-d", "0"], ["duration of 0"]),
        (["--bench", "-P", "0"], ["'0' is no count"]),
        (["--bench", "--rate", "0"], ["'0' is no count"]),
        (["--bench", "--rate", "1.5"], ["'1.5' is no count"]),
        (["-P", "3"], ["--connections is for --bench"]),
        (["-m", "x", "--rate", "3"], ["--rate is for --bench"]),
    ],
    ids=" ".join,
)
def test_options_that_make_no_sense_are_one_line(serve, run, options, words):
    handler = Recorder.of(echo.EchoRequestHandler)
    process = run("echo.client", *arguments_for(serve(handler)), *options)
    assert process.finish() == (2, b"")
    assert one_complaint(process, *words)
    assert handler.events == []


@pytest.mark.parametrize("host", ["nohost.invalid", ""], ids=["unknown", "empty"])
def test_a_host_that_cannot_be_found_is_one_line(bench, host):
    process = bench((host, 9))
    assert process.finish() == (1, b"")
    assert one_complaint(process, repr(host))


# What the reader of the output may do.


@posix
def test_a_reader_that_has_enough_ends_it_without_a_word(serve, bench):
    process = bench(serve())
    read_until(process, "BENCH .*\n")
    process.popen.stdout.close()
    assert process.popen.wait(DEADLINE) == 1
    process.finish()
    assert process.log == ""


@posix
@needs_proc
def test_a_reader_that_has_gone_before_ends_it_at_once(serve, bench):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = bench(serve(), "-d", "5m", stdout=writer)
    finally:
        os.close(writer)
    assert process.finish()[0] == 1
    assert process.log == ""


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(serve, bench):
    with open("/dev/full", "wb") as full:
        process = bench(serve(), "-d", "5m", stdout=full)
        assert process.finish()[0] == 1
    assert one_complaint(process, "cannot write standard output")


def test_it_needs_no_input(serve, bench):
    code, text = finish(bench(serve(), python_options=("-c", WITHOUT_INPUT)))
    assert code == 0
    assert all_right(text)
