"""Which tests run: the quick ones by default, all of them with ``--all``. ``conftest.py`` hands this to pytest.

Unmarked tests are quick and certain, and need only Python (and ``openssl``, for certificates). The others have one of
``MARKERS``; they run with ``--all``, with a ``-m`` that selects them, or named as ``file::test``. A table at the end
counts the tests that did not run, by reason.

A ``needs_`` marker also checks: if something is missing, the test is skipped or, with ``--fail-missing``, fails. So CI
cannot pass because a program could not be installed.
"""

import collections
import functools
import importlib.util
import shutil

import pytest

MARKERS = {
    "slow": "takes seconds: real time must pass, or something is repeated many times",
    "stress": "thousands of clients or messages, or hundreds of random orders",
    "needs_programs": "talks to other programs: needs_programs('socat', 'haproxy')",
    "needs_modules": "needs packages that are not test dependencies: needs_modules('mypy')",
    "needs_namespaces": "builds hosts and cables from network namespaces: root on Linux",
}

TIMEOUT = 300
"""Seconds that pytest-timeout, where it is installed, gives a test that has no ``timeout`` mark."""

_left_out = collections.Counter()  # by marker
_skipped = collections.Counter()  # by reason


def pytest_addoption(parser):
    group = parser.getgroup("echo")
    group.addoption("--all", action="store_true", help="also run the tests that are slow or need more than Python")
    group.addoption("--fail-missing", action="store_true", help="fail, not skip, where a program or module is missing")


def pytest_configure(config):
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    if not config.pluginmanager.hasplugin("timeout"):
        config.addinivalue_line("markers", "timeout(seconds): ignored, since pytest-timeout is not installed")


def pytest_collection_modifyitems(config, items):
    if config.pluginmanager.hasplugin("timeout") and config.getoption("timeout") is None:
        for item in items:
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT))
    if config.getoption("all") or config.getoption("markexpr"):
        return
    named = {argument.partition("[")[0].rpartition("::")[2] for argument in config.args if "::" in argument}
    chosen, rest = [], []
    for item in items:
        marker = next((name for name in MARKERS if item.get_closest_marker(name)), None)
        if marker is None or not named.isdisjoint(node.name.partition("[")[0] for node in item.listchain()):
            chosen.append(item)
        else:
            rest.append(item)
            _left_out[marker] += 1
    config.hook.pytest_deselected(items=rest)
    items[:] = chosen


def pytest_runtest_setup(item):
    for marker in item.iter_markers("needs_programs"):
        for name in marker.args:
            if shutil.which(name) is None:
                missing(item.config, f"{name} is not installed")
    for marker in item.iter_markers("needs_modules"):
        for name in marker.args:
            if not _is_there(name):
                missing(item.config, f"the Python package {name} is not installed")
    if item.get_closest_marker("needs_namespaces"):
        from . import networks

        problem = networks.problem()
        if problem:
            missing(item.config, problem)


def missing(config, reason):
    """Skip the test, or fail it with ``--fail-missing``, since something is missing that could be installed."""
    __tracebackhide__ = True
    if config.getoption("fail_missing"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@functools.lru_cache(maxsize=None)
def _is_there(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a submodule's package
        return False


def pytest_runtest_logreport(report):
    if report.skipped and isinstance(report.longrepr, tuple):
        _skipped[report.longrepr[2].partition("Skipped: ")[2] or report.longrepr[2]] += 1


def pytest_collectreport(report):
    pytest_runtest_logreport(report)


def pytest_terminal_summary(terminalreporter):
    if not _left_out and not _skipped:
        return
    terminalreporter.section("not run")
    for name in MARKERS:
        if _left_out[name]:
            terminalreporter.line(f"{_left_out[name]:5}  {name}: {MARKERS[name].partition(': needs')[0]}")
    for reason, count in sorted(_skipped.items()):
        terminalreporter.line(f"{count:5}  skipped: {reason}")
    if _left_out:
        terminalreporter.line("--all runs the marked ones, too; see tests/README.md")
