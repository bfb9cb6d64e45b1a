"""A lane: one connection that carries probes and never blocks.

It is non-blocking, unlike ``Connection``, since a client that measures must send on time even while replies are due.
Its owner waits, for many lanes or for one lane and a clock.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import socket
from typing import Callable, Deque, List, Optional, Set, Tuple, Union

from ..exceptions import ConnectionClosed, IncompleteMessage
from ..framing import Decoder, Framing
from .clock import CLOCK
from .probes import Ledger, Probe, Reply
from .stream import ProbeStream

READ_SIZE = 64 * 1024


class Lane:
    """Takes over ``sock``, which is connected, and sends the probes of ``ledger`` in ``framing``. ``now`` is a clock in
    nanoseconds.

    A probe's ``sent_at`` is when the system takes its first byte. Before that it waits here, in the order of the
    probes.
    """

    def __init__(
        self, sock: socket.socket, framing: Framing, ledger: Ledger, now: Callable[[], int] = CLOCK.now
    ) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.ledger = ledger
        self._encode = framing.encode
        self._decoder: Union[Decoder, ProbeStream]
        self._replies: Callable[[bytes], List[Reply]]
        if framing.keeps_boundaries or not ledger.checks:
            self._decoder = decoder = framing.decoder()
            self._replies = functools.partial(_settle_all, ledger.settle, decoder.feed)
        else:
            self._decoder = stream = ProbeStream(ledger)
            self._replies = stream.feed
        self._recv = sock.recv
        self._now = now
        self._unsent = bytearray()
        self._flushed = 0  # bytes that have left _unsent
        self._waiting: Deque[Tuple[int, Probe]] = collections.deque()  # with where each begins, counted as _flushed is
        self._failure: Optional[OSError] = None  # the error of a send, which the system does not report again to a read
        self._is_broken = False  # a send has failed, and a read reports why

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def is_behind(self) -> bool:
        """Whether sent bytes wait for room in the system. Call ``flush`` when the socket is writable."""
        return bool(self._unsent) and not self._is_broken

    def never_sent(self) -> Set[int]:
        """Return the numbers of the probes of which the system has taken no byte."""
        return {probe.seq for _, probe in self._waiting}

    def send(self, due_at: int) -> Probe:
        """Send the next probe. It does not raise if the peer is gone; ``receive`` does."""
        probe = self.ledger.issue(due_at, 0)
        data = self._encode(probe.message)
        probe.sent_at = self._now()
        if self._unsent:
            self._wait(probe, data)
            self.flush()
            return probe
        taken = self._write(data)
        if not taken:
            self._wait(probe, data)
        elif taken < len(data):
            self._unsent += data[taken:]
        return probe

    def flush(self) -> None:
        """Send the bytes that wait."""
        if self._is_broken:
            return
        now = self._now()
        taken = self._write(self._unsent)
        del self._unsent[:taken]  # moves no bytes: a bytearray only notes where it begins
        self._flushed += taken
        while self._waiting and self._waiting[0][0] < self._flushed:
            self._waiting.popleft()[1].sent_at = now

    def _wait(self, probe: Probe, data: bytes) -> None:
        self._waiting.append((self._flushed + len(self._unsent), probe))
        self._unsent += data

    def _write(self, data: Union[bytes, bytearray]) -> int:
        """Return how many bytes the system has taken."""
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            pass  # the peer is gone, and the next read gets the error
        except OSError as exc:
            self._failure = exc
        self._is_broken = True
        return 0

    def receive(self) -> List[Reply]:
        """Read once; return the replies. Raises ``ConnectionClosed``, ``IncompleteMessage`` or ``MessageTooLong``."""
        decoder = self._decoder
        if decoder.error is not None:
            raise decoder.error
        try:
            data = self._recv(READ_SIZE)
        except BlockingIOError:
            return []
        except OSError as exc:
            self._failure = exc
            data = b""
        if not data and self._failure is not None:
            why = self._failure.strerror or self._failure
            raise ConnectionClosed(f"the connection was lost: {why}") from self._failure
        if not data:
            rest = decoder.finish()
            if rest:
                raise IncompleteMessage(rest)
            raise ConnectionClosed("the server has ended the session")
        replies = self._replies(data)
        if decoder.error is not None:
            if not replies:
                raise decoder.error
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RD)  # readable at once, so that the next call raises the error
        return replies

    def close(self) -> None:
        self.socket.close()


def _settle_all(settle: Callable[[bytes], Reply], feed: Callable[[bytes], List[bytes]], data: bytes) -> List[Reply]:
    return [settle(message) for message in feed(data)]
