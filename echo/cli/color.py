"""Colors at a terminal: where there are any, and what they are.

Programs paint their own words, one by one. A peer's data has been escaped before, and is never painted. So the only
escape sequences in an output are those of ``paint``.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Mapping

from ..text import is_dumb
from .arguments import Row

Paint = Callable[[str, str], str]
"""Gets a style and a text, and returns the text as it looks in that style."""

STYLES = {"good": "32", "doubtful": "33", "bad": "31", "strong": "1", "faint": "2"}
"""Parameters of ECMA-48's SGR. They are the terminal's own colors, which its user can read on its background."""

COLOR = Row(
    "--color auto|always|never",
    "when to use colors; auto: at a terminal, unless NO_COLOR is set",
    default="auto",
    more="FORCE_COLOR stands for always, and TERM=dumb for never; JSON has none",
)


def is_colored(stream: Any, color: str = "auto", environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an output to ``stream``, which may be None, is to be colored. ``color`` is the value of the option."""
    if color != "auto":
        return color == "always"
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR", "0") not in ("", "0", "false"):
        return True
    return stream is not None and stream.isatty() and not is_dumb(environment)


def painter(stream: Any, color: str = "auto") -> Paint:
    """Return ``paint`` if an output to ``stream`` is to be colored, else ``plain``."""
    return paint if is_colored(stream, color) else plain


def paint(style: str, text: str) -> str:
    """Return ``text`` with the escape sequences of a style."""
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if text else ""


def plain(style: str, text: str) -> str:
    """Return ``text``."""
    return text
