"""``--ping`` and ``--bench`` with a simulated network and clock: no server, no process, no wait.

The client has real sockets. ``Service`` objects serve their other ends whenever the client waits. Time passes only
then: the time that the client would wait if nothing comes, and ``ROUND_TRIP`` otherwise. So a bench of seconds takes
milliseconds, always has the same counts, and no timeout depends on how busy the machine is.

Each of the services at the end has one fault, which a measuring client must detect.
"""

import errno
import io
import math
import multiprocessing
import os
import selectors
import socket
import threading

import echo
from echo import CRLFFraming, LengthFraming, LineFraming
from echo.measure.bench import PERCENTILES as BENCH_PERCENTILES
from echo.measure.bench import Bench
from echo.measure.dialer import Dialer
from echo.measure.load import TICK, work
from echo.measure.ping import Ping
from echo.measure.report import Report

ADDRESS = "192.0.2.1:7"

ROUND_TRIP = 1_000_000
"""Nanoseconds for making a connection, and for each wait in which something comes."""

POLL = 100_000
"""Nanoseconds that pass while the client looks at its sockets and does not wait."""


class FixedFraming(echo.RawFraming):
    """Raw framing for a server that knows the length of the probes: messages of one fixed length."""

    def __init__(self, size):
        super().__init__(size)

    def decoder(self):
        return _FixedDecoder(self.max_message)


class _FixedDecoder(echo.Decoder):
    def feed(self, data):
        size = self.limit
        if len(data) == size and not self.pending:
            return [data]
        self.pending += data
        whole = len(self.pending) // size * size
        messages = [bytes(self.pending[start : start + size]) for start in range(0, whole, size)]
        del self.pending[:whole]
        return messages


class Service:
    """A connection as the service sees it. ``number``: how many messages have come, including the current one."""

    def __init__(self, network, sock):
        sock.setblocking(False)
        self.network = network
        self.number = 0
        self.is_open = True
        self._socket = sock
        self._decoder = network.framing.decoder()
        self._unsent = b""
        self.opened()

    def opened(self):
        """The connection has been made."""

    def received(self, data):
        for message in self._decoder.feed(data):
            if self.is_open:
                self.number += 1
                self.network.messages.append(message)
                self.network.times.append(self.network.time)
                self.answer(message)

    def answer(self, message):
        self.send(message)

    def send(self, message):
        self.send_raw(self.network.framing.encode(message))

    def send_raw(self, data):
        self._unsent += data
        self._flush()

    def close(self):
        self.is_open = False
        self._socket.close()

    def turn(self):
        """Send the bytes that have waited; read and answer the messages that have come."""
        while self.is_open:
            try:
                self._flush()
                data = self._socket.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                self.received(data)
            else:
                self.close()

    def _flush(self):
        while self._unsent and self.is_open:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            except BrokenPipeError:  # the client has gone
                self.close()
                return
            self._unsent = self._unsent[sent:]


class Network:
    """One host with one service, and the clock. It replaces an ``Endpoint`` and a ``Clock``.

    ``sessions``: a ``Service`` for each connection, in order. ``messages``: all messages that they received;
    ``times``: when. ``polled``: nanoseconds in which the client polled and nothing came, which is processor time.
    ``refusals``: how many more connections are refused. ``interrupted``: whether the user has ended the bench.
    """

    def __init__(self, service, framing):
        self.service = service
        self.framing = framing
        self.sessions = []
        self.messages = []
        self.times = []
        self.time = 0
        self.polled = 0
        self.refusals = 0
        self.interrupted = False

    def __str__(self):
        return ADDRESS

    busy = 0.0
    is_named = False
    look_up_takes = 0

    def resolve(self, timeout=None):
        self.time += self.look_up_takes
        return self

    def open(self, timeout):
        self.time += ROUND_TRIP
        if self.refusals:
            self.refusals -= 1
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        near, far = socket.socketpair()
        self.sessions.append(self.service(self, far))
        return near

    def now(self):
        return self.time

    def wall(self):
        return self.time / 1e9

    def cpu(self):
        return round(self.time * self.busy) + self.polled

    def sleep(self, seconds):
        self.time += math.ceil(seconds * 1e9)

    def selector(self):
        return _Selector(self)

    def dialer(self, connect, clock):
        return _DialsAtOnce(connect, clock)

    def written(self, line):
        """The client writes a line of its report. If the reader of its output pauses, this advances the clock."""

    def passed_on(self):
        """The load of a bench passes on its counts. If the bench does not take them, this advances the clock."""


class _DialsAtOnce(Dialer):
    """Connects in the calling thread, which advances the clock."""

    def dial(self, place, pause=0.0):
        self._attempt(place, pause)


class _Selector(selectors.DefaultSelector):
    """Runs the services, then advances the clock by the time that the client would wait."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def select(self, timeout=None):
        for session in self.network.sessions:
            session.turn()
        ready = super().select(0)
        if ready:
            self.network.time += ROUND_TRIP
        else:
            assert timeout is not None, "the client would wait for ever"
            assert timeout * 1000 < 1 << 31, "the system's selectors count milliseconds in an int"
            self.network.time += max(POLL, math.ceil(timeout * 1e9))
            if not timeout:
                self.network.polled += POLL
        return ready


class Simulation:
    """A client and its ``network``. ``run`` sets ``code``, the exit code; ``text``, the standard output; and
    ``details``, the standard error."""

    def __init__(self, service, framing, size, network=Network, **report_options):
        framings = {"line": LineFraming, "crlf": CRLFFraming, "length": LengthFraming}
        self.framing = FixedFraming(size) if framing == "raw" else framings[framing](max(size, 65536))
        self.network = network(service, self.framing)
        self.network.simulation = self
        self._out, self._err = io.StringIO(), io.StringIO()
        self.report = Report(self._write, stderr=self._err, wall=self.network.wall, **report_options)

    def _write(self, line):
        self.network.written(line)
        self._out.write(line + "\n")

    def run(self):
        try:
            self.code = self.client.run()
        finally:
            for session in self.network.sessions:
                session.close()
        self.text, self.details = self._out.getvalue(), self._err.getvalue()
        return self


def simulate_ping(
    service=Service,
    framing="line",
    *,
    size=64,
    count=3,
    interval=0.0,
    timeout=10.0,
    verify=True,
    new_connection=False,
    **report_and_network,
):
    """``--ping`` a service of this class; return the ``Simulation``. Without ``count`` the service ends it, by
    ``self.network.simulation.client.stop()``, which is what a signal does."""
    simulation = Simulation(service, framing, size, **report_and_network)
    simulation.client = Ping(
        simulation.network,
        simulation.framing,
        simulation.report,
        size=size,
        count=count,
        interval=interval,
        timeout=timeout,
        verify=verify,
        new_connection=new_connection,
        clock=simulation.network,
    )
    simulation.client.resolve()
    return simulation.run()


class SlowNames(Network):
    """A network whose name servers take their time."""

    is_named = True
    look_up_takes = 100_000_000


def simulate_bench(
    service=Service,
    framing="line",
    *,
    size=64,
    connections=2,
    duration=0.2,
    depth=None,
    rate=None,
    timeout=10.0,
    interval=None,
    percentiles=BENCH_PERCENTILES,
    verify=True,
    reconnect=False,
    new_connection=False,
    **report_and_network,
):
    """``--bench`` a service of this class; return the ``Simulation``. A thread does the work of the load's processes.
    ``self.network.interrupted = True`` in the service ends it as a signal does."""
    simulation = Simulation(service, framing, size, **report_and_network)

    def start_load(plan):
        pipe, theirs = multiprocessing.Pipe()
        load = _Load(theirs, plan._replace(lanes=list(range(connections))), simulation.network)
        load.start()
        yield pipe, load, list(range(connections))

    simulation.client = Bench(
        simulation.network,
        simulation.framing,
        simulation.report,
        connections=connections,
        duration=duration,
        size=size,
        depth=depth,
        rate=rate,
        timeout=timeout,
        interval=interval,
        percentiles=percentiles,
        verify=verify,
        reconnect=reconnect,
        new_connection=new_connection,
        clock=_OneTickEachTime(),
        start_load=start_load,
    )
    try:
        simulation.client.connect()
        return simulation.run()
    finally:
        simulation.client.close()


class _OneTickEachTime:
    """The clock of the bench itself, which reads it once for each report of the load."""

    def __init__(self):
        self._time = 0

    def now(self):
        self._time += TICK
        return self._time


class _Load(threading.Thread):
    """Replaces a process of the load for the bench."""

    def __init__(self, pipe, plan, network):
        super().__init__(daemon=True)
        self._pipe, self._plan, self._network = pipe, plan, network

    def run(self):
        with self._pipe:
            work(self, self._plan, self._network)

    def kill(self):
        pass  # the bench has closed the pipe, which ends the work

    # The pipe of the load.

    def send(self, data):
        self._network.passed_on()
        self._pipe.send(data)

    def poll(self):
        return self._network.interrupted or self._pipe.poll()

    def recv(self):
        return "end" if self._network.interrupted else self._pipe.recv()


# Services, each with one fault.


class EchoesBytes(Service):
    """No fault: the echo of RFC 862, which knows no messages."""

    def received(self, data):
        self.send_raw(data)


class FlipsAByteOfEachThird(Service):
    def answer(self, message):
        if self.number % 3 == 0:
            message = b"%b%c%b" % (message[:30], message[30] ^ 1, message[31:])
        self.send(message)


class CutsEachThird(Service):
    def answer(self, message):
        self.send(message if self.number % 3 else message[:-7])


class Shouts(Service):
    """Changes the hexadecimal digits of the checksum to capital letters, too."""

    def answer(self, message):
        self.send(message[:12] + message[12:].upper())


class DropsEachFifth(Service):
    def answer(self, message):
        if self.number % 5:
            self.send(message)


class SwapsPairs(Service):
    def answer(self, message):
        if self.number % 2:
            self.held = message
        else:
            self.send(message)
            self.send(self.held)


class SaysItTwice(Service):
    def answer(self, message):
        self.send(message)
        self.send(message)


class LagsByOne(Service):
    """Answers each message with the one before it."""

    held = None

    def answer(self, message):
        if self.held is not None:
            self.send(self.held)
        self.held = message


class ClosesAtTheFourth(Service):
    def answer(self, message):
        if self.number == 4:
            self.close()
        else:
            self.send(message)


class NeverAnswers(Service):
    def answer(self, message):
        pass


class Greets(Service):
    def opened(self):
        self.send(b"220 welcome to a service that greets")


class SpeaksUnasked(Service):
    """Sends a word of its own after each third reply."""

    def answer(self, message):
        self.send(message)
        if self.number % 3 == 0:
            self.send(b"by the way")


class SendsALineThatIsTooLong(Service):
    def opened(self):
        self.send_raw(b"x" * 65537)
