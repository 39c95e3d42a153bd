"""PPO-Lagrangian: PPO on the return minus a penalty times the cost, and a penalty that follows the violation."""

from typing import Any

import numpy as np
import torch as th

from sb3_cpo.log_keys import Row
from sb3_cpo.on_policy_algorithm import ConstrainedOnPolicyAlgorithm, Rollout


class PPOLagrangian(ConstrainedOnPolicyAlgorithm):
    """
    PPO-Lagrangian (Ray et al., 2019): maximise ``(A - nu . A_cost) / (1 + sum(nu))`` with PPO's clipped objective, where
    ``nu <- max(0, nu + penalty_lr (J - cost_limit))``.

    :param n_epochs: Number of epochs when optimizing the policy
    :param clip_range: Clipping parameter of the ratio
    :param penalty_lr: Step size of the penalty
    :param max_grad_norm: The maximum value for the gradient clipping
    :param kwargs: see ``sb3_cpo.cost_model.CostModel``
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        cost_limit: Any = None,
        *,
        n_epochs: int = 10,
        clip_range: float = 0.2,
        penalty_lr: float = 0.035,
        max_grad_norm: float = 0.5,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        super().__init__(policy, env, cost_limit, _init_setup_model=False, **{"learning_rate": 3e-4, **kwargs})
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.penalty_lr = penalty_lr
        self.max_grad_norm = max_grad_norm
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        self.penalty = self.__dict__.get("penalty", np.zeros(self.n_costs))

    def _update_policy(self, rollout: Rollout) -> Row:
        # 1. The penalty follows the violation
        self.penalty = np.maximum(self.penalty + self.penalty_lr * rollout.violation, 0.0)
        penalty = th.as_tensor(self.penalty, dtype=th.float32, device=self.device)

        # 2. Cost advantages are per step, and the violation per episode: both are standardised
        samples = rollout.samples
        scale = samples.cost_advantages.std(dim=0) + 1e-8
        losses = []
        for _ in range(self.n_epochs):
            for batch in self.rollout_buffer.get(self.batch_size):
                advantages = (batch.advantages - samples.advantages.mean()) / (samples.advantages.std() + 1e-8)
                cost_advantages = (batch.cost_advantages - samples.cost_advantages.mean(dim=0)) / scale
                combined = (advantages - cost_advantages @ penalty) / (1 + penalty.sum())

                # 3. PPO's clipped objective
                log_prob = self.policy.get_distribution(batch.observations).log_prob(batch.actions)
                ratio = th.exp(log_prob - batch.old_log_prob)
                clipped = th.clamp(ratio, 1 - self.clip_range, 1 + self.clip_range)
                loss = -th.min(ratio * combined, clipped * combined).mean()
                self.policy.optimizer.zero_grad()
                loss.backward()
                th.nn.utils.clip_grad_norm_(rollout.actor_params, self.max_grad_norm)
                self.policy.optimizer.step()
                losses.append(loss.item())
        return {
            "train/policy_gradient_loss": np.mean(losses),
            "train/violation": rollout.violation,
            "train/penalty_coef": self.penalty,
        }
