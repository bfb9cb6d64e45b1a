"""Policies to put on a handler. Each derives from ``MessageRequestHandler``, calls ``super()`` in every hook, and is
listed before the handler: ``class Chat(echo.LoggingMixin, echo.ThrottlingMixin, ChatHandler)``.

The leftmost is the outermost: it is the first to see a message that arrives and one that is sent, and its ``stream()``
lies closest to the connection, farthest from the network. A mixin that forgets ``super()`` hides those to its right,
and the handler. The echo of a last line without its end goes out as bytes, past every ``send``. (A mixin that derives
from plain ``object`` and is listed after the handler would be dropped in silence.)
"""

from .faults import FaultMixin
from .logging import LoggingMixin
from .throttling import ThrottlingMixin
from .transcript import TranscriptMixin

__all__ = ["FaultMixin", "LoggingMixin", "ThrottlingMixin", "TranscriptMixin"]
