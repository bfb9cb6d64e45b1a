"""README and the other texts about the project are correct."""

import glob
import os
import re

import pytest

from support import ROOT, TESTS

TEST_FILES = {os.path.basename(path): path for path in glob.glob(os.path.join(TESTS, "*", "test_*.py"))}


def read(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as file:
        return file.read()


def test_each_row_of_what_goes_wrong_names_tests_that_exist():
    tests = set()
    for path in TEST_FILES.values():
        tests |= set(re.findall(r"^def (test_\w+)", read(path), re.MULTILINE))
    rows = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", read("tests", "README.md"), re.MULTILINE)
    numbers = [int(number) for number, _ in rows]
    assert numbers[:40] == list(range(1, 41)) and numbers == sorted(set(numbers))
    for number, cell in rows:
        named = re.findall(r"`(test_\w+)`", cell)
        assert named, f"row {number} names no test"
        assert set(named) <= tests, f"row {number} names {set(named) - tests}"


def test_each_test_file_is_described():
    described = set(re.findall(r"`(test_\w+\.py)`", read("tests", "README.md")))
    assert described == set(TEST_FILES)


def test_readme_is_short():
    """Everything else is in docs/."""
    assert len(read("README.md").splitlines()) <= 180


# README's figures; test_pages.py runs all else in it.


def masked(text, *figures):
    """The lines with an asterisk for each of these figures, however wide."""
    return re.sub(rf" *({'|'.join(figures)})", " *", text)


def console_blocks():
    return re.findall(r"^```console\n(.*?)^```$", read("README.md"), re.MULTILINE | re.DOTALL)


def measured(command, address, run, *options):
    """The lines that README shows for this command, and those that it prints here, with further options."""
    (block,) = [block for block in console_blocks() if block.startswith(f"$ {command}\n")]
    arguments = command.split()[2:]
    process = run(arguments[0], *map(str, address), *arguments[1:], *options)
    code, out = process.finish()
    assert (code, process.log) == (0, "")
    return block.partition("\n")[2], out.decode()


def figures_after(pattern, text):
    """The values between the slashes in the one line that begins like this."""
    (found,) = re.findall(rf"^{pattern} ([\d./]+) ms$", text, re.MULTILINE)
    return [float(figure) for figure in found.split("/")]


def test_the_ping_in_readme_looks_like_that(server_command, run):
    shown, told = measured("python3 -m echo.client --ping -c 3", server_command().address, run, "-i", "20ms")
    figures = (r"127\.0\.0\.1:\d+", r"time \d+ ms", r"[\d.]+(/[\d.]+){3} ms", r"[\d.]+ ms")
    assert masked(told, *figures) == masked(shown, *figures)
    for text in (shown, told):
        times = [float(time) for time in re.findall(r" time=(\S+) ms", text)]
        least, mean, greatest, deviation = figures_after("rtt min/avg/max/mdev =", text)
        assert (least, greatest) == (min(times), max(times))
        assert mean == pytest.approx(sum(times) / 3, rel=0.01)
        assert 0 <= deviation < greatest
        assert figures_after("rtt p50 =", text) == pytest.approx([sorted(times)[1]], rel=0.01)
        assert figures_after("connect", text) == figures_after("ECHO .* connected in", text)


@pytest.mark.slow
def test_the_bench_in_readme_looks_like_that(server_command, run):
    server = server_command("--no-log-messages")
    shown, told = measured("python3 -m echo.client --bench --rate 5000 -d 2", server.address, run)
    client = re.compile(r"^client +\d+% of a processor in each process(, .* ms at most)?\n", re.MULTILINE)
    assert client.search(shown) and client.search(told)
    told = re.sub(r"^warning .*\n", "", told, flags=re.MULTILINE)  # on a busy machine
    shown, told = client.sub("", shown), client.sub("", told)
    unsent = re.search(r"^never sent +([\d,]+), .*\n", told, re.MULTILINE)
    if unsent:  # on a busy machine, where there may be too few samples for a percentile, too
        told = told.replace(unsent[0], "").replace(" - ", " 0.1 ")
        told = re.sub(r"^(due .*) [\d,]+ never sent", r"\1 0 never sent", told, flags=re.MULTILINE)
    figures = (r"127\.0\.0\.1:\d+", r"[\d.]+ s\b", r"[\d,]+/s\b", r"[\d.]+ MB/s", r"[\d.]+(/[\d.]+){2} ms")
    figures += (r"\d+\.\d+(?= )", r"(?<=  )\d\d+(?= )", r"\d+,\d+")
    assert masked(told, *figures) == masked(shown, *figures)
    for text, lacking in ((shown, 0), (told, number(unsent[1]) if unsent else 0)):
        assert " 5000 messages/s, 2 s\n" in text
        (row,) = re.findall(r"^messages +([\d,]+) in 2 s, ([\d,]+)/s, (\S+) MB/s$", text, re.MULTILINE)
        messages, rate, volume = map(number, row)
        assert rate == pytest.approx(messages / 2, abs=1)
        assert volume == pytest.approx(rate * 64 / 1e6, abs=0.01)
        assert figures_after("connect +min/avg/max", text) == sorted(figures_after("connect +min/avg/max", text))
        titles, *rows = text.splitlines()[-3:]
        for row in rows:
            assert len(row) == len(titles)
            *times, samples = map(number, row.split()[1:])
            assert unsent or times == sorted(times)
            assert samples + lacking == pytest.approx(10_000, abs=10)  # one for each connection
        corrected, raw = (list(map(number, row.split()[1:-1])) for row in rows)
        assert all(ours >= theirs for ours, theirs in zip(corrected, raw))  # by the wait for its turn


def number(text):
    return float(text.replace(",", ""))
