"""``--help`` of both commands: what a command is, examples, and its options in columns.

It is laid out here, not by ``argparse``, so it looks the same under every Python. A ``Manual`` holds all that it says;
``completion`` and ``manual_page`` are made from the same.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from typing import Any, Iterable, Iterator, List, NamedTuple, Sequence, Tuple

from ..version import __version__
from . import completion
from .arguments import ArgumentParser, Group, Row, invocation

_COLUMN = 31  # where the meanings begin, unless the terminal is narrow
_WIDEST = 100  # longer lines are hard to read
_DEFAULT = re.compile(r"\(default: [^()]{1,20}\)$")  # it stays in one line


class Notes(NamedTuple):
    """A table besides the options: exit codes, signals, variables."""

    title: str
    rows: Sequence[Tuple[str, str]]


class Manual(NamedTuple):
    """All that the help of a command says."""

    script: str
    """The command as it is installed: ``echo-server``."""
    summary: str
    examples: Sequence[Tuple[str, str]]
    """The arguments of a command line, and what it does."""
    description: Sequence[str]
    """Paragraphs that only the manual page has."""
    groups: Sequence[Group]
    notes: Sequence[Notes]

    @property
    def arguments(self) -> List[str]:
        """The positional arguments."""
        return [row.names for group in self.groups for row in group.rows if not row.flags]


class CommandParser(ArgumentParser):
    """The parser of a command."""

    def __init__(self, prog: str, manual: Manual) -> None:
        super().__init__(prog=prog, description=manual.summary, groups=manual.groups)
        self.manual = manual

    def format_help(self) -> str:
        return page(self.prog, self.manual, shutil.get_terminal_size().columns)


def _completion(parser: Any, shell: str) -> str:
    return completion.SHELLS[shell](parser.manual.script, parser.manual.groups)


GENERAL = Group(
    "general",
    "",
    Row("-h, --help", "print this help and exit", prints=lambda parser, _: parser.format_help()),
    Row("--version", "print the version and exit", prints=lambda parser, _: f"{parser.prog} {__version__}\n"),
    Row(
        f"--print-completion {'|'.join(completion.SHELLS)}",
        "print a script that completes the options in this shell, and exit",
        prints=_completion,
    ),
)
"""The options that every command has."""


def page(prog: str, manual: Manual, width: int) -> str:
    """``--help`` for a terminal of this width."""
    width = min(width, _WIDEST)
    command = invocation(prog)
    lines = [f"usage: {' '.join([command, '[options]', *(f'[{name}]' for name in manual.arguments)])}", ""]
    lines += [*textwrap.wrap(manual.summary, width), "", "examples:"]
    examples = [(f"{command} {arguments}".rstrip(), meaning) for arguments, meaning in manual.examples]
    lines += _columns(examples, max(len(example) for example, _ in examples) + 4, width)
    for group in manual.groups:
        lines += ["", f"{group.title}:"]
        lines += textwrap.wrap(group.description, width, initial_indent="  ", subsequent_indent="  ")
        lines += _columns(((_names(row), meaning(row)) for row in group.rows), _COLUMN, width)
    for title, rows in manual.notes:
        lines += ["", f"{title}:", *_columns(rows, max(len(name) for name, _ in rows) + 4, width)]
    return "\n".join(lines) + "\n"


def meaning(row: Row, more: str = "") -> str:
    """The meaning of a row, with more of it and its default."""
    text = "; ".join(filter(None, [row.meaning, more]))
    return f"{text} (default: {row.shown})" if row.shown else text


def _names(row: Row) -> str:
    """Long names stand below each other."""
    return f"    {row.names}" if row.names.startswith("--") else row.names


def _columns(rows: Iterable[Tuple[str, str]], column: int, width: int) -> Iterator[str]:
    """Names on the left, meanings on the right; a name that is too long has a line of its own."""
    column = min(column, width * 3 // 5)
    width = max(width, column + 16)
    for name, text in rows:
        start = f"  {name}"
        if len(start) + 2 > column:
            yield start
            start = ""
        text = _DEFAULT.sub(lambda match: match.group().replace(" ", "\0"), text)
        for line in textwrap.wrap(
            text,
            width,
            initial_indent=start.ljust(column),
            subsequent_indent=" " * column,
            break_long_words=False,
            break_on_hyphens=False,
        ):
            yield line.replace("\0", " ")
