"""Robots as data, and a robot alone in a scene: no reward, no cost.

The functions work over arrays with a leading axis of copies, ``(n_envs, ...)``. :class:`RobotEnv` calls them with one
copy, :class:`~safe_envs.vec_env.BatchVecEnv` with all of its copies, so that both compute the same numbers bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco import MujocoEnv
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


def get_robot(name: str) -> Robot:
    if name not in ROBOTS:
        raise ValueError(f"no robot is named {name!r}: choose one of {', '.join(ROBOTS)}")
    return ROBOTS[name]


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


class RobotEnv(MujocoEnv):
    """
    A robot in a scene, without reward and cost: what a task is wrapped around, as in ``CircleTask(RobotEnv(ANT))``.

    Action: ``Box(-1, 1, (nu,), float32)``, clipped, and mapped to the control range of the model's actuators.
    Observation: qpos, qvel, for the humanoid also the contact forces ``clip(cfrc_ext, -1, 1)``, and the centre of mass.
    One step is one physics step. Terminates when the torso's height leaves the robot's healthy range, or when MuJoCo had
    to reset a numerically broken simulation (then ``info["simulation_broken"]`` is 1; the task counts and logs it).

    :param robot: ``POINT``, ``ANT``, ``HUMANOID`` or a :class:`Robot` of your own
    :param position_limit: the Point's x and y are clipped to this magnitude
    :param render_mode: one of ``metadata["render_modes"]``
    :param render_kwargs: width, height, camera_id, camera_name, max_geom, visual_options and
        default_camera_config of gymnasium's MujocoEnv
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"]}
    model: mujoco.MjModel
    data: mujoco.MjData

    def __init__(
        self, robot: Robot = POINT, position_limit: float = 40.0, render_mode: str | None = None, **render_kwargs: Any
    ):
        self.robot = robot
        self.position_limit = position_limit
        self.sceneries: tuple[Scenery, ...] = ()
        self._arguments = dict(robot=robot, position_limit=position_limit, render_mode=render_mode, **render_kwargs)
        super().__init__(robot.model_path, 1, None, render_mode=render_mode, **render_kwargs)
        # Not a class attribute: the robots' time steps differ
        self.metadata = {**self.metadata, "render_fps": round(1.0 / self.dt)}
        if robot.init_qpos is not None:
            self.init_qpos = np.array(robot.init_qpos)
        self._action = np.zeros((1, self.model.nu))
        self._forward()
        self.observation_space = spaces.Box(-np.inf, np.inf, observe(self.robot_state)[0].shape, dtype=np.float64)

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model = mujoco.MjModel.__copy__(compile_model(self.robot, self.sceneries))
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        return model, mujoco.MjData(model)

    def _set_action_space(self) -> spaces.Box:
        self.action_space = spaces.Box(-1.0, 1.0, (self.model.nu,), dtype=np.float32)
        return self.action_space

    def add_scenery(self, scenery: Scenery) -> None:
        """
        Build the model anew with more geoms in it; the state of the simulation is kept.

        :param scenery: a hashable callable that edits the ``mujoco.MjSpec``
        """
        self.sceneries = (*self.sceneries, scenery)
        qpos, qvel = self.data.qpos.copy(), self.data.qvel.copy()
        self.mujoco_renderer.close()
        self.model, self.data = self._initialize_simulation()
        self.mujoco_renderer.model, self.mujoco_renderer.data = self.model, self.data
        self.set_state(qpos, qvel)

    def set_camera(self, **config: Any) -> None:
        """Look at the scene in this way, unless the user has given a ``default_camera_config``."""
        if "default_camera_config" not in self._arguments:
            self.mujoco_renderer.default_cam_config = config

    @property
    def com_offset(self) -> np.ndarray:
        """Centre of mass in the frame of the torso's body, (3,); used for the Point."""
        return self.model.body("torso").ipos

    def _forward(self, is_broken: bool = False) -> None:
        """Compute all that follows from qpos and qvel; the trajectory does not change by it."""
        mujoco.mj_forward(self.model, self.data)
        mujoco.mj_subtreeVel(self.model, self.data)
        mujoco.mj_rnePostConstraint(self.model, self.data)
        qpos, qvel = self.data.qpos[None].copy(), self.data.qvel[None].copy()
        if self.robot.is_kinematic:
            self.robot_state = point_state(qpos, qvel, self._action, self.com_offset)
            return
        cfrc_ext = self.data.cfrc_ext[None].copy() if self.robot.observes_contact_forces else None
        self.robot_state = physics_state(
            self.robot, qpos, qvel, self.data.sensordata[None].copy(), cfrc_ext, self._action, np.array([is_broken])
        )

    def set_state(self, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Set qpos and qvel so that the next transition depends on them and on the action alone."""
        qpos, qvel = np.asarray(qpos, dtype=np.float64), np.asarray(qvel, dtype=np.float64)
        if qpos.shape != (self.model.nq,) or qvel.shape != (self.model.nv,):
            raise ValueError(
                f"expected qpos of shape {(self.model.nq,)} and qvel of shape {(self.model.nv,)}, "
                f"got {qpos.shape} and {qvel.shape}"
            )
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        self.data.qacc_warmstart[:] = 0.0
        self.data.ctrl[:] = 0.0
        for warning in BAD_STATE_WARNINGS:
            self.data.warning[warning].number = 0
        self._action = np.zeros((1, self.model.nu))
        self._forward()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        gym.Env.reset(self, seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        noise = self.np_random.standard_normal((1, self.model.nq + self.model.nv))
        qpos, qvel = start_state(noise, self.init_qpos)
        self.set_state(qpos[0], qvel[0])
        return observe(self.robot_state)[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:  # type: ignore[override]
        self._action = clip_action(np.asarray(action)[None], 1, self.model.nu)
        control = to_control(self._action, self.model.actuator_ctrlrange)
        self.data.ctrl[:] = control[0]
        is_broken = False
        if self.robot.is_kinematic:
            qpos, qvel = move_point(self.data.qpos[None].copy(), control, self.position_limit)
            self.data.qpos[:], self.data.qvel[:] = qpos[0], qvel[0]
        else:
            mujoco.mj_step(self.model, self.data)
            if is_out_of_range(self.data.qpos[None], self.data.qvel[None])[0]:
                mujoco.mj_resetData(self.model, self.data)  # as MuJoCo does it, only before anyone sees the numbers
                is_broken = True
            # MuJoCo puts a broken state back to the start, finite: its warnings say so, the state does not
            is_broken = is_broken or any(self.data.warning[warning].number > 0 for warning in BAD_STATE_WARNINGS)
        self._forward(is_broken)
        info: dict[str, Any] = {}
        if is_broken:
            info["simulation_broken"] = 1.0
        return observe(self.robot_state)[0], 0.0, not self.robot_state.is_healthy[0], False, info

    def __getstate__(self) -> dict[str, Any]:
        spec = mujoco.mjtState.mjSTATE_INTEGRATION
        integration_state = np.empty(mujoco.mj_stateSize(self.model, spec))
        mujoco.mj_getState(self.model, self.data, integration_state, spec)
        return {
            "arguments": self._arguments,
            "position_limit": self.position_limit,
            "camera": self.mujoco_renderer.default_cam_config,
            "sceneries": self.sceneries,
            "spec": self.spec,
            "np_random": self._np_random,
            "np_random_seed": self._np_random_seed,
            "integration_state": integration_state,
            "action": self._action,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        RobotEnv.__init__(self, **state["arguments"])
        # A task may have changed these since
        self.position_limit = state["position_limit"]
        self.mujoco_renderer.default_cam_config = state["camera"]
        for scenery in state["sceneries"]:
            self.add_scenery(scenery)
        self.spec = state["spec"]
        self._np_random, self._np_random_seed = state["np_random"], state["np_random_seed"]
        integration_state = state["integration_state"]
        mujoco.mj_setState(self.model, self.data, integration_state, mujoco.mjtState.mjSTATE_INTEGRATION)
        self._action = state["action"]
        self._forward()
        # mj_forward may move the solver's starting point
        mujoco.mj_setState(self.model, self.data, integration_state, mujoco.mjtState.mjSTATE_INTEGRATION)


def add_visual_box(spec: mujoco.MjSpec, name: str, pos: Any, size: Any, rgba: Any) -> None:
    """Add a box that touches nothing to the world."""
    spec.worldbody.add_geom(
        name=name, type=mujoco.mjtGeom.mjGEOM_BOX, pos=pos, size=size, rgba=rgba, contype=0, conaffinity=0, density=0
    )
