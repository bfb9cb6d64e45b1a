"""The client's own output: results on standard output, as lines for people or as JSON; details and progress on stderr.

Each line is one event with its figures. Progress is one line on stderr, always the last one, if stderr is a terminal.
This module does not know what the figures mean.
"""

from __future__ import annotations

import datetime
import json
import os
from typing import Any, Callable, Dict, List, Optional, Sequence, TextIO, Union

from ..text import is_dumb
from .clock import CLOCK
from .conditions import Condition
from .distribution import SECOND
from .outages import Downtime, Outage

Paint = Callable[[str, str], str]


def _plain(style: str, text: str) -> str:
    return text


class Report:
    """Prints events. ``write`` gets whole lines, without their end.

    ``as_json``: one object per line instead of text, with its ``time``. ``quiet``: only the summary. ``verbose``:
    details too. ``timestamps``: the time in front of the text of each event, as in ping. ``stderr`` gets details and
    progress; None drops them. ``conditions``: what the figures of the summary are checked for; ``failures`` has those
    that hold, as text. ``summary`` has the fields of the summary. ``paint`` and ``stderr_paint`` return a text in a
    style of ``cli.color``.
    ``wall``: the time in seconds since 1970.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        as_json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        timestamps: bool = False,
        stderr: Optional[TextIO] = None,
        conditions: Sequence[Condition] = (),
        paint: Paint = _plain,
        stderr_paint: Paint = _plain,
        wall: Callable[[], float] = CLOCK.wall,
    ) -> None:
        self.quiet = quiet
        self.conditions = conditions
        self.failures: List[str] = []
        self.summary: Dict[str, Any] = {}
        self._write = write
        self._stderr = stderr
        self._as_json = as_json
        self._verbose = verbose
        self._timestamps = timestamps
        self._paint = paint
        self._stderr_paint = stderr_paint
        self._wall = wall
        self._drawn = 0  # columns of the line at the terminal

    @property
    def tolerates_loss(self) -> bool:
        """Whether a condition says how many lost messages are too many. Without one, each is."""
        return any(condition.is_about_loss for condition in self.conditions)

    @property
    def shows_text(self) -> bool:
        """Whether the server's messages are to be shown as they are."""
        return not self._as_json and not self.quiet

    def mark(self, text: str, count: int = 1, style: str = "bad") -> str:
        """Return ``text``, which says that something went wrong, as it looks at a terminal; ``count``: how often."""
        return self._paint(style, text) if count and not self._as_json else text

    def bad(self, count: int, what: str) -> str:
        """Return a count of what went wrong, marked unless it is 0."""
        return self.mark(f"{count:,} {what}", count)

    def time(self, ago: float = 0.0) -> str:
        """The time, or that of some seconds ago, as text in ISO 8601 and UTC, as in the server's log."""
        moment = datetime.datetime.fromtimestamp(self._wall() - ago, datetime.timezone.utc)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def event(self, event: str, text: str = "", **fields: Any) -> None:
        """Report an event. The names of ``fields`` contain their units. An event without ``text`` is only for JSON."""
        if not self.quiet:
            stamp = f"[{self._wall():.6f}] " if self._timestamps and text else ""
            self._put(event, stamp + text, fields)

    def outage(self, where: str, outage: Union[Outage, Downtime], now: int, what: str = "", **fields: Any) -> None:
        """Report an outage. ``now``: the time on the clock of its ``began`` and ``ended``, in nanoseconds. ``what``:
        text about it, beside the messages that were lost."""
        took = (outage.ended - outage.began) / SECOND
        began, ended = (self.time((now - moment) / SECOND) for moment in (outage.began, outage.ended))
        until = f"to {ended}" if outage.over else "on, not over"
        what = f"{what}, " if what else ""
        self.event(
            "outage",
            f"{where}: outage of {took:.3f} s from {began} {until}: {what}{self.bad(outage.lost, 'lost')}",
            began=began,
            ended=ended if outage.over else None,
            outage_s=round(took, 6),
            lost=outage.lost,
            **fields,
        )

    def summarize(self, text: str, **fields: Any) -> None:
        """Report the summary, the last event. Its text may have several lines."""
        if self.conditions:
            failures = (condition.failure(fields) for condition in self.conditions)
            self.failures = fields["failures"] = [failure for failure in failures if failure is not None]
        self.summary = {"event": "summary", **fields}
        self._put("summary", text, fields)

    def picture(self, text: str) -> None:
        """Print text that is only for people."""
        if not self._as_json and text:
            self._write(text)

    def detail(self, text: str) -> None:
        """Print a detail that helps to find the cause of a problem."""
        if self._verbose and self._stderr is not None:  # given None, print() would print to stdout
            self._erase()
            print(text, file=self._stderr, flush=True)

    def progress(self, **fields: Any) -> None:
        """Report progress, an event only for JSON."""
        self.event("progress", **fields)

    @property
    def draws(self) -> bool:
        """Whether ``draw`` draws anything: text at a terminal."""
        return self.shows_text and self._stderr is not None and self._stderr.isatty()

    @property
    def encoding(self) -> str:
        """That of the terminal."""
        return getattr(self._stderr, "encoding", None) or "ascii"

    def draw(self, line: Callable[[int, Paint], str]) -> None:
        """Draw a line at the terminal, which the next one replaces. ``line`` gets the number of columns that there are,
        and a function that paints a text in a style."""
        if self.draws:
            width = _width(self._stderr)
            # A line of full width would wrap, and could not be replaced; so would one with the ^C of a Ctrl-C.
            columns = max(0, width - 3)
            print(f"{self._clear(width)}{line(columns, self._stderr_paint)}", end="", file=self._stderr, flush=True)
            self._drawn = len(line(columns, _plain))

    def _put(self, event: str, text: str, fields: Any) -> None:
        if self._as_json:
            text = json.dumps({"event": event, "time": self.time(), **fields})
        if text:
            self._erase()
            self._write(text)

    def _erase(self) -> None:
        if self._drawn:
            print(self._clear(_width(self._stderr)), end="", file=self._stderr, flush=True)
            self._drawn = 0

    def _clear(self, width: int) -> str:
        """Return characters that clear what was drawn. A dumb terminal has no escape sequences, only spaces."""
        if is_dumb():
            return f"\r{' ' * (width - 1)}\r"
        # A terminal that has become narrower has wrapped the line.
        rows = max(0, self._drawn - 1) // width
        return f"\r\x1b[{rows}A\x1b[J" if rows else "\r\x1b[K"


def milliseconds(ns: float) -> str:
    """Nanoseconds as text in milliseconds, with three decimals below one millisecond and fewer above, as in ping."""
    ms = ns / 1e6
    return f"{ms:.{3 if ms < 0.9995 else 2 if ms < 9.995 else 1 if ms < 99.95 else 0}f}"


def microseconds(ns: float) -> float:
    """Nanoseconds as microseconds for JSON, exact to the nanosecond."""
    return round(ns / 1e3, 3)


def _width(stream: Any) -> int:
    """Columns of the stream's terminal. (``shutil.get_terminal_size`` is about that of stdout.)"""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
