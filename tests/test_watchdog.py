"""What is worth a warning. (Limits out of reach and vanishing gradients: test_cpo.py.)"""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from sb3_cpo.cost_limits import parse_cost_limit
from sb3_cpo.watchdog import PATIENCE, UNDELIVERED_PATIENCE, Watchdog

LIMITS = parse_cost_limit({"cost_heat": 3.0, "cost_speed": 5.0})


def compare(watchdog, violation, predicted, actual, limits=LIMITS):
    watchdog.compare(np.array([-1.0, violation]), np.array([-5.0, predicted]), np.array([0.0, actual]), limits)


def test_a_cost_that_is_predicted_to_fall_and_does_not_is_warned_of_once_with_both_sums():
    watchdog = Watchdog()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(UNDELIVERED_PATIENCE - 1):
            compare(watchdog, 15.0, -2.0, 0.05)
    with pytest.warns(UserWarning, match=r"info\['cost_speed'\] has exceeded .* by -60 in all; it changed by 1.5"):
        compare(watchdog, 15.0, -2.0, 0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(watchdog, 15.0, -2.0, 0.05)


@pytest.mark.parametrize("unit", [1e-3, 1e6])
def test_the_unit_of_the_costs_does_not_matter(unit):
    watchdog = Watchdog()
    for _ in range(UNDELIVERED_PATIENCE - 1):
        compare(watchdog, 15.0 * unit, -2.0 * unit, 0.05 * unit)
    with pytest.warns(UserWarning, match="has exceeded"):
        compare(watchdog, 15.0 * unit, -2.0 * unit, 0.05 * unit)


@pytest.mark.parametrize(
    ("violation", "predicted", "actual"),
    [(15.0, -2.0, -0.5), (-1.0, -2.0, 0.0), (15.0, 0.5, 0.0), (15.0, 0.01, 0.1), (15.0, 0.0, 0.1), (0.0, -2.0, 0.0)],
)
def test_what_comes_true_or_is_satisfied_or_was_not_predicted_is_not_warned_of(violation, predicted, actual):
    watchdog = Watchdog()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2 * UNDELIVERED_PATIENCE):
            compare(watchdog, violation, predicted, actual)


def step(reach, is_vanishing=(False, False)):
    return SimpleNamespace(reachable_cost_change=np.array(reach), is_vanishing=np.array(is_vanishing))


def messages_of(watch):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch()
    return [str(warning.message) for warning in caught]


def test_a_limit_out_of_reach_is_warned_of_after_twenty_updates_in_a_row():
    watchdog = Watchdog()
    violation = np.array([-1.0, 10.1])
    for count in range(1, PATIENCE + 3):
        messages = messages_of(lambda: watchdog.watch(violation, step([1.0, 1.0]), LIMITS))
        assert len(messages) == (count == PATIENCE)
    message = messages_of(lambda: fill(Watchdog(), violation, [1.0, 1.0]))[0]
    assert "the violation of info['cost_speed'] (10.1 in the last)" in message
    # Ten times the reach, no more, is not far away; and neither is what came into reach once
    assert not messages_of(lambda: fill(Watchdog(), np.array([-1.0, 10.0]), [1.0, 1.0]))
    watchdog = Watchdog()
    assert not messages_of(lambda: fill(watchdog, violation, [1.0, 1.0], PATIENCE - 1))
    assert not messages_of(lambda: watchdog.watch(violation, step([1.0, 1.1]), LIMITS))
    assert not messages_of(lambda: fill(watchdog, violation, [1.0, 1.0], PATIENCE - 1))
    assert watchdog.n_unreachable == PATIENCE - 1


def fill(watchdog, violation, reach, n_updates=PATIENCE):
    for _ in range(n_updates):
        watchdog.watch(violation, step(reach), LIMITS)


def test_a_violated_cost_without_a_gradient_is_warned_of_once_and_counted():
    watchdog = Watchdog()
    stuck = step([9.0, 9.0], [True, True])
    # Whose limit is satisfied may have none
    assert not messages_of(lambda: watchdog.watch(np.array([-1.0, 0.0]), stuck, LIMITS))
    assert watchdog.row == {}
    messages = messages_of(lambda: watchdog.watch(np.array([-1.0, 2.5]), stuck, LIMITS))
    assert len(messages) == 1
    assert "info['cost_speed'] is over its limit by 2.5" in messages[0]
    assert not messages_of(lambda: watchdog.watch(np.array([-1.0, 0.5]), stuck, LIMITS))
    assert not messages_of(lambda: watchdog.watch(np.array([-1.0, 2.5]), step([9.0, 9.0], [True, False]), LIMITS))
    assert watchdog.row == {"train/n_vanishing_gradients": 2}


def test_a_limit_that_was_satisfied_at_some_time_is_not_called_undelivered():
    watchdog = Watchdog()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for update in range(UNDELIVERED_PATIENCE + 5):
            compare(watchdog, 15.0 if update % 10 else -0.1, -2.0, 0.0)
        for _ in range(UNDELIVERED_PATIENCE - 5):
            compare(watchdog, 15.0, -2.0, 0.0)
    with pytest.warns(UserWarning, match="by -60 in all"):  # noqa: PT031
        for _ in range(UNDELIVERED_PATIENCE):
            compare(watchdog, 15.0, -2.0, 0.0)
