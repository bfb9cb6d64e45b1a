"""Limits: sessions at a time, sessions of one host, networks that may connect."""

import concurrent.futures
import functools
import socket
import socketserver
import sys
import threading
import types
from typing import Protocol

import pytest

import echo
from echo.server import session_server
from support import DEADLINE, eventually, read_all, read_exactly
from support.servers import echoes


def test_at_the_limit_further_clients_wait_in_the_backlog_and_are_served_when_one_leaves(serve, dial):
    """Row 15."""
    server = serve(max_connections=2)
    first, second = dial(server), dial(server)
    assert echoes(first) and echoes(second)
    waiting = dial(server)
    waiting.sendall(b"hello\n")
    waiting.settimeout(0.05)
    with pytest.raises(socket.timeout):
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
        client.close()
    server.stop()
    for thread in threads:
        thread.join(DEADLINE)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_slot_comes_back_although_a_subclass_exits_at_the_end_of_its_session(serve, dial):
    """Row 15."""

    class Exits(echo.Server):
        def shutdown_request(self, request):
            threads.append(threading.current_thread())
            sys.exit()

    threads = []
    server = serve(cls=Exits, max_connections=1)
    for _ in range(2):
        client = dial(server)
        client.sendall(b"exit\n")
        assert read_all(client) == b""
    for thread in threads:  # the next test would get what pytest reports of their ends
        thread.join(DEADLINE)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_slot_comes_back_although_a_subclass_raises_at_the_beginning_of_its_session(serve, dial):
    """Row 15."""

    class Raises(echo.Server):
        def process_request_thread(self, request, client_address):
            threads.append(threading.current_thread())
            raise ValueError("not today")

    threads = []
    server = serve(cls=Raises, max_connections=1)
    for _ in range(2):
        assert read_all(dial(server)) == b""
    for thread in threads:
        thread.join(DEADLINE)
    assert server.stats().ended == {"error": 2}


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


def test_the_slot_of_a_host_comes_back_if_a_thread_of_a_subclass_closes_the_socket(serve, dial):
    """Row 15: the server did not see it, and refused this host until somebody asked for the statistics."""

    class OwnThreads(echo.Server):
        def process_request(self, request, client_address):
            threading.Thread(target=self.work, args=(request,)).start()

        def work(self, request):
            with request:
                while request.sendall(b"hello\n") is None and request.recv(100):
                    pass
            closed.set()

    closed = threading.Event()
    server = serve(cls=OwnThreads, max_connections_per_host=1)
    for _ in range(2):
        client = dial(server)
        assert read_exactly(client, 6) == b"hello\n"
        assert read_all(dial(server)) == b""
        closed.clear()
        client.close()
        assert closed.wait(DEADLINE)


def test_the_slot_of_a_host_comes_back_if_a_thread_of_a_subclass_closes_an_object_around_the_socket(serve, dial):
    """Row 15: it never did, and a stop waited for the session."""

    class Object:
        def __init__(self, sock):
            self.recv, self.sendall, self.fileno, self.close = sock.recv, sock.sendall, sock.fileno, sock.close

    class Greets(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(b"hello\n")
            self.request.recv(100)

    class OwnThreads(echo.Server):
        def process_request(self, request, client_address):
            threading.Thread(target=self.work, args=(Object(request), client_address)).start()

        def work(self, wrapped, client_address):
            self.finish_request(wrapped, client_address)
            wrapped.close()
            closed.set()

    closed = threading.Event()
    server = serve(Greets, cls=OwnThreads, max_connections_per_host=1)
    for _ in range(2):
        client = dial(server)
        assert read_exactly(client, 6) == b"hello\n"
        closed.clear()
        client.close()
        assert closed.wait(DEADLINE)


@pytest.mark.skipif(not hasattr(socketserver, "ForkingMixIn"), reason="no fork here")
def test_a_limit_for_each_host_is_refused_where_forked_children_serve():
    """Row 59: it had no effect."""
    cls = type("Forking", (socketserver.ForkingMixIn, echo.Server), {})
    with pytest.raises(ValueError, match="max_connections_per_host counts threads"):
        cls(("127.0.0.1", 0), echo.EchoRequestHandler, max_connections_per_host=1)


@pytest.mark.parametrize("step", ["process_request", "process_request_thread"])
def test_the_share_of_a_host_holds_for_clients_that_a_program_accepts_in_a_loop_of_its_own(dial, step):
    """Row 15."""
    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, max_connections_per_host=1) as server:
        clients = [dial(server), dial(server)]
        accepted = [server.get_request(), server.get_request()]
        server.process_request(*accepted[0])
        with pytest.raises(ConnectionError, match="limit"):
            getattr(server, step)(*accepted[1])
        assert echoes(clients[0])
        assert read_all(clients[1]) == b""
        assert server.stats().refused == {"limit": 1}


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


def test_a_client_that_is_refused_at_the_door_and_stays_holds_up_no_other(serve, dial, monkeypatch):
    lingered = []
    monkeypatch.setattr(session_server, "linger", lambda *args, **options: lingered.append(args))
    server = serve(deny=["127.0.0.1"])
    assert read_all(dial(server)) == b""
    assert not lingered  # in the thread that accepts


@pytest.mark.parametrize("name", ["verify_request", "server_close"])
@pytest.mark.parametrize("body", ["async def {}(self, *args): 0", "def {}(self, *args): yield"])
def test_a_method_of_a_servers_class_that_does_not_run_when_it_is_called_is_an_error(name, body):
    """Row 61: what such a ``verify_request`` returns is true, so it let everybody in."""
    scope = {"echo": echo}
    exec(f"class Mixin:\n    {body.format(name)}", scope)
    exec(
        "class Asks:\n    def verify_request(self, *args): return any(super().verify_request(*args) for _ in 'a')",
        scope,
    )
    exec("class Decides:\n    def verify_request(self, *args): return False", scope)
    chains = ["Asks, Mixin, echo.Server", "echo.Server, Mixin"] if name == "verify_request" else []
    for bases in ["Mixin, echo.Server", *chains]:
        with pytest.raises(
            TypeError, match=rf"(S|Mixin)\.{name} is (async|a generator), and calling it would do nothing"
        ):
            exec(f"class S({bases}): pass", scope)
    if chains:  # the mixin's own method is not called
        exec("class S(Decides, Mixin, echo.Server): pass", scope)


@pytest.mark.parametrize("name", ["process_request", "process_request_thread"])
def test_a_process_request_that_the_server_would_not_call_is_an_error(name):
    """Row 61: it may refuse clients."""
    scope = {"echo": echo, "functools": functools, "socketserver": socketserver}
    classes = """
class Old(socketserver.ThreadingTCPServer):
    def NAME(self, *accepted): self.shutdown_request(accepted[0])
class Older(Old): pass
class Asks:
    def NAME(self, *accepted): super().NAME(*accepted)
class Decides:
    def NAME(self, *accepted): self.shutdown_request(accepted[0])
class ByName(echo.Server):
    def NAME(self, *accepted): Old.NAME(self, *accepted)
class Decorated(echo.Server):
    NAME = functools.wraps(Old.NAME)(lambda self, *accepted: Old.NAME(self, *accepted))
class Same(Asks, echo.Server):
    NAME = Old.NAME
class Skips(echo.Server):
    def NAME(self, *accepted): super(Between, self).NAME(*accepted)
class Between: pass
"""
    exec(classes.replace("NAME", name), scope)
    for bases in [
        "echo.Server, Old",
        "echo.Server, Older",
        "Asks, echo.Server, Old",
        "type('Own', (echo.Server,), {}), Old",
    ]:
        with pytest.raises(
            TypeError, match=rf"^S: Old\.{name}\(\) would never be called, .* list Old before echo\.Server$"
        ):
            exec(f"class S({bases}): pass", scope)
    for bases in [
        "Old, echo.Server",
        "Decides, echo.Server, Old",
        "ByName, Old",
        "Decorated, Old",
        "Same, Old",
        "Skips, Between, Old",
        "echo.Server, socketserver.ForkingMixIn",
    ]:
        exec(f"class S({bases}): pass", scope)


def test_a_verify_request_that_is_listed_after_the_server_is_asked(serve, dial):
    """Row 61: the server's own came first, and let everybody in."""

    class Filter:
        def verify_request(self, request, client_address):
            return False

    class Declares(Protocol):
        def verify_request(self, request, client_address): ...

    class PassesOn(echo.Server):
        def verify_request(self, request, client_address):
            return super().verify_request(request, client_address)

    class ByName(echo.Server, Filter):
        def verify_request(self, request, client_address):
            return echo.Server.verify_request(self, request, client_address)

    class Behind(echo.Server, Declares, type("Derived", (Filter,), {})):
        pass

    class Denies(socketserver.TCPServer):
        def verify_request(self, request, client_address):
            return False

    class Allows:
        def verify_request(self, request, client_address):
            return True

    two = [(PassesOn, Filter, Allows), (PassesOn, Denies, Allows), (PassesOn, Behind), (Filter, PassesOn)]
    for bases in [(Behind,), (ByName,), (PassesOn, Filter), *two]:
        server = serve(cls=types.new_class("S", bases))
        assert read_all(dial(server)) == b""
        eventually(lambda server=server: server.stats().refused == {"denied": 1})
    for bases, body in (((echo.Server, Declares), {}), ((Behind,), {"verify_request": lambda *args: True})):
        assert echoes(dial(serve(cls=types.new_class("S", bases, exec_body=lambda own, body=body: own.update(body)))))


async def answers_later():
    return True


async def answers_in_parts():
    yield True


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize(
    "answer",
    [answers_later, answers_in_parts, lambda: iter([True]), concurrent.futures.Future, threading.Event],
    ids=["coroutine", "async generator", "iterator", "future", "what is waited for"],
)
def test_a_verify_request_that_is_async_under_a_decorator_lets_nobody_in(serve, dial, answer):
    """Row 61."""
    server = serve(cls=type("S", (echo.Server,), {"verify_request": lambda *args: answer()}))
    assert read_all(dial(server)) == b""
    eventually(lambda: server.stats().refused == {"denied": 1})


def test_networks_cannot_be_replaced_before_the_constructor_which_would_set_them_anew():
    """Row 61: they had no effect and no error."""

    class Early(echo.Server):
        def __init__(self, *arguments):
            self.set_access([], ["127.0.0.0/8"])
            super().__init__(*arguments)

    with pytest.raises(RuntimeError, match=r"call set_access\(\) after super\(\).__init__\(\)"):
        Early(("127.0.0.1", 0), echo.EchoRequestHandler)


def test_networks_are_replaced_by_a_call_and_not_within_their_list(serve, dial):
    """Row 61: a change within a list had no effect and no error."""
    server = serve(cls=type("Denying", (echo.Server,), {"deny": ["192.0.2.0/24"]}), allow=["127.0.0.1"])
    assert echoes(dial(server))
    assert (server.allow, server.deny) == (("127.0.0.1",), ("192.0.2.0/24",))
    server.set_access([], ["127.0.0.0/8"])
    assert read_all(dial(server)) == b""
    assert (server.allow, server.deny) == ((), ("127.0.0.0/8",))
