"""The log queue: nobody who logs waits for who reads."""

import contextlib
import io
import json
import logging
import os
import random
import select
import sys
import threading

import pytest

from echo.mixins.records import emit
from echo.server.logs import DirectLog, JsonFormatter, LogQueue, TextFormatter
from support import DEADLINE, eventually


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            pass


@pytest.fixture
def logger():
    logger = logging.Logger("test")
    yield logger


def read_to_end(descriptor):
    with io.open(descriptor, "rb", closefd=False) as file:
        return file.read().decode()


def test_lines_come_out_in_order_and_the_queue_is_flushed_at_the_end(pipe, logger):
    reader, writer = pipe
    with contextlib.closing(LogQueue(writer, logging.Formatter("%(levelname)s %(message)s"))) as queue:
        logger.addHandler(queue)
        for number in range(1000):
            logger.info("line %d", number)
    os.close(writer)
    assert read_to_end(reader).splitlines() == [f"INFO line {number}" for number in range(1000)]


def test_a_reader_that_stalls_stalls_no_one_and_is_told_what_it_missed(pipe, logger):
    reader, writer = pipe
    with contextlib.closing(LogQueue(writer, logging.Formatter("%(message)s"), capacity=100)) as queue:
        logger.addHandler(queue)
        for number in range(5000):  # far more than a pipe and the queue hold; this would hang
            logger.info("%d %s", number, "x" * 1000)
        assert queue._records.qsize() <= 100
        dropped = queue._dropped
        assert dropped > 0
        text = []
        thread = threading.Thread(target=lambda: text.append(read_to_end(reader)))
        thread.start()
        eventually(lambda: queue._records.qsize() == 0)
        logger.info("flows again")
    os.close(writer)
    thread.join(DEADLINE)
    lines = text[0].splitlines()
    notes = [line for line in lines if line.endswith("dropped: the log was not read")]
    assert sum(int(note.split()[0]) for note in notes) == dropped
    assert "flows again" in lines
    assert len(lines) == 5000 - dropped + 1 + len(notes)


def test_a_descriptor_that_does_not_block_loses_nothing(pipe, logger):
    reader, writer = pipe
    os.set_blocking(writer, False)
    text = []
    thread = threading.Thread(target=lambda: text.append(read_to_end(reader)))
    with contextlib.closing(LogQueue(writer, logging.Formatter("%(message)s"))) as queue:
        logger.addHandler(queue)
        for number in range(1000):
            logger.info("%d %s", number, "x" * 1000)
        thread.start()
    os.close(writer)
    thread.join(DEADLINE)
    assert len(text[0].splitlines()) == 1000


def test_the_end_of_the_program_does_not_wait_for_a_stalled_reader(pipe, logger):
    _, writer = pipe
    with contextlib.closing(LogQueue(writer, logging.Formatter("%(message)s"))) as queue:
        logger.addHandler(queue)
        for _ in range(1000):
            logger.info("x" * 1000)
    assert queue._thread.is_alive()  # stuck, and left behind


def test_a_log_that_nobody_can_read_any_more_is_thrown_away(pipe, logger):
    reader, writer = pipe
    os.close(reader)
    with contextlib.closing(LogQueue(writer, logging.Formatter("%(message)s"))) as queue:
        logger.addHandler(queue)
        for _ in range(1000):
            logger.info("x" * 1000)
    assert not queue._thread.is_alive()
    assert not queue._dropped


def test_tracebacks_are_written_and_what_they_hold_is_let_go(pipe, logger):
    reader, writer = pipe
    with contextlib.closing(LogQueue(writer, logging.Formatter("%(message)s"))) as queue:
        logger.addHandler(queue)
        try:
            raise ZeroDivisionError("on purpose")
        except ZeroDivisionError:
            logger.exception("failed")
    os.close(writer)
    text = read_to_end(reader)
    assert text.startswith("failed\nTraceback") and text.endswith("ZeroDivisionError: on purpose\n")


def test_a_record_that_does_not_fit_its_format_costs_itself_alone(pipe, logger, capfd):
    reader, writer = pipe
    with contextlib.closing(LogQueue(writer, logging.Formatter("%(absent)s"))) as queue:
        logger.addHandler(queue)
        logger.info("one")
        logger.info("two")
    os.close(writer)
    assert read_to_end(reader).count("could not be formatted") == 2


# Lines that are no records.


class Listener(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


def no_record_is_made(monkeypatch, logger):
    def handle(record):
        raise AssertionError("a record was made")

    monkeypatch.setattr(logger, "handle", handle)


def test_a_text_log_that_listens_alone_gets_lines_that_read_as_records_do(pipe, logger, monkeypatch):
    reader, writer = pipe
    monkeypatch.setattr("time.time", lambda: 1763800000.702)
    with contextlib.closing(LogQueue(writer, TextFormatter())) as queue:
        logger.addHandler(queue)
        logger.info("hello")
        logger.warning("no %s, said twice", "record")
        logger.info("hello")
        no_record_is_made(monkeypatch, logger)
        emit(logger, logging.INFO, "hello", {"event": "said"})
        emit(logger, logging.WARNING, "no %s, said twice", {"event": "said"})
        emit(logger, logging.INFO, "hello", {"event": "said"})
    os.close(writer)
    lines = read_to_end(reader).replace("no %s,", "no record,").splitlines()
    if sys.version_info < (3, 13):  # later records ask another clock
        assert lines[:3] == lines[3:]
    assert [line[19:] for line in lines[3:]] == [
        ".702 INFO    hello",
        ".702 WARNING no record, said twice",
        ".702 INFO    hello",
    ]


def test_a_text_log_drops_lines_as_it_drops_records(pipe, logger, monkeypatch):
    reader, writer = pipe
    with contextlib.closing(LogQueue(writer, TextFormatter(), capacity=100)) as queue:
        logger.addHandler(queue)
        no_record_is_made(monkeypatch, logger)
        for _ in range(5000):
            emit(logger, logging.INFO, "x" * 1000, {})
        assert queue._records.qsize() <= 100
        dropped = queue._dropped
        assert dropped > 0
        text = []
        thread = threading.Thread(target=lambda: text.append(read_to_end(reader)))
        thread.start()
    os.close(writer)
    thread.join(DEADLINE)
    lines = text[0].splitlines()
    assert sum(line.endswith("x") for line in lines) == 5000 - dropped
    assert sum(int(line.split()[3]) for line in lines if "dropped: the log was not read" in line) == dropped


def test_whoever_listens_beside_the_text_log_gets_records(pipe, logger):
    reader, writer = pipe
    listener = Listener()
    child = logging.Logger("test.child")
    child.parent = logger
    with contextlib.closing(LogQueue(writer, TextFormatter())) as queue:
        logger.addHandler(queue)
        emit(child, logging.INFO, "one", {"event": "said"})
        child.addHandler(listener)
        emit(child, logging.INFO, "two", {"event": "said"})
    os.close(writer)
    assert [(record.getMessage(), record.event) for record in listener.records] == [("two", "said")]
    assert [line.split()[-1] for line in read_to_end(reader).splitlines()] == ["one", "two"]


def test_filters_and_levels_see_records(pipe, logger):
    reader, writer = pipe

    def secret(record):
        return record.event != "secret"

    with contextlib.closing(LogQueue(writer, TextFormatter())) as queue:
        logger.addHandler(queue)
        for filtered in (logger, queue):
            filtered.addFilter(secret)
            emit(logger, logging.INFO, "filtered", {"event": "secret"})
            emit(logger, logging.INFO, "shown", {"event": "said"})
            filtered.removeFilter(secret)
        queue.setLevel("WARNING")
        emit(logger, logging.INFO, "low", {"event": "said"})
        queue.setLevel("NOTSET")
        logger.disabled = True
        emit(logger, logging.INFO, "off", {"event": "said"})
    os.close(writer)
    assert [line.split()[-1] for line in read_to_end(reader).splitlines()] == ["shown", "shown"]


def test_a_json_log_gets_the_fields(pipe, logger):
    reader, writer = pipe
    with contextlib.closing(LogQueue(writer, JsonFormatter())) as queue:
        logger.addHandler(queue)
        emit(logger, logging.INFO, "hello", {"event": "said", "size": 5})
    os.close(writer)
    told = json.loads(read_to_end(reader))
    assert (told["event"], told["size"], told["message"]) == ("said", 5, "hello")


# Several writers, and one who must not wait.


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
def test_lines_of_several_shared_queues_stay_whole_and_in_each_ones_order(pipe):
    reader, writer = pipe
    text = []
    thread = threading.Thread(target=lambda: text.append(read_to_end(reader)))

    def write(name):
        own = logging.Logger(name)
        with contextlib.closing(LogQueue(writer, logging.Formatter("%(name)s %(message)s."), shared=True)) as queue:
            own.addHandler(queue)
            choice = random.Random(name)
            for number in range(2000):
                own.info("%d %s", number, name * choice.randrange(500))

    writers = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for each in writers:
        each.start()
    eventually(lambda: not select.select([], [writer], [], 0)[1])  # it is full: whoever may, writes in between
    thread.start()
    for each in writers:
        each.join(DEADLINE)
        assert not each.is_alive()
    os.close(writer)
    thread.join(DEADLINE)
    seen = {name: [] for name in "abc"}
    for line in text[0].splitlines():
        name, number, rest = line.split(" ")
        assert rest == name * (len(rest) - 1) + "."
        seen[name].append(int(number))
    assert seen == {name: list(range(2000)) for name in "abc"}


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_queue_writes_no_more_at_once_than_a_pipe_takes_whole(pipe, logger, shared, monkeypatch):
    reader, writer = pipe
    sizes = []
    real_write = LogQueue._write

    def write(queue, data):
        sizes.append(len(data))
        real_write(queue, data)

    monkeypatch.setattr(LogQueue, "_write", write)
    with contextlib.closing(LogQueue(writer, logging.Formatter("%(message)s"), shared=shared)) as queue:
        logger.addHandler(queue)
        for _ in range(600):
            logger.info("x" * 99)
    os.close(writer)
    assert read_to_end(reader) == ("x" * 99 + "\n") * 600
    assert sum(sizes) == 60_000
    if shared:
        assert max(sizes) <= select.PIPE_BUF
        assert all(size % 100 == 0 for size in sizes)
    else:
        assert max(sizes) > select.PIPE_BUF  # fewer calls


def test_a_line_longer_than_a_pipe_takes_whole_is_written_all_the_same(pipe, logger):
    reader, writer = pipe
    text = []
    thread = threading.Thread(target=lambda: text.append(read_to_end(reader)))
    thread.start()
    with contextlib.closing(LogQueue(writer, logging.Formatter("%(message)s"), shared=True)) as queue:
        logger.addHandler(queue)
        for size in (10, 200_000, 10):
            logger.info("x" * size)
    os.close(writer)
    thread.join(DEADLINE)
    assert [len(line) for line in text[0].splitlines()] == [10, 200_000, 10]


def test_a_shared_queue_tells_what_it_dropped(pipe, logger):
    reader, writer = pipe
    queue = LogQueue(writer, logging.Formatter("%(message)s"), capacity=10, shared=True)
    logger.addHandler(queue)
    for number in range(1000):
        logger.info("%d %s", number, "x" * 1000)
    dropped = queue._dropped
    text = []
    thread = threading.Thread(target=lambda: text.append(read_to_end(reader)))
    thread.start()
    queue.close()
    os.close(writer)
    thread.join(DEADLINE)
    lines = text[0].splitlines()
    notes = [line for line in lines if line.endswith("dropped: the log was not read")]
    assert 0 < dropped == sum(int(note.split()[0]) for note in notes)
    assert len(lines) == 1000 - dropped + len(notes)


def test_threads_that_log_at_once_lose_no_line_and_double_none(pipe, logger):
    reader, writer = pipe
    text = []
    thread = threading.Thread(target=lambda: text.append(read_to_end(reader)))
    thread.start()

    def log(name):
        for number in range(1000):
            logger.info("%s%d", name, number)

    with contextlib.closing(LogQueue(writer, logging.Formatter("%(message)s"))) as queue:
        logger.addHandler(queue)
        threads = [threading.Thread(target=log, args=(name,)) for name in "abcdef"]
        for each in threads:
            each.start()
        for each in threads:
            each.join(DEADLINE)
    os.close(writer)
    thread.join(DEADLINE)
    lines = text[0].splitlines()
    assert [[line for line in lines if line[0] == name] for name in "abcdef"] == [
        [f"{name}{number}" for number in range(1000)] for name in "abcdef"
    ]
    assert not queue._dropped


def test_a_direct_log_writes_at_once_and_has_no_thread(pipe, logger):
    reader, writer = pipe
    before = threading.enumerate()
    logger.addHandler(DirectLog(writer, logging.Formatter("%(levelname)s %(message)s")))
    logger.warning("one %d", 1)
    assert os.read(reader, 1000) == b"WARNING one 1\n"
    logger.info("two \ud800 \u20ac")
    assert os.read(reader, 1000) == "INFO two \\ud800 \u20ac\n".encode()
    assert threading.enumerate() == before


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
def test_a_direct_log_that_is_not_read_drops_and_waits_for_nobody(pipe, logger):
    reader, writer = pipe
    logger.addHandler(DirectLog(writer, logging.Formatter("%(message)s")))
    for number in range(5000):  # far more than a pipe holds; this would hang
        logger.info("%04d %s", number, "x" * 94)
    os.set_blocking(reader, False)
    lines = os.read(reader, 10_000_000).decode().splitlines()
    assert 0 < len(lines) < 5000
    assert [int(line.split()[0]) for line in lines] == list(range(len(lines)))
    logger.info("flows again")
    assert os.read(reader, 1000) == b"flows again\n"


@pytest.mark.parametrize("closed", ["reader", "writer"])
def test_a_direct_log_that_has_nowhere_to_write_is_silent(pipe, logger, closed, capfd):
    os.close(pipe[closed == "writer"])
    logger.addHandler(DirectLog(pipe[1], logging.Formatter("%(message)s")))
    for _ in range(10):
        logger.info("hello")
    assert capfd.readouterr() == ("", "")
