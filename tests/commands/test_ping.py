"""``python -m echo.client --ping``: its verdict on each reply, or on none; its summary; its end."""

import errno
import os
import re
import signal
import socket
import threading

import pytest

import echo
from echo.measure.lane import Lane
from echo.measure.probes import Ledger
from support import DEADLINE, Recorder, eventually, plain
from support.measuring import (
    PATIENT,
    THROUGH_TIMEOUT,
    WITHOUT_INPUT,
    arguments_for,
    echo_bytes,
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
from support.simulation import (
    ADDRESS,
    ClosesAtTheFourth,
    CutsEachThird,
    DropsEachFifth,
    EchoesBytes,
    FlipsAByteOfEachThird,
    Greets,
    Network,
    NeverAnswers,
    SaysItTwice,
    SendsALineThatIsTooLong,
    Service,
    Shouts,
    SlowNames,
    SpeaksUnasked,
    SwapsPairs,
    simulate_ping,
)


def ping(server, *options, **encoding):
    """Ping a server in this process; return (exit code, standard output, standard error)."""
    return run_client(*arguments_for(server), "--ping", *PATIENT, *options, **encoding)


@pytest.fixture
def start_ping(run):
    """``start_ping(server, *options)``: a process that pings the server."""

    def start(server, *options, **popen_options):
        return run("echo.client", *arguments_for(server), "--ping", *PATIENT, *options, **popen_options)

    return start


def counts(text):
    """The counts of the one summary: ``{"transmitted": 3, ...}``, ``loss`` in percent."""
    (line,) = re.findall(r"^--- \S+ echo statistics ---\n(.*)\n", text, re.MULTILINE)
    (before, loss) = re.fullmatch(r"(.*), ([\d.]+)% loss, time \d+ ms", line).groups()
    found = numbers(re.sub(r" \(\d+ out of order\)", "", before))
    assert 2 * found["transmitted"] == sum(found.values()), line
    besides = re.search(r"^besides these: (.*)$", text, re.MULTILINE)
    out_of_order = re.search(r"\((\d+ out of order)\)", before)
    for more in (besides, out_of_order):
        found.update(numbers(more.group(1)) if more else {})
    return dict(found, loss=float(loss))


def numbers(text):
    """``{"transmitted": 3, "received": 2}`` of ``3 transmitted, 2 received``."""
    return {name: int(number) for number, name in (part.split(" ", 1) for part in text.split(", "))}


def all_right(text, number):
    return counts(text) == {"transmitted": number, "received": number, "corrupted": 0, "lost": 0, "loss": 0}


def lines_about(text, seq):
    """A list of the lines about the message with that number, without the times."""
    lines = re.findall(rf"^.*\bseq={seq}\b.*$", text, re.MULTILINE)
    return [re.sub(r" time=[\d.]+ ms", "", line).partition(f"seq={seq}")[2].strip() for line in lines]


# Services that echo.


@every_framing
def test_each_reply_is_printed_and_all_are_summed_up(serve, framing):
    server = serve(echo_of(framing))
    code, text, stderr = ping(server, "--framing", framing, "-c", "3", "-i", "10ms")
    assert (code, stderr) == (0, "")
    where = re.escape("%s:%s" % server.server_address)
    reply = rf"64 bytes from {where}: seq=%d time=[\d.]+ ms\n"
    assert re.fullmatch(
        rf"ECHO {where}: 64 bytes, connected in [\d.]+ ms\n"
        + "".join(reply % seq for seq in (1, 2, 3))
        + rf"\n--- {where} echo statistics ---\n"
        r"3 transmitted, 3 received, 0 corrupted, 0 lost, 0% loss, time \d+ ms\n"
        r"rtt min/avg/max/mdev = [\d.]+/[\d.]+/[\d.]+/[\d.]+ ms\n"
        r"rtt p50 = [\d.]+ ms\n"
        r"connect [\d.]+ ms\n",
        text,
    ), text


@every_framing
def test_an_echo_of_bytes_is_right_under_every_framing(serve, framing):
    code, text, stderr = ping(serve(plain(echo_bytes)), "--framing", framing, "-c", "20", "-i", "0", "-s", "2500")
    assert (code, stderr) == (0, "")
    assert all_right(text, 20)


@pytest.mark.needs_programs("socat")
def test_socat_is_right_under_every_framing():
    with socat_that_echoes() as address:
        for framing in ("line", "length", "raw"):
            code, text, _ = ping(address, "--framing", framing, "-c", "3", "-i", "0")
            assert code == 0
            assert all_right(text, 3)


@pytest.mark.parametrize("size, expected", [("20", 20), ("64", 64), ("9k", 9 * 1024), ("64k", 65536)])
def test_a_message_has_the_size_that_was_asked_for(serve, size, expected):
    handler = Recorder.of(echo.EchoRequestHandler)
    code, text, _ = ping(serve(handler), "-c", "2", "-i", "0", "-s", size)
    assert code == 0
    assert all_right(text, 2)
    assert [len(message) for message in handler.events[1:3]] == [expected] * 2
    assert f": {expected} bytes, connected" in text and f"{expected} bytes from" in text


def test_under_raw_framing_a_message_may_be_longer_than_any_read(serve):
    code, text, _ = ping(serve(plain(echo_bytes)), "--framing", "raw", "-c", "3", "-i", "0", "-s", "300k")
    assert code == 0
    assert all_right(text, 3)


def test_messages_are_printable_and_no_two_are_alike():
    messages = simulate_ping(count=100).network.messages
    assert len(set(messages)) == 100
    assert all(message.decode("ascii").isprintable() for message in messages)


def test_without_an_interval_each_is_sent_when_the_one_before_is_back():
    class OneAtATime(EchoesBytes):
        def received(self, data):
            assert len(data) == 64 + len(b"\n")
            super().received(data)

    result = simulate_ping(OneAtATime, count=50)
    assert result.code == 0
    assert all_right(result.text, 50)


def test_no_message_is_sent_early_to_make_up_for_one_that_was_late():
    class StopsTheClient(Service):
        def answer(self, message):
            if self.number == 2:
                self.network.time += 2_000_000_000
            self.send(message)

    times = simulate_ping(StopsTheClient, count=10, interval=0.3).network.times
    gaps = [later - earlier for earlier, later in zip(times, times[1:])]
    assert gaps[1] >= 2_000_000_000
    # The message that is due is sent at once, those that were due before are not.
    assert [gap // 1_000_000 for gap in gaps[2:]] == [300] * 7


def test_a_long_wait_is_not_a_loss_when_there_is_no_limit():
    class TakesADay(Service):
        def answer(self, message):
            self.network.time += 24 * 3600 * 10**9
            self.send(message)

    result = simulate_ping(TakesADay, count=2, timeout=None)
    assert result.code == 0
    assert all_right(result.text, 2)


def test_any_interval_and_any_timeout_are_waited_for():
    month = 30 * 86400
    times = simulate_ping(count=3, interval=month).network.times
    assert [round((later - earlier) / 1e9) for earlier, later in zip(times, times[1:])] == [month, month]
    result = simulate_ping(NeverAnswers, count=1, timeout=month)
    assert (result.code, counts(result.text)["loss"]) == (1, 100)
    assert round(result.network.time / 1e9) == month


# Services that do not echo, or echo wrongly.


def test_a_flipped_byte_is_corrupted_and_the_place_is_printed():
    result = simulate_ping(FlipsAByteOfEachThird, count=6, verbose=True)
    assert result.code == 3
    assert counts(result.text) == {"transmitted": 6, "received": 4, "corrupted": 2, "lost": 0, "loss": 0}
    flipped = ["corrupted at byte 30"]
    assert [lines_about(result.text, seq) for seq in (2, 3, 6)] == [[""], flipped, flipped]
    sent, received = re.match(r"  sent     (.{64})\n  received (.{64})\n", result.details).groups()
    assert sent.startswith("00000003") and sent != received
    assert sent[:30] + sent[31:] == received[:30] + received[31:]


def test_a_wrong_reply_gives_exit_code_3_and_without_v_nothing_on_stderr(serve):
    code, text, stderr = ping(serve(remembering(flips_a_byte_of_each_third)), "-c", "3", "-i", "0")
    assert (code, stderr) == (3, "")
    assert counts(text)["corrupted"] == 1


def test_a_reply_that_is_cut_off_is_corrupted_from_there_on():
    result = simulate_ping(CutsEachThird)
    assert result.code == 3
    assert lines_about(result.text, 3) == ["corrupted from byte 57 on: 7 bytes missing"]
    assert "57 bytes from" in result.text


def test_a_reply_without_one_of_its_bytes_is_corrupted_and_is_not_lost():
    class Omits(Service):
        def answer(self, message):
            place = self.number * 7 % 64
            self.send(message[:place] + message[place + 1 :])

    result = simulate_ping(Omits, count=20)
    assert result.code == 3
    assert counts(result.text) == {"transmitted": 20, "received": 0, "corrupted": 20, "lost": 0, "loss": 0}
    assert lines_about(result.text, 3) == ["corrupted from byte 21 on: 1 byte missing"]


def test_json_and_text_have_the_same_names():
    class DoesAll(Service):
        def answer(self, message):
            other = Ledger(64, (int(message[8:12], 16) + 1) % 0x10000)
            self.send({3: b"hello", 4: other.issue(0, 0).message, 5: message[:-1]}.get(self.number, message))
            if self.number == 2:
                self.send(message)

    text = simulate_ping(DoesAll, count=6, timeout=0.1).text
    summary = events(simulate_ping(DoesAll, count=6, timeout=0.1, as_json=True).text)[-1]
    found = counts(text)
    assert found.pop("loss") == pytest.approx(summary["loss_percent"], abs=0.01)
    assert len(found) == 7
    for name, number in found.items():
        assert summary[name.replace(" ", "_").replace("'", "")] == number, name


def test_a_checksum_in_capital_letters_is_corrupted_and_not_doubled():
    result = simulate_ping(Shouts, count=20)
    assert result.code == 3
    found = counts(result.text)
    assert found["corrupted"] > 0
    assert "doubled" not in found
    assert found["loss"] == 0


def test_a_dropped_reply_is_lost():
    result = simulate_ping(DropsEachFifth, count=6, timeout=1.0)
    assert result.code == 1
    assert counts(result.text) == {"transmitted": 6, "received": 5, "corrupted": 0, "lost": 1, "loss": 16.67}
    assert lines_about(result.text, 5) == ["lost: no reply after 1 s"]


def test_replies_in_another_order_are_reported():
    result = simulate_ping(SwapsPairs, count=4, interval=0.02)
    assert result.code == 3
    assert counts(result.text) == {
        "transmitted": 4,
        "received": 4,
        "corrupted": 0,
        "lost": 0,
        "out of order": 2,
        "loss": 0,
    }
    assert [lines_about(result.text, seq) for seq in (1, 2, 3, 4)] == [["out of order"], [""]] * 2


def test_a_reply_that_comes_twice_is_doubled():
    result = simulate_ping(SaysItTwice, interval=0.02)
    assert result.code == 3
    assert counts(result.text)["received"] == 3
    assert lines_about(result.text, 1) == lines_about(result.text, 2) == ["", "doubled"]


def test_a_reply_after_the_time_is_lost_and_late_when_it_comes():
    class HoldsTheFirst(Service):
        def answer(self, message):
            if self.number == 1:
                self.held = message
                return
            if self.number == 8:  # 210 ms later
                self.send(self.held)
            self.send(message)

    result = simulate_ping(HoldsTheFirst, count=10, interval=0.03, timeout=0.15)
    assert result.code == 1  # it is missing, not wrong
    assert lines_about(result.text, 1) == ["lost: no reply after 0.15 s", "late"]
    assert counts(result.text) == {"transmitted": 10, "received": 9, "corrupted": 0, "lost": 1, "late": 1, "loss": 10}


def test_a_reply_just_after_its_time_is_late_even_if_the_client_looks_later():
    class TakesLong(Service):
        def answer(self, message):
            self.network.time += 99_000_000 if self.number % 2 else 100_000_000
            self.send(message)

    result = simulate_ping(TakesLong, count=4, timeout=0.1)  # and a millisecond longer
    assert result.code == 1
    late = ["lost: no reply after 0.1 s", "late"]
    assert [lines_about(result.text, seq) for seq in (1, 2, 3, 4)] == [[""], late, [""], late]


@pytest.mark.parametrize("size", [64, 300_000])  # the longer one takes several reads
def test_a_reply_that_came_while_the_client_was_stopped_is_not_lost(size):
    class StopsTheClient(Service):
        def answer(self, message):
            if self.number == 2:
                self.network.time += 5_000_000_000
            self.send(message)

    result = simulate_ping(StopsTheClient, size=size, count=4, interval=0.02, timeout=0.1)
    assert result.code == 0
    assert all_right(result.text, 4)


def test_after_a_stop_of_the_client_a_reply_that_is_missing_is_lost():
    class StopsTheClient(Service):
        def answer(self, message):
            if self.number == 2:
                self.network.time += 5_000_000_000
            else:
                self.send(message)

    result = simulate_ping(StopsTheClient, count=4, interval=0.02, timeout=0.1)
    assert result.code == 1
    assert counts(result.text)["lost"] == 1
    assert lines_about(result.text, 2) == ["lost: no reply after 0.1 s"]


class AnswersOneLater(Service):
    """Answers each message when the next one comes, and the fourth at once."""

    held = None

    def answer(self, message):
        if self.held is not None:
            self.send(self.held)
        self.held = message
        if self.number == 4:
            self.send(message)


class ReaderPauses(Network):
    """The reader of the output pauses, before it takes the first reply."""

    def written(self, line):
        if "seq=1 time" in line:
            self.time += 5_000_000_000


def test_a_reply_that_came_while_the_output_was_blocked_is_not_lost():
    result = simulate_ping(AnswersOneLater, network=ReaderPauses, count=4, interval=0.02, timeout=0.1)
    assert result.code == 0
    assert all_right(result.text, 4)


def test_a_reply_that_came_while_a_lost_one_was_reported_is_not_lost():
    class ForgetsTheFirst(AnswersOneLater):
        def answer(self, message):
            if self.number != 1:
                super().answer(message)

    class ReaderPausesAtTheLoss(Network):
        def written(self, line):
            if "seq=1 lost" in line:
                self.time += 200_000_000  # until 50 ms after the second one's time is over

    result = simulate_ping(ForgetsTheFirst, network=ReaderPausesAtTheLoss, count=4, interval=0.15, timeout=0.2)
    assert result.code == 1
    assert [lines_about(result.text, seq) for seq in (1, 2, 3, 4)] == [["lost: no reply after 0.2 s"], [""], [""], [""]]


def test_after_the_output_was_blocked_a_reply_that_is_missing_is_lost():
    class ForgetsTheSecond(AnswersOneLater):
        def answer(self, message):
            super().answer(message)
            if self.number == 2:
                self.held = None

    result = simulate_ping(ForgetsTheSecond, network=ReaderPauses, count=4, interval=0.02, timeout=0.1)
    assert result.code == 1
    assert counts(result.text)["lost"] == 1
    assert lines_about(result.text, 2) == ["lost: no reply after 0.1 s"]


@pytest.mark.parametrize("lines, takes, busy", [(200, 1_000_000, 0.0), (2, 150_000_000, 1.0)], ids=["many", "slow"])
def test_probes_are_lost_in_time_although_the_service_floods_the_client(lines, takes, busy):
    """Each read brought lines for longer than a pause of the process, and spared the probes again, for ever."""

    class Floods(NeverAnswers):
        def turn(self):
            super().turn()
            if self.is_open:
                self.send_raw(b"x\n" * lines)
            if self.network.time > 60_000_000_000:
                self.network.simulation.client.stop()

    class TakesTime(Network):
        def written(self, line):
            self.time += takes

    TakesTime.busy = busy
    result = simulate_ping(Floods, network=TakesTime, count=4, interval=1.0, timeout=2.0)
    assert result.code == 3
    assert counts(result.text)["lost"] == 4
    assert result.network.time < 7_000_000_000


def test_a_word_that_nobody_asked_for_is_reported():
    result = simulate_ping(SpeaksUnasked, count=4, interval=0.02, verbose=True)
    assert result.code == 3
    expected = {"transmitted": 4, "received": 4, "corrupted": 0, "lost": 0, "not asked for": 1, "loss": 0}
    assert counts(result.text) == expected
    assert re.search(r"^10 bytes from \S+: not asked for$", result.text, re.MULTILINE)
    assert "received by the way\n" in result.details


def test_a_greeting_is_not_asked_for_and_the_reply_after_it_is_right():
    result = simulate_ping(Greets)
    assert result.code == 3
    expected = {"transmitted": 3, "received": 3, "corrupted": 0, "lost": 0, "not asked for": 1, "loss": 0}
    assert counts(result.text) == expected
    assert [lines_about(result.text, seq) for seq in (1, 2, 3)] == [[""]] * 3


def test_under_raw_framing_a_greeting_shifts_the_replies_once_and_all_are_right():
    class GreetsBriefly(EchoesBytes):
        def opened(self):
            self.send_raw(b"220 hello\n")

    result = simulate_ping(GreetsBriefly, "raw", count=100)
    assert result.code == 3
    assert counts(result.text)["received"] == 100
    assert result.text.count("shifted") == 1
    assert f"10 bytes from {ADDRESS}: not asked for, shifted by 10 bytes\n" in result.text


def test_under_raw_framing_one_byte_that_is_missing_damages_one_reply():
    class OmitsAByte(EchoesBytes):
        def received(self, data):
            self.number += 1
            super().received(data[:40] + data[41:] if self.number == 20 else data)

    result = simulate_ping(OmitsAByte, "raw", count=100, interval=0.1, as_json=True)
    assert result.code == 3
    summary = events(result.text)[-1]
    assert [summary[name] for name in ("received", "corrupted", "lost")] == [99, 1, 0]
    (damaged,) = [event for event in events(result.text) if event.get("verdict") == "corrupted"]
    assert (damaged["seq"], damaged["bytes"], damaged["offset"], damaged["shifted_bytes"]) == (20, 63, 40, -1)
    assert sum("shifted_bytes" in event for event in events(result.text)) == 1


@every_framing
def test_without_verification_each_reply_answers_the_oldest_message(framing):
    class IsNoEcho(EchoesBytes):
        def received(self, data):
            self.number += 1
            self.send(b"ok" if framing != "raw" else b"0" * 64)

    result = simulate_ping(IsNoEcho, framing, count=5, verify=False)
    assert result.code == 0
    assert all_right(result.text, 5)


def test_without_verification_lost_messages_are_still_lost_and_extra_replies_counted():
    result = simulate_ping(DropsEachFifth, count=6, timeout=1.0, verify=False)
    assert (result.code, counts(result.text)["lost"]) == (1, 1)
    result = simulate_ping(SaysItTwice, count=3, interval=0.1, verify=False)
    assert (result.code, counts(result.text)["not asked for"]) == (0, 3)


def test_a_reply_that_belongs_to_another_connection_is_reported():
    class MixesUp(Service):
        def answer(self, message):
            if self.number == 2:
                other = Ledger(64, (int(message[8:12], 16) + 1) % 0x10000)
                self.send(other.issue(0, 0).message)
            self.send(message)

    result = simulate_ping(MixesUp)
    assert result.code == 3
    assert counts(result.text)["another connection's"] == 1
    assert re.search(r"^64 bytes from \S+: another connection's$", result.text, re.MULTILINE)


def test_a_closed_connection_costs_what_was_on_its_way_and_the_next_is_made():
    result = simulate_ping(ClosesAtTheFourth, count=6, interval=0.02)
    assert result.code == 1
    assert counts(result.text) == {"transmitted": 6, "received": 5, "corrupted": 0, "lost": 1, "loss": 16.67}
    assert lines_about(result.text, 4) == ["lost: the server has ended the session"]
    assert result.text.count("connected in") == 2
    assert re.search(r"^connect min/avg/max/mdev = ", result.text, re.MULTILINE)


def test_the_look_up_of_a_name_is_timed_apart_and_once():
    result = simulate_ping(ClosesAtTheFourth, count=6, network=SlowNames)
    assert f"ECHO {ADDRESS}: 64 bytes, looked up in 100 ms, connected in 1.00 ms\n" in result.text
    assert f"ECHO {ADDRESS}: 64 bytes, connected in 1.00 ms\n" in result.text
    summary = events(simulate_ping(network=SlowNames, as_json=True).text)[-1]
    assert (summary["lookup_us"], summary["connect_max_us"]) == (100_000, 1000)


def test_a_name_is_looked_up_once_for_all_connections(serve, monkeypatch):
    names = []
    look_up = socket.getaddrinfo

    def count(host, port, *arguments, flags=0, **options):
        if not flags & socket.AI_NUMERICHOST:
            names.append(host)
            host = "127.0.0.1"
        return look_up(host, port, *arguments, flags=flags, **options)

    monkeypatch.setattr(socket, "getaddrinfo", count)

    def hangs_up(sock):
        sock.recv(1000)

    _, port = serve(plain(hangs_up)).server_address
    code, text, _ = ping(("names.test", port), "-c", "3", "-i", "0")  # each message waits for the end of the one before
    assert (code, counts(text)["lost"]) == (1, 3)
    assert text.count("looked up in") == 1
    assert names == ["names.test"]


def test_a_connection_is_announced_once_until_a_reply_has_come():
    """A balancer accepts connections without a server."""

    class NoServer(Service):
        def answer(self, message):
            if len(self.network.messages) in (1, 5):
                self.send(message)
            self.close()

    text = simulate_ping(NoServer, count=6, interval=0.02).text
    assert text.count("lost: the server has ended the session") == 4
    assert [line[:4] for line in text.splitlines() if "connected in" in line or "time=" in line] == [
        "ECHO", "64 b", "ECHO", "64 b", "ECHO",
    ]  # fmt: skip
    found = events(simulate_ping(NoServer, count=6, interval=0.02, as_json=True).text)
    assert [event["event"] for event in found].count("connected") == 6


def test_each_message_may_have_a_connection_of_its_own():
    result = simulate_ping(new_connection=True, interval=0.5)
    assert result.code == 0
    assert [session.number for session in result.network.sessions] == [1, 1, 1]
    assert not any(session.is_open for session in result.network.sessions)
    lines = result.text.splitlines()
    assert lines[0] == f"ECHO {ADDRESS}: 64 bytes, connected in 1.00 ms"
    assert lines[1:4] == [f"64 bytes from {ADDRESS}: seq={n} connect=1.00 ms time=2.00 ms" for n in (1, 2, 3)]
    assert lines[-1] == "connect min/avg/max/mdev = 1.00/1.00/1.00/0.000 ms"
    *found, summary = events(simulate_ping(new_connection=True, as_json=True).text)
    assert [event["event"] for event in found] == ["connected", "reply"] * 3
    assert [event["connect_us"] for event in found] == [1000] * 6
    assert {event.get("rtt_us") for event in found} == {None, 2000}
    assert (summary["rtt_min_us"], summary["connect_samples"]) == (2000, 3)


def test_a_message_whose_connection_fails_or_ends_is_lost_and_the_next_one_has_another():
    class EndsTheSecond(Service):
        def answer(self, message):
            if len(self.network.messages) == 2:
                self.network.refusals = 1
                self.close()
            else:
                self.send(message)

    result = simulate_ping(EndsTheSecond, count=4, interval=0.5, new_connection=True)
    assert result.code == 1
    assert counts(result.text) == {"transmitted": 4, "received": 2, "corrupted": 0, "lost": 2, "loss": 50}
    assert lines_about(result.text, 2) == ["lost: the server has ended the session"]
    assert lines_about(result.text, 3) == [f"lost: cannot connect: {os.strerror(errno.ECONNREFUSED)}"]
    assert "outage of 1.0" in result.text


def test_with_a_connection_for_each_message_the_next_one_waits_for_the_fate_of_the_one_before():
    class DropsTheFirst(Service):
        def answer(self, message):
            if len(self.network.messages) > 1:
                self.send(message)

    result = simulate_ping(DropsTheFirst, interval=0.1, timeout=1.0, new_connection=True)
    assert counts(result.text) == {"transmitted": 3, "received": 2, "corrupted": 0, "lost": 1, "loss": 33.33}
    assert result.network.times[1] - result.network.times[0] >= 10**9


def test_an_end_between_two_messages_costs_nothing():
    class AnswersOnce(Service):
        def answer(self, message):
            self.send(message)
            self.close()

    result = simulate_ping(AnswersOnce, count=2, interval=0.5)
    assert result.code == 0
    assert all_right(result.text, 2)
    assert re.search(r"^\S+: the server has ended the session$", result.text, re.MULTILINE)
    assert result.text.count("connected in") == 2
    assert "\nreconnected 1 time\n" in result.text
    assert events(simulate_ping(AnswersOnce, count=2, interval=0.5, as_json=True).text)[-1]["reconnects"] == 1
    assert "reconnected" not in simulate_ping(AnswersOnce, count=2, interval=0.5, new_connection=True).text


def test_a_reset_connection_is_reported_as_one(serve):
    code, text, _ = ping(serve(remembering(resets_at_the_fourth)), "-c", "5", "-i", "0")
    assert code == 1
    assert lines_about(text, 4) == [f"lost: the connection was lost: {os.strerror(errno.ECONNRESET)}"]
    assert lines_about(text, 5) == [""]


@pytest.mark.parametrize("interval", [0, 0.1])
def test_a_server_that_never_answers_loses_everything(interval):
    result = simulate_ping(NeverAnswers, interval=interval, timeout=0.25)
    assert result.code == 1
    assert counts(result.text) == {"transmitted": 3, "received": 0, "corrupted": 0, "lost": 3, "loss": 100}
    assert [lines_about(result.text, seq) for seq in (1, 2, 3)] == [["lost: no reply after 0.25 s"]] * 3
    assert "rtt" not in result.text


@pytest.mark.parametrize("count, is_unanswered", [(1, False), (3, True)])
def test_silence_after_an_error_that_has_its_line_is_not_explained_by_it(count, is_unanswered):
    class RefusesOne(Network):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.refusals = 1

    result = simulate_ping(NeverAnswers, count=count, timeout=0.25, network=RefusesOne)
    assert counts(result.text)["lost"] == count
    assert result.client.is_unanswered is is_unanswered


def test_a_line_that_is_too_long_ends_that_connection():
    result = simulate_ping(SendsALineThatIsTooLong, count=2)
    assert result.code == 1
    assert counts(result.text)["loss"] == 100
    assert lines_about(result.text, 1) == ["lost: a message is longer than the limit of 65536 bytes"]


def test_half_a_reply_at_the_end_is_lost():
    class StopsInTheMiddle(Service):
        def answer(self, message):
            self.send_raw(message[:17])
            self.close()

    result = simulate_ping(StopsInTheMiddle, count=1)
    assert result.code == 1
    assert lines_about(result.text, 1) == ["lost: the input ended inside a message, after 17 bytes of it"]


def test_a_server_that_is_not_there_loses_everything():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        code, text, stderr = ping(nobody.getsockname(), "-c", "2", "-i", "10ms")
    assert (code, stderr) == (1, "")
    assert counts(text) == {"transmitted": 2, "received": 0, "corrupted": 0, "lost": 2, "loss": 100}
    assert lines_about(text, 2) == [f"lost: cannot connect: {os.strerror(errno.ECONNREFUSED)}"]
    assert "connected in" not in text and "rtt" not in text


@pytest.mark.parametrize("interval", [0.0, 0.01])
def test_a_ping_that_ends_for_want_of_memory_has_its_summary(monkeypatch, interval):
    """Row 65: all that was measured was lost."""

    class LongReply(Service):
        def answer(self, message):
            simulations.append(self.network.simulation)
            if message in self.network.messages[2:3]:
                monkeypatch.setattr(Lane, "receive", without_memory)
            self.send(message)

    def without_memory(lane):
        raise MemoryError

    simulations = []
    with pytest.raises(MemoryError):
        simulate_ping(LongReply, count=5, interval=interval)
    found = counts(simulations[0]._out.getvalue())
    assert found == {"transmitted": 3, "received": 2, "corrupted": 0, "lost": 0, "on the way": 1, "loss": 0}


def test_a_ping_without_memory_for_its_first_message_ends_at_once():
    class NoMemory(Network):
        def open(self, timeout):
            raise MemoryError

    with pytest.raises(MemoryError):
        simulate_ping(network=NoMemory)


def test_a_server_that_goes_and_comes_back_is_found_again():
    class Leaves(Service):
        def answer(self, message):
            self.send(message)
            if len(self.network.messages) == 2:
                self.close()
                self.network.refusals = 3

    result = simulate_ping(Leaves, count=9, interval=0.02)
    assert result.code == 1
    assert counts(result.text) == {"transmitted": 9, "received": 6, "corrupted": 0, "lost": 3, "loss": 33.33}
    refused = [f"lost: cannot connect: {os.strerror(errno.ECONNREFUSED)}"]
    assert [lines_about(result.text, seq) for seq in range(2, 7)] == [[""], refused, refused, refused, [""]]
    assert result.text.count("connected in") == 2


# Outages.


def outages(result):
    """The outages of a ping with JSON, each as (first, last, lost, whether it is over)."""
    found = [event for event in events(result.text) if event["event"] == "outage"]
    summary = events(result.text)[-1]
    assert summary["outages"] == len(found)
    assert summary["outages_s"] == pytest.approx(sum(event["outage_s"] for event in found), abs=1e-5)
    return [(event["first_seq"], event["last_seq"], event["lost"], event["ended"] is not None) for event in found]


def drops(*numbers):
    """A service that does not answer these messages."""

    class Drops(Service):
        def answer(self, message):
            if self.number not in numbers:
                self.send(message)

    return Drops


def test_an_outage_has_a_line_with_its_begin_end_and_length():
    result = simulate_ping(drops(4, 5, 6), count=8, interval=1.0, timeout=5.0)
    assert result.code == 1
    lines = [line for line in result.text.splitlines() if "outage" in line]
    assert lines == [
        f"{ADDRESS}: outage of 3.001 s from 1970-01-01T00:00:03.000Z to 1970-01-01T00:00:06.001Z: 3 lost",
        "1 outage, 3.001 s in all",
    ]


@pytest.mark.parametrize(
    "lost, expected",
    [
        ((), []),
        ((1,), [(1, 1, 1, True)]),
        ((2, 3), [(2, 3, 2, True)]),
        ((2, 4), [(2, 2, 1, True), (4, 4, 1, True)]),
        ((3, 4, 7, 8), [(3, 4, 2, True), (7, 8, 2, False)]),
    ],
)
@pytest.mark.parametrize("interval, timeout", [(0.0, 1.0), (0.1, 0.05), (0.1, 0.25), (0.1, 60.0)])
def test_each_run_of_lost_messages_is_an_outage(lost, expected, interval, timeout):
    result = simulate_ping(drops(*lost), count=8, interval=interval, timeout=timeout, as_json=True)
    assert outages(result) == expected


def test_a_server_that_is_away_is_an_outage_until_it_is_back():
    class Leaves(Service):
        def answer(self, message):
            self.send(message)
            if len(self.network.messages) == 2:
                self.close()
                self.network.refusals = 3

    assert outages(simulate_ping(Leaves, count=9, interval=0.2, as_json=True)) == [(3, 5, 3, True)]


def test_replies_out_of_order_or_damaged_are_no_outage():
    for service in (SwapsPairs, CutsEachThird):
        assert outages(simulate_ping(service, count=8, interval=0.1, timeout=1.0, as_json=True)) == []


# Ctrl-C, SIGTERM and timeouts.


ONCE_AND_TWICE = [
    pytest.param(signal.SIGINT, 1),
    pytest.param(signal.SIGTERM, 2),
    pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow),
    pytest.param(signal.SIGINT, 2, marks=pytest.mark.slow),
]


@posix
@pytest.mark.parametrize("signum, times", ONCE_AND_TWICE)
def test_a_signal_ends_it_with_the_summary(serve, start_ping, signum, times):
    process = start_ping(serve(), "-i", "20ms")
    read_until(process, "seq=3 time=")
    if times == 2:
        signal_twice(process, signum)
    else:
        process.popen.send_signal(signum)
    code, text = finish(process)
    found = counts(text)
    assert found["received"] >= 3
    assert found["loss"] == 0
    assert text.endswith(" ms\n")
    assert code == 0


@posix
def test_a_signal_that_was_ignored_at_the_start_does_not_end_it(serve, start_ping):
    """Row 56."""
    process = start_ping(serve(), "-i", "20ms", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    read_until(process, "seq=2 time=")
    process.popen.send_signal(signal.SIGINT)
    read_until(process, "seq=6 time=")
    process.popen.send_signal(signal.SIGTERM)
    code, text = finish(process)
    assert code == 0
    assert counts(text)["received"] >= 6


@posix
def test_a_signal_that_was_blocked_at_the_start_ends_it(serve, start_ping):
    """Row 58."""
    blocked = [signal.SIGINT, signal.SIGTERM]
    process = start_ping(serve(), "-i", "20ms", preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, blocked))
    read_until(process, "seq=3 time=")
    process.popen.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 0


def test_an_interrupt_prints_a_loss_of_all_too():
    class EndsAtTheFifth(Service):
        def answer(self, message):
            if self.number == 5:
                self.network.simulation.client.stop()

    result = simulate_ping(EndsAtTheFifth, count=None, interval=0.1, timeout=0.25)
    assert result.code == 1
    # The others have not timed out yet. The loss is a share of the messages with a known outcome.
    assert counts(result.text) == {
        "transmitted": 5,
        "received": 0,
        "corrupted": 0,
        "lost": 2,
        "on the way": 3,
        "loss": 100,
    }


@posix
def test_messages_in_flight_at_the_end_are_neither_back_nor_lost(serve, start_ping):
    handler = remembering(never_answers)
    process = start_ping(serve(handler), "-w", "0", "-i", "1h")
    eventually(lambda: handler.messages)
    process.popen.send_signal(signal.SIGINT)
    code, text = finish(process)
    assert code == 1
    assert counts(text) == {"transmitted": 1, "received": 0, "corrupted": 0, "lost": 0, "on the way": 1, "loss": 0}


@posix
@pytest.mark.needs_programs("timeout")
def test_under_timeout_which_signals_twice_there_is_one_summary(serve, start_ping):
    process = start_ping(serve(), "-i", "20ms", python_options=("-c", THROUGH_TIMEOUT))
    read_until(process, "seq=2 time=")
    process.popen.send_signal(signal.SIGTERM)  # timeout(1) passes it on, as at its end
    code, text = finish(process)
    assert code == 0
    assert counts(text)["loss"] == 0


def test_ctrl_c_at_a_terminal_ends_it_with_the_summary(serve, run):
    from support.terminal import CTRL_C, Terminal  # skips where there are no pseudo-terminals

    user = Terminal(run, "echo.client", *arguments_for(serve()), "--ping", *PATIENT, "-i", "20ms")
    try:
        user.until(rb"seq=2 time=")
        user.type(CTRL_C)
        assert user.leave() == 0
    finally:
        os.close(user.master)
    assert user.screen.count(b"echo statistics") == 1
    assert user.screen.endswith(b" ms\r\n")


def a_few_and(many):
    """Once or twice by default, ``many`` times in the slow tests."""
    return pytest.mark.parametrize("rounds", [1, pytest.param(many, marks=pytest.mark.slow)])


@posix
@a_few_and(30)
def test_a_signal_at_any_moment_leaves_the_figures_whole(serve, start_ping, rounds):
    server = serve()
    for _ in range(rounds):
        process = start_ping(server, "-i", "0", "-J")
        read_until(process, '"seq": 20,')
        process.popen.send_signal(signal.SIGTERM)
        code, text = finish(process)
        *others, summary = events(text)
        replies = sum(event["event"] == "reply" for event in others)
        assert code == 0
        assert summary["transmitted"] == summary["received"] + summary["on_the_way"]
        assert replies == summary["received"] == summary["rtt_samples"]


@posix
@a_few_and(10)
def test_both_signals_at_once_print_only_the_summary(serve, start_ping, rounds):
    server = serve()
    for _ in range(rounds):
        process = start_ping(server, "-i", "10ms")
        read_until(process, "seq=2 time=")
        process.popen.send_signal(signal.SIGTERM)
        process.popen.send_signal(signal.SIGINT)
        code, text = finish(process)
        assert (code, process.log) == (0, "")
        assert counts(text)["loss"] == 0


@posix
@a_few_and(5)
def test_any_number_of_signals_leaves_one_summary_and_the_exit_code(serve, start_ping, rounds):
    server = serve()
    for _ in range(rounds):
        process = start_ping(server, "-i", "10ms")
        read_until(process, "seq=2 time=")
        while process.popen.poll() is None:
            process.popen.send_signal(signal.SIGTERM)
            process.popen.send_signal(signal.SIGINT)
            threading.Event().wait(0.0005)  # a process that gets signals all the time can do nothing else
        code, text = finish(process)
        assert (code, process.log) == (0, "")
        assert counts(text)["loss"] == 0


@posix
@a_few_and(60)
def test_a_signal_with_the_last_reply_costs_no_summary(serve, start_ping, rounds):
    processes = []
    lock = threading.Lock()

    class Signals(echo.EchoRequestHandler):
        def message_received(self, message):
            with lock:  # around all: the reply may end that process, and the signal must not hit the next one
                self.send(message)
                self.flush()
                for _ in range(len(processes) * 500):  # a little later each time
                    pass
                processes[-1].popen.send_signal(signal.SIGINT)

    server = serve(Signals)
    for _ in range(rounds):
        with lock:
            processes.append(start_ping(server, "-c", "1", "-q"))
        code, text = finish(processes[-1])
        assert processes[-1].log == ""
        assert code == 1 - counts(text)["received"], text  # if the signal came first, the reply was on its way


# Output.


def test_quiet_is_the_summary_alone():
    result = simulate_ping(FlipsAByteOfEachThird, quiet=True)
    assert (result.code, result.details) == (3, "")
    assert result.text.startswith("--- ")
    assert counts(result.text)["corrupted"] == 1
    assert "seq=" not in result.text and "connected" not in result.text


def test_the_time_is_in_each_json_event_and_with_d_in_front_of_each_line():
    result = simulate_ping(count=2, interval=1.0, timestamps=True)
    lines = result.text.partition("\n\n---")[0].splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["[0.001000]", "[0.002000]", "[1.001000]"]
    assert re.search(r"^--- ", result.text, re.MULTILINE)  # the summary has no times, as in ping
    text = simulate_ping(count=2, interval=1.0, as_json=True).text
    times = re.findall(r'"time": "1970-01-01T00:00:([\d.]+)Z"', text)
    assert times == ["00.001", "00.002", "01.001", "01.001"]


def test_json_is_one_object_a_line_and_the_summary_last():
    result = simulate_ping(FlipsAByteOfEachThird, as_json=True)
    assert (result.code, result.details) == (3, "")
    connected, *replies, summary = events(result.text)
    assert all(have_units(event) for event in (connected, *replies, summary))
    assert connected == {"event": "connected", "address": ADDRESS, "size_bytes": 64, "connect_us": 1000}
    assert [(reply["event"], reply["seq"], reply["verdict"], reply.get("offset")) for reply in replies] == [
        ("reply", 1, "right", None),
        ("reply", 2, "right", None),
        ("reply", 3, "corrupted", 30),
    ]
    assert [reply["rtt_us"] for reply in replies] == [1000, 1000, 1000]
    expected = {"transmitted": 3, "received": 2, "corrupted": 1, "lost": 0, "doubled": 0, "late": 0, "on_the_way": 0}
    assert {name: summary[name] for name in expected} == expected
    assert (summary["rtt_samples"], summary["connect_samples"], summary["loss_percent"]) == (2, 1, 0)
    assert summary["rtt_min_us"] == summary["rtt_avg_us"] == summary["rtt_max_us"] == 1000
    assert summary["duration_s"] * 1e6 >= summary["rtt_max_us"]


def test_the_options_of_the_command_line_reach_the_ping(serve):
    server = serve(echo_of("length"))
    code, text, stderr = ping(
        server, "--framing", "length", "-c", "30", "-i", "0", "-s", "100", "-J", "--histogram", "-v"
    )
    assert (code, stderr) == (0, "")
    connected, *replies, summary = events(text)
    assert (connected["address"], connected["size_bytes"]) == ("%s:%s" % server.server_address, 100)
    assert [reply["seq"] for reply in replies] == list(range(1, 31))
    assert summary["rtt_samples"] == 30
    assert 0 < summary["rtt_min_us"] <= summary["rtt_avg_us"] <= summary["rtt_max_us"]
    assert summary["rtt_min_us"] == min(reply["rtt_us"] for reply in replies)
    assert summary["duration_s"] * 1e6 >= summary["rtt_max_us"]


def test_json_has_losses_and_lost_connections():
    result = simulate_ping(ClosesAtTheFourth, count=5, interval=0.02, as_json=True)
    assert result.code == 1
    printed = events(result.text)
    assert all(map(have_units, printed))
    (lost,) = [event for event in printed if event["event"] == "lost"]
    assert lost == {"event": "lost", "seq": 4, "why": "the server has ended the session"}
    assert (printed[-1]["lost"], printed[-1]["loss_percent"]) == (1, 20.0)


@pytest.mark.parametrize("quiet", [False, True])
def test_json_has_a_summary_at_a_loss_of_all_too(quiet):
    result = simulate_ping(NeverAnswers, count=2, as_json=True, quiet=quiet)
    assert result.code == 1
    printed = events(result.text)
    summary = printed[-1]
    kinds = [event["event"] for event in printed]
    assert kinds == (["summary"] if quiet else ["connected", "lost", "lost", "outage", "summary"])
    assert (summary["transmitted"], summary["lost"], summary["loss_percent"]) == (2, 2, 100.0)
    assert summary["rtt_samples"] == 0 and "rtt_avg_us" not in summary


@pytest.mark.parametrize(
    "count, line",
    [
        (1, "rtt 1.00 ms"),
        (2, "rtt p50 = 1.00 ms"),
        (10, "rtt p50/p90 = 1.00/1.00 ms"),
        (100, "rtt p50/p90/p99 = 1.00/1.00/1.00 ms"),
    ],
)
def test_percentiles_are_printed_when_there_are_samples_enough(count, line):
    text = simulate_ping(count=count).text
    assert line in text.splitlines()
    assert ("p50" in text) == (count > 1)


@pytest.mark.parametrize("encoding, bar", [("utf-8", "[█▏▎▍▌▋▊▉]+"), ("ascii", "#+")])
def test_the_histogram_is_drawn_with_what_the_encoding_has(serve, encoding, bar):
    code, text, stderr = ping(serve(), "-c", "30", "-i", "0", "-q", "--histogram", encoding=encoding)
    assert (code, stderr) == (0, "")
    picture = text.partition("round trips\n")[2].splitlines()
    rows = [re.fullmatch(rf" *([\d.]+) - +([\d.]+) +(\d+)(?: ({bar}))?", row).groups() for row in picture]
    assert sum(int(number) for _, _, number, _ in rows) == 30
    assert all(bool(int(number)) == bool(drawn) for _, _, number, drawn in rows)
    assert [low for low, _, _, _ in rows[1:]] == [high for _, high, _, _ in rows[:-1]]


def test_without_a_round_trip_there_is_no_histogram(serve):
    def leave(handler, message):
        handler.close()

    code, text, _ = ping(serve(remembering(leave)), "-c", "1", "--histogram")
    assert code == 1
    assert "round trips" not in text


# Usage errors, and addresses where no connection can be made.


@pytest.mark.parametrize(
    "options, words",
    [
        (["--ping", "--bench"], ["--ping", "--bench", "not allowed with"]),
        (["--ping", "-m", "x"], ["-m", "--ping", "not allowed with"]),
        (["--ping", "-P", "2"], ["--connections needs --bench"]),
        (["--ping", "--rate", "2"], ["--rate needs --bench"]),
        (["--ping", "-s", "19"], ["invalid size '19'", "20 bytes"]),
        (["--ping", "-s", "65537"], ["--size 65537 is over --max-message 65536"]),
        (["--ping", "-s", "300", "--max-message", "200"], ["--size 300 is over --max-message 200"]),
        (["--ping", "-c", "0"], ["invalid number '0'"]),
        (["--ping", "-i", "soon"], ["invalid duration 'soon'"]),
        (["-c", "3"], ["--count needs --ping"]),
        (["-s", "64"], ["--size needs --ping or --bench"]),
        (["--histogram"], ["--histogram needs --ping, --bench or --merge"]),
        (["-J"], ["--json needs -m, --ping, --bench or --merge"]),
        (["-m", "x", "-c", "3"], ["--count needs --ping"]),
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
    code, text, stderr = ping((host, 9), "-c", "1")
    assert (code, text) == (1, "")
    assert is_one_complaint(stderr, repr(host))


# Readers of the output that stall or go away.


@posix
def test_a_reader_that_has_enough_ends_it_without_a_word(serve, start_ping):
    process = start_ping(serve(), "-i", "10ms")
    read_until(process, r"connected in .*\n")
    process.popen.stdout.close()
    assert process.popen.wait(DEADLINE) == 1
    process.finish()
    assert process.log == ""


@posix
def test_a_reader_that_has_gone_before_gives_no_traceback(serve, start_ping):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = start_ping(serve(), "-c", "1", stdout=writer)
    finally:
        os.close(writer)
    assert process.finish()[0] == 1
    assert process.log == ""


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(serve, start_ping):
    with open("/dev/full", "wb") as full:
        process = start_ping(serve(), "-c", "1", stdout=full)
        assert process.finish()[0] == 1
    assert one_complaint(process, "cannot write standard output")


def test_it_needs_no_input_and_warns_of_nothing(serve, start_ping):
    options = ("-c", WITHOUT_INPUT, "-W", "error", "-X", "dev")
    process = start_ping(serve(), "-c", "2", "-i", "0", python_options=options)
    code, text = finish(process)
    assert (code, process.log) == (0, "")
    assert all_right(text, 2)
