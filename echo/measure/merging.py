"""Several machines, one load: the summary of all of them, made from the summary of each.

Counts add up, and distributions merge without loss, as those of the processes of one bench do. The measured time is
that in which at least one of the runs was measured. Their clocks decide which that was, so set them by NTP.
"""

from __future__ import annotations

from typing import Any, Callable, Counter, Dict, List, Sequence, Tuple

from .distribution import SECOND, Distribution
from .document import COLUMNS, Run, is_number, moment, moment_as_text
from .load import Slice
from .probes import Verdict
from .series import POINTS, Columns
from .summary import LoadSummary, Merged

_COUNTS = ["connections", "size_bytes", "depth", "messages", "due", "came", "lost", "never_sent", "client_late"]
_COUNTS += ["reconnects", "outages"]
_TIMES = ["warm_up_s", "duration_s", "outages_s", "client_busy_s", "client_watched_s", "client_late_max_us"]
"""Fields that a summary must have."""


def merge(runs: Sequence[Run]) -> LoadSummary:
    """Return the summary of the load that these runs were. Raises ``ValueError`` if they were not one load."""
    total, due = Slice(), 0
    connects = Distribution()
    spans: List[Tuple[float, float]] = []
    for place, run in enumerate(runs):
        if any(run.fields == other.fields for other in runs[:place]):
            raise ValueError(f"{run.name} has a run that was given before; give each once")
        if run.mode != "bench":
            raise ValueError(f"{run.name} is a summary of --ping; only those of --bench can be merged")
        try:
            total.merge(_counts(run))
            spans.append(_span(run))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(f"{run.name} lacks figures of a bench; measure again, with this version") from None
        due += run.fields["due"]
        connects.merge(run.connect)
        for name, value in _common(run).items():
            before = _common(runs[0])[name]
            if value != before:
                raise ValueError(f"{runs[0].name} has {name} {before}, {run.name} has {value}; merge runs of one load")
    began = min(begin for begin, _ in spans)
    is_one = len(runs) == 1
    return LoadSummary(
        _parameters(runs),
        total,
        due,
        _time_of_any(spans),
        connects,
        max(round(1000 * (run.number("lookup_us") or 0)) for run in runs),
        False,
        moment_as_text(began),
        runs[0].series if is_one else _series([run.series for run in runs], [begin - began for begin, _ in spans]),
        sum(run.fields["outages"] for run in runs),
        sum(run.fields["outages_s"] for run in runs),
        None if is_one else Merged([_described(run) for run in runs], _time_of_all(spans)),
    )


def _common(run: Run) -> Dict[str, Any]:
    """The parameters that all runs must have in common."""
    loop = "closed loop" if run.fields["rate_per_s"] is None else "open loop"
    names = ("size_bytes", "depth", "reconnect", "new_connection")
    return {"kind": loop, **{name: run.fields[name] for name in names}}


def _parameters(runs: Sequence[Run]) -> Dict[str, Any]:
    each = [run.fields for run in runs]
    rates = [fields["rate_per_s"] for fields in each]
    return {
        "address": ", ".join(dict.fromkeys(str(fields["address"]) for fields in each)),
        "connections": sum(fields["connections"] for fields in each),
        "size_bytes": each[0]["size_bytes"],
        "depth": each[0]["depth"],
        "rate_per_s": None if None in rates else sum(rates),
        "warm_up_s": max(fields["warm_up_s"] for fields in each),
        "reconnect": each[0]["reconnect"],
        "new_connection": each[0]["new_connection"],
    }


def _described(run: Run) -> Dict[str, Any]:
    names = ("address", "connections", "rate_per_s", "began", "duration_s", "messages", "messages_per_s")
    fields = {name: run.fields.get(name) for name in names}
    return {"name": run.name, **fields, "environment": run.fields.get("environment")}


def _counts(run: Run) -> Slice:
    """The counts of a run, as its processes had them. Raises ``KeyError``, ``TypeError``, ``ValueError``."""
    fields, part = run.fields, Slice()
    for name in _COUNTS:
        if type(fields[name]) is not int or not 0 <= fields[name] < 1 << 63:
            raise ValueError(name)
    for name in _TIMES:
        if not is_number(fields[name]) or fields[name] < 0:
            raise ValueError(name)
    if fields["rate_per_s"] is not None and type(fields["rate_per_s"]) is not int:
        raise ValueError("rate_per_s")
    if not all(type(fields[name]) is bool for name in ("reconnect", "new_connection")):
        raise ValueError("reconnect")
    part.reconnects = fields["reconnects"]
    part.received, part.lost = fields["messages"], fields["lost"]
    part.issued = fields["due"] - fields["never_sent"]
    part.damaged = fields["came"] - run.rtt.count
    part.late, part.latest = fields["client_late"], round(1000 * fields["client_late_max_us"])
    part.busy, part.watched = (round(fields[name] * SECOND) for name in ("client_busy_s", "client_watched_s"))
    part.rtt.merge(run.rtt)
    if run.raw is not None:
        part.raw.merge(run.raw)
    part.warm_up.update(_numbers(fields["warm_up"], str))
    part.errors.update(_numbers(fields["errors"], str))
    part.shifts.update(_numbers(fields["shifts"], int))
    part.wrong.update(_numbers(fields["wrong"], lambda name: Verdict[name.upper()]))
    if part.damaged < 0 or part.on_the_way < 0:
        raise ValueError("came")
    return part


def _numbers(value: Any, key: Callable[[str], Any]) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for name, count in value.items():
        if type(count) is not int or not 0 <= count < 1 << 63:
            raise ValueError(name)
        found[key(name)] += count
    return found


def _span(run: Run) -> Tuple[float, float]:
    begin = moment(run.fields["began"])
    return begin, begin + run.fields["duration_s"]


def _time_of_any(spans: Sequence[Tuple[float, float]]) -> float:
    """The time in seconds that is in at least one of the spans."""
    if len(spans) == 1:
        return spans[0][1] - spans[0][0]
    took, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        took += max(0.0, end - max(begin, until))
        until = max(until, end)
    return took


def _time_of_all(spans: Sequence[Tuple[float, float]]) -> float:
    """The time in seconds that is in all of the spans."""
    return max(0.0, min(end for _, end in spans) - max(begin for begin, _ in spans))


def _series(parts: Sequence[Columns], offsets: Sequence[float]) -> Columns:
    """The sum of series, which begin at these seconds.

    A point that lies in two points of the sum is divided between them by time. Percentiles of points cannot be added:
    the sum has none.
    """
    rows: List[Dict[str, Any]] = []
    for part, offset in zip(parts, offsets):
        for values in zip(*(part[name] for name in COLUMNS)):
            row = dict(zip(COLUMNS, values))
            rows.append({**row, "from_s": row["from_s"] + offset, "to_s": row["to_s"] + offset})
    end = max((row["to_s"] for row in rows), default=0.0)
    length = max([end / POINTS, *(row["to_s"] - row["from_s"] for row in rows)], default=1.0)
    cells: Dict[int, Dict[str, Any]] = {}
    for row in rows:
        begin, until = row["from_s"], row["to_s"]
        for index in range(int(begin / length), int(until / length) + 1):
            share = (min(until, (index + 1) * length) - max(begin, index * length)) / max(until - begin, 1e-9)
            if share <= 1e-9:
                continue
            cell = cells.setdefault(index, {"messages": 0.0, "lost": 0.0, "wrong": 0.0, "max_us": None})
            for name in ("messages", "lost", "wrong"):
                cell[name] += share * (row[name] or 0)
            cell["max_us"] = max((x for x in (cell["max_us"], row["max_us"]) if x is not None), default=None)
    columns: Columns = {name: [] for name in COLUMNS}
    for index, cell in sorted(cells.items()):
        begin, until = index * length, min((index + 1) * length, end)
        cell.update(from_s=begin, to_s=until, messages_per_s=cell["messages"] / max(until - begin, 1e-9))
        for name in COLUMNS:
            value = cell.get(name)
            columns[name].append(None if value is None else round(value, 6))
    return columns
