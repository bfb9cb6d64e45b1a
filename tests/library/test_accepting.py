"""The accept loop: nothing that fails in it ends it, and a failure is waited out and logged once.

``test_session_errors.py`` is about exceptions of handlers.
"""

import contextlib
import errno
import itertools
import logging
import os
import socket
import socketserver
import threading
from types import SimpleNamespace

import pytest

import echo
from echo.server.back_off import SILENCE, BackOff
from echo.server.serving import Serving
from support import DEADLINE, eventually, read_all, read_exactly
from support.servers import FailingServer, echoes, ends_in_time


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_want_of_resources_is_waited_out_with_one_log_line(serve, dial, caplog, number):
    """Row 10."""
    server = serve(cls=FailingServer)
    server.faults = [OSError(number, os.strerror(number)) for _ in range(2)]
    client = dial(server)
    assert echoes(client)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and os.strerror(number) in warnings[0].getMessage()
    assert server.stats().accept_errors == 2


def test_pauses_double_up_to_a_second():
    backoff = BackOff()
    pauses = []
    for _ in range(10):
        backoff.failed()
        pauses.append(backoff.pause)
    assert pauses[:3] == [0.01, 0.02, 0.04]
    assert pauses[-1] == 1.0


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.ECONNRESET, errno.EINVAL, errno.EBADF, errno.EPERM])
def test_a_connection_that_fails_while_it_is_accepted_is_counted_and_costs_no_pause(serve, dial, caplog, number):
    """Row 11; and a subclass's get_request() may fail with its client, in a handshake say."""
    server = serve(cls=FailingServer)
    server.faults = [OSError(number, os.strerror(number)) for _ in range(1000)]
    assert echoes(dial(server))
    assert server.stats().accept_errors == 1000
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_handled_request_that_fails_is_one_request():
    with FailingServer(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        server.faults = [ConnectionResetError(errno.ECONNRESET, "reset in a handshake")]
        with socket.create_connection(server.server_address, DEADLINE):
            ends_in_time(server.handle_request)
        assert server.stats().accept_errors == 1


def test_a_loop_of_handle_request_outlives_a_lack_of_descriptors(monkeypatch, caplog):
    faults = [OSError(errno.EMFILE, "full"), OSError(errno.EINVAL, "a mistake")]

    def failing():
        raise faults.pop(0)

    with FailingServer(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        with socket.create_connection(server.server_address, DEADLINE) as sock:
            monkeypatch.setattr(socket, "socketpair", failing)
            server.handle_request()
            with pytest.raises(OSError, match="a mistake"):
                server.handle_request()
            faults += [OSError(errno.ENFILE, "full")]
            server._handle_request_noblock()
            monkeypatch.undo()
            server.faults = [OSError(errno.EMFILE, "full")]
            ends_in_time(server.handle_request)
            assert not server.faults and not server.stats().accepted
            server.handle_request()
            assert echoes(sock)
    assert "cannot accept connections for now: [Errno 24] full; trying again" in caplog.text


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
    server = serve(cls=FailingServer)
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
    caplog.set_level("INFO")
    server = serve(daemon_threads=daemon, shutdown_timeout=DEADLINE)
    real = getattr(threading.Thread, method)
    failures = [RuntimeError("can't start new thread"), MemoryError()]

    def fail(thread, *arguments, **options):
        if failures and threading.current_thread() is server._echo_thread:
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
    assert caplog.text.count(" refused: error (") == 2
    assert server.stop() is True


def test_the_loop_sleeps_after_a_failure_until_the_next_client(serve, dial):
    """Row 10: after the pause the loop waits without a timeout."""
    waits = []

    def wait(listening, deadline):
        waits.append((listening, deadline))
        real_wait(listening, deadline)

    server = serve(cls=FailingServer)
    run = server._echo_serving
    real_wait, run.wait = run.wait, wait
    server.faults = [OSError(errno.EMFILE, "full")]
    dial(server)
    # The serving thread may reach its first wait only now.
    eventually(lambda: any(not listening for listening, _ in waits) and waits[-1][0])
    *pauses, last = itertools.dropwhile(lambda waited: waited[0], waits)
    assert all(not listening and deadline is not None for listening, deadline in pauses)
    assert last == (True, None)


def test_no_memory_anywhere_in_the_loop_is_waited_out(serve, dial, caplog, monkeypatch):
    """Row 65."""
    left = [MemoryError, MemoryError, MemoryError]
    real = Serving.wait

    def wait(*arguments):
        if left:
            raise left.pop()
        real(*arguments)

    monkeypatch.setattr(Serving, "wait", wait)
    server = serve()
    assert echoes(dial(server))
    assert not left
    assert caplog.text.count("cannot accept connections for now: MemoryError; trying again") == 1
    assert server.stop() is True


def test_no_memory_for_a_lock_of_a_session_or_for_the_line_about_it_is_waited_out(serve, dial, caplog, monkeypatch):
    """Row 65: Python raises ``RuntimeError`` if a lock has no memory. Each of the two ended the loop; clients hung."""
    left = [RuntimeError("can't allocate lock") for _ in range(3)]
    left_to_log = [MemoryError()]

    def lock():
        if left:
            raise left.pop()
        return threading.Lock()

    def log_event(*arguments, **fields):
        if left_to_log:
            raise left_to_log.pop()
        real(*arguments, **fields)

    real = echo.server.accepting.log_event
    monkeypatch.setattr("echo.server.sessions.threading", SimpleNamespace(Lock=lock, Event=threading.Event))
    monkeypatch.setattr("echo.server.accepting.log_event", log_event)

    class KeepsATable(echo.Server):
        table = {}

        def process_request(self, request, client_address):
            self.table[request] = client_address
            super().process_request(request, client_address)

        def close_request(self, request):
            del self.table[request]
            super().close_request(request)

    server = serve(cls=KeepsATable)
    for _ in range(3):
        with contextlib.suppress(ConnectionError):
            assert read_all(dial(server)) == b""
    assert not left and not left_to_log
    assert echoes(dial(server))
    assert server.stop() is True


@pytest.mark.parametrize("daemon", [True, False])
def test_a_socket_is_closed_although_there_is_no_memory_for_a_gentle_end(dial, monkeypatch, daemon):
    """Row 65."""

    def no_memory(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("echo.server.session_server.linger", no_memory)
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
    server.daemon_threads = daemon
    server.start()
    client = dial(server)
    client.sendall(b"hello\nexit\n")
    assert read_all(client) == b"hello\n"
    eventually(lambda: not server.connections)
    assert server.stop() is True


def test_clients_are_served_even_if_service_actions_always_raises(dial, caplog):
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


def test_after_a_stop_service_actions_is_not_called(dial):
    """That of ``ForkingMixIn`` forgets its children that have ended, and those that a signal has ended are cut."""
    calls = []

    class Stops(echo.Server):
        def get_request(self):
            self.shutdown()
            return super().get_request()

        def service_actions(self):
            calls.append(self)

    with Stops(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(60,))
        thread.start()
        dial(server)
        thread.join(DEADLINE)
        assert not calls


@pytest.mark.parametrize("seconds", [3e6, 1e10, float("inf")])
def test_any_time_between_two_service_actions_is_short_enough(dial, seconds):
    class Polling(echo.Server):
        def service_actions(self):
            pass

    with Polling(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(seconds,))
        thread.start()
        assert echoes(dial(server))
        server.shutdown()
        thread.join(DEADLINE)
        server.timeout = seconds
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert echoes(dial(server))
        thread.join(DEADLINE)


def test_a_rest_ends_by_itself_and_is_no_failure():
    now = 1000.0
    backoff = BackOff(clock=lambda: now)
    backoff.rest(2.0)
    assert backoff.resting()
    now += 2.0
    assert not backoff.resting() and not backoff.succeeded()


def test_neither_a_success_nor_the_end_of_a_pause_ends_a_rest():
    now = 1000.0
    backoff = BackOff(clock=lambda: now)
    backoff.failed()
    backoff.rest(60.0)
    backoff.succeeded()
    backoff.resume()
    assert backoff.resting()
    backoff.rest(0.0)
    assert not backoff.resting()


def test_a_shortage_is_reported_once_in_a_while_and_each_report_has_its_end():
    now = 1000.0
    backoff = BackOff(clock=lambda: now)
    reports = [backoff.failed(), backoff.failed(), backoff.succeeded(), backoff.failed(), backoff.succeeded()]
    assert reports == [True, False, True, False, False]
    assert not backoff.failed()
    now += SILENCE
    assert backoff.failed() and not backoff.failed()
    assert backoff.succeeded() and not backoff.succeeded()
