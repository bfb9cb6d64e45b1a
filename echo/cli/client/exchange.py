"""Single messages, one after the other: each reply is shown and compared before the next message is sent.

The client is the caller's; this module does not connect. Its results go to a ``Report``.
"""

from __future__ import annotations

import time
from typing import Callable, List

from ...client.client import Client
from ...exceptions import ConnectionClosed, EchoMismatch, IncompleteMessage
from ...measure.report import Report, microseconds, milliseconds
from ...protocol import is_exit
from ...text import escape, plural


class Exchange:
    """Sends ``messages`` over ``client``. ``show`` gets each reply, unless the report is JSON or quiet."""

    def __init__(
        self, client: Client, messages: List[bytes], show: Callable[[bytes], None], report: Report, verify: bool = True
    ) -> None:
        self._client = client
        self._messages = messages
        self._show = show
        self._report = report
        self._verify = verify
        self._due = len([message for message in messages if self._is_sent(message) and not is_exit(message)])
        self._sent = self._received = 0
        self._exits = 0  # sent, and not back
        self._mismatches: List[EchoMismatch] = []

    def run(self) -> None:
        """Exchange all messages. Raise ``EchoMismatch`` at the end if a reply differed, since a service that is not an
        echo may answer anything. Raise ``ConnectionClosed`` or ``ReceiveTimeout`` at once if a reply is missing."""
        try:
            for message in self._messages:
                if not self._is_sent(message):
                    self._report.detail("raw framing cannot send an empty message: nothing was sent")
                elif not self._exchange(message):
                    break
        finally:
            self._summarize()
        if self._mismatches:
            raise self._mismatches[0]

    def _ask(self, message: bytes) -> bytes:
        self._client.send(message)
        return self._client.recv()

    def _is_sent(self, message: bytes) -> bool:
        """Whether there is anything to send, and a reply to wait for."""
        return bool(message) or self._client.framing.keeps_boundaries

    def _exchange(self, message: bytes) -> bool:
        """Send one message and report its reply; return whether the session goes on."""
        sent_before = self._client.connection.messages_out
        began = time.perf_counter_ns()
        try:
            reply = self._client.echo(message) if self._verify else self._ask(message)
        except EchoMismatch as exc:
            self._mismatches.append(exc)
            reply = exc.received
        except (ConnectionClosed, IncompleteMessage) as exc:
            left = self._due - self._received
            if left:
                advice = "; exit ends a session: send it last" if is_exit(message) else ""
                raise ConnectionClosed(f"{exc}; {left} of {self._due} replies are missing{advice}") from exc
            return False
        finally:
            took = time.perf_counter_ns() - began
            sent = self._client.connection.messages_out - sent_before
            if is_exit(message):
                self._exits += sent
            else:
                self._sent += sent
        self._received += 1
        if is_exit(message):
            self._due += 1  # this service does not know the word, and has sent it back like any message
            self._sent += 1
            self._exits -= 1
        if self._report.shows_text:
            self._show(reply)
        self._report.detail(f"{plural(len(reply), 'byte')} back after {milliseconds(took)} ms")
        self._report.event(
            "reply",
            sent=escape(message),
            received=escape(reply),
            matches=reply == message,
            rtt_us=microseconds(took),
        )
        return True

    def _summarize(self) -> None:
        figures = {
            "sent": self._sent,
            "received": self._received,
            "different": len(self._mismatches),
            "missing": self._sent - self._received,
        }
        exits = f" ({self._exits} exit)" if self._exits else ""
        text = f"{self._sent + self._exits} sent{exits}, {self._received} received"
        text += "".join(f", {self._report.bad(figures[name], name)}" for name in ("different", "missing"))
        if self._sent < self._due:
            figures["never_sent"] = self._due - self._sent
            text += f", {figures['never_sent']} never sent"
        figures["exits"] = self._exits
        self._report.summarize(text if self._report.quiet else "", **figures)
