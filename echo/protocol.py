"""What both ends know of the echo protocol: its one word, and where it is to be found.

It knows no framing and no connection.
"""

from __future__ import annotations

from typing import Optional

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 65432

EXIT_WORD = b"exit"
"""The message, in lower case, that ends a session."""


def is_exit(message: bytes, word: Optional[bytes] = EXIT_WORD) -> bool:
    """Whether it is that word, in any letter case and with surrounding white space; no message is, if there is none."""
    return message.strip().lower() == word
