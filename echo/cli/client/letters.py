"""UTF-8 that arrives in pieces: a letter of several bytes may be cut between two of them."""

from __future__ import annotations

import codecs


def whole_letters(data: bytes) -> bytes:
    """Return ``data`` without the beginning of a letter at its end whose other bytes are missing."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data[-3:])  # at most three bytes of a letter can be there without its last one
    return data[: len(data) - len(decoder.getstate()[0])]


class Letters:
    """Keeps the beginning of a letter back until the rest is there."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take the next piece; return what can be shown of it and of what was kept back."""
        data = self._rest + data
        whole = whole_letters(data)
        self._rest = data[len(whole) :]
        return whole

    def finish(self) -> bytes:
        """Return what is still kept back: no more will come."""
        rest, self._rest = self._rest, b""
        return rest
