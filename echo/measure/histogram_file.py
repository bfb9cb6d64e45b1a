"""The percentile file of HdrHistogram, ``.hgrm``: the text that its plotters read.

It has a line for each percentile: the duration in milliseconds, the percentile as a share of 1, how many samples are
not greater than the duration, and 1/(1-percentile). The closer to 1, the closer the percentiles are.
"""

from __future__ import annotations

import math
from typing import Iterator, NamedTuple

from .distribution import KEPT_BITS, Distribution

TICKS = 5
"""Percentiles in each half of the distance to 1, as HdrHistogram has by default."""


class Level(NamedTuple):
    """A percentile: the duration in nanoseconds, the share of the samples that it is about, and how many samples are
    not greater."""

    value: int
    share: float
    samples: int


def levels(times: Distribution) -> Iterator[Level]:
    """Yield the percentiles from 0 to 1; nothing without samples."""
    if times.greatest is None:
        return
    percent, samples = 0.0, 0
    for value, count in times.buckets():
        samples += count
        while percent * times.count <= 100 * samples:
            yield Level(value, percent / 100, samples)
            percent += 100 / (TICKS * 2 ** (math.floor(math.log2(100 / (100 - percent))) + 1))
            if samples == times.count:
                break
    yield Level(times.greatest, 1.0, times.count)


def percentile_file(times: Distribution) -> str:
    """Return the text of the file."""
    lines = ["{:>12} {:>14} {:>10} {:>14}".format("Value", "Percentile", "TotalCount", "1/(1-Percentile)"), ""]
    for value, share, samples in levels(times):
        line = f"{value / 1e6:12.6f} {share:2.12f} {samples:10d}"
        lines.append(line if share == 1 else f"{line} {1 / (1 - share):14.2f}")
    greatest = times.greatest or 0
    octaves = max(0, greatest.bit_length() - KEPT_BITS) + 1
    lines += [
        f"#[Mean    = {times.mean / 1e6:12.6f}, StdDeviation   = {times.deviation / 1e6:12.6f}]",
        f"#[Max     = {greatest / 1e6:12.6f}, Total count    = {times.count:12d}]",
        f"#[Buckets = {octaves:12d}, SubBuckets     = {1 << KEPT_BITS:12d}]",
    ]
    return "\n".join([*lines, ""])
