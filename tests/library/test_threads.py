"""The sessions' threads: reused, ended when idle, and with no state of one session in the next."""

import _thread
import contextvars
import gc
import logging
import queue
import random
import socket
import subprocess
import sys
import threading
import time
import weakref
from types import SimpleNamespace

import pytest

import echo
from echo import beginning
from echo.server.threads import NotStarted, Threads
from support import DEADLINE, ROOT, eventually, read_all, read_exactly
from support.servers import ends_in_time


class Ident(echo.MessageRequestHandler):
    """Replies with the identity of its thread."""

    def message_received(self, message):
        self.send(b"%d" % threading.get_ident())


def ask(sock, message=b"who"):
    """The reply to a line."""
    sock.sendall(message + b"\n")
    reply = b""
    while not reply.endswith(b"\n"):
        more = sock.recv(1024)
        assert more, "the session has ended"
        reply += more
    return reply[:-1]


def ask_once(server, message=b"who"):
    """The reply to a line in a new session; returns when its thread waits for another session, or is gone."""
    with socket.create_connection(server.server_address, DEADLINE) as sock:
        reply = ask(sock, message)
    rests(server)
    return reply


def rests(server):
    """Wait until no session is left and all threads wait."""
    eventually(lambda: not server.connections and len(server._echo_session_threads._idle) == len(session_threads()))


def session_threads():
    """The sessions' threads that this test's servers have started; the tests that ask have one server at a time."""
    return [
        thread for thread in threading.enumerate() if thread.name.startswith("echo-session-") and thread not in _others
    ]


_others = set()


@pytest.fixture(autouse=True)
def threads_of_other_tests():
    _others.update(threading.enumerate())
    yield
    _others.clear()


@pytest.fixture
def serve(serve):
    """As in ``conftest.py``; threads wait for another session for an hour, or as long as ``idle_timeout`` says."""

    def start(handler_class=echo.EchoRequestHandler, *, idle_timeout=3600.0, **options):
        server = serve(handler_class, **options)
        server._echo_session_threads.idle_timeout = idle_timeout
        return server

    return start


def test_a_second_session_runs_in_the_thread_of_the_first(serve):
    server = serve(Ident)
    idents = {ask_once(server) for _ in range(10)}
    assert len(idents) == 1
    assert len(session_threads()) == 1


def test_two_sessions_at_a_time_have_two_threads_and_the_next_two_have_the_same(serve, dial):
    server = serve(Ident)

    def pair():
        with socket.create_connection(server.server_address, DEADLINE) as one:
            with socket.create_connection(server.server_address, DEADLINE) as other:
                idents = {ask(one), ask(other)}
        rests(server)
        return idents

    first = pair()
    assert len(first) == 2
    assert pair() == first


def test_the_thread_that_worked_last_works_next_so_that_the_others_may_leave(serve):
    server = serve(Ident)
    with socket.create_connection(server.server_address, DEADLINE) as one:
        first = ask(one)
        with socket.create_connection(server.server_address, DEADLINE) as other:
            assert ask(other) != first
        eventually(lambda: len(server._echo_session_threads._idle) == 1)
    rests(server)
    assert [ask_once(server) for _ in range(3)] == [first] * 3


def test_a_thread_that_waits_is_a_daemon_with_a_name(serve):
    server = serve(Ident)
    ask_once(server)
    (thread,) = session_threads()
    assert thread.daemon


def test_an_idle_thread_leaves(serve):
    server = serve(Ident, idle_timeout=0.01)
    with socket.create_connection(server.server_address, DEADLINE) as sock:
        ask(sock)
        (thread,) = session_threads()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert not server._echo_session_threads._idle
    assert not session_threads()
    assert ask_once(server)  # and a new one comes


def test_a_thread_does_not_leave_while_it_has_a_session(serve, dial):
    server = serve(Ident, idle_timeout=0.005)
    client = dial(server)
    ident = ask(client)
    threading.Event().wait(0.05)  # ten times as long as it would wait
    assert ask(client) == ident


@pytest.mark.parametrize("timeout", [0.0, 0.0002, 0.002])
@pytest.mark.parametrize("tasks", [50, pytest.param(400, marks=pytest.mark.stress)])
def test_no_task_is_lost_on_threads_that_are_about_to_leave(timeout, tasks):
    """The moment between the end of a thread's wait and its end, hit as often as possible."""
    pool = Threads(idle_timeout=timeout)
    done = [[] for _ in range(4)]
    failures = []

    def never():
        failures.append("not started")

    def hammer(mine, seed):
        choice = random.Random(seed)
        pause = threading.Event()
        for number in range(tasks):
            pool.run((mine.append, (number,)), never)
            if choice.random() < 0.7:
                pause.wait(choice.uniform(0, 2 * timeout))

    hammers = [threading.Thread(target=hammer, args=(mine, seed)) for seed, mine in enumerate(done)]
    for thread in hammers:
        thread.start()
    for thread in hammers:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    eventually(lambda: sum(map(len, done)) == 4 * tasks, "a task was lost")
    assert [sorted(mine) for mine in done] == [list(range(tasks))] * 4
    assert not failures
    pool.close()
    eventually(lambda: not session_threads() and not pool._idle)


def test_a_thread_that_was_taken_while_it_gave_up_waits_for_its_task():
    """The same moment, held: the thread was taken from the idle ones, and has no task yet."""
    pool = Threads()
    began, go = threading.Event(), threading.Event()

    class Late(queue.SimpleQueue):
        def get(self, block=True, timeout=None):
            if timeout is None:
                return super().get()
            began.set()
            assert go.wait(DEADLINE)
            raise queue.Empty

    tasks = Late()
    results = []
    thread = threading.Thread(target=lambda: results.append(pool._next((tasks, thread))))
    thread.start()
    assert began.wait(DEADLINE)
    assert pool._idle.pop() == (tasks, thread)  # as run() does
    go.set()
    tasks.put("task")
    thread.join(DEADLINE)
    assert results == ["task"]


def test_context_variables_of_a_session_are_not_seen_by_the_next(serve):
    variable = contextvars.ContextVar("variable", default=b"unset")

    class Sets(Ident):
        def message_received(self, message):
            self.send(variable.get())
            variable.set(message)
            self.send(b"%d" % threading.get_ident())

    server = serve(Sets)
    replies = []
    for message in (b"one", b"two"):
        with socket.create_connection(server.server_address, DEADLINE) as sock:
            sock.sendall(message + b"\n" + message + b"\n")
            sock.shutdown(socket.SHUT_WR)
            replies.append(read_all(sock).split())
        rests(server)
    assert replies[0][1] == replies[1][1]  # the same thread
    assert [reply[0] for reply in replies] == [b"unset"] * 2
    assert [reply[2] for reply in replies] == [b"one", b"two"]  # within a session it stays


def test_what_a_session_sets_in_its_context_is_not_the_programs(serve):
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("the program's")
    seen = []

    class Looks(Ident):
        def message_received(self, message):
            seen.append(variable.get())
            variable.set("a session's")
            super().message_received(message)

    ask_once(serve(Looks))
    assert seen == ["unset"]
    assert variable.get() == "the program's"


def test_a_threading_local_stays_as_in_any_pool(serve):
    local = threading.local()

    class Counts(echo.MessageRequestHandler):
        def message_received(self, message):
            local.count = getattr(local, "count", 0) + 1
            self.send(b"%d" % local.count)

    server = serve(Counts)
    assert [ask_once(server) for _ in range(3)] == [b"1", b"2", b"3"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_sys_exit_in_a_handler_ends_its_thread_alone(serve, dial):
    class Quits(Ident):
        def message_received(self, message):
            if message == b"quit":
                sys.exit(1)
            super().message_received(message)

    server = serve(Quits)
    stays = dial(server)
    ident = ask(stays)
    (there,) = session_threads()
    leaves = dial(server)
    ask(leaves)
    (thread,) = set(session_threads()) - {there}
    leaves.sendall(b"quit\n")
    assert read_all(leaves) == b""
    leaves.close()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert not server._echo_session_threads._idle
    assert ask(stays) == ident
    later = dial(server)
    assert ask(later) != ident
    assert server.stats().ended == {"error": 1}


def test_an_exception_in_a_handler_costs_no_thread(serve, caplog):
    class Fails(Ident):
        def message_received(self, message):
            if message == b"fail":
                raise ZeroDivisionError("on purpose")
            super().message_received(message)

    server = serve(Fails)
    ident = ask_once(server)
    with socket.create_connection(server.server_address, DEADLINE) as sock:
        sock.sendall(b"fail\n")
        assert read_all(sock) == b""
    rests(server)
    assert ask_once(server) == ident
    assert "on purpose" in caplog.text


def test_threads_that_are_not_daemons_are_new_each_time_and_do_not_wait(serve):
    met = []

    class Meets(Ident):
        def message_received(self, message):
            met.append(threading.current_thread())
            super().message_received(message)

    server = serve(Meets, daemon_threads=False)
    for number in range(3):
        with socket.create_connection(server.server_address, DEADLINE) as sock:
            ask(sock)
        met[number].join(DEADLINE)
        assert not met[number].is_alive()
    assert len(set(met)) == 3
    assert not any(thread.daemon for thread in met)
    assert not server._echo_session_threads._idle


def test_a_program_does_not_wait_for_the_threads_that_wait_for_another_session():
    script = """if True:
        import echo

        for daemon in (False, True):
            server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, daemon_threads=daemon).start()
            server._echo_session_threads.idle_timeout = 3600.0
            for _ in range(3):
                with echo.connect(server.server_address) as client:
                    assert client.echo(b"hello") == b"hello"
        print("over")
    """
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, timeout=DEADLINE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"over\n", b"")


def test_stop_lets_the_threads_that_wait_end_at_once(serve):
    server = serve(Ident, idle_timeout=3600.0, shutdown_timeout=DEADLINE)
    clients = [socket.create_connection(server.server_address, DEADLINE) for _ in range(5)]
    for client in clients:
        ask(client)
    threads = session_threads()
    assert len(threads) == 5
    for client in clients[:3]:
        client.close()
    eventually(lambda: len(server._echo_session_threads._idle) == 3)
    assert server.stop() is True
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    for client in clients[3:]:
        assert read_all(client) == b""
        client.close()


def test_after_a_stop_or_in_a_child_a_thread_does_not_even_begin_to_wait():
    """``SimpleQueue.get(timeout=0)`` of CPython 3.8 waits for ever if a microsecond passes inside of it."""

    class Tasks:
        def get(self, block=True, timeout=None):
            assert not block
            raise queue.Empty

    for end in (Threads.close, Threads.let_go):
        pool = Threads()
        end(pool)
        assert pool._next((Tasks(), threading.current_thread())) is None


def test_a_thread_whose_session_outlives_the_stop_does_not_wait_afterwards(serve, dial):
    entered, release = threading.Event(), threading.Event()

    class Stuck(echo.MessageRequestHandler):
        def message_received(self, message):
            entered.set()
            release.wait(DEADLINE)

    server = serve(Stuck, idle_timeout=3600.0)
    server._echo_cut_grace = 0.01
    dial(server).sendall(b"\n")
    assert entered.wait(DEADLINE)
    assert server.stop(timeout=0) is False
    (thread,) = session_threads()
    release.set()
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_shutdown_keeps_the_threads_for_the_next_run(serve):
    server = serve(Ident)
    ident = ask_once(server)
    server.shutdown()
    server.start()
    assert ask_once(server) == ident


def test_two_servers_share_no_thread(serve):
    one, other = serve(Ident), serve(Ident)
    with socket.create_connection(one.server_address, DEADLINE) as sock:
        first = ask(sock)
    eventually(lambda: one._echo_session_threads._idle)
    with socket.create_connection(other.server_address, DEADLINE) as sock:
        assert ask(sock) != first


def test_a_waiting_thread_keeps_nothing_of_the_session_before_alive(serve):
    remains = []

    class Kept(Ident):
        def connection_made(self):
            remains.extend([weakref.ref(self), weakref.ref(self.connection), weakref.ref(self.request)])

    server = serve(Kept)
    ask_once(server)
    assert len(session_threads()) == 1
    eventually(lambda: gc.collect() is None or not any(remain() for remain in remains))
    ask_once(server)  # nor does one that was reused
    eventually(lambda: gc.collect() is None or not any(remain() for remain in remains))
    assert len(remains) == 6


def test_a_thread_that_waits_keeps_no_task_of_a_failed_session_alive_either(serve, caplog):
    remains = []

    class Fails(echo.MessageRequestHandler):
        def connection_made(self):
            remains.append(weakref.ref(self))
            raise ZeroDivisionError

    server = serve(Fails)
    with socket.create_connection(server.server_address, DEADLINE) as sock:
        assert read_all(sock) == b""
    rests(server)
    assert len(caplog.records) == 1  # which pytest keeps, and they the traceback
    for handler in logging.getLogger().handlers:
        getattr(handler, "records", []).clear()
    eventually(lambda: gc.collect() is None or not remains[0]())


@pytest.mark.parametrize("method", ["start", "__init__"])
def test_a_thread_that_cannot_start_raises_not_started_and_is_rolled_back(monkeypatch, method):
    rolled_back = []

    def fail(thread, *arguments, **options):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, method, fail)
    pool = Threads()
    with pytest.raises(NotStarted, match="can't start new thread"):
        pool.run((pytest.fail, ("it ran",)), lambda: rolled_back.append(True))
    assert rolled_back == [True]
    assert not pool._idle


STARTS = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"
"""The function of the interpreter that ``threading.Thread.start`` calls."""


@pytest.mark.parametrize("comes_late", [False, True])
def test_a_thread_that_does_not_reach_its_first_line_is_given_up(monkeypatch, capsys, comes_late):
    """Row 65: CPython ends a thread that has no memory for its first line, and reports that nowhere."""
    rolled_back, starts = [], []
    monkeypatch.setattr(threading, STARTS, lambda first_lines, *_, **options: starts.append(first_lines))
    monkeypatch.setattr(beginning, "PATIENCE", 0.01)
    before = threading.enumerate()
    with pytest.raises(NotStarted, match="no memory for its first line"):
        Threads().run((pytest.fail, ("it ran",)), lambda: rolled_back.append(True))
    assert rolled_back == [True]
    if comes_late:
        (first_lines,) = starts
        ended = threading.Event()
        _thread.start_new_thread(lambda: (first_lines(), ended.set()), ())
        assert ended.wait(DEADLINE)
    assert threading.enumerate() == before
    assert capsys.readouterr().err == ""


ENDS_WITHOUT_A_DESCRIPTOR = """\
import os, resource, sys
from echo.beginning import Thread
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
def fill():
    taken = []
    while True:
        try:
            taken.append(os.dup(1))
        except OSError:
            return taken
def end_one():
    thread = Thread(target=int)
    thread.start()
    while sys.platform == "linux" and os.stat("/proc/self/task").st_nlink > 3:
        os.sched_yield()  # join() returns before its end
taken = fill()
try:
    end_one()  # CPython before 3.10 would abort the process
except RuntimeError as exc:
    print(exc)
for descriptor in taken:
    os.close(descriptor)
end_one()
fill()
end_one()
print("alive")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the number of descriptors has no limit here")
def test_the_end_of_a_thread_needs_no_descriptor():
    """Row 79."""
    done = subprocess.run(
        [sys.executable, "-c", ENDS_WITHOUT_A_DESCRIPTOR], cwd=ROOT, timeout=DEADLINE, stdout=subprocess.PIPE, text=True
    )
    *missing, last = done.stdout.splitlines()
    assert (last, done.returncode) == ("alive", 0)
    assert missing in ([], ["can't start new thread: Too many open files"])


def test_another_failure_to_start_is_raised_as_it_is_and_rolled_back(monkeypatch):
    rolled_back = []

    def fail(thread):
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(KeyboardInterrupt):
        Threads().run((pytest.fail, ("it ran",)), lambda: rolled_back.append(True))
    assert rolled_back == [True]


def test_an_interrupt_after_the_start_rolls_nothing_back(monkeypatch):
    real_start = threading.Thread.start

    def interrupted(thread):
        real_start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    ran = threading.Event()
    pool = Threads()
    with pytest.raises(KeyboardInterrupt):
        pool.run((ran.set, ()), lambda: pytest.fail("it was rolled back"))
    assert ran.wait(DEADLINE)
    pool.close()


def test_while_no_thread_can_be_had_those_that_wait_go_on_serving(serve, monkeypatch, caplog):
    server = serve(Ident)
    ident = ask_once(server)

    def fail(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with socket.create_connection(server.server_address, DEADLINE) as one:
        assert ask(one) == ident
        with socket.create_connection(server.server_address, DEADLINE) as other:
            assert read_all(other) == b""
        eventually(lambda: server.stats().accept_errors == 1)
        assert ask(one) == ident
    monkeypatch.undo()
    with socket.create_connection(server.server_address, DEADLINE) as sock:
        assert ask(sock)
    assert "cannot accept connections for now" in caplog.text
    assert server.stats().accept_errors == 1


@pytest.mark.parametrize("sessions", [10, pytest.param(40, marks=pytest.mark.stress)])
def test_short_sessions_on_threads_that_are_always_leaving_lose_no_reply(serve, sessions):
    server = serve(idle_timeout=0.0005)
    replies = []

    def visit(seed):
        choice = random.Random(seed)
        pause = threading.Event()
        for number in range(sessions):
            with socket.create_connection(server.server_address, DEADLINE) as sock:
                sock.sendall(b"%d\n" % number)
                replies.append(read_exactly(sock, len(b"%d\n" % number)) == b"%d\n" % number)
            pause.wait(choice.uniform(0, 0.001))

    visitors = [threading.Thread(target=visit, args=(seed,)) for seed in range(6)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(DEADLINE)
        assert not visitor.is_alive()
    assert replies == [True] * 6 * sessions
    eventually(lambda: not server.connections)
    stats = server.stats()
    assert (stats.accepted, sum(stats.ended.values()), stats.accept_errors) == (6 * sessions, 6 * sessions, 0)


def test_no_task_is_lost_to_a_thread_that_has_no_memory_to_wait_for_it(monkeypatch):
    """Row 65."""
    given, failures = threading.Event(), [MemoryError, MemoryError]

    class Queue(queue.SimpleQueue):
        def get(self, *arguments, **options):
            if failures:
                given.wait(DEADLINE)
                raise failures.pop()
            return super().get(*arguments, **options)

    monkeypatch.setattr(queue, "SimpleQueue", Queue)
    threads = Threads()
    first, second = threading.Event(), threading.Event()
    threads.run((first.set, ()), lambda: None)
    eventually(lambda: threads._idle)
    threads.run((second.set, ()), lambda: None)
    given.set()
    assert second.wait(DEADLINE)
    threads.close()


@pytest.mark.parametrize("place, name", [(echo.server.threads, "_name"), (contextvars, "Context")])
def test_no_task_is_lost_to_a_thread_that_has_no_memory_to_begin_it(monkeypatch, place, name):
    """Row 65: nor any for the pause until it tries again. Its session was left behind."""
    left = [MemoryError, MemoryError]
    real, sleep = getattr(place, name), time.sleep

    def fails(original):
        def replacement(*arguments):
            if left:
                raise left.pop()
            return original(*arguments)

        return replacement

    threads = Threads()
    first, second = threading.Event(), threading.Event()
    threads.run((first.set, ()), lambda: None)
    eventually(lambda: threads._idle)
    monkeypatch.setattr(place, name, fails(real))
    monkeypatch.setattr(echo.server.threads, "time", SimpleNamespace(sleep=fails(sleep), monotonic=time.monotonic))
    threads.run((second.set, ()), lambda: None)
    assert second.wait(DEADLINE)
    assert not left
    threads.close()


def test_after_server_close_no_thread_waits(serve):
    server = serve(Ident)
    with socket.create_connection(server.server_address, DEADLINE) as sock:
        sock.sendall(b"hello\n")
        sock.shutdown(socket.SHUT_WR)
        read_all(sock)
    (waiting,) = eventually(lambda: list(server._echo_session_threads._idle))
    server.server_close()
    assert not waiting[1].is_alive()


def test_a_thread_that_does_not_end_does_not_hold_up_the_stop(monkeypatch):
    """Its end destroys what the handler keeps in a ``threading.local``, which may wait for a database."""
    monkeypatch.setattr(echo.server.threads, "MOMENT", 0.01)
    release, keeps = threading.Event(), threading.local()

    class Slow:
        def __del__(self):
            release.wait(DEADLINE)

    def keep():
        keeps.value = Slow()

    pool = Threads()
    pool.run((keep, ()), lambda: None)
    (waiting,) = eventually(lambda: list(pool._idle))
    ends_in_time(pool.close)
    assert not release.is_set()
    release.set()
    waiting[1].join(DEADLINE)


def test_a_session_is_served_although_its_thread_can_wait_for_no_other(monkeypatch):
    def fail():
        raise MemoryError

    told = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    monkeypatch.setattr(queue, "SimpleQueue", fail)
    done = threading.Event()
    Threads().run((done.set, ()), lambda: None)
    assert done.wait(DEADLINE)
    eventually(lambda: [each.exc_type for each in told] == [MemoryError])


@pytest.mark.skipif(sys.platform != "linux", reason="the library that is loaded for it is one of Linux")
def test_a_thread_that_ends_while_no_descriptor_is_free_does_not_end_the_process():
    """Row 10: CPython 3.8 aborted."""
    script = """if True:
        import os, resource, threading
        from echo.server.threads import Threads
        Threads()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        threading.Thread(target=int).start()
        while os.stat("/proc/self/task").st_nlink > 3:
            pass
        os.write(1, b"alive")
        """
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, timeout=DEADLINE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"alive", b"")


def test_a_task_for_which_there_is_no_memory_is_reported_and_the_thread_waits_on():
    class Full:
        def put(self, task):
            raise MemoryError

    threads = Threads()
    waiting = Full(), threading.current_thread()
    threads._idle.append(waiting)
    told = []
    with pytest.raises(NotStarted, match="no memory"):
        threads.run((told.append, ("done",)), lambda: told.append("otherwise"))
    assert told == ["otherwise"]
    assert list(threads._idle) == [waiting]
