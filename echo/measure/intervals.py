"""The measured time in intervals of equal length: what happened in each, over all processes of a load."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Iterator, NamedTuple

from .load import Period, Slice


class Interval(NamedTuple):
    """From when to when, in nanoseconds after the measured time began, and the counts."""

    begin: int
    end: int
    counts: Slice


class Intervals:
    """Adds up the slices of ``sources``, each by the interval in which it begins. The processes cut their slices where
    an interval ends."""

    def __init__(self, period: Period, sources: Iterable[Any]) -> None:
        self._period = period
        self._known_until = dict.fromkeys(sources, 0)
        self._counts: Dict[int, Slice] = {}
        self._next = 0

    def add(self, source: Any, part: Slice) -> None:
        """Add the next slice of a source."""
        began = self._known_until[source] - self._period.begin
        self._known_until[source] = part.until
        if 0 <= began < self._period.end - self._period.begin:
            self._counts.setdefault(began // self._period.interval, Slice()).merge(part)

    def end(self, source: Any) -> None:
        """No further slice comes from this source."""
        del self._known_until[source]

    def completed(self, until: int) -> Iterator[Interval]:
        """Return each interval once, as soon as all of its slices have come.

        ``until``: when the load is expected to end, counted as in ``Period``. It may cut the last interval.
        """
        begin, length = self._period.begin, self._period.interval
        known = min(self._known_until.values(), default=until)
        while True:
            start = begin + self._next * length
            end = min(start + length, until)
            if not start < end <= known:
                break
            yield Interval(start - begin, end - begin, self._counts.pop(self._next, Slice()))
            self._next += 1
