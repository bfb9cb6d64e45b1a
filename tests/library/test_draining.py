"""A stop's effect on the sessions: idle, busy or stuck ones, and clients that were not accepted yet."""

import contextlib
import errno
import logging
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time

import pytest

import echo
from support import DEADLINE, ROOT, Recorder, eventually, read_all
from support.background import Background
from support.servers import echoes


class Impatient(echo.Server):
    """Waits only a moment for sessions that it has cut; the stuck ones here never notice."""

    _echo_cut_grace = 0.01


@pytest.fixture
def stuck():
    """A handler class that echoes a message after ``release`` was set; ``entered`` is set when the first one waits."""

    class Stuck(echo.MessageRequestHandler):
        release = threading.Event()
        entered = threading.Event()

        def message_received(self, message):
            self.entered.set()
            self.release.wait(2 * DEADLINE)
            self.send(message)

    yield Stuck
    Stuck.release.set()


class Stop(threading.Thread):
    """``server.stop()`` in a thread of its own."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self._server = server
        self._returned = []
        self.start()

    def run(self):
        self._returned.append(self._server.stop())

    def result(self):
        self.join(DEADLINE)
        assert not self.is_alive(), "the stop hangs"
        return self._returned[0]


def is_draining(server):
    """Whether the stop has reached all sessions, at least one."""
    return {info.state for info in server.connections} == {"draining"}


# Sessions.


def test_stop_can_be_called_twice_and_is_true_if_all_sessions_ended(serve, dial):
    server = serve(shutdown_timeout=DEADLINE)
    client = dial(server)
    assert echoes(client)
    assert server.stop() is True
    assert server.stop() is True
    assert read_all(client) == b""


def test_idle_clients_see_the_end_at_once_and_do_not_hold_the_stop_up(serve, dial):
    """Rows 2 and 3: none of them is left to be cut at the deadline. (The standard library waits for ever.)"""
    server = serve(shutdown_timeout=DEADLINE)
    clients = [dial(server) for _ in range(20)]
    for client in clients:
        assert echoes(client)
    assert server.stop() is True
    assert [read_all(client) for client in clients] == [b""] * 20


def test_idle_clients_of_a_stock_handler_see_the_end_too(serve, dial):
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


def test_stuck_sessions_share_one_deadline_and_are_cut(serve, dial, stuck, monkeypatch):
    """Row 3: an hour passes on a simulated clock; a timeout for each of the 5 sessions would take 5 hours."""
    passed = [0.0]
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + passed[0])
    server = serve(stuck, cls=Impatient, shutdown_timeout=3600)
    clients = [dial(server) for _ in range(5)]
    for client in clients:
        client.sendall(b"a\n")
    eventually(lambda: len(server.connections) == 5)
    stop = Stop(server)
    eventually(lambda: is_draining(server))
    passed[0] = 3600.0
    server._echo_registry.wake()
    assert stop.result() is False


def test_the_log_says_how_many_sessions_drained_and_how_many_were_cut(serve, dial, stuck, caplog):
    class Both(stuck):
        def message_received(self, message):
            if message == b"stick":
                super().message_received(message)
            else:
                self.send(message)

    server = serve(Both, cls=Impatient, shutdown_timeout=DEADLINE)
    idle = [dial(server) for _ in range(3)]
    assert all(echoes(client) for client in idle)
    busy = dial(server)
    busy.sendall(b"stick\n")
    assert stuck.entered.wait(DEADLINE)
    with caplog.at_level(logging.INFO, "echo.server"):
        stop = Stop(server)
        eventually(lambda: len(server.connections) == 1)
        assert server.stop(timeout=0) is False
        assert stop.result() is False
    assert "3 sessions drained, 1 cut" in caplog.text


def test_a_session_that_is_aborted_while_it_drains_ends_as_reset(serve, dial, stuck):
    class Aborting(stuck):
        def message_received(self, message):
            super().message_received(message)
            self.flush()

        def drain(self):
            super().drain()
            self.abort()
            self.release.set()

    handler = Recorder.of(Aborting)
    server = serve(handler, shutdown_timeout=DEADLINE)
    dial(server).sendall(b"a\n")
    assert stuck.entered.wait(DEADLINE)
    assert server.stop() is True
    assert handler.reasons == ["reset"]


def test_a_client_that_was_refused_is_no_session_that_drains(serve, dial, caplog):
    with caplog.at_level(logging.INFO, "echo.server"):
        server = serve(proxy_protocol=True)
        client = dial(server)
        client.sendall(b"no header\n")
        eventually(lambda: "refused: proxy" in caplog.text)
        assert server.stop(timeout=0) is True  # it may still wait for the client's own end
    assert caplog.messages[-1] == "stopped: 0 sessions drained, 0 cut"


def test_a_busy_session_answers_what_had_arrived_and_ends_as_drain(serve, dial, stuck):
    handler = Recorder.of(stuck)
    server = serve(handler, shutdown_timeout=DEADLINE)
    client = dial(server)
    client.sendall(b"1\n2\n3\npart")
    assert stuck.entered.wait(DEADLINE)
    stop = Stop(server)
    eventually(lambda: is_draining(server))
    stuck.release.set()
    assert read_all(client) == b"1\n2\n3\n"
    assert stop.result() is True
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

    sender, receiver = threading.Thread(target=send), threading.Thread(target=receive)
    sender.start()
    receiver.start()
    eventually(lambda: server.stats().messages_in > 2000)
    assert server.stop() is True  # the session was not cut at the deadline
    receiver.join()
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)  # Linux may leave a sender that met a full window waiting for a minute
    sender.join()
    assert received[0] is None or received[0].replace(b"line\n", b"") == b""


def test_a_stop_does_not_wait_for_a_client_that_is_gone(serve, dial, stuck):
    """Its host answers the last reply with a reset, and the undelivered bytes are lost."""
    server = serve(stuck, shutdown_timeout=DEADLINE)
    client = dial(server)
    client.sendall(b"hello\n")
    assert stuck.entered.wait(DEADLINE)
    stop = Stop(server)
    eventually(lambda: is_draining(server))
    client.close()
    stuck.release.set()
    assert stop.result() is True  # the session was not cut at the deadline


def test_a_sender_whose_client_does_not_read_is_cut_at_the_deadline(serve, dial):
    class Pour(echo.MessageRequestHandler):
        send_timeout = None

        def message_received(self, message):
            while True:
                self.send(b"x" * 60_000)

    handler = Recorder.of(Pour)
    server = serve(handler, shutdown_timeout=0.1)
    client = dial(server)
    client.sendall(b"go\n")
    eventually(lambda: server.stats().bytes_out)
    assert server.stop() is False
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["drain"]


def test_a_session_that_only_waits_for_its_client_to_close_is_not_counted_as_cut(serve, dial):
    server = serve()
    server._echo_linger_silence = DEADLINE
    client = dial(server)
    client.sendall(b"a\nexit\n")
    assert read_all(client) == b"a\n"  # and the client stays
    assert [info.state for info in server.connections] == ["closing"]
    assert server.stop(timeout=0.1) is True
    eventually(lambda: server.stats().ended == {"exit": 1})


# Clients that are connected and not accepted.


def test_a_drain_that_blocks_holds_up_neither_the_deadline_nor_the_other_sessions(dial):
    """Row 84."""
    release = threading.Event()
    connected = []

    class Blocks(echo.EchoRequestHandler):
        def connection_made(self):
            connected.append(self)

        def drain(self):
            if self.session == 1:
                super().drain()
            else:
                release.wait(2 * DEADLINE)

    # Half a second also passes on the busiest machine.
    server = Impatient(("127.0.0.1", 0), Blocks, shutdown_timeout=0.5).start()
    clients = [dial(server)]
    eventually(lambda: len(connected) == 1)
    clients += [dial(server) for _ in range(3)]
    eventually(lambda: len(connected) == 4)
    stop = Stop(server)
    assert read_all(clients[0]) == b""
    assert stop.result() is False
    assert [read_all(client) for client in clients[1:]] == [b""] * 3
    release.set()
    eventually(lambda: not server.connections)
    assert server.stats().ended["drain"] >= 1


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, ValueError, BrokenPipeError])
def test_whatever_a_drain_raises_the_other_sessions_are_drained(serve, dial, caplog, error):
    """Row 84."""

    class Raises(echo.EchoRequestHandler):
        def drain(self):
            if self.session == 1:
                self.connection.end_input()
                raise error("on purpose")
            super().drain()

    server = serve(Raises)
    clients = []
    for _ in range(3):
        clients.append(dial(server))
        assert echoes(clients[-1])
    assert server.stop() is True
    assert [read_all(client) for client in clients] == [b""] * 3
    assert [record.peer in record.getMessage() for record in caplog.records if "in drain()" in record.message] == [True]


def test_the_socket_stays_open_while_a_drain_acts_on_it(dial):
    """Otherwise its descriptor could be another connection's by then."""
    begun, release, done = threading.Event(), threading.Event(), threading.Event()
    sockets = []

    class Slow(echo.EchoRequestHandler):
        def drain(self):
            sockets.append(self.request)
            self.request.shutdown(socket.SHUT_RD)
            begun.set()
            release.wait(2 * DEADLINE)

        def finish(self):
            super().finish()
            done.set()

    server = echo.Server(("127.0.0.1", 0), Slow).start()
    client = dial(server)
    assert echoes(client)
    stop = Stop(server)
    begun.wait(DEADLINE)
    done.wait(DEADLINE)
    assert sockets[0].fileno() != -1
    release.set()
    assert stop.result() is True
    assert sockets[0].fileno() == -1


def no_thread(thread):
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("method, replacement", [("start", no_thread), ("_bootstrap", lambda thread: None)])
def test_a_drain_needs_no_thread_of_its_own(serve, dial, monkeypatch, method, replacement):
    """Row 65: a thread that has no memory for its first line (``_bootstrap``) was waited for until after the
    deadline."""
    monkeypatch.setattr("echo.beginning.PATIENCE", DEADLINE)
    monkeypatch.setattr("echo.server.stopping.START_PATIENCE", 0.01)
    server = serve(shutdown_timeout=DEADLINE / 2)
    client = dial(server)
    assert echoes(client)
    monkeypatch.setattr(threading.Thread, method, replacement)
    assert server.stop() is True
    assert read_all(client) == b""


def test_a_connection_that_arrives_with_the_stop_is_served_wholly_or_not_at_all(serve):
    """Row 37."""
    for _ in range(20):
        server = serve(shutdown_timeout=DEADLINE)
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


def test_clients_in_the_backlog_are_served_when_the_server_closes_and_not_reset(serve, dial):
    """A load balancer that was connected by the system has handed its client over."""
    server = serve(shutdown_timeout=DEADLINE)
    server.shutdown()
    waiting = [dial(server) for _ in range(5)]
    for sock in waiting:
        sock.sendall(b"a\nb\n")
    stop = Stop(server)
    for sock in waiting:
        assert read_all(sock) == b"a\nb\n"
        sock.close()
    assert stop.result() is True
    assert server.stats().ended == {"drain": 5}


def test_clients_in_the_backlog_are_served_although_a_shortage_has_just_ended(serve, dial):
    """Row 65: the pause after it held on, and they were reset."""
    server = serve(shutdown_timeout=DEADLINE)
    server.shutdown()
    while server._echo_failures.pause < 1.0:
        server._echo_failures.failed()
    waiting = [dial(server) for _ in range(5)]
    for sock in waiting:
        sock.sendall(b"hello\n")
    stop = Stop(server)
    for sock in waiting:
        assert read_all(sock) == b"hello\n"
        sock.close()
    assert stop.result() is True


def test_a_session_that_has_ended_and_whose_replies_are_not_delivered_is_cut(serve):
    """Row 83: the process ends then, and a client that sends one byte more loses them."""

    class Replies(echo.MessageRequestHandler):
        def connection_made(self):
            self.connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            self.send(b"x" * 300000)  # waits there
            self.close()

    server = serve(Replies, shutdown_timeout=0.2)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(server.server_address)
        eventually(lambda: [each.state for each in server.connections] == ["closing"])
        assert server.stop() is False


def test_sessions_that_are_cut_have_a_moment_to_end(serve, dial):
    ended = []

    class Slow(echo.EchoRequestHandler):
        def connection_lost(self, reason):
            time.sleep(0.1)
            ended.append(reason)

        def drain(self):
            pass

    server = serve(Slow)
    server._echo_cut_grace = DEADLINE  # however busy this machine is
    assert echoes(dial(server))
    assert server.stop(0) is False
    assert len(ended) == 1


def test_a_stop_at_once_does_not_cut_a_session_whose_replies_are_acknowledged_a_moment_later(serve, dial, monkeypatch):
    """A host acknowledges the last bytes up to 40 ms after it has them."""
    first_looks = iter([3] * 25)
    monkeypatch.setattr("echo.server.sessions.undelivered", lambda sock: next(first_looks, 0))
    server = serve()
    server._echo_cut_grace = DEADLINE  # however busy this machine is, there is a second look
    server._echo_linger_silence = DEADLINE  # however busy this machine is, the sessions are still closing then
    socks = [dial(server) for _ in range(20)]
    for sock in socks:
        sock.sendall(b"hello\nexit\n")
        assert read_all(sock) == b"hello\n"
    eventually(lambda: {each.state for each in server.connections} == {"closing"})
    assert server.stop(0) is True


def test_a_closing_server_accepts_no_more_waiting_clients_than_its_limit_allows(serve, dial):
    """The limit holds for sessions at a time: those that have drained make room for others."""

    class Watched(echo.Server):
        before = []

        def verify_request(self, request, client_address):
            self.before.append(len(self.connections))
            return True

    server = serve(cls=Watched, max_connections=2, shutdown_timeout=DEADLINE)
    server.shutdown()
    waiting = [dial(server) for _ in range(5)]
    assert server.stop()
    assert server.stats().accepted >= 2
    assert max(Watched.before) < 2
    for sock in waiting:
        try:
            assert sock.recv(1) == b""
        except ConnectionResetError:
            pass


def test_a_stop_without_free_descriptors_accepts_nobody_and_drains_all_the_same(serve, dial, monkeypatch):
    """Row 10."""

    def fail(*arguments):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    server = serve(shutdown_timeout=DEADLINE)
    client = dial(server)
    assert echoes(client)
    monkeypatch.setattr(socket, "socketpair", fail)
    assert server.stop() is True
    assert read_all(client) == b""
    assert server.stats().ended == {"drain": 1}
    assert server.socket.fileno() == -1


def test_a_server_that_never_served_accepts_nobody_when_it_closes(dial):
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
    dial(server)
    server.server_close()
    assert server.stats().accepted == 0


def test_a_server_that_handled_one_request_accepts_no_other_when_it_closes(dial):
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
    for _ in range(3):
        dial(server)
    server.handle_request()
    server.server_close()
    assert server.stats().accepted == 1


# The end of the process.


def reply_of_a_process(script):
    """The reply to one line, from a process that prints its port and ends while the handler works on that line."""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    with process, socket.create_connection(("127.0.0.1", int(process.stdout.readline())), DEADLINE) as sock:
        sock.sendall(b"late\n")
        reply = read_all(sock)
        assert process.wait(DEADLINE) == 0
    return reply


def test_a_process_whose_main_thread_ends_drains_before_it_exits():
    """Row 17: daemon threads would die in mid-reply."""
    script = """if True:
        import echo, threading

        class Late(echo.MessageRequestHandler):
            def message_received(self, message):
                busy.set()
                while server.connections[0].state != "draining":
                    threading.Event().wait(0.01)
                self.send(message)

        busy = threading.Event()
        server = echo.Server(("127.0.0.1", 0), Late, shutdown_timeout=60).start()
        print(server.server_address[1], flush=True)
        busy.wait()
    """
    assert reply_of_a_process(script) == b"late\n"


def test_a_process_that_ends_during_a_stop_waits_for_the_stop():
    """Row 17: the stop may run in a daemon thread."""
    script = """if True:
        import echo, threading

        class Late(echo.MessageRequestHandler):
            def message_received(self, message):
                busy.set()
                while threading.main_thread().is_alive():
                    threading.Event().wait(0.01)
                threading.Event().wait(0.1)  # a process that does not wait is gone by then
                self.send(message)

        busy = threading.Event()
        server = echo.Server(("127.0.0.1", 0), Late, shutdown_timeout=60).start()
        print(server.server_address[1], flush=True)
        busy.wait()
        threading.Thread(target=server.stop, daemon=True).start()
        while server.connections[0].state != "draining":
            threading.Event().wait(0.01)
    """
    assert reply_of_a_process(script) == b"late\n"


def test_sessions_drain_before_all_clients_that_wait_in_the_backlog_are_accepted(dial):
    """Row 90: if they are many, or the check of each is slow, the sessions would have no time left."""
    reached, may_go_on = threading.Event(), threading.Event()
    ends = []

    class Slow(echo.Server):
        looks = 0

        def verify_request(self, request, client_address):
            self.looks += 1
            if self.looks == 2:  # the accepting thread stays here until the stop has begun
                reached.set()
                assert may_go_on.wait(DEADLINE)
            elif self.looks == 4:  # the second one that waits in the backlog
                ends.append(first.recv(1))
            return True

    server = Slow(("127.0.0.1", 0), echo.EchoRequestHandler, shutdown_timeout=DEADLINE).start()
    first = dial(server)
    assert echoes(first)
    others = [dial(server) for _ in range(3)]
    assert reached.wait(DEADLINE)
    stopping = Background(server.stop)
    eventually(lambda: server._echo_serving.stopping)
    may_go_on.set()
    for sock in others:
        assert read_all(sock) == b""
        sock.close()
    first.close()
    assert stopping.result()
    assert ends == [b""]
