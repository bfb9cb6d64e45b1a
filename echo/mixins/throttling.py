"""``ThrottlingMixin``: how fast a client may talk.

It sees its own session through the hooks, and nothing of the server.
"""

from __future__ import annotations

import threading
import time
from typing import Optional

from ..handlers import MessageRequestHandler


class TokenBucket:
    """``rate`` tokens a second, of which ``burst`` can be saved up. What is taken beyond that is a debt of time.

    ``ValueError`` for a rate that is not above 0."""

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
    """Handle a client's messages no faster than a rate. Nothing is lost and nothing is refused: the session reads more
    slowly, the system's buffers fill, and the sender feels it (TCP's own backpressure).

    The replies so far go out before it waits. A stop of the server lifts the limit, so that the session can answer what
    has arrived before the deadline. Listed before ``LoggingMixin``, a message is logged when its turn has come; after
    it, when it has arrived.
    """

    messages_per_second: Optional[float] = None
    """Messages a second, more than 0; None: no limit."""

    bytes_per_second: Optional[float] = None
    """Bytes of messages a second, more than 0; None: no limit."""

    burst_seconds = 1.0
    """How many seconds' worth a client that was quiet may send at once."""

    def setup(self) -> None:
        now = time.monotonic()
        self._buckets = [
            None if rate is None else TokenBucket(rate, rate * self.burst_seconds, now)
            for rate in (self.messages_per_second, self.bytes_per_second)
        ]
        self._lifted = threading.Event()
        super().setup()

    def message_received(self, message: bytes) -> None:
        now = time.monotonic()
        costs = zip(self._buckets, (1, len(message)))
        pause = max((bucket.take(cost, now) for bucket, cost in costs if bucket is not None), default=0.0)
        if pause and not self._lifted.is_set():
            self.flush()
            self._lifted.wait(pause)
        super().message_received(message)

    def close(self) -> None:
        self._lifted.set()
        super().close()

    def abort(self) -> None:
        self._lifted.set()
        super().abort()

    def drain(self) -> None:
        self._lifted.set()
        super().drain()
