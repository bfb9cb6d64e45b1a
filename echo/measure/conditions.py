"""Conditions on the figures of a summary, such as ``p99 > 5ms``: a verdict for scripts.

They are compared with the fields of the summary in JSON.
"""

from __future__ import annotations

import operator
import re
from typing import Any, Dict, Mapping, NamedTuple, Optional

_CONDITION = re.compile(r"\s*([a-z_]+[\d.]*)\s*(<=|>=|<|>)\s*(\d+(?:\.\d+)?)\s*(us|ms|s|%|/s|)\s*", re.ASCII)
_COMPARED = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_MICROSECONDS = {"us": 1.0, "ms": 1e3, "s": 1e6}
_FIELDS = {
    "loss": ("loss_percent", "%"),
    "rate": ("messages_per_s", "/s"),
    **{name: (name, "") for name in ("lost", "corrupted", "came", "received", "never_sent", "outages")},
    "outages_s": ("outages_s", "s"),
}
_MODES = {"rate": "bench", "came": "bench", "never_sent": "bench", "received": "ping"}
_DURATION = re.compile(r"min|avg|max|mdev|p\d{1,2}(\.\d+)?")


class Condition(NamedTuple):
    """A condition under which a measurement counts as failed.

    ``field``: the field of the summary that it is about. ``percentile``: which percentile that is, if it is one.
    """

    text: str
    name: str
    field: str
    comparison: str
    limit: float
    percentile: Optional[float]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition. Raises ``ValueError``."""
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise ValueError(
                f"invalid condition {text!r}: expected p99 > 5ms, loss > 0.1% or rate < 9000/s, for example"
            )
        name, comparison, number, unit = match.groups()
        percentile = None
        if _DURATION.fullmatch(name):
            if unit not in _MICROSECONDS:
                raise ValueError(f"invalid condition {text!r}: {name} needs a unit, us, ms or s")
            percentile = float(name[1:]) if name[1:2].isdigit() else None
            field, limit = f"rtt_{name.replace('.', '_')}_us", float(number) * _MICROSECONDS[unit]
        elif name in _FIELDS:
            field, expected = _FIELDS[name]
            if unit not in ("", expected):
                raise ValueError(f"invalid condition {text!r}: {name} is not in {unit}")
            limit = float(number)
        else:
            names = ", ".join(["min", "avg", "max", "mdev", "p50 and other percentiles", *_FIELDS])
            raise ValueError(f"invalid condition {text!r}: no figure is named {name}; there are {names}")
        return cls(" ".join(text.split()), name, field, comparison, limit, percentile)

    def failure(self, fields: Mapping[str, Any]) -> Optional[str]:
        """Return what is wrong, as text, if the condition holds for these fields or cannot be checked; else None."""
        value = fields.get(self.field)
        if value is None:
            return f"{self.text}: {self.name} is unknown, since there are too few samples"
        if not _COMPARED[self.comparison](value, self.limit):
            return None
        return f"{self.text}: {self.name} is {self._shown(value)}"

    def _shown(self, value: float) -> str:
        if self.field.endswith("_us"):
            return f"{value / 1e3:g} ms"
        units: Dict[str, str] = dict(_FIELDS.values())
        return f"{value:g}{units[self.field]}"

    @property
    def mode(self) -> Optional[str]:
        """The mode, ``ping`` or ``bench``, whose summary alone has this figure; None if both have it."""
        return _MODES.get(self.name)

    @property
    def is_about_loss(self) -> bool:
        """Whether it says how many lost messages are too many."""
        return self.name in ("loss", "lost")
