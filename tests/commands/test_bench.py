"""``python -m echo.client --bench``: its counts and times, its names for errors, its output and its end."""

import contextlib
import errno
import multiprocessing
import os
import random
import re
import selectors
import signal
import socket
import struct
import sys
import threading
from unittest import mock

import pytest

import echo
from echo.client.endpoint import Endpoint
from echo.measure.bench import Bench
from echo.measure.clock import CLOCK
from echo.measure.conditions import Condition
from echo.measure.dialer import Dialer
from echo.measure.intervals import Intervals
from echo.measure.lane import Lane
from echo.measure.load import Period, Plan, Slice, Timetable, work
from echo.measure.outages import Downtime, Downtimes
from echo.measure.report import Report
from support import DEADLINE, Recorder, eventually, simulation
from support.measuring import (
    PATIENT,
    THROUGH_TIMEOUT,
    WITHOUT_INPUT,
    arguments_for,
    echo_of,
    events,
    every_framing,
    finish,
    flips_a_byte_of_each_third,
    have_units,
    is_one_complaint,
    never_answers,
    one_complaint,
    posix,
    read_until,
    remembering,
    resets_at_the_fourth,
    run_client,
    signal_twice,
    socat_that_echoes,
)
from support.processes import is_alive, processes_of
from support.simulation import (
    ADDRESS,
    ClosesAtTheFourth,
    DropsEachFifth,
    EchoesBytes,
    FlipsAByteOfEachThird,
    Greets,
    LagsByOne,
    Network,
    NeverAnswers,
    SaysItTwice,
    SendsALineThatIsTooLong,
    Service,
    SlowNames,
    SpeaksUnasked,
    SwapsPairs,
    simulate_bench,
)

needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

FEW = ("--rate", "50", "-d", "200ms")
"""Options for a short bench that takes little processor time. It sends all due messages and waits for their replies, so
that some are measured however busy the machine is."""

STDOUT_ELSEWHERE = """\
import os, sys
os.dup2(os.open(os.environ["STDOUT"], os.O_WRONLY | os.O_CREAT, 0o600), 1)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""For ``Terminal``: only standard error is the terminal, standard output is the file named by ``STDOUT``."""


@pytest.fixture
def start_bench(run):
    """``start_bench(server, *options)``: a process that loads the server through two connections."""

    def start(server, *options, **popen_options):
        arguments = ("echo.client", *arguments_for(server), "--bench", "-P", "2", *PATIENT)
        return run(*arguments, *options, **popen_options)

    return start


def rows(text):
    """The rows of the one summary: ``{"messages": "10 in ...", "wrong": "0", ...}``."""
    assert len(re.findall(r"^messages ", text, re.MULTILINE)) == 1, text
    return dict(
        re.findall(
            r"^(messages|due|wrong|lost|errors|on the way|never sent|warm-up|look-up|connect) +(.*)$",
            text,
            re.MULTILINE,
        )
    )


def received(text):
    return int(rows(text)["messages"].split(" in ")[0].replace(",", ""))


def samples(text):
    """The number of round trips that were measured."""
    return int(re.search(r"^(?:round trip|corrected) .* ([\d,]+)$", text, re.MULTILINE).group(1).replace(",", ""))


def adds_up(summary):
    """Return the summary after a check that each due message has exactly one outcome."""
    fates = [summary[name] for name in ("came", "lost", "never_sent", "on_the_way")]
    assert summary["due"] == sum(fates), summary
    assert min(fates) >= 0, summary
    return summary


def all_right(text):
    found = rows(text)
    assert samples(text) > 0
    return (found["wrong"], found["lost"], found["errors"]) == ("0", "0", "0") and "never sent" not in found


# Services that echo.


@every_framing
def test_messages_round_trips_and_connections_are_summed_up(framing):
    result = simulate_bench(framing=framing)
    assert (result.code, result.details) == (0, "")
    assert result.text == (
        f"BENCH {ADDRESS}: 2 connections, 64-byte messages, closed loop, depth 1, 0.2 s\n"
        "messages    400 in 0.2 s, 2,000/s, 0.13 MB/s\n"
        "due         400: 400 came, 0 lost, 0 never sent, 0 on the way\n"
        "wrong       0\n"
        "lost        0\n"
        "errors      0\n"
        "client      0% of a processor in each process\n"
        "connect     min/avg/max 1.00/1.00/1.00 ms\n"
        "\n"
        "ms              min     p50     p75     p90     p99   p99.9     max     samples\n"
        "round trip     1.00    1.00    1.00    1.00    1.00       -    1.00         400\n"
    )


@pytest.mark.parametrize(
    "framing", ["raw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("line", "length"))]
)
def test_processes_load_a_real_server(serve, start_bench, framing):
    server = serve(echo_of(framing))
    process = start_bench(server, "--framing", framing, *FEW, "-v")
    code, text = finish(process)
    assert code == 0
    where = re.escape("%s:%s" % server.server_address)
    assert re.fullmatch(
        rf"BENCH {where}: 2 connections, 64-byte messages, 50 messages/s, 0\.2 s\n"
        r"messages    [\d,]+ in 0\.2 s, [\d,]+/s, [\d.,]+ MB/s\n"
        r"due         10: 10 came, 0 lost, 0 never sent, 0 on the way\n"
        r"wrong       0\n"
        r"lost        0\n"
        r"errors      0\n"
        r"(?:client .*\n(?:warning .*\n)?)?"
        r"connect     min/avg/max [\d.]+/[\d.]+/[\d.]+ ms\n"
        r"\n"
        r"ms +min +p50 +p75 +p90 +p99 +p99\.9 +max +samples\n"
        r"corrected  ( +[\d.]+){4} +- +- +[\d.]+ +10\n"
        r"raw        ( +[\d.]+){4} +- +- +[\d.]+ +10\n",
        text,
    ), text
    lines = process.log.splitlines()
    found = [re.fullmatch(r"a process of the load has (\d+) connections?", line) for line in lines]
    assert sum(int(match.group(1)) for match in found) == 2


@every_framing
def test_an_echo_of_bytes_is_right_under_every_framing(framing):
    result = simulate_bench(EchoesBytes, framing, size=2500, depth=3)
    assert result.code == 0
    assert all_right(result.text)
    assert "2 connections, 2500-byte messages, closed loop, depth 3" in result.text


@pytest.mark.needs_programs("socat")
def test_socat_is_right_under_every_framing(start_bench):
    with socat_that_echoes() as address:
        for framing in ("line", "length", "raw"):
            code, text = finish(start_bench(address, "--framing", framing, *FEW))
            assert code == 0
            assert all_right(text)


@pytest.mark.slow
def test_a_closed_loop_over_a_real_server_is_right(serve, start_bench):
    code, text = finish(start_bench(serve(), "-d", "2s", "--depth", "3"))
    assert code == 0
    assert all_right(text)
    assert received(text) > 0


def test_the_look_up_of_a_name_is_not_a_part_of_any_connection():
    result = simulate_bench(network=SlowNames, connections=20)
    found = rows(result.text)
    assert found["connect"] == "min/avg/max 1.00/1.00/1.00 ms"
    assert re.fullmatch(r"[\d.]+ ms", found["look-up"])
    assert result.network.time < 10**9  # and not 20 times 100 ms


@pytest.mark.parametrize("size", [20, 65536])
def test_it_makes_as_many_connections_and_messages_as_long_as_was_asked_for(size):
    result = simulate_bench(connections=7, size=size, duration=0.05)
    assert result.code == 0
    assert all_right(result.text)
    assert len(result.network.sessions) == 7
    assert {len(message) for message in result.network.messages} == {size}
    assert len(result.network.messages) >= received(result.text) > 0


@pytest.mark.parametrize("rate", [None, 200], ids=["closed", "open"])
def test_so_many_are_on_their_way_in_each_connection_and_no_more(rate):
    result = simulate_bench(NeverAnswers, depth=5, rate=rate, timeout=0.5, as_json=True)
    assert result.code == 1
    assert len(result.network.messages) == 10
    summary = adds_up(events(result.text)[-1])
    assert summary["lost"] + (summary["warm_up"]["lost"] if rate else 0) == 10
    assert summary["messages"] == 0
    assert (summary["never_sent"] > 0) == bool(rate)


@pytest.mark.parametrize("more", [{"depth": 1}, {"depth": 5}, {"new_connection": True}], ids=str)
def test_a_connection_that_got_no_reply_since_the_warm_up_has_lost_its_messages(more):
    class AnswersOneOfTwo(Service):
        def answer(self, message):
            if self.network.sessions.index(self) != 1:
                self.send(message)

    result = simulate_bench(AnswersOneOfTwo, connections=2, duration=1, timeout=3, as_json=True, **more)
    assert result.code == 1
    summary = adds_up(events(result.text)[-1])
    depth = more.get("depth", 1)
    assert (summary["lost"], summary["errors"], summary["warm_up"]) == (depth, {"no reply in time": depth}, {})
    assert summary["messages"] > 0


def test_messages_larger_than_what_the_system_buffers_come_through():
    result = simulate_bench(EchoesBytes, "raw", size=1 << 20, depth=4, connections=1, duration=0.02)
    assert result.code == 0
    assert all_right(result.text)


def test_the_warm_up_is_not_counted():
    result = simulate_bench(connections=1, rate=100, duration=0.5, as_json=True)
    assert result.code == 0
    start, summary = events(result.text)
    assert start["warm_up_s"] == pytest.approx(0.05)
    assert summary["rtt_samples"] == len(result.network.messages) - 5  # a twentieth of a second of a hundred a second


# The open loop.


def test_with_a_rate_so_many_are_sent():
    result = simulate_bench(rate=200, duration=1)
    assert result.code == 0
    assert all_right(result.text)
    assert received(result.text) == samples(result.text) == 200
    assert len(result.network.messages) == 220
    assert "2 connections, 64-byte messages, 200 messages/s, 1 s\n" in result.text
    lines = re.findall(r"^(corrected|raw|round trip) ", result.text, re.MULTILINE)
    assert lines == ["corrected", "raw"]


def test_the_corrected_times_are_never_below_the_raw_ones():
    class Stutters(Service):
        def answer(self, message):
            self.network.time += self.number % 9 * 1_000_000
            self.send(message)

    summary = events(simulate_bench(Stutters, rate=400, duration=0.5, as_json=True).text)[-1]
    assert summary["rtt_samples"] == summary["raw_samples"] >= 100
    for figure in ("min", "avg", "max", "p50", "p90", "p99"):
        assert summary[f"rtt_{figure}_us"] >= summary[f"raw_{figure}_us"]
    assert summary["rtt_avg_us"] > summary["raw_avg_us"]


def test_what_waits_for_its_turn_while_the_server_stalls_is_in_the_corrected_times():
    class Stalls(Service):
        def answer(self, message):
            if self.number == 60:
                self.network.time += 300_000_000
            self.send(message)

    result = simulate_bench(Stalls, connections=1, depth=1, rate=200, duration=1, as_json=True)
    assert result.code == 0
    summary = events(result.text)[-1]
    assert summary["raw_max_us"] >= 300_000  # the message that met the stall
    assert summary["rtt_p99_us"] > summary["raw_p99_us"]
    assert summary["rtt_p90_us"] >= 100_000  # the messages that were due meanwhile: a third of all
    assert summary["rtt_avg_us"] > summary["raw_avg_us"]


def test_messages_that_are_never_sent_are_counted():
    result = simulate_bench(NeverAnswers, connections=1, depth=1, rate=100, timeout=0.5)
    assert result.code == 1
    assert len(result.network.messages) == 1
    found = rows(result.text)
    assert (found["lost"], found["warm-up"]) == ("0", "1 lost; not counted above")
    assert found["never sent"] == "20, since the time ran out"  # a hundred a second, without the warm-up


def test_the_messages_sent_and_never_sent_are_the_whole_timetable():
    result = simulate_bench(NeverAnswers, connections=1, depth=1, rate=10, duration=0.3, timeout=1, as_json=True)
    assert result.code == 1
    summary = adds_up(events(result.text)[-1])
    # In 330 ms, messages are due at 0, 100, 200 and 300 ms. The first is in the warm-up.
    assert (summary["due"], summary["never_sent"], summary["warm_up"]) == (3, 3, {"lost": 1})


def test_a_timetable_counts_the_turns_that_it_has():
    rng = random.Random(18)
    for _ in range(300):
        table = Timetable(rng.choice([1, 3, 7, 100, 1000, 99_999, 10**9]), rng.choice([1, 2, 7, 100]))
        turns = range(rng.choice([1, 50, 300]))
        moment = rng.choice([table.moment(rng.choice(turns)), rng.randrange(table.moment(turns[-1]) + 1)])
        before = [turn for turn in turns if table.moment(turn) < moment]
        assert table.first(moment) == len(before)
        lane = rng.randrange(table.connections)
        assert table.rounds(lane, moment) == sum(turn % table.connections == lane for turn in before)


def test_a_load_that_is_held_up_until_after_the_end_still_sends_the_whole_timetable():
    class WakesLate(Network):
        def sleep(self, seconds):
            self.time += 5 * 10**9

    result = simulate_bench(rate=100, duration=0.5, network=WakesLate)
    assert result.code == 0
    assert samples(result.text) == 50
    assert "never sent" not in rows(result.text)


@pytest.mark.parametrize("lost, came", [(1, 15), (2, 10)])
def test_messages_due_on_a_lost_connection_count_as_never_sent(lost, came):
    class CloseAtTheEleventh(Service):
        def answer(self, message):
            if self.number == 11 and self in self.network.sessions[:lost]:
                self.close()
            else:
                self.send(message)

    result = simulate_bench(CloseAtTheEleventh, rate=100, duration=0.2, as_json=True)
    summary = adds_up(events(result.text)[-1])
    assert result.code == 1
    # Of 22 due messages, 2 are in the warm-up. Each connection has 11.
    assert summary["due"] == 20
    assert summary["lost"] == lost
    assert summary["came"] == 20 - lost


@pytest.mark.parametrize(
    "renewal, seed",
    [
        *((None, seed) for seed in range(20)),
        *((renewal, seed) for renewal in ("reconnect", "new_connection") for seed in range(8)),
    ],
)
def test_due_is_always_what_came_was_lost_was_never_sent_and_is_on_the_way(renewal, seed):
    rng = random.Random(seed)

    class DoesAnything(Service):
        def answer(self, message):
            fault = rng.random()
            if fault < 0.9:
                self.send(message)
            elif fault < 0.92:
                self.send(message[:-3])
            elif fault < 0.94:
                self.network.time += rng.randrange(200_000_000)
                self.send(message)
            elif fault < 0.96:
                self.send(message)
                self.send(message)
            elif fault < 0.97:
                self.close()
                self.network.refusals = rng.choice([0, 0, 1, 3])
            self.network.interrupted |= rng.random() < chance_of_an_end

    chance_of_an_end = rng.choice([0, 0, 0.005])
    result = simulate_bench(
        DoesAnything,
        connections=rng.choice([1, 3, 10]),
        depth=None if renewal == "new_connection" else rng.choice([None, 1, 4]),
        rate=rng.choice([None, 100, 777]),
        timeout=0.1,
        duration=rng.choice([0.1, 1]),
        as_json=True,
        **({renewal: True} if renewal else {}),
    )
    summary = adds_up(events(result.text)[-1])
    assert summary["on_the_way"] == 0 or result.network.interrupted
    if renewal == "new_connection":
        assert summary["lost"] == sum(summary["errors"].values())
    assert summary["came"] == summary["rtt_samples"] + summary["corrupted"]
    assert summary["lost"] >= summary["errors"].get("no reply in time", 0)


# Connections that are opened again.


def outages(result):
    return [event for event in events(result.text) if event["event"] == "outage"]


class IsAway(Service):
    """Closes all connections at 400 ms, and refuses new ones until 700 ms."""

    def answer(self, message):
        network = self.network
        if network.time < 400_000_000 or hasattr(network, "away"):
            self.send(message)
        else:
            network.away = True
            network.refusals = 3  # one each 100 ms
            for session in network.sessions:
                session.close()


@pytest.mark.parametrize("rate", [None, 200], ids=["closed", "open"])
def test_a_connection_that_is_lost_is_opened_again_and_the_outage_is_reported(rate):
    options = {"connections": 1, "duration": 1, "rate": rate, "reconnect": True}
    result = simulate_bench(IsAway, as_json=True, **options)
    summary = adds_up(events(result.text)[-1])
    assert (result.code, summary["lost"], summary["reconnects"]) == (1, 1, 1)
    assert summary["errors"] == {
        "the server has ended the session": 1,
        f"cannot connect: {os.strerror(errno.ECONNREFUSED)}": 3,
    }
    assert len(result.network.sessions) == 2
    (outage,) = outages(result)
    assert (outage["lost"], outage["connections"]) == (1, 1)
    assert 0.3 < outage["outage_s"] < 0.5
    assert outage["began"] < outage["ended"]
    assert (summary["outages"], summary["outages_s"]) == (1, outage["outage_s"])
    if rate is None:
        assert summary["due"] == summary["came"] + 1
    else:  # those that were due meanwhile were sent afterwards, as after a stall
        assert (summary["due"], summary["came"], summary["never_sent"]) == (200, 199, 0)
        assert summary["rtt_max_us"] > 300_000 > summary["raw_max_us"]
    text = simulate_bench(IsAway, **options).text
    assert re.search(
        rf"^{ADDRESS}: outage of 0\.[34]\d\d s from \S+ to \S+: 1 connection down, 1 lost$", text, re.MULTILINE
    )
    assert re.search(r"^reconnected 1 time\noutages     1, 0\.[34]\d\d s in all$", text, re.MULTILINE)


def test_a_connection_that_ends_between_two_messages_costs_nothing_if_it_is_opened_again():
    class ClosesAfterEachTenth(Service):
        def answer(self, message):
            self.send(message)
            if self.number == 10:
                self.close()

    result = simulate_bench(ClosesAfterEachTenth, rate=50, duration=2, reconnect=True, as_json=True)
    summary = adds_up(events(result.text)[-1])
    assert (result.code, summary["came"], summary["lost"], summary["errors"]) == (0, 100, 0, {})
    assert summary["reconnects"] >= 8


def test_replies_that_are_cut_at_different_places_are_one_kind_of_error():
    class CutsEachReplyElsewhere(Service):
        def answer(self, message):
            cuts = self.network.cuts = getattr(self.network, "cuts", 0) + 1
            self.send_raw(message[:cuts])
            self.close()

    result = simulate_bench(CutsEachReplyElsewhere, connections=1, duration=2, reconnect=True, as_json=True)
    summary = adds_up(events(result.text)[-1])
    assert summary["lost"] > 3
    assert summary["errors"] == {"the server has ended the session inside a message": summary["lost"]}


def test_a_server_that_does_not_come_back_is_an_outage_until_the_end():
    class GoesAway(Service):
        def answer(self, message):
            self.send(message)
            if self.network.time > 400_000_000:
                self.network.refusals = 1000
                self.close()

    result = simulate_bench(GoesAway, connections=1, duration=1, reconnect=True, as_json=True)
    summary = adds_up(events(result.text)[-1])
    (outage,) = outages(result)
    assert (result.code, outage["ended"]) == (1, None)
    assert outage["outage_s"] > 0.6
    assert summary["duration_s"] == 1


def test_a_connection_lost_and_opened_again_in_the_warm_up_does_not_count():
    class ClosesTheFirst(Service):
        def answer(self, message):
            if self in self.network.sessions[:2]:
                self.close()
            else:
                self.send(message)

    result = simulate_bench(ClosesTheFirst, duration=10, rate=20, reconnect=True, as_json=True)
    summary = adds_up(events(result.text)[-1])
    assert (summary["came"], summary["lost"], outages(result)) == (200, 0, [])
    assert summary["warm_up"]["lost"] == 2


@pytest.mark.parametrize("rate", [None, 200], ids=["closed", "open"])
def test_each_message_may_have_a_connection_of_its_own(rate):
    result = simulate_bench(rate=rate, duration=1, new_connection=True, as_json=True)
    summary = adds_up(events(result.text)[-1])
    assert (result.code, summary["errors"], summary["lost"]) == (0, {}, 0)
    sessions = result.network.sessions
    assert {session.number for session in sessions} == {0, 1}
    assert [session.number for session in sessions].count(0) == 1  # the first only checks that the server listens
    assert summary["rtt_samples"] == summary["raw_samples"] == summary["connect_samples"] == summary["came"] > 50
    assert summary["connect_min_us"] == summary["connect_max_us"] == 1000
    assert summary["rtt_min_us"] >= summary["raw_min_us"] + 1000  # a round trip includes the time to connect
    text = simulate_bench(rate=rate, duration=1, new_connection=True).text
    assert "a connection for each message, 1 s\n" in text.partition("\n")[0] + "\n"
    assert re.findall(r"^(corrected|raw|round trip) ", text, re.MULTILINE) == [
        "corrected" if rate else "round trip",
        "raw",
    ]


@pytest.mark.parametrize("rate", [None, 200], ids=["closed", "open"])
def test_a_message_that_cannot_connect_is_lost_and_the_next_one_is_sent(rate):
    class IsFullNowAndThen(Service):
        def answer(self, message):
            self.send(message)
            self.network.refusals = len(self.network.messages) % 10 == 0

    options = {"connections": 1, "duration": 2, "rate": rate, "new_connection": True}
    result = simulate_bench(IsFullNowAndThen, as_json=True, **options)
    summary = adds_up(events(result.text)[-1])
    refused = f"cannot connect: {os.strerror(errno.ECONNREFUSED)}"
    assert result.code == 1
    assert summary["errors"] == {refused: summary["lost"]}
    assert summary["lost"] == sum(outage["lost"] for outage in outages(result)) > 5
    assert summary["loss_percent"] > 5
    patient = simulate_bench(IsFullNowAndThen, conditions=[Condition.parse("loss > 50%")], **options)
    assert patient.code == 0


def test_a_reply_that_does_not_come_costs_its_own_connection_alone():
    result = simulate_bench(DropsEachFifth, connections=1, rate=100, duration=1, timeout=0.01, new_connection=True)
    assert result.code == 0  # the fifth message of a connection never comes

    class DropsEachFifthOfAll(Service):
        def answer(self, message):
            if len(self.network.messages) % 5:
                self.send(message)

    result = simulate_bench(
        DropsEachFifthOfAll, connections=3, rate=100, duration=1, timeout=0.01, new_connection=True, as_json=True
    )
    summary = adds_up(events(result.text)[-1])
    assert (summary["came"], summary["lost"], summary["errors"]) == (80, 20, {"no reply in time": 20})


@pytest.mark.parametrize(
    "renewal, rate, fate",
    [("new_connection", None, "lost"), ("new_connection", 100, "lost"), ("reconnect", None, "never_sent")],
)
def test_a_connection_that_ends_before_its_message_can_be_sent_is_an_error(renewal, rate, fate):
    class ClosesOne(Service):
        def opened(self):
            if renewal == "new_connection":
                self.close_once()

        def answer(self, message):
            self.send(message)
            if renewal == "reconnect":
                self.close_once()

        def close_once(self):
            if self.network.time > 5 * 10**8 and self.network.service is ClosesOne:
                self.network.service = Service
                self.close()  # sending to it fails

    result = simulate_bench(ClosesOne, rate=rate, duration=1, as_json=True, **{renewal: True})
    summary = adds_up(events(result.text)[-1])
    assert (result.code, summary[fate], sum(summary["errors"].values())) == (1, 1, 1)
    assert summary["due"] == summary["came"] + 1


@pytest.mark.slow
def test_a_server_that_is_replaced_under_load_is_one_outage_of_all_connections(serve, start_bench):
    handler = remembering(lambda handler, message: handler.send(message))
    server = serve(handler)
    address = server.server_address
    process = start_bench(address, "-P", "3", "-d", "3s", "-i", "100ms", "--reconnect", "-J")
    read_until(process, '"event": "interval"')  # the warm-up is over
    server.stop()
    with socket.socket() as nobody:
        eventually(lambda: nobody.connect_ex(address))
    with echo.Server(address, remembering(lambda handler, message: handler.send(message))) as server:
        server.start()
        code, text = finish(process)
    summary = adds_up(events(text)[-1])
    (outage,) = [event for event in events(text) if event["event"] == "outage"]
    assert (outage["connections"], outage["lost"]) == (3, summary["lost"])
    assert summary["reconnects"] == 3
    assert code == (1 if summary["lost"] or summary["errors"] else 0)


def test_outages_of_several_connections_that_overlap_are_one():
    def down(began, ended, connection=1, lost=1, over=True):
        return Downtime(began, ended, frozenset([connection]), lost, over)

    downtimes = Downtimes("ab")
    downtimes.add("a", 30, [down(10, 20), down(15, 25)], 0)
    assert list(downtimes.completed()) == []  # b is not known yet
    downtimes.add("b", 40, [], 1)
    assert list(downtimes.completed()) == []  # a connection of b is down
    downtimes.add("b", 50, [down(22, 45, 2)], 0)
    assert list(downtimes.completed()) == []  # a is known until 30
    downtimes.add("a", 60, [down(50, 55, 1, 7)], 0)
    downtimes.add("b", 60, [], 0)
    assert list(downtimes.completed()) == [Downtime(10, 45, frozenset([1, 2]), 3, True), down(50, 55, 1, 7)]
    assert list(downtimes.completed()) == []
    downtimes.add("a", 80, [down(70, 80, over=False)], 0)
    downtimes.end("a")
    downtimes.end("b")
    assert list(downtimes.completed()) == [down(70, 80, over=False)]


def test_a_server_that_closes_after_each_reply_is_no_outage_of_connections_for_one_message():
    class ClosesAfterIt(Service):
        def answer(self, message):
            self.send(message)
            self.close()

    result = simulate_bench(ClosesAfterIt, connections=3, new_connection=True, as_json=True)
    summary = adds_up(events(result.text)[-1])
    assert (result.code, summary["errors"], outages(result)) == (0, {}, [])
    result = simulate_bench(ClosesAfterIt, connections=3, duration=1, reconnect=True, as_json=True)
    assert all(outage["connections"] <= 3 for outage in outages(result))


def test_a_connection_for_one_message_that_is_answered_after_the_end_makes_room_for_those_that_wait():
    """Row 79: it stayed open, and the last messages of the others were lost."""

    class HasOnePlace(Service):
        def turn(self):
            sessions = self.network.sessions
            if not any(session.is_open for session in sessions[: sessions.index(self)]):
                super().turn()

    result = simulate_bench(HasOnePlace, connections=3, duration=0.1, new_connection=True, as_json=True)
    summary = adds_up(events(result.text)[-1])
    assert (result.code, summary["lost"], summary["errors"]) == (0, 0, {})
    assert summary["came"] > 10


def test_connecting_takes_place_beside_the_connections_that_there_are():
    may_connect = threading.Event()

    def connect():
        assert may_connect.wait(DEADLINE)
        return socket.socket()

    dialer = Dialer(connect, CLOCK)
    try:
        for place in range(3):
            dialer.dial(place)  # returns at once
        assert dialer.ended() == []
        may_connect.set()
        ended = []
        with selectors.DefaultSelector() as selector:
            selector.register(dialer, selectors.EVENT_READ)
            while len(ended) < 3:
                assert selector.select(DEADLINE)
                ended += dialer.ended()
        assert {each.place for each in ended} == {0, 1, 2}
        for each in ended:
            each.socket.close()
    finally:
        dialer.close()


def test_a_dialer_does_not_close_what_a_thread_is_writing_to():
    """The system could give the number to another socket, which would get the byte (gh-116912)."""
    calls, writes, may_end = [], threading.Event(), threading.Event()

    class Writer:
        def send(self, data):
            writes.set()
            assert may_end.wait(DEADLINE)
            calls.append("sent")

        def close(self):
            calls.append("closed")

    dialer = Dialer(socket.socket, CLOCK)
    dialer._writer.close()
    dialer._writer = Writer()
    dialer.dial(0)
    assert writes.wait(DEADLINE)
    closer = threading.Thread(target=dialer.close, daemon=True)
    closer.start()
    closer.join(0.05)
    may_end.set()
    closer.join(DEADLINE)
    assert calls == ["sent", "closed"]


# The time series.


def series(result):
    return [event for event in events(result.text) if event["event"] == "interval"]


@pytest.mark.parametrize("rate", [None, 200], ids=["closed", "open"])
@pytest.mark.parametrize("interval, expected", [(0.1, 10), (0.3, 4), (0.5, 2), (1.0, 1), (7.0, 1)])
def test_the_intervals_cover_the_measured_time_and_add_up(rate, interval, expected):
    result = simulate_bench(FlipsAByteOfEachThird, rate=rate, duration=1, interval=interval, as_json=True)
    found, summary = series(result), events(result.text)[-1]
    assert all(have_units(event) for event in found)
    bounds = [round(min(number * interval, 1), 6) for number in range(expected + 1)]
    assert [(event["from_s"], event["to_s"]) for event in found] == list(zip(bounds, bounds[1:]))
    assert sum(event["messages"] for event in found) == summary["messages"] > 0
    assert sum(event["wrong"] for event in found) == pytest.approx(summary["corrupted"], abs=2)  # those after the end
    for event in found:
        assert event["messages_per_s"] == pytest.approx(event["messages"] / (event["to_s"] - event["from_s"]), abs=0.1)
    assert not any(event["event"] == "progress" for event in events(result.text))


def test_a_stall_is_in_the_interval_in_which_it_was():
    class Stalls(Service):
        def answer(self, message):
            if self.number == 60:  # of a hundred a second, after a warm-up of a tenth of a second
                self.network.time += 30_000_000
            self.send(message)

    result = simulate_bench(Stalls, connections=1, rate=100, duration=1, interval=0.2, as_json=True)
    assert [event["rtt_max_us"] >= 30_000 for event in series(result)] == [False, False, True, False, False]


def test_an_interval_is_a_line():
    result = simulate_bench(DropsEachFifth, rate=200, duration=1, timeout=0.01, interval=0.5)
    lines = [line for line in result.text.splitlines() if "messages " in line and "/s " in line]
    assert lines[0] == (
        "   0.00-0.50 s         80 messages       160/s  p50  1.10  p99     -  max  1.10 ms  0 wrong, 18 lost"
    )
    assert len(lines) == 2


def test_an_interruption_cuts_the_last_interval():
    class InterruptsAfterASecond(Service):
        def answer(self, message):
            self.send(message)
            self.network.interrupted = self.network.time > 10**9

    result = simulate_bench(InterruptsAfterASecond, duration=5, interval=0.2, as_json=True)
    found, summary = series(result), events(result.text)[-1]
    assert found[-1]["to_s"] == summary["duration_s"] < 1
    assert sum(event["messages"] for event in found) == summary["messages"]


def test_an_interval_is_complete_when_each_process_has_passed_its_end():
    def part(until, received):
        part = Slice()
        part.until, part.received = until, received
        return part

    intervals = Intervals(Period(0, 10, 40, 20), ["a", "b"])
    for source, until, received in (("a", 10, 100), ("a", 20, 1), ("a", 30, 2), ("b", 10, 100), ("b", 25, 4)):
        intervals.add(source, part(until, received))
        assert list(intervals.completed(40)) == []
    intervals.add("b", part(30, 8))
    assert [(each.begin, each.end, each.counts.received) for each in intervals.completed(40)] == [(0, 20, 15)]
    intervals.add("a", part(45, 16))
    intervals.add("a", part(60, 100))  # after the end
    assert list(intervals.completed(40)) == []
    intervals.end("b")  # a process that has died
    assert [(each.begin, each.end, each.counts.received) for each in intervals.completed(40)] == [(20, 30, 16)]
    assert list(intervals.completed(40)) == []


# The client itself.


def test_a_client_that_polls_has_time_to_spare_between_two_polls_as_well(monkeypatch):
    class Counted(Network):
        """A look at the clock takes as long as a poll."""

        looked = 0

        def now(self):
            self.looked += simulation.POLL
            self.time += simulation.POLL
            return self.time

        def cpu(self):
            return self.looked + self.polled

    monkeypatch.setattr(simulation, "POLL", 10_000)
    text = simulate_bench(network=Counted, duration=0.5, rate=500).text
    assert int(re.search(r"^client +(\d+)%", text, re.MULTILINE).group(1)) < 10, text


@pytest.mark.parametrize("busy, warned", [(0.5, False), (0.89, False), (0.95, True)])
@pytest.mark.parametrize("rate", [None, 100])
def test_a_client_without_processor_time_to_spare_is_named_as_the_bottleneck(busy, warned, rate):
    network = type("Busy", (Network,), {"busy": busy})
    text = simulate_bench(network=network, duration=2, rate=rate).text
    assert f"\nclient      {busy:.0%} of a processor in each process\n" in text
    expected = (
        "warning     the client was the bottleneck: it had no processor time to spare; the server may be faster\n"
    )
    assert (expected in text) == warned == ("warning" in text)
    summary = events(simulate_bench(network=network, duration=2, rate=rate, as_json=True).text)[-1]
    assert summary["client_busy_percent"] == pytest.approx(100 * busy, abs=0.1)
    assert summary["client_is_bottleneck"] is warned


def test_a_client_that_sends_late_says_so_and_a_server_that_is_slow_is_not_blamed_on_it():
    class HoldsTheClientUp(Service):
        def answer(self, message):
            self.send(message)
            if self.network.time > 500_000_000:
                self.network.time += 30_000_000  # and it has three turns in that time

    summary = events(simulate_bench(HoldsTheClientUp, rate=100, duration=1, as_json=True).text)[-1]
    assert summary["client_late"] > 10
    assert summary["client_late_max_us"] >= 20_000
    assert summary["client_is_bottleneck"]

    class IsSlow(Service):
        held = None

        def answer(self, message):
            if self.held is not None:
                self.send(self.held)
            self.held = message

    result = simulate_bench(IsSlow, rate=100, depth=1, duration=1, timeout=0.05, as_json=True)
    summary = events(result.text)[-1]
    assert summary["rtt_samples"] + summary["lost"] + summary["never_sent"] == 100
    assert (summary["client_late"], summary["client_is_bottleneck"]) == (0, False)


# Services that do not echo, or echo wrongly.


def test_flipped_bytes_are_corrupted():
    result = simulate_bench(FlipsAByteOfEachThird)
    assert (result.code, result.details) == (3, "")
    found = rows(result.text)
    assert re.fullmatch(r"[\d,]+ corrupted", found["wrong"])
    assert received(result.text) > 0
    assert (found["lost"], found["errors"]) == ("0", "0")


def test_with_v_three_wrong_replies_of_each_process_are_shown():
    result = simulate_bench(FlipsAByteOfEachThird, connections=1, verbose=True)
    assert result.code == 3
    assert int(rows(result.text)["wrong"].split()[0].replace(",", "")) > 3
    examples = re.findall(r"^corrupted:\n  sent     (.{64})\n  received (.{64})\n", result.details, re.MULTILINE)
    assert len(examples) == 3 and result.details.count("received") == 3
    for sent, came in examples:
        assert sent[30] != came[30]
        assert sent[:30] + sent[31:] == came[:30] + came[31:]


def test_a_doubled_reply_is_shown_alone_since_nothing_was_sent_for_it():
    result = simulate_bench(SaysItTwice, connections=1, verbose=True)
    assert result.code == 3
    assert len(re.findall(r"^doubled:\n  received .{64}\n", result.details, re.MULTILINE)) == 3


def test_dropped_replies_are_lost():
    result = simulate_bench(DropsEachFifth, timeout=0.1, duration=0.7)
    assert result.code == 1
    found = rows(result.text)
    assert int(found["lost"]) > 0
    assert found["errors"] == f"{found['lost']} x no reply in time"
    assert received(result.text) > 0


def test_replies_in_another_order_are_reported():
    result = simulate_bench(SwapsPairs, depth=2)
    assert result.code == 3
    assert re.fullmatch(r"[\d,]+ out of order", rows(result.text)["wrong"])


def test_replies_that_come_twice_are_doubled():
    result = simulate_bench(SaysItTwice)
    assert result.code == 3
    assert re.fullmatch(r"[\d,]+ doubled", rows(result.text)["wrong"])


@pytest.mark.parametrize("rate", [None, 40], ids=["closed", "open"])
def test_a_reply_after_its_time_is_late_however_soon_after(rate):
    class TakesLong(Service):
        def answer(self, message):
            self.network.time += 9_000_000 if self.number % 2 else 11_000_000
            self.send(message)

    # Each takes a millisecond longer.
    result = simulate_bench(TakesLong, connections=1, rate=rate, duration=1, timeout=0.011, as_json=True)
    assert result.code == 1
    summary = adds_up(events(result.text)[-1])
    assert summary["lost"] == summary["wrong"]["late"] == summary["errors"]["no reply in time"]
    assert abs(summary["lost"] - summary["came"]) <= 1
    assert summary["rtt_max_us" if rate is None else "raw_max_us"] <= 11_000


# Pauses of the client itself.


class TakesLong(Service):
    """Answers each message after 20 ms, so that some are on their way at any time."""

    def opened(self):
        self.held = []

    def answer(self, message):
        self.held.append((self.network.time + 20_000_000, message))

    def turn(self):
        super().turn()
        while self.held and self.held[0][0] <= self.network.time:
            self.send(self.held.pop(0)[1])


class BenchPauses(Network):
    """The bench takes no counts for five seconds, since the reader of its output pauses."""

    paused = False

    def passed_on(self):
        if not self.paused and self.time >= 1_500_000_000:
            self.paused = True
            self.time += 5_000_000_000


class IsStopped(Network):
    """The load is stopped for five seconds while it waits."""

    paused = False

    def selector(self):
        network, selector = self, super().selector()
        select = selector.select

        def stopped(timeout=None):
            if not network.paused and network.time >= 1_500_000_000:
                network.paused = True
                network.time += 5_000_000_000
            return select(timeout)

        selector.select = stopped
        return selector


PAUSES = pytest.mark.parametrize("network", [BenchPauses, IsStopped])
LOADS = pytest.mark.parametrize("load", [{}, {"rate": 100}, {"reconnect": True}, {"new_connection": True}], ids=str)


@PAUSES
@LOADS
def test_replies_that_came_while_the_load_was_held_up_are_not_lost(load, network):
    result = simulate_bench(TakesLong, network=network, duration=8, timeout=1, as_json=True, **load)
    assert result.network.paused
    summary = adds_up(events(result.text)[-1])
    assert (result.code, summary["lost"], summary["wrong"], summary["errors"]) == (0, 0, {}, {})
    assert summary["came"] == summary["due"] > 0


@PAUSES
@LOADS
def test_after_a_pause_of_the_load_a_reply_that_is_missing_is_lost(load, network):
    class ForgetsOne(TakesLong):
        def answer(self, message):
            if forgotten or self.network.time < 1_300_000_000:
                super().answer(message)
            else:
                forgotten.append(message)

    forgotten = []
    result = simulate_bench(ForgetsOne, network=network, duration=8, timeout=1, as_json=True, **load)
    summary = adds_up(events(result.text)[-1])
    assert (result.code, summary["lost"], summary["wrong"]) == (1, 1, {})
    assert summary["errors"] == {"no reply in time": 1}


@LOADS
def test_replies_that_came_while_the_load_was_stopped_anywhere_are_not_lost(load):
    class IsStoppedAtSomeLook(Network):
        """The load is stopped before one of its looks at the clock after 100 ms."""

        looks = 0

        def now(self):
            self.looks += self.time >= 100_000_000
            if self.looks == stopped_at:
                self.looks += 1
                self.time += 5_000_000_000
            return self.time

    for stopped_at in range(1, 26):  # two rounds, or one with new connections
        result = simulate_bench(network=IsStoppedAtSomeLook, duration=0.15, timeout=1, as_json=True, **load)
        assert result.network.looks > stopped_at
        assert (stopped_at, result.code) == (stopped_at, 0)


def test_a_busy_load_gives_up_what_is_missing():
    class AnswersOneOfTwo(Service):
        def answer(self, message):
            if self.network.sessions.index(self) != 1:
                self.send(message)

    class IsBusy(Network):
        def now(self):  # each step takes long, and so does each round
            self.time += 30_000_000
            return self.time

    result = simulate_bench(AnswersOneOfTwo, network=IsBusy, connections=5, duration=8, timeout=1, as_json=True)
    summary = adds_up(events(result.text)[-1])
    assert summary["errors"]["no reply in time"] == summary["lost"] >= 5


@pytest.mark.parametrize("rate", [None, 100], ids=["closed", "open"])
def test_a_tenth_is_a_tenth_since_the_warm_up_counts_for_nothing(rate):
    class DropsEachTenth(Service):
        def answer(self, message):
            if int(message[:8], 16) % 10:
                self.send(message)

    result = simulate_bench(DropsEachTenth, connections=1, rate=rate, duration=2, timeout=0.01, as_json=True)
    summary = adds_up(events(result.text)[-1])
    assert summary["lost"] == summary["errors"]["no reply in time"] == pytest.approx(summary["due"] / 10, abs=1)
    assert summary["warm_up"]["lost"] > 0
    dropped = [
        message for message in result.network.messages if message.startswith(b"0") and not int(message[:8], 16) % 10
    ]
    assert summary["lost"] + summary["warm_up"]["lost"] == len(dropped)


def test_faults_in_the_warm_up_alone_do_not_count():
    class WarmsUp(Service):
        def answer(self, message):
            if self.number > 5:
                self.send(message)
            elif self.number == 4:
                self.send(message + message)
            elif self.number == 5:
                self.send(message)
                self.send(message)

    result = simulate_bench(WarmsUp, connections=1, rate=100, duration=2, timeout=0.1)
    assert result.code == 0
    assert all_right(result.text)
    assert rows(result.text)["due"].startswith("200: 200 came")
    assert rows(result.text)["warm-up"] == "1 corrupted, 1 doubled, 3 lost; not counted above"


def test_a_lost_message_is_given_up_in_time_and_the_next_is_sent():
    result = simulate_bench(NeverAnswers, connections=1, duration=2, timeout=0.1)
    gaps = [later - earlier for earlier, later in zip(result.network.times, result.network.times[1:])]
    assert gaps
    assert all(100_000_000 < gap <= 111_000_000 for gap in gaps)


def test_replies_after_the_time_are_lost_and_late():
    result = simulate_bench(LagsByOne, connections=1, duration=0.9, timeout=0.1)
    assert result.code == 1  # they are missing, not wrong
    found = rows(result.text)
    assert re.fullmatch(r"\d+ late", found["wrong"])
    assert int(found["lost"]) > int(found["wrong"].split()[0]) > 0
    assert found["errors"].endswith(" x no reply in time")
    assert received(result.text) == 0


def test_words_that_nobody_asked_for_are_reported():
    result = simulate_bench(SpeaksUnasked)
    assert result.code == 3
    assert re.fullmatch(r"\d+ not asked for", rows(result.text)["wrong"])


def test_a_greeting_is_not_asked_for():
    result = simulate_bench(Greets)
    assert result.code == 0
    assert rows(result.text)["warm-up"] == "2 not asked for; not counted above"
    assert all_right(result.text)


def test_under_raw_framing_a_greeting_is_reported_once_for_each_connection_and_all_are_right():
    class GreetsBriefly(EchoesBytes):
        def opened(self):
            self.send_raw(b"220 hello\n")

    result = simulate_bench(GreetsBriefly, "raw", depth=3)
    assert result.code == 0
    assert all_right(result.text)
    assert "shifted     2 x by 10 bytes\n" in result.text


@every_framing
def test_without_verification_any_reply_is_counted(framing):
    class IsNoEcho(EchoesBytes):
        def received(self, data):
            self.send(b"ok" if framing != "raw" else b"0" * 64)

    result = simulate_bench(IsNoEcho, framing, verify=False)
    assert result.code == 0
    assert all_right(result.text)


def test_replies_of_another_connection_are_reported():
    class Crosses(Service):
        waiting = []

        def answer(self, message):
            if not self.waiting:
                self.waiting.append((self, message))
                return
            other, its_message = self.waiting.pop()
            self.send(its_message)
            other.send(message)

    result = simulate_bench(Crosses, rate=100, timeout=0.05)
    assert result.code == 3
    found = rows(result.text)
    assert found["wrong"] == "20 another connection's"
    assert (found["lost"], found["errors"]) == ("20", "20 x no reply in time")


def test_when_all_connections_are_closed_it_is_over():
    result = simulate_bench(ClosesAtTheFourth, duration=300)
    assert result.code == 1
    found = rows(result.text)
    assert found["errors"] == "2 x the server has ended the session"
    assert (found["lost"], found["warm-up"]) == ("0", "2 lost; not counted above")
    assert result.network.time < 10**9


def test_when_all_connections_are_reset_it_is_over(serve, start_bench):
    process = start_bench(serve(remembering(resets_at_the_fourth)), "-d", "1h", "-J")
    code, text = finish(process)
    assert (code, process.log) == (1, "")
    assert events(text)[-1]["errors"] == {f"the connection was lost: {os.strerror(errno.ECONNRESET)}": 2}


def test_when_one_connection_is_closed_the_others_go_on():
    class TheFirstIsClosed(Service):
        def answer(self, message):
            if self is self.network.sessions[0] and self.number == 4:
                self.close()
            else:
                self.send(message)

    result = simulate_bench(TheFirstIsClosed, connections=3)
    assert result.code == 1
    assert received(result.text) == 400
    assert rows(result.text)["errors"] == "1 x the server has ended the session"
    assert len(result.network.sessions) == 3  # it is not opened again


def test_a_server_that_stops_ends_it(serve, start_bench):
    handler = remembering(never_answers)  # so that no bytes reach the socket after its close
    server = serve(handler)
    process = start_bench(server, "-d", "1h")
    eventually(lambda: len(handler.messages) == 2)
    server.stop()
    code, text = finish(process)
    assert code == 1
    assert rows(text)["errors"] == "2 x the server has ended the session"
    assert len(handler.sessions) == 2


def test_a_server_that_never_answers_loses_everything():
    result = simulate_bench(NeverAnswers, timeout=0.1, connections=3)
    assert result.code == 1
    found = rows(result.text)
    assert found["messages"].startswith("0 in 0.2 s, 0/s")
    assert found["wrong"] == "0"
    assert int(found["lost"]) >= 3
    assert found["errors"] == f"{found['lost']} x no reply in time"
    assert "samples" not in result.text


@pytest.mark.parametrize("at", ["opened", "answer"])
def test_a_line_that_is_too_long_ends_that_connection_though_nothing_follows(at):
    def send_too_much(service, message=None):
        if service.number < 2:
            service.send_raw(b"x" * 65537)

    service = type("Sends", (SendsALineThatIsTooLong,), {"opened": lambda self: None, at: send_too_much})
    result = simulate_bench(service, duration=300)
    assert result.code == 1
    assert rows(result.text)["errors"] == "2 x a message is longer than the limit of 65536 bytes"


def test_a_server_that_is_not_there_is_one_line(start_bench):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        process = start_bench(nobody.getsockname())
        assert process.finish() == (1, b"")
        assert one_complaint(process, "127.0.0.1:%s" % nobody.getsockname()[1], "nothing listens")


@needs_proc
def test_a_process_of_the_load_that_dies_is_reported(serve, start_bench):
    handler = remembering(never_answers)
    process = start_bench(serve(handler), "-P", "1", "-d", "1h")
    eventually(lambda: handler.messages)
    for pid in processes_of(process.pid):
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if b"spawn_main" in file.read():
                os.kill(pid, signal.SIGKILL)
    code, text = finish(process)
    assert code == 1
    assert rows(text)["errors"] == "1 x a process of the load has died"


@pytest.mark.parametrize(("exitcode", "words"), [(-9, "has died"), (1, "has ended with code 1")])
def test_a_process_of_the_load_that_ends_before_it_connects_has_died_only_of_a_signal(exitcode, words):
    def start_load(plan):
        ours, theirs = multiprocessing.Pipe()
        theirs.close()
        yield ours, mock.Mock(exitcode=exitcode), [0]

    network = Network(Service, echo.LineFraming())
    options = {"connections": 1, "duration": 1, "size": 64, "depth": None, "rate": None, "timeout": 1.0}
    bench = Bench(network, network.framing, Report(print), start_load=start_load, **options)
    with contextlib.closing(bench), pytest.raises(echo.ConnectionClosed, match=f"^a process of the load {words}$"):
        bench.connect()


def test_a_process_that_dies_takes_no_message_along():
    class Dies(threading.Thread):
        def __init__(self, pipe):
            super().__init__(daemon=True)
            self.pipe = pipe

        def run(self):
            part = Slice()
            part.issued, part.lost = 50, 3
            part.rtt.add(1)
            with self.pipe as pipe:
                pipe.send([1000])
                pipe.recv()
                pipe.send(part)

        def kill(self):
            pass

    def start_load(plan):
        ours, theirs = multiprocessing.Pipe()
        process = Dies(theirs)
        process.start()
        yield ours, process, [0]

    out = []
    network = Network(Service, echo.LineFraming())
    options = {"connections": 1, "duration": 1, "size": 64, "depth": None, "rate": 100, "timeout": 1.0}
    bench = Bench(network, network.framing, Report(out.append, as_json=True), start_load=start_load, **options)
    with contextlib.closing(bench):
        bench.connect()
        assert bench.run() == 1
    summary = adds_up(events("\n".join(out))[-1])
    assert [summary[name] for name in ("due", "came", "lost", "never_sent")] == [100, 1, 49, 50]
    assert summary["errors"] == {"a process of the load has died": 1}


@pytest.mark.parametrize("options", [{}, {"reconnect": True}, {"rate": 100}], ids=str)
def test_a_process_of_the_load_without_memory_says_so(monkeypatch, options):
    """Row 65: it ended with a traceback, and the summary did not name the cause."""

    class LongReplies(Service):
        def answer(self, message):
            if self.network.time > 10**9:
                monkeypatch.setattr(Lane, "receive", without_memory)
            self.send(message)

    def without_memory(lane):
        raise MemoryError

    result = simulate_bench(LongReplies, duration=3.0, **options)
    assert result.code == 1
    assert rows(result.text)["errors"] == "1 x a process of the load had not enough memory"


def test_without_memory_to_connect_a_bench_ends_as_such():
    class NoMemory(Network):
        def open(self, timeout):
            raise MemoryError

    with pytest.raises(OSError, match="not enough memory"):
        simulate_bench(network=NoMemory)


# Ctrl-C, SIGTERM and timeouts.


def test_an_interrupt_ends_it_with_the_summary():
    class InterruptsAfterASecond(Service):
        def answer(self, message):
            if self.network.time > 10**9:
                self.network.interrupted = True
            else:
                self.send(message)

    result = simulate_bench(InterruptsAfterASecond, duration=5, depth=3, as_json=True)
    assert result.code == 0
    summary = events(result.text)[-1]
    assert summary["messages"] > 0
    assert 0 < summary["duration_s"] < 1
    assert (summary["lost"], summary["errors"]) == (0, {})
    assert adds_up(summary)["on_the_way"] > 0


def test_an_interrupt_in_the_warm_up_is_reported():
    class InterruptsAtOnce(Service):
        def answer(self, message):
            self.network.interrupted = True

    result = simulate_bench(InterruptsAtOnce, duration=300)
    assert result.code == 1
    found = rows(result.text)
    assert found["messages"] == "none: it ended before the warm-up did"
    assert found["due"] == "0: 0 came, 0 lost, 0 never sent, 0 on the way"


@posix
@pytest.mark.slow
def test_a_signal_ends_it_with_the_summary(serve, start_bench):
    server = serve()
    options = ("--rate", "20", "-d", "1h", "-J")
    processes = {signum: start_bench(server, *options) for signum in (signal.SIGINT, signal.SIGTERM)}
    for signum, process in processes.items():
        read_until(process, '"progress"')  # one second of the measured time has passed
        process.popen.send_signal(signum)
    for process in processes.values():
        code, text = finish(process)
        summary = events(text)[-1]
        assert summary["messages"] > 0
        assert 1 <= summary["duration_s"] < 3600
        assert (summary["lost"], summary["errors"]) == (0, {})
        assert code == 0


def is_a_summary_of_nothing(text):
    """Whether no message was measured: the signal came in the warm-up or, on a busy machine, just after it."""
    return re.match("none: it ended before the warm-up did|0 in ", rows(text)["messages"])


@posix
@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_two_signals_end_it_with_one_summary(serve, start_bench, signum):
    handler = remembering(never_answers)
    process = start_bench(serve(handler), "-w", "0", "-d", "1h")
    eventually(lambda: handler.messages)
    signal_twice(process, signum)
    code, text = finish(process)
    assert code == 1
    assert is_a_summary_of_nothing(text)
    assert rows(text)["errors"] == "0"


@posix
@pytest.mark.needs_programs("timeout")
def test_under_timeout_which_signals_twice_there_is_one_summary(serve, start_bench):
    handler = remembering(never_answers)
    process = start_bench(serve(handler), "-w", "0", "-d", "1h", python_options=("-c", THROUGH_TIMEOUT))
    eventually(lambda: handler.messages)
    process.popen.send_signal(signal.SIGTERM)  # timeout(1) passes it on, as at its end
    code, text = finish(process)
    assert code == 1
    assert is_a_summary_of_nothing(text)
    assert rows(text)["errors"] == "0"


def test_ctrl_c_at_a_terminal_ends_it_with_the_summary(serve, run):
    from support.terminal import CTRL_C, Terminal  # skips where there are no pseudo-terminals

    handler = remembering(never_answers)
    arguments = (*arguments_for(serve(handler)), "--bench", "-w", "0", "-d", "1h")
    user = Terminal(run, "echo.client", *arguments, TERM="xterm")
    try:
        eventually(lambda: handler.messages)
        user.type(CTRL_C)
        assert user.leave() == 1
    finally:
        os.close(user.master)
    *_, text = re.split(r"\x1b\[K", user.screen.decode().replace("\r\n", "\n").replace("^C", ""))
    assert is_a_summary_of_nothing(text)
    assert rows(text)["errors"] == "0"


@posix
def test_a_signal_while_the_load_is_started_is_not_lost(serve, start_bench):
    # The process of the load starts so slowly that the signal comes during its start.
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
    process = start_bench(serve(), "-d", "3s", "-J", python_options=("-c", starter))
    process.finish()
    assert process.popen.returncode in (1, 130)  # and not 0, as after a complete load


@posix
@pytest.mark.parametrize("rounds", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_signal_right_after_the_first_line_leaves_a_summary(serve, start_bench, rounds):
    server = serve(remembering(never_answers))
    for _ in range(rounds):
        process = start_bench(server, "-w", "0", "-d", "1h")
        read_until(process, "BENCH ")
        process.popen.send_signal(signal.SIGTERM)
        code, text = finish(process)
        assert (code, process.log) == (1, "")
        assert is_a_summary_of_nothing(text)


@needs_proc
@pytest.mark.parametrize(
    "signum, rate",
    [
        (signal.SIGKILL, ["--rate", "50"]),
        pytest.param(signal.SIGKILL, [], marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, [], marks=pytest.mark.slow),
    ],
)
def test_no_process_of_the_load_outlives_it(serve, start_bench, rate, signum):
    handler = remembering()
    process = start_bench(serve(handler), "-d", "1h", "-P", "4", *rate)
    eventually(lambda: handler.messages)
    children = processes_of(process.pid)
    assert children
    process.popen.send_signal(signum)
    process.popen.wait(DEADLINE)
    eventually(lambda: not any(map(is_alive, children)), "a process of the load lives on")


# Output.


def test_quiet_is_the_summary_alone():
    result = simulate_bench(quiet=True)
    assert (result.code, result.details) == (0, "")
    assert result.text.startswith("messages ")
    assert all_right(result.text)


def test_json_is_one_object_a_line_and_the_summary_last():
    result = simulate_bench(FlipsAByteOfEachThird, duration=2.2, as_json=True)
    assert (result.code, result.details) == (3, "")
    start, *progress, summary = events(result.text)
    assert all(have_units(event) for event in (start, *progress, summary))
    assert dict(start, warm_up_s=0) == {
        "event": "start",
        "address": ADDRESS,
        "connections": 2,
        "size_bytes": 64,
        "depth": 1,
        "rate_per_s": None,
        "duration_s": 2.2,
        "warm_up_s": 0,
        "reconnect": False,
        "new_connection": False,
    }
    assert start["warm_up_s"] == pytest.approx(0.22)
    assert [event["event"] for event in progress] == ["progress"] * 2
    for number, event in enumerate(progress, 1):
        assert number <= event["elapsed_s"] < number + 0.5
        assert event["wrong"] > 0
        assert event["messages_per_s"] > 0
    assert summary["messages"] > 0
    assert summary["wrong"] == {"corrupted": summary["corrupted"]}
    assert summary["duration_s"] == pytest.approx(2.2)
    assert summary["messages_per_s"] == pytest.approx(summary["messages"] / 2.2, abs=0.1)
    assert summary["bytes_per_s"] == pytest.approx(summary["messages"] * 64 / 2.2, abs=0.1)
    assert (summary["lost"], summary["unsent"], summary["errors"]) == (0, 0, {})
    assert 0 < summary["rtt_min_us"] <= summary["rtt_p50_us"] <= summary["rtt_p99_us"] <= summary["rtt_max_us"]
    assert summary["connect_avg_us"] == 1000


@pytest.mark.parametrize(
    "encoding, bar", [("ascii", "#+"), pytest.param("utf-8", "[█▏▎▍▌▋▊▉]+", marks=pytest.mark.slow)]
)
def test_the_histogram_is_drawn_with_what_the_encoding_has(serve, start_bench, encoding, bar):
    process = start_bench(serve(), *FEW, "--histogram", env={"PYTHONIOENCODING": encoding})
    code, out = process.finish()
    assert (code, process.log) == (0, "")
    text = out.decode(encoding)
    picture = text.partition("round trips\n")[2].splitlines()
    drawn = [re.fullmatch(rf" *[\d.]+ - +[\d.]+ +([\d,]+)(?: ({bar}))?", row).groups() for row in picture]
    assert sum(int(number.replace(",", "")) for number, _ in drawn) == samples(text)
    assert all((number != "0") == bool(bars) for number, bars in drawn)
    assert max(len(bars or "") for _, bars in drawn) == 40


def test_it_needs_no_input_and_warns_of_nothing(serve, start_bench):
    options = ("-c", WITHOUT_INPUT, "-W", "error", "-X", "dev")
    process = start_bench(serve(), *FEW, python_options=options)
    code, text = finish(process)
    assert (code, process.log) == (0, "")
    assert all_right(text)


# The progress line at a terminal.


def lines_on(screen, width):
    """The texts that were drawn in a terminal's last line, after a check that each one fits."""
    *drawn, last = re.findall(r"\r(?:\x1b\[\dA)?\x1b\[[KJ]([^\r\n\x1b]*)", screen)
    assert last == "" or last.startswith("messages "), screen  # the summary, if that goes to the terminal too
    assert all(len(text) <= width - 3 for text in drawn)
    return drawn


def set_width(terminal, columns):
    termios = pytest.importorskip("termios", reason="this platform has no terminals")
    fcntl = pytest.importorskip("fcntl")
    fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


@pytest.mark.slow
def test_a_line_at_the_terminal_shows_how_it_goes_fits_and_is_gone_at_the_end(serve, run):
    from support.terminal import CTRL_C, Terminal  # skips where there are no pseudo-terminals

    arguments = ("--bench", "-P", "2", "--rate", "400", "-d", "1h", "--color", "never", *PATIENT)
    server = serve(remembering(flips_a_byte_of_each_third))
    user = Terminal(run, "echo.client", *arguments_for(server), *arguments, TERM="xterm")
    try:
        set_width(user, 40)
        user.until(rb"\r\x1b\[K +59:\d\d left  +[\d,]+/s  [\d,]+ wrong[^\r]*$")
        set_width(user, 20)  # while the line is there
        user.until(rb"\x1b\[1A\x1b\[J[^\r ]+    59:\d\d left")
        user.type(CTRL_C)
        assert user.leave() == 3
    finally:
        os.close(user.master)
    screen = user.screen.decode().replace("^C", "")
    assert lines_on(screen, 40)
    # After the last one is erased, the summary begins at the left.
    assert re.search(r"\r\x1b\[Kmessages    [\d,]+ in ", screen)
    assert rows(screen.rpartition("\x1b[K")[2].replace("\r\n", "\n"))


@pytest.mark.slow
def test_quiet_and_json_draw_no_line(serve, run):
    from support.terminal import Terminal

    server = serve()
    arguments = (*arguments_for(server), "--bench", "-P", "1", "--rate", "50", "-d", "1200ms", *PATIENT)
    users = [Terminal(run, "echo.client", *arguments, option) for option in ("-q", "-J")]
    for user in users:
        try:
            assert user.leave() == 0
        finally:
            os.close(user.master)
        assert b"\x1b" not in user.screen


@pytest.mark.slow
def test_nothing_is_drawn_on_stderr_when_that_is_not_a_terminal(serve, start_bench):
    process = start_bench(serve(remembering(flips_a_byte_of_each_third)), "--rate", "50", "-d", "1200ms")
    assert finish(process)[0] == 3
    assert process.log == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "width, whole",
    [
        (200, r"[━╸─]+  +59:\d\d left +[\d,]+/s  p50 +[\d.]+  p99 +[\d.]+ ms  [\d,]+ wrong  [^\r]+"),
        (20, r"[━╸─]+    59:\d\d left"),
    ],
    ids=["wide", "narrow"],
)
def test_the_line_is_on_the_terminal_and_fits_it_when_the_results_go_elsewhere(serve, run, tmp_path, width, whole):
    from support.terminal import Terminal

    server = serve(remembering(flips_a_byte_of_each_third))
    options = ("-P", "2", "--rate", "400", "-d", "1h", "--color", "never", *PATIENT)
    arguments = (*arguments_for(server), "--bench", *options)
    results = tmp_path / "results"
    user = Terminal(run, "echo.client", *arguments, starter=STDOUT_ELSEWHERE, STDOUT=str(results), TERM="xterm")
    try:
        set_width(user, width)
        user.until(rb"\r\x1b\[K" + whole.encode() + rb"$")
        user.process.popen.send_signal(signal.SIGINT)
        assert user.leave() == 3
    finally:
        os.close(user.master)
    screen = user.screen.decode().replace("^C", "")
    assert any(re.fullmatch(whole, line) for line in lines_on(screen, width))
    assert screen.endswith("\r\x1b[K")
    text = results.read_text()
    assert received(text) > 0
    assert "\x1b" not in text and " left" not in text


# Usage errors, and addresses where no connection can be made.


@pytest.mark.parametrize(
    "options, words",
    [
        (["--bench", "-c", "3"], ["--count needs --ping"]),
        (["--bench", "-i", "50ms"], ["--interval", "minimum is 100ms"]),
        (["-m", "x", "-i", "3"], ["--interval needs --ping or --bench"]),
        (["--bench", "-m", "x"], ["-m", "--bench", "not allowed with"]),
        (["--bench", "-s", "19"], ["invalid size '19'", "20 bytes"]),
        (["--bench", "-s", "65537"], ["--size 65537 is over --max-message 65536"]),
        (["--bench", "-d", "0"], ["invalid --duration 0"]),
        (["--bench", "--new-connection", "--depth", "2"], ["--new-connection excludes --depth", "--connections"]),
        (["--ping", "--reconnect"], ["--reconnect needs --bench"]),
        (["--bench", "-P", "0"], ["invalid number '0'"]),
        (["--bench", "--rate", "0"], ["invalid number '0'"]),
        (["--bench", "--rate", "1.5"], ["invalid number '1.5'"]),
        (["-P", "3"], ["--connections needs --bench"]),
        (["-m", "x", "--rate", "3"], ["--rate needs --bench"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("-") else "",
)
def test_options_that_make_no_sense_are_one_line(serve, options, words):
    handler = Recorder.of(echo.EchoRequestHandler)
    code, text, stderr = run_client(*arguments_for(serve(handler)), *options)
    assert (code, text) == (2, "")
    assert is_one_complaint(stderr, *words)
    assert handler.events == []


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("nohost.invalid", marks=pytest.mark.slow, id="unknown"),  # if no name server answers
        pytest.param("a" * 80, id="long"),
        pytest.param("a..b", id="dots"),
    ],
)
def test_a_host_that_cannot_be_found_is_one_line(host):
    code, text, stderr = run_client(host, 9, "--bench")
    assert (code, text) == (1, "")
    assert is_one_complaint(stderr, repr(host))


# Readers of the output that stall or go away.


@posix
def test_a_reader_that_has_enough_ends_it_without_a_word(serve, start_bench):
    server = serve(remembering(never_answers))
    process = start_bench(server, "-d", "1h")
    read_until(process, "BENCH .*\n")
    process.popen.stdout.close()
    server.stop()  # the signal ends the bench, which then writes a summary
    assert process.popen.wait(DEADLINE) == 1
    process.finish()
    assert process.log == ""


@posix
def test_a_reader_that_has_gone_before_ends_it_at_once(serve, start_bench):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = start_bench(serve(), "-d", "1h", stdout=writer)
    finally:
        os.close(writer)
    assert process.finish()[0] == 1
    assert process.log == ""


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(serve, start_bench):
    with open("/dev/full", "wb") as full:
        process = start_bench(serve(), "-d", "1h", stdout=full)
        assert process.finish()[0] == 1
    assert one_complaint(process, "cannot write standard output")


@pytest.mark.parametrize("error", [EOFError, BrokenPipeError, ConnectionResetError])
def test_a_process_of_the_load_whose_bench_was_killed_ends_without_a_traceback(error):
    class Ended:
        def send(self, found):
            pass

        def recv(self):
            raise error

    work(Ended(), Plan(Endpoint(("127.0.0.1", 1)), echo.LineFraming(), 64, [], 0, 1, None, None, 0))
