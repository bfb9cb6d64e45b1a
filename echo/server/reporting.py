"""What the server says of itself: records of the log ``echo.server``, with their figures as attributes.

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
    """The same, at INFO, for what somebody has asked for: it is told whatever the log's level is."""
    try:
        log.handle(log.makeRecord(log.name, logging.INFO, "", 0, text, args, None, extra={"event": event, **fields}))
    except Exception:
        pass
