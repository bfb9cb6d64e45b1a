"""Ports, durations, sizes and counts on the command lines: which values are valid, and the errors for all others."""

import argparse
import os
import socket
import sys

import pytest

from echo import protocol
from echo.cli import arguments, help
from echo.cli.arguments import Group, Row
from echo.cli.client import command as client_command
from echo.cli.reference import command_table
from echo.cli.server import options as server_options
from echo.framing import LineFraming


def refusal(read, text):
    """The message with which ``read`` rejects ``text``."""
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        read(text)
    return str(caught.value)


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("7", 7), ("65432", 65432), ("65535", 65535), ("0080", 80)])
def test_a_port_is_a_number_from_0_to_65535(text, value):
    assert arguments.port(text) == value


@pytest.mark.parametrize(
    "text", ["", "65536", "-1", "+1", "1.0", "http", " 80", "80\n", "0x50", "1_000", "\u0663", "\u00b2"]
)
def test_an_invalid_port_is_refused_with_the_range(text):
    assert refusal(arguments.port, text) == f"invalid port {text!r}: expected 0 to 65535"


ADDRESSES = [
    ("localhost", "localhost", None),
    ("localhost:80", "localhost", 80),
    ("192.0.2.1:0", "192.0.2.1", 0),
    ("::1", "::1", None),
    ("::", "::", None),
    ("[::1]", "::1", None),
    ("[::1]:80", "::1", 80),
    ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
    ("2001:db8::1:80", "2001:db8::1:80", None),
]


@pytest.mark.parametrize(("text", "host", "port"), ADDRESSES)
def test_a_host_may_have_its_port_as_people_and_logs_write_it(text, host, port):
    """Row 75."""
    assert arguments.host(text) == (host, port)
    if port is not None:
        assert arguments.port_or_address(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", " ", ":80", "[]:80", "[::1", "::1]", "[::1]80", "a b", "*", "*:80", "::1:65432", "[a:b:c]:80", "1.2.3.4:80:"],
)
def test_what_is_not_an_address_is_refused_with_examples(text):
    """Rows 75 and 76. The look-up takes ``*`` for this machine alone; other programs take it for all addresses."""
    words = "expected a host, or HOST:PORT, like 127.0.0.1:65432 or [::1]:65432"
    assert refusal(arguments.host, text) == f"invalid address {text!r}: {words}"


@pytest.mark.parametrize("text", ["/run/echo.sock", "./s", "@echo"])
def test_a_path_is_refused_as_an_address_with_the_option_for_it(text):
    """Row 75: the server logs a path as its address."""
    words = "expected a host, or HOST:PORT; for a Unix socket, write --unix PATH"
    assert refusal(arguments.host, text) == f"invalid address {text!r}: {words}"


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_an_abstract_name_may_look_like_an_address():
    for text in ("@echo", "@app:1", "@127.0.0.1:7000", "@:"):
        assert arguments.unix(text) == text


@pytest.mark.parametrize("text", ["localhost:", "localhost:http", "[::1]:65536", "[::1]:", "localhost:-1"])
def test_an_address_with_an_invalid_port_is_refused(text):
    assert "expected 0 to 65535" in refusal(arguments.host, text)


def test_an_address_without_a_port_is_not_a_port():
    assert arguments.port_or_address("80") == (None, 80)
    assert "no port in '[::1]'" in refusal(arguments.port_or_address, "[::1]")
    assert "invalid port 'localhost'" in refusal(arguments.port_or_address, "localhost")


def test_parts_of_an_address_that_contradict_each_other_are_refused():
    one, other = arguments.Address("a", 1), arguments.Address("b", 2)
    assert arguments.joined(None, one, arguments.Address("a"), arguments.Address(port=1)) == one
    with pytest.raises(ValueError, match="two hosts are given, a and b"):
        arguments.joined(one, other)
    with pytest.raises(ValueError, match="two ports are given, 1 and 2"):
        arguments.joined(one, arguments.Address(port=2))


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
def test_an_invalid_duration_is_refused_with_examples(text):
    assert (
        refusal(arguments.duration, text) == f"invalid duration {text!r}: expected 500ms, 30s, 5m or 1.5, for example"
    )


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
def test_an_invalid_size_is_refused_with_examples(text):
    assert refusal(arguments.size, text) == f"invalid size {text!r}: expected bytes, like 65536, 64k or 1M"


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("007", 7), ("1000000", 1_000_000)])
def test_a_count_is_a_whole_number_from_1_on(text, value):
    assert arguments.count(text) == value


@pytest.mark.parametrize("text", ["", "0", "000", "-1", "+1", "1.0", "1k", "many", " 1", "1\n", "\u0663", "\u00b2"])
def test_an_invalid_count_is_refused_with_what_to_write(text):
    assert refusal(arguments.count, text) == f"invalid number {text!r}: expected a whole number, 1 or more"


@pytest.fixture
def parser():
    rows = [
        Row("port", "where it listens", arguments.port, protocol.DEFAULT_PORT),
        *arguments.framing_rows(LineFraming()),
        Row("-m TEXT", "say this", many=True, mode=True),
        Row("--listen", "say nothing", mode=True),
        Row("-s, --size BYTES", "how much", arguments.size, 64, needs=("text", "listen")),
        Row("--depth N", "how deep", arguments.count, shown="1, or 10", needs=("size",), more="or so"),
        Row("--limit TIME", "how long, in %", arguments.duration, 1.5, left_out=True),
    ]
    return arguments.ArgumentParser(prog="echo-test", description="a test", groups=[Group("", "", *rows)])


def test_a_wrong_argument_is_one_line_on_stderr_and_exit_code_2(parser, capsys):
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["70000"])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("echo-test: ")
    assert "invalid port '70000': expected 0 to 65535" in err
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
        ("echo server", "echo server"),
        ("echo.pyz server", "echo.pyz server"),
        ("echo client", "echo.server"),
        ("/usr/local/bin/echo-client", "echo.server"),
        ("/home/echo-server/program.py", "echo.server"),
        ("-c", "echo.server"),
        ("", "echo.server"),
    ],
)
def test_a_program_has_the_name_of_its_script_or_of_its_module(monkeypatch, started, name):
    monkeypatch.setattr(sys, "argv", [started, "--version"])
    assert arguments.program("echo.server") == name


def test_an_abbreviated_option_is_refused(parser, capsys):
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--fram=raw"])
    assert caught.value.code == 2
    assert "--fram" in capsys.readouterr().err


def test_the_exit_code_shows_a_failure_even_if_stderr_is_not_read(monkeypatch):
    class Broken:
        def write(self, text):
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr("sys.stderr", Broken())
    with pytest.raises(SystemExit) as caught:
        arguments.fail("echo-test", "no reason", 1)
    assert caught.value.code == 1


def test_a_framing_that_is_not_known_is_refused_with_those_that_are(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--framing", "morse"])
    err = capsys.readouterr().err
    for name in ("line", "crlf", "length", "raw"):
        assert name in err


# Rows.


def help_of(parser, dest):
    return next(action.help for action in parser._actions if action.dest == dest)


def test_a_row_says_its_default_in_the_help_as_it_is_or_in_words(parser):
    assert help_of(parser, "port") == "where it listens (default: 65432)"
    assert help_of(parser, "depth") == "how deep (default: 1, or 10)"
    assert help_of(parser, "limit") == "how long, in %% (default: 1.5 s)"
    assert help_of(parser, "text") == "say this; may be repeated"


def test_options_that_are_not_given_have_their_defaults_except_those_that_are_left_out(parser):
    assert vars(parser.parse_complete([])) == {
        "port": 65432,
        "framing": "line",
        "max_message": 65536,
        "text": [],
        "listen": False,
        "size": 64,
        "depth": None,
    }
    assert parser.parse_complete(["--limit", "0"]).limit is None


@pytest.mark.parametrize(
    "argv, words",
    [
        (["-s", "1"], "--size needs -m or --listen"),
        (["--depth", "1"], "--depth needs --size"),
        (["--listen", "--depth", "1"], "--depth needs --size"),
        (["-m", "x", "--listen"], "not allowed with argument"),
    ],
)
def test_an_option_without_what_it_needs_or_of_two_modes_is_refused(parser, capsys, argv, words):
    with pytest.raises(SystemExit) as caught:
        parser.parse_complete(argv)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_an_option_with_what_it_needs_is_taken(parser):
    assert parser.parse_complete(["--listen", "-s", "1k", "--depth", "2"]).size == 1024
    assert parser.parse_complete(["-m", "a", "-m", "b", "-s", "1"]).text == ["a", "b"]


def test_every_row_has_a_variable_of_its_long_name(parser):
    parser.read_environment(
        {"ECHO_PORT": "1", "ECHO_TEXT": " a  b ", "ECHO_SIZE": "2k", "ECHO_LIMIT": "0", "ECHO_FRAMING": "raw"}
    )
    options = parser.parse_complete([])
    assert (options.port, options.text, options.size, options.limit) == (1, ["a", "b"], 2048, None)
    assert options.framing == "raw"


def test_a_table_has_the_names_the_meaning_and_the_default_of_each_row():
    rows = [
        Row("-m, --max-connections N", "at a time, like --depth; see @FILE", arguments.count, 5, more="really"),
        Row("--framing line|raw", "which", default="line"),
        Row("-q, --quiet", "say nothing"),
    ]
    assert command_table([Group("", "", *rows)]) == [
        "| option | meaning | default |",
        "|---|---|---|",
        "| `-m`, `--max-connections N` | at a time, like `--depth`; see `@FILE`; really | 5 |",
        "| `--framing line\\|raw` | which | line |",
        "| `-q`, `--quiet` | say nothing | |",
    ]


# --help.

MANUALS = [server_options.MANUAL, client_command.MANUAL]
manuals = pytest.mark.parametrize("manual", MANUALS, ids=["server", "client"])


@manuals
@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    "prog, typed",
    [
        ("echo.x", "python3 -m echo.x"),
        ("echo x", "python3 -m echo x"),
        ("echo.pyz x", "python3 echo.pyz x"),
        ("echo-x", "echo-x"),
    ],
)
def test_help_begins_with_the_purpose_and_three_examples_and_fits_its_terminal(manual, width, prog, typed):
    text = help.page(prog, manual, width)
    usage, purpose, examples = text.split("\n\n")[:3]
    assert usage.startswith(f"usage: {typed} [options] [")
    assert len(purpose.splitlines()) == 1
    assert examples.startswith("examples:\n") and examples.count(typed) == 3
    assert max(map(len, text.splitlines())) <= min(width, 100)


@manuals
def test_examples_in_help_are_command_lines_that_the_command_accepts(manual):
    for arguments_, _ in manual.examples:
        help.CommandParser("echo-test", manual).parse_complete(arguments_.split())


@manuals
def test_no_word_of_help_is_lost_in_a_narrow_terminal(manual):
    def words(width):
        return sorted(help.page("echo-x", manual, width).split())

    assert words(20) == words(80) == words(1000)


def test_a_default_is_not_cut_in_two_where_a_line_ends():
    row = Row("--limit TIME", "maximum time", arguments.duration, 1.5)
    manual = help.Manual("echo-x", "A test.", [("", "try")], [], [Group("limits", "", row)], [])
    assert help.page("echo-x", manual, 56).endswith(
        "limits:\n"
        "      --limit TIME             maximum time\n"
        "                               (default: 1.5 s)\n"
    )  # fmt: skip
