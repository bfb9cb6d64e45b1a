"""A distribution has the same percentiles as its sorted samples, to 0.05 %."""

import pickle
import random
import statistics

import pytest

from echo.measure.distribution import Distribution

PERCENTS = [0.0, 0.1, 12.5, 50.0, 75.0, 90.0, 99.0, 99.9]
ENOUGH = [(50.0, 2), (75.0, 4), (90.0, 10), (99.0, 100), (99.9, 1000)]

rng = random.Random(6390)
SAMPLES = {
    "exponential": [round(rng.expovariate(1 / 300_000)) for _ in range(20_001)],
    "uniform": [rng.randrange(20_000, 5_000_000) for _ in range(20_000)],
    "constant": [123_500] * 1000,
    "narrow": [123_468 + rng.randrange(3) for _ in range(1000)],
    "bimodal": [round(rng.gauss(rng.choice([50_000, 40_000_000]), 5000)) for _ in range(4999)],
    "small": [rng.randrange(2048) for _ in range(3000)],
    "zero": [0] * 1001,
    "huge": [rng.getrandbits(rng.randrange(1, 80)) for _ in range(5000)],
}
EACH = pytest.mark.parametrize("samples", SAMPLES.values(), ids=SAMPLES)


def distribution_of(samples):
    distribution = Distribution()
    for sample in samples:
        distribution.add(sample)
    return distribution


def nearest_rank(samples, percent):
    """The smallest sample that at least ``percent`` of all samples do not exceed."""
    rank = -(-len(samples) * round(percent * 10) // 1000)
    return sorted(samples)[max(0, rank - 1)]


@EACH
def test_percentiles_are_the_nearest_ranks_to_a_twentieth_of_a_percent(samples):
    found = distribution_of(samples).percentiles(PERCENTS)
    assert [percent for percent, _ in found] == PERCENTS
    for percent, value in found:
        exact = nearest_rank(samples, percent)
        assert abs(value - exact) <= exact * 0.0005, percent
        assert min(samples) <= value <= max(samples)
        assert value == exact or exact >= 2048


@pytest.mark.parametrize("name", ["exponential", "uniform"])
def test_percentiles_agree_with_those_of_statistics(name):
    cuts = statistics.quantiles(SAMPLES[name], n=100, method="inclusive")
    distribution = distribution_of(SAMPLES[name])
    for percent in (25, 50, 75, 90, 95, 99):
        assert distribution.percentile(percent) == pytest.approx(cuts[percent - 1], rel=0.005)


def test_one_sample_of_any_magnitude_is_off_by_less_than_a_twentieth_of_a_percent():
    numbers = random.Random(2048)
    for bits in range(1, 64):
        power = 1 << bits
        for sample in (power - 1, power, power + 1, power + numbers.getrandbits(bits), power * 3 // 2 - 1):
            found = distribution_of([0, sample, 1 << 70]).percentile(50)  # neither the minimum nor the maximum
            assert abs(found - sample) < sample * 0.0005
            assert found == sample or sample >= 2048


@EACH
def test_least_greatest_mean_and_deviation_are_exact(samples):
    distribution = distribution_of(samples)
    assert distribution.count == len(samples)
    assert (distribution.least, distribution.greatest) == (min(samples), max(samples))
    assert distribution.mean == pytest.approx(statistics.mean(samples), rel=1e-14)
    assert distribution.deviation == pytest.approx(statistics.pstdev(samples), rel=1e-12)


def test_small_deviations_of_long_times_do_not_drown():
    day = 86_400 * 10**9
    assert distribution_of([day, day + 2]).deviation == 1.0
    assert distribution_of([day + 1] * 999).deviation == 0.0
    assert distribution_of([day + 1] * 999).mean == day + 1


def test_no_samples_have_no_figures():
    empty = Distribution()
    assert (empty.count, empty.least, empty.greatest, empty.mean, empty.deviation) == (0, None, None, 0.0, 0.0)
    assert empty.percentiles([0.0, *PERCENTS]) == []
    assert empty.between([0, 10, 20]) == [0, 0]


@pytest.mark.parametrize(("percent", "enough"), ENOUGH)
def test_a_percentile_is_there_only_when_a_sample_may_lie_above_it(percent, enough):
    distribution = distribution_of(range(1, enough))
    assert distribution.percentile(percent) is None
    distribution.add(enough)
    assert distribution.percentile(percent) == nearest_rank(range(1, enough + 1), percent) < enough
    assert distribution.percentile(100) is None


@EACH
def test_merging_the_parts_is_the_same_as_adding_all(samples):
    cuts = sorted(random.Random(5).choices(range(len(samples) + 1), k=5))
    merged = Distribution()
    for start, end in zip([0, 0, *cuts], [0, *cuts, len(samples)]):  # some of them empty
        merged.merge(pickle.loads(pickle.dumps(distribution_of(samples[start:end]))))  # as processes send them
    merged.merge(Distribution())
    assert vars(merged) == vars(distribution_of(samples))


def test_between_counts_from_an_edge_up_to_but_not_including_the_next():
    distribution = distribution_of([0, 9, 10, 10, 19, 20, 30, 31, 2000])
    assert distribution.between([0, 10, 20, 30]) == [2, 3, 1]
    assert distribution.between([10, 20, 30, 31]) == [3, 1, 1]
    assert distribution.between([40, 50, 2000]) == [0, 0]
    assert distribution.between([5, 5, 15]) == [0, 3]
    assert distribution.between([0]) == []


@EACH
def test_between_counts_as_the_samples_themselves_would(samples):
    edges = [0, *(1 << power for power in range(5, 60, 3))]  # at a bound that separates the samples
    counted = [sum(low <= sample < high for sample in samples) for low, high in zip(edges, edges[1:])]
    assert distribution_of(samples).between(edges) == counted


def test_a_hundred_thousand_samples_take_little_memory():
    numbers = random.Random(1)
    distribution = distribution_of(numbers.randrange(1 << 20, 1 << 22) for _ in range(100_000))
    assert len(pickle.dumps(distribution)) < 20_000
