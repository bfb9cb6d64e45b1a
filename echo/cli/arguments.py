"""What both command lines read alike: ports, durations, sizes, framings; and how they refuse what they cannot read.

An error is one line that says what is wrong and what to do, with exit code 2. What one side alone has, is not known
here.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from typing import Any, Mapping, NoReturn, Optional

from ..framing import DEFAULT_MAX_MESSAGE, FRAMINGS, Framing

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h|)", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 366 * 86400.0
_SIZE = re.compile(r"(\d+)([kKmMgG]?)", re.ASCII)
_FACTORS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


class ArgumentParser(argparse.ArgumentParser):
    """``argparse`` whose errors are one line. Abbreviated options are refused: a later version may know two."""

    def __init__(self, *, prog: str, description: str, epilog: Optional[str] = None) -> None:
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False)
        self.register("action", "append", _Append)

    def read_environment(self, environment: Mapping[str, str]) -> None:
        """Take defaults from variables, by one rule: ``--max-connections`` is ``ECHO_MAX_CONNECTIONS``. What is empty
        counts as not there; a switch is 1 or 0; an option that may be repeated has its values with spaces between."""
        for action in self._actions:
            name = "ECHO_" + (action.option_strings or [action.dest])[-1].lstrip("-").upper().replace("-", "_")
            text = environment.get(name, "").strip()
            if text and action.dest not in ("help", "version"):
                try:
                    action.default = _value(action, text)
                except (argparse.ArgumentTypeError, ValueError) as exc:
                    self.error(f"{name}: {exc}")

    def error(self, message: str) -> NoReturn:
        fail(self.prog, f"{message}; see --help", 2)


class _Append(argparse.Action):
    """An option that may be repeated. What is given takes the default's place; ``argparse`` would add to it, so that
    nobody could take back what the environment says."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        had = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if had is self.default else had), values])


def _value(action: argparse.Action, text: str) -> Any:
    if action.nargs == 0:
        if text not in ("0", "1"):
            raise ValueError(f"{text!r} is no switch; write 1 for on, 0 for off")
        return action.const if text == "1" else action.default
    convert: Any = action.type or str
    if isinstance(action.default, list):
        return [convert(part) for part in text.split()]
    if action.choices is not None and text not in action.choices:
        raise ValueError(f"{text!r} is none of {', '.join(map(str, action.choices))}")
    return convert(text)


def program(module: str) -> str:
    """What a command is called: ``echo-server`` if that is how it was started, else ``echo.server``, its module."""
    script = module.replace(".", "-")
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return script if name in (script, f"{script}.exe", f"{script}-script.py") else module


def fail(prog: str, message: str, code: int) -> NoReturn:
    """End the program with one line on stderr."""
    line = f"{prog}: {message}".replace("\n", "\\n")
    try:
        if sys.stderr is not None:  # print() would take stdout instead
            print(line, file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody reads it; the exit code still tells
    raise SystemExit(code)


def port(text: str) -> int:
    """A TCP port, 0 to 65535."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; a port is a number from 0 to 65535")
    return int(text)


def duration(text: str) -> Optional[float]:
    """Seconds; None for 0, which switches a limit off."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write it like 500ms, 30s, 5m or 1.5")
    seconds = float(match.group(1)) * _UNITS[match.group(2)]
    if seconds > _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than a year; write 0 for no limit")
    return seconds or None


def size(text: str) -> int:
    """Bytes, at least 1."""
    match = _SIZE.fullmatch(text)
    if match is None or not int(match.group(1)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it in bytes, like 65536, 64k or 1M")
    return int(match.group(1)) * _FACTORS[match.group(2).lower()]


def count(text: str) -> int:
    """A number of things, at least 1."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no count; write a whole number from 1 on")
    return int(text)


def unix(text: str) -> str:
    """A Unix socket's path, or ``@NAME``."""
    if not hasattr(socket, "AF_UNIX"):
        raise argparse.ArgumentTypeError("this system has no Unix sockets")
    if text in ("", "@"):
        raise argparse.ArgumentTypeError(f"{text!r} is no path")
    return text


def unix_address(text: str) -> str:
    """A Unix socket's address: a path, or ``@NAME`` for an abstract one, as systemd and socat write it."""
    return "\0" + text[1:] if text.startswith("@") else text


def add_framing(parser: argparse.ArgumentParser, *, only_if_given: bool = False) -> None:
    """Add ``--framing`` and ``--max-message``, which both sides of a connection must agree on.

    ``only_if_given``: they have no value unless given, since a handler has a framing of its own.
    """
    parser.add_argument(
        "--framing",
        choices=sorted(FRAMINGS),
        default=argparse.SUPPRESS if only_if_given else "line",
        help="how messages lie in the stream: lines, a 32-bit length before each, or whatever one read returns"
        " (default: line)",
    )
    parser.add_argument(
        "--max-message",
        type=size,
        metavar="BYTES",
        default=argparse.SUPPRESS if only_if_given else DEFAULT_MAX_MESSAGE,
        help=f"the longest message there may be (default: {DEFAULT_MAX_MESSAGE})",
    )


def framing(arguments: argparse.Namespace) -> Framing:
    """The framing that was asked for."""
    return FRAMINGS[arguments.framing](arguments.max_message)
