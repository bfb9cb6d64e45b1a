"""Probes and the verdicts on their replies: each reply gets the right verdict, and the counts add up."""

import collections
import random
import re
from binascii import crc32

import pytest

from echo.framing import LineFraming
from echo.measure.probes import MIN_SIZE, Ledger, Reply, Verdict

SIZES = [MIN_SIZE, MIN_SIZE + 1, 64, 115, 116, 1000, 65535, 65536]


def issue(ledger, count):
    """``count`` probes, the first sent at 0, the next at 1, and so on."""
    return [ledger.issue(now - 5, now) for now in range(count)]


def damaged(message, position, mask):
    return message[:position] + bytes([message[position] ^ mask]) + message[position + 1 :]


# Messages.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tag", [0, 0xABC, 0xFFFF])
def test_a_probe_is_printable_has_its_size_and_carries_number_tag_and_checksum(size, tag):
    for seq, probe in enumerate(issue(Ledger(size, tag, 94), 4), 94):
        message = probe.message
        assert len(message) == size
        assert min(message) >= 0x20 and max(message) < 0x7F
        assert LineFraming().encode(message) == message + b"\n"
        assert message[:12] == b"%08x%04x" % (seq, tag)
        assert message[12:20] == b"%08x" % crc32(message[:12] + message[20:])
        assert set(message[20:115]) == set(range(32, 127)) or size < 115


def test_probes_are_numbered_differ_in_every_byte_of_padding_and_keep_their_times():
    ledger = Ledger(64, 1, 41)
    first, second = issue(ledger, 2)
    assert (first.seq, first.due_at, first.sent_at) == (41, -5, 0)
    assert (second.seq, second.due_at, second.sent_at) == (42, -4, 1)
    assert all(a != b for a, b in zip(first.message[20:], second.message[20:]))
    assert list(ledger.outstanding) == [first, second]


# Replies.


@pytest.mark.parametrize("size", SIZES)
def test_replies_in_order_are_right_and_are_taken_off_the_list(size):
    ledger = Ledger(size, 0xABC)
    probes = issue(ledger, 3)
    for probe in probes:
        assert ledger.outstanding[0] == probe
        assert ledger.settle(probe.message) == Reply(Verdict.RIGHT, probe.message, probe, probe.seq)
    assert not ledger.outstanding


def test_a_reply_after_a_later_one_is_out_of_order_and_one_after_a_gap_is_not():
    ledger = Ledger(64, 1)
    probes = issue(ledger, 5)
    replies = [ledger.settle(probes[index].message) for index in (2, 0, 1, 4, 3)]
    assert [reply.seq for reply in replies] == [3, 1, 2, 5, 4]
    assert [reply.probe for reply in replies] == [probes[index] for index in (2, 0, 1, 4, 3)]
    right, reordered = Verdict.RIGHT, Verdict.REORDERED
    assert [reply.verdict for reply in replies] == [right, reordered, reordered, right, reordered]


@pytest.mark.parametrize("size", [MIN_SIZE, 64, 300])
@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_a_byte_changed_anywhere_is_corruption_of_that_very_probe(size, mask):
    for position in range(size):
        ledger = Ledger(size, 0xABC, 240)
        probes = issue(ledger, 40)
        message = damaged(probes[20].message, position, mask)
        assert ledger.settle(message) == Reply(Verdict.CORRUPTED, message, probes[20], 260), position
        assert list(ledger.outstanding) == probes[:20] + probes[21:]


@pytest.mark.parametrize(
    "size, numbers", [(MIN_SIZE, [1, 2, 95]), pytest.param(64, [1, 2, 95, 4096], marks=pytest.mark.slow)]
)
def test_every_change_of_a_single_byte_is_corruption(size, numbers):
    for seq in numbers:
        for position in range(size):
            for value in range(256):
                ledger = Ledger(size, 0xABC, seq)
                probe = ledger.issue(0, 0)
                message = probe.message[:position] + bytes([value]) + probe.message[position + 1 :]
                if message != probe.message:
                    assert ledger.settle(message) == Reply(Verdict.CORRUPTED, message, probe, seq), (position, value)


@pytest.mark.parametrize("size", [MIN_SIZE, 64])
def test_a_probe_cut_short_with_a_byte_left_out_or_with_some_too_many_is_never_taken_for_a_whole_one(size):
    for probe in issue(Ledger(size, 1, 56), 20):  # two of the short ones have a checksum that begins with 0
        sent = probe.message
        alike = [sent[:at] for at in range(size)] + [sent + b"\r", sent * 2]
        shifted = [sent[:at] + sent[at + 1 :] for at in range(size - 1)] + [b" " + sent]
        for message in alike + shifted:
            ledger = Ledger(size, 1, probe.seq)
            assert ledger.settle(message) == Reply(Verdict.UNEXPECTED, message, None)
            issued = ledger.issue(0, 0)
            assert ledger.settle(message) == Reply(Verdict.CORRUPTED, message, issued, probe.seq)
            assert not ledger.outstanding


@pytest.mark.parametrize("size", [MIN_SIZE, 64, 300])
@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_with_bytes_missing_or_too_many_at_one_place_it_is_still_that_very_probe(size, count):
    for place in range(0, size - count + 1, 1 + size // 64):
        ledger = Ledger(size, 0xABC, 240)
        probes = issue(ledger, 10)
        sent = probes[4].message
        less = sent[:place] + sent[place + count :]
        if len(less) >= MIN_SIZE - 3:  # shorter replies may look like several probes
            assert ledger.settle(less) == Reply(Verdict.CORRUPTED, less, probes[4], 244), place
            probes.remove(probes[4])
        sent = probes[2].message
        more = sent[:place] + b"#" * count + sent[place:]
        assert ledger.settle(more) == Reply(Verdict.CORRUPTED, more, probes[2], 242), place
        probes.remove(probes[2])
        assert list(ledger.outstanding) == probes


def test_number_and_tag_make_it_that_probe_however_little_else_is_right():
    ledger = Ledger(64, 1)
    probes = issue(ledger, 4)
    message = probes[2].message[:12] + b"\0" * 52
    assert ledger.settle(message) == Reply(Verdict.CORRUPTED, message, probes[2], 3)
    assert ledger.settle(message) == Reply(Verdict.DOUBLED, message, None, 3)
    ledger.give_up(1)
    message = probes[0].message[:12] + b"\0" * 52
    assert ledger.settle(message) == Reply(Verdict.LATE, message, None, 1)
    notice = b"\0" * 64
    assert ledger.settle(notice) == Reply(Verdict.UNEXPECTED, notice, None)


def test_a_second_copy_is_doubled_whatever_came_between():
    ledger = Ledger(64, 1)
    first, second = issue(ledger, 2)
    ledger.settle(first.message)
    assert ledger.settle(first.message) == Reply(Verdict.DOUBLED, first.message, None, 1)
    ledger.settle(damaged(second.message, 30, 1))
    assert ledger.settle(second.message) == Reply(Verdict.DOUBLED, second.message, None, 2)
    assert not ledger.outstanding


def test_another_connections_probe_is_foreign_and_one_from_the_future_unexpected():
    ledger, other, ahead = Ledger(64, 1), Ledger(64, 2), Ledger(64, 1, 2)
    (probe,) = issue(ledger, 1)
    foreign, unsent = other.issue(0, 0).message, ahead.issue(0, 0).message
    for _ in range(2):
        assert ledger.settle(foreign) == Reply(Verdict.FOREIGN, foreign, None)
        assert ledger.settle(unsent) == Reply(Verdict.UNEXPECTED, unsent, None, 2)
    assert list(ledger.outstanding) == [probe]


def test_what_was_sent_before_a_time_is_given_up_and_then_late_once_and_then_doubled():
    ledger = Ledger(64, 1)
    probes = issue(ledger, 5)
    assert ledger.give_up(0) == []
    assert ledger.give_up(3) == probes[:3]
    assert ledger.give_up(3) == []
    assert list(ledger.outstanding) == probes[3:]
    late = probes[1].message
    assert ledger.settle(probes[3].message).verdict is Verdict.RIGHT
    assert ledger.settle(late) == Reply(Verdict.LATE, late, None, 2)
    assert ledger.settle(late) == Reply(Verdict.DOUBLED, late, None, 2)
    assert ledger.settle(probes[4].message).verdict is Verdict.RIGHT


def test_of_very_many_lost_probes_the_last_ones_are_remembered_and_older_ones_are_late():
    ledger = Ledger(MIN_SIZE, 1)
    first = ledger.issue(0, 0)
    answered = ledger.issue(0, 0)
    ledger.settle(answered.message)
    sizes = []
    for _ in range(4):
        probes = [ledger.issue(0, 0) for _ in range(10_000)]
        ledger.give_up(1)
        sizes.append(sum(len(part) for part in vars(ledger).values() if isinstance(part, (set, collections.deque))))
    assert sizes[-1] == sizes[-2]
    assert ledger.settle(first.message).verdict is Verdict.LATE
    late = probes[-1].message
    assert [ledger.settle(late).verdict for _ in range(2)] == [Verdict.LATE, Verdict.DOUBLED]


def test_a_damaged_checksum_that_reads_as_the_same_number_is_corrupted():
    ledger = Ledger(64, 7)
    while True:
        probe = ledger.issue(0, 0)
        if re.search(rb"[a-f]", probe.message[12:20]):
            break
    message = probe.message[:12] + probe.message[12:20].upper() + probe.message[20:]
    assert ledger.settle(message).verdict is Verdict.CORRUPTED


@pytest.mark.parametrize("seed", range(10))
def test_a_stream_of_faults_gets_the_verdicts_that_it_earns_and_the_counts_add_up(seed):
    rng = random.Random(seed)
    size = rng.choice([MIN_SIZE, 64, 200])
    ledger, other = Ledger(size, 7), Ledger(size, 8)
    waiting, answered, lost = [], [], []
    highest = given_up = 0
    got, earned = collections.Counter(), collections.Counter()
    for now in range(3000):
        fault = rng.choice(["none"] * 5 + ["overtake", "double", "damage", "foreign", "give up", "late"])
        if fault == "give up" and rng.random() < 0.3:
            gone = ledger.give_up(now - 40)
            assert gone == [probe for probe in waiting if probe.sent_at < now - 40]
            waiting = waiting[len(gone) :]
            given_up += len(gone)
            lost += gone
        elif len(waiting) < 3 or (rng.random() < 0.5 and len(waiting) < 60):
            waiting.append(ledger.issue(now, now))
        else:
            verdict = Verdict.RIGHT
            if fault == "foreign":
                message, verdict = other.issue(now, now).message, Verdict.FOREIGN
            elif fault == "double" and answered:
                message, verdict = rng.choice(answered).message, Verdict.DOUBLED
            elif fault == "late" and lost:
                answered.append(lost.pop(rng.randrange(len(lost))))
                message, verdict = answered[-1].message, Verdict.LATE
            else:
                probe = waiting.pop(rng.randrange(3) if fault == "overtake" else 0)
                answered.append(probe)
                message = probe.message
                if fault == "damage":
                    message, verdict = damaged(message, rng.randrange(size), 1), Verdict.CORRUPTED
                elif probe.seq < highest:
                    verdict = Verdict.REORDERED
                else:
                    highest = probe.seq
            earned[verdict] += 1
            got[ledger.settle(message).verdict] += 1
    assert got == earned
    assert set(earned) == set(Verdict) - {Verdict.UNEXPECTED}
    assert list(ledger.outstanding) == waiting
    settled = got[Verdict.RIGHT] + got[Verdict.REORDERED] + got[Verdict.CORRUPTED]
    assert ledger.issue(0, 0).seq - 1 == settled + given_up + len(waiting)
