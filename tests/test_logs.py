"""The log queue: nobody who logs waits for who reads."""

import contextlib
import io
import logging
import os
import threading

import pytest
from conftest import DEADLINE, eventually

from echo.server.logs import LogQueue


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
