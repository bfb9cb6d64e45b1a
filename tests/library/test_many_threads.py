"""Many threads at the same time: nothing is lost, counted twice or torn.

A build without the GIL is the hardest test; these run on all builds.
"""

import atexit
import collections
import random
import socket
import threading
import time

import pytest

import echo
from support import DEADLINE, eventually, read_all, read_exactly
from support.servers import port_kept


@pytest.fixture(autouse=True)
def no_exception_in_any_thread(monkeypatch):
    """An exception that leaves any thread fails the test."""
    left = []
    monkeypatch.setattr(threading, "excepthook", lambda args: left.append(repr(args.exc_value)))
    yield
    assert left == []


def at_once(*actions):
    """Run each in its own thread, started together; all must end, and none may raise."""
    barrier = threading.Barrier(len(actions))
    failures = []

    def act(action):
        barrier.wait(DEADLINE)
        try:
            action()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=act, args=(action,), daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive(), failures or "it hangs"
    if failures:
        raise failures[0]


def at_once_while(others, *actions):
    """As ``at_once``, while other threads repeat ``others``, each at least once, until all actions have ended."""
    over = threading.Event()
    lock = threading.Lock()
    left = [len(actions)]

    def once(action):
        try:
            action()
        finally:
            with lock:
                left[0] -= 1
                if not left[0]:
                    over.set()

    def again(action):
        action()
        while not over.wait(0.001):
            action()

    at_once(
        *(lambda action=action: once(action) for action in actions),
        *(lambda action=action: again(action) for action in others),
    )


class Picky(echo.Server):
    """Refuses every fifth client."""

    clients = 0

    def verify_request(self, request, client_address):
        self.clients += 1
        return self.clients % 5 != 0


@pytest.mark.parametrize(
    "seed, visits", [(0, 10), *(pytest.param(seed, 50, marks=pytest.mark.stress) for seed in range(3))]
)
def test_everything_at_once_and_the_statistics_add_up_exactly(serve, seed, visits):
    """Clients come and go, on threads that end at once, while other threads stop and start the loop and read all
    statistics."""
    server = serve(cls=Picky, shutdown_timeout=DEADLINE)
    server._echo_session_threads.idle_timeout = 0.001
    lock = threading.Lock()
    sums = collections.Counter()

    def visit(number):
        choice = random.Random(100 * seed + number)
        mine = collections.Counter()
        for _ in range(visits):
            with socket.create_connection(server.server_address, DEADLINE) as sock:
                lines = [b"x" * choice.randrange(300) for _ in range(choice.randrange(1, 20))]
                data = b"".join(line + b"\n" for line in lines)
                try:
                    sock.sendall(data)
                    reply = read_exactly(sock, len(data))
                except OSError:  # refused before it had sent all
                    reply = b""
                mine["accepted"] += 1
                if not reply:
                    mine["refused"] += 1
                    continue
                assert reply == data
                mine["messages"] += len(lines)
                mine["bytes"] += len(data)
                if choice.random() < 0.5:
                    sock.sendall(b"exit\n")
                    assert read_all(sock) == b""
                    mine["exit"] += 1
                    mine["messages_in"] += 1
                    mine["bytes_in"] += 5
        with lock:
            sums.update(mine)

    latest = [server.stats()]

    def watch():
        before, now = latest[0], server.stats()
        for name in ("accepted", "messages_in", "messages_out", "bytes_in", "bytes_out"):
            assert getattr(now, name) >= getattr(before, name)
        assert now.accepted >= now.active + sum(now.ended.values()) + sum(now.refused.values())
        latest[0] = now

    def look():
        for info in server.connections:
            assert info.peer.startswith("127.0.0.1:")

    def stir():
        server.shutdown()
        server.start()

    at_once_while((watch, look, look, stir), *(lambda number=number: visit(number) for number in range(6)))
    eventually(lambda: not server.connections)
    stats = server.stats()
    assert stats.accepted == sums["accepted"] == 6 * visits
    assert stats.refused == {"denied": sums["refused"]} == {"denied": 6 * visits // 5}
    assert stats.ended == {"eof": stats.accepted - sums["refused"] - sums["exit"], "exit": sums["exit"]}
    assert (stats.active, stats.accept_errors) == (0, 0)
    assert stats.messages_out == sums["messages"]
    assert stats.messages_in == sums["messages"] + sums["messages_in"]
    assert stats.bytes_out == sums["bytes"]
    assert stats.bytes_in == sums["bytes"] + sums["bytes_in"]
    assert server.stop() is True


@pytest.mark.parametrize("seed", range(4))
def test_a_stop_from_several_threads_under_load_accounts_for_every_client(seed):
    for turn in range(4):
        options = {"allow_reuse_port": True, "shutdown_timeout": DEADLINE}
        server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, **options).start()
        some = threading.Event()
        results = []

        def visit(number, turn=turn, server=server, some=some, results=results):
            choice = random.Random(1000 * seed + 10 * turn + number)
            while True:
                data = b"".join(b"%d\n" % choice.randrange(10**9) for _ in range(choice.randrange(1, 50)))
                try:
                    with socket.create_connection(server.server_address, DEADLINE) as sock:
                        sock.sendall(data)
                        sock.shutdown(socket.SHUT_WR)
                        results.append((data, read_all(sock)))
                        some.set()
                except OSError:
                    break  # the server is gone

        def stop(server=server, some=some):
            assert some.wait(DEADLINE)
            assert server.stop() is True
            stats = server.stats()
            assert stats.active == 0
            assert stats.accepted == sum(stats.ended.values())

        with port_kept(server):
            at_once(*(lambda number=number: visit(number) for number in range(4)), stop, stop, stop)
        for sent, got in results:
            assert sent.startswith(got) and (got.endswith(b"\n") or not got)  # whole messages, from the first on
        assert not server.connections


@pytest.mark.parametrize("each", [25, pytest.param(120, marks=pytest.mark.stress)])
def test_messages_from_many_threads_to_one_session_arrive_whole(serve, dial, each):
    """As in a chat: each session sends to all, from its own thread, and other threads of the program do too."""
    lock = threading.Lock()
    members = set()

    class Chat(echo.MessageRequestHandler):
        def connection_made(self):
            with lock:
                members.add(self)

        def message_received(self, message):
            say(message)

        def connection_lost(self, reason):
            with lock:
                members.discard(self)

    def say(message):
        with lock:
            everyone = list(members)
        for member in everyone:
            try:
                member.send(message)
            except echo.ConnectionClosed:
                pass

    def line(name, number):
        return b"%d %d " % (name, number) + b"%d" % name * random.Random(number).randrange(400)

    talkers, others = 4, 4
    server = serve(Chat)
    listeners = [dial(server) for _ in range(2)]
    eventually(lambda: len(members) == 2)
    heard = {}

    def listen(number):
        data = b""
        while data.count(b"\n") < each * (talkers + others):
            more = listeners[number].recv(65536)
            assert more
            data += more
        heard[number] = data.split(b"\n")[:-1]

    def talk(name):
        with socket.create_connection(server.server_address, DEADLINE) as sock:
            drained = threading.Thread(target=read_all, args=(sock,))
            drained.start()
            sock.sendall(b"".join(line(name, number) + b"\n" for number in range(each)))
            sock.shutdown(socket.SHUT_WR)
            drained.join(DEADLINE)

    def shout(name):
        for number in range(each):
            say(line(name, number))

    at_once(
        *(lambda number=number: listen(number) for number in range(2)),
        *(lambda name=name: talk(name) for name in range(talkers)),
        *(lambda name=name: shout(name) for name in range(talkers, talkers + others)),
    )
    for lines in heard.values():
        by_name = collections.defaultdict(list)
        for text in lines:
            by_name[int(text.split()[0])].append(text)
        assert by_name == {name: [line(name, number) for number in range(each)] for name in range(talkers + others)}


@pytest.mark.parametrize("visits", [10, pytest.param(40, marks=pytest.mark.stress)])
def test_the_limit_of_sessions_holds_whatever_comes(serve, visits):
    """One thread checks it while many others come to their end."""

    class Counted(echo.Server):
        most = 0

        def process_request(self, request, client_address):
            super().process_request(request, client_address)
            self.most = max(self.most, len(self.connections))

    server = serve(cls=Counted, max_connections=3)

    def visit():
        for _ in range(visits):
            with socket.create_connection(server.server_address, DEADLINE) as sock:
                sock.sendall(b"a\nexit\n")
                assert read_all(sock) == b"a\n"

    at_once(*[visit] * 8)
    eventually(lambda: not server.connections)
    assert server.most <= 3
    assert server.stats().ended == {"exit": 8 * visits}


@pytest.mark.parametrize("visits", [10, pytest.param(40, marks=pytest.mark.stress)])
def test_each_hosts_share_is_given_back_exactly(serve, visits):
    server = serve(max_connections_per_host=4)
    outcomes = collections.Counter()
    lock = threading.Lock()

    def visit():
        for _ in range(visits):
            with socket.create_connection(server.server_address, DEADLINE) as sock:
                try:
                    sock.sendall(b"a\n")
                    reply = read_exactly(sock, 2)
                except OSError:
                    reply = b""
            with lock:
                outcomes[reply] += 1

    at_once(*[visit] * 8)
    assert set(outcomes) <= {b"a\n", b""}
    eventually(lambda: not server.connections)
    stats = server.stats()
    assert stats.accepted == 8 * visits == sum(outcomes.values())
    assert stats.ended.get("error") is None
    assert sum(stats.ended.values()) + stats.refused.get("limit", 0) == 8 * visits
    assert not server._echo_registry._hosts


def test_sessions_that_are_closed_and_aborted_from_other_threads_end_once(serve):
    """While they send, and while a third thread sends to them."""
    ends = collections.Counter()
    lock = threading.Lock()
    handlers = []

    class Open(echo.EchoRequestHandler):
        def connection_made(self):
            with lock:
                handlers.append(self)

        def connection_lost(self, reason):
            with lock:
                ends[self.session] += 1

    server = serve(Open)

    def visit(seed):
        choice = random.Random(seed)
        for _ in range(20):
            try:
                with socket.create_connection(server.server_address, DEADLINE) as sock:
                    for _ in range(choice.randrange(10)):
                        sock.sendall(b"hello\n" * choice.randrange(1, 100))
                    sock.shutdown(socket.SHUT_WR)
                    read_all(sock)
            except OSError:
                pass  # aborted

    def meddle(verb):
        with lock:
            handler = handlers[-1] if handlers else None
        if handler is not None:
            try:
                getattr(handler, verb)(*[b"meddled"] * (verb == "send"))
            except echo.ConnectionClosed:
                pass

    meddlers = [lambda verb=verb: meddle(verb) for verb in ("close", "abort", "send", "send")]
    at_once_while(meddlers, *(lambda seed=seed: visit(seed) for seed in range(4)))
    eventually(lambda: not server.connections)
    stats = server.stats()
    assert stats.accepted == sum(stats.ended.values()) == 80
    assert set(stats.ended) <= {"eof", "exit", "reset"}
    assert sorted(ends) == list(range(1, 81)) and set(ends.values()) == {1}


def test_servers_made_and_stopped_at_the_same_time_do_not_disturb_each_other():
    def live(seed):
        choice = random.Random(seed)
        for _ in range(8):
            with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, shutdown_timeout=DEADLINE) as server:
                server.start()
                for _ in range(choice.randrange(4)):
                    with echo.connect(server.server_address, timeout=DEADLINE) as client:
                        assert client.echo(b"hello") == b"hello"
                if choice.random() < 0.5:
                    server.stop()
            assert server.stats().active == 0

    at_once(*(lambda seed=seed: live(seed) for seed in range(6)))


def test_one_thread_at_a_time_uses_atexit(monkeypatch):
    """Without the GIL, CPython 3.13 crashes if two do (gh-126907)."""
    inside, together = [], []

    def slowly(function):
        def call(*arguments):
            inside.append(arguments)
            together.append(len(inside))
            time.sleep(0.01)
            inside.pop()
            return function(*arguments)

        return call

    monkeypatch.setattr(atexit, "register", slowly(atexit.register))
    monkeypatch.setattr(atexit, "unregister", slowly(atexit.unregister))

    def live():
        with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, shutdown_timeout=DEADLINE) as server:
            server.start()

    at_once(*[live] * 6)
    assert len(together) >= 12 and set(together) == {1}
