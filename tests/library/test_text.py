"""Bytes and addresses from a peer as text that can neither forge a log line nor control a terminal."""

import random
import socket
import subprocess
import sys
import tracemalloc

import pytest

from echo.text import LONGEST, escape, format_address, format_exception, plural, printable

INTERFACE = socket.if_nameindex()[0]  # any: its number and its name


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"plain text, 100 %", "plain text, 100 %"),
        ("caf\u00e9 \u65e5\u672c \U0001f600".encode(), "caf\u00e9 \u65e5\u672c \U0001f600"),
        (b"one\ntwo", r"one\ntwo"),
        (b"one\r\ntwo\t", r"one\r\ntwo\t"),
        (b"\x00\x07\x08\x0b\x0c\x7f", r"\x00\x07\x08\x0b\x0c\x7f"),
        (b"\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        (b"\xff\xfe caf\xe9", r"\xff\xfe caf\xe9"),
        (b"\xe6\x97", r"\xe6\x97"),
        (b"\xed\xa0\x80", r"\xed\xa0\x80"),
        (b"\xc0\xaf", r"\xc0\xaf"),
        ("\u202eevil\u2066\u200b\ufeff".encode(), r"\u202eevil\u2066\u200b\ufeff"),
        ("\u2028\u2029".encode(), r"\u2028\u2029"),
        ("\U000e0041".encode(), r"\U000e0041"),
    ],
)
def test_bytes_that_are_not_printable_are_escaped(data, text):
    assert escape(data) == text


def test_a_backslash_is_escaped_so_that_no_escape_can_be_forged():
    assert escape(rb"\n") == r"\\n"
    assert escape(b"\n") == r"\n"
    assert escape(b"\\\n\\\xff") == r"\\\n\\\xff"
    assert escape("\\\u202e".encode()) == r"\\\u202e"


def test_c1_controls_are_escaped():
    for code in range(0x80, 0xA0):
        assert escape(bytes([code])) == f"\\x{code:02x}"
        assert escape(chr(code).encode()).isascii()
        assert escape(chr(code).encode()).isprintable()


@pytest.mark.parametrize("code", [0x80, 0x85, 0x9B, 0x9F, 0xA0, 0xAD])
def test_a_control_character_in_utf_8_and_a_single_byte_do_not_look_alike(code):
    assert escape(chr(code).encode()) != escape(bytes([code]))


def test_any_bytes_become_one_printable_line():
    rng = random.Random(29)
    pool = [bytes([byte]) for byte in range(256)] + [chr(code).encode() for code in (0x9B, 0x2028, 0x202E, 0xE9)]
    for _ in range(500):
        data = b"".join(rng.choices(pool, k=rng.randint(0, 30)))
        text = escape(data)
        assert text.isprintable(), data
        assert text.splitlines() in ([], [text]), data


def test_a_limit_shows_that_many_bytes_and_counts_the_rest():
    assert escape(b"abcdef", 4) == "abcd... (2 more bytes)"
    assert escape(b"x" * 1000, 10) == "x" * 10 + "... (990 more bytes)"


def test_a_limit_that_is_not_reached_changes_nothing():
    assert escape(b"abcd", 4) == "abcd"
    assert escape(b"abcd", 5) == "abcd"
    assert escape(b"abcd", None) == "abcd"
    assert escape(b"", 0) == ""


def test_the_limit_counts_bytes_before_they_are_escaped_and_may_cut_a_character():
    assert escape(b"\n\n\n\n\n", 2) == r"\n\n... (3 more bytes)"
    assert escape("\u00e9\u00e9".encode(), 1) == r"\xc3... (3 more bytes)"
    assert escape(b"\\\\\\\\", 2) == r"\\\\... (2 more bytes)"


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("192.0.2.1", 80), "192.0.2.1:80"),
        (("2001:db8::1", 80, 0, 0), "[2001:db8::1]:80"),
        (("::", 80, 0, 0), "[::]:80"),
        (("fe80::1%eth0", 80, 0, 2), "[fe80::1%eth0]:80"),
        (("fe80::1", 80, 0, INTERFACE[0]), f"[fe80::1%{INTERFACE[1]}]:80"),
        (("fe80::1", 80, 0, 2**31 - 1), "[fe80::1%2147483647]:80"),
        (("::ffff:192.0.2.1", 80, 0, 0), "192.0.2.1:80"),
        (("::ffff:1:2", 80, 0, 0), "[::ffff:1:2]:80"),
        (("localhost", 0), "localhost:0"),
        ("/run/echo.sock", "/run/echo.sock"),
        (b"/run/echo.sock", "/run/echo.sock"),
        ("", "unix"),
        (b"", "unix"),
        (None, "unix"),
    ],
)
def test_an_address_has_a_name_that_a_log_line_can_carry(address, text):
    assert format_address(address) == text


FORGED = "a\r\n2026-01-01 forged\x1b[31m\x85\u2028\ud800"


@pytest.mark.parametrize(
    "address",
    [
        *("/tmp/a\nb", "/tmp/\x1b[2J", b"\0abstract", b"/tmp/\xff"),
        *((FORGED, 80), ("192.0.2.1", FORGED), (f"::{FORGED}", 80, 0, 0), (f"fe80::{FORGED}", FORGED, 0, 2**31 - 1)),
    ],
)
def test_an_address_that_a_peer_chose_cannot_forge_a_log_line(address):
    text = format_address(address)
    assert text.isprintable()
    text.encode()  # no lone surrogates, on which a log's stream fails


def test_one_is_singular_and_all_else_plural():
    assert [plural(count, "byte") for count in (0, 1, 2, 1000)] == ["0 bytes", "1 byte", "2 bytes", "1000 bytes"]


def test_text_becomes_one_printable_line_and_its_backslashes_stay():
    assert printable("a\n\x1b\x85\u2028\ud800\\n\u20ac") == r"a\n\x1b\u0085\u2028\ud800\n" + "\u20ac"
    assert printable("tab\t", keep="\t") == "tab\t"
    assert printable("\n" * 5, 5) == r"\n\n... (3 more characters)"
    assert printable("\u20ac" * 3, 8) == "\u20ac\u20ac... (1 more character)"
    assert printable("\u20ac" * 3, 9) == "\u20ac" * 3
    assert printable("abc", 0) == "... (3 more characters)"


def naive_printable(text, limit, keep):
    """``printable``, character by character."""
    shown, size = "", 0
    for number, character in enumerate(text):
        code = character.encode("unicode_escape").decode()
        code = f"\\u00{ord(character):02x}" if "\x80" <= character <= "\xff" else code
        form = character if character.isprintable() or character in keep else code
        size += len(form.encode())
        if limit is not None and size > limit:
            rest = len(text) - number
            return f"{shown}... ({rest} more character{'s' * (rest != 1)})"
        shown += form
    return shown


def test_any_text_is_escaped_as_character_by_character_and_cut_at_the_same_place():
    rng = random.Random(10)
    pool = "ab\\\t\n\x00\x1b\x7f\x80\x85\x9f\xa0\xad\xe9\u0301\u200b\u202e\u2028\u4e2d\ud800\udc80\ue000\ufeff"
    pool += "\U0001f600\U000e0041\U0010ffff"
    for size in [*range(12), 100, 999, 1000, 1001, 2500]:
        text = "".join(rng.choices(pool, k=size))
        limits = range(10 * size + 2) if size < 12 else [0, size, 10 * size, *rng.sample(range(10 * size), 10)]
        for limit in [None, *limits]:
            for keep in ("", "\t"):
                assert printable(text, limit, keep=keep) == naive_printable(text, limit, keep)


@pytest.mark.parametrize("character", ["\x01", "\n", "\x80", "\ud800", "\u202e", "\U000e0041", "\u4e2d\n"])
def test_to_escape_a_long_text_takes_a_small_multiple_of_the_memory_that_it_shows(character):
    """Row 63: all sessions may do so at the same time. A list of all characters took 60 bytes for each."""
    text = character * (60_000 // len(character))
    printable(text, 1000)
    tracemalloc.start()
    try:
        shown = printable(text, LONGEST)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(shown.encode()) <= LONGEST + 100
    assert peak < 4 * len(text.encode("utf-8", "surrogatepass")) + 4 * LONGEST


def test_an_exception_is_printable_lines_and_its_own_text_is_one_of_them():
    try:
        try:
            raise KeyError("\x1b")
        except KeyError as cause:
            raise ValueError("a\nb\x1b") from cause
    except ValueError as exc:
        lines = format_exception(exc)
    assert all(line.isprintable() for line in lines)
    assert [lines[0], lines[-1]] == ["Traceback (most recent call last):", r"ValueError: a\nb\x1b"]
    assert r"KeyError: '\x1b'" in lines


def test_an_exception_whose_traceback_cannot_be_formatted_is_one_printable_line(monkeypatch):
    """Row 63: the name of a class may hold what a peer has sent."""
    monkeypatch.setattr("traceback.TracebackException", lambda *arguments: 1 / 0)
    (line,) = format_exception(type("Bad\nINFO  forged\x1b[31m", (Exception,), {})())
    assert line.startswith(r"Bad\nINFO  forged\x1b[31m (its traceback could not be formatted: ZeroDivisionError")


def test_to_escape_text_imports_nothing():
    """A worker that is forked inside an import of another thread would wait for it for ever when it escapes text."""
    script = (
        "import sys, echo.text; known = set(sys.modules); echo.text.printable('\\x1b'); print(set(sys.modules) - known)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_an_exception_of_any_length_is_shown_in_part():
    exc = ValueError("first")
    for _ in range(40):
        exc, exc.__cause__ = ValueError("x" * 10_000), exc
    lines = format_exception(exc)
    assert sum(map(len, lines)) < 3 * LONGEST
    assert lines[0] == "ValueError: first"
    assert [line for line in lines if "more lines)" in line]
    assert format_exception(ValueError("x" * 1_000_000)) == [f"ValueError: {'x' * LONGEST}... (955000 more characters)"]
