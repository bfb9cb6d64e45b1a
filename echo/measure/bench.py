"""``--bench``: as many messages as the server takes, or at a fixed rate, and a report on them.

This module plans the load, starts its processes (``load.py``), adds up their figures and reports them. It sends no
message itself.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import multiprocessing.resource_tracker
import os
import random
import signal
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from ..client.endpoint import Endpoint
from ..exceptions import ConnectionClosed
from ..framing import Framing
from ..text import plural
from .clock import CLOCK, Clock
from .distribution import SECOND, Distribution
from .document import processors
from .figures import as_fields, comparison
from .intervals import Interval, Intervals
from .load import TIMED_OUT, End, Period, Plan, Slice, Timetable, run
from .outages import Downtime, Downtimes
from .probes import CLOSED_DEPTH, OPEN_DEPTH, Verdict
from .progress import Progress
from .report import Report, milliseconds
from .series import SHORTEST_POINT, Series
from .summary import LoadSummary

PERCENTILES = [50.0, 75.0, 90.0, 99.0, 99.9]

MAX_WARM_UP = 1.0
"""Maximum duration of the warm-up in seconds, in which nothing is counted. Short loads warm up for a tenth of their
duration."""

PROGRESS = SECOND
"""Nanoseconds between two reports of the progress."""

REDRAWN = SECOND // 5
"""Nanoseconds between two lines at the terminal, at least."""

POINTS = 50
"""Number of points that the time series of a bench is to have at least."""

_LOAD = "a process of the load"
_DIED = f"{_LOAD} has died"
_NO_MEMORY = f"{_LOAD} had not enough memory"


def start_processes(plan: Plan) -> Iterator[Tuple[Any, Any, List[int]]]:
    """Start processes that share the connections of ``plan``; yield the pipe to each one, the process, and the numbers
    of its connections."""
    count = max(1, min(plan.connections, processors() // 2))  # half of the processors: the server needs the others
    context = multiprocessing.get_context("spawn")  # the only method that all systems have
    try:
        # A new process enters this folder by its whole path, and would end with a traceback.
        folder = multiprocessing.process.ORIGINAL_DIR  # type: ignore[attr-defined]
        os.stat(os.path.join(folder or "", "."))
    except PermissionError as exc:  # sudo -u somebody, in a folder of root's
        raise PermissionError(exc.errno, "the current folder cannot be entered") from None
    if hasattr(signal, "pthread_sigmask"):
        multiprocessing.resource_tracker.ensure_running()  # now, since its start unblocks both signals
    # The children inherit the mask. Ctrl-C and timeout(1) signal all processes, but only this one must act on it.
    with _signals_blocked():
        for index in range(count):
            lanes = list(range(index, plan.connections, count))
            pipe, theirs = context.Pipe()
            process = context.Process(target=run, args=(theirs, plan._replace(lanes=lanes)), daemon=True)
            process.start()
            theirs.close()
            yield pipe, process, lanes


class Bench:
    """A load on ``endpoint``: ``connections`` that send messages of ``size`` bytes for ``duration`` seconds.

    Without ``rate`` it is a closed loop: each connection has ``depth`` messages on their way. With it, it is an open
    loop: ``rate`` messages per second over all connections, and at most ``depth`` on their way in each. ``timeout`` is
    the maximum time in seconds for a reply, after which the probe is lost, and for connecting (None: no limit).
    ``framing`` is as in ``Ping``. ``start_load`` starts the processes of the load.
    Without ``verify``, replies are timed and counted, and not compared with the probes. ``percentiles`` are shown.
    With ``reconnect`` a connection that is lost is opened again. With ``new_connection`` each message has one of its
    own, and ``connections`` is how many there are at a time.
    ``interval`` is the time in seconds that each line of a time series is about (None: no such lines).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        framing: Framing,
        report: Report,
        *,
        connections: int,
        duration: float,
        size: int,
        depth: Optional[int],
        rate: Optional[int],
        timeout: Optional[float],
        interval: Optional[float] = None,
        percentiles: Sequence[float] = PERCENTILES,
        verify: bool = True,
        reconnect: bool = False,
        new_connection: bool = False,
        clock: Clock = CLOCK,
        start_load: Callable[[Plan], Iterator[Tuple[Any, Any, List[int]]]] = start_processes,
    ) -> None:
        self._clock = clock
        self._start_load = start_load
        self._where = str(endpoint)
        self._report = report
        self._interval = interval
        self._percentiles = percentiles
        self._connections = connections
        self._duration = duration
        self._size = size
        self._rate = rate
        self._timeout = timeout
        self._warm_up = min(MAX_WARM_UP, duration / 10)
        self._depth = 1 if new_connection else depth or (CLOSED_DEPTH if rate is None else OPEN_DEPTH)
        self._plan = Plan(
            endpoint,
            framing,
            size,
            [],
            connections,
            self._depth,
            rate,
            None if timeout is None else round(timeout * SECOND),
            random.randrange(0x10000),
            verify,
            reconnect,
            new_connection,
        )
        self.total = Slice()
        self._outages = self._outages_took = 0  # their number, and their length in nanoseconds
        self.due = 0
        self._connect_times = Distribution()
        self._look_up_took = 0
        self._period = Period(0, 0, 0, 0)
        self._length = PROGRESS  # of the intervals that are reported, a multiple of those in the period
        self._series = Series(PROGRESS)
        self._began = ""
        self._started_at = 0
        self._processes: List[Any] = []
        self._pipes: Dict[Any, List[int]] = {}  # with the numbers of the connections of that process
        self._running = False

    def connect(self) -> None:
        """Start the processes and let them connect. Raises ``OSError`` if they cannot, and ``UnicodeError`` for an
        invalid host name."""
        began = self._clock.now()
        endpoint = self._plan.endpoint.resolve(self._timeout)  # once, and not by each process and for each connection
        self._look_up_took = self._clock.now() - began
        self._plan = self._plan._replace(endpoint=endpoint)
        for pipe, process, lanes in self._start_load(self._plan):
            self._pipes[pipe] = lanes
            self._processes.append(process)
        for pipe, process in zip(self._pipes, self._processes):
            try:
                answer = pipe.recv()
            except EOFError:
                process.join()
                code = process.exitcode  # negative: the number of a signal
                raise ConnectionClosed(_DIED if code < 0 else f"{_LOAD} has ended with code {code}") from None
            if isinstance(answer, MemoryError):
                answer = OSError(errno.ENOMEM, "not enough memory")
            if isinstance(answer, OSError):
                raise answer
            if not self._plan.new_connection:  # else it was only to see whether the server is there
                for took in answer:
                    self._connect_times.add(took)
            self._report.detail(f"{_LOAD} has {plural(len(answer), 'connection')}")

    def close(self) -> None:
        """Kill the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
            process.join()

    def run(self) -> int:
        """Run the load to its end or until ``stop``, report the summary, and return the exit code."""
        start = SECOND // 50
        begin = start + round(self._warm_up * SECOND)
        self._length = PROGRESS if self._interval is None else round(self._interval * SECOND)
        duration = round(self._duration * SECOND)
        point = _part_of(self._length, max(SHORTEST_POINT, duration // POINTS))
        self._series = Series(point)
        self._period = Period(start, begin, begin + duration, point)
        self._began = self._report.time(-begin / SECOND)
        self._started_at = self._clock.now()
        with _signals_blocked():
            for pipe in self._pipes:
                with contextlib.suppress(BrokenPipeError):  # that process has died; _gather() sees the end of its pipe
                    pipe.send(self._period)
            self._running = True  # from now on a signal ends the load, and the summary is reported
        self._report_start()
        ended_at = self._gather()
        self._summarize(max(0, ended_at - begin) / SECOND)
        return self._exit_code()

    def stop(self) -> None:
        """End the load early, from a signal handler; ``KeyboardInterrupt`` if it does not run yet."""
        if not self._running:
            raise KeyboardInterrupt
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send("end")

    def _gather(self) -> int:
        """Add up all slices and report progress; return the time of the end, in nanoseconds after the start."""
        waiting = list(self._pipes)
        on_the_way = dict.fromkeys(self._pipes, 0)
        ends: Dict[Any, End] = {}
        points = Intervals(self._period, self._pipes)
        intervals = Intervals(self._period._replace(interval=self._length), self._pipes)
        downtimes = Downtimes(self._pipes)
        progress = Progress(self._duration, self._report.encoding)
        drawn = -SECOND
        while waiting:
            for outage in downtimes.completed():
                self._report_outage(outage)
            self._record(points, self._period.end)
            for interval in intervals.completed(self._period.end):
                self._report_interval(interval)
                counts = interval.counts
                progress.add(counts.received * SECOND / (interval.end - interval.begin), counts.rtt)
            pipe: Any
            for pipe in multiprocessing.connection.wait(waiting):
                try:
                    part = pipe.recv()
                except (EOFError, OSError) as exc:
                    part = exc
                if isinstance(part, Exception):
                    self.total.errors[_NO_MEMORY if isinstance(part, MemoryError) else _DIED] += 1
                    self.total.lost += on_the_way[pipe]
                    part = End(self._clock.now() - self._started_at, False)
                if isinstance(part, Slice):
                    on_the_way[pipe] += part.on_the_way
                    self.total.merge(part)
                    points.add(pipe, part)
                    intervals.add(pipe, part)
                    downtimes.add(pipe, part.until, part.outages, part.down)
                    if part.until - drawn >= REDRAWN:
                        drawn = part.until
                        self._draw(progress, drawn)
                    for verdict, sent, received in part.examples:
                        self._report.detail("\n".join([f"{verdict.value}:", *comparison(sent, received)]))
                else:
                    ends[pipe] = part
                    waiting.remove(pipe)
                    points.end(pipe)
                    intervals.end(pipe)
                    downtimes.end(pipe)
        ended_at = min(max(end.at for end in ends.values()), self._period.end)
        self._record(points, ended_at)
        for interval in intervals.completed(ended_at):
            self._report_interval(interval)
        for outage in downtimes.completed():
            self._report_outage(outage)
        self._connect_times.merge(self.total.connects)
        self._add_up_what_was_due(ends)
        return ended_at

    def _record(self, points: Intervals, until: int) -> None:
        for begin, _, counts in points.completed(until):
            self._series.at(begin).add(counts.received, counts.lost, sum(counts.wrong.values()), counts.rtt)

    def _add_up_what_was_due(self, ends: Dict[Any, End]) -> None:
        """In an open loop: the whole timetable, also of connections that were lost, up to an interruption."""
        if self._rate is None:
            self.due = self.total.issued
            return
        start, begin, end, _ = self._period
        timetable = Timetable(self._rate, self._connections)
        interrupted_at = max((each.at for each in ends.values() if each.interrupted), default=end)
        for pipe, lanes in self._pipes.items():
            until = ends[pipe].at if ends[pipe].interrupted else interrupted_at
            for lane in lanes:
                turns = timetable.rounds(lane, until - start) - timetable.rounds(lane, begin - start)
                self.due += max(0, turns)  # none if the load was interrupted in the warm-up

    def _report_start(self) -> None:
        paced = f"closed loop, depth {self._depth}" if self._rate is None else f"{self._rate} messages/s"
        if self._plan.new_connection:
            paced = f"{paced.partition(', ')[0]}, a connection for each message"
        connections = plural(self._connections, "connection")
        self._report.event(
            "start",
            f"BENCH {self._where}: {connections}, {self._size}-byte messages, {paced}, {self._duration:g} s",
            **self._parameters(),
            duration_s=self._duration,
        )

    def _parameters(self) -> Dict[str, Any]:
        return {
            "address": self._where,
            "connections": self._connections,
            "size_bytes": self._size,
            "depth": self._depth,
            "rate_per_s": self._rate,
            "warm_up_s": self._warm_up,
            "reconnect": self._plan.reconnect,
            "new_connection": self._plan.new_connection,
        }

    def _report_outage(self, outage: Downtime) -> None:
        self._outages += 1
        self._outages_took += outage.ended - outage.began
        connections = len(outage.connections)
        now = self._clock.now() - self._started_at
        down = f"{plural(connections, 'connection')} down"
        self._report.outage(self._where, outage, now, down, connections=connections)

    def _report_interval(self, interval: Interval) -> None:
        if self._interval is None:
            if interval.end - interval.begin == PROGRESS:
                self._report_progress(interval.counts, interval.end / SECOND)
            return
        counts = interval.counts
        begin, end = interval.begin / SECOND, interval.end / SECOND
        rate = counts.received / (end - begin)
        wrong = sum(counts.wrong.values())
        found = dict(counts.rtt.percentiles([50.0, 99.0]))
        latency = "".join(
            f"  {name} {'-' if value is None else milliseconds(value):>5}"
            for name, value in (("p50", found.get(50.0)), ("p99", found.get(99.0)), ("max", counts.rtt.greatest))
        )
        self._report.event(
            "interval",
            f"{f'{begin:.2f}-{end:.2f} s':>14} {counts.received:10,} messages {rate:9,.0f}/s{latency} ms"
            f"  {self._report.bad(wrong, 'wrong')}, {self._report.bad(counts.lost, 'lost')}",
            from_s=round(begin, 6),
            to_s=round(end, 6),
            messages=counts.received,
            messages_per_s=round(rate, 1),
            **as_fields("rtt", counts.rtt, self._percentiles),
            wrong=wrong,
            lost=counts.lost,
        )

    def _report_progress(self, recent: Slice, elapsed: float) -> None:
        self._report.progress(
            elapsed_s=round(elapsed, 3),
            messages_per_s=round(recent.received / (PROGRESS / SECOND), 1),
            **as_fields("rtt", recent.rtt, self._percentiles),
            wrong=sum(self.total.wrong.values()),
            lost=self.total.lost,
        )

    def _draw(self, progress: Progress, now: int) -> None:
        """Draw the line at the terminal, as it is at this time, counted as in ``Period``."""
        elapsed = (now - self._period.begin) / SECOND
        wrong, lost = sum(self.total.wrong.values()), self.total.lost
        self._report.draw(lambda width, paint: progress.line(elapsed, wrong, lost, width, paint))

    def _summarize(self, elapsed: float) -> None:
        summary = LoadSummary(
            self._parameters(),
            self.total,
            self.due,
            elapsed,
            self._connect_times,
            self._look_up_took,
            self._plan.endpoint.is_named,
            self._began,
            self._series.as_columns(round(elapsed * SECOND)),
            self._outages,
            self._outages_took / SECOND,
        )
        summary.report(self._report, self._percentiles)

    def _exit_code(self) -> int:
        if self._plan.verify and any(self.total.wrong[verdict] for verdict in Verdict if verdict is not Verdict.LATE):
            return 3
        errors = dict(self.total.errors)
        if self._report.tolerates_loss:
            errors.pop(TIMED_OUT, None)
            if self._plan.reconnect or self._plan.new_connection:  # then an error costs messages, and is not the end
                errors = {error: errors[error] for error in (_DIED, _NO_MEMORY) if error in errors}
        elif self.total.lost:
            return 1
        return 1 if errors or not (self.total.rtt.count or self.total.received) else 0


def _part_of(length: int, least: int) -> int:
    """The shortest part of a length that is not shorter than ``least`` and of which the length is a multiple."""
    parts = max(1, length // least)
    while length % parts:
        parts -= 1
    return length // parts


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block signals; one that comes meanwhile takes effect afterwards. Children inherit the mask for good."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
