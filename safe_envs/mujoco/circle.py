"""Circle: run around a circle, and stay between two walls that cut it (Achiam et al. 2017, section 8)."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np

from safe_envs.mujoco.robots import RobotState, add_visual_box
from safe_envs.mujoco.task import Episode, Outcome, Task


def circle_reward(position: np.ndarray, velocity: np.ndarray, radius: float) -> np.ndarray:
    """
    Speed around the origin, counter-clockwise, in units of the distance, best on the circle:
    ``(x vy - y vx) / (1 + | |(x, y)| - radius |)``.

    :param position: (n_envs, 2)
    :param velocity: (n_envs, 2)
    """
    x, y = position.T
    vx, vy = velocity.T
    return (x * vy - y * vx) / (1.0 + np.abs(np.sqrt(x * x + y * y) - radius))


def circle_cost(x: np.ndarray, x_limit: float) -> np.ndarray:
    """1 where the centre of mass is at or behind one of the panels at ``x = +-x_limit``, else 0."""
    return (np.abs(x) >= x_limit).astype(np.float64)


class CircleTask(Task):
    """
    Reward: ``(x vy - y vx) / (1 + |sqrt(x^2 + y^2) - radius|)``, with the position and velocity of the centre of mass (of
    the Point: position of its joint origin, and displacement in this step) after the step; plus, for the humanoid,
    ``alive_bonus - ctrl_cost_weight * sum(a^2) - contact_cost_weight * sum(clip(cfrc_ext, -1, 1)^2)``.

    Cost: 1 if ``|x| >= x_limit`` with the x of the centre of mass after the step, else 0.

    Termination: the robot's own. Truncation: the time limit, or after a number of steps that is drawn at every reset,
    uniformly from ``min_horizon`` to ``max_horizon``, where these are given.

    :param env: the robot
    :param radius: of the target circle
    :param x_limit: where the boundary panels stand
    :param alive_bonus: added to every step's reward, the terminal step's too
    :param ctrl_cost_weight: of the squared normalised action
    :param contact_cost_weight: of the squared contact forces
    :param min_horizon: shortest episode, None for no horizon but the time limit
    :param max_horizon: longest episode
    :param cost_limit: bound on an episode's mean cost: 5 (Point), 10 (Ant, Humanoid) in the paper
    """

    fixed_arguments = ("min_horizon", "max_horizon")

    def __init__(
        self,
        env: gym.Env,
        radius: float = 10.0,
        x_limit: float = 3.0,
        alive_bonus: float = 0.0,
        ctrl_cost_weight: float = 0.0,
        contact_cost_weight: float = 0.0,
        min_horizon: int | None = None,
        max_horizon: int | None = None,
        cost_limit: float | None = None,
    ):
        super().__init__(
            env,
            cost_limit=cost_limit,
            radius=radius,
            x_limit=x_limit,
            alive_bonus=alive_bonus,
            ctrl_cost_weight=ctrl_cost_weight,
            contact_cost_weight=contact_cost_weight,
            min_horizon=min_horizon,
            max_horizon=max_horizon,
        )
        if (min_horizon is None) != (max_horizon is None):
            raise ValueError(f"give both or none of min_horizon={min_horizon} and max_horizon={max_horizon}")
        if min_horizon is not None and max_horizon is not None and not 1 <= min_horizon <= max_horizon:
            raise ValueError(f"expected 1 <= min_horizon <= max_horizon, got {min_horizon} and {max_horizon}")
        if radius <= 0.0 or x_limit <= 0.0:
            raise ValueError(f"radius and x_limit must be positive, got {radius} and {x_limit}")
        if contact_cost_weight and not self.robot_env.robot.observes_contact_forces:
            raise ValueError(
                f"contact_cost_weight={contact_cost_weight}: {self.robot_env.robot.name} senses no contact forces"
            )
        self.radius = radius
        self.x_limit = x_limit
        self.alive_bonus = alive_bonus
        self.ctrl_cost_weight = ctrl_cost_weight
        self.contact_cost_weight = contact_cost_weight
        self.min_horizon = min_horizon
        self.max_horizon = max_horizon
        self.robot_env.add_scenery(CircleScenery(radius, x_limit))
        # The whole circle in a square picture: at 45 degrees of view, 2.42 radii would just do
        self.robot_env.set_camera(distance=2.65 * radius, elevation=-45.0, lookat=np.array((0.0, -0.08 * radius, 0.0)))

    def begin(self, rng: np.random.Generator) -> dict[str, Any]:
        if self.min_horizon is None or self.max_horizon is None:
            return {}
        n_lengths = self.max_horizon - self.min_horizon + 1
        # rng.integers would cost as much as all the rest of a reset
        return {"elapsed": 0, "horizon": self.min_horizon + int(n_lengths * rng.random())}

    def evaluate(self, state: RobotState, episode: Episode) -> Outcome:
        reward = reward_circle = circle_reward(state.position, state.velocity, self.radius)
        info = {"reward_circle": reward_circle}
        if self.alive_bonus or self.ctrl_cost_weight or self.contact_cost_weight:
            info["reward_alive"] = np.full(len(reward), self.alive_bonus)
            info["reward_ctrl"] = -self.ctrl_cost_weight * np.square(state.action).sum(axis=1)
            reward = reward + info["reward_alive"] + info["reward_ctrl"]
            if state.contact_forces is not None:
                info["reward_contact"] = -self.contact_cost_weight * np.square(state.contact_forces).sum(axis=1)
                reward = reward + info["reward_contact"]
        info["x_position"], info["y_position"] = state.com[:, 0], state.com[:, 1]
        vx, vy = state.velocity.T
        info["speed"] = np.sqrt(vx * vx + vy * vy)
        truncated = None
        if "horizon" in episode:
            elapsed = episode["elapsed"] + 1
            truncated = elapsed >= episode["horizon"]
            episode = {"elapsed": elapsed, "horizon": episode["horizon"]}
        return Outcome(reward, circle_cost(state.com[:, 0], self.x_limit), ~state.is_healthy, truncated, info, episode)


make_circle = CircleTask.make


@dataclass(frozen=True)
class CircleScenery:
    """The target circle as a ring on the floor, and the two boundary panels."""

    radius: float
    x_limit: float

    def __call__(self, spec: mujoco.MjSpec) -> None:
        length = 1.25 * self.radius
        for side, x in (("left", -self.x_limit), ("right", self.x_limit)):
            add_visual_box(spec, f"panel_{side}", (x, 0.0, 0.5), (0.05, length, 0.5), (0.95, 0.25, 0.2, 0.7))
        add_visual_box(spec, "safe_region", (0.0, 0.0, 0.005), (self.x_limit, length, 0.005), (0.2, 0.8, 0.3, 0.25))
        mesh = spec.add_mesh(name="target_circle", inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL)
        vertices, faces = ring_mesh(self.radius, half_width=0.015 * self.radius, height=0.05)
        mesh.uservert, mesh.userface = vertices.ravel(), faces.ravel()
        spec.worldbody.add_geom(
            name="target_circle",
            type=mujoco.mjtGeom.mjGEOM_MESH,
            meshname="target_circle",
            rgba=(0.2, 0.55, 1.0, 1.0),
            contype=0,
            conaffinity=0,
            density=0,
        )


def ring_mesh(radius: float, half_width: float, height: float, n_segments: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and triangles of a flat ring around the z axis, on the floor, with a rectangular cross-section."""
    angles = 2.0 * np.pi * np.arange(n_segments) / n_segments
    profile = (
        (radius - half_width, 0.0),
        (radius + half_width, 0.0),
        (radius + half_width, height),
        (radius - half_width, height),
    )
    vertices = np.stack([np.stack((r * np.cos(angles), r * np.sin(angles), np.full(n_segments, z)), 1) for r, z in profile], 1)
    faces = []
    for segment in range(n_segments):
        here, there = 4 * segment, 4 * ((segment + 1) % n_segments)
        for k in range(4):
            j = (k + 1) % 4
            faces += [(here + k, there + j, here + j), (here + k, there + k, there + j)]
    return vertices.reshape(-1, 3), np.array(faces)
