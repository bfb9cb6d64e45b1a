"""Each example: its classes, served here, with clients over real sockets; and the example as a process, which a signal
stops with exit code 0."""

import functools
import glob
import http.client
import importlib.util
import itertools
import json
import logging
import os
import re
import signal
import socket
import subprocess
import threading

import pytest

from echo.sockets import undelivered
from support import DEADLINE, ROOT, eventually, read_all, reset

SERVERS = ["upper", "crlf_device", "kv", "jsonlines_rpc", "chat", "http_files"]
FILES = sorted(os.path.basename(path) for path in glob.glob(os.path.join(ROOT, "examples", "*.py")))


@functools.lru_cache(maxsize=None)
def load(name):
    """The example as a module; its ``__main__`` block does not run."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", os.path.join(ROOT, "examples", f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def example(run):
    """``example(name, *arguments)``: the example as a process, on a free port, with its ``address``."""

    def start(name, *arguments, **popen_options):
        process = run(f"examples.{name}", "0", *arguments, **popen_options)
        port = process.read_log_until(r"listening on 127\.0\.0\.1:(\d+)\n").group(1)
        process.address = ("127.0.0.1", int(port))
        return process

    return start


class Terminal:
    """A client that sends lines and reads lines."""

    def __init__(self, sock, end="\n"):
        self.sock = sock
        self.end = end.encode()
        self.lines = sock.makefile("rb")

    def say(self, *lines):
        self.sock.sendall(b"".join(line.encode() + self.end for line in lines))

    def hear(self):
        line = self.lines.readline()
        assert line.endswith(self.end), line
        return line[: -len(self.end)].decode()

    def ask(self, line):
        self.say(line)
        return self.hear()

    def reset(self):
        """Vanish: the server gets a RST."""
        self.lines.close()
        reset(self.sock)


@pytest.fixture
def terminal(serve, dial):  # in this order: the sockets are closed before the servers stop, which then need not wait
    """``terminal(server_or_process)``: a ``Terminal`` on the example."""
    return lambda server, end="\n": Terminal(dial(getattr(server, "server_address", None) or server.address), end)


def stops(process, signum=signal.SIGTERM):
    """Stop it; return whether it ended as it should."""
    assert process.terminate(signum) == 0, process.log
    assert re.search(r"stopped: \d+ sessions? drained, 0 cut", process.log), process.log
    assert "Traceback" not in process.log, process.log
    return True


# All of them, as programs.


def early(name):
    return name if name == "upper" else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", list(map(early, SERVERS)))
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_as_soon_as_it_listens_ends_it_without_a_traceback_and_with_exit_code_0(example, name, signum):
    process = example(name)
    assert process.terminate(signum) == 0  # it may come before serve_forever() does
    assert "Traceback" not in process.log


@pytest.mark.parametrize("name, signum", list(zip(SERVERS, itertools.cycle([signal.SIGINT, signal.SIGTERM]))))
def test_it_serves_and_a_signal_drains_a_client_that_is_connected(example, dial, name, signum):
    process = example(name)
    client = dial(process.address)
    client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n*IDN?\r\n")  # one of these is answered by each
    assert client.recv(1)
    process.popen.send_signal(signum)
    read_all(client)
    client.close()  # otherwise the server would wait a second for more of it
    assert process.finish()[0] == 0, process.log
    assert re.search(r"stopped: \d+ sessions? drained, 0 cut", process.log), process.log
    assert "Traceback" not in process.log, process.log


@pytest.mark.parametrize("name", FILES)
def test_it_reads_in_one_sitting_and_the_readme_leads_to_it(name):
    with open(os.path.join(ROOT, "examples", name), encoding="utf-8") as file:
        assert len(file.readlines()) < 90
    with open(os.path.join(ROOT, "examples", "README.md"), encoding="utf-8") as file:
        assert f"]({name})" in file.read()


# upper.py


def test_upper_answers_in_capitals_and_a_stop_answers_what_had_arrived(example, terminal):
    process = example("upper")
    client = terminal(process)
    assert client.ask("hello") == "HELLO"
    client.say(*["naïve"] * 1000)  # bytes.upper() changes only ASCII letters
    eventually(lambda: not undelivered(client.sock))
    assert stops(process)
    assert client.lines.read() == "NAïVE\n".encode() * 1000


# crlf_device.py


@pytest.fixture
def device(serve, terminal):
    return terminal(serve(load("crlf_device").Device), "\r\n")


@pytest.mark.parametrize("header", ["MEAS:VOLT?", "meas:volt?", "MEASure:VOLTage?", "Meas:Voltage?"])
def test_the_device_knows_short_and_long_headers_in_any_letter_case(device, header):
    device.say("VOLT 12.5")
    assert device.ask(header) == "+1.250000E+01"


def test_the_device_identifies_itself_and_resets(device):
    assert device.ask("*IDN?") == "Example Instruments,PSU-30,0,1.0"
    device.say("VOLT 5", "*RST")
    assert device.ask("MEAS:VOLT?") == "+0.000000E+00"
    assert device.ask("SYST:ERR?") == '0,"No error"'


def test_the_device_keeps_its_errors_until_it_is_asked(device):
    device.say("NONSENSE", "VOLT", "VOLT x", "VOLT 31", "VOLT nan", "", "MEAS:VOLTS?", "\xff")
    heard = [device.ask("SYSTem:ERRor?") for _ in range(8)]
    assert heard == [
        '-113,"Undefined header"',
        '-109,"Missing parameter"',
        '-104,"Data type error"',
        '-222,"Data out of range"',
        '-222,"Data out of range"',
        '-113,"Undefined header"',
        '-113,"Undefined header"',
        '0,"No error"',
    ]


def test_the_device_keeps_ten_errors_and_says_that_there_were_more(device):
    device.say(*["NONSENSE"] * 12)
    heard = [device.ask("SYST:ERR?") for _ in range(11)]
    assert heard == ['-113,"Undefined header"'] * 9 + ['-350,"Queue overflow"', '0,"No error"']


def test_each_connection_has_a_device_of_its_own_and_the_log_shows_what_is_said(serve, terminal, caplog):
    caplog.set_level(logging.INFO)
    server = serve(load("crlf_device").Device)
    first, second = terminal(server, "\r\n"), terminal(server, "\r\n")
    first.say("VOLT 7")
    assert first.ask("MEAS:VOLT?") == "+7.000000E+00"
    assert second.ask("MEAS:VOLT?") == "+0.000000E+00"
    assert "received 6 bytes: VOLT 7\n" in caplog.text


@pytest.mark.needs_programs("socat")
def test_the_device_speaks_to_socat(serve):
    port = serve(load("crlf_device").Device).server_address[1]
    arguments = ["socat", "-t", str(DEADLINE), "-", f"TCP:127.0.0.1:{port},crlf"]
    talk = subprocess.run(arguments, input=b"*IDN?\nVOLT 5\nMEAS:VOLT?\n", stdout=subprocess.PIPE, timeout=DEADLINE * 2)
    assert talk.stdout == b"Example Instruments,PSU-30,0,1.0\n+5.000000E+00\n"


# kv.py


@pytest.fixture
def store(serve, terminal):
    """``store()``: one more client of the same store."""
    server = serve(load("kv").Session, cls=load("kv").Store)
    return lambda: terminal(server)


def test_a_value_that_one_client_sets_is_seen_by_another(store):
    one, other = store(), store()
    assert one.ask("SET name  Ada Lovelace ") == "OK"
    assert other.ask("get name\r") == "OK Ada Lovelace"
    assert other.ask("DEL name") == "OK"
    assert one.ask("GET name") == "ERROR no such key"


def test_keys_come_sorted_and_counted(store):
    client = store()
    assert client.ask("KEYS") == "OK 0"
    client.say("SET b 2", "SET a 1", "KEYS")
    assert [client.hear() for _ in range(5)] == ["OK", "OK", "OK 2", "a", "b"]


@pytest.mark.parametrize(
    "line, reply",
    [
        ("", "ERROR the commands are GET, SET, DEL, INCR, KEYS and QUIT"),
        ("EXPLODE", "ERROR the commands are GET, SET, DEL, INCR, KEYS and QUIT"),
        ("_quit", "ERROR the commands are GET, SET, DEL, INCR, KEYS and QUIT"),
        ("ÿ", "ERROR the commands are GET, SET, DEL, INCR, KEYS and QUIT"),
        ("GET", "ERROR usage: GET key"),
        ("GET a b", "ERROR usage: GET key"),
        ("SET a", "ERROR usage: SET key value"),
        ("KEYS a", "ERROR usage: KEYS"),
        ("GET a", "ERROR no such key"),
        ("DEL a", "ERROR no such key"),
        ("INCR word", "ERROR not a number"),
    ],
)
def test_an_error_is_a_reply_and_the_session_goes_on(store, line, reply):
    client = store()
    assert client.ask("SET word three") == "OK"
    assert client.ask(line) == reply
    assert client.ask("GET word") == "OK three"


def test_no_increment_of_two_clients_is_lost(store):
    clients = [store() for _ in range(4)]
    for client in clients:
        client.say(*["INCR visits"] * 500)
    counts = [int(client.hear()[3:]) for client in clients for _ in range(500)]
    assert sorted(counts) == list(range(1, 2001))


def test_quit_ends_the_session_after_its_reply(store):
    client = store()
    client.say("QUIT", "SET late 1")
    assert client.lines.read() == b"OK\n"
    assert store().ask("GET late") == "ERROR no such key"


# jsonlines_rpc.py


@pytest.fixture
def rpc(serve, terminal):
    client = terminal(serve(load("jsonlines_rpc").JsonRpc))

    def call(request):
        return json.loads(client.ask(request if isinstance(request, str) else json.dumps(request)))

    call.say = client.say
    return call


def request(method, params=None, **members):
    return {"jsonrpc": "2.0", "method": method, **({} if params is None else {"params": params}), **members}


def failure(code, message, identity=None):
    return {"jsonrpc": "2.0", "error": {"code": code, "message": message}, "id": identity}


def test_a_call_gets_its_result_and_its_id_back(rpc):
    assert rpc(request("add", [1, 2], id=7)) == {"jsonrpc": "2.0", "result": 3, "id": 7}
    named = request("divide", {"divisor": 4, "dividend": 1}, id="x")
    assert rpc(named) == {"jsonrpc": "2.0", "result": 0.25, "id": "x"}
    assert rpc(request("add", ["ü", "ñ"], id=None)) == {"jsonrpc": "2.0", "result": "üñ", "id": None}


@pytest.mark.parametrize(
    "line, reply",
    [
        ("", failure(-32700, "Parse error")),
        ('{"jsonrpc": "2.0", "method"', failure(-32700, "Parse error")),
        ("[" * 50_000, failure(-32700, "Parse error")),
        ("1", failure(-32600, "Invalid Request")),
        ("[]", failure(-32600, "Invalid Request")),
        ("{}", failure(-32600, "Invalid Request")),
        (request("add", [1, 2], id=1, jsonrpc="1.0"), failure(-32600, "Invalid Request")),
        (request(1, [1, 2], id=1), failure(-32600, "Invalid Request")),
        (request("add", "bar", id=1), failure(-32600, "Invalid Request")),
        (request("add", [1, 2], id=[]), failure(-32600, "Invalid Request")),
        (request("add", [1, 2], id=True), failure(-32600, "Invalid Request")),
        (request("explode", id=2), failure(-32601, "Method not found", 2)),
        (request("__class__", id=2), failure(-32601, "Method not found", 2)),
        (request("add", id=3), failure(-32602, "Invalid params", 3)),
        (request("add", [1, 2, 3], id=3), failure(-32602, "Invalid params", 3)),
        (request("add", {"a": 1, "c": 2}, id=3), failure(-32602, "Invalid params", 3)),
        (request("divide", [1, 0], id=4), failure(-32603, "Internal error", 4)),
        (request("add", [1, "one"], id=4), failure(-32603, "Internal error", 4)),
        (request("add", [1e308, 1e308], id=4), failure(-32603, "Internal error", 4)),  # infinity is not JSON
        ("[" + "1," * 30_000 + "1]", failure(-32603, "Internal error")),  # its reply would be too long for a line
    ],
    ids=range(20),
)
def test_an_error_has_its_code_and_the_session_goes_on(rpc, line, reply):
    assert rpc(line) == reply
    assert rpc(request("add", [1, 2], id=5))["result"] == 3


def test_bytes_that_are_no_text_are_a_parse_error(serve, terminal):
    client = terminal(serve(load("jsonlines_rpc").JsonRpc))
    client.sock.sendall(b'{"\xff"}\n')
    assert json.loads(client.hear()) == failure(-32700, "Parse error")


def test_a_notification_gets_no_reply_not_even_an_error(rpc):
    notifications = [request("add", [1, 2]), request("explode"), request("add", [1]), request("divide", [1, 0])]
    rpc.say(*map(json.dumps, notifications), json.dumps(notifications))
    assert rpc(request("add", [1, 2], id=6))["id"] == 6  # the first line that comes back


def test_a_batch_gets_one_reply_for_each_call_with_an_id(rpc):
    batch = [request("add", [1, 2], id=1), request("add", [3, 4]), 1, request("explode", id=2), [], request("add", [])]
    assert rpc(batch) == [
        {"jsonrpc": "2.0", "result": 3, "id": 1},
        failure(-32600, "Invalid Request"),
        failure(-32601, "Method not found", 2),
        failure(-32600, "Invalid Request"),
    ]


def test_why_a_method_failed_is_in_the_log(rpc, caplog):
    rpc(request("divide", [1, 0], id=1))
    assert re.search(r"divide failed\nTraceback [^$]*ZeroDivisionError: division by zero\n", caplog.text)


# chat.py


@pytest.fixture
def room(serve):
    """A room that waits 0.1 s, not a second, for a member that does not read."""
    return serve(type("Member", (load("chat").Member,), {"send_timeout": 0.1}), cls=load("chat").Room)


@pytest.fixture
def enter(room, terminal):
    """``enter(name)``: the terminal of a member that has joined."""

    def come(name, others=0):
        member = terminal(room)
        assert member.hear() == "* what is your name?"
        assert member.ask(name) == f"* hello {name}, others here: {others}"
        return member

    return come


def test_all_others_read_what_a_member_writes(enter):
    ada = enter("ada")
    bob = enter("bob", 1)
    cleo = enter("cleo", 2)
    assert [ada.hear(), ada.hear(), bob.hear()] == ["* bob came", "* cleo came", "* cleo came"]
    ada.say("hello", "", "\x1b[2Jno escapes\r")
    assert [bob.hear(), bob.hear()] == [cleo.hear(), cleo.hear()] == ["ada: hello", "ada: [2Jno escapes"]
    bob.say("hi")
    assert ada.hear() == cleo.hear() == "bob: hi"


@pytest.mark.parametrize(
    "leave, reason",
    [
        (lambda member: member.say("/quit"), "exit"),
        (lambda member: member.sock.shutdown(socket.SHUT_WR), "eof"),
        (Terminal.reset, "reset"),
    ],
    ids=["quit", "eof", "reset"],
)
def test_however_a_member_leaves_the_others_are_informed_and_the_name_is_free_again(enter, leave, reason):
    ada = enter("ada")
    bob = enter("bob", 1)
    cleo = enter("cleo", 2)
    assert [ada.hear(), ada.hear(), bob.hear()] == ["* bob came", "* cleo came", "* cleo came"]
    leave(cleo)
    assert ada.hear() == bob.hear() == f"* cleo left ({reason})"
    ada.say("still here")
    assert bob.hear() == "ada: still here"
    enter("cleo", 2)


def test_a_name_is_one_members_alone(enter, terminal, room):
    enter("ada")
    other = terminal(room)
    assert [other.hear(), other.ask("ada"), other.ask("  ")] == ["* what is your name?"] + [
        "* another name, please"
    ] * 2
    assert other.ask("ada II") == "* hello ada II, others here: 1"


def test_a_client_without_a_name_reads_nothing_and_leaves_in_silence(enter, terminal, room):
    stranger = terminal(room)
    assert stranger.hear() == "* what is your name?"
    ada = enter("ada")
    stranger.say("/quit")
    assert stranger.lines.read() == b""
    bob = enter("bob", 1)
    assert ada.hear() == "* bob came"
    bob.say("x" * 60_000)
    assert ada.hear() == "bob: " + "x" * 1000


def test_a_member_that_does_not_read_has_to_leave_and_the_room_goes_on(enter):
    ada = enter("ada")
    bob = enter("bob", 1)
    enter("cleo", 2)  # and never reads again
    assert [ada.hear(), ada.hear(), bob.hear()] == ["* bob came", "* cleo came", "* cleo came"]
    left = threading.Event()

    def listen():
        assert ada.hear() == "* cleo left (slow)"
        left.set()

    listener = threading.Thread(target=listen)
    listener.start()
    heard = []
    while not left.is_set():
        ada.say("😀" * 1000)
        heard.append(bob.hear())
    listener.join()
    while "* cleo left (slow)" not in heard:  # ada may hear of it first
        heard.append(bob.hear())
    ada.say("bye")
    while heard[-1] != "ada: bye":
        heard.append(bob.hear())
    assert heard.count("* cleo left (slow)") == 1
    assert set(heard) == {"ada: " + "😀" * 1000, "ada: bye", "* cleo left (slow)"}


def test_a_stop_informs_the_members(enter, room):
    ada = enter("ada")
    bob = enter("bob", 1)
    assert ada.hear() == "* bob came"
    stop = threading.Thread(target=room.stop, args=(DEADLINE,))
    stop.start()
    assert ada.lines.read() == bob.lines.read() == b"* the room closes\n"
    for member in (ada, bob):
        member.lines.close()
        member.sock.close()
    stop.join(DEADLINE)
    assert not stop.is_alive()


# http_files.py


def write_large(folder, megabytes):
    content = os.urandom(1 << 20) * megabytes
    (folder / "large").write_bytes(content)
    return content


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "hello.txt").write_bytes(b"hello, world\n")
    return tmp_path


def fetch(connection, path, **headers):
    """Status and body; the connection stays open."""
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    return response.status, response.read()


def test_several_files_come_over_one_connection(serve, folder):
    large = write_large(folder, 2)
    server = serve(functools.partial(load("http_files").Files, directory=str(folder)))
    connection = http.client.HTTPConnection(*server.server_address, timeout=DEADLINE)
    assert fetch(connection, "/hello.txt") == (200, b"hello, world\n")
    first = connection.sock
    assert fetch(connection, "/large") == (200, large)
    status, body = fetch(connection, "/")
    assert status == 200 and b"hello.txt" in body
    # The standard handler does not support ranges. As HTTP allows, it replies with the whole file.
    assert fetch(connection, "/hello.txt", Range="bytes=7-11") in [(200, b"hello, world\n"), (206, b"world")]
    assert connection.sock is first
    assert fetch(connection, "/missing")[0] == 404
    assert fetch(connection, "/../../etc/passwd")[0] == 404
    connection.close()


def test_sigterm_lets_a_slow_download_arrive_whole_ends_idle_connections_and_refuses_new_ones(example, folder):
    large = write_large(folder, 16)  # more than the socket buffers of both sides hold
    process = example("http_files", str(folder))
    idle = http.client.HTTPConnection(*process.address, timeout=DEADLINE)
    assert fetch(idle, "/hello.txt") == (200, b"hello, world\n")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        slow.settimeout(DEADLINE)
        slow.connect(process.address)
        slow.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = slow.recv(1000)
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")

        process.popen.send_signal(signal.SIGTERM)
        assert idle.sock.recv(1) == b""
        idle.close()
        process.read_log_until("draining 2 sessions, for 60 s at most")
        eventually(lambda: is_refused(process.address))
        received += read_all(slow)

    head, _, body = received.partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert body == large
    code, _ = process.finish()
    assert code == 0
    assert re.search(r"stopped: \d+ sessions drained, 0 cut", process.log)  # one may have been in the backlog


def is_refused(address):
    try:
        socket.create_connection(address, DEADLINE).close()
    except ConnectionRefusedError:
        return True
    return False


# prometheus_metrics.py


@pytest.mark.needs_modules("prometheus_client")
def test_prometheus_reads_what_the_server_counts(example, terminal):
    from prometheus_client.parser import text_string_to_metric_families

    process = example("prometheus_metrics", "0")
    port = int(re.search(r"metrics on http://127\.0\.0\.1:(\d+)/metrics", process.log).group(1))

    def scrape():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        families = text_string_to_metric_families(text)
        return {
            (sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples
        }

    before = scrape()
    assert before["echo_accepted_total",] == before["echo_sessions",] == 0
    client = terminal(process)
    assert client.ask("hello") == "hello"
    during = scrape()
    assert (during["echo_accepted_total",], during["echo_sessions",]) == (1, 1)
    assert (during["echo_messages_in_total",], during["echo_bytes_out_total",]) == (1, 6)
    client.say("exit")
    assert client.lines.read() == b""
    client.sock.close()
    after = eventually(lambda: (lambda samples: samples["echo_sessions",] == 0 and samples)(scrape()))
    assert after["echo_sessions_ended_total", "exit"] == 1
    assert after["echo_messages_in_total",] == 2
    assert stops(process)


# pytest_fixture.py


PLAIN = {"PYTHONOPTIMIZE": None}  # pytest warns of it, since it does not keep assertions in every module


def test_the_example_of_a_test_passes_as_it_is_shown_even_without_pytest_timeout(run):
    options = ("-p", "no:cacheprovider", "-p", "no:timeout")
    code, out = run("pytest", *options, "examples/pytest_fixture.py", cwd=ROOT, env=PLAIN).finish()
    assert code == 0 and b"4 passed" in out, out


def test_the_example_of_a_test_is_a_program_as_well(run):
    process = run("examples.pytest_fixture", cwd=ROOT, env=PLAIN)
    code, out = process.finish()
    assert code == 0 and b"4 passed" in out, out + process.log.encode()
