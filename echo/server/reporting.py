"""The log ``echo.server``: one record for an event, with its figures as attributes.

It decides nothing, and knows no format.
"""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger("echo.server")


def log_event(level: int, event: str, text: str, *args: Any, exc_info: Any = None, **fields: Any) -> None:
    """Log one record. Never raises: a log that fails (disk full, cheroot #756) must not take the server with it."""
    try:
        log.log(level, text, *args, exc_info=exc_info, extra={"event": event, **fields})
    except Exception:
        pass


def log_always(event: str, text: str, *args: Any, **fields: Any) -> None:
    """Log an answer that someone has asked for, at INFO, whatever the level of the log is. Never raises."""
    try:
        log.handle(log.makeRecord(log.name, logging.INFO, "", 0, text, args, None, extra={"event": event, **fields}))
    except Exception:
        pass
