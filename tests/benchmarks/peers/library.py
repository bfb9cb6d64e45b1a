"""echo as a library: the handler alone, no log, and with the GIL one processor."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), *[os.pardir] * 3))

import echo

options = {"max_connections": None, "cpu_affinity": None if "spread" in sys.argv else "auto"}
with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, **options) as server:
    print("listening on %s:%d" % server.server_address, file=sys.stderr, flush=True)
    server.serve_forever()
