"""The faults that a server has made, compared with the reports of ``--ping`` and ``--bench``, as text and as JSON.

The server here uses only sockets. It makes each fault on purpose and counts it. A bench has a timetable, so the server
also knows which messages belong to the warm-up: the first ``WARM_UP`` of each connection.

``pytest -s`` prints each row of the comparison.
"""

import collections
import contextlib
import re
import socket
import struct
import threading
import time

import pytest

from echo.client import dialing
from support import DEADLINE
from support.measuring import events, run_client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(DEADLINE * 10)]

PINGS = 14  # the last one must have no fault: a ping ends with its reply, and misses anything later
CONNECTIONS = 2
DUE = 200  # in half a second, after a warm-up of a tenth of it
WARM_UP = DUE // CONNECTIONS // 10
BENCH = ("--bench", "-P", str(CONNECTIONS), "--rate", str(2 * DUE), "-d", "500ms")
PING = ("--ping", "-c", str(PINGS))
PATIENT = ("-w", "5s")  # for a reply that is not lost, even on a busy machine
DELAY = 0.05  # seconds
STALL = 0.3
LOOK_UP = 0.2


class Truth:
    """A line echo whose ``fault(connection, number, line)`` returns the reply to a line, a list of pieces of bytes.
    ``number`` counts the lines of a connection from 1. ``done``: how often the fault was made; ``counted``: how often
    outside the warm-up of a bench."""

    def __init__(self, fault, greeting=b""):
        self._fault = fault
        self._greeting = greeting
        self._lock = threading.Lock()
        self.lines = self.done = self.counted = self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def did(self, number):
        with self._lock:
            self.done += 1
            self.counted += number > WARM_UP

    def close(self):
        self._listener.close()

    def _accept(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(Connection(sock, self.connections),), daemon=True).start()

    def _serve(self, connection):
        sock = connection.sock
        with contextlib.suppress(OSError), sock, sock.makefile("rb") as file:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(self._greeting)
            for number, line in enumerate(file, 1):
                if connection.is_cut:
                    continue  # a plain close with unread input would be a reset
                with self._lock:
                    self.lines += 1
                for piece in self._fault(self, connection, number, line):
                    connection.send(piece)


class Connection:
    """A connection of the server, with its number: ``send`` at once or later, ``cut`` it with or without a reset."""

    def __init__(self, sock, number):
        self.sock = sock
        self.number = number
        self.held = []
        self.is_cut = False
        self._later = collections.deque()
        self._has_more = threading.Condition()

    def send(self, data):
        self.sock.sendall(data)

    def send_later(self, data, seconds):
        """In the order of the calls, from a thread."""
        with self._has_more:
            if not self._later:
                threading.Thread(target=self._send_all, daemon=True).start()
            self._later.append((time.monotonic() + seconds, data))

    def _send_all(self):
        while True:
            with self._has_more:
                due, data = self._later[0]
            time.sleep(max(0, due - time.monotonic()))
            with contextlib.suppress(OSError):
                self.send(data)
            with self._has_more:
                self._later.popleft()
                if not self._later:
                    return

    def cut(self, resets):
        if resets:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise OSError("cut")
        self.sock.shutdown(socket.SHUT_WR)
        self.is_cut = True


def each_sixth(change):
    """A fault: ``change`` is applied to each sixth line."""

    def fault(server, connection, number, line):
        if number % 6:
            return [line]
        server.did(number)
        return change(line)

    return fault


def delays(server, connection, number, line):
    connection.send_later(line, DELAY)
    return []


def stalls(server, connection, number, line):
    if number == PINGS // 2 or number == WARM_UP * 5:
        server.did(number)
        time.sleep(STALL)
    return [line]


def swaps(server, connection, number, line):
    if number % 2:
        connection.held = [line]
        return []
    server.did(number)
    return [line, *connection.held]


def cuts(resets, at):
    """A fault of the first two connections, at this line."""

    def fault(server, connection, number, line):
        if number == at and connection.number <= 2:
            server.did(number)
            connection.cut(resets)
            return []
        return [line]

    return fault


def flip(line):
    return [line[:30] + bytes([line[30] ^ 1]) + line[31:]]


COUNTED = {
    # The fault, and the name under which both report it.
    "drop": (each_sixth(lambda line: []), "lost"),
    "duplicate": (each_sixth(lambda line: [line, line]), "doubled"),
    "reorder": (swaps, "out of order"),
    "truncate": (each_sixth(lambda line: [line[:-8] + b"\n"]), "corrupted"),
    "flip": (each_sixth(flip), "corrupted"),
    "insert": (each_sixth(lambda line: [line[:40] + b"x" + line[40:]]), "corrupted"),
    "own words": (each_sixth(lambda line: [b"by the way\n", line]), "not asked for"),
}


def ask(truth, *options):
    """Run the command twice, with text and with JSON, each with its own server, ``truth()``. Return the servers, the
    text, and the JSON summary."""
    servers, outputs = [], []
    for form in ((), ("-J",)):
        with contextlib.closing(truth()) as server:
            code, out, err = run_client(*server.address, *PATIENT, *options, *form)
            assert "Traceback" not in err
            servers.append(server)
            outputs.append((code, out))
    (code, text), (code_with_json, json) = outputs
    assert code == code_with_json
    return servers, text, events(json)[-1], code


def in_text(text, name):
    """The number before ``name`` in the summary, after a check that it is the only one."""
    summary = text.partition(" echo statistics ---")[2] or text.partition("\nmessages ")[2].partition("\nwarm-up")[0]
    found = set(re.findall(rf"\b([\d,]+) {re.escape(name)}\b", summary))
    assert len(found) <= 1, summary
    return int(found.pop().replace(",", "")) if found else 0


def row(fault, server, ping, bench):
    print(f"\n| {fault} | {server} | {ping} | {bench} |")


@pytest.mark.parametrize("fault", COUNTED)
def test_each_fault_is_counted_as_often_as_it_was_done(fault):
    function, name = COUNTED[fault]
    field = name.replace(" ", "_")
    servers, text, ping, _ = ask(lambda: Truth(function), *PING, "-i", "1ms")
    for server, said in zip(servers, (in_text(text, name), ping[field])):
        assert said == server.done > 0
        assert server.lines == PINGS == ping["transmitted"]
    assert ping["transmitted"] == ping["received"] + ping["corrupted"] + ping["lost"]
    ping_did = servers[1].done
    servers, text, bench, _ = ask(lambda: Truth(function), *BENCH)
    for server, said in zip(servers, (in_text(text, name), bench[field])):
        # An unprompted line belongs to no message. It counts from its arrival, and the line before it may be late.
        assert 0 <= said - server.counted <= CONNECTIONS * (name == "not asked for")
        assert server.counted > 0
        assert server.lines == DUE * 11 // 10
    assert bench["warm_up"] == {name: servers[1].done - bench[field]}
    assert (bench["due"], bench["never_sent"]) == (DUE, 0)
    assert bench["came"] + bench["lost"] == DUE
    assert bench["came"] == bench["rtt_samples"] + bench["corrupted"]
    counted, warm_up = servers[1].counted, servers[1].done - servers[1].counted
    row(
        fault,
        f"ping {ping_did} of {PINGS}; bench {counted} of {DUE} and {warm_up} in the warm-up",
        f"{ping[field]} {name}",
        f"{bench[field]} {name}; warm-up {bench['warm_up'][name]}",
    )


def test_a_greeting_is_counted_once_for_each_connection():
    servers, text, ping, _ = ask(lambda: Truth(lambda *_: [_[3]], b"220 welcome\n"), *PING, "-i", "0")
    assert in_text(text, "not asked for") == ping["not_asked_for"] == servers[1].connections == 1
    assert ping["received"] == PINGS
    servers, text, bench, _ = ask(lambda: Truth(lambda *_: [_[3]], b"220 welcome\n"), *BENCH)
    assert bench["not_asked_for"] + bench["warm_up"]["not asked for"] == servers[1].connections == CONNECTIONS
    assert (bench["came"], bench["due"]) == (DUE, DUE)
    row("banner", f"ping 1, bench {CONNECTIONS}", f"{ping['not_asked_for']} not asked for", bench["warm_up"])


@pytest.mark.parametrize("fault, length", [(delays, DELAY), (stalls, STALL)], ids=["delay", "stall"])
def test_a_delay_is_in_the_round_trips(fault, length):
    figure = "min" if fault is delays else "max"
    _, _, ping, code = ask(lambda: Truth(fault), *PING, "-i", "0")
    assert (code, ping["received"]) == (0, PINGS)
    assert ping[f"rtt_{figure}_us"] >= length * 1e6
    assert fault is delays or ping["rtt_p50_us"] < length * 1e6  # only one met the stall
    _, _, bench, code = ask(lambda: Truth(fault), *BENCH)
    assert (code, bench["came"]) == (0, DUE)
    assert bench[f"rtt_{figure}_us"] >= bench[f"raw_{figure}_us"] >= length * 1e6
    shown = {mode: f"{figure} {found[f'rtt_{figure}_us'] / 1000:.1f} ms" for mode, found in (("p", ping), ("b", bench))}
    row(fault.__name__, f"{length * 1000:g} ms", shown["p"], shown["b"])


@pytest.mark.parametrize("resets", [False, True], ids=["close", "reset"])
def test_a_connection_that_is_cut_costs_what_was_on_its_way(resets):
    why = "the connection was lost: Connection reset by peer" if resets else "the server has ended the session"
    servers, text, ping, code = ask(lambda: Truth(cuts(resets, 3)), *PING, "-i", "0")
    assert code == 1
    for server, lost in zip(servers, (in_text(text, "lost"), ping["lost"])):
        assert lost == server.done == 2  # of two connections the third line
        assert server.connections == 3
    assert text.count(f"lost: {why}") == 2
    assert ping["received"] == PINGS - 2
    for renewed in ((), ("--reconnect",)):
        servers, text, bench, code = ask(lambda: Truth(cuts(resets, 5 * WARM_UP)), *BENCH, *renewed)
        assert code == 1
        assert sum(bench["errors"].values()) == CONNECTIONS == servers[1].done
        assert set(bench["errors"]) == {why}
        assert bench["due"] == DUE == bench["came"] + bench["lost"] + bench["never_sent"]
        if not renewed:
            assert bench["came"] == CONNECTIONS * (4 * WARM_UP - 1)  # all before that line, without the warm-up
        else:
            assert (bench["reconnects"], bench["outages"] > 0) == (CONNECTIONS, True)
            assert bench["came"] > CONNECTIONS * (4 * WARM_UP - 1)
        row(
            f"{'reset' if resets else 'close'} {''.join(renewed)}",
            f"ping 2, bench {servers[1].done}",
            f"{ping['lost']} lost, {ping['outages']} outages",
            {name: bench[name] for name in ("errors", "came", "lost", "never_sent", "reconnects", "outages")},
        )


def test_a_slow_name_server_is_in_the_look_up_alone(monkeypatch):
    real = socket.getaddrinfo

    def slow(host, *args, **options):
        if host != "localhost":
            return real(host, *args, **options)
        if not options.get("flags"):
            time.sleep(LOOK_UP)
            return real("127.0.0.1", *args, **options)
        raise socket.gaierror(socket.EAI_NONAME, "not an address")

    monkeypatch.setattr(dialing.socket, "getaddrinfo", slow)
    for options in ((*PING, "-i", "0"), BENCH):
        with contextlib.closing(Truth(lambda *_: [_[3]])) as server:
            code, out, _ = run_client("localhost", server.address[1], *PATIENT, *options, "-J")
        summary = events(out)[-1]
        assert code == 0
        assert summary["lookup_us"] >= LOOK_UP * 1e6
        assert summary["connect_samples"] == server.connections
        assert summary["connect_min_us"] < LOOK_UP * 1e6
        row(f"slow resolver {options[0]}", f"{LOOK_UP * 1000:g} ms", summary["lookup_us"], summary["connect_min_us"])


@pytest.mark.parametrize("mode", [PING, BENCH], ids=["ping", "bench"])
def test_a_name_server_that_does_not_answer_is_named_in_time(monkeypatch, mode):
    ended = threading.Event()

    def dead(host, *args, **options):
        if options.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "not an address")
        ended.wait(DEADLINE)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(dialing.socket, "getaddrinfo", dead)
    try:
        code, out, err = run_client("some.host.example", 7, *mode, "-w", "200ms", "-J")
    finally:
        ended.set()
    assert code == 1
    assert "the look-up of the name took more than 0.2 s" in err
    assert "look-up" in events(out)[-1]["error"]
    row("dead resolver", "no answer", err.strip(), "")
