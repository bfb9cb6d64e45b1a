"""echo: the threaded TCP server framework that ``socketserver`` should have grown into.

A service in five lines, with a log, limits and a clean stop::

    import echo

    class Upper(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(message.upper())

    echo.run(Upper, ("127.0.0.1", 65432), max_connections=100)

The map of the package. Imports point down only, and a test holds that::

    cli           the two commands: python -m echo.server, python -m echo.client
    measure       what --ping and --bench are made of
    client        Client, and connect()
    mixins        steps around a handler's hooks: logging, throttling, transcripts, faults
    logs          the lines of a log, and where they go; loaded by run() and by the server command
    transport     TLS, certificates, the PROXY protocol, processors; loaded when an option asks for them
    ------------  the spine: it loads nothing above this line, unless an option asks for it
    running       run(): a server with signals and a log, from its start to its exit code
    server        Server, which runs any socketserver handler
    handlers      a session as hooks: MessageRequestHandler, EchoRequestHandler
    connection    one socket and one framing: receive, send, deadlines
    framing       bytes to messages and back; never sees a socket
    exceptions    what can go wrong, and the reason it gives a session's end

Read the spine in this order: ``exceptions``, ``framing``, ``connection`` (with its ``message_clock``), ``handlers``
(``class_body`` and ``mixin_order`` check the classes made of them). Then the objects that the server is made of:
``sessions`` (one connected client), ``registry`` (all of them, and their sums), ``admission`` (which clients may come
in), ``serving`` (one run of the accept loop). Last the server itself, layer by layer: ``listening`` (options, listening
socket), ``session_server`` (the life of a session), ``accepting`` (the accept loop), and, after ``stopping`` (one stop;
with drawings of the states, of who runs it, and of the order of locks), ``server`` (start and stop). ``options``,
``access``, ``unix_paths``, ``statistics``, ``threads``, ``forking``, ``back_off``, ``signal_safe`` and ``reporting``
are one concern each. ``sockets`` (deadlines, a gentle close), ``text`` (peer bytes and addresses as safe text),
``protocol`` (the word ``exit``, the default address) and ``beginning`` (threads that begin in time) serve both sides.
``log_calls`` is for a program's log that may fail, or change the records.
``descriptors`` are those that other code may close. ``files`` reads the files that decide which clients get in.
``starting`` handles Ctrl-C while a command is imported. ``Server`` imports neither handlers nor framing.
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
from .framing import CRLFFraming, Decoder, Framing, LengthFraming, LineFraming, RawFraming
from .handlers import EchoRequestHandler, MessageRequestHandler
from .mixins import FaultMixin, LoggingMixin, ThrottlingMixin, TranscriptMixin
from .running import run
from .server import ConnectionInfo, Server, Statistics
from .version import __version__

__all__ = [
    "CRLFFraming",
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
    "run",
]
