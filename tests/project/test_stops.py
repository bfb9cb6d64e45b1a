"""Random stops: a good server passes them, and each fault is reported."""

import os
import re
import subprocess
import sys
import time
import types

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


@pytest.mark.parametrize("prefix", ["", "[7] "], ids=["alone", "with workers"])
@pytest.mark.parametrize("times, faults", [([100], []), ([100, 349], []), ([0, 100], ["0.100 s"])])
def test_a_signal_counts_as_another_one_when_the_command_says_so(tmp_path, prefix, times, faults):
    """However busy the machine is: the command may handle a signal long after it was sent. Too early is a fault."""
    trial = stops.Trial(1, "1", str(tmp_path))
    trial.popen = types.SimpleNamespace(pid=7)
    records = [f"2026-11-28 18:28:40.{each:03} INFO    {prefix}SIGTERM: stopping\n" for each in times]
    worker = "2026-11-28 18:28:40.050 INFO    [8] SIGTERM: stopping\n"
    (tmp_path / "1.log").write_text("".join([worker, *records]), encoding="utf-8")
    began_at = time.mktime(time.strptime("2026-11-28 18:28:40", "%Y-%m-%d %H:%M:%S"))
    assert trial._took_another(began_at) is (len(times) == 2)
    assert [re.findall(r"[\d.]+ s", fault) for fault in trial._faults] == [[each] for each in faults]
