"""``FaultMixin``: a server that misbehaves on purpose, to test clients with.

It knows its own session, and nothing of the server.
"""

from __future__ import annotations

import random
import time
from typing import Any, Optional

from ..handlers import MessageRequestHandler
from .wrapper import SocketWrapper


class FaultMixin(MessageRequestHandler):
    """Delay, cut, corrupt and reset what the server sends, as bad networks and servers do. By default all is off.

    The same ``seed`` has the same effect on the same replies of the same session number, so that a run can be repeated.
    Mixins to its left do not see the faults. ``delay``, ``chunk`` and ``corrupt_every`` are read when a session begins.
    """

    delay = 0.0
    """The maximum delay before each send, in seconds; each time a random part of it."""

    chunk: Optional[int] = None
    """The maximum of bytes to send at a time, 1 or more; each time a random part of it. None: all at once."""

    corrupt_every: Optional[int] = None
    """One random bit is flipped in each block of so many bytes, 1 or more. None: none."""

    reset_after: Optional[int] = None
    """Reset the connection after so many answered messages. None: never."""

    seed: Any = 0
    """The seed of the random numbers of all sessions."""

    def stream(self) -> Any:
        self.__wire = _FaultySocket(super().stream(), self)
        return self.__wire

    def setup(self) -> None:
        super().setup()
        self.__answered = 0
        self.__wire.seed(f"{self.seed}/{self.session}")

    def dispatch_message(self, message: bytes) -> None:
        super().dispatch_message(message)
        self.__answered += 1
        if self.__answered == self.reset_after:
            self.flush()
            self.abort()


class _FaultySocket(SocketWrapper):
    def __init__(self, sock: Any, faults: FaultMixin) -> None:
        super().__init__(sock)
        for name in ("chunk", "corrupt_every"):
            value = getattr(faults, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value!r}; it is 1 byte or more, or None for off")
        if faults.delay < 0:
            raise ValueError(f"delay is {faults.delay!r}; it is 0 s or more")
        self._delay = faults.delay
        self._chunk = faults.chunk
        self._every = faults.corrupt_every
        self._sent = 0

    def seed(self, seed: str) -> None:
        # A generator for each fault, so that setting one does not change the others.
        self._timing, self._cutting, self._flipping = (random.Random(f"{seed}/{use}") for use in range(3))
        self._run = 0
        if self._every is not None:
            self._victim = self._flipping.randrange(self._every)

    def sendall(self, data: bytes) -> None:
        data = self._corrupted(data)
        while data:
            size = len(data) if self._chunk is None else self._cutting.randint(1, self._chunk)
            if self._delay:
                time.sleep(self._timing.uniform(0, self._delay))
            super().sendall(data[:size])
            data = data[size:]

    def _corrupted(self, data: bytes) -> bytes:
        every = self._every
        if every is None:
            return data
        changed = bytearray(data)
        end = self._sent + len(data)
        while self._victim < end:
            changed[self._victim - self._sent] ^= 1 << self._flipping.randrange(8)
            self._run += 1
            self._victim = self._run * every + self._flipping.randrange(every)
        self._sent = end
        return bytes(changed)
