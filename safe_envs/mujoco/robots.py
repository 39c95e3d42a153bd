"""Robots as data, and their rules: controls, motion of the Point, health, heading, observation.

The functions work over arrays with a leading axis of copies, ``(n_envs, ...)``. :class:`~safe_envs.RobotEnv` calls them with
one copy, :class:`~safe_envs.BatchVecEnv` with all of its copies, so that both compute the same numbers bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_env import expand_model_path

# Adds geoms to the world body of a model that is not compiled yet; hashable, so that models can be cached.
Scenery = Callable[[mujoco.MjSpec], None]

# MuJoCo resets a simulation whose state is NaN or larger than this (mjMAXVAL), at the start of the next step
MAX_STATE = 1e10
BAD_STATE_WARNINGS = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)

_SENSORS = (("com", mujoco.mjtSensor.mjSENS_SUBTREECOM), ("com_velocity", mujoco.mjtSensor.mjSENS_SUBTREELINVEL))


class RobotState(NamedTuple):
    """What robots, tasks and observations read after a step or a reset; n_envs rows each."""

    qpos: np.ndarray  # (n_envs, nq)
    qvel: np.ndarray  # (n_envs, nv)
    com: np.ndarray  # (n_envs, 3), centre of mass of the whole robot
    position: np.ndarray  # (n_envs, 2), what moves around a circle: the com; the Point's joint origin
    velocity: np.ndarray  # (n_envs, 2), its velocity; the Point's displacement in this step, before clipping
    contact_forces: np.ndarray | None  # (n_envs, 6 * nbody), cfrc_ext clipped to [-1, 1], if the robot observes it
    action: np.ndarray  # (n_envs, nu), normalised and clipped to [-1, 1]; zero after a reset
    is_healthy: np.ndarray  # (n_envs,) bool


@dataclass(frozen=True)
class Robot:
    """
    A robot: a model and the few numbers that MuJoCo's model does not hold.

    :param name: name in the environment ids
    :param model_path: MJCF file, in gymnasium's assets or an absolute path
    :param edit: changes the model before it is compiled
    :param init_qpos: pose around which episodes start, the model's own if None
    :param healthy_z: the episode terminates when the torso's height ``qpos[2]`` leaves this range, never if None
    :param is_kinematic: moved by ``move_point`` instead of by physics
    :param observes_contact_forces: whether the observation holds ``cfrc_ext``
    """

    name: str
    model_path: str
    edit: Scenery | None = None
    init_qpos: tuple[float, ...] | None = None
    healthy_z: tuple[float, float] | None = None
    is_kinematic: bool = False
    observes_contact_forces: bool = False


def _restyle(spec: mujoco.MjSpec) -> None:
    """A floor on which other things stand out."""
    spec.material("MatPlane").reflectance = 0.1
    for texture in spec.textures:
        if texture.type == mujoco.mjtTexture.mjTEXTURE_CUBE:
            texture.width, texture.height = 32, 192  # a plain colour: gymnasium's 127 x 762 pixels are half of the model
        elif texture.type == mujoco.mjtTexture.mjTEXTURE_2D:
            texture.rgb1, texture.rgb2 = (0.36, 0.40, 0.44), (0.43, 0.47, 0.51)


def _edit_point(spec: mujoco.MjSpec) -> None:
    _restyle(spec)
    spec.body("torso").geoms[0].rgba = spec.body("torso").geoms[1].rgba = (0.95, 0.6, 0.1, 1.0)


def _edit_ant(spec: mujoco.MjSpec) -> None:
    """Make gymnasium's ant the ant of Achiam et al. 2017, that is rllab's."""
    _restyle(spec)
    spec.option.timestep = 0.02
    for geom in spec.geoms:
        geom.solref = (0.02, 1.0)
        geom.solimp[:3] = (0.8, 0.8, 0.01)
    for camera in list(spec.cameras):
        spec.delete(camera)
    for actuator in spec.actuators:
        actuator.gear[0] = 1.0
        actuator.ctrlrange = (-150.0, 150.0)


_ASSETS = Path(__file__).parent / "assets"

POINT = Robot("Point", "point.xml", edit=_edit_point, is_kinematic=True)
ANT = Robot(
    "Ant",
    "ant.xml",
    edit=_edit_ant,
    init_qpos=(0.0, 0.0, 0.55, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0),
    healthy_z=(0.2, 1.0),
)
HUMANOID = Robot(
    "Humanoid",
    str(_ASSETS / "humanoid.xml"),
    edit=_restyle,
    healthy_z=(0.8, 2.0),
    observes_contact_forces=True,
)
ROBOTS = {robot.name: robot for robot in (POINT, ANT, HUMANOID)}


def get_robot(robot: str | Robot) -> Robot:
    """
    Find a robot.

    :param robot: a robot, its name, or where it is defined: ``"package.module:NAME"``
    :raises ValueError: if no robot has the name
    """
    if isinstance(robot, Robot):
        return robot
    if robot in ROBOTS:
        return ROBOTS[robot]
    module, _, attribute = robot.partition(":")
    found = getattr(import_module(module), attribute, None) if attribute else None
    if not isinstance(found, Robot):
        raise ValueError(f"no robot is named {robot!r}: choose one of {', '.join(ROBOTS)}, or write 'package.module:NAME'")
    return found


@lru_cache(maxsize=32)
def compile_model(robot: Robot, sceneries: tuple[Scenery, ...] = ()) -> mujoco.MjModel:
    """Compile a robot in a scene; the model is shared by all who ask for the same, so copy it before you change it."""
    spec = mujoco.MjSpec.from_file(expand_model_path(robot.model_path))
    if robot.edit is not None:
        robot.edit(spec)
    # The sensors fill subtree_linvel and cfrc_ext in a batched step, too
    for name, sensor_type in _SENSORS:
        spec.add_sensor(name=name, type=sensor_type, objtype=mujoco.mjtObj.mjOBJ_BODY, objname="torso")
    if robot.observes_contact_forces:
        spec.body("torso").add_site(name="torso", group=5)
        spec.add_sensor(
            name="accelerometer",
            type=mujoco.mjtSensor.mjSENS_ACCELEROMETER,
            objtype=mujoco.mjtObj.mjOBJ_SITE,
            objname="torso",
        )
    for scenery in sceneries:
        scenery(spec)
    return spec.compile()


def clip_action(action: Any, n_envs: int, n_actions: int) -> np.ndarray:
    """
    Bring actions into the normalised box.

    :return: ``(n_envs, n_actions)`` in [-1, 1], float64
    """
    action = np.asarray(action)
    check_action(action, (n_envs, n_actions))
    return np.minimum(np.maximum(action.astype(np.float64), -1.0), 1.0)  # np.clip has several times the overhead


def check_action(action: np.ndarray, shape: tuple[int, int]) -> None:
    """Raise ValueError unless the action is finite numbers of the shape (n_envs, n_actions)."""
    if action.shape != shape:
        raise ValueError(f"expected actions of shape {shape} (copies, actuators), got {action.shape}")
    if action.dtype.kind not in "fiu":
        raise ValueError(f"expected actions that are numbers, got dtype {action.dtype}")
    if not np.isfinite(action).all():
        row = int(np.flatnonzero(~np.isfinite(action).all(axis=1))[0])
        raise ValueError(f"the action of copy {row} is not finite: {action[row]}")


def to_control(action: np.ndarray, control_range: np.ndarray) -> np.ndarray:
    """Map normalised actions (n_envs, nu) to the controls of a model with ``actuator_ctrlrange`` (nu, 2)."""
    low, high = control_range.T
    return low + (action + 1.0) / 2.0 * (high - low)


def move_point(qpos: np.ndarray, control: np.ndarray, position_limit: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Turn, then drive along the new heading; no physics.

    :param qpos: (n_envs, 3), x, y and heading
    :param control: (n_envs, 2), speed and turn of this step
    :return: new qpos, and as qvel what the step did: dx and dy before clipping, and the turn
    """
    speed, turn = control.T
    heading = qpos[:, 2] + turn
    new_qpos, qvel = np.empty(qpos.shape), np.empty(qpos.shape)
    np.multiply(speed[:, None], direction(heading), out=qvel[:, :2])
    qvel[:, 2] = turn
    new_qpos[:, :2] = np.minimum(np.maximum(qpos[:, :2] + qvel[:, :2], -position_limit), position_limit)
    new_qpos[:, 2] = heading
    return new_qpos, qvel


def direction(heading: np.ndarray) -> np.ndarray:
    """Unit vectors (n_envs, 2) that point along headings (n_envs,) in radians."""
    vectors = np.empty((len(heading), 2))
    vectors[:, 0] = np.cos(heading)
    vectors[:, 1] = np.sin(heading)
    return vectors


def point_com(qpos: np.ndarray, com_offset: np.ndarray) -> np.ndarray:
    """Centre of mass (n_envs, 3) of the Point, whose offset in the body's frame is (ahead, 0, up)."""
    com = np.empty(qpos.shape)
    com[:, :2] = qpos[:, :2] + com_offset[0] * direction(qpos[:, 2])
    com[:, 2] = com_offset[2]
    return com


def is_out_of_range(qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    """Whether MuJoCo would reset the state (n_envs,): NaN, infinite or huge."""
    return ~((np.abs(qpos) <= MAX_STATE).all(axis=1) & (np.abs(qvel) <= MAX_STATE).all(axis=1))


def is_healthy(robot: Robot, qpos: np.ndarray) -> np.ndarray:
    if robot.healthy_z is None:
        return np.ones(len(qpos), dtype=bool)
    low, high = robot.healthy_z
    return (low <= qpos[:, 2]) & (qpos[:, 2] <= high)


def yaw(robot: Robot, qpos: np.ndarray) -> np.ndarray:
    """Heading (n_envs,) in radians: the Point's hinge, or the yaw of the torso's quaternion."""
    if robot.is_kinematic:
        return qpos[:, 2]
    w, x, y, z = np.ascontiguousarray(qpos[:, 3:7].T)
    return np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))


def observe(state: RobotState) -> np.ndarray:
    """Observation (n_envs, n): qpos, qvel, contact forces where the robot has them, com."""
    if state.contact_forces is None:
        return np.concatenate((state.qpos, state.qvel, state.com), axis=1)
    return np.concatenate((state.qpos, state.qvel, state.contact_forces, state.com), axis=1)


def point_state(qpos: np.ndarray, qvel: np.ndarray, action: np.ndarray, com_offset: np.ndarray) -> RobotState:
    com = point_com(qpos, com_offset)
    return RobotState(qpos, qvel, com, qpos[:, :2], qvel[:, :2], None, action, np.ones(len(qpos), dtype=bool))


def physics_state(
    robot: Robot,
    qpos: np.ndarray,
    qvel: np.ndarray,
    sensordata: np.ndarray,
    cfrc_ext: np.ndarray | None,
    action: np.ndarray,
    is_broken: np.ndarray | None,
) -> RobotState:
    com, com_velocity = sensordata[:, :3], sensordata[:, 3:6]
    contact_forces = None if cfrc_ext is None else np.clip(cfrc_ext, -1.0, 1.0).reshape(len(qpos), -1)
    healthy = is_healthy(robot, qpos)
    if is_broken is not None:
        healthy &= ~is_broken
    return RobotState(qpos, qvel, com, com[:, :2], com_velocity[:, :2], contact_forces, action, healthy)


def start_state(noise: np.ndarray, init_qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    The states qpos (n_envs, nq) and qvel (n_envs, nv) with which episodes start.

    :param noise: (n_envs, nq + nv), standard normal
    :param init_qpos: (nq,)
    """
    nq = len(init_qpos)
    return init_qpos + 0.01 * noise[:, :nq], 0.1 * noise[:, nq:]


def add_visual_box(spec: mujoco.MjSpec, name: str, pos: Any, size: Any, rgba: Any) -> None:
    """Add a box that touches nothing to the world."""
    spec.worldbody.add_geom(
        name=name, type=mujoco.mjtGeom.mjGEOM_BOX, pos=pos, size=size, rgba=rgba, contype=0, conaffinity=0, density=0
    )
