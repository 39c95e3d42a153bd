"""The statistics of the safety report: coverage on data whose mean is known, formulas by hand, verdicts at the boundaries."""

import math

import numpy as np
import pytest

stats = pytest.importorskip("scipy.stats")

from sb3_cpo.cost_bounds import (  # noqa: E402
    Interval,
    betting_interval,
    conditional_value_at_risk,
    episodes_to_decide,
    exceedance_bound,
    judge,
    t_interval,
)

ALPHA = 0.1
N_SAMPLES = 600
# Three standard deviations of a share of ALPHA in N_SAMPLES
SLACK = 3 * math.sqrt(ALPHA * (1 - ALPHA) / N_SAMPLES)


def miss_rates(samples, mean, interval_of):
    """Shares of the samples whose lower and upper bound miss the mean."""
    intervals = [interval_of(sample) for sample in samples]
    return np.mean([one.lower > mean for one in intervals]), np.mean([one.upper < mean for one in intervals])


def test_t_bounds_miss_the_mean_of_normal_costs_as_often_as_they_say():
    samples = np.random.default_rng(0).normal(7.0, 3.0, (N_SAMPLES, 12))
    lower, upper = miss_rates(samples, 7.0, lambda costs: t_interval(costs, ALPHA / 2, ALPHA))
    assert lower == pytest.approx(ALPHA / 2, abs=SLACK)
    assert upper == pytest.approx(ALPHA, abs=SLACK)


def test_t_bound_is_scipys():
    costs = np.random.default_rng(1).exponential(2.0, 30)
    interval = t_interval(costs, 0.05, 0.05)
    assert interval.upper == pytest.approx(stats.ttest_1samp(costs, 0, alternative="less").confidence_interval(0.95).high)
    assert interval.lower == pytest.approx(stats.ttest_1samp(costs, 0, alternative="greater").confidence_interval(0.95).low)


@pytest.mark.parametrize(
    ("draw", "mean", "largest"),
    [
        (lambda rng, shape: rng.random(shape) < 0.02, 0.02, 1.0),
        (lambda rng, shape: rng.random(shape) < 0.5, 0.5, 1.0),
        (lambda rng, shape: 40 * rng.beta(0.3, 1.2, shape), 8.0, 40.0),
        # Rare and expensive: what t misses
        (lambda rng, shape: 100.0 * (rng.random(shape) < 0.03), 3.0, 100.0),
    ],
    ids=["rare", "even", "skew", "expensive"],
)
def test_betting_bounds_hold_for_any_bounded_costs(draw, mean, largest):
    samples = draw(np.random.default_rng(2), (N_SAMPLES, 40)).astype(float)
    for misses in miss_rates(samples, mean, lambda costs: betting_interval(costs, ALPHA, ALPHA, largest)):
        assert misses <= ALPHA + SLACK


def test_rare_expensive_episodes_deceive_t_and_not_betting():
    """100 with probability 3 %: of 40 episodes, 30 % of the samples have seen none."""
    samples = 100.0 * (np.random.default_rng(3).random((N_SAMPLES, 40)) < 0.03)
    assert miss_rates(samples, 3.0, lambda costs: t_interval(costs, ALPHA, ALPHA))[1] > 0.25
    assert miss_rates(samples, 3.0, lambda costs: betting_interval(costs, ALPHA, ALPHA, 100.0))[1] <= ALPHA


@pytest.mark.parametrize("n_episodes", [10, 100, 1000])
def test_betting_after_nothing_but_zeros_is_near_the_best_possible(n_episodes):
    """No bound for Bernoulli costs can be below 1 - alpha^(1/n): at that mean, n zeros have the probability alpha."""
    upper = betting_interval(np.zeros(n_episodes), 0.05, 0.05, 1.0).upper
    best = 1 - 0.05 ** (1 / n_episodes)
    assert best <= upper <= 1.6 * best
    # Hoeffding's: alone by the number of episodes
    assert upper < math.sqrt(math.log(20) / (2 * n_episodes)) or n_episodes == 10


def test_betting_scales_and_mirrors():
    costs = np.random.default_rng(4).random(50) * 3
    interval, scaled = betting_interval(costs, 0.05, 0.05, 3.0), betting_interval(10 * costs, 0.05, 0.05, 30.0)
    np.testing.assert_allclose(scaled, 10 * np.array(interval), rtol=1e-5)
    mirrored = betting_interval(3 - costs, 0.05, 0.05, 3.0)
    assert (3 - mirrored.upper, 3 - mirrored.lower) == pytest.approx(interval, abs=1e-5)
    assert interval.lower < costs.mean() < interval.upper


def test_betting_refuses_costs_out_of_its_range():
    with pytest.raises(ValueError, match=r"episode costs from 0 to 7 do not lie in \[0, 5\]"):
        betting_interval(np.array([0.0, 7.0]), 0.05, 0.05, 5.0)
    with pytest.raises(ValueError, match="from -1 to 0"):
        betting_interval(np.array([0.0, -1.0]), 0.05, 0.05, 5.0)


@pytest.mark.parametrize("probability", [0.01, 0.05, 0.3, 0.9])
def test_clopper_pearson_misses_with_at_most_alpha(probability):
    """Exactly: the sum of the probabilities of the counts whose bound is below."""
    n_episodes = 50
    counts = np.arange(n_episodes + 1)
    bounds = np.array([exceedance_bound(int(count), n_episodes, ALPHA) for count in counts])
    assert stats.binom.pmf(counts, n_episodes, probability)[bounds < probability].sum() <= ALPHA
    assert bounds[0] == pytest.approx(1 - ALPHA ** (1 / n_episodes))
    assert bounds[-1] == 1.0


@pytest.mark.parametrize(("n_episodes", "level"), [(100, 0.95), (37, 0.95), (10, 0.95), (64, 0.7)])
def test_cvar_is_the_minimum_of_rockafellar_and_uryasev(n_episodes, level):
    costs = np.random.default_rng(5).gamma(2.0, 3.0, n_episodes)
    values = [value + np.maximum(costs - value, 0).mean() / (1 - level) for value in costs]
    assert conditional_value_at_risk(costs, level) == pytest.approx(min(values))
    assert conditional_value_at_risk(np.arange(1.0, 101.0)) == 98.0


def test_verdicts_at_their_boundaries():
    assert judge(Interval(1.0, 5.0), 5.0) == "satisfied"
    assert judge(Interval(1.0, 5.0 + 1e-4), 5.0) == "inconclusive"
    assert judge(Interval(5.0, 9.0), 5.0) == "inconclusive"
    assert judge(Interval(5.0 + 1e-4, 9.0), 5.0) == "not satisfied"
    # Rounding, in single precision too
    assert judge(Interval(1.0, 5.0 + 1e-6), 5.0) == "satisfied"
    assert judge(Interval(0.0, 0.0), 0.0) == "satisfied"


@pytest.mark.parametrize("limit", [10.5, 9.6])
def test_episodes_to_decide_are_those_of_the_formula(limit):
    """Where the half-width t s / sqrt(n) is the distance to the limit."""
    costs = np.random.default_rng(6).normal(10.0, 4.0, 50)
    costs = 10 + 4 * (costs - costs.mean()) / costs.std()
    expected = (stats.norm.isf(0.05) * 4 / (limit - 10)) ** 2
    assert episodes_to_decide(costs, limit, lambda c: t_interval(c, 0.05, 0.05)) == pytest.approx(expected, rel=0.05)


def test_a_decided_verdict_needs_no_more_and_the_limit_itself_never_ends():
    costs = np.array([1.0, 2.0, 3.0, 2.0])
    assert episodes_to_decide(costs, 10.0, lambda c: t_interval(c, 0.05, 0.05)) == 4
    assert episodes_to_decide(costs, 2.0, lambda c: t_interval(c, 0.05, 0.05)) is None
