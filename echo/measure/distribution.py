"""A distribution of durations: any number of samples in bounded memory. Distributions can be merged.

It counts nanoseconds. It does not know messages, clocks or terminals.
"""

from __future__ import annotations

import math
from typing import Any, Dict, Iterable, List, Optional, Tuple

SECOND = 1_000_000_000
"""One second in nanoseconds, the unit of all times in this package."""

KEPT_BITS = 11
"""Number of leading bits of a sample that are kept, which is the idea of HdrHistogram. A sample is off by less than
0.05 %, and all durations from a microsecond to an hour need at most some 33,000 counters. Least, greatest and mean are
exact."""


_PERCENT = 10**5  # in integers, percentiles are exact

_MOST = 1 << 100
"""Maximum of each number in a distribution that is read, so that figures made of it are numbers, too."""


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
        dropped = sample.bit_length() - KEPT_BITS  # as in _bucket(); a call for each sample would take longer
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
        for value, count in self.buckets():
            rank -= count
            if rank <= 0:
                return value
        raise AssertionError("the counts are fewer than the samples")

    def percentiles(self, percents: Iterable[float]) -> List[Tuple[float, int]]:
        """Those of ``percents`` for which there are enough samples, with their values."""
        found = ((percent, self.percentile(percent)) for percent in percents)
        return [(percent, value) for percent, value in found if value is not None]

    def between(self, edges: List[int]) -> List[int]:
        """The number of samples in each interval between two edges, including the lower one."""
        counts = [0] * (len(edges) - 1)
        place = 0
        for value, count in self.buckets():
            while place < len(counts) and value >= edges[place + 1]:
                place += 1
            if place < len(counts) and value >= edges[0]:
                counts[place] += count
        return counts

    def buckets(self) -> Iterable[Tuple[int, int]]:
        """Yield the durations in order, each with its number of samples: the middle of those that count as one."""
        for value, count in sorted(self._counts.items()):
            yield self._middle(value), count

    def as_json(self) -> Dict[str, object]:
        """Everything about it, for ``from_json``: what is merged after that is as exact as before.

        Each pair in ``buckets`` is the least duration that counts as this one, in nanoseconds, and the number of
        samples. The sums may be greater than 2**53: a reader that has only floating-point numbers rounds them.
        """
        return {
            "count": self.count,
            "min_ns": self.least,
            "max_ns": self.greatest,
            "sum_ns": self._total,
            "sum_of_squares_ns2": self._squares,
            "buckets": [list(pair) for pair in sorted(self._counts.items())],
        }

    @classmethod
    def from_json(cls, value: Any) -> Distribution:
        """Return the distribution that ``as_json`` described. Raises ``ValueError``."""
        made = cls()
        try:
            pairs = [(low, count) for low, count in value["buckets"]]
            made.least, made.greatest = value["min_ns"], value["max_ns"]
            made.count, made._total = value["count"], value["sum_ns"]
            made._squares = value["sum_of_squares_ns2"]
        except (KeyError, TypeError, ValueError):
            raise ValueError("expected count, min_ns, max_ns, sum_ns, sum_of_squares_ns2 and buckets") from None
        made._counts = dict(pairs)
        if not made._is_consistent(pairs):
            raise ValueError("its numbers contradict each other")
        return made

    def _is_consistent(self, pairs: List[Tuple[Any, Any]]) -> bool:
        """Whether all are numbers that one set of samples can have had. ``pairs``: the buckets as they were read."""
        numbers = [self.count, self._total, self._squares, *(number for pair in pairs for number in pair)]
        if pairs:
            numbers += [self.least, self.greatest]
        if not all(type(number) is int and 0 <= number < _MOST**2 for number in numbers):
            return False
        lows = [low for low, _ in pairs]
        if lows != sorted(set(lows)) or self.count != sum(count for _, count in pairs):
            return False
        if not pairs:
            return self.least is None and self.greatest is None and not self._total and not self._squares
        if any(not count or low != _bucket(low) for low, count in pairs):
            return False
        assert self.least is not None and self.greatest is not None
        return (
            _bucket(self.least) == lows[0]
            and _bucket(self.greatest) == lows[-1] < _MOST
            and self.count * self.least <= self._total <= self.count * self.greatest
            and self._total**2 <= self.count * self._squares
        )

    def _middle(self, value: int) -> int:
        dropped = value.bit_length() - KEPT_BITS
        if dropped > 0:
            value += 1 << (dropped - 1)
        assert self.least is not None and self.greatest is not None
        return min(max(value, self.least), self.greatest)


def _bucket(sample: int) -> int:
    """The least of the durations that count as the same as this one."""
    dropped = max(0, sample.bit_length() - KEPT_BITS)
    return sample >> dropped << dropped
