"""The stock server and the simplest handler; with an argument it keeps to one processor."""

import os
import socketserver
import sys


class Handler(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024  # with the default backlog of 5, connections are lost (gh-55232)


if len(sys.argv) > 1:
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
with Server(("127.0.0.1", 0), Handler) as server:
    print("listening on %s:%d" % server.server_address, file=sys.stderr, flush=True)
    server.serve_forever()
