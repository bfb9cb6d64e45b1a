"""How the command's log looks: lines of text for people, or JSON objects for programs.

A formatter turns one record into one line (and a traceback, if there is one). It does not know where the line goes.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import time
from typing import Any, Dict

_STANDARD = {*vars(logging.LogRecord("", 0, "", 0, "", None, None)), "message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """Lines for people: ``2026-11-22 09:14:39.702 INFO    listening on 127.0.0.1:65432``.

    ``with_process`` adds the process number, for a log that several processes write.
    """

    _moment = (-1, -1)
    _prefix = ""

    def __init__(self, with_process: bool = False) -> None:
        super().__init__()
        self._process = f"[{os.getpid()}] " if with_process else ""

    def format(self, record: logging.LogRecord) -> str:
        line = self.line(record.created, record.levelno, record.getMessage())
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        return f"{line}\n{record.exc_text}" if record.exc_text else line

    def line(self, created: float, level: int, message: str) -> str:
        """The line of a record that has only these."""
        # Under load many lines have the same millisecond and level, so the prefix is kept from one line to the next.
        # That needs no lock: only one thread formats, the one that writes.
        moment = (int(created * 1000), level)
        if moment != self._moment:
            self._moment = moment
            second, millisecond = divmod(moment[0], 1000)
            text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self._prefix = f"{text}.{millisecond:03d} {logging.getLevelName(level):7} {self._process}"
        return self._prefix + message


class JsonFormatter(logging.Formatter):
    """One JSON object per line, for programs.

    Each has ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``event`` and ``message`` (the line for people). The
    other fields are the record's own attributes (``extra``), under their names: ``peer``, ``session``, ``reason``,
    ``messages_in``, ``bytes_in``, ``duration_s``, ... A traceback is ``exception``. ``with_process`` adds
    ``process``, the process number.
    """

    def __init__(self, with_process: bool = False) -> None:
        super().__init__()
        self._with_process = with_process

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        fields: Dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "event": "log",
        }
        fields.update((name, value) for name, value in vars(record).items() if name not in _STANDARD)
        if self._with_process:
            fields["process"] = record.process
        fields["message"] = record.getMessage()
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            fields["exception"] = record.exc_text
        return json.dumps(fields, default=str)
