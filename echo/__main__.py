"""``python -m echo server`` and ``python -m echo client``: both commands under one name; ``echo.pyz`` starts here."""

from __future__ import annotations

import os
import sys

if not __package__:  # python3 echo, the folder: its parent has the package
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from echo.cli import arguments
from echo.version import __version__

HELP = """\
usage: {typed} server [option]...
       {typed} client [host] [port] [option]...

  server   an echo server; with --handler, a server of your own
  client   talk to a server; --ping times it, --bench puts a load on it

Each has --help. Without options they meet at 127.0.0.1:65432.
"""


def main() -> int:
    """Run the command that the first argument names; return the exit code."""
    name = os.path.basename(sys.argv[0].rstrip(os.sep))
    prog = "echo" if name in ("__main__.py", "echo") else name
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in ("server", "client"):
        sys.argv[:2] = [f"{prog} {command}"]  # as the name in its help and its errors
        if command == "client":
            from echo.cli.client.command import main as client

            return client()
        from echo.cli.server.command import run

        run()
    text = HELP.format(typed="python3 -m echo" if prog == "echo" else f"python3 {prog}")
    with arguments.standard_streams(prog):
        if command in ("-h", "--help"):
            print(text, end="")
        elif command == "--version":
            print(f"{prog} {__version__}")
        elif command:
            arguments.fail(prog, f"invalid command {command!r}: expected server or client; see --help", 2)
        else:
            sys.stderr.write(text)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
