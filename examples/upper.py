"""The smallest service: every line comes back in capitals.

It shows a handler, and how the examples here start and stop. Run it in one terminal and connect from others. Ctrl-C or
SIGTERM stops it; it first answers the lines that have arrived:

    python3 -m examples.upper                 # or with a port; 0 takes any free one
    printf 'hello\nworld\n' | nc -N 127.0.0.1 65432
    python3 -m echo.client                    # the same, line by line; Ctrl-D leaves
"""

import sys

import echo


class Upper(echo.MessageRequestHandler):
    def message_received(self, message: bytes) -> None:
        self.send(message.upper())


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 65432
    sys.exit(echo.run(Upper, ("127.0.0.1", port)))
