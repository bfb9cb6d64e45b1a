"""Replies without delimiters: each is found, even if bytes before it are missing or extra."""

import random

import pytest

from echo.measure.probes import MIN_SIZE, Ledger, Reply, Verdict
from echo.measure.stream import ProbeStream

SIZES = [MIN_SIZE, 64, 300]


def sent(count, size=64, first=1):
    """A stream, its ledger, and the messages of ``count`` probes in flight."""
    ledger = Ledger(size, 0xABC, first)
    return ProbeStream(ledger), ledger, [ledger.issue(0, 0).message for _ in range(count)]


def feed(stream, data, step=None):
    """All replies, after a check that they are the same if the bytes are read at once or in pieces."""
    step = step or len(data)
    return [reply for start in range(0, len(data), step) for reply in stream.feed(data[start : start + step])]


def verdicts(replies):
    return [(reply.verdict, reply.seq) for reply in replies]


def right(*numbers):
    return [(Verdict.RIGHT, number) for number in numbers]


def test_replies_come_out_whole_wherever_the_stream_is_cut():
    for first in range(4 * MIN_SIZE):
        for second in range(first, 4 * MIN_SIZE, 3):
            stream, _, messages = sent(4, MIN_SIZE)
            data = b"".join(messages)
            pieces = (data[:first], data[first:second], data[second:])
            replies = [reply for piece in pieces if piece for reply in stream.feed(piece)]
            assert [reply.message for reply in replies] == messages, (first, second)
            assert verdicts(replies) == right(1, 2, 3, 4)
            assert stream.finish() == b""


def test_a_reply_comes_out_with_its_last_byte_and_the_end_leaves_the_rest():
    stream, _, messages = sent(2)
    assert [len(stream.feed(bytes([byte]))) for byte in messages[0]] == [0] * 63 + [1]
    assert stream.feed(messages[1][:17]) == []
    assert stream.finish() == messages[1][:17]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [None, 1, 7])
@pytest.mark.parametrize("length", [1, 10, 19, 63, 64, 65, 200])
def test_a_greeting_is_one_reply_that_nobody_asked_for_and_shifts_the_others_once(size, step, length):
    stream, _, messages = sent(3, size)
    greeting = b"220 welcome " * 20
    replies = feed(stream, greeting[:length] + b"".join(messages), step)
    assert verdicts(replies[-3:]) == right(1, 2, 3)
    assert {reply.verdict for reply in replies[:-3]} == {Verdict.UNEXPECTED}
    assert b"".join(reply.message for reply in replies[:-3]) == greeting[:length]
    assert [reply.shift for reply in replies[-3:]] == [0, 0, 0]
    if length < size:
        assert [reply.shift for reply in replies[:-3]] == [length]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [None, 1, 7])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_after_a_reply_without_some_of_its_bytes_all_are_right(size, step, count):
    for place in range(0, size - count + 1, 1 + size // 20):
        stream, _, messages = sent(5, size)
        damaged = messages[1][:place] + messages[1][place + count :]
        replies = feed(stream, messages[0] + damaged + b"".join(messages[2:]), step)
        assert verdicts(replies) == [*right(1), (Verdict.CORRUPTED, 2), *right(3, 4, 5)], place
        assert replies[1].message == damaged
        assert [reply.shift for reply in replies] == [0, -count, 0, 0, 0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_after_a_reply_with_some_bytes_too_many_all_are_right(size, count):
    for place in range(1, size, 1 + size // 20):
        stream, _, messages = sent(5, size)
        damaged = messages[1][:place] + b"#" * count + messages[1][place:]
        replies = feed(stream, messages[0] + damaged + b"".join(messages[2:]))
        assert verdicts(replies) == [*right(1), (Verdict.CORRUPTED, 2), *right(3, 4, 5)], place
        assert [reply.shift for reply in replies] == [0, count, 0, 0, 0]


@pytest.mark.parametrize("size", SIZES)
def test_a_changed_byte_is_reported_at_once_and_shifts_nothing(size):
    for place in range(size):
        stream, ledger, (message,) = sent(1, size)
        damaged = message[:place] + bytes([message[place] ^ 1]) + message[place + 1 :]
        assert verdicts(stream.feed(damaged)) == [(Verdict.CORRUPTED, 1)]
        message = ledger.issue(0, 0).message
        assert stream.feed(message) == [Reply(Verdict.RIGHT, message, *_probe(message, 2))]


def _probe(message, seq):
    class Same:
        def __eq__(self, other):
            return (other.seq, other.message) == (seq, message)

    return Same(), seq


def test_the_rest_of_a_reply_whose_time_is_over_is_late():
    stream, ledger, (message,) = sent(1)
    assert stream.feed(message[:63]) == []
    assert len(ledger.give_up(1)) == 1
    following = ledger.issue(2, 2).message
    assert verdicts(stream.feed(following)) == [(Verdict.LATE, 1), (Verdict.RIGHT, 2)]


@pytest.mark.parametrize("tag", [0, 1, 0x0123, 0x6789, 0xABCD, 0xFFFF])
def test_no_tag_is_taken_for_padding(tag):
    for first in range(1, 96):
        if (first + 1 + 99) % 95 == ord("0") - 32:
            continue  # the second ends with the first byte of the third: either of the two may be missing
        ledger = Ledger(120, tag, first)
        stream = ProbeStream(ledger)
        messages = [ledger.issue(0, 0).message for _ in range(3)]
        replies = stream.feed(b"hello" + messages[0] + messages[1][:-1] + messages[2])
        assert [reply.verdict for reply in replies] == [
            Verdict.UNEXPECTED,
            Verdict.RIGHT,
            Verdict.CORRUPTED,
            Verdict.RIGHT,
        ]


@pytest.mark.parametrize("seed", range(40))
def test_a_stream_of_faults_gets_the_verdicts_that_it_earns(seed):
    rng = random.Random(seed)
    size = rng.choice([64, 200])
    stream, _, messages = sent(200, size)
    data, earned, fault = b"", [], "none"
    for number, message in enumerate(messages, 1):
        faults = ["drop", "flip", "less", "more", "double", "junk"]
        place = rng.randrange(1, size)
        if fault not in ("none", "double"):  # after a damaged reply, bytes without a header would belong to it
            faults.remove("junk")
            place = rng.randrange(12, size)
        fault = rng.choice([*["none"] * 6, *faults])
        if number == len(messages):
            fault = "none"
        if fault == "junk":
            data += b"~" * rng.randrange(20, size)
            earned.append(Verdict.UNEXPECTED)
        if fault == "flip":
            message = message[:place] + bytes([message[place] ^ 1]) + message[place + 1 :]
        elif fault == "less":
            message = message[:place] + message[place + rng.randrange(1, 5) :]
        elif fault == "more":
            message = message[:place] + b"~" * rng.randrange(1, 5) + message[place:]
        if fault in ("flip", "less", "more"):
            earned.append(Verdict.CORRUPTED)
        elif fault != "drop":
            earned.append(Verdict.RIGHT)
        data += message * (0 if fault == "drop" else 2 if fault == "double" else 1)
        earned += [Verdict.DOUBLED] * (fault == "double")
    replies = feed(stream, data, rng.choice([None, 50, 1000]))
    assert [reply.verdict for reply in replies] == earned
    assert b"".join(reply.message for reply in replies) == data
    assert stream.finish() == b""
