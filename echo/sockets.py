"""Functions on a stream socket that the standard library does not have: timeouts, queue sizes, a graceful close.

The server (for any handler) and ``Connection`` use them on a plain ``socket.socket``. They know no framing and no
session.

* Timeouts are the kernel's (``SO_RCVTIMEO``, ``SO_SNDTIMEO``) on a blocking socket. Rejected: ``socket.settimeout``.
  With it CPython polls before each read and write, which costs 35 to 40 % of the echoes per second under the GIL with
  10 to 100 connections.
* A socket is closed gracefully. A plain ``close()`` with unread input sends RST, and the peer loses replies that are on
  their way (128,000 of 300,000 bytes arrived; gunicorn #3590, cherrypy #622).
"""

from __future__ import annotations

import functools
import ipaddress
import math
import os
import select
import socket
import ssl
import stat
import struct
import sys
import threading
import time
import weakref
from typing import Any, Callable, Optional, Union

if sys.platform != "win32":  # Windows has neither of them, and cannot say how much waits in a socket's queues
    import fcntl
    import termios

INET = (socket.AF_INET, socket.AF_INET6)
"""The address families of TCP."""

_HAVE_URGENT_DATA = (*INET, socket.AF_UNIX) if sys.platform == "linux" else INET  # Unix sockets since Linux 5.15

MAX_PATH = 107 if sys.platform == "linux" else 103
"""Maximum length of a Unix socket's path, in bytes."""

LINGER_SILENCE = 1.0
"""Maximum time in seconds that a closing socket waits for the next byte from its peer."""

LINGER_TIMEOUT = 5.0
"""Maximum time in seconds that a closing socket is kept open for a peer that goes on sending."""

LONGEST_WAIT = 24 * 86400.0
"""Maximum time in seconds of one wait for a socket: ``poll`` counts up to 24.8 days, in milliseconds. A longer wait is
several."""

_SCRAP = bytearray(64 * 1024)
"""Bytes that are dropped are read into this, by any thread. It exists from the start, since memory may run out."""

_IGNORE_RAGGED_EOF = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)  # Python before 3.10 always sets it

_DO_NOT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)  # for one call: setblocking() would change another thread's reads

_TIMEVAL = struct.Struct("@ll")

_LONGEST_TIMEOUT = 2.0**31 - 1 if os.name == "posix" else 2.0**32 / 1000 - 1  # seconds; 68 years, and 49 days

SEND_TIMEOUT = 60.0
"""Maximum time in seconds in which a peer accepts no byte of what is sent to it."""

KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 120_000}
"""After 60 s of silence the system probes the peer every 10 s, and drops the connection after 6 probes without an
answer. Linux's defaults, from 1989, take two hours and eleven minutes. The last value, in milliseconds, is the maximum
time without an acknowledgement of what was sent, when no probes are; the default takes about 15 minutes. It also counts
the time in which the peer answers that it has no room (``wait_for_room``)."""

TIMED_OUT = (BlockingIOError,) if os.name == "posix" else (BlockingIOError, TimeoutError)
"""The exceptions of a read or write whose kernel timeout has passed. (On POSIX, ``TimeoutError`` is ETIMEDOUT: the
connection itself is lost.)"""


def check_path(address: Any) -> None:
    """``ValueError`` for a string that is a host with its port, or one of them alone: it would be the name of a Unix
    socket's file; and for an empty one, for which the system chooses an abstract address. ``TypeError`` for a port as a
    number, and for a path that is an object."""
    if isinstance(address, int):
        raise TypeError(f"the address is {address}; expected (host, port), like ('127.0.0.1', {address})")
    if isinstance(address, os.PathLike):
        raise TypeError(f"the address is {address!r}; expected a string, like {os.fspath(address)!r}")
    if not isinstance(address, (str, bytes)):
        return
    text = os.fsdecode(address).strip()  # a line of a file, maybe
    if not text:
        raise ValueError("the address is empty; write (host, port), or the path of a Unix socket")
    if "/" in text or text[:1] == "\0":
        return
    host, _, port = text.rpartition(":")
    if is_ip(text) and not (port.isdigit() and is_ip(host)):  # ::1:7000 may be both, and rather is the latter
        host, port = text, "PORT"
    elif not port:  # it came from an empty variable, maybe
        port = "PORT"
    elif not port.isdigit():
        return
    host = host.strip("[]") or "127.0.0.1"
    raise ValueError(
        f"{text!r} is not an address; write ({host!r}, {port}), or './{text}' for a Unix socket with this name"
    )


def is_ip(host: str) -> bool:
    """Whether this is an IP address; it may have a zone, and brackets."""
    try:
        ipaddress.ip_address(host.strip("[]").partition("%")[0])  # before Python 3.9 it knows no zones
    except ValueError:
        return False
    return True


def with_zone(address: Any) -> Any:
    """Return the address as ``bind`` needs it: of ``("fe80::1%eth0", port)`` it would drop the zone."""
    if isinstance(address, tuple) and len(address) == 2 and "%" in str(address[0]):
        found = socket.getaddrinfo(*address, socket.AF_INET6, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return found[0][4]
    return address


def trouble_with_path(path: str) -> str:
    """Return why no server can listen, and no client connect, at the path of a Unix socket; empty: for no reason that
    shows there. It gives the reason behind an error like ENOENT, which a server that does not run has, too."""
    if path.startswith("\0"):
        return f"give a name of {MAX_PATH} bytes at most" if len(os.fsencode(path)) > MAX_PATH + 1 else ""
    folder = os.path.dirname(path) or "."
    try:
        if not os.path.isabs(path):
            os.getcwd()
    except OSError:
        return "the current folder was deleted; change to another one, or give the whole path"
    if len(os.fsencode(path)) > MAX_PATH:
        return f"give a path of {MAX_PATH} bytes at most, for example one from the current folder"
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            return f"{folder} is not a folder; give another path"
    except FileNotFoundError:
        return f"the folder {folder} does not exist; make it, or give another path"
    except OSError:  # the user may not look for it, for example: then it may well exist
        return ""
    if os.path.exists(path) and not stat.S_ISSOCK(os.stat(path).st_mode):
        return "that file is not a socket; give another path"
    return ""


def keep_alive(sock: socket.socket) -> None:
    """Make the system notice the loss of a silent TCP peer. Sockets accepted from ``sock`` inherit this."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sock.family in INET:
        for name, value in KEEP_ALIVE.items():
            if hasattr(socket, name):  # otherwise the system's default stays
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def keep_urgent_data(sock: socket.socket) -> None:
    """Make urgent data a byte of the stream like any other: a plain read would leave it out. Sockets accepted from
    ``sock`` inherit this, except Unix sockets."""
    if sock.family in _HAVE_URGENT_DATA:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def prepare(sock: socket.socket) -> None:
    """Prepare a socket for messages, or a listening one, since the sockets accepted from it inherit all of this: a lost
    peer is noticed at last, urgent data is not lost, and a small message never waits 40 ms for the acknowledgement of
    the one before (gh-108736)."""
    keep_alive(sock)
    keep_urgent_data(sock)
    if sock.family in INET:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def set_receive_timeout(sock: socket.socket, seconds: Optional[float]) -> None:
    """Make a blocking read fail with ``TIMED_OUT`` after so many seconds without a byte; None: no limit."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))


def set_send_timeout(sock: socket.socket, seconds: Optional[float]) -> None:
    """Make a blocking write fail with ``TIMED_OUT`` after so many seconds in which the peer accepts no byte; None: no
    limit."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(seconds))
    wait_for_room(sock, seconds)


def wait_for_room(sock: socket.socket, seconds: Optional[float]) -> None:
    """Keep the connection of a peer that has no room for so many seconds; None: no limit.

    ``TCP_USER_TIMEOUT`` would end it: to Linux, a peer that answers "no room" is like one that does not answer. So this
    raises it, if it is that of ``KEEP_ALIVE``. Then it also takes longer to notice a peer that has vanished.
    """
    least = KEEP_ALIVE["TCP_USER_TIMEOUT"]
    milliseconds = float("inf") if seconds is None else seconds * 1000
    if milliseconds > least and getattr(sock, "family", None) in INET and hasattr(socket, "TCP_USER_TIMEOUT"):
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) >= least:  # not a shorter one of the program's
            limit = int(milliseconds) if milliseconds < 2**31 else 0  # 0: none
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit)


def sends_all(sock: Any) -> Callable[[Any], None]:
    """Return what sends all of some bytes: ``sendall`` of a socket that has its own, and for others ``send_some`` again
    and again."""
    if issubclass(type(sock), socket.socket) and sock.sendall == socket.socket.sendall.__get__(sock):
        return functools.partial(_send_all, sock)
    return lambda data: sock.sendall(data)


def _send_all(sock: socket.socket, data: Any) -> None:
    left = len(data) if isinstance(data, bytes) else memoryview(data).nbytes
    while True:
        try:
            sent = _system_send(sock, data)  # not send_some(): that is a call more for each message
        except BlockingIOError:
            sent = _send_what_fits(sock, data)
        left -= sent
        if not left:
            return
        data = memoryview(data).cast("B")[sent:]  # an array's items may be wider


def send_some(sock: socket.socket, data: Any) -> int:
    """As ``socket.send``, but if the kernel's timeout has passed and there is room all the same, it sends what fits."""
    try:
        return _system_send(sock, data)
    except BlockingIOError:
        return _send_what_fits(sock, data)


def _send_what_fits(sock: socket.socket, data: Any) -> int:
    """After a timeout. Linux wakes a thread that sends when a third of the send buffer is free, up to 1.3 MB. If there
    is any room, the peer has taken something meanwhile."""
    if not _DO_NOT_WAIT:
        raise BlockingIOError("timed out")
    return _system_send(sock, data, _DO_NOT_WAIT)


_system_send = socket.socket.send


def receive_timeout(sock: socket.socket) -> Optional[float]:
    """Return the timeout of a read in seconds, from ``settimeout`` or ``set_receive_timeout``; None: no limit."""
    seconds = sock.gettimeout()
    return _kernel_timeout(sock, socket.SO_RCVTIMEO) if seconds is None else seconds


def _kernel_timeout(sock: socket.socket, option: int) -> Optional[float]:
    if os.name != "posix":
        return int(sock.getsockopt(socket.SOL_SOCKET, option)) / 1000 or None
    whole, micro = _TIMEVAL.unpack(sock.getsockopt(socket.SOL_SOCKET, option, _TIMEVAL.size))
    return whole + micro / 1_000_000 or None


def set_deadline(sock: socket.socket, deadline: Optional[float]) -> None:
    """Limit the next call on the socket to ``deadline``, a time of ``time.monotonic()``; None: no limit.

    Raises ``socket.timeout`` if the deadline has passed: a peer that sends a byte now and then must not renew it.
    """
    left = None if deadline is None else deadline - time.monotonic()
    if left is not None and left <= 0:
        raise socket.timeout("timed out")
    sock.settimeout(None if left is not None and left > LONGEST_WAIT else left)  # it takes no more; rather none


@functools.lru_cache(maxsize=64)  # all connections have the same few timeouts
def _timeval(seconds: Optional[float]) -> bytes:
    # Zero means "no timeout" to the kernel, so a positive one must not be rounded down to zero.
    if seconds is not None:
        seconds = min(seconds, _LONGEST_TIMEOUT)
    if os.name != "posix":
        return struct.pack("@L", 0 if seconds is None else max(1, round(seconds * 1000)))
    microseconds = 0 if seconds is None else max(1, round(seconds * 1_000_000))
    return _TIMEVAL.pack(*divmod(microseconds, 1_000_000))


def unread(sock: Union[socket.socket, int]) -> Optional[int]:
    """Return the number of bytes that have reached this host and have not been read; None if the system cannot say.

    ``sock`` may also be the descriptor of a pipe or a file.
    """
    return _queue_size(sock, "FIONREAD")


def undelivered(sock: socket.socket) -> Optional[int]:
    """Return the number of bytes sent and not acknowledged by the peer's host; None if the system cannot say."""
    left = not_taken(sock)
    return 0 if left and is_unix(sock) else left  # this host is the peer's


def not_taken(sock: socket.socket) -> Optional[int]:
    """As ``undelivered``; over a Unix socket, the number of bytes that the peer has not read."""
    return _queue_size(sock, "TIOCOUTQ")


def is_unix(sock: Any) -> bool:
    """Whether this is a Unix socket, or an object around one that says so."""
    family = getattr(sock, "family", None)
    return family is not None and bool(family == getattr(socket, "AF_UNIX", None))


def _queue_size(sock: Union[socket.socket, int], request: str) -> Optional[int]:
    if sys.platform == "win32":
        return None
    try:
        answer = fcntl.ioctl(sock, getattr(termios, request), bytes(4))
    except (OSError, ValueError):  # not supported by this kind of socket, or closed
        return None
    return int(struct.unpack("@i", answer)[0])


def buffered(sock: socket.socket) -> int:
    """Return the number of bytes that a TLS socket has taken from the system and not returned yet; otherwise 0."""
    stock = stock_tls(sock)
    return int(getattr(sock, "buffered", 0)) if stock is None else stock.pending()


def is_tls(sock: socket.socket) -> bool:
    """Whether this is a TLS socket, or passes its calls on to one. It may have taken a part of a record already."""
    return stock_tls(sock) is not None or hasattr(sock, "buffered")


def stock_tls(sock: Any) -> Optional[ssl.SSLSocket]:
    """Return the ``ssl.SSLSocket`` that this is, or that a wrapper passes its calls on to; None if there is none."""
    owner = getattr(getattr(sock, "pending", None), "__self__", None)
    return owner if isinstance(owner, ssl.SSLSocket) else None


def share_tls(sock: Any) -> None:
    """Let two threads use the ``ssl.SSLSocket`` that ``sock`` is or wraps, one to send and one to receive, and let the
    kernel's timeouts hold on it."""
    stock = None if type(sock) is socket.socket else stock_tls(sock)
    if stock is not None and "read" not in vars(stock):
        shared = _SharedTLS(stock)
        # In the object itself: what wraps it, and what its class adds, goes on above.
        vars(stock).update(read=shared.read, send=shared.send)


class _SharedTLS:
    """The two methods of an ``ssl.SSLSocket`` on which its others rest.

    OpenSSL permits no read during a write, and most versions of the ``ssl`` module do not prevent it. Then one thread
    gets the other's result: the input seems to have ended, or bytes never arrive. So each call holds a lock, but no
    call waits with it: the peer may not read before we do.

    The ``ssl`` module also begins its wait again when a timeout of the kernel's has passed, so that a silent peer would
    keep its thread for ever.
    """

    def __init__(self, stock: ssl.SSLSocket) -> None:
        self._stock = weakref.ref(stock)  # which refers to this
        self._lock = threading.RLock()  # a signal handler may send
        self._timeout = stock.gettimeout()
        self._holds = False

    def read(self, *args: Any, **named: Any) -> Any:
        return self._call(socket.SO_RCVTIMEO, "read", args, named)

    def send(self, *args: Any, **named: Any) -> Any:
        return self._call(socket.SO_SNDTIMEO, "send", args, named)

    def _call(self, option: int, name: str, args: Any, named: Any) -> Any:
        stock = self._stock()
        assert stock is not None
        deadline: Optional[float] = None
        while True:
            with self._lock:
                is_outer, self._holds = not self._holds, True
                if is_outer:
                    self._timeout = stock.gettimeout()
                try:
                    stock.settimeout(0.0)
                    return getattr(type(stock), name)(stock, *args, **named)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as exc:
                    if self._timeout == 0.0:
                        raise
                    to_write = isinstance(exc, ssl.SSLWantWriteError)
                finally:
                    if is_outer:
                        stock.settimeout(self._timeout)
                        self._holds = False
            if deadline is None:
                limits = self._timeout, _kernel_timeout(stock, option)
                deadline = time.monotonic() + min((each for each in limits if each is not None), default=math.inf)
            left = deadline - time.monotonic()
            if left <= 0:
                raise BlockingIOError("timed out") if self._timeout is None else socket.timeout("timed out")
            _is_ready(stock, min(left, LONGEST_WAIT), to_write=to_write)


def has_input(sock: socket.socket, seconds: float) -> bool:
    """Wait at most so many seconds for input. Return whether a read would not block."""
    return bool(buffered(sock)) or is_readable(sock, min(seconds, LONGEST_WAIT))


def has_room(sock: socket.socket, seconds: float) -> bool:
    """Wait at most so many seconds for room in the send queue. Return whether a write would not block."""
    return seconds > 0 and _is_ready(sock, min(seconds, LONGEST_WAIT), to_write=True)


def shut_down(request: Any, how: int) -> None:
    """End the input or output of the connection under ``request``, whatever wraps it.

    ``ssl.SSLSocket.shutdown`` would drop the TLS state: what is sent later would go out in clear. Other wrappers have a
    ``shutdown`` of their own kind, or none; a duplicate of their descriptor reaches the same connection.
    """
    stock = stock_tls(request)
    if stock is not None:
        socket.socket.shutdown(stock, how)
    elif isinstance(request, socket.socket):
        request.shutdown(how)
    else:
        with socket.socket(fileno=os.dup(request.fileno())) as plain:
            plain.shutdown(how)


def expect_shut_down(sock: Any) -> None:
    """Let ``shut_down`` end the input of connections like this one, which is a socket of the ``ssl`` module, or none.

    OpenSSL 3 answers an end of input without ``close_notify`` with an alert, and writes nothing after it. Python hides
    such an end from the program by default (``suppress_ragged_eofs``), so nothing is lost if OpenSSL ignores it, too.
    Sockets that exist already do not change: a listening one has to be prepared before it accepts.
    """
    if isinstance(sock, ssl.SSLSocket) and getattr(sock, "suppress_ragged_eofs", False):
        if not sock.context.options & _IGNORE_RAGGED_EOF:
            sock.context.options |= _IGNORE_RAGGED_EOF


def linger(
    sock: socket.socket,
    delivery_timeout: Optional[float] = None,
    silence: float = LINGER_SILENCE,
    timeout: float = LINGER_TIMEOUT,
    send_timeout: Optional[float] = 0.0,
    *,
    until_read: bool = False,
    shared: bool = False,
) -> bool:
    """End the output, then read and drop what the peer still sends, so that the close loses no reply. Return whether
    the output was ended.

    Returns when the peer has ended too, has sent nothing for ``silence`` seconds (default: 1), or has gone on sending
    for ``timeout`` seconds (default: 5). A peer whose host has not accepted everything has more time, as long as it
    accepts something within ``send_timeout`` seconds (default: 0; None: no limit). Never raises. The caller closes the
    socket; its mode stays as it is.

    Over a Unix socket, the peer's host has accepted everything at once, and the peer can read it after the close.
    ``until_read``: what the peer has not read there counts as not accepted. A client wants this: a server that finds it
    gone while it answers would drop what it has not read yet.

    ``shared``: other code may still read, from a file or a duplicate of the socket. Then nothing is dropped that it
    may want, and the close of this one resets nothing.

    ``delivery_timeout`` is for a socket after ``shutdown(SHUT_RD)``, the only way to wake a thread that reads. After
    that, Linux answers data that meets our FIN with a reset, which drops our send queue. So this first waits, at most
    so many seconds, until the peer's host has everything. Infinity: as long as it accepts something within
    ``send_timeout`` seconds. Default: None, no wait.
    """
    ended = False
    not_accepted = not_taken if until_read else undelivered
    if not isinstance(sock, socket.socket) or (shared and _has_file(sock)):
        return ended
    try:
        if delivery_timeout is not None:
            _await_delivery(sock, delivery_timeout, send_timeout if delivery_timeout == math.inf else None)
        shut_down(sock, socket.SHUT_WR)
        ended = True
        accepted_at = time.monotonic()
        deadline = accepted_at + timeout
        left: Optional[int] = -1  # not known yet: most peers end at once
        while True:
            sends = is_readable(sock, silence)
            if sends:
                if shared and unread(sock) and _has_duplicate(sock):
                    return ended
                if not _drop(sock):
                    return ended
            now = time.monotonic()
            if sends and now < deadline:
                continue
            before, left = left, not_accepted(sock)
            if left != before:
                accepted_at = now
            delivered = left is None or left <= 1  # our FIN counts as a byte
            if delivered or (send_timeout is not None and now - accepted_at >= send_timeout):
                break
        # The time may be over because this thread had no processor. So it still reads what has arrived, since the close
        # would be a reset otherwise. It reads no more than that, and does not wait: a peer that goes on sending must
        # not keep the socket open.
        for _ in range(0, unread(sock) or 0, len(_SCRAP)):
            _drop(sock)
    except (OSError, ValueError):
        pass  # reset, or closed by its handler: there is nothing left to protect
    return ended


def _drop(sock: socket.socket) -> int:
    """Drop what has arrived; return how many bytes, 0 at the end of the input. Encrypted bytes stay encrypted."""
    return socket.socket.recv_into(sock, _SCRAP, 0, _DO_NOT_WAIT)


def is_readable(sock: socket.socket, seconds: float) -> bool:
    """Wait at most so many seconds for input, or for a client of a listening socket. Return whether there is any."""
    return _is_ready(sock, seconds, to_write=False)


def _is_ready(sock: socket.socket, seconds: float, *, to_write: bool) -> bool:
    """Not with ``selectors.DefaultSelector``: epoll and kqueue need a descriptor, and none may be free."""
    if not hasattr(select, "poll"):
        return any(select.select([] if to_write else [sock], [sock] if to_write else [], [], seconds))
    poll = select.poll()
    poll.register(sock, select.POLLOUT if to_write else select.POLLIN)
    return bool(poll.poll(math.ceil(seconds * 1000)))


def _has_file(sock: socket.socket) -> bool:
    """Whether a file of ``makefile()`` is still open. The socket closes after it."""
    return bool(getattr(sock, "_io_refs", 0))


def _has_duplicate(sock: socket.socket) -> bool:
    """Whether this process has the socket a second time. Only Linux says so."""
    own = os.fstat(sock.fileno())
    try:
        others = {int(name) for name in os.listdir("/proc/self/fd")} - {sock.fileno()}
    except OSError:
        return False
    for descriptor in others:
        try:
            if os.path.samestat(os.fstat(descriptor), own):
                return True
        except OSError:
            pass  # closed meanwhile
    return False


def _await_delivery(sock: socket.socket, timeout: float, patience: Optional[float]) -> None:
    """``patience``: maximum time in seconds in which the peer's host accepts nothing; None: no limit."""
    pause = 0.001
    began = accepted_at = time.monotonic()
    left = undelivered(sock)
    while left and not is_dead(sock):
        # The input was ended, or another thread is about to do that (close()). The read keeps the peer's window open.
        try:
            dropped = _drop(sock)
        except BlockingIOError:
            dropped = 0
        if not dropped:
            time.sleep(pause)  # no system call waits for "all acknowledged"
            pause = min(2 * pause, 0.05)
        now = time.monotonic()
        before, left = left, undelivered(sock)
        if left != before:
            accepted_at = now
        if now - began >= timeout or (patience is not None and now - accepted_at >= patience):
            break


def is_dead(sock: socket.socket) -> bool:
    """Return whether the connection was reset or both sides have ended, so that nothing can pass in either direction.

    ``undelivered`` does not show this: what a reset connection had not delivered counts for ever.
    """
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sock, 0)  # only hang-up and error, which are always reported
    return bool(poll.poll(0))
