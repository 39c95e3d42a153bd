"""Rollout buffers that also hold costs, and generalised advantage estimation for any number of signals."""

from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize


class CostRolloutBufferSamples(NamedTuple):
    """SB3's ``RolloutBufferSamples`` and, of shape (batch_size, n_costs), the cost critic's targets and the advantages."""

    observations: PyTorchObs
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    cost_advantages: th.Tensor
    cost_returns: th.Tensor


def compute_gae(
    rewards: np.ndarray,
    values: np.ndarray,
    next_values: np.ndarray,
    episode_ends: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """
    Generalised advantage estimation (Schulman et al., 2016, equation 16) of rewards or costs.

    The recursion is cut at the end of each episode. What lies beyond an end or beyond the rollout enters only through
    ``next_values``, so that the caller decides what a time limit means.

    :param rewards: (n_steps, n_envs, ...), any trailing axes
    :param values: critic's values of the states left, same shape
    :param next_values: critic's values of the states reached, same shape: 0 where nothing follows, the value of the
        terminal observation where a time limit is bootstrapped
    :param episode_ends: (n_steps, n_envs), whether the step ended its episode
    :param gamma: discount factor
    :param gae_lambda: 1 for Monte-Carlo, 0 for one-step advantages
    :return: advantages, same shape as the rewards
    """
    deltas = rewards + gamma * next_values - values
    continues = 1.0 - np.asarray(episode_ends, dtype=deltas.dtype)
    continues = continues.reshape(continues.shape + (1,) * (deltas.ndim - 2))
    advantages = np.empty_like(deltas)
    advantage = np.zeros_like(deltas[0])
    for step in reversed(range(len(deltas))):
        advantage = deltas[step] + gamma * gae_lambda * continues[step] * advantage
        advantages[step] = advantage
    return advantages


class CostRolloutBuffer(RolloutBuffer):
    """
    A rollout buffer with costs beside the rewards.

    ``costs``, ``cost_values``, ``cost_advantages`` and ``cost_returns`` have shape (n_steps, n_envs, n_costs).
    Costs are stored as the environment emitted them: nothing is bootstrapped into them and they are never normalised.

    :param n_costs: Number of cost signals
    :param cost_gamma: Discount factor of cost values and advantages (the algorithm's ``cost_gae_gamma``, where that is set).
        With 1, the value of a state is the cost still to come in its episode.
    :param cost_gae_lambda: Trade-off of bias and variance for the cost advantages
    """

    costs: np.ndarray
    cost_values: np.ndarray
    cost_advantages: np.ndarray
    cost_returns: np.ndarray
    episode_ends: np.ndarray
    """(n_steps, n_envs) whether the step ended its episode, by a termination or a time limit"""
    on_full: Callable[[], None] | None = None
    """Called when the rollout is full, before returns and advantages are computed."""

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        n_costs: int = 1,
        cost_gamma: float = 1.0,
        cost_gae_lambda: float = 0.95,
    ):
        self.n_costs = n_costs
        self.cost_gamma = cost_gamma
        self.cost_gae_lambda = cost_gae_lambda
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        self._reset_costs()
        super().reset()

    def set_n_costs(self, n_costs: int) -> None:
        """Make room for another number of costs; those that are here are lost."""
        self.n_costs = n_costs
        self._reset_costs()

    def _reset_costs(self) -> None:
        shape = (self.buffer_size, self.n_envs, self.n_costs)
        # float64: an episode's cost is a sum over many steps, and tests compare it with the environment's own
        self.costs = np.zeros(shape)
        self.cost_values = np.zeros(shape)
        self.cost_advantages = np.zeros(shape)
        self.cost_returns = np.zeros(shape)
        self.episode_ends = np.zeros(shape[:2], dtype=bool)

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        if self.on_full is not None:
            self.on_full()
        super().compute_returns_and_advantage(last_values, dones)

    def compute_cost_returns_and_advantages(self, next_values: np.ndarray) -> None:
        """
        Cost advantages and the cost critic's targets, from ``costs`` and ``cost_values``.

        The targets are the costs still to come, bootstrapped only where the rollout cuts an episode. Targets of TD(lambda),
        which SB3 uses for the reward, would carry an undiscounted cost only 1 / (1 - lambda) steps back per rollout.

        :param next_values: (n_steps, n_envs, n_costs), see :func:`compute_gae`
        """

        def advantages(gae_lambda: float) -> np.ndarray:
            return compute_gae(self.costs, self.cost_values, next_values, self.episode_ends, self.cost_gamma, gae_lambda)

        self.cost_advantages = advantages(self.cost_gae_lambda)
        self.cost_returns = advantages(1.0) + self.cost_values

    def get(self, batch_size: int | None = None) -> Generator[CostRolloutBufferSamples, None, None]:  # type: ignore[override]
        if not self.generator_ready:
            for name in ("costs", "cost_values", "cost_advantages", "cost_returns"):
                self.__dict__[name] = self.swap_and_flatten(self.__dict__[name])
        yield from super().get(batch_size)  # type: ignore[misc]

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> CostRolloutBufferSamples:
        samples = super()._get_samples(batch_inds, env)
        return CostRolloutBufferSamples(
            *samples,
            cost_advantages=self.to_torch(self.cost_advantages[batch_inds].astype(np.float32)),
            cost_returns=self.to_torch(self.cost_returns[batch_inds].astype(np.float32)),
        )


class CostDictRolloutBuffer(CostRolloutBuffer, DictRolloutBuffer):  # type: ignore[misc]
    """:class:`CostRolloutBuffer` for dictionary observations."""
