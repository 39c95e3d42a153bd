"""What has been counted in training: the cost of an episode (J), with and without shaping, and what training has cost."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sb3_cpo import distributed
from sb3_cpo.episode_costs import CostEstimate, CostEstimator, EpisodeCosts, mean_cost


@dataclass
class SafetyRecord:
    """
    Costs of training, per constraint; arrays have shape (n_costs,). Saved with the model.

    These are the numbers by which methods that keep a limit *during* training are compared.

    :param n_costs: number of constraints
    """

    n_costs: int
    n_steps: int = 0
    n_updates: int = 0
    cumulative_cost: np.ndarray = field(init=False)
    """All costs since training began."""
    n_violations: np.ndarray = field(init=False)
    """Updates at which J was over the limit."""
    cost_regret: np.ndarray = field(init=False)
    """Sum over updates of max(J - limit, 0)."""
    streak: np.ndarray = field(init=False)
    """Number of updates in a row over the limit, up to now."""
    longest_streak: np.ndarray = field(init=False)
    """Largest number of updates in a row over the limit."""
    first_feasible_step: int = -1
    """Steps played when every J was within its limit for the first time; -1: never yet."""

    def __post_init__(self) -> None:
        self.cumulative_cost, self.n_violations, self.cost_regret, self.streak, self.longest_streak = np.zeros(
            (5, self.n_costs)
        )

    @property
    def cost_rate(self) -> np.ndarray:
        """Cost per step since training began."""
        return self.cumulative_cost / max(self.n_steps, 1)

    @property
    def violation_rate(self) -> np.ndarray:
        """Share of updates at which J was over the limit."""
        return self.n_violations / max(self.n_updates, 1)

    def add(self, costs: np.ndarray, violation: np.ndarray, num_timesteps: int, is_known: bool = True) -> None:
        """
        One rollout.

        :param costs: (n_steps, n_envs, n_costs) as the environment emitted them
        :param violation: (n_costs,) J minus limit
        :param num_timesteps: steps played since training began
        :param is_known: whether any episode ended; a guess is no proof of a satisfied limit
        """
        is_over = violation > 0
        self.add_costs(costs)
        self.n_updates += 1
        self.n_violations = self.n_violations + is_over
        self.cost_regret = self.cost_regret + np.maximum(violation, 0.0)
        self.streak = np.where(is_over, self.streak + 1, 0)
        self.longest_streak = np.maximum(self.longest_streak, self.streak)
        if self.first_feasible_step < 0 and is_known and not is_over.any():
            self.first_feasible_step = num_timesteps

    def add_costs(self, costs: np.ndarray) -> None:
        """Steps without an update: (n_steps, n_envs, n_costs), those of a rollout that a callback stopped."""
        for n_steps, total in distributed.gather((costs.shape[0] * costs.shape[1], costs.sum(axis=(0, 1)))):
            self.n_steps += n_steps
            self.cumulative_cost = self.cumulative_cost + total

    def summary(self, names: Sequence[str] = ()) -> str:
        """One line per constraint, for the end of training."""
        lines = []
        for index in range(self.n_costs):
            name = f" of {names[index]}" if names else ""
            lines.append(
                f"Safety during training{name}: total cost {self.cumulative_cost[index]:.4g} "
                f"({self.cost_rate[index]:.3g} per step), over the limit at {self.violation_rate[index]:.0%} "
                f"of {self.n_updates} updates (at most {self.longest_streak[index]:.0f} in a row), "
                f"cost regret {self.cost_regret[index]:.4g}"
            )
        first = self.first_feasible_step
        if self.n_updates == 0:
            return "\n".join([*lines, "No rollout is complete yet"])
        lines.append("The limit was satisfied at no update" if first < 0 else f"First within the limit after {first} steps")
        return "\n".join(lines)


class CostChange(NamedTuple):
    """Change of J from one rollout to the next."""

    mean: np.ndarray
    """(n_costs,)"""
    standard_error: np.ndarray
    """(n_costs,)"""


class Ends(NamedTuple):
    """Where episodes end in the steps of a rollout. Arrays have shape (n_steps, n_envs), the last one (n_steps,)."""

    episode_ends: np.ndarray
    """Whether the step is the last of its episode"""
    is_counted: np.ndarray
    """Whether it is, and the episode was played to its end, and not reset by somebody else"""
    monitor_lengths: np.ndarray
    """Length of the episode that ended, as a monitor has counted it; 0: no monitor."""
    was_reset_after: np.ndarray
    """Whether somebody else has reset the environments after the step, and played in them perhaps."""


class CostLedger:
    """
    Sums the costs of episodes across rollouts, and keeps what J was, what an update was predicted to change, and the record of
    training. Saved with the model; the episodes in progress are forgotten where the environments are reset.

    :param keys: keys of ``info`` that the costs come from; None: ``info["cost"]``
    :param n_costs: number of costs
    """

    monitor_steps: list[int] | None = None
    """Steps that the monitor of each environment had counted when we stepped it last; None: unknown."""
    _is_doubtful: np.ndarray | None = None
    """(n_envs,) whether others may have played a part of the episode in progress; None: of none"""

    def __init__(self, keys: tuple[str, ...] | None, n_costs: int):
        self.keys = keys
        self.n_costs = n_costs
        self.safety = SafetyRecord(n_costs)
        self.raw_estimate: CostEstimate | None = None
        """J as the environment emitted the costs."""
        self.estimate: CostEstimate | None = None
        """J that the algorithm constrains: of the shaped costs, where there is shaping."""
        self.predicted_change: np.ndarray | None = None
        """(n_costs,) change of J that the last update expects; None: it expects nothing."""
        self.returns: list[float] = []
        """Of the episodes that ended in the last rollout."""
        self._previous: CostEstimate | None = None
        self._raw_episodes: EpisodeCosts | None = None
        self._shaped_episodes: EpisodeCosts | None = None

    @property
    def ep_rew_mean(self) -> float:
        """Mean return of the episodes that ended in the last rollout; NaN where none did."""
        return float(np.mean(self.returns)) if self.returns else float("nan")

    @property
    def actual_change(self) -> CostChange | None:
        """What the last update did to J; None before the second rollout."""
        if self.estimate is None or self._previous is None:
            return None
        error = np.hypot(self.estimate.standard_error, self._previous.standard_error)
        return CostChange(self.estimate.mean - self._previous.mean, error)

    def counts(self, keys: tuple[str, ...] | None, n_costs: int) -> bool:
        """Whether these are the costs that are counted here."""
        return n_costs == self.n_costs and (keys or ("cost",)) == (self.keys or ("cost",))

    def forget_episodes(self) -> None:
        """The environments are reset: the episodes in progress will not go on."""
        self._raw_episodes = self._shaped_episodes = self._is_doubtful = self.monitor_steps = None

    def restart_episodes(self, n_envs: int) -> None:
        """Between two of our steps, somebody else has reset the environments, or has played in them."""
        everywhere = np.ones(n_envs, dtype=bool)
        if self._raw_episodes is not None and self._raw_episodes.lengths.any():
            _warn_of_reset()
        for episodes in (self._raw_episodes, self._shaped_episodes):
            if episodes is not None:
                episodes.restart(everywhere)
        self._is_doubtful = everywhere

    def start_rollout(self, monitor_steps: list[int] | None = None) -> None:
        """
        Forget the episodes that have ended; those in progress go on, unless others have played them.

        :param monitor_steps: steps that the monitor of each environment has counted; None: unknown
        """
        if self.monitor_steps is not None and monitor_steps is not None and monitor_steps != self.monitor_steps:
            self.restart_episodes(len(monitor_steps))
        self.returns = []
        for episodes in (self._raw_episodes, self._shaped_episodes):
            if episodes is not None:
                episodes.start_rollout()

    def steps_in_episode(self, episode_ends: np.ndarray) -> np.ndarray:
        """
        Number of each step of this rollout in its own episode, from 0. To be called before the rollout is added.

        :param episode_ends: (n_steps, n_envs)
        :return: (n_steps, n_envs)
        """
        n_steps, n_envs = episode_ends.shape
        steps = np.zeros((n_steps, n_envs), dtype=np.int64)
        step = np.zeros(n_envs, dtype=np.int64) if self._raw_episodes is None else self._raw_episodes.lengths.copy()
        for row in range(n_steps):
            steps[row] = step
            step = np.where(episode_ends[row], 0, step + 1)
        return steps

    def add_steps(self, costs: np.ndarray, bonus: np.ndarray | None, ends: Ends, gamma: float) -> None:
        """
        Add steps to the sums of the episodes in progress. Where somebody else has reset the environment, an evaluation on the
        training environment for instance, the sums begin anew, with a warning.

        :param costs: (n_steps, n_envs, n_costs) as the environment emitted them
        :param bonus: what shaping adds to them; None: there is no shaping
        :param ends: where episodes end
        :param gamma: discount factor of the costs
        """
        n_envs = costs.shape[1]
        if self._raw_episodes is None:
            self._raw_episodes = EpisodeCosts(n_envs, self.n_costs, gamma)
        if bonus is not None and self._shaped_episodes is None:
            self._shaped_episodes = EpisodeCosts(n_envs, self.n_costs, gamma)
        episode_ends, is_counted, restarts = self._cut_where_reset(ends)
        if restarts.any() or (episode_ends & ~is_counted).any():
            _warn_of_reset()
        _add(self._raw_episodes, costs, episode_ends, is_counted, restarts)
        if bonus is not None and self._shaped_episodes is not None:
            _add(self._shaped_episodes, costs + bonus, episode_ends, is_counted, restarts)

    def _cut_where_reset(self, ends: Ends) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Compare our counts of the steps of episodes with those of the monitors.

        - Shorter by the monitor: the episode began later than we thought, and ours ends where it began.
        - Longer by the monitor: a game of several lives, or repeated actions: our count stands.
        - Any difference after a reset by others: they have played a part of the episode, which does not count.

        :return: ends of episodes and whether they count, (n_steps, n_envs), and whose begin with these steps, (n_envs,)
        """
        episode_ends, is_counted = ends.episode_ends.copy(), ends.is_counted.copy()
        is_doubtful = np.zeros(episode_ends.shape[1], dtype=bool) if self._is_doubtful is None else self._is_doubtful.copy()
        restarts = np.zeros_like(is_doubtful)
        lengths = self.steps_in_episode(episode_ends) + 1
        for step, env in np.argwhere(episode_ends):
            length = ends.monitor_lengths[step, env]
            begin = step + 1 - length
            is_shorter = 0 < length < lengths[step, env]
            if is_shorter and begin > 0:
                episode_ends[begin - 1, env] = True
            elif is_shorter and begin == 0:
                restarts[env] = True
            elif is_shorter or (is_doubtful[env] and length != lengths[step, env]):
                is_counted[step, env] = False
            is_doubtful[env] = ends.was_reset_after[step]
        self._is_doubtful = is_doubtful
        return episode_ends, is_counted, restarts

    def close_rollout(
        self, cut_values: np.ndarray | None, max_episode_steps: float | None, estimator: CostEstimator = mean_cost
    ) -> CostEstimate:
        """
        The rollout is full: estimate J.

        :param cut_values: (n_envs, n_costs) the constrained cost still to come at the end of the rollout, in the environments
            of all processes; None: unknown
        :param max_episode_steps: how long an episode may become; None: unknown
        :param estimator: what J is of the episodes that ended
        """
        assert self._raw_episodes is not None
        self._previous = self.estimate
        # The critic has learned the shaped costs, which say nothing about the raw ones
        raw_cut_values = cut_values if self._shaped_episodes is None else None
        raw_episodes = self._raw_episodes.of_all_processes()
        self.raw_estimate = self.estimate = raw_episodes.estimate(raw_cut_values, max_episode_steps, estimator)
        if self._shaped_episodes is not None:
            shaped_episodes = self._shaped_episodes.of_all_processes()
            self.estimate = shaped_episodes.estimate(cut_values, max_episode_steps, estimator)
        self.returns = [value for returns in distributed.gather(self.returns) for value in returns]
        return self.estimate


def _add(
    episodes: EpisodeCosts, costs: np.ndarray, episode_ends: np.ndarray, is_counted: np.ndarray, restarts: np.ndarray
) -> None:
    episodes.restart(restarts)
    for step_costs, dones, counted in zip(costs, episode_ends, is_counted, strict=True):
        episodes.add(step_costs, dones, counted)


def _warn_of_reset() -> None:
    warnings.warn(
        "the training environment was reset while episodes were in progress, by an evaluation perhaps: what had been "
        "played of these episodes does not count for the mean episode cost. Evaluate on an environment of its own"
    )
