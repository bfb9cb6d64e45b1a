"""Probes: numbered messages with a checksum, and the verdict on each reply.

This module knows neither sockets nor clocks; the sender passes the times in. The layout of a probe, which is printable
so that a server's log stays readable::

    8 hexadecimal digits    its number
    4 hexadecimal digits    the tag of its connection
    8 hexadecimal digits    CRC-32 of all the rest
    then padding            the ring of printable characters of RFC 864, beginning at another one for each number

The number shows a reply that is late, doubled or out of order, the tag one that belongs to another connection, and
the checksum one that was damaged on the way.
"""

from __future__ import annotations

import collections
import enum
from binascii import crc32
from typing import Deque, List, NamedTuple, Optional, Set

HEADER = 12
"""Size of a probe's number and tag in bytes."""

MIN_SIZE = 20
"""Minimum size of a probe in bytes: its number, its tag and its checksum."""

CLOSED_DEPTH = 1
OPEN_DEPTH = 1000
"""Default for the maximum number of probes on their way in one connection, in a closed and in an open loop. An open
loop wants no limit; it has one so that a server which does not answer costs bounded memory."""

_RING = bytes(range(32, 127))
_CHECKSUM = slice(12, 20)
_COMPARED = 100  # bytes that are compared: enough to distinguish two probes
_REMEMBERED = 10_000  # lost probes whose numbers are remembered, in each connection: they take 1 MB


class Verdict(enum.Enum):
    """The verdict on a reply."""

    RIGHT = "right"
    REORDERED = "out of order"  # right, but a later one came first (RFC 4737)
    CORRUPTED = "corrupted"
    DOUBLED = "doubled"
    LATE = "late"  # it arrived after its probe was counted as lost
    FOREIGN = "another connection's"
    UNEXPECTED = "not asked for"

    @property
    def field(self) -> str:
        """The same as the name of a field in JSON: ``out_of_order``."""
        return self.value.replace(" ", "_").replace("'", "")


class Probe:
    """A message: its number, its bytes, and in nanoseconds when it was due and when it was sent.

    While the system has no room for its first byte, ``sent_at`` is when it was issued.
    """

    __slots__ = ("due_at", "message", "sent_at", "seq")

    def __init__(self, seq: int, message: bytes, due_at: int, sent_at: int) -> None:
        self.seq = seq
        self.message = message
        self.due_at = due_at
        self.sent_at = sent_at


class Reply(NamedTuple):
    """A message that came back, the verdict on it, and the probe that it answers, if there is one.

    ``shift``: in a stream without boundaries, by how many bytes this moves all that follows; negative if bytes are
    missing.
    """

    verdict: Verdict
    message: bytes
    probe: Optional[Probe]
    seq: Optional[int] = None
    shift: int = 0


class Ledger:
    """The probes of one connection: those on their way, and the verdict on each reply.

    ``size``: bytes in each probe, at least ``MIN_SIZE``. ``tag``: 0 to 65535; the attribute is its text in each probe.
    ``first``: the number of the first probe. ``next``: that of the next one. ``counts_from``: that of the first one
    that counts, for the owner. ``highest``: that of the latest one that has come back; -1 before that.

    Each probe is on its way from ``issue`` until it leaves ``outstanding``, exactly once: ``settle`` returns it with
    its reply, or ``give_up`` returns it, or the owner finds it there when the connection has ended.
    """

    checks = True
    """Whether replies are compared with the probes."""

    def __init__(self, size: int, tag: int, first: int = 1) -> None:
        self.outstanding: Deque[Probe] = collections.deque()
        self.size = size
        self.tag = b"%04x" % tag
        self.next = first
        self.counts_from = first
        self.highest = -1
        self._lost: Set[int] = set()
        self._lost_in_order: Deque[int] = collections.deque()
        self._forgotten = -1  # highest lost number that is no longer remembered
        self._padding = _RING * (size // len(_RING) + 2)

    def issue(self, due_at: int, sent_at: int) -> Probe:
        """Return the next probe, which is on its way from now on."""
        seq = self.next
        self.next += 1
        probe = Probe(seq, self._compose(seq), due_at, sent_at)
        self.outstanding.append(probe)
        return probe

    def _compose(self, seq: int) -> bytes:
        start = seq % len(_RING)
        head = b"%08x%b" % (seq & 0xFFFFFFFF, self.tag)
        padding = self._padding[start : start + self.size - MIN_SIZE]
        return b"%b%08x%b" % (head, crc32(padding, crc32(head)), padding)

    def settle(self, message: bytes) -> Reply:
        """Return the verdict on a message that came back. The probe that it answers is no longer on its way."""
        outstanding = self.outstanding
        if outstanding and outstanding[0].message == message:
            return self._answered(outstanding.popleft(), message)
        seq = _identify(message)
        if seq is None:
            return self._damaged(message)
        if message[8:12] != self.tag:
            return Reply(Verdict.FOREIGN, message, None)
        for probe in outstanding:
            if probe.message == message:
                outstanding.remove(probe)
                return self._answered(probe, message)
        return self._unawaited(seq, message)

    def _unawaited(self, seq: int, message: bytes) -> Reply:
        """The verdict on a reply to a probe that is not on its way."""
        if seq in self._lost or seq <= self._forgotten:  # a forgotten one is much more often late than doubled
            self._lost.discard(seq)
            return Reply(Verdict.LATE, message, None, seq)
        return Reply(Verdict.DOUBLED if seq < self.next else Verdict.UNEXPECTED, message, None, seq)

    def give_up(self, sent_before: int) -> List[Probe]:
        """Count the probes that were sent before this time as lost, and return them."""
        lost = []
        while self.outstanding and self.outstanding[0].sent_at < sent_before:
            lost.append(self.outstanding.popleft())
            self._remember(lost[-1].seq)
        return lost

    def _remember(self, seq: int) -> None:
        self._lost.add(seq)
        self._lost_in_order.append(seq)
        if len(self._lost_in_order) > _REMEMBERED:
            oldest = self._lost_in_order.popleft()
            if oldest in self._lost:
                self._lost.discard(oldest)
                self._forgotten = oldest

    def _answered(self, probe: Probe, message: bytes) -> Reply:
        if probe.seq > self.highest:
            self.highest = probe.seq
            return Reply(Verdict.RIGHT, message, probe, probe.seq)
        return Reply(Verdict.REORDERED, message, probe, probe.seq)

    def _damaged(self, message: bytes) -> Reply:
        seq = self.whose(message)
        if seq is None:
            return Reply(Verdict.UNEXPECTED, message, None)  # a greeting or a notice
        for probe in self.outstanding:
            if probe.seq == seq:
                self.outstanding.remove(probe)
                return Reply(Verdict.CORRUPTED, message, probe, seq)
        return self._unawaited(seq, message)

    def is_probe(self, message: bytes) -> bool:
        """Whether it is an undamaged probe, of any connection."""
        return _identify(message) is not None

    def whose(self, message: bytes) -> Optional[int]:
        """Return the number of the probe that a damaged reply answers: the one whose number it has, or the one that it
        resembles. None: it resembles none."""
        outstanding = self.outstanding
        seq = self.number(message)
        if seq is not None and _differences(self._compose(seq), message) <= 1:
            return seq  # no need to compare all that are on their way
        if not outstanding:
            return seq
        probe = min(outstanding, key=lambda each: _differences(each.message, message))
        differences = _differences(probe.message, message)
        if seq is not None and differences > 1:
            return seq  # and not the number of another probe, which a single change would have to make of its own
        compared = min(len(probe.message), len(message), _COMPARED)
        return probe.seq if 2 * differences <= compared else None

    def number(self, message: bytes) -> Optional[int]:
        """Return the number that a message begins with, if a probe of this connection has had it."""
        try:
            seq = int(message[:8], 16)
        except ValueError:
            return None
        return seq if message[:HEADER] == b"%08x%b" % (seq, self.tag) and seq < self.next else None


class UncheckedLedger(Ledger):
    """A ledger for services that do not echo: any reply counts for the oldest probe on its way."""

    checks = False

    def settle(self, message: bytes) -> Reply:
        if not self.outstanding:
            return Reply(Verdict.UNEXPECTED, message, None)
        return self._answered(self.outstanding.popleft(), message)


def _differences(sent: bytes, received: bytes) -> int:
    """How many bytes differ. If ``received`` is shorter or longer, bytes may be missing or be too many at one place."""
    differ = [a != b for a, b in zip(sent[:_COMPARED], received[:_COMPARED])]
    missing = len(sent) - len(received)
    if not missing or not any(differ):
        return sum(differ)
    place = differ.index(True)
    ours = sent[place + max(0, missing) :][:_COMPARED]
    theirs = received[place + max(0, -missing) :][:_COMPARED]
    return min(sum(differ), sum(a != b for a, b in zip(ours, theirs)))


def _identify(message: bytes) -> Optional[int]:
    """The number of a probe; None if its checksum is wrong."""
    try:
        head = message[: _CHECKSUM.start]
        # Compared as text: another spelling of the same number, such as upper case, is damage too.
        if message[_CHECKSUM] != b"%08x" % crc32(message[_CHECKSUM.stop :], crc32(head)):
            return None
        return int(head[:8], 16)
    except ValueError:
        return None
