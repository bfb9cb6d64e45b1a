"""A connected socket that must not be used yet: a PROXY header has to be read first, or keys to be agreed on.

A server's subclass may replace each of the methods between ``accept`` and the handler. So what must not be left out
does not depend on any of them: the first use of the socket does it. It knows no server.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Callable, Optional


class GuardedSocket(socket.socket):
    """Takes over a connected socket. ``guard`` does what has to come first, or raises ``OSError``.

    The first use calls it, whichever method that is. Each later use calls it, too, until ``release``. Without a guard,
    each use raises ``ConnectionError``.
    """

    guard: Optional[Callable[[], None]] = None

    def __init__(self, sock: socket.socket) -> None:
        timeout = sock.gettimeout()
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.settimeout(timeout)

    def pass_guard(self) -> None:
        """Do what has to come first. Raises ``OSError`` if this fails, or has failed."""
        if self.guard is None:
            raise ConnectionAbortedError("the connection has not been let in yet")
        self.guard()

    def release(self) -> None:
        """Be a plain socket from now on."""
        self.guard = None
        self.__class__ = ReleasedSocket  # type: ignore[assignment]  # so that a read or write costs no call more than on any other socket

    def detach(self) -> int:
        if self.guard is not None:
            try:
                self.guard()
            except OSError:
                # A wrapper that takes the descriptor over has it already (ssl.SSLSocket), and would close it a second
                # time if this raised. It gets a connection that is over.
                with contextlib.suppress(OSError):
                    self.shutdown(socket.SHUT_RDWR)
        return socket.socket.detach(self)  # not super(): a guard that lets in has changed the class


class ReleasedSocket(socket.socket):
    """A ``GuardedSocket`` after its ``release``."""

    def pass_guard(self) -> None:
        """Nothing has to come first any more; a method that was looked up before the release calls this, too."""


def _guard(name: str) -> None:
    plain = getattr(socket.socket, name)

    def guarded(self: GuardedSocket, *args: Any, **options: Any) -> Any:
        self.pass_guard()
        return plain(self, *args, **options)

    setattr(GuardedSocket, name, guarded)


_INPUT = ["recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"]
_OUTPUT = ["send", "sendall", "sendto", "sendmsg", "sendfile"]
for _name in [*_INPUT, *_OUTPUT, "dup"]:
    if hasattr(socket.socket, _name):
        _guard(_name)
