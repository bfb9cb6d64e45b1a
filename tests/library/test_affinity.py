"""Which processors the threads of a server keep to: the option ``cpu_affinity`` and the command's."""

import errno
import os
import signal
import threading

import pytest

import echo
from echo.cli.server import options
from echo.cli.server.command import main
from echo.transport import affinity
from support import DEADLINE, read_exactly
from support.usage_errors import error_line

needs_affinity = pytest.mark.skipif(not affinity.SUPPORTED, reason="this system keeps no program on a processor")
needs_gil = pytest.mark.skipif(not affinity.has_gil(), reason="without the GIL there is nothing to choose")

ALL = affinity.usable()
needs_two = pytest.mark.skipif(len(ALL) < 2, reason="needs two processors")


class Processors(echo.MessageRequestHandler):
    """Replies with the processors that its thread may use."""

    def message_received(self, message):
        self.send(",".join(map(str, sorted(os.sched_getaffinity(0)))).encode())


def processors(address):
    """The processors that a session's thread may use."""
    with echo.connect(address, timeout=DEADLINE) as client:
        client.send(b"which")
        return {int(number) for number in client.recv().split(b",")}


@pytest.fixture
def folder(tmp_path):
    """A folder with ``Processors`` in a module, for the command."""
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
def test_auto_keeps_all_sessions_on_one_processor(serve):
    server = serve(Processors, cpu_affinity="auto")
    (first,) = processors(server.server_address)
    assert first in ALL
    assert [processors(server.server_address) for _ in range(3)] == [{first}] * 3


@needs_affinity
@pytest.mark.skipif(affinity.has_gil(), reason="needs a build without the GIL")
def test_auto_restricts_nothing_without_the_gil(serve):
    assert processors(serve(Processors, cpu_affinity="auto").server_address) == ALL


@needs_affinity
@needs_gil
@needs_two
def test_auto_spreads_several_servers_over_the_processors(serve):
    taken = set()
    for _ in range(100):  # each takes one at random; the chance that all take the same one is 1 in 2 ** 99
        taken |= processors(serve(Processors, cpu_affinity="auto").server_address)
        if len(taken) > 1:
            break
    assert len(taken) > 1


@needs_affinity
@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, iter])
def test_sessions_keep_to_the_processors_of_any_collection(serve, kind):
    assert processors(serve(Processors, cpu_affinity=kind([max(ALL)])).server_address) == {max(ALL)}
    assert processors(serve(Processors, cpu_affinity=kind(list(ALL))).server_address) == ALL


@needs_affinity
def test_simultaneous_sessions_keep_to_it_and_so_do_threads_that_are_not_daemons(serve, dial):
    server = serve(Processors, cpu_affinity=[min(ALL)], daemon_threads=False)
    answer = b"%d\n" % min(ALL)
    clients = [dial(server) for _ in range(5)]
    for client in clients:
        client.sendall(b"which\n")
        assert read_exactly(client, len(answer)) == answer


@needs_affinity
def test_a_class_attribute_sets_the_option_too(serve):
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
def test_serve_forever_restores_its_threads_processors():
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
def test_serve_forever_restores_its_threads_processors_after_an_interrupt_too():
    class Interrupted(echo.Server):
        def _echo_accept_clients(self, *arguments):
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
def test_a_thread_that_was_restricted_before_is_restricted_alike_afterwards():
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


@needs_affinity
def test_where_the_system_forbids_it_the_server_serves_on_all_processors(serve, monkeypatch):
    def forbidden(pid, mask):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    assert processors(serve(Processors, cpu_affinity=[min(ALL)]).server_address) == ALL


# Values that are invalid.


@pytest.mark.parametrize("value, words", [("two", "'two'"), ("", "''"), ("0", "'0'"), ("AUTO", "'AUTO'")])
def test_a_text_other_than_auto_is_an_error_that_names_the_option(value, words):
    with pytest.raises(ValueError, match="cpu_affinity") as caught:
        echo.Server(("127.0.0.1", 0), Processors, cpu_affinity=value)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@needs_affinity
@pytest.mark.parametrize("value", [[], (), [9999], [-1], [0, 9999]])
def test_the_error_for_unavailable_processors_lists_the_available_ones(value):
    with pytest.raises(ValueError, match="cpu_affinity") as caught:
        echo.Server(("127.0.0.1", 0), Processors, cpu_affinity=value)
    assert f"this program may use {min(ALL)}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0, 7, 1.5, True, [0.0], ["a", 0], [[0]], [{}], object()])
def test_a_value_that_is_not_a_collection_of_whole_numbers_is_a_type_error(value):
    with pytest.raises(TypeError, match="cpu_affinity"):
        echo.Server(("127.0.0.1", 0), Processors, cpu_affinity=value)


def test_an_invalid_value_is_reported_before_a_socket_is_bound():
    class Watched(echo.Server):
        def server_bind(self):
            bound.append(self)
            super().server_bind()

    bound = []
    with pytest.raises(ValueError, match="cpu_affinity"):
        Watched(("127.0.0.1", 0), Processors, cpu_affinity="two")
    assert bound == []


# The choice, for machines other than this one.


@pytest.mark.parametrize("gil, chosen", [(True, {3}), (False, None)])
def test_auto_chooses_one_processor_only_where_there_is_a_gil(gil, chosen):
    assert affinity.choose("auto", 0, available=frozenset([3, 4]), gil=gil) == chosen


def test_auto_takes_each_processor_in_turn():
    three = frozenset([2, 5, 7])
    taken = [affinity.choose("auto", turn, available=three, gil=True) for turn in range(6)]
    assert taken == [{2}, {5}, {7}] * 2


@needs_affinity
@needs_gil
def test_by_default_the_choice_is_among_the_processors_of_this_machine():
    assert [affinity.choose("auto", turn) for turn in range(len(ALL))] == [{number} for number in sorted(ALL)]


def test_several_processes_get_one_processor_each_of_those_that_all_may_use():
    machine = {"available": frozenset([2, 5, 7]), "gil": True}
    assert [set(affinity.share([7, 2], turn, **machine)) for turn in range(3)] == [{2}, {7}, {2}]
    assert [affinity.share("auto", turn, **machine) for turn in range(4)] == [{2}, {5}, {7}, {2}]
    assert affinity.share(None, 1, **machine) is None


def test_a_system_without_affinity_has_no_usable_processors(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert affinity.usable() == frozenset()


def test_without_affinity_in_the_system_auto_chooses_nothing_and_numbers_are_an_error():
    nothing = frozenset()
    assert affinity.choose("auto", 3, available=nothing) is None
    assert affinity.choose(None, 3, available=nothing) is None
    with pytest.raises(ValueError, match="cpu_affinity is 0; this system has no way"):
        affinity.choose([0], 0, available=nothing)


# The command.


@pytest.mark.parametrize(
    "text, chosen",
    [
        ("auto", "auto"),
        ("off", None),
        ("0", {0}),
        ("11", {11}),
        ("0-1", {0, 1}),
        ("1,0", {0, 1}),
        ("0,0-0,7-9", {0, 7, 8, 9}),
    ],
)
def test_the_command_takes_auto_or_off_or_a_list_like_tasksets(text, chosen):
    parsed = options.parser().parse_args(["--cpu-affinity", text]).cpu_affinity
    assert parsed == chosen or set(parsed) == chosen


def test_the_commands_default_is_auto():
    assert options.parser().parse_args([]).cpu_affinity == "auto"


@needs_affinity
@needs_gil
@needs_two
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc to look in")
def test_by_default_the_commands_sessions_keep_to_one_processor_and_its_log_does_not(server_command, folder):
    """The accepting thread and its sessions keep to one processor. The thread that writes the log began before."""
    server = server_command("--handler", "cpus:Processors", cwd=folder)
    with echo.connect(server.address, timeout=DEADLINE) as client:
        client.send(b"which")
        number = int(client.recv())
        assert number in ALL
        allowed = [os.sched_getaffinity(int(task)) for task in os.listdir(f"/proc/{server.pid}/task")]
        assert {number} in allowed and ALL in allowed
        assert os.sched_getaffinity(server.pid) == {number}  # the main thread accepts
    assert server.terminate() == 0


@needs_affinity
@pytest.mark.skipif(affinity.has_gil(), reason="needs a build without the GIL")
def test_the_command_uses_every_processor_by_default_without_the_gil(server_command, folder):
    server = server_command("--handler", "cpus:Processors", cwd=folder)
    assert processors(server.address) == ALL


@needs_affinity
@needs_two
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 here")
def test_the_command_keeps_to_the_given_processor_and_still_reports_statistics(server_command, folder):
    server = server_command("--handler", "cpus:Processors", "--cpu-affinity", str(max(ALL)), cwd=folder)
    assert processors(server.address) == {max(ALL)}
    server.popen.send_signal(signal.SIGUSR1)
    server.read_log_until("statistics: accepted 1")
    assert server.terminate() == 0


@pytest.mark.slow
@needs_affinity
@needs_two
def test_off_lets_the_commands_sessions_use_every_processor(server_command, folder):
    server = server_command("--handler", "cpus:Processors", "--cpu-affinity", "off", cwd=folder)
    assert processors(server.address) == ALL


@pytest.mark.slow
@needs_affinity
@needs_gil
@needs_two
def test_several_commands_take_different_processors(server_command, folder):
    taken = set()
    for _ in range(30):  # each takes one at random; the chance that all take the same one is 1 in 2 ** 29
        server = server_command("--handler", "cpus:Processors", cwd=folder)
        taken |= processors(server.address)
        assert server.terminate() == 0
        if len(taken) > 1:
            break
    assert len(taken) > 1


@needs_affinity
@pytest.mark.parametrize("text", ["9999", "0-9999"])
def test_an_unavailable_processor_ends_the_command_with_one_short_line_and_code_2(capsys, text):
    code, line = error_line(capsys, main, "0", "--cpu-affinity", text)
    assert code == 2
    assert line.startswith(f"echo.server: --cpu-affinity is {text}; this program may use {min(ALL)}")
    assert line.endswith("; see --help")
    assert len(line) < 500


def test_a_range_that_runs_backwards_ends_the_command_with_the_corrected_range(capsys):
    code, line = error_line(capsys, main, "0", "--cpu-affinity", "3-1")
    assert code == 2
    assert "invalid range '3-1': expected 1-3" in line


@pytest.mark.parametrize("text", ["junk", "", "0,", "-1", "0-", "1.5", "0 1", "0-1-2", "\u0663", "0x1", "12345"])
def test_a_malformed_list_ends_the_command_with_one_line_and_code_2(capsys, text):
    code, line = error_line(capsys, main, "0", f"--cpu-affinity={text}")
    assert code == 2
    assert "--cpu-affinity" in line and "invalid processors " in line and "0,2-3" in line
