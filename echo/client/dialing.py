"""From a host's name to a connected socket, within one deadline: over the look-up of the name and all its addresses.

The system's own calls have no such deadline: ``getaddrinfo`` waits for each name server in turn, and
``socket.create_connection`` gives each address the whole timeout (cpython #123793).

* The name is looked up in a thread, which is left behind if it takes too long.
* If an address does not answer at once, the next one is tried beside it, and the first that answers is taken (RFC 8305,
  "Happy Eyeballs"). Rejected: to divide the time between the addresses, which gives up a slow one too early.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import selectors
import socket
import struct
import sys
import threading
import time
from typing import Any, List, Optional, Sequence, cast

from ..beginning import Thread
from ..sockets import LONGEST_WAIT, with_zone

ATTEMPT_DELAY = 0.25
"""Seconds after which the next address is tried, too, if no attempt has succeeded or failed; fewer if the time is
short."""

FIRST_LINE = 0.5
"""Least seconds that the thread of a look-up has to begin. If it does not, the caller looks the name up itself, which
has no limit: a thread that is only late, on a busy machine, must not cause that."""

BACKLOG_PAUSE = 0.02
"""Seconds between two attempts to connect to a Unix socket whose server accepts nobody for now."""

_NO_PORTS = "all local ports for this server are in use"

_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_BIND_ADDRESS_NO_PORT = 24  # Linux's IP_BIND_ADDRESS_NO_PORT; older versions of Python have no name for it

_STARTED = (0, errno.EINPROGRESS, errno.EWOULDBLOCK)

_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)


def look_up(host: str, port: int, timeout: Optional[float], family: int = 0) -> List[Any]:
    """Return what ``socket.getaddrinfo`` does for stream sockets, within ``timeout`` seconds; None: no limit.

    ``family``: that of all addresses; default: 0, any.

    Raises ``TimeoutError``, and the errors of ``getaddrinfo``: ``socket.gaierror`` and ``UnicodeError``.
    """
    try:
        return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass  # not an address but a name
    found: List[Any] = []
    failures: List[Exception] = []

    def ask() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
        except Exception as exc:
            failures.append(exc)

    thread = Thread(target=ask, name="echo-look-up", daemon=True)
    try:
        thread.start(None if timeout is None else max(timeout / 2, FIRST_LINE))
    except RuntimeError:  # the system has no thread now, or no memory for its first line
        ask()
    else:
        thread.join(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        if thread.is_alive():
            raise TimeoutError(f"the look-up of the name took more than {timeout:g} s")
    if failures:
        if isinstance(failures[0], socket.gaierror):
            socket.socket().close()  # fails if no descriptor is left, which the look-up reports as an unknown name
        raise failures[0]
    return found


def connect_to_host(
    host: str, port: int, timeout: Optional[float], family: int = 0, source: Optional[str] = None
) -> socket.socket:
    """Return a non-blocking socket that is connected to the first address of the host that answers.

    ``family`` is as for ``look_up``. ``source``: the own address of the connection; default: None, the system chooses.

    Raises ``TimeoutError`` after ``timeout`` seconds in all (None: no limit), the errors of ``look_up``, and the last
    ``OSError`` if all addresses fail, or the first one that says what this machine lacks.
    """
    began = time.monotonic()
    addresses = look_up(host, port, timeout, family)
    return connect_to_first(addresses, None if timeout is None else began + timeout, source)


def connect_to_first(
    addresses: Sequence[Any], deadline: Optional[float], source: Optional[str] = None
) -> socket.socket:
    """As ``connect_to_host``, for the result of ``look_up``, until ``deadline`` of ``time.monotonic()``."""
    waiting = collections.deque(addresses)
    error = OSError("the host has no address")
    next_at = 0.0
    with _Selector() as attempts:
        try:
            while waiting or attempts.get_map():
                now = time.monotonic()
                left = LONGEST_WAIT if deadline is None else deadline - now
                if left <= 0:
                    raise TimeoutError("timed out")
                if waiting and (now >= next_at or not attempts.get_map()):
                    next_at = now + min(ATTEMPT_DELAY, left / len(waiting))
                    try:
                        attempts.register(_begin(waiting.popleft(), source), selectors.EVENT_WRITE)
                    except OSError as exc:
                        error = _graver(error, exc)
                    continue
                left = min(left, next_at - now) if waiting else left
                for key, _ in attempts.select(min(left, LONGEST_WAIT)):
                    sock: Any = key.fileobj
                    attempts.unregister(sock)
                    failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or _refusal_of_itself(sock)
                    if not failure:
                        return cast(socket.socket, sock)
                    sock.close()
                    error = _graver(error, OSError(failure, os.strerror(failure)))
                    next_at = 0.0
            raise error
        finally:
            for key in list(attempts.get_map().values()):
                cast(socket.socket, key.fileobj).close()


def _graver(before: OSError, exc: OSError) -> OSError:
    """Return the error to report of two attempts: the later one, unless the earlier one says what this machine lacks.
    That nothing listens on another address of the host would hide it."""
    return before if before.errno in _SHORTAGES or before.strerror == _NO_PORTS else exc


def _refusal_of_itself(sock: socket.socket) -> int:
    """Return an error number if a socket is connected to itself, else 0.

    TCP does that if nobody listens on a port from which the system also gives ports to clients (tokio #3405).
    """
    try:
        if sock.getsockname() != sock.getpeername():
            return 0
    except OSError:  # reset already; its first use reports that
        return 0
    # Close with a reset. Otherwise the port would stay in TIME_WAIT, and no server could have it for a minute.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii" if os.name == "posix" else "@HH", 1, 0))
    return errno.ECONNREFUSED


def _bind(sock: socket.socket, source: str) -> None:
    if sys.platform == "linux":  # connect() chooses the port, which connections with other servers may have, too
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
    try:
        sock.bind(with_zone((source, 0)))
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:  # no port is free
            raise OSError(errno.EADDRNOTAVAIL, _NO_PORTS) from None
        raise OSError(exc.errno, f"the source address {source} cannot be used: {exc.strerror}") from None


def _begin(address: Any, source: Optional[str]) -> socket.socket:
    """Begin to connect to an address, of ``look_up``; return the socket."""
    family, kind, protocol, _, where = address
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        if source is not None:
            _bind(sock, source)
        failure = sock.connect_ex(where)
        if failure == errno.EADDRNOTAVAIL and _can_be_reached(family, where):
            raise OSError(failure, _NO_PORTS)
        if failure not in _STARTED:
            raise OSError(failure, os.strerror(failure))
    except BaseException:
        sock.close()
        raise
    return sock


def _can_be_reached(family: int, where: Any) -> bool:
    """Return whether this machine has an address from which it can reach another one. TCP reports that in the same way
    as the lack of a free port."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        return not probe.connect_ex(where)  # sends nothing


def connect_to_path(path: Any, timeout: Optional[float]) -> socket.socket:
    """Return a non-blocking socket that is connected to a Unix socket. Raises ``TimeoutError`` if its server accepts
    nobody within ``timeout`` seconds (None: no limit), and ``OSError``."""
    deadline = None if timeout is None else time.monotonic() + timeout
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
                return sock
            except BlockingIOError:  # the backlog is full, and no system call waits for room in it
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError("timed out") from None
            time.sleep(BACKLOG_PAUSE)
    except BaseException:
        sock.close()
        raise
