"""Framings: they turn messages into a stream of bytes, and a stream of bytes into messages.

This module knows no socket, no clock and no thread. A *framing* is immutable and shared by any number of connections.
Each connection gets a *decoder* of its own from it.

The rules for all framings:

* A decoder looks at every byte once. It keeps the bytes of an unfinished message and never scans them again. To search
  from the start each time made a line of 1 MB in pieces of 100 bytes 600 times slower.
* Every message that arrives has a maximum size (``max_message``, default: 64 KiB). A length prefix is checked before
  anything is stored. Memory grows with the bytes that have arrived, not with the size that was announced. A message to
  send is in memory already: it has a limit (``max_sent``) only if one is wanted.
* An error does not lose the messages before it. ``feed`` returns them and keeps the error in ``error``. The caller
  raises it after those messages have been answered. Rejected: to raise from ``feed`` at once, which loses the good
  messages of the same read.
"""

from __future__ import annotations

import struct
from typing import Dict, List, Optional, Sequence, Type, Union

from .exceptions import MessageTooLong, ProtocolError

DEFAULT_MAX_MESSAGE = 64 * 1024
"""The default maximum size of a message, in bytes."""

_LF = 10  # a number: ``b"\n" in data`` takes CPython ten times as long as ``10 in data`` (0.36 us against 0.03)
_CR = 13


class Decoder:
    """Turns the bytes of one connection into messages.

    ``limit``: the maximum size of a message, in bytes.
    ``pending``: the undecoded bytes of the message that has begun and not ended; empty between messages.
    ``error``: None, or the ``ProtocolError`` after which no more messages can be decoded.

    One of your own keeps three rules. ``pending`` is empty exactly between messages: ``message_timeout`` depends on it.
    Invalid bytes set ``error`` to a ``ProtocolError`` (or ``MessageTooLong``) and empty ``pending``. The messages
    before them are still returned, and from then on ``feed`` returns ``[]``.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pending = bytearray()
        self.error: Optional[ProtocolError] = None

    def feed(self, data: bytes) -> List[bytes]:
        """Take the bytes of one read, at least one. Return the messages that they complete, in order."""
        raise NotImplementedError

    def finish(self) -> bytes:
        """Return the undecoded bytes of the message that the end of the input cut off; b"" if there is none."""
        rest = bytes(self.pending)
        self.pending.clear()
        return rest


class Framing:
    """A way to mark where a message begins and ends. Subclass it for a framing of your own.

    ``max_message``: the maximum size of a message that arrives, in bytes (default: 64 KiB). ``max_sent``: the maximum
    size of a message to send; default: None, no limit for a server's replies, and ``max_message`` for what a ``Client``
    sends. Raises ``ValueError`` if one of them is below 1. A subclass may also set them as class attributes. It
    overrides ``encode`` and ``decoder``; the other methods use these.
    """

    name = ""
    """Its name in ``FRAMINGS``, which the command line offers; "" for one of your own, which a handler class brings."""

    keeps_boundaries = True
    """Whether the receiver gets the same messages that were sent, and not only the same bytes."""

    max_message = DEFAULT_MAX_MESSAGE
    max_sent: Optional[int] = None

    def __init__(self, max_message: Optional[int] = None, max_sent: Optional[int] = None) -> None:
        max_message = self.max_message if max_message is None else max_message
        max_sent = self.max_sent if max_sent is None else max_sent
        for name, limit in (("max_message", max_message), ("max_sent", max_sent)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is {limit}; a message is limited to at least 1 byte")
        self.max_message = max_message
        self.max_sent = max_sent

    def __repr__(self) -> str:
        sent = "" if self.max_sent is None else f", max_sent={self.max_sent}"
        return f"{type(self).__name__}(max_message={self.max_message}{sent})"

    def encode(self, message: bytes) -> bytes:
        """Return the bytes that carry ``message``. Raises ``MessageTooLong`` if it is longer than ``max_sent``."""
        raise NotImplementedError

    def encode_many(self, messages: Sequence[bytes]) -> bytes:
        """Return the bytes that carry some messages, at least one. Raises the errors of ``encode``."""
        return b"".join(map(self.encode, messages))

    def decoder(self) -> Decoder:
        """Return a new decoder for one connection."""
        raise NotImplementedError


class LineFraming(Framing):
    """A message is everything before a line feed (LF), including a carriage return.

    Keeping the carriage return means that a telnet user gets back every byte. ``encode`` raises ``ValueError`` if the
    message contains a line feed, because it would arrive as two messages.
    """

    name = "line"

    def encode(self, message: bytes) -> bytes:
        if self.max_sent is not None and len(message) > self.max_sent:
            raise MessageTooLong(self.max_sent)
        if _LF in message:
            raise ValueError("invalid message: it contains a line feed; send its lines one by one")
        return message + b"\n"

    def encode_many(self, messages: Sequence[bytes]) -> bytes:
        data = b"\n".join(messages) + b"\n"
        # Together they are short enough, and no message holds a line feed: three calls instead of one for each message.
        short = self.max_sent is None or len(data) <= self.max_sent
        if short and data.count(b"\n") == len(messages) and type(self).encode is _ENCODE_LINE:
            return data
        return super().encode_many(messages)

    def decoder(self) -> Decoder:
        return _LineDecoder(self.max_message)


_ENCODE_LINE = LineFraming.encode  # a subclass may have another


class _LineDecoder(Decoder):
    def feed(self, data: bytes) -> List[bytes]:
        if self.error is not None:
            return []
        size = len(data)
        pending = self.pending
        # A read that is exactly one line, as from an interactive client: no list to split into and no limit to check.
        if not pending and data[-1] == _LF and size <= self.limit:
            line = data[:-1]
            if _LF not in line:
                return [line]
        lines = data.split(b"\n")
        tail = lines.pop()
        may_be_long = len(pending) + size > self.limit  # if not, neither a line nor the rest is
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


class CRLFFraming(LineFraming):
    """A message is everything before a carriage return and a line feed (CR LF), or before a line feed alone.

    ``encode`` always adds CR LF. The limits count a message without its line end. Only the last carriage return belongs
    to the line end, so a message may contain others, and may end with one.
    """

    name = "crlf"

    def encode(self, message: bytes) -> bytes:
        return super().encode(message)[:-1] + b"\r\n"

    def decoder(self) -> Decoder:
        return _CRLFDecoder(self.max_message)


class _CRLFDecoder(_LineDecoder):
    """Passes its lines on as lines that end with LF. So a carriage return that ends a line counts for no limit."""

    def feed(self, data: bytes) -> List[bytes]:
        pending = self.pending
        if pending and pending[-1] == _CR:  # not passed on yet
            data = b"\r" + data
            pending.pop()
        data = data.replace(b"\r\n", b"\n")
        if data[-1] != _CR:
            return super().feed(data)
        # Not known yet whether it belongs to the message: it waits in ``pending`` for the byte after it.
        lines = super().feed(data[:-1]) if len(data) > 1 else []
        if self.error is None:
            pending += b"\r"
        return lines


class LengthFraming(Framing):
    """A message follows its length in bytes, which is a 32-bit big-endian number. A message may be empty."""

    name = "length"

    prefix = struct.Struct("!I")
    """How the length is written: one unsigned number. A subclass may have another, like ``struct.Struct("!H")``."""

    def __init__(self, max_message: Optional[int] = None, max_sent: Optional[int] = None) -> None:
        super().__init__(max_message, max_sent)
        self._longest = (1 << 8 * self.prefix.size) - 1
        all_ones = self.prefix.unpack(b"\xff" * self.prefix.size)
        if all_ones != (self._longest,):  # a signed number could be below 0
            raise ValueError(f"prefix is {self.prefix.format!r}; expected one unsigned number, such as '!H'")

    def encode(self, message: bytes) -> bytes:
        message = b"" + message  # some buffers count items of several bytes, and not their bytes
        if self.max_sent is not None and len(message) > self.max_sent:
            raise MessageTooLong(self.max_sent)
        try:
            return self.prefix.pack(len(message)) + message
        except struct.error:  # the prefix cannot count so many
            raise MessageTooLong(self._longest) from None

    def decoder(self) -> Decoder:
        return _LengthDecoder(self.max_message, self.prefix)


class _LengthDecoder(Decoder):
    def __init__(self, limit: int, prefix: struct.Struct) -> None:
        super().__init__(limit)
        self._prefix = prefix
        self._needed = prefix.size  # bytes that pending must hold before more can be decoded

    def feed(self, data: bytes) -> List[bytes]:
        messages: List[bytes] = []
        if self.error is not None:
            return messages
        pending = self.pending
        buffer: Union[bytes, bytearray] = data
        if pending:
            pending += data
            buffer = pending
        header = self._prefix.size
        size = len(buffer)
        start = 0
        while size - start >= self._needed:
            (length,) = self._prefix.unpack_from(buffer, start)
            if length > self.limit:
                self.error = MessageTooLong(self.limit)
                pending.clear()
                return messages
            end = start + header + length
            if end > size:
                self._needed = end - start
                break
            messages.append(bytes(buffer[start + header : end]))
            self._needed = header
            start = end
        if buffer is pending:
            del pending[:start]
        else:
            pending += data[start:]
        return messages


class RawFraming(Framing):
    """A message is whatever one read returns, as in the simplest socket programs and in RFC 862.

    TCP keeps no boundaries: a message may arrive in parts or together with others. Only the bytes and their order stay.
    More bytes than ``max_message`` that arrive are split into several messages, so that none is too long.
    """

    name = "raw"
    keeps_boundaries = False

    def encode(self, message: bytes) -> bytes:
        message = b"" + message  # raises TypeError for a str
        if self.max_sent is not None and len(message) > self.max_sent:
            raise MessageTooLong(self.max_sent)
        return message

    def decoder(self) -> Decoder:
        return _RawDecoder(self.max_message)


class _RawDecoder(Decoder):
    def feed(self, data: bytes) -> List[bytes]:
        limit = self.limit
        if len(data) <= limit:
            return [data]
        return [data[start : start + limit] for start in range(0, len(data), limit)]


FRAMINGS: Dict[str, Type[Framing]] = {cls.name: cls for cls in (LineFraming, CRLFFraming, LengthFraming, RawFraming)}
"""The framings by their names on the command line."""
