"""Descriptors of our own that other code of the process may close, since each is just a number (``os.closerange``);
and the standard ones, if the process began without them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Optional, Set, Tuple

_opened: Set[int] = set()
"""The standard descriptors that ``open_missing`` has opened."""


class Owned:
    """A descriptor that only this module uses. Other code may still close it, since it is just a number
    (``os.closerange``). The number may then belong to the next client.

    ``instead_of``: an earlier descriptor of the same terminal, which was opened by another name than ``/dev/tty``.
    """

    def __init__(self, number: int, instead_of: Optional[Owned] = None) -> None:
        self.number = number
        self.identity = _identity(number)
        self._identities: Set[object] = {self.identity, *(instead_of._identities if instead_of is not None else ())}

    def is_ours(self) -> bool:
        """Whether it still refers to what it was made for."""
        return self.identity is not None and _identity(self.number) == self.identity

    def is_also(self, number: int) -> bool:
        """Whether that descriptor refers to the same, by any of its names."""
        found = _identity(number)
        return self.identity is not None and found is not None and found in self._identities

    def find(self) -> int:
        """Return its number; if other code has closed it, that of stderr's own if that is the same file, else -1."""
        if self.is_ours():
            return self.number
        return 2 if self.is_also(2) else -1

    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.identity is not None and stat.S_ISREG(self.identity[2])

    def close(self) -> None:
        """Close it, unless its number belongs to something else now."""
        if self.is_ours():
            os.close(self.number)
        self.identity = None


def duplicate(descriptor: int) -> Owned:
    """Return a duplicate of a descriptor. It refers to nothing if the descriptor is closed. Raises ``OSError`` for want
    of descriptors: a process without a log could not report that."""
    try:
        return Owned(os.dup(descriptor))
    except OSError as exc:
        if exc.errno != errno.EBADF:
            raise
        return Owned(-1)


def open_missing() -> None:
    """Open the null device in place of each standard descriptor that is closed, if it can be opened.

    Otherwise the next file or socket gets its number, and what a library or a child writes to standard error goes
    there. ``sys.stdin`` and ``sys.stdout`` remain None.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):  # a bare chroot has none, for example
                opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
                _opened.add(opened)
                os.set_inheritable(opened, True)


def was_passed(number: int) -> bool:
    """Whether this process began with this descriptor, and has not opened it itself: what Python opens is not
    inheritable."""
    try:
        return os.get_inheritable(number) and number not in _opened
    except OSError:
        return False


def _identity(descriptor: int) -> Optional[Tuple[int, int, int]]:
    """The device and inode that a descriptor refers to, and its kind; None if it is closed. Its permissions are left
    out: they may change (``chmod`` of a log file, ``mesg n`` at a terminal)."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)
