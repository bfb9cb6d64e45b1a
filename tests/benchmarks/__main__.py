"""``python tests/benchmarks``: how fast, against what, as ratios of two things measured in turns.

Needs a C compiler (``cc``) and Linux. Every figure is the median of interleaved runs on this machine; the load
compares every byte that comes back.
"""

import argparse
import contextlib
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))

ECHO = [sys.executable, "-m", "echo.server", "0"]
STOCK = [sys.executable, os.path.join(HERE, "stock.py")]


class Contender:
    """A server to measure: a command whose first line tells its port."""

    def __init__(self, name, command, log=None):
        self.name = name
        self.command = command
        self.log = log

    @contextlib.contextmanager
    def running(self, folder):
        path = os.path.join(folder, "log")
        with open(path, "wb") as log:
            process = subprocess.Popen(self.command, stderr=log, cwd=ROOT)
        try:
            while True:
                with open(path, "rb") as file:
                    match = re.search(rb"listening on \S+:(\d+)\n", file.read(1000))
                if match:
                    break
                if process.poll() is not None:
                    raise SystemExit(f"{self.name} does not start")
            yield int(match.group(1))
        finally:
            process.terminate()
            process.wait()
            with open(path, "rb") as file:
                if b"dropped: the log was not read" in file.read():
                    print(f"(of {self.name} some log records were dropped)")
            os.remove(path)


QUIET = Contender("echo, quiet", [*ECHO, "--no-log-messages"])
LOGGED = Contender("echo, every message logged to a file", ECHO)
STOCK_SERVER = Contender("stock ThreadingTCPServer", STOCK)

ROWS = [
    # what, contender, against, least ratio, (connections, depth, size)
    ("10 connections, ping-pong, every message logged", LOGGED, QUIET, 0.5, (10, 1, 64)),
    ("10 connections, ping-pong", QUIET, STOCK_SERVER, None, (10, 1, 64)),
    ("100 connections, ping-pong", QUIET, STOCK_SERVER, None, (100, 1, 64)),
    ("10 connections, 100 lines in flight each", QUIET, STOCK_SERVER, None, (10, 100, 64)),
]


def measure(load, contender, work, seconds, folder):
    """Echoes per second."""
    with contender.running(folder) as port:
        done = subprocess.run(
            [load, str(port), *map(str, work), str(seconds)],
            stdout=subprocess.PIPE,
            check=True,
            universal_newlines=True,
        )
    echoes, elapsed = done.stdout.split()
    return int(echoes) / float(elapsed)


def main():
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("-n", "--runs", type=int, default=5, help="runs of each, in turns (default: %(default)s)")
    parser.add_argument("-d", "--duration", type=float, default=2.0, help="seconds a run (default: %(default)s)")
    options = parser.parse_args()
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} processors, "
        f"{platform.system()} {platform.machine()}; medians of {options.runs} runs of {options.duration:g} s\n"
    )
    print(f"{'work':48} {'against':26} {'echoes/s':>9} {'against':>9} {'ratio':>6}  {'goal':>5}")
    with tempfile.TemporaryDirectory() as folder:
        load = os.path.join(folder, "load")
        subprocess.run(["cc", "-O2", "-o", load, os.path.join(HERE, "load.c")], check=True)
        for what, contender, against, least, work in ROWS:
            pairs = [
                tuple(measure(load, one, work, options.duration, folder) for one in (contender, against))
                for _ in range(options.runs)
            ]
            ours, theirs = (statistics.median(column) for column in zip(*pairs))
            ratio = statistics.median(a / b for a, b in pairs)
            verdict = "" if least is None else f"{least:>5}" + ("" if ratio >= least else "  falls short")
            print(f"{what:48} {against.name:26} {ours:9.0f} {theirs:9.0f} {ratio:6.2f}  {verdict}", flush=True)


if __name__ == "__main__":
    main()
