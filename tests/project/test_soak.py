"""The soak itself: a good server passes it in a few seconds, and it reports each fault of a bad one."""

import os
import re
import subprocess
import sys

import pytest

import soak
from support import DEADLINE, ROOT

pytestmark = [
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc to look at a process in"),
    pytest.mark.timeout(DEADLINE * 15),
]

PATIENT = ["--", "-i", "1m", "--message-timeout", "1m", "--send-timeout", "1m"]
"""Options for a good server that does not cut a client which has to wait for a processor."""

FAULTS = '''
import os
import time
import echo


class Corrupt(echo.FaultMixin):
    corrupt_every = 10_000


class Deaf(echo.MessageRequestHandler):
    """Once a session has said much, it is left without a word."""

    def message_received(self, message):
        if self.connection.messages_in > 100:
            self.close()
        else:
            super().message_received(message)


class Keep(echo.MessageRequestHandler):
    """Fifty times a second, however many sessions end: no machine is filled before it is looked at."""

    kept = []
    began = time.monotonic()

    def connection_lost(self, reason):
        while len(self.kept) < (time.monotonic() - self.began) * 50:
            self.keep()
        super().connection_lost(reason)


class KeepDescriptors(Keep):
    def keep(self):
        self.kept.append((os.dup(0), os.dup(0)))


class KeepMemory(Keep):
    def keep(self):
        self.kept.append(bytearray(b"x") * 1_000_000)


class Raise(echo.MessageRequestHandler):
    def connection_lost(self, reason):
        super().connection_lost(reason)
        if self.session % 10 == 0:
            raise KeyError("a mistake")


class Forget(echo.MessageRequestHandler):
    """At a stop, nothing more is answered. Before, a long message takes a while, so that some are left."""

    def message_received(self, message):
        if len(message) > 190:
            time.sleep(0.01)
        super().message_received(message)

    def drain(self):
        os._exit(0)


class Die(echo.MessageRequestHandler):
    def connection_made(self):
        super().connection_made()
        if self.session == 20:
            os._exit(3)
'''


def run_soak(*options, **environment):
    """The exit code, the figures by name, and all that was printed."""
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, "tests", "soak.py"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ, **environment),
        timeout=DEADLINE * 10,
        text=True,
    )
    figures = {
        name.strip(): int(value.replace(",", ""))
        for name, value in re.findall(r"^(\S.*?) {2,}(\d[\d,]*)$", done.stdout, re.MULTILINE)
    }
    return done.returncode, figures, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [[], pytest.param(["--tls"], marks=pytest.mark.needs_programs("openssl"))], ids=" ".join
)
def test_a_good_server_passes_the_soak(options):
    code, figures, text = run_soak("-d", "3s", "--restart", "200ms", *options, *PATIENT)
    grows = re.findall(r"^(\w+).* grows", text, re.MULTILINE)
    assert grows in ([], ["RSS"]), text  # memory takes longer to settle, above all without the GIL
    assert code == len(grows), text
    assert figures["echoes"] > 0, text
    assert (figures["wrong"], figures["lost"], figures["refused"]) == (0, 0, 0)
    assert figures["restarts"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        {"Corrupt": r"^wrong +[1-9]", "Raise": r"^error +[1-9]"},
        {"KeepDescriptors": r"^descriptors.*grows"},
        {"KeepMemory": r"^RSS.*grows"},
        {"Deaf": r"^lost +[1-9]"},
        {"Forget": r"^lost +[1-9]"},
        {"Die": r"^died +[1-9]"},
    ],
    ids=" ".join,
)
def test_a_bad_server_does_not(faults, tmp_path):
    (tmp_path / "bad.py").write_text(FAULTS)
    mixins = [word for fault in faults for word in ("--mixin", f"bad:{fault}")]
    code, _, text = run_soak("-d", "3s", "--restart", "1s", "--", *mixins, PYTHONPATH=str(tmp_path))
    assert code == 1
    for told in faults.values():
        assert re.search(told, text, re.MULTILINE), text


@pytest.mark.parametrize(
    "options, message",
    [
        (["-d", "0"], "a soak takes some time"),
        (["-d", "soon"], "soon"),
    ],
)
def test_a_soak_without_a_duration_is_a_usage_error(options, message, capsys):
    with pytest.raises(SystemExit) as raised:
        soak.main(options)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_a_server_that_does_not_start_ends_the_soak_with_its_message():
    code, _, text = run_soak("--", "--framing", "nonsense")
    assert code == 1
    assert "nonsense" in text
    assert "Traceback" not in text


# The soak's report.


class Log:
    """The parts of a server that the report needs: its name and its log records."""

    name = "steady"
    restarts = 0

    def __init__(self, *records):
        self.records = lambda: iter(records)


FLAT = [(float(second), 20, 5, 30_000 + 100 * (second % 2)) for second in range(10)]


def test_a_soak_in_which_nothing_happened_is_passed(capsys):
    tally = soak.Tally()
    tally.count("echoes", 1234)
    assert soak.report(tally, [Log({"level": "INFO", "event": "disconnected", "reason": "eof"})], FLAT)
    out = capsys.readouterr().out
    assert re.search(r"^echoes +1,234$", out, re.MULTILINE) and re.search(r"^ +ended: eof +1$", out, re.MULTILINE)
    assert "grows" not in out


@pytest.mark.parametrize("what", ["wrong", "lost", "refused", "died", "endless", "books"])
def test_a_soak_with_a_fault_is_not_passed_and_shows_it(what, capsys):
    tally = soak.Tally()
    tally.fault(what, Log(), "127.0.0.1:4711", "how it was")
    assert not soak.report(tally, [Log()], FLAT)
    out = capsys.readouterr().out
    assert re.search(rf"^{what} +1$", out, re.MULTILINE)
    assert re.search(rf" {what}: steady 127\.0\.0\.1:4711 how it was$", out, re.MULTILINE)


def test_an_error_in_a_servers_log_is_a_fault(capsys):
    record = {"level": "ERROR", "event": "error", "peer": "127.0.0.1:4711", "message": "unhandled exception"}
    assert not soak.report(soak.Tally(), [Log(record)], FLAT)
    assert " error: steady 127.0.0.1:4711 unhandled exception\n" in capsys.readouterr().out


def test_what_a_session_lost_that_was_cut_is_not_a_fault(capsys):
    tally = soak.Tally()
    tally.fault("lost", Log(), "127.0.0.1:4711", "the end")
    cut = {"level": "WARNING", "event": "cut", "reason": "", "peer": "127.0.0.1:4711"}
    assert soak.report(tally, [Log(cut)], FLAT)


@pytest.mark.parametrize("column, name", list(enumerate(soak.ALLOWANCE, 1)))
def test_what_grows_by_more_than_its_allowance_is_a_fault(column, name, capsys):
    samples = [list(sample) for sample in FLAT]
    for sample in samples:
        sample[column] += sample[0] / 9 * 1.1 * soak.ALLOWANCE[name]
    assert not soak.report(soak.Tally(), [Log()], samples)
    assert re.findall(r"^(\w+).* grows", capsys.readouterr().out, re.MULTILINE) == [name.partition(",")[0]]


def test_the_line_with_the_least_squares_is_fitted():
    slope, rise = soak.fit([(0.0, 1.0), (1.0, 2.0), (2.0, 6.0), (3.0, 7.0)])
    assert slope == pytest.approx(2.2) and rise == pytest.approx(6.6)
    assert soak.fit([(5.0, 1.0)]) == (0.0, 0.0)
