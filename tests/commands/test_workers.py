"""Several processes behind one port: all serve, all stop, and none takes another's clients with it."""

import collections
import contextlib
import json
import os
import re
import signal
import socket
import threading

import pytest

import echo
from echo.server import affinity, workers
from echo.server import balance as balance_module
from echo.server.balance import Balance
from support import DEADLINE, eventually, read_all

pytestmark = pytest.mark.skipif(not workers.SUPPORTED, reason="this system cannot fork")

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc to look in")

HANDLER = '''
import echo, os, threading

class Tells(echo.MessageRequestHandler):
    """Its process, its processors; or it takes its time, until there is a file ``go``."""

    def message_received(self, message):
        if message == b"pid":
            self.send(b"%d" % os.getpid())
        elif message == b"cpu":
            self.send(b"%d %d" % (os.getpid(), sum(1 << number for number in os.sched_getaffinity(0))))
        elif message == b"work":
            self.send(b"begun")
            self.flush()
            pause = threading.Event()
            while not os.path.exists("go"):
                pause.wait(0.005)
            self.send(b"done")
        elif message == b"print":
            print("printed")
            self.send(b"printed")
        else:
            self.send(message)
'''

# What the command does in a module of its own, with something about it changed first.
COMMAND = """
import os, sys
from echo.server import __main__ as command, balance, server, workers
{change}
if __name__ == "__main__":
    sys.exit(command.main())
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tells.py").write_text(HANDLER)
    return tmp_path


@pytest.fixture
def start(server_command, folder):
    """``start(count, *options)``: the command with so many workers and the handler ``Tells``."""

    def start(count, *options, **popen_options):
        server = server_command(
            "--workers", str(count), "--handler", "tells:Tells", *options, cwd=str(folder), **popen_options
        )
        if count != "auto":
            started(server, count)
        return server

    return start


@pytest.fixture
def start_changed(run, folder):
    """``start_changed(change, *options)``: the same with a statement or more carried out before."""

    def start(change, *options, **popen_options):
        (folder / "changed.py").write_text(COMMAND.format(change=change))
        server = run("changed", "0", "--handler", "tells:Tells", *options, cwd=str(folder), **popen_options)
        port = server.read_log_until(r"listening on \S+:(\d+)").group(1)
        server.address = ("127.0.0.1", int(port))
        return server

    return start


def started(server, count):
    """The workers' processes by their number, once ``count`` of them were started."""
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
    """Whether nobody listens there."""
    with socket.socket() as sock:
        return sock.connect_ex(address) != 0


def client_of_each(server, dial, count):
    """A client in each of the workers, by the worker's process; and those that there were on the way."""
    clients = {}

    def all_there():
        client = dial(server.address)
        clients.setdefault(int(ask(client, b"pid")), client)
        return len(clients) == count

    eventually(all_there)
    return clients


# All of them serve.


def test_port_0_is_one_port_that_is_told_once(start, dial):
    server = start(3)
    pids = started(server, 3)
    assert sorted(pids) == [0, 1, 2] and len(set(pids.values())) == 3 and server.pid not in pids.values()
    assert set(client_of_each(server, dial, 3)) == set(pids.values())
    assert server.terminate() == 0
    assert server.log.count("listening on") == 1
    assert "Traceback" not in server.log


def test_of_twelve_sessions_three_workers_have_four_each(start_changed, dial):
    """Who is ahead leaves a new client to the others, here for longer than any of them could oversleep."""
    server = start_changed("balance.HOLD_BACK = 0.7; balance.SLACK = 0", "--workers", "3")
    clients = [dial(server.address) for _ in range(12)]
    counts = collections.Counter()
    for client in clients:
        counts[ask(client, b"pid")] += 1
    assert sorted(counts.values()) == [4, 4, 4]
    server.popen.send_signal(signal.SIGUSR1)
    server.read_log_until(r"(?s)(statistics: accepted 4, active 4, .*){3}")
    assert server.terminate() == 0


def test_who_is_ahead_takes_a_client_that_nobody_else_takes(start, dial):
    server = start(2)
    clients = client_of_each(server, dial, 2)
    stopped, other = sorted(clients)
    os.kill(stopped, signal.SIGSTOP)
    try:
        for _ in range(10):
            assert ask(dial(server.address), b"pid") == b"%d" % other
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert ask(clients[stopped], b"pid") == b"%d" % stopped


def test_nobody_waits_for_one_who_has_as_much_or_a_little_less_or_is_dead(monkeypatch):
    balance = Balance(3)
    balance.become(1)
    balance.set(balance_module.SLACK)
    assert not balance.is_ahead()
    balance.set(balance_module.SLACK + 1)
    assert balance.is_ahead()
    monkeypatch.setattr(balance_module, "SLACK", 0)
    balance.set(0)
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


def test_the_balance_is_one_for_all_that_were_forked(folder, monkeypatch):
    monkeypatch.setattr(balance_module, "SLACK", 0)
    balance = Balance(2)
    child = os.fork()
    if not child:
        balance.become(1)
        balance.set(7)
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


def test_one_worker_is_the_process_itself_and_forks_nothing(start_changed, dial):
    server = start_changed("os.fork = None", "--workers", "1")
    assert ask(dial(server.address), b"pid") == b"%d" % server.pid
    assert server.terminate() == 0
    assert "worker" not in server.log


def test_auto_is_one_for_each_processor_and_one_without_the_gil(start, dial):
    server = start("auto")
    count = len(affinity.usable()) if affinity.has_gil() else 1
    if count > 1:
        assert set(client_of_each(server, dial, count)) == set(started(server, count).values())
    else:
        assert ask(dial(server.address), b"pid") == b"%d" % server.pid
    assert server.terminate() == 0
    assert server.log.count(" is process ") == (count if count > 1 else 0)


@pytest.mark.parametrize(
    "change",
    ["command.affinity.has_gil = lambda: False", "command.affinity.usable = lambda: frozenset([0])"],
    ids=["no GIL", "one processor"],
)
def test_auto_is_one_where_more_are_of_no_use(start_changed, dial, change):
    server = start_changed(f"{change}; os.fork = None", "--workers", "auto", "--cpu-affinity", "off")
    assert ask(dial(server.address), b"pid") == b"%d" % server.pid


@pytest.mark.parametrize("text", ["0", "-1", "junk", "", "1.5", "2,3", "Auto"])
def test_a_number_of_workers_that_makes_no_sense_gets_one_line_and_code_2(run, text):
    server = run("echo.server", "0", f"--workers={text}")
    assert server.finish() == (2, b"")
    assert server.log.count("\n") == 1
    assert "--workers" in server.log and "--help" in server.log


def test_where_there_is_no_fork_several_workers_are_refused_in_one_line(run, folder):
    (folder / "changed.py").write_text(COMMAND.format(change="workers.SUPPORTED = False"))
    server = run("changed", "0", "--workers", "2", cwd=str(folder))
    assert server.finish() == (2, b"")
    assert server.log.count("\n") == 1
    assert "this system cannot fork" in server.log


def test_a_port_in_use_gets_one_line_and_code_1_and_forks_nothing(start, run):
    first = start(2)
    second = run("echo.server", str(first.address[1]), "--workers", "2")
    assert second.finish() == (1, b"")
    assert second.log.count("\n") == 1
    assert "another program has this port" in second.log


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


def test_a_session_that_has_to_be_cut_makes_the_code_1(start, dial):
    server = start(2, "--shutdown-timeout", "200ms")
    clients = client_of_each(server, dial, 2)
    busy = next(iter(clients.values()))
    assert ask(busy, b"work") == b"begun"
    assert server.terminate() == 1
    assert server.log.count(", 1 cut") == 1 and server.log.count(", 0 cut") == 1
    assert "127.0.0.1:%d cut: not done in time" % busy.getsockname()[1] in server.log


def test_a_second_signal_cuts_and_the_code_is_1(start, dial):
    server = start(2, "--shutdown-timeout", "10m")
    clients = client_of_each(server, dial, 2)
    assert ask(next(iter(clients.values())), b"work") == b"begun"
    server.popen.send_signal(signal.SIGTERM)
    server.read_log_until(r"draining [12] sessions?, for 600 s at most")
    threading.Event().wait(0.3)  # signals that come together count as one
    assert server.terminate() == 1
    assert "SIGTERM: stopping now" in server.log
    assert ", 1 cut" in server.log


def test_an_interrupt_is_the_parents_to_pass_on_and_no_workers(start, dial):
    server = start(2)
    for pid, client in client_of_each(server, dial, 2).items():
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGUSR1)  # would be acted on after it
        server.read_log_until("statistics: accepted")
        server.log = ""
        assert ask(client, b"still there") == b"still there"
    assert server.terminate() == 0
    assert "SIGINT" not in server.log


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_for_the_whole_process_group_is_one(start_changed, dial, folder, signum):
    """Ctrl-C reaches the workers too; and timeout(1) signals the process and then its group."""
    change = "command.SAME_SIGNAL = 3600"  # however busy this machine is
    server = start_changed(change, "--workers", "2", start_new_session=True)
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


def test_a_signal_while_the_workers_are_being_started_is_not_lost(run, folder):
    change = (
        "real = workers.Workers._start\n"
        "def start(self, worker):\n"
        "    real(self, worker)\n"
        "    os.kill(os.getpid(), 15)\n"
        "workers.Workers._start = start\n"
    )
    (folder / "changed.py").write_text(COMMAND.format(change=change))
    server = run("changed", "0", "--workers", "3", cwd=str(folder))
    assert server.finish()[0] == 0
    assert "SIGTERM: stopping 3 workers" in server.log
    assert "died" not in server.log and "Traceback" not in server.log


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


def test_clients_in_the_backlog_are_not_lost_with_a_worker_that_is_killed(start, dial):
    server = start(2)
    clients = client_of_each(server, dial, 2)
    victim, other = sorted(clients)
    for pid in (victim, other):
        os.kill(pid, signal.SIGSTOP)
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


def test_a_worker_that_is_told_to_end_drains_and_is_replaced(start, dial, folder):
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
    assert server.finish()[0] == -signal.SIGKILL  # stderr has ended: nobody has it open any more
    assert refuses(server.address)
    assert len(re.findall(r"stopped: .* 0 cut", server.log)) == 3


def test_workers_that_cannot_live_are_given_up_after_growing_pauses(start_changed):
    server = start_changed("server.Server.serve_forever = lambda self: os._exit(3)", "--workers", "2")
    assert server.finish() == (1, b"")
    for number in range(2):
        pauses = re.findall(rf"worker {number}: process \d+ ended with exit code 3; the next in (\S+) s\n", server.log)
        assert pauses[:4] == ["0.1", "0.2", "0.4", "0.8"]
    last = server.log.splitlines()[-1]
    assert "ERROR" in last and "no worker can live, giving up" in last
    assert refuses(server.address)


def test_an_exception_in_a_worker_is_shown_and_ends_that_worker_alone(start_changed):
    change = (
        "def fail(self): raise ZeroDivisionError('on purpose')\n"
        "server.Server.serve_forever = fail\n"
        "workers.MIN_PAUSE = 0.01"
    )
    server = start_changed(change, "--workers", "2")
    assert server.finish() == (1, b"")
    assert server.log.count("ZeroDivisionError: on purpose") >= 2 * workers.GIVE_UP
    assert server.log.count("giving up") == 1
    assert "exit code 1" in server.log


def test_one_that_cannot_live_is_tried_again_while_others_can(start_changed, dial):
    change = (
        "real = server.Server.serve_forever\n"
        "def serve_forever(self):\n"
        "    real(self) if self.balance._mine else os._exit(3)\n"
        "server.Server.serve_forever = serve_forever\n"
        "workers.MIN_PAUSE, workers.MAX_PAUSE = 0.005, 0.01"
    )
    server = start_changed(change, "--workers", "2")
    client = dial(server.address)
    pid = ask(client, b"pid")
    server.read_log_until(r"(?s)(ended with exit code 3; the next in 0\.01 s.*){8}")
    assert "giving up" not in server.log
    assert ask(client, b"pid") == pid
    assert server.terminate() in (0, 1)  # 1 if one was dying just then


@pytest.mark.parametrize("settled, pauses", [(0.0, ["0.05", "0.05", "0.05"]), (3600.0, ["0.05", "0.1", "0.2"])])
def test_deaths_count_as_in_a_row_only_if_the_worker_had_not_settled(start_changed, dial, settled, pauses):
    server = start_changed(f"workers.MIN_PAUSE, workers.SETTLED = 0.05, {settled}", "--workers", "2")
    for number in range(3):
        os.kill(started(server, 2 + number)[0], signal.SIGKILL)
        server.read_log_until(r"(?s)" + r".*".join(["was killed by SIGKILL; the next in"] * (number + 1)))
    started(server, 5)
    assert re.findall(r"worker 0: .*; the next in (\S+) s\n", server.log) == pauses
    assert ask(dial(server.address), b"hello") == b"hello"
    assert server.terminate() == 0


def test_a_fork_that_fails_is_tried_again(start_changed, dial):
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
    server = start_changed(change, "--workers", "2")
    pids = started(server, 2)
    assert set(client_of_each(server, dial, 2)) == set(pids.values())
    assert server.log.count("could not be started: no process to be had; the next in") == 3
    assert server.terminate() == 0


# The log.


def test_a_stderr_that_nobody_reads_stalls_no_client_and_no_stop(server_command):
    server = server_command("--workers", "2")
    served = []

    def talk():
        with echo.connect(server.address, timeout=DEADLINE) as client:
            messages = [b"message %d" % number for number in range(5000)]  # two records each
            served.append(list(client.echo_many(messages)) == messages)

    clients = [threading.Thread(target=talk) for _ in range(4)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(2 * DEADLINE)
        assert not client.is_alive()
    assert served == [True] * 4
    server.popen.send_signal(signal.SIGTERM)
    assert server.popen.wait(DEADLINE) == 0  # and nobody has read a line yet
    assert refuses(server.address)


def test_a_parent_whose_stderr_is_stalled_still_replaces_a_worker(start, dial):
    server = start(2)
    victims = set(started(server, 2).values())
    with echo.connect(server.address, timeout=DEADLINE) as client:
        messages = [b"message %d" % number for number in range(2000)]
        assert list(client.echo_many(messages)) == messages
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    assert not victims & set(client_of_each(server, dial, 2))
    server.popen.send_signal(signal.SIGTERM)
    assert server.popen.wait(DEADLINE) == 0


def test_json_lines_of_several_workers_are_whole_lines(server_command, dial):
    """In volume, of every length, through one pipe."""
    server = server_command("--workers", "3", "--log-format", "json")
    each = 1000
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
    assert server.popen.wait(DEADLINE) == 0
    reader.join(DEADLINE)
    assert not failures
    lines = text[0].decode().splitlines()
    events = collections.Counter(json.loads(line)["event"] for line in lines)  # raises for one that is torn
    assert (events["received"], events["sent"], events["dropped"]) == (6 * each, 6 * each, 0)
    assert (events["connected"], events["disconnected"], events["stopped"]) == (6, 6, 3)


def test_what_the_parent_says_is_json_as_well(start):
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


def test_each_json_record_has_the_number_of_the_process_that_it_is_of(start, dial):
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


def test_each_line_of_text_has_the_number_of_the_process_that_it_is_of(start, dial):
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


def test_quiet_says_nothing_of_workers_that_live(run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    server = run("echo.server", str(address[1]), "--workers", "2", "-q")
    eventually(lambda: not refuses(address))
    with echo.connect(address, timeout=DEADLINE) as client:
        assert client.echo(b"hello") == b"hello"
    assert server.terminate() == 0
    assert server.log == ""


def test_a_parent_that_was_started_with_sigchld_ignored_stops_all_the_same(server_command):
    server = server_command("--workers", "2", preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    server.read_log_until(r"(?s)worker 0 is process .*worker 1 is process|worker 1 is process .*worker 0 is process")
    assert server.terminate() == 0
