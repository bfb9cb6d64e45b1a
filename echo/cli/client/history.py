"""The history of typed lines, for the arrow keys. It is a file in the state directory of the XDG specification.

``$ECHO_HISTFILE`` names another file. If that is empty or not a regular file, such as ``/dev/null``, no history is
kept; nor is it in the user's home if that is unknown or missing. A problem with the file does not end the session.
"""

from __future__ import annotations

import os
from typing import Optional

try:
    import readline
except ImportError:  # Windows: the console has a history of its own
    readline = None  # type: ignore[assignment]

KEPT_LINES = 1000


def history_file() -> Optional[str]:
    """The path of the file; None if no history is kept."""
    path, home = os.environ.get("ECHO_HISTFILE"), os.path.expanduser("~")
    is_known = os.environ.get("HOME") != "" and os.path.isabs(home)
    if path is None:
        state = os.environ.get("XDG_STATE_HOME", "")
        if not os.path.isabs(state):  # the specification says to ignore a relative path
            if not is_known:
                return None
            state = os.path.join(home, ".local", "state")
        path = os.path.join(state, "echo", "history")
    elif path.startswith("~"):  # a shell expands it, but not between quotes; an env file never does
        if not is_known and path[1:2] in ("", os.sep):
            return None
        path = os.path.expanduser(path)
        if path.startswith("~"):
            return None
    if not os.path.isdir(home) and path.startswith(os.path.join(home, "")):
        return None  # the home is missing, as that of many services: root would make it
    if not path or (os.path.exists(path) and not os.path.isfile(path)):
        return None
    return path


class History:
    """Reads the earlier lines when it is made; ``save`` adds those that are new since then or the last ``save``."""

    def __init__(self) -> None:
        self._path = history_file()
        if readline is None or self._path is None:
            return
        try:
            readline.read_history_file(self._path)
        except OSError:
            pass  # the file does not exist yet, or cannot be read
        self._before = readline.get_current_history_length()

    def save(self) -> None:
        """Append to the file, so that two sessions at a time both keep their lines."""
        if readline is None or self._path is None:
            return
        try:
            os.makedirs(os.path.dirname(os.path.abspath(self._path)), 0o700, exist_ok=True)
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600))  # only for its user: a line may be a secret
            readline.set_history_length(KEPT_LINES)
            length = readline.get_current_history_length()
            new, self._before = length - self._before, length  # first: a signal handler may save, too
            readline.append_history_file(new, self._path)
        except (OSError, AttributeError):  # readline may be libedit, which cannot append
            pass
