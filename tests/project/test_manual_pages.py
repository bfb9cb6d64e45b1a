"""The manual pages in ``docs/man``: they agree with the options' rows, and programs that render them accept them."""

import os
import re
import subprocess

import pytest

from echo.cli.client.command import MANUAL as CLIENT
from echo.cli.manual_page import manual_page
from echo.cli.server.options import MANUAL as SERVER
from support import DEADLINE, ROOT

PAGES = {"echo-server": SERVER, "echo-client": CLIENT}
pages = pytest.mark.parametrize("name", PAGES)


def path(name):
    return os.path.join(ROOT, "docs", "man", f"{name}.1")


def made(name):
    with open(os.path.join(ROOT, "CHANGELOG.md"), encoding="utf-8") as file:
        date = re.search(r"^## \[.+\] - (.+)$", file.read(), re.MULTILINE)[1]
    return manual_page(PAGES[name], [other for other in PAGES if other != name], date if date[0].isdigit() else "")


@pages
def test_the_manual_pages_say_what_the_rows_say(name):
    """``ECHO_UPDATE_GOLDEN=1`` writes them again; then read their diff."""
    if os.environ.get("ECHO_UPDATE_GOLDEN") == "1":
        with open(path(name), "w", encoding="utf-8") as file:
            file.write(made(name))
    with open(path(name), encoding="utf-8") as file:
        assert file.read() == made(name)


def rendered(*command):
    done = subprocess.run(
        command,
        env=dict(os.environ, MANWIDTH="80", LC_ALL="C.UTF-8", MANPAGER="cat"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=DEADLINE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return re.sub(".\b", "", done.stdout)


@pytest.mark.needs_programs("mandoc")
@pages
def test_mandoc_finds_nothing_to_complain_about(name):
    assert rendered("mandoc", "-Tlint", "-Wwarning", path(name)) == ""


@pytest.mark.needs_programs("man", "groff")
@pages
def test_man_shows_each_option_in_80_columns(name):
    text = rendered("man", "--warnings", "--local-file", path(name))
    assert max(map(len, text.splitlines())) <= 80
    for row in [row for group in PAGES[name].groups for row in group.rows]:
        assert re.search(rf"(?m)^ {{7}}{re.escape(row.names)}( |$)", text), row.names
