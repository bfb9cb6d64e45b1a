"""The server's states: its methods are called, clients come and go, and handlers are busy, in random orders.

First one call at a time: a model says after each what must hold. Then many at the same time, from several threads and
from handlers: some things must hold whatever the order was. The orders are random and repeat (``trials``).
"""

import contextlib
import faulthandler
import itertools
import os
import re
import socket
import sys
import threading

import pytest

import echo
from support import DEADLINE, eventually, read_exactly
from support.processes import descriptors_of
from support.servers import port_kept

FLOOD = 2 << 20  # bytes; more than the buffers of the two sockets take


class Impatient(echo.Server):
    """Waits only a moment for sessions that it has cut, and for clients that do not close: there are hundreds here."""

    allow_reuse_port = True
    _echo_cut_grace = 0.02
    _echo_linger_silence = 0.02


def finishes(thread):
    """Wait for it; if it hangs, print the stacks of all threads."""
    thread.join(DEADLINE)
    if thread.is_alive():
        faulthandler.dump_traceback(sys.__stderr__)
        pytest.fail(f"{thread.name} hangs")


class Call(threading.Thread):
    """A call in a thread: its result or exception, and when it began and ended, on a clock that all calls share."""

    ticks = itertools.count()

    def __init__(self, method, *arguments):
        super().__init__(name=f"call-{method.__name__}", daemon=True)
        self._method = method
        self._arguments = arguments
        self.error = None
        self.returned = None
        self.began = self.ended = None
        self.start()

    def run(self):
        self.began = next(self.ticks)
        try:
            self.returned = self._method(*self._arguments)
        except Exception as exc:
            self.error = exc
        self.ended = next(self.ticks)

    def result(self):
        finishes(self)
        if self.error is not None:
            raise self.error
        return self.returned


def handler_of(world):
    """A handler that reports its hooks to the world. A message makes it wait, send much, or call a method of the
    server."""

    class Handler(echo.MessageRequestHandler):
        framing = echo.LineFraming(FLOOD)

        def connection_made(self):
            world.made.append(self.session)

        def message_received(self, message):
            if message == b"wait":
                self.send(b"waiting")
                self.flush()
                world.release.wait(3 * DEADLINE)
                self.send(b"released")
            elif message == b"flood":
                self.send(b"flooding")
                self.flush()
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                self.send(b"x" * FLOOD)
            elif message.startswith(b"call "):
                getattr(self.server, message[5:].decode())()
            else:
                self.send(message)

        def connection_lost(self, reason):
            world.lost.append(self.session)

    return Handler


class World:
    """A server, its clients, and what its handlers have reported."""

    def __init__(self, **options):
        self.descriptors = descriptors()
        self._others = set(threading.enumerate())
        self.made = []
        self.lost = []
        self.release = threading.Event()
        self.server = Impatient(("127.0.0.1", 0), handler_of(self), **options)
        self.server._echo_session_threads.idle_timeout = 3600.0  # so that a thread which is left waiting is detected
        self._port = contextlib.ExitStack()
        self._port.enter_context(port_kept(self.server))
        self.clients = []

    def connect(self):
        sock = socket.create_connection(self.server.server_address, DEADLINE)
        self.clients.append(sock)
        return sock

    def threads(self):
        """The names of the live threads that the server has started."""
        names = [thread.name for thread in set(threading.enumerate()) - self._others]
        return [name for name in names if name.startswith("echo-")]

    def finish(self):
        """In any state it can be stopped, and then nothing is left."""
        self.release.set()
        for sock in self.clients:
            sock.close()
        finishes(Call(self.server.stop))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(self.server.server_address, DEADLINE)
        self._port.close()
        eventually(lambda: not self.threads(), "threads are left")
        assert sorted(self.made) == sorted(self.lost)
        assert len(set(self.made)) == len(self.made)
        stats = self.server.stats()
        assert stats.active == 0
        assert stats.accepted == len(self.made) == sum(stats.ended.values())
        assert set(stats.ended) <= {"eof", "incomplete", "reset", "drain"}
        assert not stats.refused
        assert not stats.accept_errors
        eventually(lambda: descriptors() <= self.descriptors, "descriptors are left")


def descriptors():
    """How many this process has open; 0 where there is no ``/proc``."""
    return descriptors_of(os.getpid()) if os.path.isdir("/proc/self/fd") else 0


# One call at a time.


class Model:
    """A model: the state that the server must have after each call."""

    def __init__(self, world):
        self.world = world
        self.server = world.server
        self.closed = False
        self.served = False
        self.looped = False  # it has begun to accept more than one
        self.early = False  # shutdown() came before the first run
        self.run = None  # the call that serves, "start", or None
        self.only_one = False  # it is handle_request()
        self.stopped_well = None
        self.accepted = 0
        self.backlog = []
        self.live = {}  # clients whose session lives: "idle", "busy" or "flooded"

    # The calls, and their expected results.

    def start(self):
        if self.closed:
            with pytest.raises(RuntimeError, match="the server is closed"):
                self.server.start()
            return
        assert self.server.start() is self.server
        if self.run is None:
            self.run, self.only_one, self.early, self.served, self.looped = "start", False, False, True, True
            self._accept_all()

    def serve_forever(self):
        self._serve(self.server.serve_forever, False)

    def handle_request(self):
        self._serve(self.server.handle_request, True)

    def _serve(self, method, only_one):
        call = Call(method)
        if self.closed and only_one:
            with pytest.raises(ValueError, match="the server is closed"):
                call.result()
        elif self.closed or self.early:
            call.result()
            self.served, self.early = self.served or not self.closed, False
            self.looped = self.looped or not (self.closed or only_one)
        elif self.run is not None:
            with pytest.raises(RuntimeError, match="serving already"):
                call.result()
        else:
            self.run, self.only_one, self.served = call, only_one, True
            self.looped = self.looped or not only_one
            # Until it serves, a shutdown would find no run.
            eventually(lambda: self.server._echo_serving is not None or not call.is_alive())
            if only_one and self.backlog:
                self._accept(self.backlog.pop(0))
                self._has_ended()
            elif not only_one:
                self._accept_all()

    def _accept_all(self):
        while self.backlog:
            self._accept(self.backlog.pop(0))

    def _accept(self, sock):
        self.accepted += 1
        self.live[sock] = "idle"

    def _has_ended(self):
        run, self.run = self.run, None
        if isinstance(run, Call):
            assert run.result() is None

    def shutdown(self):
        Call(self.server.shutdown).result()
        if self.run is None:
            self.early = not self.served
        self._has_ended()

    def stop(self):
        """While handlers wait, which are released, and floods stand, which are read."""
        self._close(Call(self.server.stop), True)

    def server_close(self):
        self._close(Call(self.server.server_close), None)

    def stop_now(self):
        stuck = any(state != "idle" for state in self.live.values())
        call = Call(self.server.stop, 0)
        well = call.result()
        if not self.closed:
            if stuck or not self.live:
                assert well is (not stuck)
            self.stopped_well = well
            self._is_closed()
        assert well is self.stopped_well

    def _close(self, call, well):
        if not self.closed:
            self.world.release.set()
            while call.is_alive():
                self._read_along()
                call.join(0.001)
            self.stopped_well = True
            if self.looped:  # clients that wait are accepted, and drained
                self.accepted += len(self.backlog)
            self._is_closed()
        assert call.result() is (self.stopped_well if well else None)

    def _read_along(self):
        for sock in self.live:
            sock.settimeout(0.001)
            with contextlib.suppress(OSError):
                while sock.recv(1 << 20):
                    pass

    def _is_closed(self):
        self._has_ended()
        self.closed, self.early = True, False
        self.live.clear()
        self.backlog.clear()

    # Clients.

    def connect(self):
        if self.closed:
            with pytest.raises(ConnectionRefusedError):
                self.world.connect()
            return
        sock = self.world.connect()
        if self.run is None:
            self.backlog.append(sock)
            return
        self._accept(sock)
        if self.only_one:
            self._has_ended()

    def talk(self, rng):
        for sock in self._some(rng, "idle"):
            sock.sendall(b"hello\n")
            assert read_exactly(sock, 6) == b"hello\n"

    def busy(self, rng):
        for sock in self._some(rng, "idle"):
            self.world.release.clear()
            sock.sendall(b"wait\n")
            assert read_exactly(sock, 8) == b"waiting\n"
            self.live[sock] = "busy"

    def flood(self, rng):
        for sock in self._some(rng, "idle"):
            sock.sendall(b"flood\n")
            assert read_exactly(sock, 9) == b"flooding\n"
            self.live[sock] = "flooded"

    def released(self, rng):
        self.world.release.set()
        for sock in [sock for sock, state in self.live.items() if state == "busy"]:
            assert read_exactly(sock, 9) == b"released\n"
            self.live[sock] = "idle"

    def leave(self, rng):
        for sock in self._some(rng, "idle", "flooded"):
            sock.close()
            del self.live[sock]

    def _some(self, rng, *states):
        """One client in one of these states, if there is one."""
        fit = [sock for sock, state in self.live.items() if state in states]
        return [rng.choice(fit)] if fit else []

    # Conditions that hold while no call is running.

    def check(self):
        server = self.server
        if self.run is None:
            assert server._echo_serving is None
        elif isinstance(self.run, Call):
            assert self.run.is_alive()
        eventually(lambda: server.stats().accepted == self.accepted, "a client was not accepted, or a ghost was")
        eventually(lambda: len(self.world.made) == self.accepted)
        if not self.closed:
            eventually(lambda: server.stats().active == len(self.live), "a session lives too long, or not long enough")
        eventually(lambda: len(self.world.lost) == self.accepted - server.stats().active)
        stats = server.stats()
        assert stats.accepted == stats.active + sum(stats.ended.values())
        eventually(lambda: ("echo-server" in self.world.threads()) == (self.run == "start"))


RUNS = ["start", "serve_forever", "handle_request"]
ENDS = ["stop", "stop_now", "server_close"]
CLIENTS = ["talk", "busy", "flood", "released", "leave"]


def few_or_many(few, many):
    """Run ``few`` random orders by default, and four times ``many`` others with ``--all``."""
    stress = [pytest.param(many, part, marks=pytest.mark.stress) for part in range(1, 5)]
    return pytest.mark.parametrize("count, part", [(few, 0), *stress])


@few_or_many(10, 60)
def test_after_each_call_the_server_is_as_the_model_says(count, part, trials):
    for rng in trials(count):
        world = World(shutdown_timeout=DEADLINE)
        model = Model(world)
        calls = [*RUNS, "shutdown", "connect"]
        steps = [rng.choice([*calls, "connect", *CLIENTS]) for _ in range(rng.randint(2, 14))]
        steps += rng.choices(calls + ENDS, k=rng.randint(0, 4))
        print(*steps)
        for step in steps:
            act = getattr(model, step)
            act(rng) if step in CLIENTS else act()
            model.check()
        world.release.set()
        world.finish()
        if isinstance(model.run, Call):
            assert model.run.result() is None


# Many at a time.


def call_at_random(world, calls, rng):
    """Call methods of the server, without waiting for most of them; add (name, call) to ``calls``."""
    server = world.server
    names = rng.choices([*RUNS, "shutdown"], [4, 2, 2, 1], k=rng.randint(2, 6))
    for name in names + rng.choices(ENDS, k=rng.choice([0, 1, 2])):
        call = Call(server.stop, 0) if name == "stop_now" else Call(getattr(server, name))
        calls.append((name, call))
        if name not in ("serve_forever", "handle_request") or rng.random() < 0.3:
            call.join(rng.uniform(0, 0.01))


def visit_at_random(world, calls, rng):
    """Act as some clients: send, wait, do not read, make a handler call a method, and leave or stay."""
    for _ in range(rng.randint(1, 5)):
        with contextlib.suppress(OSError):  # the server may be closed, or close at any moment
            sock = world.connect()
            sock.settimeout(rng.uniform(0.001, 0.02))
            words = [b"hello", b"wait", b"flood", b"call shutdown", b"call stop", b"call server_close"]
            sock.sendall(rng.choices(words, [6, 2, 2, 1, 1, 1])[0] + rng.choice([b"", b"\n", b"\n"]))
            sock.recv(100)
            if rng.random() < 0.5:
                sock.close()


@few_or_many(20, 75)
def test_whatever_is_called_at_the_same_time_nothing_hangs_and_nothing_is_left(count, part, trials):
    for rng in trials(count):
        world = World(shutdown_timeout=rng.choice([0, 0.02, 0.2]), max_connections=rng.choice([None, 1, 2]))
        calls = []
        acts = [call_at_random] * rng.randint(1, 3) + [visit_at_random] * rng.randint(1, 3)
        threads = [Call(act, world, calls, type(rng)(rng.random())) for act in acts]
        for thread in threads:
            thread.result()
        world.finish()
        for _, call in calls:
            finishes(call)  # serve_forever() has returned, too
        check_history(calls)


def check_history(calls):
    """Check that each exception has a reason. (Calls by handlers are not checked.)"""
    closings = [call for name, call in calls if name in ENDS]
    for name, call in calls:
        if call.error is None:
            if name == "start":
                assert not any(other.ended < call.began for other in closings), "it started after it was closed"
            continue
        text = str(call.error)
        if name == "handle_request" and isinstance(call.error, ValueError):
            assert re.match("the server is closed", text)  # by one of these calls, or by a handler
            continue
        assert isinstance(call.error, RuntimeError), call.error
        if name == "start":
            assert re.match("the server is closed", text)
        else:
            assert name in ("serve_forever", "handle_request"), (name, call.error)
            assert re.match("the server is serving already", text)
            assert any(other is not call and other.began < call.ended for earlier, other in calls if earlier in RUNS)
