"""``--workers``: all serve, all stop, and a worker that dies takes no other worker's clients with it."""

import collections
import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading

import pytest

import echo
from echo.cli.server import options, workers
from echo.cli.server.balance import Balance
from echo.cli.server.command import main
from echo.transport import affinity
from support import DEADLINE, eventually, read_all
from support.commands import start_changed, when_logged, write_changed_command
from support.processes import is_alive, state_of
from support.usage_errors import error_line

pytestmark = pytest.mark.skipif(not workers.SUPPORTED, reason="this system has no fork()")

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc to look in")

HANDLER = '''
import echo, os, threading

class Tells(echo.MessageRequestHandler):
    """Sends its process or its processors; or it takes its time, until there is a file ``go``, and may end its process
    then."""

    def message_received(self, message):
        if message == b"pid":
            self.send(b"%d" % os.getpid())
        elif message == b"cpu":
            self.send(b"%d %d" % (os.getpid(), sum(1 << number for number in os.sched_getaffinity(0))))
        elif message.startswith((b"work", b"exit")):
            self.send(b"begun")
            self.flush()
            pause = threading.Event()
            while not os.path.exists("go"):
                pause.wait(0.005)
            if message.startswith(b"exit"):
                os._exit(int(message[4:]))
            self.send(b"done")
        else:
            self.send(message)
'''

PATIENT = ("--shutdown-timeout", "10m")
"""The sessions end before this time, however busy this machine is."""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tells.py").write_text(HANDLER)
    return tmp_path


@pytest.fixture
def start(server_command, folder):
    """``start(count, *options)``: the command with so many workers and the handler ``Tells``."""

    def start(count, *options, **popen_options):
        server = server_command(
            *("--workers", str(count), "--handler", "tells:Tells", *PATIENT, *options),
            cwd=str(folder),
            **popen_options,
        )
        started(server, count)
        return server

    return start


@pytest.fixture
def changed(run, folder):
    """``changed(change, *options)``: the same; the command first executes these statements."""

    def start(change, *options, **popen_options):
        return start_changed(run, folder, change, "--handler", "tells:Tells", *PATIENT, *options, **popen_options)

    return start


def started(server, count):
    """The workers' processes by number, when ``count`` of them have started."""
    server.read_log_until(r"(?s)" + r".*".join([r"worker \d+ is process \d+\b"] * count))
    return {int(number): int(pid) for number, pid in re.findall(r"worker (\d+) is process (\d+)", server.log)}


def ask(sock, message):
    """The reply to a line."""
    sock.sendall(message + b"\n")
    return answer(sock)


def answer(sock):
    reply = b""
    while not reply.endswith(b"\n"):
        more = sock.recv(1)
        if not more:
            break
        reply += more
    return reply.rstrip(b"\n")


def refuses(address):
    """Whether nothing listens there. Call it until it is true: another program may use the port for a moment."""
    with socket.socket() as sock:
        return sock.connect_ex(address) != 0


def stop_process(pid):
    """Stop the process by SIGSTOP; return when it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: state_of(pid) == "T")


def client_of_each(server, dial, count):
    """Return a client of each worker, by the worker's process. Further clients stay connected, too."""
    clients = {}

    def all_there():
        client = dial(server.address)
        clients.setdefault(int(ask(client, b"pid")), client)
        return len(clients) == count

    eventually(all_there)
    return clients


# All of them serve.


def test_port_0_is_one_port_that_is_logged_once(start, dial):
    server = start(3)
    pids = started(server, 3)
    assert sorted(pids) == [0, 1, 2] and len(set(pids.values())) == 3 and server.pid not in pids.values()
    assert set(client_of_each(server, dial, 3)) == set(pids.values())
    assert server.terminate() == 0
    assert server.log.count("listening on") == 1
    assert "Traceback" not in server.log


def test_of_twelve_sessions_three_workers_have_four_each(changed, dial):
    """A worker with more sessions leaves a new client to the others, here for as long as they need."""
    server = changed("balance.Balance.hold_time = 3600; balance.Balance.slack = 0", "--workers", "3")
    clients = [dial(server.address) for _ in range(12)]
    counts = collections.Counter()
    for client in clients:
        counts[ask(client, b"pid")] += 1
    assert sorted(counts.values()) == [4, 4, 4]
    server.popen.send_signal(signal.SIGUSR1)
    server.read_log_until(r"(?s)(statistics: accepted 4, active 4, .*){3}")
    assert server.terminate() == 0


@needs_proc
def test_a_worker_that_is_ahead_takes_a_client_that_no_other_takes(start, dial):
    server = start(2)
    clients = client_of_each(server, dial, 2)
    stopped, other = sorted(clients)
    stop_process(stopped)
    try:
        for _ in range(10):
            assert ask(dial(server.address), b"pid") == b"%d" % other
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert ask(clients[stopped], b"pid") == b"%d" % stopped


class StrictBalance(Balance):
    slack = 0


def test_a_worker_is_not_ahead_of_one_that_has_as_many_or_a_few_less_or_is_dead():
    balance = Balance(3)
    balance.become(1)
    balance.set(Balance.slack)
    assert not balance.is_ahead()
    balance.set(Balance.slack + 1)
    assert balance.is_ahead()
    balance = StrictBalance(3)
    balance.become(1)
    assert not balance.is_ahead()
    balance.set(1)
    assert balance.is_ahead()
    for number in (0, 2):
        balance.ended(number)
    assert not balance.is_ahead()
    balance.began(2)
    assert balance.is_ahead()
    balance.become(2)
    balance.set(80)
    balance.become(1)
    balance.set(90)  # an eighth more is still even
    assert not balance.is_ahead()
    balance.set(91)
    assert balance.is_ahead()


def test_all_forked_processes_share_the_balance():
    balance = StrictBalance(2)
    child = os.fork()
    if not child:
        try:
            balance.become(1)
            balance.set(7)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    balance.set(7)
    assert not balance.is_ahead()
    balance.set(8)
    assert balance.is_ahead()


@pytest.mark.skipif(not affinity.SUPPORTED, reason="this system keeps no program on a processor")
@pytest.mark.skipif(len(affinity.usable()) < 2, reason="needs two processors")
@pytest.mark.parametrize("chosen", ["auto", "off", "list"])
def test_each_worker_has_a_processor_of_its_own(start, dial, chosen):
    both = sorted(affinity.usable())[:2]
    server = start(2, "--cpu-affinity", ",".join(map(str, both)) if chosen == "list" else chosen)
    clients = client_of_each(server, dial, 2)
    masks = [int(ask(client, b"cpu").split()[1]) for client in clients.values()]
    if chosen == "list" or (chosen == "auto" and affinity.has_gil()):
        assert sorted(masks) == [1 << number for number in both]
    else:
        assert masks == [sum(1 << number for number in affinity.usable())] * 2


USES = """
import concurrent.futures
import tempfile

import echo

common = tempfile.TemporaryDirectory()
kept = []


class Uses(echo.EchoRequestHandler):
    def message_received(self, message):
        pool, own = concurrent.futures.ProcessPoolExecutor(1), tempfile.TemporaryDirectory()
        pool.submit(int).result()
        kept.append((pool, own))
        self.send(f"{common.name} {own.name}".encode())
"""


def test_what_a_session_leaves_in_a_worker_ends_with_it(server_command, dial, tmp_path):
    """Row 64: the parent's exit functions are not called in a worker, and its own were not, either."""
    (tmp_path / "uses.py").write_text(USES)
    server = server_command("--handler", "uses:Uses", "--workers", "2", *PATIENT, cwd=str(tmp_path))
    folders = ask(dial(server.address), b"names").split()
    assert all(map(os.path.isdir, folders))
    assert server.terminate() == 0
    assert not any(map(os.path.exists, folders))


def test_one_worker_is_the_process_itself_and_forks_nothing(changed, dial):
    server = changed("os.fork = None", "--workers", "1")
    assert ask(dial(server.address), b"pid") == b"%d" % server.pid
    assert server.terminate() == 0
    assert "worker" not in server.log


def test_auto_is_one_for_each_processor():
    count = len(affinity.usable()) or os.cpu_count() or 1
    chosen = options.parser().parse_args(["--workers", "auto"]).workers
    assert chosen == options.auto_workers(count, affinity.has_gil())


@pytest.mark.parametrize(
    "processors, useful, count", [(1, True, 1), (8, True, 8), (8, False, 1)], ids=["one", "eight", "no GIL or no fork"]
)
def test_auto_is_one_where_more_are_of_no_use(processors, useful, count):
    assert options.auto_workers(processors, useful) == count


@pytest.mark.parametrize("text", ["0", "-1", "junk", "", "1.5", "2,3", "Auto", "1025", "9999999999", "9" * 5000])
def test_an_invalid_number_of_workers_gets_one_line_and_code_2(capsys, text):
    code, line = error_line(capsys, main, "0", f"--workers={text}")
    assert code == 2
    assert "--workers" in line and "--help" in line


def test_where_there_is_no_fork_several_workers_are_refused_in_one_line(run, folder):
    (folder / "forkless.py").write_text(
        "import os, sys\ndel os.fork\nfrom echo.server.__main__ import main\nsys.exit(main())\n"
    )
    server = run("forkless", "0", "--workers", "2", cwd=str(folder))
    assert server.finish() == (2, b"")
    assert server.log.count("\n") == 1
    assert "this system has no fork()" in server.log


def test_the_limits_are_each_workers_own(start, dial):
    server = start(2, "-m", "1")
    clients = [dial(server.address) for _ in range(2)]
    assert len({ask(client, b"pid") for client in clients}) == 2
    third = dial(server.address)
    third.sendall(b"pid\n")
    pid = ask(clients[0], b"pid")
    clients[0].close()
    assert answer(third) == pid  # it waited for a place


@needs_proc
def test_a_worker_has_no_more_of_its_parents_descriptors_than_it_needs(start, dial):
    server = start(3)
    counts = {}
    for pid in client_of_each(server, dial, 3):
        counts[pid] = len([link for link in links(pid) if link.startswith("socket:") and link in links(server.pid)])
    assert set(counts.values()) == {1}  # the listening socket


def links(pid):
    found = []
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    return found


# Stopping.


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_every_worker_and_the_code_is_0(start, dial, folder, signum):
    server = start(3)
    clients = client_of_each(server, dial, 3)
    busy, idle, other = clients.values()
    assert ask(busy, b"work") == b"begun"
    busy.sendall(b"more\n")
    server.popen.send_signal(signum)
    assert read_all(idle) == b""
    assert read_all(other) == b""
    server.read_log_until("draining")
    eventually(lambda: refuses(server.address))
    (folder / "go").write_text("")
    assert read_all(busy) in (b"done\nmore\n", b"done\n")
    assert server.finish()[0] == 0
    assert f"{signum.name}: stopping 3 workers" in server.log
    assert len(re.findall(r"stopped: \d+ sessions? drained, 0 cut", server.log)) == 3
    assert "Traceback" not in server.log and "KeyboardInterrupt" not in server.log and "died" not in server.log


def test_the_listening_socket_is_closed_before_the_sessions_are_done(start, dial, folder):
    server = start(2)
    clients = client_of_each(server, dial, 2)
    for client in clients.values():
        assert ask(client, b"work") == b"begun"
    server.popen.send_signal(signal.SIGTERM)
    eventually(lambda: refuses(server.address))
    assert server.popen.poll() is None
    (folder / "go").write_text("")
    assert [read_all(client) for client in clients.values()] == [b"done\n"] * 2
    assert server.finish()[0] == 0


def test_a_session_that_has_to_be_cut_makes_the_code_1(changed, dial):
    server = changed("server.Server._echo_cut_grace = 0.05", "--workers", "2", "--shutdown-timeout", "100ms")
    clients = client_of_each(server, dial, 2)
    busy = next(iter(clients.values()))
    assert ask(busy, b"work") == b"begun"
    assert server.terminate() == 1
    assert "127.0.0.1:%d cut: not done in time" % busy.getsockname()[1] in server.log


def test_a_second_signal_cuts_and_the_code_is_1(changed, dial):
    change = "server.Server._echo_cut_grace = 0.05; running.SAME_SIGNAL = 0; workers.KILL_GRACE = 60"
    server = changed(f"{change}; process.CUT_GRACE = process.LAST_GRACE = 60", "--workers", "2")
    pid, busy = next(iter(client_of_each(server, dial, 2).items()))
    assert ask(busy, b"work") == b"begun"
    server.popen.send_signal(signal.SIGTERM)
    server.read_log_until(rf"\[{pid}\] draining \d+ sessions?, for 600 s at most")
    assert server.terminate() == 1
    assert "SIGTERM: stopping now" in server.log
    assert "127.0.0.1:%d cut: not done in time" % busy.getsockname()[1] in server.log


def test_workers_ignore_an_interrupt_which_the_parent_passes_on(start, dial):
    server = start(2)
    for pid, client in client_of_each(server, dial, 2).items():
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGUSR1)  # would be handled after it
        server.read_log_until("statistics: accepted")
        server.log = ""
        assert ask(client, b"still there") == b"still there"
    assert server.terminate() == 0
    assert "SIGINT" not in server.log


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_for_the_whole_process_group_is_one(changed, dial, folder, signum):
    """Ctrl-C reaches the workers too; and timeout(1) signals the process and then its group."""
    change = "running.SAME_SIGNAL = 3600"  # however busy this machine is
    server = changed(change, "--workers", "2", start_new_session=True)
    clients = client_of_each(server, dial, 2)
    busy, idle = clients.values()
    assert ask(busy, b"work") == b"begun"
    if signum == signal.SIGTERM:
        server.popen.send_signal(signum)
    os.killpg(server.pid, signum)
    assert read_all(idle) == b""
    server.read_log_until("draining")
    (folder / "go").write_text("")
    assert read_all(busy) == b"done\n"
    assert server.finish()[0] == 0
    assert "stopping now" not in server.log
    assert "KeyboardInterrupt" not in server.log and "Traceback" not in server.log


def settled(server, pid):
    """Return when the worker has handled the signals that were sent to it before."""
    server.log = ""
    os.kill(pid, signal.SIGUSR1)
    server.read_log_until("statistics: accepted")


def test_workers_that_are_signalled_long_before_their_parent_passes_it_on_cut_nothing(changed, dial, folder):
    """A service manager signals all processes at once, and the parent may be late: it reads files, or was stopped."""
    server = changed("running.SAME_SIGNAL = 0", "--workers", "2", start_new_session=True)
    pid, busy = next(iter(client_of_each(server, dial, 2).items()))
    assert ask(busy, b"work") == b"begun"
    stop_process(server.pid)
    os.killpg(server.pid, signal.SIGTERM)
    server.read_log_until(rf"\[{pid}\] draining")
    os.kill(server.pid, signal.SIGCONT)
    server.read_log_until("SIGTERM: stopping . worker")
    settled(server, pid)
    (folder / "go").write_text("")
    assert read_all(busy) == b"done\n"
    assert server.finish()[0] == 0
    assert "stopping now" not in server.log


def test_a_parent_that_is_killed_in_a_stop_cuts_nothing_and_a_further_signal_does(changed, dial, folder):
    change = "server.Server._echo_cut_grace = 0.05; running.SAME_SIGNAL = 0"
    server = changed(change, "--workers", "2")
    (pid, busy), (other_pid, other) = client_of_each(server, dial, 2).items()
    assert ask(busy, b"work") == ask(other, b"work") == b"begun"
    server.popen.send_signal(signal.SIGTERM)
    server.read_log_until(rf"(?s)(\[({pid}|{other_pid})\] draining.*){{2}}")
    server.popen.kill()
    server.popen.wait()
    settled(server, pid)

    def gone():
        with contextlib.suppress(ProcessLookupError):
            os.kill(other_pid, signal.SIGTERM)
        return state_of(other_pid) in ("", "Z")

    eventually(gone)
    (folder / "go").write_text("")
    assert read_all(busy) == b"done\n"
    server.finish()
    assert f"[{other_pid}] SIGTERM: stopping now" in server.log
    assert f"[{pid}] SIGTERM: stopping now" not in server.log


def test_a_signal_while_the_workers_are_being_started_is_not_lost(run, folder):
    write_changed_command(folder, when_logged("worker-started", "os.kill(os.getpid(), 15)"))
    server = run("changed", "0", "--workers", "3", cwd=str(folder))
    assert server.finish()[0] == 0
    assert "SIGTERM: stopping 1 worker\n" in server.log
    assert "died" not in server.log and "Traceback" not in server.log


def test_signals_that_come_faster_than_files_are_read_do_not_keep_the_parent_from_a_stop(changed):
    """Row 62: a thousand SIGHUPs and a long list of networks delayed the stop by minutes."""
    change = (
        "import os, signal\n"
        "from echo.cli.server import command\n"
        "parent, reload = os.getpid(), command._reload\n"
        "def reload_and_signal(server, files, **options):\n"
        "    for _ in range(3 * (os.getpid() == parent)):\n"
        "        os.kill(parent, signal.SIGHUP)\n"
        "    return reload(server, files, **options) and False\n"
        "command._reload = reload_and_signal\n"
    )
    server = changed(change, "--workers", "2")
    started(server, 2)
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until("read again")
    assert server.terminate() == 0


def test_a_stop_does_not_wait_until_the_parent_has_read_a_long_list(changed):
    """Row 44: the workers learned of it only then, or when the parent's deadline had ended the parent with code 1."""
    change = (
        "import logging, time\n"
        "from echo.cli.server import command\n"
        "first, read = [True], command.Files.server_options\n"
        "def read_slowly(files):\n"
        "    if not (first and first.pop()):\n"
        "        logging.error('reading')\n"
        "        while True:\n"
        "            time.sleep(0.01)\n"  # one long wait would miss a signal that comes just before it
        "    return read(files)\n"
        "command.Files.server_options = read_slowly\n"
    )
    server = changed(change, "--workers", "2")
    started(server, 2)
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until("reading")
    assert server.terminate() == 0


def test_workers_are_not_asked_to_read_files_that_their_parent_could_not_read(start, folder, dial):
    """Row 61: a file that was mended in between was in force in the workers, and not in one that replaced them."""
    (folder / "deny").write_text("")
    server = start(2, "--deny", "@deny")
    (folder / "deny").write_text("example\n")
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until("all stays as it was")
    server.popen.send_signal(signal.SIGUSR1)
    server.read_log_until("(?s)(statistics.*){2}")  # which the workers log after a reload
    assert server.terminate() == 0
    assert server.log.count("SIGHUP: ") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="no process can set the limits of another one here")
def test_a_reload_for_which_the_parent_has_no_descriptor_is_tried_again(changed, folder):
    """Row 61: it was given up, and a client that had to be denied got in."""
    import resource  # which Windows does not have

    (folder / "deny").write_text("")
    server = changed("workers.RETRY = 0.01\n", "--workers", "2", "--deny", "@deny")
    started(server, 2)
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until("SIGHUP: cannot read deny: Too many open files; all stays as it was; trying again")
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
    server.read_log_until("(?s)(read again.*){3}")
    assert server.terminate() == 0


WITHOUT_MEMORY = """\
import itertools, os
from echo.cli.server import command
parent, failures = os.getpid(), iter(range(3))
def lacking(function, condition):
    def call(*arguments, **options):
        if os.getpid() == parent and condition(*arguments):
            for _ in failures:
                raise MemoryError
        return function(*arguments, **options)
    return call
{place}.{name} = lacking({place}.{name}, lambda *arguments: {condition})
workers.RETRY = 0.01
"""


@pytest.mark.parametrize(
    "place, name, condition",
    [
        ("command", "log_event", "arguments[1] == 'reloaded'"),
        ("workers.Workers", "_wait", "True"),
    ],
)
def test_a_parent_without_memory_for_a_reload_does_it_when_there_is_some(changed, folder, place, name, condition):
    """Row 65: the parent ended, and with it the service, if there was no memory left to log the failure."""
    server = changed(WITHOUT_MEMORY.format(place=place, name=name, condition=condition), "--workers", "2")
    started(server, 2)
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until("(?s)(read again.*){3}")
    assert server.terminate() == 0


@pytest.mark.parametrize(
    "place, name, condition",
    [
        ("command.systemd", "notify", "arguments[0] == 'STOPPING=1'"),
        ("workers.Workers", "_signal", "arguments[1] == 15"),
    ],
)
def test_a_parent_without_memory_for_a_stop_stops_when_there_is_some(changed, dial, place, name, condition):
    """Row 65: the stop was lost, and the workers were killed at its deadline."""
    server = changed(WITHOUT_MEMORY.format(place=place, name=name, condition=condition), "--workers", "2")
    started(server, 2)
    assert server.terminate() == 0
    assert len(re.findall("stopped: 0 sessions drained, 0 cut", server.log)) == 2


@pytest.mark.parametrize("place, name", [("workers.os", "fork"), ("workers.Workers", "_died")])
def test_a_parent_without_memory_to_replace_a_worker_does_it_when_there_is_some(changed, place, name):
    """Row 65: the worker's place was lost for ever."""
    change = WITHOUT_MEMORY.format(place=place, name=name, condition="True")
    server = changed(f"{change}workers.MIN_PAUSE = workers.Workers.max_pause = 0.01\n", "--workers", "2")
    os.kill(started(server, 2)[0], signal.SIGKILL)
    started(server, 3)
    assert server.terminate() == 0


def test_a_reload_for_which_a_process_has_no_memory_is_tried_again(changed, folder):
    """Row 61: it was lost without a word, and a client that had to be denied got in."""
    (folder / "deny").write_text("")
    change = WITHOUT_MEMORY.format(place="command", name="_reload", condition="True").replace(
        "workers.RETRY", "command.RETRY"
    )
    server = changed(change, "--deny", "@deny")
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until("read again")
    assert server.terminate() == 0


def test_sigusr1_is_passed_on_to_every_worker(start, dial):
    server = start(3)
    clients = client_of_each(server, dial, 3)
    server.popen.send_signal(signal.SIGUSR1)
    server.read_log_until(r"(?s)(statistics: .*\n.*){3}")
    told = [int(count) for count in re.findall(r"statistics: accepted (\d+)", server.log)]
    assert len(told) == 3 and min(told) >= 1
    assert [ask(client, b"still there") for client in clients.values()] == [b"still there"] * 3


# Deaths.


def test_a_killed_worker_costs_its_own_sessions_alone_and_is_replaced(start, dial):
    server = start(3)
    clients = client_of_each(server, dial, 3)
    victim = started(server, 3)[1]
    os.kill(victim, signal.SIGKILL)
    lost = clients.pop(victim)
    with contextlib.suppress(ConnectionResetError):
        assert lost.recv(1) == b""
    assert [int(ask(client, b"pid")) for client in clients.values()] == list(clients)
    words = rf"worker 1: process {victim} was killed by SIGKILL; the next in 0\.1 s\n"
    server.read_log_until(rf"WARNING \[{server.pid}\] {words}")
    pids = started(server, 4)
    assert pids[1] != victim
    assert set(client_of_each(server, dial, 3)) == set(pids.values())
    assert [int(ask(client, b"pid")) for client in clients.values()] == list(clients)
    assert server.terminate() == 0


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="no real-time signals here")
def test_a_worker_killed_by_a_signal_without_a_name_is_replaced_too(start):
    server = start(2)
    pid = started(server, 2)[0]
    os.kill(pid, signal.SIGRTMIN + 1)
    server.read_log_until(rf"worker 0: process {pid} was killed by .*; the next in")
    started(server, 3)
    assert server.terminate() == 0
    assert "Traceback" not in server.log


@needs_proc
def test_clients_in_the_backlog_are_not_lost_with_a_worker_that_is_killed(start, dial):
    server = start(2)
    clients = client_of_each(server, dial, 2)
    victim, other = sorted(clients)
    for pid in (victim, other):
        stop_process(pid)
    try:
        waiting = [dial(server.address) for _ in range(8)]
        for client in waiting:
            client.sendall(b"pid\n")
        os.kill(victim, signal.SIGKILL)
        server.read_log_until("was killed by SIGKILL")
    finally:
        os.kill(other, signal.SIGCONT)
    answers = {int(answer(client)) for client in waiting}
    assert answers <= {other, *started(server, 3).values()} - {victim}
    assert int(ask(clients[other], b"pid")) == other
    assert server.terminate() == 0


def test_a_worker_that_gets_sigterm_drains_and_is_replaced(start, dial, folder):
    server = start(2)
    clients = client_of_each(server, dial, 2)
    leaving = started(server, 2)[0]
    assert ask(clients[leaving], b"work") == b"begun"
    os.kill(leaving, signal.SIGTERM)
    server.read_log_until("draining")
    assert not refuses(server.address)
    (folder / "go").write_text("")
    assert read_all(clients[leaving]) == b"done\n"
    server.read_log_until(f"worker 0: process {leaving} ended with exit code 0; the next in 0.1 s")
    started(server, 3)
    assert len(client_of_each(server, dial, 2)) == 2
    assert server.terminate() == 0


def test_a_worker_that_dies_while_all_drain_makes_the_code_1(start, dial, folder):
    server = start(2)
    clients = client_of_each(server, dial, 2)
    for client in clients.values():
        assert ask(client, b"work") == b"begun"
    server.popen.send_signal(signal.SIGTERM)
    server.read_log_until("(?s)draining.*draining")
    victim, other = clients
    os.kill(victim, signal.SIGKILL)
    server.read_log_until(rf"process {victim} was killed by SIGKILL\n")
    (folder / "go").write_text("")
    assert read_all(clients[other]) == b"done\n"
    assert server.finish()[0] == 1
    assert len(re.findall(" is process ", server.log)) == 2  # it was not replaced


@pytest.mark.parametrize("code", [0, 3])
def test_a_worker_that_ends_itself_while_all_drain_is_reported_and_makes_the_code_1(start, dial, folder, code):
    """Nothing was logged, and with code 0 the session that it had counted as drained."""
    server = start(2)
    clients = client_of_each(server, dial, 2)
    victim, other = clients
    assert ask(clients[other], b"work") == b"begun"
    assert ask(clients[victim], b"exit%d" % code) == b"begun"
    server.popen.send_signal(signal.SIGTERM)
    server.read_log_until("(?s)draining.*draining")
    (folder / "go").write_text("")
    assert read_all(clients[other]) == b"done\n"
    assert server.finish()[0] == 1
    ends = re.findall(r"WARNING .*(worker \d: .*)\n", server.log)
    number = next(number for number, pid in started(server, 2).items() if pid == victim)
    assert ends == [f"worker {number}: process {victim} ended with exit code {code}, before it was done"]


def test_workers_whose_parent_is_killed_drain_and_end(start, dial, folder):
    server = start(3)
    clients = client_of_each(server, dial, 3)
    busy, idle, other = clients.values()
    assert ask(busy, b"work") == b"begun"
    server.popen.kill()
    assert read_all(idle) == b"" and read_all(other) == b""
    server.read_log_until("draining")
    (folder / "go").write_text("")
    assert read_all(busy) == b"done\n"
    assert server.finish()[0] == -signal.SIGKILL  # stderr has ended: no process has it open any more
    eventually(lambda: refuses(server.address))
    assert len(re.findall(r"stopped: .* 0 cut", server.log)) == 3


@needs_proc
def test_workers_whose_parent_is_killed_end_although_a_thread_of_it_has_forked_a_child(server_command, tmp_path):
    """The module's thread runs in the parent. Its child is not the parent, and must not look like it."""
    (tmp_path / "forking.py").write_text(
        """
import echo, os, signal, threading, time

def fork():
    while not os.path.exists("fork"):
        time.sleep(0.01)
    child = os.fork()
    if child == 0:
        signal.pause()
    with open("child.part", "w") as file:
        file.write(str(child))
    os.rename("child.part", "child")

threading.Thread(target=fork, daemon=True).start()
Echo = echo.EchoRequestHandler
"""
    )
    server = server_command("--workers", "2", "--handler", "forking:Echo", cwd=str(tmp_path))
    pids = started(server, 2).values()
    (tmp_path / "fork").write_text("")
    child = int(eventually(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text()))
    try:
        server.popen.kill()
        server.popen.wait()
        eventually(lambda: not any(map(is_alive, pids)))
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_ends_does_not_make_the_others_block(changed, dial, how):
    """All of them share the mode of the listening socket. The next worker would set it again, but does not start before
    the test is over."""
    server = changed("workers.Workers.min_pause = workers.Workers.max_pause = 3600.0", "--workers", "2")
    victim = started(server, 2)[0]
    clients = [dial(server.address)]
    assert ask(clients[0], b"hello") == b"hello"
    os.kill(victim, how)
    server.read_log_until(f"worker 0: process {victim} ")
    for _ in range(2):
        clients.append(dial(server.address))
        assert ask(clients[-1], b"hello") == b"hello"
    server.popen.send_signal(signal.SIGTERM)
    for client in clients[1:]:
        assert read_all(client) == b""
    assert server.finish()[0] == 0


CANNOT_LIVE = "workers.Workers.min_pause = 0.01; workers.Workers.settled = workers.Workers.quick = 3600.0\n"


def test_workers_that_cannot_live_are_given_up_after_growing_pauses(changed):
    server = changed(CANNOT_LIVE + "server.Server.serve_forever = lambda self: os._exit(3)", "--workers", "2")
    assert server.finish() == (1, b"")
    for number in range(2):
        pauses = re.findall(rf"worker {number}: process \d+ ended with exit code 3; the next in (\S+) s\n", server.log)
        assert pauses[:4] == ["0.01", "0.02", "0.04", "0.08"]
    last = server.log.splitlines()[-1]
    assert "ERROR" in last and "no worker can live, giving up" in last
    eventually(lambda: refuses(server.address))


def test_workers_that_die_each_for_its_own_reason_are_replaced_for_ever(changed, dial):
    """Row 70: all at once, far more often than the limit for giving up."""
    pauses = "workers.Workers.min_pause = workers.Workers.max_pause = 0.001; workers.Workers.quick = 3600.0"
    server = changed(pauses, "--workers", "2", preexec_fn=no_core_files)
    for reasons in [(signal.SIGKILL, signal.SIGKILL), (signal.SIGSEGV, signal.SIGABRT)] * 3:
        pids = started(server, 2)
        server.log = ""
        for reason, pid in zip(reasons, pids.values()):
            os.kill(pid, reason)
    started(server, 2)
    assert ask(dial(server.address), b"hello") == b"hello"
    assert server.terminate() == 0


def test_workers_that_their_clients_crash_are_replaced_for_ever(changed, dial):
    """Row 70: each new worker got such a client at once, and the parent gave up."""
    change = (
        "workers.Workers.max_pause, workers.Workers.give_up = 0.01, 2\n"
        "command.EchoRequestHandler.connection_made = lambda self: os._exit(3)\n"
    )
    server = changed(CANNOT_LIVE + change, "--workers", "2", "--handler", "echo:EchoRequestHandler")
    for count in range(6):
        dial(server.address)
        server.read_log_until(rf"(?s)(ended with exit code 3; the next in .*){{{count + 1}}}")
    server.terminate()
    assert "giving up" not in server.log


def no_core_files():
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def test_an_exception_in_a_worker_is_shown_and_ends_that_worker_alone(changed):
    change = "def fail(self): raise ZeroDivisionError('on purpose')\nserver.Server.serve_forever = fail\n"
    server = changed(CANNOT_LIVE + change, "--workers", "2")
    assert server.finish() == (1, b"")
    assert server.log.count("ZeroDivisionError: on purpose") >= 2 * workers.Workers.give_up
    assert server.log.count("giving up") == 1
    assert "exit code 1" in server.log


def test_a_worker_that_cannot_live_is_tried_again_while_others_can(changed, dial):
    change = (
        "real = server.Server.serve_forever\n"
        "def serve_forever(self):\n"
        "    real(self) if self._echo_balance._mine else os._exit(3)\n"
        "server.Server.serve_forever = serve_forever\n"
        "workers.Workers.min_pause, workers.Workers.max_pause = 0.005, 0.01"
    )
    server = changed(CANNOT_LIVE + change, "--workers", "2")
    client = dial(server.address)
    pid = ask(client, b"pid")
    server.read_log_until(r"(?s)(ended with exit code 3; the next in 0\.01 s.*){8}")
    assert "giving up" not in server.log
    assert ask(client, b"pid") == pid
    assert server.terminate() in (0, 1)  # 1 if one was dying just then


@pytest.mark.parametrize("settled, pauses", [(0.0, ["0.01", "0.01", "0.01"]), (3600.0, ["0.01", "0.02", "0.04"])])
def test_deaths_count_as_in_a_row_only_if_the_worker_had_not_settled(changed, dial, settled, pauses):
    change = f"workers.Workers.min_pause, workers.Workers.settled = 0.01, {settled}"
    server = changed(change, "--workers", "2")
    for number in range(3):
        os.kill(started(server, 2 + number)[0], signal.SIGKILL)
        server.read_log_until(r"(?s)" + r".*".join(["was killed by SIGKILL; the next in"] * (number + 1)))
    started(server, 5)
    assert re.findall(r"worker 0: .*; the next in (\S+) s\n", server.log) == pauses
    assert ask(dial(server.address), b"hello") == b"hello"
    assert server.terminate() == 0


def test_a_fork_that_fails_is_tried_again(changed, dial):
    change = (
        "import errno\n"
        "real, left = os.fork, [1, 1, 1]\n"
        "def fork():\n"
        "    if left:\n"
        "        left.pop()\n"
        "        raise OSError(errno.EAGAIN, 'no process to be had')\n"
        "    return real()\n"
        "os.fork = fork"
    )
    server = changed(CANNOT_LIVE + change, "--workers", "2")
    pids = started(server, 2)
    assert set(client_of_each(server, dial, 2)) == set(pids.values())
    assert server.log.count("could not be started: no process to be had; the next in") == 3
    assert server.terminate() == 0


def test_workers_for_which_the_system_has_no_thread_are_started_again_for_ever(changed, dial, folder):
    """Row 70: this is not a worker that cannot start."""
    change = (
        "import threading\n"
        "real = threading.Thread.start\n"
        "def start(thread):\n"
        "    if not os.path.exists('go'):\n"
        '        raise RuntimeError("can\'t start new thread")\n'
        "    real(thread)\n"
        "threading.Thread.start = start\n"
        "workers.Workers.max_pause, workers.Workers.give_up = 0.01, 2\n"
    )
    server = changed(CANNOT_LIVE + change, "--workers", "2")
    server.read_log_until(r"(?s)(ended with a shortage; the next in .*){6}")
    assert "the server cannot run: can't start new thread; close other programs, or raise" in server.log
    assert "Traceback" not in server.log
    (folder / "go").write_text("")
    assert ask(dial(server.address), b"hello") == b"hello"
    server.terminate()
    assert "giving up" not in server.log


# The log.


SMALL_QUEUE = "command_log.LogQueue = functools.partial(command_log.LogQueue, capacity=100, flush_timeout=0.1)"


def echoed_at_once(server, clients, count):
    """Let so many clients at once have ``count`` messages echoed, which makes two log records of each message."""
    served = []

    def talk():
        with echo.connect(server.address, timeout=DEADLINE) as client:
            messages = [b"%0100d" % number for number in range(count)]
            served.append(list(client.echo_many(messages)) == messages)

    threads = [threading.Thread(target=talk, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * DEADLINE)
    return served == [True] * clients


def test_a_stderr_that_nobody_reads_blocks_no_client_and_no_stop(changed):
    server = changed(SMALL_QUEUE, "--workers", "2")
    assert echoed_at_once(server, 4, 1500)
    server.popen.send_signal(signal.SIGTERM)
    assert server.popen.wait(DEADLINE) == 0  # and no line was read yet
    eventually(lambda: refuses(server.address))


@pytest.mark.slow
def test_a_stderr_that_nobody_reads_blocks_no_client_with_queues_of_the_usual_size(start):
    server = start(2)
    assert echoed_at_once(server, 4, 12_000)
    server.popen.send_signal(signal.SIGTERM)
    assert server.popen.wait(DEADLINE) == 0


def test_a_parent_whose_stderr_is_stalled_still_replaces_a_worker(changed, dial):
    server = changed(SMALL_QUEUE, "--workers", "2")
    victims = set(started(server, 2).values())
    assert echoed_at_once(server, 1, 3000)
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    assert not victims & set(client_of_each(server, dial, 2))
    server.popen.send_signal(signal.SIGTERM)
    assert server.popen.wait(DEADLINE) == 0


@pytest.mark.parametrize("each", [100, pytest.param(800, marks=pytest.mark.stress)])
def test_json_lines_of_several_workers_are_whole_lines(server_command, each):
    """Many records, of every length, through one pipe."""
    server = server_command("--workers", "3", "--log-format", "json", *PATIENT)
    text = []
    reader = threading.Thread(target=lambda: text.append(server.popen.stderr.read()))
    reader.start()
    failures = []

    def talk(seed):
        try:
            with echo.connect(server.address, timeout=DEADLINE) as client:
                for _ in client.echo_many([b"%d-" % seed + b'\xff"x' * (number % 97) for number in range(each)]):
                    pass
        except Exception as exc:
            failures.append(exc)

    clients = [threading.Thread(target=talk, args=(seed,)) for seed in range(6)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(2 * DEADLINE)
    server.popen.send_signal(signal.SIGTERM)
    assert server.popen.wait(2 * DEADLINE) == 0
    reader.join(DEADLINE)
    assert not failures
    lines = text[0].decode().splitlines()
    events = collections.Counter(json.loads(line)["event"] for line in lines)  # raises if a line is torn
    assert (events["received"], events["sent"], events["dropped"]) == (6 * each, 6 * each, 0)
    assert (events["connected"], events["disconnected"], events["stopped"]) == (6, 6, 3)


def test_the_parents_own_records_are_json_as_well(start):
    server = start(2, "--log-format", "json")
    os.kill(started(server, 2)[0], signal.SIGKILL)
    started(server, 3)
    assert server.terminate() == 0
    records = [json.loads(line) for line in server.log.splitlines()]
    events = [record["event"] for record in records]
    assert events[0] == "listening"
    assert events.count("worker-started") == 3 and events.count("worker-died") == 1
    assert {record["level"] for record in records if record["event"] == "worker-died"} == {"WARNING"}
    assert all(isinstance(record["pid"], int) for record in records if record["event"] == "worker-started")


def test_each_json_record_has_the_number_of_its_process(start, dial):
    server = start(2, "--log-format", "json")
    clients = client_of_each(server, dial, 2)
    workers_of = {"%s:%d" % client.getsockname(): pid for pid, client in clients.items()}
    assert server.terminate() == 0
    records = [json.loads(line) for line in server.log.splitlines()]
    session = [record for record in records if record.get("peer") in workers_of]
    assert collections.Counter(record["event"] for record in session) == dict.fromkeys(
        ("connected", "received", "sent", "disconnected"), 2
    )
    assert all(record["process"] == workers_of[record["peer"]] for record in session)
    (told,) = [record for record in records if record["event"] == "signal" and record["process"] == server.pid]
    assert (told["signal"], told["message"]) == ("SIGTERM", "SIGTERM: stopping 2 workers")
    parents = {"listening", "worker-started"}
    assert {record["process"] for record in records if record["event"] in parents} == {server.pid}
    assert {record["process"] for record in records if record["event"] == "stopped"} == set(clients)


def test_each_line_of_text_has_the_number_of_its_process(start, dial):
    server = start(2)
    clients = client_of_each(server, dial, 2)
    assert server.terminate() == 0
    lines = [re.fullmatch(r"\S+ \S+ INFO    \[(\d+)\] (.*)", line) for line in server.log.splitlines()]
    assert all(lines)
    processes = collections.defaultdict(set)
    for number, text in [line.groups() for line in lines]:
        processes[text].add(int(number))
    assert processes[f"SIGTERM: stopping {len(clients)} workers"] == {server.pid}
    for pid, client in clients.items():
        peer = "%s:%d" % client.getsockname()
        assert processes[f"{peer} connected"] == processes[f"{peer} received 3 bytes: pid"] == {pid}
        assert processes[f"{peer} sent {len(str(pid))} bytes: {pid}"] == {pid}


def test_quiet_logs_nothing_of_workers_that_live(serve_over):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = serve_over(listener, "--workers", "2", "-q", *PATIENT, until=None)
        with echo.connect(listener.getsockname(), timeout=DEADLINE) as client:
            assert client.echo(b"hello") == b"hello"
    assert server.terminate() == 0
    assert server.log == ""


def test_a_parent_that_was_started_with_sigchld_ignored_stops_all_the_same(start):
    server = start(2, preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    assert server.terminate() == 0


@pytest.mark.parametrize("count", ["1", "2"])
def test_output_of_a_handler_is_not_lost_at_the_end_of_a_worker(server_command, tmp_path, count):
    (tmp_path / "prints.py").write_text(
        "import echo\n"
        "print('imported')\n"
        "class Prints(echo.EchoRequestHandler):\n"
        "    def message_received(self, message):\n"
        "        print(message.decode())\n"
        "        super().message_received(message)\n"
    )
    server = server_command(
        *("--workers", count, "--handler", "prints:Prints"), cwd=str(tmp_path), env={"PYTHONUNBUFFERED": ""}
    )
    with echo.connect(server.address, timeout=DEADLINE) as client:
        client.echo(b"hello")
    server.popen.send_signal(signal.SIGTERM)
    assert server.finish() == (0, b"imported\nhello\n")  # each once
