"""From a host's name to a connected socket: one deadline for the look-up and all addresses."""

import contextlib
import errno
import os
import pickle
import socket
import sys
import threading
import time
import types

import pytest

import echo
from echo.client import dialing
from echo.client.endpoint import Endpoint
from support import DEADLINE, eventually
from support.servers import echoes

unix_sockets = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")


def entry(address):
    """An address as ``getaddrinfo`` returns it."""
    return socket.AF_INET, socket.SOCK_STREAM, 0, "", address


@pytest.fixture
def refused():
    """An address that refuses connections at once."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield entry(sock.getsockname())


class Silent(dialing._Selector):
    """No address ever answers. ``Silent.now`` is a simulated clock, which advances only in waits."""

    now = 0.0
    started = ()

    def register(self, sock, events, data=None):
        type(self).started += (self.now,)
        return super().register(sock, events, data)

    def select(self, timeout=None):
        type(self).now += timeout
        return []


@pytest.fixture
def silent(monkeypatch):
    """Let all addresses be silent; return the class with the clock."""
    monkeypatch.setattr(dialing, "_Selector", Silent)
    monkeypatch.setattr(dialing, "time", types.SimpleNamespace(monotonic=lambda: Silent.now))
    Silent.now, Silent.started = 0.0, ()
    return Silent


def test_one_deadline_holds_for_all_addresses(silent, refused):
    with pytest.raises(TimeoutError, match="timed out"):
        dialing.connect_to_first([refused] * 3, 1.0)
    assert silent.started == (0.0, 0.25, 0.5)
    assert silent.now == 1.0


def test_in_a_short_time_all_addresses_are_tried_too(silent, refused):
    with pytest.raises(TimeoutError):
        dialing.connect_to_first([refused] * 4, 0.5)
    assert silent.started == (0.0, 0.125, 0.25, 0.375)
    assert silent.now == 0.5


def test_the_look_up_takes_of_the_same_time(silent, refused, monkeypatch):
    def look_up(host, port, timeout, family=0):
        silent.now += 0.75
        return [refused]

    monkeypatch.setattr(dialing, "look_up", look_up)
    with pytest.raises(TimeoutError):
        dialing.connect_to_host("name.example", 9, 1.0)
    assert silent.now == 1.0


def test_the_longest_timeouts_are_waited_for(silent, refused):
    with pytest.raises(TimeoutError):
        dialing.connect_to_first([refused], 30 * 86400.0)
    assert silent.now == 30 * 86400.0


@pytest.mark.parametrize("timeout", [DEADLINE, None])
def test_an_address_that_refuses_gives_way_to_the_next_one(serve, refused, timeout, monkeypatch):
    addresses = [refused, refused, entry(serve().server_address)]
    monkeypatch.setattr(dialing, "look_up", lambda *arguments: addresses)
    with dialing.connect_to_host("name.example", 9, timeout) as sock:
        sock.settimeout(DEADLINE)
        assert echoes(sock)


@pytest.fixture
def full():
    """The address of a server that accepts nobody and whose backlog is full: it does not answer (on Linux)."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield entry(listener.getsockname())


def test_an_address_that_does_not_answer_does_not_hold_up_the_next_one(serve, full, monkeypatch):
    monkeypatch.setattr(dialing, "ATTEMPT_DELAY", 0.01)
    with dialing.connect_to_first([full, entry(serve().server_address)], None) as sock:
        sock.settimeout(DEADLINE)
        assert echoes(sock)


def test_if_all_addresses_fail_the_last_error_is_raised(refused):
    with pytest.raises(ConnectionRefusedError):
        dialing.connect_to_first([(12345, socket.SOCK_STREAM, 0, "", ("::1", 9)), refused], None)
    with pytest.raises(OSError, match="no address"):
        dialing.connect_to_first([], None)


class NoPorts(socket.socket):
    """TCP finds no local port to connect from; ``reachable``: whether this machine has an address to connect from."""

    reachable = True

    def connect_ex(self, address):
        if self.type == socket.SOCK_STREAM or not self.reachable:
            return errno.EADDRNOTAVAIL
        return super().connect_ex(address)


@pytest.mark.parametrize("reachable", [True, False])
def test_a_lack_of_local_ports_is_distinguished_from_that_of_an_address(monkeypatch, refused, reachable):
    words = "all local ports for this server are in use" if reachable else os.strerror(errno.EADDRNOTAVAIL)
    monkeypatch.setattr(NoPorts, "reachable", reachable)
    monkeypatch.setattr(socket, "socket", NoPorts)
    with pytest.raises(OSError, match=words) as caught:
        dialing.connect_to_first([refused], None)
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL])
@pytest.mark.parametrize("order", [[True, False], [False, True]], ids=["before", "after"])
def test_what_this_machine_lacks_is_not_hidden_by_another_address_that_refuses(monkeypatch, refused, number, order):
    """Row 79: "nothing listens" would send the user to the server."""
    lacking = iter(order)

    class Lacks(socket.socket):
        def connect_ex(self, address):
            return number if self.type == socket.SOCK_STREAM and next(lacking) else super().connect_ex(address)

    monkeypatch.setattr(socket, "socket", Lacks)
    with pytest.raises(OSError) as caught:
        dialing.connect_to_first([refused, refused], None)
    assert caught.value.errno == number


@pytest.mark.skipif(sys.platform != "linux", reason="other systems choose the port when the address is bound")
def test_a_source_address_alone_takes_no_port():
    """Row 79: connections with other servers may have the same one."""
    with socket.socket() as sock:
        dialing._bind(sock, "127.0.0.1")
        assert sock.getsockname() == ("127.0.0.1", 0)


def test_a_lack_of_local_ports_is_not_reported_as_an_unusable_source_address(monkeypatch, refused):
    class NoPortToBind(socket.socket):
        def bind(self, address):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    monkeypatch.setattr(socket, "socket", NoPortToBind)
    with pytest.raises(OSError, match="all local ports for this server are in use"):
        dialing.connect_to_first([refused], None, "127.0.0.1")


def test_a_lack_of_descriptors_is_not_reported_as_an_unknown_name(monkeypatch):
    def unknown(*arguments, **options):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    def exhausted(*arguments, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(socket, "socket", exhausted)
    with pytest.raises(OSError) as caught:
        dialing.look_up("name.example", 9, None)
    assert caught.value.errno == errno.EMFILE


@pytest.fixture
def slow_resolver(monkeypatch):
    """Name servers that do not answer until the test is over."""
    over = threading.Event()
    look_up = socket.getaddrinfo

    def slow(host, *arguments, flags=0, **options):
        if not flags & socket.AI_NUMERICHOST:
            over.wait(DEADLINE)
        return look_up(host, *arguments, flags=flags, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    yield
    over.set()
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "echo-look-up"])


def test_name_servers_that_do_not_answer_are_given_up_in_time(slow_resolver):
    with pytest.raises(TimeoutError, match=r"the look-up of the name took more than 0\.02 s"):
        echo.connect(("localhost", 9), timeout=0.02)


def test_a_thread_that_begins_late_keeps_the_deadline_of_the_look_up(slow_resolver, monkeypatch):
    """On a busy machine. The name was looked up without a limit instead, in the caller's thread."""

    def late(thread, bootstrap=threading.Thread._bootstrap):
        time.sleep(0.05)
        bootstrap(thread)

    monkeypatch.setattr(dialing, "FIRST_LINE", DEADLINE)
    monkeypatch.setattr(threading.Thread, "_bootstrap", late)
    with pytest.raises(TimeoutError, match="the look-up of the name took more than"):
        dialing.look_up("localhost", 9, 0.02)


def test_an_address_is_not_looked_up(serve, slow_resolver):
    with echo.connect(serve().server_address, timeout=DEADLINE) as client:
        assert client.echo(b"hi") == b"hi"


def no_thread(thread):
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("method, replacement", [("start", no_thread), ("_bootstrap", lambda thread: None)])
def test_without_a_thread_the_name_is_looked_up_in_the_callers(monkeypatch, method, replacement):
    """A thread without memory for its first line (``_bootstrap``) must not take longer than the deadline."""
    monkeypatch.setattr("echo.beginning.PATIENCE", DEADLINE)
    monkeypatch.setattr(dialing, "FIRST_LINE", 0.05)
    monkeypatch.setattr(threading.Thread, method, replacement)
    began = time.monotonic()
    assert dialing.look_up("localhost", 9, 0.1)
    assert time.monotonic() - began < DEADLINE


def test_errors_of_the_look_up_are_raised_as_they_are(monkeypatch):
    def unknown(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(socket.gaierror, match="not known"):
        echo.connect(("name.invalid", 9))


def test_an_invalid_name_is_not_looked_up(slow_resolver):
    with pytest.raises(UnicodeError):
        echo.connect(("a" * 80, 9))


@unix_sockets
def test_a_unix_socket_with_a_full_backlog_is_waited_for(tmp_path, monkeypatch):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(path)
        listener.listen(0)
        try:
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(path)
        except OSError:
            pass  # now it is full; systems other than Linux refuse
        with pytest.raises((TimeoutError, ConnectionRefusedError)):
            echo.connect(path, timeout=0.02)
        pauses = []

        def pause(seconds):
            pauses.append(seconds)
            stack.enter_context(listener.accept()[0])

        monkeypatch.setattr(dialing, "time", types.SimpleNamespace(monotonic=time.monotonic, sleep=pause))
        with contextlib.suppress(ConnectionRefusedError):
            echo.connect(path, timeout=DEADLINE).connection.socket.close()
            assert pauses


def test_a_connected_socket_is_blocking(serve):
    with echo.connect(serve().server_address) as client:
        assert client.connection.socket.gettimeout() is None


def test_an_endpoint_that_has_looked_its_host_up_does_not_do_it_again_in_another_process_either(serve, monkeypatch):
    endpoint = Endpoint(("localhost", serve().server_address[1]))
    resolved = pickle.loads(pickle.dumps(endpoint.resolve(DEADLINE)))
    assert resolved.is_named
    assert str(resolved) == str(endpoint)
    assert not Endpoint(("127.0.0.1", 9)).resolve().is_named
    assert Endpoint("/a/path").resolve() == Endpoint("/a/path")

    def unknown(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with resolved.open(DEADLINE) as sock:
        assert echoes(sock)
    with pytest.raises(socket.gaierror):
        endpoint.open(DEADLINE)


def test_a_family_and_a_source_address_are_kept_to(serve):
    _, port = serve().server_address
    assert {found[0] for found in dialing.look_up("localhost", port, DEADLINE, socket.AF_INET)} == {socket.AF_INET}
    with pytest.raises(socket.gaierror):
        dialing.look_up("::1", port, DEADLINE, socket.AF_INET)
    endpoint = Endpoint(("localhost", port), family=socket.AF_INET, source="127.0.0.1")
    for each in (endpoint, endpoint.resolve()):
        with each.open(DEADLINE) as sock:
            assert sock.getsockname()[0] == "127.0.0.1"
            assert echoes(sock)


def test_the_zone_of_a_source_address_is_kept():
    """Row 75: a link-local address alone is not one of this machine."""
    bound = []
    sock = types.SimpleNamespace(bind=bound.append, setsockopt=lambda *option: None)
    dialing._bind(sock, "::1%1")
    dialing._bind(sock, "127.0.0.1")
    assert bound == [("::1", 0, 0, 1), ("127.0.0.1", 0)]


def test_a_source_address_that_is_not_ours_is_an_error_that_names_it(serve):
    with pytest.raises(OSError, match=r"the source address 192\.0\.2\.1 cannot be used: "):
        dialing.connect_to_host(*serve().server_address, DEADLINE, source="192.0.2.1")
