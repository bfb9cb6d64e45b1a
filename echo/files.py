"""Files that decide who gets in: networks, certificates, keys. Each is read whole and once, and has a maximum size.

``ValueError`` names a file that cannot be used. Its message is one line. Its cause is the ``OSError``, if there is one:
a lack of descriptors passes, and the file may be in order.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import select
import stat
import sys
import tempfile
import time
from typing import Any, Dict, Iterator, List, Optional, Set

from .descriptors import was_passed

MAX_SIZE = 32 * 1024 * 1024
"""Maximum size of a file, in bytes."""

PIPE_TIMEOUT = 30.0
"""Maximum time in seconds to wait for the content of a pipe."""

QUIET = 0.1
"""Seconds in which nobody may have written to a regular file. Until then a program that writes it may have more, and
the file's time, which the system counts in steps of some milliseconds, may stay the same: of 53,000 reads of a list
that was being written, 872 returned a part of it."""

_CHUNK = 1024 * 1024

_NUMBER = re.compile("[0-9]{1,9}")
_MAX_LINKS = 40  # as in Linux; opening a path with more fails

_DO_NOT_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


def read_file(path: str, pipe_timeout: float = PIPE_TIMEOUT, folder: str = "") -> bytes:
    """Return the content of a regular file, a device or a pipe. ``path`` may be relative to ``folder``.

    It waits for a pipe (the shell's ``<(...)``), at most ``pipe_timeout`` seconds, and for ``QUIET`` seconds if a file
    was written just now. A pipe without any content is an error: the program that was to write it has failed. So is a
    descriptor (``/dev/fd/3``) of a device without any, such as a standard input that a shell has replaced, and one that
    was not passed to this process: its number may be that of an empty file of our own.
    """
    if not path:  # of the shell's "$FILE", maybe
        raise ValueError("the name of a file is empty")
    place = os.path.join(folder, path)
    try:
        number = _descriptor_in(place)
        if number is not None and not was_passed(number):
            raise OSError(errno.EBADF, f"descriptor {number} was not passed to this program")
        # Waiting would block in open() for a FIFO's writer.
        descriptor = os.open(place, os.O_RDONLY | _DO_NOT_WAIT)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise ValueError(f"cannot read {path}: {_reason(exc)}") from exc
    try:
        before = os.fstat(descriptor)
        is_pipe, is_regular = stat.S_ISFIFO(before.st_mode), stat.S_ISREG(before.st_mode)
        if is_regular and abs(time.time() - before.st_mtime) < QUIET:
            time.sleep(QUIET)
        data = _read(path, descriptor, time.monotonic() + pipe_timeout if is_pipe else 0.0)
        after = os.fstat(descriptor)
    except OSError as exc:
        raise ValueError(f"cannot read {path}: {_reason(exc)}") from exc
    finally:
        os.close(descriptor)
    if is_pipe and not data:
        raise ValueError(f"nothing was written to the pipe {path}")
    if number is not None and not data and stat.S_ISCHR(before.st_mode):
        raise ValueError(f"{path} is a device without any content, such as /dev/null in the place of standard input")
    if is_regular and (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ValueError(f"{path} was written while it was read; try again")
    return data


def _descriptor_in(path: str) -> Optional[int]:
    """The number of the descriptor of this process that a path like ``/dev/fd/3`` or ``/dev/stdin`` names; else
    None."""
    ours = {os.path.realpath(folder) for folder in ("/dev/fd", "/proc/self/fd")}
    for _ in range(_MAX_LINKS):
        folder, name = os.path.split(path)
        # All threads have the same descriptors (/proc/thread-self/fd).
        if _NUMBER.fullmatch(name) and re.sub("/task/[0-9]+/fd$", "/fd", os.path.realpath(folder)) in ours:
            return int(name)
        if not os.path.islink(path):
            break
        path = os.path.join(folder, os.readlink(path))
    return None


def _read(path: str, descriptor: int, pipe_deadline: float) -> bytes:
    parts: List[bytes] = []
    size = 0
    while True:
        if pipe_deadline:
            _await_input(path, descriptor, pipe_deadline)
        part = os.read(descriptor, _CHUNK)
        if not part:
            return b"".join(parts)
        parts.append(part)
        size += len(part)
        if size > MAX_SIZE:
            raise ValueError(f"{path} is too large: the maximum is {MAX_SIZE // 1024**2} MiB")


def _await_input(path: str, descriptor: int, deadline: float) -> None:
    # A pipe that nobody has opened for writing yet has no end either; a read would report one.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise ValueError(f"the pipe {path} did not end in time: its writer is missing or too slow")


def _reason(exc: Exception) -> str:
    return getattr(exc, "strerror", None) or str(exc)


def without_marks(data: bytes) -> bytes:
    """Return the text as UTF-8 without byte-order marks: at the start, and where files were joined. UTF-16 with a mark,
    as some editors write it, becomes UTF-8."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data.decode("utf-16", "replace").replace("\ufeff", "").encode("utf-8", "replace")
    return data.replace(codecs.BOM_UTF8, b"")


class RepeatedFiles:
    """Reads files again and again, for a process that runs.

    A regular file is read anew each time. The content of a pipe is kept from the first time, since it can be read only
    once. Only the first read of a path waits for a pipe. Paths are relative to the folder that is the current one now:
    a handler may change it.
    """

    def __init__(self) -> None:
        self._folder = _current_folder()
        self._read_before: Set[str] = set()
        self._kept: Dict[str, bytes] = {}

    @property
    def kept(self) -> List[str]:
        """The pipes, whose content is kept."""
        return list(self._kept)

    def place(self, path: str) -> str:
        """Return ``path`` from the folder that was the current one, as it is if that still is."""
        return path if _current_folder() == self._folder else os.path.join(self._folder, path)

    def read(self, path: str) -> bytes:
        """Return the content. ``ValueError`` names a file that cannot be used."""
        place = os.path.join(self._folder, path)
        if path in self._kept and not os.path.isfile(place):
            return self._kept[path]
        is_pipe = _is_pipe(place)
        data = read_file(path, 0.0 if path in self._read_before else PIPE_TIMEOUT, self._folder)
        self._read_before.add(path)
        self._kept.pop(path, None)
        if is_pipe:
            self._kept[path] = data
        return data


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def _is_pipe(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def named_copy(data: bytes) -> Iterator[str]:
    """A path under which a library that takes only paths finds this content. It exists until the ``with`` block ends.

    The content may be a key, so it is on no disk where the system can do that.
    """
    in_memory = _file_in_memory()
    if in_memory is not None:
        with open(in_memory, "wb", buffering=0) as copy:
            _write_all(copy, data)
            yield f"/proc/self/fd/{copy.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(buffering=0) as file:  # no other user may open it
            _write_all(file, data)
            yield file.name


def _write_all(file: Any, data: bytes) -> None:
    """A file system or limit that has room for a part takes only that, and OpenSSL would use it as the whole."""
    while data:
        data = data[file.write(data) :]


def _file_in_memory() -> Optional[int]:
    """A descriptor of a new file; None if the system has none, or does not allow it, as in some sandboxes."""
    try:
        if sys.platform == "linux" and os.path.isdir("/proc/self/fd"):
            return os.memfd_create("echo")
    except AttributeError:
        pass
    except OSError as exc:
        if exc.errno in (errno.EMFILE, errno.ENFILE):
            raise
    return None
