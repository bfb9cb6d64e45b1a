"""``TranscriptMixin``: every byte of a session in a file, to debug a protocol.

It knows its own session. It sees no messages, but the bytes that pass the socket.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
from typing import Any, TextIO

from ..handlers import MessageRequestHandler
from .wrapper import SocketWrapper

_WIDTH = 16

_LONGEST_NAME = 50
"""Characters of the peer's name in a file's name, which may have 255 bytes: a PROXY header may name a long path."""


class TranscriptMixin(MessageRequestHandler):
    """Write all bytes, including the framing, to a file for each session in ``transcript_folder``, named after its time
    and peer. The file shows the bytes as hexadecimal and text, with direction and time::

        09:14:40.293 > 00000000  68 65 6c 6c 6f 0d 0a                             hello..

    ``>`` marks bytes from the client, ``<`` bytes to it; the number is the offset in that direction. Listed before
    ``FaultMixin`` it shows the bytes as the handler sent them, after it as they went out. If the folder cannot be
    written to, the session ends as ``error``.
    """

    transcript_folder = "."
    """The folder of the files; created if it does not exist."""

    def stream(self) -> Any:
        stream = super().stream()
        os.makedirs(self.transcript_folder, exist_ok=True)
        moment = datetime.datetime.now().strftime("%Y%m%d-%H%M%S.%f")
        peer = "".join(c if c.isalnum() or c in ".-" else "_" for c in self.peer[:_LONGEST_NAME])
        self.__transcript = _open_new(os.path.join(self.transcript_folder, f"{moment}-{peer}"))
        return _Recorder(stream, self.__transcript)

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.__transcript.close()


def _open_new(path: str) -> TextIO:
    """Another worker may take the same name: all clients of a Unix socket from one process have the same."""
    name, number = path, 1
    while True:
        with contextlib.suppress(FileExistsError):
            return open(f"{name}.txt", "x", encoding="utf-8")
        number += 1
        name = f"{path}-{number}"


class _Recorder(SocketWrapper):
    def __init__(self, sock: Any, file: TextIO) -> None:
        super().__init__(sock)
        self._file = file
        self._lock = threading.Lock()  # any thread may send
        self._offsets = {">": 0, "<": 0}

    def recv(self, size: int) -> bytes:
        data = super().recv(size)
        self._record(">", data)
        return data

    def sendall(self, data: bytes) -> None:
        self._record("<", data)
        super().sendall(data)

    def _record(self, direction: str, data: bytes) -> None:
        try:
            self._write(direction, data)
        except OSError as exc:  # must not look like an error of the socket
            raise RuntimeError(f"the transcript cannot be written: {exc}") from exc

    def _write(self, direction: str, data: bytes) -> None:
        moment = datetime.datetime.now().strftime("%H:%M:%S.%f")[:-3]
        with self._lock:
            for start in range(0, len(data), _WIDTH):
                piece = data[start : start + _WIDTH]
                text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
                line = f"{moment} {direction} {self._offsets[direction]:08x}  {piece.hex(' '):<47}  {text}\n"
                self._offsets[direction] += len(piece)
                self._file.write(line)
            self._file.flush()
