"""What the tasks have in common."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import gymnasium as gym
import numpy as np

from safe_envs.mujoco import robots
from safe_envs.mujoco.robot_env import RobotEnv
from safe_envs.mujoco.robots import Robot, RobotState, get_robot
from safe_envs.mujoco.simulations import PhysicsSimulation, PointSimulation

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


class BatchedTask(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """A task that ``BatchVecEnv`` can run: its rules are functions over arrays with a leading axis of copies."""

    episode: Episode = {}
    cost_limit: float | Mapping[str, float] | None = None
    """Bound on an episode's mean cost, for the algorithm to respect; the environment itself does not use it."""
    n_broken_simulations: int = 0
    fixed_arguments: tuple[str, ...] = ()
    """Arguments that decide on the model or on what an episode's variables are."""

    def count_broken(self) -> None:
        """Count and log that MuJoCo had to reset the simulation; the episode terminates."""
        self.n_broken_simulations += 1
        count = self.n_broken_simulations
        gym.logger.warn(f"{self}: MuJoCo reset a numerically broken simulation; its episode terminates ({count} so far)")

    def make_simulation(self, n_envs: int, n_threads: int = 0) -> Any:
        """Copies of the robot: an object with ``draw``, ``start``, ``step`` and ``show``."""
        raise NotImplementedError

    def begin(self, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the variables of one copy's next episode, after the robot's own draws."""
        return {}

    def evaluate(self, state: Any, episode: Episode) -> Outcome:
        """Judge a step by the state that it reached; changes nothing."""
        raise NotImplementedError

    def observe(self, state: Any, episode: Episode) -> np.ndarray:
        """Observation (n_envs, n)."""
        raise NotImplementedError

    def show(self, episode: Episode) -> None:
        """Make the geoms of the environment show the first copy's episode."""


class Task(BatchedTask):
    """
    A task pays reward and cost for what one of our robots does. It is written once: this wrapper calls ``begin``,
    ``evaluate`` and ``observe`` for one copy, ``BatchVecEnv`` for all of its copies.

    :param env: the robot
    :param cost_limit: bound on an episode's mean cost that belongs to the task, None for none
    :param arguments: the other arguments of the task's constructor, recorded for ``env.spec``
    :raises TypeError: if the environment is not a robot
    """

    def __init__(self, env: gym.Env, cost_limit: float | None = None, **arguments: Any):
        gym.utils.RecordConstructorArgs.__init__(self, **arguments, cost_limit=cost_limit)
        gym.Wrapper.__init__(self, env)
        if not isinstance(env.unwrapped, RobotEnv):
            raise TypeError(f"{type(self).__name__} wraps a RobotEnv, got {env.unwrapped}")
        self.robot_env: RobotEnv = env.unwrapped
        self.cost_limit = cost_limit
        self.episode = {}

    @classmethod
    def make(cls, robot: str | Robot = "Point", render_mode: str | None = None, **kwargs: Any) -> Self:
        """
        Make the task with its robot: what an id's ``entry_point`` calls.

        :param robot: a robot, its name, or where it is defined: ``"package.module:NAME"``
        :param render_mode: one of the robot's ``metadata["render_modes"]``
        :param kwargs: arguments of the task; all others are those of :class:`~safe_envs.RobotEnv`
        """
        task_kwargs = {key: kwargs.pop(key) for key in list(kwargs) if key in inspect.signature(cls).parameters}
        return cls(RobotEnv(get_robot(robot), render_mode=render_mode, **kwargs), **task_kwargs)

    def make_simulation(self, n_envs: int, n_threads: int = 0) -> PointSimulation | PhysicsSimulation:
        if self.robot_env.robot.is_kinematic:
            return PointSimulation(self.robot_env, n_envs)
        return PhysicsSimulation(self.robot_env, n_envs, n_threads)

    def observe(self, state: RobotState, episode: Episode) -> np.ndarray:
        return robots.observe(state)

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
        if "simulation_broken" in info:
            self.count_broken()
        if self.render_mode == "human":
            self.render()
        truncated = outcome.truncated is not None and bool(outcome.truncated[0])
        observation = self.observe(state, self.episode)[0]
        return observation, float(outcome.reward[0]), bool(outcome.terminated[0]), truncated, info
