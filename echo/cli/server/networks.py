"""The networks that the command's options name: as text, or as ``@FILE`` with one network a line.

A list decides who gets in, so it is in force as it was meant, or refused with a line that says what is wrong.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Callable, List, Set

from ...files import without_marks
from ...server.access import Network, network


class NetworkLists:
    """Returns the networks that texts name. ``read`` returns the content of a file.

    It may be asked again for the same files, when they may have changed. ``ValueError`` names what is wrong.
    """

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read
        self._denying: Set[str] = set()  # the files that have named a network to deny

    def allowed(self, texts: List[str]) -> List[Network]:
        """For clients that may connect. A file without a network is an error: no networks at all would mean that all
        clients may."""
        networks: List[Network] = []
        for text in texts:
            found = self._named_by(text)
            if not found:
                raise ValueError(f"{text[1:]} names no network")
            networks += found
        return networks

    def denied(self, texts: List[str]) -> List[Network]:
        """For clients that may not. A file that names no network is an error if it has named one before: it is being
        written, or was lost."""
        networks: List[Network] = []
        for text in texts:
            found = self._named_by(text)
            if found and text.startswith("@"):
                self._denying.add(text)
            elif text in self._denying:
                raise ValueError(f"{text[1:]} names no network now, but did before; to deny nobody, restart the server")
            networks += found
        return networks

    def _named_by(self, text: str) -> List[Network]:
        return read_networks(text[1:], self._read(text[1:])) if text.startswith("@") else [network(text)]


def read_networks(path: str, data: bytes) -> List[Network]:
    """Return the networks in a file's content."""
    networks: List[Network] = []
    # Not splitlines(): it would also end a comment at characters that no editor shows as the end of a line.
    lines = re.split("\r\n|\r|\n", without_marks(data).decode("utf-8", "replace"))
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                networks.append(network(text))
                if number == len(lines):
                    _check_unended(text)
            except ValueError as exc:
                raise ValueError(f"{path}, line {number}: {exc}") from None
    return networks


def _check_unended(text: str) -> None:
    """``ValueError`` if a last line without a line feed may have been cut, by a full disk for example: 10.1.0.0/16 is
    10.1.0.0/1 then, half of all addresses."""
    interface = ipaddress.ip_interface(text)
    if interface.ip != interface.network.network_address:
        raise ValueError(f"{text} may have lost its end; write a line feed after it")


def checked(text: str) -> str:
    """Return a network or ``@FILE`` as it is. ``ValueError`` if it is neither; the file is not read yet."""
    if text == "@":
        raise ValueError("invalid file '@': expected @FILE")
    if not text.startswith("@"):
        network(text)
    return text
