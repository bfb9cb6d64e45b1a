"""Listening sockets: which family an address has, and the care that a Unix socket's path needs.

A path outlives the server that bound it. A dead server's path is taken over; a live server's path, and a file that
is no socket, are not (asyncio #425, neovim #37378). Nothing is accepted here, and no server is known.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from typing import Any, Optional, Tuple

_PEER = struct.Struct("@iII")  # struct ucred: pid, uid, gid

Inode = Tuple[int, int]


def family_of(address: Any) -> Optional[socket.AddressFamily]:
    """The address family that an address asks for; None if it does not say."""
    if isinstance(address, (str, bytes)):
        if not hasattr(socket, "AF_UNIX"):
            raise ValueError("this system has no Unix sockets; an address is (host, port)")
        return socket.AF_UNIX
    if isinstance(address, tuple) and address and ":" in str(address[0]):
        return socket.AF_INET6
    return None


def check_listening(sock: socket.socket) -> None:
    """``ValueError`` for a socket that clients cannot be accepted from."""
    if sock.type != socket.SOCK_STREAM:
        raise ValueError("this is no stream socket; a server needs one that listens")
    try:
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as exc:
        raise ValueError(f"this socket cannot be served: {exc.strerror}") from None
    if not listens:
        raise ValueError("this socket does not listen; bind it, and call listen(), first")


def with_zone(address: Any) -> Any:
    """The address as ``bind`` wants it: of ``("fe80::1%eth0", port)`` it would take the host and drop the zone."""
    if isinstance(address, tuple) and len(address) == 2 and "%" in str(address[0]):
        found = socket.getaddrinfo(*address, socket.AF_INET6, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return found[0][4]
    return address


def absolute(path: Any) -> Any:
    """The path, whatever the current folder will be when the server closes."""
    return os.path.abspath(path) if _is_file(path) else path


def claim_path(path: Any) -> None:
    """Make way for a Unix socket at ``path``: remove a dead server's socket; ``OSError`` for whatever else is there."""
    if not _is_file(path):
        return
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EADDRINUSE, f"{os.fsdecode(path)} is no socket; it is left alone")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a live server's backlog may be full
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # nobody listens any more
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, f"another server listens on {os.fsdecode(path)}")


def inode_of(path: Any) -> Optional[Inode]:
    """What tells this file from a later one of the same name; None for an abstract address."""
    if not _is_file(path):
        return None
    status = os.stat(path)
    return status.st_dev, status.st_ino


def release_path(path: Any, inode: Optional[Inode]) -> None:
    """Remove the path if it still is the file that was bound, and not another server's that came after.

    To be called while the socket is open: once it is closed, its inode's number may be the next server's.
    """
    try:
        if inode is not None and inode_of(path) == inode:
            os.unlink(path)
    except OSError:
        pass


def _is_file(path: Any) -> bool:
    return bool(path) and os.fsencode(path)[:1] != b"\0"


def peer_name(sock: socket.socket) -> str:
    """Name the client of a Unix socket, which has no address, by its process: ``unix:pid=4711,uid=1000``."""
    try:
        pid, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    except (AttributeError, OSError):  # not Linux
        return "unix"
    return f"unix:pid={pid},uid={uid}"
