"""``--ping``: one probe after the other over a connection, a line for each, and a summary.

If the server goes away, the probes that were on their way are lost. Each further probe is another attempt to connect,
and is lost if that fails. ``probes`` decides what each reply is.
"""

from __future__ import annotations

import contextlib
import random
import selectors
from typing import Dict, Iterator, List, Optional, Sequence

from ..client.endpoint import Endpoint
from ..exceptions import EchoError, EchoMismatch
from ..framing import Framing
from ..sockets import LONGEST_WAIT
from ..text import plural
from ..transport.tls_messages import explain
from .clock import CLOCK, STOPPED, Clock
from .distribution import SECOND, Distribution
from .document import environment
from .figures import as_fields, comparison, damage, percentile_name, with_conditions
from .lane import Lane
from .outages import Outage, Outages
from .probes import Ledger, Reply, UncheckedLedger, Verdict
from .report import Report, microseconds, milliseconds
from .series import SHORTEST_POINT, Series

PERCENTILES = [50.0, 90.0, 99.0, 99.9]

CONNECT_PAUSE = 0.1
"""Minimum time in seconds between two attempts to connect, if the interval is shorter."""


class Ping:
    """Pings ``endpoint`` with probes of ``size`` bytes, ``count`` times (None: until it is interrupted).

    ``interval`` is the time in seconds between two probes; 0 sends each when the one before is back. ``framing`` must
    be the server's. ``timeout`` is the maximum time in seconds for a reply, after
    which the probe is lost, and for connecting (None: no limit). ``rtt`` has the round trips.
    Without ``verify``, replies are timed and counted, and not compared with the probes. ``percentiles`` are shown.
    With ``new_connection`` each probe has a connection of its own, one after the other. The time to connect is a part
    of its round trip.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        framing: Framing,
        report: Report,
        *,
        size: int,
        count: Optional[int],
        interval: float,
        timeout: Optional[float],
        percentiles: Sequence[float] = PERCENTILES,
        verify: bool = True,
        new_connection: bool = False,
        clock: Clock = CLOCK,
    ) -> None:
        self._clock = clock
        self._percentiles = percentiles
        self._verify = verify
        self._new_connection = new_connection
        self._endpoint = endpoint
        self._where = str(endpoint)
        self._framing = framing
        self._report = report
        self._size = size
        self._count = count
        self._interval = round(interval * SECOND)
        self._timeout = timeout
        self._patience = None if timeout is None else round(timeout * SECOND)
        self._look_up_took = 0
        self._lane: Optional[Lane] = None
        self._selector = clock.selector()
        self._next_at = 0
        self._waited_until = 0  # the end of the last wait
        self._noticed_at = self._noticed_cpu = 0  # of the last look for a stop, and the processor time then
        self._spared_until = 0  # no probe is given up before
        self._stopped = self._waiting = self._is_explained = False
        self._sent = 0
        self._lost = 0
        self._verdicts = dict.fromkeys(Verdict, 0)
        self._outages = Outages()
        self.rtt = Distribution()
        self._began = 0
        self._series = Series(SHORTEST_POINT)
        self._connect_times = Distribution()
        self._connecting_took = 0
        # Whether the connection has a line: one until a reply has come, since a balancer accepts without a server.
        self._is_announced = False

    @property
    def has_connected(self) -> bool:
        """Whether there was a connection."""
        return bool(self._connect_times.count)

    @property
    def is_unanswered(self) -> bool:
        """Whether messages were lost, and nothing has come back, for a reason that no line gives."""
        return bool(self._lost) and not any(self._verdicts.values()) and not self._is_explained

    def resolve(self) -> None:
        """Look up the host's name, for all connections. Raises ``socket.gaierror`` or ``UnicodeError`` if it has no
        address."""
        began = self._clock.now()
        with self._interruptible():
            self._endpoint = self._endpoint.resolve(self._timeout)
        self._look_up_took = self._clock.now() - began

    def stop(self) -> None:
        """End early; for a signal handler. It interrupts only a wait, and never the counting or writing."""
        self._stopped = True
        if self._waiting:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        self._waiting = True
        try:
            if self._stopped:
                raise KeyboardInterrupt
            yield
        finally:
            self._waiting = False
            self._waited_until = self._noticed_at = self._clock.now()
            self._noticed_cpu = self._clock.cpu()

    def run(self) -> int:
        """Ping until all is done or it is interrupted, report the summary, and return the exit code.

        Raises ``MemoryError``, after the summary of what was sent before.
        """
        lacks_memory = False
        self._began = self._next_at = self._clock.now()
        began = self._report.time()
        try:
            while not self._stopped and not self._is_done():
                self._go_on(self._clock.now())
        except KeyboardInterrupt:
            pass  # probes on their way are neither back nor lost
        except MemoryError:
            lacks_memory = True
        finally:  # even if a line could not be written
            waiting = 0
            if self._lane is not None:
                waiting = len(self._lane.ledger.outstanding)
                self._sent = max([self._sent, *(probe.seq for probe in self._lane.ledger.outstanding)])
                self._lane.close()
            self._selector.close()
        if self._sent or not lacks_memory:
            self._report_outage(self._outages.finish(self._clock.now()))
            self._summarize(waiting, self._clock.now() - self._began, began)
        if lacks_memory:
            raise MemoryError
        return self._exit_code()

    def _is_done(self) -> bool:
        return not self._may_send() and (self._lane is None or not self._lane.ledger.outstanding)

    def _go_on(self, now: int) -> None:
        """Send the next probe if it is due; otherwise wait for that or for replies."""
        if self._may_send() and now >= self._next_at:
            self._send()
        elif self._lane is not None:
            self._receive(self._lane, now)
        else:
            with self._interruptible():
                self._clock.sleep((self._next_at - now) / SECOND)

    def _may_send(self) -> bool:
        if self._count is not None and self._sent >= self._count:
            return False
        # Without an interval the replies set the pace.
        has_pace = bool(self._interval) and not self._new_connection
        return has_pace or self._lane is None or not self._lane.ledger.outstanding

    def _send(self) -> None:
        seq = self._sent + 1
        pause = self._interval
        now = self._clock.now()
        if now - self._next_at >= pause:  # this process was paused; probes whose time has gone by are not sent
            self._next_at = now
        try:
            if self._lane is None:
                pause = max(pause, round(CONNECT_PAUSE * SECOND))
                self._open(seq)
                pause = self._interval
            assert self._lane is not None
            self._lane.send(self._clock.now())
            self._sent += 1
        except OSError as exc:
            self._sent += 1
            self._is_explained = self._lane is None and exc.errno is not None  # of the system, or of TLS
            self._report_lost(seq, now, f"cannot connect: {explain(exc)}")
        self._next_at = max(self._next_at + pause, self._clock.now())

    def _open(self, seq: int) -> None:
        began = self._clock.now()
        with self._interruptible():
            sock = self._endpoint.open(self._timeout)
        took = self._clock.now() - began
        self._connect_times.add(took)
        ledger = (Ledger if self._verify else UncheckedLedger)(self._size, random.randrange(0x10000), seq)
        self._lane = Lane(sock, self._framing, ledger, self._clock.now)
        self._selector.register(self._lane, selectors.EVENT_READ)
        self._connecting_took = took
        is_first = self._connect_times.count == 1
        looked_up = f"looked up in {milliseconds(self._look_up_took)} ms, " * (is_first and self._endpoint.is_named)
        text = f"ECHO {self._where}: {plural(self._size, 'byte')}, {looked_up}connected in {milliseconds(took)} ms"
        self._report.event(
            "connected",
            "" if self._is_announced else text,
            address=self._where,
            size_bytes=self._size,
            connect_us=microseconds(took),
        )
        self._is_announced = True

    def _remove(self, lane: Lane) -> None:
        self._selector.unregister(lane)
        lane.close()
        self._lane = None

    def _close(self, lane: Lane, why: str) -> None:
        self._remove(lane)
        if not lane.ledger.outstanding:
            self._report.event("closed", f"{self._where}: {why}", why=why)
        for probe in lane.ledger.outstanding:
            self._report_lost(probe.seq, probe.sent_at, why)

    def _receive(self, lane: Lane, now: int) -> None:
        """Wait for the first of these: replies, the time of the next probe, the timeout of a probe."""
        self._notice_stop(now)
        deadlines = [self._next_at] if self._may_send() else []
        if self._patience is not None and lane.ledger.outstanding:
            deadlines.append(max(lane.ledger.outstanding[0].sent_at + self._patience, self._spared_until))
        wait = min(max(0.0, (min(deadlines) - now) / SECOND), LONGEST_WAIT) if deadlines else None
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if lane.is_behind else 0)
        self._selector.modify(lane, wanted)
        try:
            with self._interruptible():
                events = self._selector.select(wait)
            if deadlines and self._waited_until - min(deadlines) > STOPPED:
                self._spare(self._waited_until)
            for _, ready in events:
                if ready & selectors.EVENT_WRITE:
                    lane.flush()
                if ready & selectors.EVENT_READ:
                    now = self._clock.now()
                    self._give_up(lane, now)  # first: a reply after its time is late
                    for reply in lane.receive():
                        self._report_reply(reply, now)
                        self._notice_stop(self._clock.now())  # of each line: a flood of lines is not a pause
        except EchoError as exc:
            lost = exc.__cause__
            self._is_explained = isinstance(lost, OSError) and lost.errno is None  # TLS has its reason in words
            self._close(lane, str(exc))
            return
        self._give_up(lane, self._clock.now())
        if self._new_connection and not lane.ledger.outstanding:
            self._remove(lane)

    def _notice_stop(self, now: int) -> None:
        """Spare the probes if this process has not run in a while: it was stopped, or a line of the report has waited
        for the reader of the output. Time in which it computed does not count: a service that sends without end would
        have its probes spared for ever."""
        cpu = self._clock.cpu()
        if now - self._noticed_at - (cpu - self._noticed_cpu) > STOPPED:
            self._spare(now)
        self._noticed_at, self._noticed_cpu = now, cpu

    def _spare(self, now: int) -> None:
        """Give up no probe for a moment: the replies that have come are read first."""
        self._spared_until = now + STOPPED

    def _give_up(self, lane: Lane, now: int) -> None:
        self._notice_stop(now)
        if self._patience is not None and now >= self._spared_until:
            for probe in lane.ledger.give_up(now - self._patience):
                self._is_explained = False
                self._report_lost(probe.seq, probe.sent_at, f"no reply after {self._timeout:g} s")

    def _report_lost(self, seq: int, sent_at: int, why: str) -> None:
        self._lost += 1
        self._series.at(max(0, sent_at - self._began)).lost += 1
        self._report_outage(self._outages.lost(seq, sent_at))
        self._report.event("lost", f"{self._where}: seq={seq} {self._report.mark('lost')}: {why}", seq=seq, why=why)

    def _report_outage(self, outage: Optional[Outage]) -> None:
        if outage is not None:
            now = self._clock.now()
            self._report.outage(self._where, outage, now, first_seq=outage.first, last_seq=outage.last)

    def _report_reply(self, reply: Reply, now: int) -> None:
        self._verdicts[reply.verdict] += 1
        self._is_announced = self._new_connection  # then the line of each reply has it
        point = self._series.at(now - self._began)
        if reply.verdict is Verdict.RIGHT:
            point.messages += 1
        else:
            point.wrong += 1
        text = f"{plural(len(reply.message), 'byte')} from {self._where}:"
        fields: Dict[str, object] = {"bytes": len(reply.message), "verdict": reply.verdict.value}
        if reply.seq is not None:
            text += f" seq={reply.seq}"
            fields["seq"] = reply.seq
        if reply.verdict is Verdict.CORRUPTED and reply.probe is not None:
            mismatch = EchoMismatch(reply.probe.message, reply.message)
            text += f" {self._report.mark('corrupted')} {damage(reply.probe.message, reply.message)}"
            fields["offset"] = mismatch.offset
            self._report.detail("\n".join(comparison(reply.probe.message, reply.message)))
        elif reply.verdict is not Verdict.RIGHT:
            text += f" {self._report.mark(reply.verdict.value, style='doubtful')}"
            self._report.detail("\n".join(comparison(None, reply.message)))
        if reply.shift:
            text += f", shifted by {plural(abs(reply.shift), 'byte')}"
            fields["shifted_bytes"] = reply.shift
        if reply.probe is not None:
            took = now - reply.probe.sent_at
            if self._new_connection:
                took += self._connecting_took
                text += f" connect={milliseconds(self._connecting_took)} ms"
                fields["connect_us"] = microseconds(self._connecting_took)
            text += f" time={milliseconds(took)} ms"
            fields["rtt_us"] = microseconds(took)
            if reply.verdict is not Verdict.CORRUPTED:
                self.rtt.add(took)
                point.rtt.add(took)
        self._report.event("reply", text, **fields)
        if reply.probe is not None and self._lane is not None:
            waiting = self._lane.ledger.outstanding
            oldest = waiting[0].seq if waiting else self._sent + 1
            self._report_outage(self._outages.replied(reply.probe.seq, now, oldest))

    def _summarize(self, waiting: int, took: int, began: str) -> None:
        received = self._verdicts[Verdict.RIGHT] + self._verdicts[Verdict.REORDERED]
        settled = self._sent - waiting
        loss = 100 * self._lost / settled if settled else 0.0
        mark = self._report.mark
        corrupted, reordered = self._verdicts[Verdict.CORRUPTED], self._verdicts[Verdict.REORDERED]
        # The first number is the sum of the others: what answers no probe has a line of its own.
        parts = [f"{self._sent} transmitted", f"{received} received"]
        if reordered:
            parts[-1] += f" ({reordered} {Verdict.REORDERED.value})"
        parts += [mark(f"{corrupted} corrupted", corrupted), mark(f"{self._lost} lost", self._lost)]
        if waiting:
            parts.append(f"{waiting} on the way")
        parts += [mark(f"{loss:.4g}% loss", self._lost), f"time {took // 1_000_000} ms"]
        lines = [f"--- {self._where} echo statistics ---", ", ".join(parts)]
        extra = [f"{self._verdicts[verdict]} {verdict.value}" for verdict in _EXTRA if self._verdicts[verdict]]
        if extra:
            lines.append(f"besides these: {', '.join(extra)}")
        reconnects = 0 if self._new_connection else max(0, self._connect_times.count - 1)
        if reconnects:
            lines.append(f"reconnected {plural(reconnects, 'time')}")
        outages, outages_s = self._outages.count, self._outages.total / SECOND
        if outages:
            lines.append(f"{plural(outages, 'outage')}, {outages_s:.3f} s in all")
        if self._sent and not self._report.quiet:
            lines.insert(0, "")
        lines += [
            *_spread("rtt", self.rtt),
            *_percentiles("rtt", self.rtt, self._percentiles),
            *_spread("connect", self._connect_times),
        ]
        self._report.summarize(
            "\n".join(lines),
            mode="ping",
            began=began,
            address=self._where,
            size_bytes=self._size,
            transmitted=self._sent,
            received=received,
            corrupted=corrupted,
            **{  # "reordered" is an older name of "out_of_order", and so on
                name: self._verdicts[verdict]
                for verdict in (Verdict.REORDERED, *_EXTRA)
                for name in (verdict.field, verdict.name.lower())
            },
            lost=self._lost,
            on_the_way=waiting,
            loss_percent=round(loss, 4),
            reconnects=reconnects,
            outages=outages,
            outages_s=round(outages_s, 6),
            duration_s=round(took / SECOND, 6),
            lookup_us=microseconds(self._look_up_took),
            **as_fields("rtt", self.rtt, with_conditions(self._percentiles, self._report)),
            **as_fields("connect", self._connect_times, self._percentiles),
            rtt_distribution=self.rtt.as_json(),
            connect_distribution=self._connect_times.as_json(),
            series=self._series.as_columns(took),
            environment=environment(),
        )

    def _exit_code(self) -> int:
        wrong = [self._verdicts[verdict] for verdict in Verdict if verdict not in (Verdict.RIGHT, Verdict.LATE)]
        if self._verify and any(wrong):
            return 3
        lost = self._lost and not self._report.tolerates_loss
        return 1 if lost or not self._verdicts[Verdict.RIGHT] else 0


_EXTRA = [Verdict.DOUBLED, Verdict.LATE, Verdict.FOREIGN, Verdict.UNEXPECTED]
"""Verdicts on replies to no probe that was on its way."""


def _spread(name: str, times: Distribution) -> List[str]:
    """ping's own line."""
    if times.least is None or times.greatest is None:
        return []
    if times.count == 1:
        return [f"{name} {milliseconds(times.least)} ms"]
    figures = (times.least, times.mean, times.greatest, times.deviation)
    return [f"{name} min/avg/max/mdev = {'/'.join(map(milliseconds, figures))} ms"]


def _percentiles(name: str, times: Distribution, percents: Sequence[float]) -> List[str]:
    found = times.percentiles(percents)
    if not found:
        return []
    names = "/".join(percentile_name(percent) for percent, _ in found)
    return [f"{name} {names} = {'/'.join(milliseconds(value) for _, value in found)} ms"]
