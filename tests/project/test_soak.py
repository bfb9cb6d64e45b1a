"""The soak itself: it passes a good server in a few seconds, and tells of bad ones, whatever they do wrong."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from support import ROOT

pytestmark = [
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc to look at a process in"),
    pytest.mark.timeout(240),
]

FAULTS = '''
import os
import time
import echo


class Corrupt(echo.FaultMixin):
    corrupt_every = 100_000


class Deaf(echo.MessageRequestHandler):
    """Once a session has said much, it is left without a word."""

    def message_received(self, message):
        if self.connection.messages_in > 100:
            self.close()
        else:
            super().message_received(message)


class Keep(echo.MessageRequestHandler):
    """A hundred times a second at most, so that a fast machine is not filled before it is looked at."""

    kept = []
    kept_at = 0.0

    def connection_lost(self, reason):
        if time.monotonic() > self.kept_at + 0.01:
            type(self).kept_at = time.monotonic()
            self.keep()
        super().connection_lost(reason)


class KeepDescriptors(Keep):
    def keep(self):
        self.kept += [os.dup(0), os.dup(0)]


class KeepMemory(Keep):
    def keep(self):
        self.kept.append(bytearray(b"x") * 1_000_000)


class Raise(echo.MessageRequestHandler):
    def connection_lost(self, reason):
        super().connection_lost(reason)
        if self.session % 10 == 0:
            raise KeyError("a mistake")


class Die(echo.MessageRequestHandler):
    def connection_made(self):
        super().connection_made()
        if self.session == 20:
            os._exit(3)
'''


def soak(*options, **environment):
    """The exit code, the figures by name, and all that was printed."""
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, "tests", "soak.py"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ, **environment),
        timeout=200,
        text=True,
    )
    figures = {
        name.strip(): int(value.replace(",", ""))
        for name, value in re.findall(r"^(\S.*?) {2,}(\d[\d,]*)$", done.stdout, re.MULTILINE)
    }
    return done.returncode, figures, done.stdout + done.stderr


@pytest.mark.parametrize("options", [[], ["--tls"]])
def test_a_good_server_passes_the_soak(options):
    if options and shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    code, figures, text = soak("-d", "3s", "--restart", "1s", *options)
    grows = re.findall(r"^(\w+).* grows", text, re.MULTILINE)
    assert grows in ([], ["RSS"]), text  # which takes longer to settle, without the GIL above all
    assert code == len(grows), text
    assert figures["echoes"] > 100, text
    assert (figures["wrong"], figures["lost"], figures["refused"]) == (0, 0, 0)
    assert figures["restarts"] > 0


@pytest.mark.parametrize(
    "faults",
    [
        {"Corrupt": r"^wrong +[1-9]", "Raise": r"^error +[1-9]"},
        {"KeepDescriptors": r"^descriptors.*grows"},
        {"KeepMemory": r"^RSS.*grows"},
        {"Deaf": r"^lost +[1-9]"},
        {"Die": r"^died +[1-9]"},
    ],
    ids=" ".join,
)
def test_a_bad_server_does_not(faults, tmp_path):
    (tmp_path / "bad.py").write_text(FAULTS)
    mixins = [word for fault in faults for word in ("--mixin", f"bad:{fault}")]
    code, _, text = soak("-d", "3s", "--", *mixins, PYTHONPATH=str(tmp_path))
    assert code == 1
    for told in faults.values():
        assert re.search(told, text, re.MULTILINE), text


@pytest.mark.parametrize(
    "options, message",
    [
        (["-d", "0"], "a soak takes some time"),
        (["-d", "soon"], "soon"),
        (["--", "--framing", "nonsense"], "nonsense"),
    ],
)
def test_what_cannot_be_soaked_is_told(options, message):
    code, _, text = soak(*options)
    assert code in (1, 2)
    assert message in text
    assert "Traceback" not in text
