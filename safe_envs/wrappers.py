"""Wrappers that give a user's own environment a cost."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from safe_envs.cost_function import BY_NAME, IN_ORDER, CostFunction, UncopiedFunction, match_arguments

CostLimit = float | Mapping[str, float]


class MissingKey(KeyError):
    """An ``info`` lacks a key. ``KeyError`` would print the message in quotes."""

    def __str__(self) -> str:
        return str(self.args[0])


def check_costs(cost: Any) -> dict[str, Any]:
    """
    Check the cost of a step.

    :param cost: a number or an array (n_costs,), which gets the key "cost"; or a mapping from keys to numbers
    :return: a float or a float array for each key
    :raises TypeError, ValueError: if a cost is no number, or not finite
    """
    costs: dict[str, Any] = dict(cost) if isinstance(cost, Mapping) else {"cost": cost}
    if not costs:
        raise ValueError("the cost of a step is an empty mapping: it needs a key for each constraint")
    for key, value in costs.items():
        try:
            # Simulators that compute on a GPU give tensors
            array = np.asarray(value.cpu() if hasattr(value, "cpu") else value)
        except (TypeError, ValueError, RuntimeError) as error:  # what torch raises, and numpy for ragged lists
            raise TypeError(f"the cost {key!r} is no number: {value!r} ({error})") from error
        if array.dtype.kind not in "fiub" or array.ndim > 1 or array.size == 0:
            raise TypeError(f"the cost {key!r} must be a number or a one-dimensional array, got {value!r}")
        if not np.isfinite(array).all():
            raise ValueError(f"the cost {key!r} is not finite: {value!r}")
        costs[key] = float(array) if array.ndim == 0 else array.astype(np.float64)
    return costs


def check_single(env: Any, wrapper: str) -> None:
    """
    :raises TypeError: it is no environment of gymnasium; how to make one of it
    """
    if isinstance(env, gym.Env):
        return
    hint = ""
    if isinstance(env, str):
        hint = f": make it first, {wrapper}(gym.make({env!r}), ...)"
    elif hasattr(env, "num_envs"):
        hint = f": wrap each copy, make_vec_env(lambda: {wrapper}(gym.make(id), ...), n_envs=8)"
    elif callable(env):
        hint = f": call it, {wrapper}({getattr(env, '__name__', env)}(), ...)"
    what = repr(env) if isinstance(env, str | type) else type(env).__name__
    raise TypeError(f"{wrapper} wraps a gymnasium.Env, got {what}{hint}")


class CostWrapper(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    Any environment and a function: an environment with a cost.

    ``cost_fn`` is called after every step and returns a number or an array (one entry for each constraint), which becomes
    ``info["cost"]``, or a mapping from info keys to numbers (named constraints). It gets what its parameters name, as many
    of them as it likes: ``obs`` (before the step), ``action``, ``next_obs``, ``info``, ``reward``, ``terminated``,
    ``truncated``. Parameters of other names get the first four of these by position.

    :param env: the environment
    :param cost_fn: the cost of a step; None: the environment's own costs are kept
    :param terminal_cost: added to the cost of a step in which the episode terminates (a time limit is no termination); a
        mapping from keys to numbers for named costs, where a key that is new makes a cost of its own
    :param total_key: in place of ``cost_fn``, a key of ``info`` under which the environment keeps a running total of its cost:
        the increase in this step becomes ``info["cost"]``. It begins with what ``info`` of the reset says, else with 0.
    :param cost_limit: bound on an episode's mean cost, or a mapping from the keys of named costs to their bounds. The wrapper
        only carries it, as the attribute ``cost_limit``, from which an algorithm can read it; None for none.
    :raises TypeError: if ``cost_fn`` is not callable, or asks for what a step does not have
    """

    def __init__(
        self,
        env: gym.Env,
        cost_fn: CostFunction | None = None,
        *,
        terminal_cost: CostLimit = 0.0,
        total_key: str | None = None,
        cost_limit: CostLimit | None = None,
    ):
        if isinstance(cost_fn, UncopiedFunction):  # from a spec
            cost_fn = cost_fn.function
        if cost_fn is not None and not callable(cost_fn):
            raise TypeError(f"cost_fn must be callable as cost_fn(obs, action, next_obs, info), got {cost_fn!r}")
        limits = cost_limit.values() if isinstance(cost_limit, Mapping) else [cost_limit]
        if any(callable(limit) for limit in limits):
            raise TypeError(
                f"the cost_limit of an environment is numbers, got {cost_limit!r}: give a limit that changes in training to "
                "the algorithm"
            )
        if cost_fn is not None and total_key is not None:
            raise ValueError(f"give cost_fn or total_key={total_key!r}, not both")
        gym.utils.RecordConstructorArgs.__init__(
            self,
            # The arguments are copied deeply, and a function may belong to a simulator, or hold a lock
            cost_fn=None if cost_fn is None else UncopiedFunction(cost_fn),
            terminal_cost=terminal_cost,
            total_key=total_key,
            cost_limit=cost_limit,
        )
        check_single(env, type(self).__name__)
        super().__init__(env)
        self.cost_fn = cost_fn
        self.total_key = total_key
        self.cost_limit = cost_limit
        self._arguments = None if cost_fn is None else match_arguments(cost_fn)
        self._terminal_costs = {} if terminal_cost == 0.0 else check_costs(terminal_cost)
        self._is_terminal_cost_named = isinstance(terminal_cost, Mapping)
        if cost_fn is None and total_key is None and not self._terminal_costs and cost_limit is None:
            raise ValueError("CostWrapper has nothing to do: give cost_fn, total_key, terminal_cost or cost_limit")
        self._observation: Any = None
        self._total: Any = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._keep(observation)
        self._total = 0.0 if self.total_key is None else copy.copy(info.get(self.total_key, 0.0))
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        values: tuple[Any, ...] = self.env.step(action)
        if len(values) != 5:
            hint = ": wrap it in safe_envs.SixTupleWrapper first" if len(values) == 6 else ""
            raise ValueError(
                f"step of {self.env} returned {len(values)} values, not (obs, reward, terminated, truncated, info){hint}"
            )
        next_observation, reward, terminated, truncated, info = values
        info = dict(info)
        costs = self._step_costs((self._observation, action, next_observation, info, reward, terminated, truncated))
        if self._terminal_costs:
            self._add_terminal_costs(costs, info, terminated)
        info.update(costs)
        self._keep(next_observation)
        return next_observation, reward, terminated, truncated, info

    def _keep(self, observation: Any) -> None:
        """Keep an observation for the next step, as a copy: some environments change theirs in place."""
        if self._arguments is not None and self._arguments.asks_for("obs"):
            self._observation = copy.deepcopy(observation)

    def _step_costs(self, values: tuple[Any, ...]) -> dict[str, Any]:
        info = values[3]
        if self.cost_fn is not None and self._arguments is not None:
            named = dict(zip(BY_NAME, values, strict=True))
            in_order = values[: len(IN_ORDER)] if self._arguments.is_positional else ()
            try:
                cost = self.cost_fn(*in_order, **{name: named[name] for name in self._arguments.names})
            except KeyError as error:
                error.add_note(f"cost_fn was called with an info that holds {', '.join(map(repr, info)) or 'nothing'}")
                raise
            if cost is None:
                raise TypeError(
                    f"cost_fn {self.cost_fn!r} returned None: the cost 'cost' must be a number, 0.0 if there is none"
                )
            return check_costs(cost)
        if self.total_key is None:
            return {}
        if self.total_key not in info:
            raise MissingKey(
                f"total_key={self.total_key!r}, but the info of {self.env} holds {', '.join(map(repr, info)) or 'nothing'}"
            )
        total = copy.copy(info[self.total_key])
        cost = np.subtract(total, self._total, dtype=np.float64)
        self._total = total
        return check_costs(cost)

    def _add_terminal_costs(self, costs: dict[str, Any], info: dict[str, Any], terminated: bool) -> None:
        if costs and not self._is_terminal_cost_named and "cost" not in costs:
            raise ValueError(
                f"terminal_cost={self._terminal_costs['cost']} is one number, but the costs are named {', '.join(costs)}: "
                "say which one it belongs to, as in terminal_cost={name: number}"
            )
        for key, terminal_cost in self._terminal_costs.items():
            cost = costs[key] if key in costs else check_costs({key: info.get(key, 0.0)})[key]
            if np.shape(cost) != np.shape(terminal_cost):
                raise ValueError(
                    f"terminal_cost {terminal_cost} has shape {np.shape(terminal_cost)}, the cost {key!r} {np.shape(cost)}"
                )
            costs[key] = cost + terminal_cost if terminated else cost


class ExceedanceCost(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    Constrain how often episodes are too expensive: ``P(episode cost > limit) <= probability``.

    In the step in which the sum of the episode's costs first exceeds ``limit``, ``info[key]`` is 1, else 0. So its sum is 1
    for an episode that exceeds the limit and 0 for any other, and its mean over episodes, which an algorithm bounds, is the
    probability. (With negative costs, an episode whose sum comes back below the limit counts, too.) The costs themselves are
    left as they are.

    :param env: an environment with a cost
    :param limit: of one episode's sum of costs
    :param probability: share of the episodes that may exceed it, carried as the attribute ``cost_limit``, a mapping
        ``{key: probability}``; None leaves the environment's own ``cost_limit``
    :param key: of the new cost
    :param cost_key: of the cost that is summed, a number in every step's ``info``
    """

    def __init__(
        self,
        env: gym.Env,
        limit: float,
        probability: float | None = None,
        key: str = "cost_exceeded",
        cost_key: str = "cost",
    ):
        gym.utils.RecordConstructorArgs.__init__(self, limit=limit, probability=probability, key=key, cost_key=cost_key)
        check_single(env, type(self).__name__)
        super().__init__(env)
        if not isinstance(limit, int | float | np.number) or not np.isfinite(limit):
            raise ValueError(f"limit must be a finite number, got {limit!r}")
        if probability is not None:
            if not 0.0 <= probability <= 1.0:
                raise ValueError(f"probability must lie in [0, 1], got {probability}")
            self.cost_limit = {key: probability}
        self.limit = limit
        self.key = key
        self.cost_key = cost_key
        self._sum = 0.0
        self._has_exceeded = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._sum = 0.0
        self._has_exceeded = False
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.cost_key not in info:
            raise MissingKey(
                f"cost_key={self.cost_key!r}, but the info of {self.env} holds {', '.join(map(repr, info)) or 'nothing'}"
            )
        if self.key in info:
            raise ValueError(f"the info of {self.env} already holds {self.key!r}: choose another key")
        cost = check_costs({self.cost_key: info[self.cost_key]})[self.cost_key]
        if np.ndim(cost) != 0:
            raise ValueError(f"ExceedanceCost sums one number, but info[{self.cost_key!r}] is {cost!r}")
        self._sum += cost
        is_over = self._sum > self.limit and not math.isclose(self._sum, self.limit, rel_tol=1e-6)  # or by rounding
        exceeds_now = is_over and not self._has_exceeded  # costs may be negative: an episode counts once
        self._has_exceeded = self._has_exceeded or exceeds_now
        return observation, reward, terminated, truncated, {**info, self.key: float(exceeds_now)}


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
        return observation, reward, bool(terminated), bool(truncated), {**info, **check_costs(cost)}
