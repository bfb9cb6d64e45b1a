"""The summary of a measurement as a document: what it has besides its figures, and how it is read again.

A document is the summary that ``--json`` prints. Reports, comparisons and merges are made from documents alone, those
of the run that has just ended included.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional

from ..version import __version__
from .distribution import Distribution
from .series import Columns

COLUMNS = ("from_s", "to_s", "messages", "messages_per_s", "p50_us", "p99_us", "max_us", "lost", "wrong")

BUSY = 0.9
"""Share of a processor from which a process of the load has no time to spare: it may be slower than the server."""

MOST_OF_THE_TIME = 0.9
"""Share of the time in which all of the merged runs must have run for their rates to be those of one load."""

_MOST = 1e15
"""Maximum of each number in a time series that is read."""


def processors() -> int:
    """The number of processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def environment() -> Dict[str, Any]:
    """Where a measurement was made."""
    return {
        "echo": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": processors(),
    }


class Run(NamedTuple):
    """A measurement, as its document describes it.

    ``name``: what reports call it. ``mode``: ``ping`` or ``bench``. ``fields``: the whole summary. ``rtt``: the
    round trips, in an open loop from the time at which each message was due; ``raw``: from its send, or None.
    ``series``: what happened over time.
    """

    name: str
    mode: str
    fields: Dict[str, Any]
    rtt: Distribution
    raw: Optional[Distribution]
    connect: Distribution
    series: Columns

    @classmethod
    def read(cls, name: str, lines: Iterable[str]) -> Run:
        """Read the output of ``--json``, whose last line is the summary. Raises ``ValueError``."""
        last = ""
        for line in lines:
            last = line if line.strip() else last
        try:
            fields = json.loads(last) if '"summary"' in last else None
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict) or fields.get("event") != "summary":
            raise ValueError("not a summary: expected the output of --ping or --bench with --json")
        return cls.of(name, fields)

    @classmethod
    def of(cls, name: str, fields: Dict[str, Any]) -> Run:
        """Return the run that a summary describes. Raises ``ValueError``."""
        if "error" in fields:
            raise ValueError("that measurement failed: its summary has only the error")
        mode = fields.get("mode")
        if mode not in ("ping", "bench") or "rtt_distribution" not in fields:
            raise ValueError("the summary has no distribution: measure again, with this version")
        found: Dict[str, Distribution] = {}
        for which in ("rtt", "raw", "connect"):
            key = f"{which}_distribution"
            if key in fields:
                try:
                    found[which] = Distribution.from_json(fields[key])
                except ValueError as exc:
                    raise ValueError(f"invalid {key}: {exc}") from None
        try:
            moment(str(fields.get("began")))
        except ValueError:
            raise ValueError("invalid began: expected a time like 2030-01-31T12:00:00.000Z") from None
        series = _columns(fields.get("series"))
        return cls(name, mode, fields, found["rtt"], found.get("raw"), found.get("connect", Distribution()), series)

    def number(self, field: str) -> Optional[float]:
        """A figure of the summary; None if it has none that is a number."""
        value = self.fields.get(field)
        return value if is_number(value) else None


def warnings(fields: Dict[str, Any]) -> Iterator[str]:
    """Why the figures of a summary may say more about how it was measured than about the server."""
    numbers = {name: value for name, value in fields.items() if is_number(value)}
    if fields.get("client_is_bottleneck") is True:
        if numbers.get("client_busy_percent", 0) >= 100 * BUSY:
            yield "the client was the bottleneck: it had no processor time to spare; the server may be faster"
        else:
            yield "the client was late itself: its machine is busy with other work; the latencies contain its delays"
    overlap, duration = numbers.get("overlap_s"), numbers.get("duration_s")
    if overlap is not None and duration is not None and overlap < MOST_OF_THE_TIME * duration:
        most = f"{MOST_OF_THE_TIME:.0%}"
        yield f"the runs overlapped for less than {most} of the time: the rate is the average while any of them ran"


def is_number(value: Any) -> bool:
    """Whether it is a number of reasonable size."""
    return type(value) in (int, float) and abs(value) < _MOST**3  # not, if it is not a number


def moment(text: str) -> float:
    """A time as events have it, in seconds since 1970. Raises ``ValueError``."""
    found = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ")
    return found.replace(tzinfo=datetime.timezone.utc).timestamp()


def moment_as_text(seconds: float) -> str:
    """The inverse of ``moment``."""
    found = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _columns(value: Any) -> Columns:
    """Check a series, and return those of its columns that are known."""
    try:
        columns: Columns = {name: list(value[name]) for name in COLUMNS}
    except (KeyError, TypeError):
        raise ValueError(f"invalid series: expected the columns {', '.join(COLUMNS)}") from None
    cells: List[Any] = [cell for name in ("from_s", "to_s", "messages") for cell in columns[name]]
    cells += [cell for column in columns.values() for cell in column if cell is not None]
    if not all(is_number(cell) and 0 <= cell < _MOST for cell in cells):
        raise ValueError("invalid series: expected numbers")
    if len({len(column) for column in columns.values()}) != 1:
        raise ValueError("invalid series: its columns differ in length")
    times = [time for pair in zip(columns["from_s"], columns["to_s"]) for time in pair if time is not None]
    if times != sorted(times) or len(times) > 100_000:
        raise ValueError("invalid series: its times are not in order")
    return columns
