"""The text log in colors, for a terminal."""

from __future__ import annotations

import logging
from typing import Any

from ...logs.formatters import TextFormatter
from ..color import paint


class ColorFormatter(TextFormatter):
    """The same lines for a terminal: levels, and what became of sessions, in colors."""

    @property
    def needs_records(self) -> bool:
        return True  # the text alone does not say where the reason is

    def _prefix(self, moment: str, level: int, name: str) -> str:
        style = "faint" if level < logging.INFO else "good" if level < logging.WARNING else "doubtful"
        return f"{paint('faint', moment)} {paint(style if level < logging.ERROR else 'bad', name)} "

    def _message(self, record: logging.LogRecord) -> str:
        """Its attributes say where the reason is in the text, in which a peer's data may look like one."""
        message = super()._message(record)
        fields = vars(record)
        if fields.get("event") == "listening":
            before, words, address = message.partition(" listening on ")
            return before + words + paint("strong", address)
        peer: Any = fields.get("peer")
        reason: Any = fields.get("reason")
        for what in ("disconnected: ", "refused: ", "") if type(reason) is str else ():
            before = f"{peer} {what}"
            if message.startswith(before + reason):
                after = message[len(before) + len(reason) :]
                return f"{before}{paint(_STYLES.get(reason, 'doubtful'), reason)}{after}"
        return message


_STYLES = {"exit": "good", "eof": "good", "drain": "good", "reset": "bad", "error": "bad"}
"""Of the reasons; the others are doubtful."""
