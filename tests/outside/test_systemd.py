"""Socket activation and notifications as with systemd, with systemd's own tools where installed; and the units."""

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import time

import pytest

import echo
from echo.cli.server import command, systemd
from echo.cli.server.options import parser as server_parser
from support import DEADLINE, ROOT, eventually
from support.activation import copies_of, launcher
from support.background import Background

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has abstract addresses")

VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


# A listening socket that is passed to a process.

CHILD = """
import json, os, subprocess, sys
from echo.cli.server.systemd import listening_socket

def inheritable(descriptor):
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return None

found = {"before": [inheritable(3), inheritable(4)]}
sock = listening_socket()
found["after"] = [inheritable(3), inheritable(4)]
found["left"] = sorted(name for name in os.environ if name.startswith("LISTEN_"))
found["again"] = listening_socket()
if sock is not None:
    found["descriptor"] = sock.fileno()
    script = "import os; os.fstat(3)"
    found["in a child"] = subprocess.call(
        [sys.executable, "-c", script], close_fds=False, stderr=subprocess.DEVNULL
    ) == 0
    client = sock.accept()[0]
    client.sendall(b"served")
    client.close()
    sock.close()
print(json.dumps(found))
"""


class Activated:
    """A process that gets these descriptors from 3 on and these variables, and reports what it got."""

    def __init__(self, descriptors, pid="", **variables):
        copies = copies_of(*descriptors)
        self.popen = subprocess.Popen(
            [sys.executable, *launcher(copies, pid), "-W", "always", "-c", CHILD],
            pass_fds=copies,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ, PYTHONPATH=ROOT, **variables),
        )
        for copy in copies:
            os.close(copy)

    def found(self):
        out, err = self.popen.communicate(timeout=DEADLINE)
        assert err == b""  # a socket that is left open would give a warning
        return json.loads(out)


@pytest.fixture
def activated():
    """``activated(*sockets_or_files, **variables)``: an ``Activated`` process, killed after the test."""
    with contextlib.ExitStack() as stack:

        def start(*files, **variables):
            process = Activated([file.fileno() for file in files], **variables)
            stack.enter_context(process.popen)
            stack.callback(process.popen.kill)
            return process

        yield start


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def hear(sock):
    sock.settimeout(DEADLINE)
    with sock:
        return b"".join(iter(lambda: sock.recv(100), b""))


def test_the_socket_that_was_passed_is_listened_on_and_nobody_inherits_it(activated, listener):
    process = activated(listener, LISTEN_FDS="1", LISTEN_FDNAMES="echo.socket", LISTEN_PIDFDID="4711")
    assert hear(socket.create_connection(listener.getsockname(), DEADLINE)) == b"served"
    assert process.found() == {
        "before": [True, None],
        "after": [False, None],
        "left": [],
        "again": None,
        "descriptor": 3,
        "in a child": False,
    }


def test_a_unix_socket_may_be_passed_too(activated, tmp_path):
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as client:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        process = activated(sock, LISTEN_FDS="1")
        client.connect(str(tmp_path / "s"))
        assert hear(client) == b"served"
    assert process.found()["descriptor"] == 3


def test_what_was_passed_to_another_process_is_left_alone_and_not_told_to_children(activated, listener):
    found = activated(listener, pid="1", LISTEN_FDS="1", LISTEN_FDNAMES="echo.socket").found()
    assert found == {"before": [True, None], "after": [True, None], "left": [], "again": None}


@pytest.fixture
def passed(environment):
    """``passed(*files, count=...)``: the exception when these are passed to this process, and the first descriptor."""
    copies = []

    def take(*files, count=None, inherited=True):
        if not files:  # a descriptor that is closed
            with open(os.devnull) as file:
                first = fcntl.fcntl(file, fcntl.F_DUPFD, 100)
            os.close(first)
        for file in files:
            copies.append(fcntl.fcntl(file, fcntl.F_DUPFD, 1 + copies[-1] if copies else 100))
            os.set_inheritable(copies[-1], inherited)  # as systemd leaves it
            first = copies[0]
        assert copies == [first + index for index in range(len(files))]
        environment(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count or len(files) or 1), LISTEN_FDNAMES="a:b")
        with pytest.raises(ValueError) as raised:
            systemd.listening_socket(first)
        assert not set(VARIABLES) & set(os.environ)
        return str(raised.value), first

    yield take
    for copy in copies:
        with contextlib.suppress(OSError):  # the tests look at that
            os.close(copy)


def inheritable(descriptor):
    """Whether children inherit it; None if it is closed."""
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return None


def test_two_sockets_are_refused_with_advice(passed, listener):
    with socket.create_server(("127.0.0.1", 0)) as other:
        error, first = passed(listener, other)
    assert inheritable(first) is inheritable(first + 1) is False
    assert "LISTEN_FDS is 2, but one socket is served" in error
    assert "one Listen line" in error and "\n" not in error


def test_a_count_of_more_than_was_passed_names_what_is_missing(passed, listener):
    error, first = passed(listener, count=999999999)
    assert error == f"LISTEN_FDS is 999999999, but descriptor {first + 1} is closed"
    assert inheritable(first) is False


def a_datagram_socket(stack, path):
    return stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))


def a_connection(stack, path):
    ends = [stack.enter_context(sock) for sock in socket.socketpair()]
    return ends.pop()


def a_stream_socket_that_does_not_listen(stack, path):
    sock = stack.enter_context(socket.socket())
    sock.bind(("127.0.0.1", 0))
    return sock


def no_stream_socket(stack, path):
    kind = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_RAW)
    try:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
    except OSError as exc:
        pytest.skip(f"no such socket here: {exc}")
    sock.bind(str(path))
    sock.listen()
    return sock


def a_file_or_a_pipe(stack, path):
    return stack.enter_context(open(path, "w"))


@pytest.mark.parametrize(
    "make",
    [a_datagram_socket, a_connection, a_stream_socket_that_does_not_listen, no_stream_socket, a_file_or_a_pipe],
)
def test_what_cannot_be_served_is_refused_by_what_it_is(passed, tmp_path, make):
    with contextlib.ExitStack() as stack:
        error, first = passed(make(stack, tmp_path / "f"))
        assert error.startswith(f"descriptor {first} is {make.__name__.replace('_', ' ')}")
        assert "ListenStream= and Accept=no" in error and "\n" not in error
        assert inheritable(first) is (False if make is a_file_or_a_pipe else None)  # a socket is closed


def test_a_descriptor_that_is_closed_is_refused(passed):
    error, first = passed()
    assert error == f"LISTEN_FDS is 1, but descriptor {first} is closed"


def test_a_descriptor_that_this_process_has_opened_itself_was_not_passed(passed):
    """Python makes what it opens non-inheritable, and a descriptor that was passed cannot have been that."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()
        error, first = passed(own, inherited=False)
    assert error == f"LISTEN_FDS is 1, but descriptor {first} is closed"
    assert inheritable(first) is False  # it is not closed


@pytest.fixture
def environment(monkeypatch):
    """``environment(**variables)``: set these variables of the protocol, and no others."""
    for name in (*VARIABLES, "NOTIFY_SOCKET"):
        monkeypatch.delenv(name, raising=False)

    def put(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"LISTEN_PID": str(os.getpid())},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "", "LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": ""},
        {"LISTEN_PID": str(os.getppid()), "LISTEN_FDS": "junk"},
    ],
)
def test_without_activation_there_is_no_socket(environment, variables):
    environment(**variables)
    assert systemd.listening_socket() is None
    assert not set(VARIABLES) & set(os.environ)


JUNK = ["junk", "0", "-1", "+1", " 1", "1 ", "1.0", "1_0", "01", "0x1", "\u0661", "9" * 5000]


@pytest.mark.parametrize("value", JUNK, ids=ascii)
@pytest.mark.parametrize("name", ["LISTEN_PID", "LISTEN_FDS"])
def test_junk_is_refused_by_name(environment, name, value):
    environment(**dict({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}, **{name: value}))
    with pytest.raises(ValueError, match=f"^{name} is '{re.escape(value)}'; it is a whole number"):
        systemd.listening_socket()
    assert not set(VARIABLES) & set(os.environ)


@pytest.mark.needs_programs("systemd-socket-activate")
def test_systemds_own_tool_passes_its_socket(tmp_path):
    path = str(tmp_path / "s")
    command = ["systemd-socket-activate", "-l", path, "-E", f"PYTHONPATH={ROOT}", sys.executable, "-c", CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(DEADLINE)
                eventually(lambda: client.connect_ex(path) == 0, "the tool does not listen")
                assert hear(client) == b"served"
            found = json.loads(process.communicate(timeout=DEADLINE)[0])
        finally:
            process.kill()
    assert found["descriptor"] == 3 and found["left"] == [] and not found["in a child"]


# Notifications.


@pytest.fixture
def receiver(environment, tmp_path):
    """The socket on which systemd would listen; the environment has its address."""
    with receiving(str(tmp_path / "notify")) as sock:
        environment(NOTIFY_SOCKET=sock.getsockname())
        yield sock


@contextlib.contextmanager
def receiving(address):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        sock.bind(address)
        yield sock


def test_assignments_sent_together_arrive_as_one_message(receiver):
    assert systemd.notify(systemd.READY, systemd.status("3 sessions")) is True
    assert systemd.notify(systemd.STOPPING) is True
    assert receiver.recv(4096) == b"READY=1\nSTATUS=3 sessions"
    assert receiver.recv(4096) == b"STOPPING=1"


@on_linux
def test_an_abstract_address_begins_with_an_at_sign(environment):
    name = f"echo-test-{os.getpid()}-{time.monotonic_ns()}"
    with receiving("\0" + name) as sock:
        environment(NOTIFY_SOCKET="@" + name)
        assert systemd.notify(systemd.READY) is True
        assert sock.recv(4096) == b"READY=1"


def test_a_path_need_not_be_utf_8(environment, tmp_path):
    path = os.fsencode(str(tmp_path)) + b"/\xff"
    try:
        with receiving(path) as sock:
            environment(NOTIFY_SOCKET=os.fsdecode(path))
            assert systemd.notify(systemd.READY) is True
            assert sock.recv(4096) == b"READY=1"
    except OSError as exc:
        pytest.skip(f"this file system has no such names: {exc}")


def test_the_environment_is_asked_each_time_and_stays_as_it_is(receiver, environment, tmp_path):
    assert systemd.notify(systemd.READY) is True
    with receiving(str(tmp_path / "other")) as other:
        environment(NOTIFY_SOCKET=other.getsockname())
        assert systemd.notify(systemd.STOPPING) is True
        assert os.environ["NOTIFY_SOCKET"] == other.getsockname()
        assert (receiver.recv(4096), other.recv(4096)) == (b"READY=1", b"STOPPING=1")


def test_a_reload_carries_the_time_of_the_clock_that_systemd_reads(receiver):
    clock = getattr(time, "CLOCK_MONOTONIC", None)
    if clock is None:
        pytest.skip("no CLOCK_MONOTONIC here")
    before = time.clock_gettime_ns(clock) // 1000
    assert systemd.notify(systemd.reloading()) is True
    after = time.clock_gettime_ns(clock) // 1000
    first, second = receiver.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    assert re.fullmatch(r"MONOTONIC_USEC=\d+", second)
    assert before <= int(second.partition("=")[2]) <= after


def test_a_status_cannot_be_another_assignment(receiver):
    assert systemd.notify(systemd.status("café\nSTOPPING=1\0\x1b[2J\u2028")) is True
    assert receiver.recv(4096) == "STATUS=café STOPPING=1  [2J ".encode()


def test_text_that_is_not_unicode_is_sent_all_the_same(receiver):
    assert systemd.notify("STATUS=\udcff") is True
    assert receiver.recv(4096) == b"STATUS=?"


def test_no_notification_is_sent_without_its_variable(environment):
    assert systemd.notify(systemd.READY) is False


@pytest.mark.parametrize(
    "name", ["", "notify", "vsock:2:1234", "/", "@", "/nowhere/at/all", "/" + "x" * 200, "@" + "x" * 200]
)
def test_a_notification_to_an_unreachable_address_is_not_an_error(environment, name):
    environment(NOTIFY_SOCKET=name)
    assert systemd.notify(systemd.READY) is False


def test_a_relative_path_is_not_looked_for(environment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with receiving("notify"):
        environment(NOTIFY_SOCKET="notify")
        assert systemd.notify(systemd.READY) is False


def test_a_receiver_that_has_vanished_is_not_an_error(receiver):
    path = receiver.getsockname()
    receiver.close()
    assert systemd.notify(systemd.READY) is False  # its path is still there
    os.unlink(path)
    assert systemd.notify(systemd.READY) is False


def test_a_stream_socket_in_its_place_is_not_an_error(environment, tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        environment(NOTIFY_SOCKET=str(tmp_path / "s"))
        assert systemd.notify(systemd.READY) is False


def test_a_receiver_that_does_not_read_blocks_no_sender(receiver):
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sent = 0
    while systemd.notify(systemd.READY):
        sent += 1
        assert sent < 1_000_000
    assert sent
    deadline = time.monotonic() + DEADLINE
    for _ in range(1000):  # a wait, however short, would add up
        assert systemd.notify(systemd.READY) is False
        assert time.monotonic() < deadline
    assert receiver.recv(4096) == b"READY=1"
    assert systemd.notify(systemd.STOPPING) is True


def fill(receiver):
    """Send it messages until it takes no more; return how many those are."""
    sent = 0
    while systemd.notify("X=1"):
        sent += 1
    return sent


@on_linux
def test_that_the_server_is_ready_waits_until_systemd_reads(receiver, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(systemd, "PATIENCE", DEADLINE)
    count = fill(receiver)
    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler) as server:
        announced = Background(command._announce, server)
        eventually(lambda: "listening" in caplog.text)
        assert [receiver.recv(4096) for _ in range(count)] == [b"X=1"] * count
        assert receiver.recv(4096).startswith(b"READY=1\n")
        announced.result()


def test_a_receiver_that_never_reads_delays_such_a_message_and_no_more(receiver):
    fill(receiver)
    assert systemd.notify(systemd.READY, wait=0.01) is False


def test_a_message_is_sent_although_no_descriptor_is_free(receiver):
    """Row 69: the end of a reload was not reported, and systemd went on waiting for it."""
    resource = pytest.importorskip("resource", reason="this system has no limits")
    assert systemd.notify("X=1") is True
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            os.dup(0)
        sent = systemd.notify(systemd.READY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert sent and [receiver.recv(4096) for _ in range(2)] == [b"X=1", b"READY=1"]


def test_a_message_goes_to_nobody_who_has_got_the_descriptor_of_its_socket(receiver):
    """Row 68."""
    assert systemd.notify("X=1") is True
    ours, others = socket.socketpair()
    with ours, others:
        os.dup2(ours.fileno(), systemd._kept.number)  # as after os.closerange(3, 100), and a new client
        theirs = systemd._kept.number
        assert systemd.notify(systemd.READY) is True
        os.close(theirs)
        assert [receiver.recv(4096) for _ in range(2)] == [b"X=1", b"READY=1"]
        ours.close()
        assert others.recv(1) == b""


def test_a_message_that_is_too_long_is_not_an_error(receiver):
    assert systemd.notify("X=" + "x" * 50_000_000) is False


def test_a_system_without_unix_sockets_sends_no_notification(environment, monkeypatch):
    environment(NOTIFY_SOCKET="/run/systemd/notify")
    monkeypatch.delattr(socket, "AF_UNIX")
    assert systemd.notify(systemd.READY) is False


# The units in examples/systemd.

UNITS = os.path.join(ROOT, "examples", "systemd")
needs_analyze = pytest.mark.needs_programs("systemd-analyze")


def unit(name):
    with open(os.path.join(UNITS, name), encoding="utf-8") as file:
        return file.read()


def for_older(service):
    """As the comment says: the lines that are commented out replace the one below them."""
    older, count = re.subn(r"^#(Type=.*\n)#(ExecReload=.*\n)Type=.*\n", r"\1\2", service, flags=re.MULTILINE)
    assert count == 1
    return older


def analyze(*arguments):
    result = subprocess.run(
        ["systemd-analyze", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=DEADLINE,
        env=dict(os.environ, SYSTEMD_PAGER=""),
    )
    return result.returncode, result.stdout.decode()


def verify(folder, **units):
    """The complaints of ``systemd-analyze verify`` about these units, whose programs need not be installed."""
    folder.mkdir()
    for name, text in units.items():
        text = re.sub(r"^(Exec\w+=)\S+", rf"\g<1>{sys.executable}", text, flags=re.MULTILINE)
        (folder / f"echo.{name}").write_text(text)
    code, out = analyze("verify", "--man=no", *(str(folder / f"echo.{name}") for name in units))
    return code, [line for line in out.splitlines() if "echo." in line]  # not those about this machine's own units


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    """systemd's version. Skip if systemd-analyze is installed and cannot work, as in some containers."""
    code, out = verify(tmp_path_factory.mktemp("plain") / "units", service="[Service]\nExecStart=/bin/true\n")
    if code or out:
        pytest.skip(f"systemd-analyze cannot verify here: {out}")
    return int(re.search(r"systemd (\d+)", analyze("--version")[1]).group(1))


@needs_analyze
def test_systemd_has_nothing_to_say_against_the_units(version, tmp_path):
    found = verify(tmp_path / "older", socket=unit("echo.socket"), service=for_older(unit("echo.service")))
    assert found == (0, [])
    if version >= 253:
        assert verify(tmp_path / "units", socket=unit("echo.socket"), service=unit("echo.service")) == (0, [])


@needs_analyze
def test_systemd_would_say_what_is_wrong_with_a_unit(version, tmp_path):
    """So that the test above cannot pass without a check."""
    service = for_older(unit("echo.service"))
    for wrong in ("NoNewPrivilege=yes\n", "TimeoutStopSec=soon\n", "SystemCallFilter=open_sesame\n"):
        broken = service.replace("[Install]\n", f"{wrong}\n[Install]\n")
        folder = tmp_path / wrong.partition("=")[0]
        assert verify(folder, socket=unit("echo.socket"), service=broken) != (0, []), wrong


@needs_analyze
def test_the_service_has_little_to_lose(version, tmp_path):
    if "--offline" not in analyze("--help")[1]:
        pytest.skip(f"systemd {version} judges only what it runs")
    path = tmp_path / "echo.service"
    path.write_text(for_older(unit("echo.service")))
    code, out = analyze("--no-pager", "security", "--offline=true", "--threshold=15", str(path))
    assert code == 0, out.splitlines()[-1]


def settings(text):
    """The last value of each setting."""
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def test_the_services_command_line_makes_sense_and_its_stop_has_time():
    service = settings(unit("echo.service"))
    program, *options = service["ExecStart"].split()
    assert os.path.basename(program) == "echo-server"
    given = server_parser().parse_args(options)
    assert service["TimeoutStopSec"] == "20s" and given.shutdown_timeout + 5 <= 20
    assert int(service["LimitNOFILE"]) > 2 * given.max_connections


def test_the_socket_listens_where_the_client_looks():
    given = settings(unit("echo.socket"))
    assert (given["ListenStream"], given["Accept"]) == ("65432", "no")


def test_the_units_readme_installs_what_there_is():
    text = unit("README.md")
    for name in os.listdir(UNITS):
        if name != "README.md":
            assert f"examples/systemd/{name}" in text
    program = settings(unit("echo.service"))["ExecStart"].split()[0]
    assert f"python3 -m venv {os.path.dirname(os.path.dirname(program))}\n" in text
