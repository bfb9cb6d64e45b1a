"""A wrapper of a socket, for a mixin's ``stream()`` to return. Alone it has no effect."""

from __future__ import annotations

from typing import Any


class SocketWrapper:
    """Pass all calls on to the socket. Subclasses override ``recv`` and ``sendall`` to see or change the bytes."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, size: int) -> bytes:
        data: bytes = self._sock.recv(size)
        return data

    def sendall(self, data: bytes) -> None:
        self._sock.sendall(data)
