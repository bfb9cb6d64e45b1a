"""``LoggingMixin``: a session in the log; and ``SessionLoggingMixin``, the part of it that logs no messages.

They know their own session, and nothing of the server. Where records go is not known here.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any, Dict, Optional

from ..handlers import MessageRequestHandler
from ..text import escape, plural, printable
from ..transport.tls import TLSSocket
from .records import emit


class SessionLoggingMixin(MessageRequestHandler):
    """Log each session's start and end, with the client's address.

    Each record carries its figures as attributes too, for any formatter: ``event`` (``connected``, ``disconnected``),
    ``peer`` and ``session``; at the end ``reason``, ``messages_in``, ``messages_out``, ``bytes_in``, ``bytes_out`` and
    ``duration_s``. Where they are known, the first record has ``via``, the proxy, and ``tls`` and ``subject``, the
    version and the client's certificate.

    A proxy's own connection, such as a health check, is logged at DEBUG as long as it sends nothing.
    """

    log = logging.getLogger("echo.session")
    """The logger, or a ``LoggerAdapter``. It is looked up when a session begins."""

    _echo_log: Any = None  # the command sets it: a handler of its own may use the name log for something else

    session_level = logging.INFO
    """The level of the records of a session's start and end."""

    def setup(self) -> None:
        self.__began = time.monotonic()
        is_given = self._echo_log is not None
        if not is_given:
            with contextlib.suppress(Exception):  # a property of what setup() makes
                self._echo_log = self.log  # already: a mixin's setup() may send
        super().setup()
        if not is_given:
            self._echo_log = self.log  # setup() may have chosen another one
        self.__level = logging.DEBUG if self.unnamed else self.session_level

    def dispatch_made(self) -> None:
        level = self.__level
        if self._echo_log.isEnabledFor(level):
            self.__log_begin(level)
        super().dispatch_made()

    def dispatch_lost(self, reason: str) -> None:
        try:
            super().dispatch_lost(reason)
        finally:
            level = self.session_level if self.connection.bytes_in else self.__level
            if self._echo_log.isEnabledFor(level):
                self._echo_unless_lost(self.connection.flush)  # what connection_lost has sent, so that it counts
                self.__log_end(level, reason)

    def __log_begin(self, level: int) -> None:
        fields: Dict[str, Any] = {}
        details = []
        if self.via is not None and not self.unnamed:
            fields["via"] = self.via
            details.append(f" via {self.via}")
        if isinstance(self.request, TLSSocket):
            version = self.request.version()  # none before its handshake, in a handler that the server did not make
            fields.update(tls=version, subject=version and self.request.subject)
            details += [f" {printable(text, 200)}" for text in (version, fields["subject"]) if text]
        fields.update(event="connected", peer=self.peer, session=self.session)
        self._echo_emit(level, f"{self.peer} connected{','.join(details)}", fields)

    def __log_end(self, level: int, reason: str) -> None:
        connection = self.connection
        duration = time.monotonic() - self.__began
        reason = printable(reason)  # that of an exception class of the handler's own
        # The one message that has no reply, unless the handler has changed what an exit is.
        ends = reason == "exit" and connection.messages_in == connection.messages_out + 1
        exits = " (1 exit)" if ends and getattr(self, "exit_word", None) is not None else ""
        line = (
            f"{self.peer} disconnected: {reason}; {connection.messages_in} in{exits}, {connection.messages_out} out;"
            f" {connection.bytes_in} B read, {connection.bytes_out} B written; {duration:.3f} s"
        )
        fields = {
            "reason": reason,
            "messages_in": connection.messages_in,
            "messages_out": connection.messages_out,
            "bytes_in": connection.bytes_in,
            "bytes_out": connection.bytes_out,
            "duration_s": round(duration, 6),
            "event": "disconnected",
            "peer": self.peer,
            "session": self.session,
        }
        self._echo_emit(level, line, fields)

    def _echo_emit(self, level: int, line: str, fields: Dict[str, Any]) -> None:
        """Log ``line`` with ``fields`` as the record's attributes. ``log`` is enabled for this level."""
        emit(self._echo_log, level, line, fields)


class LoggingMixin(SessionLoggingMixin):
    """Log each session's start and end, and each message, with the client's address.

    The peer's bytes are escaped and shortened. The records of messages have the attributes ``event`` (``received``,
    ``sent``), ``peer``, ``session``, ``size`` in bytes and ``text``; the others are ``SessionLoggingMixin``'s.

    Listed first, it logs the session as the client sees it, except for ``send``: a message that a mixin to its right
    holds back or changes is logged as the handler sent it.
    """

    message_level: Optional[int] = logging.INFO
    """The level of the records of messages. None: log none. A session that begins without messages in the log goes past
    these steps to its end."""

    shown_bytes = 80
    """The maximum number of a message's bytes that are shown."""

    __begun = False

    def dispatch_made(self) -> None:
        self.__begun = True
        super().dispatch_made()
        if self.message_level is None:
            for step in ("dispatch_message", "send"):
                # The session calls the next step instead. (Inside the step of another mixin this one is still
                # called, and logs nothing.)
                if getattr(type(self), step) is getattr(LoggingMixin, step):
                    vars(self).setdefault(step, getattr(super(), step))

    def finish(self) -> None:
        super().finish()
        for step in ("dispatch_message", "send"):
            vars(self).pop(step, None)  # it refers to self: only the garbage collector would free the session

    # Each step asks for itself whether it logs: a call less where it does not.

    def dispatch_message(self, message: bytes) -> None:
        level = self.message_level
        if level is not None and self._echo_log.isEnabledFor(level):
            self.__log_message(level, "received", message)
        super().dispatch_message(message)

    def send(self, message: bytes) -> None:
        super().send(message)
        level = self.message_level
        if level is not None and self._echo_log.isEnabledFor(level):
            self.__log_message(level, "sent", message)

    def dispatch_eof(self, rest: bytes) -> None:
        level = self.message_level if self.__begun else None  # else it may be a password, for a mixin before this one
        if rest and level is not None and self._echo_log.isEnabledFor(level):
            self.__log_message(level, "received", rest, " without an end")
        super().dispatch_eof(rest)

    def __log_message(self, level: int, event: str, message: bytes, how: str = "") -> None:
        if not isinstance(message, (bytes, bytearray)):  # a handler may send an array, too
            message = bytes(message)
        size = len(message)
        text = escape(message, self.shown_bytes)
        line = f"{self.peer} {event} {plural(size, 'byte')}{how}: {text}"
        fields = {"event": event, "peer": self.peer, "session": self.session, "size": size, "text": text}
        self._echo_emit(level, line, fields)
