"""A time series for reports, in a bounded number of points, however long it takes."""

from __future__ import annotations

from typing import Dict, List, Optional

from .distribution import SECOND, Distribution
from .report import microseconds

POINTS = 200
"""Maximum number of points. If there would be more, each two neighbours become one."""

SHORTEST_POINT = SECOND // 10
"""Minimum length of a point in nanoseconds."""

Columns = Dict[str, List[Optional[float]]]
"""A series as columns of equal length: ``from_s``, ``to_s``, ``messages``, ``messages_per_s``, ``p50_us``, ``p99_us``,
``max_us``, ``lost`` and ``wrong``. None: there were too few samples."""


class Point:
    """A part of the time: the number of messages that came back right, that were found to be lost and
    to be wrong, and the round trips."""

    def __init__(self) -> None:
        self.messages = self.lost = self.wrong = 0
        self.rtt = Distribution()

    def add(self, messages: int, lost: int, wrong: int, rtt: Distribution) -> None:
        self.messages += messages
        self.lost += lost
        self.wrong += wrong
        self.rtt.merge(rtt)


class Series:
    """Collects points of ``length`` nanoseconds, or a multiple of that."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._points: Dict[int, Point] = {}

    def at(self, moment: int) -> Point:
        """Return the point that a moment belongs to, in nanoseconds after the beginning."""
        while moment // self._length not in self._points and len(self._points) >= POINTS:
            self._length *= 2
            points, self._points = self._points, {}
            for index, point in points.items():
                half = self._points.setdefault(index // 2, point)
                if half is not point:
                    half.add(point.messages, point.lost, point.wrong, point.rtt)
        return self._points.setdefault(moment // self._length, Point())

    def as_columns(self, end: int) -> Columns:
        """The points in order. ``end``: when the measured time ended; it may cut the last point."""
        columns: Columns = {name: [] for name in ("from_s", "to_s", "messages", "messages_per_s")}
        columns.update((name, []) for name in ("p50_us", "p99_us", "max_us", "lost", "wrong"))
        for index, point in sorted(self._points.items()):
            begin = index * self._length
            until = max(begin + 1, min(begin + self._length, end))
            rtt = point.rtt
            row = {
                "from_s": round(begin / SECOND, 6),
                "to_s": round(until / SECOND, 6),
                "messages": point.messages,
                "messages_per_s": round(point.messages * SECOND / (until - begin), 1),
                "p50_us": _microseconds(rtt.least if rtt.count == 1 else rtt.percentile(50.0)),
                "p99_us": _microseconds(rtt.percentile(99.0)),
                "max_us": _microseconds(rtt.greatest),
                "lost": point.lost,
                "wrong": point.wrong,
            }
            for name, value in row.items():
                columns[name].append(value)
        return columns


def _microseconds(ns: Optional[int]) -> Optional[float]:
    return None if ns is None else microseconds(ns)
