"""Measuring: probes that are recognised when they come back, one after the other (``ping``) or as a load (``bench``).

``probes`` and ``distribution`` know no socket; ``lane`` is one connection of probes; ``load`` keeps many busy;
``ping`` and ``bench`` plan and tell; ``figures`` is how durations look.
"""

from .bench import CLOSED_DEPTH, OPEN_DEPTH, Bench
from .distribution import Distribution
from .figures import histogram
from .ping import Ping
from .probes import MIN_SIZE, FixedFraming

__all__ = ["CLOSED_DEPTH", "MIN_SIZE", "OPEN_DEPTH", "Bench", "Distribution", "FixedFraming", "Ping", "histogram"]
