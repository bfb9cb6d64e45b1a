"""``echo.Server`` in place of ``socketserver.ThreadingTCPServer``: CPython's tests, stock handlers, overridden hooks.

Tests of stock handlers and of hooks run with both classes, since the standard library defines what is right.
"""

import ast
import concurrent.futures
import contextlib
import functools
import http.client
import http.server
import importlib.util
import json
import pathlib
import re
import socket
import socketserver
import sys
import threading
import time
from typing import NamedTuple

import pytest

import echo
from echo.sockets import unread
from support import DEADLINE, Recorder, eventually, read_all, read_exactly

BOTH = (socketserver.ThreadingTCPServer, echo.Server)
on_both = pytest.mark.parametrize("base", BOTH, ids=["stock", "echo"])


@contextlib.contextmanager
def serving(server, poll_interval=0.01):
    """Run ``serve_forever`` of any ``socketserver`` server in a thread; stop and close the server at the end."""
    thread = threading.Thread(target=server.serve_forever, args=(poll_interval,), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        server.shutdown()
        thread.join(DEADLINE)
        server.server_close()
    assert not thread.is_alive()


def make(base, handler_class, **attributes):
    """A server on a free port of a subclass of ``base`` with these attributes; its close waits for no client."""
    cls = type("Served", (base,), dict({"daemon_threads": True}, **attributes))
    return cls(("127.0.0.1", 0), handler_class)


class Lines(socketserver.StreamRequestHandler):
    """A stock handler that returns every line in capitals."""

    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


def is_answered(sock):
    """Whether ``Lines`` answers."""
    sock.sendall(b"are you there\n")
    return read_exactly(sock, 14) == b"ARE YOU THERE\n"


# CPython's own tests.


class Replacement(NamedTuple):
    """Replace ``old``, which occurs once in the text of one class or function of ``test_socketserver``, by ``new``."""

    where: str
    old: str
    new: str


REPLACEMENTS = [
    Replacement("", "import socketserver", "import socketserver, time, echo"),
    Replacement("SocketServerTest.test_ThreadingTCPServer", "socketserver.ThreadingTCPServer", "echo.Server"),
    # Threading TCP servers that are put together from their parts.
    Replacement(
        "SocketServerTest.test_close_immediately",
        "class MyServer(socketserver.ThreadingMixIn, socketserver.TCPServer):",
        "class MyServer(echo.Server):",
    ),
    Replacement(
        "MiscTestCase.test_threads_reaped",
        "class MyServer(socketserver.ThreadingMixIn, socketserver.TCPServer):",
        "class MyServer(echo.Server):",
    ),
    # The list of threads is private, and echo.Server has none; its connections are public. They end in threads of their
    # own, which on a busy machine need not have run by now.
    Replacement(
        "MiscTestCase.test_threads_reaped",
        "self.assertLess(len(server._threads), 10)",
        "while len(server.connections) >= 10: time.sleep(0.001)",
    ),
    # The base of the threading server whose handlers raise. The original stays: the forking one has it too.
    Replacement("EchoErrorTestServer", "socketserver.TCPServer", "echo.Server"),
    Replacement("ThreadingErrorTestServer", "socketserver.ThreadingMixIn, BaseErrorTestServer", "EchoErrorTestServer"),
    # Tests of every TCP server, with threads or without.
    Replacement(
        "SocketServerTest.test_shutdown", "class MyServer(socketserver.TCPServer)", "class MyServer(echo.Server)"
    ),
    Replacement("SocketServerTest.test_tcpserver_bind_leak", "socketserver.TCPServer", "echo.Server"),
    Replacement("SocketServerTest.test_context_manager", "socketserver.TCPServer", "echo.Server"),
    Replacement(
        "MiscTestCase.test_shutdown_request_called_if_verify_request_false",
        "class MyServer(socketserver.TCPServer)",
        "class MyServer(echo.Server)",
    ),
]

SERVERS_MADE = {
    "ErrorHandlerTest.test_threading_handled": 1,
    "ErrorHandlerTest.test_threading_not_handled": 1,
    "MiscTestCase.test_shutdown_request_called_if_verify_request_false": 1,
    "MiscTestCase.test_threads_reaped": 1,
    "SocketServerTest.test_ThreadingTCPServer": 1,
    "SocketServerTest.test_close_immediately": 1,
    "SocketServerTest.test_context_manager": 1,
    "SocketServerTest.test_shutdown": 20,
    "SocketServerTest.test_tcpserver_bind_leak": 1024,
}
"""The number of ``echo.Server`` objects that CPython's tests make after the replacements; tests not named make none."""

RUNNER = """\
import collections, json, sys, threading, time, unittest
import echo
import test.support

test.support.use_resources = ["network"]
test.support.verbose = 0
import socketserver_on_echo

made = collections.Counter()
running = None
make = echo.Server.__init__

def counted(self, *args, **kwargs):
    made[running] += 1
    make(self, *args, **kwargs)

class Result(unittest.TextTestResult):
    def startTest(self, test):
        global running
        running = test.id().split(".", 1)[1]
        super().startTest(test)

echo.Server.__init__ = counted
suite = unittest.defaultTestLoader.loadTestsFromModule(socketserver_on_echo)
result = unittest.TextTestRunner(sys.stderr, verbosity=2, resultclass=Result).run(suite)
# CPython's own check for threads that are left gives them a second, which may be too short on a busy machine.
while threading.active_count() > 1:
    time.sleep(0.001)
report = {
    "passed": result.wasSuccessful(),
    "ran": result.testsRun,
    "skipped": [test.id().split(".", 1)[1] for test, _ in result.skipped],
    "made": made,
}
with open("report.json", "w") as file:
    json.dump(report, file)
"""


def span_of(source, qualified_name):
    """The first and last position of a class or function in ``source``; of everything if the name is empty."""
    if not qualified_name:
        return 0, len(source)
    node = ast.parse(source)
    for name in qualified_name.split("."):
        node = next(child for child in node.body if getattr(child, "name", None) == name)
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts[node.lineno - 1], starts[node.end_lineno]


def with_echo_server(source):
    """Return the text of ``test_socketserver`` with every replacement made, each exactly once."""
    first, last = span_of(source, "BaseErrorTestServer")
    copy = source[first:last].replace("class BaseErrorTestServer(", "class EchoErrorTestServer(")
    source = f"{source[:last]}\n\n{copy}{source[last:]}"
    for where, old, new in REPLACEMENTS:
        first, last = span_of(source, where)
        pattern = r"\s+".join(re.escape(word) for word in old.split())
        text, count = re.subn(rf"{pattern}(?!\w)", new, source[first:last])
        assert count == 1, f"{old!r} is {count} times, not once, in {where or 'the module'}"
        source = source[:first] + text + source[last:]
    return source


@pytest.fixture(scope="module")
def cpythons_tests():
    """The text of the running interpreter's ``test_socketserver``."""
    try:
        spec = importlib.util.find_spec("test.test_socketserver")
        importlib.import_module("test.support")
    except ImportError as exc:
        pytest.skip(f"this interpreter has no test package: {exc}")
    if spec is None or not spec.has_location:
        pytest.skip("this interpreter has no test.test_socketserver")
    return pathlib.Path(spec.origin).read_text("utf-8")


@pytest.mark.slow
def test_the_replacements_leave_no_threading_tcp_server_of_the_standard_library_in_cpythons_tests(cpythons_tests):
    stock = re.compile(r"socketserver\.Threading(MixIn|TCPServer)\b")
    assert len(stock.findall(cpythons_tests)) == 4
    source = with_echo_server(cpythons_tests)
    assert not stock.search(source)
    assert source.count("echo.Server") == sum("echo.Server" in replacement.new for replacement in REPLACEMENTS) == 8


@pytest.mark.slow
def test_cpythons_own_tests_pass_on_the_server(cpythons_tests, run, tmp_path):
    """It ends only when no thread is left."""
    (tmp_path / "socketserver_on_echo.py").write_text(with_echo_server(cpythons_tests), "utf-8")
    (tmp_path / "run_them.py").write_text(RUNNER, "utf-8")
    process = run("run_them", cwd=str(tmp_path))
    code, _ = process.finish()
    assert code == 0, process.log
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"], process.log
    assert report["ran"] >= 20, process.log
    assert not set(report["skipped"]) & set(SERVERS_MADE), process.log
    assert report["made"] == SERVERS_MADE
    assert "ResourceWarning" not in process.log


# The standard library's web server.


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass


@pytest.fixture
def files(tmp_path):
    """Name and content of some files in ``tmp_path``."""
    contents = {f"{size}.bin": bytes(range(256)) * (size // 256) for size in (0, 256, 5120, 262144)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return contents


@pytest.mark.parametrize("clients", [10, pytest.param(100, marks=pytest.mark.stress)])
def test_parallel_http_clients_each_get_the_right_files_over_one_connection(serve, files, tmp_path, clients):
    # A stop that waited for the idle clients would cut them after a time that no test has, and return False.
    server = serve(functools.partial(QuietFiles, directory=str(tmp_path)), shutdown_timeout=10 * DEADLINE)
    together = threading.Barrier(clients)

    def browse(_):
        connection = stack.enter_context(
            contextlib.closing(http.client.HTTPConnection(*server.server_address, timeout=DEADLINE))
        )
        connection.connect()
        sock = connection.sock
        together.wait(DEADLINE)
        got = {}
        for name in files:
            connection.request("GET", f"/{name}")
            response = connection.getresponse()
            got[name] = response.read()
            assert response.status == 200
            assert connection.sock is sock, "it was not kept alive"
        return sock, got

    with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(clients) as pool:
        results = list(pool.map(browse, range(clients)))
        assert [got for _, got in results] == [files] * clients
        assert len(server.connections) == clients, "they are idle and open"
        assert server.stats().accepted == clients
        assert server.stop() is True
        assert server.stats().ended == {"drain": clients}
        assert [sock.recv(1) for sock, _ in results] == [b""] * clients


# Stock handlers.


@on_both
def test_a_stock_line_handler_answers_every_client_to_the_end_of_its_input(base, dial):
    server = make(base, Lines)
    with serving(server):
        clients = [dial(server) for _ in range(5)]
        for number, client in enumerate(clients):
            client.sendall(b"client %d\nand " % number)
        for number, client in enumerate(clients):
            assert read_exactly(client, 9) == b"CLIENT %d\n" % number
        for client in clients:
            client.sendall(b"more\nrest")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"AND MORE\nREST"


@on_both
def test_a_handler_class_gets_its_three_steps_in_its_own_thread(base, dial):
    steps = []
    over = threading.Event()

    class Steps(socketserver.BaseRequestHandler):
        def setup(self):
            steps.append(("setup", threading.get_ident()))

        def handle(self):
            steps.append(("handle", threading.get_ident()))
            self.request.sendall(repr((self.client_address, self.server is server)).encode())

        def finish(self):
            steps.append(("finish", threading.get_ident()))
            over.set()

    server = make(base, Steps)
    with serving(server) as thread:
        client = dial(server)
        assert read_all(client) == repr((client.getsockname(), True)).encode()
        assert over.wait(DEADLINE)
        names, threads = zip(*steps)
        assert names == ("setup", "handle", "finish")
        assert len(set(threads)) == 1
        assert not set(threads) & {thread.ident, threading.get_ident()}
        client.close()


@on_both
def test_a_handler_that_raises_is_reported_once_with_its_socket_open_and_the_server_lives(base, dial):
    reported = []

    class Raises(Lines):
        def handle(self):
            if self.rfile.readline() == b"raise\n":
                raise LookupError("a mistake of the handler")
            self.wfile.write(b"fine\n")

    def handle_error(self, request, client_address):
        request.sendall(b"sorry\n")
        reported.append((client_address, sys.exc_info()[1]))

    server = make(base, Raises, handle_error=handle_error)
    with serving(server):
        unlucky = dial(server)
        unlucky_address = unlucky.getsockname()
        unlucky.sendall(b"raise\n")
        assert read_all(unlucky) == b"sorry\n"
        unlucky.close()
        lucky = dial(server)
        lucky.sendall(b"do not\n")
        assert read_all(lucky) == b"fine\n"
        lucky.close()
        [(client_address, error)] = reported
        assert client_address == unlucky_address
        assert isinstance(error, LookupError)


# Overridden hooks.


@on_both
def test_the_other_hooks_and_the_handler_get_what_get_request_returns(base, dial):
    seen = []
    closed = threading.Event()

    class Hooked(base):
        def get_request(self):
            request, (_, port) = super().get_request()
            return request, ("192.0.2.1", port)

        def verify_request(self, request, client_address):
            seen.append(("verify_request", client_address))
            return super().verify_request(request, client_address)

        def process_request(self, request, client_address):
            seen.append(("process_request", client_address))
            super().process_request(request, client_address)

        def finish_request(self, request, client_address):
            seen.append(("finish_request", client_address))
            super().finish_request(request, client_address)

        def shutdown_request(self, request):
            seen.append(("shutdown_request", request.fileno() != -1))
            super().shutdown_request(request)

        def close_request(self, request):
            super().close_request(request)
            seen.append(("close_request", request.fileno() != -1))
            closed.set()

    class Noted(socketserver.BaseRequestHandler):
        def handle(self):
            seen.append(("handle", self.client_address))

    server = make(Hooked, Noted)
    with serving(server):
        client = dial(server)
        assert read_all(client) == b""
        client.close()
        assert closed.wait(DEADLINE)
    address = ("192.0.2.1", seen[0][1][1])
    assert seen == [
        ("verify_request", address),
        ("process_request", address),
        ("finish_request", address),
        ("handle", address),
        ("shutdown_request", True),
        ("close_request", False),
    ]


@on_both
def test_methods_of_a_program_s_own_base_are_called_although_it_is_listed_last(base, dial):
    """Row 61: TLS in the ``get_request`` of such a base was left out, and its clients were served in clear."""
    called = []

    class Own(socketserver.TCPServer):
        def get_request(self):
            called.append("get_request")
            return super().get_request()

        def verify_request(self, request, client_address):
            called.append("verify_request")
            return super().verify_request(request, client_address)

        def finish_request(self, request, client_address):
            called.append("finish_request")
            super().finish_request(request, client_address)

    first = (base,) if base is echo.Server else (socketserver.ThreadingMixIn,)
    server = type("S", (*first, Own), {})(("127.0.0.1", 0), Lines)
    with serving(server), dial(server) as client:
        assert is_answered(client)
    assert called == ["get_request", "verify_request", "finish_request"]


@on_both
def test_a_client_that_verify_request_refuses_is_closed_and_never_handled(base, dial):
    refused = []
    shut = []

    def verify_request(self, request, client_address):
        if not refused:
            refused.append(client_address)
            return False
        return True

    def shutdown_request(self, request):
        shut.append(request)
        base.shutdown_request(self, request)

    server = make(base, Lines, verify_request=verify_request, shutdown_request=shutdown_request)
    with serving(server):
        unwanted = dial(server)
        assert read_all(unwanted) == b""
        assert refused == [unwanted.getsockname()]
        assert len(shut) == 1
        assert is_answered(dial(server))


@on_both
def test_process_request_may_handle_clients_in_the_serving_thread(base, dial):
    threads = []

    class Recording(Lines):
        def handle(self):
            threads.append(threading.get_ident())
            super().handle()

    def process_request(self, request, client_address):
        self.finish_request(request, client_address)
        self.shutdown_request(request)

    server = make(base, Recording, process_request=process_request)
    with serving(server) as thread:
        for _ in range(3):
            client = dial(server)
            assert is_answered(client)
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b""
        assert threads == [thread.ident] * 3


@on_both
def test_process_request_may_pass_clients_to_a_pool_of_threads(base, dial):
    handled = []

    class Recording(Lines):
        def handle(self):
            handled.append(threading.current_thread().name)
            super().handle()

    with concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="pool") as pool:

        def process_request(self, request, client_address):
            pool.submit(self.process_request_thread, request, client_address)

        server = make(base, Recording, process_request=process_request)
        with serving(server):
            for _ in range(5):
                client = dial(server)
                assert is_answered(client)
                client.shutdown(socket.SHUT_WR)
                assert read_all(client) == b""
            assert len(handled) == 5
            assert all(name.startswith("pool") for name in handled)


@on_both
def test_an_exception_in_process_request_is_reported_once_and_costs_that_client_only(base, dial):
    reported = []

    def process_request(self, request, client_address):
        if not reported:
            raise LookupError("a mistake of the server's subclass")
        base.process_request(self, request, client_address)

    def handle_error(self, request, client_address):
        reported.append((client_address, sys.exc_info()[0]))

    server = make(base, Lines, process_request=process_request, handle_error=handle_error)
    with serving(server):
        unlucky = dial(server)
        assert read_all(unlucky) == b""
        assert is_answered(dial(server))
        assert reported == [(unlucky.getsockname(), LookupError)]


@on_both
def test_service_actions_is_called_after_every_poll_interval(base, dial):
    poll_interval = 0.02
    calls = []

    def service_actions(self):
        calls.append(time.monotonic())

    server = make(base, Lines, service_actions=service_actions)
    with serving(server, poll_interval):
        eventually(lambda: len(calls) > 5, "service_actions() is not called")
        assert calls[5] - calls[0] > 5 * poll_interval * 0.9, "it is called too often"
        assert is_answered(dial(server))
        so_far = len(calls)
        eventually(lambda: len(calls) > so_far + 1, "service_actions() is not called once there is a client")


@on_both
def test_handle_request_calls_handle_timeout_when_no_client_comes_in_time(base, dial):
    timeouts = []
    server = make(base, Lines, timeout=0.05, handle_timeout=lambda self: timeouts.append(time.monotonic()))
    with server:
        began = time.monotonic()
        server.handle_request()
        assert len(timeouts) == 1
        assert timeouts[0] - began > 0.045
        client = dial(server)
        server.timeout = DEADLINE
        server.handle_request()
        assert is_answered(client)
        assert len(timeouts) == 1, "a client came"
        client.close()


@on_both
def test_handle_request_without_a_timeout_waits_for_a_client(base, dial):
    timeouts = []
    server = make(base, Lines, handle_timeout=lambda self: timeouts.append("called"))
    with server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        client = dial(server)
        assert is_answered(client)
        thread.join(DEADLINE)
        assert not thread.is_alive(), "it serves one client"
        assert not timeouts
        client.close()


@on_both
def test_handle_request_accepts_one_of_the_waiting_clients(base, dial):
    taken = []

    def verify_request(self, request, client_address):
        taken.append(client_address)
        return True

    server = make(base, Lines, verify_request=verify_request)
    with server:
        clients = [dial(server) for _ in range(3)]
        for count, client in enumerate(clients):
            assert len(taken) == count
            server.handle_request()
            assert is_answered(client)
        assert taken == [client.getsockname() for client in clients]
        for client in clients:
            client.close()


@on_both
def test_a_server_made_unbound_can_be_bound_and_activated_later(base, dial):
    class Late(base):
        daemon_threads = True

        def server_bind(self):
            steps.append("bind")
            super().server_bind()

        def server_activate(self):
            steps.append("activate")
            super().server_activate()

    steps = []
    server = Late(("127.0.0.1", 0), Lines, bind_and_activate=False)
    with contextlib.ExitStack() as stack:
        stack.callback(server.server_close)
        assert steps == []
        server.server_bind()
        server.server_activate()
        assert steps == ["bind", "activate"]
        assert server.server_address == server.socket.getsockname()
        assert server.fileno() == server.socket.fileno()
        stack.enter_context(serving(server))
        assert is_answered(dial(server))


# Our handlers on the standard library's server.


class Stock(socketserver.ThreadingTCPServer):
    """The standard library's server, with an event for its first closed connection."""

    daemon_threads = True

    def __init__(self, handler_class):
        self.closed = threading.Event()
        super().__init__(("127.0.0.1", 0), handler_class)

    def shutdown_request(self, request):
        super().shutdown_request(request)
        self.closed.set()


def test_the_echo_handler_echoes_on_the_stock_server(dial):
    with Stock(echo.EchoRequestHandler) as server, serving(server):
        client = dial(server)
        client.sendall(b"one\ntwo\n")
        assert read_exactly(client, 8) == b"one\ntwo\n"
        client.sendall(b"and the rest")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"and the rest"


def test_the_hooks_of_a_message_handler_are_called_on_the_stock_server(dial):
    class Upper(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(message.upper())

    handler_class = Recorder.of(Upper)
    with Stock(handler_class) as server, serving(server):
        client = dial(server)
        client.sendall(b"one\ntwo\n")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"ONE\nTWO\n"
        assert handler_class.ended.wait(DEADLINE)
        assert handler_class.events == ["made", b"one", b"two", "lost"]
        assert handler_class.reasons == ["eof"]


def test_a_hook_that_raises_is_reported_by_the_stock_server_once(dial):
    reported = []

    class Broken(echo.MessageRequestHandler):
        def message_received(self, message):
            raise LookupError("a mistake of the hook")

    class Reporting(Stock):
        def handle_error(self, request, client_address):
            reported.append(sys.exc_info()[0])

    handler_class = Recorder.of(Broken)
    with Reporting(handler_class) as server, serving(server):
        client = dial(server)
        client.sendall(b"one\ntwo\n")
        assert read_all(client) == b""
        client.close()
        assert server.closed.wait(DEADLINE)
        assert reported == [LookupError]
        assert handler_class.reasons == ["error"]


@pytest.mark.parametrize("how", ["from its hook", "from another thread"])
def test_abort_is_a_reset_on_the_stock_server_too(dial, how):
    class Aborting(echo.MessageRequestHandler):
        def message_received(self, message):
            kept.append(self)
            if how == "from its hook":
                self.abort()

    kept = []
    handler_class = Recorder.of(Aborting)
    with Stock(handler_class) as server, serving(server):
        client = dial(server)
        client.sendall(b"one\n")
        eventually(lambda: kept)
        if how == "from another thread":
            kept[0].abort()
        with pytest.raises(ConnectionResetError):
            read_all(client)
        assert server.closed.wait(DEADLINE)
        assert handler_class.reasons == ["reset"]


def test_a_client_that_sends_on_after_exit_gets_every_reply_from_the_stock_server(dial):
    lines = b"".join(b"reply %05d\n" % number for number in range(4000))
    sent = lines + b"exit\n" + b"too late\n" * 6000  # more than one read takes, along with the exit and after it

    class Roomy(echo.EchoRequestHandler):
        def setup(self):
            # The replies wait here, since the client does not read; a reset would discard them.
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * len(lines))
            # From here on nothing depends on how soon the client's thread runs.
            eventually(lambda: unread(self.request) in (len(sent), None))
            super().setup()

    with Stock(Roomy) as server, serving(server), socket.socket() as client:
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * len(sent))  # inherited by the accepted socket
        client.settimeout(DEADLINE)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.server_address)
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert server.closed.wait(DEADLINE)
        assert read_all(client) == lines
