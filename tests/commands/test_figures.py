"""How figures are printed: milliseconds, a histogram, fields; and which parts of a report go to which stream."""

import io
import json
import math
import os
import random
import re
import struct

import pytest

from echo.measure.distribution import Distribution
from echo.measure.figures import as_fields, comparison, histogram, percentile_name
from echo.measure.report import Report, microseconds, milliseconds


def distribution_of(samples):
    distribution = Distribution()
    for sample in samples:
        distribution.add(sample)
    return distribution


def rows_of(picture):
    """(low, high, count, bar) of each row, the durations in nanoseconds."""
    head, title, *rows = picture.split("\n")
    assert (head, title.split()) == ("", ["ms", "round", "trips"])
    found = [re.fullmatch(r" *([\d.]+) - +([\d.]+) +([\d,]+)(?: (\S+))?", row) for row in rows]
    for column in (1, 2, 3):
        assert len({row.end(column) for row in found}) == 1, "the column is not aligned"
    cells = [row.groups(default="") for row in found]
    ns = [(round(float(low) * 1e6), round(float(high) * 1e6)) for low, high, _, _ in cells]
    return [(low, high, int(count.replace(",", "")), bar) for (low, high), (_, _, count, bar) in zip(ns, cells)]


def random_samples(seed):
    rng = random.Random(seed)
    scale = 10 ** rng.uniform(4, 9)
    return [10_000 + round(rng.expovariate(1 / scale)) for _ in range(rng.choice([1, 2, 30, 3000]))]


# Figures.


def test_milliseconds_have_fewer_digits_after_the_point_the_more_there_are_as_ping_writes_them():
    times = [0, 499, 41_600.4, 999_000, 10**6, 1_234_567, 9_990_000, 10**7, 99_900_000, 10**8, 1_234_567_890]
    texts = ["0.000", "0.000", "0.042", "0.999", "1.00", "1.23", "9.99", "10.0", "99.9", "100", "1235"]
    assert [milliseconds(ns) for ns in times] == texts
    rounded = [999_499, 999_500, 9_994_999, 9_995_001, 99_949_999, 99_950_001]
    assert [milliseconds(ns) for ns in rounded] == ["0.999", "1.00", "9.99", "10.0", "99.9", "100"]


def test_fields_are_in_microseconds_and_as_many_as_there_are_samples_for():
    percents = [50.0, 90.0, 99.9]
    assert as_fields("rtt", Distribution(), percents) == {"rtt_samples": 0}
    one = {"rtt_samples": 1, "rtt_min_us": 1.234, "rtt_avg_us": 1.234, "rtt_max_us": 1.234, "rtt_mdev_us": 0.0}
    assert as_fields("rtt", distribution_of([1234]), percents) == one
    fields = as_fields("raw", distribution_of(range(1, 1001)), percents)
    names = ["samples", "min_us", "avg_us", "max_us", "mdev_us", "p50_us", "p90_us", "p99_9_us"]
    assert list(fields) == [f"raw_{name}" for name in names]
    assert [fields[f"raw_{name}"] for name in names] == [1000, 0.001, 0.5, 1.0, 0.289, 0.5, 0.9, 0.999]
    assert microseconds(1_234_567.4) == 1234.567
    assert [percentile_name(percent) for percent in percents] == ["p50", "p90", "p99.9"]


@pytest.mark.parametrize("seed", range(30))
def test_a_histogram_shows_every_sample_once_from_the_least_to_the_greatest(seed):
    samples = random_samples(seed)
    rows = rows_of(histogram(distribution_of(samples), "ascii"))
    assert sum(count for _, _, count, _ in rows) == len(samples)
    assert [high for _, high, _, _ in rows[:-1]] == [low for low, _, _, _ in rows[1:]]
    assert rows[0][0] <= min(samples) < rows[0][1]
    assert rows[-1][0] <= max(samples) < rows[-1][1]
    for low, high, count, _ in rows:
        near = (low + high) // 2000  # the error of a sample: it may be counted in the next row
        assert sum(low + near <= sample < high - near for sample in samples) <= count
        assert count <= sum(low - near <= sample < high + near for sample in samples)
        assert high <= 2 * low


def test_the_bounds_in_a_histogram_are_two_columns():
    picture = histogram(distribution_of([9_000_000, 11_000_000, 99_000_000, 130_000_000]), "ascii")
    assert [row[: row.index(" - ") + 7] for row in picture.split("\n")[2:]] == [
        "8.00 - 10.0",
        "10.0 - 12.0",
        "12.0 - 15.0",
        "15.0 - 20.0",
        "20.0 - 25.0",
        "25.0 - 30.0",
        "30.0 - 40.0",
        "40.0 - 50.0",
        "50.0 - 60.0",
        "60.0 - 80.0",
        "80.0 -  100",
        " 100 -  120",
        " 120 -  150",
    ]


@pytest.mark.parametrize("seed", range(10))
def test_bars_are_as_long_as_their_share_of_the_longest_and_never_nothing_for_something(seed):
    distribution = distribution_of(random_samples(seed))
    most = max(count for _, _, count, _ in rows_of(histogram(distribution, "ascii")))
    for _, _, count, bar in rows_of(histogram(distribution, "ascii")):
        assert bar == "#" * math.ceil(40 * count / most)
    for _, _, count, bar in rows_of(histogram(distribution, "utf-8")):
        whole, last = bar.count("█"), bar.strip("█")
        assert bar == "█" * whole + last
        assert whole * 8 + " ▏▎▍▌▋▊▉".index(last or " ") == math.ceil(320 * count / most)


@pytest.mark.parametrize("sample", [0, 7, 999, 10_000, 1_199_999, 1_200_000, 10**13 - 1, 10**13])
def test_a_single_sample_is_a_single_bar(sample):
    for encoding, bar in (("utf-8", "█"), ("ascii", "#")):
        ((low, high, count, drawn),) = rows_of(histogram(distribution_of([sample]), encoding))
        assert (count, drawn) == (1, bar * 40)
        assert low <= sample < high or sample < 10_000  # smaller than the precision of the bounds


def test_a_histogram_has_no_row_without_an_interval():
    bounds = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40]
    assert histogram(distribution_of([0, 30]), "ascii").count("\n") == 1 + len(bounds)


def test_one_in_a_million_is_still_seen():
    many = distribution_of([10**6] * 1000)
    for _ in range(10):
        many.merge(many)
    many.add(51 * 10**6)
    assert " 1,024,000 #" in histogram(many, "ascii")
    assert [(count, bar) for _, _, count, bar in rows_of(histogram(many, "utf-8"))][-1] == (1, "▏")
    assert [(count, bar) for _, _, count, bar in rows_of(histogram(many, "ascii"))][-1] == (1, "#")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "koi8-r", "no-such-encoding"])
def test_where_blocks_cannot_be_written_bars_are_number_signs_and_without_samples_there_are_none(encoding):
    assert histogram(distribution_of([10**6]), encoding).isascii()
    assert histogram(Distribution(), encoding) == ""


# Wrong replies.


def test_a_damaged_reply_is_shown_around_the_damage():
    sent = bytes(range(32, 127)) * 4
    received = sent[:300] + b"\xff" + sent[301:]
    ours, theirs = comparison(sent, received)
    assert ours.startswith("  sent     ... ") and theirs.startswith("  received ... ")
    assert r"\xff" in theirs and r"\xff" not in ours
    assert comparison(b"short", b"shord") == ["  sent     short", "  received shord"]
    assert comparison(None, b"what?") == ["  received what?"]


# The report.


@pytest.fixture(autouse=True)
def terminal_with_escape_sequences(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")


class Screen(io.StringIO):
    """The parts of a terminal of 80 columns that a report needs."""

    def isatty(self):
        return True

    @property
    def lines(self):
        """The text on the screen, without the text that was overwritten."""
        return [line.rpartition("\r\x1b[K")[2] for line in self.getvalue().split("\n")]


def fitting(text):
    """A line for ``draw``."""
    return lambda width, paint: text[:width]


half = fitting("half")


def report_everything(**options):
    """The lines that a report writes for one event of each kind."""
    written = []
    report = Report(written.append, wall=lambda: 1e9, **options)
    report.draw(half)
    report.progress(done=0.5)
    report.event("reply", "a reply", seq=1)
    report.event("figures", rtt_us=2.5)
    report.detail("a detail")
    report.summarize("it went\nwell", lost=0)
    report.picture("##")
    report.picture("")
    return written


def without_time(line):
    event = json.loads(line)
    assert event.pop("time") == "2001-09-09T01:46:40.000Z"
    return event


TEXT = ["a reply", "it went\nwell", "##"]
JSON = [
    {"event": "progress", "done": 0.5},
    {"event": "reply", "seq": 1},
    {"event": "figures", "rtt_us": 2.5},
    {"event": "summary", "lost": 0},
]


def test_text_is_for_people_and_json_has_an_event_a_line_and_no_picture():
    assert report_everything() == TEXT
    lines = report_everything(as_json=True)
    assert list(map(without_time, lines)) == JSON
    assert all("\n" not in line and line.startswith('{"event": ') for line in lines)


def test_quiet_leaves_the_summary_and_the_picture_and_neither_it_nor_json_draws_at_a_terminal():
    screen = Screen()
    assert report_everything(quiet=True, stderr=screen) == TEXT[1:]
    assert list(map(without_time, report_everything(quiet=True, as_json=True, stderr=screen))) == JSON[-1:]
    assert list(map(without_time, report_everything(as_json=True, stderr=screen))) == JSON
    assert screen.getvalue() == ""


@pytest.mark.parametrize("as_json", [False, True])
def test_verbose_prints_details_on_stderr(as_json):
    for verbose, expected in ((False, ""), (True, "a detail\n")):
        stderr = io.StringIO()
        assert report_everything(as_json=as_json, verbose=verbose, stderr=stderr) == report_everything(as_json=as_json)
        assert stderr.getvalue() == expected


def test_only_text_that_is_not_quiet_shows_what_a_server_sends_as_it_is():
    shows = [Report(print, as_json=as_json, quiet=quiet).shows_text for as_json in (0, 1) for quiet in (0, 1)]
    assert shows == [True, False, False, False]


def test_progress_at_a_terminal_is_the_last_line_and_replaced_by_what_comes_next():
    screen = Screen()
    report = Report(lambda line: print(line, file=screen), stderr=screen)
    for text in ("10 %", "20 %"):
        report.draw(fitting(text))
    assert screen.lines == ["20 %"]
    report.event("reply", "a reply")
    assert screen.lines == ["a reply", ""]
    report.draw(fitting("a line that is longer than the terminal is wide " * 2))
    assert screen.lines == [
        "a reply",
        "a line that is longer than the terminal is wide a line that is longer than th",
    ]
    report.event("figures", rtt_us=1)
    report.summarize("the end")
    assert screen.lines == ["a reply", "the end", ""]
    drawn = screen.getvalue()
    report.event("reply", "another")
    assert screen.getvalue() == drawn + "another\n"


def test_progress_is_as_wide_as_the_terminal_that_it_is_drawn_on():
    fcntl = pytest.importorskip("fcntl", reason="this platform has no terminals")
    termios = pytest.importorskip("termios")
    master, slave = os.openpty()
    try:
        with open(slave, "w") as screen:
            report = Report(print, stderr=screen)
            for columns, clear in (
                (20, b"\r\x1b[K"),
                (40, b"\r\x1b[K"),
                (20, b"\r\x1b[1A\x1b[J"),
            ):  # 37 are two rows of 20
                fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
                report.draw(fitting("x" * 100))
                expected = clear + b"x" * (columns - 3)  # with room for ^C
                drawn = b""
                while len(drawn) < len(expected):
                    drawn += os.read(master, len(expected) - len(drawn))
                assert drawn == expected
    finally:
        os.close(master)


@pytest.mark.parametrize("kind", ["dumb", "unknown", "", None])
def test_progress_on_a_dumb_terminal_needs_no_escape_sequence(monkeypatch, kind):
    if kind is None:
        monkeypatch.delenv("TERM", raising=False)
    else:
        monkeypatch.setenv("TERM", kind)
    screen = Screen()
    report = Report(lambda line: print(line, file=screen), stderr=screen)
    report.draw(fitting("a long line"))
    report.draw(fitting("short"))
    report.event("reply", "a reply")
    clear = "\r" + " " * 79 + "\r"
    assert screen.getvalue() == f"{clear}a long line{clear}short{clear}a reply\n"


def test_a_detail_takes_the_progress_away():
    screen = Screen()
    report = Report(print, verbose=True, stderr=screen)
    report.draw(half)
    report.detail("a detail")
    assert screen.lines == ["a detail", ""]


def test_progress_is_not_drawn_where_stderr_is_not_a_terminal():
    stderr = io.StringIO()
    assert report_everything(stderr=stderr) == TEXT
    assert stderr.getvalue() == ""
    assert report_everything(stderr=None) == TEXT


def test_details_never_go_to_stdout(capsys):
    Report(print, verbose=True, stderr=None).detail("a detail")
    assert capsys.readouterr() == ("", "")
