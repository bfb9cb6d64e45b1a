"""Shared by both commands: rows, which declare options, and the readers of ports, durations, sizes and counts.

A usage error is one line that says what is wrong and what to do, and exit code 2. Options of one command only are
declared in that command.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
import sys
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, NoReturn, Optional, Sequence, Tuple

from ..descriptors import open_missing
from ..framing import FRAMINGS, Framing
from ..sockets import check_path, is_ip
from ..text import printable
from .streams import CannotWrite, best_effort, whole

_ADDRESS = re.compile(
    r"(?P<ipv6>[^\s\[\]]*:[^\s\[\]]*:[^\s\[\]]*)"
    r"|(?:\[(?P<bracketed>[^\s\[\]]*:[^\s\[\]]*)\]|(?P<name>[^\s\[\]:*]+))(?::(?P<port>.*))?"
)
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h|)", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 366 * 86400.0
_SIZE = re.compile(r"(\d+)([kKmMgG]?)", re.ASCII)
_FACTORS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


class Row:
    """One option of a command. Its entry in ``--help``, in the manual page and in the reference, its completion in a
    shell, its variable in the environment, its value and its default are all made from it.

    * ``names``, as ``--help`` shows them: ``-m, --max-connections N``. ``--quiet``, without a value, is a switch;
      ``--log-format text|json`` is a choice; ``port``, without dashes, is a positional argument. In ``--workers
      N|auto`` the part in capitals stands for any other value. Shells complete ``FILE`` and ``PATH`` with names of
      files, and ``@FILE`` after its ``@``.
    * ``read`` turns the text into the value, or raises ``argparse.ArgumentTypeError``.
    * ``shown``: the default in words, where ``default`` itself says too little.
    * ``more``: details that ``--help`` leaves to the reference and the manual page.
    * ``needs``: options of which at least one must be given, too.
    * ``many``: it may be repeated; one named like ``--compare FILE...`` takes several values, too. ``mode``: it
      excludes the other modes of its group.
    * ``left_out``: unless given, the parsed options do not have it.
    * ``guards``: it decides who gets in, so that its variable must not be empty, which counts as not set elsewhere.
    * ``prints``: the option ends the command, which prints the text that this returns for the parser and the value.
    """

    def __init__(
        self,
        names: str,
        meaning: str = "",
        read: Callable[[str], Any] = str,
        default: Any = None,
        *,
        shown: str = "",
        more: str = "",
        needs: Tuple[str, ...] = (),
        many: bool = False,
        mode: bool = False,
        left_out: bool = False,
        guards: bool = False,
        prints: Optional[Callable[[Any, str], str]] = None,
    ) -> None:
        self.names = names
        words = names.replace(",", "").split()
        self.flags = [word for word in words if word.startswith("-")]
        self.value = words[-1] if self.flags and words[-1] not in self.flags else ""
        several = self.value.endswith("...")
        self.value = self.value.rstrip(".")
        self.is_switch = bool(self.flags) and not self.value
        parts = self.value.split("|")
        self.words = [part for part in parts if part.islower()]
        """The values that have a name."""
        self.choices = self.words if self.words == parts else []
        """All values, if each of them has a name."""
        name = self.flags[-1] if self.flags and self.flags[-1].startswith("--") else words[-1]
        self.dest = name.lstrip("-").lower().replace("-", "_")
        """The attribute of the parsed options: ``max_connections``; for ``-m TEXT`` it is ``text``."""
        self.variable = f"ECHO_{self.dest.upper()}"
        self.meaning = f"{meaning}; may be repeated" if many else meaning
        self.read, self.more = read, more
        self.needs, self.mode, self.left_out, self.guards, self.prints = needs, mode, left_out, guards, prints
        self.many, self.several = many or several, several
        self.default = False if self.is_switch else [] if self.many and default is None else default
        if not shown and default is not None and default is not False:
            shown = f"{default:g} s" if isinstance(default, float) else str(default)
        self.shown = shown

    def add_to(self, group: Any) -> argparse.Action:
        """Add the option to a parser or to a group of one."""
        default = f"(default: {self.shown})" if self.shown else ""
        settings: Dict[str, Any] = {
            "default": argparse.SUPPRESS if self.left_out or self.needs else self.default,
            "help": f"{self.meaning} {default}".strip().replace("%", "%%"),
        }
        if self.prints is not None:
            settings.update(action=_Print, prints=self.prints, nargs=0 if self.is_switch else None)
        elif self.is_switch:
            settings["action"] = "store_true"
        if self.choices:
            settings["choices"] = self.choices
        elif not self.is_switch:
            settings["type"] = self.read
        if self.many:
            settings["action"] = "append"
        if self.flags:
            settings["dest"] = self.dest
        else:
            settings["nargs"] = "?"
        if self.value and not self.choices:
            settings["metavar"] = self.value
        if self.several:
            settings["nargs"] = "+"
        action: argparse.Action = group.add_argument(*(self.flags or [self.dest]), **settings)
        return action

    def from_variable(self, text: str) -> Any:
        """Return the value that its variable gives. Raises ``ValueError`` or ``argparse.ArgumentTypeError``."""
        if self.is_switch:
            if text not in ("0", "1"):
                raise ValueError(f"invalid switch {text!r}: expected 1 or 0")
            return text == "1"
        if self.many:
            return [self.read(part) for part in text.split()]
        if self.choices and text not in self.choices:
            raise ValueError(f"invalid choice {text!r}: expected {', '.join(self.choices)}")
        return self.read(text)


class Group:
    """Rows under one heading of ``--help``; without a title, the command's general ones."""

    def __init__(self, title: str, description: str, *rows: Row) -> None:
        self.title, self.description, self.rows = title, description, rows


class ArgumentParser(argparse.ArgumentParser):
    """``argparse`` for rows. Errors are one line. Abbreviated options are refused: a later version may know two.
    With groups, ``--help`` is one of their rows."""

    mistaken: Mapping[str, str] = {}
    """Options that other programs have, and what to do instead."""

    def __init__(self, *, prog: str, description: str, groups: Sequence[Group] = ()) -> None:
        super().__init__(prog=prog, description=description, add_help=not groups, allow_abbrev=False)
        self.register("action", "append", _Append)
        self._rows: Dict[str, Tuple[Row, argparse.Action]] = {}
        for group in groups:
            part: Any = self.add_argument_group(group.title, group.description or None) if group.title else self
            modes = part.add_mutually_exclusive_group() if any(row.mode for row in group.rows) else None
            for row in group.rows:
                action = row.add_to(modes if row.mode else part)
                if row.prints is None:
                    self._rows[row.dest] = row, action

    def read_environment(self, environment: Mapping[str, str]) -> None:
        """Take defaults from variables: ``ECHO_MAX_CONNECTIONS`` for ``--max-connections``. An empty variable counts as
        not set, except where that would let everybody in. A switch is 1 or 0. Values of an option that may be repeated
        are separated by spaces."""
        for row, action in self._rows.values():
            text = environment.get(row.variable, "").strip()
            if text:
                try:
                    action.default = row.from_variable(text)
                except (argparse.ArgumentTypeError, ValueError) as exc:
                    self.error(f"{row.variable}: {exc}")
            elif row.guards and row.variable in environment:
                self.error(f"{row.variable} is empty; give a value, or unset it to let everybody in")

    def parse_complete(self, argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
        """Parse, and reject an option without one that it needs."""
        options = self.parse_args(argv)
        rows = [row for row, _ in self._rows.values() if row.needs]
        for row in rows:
            if hasattr(options, row.dest) and not any(getattr(options, name, None) for name in row.needs):
                flags = [self._rows[name][0].flags[-1] for name in row.needs]
                choice = " or ".join(filter(None, [", ".join(flags[:-1]), flags[-1]]))
                self.error(f"{row.flags[-1]} needs {choice}")
        for row in rows:
            vars(options).setdefault(row.dest, row.default)
        return options

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        given = args[0] if args else options.get("args")
        given = list(sys.argv[1:] if given is None else given)
        for word in given[: given.index("--") if "--" in given else len(given)]:
            flag = word.partition("=")[0] if word.startswith("--") else word[:2]
            if flag in self.mistaken:
                self.error(f"unknown option {flag}: {self.mistaken[flag]}")
        return super().parse_known_args(*args, **options)

    def _get_values(self, action: argparse.Action, arg_strings: List[str]) -> Any:
        lone = action.option_strings and arg_strings == ["--"]
        values = super()._get_values(action, arg_strings)
        if lone and values == []:  # before Python 3.13 argparse drops the first of such values: give it one to drop
            values = super()._get_values(action, ["--", "--"])
        return values

    def error(self, message: str) -> NoReturn:
        fail(self.prog, f"{message}; see --help", 2)


class _Append(argparse.Action):
    """An option that may be repeated. Given values replace the default: ``argparse`` would append to it, and the
    command line could not override the environment."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        had = getattr(namespace, self.dest, self.default)
        more = [values] if self.nargs is None else values
        setattr(namespace, self.dest, [*([] if had is self.default else had), *more])


class _Print(argparse.Action):
    """An option that prints something and ends the command."""

    def __init__(self, prints: Callable[[Any, str], str], default: Any, **settings: Any) -> None:
        super().__init__(default=argparse.SUPPRESS, **settings)
        self.prints = prints

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        print(self.prints(parser, values), end="", file=sys.stdout or sys.stderr)
        parser.exit()


def program(module: str) -> str:
    """The name of a command: ``echo-server`` if it was started as that; ``echo server`` or ``echo.pyz server`` if it is
    a part of one of these; else its module, ``echo.server``."""
    script = module.replace(".", "-")
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    if name.endswith(f" {script.partition('-')[2]}"):
        return name
    return script if name in (script, f"{script}.exe", f"{script}-script.py") else module


def invocation(prog: str) -> str:
    """How a user starts the command with the name ``prog``: ``python3 -m echo.server``, or ``echo-server``."""
    if " " in prog and not prog.startswith("echo "):
        return f"python3 {prog}"  # of a file like echo.pyz
    return prog if prog.startswith("echo-") else f"python3 -m {prog}"


def fail(prog: str, message: str, code: int) -> NoReturn:
    """End the program with one line on stderr."""
    line = printable(f"{prog}: {message}", keep="\t")
    with contextlib.suppress(OSError):  # of a stream that is not best_effort's, one without bytes below it
        print(line, file=best_effort(sys.stderr), flush=True)
    raise SystemExit(code)


@contextlib.contextmanager
def standard_streams(prog: str) -> Iterator[None]:
    """Let standard output take all that is written to it, and standard error what it can.

    If standard output cannot be written, the program ends with code 1 and one line; without the line if its reader has
    gone. ``sys.stdout`` remains None if its descriptor was closed.
    """
    open_missing()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = sys.stdout and whole(sys.stdout), best_effort(sys.stderr)
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except CannotWrite as exc:
        if isinstance(exc.error, BrokenPipeError):
            raise SystemExit(1) from None
        fail(prog, str(exc), 1)
    finally:
        sys.stdout, sys.stderr = before


def _whole(text: str) -> Optional[int]:
    """The whole number that a text is; None for any other text, and for a number that is too long to mean anything."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def port(text: str) -> int:
    """A TCP port, 0 to 65535."""
    number = _whole(text)
    if number is None or number > 65535:
        raise argparse.ArgumentTypeError(f"invalid port {text!r}: expected 0 to 65535")
    return number


class Address(NamedTuple):
    """The parts of an address that an argument has; None: it does not have this part."""

    host: Optional[str] = None
    port: Optional[int] = None


def host(text: str) -> Address:
    """A host, alone or with its port, as people and log lines write them: ``localhost``, ``192.0.2.1:80``, ``::1``,
    ``[::1]``, ``[::1]:80``."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"invalid address {text!r}: expected a host, or HOST:PORT, without {text.partition('://')[0]}://"
        )
    if "/" in text or text.startswith("@"):
        raise argparse.ArgumentTypeError(
            f"invalid address {text!r}: expected a host, or HOST:PORT; for a Unix socket, write --unix PATH"
        )
    match = _ADDRESS.fullmatch(text)
    literal = match and (match.group("ipv6") or match.group("bracketed"))
    if match is None or (literal and not is_ip(literal)):
        raise argparse.ArgumentTypeError(
            f"invalid address {text!r}: expected a host, or HOST:PORT, like 127.0.0.1:65432 or [::1]:65432"
        )
    digits = match.group("port")
    return Address(literal or match.group("name"), None if digits is None else port(digits))


def port_or_address(text: str) -> Address:
    """A port, or a host with its port."""
    if ":" not in text:
        try:
            return Address(port=port(text))
        except argparse.ArgumentTypeError as exc:
            if text.isdigit():
                raise
            raise argparse.ArgumentTypeError(f"{exc}, or HOST:PORT, like 0.0.0.0:65432") from None
    address = host(text)
    if address.port is None:
        raise argparse.ArgumentTypeError(f"no port in {text!r}: expected PORT, HOST:PORT or [IPV6]:PORT")
    return address


def joined(*parts: Optional[Address]) -> Address:
    """The parts of an address as one. ``ValueError`` if they contradict each other."""
    given = [part for part in parts if part is not None]
    hosts = dict.fromkeys(part.host for part in given if part.host is not None)
    ports = dict.fromkeys(part.port for part in given if part.port is not None)
    for what, found in (("hosts", hosts), ("ports", ports)):
        if len(found) > 1:
            raise ValueError(f"two {what} are given, {' and '.join(map(str, found))}; give one of them")
    return Address(next(iter(hosts), None), next(iter(ports), None))


def seconds(text: str) -> float:
    """A duration in seconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"invalid duration {text!r}: expected 500ms, 30s, 5m or 1.5, for example")
    number = float(match.group(1)) * _UNITS[match.group(2)]
    if number > _LONGEST:
        raise argparse.ArgumentTypeError(f"invalid duration {text!r}: the maximum is a year")
    return number


def duration(text: str) -> Optional[float]:
    """A duration in seconds; None for 0, which switches a limit off."""
    return seconds(text) or None


def size(text: str) -> int:
    """Bytes, at least 1."""
    match = _SIZE.fullmatch(text)
    number = None if match is None else _whole(match.group(1))
    if match is None or not number:
        raise argparse.ArgumentTypeError(f"invalid size {text!r}: expected bytes, like 65536, 64k or 1M")
    return number * _FACTORS[match.group(2).lower()]


def count(text: str) -> int:
    """A number of things, at least 1."""
    number = _whole(text)
    if not number:
        raise argparse.ArgumentTypeError(f"invalid number {text!r}: expected a whole number, 1 or more")
    return number


def file(text: str) -> str:
    """The name of a file to read."""
    if not text:  # of the shell's "$FILE", maybe
        raise argparse.ArgumentTypeError("the name of a file is empty")
    return text


def own_address(text: str) -> str:
    """An IP address, to connect from."""
    try:
        address_family(text)
    except (OSError, UnicodeError):
        raise argparse.ArgumentTypeError(f"invalid address {text!r}: expected an IP address of this machine") from None
    return text


def address_family(address: str) -> int:
    """Return the family of an IP address. Raises ``OSError`` or ``UnicodeError`` if it is not one."""
    return int(socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0][0])


def unix(text: str) -> str:
    """A Unix socket's path, or ``@NAME``."""
    if not hasattr(socket, "AF_UNIX"):
        raise argparse.ArgumentTypeError("this system has no Unix sockets")
    if text in ("", "@"):
        raise argparse.ArgumentTypeError(f"invalid path {text!r}: expected a path or @NAME")
    try:
        check_path(unix_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"invalid path {text!r}: give an address without --unix, or ./{text} for a socket with this name"
        ) from None
    return text


def unix_address(text: str) -> str:
    """A Unix socket's address: a path, or ``@NAME`` for an abstract one, as systemd and socat write it."""
    return "\0" + text[1:] if text.startswith("@") else text


def framing_rows(default: Framing, *, left_out: bool = False) -> List[Row]:
    """``--framing`` and ``--max-message``: both sides of a connection must use the same."""
    return [
        Row(
            f"--framing {'|'.join(FRAMINGS)}",
            "how messages are delimited: by a line feed after each, by a carriage return and a line feed (crlf), by a"
            " 32-bit length before each, or not (raw)",
            more="with raw, a message is what one read returns",
            default=default.name,
            left_out=left_out,
        ),
        Row(
            "--max-message BYTES",
            "maximum length of a message, in bytes, like 65536, 64k or 1M",
            size,
            default.max_message,
            left_out=left_out,
        ),
    ]
