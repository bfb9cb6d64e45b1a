"""The server: what it does when it is stopped, bounded, starved and lied to. Rows are those of README.md here."""

import errno
import gc
import logging
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import weakref

import pytest

import echo
from echo.server import run as run_module
from echo.server import server as server_module
from echo.server import sessions as sessions_module
from support import DEADLINE, ROOT, Recorder, eventually, read_all, read_exactly

needs_unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc to count descriptors in")


def echoes(sock, data=b"hello\n"):
    """Whether a line comes back."""
    sock.sendall(data)
    return read_exactly(sock, len(data)) == data


def ends_in_time(action):
    """Run ``action`` in a thread of its own; it must return."""
    failures = []

    def act():
        try:
            action()
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive(), "it hangs"
    if failures:
        raise failures[0]


class Stuck(echo.MessageRequestHandler):
    """Stays in its hook until ``release`` is set."""

    release = threading.Event()
    entered = threading.Event()

    def message_received(self, message):
        self.entered.set()
        self.release.wait(DEADLINE)
        self.send(message)


@pytest.fixture
def stuck():
    Stuck.release = threading.Event()
    Stuck.entered = threading.Event()
    yield Stuck
    Stuck.release.set()


# Starting and stopping.


def test_start_serves_in_the_background_and_returns_the_server(serve, dial):
    server = serve()
    assert server.start() is server
    assert echoes(dial(server))


def test_a_stop_right_after_the_start_is_a_whole_stop(monkeypatch):
    enter = run_module.Run.enter

    def late(run):
        threading.Event().wait(0.2)  # a thread that was started and has not come to its first line
        enter(run)

    monkeypatch.setattr(run_module.Run, "enter", late)
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler).start()
    assert server.stop() is True
    assert server.socket.fileno() == -1
    assert not server._thread.is_alive()


def test_stop_is_idempotent_and_says_that_all_sessions_ended(serve, dial):
    server = serve()
    client = dial(server)
    assert echoes(client)
    assert server.stop() is True
    assert server.stop() is True
    assert read_all(client) == b""


def test_idle_clients_see_the_end_at_once_and_do_not_hold_the_stop_up(serve, dial):
    """Rows 2 and 3: one deadline, and it is not even touched. (The standard library waits for ever.)"""
    server = serve(shutdown_timeout=DEADLINE)
    clients = [dial(server) for _ in range(20)]
    for client in clients:
        assert echoes(client)
    began = time.monotonic()
    assert server.stop() is True
    assert time.monotonic() - began < DEADLINE / 2
    assert [read_all(client) for client in clients] == [b""] * 20


def test_idle_clients_of_a_stock_handler_are_woken_too(serve, dial):
    class Lines(socketserver.StreamRequestHandler):
        def handle(self):
            for line in self.rfile:
                self.wfile.write(line)

    server = serve(Lines, shutdown_timeout=DEADLINE)
    client = dial(server)
    assert echoes(client)
    assert server.stop() is True
    assert read_all(client) == b""
    assert server.stats().ended == {"drain": 1}


def test_stuck_sessions_share_one_deadline_and_are_cut(serve, dial, stuck):
    """Row 3: a timeout for each of 5 sessions would add up."""
    server = serve(stuck, shutdown_timeout=1.0)
    clients = [dial(server) for _ in range(5)]
    for client in clients:
        client.sendall(b"a\n")
    assert stuck.entered.wait(DEADLINE)
    began = time.monotonic()
    assert server.stop() is False
    assert time.monotonic() - began < 5 * 1.0  # the sum of five deadlines


def test_the_log_tells_how_many_drained_and_how_many_were_cut(serve, dial, stuck, caplog):
    class Both(echo.EchoRequestHandler):
        def message_received(self, message):
            if message == b"stick":
                stuck.message_received(self, message)
            else:
                super().message_received(message)

        entered, release = stuck.entered, stuck.release

    server = serve(Both, shutdown_timeout=0.2)
    idle = [dial(server) for _ in range(3)]
    assert all(echoes(client) for client in idle)
    busy = dial(server)
    busy.sendall(b"stick\n")
    assert stuck.entered.wait(DEADLINE)
    with caplog.at_level(logging.INFO, "echo.server"):
        server.stop()
    assert "3 sessions drained, 1 cut" in caplog.text


def test_a_busy_session_answers_what_had_arrived_and_ends_as_drain(serve, dial, stuck):
    handler = Recorder.of(stuck)
    server = serve(handler)
    client = dial(server)
    client.sendall(b"1\n2\n3\npart")
    assert stuck.entered.wait(DEADLINE)
    stopper = threading.Thread(target=server.stop)
    stopper.start()
    eventually(lambda: server.connections[0].state == "draining")
    stuck.release.set()
    assert read_all(client) == b"1\n2\n3\n"
    stopper.join()
    assert handler.reasons == ["drain"]


def test_a_client_that_keeps_sending_cannot_keep_the_server_up(serve, dial):
    server = serve(shutdown_timeout=DEADLINE)
    client = dial(server)
    assert echoes(client)
    received = []

    def send():
        try:
            while True:
                client.sendall(b"line\n" * 1000)
        except OSError:
            pass

    def receive():
        try:
            received.append(read_all(client))
        except ConnectionResetError:
            received.append(None)

    threads = [threading.Thread(target=send), threading.Thread(target=receive)]
    for thread in threads:
        thread.start()
    eventually(lambda: server.stats().messages_in > 10_000)
    began = time.monotonic()
    assert server.stop() is True
    assert time.monotonic() - began < DEADLINE / 2
    for thread in threads:
        thread.join()
    assert received[0] is None or received[0].replace(b"line\n", b"") == b""


def test_a_stop_does_not_wait_for_a_client_that_is_gone(serve, dial):
    """Its host answers the last reply with a reset, and what was not delivered then never is."""

    class Late(echo.MessageRequestHandler):
        def message_received(self, message):
            entered.set()
            release.wait(DEADLINE)
            self.send(message)

    entered, release = threading.Event(), threading.Event()
    server = serve(Late, shutdown_timeout=DEADLINE)
    client = dial(server)
    client.sendall(b"hello\n")
    assert entered.wait(DEADLINE)
    stopped = []
    stopper = threading.Thread(target=lambda: stopped.append(server.stop()))
    stopper.start()
    eventually(lambda: server.connections[0].state == "draining")
    client.close()
    began = time.monotonic()
    release.set()
    stopper.join()
    assert stopped == [True]
    assert time.monotonic() - began < DEADLINE / 2


def test_a_sender_whose_client_does_not_read_is_cut_at_the_deadline(serve, dial):
    class Pour(echo.MessageRequestHandler):
        send_timeout = None

        def message_received(self, message):
            while True:
                self.send(b"x" * 60_000)

    handler = Recorder.of(Pour)
    server = serve(handler, shutdown_timeout=0.3)
    client = dial(server)
    client.sendall(b"go\n")
    eventually(lambda: server.stats().bytes_out > 1_000_000)
    assert server.stop() is False
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["drain"]


def test_shutdown_wakes_the_loop_which_otherwise_sleeps(serve):
    """Row 4: no polling: the loop's one wait has no timeout, and shutdown() ends it."""
    waits = []

    class Watched(echo.Server):
        def _wait(self, run, deadline):
            waits.append(deadline)
            super()._wait(run, deadline)

    server = serve(cls=Watched)
    eventually(lambda: waits)
    ends_in_time(server.shutdown)
    assert waits == [None]


def test_shutdown_from_a_handler_does_not_deadlock(dial):
    """Row 5."""

    class Off(echo.MessageRequestHandler):
        def message_received(self, message):
            self.server.shutdown()
            self.send(b"down")

    with echo.Server(("127.0.0.1", 0), Off) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        client = dial(server)
        client.sendall(b"\n")
        assert read_exactly(client, 5) == b"down\n"
        thread.join(DEADLINE)
        assert not thread.is_alive()


@pytest.mark.parametrize("verb", ["stop", "server_close", "shutdown"])
def test_stopping_from_two_handlers_at_once_does_not_deadlock(serve, dial, verb):
    """Row 5."""
    barrier = threading.Barrier(2)

    class Off(echo.MessageRequestHandler):
        def message_received(self, message):
            barrier.wait(DEADLINE)
            getattr(self.server, verb)()
            self.send(b"done")

    server = serve(Off)
    clients = [dial(server) for _ in range(2)]
    for client in clients:
        client.sendall(b"\n")
    assert [read_exactly(client, 5) for client in clients] == [b"done\n"] * 2
    ends_in_time(server.stop)


@pytest.mark.parametrize("verb", ["stop", "server_close", "shutdown"])
def test_stopping_from_a_signal_handler_of_the_serving_thread_does_not_deadlock(verb):
    """Row 5."""
    script = (
        "import echo, os, signal, threading\n"
        "server = echo.Server(('127.0.0.1', 0), echo.EchoRequestHandler)\n"
        f"signal.signal(signal.SIGTERM, lambda *_: server.{verb}())\n"
        "client = echo.connect(server.server_address)\n"
        "threading.Thread(target=lambda: (client.echo(b'a'), os.kill(os.getpid(), signal.SIGTERM))).start()\n"
        "server.serve_forever()\n"
        "server.server_close()\n"
        "print('ended')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, timeout=DEADLINE, stdout=subprocess.PIPE, check=True
    )
    assert done.stdout == b"ended\n"


@pytest.mark.parametrize("hook", ["service_actions", "verify_request"])
def test_stopping_from_a_hook_of_the_serving_thread_while_another_thread_stops_does_not_deadlock(dial, hook):
    """Row 5."""
    entered = threading.Event()

    def stop_too(self, *arguments):
        entered.set()
        eventually(lambda: self._closer is not None)  # the other one is inside its stop, and waits for this thread
        self.stop()
        return True

    server = type("Off", (echo.Server,), {hook: stop_too})(("127.0.0.1", 0), echo.EchoRequestHandler).start()
    if hook == "verify_request":
        dial(server)
    assert entered.wait(DEADLINE)
    ends_in_time(server.stop)
    assert not server._thread.is_alive()


def test_a_signal_in_the_moment_before_the_loop_sleeps_wakes_it():
    """Row 5: the interpreter only notes such a signal; the byte it writes to the loop's bell is what ends the sleep."""
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)

    class Looking(echo.Server):
        def service_actions(self):
            seen.append((signal.set_wakeup_fd(self._run._bell.fileno()), self._run._bell.fileno()))
            self.shutdown()

    seen = []
    with Looking(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        server.serve_forever(poll_interval=0.01)
    (found, expected) = seen[0]
    assert found == expected
    assert signal.set_wakeup_fd(before) == before


def test_shutdown_before_serve_forever_returns_at_once():
    """Row 7; and the run it was meant for ends at once, so that a stop cannot lose against a thread's start."""
    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        ends_in_time(server.shutdown)
        ends_in_time(server.serve_forever)


def test_a_second_shutdown_does_not_poison_the_next_run(serve, dial):
    """Row 8."""
    server = serve()
    server.shutdown()
    server.shutdown()
    server.start()
    assert echoes(dial(server))
    server.shutdown()
    server.shutdown()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    assert echoes(dial(server))
    server.stop()
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_sessions_go_on_after_shutdown_and_end_with_server_close(serve, dial):
    server = serve()
    client = dial(server)
    assert echoes(client)
    server.shutdown()
    assert echoes(client)
    server.server_close()
    assert read_all(client) == b""


def test_serving_a_closed_server_returns_at_once_and_start_says_so(serve):
    server = serve()
    server.stop()
    ends_in_time(server.serve_forever)
    ends_in_time(server.handle_request)
    with pytest.raises(RuntimeError, match="closed"):
        server.start()


@pytest.mark.parametrize("verb", ["shutdown", "stop", "server_close"])
def test_handle_request_is_ended_from_another_thread(verb):
    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        eventually(lambda: server._run is not None)
        ends_in_time(getattr(server, verb))
        thread.join(DEADLINE)
        assert not thread.is_alive()


@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_verbs_from_any_threads_ends(seed):
    import random

    choice = random.Random(seed)
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, shutdown_timeout=1.0)

    def act():
        for _ in range(6):
            verb = choice.choice("shutdown serve_forever handle_request start stop server_close connect".split())
            try:
                if verb == "connect":
                    socket.create_connection(server.server_address, 1).close()
                elif verb in ("serve_forever", "handle_request"):
                    timer = threading.Timer(0.2, server.shutdown)
                    timer.start()
                    getattr(server, verb)()
                    timer.cancel()
                else:
                    getattr(server, verb)()
            except (RuntimeError, OSError):
                pass  # serving already, or closed

    threads = [threading.Thread(target=act, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        if thread.is_alive():
            server.shutdown()  # the last word was a serve_forever(): it is to serve for ever
            thread.join(DEADLINE)
        assert not thread.is_alive()
    ends_in_time(server.stop)


@pytest.mark.parametrize("how", ["close", "shutdown"])
def test_a_listener_that_is_taken_away_ends_the_loop_and_does_not_spin(serve, how):
    """Row 9."""
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with socket.create_connection(server.server_address, DEADLINE) as sock:
        assert echoes(sock)
    if how == "shutdown":
        server.socket.shutdown(socket.SHUT_RDWR)
    else:
        server.socket.close()
        server._run.wake()  # a poll that sleeps does not notice a descriptor that goes; its next look does
    thread.join(DEADLINE)
    assert not thread.is_alive()
    server.server_close()


def test_a_connection_that_arrives_with_the_stop_is_served_wholly_or_not_at_all(serve):
    """Row 37."""
    for _ in range(20):
        server = serve()
        go = threading.Barrier(2)
        results = []

        def dial_in(address=server.server_address, results=results, go=go):
            go.wait(DEADLINE)
            try:
                with socket.create_connection(address, DEADLINE) as sock:
                    sock.sendall(b"a\nb\n")
                    results.append(read_all(sock))
            except OSError:
                results.append(b"")

        thread = threading.Thread(target=dial_in)
        thread.start()
        go.wait(DEADLINE)
        server.stop()
        thread.join(DEADLINE)
        assert results in ([b""], [b"a\n"], [b"a\nb\n"])
        stats = server.stats()
        assert stats.accepted == sum(stats.ended.values())


def test_who_is_connected_but_not_accepted_when_the_server_closes_is_served_and_not_reset(serve, dial):
    """A load balancer that was let in by the system has handed its client over."""
    server = serve()
    server.shutdown()
    waiting = [dial(server) for _ in range(5)]
    for sock in waiting:
        sock.sendall(b"a\nb\n")
    stopper = threading.Thread(target=server.stop)
    stopper.start()
    for sock in waiting:
        assert read_all(sock) == b"a\nb\n"
        sock.close()
    stopper.join(DEADLINE)
    assert server.stats().ended == {"drain": 5}


def test_letting_in_who_waits_at_the_end_keeps_to_the_limit_and_ends(serve, dial):
    server = serve(max_connections=2)
    server.shutdown()
    waiting = [dial(server) for _ in range(5)]
    assert server.stop()
    assert server.stats().accepted == 2
    for sock in waiting:
        try:
            assert sock.recv(1) == b""
        except ConnectionResetError:
            pass


def test_out_of_descriptors_a_stop_lets_nobody_in_and_drains_all_the_same(serve, dial, monkeypatch):
    """Row 10."""

    def fail(listener, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    server = serve()
    client = dial(server)
    assert echoes(client)
    monkeypatch.setattr(server_module, "Run", fail)
    assert server.stop() is True
    assert read_all(client) == b""
    assert server.stats().ended == {"drain": 1}
    assert server.socket.fileno() == -1


def test_a_server_that_never_served_lets_nobody_in_at_its_end(dial):
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
    dial(server)
    server.server_close()
    assert server.stats().accepted == 0


def test_a_server_of_one_request_lets_in_no_other_at_its_end(dial):
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
    for _ in range(3):
        dial(server)
    server.handle_request()
    server.server_close()
    assert server.stats().accepted == 1


def test_a_process_whose_main_thread_ends_drains_before_it_exits():
    """Row 17: daemon threads would die in mid-reply."""
    script = (
        "import echo, threading\n"
        "class Slow(echo.MessageRequestHandler):\n"
        "    def message_received(self, message):\n"
        "        busy.set()\n"
        "        threading.Event().wait(0.3)\n"
        "        self.send(message)\n"
        "busy = threading.Event()\n"
        "server = echo.Server(('127.0.0.1', 0), Slow).start()\n"
        "print(server.server_address[1], flush=True)\n"
        "busy.wait()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    with process, socket.create_connection(("127.0.0.1", int(process.stdout.readline())), DEADLINE) as sock:
        sock.sendall(b"late\n")
        assert read_all(sock) == b"late\n"
        assert process.wait(DEADLINE) == 0


def test_a_process_that_ends_in_the_midst_of_a_stop_waits_for_its_end():
    """Row 17: the stop may run in a daemon thread."""
    script = (
        "import echo, threading\n"
        "class Slow(echo.MessageRequestHandler):\n"
        "    def message_received(self, message):\n"
        "        busy.set()\n"
        "        release.wait(0.5)\n"
        "        self.send(message)\n"
        "busy, release = threading.Event(), threading.Event()\n"
        "server = echo.Server(('127.0.0.1', 0), Slow).start()\n"
        "print(server.server_address[1], flush=True)\n"
        "busy.wait()\n"
        "threading.Thread(target=server.stop, daemon=True).start()\n"
        "while server.connections[0].state != 'draining': release.wait(0.01)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    with process, socket.create_connection(("127.0.0.1", int(process.stdout.readline())), DEADLINE) as sock:
        sock.sendall(b"late\n")
        assert read_all(sock) == b"late\n"
        assert process.wait(DEADLINE) == 0


def test_a_session_that_has_only_its_clients_end_to_wait_for_is_not_cut(serve, dial, monkeypatch):
    monkeypatch.setattr("echo.sockets.LINGER_SILENCE", DEADLINE)
    server = serve()
    client = dial(server)
    client.sendall(b"a\nexit\n")
    assert read_all(client) == b"a\n"  # and the client stays
    assert [info.state for info in server.connections] == ["closing"]
    assert server.stop(timeout=0.1) is True
    assert server.stats().ended == {"exit": 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_wait_for_its_parents_threads():
    """Row 39."""
    script = (
        "import echo, os, sys, warnings\n"
        "server = echo.Server(('127.0.0.1', 0), echo.EchoRequestHandler).start()\n"
        "warnings.simplefilter('ignore')  # of a fork with threads, which is what this is about\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    sys.exit(7)\n"
        "print(os.waitpid(child, 0)[1] >> 8)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=dict(os.environ, PYTHONDEVMODE=""),  # in that mode CPython 3.8 dies of any child that ends by itself
        timeout=DEADLINE,
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout == b"7\n"


# The accept loop.


class Faulty(echo.Server):
    """Raises what ``faults`` holds before it accepts."""

    def __init__(self, *arguments, **options):
        self.faults = []
        self.attempts = 0
        super().__init__(*arguments, **options)

    def get_request(self):
        self.attempts += 1
        if self.faults:
            raise self.faults.pop(0)
        return super().get_request()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_want_of_resources_is_waited_out_with_one_log_line(serve, dial, caplog, number):
    """Row 10."""
    server = serve(cls=Faulty)
    server.faults = [OSError(number, os.strerror(number)) for _ in range(4)]
    client = dial(server)
    assert echoes(client)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and os.strerror(number) in warnings[0].getMessage()
    assert server.stats().accept_errors == 4


def test_pauses_double_up_to_a_second():
    backoff = run_module.BackOff()
    pauses = []
    for _ in range(10):
        backoff.failed()
        pauses.append(backoff.pause)
    assert pauses[:3] == [0.01, 0.02, 0.04]
    assert pauses[-1] == 1.0


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.ECONNRESET, errno.EINVAL, errno.EBADF, errno.EPERM])
def test_a_connection_that_fails_while_it_is_accepted_is_counted_and_costs_no_pause(serve, dial, caplog, number):
    """Row 11; and a subclass's get_request() may fail with its client, in a handshake say."""
    server = serve(cls=Faulty)
    server.faults = [OSError(number, os.strerror(number)) for _ in range(1000)]
    assert echoes(dial(server))
    assert server.stats().accept_errors == 1000
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_handled_request_that_fails_is_one_request():
    with Faulty(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        server.faults = [ConnectionResetError(errno.ECONNRESET, "reset in a handshake")]
        with socket.create_connection(server.server_address, DEADLINE):
            ends_in_time(server.handle_request)
        assert server.stats().accept_errors == 1


def test_an_interrupt_in_process_request_closes_that_socket_and_is_raised():
    class Interrupted(echo.Server):
        def process_request(self, request, client_address):
            raise KeyboardInterrupt

    with Interrupted(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        with socket.create_connection(server.server_address, DEADLINE) as sock:
            with pytest.raises(KeyboardInterrupt):
                server.handle_request()
            assert read_all(sock) == b""


def test_an_interrupt_before_a_sessions_thread_runs_leaves_no_session_behind(monkeypatch):
    def interrupted(thread):
        raise KeyboardInterrupt

    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        with socket.create_connection(server.server_address, DEADLINE) as sock:
            monkeypatch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                server.handle_request()
            monkeypatch.undo()
            assert read_all(sock) == b""
        assert server.connections == []


def test_handle_error_may_still_answer_on_the_socket(serve, dial):
    class Apologetic(echo.Server):
        def verify_request(self, request, client_address):
            raise ZeroDivisionError

        def handle_error(self, request, client_address):
            request.sendall(b"sorry")

    assert read_all(dial(serve(cls=Apologetic))) == b"sorry"


def test_a_subclass_may_keep_the_socket_by_overriding_shutdown_request(serve, dial):
    class HandsOn(echo.Server):
        def shutdown_request(self, request):
            kept.append(request)

    class First(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(b"first")

    kept = []
    server = serve(First, cls=HandsOn)
    client = dial(server)
    assert read_exactly(client, 5) == b"first"
    eventually(lambda: kept and not server.connections)
    client.sendall(b"x")
    assert kept[0].recv(1) == b"x"
    kept[0].sendall(b"second")
    assert read_exactly(client, 6) == b"second"
    kept[0].close()


@pytest.mark.parametrize("fault", [ValueError("not an OSError"), RuntimeError("nor this")])
def test_an_exception_out_of_get_request_does_not_end_the_server(serve, dial, fault):
    """Row 12."""
    server = serve(cls=Faulty)
    server.faults = [fault]
    assert echoes(dial(server))


def test_an_exception_out_of_verify_request_closes_that_socket_and_is_logged(serve, dial, caplog):
    """Row 12."""

    class Picky(echo.Server):
        def verify_request(self, request, client_address):
            if not picked:
                picked.append(client_address)
                raise ZeroDivisionError("on purpose")
            return True

    picked = []
    server = serve(cls=Picky)
    assert read_all(dial(server)) == b""
    assert echoes(dial(server))
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1 and errors[0].exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize("daemon", [True, False])
@pytest.mark.parametrize("method", ["start", "__init__"])
def test_a_thread_that_cannot_start_is_rolled_back(serve, dial, caplog, monkeypatch, method, daemon):
    """Row 14: closed, counted, waited out; closing the server afterwards does not raise. A subinterpreter that has no
    daemon threads, or none at all, refuses to make one."""
    server = serve(daemon_threads=daemon)
    real = getattr(threading.Thread, method)
    failures = [RuntimeError("can't start new thread"), MemoryError()]

    def fail(thread, *arguments, **options):
        if failures and threading.current_thread() is server._thread:
            raise failures.pop()
        real(thread, *arguments, **options)

    monkeypatch.setattr(threading.Thread, method, fail)
    refused = [dial(server), dial(server)]
    assert [read_all(sock) for sock in refused] == [b"", b""]
    monkeypatch.undo()
    assert echoes(dial(server))
    stats = server.stats()
    assert stats.accept_errors == 2
    assert (stats.accepted, stats.active, stats.refused) == (3, 1, {"error": 2})
    assert server.stop() is True


def test_exceptions_in_the_reporting_itself_do_not_end_the_server(serve, dial):
    """Row 27: the socket closes whatever reporting does."""

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


def test_a_log_that_raises_leaves_no_socket_open_and_does_not_end_the_server(serve, dial):
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
        server = serve(Logged, cls=Faulty)
        server.faults = [OSError(errno.EMFILE, "full")]
        for _ in range(3):
            assert read_all(dial(server)) == b""
        eventually(lambda: not server.connections)
    finally:
        logging.getLogger("echo").removeHandler(full)
        logging.getLogger("echo").setLevel(logging.NOTSET)
    assert echoes(dial(server))


def test_an_error_in_a_stock_handler_is_one_record_with_the_peer(serve, dial, caplog, capfd):
    """Row 27: the standard library prints to stderr."""

    class Bad(socketserver.BaseRequestHandler):
        def handle(self):
            raise ZeroDivisionError("on purpose")

    server = serve(Bad)
    client = dial(server)
    assert read_all(client) == b""
    eventually(lambda: server.stats().ended == {"error": 1})
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "127.0.0.1:%d" % client.getsockname()[1] in record.getMessage()
    assert "Exception" not in capfd.readouterr().err


def test_a_client_that_vanishes_from_a_stock_handler_prints_no_traceback(serve, dial, caplog):
    """Row 26."""

    class Bad(socketserver.BaseRequestHandler):
        def handle(self):
            raise ConnectionResetError(errno.ECONNRESET, "gone")

    server = serve(Bad)
    with caplog.at_level(logging.DEBUG, "echo.server"):
        assert read_all(dial(server)) == b""
        eventually(lambda: server.stats().ended == {"reset": 1})
    assert not [record for record in caplog.records if record.exc_info or record.levelno > logging.INFO]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_sys_exit_in_a_handler_ends_its_session_not_the_server_and_is_told(serve, dial, caplog):
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
    assert echoes(dial(server))
    assert "SystemExit" in caplog.text
    threads[0].join(DEADLINE)  # pytest is to see its end within this test
    eventually(lambda: server.stats().ended == {"error": 1})


def test_the_loop_sleeps_after_a_failure_until_the_next_client(serve):
    """Row 10: once the pause is over there is nothing to look at the clock for."""
    waits = []

    class Watched(Faulty):
        def _wait(self, run, deadline):
            waits.append(deadline)
            super()._wait(run, deadline)

    server = serve(cls=Watched)
    eventually(lambda: waits)
    server.faults = [OSError(errno.EMFILE, "full")]
    with socket.create_connection(server.server_address, DEADLINE) as sock:
        assert echoes(sock)
    server.faults = [ValueError("not consumed")]
    with socket.create_connection(server.server_address, DEADLINE):
        eventually(lambda: server.stats().accepted == 2)
    server.faults = [OSError(errno.EMFILE, "full")]
    server._run.wake()
    before = len(waits)
    threading.Event().wait(0.3)  # far longer than the pause
    assert len(waits) - before < 5


def test_service_actions_that_always_raises_keeps_nobody_out(dial, caplog):
    class Raising(echo.Server):
        def service_actions(self):
            raise ZeroDivisionError

    with Raising(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        eventually(lambda: len(caplog.records) > 3)
        assert echoes(dial(server))
        server.shutdown()
        thread.join(DEADLINE)


def test_an_interrupt_while_a_sessions_thread_starts_leaves_the_session_alone(monkeypatch):
    real_start = threading.Thread.start

    def interrupted(thread):
        real_start(thread)
        raise KeyboardInterrupt

    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        with socket.create_connection(server.server_address, DEADLINE) as sock:
            monkeypatch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                server.handle_request()
            monkeypatch.undo()
            assert echoes(sock)


@pytest.mark.parametrize("where", ["atexit.register", "threading.Thread.start"])
def test_a_signal_handlers_shutdown_inside_start_does_not_deadlock(where):
    """Row 5."""
    script = (
        "import atexit, echo, os, signal, threading\n"
        f"real = {where}\n"
        "def interrupted(*arguments):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return real(*arguments)\n"
        "server = echo.Server(('127.0.0.1', 0), echo.EchoRequestHandler)\n"
        "signal.signal(signal.SIGTERM, lambda *_: server.shutdown())\n"
        f"{where} = interrupted\n"
        "server.start()\n"
        f"{where} = real\n"
        "server.stop()\n"
        "print('ended')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, timeout=DEADLINE, stdout=subprocess.PIPE, check=True
    )
    assert done.stdout == b"ended\n"


def test_a_shutdown_that_comes_while_a_run_begins_ends_it(monkeypatch):
    """Row 7: from a signal handler, say."""
    real = server_module.Run

    def interrupted(listener, **options):
        server.shutdown()
        return real(listener, **options)

    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        monkeypatch.setattr(server_module, "Run", interrupted)
        ends_in_time(server.serve_forever)


# Bounds.


def test_at_the_limit_further_clients_wait_in_the_backlog_and_are_served_when_one_leaves(serve, dial):
    """Row 15."""
    server = serve(max_connections=2)
    first, second = dial(server), dial(server)
    assert echoes(first) and echoes(second)
    waiting = dial(server)
    waiting.sendall(b"hello\n")
    waiting.settimeout(0.2)
    with pytest.raises(OSError):
        waiting.recv(1)
    assert server.stats().accepted == 2
    first.close()
    waiting.settimeout(DEADLINE)
    assert read_exactly(waiting, 6) == b"hello\n"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_slot_comes_back_whatever_happens_in_its_session(serve, dial):
    """Row 15."""

    class Bad(echo.MessageRequestHandler):
        def message_received(self, message):
            threads.append(threading.current_thread())
            raise {b"error": ValueError, b"exit": SystemExit, b"lost": ConnectionResetError}[message]

    threads = []
    server = serve(Bad, max_connections=1)
    for word in [b"error", b"exit", b"lost"] * 3:
        client = dial(server)
        client.sendall(word + b"\n")
        assert read_all(client) == b""
    server.stop()
    for thread in threads:
        thread.join(DEADLINE)


def test_one_host_gets_its_share_and_is_refused_beyond_it(serve, dial):
    """Row 15."""
    server = serve(max_connections_per_host=2)
    first, second = dial(server), dial(server)
    assert echoes(first) and echoes(second)
    assert read_all(dial(server)) == b""
    assert server.stats().refused == {"limit": 1}
    first.close()
    eventually(lambda: len(server.connections) == 1)
    assert echoes(dial(server))


@pytest.mark.parametrize(
    "allow, deny, gets_in",
    [
        ([], [], True),
        (["127.0.0.0/8"], [], True),
        (["10.0.0.0/8"], [], False),
        ([], ["127.0.0.1"], False),
        ([], ["10.0.0.0/8", "::1"], True),
        (["127.0.0.0/8"], ["127.0.0.1/32"], False),
    ],
)
def test_networks_are_allowed_and_denied_and_deny_wins(serve, dial, allow, deny, gets_in):
    server = serve(allow=allow, deny=deny)
    client = dial(server)
    if gets_in:
        assert echoes(client)
    else:
        assert read_all(client) == b""
        assert server.stats().refused == {"denied": 1}


def test_finished_sessions_leave_nothing_behind(serve, dial):
    """Row 16."""
    server = serve()
    for _ in range(100):
        with socket.create_connection(server.server_address, DEADLINE) as sock:
            assert echoes(sock)
    eventually(lambda: not server.connections)
    eventually(lambda: gc.collect() or not [x for x in gc.get_objects() if isinstance(x, sessions_module.Session)])
    assert not server._registry._hosts


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="counts are merged late without a GIL")
@pytest.mark.parametrize("data", [b"exit\n", b"a\n", b"part", b"x" * 70_000], ids=["exit", "eof", "part", "too-long"])
def test_what_a_session_leaves_needs_no_collector(serve, dial, data):
    """Cycles through exceptions cost 1.3 KB a session without the GIL, whose collector seldom comes."""

    class Kept(echo.EchoRequestHandler):
        def connection_made(self):
            remains.append(weakref.ref(self.connection))

    remains = []
    server = serve(Kept)
    gc.disable()
    try:
        for _ in range(5):
            client = dial(server)
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            read_all(client)
        eventually(lambda: len(remains) == 5 and not server.connections)
        eventually(lambda: not any(remain() for remain in remains))
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "option, value, error",
    [
        ("max_connections", 0, ValueError),
        ("max_connections", -1, ValueError),
        ("max_connections", "many", TypeError),
        ("max_connections", 1.5, TypeError),
        ("max_connections_per_host", 0, ValueError),
        ("shutdown_timeout", -1, ValueError),
        ("shutdown_timeout", float("nan"), ValueError),
        ("handshake_timeout", float("inf"), ValueError),
        ("shutdown_timeout", "soon", TypeError),
        ("request_queue_size", None, TypeError),
        ("allow", ["10.0.0.0/99"], ValueError),
        ("deny", ["example"], ValueError),
        ("max_conections", 5, TypeError),
    ],
)
def test_a_senseless_option_is_an_error_that_names_it(option, value, error):
    with pytest.raises(error) as caught:
        echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, **{option: value})
    assert option in str(caught.value)


# Sockets.


def test_accepted_sockets_have_no_nagle_and_keep_alive_and_are_blocking(serve, dial):
    """Row 23."""
    seen = {}

    class Look(socketserver.BaseRequestHandler):
        def handle(self):
            seen["nodelay"] = self.request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            seen["keepalive"] = self.request.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            seen["idle"] = self.request.getsockopt(socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", 1))
            seen["timeout"] = self.request.gettimeout()
            seen["inheritable"] = self.request.get_inheritable()

    server = serve(Look)
    read_all(dial(server))
    assert seen["nodelay"] and seen["keepalive"]
    assert seen["idle"] == 60 or not hasattr(socket, "TCP_KEEPIDLE")
    assert seen["timeout"] is None
    assert not seen["inheritable"] and not server.socket.get_inheritable()  # row 39


def test_the_backlog_takes_a_burst(dial):
    """Row 30: not 5."""
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
    clients = [dial(server) for _ in range(100)]
    with server.start():
        assert all(echoes(client) for client in clients)


def test_the_address_can_be_had_again_at_once(serve):
    """Row 31: the server closed first, so its side is in TIME_WAIT."""
    server = serve()
    with socket.create_connection(server.server_address, DEADLINE) as sock:
        assert echoes(sock)
        server.stop()
        read_all(sock)
    again = echo.Server(server.server_address, echo.EchoRequestHandler)
    again.server_close()


def test_a_port_in_use_is_refused_unless_sharing_was_asked_for(serve):
    """Row 31."""
    server = serve()
    with pytest.raises(OSError) as caught:
        echo.Server(server.server_address, echo.EchoRequestHandler)
    assert caught.value.errno == errno.EADDRINUSE
    shared = serve(allow_reuse_port=True)
    serve_too = echo.Server(shared.server_address, echo.EchoRequestHandler, allow_reuse_port=True)
    serve_too.server_close()


def test_an_ipv6_address_makes_an_ipv6_server():
    """Row 40."""
    try:
        server = echo.Server(("::1", 0), echo.EchoRequestHandler)
    except OSError as exc:
        pytest.skip(f"no IPv6 on this machine: {exc}")
    with server.start(), socket.create_connection(server.server_address[:2], DEADLINE) as sock:
        assert echoes(sock)
        assert server.connections[0].peer.startswith("[::1]:")


@pytest.fixture
def unix_path(tmp_path):
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("no Unix sockets here")
    return str(tmp_path / "echo.sock")


def dial_unix(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE)
    sock.connect(path)
    return sock


def test_a_unix_socket_serves_names_its_client_and_goes_with_the_server(unix_path):
    """Rows 24 and 25: no TCP_NODELAY there, and an address '' tells nothing."""
    with echo.Server(unix_path, echo.EchoRequestHandler, max_connections_per_host=1).start() as server:
        with dial_unix(unix_path) as one, dial_unix(unix_path) as two:
            assert echoes(one) and echoes(two)
            assert all(info.peer.startswith("unix") for info in server.connections)
            if sys.platform == "linux":
                assert server.connections[0].peer == f"unix:pid={os.getpid()},uid={os.getuid()}"
    assert not os.path.exists(unix_path)


def test_a_dead_servers_path_is_taken_over(unix_path):
    """Row 1."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(unix_path)
    with echo.Server(unix_path, echo.EchoRequestHandler).start(), dial_unix(unix_path) as sock:
        assert echoes(sock)


def test_a_live_servers_path_is_refused_and_stays(unix_path):
    """Row 1."""
    with echo.Server(unix_path, echo.EchoRequestHandler).start():
        with pytest.raises(OSError, match="another server listens"):
            echo.Server(unix_path, echo.EchoRequestHandler)
        with dial_unix(unix_path) as sock:
            assert echoes(sock)


def test_a_regular_file_is_refused_and_stays(unix_path):
    """Row 1."""
    with open(unix_path, "w") as file:
        file.write("precious")
    with pytest.raises(OSError, match="no socket"):
        echo.Server(unix_path, echo.EchoRequestHandler)
    with open(unix_path) as file:
        assert file.read() == "precious"


def test_a_live_server_whose_backlog_is_full_is_refused_at_once(unix_path):
    """Row 1."""
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(unix_path)
        live.listen(0)
        waiting = []
        try:
            while True:
                sock = socket.socket(socket.AF_UNIX)
                waiting.append(sock)
                sock.setblocking(False)
                sock.connect(unix_path)
        except BlockingIOError:
            pass
        with pytest.raises(OSError, match="another server listens"):
            echo.Server(unix_path, echo.EchoRequestHandler)
        for sock in waiting:
            sock.close()


def test_the_path_goes_before_the_socket_so_that_it_cannot_be_anothers(unix_path, monkeypatch):
    """Row 1: the number of a closed socket's inode may be the next server's at once."""
    states = []
    server = echo.Server(unix_path, echo.EchoRequestHandler)
    release = server_module.listeners.release_path

    def spy(path, inode):
        states.append(server.socket.fileno())
        release(path, inode)

    monkeypatch.setattr(server_module.listeners, "release_path", spy)
    server.server_close()
    assert states and states[0] != -1


def test_a_relative_path_is_removed_wherever_the_process_has_gone(tmp_path, monkeypatch):
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("no Unix sockets here")
    monkeypatch.chdir(tmp_path)
    server = echo.Server("echo.sock", echo.EchoRequestHandler, allow_reuse_port=True)
    monkeypatch.chdir("/")
    server.server_close()
    assert not list(tmp_path.iterdir())


def test_the_path_of_a_server_that_came_after_is_left_alone(unix_path):
    """Row 1."""
    first = echo.Server(unix_path, echo.EchoRequestHandler)
    os.unlink(unix_path)
    with echo.Server(unix_path, echo.EchoRequestHandler).start():
        first.server_close()
        with dial_unix(unix_path) as sock:
            assert echoes(sock)


# Telling.


def test_connections_lists_who_is_there_and_what_has_passed(serve, dial):
    """Row 38."""
    server = serve()
    before = time.time()
    client = dial(server)
    assert echoes(client, b"a\nbc\n")
    (info,) = server.connections
    assert info.peer == "127.0.0.1:%d" % client.getsockname()[1]
    assert info.client_address == client.getsockname()
    assert before - 1 <= info.since <= time.time() + 1
    assert info.state == "open"
    assert (info.messages_in, info.bytes_in) == (2, 5)
    assert eventually(lambda: server.connections[0].messages_out == 2 and server.connections[0].bytes_out == 5)


def test_statistics_add_up(serve, dial):
    server = serve(max_connections_per_host=3)
    for data in (b"a\n", b"b\nexit\n", b"c\nd\n"):
        client = dial(server)
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        read_all(client)
    eventually(lambda: not server.connections)
    live = [dial(server) for _ in range(3)]
    assert all(echoes(client, b"live\n") for client in live)
    assert read_all(dial(server)) == b""
    eventually(lambda: server.stats().bytes_out == 23)
    assert server.stats() == echo.Statistics(
        accepted=7,
        active=3,
        refused={"limit": 1},
        ended={"eof": 2, "exit": 1},
        messages_in=8,
        messages_out=7,
        bytes_in=28,
        bytes_out=23,
        accept_errors=0,
    )


def test_statistics_are_right_under_load(serve):
    """Row 18: figures and registry, also on a build without the GIL."""
    server = serve()
    threads, sessions, lines = 8, 20, 25

    def load():
        for _ in range(sessions):
            with echo.connect(server.server_address) as client:
                for _ in range(lines):
                    client.echo(b"x" * 9)
            server.stats()
            server.connections  # noqa: B018

    crowd = [threading.Thread(target=load) for _ in range(threads)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    eventually(lambda: not server.connections)
    stats = server.stats()
    assert stats.accepted == threads * sessions == stats.ended["eof"]
    assert stats.messages_in == stats.messages_out == threads * sessions * lines
    assert stats.bytes_in == stats.bytes_out == threads * sessions * lines * 10


# Internals that other rows rest on.


def test_a_flag_can_be_waited_for_inside_a_wait_for_it():
    flag = run_module.Flag()
    with flag._changed:
        threading.Timer(0.1, flag.set).start()
        flag.wait()
    assert flag.is_set()


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


def test_a_unix_socket_of_a_stock_server_has_no_nagle_to_switch_off(unix_path):
    """Row 24: our handlers switch it off themselves where the server is a stock one, but only for TCP."""
    if not hasattr(socketserver, "ThreadingUnixStreamServer"):
        pytest.skip("no Unix sockets here")
    with socketserver.ThreadingUnixStreamServer(unix_path, echo.EchoRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with dial_unix(unix_path) as sock:
            assert echoes(sock)
        server.shutdown()
        thread.join()


def test_a_default_timeout_of_the_program_is_not_the_sessions(serve, dial):
    class Told(echo.EchoRequestHandler):
        def connection_made(self):
            self.send(repr(self.request.gettimeout()).encode())

    socket.setdefaulttimeout(DEADLINE)
    try:
        assert dial(serve(Told)).makefile("rb").readline() == b"None\n"
    finally:
        socket.setdefaulttimeout(None)


def test_a_shortage_is_told_once_in_a_while_and_never_concealed(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(run_module.time, "monotonic", lambda: now)
    backoff = run_module.BackOff()
    told = [backoff.failed(), backoff.failed(), backoff.succeeded(), backoff.failed(), backoff.succeeded()]
    assert told == [True, False, True, False, False]
    assert not backoff.failed()
    now += run_module.SILENCE
    assert backoff.failed() and not backoff.failed()
    assert backoff.succeeded() and not backoff.succeeded()
