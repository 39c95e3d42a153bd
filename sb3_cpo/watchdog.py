"""Warns of what no number of updates will mend."""

import warnings
from typing import Any

import numpy as np

from sb3_cpo.trust_region import TrustRegionStep

# A violation this many times what one update can change, for this many updates in a row, is worth a word
FACTOR = 10.0
PATIENCE = 20


class Watchdog:
    """Looks at every update of a constrained algorithm, and warns once of each trouble."""

    def __init__(self) -> None:
        self.n_unreachable = 0
        """Updates in a row with a violation far beyond their reach."""
        self.n_vanishing = 0
        """Updates with a violated constraint that no change of the policy changes."""

    @property
    def row(self) -> dict[str, Any]:
        """What there is to log."""
        return {"train/n_vanishing_gradients": self.n_vanishing} if self.n_vanishing else {}

    def watch(self, violation: np.ndarray, step: TrustRegionStep) -> None:
        """
        :param violation: (n_costs,) J minus limit
        :param step: what the update did about it
        """
        is_stuck = step.is_vanishing & (violation > 0)
        if is_stuck.any() and self.n_vanishing == 0:
            warnings.warn(
                f"the cost of constraint {int(np.argmax(is_stuck))} is over its limit by {violation[is_stuck][0]:.4g}, but no "
                "change of the policy near the present one changes it (its advantages are zero): such an update ignores the "
                "return and only lowers the other costs. If it lasts, no action changes this cost, or exploration is too small"
            )
        self.n_vanishing += int(is_stuck.any())
        is_out_of_reach = violation > FACTOR * step.reachable_cost_change
        self.n_unreachable = self.n_unreachable + 1 if is_out_of_reach.any() else 0
        if self.n_unreachable == PATIENCE:
            index = int(np.argmax(violation / np.maximum(step.reachable_cost_change, np.finfo(float).tiny)))
            warnings.warn(
                f"for {PATIENCE} updates, the violation ({violation[index]:.4g} in the last) has been more than "
                f"{FACTOR:g} times what one update can change ({step.reachable_cost_change[index]:.4g}): a limit so "
                "far away takes many updates in which the return is ignored. Raise target_kl, begin with a higher "
                "cost_limit and lower it with a schedule, or check its units (it bounds the sum of an episode's costs)"
            )
