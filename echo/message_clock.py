"""How long a read may wait for a peer. It never reads the socket; it only sets its receive timeout.

It works like a player's clock in chess: a peer's time for a message runs only while the owner of the connection waits
for that peer. The time that the owner spends between two reads does not count.

=================  ==========================  ===================  ===========================================
state              ``left``                    a read may wait      when the time is over
=================  ==========================  ===================  ===========================================
between messages   None                        ``idle_timeout``     ``ReceiveTimeout``
inside a message   seconds; at its first byte  ``left``             ``MessageTimeout``; the message gets its
                   ``message_timeout``                              whole time again
=================  ==========================  ===================  ===========================================

Without a ``message_timeout`` the clock stays between messages: each read may wait ``idle_timeout``.

A deadline for each read alone would not do: a peer that sends one byte at a time renews it for ever (bpo-26005).
"""

from __future__ import annotations

import socket
import time
from typing import Callable, Optional

from .exceptions import EchoError, MessageTimeout, ReceiveTimeout
from .sockets import set_receive_timeout


class MessageClock:
    """Measure a peer's time, and set the timeout of the socket whenever the next read may wait for another time.

    ``idle_timeout`` and ``message_timeout``: maximum times in seconds; None: no limit.
    ``clock``: returns seconds; default: ``time.monotonic``.

    A read that ends between two messages needs no call. If all reads are like that, the clock costs nothing.
    """

    __slots__ = ("_allowed", "_clock", "_counted", "_sock", "idle_timeout", "left", "message_timeout")

    set_timeout = staticmethod(set_receive_timeout)
    """Called with the socket and the new timeout; each call is a system call."""

    def __init__(
        self,
        sock: socket.socket,
        idle_timeout: Optional[float],
        message_timeout: Optional[float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.idle_timeout = idle_timeout
        self.message_timeout = message_timeout
        self.left: Optional[float] = None
        """Seconds that the peer still has for the message that has begun; None between messages."""
        self._counted: float  # the moment up to which ``left`` has been counted down
        self._clock = clock
        self._sock = sock
        self._allowed = idle_timeout  # the timeout that the socket has
        if idle_timeout is not None:
            self.set_timeout(sock, idle_timeout)

    def resume(self) -> None:
        """Let the time run on: the owner waits again for the rest of a message (``left`` is not None)."""
        self._counted = self._clock()

    def part_arrived(self, begins: bool) -> bool:
        """A read ended inside a message. Return False if the time of that message is over.

        ``begins``: the same read completed another message, so that this one has begun with it.
        """
        if self.message_timeout is None:
            return True
        now = self._clock()
        if begins or self.left is None:
            self.left = self.message_timeout
        else:
            self.left -= now - self._counted
            if self.left <= 0:
                return False
        self._counted = now
        self._allow(self.left)
        return True

    def message_ended(self) -> None:
        """A read ended the message that had begun, and no other has begun."""
        self.left = None
        self._allow(self.idle_timeout)

    def change_idle_timeout(self, seconds: Optional[float]) -> None:
        """Change ``idle_timeout``, from the next read on."""
        self.idle_timeout = seconds
        if self.left is None:
            self._allow(seconds)

    def change_message_timeout(self, seconds: Optional[float], inside: bool) -> None:
        """Change ``message_timeout``. ``inside``: a message has begun. It gets the whole new time; None: no limit."""
        self.message_timeout = seconds
        if inside:
            self.left = seconds
            self._allow(self.idle_timeout if seconds is None else seconds)

    def timed_out(self) -> EchoError:
        """Return the error for a read that timed out. A message that has begun gets its whole time again."""
        if self.left is None:
            # None: the program has given the socket a timeout of its own.
            within = "in time" if self.idle_timeout is None else f"for {self.idle_timeout:g} s"
            return ReceiveTimeout(f"nothing arrived {within}")
        self.left = self.message_timeout
        self._allow(self.left)
        return MessageTimeout(f"a message was not complete after {self.message_timeout:g} s")

    def _allow(self, seconds: Optional[float]) -> None:
        if seconds != self._allowed:
            self.set_timeout(self._sock, seconds)
            self._allowed = seconds
