"""How a load is doing, as a line for a terminal: a bar, the time left, the rate, round trips, and the rates so far."""

from __future__ import annotations

import collections
from typing import Callable, Deque, Sequence, Tuple

from .distribution import Distribution
from .figures import has_blocks, percentile_name
from .report import milliseconds

REMEMBERED = 500
"""Maximum number of intervals that the rates are kept of."""

BAR_WIDTH = 24
SHOWN_RATES = 40
"""Maximum columns of the bar, and of the rates so far."""

_GAP = "  "


class Progress:
    """``duration``: of the load, in seconds. ``encoding``: of the terminal, which may not have block characters."""

    def __init__(self, duration: float, encoding: str) -> None:
        self._duration = duration
        self._full, self._half, self._empty, self._levels = _BLOCKS if has_blocks(encoding) else _SIGNS
        self._rates: Deque[float] = collections.deque(maxlen=REMEMBERED)
        self._latency = ""

    def add(self, rate: float, rtt: Distribution) -> None:
        """An interval is over. ``rate``: messages a second in it; ``rtt``: its round trips."""
        self._rates.append(rate)
        times = [f"{percentile_name(percent)} {milliseconds(ns):>5}" for percent, ns in rtt.percentiles([50.0, 99.0])]
        self._latency = f"{'  '.join(times)} ms" if times else ""

    def line(self, elapsed: float, wrong: int, lost: int, width: int, paint: Callable[[str, str], str]) -> str:
        """Return the line, at most ``width`` columns wide, after ``elapsed`` seconds (less than 0: in the warm-up).

        Parts that do not fit are left out: first the rates so far, then the round trips, the bar, and the rate.
        """
        left = f"{_clock(max(0.0, self._duration - elapsed)).rjust(len(_clock(self._duration)))} left"
        left = left if elapsed >= 0 else "warming up"
        done, rest = self._bar(elapsed / self._duration, min(BAR_WIDTH, width // 5))
        rate = f"{self._rates[-1]:,.0f}/s".rjust(9) if self._rates else ""
        bad = ", ".join(f"{count:,} {what}" for count, what in ((wrong, "wrong"), (lost, "lost")) if count)
        parts = [  # as they stand in the line: rank, text, and the text in colors
            (4, done + rest, paint("good", done) + paint("faint", rest)),
            (1, left, left),
            (3, rate, paint("strong", rate)),
            (5, self._latency, self._latency),
            (2, bad, paint("bad", bad)),
        ]
        shown = set()
        free = width
        for rank, text, _ in sorted(parts):
            if text and len(text) <= free:
                shown.add(rank)
                free -= len(text) + len(_GAP)
        texts = [painted for rank, _, painted in parts if rank in shown]
        if self._rates and free > 0:
            texts.append(self._spark(list(self._rates)[-min(free, SHOWN_RATES) :]))
        return _GAP.join(texts)

    def _bar(self, share: float, width: int) -> Tuple[str, str]:
        """The part that is done, and the rest."""
        halves = round(2 * width * min(1.0, max(0.0, share)))
        bar = self._full * (halves // 2) + self._half * (halves % 2)
        return bar, self._empty * (width - len(bar))

    def _spark(self, rates: Sequence[float]) -> str:
        most = max(rates) or 1.0
        return "".join(self._levels[min(len(self._levels) - 1, int(rate / most * len(self._levels)))] for rate in rates)


_BLOCKS = "━", "╸", "─", "▁▂▃▄▅▆▇█"
_SIGNS = "#", "=", "-", "_.:-=+*#"
"""A bar's full, half and empty columns, and the levels of a rate."""


def _clock(seconds: float) -> str:
    """Seconds as text: ``9 s``, ``1:30``, ``1:00:00``."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
