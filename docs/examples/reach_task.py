"""Reach: run to a goal, not too fast. A task of one's own: this file is all that it takes."""

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np

from safe_envs import Outcome, RobotState, Task


def add_goal(spec: mujoco.MjSpec) -> None:
    spec.worldbody.add_geom(name="goal", size=(0.3, 0, 0), rgba=(0.2, 0.8, 0.3, 1), contype=0, conaffinity=0, density=0)


class ReachTask(Task):
    """
    Observation: the robot's, then the way to the goal (dx, dy). Reward: speed towards the goal, 10 when it is reached.
    Cost: 1 in every step that is faster than ``speed_limit``. Termination: the robot's own, or the goal is reached.
    """

    fixed_arguments = ("distance",)  # the goals of running episodes are made for it

    def __init__(self, env: gym.Env, distance: float = 3.0, speed_limit: float = 0.5, cost_limit: float | None = None):
        super().__init__(env, cost_limit=cost_limit, distance=distance, speed_limit=speed_limit)
        self.distance, self.speed_limit = distance, speed_limit
        size = env.observation_space.shape[0] + 2
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), dtype=np.float64)
        self.robot_env.add_scenery(add_goal)

    def begin(self, rng: np.random.Generator) -> dict[str, Any]:
        angle = rng.uniform(-np.pi, np.pi)
        return {"goal": self.distance * np.array((np.cos(angle), np.sin(angle)))}

    def evaluate(self, state: RobotState, episode: dict[str, np.ndarray]) -> Outcome:
        to_goal = episode["goal"] - state.com[:, :2]
        distance, speed = (np.sqrt(np.square(vectors).sum(axis=1)) for vectors in (to_goal, state.velocity))
        is_reached = distance < 0.5
        reward = (state.velocity * to_goal).sum(axis=1) / np.maximum(distance, 1e-9) + 10.0 * is_reached
        cost = (speed > self.speed_limit).astype(np.float64)
        info = {"distance": distance, "speed": speed}
        return Outcome(reward, cost, ~state.is_healthy | is_reached, None, info, episode)

    def observe(self, state: RobotState, episode: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate((super().observe(state, episode), episode["goal"] - state.com[:, :2]), axis=1)

    def show(self, episode: dict[str, np.ndarray]) -> None:
        goal = self.robot_env.model.geom("goal").id
        self.robot_env.model.geom_pos[goal, :2] = self.robot_env.data.geom_xpos[goal, :2] = episode["goal"][0]


make_reach = ReachTask.make

for robot, steps in (("Point", 50), ("Ant", 500)):
    kwargs = {"robot": robot, "cost_limit": 10.0}
    gym.register(f"Safe{robot}Reach-v0", entry_point=f"{__name__}:make_reach", max_episode_steps=steps, kwargs=kwargs)
