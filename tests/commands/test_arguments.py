"""What the command lines take for ports, durations, sizes and counts; and how they refuse the rest."""

import argparse
import os
import sys

import pytest

from echo import protocol
from echo.cli import arguments
from echo.framing import LengthFraming, LineFraming, RawFraming


def refusal(read, text):
    """The message with which ``read`` refuses ``text``."""
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        read(text)
    return str(caught.value)


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("7", 7), ("65432", 65432), ("65535", 65535), ("0080", 80)])
def test_a_port_is_a_number_from_0_to_65535(text, value):
    assert arguments.port(text) == value


@pytest.mark.parametrize(
    "text", ["", "65536", "-1", "+1", "1.0", "http", " 80", "80\n", "0x50", "1_000", "\u0663", "\u00b2"]
)
def test_what_is_no_port_is_refused_with_the_range(text):
    assert refusal(arguments.port, text) == f"{text!r} is no port; a port is a number from 0 to 65535"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1", 1.0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("2.", 2.0),
        ("30s", 30.0),
        ("500ms", 0.5),
        ("1.5ms", 0.0015),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("0.5h", 1800.0),
    ],
)
def test_a_duration_is_a_number_of_seconds_unless_a_unit_says_otherwise(text, seconds):
    assert arguments.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["0", "0.0", "0s", "0ms", "0h", ".0"])
def test_a_duration_of_zero_switches_a_limit_off(text):
    assert arguments.duration(text) is None


@pytest.mark.parametrize(
    "text", ["", "s", ".", "-1", "+1", "1 s", "1d", "1S", "1e3", "inf", "nan", "1,5", "1s\n", "1m30s"]
)
def test_what_is_no_duration_is_refused_with_examples(text):
    assert refusal(arguments.duration, text) == f"{text!r} is no duration; write it like 500ms, 30s, 5m or 1.5"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("65536", 65536),
        ("64k", 65536),
        ("64K", 65536),
        ("1m", 1 << 20),
        ("1M", 1 << 20),
        ("2g", 2 << 30),
        ("2G", 2 << 30),
    ],
)
def test_a_size_is_a_number_of_bytes_and_k_m_g_are_powers_of_1024(text, value):
    assert arguments.size(text) == value


@pytest.mark.parametrize("text", ["", "0", "0k", "00", "k", "-1", "+1", "1.5k", "64kb", "64 k", "1T", "1k\n", "0x10"])
def test_what_is_no_size_is_refused_with_examples(text):
    assert refusal(arguments.size, text) == f"{text!r} is no size; write it in bytes, like 65536, 64k or 1M"


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("007", 7), ("1000000", 1_000_000)])
def test_a_count_is_a_whole_number_from_1_on(text, value):
    assert arguments.count(text) == value


@pytest.mark.parametrize("text", ["", "0", "000", "-1", "+1", "1.0", "1k", "many", " 1", "1\n", "\u0663", "\u00b2"])
def test_what_is_no_count_is_refused_with_what_to_write(text):
    assert refusal(arguments.count, text) == f"{text!r} is no count; write a whole number from 1 on"


@pytest.fixture
def parser():
    parser = arguments.ArgumentParser(prog="echo-test", description="a test")
    parser.add_argument("port", type=arguments.port, nargs="?", default=protocol.DEFAULT_PORT)
    arguments.add_framing(parser)
    return parser


def test_a_wrong_argument_is_one_line_on_stderr_and_exit_code_2(parser, capsys):
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["70000"])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("echo-test: ")
    assert "'70000' is no port; a port is a number from 0 to 65535" in err
    assert err.endswith("; see --help\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("started", "name"),
    [
        ("/usr/local/bin/echo-server", "echo-server"),
        ("echo-server", "echo-server"),
        (os.path.join("Scripts", "echo-server.exe"), "echo-server"),
        (os.path.join("Scripts", "echo-server-script.py"), "echo-server"),
        ("/usr/lib/python3/site-packages/echo/server/__main__.py", "echo.server"),
        ("/usr/local/bin/echo-client", "echo.server"),
        ("/home/echo-server/program.py", "echo.server"),
        ("-c", "echo.server"),
        ("", "echo.server"),
    ],
)
def test_a_program_is_called_what_its_script_is_called_or_else_its_module(monkeypatch, started, name):
    monkeypatch.setattr(sys, "argv", [started, "--version"])
    assert arguments.program("echo.server") == name


def test_an_abbreviated_option_is_refused(parser, capsys):
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--fram=raw"])
    assert caught.value.code == 2
    assert "--fram" in capsys.readouterr().err


def test_failing_tells_the_exit_code_though_nobody_reads_stderr(monkeypatch):
    class Broken:
        def write(self, text):
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr("sys.stderr", Broken())
    with pytest.raises(SystemExit) as caught:
        arguments.fail("echo-test", "no reason", 1)
    assert caught.value.code == 1


@pytest.mark.parametrize(
    ("options", "cls", "limit"),
    [
        ([], LineFraming, 65536),
        (["--framing", "length", "--max-message", "1M"], LengthFraming, 1 << 20),
        (["--framing", "raw", "--max-message", "10"], RawFraming, 10),
    ],
)
def test_the_framing_is_the_one_that_was_asked_for(parser, options, cls, limit):
    framing = arguments.framing(parser.parse_args(options))
    assert type(framing) is cls
    assert framing.max_message == limit


def test_a_framing_that_is_not_known_is_refused_with_those_that_are(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--framing", "morse"])
    err = capsys.readouterr().err
    for name in ("line", "length", "raw"):
        assert name in err
