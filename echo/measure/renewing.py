"""Loads whose connections are opened again: those that are lost, or after each message.

* To connect takes long, and more so to a server that is away. It is done in threads, so that the other connections are
  timed as truly as without it.
* With a connection for each message, the time to connect is a part of its round trip: in an open loop since it begins
  when the message was due, in a closed loop it is added. ``raw`` is without it, from the send.
* A message that cannot be sent since its own connection fails is lost. Where connections last, messages wait for a new
  one as they wait for replies.
* A connection is down from the send of the first message that was lost with it, until the first reply after that.
"""

from __future__ import annotations

import selectors
from typing import Any, List, Optional, Set, Tuple

from .clock import Clock
from .lane import Lane
from .load import NOTHING, ClosedLoop, End, Load, OpenLoop, Period, Plan
from .outages import Downtime
from .probes import Probe

PAUSE = 0.1
"""Seconds before the next attempt to connect, if the last one failed or its connection has brought nothing."""


class _Place:
    """One of the connections, without the lane that it may have.

    ``following``: the number of its next probe, if it has no lane. ``counts_from``: that of the first one that counts.
    ``dialing``: an attempt to connect is under way. ``due_at``: when the message was due that waits for it;
    0 in a closed loop. ``opened``: number of connections. ``down_since``: None while it is up. ``lost``:
    messages that were lost since.
    """

    def __init__(self) -> None:
        self.following = 1
        self.counts_from = NOTHING
        self.dialing = False
        self.due_at = self.opened = self.lost = 0
        self.down_since: Optional[int] = None


class _Renewing(Load):
    def __init__(self, pipe: Any, plan: Plan, clock: Clock) -> None:
        super().__init__(pipe, plan, clock)
        self._places = {number: _Place() for number in plan.lanes}
        self._dialer = clock.dialer(self._dial, clock)
        self._selector.register(self._dialer, selectors.EVENT_READ)
        self._reading: Optional[Lane] = None

    def connect(self) -> List[int]:
        """If each message has a connection of its own, this opens one, to see whether the server is there."""
        if not self._plan.new_connection:
            return super().connect()
        began = self._clock.now()
        self._dial().close()
        return [self._clock.now() - began]

    def work(self, period: Period) -> End:
        try:
            return super().work(period)
        finally:
            self._dialer.close()

    # When to go on.

    def _start(self, start: int) -> None:
        super()._start(start)
        if self._plan.new_connection:
            for number in self._places:
                self._go_on(number)

    def _begin_to_count(self) -> None:
        for number, place in self._places.items():
            lane = self._by_number.get(number)
            following = place.following if lane is None else lane.ledger.next
            if self._plan.new_connection and place.dialing:
                following += 1  # after the one that waits for its connection, and was due before
            place.counts_from = self._first_that_counts(number, following)
            if lane is not None:
                lane.ledger.counts_from = place.counts_from

    def _is_abandoned(self) -> bool:
        return False

    def _awaits_replies(self) -> bool:
        if self._plan.new_connection and not self._interrupted and any(each.dialing for each in self._places.values()):
            return True
        return super()._awaits_replies()

    def _issue(self, number: int, due_at: int) -> bool:
        """Send the next probe of a connection, when there is one; return False if it is busy."""
        if not self._plan.new_connection:
            return super()._issue(number, due_at)
        place = self._places[number]
        if place.dialing or number in self._by_number:
            return False
        place.due_at = due_at
        self._connect(place, number)
        return True

    def _receive(self, lane: Lane, now: int) -> None:
        self._reading = lane
        try:
            super()._receive(lane, now)
            if self._plan.new_connection and now >= self._end and not lane.ledger.outstanding:
                self._remove(lane)  # the server may have no place for those that wait for a reply
        finally:
            self._reading = None

    def _replied(self, lane: Lane) -> None:
        number = self._lanes[lane]
        place = self._places[number]
        if place.down_since is not None and lane.ledger.highest >= 0:
            self._comes_up(number, place)
        if not self._plan.new_connection:
            super()._replied(lane)
        elif lane is not self._reading and not lane.ledger.outstanding:
            self._remove(lane)
            self._go_on(number)

    # Connections that come and go.

    def _connect(self, place: _Place, number: int, pause: float = 0.0) -> None:
        place.dialing = True
        self._dialer.dial((place, number), pause)

    def _wait(self, wait: int) -> List[Tuple[selectors.SelectorKey, int]]:
        ready = super()._wait(wait)
        lanes = [each for each in ready if each[0].fileobj is not self._dialer]
        if len(lanes) < len(ready):
            self._take_connections()
        return lanes

    def _take_connections(self) -> None:
        for (place, number), began, took, sock, why in self._dialer.ended():
            place.dialing = False
            if sock is None:
                self._is_refused(place, number, began, why)
            elif self._clock.now() >= self._end and (self._interrupted or not self._plan.new_connection):
                sock.close()
            else:
                self._is_connected(place, number, took, self._add_again(place, number, sock))

    def _add_again(self, place: _Place, number: int, sock: Any) -> Lane:
        place.opened += 1
        tag = self._plan.tag + number + self._plan.connections * place.opened
        lane = self._add(number, sock, tag, place.following)
        lane.ledger.counts_from = max(place.counts_from, place.following)
        return lane

    def _is_connected(self, place: _Place, number: int, took: int, lane: Lane) -> None:
        if self._plan.new_connection:
            if place.following >= place.counts_from:
                self._slice.connects.add(took)
            self._send(lane, place.due_at or self._clock.now() - took)
            return
        if self._counting:
            self._slice.connects.add(took)
            self._slice.reconnects += 1
        self._go_on(number)

    def _is_refused(self, place: _Place, number: int, began: int, why: str) -> None:
        """An attempt to connect has failed."""
        counts = self._counting
        if self._plan.new_connection:  # its message is lost
            counts = place.following >= place.counts_from
            place.following += 1
            self._issued_before += counts
            self._slice.lost += counts
            if not counts:
                self._slice.warm_up["lost"] += 1
        (self._slice.errors if counts else self._slice.warm_up)[why] += 1
        self._goes_down(place, began, counts and self._plan.new_connection)
        self._try_again(place, number, PAUSE)

    def _drop(self, lane: Lane, why: str) -> None:
        number = self._lanes[lane]
        place = self._places[number]
        outstanding = lane.ledger.outstanding
        since = outstanding[0].sent_at if outstanding else self._clock.now()
        is_over = self._plan.new_connection and not outstanding  # the server closed first, after its reply
        lost = self._lose(lane, self._remove(lane))
        if outstanding and outstanding[-1].seq >= lane.ledger.counts_from:  # it cost messages, sent or not
            self._slice.errors[why] += 1
        if not is_over:
            self._goes_down(place, since, lost)
        self._try_again(place, number, PAUSE if lane.ledger.highest < 0 else 0.0)

    def _remove(self, lane: Lane) -> List[Probe]:
        self._places[self._lanes[lane]].following = lane.ledger.next
        return super()._remove(lane)

    def _never_sent(self, lane: Lane) -> Set[int]:
        return set() if self._plan.new_connection else super()._never_sent(lane)  # lost with its own connection

    def _try_again(self, place: _Place, number: int, pause: float) -> None:
        if self._clock.now() >= self._end:
            return
        if not self._plan.new_connection:
            self._connect(place, number, pause)
        elif self._plan.rate is not None:
            self._go_on(number)  # the timetable sets the pace
        else:
            place.due_at = 0
            self._connect(place, number, pause)

    # Outages.

    def _goes_down(self, place: _Place, since: int, lost: int) -> None:
        if place.down_since is None and since < self._end:
            place.down_since = since
        place.lost += lost

    def _comes_up(self, number: int, place: _Place, over: bool = True) -> None:
        ended = min(self._clock.now(), self._end)
        if place.down_since is not None and ended > self._begin:
            began = max(place.down_since, self._begin) - self._received_at
            downtime = Downtime(began, ended - self._received_at, frozenset([number]), place.lost, over)
            self._slice.outages.append(downtime)
        place.down_since, place.lost = None, 0

    def _pass_on(self, issued: int = 0) -> None:
        self._slice.down = sum(place.down_since is not None for place in self._places.values())
        super()._pass_on(issued)

    def _finish(self) -> None:
        super()._finish()
        for number, place in self._places.items():
            if place.down_since is not None:
                self._comes_up(number, place, over=False)


class RenewingClosedLoop(_Renewing, ClosedLoop):
    def _go_on(self, number: int) -> None:
        if self._plan.new_connection:
            self._issue(number, 0)
        else:
            super()._go_on(number)

    def _count(self, probe: Probe, now: int) -> None:
        self._slice.rtt.add(now - (probe.due_at or probe.sent_at))
        if self._plan.new_connection:
            self._slice.raw.add(now - probe.sent_at)


class RenewingOpenLoop(_Renewing, OpenLoop):
    pass


KINDS = (RenewingClosedLoop, RenewingOpenLoop)
