"""``tests/matrix.py``: the Pythons that it finds, what it counts, and its exit code.

The suites here are a few lines long.
"""

import os
import re
import sys
import textwrap

import pytest

import matrix
from support import TESTS, eventually
from support.processes import is_alive

posix = pytest.mark.skipif(os.name != "posix", reason="needs shell scripts")


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Only the flags that it sets itself, not those that this run was started with."""
    for name in ("PYTHONDEVMODE", "PYTHONOPTIMIZE", "PYTHONWARNINGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def suite(tmp_path):
    """``suite(source)``: the path of a suite of its own, with no configuration."""

    def write(source):
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        (tmp_path / "test_it.py").write_text(textwrap.dedent(source))
        return str(tmp_path)

    return write


@pytest.fixture
def only_this_python(monkeypatch):
    """It finds no other Python, and installs nothing."""
    monkeypatch.setattr(matrix, "candidates", lambda: [sys.executable])
    monkeypatch.setattr(matrix, "installed", lambda python, folder, extra: python)


def by_command(*arguments):
    return matrix.main(["--command", f"{sys.executable} -m pytest", *arguments])


# Pytest's results.


@pytest.mark.parametrize(
    "line, figures",
    [
        ("1726 passed, 4 skipped in 312.00s (0:05:11)", {"passed": 1726, "skipped": 4}),
        ("== 1 failed, 25 passed, 2 warnings in 1.66s ==", {"failed": 1, "passed": 25, "warning": 2}),
        ("2 errors in 0.10s", {"error": 2}),
        ("no tests ran in 0.01s", None),
        ("Segmentation fault", None),
    ],
)
def test_the_last_line_that_pytest_writes_is_counted(line, figures):
    assert matrix.figures_of(f"...\n3 passed in total\n{line}\n") == figures


def test_the_table_of_tests_that_did_not_run_is_read():
    table = "==== not run ====\n  198  slow: takes seconds\n    1  skipped: no IPv6 here\n--all runs more\n"
    output = f"...\n{table}1 passed in 2s\n"
    assert matrix.not_run(output) == {"slow: takes seconds", "skipped: no IPv6 here"}
    assert matrix.not_run("1 passed in 2s\n") == set()


# Which Pythons there are.


@pytest.fixture
def fake(tmp_path):
    """``fake(name, answer)``: an executable that prints this, whatever its arguments are."""

    def write(name, answer, code=0):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\nprintf '{answer}'\nexit {code}\n")
        path.chmod(0o755)
        return str(path)

    return write


def test_this_python_has_a_version():
    major, minor = sys.version_info[:2]
    assert matrix.version_of(sys.executable) in (f"{major}.{minor}", f"{major}.{minor}t")


@posix
def test_only_cpython_from_3_8_on_is_one(fake, tmp_path):
    answers = {"cpython 3 8 \\n": "3.8", "cpython 3 13 t\\n": "3.13t", "cpython 3 7 \\n": None, "pypy 3 10 \\n": None}
    assert {answer: matrix.version_of(fake("python3", answer)) for answer in answers} == answers
    assert matrix.version_of(fake("python3", "no such version", 127)) is None  # as a shim of pyenv says
    assert matrix.version_of(str(tmp_path / "nothing")) is None


@posix
def test_pythons_are_looked_for_on_path_and_at_pyenv(fake, tmp_path, monkeypatch):
    for name in ("python3", "python3.12", "python3.13t", "python3.12-config", "python2.7", "python3-pip"):
        fake(f"bin/{name}", "")
    fake("bin/pyenv", tmp_path / "pyenv")
    of_pyenv = fake("pyenv/versions/3.9.18/bin/python3", "")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{tmp_path / 'nowhere'}")
    on_path = [str(tmp_path / "bin" / name) for name in ("python3", "python3.12", "python3.13t")]
    assert list(matrix.candidates()) == [sys.executable, *on_path, of_pyenv]


@posix
def test_each_version_is_there_once_with_all_its_paths_oldest_first(fake):
    ten, nine, other_ten = (
        fake(name, f"cpython 3 {minor}\\n") for name, minor in (("a", "10 "), ("b", "9 "), ("c", "10 "))
    )
    free = fake("d", "cpython 3 10 t\\n")
    found = matrix.find_pythons([ten, free, nine, other_ten, fake("e", "")])
    assert list(found.items()) == [("3.9", [nine]), ("3.10", [ten, other_ten]), ("3.10t", [free])]


def test_the_ends_are_the_oldest_and_the_newest_with_a_gil():
    assert matrix.ends({"3.8": ["a"], "3.9": ["b"], "3.13": ["c"], "3.13t": ["d"]}) == {"3.8": ["a"], "3.13": ["c"]}
    assert matrix.ends({"3.11": ["a"], "3.13t": ["d"]}) == {"3.11": ["a"]}
    assert matrix.ends({}) == {}


@posix
def test_a_python_that_makes_no_environment_is_left_out_for_the_next(fake, tmp_path, monkeypatch, capsys):
    lame = fake("lame", "no venv here", 1)
    assert matrix.installed(lame, str(tmp_path / "environment"), "test") is None
    monkeypatch.setattr(matrix, "installed", lambda python, folder, extra: None if python == lame else python)
    assert matrix.under("3.9", [lame, sys.executable], str(tmp_path)).command[0] == sys.executable
    assert matrix.under("3.9", [lame], str(tmp_path)) is None
    assert capsys.readouterr().out == f"{lame} makes no virtual environment; left out\n" * 2


def test_a_python_with_a_gil_is_not_taken_for_a_free_threaded_one(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        matrix.main(["--free-threaded", str(tmp_path / "python3.13t")])
    assert ended.value.code == 2
    assert "is not a CPython without the GIL" in capsys.readouterr().err


# Its end and exit code.


def test_a_suite_that_passes_is_0_and_a_line_and_a_table(suite, monkeypatch, capsys):
    path = suite("import pytest\ndef test_one(): pass\n@pytest.mark.skip('not now')\ndef test_two(): pass\n")
    monkeypatch.setenv("PYTHONPATH", TESTS)
    assert by_command(path, "-p", "support.tiers") == 0
    out = capsys.readouterr().out
    assert re.search(r"^the command +1 passed, 1 skipped in \d+ s\n", out)
    assert re.search(r"^ +passed +failed +skipped +seconds\nthe command +1 +0 +1 +\d+\n", out, re.MULTILINE)
    assert out.endswith("\nnot run anywhere: skipped: not now\n")


def test_a_suite_that_fails_is_1_and_shown(suite, capsys):
    path = suite("def test_bad(): assert 1 == 2\ndef test_good(): pass\n")
    assert by_command(path) == 1
    out = capsys.readouterr().out
    assert "assert 1 == 2" in out
    assert re.search(r"^the command +1 +1 +0 +\d+  FAILED\n\Z", out, re.MULTILINE)


@pytest.mark.parametrize("source", ["", "import os\ndef test_it(): os._exit(0)\n"], ids=["no test", "an early end"])
def test_a_run_in_which_no_test_ran_fails(source, suite):
    assert by_command(suite(source)) == 1


def test_a_run_without_any_python_fails(monkeypatch):
    monkeypatch.setattr(matrix, "candidates", lambda: [])
    assert matrix.main([]) == 1


def test_a_run_that_does_not_end_has_failed(suite, monkeypatch, capsys):
    monkeypatch.setattr(matrix, "LIMIT", 0.5)
    assert by_command(suite("import time\ndef test_it(): time.sleep(3600)\n")) == 1
    assert "no end after 0.5 s" in capsys.readouterr().out


def test_a_run_that_does_not_end_leaves_no_process_behind():
    for limit in (0.2, 1, 5, 25):  # a busy machine may not even start the shell in less
        code, output = matrix.captured(["sh", "-c", "echo $$; sleep 3600 & echo $!; wait"], None, limit)
        assert code is None
        if len(output.split()[: -len("no end after 1 s".split())]) == 2:
            break
    shell, child = map(int, output.split()[:2])
    assert not is_alive(shell)
    eventually(lambda: not is_alive(child))


def test_it_is_run_strictly_and_once_more_with_o(only_this_python, suite, tmp_path, capfd):
    path = suite("""
        import subprocess, sys, warnings, pytest

        CHILD = "import sys; print(sys.flags.dev_mode, sys.flags.optimize, 'error' in sys.warnoptions)"

        def test_that_children_get_the_flags():
            flags = subprocess.run([sys.executable, "-c", CHILD], stdout=subprocess.PIPE).stdout.split()
            assert flags == ([b"False", b"1", b"True"] if sys.flags.optimize else [b"True", b"0", b"True"])

        def test_warnings_are_errors():
            with pytest.raises(UserWarning):
                warnings.warn("this")
    """)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")  # of pytest's own about -O, too
    assert matrix.main([path, "--jobs", "2"]) == 0
    rows = re.findall(r"^(CPython \S+(?: -O)?) +2 +0 +0 +\d+$", capfd.readouterr().out, re.MULTILINE)
    name = f"CPython {matrix.version_of(sys.executable)}"
    assert rows == [name, f"{name} -O"]


IN_A_THREAD = """
import threading

def test_it():
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
"""


@pytest.mark.parametrize(
    "source, why",
    [
        ("def test_it(): open(__file__)\n", "ResourceWarning"),
        (IN_A_THREAD, "ZeroDivisionError"),
        ("def test_it(): assert False\n", "AssertionError"),
    ],
    ids=["left open", "raised in a thread", "failed"],
)
def test_what_goes_wrong_unseen_fails_and_o_keeps_the_assertions(source, why, only_this_python, suite, capsys):
    assert matrix.main([suite(source)]) == 1
    out = capsys.readouterr().out
    assert why in out
    assert len(re.findall(r"^CPython \S+( -O)? .*  FAILED$", out, re.MULTILINE)) == 2
