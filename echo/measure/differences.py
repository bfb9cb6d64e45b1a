"""The figures of runs side by side: in reports, and as the text of ``--compare``."""

from __future__ import annotations

import functools
import os
from typing import Callable, List, NamedTuple, Optional, Sequence

from ..text import printable
from .distribution import Distribution
from .document import Run, warnings
from .figures import percentile_name
from .report import milliseconds

PERCENTILES = [50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99]

LONGEST_NAME = 24
"""Maximum number of characters of a run's name in a table of text."""


class Figure(NamedTuple):
    """A row: its name with the unit, the value for each run (None: unknown), and how a value is written."""

    name: str
    values: List[Optional[float]]
    text: Callable[[float], str]

    def cell(self, index: int) -> str:
        value = self.values[index]
        return "-" if value is None else self.text(value)

    def change(self, index: int) -> str:
        """By how much the first run differs from this one, in percent; empty if that is unknown."""
        new, old = self.values[0], self.values[index]
        if not index or new is None or not old:
            return ""
        return f"{100 * (new - old) / old:+.1f} %"


def figures(runs: Sequence[Run]) -> List[Figure]:
    """The figures that at least one of these runs has."""
    found = [
        Figure(name, [run.number(field) for run in runs], text)
        for name, field, text in (
            ("messages/s", "messages_per_s", _count),
            ("MB/s", "bytes_per_s", lambda value: f"{value / 1e6:,.2f}"),
            ("messages", "messages", _count),
            ("due", "due", _count),
            ("came", "came", _count),
            ("transmitted", "transmitted", _count),
            ("received", "received", _count),
            ("lost", "lost", _count),
            ("loss, %", "loss_percent", lambda value: f"{value:.4g}"),
            ("corrupted", "corrupted", _count),
            ("never sent", "never_sent", _count),
            ("on the way", "on_the_way", _count),
            ("outages", "outages", _count),
            ("outages, s", "outages_s", lambda value: f"{value:.3f}"),
        )
    ]
    found += _durations("", [run.rtt for run in runs])
    if any(run.raw is not None for run in runs):
        found += _durations("raw ", [run.raw for run in runs])
    found.append(
        Figure("connect avg, ms", [run.connect.mean if run.connect.count else None for run in runs], milliseconds)
    )
    return [figure for figure in found if any(value is not None for value in figure.values)]


def _durations(prefix: str, each: Sequence[Optional[Distribution]]) -> List[Figure]:
    """The figures of distributions of round trips."""
    times = [Distribution() if one is None else one for one in each]

    def row(name: str, value: Callable[[Distribution], Optional[float]]) -> Figure:
        return Figure(f"{prefix}{name}, ms", [value(one) if one.count else None for one in times], milliseconds)

    rows = [row("min", lambda one: one.least), row("avg", lambda one: one.mean)]
    rows += [row(percentile_name(percent), functools.partial(_percentile, percent)) for percent in PERCENTILES]
    rows += [row("max", lambda one: one.greatest), row("mdev", lambda one: one.deviation)]
    return rows


def _percentile(percent: float, times: Distribution) -> Optional[float]:
    return times.percentile(percent)


IN_SHORT = {"messages/s", "loss, %", "avg, ms", "p50, ms", "p90, ms", "p99, ms", "p99.9, ms", "max, ms"}
"""The figures of a short table."""


_LOAD = ["mode", "connections", "size_bytes", "depth", "rate_per_s", "new_connection", "reconnect"]
"""The fields that say what a run did. Runs that differ in them are not comparable as they stand."""


def differences(runs: Sequence[Run]) -> str:
    """The most important figures of the first run beside those of the others, as text."""
    heads = [_short(name) for name in names(runs)]
    rows = [figure for figure in figures(runs) if figure.name in IN_SHORT]
    widths = [max([len(name), 10, *(len(row.cell(place)) for row in rows)]) for place, name in enumerate(heads)]
    others = [name for name in _LOAD if len({repr(run.fields.get(name)) for run in runs}) > 1]
    lines = ["", *(["not the same load: " + ", ".join(others)] if others else [])]
    lines.append(f"{'compared':12}{heads[0]:>{widths[0]}}")
    lines[-1] += "".join(f"   {name:>{width}}{'change':>11}" for name, width in zip(heads[1:], widths[1:]))
    for row in rows:
        line = f"{row.name:12}{row.cell(0):>{widths[0]}}"
        for place in range(1, len(runs)):
            line += f"   {row.cell(place):>{widths[place]}}{row.change(place) or '-':>11}"
        lines.append(line)
    return "\n".join([*lines, *doubts(runs)])


def doubts(runs: Sequence[Run]) -> List[str]:
    """A line for each reason not to trust the figures of a run."""
    return [f"{name}: {warning}" for name, run in zip(names(runs), runs) for warning in warnings(run.fields)]


def names(runs: Sequence[Run]) -> List[str]:
    """Return a name for each run: that of its file, or the whole path if two files have the same name."""
    found = [printable(os.path.basename(run.name) or run.name) for run in runs]
    return found if len(set(found)) == len(found) else [printable(run.name) for run in runs]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"...{name[3 - LONGEST_NAME :]}"


def _count(value: float) -> str:
    return f"{value:,.0f}"
