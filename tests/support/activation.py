"""Pass listening sockets to a program as a service manager does: see sd_listen_fds(3)."""

import fcntl

LAUNCHER = """\
import os, sys

pid, copies, *arguments = sys.argv[1:]
for target, copy in enumerate(map(int, filter(None, copies.split(","))), 3):
    os.dup2(copy, target)  # inheritable, as systemd leaves it
    os.close(copy)
os.environ["LISTEN_PID"] = pid or str(os.getpid())
os.execv(sys.executable, [sys.executable, *arguments])
"""


def copies_of(*files):
    """Return descriptors to pass on, and then to close: copies with high numbers, so that moving one to its place
    overwrites none of the others."""
    return [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 20) for file in files]


def launcher(copies, pid=""):
    """Return arguments to put before Python's own, so that these descriptors become 3 and the following ones.

    The environment has to contain their number, ``LISTEN_FDS``. ``pid``: the process that they are meant for, if that
    is not the one that is started.
    """
    return ["-c", LAUNCHER, pid, ",".join(map(str, copies))]
