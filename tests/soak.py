"""A soak: servers under mixed load for as long as you like, and a table of what went wrong and what grew.

    python3 tests/soak.py [-d 10m] [--seed N] [--tls] [-- OPTIONS OF echo.server]

Two servers run as processes: one stays the whole time and is measured, one is restarted each minute with SIGTERM, under
full load, over a listening socket that this script keeps (``LISTEN_FDS``), so that no client is refused. Some clients
compare every byte; others reset, send one byte at a time, do not read, or send too much or junk.

An echo is *lost* if no reply came although the server's system had acknowledged the message before a SIGTERM, or there
was none. So that this is certain, the server is held (SIGSTOP) for a moment before its SIGTERM. A message that was sent
later may be answered or not. A figure *grows* if the line fitted to its samples rises
over the sampled time by more than ``ALLOWANCE``. The exit code is 0 if nothing was wrong, lost, refused or growing,
else 1.
"""

import argparse
import collections
import fcntl
import json
import math
import os
import random
import resource
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from echo.cli import arguments  # noqa: E402
from support.activation import copies_of, launcher  # noqa: E402
from support.certificates import Certificates  # noqa: E402

PROG = "soak.py"
MAX_MESSAGE = 1 << 20
PATIENCE = 60.0  # seconds for anything; a restart is part of it, and the machine may be busy
OPTIONS = ["--log-format", "json", "--no-log-messages", "--max-message", str(MAX_MESSAGE), "--shutdown-timeout", "3s"]
OPTIONS += ["-i", "8s", "--message-timeout", "4s", "--send-timeout", "2s"]
ALLOWANCE = {"descriptors": 30, "threads": 30, "RSS, KiB": 16384}  # what all clients that there may be at a time cost
MIN_SAMPLES = 10  # for a line that means something; a soak goes on until it has so many, however short it is
NOTHING = -1  # the number of no message
HELD = 0.1  # seconds, for what was sent to arrive and to be acknowledged, which may be delayed by 40 ms


class Tally:
    """The faults and counts that all threads report."""

    def __init__(self):
        self._lock = threading.Lock()
        self.counts = collections.Counter()
        self.faults = []

    def count(self, what, number=1):
        with self._lock:
            self.counts[what] += number

    def fault(self, what, server, peer, text):
        with self._lock:
            self.faults.append((time.strftime("%H:%M:%S"), what, server.name, peer, text))


class Stop:
    """A stop of a process. ``arrived`` has the number of the last message of each connection that has to be answered;
    ``ended`` is in seconds of ``time.monotonic()``."""

    def __init__(self, arrived):
        self.arrived = arrived
        self.ended = math.inf


class Server:
    """A listening socket of ours, and the process that serves it at the moment."""

    def __init__(self, name, folder, options, certificates, tally):
        self.name = name
        self.tally = tally
        self.stops = []
        self.connections = set()
        self.restarts = 0
        self._log = os.path.join(folder, f"{name}.log")
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address = self._listener.getsockname()
        self.context = None
        self._options = OPTIONS + options
        if certificates is not None:
            self.context = ssl.create_default_context(cafile=certificates.authority.certificate)
            pair = certificates.server
            self._options += ["--tls-cert", pair.certificate, "--tls-key", pair.key]
        self.start()

    def start(self):
        # So that RSS shows the memory in use: with an arena for each thread, and large blocks kept between small ones,
        # it creeps up for minutes though malloc_trim() would lower it (36 MB to 22 after 25,000 sessions with TLS).
        environment = dict(os.environ, MALLOC_ARENA_MAX="1", MALLOC_MMAP_THRESHOLD_="32768", LISTEN_FDS="1")
        environment["PYTHONPATH"] = os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])
        with open(self._log, "ab") as log:
            begin = log.tell()
            copies = copies_of(self._listener)
            command = [sys.executable, *launcher(copies), "-m", "echo.server", *self._options]
            self.popen = subprocess.Popen(command, stderr=log, pass_fds=copies, env=environment)
            os.close(*copies)
        # Wait until it serves: before that, a signal would kill it.
        deadline = time.monotonic() + PATIENCE
        while not any(record["event"] == "listening" for record in self.records(begin)):
            if self.popen.poll() is not None or time.monotonic() > deadline:
                self.popen.kill()
                logged = [record["message"] for record in self.records(begin)]
                raise OSError(f"the server does not start: {logged[-1] if logged else 'it has logged nothing'}")
            time.sleep(0.01)

    def records(self, begin=0):
        """The log records of its processes. A line that is not a record, as in a traceback, becomes a record itself."""
        with open(self._log, encoding="utf-8") as log:
            log.seek(begin)
            for line in log:
                if line.startswith("{") and line.endswith("}\n"):
                    yield json.loads(line)
                else:
                    yield {"level": "ERROR", "message": line.rstrip(), "event": "stderr"}

    def stop(self):
        self.popen.send_signal(signal.SIGSTOP)
        time.sleep(HELD)
        self.stops.append(Stop({connection: connection.arrived() for connection in self.connections.copy()}))
        self.popen.send_signal(signal.SIGTERM)
        self.popen.send_signal(signal.SIGCONT)
        try:
            code = self.popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            code = self.popen.wait()
        self.stops[-1].ended = time.monotonic() + HELD  # the next process needs longer until its first reply
        if code not in (0, 1):  # 1: it had to cut a session
            self.tally.fault("died", self, "", f"the server ended with code {code}")

    def keep_restarting(self, seconds, over):
        while not over.wait(seconds):
            self.stop()
            try:
                self.start()
            except OSError as exc:
                self.tally.fault("died", self, "", str(exc))
                return
            self.restarts += 1

    def leave_nobody_waiting(self):
        """If the process is gone, reset the clients that wait in its backlog."""
        if self.popen.poll() is not None:
            self._listener.close()

    def settle(self):
        """When no client is connected any more, the sums that it logs at SIGUSR1 must agree."""
        begin = os.path.getsize(self._log)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.popen.poll() is None:
            self.popen.send_signal(signal.SIGUSR1)
            time.sleep(0.2)
            counted = [record for record in self.records(begin) if record.get("event") == "statistics"]
            if counted and not counted[-1]["active"]:
                ended, refused = (sum(counted[-1][name].values()) for name in ("ended", "refused"))
                if counted[-1]["accepted"] == ended + refused:
                    return
        self.tally.fault("books", self, "", "accepted is not ended and refused, when nobody is connected")

    def is_excused(self, connection):
        """Whether the last message of this connection may stay unanswered."""
        return any(
            connection.served_at < stop.ended and stop.arrived.get(connection, NOTHING) < connection.number
            for stop in self.stops
        )

    def measure(self):
        proc = f"/proc/{self.popen.pid}/"
        with open(proc + "statm") as file:
            pages = int(file.read().split()[1])
        return len(os.listdir(proc + "fd")), len(os.listdir(proc + "task")), pages * resource.getpagesize() // 1024


class Over(Exception):
    """This connection cannot be used any more; its fault, if any, is counted."""


class Connection:
    """A client's connection. It knows which bytes must come back, and which side is at fault if they do not."""

    def __init__(self, server, with_tls):
        self.server = server
        self.tally = server.tally
        self.began = time.monotonic()
        self.served_at = self.began  # or at the first reply: it may have waited in the backlog for the next process
        self.number = 0  # of the message that is being sent, or was sent last; 0 is the handshake
        self._sent = NOTHING
        try:
            self.sock = socket.create_connection(server.address, PATIENCE)
        except OSError as exc:
            self.tally.fault("refused", server, "", str(exc))
            raise Over from exc
        self.peer = "{}:{}".format(*self.sock.getsockname())
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tally.count("sessions")
        if with_tls:
            try:
                self.sock = server.context.wrap_socket(self.sock, server_hostname="localhost")
                self.served_at = time.monotonic()
            except OSError as exc:
                self.sock.close()
                raise self._unanswered(f"handshake: {exc}") from exc

    def say(self, data):
        self.number += 1
        try:
            self.sock.sendall(data)
        except OSError as exc:
            raise self._unanswered(f"while sending: {exc}") from exc
        self._sent = self.number

    def arrived(self):
        """The number of the last message that was sent, if its last byte is acknowledged."""
        sent = self._sent  # first: the next message may be sent meanwhile
        try:
            on_their_way = fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4))  # tcp(7): bytes that are not acknowledged
        except (OSError, ValueError):  # closed
            return NOTHING
        return sent if on_their_way == bytes(4) else NOTHING

    def hear(self, expected, echoes=1):
        parts, size = [], 0
        while size < len(expected):
            try:
                data = self.sock.recv(min(65536, len(expected) - size))
            except OSError as exc:
                raise self._unanswered(str(exc)) from exc
            if not data:
                raise self._unanswered(f"the end, after {size} of {len(expected)} bytes")
            parts.append(data)
            size += len(data)
        if b"".join(parts) != expected:
            self.tally.fault("wrong", self.server, self.peer, f"{b''.join(parts)[:40]!r} for {expected[:40]!r}")
            raise Over
        if self.number == 1:
            self.served_at = time.monotonic()
        self.tally.count("echoes", echoes)

    def _unanswered(self, text):
        if self.server.is_excused(self):
            self.tally.count("cut off by a restart")
        else:
            self.tally.fault("lost", self.server, self.peer, text)
        return Over()

    def must_end(self, over):
        """Read until the server ends the session, as it must. (``Load`` reports it if it does not.)"""
        self.sock.settimeout(0.5)
        while time.monotonic() < self.began + 2 * PATIENCE:
            try:
                if not self.sock.recv(65536):
                    return
            except socket.timeout:
                if over.is_set():
                    return
        raise socket.timeout


# The clients: one session each, until ``over`` is set or the session ends. Those that misbehave may get an OSError.


def line(rng, longest):
    return (
        rng.getrandbits(8 * rng.randint(1, longest)).to_bytes(longest, "big").lstrip(b"\0").replace(b"\n", b".") + b"\n"
    )


def ping_pong(connection, rng, over):
    for _ in range(rng.randint(1, 500)):
        message = line(rng, rng.choice([10, 100, 3000]))
        connection.say(message)
        connection.hear(message)
        if over.wait(0.001):
            break


def pipelined(connection, rng, over):
    """Send without a pause, so that at a SIGTERM much has arrived and was not read."""
    messages = [line(rng, 200) for _ in range(rng.randint(2, 500))]
    data = b"".join(messages)
    for _ in range(rng.randint(1, 100)):
        connection.say(data)
        connection.hear(data, len(messages))
        if over.is_set():
            break


def big(connection, rng, over):
    for _ in range(rng.randint(1, 5)):
        message = line(rng, rng.randint(100_000, MAX_MESSAGE))
        connection.say(message)
        connection.hear(message)
        if over.wait(0.1):
            break


def short(connection, rng, over):
    message = line(rng, 100)
    connection.say(message + b"exit\n")
    connection.hear(message)
    connection.must_end(over)


def too_long(connection, rng, over):
    connection.say(b"before\n")
    connection.hear(b"before\n")
    connection.sock.sendall(b"x" * (MAX_MESSAGE + rng.randint(1, 100_000)))
    connection.must_end(over)


def idle(connection, rng, over):
    connection.must_end(over)


def dripper(connection, rng, over):
    while not over.wait(0.1):
        connection.sock.sendall(b"x")
        if time.monotonic() > connection.began + PATIENCE:
            raise socket.timeout


def slow_reader(connection, rng, over):
    connection.sock.settimeout(0.5)
    while not over.is_set():
        try:
            connection.sock.sendall(b"unread\n" * 20_000)
        except socket.timeout:
            if time.monotonic() > connection.began + PATIENCE:
                raise


def resetting(connection, rng, over):
    connection.sock.sendall(rng.choice([b"", b"half", b"whole\n", b"flood\n" * 1000]))
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def junk(connection, rng, over):
    connection.sock.sendall(rng.getrandbits(8 * 5000).to_bytes(5000, "big"))
    if not isinstance(connection.sock, ssl.SSLSocket):
        connection.sock.shutdown(socket.SHUT_WR)
    connection.must_end(over)


COMPARING = [ping_pong, ping_pong, pipelined, pipelined, pipelined, big, short]
KINDS = [*COMPARING, too_long, idle, dripper, slow_reader, resetting, junk]


class Load(threading.Thread):
    """Clients of one kind, one after the other."""

    def __init__(self, kind, server, seed, over):
        super().__init__(daemon=True)
        self._kind, self._server, self._over = kind, server, over
        self._rng = random.Random(seed)
        self.start()

    def run(self):
        server, rng = self._server, self._rng
        while not self._over.wait(rng.uniform(0, 0.02)):
            try:
                may_be_plain = self._kind in (junk, resetting) and rng.random() < 0.5
                connection = Connection(server, server.context is not None and not may_be_plain)
                server.connections.add(connection)
                try:
                    with connection.sock:
                        self._kind(connection, rng, self._over)
                finally:
                    server.connections.remove(connection)
            except Over:
                self._over.wait(0.1)  # do not report the same fault a thousand times a second
            except socket.timeout:
                server.tally.fault("endless", server, connection.peer, f"a session of {self._kind.__name__}")
            except OSError:
                pass
            except Exception as exc:
                server.tally.fault("soak.py", server, "", f"a fault of its own: {exc!r}")
                return


# The report.


def fit(samples):
    """The slope of the least-squares line, and its rise over all samples; ``samples`` are (second, value)."""
    times, values = zip(*samples)
    middle, mean = sum(times) / len(times), sum(values) / len(values)
    spread = sum((at - middle) ** 2 for at in times)
    slope = sum((at - middle) * (value - mean) for at, value in samples) / spread if spread else 0.0
    return slope, slope * (times[-1] - times[0])


def report(tally, servers, samples):
    """Print the table; return whether all is well."""
    reasons = collections.Counter()
    cut = set()
    for server in servers:
        for record in server.records():
            if record["level"] in ("ERROR", "CRITICAL"):
                tally.fault("error", server, record.get("peer", ""), record["message"])
            if record["event"] in ("disconnected", "refused"):
                reasons[record["reason"]] += 1
            elif record["event"] == "cut":
                reasons["(of these, cut)"] += 1
                cut.add((server.name, record["peer"]))
    faults = [fault for fault in tally.faults if fault[1] != "lost" or fault[2:4] not in cut]
    kinds = collections.Counter(fault[1] for fault in faults)
    rows = [("echoes", tally.counts["echoes"])]
    rows += [(kind, kinds.pop(kind, 0)) for kind in ("wrong", "lost", "refused")] + sorted(kinds.items())
    rows += [
        ("cut off by a restart", tally.counts["cut off by a restart"]),
        ("client sessions", tally.counts["sessions"]),
    ]
    rows += [(f"  ended: {reason}", count) for reason, count in reasons.most_common()]
    rows += [("restarts", sum(server.restarts for server in servers))]
    for name, value in rows:
        print(f"{name:24} {value:>12,}")
    growing = not samples
    print(f"\n{servers[0].name + ' server':24} {'first':>12} {'last':>12} {'per hour':>12}")
    for index, (name, allowance) in enumerate(ALLOWANCE.items() if samples else ()):
        slope, rise = fit([(sample[0], sample[1 + index]) for sample in samples])
        verdict = "grows" if rise > allowance else "flat"
        growing |= rise > allowance
        first, last = samples[0][1 + index], samples[-1][1 + index]
        print(f"{name:24} {first:>12,} {last:>12,} {slope * 3600:>+12,.1f}  {verdict} ({rise:+.1f} of {allowance:,})")
    for when, what, server, peer, text in faults[:20]:
        print(f"{when} {what}: {server} {peer} {text}")
    return not faults and not growing


def soak(options, folder):
    certificates = Certificates(folder) if options.tls else None
    tally = Tally()
    over = threading.Event()
    servers = []
    samples = []
    try:
        for name in ("steady", "restarted"):
            servers.append(Server(name, folder, options.options, certificates, tally))
        steady, restarted = servers
        loads = [
            Load(kind, server, f"{options.seed}/{server.name}/{number}", over)
            for number, kind in enumerate(KINDS)
            for server in servers
        ]
        restarts = threading.Thread(target=restarted.keep_restarting, args=(options.restart, over), daemon=True)
        restarts.start()
        began = now = time.monotonic()
        while (now < began + options.duration or len(samples) < MIN_SAMPLES) and steady.popen.poll() is None:
            time.sleep(min(3.0, options.duration / 20))
            now = time.monotonic()
            if now >= began + min(120.0, options.duration / 3) and steady.popen.poll() is None:
                samples.append((now - began, *steady.measure()))
            if sys.stderr.isatty():
                text = f"{now - began:6.0f} s  {tally.counts['echoes']:,} echoes, {len(tally.faults)} faults"
                print(f"\r{text}, {restarted.restarts} restarts ", end="", file=sys.stderr, flush=True)
        over.set()
        for server in servers:
            server.leave_nobody_waiting()
        for thread in [*loads, restarts]:
            thread.join(3 * PATIENCE)
            if thread.is_alive():
                tally.fault("soak.py", steady, "", f"{thread} does not end")
        for server in servers:
            server.settle()
            server.stop()
    finally:
        over.set()
        for server in servers:
            if server.popen.poll() is None:
                server.popen.kill()
                server.popen.wait()
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return 0 if report(tally, servers, samples) else 1


def main(argv=None):
    parser = arguments.ArgumentParser(
        prog=PROG, description="Servers under mixed load, for long; what grows, what is lost."
    )
    add = parser.add_argument
    add("-d", "--duration", type=arguments.duration, default=600.0, metavar="TIME", help="how long (default: 10m)")
    add("--restart", type=arguments.duration, default=60.0, metavar="TIME", help="between restarts (default: 1m)")
    add("--seed", default="1", help="of all that is random (default: %(default)s)")
    add("--tls", action="store_true", help="with TLS")
    add("options", nargs=argparse.REMAINDER, metavar="-- OPTIONS", help="of echo.server, added to the soak's own")
    options = parser.parse_args(argv)
    options.options = options.options[1:] if options.options[:1] == ["--"] else options.options
    if not options.duration or not options.restart:
        arguments.fail(PROG, "a soak takes some time; give -d and --restart more than 0", 2)
    if not os.path.isdir("/proc/self/fd"):
        arguments.fail(PROG, "there is no /proc here to look at the servers in; run it on Linux", 2)
    with tempfile.TemporaryDirectory() as folder:
        try:
            return soak(options, folder)
        except KeyboardInterrupt:
            arguments.fail(PROG, "interrupted", 1)
        except (OSError, subprocess.CalledProcessError) as exc:
            arguments.fail(PROG, str(exc), 1)


if __name__ == "__main__":
    sys.exit(main())
