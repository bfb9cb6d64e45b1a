"""The server command in this process, with a change to it, or with a handler that waits."""

import collections
import contextlib
import io
import signal
import socket

from echo import LengthFraming

Outcome = collections.namedtuple("Outcome", "code out err")


def call(main, *arguments):
    """Call the ``main`` of a command that prints something and ends. Return its exit code and its output.

    It runs in this process, which takes a hundredth of the time that a new interpreter needs to start.
    """
    out, err = io.StringIO(), io.StringIO()
    blocks = hasattr(signal, "pthread_sigmask")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, []) if blocks else None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(arguments))
        except SystemExit as exc:
            code = exc.code
        finally:
            if blocks:  # a client that Ctrl-C ends blocks further signals, until its process is gone
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return Outcome(code or 0, out.getvalue(), err.getvalue())


CHANGED = """
import functools, logging, os, sys
from echo import running
from echo.cli.server import command as command, balance, command_log, process, workers
from echo.transport import affinity
from echo.server import server

{change}

if __name__ == "__main__":
    command.run()
"""


def write_changed_command(folder, change):
    """Write a module ``changed`` into the folder: the server command that first executes the statements ``change``."""
    (folder / "changed.py").write_text(CHANGED.format(change=change))


def when_logged(event, statement):
    """Statements for ``write_changed_command``: execute ``statement`` right before that event is logged."""
    return (
        "def before(record):\n"
        f"    if getattr(record, 'event', None) == {event!r}:\n"
        f"        {statement}\n"
        "    return True\n"
        "logging.getLogger('echo.server').addFilter(before)\n"
    )


SLOW_HANDLER = """
import echo, os, threading

class Slow(echo.EchoRequestHandler):
    '''An echo that answers the message "slow" only once there is a file "go" in the current folder.'''

    def message_received(self, message):
        while message == b"slow" and not os.path.exists("go"):
            threading.Event().wait(0.005)
        super().message_received(message)
"""


def start_changed(run, folder, change, *options, **popen_options):
    """Start the server command on a free port after the statements ``change``; it has its ``address``."""
    write_changed_command(folder, change)
    server = run("changed", "0", *options, cwd=str(folder), **popen_options)
    port = server.read_log_until(r"listening on \S+:(\d+)").group(1)
    server.address = ("127.0.0.1", int(port))
    return server


BIG = 16 << 20
"""Bytes of a message that is larger than the buffers of both sockets together, so that sending it to a client that
does not read blocks."""


def client_that_does_not_read(server, dial):
    """Return a client that never reads, to which the server is sending a reply.

    The server has to have the options ``UNREAD``. When this returns, that reply is about to be sent.
    """
    client = dial(server.address)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sendall(LengthFraming(BIG).encode(bytes(BIG)))
    server.read_log_until(rf"received {BIG} bytes")
    return client


UNREAD = ("--framing", "length", "--max-message", str(BIG), "--send-timeout", "0", "--message-timeout", "0")
