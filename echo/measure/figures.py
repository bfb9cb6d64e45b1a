"""Distributions as people and programs read them: percentiles by name, fields for JSON, a histogram.

It turns figures into text and fields, and gathers none.
"""

from __future__ import annotations

import math
from typing import Dict, List, Optional

from ..exceptions import EchoMismatch
from ..text import escape
from .distribution import Distribution
from .report import microseconds, milliseconds

SHOWN_BYTES = 100
"""How much of a message is shown."""

BAR_WIDTH = 40
_EIGHTHS = " ▏▎▍▌▋▊▉"
_STEPS = (10, 12, 15, 20, 25, 30, 40, 50, 60, 80)
"""Where the intervals of a histogram begin, in each power of ten: about equally far apart as ratios."""


def percentile_name(percent: float) -> str:
    """``p50``, ``p99.9``."""
    return f"p{percent:g}"


def as_fields(name: str, rtt: Distribution, percents: List[float]) -> Dict[str, object]:
    """``{name}_min_us``, ``..._avg_us``, ``..._max_us``, ``..._mdev_us``, ``..._p50_us`` and so on, as far as there are
    samples enough, and ``{name}_samples``."""
    fields: Dict[str, object] = {f"{name}_samples": rtt.count}
    if rtt.least is not None and rtt.greatest is not None:
        figures = {"min": rtt.least, "avg": rtt.mean, "max": rtt.greatest, "mdev": rtt.deviation}
        for percent, value in rtt.percentiles(percents):
            figures[percentile_name(percent).replace(".", "_")] = value
        fields.update({f"{name}_{which}_us": microseconds(value) for which, value in figures.items()})
    return fields


def comparison(sent: Optional[bytes], received: bytes) -> List[str]:
    """What a wrong reply looked like; a damaged one around the first byte that differs from what was sent."""
    start = 0 if sent is None else max(0, EchoMismatch(sent, received).offset - SHOWN_BYTES // 2)
    rows = [("received", received)] if sent is None else [("sent", sent), ("received", received)]
    return [f"  {name:8} {'... ' if start else ''}{escape(data[start:], SHOWN_BYTES)}" for name, data in rows]


def histogram(samples: Distribution, encoding: str) -> str:
    """A row for each interval of durations between the least and the greatest: its bounds, the samples in it, a bar.

    The intervals grow with the durations, so that one picture holds a fast path and a slow one. Bars are block
    characters where ``encoding`` has them, else number signs. Empty without samples.
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
    try:
        "█▏".encode(encoding)
        draw = _blocks
    except (UnicodeError, LookupError):
        draw = _signs
    rows = (f"{bound:>{width}} {count:>{digits},} {draw(count / max(counts))}" for bound, count in zip(bounds, counts))
    return "\n".join(["", f"{'ms':>{width}} round trips", *(row.rstrip() for row in rows)])


def _edges(least: int, greatest: int) -> List[int]:
    """From the last edge that is not above the least sample to the first that is above the greatest."""
    powers = range(len(str(greatest)) + 1)
    edges = sorted({0, *(step * 10**power // 10 for power in powers for step in _STEPS)})
    first = max(index for index, edge in enumerate(edges) if edge <= least)
    last = min(index for index, edge in enumerate(edges) if edge > greatest)
    return edges[first : last + 1]


def _blocks(share: float) -> str:
    whole, eighths = divmod(math.ceil(share * BAR_WIDTH * 8), 8)  # up, so that a single one is still seen
    return "█" * whole + _EIGHTHS[eighths]


def _signs(share: float) -> str:
    return "#" * math.ceil(share * BAR_WIDTH)
