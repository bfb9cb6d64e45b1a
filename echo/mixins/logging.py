"""``LoggingMixin``: a session in the log.

It sees its own session through the hooks, and nothing of the server. Where records go is not known here.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Dict, Optional

from ..handlers import MessageRequestHandler
from ..text import escape, plural
from ..transport.tls import TLSSocket
from .records import emit


class LoggingMixin(MessageRequestHandler):
    """Log each session's start and end, and each message, with the client's address.

    What the peer sent is escaped and shortened. Each record carries its figures as attributes too, for formatters
    other than ours: ``event`` (``connected``, ``received``, ``sent``, ``disconnected``), ``peer`` and ``session``; a
    message's ``size`` in bytes and ``text``; at the end ``reason``, ``messages_in``, ``messages_out``, ``bytes_in``,
    ``bytes_out`` and ``duration_s``. Where they are known, the first record has ``via``, the proxy, and ``tls`` and
    ``subject``, the version and the client's certificate.

    A proxy that connects for itself, to see whether the server lives, is logged at DEBUG as long as it sends nothing.

    Listed first, it logs what the client sees: what a mixin to its right holds back or changes in ``send`` is logged
    as the handler sent it.
    """

    log = logging.getLogger("echo.session")

    session_level = logging.INFO
    """The level of the records of a session's start and end."""

    message_level: Optional[int] = logging.INFO
    """The level of the records of messages; None logs none."""

    shown_bytes = 80
    """How much of a message is shown, in bytes."""

    def setup(self) -> None:
        self._began = time.monotonic()
        super().setup()
        self._session_level = logging.DEBUG if self.unnamed else self.session_level

    def connection_made(self) -> None:
        fields: Dict[str, Any] = {}
        how = []
        if self.via is not None and not self.unnamed:
            fields["via"] = self.via
            how.append(f" via {self.via}")
        if isinstance(self.request, TLSSocket):
            fields.update(tls=self.request.version(), subject=self.request.subject)
            how += [f" {text[:200]}" for text in (self.request.version(), self.request.subject) if text]
        self._log(self._session_level, "connected", "connected" + ",".join(how), **fields)
        super().connection_made()

    def message_received(self, message: bytes) -> None:
        self._log_message("received", message)
        super().message_received(message)

    def send(self, message: bytes) -> None:
        super().send(message)
        self._log_message("sent", message)

    def eof_received(self, rest: bytes) -> None:
        if rest:
            self._log_message("received", rest, " without an end")
        super().eof_received(rest)

    def connection_lost(self, reason: str) -> None:
        try:
            super().connection_lost(reason)
        finally:
            connection = self.connection
            duration = time.monotonic() - self._began
            self._log(
                self.session_level if connection.bytes_in else self._session_level,
                "disconnected",
                f"disconnected: {reason}; {connection.messages_in} in ({connection.bytes_in} B),"
                f" {connection.messages_out} out ({connection.bytes_out} B), {duration:.3f} s",
                reason=reason,
                messages_in=connection.messages_in,
                messages_out=connection.messages_out,
                bytes_in=connection.bytes_in,
                bytes_out=connection.bytes_out,
                duration_s=round(duration, 6),
            )

    def _log_message(self, event: str, message: bytes, how: str = "") -> None:
        level = self.message_level
        if level is not None and self.log.isEnabledFor(level):
            size = len(message)
            text = escape(message, self.shown_bytes)
            line = f"{self.peer} {event} {plural(size, 'byte')}{how}: {text}"
            fields = {"event": event, "peer": self.peer, "session": self.session, "size": size, "text": text}
            self._emit_record(level, line, fields)

    def _log(self, level: int, event: str, line: str, **fields: Any) -> None:
        if self.log.isEnabledFor(level):
            fields.update(event=event, peer=self.peer, session=self.session)
            self._emit_record(level, f"{self.peer} {line}", fields)

    def _emit_record(self, level: int, line: str, fields: Dict[str, Any]) -> None:
        """Log ``line`` with ``fields`` as the record's attributes. ``log`` is enabled for this level."""
        emit(self.log, level, line, fields)
