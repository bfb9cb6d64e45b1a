"""Why the server command ends before its time: one line for what the system lacks, a traceback for all else."""

from __future__ import annotations

import errno
import logging
from typing import Optional

from ...running import SHORTAGES
from ...server.reporting import log_event

SHORTAGE = 75
"""Exit code of a worker for which the system lacked something (``EX_TEMPFAIL``): its parent tries again for ever."""

_THREADS = "close other programs, or raise the limit of processes and threads (ulimit -u)"


def advice(exc: Optional[BaseException]) -> Optional[str]:
    """Return what to do if a shortage is the reason for an exception; else None."""
    if isinstance(exc, MemoryError):
        return SHORTAGES[errno.ENOMEM]
    if isinstance(exc, RuntimeError) and "start new thread" in str(exc):
        return _THREADS
    return SHORTAGES.get(exc.errno or 0) if isinstance(exc, OSError) else None


def shortage(exc: BaseException) -> Optional[str]:
    """Return a text with the shortage and advice if a shortage is the reason for an exception; else None."""
    todo = advice(exc)
    what = "out of memory" if isinstance(exc, MemoryError) else getattr(exc, "strerror", None) or str(exc)
    return None if todo is None else f"{what}; {todo}"


def log_failure(exc: Exception) -> bool:
    """Log why this process ends. Return whether the reason is a shortage, which may pass."""
    lack = shortage(exc)
    if lack is None:
        log_event(logging.ERROR, "error", "the server has failed", exc_info=exc)
    else:
        log_event(logging.ERROR, "error", "the server cannot run: %s", lack)
    return lack is not None
