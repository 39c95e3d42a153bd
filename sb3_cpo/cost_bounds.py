"""
What a sample of episodes says about the cost of all episodes: bounds, tail, verdict. numpy and scipy only (extra: report).

Costs are those of independent episodes of one policy, (n_episodes,). Bounds are one-sided: they hold with probability
``1 - alpha`` over the draw of the episodes.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from scipy import optimize, stats

from sb3_cpo.cost_limits import RELATIVE_ROUNDING, exceeds

Verdict = Literal["satisfied", "not satisfied", "inconclusive"]

# A bet never stakes more than this share of the capital
LARGEST_BET = 0.9
# Episodes beyond which we do not look for a decision
MAX_EPISODES = 100_000


class Interval(NamedTuple):
    """Two one-sided bounds on the mean, each of its own probability of error."""

    lower: float
    upper: float


def t_interval(costs: np.ndarray, alpha_lower: float, alpha_upper: float) -> Interval:
    """
    Bounds on the mean that are right for normal costs, and for others as their number grows (Student, 1908).

    Rare expensive episodes that the sample has missed are what they cannot know: see :func:`betting_interval`.

    :param costs: (n_episodes,), two at least
    """
    mean = float(np.mean(costs))
    error = float(np.std(costs, ddof=1)) / math.sqrt(len(costs))
    t_lower, t_upper = (float(stats.t.isf(alpha, len(costs) - 1)) for alpha in (alpha_lower, alpha_upper))
    return Interval(mean - t_lower * error, mean + t_upper * error)


def betting_interval(costs: np.ndarray, alpha_lower: float, alpha_upper: float, largest: float) -> Interval:
    """
    Bounds on the mean of costs in ``[0, largest]`` that hold for every distribution and every number of episodes.

    Somebody who bets, before each episode, that it costs less than ``m`` at the odds that are fair if the mean is ``m`` cannot
    expect to win if the mean is ``m`` or more: to multiply a capital by ``1 / alpha`` has then at most the probability
    ``alpha`` (Ville's inequality). The upper bound is the smallest ``m`` at which that has happened. Waudby-Smith and Ramdas
    (2024), "Estimating means of bounded random variables by betting", https://arxiv.org/abs/2010.09686, with bets as in their
    equation 26; they are kept below 0.9 whatever ``m`` is, so that the capital grows with ``m`` and the bound is exact.

    :param costs: (n_episodes,), in the order in which they were played
    :param largest: what an episode costs at most
    :raises ValueError: a cost is outside of ``[0, largest]``
    """
    if not (largest > 0 and np.min(costs) >= 0 and np.max(costs) <= largest * (1 + RELATIVE_ROUNDING)):
        low, high = np.min(costs), np.max(costs)
        raise ValueError(
            f"episode costs from {low:g} to {high:g} do not lie in [0, {largest:g}]: max_episode_cost is what no episode can "
            "exceed, and none may cost less than 0. Leave it out where no such number is known: the bound is then that of t"
        )
    shares = np.clip(costs / largest, 0.0, 1.0)
    lower = 1.0 - _upper_bound_by_betting(1.0 - shares, alpha_lower)
    return Interval(largest * lower, largest * _upper_bound_by_betting(shares, alpha_upper))


def _upper_bound_by_betting(shares: np.ndarray, alpha: float) -> float:
    """
    The smallest mean that is refuted.

    :param shares: (n_episodes,), in [0, 1]
    """
    counts = np.arange(1, len(shares) + 1)
    means = (0.5 + np.cumsum(shares)) / (counts + 1)
    variances = (0.25 + np.cumsum(np.square(shares - means))) / (counts + 1)
    # Bets look at what was before
    variances = np.concatenate([[0.25], variances[:-1]])
    bets = np.minimum(np.sqrt(2 * math.log(1 / alpha) / (len(shares) * variances)), LARGEST_BET)

    def log_capital(mean: float) -> float:
        """The largest so far, over what refutes the mean; it grows with the mean, from below 0."""
        return float(np.cumsum(np.log1p(-bets * (shares - mean))).max()) - math.log(1 / alpha)

    return 1.0 if log_capital(1.0) < 0 else float(optimize.brentq(log_capital, 0.0, 1.0, xtol=1e-9))


def exceedance_bound(n_exceeding: int, n_episodes: int, alpha: float) -> float:
    """Upper bound on the probability that an episode exceeds its limit (Clopper and Pearson, 1934); exact."""
    test = stats.binomtest(n_exceeding, n_episodes, alternative="less")
    return float(test.proportion_ci(confidence_level=1 - alpha, method="exact").high)


def conditional_value_at_risk(costs: np.ndarray, level: float = 0.95) -> float:
    """Mean of the most expensive ``1 - level`` of the episodes, the last in part (Rockafellar and Uryasev, 2000)."""
    n_tail = len(costs) * (1 - level)
    # Rounding must not turn 5 of 100 into 5 and a bit
    weights = np.clip(round(n_tail, 9) - np.arange(len(costs)), 0.0, 1.0)
    return float(np.average(np.sort(costs)[::-1], weights=weights))


def judge(interval: Interval, limit: float) -> Verdict:
    """The mean is within the limit, beyond it, or it may be either."""
    if not exceeds(interval.upper, limit):
        return "satisfied"
    return "not satisfied" if exceeds(interval.lower, limit) else "inconclusive"


def _more_of(costs: np.ndarray, n_episodes: int) -> np.ndarray:
    """A larger sample of the same distribution, in no order."""
    if n_episodes == len(costs):
        return costs
    levels = (np.arange(n_episodes) + 0.5) / n_episodes
    return np.random.default_rng(0).permutation(np.quantile(costs, levels, method="inverted_cdf"))


def episodes_to_decide(costs: np.ndarray, limit: float, interval_of: Callable[[np.ndarray], Interval]) -> int | None:
    """
    How many episodes like these it would take until the verdict is no longer "inconclusive".

    :param costs: (n_episodes,)
    :param interval_of: the bounds on the mean of a sample
    :return: their number in all; None: more than 100,000, as where the mean is the limit
    """

    def is_decided(n_episodes: int) -> bool:
        return judge(interval_of(_more_of(costs, n_episodes)), limit) != "inconclusive"

    low, high = len(costs), len(costs)
    while not is_decided(high):
        if high >= MAX_EPISODES:
            return None
        low, high = high, min(2 * high, MAX_EPISODES)
    # Two digits are more than such a forecast is worth
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if is_decided(middle) else (middle, high)
    return high
