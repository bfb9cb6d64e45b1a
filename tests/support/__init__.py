"""Helpers for all tests: a generous deadline, waiting for events, reading sockets, handlers that record their calls.

The other modules here are about one subject each:

* in this process: ``servers``, ``clients`` (the library), ``commands`` and ``client`` (the two commands),
  ``usage_errors``, ``proxy_headers``, ``certificates``, ``background`` (a function in a thread), ``simulation``
  (``--ping`` and ``--bench`` with a simulated network and clock);
* as processes: ``processes`` (the commands, and other programs), ``terminal``, ``measuring``, ``activation``,
  ``networks``;
* ``tiers`` chooses which tests run.
"""

import os
import socket
import socketserver
import struct
import threading
import time

DEADLINE = 60.0
"""Seconds that a test waits for an event before it fails. Generous: a test that passes never waits that long, and
beside twenty busy processes a new interpreter needs seconds to start."""

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

ROOT = os.path.dirname(TESTS)


def eventually(condition, message="it never became true"):
    """Wait until ``condition()`` is true; return its value."""
    deadline = time.monotonic() + DEADLINE
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, message
        pause.wait(0.005)


def read_all(sock):
    """Read until the peer's end of output."""
    parts = []
    while True:
        data = sock.recv(65536)
        if not data:
            return b"".join(parts)
        parts.append(data)


def read_exactly(sock, size):
    """Read ``size`` bytes; fewer only at the end of input."""
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            break
        data += more
    return data


def reset(sock):
    """Close the socket with a RST instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def plain(talk):
    """A ``socketserver`` handler class that calls ``talk(socket)``."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            talk(self.request)

    return Handler


class Recorder:
    """Records which hooks were called, in which order."""

    @staticmethod
    def of(handler_class):
        """A subclass of ``handler_class`` that records its hooks in ``events`` and its ends in ``reasons``."""

        class Recorded(handler_class):
            events = []
            reasons = []
            ended = threading.Event()

            def connection_made(self):
                self.events.append("made")
                super().connection_made()

            def message_received(self, message):
                self.events.append(message)
                super().message_received(message)

            def connection_lost(self, reason):
                super().connection_lost(reason)
                self.reasons.append(reason)
                self.events.append("lost")
                self.ended.set()

        return Recorded
