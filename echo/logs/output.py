"""A descriptor to which whole lines are written, or nothing.

It knows no records, only lines.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import tempfile
import time
from typing import Any, Iterator, List, Optional

from ..descriptors import Owned, duplicate
from ..server import forking

fcntl: Any
resource: Any
try:
    import fcntl  # here, and not when the first lock is taken: the process may fork inside an import of a thread
except ImportError:  # Windows, where processes do not fork
    fcntl = None
try:
    import resource
except ImportError:
    resource = None

PATIENCE = 0.25
"""Seconds that an output which must not wait waits for another process to finish its line, or for the reader to let it
finish its own: a pipe may take the beginning of a long line, and no more."""

NOT_READ = "the log was not read"
"""Why lines are lost that could not be written without waiting."""


class Output:
    """A duplicate of ``descriptor``, made here: other code may close its own (``os.close(2)``).

    Other processes may write to it, too, and this one may end while it writes. A pipe takes ``PIPE_BUF`` bytes in one
    go; a longer line is written under ``lock``, which the processes of a server share. ``waits``: whether to wait for
    room, and for the lock, for as long as it takes.
    """

    patience = PATIENCE

    def __init__(self, descriptor: int, *, lock: Optional[Owned] = None, waits: bool = True) -> None:
        self._lock = lock
        self._in_haste = False
        self._locked_now = False
        self._waits = waits
        self._error: Optional[OSError] = None
        self._rest = b""  # of a line that was written in part
        self._unfinished = b""
        self._waits_for_lock = False
        self._is_reopened = False
        self._own = duplicate(descriptor)
        if not waits:
            self.wait_no_more()

    def wait_no_more(self) -> None:
        """From now on drop what cannot be written without waiting."""
        self._waits = self._waits_for_lock = False
        # Another process may fill the pipe between a look and the write. A descriptor that is opened anew can be
        # non-blocking without changing that of the others. A socket cannot be opened so, and a regular file never
        # blocks, and must not be opened again, since all its writers share one position.
        if self._own.is_file() or not self._own.is_ours():  # its number may be a file of other code
            return
        if self._is_reopened:  # not once more: in a child of pty.fork(), /dev/tty is another terminal
            return
        flags = os.O_WRONLY | os.O_NONBLOCK | _NO_TERMINAL
        with contextlib.suppress(OSError):
            try:
                again = os.open(f"/dev/fd/{self._own.number}", flags)
            except PermissionError:  # another user's, as after `su`
                os.tcgetpgrp(self._own.number)  # raises unless it is the terminal of this session
                again = os.open("/dev/tty", flags)
            new = Owned(again, instead_of=self._own)
            self._own.close()
            self._own, self._is_reopened = new, True

    def let_go(self) -> None:
        """In a forked child, which has no thread that could wait: a line that was begun is its parent's."""
        self._rest = b""
        self._locked_now = False
        self.wait_no_more()

    def hurry(self) -> None:
        """Any thread may call this: from now on each write takes at most what a pipe takes in one go."""
        self._in_haste = True

    def close(self) -> None:
        """Close the duplicate."""
        self._own.close()

    def problem(self) -> str:
        """Why lines could not be written."""
        if isinstance(self._error, (BlockingIOError, PermissionError)):  # the output, or the lock
            return NOT_READ
        return f"the log could not be written ({self._error.strerror if self._error else 'unknown'})"

    def takes_what_is_written_to(self, stream: Any) -> bool:
        """Whether this is where a stream writes; True, too, if it is None or closed, False if it has no descriptor."""
        try:
            return stream is None or stream.closed or self._own.is_also(stream.fileno())
        except Exception:
            return False

    def has_room(self) -> bool:
        """Whether a write would not block now."""
        return not self._waits_for_lock and not self.is_full()

    def is_full(self) -> bool:
        """Whether a write would wait for the reader now."""
        return not _can_write(self._own.number, 0)

    def write(self, lines: List[bytes]) -> int:
        """Write the lines, each as a whole; return how many were lost."""
        written = 0
        try:
            for number, piece in enumerate([lines] if self._own.is_file() else _pieces(lines)):
                if number and self._in_haste:
                    raise BlockingIOError
                with self._locked(self._lock_for(piece)):
                    lost = self._write(piece)
                written += len(piece) - lost
                if lost:
                    break
        except OSError as exc:
            self._error = exc
        return len(lines) - written

    def _write(self, lines: List[bytes]) -> int:
        if not self._own.is_ours():
            self._find_again()
        self._look_for_unfinished()
        data = self._rest + b"".join(lines)
        view = memoryview(data)
        done = 0
        size = len(data)
        deadline = None
        if not self._waits:
            # One deadline for all parts, however little a slow reader takes at a time; and only one line waits.
            deadline = time.monotonic() + (0.0 if self._rest else self.patience)
            if not self._own.is_file():
                size = _PIPE_BUF  # where there is room, a descriptor that blocks takes this much at once
        try:
            if not self._waits and not self.has_room():
                raise BlockingIOError
            self._mark(self._locked_now and len(data) > _PIPE_BUF)  # a pipe takes a shorter one whole
            while done < len(data):
                if done and not self._own.is_ours():  # closed while this waited: the number may be a client's
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                try:
                    done += os.write(self._own.number, view[done : done + size])
                    if done < len(data) and self._own.is_file():
                        # To write the rest would make it the beginning of the file, if somebody empties that now.
                        raise self._cut()
                    must_look = not self._waits and done < len(data)
                except BlockingIOError:  # the descriptor is shared, and another program has made it non-blocking
                    must_look = True
                if must_look and not _can_write(self._own.number, _time_left(deadline)):
                    raise BlockingIOError
        except OSError as exc:
            self._error = exc
            lost = self._lost(lines, data, done)
        except BaseException:  # of a signal handler of the program
            self._lost(lines, data, done)
            raise
        else:
            lost, self._rest = 0, b""
        self._mark(bool(self._rest))
        return lost

    def _look_for_unfinished(self) -> None:
        """End the line of another process that died in it, or could not go on; and forget the rest of our own if
        another process has ended it. The file of the lock holds the number of the process."""
        if self._lock is not None and self._locked_now:
            unmarked = bool(self._rest) and not self._unfinished  # no other process knows that it is to be ended
            self._unfinished = os.pread(self._lock.number, 20, 0)
            if self._unfinished != b"%d" % os.getpid():
                self._rest = b"\n" if self._unfinished or unmarked else b""

    def _mark(self, unfinished: bool) -> None:
        """Note whether a line of this process is unfinished."""
        owner = b"%d" % os.getpid() if unfinished else b""
        if self._lock is not None and self._locked_now and owner != self._unfinished:
            os.ftruncate(self._lock.number, 0)
            self._unfinished = b""
            with contextlib.suppress(OSError):  # no room, or `ulimit -f 0`: the line goes out all the same
                os.pwrite(self._lock.number, owner, 0)
                self._unfinished = owner

    def _find_again(self) -> None:
        """Other code has closed our descriptor: go on with stderr's own, if that is where the log goes."""
        number = self._own.find()
        if number == -1:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._own, self._is_reopened = duplicate(number), False
        if not self._waits:
            self.wait_no_more()

    def _lost(self, lines: List[bytes], data: bytes, done: int) -> int:
        """Only ``done`` bytes were written: how many of the lines are lost? One that was written in part is taken back
        from a file. Elsewhere the next write finishes it, before anything else."""
        end = len(self._rest)
        if done < end:
            self._rest = self._rest[done:]
            return len(lines)
        whole = 0
        while whole < len(lines) and end + len(lines[whole]) <= done:
            end += len(lines[whole])
            whole += 1
        self._rest = b""
        if done > end and self._own.is_file():
            self._take_back(done - end)
        elif done > end:
            self._rest = data[done : end + len(lines[whole])]
            whole += 1
        return len(lines) - whole

    def _cut(self) -> OSError:
        """Why a file has taken only a part: the limit of the process (``ulimit -f``), or the disk is full."""
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0] if resource is not None else None
        number = errno.EFBIG if os.lseek(self._own.number, 0, os.SEEK_CUR) == limit else errno.ENOSPC
        return OSError(number, os.strerror(number))

    def _take_back(self, size: int) -> None:
        """Shorten the file by what was written last, unless another program has written to it since."""
        with contextlib.suppress(OSError):
            end = os.lseek(self._own.number, 0, os.SEEK_CUR)
            if os.fstat(self._own.number).st_size == end:
                os.ftruncate(self._own.number, end - size)
                os.lseek(self._own.number, end - size, os.SEEK_SET)

    def _lock_for(self, lines: List[bytes]) -> Optional[Owned]:
        """The lock, unless other code has closed it. For short lines of a process that has forked no other it is not
        needed: it takes 5 us, and all else for a line 19."""
        if self._lock is None or not (forking.forks or self._rest or sum(map(len, lines)) > _PIPE_BUF):
            return None
        return self._lock if self._lock.is_ours() else None

    @contextlib.contextmanager
    def _locked(self, lock: Optional[Owned]) -> Iterator[None]:
        if lock is None:
            yield
            return
        # Such a lock belongs to the process, and goes with it, whatever kills it.
        self._waits_for_lock = self._waits
        try:
            fcntl.lockf(lock.number, fcntl.LOCK_EX | (0 if self._waits else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):  # another process may be in the middle of a line
            if not self._wait_for_lock():
                raise
        self._waits_for_lock = False
        self._locked_now = True
        try:
            yield
        finally:
            self._locked_now = False
            with contextlib.suppress(OSError):
                fcntl.lockf(lock.number, fcntl.LOCK_UN)

    def _wait_for_lock(self) -> bool:
        assert self._lock is not None
        deadline = time.monotonic() + self.patience
        while self.has_room() and time.monotonic() < deadline:  # without room the other one may wait for long
            time.sleep(0.001)
            with contextlib.suppress(OSError):
                fcntl.lockf(self._lock.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
        return False


def new_lock() -> Optional[Owned]:
    """Return a descriptor that processes can share as the ``lock`` of their outputs; None where there is none."""
    if not hasattr(os, "fork"):
        return None
    try:
        with contextlib.suppress(AttributeError, OSError):  # elsewhere than on Linux, and in some sandboxes
            return Owned(os.memfd_create("echo-log"))
        with tempfile.TemporaryFile() as file:
            return duplicate(file.fileno())
    except OSError:
        return None


def _time_left(deadline: Optional[float]) -> Optional[float]:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _can_write(descriptor: int, timeout: Optional[float]) -> bool:
    """Wait until a write would not block; return whether that is so. ``timeout``: seconds; None: no limit."""
    try:
        if hasattr(select, "poll"):  # select() knows no descriptor above 1023
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            return bool(poll.poll(None if timeout is None else timeout * 1000))
        return bool(select.select([], [descriptor], [], timeout)[1])
    except (OSError, ValueError):
        return False


_NO_TERMINAL = getattr(os, "O_NOCTTY", 0)  # a daemon that writes to a terminal must not be ended with it

_PIPE_BUF: int = getattr(select, "PIPE_BUF", 4096)  # Windows has none


def _pieces(lines: List[bytes]) -> Iterator[List[bytes]]:
    """Group lines into pieces that a pipe takes in one go, so that another writer's lines cannot come between."""
    piece: List[bytes] = []
    size = 0
    for line in lines:
        if piece and size + len(line) > _PIPE_BUF:
            yield piece
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    yield piece  # empty if there are no lines: the rest of an earlier one may wait
