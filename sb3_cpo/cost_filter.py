"""
The mean cost of an episode (J), filtered over updates: what an update was expected to change, and what the rollouts show.

A rollout measures J with a standard error; the predicted change of an update says how J has moved since the last rollout.
A Kalman filter weighs one against the other. Its process noise, by how much actual and predicted changes differ, is learned,
and so is the distance that J keeps from its limit. Numpy only.
"""

from typing import NamedTuple

import numpy as np

# Share of the newest difference in the process noise, and the least process noise as a share of the measurement's
NOISE_RATE, LEAST_NOISE = 0.1, 0.05
# Standard deviations of the filtered J from its limit within which the next rollout may exceed it
NEAR = 3.0
# Distance from the limit, in standard deviations of the filtered J: at first, and at most; the share of rollouts near the
# limit that may exceed it; step size by which the distance follows from those that do
FIRST_CONFIDENCE, LARGEST_CONFIDENCE = 0.5, 3.0
SHARE_OVER, CONFIDENCE_RATE = 0.15, 0.1
# What each rollout over the limit adds to the distance until it is within, and what is left of it after one that is
URGENCY_RATE, URGENCY_LEFT = 0.3, 0.5


class FilteredCost(NamedTuple):
    """What is known of J. Arrays have shape (n_costs,)."""

    mean: np.ndarray
    """J of the policy that played the last rollout"""
    variance: np.ndarray
    """of the mean"""
    process_noise: np.ndarray
    """variance that one update adds"""

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation of J after one more update."""
        return np.sqrt(self.variance + self.process_noise)


def first_filtered_cost(mean: np.ndarray, standard_error: np.ndarray) -> FilteredCost:
    """
    The first measurement is all that is known.

    :param mean: (n_costs,) J of a rollout
    :param standard_error: (n_costs,) of it, NaN where it is not known
    """
    variance = np.nan_to_num(standard_error) ** 2
    return FilteredCost(np.array(mean, dtype=np.float64), variance, variance.copy())


def bound_process_noise(filtered: FilteredCost, limit: np.ndarray) -> FilteredCost:
    """
    What an update adds by chance is at most J itself, or its limit: a policy that has come down from far above it has large
    changes behind it, and none as large before it.

    :param limit: (n_costs,)
    """
    largest = np.maximum(np.abs(filtered.mean), np.abs(limit)) ** 2
    return filtered._replace(process_noise=np.minimum(filtered.process_noise, largest))


def predict_cost(before: FilteredCost, predicted_change: np.ndarray) -> FilteredCost:
    """
    One update, and a rollout that has not measured its effect: no episode ended.

    :param predicted_change: (n_costs,) change of J that the update expected
    """
    return FilteredCost(before.mean + predicted_change, before.variance + before.process_noise, before.process_noise)


def filter_cost(
    before: FilteredCost, predicted_change: np.ndarray, mean: np.ndarray, standard_error: np.ndarray
) -> FilteredCost:
    """
    One update, and the rollout that measured its effect.

    :param predicted_change: (n_costs,) change of J that the update expected
    :param mean: (n_costs,) J of the rollout
    :param standard_error: (n_costs,) of it; NaN where it is not known: the measurement then counts as much as the prediction
    """
    predicted = before.mean + predicted_change
    variance = before.variance + before.process_noise
    measured_variance = np.where(np.isnan(standard_error), variance, np.nan_to_num(standard_error) ** 2)
    total = variance + measured_variance
    # Without any noise, what is measured is true
    gain = np.divide(variance, total, out=np.ones_like(total), where=total > 0)
    gain = np.where(measured_variance == 0, 1.0, gain)
    difference = mean - predicted
    surprise = np.maximum(difference**2 - measured_variance, LEAST_NOISE * measured_variance)
    return FilteredCost(
        predicted + gain * difference,
        (1 - gain) * variance,
        (1 - NOISE_RATE) * before.process_noise + NOISE_RATE * surprise,
    )


class Distance(NamedTuple):
    """
    What J keeps from its limit, in standard deviations of the filtered J. Arrays have shape (n_costs,).

    What is learned follows slowly, so that in the long run a share of SHARE_OVER of the rollouts near the limit exceeds it.
    What is urgent grows with each of them that does and goes with those that do not: where each update adds more to J than
    predicted (episodes that grow longer and longer), J would otherwise stay above its limit until enough has been learned.
    Away from the limit, both stay as they are.
    """

    learned: np.ndarray
    urgent: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Both together, at most LARGEST_CONFIDENCE, or what a user asks for."""
        return np.minimum(self.learned + self.urgent, np.maximum(self.learned, LARGEST_CONFIDENCE))


def fixed_distance(confidence: float, n_costs: int) -> Distance:
    """
    The same for all costs, and nothing urgent.

    :param confidence: in standard deviations
    """
    return Distance(np.full(n_costs, confidence), np.zeros(n_costs))


def adapt_distance(
    distance: Distance, filtered: FilteredCost, expected: np.ndarray, mean: np.ndarray, limit: np.ndarray
) -> Distance:
    """
    The distance after one more rollout: more where it exceeds the limit, less where it does not. Why the learned part leads to
    SHARE_OVER, whatever the distribution of the differences between actual and predicted changes: Gibbs and Candes (2021),
    "Adaptive conformal inference under distribution shift"; the sum of recent misses beside it: Angelopoulos et al. (2023),
    "Conformal PID control for time series prediction". Those rollouts count that are near the limit and that were expected
    within it, up to a standard deviation: no distance helps where the limit is out of reach.

    :param distance: before
    :param filtered: J, the rollout included
    :param expected: (n_costs,) J that the last update expected of the rollout
    :param mean: (n_costs,) J of the rollout
    :param limit: (n_costs,)
    """
    is_counted = (filtered.mean + NEAR * filtered.deviation > limit) & (expected - filtered.deviation <= limit)
    is_over = mean > limit
    learned = np.clip(distance.learned + CONFIDENCE_RATE * (is_over - SHARE_OVER), 0.0, LARGEST_CONFIDENCE)
    urgent = np.where(is_over, distance.urgent + URGENCY_RATE, distance.urgent * URGENCY_LEFT)
    urgent = np.minimum(urgent, LARGEST_CONFIDENCE)
    return Distance(*(np.where(is_counted, after, before) for after, before in zip((learned, urgent), distance, strict=True)))
