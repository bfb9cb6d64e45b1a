"""A child that a handler or a program forks is not the server: it ends no session of its parent, keeps no port, and
waits for no thread of its parent."""

import os
import re
import subprocess
import sys

import pytest

from support import DEADLINE, ROOT, TESTS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

BEGINNING = """if True:
    import echo, os, select, socket, socketserver, sys, threading, time, warnings

    warnings.simplefilter("ignore")  # of a fork with threads, which is what this is about

    def dial(server):
        return socket.create_connection(server.server_address, 60)

    def echoes(sock):
        sock.sendall(b"hello\\n")
        return sock.recv(100) == b"hello\\n"

    def check(right):
        if not right:  # not an assertion: those are not run with -O
            raise SystemExit("it is not so")

    def code_of(child):
        return os.waitpid(child, 0)[1]

    def eventually(condition):
        while not condition():
            time.sleep(0.001)

"""


def output_of(script):
    """The output of a new Python that runs this script to its end. Not in development mode, in which CPython 3.8 aborts
    when a child ends."""
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING + script],
        cwd=ROOT,
        env=dict(os.environ, PYTHONDEVMODE=""),
        timeout=DEADLINE,
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout.decode().split("\n")[:-1]


@pytest.mark.parametrize(
    "ending",
    ["sys.exit(7)", "sys.exit(7 * server.stop())", "server.__exit__(); sys.exit(7)", "server.shutdown(); sys.exit(7)"],
    ids=["exit", "stop", "with", "shutdown"],
)
def test_a_forked_child_of_a_server_ends_and_its_parents_sessions_live(ending):
    """Rows 39 and 81."""
    script = f"""
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler).start()
    client = dial(server)
    check(echoes(client))
    child = os.fork()
    if not child:
        {ending}
    print(code_of(child) >> 8)
    print(echoes(client), echoes(dial(server)), server.stop())
    """
    assert output_of(script) == ["7", "True True True"]


def test_a_child_that_a_handler_forks_keeps_no_port_and_no_other_sessions_socket():
    """Row 47."""
    script = """
    children = []

    class Forks(echo.EchoRequestHandler):
        def message_received(self, message):
            if message == b"fork":
                child = os.fork()
                if not child:
                    others.remove(self.request)
                    open_sockets = [self.server.socket.fileno(), *(other.fileno() for other in others)]
                    os.write(1, b"%r %r\\n" % (set(open_sockets), self.server.connections))
                    self.send(b"from the child")
                    self.flush()
                    ends[0].recv(1)
                    os._exit(0)
                children.append(child)
            elif message == b"abort":
                self.abort()
            else:
                self.send(message)

        def connection_made(self):
            others.append(self.request)

    others = []
    ends = socket.socketpair()
    server = echo.Server(("127.0.0.1", 0), Forks).start()
    resets, forks = dial(server), dial(server)
    check(echoes(resets))
    check(echoes(forks))
    forks.sendall(b"fork\\n")
    check(forks.recv(100) == b"from the child\\n")
    resets.sendall(b"abort\\n")
    try:
        resets.recv(1)
    except ConnectionResetError:
        print("reset")
    print(server.stop())
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(server.server_address)
        sock.listen()
    ends[1].close()
    ends[0].shutdown(socket.SHUT_RDWR)
    print(code_of(children[0]))
    """
    assert output_of(script) == ["{-1} []", "reset", "True", "0"]


def test_a_child_that_is_forked_during_a_stop_does_not_wait_for_it():
    script = """
    class Forks(echo.EchoRequestHandler):
        def message_received(self, message):
            eventually(lambda: self.server._echo_stop is not None)
            child = os.fork()
            if not child:
                os._exit(7 * self.server.stop())
            self.send(b"%d" % (code_of(child) >> 8))

    server = echo.Server(("127.0.0.1", 0), Forks).start()
    client = dial(server)
    client.sendall(b"fork\\n")
    eventually(lambda: server.stats().accepted)
    print(server.stop(), client.recv(100))
    """
    assert output_of(script) == ["True b'7\\n'"]


ENDINGS = """
    import logging

    logging.basicConfig(stream=sys.stdout, level="DEBUG", format="%(levelname)s %(message)s")
    sys.excepthook = lambda cls, exc, traceback: print("excepthook", exc)
    own = os.getpid()

    def end(how):
        if how == "raise":
            raise EOFError("in the child")
        if how == "exit":
            sys.exit(7)

"""


def test_a_child_that_comes_back_from_its_hook_ends_there_and_its_parents_session_goes_on():
    """Rows 39 and 81. It took its parent's messages, sent its parent's replies, and ended its parent's connection."""
    script = f"""{ENDINGS}
    class Forks(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(b"before")
            child = os.fork()
            if not child:
                self.send(b"child")
                print("child", message.decode())
                return end(message.decode())
            self.send(b"%d" % (code_of(child) >> 8))

        def connection_lost(self, reason):
            print("lost", reason, os.getpid() == own)

    with echo.Server(("127.0.0.1", 0), Forks).start() as server:
        client = dial(server)
        client.sendall(b"return\\nraise\\nexit\\n")
        client.shutdown(socket.SHUT_WR)
        print(client.makefile("rb").read().split())
        eventually(lambda: not server.connections)
        print(server.stats()[3:6], flush=True)
    """
    assert output_of(script) == [
        "child return",
        "child raise",
        "excepthook in the child",
        "child exit",
        "lost eof True",
        str([*[b"child"] * 3, b"before", b"0", b"before", b"1", b"before", b"7"]),
        "({'eof': 1}, 3, 6)",
        "INFO stopped: 0 sessions drained, 0 cut",
    ]


FORGED = "2026-01-01 00:00:00.000 INFO    forged\n2026-01-01 00:00:00.000 INFO    forged\x1b[2J"
SHOWN = r"2026-01-01 00:00:00.000 INFO    forged\n2026-01-01 00:00:00.000 INFO    forged\x1b[2J"


TALKS = """
    class Server(echo.Server):
        def server_activate(self):
            super().server_activate()
            threading.Thread(target=talk, args=(self,)).start()
"""


@pytest.mark.parametrize("log", ["run", "own", "none"])
def test_what_a_peer_sent_forges_no_line_of_the_log_when_it_ends_a_child(log):
    """Row 63: in the log of ``echo.run``, in one of the program's own, and where none is configured."""
    script = f"""
    import logging, signal

    os.dup2(1, 2)

    class Forks(echo.MessageRequestHandler):
        framing = echo.LengthFraming()

        def message_received(self, message):
            child = os.fork()
            if not child:
                raise (ValueError if message[:1] == b"V" else SystemExit)(message[1:].decode())
            self.send(b"%d" % (code_of(child) >> 8))

    {TALKS}

    def talk(server):
        with echo.connect(server.server_address, framing=echo.LengthFraming()) as client:
            for letter in (b"V", b"S"):
                client.send(letter + {FORGED.encode()!r})
                print("code", client.recv().decode(), flush=True)
        if "{log}" == "none":
            server.shutdown()
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    if "{log}" == "none":
        with Server(("127.0.0.1", 0), Forks) as server:
            server.serve_forever()
    else:
        if "{log}" == "own":
            logging.basicConfig(format="%(levelname)s %(message)s")
        echo.run(Forks, ("127.0.0.1", 0), server_class=Server)
    """
    lines = output_of(script)
    assert not [line for line in lines if line.startswith("2026-01-01") or not line.isprintable()]
    assert [line for line in lines if line.startswith("code")] == ["code 1"] * 2
    begin = "[-0-9]+ [.:0-9]+ ERROR   " if log == "run" else ""
    patterns = rf"{begin}exception in the forked process \d+", rf"{begin}process \d+: {re.escape(SHOWN)}"
    assert [sum(bool(re.fullmatch(pattern, line)) for line in lines) for pattern in patterns] == [1, 1]
    assert lines.count(f"  | ValueError: {SHOWN}") == 1


RUN_WITH_A_CHILD_THAT_FAILS = f"""
    import signal

    {TALKS}

    class Forks(echo.MessageRequestHandler):
        def message_received(self, message):
            child = os.fork()
            if not child:
                in_child()
                raise ValueError(message)
            self.send(b"%d" % (code_of(child) >> 8))

    def talk(server):
        with echo.connect(server.server_address) as client:
            client.send(b"hello")
            print("code", client.recv().decode())
        os.kill(os.getpid(), signal.SIGTERM)

    echo.run(Forks, ("127.0.0.1", 0), server_class=Server)
"""


@pytest.mark.parametrize(
    "stderr",
    [
        "sys.stderr",
        "open(2, 'w', closefd=False)",
        "None",
        "closed",
        "open(os.dup(1), 'w')",
        "Tee()",
        "Wrapper(os.fdopen(2, 'wb'))",
    ],
)
def test_an_exception_of_a_child_goes_to_its_own_standard_error_if_that_is_not_the_log_of_run(stderr, tmp_path):
    script = f"""
    import io

    log = os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)

    class Tee:
        def write(self, text):
            os.write(1, text.encode())

        def flush(self):
            pass

    class Wrapper(io.TextIOWrapper):
        def write(self, text):
            os.write(1, text.encode())

    closed = open(os.devnull)
    closed.close()

    def in_child():
        sys.stderr = {stderr}

    {RUN_WITH_A_CHILD_THAT_FAILS}
    """
    output, log = output_of(script), (tmp_path / "log").read_text().splitlines()
    own = stderr.startswith(("Tee", "Wrapper", "open(os.dup"))
    assert output.count("  | ValueError: b'hello'") == own
    assert log.count("  | ValueError: b'hello'") == (not own)


@pytest.mark.parametrize("refuses", ["lambda record: record.missing", "lambda record: False"])
@pytest.mark.parametrize("is_read", [True, False])
def test_an_exception_of_a_child_is_a_record_although_a_filter_of_the_program_refuses_it(refuses, is_read):
    """It must not wait for a reader either, as ``print()`` would."""
    script = f"""
    import logging

    os.dup2(1 if {is_read} else os.pipe()[1], 2)

    def in_child():
        logging.getLogger().handlers[0].addFilter({refuses})
        os.set_blocking(2, False)
        try:
            while not {is_read}:
                os.write(2, bytes(1000))
        except BlockingIOError:
            pass
        os.set_blocking(2, True)

    {RUN_WITH_A_CHILD_THAT_FAILS}
    """
    output = output_of(script)
    assert "code 1" in output
    assert sum(" ERROR " in line and "exception in the forked process" in line for line in output) == is_read
    assert output.count("  | ValueError: b'hello'") == is_read


@pytest.mark.parametrize(
    "problem",
    [
        "stderr = None",
        "stderr = open(os.devnull)",
        "stderr = closed",
        "stderr = unread",
        "excepthook = lambda *_: sys.exit(3)",
    ],
)
def test_a_child_that_cannot_print_its_exception_waits_for_its_threads(problem):
    script = f"""
    closed = open(os.devnull)
    closed.close()
    unread = open(os.pipe()[1], "w")

    class Forks(echo.MessageRequestHandler):
        def message_received(self, message):
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                sys.{problem}
                late = threading.Thread(target=lambda: (time.sleep(0.1), os.write(writer, b"done")), daemon=False)
                late.start()
                raise ValueError if message == b"error" else SystemExit("text")
            os.close(writer)
            self.send(b"%d %b" % (code_of(child) >> 8, os.read(reader, 10)))

    with echo.Server(("127.0.0.1", 0), Forks).start() as server:
        with echo.connect(server.server_address) as client:
            for message in (b"error", b"exit"):
                client.send(message)
                print(client.recv())
    """
    assert output_of(script) == ["b'1 done'"] * 2


@pytest.mark.parametrize(
    "hook",
    [
        "own",  # as that of Ubuntu (apport)
        "own fails",
        "type('Hook', (), {'__module__': 'exceptiongroup._formatting', '__call__': printed})()",  # of anyio, trio, ...
    ],
)
def test_what_a_peer_sent_forges_no_line_where_a_hook_prints_as_python(hook):
    """Row 63."""
    script = f"""
    os.dup2(1, 2)

    def own(*exc_info):
        print("reported", file=sys.stderr)
        if "fails" in {hook!r}:
            raise ZeroDivisionError
        sys.__excepthook__(*exc_info)

    def printed(self, cls, exc, traceback):
        print("reported", exc, file=sys.stderr)

    class Forks(echo.MessageRequestHandler):
        framing = echo.LengthFraming()

        def message_received(self, message):
            child = os.fork()
            if not child:
                raise ValueError(message.decode())
            self.send(b"%d" % (code_of(child) >> 8))

    sys.excepthook = {hook.replace(" fails", "")}
    with echo.Server(("127.0.0.1", 0), Forks).start() as server:
        with echo.connect(server.server_address, framing=echo.LengthFraming()) as client:
            client.send({FORGED.encode()!r})
            print(client.recv())
    """
    lines = output_of(script)
    assert not [line for line in lines if line.startswith("2026-01-01") or not line.isprintable()]
    assert lines.count("reported") == ("own" in hook)
    assert len([line for line in lines if re.fullmatch(r"exception in the forked process \d+", line)]) == 1
    assert lines[-2:] == [f"  | ValueError: {SHOWN}", "b'1'"]


def test_a_child_that_a_hook_forks_in_a_child_of_the_forking_mixin_ends_where_it_comes_back():
    script = f"""{ENDINGS}
    class Forking(socketserver.ForkingMixIn, echo.Server):
        pass

    class Forks(echo.MessageRequestHandler):
        def message_received(self, message):
            child = os.fork()
            if not child:
                return end(message.decode())
            self.send(b"%d" % (code_of(child) >> 8))

    with Forking(("127.0.0.1", 0), Forks).start() as server:
        client = dial(server)
        client.sendall(b"return\\nraise\\nexit\\n")
        client.shutdown(socket.SHUT_WR)
        print(client.makefile("rb").read(), flush=True)
    """
    assert output_of(script)[:2] == ["excepthook in the child", r"b'0\n1\n7\n'"]


@pytest.mark.parametrize("where", ["thread", "loop"])
def test_a_child_that_comes_back_from_a_stock_handler_ends_there(where):
    """``loop``: the server's class serves its clients in the accepting thread."""
    script = f"""{ENDINGS}
    class Forks(socketserver.StreamRequestHandler):
        def handle(self):
            for line in self.rfile:
                child = os.fork()
                if not child:
                    print("child", line.decode().strip())
                    return end(line.decode().strip())
                self.wfile.write(b"%d\\n" % (code_of(child) >> 8))

    class Server(echo.Server):
        if "{where}" == "loop":
            process_request = socketserver.BaseServer.process_request

    with Server(("127.0.0.1", 0), Forks).start() as server:
        client = dial(server)
        client.sendall(b"return\\nraise\\nexit\\n")
        client.shutdown(socket.SHUT_WR)
        print(client.makefile("rb").read(), flush=True)
        eventually(lambda: not server.connections)
    """
    assert output_of(script) == [
        "child return",
        "child raise",
        "excepthook in the child",
        "child exit",
        r"b'0\n1\n7\n'",
        "INFO stopped: 0 sessions drained, 0 cut",
    ]


@pytest.mark.parametrize("method", ["get_request", "verify_request", "process_request", "service_actions"])
def test_a_child_that_comes_back_from_a_method_of_the_servers_class_ends_and_serves_nobody(method):
    script = f"""{ENDINGS}
    class Server(echo.Server):
        def {method}(self, *args):
            result = super().{method}(*args)
            if not children:
                children.append(os.fork())
                if not children[0]:
                    end("exit")
            return result

    children = []
    server = Server(("127.0.0.1", 0), echo.EchoRequestHandler).start()
    client = dial(server)
    print(echoes(client), flush=True)
    eventually(lambda: children)
    print(code_of(children[0]) >> 8, echoes(client), flush=True)
    server.stop()
    """
    assert output_of(script)[:2] == ["True", "7 True"]


def test_a_child_that_comes_back_from_drain_ends_there_and_drains_no_other_session():
    """Row 81."""
    script = f"""{ENDINGS}
    class Forks(echo.EchoRequestHandler):
        def drain(self):
            child = os.fork()
            if not child:
                end("exit")
            print(os.getpid() == own, code_of(child) >> 8, flush=True)
            super().drain()

    server = echo.Server(("127.0.0.1", 0), Forks).start()
    clients = [dial(server), dial(server)]
    check(all(map(echoes, clients)))
    server.stop()
    """
    assert [line for line in output_of(script) if not line.startswith("INFO")] == ["True 7", "True 7"]


def test_a_process_that_a_handler_starts_under_run_ends_when_it_is_terminated():
    """Row 80."""
    script = """
    import multiprocessing, signal

    class Starts(echo.MessageRequestHandler):
        def message_received(self, message):
            process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
            process.start()
            process.terminate()
            process.join()
            self.send(b"%d" % process.exitcode)

    class Server(echo.Server):
        def server_activate(self):
            super().server_activate()
            threading.Thread(target=talk, args=(self,)).start()

    def talk(server):
        client = dial(server)
        client.sendall(b"start\\n")
        print(client.recv(100))
        os.kill(os.getpid(), signal.SIGTERM)

    print(echo.run(Starts, ("127.0.0.1", 0), server_class=Server))
    """
    assert output_of(script) == ["b'-15\\n'", "0"]


def test_the_end_of_a_child_that_serves_does_not_make_its_parents_socket_block():
    """Both have the same socket, and its mode: the parent would wait in accept(), and not stop."""
    script = """
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
    begin, write = os.pipe()
    child = os.fork()
    if not child:
        os.read(begin, 1)
        server.shutdown()
        server.serve_forever()
        os._exit(0)
    with server.start():
        os.write(write, b"x")
        print(code_of(child), os.get_blocking(server.fileno()))
    """
    assert output_of(script) == ["0 False"]


def test_a_child_that_serves_beside_its_parent_under_run_is_stopped_by_a_signal_as_well():
    script = """
    import signal

    class Server(echo.Server):
        def serve_forever(self, poll_interval=0.5):
            self.child = os.fork()
            servers.append(self)
            super().serve_forever(0)

        def service_actions(self):
            signal.raise_signal(signal.SIGTERM)

    servers = []
    code = echo.run(echo.EchoRequestHandler, ("127.0.0.1", 0), server_class=Server)
    if not servers[0].child:
        os._exit(code)
    print(code, code_of(servers[0].child))
    """
    assert output_of(script) == ["0 0"]


def test_a_process_that_the_server_class_starts_under_run_ends_when_it_is_terminated():
    """Row 80: before the server serves."""
    script = """
    import multiprocessing, signal

    class Server(echo.Server):
        def server_activate(self):
            super().server_activate()
            process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
            process.start()
            process.terminate()
            process.join()
            print(process.exitcode)
            signal.raise_signal(signal.SIGTERM)

    print(echo.run(echo.EchoRequestHandler, ("127.0.0.1", 0), server_class=Server))
    """
    assert output_of(script) == ["-15", "0"]


@pytest.mark.parametrize("method", ["server_activate", "serve_forever", "service_actions"])
def test_a_child_that_a_method_of_the_servers_class_forks_under_run_ends_when_it_is_terminated(method):
    script = f"""
    import signal

    class Server(echo.Server):
        def serve_forever(self):
            super().serve_forever(0)

        def {method}(self, *args):
            child = os.fork()
            if not child:
                time.sleep(60)
                os._exit(0)
            os.kill(child, signal.SIGTERM)
            print(code_of(child))
            signal.raise_signal(signal.SIGTERM)
            super().{method}(*args)

    print(echo.run(echo.EchoRequestHandler, ("127.0.0.1", 0), server_class=Server))
    """
    assert output_of(script) == ["15", "0"]


def test_ctrl_c_that_comes_at_a_fork_under_run_ends_the_child():
    """Python drops an exception that is raised while it calls the functions of ``os.register_at_fork``."""
    script = """
    from echo.server import forking

    class Signals:
        def now(self):
            os.kill(os.getpid(), 2)

    class Server(echo.Server):
        def server_activate(self):
            super().server_activate()
            forking.in_child(signals.now)
            child = os.fork()
            if not child:
                time.sleep(60)
                os._exit(0)
            print(code_of(child))
            os.kill(os.getpid(), 2)

    signals = Signals()
    print(echo.run(echo.EchoRequestHandler, ("127.0.0.1", 0), server_class=Server))
    """
    assert output_of(script) == ["2", "0"]


def test_a_child_that_is_forked_after_run_has_the_programs_own_signal_handlers():
    script = """
    import signal

    class Server(echo.Server):
        def server_activate(self):
            super().server_activate()
            servers.append(self)
            signal.raise_signal(signal.SIGTERM)

    servers = []
    echo.run(echo.EchoRequestHandler, ("127.0.0.1", 0), server_class=Server)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    child = os.fork()
    if not child:
        signal.raise_signal(signal.SIGTERM)
        os._exit(0)
    print(code_of(child) >> 8)
    """
    assert output_of(script) == ["7"]


def test_children_forked_before_serving_share_the_listening_socket():
    script = """
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
    stop, stopped = os.pipe()
    children = []
    for _ in range(2):
        children.append(os.fork())
        if not children[-1]:
            os.close(stopped)
            server.start()
            os.read(stop, 1)
            os._exit(7 * server.stop())
    print([echoes(dial(server)) for _ in range(4)])
    os.close(stopped)
    print([code_of(child) >> 8 for child in children])
    """
    assert output_of(script) == ["[True, True, True, True]", "[7, 7]"]


def test_the_forking_mixin_of_socketserver_serves_in_children():
    script = """
    class Forking(socketserver.ForkingMixIn, echo.Server):
        pass

    with Forking(("127.0.0.1", 0), echo.EchoRequestHandler).start() as server:
        first, second = dial(server), dial(server)
        print(echoes(first), echoes(second))
        first.shutdown(socket.SHUT_WR)  # not close(): the children have copies of these two as well
        print(echoes(second))
        second.shutdown(socket.SHUT_WR)
    """
    assert output_of(script) == ["True True", "True"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_child_of_the_forking_mixin_that_a_signal_ends_at_a_stop_is_cut(name):
    """Row 43: Ctrl-C at a terminal reaches the children, too. Their sessions counted as drained."""
    script = f"""
    import signal

    sys.path.append({TESTS!r})
    from support.processes import wait_until_it_sleeps

    class Forking(socketserver.ForkingMixIn, echo.Server):
        pass

    with Forking(("127.0.0.1", 0), echo.EchoRequestHandler).start() as server:
        client = dial(server)
        print(echoes(client))
        server.shutdown()
        for child in server.active_children:
            # Under CPython 3.13.0, a signal is lost that comes while a child runs Python.
            wait_until_it_sleeps(child)
            os.kill(child, signal.{name})
            print(client.recv(1))
            client.shutdown(socket.SHUT_WR)  # else the child waits for it
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        print(server.stop())
    """
    assert output_of(script) == ["True", "b''", "False"]


def test_a_child_that_a_stop_forks_while_its_parent_handles_ctrl_c_is_drained():
    """The stop accepts the clients that wait. They were cut as if Ctrl-C had reached the child."""
    script = """
    class Forking(socketserver.ForkingMixIn, echo.Server):
        interrupted = False

        def verify_request(self, request, client_address):
            if not self.interrupted:
                self.interrupted = True
                raise KeyboardInterrupt  # as a signal would, that comes now
            return True

    server = Forking(("127.0.0.1", 0), echo.EchoRequestHandler)
    first, client = dial(server), dial(server)
    client.sendall(b"hi\\nexit\\n")
    client.shutdown(socket.SHUT_WR)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print(server.stop(), client.makefile("rb").read())
    """
    assert output_of(script) == [r"True b'hi\n'"]


def test_a_reply_of_a_stock_handler_in_a_child_reaches_a_client_that_has_sent_more():
    """Row 83."""
    script = """
    class Forking(socketserver.ForkingMixIn, echo.Server):
        pass

    class Replies(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # the reply waits there
            self.request.recv(4, socket.MSG_WAITALL)
            self.request.sendall(bytes(100000))

    with Forking(("127.0.0.1", 0), Replies).start() as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.server_address)
        client.sendall(b"ask and more")
        ended = select.poll()
        ended.register(client, 0)
        ended.poll(200)  # a reset would come as soon as the handler is done
        received = client.makefile("rb").read()
        client.shutdown(socket.SHUT_WR)
        print(len(received))
    """
    assert output_of(script) == ["100000"]


def test_a_forked_child_that_closes_a_client_leaves_the_connection_to_its_parent():
    script = """
    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler).start() as server:
        with echo.connect(server.server_address) as client:
            child = os.fork()
            if not child:
                client.close()
                os._exit(0)
            print(code_of(child), client.echo(b"hello"))
    """
    assert output_of(script) == ["0 b'hello'"]


@pytest.mark.parametrize("where", ["another thread", "a signal handler in the loop"])
def test_the_children_of_the_forking_mixin_have_the_same_deadline(where):
    """Row 2: the mixin waits for them without a limit, and an idle client stays."""
    script = f"""
    import logging, signal

    class Forking(socketserver.ForkingMixIn, echo.Server):
        shutdown_timeout = 0.01
        _echo_cut_grace = 60  # a busy machine may take a while to end a process

    logging.basicConfig(stream=sys.stdout, level="INFO", format="%(message)s")
    server = Forking(("127.0.0.1", 0), echo.EchoRequestHandler)
    client = []

    def talk():
        client.append(dial(server))
        check(echoes(client[0]))
        if "{where}" == "another thread":
            server.stop()
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    threading.Thread(target=talk).start()
    server.serve_forever()
    print(server.stop(), client[0].recv(1), flush=True)
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("no child is left")
    """
    output = output_of(script)
    assert output[0] == "draining 1 session, for 0.01 s at most"
    assert output[1].endswith(" cut: not done in time")
    assert output[2:] == ["stopped: 0 sessions drained, 1 cut", "False b''", "no child is left"]


@pytest.mark.parametrize("networks", ["deny=['192.0.2.9', '192.0.2.10']", "allow=['192.0.2.1']"])
def test_the_header_of_a_proxy_decides_who_gets_into_a_forked_child(networks):
    """Row 89: the proxy's own address decided, which let in clients that were denied, and refused those allowed."""
    script = f"""
    class Forking(socketserver.ForkingMixIn, echo.Server):
        pass

    class Address(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(repr(self.client_address).encode())

    import logging; logging.basicConfig(stream=sys.stdout, level="INFO", format="%(message)s")
    with Forking(("127.0.0.1", 0), Address, proxy_protocol=True, {networks}).start() as server:
        for host in ("192.0.2.1", "192.0.2.9"):
            client = dial(server)
            client.sendall(b"PROXY TCP4 %s 198.51.100.1 1000 80\\r\\n" % host.encode())
            print(client.recv(100), flush=True)
    """
    output = output_of(script)
    assert output[:1] == ["b\"('192.0.2.1', 1000)\""]
    assert sorted(output[1:3]) == ["192.0.2.9:1000 refused: denied (not from this address)", "b''"]


def test_a_forked_child_that_wraps_its_socket_behind_a_proxy_knows_its_client():
    """Row 89: its handler got the proxy's address."""
    script = """
    class Object:
        def __init__(self, sock):
            self.sendall, self.fileno = sock.sendall, sock.fileno

    class TakesOver(socket.socket):
        def __init__(self, sock):
            super().__init__(fileno=sock.detach())

    class Forking(socketserver.ForkingMixIn, echo.Server):
        def finish_request(self, request, client_address):
            super().finish_request(wrapper(request), client_address)

    class Address(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(repr(self.client_address).encode())

    for wrapper in (Object, TakesOver):
        with Forking(("127.0.0.1", 0), Address, proxy_protocol=True).start() as server:
            client = dial(server)
            client.sendall(b"PROXY TCP4 192.0.2.1 198.51.100.1 1000 80\\r\\n")
            print(client.recv(100), flush=True)
    """
    assert output_of(script) == ["b\"('192.0.2.1', 1000)\""] * 2


def test_a_session_ends_although_a_child_that_its_handler_has_forked_has_a_copy_of_its_socket():
    script = """
    class Forking(echo.MessageRequestHandler):
        def message_received(self, message):
            child = os.fork()
            if not child:
                os.read(waiting, 1)
                os._exit(0)
            children.append(child)
            self.send(message)

    children = []
    waiting, done = os.pipe()
    with echo.Server(("127.0.0.1", 0), Forking).start() as server:
        client = dial(server)
        client.sendall(b"hello\\n")
        client.shutdown(socket.SHUT_WR)
        print(client.makefile("rb").read())  # to the end
    os.write(done, b"x")
    print(code_of(children[0]))
    """
    assert output_of(script) == ["b'hello\\n'", "0"]
