"""Environments of a few lines whose every number can be worked out by hand."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

Box2 = spaces.Box(-1, 1, (2,))


def scripted_cost(rank: int, t: int) -> float:
    """Cost of the t-th step (from 0, resets not counted) of the environment with this rank; all different, exact in binary."""
    return (100 * (rank + 1) + t) / 4


class ScriptedEnv(gym.Env):
    """
    Lengths of episodes and costs are known in advance, whatever the actions.

    Episodes have ``lengths`` in turn; those with an even number end at a time limit, the others by termination. ``obs[0]`` is
    the number of steps in the episode, ``obs[1]`` the number of the episode, ``obs[2]`` the rank.

    :param n_costs: 0 no cost, 1 a number, more an array: the scripted cost times 1, 2, 3, ...
    :param keys: emit the costs under these keys instead
    """

    def __init__(
        self,
        rank: int = 0,
        lengths: tuple[int, ...] = (3, 5),
        n_costs: int = 1,
        keys: tuple[str, ...] = (),
        cost: Callable[[int, int], float] = scripted_cost,
        action_space: spaces.Space = Box2,
    ):
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,))
        self.action_space = action_space
        self.rank, self.lengths, self.n_costs, self.keys, self.cost = rank, lengths, n_costs, keys, cost
        self.t, self.episode = 0, -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        return self._obs(), {}

    def step(self, action):
        costs = self.cost(self.rank, self.t) * np.arange(1, max(self.n_costs, len(self.keys)) + 1)
        if self.keys:
            info = dict(zip(self.keys, costs.tolist(), strict=True))
        else:
            info = {} if self.n_costs == 0 else {"cost": costs if self.n_costs > 1 else float(costs[0])}
        self.t += 1
        self.steps += 1
        done = self.steps == self.lengths[self.episode % len(self.lengths)]
        is_time_limit = self.episode % 2 == 0
        return self._obs(), float(self.t % 7), done and not is_time_limit, done and is_time_limit, info

    def _obs(self):
        return np.array([self.steps, self.episode, self.rank], dtype=np.float32)


class SparseCostEnv(ScriptedEnv):
    """Mentions a cost only when it occurs."""

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if info["cost"] == 0:
            del info["cost"]
        return obs, reward, terminated, truncated, info


def scripted_steps(lengths: tuple[int, ...], n_steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the first steps of a ``ScriptedEnv``: number in the episode (from 0), whether it ends it, whether at a time limit."""
    steps, episode, rows = 0, 0, []
    for _ in range(n_steps):
        done = steps + 1 == lengths[episode % len(lengths)]
        rows.append((steps, done, done and episode % 2 == 0))
        steps, episode = (0, episode + 1) if done else (steps + 1, episode)
    numbers, ends, limits = zip(*rows, strict=True)
    return np.array(numbers), np.array(ends), np.array(limits)


def vec_env(make_env: Callable[[int], gym.Env], n_envs: int = 1, subproc: bool = False) -> VecEnv:
    env_fns = [lambda rank=rank: make_env(rank) for rank in range(n_envs)]
    return SubprocVecEnv(env_fns, start_method="fork") if subproc else DummyVecEnv(env_fns)


class RiskyEnv(gym.Env):
    """Every action has a reward and a cost, so that gradients are alive: reward ``action``, cost ``2 action``, 4 steps.

    :param kind: of observation: "box", "discrete", "image", "dict"
    """

    def __init__(self, kind: str = "box", action_space: spaces.Space = Box2, length: int = 4, n_costs: int = 1):
        self.action_space, self.length, self.n_costs = action_space, length, n_costs
        self.observation_space = {
            "box": spaces.Box(-3, 3, (3,)),
            "discrete": spaces.Discrete(5),
            "multi_discrete": spaces.MultiDiscrete([5, 3]),
            "image": spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8),
            "dict": spaces.Dict(
                {
                    "position": spaces.Box(-3, 3, (2,)),
                    "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
                    "room": spaces.Discrete(3),
                }
            ),
        }[kind]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        size = float(np.mean(action))
        costs = [max(2 * size, 0) + 0.5 * index for index in range(max(self.n_costs, 1))]
        info = {"cost": costs[0] if self.n_costs < 2 else np.array(costs)}
        return self.observation_space.sample(), size, False, self.steps == self.length, info


class KnapsackEnv(gym.Env):
    """
    A constrained MDP whose optimum is a fractional knapsack: in each of 10 steps one of three items is offered, at random;
    taking it pays its reward and its cost.

    Taking the first always, the second with probability 1/2 and the third never costs 10 (0.5 + 1) / 3 = 5 and pays
    10 (1 + 0.6) / 3; no policy of that cost pays more, since reward per cost falls from item to item.
    """

    rewards, costs, length = (1.0, 1.2, 0.5), (0.5, 2.0, 3.0), 10
    cost_limit, optimal_return = 5.0, 16 / 3

    def __init__(self):
        self.observation_space, self.action_space = spaces.Discrete(3), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.steps, self.item = 0, int(self.np_random.integers(3))
        return self.item, {}

    def step(self, action):
        reward, cost = self.rewards[self.item] * action, self.costs[self.item] * action
        self.steps, self.item = self.steps + 1, int(self.np_random.integers(3))
        return self.item, reward, self.steps == self.length, False, {"cost": cost}


class BrokenEnv(gym.Env):
    """Two environments' worth of trouble: at its ``when``-th step it does what ``mistake`` says.

    :param mistake: changes (obs, reward, terminated, truncated, info)
    """

    def __init__(self, mistake: Callable[..., tuple], when: int = 6, is_dict: bool = False):
        part = spaces.Box(-1, 1, (2,))
        self.observation_space = spaces.Dict({"position": part}) if is_dict else part
        self.action_space, self.mistake, self.when, self.t = Box2, mistake, when, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        return self._obs(), {}

    def _obs(self):
        obs = np.zeros(2, dtype=np.float32)
        return {"position": obs} if isinstance(self.observation_space, spaces.Dict) else obs

    def step(self, action):
        self.t += 1
        result = self._obs(), 1.0, False, self.t % 6 == 0, {"cost": 1.0, "other": 0}
        return self.mistake(*result) if self.t == self.when else result
