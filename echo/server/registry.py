"""The registry: all live sessions of a server, and the sums over those that have ended.

It is the one place that counts sessions, under a lock of its own, so that its figures are right on a build without the
GIL too (gh-128277, gh-153935). It knows no handler class and no accept loop.
"""

from __future__ import annotations

import collections
import os
import socket
import threading
import time
from typing import Any, Callable, Counter, Dict, List, Optional

from .sessions import Session, descriptor_of, host_of
from .signal_safe import STEP, is_held
from .statistics import Statistics, Traffic

MOST_REASONS = 100
"""Reasons of sessions' ends that are counted one by one. A handler may make a reason of its client's data."""

_ANY: Any = object()


class Registry:
    """All sessions of a server, and the sums over those that have ended.

    ``publish``, if it is not None, is called with the number of sessions whenever that has changed: under the lock, so
    that of two changes the later one is the last that is published.

    A session's end, ``end``, is ``forget`` and the sums; ``forget`` is its removal, ``release_host`` and the calls of
    those who wait for it.

    ``closes_unseen``: whether code of a subclass may close a session's socket without the server.
    """

    def __init__(self, closes_unseen: bool = False) -> None:
        self.was_let_go = False
        """Whether this is a forked child, whose sessions are its parent's."""
        self._closes_unseen = closes_unseen
        self.publish: Optional[Callable[[int], None]] = None
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # that the last session has ended, or wake() was called
        self._live: Dict[int, Session] = {}  # by id(): what get_request() returns need not be hashable
        self._from_parent: List[Session] = []  # in a forked child: those whose client it may have to let in
        self._hosts: Dict[str, int] = {}
        self._when_room: Optional[Callable[[], None]] = None
        self._numbers = 0
        self._accepted = 0
        self._accept_errors = 0
        self._refused: Counter[str] = collections.Counter()
        self._ended: Dict[str, int] = {}  # a Counter's subscripts cost twice as much
        self._totals = Traffic()

    def __len__(self) -> int:
        return len(self._live)

    def get(self, request: Any) -> Optional[Session]:
        """The session of an accepted socket."""
        # dict.get() takes a lock on CPython 3.13t, and a subscript does not. With get(), the threads of a busy server
        # gave up their processor eighty times a short session: 240 to 257 us of CPU instead of 161 to 200.
        try:
            return self._live[id(request)]
        except KeyError:
            return None

    def find(self, stream: Any, client_address: Any = _ANY) -> Optional[Session]:
        """The session of an accepted socket, or of what has taken its descriptor over: the ``ssl.SSLSocket`` that a
        subclass has made of it, for example. With ``client_address``, not one that has only had the same descriptor as
        another client, which a program has accepted itself."""
        session = self.get(stream)
        if session is None:  # in a forked child, which has no sessions here, that of a client not let in yet
            session = getattr(getattr(stream, "guard", None), "session", None)
        if session is not None:
            return session
        newest = self._newest(descriptor_of(stream))
        if newest is None or client_address is _ANY or newest.is_from(client_address) or newest.is_taken_over():
            return newest
        return None

    def _newest(self, descriptor: int) -> Optional[Session]:
        """The newest session with this descriptor: a handler may have closed the socket of an older one itself, and the
        system has used the number again."""
        for session in reversed(self._from_parent + self.sessions()):
            if session.descriptor == descriptor != -1:
                return session
        return None

    def has_room(self, limit: int, wake: Callable[[], None]) -> bool:
        """Whether there are fewer sessions than ``limit``. If not, ``wake`` is called once, when a session has ended.

        The first look takes no lock. The second one does, so that no session can end unseen between it and the caller's
        sleep. One ``wake`` is kept, since one loop runs at a time.
        """
        if len(self._live) < limit:
            return True
        with self._lock:
            self.reap()
            if len(self._live) < limit:
                return True
            self._when_room = wake
            return False

    def take_over(self, request: Any, client_address: Any) -> Optional[Session]:
        """Return the session whose descriptor ``request``, a wrapper of its socket, has taken over before the session's
        thread has begun; it is the session's own from now on. None if there is no such session; ``TypeError`` if the
        socket was one for TLS."""
        session = self.find(request, client_address)
        if session is None or session.ours:
            return None
        if session.opening is not None and descriptor_of(session.request) == -1:
            request.close()
            raise TypeError("with ssl_context, the server encrypts; no wrapper can take over the socket")
        with self._lock:
            if self._live.pop(id(session.request), None) is None:
                return None
            session.request = request
            self._live[id(request)] = session
        session.wrapped(request)
        return session

    def from_host(self, host: Optional[str], limit: Optional[int] = None) -> int:
        """How many sessions this host has; 0 for None. If they are ``limit`` or more, sessions that code of a
        subclass has closed are ended first."""
        if host is None:
            return 0
        count = self._hosts.get(host, 0)
        if limit is not None and count >= limit and self._closes_unseen and self.reap():
            count = self._hosts.get(host, 0)
        return count

    def accepted(self) -> None:
        with self._lock:
            self._accepted += 1

    def accept_failed(self) -> None:
        with self._lock:
            self._accept_errors += 1

    def refused(self, reason: str) -> None:
        with self._lock:
            self._refused[reason] += 1

    def add(self, session: Session) -> None:
        with self._lock:
            self._numbers += 1
            session.number = self._numbers
            self._live[id(session.request)] = session
            self._count_host(session.host)
            if self.publish is not None:
                self.publish(len(self._live))

    def _count_host(self, host: Optional[str]) -> int:
        """One more session from there; how many there were."""
        before = self.from_host(host)
        if host is not None:
            self._hosts[host] = before + 1
        return before

    def identify(self, session: Session, client_address: Any, limit: Optional[int] = None) -> int:
        """Set who the client is, as its proxy says; None: the proxy does not say. Return how many sessions that host
        had before, as ``from_host`` does."""
        with self._lock:
            if client_address is not None:
                session.unnamed = False
                session.client_address = client_address
            if self._live.get(id(session.request)) is not session:  # closed meanwhile
                return 0
            session.host = host_of(session.client_address)
            self.from_host(session.host, limit)
            return self._count_host(session.host)

    def release_host(self, session: Session) -> None:
        """Release the host's slot now: the socket of a rejected client may stay open for a while, and must not keep the
        host's next client out."""
        with self._lock:
            host, session.host = session.host, None
            if host is not None:
                if self._hosts[host] == 1:
                    del self._hosts[host]
                else:
                    self._hosts[host] -= 1

    def forget(self, session: Session) -> bool:
        """Remove a session, and count nothing; return whether it was here."""
        with self._lock:
            if self._live.pop(id(session.request), None) is None:
                return False
            session.over = True
            self.release_host(session)
            if self.publish is not None:
                self.publish(len(self._live))
            if self._when_room is not None:
                wake, self._when_room = self._when_room, None
                wake()
            if not self._live:
                self._changed.notify_all()
            return True

    def end(self, session: Session) -> bool:
        """Remove a session, and count how it ended or, if it never began, why it was refused; return whether it was
        here."""
        with self._lock:
            if not self.forget(session):
                return False
            if session.refused is not None:
                self._refused[session.refused] += 1
            else:
                reason = session.handler.reason
                if not isinstance(reason, str):  # a program's own handler may give anything, a list for example
                    reason = str(reason)
                if reason not in self._ended and len(self._ended) >= MOST_REASONS:
                    reason = "other"
                self._ended[reason] = self._ended.get(reason, 0) + 1
                self._totals.add(session.handler.connection)
            return True

    def may_close_unseen(self) -> bool:
        """Whether code of a subclass may close a session's socket without the server."""
        return any(not session.ours for session in self.sessions())

    def reap(self, *, stopping: bool = False) -> bool:
        """End the sessions whose socket was closed without the server; return whether there were any. A subclass that
        serves clients in threads of its own may do so. ``stopping``: also those whose descriptor a wrapper has taken
        over, which a stop cannot reach."""
        with self._lock:
            left = [session for session in self._live.values() if session.was_closed()]
            if not stopping:
                left = [
                    each for each in left if self._newest(each.descriptor) is not each or each.is_taken_over() is False
                ]
            for session in left:
                self.end(session)
            return bool(left)

    def let_go(self) -> None:
        """In a forked child: the sessions are its parent's. The child may talk to the client whose session's thread
        has forked. The others' sockets are closed here, so that their clients see the end when the parent closes them.
        """
        me = threading.get_ident()
        self.was_let_go = True
        self._from_parent = [
            each for each in self._live.values() if each.thread_id is None and each.opening is not None
        ]
        for session in self._live.values():
            session.host = None
            session.let_go(is_own=session.thread_id == me)
            if session.thread_id not in (None, me):
                try:  # not with close(), which waits for the end of makefile()'s files
                    os.close(socket.socket.detach(session.stream))
                except Exception:
                    pass
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._live, self._hosts, self.publish, self._when_room = {}, {}, None, None

    def sessions(self) -> List[Session]:
        """A snapshot."""
        with self._lock:
            return list(self._live.values())

    def serves(self, thread_id: int, client_address: Any = _ANY) -> bool:
        """Whether this thread is one of the sessions'; with ``client_address``, that of a session with this client."""
        return any(
            session.thread_id == thread_id and (client_address is _ANY or session.is_from(client_address))
            for session in self.sessions()
        )

    def is_locked_here(self) -> bool:
        """Whether the calling thread holds the registry's lock."""
        return is_held(self._lock)

    def wait_until_empty(self, deadline: Callable[[], float]) -> None:
        """Wait for the last session to end, until ``deadline()`` (of ``time.monotonic()``), which may come forward:
        ``wake`` then."""
        with self._changed:
            while self._live:
                if self.reap(stopping=True):
                    continue
                left = deadline() - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, STEP))

    def wake(self) -> None:
        """Let ``wait_until_empty`` return early."""
        with self._changed:
            self._changed.notify_all()

    def statistics(self) -> Statistics:
        """Take the sums. A live session's counts are read as they are."""
        with self._lock:
            totals = Traffic()
            totals.add(self._totals)
            for session in self._live.values():
                totals.add(session.handler.connection)
            return Statistics(
                self._accepted,
                len(self._live),
                dict(self._refused),
                dict(self._ended),
                totals.messages_in,
                totals.messages_out,
                totals.bytes_in,
                totals.bytes_out,
                self._accept_errors,
            )
