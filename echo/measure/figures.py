"""Distributions as text and JSON: names of percentiles, fields, a histogram; and wrong replies as text."""

from __future__ import annotations

import math
from typing import Dict, List, Optional, Sequence

from ..exceptions import EchoMismatch
from ..text import escape, plural
from .distribution import Distribution
from .report import Report, microseconds, milliseconds

SHOWN_BYTES = 100
"""Maximum number of bytes of a message that are shown."""

BAR_WIDTH = 40
_EIGHTHS = " ▏▎▍▌▋▊▉"
_STEPS = (10, 12, 15, 20, 25, 30, 40, 50, 60, 80)
"""Where the intervals of a histogram begin, in each power of ten. Their ratios are about equal."""


def percentile_name(percent: float) -> str:
    """The name of a percentile: ``p50``, ``p99.9``."""
    return f"p{percent:.10g}"


def as_fields(name: str, rtt: Distribution, percents: Sequence[float]) -> Dict[str, object]:
    """The fields for JSON: ``{name}_samples``, ``{name}_min_us``, ``..._avg_us``, ``..._max_us``, ``..._mdev_us``,
    ``..._p50_us`` and so on, those for which there are enough samples."""
    fields: Dict[str, object] = {f"{name}_samples": rtt.count}
    if rtt.least is not None and rtt.greatest is not None:
        figures = {"min": rtt.least, "avg": rtt.mean, "max": rtt.greatest, "mdev": rtt.deviation}
        for percent, value in rtt.percentiles(percents):
            figures[percentile_name(percent).replace(".", "_")] = value
        fields.update({f"{name}_{which}_us": microseconds(value) for which, value in figures.items()})
    return fields


def with_conditions(percents: Sequence[float], report: Report) -> List[float]:
    """These percentiles, and those that the conditions of a report are about."""
    others = {condition.percentile for condition in report.conditions if condition.percentile is not None}
    return [*percents, *sorted(others.difference(percents))]


def comparison(sent: Optional[bytes], received: bytes) -> List[str]:
    """A wrong reply as text. If ``sent`` is given, both are shown around the first byte that differs."""
    start = 0 if sent is None else max(0, EchoMismatch(sent, received).offset - SHOWN_BYTES // 2)
    rows = [("received", received)] if sent is None else [("sent", sent), ("received", received)]
    return [f"  {name:8} {'... ' if start else ''}{escape(data[start:], SHOWN_BYTES)}" for name, data in rows]


def damage(sent: bytes, received: bytes) -> str:
    """Where and how a reply differs from its probe, as text."""
    first = EchoMismatch(sent, received).offset
    missing = len(sent) - len(received)
    if missing:
        return f"from byte {first} on: {plural(abs(missing), 'byte')} {'missing' if missing > 0 else 'too many'}"
    places = [index for index, (a, b) in enumerate(zip(sent, received)) if a != b]
    return f"at byte {first}" if len(places) == 1 else f"in {len(places)} bytes, from {first} to {places[-1]}"


def histogram(samples: Distribution, encoding: str) -> str:
    """A histogram as text. Each row is an interval: its bounds, its number of samples, and a bar.

    The intervals grow with the durations, so that short and long ones fit into one histogram. Bars are block characters
    if ``encoding`` has them, else number signs. Without samples the text is empty.
    """
    if samples.least is None or samples.greatest is None:
        return ""
    edges = _edges(samples.least, samples.greatest)
    counts = samples.between(edges)
    texts = [milliseconds(edge) for edge in edges]
    columns = max(map(len, texts))
    bounds = [f"{low:>{columns}} - {high:>{columns}}" for low, high in zip(texts, texts[1:])]
    width = len(bounds[0])
    digits = len(f"{max(counts):,}")
    draw = _blocks if has_blocks(encoding) else _signs
    rows = (f"{bound:>{width}} {count:>{digits},} {draw(count / max(counts))}" for bound, count in zip(bounds, counts))
    return "\n".join(["", f"{'ms':>{width}} round trips", *(row.rstrip() for row in rows)])


def has_blocks(encoding: str) -> bool:
    """Whether an encoding has the characters that pictures are made of."""
    try:
        "█▏▁━╸─".encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True


def _edges(least: int, greatest: int) -> List[int]:
    """The edges of the intervals: from the last one not above ``least`` to the first one above ``greatest``."""
    powers = range(len(str(greatest)) + 1)
    edges = sorted({0, *(step * 10**power // 10 for power in powers for step in _STEPS)})
    first = max(index for index, edge in enumerate(edges) if edge <= least)
    last = min(index for index, edge in enumerate(edges) if edge > greatest)
    return edges[first : last + 1]


def _blocks(share: float) -> str:
    whole, eighths = divmod(math.ceil(share * BAR_WIDTH * 8), 8)  # rounded up, so that a single sample is visible
    return "█" * whole + _EIGHTHS[eighths]


def _signs(share: float) -> str:
    return "#" * math.ceil(share * BAR_WIDTH)
