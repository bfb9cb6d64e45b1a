"""Charts as SVG: scales with round ticks, axes, lines and bars. Colours come from the page's style sheet."""

from __future__ import annotations

import html
import math
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

WIDTH, HEIGHT, LOW = 860, 300, 200
LEFT, RIGHT, TOP, BOTTOM = 84, 18, 14, 48
"""Width of a chart, its height or that of a low one, and its margins, in units of the drawing."""

Point = Tuple[float, Optional[float]]
"""Where a line goes; None: it is interrupted there."""


class Scale:
    """A linear scale from ``low`` to ``high`` or to the next round number. ``ticks``: the values that have a label."""

    def __init__(self, low: float, high: float, *, parts: int = 6, round_up: bool = True) -> None:
        step = _round_step((high - low or 1.0) / parts)
        self.low = low
        self.high = max(math.ceil(high / step - 1e-9) * step, low + step) if round_up else max(high, low + step / 10)
        first, last = math.ceil(low / step - 1e-9), math.floor(self.high / step + 1e-9)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        self.ticks = [(index * step, f"{index * step:,.{decimals}f}") for index in range(first, last + 1)]

    def place(self, value: float) -> float:
        """Where a value is, from 0 at the low end to 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


class LogScale(Scale):
    """A logarithmic scale from the last round number not above ``low`` to the first not below ``high``.

    ``labels``: if there would be more of them, only the powers of ten have one. ``text`` makes a label of a value.
    """

    def __init__(self, low: float, high: float, labels: int, text: Callable[[float], str]) -> None:
        values = [(digit * 10.0**power, digit) for power in range(-3, 32) for digit in (1, 2, 5)]
        first = max((place for place, (value, _) in enumerate(values) if value <= low * (1 + 1e-9)), default=0)
        last = next((place for place, (value, _) in enumerate(values) if value >= high * (1 - 1e-9)), len(values) - 1)
        last = max(last, first + 1)
        self.low, self.high = values[first][0], values[last][0]
        few = last - first < labels
        self.ticks = [(at, text(at) if few or digit == 1 else "") for at, digit in values[first : last + 1]]

    def place(self, value: float) -> float:
        return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)


class PercentileScale(LogScale):
    """The scale of HdrHistogram: 1/(1 - percentile), so that each further nine is as wide as the one before."""

    def __init__(self, samples: int) -> None:
        self.low, self.high = 1.0, float(max(samples, 100))
        nines = range(1, math.floor(math.log10(self.high) + 1e-9) + 1)
        self.ticks = [(1.0, "0 %"), (2.0, "50 %")]
        self.ticks += [(10.0**count, f"{100 - 10.0 ** (2 - count):.{max(0, count - 2)}f} %") for count in nines]


class Line(NamedTuple):
    """A line through points, drawn as the classes of the style sheet say. ``is_step``: the points are corners."""

    points: Sequence[Point]
    classes: str


class Bars(NamedTuple):
    """Bars from the first value to the second, each with its height and a text that appears when pointed at."""

    bars: Sequence[Tuple[float, float, float, str]]
    classes: str


def steps(begins: Sequence[float], ends: Sequence[float], values: Sequence[Optional[float]]) -> List[Point]:
    """The corners of a line that is level from each begin to its end, and interrupted where the next does not begin."""
    points: List[Point] = []
    for begin, end, value in zip(begins, ends, values):
        if points and begin - points[-1][0] > 1e-6:
            points.append((begin, None))
        points += [(begin, value), (end, value)]
    return points


def chart(
    title: str, x: Scale, y: Scale, x_title: str, y_title: str, marks: Sequence[NamedTuple], height: int = HEIGHT
) -> str:
    """Return the SVG element."""
    area = _Area(x, y, height)
    left, right, top, bottom = area.across(x.low), area.across(x.high), area.up(y.high), area.up(y.low)
    parts = [
        f'<svg class="{"low" if height == LOW else "chart"}" viewBox="0 0 {WIDTH} {height}"'
        f' role="img" aria-label="{html.escape(title)}">',
        f'<rect class="frame" x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}"/>',
    ]
    for value, label in y.ticks:
        at = area.up(value)
        parts.append(f'<path class="grid" d="M{left:g} {at:.1f}H{right:g}"/>')
        parts.append(_label(label, "tick", left - 7, at + 4, "end"))
    free_from = -math.inf
    for value, label in x.ticks:
        at = area.across(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {top:g}V{bottom:g}"/>')
        half = 3.6 * len(label)  # about half of its width
        if label and at - half >= free_from:
            free_from = at + half + 6
            parts.append(_label(label, "tick", min(at, WIDTH - half), bottom + 17))
    parts.append(_label(x_title, "axis", (left + right) / 2, height - 9))
    parts.append(f'<g transform="translate(14 {(top + bottom) / 2:g}) rotate(-90)">{_label(y_title, "axis", 0, 0)}</g>')
    for mark in marks:
        if isinstance(mark, Bars):
            parts += [area.bar(bar, mark.classes) for bar in mark.bars]
        elif isinstance(mark, Line):
            parts.append(f'<path class="{mark.classes}" d="{area.path(mark.points)}"/>')
    return "\n".join([*parts, "</svg>"])


def _label(text: str, classes: str, x: float, y: float, anchor: str = "middle") -> str:
    return f'<text class="{classes}" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{html.escape(text)}</text>'


class _Area(NamedTuple):
    """Where values are in a drawing of this height."""

    x: Scale
    y: Scale
    height: int

    def across(self, value: float) -> float:
        return LEFT + self.x.place(value) * (WIDTH - LEFT - RIGHT)

    def up(self, value: float) -> float:
        return self.height - BOTTOM - self.y.place(value) * (self.height - TOP - BOTTOM)

    def path(self, points: Sequence[Point]) -> str:
        """The line as SVG writes it. A point alone is drawn as a dot: the style sheet gives lines round ends."""
        words: List[str] = []
        command, alone = "M", False
        for across, up in points:
            if up is None:
                words += ["h0"] * alone
                command, alone = "M", False
                continue
            words.append(f"{command}{self.across(across):.1f} {self.up(up):.1f}")
            command, alone = "L", command == "M"
        return "".join(words + ["h0"] * alone)

    def bar(self, bar: Tuple[float, float, float, str], classes: str) -> str:
        begin, end, value, text = bar
        left, right, bottom = self.across(begin), self.across(end), self.up(self.y.low)
        height = max(bottom - self.up(value), 1.5)  # a single sample is visible
        width = max(right - left - 0.6, 0.6)
        return (
            f'<rect class="{classes}" x="{left:.1f}" y="{bottom - height:.1f}" width="{width:.1f}"'
            f' height="{height:.1f}"><title>{html.escape(text)}</title></rect>'
        )


def _round_step(step: float) -> float:
    """The first of 1, 2, 5, 10, 20 and so on that is not below ``step``."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1.0, 2.0, 5.0, 10.0) if digit * power >= step * (1 - 1e-9))
