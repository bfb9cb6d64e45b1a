"""A distribution of durations: any number of samples in bounded memory. Distributions can be merged.

It counts nanoseconds. It does not know messages, clocks or terminals.
"""

from __future__ import annotations

import math
from typing import Dict, Iterable, List, Optional, Tuple

SECOND = 1_000_000_000
"""One second in nanoseconds, the unit of all times in this package."""

_KEPT_BITS = 11
"""Number of leading bits of a sample that are kept, which is the idea of HdrHistogram. A sample is off by less than
0.05 %, and all durations from a microsecond to an hour need at most some 33,000 counters. Least, greatest and mean are
exact."""


_PERCENT = 10**5  # in integers, percentiles are exact


class Distribution:
    """Samples in nanoseconds: their ``count``, ``least`` and ``greatest`` (None without samples), and the methods."""

    def __init__(self) -> None:
        self.count = 0
        self.least: Optional[int] = None
        self.greatest: Optional[int] = None
        self._total = 0
        self._squares = 0
        self._counts: Dict[int, int] = {}

    def add(self, sample: int) -> None:
        """Add a sample, 0 or more."""
        self.count += 1
        self._total += sample
        self._squares += sample * sample
        if self.least is None or sample < self.least:
            self.least = sample
        if self.greatest is None or sample > self.greatest:
            self.greatest = sample
        dropped = sample.bit_length() - _KEPT_BITS
        if dropped > 0:
            sample = sample >> dropped << dropped
        self._counts[sample] = self._counts.get(sample, 0) + 1

    def merge(self, other: Distribution) -> None:
        """Add all samples of another distribution."""
        self.count += other.count
        self._total += other._total
        self._squares += other._squares
        self.least = min((x for x in (self.least, other.least) if x is not None), default=None)
        self.greatest = max((x for x in (self.greatest, other.greatest) if x is not None), default=None)
        for value, count in other._counts.items():
            self._counts[value] = self._counts.get(value, 0) + count

    @property
    def mean(self) -> float:
        """The arithmetic mean; 0 without samples."""
        return self._total / self.count if self.count else 0.0

    @property
    def deviation(self) -> float:
        """The standard deviation of all samples, which ping calls ``mdev``; 0 without samples."""
        if not self.count:
            return 0.0
        # In integers: the squares of long round trips are too large for the precision of a float.
        return math.sqrt(max(0, self.count * self._squares - self._total**2)) / self.count

    def percentile(self, percent: float) -> Optional[int]:
        """The percentile by nearest rank. ``percent`` may have five decimals.

        None if there are too few samples for one of them to lie above it: fewer than 1,000 for 99.9, say.
        """
        share = round(percent * _PERCENT)
        if self.count * (100 * _PERCENT - share) < 100 * _PERCENT:
            return None
        rank = -(-self.count * share // (100 * _PERCENT))
        for value, count in sorted(self._counts.items()):
            rank -= count
            if rank <= 0:
                return self._middle(value)
        raise AssertionError("the counts are fewer than the samples")

    def percentiles(self, percents: Iterable[float]) -> List[Tuple[float, int]]:
        """Those of ``percents`` for which there are enough samples, with their values."""
        found = ((percent, self.percentile(percent)) for percent in percents)
        return [(percent, value) for percent, value in found if value is not None]

    def between(self, edges: List[int]) -> List[int]:
        """The number of samples in each interval between two edges, including the lower one."""
        counts = [0] * (len(edges) - 1)
        place = 0
        for value, count in sorted(self._counts.items()):
            middle = self._middle(value)
            while place < len(counts) and middle >= edges[place + 1]:
                place += 1
            if place < len(counts) and middle >= edges[0]:
                counts[place] += count
        return counts

    def _middle(self, value: int) -> int:
        dropped = value.bit_length() - _KEPT_BITS
        if dropped > 0:
            value += 1 << (dropped - 1)
        assert self.least is not None and self.greatest is not None
        return min(max(value, self.least), self.greatest)
