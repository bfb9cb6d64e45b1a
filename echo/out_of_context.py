"""Calls whose exceptions do not show the one that is being handled at the moment.

The exception of a session may hold what a client sent. While the session is being logged, Python makes it the
``__context__`` of each exception that comes up. If a log handler of the program fails then (its disk is full), the
``logging`` module prints that exception with its contexts, as they are: bytes of the client could control a terminal,
or look like lines of a log.
"""

from __future__ import annotations

import sys
from typing import Any, Callable


class _Beginning(Exception):
    """Where the chain of contexts that is shown begins."""


def call(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return ``function(*args, **options)``. An exception of it is shown without the one that is being handled now."""
    if sys.exc_info()[1] is None:
        return function(*args, **options)
    try:
        raise _Beginning("another exception was being logged") from None
    except _Beginning:
        return function(*args, **options)
