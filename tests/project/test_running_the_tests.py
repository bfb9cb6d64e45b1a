"""To run the tests, only pytest is needed."""

import re

import pytest

from support import ROOT

PLAIN = {"PYTHONOPTIMIZE": None}  # pytest warns of it, since it does not keep assertions in every module


@pytest.mark.parametrize(
    "options, outcome",
    [
        (["tests/library/test_access.py", "tests/project/test_packaging.py"], r"\d+ passed, \d+ deselected"),
        pytest.param(["--collect-only", "-q", "--all"], r"\d+ tests collected", marks=pytest.mark.slow),
    ],
    ids=["some", "all are collected"],
)
def test_the_tests_run_without_pytest_timeout(run, options, outcome):
    process = run("pytest", "-p", "no:cacheprovider", "-p", "no:timeout", *options, cwd=ROOT, env=PLAIN)
    code, out = process.finish()
    assert code == 0, out
    assert re.search(outcome, out.decode()), out
