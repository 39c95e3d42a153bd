"""SB3's ``evaluate_policy``, with the costs of the episodes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

import gymnasium as gym
import numpy as np
from stable_baselines3.common import evaluation, type_aliases
from stable_baselines3.common.vec_env import VecEnv

from sb3_cpo.cost_limits import CostLimits
from sb3_cpo.cost_signal import CostSignal, MissingCost
from sb3_cpo.mistakes import check_env, check_model
from sb3_cpo.monitor import as_vec_env
from sb3_cpo.torch_threads import leave_cores_to


class EpisodeCostRecorder:
    """
    Sums the costs of the episodes that SB3's ``evaluate_policy`` plays. An instance is a ``callback`` for that function.

    Costs are summed over the steps that the environment reports, wherever its ``Monitor`` sits, and an episode ends where
    SB3 says that it ends.

    :param cost_keys: keys of ``info``, one per constraint. None: ``info["cost"]``, a number or an array
    :param n_costs: number of constraints. None: as many as the first ``info`` that mentions a cost has
    :param missing_cost: what a step without cost means: "error" or "zero"
    :param gamma: discount factor of the costs
    """

    def __init__(
        self,
        cost_keys: Sequence[str] | None = None,
        n_costs: int | None = None,
        missing_cost: str = "error",
        gamma: float = 1.0,
    ):
        self._signal = CostSignal(cost_keys, n_costs, missing_cost)
        self.gamma = gamma
        self.episodes: list[np.ndarray] = []
        # Of the episodes in progress: costs so far, and what the next cost weighs
        self._sums: dict[int, np.ndarray] = {}
        self._discounts: dict[int, float] = {}

    @classmethod
    def for_model(cls, model: Any, cost_keys: Sequence[str] | None = None, gamma: float = 1.0) -> "EpisodeCostRecorder":
        """
        A recorder of the costs that a model limits; of ``info["cost"]`` for models that know nothing of costs.

        :param gamma: discount factor of the costs; the model's ``cost_gamma`` where its limit is what they are compared with
        """
        cost_limits: CostLimits | None = getattr(model, "cost_limits", None)
        missing_cost = getattr(model, "missing_cost", "error")
        if cost_keys is not None or cost_limits is None:
            return cls(cost_keys, missing_cost=missing_cost, gamma=gamma)
        return cls.for_limits(cost_limits, missing_cost, gamma)

    @classmethod
    def for_limits(cls, cost_limits: CostLimits, missing_cost: str = "error", gamma: float = 1.0) -> "EpisodeCostRecorder":
        """A recorder of the costs that these limits are of. Where nothing is limited, costs are summed if there are any."""
        if cost_limits.is_unlimited:
            return cls(missing_cost="zero", gamma=gamma)
        return cls(cost_limits.keys, cost_limits.n_costs, missing_cost, gamma)

    @property
    def episode_costs(self) -> np.ndarray:
        """(n_episodes, n_costs), in the order of SB3's rewards and lengths."""
        n_costs = self._signal.n_costs or 0
        return np.array([_as_costs(costs, n_costs) for costs in self.episodes]).reshape(len(self.episodes), n_costs)

    @property
    def costs_so_far(self) -> np.ndarray:
        """(n_costs,) of the first copy's episode in progress, or of the one that has just ended."""
        nothing = np.zeros(self._signal.n_costs or 0)
        return self._sums.get(0, self.episodes[-1] if self.episodes else nothing)

    def __call__(self, locals_: Mapping[str, Any], globals_: Mapping[str, Any] | None = None) -> None:
        index, info, done = locals_["i"], locals_["info"], locals_["done"]
        try:
            costs = self._signal.read([info])[0]
        except MissingCost as error:
            error.place = f"environment {index} of the evaluation"
            raise
        discount = self._discounts.get(index, 1.0)
        self._sums[index] = _as_costs(self._sums.get(index, costs[:0]), len(costs)) + discount * costs
        self._discounts[index] = discount * self.gamma
        # With a Monitor, "done" without "episode" is a life that is lost and not an episode that ends
        if done and (not locals_["is_monitor_wrapped"] or "episode" in info):
            self.episodes.append(self._sums.pop(index))
            del self._discounts[index]


def _as_costs(costs: np.ndarray, n_costs: int) -> np.ndarray:
    """Zeros where no cost had been seen yet."""
    return costs if len(costs) == n_costs else np.zeros(n_costs)


@overload
def evaluate_policy(
    model: "type_aliases.PolicyPredictor",
    env: gym.Env | VecEnv,
    n_eval_episodes: int = ...,
    deterministic: bool = ...,
    render: bool = ...,
    callback: Callable[[dict[str, Any], dict[str, Any]], None] | None = ...,
    reward_threshold: float | None = ...,
    return_episode_rewards: Literal[False] = ...,
    warn: bool = ...,
    cost_keys: Sequence[str] | None = ...,
) -> tuple[float, float, np.ndarray, np.ndarray]: ...


@overload
def evaluate_policy(
    model: "type_aliases.PolicyPredictor",
    env: gym.Env | VecEnv,
    n_eval_episodes: int = ...,
    deterministic: bool = ...,
    render: bool = ...,
    callback: Callable[[dict[str, Any], dict[str, Any]], None] | None = ...,
    reward_threshold: float | None = ...,
    *,
    return_episode_rewards: Literal[True],
    warn: bool = ...,
    cost_keys: Sequence[str] | None = ...,
) -> tuple[list[float], list[int], np.ndarray]: ...


def evaluate_policy(
    model: "type_aliases.PolicyPredictor",
    env: gym.Env | VecEnv,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    render: bool = False,
    callback: Callable[[dict[str, Any], dict[str, Any]], None] | None = None,
    reward_threshold: float | None = None,
    return_episode_rewards: bool = False,
    warn: bool = True,
    cost_keys: Sequence[str] | None = None,
) -> tuple[float, float, np.ndarray, np.ndarray] | tuple[list[float], list[int], np.ndarray]:
    """
    SB3's ``evaluate_policy``, and the costs of the same episodes. The arguments that it shares with SB3 are SB3's.

    A limit bounds the mean cost of the policy that acted in training, which is stochastic: to see whether it is kept, pass
    ``deterministic=False``. Rewards and costs are summed without a discount.

    :param cost_keys: keys of ``info`` to sum, one per constraint. None: those that the model limits, else ``info["cost"]``
    :return: mean and standard deviation of the episodes' rewards, then of their costs, each (n_costs,).
        With ``return_episode_rewards``: rewards and lengths of the episodes, and their costs (n_eval_episodes, n_costs)
    """
    if env is None:
        raise ValueError("env is None: a model that was loaded without an environment has none; make one for the evaluation")
    check_model(model)
    env = as_vec_env(env)
    check_env(env)
    recorder = EpisodeCostRecorder.for_model(model, (cost_keys,) if isinstance(cost_keys, str) else cost_keys)

    def record(locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        recorder(locals_)
        if callback is not None:
            callback(locals_, globals_)

    with leave_cores_to(env):
        rewards, lengths = evaluation.evaluate_policy(
            model,
            env,
            n_eval_episodes,
            deterministic,
            render,
            record,
            reward_threshold,
            return_episode_rewards=True,
            warn=warn,
        )
    costs = recorder.episode_costs
    if return_episode_rewards:
        return rewards, lengths, costs  # type: ignore[return-value]
    return float(np.mean(rewards)), float(np.std(rewards)), costs.mean(axis=0), costs.std(axis=0)


__all__ = ["EpisodeCostRecorder", "evaluate_policy"]
