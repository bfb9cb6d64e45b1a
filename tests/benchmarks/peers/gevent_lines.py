"""gevent's StreamServer."""

import socket
import sys

from gevent.server import StreamServer


def serve(sock, address):
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        with sock.makefile("rb") as lines:
            for line in lines:
                sock.sendall(line)
    except ConnectionError:
        pass


server = StreamServer(("127.0.0.1", 0), serve, backlog=1024)
server.start()
print(f"listening on 127.0.0.1:{server.server_port}", file=sys.stderr, flush=True)
server.serve_forever()
