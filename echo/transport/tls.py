"""TLS over a connected socket, for server and client.

It knows sockets and ``ssl``. It does not know framing, policies or the server.

The rules:

* Nothing passes in clear. Before its ``handshake`` a ``TLSSocket`` reads and writes nothing; the first use calls its
  ``guard``, which has to shake hands. A PROXY header is read underneath. The owner chooses
  where the handshake is done: in the session's own thread.
* One thread may read while others send, as on a plain socket. An OpenSSL object allows one thread at a time, so it is
  used under a lock, and only on memory. The calls that block, those of the socket itself, are made without that lock.
  Rejected: ``ssl.SSLSocket``. It has no lock up to Python 3.12, and in 3.13.6 a reader that held its lock blocked every
  sender (gh-137583).
* All bytes that have arrived are decrypted at once, so that ``buffered`` can say how many can be read without waiting.
* The end of output is announced (``close_notify``) and is a half-close, as without TLS: OpenSSL can still read after
  it. A peer that closes without ``close_notify``, as many do, ends the input too. A program that must know whether all
  has arrived needs a framing that shows it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from typing import Any, List, Optional

from ..sockets import LINGER_TIMEOUT, has_room, receive_timeout, send_some, set_deadline
from .certificates import check_client, check_server
from .guarded import GuardedSocket
from .tls_messages import check_certificate, explain, format_subject

_CHUNK = 64 * 1024  # bytes encrypted at a time, which bounds the memory for a peer that does not read

_DO_NOT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)  # for one call: setblocking() would change another thread's reads

_RECORD = 16 * 1024 + 2048 + 5  # maximum size of an encrypted record in bytes (RFC 5246, section 6.2.3)


class TLSSocket(GuardedSocket):
    """Takes over a connected socket; speaks TLS from ``handshake`` on, and nothing before.

    The socket's timeouts (``SO_RCVTIMEO``, ``SO_SNDTIMEO``, ``settimeout``) work as on a plain socket. A read or write
    that timed out can be tried again and loses nothing; a ``send`` must be tried again with the same bytes.
    """

    linger_timeout = LINGER_TIMEOUT
    """Maximum time in seconds that ``shutdown(SHUT_WR)`` waits for a peer that does not read."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._tls: Optional[ssl.SSLObject] = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._lock = threading.Lock()  # protects these three
        self._output = threading.Lock()  # keeps the encrypted bytes in order; taken before _lock, never inside it
        self._taken: List[bytes] = []  # one read from the system, until it is decrypted
        self._unsent = memoryview(b"")  # encrypted, taken from _outgoing, and not sent yet
        self._begun = b""  # the caller's bytes in _unsent, if its send timed out and has to be tried again
        self._plain = b""  # decrypted, and not read yet
        self.untouched = True
        """Whether nothing has been received for the handshake."""
        self._ended = False  # close_notify has been received
        self._failure = ""  # the error that ended the input, after the bytes in _plain; empty: none

    def handshake(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: Optional[str] = None,
        timeout: Optional[float] = None,
    ) -> None:
        """Agree with the peer on keys within ``timeout`` seconds (None: no limit).

        Raises ``ssl.SSLError``, ``TimeoutError``, or ``ConnectionError`` if the peer has closed the connection.
        ``tls_messages.explain`` puts each into words. Raises ``ValueError`` if the context verifies the server's name
        and none is given: ``wrap_bio``, unlike ``wrap_socket``, would verify none then. A client raises it, too, for a
        context that ignores its revocation lists.
        """
        if context.check_hostname and not server_side and server_hostname is None:
            raise ValueError("ssl_context verifies the server's name; give it as server_hostname")
        if server_side:
            check_server(context)
        else:
            check_client(context)
        tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        deadline = None if timeout is None else time.monotonic() + timeout
        before = self.gettimeout()
        try:
            while not self._advance(tls, deadline):
                set_deadline(self, deadline)
                data = super(GuardedSocket, self).recv(_CHUNK)
                if not data:
                    when = "before its handshake" if server_side and self.untouched else "in mid-handshake"
                    raise ConnectionResetError(f"the peer left {when}")
                self.untouched = False
                self._incoming.write(data)
        except socket.timeout as exc:
            if exc.errno is not None:  # ETIMEDOUT of the system: the connection itself is lost
                raise
            raise TimeoutError(f"the handshake was not done after {timeout:g} s") from None
        finally:
            self.settimeout(before)
        if server_side:
            check_certificate(tls, context)
        self._tls = tls
        self._decrypt(b"")  # data that came together with the end of the handshake

    def _begin(self) -> ssl.SSLObject:
        """Shake hands now: this is the first use."""
        self.pass_guard()
        if self._tls is None:
            raise ConnectionAbortedError("this connection has no TLS session yet; shake hands first")
        return self._tls

    def _advance(self, tls: ssl.SSLObject, deadline: Optional[float]) -> bool:
        """Take the next steps of the handshake that need no further bytes; return whether it is done."""
        try:
            tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                self._send_answer(deadline)  # an alert, which names the reason
            raise
        self._send_answer(deadline)
        return done

    def _send_answer(self, deadline: Optional[float]) -> None:
        if self._outgoing.pending:
            set_deadline(self, deadline)
            super(GuardedSocket, self).sendall(self._outgoing.read())

    def release(self) -> None:
        """The handshake is done."""
        self.guard = None

    # Input, by one thread.

    @property
    def input_failed(self) -> bool:
        """Whether the peer has sent something that is not valid TLS."""
        return bool(self._failure)

    @property
    def buffered(self) -> int:
        """Number of bytes that can be read without a read from the network."""
        return len(self._plain)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self._tls is None:
            self._begin()
        _refuse_flags(flags)
        deadline: Optional[float] = None
        while not self._plain:
            if self._failure:
                raise ConnectionAbortedError(self._failure)
            if self._ended:
                return b""
            if deadline is not None and time.monotonic() >= deadline:
                if self.gettimeout():
                    raise socket.timeout("timed out")
                raise BlockingIOError("a record was not complete in time")
            # Read no more than fits into ``size``, if that is large. Otherwise bytes would be left in here, and a
            # caller that waits with select() for more would not see them.
            taken = self._taken
            if not taken:  # in C: no signal handler's exception comes between the read and its storing
                taken.extend(map(super(GuardedSocket, self).recv, (max(size - _RECORD, 4096),)))
            if not taken[0]:
                taken.clear()
                return b""  # not kept in _ended: after shutdown(SHUT_RD), bytes in the system can still be read
            self._decrypt(taken[0])
            if deadline is None and not self._plain:
                # The system's timeout is for each read, and a record that arrives byte by byte would renew it.
                seconds = receive_timeout(self)
                deadline = None if seconds is None else time.monotonic() + seconds
        plain = self._plain[:size]
        self._plain = self._plain[size:]  # last: what a signal handler's exception keeps from returning is still there
        return plain

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        data = self.recv(nbytes or len(view), flags)
        view[: len(data)] = data
        return len(data)

    def _decrypt(self, data: bytes) -> None:
        assert self._tls is not None
        parts: List[bytes] = []
        failure = ""
        self._failure = "a read was interrupted, and its bytes are lost"  # unless this gets to its end
        with self._lock:
            # All records under one lock: if another thread ended the output while some are left in _incoming,
            # OpenSSL would treat them as an error, and read no more.
            self._incoming.write(data)
            try:
                while True:
                    part = self._tls.read(_CHUNK)
                    if not part:  # close_notify
                        self._ended = True
                        break
                    parts.append(part)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                self._ended = True
            except ssl.SSLError as exc:
                failure = explain(exc)
            owes = self._outgoing.pending > 0
        self._plain = b"".join(parts)
        self._taken.clear()
        self._failure = failure
        # Reading may give something to send: an alert, or the answer to a key update. A thread that sends right now
        # sends that as well. Do not wait for it: its peer may be waiting until we read.
        if owes and self._output.acquire(blocking=False):
            try:
                self._push()
            except OSError:
                pass  # it goes out with the next send, which reports the error
            finally:
                self._output.release()

    # Output, by any thread.

    def send(self, data: Any, flags: int = 0) -> int:
        tls = self._tls or self._begin()
        _refuse_flags(flags)
        chunk = memoryview(data)[:_CHUNK]
        with self._output:
            if self._begun and bytes(chunk[: len(self._begun)]) != self._begun:
                raise ConnectionAbortedError("a send that timed out was not tried again with the same bytes")
            taken = len(self._begun)
            if not taken:
                while taken < len(chunk):
                    with self._lock:
                        taken += tls.write(chunk[taken:])
            try:
                self._push()
            except OSError:
                self._begun = bytes(chunk[:taken])
                raise
            self._begun = b""
            return taken

    def sendall(self, data: Any, flags: int = 0) -> None:
        view = memoryview(data).cast("B")
        while view:
            view = view[self.send(view, flags) :]

    def _push(self) -> None:
        """Send all encrypted bytes in order. The caller holds ``_output``."""
        while True:
            while self._unsent:
                self._unsent = self._unsent[send_some(self, self._unsent) :]
            with self._lock:
                if not self._outgoing.pending:
                    return
                self._unsent = memoryview(self._outgoing.read())

    # Ends.

    def shutdown(self, how: int) -> None:
        """End the input (``SHUT_RD``), the output (``SHUT_WR``), or both at once without notice (``SHUT_RDWR``).

        The end of the output is announced to the peer with ``close_notify``, unless the peer does not read for
        ``linger_timeout`` or the socket's ``settimeout``, whichever is shorter.
        """
        if self._tls is not None and how == socket.SHUT_WR:
            seconds = min(self.linger_timeout, self.gettimeout() or self.linger_timeout)
            deadline = time.monotonic() + seconds
            if self._output.acquire(timeout=seconds):
                try:
                    self._send_close_notify(self._tls, deadline)
                finally:
                    self._output.release()
        super().shutdown(how)

    def _send_close_notify(self, tls: ssl.SSLObject, deadline: float) -> None:
        """Send ``close_notify``, if there is room for it before the deadline. The caller holds ``_output``."""
        with self._lock:
            with contextlib.suppress(ssl.SSLError):  # the peer has not sent its own yet; it need not
                tls.unwrap()
            self._unsent = memoryview(bytes(self._unsent) + self._outgoing.read())
        # The first send is tried at once: the system takes a small message while there is too little room for select()
        # to report. But with a settimeout, CPython waits for room before each send, as long as that says and whatever
        # the flags say. If that is too long, the wait is done here first.
        must_wait = (self.gettimeout() or 0.0) > self.linger_timeout
        with contextlib.suppress(OSError):  # the peer is gone, or the settimeout is over
            while self._unsent and (not must_wait or has_room(self, deadline - time.monotonic())):
                must_wait = True
                with contextlib.suppress(BlockingIOError):
                    self._unsent = self._unsent[super(GuardedSocket, self).send(self._unsent, _DO_NOT_WAIT) :]

    # Other methods of a socket, as ssl.SSLSocket has them: none may bypass the encryption.

    def sendfile(self, file: Any, offset: int = 0, count: Optional[int] = None) -> int:
        file.seek(offset)
        sent = 0
        while count is None or sent < count:
            data = file.read(_CHUNK if count is None else min(_CHUNK, count - sent))
            if not data:
                break
            self.sendall(data)
            sent += len(data)
        return sent

    def detach(self) -> int:
        # On a living connection, a wrapper that takes the descriptor over would send in clear. This does not raise: the
        # wrapper has the descriptor already (ssl.SSLSocket), and would close it a second time.
        with contextlib.suppress(OSError):
            super(GuardedSocket, self).shutdown(socket.SHUT_RDWR)
        return super(GuardedSocket, self).detach()

    def _refused(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError("a TLS socket has recv(), recv_into(), send(), sendall() and sendfile()")

    dup = recvfrom = recvfrom_into = recvmsg = recvmsg_into = sendto = sendmsg = _refused

    # Results of the handshake.

    def version(self) -> Optional[str]:
        """The version of TLS, such as ``TLSv1.3``; None before the handshake."""
        return None if self._tls is None else self._tls.version()

    def cipher(self) -> Any:
        """As ``ssl.SSLSocket.cipher``."""
        return None if self._tls is None else self._tls.cipher()

    def getpeercert(self, binary_form: bool = False) -> Any:
        """As ``ssl.SSLSocket.getpeercert``; ``ValueError`` before the handshake: None would mean "no certificate"."""
        return self._shaken().getpeercert(binary_form)

    def _shaken(self) -> ssl.SSLObject:
        if self._tls is None:
            raise ValueError("the TLS handshake is not done; look at the certificate in the handler")
        return self._tls

    def selected_alpn_protocol(self) -> Optional[str]:
        """As ``ssl.SSLSocket.selected_alpn_protocol``."""
        return None if self._tls is None else self._tls.selected_alpn_protocol()

    @property
    def subject(self) -> Optional[str]:
        """The subject of the peer's verified certificate, such as ``CN=alice,O=Example`` (RFC 4514), safe to show; None
        without a certificate, or if Python cannot decode it. ``ValueError`` before the handshake."""
        tls = self._shaken()
        try:
            return format_subject(tls.getpeercert())
        except (ValueError, ssl.SSLError):  # its texts are not in the encoding that they claim
            return None


def _refuse_flags(flags: int) -> None:
    if flags:
        raise ValueError("a TLS socket does not support flags")
