"""All output of a handler and of Python itself becomes log records, and no text in it can forge a record."""

import argparse
import contextlib
import io
import logging
import os
import re
import socket
import ssl
import sys
import threading
import time
import traceback
import warnings

import pytest

import echo
from echo.cli.server.captured import captured_stderr
from echo.cli.server.command_log import Log
from echo.logs.formatters import JsonFormatter, TextFormatter
from echo.logs.log_handlers import LineHandler, LogQueue
from echo.server.reporting import log_event
from echo.server.threads import Threads
from support import DEADLINE, TESTS, eventually, read_all
from support.evil_handler import ACTIONS
from support.log_lines import records_of
from support.proxy_headers import INVALID, VALID
from support.tiers import TIMEOUT

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork, and descriptors as POSIX has them")

FORGED = "a\r2026-01-01 00:00:00.000 INFO    forged\x1b[31m\0\x85\u2028\u202e"
WORDS = [*ACTIONS, "name", "broken", "reason"]


class Lines(logging.Handler):
    """Keeps the messages of records."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def captured():
    """(original stream, its replacement). Not a fixture: pytest has another ``sys.stderr`` for each phase of a test."""
    original = io.StringIO()
    with contextlib.redirect_stderr(original), captured_stderr() as stream:
        yield original, stream


def test_without_a_log_text_goes_where_it_went():
    with captured() as (original, _):
        print("hello\x1b", file=sys.stderr)
        sys.stderr.write("no end")
        sys.stderr.flush()
    assert original.getvalue() == "hello\x1b\nno end"


def test_each_line_is_a_record_and_lines_of_several_threads_do_not_mix():
    with captured() as (original, stream):
        stream.log = Lines()
        print("a", end="", file=sys.stderr)
        thread = threading.Thread(target=lambda: print("other", file=sys.stderr))
        thread.start()
        thread.join(DEADLINE)
        print("b\n\nc", file=sys.stderr)
        sys.stderr.buffer.write(b"\xff\n")
        print("no end", end="", file=sys.stderr, flush=True)
        sys.stderr.reconfigure(errors="strict")
        sys.stderr.close()
        print("still there", file=sys.__stderr__)
    assert stream.log.lines == [f"stderr: {line}" for line in ("other", "ab", "c", "\\xff", "no end", "still there")]
    assert original.getvalue() == ""


def print_in_thread(text):
    thread = threading.Thread(target=print, args=(text,), kwargs={"end": "", "file": sys.stderr})
    thread.start()
    thread.join(DEADLINE)


def test_a_line_that_a_thread_has_not_ended_is_a_record_of_its_own():
    """The next thread may get the number of one that has ended."""
    with captured() as (_, stream):
        stream.log = Lines()
        for text in ("a", "b", "c\nd"):
            print_in_thread(text)
        stream.flush_all()
    assert stream.log.lines == [f"stderr: {line}" for line in "abcd"]


def test_a_line_that_a_session_has_not_ended_is_not_continued_by_the_next_one_in_its_thread():
    threads, used = Threads(), set()

    def session(text):
        used.add(threading.get_ident())
        for letter in text:
            sys.stderr.write(letter)

    with captured() as (_, stream):
        stream.log = Lines()
        for text in ("no end", "next\n"):
            threads.run((session, (text,)), lambda: None)
            eventually(lambda: threads._idle)
        threads.close()
    assert len(used) == 1
    assert stream.log.lines == ["stderr: no end", "stderr: next"]


def test_a_line_that_a_thread_prints_in_pieces_at_its_end_is_one_record():
    """As in the main thread while exit functions run: the interpreter counts that thread as ended."""

    class Ended(threading.Thread):
        def is_alive(self):
            return False

        def run(self):
            for text in ("Exception ignored", " in: ", "x\n"):
                sys.stderr.write(text)

    with captured() as (_, stream):
        stream.log = Lines()
        thread = Ended()
        thread.start()
        thread.join(DEADLINE)
    assert stream.log.lines == ["stderr: Exception ignored in: x"]


def test_lines_that_many_threads_do_not_end_cost_bounded_memory(monkeypatch):
    monkeypatch.setattr("echo.cli.server.captured.MOST_BEGUN", 2)
    may_end, begun = threading.Event(), threading.Barrier(4)

    def begin():
        sys.stderr.write("x" * 100)
        begun.wait(DEADLINE)
        may_end.wait(DEADLINE)

    with captured() as (_, stream):
        stream.log = Lines()
        threads = [threading.Thread(target=begin) for _ in range(3)]
        for thread in threads:
            thread.start()
        begun.wait(DEADLINE)
        assert len(stream.log.lines) == 1
        may_end.set()
        for thread in threads:
            thread.join(DEADLINE)
        stream.flush_all()
        assert len(stream.log.lines) == 3


def test_a_programs_own_handler_of_its_log_does_not_log_for_ever():
    with captured() as (_, stream):
        logger = logging.Logger("test")
        logger.addHandler(logging.StreamHandler(sys.stderr))
        stream.log = Lines()
        logger.addHandler(stream.log)
        logger.warning("hello")
    assert stream.log.lines == ["stderr: hello", "hello"]


def test_a_stream_that_a_handlers_module_makes_of_stderr_is_logged(capfd):
    with captured_stderr() as stream:
        stream.log = Lines()
        assert (stream.buffer.mode, stream.buffer.fileno()) == ("wb", stream.fileno())
        sys.stderr = io.TextIOWrapper(sys.stderr.detach(), encoding="utf-8", line_buffering=True)
        assert stream.name == sys.stderr.name == "<stderr>"
        print("hello", file=sys.stderr)
        sys.stderr = stream
        print("again", file=sys.stderr)
    assert stream.log.lines == ["stderr: hello", "stderr: again"]


def test_functions_that_a_program_has_put_in_place_stay():
    def hook(args):
        pass

    before = threading.excepthook, sys.unraisablehook, sys.stderr, warnings.showwarning
    with captured_stderr():
        threading.excepthook = hook
        assert sys.unraisablehook is not before[1]
    try:
        assert threading.excepthook is hook
        assert (sys.unraisablehook, sys.stderr, warnings.showwarning) == before[1:]
    finally:
        threading.excepthook = before[0]


@pytest.mark.parametrize("when", ["before", "at the import", "in a session"])
@pytest.mark.parametrize("name", ["echo.server", "echo.session"])
def test_a_handlers_module_that_configures_logging_does_not_silence_the_server(name, when, capfd):
    """``logging.config.dictConfig`` disables the loggers that its argument does not name, those of the tests, too."""
    logger = logging.getLogger(name)
    cls = type(logger)
    logger.disabled = when == "before"
    with Log(argparse.Namespace(workers=1, log_format="text", log_threads=False, color="never")) as log:
        logger.disabled = when == "at the import"
        log.to(log.queue())
        logger.disabled = when == "in a session"
        logger.error("hello")
        logger.setLevel("WARNING")
        logger.info("not this")
        logger.setLevel(logging.NOTSET)
    assert capfd.readouterr().err[24:] == "ERROR   hello\n"
    assert type(logger) is cls and not logger.disabled


def test_a_record_is_logged_once_although_the_handlers_module_calls_basic_config(capfd, monkeypatch):
    root = logging.getLogger()
    own = logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(root, "handlers", [own])
    with Log(argparse.Namespace(workers=1, log_format="text", log_threads=False, color="never")) as log:
        root.addHandler(logging.StreamHandler())  # as basicConfig() does where there is none
        log.to(log.queue())
        assert len(root.handlers) == 2
        logging.getLogger("test").error("hello")
    assert capfd.readouterr().err[24:] == "ERROR   hello\n"
    assert own.stream.getvalue() == "hello\n"


def test_a_handler_of_the_handlers_module_that_raises_costs_the_log_nothing(capfd, monkeypatch):
    class Broken(logging.Handler):
        def emit(self, record):
            raise OSError("its sink is gone")

    monkeypatch.setattr(logging.getLogger(), "handlers", [Broken()])
    with Log(argparse.Namespace(workers=1, log_format="text", log_threads=False, color="never")) as log:
        log.to(log.queue())
        log_event(logging.ERROR, "error", "hello")
    lines = [line[24:] for line in capfd.readouterr().err.splitlines()]
    assert lines[0] == "ERROR   hello" and "WARNING stderr: OSError: its sink is gone" in lines


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_formatter_that_a_handler_sets_for_all_handlers_forges_nothing(capfd, form):
    with Log(argparse.Namespace(workers=1, log_format=form, log_threads=False, color="never")) as log:
        queue = log.queue()
        log.to(queue)
        queue.setFormatter(logging.Formatter("%(message)s"))
        logging.getLogger("test").error(FORGED)
        if form == "text":
            queue.put_line(logging.INFO, "line")
    records = records_of(capfd.readouterr().err.encode(), form)
    assert len(records) == (2 if form == "text" else 1)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_that_ends_the_server_is_records(capfd, form):
    with Log(argparse.Namespace(workers=1, log_format=form, log_threads=False, color="never")) as log:
        log.to(log.queue())
        try:
            raise ValueError(FORGED)
        except ValueError:
            traceback.print_exc()
        log.close()
        print("late", file=sys.stderr)
    records = records_of(capfd.readouterr().err.encode(), form)
    messages = [record[1] if form == "text" else record["message"] for record in records]
    assert messages[0] == "stderr: Traceback (most recent call last):"
    assert "forged" in messages[-2] and messages[-1] == "stderr: late"
    assert not [message for message in messages if not message.startswith("stderr: ")]
    assert not [handler for handler in logging.getLogger().handlers if isinstance(handler, LogQueue)]


@pytest.mark.parametrize(
    "color, form, shown", [("always", "text", True), ("never", "text", False), ("always", "json", False)]
)
def test_the_log_has_colors_and_the_names_of_threads_if_asked_and_json_has_no_colors(capfd, color, form, shown):
    with Log(argparse.Namespace(workers=1, log_format=form, log_threads=True, color=color)) as log:
        log.to(log.queue())
        print("hello", file=sys.stderr)
    line = capfd.readouterr().err
    assert "MainThread" in line and "hello" in line
    assert ("\x1b[" in line) is shown and "u001b" not in line


# A server with a handler that logs everything.


def start(run, tmp_path, *options):
    """A server command with the evil handler; its output goes to a file."""
    log = tmp_path / "log"
    with open(log, "wb") as file:
        server = run(
            "echo.server",
            "0",
            "--handler",
            "support.evil_handler:Evil",
            *options,
            stderr=file,
            env={"PYTHONPATH": os.pathsep.join([os.path.dirname(TESTS), TESTS]), "PYTHONWARNINGS": ""},
        )
    port = eventually(lambda: re.search(rb"listening on [\d.]+:(\d+)", log.read_bytes())).group(1)
    server.address = ("127.0.0.1", int(port))
    server.file = log
    return server


def talk(server, dial, *messages):
    """Run a session with these messages; return the replies."""
    with contextlib.suppress(ConnectionError), dial(server.address) as client:
        client.sendall(b"".join(message + b"\n" for message in messages))
        client.shutdown(1)
        return read_all(client)


@posix
@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_that_a_peer_sent_is_unescaped_in_the_log_on_whatever_way_it_gets_there(run, dial, tmp_path, form):
    """Rows 63, 85 and 87."""
    server = start(run, tmp_path, "--log-format", form, "--log-level", "debug")
    for word in WORDS:
        talk(server, dial, f"{word} {FORGED} {word}".encode())
    assert talk(server, dial, b"faulty call", b"hello") == b"faulty call\nhello\n"
    talk(server, dial, b"close2")
    for _ in range(3):  # one of them gets descriptor 2
        assert talk(server, dial, b"hello") == b"hello\n"
    assert server.terminate() == 0
    data = server.file.read_bytes()
    records = records_of(data, form)
    messages = [record[1] for record in records] if form == "text" else [record["message"] for record in records]
    for word in WORDS:
        assert [text for text in data.decode().split("\n") if f"\\u202e {word}" in text], f"nothing of {word}"
    assert not [message for message in messages if message.startswith("forged")]
    assert messages[-1].startswith("stopped")


@posix
@pytest.mark.parametrize("workers", ["1", "2"])
def test_closed_standard_descriptors_get_no_log_and_take_no_other_file(run, dial, tmp_path, workers):
    """Row 46."""
    (tmp_path / "mine.py").write_text(
        "import echo\n"
        "file = open('mine.txt', 'a')\n"
        "class Handler(echo.EchoRequestHandler):\n"
        "    def message_received(self, message):\n"
        "        self.send(b'%d' % file.fileno())\n"
    )
    listener = socket.create_server(("127.0.0.1", 0))
    port = str(listener.getsockname()[1])
    listener.close()
    script = "import os, sys; os.closerange(0, 3); os.execv(sys.executable, [sys.executable, '-m', *sys.argv[1:]])"
    server = run(
        "echo.server",
        port,
        "--handler",
        "mine:Handler",
        "--workers",
        workers,
        program=[sys.executable, "-c", script],
        cwd=str(tmp_path),
    )
    server.address = ("127.0.0.1", int(port))

    def answer():
        with contextlib.suppress(ConnectionRefusedError):
            return talk(server, dial, b"hello")

    assert int(eventually(answer)) > 2
    assert server.terminate() == 0
    assert (tmp_path / "mine.txt").read_text() == ""


# Fuzzing.

POOL = [bytes([byte]) for byte in range(256) if byte != 10]
POOL += [
    text.encode("utf-8", "surrogatepass") for text in ("\u2028", "\x85", "\u202e", "\ud800", "\udc80", "\U000e0041")
]
POOL += [b"\x1b[31m", b"\x1b]0;title\x07", b"\r", b"%s", b"%(x)d", b"{0}", b"\\", b"\\n", b'"', b'"}', b"  | "]
POOL += [
    b"2026-01-01 00:00:00.000 INFO    forged",
    b'{"time": "2026-01-01T00:00:00.000Z"}',
    "\u20ac".encode(),
    b"x" * 300,
]


def junk(rng):
    return b"".join(rng.choices(POOL, k=rng.choice([0, 1, 3, 10, 40]))).replace(b"\n", b"")


FUZZ_SECONDS = float(os.environ.get("ECHO_FUZZ_SECONDS", "0"))
"""How long each random test of the log continues. 0: for a moment."""

fuzz = pytest.mark.timeout(TIMEOUT + FUZZ_SECONDS)


class Fuzzed:
    """A server whose log a strict reader checks during the sessions."""

    def __init__(self, server, form):
        self.server = server
        self.form = form
        self.read = self.records = self.rounds = 0
        self.deadline = time.monotonic() + (FUZZ_SECONDS or 3.0)

    def read_log(self):
        data = self.server.file.read_bytes()[self.read :]
        whole = data.rfind(b"\n") + 1
        self.records += len(records_of(data[:whole], self.form))
        self.read += whole
        return data[whole:]

    def goes_on(self):
        self.rounds += 1
        self.read_log()
        return time.monotonic() < self.deadline

    def end(self):
        assert self.server.terminate() == 0
        assert self.read_log() == b""
        print(f"{self.rounds} rounds, {self.records} records, {self.read} bytes of log")


@fuzz
@pytest.mark.slow
@posix
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_random_sessions_leave_a_log_that_a_strict_reader_accepts(run, dial, tmp_path, trials, form, workers):
    """100 sessions a round."""
    server = start(run, tmp_path, "--log-format", form, "--log-level", "debug", "--workers", workers)
    fuzzed = Fuzzed(server, form)
    for rng in trials(1 << 62):
        words = [word for word in WORDS if word != "child" or rng.random() < 0.05]
        for _ in range(100):
            talk(server, dial, *random_messages(rng, words))
        if not fuzzed.goes_on():
            break
    fuzzed.end()


def random_messages(rng, words):
    return [rng.choice(words).encode() + b" " + junk(rng) for _ in range(rng.randint(1, 4))]


DOORS = {
    "tls": ["--tls-cert", "--tls-key", "--tls-client-ca"],
    "proxy": ["--proxy-protocol"],
    "both": ["--proxy-protocol", "--tls-cert", "--tls-key"],
}


@fuzz
@pytest.mark.slow
@posix
@pytest.mark.parametrize("door", sorted(DOORS))
@pytest.mark.parametrize("form", ["text", "json"])
def test_random_headers_and_handshakes_leave_a_log_that_a_strict_reader_accepts(
    run, dial, tmp_path, trials, certificates, form, door
):
    """50 connections a round. Each begins with a PROXY header, a TLS handshake with an odd name, protocol and
    certificate, or other bytes; one byte or more is changed, removed, inserted, or missing at the end."""
    server = start(run, tmp_path, *door_options(door, certificates), "--log-format", form, "--log-level", "debug")
    fuzzed = Fuzzed(server, form)
    odd = certificates.issue("odd", "/O=" + re.sub("[\0/]", "", FORGED) + '\n, +"<>;/CN=\x7f\t#')
    contexts = [client_of(pair) for pair in (None, certificates.client, odd, certificates.stranger)]
    for rng in trials(1 << 62):
        for _ in range(50):
            arrive(rng, server, dial, door, contexts)
        if not fuzzed.goes_on():
            break
    fuzzed.end()


def door_options(door, certificates):
    files = {
        "--tls-cert": certificates.server.certificate,
        "--tls-key": certificates.server.key,
        "--tls-client-ca": certificates.authority.certificate,
    }
    return [part for name in DOORS[door] for part in ([name, files[name]] if name in files else [name])]


def client_of(pair):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


def arrive(rng, server, dial, door, contexts):
    """One connection."""
    messages = b"".join(message + b"\n" for message in random_messages(rng, [w for w in WORDS if w != "child"]))
    with contextlib.suppress(OSError), dial(server.address) as client:
        client.settimeout(0.2)  # both sides may wait for more; the log does not depend on it
        if door != "tls":
            header = rng.choice(list({**VALID, **INVALID}.values()))[0]
            client.sendall(changed(rng, header))
        if door == "proxy" or rng.random() < 0.2:
            client.sendall(messages)
        else:
            with contextlib.suppress(ssl.SSLError):
                shake_hands(rng, client, rng.choice(contexts), messages)
        client.shutdown(socket.SHUT_WR)
        read_all(client)


def shake_hands(rng, client, context, messages):
    """A handshake and ``messages``, with one of the client's flights changed, or none."""
    arriving, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
    context.set_alpn_protocols([junk(rng).decode("ascii", "ignore")[:200] or "x"])
    name = rng.choice([None, "localhost", "x" * 63 + ".example", "a_b.\x1b[31m.example"])
    session = context.wrap_bio(arriving, leaving, server_hostname=name)
    victim = rng.choice([0, 0, 0, 1, 2, 9])
    steps = [session.do_handshake, lambda: session.write(messages), lambda: session.read(65536)]
    for flight in range(9):
        wants = False
        try:
            if steps:
                steps[0]()
                steps.pop(0)
        except ssl.SSLWantReadError:
            wants = True
        data = leaving.read()
        if data:
            client.sendall(changed(rng, data) if flight == victim else data)
        if flight == victim:
            client.shutdown(socket.SHUT_WR)
        if wants:
            received = client.recv(65536)
            if not received:
                return
            arriving.write(received)


def changed(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 3])):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            del data[place : place + 1]
        elif kind == 2:
            data[place:place] = junk(rng)
        else:
            data[place : place + 1] = rng.choice(POOL)
    return bytes(data)


def random_value(rng, depth=0):
    text = junk(rng).decode("utf-8", "surrogateescape")
    kind = rng.randrange(14 if depth < 4 else 12)
    if kind == 12:
        return [random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    if kind == 13:
        keys = [rng.choice([text, 1, None, 2.5, (1, text)]) for _ in range(rng.randint(0, 3))]
        return {key: random_value(rng, depth + 1) for key in keys}
    number = rng.choice([float("nan"), float("inf"), 0.1, -0.0, 1e300, 10**20, -1, 10**5000])
    plain = [text, text.encode("utf-8", "replace"), number, None, True, ValueError(text), object, echo]
    return [*plain, {text}, frozenset([text, 1]), bytearray(b"\xff\n"), text * 1000][kind]


def random_exception(rng):
    text = junk(rng).decode("utf-8", "surrogateescape")
    kind = rng.choice([ValueError, KeyError, SystemExit, OSError, SyntaxError, RuntimeError, StopIteration])
    exc = (
        kind(*[random_value(rng) for _ in range(rng.randint(0, 2))])
        if kind is not SyntaxError
        else kind(text, (text, rng.randint(-5, 50), rng.randint(-5, 50), text))
    )
    with contextlib.suppress(Exception):
        exc.__notes__ = [random_value(rng)]
    if rng.random() < 0.2:
        exc.__context__ = random_exception(rng)
    if rng.random() < 0.2:
        exc.__cause__ = random_exception(rng)
    if sys.version_info >= (3, 11) and rng.random() < 0.2:
        exc = BaseExceptionGroup(text, [exc, *[random_exception(rng) for _ in range(rng.randint(0, 2))]])  # noqa: F821
    try:
        if rng.random() < 0.5:
            exec(compile("raise exc", text.replace("\0", "").encode("utf-8", "replace").decode() or "x", "exec"))
    except BaseException as caught:
        return caught
    return exc


def random_record(rng):
    exc = random_exception(rng) if rng.random() < 0.5 else None
    args = tuple(random_value(rng) for _ in range(rng.randint(0, 2)))
    message = rng.choice(["%s %s", "%r", "no format", random_value(rng)])
    exc_info = None if exc is None else (type(exc), exc, exc.__traceback__)
    name = junk(rng).decode("utf-8", "surrogateescape")
    level = rng.choice([10, 20, 33, -7])
    record = logging.LogRecord(name, level, "module.py", 1, message, args, exc_info)
    for name in [
        "event",
        "time",
        "level",
        "peer",
        "exception",
        "stack",
        "process_",
        junk(rng).decode("utf-8", "replace"),
    ]:
        if rng.random() < 0.4:
            vars(record)[name] = random_value(rng)
    if rng.random() < 0.1:
        record.created = rng.choice([float("nan"), float("inf"), -1e30, 1e30, rng.uniform(-1e13, 1e13)])
    if rng.random() < 0.1:
        record.stack_info = junk(rng).decode("utf-8", "surrogateescape")
    return record


@fuzz
@pytest.mark.parametrize("form", ["text", "json"])
def test_random_records_are_lines_that_a_strict_reader_accepts(trials, form):
    handler = LineHandler({"text": TextFormatter, "json": JsonFormatter}[form]())
    deadline = time.monotonic() + FUZZ_SECONDS
    count = 0
    for rng in trials(1 << 62 if FUZZ_SECONDS else 100):
        record = random_record(rng)
        assert len(records_of(handler.encode(record), form)) == 1
        count += 1
        if FUZZ_SECONDS and time.monotonic() > deadline:
            break
    print(f"{count} records")
