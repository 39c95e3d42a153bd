"""Primal-Dual Optimization."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv
from torch import nn

from sb3_cpo.buffers import CostRolloutBufferSamples
from sb3_cpo.cost_limits import CostLimit
from sb3_cpo.fpo import FPO
from sb3_cpo.trust_region import TrustRegionStep


class PDO(FPO):
    """
    Primal-Dual Optimization (PDO): the penalty follows the violation, ``nu <- max(0, nu + penalty_lr (J - limit))``.

    Papers: Chow et al. (2015), https://arxiv.org/abs/1512.01629, as compared in section 8 of https://arxiv.org/abs/1705.10528

    The penalty of iteration k is made of the violations before it: it is updated after the policy.

    :param cost_limit: Bound on the cost of an episode, mean over episodes
    :param penalty_coef: Penalty to begin with, one number or one per constraint (the paper: 0; 1000 in a variant)
    :param penalty_lr: Step size of the penalty
    :param kwargs: see :class:`~sb3_cpo.on_policy_algorithm.ConstrainedOnPolicyAlgorithm`
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        cost_limit: CostLimit | None = 25.0,
        penalty_coef: float | Sequence[float] = 0.0,
        penalty_lr: float = 0.01,
        *,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        super().__init__(policy, env, cost_limit, penalty_coef, _init_setup_model=False, **kwargs)
        self.penalty_lr = penalty_lr
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if not (np.isfinite(self.penalty_lr) and self.penalty_lr > 0):
            raise ValueError(f"penalty_lr must be positive and finite, not {self.penalty_lr}")
        # A loaded model goes on with the penalty that it had, unless `load` was given another to begin with
        penalty, began_with = self.__dict__.get("penalty"), self.__dict__.get("_began_with")
        super()._setup_model()
        if penalty is not None and began_with is not None and np.array_equal(self.penalty, began_with):
            self.penalty = penalty
        else:
            self._began_with = self.penalty

    def _update_policy(self, rollout_data: CostRolloutBufferSamples, params: Sequence[nn.Parameter]) -> TrustRegionStep:
        step = super()._update_policy(rollout_data, params)
        assert self.cost_estimate is not None
        violation = self.cost_estimate.mean - self.current_cost_limit
        self._record("train/violation", violation)
        self.penalty = np.maximum(self.penalty + self.penalty_lr * violation, 0.0)
        return step
