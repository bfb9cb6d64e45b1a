"""Which processor the threads of a server keep to.

Under the GIL one thread runs at a time. Threads that spread over processors hand the lock from one to the other at
every system call, which costs more than the call: kept on one processor, 100 connections had 3.4 times, and 10
had 2.7 times the echoes per second. Without the GIL, and in handlers that leave it for long (compression, a database
driver), the other processors are wanted.

A thread's children inherit what it keeps to, so that the accepting thread's choice is its sessions', and no other
thread's of the program. It knows processors and threads, no sessions.
"""

from __future__ import annotations

import contextlib
import operator
import os
import random
import sys
from typing import ContextManager, FrozenSet, Iterable, Iterator, List, Optional, Union

Affinity = Union[None, str, Iterable[int]]
"""None: wherever the system puts them. ``"auto"``: on one processor on a build with the GIL, where the system can.
Or the numbers of processors."""

SUPPORTED = hasattr(os, "sched_setaffinity")


def has_gil() -> bool:
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def usable() -> FrozenSet[int]:
    """The processors that this process may use; empty where the system does not say."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def choose(
    wanted: Affinity, turn: int, *, available: Optional[FrozenSet[int]] = None, gil: Optional[bool] = None
) -> Optional[FrozenSet[int]]:
    """Return the processors to keep to, or None for no restriction.

    ``auto`` takes the available processors in turn, by the number ``turn``, so that several processes spread. Raises
    ``ValueError`` if the processors cannot be had. ``available`` (default: ``usable()``; empty: the system has no
    affinity) and ``gil`` (default: ``has_gil()``) describe the machine.
    """
    if wanted is None:
        return None
    available = usable() if available is None else available
    if isinstance(wanted, str):
        if wanted != "auto":
            raise ValueError(f"cpu_affinity is {wanted!r}; it is 'auto', None, or the numbers of processors")
        if not available or not (has_gil() if gil is None else gil):
            return None
        processors = sorted(available)
        return frozenset([processors[turn % len(processors)]])
    try:
        numbers = frozenset(operator.index(number) for number in wanted)
    except TypeError:
        raise TypeError(f"cpu_affinity is {wanted!r}; it is 'auto', None, or the numbers of processors") from None
    if not available:
        raise ValueError(f"cpu_affinity is {_listed(numbers)}; this system has no way to keep a program on a processor")
    if not numbers or not numbers <= available:
        raise ValueError(f"cpu_affinity is {_listed(numbers)}; this program may use {_listed(available)}")
    return numbers


def share(
    wanted: Affinity, turn: int, *, available: Optional[FrozenSet[int]] = None, gil: Optional[bool] = None
) -> Affinity:
    """Return what to pin one of several processes to: one of the processors that all of them may use, by its number
    ``turn``. The keyword arguments are those of ``choose``."""
    if wanted is None or isinstance(wanted, str):
        return choose(wanted, turn, available=available, gil=gil)
    processors = sorted(wanted)
    return [processors[turn % len(processors)]]


def checked(wanted: Affinity) -> Affinity:
    """Return ``wanted`` as a value that can be read again and again; raise what ``choose`` raises."""
    processors = choose(wanted, 0)
    return wanted if isinstance(wanted, str) else processors


def kept_to_some(wanted: Affinity) -> ContextManager[None]:
    """``kept_to`` what ``choose`` chooses; ``auto`` begins with a processor at random."""
    return kept_to(choose(wanted, random.randrange(1 << 16)))


@contextlib.contextmanager
def kept_to(processors: Optional[FrozenSet[int]]) -> Iterator[None]:
    """Let this thread, and those that it starts, run only there while the block lasts; None changes nothing."""
    if processors is None:
        yield
        return
    try:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, processors)
    except OSError:  # a sandbox forbids it; slower is better than not at all
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # fewer may be allowed than before
            os.sched_setaffinity(0, before)


def _listed(numbers: Iterable[int]) -> str:
    """As ``0,2-3``, shortened if there are many."""
    runs: List[List[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs[:20]]
    return ",".join(shown + ["..."] * (len(runs) > 20)) or "none"
