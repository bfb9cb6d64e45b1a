"""The manual pages ``docs/man/*.1``, in roff, generated from the same ``Manual`` as ``--help``.

``tests/project/test_manual_pages.py`` compares and updates them.
"""

from __future__ import annotations

import re
import textwrap
from typing import Iterable, Iterator, List, Tuple

from ..version import __version__
from .arguments import Row
from .help import Manual, meaning

_SPECIAL = {"\\": "\\e", "-": "\\-", "'": "\\(aq", '"': "\\(dq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}
_OPTION = re.compile(r"(?<![\w-])--?[a-z0-9][\w-]*")


def manual_page(manual: Manual, others: Iterable[str], date: str) -> str:
    """The page of a command. ``others`` are the pages to see also."""
    script = manual.script
    purpose = manual.summary[0].lower() + manual.summary[1:].rstrip(".")
    synopsis = " ".join([_bold(script), "[" + _italic("options") + "]", *(f"[{_italic(n)}]" for n in manual.arguments)])
    lines = [
        f'.TH {_escaped(script.upper())} 1 "{date}" "echo {__version__}" "User Commands"',
        *(".ad l", ".nh"),  # ragged lines without hyphens: a name of an option is never divided
        *(".SH NAME", f"{_escaped(script)} \\- {_escaped(purpose)}"),
        *(".SH SYNOPSIS", synopsis),
        ".SH DESCRIPTION",
    ]
    lines += [line for paragraph in manual.description for line in (".PP", *_text(paragraph))][1:]
    lines.append(".SH EXAMPLES")
    lines += _list((_bold(f"{script} {arguments}".rstrip()), text) for arguments, text in manual.examples)
    lines.append(".SH OPTIONS")
    for group in manual.groups:
        lines += [f'.SS "{_escaped(group.title)}"', *_text(group.description)]
        lines += _list((_names(row), meaning(row, row.more)) for row in group.rows)
    for title, rows in manual.notes:
        lines += [f'.SH "{_escaped(title.upper())}"', *_list((_bold(name), text) for name, text in rows)]
    lines += [".SH SEE ALSO", ", ".join(f".BR {_escaped(other)} (1)" for other in others)]
    return "\n".join(lines) + "\n"


def _list(rows: Iterable[Tuple[str, str]]) -> Iterator[str]:
    for name, text in rows:
        yield from (".TP", name, *_text(text))


def _names(row: Row) -> str:
    flags = ", ".join(map(_bold, row.flags))
    value = row.value + "..." * row.several
    return f"{flags} {_italic(value)}".rstrip() if value else flags or _italic(row.names)


def _text(text: str) -> List[str]:
    """The lines of prose, with its options in bold. None begins with a dot, which would make it a command."""
    parts = re.split(f"({_OPTION.pattern})", text)
    marked = "".join(_bold(part) if _OPTION.fullmatch(part) else _escaped(part) for part in parts)
    lines = textwrap.wrap(marked, 79, break_long_words=False, break_on_hyphens=False)
    return ["\\&" * line.startswith(".") + line for line in lines]


def _bold(text: str) -> str:
    return f"\\fB{_escaped(text)}\\fR"


def _italic(text: str) -> str:
    return f"\\fI{_escaped(text)}\\fR"


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(letter, letter) for letter in text)
