"""The files of a folder over HTTP: the standard library's own handler, unchanged, on ``echo.Server``.

The handler knows nothing of ``echo``, and yet has the server's limits, its log and its clean stop. After SIGTERM the
current downloads complete, idle keep-alive connections end at once, and new connections are refused.

    python3 -m examples.http_files                       # this folder; or with a port and a folder
    curl -s http://127.0.0.1:65432/LICENSE | tail -1
    curl --limit-rate 1M -o copy http://127.0.0.1:65432/some-large-file     # and meanwhile stop the server
"""

import functools
import http.server
import sys

import echo


class Files(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive: several requests in one session
    timeout = 30  # seconds; socketserver's own attribute, which ends an idle connection


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 65432
    handler = functools.partial(Files, directory=sys.argv[2] if len(sys.argv) > 2 else ".")
    code = echo.run(
        handler,
        ("127.0.0.1", port),
        max_connections=100,  # at a time; further clients wait
        max_connections_per_host=20,  # further connections of a host are closed at once
        shutdown_timeout=60.0,  # total time in seconds that a stop gives the downloads
    )
    sys.exit(code)
