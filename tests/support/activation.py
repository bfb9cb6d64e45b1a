"""What a service manager does to pass listening sockets to a program (sd_listen_fds(3)), for who plays its part."""

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
    """Descriptors to pass on and to close: copies with high numbers, so that none is overwritten before its turn."""
    return [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 20) for file in files]


def launcher(copies, pid=""):
    """What stands before Python's own arguments, so that these descriptors are passed as those from 3 on. The
    environment has to name their number, ``LISTEN_FDS``; ``pid`` is whom they are meant for, if not that process."""
    return ["-c", LAUNCHER, pid, ",".join(map(str, copies))]
