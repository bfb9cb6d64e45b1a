"""Run other people's test suites, once on the standard ``socketserver`` and once on ``echo.Server``::

    python3 tests/thirdparty.py                 # all suites: about fifteen minutes
    python3 tests/thirdparty.py --quick         # those that take seconds: about three minutes
    python3 tests/thirdparty.py werkzeug Paste

The programs run unchanged. ``support/thirdparty/shim.py`` replaces the TCP servers of ``socketserver`` before anything
derives from them, so the programs' own servers, and an ``HTTPServer`` that they use, are echo servers then. That holds
for servers without threads, too: they handle many clients at a time on ``echo.Server``.

The source archives come from PyPI, with the versions and hashes below; so do the tools, which are listed in
``support/thirdparty/requirements.txt``. CPython's tests are those of the interpreter that runs this script. A suite
cannot reach other machines. Requires CPython 3.11 or later, on Linux or macOS.

The exit code is 1 if a suite cannot be set up, makes no echo server, or fails a test on ``echo.Server`` that passes on
the standard server and is not in ``EXPLAINED``. (It must fail twice: after a failure the suite is run once more.)
"""

import argparse
import contextlib
import fnmatch
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import xml.etree.ElementTree
from typing import Dict, List, NamedTuple, Optional

HERE = pathlib.Path(__file__).resolve().parent
SUPPORT = HERE / "support" / "thirdparty"
SIDES = ("stock", "echo")
OLDEST_PYTHON = (3, 11)
SETUP_TIMEOUT = 300  # seconds, as the two below
SUITE_TIMEOUT = 600
TEST_TIMEOUT = 60


class Suite(NamedTuple):
    name: str
    what: str
    """Where the suite meets ``socketserver``."""
    tests: str
    """The arguments of pytest."""
    requirement: str = ""
    """The source archive on PyPI; empty: this interpreter's ``test`` package."""
    sha256: str = ""
    quick: bool = True
    """Whether both runs together take less than about 20 seconds."""


def cpython(name, what, options="", *, module=None, quick=True):
    """A suite of the interpreter's ``test`` package. pytest must not take its helpers for tests."""
    tests = f"-o python_functions=none -o python_classes=none {options} --pyargs test.{module or name}"
    return Suite(name, what, tests, quick=quick)


SUITES = [
    cpython("test_socketserver", "the classes themselves"),
    cpython("test_httpservers", "`HTTPServer`"),
    cpython("test_wsgiref", "`WSGIServer`"),
    cpython("test_xmlrpc", "`SimpleXMLRPCServer`", quick=False),
    cpython("test_docxmlrpc", "`DocXMLRPCServer`"),
    cpython("test_logging", "`logging.config.listen`, socket handlers", "-p no:logging", quick=False),
    cpython("test_imaplib", "an IMAP server that starts TLS in a session", quick=False),
    cpython("test_urllib2_localnet", "an HTTP proxy with authentication"),
    cpython("test_robotparser", "`HTTPServer` in a thread"),
    cpython("test_pydoc", "a loop of its own around `handle_request`", "-k PydocServerTest"),
    cpython("test_ssl", "`HTTPServer` with TLS in `get_request`", "-k test_socketserver"),
    cpython("test_asyncio", "WSGI servers with and without TLS", module="test_asyncio.test_streams"),
    Suite(
        "werkzeug",
        "its development server: TLS, Unix sockets, reloader",
        "tests/test_serving.py",
        "werkzeug==3.1.9",
        "55ca7c70a75689be937aa27f8ff4b018f06ff4838fc73045560bf0f5a1291060",
    ),
    Suite(
        "pytest-httpserver",
        "a test double for HTTP, on werkzeug",
        "tests",
        "pytest-httpserver==1.2.0",
        "d07744ce2efaafa0575ed3081d416b999c773b09e84aa95065138bedc3e12352",
        quick=False,
    ),
    Suite(
        "pytest-localserver",
        "a test double for HTTP and HTTPS, on werkzeug",
        "tests/test_http.py tests/test_https.py",
        "pytest-localserver==0.10.0.post0",
        "06c21a66609d862b42bd9cb816334820e696ea8f77cacddfe159127d48649851",
        quick=False,
    ),
    Suite(
        "Paste",
        "a WSGI server, a proxy",
        "tests/test_httpserver.py tests/test_proxy.py",
        "Paste==3.10.1",
        "1c3d12065a5e8a7a18c0c7be1653a97cf38cc3e9a5a0c8334a9dd992d3a05e4a",
    ),
    Suite(
        "prometheus_client",
        "a threaded WSGI server, TLS",
        "tests/test_exposition.py tests/test_wsgi.py tests/test_graphite_bridge.py",
        "prometheus_client==0.26.0",
        "04a91bcf94e2cf74a44a1a874d651a2e853ed354b6e822f3b7487751465d5c2b",
    ),
    Suite(
        "pyModbusTCP",
        "a Modbus server",
        "tests",
        "pyModbusTCP==0.3.1",
        "577ac1cf0ec4b629938606983f0fe97b16748759e5c939a8099c8a659a589a53",
    ),
    Suite(
        "fakeredis",
        "a Redis server",
        "-p fakeredis_plugin test/test_tcp_server -k not(bulk_string_length)",
        "fakeredis==2.41.0",
        "a10d97197e6c6e9e98affc10abba9fb0efa9bc5671bbc425dca7f47063c2c577",
    ),
    Suite(
        "pynetdicom",
        "DICOM servers that make threads of their own; TLS in `get_request`",
        "pynetdicom/tests/test_transport.py pynetdicom/tests/test_service_verification.py",
        "pynetdicom==3.0.4",
        "567ef761d73b34a380a4350e0d10ae549d749c66da4f1bdf8793cab9a6a326e4",
        quick=False,
    ),
    Suite(
        "WebOb",
        "`WSGIServer`, and a client for WSGI",
        "tests/test_in_wsgiref.py tests/test_client_functional.py",
        "WebOb==1.8.11",
        "aa8c27231070b135c025e567a9cd7eda03f4df71352ffaac740cb6a75f0f81a5",
    ),
    Suite(
        "hl7apy",
        "an MLLP server",
        "tests/test_mllp.py",
        "hl7apy==1.3.5",
        "4ed02ae574ddcf9084b389bfcaf1e9023c4b2f4dfa2ce4ab42c430c4180a03fe",
    ),
    Suite(
        "dnslib",
        "a DNS server over TCP",
        "--doctest-modules dnslib/server.py",
        "dnslib==0.9.26",
        "be56857534390b2fbd02935270019bacc5e6b411d156cb3921ac55a7fb51f1a8",
    ),
    Suite(
        "jsonrpclib-pelix",
        "JSON-RPC servers, one with a pool of threads",
        "tests/test_server.py tests/test_unix.py",
        "jsonrpclib-pelix==1.2.0",
        "353b66707c0fc4263edc8fd6bbd471b7aede823a83e4dbf1614b0c83aee20f18",
    ),
    Suite(
        "yt-dlp",
        "HTTP, HTTPS and SOCKS servers, TLS in many ways",
        "test/test_networking.py test/test_http_proxy.py test/test_socks.py test/test_downloader_http.py",
        "yt-dlp==2026.10.26",
        "abe5c6b94c3b2f0560500add1c42e0a97641752743a5b65588ac2007a6e23eb6",
        quick=False,
    ),
    Suite(
        "sshtunnel",
        "forwarding of TCP and Unix sockets over SSH",
        "tests",
        "sshtunnel==0.5.1",
        "b7628901e34a297a1a754d136e5e1262cfdef1c3e0a19f75474457ffb49d6838",
        quick=False,
    ),
]

NEEDS_ONE_AT_A_TIME = "expects `handle_request()` to return when the client is served: a server without threads"
NEEDS_A_SLOW_SHUTDOWN = "needs the half second that `shutdown()` of the standard server takes; ours wakes the loop"
EXPLAINED = {
    "test_socketserver.ErrorHandlerTest.test_sync_not_handled": NEEDS_ONE_AT_A_TIME,
    "test_socketserver.MiscTestCase.test_threads_reaped": "reads `_threads`, a private detail",
    "test_logging.ConfigDictTest.test_listen_verify": "counts every log record; `echo.Server` logs that it has stopped",
    "pynetdicom.TestTLS.test_tls_not_server_not_client": NEEDS_A_SLOW_SHUTDOWN,
    "pynetdicom.TestTLS.test_tls_yes_server_yes_client*": NEEDS_A_SLOW_SHUTDOWN,
    "prometheus_client.TestGraphiteBridge.*": NEEDS_ONE_AT_A_TIME,
    "prometheus_client.TestWsgiTLS.test_mtls_untrusted_client_cert_raises": "a race, lost on either server",
}
"""Tests that may fail on ``echo.Server`` alone, as ``suite.class.test``, and the reason. ``*`` stands for any text."""


class SetupError(Exception):
    """A suite or the virtual environment cannot be set up."""


class Run(NamedTuple):
    """One suite on one server."""

    outcomes: Dict[str, str]
    seconds: float
    servers: int

    def count(self, outcome):
        return sum(each == outcome for each in self.outcomes.values())


class Workplace:
    """A folder with one virtual environment for all suites, and their sources."""

    def __init__(self, folder):
        self.folder = folder.resolve()
        self.python = self.folder / "venv" / "bin" / "python"

    def prepare(self):
        """Make the virtual environment, with the tools and the shim."""
        if not self.python.exists():
            self.call(sys.executable, "-m", "venv", self.folder / "venv")
        self.pip("install", "--no-deps", "--require-hashes", "-r", SUPPORT / "requirements.txt")
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site_packages = pathlib.Path(self.call(self.python, "-I", "-c", code).strip())
        shutil.copy(SUPPORT / "shim.py", site_packages / "echo_thirdparty.py")
        shutil.copy(SUPPORT / "fakeredis_plugin.py", site_packages)
        (site_packages / "echo_thirdparty.pth").write_text("import echo_thirdparty\n", "ascii")

    def fetch(self, suite):
        """Download, check, unpack and install a suite's program; return the folder to run its tests in."""
        target = self.folder / suite.name
        if target.exists():
            shutil.rmtree(target)
        target.mkdir()
        if not suite.requirement:
            self.call(self.python, "-c", f"import test.{suite.name}")
            return target
        pin = target / "requirement.txt"
        pin.write_text(f"{suite.requirement} --hash=sha256:{suite.sha256}\n", "ascii")
        # Its build backend is among the tools, at a pinned version.
        self.pip(
            *("download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes"),
            *("-r", pin, "-d", target),
        )
        (archive,) = target.glob("*.tar.gz")
        shutil.unpack_archive(archive, target)  # its hash has been checked
        (source,) = (path for path in target.iterdir() if path.is_dir())
        self.pip("install", "--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall", source)
        return source

    def pip(self, *args):
        self.call(self.python, "-m", "pip", "--disable-pip-version-check", "-q", *args)

    def call(self, *command):
        """Run a command of the set-up; return its output, or raise ``SetupError`` with the end of it."""
        try:
            done = subprocess.run(
                [str(word) for word in command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=SETUP_TIMEOUT,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise SetupError(str(exc)) from exc
        if done.returncode:
            errors = [line for line in done.stdout.splitlines() if line.strip() and "WARNING" not in line]
            raise SetupError(textwrap.shorten(" / ".join(errors[-3:]), 300))
        return done.stdout

    def run(self, suite, side, cwd, label=""):
        """Run a suite's tests on one of the two servers; ``label`` is for the names of the files."""
        log_path, report, counter = (
            self.folder / f"{suite.name}-{label or side}.{kind}" for kind in ("log", "xml", "count")
        )
        report.unlink(missing_ok=True)
        counter.write_bytes(b"")
        environ = dict(
            os.environ,
            ECHO_THIRDPARTY=side,
            ECHO_THIRDPARTY_ROOT=str(HERE.parent),
            ECHO_THIRDPARTY_COUNT=str(counter),
            PYTHONPATH="",
        )
        command = [self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *suite.tests.split()]
        command += [f"--timeout={TEST_TIMEOUT}", f"--junitxml={report}", "-o", "junit_family=xunit1"]
        began = time.monotonic()
        with open(log_path, "wb") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=cwd,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                process.wait(SUITE_TIMEOUT)
            except subprocess.TimeoutExpired:
                raise SetupError(f"no end after {SUITE_TIMEOUT} s on {side}; see {log_path}") from None
            finally:
                with contextlib.suppress(ProcessLookupError):  # also processes that the suite left behind
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.monotonic() - began
        if not report.exists():
            raise SetupError(f"pytest ended with code {process.returncode} on {side}; see {log_path}")
        return Run(outcomes(report), seconds, counter.stat().st_size)


def outcomes(report):
    """Each test of a JUnit report with its outcome: passed, failed or skipped."""
    found = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        *_, group = case.get("classname", "").rpartition(".")
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        name = f"{group}.{case.get('name')}"
        if found.get(name) != "failed":  # a test may fail once more in its clean-up
            found[name] = outcome
    return found


class Result(NamedTuple):
    """A suite's two runs, or the reason why it has none."""

    suite: Suite
    runs: Dict[str, Run] = {}
    problem: str = ""
    again: Optional[Run] = None
    """On ``echo.Server`` once more, after a failure that needs an explanation."""

    def differences(self):
        """The tests that pass on the standard server and not on ours."""
        if self.problem:
            return []
        stock, echo = (self.runs[side].outcomes for side in SIDES)
        return sorted(test for test in stock if stock[test] == "passed" and echo.get(test, "not run") != "passed")

    def explanation(self, test):
        """The reason for a difference, or None."""
        full_name = f"{self.suite.name}.{test}"
        for pattern, reason in EXPLAINED.items():
            if fnmatch.fnmatchcase(full_name, pattern):
                return reason
        if self.again is not None and self.again.outcomes.get(test) == "passed":
            return "unsteady: passed when run again"
        return None

    def unexplained(self):
        return [test for test in self.differences() if self.explanation(test) is None]

    def as_json(self):
        runs = {
            side: {
                "passed": run.count("passed"),
                "failed": run.count("failed"),
                "skipped": run.count("skipped"),
                "seconds": round(run.seconds, 1),
                "servers": run.servers,
                "failed_tests": sorted(test for test, outcome in run.outcomes.items() if outcome == "failed"),
            }
            for side, run in self.runs.items()
        }
        return {
            "suite": self.suite.name,
            "requirement": self.suite.requirement or f"CPython {platform.python_version()}",
            "problem": self.problem,
            "runs": runs,
            "differences": self.differences(),
            "unexplained": self.unexplained(),
        }


def tried(workplace, suite):
    """Set a suite up and run it on both servers."""
    try:
        cwd = workplace.fetch(suite)
        runs = {side: workplace.run(suite, side, cwd) for side in SIDES}
        result = Result(suite, runs)
        if result.unexplained():  # some suites take a random port, or have races of their own
            result = result._replace(again=workplace.run(suite, "echo", cwd, "again"))
    except SetupError as exc:
        return Result(suite, problem=str(exc))
    if not runs["stock"].count("passed"):
        return Result(suite, runs, f"no test passes on the standard server; see {workplace.folder}")
    if not runs["echo"].servers:
        return Result(suite, runs, "made no echo.Server")
    return result


ROW = "{:<34}{:>5}  {:>13}  {:>13}  {:>8}  {:>15}"


def row(result):
    if result.problem:
        return f"{result.suite.requirement or result.suite.name:<34}  {result.problem}"
    stock, echo = (result.runs[side] for side in SIDES)
    return ROW.format(
        result.suite.requirement or result.suite.name,
        len(stock.outcomes) - stock.count("skipped"),
        *(f"{run.count('passed')} / {run.count('failed')}" for run in (stock, echo)),
        echo.servers,
        f"{stock.seconds:.1f} / {echo.seconds:.1f}",
    )


def summary(results):
    """The lines below the table: each difference, and the totals."""
    lines = []
    for result in results:
        for test in result.differences():
            lines.append(f"{result.suite.name}: {test}: {result.explanation(test) or 'NOT EXPLAINED'}")
    wrong = sum(bool(result.problem) for result in results)
    unexplained = sum(len(result.unexplained()) for result in results)
    lines.append(f"{len(results) - wrong} suites run, {wrong} could not; {unexplained} differences without explanation")
    return lines


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        description="Run other people's test suites on the standard socketserver and on echo.Server."
    )
    names = [suite.name for suite in SUITES]
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"default: all of {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="only the suites that take less than about 20 s")
    parser.add_argument(
        "--keep", type=pathlib.Path, metavar="FOLDER", help="work in this folder and leave it: logs, reports"
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the results to this file, too")
    options = parser.parse_args(argv)
    for name in options.suites:
        if name not in names:
            parser.error(f"unknown suite {name!r}: expected some of {', '.join(names)}")
    if sys.version_info < OLDEST_PYTHON:
        parser.error(f"the programs need CPython 3.11 or later: this is {platform.python_version()}")
    chosen = [
        suite
        for suite in SUITES
        if (not options.suites or suite.name in options.suites) and (suite.quick or not options.quick)
    ]

    with contextlib.ExitStack() as stack:
        if options.keep is None:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = options.keep
            folder.mkdir(parents=True, exist_ok=True)
        workplace = Workplace(folder)
        try:
            workplace.prepare()
        except SetupError as exc:
            print(f"cannot set up the virtual environment: {exc}", file=sys.stderr)
            return 1
        print(f"CPython {platform.python_version()}: tests that ran; passed / failed; seconds\n")
        print(ROW.format("suite", "ran", "stock", "echo", "servers", "stock / echo"), flush=True)
        results = []
        for suite in chosen:
            results.append(tried(workplace, suite))
            print(row(results[-1]), flush=True)
    print()
    print(*summary(results), sep="\n")
    if options.json is not None:
        options.json.write_text(json.dumps([result.as_json() for result in results], indent=2) + "\n", "utf-8")
    return int(any(result.problem or result.unexplained() for result in results))


if __name__ == "__main__":
    sys.exit(main())
