"""What can go wrong, drawn as a tree.

::

    EchoError
    ├── ProtocolError                 what was read, or is to be sent, breaks the framing
    │   ├── MessageTooLong            over the framing's limit
    │   └── IncompleteMessage         the input ended inside a message
    ├── EchoMismatch                  what came back is not what was sent
    ├── ConnectionClosed              (also ConnectionError) the peer is gone
    ├── ReceiveTimeout                (also TimeoutError) nothing came, and no message was under way
    ├── MessageTimeout                (also TimeoutError) a message began and did not end in time
    └── SendTimeout                   (also TimeoutError) the peer does not read what is sent to it

Every class names the ``reason`` with which a session that meets it ends; the same word stands in
``connection_lost(reason)``, in the log and in the statistics. Nothing here knows sockets or handlers.
"""

from __future__ import annotations

from typing import Callable, Optional


class EchoError(Exception):
    """The root: ``except EchoError`` catches whatever this package raises about a connection.

    ``connection`` is the ``Connection`` that failed, or None. By it a handler tells a failure of its own connection,
    which ends the session with that ``reason``, from one of another connection that a hook uses, which is an error like
    any other.
    """

    reason = "error"
    """The word for the end of a session that meets it."""
    _connection: Optional[Callable[[], object]] = None  # a weak reference: a connection may keep its error

    @property
    def connection(self) -> object:
        return None if self._connection is None else self._connection()


class ProtocolError(EchoError):
    """The bytes do not make the messages that the framing promises."""


class MessageTooLong(ProtocolError):
    """A message is longer than ``limit`` bytes.

    Raised before such a message is sent, and as soon as it is known of one that arrives: neither a long
    line nor a large length prefix is waited for or stored (CVE-2013-1752, gh-119451).
    """

    reason = "too-long"

    def __init__(self, limit: int) -> None:
        super().__init__(f"a message is longer than the limit of {limit} bytes")
        self.limit = limit


class IncompleteMessage(ProtocolError):
    """The input ended inside a message. ``rest`` is what had come of it, as it came."""

    reason = "incomplete"

    def __init__(self, rest: bytes) -> None:
        super().__init__(f"the input ended inside a message, after {len(rest)} bytes of it")
        self.rest = rest


class ConnectionClosed(EchoError, ConnectionError):
    """The connection can carry nothing more: the peer has reset or left it, or this side has closed it."""

    reason = "reset"


class ReceiveTimeout(EchoError, TimeoutError):
    """Nothing arrived for as long as was allowed. No byte is lost: receiving again goes on."""

    reason = "idle"


class MessageTimeout(EchoError, TimeoutError):
    """A message was not complete in the time allowed from its first byte to its last."""

    reason = "slow"


class SendTimeout(EchoError, TimeoutError):
    """The peer took no byte for as long as was allowed; how much it has of the last message is unknown."""

    reason = "slow"


class EchoMismatch(EchoError):
    """What came back is not what was sent. ``offset`` is the first byte that differs, counted from 0.

    ``sent`` and ``received`` are the two, or in a long stream the parts of them that begin at byte ``start``.
    """

    def __init__(self, sent: bytes, received: bytes, start: int = 0) -> None:
        shorter = min(len(sent), len(received))
        differing = (index for index, (a, b) in enumerate(zip(sent, received)) if a != b)
        self.sent = sent
        self.received = received
        self.offset = start + next(differing, shorter)
        super().__init__(f"what came back differs from what was sent, from byte {self.offset} on")
