"""The mean cost of an episode under the current policy, from the episodes that ended in one rollout."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sb3_cpo import distributed


class CostEstimate(NamedTuple):
    """An estimate of J, the expected cost of an episode."""

    mean: np.ndarray
    """(n_costs,) J"""
    standard_error: np.ndarray
    """(n_costs,) of the mean; NaN where fewer than two episodes ended."""
    n_episodes: int
    """Episodes behind the mean. 0: none ended, and the mean is made of what was seen of those in progress."""
    mean_length: float
    """Steps of an episode."""
    stale_share: float
    """Share of these episodes' steps that were played before this rollout, by older policies."""
    is_length_known: bool = True
    """False: no episode has ever ended and there is no time limit; J is at least ``mean``, by how much more is unknown."""


class EndedEpisodes(NamedTuple):
    """What an estimator of J is given: the episodes that ended in a rollout, at least one."""

    costs: np.ndarray
    """(n_episodes, n_costs) discounted sums"""
    lengths: np.ndarray
    """(n_episodes,) steps"""


CostEstimator = Callable[[EndedEpisodes], tuple[np.ndarray, np.ndarray]]
"""An estimator of J: from episodes to J and its standard error, (n_costs,) each, the latter NaN where it is not known."""


_CONTRACT = "it takes the EndedEpisodes of a rollout and returns J, finite, and its standard error or NaN, (n_costs,) each"


def mean_cost(episodes: EndedEpisodes) -> tuple[np.ndarray, np.ndarray]:
    """The mean over episodes, as the paper has it."""
    costs = episodes.costs
    if len(costs) < 2:
        return costs.mean(axis=0), np.full(costs.shape[1], np.nan)
    return costs.mean(axis=0), costs.std(axis=0, ddof=1) / np.sqrt(len(costs))


class EpisodeCosts:
    """
    Sums costs over episodes, across the boundaries of rollouts.

    :param n_envs: number of environments
    :param n_costs: number of cost signals
    :param gamma: discount factor of the costs
    """

    _ended_before: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]] = ()
    """The episodes that ended in the last rollout in which any did, before this one."""

    def __init__(self, n_envs: int, n_costs: int, gamma: float = 1.0):
        self.gamma = gamma
        self.sums = np.zeros((n_envs, n_costs))
        self.discounts = np.ones((n_envs, 1))
        self.lengths = np.zeros(n_envs, dtype=np.int64)
        self._ended: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.start_rollout()

    def start_rollout(self) -> None:
        """Forget the episodes that have ended; those in progress go on."""
        self._stale_lengths = self.lengths.copy()
        self._ended_before = self._ended or self._ended_before
        self._ended = []

    def add(self, costs: np.ndarray, dones: np.ndarray, is_counted: np.ndarray | None = None) -> None:
        """
        One step of every environment.

        :param costs: (n_envs, n_costs)
        :param dones: (n_envs,) whether the step ended its episode
        :param is_counted: (n_envs,) whether an episode that ends here counts; None: all do
        """
        self.sums += self.discounts * costs
        self.discounts *= self.gamma
        self.lengths += 1
        if dones.any():
            counted = dones if is_counted is None else dones & is_counted
            if counted.any():
                self._ended.append((self.sums[counted], self.lengths[counted], self._stale_lengths[counted]))
            self.restart(dones)

    def restart(self, envs: np.ndarray) -> None:
        """The episodes of these environments begin anew: (n_envs,) booleans."""
        self.sums[envs] = 0.0
        self.discounts[envs] = 1.0
        self.lengths[envs] = 0
        self._stale_lengths[envs] = 0

    def _discounted(self, n_steps: np.ndarray | float) -> np.ndarray | float:
        """What a cost of 1 per step sums up to."""
        return n_steps if self.gamma == 1 else (1 - self.gamma**n_steps) / (1 - self.gamma)

    def of_all_processes(self) -> "EpisodeCosts":
        """The episodes of all processes, in their order; these where there is one."""
        if distributed.world_size() == 1:
            return self
        everybody = distributed.gather(self)
        together = EpisodeCosts(sum(len(own.sums) for own in everybody), self.sums.shape[1], self.gamma)
        for name in ("sums", "discounts", "lengths", "_stale_lengths"):
            setattr(together, name, np.concatenate([getattr(own, name) for own in everybody]))
        for name in ("_ended", "_ended_before"):
            setattr(together, name, [ended for own in everybody for ended in getattr(own, name)])
        return together

    @property
    def episodes(self) -> np.ndarray:
        """Costs of the episodes that ended in this rollout, (n_episodes, n_costs)."""
        return np.concatenate([self.sums[:0], *(sums for sums, _, _ in self._ended)])

    def estimate(
        self,
        cut_values: np.ndarray | None = None,
        max_episode_steps: float | None = None,
        estimator: CostEstimator = mean_cost,
    ) -> CostEstimate:
        """
        J from every episode that ended in this rollout. No window over older rollouts: their policies were others.

        :param cut_values: (n_envs, n_costs) cost still to come at the end of the rollout, None where no critic says it. Used
            only where no episode ended, see :meth:`_extrapolate`
        :param max_episode_steps: how long an episode may become; None: unknown
        :param estimator: what J is of the episodes that ended
        """
        if not self._ended:
            return self._extrapolate(cut_values, max_episode_steps, estimator)
        ended = _together(self._ended)
        mean, error = _apply(estimator, ended)
        stale = np.concatenate([stale for _, _, stale in self._ended])
        return CostEstimate(
            mean, error, len(ended.costs), float(ended.lengths.mean()), float(stale.sum() / ended.lengths.sum())
        )

    def _extrapolate(
        self, cut_values: np.ndarray | None, max_episode_steps: float | None, estimator: CostEstimator
    ) -> CostEstimate:
        """
        No episode ended. With T the time limit, or the mean length of the episodes that ended last, if any,

            J = mean over environments of  cost so far + max((T - steps so far) * cost per step so far, critic's value),

        and at least J of the episodes that ended last: costs may come late in an episode. The critic counts only where it says
        more than the rate so far: it may be untrained, and this estimate must not be too low by construction. Where T is not
        known, it is all that is said about what is still to come.
        """
        before = _together(self._ended_before) if self._ended_before else None
        known_length = max_episode_steps or (None if before is None else before.lengths.mean())
        # Those in progress may have become longer than those that ended
        length = float(max(known_length or 1.0, self.lengths.mean()))
        cost_per_step = self.sums.sum(axis=0) / max(float(np.sum(self._discounted(self.lengths))), 1.0)
        left = np.maximum(length - self.lengths, 0.0)
        to_come = np.asarray(self._discounted(left))[:, None] * cost_per_step
        if cut_values is not None:
            to_come = np.maximum(to_come, cut_values)
        mean = (self.sums + self.discounts * to_come).mean(axis=0)
        if before is not None:
            mean = np.maximum(mean, _apply(estimator, before)[0])
        stale_share = float(self._stale_lengths.sum() / max(self.lengths.sum(), 1))
        return CostEstimate(
            mean, np.full(self.sums.shape[1], np.nan), 0, length, stale_share, is_length_known=known_length is not None
        )


def _apply(estimator: CostEstimator, ended: EndedEpisodes) -> tuple[np.ndarray, np.ndarray]:
    """J and its standard error by a user's estimator."""
    name, n_costs = getattr(estimator, "__name__", type(estimator).__name__), ended.costs.shape[1]
    try:
        mean, error = (np.asarray(value, dtype=np.float64) for value in estimator(ended))
    except (TypeError, ValueError) as exception:
        exception.add_note(f"raised by cost_estimator={name}: {_CONTRACT}")
        raise
    if mean.shape != (n_costs,) or error.shape != (n_costs,) or not np.isfinite(mean).all():
        raise ValueError(f"cost_estimator={name} returned J = {mean} and its error {error} of {n_costs} cost(s): {_CONTRACT}")
    return mean, error


def _together(ended: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> EndedEpisodes:
    return EndedEpisodes(np.concatenate([sums for sums, _, _ in ended]), np.concatenate([lengths for _, lengths, _ in ended]))
