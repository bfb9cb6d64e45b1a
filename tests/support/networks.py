"""Networks for tests: two hosts with a cable between them, and a bad path over the loopback.

A host is a network namespace without a name, held by a descriptor. It vanishes with the process that made it, however
that ends, so nothing has to be deleted. The kernel may lack ``netem``, so a thread plays the cable that loses, delays
and reorders packets (``LossyLan``). The bad path is a relay of connections, which tests control to the byte: all that
TCP shows a program of a bad path is pauses, odd pieces, silence and ends.
"""

import contextlib
import ctypes
import fcntl
import functools
import heapq
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from . import DEADLINE, eventually
from .measuring import finish, read_until

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


@functools.lru_cache(maxsize=None)
def problem():
    """The reason why this machine cannot have a ``Lan``; None if it can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces need Linux"
    if shutil.which("ip") is None:
        return "ip (iproute2) is not installed"
    try:
        with contextlib.ExitStack() as stack:
            hosts = {name: stack.enter_context(contextlib.closing(Host())) for name in Lan.NAMES}
            stack.enter_context(contextlib.closing(Lan(hosts)))
    except subprocess.CalledProcessError as exc:
        return f"no pair of network interfaces: {exc.stderr.decode().strip()}"
    except OSError as exc:
        return f"no network namespaces: {exc.strerror}"
    return None


class Host:
    """A network stack of its own. In a ``with host:`` block the thread uses it. Sockets, threads and processes that are
    made in the block keep it."""

    def __init__(self):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._ways_back = []
        self._descriptor = -1
        self._error = None
        # A thread that calls unshare() stays in the new namespace for good, so this one does nothing else.
        thread = threading.Thread(target=self._unshare)
        thread.start()
        thread.join()
        if self._error is not None:
            raise self._error

    def _unshare(self):
        try:
            self._check(self._libc.unshare(_CLONE_NEWNET))
            self._descriptor = _own_namespace()
        except OSError as exc:
            self._error = exc

    @staticmethod
    def _check(result):
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def __enter__(self):
        self._ways_back.append(_own_namespace())
        self._check(self._libc.setns(self._descriptor, _CLONE_NEWNET))
        return self

    def __exit__(self, *exc_info):
        home = self._ways_back.pop()
        self._check(self._libc.setns(home, _CLONE_NEWNET))
        os.close(home)

    def ip(self, *arguments):
        """``ip ARGUMENTS`` on this host."""
        with self:
            subprocess.run(["ip", *arguments], check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def set(self, name, value):
        """Set ``/proc/sys/net/NAME`` of this host."""
        with self, open(f"/proc/sys/net/{name}", "w") as file:
            file.write(str(value))

    def is_sending_again(self):
        """Whether some connection of this host retransmits data that nobody acknowledges."""
        with self, open("/proc/thread-self/net/tcp") as file:
            rows = [line.split() for line in file.readlines()[1:]]
        # Sent again since it was lost, or not sent at all: then the timer is number 4, that of window probes.
        return any(int(row[6], 16) or (row[5].startswith("04:") and int(row[4][:8], 16)) for row in rows)

    @property
    def path(self):
        """The argument that ``ip`` takes for this host."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self):
        os.close(self._descriptor)


def _own_namespace():
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Lan:
    """Two hosts, ``server`` and ``client``, with a cable between them. Both call its end ``veth0``."""

    NAMES = ("server", "client")
    IPV4 = {"server": "192.0.2.1", "client": "192.0.2.2"}
    IPV6 = {"server": "fd00::1", "client": "fd00::2"}
    LINK_LOCAL = {"server": "fe80::1", "client": "fe80::2"}

    def __init__(self, hosts):
        self.server, self.client = (hosts[name] for name in self.NAMES)
        self._hosts = hosts
        self._lay_cable()
        for name, host in hosts.items():
            host.ip("link", "set", "veth0", "addrgenmode", "none")
            host.ip("link", "set", "lo", "up")
            for address in (self.IPV4[name] + "/24", self.IPV6[name] + "/64", self.LINK_LOCAL[name] + "/64"):
                # Usable at once, without the second in which IPv6 looks for a duplicate of the address.
                host.ip("address", "add", address, "dev", "veth0", *(["nodad"] if ":" in address else []))
        for name in self.NAMES:
            self.plug(name)

    def _lay_cable(self):
        self.server.ip(*"link add veth0 type veth peer name veth0 netns".split(), self.client.path)

    def close(self):
        pass  # it vanishes with its hosts

    def unplug(self, name):
        self._hosts[name].ip("link", "set", "veth0", "down")

    def plug(self, name):
        self._hosts[name].ip("link", "set", "veth0", "up")

    def is_losing(self):
        """Whether some data was lost and has not been sent again yet."""
        return any(host.is_sending_again() for host in self._hosts.values())

    def lose(self, name, how="unplugged"):
        """Let a host vanish: nothing that it sends reaches its peers any more, the end of a connection included."""
        if how == "unplugged":
            self.unplug(name)
        elif how == "deleted":
            self._hosts[name].ip("link", "delete", "veth0")
        else:
            assert how == "unrouted"  # it receives, and cannot reply
            (other,) = set(self.NAMES) - {name}
            self._hosts[name].ip("route", "add", "blackhole", self.IPV4[other] + "/32")


class LossyLan(Lan):
    """The same with a cable that loses one packet in ``LOSS`` and delays each by up to ``DELAY`` seconds, so that they
    overtake each other. ``lost`` and ``overtaken`` count them."""

    LOSS = 25
    DELAY = 0.004

    def _lay_cable(self):
        self.lost = self.overtaken = 0
        self._chance = random.Random(1)
        self._ends = [self._plug_in(self._hosts[name]) for name in self.NAMES]
        self._watched, self._breaker = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    @staticmethod
    def _plug_in(host):
        with host:
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH14x", b"veth0", _IFF_TUN | _IFF_NO_PI))
        return end

    def _carry(self):
        on_their_way = []  # (due, number, end, packet)
        number = 0
        latest = dict.fromkeys(self._ends, 0)
        while True:
            wait = max(0.0, on_their_way[0][0] - time.monotonic()) if on_their_way else None
            ready = select.select([*self._ends, self._watched], [], [], wait)[0]
            if self._watched in ready:
                return
            for end, other in zip(self._ends, reversed(self._ends)):
                if end in ready:
                    packet = os.read(end, 65536)
                    number += 1
                    if self._chance.randrange(self.LOSS) == 0:
                        self.lost += 1
                    else:
                        due = time.monotonic() + self._chance.random() * self.DELAY
                        heapq.heappush(on_their_way, (due, number, other, packet))
            while on_their_way and on_their_way[0][0] <= time.monotonic():
                _, sent, end, packet = heapq.heappop(on_their_way)
                self.overtaken += sent < latest[end]
                latest[end] = max(sent, latest[end])
                with contextlib.suppress(OSError):  # its interface is down
                    os.write(end, packet)

    def close(self):
        os.close(self._breaker)
        self._thread.join(DEADLINE)
        for descriptor in (*self._ends, self._watched):
            os.close(descriptor)


class Stream:
    """Numbered lines over one socket, several in flight at any time, each checked when it comes back."""

    WINDOW = 5000  # lines; in loopback's and veth's buffers with room to spare

    def __init__(self, sock):
        self.sock = sock
        self.returned = 0
        self._sent = 0
        self._changed = threading.Condition()
        self._ending = False
        self._error = None
        self._threads = [threading.Thread(target=job, daemon=True) for job in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def line(number):
        return b"line %09d\n" % number

    def advance(self, lines=2000):
        """Wait until this number of further lines has come back."""
        goal = self.returned + lines
        eventually(lambda: self._error or self.returned >= goal, "the stream stands still")
        self._check()

    def finish(self):
        """End the stream: check that all lines come back, and nothing else."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()
        self._check()
        assert self.returned == self._sent > 0

    def _check(self):
        if self._error is not None:
            raise self._error

    def _send(self):
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._ending or self._sent < self.returned + self.WINDOW, DEADLINE)
                    if self._ending:
                        break
                self.sock.sendall(b"".join(map(self.line, range(self._sent, self._sent + 100))))
                self._sent += 100
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self._error = exc

    def _receive(self):
        rest = b""
        try:
            while True:
                data = self.sock.recv(65536)
                if not data:
                    break
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    assert line + b"\n" == self.line(self.returned)
                    self.returned += 1
                with self._changed:
                    self._changed.notify_all()
            assert not rest
        except (OSError, AssertionError) as exc:
            self._error = exc


# What --ping and --bench report about a path.


def all_that_was_lost_came_late(ping, lost):
    """Whether a ping recovers as TCP does: the replies that it gave up come late, all of them, in order."""
    read_until(ping, rf"seq={lost} late")
    well_again = int(read_until(ping, r"seq=(\d+) time=").group(1))
    ping.popen.send_signal(signal.SIGINT)
    code, out = finish(ping)
    told = {what: re.findall(rf"seq=(\d+) {what}", out) for what in ("lost", "late", "time")}
    late = [seq for seq in told["late"] if int(seq) < well_again]
    assert lost in late == [seq for seq in told["lost"] if int(seq) < well_again]
    assert told["time"] == sorted(told["time"], key=int)
    assert re.search(r" received, 0 corrupted, \d+ lost, ([^,]+ on the way, )?[\d.]+% loss", out), out
    assert re.search(r"^besides these: \d+ late$", out, re.MULTILINE), out
    assert code == 1
    return True


def bench_finds_nothing_wrong(bench):
    """Interrupt a ``--bench -d 10m -J`` when replies have come; check that none was wrong or lost. Return its output.
    (With a short duration on a busy machine, no reply may come in time.)"""
    read_until(bench, r'"progress".*"messages_per_s": (?!0\.0,)')
    bench.popen.send_signal(signal.SIGINT)
    code, out = finish(bench)
    summary = json.loads(out.splitlines()[-1])
    assert code == 0 and summary["wrong"] == {} and summary["lost"] == 0 < summary["messages"], summary
    return out


# A bad path.


class Way:
    """One direction of a path. ``hold`` stops it, ``go_on`` opens it again; ``held`` is set while bytes wait in it."""

    def __init__(self):
        self.held = threading.Event()
        self._changed = threading.Condition()
        self._left = None  # bytes; None: no limit

    def hold(self, after=0):
        """Let this number of further bytes through, and then nothing."""
        with self._changed:
            self._left = after

    def go_on(self):
        with self._changed:
            self._left = None
            self._changed.notify_all()

    def take(self, wanted, is_broken):
        """Wait until bytes may pass; return how many of this number may. 0 when the connection is broken."""
        with self._changed:
            if self._left == 0:
                self.held.set()
            self._changed.wait_for(lambda: self._left != 0 or is_broken())
            self.held.clear()
            if is_broken():
                return 0
            if self._left is not None:
                wanted = min(wanted, self._left)
                self._left -= wanted
            return wanted

    def wake(self):
        with self._changed:
            self._changed.notify_all()


class Relay:
    """A path to ``target`` over the loopback. The bytes arrive complete and in order, as with TCP, but late and in
    random pieces (``seed``).

    ``requests`` and ``replies`` are its two directions. ``reset`` breaks all connections; later ones work again.
    """

    def __init__(self, target, seed=0):
        self.requests, self.replies = Way(), Way()
        self._target = target
        self._chance = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._pairs = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def reset(self):
        """Break each connection, towards both sides, with a reset."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.reset()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, DEADLINE)
            except OSError:
                near.close()
                continue
            pair = _Pair(self, near, far)
            with self._lock:
                self._pairs.append(pair)
            pair.start(self._chance)

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
        self._listener.close()
        self.reset()


class _Pair:
    """A connection through the relay: two sockets, and a thread for each direction."""

    def __init__(self, relay, near, far):
        self._ways = (near, far, relay.requests), (far, near, relay.replies)
        self._broken = False
        self._watched, self._breaker = os.pipe()  # at its end when the connection must break; for poll()
        self._lock = threading.Lock()
        self._running = 2
        for sock, _, _ in self._ways:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # pieces stay pieces

    def start(self, chance):
        jobs = [(*way, random.Random(chance.random())) for way in self._ways]
        self._threads = [threading.Thread(target=self._pump, args=job, daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    def reset(self):
        self._break()
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()

    def _break(self):
        with self._lock:
            if self._broken or not self._running:
                return
            self._broken = True
            for sock, _, _ in self._ways:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self._breaker)
        for _, _, way in self._ways:
            way.wake()

    def _pump(self, source, sink, way, chance):
        try:
            while self._wait(source, select.POLLIN):
                data = source.recv(65536)
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                while data:
                    if chance.random() < 0.05:
                        select.select([self._watched], [], [], chance.uniform(0, 0.005))
                    size = way.take(min(len(data), chance.choice([1, 7, 100, 1448, 5000])), lambda: self._broken)
                    piece, data = data[:size], data[size:]
                    if not piece:
                        return
                    while piece:
                        if not self._wait(sink, select.POLLOUT):
                            return
                        piece = piece[sink.send(piece) :]
        except OSError:
            self._break()  # one side has reset the connection: reset the other one
        finally:
            self._done()

    def _wait(self, sock, event):
        """Whether the socket is ready; false when the connection is broken."""
        poll = select.poll()
        poll.register(sock, event)
        poll.register(self._watched, 0)
        poll.poll()
        return not self._broken

    def _done(self):
        with self._lock:
            self._running -= 1
            if self._running:
                return
            for sock, _, _ in self._ways:
                sock.close()
            os.close(self._watched)
            if not self._broken:
                os.close(self._breaker)
