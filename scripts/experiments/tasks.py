"""
What is trained on: registered tasks, which bring their limit, and small environments with a cost, as users bring them
(gymnasium's with a ``CostWrapper``, and three of our own).
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from runs import Run

from safe_envs import CostWrapper
from safe_envs.tabular import Optimum, TabularCMDP, solve_cmdp, unroll
from sb3_cpo import CPO, make_vec_env

VELOCITY = tuple(f"Safe{robot}Velocity-v0" for robot in ("Ant", "HalfCheetah", "Hopper", "Humanoid", "Swimmer", "Walker2d"))
PAPER = tuple(f"Safe{task}-v0" for task in ("PointCircle", "PointGather", "AntCircle", "AntGather", "HumanoidCircle"))
# The paper's update: its costs are then not discounted, and the limit is on the mean itself
PLAIN: dict[str, Any] = {"n_noise_draws": 0}


class SmallTask(NamedTuple):
    make: Callable[[], gym.Env]
    cost_limit: Any
    steps: int = 200_000
    best_return: Callable[[], float] | None = None
    """That of the best policy within the limit, where it can be computed."""


class DoubleIntegrator(gym.Env):
    """Drive to the right: speed is what pays, speed above 1 and force are what costs."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform([-1, 0], [1, 0])
        return self.state.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        force = float(np.clip(action[0], -1, 1))
        speed = self.state[1] + 0.1 * force
        self.state = np.array([self.state[0] + 0.1 * speed, speed])
        info = {"cost_speed": float(speed > 1), "cost_force": abs(force)}
        return self.state.astype(np.float32), float(speed), False, False, info


class Inventory(gym.Env):
    """
    A shop orders at most 20 pieces every morning, sells what customers ask for, and pays for what it keeps over night. Each
    piece that a customer asks for and does not get costs 1.
    """

    observation_space = spaces.Box(0, np.inf, (2,))
    action_space = spaces.Box(0, 20, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.stock, self.asked = 0.0, 0.0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.stock += float(np.clip(action[0], 0, 20))
        self.asked = float(self.np_random.poisson(8))
        sold = min(self.stock, self.asked)
        self.stock -= sold
        observation = np.array([self.stock, self.asked], np.float32)
        return observation, sold - 0.5 * self.stock, False, False, {"cost": self.asked - sold}


class Queue(gym.Env):
    """A customer who arrives may be let in, which pays 1. A step serves at most one, and costs how many wait."""

    observation_space = spaces.Discrete(31)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        self.n_waiting = 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        is_let_in = action == 1 and self.np_random.random() < 0.9 and self.n_waiting < 30
        self.n_waiting += int(is_let_in)
        self.n_waiting -= int(self.n_waiting > 0 and self.np_random.random() < 0.6)
        return self.n_waiting, float(is_let_in), False, False, {"cost": float(self.n_waiting)}


def wrapped(env_id: str, cost: Callable[..., float], **kwargs: Any) -> Callable[[], gym.Env]:
    return lambda: CostWrapper(gym.make(env_id, **kwargs), cost)


FROZEN_LAKE_LIMIT = 0.15  # the fastest way to the goal costs 0.20


def solve_frozen_lake() -> Optimum:
    """From a linear program over the 100 steps of an episode: its policy may look at the clock, an agent's cannot."""
    env = gym.make("FrozenLake-v1")
    table: dict[int, dict[int, list[tuple[float, int, float, bool]]]] = env.unwrapped.P  # type: ignore[attr-defined]
    transitions, rewards, costs = np.zeros((16, 4, 16)), np.zeros((16, 4)), np.zeros((1, 16, 4))
    for state, actions in table.items():
        for action, outcomes in actions.items():
            for probability, next_state, reward, is_over in outcomes:
                rewards[state, action] += probability * reward
                if is_over:
                    costs[0, state, action] += probability * (reward == 0)
                else:
                    transitions[state, action, next_state] += probability
    cmdp = TabularCMDP(transitions, rewards, costs, np.eye(16)[0], 1.0, np.array([FROZEN_LAKE_LIMIT]))
    optimum = solve_cmdp(unroll(cmdp, 100))
    assert optimum is not None
    return optimum


def missing_package(task: str) -> str | None:
    """What must be installed for a task; None: nothing."""
    is_missing = task.startswith(("LunarLander", "BipedalWalker")) and importlib.util.find_spec("Box2D") is None
    return "pip install 'gymnasium[box2d]'" if is_missing else None


SMALL_TASKS = {
    "Pendulum speed": SmallTask(wrapped("Pendulum-v1", lambda next_obs: float(abs(next_obs[2]) > 4)), 20.0),
    "Pendulum torque": SmallTask(wrapped("Pendulum-v1", lambda action: float(abs(action[0]) > 1)), 40.0),
    "CartPole position": SmallTask(wrapped("CartPole-v1", lambda next_obs: float(abs(next_obs[0]) > 0.2)), 20.0),
    "Hopper-v5 speed": SmallTask(wrapped("Hopper-v5", lambda info: float(info["x_velocity"] > 0.7402)), 25.0),
    "Swimmer-v5 speed": SmallTask(wrapped("Swimmer-v5", lambda info: float(info["x_velocity"] > 0.05)), 100.0),
    "Reacher energy": SmallTask(wrapped("Reacher-v5", lambda action: float(np.sum(np.square(action)))), 5.0),
    "HalfCheetah energy": SmallTask(
        wrapped("HalfCheetah-v5", lambda action: float(np.sum(np.square(action)))), 1000.0, 300_000
    ),
    # Its main engine fires
    "LunarLander engine": SmallTask(wrapped("LunarLander-v3", lambda action: float(action == 2)), 50.0, 300_000),
    "FrozenLake holes": SmallTask(
        wrapped("FrozenLake-v1", lambda reward, terminated: float(terminated and reward == 0)),
        FROZEN_LAKE_LIMIT,
        best_return=lambda: solve_frozen_lake().ep_rew_mean,
    ),
    "double integrator": SmallTask(
        lambda: gym.wrappers.TimeLimit(DoubleIntegrator(), 100), {"cost_speed": 10.0, "cost_force": 40.0}
    ),
    "MountainCar energy": SmallTask(wrapped("MountainCarContinuous-v0", lambda action: float(np.square(action[0]))), 50.0),
}

# No default was chosen on these, except on the first
UNSEEN_TASKS = {
    "InvertedPendulum position": SmallTask(wrapped("InvertedPendulum-v5", lambda obs: float(abs(obs[0]) > 0.05)), 25.0),
    "Walker2d-v5 speed": SmallTask(wrapped("Walker2d-v5", lambda info: float(info["x_velocity"] > 1)), 25.0),
    "Acrobot torque": SmallTask(wrapped("Acrobot-v1", lambda action: float(action == 2)), 30.0),
    "Ant-v5 energy": SmallTask(wrapped("Ant-v5", lambda action: float(np.sum(np.square(action)))), 500.0, 300_000),
    "Pusher energy": SmallTask(wrapped("Pusher-v5", lambda action: float(np.sum(np.square(action)))), 100.0),
    "BipedalWalker torque": SmallTask(
        wrapped("BipedalWalker-v3", lambda action: float(np.sum(np.abs(action)))), 500.0, 300_000
    ),
    "LunarLander tilt": SmallTask(
        wrapped("LunarLander-v3", lambda next_obs: float(abs(next_obs[4]) > 0.1), continuous=True), 20.0, 300_000
    ),
    "Taxi mistakes": SmallTask(wrapped("Taxi-v4", lambda reward: float(reward == -10)), 5.0),
    "inventory": SmallTask(lambda: gym.wrappers.TimeLimit(Inventory(), 100), 50.0),
    "queue": SmallTask(lambda: gym.wrappers.TimeLimit(Queue(), 200), 200.0),
}
ALL_SMALL_TASKS = SMALL_TASKS | UNSEEN_TASKS
GROUPS = {"velocity": VELOCITY, "paper": PAPER, "small": tuple(SMALL_TASKS), "unseen": tuple(UNSEEN_TASKS)}


def make_model(run: Run) -> CPO:
    """The one line: nothing is said but the limit, and that only where the environment does not say it."""
    if run.task not in ALL_SMALL_TASKS:
        return CPO("MlpPolicy", run.task, seed=run.seed, device="cpu", **run.settings)
    task = ALL_SMALL_TASKS[run.task]
    env = make_vec_env(task.make, seed=run.seed)
    return CPO("MlpPolicy", env, task.cost_limit, seed=run.seed, device="cpu", **run.settings)
