"""The two formats of the server command's log: each record is one line that a strict reader accepts, whatever its
content."""

import json
import logging
import os
import re
import sys

import pytest

from echo.cli.server.color_formatter import ColorFormatter
from echo.logs.formatters import JsonFormatter, TextFormatter
from echo.text import LONGEST, LONGEST_LINE
from support.log_lines import MARK, records_of

FORMATTERS = {"text": TextFormatter, "json": JsonFormatter}
EVIL = "a\r\n2026-01-01 00:00:00.000 INFO    forged\x1b[31m\x00\x7f\x85\u2028\u202e\ud800\U000e0041"
SHOWN = r"a\r\n2026-01-01 00:00:00.000 INFO    forged\x1b[31m\x00\x7f\u0085\u2028\u202e\ud800\U000e0041"


@pytest.fixture(params=["text", "json"])
def form(request):
    return request.param


def made(message="hello", args=None, exc=None, **attributes):
    """A log record."""
    exc_info = None if exc is None else (type(exc), exc, exc.__traceback__)
    record = logging.LogRecord("a.logger", logging.INFO, "module.py", 7, message, args, exc_info)
    vars(record).update(attributes)
    return record


def line_of(form, record, **options):
    """The record in that format, after a check by a strict reader."""
    line = FORMATTERS[form](**options).format(record) + "\n"
    assert len(records_of(line.encode(), form)) == 1
    return line[:-1]


def fields_of(record):
    return json.loads(line_of("json", record))


def raised(exc, *, cause=None):
    try:
        raise exc from cause
    except BaseException as caught:
        return caught


class Odd:
    """An object that cannot be converted to text."""

    def __str__(self):
        raise ValueError(EVIL)

    __repr__ = __str__


class Sly(str):
    """Text whose ``isprintable`` is always true."""

    def isprintable(self):
        return True

    def __format__(self, spec):
        return self + ""


class SlyError(ValueError):
    def __str__(self):
        return Sly(EVIL)


def test_a_message_is_one_printable_line(form):
    line = line_of(form, made("%s", (EVIL,)))
    assert (line.endswith("INFO    " + SHOWN)) if form == "text" else json.loads(line)["message"] == SHOWN


def test_escapes_that_stand_in_a_message_stay_as_they_are(form):
    line = line_of(form, made(r"received 2 bytes: \x1b\\"))
    assert r"\x1b\\" in (line if form == "text" else json.loads(line)["message"])


def test_the_lines_of_a_traceback_are_marked_and_none_can_be_taken_for_a_record():
    cause = raised(KeyError(EVIL))
    line = line_of("text", made(exc=raised(ValueError(EVIL), cause=cause)))
    first, *rest = line.split("\n")
    assert first.endswith(" hello")
    assert all(each.startswith(MARK) for each in rest)
    assert rest[0] == MARK + "Traceback (most recent call last):"
    assert rest[-1] == f"{MARK}ValueError: {SHOWN}"
    assert f"{MARK}The above exception was the direct cause of the following exception:" in rest


def test_a_traceback_in_json_is_printable_lines():
    exception = fields_of(made(exc=raised(ValueError(EVIL), cause=raised(KeyError(EVIL)))))["exception"].split("\n")
    assert exception[0] == "Traceback (most recent call last):"
    assert exception[-1] == f"ValueError: {SHOWN}"


def exceptions():
    """Exceptions that are hard to print."""
    yield SystemExit(EVIL)
    yield OSError(2, EVIL, EVIL)
    yield ValueError(Odd())
    yield SlyError()
    yield SyntaxError(EVIL, (EVIL, 1, 1, EVIL))
    yield UnicodeDecodeError("utf-8", b"\xff", 0, 1, EVIL)
    yield type("Named\nforged", (Exception,), {})(EVIL)
    long_chain = ValueError(EVIL)
    for number in range(3000):
        long_chain = raised(ValueError(number), cause=long_chain)
    yield long_chain
    circle = raised(ValueError(EVIL))
    circle.__context__ = raised(KeyError(EVIL))
    circle.__context__.__cause__ = circle
    yield circle
    if sys.version_info >= (3, 11):
        group = ExceptionGroup(EVIL, [raised(ValueError(EVIL)), ExceptionGroup(EVIL, [KeyError(EVIL)] * 50)])  # noqa: F821
        group.add_note(EVIL)
        group.__notes__.append(Odd())
        yield group


def test_any_exception_is_whole_lines(form):
    for exc in exceptions():
        line = line_of(form, made(exc=raised(exc)))
        assert type(exc).__name__.partition("\n")[0] in line
        parts = (line if form == "text" else json.loads(line)["exception"]).split("\n")
        assert not [part for part in parts if part.replace(MARK, "").lstrip(" |").startswith("2026-01-01")]


def test_a_traceback_that_another_handler_has_formatted_is_formatted_again(form):
    record = made(exc=raised(ValueError(EVIL)))
    logging.Formatter().format(record)  # keeps the traceback in the record
    assert "\x1b" in record.exc_text
    assert line_of(form, record) == line_of(form, record).replace("\x1b", "")
    record.exc_info = None  # as from another process
    assert "forged" in line_of(form, record)


def test_a_stack_is_shown(form):
    record = made(stack_info="Stack (most recent call last):\n  File \x1b")
    if form == "text":
        assert line_of(form, record).endswith(f"\n{MARK}Stack (most recent call last):\n{MARK}  File \\x1b")
    else:
        assert fields_of(record)["stack"] == "Stack (most recent call last):\n  File \\x1b"


@pytest.mark.parametrize("moment", [1e18, -1e18, float("inf"), float("-inf"), float("nan"), 253402300800.0, -1.0, 0.0])
def test_a_clock_beyond_the_calendar_costs_no_record(form, moment):
    """Row 71."""
    assert "hello" in line_of(form, made(created=moment))


def test_text_that_is_too_long_is_cut_and_marked(form):
    message = line_of(form, made("x" * (LONGEST + 5)))
    assert "x... (5 more characters)" in message and len(message) < LONGEST + 200
    exception = line_of(form, made(exc=raised(ValueError("y" * (LONGEST + 5)))))
    assert "y... (5 more characters)" in exception and len(exception) < LONGEST + 2000

    line = line_of(form, made(exc=raised(ValueError("last"), cause=many_causes(40, 10_000))))
    assert "more lines)" in line and "ValueError: last" in line and len(line) < 3 * LONGEST
    assert fields_of(made(huge="x" * (LONGEST + 5)))["huge"] == "x" * LONGEST + "... (5 more characters)"


def test_a_long_traceback_ends_with_its_exception(form):
    """Its text is as long as half of what is shown of the lines."""

    def deep(left):
        if left:
            again(left - 1)
        raise ValueError("y" * LONGEST)

    def again(left):
        deep(left)

    try:
        deep(250)
    except ValueError as exc:
        caught = exc
    line = line_of(form, made(exc=caught))
    assert "Traceback (most recent call last)" in line and "more lines)" in line and "ValueError: yyy" in line


def many_causes(count, size):
    exc = ValueError("first")
    for _ in range(count):
        exc = raised(ValueError("z" * size), cause=exc)
    return exc


def test_an_attribute_named_like_a_field_of_ours_does_not_replace_it():
    fields = fields_of(made(time="x", level="x", logger="x", exception="x", stack="x", event="order", peer="here"))
    assert (fields["level"], fields["logger"], fields["message"]) == ("INFO", "a.logger", "hello")
    assert fields["time"] != "x"
    assert "exception" not in fields and "stack" not in fields
    assert {fields[f"{name}_"] for name in ("time", "level", "logger", "exception", "stack")} == {"x"}
    assert (fields["event"], fields["peer"]) == ("order", "here")


def test_values_that_json_does_not_have_are_shown_as_text():
    circle = {"name": "circle"}
    circle["self"] = circle
    values = {
        "not_a_number": float("nan"),
        "infinite": [float("inf"), 1.5],
        "bytes": b"a\xff\n",
        "set": {1},
        "keys": {1: "a", "1": "b", (2, 3): "c", None: "d"},
        "circle": circle,
        "odd": Odd(),
        "surrogate": "a\ud800\u20ac",
        "text": "a\n\x1b",
        "number": 10**30,
        "wide": ["x" * 1000] * 1000,
        "deep": json.loads("[" * 500 + "]" * 500),
    }
    fields = fields_of(made(**values))
    assert fields["not_a_number"] == "nan"
    assert fields["infinite"] == ["inf", 1.5]
    assert fields["bytes"] == r"a\xff\n"
    assert fields["set"] == [1]
    assert fields["keys"] == {"1": "b", "[2, 3]": "c", "None": "d"}
    assert fields["circle"] == {"name": "circle", "self": "..."}
    assert fields["odd"] == "(Odd: ValueError)"
    assert fields["surrogate"] == "a\\ud800\u20ac"
    assert fields["text"] == "a\n\x1b"
    assert fields["number"] == 10**30
    assert 10 < len(fields["wide"]) < 100


def test_names_of_attributes_may_be_anything(form):
    record = made()
    vars(record).update({1: "one", "a\nb": 1, "\ud800": 2, b"time": 3, b"exception": 4})
    line = line_of(form, record)
    if form == "json":
        fields = json.loads(line)
        assert (fields["time_"], fields["exception_"]) == (3, 4) and "exception" not in fields


@pytest.mark.parametrize("size", [10**400, 10**5000], ids=["of 401 digits", "of 5001 digits"])
def test_a_number_that_python_does_not_convert_to_decimal_costs_no_record(size):
    fields = fields_of(made(size=size, sizes=[size]))
    assert (fields["message"], fields["size"], fields["sizes"]) == ("hello", hex(size), [hex(size)])


def big_records():
    """Records that would take megabytes."""
    yield made(stack_info="x\n" * 200_000)
    yield made(exc_text="\n" * 200_000 + "x")
    yield made(exc_text=(LONGEST * "x" + "\n") * 10)
    yield made(**{f"name{number}": LONGEST * "x" for number in range(10)})
    yield made(fields={f"{number}" + 1000 * "x": None for number in range(600)})
    yield made(fields=[[]] * 200_000)
    yield made(**{200_000 * "x": 1})
    yield made(levelname=200_000 * "x", name=200_000 * "x", threadName=200_000 * "x")
    yield made(fields=[10**300] * 10_000)
    yield made(process="x" * 200_000)
    yield made(subject=b"\xff" * 200_000)
    yield made(exc=raised(ValueError("last"), cause=many_causes(40, 10_000)), stack_info="x\n" * 200_000)
    for character in EVERY_WIDTH:
        text = 50_000 * character
        yield made("hello " + text, fields=[text], exc=raised(ValueError(text)), stack_info=text)
        yield made(levelname=text, name=text, threadName=text)
        if character != "\ud800":  # no class has such a name
            yield made(exc=raised(type("Odd" + text, (Exception,), {})(text)))


EVERY_WIDTH = ["x", '"', "\\", "\n", "\x1b", "\xe9", "\x85", "\u4e2d", "\u2028", "\ud800", "\U0001f600", "\U000e0001"]
"""Characters that take 1 to 12 bytes when they are shown."""


def test_what_a_record_takes_is_bounded(form):
    """Row 86. systemd's journal would split a line of 48 KiB, and its rest could look like an entry of its own."""
    for record in big_records():
        shown = line_of(form, record, with_process=True, with_thread=True)
        assert len(shown) < 7 * LONGEST and "hello" in shown
    assert LONGEST_LINE < 48 * 1024  # that of each line was checked


def test_each_part_of_a_long_record_is_shown():
    text = 200_000 * "x\n"
    fields = fields_of(made("hello " + text, event="big", fields=text, exc=raised(ValueError(text)), stack_info=text))
    assert fields["event"] == "big"
    for name in ("message", "fields", "exception", "stack"):
        assert len(fields[name]) > 2000, name


def test_attributes_that_are_left_out_are_marked():
    fields = fields_of(made(rows=list(range(20_000)), event="query", text="x" * 20_000, user="alice"))
    assert (fields["rows"][-1], fields["event"], fields["user"]) == ("...", "query", "alice")
    assert fields["rows"][1000] == 1000 and fields["text"].startswith("x" * 2000)
    fields = fields_of(made(**{f"name{number}": LONGEST // 3 * "x" for number in range(9)}))
    assert all(fields[f"name{number}"].startswith("x" * 1000) for number in range(9))
    fields = fields_of(made(event="many", **{f"name{number}": "" for number in range(9000)}))
    assert (fields["event"], fields["..."], fields["message"]) == ("many", "...", "hello")
    fields = fields_of(made(**{"a" * 300 + "1": [1], "a" * 300 + "2": 2, "time": 3, "time_": 4}))
    assert [value for name, value in fields.items() if name.startswith(("a", "time_"))] == [[1], 2, 3, 4]
    assert fields_of(made(many=["x" * 1000] * 1000))["many"][-1] == "..."


def test_a_levels_name_forges_nothing(form):
    logging.addLevelName(77, "LOUD\nforged")
    try:
        line = FORMATTERS[form]().format(made(levelno=77, levelname="LOUD\nforged"))
    finally:
        logging.addLevelName(77, "Level 77")
    assert "\n" not in line and "forged" in line


@pytest.mark.parametrize("value", [EVIL, "a\nb", {"a": EVIL}, [1], 5, None, float("nan"), Sly(EVIL)])
@pytest.mark.parametrize("name", ["levelname", "name", "threadName", "process"])
def test_a_name_that_a_filter_has_replaced_is_printable_text(name, value):
    fields = json.loads(line_of("json", made(**{name: value}), with_process=True, with_thread=True))
    assert fields["message"] == "hello"
    for field in ("level", "logger", "thread"):
        assert fields[field].isprintable()


def test_a_message_that_says_of_itself_that_it_is_printable_is_escaped(form):
    line = line_of(form, made(SlyError()))
    assert line.endswith(SHOWN) if form == "text" else json.loads(line)["message"] == SHOWN


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_record_of_a_forked_child_has_its_own_process_number(form):
    formatter, record = FORMATTERS[form](with_process=True), made()
    formatter.format(record)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, formatter.format(made(created=record.created)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    line = os.read(reader, 1000).decode()
    os.close(reader)
    os.close(writer)
    assert f"[{child}]" in line if form == "text" else json.loads(line)["process"] == child


# Threads and colors.


def test_a_record_shows_the_name_of_its_thread_if_asked(form):
    record = made(threadName="echo-session-7")
    assert "echo-session-7" not in line_of(form, record)
    shown = line_of(form, record, with_thread=True)
    if form == "text":
        assert shown.endswith(" INFO    [echo-session-7]   hello")
    else:
        assert json.loads(shown)["thread"] == "echo-session-7"


def test_a_name_of_a_thread_that_a_peer_has_chosen_forges_nothing(form):
    assert line_of(form, made(threadName=EVIL), with_thread=True).isprintable()


PAINTED = {"32": "good", "33": "doubtful", "31": "bad", "2": "faint"}


def painted(**attributes):
    """The words of a record's line that have a color, without its time."""
    record = made(**attributes)
    line = ColorFormatter().format(record)
    assert re.sub(r"\x1b\[(?:0|32|33|31|2)m", "", line) == TextFormatter().format(record)
    words = re.findall(r"\x1b\[(\d+)m(.*?)\x1b\[0m", line)
    assert "\x1b" not in re.sub(r"\x1b\[\d+m.*?\x1b\[0m", "", line)
    return [(PAINTED[style], word.strip()) for style, word in words][1:]


@pytest.mark.parametrize(
    "level, style", [("DEBUG", "faint"), ("INFO", "good"), ("WARNING", "doubtful"), ("ERROR", "bad")]
)
def test_a_level_has_its_color(level, style):
    assert painted(levelno=getattr(logging, level)) == [(style, level)]


@pytest.mark.parametrize(
    "text, reason, style",
    [
        ("disconnected: exit; 1 in", "exit", "good"),
        ("disconnected: idle; 1 in", "idle", "doubtful"),
        ("disconnected: reset; 1 in", "reset", "bad"),
        ("disconnected: out of stock; 1 in", "out of stock", "doubtful"),  # a handler's own
        ("refused: denied (its network)", "denied", "doubtful"),
        ("too-long: a message is longer", "too-long", "doubtful"),
    ],
)
def test_the_reason_of_a_session_has_a_color(text, reason, style):
    assert painted(msg=f"192.0.2.1:7 {text}", peer="192.0.2.1:7", reason=reason) == [("good", "INFO"), (style, reason)]


@pytest.mark.parametrize(
    "attributes",
    [
        {"msg": "192.0.2.1:7 received 9 bytes: disconnected: reset; 1 in", "peer": "192.0.2.1:7"},
        {"msg": "disconnected: reset; 1 in"},
        {"msg": f"{EVIL} disconnected: {EVIL}; 1 in", "peer": EVIL, "reason": EVIL},
        {"msg": "192.0.2.1:7 disconnected: 5", "peer": "192.0.2.1:7", "reason": 5},
        {"msg": EVIL},
    ],
    ids=["a message", "a print", "escapes", "a number", "no peer"],
)
def test_nothing_that_a_peer_sent_has_a_color(attributes):
    assert painted(**attributes) == [("good", "INFO")]


def test_the_address_of_the_server_stands_out():
    text = "echo 1.0 (process 7; Ctrl-C stops it) listening on 127.0.0.1:7"
    line = ColorFormatter().format(made(text, event="listening", address="127.0.0.1:7"))
    assert line.endswith(f"{text.rpartition(' ')[0]} \x1b[1m127.0.0.1:7\x1b[0m")
