"""TLS over a socket: for both sides, after the connection is there and before a message is.

It knows sockets and ``ssl``; it knows no framing, no policy and no server.

The rules:

* ``TLSSocket`` is a plain socket until its ``handshake``, so that whoever has to may read first (a PROXY header), and
  the handshake is done where its owner chooses: in the session's own thread.
* One thread may read while others send, as everywhere here. OpenSSL's objects allow one at a time, so they are
  used under a lock, on memory; what blocks, the socket itself, is used without it. Rejected: ``ssl.SSLSocket``, which
  up to Python 3.12 has no lock and whose lock in 3.13.6 let a reader block every sender (gh-137583).
* Whatever has arrived is decrypted at once, so that what can be had without another read is known (``buffered``).
* The end of output is said (``close_notify``) and is a half-close, as without TLS: OpenSSL goes on reading after it. A
  peer that just closes, as many do, ends its input too; who must know that all has come uses a framing that tells.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from itertools import starmap
from typing import Any, Dict, List, Optional

from ..sockets import LINGER_TIMEOUT, has_room, receive_timeout, set_deadline
from ..text import escape

_CHUNK = 64 * 1024  # bytes encrypted at a time: what waits for a peer that does not read is bounded

_DO_NOT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)  # another thread may read, and the socket's mode is for both

_RECORD = 16 * 1024 + 2048 + 5  # bytes of an encrypted record at most (RFC 5246, section 6.2.3)


class TLSSocket(socket.socket):
    """Takes over a connected socket; plain, until ``handshake``.

    What the deadlines of the socket do (``SO_RCVTIMEO``, ``SO_SNDTIMEO``, ``settimeout``) they do here: a read or write
    that has run into one may be tried again, and loses nothing. A ``send`` that did must be tried with the same bytes.
    """

    linger_timeout = LINGER_TIMEOUT
    """Maximum time in seconds that ``shutdown(SHUT_WR)`` waits for a peer that does not read."""

    def __init__(self, sock: socket.socket) -> None:
        timeout = sock.gettimeout()
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.settimeout(timeout)
        self._tls: Optional[ssl.SSLObject] = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._lock = threading.Lock()  # of these three
        self._output = threading.Lock()  # of the order in which encrypted bytes go out
        self._unsent = memoryview(b"")  # encrypted, and begun to be sent
        self._begun = b""  # the caller's bytes that these carry, if it has to try again
        self._plain = b""  # decrypted, and not asked for yet
        self.untouched = True
        """Nothing has come for the handshake."""
        self._ended = False
        self._failure = ""  # what ended the input, behind the bytes in _plain

    def handshake(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: Optional[str] = None,
        timeout: Optional[float] = None,
    ) -> None:
        """Agree with the peer on keys, within ``timeout`` seconds; None waits for ever.

        Raises ``ssl.SSLError``, ``TimeoutError``, or ``ConnectionError`` if the peer left: ``explain`` tells which.
        """
        tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        deadline = None if timeout is None else time.monotonic() + timeout
        before = self.gettimeout()
        try:
            while not self._advance(tls, deadline):
                set_deadline(self, deadline)
                data = super().recv(_CHUNK)
                if not data:
                    when = "before its handshake" if server_side and self.untouched else "in mid-handshake"
                    raise ConnectionResetError(f"the peer left {when}")
                self.untouched = False
                self._incoming.write(data)
        except socket.timeout as exc:
            if exc.errno is not None:  # ETIMEDOUT: the connection itself is lost
                raise
            raise TimeoutError(f"the handshake was not done after {timeout:g} s") from None
        finally:
            self.settimeout(before)
        self._tls = tls
        self._decrypt(b"")  # what came together with the end of the handshake

    def _advance(self, tls: ssl.SSLObject, deadline: Optional[float]) -> bool:
        """Do what can be done with what has come, and say it to the peer; whether the handshake is over."""
        try:
            tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                self._say(deadline)  # the alert
            raise
        self._say(deadline)
        return done

    def _say(self, deadline: Optional[float]) -> None:
        if self._outgoing.pending:
            set_deadline(self, deadline)
            super().sendall(self._outgoing.read())

    # Input, by one thread.

    @property
    def buffered(self) -> int:
        """How many bytes a read would have without a look at the network."""
        return len(self._plain)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self._tls is None:
            return super().recv(size, flags)
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
            # So much that all of it fits into what was asked for, if that is large: whoever waits with select() for
            # more must not have to look for a rest here.
            data = super().recv(max(size - _RECORD, 4096))
            if not data:
                return b""  # for now: after the end of its input by shutdown(), a socket may have more the next time
            self._decrypt(data)
            if deadline is None and not self._plain:
                # The system's deadline is for each read, and dripping bytes would renew it for ever.
                seconds = receive_timeout(self)
                deadline = None if seconds is None else time.monotonic() + seconds
        plain = self._plain
        self._plain = plain[size:]
        return plain[:size]

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        data = self.recv(nbytes or len(view), flags)
        view[: len(data)] = data
        return len(data)

    def _decrypt(self, data: bytes) -> None:
        assert self._tls is not None
        parts: List[bytes] = []
        with self._lock:
            # In one go: if another thread ended the output while records wait in there, OpenSSL would take them for a
            # mistake, and read no more.
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
                self._failure = explain(exc)
            owes = self._outgoing.pending > 0
        self._plain = b"".join(parts)
        # The peer has asked for new keys, say, or is to have an alert. Whoever sends at the moment sends that as well,
        # and must not be waited for: its peer may be waiting for us to read.
        if owes and self._output.acquire(blocking=False):
            try:
                self._push()
            except OSError:
                pass  # it goes out with what is sent next, which meets what is wrong
            finally:
                self._output.release()

    # Output, by any thread.

    def send(self, data: Any, flags: int = 0) -> int:
        if self._tls is None:
            return super().send(data, flags)
        _refuse_flags(flags)
        chunk = memoryview(data)[:_CHUNK]
        with self._output:
            if self._begun and bytes(chunk[: len(self._begun)]) != self._begun:
                raise ConnectionAbortedError("a send that timed out was not tried again with the same bytes")
            taken = len(self._begun)
            if not taken:
                while taken < len(chunk):
                    with self._lock:
                        taken += self._tls.write(chunk[taken:])
            try:
                self._push()
            except OSError:
                self._begun = bytes(chunk[:taken])
                raise
            self._begun = b""
            return taken

    def sendall(self, data: Any, flags: int = 0) -> None:
        if self._tls is None:
            super().sendall(data, flags)
            return
        view = memoryview(data).cast("B")
        while view:
            view = view[self.send(view, flags) :]

    def _push(self, flags: int = 0) -> None:
        """Send what is encrypted, in the order in which it was."""
        while True:
            while self._unsent:
                self._unsent = self._unsent[super().send(self._unsent, flags) :]
            with self._lock:
                if not self._outgoing.pending:
                    return
                self._unsent = memoryview(self._outgoing.read())

    # Ends.

    def shutdown(self, how: int) -> None:
        """End the input, or the output, which the peer is told, or both at once, which is abrupt: it is not told.
        Nor is one that does not read, for ``linger_timeout`` or the socket's ``settimeout``: to end is not to wait."""
        if self._tls is not None and how == socket.SHUT_WR:
            seconds = min(self.linger_timeout, self.gettimeout() or self.linger_timeout)
            deadline = time.monotonic() + seconds
            if self._output.acquire(timeout=seconds):
                try:
                    self._say_goodbye(self._tls, deadline)
                finally:
                    self._output.release()
        super().shutdown(how)

    def _say_goodbye(self, tls: ssl.SSLObject, deadline: float) -> None:
        with self._lock:
            with contextlib.suppress(ssl.SSLError):  # that the peer has not said the same yet
                tls.unwrap()
        with contextlib.suppress(OSError):  # it is gone
            while True:
                try:
                    self._push(_DO_NOT_WAIT)
                    break
                except BlockingIOError:
                    if not has_room(self, deadline - time.monotonic()):
                        break

    # What else a socket can do, as ssl.SSLSocket has it: past the encryption nothing may go.

    def sendfile(self, file: Any, offset: int = 0, count: Optional[int] = None) -> int:
        if self._tls is None:
            return super().sendfile(file, offset, count)
        file.seek(offset)
        sent = 0
        while count is None or sent < count:
            data = file.read(_CHUNK if count is None else min(_CHUNK, count - sent))
            if not data:
                break
            self.sendall(data)
            sent += len(data)
        return sent

    def _refused(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError("a TLS socket has recv(), recv_into(), send(), sendall() and sendfile()")

    dup = recvfrom = recvfrom_into = recvmsg = recvmsg_into = sendto = sendmsg = _refused

    # What was agreed on.

    def version(self) -> Optional[str]:
        """``TLSv1.3``, say; None before the handshake."""
        return None if self._tls is None else self._tls.version()

    def cipher(self) -> Any:
        """As ``ssl.SSLSocket.cipher``."""
        return None if self._tls is None else self._tls.cipher()

    def getpeercert(self, binary_form: bool = False) -> Any:
        """As ``ssl.SSLSocket.getpeercert``."""
        return None if self._tls is None else self._tls.getpeercert(binary_form)

    def selected_alpn_protocol(self) -> Optional[str]:
        """As ``ssl.SSLSocket.selected_alpn_protocol``."""
        return None if self._tls is None else self._tls.selected_alpn_protocol()

    @property
    def subject(self) -> Optional[str]:
        """Who the peer is by its verified certificate, as RFC 4514 writes it, ``CN=alice,O=Example``, and safe to show;
        None without one."""
        certificate = self.getpeercert()
        if not certificate:
            return None
        names = ["+".join(starmap(_attribute, pairs)) for pairs in reversed(certificate.get("subject", ()))]
        return escape(",".join(names).encode(), exact=False)


def _attribute(name: str, value: str) -> str:
    # So that no value can look like another attribute (RFC 4514, section 2.4).
    return f"{_SHORT.get(name, name)}={re.sub(_SPECIAL, _BACKSLASHED, value)}"


_SPECIAL = r'^[# ]|[,+"\\<>;]| $'
_BACKSLASHED = r"\\\g<0>"


def _refuse_flags(flags: int) -> None:
    if flags:
        raise ValueError("a TLS socket knows no flags")


_SHORT = {  # RFC 4514, section 3
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}


# Words.


def explain(exc: BaseException) -> str:
    """Why a handshake, or what came after it, has failed, in words for people."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {exc.verify_message.rstrip('.')}"
    if isinstance(exc, ssl.SSLError):
        reason = str(exc.reason or "")
        if "ALERT_" in reason:
            alert = reason.partition("ALERT_")[2].lower().replace("_", " ")
            return f"the peer says: {_ALERTS.get(alert, alert)}"
        if reason in _NO_TLS:
            return "what came is no TLS"
        return _REASONS.get(reason, reason.lower().replace("_", " ") or str(exc))
    if isinstance(exc, OSError):
        return exc.strerror or str(exc)
    return str(exc)


_NO_TLS = {
    "BAD_RECORD_TYPE",
    "HTTP_REQUEST",
    "HTTPS_PROXY_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "UNKNOWN_PROTOCOL",
    "WRONG_VERSION_NUMBER",
}
_REASONS: Dict[str, str] = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it gave no certificate",
    "UNSUPPORTED_PROTOCOL": "it offers only versions of TLS that are too old",
    "NO_SHARED_CIPHER": "it offers no cipher that is allowed here",
    "RECORD_LAYER_FAILURE": "what came is no TLS, or was damaged",  # OpenSSL 3.6 tells no more of either
}
_ALERTS: Dict[str, str] = {  # RFC 8446, section 6.2, where the name alone does not say what to do
    "unknown ca": "unknown CA; the certificate was not issued by one that it trusts",
    "certificate required": "certificate required; it lets in only who gives one",
    "handshake failure": "handshake failure; versions, ciphers or certificates do not go together",
    "protocol version": "protocol version; it speaks no version of TLS that is offered",
}
