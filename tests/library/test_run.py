"""``echo.run``: a server from its start to its exit code, with signals and a log."""

import _thread
import contextlib
import errno
import gc
import io
import logging
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import warnings

import pytest

import echo
from echo.server.listening import is_listening
from support import DEADLINE, ROOT, read_all, read_exactly
from support.servers import echoes

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

PROGRAM = """
import os, sys, threading
import echo, echo.running

echo.running.SAME_SIGNAL = 0

class Upper(echo.MessageRequestHandler):
    def message_received(self, message):
        while message == b"slow" and not os.path.exists("go"):
            threading.Event().wait(0.005)
        self.send(message.upper())

sys.exit(echo.run(Upper, ("127.0.0.1", 0), max_connections=100))
"""


@pytest.fixture
def program(run, dial, tmp_path):
    """The program, with a client whose message gets its reply when the file ``go`` exists."""
    (tmp_path / "shout.py").write_text(PROGRAM)
    process = run("shout", cwd=str(tmp_path))
    port = process.read_log_until(r"INFO    listening on 127\.0\.0\.1:(\d+)\n").group(1)
    process.client = dial(("127.0.0.1", int(port)))
    process.client.sendall(b"hello\n")
    assert read_exactly(process.client, 6) == b"HELLO\n"
    process.client.sendall(b"slow\n")
    process.go = tmp_path / "go"
    return process


@posix
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_program_with_code_0_when_its_sessions_have_answered(program, signum):
    program.popen.send_signal(signum)
    program.read_log_until(rf"{signum.name}: stopping\n(.*)draining 1 session, for 10 s at most\n")
    program.go.write_text("")
    assert read_all(program.client) == b"SLOW\n"
    program.client.close()
    assert program.finish()[0] == 0
    assert "stopped: 1 session drained, 0 cut\n" in program.log
    assert "Traceback" not in program.log


@posix
def test_a_second_signal_cuts_what_is_left_and_the_code_is_1(program):
    program.popen.send_signal(signal.SIGTERM)
    program.read_log_until("draining 1 session")
    program.popen.send_signal(signal.SIGTERM)
    program.read_log_until("SIGTERM: stopping now")
    program.read_log_until("stopped: 0 sessions drained, 1 cut")
    program.go.write_text("")
    assert program.finish()[0] == 1
    assert "Traceback" not in program.log


LOGGING_PROGRAM = """
import os, sys
import echo

class Logged(echo.LoggingMixin, echo.EchoRequestHandler):
    pass

class Server(echo.Server):
    def server_activate(self):
        super().server_activate()
        print(self.server_address[1], flush=True)

sys.exit(echo.run(Logged, ("127.0.0.1", 0), server_class=Server))
"""


@posix
def test_a_reader_of_the_log_who_stalls_holds_up_neither_sessions_nor_the_stop():
    """Row 28."""
    program = subprocess.Popen(
        [sys.executable, "-c", LOGGING_PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    with program, contextlib.ExitStack() as stack:
        stack.callback(program.kill)
        port = int(program.stdout.readline())
        with echo.connect(("127.0.0.1", port), timeout=DEADLINE) as client:
            for number in range(20):  # with their log, more than a pipe holds
                assert list(client.echo_many([b"%d" % number] * 200)) == [b"%d" % number] * 200
        program.send_signal(signal.SIGTERM)
        assert program.wait(DEADLINE) == 0
        log = program.stderr.read()
    assert b"\n" in log and log.count(b"\n") < 8000
    assert all(line[:4].isdigit() for line in log.splitlines()), "a record was written in part"


class Acting(echo.Server):
    """Calls ``act(server)``, once, in the thread that serves."""

    act = None

    def serve_forever(self, poll_interval=0.001):
        super().serve_forever(poll_interval)

    def service_actions(self):
        act, type(self).act = type(self).act, None
        if act is not None:
            act(self)


def acting(act):
    return type("Acting", (Acting,), {"act": staticmethod(act)})


@pytest.fixture(autouse=True)
def signals_are_as_before():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def serve(act=lambda server: server.shutdown(), address=("127.0.0.1", 0), **options):
    return echo.run(echo.EchoRequestHandler, address, server_class=acting(act), **options)


@pytest.fixture
def lines(caplog):
    """The lines of the log."""
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_stop_of_the_server_ends_it_with_code_0(lines):
    assert serve() == 0
    assert lines()[0].startswith("listening on 127.0.0.1:") and lines()[-1] == "stopped: 0 sessions drained, 0 cut"
    assert len(lines()) == 2


@posix
@pytest.mark.parametrize("signals", [1, 2])
def test_the_server_close_of_a_subclass_is_called_once(signals, monkeypatch):
    monkeypatch.setattr(echo.running, "SAME_SIGNAL", 0)
    closed = []

    class Store(Acting):
        def server_close(self):
            super().server_close()
            closed.append(self.connections)

    def act(server):
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)

    Store.act = staticmethod(act)
    assert echo.run(echo.EchoRequestHandler, ("127.0.0.1", 0), server_class=Store) == 0
    assert closed == [[]]


@posix
def test_a_signal_that_comes_before_the_server_is_made_ends_it_as_soon_as_it_serves(lines):
    class Early(echo.Server):
        def __init__(self, *args, **options):
            os.kill(os.getpid(), signal.SIGTERM)
            super().__init__(*args, **options)

    assert echo.run(echo.EchoRequestHandler, ("127.0.0.1", 0), server_class=Early) == 0
    assert "SIGTERM: stopping" in lines()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("port, advice", [(80, "ports below 1024 need privileges"), (8080, "a security policy")])
def test_a_port_that_the_system_refuses_is_refused_for_its_own_reason(code, port, advice):
    """Row 57."""
    line = echo.running.why_not_listening(OSError(code, os.strerror(code)), ("127.0.0.1", port))
    assert line.startswith(f"cannot listen on 127.0.0.1:{port}: {os.strerror(code)}; {advice}")


@pytest.mark.parametrize(
    "code, advice", [("EAI_NONAME", "the name, or"), ("EAI_AGAIN", "the name and the name servers, or")]
)
def test_name_servers_that_do_not_answer_are_named(code, advice):
    """Row 57."""
    line = echo.running.why_not_listening(socket.gaierror(getattr(socket, code), "unknown"), ("host.example", 7000))
    assert line.startswith(
        f"cannot listen on host.example:7000: unknown; check {advice} give an address of this machine"
    )


def test_a_host_name_stands_for_an_address_of_the_servers_family(monkeypatch):
    def look_up(host, port, family, kind, flags=0):
        if flags:
            raise socket.gaierror(socket.EAI_NONAME, "not an address")
        asked.append((host, family))
        return [(family, kind, 6, "", ("127.0.0.1", port))]

    class Brief(echo.Server):
        def __init__(self, address, *args, **options):
            super().__init__(address, *args, **options)
            asked.append(address)
            self.shutdown()

    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert echo.run(echo.EchoRequestHandler, ("host.example", 0), server_class=Brief) == 0
    assert asked == [("host.example", socket.AF_INET), ("127.0.0.1", 0)]


@posix
def test_a_second_signal_before_the_server_is_made_has_its_usual_effect(monkeypatch):
    """A server class may wait for a port, or for a database, without end."""
    monkeypatch.setattr(echo.running, "SAME_SIGNAL", 0)

    class Waits(echo.Server):
        def server_bind(self):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        echo.run(echo.EchoRequestHandler, ("127.0.0.1", 0), server_class=Waits)


@posix
def test_process_1_of_a_container_ends_at_a_second_signal_although_it_has_no_default_actions(monkeypatch):
    class Ended(BaseException):
        pass

    def as_for_process_1(number):
        if signal.getsignal(number) != signal.SIG_DFL:
            raise_signal(number)

    def end(code):
        raise Ended(code)

    raise_signal = signal.raise_signal
    monkeypatch.setattr(echo.running, "SAME_SIGNAL", 0)
    monkeypatch.setattr(signal, "raise_signal", as_for_process_1)
    monkeypatch.setattr(os, "_exit", end)

    class Waits(echo.Server):
        def server_bind(self):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Ended, match="143"):
        echo.run(echo.EchoRequestHandler, ("127.0.0.1", 0), server_class=Waits)


@posix
def test_a_signal_long_after_a_second_one_that_did_not_help_has_its_usual_effect(monkeypatch):
    """A method of the server class may block the main thread."""
    monkeypatch.setattr(echo.running, "SAME_SIGNAL", 0)
    monkeypatch.setattr(echo.running, "PATIENCE", 3600.0)
    within = []

    def act(server):
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        within.append("three signals in a row are no more than two")
        monkeypatch.setattr(echo.running, "PATIENCE", 0)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        serve(act)
    assert within


@posix
def test_a_second_signal_may_come_while_a_record_is_logged(lines, monkeypatch):
    """Row 43: ``logging.handlers.QueueHandler`` and others have locks that are not reentrant."""
    monkeypatch.setattr(echo.running, "SAME_SIGNAL", 0)
    monkeypatch.setattr(echo.running, "LOG_PATIENCE", 0.01)
    logged, deadlocks, done = [], [], threading.Event()

    class Locks(logging.Handler):
        lock_of_its_own = threading.Lock()
        holder = None

        def handle(self, record):
            if self.holder == threading.get_ident():
                deadlocks.append(record.getMessage())
                return
            with self.lock_of_its_own:
                self.holder = threading.get_ident()
                logged.append(record.getMessage())
                if logged[-1] == "SIGTERM: stopping":
                    signal.raise_signal(signal.SIGTERM)
                elif logged[-1] == "SIGTERM: stopping now":
                    done.set()
                self.holder = None

    handler = Locks()
    logging.getLogger().addHandler(handler)
    try:
        assert serve(lambda server: signal.raise_signal(signal.SIGTERM)) == 0
        assert not deadlocks and "SIGTERM: stopping" in logged
        assert done.wait(DEADLINE)
    finally:
        logging.getLogger().removeHandler(handler)


@posix
def test_of_a_flood_of_signals_the_first_and_the_second_one_count(lines, monkeypatch):
    monkeypatch.setattr(echo.running, "SAME_SIGNAL", 0)
    monkeypatch.setattr(echo.running, "PATIENCE", 3600.0)

    def act(server):
        for _ in range(10):
            signal.raise_signal(signal.SIGTERM)

    assert serve(act) == 0
    assert lines().count("SIGTERM: stopping now") <= 1  # a thread logs it


@posix
def test_the_main_thread_of_a_subinterpreter_is_as_another_thread(lines, monkeypatch):
    def refuse(number, handler):
        raise ValueError("signal only works in main thread of the main interpreter")

    monkeypatch.setattr(signal, "signal", refuse)
    assert serve() == 0
    assert "SIGINT or SIGTERM does not stop this server, since this is not the main thread; call its stop()" in lines()


@posix
def test_a_signal_that_comes_twice_at_once_is_one(lines, dial, monkeypatch):
    monkeypatch.setattr("echo.running.SAME_SIGNAL", 3600.0)

    def act(server):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    assert serve(act) == 0
    assert [line for line in lines() if "SIGINT" in line] == ["SIGINT: stopping"]


def test_an_address_in_use_is_one_line_with_advice_and_code_1(lines):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
        assert serve(address=address) == 1
    (line,) = lines()
    assert line.startswith(f"cannot listen on 127.0.0.1:{address[1]}: Address already in use; another program uses")


@pytest.mark.parametrize(
    "name, file, what",
    [
        ("socketpair", None, "the server cannot run"),
        ("getaddrinfo", "encodings/idna.py", "cannot listen on localhost:0"),  # it is imported for a name
    ],
)
def test_without_a_free_descriptor_it_is_one_line_and_code_1(lines, monkeypatch, name, file, what):
    """Row 65."""

    def exhausted(*arguments, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), file)

    monkeypatch.setattr(socket, name, exhausted)
    assert serve(address=("localhost", 0)) == 1
    advice = "close other programs, or raise the limit of open files (ulimit -n)"
    assert lines()[-1] == f"{what}: Too many open files; {advice}"


def test_a_lack_of_local_ports_is_not_reported_as_another_program(lines, monkeypatch):
    """Row 79."""

    def bind(server):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    monkeypatch.setattr(echo.Server, "server_bind", bind)
    assert serve(address=("127.0.0.1", 0)) == 1
    (line,) = lines()
    assert line.startswith("cannot listen on 127.0.0.1:0: Address already in use; all local ports are in use; ")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
@pytest.mark.parametrize(
    "folder, reason",
    [("missing", "does not exist; make it, or give another path"), ("file", "is not a folder; give another path")],
)
def test_a_path_that_cannot_be_bound_is_one_line_with_its_reason(lines, tmp_path, folder, reason):
    """Row 57: the server's class is not blamed for a path that cannot be looked at."""
    (tmp_path / "file").touch()
    assert serve(address=str(tmp_path / folder / "socket")) == 1
    (line,) = lines()
    assert line.endswith(reason)


def test_a_file_that_the_server_class_cannot_open_is_its_own_error():
    class Store(echo.Server):
        def __init__(self, *args, **options):
            with open(os.path.join("no", "such", "file")):
                pass

    with pytest.raises(FileNotFoundError):
        echo.run(echo.EchoRequestHandler, ("127.0.0.1", 0), server_class=Store)


@pytest.mark.parametrize(
    "arguments, options, error",
    [
        ((echo.EchoRequestHandler, "127.0.0.1:65432"), {}, "'127.0.0.1:65432' is not an address"),
        ((echo.EchoRequestHandler, 65432), {}, r"expected \(host, port\), like \('127.0.0.1', 65432\)"),
        ((echo.EchoRequestHandler, ("127.0.0.1", "65432")), {}, r"the port is '65432'; expected a number"),
        ((("127.0.0.1", 65432), echo.EchoRequestHandler), {}, "were the address and the handler class exchanged"),
        ((("127.0.0.1", 65432),), {}, r"the handler class is \('127.0.0.1', 65432\)"),
        ((object.__new__(echo.EchoRequestHandler),), {}, "expected the class itself"),
        (("Upper",), {}, "expected the class itself"),
        ((echo.EchoRequestHandler,), {"max_connections": 0}, "max_connections is 0"),
        ((echo.EchoRequestHandler,), {"connections": 1}, "no option 'connections'; it has max_connections"),
        ((echo.EchoRequestHandler,), {"framing": None}, "no option 'framing'; set framing in the body of the"),
        ((echo.EchoRequestHandler,), {"idle_timeout": 2}, "no option 'idle_timeout'; set timeout in the body of the"),
        ((echo.EchoRequestHandler,), {"timeout": 2}, r"^run\(\) has no option 'timeout'; set timeout in the body"),
    ],
)
def test_wrong_arguments_are_errors_that_say_what_was_expected(arguments, options, error):
    with pytest.raises((TypeError, ValueError), match=error):
        echo.run(*arguments, **options)


def test_the_log_names_the_options_in_force_and_not_a_subclass_attribute_of_that_name(caplog):
    """Row 61: it said "with TLS" of a server that had none."""
    caplog.set_level("INFO")

    class Own(echo.Server):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.ssl_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.proxy_protocol = True

        def serve_forever(self, poll_interval=0.5):
            pass

    assert echo.run(echo.EchoRequestHandler, ("127.0.0.1", 0), server_class=Own) == 0
    assert re.fullmatch(r"listening on 127\.0\.0\.1:\d+", caplog.records[0].message)


def test_a_server_class_may_have_a_timeout_of_its_own():
    class Patient(echo.Server):
        def __init__(self, *args, timeout, **options):
            raise RuntimeError(f"timeout {timeout}")

    with pytest.raises(RuntimeError, match="timeout 2"):
        echo.run(echo.EchoRequestHandler, ("127.0.0.1", 0), server_class=Patient, timeout=2)


def test_a_third_positional_argument_that_is_no_flag_is_refused():
    """A program's own third argument, such as a TLS context, must not be dropped in silence."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(TypeError, match=r"bind_and_activate is <.*>; expected True or False"):
        echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, context)
    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, 0) as server:
        assert not is_listening(server.socket)


def test_a_server_whose_arguments_were_exchanged_says_so():
    with pytest.raises(TypeError, match="exchanged"):
        echo.Server(echo.EchoRequestHandler, ("127.0.0.1", 0))


def test_a_standard_server_without_a_handler_class_is_still_made():
    with echo.Server(("127.0.0.1", 0), None) as server:
        assert server.RequestHandlerClass is None


def test_in_another_thread_it_serves_until_a_handler_stops_the_server(lines, dial):
    class Last(echo.EchoRequestHandler):
        def connection_made(self):
            self.server.stop()

    addresses, codes = [], []
    ready = threading.Event()

    class Named(echo.Server):
        def server_activate(self):
            super().server_activate()
            addresses.append(self.server_address)
            ready.set()

    def serve_here():
        codes.append(echo.run(Last, ("127.0.0.1", 0), server_class=Named))

    thread = threading.Thread(target=serve_here)
    thread.start()
    assert ready.wait(DEADLINE)
    dial(addresses[0])
    thread.join(DEADLINE)
    assert codes == [0]
    assert "SIGINT or SIGTERM does not stop this server, since this is not the main thread; call its stop()" in lines()


@posix
def test_a_handler_of_the_programs_own_stays_and_what_it_raises_comes_out_when_all_is_closed(lines):
    class Stop(Exception):
        pass

    def stop(number, frame):
        raise Stop

    servers = []

    class Raising(echo.Server):
        def serve_forever(self, poll_interval=0.5):
            servers.append(self)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Stop):
            echo.run(echo.EchoRequestHandler, ("127.0.0.1", 0), server_class=Raising)
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)
    assert servers[0].socket.fileno() == -1
    assert (
        "SIGTERM does not stop this server, since the program handles, blocks or ignores it; call its stop()" in lines()
    )


@posix
def test_a_signal_that_the_program_blocks_is_left_to_it(lines):
    """Another thread may wait for it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        assert serve() == 0
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert (
        "SIGTERM does not stop this server, since the program handles, blocks or ignores it; call its stop()" in lines()
    )


def test_a_log_that_is_configured_stays_as_it_is(monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [logging.NullHandler()])
    before = list(root.handlers), root.level
    assert serve() == 0
    assert (root.handlers, root.level) == before


def test_a_log_that_is_not_configured_goes_to_standard_error(monkeypatch, capsys):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    try:
        assert serve() == 0
    finally:
        root.setLevel(level)
    assert capsys.readouterr().err.count("listening on 127.0.0.1:") == 1


@posix
def test_a_signal_while_the_log_is_set_up_ends_it_with_code_0(monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: signal.raise_signal(signal.SIGINT))
    assert serve() == 0


class Own:
    """A stream of the program's own, which copies what is printed; all else is the original's."""

    def __init__(self, original):
        self._original = original
        self.text = ""

    def write(self, text):
        self.text += text
        return self._original.write(text)

    def __getattr__(self, name):
        return getattr(self._original, name)


def test_a_stream_of_the_programs_own_gets_the_log_and_no_line_is_forged(monkeypatch, capfd):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    stderr = Own(sys.stderr)
    monkeypatch.setattr(sys, "stderr", stderr)

    def log(server):
        logging.getLogger("of the program").warning("got %s", "\x1b[2J\n2026-11-27 forged")
        server.shutdown()

    level = root.level
    try:
        assert serve(log) == 0
    finally:
        root.setLevel(level)
    lines = stderr.text.splitlines()
    assert [line for line in lines if "listening on" in line] == lines[:1]
    assert lines[1][24:] == r"WARNING got \x1b[2J\n2026-11-27 forged"


def file():
    return open(os.devnull, "w")


def wrapper():
    return io.TextIOWrapper(io.BytesIO())


@pytest.mark.parametrize(
    "stream, how", [(file, "close"), (file, "detach"), (wrapper, "close"), (wrapper, "detach"), (io.StringIO, "close")]
)
def test_a_program_that_has_closed_its_standard_error_may_log(monkeypatch, stream, how):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(sys, "stderr", stream())
    rest = getattr(sys.stderr, how)()
    logged = []

    def log(server):
        server.shutdown()
        logging.getLogger("of the program").warning("hello")
        logged.append("hello")

    level = root.level
    try:
        assert serve(log) == 0
    finally:
        root.setLevel(level)
    assert logged
    if rest is not None:
        rest.close()


def as_python(monkeypatch):
    """Let the log be as Python begins, and put Python's own functions where pytest has others. Return a function that
    says which of them are replaced."""
    places = (threading, "excepthook"), (sys, "unraisablehook"), (warnings, "showwarning")
    pythons = _thread._excepthook, sys.__unraisablehook__, warnings._showwarning_orig
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    for (place, name), python in zip(places, pythons):
        monkeypatch.setattr(place, name, python)
    return lambda: [getattr(place, name) is not python for (place, name), python in zip(places, pythons)]


class Dies:
    def __del__(self):
        raise ValueError("\x1b[2J\n2026-11-27 forged")


def test_what_python_prints_of_threads_finalizers_and_warnings_is_logged_and_no_line_is_forged(monkeypatch, capsys):
    """Row 63: the session of a client may end with an exception that ends its thread, such as CancelledError."""
    root = logging.getLogger()
    replaced = as_python(monkeypatch)

    def act(server):
        def fail():
            raise KeyboardInterrupt("\x1b[2J\n2026-11-27 forged")

        thread = threading.Thread(target=fail, name="of a client\n")
        thread.start()
        thread.join()
        Dies()
        gc.collect()
        warnings.showwarning(UserWarning("\x1b[2J\n2026-11-27 forged"), UserWarning, "own.py", 7)
        server.shutdown()

    level = root.level
    try:
        assert serve(act) == 0
    finally:
        root.setLevel(level)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("  | ")]
    assert [line[24:] for line in lines[1:4]] == [
        r"ERROR   exception in thread of a client\n",
        lines[2][24:],
        r"WARNING own.py:7: UserWarning: \x1b[2J\n2026-11-27 forged",
    ]
    assert "Dies.__del__" in lines[2] and len(lines) == 5
    assert replaced() == [False] * 3


@pytest.mark.parametrize("at_once", [False, True])
def test_a_second_run_logs_what_python_prints_as_the_first_one_does(monkeypatch, at_once):
    """Row 63: it took the handler of the first one for the program's own, and the first one's end was that of both."""
    root = logging.getLogger()
    replaced = as_python(monkeypatch)
    seen = []

    def look(server):
        seen.append(replaced())
        server.shutdown()

    def begin_another(server):
        other.start()
        assert begun.wait(DEADLINE)
        look(server)

    def look_after_the_first(server):
        begun.set()
        assert ended.wait(DEADLINE)
        look(server)

    begun, ended = threading.Event(), threading.Event()
    other = threading.Thread(target=serve, args=(look_after_the_first if at_once else look,))
    level = root.level
    try:
        assert serve(begin_another if at_once else look) == 0
        ended.set()
        if not at_once:
            other.start()
        other.join()
    finally:
        root.setLevel(level)
    assert seen == [[True] * 3] * 2
    assert replaced() == [False] * 3
    assert len(root.handlers) == 1


@posix
def test_long_lines_of_processes_that_the_program_forks_are_not_mixed(monkeypatch):
    """Rows 63 and 67: a client's text in the middle of one would begin a line."""
    root = logging.getLogger()
    reader, writer = os.pipe()
    monkeypatch.setattr(root, "handlers", [])
    received = b""

    def log(letter):
        (direct,) = root.handlers
        direct._output.patience = DEADLINE
        for _ in range(10):
            logging.getLogger("of the program").warning(letter * 30_000)
        os._exit(0)

    def act(server):
        nonlocal received
        children = [os.fork() or log(letter) for letter in "abc"]
        while children or select.select([reader], [], [], 0)[0]:
            if select.select([reader], [], [], 0.01)[0]:
                received += os.read(reader, 4096)
            elif os.waitpid(children[0], os.WNOHANG)[0]:
                del children[0]
        server.shutdown()

    level = root.level
    try:
        with open(writer, "w") as stderr:
            monkeypatch.setattr(sys, "stderr", stderr)
            assert serve(act) == 0
    finally:
        root.setLevel(level)
        os.close(reader)
    lines = [line.partition(b"WARNING ")[2] for line in received.splitlines() if b"aaaa" in line or b"bbbb" in line]
    assert lines and set(lines) <= {b"a" * 30_000, b"b" * 30_000}


def test_it_runs_any_handler_with_the_options_of_the_server(lines):
    def act(server):
        assert server.max_connections == 7
        server.shutdown()

    assert serve(act, max_connections=7) == 0


def test_it_serves_while_it_runs(dial):
    def act(server):
        def talk():
            with socket.create_connection(server.server_address, DEADLINE) as client:
                seen.append(echoes(client))
            server.shutdown()

        threading.Thread(target=talk).start()

    seen = []
    assert serve(act) == 0
    assert seen == [True]


@posix
def test_a_signal_drains_a_session_that_a_subclass_serves_in_the_accept_loop(dial, monkeypatch):
    """Row 84: a relative."""

    class OneAtATime(echo.Server):
        def process_request(self, request, client_address):
            self.finish_request(request, client_address)
            self.shutdown_request(request)

        def shutdown(self):  # a program's own handlers may look at what it sets
            shutdowns.append(self)
            super().shutdown()

    class Signals(echo.EchoRequestHandler):
        def message_received(self, message):
            self.send(message)
            signal.raise_signal(signal.SIGTERM)

    def act(server):
        client = dial(server)
        client.sendall(b"hello\n")

        def read():
            try:
                seen.append(read_all(client))
            finally:
                client.close()

        readers.append(threading.Thread(target=read))
        readers[0].start()

    seen, readers, shutdowns = [], [], []
    monkeypatch.setattr("echo.running._announce", lambda server, signals: act(server))
    address = ("127.0.0.1", 0)
    assert echo.run(Signals, address, server_class=OneAtATime, shutdown_timeout=None) == 0
    readers[0].join()
    assert seen == [b"hello\n"]
    assert shutdowns
