"""Files that decide who gets in: regular ones, pipes and devices, each read once and with a deadline."""

import errno
import os
import threading

import pytest

from echo import files
from echo.files import RepeatedFiles, named_copy, read_file
from support.background import Background

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")


@pytest.fixture
def fifo(tmp_path):
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    return path


@pytest.fixture
def pipe():
    """``pipe(data)``: the path of a pipe that holds these bytes, as a shell's ``<(...)`` gives one."""
    descriptors = []

    def make(data):
        reading, writing = os.pipe()
        os.set_inheritable(reading, True)  # as one that was passed to this process
        descriptors.append(reading)
        os.write(writing, data)
        os.close(writing)
        return f"/dev/fd/{reading}"

    yield make
    for descriptor in descriptors:
        os.close(descriptor)


def write(path, data):
    with open(path, "wb", buffering=0) as file:
        file.write(data)


def error_of(read, *arguments, **options):
    with pytest.raises(ValueError) as caught:
        read(*arguments, **options)
    return str(caught.value)


def test_a_pipe_is_read_to_its_end(fifo, pipe):
    """Row 61."""
    assert read_file(pipe(b"content")) == b"content"
    large = os.urandom(300_000)
    writer = Background(write, fifo, large)
    assert read_file(fifo) == large
    writer.result()


def test_a_pipe_without_content_or_writer_is_an_error_after_a_limited_time(fifo, pipe):
    """Rows 61 and 62: an empty list would let everybody in, and an endless wait would stop everything."""
    path = pipe(b"")
    assert error_of(read_file, path) == f"nothing was written to the pipe {path}"
    assert error_of(read_file, fifo, 0.01) == f"the pipe {fifo} did not end in time: its writer is missing or too slow"
    with open(os.open(fifo, os.O_RDWR), "wb", buffering=0) as slow:
        slow.write(b"begun")
        assert "did not end in time" in error_of(read_file, fifo, 0.01)


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="no names for descriptors here")
def test_a_descriptor_that_was_not_passed_to_this_process_is_an_error_by_any_name(tmp_path):
    """Row 61: the null device that the server had opened itself was taken for an empty list, which denies nobody."""
    (tmp_path / "empty").write_text("")
    os.utime(str(tmp_path / "empty"), (0, 0))
    own = os.open(str(tmp_path / "empty"), os.O_RDONLY)
    os.symlink(f"/dev/fd/{own}", str(tmp_path / "file"))
    os.symlink("/dev/fd", str(tmp_path / "folder"))
    paths = [f"/dev/fd/{own}", str(tmp_path / "file"), str(tmp_path / "folder" / str(own))]
    if os.path.isdir("/proc/thread-self"):
        paths += [f"/proc/{process}/fd/{own}" for process in ("self", "thread-self", os.getpid())]
    try:
        for path in paths:
            assert error_of(read_file, path) == f"cannot read {path}: descriptor {own} was not passed to this program"
        os.set_inheritable(own, True)  # as one that was passed
        assert [read_file(path) for path in paths] == [b""] * len(paths)
        assert read_file(f"fd/{own}", folder="/dev") == b""
    finally:
        os.close(own)
    assert error_of(read_file, paths[0]).startswith(f"cannot read {paths[0]}: ")


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="no names for descriptors here")
def test_a_descriptor_of_a_device_without_any_content_is_an_error():
    """Row 61: shells replace the standard input of a background job by the null device: an empty list denies nobody."""
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        os.set_inheritable(null, True)  # as one that was passed
        assert error_of(read_file, f"/dev/fd/{null}") == (
            f"/dev/fd/{null} is a device without any content, such as /dev/null in the place of standard input"
        )
        assert read_file(os.devnull) == b""
    finally:
        os.close(null)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such devices here")
def test_a_device_is_read_up_to_the_maximum_size(monkeypatch):
    """Row 62."""
    monkeypatch.setattr(files, "MAX_SIZE", 1024 * 1024)
    assert read_file("/dev/null") == b""
    assert error_of(read_file, "/dev/zero") == "/dev/zero is too large: the maximum is 1 MiB"


def test_a_file_that_is_too_large_is_an_error(tmp_path, monkeypatch):
    """Row 62."""
    path = str(tmp_path / "sparse")
    with open(path, "wb") as file:
        file.truncate(3 * 1024**3)
    monkeypatch.setattr(files, "MAX_SIZE", 1024 * 1024)
    assert "is too large" in error_of(read_file, path)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    """Row 61: another program is writing it, so its end would be missing."""
    path = tmp_path / "networks"
    path.write_bytes(b"192.0.2.1\n")
    read = os.read

    def read_and_write(descriptor, size):
        data = read(descriptor, size)
        if data:
            with open(path, "ab") as file:
                file.write(b"192.0.2.2\n")
                os.fsync(file.fileno())
        return data[:5]

    monkeypatch.setattr(files, "_CHUNK", 10)
    monkeypatch.setattr(files.os, "read", once(read_and_write, read))
    assert error_of(read_file, str(path)) == f"{path} was written while it was read; try again"


def test_a_file_that_was_written_just_now_is_read_only_when_its_writer_is_done(tmp_path, monkeypatch):
    """Row 61: a program that writes a list writes it in pieces, and the part that was there was put in force."""
    path = tmp_path / "networks"
    path.write_bytes(b"192.0.2.1\n")
    waits = []

    def goes_on(seconds):
        waits.append(seconds)
        with open(path, "ab") as file:
            file.write(b"192.0.2.2\n")

    monkeypatch.setattr(files.time, "sleep", goes_on)
    assert "was written while it was read" in error_of(read_file, str(path))
    os.utime(path, (1, 1))
    assert read_file(str(path)) == b"192.0.2.1\n192.0.2.2\n"
    assert waits == [files.QUIET]


def once(first, others):
    calls = []

    def call(*arguments):
        calls.append(arguments)
        return first(*arguments) if len(calls) == 1 else others(*arguments)

    return call


@pytest.mark.parametrize("path", ["no-such-file", "/", "a\0b"], ids=["missing", "a folder", "NUL"])
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(path):
    assert error_of(read_file, path).startswith(f"cannot read {path}: ")


def test_an_empty_name_of_a_file_is_an_error_and_is_not_the_current_folder(tmp_path):
    assert error_of(read_file, "", folder=str(tmp_path)) == "the name of a file is empty"


def test_a_regular_file_is_read_anew_each_time_and_the_content_of_a_pipe_is_kept(tmp_path, pipe):
    """Rows 61 and 62."""
    repeated = RepeatedFiles()
    path, regular = pipe(b"kept"), tmp_path / "regular"
    for content in (b"one", b"two"):
        regular.write_bytes(content)
        assert repeated.read(str(regular)) == content
        assert repeated.read(path) == b"kept"
        assert repeated.read(os.devnull) == b""
    assert repeated.kept == [path]


def test_a_file_that_has_become_a_pipe_is_not_waited_for(tmp_path):
    """Row 62: SIGHUP reads files while the server serves."""
    repeated = RepeatedFiles()
    path = str(tmp_path / "networks")
    with open(path, "w") as file:
        file.write("192.0.2.1\n")
    assert repeated.read(path) == b"192.0.2.1\n"
    os.remove(path)
    os.mkfifo(path)
    reading = threading.Thread(target=lambda: failures.append(error_of(repeated.read, path)), daemon=True)
    failures = []
    reading.start()
    reading.join(files.PIPE_TIMEOUT / 2)
    assert failures == [f"the pipe {path} did not end in time: its writer is missing or too slow"]


def test_a_pipe_whose_path_is_gone_keeps_its_content(fifo):
    """Row 61."""
    repeated = RepeatedFiles()
    writer = Background(write, fifo, b"once")
    assert repeated.read(fifo) == b"once"
    writer.result()
    os.remove(fifo)
    assert repeated.read(fifo) == b"once"


def test_a_copy_can_be_read_under_its_name_and_is_gone_afterwards():
    with named_copy(b"secret") as path, open(path, "rb") as file:
        assert file.read() == b"secret"
    assert not os.path.exists(path)


def test_a_copy_is_a_temporary_file_where_the_system_allows_none_in_memory(monkeypatch):
    """As in a sandbox."""

    def refused(name, flags=0):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "memfd_create", refused, raising=False)
    test_a_copy_can_be_read_under_its_name_and_is_gone_afterwards()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no files in memory")
def test_a_lack_of_descriptors_for_a_copy_is_not_reported_as_a_lack_of_folders(monkeypatch):
    """Row 65."""

    def lacking(name, flags=0):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "memfd_create", lacking)
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)), named_copy(b"secret"):
        pass


@pytest.mark.parametrize("in_memory", [True, False], ids=["in-memory", "temporary"])
def test_a_copy_for_which_there_is_no_room_is_an_error_and_is_not_cut(monkeypatch, in_memory):
    """Row 41. As on a full disk; OpenSSL would use the first of several certificates, and not see that others lack."""
    resource = pytest.importorskip("resource", reason="no limits here")
    if not in_memory:
        monkeypatch.setattr(files, "_file_in_memory", lambda: None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)), named_copy(b"x" * 1001):
            pass
        with named_copy(b"x" * 1000) as path:
            assert os.path.getsize(path) == 1000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
