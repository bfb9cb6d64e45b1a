"""The time, and waiting for sockets, as ``ping`` and ``load`` use them.

They take both only from here, so that a test can replace the clock and the network by simulated ones.
"""

from __future__ import annotations

import selectors
import time
from typing import Type

from .dialer import Dialer

STOPPED = 100_000_000
"""Nanoseconds by which a wait may be too long. If it is longer, this process was stopped in the meantime (Ctrl-Z, a
laptop that was closed), and the replies that have come since may have waited for it. The same holds if it takes longer
to write, to a terminal or a pipe that nobody reads. For as long afterwards no probe is given up, so that those replies
are read first."""


class Clock:
    """The system's clock: ``now`` in nanoseconds, ``wall`` in seconds since 1970, ``cpu`` in nanoseconds of this
    process, ``sleep`` in seconds, ``selector`` to wait for sockets, ``dialer`` to connect meanwhile."""

    now = staticmethod(time.perf_counter_ns)
    wall = staticmethod(time.time)
    cpu = staticmethod(time.process_time_ns)
    sleep = staticmethod(time.sleep)
    selector: Type[selectors.BaseSelector] = selectors.DefaultSelector
    dialer = Dialer


CLOCK = Clock()
