"""``--ping`` and ``--bench`` at their edges: damage in disguise, signals at bad moments, sums that must add up."""

import os
import re
import signal
import threading
import time

import pytest
from test_bench import STDOUT_ELSEWHERE, bench, crowd, lines_on, rows, set_width  # noqa: F401
from test_ping import counts, ping, told_of  # noqa: F401

import echo
from echo.client.measure.probes import Ledger, Verdict
from support import eventually, plain
from support.measuring import (
    Counting,
    Greets,
    NeverAnswers,
    arguments_for,
    events,
    finish,
    one_complaint,
    posix,
    read_until,
)

# 1. The checksum is compared as a number: what reads as the same number is not seen as damaged.


def test_a_damaged_checksum_that_reads_as_the_same_number_is_corrupted():
    ledger = Ledger(64, 7)
    while True:
        probe = ledger.issue(0, 0)
        if re.search(rb"[a-f]", probe.message[12:20]):
            break
    damaged = probe.message[:12] + probe.message[12:20].upper() + probe.message[20:]
    assert ledger.settle(damaged).verdict is Verdict.CORRUPTED


def test_a_service_that_shouts_is_no_echo_that_doubles(serve, ping):  # noqa: F811
    class Shouts(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(message[:12] + message[12:].upper())

    code, text = finish(ping(serve(Shouts), "-c", "5", "-i", "0", "-w", "300ms"))
    assert code == 3
    found = counts(text)
    assert "doubled" not in found
    assert found["loss"] == 0


# 2. Which of two things came back is guessed wrongly: a greeting takes the place of the first reply.


def test_a_greeting_is_not_asked_for_and_the_reply_after_it_is_right(serve, ping):  # noqa: F811
    code, text = finish(ping(serve(Greets), "-c", "3", "-i", "10ms"))
    assert code == 3
    assert counts(text) == {"transmitted": 3, "received": 3, "corrupted": 0, "not asked for": 1, "loss": 0}


# 3. A host name that cannot be one: a traceback of the process of the load.


@pytest.mark.parametrize("host", ["a" * 80, "a..b"], ids=["long", "dots"])
def test_a_host_that_cannot_be_found_is_one_line(bench, host):  # noqa: F811
    process = bench((host, 9))
    assert process.finish() == (1, b"")
    assert one_complaint(process, repr(host))


# 4. The width is that of standard output's terminal, although the line is drawn on standard error.


def test_the_line_fits_the_terminal_it_is_on_when_the_results_go_elsewhere(serve, run, tmp_path):
    from support.terminal import Terminal

    arguments = (*arguments_for(serve()), "--bench", "-P", "2", "-d", "1200ms")
    user = Terminal(run, "echo.client", *arguments, starter=STDOUT_ELSEWHERE, STDOUT=str(tmp_path / "results"))
    try:
        set_width(user, 20)
        assert user.leave() == 0
    finally:
        os.close(user.master)
    lines_on(user.screen.decode(), [20])


# 5. The end that a user makes.


@posix
@pytest.mark.timeout(180)  # thirty processes, one after the other, on a busy machine
def test_a_signal_at_any_moment_leaves_the_figures_whole(serve, ping):  # noqa: F811
    server = serve()
    for _ in range(30):
        process = ping(server, "-i", "0", "-J")
        read_until(process, '"seq": 20,')
        process.popen.send_signal(signal.SIGTERM)
        code, text = finish(process)
        told = events(text)
        summary = told[-1]
        replies = sum(event["event"] == "reply" for event in told)
        assert code == 0
        assert summary["transmitted"] == summary["received"] + summary["on_the_way"]
        assert replies == summary["received"] == summary["rtt_samples"]


@posix
def test_both_signals_at_once_print_nothing_but_the_summary(serve, ping):  # noqa: F811
    server = serve()
    for _ in range(10):
        process = ping(server, "-i", "10ms")
        read_until(process, "seq=2 time=")
        process.popen.send_signal(signal.SIGTERM)
        process.popen.send_signal(signal.SIGINT)
        code, text = finish(process)  # no traceback
        assert (code, process.log) == (0, "")
        assert counts(text)["loss"] == 0


@posix
def test_a_hail_of_signals_leaves_one_summary_and_the_exit_code(serve, ping):  # noqa: F811
    server = serve()
    for _ in range(5):
        process = ping(server, "-i", "10ms")
        read_until(process, "seq=2 time=")
        while process.popen.poll() is None:
            process.popen.send_signal(signal.SIGTERM)
            process.popen.send_signal(signal.SIGINT)
        code, text = finish(process)
        assert (code, process.log) == (0, "")
        assert counts(text)["loss"] == 0


@posix
@pytest.mark.timeout(180)  # sixty of them, on a busy machine
def test_a_signal_with_the_last_reply_costs_no_summary(serve, ping):  # noqa: F811
    processes = []
    lock = threading.Lock()

    class Signals(echo.EchoRequestHandler):
        def message_received(self, message):
            with lock:  # around all: the reply may end that process, and the signal is not for the one after it
                self.send(message)
                self.flush()
                for _ in range(self.laps):  # a little later each time
                    pass
                processes[-1].popen.send_signal(signal.SIGINT)

    for step in range(60):
        Signals.laps = step * 500
        with lock:
            processes.append(ping(serve_once(serve, Signals), "-c", "1", "-q"))
        code, text = finish(processes[-1])
        assert processes[-1].log == ""
        assert code == 1 - counts(text)["received"], text  # if the signal was first, it was on its way


def serve_once(serve, handler, servers={}):  # noqa: B006
    if handler not in servers:
        servers[handler] = serve(handler)
    return servers[handler]


@posix
def test_a_signal_while_the_load_is_started_is_not_lost(serve, bench):  # noqa: F811
    # The first of two processes is made to start so slowly that the signal meets the start of it.
    starter = (
        "import multiprocessing.context as c, os, signal, runpy, sys\n"
        "if __name__ == '__main__':\n"
        "    start = c.SpawnProcess.start\n"
        "    def slow(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        start(self)\n"
        "    c.SpawnProcess.start = slow\n"
        "    del sys.argv[:2]\n"
        "    runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
    )
    process = bench(serve(), "-d", "3s", "-J", python_options=("-c", starter))
    process.finish()
    assert process.popen.returncode in (1, 130)  # and not 0, as after a load that nothing cut short


@posix
def test_a_signal_as_soon_as_the_start_is_told_leaves_a_summary(serve, bench):  # noqa: F811
    server = serve()
    for _ in range(8):
        process = bench(server, "-d", "5m")
        read_until(process, "BENCH ")
        process.popen.send_signal(signal.SIGTERM)
        code, text = finish(process)
        assert (code, process.log) == (1, "")
        assert rows(text)["messages"].startswith("none")


# 6. One turn of each connection is neither sent nor counted as never sent.


def test_what_was_sent_and_never_sent_is_the_whole_timetable(serve, bench):  # noqa: F811
    options = ("-P", "1", "--depth", "1", "--rate", "10", "-d", "300ms", "-w", "1s", "-J")
    code, text = finish(bench(serve(NeverAnswers), *options))
    assert code == 1
    summary = events(text)[-1]
    # From the start to the end of 330 ms there are turns at 0, 100, 200 and 300 ms.
    assert summary["lost"] + summary["unsent"] == 4


def test_turns_of_a_lost_connection_did_not_miss_their_turn(serve, bench):  # noqa: F811
    def talk(sock):
        sock.recv(1)

    code, text = finish(bench(serve(plain(talk)), "--rate", "100", "-d", "5m"))
    assert code == 1
    assert "never sent" not in rows(text)


# 7. A line over the limit, after which the server is silent, is told as silence.


def test_a_line_over_the_limit_is_told_though_nothing_follows(serve, bench):  # noqa: F811
    class LongLine(Counting):
        def answer(self, message):
            if self.number == 1:
                self.connection.send_raw(b"x" * 65537, 1)

    code, text = finish(bench(serve(LongLine), "-w", "500ms"))
    assert code == 1
    assert rows(text)["errors"] == "2 x a message is longer than the limit of 65536 bytes"


# 8. After a pause of the client itself the missed probes go out all at once.


@posix
def test_no_message_is_sent_early_to_make_up_for_one_that_was_late(serve, ping):  # noqa: F811
    handler = crowd()
    process = ping(serve(handler), "-i", "300ms")
    eventually(lambda: handler.everything)
    process.popen.send_signal(signal.SIGSTOP)
    threading.Event().wait(2)
    before = len(handler.everything)
    began = time.monotonic()
    process.popen.send_signal(signal.SIGCONT)
    eventually(lambda: len(handler.everything) > before)
    threading.Event().wait(0.2)
    sent = len(handler.everything) - before
    assert sent <= 2 + (time.monotonic() - began) / 0.3  # not the six whose time has gone by
    process.popen.send_signal(signal.SIGINT)
    finish(process)
