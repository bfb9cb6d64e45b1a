"""The output of the server command's log: whole lines or nothing, to the file that was the log at the start."""

import contextlib
import errno
import os
import select
import socket
import subprocess
import sys

import pytest

from echo.logs import output as output_module
from echo.logs.output import Output, new_lock
from support import DEADLINE, ROOT
from support.background import Background

posix = pytest.mark.skipif(os.name != "posix", reason="pipes and limits as POSIX has them")


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(descriptor)


@pytest.fixture
def lock():
    owned = new_lock()
    yield owned
    if owned is not None:
        os.close(owned.number)


def lines_of(*sizes):
    """Lines of so many bytes."""
    return [b"%c" % (97 + number % 26) * (size - 1) + b"\n" for number, size in enumerate(sizes)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_where_files_in_memory_are_forbidden_processes_share_a_lock_all_the_same(monkeypatch):
    """Row 85: without one, their lines mixed."""

    def forbidden(name):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)
    owned = new_lock()
    assert owned.is_file()
    owned.close()


@posix
@pytest.mark.parametrize("append", [True, False])
def test_a_full_disk_cuts_no_line_and_what_is_lost_is_counted(tmp_path, append):
    """Row 86."""
    import resource

    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else 0))
    output = Output(descriptor)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250, limits[1]))  # like a disk with room for two and a half lines
    try:
        assert output.write(lines_of(100)) == 0
        assert output.write(lines_of(100, 100, 100)) == 2
        assert output.write(lines_of(100)) == 1
        assert output.write(lines_of(50)) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert output.write(lines_of(10)) == 0
    output.close()
    os.close(descriptor)
    assert [len(line) for line in path.read_bytes().split(b"\n")] == [99, 99, 49, 9, 0]
    assert "could not be written" in output.problem()


@posix
@pytest.mark.parametrize("limit, number", [(250, errno.EFBIG), (None, errno.ENOSPC)], ids=["limit", "disk"])
def test_the_log_says_what_has_cut_a_line(tmp_path, monkeypatch, limit, number):
    """Row 86: the disk was blamed for a limit of the process, and the other way round."""
    import resource

    if limit is None:
        write = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:50]))
    with (tmp_path / "log").open("wb") as file:
        output = Output(file.fileno())
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit or limits[0], limits[1]))
        try:
            assert output.write(lines_of(100, 100, 100)) > 0
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            monkeypatch.undo()
        assert os.strerror(number) in output.problem()
        output.close()


OF_ANOTHER_USER = """\
import errno, os, sys
os.close(os.open(os.ttyname(2), os.O_RDWR))  # which makes it the terminal of this session
open_any, denied = os.open, [True]
def open_mine(path, *arguments):
    if str(path).startswith("/dev/fd/") and denied:  # once: it may open its own /dev/tty by any name
        denied.pop()
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return open_any(path, *arguments)
os.open = open_mine
from echo.logs.output import Output
output = Output(2, waits=False)
output.patience = 0.01
while output.write([19 * b"x" + b"\\n"]) == 0:
    pass
number = output._own.number
well = os.get_blocking(2) and output.takes_what_is_written_to(sys.stderr)
output.let_go()  # as in a forked child, whose /dev/tty may be another terminal
well = well and output._own.number == number and output.takes_what_is_written_to(sys.stderr)
os._exit(0 if well else 3)  # an assertion would wait for the terminal
"""
"""A program fills the terminal of its session, which belongs to another user, as after ``su``."""


@posix
def test_a_terminal_of_another_user_that_is_not_read_delays_nobody_for_long():
    """Row 50: it cannot be opened again, and has less room than it says. ``echo.run`` after ``su`` waited for ever."""
    master, slave = os.openpty()
    program = subprocess.Popen(
        [sys.executable, "-c", OF_ANOTHER_USER],
        **dict(stdin=slave, stderr=slave, start_new_session=True, env={**os.environ, "PYTHONPATH": ROOT}),
    )
    try:
        assert program.wait(DEADLINE) == 0
    finally:
        program.kill()
        program.wait()
        os.close(master)
        os.close(slave)


CLOSED = """\
import os
from echo.logs.output import Output
output = Output(2, waits=False)
output.patience = 0.01
os.close(output._own.number)  # by other code of the program
while output.write([19 * b"x" + b"\\n"]) == 0:
    pass
os._exit(0 if os.get_blocking(2) else 3)
"""


@posix
def test_a_terminal_that_other_code_has_closed_is_found_again_and_delays_nobody():
    """Rows 50 and 68: what had been opened instead of it waited for whoever reads it."""
    master, slave = os.openpty()
    program = subprocess.Popen([sys.executable, "-c", CLOSED], stderr=slave, env={**os.environ, "PYTHONPATH": ROOT})
    try:
        assert program.wait(DEADLINE) == 0
    finally:
        program.kill()
        program.wait()
        os.close(master)
        os.close(slave)


@posix
@pytest.mark.parametrize("moment", ["after the first write", "before the second write"])
def test_the_rest_of_a_line_is_not_the_beginning_of_a_file_that_was_emptied_meanwhile(tmp_path, monkeypatch, moment):
    """Row 86: somebody empties the log, since its disk is full. The rest of a client's text became a line."""
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    output = Output(descriptor)
    real = os.write

    def write_some(number, data):
        monkeypatch.setattr(os, "write", real if moment == "after the first write" else after_the_look)
        done = real(number, data[:150])
        if moment == "after the first write":
            os.truncate(path, 0)
        return done

    def after_the_look(number, data):
        os.truncate(path, 0)
        return real(number, data)

    monkeypatch.setattr(os, "write", write_some)
    assert output.write(lines_of(100, 100)) == 1
    assert output.write(lines_of(50)) == 0
    output.close()
    os.close(descriptor)
    assert [len(line) for line in path.read_bytes().split(b"\n")] == [49, 0]


@posix
def test_a_line_that_was_written_in_part_is_finished_before_the_next(pipe):
    reader, writer = pipe
    os.set_blocking(writer, False)
    output = Output(writer, waits=False)
    output.patience = 0
    long, short = lines_of(1 << 20, 10)
    assert output.write([long]) == 0  # on its way
    assert output.write([short]) == 1
    seen = b""
    os.set_blocking(reader, False)
    while len(seen) < len(long):
        with contextlib.suppress(BlockingIOError):
            while True:
                seen += os.read(reader, 1 << 20)
        output.write([])
    output.write([short])
    assert seen + os.read(reader, 100) == long + short
    output.close()


@posix
@pytest.mark.parametrize("is_file", [True, False])
def test_no_write_is_longer_than_a_pipe_takes_whole_except_to_a_file(is_file, monkeypatch, tmp_path):
    """Row 67: other servers may write to the same pipe, and the process may end while it writes."""
    sizes = []
    with open(tmp_path / "log" if is_file else os.devnull, "wb") as file:
        output = Output(file.fileno())
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", lambda descriptor, data: sizes.append(len(data)) or len(data))
            assert output.write(lines_of(*[100] * 600)) == 0
        output.close()
    assert sum(sizes) == 60_000
    assert all(size % 100 == 0 for size in sizes)
    assert len(sizes) == 1 if is_file else max(sizes) <= select.PIPE_BUF


@posix
def test_a_line_longer_than_a_pipe_takes_whole_has_no_other_process_inside_it(pipe, lock):
    """Row 67."""
    reader, writer = pipe
    children = []
    for letter in b"abc":
        child = os.fork()
        if not child:
            os.close(reader)
            output = Output(writer, lock=lock, waits=letter != b"c"[0])
            output.patience = DEADLINE
            for number in range(20):
                output.write([bytes([letter]) * (30_000 if number % 2 else 30) + b"\n"])
            os._exit(0)
        children.append(child)
    os.close(writer)
    with open(reader, "rb", closefd=False) as file:
        lines = file.read().split(b"\n")[:-1]
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    assert {(line[:1], len(line)) for line in lines} >= {(b"a", 30), (b"a", 30_000), (b"b", 30), (b"b", 30_000)}
    assert not [line[:50] for line in lines if line != line[:1] * len(line)]
    assert len([line for line in lines if line[:1] in b"ab"]) == 40


@posix
def test_a_process_that_dies_while_it_writes_keeps_nobody_waiting(pipe, lock):
    reader, writer = pipe
    child = os.fork()
    if not child:
        Output(writer, lock=lock).write(lines_of(1 << 20))  # it stalls
        os._exit(0)
    os.read(reader, 1)
    output = Output(writer, lock=lock)
    writing = Background(output.write, lines_of(10))
    os.kill(child, 9)
    os.waitpid(child, 0)
    with open(reader, "rb", closefd=False) as file:
        assert file.read1(1 << 20)
    assert writing.result() == 0
    output.close()


@posix
def test_a_line_that_another_process_left_unfinished_is_ended_before_the_next(pipe, lock):
    """The rest of that line, which may be a client's text, never begins a line."""
    reader, writer = pipe
    os.set_blocking(writer, False)
    first, second = (Output(writer, lock=lock, waits=False) for _ in range(2))
    first.patience = second.patience = 0
    child = os.fork()
    if not child:
        first.write(lines_of(1 << 20))
        os._exit(0)
    os.waitpid(child, 0)
    begun = len(os.read(reader, 1 << 20))
    assert begun
    assert first.write([b"one\n", b"y" * (1 << 20) + b"\n"]) == 0  # its own is on its way
    received = os.read(reader, 1 << 20)
    assert received.startswith(b"\none\nyyy")
    child = os.fork()
    if not child:
        second.write([b"two\n"])
        os._exit(0)
    os.waitpid(child, 0)
    assert first.write([b"three\n"]) == 0
    assert second.write([b"four\n"]) == 0
    assert os.read(reader, 1 << 20) == b"\ntwo\nthree\nfour\n"
    first.close()
    second.close()


@posix
def test_where_files_must_not_grow_a_long_line_is_written_to_a_pipe_all_the_same(pipe, lock):
    """Row 86: under ``ulimit -f 0`` the file of the lock takes no note of an unfinished line."""
    import resource

    reader, writer = pipe
    os.set_blocking(writer, False)
    output = Output(writer, lock=lock, waits=False)
    output.patience = 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        assert output.write(lines_of(6000, 5000, 10)) == 0
        assert os.read(reader, 1 << 20) == b"".join(lines_of(6000, 5000, 10))
        assert output.write(lines_of(1 << 20)) == 0  # on its way
        begun = os.read(reader, 1 << 20)
        assert output.write([b"next\n", b"last\n"]) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert begun == b"a" * len(begun)
    assert os.read(reader, 1 << 20) == b"\nnext\nlast\n"
    output.close()


@posix
def test_a_file_that_got_the_descriptor_of_the_lock_is_left_alone(pipe, lock, tmp_path):
    output = Output(pipe[1], lock=lock)
    (tmp_path / "mine").write_bytes(b"mine")
    with open(tmp_path / "mine", "rb+") as file:
        os.dup2(file.fileno(), lock.number)
        assert output.write(lines_of(10_000)) == 0
    assert len(os.read(pipe[0], 1 << 20)) == 10_000
    assert (tmp_path / "mine").read_bytes() == b"mine"
    output.close()


@posix
def test_an_output_that_must_not_wait_writes_nothing_into_another_processs_line(pipe, lock):
    reader, writer = pipe
    locked, may_end = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        output = Output(writer, lock=lock)
        with output._locked(output._lock):  # in the middle of a line
            os.write(locked[1], b"x")
            os.read(may_end[0], 1)
        os._exit(0)
    os.read(locked[0], 1)
    output = Output(writer, lock=lock, waits=False)
    output.patience = 0
    assert output.write(lines_of(10)) == 1
    assert output.problem() == "the log was not read"
    os.write(may_end[1], b"x")
    os.waitpid(child, 0)
    assert output.write(lines_of(20)) == 0
    assert len(os.read(reader, 100)) == 20
    output.close()
    for descriptor in (*locked, *may_end):
        os.close(descriptor)


@posix
def test_an_output_that_must_not_wait_drops_what_a_full_pipe_does_not_take(pipe, lock):
    reader, writer = pipe
    output = Output(writer, lock=lock, waits=False)
    lost = [output.write(lines_of(1000)) for _ in range(200)]
    assert lost[0] == 0 and lost[-1] == 1
    assert output.write(lines_of(10)) == 1
    received = os.read(reader, 1 << 20)
    assert len(received) == 1000 * lost.count(0)
    assert output.write(lines_of(10)) == 0
    output.close()


@posix
@pytest.mark.parametrize("kind", ["a socket", "a pipe of another user"])
def test_an_output_that_must_not_wait_does_not_wait_where_its_descriptor_cannot_be_opened_anew(kind, pipe, monkeypatch):
    def refused(path, flags):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refused)
    end, other = socket.socketpair()
    with end, other:
        output = Output(end.fileno() if kind == "a socket" else pipe[1], waits=False)
        output.patience = 0
        long = Background(output.write, lines_of(1 << 20))
        try:
            assert long.result() == 0  # on its way
            assert output.write(lines_of(10)) == 1
        finally:  # ends a write that waits
            other.close()
            os.close(pipe[0])
        output.close()


@posix
def test_a_slow_reader_holds_up_one_record_for_the_time_of_one_wait(pipe, monkeypatch):
    reader, writer = pipe
    now = [0.0]
    can_write = output_module._can_write

    def takes_a_little(descriptor, timeout):
        """The reader takes 4 KiB each 0.1 s."""
        if timeout >= 0.1:
            now[0] += 0.1
            os.read(reader, 4096)
        else:
            now[0] += timeout
        return can_write(descriptor, 0)

    output = Output(writer, waits=False)
    monkeypatch.setattr(output_module, "_can_write", takes_a_little)
    monkeypatch.setattr(output_module.time, "monotonic", lambda: now[0])
    assert output.write(lines_of(1 << 20)) == 0  # on its way
    assert now[0] == pytest.approx(output.patience)
    os.read(reader, 4096)
    assert output.write(lines_of(10)) == 1
    assert now[0] == pytest.approx(output.patience)
    output.close()


@pytest.mark.parametrize("closed", ["the one it was made of", "its own"])
def test_the_log_does_not_go_to_whoever_gets_its_descriptor(pipe, closed):
    """Rows 68 and 87."""
    reader, writer = pipe
    output = Output(writer)
    number = writer if closed == "the one it was made of" else output._own.number
    client, accepted = socket.socketpair()
    with client, accepted:
        os.dup2(accepted.fileno(), number)
        lost = output.write([b"secret\n"])
        output.close()
        os.close(number)
        accepted.close()
        assert client.recv(100) == b""
    if number == writer:
        assert lost == 0 and os.read(reader, 100) == b"secret\n"
    else:
        assert lost == 1


@posix
def test_a_file_that_got_the_descriptor_of_the_log_is_not_opened_anew(pipe, tmp_path):
    """Row 87: at the end of the program, and in a forked child."""
    output = Output(pipe[1])
    (tmp_path / "mine").write_bytes(b"mine")
    with open(tmp_path / "mine", "rb") as file:
        os.dup2(file.fileno(), output._own.number)
        output.wait_no_more()
        assert output.write([b"secret\n"]) == 1
        os.close(output._own.number)
    assert (tmp_path / "mine").read_bytes() == b"mine"


@posix
def test_a_line_that_waits_for_its_reader_does_not_go_on_to_whoever_gets_its_descriptor(pipe, monkeypatch):
    reader, writer = pipe
    client, accepted = socket.socketpair()
    output = Output(writer, waits=False)

    def closed_meanwhile(descriptor, timeout):
        os.dup2(accepted.fileno(), descriptor)
        return True

    with client, accepted:
        with monkeypatch.context() as patched:
            patched.setattr(output, "has_room", lambda: True)
            patched.setattr(output_module, "_can_write", closed_meanwhile)
            assert output.write(lines_of(1 << 20)) == 0  # on its way
        os.close(output._own.number)
        accepted.close()
        assert client.recv(100) == b""
    assert len(os.read(reader, 1 << 20)) < 1 << 20


def test_a_log_whose_own_descriptor_was_closed_goes_on_with_stderr(capfd):
    """As by ``os.closerange(3, 1000)``."""
    output = Output(2)
    os.close(output._own.number)
    assert output.write([b"hello\n"]) == 0
    output.close()
    assert capfd.readouterr().err == "hello\n"


def test_a_log_file_whose_permissions_change_goes_on(tmp_path):
    path = tmp_path / "log"
    with path.open("wb") as file:
        output = Output(file.fileno())
    path.chmod(0o600)
    assert output.write([b"one\n"]) == 0
    path.chmod(0o640)
    assert output.write([b"two\n"]) == 0
    assert path.read_bytes() == b"one\ntwo\n"
    output.close()
