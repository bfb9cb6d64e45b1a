"""Output made from summaries: pages, histogram files, comparisons, and several machines merged."""

import argparse
import html.parser
import json
import os
import re
import signal
import subprocess
import sys

import pytest

import echo
from echo.cli.client.results import summary as read_summary
from echo.measure.bench import PERCENTILES
from echo.measure.chart import LogScale, PercentileScale, Scale
from echo.measure.differences import differences, figures
from echo.measure.distribution import Distribution
from echo.measure.document import COLUMNS, Run, moment, moment_as_text
from echo.measure.histogram_file import percentile_file
from echo.measure.merging import merge
from echo.measure.page import page
from echo.measure.report import Report
from echo.measure.series import POINTS, Series
from support import DEADLINE, ROOT
from support.client import call_client
from support.measuring import arguments_for, echo_of, is_one_complaint, posix, run_client
from support.simulation import DropsEachFifth, FlipsAByteOfEachThird, simulate_bench, simulate_ping

SECOND = 10**9


def summary_of(simulation):
    return json.loads(simulation.text.splitlines()[-1])


def bench(**options):
    """The summary of a bench that was simulated."""
    return summary_of(simulate_bench(as_json=True, quiet=True, **options))


def ping(**options):
    return summary_of(simulate_ping(as_json=True, quiet=True, **options))


def later(fields, seconds):
    """The same summary, as of a run that began later."""
    return {**fields, "began": moment_as_text(moment(fields["began"]) + seconds)}


def merged(*summaries):
    """The JSON summary and the text of several merged summaries."""
    load = merge([Run.of(f"{place}.json", fields) for place, fields in enumerate(summaries)])
    lines, texts = [], []
    load.report(Report(lines.append, as_json=True), PERCENTILES)
    load.report(Report(texts.append), PERCENTILES)
    return json.loads(lines[0]), texts[0]


@pytest.fixture
def save(tmp_path):
    """``save(name, summary)``: a file as ``--json`` writes it, with events before the summary."""

    def save(name, fields):
        path = tmp_path / name
        path.write_text(json.dumps({"event": "start"}) + "\n" + json.dumps(fields) + "\n")
        return str(path)

    return save


# Time series.


def test_a_series_is_bounded_and_loses_nothing():
    series = Series(SECOND)
    for second in range(10 * POINTS):
        series.at(second * SECOND).add(3, 1, 2, Distribution())
    columns = series.as_columns(10 * POINTS * SECOND)
    assert POINTS / 2 <= len(columns["from_s"]) <= POINTS
    assert [sum(columns[name]) for name in ("messages", "lost", "wrong")] == [30 * POINTS, 10 * POINTS, 20 * POINTS]
    assert columns["from_s"][1:] == columns["to_s"][:-1]
    assert set(columns["messages_per_s"]) == {3.0}


def test_a_long_pause_needs_no_points():
    series = Series(SECOND)
    for moment_ in (0, 10**6 * SECOND, 10**9 * SECOND):
        series.at(moment_).messages += 1
    assert len(series.as_columns(10**9 * SECOND + 1)["from_s"]) == 3


@pytest.mark.parametrize("interval", [None, 0.1, 0.25, 1.0])
def test_a_bench_records_its_time_whether_or_not_it_prints_intervals(interval):
    simulation = simulate_bench(as_json=True, rate=50, duration=3.0, interval=interval)
    summary = summary_of(simulation)
    series = summary["series"]
    assert sum(series["messages"]) == summary["messages"]
    assert (series["from_s"][0], series["to_s"][-1]) == (0.0, 3.0)
    assert series["from_s"][1:] == series["to_s"][:-1]
    assert len(series["from_s"]) >= 10
    assert min(series["max_us"]) >= 1000.0
    if interval is not None:
        events = [json.loads(line) for line in simulation.text.splitlines()]
        printed = [event["messages"] for event in events if event["event"] == "interval"]
        assert len(printed) == 3 / interval
        assert sum(printed) == summary["messages"]


def test_a_ping_records_replies_losses_and_damage():
    summary = ping(service=DropsEachFifth, count=10, interval=1.0, timeout=0.5)
    assert sum(summary["series"]["messages"]) == summary["received"] == 8
    assert sum(summary["series"]["lost"]) == summary["lost"] == 2
    assert sum(ping(service=FlipsAByteOfEachThird, count=9)["series"]["wrong"]) == 3


# Distributions that merge.


def test_a_distribution_survives_json():
    times = Distribution()
    for sample in (0, 1, 2047, 2048, 2049, 123_456_789, 123_456_790, 3_600 * SECOND):
        times.add(sample)
    again = Distribution.from_json(json.loads(json.dumps(times.as_json())))
    assert vars(again) == vars(times)
    again.merge(Distribution.from_json(Distribution().as_json()))
    assert vars(again) == vars(times)


@pytest.mark.parametrize(
    "change",
    [
        {"count": 4},
        {"count": True},
        {"min_ns": 2_000_000},
        {"max_ns": None},
        {"sum_ns": 1},
        {"sum_of_squares_ns2": 1},
        {"buckets": [[1000, 3], [1000, 1]]},
        {"buckets": [[1000, 3.0]]},
        {"buckets": [[999_999_999, 3]]},
        {"buckets": [[1000, -3]]},
        {"buckets": [1000, 3]},
        {"buckets": "1"},
        {"buckets": []},
        {"buckets": None},
    ],
    ids=str,
)
def test_a_distribution_that_contradicts_itself_is_rejected(change):
    times = Distribution()
    for _ in range(3):
        times.add(1000)
    with pytest.raises(ValueError, match=r"contradict|expected count"):
        Distribution.from_json({**times.as_json(), **change})


# Merging.


@pytest.mark.parametrize("options", [{}, {"rate": 100}, {"service": DropsEachFifth, "timeout": 0.05}], ids=str)
def test_the_merge_of_one_summary_is_that_summary(options):
    fields = bench(**options)
    again, text = merged(fields)
    del fields["time"], again["time"]
    assert again == fields
    assert text == simulate_bench(quiet=True, **options).text.rstrip("\n")


def test_counts_and_distributions_of_machines_add_up():
    first, second = bench(rate=100, duration=1.0), bench(rate=200, duration=1.0, service=DropsEachFifth, timeout=0.1)
    both, text = merged(first, second)
    for name in ("messages", "due", "came", "lost", "never_sent", "on_the_way", "connections", "rate_per_s"):
        assert both[name] == first[name] + second[name], name
    assert both["due"] == both["came"] + both["lost"] + both["never_sent"] + both["on_the_way"]
    expected = Distribution.from_json(first["raw_distribution"])
    expected.merge(Distribution.from_json(second["raw_distribution"]))
    assert vars(Distribution.from_json(both["raw_distribution"])) == vars(expected)
    assert both["errors"] == second["errors"] != {}
    assert [run["name"] for run in both["runs"]] == ["0.json", "1.json"]
    assert "\nruns        2, all at the same time for 1 of 1 s\n" in text
    assert sum(both["series"]["messages"]) == pytest.approx(both["messages"], abs=5)
    assert set(both["series"]["p99_us"]) == {None}


@pytest.mark.parametrize(
    "delay, duration, overlap, doubted", [(0.0, 1.0, 1.0, False), (0.5, 1.5, 0.5, True), (5.0, 2.0, 0.0, True)]
)
def test_the_rate_of_a_merge_is_about_the_time_in_which_any_run_ran(delay, duration, overlap, doubted):
    fields = bench(duration=1.0)
    both, text = merged(fields, later({**fields, "time": "another"}, delay))
    assert (both["duration_s"], both["overlap_s"]) == (duration, overlap)
    assert both["messages_per_s"] == pytest.approx(2 * fields["messages"] / duration, abs=0.06)
    assert ("the runs overlapped for less than 90% of the time" in text) == doubted
    assert both["series"]["to_s"][-1] == pytest.approx(1.0 + delay)


def test_summaries_that_are_not_of_one_load_are_not_merged():
    fields = bench()
    for other, why in (
        (bench(size=100), "1.json has 100; merge runs of one load"),
        (bench(depth=3), "0.json has depth 1, 1.json has 3"),
        (bench(rate=50, depth=1), "closed loop"),
        (ping(), "only those of --bench"),
        (fields, "1.json has a run that was given before"),
        ({**fields, "due": "5"}, "1.json lacks figures"),
        ({**fields, "duration_s": 10**400}, "1.json lacks figures"),
        ({**fields, "came": fields["due"] + 1}, "1.json lacks figures"),
        ({**fields, "wrong": {"ugly": 1}}, "1.json lacks figures"),
        ({**fields, "wrong": []}, "1.json lacks figures"),
        ({**fields, "duration_s": float("nan")}, "1.json lacks figures"),
    ):
        with pytest.raises(ValueError, match=re.escape(why)):
            merged(fields, other)


def test_merge_on_the_command_line_prints_one_summary(save):
    fields = bench(duration=1.0)
    paths = [save("a.json", fields), save("b.json", later(fields, 0.1))]
    code, out, err = run_client("--merge", *paths)
    assert (code, err) == (0, "")
    assert out.startswith(f"messages    {2 * fields['messages']:,} in 1.1 s")
    code, out, _ = run_client("--merge", *paths, "-J", "--fail-if", "rate < 1000000/s")
    assert code == 4
    assert json.loads(out)["failures"]
    code, out, _ = run_client("--merge", *paths, "-J")
    code, again, _ = run_client("--merge", save("ab.json", json.loads(out)), "-J")
    assert json.loads(again)["rtt_distribution"] == json.loads(out)["rtt_distribution"]


# The file of HdrHistogram.


def parse_percentile_file(text):
    """Read it strictly; return the rows and the figures below them."""
    lines = text.split("\n")
    assert lines[0] == "       Value     Percentile TotalCount 1/(1-Percentile)"
    assert lines[1] == "" and lines[-1] == ""
    last = next(place for place, line in enumerate(lines) if line.startswith("#"))
    rows = []
    for line in lines[2:last]:
        match = re.fullmatch(r" *(\d+\.\d{6}) ([01]\.\d{12}) +(\d+)(?: +(\d+\.\d{2}))?", line)
        assert match, line
        rows.append((float(match.group(1)), float(match.group(2)), int(match.group(3)), match.group(4)))
    footer = re.fullmatch(
        r"#\[Mean    = +([\d.]+), StdDeviation   = +([\d.]+)\]\n"
        r"#\[Max     = +([\d.]+), Total count    = +(\d+)\]\n"
        r"#\[Buckets = +(\d+), SubBuckets     = +(\d+)\]\n",
        "\n".join(lines[last:]),
    )
    assert footer, lines[last:]
    return rows, [float(figure) for figure in footer.groups()]


def test_the_percentile_file_says_what_the_distribution_says():
    times = Distribution()
    for sample in range(1, 10_001):
        times.add(sample * 1000)
    rows, (mean, deviation, greatest, count, _, sub_buckets) = parse_percentile_file(percentile_file(times))
    assert (mean, greatest, count, sub_buckets) == (times.mean / 1e6, 10.0, 10_000, 2048)
    assert deviation == pytest.approx(times.deviation / 1e6, abs=1e-6)
    assert rows == sorted(rows, key=lambda row: row[:3])
    assert rows[-1] == (10.0, 1.0, 10_000, None)
    for value, share, samples, inverse in rows[:-1]:
        assert float(inverse) == pytest.approx(1 / (1 - share), abs=0.006)
        assert samples >= share * 10_000 - 1e-6
        assert value == pytest.approx(max(0.001, 10 * share), rel=0.001, abs=0.0011)
    shares = [row[1] for row in rows]
    assert {0.0, 0.5, 0.75, 0.9375} <= set(shares)
    assert len(rows) > 40


@pytest.mark.parametrize("samples", [[], [0], [5, 5], [7 * SECOND] * 3], ids=str)
def test_the_percentile_file_of_few_samples(samples):
    times = Distribution()
    for sample in samples:
        times.add(sample)
    rows, (_, _, greatest, count, _, _) = parse_percentile_file(percentile_file(times))
    assert count == len(samples)
    assert [row[0] for row in rows[-1:]] == [greatest] * bool(samples)


# Comparisons.


def test_a_comparison_says_by_how_much_the_new_run_differs():
    old, new = bench(), bench(service=DropsEachFifth, timeout=0.05)
    text = differences([Run.of("this run", new), Run.of("some/old.json", old)])
    rows = {line[:12].strip(): line[12:].split() for line in text.splitlines()}
    assert rows["compared"] == ["this", "run", "old.json", "change"]
    change = 100 * (new["messages_per_s"] / old["messages_per_s"] - 1)
    assert rows["messages/s"][2:] == [f"{change:+.1f}", "%"]
    assert rows["loss, %"][1:] == ["0", "-"]


def test_a_comparison_of_runs_with_different_loads_says_so():
    fields = bench()
    same = differences([Run.of("new", fields), Run.of("old", bench(service=DropsEachFifth, timeout=0.05))])
    assert "not the same load" not in same
    other = {**fields, "rate_per_s": 7, "reconnect": True}
    text = differences([Run.of("new", fields), Run.of("old", other)])
    assert text.startswith("\nnot the same load: rate_per_s, reconnect\ncompared ")


def test_a_comparison_and_a_page_name_the_runs_in_which_the_client_was_the_bottleneck():
    fields = bench()
    late = {**fields, "client_is_bottleneck": True, "client_busy_percent": 1.0, "client_late": 828}
    runs = [Run.of("new", late), Run.of("old", {**late, "client_busy_percent": 97.0}), Run.of("good", fields)]
    doubts = [
        "new: the client was late itself: its machine is busy with other work; the latencies contain its delays",
        "old: the client was the bottleneck: it had no processor time to spare; the server may be faster",
    ]
    assert differences(runs).splitlines()[-2:] == doubts
    texts = Reader(page(runs[0], runs[1:])).texts
    assert set(doubts) <= set(texts)
    row = texts[texts.index("messages that the client sent late") + 1 :]
    assert [text for text in row if text.strip()][:3] == ["828", "828", "0"]
    assert "client was" not in differences(runs[2:])


def test_a_json_summary_with_doubtful_figures_has_the_warning_on_stderr(save):
    late = save("before.json", {**bench(), "client_late": 828})
    code, out, err = run_client("--merge", late, "-J", "-q")
    assert code == 0 and json.loads(out)["client_is_bottleneck"] is True
    assert is_one_complaint(err, "warning: 192.0.2.1:7: the client was late itself")
    assert run_client("--merge", late, "-q")[2] == ""  # it is a row of the text
    apart = save("much later.json", later(bench(), 100))
    assert is_one_complaint(run_client("--merge", save("a.json", bench()), apart, "-J")[2], ": the runs overlapped")
    assert run_client("--merge", apart, "-J")[2] == ""


def test_a_merge_names_the_machine_whose_client_was_the_bottleneck(save):
    many = save("many.json", bench(duration=2.0))
    busy = save("busy.json", {**bench(), "client_is_bottleneck": True, "client_busy_percent": 100.0})
    for options in ([], ["-J"]):
        code, _, err = run_client("--merge", many, busy, "-q", *options)
        assert code == 0
        assert "echo.client: warning: busy.json: the client was the bottleneck" in err
        assert "many.json" not in err


def test_a_percentile_that_few_points_have_is_not_drawn():
    fields = bench(duration=2.0)
    points = len(fields["series"]["p99_us"])
    for known, drawn in ((points, True), (points // 3, False), (0, False)):
        fields["series"]["p99_us"] = [1000.0] * known + [None] * (points - known)
        text = page(Run.of("new", fields), [Run.of("old", fields)])
        assert ("p99 over time" in text) is drawn
        assert "max over time" in text


def test_a_short_comparison_comes_before_the_charts_and_all_figures_after_them():
    run = Run.of("new", bench())
    headings = re.findall("<h2>(.*?)</h2>", page(run, [run._replace(name="old")]))
    assert headings.index("Comparison") < headings.index("Throughput over time") < headings.index("Figures")
    assert "Comparison" not in page(run)


def test_a_ping_is_not_compared_with_a_bench(save, tmp_path):
    for option, other in (("--ping", bench()), ("--bench", ping())):
        code, out, err = run_client("127.0.0.1", "1", option, "--compare", save("old.json", other))
        assert (code, out) == (2, "")
        assert is_one_complaint(err, f"cannot compare a {option[2:]} with", "old.json", f"that is a {other['mode']}")


def test_a_run_that_is_merged_alone_keeps_the_name_of_its_file(save):
    code, out, _ = run_client("--merge", save("after.json", bench()), "--compare", save("before.json", bench()))
    assert code == 0 and re.search(r"^compared +after\.json +before\.json +change$", out, re.MULTILINE)


def test_figures_that_a_run_does_not_have_are_left_open():
    found = {figure.name: figure for figure in figures([Run.of("a", ping()), Run.of("b", bench())])}
    assert (found["messages/s"].cell(0), found["messages/s"].change(1)) == ("-", "")
    assert found["received"].cell(1) == "-"
    assert "outages" in found and "raw min, ms" not in found


# The page.


class Reader(html.parser.HTMLParser):
    """Reads a page strictly: each element ends where it must."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.tags, self.attributes = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def is_self_contained(text):
    """Check that a page loads nothing and runs nothing, and that each number in its drawings is valid."""
    found = Reader(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "image", "use"} & set(found.tags)
    assert not {"src", "href", "xlink:href", "srcset", "style"} & {name for name, _ in found.attributes}
    assert not any(name.startswith("on") for name, _ in found.attributes)
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert not re.search(r"url\(|@import|//", style)
    for name, value in found.attributes:
        if name in ("d", "x", "y", "width", "height"):
            assert not re.search("nan|inf", value), (name, value)
    return found


PAGES = {
    "bench": lambda: page(Run.of("this run", bench(duration=2.0))),
    "open loop": lambda: page(Run.of("this run", bench(rate=100))),
    "ping": lambda: page(Run.of("this run", ping(count=5))),
    "lossy": lambda: page(Run.of("this run", ping(service=DropsEachFifth, count=10, timeout=0.05))),
    "nothing came": lambda: page(Run.of("this run", ping(service=DropsEachFifth, count=0))),
    "compared": lambda: page(Run.of("this run", bench()), [Run.of("a/x", ping()), Run.of("b/x", bench(rate=50))]),
    "merged": lambda: page(
        Run.of("all", merged(bench(), later(bench(), 0.1))[0]), [], [Run.of("a", bench()), Run.of("b", bench())]
    ),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_complete_in_itself(name):
    text = PAGES[name]()
    found = is_self_contained(text)
    assert not re.search("https?:", text)
    assert found.tags.count("table") == 2 + (name == "compared")
    if name != "nothing came":
        assert "Round trips by percentile" in found.texts
        assert "Histogram of round trips" in found.texts


def test_a_page_shows_the_figures_of_the_summary():
    fields = bench(rate=100, duration=1.0)
    texts = Reader(page(Run.of("this run", fields))).texts
    for text in (
        "100",
        "1.00",
        "corrected, from when it was due",
        "raw, from the send",
        "Throughput over time",
        fields["began"],
    ):
        assert text in texts, text
    assert fields["environment"]["python"] in texts


def test_a_page_shows_how_connections_were_used_and_how_long_outages_were():
    fields = {**bench(), "reconnect": True, "new_connection": False, "outages": 2, "outages_s": 1.5342}
    texts = Reader(page(Run.of("this run", fields))).texts
    for name, value in (
        ("a connection for each message", "no"),
        ("lost connections opened again", "yes"),
        ("outages", "2"),
        ("outages, s", "1.534"),
    ):
        assert texts[texts.index(name) + 1 :][:3].count(value), name


def test_text_from_outside_is_escaped():
    evil = '</title><script src="http://evil/x.js">alert(1)</script>\x1b[31m\n"\'&'
    fields = {**bench(), "address": evil, "failures": [evil, None], "environment": {"python": evil, "system": [evil]}}
    text = page(Run.of(evil, fields), [Run.of(evil + "2", {**fields, "rate_per_s": evil})])
    is_self_contained(text)
    assert "\x1b" not in text
    assert "<script" not in text
    assert "&lt;script" in text


@pytest.mark.parametrize(
    "scale, labels",
    [
        (Scale(0, 11), ["0", "2", "4", "6", "8", "10", "12"]),
        (Scale(0, 0), ["0.0", "0.2"]),
        (Scale(0, 23_456), ["0", "5,000", "10,000", "15,000", "20,000", "25,000"]),
        (Scale(0.0, 4.2, parts=10, round_up=False), [f"{half / 2:.1f}" for half in range(9)]),
        (LogScale(30, 400, 10, "{:g}".format), ["20", "50", "100", "200", "500"]),
        (LogScale(30, 30, 10, "{:g}".format), ["20", "50"]),
        (LogScale(1, 1e6, 10, "{:g}".format), [f"{10**power:g}" for power in range(7)]),
        (PercentileScale(20_000), ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"]),
    ],
)
def test_scales_have_round_labels_and_hold_their_values(scale, labels):
    assert [label for _, label in scale.ticks if label][: len(labels)] == labels
    places = [scale.place(value) for value, _ in scale.ticks]
    assert places == sorted(places)
    assert 0 <= places[0] and places[-1] <= 1.0000001


# The command line.


def test_a_ping_writes_its_page_and_its_histogram(serve, tmp_path):
    report, hgrm = tmp_path / "report.html", tmp_path / "times.hgrm"
    report.write_text("x" * 1_000_000)  # an older file, which is longer
    server = serve(echo_of("line"))
    code, out, err = run_client(
        *arguments_for(server), "--ping", "-c", 3, "-i", 0, "-J", "-q", "--report", report, "--hdr", hgrm
    )
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert is_self_contained(report.read_text(encoding="utf-8"))
    rows, figures_below = parse_percentile_file(hgrm.read_text())
    assert rows[-1][2] == figures_below[3] == summary["received"] == 3
    assert summary["environment"]["processors"] >= 1


WATCHES_IMPORTS = """\
import sys

begun, late = False, []


def watch(event, arguments):
    global begun
    begun = begun or event == "socket.connect"
    if begun and event == "import" and arguments[0].startswith(("echo.", "platform")):
        late.append(arguments[0])


sys.addaudithook(watch)
from echo.cli.client.command import main

code = main()
sys.exit(f"imported during the run: {late}" if late or not begun else code)
"""


def test_a_run_imports_nothing_later_so_that_an_upgrade_in_the_meantime_costs_no_results(serve, save, tmp_path):
    options = ["--ping", "-c", "1", "--compare", save("before.json", ping())]
    options += ["--report", str(tmp_path / "report.html"), "--hdr", str(tmp_path / "times.hgrm"), "--histogram"]
    command = [sys.executable, "-c", WATCHES_IMPORTS, *arguments_for(serve(echo_of("line"))), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, b"")


@posix
def test_a_run_that_is_interrupted_writes_its_page(serve, tmp_path):
    once = iter([signal.SIGINT])  # a second one might come after the run, and end the tests

    class Interrupts(echo.EchoRequestHandler):
        def message_received(self, message):
            self.send(message)
            for number in once:
                os.kill(os.getpid(), number)

    report = tmp_path / "report.html"
    code, out, _ = run_client(*arguments_for(serve(Interrupts)), "--ping", "-i", "1ms", "--report", report)
    assert code in (0, 1)  # 1: before the first reply was read
    assert "echo statistics" in out
    assert "Ping of " in report.read_text(encoding="utf-8")


def test_a_file_that_cannot_be_written_is_reported_before_the_run(tmp_path):
    nowhere = ("127.0.0.1", "1", "--ping")
    for path in (tmp_path, tmp_path / "no" / "x.html"):
        code, out, err = run_client(*nowhere, "--report", path)
        assert (code, out) == (2, "")
        assert is_one_complaint(err, "cannot write", str(path), "give another path")
    new = tmp_path / "new.html"
    code, _, err = run_client(*nowhere, "--report", new, "--hdr", tmp_path)
    assert code == 2 and not new.exists()
    code, _, err = run_client(*nowhere, "--report", new, "--hdr", new)
    assert code == 2 and not new.exists() and is_one_complaint(err, "--report has the same file")


@posix
def test_a_report_never_replaces_a_file_that_the_command_reads_or_prints_to(save, tmp_path):
    run = save("run.json", bench())
    link, printed = tmp_path / "link", tmp_path / "printed"
    os.link(run, link)
    printed.write_text("before\n")
    nowhere = ("127.0.0.1", "1", "--bench", "-d", "1")
    for option, path in (("--report", run), ("--hdr", link)):
        for other, arguments in (("--compare", nowhere), ("--merge", ())):
            code, out, err = run_client(*arguments, other, run, option, path)
            assert (code, out) == (2, "")
            assert is_one_complaint(err, "cannot write", f"{other} has the same file; give another path")
        with open(printed, "a") as out:
            done = call_client(*nowhere, option, printed, stdout=out)
        assert done.code == 2
        assert is_one_complaint(done.log, "standard output has the same file")
    with open(run) as lines:
        assert Run.read(run, lines).mode == "bench"
    assert printed.read_text() == "before\n"


def test_reports_that_nobody_wants_may_go_to_the_null_device(save):
    run = save("run.json", bench())
    assert run_client("--merge", run, "-q", "--report", os.devnull, "--hdr", os.devnull)[0] == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("full", ["--report", "standard output", "both"])
def test_an_output_that_cannot_be_written_costs_no_other(save, tmp_path, full):
    new = tmp_path / "times.hgrm"
    report = os.devnull if full == "standard output" else "/dev/full"
    with open(os.devnull if full == "--report" else "/dev/full", "w") as out:
        done = call_client("--merge", save("run.json", bench()), "--report", report, "--hdr", new, stdout=out)
    assert done.code == 1
    named = "standard output" if full == "standard output" else "'/dev/full'"
    assert is_one_complaint(done.log, f"cannot write {named}: No space left on device")
    assert parse_percentile_file(new.read_text())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve room in a file")
def test_a_file_for_which_there_is_no_room_keeps_what_was_in_it(save, tmp_path):
    """Row 41: the page of the last good run was lost, and half of the new one was in its place."""
    limit = tmp_path / "limit.py"
    limit.write_text(
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "sys.argv[:2] = sys.argv[1:2]\n"
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
    )
    run = save("run.json", bench())
    for path in (tmp_path / "page.html", tmp_path / "new.html"):
        old = "old" * 1000 if path.name == "page.html" else None
        if old is not None:
            path.write_text(old)
        done = subprocess.run(
            [sys.executable, "-B", str(limit), "echo.client", "--merge", str(run), "-q", "--report", str(path)],
            stderr=subprocess.PIPE,
            timeout=DEADLINE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert (done.returncode, done.stderr.decode()) == (1, f"echo.client: cannot write '{path}': File too large\n")
        assert (path.read_text() if path.exists() else None) == old
    assert run_client("--merge", run, "-q", "--report", tmp_path / "page.html")[0] == 0
    assert "old" * 10 not in (tmp_path / "page.html").read_text()


def test_a_run_that_could_not_begin_leaves_no_empty_file(tmp_path):
    new, old = tmp_path / "new.html", tmp_path / "old.hgrm"
    old.write_text("old")
    code, _, err = run_client("two..dots", "--ping", "--report", new, "--hdr", old)
    assert is_one_complaint(err, "invalid host name")
    assert code == 1
    assert not new.exists()
    assert old.read_text() == "old"


def test_a_summary_may_begin_with_a_byte_order_mark(tmp_path):
    """Row 78."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps(ping()), encoding="utf-8-sig")
    assert read_summary(str(path)).mode == "ping"


@pytest.mark.parametrize(
    "content, why",
    [
        ("", "not a summary"),
        ("hello\n", "not a summary"),
        ('{"event": "start"}\n', "not a summary"),
        ("[" * 100_000, "not a summary"),
        ('{"event": "summary", "error": "refused"}', "that measurement failed"),
        ('{"event": "summary", "messages": 5}', "no distribution"),
        ('{"event": "summary", "mode": "bench", "rtt_distribution": 5}', "invalid rtt_distribution"),
        ("\0\xff\n", "not a summary"),
    ],
    ids=range(8),
)
def test_a_file_that_is_not_a_summary_is_a_usage_error(tmp_path, content, why):
    path = tmp_path / "x.json"
    path.write_text(content, encoding="latin-1")
    for option in ("--merge", "--compare"):
        code, out, err = run_client("--bench" if option == "--compare" else "-J", option, path)
        assert (code, out) == (2, "")
        assert is_one_complaint(err, option, str(path), why)


@pytest.mark.parametrize(
    "change",
    [
        {"series": None},
        {"series": {}},
        {"series": {name: [1, 2] for name in COLUMNS}, "began": "today"},
        {"series": {**{name: [1, 2] for name in COLUMNS}, "lost": [1, 10**400]}},
        {"series": {**{name: [1, 2] for name in COLUMNS}, "lost": [1]}},
        {"series": {**{name: [1, 2] for name in COLUMNS}, "lost": [1, "2"]}},
        {"series": {**{name: [1, 2] for name in COLUMNS}, "lost": [1, float("nan")]}},
        {"series": {**{name: [2, 2] for name in COLUMNS}, "from_s": [3, 1]}},
        {"series": {**{name: [2, 2] for name in COLUMNS}, "to_s": [None, 2]}},
        {"began": None},
    ],
    ids=range(10),
)
def test_a_summary_whose_parts_are_invalid_is_rejected(save, change):
    with pytest.raises(argparse.ArgumentTypeError, match=r"invalid (series|began)"):
        read_summary(save("x.json", {**ping(), **change}))


def test_wrong_uses_of_the_options_are_usage_errors(save, tmp_path):
    good = save("good.json", bench())
    for arguments, words in (
        (("--merge", good, "--ping"), ["--merge", "not allowed with"]),
        (("--unix", "/tmp/x", "--merge", good), ["--merge connects to no server"]),
        (("127.0.0.1", "--merge", good), ["--merge connects to no server"]),
        (("--report", "x.html"), ["--report needs"]),
        (("--ping", "--compare", *[good] * 6), ["too many", "maximum is 5"]),
        (("--ping", "--compare", good, "127.0.0.1"), ["give host and port before this option"]),
        (("--merge", good, "--fail-if", "received < 5"), ["only --ping"]),
    ):
        code, out, err = run_client(*arguments)
        assert (code, out) == (2, ""), arguments
        assert is_one_complaint(err, *words)


def test_a_page_compares_with_files_and_standard_output_has_the_table(serve, save, tmp_path):
    server = serve(echo_of("line"))
    report = tmp_path / "report.html"
    old = [save("monday.json", ping()), save("tuesday.json", ping(count=3))]
    code, out, _ = run_client(*arguments_for(server), "--ping", "-c", 3, "-i", 0, "--compare", *old, "--report", report)
    assert code == 0
    assert re.search(r"^compared +this run +monday\.json +change +tuesday\.json +change$", out, re.MULTILINE)
    texts = is_self_contained(report.read_text(encoding="utf-8")).texts
    assert {"this run", "monday.json", "tuesday.json"} <= set(texts)


# A real browser.


@pytest.fixture
def browse(tmp_path):
    """``browse(page)``: load a page; return its document, the browser's complaints, and its requests.

    The browser cannot look up any host, so its own requests fail, too.
    """

    def browse(text):
        path, log = tmp_path / "page.html", tmp_path / "net.json"
        path.write_text(text, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        options += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={tmp_path / 'user'}"]
        options += [f"--log-net-log={log}", "--enable-logging=stderr", "--virtual-time-budget=1000", "--dump-dom"]
        done = subprocess.run(
            ["chromium", *options, path.as_uri()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=DEADLINE,
            check=True,
        )
        complaints = [line for line in done.stderr.decode().splitlines() if "CONSOLE" in line]
        requests = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
        asked = {each["url"] for each in requests if each.get("initiator", "not an origin") != "not an origin"}
        return done.stdout.decode(), complaints, asked - {path.as_uri()}

    return browse


@pytest.mark.needs_programs("chromium")
@pytest.mark.parametrize("name", ["lossy", "compared"])
def test_a_browser_shows_the_page_without_errors_and_asks_for_nothing(browse, name):
    text = PAGES[name]()
    document, complaints, asked = browse(text)
    assert document.count("<svg") == text.count("<svg") > 0
    assert (complaints, asked) == ([], set())


@pytest.mark.needs_programs("chromium")
def test_the_browser_would_notice_what_a_page_asks_for_and_its_errors(browse):
    image = "http://127.0.0.1:9/x.png"
    assert browse(f"<!DOCTYPE html><img src='{image}'>")[2] == {image}
    assert browse("<!DOCTYPE html><script>nothing()</script>")[1]
    complaints, asked = browse(PAGES["ping"]().replace("<footer>", f"<img src='{image}'><footer>"))[1:]
    assert complaints and not asked  # the page forbids it
