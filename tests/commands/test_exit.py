"""How the server command ends: signals from its start to its end, one deadline for all that it leaves behind, and the
exit code."""

import concurrent.futures.process
import contextlib
import errno
import multiprocessing.process
import os
import re
import signal
import sys
import threading
import time
import types

import pytest

from echo.cli.server import command, workers
from echo.cli.server.process import Process, end_daemonic_children, watch_terminal
from support import DEADLINE, ROOT, TESTS, eventually, read_exactly
from support.commands import SLOW_HANDLER, start_changed, write_changed_command
from support.processes import is_alive, state_of

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")

COUNTS = [
    "1",
    pytest.param("2", marks=pytest.mark.skipif(not workers.SUPPORTED, reason="this system has no fork()")),
]

PATH = os.pathsep.join([ROOT, TESTS])

SOON = "process.LEAST = process.CUT_GRACE = workers.KILL_GRACE = 0.01; process.LAST_GRACE = 60.0"
"""Cut the rest without a second of grace, but leave time to log that, however busy this machine is."""


@pytest.fixture
def leaves(run, tmp_path):
    """``leaves(what, *options)``: the command with a handler whose module leaves ``what`` behind, or nothing."""

    def start(what, *options, change=SOON, **popen_options):
        return start_changed(
            *(run, tmp_path, change, "--handler", "support.leaves:Leaves", *options),
            env={"LEAVES": what, "PYTHONPATH": PATH, "PYTHONWARNINGS": "ignore"},  # of forks with threads, from 3.12 on
            **popen_options,
        )

    return start


# Signals.


PATIENT = "process.LEAST = process.CUT_GRACE = workers.KILL_GRACE = process.LAST_GRACE = 60.0"
"""A second signal cuts the rest, and here there is none. The stop itself has time, however busy this machine is."""


@pytest.mark.parametrize("count", COUNTS)
def test_signals_until_the_process_is_gone_change_nothing_about_code_0(run, tmp_path, count):
    """Row 43."""
    server = start_changed(run, tmp_path, PATIENT, "--workers", count, start_new_session=True)
    number = 0
    pause = threading.Event()
    while server.popen.poll() is None:
        os.killpg(server.pid, signal.SIGINT if number % 2 else signal.SIGTERM)
        if number % 10 == 5:  # not often, since the pipe holds all their log records until the end
            os.killpg(server.pid, signal.SIGUSR1)
            os.killpg(server.pid, signal.SIGHUP)
        number += 1
        pause.wait(0.0005)  # a process that gets signals all the time can do nothing else
    assert server.finish()[0] == 0
    assert "Traceback" not in server.log and "died" not in server.log


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(server_command, count, signum):
    """Row 56: in a shell's background job it is SIGINT."""
    server = server_command("--workers", count, preexec_fn=lambda: signal.signal(signum, signal.SIG_IGN))
    server.popen.send_signal(signum)
    server.popen.send_signal(signal.SIGHUP)  # would be handled after it
    server.read_log_until("SIGHUP: certificates and networks read again")
    assert server.terminate() == 0
    assert signum.name not in server.log and "statistics" not in server.log


@pytest.mark.parametrize("count", COUNTS)
def test_signals_that_were_blocked_at_the_start_are_not(server_command, count):
    """Row 58."""
    blocked = [signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD]
    server = server_command("--workers", count, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, blocked))
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until("SIGHUP: certificates and networks read again")
    assert server.terminate() == 0


@pytest.mark.parametrize("count", COUNTS)
def test_a_thread_that_the_handlers_module_starts_takes_no_signal_away(leaves, count):
    """Row 82."""
    server = leaves("daemon thread", "--workers", count)
    assert server.terminate() == 0
    assert "SIGTERM: stopping" in server.log


@pytest.mark.skipif(not workers.SUPPORTED, reason="this system has no fork()")
def test_workers_do_not_wait_for_a_timer_of_faulthandler_in_their_parent(leaves):
    """Row 82: it is a thread without Python, which a forked process does not have, and would wait for at its stop."""
    server = leaves("timer of faulthandler", "--workers", "2")
    server.read_log_until(r"(?s)worker 0.*worker 1.*\n")
    assert server.terminate() == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("what", ["signal handlers", "blocked signals"])
@pytest.mark.parametrize("count", COUNTS)
def test_what_the_handlers_module_does_with_signals_does_not_count(leaves, what, count, signum):
    """Rows 56 and 58."""
    server = leaves(what, "--workers", count)
    server.popen.send_signal(signum)
    assert server.finish()[0] == 0
    assert f"{signum.name}: stopping" in server.log


@pytest.mark.skipif(not workers.SUPPORTED, reason="this system has no fork()")
@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_server_whose_handlers_module_makes_it_a_daemon_stops_as_any_other(leaves, count, signum):
    """The process that is left is a forked child, which has the default actions again."""
    server = leaves("a daemon", "--workers", count)
    daemon = int(server.read_log_until(r"\(process (\d+);").group(1))
    assert server.popen.wait() == 0 and daemon != server.pid
    os.kill(daemon, signum)
    server.finish()  # the log has ended: no process has it open any more
    assert f"{signum.name}: stopping" in server.log
    assert count != "1" or "stopped: " in server.log  # workers may not have been started yet


@pytest.mark.parametrize("count", COUNTS)
def test_sigpipe_ends_no_server_whose_handlers_module_wants_that(leaves, count):
    server = leaves("signals that kill", "--workers", count)
    server.popen.send_signal(signal.SIGPIPE)  # as sending to a client that has vanished
    assert server.terminate() == 0


@pytest.mark.parametrize("count", COUNTS)
def test_an_output_of_the_handlers_module_that_fails_changes_no_exit_code(leaves, count):
    server = leaves("output that fails", "--workers", count)
    assert server.terminate() == 0
    assert "Traceback" not in server.log


@pytest.mark.parametrize("what", ["import that hangs", "import that catches all", "thread and an import that hangs"])
def test_a_signal_while_the_handlers_module_is_imported_ends_the_process_with_code_0(run, tmp_path, what):
    options = ["0", "--handler", "support.leaves:Leaves"]
    server = run("echo.server", *options, cwd=str(tmp_path), env={"LEAVES": what, "PYTHONPATH": PATH})
    eventually((tmp_path / "importing").exists)
    assert server.terminate() == 0
    assert server.log == ""
    assert (tmp_path / "caught").exists() == (what == "import that catches all")


def test_a_child_of_an_import_that_is_interrupted_ends_with_the_process(run, tmp_path):
    """Row 64: it lived on, and kept the pipe of the log open."""
    environment = {"LEAVES": "thread, child and an import that hangs", "PYTHONPATH": PATH, "PYTHONWARNINGS": "ignore"}
    server = run("echo.server", "0", "--handler", "support.leaves:Leaves", cwd=str(tmp_path), env=environment)
    eventually((tmp_path / "importing").exists)
    child = int((tmp_path / "child").read_text())
    try:
        assert server.terminate() == 0
        eventually(lambda: not is_alive(child))
    finally:  # it has the pipe of the log, for whose end the fixture waits
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


LOCKED = """
import threading
lock, signals = threading.Lock(), [{}]
class Locked(logging.Handler):
    def emit(self, record):
        with lock:
            if record.event == "refused" and signals:
                os.kill(os.getpid(), signals.pop())
logging.getLogger().addHandler(Locked())
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_a_logging_handler_holds_its_lock_hangs_nothing(run, tmp_path, dial, signum):
    """Most locks are not reentrant, for example that of ``logging.handlers.QueueHandler``."""
    server = start_changed(
        run, tmp_path, LOCKED.format(int(signum)), "--deny", "127.0.0.1", "--shutdown-timeout", "10m"
    )
    dial(server.address)
    if signum == signal.SIGUSR1:
        server.read_log_until("statistics: accepted 1")
        server.popen.send_signal(signal.SIGTERM)
    assert server.finish()[0] == 0
    assert "SIGTERM: stopping" in server.log


def test_an_exception_in_a_signal_handler_of_the_handlers_module_cuts_nothing(run, tmp_path, dial):
    (tmp_path / "slow.py").write_text(SLOW_HANDLER)
    change = "import signal; signal.signal(signal.SIGUSR2, lambda *_: sys.exit(7))"
    server = start_changed(run, tmp_path, change, "--handler", "slow:Slow", "--shutdown-timeout", "10m")
    client = dial(server.address)
    client.sendall(b"slow\n")
    server.read_log_until("received 4 bytes")
    server.popen.send_signal(signal.SIGUSR2)
    server.read_log_until("draining 1 session")
    (tmp_path / "go").write_text("")
    assert read_exactly(client, 5) == b"slow\n"
    client.close()
    assert server.finish()[0] == 7


# A start for which the system lacks something.


NO_FILES = "import errno, socket\ndef fail(*_): raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))\n"
NO_THREADS = 'import threading\ndef fail(*_): raise RuntimeError("can\'t start new thread")\n'


@pytest.mark.parametrize(
    "count, change, limit",
    [
        ("1", NO_FILES + "os.dup = fail", "ulimit -n"),
        ("1", NO_FILES + "socket.socketpair = fail", "ulimit -n"),
        ("1", NO_THREADS + "threading.Thread.start = fail", "ulimit -u, ulimit -v"),
        pytest.param("2", NO_FILES + "socket.socketpair = fail", "ulimit -n", marks=COUNTS[1].marks),
    ],
    ids=["log", "loop", "thread", "parent"],
)
def test_a_resource_that_is_missing_at_the_start_is_named_in_one_line(run, tmp_path, count, change, limit):
    """Row 65."""
    write_changed_command(tmp_path, change)
    server = run("changed", "0", "--workers", count, cwd=str(tmp_path))
    assert server.finish()[0] == 1
    last = [line for line in server.log.splitlines() if "listening on" not in line and "stopped: " not in line]
    assert len(last) == 1 and "the server cannot run: " in last[0] and f"({limit})" in last[0]


@pytest.mark.parametrize("option, form", [("--allow", "@{}"), ("--tls-cert", "{}")])
@pytest.mark.parametrize(
    "lack, advice",
    [
        (errno.EMFILE, "close other programs, or raise the limit"),
        (errno.EFBIG, "raise the limit of file sizes (ulimit -f)"),
        (errno.ENOSPC, "free some space on the disk"),
    ],
)
def test_a_file_that_cannot_be_read_for_want_of_something_is_no_usage_error(
    monkeypatch, capsys, tmp_path, option, form, lack, advice
):
    """Row 65. A service manager starts the server again, unless the code is 2."""
    path = str(tmp_path / "file")
    opened = os.open

    def open_others(name, *arguments, **options):
        if name == path:
            raise OSError(lack, os.strerror(lack))
        return opened(name, *arguments, **options)

    monkeypatch.setattr(os, "open", open_others)
    with pytest.raises(SystemExit) as ended:
        command.main(["0", option, form.format(path)])
    assert ended.value.code == 1
    why = f"cannot read {path}: {os.strerror(lack)}; {advice}"
    assert capsys.readouterr().err.startswith(f"echo.server: {why}")


@pytest.mark.parametrize(
    "error, advice",
    [
        ('OSError(24, "Too many open files")', ".*ulimit -n"),
        ('RuntimeError("can\'t start new thread")', ".*ulimit -u"),
        ("MemoryError", "MemoryError; .*close other programs"),
        ('ImportError("liba.so: cannot open shared object file: Too many open files")', ".*ulimit -n"),
        ('ValueError("no") from OSError(24, "Too many open files")', "ValueError: no; .*ulimit -n"),
    ],
)
def test_a_module_that_cannot_be_imported_for_want_of_something_is_no_usage_error(
    monkeypatch, capsys, tmp_path, error, advice
):
    """Row 65."""
    (tmp_path / "lacking_module.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        command.main(["0", "--handler", "lacking_module:Handler"])
    assert ended.value.code == 1
    assert re.search(rf"^echo\.server: importing lacking_module failed: {advice}", capsys.readouterr().err)


# Threads, pools and exit functions that the handler's module leaves behind.


@pytest.mark.parametrize(
    "what, name",
    [
        ("thread", "thread poller"),
        ("busy pool", "(thread pool_0|exit functions)"),  # the latter in CPython 3.8
        ("exit function that hangs", "exit functions"),
    ],
)
@pytest.mark.parametrize("count", COUNTS)
def test_what_is_left_at_the_deadline_is_cut_and_the_code_is_1(leaves, what, name, count):
    """Row 64."""
    server = leaves(what, "--workers", count, "--shutdown-timeout", "0")
    assert server.terminate() == 1
    assert re.search(rf"WARNING .*{name} cut: not done in time\n", server.log)


WITHOUT_MEMORY = """\
import threading
from echo import beginning
beginning.PATIENCE = 60.0
leave = process.Process.exit
def leave_without_memory(*arguments, **options):
    threading.Thread._bootstrap = lambda thread: None  # no thread reaches its first line
    leave(*arguments, **options)
process.Process.exit = leave_without_memory"""


def test_without_memory_for_a_thread_the_end_waits_for_none_and_the_code_is_0(run, tmp_path):
    """Row 65: the end waited five seconds for the thread that ends it in time, and the last deadline came first."""
    server = start_changed(run, tmp_path, WITHOUT_MEMORY, "--shutdown-timeout", "5")
    assert server.terminate() == 0


WITHOUT_THREADS = f"""\
import faulthandler, _thread, threading
ask = process.Process._asked
def refuse(*arguments, **options):
    raise RuntimeError("can't start new thread")
def ask_without_threads(*arguments):
    faulthandler.dump_traceback_later = _thread.start_new_thread = refuse
    threading._start_new_thread = threading._start_joinable_thread = refuse
    ask(*arguments)
process.Process._asked = ask_without_threads
{SOON}; process.LAST_GRACE = process.PARENT_GRACE = 0.2"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no alarms")
@pytest.mark.parametrize("what", ["exit function that hangs", "thread", "drain that blocks"])
@pytest.mark.parametrize("count", COUNTS)
def test_where_no_thread_is_free_the_process_ends_in_time_too(leaves, dial, what, count):
    """Row 64: no deadline held, and it stayed for ever, whatever signals came."""
    server = leaves(what, "--workers", count, "--shutdown-timeout", "0", change=WITHOUT_THREADS)
    client = dial(server.address)
    client.sendall(b"hello\n")
    assert read_exactly(client, 6) == b"hello\n"
    assert server.terminate() == 1


ENDS_WHEN_CUT = f"""\
import atexit, threading
is_cut = threading.Event()
def cut():
    is_cut.set()
    threading.Event().wait()  # the thread that cuts comes second
process.end_daemonic_children = cut
atexit.register(is_cut.wait)
{SOON}"""


def test_what_ends_only_since_its_children_are_killed_counts_as_cut(run, tmp_path):
    """Row 64: an exit function that waited for a child returned when that was killed, and the code was 0 at times."""
    server = start_changed(run, tmp_path, ENDS_WHEN_CUT, "--shutdown-timeout", "0")
    assert server.terminate() == 1
    assert "exit functions cut: not done in time" in server.log


def test_a_second_signal_cuts_what_is_left(leaves):
    server = leaves("thread", "--shutdown-timeout", "10m", change=f"running.SAME_SIGNAL = 0; {SOON}")
    server.popen.send_signal(signal.SIGTERM)
    server.read_log_until("stopped: 0 sessions drained, 0 cut")
    assert server.terminate() == 1
    assert "thread poller cut: not done in time" in server.log


@pytest.mark.parametrize(
    "what, output", [("idle pool", b""), ("exit function", b"exit function called")], ids=["pool", "function"]
)
@pytest.mark.parametrize("count", COUNTS)
def test_a_pool_ends_and_exit_functions_are_called_once(leaves, what, output, count):
    server = leaves(what, "--workers", count)
    server.popen.send_signal(signal.SIGTERM)
    assert server.finish() == (0, output)
    assert "cut: not done" not in server.log


def test_c_code_that_keeps_the_lock_of_the_interpreter_is_cut_as_well(leaves, dial):
    change = "process.LAST_GRACE = 0.1"
    server = leaves("drain that holds the lock", "--shutdown-timeout", "0", change=change)
    client = dial(server.address)
    client.sendall(b"hello\n")
    assert read_exactly(client, 6) == b"hello\n"
    assert server.terminate() == 1


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("what", ["exit function that holds the lock", "logging handler that blocks"])
def test_nothing_that_the_handlers_module_leaves_keeps_the_process_or_its_parent(leaves, what, count):
    """Rows 44 and 64."""
    change = "process.LAST_GRACE = process.PARENT_GRACE = 0.1; workers.KILL_GRACE = 0.05"
    server = leaves(what, "--workers", count, "--shutdown-timeout", "0", change=change)
    assert server.terminate() == 1


@pytest.mark.skipif(not workers.SUPPORTED, reason="this system has no fork()")
def test_a_parent_of_workers_that_is_blocked_before_the_stop_ends_in_time(leaves, tmp_path):
    """Row 64: by a logging handler here."""
    change = "process.LAST_GRACE = process.PARENT_GRACE = 0.1"
    what = "logging handler that blocks when workers start"
    server = leaves(what, "--workers", "2", "--shutdown-timeout", "0", change=change)
    eventually((tmp_path / "blocked").exists)
    assert server.terminate() == 1


# Workers that do not answer.


@pytest.mark.skipif(not workers.SUPPORTED, reason="this system has no fork()")
@pytest.mark.parametrize("second", [False, True], ids=["deadline", "second signal"])
@pytest.mark.parametrize("how", ["stopped", "holds the lock"])
def test_a_worker_that_hangs_is_killed_and_the_code_is_1(leaves, dial, how, second):
    """Row 44."""
    options = ["--workers", "2", "--shutdown-timeout", "10m" if second else "0"]
    server = leaves("", *options, change=f"running.SAME_SIGNAL = 0; {SOON}")
    server.read_log_until(r"(?s)worker 0.*worker 1.*\n")
    pids = [int(pid) for pid in re.findall(r"is process (\d+)", server.log)]
    client = dial(server.address)
    if how == "stopped":
        os.kill(pids[0], signal.SIGSTOP)
        eventually(lambda: state_of(pids[0]) == "T")
    else:
        client.sendall(b"hold\n")
        assert read_exactly(client, 5) == b"hold\n"
    server.popen.send_signal(signal.SIGTERM)
    if second:
        server.read_log_until("SIGTERM: stopping 2 workers")
        server.popen.send_signal(signal.SIGTERM)
    assert server.finish()[0] == 1
    assert "was killed by SIGKILL, not done in time" in server.log
    assert not [pid for pid in pids if is_alive(pid)]


@pytest.mark.skipif(not workers.SUPPORTED, reason="this system has no fork()")
def test_workers_for_which_other_code_has_waited_count_as_dead(leaves):
    server = leaves("code that waits for any child", "--workers", "2")
    server.read_log_until(r"(?s)worker 0.*worker 1.*\n")
    assert server.terminate() == 1  # their exit codes are unknown
    assert server.log.count("ended, and code in the parent took its exit code") == 2
    assert "Traceback" not in server.log


# Children of a handler.


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(m, marks=pytest.mark.slow) for m in ("spawn", "forkserver"))]
)
@pytest.mark.parametrize("count", COUNTS)
def test_a_process_that_a_handler_starts_ends_when_it_is_terminated(leaves, dial, method, count):
    """Row 80."""
    server = leaves("", "--workers", count)
    client = dial(server.address)
    client.sendall(b"process %s\n" % method.encode())
    assert read_exactly(client, 4) == b"-15\n"
    client.close()
    assert server.terminate() == 0
    assert "Traceback" not in server.log


def started_child(server, dial, kind=b"child"):
    """The process that the handler has started for a client."""
    client = dial(server.address)
    client.sendall(kind + b"\n")
    child = int(client.makefile("rb").readline())
    assert is_alive(child)
    return child


@pytest.mark.parametrize("count", COUNTS)
def test_a_daemonic_process_of_a_handler_ends_with_the_server(leaves, dial, count):
    server = leaves("", "--workers", count)
    child = started_child(server, dial)
    assert server.terminate() == 0
    eventually(lambda: not is_alive(child))


def test_a_daemonic_process_of_a_handler_ends_with_a_server_that_is_cut(leaves, dial):
    """Row 64. The exit function that ends it is cut. Those of a worker that its parent has to kill stay: nobody else
    knows them."""
    server = leaves("thread", "--shutdown-timeout", "0")
    child = started_child(server, dial)
    assert server.terminate() == 1
    eventually(lambda: not is_alive(child))


def test_the_process_of_a_manager_ends_with_a_server_that_is_cut(leaves, dial):
    """Row 64: it waited for its next client for ever, and kept the pipe of the log open."""
    server = leaves("thread", "--shutdown-timeout", "0")
    child = started_child(server, dial, b"manager")
    assert server.terminate() == 1
    eventually(lambda: not is_alive(child))


@pytest.mark.skipif(sys.version_info < (3, 9), reason="the server cannot find them")
def test_the_processes_of_an_executor_end_with_a_server_that_is_cut(leaves, dial):
    """Row 64: they waited for their next task for ever, and kept the pipe of the log open."""
    server = leaves("", "--shutdown-timeout", "0")
    child = started_child(server, dial, b"pool")
    assert server.terminate() == 1
    eventually(lambda: not is_alive(child))


@pytest.fixture
def cut(monkeypatch):
    """``cut()`` ends the children of this process, as at a deadline; afterwards it may start some again."""
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", multiprocessing.process.BaseProcess.start)
    return end_daemonic_children


@pytest.mark.skipif(not workers.SUPPORTED, reason="this system has no fork()")
def test_a_pool_does_not_replace_its_processes_when_they_are_cut(cut):
    """Row 64: the new ones waited for ever for a lock that a killed one had held, and kept the log's pipe open."""
    fork = multiprocessing.get_context("fork")
    first = fork.Process(target=time.sleep, args=(600,), daemon=True)
    first.start()
    cut()
    first.join(DEADLINE)
    assert first.exitcode == -signal.SIGKILL
    with pytest.raises(SystemExit):  # in a thread, nobody hears of it
        fork.Process(target=time.sleep, args=(0,)).start()


def test_a_worker_that_is_cut_kills_no_process_of_an_executor_of_its_parent(monkeypatch, cut):
    """A forked worker has its parent's table of executors, with their processes."""

    class Child:
        def __init__(self, parent):
            self._parent_pid, self.killed = parent, False

        def kill(self):
            self.killed = True

    own, parents = Child(os.getpid()), Child(os.getppid())
    executor = types.SimpleNamespace(processes={1: parents, 2: own})
    monkeypatch.setattr(concurrent.futures.process, "_threads_wakeups", [executor], raising=False)
    cut()
    assert own.killed and not parents.killed


# The terminal.


@pytest.mark.parametrize("number, gone", [(errno.ENXIO, True), (errno.EIO, True), (errno.EMFILE, False)])
def test_a_terminal_that_cannot_be_opened_for_want_of_descriptors_is_not_gone(monkeypatch, number, gone):
    """Row 69."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    monkeypatch.setattr(os, "open", lambda *arguments: descriptor)
    terminal_is_gone = watch_terminal()

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    assert terminal_is_gone() is gone


def test_the_null_device_of_the_last_deadline_is_never_another_file(tmp_path):
    """Row 68: what ends the process writes a traceback to a descriptor, whose number may be another file's by then."""
    with Process() as process, (tmp_path / "file").open("w") as file:
        number = process._nowhere.number
        os.dup2(file.fileno(), number)  # as after os.closerange(3, 100)
        process._bound(3600.0)
        assert process._nowhere.number != number
        assert os.path.samestat(os.fstat(process._nowhere.number), os.stat(os.devnull))
    assert os.path.samestat(os.fstat(number), os.stat(str(tmp_path / "file")))  # nor is it closed
    os.close(number)
