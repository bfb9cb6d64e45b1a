"""Which processor the threads of a server keep to."""

import errno
import os
import signal
import socket
import threading

import pytest

import echo
from echo.server import affinity
from support import DEADLINE, eventually

needs_affinity = pytest.mark.skipif(not affinity.SUPPORTED, reason="this system keeps no program on a processor")
needs_gil = pytest.mark.skipif(not affinity.has_gil(), reason="without the GIL there is nothing to choose")

ALL = affinity.usable()
needs_two = pytest.mark.skipif(len(ALL) < 2, reason="needs two processors")


class Processors(echo.MessageRequestHandler):
    """Answers with the processors that its thread may use."""

    def message_received(self, message):
        self.send(",".join(map(str, sorted(os.sched_getaffinity(0)))).encode())


def processors(address):
    """Those that a session's thread may use."""
    with echo.connect(address, timeout=DEADLINE) as client:
        client.send(b"which")
        return {int(number) for number in client.recv().split(b",")}


@pytest.fixture
def folder(tmp_path):
    """A folder with ``Processors`` as a module's."""
    (tmp_path / "cpus.py").write_text(
        "import echo, os\n"
        "class Processors(echo.MessageRequestHandler):\n"
        "    def message_received(self, message):\n"
        "        self.send(','.join(map(str, sorted(os.sched_getaffinity(0)))).encode())\n"
    )
    return str(tmp_path)


# The option.


@needs_affinity
def test_by_default_a_servers_threads_may_use_every_processor(serve):
    assert processors(serve(Processors).server_address) == ALL


@needs_affinity
@needs_gil
def test_auto_keeps_the_sessions_on_one_processor(serve):
    server = serve(Processors, cpu_affinity="auto")
    (first,) = processors(server.server_address)
    assert first in ALL
    assert [processors(server.server_address) for _ in range(3)] == [{first}] * 3


@needs_affinity
@pytest.mark.skipif(affinity.has_gil(), reason="needs a build without the GIL")
def test_auto_chooses_nothing_without_the_gil(serve):
    assert processors(serve(Processors, cpu_affinity="auto").server_address) == ALL


@needs_affinity
@pytest.mark.parametrize("gil", [True, False])
def test_auto_goes_by_whether_there_is_a_gil(monkeypatch, gil):
    monkeypatch.setattr(affinity, "has_gil", lambda: gil)
    assert affinity.choose("auto", 0) == ({min(ALL)} if gil else None)


@needs_affinity
@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_the_numbers_of_processors_are_kept_to(serve, kind):
    assert processors(serve(Processors, cpu_affinity=kind([max(ALL)])).server_address) == {max(ALL)}
    assert processors(serve(Processors, cpu_affinity=kind(ALL)).server_address) == ALL


@needs_affinity
def test_every_session_at_a_time_keeps_to_it_and_so_do_threads_that_are_no_daemons(serve, dial):
    server = serve(Processors, cpu_affinity=[min(ALL)], daemon_threads=False)
    clients = [dial(server) for _ in range(5)]
    for client in clients:
        client.sendall(b"which\n")
        assert client.recv(100) == b"%d\n" % min(ALL)


@needs_affinity
def test_a_class_attribute_does_as_well(serve):
    class Pinned(echo.Server):
        cpu_affinity = (min(ALL),)

    assert processors(serve(Processors, cls=Pinned).server_address) == {min(ALL)}


@needs_affinity
@needs_two
def test_start_leaves_the_programs_own_threads_where_they_are(serve):
    server = serve(Processors, cpu_affinity=[min(ALL)])
    assert processors(server.server_address) == {min(ALL)}
    assert os.sched_getaffinity(0) == ALL
    seen = []
    thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
    thread.start()
    thread.join(DEADLINE)
    assert seen == [ALL]
    server.stop()
    assert os.sched_getaffinity(0) == ALL


@needs_affinity
@needs_two
def test_serve_forever_gives_its_thread_back_as_it_was():
    seen = []

    def visit():
        seen.append(processors(server.server_address))
        server.shutdown()

    with echo.Server(("127.0.0.1", 0), Processors, cpu_affinity=[max(ALL)]) as server:
        for _ in range(2):
            visitor = threading.Thread(target=visit)
            visitor.start()
            server.serve_forever()
            visitor.join(DEADLINE)
            assert os.sched_getaffinity(0) == ALL
    assert seen == [{max(ALL)}] * 2


@needs_affinity
@needs_two
def test_serve_forever_gives_its_thread_back_after_an_interrupt_too():
    class Interrupted(echo.Server):
        def _accept_until_stopped(self, run, poll_interval):
            seen.append(os.sched_getaffinity(0))
            raise KeyboardInterrupt

    seen = []
    with Interrupted(("127.0.0.1", 0), Processors, cpu_affinity=[max(ALL)]) as server:
        with pytest.raises(KeyboardInterrupt):
            server.serve_forever()
        assert os.sched_getaffinity(0) == ALL
    assert seen == [{max(ALL)}]


@needs_affinity
@needs_two
def test_a_thread_that_was_restricted_before_is_so_afterwards():
    def move():
        os.sched_setaffinity(0, {max(ALL)})
        for processors in (None, frozenset([min(ALL)]), None):
            with affinity.kept_to(processors):
                seen.append(os.sched_getaffinity(0))

    seen = []
    thread = threading.Thread(target=move)
    thread.start()
    thread.join(DEADLINE)
    assert seen == [{max(ALL)}, {min(ALL)}, {max(ALL)}]


@pytest.mark.parametrize("value, words", [("two", "'two'"), ("", "''"), ("0", "'0'"), ("AUTO", "'AUTO'")])
def test_a_text_that_is_not_auto_is_an_error_that_names_the_option(value, words):
    with pytest.raises(ValueError, match="cpu_affinity") as caught:
        echo.Server(("127.0.0.1", 0), Processors, cpu_affinity=value)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@needs_affinity
@pytest.mark.parametrize("value", [[], (), [9999], [-1], [0, 9999]])
def test_processors_that_cannot_be_had_are_an_error_that_says_which_there_are(value):
    with pytest.raises(ValueError, match="cpu_affinity") as caught:
        echo.Server(("127.0.0.1", 0), Processors, cpu_affinity=value)
    assert f"this program may use {min(ALL)}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0, 1.5, True, [[0]], [{}], object()])
def test_what_is_no_collection_of_numbers_is_a_type_error(value):
    with pytest.raises(TypeError):
        echo.Server(("127.0.0.1", 0), Processors, cpu_affinity=value)


def test_a_senseless_value_leaves_no_socket_open():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    with pytest.raises(ValueError, match="cpu_affinity"):
        echo.Server(address, Processors, cpu_affinity="two")
    with socket.socket() as sock:
        assert sock.connect_ex(address) != 0


def test_where_the_system_cannot_auto_chooses_nothing_and_numbers_are_an_error(monkeypatch):
    monkeypatch.setattr(affinity, "SUPPORTED", False)
    assert affinity.usable() == frozenset()
    assert affinity.choose("auto", 3) is None
    assert affinity.choose(None, 3) is None
    with pytest.raises(ValueError, match="cpu_affinity is 0; this system has no way"):
        affinity.choose([0], 0)


@needs_affinity
@needs_gil
def test_in_turn_auto_takes_each_processor_around_and_around():
    count = len(ALL)
    taken = [affinity.choose("auto", turn) for turn in range(2 * count)]
    assert taken[:count] == taken[count:] == [{number} for number in sorted(ALL)]


def test_shares_are_one_processor_each_of_those_that_all_may_have(monkeypatch):
    monkeypatch.setattr(affinity, "usable", lambda: frozenset([2, 5, 7]))
    monkeypatch.setattr(affinity, "SUPPORTED", True)
    monkeypatch.setattr(affinity, "has_gil", lambda: True)
    assert [set(affinity.share([7, 2], turn)) for turn in range(3)] == [{2}, {7}, {2}]
    assert [affinity.share("auto", turn) for turn in range(4)] == [{2}, {5}, {7}, {2}]
    assert affinity.share(None, 1) is None


# The command.


@needs_affinity
@needs_gil
def test_the_command_keeps_to_one_processor_by_default(server_command, folder):
    server = server_command("--handler", "cpus:Processors", cwd=folder)
    (number,) = processors(server.address)
    assert number in ALL
    assert processors(server.address) == {number}
    assert server.terminate() == 0


@needs_affinity
@pytest.mark.skipif(affinity.has_gil(), reason="needs a build without the GIL")
def test_the_command_uses_every_processor_by_default_without_the_gil(server_command, folder):
    server = server_command("--handler", "cpus:Processors", cwd=folder)
    assert processors(server.address) == ALL


@needs_affinity
@needs_gil
@needs_two
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc to look in")
def test_the_commands_log_may_be_written_on_any_processor(server_command):
    """It is the accepting thread and its sessions that keep to one; the log's writer began before."""
    server = server_command()
    with echo.connect(server.address) as client:
        client.echo(b"hello")
        lists = []
        for task in os.listdir(f"/proc/{server.pid}/task"):
            with open(f"/proc/{server.pid}/task/{task}/status") as file:
                (line,) = [line for line in file if line.startswith("Cpus_allowed:")]
                lists.append(bin(int(line.split()[1].replace(",", ""), 16)).count("1"))
    assert sorted(lists) == [1, 1, len(ALL)]  # the main thread accepts


@needs_affinity
@needs_gil
@needs_two
def test_several_commands_take_different_processors(server_command, folder):
    taken = set()

    def one_more():
        server = server_command("--handler", "cpus:Processors", cwd=folder)
        (number,) = processors(server.address)
        taken.add(number)
        return len(taken) > 1

    eventually(one_more)


@needs_affinity
def test_the_command_can_be_told_off(server_command, folder):
    server = server_command("--handler", "cpus:Processors", "--cpu-affinity", "off", cwd=folder)
    assert processors(server.address) == ALL


@needs_affinity
@needs_two
@pytest.mark.skipif(not {0, 1} <= ALL, reason="needs processors 0 and 1")
@pytest.mark.parametrize("text, expected", [("0", {0}), ("1", {1}), ("0-1", {0, 1}), ("1,0", {0, 1}), ("0,0-0", {0})])
def test_the_command_takes_a_list_like_tasksets(server_command, folder, text, expected):
    server = server_command("--handler", "cpus:Processors", "--cpu-affinity", text, cwd=folder)
    assert processors(server.address) == expected


@needs_affinity
@pytest.mark.parametrize("text", ["9999", "0-9999"])
def test_a_processor_that_does_not_exist_gets_one_line_and_code_2(run, text):
    server = run("echo.server", "0", "--cpu-affinity", text)
    assert server.finish() == (2, b"")
    assert server.log.count("\n") == 1
    assert server.log.startswith(f"echo.server: --cpu-affinity is {text}; this program may use {min(ALL)}")
    assert server.log.endswith("; see --help\n")


def test_a_range_that_runs_backwards_is_told_the_right_way_round(run):
    server = run("echo.server", "0", "--cpu-affinity", "3-1")
    assert server.finish() == (2, b"")
    assert server.log.count("\n") == 1 and "'3-1' runs backwards; write it 1-3" in server.log


@pytest.mark.parametrize("text", ["junk", "", "0,", "-1", "0-", "1.5", "0 1", "0-1-2", "\u0663", "0x1", "12345"])
def test_junk_gets_one_line_and_code_2(run, text):
    server = run("echo.server", "0", f"--cpu-affinity={text}")
    assert server.finish() == (2, b"")
    assert server.log.count("\n") == 1
    assert "--cpu-affinity" in server.log and "is no list of processors" in server.log and "0,2-3" in server.log


@needs_affinity
@needs_two
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 here")
def test_statistics_are_told_from_any_processor(server_command, folder):
    server = server_command("--handler", "cpus:Processors", "--cpu-affinity", str(max(ALL)), cwd=folder)
    assert processors(server.address) == {max(ALL)}
    server.popen.send_signal(signal.SIGUSR1)
    server.read_log_until("statistics: accepted 1")
    assert server.terminate() == 0


@needs_affinity
def test_where_it_is_forbidden_the_server_serves_all_the_same(serve, monkeypatch):
    def forbidden(pid, mask):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    with echo.connect(serve(cpu_affinity=[min(ALL)]).server_address) as client:
        assert client.echo(b"hello") == b"hello"
