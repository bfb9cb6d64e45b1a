"""Stops: servers that are stopped at random moments, and a table of how they ended.

    python3 tests/stops.py [-n 2000] [--seed N] [--parallel N]

Each trial starts a server: half of them with workers, half under load, some with a handler whose module leaves
something behind (``support/leaves.py``), some with signals ignored or blocked at the start. It sends up to six signals,
at any moment from the start of Python on, to the process or to its group. Then the server must be gone in time (its
``--shutdown-timeout``, and a second), with nothing of its group left, no traceback, and the right exit code: 0, or 1 if
something had to be cut. A signal that comes before the command has its handlers, as ``/proc`` shows, may end Python.
The exit code is 0 if each trial ended so, else 1.
"""

import collections
import os
import queue
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TESTS = os.path.join(ROOT, "tests")
sys.path[:0] = [ROOT, TESTS]

from echo.cli import arguments  # noqa: E402
from echo.running import SAME_SIGNAL  # noqa: E402

PROG = "stops.py"
SLACK = 3.0  # seconds for a busy machine, on top of the deadline and the second of grace
PATIENCE = 60.0  # seconds for a server to start
CLEAN = ["", "", "", "", "idle pool", "exit function", "daemon thread", "child", "drain that exits"]
CUT = ["thread", "busy pool", "exit function that hangs", "drain that blocks", "stopped worker"]
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]
STOPPING = SIGNALS[:2]
Ending = collections.namedtuple("Ending", "kind code seconds faults")


class Trial:
    """One server from its start to its end."""

    def __init__(self, number, seed, folder):
        self._rng = rng = random.Random(f"{seed}/{number}")
        self.workers = number % 2 == 0
        self.load = number % 4 < 2
        self.leaves = rng.choice(CLEAN if rng.random() < 0.8 else CUT)
        if self.leaves == "stopped worker" and not self.workers:
            self.leaves = "thread"
        self.early = rng.random() < 0.4  # before it serves, or around then
        self.timeout = 0.5 if self.leaves in CUT else 30.0
        self.blocked = rng.random() < 0.2
        self.ignored = rng.choice([signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]) if rng.random() < 0.2 else None
        self._log_path = os.path.join(folder, f"{number}.log")
        self._faults = []
        self._clients = []

    @property
    def kind(self):
        where = "workers" if self.workers else "alone"
        return f"{where}, {'load' if self.load else 'idle'}, {'early' if self.early else 'serving'}"

    def run(self):
        with open(self._log_path, "wb") as log, tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "echo.server", "0", "--shutdown-timeout", f"{self.timeout}s"]
            command += ["--no-log-messages", "--handler", "support.leaves:Leaves"]
            command += ["--workers", "2"] if self.workers else []
            environment = dict(os.environ, PYTHONPATH=os.pathsep.join([ROOT, TESTS]), LEAVES=self.leaves)
            environment["PYTHONWARNINGS"] = "ignore"  # of forks with threads, from 3.12 on
            streams = {"stdout": subprocess.DEVNULL, "stderr": log}
            self.popen = subprocess.Popen(
                command, cwd=folder, env=environment, preexec_fn=self._prepare, start_new_session=True, **streams
            )
            try:
                return self._stop()
            finally:
                for client in self._clients:
                    client.close()
                os.killpg(self.popen.pid, signal.SIGKILL)
                self.popen.wait()

    def _prepare(self):
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGTERM, signal.SIGHUP] if self.blocked else [])
        if self.ignored is not None:
            signal.signal(self.ignored, signal.SIG_IGN)

    def _stop(self):
        rng = self._rng
        if self.early:
            time.sleep(rng.choice([rng.uniform(0, 0.3), rng.uniform(0.2, 1.0)]))
        else:
            self._begin()
            time.sleep(rng.choice([0, rng.uniform(0, 0.05)]))
        sent, began, began_at, second = [], None, None, False
        handled = self._handles()
        for position in range(rng.randint(1, 6)):
            number = rng.choice(SIGNALS if position else STOPPING)
            if number in STOPPING and number == self.ignored:
                number = signal.SIGTERM
            asks = number in STOPPING and number != self.ignored
            if asks and began is None:
                began, began_at = time.monotonic(), time.time()
            if self._code() is not None:
                break
            (os.killpg if rng.random() < 0.3 else os.kill)(self.popen.pid, number)
            sent.append(number)
            second = second or (asks and time.monotonic() - began > SAME_SIGNAL * 0.8)
            time.sleep(rng.choice([0, rng.uniform(0, 0.005), rng.uniform(0, 0.05), rng.uniform(0, 0.5)]))
        limit = self.timeout + 1.0 + SLACK
        while self._code() is None and time.monotonic() < began + limit:
            time.sleep(0.002)
        if self._code() is None and not handled and self._was_dropped():
            self.popen.send_signal(signal.SIGTERM)
            began = time.monotonic()
            while self._code() is None and time.monotonic() < began + limit:
                time.sleep(0.002)
        code = self._code()
        if code is None:
            code = "hangs"
            self._faults.append(f"still there {limit:g} s after the first signal")
        seconds = time.monotonic() - began
        took_another = self._took_another(began_at)
        self._judge(code, sent, handled, second or took_another)
        return Ending(self.kind, code, seconds, self._faults)

    def _was_dropped(self):
        """Whether Python itself has reported and dropped Ctrl-C at its start, as it does while it imports warnings, and
        in the weak references of its imports."""
        with open(self._log_path, "rb") as file:
            log = file.read()
        return b"'import warnings' failed" in log or (b"Exception ignored" in log and b"KeyboardInterrupt" in log)

    def _took_another(self, began_at):
        """Whether the command has taken a signal for another one than the first, which was sent at ``began_at``. On a
        busy machine it may handle a signal later than this program expects. Too early is a fault."""
        with open(self._log_path, encoding="utf-8", errors="replace") as file:
            log = file.read()
        taken = re.findall(rf"(?m)^(\S+ \S+)\.(\d+) INFO +(?:\[{self.popen.pid}\] )?SIG\w+: stopping", log)
        if len(taken) < 2:
            return False
        seconds, milliseconds = taken[1]
        after = time.mktime(time.strptime(seconds, "%Y-%m-%d %H:%M:%S")) + int(milliseconds) / 1000 - began_at
        if after < SAME_SIGNAL - 0.002:  # what the time of a record leaves out
            self._faults.append(f"took a signal for another one, {after:.3f} s after the first was sent")
        return True

    def _begin(self):
        """Wait until it serves, with sessions if it is under load or if only a session leaves something behind."""
        match = self._wait_for(rb"listening on \S+:(\d+)")
        if match is None:
            return
        if self.workers:
            self._wait_for(rb"(?s)worker 0 is.*worker 1 is")
        address = ("127.0.0.1", int(match.group(1)))
        needs_session = self.leaves in ("drain that blocks", "drain that exits", "child")
        for _ in range(self._rng.randint(3, 12) if self.load else int(needs_session)):
            self._clients.append(socket.create_connection(address, PATIENCE))
        for client in self._clients:
            client.sendall(b"child\n" if self.leaves == "child" and client is self._clients[0] else b"hello\n")
            client.recv(100)
        if self.load:
            threading.Thread(target=self._talk, args=(self._clients[:],), daemon=True).start()
        if self.leaves == "stopped worker":
            with open(self._log_path, "rb") as log:
                os.kill(int(re.findall(rb"worker 1 is process (\d+)", log.read())[0]), signal.SIGSTOP)

    def _talk(self, clients):
        data = b"hello\n" * 200
        while clients:
            for client in clients[:]:
                try:
                    client.sendall(data)
                    left = len(data)
                    while left:
                        got = client.recv(left)
                        if not got:
                            raise OSError
                        left -= len(got)
                except OSError:
                    clients.remove(client)

    def _wait_for(self, pattern):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._code() is None:
            with open(self._log_path, "rb") as log:
                match = re.search(pattern, log.read())
            if match:
                return match
            time.sleep(0.005)
        self._faults.append("it does not start")
        return None

    def _code(self):
        """The exit code; None while it runs. The process stays a zombie until the trial is over: otherwise its number
        would be free, and a signal could reach a stranger."""
        status = os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if status is None:
            return None
        return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status

    def _handles(self):
        """Whether the command has its signal handlers."""
        try:
            with open(f"/proc/{self.popen.pid}/status", encoding="ascii", errors="replace") as file:
                caught = int(re.search(r"SigCgt:\s*([0-9a-f]+)", file.read()).group(1), 16)
        except OSError:
            return False
        numbers = [number for number in SIGNALS if number != self.ignored]
        return all(caught >> (number - 1) & 1 for number in numbers)

    def _judge(self, code, sent, handled, second):
        log = b""
        with open(self._log_path, "rb") as file:
            log = file.read()
        must_cut = self.leaves in CUT and not self.early
        allowed = {1} if must_cut else {0}
        if second and (self.load or self.leaves):  # it cuts the sessions that are not done
            allowed |= {0, 1}
        if self.early and self.leaves in CUT:
            allowed |= {0, 1}
        if self.leaves == "drain that blocks" and not self._clients:
            allowed = {0}
        if not handled:
            allowed |= {0, 130, *(-number for number in sent)}
            if b"KeyboardInterrupt" in log:  # while Python imports site
                allowed.add(1)
        if code not in allowed and code != "hangs":
            self._faults.append(f"exit code {code}, not one of {sorted(allowed)}, after {[each.name for each in sent]}")
        own = ("drain that exits", "child")  # Ctrl-C reaches a child, too
        if b"Traceback" in log and handled and self.leaves not in own:
            self._faults.append("a traceback")
        left = [pid for pid in self._group() if pid != self.popen.pid]
        if left:
            self._faults.append(f"processes left: {left}")
        if self._faults:
            self._faults.append(f"{self.leaves or 'plain'}, ignored {self.ignored}, blocked {self.blocked}")
            self._faults.append("its log ends with: " + log[-600:].decode("utf-8", "replace"))

    def _group(self):
        """The processes of the server's group that are not zombies."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                        state, _, group = file.read().rpartition(")")[2].split()[:3]
                except OSError:
                    continue
                if int(group) == self.popen.pid and state not in "ZX":
                    found.append(int(name))
        return found


def stops(options, folder):
    """Run the trials; return their endings by number."""
    numbers = queue.SimpleQueue()
    for number in range(options.number):
        numbers.put(number)
    endings = {}

    def work():
        while True:
            try:
                number = numbers.get_nowait()
            except queue.Empty:
                return
            try:
                endings[number] = Trial(number, options.seed, folder).run()
            except Exception as exc:
                endings[number] = Ending("stops.py", "", 0.0, [f"a fault of its own: {exc!r}"])
            if sys.stderr.isatty():
                print(f"\r{len(endings)} of {options.number} ", end="", file=sys.stderr, flush=True)

    threads = [threading.Thread(target=work) for _ in range(options.parallel)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return endings


def report(endings):
    """Print the table; return whether all is well."""
    kinds = collections.defaultdict(list)
    for ending in endings.values():
        kinds[ending.kind].append(ending)
    print(f"{'stops':32} {'count':>6} {'slowest':>9} {'faults':>7}  exit codes")
    for kind, those in [*sorted(kinds.items()), ("all", list(endings.values()))]:
        codes = collections.Counter(str(ending.code) for ending in those)
        slowest, faults = max(ending.seconds for ending in those), sum(bool(ending.faults) for ending in those)
        text = ", ".join(f"{code}: {count}" for code, count in codes.most_common())
        print(f"{kind:32} {len(those):>6} {slowest:>7.2f} s {faults:>7}  {text}")
    wrong = [(number, ending) for number, ending in sorted(endings.items()) if ending.faults]
    for number, ending in wrong[:20]:
        print(f"\n{number}: {ending.kind}, {ending.seconds:.2f} s: " + "\n  ".join(ending.faults))
    return not wrong


def main(argv=None):
    parser = arguments.ArgumentParser(prog=PROG, description="Servers that are stopped at random moments.")
    add = parser.add_argument
    add("-n", "--number", type=arguments.count, default=2000, metavar="N", help="how many stops (default: 2000)")
    add("--seed", default="1", help="of all that is random (default: %(default)s)")
    add("--parallel", type=arguments.count, default=4, metavar="N", help="how many at a time (default: 4)")
    options = parser.parse_args(argv)
    if not os.path.isdir("/proc/self/fd"):
        arguments.fail(PROG, "there is no /proc here to look at the servers in; run it on Linux", 2)
    with tempfile.TemporaryDirectory() as folder:
        return 0 if report(stops(options, folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
