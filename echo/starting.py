"""Ctrl-C while a command is imported. ``echo`` imports this module before all others.

Python answers Ctrl-C with a traceback until a command has set its own signal handlers. Importing takes a tenth of a
second. So if the process runs one of the commands, Ctrl-C ends it with exit code 130 and without a word. Programs that
use the library are left alone.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal takes milliseconds to import: Ctrl-C could come right then
import os
import sys

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_COMMANDS = ("echo.__main__", "echo.client.__main__", "echo.server.__main__")


def _starts_a_command() -> bool:
    """Whether the import under way is that of a command, by ``python -m`` or by an installed script. A process that
    ``multiprocessing`` starts imports the script, too, and is not the command."""
    frame = None if "__mp_main__" in sys.modules else sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_SYSTEM and frame.f_locals.get("name") in _COMMANDS:
            return True  # the script imports the module
        if frame.f_globals.get("__name__") == "runpy" and f"{frame.f_locals.get('mod_name')}.__main__" in _COMMANDS:
            return True
        frame = frame.f_back
    return False


def _replace(old: object, new: object) -> bool:
    """Replace the handler of Ctrl-C if it is ``old``; return whether that was done. Only the main thread can do it."""
    if _signal.getsignal(_signal.SIGINT) is not old:
        return False
    try:
        _signal.signal(_signal.SIGINT, new)
    except ValueError:  # this is another thread
        return False
    return True


def _end(signum: int, frame: object) -> None:
    os._exit(INTERRUPTED)


class Interruptible:
    """A context in which Ctrl-C raises ``KeyboardInterrupt``: the command handles it. Before and after, while Python
    starts and exits, it ends the process."""

    def __enter__(self) -> None:
        _replace(_end, _signal.default_int_handler)

    def __exit__(self, *exc_info: object) -> None:
        if _starting:
            _replace(_signal.default_int_handler, _end)


_starting = _starts_a_command() and _replace(_signal.default_int_handler, _end)
