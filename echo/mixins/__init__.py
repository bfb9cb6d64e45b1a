"""Policies to add to any handler. List them before it:
``class Chat(echo.LoggingMixin, echo.ThrottlingMixin, ChatHandler)``.

A mixin derives from ``MessageRequestHandler`` and overrides steps, which call ``super()``; the hooks are the handler's.
The docstring of ``MessageRequestHandler`` is the whole contract, with a drawing of the order.

A last line without its end is echoed as bytes, without ``send``: no step of a mixin sees that reply.
"""

from .faults import FaultMixin
from .logging import LoggingMixin
from .throttling import ThrottlingMixin
from .transcript import TranscriptMixin

__all__ = ["FaultMixin", "LoggingMixin", "ThrottlingMixin", "TranscriptMixin"]
