"""Replies in a stream of bytes that nothing delimits, as under raw framing.

Replies are as long as probes, and counting bytes would do if no byte were ever missing or too many. All replies after
such a place would look damaged. So a reply ends where the header of the next one begins, wherever that is.
"""

from __future__ import annotations

from typing import List, Optional

from .probes import HEADER, Ledger, Reply, Verdict


class ProbeStream:
    """Turns the bytes of one connection into replies to the probes of ``ledger``."""

    error = None  # any bytes will do

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pending = bytearray()

    def feed(self, data: bytes) -> List[Reply]:
        """Take the bytes of one read; return the replies that they complete."""
        ledger, pending = self._ledger, self._pending
        size, outstanding = ledger.size, ledger.outstanding
        if not pending and outstanding and outstanding[0].message == data:
            return [ledger.settle(data)]
        pending += data
        replies: List[Reply] = []
        start = 0
        while len(pending) - start >= size:
            message = bytes(pending[start : start + size])
            if (outstanding and outstanding[0].message == message) or ledger.is_probe(message):
                reply = ledger.settle(message)
            else:
                found = self._delimit(start, message)
                if found is None:
                    break
                reply = found
            replies.append(reply)
            start += len(reply.message)
        del pending[:start]
        return replies

    def finish(self) -> bytes:
        """Return the bytes of the reply that the end of the input cut off."""
        rest = bytes(self._pending)
        self._pending.clear()
        return rest

    def _delimit(self, start: int, message: bytes) -> Optional[Reply]:
        """Find the end of the bytes at ``start``, which are not a probe. Return None if that takes more bytes.

        ``message``: the first of them, as many as a probe has.
        """
        ledger, pending = self._ledger, self._pending
        size, whose = ledger.size, ledger.whose(message)
        end = self._next_header(start + 1)
        if end is None:
            awaits_more = any(probe.seq != whose for probe in ledger.outstanding)
            if whose is None:
                if any(self._ends_with_a_part_of(probe.message[:HEADER], start) for probe in ledger.outstanding):
                    return None
            elif awaits_more and len(pending) - start < 2 * size:
                return None
            end = start + size if whose is not None and awaits_more else len(pending)
        elif whose is not None and 2 * (end - start) > 3 * size:
            end = start + size  # between the two is another reply, whose header is damaged
        found = bytes(pending[start:end])
        if whose is None and ledger.number(found) is None and not self._may_answer(end):
            reply = Reply(Verdict.UNEXPECTED, found, None)  # a greeting or a notice
        else:
            reply = ledger.settle(found)
        if len(found) == size:
            return reply
        return reply._replace(shift=len(found) if reply.seq is None else len(found) - size)

    def _next_header(self, start: int) -> Optional[int]:
        """Return the first place, not before ``start``, where the header of a probe begins."""
        pending, ledger = self._pending, self._ledger
        tag_at = start + 8
        while True:
            tag_at = pending.find(ledger.tag, tag_at)
            if tag_at < 0:
                return None
            if ledger.number(bytes(pending[tag_at - 8 : tag_at + 4])) is not None:
                return tag_at - 8
            tag_at += 1

    def _ends_with_a_part_of(self, header: bytes, start: int) -> bool:
        longest = min(HEADER, len(self._pending) - start) - 1
        return any(self._pending.endswith(header[:length]) for length in range(longest, 0, -1))

    def _may_answer(self, end: int) -> bool:
        """Whether a probe is on its way that was sent before the one whose header is at ``end``."""
        outstanding = self._ledger.outstanding
        return bool(outstanding) and outstanding[0].seq != self._ledger.number(bytes(self._pending[end : end + HEADER]))
