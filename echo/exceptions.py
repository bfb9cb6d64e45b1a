"""The exceptions of this package, as a tree.

::

    EchoError
    ├── ProtocolError                 the bytes break the framing
    │   ├── MessageTooLong            a message is longer than the framing allows
    │   └── IncompleteMessage         the input ended inside a message
    ├── EchoMismatch                  the reply is not the message that was sent
    ├── ConnectionClosed              (also ConnectionError) the connection is lost or closed
    ├── ReceiveTimeout                (also TimeoutError) nothing arrived in time
    ├── MessageTimeout                (also TimeoutError) a message began and did not end in time
    └── SendTimeout                   (also TimeoutError) the peer does not read

Each class has a ``reason``: the word for a session that ends with it, in ``connection_lost(reason)``, in the log and in
the statistics. This module knows no socket and no handler.
"""

from __future__ import annotations

import copyreg
from typing import Any, Callable, Optional

_FIELDS = ("errno", "strerror", "filename", "filename2")  # of an OSError


class EchoError(Exception):
    """The base class: ``except EchoError`` catches every error that this package raises about a connection.

    ``connection``: the ``Connection`` that failed, or None. A failure of a handler's own connection ends its session
    with that ``reason``. A failure of another connection that a hook uses is an error like any other.
    """

    reason = "error"
    """The word for a session that ends with this error."""
    _connection: Optional[Callable[[], object]] = None  # a weak reference: a connection may keep its error

    @property
    def connection(self) -> object:
        return None if self._connection is None else self._connection()

    def __reduce__(self) -> Any:
        """For ``pickle``: a pool of processes raises in the parent what a child has raised. The connection is left out,
        since it is that of one process. The constructor is not called: it may make the text of its arguments, and a
        ``multiprocessing.Pool`` would wait for ever if it failed."""
        state = {name: value for name in _FIELDS for value in [getattr(self, name, None)] if value is not None}
        state.update(vars(self), args=self.args)
        state.pop("_connection", None)
        return copyreg.__newobj__, (type(self), *self.args), state  # type: ignore[attr-defined]


class ProtocolError(EchoError):
    """The bytes received, or a message to be sent, break the framing."""


class MessageTooLong(ProtocolError):
    """A message is longer than ``limit`` bytes.

    Raised before such a message is sent. Raised for an arriving message as soon as its size is known: the rest of a
    long line, or the bytes after a large length prefix, are neither awaited nor stored (CVE-2013-1752, gh-119451).
    """

    reason = "too-long"

    def __init__(self, limit: int) -> None:
        super().__init__(f"a message is longer than the limit of {limit} bytes")
        self.limit = limit


class IncompleteMessage(ProtocolError):
    """The input ended inside a message. ``rest``: the undecoded bytes of that message that had arrived."""

    reason = "incomplete"

    def __init__(self, rest: bytes) -> None:
        super().__init__(f"the input ended inside a message, after {len(rest)} bytes of it")
        self.rest = rest


class ConnectionClosed(EchoError, ConnectionError):
    """The connection cannot be used any more: the peer or the network has ended it, or this side has closed it."""

    reason = "reset"


class ReceiveTimeout(EchoError, TimeoutError):
    """Nothing arrived in the allowed time. No byte is lost: call ``receive`` again to go on."""

    reason = "idle"


class MessageTimeout(EchoError, TimeoutError):
    """A message was not complete in the allowed time, from its first byte to its last. No byte is lost."""

    reason = "slow"


class SendTimeout(EchoError, TimeoutError):
    """The peer accepted no byte in the allowed time. How much it has of the last message is unknown."""

    reason = "slow"


class EchoMismatch(EchoError):
    """The reply is not the message that was sent. ``offset``: position of the first byte that differs, from 0.

    ``sent`` and ``received`` are the two messages or, in a long stream, the parts of it that begin at byte ``start``.
    """

    def __init__(self, sent: bytes, received: bytes, start: int = 0) -> None:
        shorter = min(len(sent), len(received))
        differing = (index for index, (a, b) in enumerate(zip(sent, received)) if a != b)
        self.sent = sent
        self.received = received
        self.offset = start + next(differing, shorter)
        super().__init__(f"what came back differs from what was sent, from byte {self.offset} on")
