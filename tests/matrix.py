"""The tests under every CPython here, each in a virtual environment of its own, and once more with ``-O``.

    python3 tests/matrix.py [--ends] [--jobs N] [--free-threaded PATH] [--command COMMAND] [pytest's arguments]

The Pythons are those on PATH and pyenv's, 3.8 and later, with and without the GIL; with ``--ends`` only the oldest and
the newest that have one. They run in development mode, with warnings as errors, and so do the processes that the tests
start: a socket that is left open is a failure. The exit code is 1 if anything failed, or if there was nothing to run.
Nothing is repeated: a test that fails now and then is a defect.

The script uses only pytest's command line, and needs only the standard library.
"""

import argparse
import collections
import concurrent.futures
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

LIMIT = 3600.0
"""Seconds that one run may take."""

NEEDED = ("echo", "LICENSE", "README.md", "pyproject.toml", "setup.cfg")
"""The files that an installation is built from."""

STRICT = ["-X", "dev", "-W", "error"]
STRICT_ENVIRONMENT = {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"}
# pytest warns that -O keeps only the assertions of tests and plugins. That is enough: conftest.py has those of the
# helpers in tests/support rewritten, too.
OPTIMIZED = ["-O", "-W", "error"]
OPTIMIZED_ENVIRONMENT = {"PYTHONOPTIMIZE": "1", "PYTHONWARNINGS": "error"}
KEPT = ["-W", "ignore:assertions not in test modules:pytest.PytestConfigWarning"]

_ASK = """
import sys, sysconfig
print(sys.implementation.name, *sys.version_info[:2], "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else "")
"""


# The Pythons.


def version_of(path):
    """``"3.12"``, or ``"3.13t"`` without the GIL; None if it is not CPython 3.8 or later."""
    try:
        # Not from this folder, whose modules could be imported in place of the standard library's.
        asked = subprocess.run(
            [path, "-I", "-c", _ASK],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.fullmatch(r"cpython 3 (\d+) (t?)\n", asked.stdout.decode(errors="replace"))
    return f"3.{found[1]}{found[2]}" if found and int(found[1]) >= 8 else None


def candidates():
    """Every path that may be a Python: this one, those on PATH, pyenv's."""
    yield sys.executable
    for folder in os.get_exec_path():
        if os.path.isdir(folder):
            for name in sorted(os.listdir(folder)):
                if re.fullmatch(r"python3(\.\d+t?)?", name):
                    yield os.path.join(folder, name)
    pyenv = shutil.which("pyenv")
    if pyenv is not None:
        root = subprocess.run([pyenv, "root"], stdout=subprocess.PIPE, check=True).stdout.decode().strip()
        versions = os.path.join(root, "versions")
        for name in sorted(os.listdir(versions)) if os.path.isdir(versions) else []:
            yield os.path.join(versions, name, "bin", "python3")


def find_pythons(paths):
    """The paths by version, the oldest first: several of one version, since some may not work."""
    found = {}
    for path in paths:
        if os.access(path, os.X_OK):
            version = version_of(path)
            if version is not None:
                found.setdefault(version, []).append(path)
    return {version: found[version] for version in sorted(found, key=_rank)}


def ends(pythons):
    """The oldest and the newest that have a GIL."""
    versions = [version for version in pythons if not version.endswith("t")]
    return {version: pythons[version] for version in [*versions[:1], *versions[-1:]]}


def _rank(version):
    return int(version[2:].rstrip("t")), version.endswith("t")


# One run of pytest.


class Run:
    """Run the tests once. ``command``: without pytest's arguments. ``environment``: added to this process's."""

    def __init__(self, name, command, environment=None):
        self.name = name
        self.command = command
        self.environment = dict(os.environ, **(environment or {}))
        self.figures = None
        self.passed = False
        self.output = ""
        self.seconds = 0.0

    def __call__(self, arguments):
        began = time.monotonic()
        command = [*self.command, "-q", "-p", "no:cacheprovider", *arguments]
        code, self.output = captured(command, self.environment, LIMIT)
        self.seconds = time.monotonic() - began
        self.figures = figures_of(self.output)
        self.passed = code == 0 and self.figures is not None  # a test that ends the process may end it with code 0

    def __str__(self):
        counts = ", ".join(f"{count} {word}" for word, count in (self.figures or {"counted": 0}).items())
        return f"{self.name:<20} {counts} in {self.seconds:.0f} s{'' if self.passed else '; FAILED'}"


def captured(command, environment, limit):
    """The exit code, and all output."""
    with tempfile.TemporaryFile() as file:  # no pipe: a process that outlives the run could keep that open
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the command may be a shell, which runs it in a child
                process.wait()
        file.seek(0)
        output = file.read().decode(errors="replace")
    return code, output if code is not None else f"{output}\nno end after {limit:g} s"


def figures_of(output):
    """The counts in pytest's last line, as ``{"passed": 12, "skipped": 1}``; None if it has no counts."""
    for line in reversed(output.splitlines()):
        if re.search(r" in \d+(\.\d+)?s\b", line):
            counts = {
                word.rstrip("s"): int(count) for count, word in re.findall(r"(\d+) ([a-z]+)", line.partition(" in ")[0])
            }
            return counts or None
    return None


def not_run(output):
    """The lines of the table of tests that did not run (``support/tiers.py``), without their counts."""
    table = output.rpartition(" not run ")[2]
    return set(re.findall(r"^ +\d+  (skipped: .*|\w+: .*)$", table, re.MULTILINE))


# All of them.


def installed(python, folder, extra):
    """Make a virtual environment with the packages of an extra in setup.cfg. Return its Python, or None if ``python``
    cannot make one."""
    if captured([python, "-m", "venv", folder], None, LIMIT)[0] != 0:
        return None
    source = os.path.join(folder, "source")  # a build leaves files behind
    os.mkdir(source)
    for name in NEEDED:
        path = os.path.join(ROOT, name)
        copy = shutil.copytree if os.path.isdir(path) else shutil.copy
        copy(path, os.path.join(source, name))
    own = os.path.join(folder, "Scripts" if os.name == "nt" else "bin", "python")
    code, output = captured([own, "-m", "pip", "install", "-q", f"{source}[{extra}]"], None, LIMIT)
    if code != 0:
        raise RuntimeError(output)
    return own


def under(version, paths, work, optimized=False, extra="test"):
    """A run under the first of these Pythons that can make a virtual environment; None if none can."""
    name = f"CPython {version}{' -O' if optimized else ''}"
    for number, path in enumerate(paths):
        own = installed(path, os.path.join(work, f"{name.replace(' ', '')}-{number}"), extra)
        if own is None:
            print(f"{path} makes no virtual environment; left out", flush=True)
        elif optimized:
            return Run(name, [own, *OPTIMIZED, "-m", "pytest", *KEPT], OPTIMIZED_ENVIRONMENT)
        else:
            return Run(name, [own, *STRICT, "-m", "pytest"], STRICT_ENVIRONMENT)
    return None


def run_all(makers, arguments, jobs):
    """Prepare and start each run, ``jobs`` at a time. Return the exit code."""
    runs = []

    def do(make):
        run = make()
        if run is not None:
            run(arguments)
            runs.append(run)
            print(run, flush=True)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(do, make) for make in makers]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    for run in runs:
        if not run.passed:
            print(f"\n== {run.name}\n{run.output}", flush=True)
    print_table(runs)
    return 0 if runs and all(run.passed for run in runs) else 1


def print_table(runs):
    print(f"\n{'':<20} {'passed':>8} {'failed':>8} {'skipped':>8} {'seconds':>8}")
    for run in sorted(runs, key=lambda run: _order(run.name)):
        counts = collections.Counter(run.figures or {})
        bad = counts["failed"] + counts["error"]
        print(
            f"{run.name:<20} {counts['passed']:>8} {bad:>8} {counts['skipped']:>8} {run.seconds:>8.0f}"
            f"{'' if run.passed else '  FAILED'}"
        )
    for reason in sorted(set.intersection(*(not_run(run.output) for run in runs)) if runs else ()):
        print(f"not run anywhere: {reason}")


def _order(name):
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description="Run the tests under every CPython here. Other options go to pytest.", allow_abbrev=False
    )
    parser.add_argument("--ends", action="store_true", help="only the oldest and the newest Python with the GIL")
    parser.add_argument(
        "--jobs", type=int, metavar="N", default=os.cpu_count(), help="runs at a time (default: %(default)s)"
    )
    parser.add_argument("--free-threaded", metavar="PATH", help="a CPython without the GIL, if none is on PATH")
    parser.add_argument("--command", help="run pytest with this shell command instead, once, as it is")
    options, rest = parser.parse_known_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs: expected 1 or more")
    if options.command is not None:
        return run_all([lambda: Run("the command", ["sh", "-c", f'{options.command} "$@"', "sh"])], rest, 1)
    paths = list(candidates())
    if options.free_threaded is not None:
        if not (version_of(options.free_threaded) or "").endswith("t"):
            parser.error(f"--free-threaded: {options.free_threaded} is not a CPython without the GIL")
        paths.insert(0, options.free_threaded)
    pythons = find_pythons(paths)
    default = version_of(sys.executable)
    if options.ends:
        pythons = ends(pythons)
    extra = "test-all" if "--all" in rest else "test"
    with tempfile.TemporaryDirectory(prefix="matrix-") as work:

        def maker(version, optimized=False):
            return lambda: under(version, pythons[version], work, optimized, extra)

        makers = [maker(version) for version in pythons]
        if default in pythons and not options.ends:
            makers.append(maker(default, optimized=True))
        return run_all(makers, rest, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
