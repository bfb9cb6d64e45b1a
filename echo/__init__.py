"""echo: the threaded TCP server framework that ``socketserver`` should have grown into.

A server in five lines::

    import echo

    class Upper(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(message.upper())

    with echo.Server(("127.0.0.1", 65432), Upper) as server:
        server.serve_forever()

The map of the package. Imports point down only, and a test holds that::

    cli           the two commands: python -m echo.server, python -m echo.client
    measure       what --ping and --bench are made of
    client        Client, and connect()
    mixins        steps around a handler's hooks: logging, throttling, transcripts, faults
    transport     TLS, certificates, the PROXY protocol, processors; loaded when an option asks for them
    ------------  the spine: it loads nothing above this line, unless an option asks for it
    server        Server, which runs any socketserver handler
    handlers      a session as hooks: MessageRequestHandler, EchoRequestHandler
    connection    one socket and one framing: receive, send, deadlines
    framing       bytes to messages and back; never sees a socket
    exceptions    what can go wrong, and the reason it gives a session's end

The spine is one evening's reading, in this order: ``exceptions``, ``framing``, ``connection`` (with its
``message_clock``), ``handlers`` (``mixin_order`` checks the classes made of them). Then the server: ``sessions`` (the
live connections), ``statistics`` (what they add up to), ``admission`` (which clients may come in), ``accepting`` (what
the accept loop sleeps on), ``stopping`` (a drawing of the states, and the order of locks), and last
``server/server.py``, which begins with the life of a connection. ``options``, ``access``, ``listening`` (which sets the
options and makes the socket), ``threads``, ``forking`` and ``reporting`` are one concern each. ``sockets`` (deadlines,
a gentle close), ``text`` (peer bytes and addresses as safe text) and ``protocol`` (the word ``exit``, the default
address) serve both sides; ``files`` are those that decide who gets in; ``starting`` is Ctrl-C while a command is
imported. ``Server`` imports neither handlers nor framing.
"""

from . import starting as _starting  # noqa: F401  # before all others: Ctrl-C while a command is imported
from .client import Client, connect
from .connection import Connection
from .exceptions import (
    ConnectionClosed,
    EchoError,
    EchoMismatch,
    IncompleteMessage,
    MessageTimeout,
    MessageTooLong,
    ProtocolError,
    ReceiveTimeout,
    SendTimeout,
)
from .framing import Decoder, Framing, LengthFraming, LineFraming, RawFraming
from .handlers import EchoRequestHandler, MessageRequestHandler
from .mixins import FaultMixin, LoggingMixin, ThrottlingMixin, TranscriptMixin
from .server import ConnectionInfo, Server, Statistics
from .version import __version__

__all__ = [
    "Client",
    "Connection",
    "ConnectionClosed",
    "ConnectionInfo",
    "Decoder",
    "EchoError",
    "EchoMismatch",
    "EchoRequestHandler",
    "FaultMixin",
    "Framing",
    "IncompleteMessage",
    "LengthFraming",
    "LineFraming",
    "LoggingMixin",
    "MessageRequestHandler",
    "MessageTimeout",
    "MessageTooLong",
    "ProtocolError",
    "RawFraming",
    "ReceiveTimeout",
    "SendTimeout",
    "Server",
    "Statistics",
    "ThrottlingMixin",
    "TranscriptMixin",
    "__version__",
    "connect",
]
