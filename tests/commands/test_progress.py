"""The progress line of a load at a terminal: its text, and that it always fits."""

import random

import pytest

from echo.measure.distribution import Distribution
from echo.measure.progress import Progress


def plain(style, text):
    return text


def progress_of(*rates, duration=10.0, encoding="utf-8"):
    """The line after this number of intervals, with round trips of one millisecond."""
    progress = Progress(duration, encoding)
    for rate in rates:
        rtt = Distribution()
        for _ in range(1000):
            rtt.add(1_000_000)
        progress.add(rate, rtt)
    return progress


def test_it_has_a_bar_the_time_left_the_rate_the_round_trips_and_the_rates_so_far():
    line = progress_of(10_000, 40_000, 20_000).line(2.6, 0, 0, 77, plain)
    assert line == "━━━━───────────   7 s left   20,000/s  p50  1.00  p99  1.00 ms  ▃█▅"


def test_without_block_characters_it_is_drawn_with_signs():
    line = progress_of(10_000, 40_000, 20_000, encoding="ascii").line(2.6, 0, 0, 77, plain)
    assert line == "####-----------   7 s left   20,000/s  p50  1.00  p99  1.00 ms  :#="
    assert line.isascii()


def test_what_goes_wrong_is_in_it():
    line = progress_of(1).line(1.0, 1234, 5, 90, lambda style, text: f"<{style}>{text}</>")
    assert "  <bad>1,234 wrong, 5 lost</>  " in line
    assert line.startswith("<good>━━</><faint>────────────────</>  ")
    assert progress_of(1).line(1.0, 0, 5, 37, plain) == "╸──────   9 s left        1/s  5 lost"
    assert progress_of(1).line(1.0, 7, 0, 20, plain) == " 9 s left  7 wrong"


@pytest.mark.parametrize(
    "width, line",
    [
        (60, "━━━━━━──────   5 s left      100/s  p50  1.00  p99  1.00 ms"),
        (37, "━━━╸───   5 s left      100/s  █"),
        (20, " 5 s left      100/s"),
        (19, "━╸─   5 s left  █"),
        (0, ""),
    ],
)
def test_parts_that_do_not_fit_are_left_out(width, line):
    assert progress_of(100).line(5.0, 0, 0, width, plain) == line


def test_it_fits_whatever_the_figures_are():
    rng = random.Random(7)
    for _ in range(300):
        width = rng.randrange(200)
        progress = progress_of(
            *(10 ** rng.uniform(0, 8) for _ in range(rng.randrange(3))), duration=10 ** rng.uniform(0, 6)
        )
        line = progress.line(10 ** rng.uniform(-1, 6) - 1, rng.randrange(2) * 10**9, rng.randrange(10**6), width, plain)
        assert len(line) <= width and line.isprintable()


@pytest.mark.parametrize(
    "duration, elapsed, left",
    [
        (10, 0.0, "10 s left"),
        (10, 9.6, " 0 s left"),
        (10, 12.0, " 0 s left"),
        (90, 0.0, "1:30 left"),
        (3600, 1, "59:59"),
    ],
)
def test_the_time_left_is_seconds_minutes_or_hours(duration, elapsed, left):
    assert left in progress_of(duration=duration).line(elapsed, 0, 0, 80, plain)


def test_the_warm_up_has_no_rate_yet():
    assert progress_of().line(-0.5, 0, 0, 50, plain) == "──────────  warming up"


def test_rates_of_nothing_are_a_low_line():
    assert progress_of(0, 0).line(2, 0, 0, 77, plain).endswith("  ▁▁")
