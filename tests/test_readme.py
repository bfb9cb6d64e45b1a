"""What is written about the project is so."""

import os
import re

import pytest
from conftest import ROOT

from echo.client.__main__ import _parser as client_parser
from echo.server.__main__ import _parser as server_parser

HERE = os.path.dirname(os.path.abspath(__file__))


def read(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as file:
        return file.read()


def test_each_of_the_forty_rows_names_tests_that_exist():
    tests = set()
    for name in os.listdir(HERE):
        if name.startswith("test_") and name.endswith(".py"):
            tests |= set(re.findall(r"^def (test_\w+)", read("tests", name), re.MULTILINE))
    rows = dict(re.findall(r"^\| (\d+) \|.*\| (.*) \|$", read("tests", "README.md"), re.MULTILINE))
    assert sorted(map(int, rows)) == list(range(1, 41))
    for number, cell in rows.items():
        named = re.findall(r"`(test_\w+)`", cell)
        assert named, f"row {number} names no test"
        assert set(named) <= tests, f"row {number} names {set(named) - tests}"


def test_each_test_file_is_described():
    described = set(re.findall(r"`(test_\w+\.py)`", read("tests", "README.md")))
    assert described == {name for name in os.listdir(HERE) if name.startswith("test_") and name.endswith(".py")}


@pytest.mark.parametrize("command, parser", [("server", server_parser), ("client", client_parser)])
def test_readme_knows_every_option(command, parser):
    text = read("README.md").partition(f"## The {command} command")[2].partition("\n## ")[0]
    for action in parser()._actions:
        for option in action.option_strings or [action.dest]:
            if option not in ("-h", "--help", "--timeout"):
                assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), f"{option} is not in README"
