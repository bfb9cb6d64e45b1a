"""How messages lie in a stream of bytes: ``bytes`` in, messages out, and back.

Nothing here sees a socket, a clock or a thread. A *framing* is an unchanging description that any number
of connections share; each connection takes its own *decoder* from it.

The rules, for all framings:

* A decoder looks at every byte once. What belongs to an unfinished message is kept and never scanned
  again: looking for LF from the start made a line of 1 MB that comes in pieces of 100 bytes 600 times
  slower.
* A message is limited, always (``max_message``, 64 KiB unless told otherwise). A length prefix is
  checked before anything is stored; memory grows with what has arrived, never with what was announced.
* Messages before a violation are not lost to it: ``feed`` returns them and leaves the violation in
  ``error``, for its caller to raise when they have been answered. Rejected: raising from ``feed`` at
  once, which throws away the good messages of the same read.
"""

from __future__ import annotations

import struct
from typing import Dict, List, Optional, Type, Union

from .exceptions import MessageTooLong, ProtocolError

DEFAULT_MAX_MESSAGE = 64 * 1024
"""Bytes in a message, at most, where nothing else is said."""

_PREFIX = struct.Struct("!I")

_LF = 10  # the number, since CPython takes ten times as long to look for b"\n" with "in" (0.36 us against 0.03)


class Decoder:
    """Turns the bytes of one connection into messages.

    ``limit`` is the most bytes that a message may have. ``pending`` holds the bytes, undecoded, of the message that has
    begun and not ended; it is empty (false) between messages. ``error`` is None, or the violation after which no
    further message can be had.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pending = bytearray()
        self.error: Optional[ProtocolError] = None

    def feed(self, data: bytes) -> List[bytes]:
        """Take what one read returned, at least one byte; return the messages that it completed, in order."""
        raise NotImplementedError

    def finish(self) -> bytes:
        """The input has ended: return the bytes of the message that it ended in, b"" if it ended cleanly."""
        rest = bytes(self.pending)
        self.pending.clear()
        return rest


class Framing:
    """A way to mark off messages, at most ``max_message`` bytes each (default 64 KiB).

    Raises ``ValueError`` for a limit below one byte. Own framings subclass this: ``encode`` and ``decoder``
    are all that a connection asks for.
    """

    name = ""
    """What the command line calls it."""

    keeps_boundaries = True
    """Whether each message comes out at the far end as the one that went in."""

    def __init__(self, max_message: int = DEFAULT_MAX_MESSAGE) -> None:
        if max_message < 1:
            raise ValueError(f"max_message is {max_message}; a message is limited to at least 1 byte")
        self.max_message = max_message

    def __repr__(self) -> str:
        return f"{type(self).__name__}(max_message={self.max_message})"

    def encode(self, message: bytes) -> bytes:
        """Return the bytes that carry ``message``; ``MessageTooLong`` if it is over the limit."""
        raise NotImplementedError

    def decoder(self) -> Decoder:
        """Return a new decoder, for one connection."""
        raise NotImplementedError


class LineFraming(Framing):
    """A message is what stands before a line feed.

    The line is split at LF alone and keeps a CR, so that what a telnet user sends comes back byte for byte.
    ``encode`` refuses a message that holds a line feed (``ValueError``): it would arrive as two.
    """

    name = "line"

    def encode(self, message: bytes) -> bytes:
        if len(message) > self.max_message:
            raise MessageTooLong(self.max_message)
        if _LF in message:
            raise ValueError("a message that holds a line feed is no single line; send its lines one by one")
        return message + b"\n"

    def decoder(self) -> Decoder:
        return _LineDecoder(self.max_message)


class _LineDecoder(Decoder):
    def feed(self, data: bytes) -> List[bytes]:
        if self.error is not None:
            return []
        size = len(data)
        pending = self.pending
        # One whole line and nothing before it: the ping-pong case, which every interactive service lives on.
        if not pending and data[-1] == _LF and size <= self.limit:
            line = data[:-1]
            if _LF not in line:
                return [line]
        lines = data.split(b"\n")
        tail = lines.pop()
        may_be_long = len(pending) + size > self.limit
        if lines and pending:
            lines[0] = bytes(pending) + lines[0]
            pending.clear()
        pending += tail
        if may_be_long:
            for index, line in enumerate(lines):
                if len(line) > self.limit:
                    del lines[index:]
                    self._fail()
                    return lines
            if len(pending) > self.limit:
                self._fail()
        return lines

    def _fail(self) -> None:
        self.error = MessageTooLong(self.limit)
        self.pending.clear()


class LengthFraming(Framing):
    """A message follows its length in bytes, a 32-bit big-endian number. An empty message is a message."""

    name = "length"

    def encode(self, message: bytes) -> bytes:
        if len(message) > self.max_message:
            raise MessageTooLong(self.max_message)
        return _PREFIX.pack(len(message)) + message

    def decoder(self) -> Decoder:
        return _LengthDecoder(self.max_message)


class _LengthDecoder(Decoder):
    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._needed = _PREFIX.size  # bytes that pending must hold before another look at it is worth while

    def feed(self, data: bytes) -> List[bytes]:
        messages: List[bytes] = []
        if self.error is not None:
            return messages
        pending = self.pending
        buffer: Union[bytes, bytearray] = data
        if pending:
            pending += data
            buffer = pending
        size = len(buffer)
        start = 0
        while size - start >= self._needed:
            (length,) = _PREFIX.unpack_from(buffer, start)
            if length > self.limit:
                self.error = MessageTooLong(self.limit)
                pending.clear()
                return messages
            end = start + _PREFIX.size + length
            if end > size:
                self._needed = end - start
                break
            messages.append(bytes(buffer[start + _PREFIX.size : end]))
            self._needed = _PREFIX.size
            start = end
        if buffer is pending:
            del pending[:start]
        else:
            pending += data[start:]
        return messages


class RawFraming(Framing):
    """A message is what one read returns: what the plainest socket programs do, and RFC 862.

    TCP keeps no boundaries, so a message may arrive in parts or together with its neighbours; only the bytes
    and their order are certain. ``max_message`` bounds what is handed on at once; nothing is ever too long.
    """

    name = "raw"
    keeps_boundaries = False

    def encode(self, message: bytes) -> bytes:
        return b"" + message  # a TypeError for a str

    def decoder(self) -> Decoder:
        return _RawDecoder(self.max_message)


class _RawDecoder(Decoder):
    def feed(self, data: bytes) -> List[bytes]:
        limit = self.limit
        if len(data) <= limit:
            return [data]
        return [data[start : start + limit] for start in range(0, len(data), limit)]


FRAMINGS: Dict[str, Type[Framing]] = {cls.name: cls for cls in (LineFraming, LengthFraming, RawFraming)}
"""The framings by the names that the command lines give them."""
