"""echo: the threaded TCP server framework that ``socketserver`` should have grown into.

A server in five lines::

    import echo

    class Upper(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(message.upper())

    with echo.Server(("127.0.0.1", 65432), Upper) as server:
        server.serve_forever()

To read the package, begin at the bottom of the map and go up; imports point down only::

    client, server     Client, and Server, which runs any socketserver handler; their command lines
        |    mixins    policies on a handler: logging, throttling, transcripts, faults
        |    handlers  a session as hooks: MessageRequestHandler, EchoRequestHandler
        |   /
    connection         one socket and one framing: receive, send, deadlines
        |
    framing            bytes to messages and back; never sees a socket
        |
    exceptions         what can go wrong, and the reason it gives a session's end

A first evening: ``framing``, ``connection``, ``handlers``; and ``mixins``, each a room of its own. A second:
``server/server.py`` from its rules on; ``run`` (what the accept loop sleeps on) and ``sessions`` (who is connected)
beside it. The rest of ``server`` is one concern a room, each to be read alone: ``access``, ``admission`` and
``proxy_protocol`` (who may come in), ``listeners`` and ``systemd`` (where it listens), ``threads``, ``affinity``,
``balance`` and ``workers`` (on what it runs), ``reporting`` (how it tells), ``options``, ``loading`` and ``logs`` (the
command). Of ``client``, ``client.py`` is the library and ``endpoint`` opens its socket; ``exchange``, ``pipe`` and
``terminal`` with its ``history`` are the command's three ways to talk, ``report`` is how it tells, and ``measure`` a
small world of its own: probes that are numbered and checked, for ``--ping`` and ``--bench``.

Beside them, for both sides: ``sockets`` (what a plain socket lacks: deadlines, a gentle close), ``tls`` (a socket that
speaks it), ``certificates`` (what that needs, from files), ``text`` (peer bytes and addresses as safe text),
``protocol`` (the word ``exit``, and the default address), ``arguments`` (what both command lines parse alike),
``version``. ``Server`` imports neither handlers nor framing. (Its command line does.)
"""

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
