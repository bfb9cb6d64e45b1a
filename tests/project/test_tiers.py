"""Which tests run: the unmarked ones by default, the others on request; and the table of those that did not run.

The suites here are a few lines long, and run as users run them.
"""

import os
import re
import subprocess
import sys

import pytest

from support import DEADLINE, TESTS, tiers

SUITE = """\
import pytest

def test_quick(): pass

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.stress
@pytest.mark.parametrize("number", range(3))
def test_stress(number): pass

@pytest.mark.needs_programs("sh", "no-such-program")
def test_program(): pass

@pytest.mark.needs_modules("json.nothing")
def test_module(): pass

@pytest.mark.timeout(5)
def test_with_a_limit_of_its_own(): pass

@pytest.mark.skip("not now")
def test_skipped(): pass
"""


@pytest.fixture
def results(tmp_path):
    """``results(*options)``: pytest's output for ``SUITE``, ``{test: outcome}``, and the table at the end."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    (tmp_path / "test_it.py").write_text(SUITE)

    def run(*options, named="test_it.py"):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-v",
            "-p",
            "support.tiers",
            "-p",
            "no:cacheprovider",
            *options,
            named,
        ]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=dict(os.environ, PYTHONPATH=TESTS, PYTHONOPTIMIZE=""),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            timeout=DEADLINE,
        )
        outcomes = dict(re.findall(r"^test_it.py::test_(\S+) (PASSED|FAILED|SKIPPED|ERROR)", done.stdout, re.MULTILINE))
        assert outcomes, done.stdout
        table = re.findall(r"^ +(\d+)  (.*)$", done.stdout.partition(" not run ")[2], re.MULTILINE)
        return outcomes, {what: int(count) for count, what in table}

    return run


def test_by_default_the_unmarked_ones_run_and_the_rest_is_counted_by_reason(results):
    outcomes, table = results()
    assert outcomes == {"quick": "PASSED", "with_a_limit_of_its_own": "PASSED", "skipped": "SKIPPED"}
    counts = {"slow": 1, "stress": 3, "needs_programs": 1, "needs_modules": 1}
    expected = {f"{name}: {tiers.MARKERS[name].partition(': needs')[0]}": count for name, count in counts.items()}
    assert table == {**expected, "skipped: not now": 1}


def test_all_runs_everything_and_what_is_missing_is_skipped_with_its_name(results):
    outcomes, table = results("--all")
    assert [outcomes[name] for name in ("quick", "slow", "stress[2]")] == ["PASSED"] * 3
    assert [outcomes[name] for name in ("program", "module")] == ["SKIPPED"] * 2
    assert table == {
        "skipped: no-such-program is not installed": 1,
        "skipped: the Python package json.nothing is not installed": 1,
        "skipped: not now": 1,
    }


def test_a_missing_requirement_fails_a_test_on_request(results):
    outcomes, table = results("--all", "--fail-missing")
    assert [outcomes[name] for name in ("program", "module")] == ["ERROR"] * 2
    assert table == {"skipped: not now": 1}


def test_marked_tests_run_when_a_mark_or_their_name_selects_them(results):
    assert results("-m", "slow or stress")[0].keys() == {"slow", "stress[0]", "stress[1]", "stress[2]"}
    assert results(named="test_it.py::test_stress")[0].keys() == {"stress[0]", "stress[1]", "stress[2]"}
    assert results(named="test_it.py::test_stress[1]")[0].keys() == {"stress[1]"}


def test_nothing_changes_where_pytest_timeout_is_not_installed(results):
    """Warnings are errors in that suite: an unknown option or mark would end it."""
    assert results("-p", "no:timeout") == results()
