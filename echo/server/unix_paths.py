"""The path of a Unix socket, which outlives the server that bound it.

A dead server's path is taken over; a live server's path, and a file that is not a socket, are not (asyncio #425, neovim
#37378). Of several servers that start at the same time on one path, one gets it (flom #6). An address that is not a
file (abstract: it begins with a zero byte) is nobody's to remove.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import sys
import time
from typing import Any, Iterator, Optional, Tuple

if sys.platform != "win32":  # which has neither Unix sockets nor locks like these
    import fcntl
else:
    fcntl = None

START_TIMEOUT = 5.0
"""Maximum time in seconds to wait for other servers that start in the folder of a Unix socket's path."""

_PEER = struct.Struct("@iII")  # struct ucred: pid, uid, gid

Inode = Tuple[int, int]


def absolute(path: Any) -> Any:
    """Return the path, independent of the current folder, and of links to folders: both may be others when the server
    closes. Not with ``abspath``, which shortens ``link/../s`` to ``s``: that may be the path of another server."""
    if not is_file(path):
        return path
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


@contextlib.contextmanager
def start_alone(path: Any) -> Iterator[None]:
    """Keep other servers from starting at ``path``: two that find a dead server's socket there could both remove what
    they find, and the second would remove the first one's.

    It locks the folder, so it leaves no file behind. Where that is not possible, or another program has locked the
    folder for long, the start goes on without it.
    """
    folder = -1
    try:
        if fcntl is not None and is_file(path):
            with contextlib.suppress(OSError):  # binding reports what is wrong with the folder
                folder = os.open(os.path.dirname(path), os.O_RDONLY)
                _lock(folder, time.monotonic() + START_TIMEOUT)
        yield
    finally:
        if folder != -1:
            fcntl.flock(folder, fcntl.LOCK_UN)  # a child that another thread has forked meanwhile has it, too
            os.close(folder)


def _lock(descriptor: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return
            time.sleep(0.005)


def claim_path(path: Any) -> None:
    """Make way for a Unix socket at ``path``: remove a dead server's socket; ``OSError`` for any other file."""
    if is_file(path):
        with contextlib.suppress(FileNotFoundError):  # a server that stops may remove its socket at any moment
            _remove_dead(path)


def _remove_dead(path: Any) -> None:
    name = os.fsdecode(path)
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise OSError(errno.EADDRINUSE, f"{name} is not a socket; it is left alone")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a live server's backlog may be full
        failure = probe.connect_ex(path)
    if failure == errno.ECONNREFUSED:  # nobody listens any more
        try:
            os.unlink(path)
        except OSError as exc:
            if exc.errno != errno.EPERM:
                raise
            # The folder is sticky, as /tmp is. The user may write to it, so its permissions are not the reason.
            why = f"{name} is the socket of a dead server, and only its owner may remove it"
            raise OSError(errno.EADDRINUSE, why) from None
    elif failure == errno.EACCES:  # the folder may be writable all the same
        raise OSError(errno.EADDRINUSE, f"{name} is a socket that you may not use; it is left alone")
    elif failure in (0, errno.EAGAIN, errno.EPROTOTYPE):  # the last one: another kind of socket
        raise OSError(errno.EADDRINUSE, f"another server listens on {name}")
    else:
        raise OSError(failure, os.strerror(failure))


def check_not_taken(path: Any, inode: Inode) -> None:
    """``OSError`` if another server has taken the path from one that did not listen yet. A program may have renamed
    the file, or given up the right to look at it."""
    found = inode
    with contextlib.suppress(OSError):
        found = inode_of(path) or inode
    if found != inode:
        raise OSError(errno.EADDRINUSE, f"another server has taken {os.fsdecode(path)} before this one listened")


def set_mode(path: Any, mode: int) -> None:
    """Set the permissions of a Unix socket's path, and not those of another file: a program that may write to the
    folder can have put a link there."""
    try:
        os.chmod(path, mode, follow_symlinks=False)
    except NotImplementedError:  # it is a link; or a C library from before 2020, which cannot do it
        if os.path.islink(path):
            raise OSError(errno.ELOOP, f"{os.fsdecode(path)} has become a symbolic link") from None
        os.chmod(path, mode)


def inode_of(path: Any) -> Optional[Inode]:
    """Return what identifies this file among later ones of the same name; None for an abstract address."""
    if not is_file(path):
        return None
    status = os.stat(path)
    return status.st_dev, status.st_ino


def release_path(path: Any, inode: Optional[Inode]) -> None:
    """Remove the path if it still is the file that was bound, and not the file of a later server.

    Call it while the socket is open: once it is closed, a later server's file may get its inode number.
    """
    try:
        if inode is not None and inode_of(path) == inode:
            os.unlink(path)
    except OSError:
        pass


def is_file(path: Any) -> bool:
    return bool(path) and os.fsencode(path)[:1] != b"\0"


def peer_name(sock: socket.socket) -> str:
    """Name the client of a Unix socket, which has no address, by its process: ``unix:pid=4711,uid=1000``."""
    try:
        pid, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    except (AttributeError, OSError):  # not Linux
        return "unix"
    return f"unix:pid={pid},uid={uid}"
