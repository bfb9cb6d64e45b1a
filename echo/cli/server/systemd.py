"""The two protocols between systemd and a service: sockets passed to it, and notifications from it.

They are described in sd_listen_fds(3) and sd_notify(3). This module does not know the server. Without systemd there is
no socket, no notification is sent, and nothing fails.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from typing import Iterator, Optional

from ...descriptors import Owned
from ...sockets import set_send_timeout

FIRST_DESCRIPTOR = 3
"""The first descriptor that is passed: the one after the standard streams."""

READY = "READY=1"
STOPPING = "STOPPING=1"

PATIENCE = 1.0
"""Maximum time in seconds to wait until systemd has room for a message that it needs. If ``READY`` were lost, it would
end the service."""

_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def listening_socket(first: int = FIRST_DESCRIPTOR) -> Optional[socket.socket]:
    """Return the listening socket that was passed to this process (socket activation), or None.

    It works once: it removes the variables from the environment and makes the socket non-inheritable, since both are
    for this process alone. ``first`` is the first descriptor that is passed. ``ValueError`` says what was passed, if
    that cannot be served.
    """
    pid, count, *_ = [os.environ.pop(name, "") for name in _VARIABLES]
    if not pid or not count or _number("LISTEN_PID", pid) != os.getpid():
        return None  # the variables are missing, or were meant for a parent of this process
    descriptors = range(first, first + _number("LISTEN_FDS", count))
    for descriptor in descriptors:
        try:
            passed = os.get_inheritable(descriptor)  # else this process has opened it
            os.set_inheritable(descriptor, False)
        except OSError:
            passed = False
        if not passed:
            raise ValueError(f"LISTEN_FDS is {count}, but descriptor {descriptor} is closed")
    if len(descriptors) > 1:
        raise ValueError(
            f"LISTEN_FDS is {count}, but one socket is served; leave one Listen line in the socket unit,"
            " and write a socket and a service unit for each further one"
        )
    return _listening(first)


def _number(name: str, text: str) -> int:
    if re.fullmatch("[1-9][0-9]{0,8}", text) is None:
        raise ValueError(f"{name} is {text!r}; it is a whole number from 1 on, and set by systemd alone")
    return int(text)


def _listening(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        what: Optional[str] = "a file or a pipe, and no socket"
    else:
        what = _unfit(sock)
        if what is None:
            return sock
        sock.close()
    raise ValueError(f"descriptor {descriptor} is {what}; the socket unit needs ListenStream= and Accept=no")


def _unfit(sock: socket.socket) -> Optional[str]:
    """Why this socket cannot be served, as a name for what it is; None if it is a listening stream socket."""
    if sock.type == socket.SOCK_DGRAM:
        return "a datagram socket"
    if sock.type != socket.SOCK_STREAM:
        return "no stream socket"
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return None
    try:
        sock.getpeername()
    except OSError:
        return "a stream socket that does not listen"
    return "a connection"


def notify(*assignments: str, wait: float = 0.0) -> bool:
    """Send systemd a message: ``READY``, ``STOPPING``, ``reloading()``, ``status("...")``. Return whether it was sent.

    It never raises, and blocks for ``wait`` seconds at most, if systemd is busy: the service matters more than its
    notifications. The environment stays as it is, since more messages follow. A child process inherits it, but systemd
    ignores its messages (``NotifyAccess=``).
    """
    name = os.fsencode(os.environ.get("NOTIFY_SOCKET", ""))
    if name[:1] not in (b"/", b"@") or not hasattr(socket, "AF_UNIX"):
        return False  # not under systemd; or a vsock address, which is for virtual machines
    address = b"\0" + name[1:] if name[:1] == b"@" else name
    message = "\n".join(assignments).encode("utf-8", "replace")
    try:
        with _kept_socket() as sock:
            if wait:
                set_send_timeout(sock, wait)
            sock.sendto(message, 0 if wait else socket.MSG_DONTWAIT, address)
        return True
    except OSError:
        return False


_kept = Owned(-1)


@contextlib.contextmanager
def _kept_socket() -> Iterator[socket.socket]:
    """The socket that sends the messages. It is kept from the first one on: at the end of a reload, clients may have
    all descriptors, and systemd would wait for a ``READY`` that is lost."""
    global _kept
    if not _kept.is_ours():
        _kept = Owned(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach())
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM, fileno=_kept.number)
    try:
        sock.settimeout(None)  # a module may have set another for all sockets
        yield sock
    finally:
        sock.detach()


def reloading() -> str:
    """The message that a reload begins. ``READY`` reports its end. The time is for ``Type=notify-reload``, where
    systemd waits for a reload that began after it asked for one."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def status(text: str) -> str:
    """The text that ``systemctl status`` shows. A line break in it would begin another assignment, and a NUL would make
    the whole message invalid, so both become spaces."""
    return "STATUS=" + "".join(character if character.isprintable() else " " for character in text)
