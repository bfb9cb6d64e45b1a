"""What a connection owes before it is a session, over a socket and a clock that are made up."""

import errno
import os
import socket
import ssl

import pytest

from echo import sockets, tls
from echo.server import admission

BLOCK = b"\r\n\r\n\0\r\nQUIT\n\x21\x00\xff\xff"
"""The beginning of a PROXY header of 65551 bytes."""

HELLO = b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03"
"""The beginning of a handshake of 16389 bytes."""


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    for module in (sockets, tls, admission):
        monkeypatch.setattr(module, "time", made)
    return made


class Dripping(socket.socket):
    """A byte comes each 0.9 ms, and always in time."""

    def settimeout(self, seconds):
        self.seconds = seconds

    def recv(self, size, flags=0):
        self.clock.now += min(self.seconds, 0.0009)
        self.begun, data = self.begun[1:], self.begun[:1]
        return data or b"\0"


class Lost(socket.socket):
    """What the system has given up, after keep-alive say."""

    def recv(self, size, flags=0):
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def header_over(kind, timeout, **told):
    with kind() as sock:
        vars(sock).update(told, begun=BLOCK)
        admission.receive_header(sock, timeout)


def handshake_over(kind, timeout, **told):
    class Over(tls.TLSSocket, kind):
        seconds = None

    with socket.socket() as sock, Over(sock) as over:
        vars(over).update(told, begun=HELLO)
        admission.shake_hands(over, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), timeout)


both = pytest.mark.parametrize("owed", [header_over, handshake_over], ids=["header", "handshake"])


@both
def test_bytes_that_drip_faster_than_a_wait_can_be_short_do_not_outrun_the_deadline(clock, owed):
    with pytest.raises(admission.Refused, match=r"after 0\.3 s"):
        owed(Dripping, 0.3, clock=clock)
    assert clock.now == pytest.approx(0.3)


@both
@pytest.mark.parametrize("timeout", [None, 0.3])
def test_a_connection_that_the_system_gives_up_is_no_deadline_that_has_passed(owed, timeout):
    with pytest.raises(admission.Refused) as caught:
        owed(Lost, timeout)
    assert os.strerror(errno.ETIMEDOUT) in str(caught.value)
