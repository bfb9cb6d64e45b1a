"""Helpers for the tests of ``echo.Server``: check an echo, make a call that must not hang, a server that cannot accept,
a reserved port, an object around a socket."""

import contextlib
import socket
import threading

import echo

from . import DEADLINE, read_exactly


def echoes(sock, data=b"hello\n"):
    """Whether ``data`` comes back."""
    sock.sendall(data)
    return read_exactly(sock, len(data)) == data


def ends_in_time(action):
    """Run ``action`` in a thread of its own; fail if it hangs, raise what it raises."""
    failures = []

    def act():
        try:
            action()
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive(), "it hangs"
    if failures:
        raise failures[0]


class FailingServer(echo.Server):
    """``get_request()`` raises the exceptions in ``faults``, one for each call, before it accepts again."""

    def __init__(self, *arguments, **options):
        self.faults = []
        super().__init__(*arguments, **options)

    def get_request(self):
        if self.faults:
            raise self.faults.pop(0)
        return super().get_request()


@contextlib.contextmanager
def port_kept(server):
    """Keep the port of a server with ``allow_reuse_port`` after its end, so that a connection to it is refused.

    Otherwise another program could get the port a moment later, and a client could even connect to itself there. A
    socket that is bound and does not listen prevents both.
    """
    with socket.socket() as holder:
        if hasattr(socket, "SO_REUSEPORT"):
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(server.server_address)
        yield


class Passing:
    """An object of a program's own around a socket, which passes all calls on."""

    def __init__(self, sock):
        self._sock = sock

    def __getattr__(self, name):
        return getattr(self._sock, name)
