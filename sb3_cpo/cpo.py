"""Constrained Policy Optimization."""

import warnings
from collections.abc import Sequence

import numpy as np
from torch import nn

from sb3_cpo.buffers import CostRolloutBufferSamples
from sb3_cpo.on_policy_algorithm import ConstrainedOnPolicyAlgorithm, CostData
from sb3_cpo.trust_region import TrustRegionStep

# A violation this many times what one update can change, for this many updates in a row, is worth a word
WATCHDOG_FACTOR = 10.0
WATCHDOG_PATIENCE = 20


class CPO(ConstrainedOnPolicyAlgorithm):
    """
    Constrained Policy Optimization (CPO): maximise the return while the mean cost of an episode keeps a limit.

    Paper: https://arxiv.org/abs/1705.10528

    Each update solves, for any number of constraints, ``max surrogate return`` subject to ``J - cost_limit + change of the
    surrogate costs <= 0`` and ``KL <= target_kl``. Where the trust region misses the safe set, the update only lowers costs.

    Arguments: see :class:`~sb3_cpo.on_policy_algorithm.ConstrainedOnPolicyAlgorithm`.
    """

    cost_margin: np.ndarray | None = None
    """(n_costs,) what is added to the violation, see ``cost_margin_lr``; None before the first update."""

    def _update_policy(self, rollout_data: CostRolloutBufferSamples, params: Sequence[nn.Parameter]) -> TrustRegionStep:
        estimate = self.cost_estimate
        assert estimate is not None
        violation = estimate.mean - self.current_cost_limit
        if self.cost_confidence > 0:
            # No standard error is known from a single episode, and no margin is added
            violation = violation + self.cost_confidence * np.nan_to_num(estimate.standard_error)
        if self.cost_margin is None or self.cost_margin_lr == 0:
            self.cost_margin = np.zeros(self.n_costs)
        constrained_violation = violation + self.cost_margin
        # Centred, but in the units of the costs; the paper's problem compares their surrogate with J - limit
        cost_advantages = rollout_data.cost_advantages - rollout_data.cost_advantages.mean(dim=0)
        # J is an expectation over episodes, the batch mean one over steps: without the mean episode length, the constraint
        # would weigh an episode's violation against one step's change
        cost_data = CostData(
            rollout_data.observations,
            self._actions(rollout_data),
            rollout_data.old_log_prob,
            cost_advantages * estimate.mean_length,
            rollout_data.cost_returns,
        )
        self._cost_data = [*self._cost_data, cost_data]
        step = self._trust_region_step(rollout_data, params, self._cost_data, constrained_violation)
        self._update_margin(step, violation)
        self._watch(step, violation)
        self._log_constraints(step, violation, abs(cost_advantages).amax(dim=0).cpu().numpy())
        return step

    def _update_margin(self, step: TrustRegionStep, violation: np.ndarray) -> None:
        """
        Integral action on the violation, by no more than an update can change. It does not grow while no step could satisfy
        the constraint: a margin that has grown where it could not help would hold the costs down long afterwards.
        """
        assert self.cost_margin is not None
        reach = step.reachable_cost_change
        change = np.clip(violation, -reach, reach) if step.is_feasible else np.minimum(violation, 0.0)
        self.cost_margin = np.maximum(self.cost_margin + self.cost_margin_lr * change, 0.0)

    def _watch(self, step: TrustRegionStep, violation: np.ndarray) -> None:
        """Warn once of what no number of updates will mend."""
        is_stuck = step.is_vanishing & (violation > 0)
        if is_stuck.any() and self._n_vanishing == 0:
            warnings.warn(
                f"the cost of constraint {int(np.argmax(is_stuck))} is over its limit by {violation[is_stuck][0]:.4g}, but no "
                "change of the policy near the present one changes it (its advantages are zero): such an update ignores the "
                "return and only lowers the other costs. If it lasts, no action changes this cost, or exploration is too small"
            )
        self._n_vanishing += int(is_stuck.any())
        is_out_of_reach = violation > WATCHDOG_FACTOR * step.reachable_cost_change
        self._n_unreachable = self._n_unreachable + 1 if is_out_of_reach.any() else 0
        if self._n_unreachable == WATCHDOG_PATIENCE:
            index = int(np.argmax(violation / np.maximum(step.reachable_cost_change, np.finfo(float).tiny)))
            warnings.warn(
                f"for {WATCHDOG_PATIENCE} updates, the violation ({violation[index]:.4g} in the last) has been more than "
                f"{WATCHDOG_FACTOR:g} times what one update can change ({step.reachable_cost_change[index]:.4g}): a limit so "
                "far away takes many updates in which the return is ignored. Raise target_kl, begin with a higher "
                "cost_limit and lower it with a schedule, or check its units (it bounds the sum of an episode's costs)"
            )

    def _log_constraints(self, step: TrustRegionStep, violation: np.ndarray, largest_advantages: np.ndarray) -> None:
        assert self.cost_estimate is not None
        self._record("train/violation", violation)
        self._record("train/nu", step.nu)
        if self.cost_margin_lr > 0:
            assert self.cost_margin is not None
            self._record("train/cost_margin", self.cost_margin)
        self.logger.record("train/is_feasible", float(step.is_feasible))
        self._record("train/predicted_cost_change", step.step_size * step.predicted_cost_change)
        self._record("train/cost_surrogate", step.cost_surrogate_change)
        self._promised_cost_change = step.cost_surrogate_change
        # Proposition 2, with the largest advantage seen for epsilon, and the episode's length for the horizon where
        # there is no discount. It needs the advantages of the costs that J sums
        gamma = self.cost_gamma
        if self.rollout_buffer.cost_gamma == gamma:
            horizon = self.cost_estimate.mean_length if gamma == 1 else 1 / (1 - gamma)
            excess = np.sqrt(2 * self.target_kl) * gamma * largest_advantages * horizon**2
            self._record("train/worst_case_cost", self.current_cost_limit + excess)
        if self._n_vanishing:
            self.logger.record("train/n_vanishing_gradients", self._n_vanishing)
