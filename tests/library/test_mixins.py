"""The mixins: logging, throttling, transcripts, faults; and their orders."""

import array
import datetime
import io
import itertools
import logging
import multiprocessing
import os
import re
import socket
import struct
import sys
import time
from types import SimpleNamespace

import pytest

import echo
from echo.cli.server.queue_logging import QueueLoggingMixin
from echo.mixins import records as mixin_records
from echo.mixins.throttling import TokenBucket
from support import DEADLINE, Recorder, eventually, read_all, read_exactly


class Logged(echo.LoggingMixin, echo.EchoRequestHandler):
    pass


def records_of(peer, caplog):
    """The records of the session with that client."""
    return [record for record in caplog.records if record.name == "echo.session" and record.peer == peer]


@pytest.fixture
def log_of(serve, dial, caplog):
    """``log_of(handler, data)``: the client's address, and the records of its session, in which it sent ``data``."""

    def hold(handler, data):
        server = serve(handler)
        with caplog.at_level(logging.DEBUG, "echo.session"):
            client = dial(server)
            peer = "127.0.0.1:%d" % client.getsockname()[1]
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            read_all(client)
            eventually(lambda: not server.connections)
        return peer, records_of(peer, caplog)

    return hold


def test_the_log_has_the_start_the_messages_and_the_end_of_a_session(log_of):
    peer, records = log_of(Logged, b"hello\nexit\n")
    assert [record.getMessage() for record in records[:-1]] == [
        f"{peer} connected",
        f"{peer} received 5 bytes: hello",
        f"{peer} sent 5 bytes: hello",
        f"{peer} received 4 bytes: exit",
    ]
    counts = "2 in (1 exit), 1 out; 11 B read, 6 B written"
    assert records[-1].getMessage().startswith(f"{peer} disconnected: exit; {counts}; ")
    assert {record.levelno for record in records} == {logging.INFO}


def test_records_carry_their_figures_as_attributes(log_of):
    peer, records = log_of(Logged, b"hello\n")
    assert [record.event for record in records] == ["connected", "received", "sent", "disconnected"]
    assert {record.peer for record in records} == {peer}
    end = records[-1]
    assert (end.reason, end.messages_in, end.messages_out, end.bytes_in, end.bytes_out) == ("eof", 1, 1, 6, 6)
    assert end.duration_s >= 0


def test_bytes_of_the_peer_cannot_forge_a_line_or_control_a_terminal(log_of):
    """Row 29."""
    _, records = log_of(Logged, b"a\r\x1b[2J\xff\\n\x00\n")
    assert records[1].getMessage().endswith(r": a\r\x1b[2J\xff\\n\x00")
    assert all(record.getMessage().isprintable() for record in records)


def test_a_long_message_is_shortened(log_of):
    class Short(Logged):
        shown_bytes = 10

    _, records = log_of(Short, b"x" * 1000 + b"\n")
    assert records[1].getMessage().endswith("received 1000 bytes: xxxxxxxxxx... (990 more bytes)")


@pytest.mark.parametrize(
    "kind", [bytearray, memoryview, lambda data: array.array("H", data)], ids=["bytearray", "view", "array"]
)
def test_what_can_be_sent_without_the_log_can_be_sent_with_it(log_of, kind):
    class Answers(Logged):
        framing = echo.RawFraming()

        def message_received(self, message):
            self.send(kind(message))

    _, records = log_of(Answers, b"hi")
    assert [(record.event, record.size) for record in records[1:-1]] == [("received", 2), ("sent", 2)]
    assert (records[2].text, records[-1].reason) == ("hi", "eof")


def test_a_last_line_without_its_end_is_logged_too(log_of):
    _, records = log_of(Logged, b"rest")
    assert records[1].getMessage().endswith("received 4 bytes without an end: rest")


def test_a_log_behind_a_mixin_that_asks_for_a_password_never_has_it(log_of):
    class Asks(echo.MessageRequestHandler):
        def dispatch_made(self):
            self.known = False

        def dispatch_message(self, message):
            if self.known:
                super().dispatch_message(message)
            elif message == b"secret":
                self.known = True
                super().dispatch_made()

    class Private(Asks, echo.LoggingMixin, echo.EchoRequestHandler):
        pass

    for sent in (b"secret\n", b"secret", b"guess\nsec", b"secret\nhello\nrest"):
        _, records = log_of(Private, sent)
        logged = " ".join(record.getMessage() for record in records)
        assert "sec" not in logged and ("hello" in logged and "rest" in logged) == (b"hello" in sent)


def test_a_session_that_its_handler_closes_has_no_exit_among_its_messages(log_of):
    class Once(echo.LoggingMixin, echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(message)
            self.close()

    _, records = log_of(Once, b"hello\n")
    assert "disconnected: exit; 1 in, 1 out; 6 B read, 6 B written;" in records[-1].getMessage()


def test_the_end_counts_replies_before_an_exception(log_of):
    class Failing(echo.LoggingMixin, echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(message)
            raise ZeroDivisionError

    _, records = log_of(Failing, b"hello\n")
    assert "disconnected: error; 1 in, 1 out; 6 B read, 6 B written;" in records[-1].getMessage()


def test_what_connection_lost_sends_counts_in_the_record_of_the_end(log_of):
    class Polite(Logged):
        def connection_lost(self, reason):
            self.send(b"goodbye")

    _, records = log_of(Polite, b"hello\n")
    assert [record.event for record in records][-2:] == ["sent", "disconnected"]
    assert "disconnected: eof; 1 in, 2 out; 6 B read, 14 B written;" in records[-1].getMessage()


def test_the_end_is_logged_although_a_mixin_failed_before_the_beginning(log_of):
    class Failing(echo.MessageRequestHandler):
        def dispatch_made(self):
            if self.session == 1:
                raise ZeroDivisionError
            super().dispatch_made()

    _, records = log_of(type("Handler", (Failing, Logged), {}), b"")
    assert [record.event for record in records] == ["disconnected"]


def test_the_end_is_logged_although_a_hook_failed_at_the_beginning(log_of):
    class Failing(echo.MessageRequestHandler):
        def connection_made(self):
            raise ZeroDivisionError

    _, records = log_of(type("Handler", (Failing, Logged), {}), b"")
    assert [record.event for record in records] == ["connected", "disconnected"]


def test_messages_can_be_left_out(log_of):
    class Quiet(Logged):
        message_level = None

    _, records = log_of(Quiet, b"hello\n")
    assert [record.event for record in records] == ["connected", "disconnected"]


def test_levels_are_class_attributes(log_of):
    class Other(Logged):
        session_level = logging.WARNING
        message_level = logging.DEBUG

    _, records = log_of(Other, b"hello\n")
    assert [record.levelname for record in records] == ["WARNING", "DEBUG", "DEBUG", "WARNING"]


def test_the_end_is_logged_even_if_the_handlers_own_hook_raises(log_of):
    class Failing(echo.LoggingMixin, echo.MessageRequestHandler):
        def connection_lost(self, reason):
            super().connection_lost(reason)

    class Inner(echo.EchoRequestHandler):
        def connection_lost(self, reason):
            raise ZeroDivisionError

    _, records = log_of(type("Both", (Failing, Inner), {}), b"hello\n")
    assert records[-1].event == "disconnected"


def test_a_filter_or_handler_that_raises_costs_its_records_and_no_session(serve, dial, capsys):
    log = logging.Logger("test")

    class Broken(logging.Handler):
        def emit(self, record):
            raise RuntimeError("a broken handler")

    log.addHandler(Broken())
    with dial(serve(type("Handler", (Logged,), {"log": log}))) as client:
        client.sendall(b"hello\n")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"hello\n"
    assert "RuntimeError: a broken handler" in capsys.readouterr().err


def test_a_closed_standard_error_costs_no_session(serve, dial, monkeypatch):
    stream = io.StringIO()
    log = logging.Logger("test")
    log.addHandler(logging.StreamHandler(stream))
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with dial(serve(type("Handler", (Logged,), {"log": log}))) as client:
        client.sendall(b"hello\n")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"hello\n"


@pytest.mark.parametrize("mixins", [(), (QueueLoggingMixin,)], ids=["library", "command"])
def test_a_logger_adapter_logs_each_record(serve, dial, caplog, mixins):
    caplog.set_level(logging.INFO)

    class Named(logging.LoggerAdapter):
        def process(self, msg, kwargs):
            return f"[ours] {msg}", kwargs

    # Python's own adapters replace extra: theirs and the session's are both attributes, also of one in another.
    log = logging.LoggerAdapter(Named(logging.getLogger("named"), {}), {"app": "ours", "session": "ours"})
    with dial(serve(type("Handler", (*mixins, Logged), {"log": log}))) as client:
        client.sendall(b"100%\n")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"100%\n"
    records = [record for record in caplog.records if record.name == "named"]
    assert [record.event for record in records] == ["connected", "received", "sent", "disconnected"]
    assert {(record.app, record.session) for record in records} == {("ours", "ours")}
    assert records[1].getMessage().startswith("[ours] 127.0.0.1:") and records[1].getMessage().endswith(": 100%")


@pytest.mark.parametrize("method", ["process", "log"])
def test_an_adapters_own_methods_decide_what_is_in_a_record(serve, dial, caplog, method):
    caplog.set_level(logging.INFO)

    class Masks(logging.LoggerAdapter):
        def process(self, msg, kwargs):
            return "masked", {"extra": {**kwargs["extra"], "peer": "masked"}}

        def log(self, level, msg, *args, extra):
            self.logger.log(level, "masked", extra={**extra, "peer": "masked"})

    delattr(Masks, "log" if method == "process" else "process")
    handler = type("Handler", (Logged,), {"log": Masks(logging.getLogger("masked"), {})})
    with dial(serve(handler)) as client:
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""
    records = [record for record in caplog.records if record.name == "masked"]
    assert [(record.event, record.peer, record.getMessage()) for record in records] == [
        ("connected", "masked", "masked"),
        ("disconnected", "masked", "masked"),
    ]


@pytest.mark.parametrize("mixins", [(), (QueueLoggingMixin,)], ids=["library", "command"])
@pytest.mark.parametrize("is_object", [False, True], ids=["class", "object"])
@pytest.mark.parametrize("method", ["makeRecord", "_log", "log"])
def test_a_logger_class_of_the_programs_own_makes_each_record(serve, dial, mixins, method, is_object):
    """So does a method that a program has replaced in one logger."""
    records = []

    class Own(logging.Logger):
        def makeRecord(self, *args):  # noqa: N802 (logging's name)
            record = super().makeRecord(*args)
            record.request = "ours"
            return record

        def _log(self, level, msg, args, extra=None, **more):
            super()._log(level, msg, args, extra={**(extra or {}), "request": "ours"}, **more)

        def log(self, level, msg, *args, extra=None, **more):
            super().log(level, msg, *args, extra={**(extra or {}), "request": "ours"}, **more)

        def handle(self, record):
            records.append((record.event, record.request))

    log = Own("own", logging.INFO)
    if is_object:
        setattr(log, method, getattr(log, method))
    for name in {"makeRecord", "_log", "log"} - (set() if is_object else {method}):
        delattr(Own, name)
    handler = type("Handler", (*mixins, Logged), {"log": log})
    with dial(serve(handler)) as client:
        client.sendall(b"hello\n")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"hello\n"
    assert records == [(event, "ours") for event in ("connected", "received", "sent", "disconnected")]


class Wrapper:
    """As one of wrapt: it has all attributes of the function that it wraps."""

    def __init__(self, wrapped, seen):
        self.wrapped, self.seen = wrapped, seen

    def __getattr__(self, name):
        return getattr(self.wrapped, name)

    def __get__(self, instance, owner):
        return Wrapper(self.wrapped.__get__(instance, owner), self.seen)

    def __call__(self, *args, **options):
        self.seen.append(args)
        return self.wrapped(*args, **options)


@pytest.mark.parametrize("mixins", [(), (QueueLoggingMixin,)], ids=["library", "command"])
@pytest.mark.parametrize("method", ["makeRecord", "_log", "log"])
def test_a_method_that_a_tool_has_wrapped_in_all_loggers_is_called(serve, dial, monkeypatch, mixins, method):
    """Row 85: tools that trace programs add the number of the request. Their wrappers look like what they wrap."""
    seen = []
    monkeypatch.setattr(logging.Logger, method, Wrapper(getattr(logging.Logger, method), seen))
    handler = type("Handler", (*mixins, Logged), {"log": logging.getLogger("of the program")})
    handler.log.setLevel(logging.INFO)
    with dial(serve(handler)) as client:
        client.sendall(b"hello\n")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"hello\n"
    assert len([args for args in seen if "connected" in str(args) or "hello" in str(args)]) == 4


def test_the_records_of_a_session_are_like_others(serve, dial, monkeypatch):
    """Row 85: filters that take ``args`` apart, and formats with the name of the function or the process, failed."""
    records = []

    class Log(logging.Handler):
        def emit(self, record):
            records.append(record)

    log = logging.Logger("own")
    log.addHandler(Log())
    monkeypatch.setattr(multiprocessing.current_process(), "_name", "web-7")
    monkeypatch.setattr(mixin_records, "_template", {})  # as in a new process
    with dial(serve(type("Handler", (Logged,), {"log": log}))) as client:
        client.sendall(b"hello\n")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"hello\n"
    eventually(lambda: len(records) == 4)
    log.info("another")
    other = vars(records.pop())
    for record in records:
        fields = {name: value for name, value in vars(record).items() if name in other}
        assert {name: type(value) for name, value in fields.items()} == {
            name: type(value) for name, value in other.items()
        }
        assert record.args == () and record.processName == "web-7" and os.path.isfile(record.pathname)
        assert "{funcName:10}".format(**fields) == "emit      "


def test_the_leftmost_mixin_is_the_outermost(serve, dial):
    order = []

    def mixin(name):
        class Mixin(echo.MessageRequestHandler):
            def message_received(self, message):
                order.append(name)
                super().message_received(message)

        return Mixin

    class Handler(mixin("left"), mixin("right"), echo.EchoRequestHandler):
        pass

    handler = Recorder.of(Handler)
    client = dial(serve(handler))
    client.sendall(b"a\nexit\n")
    assert read_all(client) == b"a\n"
    assert order == ["left", "right"] * 2


@pytest.mark.parametrize("has_step", [False, True])
def test_a_session_that_a_mixin_did_not_let_begin_handles_no_message(serve, dial, caplog, has_step):
    """Row 61: a mixin that rejects a client so, and keeps no message back, rejected nobody."""

    class Gate(echo.MessageRequestHandler):
        def dispatch_made(self):
            pass

    class Sees(echo.MessageRequestHandler):
        def dispatch_message(self, message):
            super().dispatch_message(message)

    handler = Recorder.of(type("Handler", (*([Sees] if has_step else []), Gate, echo.EchoRequestHandler), {}))
    client = dial(serve(handler))
    client.sendall(b"hello\nhello\n")
    assert read_all(client) == b""
    assert handler.events == []
    assert "RuntimeError: a message came before the session began; a mixin's dispatch_made() has to call" in caplog.text


# ThrottlingMixin.


def throttled(*rates):
    class Throttled(echo.ThrottlingMixin, echo.EchoRequestHandler):
        messages_per_second, bytes_per_second = rates

    return Throttled


OWN = (
    "_thread _closing _closed _draining _begun _running _lock _queue _file _timer _state _task _reason _buckets _lifted"
)


def test_a_handler_may_have_private_attributes_of_its_own_by_any_name(serve, dial):
    """``self._closing = threading.Event()`` ended its session at once."""

    class Own(echo.LoggingMixin, echo.ThrottlingMixin, echo.EchoRequestHandler):
        def connection_made(self):
            for name in OWN.split():
                setattr(self, name, name)

        def connection_lost(self, reason):
            kept.append([name for name in OWN.split() if getattr(self, name) == name])

    kept = []
    server = serve(Own)
    client = dial(server)
    client.sendall(b"one\ntwo\nexit\n")
    assert read_all(client) == b"one\ntwo\n"
    eventually(lambda: server.stats().ended == {"exit": 1})
    assert kept == [OWN.split()]


def test_a_bucket_gives_its_burst_at_once_and_then_its_rate():
    bucket = TokenBucket(rate=10, burst=5, now=0.0)
    assert [bucket.take(1, 0.0) for _ in range(5)] == [0.0] * 5
    assert bucket.take(1, 0.0) == pytest.approx(0.1)
    assert bucket.take(1, 0.2) == 0.0
    assert bucket.take(1, 0.2) == pytest.approx(0.1)
    assert bucket.take(5, 100.0) == 0.0
    assert bucket.take(1, 100.0) == pytest.approx(0.1)


@pytest.mark.parametrize("rates", [(200, None), (None, 200 * 9), (200, 1e9)])
def test_messages_are_handled_no_faster_than_the_rate_and_none_is_lost(serve, dial, rates):
    handler = throttled(*rates)
    handler.burst_seconds = 0.025  # five messages
    client = dial(serve(handler))
    data = b"".join(b"line %04d\n" % number for number in range(30))
    began = time.monotonic()
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
    assert read_all(client) == data
    assert time.monotonic() - began > 0.12  # 25 of them at 200 a second take 0.125 s, less what rounding may take


def test_replies_go_out_before_the_session_waits(serve, dial):
    handler = throttled(0.001, None)
    handler.burst_seconds = 1000.0  # one message, then a thousand seconds
    server = serve(handler)
    client = dial(server)
    client.sendall(b"first\nsecond\n")
    assert read_exactly(client, 6) == b"first\n"


def test_a_throttled_sender_feels_backpressure(serve, dial):
    handler = throttled(0.001, None)
    handler.burst_seconds = 1000.0
    client = dial(serve(handler))
    client.settimeout(0.2)
    with pytest.raises(socket.timeout):
        for _ in range(10_000):  # far more than all buffers hold
            client.sendall(b"x" * 60_000 + b"\n")


@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_stop_lifts_the_limit(serve, dial, how):
    class Throttled(throttled(0.001, None)):
        burst_seconds = 1000.0

        def connection_made(self):
            sessions.append(self)

    sessions = []
    server = serve(Throttled, shutdown_timeout=DEADLINE)
    client = dial(server)
    client.sendall(b"first\nsecond\nthird\n")
    assert read_exactly(client, 6) == b"first\n"
    if how == "stop":
        assert server.stop() is True
        assert read_all(client) == b"second\nthird\n"
    else:
        sessions[0].close()
        assert read_all(client) in (b"", b"second\n")  # the message that the throttle held back


# TranscriptMixin.


def transcripts(folder):
    return sorted(os.path.join(folder, name) for name in os.listdir(folder))


def test_a_transcript_holds_every_byte_with_its_direction_and_time(serve, dial, tmp_path):
    class Kept(echo.TranscriptMixin, echo.EchoRequestHandler):
        transcript_folder = str(tmp_path / "new" / "folder")

    server = serve(Kept)
    client = dial(server)
    data = b"hello\r\n" + bytes(range(256)) + b"\nexit\n"
    client.sendall(data)
    read_all(client)
    name = "127.0.0.1_%d" % client.getsockname()[1]
    client.close()
    eventually(lambda: not server.connections)
    (path,) = transcripts(Kept.transcript_folder)
    assert name in path
    found = {">": b"", "<": b""}
    with open(path, encoding="utf-8") as file:
        for line in file:
            match = re.fullmatch(
                r"\d\d:\d\d:\d\d\.\d{3} ([<>]) ([0-9a-f]{8})  ((?:[0-9a-f]{2} ?)+) +([ -~]{1,16})\n", line
            )
            assert match, line
            direction, offset, dump = match.group(1, 2, 3)
            assert int(offset, 16) == len(found[direction])
            found[direction] += bytes.fromhex(dump)
    assert found == {">": data, "<": data[: -len(b"exit\n")]}


def test_a_peer_with_a_long_name_has_a_transcript(serve, dial, tmp_path):
    class Kept(echo.TranscriptMixin, echo.EchoRequestHandler):
        transcript_folder = str(tmp_path)

    path = b"\x01" * 108  # each is escaped
    header = b"\r\n\r\n\0\r\nQUIT\n" + b"\x21\x31" + struct.pack("!H108s108s", 216, path, b"")
    sock = dial(serve(Kept, proxy_protocol=True).server_address)
    sock.sendall(header + b"hello\n")
    assert read_exactly(sock, 6) == b"hello\n"
    assert len(transcripts(tmp_path)) == 1


def test_sessions_of_the_same_moment_and_peer_have_a_transcript_each(serve, dial, tmp_path, monkeypatch):
    """Workers of a Unix socket: all clients from one process have the same name."""

    class Kept(echo.TranscriptMixin, echo.EchoRequestHandler):
        transcript_folder = str(tmp_path)

    class Stopped(datetime.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 11, 29)

    monkeypatch.setattr("echo.mixins.transcript.datetime", SimpleNamespace(datetime=Stopped))
    header = b"\r\n\r\n\0\r\nQUIT\n" + b"\x21\x31" + struct.pack("!H108s108s", 216, b"/peer", b"")
    server = serve(Kept, proxy_protocol=True)
    for _ in range(3):
        sock = dial(server)
        sock.sendall(header + b"hello\n")
        assert read_exactly(sock, 6) == b"hello\n"
    names = [f"20261129-000000.000000-_peer{end}.txt" for end in ("-2", "-3", "")]
    assert sorted(os.listdir(tmp_path)) == names
    assert {len((tmp_path / name).read_text().splitlines()) for name in names} == {2}  # what came, and what went


def test_a_transcript_that_cannot_be_written_ends_its_session_as_an_error(serve, dial, tmp_path, caplog):
    class Kept(echo.TranscriptMixin, echo.EchoRequestHandler):
        transcript_folder = str(tmp_path / "file")

    (tmp_path / "file").write_text("in the way")
    server = serve(Kept)
    client = dial(server)
    assert read_all(client) == b""
    client.close()
    eventually(lambda: server.stats().ended == {"error": 1})


class FullDisk(io.StringIO):
    def __init__(self, refused):
        super().__init__()
        self.refused = refused

    def write(self, text):
        if self.refused in text:
            raise OSError(28, "No space left on device")
        return super().write(text)


class OnAFullDisk(echo.TranscriptMixin):
    """Its transcript takes no line with ``refused`` in it."""

    refused = ""

    def stream(self):
        stream = super().stream()
        stream._file.close()
        stream._file = FullDisk(self.refused)
        return stream


def test_a_full_disk_ends_the_session_of_a_transcript_as_an_error(serve, dial, tmp_path):
    class Kept(OnAFullDisk, echo.EchoRequestHandler):
        transcript_folder = str(tmp_path)

    server = serve(Kept)
    client = dial(server)
    client.sendall(b"hello\n")
    assert read_all(client) == b""
    client.close()
    eventually(lambda: server.stats().ended == {"error": 1})


def test_a_full_disk_at_the_last_reply_skips_no_hook(serve, dial, tmp_path):
    class Kept(OnAFullDisk, echo.MessageRequestHandler):
        transcript_folder = str(tmp_path)
        refused = " < "

        def message_received(self, message):
            self.send(message)
            raise ZeroDivisionError

    handler = Recorder.of(Kept)
    server = serve(handler)
    client = dial(server)
    client.sendall(b"hello\n")
    assert read_all(client) == b""
    client.close()
    eventually(lambda: server.stats().ended == {"error": 1})
    assert handler.events == ["made", b"hello", "lost"]
    assert handler.reasons == ["error"]


# FaultMixin.


def faulty(**faults):
    return type("Faulty", (echo.FaultMixin, echo.EchoRequestHandler), faults)


def replies_of(serve, handler, sessions, data):
    server = serve(handler)
    replies = []
    for _ in range(sessions):
        with socket.create_connection(server.server_address, DEADLINE) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            replies.append(read_all(sock))
    return replies


def test_without_a_fault_everything_comes_back(serve):
    assert replies_of(serve, faulty(), 1, b"hello\n" * 1000) == [b"hello\n" * 1000]


@pytest.mark.parametrize("chunk", [None, 7])
def test_corrupt_every_flips_one_bit_in_each_block_of_that_many_bytes(serve, chunk):
    data = b"0123456789abcde\n" * 1000
    (reply,) = replies_of(serve, faulty(corrupt_every=1000, chunk=chunk), 1, data)
    assert len(reply) == len(data)
    wrong = [index for index, (a, b) in enumerate(zip(data, reply)) if a != b]
    assert [index // 1000 for index in wrong] == list(range(16))
    assert all(bin(data[index] ^ reply[index]).count("1") == 1 for index in wrong)


def test_the_same_seed_gives_the_same_faults_and_another_seed_others(serve):
    data = b"0123456789abcde\n" * 100
    first = replies_of(serve, faulty(corrupt_every=100), 3, data)
    again = replies_of(serve, faulty(corrupt_every=100), 3, data)
    other = replies_of(serve, faulty(corrupt_every=100, seed="other"), 3, data)
    assert first == again
    assert len({*first, *other}) == 6


def test_replies_are_cut_into_chunks_and_none_is_lost(serve):
    calls = []

    class Counting(faulty(chunk=5)):
        def stream(self):
            faulty_socket = super().stream()
            real = faulty_socket._sock

            class Spy:
                def __getattr__(self, name):
                    return getattr(real, name)

                def sendall(self, data):
                    calls.append(len(data))
                    real.sendall(data)

            faulty_socket._sock = Spy()
            return faulty_socket

    assert replies_of(serve, Counting, 1, b"hello\n" * 100) == [b"hello\n" * 100]
    assert max(calls) <= 5 and len(set(calls)) > 1 and sum(calls) == 600


def test_replies_are_delayed(serve):
    began = time.monotonic()
    assert replies_of(serve, faulty(delay=0.02, chunk=10), 1, b"hello\n" * 20) == [b"hello\n" * 20]
    assert time.monotonic() - began > 0.1  # 0.2 s in all; the same in each run, by its seed


def test_reset_after_resets_the_connection_after_that_many_answers(serve, dial):
    handler = Recorder.of(faulty(reset_after=3))
    client = dial(serve(handler))
    received = b""
    with pytest.raises(ConnectionResetError):
        for number in range(100):
            client.sendall(b"%d\n" % number)
            received += read_exactly(client, 2)
            assert len(received) == 2 * (number + 1)
    assert received == b"0\n1\n2\n"
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["reset"]


# Invalid options.


@pytest.mark.parametrize(
    "mixin, option, value, words",
    [
        (echo.ThrottlingMixin, "messages_per_second", 0, "a rate, of messages or bytes, is 0; it is more than 0"),
        (echo.ThrottlingMixin, "messages_per_second", -1.5, "a rate, of messages or bytes, is -1.5; it is more than 0"),
        (echo.ThrottlingMixin, "bytes_per_second", 0.0, "a rate, of messages or bytes, is 0.0; it is more than 0"),
        (echo.FaultMixin, "chunk", 0, "chunk is 0; it is 1 byte or more"),
        (echo.FaultMixin, "corrupt_every", 0, "corrupt_every is 0; it is 1 byte or more"),
        (echo.FaultMixin, "corrupt_every", -7, "corrupt_every is -7; it is 1 byte or more"),
        (echo.FaultMixin, "delay", -0.1, "delay is -0.1; it is 0 s or more"),
    ],
)
def test_an_invalid_option_ends_each_session_with_one_error_in_the_log(
    serve, dial, caplog, mixin, option, value, words
):
    server = serve(type("Handler", (mixin, echo.EchoRequestHandler), {option: value}))
    for number in (1, 2):
        client = dial(server)
        peer = "127.0.0.1:%d" % client.getsockname()[1]
        assert read_all(client) == b""
        client.close()
        eventually(lambda number=number: server.stats().ended == {"error": number})
        errors = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(errors) == number
        assert errors[-1].exc_info[0] is ValueError
        assert words in str(errors[-1].exc_info[1])
        assert peer in errors[-1].getMessage()


# Orders.


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_the_mixins_work_together_in_any_order(serve, dial, tmp_path, caplog, order):
    mixins = [echo.LoggingMixin, echo.ThrottlingMixin, echo.TranscriptMixin, echo.FaultMixin]
    handler = type(
        "Handler",
        (*(mixins[index] for index in order), echo.EchoRequestHandler),
        {"transcript_folder": str(tmp_path), "chunk": 3, "messages_per_second": 1000.0},
    )
    server = serve(handler)
    client = dial(server)
    with caplog.at_level(logging.INFO, "echo.session"):
        client.sendall(b"one\ntwo\nexit\n")
        peer = "127.0.0.1:%d" % client.getsockname()[1]
        assert read_all(client) == b"one\ntwo\n"
        client.close()
        eventually(lambda: not server.connections)
    assert records_of(peer, caplog)[-1].event == "disconnected"
    assert len(transcripts(str(tmp_path))) == 1
    assert server.stats().ended == {"exit": 1}


@pytest.mark.parametrize("first", ["transcript", "fault"])
def test_a_transcript_before_the_faults_shows_the_reply_and_after_them_the_bytes_sent(serve, dial, tmp_path, first):
    mixins = [echo.TranscriptMixin, echo.FaultMixin]
    if first == "fault":
        mixins.reverse()
    attributes = {"transcript_folder": str(tmp_path), "corrupt_every": 5}
    server = serve(type("Handler", (*mixins, echo.EchoRequestHandler), attributes))
    client = dial(server)
    client.sendall(b"hello\nexit\n")
    received = read_all(client)
    assert received != b"hello\n"
    client.close()
    eventually(lambda: not server.connections)
    with open(transcripts(str(tmp_path))[0], encoding="utf-8") as file:
        (sent,) = [line for line in file if " < " in line]
    shown = bytes.fromhex(sent.split("  ")[1])
    assert shown == (b"hello\n" if first == "transcript" else received)


def test_a_mixin_that_forgets_super_hides_the_handler_and_nothing_else(serve, dial):
    """As documented: the classes to its right do not get the message; the session goes on and ends as usual."""

    class Forgetful(echo.MessageRequestHandler):
        def message_received(self, message):
            pass

    handler = Recorder.of(type("Handler", (Forgetful, echo.EchoRequestHandler), {}))
    server = serve(handler)
    client = dial(server)
    client.sendall(b"hello\n")
    client.shutdown(socket.SHUT_WR)
    assert read_all(client) == b""
    assert handler.ended.wait(DEADLINE)
    assert handler.events == ["made", b"hello", "lost"]
