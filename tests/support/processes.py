"""Processes that tests start: the commands of this project, and other programs; and their state from ``/proc``."""

import collections
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time

from . import DEADLINE, ROOT, eventually


class Process:
    """``python -m MODULE ARGUMENTS`` with pipes; killed at the end whatever happens.

    ``env`` is added to the environment; None removes a variable. No history is kept unless ``env`` names a file: it
    would be the user's own. Warnings are errors, so a socket that is left open shows in stderr.
    """

    def __init__(self, *arguments, python_options=(), program=None, **popen_options):
        own = {"PYTHONPATH": ROOT, "ECHO_HISTFILE": os.devnull, "PYTHONWARNINGS": "error"}
        own.update(popen_options.pop("env", {}))
        environment = {name: value for name, value in dict(os.environ, **own).items() if value is not None}
        for stream in ("stdin", "stdout", "stderr"):
            popen_options.setdefault(stream, subprocess.PIPE)
        program = program or [sys.executable, *python_options, "-m"]
        self.popen = subprocess.Popen([*program, *arguments], env=environment, **popen_options)
        self.pid = self.popen.pid
        self.log = ""

    def read_log_until(self, pattern):
        """Read stderr until a line matches; return the match."""
        deadline = time.monotonic() + DEADLINE
        while True:
            match = re.search(pattern, self.log)
            if match:
                return match
            left = deadline - time.monotonic()
            ready = select.select([self.popen.stderr], [], [], max(0, left))[0]
            assert ready, f"no {pattern!r} in {self.log!r}"
            data = os.read(self.popen.stderr.fileno(), 65536)
            assert data, f"stderr ended without {pattern!r}: {self.log!r}"
            self.log += data.decode()

    def finish(self, data=None, timeout=DEADLINE * 2):
        """Give it ``data`` on stdin, wait for its end; return (exit code, stdout); stderr is added to ``log``."""
        out, err = self.popen.communicate(data, timeout=timeout)
        self.log += (err or b"").decode()
        return self.popen.returncode, out

    def terminate(self, signum=signal.SIGTERM, **options):
        """Send a signal, wait for the end; return the exit code."""
        self.popen.send_signal(signum)
        return self.finish(**options)[0]

    def kill(self):
        if self.popen.poll() is None:
            self.popen.kill()
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self.popen.wait()


class Program:
    """Another program, with pipes; the output of both streams is in ``seen``."""

    def __init__(self, *command):
        self.popen = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.seen = b""

    def type(self, data):
        self.popen.stdin.write(data)
        self.popen.stdin.flush()

    def until(self, pattern):
        """Read until the output matches ``pattern``; return the match."""
        while True:
            match = re.search(pattern, self.seen)
            if match:
                return match
            assert select.select([self.popen.stdout], [], [], DEADLINE)[0], f"no {pattern!r} in {self.seen!r}"
            data = os.read(self.popen.stdout.fileno(), 65536)
            assert data, f"it ended without {pattern!r}: {self.seen!r}"
            self.seen += data

    def finish(self, data=None):
        """Give it ``data`` and the end of input, wait for its end; return (exit code, all of its output)."""
        self.seen += self.popen.communicate(data, timeout=DEADLINE)[0]
        return self.popen.returncode, self.seen

    def kill(self):
        if self.popen.poll() is None:
            self.popen.kill()
        for stream in (self.popen.stdin, self.popen.stdout):
            with contextlib.suppress(OSError):
                stream.close()
        self.popen.wait()


# The state of a process, from /proc.


def rss(pid):
    """Resident memory, in bytes."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def threads_of(pid):
    """How many threads the process has."""
    return len(os.listdir(f"/proc/{pid}/task"))


def descriptors_of(pid):
    """How many descriptors the process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_seconds(pid):
    """User and system time of the process, in seconds, to hundredths."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def processes_of(pid):
    """The children of a process, and their children."""
    children = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(_status(int(name))[1], []).append(int(name))
    found, parents = [], [pid]
    while parents:
        parents = [child for parent in parents for child in children.get(parent, [])]
        found += parents
    return found


def state_of(pid):
    """The process's state: ``S`` if it sleeps, ``T`` if it was stopped by a signal, and so on."""
    return _status(pid)[0]


def is_alive(pid):
    """Whether there is such a process, and it is not a zombie."""
    try:
        return _status(pid)[0] not in "ZX"
    except OSError:
        return False


def wait_until_it_sleeps(pid):
    """Wait until the main thread blocks in a system call; return at once where there is no ``/proc``.

    A signal that comes just before such a call begins is handled only after it. A thread that waits for the GIL
    sleeps, too, but wakes up every few milliseconds.
    """
    seen = collections.deque(maxlen=4)

    def sleeps():
        state, switches = _status(pid)[0], _switches(pid)
        seen.append(switches if state == "S" else object())
        return len(seen) == 4 and len(set(seen)) == 1

    if os.path.exists("/proc/self/stat"):
        eventually(sleeps, "it never came to rest")


def _switches(pid):
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        match = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", file.read(), re.MULTILINE)
    return match and match.group(1)


def _status(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        state, parent = file.read().rpartition(")")[2].split()[:2]
    return state, int(parent)
