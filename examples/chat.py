"""A chat room: send your name first; then each member gets the lines of all others.

It shows how to send from other threads, what to do about a member that does not read, and all the ways to leave:

    python3 -m examples.chat
    nc 127.0.0.1 65432                        # in several terminals; the first line is your name, /quit leaves
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import echo


class Room(echo.Server):
    """The state that the members share. Each member has a thread of its own, hence the lock."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.lock = threading.Lock()
        self.members: dict[str, Member] = {}
        super().__init__(*args, **options)

    def tell_others(self, speaker: Member, text: str) -> None:
        with self.lock:  # only for the copy: a send may block, and must not block the other members
            others = [member for member in self.members.values() if member is not speaker]
        for member in others:
            try:
                member.send(text.encode())
            except (echo.ConnectionClosed, echo.SendTimeout):
                pass  # it is gone or does not read; its own thread ends the session and informs the others


class Member(echo.MessageRequestHandler):
    server: Room
    name = ""
    send_timeout = 1.0
    """In seconds. A member that takes no byte for this time is disconnected, so it delays the others only once."""

    def connection_made(self) -> None:
        self.send(b"* what is your name?")

    def message_received(self, message: bytes) -> None:
        text = "".join(filter(str.isprintable, message.decode(errors="replace"))).strip()  # no terminal escapes
        if text == "/quit":
            self.close()
        elif not self.name:
            self.enter(text[:20])
        elif text:
            self.server.tell_others(self, f"{self.name}: {text[:1000]}")

    def enter(self, name: str) -> None:
        with self.server.lock:
            count = len(self.server.members)
            free = bool(name) and self.server.members.setdefault(name, self) is self
        if free:
            self.name = name
            self.send(f"* hello {name}, others here: {count}".encode())
            self.server.tell_others(self, f"* {name} came")
        else:
            self.send(b"* another name, please")

    def connection_lost(self, reason: str) -> None:
        if reason == "drain":
            self.send(b"* the room closes")
        if self.name:
            with self.server.lock:
                del self.server.members[self.name]
            if reason != "drain":
                self.server.tell_others(self, f"* {self.name} left ({reason})")


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 65432
    sys.exit(echo.run(Member, ("127.0.0.1", port), server_class=Room))
