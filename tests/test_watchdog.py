"""What is worth a warning. (Limits out of reach and vanishing gradients: test_cpo.py.)"""

import warnings

import numpy as np
import pytest

from sb3_cpo.watchdog import UNDELIVERED_PATIENCE, Watchdog


def compare(watchdog, violation, predicted, actual):
    watchdog.compare(np.array([-1.0, violation]), np.array([-5.0, predicted]), np.array([0.0, actual]))


def test_a_cost_that_is_predicted_to_fall_and_does_not_is_warned_of_once_with_both_sums():
    watchdog = Watchdog()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(UNDELIVERED_PATIENCE - 1):
            compare(watchdog, 15.0, -2.0, 0.05)
    with pytest.warns(UserWarning, match="constraint 1 .* by -80 in all; it changed by 2"):
        compare(watchdog, 15.0, -2.0, 0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(watchdog, 15.0, -2.0, 0.05)


@pytest.mark.parametrize(("violation", "predicted", "actual"), [(15.0, -2.0, -0.5), (-1.0, -2.0, 0.0), (15.0, 0.5, 0.0)])
def test_what_comes_true_or_is_satisfied_or_was_not_predicted_is_not_warned_of(violation, predicted, actual):
    watchdog = Watchdog()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2 * UNDELIVERED_PATIENCE):
            compare(watchdog, violation, predicted, actual)
