"""The pause after a failure: longer with each failure in a row, and logged once for each shortage. And a rest, which
the server asks for.

It knows a clock and nothing else.
"""

from __future__ import annotations

import time
from typing import Callable

MIN_PAUSE = 0.01
MAX_PAUSE = 1.0
"""Seconds without accepting after a failure; each further one doubles them. Without a pause the standard library
fails over 400,000 times a second on a full core (gh-151615)."""

SILENCE = 10.0
"""Seconds in which one failure is logged at most: during a recovery some accepts succeed before the last one fails."""


class BackOff:
    """A pause after each failure in a row, from ``MIN_PAUSE`` doubling up to ``MAX_PAUSE``. ``clock`` counts in
    seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.pause = 0.0
        self._pauses_until = 0.0
        self._rests_until = 0.0
        self._logged = False
        self._silent_until = 0.0

    def failed(self) -> bool:
        """Pause from now on; return whether to log it."""
        now = self._clock()
        log = not self._logged and now >= self._silent_until
        if log:
            self._logged = True
            self._silent_until = now + SILENCE
        self.pause = min(2 * self.pause, MAX_PAUSE) or MIN_PAUSE
        self._pauses_until = now + self.pause
        return log

    def succeeded(self) -> bool:
        """End the pause; return whether to log it."""
        log, self._logged = self._logged, False
        self.pause = self._pauses_until = 0.0
        return log

    def resume(self) -> None:
        """End the pause, without a success: the next attempt is the last one."""
        self._pauses_until = 0.0

    def rest(self, seconds: float) -> None:
        """Accept nobody for so many seconds from now on, although nothing has failed: what is freed meanwhile is for
        something else. 0 ends the rest; a success does not."""
        self._rests_until = self._clock() + seconds

    @property
    def resume_at(self) -> float:
        """When both the pause and the rest are over."""
        return max(self._pauses_until, self._rests_until)

    def resting(self) -> bool:
        """Whether the pause or the rest lasts."""
        return self.resume_at > 0 and self._clock() < self.resume_at
