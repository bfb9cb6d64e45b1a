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

    def __init__(self, client: Client, messages: List[bytes], show: Callable[[bytes], None], report: Report) -> None:
        self._client = client
        self._messages = messages
        self._show = show
        self._report = report
        self._due = len([message for message in messages if not is_exit(message)])
        self._received = 0
        self._mismatches: List[EchoMismatch] = []

    def run(self) -> None:
        """Exchange all messages. Raise ``EchoMismatch`` at the end if a reply differed, since a service that is not an
        echo may answer anything. Raise ``ConnectionClosed`` or ``ReceiveTimeout`` at once if a reply is missing."""
        try:
            for message in self._messages:
                if not self._exchange(message):
                    break
        finally:
            self._summarize()
        if self._mismatches:
            raise self._mismatches[0]

    def _exchange(self, message: bytes) -> bool:
        """Send one message and report its reply; return whether the session goes on."""
        began = time.perf_counter_ns()
        try:
            reply = self._client.echo(message)
        except EchoMismatch as exc:
            self._mismatches.append(exc)
            reply = exc.received
        except (ConnectionClosed, IncompleteMessage) as exc:
            left = self._due - self._received
            if left:
                raise ConnectionClosed(f"{exc}; {left} of {self._due} replies are missing") from None
            return False
        took = time.perf_counter_ns() - began
        self._received += 1
        if is_exit(message):
            self._due += 1  # this service does not know the word, and has sent it back like any message
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
        missing, different = self._due - self._received, len(self._mismatches)
        self._report.summarize(
            f"{self._due} sent, {self._received} came back, {different} of them different, {missing} missing"
            if self._report.quiet
            else "",
            sent=self._due,
            received=self._received,
            different=different,
            missing=missing,
        )
