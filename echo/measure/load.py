"""The load: one process that keeps its share of the connections busy and counts the replies.

Each process of a bench calls ``run``. It knows the plan and its pipe to the bench, and prints nothing.

* Closed loop: each connection has ``depth`` probes on their way, and each reply sends the next one.
* Open loop: the probes have a timetable, which slow replies do not delay. A round trip is measured from the time at
  which the probe was due. Measured from the send, it would leave out the wait to be sent (Gil Tene calls that
  coordinated omission). Both are counted.
* The probes that were due in the measured time are counted. Replies to them are awaited afterwards too, so that the
  slow ones are not left out.
"""

from __future__ import annotations

import collections
import heapq
import math
import selectors
import signal
from typing import Any, Counter, Dict, List, NamedTuple, Optional, Tuple

from ..client.endpoint import Endpoint
from ..exceptions import EchoError
from ..framing import Framing
from .clock import CLOCK, Clock
from .distribution import SECOND, Distribution
from .lane import Lane
from .probes import Ledger, Probe, Verdict

EXAMPLES = 3
"""Maximum number of wrong replies that each process passes on in full. The others are only counted."""

TICK = SECOND // 4
"""Nanoseconds between two reports to the bench."""

SPIN = 2_000_000
"""Nanoseconds before a probe is due from which the process polls and does not sleep. Selectors sleep for whole
milliseconds, and a probe that is late because of that would look like a slow server."""


class Plan(NamedTuple):
    """The work of one process.

    ``lanes``: the numbers of its connections among all ``connections``. ``step``: nanoseconds between two probes in the
    timetable of all connections; None for a closed loop. ``timeout``: in nanoseconds; None for no limit. ``tag``: that
    of the first connection.
    """

    endpoint: Endpoint
    framing: Framing
    size: int
    lanes: List[int]
    connections: int
    depth: int
    step: Optional[float]
    timeout: Optional[int]
    tag: int


class Period(NamedTuple):
    """When the work starts, when counting begins, and when the work ends.

    All are nanoseconds after the process has received this, since on some systems each process has its own clock.
    """

    start: int
    begin: int
    end: int


class Slice:
    """The counts since the last slice.

    ``received``: right replies in the measured time. ``rtt``: round trips from the time at which a probe was due;
    ``raw``: from its send. ``wrong``: wrong replies by verdict. ``lost``: lost probes. ``on_the_way``: probes that had
    no reply yet when the load was interrupted. ``unsent``: probes that were due in the measured time and not sent.
    ``errors``: how often each error happened. ``examples``: wrong replies, a damaged one together with its probe.
    """

    def __init__(self) -> None:
        self.received = self.lost = self.unsent = self.on_the_way = 0
        self.examples: List[Tuple[Verdict, Optional[bytes], bytes]] = []
        self.rtt = Distribution()
        self.raw = Distribution()
        self.wrong: Counter[Verdict] = collections.Counter()
        self.errors: Counter[str] = collections.Counter()

    def merge(self, other: Slice) -> None:
        self.received += other.received
        self.lost += other.lost
        self.unsent += other.unsent
        self.on_the_way += other.on_the_way
        self.rtt.merge(other.rtt)
        self.raw.merge(other.raw)
        self.wrong.update(other.wrong)
        self.errors.update(other.errors)


def run(pipe: Any, plan: Plan) -> None:
    """Call ``work`` in a process of its own, which ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems where the signal mask is not inherited
    work(pipe, plan)


def work(pipe: Any, plan: Plan, clock: Clock = CLOCK) -> None:
    """Do the work of one process, and talk with the bench through ``pipe``.

    Connect, and send the nanoseconds that each connection took, or an ``OSError``. Receive the ``Period``. Send a
    ``Slice`` each ``TICK``, and finally the time of the end. Any further object that is received ends the work early.
    """
    load = _ClosedLoop(pipe, plan, clock) if plan.step is None else _OpenLoop(pipe, plan, clock)
    try:
        took = [load.open(number) for number in plan.lanes]
    except OSError as exc:
        pipe.send(exc)
        return
    try:
        pipe.send(took)
        pipe.send(load.work(pipe.recv()))
    except (EOFError, BrokenPipeError):
        pass  # the bench has ended


class _Load:
    """The common part of both loops."""

    def __init__(self, pipe: Any, plan: Plan, clock: Clock) -> None:
        self._clock = clock
        self._pipe = pipe
        self._plan = plan
        self._lanes: Dict[Lane, int] = {}  # with their numbers among all connections
        self._selector = clock.selector()
        self._slice = Slice()
        self._end = 0
        self._interrupted = False
        self._examples_left = EXAMPLES

    def open(self, number: int) -> int:
        plan = self._plan
        began = self._clock.now()
        sock = plan.endpoint.open(None if plan.timeout is None else plan.timeout / SECOND)
        took = self._clock.now() - began
        lane = Lane(sock, plan.framing, Ledger(plan.size, (plan.tag + number) & 0xFFFF))
        self._lanes[lane] = number
        self._selector.register(lane, selectors.EVENT_READ)
        return took

    def work(self, period: Period) -> int:
        """Keep the lanes busy to the end of the period, then wait for the missing replies; return when it ended.

        It ends before the period if it was interrupted or all connections were lost.
        """
        clock = self._clock.now
        received_at = clock()
        start, begin, self._end = (received_at + moment for moment in period)
        self._clock.sleep((start - received_at) / SECOND)
        tick_at = start + TICK
        self._start(start)
        while True:
            now = clock()
            self._send_due(min(now, self._end))  # even if this process was held up until after the end
            if now >= tick_at:
                self._tick(now)
                tick_at = now + TICK
            if not self._lanes or (now >= self._end and not self._awaits_replies()):
                break
            wait = self._pause(now, tick_at)
            for key, ready in self._selector.select(wait / SECOND):
                lane: Any = key.fileobj
                try:
                    if ready & selectors.EVENT_WRITE:
                        self._flush(lane)
                    if ready & selectors.EVENT_READ:
                        now = clock()
                        self._receive(lane, now, begin)
                        if now < self._end:
                            self._replied(lane, now)
                except EchoError as exc:
                    self._drop(lane, str(exc))
        self._finish(begin)
        for lane in self._lanes:
            self._slice.on_the_way += len(lane.ledger.outstanding)
            lane.close()
        self._pipe.send(self._slice)
        return min(self._end, clock()) - received_at

    def _receive(self, lane: Lane, now: int, begin: int) -> None:
        for verdict, message, probe, _ in lane.receive():
            if verdict is not Verdict.RIGHT:
                self._slice.wrong[verdict] += 1
                if self._examples_left:
                    self._examples_left -= 1
                    sent = probe.message if probe is not None and verdict is Verdict.CORRUPTED else None
                    self._slice.examples.append((verdict, sent, message))
            if probe is not None and verdict is not Verdict.CORRUPTED:
                if begin <= now < self._end:
                    self._slice.received += 1
                if probe.due_at >= begin:
                    self._count(probe, now)

    def _send(self, lane: Lane, due_at: int, now: int) -> None:
        lane.send(due_at, now)
        if lane.is_behind:
            self._selector.modify(lane, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def _flush(self, lane: Lane) -> None:
        lane.flush()
        if not lane.is_behind:
            self._selector.modify(lane, selectors.EVENT_READ)

    def _tick(self, now: int) -> None:
        if self._pipe.poll():
            self._pipe.recv()
            self._end = min(self._end, now)
            self._interrupted = True
        timeout = self._plan.timeout
        for lane in self._lanes:
            lost = 0 if timeout is None else len(lane.ledger.give_up(now - timeout))
            if not lost:
                continue
            self._slice.lost += lost
            self._slice.errors["no reply in time"] += lost
            if now < self._end:
                self._replied(lane, now)
        self._pipe.send(self._slice)
        self._slice = Slice()

    def _awaits_replies(self) -> bool:
        return not self._interrupted and any(lane.ledger.outstanding for lane in self._lanes)

    def _drop(self, lane: Lane, why: str) -> None:
        self._selector.unregister(lane)
        lane.close()
        del self._lanes[lane]
        self._slice.lost += len(lane.ledger.outstanding)
        self._slice.errors[why] += 1

    def _start(self, start: int) -> None:
        """Send the first probes."""
        raise NotImplementedError

    def _replied(self, lane: Lane, now: int) -> None:
        """A probe of this lane is no longer on its way."""
        raise NotImplementedError

    def _send_due(self, now: int) -> None:
        """Send the probes that are due."""

    def _pause(self, now: int, tick_at: int) -> int:
        """Maximum time in nanoseconds to wait for a reply."""
        return max(0, tick_at - now)

    def _count(self, probe: Probe, now: int) -> None:
        self._slice.rtt.add(now - probe.due_at)

    def _finish(self, begin: int) -> None:
        """The measured time, which began at ``begin``, is over."""


class _ClosedLoop(_Load):
    def _start(self, start: int) -> None:
        for lane in self._lanes:
            self._replied(lane, self._clock.now())

    def _replied(self, lane: Lane, now: int) -> None:
        outstanding = lane.ledger.outstanding
        while len(outstanding) < self._plan.depth:
            self._send(lane, now, now)


class _OpenLoop(_Load):
    def __init__(self, pipe: Any, plan: Plan, clock: Clock) -> None:
        super().__init__(pipe, plan, clock)
        assert plan.step is not None
        self._step = plan.step
        self._round = plan.step * plan.connections  # nanoseconds between two probes of a lane
        self._turns: List[Tuple[float, int]] = []  # a heap: when each lane is to send next, without those in _held
        self._held: Dict[int, float] = {}  # lanes that wait for replies, and since when their next probe is due
        self._by_number: Dict[int, Lane] = {}

    def _start(self, start: int) -> None:
        self._by_number = {number: lane for lane, number in self._lanes.items()}
        self._turns = sorted((start + number * self._step, number) for number in self._by_number)

    def _send_due(self, now: int) -> None:
        while self._turns and self._turns[0][0] < now:
            due_at, number = heapq.heappop(self._turns)
            lane = self._by_number[number]
            if lane not in self._lanes:
                continue
            if len(lane.ledger.outstanding) >= self._plan.depth:
                self._held[number] = due_at
                continue
            heapq.heappush(self._turns, (due_at + self._round, number))
            self._send(lane, round(due_at), self._clock.now())

    def _replied(self, lane: Lane, now: int) -> None:
        number = self._lanes[lane]
        due_at = self._held.pop(number, None)
        if due_at is not None:
            heapq.heappush(self._turns, (due_at, number))

    def _pause(self, now: int, tick_at: int) -> int:
        wait = super()._pause(now, tick_at)
        if self._turns and now < self._end:
            wait = min(wait, max(0, round(self._turns[0][0]) - now - SPIN))
        return wait

    def _count(self, probe: Probe, now: int) -> None:
        super()._count(probe, now)
        self._slice.raw.add(now - probe.sent_at)

    def _finish(self, begin: int) -> None:
        alive = set(self._lanes.values())
        held = [due_at for number, due_at in self._held.items() if number in alive and due_at < self._end]
        for due_at in held:
            missed = math.ceil((self._end - due_at) / self._round) - max(0, math.ceil((begin - due_at) / self._round))
            self._slice.unsent += max(0, missed)
