"""Conditions on the figures of a summary: how they are parsed, and when they hold."""

import pytest

from echo.measure.conditions import Condition
from support.measuring import arguments_for, events, is_one_complaint, run_client
from support.simulation import DropsEachFifth, NeverAnswers, simulate_bench, simulate_ping

FIELDS = {
    "rtt_p99_us": 5000.0,
    "rtt_p99_9_us": 7000.0,
    "rtt_max_us": 9000.5,
    "loss_percent": 0.1,
    "messages_per_s": 10000.0,
    "lost": 3,
}


@pytest.mark.parametrize(
    "text, failure",
    [
        ("p99 > 5ms", None),
        ("p99 >= 5ms", "p99 is 5 ms"),
        ("p99>4999us", "p99 is 5 ms"),
        (" p99  <  1s ", "p99 is 5 ms"),
        ("p99.9 > 6.5ms", "p99.9 is 7 ms"),
        ("max <= 9ms", None),
        ("loss > 0.1%", None),
        ("loss > 0.05", "loss is 0.1%"),
        ("rate < 10000/s", None),
        ("rate <= 10000", "rate is 10000/s"),
        ("lost > 2", "lost is 3"),
        ("p50 > 1ms", "p50 is unknown, since there are too few samples"),
        ("corrupted > 0", "corrupted is unknown, since there are too few samples"),
    ],
)
def test_a_condition_holds_or_not(text, failure):
    found = Condition.parse(text).failure(FIELDS)
    assert found == (failure and f"{' '.join(text.split())}: {failure}")


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "expected"),
        ("p99", "expected"),
        ("p99 = 5ms", "expected"),
        ("p99 > 5", "unit"),
        ("p99 > 5%", "unit"),
        ("loss > 5ms", "loss is not in ms"),
        ("rate < 5%", "rate is not in %"),
        ("latency > 5ms", "no figure is named latency"),
        ("p100 > 5ms", "no figure is named p100"),
        ("p99 > -5ms", "expected"),
    ],
)
def test_what_is_not_a_condition_is_one_line(text, words):
    with pytest.raises(ValueError, match="invalid condition") as caught:
        Condition.parse(text)
    assert words in str(caught.value)
    code, out, err = run_client("--ping", "--fail-if", text)
    assert (code, out) == (2, "")
    assert is_one_complaint(err, words)


def simulated(simulate, service, *conditions, **options):
    return simulate(service, conditions=[Condition.parse(text) for text in conditions], as_json=True, **options)


def test_a_percentile_is_there_for_its_condition_alone():
    result = simulated(simulate_bench, DropsEachFifth, "p12.5 > 1us", "p99.99 > 9s", timeout=0.01)
    summary = events(result.text)[-1]
    assert summary["failures"] == [
        "p12.5 > 1us: p12.5 is 1 ms",
        "p99.99 > 9s: p99.99 is unknown, since there are too few samples",
    ]
    assert "rtt_p12_5_us" in summary and "rtt_p50_us" in summary


@pytest.mark.parametrize("simulate, options", [(simulate_ping, {"count": 20}), (simulate_bench, {"duration": 1})])
def test_a_condition_on_loss_replaces_the_usual_verdict_on_it(simulate, options):
    assert simulated(simulate, DropsEachFifth, timeout=0.01, **options).code == 1
    tolerant = simulated(simulate, DropsEachFifth, "loss > 50%", timeout=0.01, **options)
    assert (tolerant.code, tolerant.report.failures) == (0, [])
    strict = simulated(simulate, DropsEachFifth, "loss > 1%", timeout=0.01, **options)
    assert len(strict.report.failures) == 1
    assert simulated(simulate, NeverAnswers, "loss > 101%", timeout=0.01, **options).code == 1  # nothing came at all


@pytest.mark.parametrize("options", [[], ["-J", "-q"]])
def test_the_exit_code_is_4_and_one_line_says_which(serve, options):
    server = serve()
    arguments = (*arguments_for(server), "--ping", "-c", "3", "-i", "0", *options)
    code, out, err = run_client(*arguments, "--fail-if", "max > 1us", "--fail-if", "lost>0")
    assert code == 4
    assert is_one_complaint(err, "failed: max > 1us: max is ")
    assert "lost" not in err
    if options:
        assert len(events(out)[-1]["failures"]) == 1
    assert run_client(*arguments, "--fail-if", "max > 3000s")[0] == 0


@pytest.mark.parametrize("mode, text", [("--ping", "rate < 5"), ("--ping", "came < 1"), ("--bench", "received < 5")])
def test_a_figure_that_the_summary_does_not_have_is_refused_at_once(mode, text):
    code, out, err = run_client(mode, "--fail-if", text)
    assert (code, out) == (2, "")
    other = "--ping" if mode == "--bench" else "--bench"
    assert is_one_complaint(err, f"--fail-if '{text}': only {other} has {text.split()[0]}")


def test_each_figure_is_in_the_summaries_that_have_it():
    ping = events(simulate_ping(count=100, as_json=True).text)[-1]
    bench = events(simulate_bench(rate=100, duration=1, as_json=True).text)[-1]
    counts = ("loss", "rate", "lost", "corrupted", "came", "received", "never_sent", "outages", "outages_s")
    for name in (*counts, "p50", "max"):
        condition = Condition.parse(f"{name} > 1{'s' if name in ('p50', 'max') else ''}")
        for mode, summary in (("ping", ping), ("bench", bench)):
            assert (condition.field in summary) == (condition.mode in (None, mode)), (name, mode)


def test_quiet_json_says_all_that_is_needed():
    result = simulate_bench(rate=100, duration=1, quiet=True, as_json=True)
    (summary,) = events(result.text)
    expected = {"connections": 2, "size_bytes": 64, "depth": 1000, "rate_per_s": 100, "due": 100, "came": 100}
    assert {name: summary[name] for name in expected} == expected
    assert summary["address"] and summary["warm_up_s"] == 0.1
    (summary,) = events(simulate_ping(quiet=True, as_json=True).text)
    assert summary["address"] and summary["size_bytes"] == 64


def test_percentiles_are_chosen(serve):
    arguments = (*arguments_for(serve()), "--ping", "-c", "20", "-i", "0", "--percentiles", "95,12.5")
    code, out, err = run_client(*arguments)
    assert (code, err) == (0, "")
    assert "\nrtt p12.5/p95 = " in out
    text = simulate_bench(percentiles=[50.0, 99.99]).text
    assert "ms              min     p50  p99.99     max     samples\n" in text


@pytest.mark.parametrize("text", ["", "x", "100", "-1", "50,", "nan", "inf"])
def test_what_is_not_a_list_of_percentiles_is_one_line(text):
    code, out, err = run_client("--ping", f"--percentiles={text}")
    assert (code, out) == (2, "")
    assert is_one_complaint(err, "invalid percentiles", "50,95,99.99")
