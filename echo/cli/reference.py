"""The reference tables of the documentation, generated from the rows. ``tests/project/test_pages.py`` compares and
updates them."""

from __future__ import annotations

import re
from typing import Iterable, List, Sequence, Tuple

from ..server.options import OPTIONS
from .arguments import Group, Row

_CODE = re.compile(
    r"""(?<![\w`-])(--?[a-z][\w-]*|@[A-Z]+|None|\w+\(\)|"\w+"|::|0o\d+|(?:\d+\.){3}\d+(?:/\d+)?"""
    r"""|0,2-3|\d+(?:ms|[smkM])|(?:auto|off)(?=:))(?!\w)"""
)
"""The words of a meaning that are code."""


def reference_table(rows: Iterable[Tuple[str, str, str]]) -> List[str]:
    """The lines of a table: option, meaning, default."""
    lines = ["| option | meaning | default |", "|---|---|---|"]
    return lines + [f"| {' | '.join(cells).rstrip()} |" for cells in rows]


def command_table(groups: Sequence[Group]) -> List[str]:
    """The options of a command."""
    return reference_table(
        (_names(row), _markup("; ".join(filter(None, [row.meaning, row.more]))), _markup(row.shown))
        for group in groups
        for row in group.rows
    )


def command_tables(groups: Sequence[Group]) -> List[str]:
    """The options of a command, a section with a table for each group."""
    lines: List[str] = []
    for group in groups:
        title = group.title or "general"
        lines += [f"### {title[0].upper()}{title[1:]}", "", *command_table([group]), ""]
        if group.description:
            note = _markup(group.description)
            lines[-1:-1] = ["", f"{note[0].upper()}{note[1:].rstrip('.')}."]
    return lines[:-1]


def options_table() -> List[str]:
    """The options of ``Server``."""
    return reference_table(
        (f"`{name}`", _markup(option.meaning + _notes(option.unit, option.none)), f"`{option.shown}`")
        for name, option in OPTIONS.items()
    )


def _notes(unit: str, none: str) -> str:
    notes = "; ".join(filter(None, [unit, none and f"None: {none}"]))
    return f" ({notes})" if notes else ""


def _names(row: Row) -> str:
    return ", ".join(f"`{name}`" for name in row.names.split(", ")).replace("|", "\\|")


def _markup(text: str) -> str:
    return _CODE.sub(r"`\1`", text)
