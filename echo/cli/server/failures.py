"""Why the server command ends before its time: one line for what the system lacks, a traceback for all else."""

from __future__ import annotations

import errno
import logging
import os
from typing import List, Optional, Tuple

from ...running import SHORTAGES
from ...server.reporting import log_event

SHORTAGE = 75
"""Exit code of a worker for which the system lacked something (``EX_TEMPFAIL``): its parent tries again for ever."""

_THREADS = "close other programs, or raise the limits of threads and memory (ulimit -u, ulimit -v)"


def shortage(exc: Optional[BaseException]) -> Optional[Tuple[str, str]]:
    """Return what the system lacks, and what to do, if that is the reason for an exception or for one that led to it;
    else None."""
    seen: List[int] = []
    while exc is not None and id(exc) not in seen:  # a module may make a loop of them
        seen.append(id(exc))
        if isinstance(exc, MemoryError):
            return "out of memory", SHORTAGES[errno.ENOMEM]
        if isinstance(exc, RuntimeError) and "start new thread" in str(exc):
            return str(exc), _THREADS
        for number in SHORTAGES:
            text = os.strerror(number)
            in_loader = isinstance(exc, ImportError) and text in str(exc)  # of a module in C
            if in_loader or (isinstance(exc, OSError) and exc.errno == number):
                return text, SHORTAGES[number]
        exc = exc.__cause__ or exc.__context__
    return None


def log_failure(exc: Exception) -> bool:
    """Log why this process ends. Return whether the reason is a shortage, which may pass."""
    lack = shortage(exc)
    if lack is None:
        log_event(logging.ERROR, "error", "the server has failed", exc_info=exc)
    else:
        log_event(logging.ERROR, "error", "the server cannot run: %s; %s", *lack)
    return lack is not None
