"""The time, and waiting for sockets, as ``ping`` and ``load`` need them.

They take both from here alone, so that a test can run them against a network and a time that it makes up.
"""

from __future__ import annotations

import selectors
import time
from typing import Type


class Clock:
    """The real one: ``now`` in nanoseconds, ``sleep`` in seconds, ``selector`` to wait for sockets with a timeout."""

    now = staticmethod(time.perf_counter_ns)
    sleep = staticmethod(time.sleep)
    selector: Type[selectors.BaseSelector] = selectors.DefaultSelector


CLOCK = Clock()
