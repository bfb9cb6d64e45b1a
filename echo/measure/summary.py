"""The summary of a load, as text and as fields for JSON: of one bench, or of several that were merged."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ..text import plural
from .distribution import SECOND, Distribution
from .document import BUSY, environment, warnings
from .figures import as_fields, percentile_name, with_conditions
from .load import Slice
from .probes import Verdict
from .report import Report, microseconds, milliseconds
from .series import Columns

LATE_SHARE = 0.01
LATE_AT_LEAST = 10
"""Share of the messages, and their number, that the load may send late before its figures are doubtful."""


class Merged(NamedTuple):
    """Several runs that are summed up as one. ``runs``: a description of each. ``overlap``: the time in seconds in
    which all of them ran."""

    runs: List[Dict[str, Any]]
    overlap: float


class LoadSummary(NamedTuple):
    """The result of a load.

    ``parameters``: the fields that describe the load. ``total``: the counts. ``due``: the number of messages that were
    due. ``elapsed``: the measured time in seconds. ``connects``: how long connecting took. ``look_up_took``: the time
    of the host's look-up in nanoseconds; ``is_named``: whether that was the look-up of a name. ``began``: when the
    measured time began, in UTC. ``series``: the time series. ``outages``: how many there were; ``outages_s``:
    their length in seconds. ``merged``: the runs that it is made of, if it is.
    """

    parameters: Dict[str, Any]
    total: Slice
    due: int
    elapsed: float
    connects: Distribution
    look_up_took: int
    is_named: bool
    began: str
    series: Columns
    outages: int
    outages_s: float
    merged: Optional[Merged] = None

    def report(self, report: Report, percentiles: Sequence[float]) -> None:
        """Report it, with these percentiles."""
        total, elapsed, connects = self.total, self.elapsed, self.connects
        size = self.parameters["size_bytes"]
        never_sent = self.due - total.issued + total.unsent
        rate = total.received / elapsed if elapsed else 0.0
        settled = total.came + total.lost
        busy = total.busy / total.watched if total.watched else 0.0
        messages = f"{total.received:,} in {elapsed:.3g} s, {rate:,.0f}/s, {rate * size / 1e6:,.2f} MB/s"
        rows = [
            ("messages", messages if elapsed else "none: it ended before the warm-up did"),
            *self._fates(never_sent, report),
            *self._client(busy),
        ]
        if self.is_named:
            rows.append(("look-up", f"{milliseconds(self.look_up_took)} ms"))
        if connects.least is not None and connects.greatest is not None:
            spread = "/".join(map(milliseconds, (connects.least, connects.mean, connects.greatest)))
            rows.append(("connect", f"min/avg/max {spread} ms"))
        is_paced = self.parameters["rate_per_s"] is not None
        latencies = {"rtt": total.rtt}
        if is_paced or total.raw.count:
            latencies["raw"] = total.raw
        fields: Dict[str, Any] = {}
        for name, times in latencies.items():
            fields.update(as_fields(name, times, with_conditions(percentiles, report)))
            fields[f"{name}_distribution"] = times.as_json()
        if self.merged is not None:
            count, overlap = len(self.merged.runs), self.merged.overlap
            rows.append(("runs", f"{count}, all at the same time for {overlap:.3g} of {elapsed:.3g} s"))
            fields.update(runs=self.merged.runs, overlap_s=round(overlap, 6))
        fields = dict(
            mode="bench",
            began=self.began,
            **self.parameters,
            messages=total.received,
            duration_s=round(elapsed, 6),
            messages_per_s=round(rate, 1),
            bytes_per_s=round(rate * size, 1),
            **{verdict.field: total.wrong[verdict] for verdict in Verdict if verdict is not Verdict.RIGHT},
            wrong={verdict.name.lower(): count for verdict, count in total.wrong.items()},
            loss_percent=round(100 * total.lost / settled, 4) if settled else 0.0,
            due=self.due,
            came=total.came,
            lost=total.lost,
            never_sent=never_sent,
            unsent=never_sent,  # an older name
            on_the_way=total.on_the_way,
            warm_up=dict(total.warm_up),
            shifts={str(shift): count for shift, count in total.shifts.items()},
            errors=dict(total.errors),
            reconnects=total.reconnects,
            outages=self.outages,
            outages_s=round(self.outages_s, 6),
            lookup_us=microseconds(self.look_up_took),
            client_busy_percent=round(100 * busy, 1),
            client_busy_s=total.busy / SECOND,
            client_watched_s=total.watched / SECOND,
            client_late=total.late,
            client_late_max_us=microseconds(total.latest),
            client_is_bottleneck=busy >= BUSY or self._is_late,
            **as_fields("connect", connects, percentiles),
            connect_distribution=connects.as_json(),
            **fields,
            series=self.series,
            environment=environment(),
        )
        rows += [("warning", report.mark(warning, style="doubtful")) for warning in warnings(fields)]
        table = _table(latencies, percentiles, is_paced)
        report.summarize("\n".join([*(f"{name:12}{text}" for name, text in rows), "", *table]), **fields)

    def _fates(self, never_sent: int, report: Report) -> Iterator[Tuple[str, str]]:
        """The rows about what became of the messages."""
        total = self.total
        fates = [f"{total.came:,} came", report.bad(total.lost, "lost"), f"{never_sent:,} never sent"]
        yield "due", f"{self.due:,}: {', '.join(fates)}, {total.on_the_way:,} on the way"
        yield "wrong", ", ".join(report.bad(count, verdict.value) for verdict, count in total.wrong.items()) or "0"
        yield "lost", report.mark(f"{total.lost:,}", total.lost)
        yield "errors", ", ".join(report.bad(count, f"x {what}") for what, count in total.errors.items()) or "0"
        if total.reconnects:
            yield "reconnected", plural(total.reconnects, "time")
        if self.outages:
            yield "outages", f"{self.outages:,}, {self.outages_s:.3f} s in all"
        if total.on_the_way:
            yield "on the way", f"{total.on_the_way:,} when it was interrupted"
        if never_sent:
            why = "their connection was lost, or the time ran out" if total.errors else "the time ran out"
            yield "never sent", f"{never_sent:,}, since {why}"
        if total.shifts:
            shifts = [f"{count:,} x by {plural(abs(shift), 'byte')}" for shift, count in total.shifts.items()]
            yield "shifted", ", ".join(shifts)
        if total.warm_up:
            kinds = [f"{count:,} {what}" for what, count in total.warm_up.items()]
            yield "warm-up", f"{', '.join(kinds)}; not counted above"

    @property
    def _is_late(self) -> bool:
        """Whether the client was so late itself that the figures are doubtful."""
        return self.total.late > max(LATE_AT_LEAST, LATE_SHARE * self.total.issued)

    def _client(self, busy: float) -> Iterator[Tuple[str, str]]:
        """The row about the client itself. ``busy``: its share of a processor."""
        total = self.total
        if total.watched:
            latest = f", by {milliseconds(total.latest)} ms at most"
            late = f", {total.late:,} message{'' if total.late == 1 else 's'} sent late{latest}" if total.late else ""
            yield "client", f"{busy:.0%} of a processor in each process{late}"


def _table(latencies: Dict[str, Distribution], percents: Sequence[float], is_paced: bool) -> List[str]:
    """A row for each distribution, a column for each percentile, in milliseconds."""
    # Corrected: it includes the wait to be sent, which the raw round trip leaves out.
    titles = {"rtt": "corrected" if is_paced else "round trip", "raw": "raw"}
    names = ["min", *map(percentile_name, percents), "max"]
    lines = ["".join([f"{'ms':11}", *(f"{name:>8}" for name in names), f"{'samples':>12}"])]
    for name, times in latencies.items():
        if times.least is None or times.greatest is None:
            continue
        found = dict(times.percentiles(percents))
        cells = [milliseconds(found[percent]) if percent in found else "-" for percent in percents]
        cells = [milliseconds(times.least), *cells, milliseconds(times.greatest)]
        lines.append("".join([f"{titles[name]:11}", *(f"{cell:>8}" for cell in cells), f"{times.count:>12,}"]))
    return lines if len(lines) > 1 else []
