"""``ThrottlingMixin``: a maximum rate of messages.

It knows its own session, and nothing of the server.
"""

from __future__ import annotations

import threading
import time
from typing import Optional

from ..handlers import MessageRequestHandler


class TokenBucket:
    """``rate`` tokens a second, of which at most ``burst`` are saved up. Taking more than that is a debt, paid in time.

    Raises ``ValueError`` unless the rate is above 0."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        if not rate > 0:
            raise ValueError(f"a rate, of messages or bytes, is {rate!r}; it is more than 0, or None for no limit")
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, tokens: float, now: float) -> float:
        """Take so many; return the seconds to wait until they are paid for, 0 if they are."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate) - tokens
        self._at = now
        return max(0.0, -self._tokens / self._rate)


class ThrottlingMixin(MessageRequestHandler):
    """Handle a client's messages no faster than a rate. Nothing is lost and nothing is rejected: the session reads more
    slowly, the system's buffers fill, and the sender has to wait (TCP's own backpressure).

    The queued replies go out before it waits. A stop of the server lifts the limit, so that the session can answer what
    has arrived before the deadline. Listed before ``LoggingMixin``, a message is logged when its turn has come; after
    it, when it has arrived.
    """

    messages_per_second: Optional[float] = None
    """Messages a second, more than 0. None (default): no limit."""

    bytes_per_second: Optional[float] = None
    """Bytes of messages a second, more than 0. None (default): no limit."""

    burst_seconds = 1.0
    """A client that was quiet may send at once what it may send in so many seconds."""

    def setup(self) -> None:
        now = time.monotonic()
        self.__buckets = [
            None if rate is None else TokenBucket(rate, rate * self.burst_seconds, now)
            for rate in (self.messages_per_second, self.bytes_per_second)
        ]
        self.__lifted = threading.Event()
        super().setup()

    def dispatch_message(self, message: bytes) -> None:
        now = time.monotonic()
        pause = 0.0
        for bucket, cost in zip(self.__buckets, (1, len(message))):
            if bucket is not None:
                pause = max(pause, bucket.take(cost, now))
        if pause and not self.__lifted.is_set():
            self.flush()
            self.__lifted.wait(min(pause, threading.TIMEOUT_MAX))
        super().dispatch_message(message)

    # The limit is lifted last: a session that wakes before it is closing would handle more than one message.

    def close(self) -> None:
        super().close()
        self.__lifted.set()

    def abort(self) -> None:
        super().abort()
        self.__lifted.set()

    def drain(self) -> None:
        self.__lifted.set()
        super().drain()
