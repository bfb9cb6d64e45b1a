"""``tests/thirdparty.py`` without its downloads: what replaces the servers, what counts as a difference, its errors."""

import os
import subprocess
import sys

import pytest

import thirdparty
from support import DEADLINE, ROOT
from thirdparty import Result, Run, Suite

SHIM = thirdparty.SUPPORT / "shim.py"


@pytest.fixture
def with_shim(tmp_path):
    """Run a program as a suite is run on one of the two servers; return what it prints and the number of servers."""

    def run(side, program):
        counter = tmp_path / "count"
        counter.write_bytes(b"")
        environ = dict(os.environ, ECHO_THIRDPARTY=side, ECHO_THIRDPARTY_ROOT=ROOT, ECHO_THIRDPARTY_COUNT=str(counter))
        source = f"{SHIM.read_text('utf-8')}\n{program}"
        done = subprocess.run(
            [sys.executable, "-c", source], env=environ, stdout=subprocess.PIPE, timeout=DEADLINE, check=True
        )
        return done.stdout.decode().split(), counter.stat().st_size

    return run


def test_every_tcp_server_is_an_echo_server_with_threads_and_udp_servers_stay(with_shim):
    program = """
import http.server
import socketserver

class Plain(http.server.HTTPServer):
    def process_request(self, request, client_address):
        raise AssertionError("the mixin comes first")

class Threaded(socketserver.ThreadingMixIn, Plain): pass
class Datagrams(socketserver.ThreadingMixIn, socketserver.UDPServer): pass

Server = sys.modules["echo"].Server
for cls in (Threaded, http.server.ThreadingHTTPServer, socketserver.ThreadingTCPServer, socketserver.TCPServer):
    print(issubclass(cls, Server), cls.process_request is Server.process_request)
print(issubclass(Datagrams, Server), issubclass(Datagrams, socketserver.ThreadingMixIn))
"""
    words, _ = with_shim("echo", program)
    assert words == ["True"] * 8 + ["False", "True"]


@pytest.mark.parametrize("side", thirdparty.SIDES)
def test_a_suite_reaches_this_machine_and_no_other(with_shim, side):
    program = """
import socketserver

def outcome(call, *args):
    try:
        call(*args).close()
    except OSError as exc:
        return type(exc).__name__, exc.errno == errno.ENETUNREACH
    return "reached", True

with socketserver.TCPServer(("127.0.0.1", 0), None) as server:
    print(*outcome(socket.create_connection, ("localhost", server.server_address[1])))
print(*outcome(socket.create_connection, ("192.0.2.1", 80)))
print(*outcome(socket.create_connection, ("name.example", 80)))
"""
    words, servers = with_shim(side, program)
    assert words == ["reached", "True", "OSError", "True", "gaierror", "False"]
    assert servers == (side == "echo")


def result(stock, echo, name="test_socketserver"):
    runs = {"stock": Run(stock, 1.0, 0), "echo": Run(echo, 1.0, 1)}
    return Result(Suite(name, "", ""), runs)


def test_a_difference_is_a_test_that_passes_only_on_the_standard_server():
    stock = {"A.same": "passed", "A.old": "failed", "A.worse": "passed", "A.gone": "passed", "A.skipped": "passed"}
    echo = {"A.same": "passed", "A.old": "failed", "A.worse": "failed", "A.skipped": "skipped"}
    assert result(stock, echo).differences() == ["A.gone", "A.skipped", "A.worse"]


def test_an_explained_difference_is_named_and_any_other_counts():
    explained = "MiscTestCase.test_threads_reaped"
    both = result({explained: "passed", "A.b": "passed"}, {explained: "failed", "A.b": "failed"})
    assert both.differences() == ["A.b", explained]
    assert both.unexplained() == ["A.b"]
    assert "A.b: NOT EXPLAINED" in "\n".join(thirdparty.summary([both]))
    assert result({explained: "passed"}, {explained: "failed"}, "werkzeug").unexplained() == [explained]


def test_a_failure_that_does_not_repeat_is_named_and_does_not_count():
    once = result({"A.a": "passed"}, {"A.a": "failed"})._replace(again=Run({"A.a": "passed"}, 1.0, 1))
    assert (once.differences(), once.unexplained()) == (["A.a"], [])
    assert "A.a: unsteady" in "\n".join(thirdparty.summary([once]))
    twice = once._replace(again=Run({"A.a": "failed"}, 1.0, 1))
    assert twice.unexplained() == ["A.a"]


def test_every_explanation_belongs_to_a_suite():
    assert {name.partition(".")[0] for name in thirdparty.EXPLAINED} <= {suite.name for suite in thirdparty.SUITES}


def test_each_program_has_a_version_and_a_hash():
    for suite in thirdparty.SUITES:
        if suite.requirement:
            name, _, version = suite.requirement.partition("==")
            assert name == suite.name and version
            assert len(suite.sha256) == 64


def test_moving_from_socketserver_shows_every_suite():
    with open(os.path.join(ROOT, "docs", "guides", "moving-from-socketserver.md"), encoding="utf-8") as file:
        table = file.read().partition("| suite | ")[2].partition("\n\n")[0]
    shown = [line.split(" | ")[0].strip("| ") for line in table.splitlines()[2:]]
    assert shown == [suite.requirement.replace("==", " ") or suite.name for suite in thirdparty.SUITES]


def test_a_report_is_read_with_the_worst_outcome_of_each_test(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a.B" name="good"/>'
        '<testcase classname="a.B" name="bad"><failure/></testcase><testcase classname="a.B" name="bad"/>'
        '<testcase classname="a.B" name="left"><skipped/></testcase></testsuite></testsuites>'
    )
    assert thirdparty.outcomes(report) == {"B.good": "passed", "B.bad": "failed", "B.left": "skipped"}


def test_an_unknown_suite_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as exit_:
        thirdparty.main(["nobody"])
    assert exit_.value.code == 2
    assert "unknown suite 'nobody': expected some of test_socketserver, " in capsys.readouterr().err


def test_a_suite_that_cannot_be_set_up_is_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(thirdparty, "SUITES", [Suite("gone", "", "", "gone==1", "0" * 64)])
    monkeypatch.setattr(thirdparty.Workplace, "prepare", lambda self: None)
    monkeypatch.setattr(thirdparty, "OLDEST_PYTHON", sys.version_info)
    assert thirdparty.main(["--keep", str(tmp_path)]) == 1
    assert "0 suites run, 1 could not" in capsys.readouterr().out
