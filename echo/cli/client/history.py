"""What was typed in earlier sessions, for the arrow keys: kept in a file, where the XDG base directories say.

``$ECHO_HISTFILE`` names another file; anything that is no regular file, ``/dev/null`` as well as nothing at all, keeps
none. History is a comfort: what hinders it is no error of the session.
"""

from __future__ import annotations

import os
from typing import Optional

try:
    import readline
except ImportError:  # Windows: the console has its own
    readline = None  # type: ignore[assignment]

KEPT_LINES = 1000


def history_file() -> Optional[str]:
    """The file's path; None if history is to be kept nowhere."""
    path = os.environ.get("ECHO_HISTFILE")
    if path is None:
        state = os.environ.get("XDG_STATE_HOME", "")
        if not os.path.isabs(state):  # the specification has a relative one ignored
            state = os.path.expanduser(os.path.join("~", ".local", "state"))
        path = os.path.join(state, "echo", "history")
    if not path or (os.path.exists(path) and not os.path.isfile(path)):
        return None
    return path


class History:
    """Reads the earlier lines at once, and keeps this session's with ``save``."""

    def __init__(self) -> None:
        self._path = history_file()
        if readline is None or self._path is None:
            return
        try:
            readline.read_history_file(self._path)
        except OSError:
            pass  # the first session, or none of ours to read
        self._before = readline.get_current_history_length()

    def save(self) -> None:
        """Append, so that of two sessions at a time neither loses its lines."""
        if readline is None or self._path is None:
            return
        new = readline.get_current_history_length() - self._before
        try:
            os.makedirs(os.path.dirname(os.path.abspath(self._path)), 0o700, exist_ok=True)
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600))  # what is typed may be a secret
            readline.set_history_length(KEPT_LINES)
            readline.append_history_file(new, self._path)
        except (OSError, AttributeError):  # libedit may not know how to append
            pass
