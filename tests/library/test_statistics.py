"""``connections`` and ``stats()``: correct at any moment; and a session leaves nothing behind."""

import contextlib
import errno
import gc
import os
import socket
import sys
import threading
import time
import types
import weakref

import pytest

import echo
from echo.server.registry import MOST_REASONS, Registry
from echo.server.sessions import Session
from echo.server.unix_paths import peer_name
from support import DEADLINE, eventually, read_all
from support.servers import echoes


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


def test_a_connection_has_one_of_the_documented_states_to_the_last(serve, dial):
    class Watched(echo.Server):
        def close_request(self, request):
            states.extend(info.state for info in self.connections)
            super().close_request(request)
            states.extend(info.state for info in self.connections)

    states = []
    client = dial(serve(cls=Watched))
    client.sendall(b"exit\n")
    assert read_all(client) == b""
    client.close()  # else the server would wait for that
    eventually(lambda: states)
    assert set(states) <= {"open", "draining", "closing"}


def test_reasons_that_handlers_make_of_data_are_counted_in_bounded_memory():
    registry = Registry()
    for number in [*range(MOST_REASONS + 3), 0, 7]:
        session = Session(socket.socket(), ("127.0.0.1", number))
        session.request.close()
        registry.add(session)
        session.handler = types.SimpleNamespace(reason=f"reason {number}", connection=session.handler.connection)
        assert registry.end(session)
    ended = registry.statistics().ended
    assert len(ended) == MOST_REASONS + 1
    assert (ended["other"], ended["reason 0"], ended["reason 7"], ended["reason 8"]) == (3, 2, 2, 1)


def test_a_reason_that_is_not_a_string_is_counted_as_one():
    """A list raised in the session's end, and the session was not counted."""
    registry = Registry()
    with socket.socket() as request:
        session = Session(request, ("127.0.0.1", 1))
        registry.add(session)
        session.handler = types.SimpleNamespace(reason=["quota"], connection=session.handler.connection)
        assert registry.end(session)
    assert registry.statistics().ended == {"['quota']": 1}


@pytest.mark.parametrize("threads, sessions, lines", [(4, 5, 10), pytest.param(8, 20, 25, marks=pytest.mark.stress)])
def test_statistics_are_right_under_load(serve, threads, sessions, lines):
    """Row 18: figures and registry, also on a build without the GIL."""
    server = serve()

    def load():
        for _ in range(sessions):
            with echo.connect(server.server_address) as client:
                for _ in range(lines):
                    client.echo(b"x" * 9)
            server.stats()
            server.connections  # noqa: B018

    loads = [threading.Thread(target=load) for _ in range(threads)]
    for thread in loads:
        thread.start()
    for thread in loads:
        thread.join()
    eventually(lambda: not server.connections)
    stats = server.stats()
    assert stats.accepted == threads * sessions == stats.ended["eof"]
    assert stats.messages_in == stats.messages_out == threads * sessions * lines
    assert stats.bytes_in == stats.bytes_out == threads * sessions * lines * 10


def test_finished_sessions_leave_nothing_behind(serve, dial):
    """Row 16."""
    server = serve()
    addresses = set()
    for _ in range(50):
        with socket.create_connection(server.server_address, DEADLINE) as sock:
            addresses.add(sock.getsockname())
            assert echoes(sock)

    def remains():
        gc.collect()
        return [each for each in gc.get_objects() if type(each) is Session and each.client_address in addresses]

    eventually(lambda: not server.connections)
    eventually(lambda: not remains())
    assert not server._echo_registry._hosts


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="counts are merged late without a GIL")
@pytest.mark.parametrize("data", [b"exit\n", b"a\n", b"part", b"x" * 70_000], ids=["exit", "eof", "part", "too-long"])
def test_the_objects_of_a_session_are_freed_without_the_collector(serve, dial, data):
    """Reference cycles through exceptions cost 1.3 KB a session without the GIL, where the collector runs rarely."""

    class Kept(echo.EchoRequestHandler):
        def connection_made(self):
            remains.append(weakref.ref(self.connection))

    remains = []
    server = serve(Kept)
    server._echo_linger_silence = DEADLINE  # a reset would keep a slow client from sending
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


@pytest.mark.parametrize("other", ["file", "socket", "connection", None])
def test_a_descriptor_that_is_used_again_is_not_taken_for_that_of_a_closed_session(other):
    """Row 15. The look at it leaves no descriptor open."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(2)]
        sock, second = (stack.enter_context(listener.accept()[0]) for _ in range(2))
        others = {"file": stack.enter_context(open(os.devnull)), "socket": listener, "connection": second}
        session = Session(sock, clients[0].getsockname())
        sock.close()
        if other is not None:
            os.dup2(others[other].fileno(), session.descriptor)
            stack.callback(os.close, session.descriptor)
        free = lowest_free_descriptor()
        assert session.was_closed() and not session.is_taken_over()
        assert lowest_free_descriptor() == free


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_a_session_on_a_unix_socket_whose_descriptor_a_wrapper_has_taken_over_is_not_over():
    """Row 15. All connections of one process have the same address there: the newest one has the descriptor."""
    ours, theirs = socket.socketpair()
    registry, session = Registry(), Session(ours, peer_name(ours))
    registry.add(session)
    with theirs, socket.socket(fileno=ours.detach()) as wrapper:
        assert session.was_closed() and not registry.reap()
        newer = Session(wrapper, peer_name(wrapper))
        registry.add(newer)
        assert registry.reap()
        assert registry.sessions() == [newer]


def test_without_a_free_descriptor_a_session_is_not_over_and_no_other_client_is_taken_for_its_own(monkeypatch):
    """Rows 15 and 61: nobody could see whether a client that gets the descriptor is the session's own."""

    def lacking(descriptor):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    ours, theirs = socket.socketpair()
    registry, session = Registry(), Session(ours, ("192.0.2.1", 1))
    registry.add(session)
    monkeypatch.setattr(os, "dup", lacking)
    with theirs, socket.socket(fileno=ours.detach()) as request:
        assert not registry.reap()
        assert registry.find(request, ("192.0.2.2", 2)) is None
        assert registry.find(request, ("192.0.2.1", 1)) is session


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="the system does not list its locks")
def test_a_look_at_a_descriptor_that_is_a_files_by_now_leaves_its_locks(tmp_path):
    """The close of any duplicate would end them, and a database would be open to two writers."""
    fcntl = pytest.importorskip("fcntl")
    ours, theirs = socket.socketpair()
    with theirs, open(tmp_path / "database", "wb") as file:
        session = Session(ours, "unix")
        ours.close()
        os.dup2(file.fileno(), session.descriptor)
        fcntl.lockf(file, fcntl.LOCK_EX)
        try:
            assert session.was_closed() and not session.is_taken_over()
            with open("/proc/locks") as locks:
                assert f":{os.fstat(file.fileno()).st_ino} " in locks.read()
        finally:
            os.close(session.descriptor)


def lowest_free_descriptor():
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


def test_the_number_of_sessions_is_published_whenever_it_has_changed():
    registry = Registry()
    published = []
    registry.publish = published.append
    with socket.socket() as first, socket.socket() as second, socket.socket() as unknown:
        sessions = [Session(sock, ("192.0.2.1", 1)) for sock in (first, second, unknown)]
        registry.add(sessions[0])
        registry.add(sessions[1])
        registry.end(sessions[0])
        registry.forget(sessions[1])
        registry.end(sessions[2])
    assert published == [1, 2, 1, 0]
    assert registry.statistics().ended == {"exit": 1}
