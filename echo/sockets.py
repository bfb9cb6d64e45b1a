"""What a stream socket needs and the standard library leaves open: deadlines, queues, a gentle end.

Functions on a plain ``socket.socket``, used by the server (for any handler) and by ``Connection``. They know no framing
and no session.

* Deadlines are the kernel's (``SO_RCVTIMEO``, ``SO_SNDTIMEO``) on a blocking socket. Rejected:
  ``socket.settimeout``, which makes CPython poll before each read and write and cost 35-40 % of the echoes
  per second under the GIL at 10 to 100 connections.
* A socket is closed gently. A plain ``close()`` over unread input sends RST, and the peer loses replies that
  are on their way (128,000 of 300,000 bytes arrived; gunicorn #3590, cherrypy #622).
"""

from __future__ import annotations

import functools
import os
import select
import selectors
import socket
import struct
import sys
import time
from typing import Optional, Union

if sys.platform != "win32":  # which has neither, and no way to ask how much waits in a socket's queues
    import fcntl
    import termios

INET = (socket.AF_INET, socket.AF_INET6)
"""The families that speak TCP."""

LINGER_SILENCE = 1.0
"""Seconds without a byte from the peer, after our end of output, after which a closing socket is closed."""

LINGER_TIMEOUT = 5.0
"""Seconds that a closing socket is kept open at most for a peer that goes on sending."""

_TIMEVAL = struct.Struct("@ll")

KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""A peer that has been silent for a minute is asked whether it is there, and is lost when it has not answered for
another. Linux's own figures, which are from 1989, make two hours and eleven minutes of that."""

TIMED_OUT = (BlockingIOError,) if os.name == "posix" else (BlockingIOError, TimeoutError)
"""What a read or write raises when its kernel deadline has passed. (On POSIX, ``TimeoutError`` is ETIMEDOUT:
the connection itself is lost.)"""


def keep_alive(sock: socket.socket) -> None:
    """Let the loss of a silent TCP peer be noticed. What a listening socket accepts inherits it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sock.family in INET:
        for name, value in KEEP_ALIVE.items():
            if hasattr(socket, name):  # else the system's own figures
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def set_receive_timeout(sock: socket.socket, seconds: Optional[float]) -> None:
    """Let a blocking read give up after so many seconds without a byte; None waits for ever."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))


def set_send_timeout(sock: socket.socket, seconds: Optional[float]) -> None:
    """Let a blocking write give up after so many seconds in which the peer took no byte; None waits for ever."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(seconds))


def receive_timeout(sock: socket.socket) -> Optional[float]:
    """The seconds after which a read gives up, by ``settimeout`` or ``set_receive_timeout``; None: never."""
    seconds = sock.gettimeout()
    if seconds is not None:
        return seconds
    if os.name != "posix":
        return int(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO)) / 1000 or None
    whole, micro = _TIMEVAL.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.size))
    return whole + micro / 1_000_000 or None


def set_deadline(sock: socket.socket, deadline: Optional[float]) -> None:
    """Let the next call on the socket end by ``deadline`` (of ``time.monotonic()``; None: whenever it does).
    ``socket.timeout`` if that has passed: who sends a byte a moment must not get on for ever."""
    left = None if deadline is None else deadline - time.monotonic()
    if left is not None and left <= 0:
        raise socket.timeout("timed out")
    sock.settimeout(left)


@functools.lru_cache(maxsize=64)  # every connection has the same few
def _timeval(seconds: Optional[float]) -> bytes:
    # All zeros means "no deadline" to the kernel, so a positive one never rounds down to that.
    if os.name != "posix":
        return struct.pack("@L", 0 if seconds is None else max(1, round(seconds * 1000)))
    microseconds = 0 if seconds is None else max(1, round(seconds * 1_000_000))
    return _TIMEVAL.pack(*divmod(microseconds, 1_000_000))


def unread(sock: Union[socket.socket, int]) -> Optional[int]:
    """How many bytes have reached this host and were not read yet; None where the system does not tell. Of a pipe or a
    file, too, by its descriptor."""
    return _queue_size(sock, "FIONREAD")


def undelivered(sock: socket.socket) -> Optional[int]:
    """How many bytes were sent and not acknowledged by the peer's host; None where the system does not tell."""
    return _queue_size(sock, "TIOCOUTQ")


def _queue_size(sock: Union[socket.socket, int], request: str) -> Optional[int]:
    if sys.platform == "win32":
        return None
    try:
        answer = fcntl.ioctl(sock, getattr(termios, request), bytes(4))
    except (OSError, ValueError):  # not known for this kind of socket, or closed
        return None
    return int(struct.unpack("@i", answer)[0])


def buffered(sock: socket.socket) -> int:
    """How many bytes a socket has taken from the system and not handed out, as one with TLS does."""
    return int(getattr(sock, "buffered", 0))


def has_input(sock: socket.socket, seconds: float) -> bool:
    """Wait, so many seconds at most, until a read would not block."""
    if buffered(sock):
        return True
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return bool(selector.select(seconds))


def has_room(sock: socket.socket, seconds: float) -> bool:
    """Wait, so many seconds at most, until a write would not block."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_WRITE)
        return seconds > 0 and bool(selector.select(seconds))


def linger(sock: socket.socket, delivery_timeout: Optional[float] = None, silence: float = LINGER_SILENCE) -> None:
    """End the output, then read away what the peer still sends, so that closing loses no reply.

    Returns when the peer has ended too, has been silent for ``silence`` seconds or has kept sending for
    ``LINGER_TIMEOUT``. Never raises; the socket is left for its owner to close, and has a ``settimeout``.

    After ``shutdown(SHUT_RD)``, the only way to wake a thread that reads, Linux answers data that meets our
    FIN with a reset, which would throw away what is still in our send queue. ``delivery_timeout`` says that
    this was done, and for how many seconds at most to wait until the peer's host has everything.
    """
    try:
        if delivery_timeout is not None:
            _await_delivery(sock, time.monotonic() + delivery_timeout)
        sock.settimeout(silence)
        sock.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + LINGER_TIMEOUT
        while sock.recv(65536) and time.monotonic() < deadline:
            pass
    except (OSError, ValueError):
        pass  # timed out, reset, or closed by its handler: nothing is left to protect


def _await_delivery(sock: socket.socket, deadline: float) -> None:
    pause = 0.001
    while undelivered(sock) and time.monotonic() < deadline and not is_dead(sock):
        # The input has been ended, so that this read never blocks; it keeps the peer's window open.
        if not sock.recv(65536):
            time.sleep(pause)  # no system call waits for "all acknowledged"; only a stop comes through here
            pause = min(2 * pause, 0.05)


def is_dead(sock: socket.socket) -> bool:
    """Whether nothing can pass any more, in either direction: it was reset, or both sides have ended. What a reset one
    had not delivered counts as undelivered for ever."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sock, 0)  # nothing but hang-up and error
    return bool(poll.poll(0))
