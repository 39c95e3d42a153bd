"""Wrappers that give a user's own environment a cost."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

CostFunction = Callable[[Any, Any, Any, dict[str, Any]], float | np.ndarray | Mapping[str, float]]


def add_cost(info: dict[str, Any], cost: Any) -> None:
    """
    Put the cost of a step into its ``info``.

    :param info: changed in place
    :param cost: a number or an array (n_costs,), which becomes ``info["cost"]``; or a mapping from keys to numbers, merged
        key by key: one key for each constraint
    """
    costs = cost if isinstance(cost, Mapping) else {"cost": cost}
    if not costs:
        raise ValueError("the cost of a step is an empty mapping: it needs a key for each constraint")
    for key, value in costs.items():
        array = np.asarray(value)
        if array.dtype.kind not in "fiub" or array.ndim > 1 or array.size == 0:
            raise TypeError(f"the cost {key!r} must be a number or a one-dimensional array, got {value!r}")
        if not np.isfinite(array).all():
            raise ValueError(f"the cost {key!r} is not finite: {value!r}")
        info[key] = float(array) if array.ndim == 0 else array.astype(np.float64)


class CostWrapper(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    Any environment and a function: an environment with a cost.

    ``cost_fn(obs, action, next_obs, info)`` is called after every step and returns a number, an array (one entry for each
    constraint) or a mapping from info keys to numbers (named constraints).

    :param env: the environment
    :param cost_fn: the cost of a step
    """

    def __init__(self, env: gym.Env, cost_fn: CostFunction):
        gym.utils.RecordConstructorArgs.__init__(self, cost_fn=cost_fn)
        super().__init__(env)
        if not callable(cost_fn):
            raise TypeError(f"cost_fn must be callable as cost_fn(obs, action, next_obs, info), got {cost_fn!r}")
        self.cost_fn = cost_fn
        self._observation: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._observation = copy.deepcopy(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        next_observation, reward, terminated, truncated, info = self.env.step(action)
        info = dict(info)
        add_cost(info, self.cost_fn(self._observation, action, next_observation, info))
        # A copy: some environments change their observation in place
        self._observation = copy.deepcopy(next_observation)
        return next_observation, reward, terminated, truncated, info


class SixTupleWrapper(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    For environments whose ``step`` returns six values ``(obs, reward, cost, terminated, truncated, info)``, as those of
    Safety-Gymnasium and OmniSafe: the cost moves into ``info["cost"]``.

    :param env: the environment
    """

    def __init__(self, env: Any):
        gym.utils.RecordConstructorArgs.__init__(self)
        if not isinstance(env, gym.Env):
            raise TypeError(f"SixTupleWrapper wraps a gymnasium.Env whose step returns six values, got {type(env)}")
        super().__init__(env)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        values: tuple[Any, ...] = self.env.step(action)
        if len(values) != 6:
            raise ValueError(
                f"SixTupleWrapper expects (obs, reward, cost, terminated, truncated, info), but step of {self.env} "
                f"returned {len(values)} values"
            )
        observation, reward, cost, terminated, truncated, info = values
        info = dict(info)
        add_cost(info, cost)
        return observation, reward, bool(terminated), bool(truncated), info
