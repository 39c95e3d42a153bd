"""Warns of what no number of updates will mend."""

import warnings
from typing import Any

import numpy as np

from sb3_cpo.cost_limits import CostLimits
from sb3_cpo.cost_signal import CHECK
from sb3_cpo.trust_region import TrustRegionStep

# A violation this many times what one update can change, for this many updates in a row, is worth a word
FACTOR = 10.0
PATIENCE = 20
# So is a limit that has been exceeded for this many updates, in which less than this share of the predicted decrease came
UNDELIVERED_PATIENCE, LEAST_DELIVERED = 30, 0.1


class Watchdog:
    """Looks at every update of a constrained algorithm, and warns once of each trouble."""

    def __init__(self) -> None:
        self.n_unreachable = 0
        """Updates in a row with a violation far beyond their reach."""
        self.n_vanishing = 0
        """Updates with a violated constraint that no change of the policy changes."""
        self._changes: list[tuple[np.ndarray, np.ndarray]] = []
        self._has_warned_of_undelivered = False

    @property
    def row(self) -> dict[str, Any]:
        """What there is to log."""
        return {"train/n_vanishing_gradients": self.n_vanishing} if self.n_vanishing else {}

    def compare(self, violation: np.ndarray, predicted: np.ndarray, actual: np.ndarray, limits: CostLimits) -> None:
        """
        Look at the predicted and the actual change of the last update. Arrays have shape (n_costs,).

        :param violation: J minus limit, now
        :param predicted: change of J that the last update expected
        :param actual: change of J
        :param limits: for the names of the costs
        """
        self._changes = [*self._changes, (np.where(violation > 0, predicted, np.nan), actual)][-UNDELIVERED_PATIENCE:]
        if len(self._changes) < UNDELIVERED_PATIENCE or self._has_warned_of_undelivered:
            return
        # NaN where the limit was satisfied at some time
        predicted_sum, actual_sum = np.sum(self._changes, axis=0)
        is_undelivered = (predicted_sum < 0) & (actual_sum > LEAST_DELIVERED * predicted_sum)
        if is_undelivered.any():
            self._has_warned_of_undelivered = True
            index = int(np.argmax(is_undelivered))
            warnings.warn(
                f"{limits.name_cost(index)} has exceeded its limit for {UNDELIVERED_PATIENCE} updates, which were predicted "
                f"to change its cost by {predicted_sum[index]:.4g} in all; it changed by {actual_sum[index]:.4g}. No action "
                "may change this cost, or the rollouts are too small to see how (train/cost_gradient_noise near 1: raise "
                "n_steps). " + CHECK
            )

    def watch(self, violation: np.ndarray, step: TrustRegionStep, limits: CostLimits) -> None:
        """
        :param violation: (n_costs,) J minus limit
        :param step: what the update did about it
        :param limits: for the names of the costs
        """
        is_stuck = step.is_vanishing & (violation > 0)
        if is_stuck.any() and self.n_vanishing == 0:
            index = int(np.argmax(is_stuck))
            warnings.warn(
                f"{limits.name_cost(index)} is over its limit by {violation[index]:.4g}, but no change of the policy near the "
                "present one changes it (its advantages are zero): such an update ignores the return and only lowers the "
                "other costs. If it lasts, no action changes this cost, or exploration is too small"
            )
        self.n_vanishing += int(is_stuck.any())
        is_out_of_reach = violation > FACTOR * step.reachable_cost_change
        self.n_unreachable = self.n_unreachable + 1 if is_out_of_reach.any() else 0
        if self.n_unreachable == PATIENCE:
            index = int(np.argmax(violation / np.maximum(step.reachable_cost_change, np.finfo(float).tiny)))
            warnings.warn(
                f"for {PATIENCE} updates, the violation of {limits.name_cost(index)} ({violation[index]:.4g} in the last) has "
                f"been more than {FACTOR:g} times what one update can change ({step.reachable_cost_change[index]:.4g}): a "
                "limit so far away takes many updates in which the return is ignored. Raise target_kl, begin with a higher "
                "cost_limit and lower it with a schedule, or check its units (it bounds the sum of an episode's costs). "
                + CHECK
            )
