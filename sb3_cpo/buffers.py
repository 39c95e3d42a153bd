"""Rollout buffers that also hold costs, and generalised advantage estimation for any number of signals."""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

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
    cost_discounts: th.Tensor
    """(batch_size, 1) ``cost_gamma ** t``, t counted in the sample's own episode: what its cost weighs in a discounted J."""
    episodes: th.Tensor
    """(batch_size,) number of the sample's episode in the rollout; the pieces of one that a rollout cuts count as two"""

    def thinned(self, factor: int) -> "CostRolloutBufferSamples":
        """Every ``factor``-th sample."""
        return CostRolloutBufferSamples(*(slice_observations(data, slice(None, None, factor)) for data in self))


def parts_of(whole: Any) -> dict[str | None, Any]:
    """What a ``Dict`` space, or a dictionary of observations, is made of; anything else under the key None."""
    return dict(whole) if isinstance(whole, Mapping) else {None: whole}


def slice_observations(data: Any, index: slice | th.Tensor) -> Any:
    """Rows of an array or a tensor, or of each in a dictionary."""
    if isinstance(data, dict):
        return {key: slice_observations(value, index) for key, value in data.items()}
    # Of rows, a fifth of the time of data[index]
    return data.index_select(0, index) if isinstance(index, th.Tensor) else data[index]


def stack_observations(observations: Sequence[Any]) -> Any:
    """Single observations as rows of one array, or of one for each key."""
    if isinstance(observations[0], dict):
        return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)


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
    Costs are stored as the environment emitted them: nothing is bootstrapped into them, they are never normalised, and what
    shaping adds to them stands in ``cost_bonus``.

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
    was_reset_outside: bool = False
    """Whether somebody else, an evaluation, has reset the environments since the last step"""
    is_counted: np.ndarray
    """(n_steps, n_envs) whether the episode that ends here was played to its end"""
    monitor_lengths: np.ndarray
    """(n_steps, n_envs) length that a monitor reports of the episode that the step ended; 0: none"""
    was_reset_after: np.ndarray
    """(n_steps,) whether somebody else has reset the environments after the step"""
    cost_discounts: np.ndarray
    """(n_steps, n_envs, 1) what the step's cost weighs in a discounted J"""
    episodes: np.ndarray
    """(n_steps, n_envs) number of the step's episode in the rollout"""
    cost_bonus: np.ndarray | None
    """What shaping adds to the costs, shape of the costs; None: there is no shaping"""
    cut_at_time_limit: list[tuple[int, int, Any]]
    """(step, environment, last observation) of the episodes that a time limit cut and whose costs are bootstrapped there"""
    rewards_at_limits: list[tuple[int, int, float]]
    """(step, environment, reward as it was received) at time limits, where rewards end there"""
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
        """Make room for another number of costs; those that are here are lost, the ends of episodes are not."""
        self.n_costs = n_costs
        names = ("episode_ends", "is_counted", "monitor_lengths", "was_reset_after", "cut_at_time_limit", "rewards_at_limits")
        kept = {name: self.__dict__[name] for name in names}
        self._reset_costs()
        self.__dict__.update(kept)

    def _reset_costs(self) -> None:
        shape = (self.buffer_size, self.n_envs, self.n_costs)
        self.cost_bonus = None
        self.cut_at_time_limit = []
        self.rewards_at_limits = []
        # float64: an episode's cost is a sum over many steps, and tests compare it with the environment's own
        self.costs = np.zeros(shape)
        self.cost_values = np.zeros(shape)
        self.cost_advantages = np.zeros(shape)
        self.cost_returns = np.zeros(shape)
        self.episode_ends = np.zeros(shape[:2], dtype=bool)
        self.is_counted = np.zeros(shape[:2], dtype=bool)
        self.monitor_lengths = np.zeros(shape[:2], dtype=np.int64)
        self.was_reset_after = np.zeros(self.buffer_size, dtype=bool)
        self.cost_discounts = np.ones((*shape[:2], 1))

    @property
    def constrained_costs(self) -> np.ndarray:
        """The costs that the algorithm constrains: with the bonus of shaping, where there is one. Shape of the costs."""
        return self.costs if self.cost_bonus is None else self.costs + self.cost_bonus

    def add_step_info(self, costs: np.ndarray, dones: np.ndarray, monitor_lengths: dict[int, int]) -> None:
        """
        What a step's ``info`` says, before the step itself is added.

        :param costs: (n_envs, n_costs)
        :param dones: (n_envs,)
        :param monitor_lengths: by environment, of the episodes that ended
        """
        self.costs[self.pos] = costs
        self.is_counted[self.pos] = dones
        self.episode_ends[self.pos] = dones | self.was_reset_outside
        self.was_reset_after[self.pos] = self.was_reset_outside
        self.was_reset_outside = False
        for index, length in monitor_lengths.items():
            self.monitor_lengths[self.pos, index] = length

    def flat_observations(self) -> Any:
        """The observations with steps and environments on one axis; ``get`` leaves them so."""
        obs: Any = self.observations
        if self.generator_ready:
            return obs
        if isinstance(obs, dict):
            return {key: value.reshape(-1, *value.shape[2:]) for key, value in obs.items()}
        return obs.reshape(-1, *obs.shape[2:])

    def critic_targets(self) -> tuple[PyTorchObs, th.Tensor, th.Tensor]:
        """
        What the critics are fitted to, without a copy where the device is the CPU: observations (n, ...), and the targets of
        the critic of the reward, (n,), and of the costs, (n, n_costs).
        """
        obs = self.flat_observations()
        tensors = {key: self.to_torch(part, copy=False) for key, part in parts_of(obs).items()}
        returns = self.to_torch(self.returns, copy=False).flatten()
        cost_returns = self.to_torch(self.cost_returns.astype(np.float32), copy=False).reshape(len(returns), self.n_costs)
        observations: Any = tensors if isinstance(obs, dict) else tensors[None]
        return observations, returns, cost_returns

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        if self.on_full is not None:
            self.on_full()
        super().compute_returns_and_advantage(last_values, dones)

    def compute_cost_returns_and_advantages(self, next_values: np.ndarray) -> None:
        """
        Cost advantages and the cost critic's targets, from ``constrained_costs`` and ``cost_values``.

        The targets are the costs still to come, bootstrapped only where the rollout cuts an episode. Targets of TD(lambda),
        which SB3 uses for the reward, would carry an undiscounted cost only 1 / (1 - lambda) steps back per rollout.

        :param next_values: (n_steps, n_envs, n_costs), see :func:`compute_gae`
        """

        costs = self.constrained_costs

        def advantages(gae_lambda: float) -> np.ndarray:
            return compute_gae(costs, self.cost_values, next_values, self.episode_ends, self.cost_gamma, gae_lambda)

        self.cost_advantages = advantages(self.cost_gae_lambda)
        self.cost_returns = advantages(1.0) + self.cost_values

    def get(self, batch_size: int | None = None) -> Generator[CostRolloutBufferSamples, None, None]:  # type: ignore[override]
        if not self.generator_ready:
            starts = np.concatenate([np.ones((1, self.n_envs), dtype=bool), self.episode_ends[:-1]])
            self.episodes = np.cumsum(starts.T.flatten()).reshape(self.n_envs, -1).T - 1
            for name in ("costs", "cost_values", "cost_advantages", "cost_returns", "cost_discounts", "episodes"):
                self.__dict__[name] = self.swap_and_flatten(self.__dict__[name])
        yield from super().get(batch_size)  # type: ignore[misc]

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> CostRolloutBufferSamples:
        samples = super()._get_samples(batch_inds, env)
        if isinstance(self.action_space, spaces.Discrete):
            # As the distribution's `log_prob` takes them
            samples = samples._replace(actions=samples.actions.long().flatten())
        return CostRolloutBufferSamples(
            *samples,
            cost_advantages=self.to_torch(self.cost_advantages[batch_inds].astype(np.float32)),
            cost_returns=self.to_torch(self.cost_returns[batch_inds].astype(np.float32)),
            cost_discounts=self.to_torch(self.cost_discounts[batch_inds].astype(np.float32)),
            episodes=self.to_torch(self.episodes[batch_inds].flatten()),
        )


class CostDictRolloutBuffer(CostRolloutBuffer, DictRolloutBuffer):  # type: ignore[misc]
    """:class:`CostRolloutBuffer` for dictionary observations."""
