"""A session: one client that is connected, from ``accept`` to the close of its socket.

It lasts that long whatever methods a subclass of the server replaces in between; the handler's session begins later,
after admission. This is the one place that ends a session from outside. It knows sockets and addresses, no
handler class and no accept loop.

``Session.state`` says how far it is. It only moves downwards, and may leave lines out:

========  ===================================  ===========================  ======================
state     entered when                         ``drain()``, by a stop       ``abort()``, by a stop
========  ===================================  ===========================  ======================
open      the connection is accepted           ends the input               shuts the socket down
draining  ``drain`` is called                  does nothing                 shuts the socket down
closing   the handler is done: ``closing()``   does nothing                 ends the lingering
closed    the socket is about to be closed:    does nothing                 does nothing
          ``closed()``
========  ===================================  ===========================  ======================

Other things do not follow from the state, since a subclass may do them in its own way:

=============  ================================================  =============================================
attribute      set by                                            asked by
=============  ================================================  =============================================
``opening``    the accepting thread, if admission has to wait    the first use of the socket
``refused``    admission                                         what logs and counts the end
``begun``      the accepting thread, when it gives it a thread   that thread, after an exception
``ours``       ``process_request_thread``                        the registry: no other code will end it
``thread_id``  the thread that has the session                   a stop, which must not wait for its own caller
``over``       the registry, when it has counted the end         ``_echo_end_session``
=============  ================================================  =============================================
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import threading
import time
from typing import Any, Optional

from ..sockets import SEND_TIMEOUT, is_dead, shut_down, undelivered
from ..text import format_address, unmapped
from . import forking
from .reporting import log_event
from .statistics import ConnectionInfo
from .unix_paths import peer_name


class StandIn:
    """Takes a handler's place in its session until the handler attaches itself; many never do. It counts nothing, and
    is drained by the end of its input."""

    __slots__ = ("ended_as", "input_ended", "request")

    messages_in = messages_out = bytes_in = bytes_out = 0
    peer_ended = aborted = False
    send_timeout = SEND_TIMEOUT

    def __init__(self, request: Any) -> None:
        self.request = request
        self.input_ended = False
        self.ended_as: Optional[str] = None
        """Overrides the reason that follows from how the input ended."""

    @property
    def connection(self) -> StandIn:
        return self  # not an attribute: a reference to itself would keep each one until the garbage collector comes

    @property
    def reason(self) -> str:
        return self.ended_as or ("drain" if self.input_ended else "exit")

    def drain(self) -> None:
        with contextlib.suppress(OSError):  # the peer or the handler was faster
            shut_down(self.request, socket.SHUT_RD)
            self.input_ended = True


class Session:
    """One accepted connection, from accept to close.

    ``handler`` is the handler that has attached itself (``Server.attach``), or a ``StandIn``. It has a ``connection``
    that counts and knows which side has ended it, a ``reason``, and ``drain()``.

    ``request`` is what ``get_request`` returned, of any type, and ``stream`` what the handler uses: a wrapper that has
    taken the descriptor over, if there is one.
    """

    __slots__ = (
        "_drained",
        "_lock",
        "begun",
        "client_address",
        "descriptor",
        "handler",
        "host",
        "number",
        "opening",
        "ours",
        "over",
        "refused",
        "request",
        "since",
        "state",
        "stream",
        "thread_id",
        "unnamed",
        "via",
    )

    def __init__(self, request: Any, client_address: Any, *, proxied: bool = False) -> None:
        self.request = self.stream = request
        try:
            self.descriptor = request.fileno()  # not descriptor_of(): a call for each connection
        except Exception:
            self.descriptor = -1
        self.client_address = client_address
        # Behind a proxy the client is not known until Registry.identify.
        self.host = None if proxied else host_of(client_address)
        self.via = format_address(client_address) if proxied else None
        self.unnamed = proxied
        self.since = time.time()
        self.state = "open"
        self.handler: Any = StandIn(request)
        self.thread_id: Optional[int] = None
        self.number = 0  # given by the registry
        self.begun = False  # a thread has it, or will have it at once
        self.ours = False  # that thread runs the server's own process_request_thread(), which ends the session
        self.over = False  # the registry has counted its end, and has removed it
        self.opening: Any = None  # an Opening: the steps of admission that its first use has to do
        self.refused: Optional[str] = None  # why admission ended it
        # The socket must not be closed while another thread acts on it: the system could give its descriptor to another
        # connection (gh-116912). abort() holds this lock meanwhile. drain() may block, so closing() waits for _drained.
        # attach() and wrapped() run in the session's own thread, which is the one that closes.
        try:
            self._lock = threading.Lock()
        except RuntimeError as exc:  # "can't allocate lock"
            raise MemoryError(str(exc)) from None

    @property
    def attached(self) -> bool:
        """Whether the handler reports its end itself."""
        return not isinstance(self.handler, StandIn)

    def wrapped(self, stream: Any) -> None:
        """The handler uses ``stream``, which has taken the connection over (TLS, for example)."""
        with self._lock:
            self.stream = stream
            if not self.attached:
                self.handler.request = stream
            draining = self.state == "draining"
        if draining:  # the stop was faster
            self._end_input(self.handler)

    def failed(self, exc: BaseException) -> None:
        """The handler has raised ``exc``."""
        if not self.attached:
            self.handler.ended_as = "reset" if self.is_loss(exc) else "error"

    def is_loss(self, exc: Optional[BaseException]) -> bool:
        """Whether an exception of the handler only says that its client is gone."""
        # An attached handler reports its own peer's end by its reason; an exception is about something else.
        return not self.attached and is_loss(exc, self.stream)

    def drain(self) -> None:
        """Let the session answer what has arrived, and end."""
        with self._lock:
            if self.state != "open":
                return
            self._drained = threading.Event()
            self.state = "draining"
            handler = self.handler
        self._end_input(handler)  # without the lock, which abort() needs: a handler's own drain() may block
        self._drained.set()

    def attach(self, handler: Any) -> None:
        with self._lock:
            self.handler = handler
            if descriptor_of(self.stream) == -1:  # its setup() or stream() has wrapped the socket (TLS, for example)
                self.stream = getattr(getattr(handler, "connection", None), "socket", self.stream)
            draining = self.state == "draining"
        if draining:  # the stop was faster
            self._end_input(handler)

    def _end_input(self, handler: Any) -> None:
        try:
            forking.call(handler.drain)
        except BaseException as exc:  # a handler's own drain(), which may even call sys.exit(); the deadline ends it
            if isinstance(exc, OSError) and is_lost(self.stream):
                return
            peer = format_address(self.client_address)
            log_event(logging.ERROR, "error", "%s: exception in drain()", peer, exc_info=exc, peer=peer)

    def abort(self) -> None:
        """End the session now. A thread that reads or sends on the socket wakes up."""
        with self._lock:
            if self.state != "closed":
                try:
                    shut_down(self.stream, socket.SHUT_RDWR)
                except Exception:  # closed, or an object without a descriptor, which cannot be shut down
                    pass

    def closing(self) -> None:
        """The handler is done; from here on the socket lingers, and draining would only disturb that."""
        with self._lock:
            if self.state != "draining":
                self.state = "closing" if self.state == "open" else self.state
                return
        self._drained.wait()  # until then drain() acts on the socket, which must not be closed under it
        with self._lock:
            self.state = "closing"

    def closed(self) -> None:
        """From here on no other thread touches the socket."""
        with self._lock:
            self.state = "closed"
        if self.opening is not None:  # the socket's guard refers to this session
            self.seal()

    def seal(self) -> None:
        """Let nobody use the socket, if its client has not been let in."""
        opening, self.opening = self.opening, None
        if opening is not None:
            opening.request.guard = None

    def let_go(self, *, is_own: bool) -> None:
        """In a forked child: the session is its parent's. ``is_own``: this thread serves it, and would end it here."""
        self._lock = threading.Lock()
        if is_own:
            self.state, self.over = "closed", True
            let_go = getattr(self.handler, "_echo_let_go", None)
            if let_go is not None:
                let_go()

    def is_only_lingering(self) -> bool:
        """Whether the close only waits for the client: it was refused, or the handler is done and its input was not cut
        off."""
        return self.refused is not None or (self.state == "closing" and not self.handler.connection.input_ended)

    def is_delivered(self) -> bool:
        """Whether the client's host has all replies, or there are none, or it can get no more of them."""
        if self.refused is not None:
            return True
        try:
            return (undelivered(self.stream) or 0) <= 1 or is_dead(self.stream)  # our FIN counts as a byte
        except Exception:  # closed meanwhile, or an object without a descriptor
            return True

    def was_closed(self) -> bool:
        """Whether other code than the server's own has closed the socket, or has taken its descriptor over. ``stream``
        may also be an object that passes its calls on to the socket."""
        had_one = not self.ours and self.descriptor != -1
        return had_one and descriptor_of(self.stream) == descriptor_of(self.request) == -1

    def is_taken_over(self) -> Optional[bool]:
        """If it ``was_closed``: whether the descriptor is still this connection's; None if nobody knows. A wrapper has
        it then, and may be in its handshake (``ssl.SSLSocket``). All connections of one process to a Unix socket look
        the same."""
        try:
            # A file's by now? To close a duplicate of it would end all locks that the process has on it (fcntl).
            if not stat.S_ISSOCK(os.fstat(self.descriptor).st_mode):
                return False
            copy = os.dup(self.descriptor)
        except OSError as exc:
            return False if exc.errno == errno.EBADF else None  # no descriptor is free
        try:
            sock = socket.socket(fileno=copy)
        except OSError:  # a socket of another kind
            os.close(copy)
            return False
        with sock, contextlib.suppress(OSError):
            return self.is_from(sock.getpeername()) or self.is_from(peer_name(sock))
        return False

    def is_from(self, address: Any) -> bool:
        """Whether this is the address that was accepted: the client's, or its proxy's."""
        return bool(address == self.client_address) or (self.via is not None and self.via == format_address(address))

    def info(self) -> ConnectionInfo:
        """Take a snapshot."""
        traffic = self.handler.connection
        state = "closing" if self.state == "closed" else self.state  # not forgotten yet
        return ConnectionInfo(
            format_address(self.client_address),
            self.client_address,
            self.since,
            state,
            traffic.messages_in,
            traffic.messages_out,
            traffic.bytes_in,
            traffic.bytes_out,
            self.via,
        )


def descriptor_of(stream: Any) -> int:
    """The number of a stream's descriptor; -1 if it is closed, or is not a socket."""
    try:
        number: int = stream.fileno()
    except Exception:
        return -1
    return number


def is_loss(exc: Optional[BaseException], request: Any) -> bool:
    """Whether an exception says that this connection is lost. A ``ConnectionError`` may come from any other one: from a
    database, or a pipe to another process."""
    return isinstance(exc, ConnectionError) and is_lost(request)


def is_lost(request: Any) -> bool:
    """Whether this connection was reset, or has ended in both directions. False, too, if nobody can say."""
    try:
        return is_dead(request) or bool(getattr(request, "input_failed", False))
    except Exception:  # closed, or not a socket
        return False


def host_of(client_address: Any) -> Optional[str]:
    """The host part of a socket address, of an IPv4 client always as IPv4; None where there is none (Unix sockets)."""
    return unmapped(str(client_address[0])) if isinstance(client_address, tuple) and client_address else None
