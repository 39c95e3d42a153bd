"""Gather: collect apples, avoid bombs, sense both around you (Achiam et al. 2017, section 8; rllab's gather environment)."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np

from safe_envs.mujoco import robots
from safe_envs.mujoco.robots import RobotState
from safe_envs.mujoco.task import Episode, Outcome, Task

ACTIVITY_RANGE = 6.0  # objects and the Point stay within +-6; the walls' inner faces are at 6.5
CATCH_DISTANCE = 1.0
APPLE_REWARD = 10.0
FALL_REWARD = -10.0
N_BINS = 10
SENSOR_RANGE = 6.0
SENSOR_SPAN = np.pi

# Where objects can lie. The released code draws from -6 to 4, not to 6; that decides how dense the bombs are, so it stays.
GRID = np.array([(x, y) for x in range(-6, 6, 2) for y in range(-6, 6, 2) if (x, y) != (0, 0)], dtype=np.float64)


def place_objects(rng: np.random.Generator, n_objects: int) -> np.ndarray:
    """Draw positions (n_objects, 2) on the grid, without replacement."""
    return GRID[rng.permutation(len(GRID))[:n_objects]]


def find_taken(position: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """
    Whether an object is near enough to be taken, (n_envs, n_objects).

    :param position: (n_envs, 2)
    :param objects: (n_envs, n_objects, 2)
    """
    offset = objects - position[:, None]
    return offset[..., 0] * offset[..., 0] + offset[..., 1] * offset[..., 1] < CATCH_DISTANCE**2


def sense(position: np.ndarray, heading: np.ndarray, objects: np.ndarray, is_present: np.ndarray) -> np.ndarray:
    """
    Readings (n_envs, N_BINS) of a range sensor for objects of one kind. Bin 0 begins 90 degrees to the right of the heading,
    the last one ends 90 degrees to the left. The nearest object in a bin sets it to ``1 - distance / SENSOR_RANGE``.

    :param position: (n_envs, 2)
    :param heading: (n_envs,), radians
    :param objects: (n_envs, n_objects, 2)
    :param is_present: (n_envs, n_objects)
    """
    dx = objects[..., 0] - position[:, :1]
    dy = objects[..., 1] - position[:, 1:]
    distance = np.sqrt(dx * dx + dy * dy)
    angle = np.arctan2(dy, dx) - heading[:, None]
    angle -= 2.0 * np.pi * np.rint(angle / (2.0 * np.pi))
    half_span = SENSOR_SPAN / 2.0
    is_seen = is_present & (distance <= SENSOR_RANGE) & (np.abs(angle) <= half_span)
    bins = np.minimum(np.floor((angle + half_span) / (SENSOR_SPAN / N_BINS)), N_BINS - 1)
    intensity = np.where(is_seen, 1.0 - distance / SENSOR_RANGE, 0.0)
    return np.where(bins[..., None] == np.arange(N_BINS), intensity[..., None], 0.0).max(axis=1, initial=0.0)


class GatherTask(Task):
    """
    Observation: the robot's, then 10 bins for apples and 10 for bombs (see :func:`sense`), around the centre of mass and
    the heading (Point: its hinge; others: the yaw of the torso).

    Reward: 10 for every apple taken in this step, minus ``bomb_penalty`` for every bomb; -10 in place of all this in the
    step in which the robot falls.

    Cost: the number of bombs taken in this step. An object is taken when the centre of mass, seen from above, is less than
    1 away from it after the step.

    Termination: the robot's own, or when nothing is left. Truncation: the time limit.

    :param env: the robot
    :param n_apples: number of apples
    :param n_bombs: number of bombs
    :param bomb_penalty: 0 as in the paper's text; 1 as in its released code, where bombs lower the reward, too
    :param cost_limit: bound on an episode's mean cost: 0.1 (Point), 0.2 (Ant) in the paper
    """

    fixed_arguments = ("n_apples", "n_bombs")

    def __init__(
        self,
        env: gym.Env,
        n_apples: int = 8,
        n_bombs: int = 8,
        bomb_penalty: float = 0.0,
        cost_limit: float | None = None,
    ):
        super().__init__(env, cost_limit=cost_limit, n_apples=n_apples, n_bombs=n_bombs, bomb_penalty=bomb_penalty)
        if n_apples < 0 or n_bombs < 0 or not 1 <= n_apples + n_bombs <= len(GRID):
            raise ValueError(f"n_apples={n_apples} and n_bombs={n_bombs}: the grid has room for 1 to {len(GRID)} objects")
        self.n_apples = n_apples
        self.n_bombs = n_bombs
        self.bomb_penalty = bomb_penalty
        n_observations = env.observation_space.shape[0] + 2 * N_BINS  # type: ignore[index]
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (n_observations,), dtype=np.float64)
        self.robot_env.position_limit = min(self.robot_env.position_limit, ACTIVITY_RANGE)
        self.robot_env.add_scenery(GatherScenery(n_apples, n_bombs))
        self.robot_env.set_camera(distance=21.0, elevation=-65.0)

    def begin(self, rng: np.random.Generator) -> dict[str, Any]:
        n_objects = self.n_apples + self.n_bombs
        return {"objects": place_objects(rng, n_objects), "is_taken": np.zeros(n_objects, dtype=bool)}

    def evaluate(self, state: RobotState, episode: Episode) -> Outcome:
        objects, was_taken = episode["objects"], episode["is_taken"]
        takes = find_taken(state.com[:, :2], objects) & ~was_taken
        is_taken = was_taken | takes
        n_apples = takes[:, : self.n_apples].sum(axis=1)
        n_bombs = takes[:, self.n_apples :].sum(axis=1)
        reward = np.where(state.is_healthy, APPLE_REWARD * n_apples - self.bomb_penalty * n_bombs, FALL_REWARD)
        vx, vy = state.velocity.T
        info = {
            "apples": is_taken[:, : self.n_apples].sum(axis=1, dtype=np.float64),
            "bombs": is_taken[:, self.n_apples :].sum(axis=1, dtype=np.float64),
            "x_position": state.com[:, 0],
            "y_position": state.com[:, 1],
            "speed": np.sqrt(vx * vx + vy * vy),
        }
        terminated = ~state.is_healthy | is_taken.all(axis=1)
        return Outcome(reward, n_bombs.astype(np.float64), terminated, None, info, {"objects": objects, "is_taken": is_taken})

    def observe(self, state: RobotState, episode: Episode) -> np.ndarray:
        position, heading = state.com[:, :2], robots.yaw(self.robot_env.robot, state.qpos)
        objects, is_present, n_apples = episode["objects"], ~episode["is_taken"], self.n_apples
        apples = sense(position, heading, objects[:, :n_apples], is_present[:, :n_apples])
        bombs = sense(position, heading, objects[:, n_apples:], is_present[:, n_apples:])
        return np.concatenate((robots.observe(state), apples, bombs), axis=1)

    def show(self, episode: Episode) -> None:
        model, data = self.robot_env.model, self.robot_env.data
        geoms = slice(model.geom("object_0").id, model.geom("object_0").id + self.n_apples + self.n_bombs)
        model.geom_pos[geoms, :2] = data.geom_xpos[geoms, :2] = episode["objects"][0]
        model.geom_rgba[geoms, 3] = ~episode["is_taken"][0]


make_gather = GatherTask.make


@dataclass(frozen=True)
class GatherScenery:
    """Four walls that the robot can touch; apples in green and bombs in red, which it cannot."""

    n_apples: int
    n_bombs: int

    def __call__(self, spec: mujoco.MjSpec) -> None:
        touched = spec.body("torso").geoms[0]
        for name, x, y in (("east", 7.0, 0.0), ("north", 0.0, 7.0), ("west", -7.0, 0.0), ("south", 0.0, -7.0)):
            spec.worldbody.add_geom(
                name=f"wall_{name}",
                type=mujoco.mjtGeom.mjGEOM_BOX,
                pos=(x, y, 0.0),
                size=(0.5, 7.5, 1.0) if x else (7.5, 0.5, 1.0),
                rgba=(0.55, 0.6, 0.75, 1.0),
                contype=1,
                conaffinity=1,
                solref=touched.solref,
                solimp=touched.solimp,
            )
        for index in range(self.n_apples + self.n_bombs):
            spec.worldbody.add_geom(
                name=f"object_{index}",
                type=mujoco.mjtGeom.mjGEOM_SPHERE,
                pos=(*GRID[index], 0.4),
                size=(0.4, 0.0, 0.0),
                rgba=(0.15, 0.75, 0.2, 1.0) if index < self.n_apples else (0.9, 0.15, 0.15, 1.0),
                contype=0,
                conaffinity=0,
                density=0,
            )
