"""Starting and stopping: every call returns, from any thread, in any order, in a handler or a signal handler.

``test_draining.py`` is about a stop's effect on the sessions.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading

import pytest

import echo
from echo.server import signal_safe
from echo.server.listening import PlainListener
from echo.server.signal_safe import ReentrantEvent
from echo.server.stopping import Stop
from support import DEADLINE, ROOT, eventually, read_all, read_exactly
from support.servers import echoes, ends_in_time


def output_of(script, **environment):
    """The output of a new Python that runs this script to its end."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=dict(os.environ, **environment),
        timeout=DEADLINE,
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout.split()


# Starting.


def test_start_serves_in_the_background_and_returns_the_server(serve, dial):
    server = serve()
    assert server.start() is server
    assert echoes(dial(server))


def test_a_stop_right_after_the_start_ends_the_serving_thread_and_closes_the_socket():
    class Late(echo.Server):
        def _echo_serve(self, run, *arguments):
            eventually(lambda: run.stopping)  # the stop finds a thread that has not come to its first line
            super()._echo_serve(run, *arguments)

    server = Late(("127.0.0.1", 0), echo.EchoRequestHandler).start()
    assert server.stop() is True
    assert server.socket.fileno() == -1
    assert not server._echo_thread.is_alive()


def test_a_closed_server_cannot_serve_again(serve):
    server = serve()
    server.stop()
    ends_in_time(server.serve_forever)
    with pytest.raises(ValueError, match="closed"):  # else "while True: handle_request()" would never end
        server.handle_request()
    with pytest.raises(RuntimeError, match="closed"):
        server.start()


# shutdown() ends the loop.


def test_shutdown_wakes_the_loop_which_otherwise_sleeps(serve):
    """Row 4: no polling: the loop's one wait has no timeout, and shutdown() ends it."""
    waits = []

    class Watched(echo.Server):
        def _echo_wait(self, run, deadline):
            waits.append(deadline)
            super()._echo_wait(run, deadline)

    server = serve(cls=Watched)
    eventually(lambda: waits)
    ends_in_time(server.shutdown)
    assert waits == [None]


def test_shutdown_before_serve_forever_returns_at_once():
    """Row 7; and the next run ends at once, so that a stop cannot lose a race with a thread's start."""
    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        ends_in_time(server.shutdown)
        ends_in_time(server.serve_forever)


def test_shutdown_before_serve_forever_lets_it_return_although_the_program_has_closed_the_socket():
    """As pynetdicom's server does, whose thread may begin after its stop."""
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
    server.shutdown()
    server.socket.close()
    server.serve_forever()
    server.server_close()


def test_a_shutdown_that_comes_while_a_run_begins_ends_it(monkeypatch):
    """Row 7: from a signal handler, say."""
    real = socket.socketpair

    def interrupted(*arguments):
        server.shutdown()
        return real(*arguments)

    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        monkeypatch.setattr(socket, "socketpair", interrupted)
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


@pytest.mark.parametrize("verb", ["shutdown", "stop", "server_close"])
def test_handle_request_is_ended_from_another_thread(verb):
    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        eventually(lambda: server._echo_serving is not None)
        ends_in_time(getattr(server, verb))
        thread.join(DEADLINE)
        assert not thread.is_alive()


@pytest.mark.parametrize("how", ["close", "shutdown"])
def test_a_listener_that_is_taken_away_ends_the_loop_and_does_not_spin(how):
    """Row 9."""
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with socket.create_connection(server.server_address, DEADLINE) as sock:
        assert echoes(sock)
    run = server._echo_serving
    if how == "shutdown":
        server.socket.shutdown(socket.SHUT_RDWR)
    else:
        server.socket.close()
        run.wake()  # a poll that sleeps does not notice a descriptor that goes; its next look does
    thread.join(DEADLINE)
    assert not thread.is_alive()
    server.server_close()


# Stopping from inside.


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

    server = serve(Off, shutdown_timeout=DEADLINE)
    clients = [dial(server) for _ in range(2)]
    for client in clients:
        client.sendall(b"\n")
    assert [read_exactly(client, 5) for client in clients] == [b"done\n"] * 2
    ends_in_time(server.stop)


@pytest.mark.parametrize("hook", ["service_actions", "verify_request"])
def test_stopping_from_a_hook_of_the_serving_thread_while_another_thread_stops_does_not_deadlock(dial, hook):
    """Row 5."""
    entered = threading.Event()

    def stop_too(self, *arguments):
        entered.set()
        # The other one is inside its stop, and waits for this thread.
        eventually(lambda: self._echo_stop is not None)
        self.stop()
        return True

    server = type("Off", (echo.Server,), {hook: stop_too})(("127.0.0.1", 0), echo.EchoRequestHandler).start()
    dial(server)  # both hooks come after a client
    assert entered.wait(DEADLINE)
    ends_in_time(server.stop)
    assert not server._echo_thread.is_alive()


LOCKS = {
    "the server's": lambda server: server._echo_lock,
    "the run's": lambda server: server._echo_serving._lock,
    "the registry's": lambda server: server._echo_registry._lock,
    "that of Thread.start()": lambda server: threading._active_limbo_lock,
}


@pytest.mark.parametrize("method", ["shutdown", "stop", "server_close"])
@pytest.mark.parametrize("lock", LOCKS)
def test_a_signal_handler_may_stop_a_server_whose_locks_it_has_interrupted(serve, dial, lock, method, monkeypatch):
    """Row 5. A method of the server, like ``stats()`` or ``stop()``, or of any other thread, holds the lock while the
    handler runs."""
    monkeypatch.setattr(signal_safe, "MOMENT", 0.1)
    server = serve()
    client = dial(server)
    assert echoes(client)

    def stop_inside():
        with LOCKS[lock](server):
            dial(server)  # the loop may have to wait for the lock, and its new thread too
            getattr(server, method)()

    ends_in_time(stop_inside)
    if method != "shutdown":
        assert read_all(client) == b""  # the stop is under way
    ends_in_time(server.stop)
    assert server.stop() is True
    assert server.socket.fileno() == -1


def test_a_start_that_a_stop_overtakes_is_refused():
    class Overtaken(echo.Server):
        def _echo_new_serving(self):
            stops.append(threading.Thread(target=self.stop))
            stops[0].start()
            eventually(lambda: self._echo_stop is not None)
            return super()._echo_new_serving()

    stops = []
    with pytest.raises(RuntimeError, match="the server is closed"):
        Overtaken(("127.0.0.1", 0), echo.EchoRequestHandler).start()
    ends_in_time(stops[0].join)


def test_a_run_that_begins_while_a_signal_handler_stops_the_server_does_not_serve(monkeypatch):
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
    socketpair = socket.socketpair
    begun = []

    def stopped_meanwhile(*arguments):
        if not begun:
            begun.append(server)
            server.stop()
        return socketpair(*arguments)

    monkeypatch.setattr(socket, "socketpair", stopped_meanwhile)
    server.serve_forever()
    assert begun and server.socket.fileno() == -1


class ServesNobody(echo.Server):
    """Its runs end by themselves, at once."""

    timeout = 0

    def service_actions(self):
        self.shutdown()


def one_client(server):
    with socket.create_connection(server.server_address, timeout=DEADLINE) as client:
        client.sendall(b"exit\n")
    server.handle_request()


ACTIONS = {
    "handle_request": lambda server: server.handle_request(),
    "handle_request, a client": one_client,
    "serve_forever": lambda server: server.serve_forever(0),
    "start": lambda server: server.start(),
    "stop": lambda server: server.stop(),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_signal_handlers_stop_before_any_line_of_a_method_is_carried_out(action):
    """Row 43: it runs in the method's own thread. If that were never to look again, all later stops would hang."""
    folder = os.path.join(ROOT, "echo", "server", "")
    position = 0
    stopped = True
    while stopped:
        server = ServesNobody(("127.0.0.1", 0), echo.EchoRequestHandler)
        lines = iter(range(position, -1, -1))
        stopped = False

        def trace(frame, event, argument, server=server, lines=lines):
            if frame.f_code.co_filename.startswith(folder):
                nonlocal stopped
                if event == "line" and next(lines, None) == 0:
                    stopped = True
                    server.stop()
                return trace
            return None

        def act(server=server, trace=trace):
            sys.settrace(trace)
            try:
                ACTIONS[action](server)
            except (ValueError, RuntimeError) as exc:
                assert "the server is closed" in str(exc)
            finally:
                sys.settrace(None)

        ends_in_time(act)
        ends_in_time(server.stop)
        assert server.stop() is True
        assert server.socket.fileno() == -1
        position += 1
    assert position > 20


@pytest.mark.parametrize("moment", ["call", "return"])
@pytest.mark.parametrize("verb", ["serve_forever", "handle_request", "start"])
def test_an_interrupt_while_a_run_begins_leaves_no_run_behind(verb, moment):
    """Ctrl-C in a program without a handler for SIGINT."""

    def interrupt(frame, event, argument):
        if frame.f_code.co_name == "_echo_begin_serving" and event == moment:
            sys.setprofile(None)
            raise KeyboardInterrupt

    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
    sys.setprofile(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            getattr(server, verb)()
    finally:
        sys.setprofile(None)
    assert server._echo_serving is None
    assert server.stop() is True
    assert server.socket.fileno() == -1


def test_a_run_on_a_closed_socket_opens_nothing(monkeypatch):
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
    server.socket.close()
    monkeypatch.setattr(socket, "socketpair", None)
    with pytest.raises(OSError):
        server.serve_forever()
    server.stop()


def test_a_stop_that_an_exception_interrupts_does_not_report_that_all_is_done(serve):
    server = serve()

    def interrupted(deadline):
        raise KeyboardInterrupt

    server._echo_registry.wait_until_empty = interrupted
    with pytest.raises(KeyboardInterrupt):
        server.stop()
    assert server.stop() is False


@pytest.mark.parametrize("step", ["wait_for_loop", "finish"])
def test_a_stop_that_ctrl_c_interrupts_leaves_no_port_and_no_session(serve, dial, monkeypatch, step):
    """Nothing else could end them: a server has one stop."""

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    server = serve()
    client = dial(server)
    assert echoes(client)
    monkeypatch.setattr(Stop, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.stop()
    assert server.socket.fileno() == -1
    assert read_all(client) == b""
    assert server.stop() is False


def test_a_stop_that_ctrl_c_interrupts_at_its_first_line_ends_the_loop(serve):
    server = serve()

    def interrupted():
        del server._echo_end_loop
        raise KeyboardInterrupt

    server._echo_end_loop = interrupted
    with pytest.raises(KeyboardInterrupt):
        server.stop()
    eventually(lambda: server._echo_serving is None)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_ctrl_c_at_the_start_of_a_run_leaves_no_descriptor_to_which_signals_would_be_written(monkeypatch):
    """The number of a closed socket may be that of a client's, later."""
    set_wakeup_fd = signal.set_wakeup_fd

    def interrupted(number, **options):
        found = set_wakeup_fd(number, **options)
        if number != -1:
            raise KeyboardInterrupt
        return found

    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        monkeypatch.setattr(signal, "set_wakeup_fd", interrupted)
        with pytest.raises(KeyboardInterrupt):
            server.serve_forever()
    assert set_wakeup_fd(-1) == -1


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_a_wakeup_descriptor_that_its_owner_closes_during_a_run_leaves_none_to_which_signals_would_be_written():
    before = signal.set_wakeup_fd(-1)
    try:
        ours, theirs = socket.socketpair()
        with ours, theirs, echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
            theirs.setblocking(False)
            signal.set_wakeup_fd(theirs.fileno())
            server.service_actions = lambda: (theirs.close(), server.shutdown())
            server.serve_forever(poll_interval=0.01)
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.set_wakeup_fd(before)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_no_flood_of_signals_is_worth_a_warning_that_the_bell_is_full(monkeypatch):
    """Python looks at the flag after it has looked at the number: one that is set for an instant is too long."""
    set_wakeup_fd, warns = signal.set_wakeup_fd, []

    def watched(number, warn_on_full_buffer=True):
        warns.append(warn_on_full_buffer)
        return set_wakeup_fd(number, warn_on_full_buffer=warn_on_full_buffer)

    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        monkeypatch.setattr(signal, "set_wakeup_fd", watched)
        server.service_actions = server.shutdown
        server.serve_forever(poll_interval=0.01)
    assert warns == [False] * 3


class Stuck(echo.MessageRequestHandler):
    """Sends a line, and stays in its hook until its client is gone."""

    def message_received(self, message):
        self.send(b"stuck")
        self.flush()
        while self.request.recv(1000):
            pass
        self.server.freed.wait(10 * DEADLINE)


def stuck_client(server, dial):
    server.freed = threading.Event()
    client = dial(server)
    client.sendall(b"\n")
    assert read_exactly(client, 6) == b"stuck\n"
    return client


def test_a_second_signals_stop_in_the_moment_in_which_the_first_sets_its_deadline_counts(serve, dial, monkeypatch):
    server = serve(Stuck, shutdown_timeout=10 * DEADLINE)
    stuck_client(server, dial)
    begin = Stop.begin

    def interrupted(stop, timeout):
        server.stop(timeout=0)  # the handler of a signal
        begin(stop, timeout)

    monkeypatch.setattr(Stop, "begin", interrupted)
    server._echo_cut_grace = 0.01
    ends_in_time(lambda: server.stop())
    assert server.stop() is False
    server.freed.set()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_listening_socket_that_is_closed_as_the_accept_loop_begins_to_wait_for_it_ends_the_loop(monkeypatch, moment):
    """A stop that does not wait for the loop any longer closes it. Before or after the loop asks for its number."""
    about_to_wait = []

    def fileno(listener):
        before = socket.socket.fileno(listener)
        if about_to_wait:
            about_to_wait.clear()
            listener.close()
        return before if moment == "after" else socket.socket.fileno(listener)

    monkeypatch.setattr(PlainListener, "fileno", fileno, raising=False)
    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        monkeypatch.setattr(server, "_echo_has_room", lambda serving: about_to_wait.append(serving) or True)
        ends_in_time(server.serve_forever)


@pytest.mark.parametrize("hook", ["get_request", "verify_request", "process_request", "service_actions"])
def test_a_method_that_blocks_the_accept_loop_holds_up_neither_the_deadline_nor_the_program(
    dial, monkeypatch, caplog, hook
):
    """Row 84: a relative."""
    monkeypatch.setattr("echo.server.stopping.LOOP_GRACE", 0.0)
    blocked, go_on = threading.Event(), threading.Event()

    def block(self, *args):
        blocked.set()
        go_on.wait()
        return getattr(super(echo.Server, self), hook)(*args)

    server_class = type("Blocks", (echo.Server,), {hook: block, "_echo_cut_grace": 0.0})
    with server_class(("127.0.0.1", 0), echo.EchoRequestHandler, shutdown_timeout=0.0) as server:
        server.start()
        dial(server)
        assert blocked.wait(DEADLINE)
        assert server.stop() is False
    assert "the accept loop cut" in caplog.text
    thread = server._echo_thread
    go_on.set()
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_a_session_that_a_subclass_serves_in_the_accept_loop_drains_at_a_stop(dial):
    class OneAtATime(echo.Server):
        def process_request(self, request, client_address):
            self.finish_request(request, client_address)
            self.shutdown_request(request)

    with OneAtATime(("127.0.0.1", 0), echo.EchoRequestHandler, shutdown_timeout=None) as server:
        server.start()
        client = dial(server)
        assert echoes(client)
        assert server.stop() is True
    assert read_all(client) == b""


def test_a_later_stop_never_gives_the_sessions_more_time(dial):
    class Busy(echo.Server):
        go_on = threading.Event()
        _echo_cut_grace = 0.01

        def service_actions(self):
            self.go_on.wait(DEADLINE)

    server = Busy(("127.0.0.1", 0), Stuck).start()
    stuck_client(server, dial)
    first = threading.Thread(target=server.stop, args=(0.01,))
    first.start()
    eventually(lambda: server._echo_stop is not None)  # it waits for the loop, and has no deadline yet
    second = threading.Thread(target=server.stop, args=(10 * DEADLINE,))
    second.start()
    eventually(lambda: second.is_alive())
    server.go_on.set()
    ends_in_time(first.join)
    ends_in_time(second.join)
    assert server.stop() is False
    server.freed.set()


class StopsWhenAsked(echo.MessageRequestHandler):
    def message_received(self, message):
        try:
            self.server.stop()
            self.send(b"done")
        except RuntimeError:
            self.send(b"no thread")


def no_thread_starts(thread):
    raise RuntimeError("can't start new thread")


def test_a_handler_can_stop_a_serving_server_when_no_thread_can_start(serve, dial, monkeypatch):
    """The loop, which ends, runs the stop."""
    server = serve(StopsWhenAsked)
    client = dial(server)
    eventually(lambda: server.connections)
    monkeypatch.setattr(threading.Thread, "start", no_thread_starts)
    client.sendall(b"\n")
    assert read_exactly(client, 5) == b"done\n"
    server._echo_thread.join(DEADLINE)
    assert not server._echo_thread.is_alive()
    assert server.socket.fileno() == -1


def test_a_stop_that_finds_no_thread_can_be_tried_again(dial, monkeypatch):
    """A handler cannot run it, and no loop is running."""
    with echo.Server(("127.0.0.1", 0), StopsWhenAsked) as server:
        client = dial(server)
        server.handle_request()
        with monkeypatch.context() as shortage:
            shortage.setattr(threading.Thread, "start", no_thread_starts)
            client.sendall(b"\n")
            assert read_exactly(client, 10) == b"no thread\n"
        client.sendall(b"\n")
        assert read_exactly(client, 5) == b"done\n"
        ends_in_time(server.stop)
        assert server.socket.fileno() == -1


def test_serve_forever_returns_when_the_stop_that_ended_it_is_over():
    """So a program that ends after it does not cut sessions that are draining."""
    reached = []

    class Slow(echo.Server):
        def _echo_accept_waiting(self, stop):
            reached.append(stop)
            super()._echo_accept_waiting(stop)

    server = Slow(("127.0.0.1", 0), echo.EchoRequestHandler)
    stopper = threading.Thread(target=lambda: (eventually(lambda: server._echo_serving), server.stop()))
    stopper.start()
    server.serve_forever()
    assert [stop.ended.is_set() for stop in reached] == [True]
    stopper.join(DEADLINE)


def test_stopping_from_a_signal_handler_of_the_serving_thread_does_not_deadlock():
    """Row 5."""
    script = """if True:
        import echo, os, signal, threading

        def signal_while_it_serves(address):
            with echo.connect(address) as client:
                client.echo(b"a")
                os.kill(os.getpid(), signal.SIGTERM)
                done.wait()

        for verb in ["stop", "server_close", "shutdown"]:
            done = threading.Event()
            server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
            signal.signal(signal.SIGTERM, lambda *_: getattr(server, verb)())
            client = threading.Thread(target=signal_while_it_serves, args=(server.server_address,))
            client.start()
            server.serve_forever()
            server.server_close()
            print(verb, flush=True)
            done.set()
            client.join()
    """
    assert output_of(script) == [b"stop", b"server_close", b"shutdown"]


def test_a_signal_handlers_shutdown_inside_start_does_not_deadlock():
    """Row 5."""
    script = """if True:
        import atexit, echo, os, signal, threading

        for owner, name in [(atexit, "register"), (threading.Thread, "start")]:
            real = getattr(owner, name)

            def interrupted(*arguments):
                os.kill(os.getpid(), signal.SIGTERM)
                return real(*arguments)

            server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler)
            signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
            setattr(owner, name, interrupted)
            server.start()
            setattr(owner, name, real)
            server.stop()
            print(name, flush=True)
    """
    assert output_of(script) == [b"register", b"start"]


def test_a_signal_in_the_moment_before_the_loop_sleeps_wakes_it():
    """Row 5: the interpreter only records such a signal. The byte that it writes to the loop's bell ends the sleep."""
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)

    class Looking(echo.Server):
        def service_actions(self):
            seen.append((signal.set_wakeup_fd(self._echo_serving._bell.fileno()), self._echo_serving._bell.fileno()))
            self.shutdown()

    seen = []
    with Looking(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        server.serve_forever(poll_interval=0.01)
    (found, expected) = seen[0]
    assert found == expected
    assert signal.set_wakeup_fd(before) == before


def test_a_flag_can_be_waited_for_inside_a_wait_for_it():
    """As a signal handler does that interrupts a wait."""
    flag = ReentrantEvent()

    def wait_inside():
        with flag._changed:
            threading.Timer(0.01, flag.set).start()
            flag.wait()

    ends_in_time(wait_inside)
    assert flag.is_set()


@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_verbs_from_any_threads_ends(seed):
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, shutdown_timeout=1.0)
    over = threading.Event()

    def act(choice):
        for _ in range(6):
            verb = choice.choice("shutdown serve_forever handle_request start stop server_close connect".split())
            try:
                if verb == "connect":
                    socket.create_connection(server.server_address, 1).close()
                else:
                    getattr(server, verb)()
            except (RuntimeError, OSError, ValueError):
                pass  # serving already, or closed

    def end_each_run():
        while not over.wait(0.02):
            server.shutdown()

    actors = [
        threading.Thread(target=act, args=(random.Random(f"{seed}/{number}"),), daemon=True) for number in range(4)
    ]
    ender = threading.Thread(target=end_each_run, daemon=True)
    for thread in [*actors, ender]:
        thread.start()
    for thread in actors:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    over.set()
    ender.join(DEADLINE)
    assert not ender.is_alive()
    ends_in_time(server.stop)
