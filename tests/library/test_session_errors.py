"""An exception in a handler, or while that is reported, ends one session, and the server goes on serving."""

import collections
import errno
import gc
import logging
import re
import signal
import socket
import socketserver
import sys
import threading
from unittest import mock

import pytest

import echo
from echo.server import admission, reporting
from echo.server.reporting import log_event
from echo.text import LONGEST, LONGEST_PART, _SingleLines, format_exception
from support import DEADLINE, eventually, read_all, reset
from support.servers import FailingServer, echoes


def test_handle_error_may_still_answer_on_the_socket(serve, dial):
    class Apologetic(echo.Server):
        def verify_request(self, request, client_address):
            raise ZeroDivisionError

        def handle_error(self, request, client_address):
            request.sendall(b"sorry")

    assert read_all(dial(serve(cls=Apologetic))) == b"sorry"


def test_exceptions_in_the_reporting_itself_do_not_end_the_server(serve, dial, monkeypatch):
    """Row 27: the socket is closed even if reporting fails, and the program's own hook is called."""
    raised = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_type))

    class Worse(echo.Server):
        def handle_error(self, request, client_address):
            raise ZeroDivisionError("in handle_error")

    class Bad(socketserver.BaseRequestHandler):
        def handle(self):
            if self.request.recv(1) == b"!":
                raise ValueError("in the handler")
            self.request.sendall(b"fine")

    server = serve(Bad, cls=Worse)
    bad = dial(server)
    bad.sendall(b"!")
    assert read_all(bad) == b""
    good = dial(server)
    good.sendall(b".")
    assert read_all(good) == b"fine"
    eventually(lambda: raised == [ZeroDivisionError])


class Positional(logging.Logger):
    """Takes arguments as ``logging`` gives them: by position, and all."""

    def makeRecord(self, *arguments):  # noqa: N802
        record = super().makeRecord(*arguments)
        record.everything = arguments[8], arguments[9]
        return record


def test_records_of_the_server_are_made_by_a_method_of_the_program_as_others_are(serve, dial, monkeypatch):
    """Row 85: they were lost, without a word, the traceback of a handler among them."""
    seen = []

    class Collects(logging.Handler):
        def emit(self, record):
            seen.append(record)

    own = Positional("echo.server", logging.INFO)
    own.addHandler(Collects())
    monkeypatch.setattr("echo.server.reporting.log", own)

    class Bad(socketserver.BaseRequestHandler):
        def handle(self):
            raise ValueError("in the handler")

    assert read_all(dial(serve(Bad))) == b""
    (record,) = [each for each in seen if each.exc_info]
    assert record.event == "error" and record.everything[0]["event"] == "error"


@pytest.mark.parametrize("method", ["makeRecord", "_log"])
def test_a_logger_class_of_the_program_makes_the_records_of_the_server_with_their_tracebacks(monkeypatch, method):
    """Row 85: a ``_log`` of its own was passed by, and formats that need what it adds lost all records."""
    records = []

    class Own(logging.Logger):
        def makeRecord(self, *args):  # noqa: N802
            record = super().makeRecord(*args)
            record.request = "ours"
            return record

        def _log(self, level, msg, args, extra=None, **more):
            super()._log(level, msg, args, extra={**(extra or {}), "request": "ours"}, **more)

        def callHandlers(self, record):  # noqa: N802
            records.append(record)

    delattr(Own, "_log" if method == "makeRecord" else "makeRecord")
    own = Own("echo.server", logging.INFO)
    own.addFilter(reporting.log.filters[0])
    monkeypatch.setattr(reporting, "log", own)
    log_event(logging.ERROR, "error", "%s failed", "it", exc_info=ValueError("\x1b"), peer="unix")
    reporting.log_always("statistics", "none")
    assert [(record.event, record.request, record.getMessage(), record.exc_text) for record in records] == [
        ("error", "ours", "it failed", r"ValueError: \x1b"),
        ("statistics", "ours", "none", None),
    ]


def test_a_filter_that_raises_at_a_broken_message_does_not_become_the_end_of_the_session(serve, dial, capsys, caplog):
    """Row 85: any client could make an unhandled exception of it, with a traceback."""

    class Short(echo.EchoRequestHandler):
        framing = echo.LineFraming(10)

    log = logging.getLogger("echo.session")
    log.addFilter(fails := lambda record: record.no_such_attribute)
    try:
        server = serve(Short)
        client = dial(server)
        client.sendall(b"x" * 99 + b"\n")
        assert read_all(client) == b""
        eventually(lambda: server.stats().ended)
    finally:
        log.removeFilter(fails)
    assert "no attribute 'no_such_attribute'" in capsys.readouterr().err
    assert "unhandled" not in caplog.text


def test_a_traceback_is_safe_before_all_filters_and_without_any(monkeypatch):
    """Row 63: filters that a program had added first saw none, and could remove nothing from it."""
    seen = []

    class Log(logging.Handler):
        def handle(self, record):
            seen.append(record.exc_text)

    for filters in ([], [lambda record: seen.append(record.exc_text) or True]):
        monkeypatch.setattr(reporting.log, "filters", filters)
        monkeypatch.setattr(reporting.log, "handlers", [Log()])
        monkeypatch.setattr(reporting.log, "propagate", False)
        log_event(logging.ERROR, "error", "failed", exc_info=ValueError("\x1b"))
    assert seen == [r"ValueError: \x1b"] * 3


def test_a_traceback_that_was_formatted_leaves_nothing_for_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        format_exception(ValueError("hello"))
        # A thread of an earlier test may format one now.
        eventually(lambda: not [each for each in gc.get_objects() if type(each) is _SingleLines])
    finally:
        gc.enable()


def test_a_filter_that_raises_is_printed_and_the_server_goes_on(monkeypatch, capsys):
    """Row 85: the record was lost without a word."""
    monkeypatch.setattr(reporting.log, "filters", [lambda record: record.no_such_attribute])
    log_event(logging.ERROR, "error", "%s failed", "\x1b[2J")
    reporting.log_always("statistics", "none")
    printed = capsys.readouterr().err
    assert printed.count("AttributeError: 'LogRecord' object has no attribute 'no_such_attribute'") == 2
    assert "Message: '%s failed'" in printed and "\x1b" not in printed


def test_a_log_that_raises_costs_no_session_and_does_not_end_the_server(serve, dial):
    """Row 28: a full disk."""

    class Full(logging.Handler):
        def handle(self, record):
            raise OSError(errno.ENOSPC, "No space left on device")

    class Logged(echo.LoggingMixin, echo.EchoRequestHandler):
        pass

    full = Full()
    logging.getLogger("echo").addHandler(full)
    logging.getLogger("echo").setLevel(logging.DEBUG)
    try:
        server = serve(Logged, cls=FailingServer)
        server.faults = [OSError(errno.EMFILE, "full")]
        for _ in range(3):
            client = dial(server)
            client.sendall(b"hello\nexit\n")
            assert read_all(client) == b"hello\n"
            client.close()
        eventually(lambda: not server.connections)
    finally:
        logging.getLogger("echo").removeHandler(full)
        logging.getLogger("echo").setLevel(logging.NOTSET)
    assert echoes(dial(server))


FORGED = "a\r\n2026-01-01 forged\x1b[31m\x85\u2028\ud800"
SHOWN = r"a\r\n2026-01-01 forged\x1b[31m\u0085\u2028\ud800"


def test_what_a_peer_sent_is_escaped_in_records_and_tracebacks_of_a_programs_own_log(serve, dial):
    """Row 63: as exceptions' texts, and with a formatter of the ``logging`` module."""

    class Quota(echo.EchoError):
        reason = FORGED

    class Logged(echo.LoggingMixin, echo.EchoRequestHandler):
        def message_received(self, message):
            if message == b"quota":
                raise self.connection.failed(Quota(FORGED))
            raise ValueError(FORGED)

    class Stock(socketserver.BaseRequestHandler):
        def handle(self):
            raise ConnectionResetError(FORGED)

    lines = []

    class Log(logging.Handler):
        def emit(self, record):
            lines.extend(self.format(record).split("\n"))
            assert not [name for name in ("reason", "peer", "why") if not getattr(record, name, "").isprintable()]

    log = Log()
    log.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    logger = logging.getLogger("echo")
    logger.addHandler(log)
    logger.setLevel(logging.DEBUG)
    try:
        for handler, message in ((Logged, b"quota\n"), (Logged, b"raise\n"), (Stock, b"")):
            server = serve(handler, cls=FailingServer)
            server.faults = [OSError(errno.EMFILE, FORGED), ValueError(FORGED)]
            client = dial(server)
            client.sendall(message)
            assert read_all(client) == b""
            client.close()
            server.stop()
    finally:
        logger.removeHandler(log)
        logger.setLevel(logging.NOTSET)
    assert [line for line in lines if not line.isprintable()] == []
    assert [line for line in lines if line.startswith("2026")] == []
    assert f"ValueError: {SHOWN}" in lines
    assert len([line for line in lines if SHOWN in line]) == 7  # also as the reason, and of get_request()


class Represented(str):
    """A string that is the same as its repr()."""

    def __repr__(self):
        return str(self)


@pytest.mark.parametrize("logger_class", [logging.Logger, Positional])
@pytest.mark.parametrize("failing", ["handler", "filter"])
@pytest.mark.parametrize("error", [ValueError, echo.ProtocolError])
def test_what_logging_prints_of_a_log_handler_that_fails_holds_nothing_of_the_session(
    serve, dial, capsys, monkeypatch, error, failing, logger_class
):
    """Row 63: the session's exception was the context of the handler's."""
    forged = "a\r\n2026-01-01 forged\x1b[31m"

    class Logged(echo.LoggingMixin, echo.EchoRequestHandler):
        log = logger_class("of the program")

        def message_received(self, message):
            raise self.connection.failed(error(forged)) if error is echo.ProtocolError else error(forged)

        def connection_lost(self, reason):
            self.send(b"bye")

    class Log(logging.Handler):
        def emit(self, record):
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError:
                self.handleError(record)

    log = Log()
    if failing == "filter":
        log.addFilter(lambda record: record.no_such_attribute)
    for logger in (logging.getLogger("echo.server"), logging.getLogger("echo.session"), Logged.log):
        monkeypatch.setattr(logger, "handlers", [log])
        monkeypatch.setattr(logger, "propagate", False)
    server = serve(Logged)
    client = dial(server)
    client.sendall(b"raise\n")
    assert read_all(client) == b"bye\n"
    server.stop()
    printed = capsys.readouterr().err
    assert printed.count("No space left on device" if failing == "handler" else "no_such_attribute'") >= 4
    assert "\x1b" not in printed and "\n2026" not in printed


class Note:
    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text  # TypeError if it is not text


def test_no_line_of_a_traceback_in_a_programs_own_log_begins_with_what_a_peer_sent(caplog):
    """Row 63: a note of an exception began a line (since Python 3.11), and looked like a record."""
    forged, shown = FORGED[len("a\r\n") :], SHOWN[len(r"a\r\n") :]

    def lines_of(exc):
        log_event(logging.ERROR, "error", "failed", exc_info=exc)
        return logging.Formatter().format(caplog.records[-1]).split("\n")

    noted = ValueError("hello")
    noted.__notes__ = [forged, Note(f"a\n{forged}"), Note(None)]  # as of add_note()
    notes = [f"  {shown}", rf"  a\n{shown}", "  <note str() failed>"]
    has_notes = sys.version_info >= (3, 11) or "exceptiongroup" in sys.modules  # pytest imports it
    assert lines_of(noted) == ["failed", "ValueError: hello", *(notes if has_notes else [])]
    for number, error in enumerate(
        [
            SyntaxError("hello", ("mine.txt", f"1\n{forged}", 1, "text")),
            SyntaxError(ValueError(f"hello\n{forged}")),
            SyntaxError("hello", (Note(f"mine\n{forged}"), None, None, None)),
            type("Remote", (SyntaxError,), {"__module__": f"mine\n{forged}"})("hello"),
            type(f"Remote\n{forged[:-1]}", (Exception,), {})("hello"),  # a name has no surrogates
            type(forged[:-1], (Exception,), {"__module__": "__main__"})("hello"),
        ]
    ):
        lines = lines_of(error)
        assert lines[0] == "failed" and not [line for line in lines if line.startswith(shown[:-6])], number
        assert shown[:-6] in "".join(lines), number
    noted.__notes__ = collections.deque([forged])
    assert lines_of(noted) == ["failed", "ValueError: hello", *(notes[:1] if has_notes else [])]
    noted.__notes__ = Represented(forged)
    assert lines_of(noted) == ["failed", "ValueError: hello", *(notes[:1] if has_notes else [])]


def test_a_long_text_in_a_record_of_the_server_is_cut(caplog):
    """Row 63: a warning, or the name of a thread, may hold a message of megabytes."""
    for text, shown in (
        ("a\n" * 10, r"a\n" * 10),
        ("\x01" * 1_000_000, r"\x01" * (LONGEST_PART // 4) + "... (989000 more characters)"),
    ):
        log_event(logging.ERROR, "error", "in thread %s: %d", text, 7, why=text)
        record = caplog.records[-1]
        assert (record.getMessage(), record.why) == (f"in thread {shown}: 7", shown)


def test_what_a_framing_quotes_of_a_client_is_cut(serve, dial, caplog):
    class Quotes(echo.EchoRequestHandler):
        def message_received(self, message):
            raise self.connection.failed(echo.ProtocolError("\x01" * 1_000_000))

    client = dial(serve(Quotes))
    client.sendall(b"hello\n")
    assert read_all(client) == b""
    (line,) = [record.getMessage() for record in caplog.records if r"\x01" in record.getMessage()]
    assert len(line) <= LONGEST and line.endswith("... (989000 more characters)")


@pytest.fixture
def factory_sets():
    """``factory_sets(*names)``: from now on a record factory of the program's own sets attributes with these names."""
    python = logging.getLogRecordFactory()

    def install(*names):
        def factory(*args, **kwargs):
            record = python(*args, **kwargs)
            vars(record).update(dict.fromkeys(names, "the program's"))
            return record

        logging.setLogRecordFactory(factory)

    yield install
    logging.setLogRecordFactory(python)


@pytest.mark.parametrize(
    "names", [["session"], ["event"], ["peer"], ["reason"], ["size"], ["drained", "size", "reason", "peer", "event"]]
)
def test_a_record_factory_may_set_attributes_with_the_names_of_ours(serve, dial, caplog, factory_sets, names):
    class Logged(echo.LoggingMixin, echo.EchoRequestHandler):
        framing = echo.LineFraming(64)

        def message_received(self, message):
            if message == b"raise":
                raise ValueError("boo")
            self.send(message)

    def texts():
        caplog.clear()
        server = serve(Logged)
        for data in (b"hello\n", b"raise\n", b"x" * 100 + b"\n"):
            client = dial(server)
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            read_all(client)
            client.close()
            eventually(lambda: not server.connections)
        assert server.stats().ended == {"eof": 1, "error": 1, "too-long": 1}
        server.stop()
        numbers = r"127\.0\.0\.1:\d+|\d+\.\d+ s"
        return [(record.levelname, re.sub(numbers, "N", record.getMessage()), record.exc_text) for record in records()]

    def records():
        return [record for record in caplog.records if record.name.startswith("echo.")]

    caplog.set_level(logging.INFO, "echo")
    expected = texts()
    factory_sets(*names)
    assert texts() == expected
    assert {getattr(record, name) for record in records() for name in names} == {"the program's"}
    ends = [record for record in records() if " disconnected: " in record.getMessage()]
    assert [record.messages_in for record in ends] == [1, 1, 0]
    assert "ValueError: boo" in caplog.text


def test_a_handler_that_raises_a_key_error_gets_each_record_once(serve, dial, factory_sets, capsys):
    messages = []

    class Broken(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage().partition(" ")[2][:9])
            raise KeyError("session")

    log = logging.Logger("test")
    log.addHandler(Broken())
    factory_sets("peer")
    with dial(serve(type("Handler", (echo.LoggingMixin, echo.EchoRequestHandler), {"log": log}))) as client:
        client.sendall(b"hello\n")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"hello\n"
    assert messages == ["connected", "received ", "sent 5 by", "disconnec"]
    assert capsys.readouterr().err.count("KeyError: 'session'") == 4


def test_an_error_in_a_stock_handler_is_one_record_with_the_peer(serve, dial, caplog, capfd):
    """Row 27: the standard library prints to stderr."""

    class Bad(socketserver.BaseRequestHandler):
        def handle(self):
            raise ZeroDivisionError("on purpose")

    server = serve(Bad)
    client = dial(server)
    peer = "127.0.0.1:%d" % client.getsockname()[1]
    assert read_all(client) == b""
    client.close()
    eventually(lambda: server.stats().ended == {"error": 1})
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert peer in record.getMessage()
    assert "Exception" not in capfd.readouterr().err


def test_a_client_that_vanishes_from_a_stock_handler_prints_no_traceback(serve, dial, caplog):
    """Row 26."""

    class Reading(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1)

    server = serve(Reading)
    with caplog.at_level(logging.DEBUG, "echo.server"):
        reset(dial(server))
        eventually(lambda: server.stats().ended == {"reset": 1})
    assert not [record for record in caplog.records if record.exc_info or record.levelno > logging.INFO]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_sys_exit_in_a_handler_ends_its_session_not_the_server_and_is_logged(serve, dial, caplog):
    """Row 36."""

    threads = []

    class Quits(echo.EchoRequestHandler):
        def message_received(self, message):
            if message == b"quit":
                threads.append(threading.current_thread())
                sys.exit(1)
            super().message_received(message)

    server = serve(Quits)
    client = dial(server)
    client.sendall(b"quit\n")
    assert read_all(client) == b""
    client.close()
    assert echoes(dial(server))
    assert "SystemExit" in caplog.text
    threads[0].join(DEADLINE)  # so that pytest sees its end during this test
    eventually(lambda: server.stats().ended == {"error": 1})


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no pthread_kill here")
def test_a_session_whose_thread_was_interrupted_by_a_signal_goes_on(serve, dial):
    class Told(echo.EchoRequestHandler):
        timeout = DEADLINE  # a kernel deadline makes the read return on a signal

        def connection_made(self):
            threads.append(threading.get_ident())

    threads = []
    client = dial(serve(Told))
    assert echoes(client)
    previous = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        for _ in range(10):
            signal.pthread_kill(threads[0], signal.SIGUSR2)
            assert echoes(client)
    finally:
        signal.signal(signal.SIGUSR2, previous)


def test_a_client_whose_refusal_cannot_be_kept_stays_refused(monkeypatch):
    """Row 65: without memory for it, the next use of the socket let the client in."""

    def no_memory(exc):
        monkeypatch.undo()
        raise MemoryError

    def refuse(*arguments):
        raise admission.Refused("denied", "not from this address")

    monkeypatch.setattr(admission, "_again", no_memory)
    opening = admission.Opening(mock.Mock(check_in_thread=refuse), mock.Mock(), mock.Mock())
    with pytest.raises(MemoryError):
        opening()
    for _ in range(2):
        with pytest.raises(admission.Refused):
            opening()
