"""What systemd and a service tell each other: here is your listening socket; I am ready, reloading, stopping.

It knows the two small protocols, those of sd_listen_fds(3) and sd_notify(3), and no server. Where nobody speaks them,
outside of systemd or on another system, there is no socket, nobody is told, and nothing fails.
"""

from __future__ import annotations

import os
import re
import socket
import time
from typing import Optional

FIRST_DESCRIPTOR = 3
"""What is passed comes after the standard streams."""

READY = "READY=1"
STOPPING = "STOPPING=1"

_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def listening_socket(first: int = FIRST_DESCRIPTOR) -> Optional[socket.socket]:
    """The listening socket that was passed to this process (socket activation), or None. ``first`` is the first of the
    descriptors that are passed.

    It can be asked once: the variables that tell of it are taken out of the environment, and it is made not
    inheritable, since it is nobody's but this process's. ``ValueError`` tells what was passed that cannot be served.
    """
    pid, count, *_ = [os.environ.pop(name, "") for name in _VARIABLES]
    if not pid or not count or _number("LISTEN_PID", pid) != os.getpid():
        return None  # or a parent's, which has left them lying about
    descriptors = range(first, first + _number("LISTEN_FDS", count))
    for descriptor in descriptors:
        try:
            os.set_inheritable(descriptor, False)
        except OSError:
            raise ValueError(f"LISTEN_FDS is {count}, but descriptor {descriptor} is closed") from None
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
    """What it is instead of a stream socket that listens; None if that is what it is."""
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


def notify(*assignments: str) -> bool:
    """Tell systemd, in one message, ``READY``, ``STOPPING``, ``reloading()``, ``status("...")``; whether it was sent.

    It never raises and never waits: news is worth less than the service. The environment is asked each time and
    stays as it is, since there is more to tell later; a child that inherits it is not listened to (``NotifyAccess=``).
    """
    name = os.fsencode(os.environ.get("NOTIFY_SOCKET", ""))
    if name[:1] not in (b"/", b"@") or not hasattr(socket, "AF_UNIX"):
        return False  # nobody asked; or over vsock, which is for whole machines
    address = b"\0" + name[1:] if name[:1] == b"@" else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(assignments).encode("utf-8", "replace"), address)
    except OSError:
        return False
    return True


def reloading() -> str:
    """A reload begins; ``READY`` tells of its end. The time is for ``Type=notify-reload``, which waits for a reload
    that has begun after it asked for one."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def status(text: str) -> str:
    """What ``systemctl status`` shows. A line of its own would be another assignment, and a NUL voids the message."""
    return "STATUS=" + "".join(character if character.isprintable() else " " for character in text)
