"""Balance of sessions over processes that share a port, so that each takes its part.

It knows numbers of sessions, in memory that all processes share, and neither sockets nor signals. Without it the worker
that wakes first takes all clients: of 12 connections three workers got 8, 3 and 0.
"""

from __future__ import annotations

import mmap
import time
from typing import Callable

SLACK = 2
"""Sessions that a worker may have more than another before it leaves a client to that one."""

HOLD_BACK = 0.002
"""Seconds for which a worker that is ahead leaves a new client to the others; then it takes the client itself."""

HOLD_STEP = 0.0002
"""Seconds after which it looks again, since short sessions come and go. With a pause of the whole 2 ms two workers took
2,700 short sessions a second, with steps 11,100, and 12,200 without any balance."""


class Balance:
    """How many sessions each of ``count`` workers has. ``become`` says which of them this process is."""

    slack = SLACK
    hold_time = HOLD_BACK

    def __init__(self, count: int) -> None:
        self._sessions = memoryview(mmap.mmap(-1, 4 * count)).cast("i")
        self._mine = 0

    def become(self, number: int) -> None:
        """This process is that worker."""
        self._mine = number

    def set(self, sessions: int) -> None:
        """Publish how many sessions this worker has."""
        self._sessions[self._mine] = sessions

    def hold_back(self, is_stopping: Callable[[], bool]) -> None:
        """Leave a new client to the others while this worker is ahead, for ``hold_time`` at most. A worker that is
        stopping does not wait: the others may have ended their sessions already."""
        deadline = time.monotonic() + self.hold_time
        while self.is_ahead() and not is_stopping() and time.monotonic() < deadline:
            time.sleep(HOLD_STEP)

    def is_ahead(self) -> bool:
        """Whether this worker has clearly more sessions than the one that has fewest."""
        least = min(self._sessions)
        return self._sessions[self._mine] > least + max(self.slack, least // 8)

    def has_sessions(self, number: int) -> bool:
        """Whether that worker has sessions, or had some when it died."""
        return self._sessions[number] > 0

    def began(self, number: int) -> None:
        """That worker is new, and has no sessions."""
        self._sessions[number] = 0

    def ended(self, number: int) -> None:
        """That worker is dead; the others do not wait for it."""
        self._sessions[number] = 2**31 - 1
