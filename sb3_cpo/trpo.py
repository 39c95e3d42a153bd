"""Trust Region Policy Optimization."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import nn

from sb3_cpo.buffers import CostRolloutBufferSamples
from sb3_cpo.cost_limits import CostLimit, CostLimits
from sb3_cpo.on_policy_algorithm import ConstrainedOnPolicyAlgorithm
from sb3_cpo.trust_region import TrustRegionStep


class TRPO(ConstrainedOnPolicyAlgorithm):
    """
    Trust Region Policy Optimization (TRPO): the same step without constraints, for comparison.

    Paper: https://arxiv.org/abs/1502.05477

    Costs are logged where the environment has them and are never required. Beside sb3-contrib's TRPO: ``target_kl`` bounds
    the KL divergence of the joint action distribution (contrib averages over action dimensions), and the step solves the
    problem with conjugate gradients that start from zero.

    :param cost_limit: A limit to compare the costs with, in the logs only. None: ``info["cost"]`` is logged if it is there
    :param missing_cost: "error" or "zero"; by default an error only where ``cost_limit`` names a cost
    :param kwargs: see :class:`~sb3_cpo.on_policy_algorithm.ConstrainedOnPolicyAlgorithm`
    """

    has_cost_critic: ClassVar[bool] = False

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        *,
        cost_limit: CostLimit | None = None,
        missing_cost: str | None = None,
        **kwargs: Any,
    ):
        if missing_cost is None:
            # Who names a cost expects to see it
            missing_cost = "zero" if cost_limit is None else "error"
        super().__init__(policy, env, cost_limit, learning_rate, missing_cost=missing_cost, **kwargs)

    def _parse_cost_limit(self) -> CostLimits:
        return CostLimits.unlimited() if self.cost_limit is None else super()._parse_cost_limit()

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._sees_costs = self.cost_limit is not None
        return super()._setup_learn(*args, **kwargs)

    def _read_costs(self, infos: list[dict[str, Any]]) -> None:
        if not self._sees_costs:
            # Nobody has said what the costs are; the first info that mentions one does
            costs = [info["cost"] for info in infos if "cost" in info]
            if costs:
                self._sees_costs = True
                self._resize_costs(int(np.size(costs[0])))
        super()._read_costs(infos)

    def _resize_costs(self, n_costs: int) -> None:
        if n_costs == self.n_costs:
            return
        self.n_costs = n_costs
        self.cost_limits = CostLimits.unlimited(n_costs)
        self.rollout_buffer.set_n_costs(n_costs)
        self._forget_costs()
        if self.cost_shaping is not None:
            self.cost_shaping.setup(self.observation_space, n_costs, self.device)

    def _update_policy(self, rollout_data: CostRolloutBufferSamples, params: Sequence[nn.Parameter]) -> TrustRegionStep:
        return self._trust_region_step(rollout_data, params, [], np.zeros(0))
