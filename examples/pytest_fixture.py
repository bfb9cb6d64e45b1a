"""A server in your own tests: a real one, on a free port, that behaves as badly as you need.

It shows how to test a client against a server that replies, one that stays silent and one that hangs up, without
guessing a port and without a sleep. The guide "Testing your own service" has a larger double, with faults that a
test switches on. This is a file of tests; run it, then copy it:

    python3 -m pytest examples/pytest_fixture.py
"""

import queue
import socket
import sys
from typing import Any, Callable, Iterator, Type

import pytest

import echo


def read_temperature(address: Any, timeout: float = 60.0) -> float:
    """The code under test: a client that reads a thermometer."""
    with socket.create_connection(address, timeout) as sock, sock.makefile("rb") as lines:
        sock.sendall(b"TEMP?\n")
        line = lines.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the thermometer hung up")
        return float(line)


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    """``serve(HandlerClass)`` starts a server and returns its address. The fixture stops all servers after the test."""
    servers = []

    def start(handler_class: Type[echo.MessageRequestHandler]) -> Any:
        servers.append(echo.Server(("127.0.0.1", 0), handler_class).start())  # port 0: any free one
        return servers[-1].server_address

    yield start
    stopped = [server.stop(timeout=60.0) for server in servers]  # all of them, also if the first one fails
    assert all(stopped), "a session had to be cut: its handler did not return"


class Thermometer(echo.MessageRequestHandler):
    def message_received(self, message: bytes) -> None:
        self.send(b"21.5")


class Silent(echo.MessageRequestHandler):
    """Reads, and never replies."""


class HangsUp(echo.MessageRequestHandler):
    def message_received(self, message: bytes) -> None:
        self.connection.write_raw(b"21")  # half a reply
        self.close()


def test_a_temperature_is_read(serve: Callable[..., Any]) -> None:
    assert read_temperature(serve(Thermometer)) == 21.5


def test_the_thermometer_is_asked_once(serve: Callable[..., Any]) -> None:
    received: "queue.Queue[bytes]" = queue.Queue()  # of this test alone; how it waits for the session's thread

    class Recording(Thermometer):
        def message_received(self, message: bytes) -> None:
            received.put(message)
            super().message_received(message)

    read_temperature(serve(Recording))
    assert received.get(timeout=60) == b"TEMP?"
    assert received.empty()


def test_a_silent_thermometer_is_given_up(serve: Callable[..., Any]) -> None:
    with pytest.raises(socket.timeout):
        read_temperature(serve(Silent), timeout=0.1)


def test_a_thermometer_that_hangs_up_in_mid_answer_is_an_error(serve: Callable[..., Any]) -> None:
    with pytest.raises(ConnectionError, match="hung up"):
        read_temperature(serve(HangsUp))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
