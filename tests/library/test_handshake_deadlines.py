"""Deadlines of the PROXY header and the TLS handshake before a session, with a simulated socket and clock."""

import errno
import os
import socket
import ssl
import time

import pytest

from echo.server.admission import Refused
from echo.transport import guarded, tls
from echo.transport.handshake import shake_hands
from echo.transport.proxy_header import receive_header

BLOCK = b"\r\n\r\n\0\r\nQUIT\n\x21\x00\xff\xff"
"""The beginning of a PROXY header of 65551 bytes."""

HELLO = b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03"
"""The beginning of a handshake of 16389 bytes."""


class Clock:
    """Replaces ``time.monotonic``."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


class Dripping(socket.socket):
    """A byte comes every 0.9 ms, so no timeout of the socket ever passes."""

    def settimeout(self, seconds):
        self.seconds = seconds

    def recv(self, size, flags=0):
        self.clock.now += min(self.seconds, 0.0009)
        self.begun, data = self.begun[1:], self.begun[:1]
        return data or b"\0"


class Lost(socket.socket):
    """A connection that the system gives up, after keep-alive for instance."""

    def recv(self, size, flags=0):
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def header_over(kind, timeout, **state):
    class Over(guarded.GuardedSocket, kind):
        seconds = None

    with socket.socket() as sock, Over(sock) as over:
        vars(over).update(state, begun=BLOCK)
        receive_header(over, timeout)


def handshake_over(kind, timeout, **state):
    class Over(tls.TLSSocket, kind):
        seconds = None

    with socket.socket() as sock, Over(sock) as over:
        vars(over).update(state, begun=HELLO)
        shake_hands(over, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), timeout)


both = pytest.mark.parametrize("step", [header_over, handshake_over], ids=["header", "handshake"])


@both
def test_dripping_bytes_do_not_outrun_the_deadline(clock, step):
    with pytest.raises(Refused, match=r"after 0\.3 s"):
        step(Dripping, 0.3, clock=clock)
    assert clock.now == pytest.approx(0.3)


@both
@pytest.mark.parametrize("timeout", [None, 0.3])
def test_a_connection_that_the_system_gives_up_is_not_reported_as_a_timeout(step, timeout):
    with pytest.raises(Refused) as caught:
        step(Lost, timeout)
    assert os.strerror(errno.ETIMEDOUT) in str(caught.value)
