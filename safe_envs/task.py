"""What every task on a :class:`~safe_envs.robots.RobotEnv` has in common."""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from safe_envs import robots
from safe_envs.robots import RobotEnv, RobotState
from safe_envs.simulations import PhysicsSimulation, PointSimulation

# The variables of the running episodes beside the robot's state, (n_envs, ...) each
Episode = dict[str, np.ndarray]


class Outcome(NamedTuple):
    """What one step of n_envs copies brought."""

    reward: np.ndarray  # (n_envs,)
    cost: np.ndarray  # (n_envs,)
    terminated: np.ndarray  # (n_envs,) bool
    truncated: np.ndarray | None  # (n_envs,) bool; None: a time limit is the only truncation
    info: dict[str, np.ndarray]  # what people plot, (n_envs,) each
    episode: Episode


class Task(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    A task pays reward and cost for what a robot does. It is written once, over arrays with a leading axis of copies:
    this wrapper calls ``begin``, ``evaluate`` and ``observe`` for one copy, ``BatchVecEnv`` for all of its copies.

    :param env: the robot
    """

    def __init__(self, env: gym.Env):
        gym.Wrapper.__init__(self, env)
        if not isinstance(env.unwrapped, RobotEnv):
            raise TypeError(f"{type(self).__name__} wraps a RobotEnv, got {env.unwrapped}")
        self.robot_env: RobotEnv = env.unwrapped
        self.episode: Episode = {}

    def begin(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the variables of one copy's next episode, after the robot's own draws."""
        return {}

    def evaluate(self, state: RobotState, episode: Episode) -> Outcome:
        """Judge a step by the state that it reached; changes nothing."""
        raise NotImplementedError

    def observe(self, state: RobotState, episode: Episode) -> np.ndarray:
        """Observation (n_envs, n)."""
        return robots.observe(state)

    def show(self, episode: Episode) -> None:
        """Make the geoms of ``robot_env`` show the first copy's episode."""

    def show_episode(self, episode: Episode) -> None:
        """Take over the episode of one copy of a batch."""
        self.episode = episode
        self.show(episode)

    def make_simulation(self, n_envs: int, n_threads: int = 0) -> PointSimulation | PhysicsSimulation:
        """Copies of the robot for ``BatchVecEnv``."""
        if self.robot_env.robot.is_kinematic:
            return PointSimulation(self.robot_env, n_envs)
        return PhysicsSimulation(self.robot_env, n_envs, n_threads)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        _, info = self.env.reset(seed=seed, options=options)
        variables = self.begin(self.robot_env.np_random)
        self.episode = {key: np.asarray(value)[None] for key, value in variables.items()}
        self.show(self.episode)
        if self.render_mode == "human":
            self.render()
        return self.observe(self.robot_env.robot_state, self.episode)[0], info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        _, _, _, _, info = self.env.step(action)
        state = self.robot_env.robot_state
        outcome = self.evaluate(state, self.episode)
        self.episode = outcome.episode
        self.show(self.episode)
        info["cost"] = float(outcome.cost[0])
        info.update((key, float(value[0])) for key, value in outcome.info.items())
        if self.render_mode == "human":
            self.render()
        truncated = outcome.truncated is not None and bool(outcome.truncated[0])
        observation = self.observe(state, self.episode)[0]
        return observation, float(outcome.reward[0]), bool(outcome.terminated[0]), truncated, info
