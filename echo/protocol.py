"""The echo protocol: its one word, and the default address of a server. It knows no framing and no connection."""

from __future__ import annotations

from typing import Optional

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 65432

EXIT_WORD = b"exit"
"""The message, in lower case, that ends a session."""


def is_exit(message: bytes, word: Optional[bytes] = EXIT_WORD) -> bool:
    """Return whether ``message`` is ``word``, ignoring letter case and surrounding white space.

    ``word`` must be in lower case. If it is None, the result is always False.
    """
    return message.strip().lower() == word
