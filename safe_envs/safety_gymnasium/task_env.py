"""A navigation task of Safety-Gymnasium as a gymnasium environment with costs."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from safe_envs.safety_gymnasium._compatibility import load_builder


class SafetyTaskEnv(gym.Env[np.ndarray, np.ndarray], gym.utils.EzPickle):
    """
    A robot and a task of Safety-Gymnasium (Ji et al., 2023), with gymnasium's five values instead of six.

    ``info["cost"]`` is what the original returns as its cost: 1 in a step in which any constraint is violated, else 0.
    ``info`` also has each constraint's own indicator: those of "cost_hazards", "cost_vases_contact", "cost_vases_velocity",
    "cost_gremlins", "cost_buttons", "cost_pillars" and "cost_out_of_boundary" that the task has, in every step. Observations,
    actions, rewards and the layout that belongs to a seed are the original's. Without a time limit, which registered ids
    have, episodes end only if the robot falls (Ant) or no new goal can be placed.

    :param robot: "Point", "Car", "Racecar", "Doggo" or "Ant"
    :param task: "Goal", "Button", "Push" or "Circle" with the level 0, 1 or 2, or "Run0"
    :param cost_limit: bound on the mean cost of an episode, from which an algorithm reads it; None for none
    :param config: settings of the original, such as {"lidar_conf.num_bins": 32}
    :param render_mode: None, "human", "rgb_array" or "depth_array"
    :param width: of the pictures
    :param height: of the pictures
    :param camera_name: "fixedfar", "fixednear", "track" or "vision", the robot's own
    :raises ImportError: Safety-Gymnasium is not installed
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 30}

    def __init__(
        self,
        robot: str,
        task: str,
        cost_limit: float | None = None,
        config: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        width: int = 256,
        height: int = 256,
        camera_name: str = "fixedfar",
    ):
        gym.utils.EzPickle.__init__(self, robot, task, cost_limit, config, render_mode, width, height, camera_name)
        self.cost_limit = cost_limit
        self.render_mode = render_mode
        # numpy: the least float64 overflows in the float32 that the original compares it with
        with np.errstate(over="ignore"):
            self.builder = load_builder()(
                f"Safety{robot}{task}-v0",
                {"agent_name": robot, **(config or {})},
                render_mode=render_mode,
                width=width,
                height=height,
                camera_name=camera_name,
            )
        # Time limits are gymnasium's
        self.builder.task.num_steps = np.inf
        self.observation_space = self.builder.observation_space
        self.action_space = self.builder.action_space
        self._no_costs: dict[str, float] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        observation, info = self.builder.reset(seed=seed)
        # Steps in which the wrong buttons may be pressed do not mention them
        self._no_costs = dict.fromkeys(self.builder.cost, 0.0)
        return observation, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        action = np.asarray(action, dtype=np.float64)
        observation, reward, cost, terminated, truncated, info = self.builder.step(action)
        return observation, float(reward), terminated, truncated, {**self._no_costs, **info, "cost": float(cost)}

    def render(self) -> np.ndarray | None:
        return self.builder.render()

    def close(self) -> None:
        for viewer in self.builder.task._viewers.values():
            viewer.close()
        self.builder.task._viewers.clear()
