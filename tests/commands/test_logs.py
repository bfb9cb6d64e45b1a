"""The log queue and the direct log: logging never waits for the reader of the log, and costs no session."""

import argparse
import contextlib
import gc
import io
import json
import logging
import os
import random
import re
import select
import socket
import subprocess
import sys
import threading
import time
import weakref

import pytest

import echo
from echo.cli.server.color_formatter import ColorFormatter
from echo.cli.server.command_log import Log
from echo.cli.server.queue_logging import QueueLoggingMixin, only_queue
from echo.logs import log_handlers as logs
from echo.logs import output as logs_output
from echo.logs.formatters import JsonFormatter, TextFormatter
from echo.logs.log_handlers import DirectLog
from echo.logs.output import new_lock
from echo.mixins.records import emit
from echo.server import forking
from echo.sockets import unread
from echo.text import LONGEST, format_address
from support import DEADLINE, ROOT, eventually, read_all
from support.log_lines import records_of

posix_pipes = pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")


class LogQueue(logs.LogQueue):
    """A queue for a ``with`` statement, which waits for its thread as long as a busy machine needs."""

    patience = DEADLINE

    def __init__(self, *arguments, flush_timeout=DEADLINE, **options):
        super().__init__(*arguments, flush_timeout=flush_timeout, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


@contextlib.contextmanager
def ended(handler):
    yield handler
    handler.end()


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
    return logging.Logger("test")


def read_to_end(descriptor):
    with io.open(descriptor, "rb", closefd=False) as file:
        return file.read().decode()


def has_room(descriptor):
    """Whether a write would succeed without blocking."""
    return bool(select.select([], [descriptor], [], 0)[1])


class Reader(threading.Thread):
    """Reads a descriptor to its end in a thread; ``lines()`` waits for that."""

    def __init__(self, descriptor):
        super().__init__(daemon=True)
        self._descriptor = descriptor

    def run(self):
        self._text = read_to_end(self._descriptor)

    def lines(self):
        self.join(DEADLINE)
        assert not self.is_alive()
        return self._text.splitlines()


def dropped_by(lines):
    """The notes on dropped records, and how many records they say were dropped."""
    notes = [line for line in lines if line.endswith("dropped: the log was not read")]
    return notes, sum(int(re.search(r"(\d+) log record", note).group(1)) for note in notes)


def test_lines_come_out_in_order_and_the_queue_is_flushed_at_the_end(pipe, logger):
    reader, writer = pipe
    with LogQueue(writer, logging.Formatter("%(levelname)s %(message)s")) as queue:
        logger.addHandler(queue)
        for number in range(1000):
            logger.info("line %d", number)
    os.close(writer)
    assert read_to_end(reader).splitlines() == [f"INFO line {number}" for number in range(1000)]


def test_a_reader_that_stalls_blocks_nobody_and_learns_how_much_was_dropped(pipe, logger):
    reader, writer = pipe
    with LogQueue(writer, logging.Formatter("%(message)s"), capacity=100) as queue:
        logger.addHandler(queue)
        for number in range(1000):  # far more than a pipe and the queue hold; this would hang
            logger.info("%d %s", number, "x" * 1000)
        assert queue._records.qsize() <= 100
        dropped = queue._lost[logs.NOT_READ]
        assert dropped > 0
        reading = Reader(reader)
        reading.start()
        eventually(lambda: queue._records.qsize() == 0)
        logger.info("flows again")
    os.close(writer)
    lines = reading.lines()
    notes, count = dropped_by(lines)
    assert count == dropped
    assert "flows again" in lines
    assert len(lines) == 1000 - dropped + 1 + len(notes)


def test_threads_that_log_faster_than_a_file_is_written_wait_and_lose_nothing(tmp_path, logger):
    def log():
        for _ in range(500):
            logger.info("a record")
            queue.put_line(logging.INFO, "a line")

    path = tmp_path / "log"
    with path.open("wb") as file:
        with LogQueue(file.fileno(), TextFormatter(), capacity=200) as queue:
            logger.addHandler(queue)
            threads = [threading.Thread(target=log) for _ in range(2)]
            for each in threads:
                each.start()
            for each in threads:
                each.join(DEADLINE)
    lines = path.read_text().splitlines()
    assert sorted(line[32:] for line in lines) == ["a line"] * 1000 + ["a record"] * 1000


class Stalled(LogQueue):
    """A queue whose thread, once it has a batch, sets ``stalls`` and waits for ``may_write``."""

    patience = 0.0

    def __init__(self, *arguments, **options):
        self.stalls, self.may_write = threading.Event(), threading.Event()
        super().__init__(*arguments, **options)

    def _write(self, lines):
        self.stalls.set()
        assert self.may_write.wait(DEADLINE)
        super()._write(lines)


def test_a_file_that_takes_nothing_holds_up_one_record_for_the_time_of_one_wait(tmp_path, logger, monkeypatch):
    path = tmp_path / "log"
    with path.open("wb") as file:
        with Stalled(file.fileno(), logging.Formatter("%(message)s"), capacity=1) as queue:
            logger.addHandler(queue)
            waits, wait = [], queue._taken.wait
            monkeypatch.setattr(queue._taken, "wait", lambda timeout: waits.append(timeout) or wait(timeout))
            logger.info("written")
            assert queue.stalls.wait(DEADLINE)
            for _ in range(10):
                logger.info("waits, or is dropped")
            queue.may_write.set()
    lines = path.read_text().splitlines()
    assert len(waits) == 1
    assert lines == ["written", "9 log records dropped: the log was not written in time", "waits, or is dropped"]


def test_a_descriptor_that_does_not_block_loses_nothing(pipe, logger):
    reader, writer = pipe
    os.set_blocking(writer, False)
    reading = Reader(reader)
    with LogQueue(writer, logging.Formatter("%(message)s")) as queue:
        logger.addHandler(queue)
        for number in range(1000):
            logger.info("%d %s", number, "x" * 1000)
        reading.start()
    os.close(writer)
    assert len(reading.lines()) == 1000


def test_the_end_of_the_program_does_not_wait_for_a_stalled_reader(pipe, logger):
    reader, writer = pipe
    with LogQueue(writer, logging.Formatter("%(message)s"), flush_timeout=0.05) as queue:
        logger.addHandler(queue)
        for _ in range(1000):
            logger.info("x" * 1000)
        eventually(lambda: not has_room(writer))
    assert queue._thread.is_alive()  # stuck, and left behind
    os.close(reader)
    queue._thread.join(DEADLINE)  # otherwise the next test could get its descriptor


@posix_pipes
@pytest.mark.parametrize("pause", [0.0, 0.1], ids=["at once", "with a pause between the first drop and its count"])
def test_a_slow_reader_learns_how_much_was_dropped_at_the_end_of_the_program(pipe, logger, monkeypatch, pause):
    """The rest takes longer than the end waits. The last line is whole, and says how many are missing."""
    monkeypatch.setattr(logs, "NOTE_TIMEOUT", DEADLINE)
    reader, writer = pipe
    queue = LogQueue(writer, logging.Formatter("%(message)s"), flush_timeout=0.05)
    logger.addHandler(queue)
    for _ in range(3000):
        logger.info("x" * 99)
    eventually(lambda: not has_room(writer))
    reading = Reader(reader)
    hurry = queue._output.hurry
    monkeypatch.setattr(queue._output, "hurry", lambda: (hurry(), reading.start()))
    drop, pauses = queue._drop, iter([pause])
    monkeypatch.setattr(queue, "_drop", lambda *lost: (time.sleep(next(pauses, 0)), drop(*lost)))
    queue.end()
    assert queue._thread is None
    os.close(writer)
    lines = reading.lines()
    notes, count = dropped_by(lines)
    assert lines[-1] == notes[-1] and len(lines) - len(notes) + count == 3000
    assert {len(line) for line in lines} - {len(note) for note in notes} == {99}


@posix_pipes
def test_the_number_of_records_that_are_lost_in_the_last_batch_is_reported(pipe, logger):
    reader, writer = pipe
    with LogQueue(writer, logging.Formatter("%(message)s")) as queue:
        logger.addHandler(queue)
        queue._output.hurry()
        for _ in range(500):
            logger.info("x" * 99)
    os.close(writer)
    lines = read_to_end(reader).splitlines()
    notes, count = dropped_by(lines)
    assert count > 0 and len(lines) - len(notes) + count == 500


def test_the_end_of_the_program_waits_while_only_the_writing_thread_is_late(pipe, logger):
    reader, writer = pipe
    may_write = threading.Event()

    class Late(LogQueue):
        def _write(self, lines):
            assert may_write.wait(DEADLINE)
            super()._write(lines)

    queue = Late(writer, logging.Formatter("%(message)s"))
    logger.addHandler(queue)
    logger.info("late")
    joins, real_join = [], queue._thread.join

    def join(timeout):
        joins.append(timeout)
        if len(joins) == 3:  # by then the queue would have given up a reader that stalls
            may_write.set()
            real_join(timeout)

    queue._thread.join = join
    queue.end()
    assert len(joins) == 3
    assert os.read(reader, 100) == b"late\n"


def test_a_log_whose_reader_is_gone_is_discarded(pipe, logger):
    reader, writer = pipe
    os.close(reader)
    with LogQueue(writer, logging.Formatter("%(message)s")) as queue:
        logger.addHandler(queue)
        for _ in range(1000):
            logger.info("x" * 1000)
    assert queue._thread is None
    assert not queue._lost[logs.NOT_READ]


def test_tracebacks_are_written_and_what_they_hold_is_let_go(pipe, logger):
    reader, writer = pipe
    with LogQueue(writer, logging.Formatter("%(message)s")) as queue:
        logger.addHandler(queue)
        try:
            raise ZeroDivisionError("on purpose")
        except ZeroDivisionError:
            logger.exception("failed")
    os.close(writer)
    text = read_to_end(reader)
    assert text.startswith("failed\nTraceback") and text.endswith("ZeroDivisionError: on purpose\n")


def test_a_formatter_that_fails_costs_its_records_alone(pipe, logger):
    reader, writer = pipe
    with LogQueue(writer, logging.Formatter("%(absent)s")) as queue:
        logger.addHandler(queue)
        logger.info("one")
        logger.info("two")
    os.close(writer)
    assert read_to_end(reader).count("could not be formatted") == 2


class Odd:
    def __str__(self):
        exc = ValueError("not\nprintable")
        exc.__notes__ = ["a note"]  # since 3.11, as of add_note()
        raise exc


class Deep:
    """Logs itself when it is converted to text."""

    def __init__(self, logger):
        self.logger = logger

    def __str__(self):
        self.logger.info("%s", self)
        return "deep"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_faulty_log_call_costs_its_record_alone(pipe, logger, form):
    """Row 85."""
    reader, writer = pipe
    with LogQueue(writer, {"text": TextFormatter, "json": JsonFormatter}[form]()) as queue:
        logger.addHandler(queue)
        logger.warning("%d", "x")
        logger.warning("%s", Odd())
        logger.warning("one", "too many")
        logger.warning("%s %s", "one too few")
        logger.handle(logging.makeLogRecord({"created": "today", "msg": "hello", "levelno": logging.INFO}))
        logger.info("%s", "fine")
    os.close(writer)
    lines = read_to_end(reader)
    records = records_of(lines.encode(), form)
    assert len(records) == 6
    assert lines.count("a log record could not be formatted (test_logs.py:") == 4
    shown = r"ValueError: not\nprintable"
    assert (shown if form == "text" else json.dumps(shown)[1:-1]) in lines
    assert "fine" in lines.splitlines()[-1]


class Endless:
    def __str__(self):
        return str(self)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_part_of_a_record_that_calls_itself_costs_its_record_alone(pipe, logger, form):
    reader, writer = pipe
    with LogQueue(writer, {"text": TextFormatter, "json": JsonFormatter}[form]()) as queue:
        logger.addHandler(queue)
        logger.info("%s", Endless())
        logger.info("hello", extra={"endless": Endless()})
    os.close(writer)
    failed, hello = read_to_end(reader).splitlines()
    assert "could not be formatted" in failed and "RecursionError" in failed and "hello" in hello


DEEP = """
import gc, logging, os, sys
from echo.logs.formatters import JsonFormatter, TextFormatter
from echo.logs.log_handlers import DirectLog, LogQueue
from echo.mixins.records import emit

class Odd:
    def __str__(self):
        raise ValueError

def log_exception():
    try:
        raise ValueError
    except ValueError:
        logger.exception("hello")

def deeper(call):
    call()
    deeper(call)

gc.disable()  # until 3.9, a callback of a weak reference that the collector calls there ends the process, too
sys.setrecursionlimit(200)
logger = logging.getLogger("echo.session")
logger.setLevel("INFO")
for handler in (LogQueue, DirectLog):
    for formatter in (TextFormatter, JsonFormatter):
        logger.handlers = [handler(os.open(os.devnull, os.O_WRONLY), formatter())]
        for call in (
            lambda: logger.info("hello"),
            lambda: logger.info("hello", extra={"odd": [Odd()]}),
            lambda: logger.info("%s", Odd()),
            lambda: emit(logger, logging.INFO, "hello", {}),
            log_exception,
        ):
            try:
                deeper(call)
            except RecursionError:
                pass
        logger.handlers[0].end()
print("alive")
"""


def test_log_calls_up_to_the_end_of_the_stack_do_not_end_the_process():
    """Until Python 3.9 a ``RecursionError`` must not be caught there."""
    done = subprocess.run([sys.executable, "-c", DEEP], cwd=ROOT, stdout=subprocess.PIPE, timeout=DEADLINE)
    assert (done.returncode, done.stdout.strip()) == (0, b"alive")


def test_a_record_that_logs_itself_ends(pipe, logger):
    reader, writer = pipe
    reading = Reader(reader)
    reading.start()
    with LogQueue(writer, TextFormatter()) as queue:
        logger.addHandler(queue)
        logger.info("%s", Deep(logger))
        logger.info("the next")
    os.close(writer)
    shown = {line[32:] for line in reading.lines()}
    assert "the next" in shown
    assert not [text for text in shown - {"deep", "the next"} if "Error" not in text]


def test_a_filter_that_raises_costs_its_record_alone(pipe, logger):
    reader, writer = pipe

    def broken(record):
        return 1 / (record.msg != "bad")

    with LogQueue(writer, TextFormatter()) as queue:
        logger.addHandler(queue)
        queue.addFilter(broken)
        logger.info("bad")
        logger.info("good")
        eventually(lambda: not queue._records.qsize())
    os.close(writer)
    lines = read_to_end(reader).splitlines()
    assert lines[0].endswith("good") and len(lines) == 2


def test_a_record_keeps_nothing_alive_while_it_waits(pipe, logger):
    class Argument:
        pass

    reader, writer = pipe
    with LogQueue(writer, JsonFormatter(), flush_timeout=0.05) as queue:
        logger.addHandler(queue)
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        argument = Argument()
        died = weakref.ref(argument)
        logger.info("%s", argument, extra={"argument": argument})
        del argument
        gc.collect()
        assert died() is None
    os.close(reader)
    queue._thread.join(DEADLINE)


@pytest.mark.parametrize("form", ["text", "json"])
def test_long_records_that_nobody_reads_cost_bounded_memory(pipe, logger, form):
    """A record of 40 KB takes the places of 40 short ones."""
    reader, writer = pipe
    capacity = 1000
    os.close(reader)  # so that in the end no line is left to read
    with Stalled(writer, {"text": TextFormatter, "json": JsonFormatter}[form](), capacity) as queue:
        logger.addHandler(queue)
        logger.info("the first, which the thread takes")
        assert queue.stalls.wait(DEADLINE)
        for _ in range(100):
            try:
                raise ValueError("x" * 40_000)
            except ValueError:
                logger.exception("failed")
            if form == "text":
                queue.put_line(logging.INFO, "\u20ac" * 13_000)
        waiting = [queue._records.get_nowait() for _ in range(queue._records.qsize())]
        sizes = [sys.getsizeof(item if isinstance(item, bytes) else item[2]) for item in waiting if item]
        assert 15 < len(sizes) < 30
        assert sum(sizes) <= capacity * 1024 + 80_000
        assert queue._lost[logs.LATE] > 70
        queue.may_write.set()


def test_records_that_are_formatted_at_the_same_time_cost_bounded_memory(pipe, logger):
    """While a long record is being formatted, the queue does not count it."""
    formatting = threading.Barrier(6)
    may_end = [threading.Event() for _ in range(5)]

    class Slow(logging.Formatter):
        def format(self, record):
            if not record.args:
                return record.getMessage()
            formatting.wait(DEADLINE)
            may_end[record.args[0]].wait(DEADLINE)
            return "x" * 200_000

    os.close(pipe[0])  # so that in the end no line is left to read
    with Stalled(pipe[1], Slow(), 100) as queue:
        logger.addHandler(queue)
        logger.info("the first, which the thread takes")
        assert queue.stalls.wait(DEADLINE)
        threads = [threading.Thread(target=logger.info, args=("%d", number)) for number in range(5)]
        for each in threads:
            each.start()
        formatting.wait(DEADLINE)
        for event, each in zip(may_end, threads):
            event.set()
            each.join(DEADLINE)
        waiting = [queue._records.get_nowait() for _ in range(queue._records.qsize())]
        assert len([item for item in waiting if item]) == 1
        assert queue._lost[logs.LATE] == 4
        queue.may_write.set()


@pytest.mark.parametrize("kind", [LogQueue, DirectLog])
def test_code_that_closes_all_handlers_does_not_end_the_log(pipe, logger, kind):
    """As ``logging.config.dictConfig`` in a handler does, and ``logging.shutdown``."""
    reader, writer = pipe
    with ended(kind(writer, TextFormatter())) as handler:
        logger.addHandler(handler)
        logger.info("one")
        logging.shutdown([weakref.ref(handler)])
        logger.info("two")
    os.close(writer)
    assert [line[32:] for line in read_to_end(reader).splitlines()] == ["one", "two"]


@posix_pipes
def test_records_that_a_full_disk_did_not_take_are_counted(tmp_path, logger):
    """Row 86."""
    import resource

    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with LogQueue(descriptor, TextFormatter()) as queue:
        logger.addHandler(queue)
        resource.setrlimit(resource.RLIMIT_FSIZE, (250, limits[1]))
        try:
            for number in range(10):
                logger.info("%d %s", number, "x" * 50)
                eventually(lambda number=number: path.stat().st_size and queue._records.qsize() == 0)
            eventually(lambda: sum(queue._lost.values()) == 8)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        logger.info("there is room again")
    os.close(descriptor)
    records = records_of(path.read_bytes(), "text")
    assert [message.partition(" ")[0] for _, message in records] == ["0", "1", "there", "8"]
    assert records[-1] == ("WARNING", "8 log records dropped: the log could not be written (File too large)")


@posix_pipes
def test_a_forked_child_writes_its_records_itself(pipe, logger):
    reader, writer = pipe
    with LogQueue(writer, TextFormatter()) as queue:
        logger.addHandler(queue)
        logger.info("from the parent")
        child = os.fork()
        if not child:
            logger.info("from the child")
            queue.put_line(logging.INFO, "line of the child")
            queue.end()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    os.close(writer)
    lines = read_to_end(reader).splitlines()
    assert sorted(line[32:] for line in lines) == ["from the child", "from the parent", "line of the child"]


@posix_pipes
def test_what_threads_log_while_the_log_is_closed_comes_after_what_waits(pipe, monkeypatch):
    """A line that is longer than a pipe is being written to a slow reader then."""
    reader, writer = pipe
    reading = Reader(reader)
    logger = logging.getLogger("late")
    with open(writer, "w", closefd=False) as stderr:
        monkeypatch.setattr(sys, "__stderr__", stderr)
        with Log(argparse.Namespace(workers=1, log_format="text", log_threads=False, color="never")) as log:
            queue = log.queue()
            queue._flush_timeout = DEADLINE
            log.to(queue)
            logger.error("x" * 40_000 + " first")
            logger.error("x" * 40_000 + " second")
            eventually(lambda: not has_room(writer))
            closing = threading.Thread(target=log.close)
            closing.start()
            assert queue._ending.wait(DEADLINE)
            logger.error("third")
            reading.start()
            closing.join(DEADLINE)
            eventually(lambda: not unread(reader))  # from now on, what has no room at once is dropped
            logger.error("fourth")
            log.close()  # the thread that cuts what is left calls it, too
            logger.error("fifth")
    os.close(writer)
    lines = reading.lines()
    assert [line.rpartition(" ")[2] for line in lines] == ["first", "second", "third", "fourth", "fifth"]
    assert {line[:2] for line in lines} == {"20"}


# Finished lines instead of records, if only the command's own queue gets them.


class Listener(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


def no_record(*args):
    raise AssertionError("a record was made")


@pytest.fixture
def hold_session(serve, dial, logger):
    """``hold_session(*mixins)``: a session whose handler has these mixins and logs to ``logger``; return its peer."""

    def hold(*mixins):
        server = serve(type("Handler", (*mixins, echo.EchoRequestHandler), {"log": logger}))
        client = dial(server)
        client.sendall(b"hello\nand a rest")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"hello\nand a rest"
        eventually(lambda: not server.connections)
        return format_address(client.getsockname())

    return hold


def test_a_text_queue_gets_lines_that_read_as_those_of_records(pipe, logger, hold_session, monkeypatch):
    reader, writer = pipe
    with LogQueue(writer, TextFormatter()) as queue:
        logger.addHandler(queue)
        peers = [hold_session(echo.LoggingMixin)]
        monkeypatch.setattr("echo.mixins.logging.emit", no_record)
        peers.append(hold_session(QueueLoggingMixin, echo.LoggingMixin))
    os.close(writer)
    sessions = [[], []]
    for line in read_to_end(reader).splitlines():
        time_and_level, separator, rest = line.partition(" 127.0.0.1:")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO   ", time_and_level)
        peer, _, text = (separator.lstrip() + rest).partition(" ")
        sessions[peers.index(peer)].append(re.sub(r"\d+\.\d{3} s$", "TIME", text))
    assert sessions[0] == sessions[1]
    assert sessions[0] == [
        "connected",
        "received 5 bytes: hello",
        "sent 5 bytes: hello",
        "received 10 bytes without an end: and a rest",
        "disconnected: eof; 1 in, 1 out; 16 B read, 16 B written; TIME",
    ]


def test_a_line_reads_as_a_record_with_the_same_time(pipe, logger, monkeypatch):
    reader, writer = pipe
    monkeypatch.setattr("time.time", lambda: 1763800000.702)
    with LogQueue(writer, TextFormatter()) as queue:
        logger.addHandler(queue)
        for level, message in ((logging.INFO, "hello"), (logging.WARNING, "not a %s"), (logging.INFO, "hello")):
            emit(logger, level, message, {})
            queue.put_line(level, message)
    os.close(writer)
    lines = read_to_end(reader).splitlines()
    assert lines[0::2] == lines[1::2]
    assert [line[19:] for line in lines[0::2]] == [".702 INFO    hello", ".702 WARNING not a %s", ".702 INFO    hello"]


def test_a_long_line_is_cut_and_says_so(pipe):
    reader, writer = pipe
    reading = Reader(reader)
    reading.start()
    with LogQueue(writer, TextFormatter()) as queue:
        queue.put_line(logging.INFO, "x" * (LONGEST + 3))
        queue.put_line(logging.INFO, "\n" * 1000)
    os.close(writer)
    assert [line[32:] for line in reading.lines()] == [f"{'x' * LONGEST}... (3 more characters)", r"\n" * 1000]


def test_a_queue_drops_lines_as_it_drops_records(pipe):
    reader, writer = pipe
    with LogQueue(writer, TextFormatter(), capacity=100) as queue:
        for _ in range(1000):
            queue.put_line(logging.INFO, "x" * 1000)
        assert queue._records.qsize() <= 100
        dropped = queue._lost[logs.NOT_READ]
        assert dropped > 0
        reading = Reader(reader)
        reading.start()
    os.close(writer)
    lines = reading.lines()
    assert sum(line.endswith("x") for line in lines) == 1000 - dropped
    assert dropped_by(lines)[1] == dropped


@pytest.mark.parametrize("where", ["logger", "parent"])
def test_a_handler_of_the_programs_own_beside_the_queue_gets_records(pipe, logger, hold_session, where):
    reader, writer = pipe
    listener = Listener()
    logger.parent = logging.Logger("parent")
    with LogQueue(writer, TextFormatter()) as queue:
        logger.parent.addHandler(queue)
        (logger if where == "logger" else logger.parent).addHandler(listener)
        hold_session(QueueLoggingMixin, echo.LoggingMixin)
    os.close(writer)
    events = ["connected", "received", "sent", "received", "disconnected"]
    assert [record.event for record in listener.records] == events
    assert [line.split()[4] for line in read_to_end(reader).splitlines()] == [
        event + ":" * (event == "disconnected") for event in events
    ]


def test_a_json_log_gets_the_fields(pipe, logger, hold_session):
    reader, writer = pipe
    with LogQueue(writer, JsonFormatter()) as queue:
        logger.addHandler(queue)
        peer = hold_session(QueueLoggingMixin, echo.LoggingMixin)
    os.close(writer)
    received = json.loads(read_to_end(reader).splitlines()[1])
    assert (received["event"], received["size"], received["peer"]) == ("received", 5, peer)
    assert received["message"] == f"{peer} received 5 bytes: hello"


def test_lines_are_enough_only_for_a_text_queue_that_nothing_filters_and_no_other_handler_shares(
    pipe, logger, monkeypatch
):
    class Record(logging.LogRecord):
        pass

    def everything(record):
        return True

    logger.parent = logging.Logger("parent")
    with LogQueue(pipe[1], TextFormatter()) as queue:
        assert only_queue(logger) is None  # there is no handler
        logger.parent.addHandler(queue)
        assert only_queue(logger) is queue
        for filtered in (logger, queue):
            filtered.addFilter(everything)
            assert only_queue(logger) is None
            filtered.removeFilter(everything)
        queue.setLevel("WARNING")
        assert only_queue(logger) is None
        queue.setLevel("NOTSET")
        logging.setLogRecordFactory(Record)
        try:
            assert only_queue(logger) is None
        finally:
            logging.setLogRecordFactory(logging.LogRecord)
        logger.propagate = False
        assert only_queue(logger) is None
        logger.propagate = True
        for name in ("_log", "makeRecord", "handle", "callHandlers"):
            logger.__class__ = type("Own", (logging.Logger,), {name: lambda *_: None})
            assert only_queue(logger) is None
            logger.__class__ = logging.Logger
            for place in (logging.Logger, logger):
                with monkeypatch.context() as patch:
                    patch.setattr(place, name, lambda *_: None)
                    assert only_queue(logger) is None
        assert only_queue(logger) is queue
        for formatter in (ColorFormatter(), TextFormatter(with_thread=True)):  # these formats need more than a line has
            queue.formatter = formatter
            assert only_queue(logger) is None
        queue.formatter = JsonFormatter()
        assert only_queue(logger) is None
        logger.parent.removeHandler(queue)
        logger.addHandler(Listener())
        assert only_queue(logger) is None


# Several processes that write to one pipe.


def write_through_shared_queues(pipe, names, log):
    """For each name, a queue writes to the pipe what ``log(logger, name)`` logs, all at once; return the lines."""
    reader, writer = pipe
    reading = Reader(reader)

    def write(name):
        own = logging.Logger(name)
        with LogQueue(writer, logging.Formatter("%(name)s %(message)s.")) as queue:
            own.addHandler(queue)
            log(own, name)

    writers = [threading.Thread(target=write, args=(name,)) for name in names]
    for each in writers:
        each.start()
    eventually(lambda: not has_room(writer))  # it is full: each of them waits for room
    reading.start()
    for each in writers:
        each.join(DEADLINE)
        assert not each.is_alive()
    os.close(writer)
    return reading.lines()


@posix_pipes
def test_lines_of_several_shared_queues_stay_whole_and_in_each_ones_order(pipe):
    def log(logger, name):
        choice = random.Random(name)
        for number in range(1000):
            logger.info("%d %s", number, name * choice.randrange(500))

    seen = {name: [] for name in "abc"}
    for line in write_through_shared_queues(pipe, "abc", log):
        name, number, rest = line.split(" ")
        assert rest == name * (len(rest) - 1) + "."
        seen[name].append(int(number))
    assert seen == {name: list(range(1000)) for name in "abc"}


@posix_pipes
def test_lines_of_several_shared_queues_stay_whole_in_any_script(pipe):
    """The text log does not escape other scripts, so a character may take several bytes."""

    def log(logger, name):
        for number in range(1000):
            logger.info(name * (number % 300))

    lines = write_through_shared_queues(pipe, "\u20ac\u20ad\u20ae", log)
    assert len(lines) == 3000
    assert [line for line in lines if not re.fullmatch(rf"(.) {line[0]}*\.", line)] == []


def test_a_line_longer_than_a_pipe_takes_whole_is_written_all_the_same(pipe, logger):
    reader, writer = pipe
    reading = Reader(reader)
    reading.start()
    with LogQueue(writer, logging.Formatter("%(message)s")) as queue:
        logger.addHandler(queue)
        for size in (10, 200_000, 10):
            logger.info("x" * size)
    os.close(writer)
    assert [len(line) for line in reading.lines()] == [10, 200_000, 10]


def test_a_shared_queue_reports_dropped_records(pipe, logger):
    reader, writer = pipe
    with LogQueue(writer, logging.Formatter("%(message)s"), capacity=10) as queue:
        logger.addHandler(queue)
        for number in range(1000):
            logger.info("%d %s", number, "x" * 1000)
        dropped = queue._lost[logs.NOT_READ]
        reading = Reader(reader)
        reading.start()
    os.close(writer)
    lines = reading.lines()
    notes, count = dropped_by(lines)
    assert 0 < dropped == count
    assert len(lines) == 1000 - dropped + len(notes)


def test_threads_that_log_at_once_lose_no_line_and_double_none(pipe, logger):
    reader, writer = pipe
    reading = Reader(reader)
    reading.start()

    def log(name):
        for number in range(300):
            logger.info("%s%d", name, number)

    with LogQueue(writer, logging.Formatter("%(message)s")) as queue:
        logger.addHandler(queue)
        threads = [threading.Thread(target=log, args=(name,)) for name in "abcdef"]
        for each in threads:
            each.start()
        for each in threads:
            each.join(DEADLINE)
    os.close(writer)
    lines = reading.lines()
    assert [[line for line in lines if line[0] == name] for name in "abcdef"] == [
        [f"{name}{number}" for number in range(300)] for name in "abcdef"
    ]
    assert not queue._lost[logs.NOT_READ]


# The direct log, that of the workers' parent.


def test_a_direct_log_writes_at_once_and_has_no_thread(pipe, logger):
    reader, writer = pipe
    before = threading.enumerate()
    with ended(DirectLog(writer, logging.Formatter("%(levelname)s %(message)s"))) as direct:
        logger.addHandler(direct)
        logger.warning("one %d", 1)
        assert os.read(reader, 1000) == b"WARNING one 1\n"
        logger.info("two \ud800 \u20ac")
        assert os.read(reader, 1000) == "INFO two \\ud800 \u20ac\n".encode()
        assert threading.enumerate() == before


@posix_pipes
def test_a_direct_log_that_is_not_read_drops_records_and_does_not_wait(pipe, logger):
    reader, writer = pipe
    with ended(DirectLog(writer, logging.Formatter("%(message)s"))) as direct:
        logger.addHandler(direct)
        for number in range(5000):  # far more than a pipe holds; this would hang
            logger.info("%04d %s", number, "x" * 94)
        os.set_blocking(reader, False)
        lines = os.read(reader, 10_000_000).decode().splitlines()
        assert 0 < len(lines) < 5000
        assert [int(line.split()[0]) for line in lines] == list(range(len(lines)))
        logger.info("flows again")
        assert os.read(reader, 1000).decode().splitlines() == [
            "flows again",
            f"{5000 - len(lines)} log records dropped: the log was not read",
        ]


def test_each_loss_is_reported_once_if_only_some_of_the_reports_are_written(pipe, logger, monkeypatch):
    reader, writer = pipe
    with ended(DirectLog(writer, logging.Formatter("%(message)s"))) as direct:
        logger.addHandler(direct)
        direct._drop("first", 5)
        direct._drop("second", 7)
        with monkeypatch.context() as patched:
            write = direct._output.write
            patched.setattr(direct._output, "write", lambda lines: write(lines[:2]) + len(lines[2:]))
            logger.info("one")
        logger.info("two")
        assert os.read(reader, 1000).decode().splitlines() == [
            "one",
            "5 log records dropped: first",
            "two",
            "7 log records dropped: second",
        ]


@posix_pipes
def test_a_direct_log_does_not_wait_when_another_process_fills_the_pipe_after_its_look(pipe, logger, monkeypatch):
    reader, writer = pipe
    looked = select.select

    def look(*arguments):
        result = looked(*arguments)
        os.set_blocking(writer, False)
        try:
            while True:
                os.write(writer, b"x" * 4096)  # as a worker's log would
        except BlockingIOError:
            os.set_blocking(writer, True)
        return result

    with ended(DirectLog(writer, logging.Formatter("%(message)s"))) as direct:
        logger.addHandler(direct)
        with monkeypatch.context() as patched:
            patched.setattr(select, "select", look)
            thread = threading.Thread(target=logger.info, args=("hello",), daemon=True)
            thread.start()
            thread.join(DEADLINE)
            stuck = thread.is_alive()
        os.read(reader, 1_000_000)
        thread.join(DEADLINE)
    assert not stuck


@posix_pipes
def test_a_line_that_a_parent_has_begun_is_ended_by_its_first_child_and_not_finished(pipe, logger, monkeypatch):
    """Row 67."""
    reader, writer = pipe
    lock = new_lock()
    monkeypatch.setattr(forking, "forks", 0)
    with ended(DirectLog(writer, logging.Formatter("%(message)s"), lock)) as direct:
        logger.addHandler(direct)
        direct._output.patience = 0
        logger.info("x" * (1 << 20))  # on its way
        assert set(os.read(reader, 1 << 20)) == set(b"x")
        child = os.fork()
        if not child:
            logger.info("child")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        logger.info("parent")
        assert os.read(reader, 1 << 20) == b"\nchild\nparent\n"
    lock.close()


class Interrupts:
    """Calls ``act`` once in the middle of a write to a pipe: a line that is longer than the pipe is written in part."""

    def __init__(self, monkeypatch, act):
        self._write = os.write
        self._act = act
        monkeypatch.setattr(os, "write", self)

    def __call__(self, descriptor, data):
        written = self._write(descriptor, data)
        act, self._act = self._act, lambda: None
        act()
        return written


@posix_pipes
def test_what_a_signal_handler_or_a_finalizer_logs_does_not_come_into_the_line_that_it_interrupts(pipe, monkeypatch):
    reader, writer = pipe
    with ended(DirectLog(writer, logging.Formatter("%(message)s"))) as direct:
        # Not through a logger: since 3.13.4 that drops what is logged inside its own call.
        records = [logging.makeLogRecord({"msg": text}) for text in ("x" * 10_000, "next", "interrupting", "again")]
        Interrupts(monkeypatch, lambda: [direct.handle(record) for record in records[2:]])
        direct.handle(records[0])
        direct.handle(records[1])
    assert os.read(reader, 1 << 20) == b"x" * 10_000 + b"\ninterrupting\nagain\nnext\n"


@posix_pipes
def test_a_line_in_which_a_signal_handler_raises_is_finished_before_the_next(pipe, logger, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    reader, writer = pipe
    with ended(DirectLog(writer, logging.Formatter("%(message)s"))) as direct:
        logger.addHandler(direct)
        with monkeypatch.context() as patched:
            patched.setattr(logs_output, "_can_write", lambda *_: interrupt())  # after the first part
            patched.setattr(direct._output, "has_room", lambda: True)
            with pytest.raises(KeyboardInterrupt):
                logger.info("x" * 10_000)
        logger.info("next")
    assert os.read(reader, 1 << 20) == b"x" * 10_000 + b"\nnext\n"


@pytest.mark.parametrize("closed", ["reader", "writer"])
def test_a_direct_log_that_has_nowhere_to_write_is_silent(pipe, logger, closed, capfd):
    os.close(pipe[closed == "writer"])
    with ended(DirectLog(pipe[1], logging.Formatter("%(message)s"))) as direct:
        logger.addHandler(direct)
        for _ in range(10):
            logger.info("hello")
    assert capfd.readouterr() == ("", "")
