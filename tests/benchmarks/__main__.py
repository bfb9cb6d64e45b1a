"""``python3 tests/benchmarks``: compare the speed of this server with that of others, as ratios.

Needs Linux and a C compiler (``cc``), and for the peers ``pip install '.[bench]'``; ``--free-threaded PYTHON`` names an
interpreter without the GIL for the rows that need one. A row that cannot run here prints the reason. Every figure is
the median of interleaved runs on this machine. Every byte that comes back is compared. A row that misses its goal says
so.

Each row has two figures: echoes or sessions per second, and the processor time of the server for one of them (user and
system, from ``/proc``). The goal is for one of the two ratios. "Floor" is the smallest loop in Python that works.

``--against REV`` compares this commit with another one instead of the peers, also in interleaved runs.
"""

import argparse
import collections
import contextlib
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))

MIN_PROCESSORS = 4  # for two workers and a load beside them


class Missing(Exception):
    """Something that a row needs is missing."""


Result = collections.namedtuple("Result", "rate cpu memory", defaults=[None])
"""Echoes or sessions per second; the server's processor time for one of them, in microseconds; memory of a connection,
in kilobytes. None: not measured."""


class Contender:
    """A server to measure: a command that prints its port in its first line on stderr. ``own``: whether it belongs to
    this project, so that another commit has it, too."""

    def __init__(self, name, *command, module=None, own=False):
        self.name = name
        self.command = command
        self.module = module
        self.own = own

    @contextlib.contextmanager
    def running(self, places, root=ROOT):
        if self.module is not None and importlib.util.find_spec(self.module) is None:
            raise Missing(f"{self.module} is not installed")
        command = [part.format(root=root, **places) for part in self.command]
        if shutil.which(command[0]) is None:
            raise Missing(f"{command[0]} is not installed")
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(command, stderr=log, cwd=root)
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


def peer(name, file, *arguments, python=sys.executable, **options):
    return Contender(name, python, os.path.join("{root}", "tests", "benchmarks", "peers", file), *arguments, **options)


def command(name, *options):
    return Contender(name, sys.executable, "-m", "echo.server", "0", *options, own=True)


NO_GIL = "{free_threaded}"
ECHO = peer("echo", "library.py", own=True)
SPREAD = peer("echo, cpu_affinity=None", "library.py", "spread", own=True)
FREE = peer("echo, no GIL", "library.py", python=NO_GIL, own=True)
QUIET = command("echo.server, quiet", "--no-log-messages")
LOGGED = command("echo.server, messages logged")
TWO = command("echo.server, two workers", "--no-log-messages", "--workers", "2")
FLOOR = peer("floor", "floor.py")
FLOOR_FREE = peer("floor, no GIL", "floor.py", python=NO_GIL)
STOCK = peer("stock server", "stock.py")
STOCK_FREE = peer("stock server, no GIL", "stock.py", python=NO_GIL)
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
        self.arguments = ["busy", connections, depth, size]
        self.name = f"{connections} connections, " + ("ping-pong" if depth == 1 else f"{depth} lines in flight each")
        if size != 64:
            self.name += f", {size // 1024} KiB lines"

    def measure(self, contender, places, seconds, root):
        with contender.running(places, root) as (port, pid):
            before = processor_seconds(pid)
            kind, *others = self.arguments
            done = subprocess.run(
                [places["load"], kind, str(port), *map(str, others), str(seconds)],
                stdout=subprocess.PIPE,
                universal_newlines=True,
            )
            used = processor_seconds(pid) - before
        if done.returncode:
            raise SystemExit(f"the load on {contender.name} failed")
        count, elapsed = done.stdout.split()
        return Result(int(count) / float(elapsed), used / int(count) * 1e6)


class Short(Busy):
    def __init__(self, connections=10, size=64):
        self.arguments = ["short", connections, size]
        self.name = "short sessions"


class Idle:
    name = "10,000 idle connections, KB each"
    count = 10_000

    def measure(self, contender, places, seconds, root):
        with contender.running(places, root) as (port, pid):
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
        return Result(None, None, used / self.count)


def processor_seconds(pid):
    """User and system time of a process and of its children that have ended; threads included."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def resident(pid):
    """Resident memory of a process, in kilobytes; shared pages are divided among their users."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return int(re.search(r"^Pss:\s+(\d+)", file.read(), re.MULTILINE).group(1))


Row = collections.namedtuple("Row", "work contender against figure goal")
"""``goal``: the minimum ratio of rates, or the maximum ratio of processor times or kilobytes; None: no goal."""


def rows(figure, *lines):
    return [Row(work, contender, against, figure, goal) for work, contender, against, goal in lines]


ROWS = [
    *rows(
        "cpu",
        (Busy(10), ECHO, FLOOR, 1.12),
        (Busy(100), ECHO, FLOOR, 1.18),
        (Short(), ECHO, FLOOR, 1.6),
        (Busy(10), FREE, FLOOR_FREE, 1.6),
    ),
    *rows(
        "rate",
        (Busy(10), ECHO, UVLOOP, 1.12),
        (Busy(100), ECHO, UVLOOP, 0.92),
        (Short(), ECHO, UVLOOP, 1.05),
        (Short(), ECHO, STOCK, 4.3),
        (Busy(10, 100), ECHO, ASYNCIO, 12.0),
        (Busy(10, 100), ECHO, TWISTED, 2.5),
        (Busy(10, 1, 65536), ECHO, STOCK, 5.2),
        (Busy(10), ECHO, C, 0.77),
        (Busy(10), FREE, C, 0.65),
        (Busy(100), FREE, C, 0.6),
        (Short(), FREE, C, 0.75),
        (Busy(10), LOGGED, QUIET, 0.55),
        (Busy(10), TWO, QUIET, 1.7),
        (Busy(10), ECHO, STOCK, None),
        (Busy(100), ECHO, STOCK, None),
        (Busy(10), ECHO, STOCK_KEPT, None),
        (Busy(100), ECHO, STOCK_KEPT, None),
        (Busy(10), ECHO, SPREAD, None),
        (Busy(10), ECHO, ASYNCIO, None),
        (Busy(10), ECHO, GEVENT, None),
        (Busy(10), ECHO, TRIO, None),
        (Busy(10), ECHO, TWISTED, None),
        (Busy(10), ECHO, SOCAT, None),
        (Short(), ECHO, SOCAT, None),
        (Busy(10), STOCK_FREE, C, None),
        # The speed that threads in Python can reach on this machine, without any work of ours.
        (Busy(10), FLOOR, UVLOOP, None),
        (Busy(100), FLOOR, UVLOOP, None),
        (Short(), FLOOR, UVLOOP, None),
        (Short(), FLOOR, STOCK, None),
        (Busy(10), FLOOR, C, None),
    ),
    *rows("memory", (Idle(), ECHO, None, 28.0)),
]


def compared_with_itself():
    """Each workload of this project's own contenders, once; without a goal."""
    seen = {(row.work.name, row.contender.name): row for row in ROWS if row.contender.own}
    return [row._replace(against=row.contender, goal=None) for row in seen.values()]


def run(row, options, places, other_root):
    """The medians of the row's contender, of its reference (None: there is none), and of their ratios."""
    for contender in (row.contender, row.against):
        if contender is not None and NO_GIL in contender.command and not options.free_threaded:
            raise Missing("--free-threaded PYTHON is not given")
    if row.contender is TWO and len(os.sched_getaffinity(0)) < MIN_PROCESSORS:
        raise Missing(f"fewer than {MIN_PROCESSORS} processors")
    ours, theirs = [], []
    for _ in range(options.runs):
        ours.append(row.work.measure(row.contender, places, options.duration, ROOT))
        if row.against is not None:
            theirs.append(row.work.measure(row.against, places, options.duration, other_root))
    ratios = [Result(*map(ratio, *pair)) for pair in zip(ours, theirs)]
    return medians(ours), medians(theirs), medians(ratios)


def ratio(ours, theirs):
    return None if ours is None or not theirs else ours / theirs


def medians(results):
    columns = [[value for value in column if value is not None] for column in zip(*results)]
    return Result(*(statistics.median(column) if column else None for column in columns)) if columns else None


def reached(row, ours, ratios):
    """Whether the row reaches its goal; None without a goal."""
    if row.goal is None:
        return None
    value = getattr(ours if ratios is None else ratios, row.figure)
    return value >= row.goal if row.figure == "rate" else value <= row.goal


def cells(ours, theirs, ratios):
    """A line's figures: of, against, ratio, first of the rates, then of the processor times."""
    for figure, form in (("rate", ".0f"), ("cpu", ".2f")):
        for result in (ours, theirs):
            value = getattr(result, figure, None)
            if figure == "rate" and value is None:
                value = getattr(result, "memory", None)
            yield f"{'' if value is None else format(value, form):>9}"
        value = getattr(ratios, figure, None)
        yield f"{'' if value is None else format(value, '.2f'):>6}"


@contextlib.contextmanager
def checked_out(revision):
    """A folder with another commit of this project."""
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, stdout=subprocess.PIPE)
    if archive.returncode:
        raise SystemExit(f"unknown commit {revision!r}")
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        yield folder


def compiled(folder):
    """The programs in C."""
    for name in ("load", "threads"):
        path = os.path.join(folder, name)
        subprocess.run(["cc", "-O2", "-pthread", "-o", path, os.path.join(HERE, f"{name}.c")], check=True)
        yield name, path


def main():
    parser = argparse.ArgumentParser(prog="python3 tests/benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("-n", "--runs", type=int, default=5, help="runs of each, in turns (default: %(default)s)")
    parser.add_argument("-d", "--duration", type=float, default=2.0, help="seconds a run (default: %(default)s)")
    parser.add_argument("--free-threaded", metavar="PYTHON", help="an interpreter without the GIL")
    parser.add_argument("--against", metavar="REV", help="compare with another commit instead of the peers")
    parser.add_argument("--only", metavar="REGEX", default="", help="rows whose line matches")
    parser.add_argument("--json", metavar="FILE", help="write the figures to a file as well")
    options = parser.parse_args()
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {len(os.sched_getaffinity(0))} processors, "
        f"{platform.system()} {platform.machine()}"
    )
    print(
        f"medians of {options.runs} runs of {options.duration:g} s in turns; rate: echoes or sessions per second; "
        "CPU: microseconds of the server for each\n"
    )
    against = "against" if options.against is None else options.against[:9]
    print(f"{'':98} {'rate':>9} {'':>9} {'':>6} {'CPU':>9}")
    print(f"{'work':42} {'of':28} {'against':26}" + f" {'of':>9} {against:>9} {'ratio':>6}" * 2 + "  goal")
    table = []
    with contextlib.ExitStack() as stack:
        places = dict(compiled(stack.enter_context(tempfile.TemporaryDirectory())), free_threaded=options.free_threaded)
        other_root = ROOT if options.against is None else stack.enter_context(checked_out(options.against))
        for row in ROWS if options.against is None else compared_with_itself():
            against = "" if row.against is None else options.against or row.against.name
            line = f"{row.work.name:42} {row.contender.name:28} {against:26}"
            if not re.search(options.only, line):
                continue
            print(line, end=" ", flush=True)
            entry = {"work": row.work.name, "of": row.contender.name, "against": against, "figure": row.figure}
            table.append(entry)
            try:
                ours, theirs, ratios = run(row, options, places, other_root)
            except Missing as exc:
                print(f"not run: {exc}")
                entry["not_run"] = str(exc)
                continue
            met = reached(row, ours, ratios)
            verdict = "" if met is None else f"{row.figure} {row.goal:g}" + ("" if met else ", falls short")
            print(" ".join(cells(ours, theirs, ratios)) + f"  {verdict}".rstrip(), flush=True)
            for name, result in (("ours", ours), ("theirs", theirs), ("ratios", ratios)):
                entry[name] = None if result is None else result._asdict()
            entry.update(goal=row.goal, reached=met)
    if options.json is not None:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"python": platform.python_version(), "against": options.against, "rows": table}, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
