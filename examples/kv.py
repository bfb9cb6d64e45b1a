"""A key-value store: several commands, errors as replies, and one dictionary that all clients share.

It shows how to share state on the server, under a lock. Each reply says whether the command succeeded:

    python3 -m examples.kv
    telnet 127.0.0.1 65432                    # then type SET name Ada Lovelace   GET name   INCR visits   QUIT

A reply is ``OK``, with a value if there is one, or ``ERROR`` and the reason. The reply to KEYS is the number of lines
that follow.
"""

from __future__ import annotations

import inspect
import sys
import threading
from typing import Any

import echo


class Store(echo.Server):
    """The state that all sessions share. Each session has a thread of its own, hence the lock."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.lock = threading.Lock()
        self.values: dict[bytes, bytes] = {}
        super().__init__(*args, **options)


class Session(echo.MessageRequestHandler):
    server: Store

    def message_received(self, message: bytes) -> None:
        name, *arguments = message.strip().split(None, 2) or [b""]  # strip: telnet ends its lines with CRLF
        command = getattr(self, "do_" + name.decode("ascii", "replace").lower(), None)
        if command is None:
            replies = [b"ERROR the commands are GET, SET, DEL, INCR, KEYS and QUIT"]
        elif len(arguments) != len(inspect.signature(command).parameters):
            replies = [b"ERROR usage: " + command.__doc__.encode()]
        else:
            with self.server.lock:  # during the whole command: INCR reads and writes
                replies = command(*arguments)
        for reply in replies:  # outside the lock: a client that does not read blocks only its own thread
            self.send(reply)

    def do_get(self, key: bytes) -> list[bytes]:
        """GET key"""
        value = self.server.values.get(key)
        return [b"ERROR no such key" if value is None else b"OK " + value]

    def do_set(self, key: bytes, value: bytes) -> list[bytes]:
        """SET key value"""
        self.server.values[key] = value
        return [b"OK"]

    def do_del(self, key: bytes) -> list[bytes]:
        """DEL key"""
        return [b"ERROR no such key" if self.server.values.pop(key, None) is None else b"OK"]

    def do_incr(self, key: bytes) -> list[bytes]:
        """INCR key"""
        try:
            value = b"%d" % (int(self.server.values.get(key, b"0")) + 1)
        except ValueError:
            return [b"ERROR not a number"]
        self.server.values[key] = value
        return [b"OK " + value]

    def do_keys(self) -> list[bytes]:
        """KEYS"""
        return [b"OK %d" % len(self.server.values), *sorted(self.server.values)]

    def do_quit(self) -> list[bytes]:
        """QUIT"""
        self.close()
        return [b"OK"]


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 65432
    sys.exit(echo.run(Session, ("127.0.0.1", port), server_class=Store))
