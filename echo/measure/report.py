"""What the client tells beside what a server sends: lines for people or JSON, on standard output; the rest on stderr.

Every line is one event with its figures; this room chooses which of the two is written. Progress is drawn on
stderr, if that is a terminal, in one line that is always the last. What the figures mean is not known here.
"""

from __future__ import annotations

import json
import os
from typing import Any, Callable, Optional, TextIO


class Report:
    """``write`` takes a whole line. ``as_json``: one object a line in place of text. ``quiet``: the summary alone.
    ``verbose``: details, too. ``stderr``: where details and progress go; None if there is no such place."""

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        as_json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        stderr: Optional[TextIO] = None,
    ) -> None:
        self.quiet = quiet
        self._write = write
        self._stderr = stderr
        self._as_json = as_json
        self._verbose = verbose
        self._drawn = False

    @property
    def shows_text(self) -> bool:
        """Whether what a server sends is to be shown as it is."""
        return not self._as_json and not self.quiet

    def tell(self, event: str, text: str = "", **fields: Any) -> None:
        """Something has happened. ``fields`` have their units in their names; without ``text`` it is for JSON alone."""
        if not self.quiet:
            self._put(event, text, fields)

    def summarize(self, text: str, **fields: Any) -> None:
        """How it all went, in as many lines as it takes; the last event."""
        self._put("summary", text, fields)

    def picture(self, text: str) -> None:
        """What only a person can read."""
        if not self._as_json and text:
            self._write(text)

    def detail(self, text: str) -> None:
        """What only somebody who looks for a cause wants to know."""
        if self._verbose and self._stderr is not None:  # print() would take stdout instead
            self._erase()
            print(text, file=self._stderr, flush=True)

    def progress(self, text: str, **fields: Any) -> None:
        """How it goes so far: an event in JSON, else a line at a terminal that the next one replaces."""
        if self._as_json:
            self.tell("progress", **fields)
        elif not self.quiet and self._stderr is not None and self._stderr.isatty():
            width = _width(self._stderr) - 1  # a full line would wrap, and stay
            print(f"\r\x1b[K{text[:width]}", end="", file=self._stderr, flush=True)
            self._drawn = True

    def _put(self, event: str, text: str, fields: Any) -> None:
        self._erase()
        if self._as_json:
            text = json.dumps({"event": event, **fields})
        if text:
            self._write(text)

    def _erase(self) -> None:
        if self._drawn:
            print("\r\x1b[K", end="", file=self._stderr, flush=True)
            self._drawn = False


def milliseconds(ns: float) -> str:
    """With three digits after the point below one millisecond, fewer above, as ping does it."""
    ms = ns / 1e6
    return f"{ms:.{3 if ms < 0.9995 else 2 if ms < 9.995 else 1 if ms < 99.95 else 0}f}"


def microseconds(ns: float) -> float:
    """For JSON: to the nanosecond."""
    return round(ns / 1e3, 3)


def _width(stream: TextIO) -> int:
    """Columns of the terminal behind the stream; ``shutil`` asks about stdout's."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
