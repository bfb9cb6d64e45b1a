"""A user's program, for type checkers only: the types that they must find for the public names. Never run.

``test_types.py`` has mypy read it, in its strictest mode; ``.ci/run`` has pyright read it, too.
"""

import socket
import ssl
from typing import Dict, List, Optional

from typing_extensions import Unpack, assert_type

import echo
from echo.server.options import ServerOptions


class Room(echo.Server):
    max_connections = 100
    shutdown_timeout = None
    topic = b""

    def verify_request(self, request: object, client_address: object) -> bool:
        return True


class Hall(echo.Server):
    """A server with an additional argument."""

    def __init__(self, topic: bytes, **options: Unpack[ServerOptions]) -> None:
        super().__init__(("127.0.0.1", 0), Member, **options)
        self.topic = topic


class Member(echo.LoggingMixin, echo.MessageRequestHandler):
    server: Room
    framing = echo.LengthFraming(max_message=1000)
    timeout = 300.0
    message_timeout = None
    shown_bytes = 20

    def connection_made(self) -> None:
        self.send(self.server.topic)

    def message_received(self, message: bytes) -> None:
        assert_type(message.upper(), bytes)
        assert_type(self.peer, str)
        assert_type(self.via, Optional[str])
        assert_type(self.connection, echo.Connection)
        self.server.topic = message

    def eof_received(self, rest: bytes) -> None:
        self.close()

    def connection_lost(self, reason: str) -> None:
        assert_type(self.session, Optional[int])


class Counted(echo.MessageRequestHandler):
    """A user's mixin."""

    def dispatch_made(self) -> None:
        self.count = 0
        super().dispatch_made()

    def dispatch_message(self, message: bytes) -> None:
        self.count += 1
        super().dispatch_message(message)

    def dispatch_eof(self, rest: bytes) -> None:
        super().dispatch_eof(rest)

    def dispatch_lost(self, reason: str) -> None:
        super().dispatch_lost(reason)

    def send(self, message: bytes) -> None:
        super().send(message)


class CountedMember(Counted, Member):
    pass


class Words(echo.Framing):
    """A user's framing."""

    name = "words"

    def encode(self, message: bytes) -> bytes:
        return message + b" "

    def decoder(self) -> echo.Decoder:
        return echo.LineFraming().decoder()


def serve(listening: socket.socket, context: ssl.SSLContext) -> None:
    with Room(("127.0.0.1", 0), Member, allow=["192.0.2.0/24"], ssl_context=context) as room:
        assert_type(room, Room)
        assert_type(room.start(), Room)
        assert_type(room.stop(timeout=0), bool)
    assert_type(Room.from_socket(listening, Member, max_connections_per_host=3), Room)
    assert_type(echo.Server.max_connections, Optional[int])
    echo.Server(
        ("127.0.0.1", 0),
        Member,
        True,
        max_connections=None,
        max_connections_per_host=10,
        shutdown_timeout=5,
        allow=("192.0.2.0/24",),
        deny=[],
        ssl_context=context,
        handshake_timeout=None,
        proxy_protocol=True,
        proxy_allow_from={"192.0.2.1"},
        dual_stack=False,
        unix_mode=0o660,
        cpu_affinity=[0, 1],
        request_queue_size=100,
        allow_reuse_address=False,
        allow_reuse_port=True,
        daemon_threads=False,
        timeout=0.5,
    ).server_close()
    assert_type(echo.Server("/run/echo.sock", echo.EchoRequestHandler).start(), echo.Server)
    Hall(b"weather", max_connections=5, cpu_affinity="auto").server_close()
    room.set_access(allow=(), deny=["192.0.2.1"])
    assert_type(room.connections, List[echo.ConnectionInfo])
    for info in room.connections:
        assert_type(info.peer, str)
        assert_type(info.bytes_in, int)
    assert_type(room.stats(), echo.Statistics)
    assert_type(room.stats().accepted, int)
    assert_type(room.stats().refused, Dict[str, int])
    assert_type(echo.run(Member, ("127.0.0.1", 65432), server_class=Room, max_connections=5), int)


def ask(room: Room, context: ssl.SSLContext) -> bytes:
    echo.connect("/run/echo.sock").close()
    echo.connect(("localhost", 65432), ssl_context=context, server_hostname="example.org").close()
    with echo.connect(room.server_address, framing=Words(), timeout=None) as client:
        assert_type(client, echo.Client)
        client.send(b"a message")
        assert_type(client.recv(), bytes)
        assert_type(client.echo(b"a message"), bytes)
        for reply in client.echo_many([b"a", b"b"], window=2):
            assert_type(reply, bytes)
        for message in client:
            assert_type(message, bytes)
        try:
            return client.recv()
        except echo.IncompleteMessage as exc:
            return exc.rest
        except echo.EchoError as exc:
            return exc.reason.encode()
