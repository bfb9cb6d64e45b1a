"""The load: one process that keeps its share of the connections busy and counts the replies.

Each process of a bench calls ``run``. It knows the plan and its pipe to the bench, and prints nothing.

* Closed loop: each connection has ``depth`` probes on their way, and each reply sends the next one.
* Open loop: the probes have a timetable, which slow replies do not delay. A round trip is measured from the time at
  which the probe was due. Measured from the send, it would leave out the wait to be sent (Gil Tene calls that
  coordinated omission). Both are counted.
* The probes that were due in the measured time are counted. Replies to them are awaited afterwards too, so that the
  slow ones are not left out.

No probe disappears. The number of probes that were due comes from the timetable, or in a closed loop from the number
that was issued. A probe that was issued leaves the list of those on their way once: it comes back, is lost, or is still
there at the end. Probes that were due and not issued were never sent.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import selectors
import signal
import socket
import sys
from typing import Any, Counter, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple, Type

from ..client.endpoint import Endpoint
from ..exceptions import EchoError, IncompleteMessage
from ..framing import Framing
from .clock import CLOCK, STOPPED, Clock
from .distribution import SECOND, Distribution
from .lane import Lane
from .outages import Downtime
from .probes import Ledger, Probe, Reply, UncheckedLedger, Verdict

EXAMPLES = 3
"""Maximum number of wrong replies that each process passes on in full. The others are only counted."""

TICK = SECOND // 4
"""Nanoseconds between two reports to the bench."""

SPIN = 2_000_000
"""Nanoseconds before a probe is due from which the process polls and does not sleep. Selectors sleep for whole
milliseconds, and a probe that is late because of that would look like a slow server."""

LOOK = SECOND // 100
"""Minimum of nanoseconds between two looks for probes whose time is over: each look goes through all connections. A
reply that arrives after its time is late, whether or not its probe was given up before."""

LATE = SECOND // 1000
"""Nanoseconds after which a probe that was not sent in time counts as late by the client's own fault."""

_FOREVER = 1 << 62
NOTHING = sys.maxsize
"""As a ledger's number of the first probe that counts."""
TIMED_OUT = "no reply in time"


class Timetable(NamedTuple):
    """The turns of an open loop: ``rate`` per second, dealt out to ``connections`` one after the other.

    Moments are in nanoseconds; turn 0 is at moment 0.
    """

    rate: int
    connections: int

    def moment(self, turn: int) -> int:
        return turn * SECOND // self.rate

    def first(self, moment: int) -> int:
        """Return the first turn that is not before a moment."""
        return max(0, -(-moment * self.rate // SECOND))

    def rounds(self, lane: int, moment: int) -> int:
        """Return how many turns a connection has before a moment."""
        return max(0, -(-(self.first(moment) - lane) // self.connections))


class Plan(NamedTuple):
    """The work of one process.

    ``lanes``: the numbers of its connections among all ``connections``. ``rate``: probes per second in the timetable of
    all connections; None for a closed loop. ``timeout``: in nanoseconds; None for no limit. ``tag``: that of the first
    connection. ``verify``: whether replies are compared with the probes. ``reconnect``: whether a connection that is
    lost is opened again. ``new_connection``: whether each probe has a connection of its own.
    """

    endpoint: Endpoint
    framing: Framing
    size: int
    lanes: List[int]
    connections: int
    depth: int
    rate: Optional[int]
    timeout: Optional[int]
    tag: int
    verify: bool = True
    reconnect: bool = False
    new_connection: bool = False


class Period(NamedTuple):
    """When the work starts, when counting begins, and when the work ends. From ``begin`` on, slices are cut where an
    ``interval`` ends.

    All are nanoseconds after the process has received this, since on some systems each process has its own clock.
    """

    start: int
    begin: int
    end: int
    interval: int


class End(NamedTuple):
    """When the work ended, in nanoseconds as in ``Period``, and whether it was interrupted."""

    at: int
    interrupted: bool


class Slice:
    """The counts since the last slice, of the measured time alone. ``until``: when it ended, as in ``Period``.

    ``received``: right replies that came in it. All else is about the probes that were due in it. ``issued``: how many
    were passed to a connection; ``unsent``: those of them that never left it. ``rtt``: round trips, in an open loop
    from the time at which the probe was due; ``raw``: from its send. ``connects``: how long it took to connect, and
    ``reconnects``: how often, after the first connections. ``damaged``: probes that came back corrupted.
    ``lost``: lost probes. ``wrong``: wrong replies by verdict. ``errors``: how often each error happened. ``examples``:
    wrong replies, a damaged one together with its probe.

    About this process itself: ``late``: probes that it sent later than ``LATE``, although nothing was in the way;
    ``latest``: nanoseconds by which the latest of them was late; ``busy`` of ``watched`` nanoseconds it was running,
    without those in which it polled and nothing came.

    ``warm_up``: the losses and errors before the measured time. ``shifts``: by how many bytes replies were
    shifted, and how often, in the warm-up too. ``outages``: of single connections, those that are over;
    ``down``: how many are not.
    """

    def __init__(self) -> None:
        self.until = 0
        self.received = self.issued = self.unsent = self.damaged = self.lost = 0
        self.late = self.latest = self.busy = self.watched = 0
        self.warm_up: Counter[str] = collections.Counter()
        self.shifts: Counter[int] = collections.Counter()
        self.examples: List[Tuple[Verdict, Optional[bytes], bytes]] = []
        self.rtt = Distribution()
        self.raw = Distribution()
        self.connects = Distribution()
        self.reconnects = self.down = 0
        self.outages: List[Downtime] = []
        self.wrong: Counter[Verdict] = collections.Counter()
        self.errors: Counter[str] = collections.Counter()

    @property
    def came(self) -> int:
        """Probes that came back: right, out of order or corrupted."""
        return self.rtt.count + self.damaged

    @property
    def on_the_way(self) -> int:
        """Probes that were sent and have neither come back nor been lost."""
        return self.issued - self.unsent - self.came - self.lost

    def merge(self, other: Slice) -> None:
        self.received += other.received
        self.issued += other.issued
        self.unsent += other.unsent
        self.damaged += other.damaged
        self.lost += other.lost
        self.late += other.late
        self.latest = max(self.latest, other.latest)
        self.busy += other.busy
        self.watched += other.watched
        self.warm_up.update(other.warm_up)
        self.shifts.update(other.shifts)
        self.rtt.merge(other.rtt)
        self.raw.merge(other.raw)
        self.connects.merge(other.connects)
        self.reconnects += other.reconnects
        self.wrong.update(other.wrong)
        self.errors.update(other.errors)


def run(pipe: Any, plan: Plan) -> None:
    """Call ``work`` in a process of its own, which ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems where the signal mask is not inherited
    work(pipe, plan)


def work(pipe: Any, plan: Plan, clock: Clock = CLOCK) -> None:
    """Do the work of one process, and talk with the bench through ``pipe``.

    Connect, and send the nanoseconds that each connection took, or an ``OSError``. Receive the ``Period``. Send a
    ``Slice`` each ``TICK``, and finally the ``End``. Any further object that is received ends the work early. At any
    time, a ``MemoryError`` is sent as the last object.
    """
    kinds: Tuple[Type[Load], Type[Load]] = (ClosedLoop, OpenLoop)
    if plan.reconnect or plan.new_connection:
        from . import renewing  # here, since it is made of those

        kinds = renewing.KINDS
    try:
        try:
            _work(pipe, kinds[plan.rate is not None](pipe, plan, clock))
            return
        except MemoryError:
            pass  # it keeps all that the load has, as long as it is handled, and sending needs some memory
        pipe.send(MemoryError())
    except (EOFError, ConnectionError):
        pass  # the bench has ended, maybe with something unread in its end of the pipe


def _work(pipe: Any, load: Load) -> None:
    with contextlib.closing(load):
        try:
            took = load.connect()
        except OSError as exc:
            pipe.send(exc)
            return
        pipe.send(took)
        pipe.send(load.work(pipe.recv()))


class Load:
    """The common part of both loops."""

    def __init__(self, pipe: Any, plan: Plan, clock: Clock) -> None:
        self._clock = clock
        self._pipe = pipe
        self._plan = plan
        self._lanes: Dict[Lane, int] = {}  # with their numbers among all connections
        self._by_number: Dict[int, Lane] = {}
        self._selector = clock.selector()
        self._patience = _FOREVER if plan.timeout is None else plan.timeout
        self._slice = Slice()
        self._issued_before = 0  # by connections that were lost
        self._issued_reported = 0  # of all that were issued, those in earlier slices
        self._counting = False  # the measured time has begun
        self._watched_from: Optional[Tuple[int, int]] = None  # the time, and the processor time without polling
        self._polled = 0  # nanoseconds
        self._spared_until = 0  # no probe is given up before
        self._step_began = 0  # see _step()
        self._idle_since = 0  # when a poll has found nothing; 0 if something was sent since
        self._received_at = self._begin = self._end = self._interval = 0
        self._interrupted = False
        self._examples_left = EXAMPLES

    def close(self) -> None:
        """Close the connections that are left."""
        for lane in self._lanes:
            lane.close()
        self._selector.close()

    def connect(self) -> List[int]:
        """Open all connections; return how many nanoseconds each took. Raises ``OSError``."""
        took = []
        for number in self._plan.lanes:
            began = self._clock.now()
            sock = self._dial()
            took.append(self._clock.now() - began)
            self._add(number, sock, self._plan.tag + number)
        return took

    def _dial(self) -> socket.socket:
        return self._plan.endpoint.open(None if self._plan.timeout is None else self._plan.timeout / SECOND)

    def _add(self, number: int, sock: socket.socket, tag: int, first: int = 1) -> Lane:
        """Add a connection, whose first probe has this number."""
        ledger = (Ledger if self._plan.verify else UncheckedLedger)(self._plan.size, tag & 0xFFFF, first)
        ledger.counts_from = NOTHING
        lane = Lane(sock, self._plan.framing, ledger, self._clock.now)
        self._lanes[lane] = number
        self._by_number[number] = lane
        self._selector.register(lane, selectors.EVENT_READ)
        return lane

    def work(self, period: Period) -> End:
        """Keep the lanes busy to the end of the period, then wait for the missing replies; return when it ended.

        It ends before the period if it was interrupted or all connections were lost.
        """
        clock = self._clock.now
        received_at = clock()
        self._received_at = received_at
        start, self._begin, self._end = (received_at + moment for moment in period[:3])
        self._interval = period.interval
        self._clock.sleep((start - received_at) / SECOND)
        tick_at = look_at = start
        self._step_began = clock()
        self._start(start)
        while True:
            now = self._step(clock())
            if now >= tick_at:
                tick_at = self._tick(now)
            self._send_due(min(now, self._end))  # even if this process was held up until after the end
            if now >= look_at:
                look_at = self._look(now)
            if self._is_abandoned() or (now >= self._end and not self._awaits_replies()):
                break
            wait = self._pause(now, min(tick_at, look_at))
            for key, ready in self._wait(wait):
                lane: Any = key.fileobj
                try:
                    if ready & selectors.EVENT_WRITE:
                        self._flush(lane)
                    if ready & selectors.EVENT_READ:
                        now = self._step(clock())
                        if now >= tick_at:  # these replies belong to the next slice
                            tick_at = self._tick(now)
                        self._receive(lane, now)
                        if now < self._end:
                            self._replied(lane)
                except IncompleteMessage:  # errors are counted by their text: without a number that the server chooses
                    self._drop(lane, "the server has ended the session inside a message")
                except EchoError as exc:
                    self._drop(lane, str(exc))
        self._finish()
        self._pass_on()
        return End(min(self._end, clock()) - received_at, self._interrupted)

    def _receive(self, lane: Lane, now: int) -> None:
        ledger = lane.ledger
        if ledger.outstanding and ledger.outstanding[0].sent_at < now - self._patience:
            self._give_up(lane, now)
        in_time = self._begin <= now < self._end
        counts_from = ledger.counts_from
        for reply in lane.receive():
            verdict, _, probe, _, _ = reply
            if verdict is not Verdict.RIGHT:
                self._note(reply, counts_from)
            if probe is not None and verdict is not Verdict.CORRUPTED:
                if in_time:
                    self._slice.received += 1
                if probe.seq >= counts_from:
                    self._count(probe, now)

    def _note(self, reply: Reply, counts_from: int) -> None:
        """Count a reply that is wrong."""
        verdict, message, probe, seq, shift = reply
        if self._examples_left:
            self._examples_left -= 1
            sent = probe.message if probe is not None and verdict is Verdict.CORRUPTED else None
            self._slice.examples.append((verdict, sent, message))
        if shift:
            self._slice.shifts[shift] += 1
        if not (self._counting if seq is None else seq >= counts_from):
            self._slice.warm_up[verdict.value] += 1
            return
        self._slice.wrong[verdict] += 1
        if verdict is Verdict.CORRUPTED:
            self._slice.damaged += 1

    def _send(self, lane: Lane, due_at: int) -> None:
        self._step(lane.send(due_at).sent_at)
        if lane.is_behind:
            self._selector.modify(lane, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def _flush(self, lane: Lane) -> None:
        lane.flush()
        if not lane.is_behind:
            self._selector.modify(lane, selectors.EVENT_READ)

    def _look(self, now: int) -> int:
        """Give up the probes whose time is over, and return when to look again."""
        oldest = now
        for lane in list(self._lanes):
            self._give_up(lane, now)
            if lane.ledger.outstanding:
                oldest = min(oldest, lane.ledger.outstanding[0].sent_at)
        return max(now + LOOK, oldest + self._patience + 1, self._spared_until)

    def _step(self, now: int) -> int:
        """Notice whether this process was stopped: then much time has passed since the step before. If so, no probe is
        given up for a moment, so that the replies that have come meanwhile are read first. Return the time.

        A step is a wait, beyond its time, a report to the bench, one send, or the replies that one read brings. All
        that a busy load does between two waits may take long, and it gives probes up as any other.
        """
        if now - self._step_began > STOPPED:
            self._spared_until = now + STOPPED
        self._step_began = now
        return now

    def _give_up(self, lane: Lane, now: int) -> None:
        if now < self._spared_until:
            return
        ledger = lane.ledger
        lost = ledger.give_up(now - self._patience)
        if lost and now >= self._end and not self._plan.rate and ledger.next == ledger.counts_from:
            ledger.counts_from = lost[0].seq  # of the warm-up, but nothing could be sent after them
        counted = self._lose(lane, lost)
        if counted:
            self._slice.errors[TIMED_OUT] += counted
        if lost and now < self._end:
            self._replied(lane)

    def _lose(self, lane: Lane, probes: Iterable[Probe]) -> int:
        """Count probes as lost; return how many of them count."""
        numbers = [probe.seq for probe in probes]
        counted = sum(number >= lane.ledger.counts_from for number in numbers)
        self._slice.lost += counted
        if counted < len(numbers):
            self._slice.warm_up["lost"] += len(numbers) - counted
        return counted

    def _finish(self) -> None:
        """The work ends."""
        for lane in self._lanes:
            self._forget(lane)
            lane.close()

    def _forget(self, lane: Lane) -> List[Probe]:
        """A lane ends: add up what it has issued. Return the probes that were sent and are still on their way."""
        ledger = lane.ledger
        self._issued_before += max(0, ledger.next - ledger.counts_from)
        never_sent = self._never_sent(lane)
        self._slice.unsent += sum(
            probe.seq in never_sent and probe.seq >= ledger.counts_from for probe in ledger.outstanding
        )
        return [probe for probe in ledger.outstanding if probe.seq not in never_sent]

    def _never_sent(self, lane: Lane) -> Set[int]:
        """The numbers of the probes of a lane that have not left it."""
        return lane.never_sent()

    def _tick(self, now: int) -> int:
        """Report to the bench, and return when to do so again: where counting begins or an interval ends, if not
        before."""
        if now >= self._begin and not self._counting:
            self._counting = True
            self._begin_to_count()
        if self._counting and now < self._end:
            cpu = self._clock.cpu() - self._polled
            if self._watched_from is not None:
                self._slice.watched += now - self._watched_from[0]
                self._slice.busy += max(0, cpu - self._watched_from[1])  # less if others ran during a poll
            self._watched_from = now, cpu
        if self._pipe.poll():
            self._pipe.recv()
            self._end = min(self._end, now)
            self._interrupted = True
        issued = sum(max(0, lane.ledger.next - lane.ledger.counts_from) for lane in self._lanes)
        self._pass_on(issued)
        at = min(now + TICK, self._begin + ((now - self._begin) // self._interval + 1) * self._interval)
        return min(at, self._end) if now < self._end else at

    def _pass_on(self, issued: int = 0) -> None:
        """Send the slice. ``issued``: by the lanes that there are."""
        issued += self._issued_before
        self._slice.issued = issued - self._issued_reported
        self._issued_reported = issued
        now = self._clock.now()
        self._slice.until = now - self._received_at
        self._pipe.send(self._slice)
        self._step(self._clock.now())  # the bench may wait for the reader of its output
        self._slice = Slice()

    def _is_abandoned(self) -> bool:
        """Whether all connections are lost."""
        return not self._lanes

    def _awaits_replies(self) -> bool:
        return not self._interrupted and any(lane.ledger.outstanding for lane in self._lanes)

    def _drop(self, lane: Lane, why: str) -> None:
        """A connection is lost."""
        self._lose(lane, self._remove(lane))
        self._slice.errors[why] += 1  # in the warm-up too, since this connection is missing afterwards

    def _remove(self, lane: Lane) -> List[Probe]:
        """Close a connection. Return the probes that were sent and are still on their way."""
        self._selector.unregister(lane)
        lane.close()
        del self._by_number[self._lanes.pop(lane)]
        return self._forget(lane)

    def _start(self, start: int) -> None:
        """Send the first probes, or prepare that."""
        raise NotImplementedError

    def _begin_to_count(self) -> None:
        """The measured time begins."""

    def _issue(self, number: int, due_at: int) -> bool:
        """Send the next probe of a connection; return False if it is busy or lost."""
        lane = self._by_number.get(number)
        if lane is None or len(lane.ledger.outstanding) >= self._plan.depth:
            return False
        self._idle_since = 0
        self._send(lane, due_at)
        return True

    def _first_that_counts(self, number: int, following: int) -> int:
        """The number of the first probe of a connection that counts, if ``following`` is the next one that is due."""
        raise NotImplementedError

    def _go_on(self, number: int) -> None:
        """A connection can carry a further probe."""
        raise NotImplementedError

    def _replied(self, lane: Lane) -> None:
        """A probe of this lane is no longer on its way."""
        raise NotImplementedError

    def _send_due(self, now: int) -> None:
        """Send the probes that are due."""

    def _pause(self, now: int, until: int) -> int:
        """Maximum time in nanoseconds to wait for a reply."""
        return max(0, until - now)

    def _wait(self, wait: int) -> List[Tuple[selectors.SelectorKey, int]]:
        """Return the lanes that are ready. Polling is not work, from one poll that finds nothing to the next: a process
        that polls has time to spare."""
        asked_at = self._step(self._clock.now())
        began = self._idle_since or asked_at
        self._idle_since = 0
        self._step_began = asked_at + wait
        ready = self._selector.select(wait / SECOND)
        if not ready:  # otherwise the next step begins with the first reply
            now = self._step(self._clock.now())
            if not wait:
                self._idle_since = now
                self._polled += now - began
        return ready

    def _count(self, probe: Probe, now: int) -> None:
        """Count the round trip of a probe."""
        raise NotImplementedError


class ClosedLoop(Load):
    def _start(self, start: int) -> None:
        for lane in self._lanes:
            self._replied(lane)

    def _begin_to_count(self) -> None:
        for lane in self._lanes:
            lane.ledger.counts_from = lane.ledger.next

    def _first_that_counts(self, number: int, following: int) -> int:
        return following

    def _go_on(self, number: int) -> None:
        self._replied(self._by_number[number])

    def _replied(self, lane: Lane) -> None:
        outstanding = lane.ledger.outstanding
        while len(outstanding) < self._plan.depth:
            self._send(lane, 0)

    def _count(self, probe: Probe, now: int) -> None:
        self._slice.rtt.add(now - probe.sent_at)


class OpenLoop(Load):
    def __init__(self, pipe: Any, plan: Plan, clock: Clock) -> None:
        super().__init__(pipe, plan, clock)
        self._timetable = Timetable(plan.rate or 1, plan.connections)
        self._started_at = 0
        self._turns: List[Tuple[int, int]] = []  # a heap: when and which turn each lane has next, without those held
        self._held: Dict[int, Tuple[int, int]] = {}  # the same of lanes that wait for replies
        self._looked_at = 0  # when it last looked for turns; those of before were held up by missing replies

    def _start(self, start: int) -> None:
        self._started_at = start
        self._turns = [(start + self._timetable.moment(number), number) for number in sorted(self._plan.lanes)]
        for lane, number in self._lanes.items():
            lane.ledger.counts_from = self._first_that_counts(number, 1)

    def _first_that_counts(self, number: int, following: int) -> int:
        return 1 + self._timetable.rounds(number, self._begin - self._started_at)

    def _send_due(self, now: int) -> None:
        late_before = now - LATE
        was_held_up = self._counting and late_before > self._looked_at  # else nothing can be late
        while self._turns and self._turns[0][0] < now:
            due_at, turn = heapq.heappop(self._turns)
            number = turn % self._plan.connections
            if not self._issue(number, due_at):
                self._held[number] = due_at, turn
                continue
            following = turn + self._plan.connections
            heapq.heappush(self._turns, (self._started_at + self._timetable.moment(following), following))
            if was_held_up and self._looked_at < due_at < late_before:
                self._slice.late += 1
                self._slice.latest = max(self._slice.latest, now - due_at)
        self._looked_at = now

    def _replied(self, lane: Lane) -> None:
        self._go_on(self._lanes[lane])

    def _go_on(self, number: int) -> None:
        turn = self._held.pop(number, None)
        if turn is not None:
            heapq.heappush(self._turns, turn)

    def _pause(self, now: int, until: int) -> int:
        wait = super()._pause(now, until)
        if self._turns and now < self._end:
            wait = min(wait, max(0, self._turns[0][0] - now - SPIN))
        return wait

    def _count(self, probe: Probe, now: int) -> None:
        self._slice.rtt.add(now - probe.due_at)
        self._slice.raw.add(now - probe.sent_at)
