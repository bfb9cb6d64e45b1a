"""``--report``: a measurement as one page of HTML, and others beside it.

The page needs no network, no script and no font. Its charts are drawn here. Text from outside, such as the name of a
host, is escaped.
"""

from __future__ import annotations

import html
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ..text import printable
from .chart import HEIGHT, LOW, Bars, Line, LogScale, PercentileScale, Scale, chart, steps
from .differences import IN_SHORT, Figure, doubts, figures, names
from .distribution import Distribution
from .document import Run, is_number, moment
from .histogram_file import levels
from .series import Columns

COLOURS = 6
"""Maximum number of runs on a page: each has a colour of its own, also for colour-blind readers."""

BARS = 60
"""Number of intervals of the histogram, about."""

_UNITS = [(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns")]


class Unit(NamedTuple):
    """A unit of time: its length in nanoseconds, and its name."""

    length: float
    name: str


def page(run: Run, compared: Sequence[Run] = (), parts: Sequence[Run] = ()) -> str:
    """Return the page about a run, with those that it is compared with and those that were merged into it."""
    first = run
    began = moment(str(first.fields["began"]))
    shifted = [_later(part, moment(str(part.fields["began"])) - began) for part in parts]
    runs = [first, *compared, *shifted]
    runs = [each._replace(name=name) for each, name in zip(runs, names(runs))]
    title = f"{first.mode.capitalize()} of {_text(first.fields.get('address'))}"
    rows = figures(runs)
    short = _figures(runs, [row for row in rows if row.name in IN_SHORT], len(compared))
    whose = f"{html.escape(runs[0].name)}: " if len(runs) > 1 else ""
    body = [
        f"<header><h1>{html.escape(title)}</h1><p>{whose}{_subtitle(first)}</p></header>",
        *(f'<p class="warning">{html.escape(warning)}</p>' for warning in [*doubts(runs), *_warnings(first)]),
        _tiles(first),
        *([_section("Comparison", short)] if compared else []),
        *_sections(runs),
        f'<div class="{"pair" if len(runs) == 1 else ""}">',
        _section("Figures", _figures(runs, rows, len(compared))),
        _section("Parameters and environment", _parameters(runs)),
        "</div>",
        f"<footer>Made by echo {html.escape(_text(_environment(first).get('echo')))}. Times are in UTC.</footer>",
    ]
    return _FRAME.format(title=html.escape(title), style=_STYLE, body="\n".join(body))


def _sections(runs: Sequence[Run]) -> Iterator[str]:
    """The charts."""
    colours = [(f"line c{place}", run.name) for place, run in enumerate(runs)] if len(runs) > 1 else []
    times = [time for run in runs for time in run.series["to_s"] if time is not None]
    if times:
        across = Scale(0.0, max(times), parts=10, round_up=False)
        if any(run.mode == "bench" for run in runs):
            yield _section("Throughput over time", _legend(colours) + _throughput(runs, across))
        yield _section("Round trips over time", _latency(runs, across, colours))
        if any(value for run in runs for name in ("lost", "wrong") for value in run.series[name]):
            yield _section("Lost and wrong over time", _faults(runs, across, colours))
    if any(run.rtt.count for run in runs):
        yield _section("Round trips by percentile", _percentiles(runs, colours))
        yield _section("Histogram of round trips", _legend(colours) + _histogram(runs))


def _throughput(runs: Sequence[Run], across: Scale) -> str:
    rates = [rate for run in runs for rate in run.series["messages_per_s"] if rate is not None]
    lines = []
    for place, run in enumerate(runs):
        if run.mode == "bench":
            lines.append(Line(_over_time(run, "messages_per_s", 1.0), f"line c{place}"))
    up = Scale(0.0, max(rates, default=1.0) or 1.0)
    return chart("Throughput over time", across, up, "time (s)", "messages per second", _behind(lines))


def _latency(runs: Sequence[Run], across: Scale, colours: List[Tuple[str, str]]) -> str:
    """One chart of a single run, or a chart for each figure: lines of several runs would hide each other."""
    shown = [
        (name, title)
        for name, title in (("p50_us", "p50"), ("p99_us", "p99"), ("max_us", "max"))
        if any(_is_drawn(run, name) for run in runs)
    ]
    if not shown:
        return "<p>No message came back in the measured time.</p>"
    if not colours:
        run, styles = runs[0], {"p50": "line c0", "p99": "line dashed c1", "max": "line dotted c2"}
        lines = [Line(_over_time(run, name, 1000.0), styles[title]) for name, title in shown]
        legend = _legend([(styles[title], title) for _, title in shown])
        return legend + _chart_of_durations("Round trips over time", across, "round trip", lines)
    charts = []
    for name, title in shown:
        lines = [Line(_over_time(run, name, 1000.0), f"line c{place}") for place, run in enumerate(runs)]
        charts.append(_chart_of_durations(f"{title} over time", across, title, lines, LOW))
    return _legend(colours) + "\n".join(charts)


def _is_drawn(run: Run, name: str) -> bool:
    """Whether most points of a series that have a reply have this figure: a percentile needs samples enough."""
    known = sum(bool(value) for value in run.series[name])
    return known > 0 and 2 * known >= sum(bool(value) for value in run.series["max_us"])


def _chart_of_durations(title: str, across: Scale, y_title: str, lines: Sequence[Line], height: int = HEIGHT) -> str:
    values = [value for line in lines for _, value in line.points if value]
    up = _durations(min(values), max(values), 5 if height == LOW else 10)
    return chart(title, across, up, "time (s)", y_title, _behind(lines), height)


def _faults(runs: Sequence[Run], across: Scale, colours: List[Tuple[str, str]]) -> str:
    kinds = {"lost": "", "wrong": " dashed"}
    most = max(value or 0 for run in runs for name in kinds for value in run.series[name])
    lines, legend = [], list(colours)
    for kind, (name, style) in enumerate(kinds.items()):
        legend.append((f"line{style} {'any' if colours else f'c{kind + 1}'}", name))
        for place, run in enumerate(runs):
            lines.append(Line(_over_time(run, name, 1.0), f"line{style} c{place if colours else kind + 1}"))
    title = "Lost and wrong over time"
    return _legend(legend) + chart(title, across, Scale(0.0, most), "time (s)", "messages", _behind(lines), LOW)


def _percentiles(runs: Sequence[Run], colours: List[Tuple[str, str]]) -> str:
    curves: List[Tuple[str, str, Distribution]] = []
    for place, run in enumerate(runs):
        curves.append((f"line c{place}", _round_trip(run), run.rtt))
        if run.raw is not None:
            curves.append((f"line dashed c{place if colours else 1}", "raw, from the send", run.raw))
    unit = _unit(max(times.greatest or 1 for _, _, times in curves))
    lines = []
    for classes, _, times in curves:
        points = [(1 / max(1 - share, 1 / times.count), value) for value, share, _ in levels(times)]
        lines.append(Line([(across, value / unit.length) for across, value in points], classes))
    legend = list(colours)
    if any(run.raw is not None for run in runs):
        legend += (
            [(classes, title) for classes, title, _ in curves[:2]]
            if not colours
            else [
                ("line any", _round_trip(runs[0])),
                ("line dashed any", "raw, from the send"),
            ]
        )
    x = PercentileScale(max(times.count for _, _, times in curves))
    y = Scale(0.0, max(times.greatest or 1 for _, _, times in curves) / unit.length)
    title = "Round trips by percentile"
    return _legend(legend) + chart(title, x, y, "percentile", f"round trip ({unit.name})", _behind(lines))


def _round_trip(run: Run) -> str:
    return "round trip" if run.fields.get("rate_per_s") is None else "corrected, from when it was due"


def _histogram(runs: Sequence[Run]) -> str:
    found = [run.rtt for run in runs if run.rtt.count]
    least, greatest = min(times.least or 1 for times in found), max(times.greatest or 1 for times in found)
    across = _durations(max(least, 1), max(greatest, 1))
    ratio = (across.high / across.low) ** (1 / BARS)
    edges = sorted({round(across.low * ratio**place) for place in range(BARS + 1)})
    edges[-1] = max(edges[-1], greatest + 1)
    shares = [[100 * count / max(run.rtt.count, 1) for count in run.rtt.between(edges)] for run in runs]
    up = Scale(0.0, max(share for each in shares for share in each))
    marks: List[NamedTuple] = []
    for place, (run, each) in enumerate(zip(runs, shares)):
        rows = zip(edges, edges[1:], each, run.rtt.between(edges))
        bars = [
            (
                float(low),
                min(float(high), across.high),
                share,
                f"{_duration(low)} to {_duration(high)}: {count:,} ({share:.3g} %)",
            )
            for low, high, share, count in rows
            if count
        ]
        if len(runs) == 1:
            marks.append(Bars(bars, f"bar c{place}"))
        else:
            marks.append(
                Line(
                    steps([float(edge) for edge in edges], [min(float(edge), across.high) for edge in edges[1:]], each),
                    f"line c{place}",
                )
            )
    return chart("Histogram of round trips", across, up, "round trip", "% of all round trips", _behind(marks))


def _behind(marks: Sequence[NamedTuple]) -> List[NamedTuple]:
    """The first run is drawn last, over the others."""
    return list(reversed(marks))


def _over_time(run: Run, name: str, factor: float) -> List[Tuple[float, Optional[float]]]:
    """A line: with a level part for each interval of a load, through the middle of the points of a ping."""
    series = run.series
    begins, ends = ([time or 0.0 for time in series[which]] for which in ("from_s", "to_s"))
    values = [None if value is None else value * factor for value in series[name]]
    if run.mode == "ping":
        return [((begin + end) / 2, value) for begin, end, value in zip(begins, ends, values)]
    return steps(begins, ends, values)


def _later(run: Run, seconds: float) -> Run:
    """The same run with a series that begins so much later."""
    moved: Columns = {name: [(time or 0.0) + seconds for time in run.series[name]] for name in ("from_s", "to_s")}
    return run._replace(series={**run.series, **moved})


def _durations(least: float, greatest: float, labels: int = 10) -> LogScale:
    """A logarithmic scale of nanoseconds, whose labels have units."""
    return LogScale(least, greatest, labels, _duration)


def _unit(ns: float) -> Unit:
    """The greatest unit of which this is at least one."""
    return next((Unit(length, name) for length, name in _UNITS if ns >= length), Unit(1.0, "ns"))


def _duration(ns: float) -> str:
    unit = _unit(ns)
    return f"{ns / unit.length:.4g} {unit.name}"


def _key(classes: str, name: str) -> str:
    """A name with the line that it stands for."""
    return f'<svg class="key" viewBox="0 0 28 10"><path class="{classes}" d="M1 5H27"/></svg>{html.escape(name)}'


def _legend(entries: Sequence[Tuple[str, str]]) -> str:
    if not entries:
        return ""
    items = [f"<span>{_key(classes, name)}</span>" for classes, name in entries]
    return f'<p class="legend">{"".join(items)}</p>\n'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>\n{content}\n</section>"


def _subtitle(run: Run) -> str:
    """HTML."""
    parts = []
    for field, text in (
        ("connections", "{:,} connections"),
        ("size_bytes", "{:,}-byte messages"),
        ("rate_per_s", "{:,} messages/s asked for"),
        ("depth", "at most {:,} in flight in each"),
        ("duration_s", "{:.3g} s"),
    ):
        value = run.number(field)
        if value is not None:
            parts.append("1 connection" if (field, value) == ("connections", 1) else text.format(value))
    began = _text(run.fields.get("began"))[:19].replace("T", " ")
    return f"{html.escape(', '.join(parts))}, <time>{html.escape(began)} UTC</time>"


def _warnings(run: Run) -> Iterator[str]:
    failures = run.fields.get("failures")
    for failure in failures if isinstance(failures, list) else []:
        yield f"Failed: {_text(failure)}"


def _tiles(run: Run) -> str:
    shown = {figure.name: figure.cell(0) for figure in figures([run])}
    tiles = []
    for name in ("messages/s", "received", "p50, ms", "p99, ms", "max, ms", "lost", "corrupted"):
        if name in shown:
            label, _, unit = name.partition(", ")
            unit = f" <small>{unit}</small>" if unit and shown[name] != "-" else ""
            tiles.append(f"<div><b>{html.escape(shown[name])}{unit}</b><span>{html.escape(label)}</span></div>")
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _figures(runs: Sequence[Run], shown: Sequence[Figure], compared: int) -> str:
    rows = []
    for figure in shown:
        cells = []
        for place in range(len(runs)):
            cells.append(html.escape(figure.cell(place)))
            if 1 <= place <= compared:
                cells.append(f"<small>{html.escape(figure.change(place))}</small>")
        rows.append((figure.name, cells))
    note = "<p>A percentage is the change from that earlier run to the run in the first column.</p>" if compared else ""
    return _table(runs, rows, "numbers", compared) + note


_PARAMETERS = {
    "mode": "mode",
    "address": "address",
    "began": "began",
    "duration_s": "duration, s",
    "warm_up_s": "warm-up, s",
    "connections": "connections",
    "size_bytes": "message size, bytes",
    "depth": "in flight in each",
    "rate_per_s": "rate asked for, /s",
    "new_connection": "a connection for each message",
    "reconnect": "lost connections opened again",
    "client_busy_percent": "client busy, %",
    "client_late": "messages that the client sent late",
    "echo": "version of echo",
    "python": "Python",
    "system": "system",
    "processors": "processors",
}


def _parameters(runs: Sequence[Run]) -> str:
    each = [{**_environment(run), **run.fields} for run in runs]
    rows = [
        (title, [html.escape(_text(fields.get(name))) for fields in each])
        for name, title in _PARAMETERS.items()
        if any(fields.get(name) is not None for fields in each)
    ]
    return _table(runs, rows, "words")


def _environment(run: Run) -> Dict[str, Any]:
    found: Any = run.fields.get("environment")
    return found if isinstance(found, dict) else {}


def _table(runs: Sequence[Run], rows: Sequence[Tuple[str, Sequence[str]]], classes: str, wide: int = 0) -> str:
    """Cells are HTML. ``wide``: this many runs, after the first, have two cells."""
    lines = []
    if len(runs) > 1:
        heads = [
            f"<th>{_key(f'line c{place}', run.name)}</th>" + "<th><small>change</small></th>" * (1 <= place <= wide)
            for place, run in enumerate(runs)
        ]
        lines.append(f"<thead><tr><th></th>{''.join(heads)}</tr></thead>")
    for name, cells in rows:
        lines.append(f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<div class="wide"><table class="{classes}">\n' + "\n".join(lines) + "\n</table></div>"


def _text(value: Any) -> str:
    """A value of a document as text for a reader."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_number(value):
        return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
    return printable(str(value), 1000)


_FRAME = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """\
:root {
  --back: #ffffff; --panel: #ffffff; --text: #1b1f24; --soft: #5b6570; --rule: #d5dae0; --grid: #e9ecef;
  --warn-back: #fff3e0; --warn-text: #7a3b00;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b0528b; --c4: #8a6d00; --c5: #3f4a54;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --back: #14171a; --panel: #1b1f23; --text: #e6e9ec; --soft: #9aa5b0; --rule: #343b42; --grid: #2a3036;
    --warn-back: #3a2a12; --warn-text: #ffcf8f;
    --c0: #56b4e9; --c1: #f0883e; --c2: #2fc79a; --c3: #e59bc8; --c4: #e3c744; --c5: #c3ccd4;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 28px 20px; max-width: 960px; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif;
}
h1 { font-size: 25px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 8px; }
header p, footer { color: var(--soft); margin: 4px 0 20px; }
footer { font-size: 13px; margin: 24px 0 0; }
section, .tiles div { border: 1px solid var(--rule); border-radius: 8px; background: var(--panel); }
section { padding: 16px 18px 12px; margin: 16px 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 0 16px; }
section > p { color: var(--soft); font-size: 13px; margin: 8px 0 0; }
time { white-space: nowrap; }
small { color: var(--soft); font-size: 12px; font-weight: 400; }
.warning { background: var(--warn-back); color: var(--warn-text); border-radius: 8px; padding: 10px 14px; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; }
.tiles div { flex: 1 1 110px; padding: 10px 14px; }
.tiles b { display: block; font-size: 21px; font-weight: 600; white-space: nowrap; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: 13px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; color: var(--text); font-size: 13px; margin: 0 0 6px; }
.legend span { display: inline-flex; align-items: center; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg.key { display: inline-block; width: 28px; height: 10px; margin-right: 6px; flex: none; }
svg text { font-size: 12px; fill: var(--soft); }
svg text.axis { fill: var(--text); }
.frame { fill: none; stroke: var(--rule); }
.grid { fill: none; stroke: var(--grid); }
.line { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.dashed { stroke-dasharray: 7 4; stroke-width: 1.5; stroke-linecap: butt; }
.dotted { stroke-dasharray: 1 4; stroke-width: 1.8; }
.bar { fill: currentColor; }
.bar:hover { opacity: 0.7; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); } .any { color: var(--soft); }
.wide { overflow-x: auto; }
section > svg + svg { margin-top: 4px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--grid); vertical-align: top; }
tr:last-child th, tr:last-child td { border-bottom: 0; }
th { text-align: left; font-weight: 400; color: var(--soft); white-space: nowrap; }
thead th { color: var(--text); font-weight: 600; }
.numbers td, .numbers thead th { text-align: right; white-space: nowrap; }
.numbers td:has(small), .numbers thead th:has(small) { padding-left: 0; text-align: left; }
.words td { overflow-wrap: anywhere; }
@media print {
  body { padding: 0; max-width: none; font-size: 10pt; }
  section, .tiles div { break-inside: avoid; }
  section { margin: 10px 0; }
  .chart { max-height: 52mm; } .low { max-height: 35mm; }
  svg text { font-size: 14px; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
