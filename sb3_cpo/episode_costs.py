"""The mean cost of an episode under the current policy, from the episodes that ended in one rollout. Numpy only."""

from typing import NamedTuple

import numpy as np


class CostEstimate(NamedTuple):
    """An estimate of J, the expected cost of an episode."""

    mean: np.ndarray
    """(n_costs,) J"""
    standard_error: np.ndarray
    """(n_costs,) of the mean; NaN where fewer than two episodes ended."""
    n_episodes: int
    """Episodes behind the mean. 0: none ended, and the mean is the cost so far plus the critic's value of what is to come."""
    mean_length: float
    """Steps of an episode."""
    stale_share: float
    """Share of these episodes' steps that were played before this rollout, by older policies."""


class EpisodeCosts:
    """
    Sums costs over episodes, across the boundaries of rollouts.

    :param n_envs: number of environments
    :param n_costs: number of cost signals
    :param gamma: discount factor of the costs
    """

    def __init__(self, n_envs: int, n_costs: int, gamma: float = 1.0):
        self.gamma = gamma
        self.sums = np.zeros((n_envs, n_costs))
        self.discounts = np.ones((n_envs, 1))
        self.lengths = np.zeros(n_envs, dtype=np.int64)
        self.start_rollout()

    def start_rollout(self) -> None:
        """Forget the episodes that have ended; those in progress go on."""
        self._stale_lengths = self.lengths.copy()
        self._ended: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, costs: np.ndarray, dones: np.ndarray) -> None:
        """
        One step of every environment.

        :param costs: (n_envs, n_costs)
        :param dones: (n_envs,) whether the step ended its episode
        """
        self.sums += self.discounts * costs
        self.discounts *= self.gamma
        self.lengths += 1
        if dones.any():
            self._ended.append((self.sums[dones], self.lengths[dones], self._stale_lengths[dones]))
            self.sums[dones] = 0.0
            self.discounts[dones] = 1.0
            self.lengths[dones] = 0
            self._stale_lengths[dones] = 0

    def _discounted(self, n_steps: np.ndarray) -> np.ndarray:
        """What a cost of 1 per step sums up to."""
        return n_steps if self.gamma == 1 else (1 - self.gamma**n_steps) / (1 - self.gamma)

    @property
    def episodes(self) -> np.ndarray:
        """Costs of the episodes that ended in this rollout, (n_episodes, n_costs)."""
        return np.concatenate([self.sums[:0], *(sums for sums, _, _ in self._ended)])

    def estimate(self, cut_values: np.ndarray | None = None, max_episode_steps: int | None = None) -> CostEstimate:
        """
        J from every episode that ended in this rollout. No window over older rollouts: their policies were others.

        Where no episode ended, the estimate is the mean over environments of the cost so far plus ``cut_values``.

        :param cut_values: (n_envs, n_costs) cost still to come at the end of the rollout (None: there is no critic, and what
            is left of ``max_episode_steps`` is taken to cost as much per step as what was played)
        :param max_episode_steps: length to assume where no episode ended (None: the mean length so far)
        """
        if not self._ended:
            length = float(max_episode_steps or max(self.lengths.mean(), 1.0))
            if cut_values is None:
                cost_per_step = self.sums.sum(axis=0) / max(self._discounted(self.lengths).sum(), 1.0)
                cut_values = self._discounted(np.maximum(length - self.lengths, 0.0))[:, None] * cost_per_step
            so_far = self.sums + self.discounts * cut_values
            unknown = np.full(self.sums.shape[1], np.nan)
            stale_share = float(self._stale_lengths.sum() / max(self.lengths.sum(), 1))
            return CostEstimate(so_far.mean(axis=0), unknown, 0, length, stale_share)
        episodes = self.episodes
        lengths = np.concatenate([lengths for _, lengths, _ in self._ended])
        stale = np.concatenate([stale for _, _, stale in self._ended])
        n_episodes = len(episodes)
        error = np.full(episodes.shape[1], np.nan) if n_episodes < 2 else episodes.std(axis=0, ddof=1) / np.sqrt(n_episodes)
        return CostEstimate(
            episodes.mean(axis=0), error, n_episodes, float(lengths.mean()), float(stale.sum() / lengths.sum())
        )
