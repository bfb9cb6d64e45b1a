"""Connections that are opened while others carry probes: in threads, since to connect may take long."""

from __future__ import annotations

import collections
import contextlib
import queue
import socket
import threading
from typing import Any, Callable, Deque, List, NamedTuple, Optional, Tuple

from ..beginning import Thread
from ..transport.tls_messages import explain


class Dialed(NamedTuple):
    """The result of one attempt to connect. ``began`` and ``took`` are in nanoseconds. ``socket`` is None if it
    failed, and ``why`` says why."""

    place: Any
    began: int
    took: int
    socket: Optional[socket.socket]
    why: str = ""


class Dialer:
    """Calls ``connect`` in threads. A selector can wait for the dialer: it is readable when an attempt has ended.

    ``clock`` is as in ``clock.py``. Use it from one thread.
    """

    def __init__(self, connect: Callable[[], socket.socket], clock: Any) -> None:
        self._connect = connect
        self._clock = clock
        self._jobs: queue.SimpleQueue[Optional[Tuple[Any, float]]] = queue.SimpleQueue()
        self._ended: Deque[Dialed] = collections.deque()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._threads = 0
        self._under_way = 0
        self._closed = False
        # The number of a closed socket may be another one's: a thread that was late wrote its byte there.
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._reader.fileno()

    def dial(self, place: Any, pause: float = 0.0) -> None:
        """Connect after ``pause`` seconds. ``place`` is the caller's, and comes back with the result."""
        self._under_way += 1
        self._jobs.put((place, pause))
        if self._under_way > self._threads:
            try:
                Thread(target=self._work, name="echo-dial", daemon=True).start()
                self._threads += 1
            except RuntimeError:  # the system has no thread now: those that there are do it, one after the other
                if not self._threads:
                    self._attempt(*(self._jobs.get() or (place, pause)))

    def ended(self) -> List[Dialed]:
        """Return the attempts that have ended."""
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        self._under_way -= len(ended)
        return ended

    def close(self) -> None:
        """Forget the attempts that are under way."""
        for _ in range(self._threads):
            self._jobs.put(None)
        with self._lock:
            self._closed = True
            for each in self.ended():
                if each.socket is not None:
                    each.socket.close()
            self._reader.close()
            self._writer.close()

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            self._attempt(*job)

    def _attempt(self, place: Any, pause: float) -> None:
        if pause:
            self._clock.sleep(pause)
        began = self._clock.now()
        sock, why = None, ""
        try:
            sock = self._connect()
        except Exception as exc:
            why = f"cannot connect: {explain(exc)}"
        took = self._clock.now() - began
        with self._lock:
            if not self._closed:
                self._ended.append(Dialed(place, began, took, sock, why))
                with contextlib.suppress(BlockingIOError):  # it is full of such bytes
                    self._writer.send(b"\0")
            elif sock is not None:
                sock.close()
