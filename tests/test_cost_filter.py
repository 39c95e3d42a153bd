"""The filtered mean cost, on simulated processes whose truth is known."""

import numpy as np
import pytest

from sb3_cpo.cost_filter import (
    Distance,
    FilteredCost,
    adapt_distance,
    bound_process_noise,
    filter_cost,
    first_filtered_cost,
    fixed_distance,
    predict_cost,
)


def simulate(n_updates, error=3.0, drift=0.0, sigma=1.0, unit=1.0, seed=0):
    """A controller that asks for the limit of 25 and gets it, up to a drift and noise; J is measured with an error."""
    rng = np.random.default_rng(seed)
    j, limit, filtered, truth, states = 40.0, 25.0, None, [], []
    predicted = 0.0
    for _ in range(n_updates):
        measured = j + rng.normal() * error
        values = np.array([measured]) * unit, np.array([error]) * unit
        filtered = (
            first_filtered_cost(*values) if filtered is None else filter_cost(filtered, np.array([predicted]) * unit, *values)
        )
        truth.append(j)
        states.append(filtered)
        predicted = float(np.clip(limit - filtered.mean[0] / unit, -5, 5))
        j += predicted + drift + rng.normal() * sigma
    return np.array(truth), states


def test_a_controller_that_believes_the_filter_holds_the_limit_more_quietly_than_the_measurement():
    truth, states = simulate(3000)
    late = slice(100, None)
    assert abs(np.mean(truth[late]) - 25) < 0.5
    believed = np.array([state.mean[0] for state in states])
    assert np.std((believed - truth)[late]) < 0.7 * 3.0


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1e6])
def test_the_unit_does_not_matter(unit):
    truth, states = simulate(50, drift=1.0)
    other_truth, other_states = simulate(50, drift=1.0, unit=unit)
    np.testing.assert_allclose(other_truth, truth, rtol=1e-6)
    np.testing.assert_allclose([state.mean / unit for state in other_states], [state.mean for state in states], rtol=1e-6)


def test_costs_without_noise_pass_as_they_are():
    filtered = first_filtered_cost(np.array([3.0, 0.0]), np.zeros(2))
    for mean in ([2.0, 0.0], [7.0, 1.0], [7.0, 0.0]):
        filtered = filter_cost(filtered, np.array([-5.0, 0.0]), np.array(mean), np.zeros(2))
        np.testing.assert_array_equal(filtered.mean, mean)
        np.testing.assert_array_equal(filtered.variance, 0)


def test_one_update_by_hand():
    before = FilteredCost(np.array([10.0]), np.array([1.0]), np.array([2.0]))
    after = filter_cost(before, np.array([-1.5]), np.array([12.0]), np.array([3.0]))
    gain = 3 / (3 + 9)
    np.testing.assert_allclose(after.mean, 8.5 + gain * 3.5)
    np.testing.assert_allclose(after.variance, (1 - gain) * 3)
    np.testing.assert_allclose(after.process_noise, 0.9 * 2 + 0.1 * max(3.5**2 - 9, 0.05 * 9))


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e6])
def test_a_policy_that_came_down_from_far_above_is_soon_believed(unit):
    """Costs of 500 at a limit of 25, and then none at all: half a standard deviation of what may come is within the limit."""
    limit = np.array([25.0]) * unit
    filtered = first_filtered_cost(np.array([500.0]) * unit, np.zeros(1))
    for j in (520.0, 480.0, 500.0, 0.0):
        after = filter_cost(filtered, np.zeros(1), np.array([j]) * unit, np.zeros(1))
        filtered = bound_process_noise(after, limit)
    assert filtered.mean == 0
    assert filtered.mean + 0.5 * filtered.deviation < limit < after.mean + 0.5 * after.deviation
    # Near the limit, nothing is bounded
    near = FilteredCost(limit, limit**2 / 9, limit**2 / 4)
    assert bound_process_noise(near, limit) == near


def test_without_a_measurement_there_is_the_prediction_and_no_surprise():
    before = FilteredCost(np.array([10.0]), np.array([1.0]), np.array([2.0]))
    after = predict_cost(predict_cost(before, np.array([-1.5])), np.array([0.25]))
    np.testing.assert_allclose(np.concatenate(after), [8.75, 5.0, 2.0])


def test_an_unknown_error_counts_as_much_as_the_prediction():
    before = FilteredCost(np.array([10.0]), np.array([1.0]), np.array([2.0]))
    after = filter_cost(before, np.array([0.0]), np.array([20.0]), np.array([np.nan]))
    np.testing.assert_allclose(after.mean, 15.0)
    assert np.isfinite(np.concatenate(after)).all()
    assert np.isfinite(np.concatenate(first_filtered_cost(np.array([1.0]), np.array([np.nan])))).all()


@pytest.mark.parametrize(("error", "sigma", "tail"), [(3.0, 1.0, False), (0.5, 6.0, False), (1.0, 3.0, True)])
def test_the_distance_lets_a_given_share_of_rollouts_exceed_the_limit(error, sigma, tail):
    rng = np.random.default_rng(1)
    limit, j, distance, filtered, predicted = np.array([25.0]), 20.0, fixed_distance(0.5, 1), None, np.zeros(1)
    over, means = [], []
    for _ in range(6000):
        mean, standard_error = np.array([j + rng.normal() * error]), np.array([error])
        if filtered is None:
            filtered = first_filtered_cost(mean, standard_error)
        else:
            expected = filtered.mean + predicted
            filtered = filter_cost(filtered, predicted, mean, standard_error)
            distance = adapt_distance(distance, filtered, expected, mean, limit)
        over.append(mean[0] > limit[0])
        means.append(mean[0])
        kept = distance.total * np.sqrt(filtered.variance + filtered.process_noise)
        predicted = np.clip(limit - filtered.mean - kept, -10, 10)
        # An update may move J by much, once in a while, or by as much each time
        unforeseen = rng.exponential(sigma) - sigma if tail else rng.normal() * sigma
        j += float(predicted[0]) + unforeseen
    assert np.mean(over[1000:]) == pytest.approx(0.15, abs=0.03)
    assert 12 < np.mean(means[1000:]) < 25


@pytest.mark.parametrize(
    ("before", "believed", "expected", "mean", "after"),
    [
        ((0.5, 0.6), 24.0, 24.0, 26.0, (0.585, 0.9)),  # exceeds the limit
        ((0.5, 0.6), 24.0, 24.0, 25.0, (0.485, 0.3)),  # satisfies it
        ((0.0, 0.0), 24.0, 25.001, 26.0, (0.085, 0.3)),  # expected at the limit itself
        ((0.5, 0.6), 1.0, 1.0, 26.0, (0.5, 0.6)),  # believed far below
        ((0.5, 0.6), 24.0, 40.0, 38.0, (0.5, 0.6)),  # on the way to the limit
        ((0.5, 0.6), 24.0, 40.0, 20.0, (0.5, 0.6)),
        ((3.0, 0.0), 24.0, 24.0, 26.0, (3.0, 0.3)),  # the most that is learned
        ((0.5, 2.9), 24.0, 24.0, 26.0, (0.585, 3.0)),  # the most that is urgent
        ((0.0, 0.0), 24.0, 24.0, 20.0, (0.0, 0.0)),  # the least
    ],
)
def test_the_distance_follows_rollouts_that_are_near_the_limit_and_were_expected_within_it(
    before, believed, expected, mean, after
):
    filtered = FilteredCost(np.array([believed]), np.ones(1), np.ones(1))
    values = (np.array([value]) for value in (expected, mean, 25.0))
    distance = Distance(*(np.array([part]) for part in before))
    np.testing.assert_allclose(np.concatenate(adapt_distance(distance, filtered, *values)), after)


def test_both_parts_of_the_distance_count_up_to_three_standard_deviations():
    distance = Distance(np.array([0.5, 2.0, 3.0, 4.0]), np.array([0.6, 1.5, 0.3, 0.0]))
    # A user may ask for more
    np.testing.assert_allclose(distance.total, [1.1, 3.0, 3.0, 4.0])


def test_several_rollouts_over_the_limit_are_answered_at_once_and_the_answer_is_forgotten():
    filtered, expected, limit = FilteredCost(np.array([24.0]), np.ones(1), np.ones(1)), np.array([24.0]), np.array([25.0])
    distance, kept = fixed_distance(0.5, 1), []
    for mean in [26.0] * 4 + [24.0] * 8:
        distance = adapt_distance(distance, filtered, expected, np.array([mean]), limit)
        kept.append(distance.total.item())
    # 0.085 learned and 0.3 urgent from each
    np.testing.assert_allclose(kept[:4], 0.5 + 0.385 * np.arange(1, 5))
    assert kept[4] == pytest.approx(0.5 + 4 * 0.085 - 0.015 + 0.6)
    assert kept[-1] == pytest.approx(0.5 + 4 * 0.085 - 8 * 0.015, abs=0.01)


def test_each_cost_has_a_distance_of_its_own():
    costs = (24.0, 24.0, 1.0), (26.0, 24.0, 26.0)
    believed, mean = (np.array(values) for values in costs)
    filtered = FilteredCost(believed, np.ones(3), np.ones(3))
    distance = Distance(np.array([0.5, 1.0, 1.5]), np.array([0.0, 0.6, 0.6]))
    after = adapt_distance(distance, filtered, believed, mean, np.full(3, 25.0))
    np.testing.assert_allclose(after.learned, [0.585, 0.985, 1.5])
    np.testing.assert_allclose(after.urgent, [0.3, 0.3, 0.6])
