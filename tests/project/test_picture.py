"""The picture of a terminal in the documentation shows what the commands print."""

import re
import xml.etree.ElementTree

import pytest

pytest.importorskip("termios", reason="this platform has no pseudo-terminals")

from support.client import call_client
from support.picture import FILE, lines_in, lines_on, picture, session

FIGURES = r"\d{4}-\S+ [\d:.]+|127\.0\.0\.1:\d+|echo \d\S* \(process \d+|[\d.]+(/[\d.]+)* ms|[\d.]+ s$|: \w{20}$"
"""The text that differs from run to run: times, ports, process numbers, the version, the bytes of a probe."""


def masked(lines):
    return [re.sub(FIGURES, "*", line) for line in lines]


def test_the_lines_in_the_picture_are_what_the_commands_print(run):
    with open(FILE, encoding="utf-8") as file:
        shown = lines_in(file.read())
    printed = session(run, "0", lambda *arguments: call_client(*arguments).out.decode().splitlines())
    assert masked(shown) == masked(lines_on(*printed))


def test_a_picture_has_its_text_as_text_in_its_colors():
    svg = picture(["$ cat <a> & b", "\x1b[2m09:14\x1b[0m \x1b[31mlost\x1b[0m <b>", ""], ["second"])
    assert lines_in(svg) == ["$ cat <a> & b", "09:14 lost <b>", "second"]
    root = xml.etree.ElementTree.fromstring(svg)
    spans = {span.text: span.get("class") for span in root.iter("{http://www.w3.org/2000/svg}tspan")}
    assert spans == {"09:14": "faint", "lost": "bad"}
