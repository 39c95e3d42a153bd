"""Play a tabular problem as a gymnasium environment."""

from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from safe_envs.tabular.cmdp import TabularCMDP


class TabularEnv(gym.Env[np.int64, np.int64]):
    """
    Play a :class:`TabularCMDP`. The observation is the state's number, which SB3 turns into a one-hot vector.

    The episode ends (``terminated``) with probability ``1 - gamma`` after every step, or where the transitions end it, and
    never by a time limit. So the mean plain sum of rewards and costs over episodes is exactly what :func:`evaluate` computes,
    and the best policy of the observation is exactly what :func:`solve_cmdp` finds.

    The attribute ``cost_limit`` holds the limits.

    :param cost_names: info keys, one per constraint; by default ``info["cost"]``, a float or, for several, an array (n_costs,)
    """

    def __init__(self, cmdp: TabularCMDP, cost_names: Sequence[str] | None = None) -> None:
        self.cmdp = cmdp
        self.cost_names = cost_names
        self.cost_limit = named_limits(cmdp, cost_names)
        self.cumulative = cumulative_transitions(cmdp)
        self.observation_space = spaces.Discrete(cmdp.n_states)
        self.action_space = spaces.Discrete(cmdp.n_actions)
        self.state = np.int64(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = np.int64(self.np_random.choice(self.cmdp.n_states, p=self.cmdp.initial))
        return self.state, {}

    def step(self, action: np.int64) -> tuple[np.int64, SupportsFloat, bool, bool, dict[str, Any]]:
        reward = float(self.cmdp.rewards[self.state, action])
        info = cost_info(self.cmdp.costs[:, self.state, action], self.cost_names)
        next_state = np.int64((self.np_random.random() >= self.cumulative[self.state, action]).sum())
        is_over = bool(next_state == self.cmdp.n_states)
        if not is_over:
            self.state = next_state
        return self.state, reward, is_over, False, info


def cumulative_transitions(cmdp: TabularCMDP) -> np.ndarray:
    """Distribution functions of the next state; a uniform number above all entries of a row ends the episode."""
    cumulative = np.cumsum(cmdp.gamma * cmdp.transitions, axis=-1)
    return np.where(cumulative > 1 - 1e-12, 1.0, cumulative)


def named_limits(cmdp: TabularCMDP, cost_names: Sequence[str] | None) -> float | list[float] | dict[str, float]:
    """The limits in the form of the costs of a step: a number, one for each entry, or one for each name."""
    limits = cmdp.cost_limit.tolist()
    if cost_names is not None:
        return dict(zip(cost_names, limits, strict=True))
    return limits[0] if len(limits) == 1 else limits


def cost_info(costs: np.ndarray, cost_names: Sequence[str] | None) -> dict[str, Any]:
    """The costs of one step, (n_costs,), as an environment reports them."""
    if cost_names is not None:
        return dict(zip(cost_names, costs.tolist(), strict=True))
    return {"cost": float(costs[0]) if len(costs) == 1 else costs.copy()}
