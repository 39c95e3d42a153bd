"""Fixed-Penalty Optimization."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv

from sb3_cpo.cost_limits import CostLimit
from sb3_cpo.trpo import TRPO


class FPO(TRPO):
    """
    Fixed-Penalty Optimization (FPO): TRPO on ``reward - penalty_coef . cost``, a comparison in section 8 of the CPO paper.

    Paper: https://arxiv.org/abs/1705.10528

    One critic fits the combined return, with the reward's ``gamma`` and ``gae_lambda``. The limit is only logged.

    :param cost_limit: Bound on the cost of an episode, for the logs
    :param penalty_coef: Weight of the cost, one number or one per constraint. The paper tries 1, 5 and 50
    :param kwargs: see :class:`~sb3_cpo.on_policy_algorithm.ConstrainedOnPolicyAlgorithm`
    """

    penalty: np.ndarray
    """(n_costs,) weights of the costs."""

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        cost_limit: CostLimit | None = 25.0,
        penalty_coef: float | Sequence[float] = 1.0,
        *,
        missing_cost: str | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        super().__init__(policy, env, cost_limit=cost_limit, missing_cost=missing_cost, _init_setup_model=False, **kwargs)
        self.penalty_coef = penalty_coef
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if self.cost_limit is None:
            raise ValueError(f"{type(self).__name__} needs a cost_limit, which also says what the costs are")
        super()._setup_model()
        self.penalty = self._initial_penalty()

    def _initial_penalty(self) -> np.ndarray:
        penalty = np.array(self.penalty_coef, dtype=np.float64)
        if penalty.ndim > 1 or (penalty.ndim == 1 and len(penalty) != self.n_costs):
            raise ValueError(f"penalty_coef has shape {penalty.shape} but cost_limit has {self.n_costs} entries")
        if not (np.isfinite(penalty).all() and (penalty >= 0).all()):
            raise ValueError(f"penalty_coef must be finite and not negative, not {self.penalty_coef}")
        return np.broadcast_to(penalty, (self.n_costs,)).copy()

    def _combine_rewards(self, rewards: np.ndarray, costs: np.ndarray) -> np.ndarray:
        return rewards - costs @ self.penalty

    def dump_logs(self, iteration: int = 0) -> None:
        self._record("train/penalty_coef", self.penalty)
        super().dump_logs(iteration)
