"""A command in a pseudo-terminal of its own, and a user who types."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios

from . import DEADLINE
from .processes import wait_until_it_sleeps

OWN_TERMINAL = """\
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""``python -c OWN_TERMINAL -m MODULE ...`` in a session whose terminal is standard input, for Ctrl-C to work."""

CTRL_C, CTRL_D, CTRL_S, CTRL_U, CTRL_V, CTRL_W, CTRL_Z = b"\x03", b"\x04", b"\x13", b"\x15", b"\x16", b"\x17", b"\x1a"
ESC, BACKSPACE = b"\x1b", b"\x7f"
UP, DOWN, LEFT = ESC + b"[A", ESC + b"[B", ESC + b"[D"


class Terminal:
    """A process in a pseudo-terminal. ``screen`` is all that it wrote there.

    Unless ``environment`` names a file, no history is kept: it would be the user's own.
    """

    def __init__(self, run, *arguments, starter=OWN_TERMINAL, **environment):
        self.master, slave = pty.openpty()
        self.name = os.ttyname(slave)
        self.settings = termios.tcgetattr(slave)  # before the process can change them
        try:
            self.process = run(
                *arguments,
                python_options=("-c", starter),
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
                env=dict({"TERM": "dumb", "INPUTRC": os.devnull, "ECHO_HISTFILE": os.devnull}, **environment),
            )
        finally:
            os.close(slave)
        self.screen = b""
        self.seen = 0

    def type(self, data):
        os.write(self.master, data)

    def read(self):
        """Read the next output; return false at the end."""
        ready = select.select([self.master], [], [], DEADLINE)[0]
        assert ready, f"nothing more after {self.screen!r}"
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: nobody has the other side open any more
            data = b""
        self.screen += data
        return bool(data)

    def until(self, pattern):
        """Read until the output since the last call matches ``pattern``; return the match."""
        while True:
            match = re.compile(pattern).search(self.screen, self.seen)
            if match:
                self.seen = match.end()
                return match
            assert self.read(), f"no {pattern!r} in {self.screen[self.seen :]!r}"

    def resize(self, rows, columns):
        """Change the window's size; the process gets SIGWINCH."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.popen.send_signal(signal.SIGWINCH)  # once more, in case the system has not sent it

    def settle(self):
        """Wait until the process sleeps in its read: a Ctrl-C before that would be handled only at the next key."""
        wait_until_it_sleeps(self.process.pid)

    def leave(self):
        """Read to the end; return the exit code."""
        while self.read():
            pass
        code = self.process.popen.wait(DEADLINE)
        assert b"Traceback" not in self.screen and b"Error" not in self.screen, self.screen
        return code

    def kill(self):
        """End the process, and take its terminal away."""
        self.process.kill()
        os.close(self.master)
