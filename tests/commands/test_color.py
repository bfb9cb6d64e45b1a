"""When output is colored: ``--color``, the environment, and the kind of stream."""

import io
import re

import pytest

from echo.cli.color import STYLES, is_colored, paint, painter, plain
from support.client import address_options, call_client
from support.simulation import FlipsAByteOfEachThird, simulate_bench, simulate_ping


class TerminalStream(io.StringIO):
    def isatty(self):
        return True


XTERM = {"TERM": "xterm"}


@pytest.mark.parametrize(
    "color, environment, at_a_terminal, elsewhere",
    [
        ("auto", XTERM, True, False),
        ("auto", {}, False, False),
        ("auto", {"TERM": "dumb"}, False, False),
        ("auto", dict(XTERM, NO_COLOR="1"), False, False),
        ("auto", dict(XTERM, NO_COLOR=""), True, False),
        ("auto", dict(XTERM, FORCE_COLOR="1"), True, True),
        ("auto", {"TERM": "dumb", "FORCE_COLOR": "3"}, True, True),
        ("auto", dict(XTERM, FORCE_COLOR="0"), True, False),
        ("auto", dict(XTERM, FORCE_COLOR="1", NO_COLOR="1"), False, False),
        ("always", dict(XTERM, NO_COLOR="1"), True, True),
        ("never", dict(XTERM, FORCE_COLOR="1"), False, False),
    ],
)
def test_the_option_counts_more_than_the_environment_and_that_more_than_the_stream(
    color, environment, at_a_terminal, elsewhere
):
    assert is_colored(TerminalStream(), color, environment) is at_a_terminal
    assert is_colored(io.StringIO(), color, environment) is elsewhere
    assert is_colored(None, color, environment) is elsewhere  # a stream that is closed


def test_paint_goes_back_to_the_terminals_own_color():
    assert paint("bad", "lost") == f"\x1b[{STYLES['bad']}mlost\x1b[0m"
    assert painter(TerminalStream(), "never")("bad", "lost") == plain("bad", "lost") == "lost"


def in_styles(style, text):
    return f"<{style}>{text}</>"


def test_what_went_wrong_is_marked_in_a_ping_and_what_did_not_is_not():
    text = simulate_ping(FlipsAByteOfEachThird, count=3, paint=in_styles).text
    assert re.findall("<.*?>.*?</>", text) == ["<bad>corrupted</>", "<bad>1 corrupted</>"]
    assert "0 lost, 0% loss" in text


def test_what_went_wrong_is_marked_in_a_bench_and_what_did_not_is_not():
    text = simulate_bench(FlipsAByteOfEachThird, paint=in_styles).text
    assert re.search(r"^wrong +<bad>\d+ corrupted</>$", text, re.M)
    assert re.search(r"^errors +0$", text, re.M)


@pytest.mark.parametrize("options", [["-J"], ["-J", "--histogram"], []])
def test_json_has_no_colors_and_neither_has_a_message(serve, options):
    arguments = ["--ping", "-c", "1", *options] if options else ["-m", "lost"]
    done = call_client(*address_options(serve()), *arguments, "--color", "always")
    assert done.code == 0
    assert b"\x1b" not in done.out and b"\\u001b" not in done.out
