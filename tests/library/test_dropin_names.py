"""A subclass's own names, methods called by name, threads, and the order of calls, as in programs for ``socketserver``.
Most tests run with the standard library's class, too, since that defines what is right."""

import contextlib
import functools
import http.server
import os
import queue
import socket
import socketserver
import ssl
import threading
import types
import urllib.request
import warnings
from typing import Generic, TypeVar

import pytest

import echo
from echo.server.options import FIXED
from echo.sockets import is_readable
from support import DEADLINE, eventually, read_all, read_exactly
from support.servers import Passing, ends_in_time

BOTH = (socketserver.ThreadingTCPServer, echo.Server)
on_both = pytest.mark.parametrize("base", BOTH, ids=["stock", "echo"])

ADDRESS = ("127.0.0.1", 0)


class Lines(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


def is_answered(sock):
    sock.sendall(b"are you there\n")
    return read_exactly(sock, 14) == b"ARE YOU THERE\n"


def serve_and_check(server, dial):
    """Serve, check that a client is answered, and stop, with the calls of the standard library."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    with dial(server) as client:
        assert is_answered(client)
    server.shutdown()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    server.server_close()


# Names.

OWN = "ssl_context connections _closed _run _lock balance stats start stop attach set_access _registry _thread _serving"
OWN += " _accept _wait _serve _past _session max_connections max_connections_per_host allow deny handshake_timeout"
OWN += " proxy_protocol proxy_allow_from dual_stack unix_mode cpu_affinity shutdown_timeout options reuse_threads"


@on_both
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_object_may_have_attributes_of_its_own_by_any_name(base, dial, when):
    class Own(base):
        daemon_threads = True

        def __init__(self, *arguments):
            if when == "after":
                super().__init__(*arguments)
            for name in OWN.split():
                setattr(self, name, name.upper())
            if when == "before":
                super().__init__(*arguments)

    server = Own(ADDRESS, Lines)
    serve_and_check(server, dial)
    assert all(getattr(server, name) == name.upper() for name in OWN.split())


@on_both
def test_a_class_may_have_methods_of_its_own_by_any_name(base, dial):
    def own(self, *arguments):
        raise AssertionError("a method of the subclass's own was called")

    methods = {name: own for name in OWN.split()}
    serve_and_check(type("Own", (base,), {"daemon_threads": True, **methods})(ADDRESS, Lines), dial)


@on_both
def test_a_mixin_may_have_class_attributes_of_its_own_by_any_name(base, dial):
    class Mixin:
        max_connections = 0
        allow = deny = ["nobody"]
        ssl_context = connections = _lock = "mine"
        proxy_protocol = handshake_timeout = -1

    class Own(Mixin, base):
        daemon_threads = True

    serve_and_check(Own(ADDRESS, Lines), dial)


VALUES = {
    "allow": ["192.0.2.0/24"],
    "deny": ("127.0.0.1",),
    "ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
    "proxy_protocol": True,
    "proxy_allow_from": "192.0.2.1",
    "unix_mode": 0o600,
    "max_connections_per_host": 1,
    "dual_stack": False,
}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("name", VALUES)
def test_a_mixin_with_an_option_that_nobody_uses_is_warned_of(name, behind):
    """Row 61: it was ignored silently, and everybody got in."""
    bases = type("Mixin", (), {name: VALUES[name]}), echo.Server
    own = type("Own", bases[::-1] if behind else bases, {})
    words = f"Mixin.{name} is not an option, since Mixin is not a subclass of echo.Server; to make it one, set it in"
    with pytest.warns(RuntimeWarning, match=words) as warned:
        own(ADDRESS, Lines).server_close()
    assert [each.filename for each in warned] == [__file__]


@pytest.mark.parametrize("name", VALUES)
def test_a_handler_with_an_option_of_the_server_that_nobody_uses_is_warned_of(name):
    """Row 61: it was ignored silently, and everybody got in."""
    base = type("Base", (Lines,), {name: VALUES[name]})
    handler = type("Handler", (base,), {})
    words = f"Base.{name} sets no option: {name} is one of the server, not of its handlers"
    with pytest.warns(RuntimeWarning, match=words) as warned:
        echo.Server(ADDRESS, handler).server_close()
    assert [each.filename for each in warned] == [__file__]


def test_a_handler_with_an_option_is_warned_of_where_the_server_calls_the_standard_constructor():
    class Own(echo.Server):
        def __init__(self, *arguments):
            socketserver.TCPServer.__init__(self, *arguments)

    with pytest.warns(RuntimeWarning, match="Handler.deny sets no option") as warned:
        Own(ADDRESS, type("Handler", (Lines,), {"deny": ["192.0.2.1"]})).server_close()
    assert [each.filename for each in warned] == [__file__]


def test_a_handler_with_a_verify_request_that_nobody_calls_is_warned_of(dial):
    """Row 61: it refused nobody, without a word."""

    class Handler(Lines):
        def verify_request(self, request, client_address):
            return False

    class Asks(echo.Server):
        def verify_request(self, request, client_address):
            return not self.RequestHandlerClass.verify_request(None, request, client_address)

    with pytest.warns(
        RuntimeWarning, match="Handler.verify_request refuses nobody: verify_request is a method of the server"
    ) as warned:
        echo.Server(ADDRESS, Handler).server_close()
    assert [each.filename for each in warned] == [__file__]
    serve_and_check(Asks(ADDRESS, Handler), dial)
    both = type("Both", (), {"verify_request": lambda self, request, client_address: True})
    serve_and_check(type("Own", (both, echo.Server), {})(ADDRESS, type("Handler", (both, Lines), {})), dial)
    serve_and_check(echo.Server(ADDRESS, type("Handler", (Lines,), {"verify_request": None})), dial)


def test_an_attribute_of_a_handler_by_the_name_of_an_option_is_no_fault_if_it_is_used_or_cannot_be_meant(dial):
    class Uses(Lines):
        deny = ("192.0.2.1",)
        allow = ("GET", "HEAD")
        dual_stack = None

        def setup(self):
            super().setup()
            assert self.deny

    class Asks(echo.Server):
        def verify_request(self, request, client_address):
            return client_address[0] not in self.RequestHandlerClass.deny

    denies = type("Handler", (Lines,), {"deny": ["192.0.2.1"]})
    serve_and_check(echo.Server(ADDRESS, Uses), dial)
    serve_and_check(Asks(ADDRESS, denies), dial)
    serve_and_check(echo.Server(ADDRESS, denies, deny=["192.0.2.2"]), dial)


def test_an_object_of_another_type_in_a_mixin_is_not_asked_for_its_text():
    class Unready:
        def __repr__(self):
            raise LookupError("settings are not configured yet")

    own = type("Own", (type("Mixin", (), dict.fromkeys(VALUES, Unready())), echo.Server), {})
    own(ADDRESS, Lines).server_close()


def test_an_object_in_a_mixin_that_loads_its_content_late_does_not_load_it():
    """As ``LazySettings`` of Django, and ``LocalProxy`` of Werkzeug."""

    class Late:
        @property
        def __class__(self):
            raise ValueError("settings are not configured yet")

    own = type("Own", (type("Mixin", (), dict.fromkeys(VALUES, Late())), echo.Server), {})
    own(ADDRESS, Lines).server_close()


def test_a_generator_in_a_mixin_is_not_used_up():
    class Mixin:
        allow = (each for each in ["192.0.2.1"])

    type("Own", (Mixin, echo.Server), {})(ADDRESS, Lines).server_close()
    assert list(Mixin.allow) == ["192.0.2.1"]


@on_both
def test_an_attribute_of_a_mixin_that_the_program_uses_itself_may_have_the_name_of_an_option(base, dial):
    class Mixin:
        deny = ["192.0.2.1"]
        allow = ["192.0.2.2"]
        max_connections = 5
        proxy_allow_from = ["192.0.2.3"]
        unix_mode = 0o600

        def verify_request(self, request, client_address):
            return client_address[0] not in self.deny or client_address[0] in self.allowed

        @functools.lru_cache(maxsize=None)  # noqa: B019
        def find(self):
            return self.proxy_allow_from

        @property
        def allowed(self):
            return getattr(self, "allow")  # noqa: B009

        @allowed.setter
        def allowed(self, value):
            self.unix_mode = value

    class Own(Mixin, base):
        daemon_threads = True

        def server_activate(self):
            def backlog():
                return self.max_connections

            self.request_queue_size = backlog()
            super().server_activate()

    serve_and_check(Own(ADDRESS, Lines), dial)


def wrapped(method):
    @functools.wraps(method)
    def wrapper(*arguments):
        return method(*arguments)

    return wrapper


def wrapped_in_silence(method):
    return lambda *arguments: method(*arguments)


@pytest.mark.parametrize(
    "decorate",
    [
        lambda method: wrapped(wrapped(method)),
        wrapped_in_silence,
        lambda method: wrapped(contextlib.contextmanager(method)),
        lambda method: property(wrapped(method)),
        lambda method: property(None, method),
        lambda method: property(None, None, method),
        lambda method: classmethod(functools.lru_cache(maxsize=None)(method)),
        lambda method: staticmethod(wrapped(method)),
        lambda method: functools.lru_cache(maxsize=None)(wrapped(method)),
        lambda method: functools.partialmethod(wrapped(method)),
        lambda method: functools.partial(method, None),
        lambda method: [method],
        lambda method: {"rule": method},
        lambda method: [("GET", method)],
        lambda method: {wrapped(method)},
    ],
)
def test_what_a_decorated_method_uses_is_not_warned_of(decorate):
    def uses(self):
        return self.deny

    mixin = type("Mixin", (), {"deny": ["192.0.2.1"], "method": decorate(uses)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        type("Own", (mixin, echo.Server), {})(ADDRESS, Lines).server_close()


class Refuses:
    """An object of a program, such as a proxy of ``werkzeug`` out of its context."""

    def __getattr__(self, name):
        raise RuntimeError(name)

    __len__ = __str__ = __bool__ = __getattr__


def test_to_look_for_options_in_mixins_runs_no_code_of_the_program():
    body = {"deny": ["192.0.2.1"], "allow": [Refuses()], "first": Refuses(), "Meta": Refuses}
    body["method"] = lambda self: b"word"
    body["table"] = {"GET": body["method"], "POST": [body["method"], len]}
    body["table"]["itself"] = body["table"]
    own = types.new_class("Own", (type("Mixin", (), body), echo.Server, Generic[TypeVar("Some")]))
    with pytest.warns(RuntimeWarning, match="Mixin.deny is not an option"):
        own(ADDRESS, Lines).server_close()


@on_both
def test_a_class_named_server_may_have_private_names_of_its_own(base, dial):
    class Server(base):
        daemon_threads = True

        def __init__(self, *arguments):
            self.__lock = self.__registry = self.__serving = self.__thread = None
            super().__init__(*arguments)

    serve_and_check(Server(ADDRESS, Lines), dial)


def test_an_option_in_the_body_of_a_subclass_counts_and_one_given_counts_more():
    class Ten(echo.Server):
        max_connections = 10

    class Five(Ten):
        def __init__(self, *arguments, **options):
            self.max_connections = 7  # the program's own
            super().__init__(*arguments, **options)

    with Ten(ADDRESS, Lines) as server:
        assert server._echo_options.max_connections == 10
    with Ten(ADDRESS, Lines, max_connections=3) as server:
        assert (server._echo_options.max_connections, server.max_connections) == (3, 3)
    with Five(ADDRESS, Lines) as server:
        assert (server._echo_options.max_connections, server.max_connections) == (10, 7)


def test_an_option_that_was_set_cannot_be_assigned_without_effect():
    """Row 61: the assigned list of networks, and others, had no effect and no error."""

    class Denying(echo.Server):
        deny = ["192.0.2.0/24"]

    with echo.Server(ADDRESS, Lines) as plain, Denying(ADDRESS, Lines, proxy_protocol=True) as server:
        for each, name in [*((plain, name) for name in FIXED), (server, "deny"), (server, "proxy_protocol")]:
            before = getattr(each, name)
            with pytest.raises(AttributeError, match=rf"^{name} cannot be assigned once the server is made; "):
                setattr(each, name, "something else")
            assert getattr(each, name) is before
            setattr(each, name, before)
        with pytest.raises(AttributeError, match=r"call set_access\(allow, deny, proxy_allow_from\)"):
            plain.allow = []
        server.max_connections = "the program's own"
        server.ssl_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        plain.request_queue_size = plain.timeout = 5


@on_both
@pytest.mark.parametrize("init", ["thread first", "server first"])
def test_a_server_may_be_a_thread(base, dial, init):
    class Service(base, threading.Thread):
        daemon_threads = True

        def __init__(self):
            if init == "thread first":
                threading.Thread.__init__(self, daemon=True)
            base.__init__(self, ADDRESS, Lines)
            if init == "server first":
                threading.Thread.__init__(self, daemon=True)

        def run(self):
            self.serve_forever(0.01)

    service = Service()
    service.start()
    with dial(service) as client:
        assert is_answered(client)
    service.shutdown()
    service.join(DEADLINE)
    assert not service.is_alive()
    service.server_close()


# Calls by name.


@on_both
def test_the_constructors_of_the_standard_library_may_be_called_by_name(base, dial):
    for call in (socketserver.TCPServer.__init__, lambda self, *rest: by_hand(self, *rest)):

        class Own(base):
            daemon_threads = True

            def __init__(self, *arguments, call=call):
                call(self, *arguments)

        serve_and_check(Own(ADDRESS, Lines), dial)


def by_hand(self, address, handler_class):
    socketserver.BaseServer.__init__(self, address, handler_class)
    self.socket = socket.socket(self.address_family, self.socket_type)
    self.server_bind()
    self.server_activate()


@on_both
def test_the_loop_of_the_standard_library_may_be_called_by_name(base, dial):
    class Own(base):
        daemon_threads = True

        def serve_forever(self, poll_interval=0.01):
            socketserver.BaseServer.serve_forever(self, poll_interval)

    serve_and_check(Own(ADDRESS, Lines), dial)


@on_both
def test_one_request_of_the_standard_library_may_be_handled_by_name(base, dial):
    with base(ADDRESS, Lines) as server:
        client = dial(server)
        socketserver.BaseServer.handle_request(server)
        assert is_answered(client)
        client.close()


@pytest.mark.parametrize("step", ["process_request", "process_request_thread", "finish_request"])
def test_networks_hold_for_clients_that_a_program_accepts_in_a_loop_of_its_own(dial, step):
    """Row 61: each method that a program may call with an accepted socket let all clients in."""
    seen = []

    class Seen(socketserver.BaseRequestHandler):
        def handle(self):
            seen.append(self.client_address)

    with echo.Server(ADDRESS, Seen, deny=["127.0.0.1"]) as server:
        for networks in (["127.0.0.1"], []):
            server.set_access([], networks)
            client = dial(server)
            assert is_readable(server.socket, DEADLINE)
            request, address = server.get_request()
            with contextlib.suppress(ConnectionError) if networks else contextlib.nullcontext():
                getattr(server, step)(request, address)
                assert not networks
            if step == "finish_request":
                server.shutdown_request(request)
            assert read_all(client) == b""
            assert seen == ([] if networks else [client.getsockname()])
        assert server.stats().refused == ({} if step == "finish_request" else {"denied": 1})


@pytest.mark.parametrize("address_of", [socket.socket.getsockname, lambda client: None])
@pytest.mark.parametrize("step", ["process_request", "process_request_thread", "finish_request"])
def test_networks_hold_for_a_client_that_gets_the_descriptor_of_one_that_was_let_in(dial, step, address_of):
    """Row 61: ``finish_request`` took it for that client, whose socket a thread of the subclass had closed."""

    class OwnThreads(echo.Server):
        def process_request(self, request, client_address):
            if client_address == first.getsockname():
                request.sendall(b"%d\n" % request.fileno())
                request.close()
            else:
                super().process_request(request, client_address)

    with OwnThreads(ADDRESS, socketserver.StreamRequestHandler) as server, socket.create_server(ADDRESS) as listener:
        first, second = dial(server), socket.create_connection(listener.getsockname(), timeout=DEADLINE)
        server.handle_request()
        descriptor = int(read_all(first))
        server.set_access([], ["127.0.0.1"])
        accepted = listener.accept()[0].detach()
        if accepted != descriptor:
            os.dup2(accepted, descriptor)
            os.close(accepted)
        with second, socket.socket(fileno=descriptor) as request, pytest.raises(ConnectionError, match="denied"):
            getattr(server, step)(request, address_of(second))


@pytest.mark.parametrize(
    "options", [{"proxy_protocol": True}, {"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)}]
)
@pytest.mark.parametrize("wrapper", [lambda request: request, Passing])
@pytest.mark.parametrize("step", ["process_request", "process_request_thread", "finish_request"])
def test_no_client_that_a_program_accepts_itself_is_served_without_its_header_or_in_clear(dial, step, wrapper, options):
    """Row 61. In an object around its socket, such a client was served."""
    with echo.Server(ADDRESS, Lines, **options) as server:
        dial(server)
        assert is_readable(server.socket, DEADLINE)
        request, address = server.socket.accept()
        with request:
            with pytest.raises(TypeError, match="only the server itself can accept clients"):
                getattr(server, step)(wrapper(request), address)
            assert (request.fileno() == -1) == (step != "finish_request")  # whose caller closes


@on_both
def test_the_private_flag_ends_the_loop_without_waiting_for_it(base, dial):
    class Last(socketserver.BaseRequestHandler):
        def handle(self):
            self.server._BaseServer__shutdown_request = True

    with base(ADDRESS, Last) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        dial(server).close()
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_process_request_of_the_mixin_by_name_keeps_the_limit_and_the_drain(dial):
    class ByName(echo.Server):
        def process_request(self, request, client_address):
            socketserver.ThreadingMixIn.process_request(self, request, client_address)

    with ByName(ADDRESS, Lines, max_connections=1, shutdown_timeout=None).start() as server:
        first, second = dial(server), dial(server)
        assert is_answered(first)
        assert len(server.connections) == 1
        first.close()
        assert is_answered(second)
        ends_in_time(server.stop)
        assert read_all(second) == b""
        assert server.stats().ended == {"exit": 1, "drain": 1}


# Registration.


class APool(echo.Server):
    """Sessions in the program's own threads, which do not call the server's methods."""

    def __init__(self, *arguments, **options):
        self.waiting = queue.Queue()
        super().__init__(*arguments, **options)
        for _ in range(2):
            threading.Thread(target=self.work, daemon=True).start()

    def process_request(self, request, client_address):
        self.waiting.put(request)

    def work(self):
        while True:
            request = self.waiting.get()
            if request is None:
                return
            with request:
                request.sendall(request.recv(100).upper())

    def server_close(self):
        super().server_close()
        self.waiting.put(None)
        self.waiting.put(None)


class ACopy(echo.Server):
    def process_request_thread(self, request, client_address):
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)


class ClosesByItself(ACopy):
    def shutdown_request(self, request):
        self.close_request(request)


@pytest.mark.parametrize("cls", [APool, ACopy, ClosesByItself])
def test_many_short_sessions_leave_nothing_behind_whatever_is_replaced(cls, dial):
    with cls(ADDRESS, Lines, max_connections=2, shutdown_timeout=DEADLINE).start() as server:
        for _ in range(20):
            with dial(server) as client:
                assert is_answered(client)
        eventually(lambda: not server.connections)
        assert server.stats().accepted == sum(server.stats().ended.values()) == 20


def test_sessions_that_were_closed_while_the_server_was_full_make_room(dial):
    with APool(ADDRESS, Lines, max_connections=2, shutdown_timeout=DEADLINE).start() as server:
        clients = [dial(server) for _ in range(2)]
        eventually(lambda: len(server.connections) == 2 and server._echo_registry._when_room is not None)
        third = dial(server)
        for client in clients:
            assert is_answered(client)
        assert is_answered(third)


def test_a_request_need_not_be_a_socket_nor_hashable(dial):
    class Wrapper(list):  # as hashable as a list
        def __init__(self, sock):
            super().__init__()
            self.sock = sock
            self.fileno, self.recv, self.sendall, self.close = sock.fileno, sock.recv, sock.sendall, sock.close

        def shutdown(self):  # as pyOpenSSL's
            self.sock.shutdown(socket.SHUT_WR)

    class Wrapping(echo.Server):
        def get_request(self):
            request, client_address = super().get_request()
            return Wrapper(request), client_address

        def shutdown_request(self, request):
            request.shutdown()
            self.close_request(request)

    class Plain(socketserver.BaseRequestHandler):
        def handle(self):
            while True:
                data = self.request.recv(100)
                if not data:
                    return
                self.request.sendall(data.upper())

    with Wrapping(ADDRESS, Plain, shutdown_timeout=None).start() as server:
        client = dial(server)
        assert is_answered(client)
        ends_in_time(server.stop)
        assert read_all(client) == b""
        assert server.stats().ended == {"drain": 1}


def test_one_client_at_a_time(dial):
    running, most = [], []

    class Counting(Lines):
        def handle(self):
            running.append(self)
            most.append(len(running))
            super().handle()
            running.remove(self)

    with echo.Server(ADDRESS, Counting, max_connections=1).start() as server:
        clients = [dial(server) for _ in range(4)]
        for client in clients:
            assert is_answered(client)
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b""
    assert most == [1] * 4


# Order of calls.


@on_both
def test_get_request_is_called_only_when_a_client_waits(base, dial):
    calls = []

    class Own(base):
        daemon_threads = True

        def get_request(self):
            self.socket.settimeout(DEADLINE)  # with nobody there, it would wait
            calls.append("get_request")
            return self.socket.accept()

    server = Own(ADDRESS, Lines)
    serve_and_check(server, dial)
    assert calls == ["get_request"]


@on_both
def test_a_failed_constructor_does_not_call_shutdown_of_the_subclass(base):
    class Own(base):
        allow_reuse_address = allow_reuse_port = False

        def shutdown(self):
            raise AssertionError("shutdown() was called")

    with socket.create_server(ADDRESS) as taken, pytest.raises(OSError):
        Own(taken.getsockname(), Lines)


def test_server_close_does_not_call_shutdown_of_the_subclass(dial):
    class Own(echo.Server):
        def shutdown(self):
            raise AssertionError("shutdown() was called")

    with Own(ADDRESS, Lines).start() as server, dial(server) as client:
        assert is_answered(client)


@on_both
def test_a_closed_server_with_a_new_socket_serves(base, dial):
    class Own(base):
        daemon_threads = True

    with socket.create_server(ADDRESS) as listening:
        server = Own(listening.getsockname(), Lines, bind_and_activate=False)
        server.server_close()
        for _ in range(2):
            server.socket = socket.fromfd(listening.fileno(), socket.AF_INET, socket.SOCK_STREAM)
            server.server_address = server.socket.getsockname()
            serve_and_check(server, dial)


@on_both
def test_server_close_by_name_closes_the_listening_socket_and_leaves_the_sessions(base, dial):
    class Own(base):
        daemon_threads = True

    server = Own(ADDRESS, Lines)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    client = dial(server)
    assert is_answered(client)
    server.shutdown()
    thread.join(DEADLINE)
    socketserver.TCPServer.server_close(server)
    assert is_answered(client)
    client.close()
    server.server_close()


@on_both
def test_a_loop_of_handle_request_ends_when_the_server_is_closed(base):
    server = base(ADDRESS, Lines)
    server.server_close()
    with pytest.raises(ValueError):
        while True:
            server.handle_request()


@on_both
def test_what_a_subclass_has_said_about_ipv4_clients_stays(base):
    class Own(base):
        address_family = socket.AF_INET6

        def server_bind(self):
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            super().server_bind()

    try:
        server = Own(("::1", 0), Lines)
    except OSError as exc:
        pytest.skip(f"no IPv6 here: {exc}")
    with server:
        assert server.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


# Errors.


@on_both
def test_a_handle_error_that_raises_reaches_the_programs_hook(base, dial, monkeypatch):
    raised = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_type))

    class Own(base):
        daemon_threads = True

        def handle_error(self, request, client_address):
            raise

    class Bad(socketserver.BaseRequestHandler):
        def handle(self):
            if self.request.recv(1) == b"!":
                raise LookupError("a mistake")
            self.request.sendall(b"fine")

    server = Own(ADDRESS, Bad)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    with dial(server) as client:
        client.sendall(b"!")
        assert read_all(client) == b""
    eventually(lambda: raised == [LookupError])
    server.shutdown()
    server.server_close()


def upstream_is_down():
    with socket.socket() as nobody:
        nobody.bind(ADDRESS)
        socket.create_connection(nobody.getsockname(), DEADLINE)


def pipe_is_broken():
    one, other = socket.socketpair()
    with one:
        other.close()
        one.sendall(b"x")


def upstream_has_reset():
    raise ConnectionResetError("by the database")


@pytest.mark.parametrize("fail", [upstream_is_down, pipe_is_broken, upstream_has_reset])
def test_a_lost_connection_of_the_handlers_own_is_its_error(serve, dial, caplog, fail):
    class Front(socketserver.BaseRequestHandler):
        def handle(self):
            fail()

    server = serve(Front)
    with dial(server) as client:
        assert read_all(client) == b""
    eventually(lambda: server.stats().ended == {"error": 1})
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"]


# Sockets.


@on_both
@pytest.mark.parametrize("kept", ["file", "duplicate"])
def test_a_thread_of_the_handlers_own_reads_on_after_it(base, dial, kept):
    got = []
    begun, over = threading.Event(), threading.Event()

    class Keeps(socketserver.StreamRequestHandler):
        def handle(self):
            file = self.rfile
            if kept == "duplicate":
                with self.request.dup() as duplicate:
                    file = duplicate.makefile("rb")
            threading.Thread(target=self.read_on, args=(file,), daemon=True).start()

        def read_on(self, file):
            with file:
                for line in file:
                    got.append(line)
                    begun.set()
            over.set()

        def finish(self):
            self.wfile.close()

    class Own(base):
        daemon_threads = True

    server = Own(ADDRESS, Keeps)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    with dial(server) as client:
        assert client.recv(1) == b""  # the handler is done
        lines = [b"%02d\n" % number for number in range(20)]
        for line in lines:
            client.sendall(line)
            assert begun.wait(DEADLINE)
    assert over.wait(DEADLINE)
    assert got == lines
    server.shutdown()
    server.server_close()


def test_of_two_servers_on_one_socket_the_last_to_stop_puts_its_mode_back():
    with socket.create_server(ADDRESS) as listening:
        servers = []
        for _ in range(2):
            servers.append(echo.Server(listening.getsockname(), Lines, bind_and_activate=False))
            servers[-1].socket.close()
            servers[-1].socket = listening.dup()
            servers[-1].start()
        for server, blocking in zip(servers, [False, True]):
            server.shutdown()
            assert os.get_blocking(listening.fileno()) is blocking
        for server in servers:
            server.server_close()


# Threads.


@on_both
@pytest.mark.parametrize("sessions", [2, 5])
def test_the_thread_of_each_session_has_a_name_of_its_own(base, dial, sessions):
    class Tells(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(threading.current_thread().name.encode())

    class Own(base):
        daemon_threads = True

    server = Own(ADDRESS, Tells)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    names = []
    for _ in range(sessions):
        with dial(server) as client:
            names.append(read_all(client))
    server.shutdown()
    server.server_close()
    assert len(set(names)) == sessions


@pytest.mark.parametrize("reuse", [True, False])
def test_reuse_threads_says_whether_a_session_may_get_the_thread_of_an_earlier_one(dial, reuse):
    local = threading.local()

    class Remembers(socketserver.BaseRequestHandler):
        def handle(self):
            seen = getattr(local, "seen", 0)
            local.seen = seen + 1
            self.request.sendall(b"%d" % seen)

    class Own(echo.Server):
        reuse_threads = reuse

    with Own(ADDRESS, Remembers).start() as server:
        seen = []
        for _ in range(3):
            with dial(server) as client:
                seen.append(int(read_all(client)))
            eventually(lambda: not server.connections and (not reuse or server._echo_session_threads._idle))
    assert seen == ([0, 1, 2] if reuse else [0, 0, 0])


# Ported side by side: one changed line, the base class.


@pytest.mark.parametrize("mixin", [socketserver.ThreadingMixIn, echo.Server], ids=["stock", "echo"])
def test_a_threading_http_server_is_ported_with_one_changed_line(mixin, tmp_path):
    (tmp_path / "hello.txt").write_bytes(b"hello")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments):
            pass

    class S(mixin, http.server.HTTPServer):
        daemon_threads = True

    server = S(ADDRESS, Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/hello.txt"
    with urllib.request.urlopen(url, timeout=DEADLINE) as response:
        assert response.read() == b"hello"
    server.shutdown()
    server.server_close()


class KeyValueHandler(socketserver.StreamRequestHandler):
    """A small store as it is written for ``socketserver``: SET key value, GET key, DEL key, KEYS, QUIT."""

    def handle(self):
        for line in self.rfile:
            words = line.decode("utf-8", "replace").split(None, 2)
            if not words:
                continue
            command, arguments = words[0].upper(), [word.strip() for word in words[1:]]
            if command == "QUIT":
                self.reply("BYE")
                return
            method = getattr(self, f"do_{command.lower()}", None)
            if method is None:
                self.reply("ERROR unknown command")
                continue
            try:
                self.reply(method(*arguments))
            except TypeError:
                self.reply("ERROR wrong number of arguments")

    def reply(self, text):
        self.wfile.write(text.encode() + b"\n")

    def do_set(self, key, value):
        with self.server.lock:
            self.server.data[key] = value
        return "OK"

    def do_get(self, key):
        with self.server.lock:
            return self.server.data.get(key, "NONE")

    def do_del(self, key):
        with self.server.lock:
            return "OK" if self.server.data.pop(key, None) is not None else "NONE"

    def do_keys(self):
        with self.server.lock:
            return " ".join(sorted(self.server.data)) or "NONE"


def key_value_server(base):
    class KeyValueServer(base):  # the one line that changes
        allow_reuse_address = True
        daemon_threads = True

        def __init__(self, address):
            self.data = {}
            self.lock = threading.Lock()
            super().__init__(address, KeyValueHandler)

    return KeyValueServer(ADDRESS)


@on_both
def test_a_key_value_service_is_ported_with_one_changed_line(base, dial):
    server = key_value_server(base)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    with dial(server) as one, dial(server) as other:
        one.sendall(b"SET a 1\nset b two words\nGET a\nGET c\nNO\nGET\n")
        replies = one.makefile("rb")
        expected = [b"OK", b"OK", b"1", b"NONE", b"ERROR unknown command", b"ERROR wrong number of arguments"]
        assert [replies.readline().rstrip() for _ in expected] == expected
        other.sendall(b"KEYS\nDEL a\nGET b\nKEYS\nQUIT\n")
        assert read_all(other) == b"a b\nOK\ntwo words\nb\nBYE\n"
        one.sendall(b"QUIT\n")
        assert replies.read() == b"BYE\n"
        replies.close()
    server.shutdown()
    server.server_close()
