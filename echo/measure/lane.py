"""A lane: one connection that carries probes and never blocks.

It is non-blocking, unlike ``Connection``, since a client that measures must send on time even while replies are due.
Its owner waits, for many lanes or for one lane and a clock.
"""

from __future__ import annotations

import contextlib
import socket
from typing import List, Optional

from ..exceptions import ConnectionClosed, IncompleteMessage
from ..framing import Framing
from .probes import Ledger, Probe, Reply

READ_SIZE = 64 * 1024


class Lane:
    """Takes over ``sock``, which is connected, and sends the probes of ``ledger`` in ``framing``."""

    def __init__(self, sock: socket.socket, framing: Framing, ledger: Ledger) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.ledger = ledger
        self._encode = framing.encode
        self._decoder = framing.decoder()
        self._recv = sock.recv
        self._unsent = bytearray()
        self._failure: Optional[OSError] = None  # the error of a send, which the system does not report again to a read

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def is_behind(self) -> bool:
        """Whether sent bytes wait for room in the system. Call ``flush`` when the socket is writable."""
        return bool(self._unsent)

    def send(self, due_at: int, now: int) -> Probe:
        """Send the next probe. It does not raise if the peer is gone; ``receive`` does."""
        probe = self.ledger.issue(due_at, now)
        data = self._encode(probe.message)
        if self._unsent:
            self._unsent += data
            self.flush()
        else:
            self._send(data)
        return probe

    def flush(self) -> None:
        """Send the bytes that wait."""
        data = bytes(self._unsent)
        self._unsent.clear()
        self._send(data)

    def _send(self, data: bytes) -> None:
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        except BrokenPipeError:
            return  # the peer is gone, and the next read gets the error
        except OSError as exc:
            self._failure = exc
            return
        if sent < len(data):
            self._unsent += data[sent:]

    def receive(self) -> List[Reply]:
        """Read once; return the replies. Raises ``ConnectionClosed``, ``IncompleteMessage`` or ``MessageTooLong``."""
        decoder = self._decoder
        if decoder.error is not None:
            raise decoder.error
        try:
            data = self._recv(READ_SIZE)
        except BlockingIOError:
            return []
        except OSError as exc:
            self._failure = exc
            data = b""
        if not data and self._failure is not None:
            why = self._failure.strerror or self._failure
            raise ConnectionClosed(f"the connection was lost: {why}") from self._failure
        if not data:
            rest = decoder.finish()
            if rest:
                raise IncompleteMessage(rest)
            raise ConnectionClosed("the server has ended the session")
        settle = self.ledger.settle
        replies = [settle(message) for message in decoder.feed(data)]
        if decoder.error is not None:
            if not replies:
                raise decoder.error
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RD)  # readable at once, so that the next call raises the error
        return replies

    def close(self) -> None:
        self.socket.close()
