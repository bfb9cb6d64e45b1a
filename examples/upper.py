"""The smallest service: every line comes back in capitals.

It shows a handler, and how every example here starts and stops. Run it in one terminal and talk to it from others, as
many as you like; Ctrl-C or SIGTERM stop it, and it answers what has arrived before it ends:

    python3 -m examples.upper                 # or with a port; 0 takes any free one
    printf 'hello\nworld\n' | nc -N 127.0.0.1 65432
    python3 -m echo.client                    # the same, line by line; Ctrl-D leaves
"""

import logging
import signal
import sys

import echo


class Upper(echo.MessageRequestHandler):
    def message_received(self, message: bytes) -> None:
        self.send(message.upper())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 65432
    with echo.Server(("127.0.0.1", port), Upper) as server:  # leaving the block drains the sessions
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: server.shutdown())  # ends serve_forever(), and nothing else
        logging.info("listening on %s port %d", *server.server_address)
        server.serve_forever()
