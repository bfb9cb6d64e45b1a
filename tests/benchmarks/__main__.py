"""``python3 tests/benchmarks``: how fast, against what, as ratios of two things measured in turns.

Needs Linux and a C compiler (``cc``), and for the peers ``pip install '.[bench]'``; ``--free-threaded PYTHON`` names an
interpreter without the GIL for the rows that need one. A row that cannot be run here says why. Every figure is the
median of interleaved runs on this machine, every byte that comes back is compared, and a row that falls short of its
goal says so.
"""

import argparse
import contextlib
import importlib.util
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))

MIN_PROCESSORS = 4  # for two workers and a load beside them


class Missing(Exception):
    """What a row needs is not here."""


class Contender:
    """A server to measure: a command whose first line on stderr tells its port."""

    def __init__(self, name, *command, module=None):
        self.name = name
        self.command = command
        self.module = module

    @contextlib.contextmanager
    def running(self, places):
        if self.module is not None and importlib.util.find_spec(self.module) is None:
            raise Missing(f"{self.module} is not installed")
        command = [part.format(**places) for part in self.command]
        if shutil.which(command[0]) is None:
            raise Missing(f"{command[0]} is not installed")
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(command, stderr=log, cwd=ROOT)
            try:
                while True:
                    match = re.search(rb"listening on .*:(\d+)\n", os.pread(log.fileno(), 1000, 0))
                    if match:
                        break
                    if process.poll() is not None:
                        raise SystemExit(f"{self.name} does not start: {os.pread(log.fileno(), 2000, 0).decode()}")
                yield int(match.group(1)), process.pid
            finally:
                process.terminate()
                process.wait()
                if b"dropped: the log was not read" in os.pread(log.fileno(), 1 << 30, 0):
                    print(f"(of {self.name} some log records were dropped)")


def peer(name, file, *arguments, module=None):
    return Contender(name, sys.executable, os.path.join(HERE, "peers", file), *arguments, module=module)


def command(name, *options):
    return Contender(name, sys.executable, "-m", "echo.server", "0", *options)


ECHO = peer("echo", "library.py")
SPREAD = peer("echo, cpu_affinity=None", "library.py", "spread")
FREE = Contender("echo, no GIL", "{free_threaded}", os.path.join(HERE, "peers", "library.py"))
STOCK_FREE = Contender("stock server, no GIL", "{free_threaded}", os.path.join(HERE, "peers", "stock.py"))
QUIET = command("echo.server, quiet", "--no-log-messages")
LOGGED = command("echo.server, messages logged")
TWO = command("echo.server, two workers", "--no-log-messages", "--workers", "2")
STOCK = peer("stock server", "stock.py")
STOCK_KEPT = peer("stock server on one core", "stock.py", "kept")
ASYNCIO = peer("asyncio streams", "streams.py")
UVLOOP = peer("uvloop streams", "streams.py", "uvloop", module="uvloop")
TWISTED = peer("Twisted", "twisted_lines.py", module="twisted")
GEVENT = peer("gevent", "gevent_lines.py", module="gevent")
TRIO = peer("trio", "trio_lines.py", module="trio")
C = Contender("C, a thread each", "{threads}")
SOCAT = Contender(
    "socat, a process each", "socat", "-dd", "TCP-LISTEN:0,bind=127.0.0.1,fork,backlog=1024,nodelay", "PIPE"
)


class Busy:
    def __init__(self, connections, depth=1, size=64):
        self.arguments = ["busy", None, connections, depth, size]
        self.name = f"{connections} connections, " + ("ping-pong" if depth == 1 else f"{depth} lines in flight each")
        if size != 64:
            self.name += f", {size // 1024} KiB lines"

    def measure(self, contender, places, seconds):
        """Echoes or sessions per second."""
        with contender.running(places) as (port, _):
            self.arguments[1] = port
            done = subprocess.run(
                [places["load"], *map(str, self.arguments), str(seconds)],
                stdout=subprocess.PIPE,
                universal_newlines=True,
            )
        if done.returncode:
            raise SystemExit(f"the load on {contender.name} failed")
        count, elapsed = done.stdout.split()
        return int(count) / float(elapsed)


class Short(Busy):
    def __init__(self, connections=10, size=64):
        self.arguments = ["short", None, connections, size]
        self.name = "short sessions"


class Idle:
    name = "10,000 idle connections, KB each"
    count = 10_000

    def measure(self, contender, places, seconds):
        """Kilobytes of memory for each."""
        with contender.running(places) as (port, pid):
            before = resident(pid)
            load = subprocess.Popen(
                [places["load"], "idle", str(port), str(self.count), "64"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            if load.stdout.readline() != b"ready\n":
                raise SystemExit(f"{self.count} connections to {contender.name} cannot be had; see ulimit -n")
            used = resident(pid) - before
            load.communicate()
        return used / self.count


def resident(pid):
    """Kilobytes."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return int(re.search(r"^Pss:\s+(\d+)", file.read(), re.MULTILINE).group(1))


ROWS = [
    # what, contender, against, goal
    (Busy(10), ECHO, STOCK, 2.5),
    (Busy(100), ECHO, STOCK, 3.5),
    (Busy(10), ECHO, STOCK_KEPT, None),
    (Busy(100), ECHO, STOCK_KEPT, None),
    (Busy(10), ECHO, UVLOOP, 1.1),
    (Busy(100), ECHO, UVLOOP, 1.0),
    (Busy(10), ECHO, ASYNCIO, None),
    (Busy(10), ECHO, GEVENT, None),
    (Busy(10), ECHO, TRIO, None),
    (Busy(10), ECHO, TWISTED, None),
    (Busy(10), ECHO, SOCAT, None),
    (Short(), ECHO, SOCAT, None),
    (Busy(10), ECHO, SPREAD, None),
    (Short(), ECHO, UVLOOP, 1.3),
    (Short(), ECHO, STOCK, 5.0),
    (Busy(10, 100), ECHO, ASYNCIO, 12.0),
    (Busy(10, 100), ECHO, TWISTED, 2.5),
    (Busy(10, 1, 65536), ECHO, STOCK, 5.0),
    (Busy(10), ECHO, C, 0.8),
    (Busy(10), FREE, C, 0.85),
    (Busy(100), FREE, C, 0.85),
    (Short(), FREE, C, 0.9),
    (Busy(10), STOCK_FREE, C, None),
    (Busy(10), LOGGED, QUIET, 0.5),
    (Busy(10), TWO, QUIET, 1.7),
    (Idle(), ECHO, None, 32.0),
]


def run(work, contender, against, options, places):
    """(ours, theirs, the ratio), medians; of one thing alone (ours, None, ours)."""
    if contender in (FREE, STOCK_FREE) and not options.free_threaded:
        raise Missing("--free-threaded PYTHON is not given")
    if contender is TWO and len(os.sched_getaffinity(0)) < MIN_PROCESSORS:
        raise Missing(f"fewer than {MIN_PROCESSORS} processors")
    if against is None:
        ours = statistics.median(work.measure(contender, places, options.duration) for _ in range(options.runs))
        return ours, None, ours
    pairs = [
        tuple(work.measure(one, places, options.duration) for one in (contender, against)) for _ in range(options.runs)
    ]
    ours, theirs = (statistics.median(column) for column in zip(*pairs))
    return ours, theirs, statistics.median(a / b for a, b in pairs)


def main():
    parser = argparse.ArgumentParser(prog="python3 tests/benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("-n", "--runs", type=int, default=5, help="runs of each, in turns (default: %(default)s)")
    parser.add_argument("-d", "--duration", type=float, default=2.0, help="seconds a run (default: %(default)s)")
    parser.add_argument("--free-threaded", metavar="PYTHON", help="an interpreter without the GIL")
    parser.add_argument("--only", metavar="REGEX", default="", help="rows whose line matches")
    options = parser.parse_args()
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {len(os.sched_getaffinity(0))} processors, "
        f"{platform.system()} {platform.machine()}"
    )
    print(f"echoes or sessions a second, medians of {options.runs} runs of {options.duration:g} s in turns\n")
    print(f"{'work':42} {'of':28} {'against':26} {'of':>9} {'against':>9} {'ratio':>6}  {'goal':>5}")
    with tempfile.TemporaryDirectory() as folder:
        places = {"free_threaded": options.free_threaded}
        for name in ("load", "threads"):
            places[name] = os.path.join(folder, name)
            source = os.path.join(HERE, f"{name}.c")
            subprocess.run(["cc", "-O2", "-pthread", "-o", places[name], source], check=True)
        for work, contender, against, goal in ROWS:
            line = f"{work.name:42} {contender.name:28} {against.name if against else '':26}"
            if not re.search(options.only, line):
                continue
            print(line, end=" ", flush=True)
            try:
                ours, theirs, ratio = run(work, contender, against, options, places)
            except Missing as exc:
                print(f"not run: {exc}")
                continue
            reached = goal is None or (ratio >= goal if against else ratio <= goal)
            verdict = "" if goal is None else f"{goal:>5g}" + ("" if reached else "  falls short")
            print(
                f"{ours:9.0f} {'' if theirs is None else round(theirs):>9} {ratio:6.2f}  {verdict}".rstrip(), flush=True
            )


if __name__ == "__main__":
    main()
