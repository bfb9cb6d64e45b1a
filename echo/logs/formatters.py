"""How a log looks: lines of text for people, or JSON objects for programs.

A formatter turns one record into one line. (In the text log the lines of a traceback follow, each with ``MARK`` in
front, so that none can be taken for a record.) It does not know where the line goes.

Both formatters are strict: whatever a record holds, the line has no character that is not printable, and JSON is valid
JSON. A record may come from any module, with a message that a peer sent, a clock beyond the calendar, and attributes
that JSON does not have.
"""

from __future__ import annotations

import datetime
import json
import logging
import math
import os
import time
from typing import Any, Dict, Iterable, Iterator, List, Tuple

from ..server import forking
from ..text import LONGEST, LONGEST_LINE, escape, format_exception, plural, printable, raise_if_deep, shorten

MARK = "  | "
"""The beginning of each line of a traceback."""

LONGEST_NAME = 200
"""Maximum size of the name of a level, a logger, a thread or an attribute as it is shown, in bytes."""

_LAST_MOMENT = 253402128000.0
"""9999-12-30 in UTC: no time zone is beyond the year 9999 then."""

_STANDARD = {*vars(logging.LogRecord("", 0, "", 0, "", None, None)), "message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """Lines for people: ``2026-11-22 09:14:39.702 INFO    127.0.0.1:52244 connected``.

    ``with_process`` adds the process number, for a log that several processes write; ``with_thread`` the thread's name.
    """

    def __init__(self, with_process: bool = False, with_thread: bool = False) -> None:
        super().__init__()
        self._with_process = with_process
        self._with_thread = with_thread
        self._forget()
        forking.in_child(self._forget)  # the prefix has the number of the process

    def _forget(self) -> None:
        self._last = (-1, -1), ""

    @property
    def needs_records(self) -> bool:
        """Whether ``line`` would not show all that ``format`` shows."""
        return self._with_thread

    def format(self, record: logging.LogRecord) -> str:
        thread = f"{f'[{_name(record.threadName)}]':18} " if self._with_thread else ""
        line = self.line(_in_calendar(record.created), record.levelno, thread + self._message(record))
        return f"\n{MARK}".join([line, *_traceback(record, LONGEST), *_stack(record, LONGEST)])

    def _message(self, record: logging.LogRecord) -> str:
        return printable(record.getMessage(), LONGEST)

    def line(self, created: float, level: int, message: str) -> str:
        """The line of a record that has only these. ``message`` is printable."""
        # Under load many lines have the same millisecond and level, so the prefix is kept from one line to the next.
        # Any thread may format: it takes moment and prefix together.
        moment = (int(created * 1000), level)
        last, prefix = self._last
        if moment != last:
            second, millisecond = divmod(int(_in_calendar(created) * 1000), 1000)
            text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            process = f"[{os.getpid()}] " if self._with_process else ""
            name = f"{_name(logging.getLevelName(level)):7}"
            prefix = self._prefix(f"{text}.{millisecond:03d}", level, name) + process
            self._last = moment, prefix
        return prefix + message

    def _prefix(self, moment: str, level: int, name: str) -> str:
        return f"{moment} {name} "


class JsonFormatter(logging.Formatter):
    """One JSON object per line, for programs.

    Each has ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``event`` and ``message`` (the line for people). The
    other fields are the record's own attributes (``extra``), under their names: ``peer``, ``session``, ``reason``,
    ``messages_in``, ``bytes_in``, ``duration_s``, ... A traceback is ``exception``, a stack ``stack``. ``with_process``
    adds ``process``, the process number; ``with_thread`` adds ``thread``, the thread's name.

    Messages, tracebacks and names are printable; strings of the record's own attributes are kept. A value that JSON
    does not have (bytes, NaN, an object) is shown as text, and an attribute with the name of a field above, except
    ``event``, gets an underscore after its name.
    """

    _last = (-1, "")

    def __init__(self, with_process: bool = False, with_thread: bool = False) -> None:
        super().__init__()
        self._with_process = with_process
        self._with_thread = with_thread
        self._encode = json.JSONEncoder(allow_nan=False).encode

    def format(self, record: logging.LogRecord) -> str:
        # Nearly all records are simple, and that shows in their lines: JSON escapes whatever is not printable. To look
        # at each value first, as _strict() does, costs 4 us of 12.
        if not (record.exc_info or record.exc_text or record.stack_info):
            fields = self._beginning(record, record.levelname, record.name)
            for name, value in vars(record).items():
                if name not in _STANDARD:
                    if type(value) not in _SIMPLE or name in _OURS or type(name) is not str:
                        return self._strict(record)
                    fields[name] = value
            if self._with_process:
                fields["process"] = record.process
            if self._with_thread:
                fields["thread"] = record.threadName or ""
            fields["message"] = message = record.getMessage()
            if len(message) > LONGEST:  # JSON writes up to six bytes for a byte
                return self._strict(record)
            try:
                texts = "".join((record.levelname, record.name, record.threadName or "", message))
                line = self._encode(fields)
            except (TypeError, ValueError):
                return self._strict(record)
            if len(line) <= LONGEST and ("\\" not in line or ("\\u" not in line and texts.isprintable())):
                return line
        return self._strict(record)

    def _strict(self, record: logging.LogRecord) -> str:
        limit = LONGEST
        line = self._limited(record, limit)
        while len(line) > LONGEST_LINE and limit:
            limit = min(limit // 2, limit * LONGEST_LINE // len(line))
            line = self._limited(record, limit)
        return line

    def _limited(self, record: logging.LogRecord, limit: int) -> str:
        """The line, with at most about ``limit`` bytes of the message, and twice that of each other field."""
        fields = self._beginning(record, _name(record.levelname), _name(record.name))
        for name, value in vars(record).items():
            if name in _STANDARD:
                continue
            if not limit and name != "event":  # there are thousands
                name = value = _REST
            name = str(_Plain(LONGEST_NAME).value(name))
            while name in _OURS or (name in fields and name not in ("event", _REST)):
                name += "_"
            fields[name] = _Plain(limit or LONGEST_NAME).value(value)
        if self._with_process:
            fields["process"] = _Plain(limit).value(record.process)
        if self._with_thread:
            fields["thread"] = _name(record.threadName or "")
        fields["message"] = printable(record.getMessage(), limit or LONGEST_NAME)
        for name, lines in (("exception", _traceback(record, limit)), ("stack", _stack(record, limit))):
            if lines:
                fields[name] = "\n".join(lines)
        return self._encode(fields)

    def _beginning(self, record: logging.LogRecord, level: str, logger: str) -> Dict[str, Any]:
        created = _in_calendar(record.created)
        millisecond, text = self._last
        if int(created * 1000) != millisecond:
            millisecond = int(created * 1000)
            moment = datetime.datetime.fromtimestamp(millisecond / 1000, datetime.timezone.utc)
            text = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            self._last = millisecond, text
        return {"time": text, "level": level, "logger": logger, "event": "log"}


_SIMPLE = {str, int, bool, float, type(None)}
_OURS = {"time", "level", "logger", "message", "process", "exception", "stack"}
_REST = "..."


class _Plain:
    """Values as JSON has them. Texts are cut at ``limit`` characters. Containers are copied down to ``DEEPEST`` levels,
    and altogether about twice ``limit`` characters of them are kept: what a record costs is bounded. ``...`` stands for
    the rest."""

    DEEPEST = 8

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = 2 * limit
        self._inside: Tuple[int, ...] = ()

    def value(self, value: Any) -> Any:
        kind = type(value)
        if kind is str:
            return self._text(value)
        if value is None or kind is bool:
            return value
        try:
            return self._unusual(value)
        except Exception as exc:
            raise_if_deep(exc)
            return f"({kind.__name__}: {type(exc).__name__})"

    def _unusual(self, value: Any) -> Any:
        if isinstance(value, float) and math.isfinite(value):
            return float(value)
        if isinstance(value, int):  # to write a long one in decimal takes for ever, and Python refuses to do that
            return int(value) if value.bit_length() <= 1024 else self._text(hex(value))
        if isinstance(value, str):
            return self._text(str.__str__(value))
        if isinstance(value, (bytes, bytearray)):
            return escape(bytes(value), self._limit)
        if not isinstance(value, (dict, list, tuple, set, frozenset)):
            return self._text(str(value))
        if id(value) in self._inside or len(self._inside) == self.DEEPEST:
            return _REST
        outside = self._inside
        self._inside = (*outside, id(value))
        try:
            if isinstance(value, dict):
                some = self._some(value.items(), (_REST, _REST))
                return {str(self._counted(key)): self._counted(each) for key, each in some}
            return [self._counted(each) for each in self._some(value, _REST)]
        finally:
            self._inside = outside

    def _some(self, items: Iterable[Any], rest: Any) -> Iterator[Any]:
        for item in list(items):
            if self._left <= 0:
                yield rest
                break
            yield item

    def _counted(self, value: Any) -> Any:
        shown = self.value(value)
        self._left -= 1 + (1 if isinstance(shown, (dict, list)) else len(str(shown)))
        return shown

    def _text(self, text: str) -> str:
        if not text.isascii():  # lone surrogates: not every reader of JSON accepts them
            text = text.encode("utf-8", "backslashreplace").decode("utf-8")
        hidden = max(0, len(text) - self._limit)
        return f"{text[: self._limit]}... ({plural(hidden, 'more character')})" if hidden else text


def _in_calendar(created: float) -> float:
    """The time, or the nearest one that can be written as year, month and day."""
    return min(_LAST_MOMENT, max(0.0, created))  # in this order NaN becomes 0


def _traceback(record: logging.LogRecord, limit: int) -> List[str]:
    info: Any = record.exc_info
    exc = info[1] if isinstance(info, tuple) and len(info) > 1 else info
    if isinstance(exc, BaseException):  # first: exc_text may be what another handler's formatter has left there
        return format_exception(exc, limit)
    return _lines(record.exc_text, limit)


def _stack(record: logging.LogRecord, limit: int) -> List[str]:
    return _lines(record.stack_info, limit)


def _lines(text: Any, limit: int) -> List[str]:
    if not text:
        return []
    return shorten([printable(line, limit) for line in str(text).rstrip("\n").split("\n")], 2 * limit)


def _name(name: Any) -> str:
    """Of a level, a logger or a thread: a program may set anything as such a name."""
    return printable(str(name), LONGEST_NAME)
