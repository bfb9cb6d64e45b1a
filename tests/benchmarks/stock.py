"""The line echo that the standard library's documentation would have one write."""

import socketserver
import sys


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    request_queue_size = 1024
    daemon_threads = True


with Server(("127.0.0.1", 0), Handler) as server:
    print("listening on %s:%d" % server.server_address, file=sys.stderr, flush=True)
    server.serve_forever()
