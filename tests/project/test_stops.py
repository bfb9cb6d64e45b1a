"""Random stops: a good server passes them, and each fault is reported."""

import os
import subprocess
import sys

import pytest

import stops
from support import DEADLINE, TESTS

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc to look at a process in")


@needs_proc
@pytest.mark.slow
@pytest.mark.timeout(DEADLINE * 10)
def test_no_stop_at_a_random_moment_hangs_or_has_the_wrong_code():
    command = [sys.executable, os.path.join(TESTS, "stops.py"), "-n", "60", "--parallel", "2"]
    seed = os.environ.get("ECHO_TEST_SEED", "1")
    done = subprocess.run([*command, "--seed", seed], stdout=subprocess.PIPE, timeout=DEADLINE * 9, text=True)
    assert done.returncode == 0, done.stdout


def test_a_stop_with_a_fault_is_shown_and_not_passed(capsys):
    good = stops.Ending("alone, idle, serving", 0, 0.1, [])
    assert stops.report({0: good, 1: good})
    assert not stops.report({0: good, 1: good._replace(code="hangs", faults=["still there"])})
    output = capsys.readouterr().out
    assert "still there" in output and "0: 1, hangs: 1" in output
