"""Twisted's LineOnlyReceiver."""

import sys

from twisted.internet import protocol, reactor
from twisted.protocols.basic import LineOnlyReceiver


class Echo(LineOnlyReceiver):
    delimiter = b"\n"
    MAX_LENGTH = 2**20

    def connectionMade(self):  # noqa: N802 (Twisted's name)
        self.transport.setTcpNoDelay(True)

    def lineReceived(self, line):  # noqa: N802
        self.sendLine(line)


port = reactor.listenTCP(0, protocol.Factory.forProtocol(Echo), backlog=1024, interface="127.0.0.1")
print(f"listening on 127.0.0.1:{port.getHost().port}", file=sys.stderr, flush=True)
reactor.run()
