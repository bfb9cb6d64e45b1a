"""TLS as in programs for ``socketserver``, and our TLS and PROXY headers in servers with overridden methods.

In all combinations, no data that should be encrypted is sent in clear, and no handler sees a client that was rejected.
"""

import contextlib
import gc
import os
import queue
import signal
import socket
import socketserver
import ssl
import threading
import time

import pytest

import echo
from echo.mixins.wrapper import SocketWrapper
from echo.text import format_address
from support import DEADLINE, eventually, read_all, read_exactly
from support.background import Background
from support.servers import Passing, ends_in_time

SECRET = b"THE SECRET\n"

HEADER = b"PROXY TCP4 192.0.2.1 192.0.2.2 1111 2222\r\n"


@pytest.fixture
def context(certificates):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(*certificates.server)
    return made


@pytest.fixture
def dial_tls(dial, certificates):
    """Connect, shake hands, and return the TLS socket."""
    trusting = ssl.create_default_context(cafile=certificates.authority.certificate)
    with contextlib.ExitStack() as stack:

        def connect(server):
            sock = trusting.wrap_socket(dial(server), server_hostname="localhost")
            return stack.enter_context(contextlib.closing(sock))

        yield connect


class Lines(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


class Busy(socketserver.StreamRequestHandler):
    """Replies to the first line only when the test says so, and records what it reads after that."""

    def handle(self):
        self.rfile.readline()
        self.server.busy.set()
        assert self.server.go_on.wait(DEADLINE)
        self.wfile.write(SECRET)
        self.server.rest = self.rfile.read()


class BusyServer(echo.Server):
    def __init__(self, *arguments, **options):
        self.busy, self.go_on, self.rest = threading.Event(), threading.Event(), None
        super().__init__(*arguments, **options)


class WrappedListener(BusyServer):
    """The usual idiom: ``server.socket = context.wrap_socket(server.socket, server_side=True)``."""

    def wrap(self, context):
        self.socket = context.wrap_socket(self.socket, server_side=True)


class WrappingGetRequest(BusyServer):
    def wrap(self, context):
        self.context = context

    def get_request(self):
        request, client_address = super().get_request()
        return self.context.wrap_socket(request, server_side=True), client_address


class WrappingFinishRequest(BusyServer):
    def wrap(self, context):
        self.context = context

    def finish_request(self, request, client_address):
        with self.context.wrap_socket(request, server_side=True) as wrapped:
            super().finish_request(wrapped, client_address)


class WrappingHandler(BusyServer):
    """The handler wraps its socket itself. The server does not know it, and only cuts the session at the deadline."""

    def wrap(self, context):
        inner = self.RequestHandlerClass

        class Wrapping(inner):
            def setup(self):
                self.request = context.wrap_socket(self.request, server_side=True)
                super().setup()

            def finish(self):
                super().finish()
                self.request.close()

        self.RequestHandlerClass = Wrapping


STOCK_TLS = [WrappedListener, WrappingGetRequest, WrappingFinishRequest]


def on_the_wire(client):
    """The same connection without TLS, as a listener on the wire would see it."""
    wire = socket.socket(fileno=os.dup(client.fileno()))
    wire.settimeout(DEADLINE)
    return wire


@pytest.mark.parametrize("cls", [*STOCK_TLS, WrappingHandler])
def test_output_of_a_handler_during_a_stop_is_encrypted(cls, context, dial_tls):
    with cls(("127.0.0.1", 0), Busy) as server:
        server.wrap(context)
        server.start()
        client = dial_tls(server)
        wire = on_the_wire(client)
        client.sendall(b"one\n")
        assert server.busy.wait(DEADLINE)
        client.sendall(b"two\n")
        stop = threading.Thread(target=server.stop)
        stop.start()
        eventually(lambda: server.connections[0].state == "draining")
        server.go_on.set()
        with wire:
            wire.shutdown(socket.SHUT_WR)  # nothing else ends the input of a socket that the handler has wrapped
            data = read_all(wire)
        stop.join(DEADLINE)
        assert not stop.is_alive()
    assert data, "the handler's reply is missing"
    assert SECRET not in data
    assert server.rest == b"two\n"


class Waiting(echo.EchoRequestHandler):
    def message_received(self, message):
        self.server.busy.set()
        assert self.server.go_on.wait(DEADLINE)
        super().message_received(message)


class WaitingInWrapper(Waiting):
    def stream(self):
        return Passing(super().stream())


class WaitingInFaults(echo.FaultMixin, Waiting):
    pass


@pytest.mark.parametrize("cls", STOCK_TLS)
@pytest.mark.parametrize("handler_class", [Waiting, WaitingInWrapper, WaitingInFaults])
def test_a_stop_answers_what_had_arrived_over_stock_tls_whatever_wraps_it(cls, handler_class, context, dial_tls):
    """A wrapper's ``shutdown`` was that of ``ssl.SSLSocket``: replies went out in clear text, or were lost."""
    with cls(("127.0.0.1", 0), handler_class) as server:
        server.wrap(context)
        server.start()
        with dial_tls(server):  # prepares the context: see the next test
            pass
        client = dial_tls(server)
        client.sendall(b"one\ntwo\nthree\n" + SECRET)
        assert server.busy.wait(DEADLINE)
        stop = threading.Thread(target=server.stop)
        stop.start()
        eventually(lambda: all(connection.state != "open" for connection in server.connections))
        server.go_on.set()
        assert read_all(client) == b"one\ntwo\nthree\n" + SECRET
        client.close()
        stop.join(DEADLINE)
        assert not stop.is_alive()


@pytest.mark.parametrize("cls", STOCK_TLS)
@pytest.mark.parametrize("handler_class", [Lines, echo.EchoRequestHandler])
def test_a_stop_ends_an_idle_session_over_stock_tls_at_once(cls, handler_class, context, dial_tls):
    with cls(("127.0.0.1", 0), handler_class, shutdown_timeout=None) as server:
        server.wrap(context)
        server.start()
        # A context that the server has not seen before ends its first sessions with an alert.
        with dial_tls(server) as first:
            first.sendall(b"HELLO\n")
            assert read_exactly(first, 6) == b"HELLO\n"
        eventually(lambda: sum(server.stats().ended.values()) == 1)  # or the stop would drain this one, too
        client = dial_tls(server)
        client.sendall(b"HELLO\n")
        assert read_exactly(client, 6) == b"HELLO\n"
        ends_in_time(server.stop)
        assert client.recv(1) == b""
        assert server.stats().ended["drain"] == 1


def test_a_handler_that_has_read_the_end_of_its_input_may_still_write_over_stock_tls(context, dial_tls):
    class Polite(Lines):
        def handle(self):
            super().handle()
            self.wfile.write(b"goodbye\n")

    with WrappedListener(("127.0.0.1", 0), Polite) as server:
        server.wrap(context)
        server.start()
        client = dial_tls(server)
        client.sendall(b"hello\n")
        assert read_exactly(client, 6) == b"HELLO\n"
        ends_in_time(server.stop)
        assert read_all(client) == b"goodbye\n"


@pytest.mark.parametrize("cls", STOCK_TLS)
def test_messages_that_tls_has_decrypted_already_are_answered_before_a_stop(cls, context, dial_tls):
    """One record holds many messages: those that are not read yet are no longer in the system's queue."""
    count = 2000
    entered, go_on = threading.Event(), threading.Event()

    class Slow(echo.EchoRequestHandler):
        def connection_made(self):
            self.first = True

        def message_received(self, message):
            if self.first:
                self.first = False
                entered.set()
                assert go_on.wait(DEADLINE)
            self.send(message)

    lines = b"".join(b"%05d\n" % number for number in range(count))
    with cls(("127.0.0.1", 0), Slow) as server:
        server.wrap(context)
        server.start()
        client = dial_tls(server)
        client.sendall(lines)
        assert entered.wait(DEADLINE)
        stop = threading.Thread(target=server.stop)
        stop.start()
        eventually(lambda: server.connections[0].state == "draining")
        go_on.set()
        assert read_all(client) == lines
        stop.join(DEADLINE)
        assert not stop.is_alive()


@pytest.fixture
def stock_pair(context, certificates):
    """Two ends of one connection that the ssl module encrypts."""
    ours, theirs = socket.socketpair()
    trusting = ssl.create_default_context(cafile=certificates.authority.certificate)
    made = []
    thread = threading.Thread(
        target=lambda: made.append(trusting.wrap_socket(theirs, server_hostname="localhost")), daemon=True
    )
    thread.start()
    wrapped = context.wrap_socket(ours, server_side=True)
    thread.join(DEADLINE)
    with wrapped, made[0] as client:
        yield wrapped, client


def test_the_half_close_of_our_connection_keeps_stock_tls_encrypted(stock_pair):
    ours, theirs = stock_pair
    connection = echo.Connection(ours, echo.LineFraming())
    connection.end_output()
    theirs.sendall(b"still read\n")
    assert connection.receive() == [b"still read"]


@pytest.mark.parametrize("wrapper", [lambda sock: sock, Passing], ids=["bare", "wrapped again"])
def test_our_timeouts_hold_over_stock_tls(wrapper, stock_pair):
    """The ssl module begins its wait again when the kernel's timeout has passed: a silent client stayed for ever."""
    ours, theirs = stock_pair
    timeouts = {"idle_timeout": 0.01, "message_timeout": 0.02, "send_timeout": 0.03}
    connection = echo.Connection(wrapper(ours), echo.LineFraming(), **timeouts)
    with pytest.raises(echo.ReceiveTimeout):
        connection.receive()
    theirs.sendall(b"one\nthe beginning")
    assert connection.receive() == [b"one"]
    with pytest.raises(echo.MessageTimeout):
        connection.receive()
    theirs.sendall(b" and the end\n")
    assert connection.receive() == [b"the beginning and the end"]
    with pytest.raises(echo.SendTimeout):
        while True:
            connection.send(b"x" * 65536)


def test_a_part_of_a_record_of_stock_tls_does_not_stop_the_clock(stock_pair):
    ours, theirs = stock_pair
    connection = echo.Connection(ours, echo.LineFraming(), idle_timeout=0.01)
    wire = on_the_wire(theirs)
    with wire:
        wire.sendall(b"\x17\x03\x03\x01\x00and no more")  # data, and its length: 256 bytes
        with pytest.raises(echo.ReceiveTimeout):
            connection.receive()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer here")
def test_signals_are_no_timeout_over_stock_tls(stock_pair):
    ours, theirs = stock_pair
    ticks = []

    def tick(*_):
        ticks.append(None)
        if len(ticks) == 20:
            signal.setitimer(signal.ITIMER_REAL, 0)
            theirs.sendall(b"hello\n")

    connection = echo.Connection(ours, echo.LineFraming(), idle_timeout=DEADLINE)
    before = signal.signal(signal.SIGALRM, tick)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        assert connection.receive() == [b"hello"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_timeout_of_a_client_holds_over_a_socket_of_stock_tls(stock_pair):
    ours, theirs = stock_pair
    client = echo.Client(ours, timeout=0.01)
    with pytest.raises(echo.ReceiveTimeout):
        client.recv()
    theirs.sendall(b"late\n")
    assert client.recv() == b"late"


def test_a_thread_that_sends_is_never_in_the_ssl_module_together_with_one_that_receives(stock_pair, monkeypatch):
    """Without a lock of its own, that takes one thread's result for the other's, and bytes are lost."""
    ours, theirs = stock_pair
    inside, entered, together = threading.Lock(), threading.Event(), []

    def alone(method):
        def call(sock, *args):
            if sock is not ours:
                return method(sock, *args)
            first = inside.acquire(blocking=False)
            together.extend([method] * (not first))
            entered.set()
            try:
                return method(sock, *args)
            finally:
                if first:
                    inside.release()

        return call

    connection = echo.Connection(ours, echo.LineFraming(1 << 20))
    with monkeypatch.context() as patch:
        for name in ("read", "send"):
            patch.setattr(ssl.SSLSocket, name, alone(getattr(ssl.SSLSocket, name)))
        received = Background(connection.receive)
        assert entered.wait(DEADLINE)
        echoed = Background(lambda: theirs.sendall(read_exactly(theirs, 1000001)))  # more than the buffers hold
        connection.send(b"x" * 1000000)
        echoed.result()
        assert received.result() == [b"x" * 1000000]
    assert not together


@pytest.mark.parametrize("is_subclass", [False, True], ids=["wrapper", "subclass"])
def test_what_a_program_has_around_stock_tls_sees_each_byte_once(stock_pair, is_subclass):
    ours, theirs = stock_pair
    sent, received = [], []

    class Sees:
        def sendall(self, data):
            sent.append(bytes(data))
            super().sendall(data)

        def recv(self, size):
            received.append(super().recv(size))
            return received[-1]

    if is_subclass:
        ours.__class__ = type("Subclass", (Sees, ssl.SSLSocket), {})
    else:
        ours = type("Wrapper", (Sees, SocketWrapper), {})(ours)
    connection = echo.Connection(ours, echo.LineFraming())
    connection.send(b"hello")
    assert read_exactly(theirs, 6) == b"hello\n"
    theirs.sendall(b"hello, too\n")
    assert connection.receive() == [b"hello, too"]
    assert (b"".join(sent), b"".join(received)) == (b"hello\n", b"hello, too\n")


@pytest.mark.parametrize("seconds, error", [(0.0, ssl.SSLWantReadError), (0.01, socket.timeout)])
def test_a_program_may_set_a_timeout_of_its_own_on_stock_tls(stock_pair, seconds, error):
    ours, theirs = stock_pair
    connection = echo.Connection(ours, echo.LineFraming())
    ours.settimeout(seconds)
    with pytest.raises(error):
        ours.recv(1)
    assert ours.gettimeout() == seconds
    ours.settimeout(None)
    theirs.sendall(b"hello\n")
    assert connection.receive() == [b"hello"]


def test_a_message_arrives_once_although_its_records_find_no_room_one_by_one(stock_pair, monkeypatch):
    """A peer may ask for records as short as these."""

    def send(sock, data, *flags):
        attempts.append(len(data))
        if len(attempts) % 2:
            raise ssl.SSLWantWriteError
        return stock_send(sock, data[:500])

    ours, theirs = stock_pair
    attempts, stock_send = [], ssl.SSLSocket.send
    connection = echo.Connection(ours, echo.LineFraming())
    with monkeypatch.context() as patch:
        patch.setattr(ssl.SSLSocket, "send", send)
        connection.send(b"0123456789" * 500)
    connection.end_output()
    assert read_all(theirs) == b"0123456789" * 500 + b"\n"


def test_a_mixin_around_stock_tls_sends_each_byte_once(context, dial_tls):
    """A send that finds no room is tried again, below the mixin."""

    class Pieces(echo.FaultMixin, echo.MessageRequestHandler):
        chunk = 3000

        def setup(self):
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            super().setup()

        def connection_made(self):
            self.send(b"x" * 1000000)
            self.close()

    class Wrapping(echo.Server):
        def get_request(self):
            request, address = super().get_request()
            return context.wrap_socket(request, server_side=True), address

    with Wrapping(("127.0.0.1", 0), Pieces).start() as server:
        with dial_tls(server) as client:
            assert len(read_all(client)) == 1000001


class WrappingProcessRequest(BusyServer):
    def wrap(self, context):
        self.context = context

    def process_request(self, request, client_address):
        super().process_request(self.context.wrap_socket(request, server_side=True), client_address)


class WrappingInTheThread(BusyServer):
    def wrap(self, context):
        self.context = context

    def process_request_thread(self, request, client_address):
        try:
            wrapped = self.context.wrap_socket(request, server_side=True)
        except OSError:
            return
        super().process_request_thread(wrapped, client_address)


@pytest.mark.parametrize("cls", [WrappingProcessRequest, WrappingInTheThread])
@pytest.mark.parametrize("options", [{}, {"proxy_protocol": True}])
def test_a_client_whose_socket_is_wrapped_before_its_session_has_one_slot(cls, options, context, certificates, dial):
    """Row 15: it was counted twice, and one slot of its host did not come back."""
    trusting = ssl.create_default_context(cafile=certificates.authority.certificate)

    class Host(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(self.client_address[0].encode() + self.rfile.readline())

    with cls(("127.0.0.1", 0), Host, max_connections_per_host=1, **options) as server:
        server.wrap(context)
        server.start()
        for number in (1, 2):
            client = dial(server)
            client.sendall(HEADER if options else b"")
            with trusting.wrap_socket(client, server_hostname="localhost") as encrypted:
                eventually(lambda: len(server.connections) == len(server._echo_registry) == 1)
                encrypted.sendall(b"\n")
                assert read_exactly(encrypted, 10) == (b"192.0.2.1\n" if options else b"127.0.0.1\n")
            eventually(lambda: sum(server.stats().ended.values()) == number)  # noqa: B023


@pytest.mark.parametrize("options", [{}, {"proxy_protocol": True}])
def test_clients_in_a_handshake_that_a_subclass_does_are_counted(options, context, dial):
    """Row 15: the socket that has given its descriptor to a wrapper looked closed."""
    with WrappingInTheThread(("127.0.0.1", 0), Lines, max_connections_per_host=1, **options) as server:
        server.wrap(context)
        server.start()
        silent, refused = dial(server), dial(server)
        silent.sendall(HEADER if options else b"")
        eventually(lambda: any(session.was_closed() for session in server._echo_registry.sessions()))
        refused.sendall(HEADER if options else b"")
        assert read_all(refused) == b""
        peer = format_address(silent.getsockname())
        eventually(lambda: [each.via or each.peer for each in server.connections] == [peer])
        silent.close()
        eventually(lambda: server.stats().active == 0)


# Our TLS and PROXY headers.


class Goodbye(echo.Server):
    def shutdown_request(self, request):
        with contextlib.suppress(OSError):
            request.sendall(SECRET)
        super().shutdown_request(request)


class GoodbyeInVerifyRequest(echo.Server):
    def verify_request(self, request, client_address):
        with contextlib.suppress(OSError):
            request.sendall(SECRET)
        return False


@pytest.mark.parametrize("cls, networks", [(Goodbye, ["127.0.0.1"]), (GoodbyeInVerifyRequest, [])])
def test_a_subclass_that_writes_to_a_client_at_the_door_does_not_wait_for_its_handshake(cls, networks, context, dial):
    """Row 13: a silent client that was refused blocked all others until its handshake timed out."""
    server = cls(("127.0.0.1", 0), Lines, ssl_context=context, handshake_timeout=None, deny=networks)
    with server.start():
        assert read_all(dial(server)) == b""


class Answers(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(SECRET + self.rfile.readline())


class InTheServingThread(echo.Server):
    def process_request(self, request, client_address):
        self.finish_request(request, client_address)
        self.shutdown_request(request)


class InAThreadOfItsOwn(echo.Server):
    def process_request(self, request, client_address):
        threading.Thread(target=self.work, args=(request, client_address)).start()

    def work(self, request, client_address):
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)


class ACopyOfTheStandardBody(echo.Server):
    def process_request_thread(self, request, client_address):
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)


class ByName(echo.Server):
    def process_request(self, request, client_address):
        socketserver.ThreadingMixIn.process_request(self, request, client_address)


class WithoutAHandler(echo.Server):
    """Nothing of the server's own code runs between accept and close."""

    def process_request(self, request, client_address):
        threading.Thread(target=self.work, args=(request,)).start()

    def work(self, request):
        with contextlib.suppress(OSError):
            request.sendall(SECRET + request.recv(100))
        request.close()


class AHandlerOfItsOwn(echo.Server):
    def finish_request(self, request, client_address):
        with request.makefile("rwb", 0) as file:
            file.write(SECRET + file.readline())


class AnAcceptOfItsOwn(InAThreadOfItsOwn):
    def get_request(self):
        return self.socket.accept()


class AnAcceptAndNothingElse(WithoutAHandler):
    get_request = AnAcceptOfItsOwn.get_request


class AnObjectInTheServingThread(echo.Server):
    def process_request(self, request, client_address):
        super().process_request(Passing(request), client_address)


class AnObjectInTheSessionsThread(echo.Server):
    def process_request_thread(self, request, client_address):
        super().process_request_thread(Passing(request), client_address)


REPLACED = [
    AnObjectInTheServingThread,
    AnObjectInTheSessionsThread,
    InTheServingThread,
    InAThreadOfItsOwn,
    ACopyOfTheStandardBody,
    ByName,
    WithoutAHandler,
    AHandlerOfItsOwn,
    AnAcceptOfItsOwn,
    AnAcceptAndNothingElse,
]

replaced = pytest.mark.parametrize("cls", REPLACED)


@replaced
def test_whatever_a_subclass_replaces_a_client_without_tls_gets_nothing_in_clear(cls, context, dial):
    with cls(("127.0.0.1", 0), Answers, ssl_context=context).start() as server:
        client = dial(server)
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert SECRET not in read_all(client)
        client.close()
        eventually(lambda: server.connections == [])


@replaced
def test_whatever_a_subclass_replaces_a_client_with_tls_is_served(cls, context, dial_tls):
    """An object around the socket was refused, as if it had taken the descriptor over."""
    with cls(("127.0.0.1", 0), Answers, ssl_context=context).start() as server:
        client = dial_tls(server)
        client.sendall(b"hello\n")
        assert read_exactly(client, len(SECRET) + 6) == SECRET + b"hello\n"
        client.close()


def begins_tls(place, context):
    """A server's and a handler's class that begin TLS in this method."""

    class Replies(echo.MessageRequestHandler):
        def setup(self):
            if place == "setup":
                self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

        def stream(self):
            return context.wrap_socket(super().stream(), server_side=True) if place == "stream" else super().stream()

        def message_received(self, message):
            self.connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
            self.send(bytes(999_999))
            self.close()

    class Begins(echo.Server):
        def finish_request(self, request, client_address):
            if place == "finish_request":
                request = context.wrap_socket(request, server_side=True)
            super().finish_request(request, client_address)

    return Begins, Replies


nobody_closes = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""Python closes a socket that the program has wrapped when nothing refers to it any more, as with ``socketserver``."""


@nobody_closes
@pytest.mark.parametrize("place", ["finish_request", "setup", "stream"])
def test_wherever_a_program_begins_tls_a_reply_reaches_a_client_that_sends_more(place, context, dial_tls):
    """Row 83: the server closed gently what it had accepted, which had no descriptor any more."""
    cls, handler = begins_tls(place, context)
    with cls(("127.0.0.1", 0), handler).start() as server:
        client = dial_tls(server)
        client.sendall(b"hello\n")
        client.sendall(b"more\n")
        time.sleep(0.1)  # the reply was lost by now
        assert len(read_exactly(client, 1_000_000)) == 1_000_000
        client.close()


@nobody_closes
@pytest.mark.parametrize("base", [socketserver.ThreadingTCPServer, echo.Server])
def test_a_plain_handler_may_hand_its_client_on_if_the_server_has_wrapped_the_socket(base, context, dial_tls):
    handed_on = queue.Queue()

    class HandsOn(socketserver.BaseRequestHandler):
        def handle(self):
            handed_on.put(self.request)

    class Wraps(base):
        daemon_threads = True

        def finish_request(self, request, client_address):
            super().finish_request(context.wrap_socket(request, server_side=True), client_address)

    with Wraps(("127.0.0.1", 0), HandsOn) as server:
        serving = Background(server.serve_forever)
        try:
            client = dial_tls(server)
            with handed_on.get(timeout=DEADLINE) as sock:
                client.sendall(b"hello")
                assert read_exactly(sock, 5) == b"hello"
                time.sleep(0.1)  # by now the server has done what it does at the end
                sock.sendall(b"world")
                assert read_exactly(client, 5) == b"world"
        finally:
            server.shutdown()
            serving.result()


@pytest.mark.parametrize("cls", [InTheServingThread, ACopyOfTheStandardBody, WithoutAHandler])
def test_whatever_a_subclass_replaces_a_silent_client_has_no_longer_than_the_handshake_timeout(cls, context, dial):
    with cls(("127.0.0.1", 0), Answers, ssl_context=context, handshake_timeout=0.02).start() as server:
        client = dial(server)
        assert SECRET not in read_all(client)
        client.close()
        eventually(lambda: server.stats().refused == {"handshake": 1})
        assert server.stats().ended == {}


@replaced
def test_whatever_a_subclass_replaces_the_proxy_header_is_no_data(cls, dial):
    with cls(("127.0.0.1", 0), Answers, proxy_protocol=True).start() as server:
        client = dial(server)
        client.sendall(HEADER + b"hello\n")
        assert read_exactly(client, len(SECRET) + 6) == SECRET + b"hello\n"
        client.close()


@replaced
@pytest.mark.parametrize("header", [b"hello\n" * 20, b"PROXY TCP4 192.0.2.99 192.0.2.2 1111 2222\r\nhello\n"])
def test_whatever_a_subclass_replaces_a_client_that_its_header_does_not_let_in_gets_nothing(cls, dial, header):
    with cls(("127.0.0.1", 0), Answers, proxy_protocol=True, deny=["192.0.2.99"]).start() as server:
        client = dial(server)
        client.sendall(header)
        with contextlib.suppress(ConnectionResetError):  # a program that closes over unread input resets
            assert SECRET not in read_all(client)
        client.close()
        eventually(lambda: sum(server.stats().refused.values()) == 1)
        assert server.stats().ended == {}


class Counted:
    """An object of a program's own with just the calls that its handler needs, and no descriptor."""

    def __init__(self, sock):
        self.recv, self.sendall = sock.recv, sock.sendall


class Counting(echo.Server):
    def finish_request(self, request, client_address):
        super().finish_request(Counted(request), client_address)


class Hello(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(self.request.recv(100).upper())


@pytest.mark.parametrize("option", ["ssl_context", "proxy_protocol", "max_connections_per_host"])
def test_a_client_that_the_server_has_accepted_is_served_in_an_object_without_a_descriptor(
    dial, dial_tls, context, option
):
    """It was taken for one that the program had accepted itself, or for a second one of its host."""
    value = {"ssl_context": context, "proxy_protocol": True}.get(option, 1)
    with Counting(("127.0.0.1", 0), Hello, **{option: value}).start() as server:
        client = (dial_tls if option == "ssl_context" else dial)(server)
        if option == "proxy_protocol":
            client.sendall(HEADER)
        client.sendall(b"hello")
        assert read_all(client) == b"HELLO"


def test_a_client_that_a_handler_accepts_itself_in_its_sessions_thread_is_not_served_in_clear(dial, dial_tls, context):
    """Row 61."""
    refused = []

    class Accepting(socketserver.BaseRequestHandler):
        def handle(self):
            dial(listener.getsockname())
            request, address = listener.accept()
            with request:
                try:
                    self.server.finish_request(request, address)
                except TypeError as exc:
                    refused.append(str(exc))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        with Counting(("127.0.0.1", 0), Accepting, ssl_context=context).start() as server:
            assert read_all(dial_tls(server)) == b""
    assert len(refused) == 1 and "only the server itself can accept clients" in refused[0]


class AFileOfItsSocket(echo.Server):
    def process_request(self, request, client_address):
        threading.Thread(target=self.work, args=(request,)).start()

    def work(self, request):
        with contextlib.suppress(OSError), request:
            file = request.makefile("rwb")
            file.write(SECRET)
            file.flush()


def test_the_socket_of_a_refused_client_is_closed_although_a_file_of_it_was_open(dial):
    """The exception kept itself, and so the file, until the garbage collector came: the client stayed."""
    with AFileOfItsSocket(("127.0.0.1", 0), Answers, proxy_protocol=True, deny=["192.0.2.1"]).start() as server:
        client = dial(server)
        gc.disable()
        try:
            client.sendall(HEADER)
            assert read_all(client) == b""
        finally:
            gc.enable()


class TakesOver(socket.socket):
    def __init__(self, sock):
        super().__init__(fileno=sock.detach())


class WrappingWithoutEncryption(echo.Server):
    def process_request(self, request, client_address):
        super().process_request(TakesOver(request), client_address)


class WrappingWithoutAHandler(echo.Server):
    def process_request(self, request, client_address):
        with TakesOver(request) as wrapped, contextlib.suppress(OSError):
            wrapped.sendall(SECRET)


@pytest.mark.parametrize("cls", [WrappingWithoutEncryption, WrappingWithoutAHandler])
@pytest.mark.parametrize("header", [b"", HEADER])
def test_a_wrapper_that_takes_the_socket_over_before_the_handshake_sends_nothing_in_clear(cls, header, context, dial):
    """Row 13: the handshake was bound to the socket that has no descriptor any more."""
    with cls(("127.0.0.1", 0), Answers, ssl_context=context, proxy_protocol=bool(header)).start() as server:
        client = dial(server)
        with contextlib.suppress(ConnectionError):
            client.sendall(header + b"hello\n")
            assert SECRET not in read_all(client)
        client.close()
        eventually(lambda: server.connections == [])


def test_a_handler_behind_a_proxy_gets_the_clients_address_whatever_a_subclass_replaces(dial):
    class Tells(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(repr(self.client_address).encode())

    objects = AnObjectInTheServingThread, AnObjectInTheSessionsThread
    for cls in (echo.Server, InTheServingThread, InAThreadOfItsOwn, ACopyOfTheStandardBody, ByName, *objects):
        with cls(("127.0.0.1", 0), Tells, proxy_protocol=True).start() as server:
            client = dial(server)
            client.sendall(HEADER)
            assert read_all(client) == b"('192.0.2.1', 1111)"
            client.close()


def test_a_client_that_was_refused_stays_refused_if_the_program_tries_again(dial):
    tried, done = [], threading.Event()

    class Stubborn(WithoutAHandler):
        def work(self, request):
            for use, *arguments in [(request.recv, 10), (request.recv, 10), (request.dup,), (request.sendall, b"x")]:
                try:
                    tried.append(use(*arguments))
                except OSError as exc:
                    tried.append(type(exc).__name__)
            request.close()
            done.set()

    with Stubborn(("127.0.0.1", 0), Answers, proxy_protocol=True, deny=["192.0.2.99"]).start() as server:
        client = dial(server)
        client.sendall(b"PROXY TCP4 192.0.2.99 192.0.2.2 1111 2222\r\nhello\n")
        assert done.wait(DEADLINE)
        assert tried == ["Refused"] * 4


def test_two_threads_that_use_a_socket_first_shake_hands_once(context, dial_tls):
    class TwoThreads(WithoutAHandler):
        def work(self, request):
            reader = threading.Thread(target=lambda: self.got.append(request.recv(100)))
            reader.start()
            request.sendall(SECRET)
            reader.join(DEADLINE)
            request.close()

    with TwoThreads(("127.0.0.1", 0), Answers, ssl_context=context) as server:
        server.got = []
        server.start()
        client = dial_tls(server)
        assert read_exactly(client, len(SECRET)) == SECRET
        client.sendall(b"hello\n")
        assert client.recv(1) == b""
        assert server.got == [b"hello\n"]


def test_a_request_that_cannot_be_guarded_is_refused_with_the_reason(context, dial, caplog):
    class Wraps(InAThreadOfItsOwn):
        def get_request(self):
            sock, client_address = self.socket.accept()
            return Passing(sock), client_address

    with Wraps(("127.0.0.1", 0), Answers, ssl_context=context).start() as server:
        assert read_all(dial(server)) == b""
        eventually(lambda: server.stats().refused == {"error": 1})
    assert "get_request() has to return" in caplog.text
