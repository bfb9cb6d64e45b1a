"""Outages: when replies stopped, and when they came again.

The outage of a ping is a run of lost probes. It begins when the first of them was sent, and ends with the first reply
to a later probe. That of a bench is a time in which at least one of its connections was down. This module knows no
clock.
"""

from __future__ import annotations

import collections
import sys
from typing import Any, Deque, Dict, FrozenSet, Iterable, Iterator, List, NamedTuple, Optional, Tuple


class Outage(NamedTuple):
    """``lost`` probes, with the numbers ``first`` to ``last``. ``began`` and ``ended`` are in nanoseconds; it may not
    be ``over`` when the ping ends."""

    first: int
    last: int
    lost: int
    began: int
    ended: int
    over: bool


class Outages:
    """Finds the outages of one ping: their ``count``, and ``total``, their length in nanoseconds.

    A probe is lost only when its timeout is over, and replies to later ones may have come by then. So the times of
    replies are kept while an earlier probe is on its way. Each method returns the outage that it completes, if any.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self._current: Optional[Outage] = None
        self._newest = 0  # highest number that came back
        self._ahead: Deque[Tuple[int, int]] = collections.deque()  # replies, each to a later probe than all before it

    def replied(self, seq: int, now: int, oldest: int) -> Optional[Outage]:
        """A probe came back. ``oldest``: the first number that is on its way, or the next one to be sent."""
        if seq > self._newest:
            self._newest = seq
            self._ahead.append((seq, now))
        return self._settle(oldest)

    def lost(self, seq: int, sent_at: int) -> Optional[Outage]:
        """A probe is lost. Lost ones come in the order of their numbers."""
        completed = self._settle(seq)
        current = self._current or Outage(seq, seq, 0, sent_at, sent_at, False)
        self._current = current._replace(last=seq, lost=current.lost + 1)
        return completed

    def finish(self, now: int) -> Optional[Outage]:
        """The ping ends."""
        return self._settle(sys.maxsize) or self._complete(now, False)

    def _settle(self, before: int) -> Optional[Outage]:
        """The fate of all probes before this number is known."""
        completed = None
        while self._ahead and self._ahead[0][0] < before:
            seq, replied_at = self._ahead.popleft()
            if self._current is not None and seq > self._current.last:
                completed = self._complete(replied_at, True)
        return completed

    def _complete(self, ended: int, over: bool) -> Optional[Outage]:
        if self._current is None:
            return None
        outage = self._current._replace(ended=ended, over=over)
        self._current = None
        self.count += 1
        self.total += outage.ended - outage.began
        return outage


class Downtime(NamedTuple):
    """A time in which connections were down, in nanoseconds; their numbers, and how many messages were lost with them.
    It may not be ``over`` when the bench ends."""

    began: int
    ended: int
    connections: FrozenSet[int]
    lost: int
    over: bool

    def joined_with(self, other: Downtime) -> Downtime:
        """Return both as one."""
        return Downtime(
            min(self.began, other.began),
            max(self.ended, other.ended),
            self.connections | other.connections,
            self.lost + other.lost,
            self.over and other.over,
        )


class Downtimes:
    """Joins the downtimes of connections that overlap. They come from several ``sources``, from each in the order in
    which they ended."""

    def __init__(self, sources: Iterable[Any]) -> None:
        self._known_until = dict.fromkeys(sources, 0)
        self._down: Dict[Any, int] = {}
        self._pending: List[Downtime] = []

    def add(self, source: Any, until: int, ended: Iterable[Downtime], down: int) -> None:
        """Add what a source knows at a time: the downtimes that have ended, and how many connections are down."""
        self._known_until[source] = until
        self._down[source] = down
        for each in ended:
            joined, apart = each, []
            for other in self._pending:
                if other.began > joined.ended or joined.began > other.ended:
                    apart.append(other)
                else:
                    joined = joined.joined_with(other)
            self._pending = [*apart, joined]

    def end(self, source: Any) -> None:
        """Nothing more comes from this source."""
        del self._known_until[source]
        self._down.pop(source, None)

    def completed(self) -> Iterator[Downtime]:
        """Return the outages that are over, each once."""
        last = max((each.ended for each in self._pending), default=0)
        if self._pending and not any(self._down.values()) and last <= min(self._known_until.values(), default=last):
            pending, self._pending = sorted(self._pending, key=lambda each: each.began), []
            yield from pending
