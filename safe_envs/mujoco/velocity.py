"""
Velocity: gymnasium's ``-v4`` robots, and a cost of 1 in every step that is faster than a threshold (Safety-Gymnasium).

The single environment is gymnasium's own class. What ``BatchVecEnv`` needs, the rules of these classes over arrays with a
leading axis of copies, is written here once more; the tests hold the two against each other.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.mujoco.ant_v4 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v4 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v4 import HopperEnv
from gymnasium.envs.mujoco.humanoid_v4 import HumanoidEnv
from gymnasium.envs.mujoco.swimmer_v4 import SwimmerEnv
from gymnasium.envs.mujoco.walker2d_v4 import Walker2dEnv

from safe_envs.mujoco import robots
from safe_envs.mujoco.simulations import make_batch, n_bad_states
from safe_envs.mujoco.task import BatchedTask, Episode, Outcome


class QuietHalfCheetahEnv(HalfCheetahEnv):
    """gymnasium's class and model, loaded without MuJoCo's warning that the model's ``settotalmass`` is deprecated."""

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        # MjModel.from_xml_path prints the warning from C, for every copy; MjSpec leaves it to Python, where it can be met
        spec = mujoco.MjSpec.from_file(self.fullpath)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="compiler attribute .* is deprecated", category=UserWarning)
            model = spec.compile()
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        return model, mujoco.MjData(model)


# Health (n_envs,) by the rule of a class; its ends are open in some and closed in others
Health = Callable[[Any, np.ndarray, np.ndarray], np.ndarray]


def _ant_health(env: Any, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    low, high = env._healthy_z_range
    is_finite = np.isfinite(qpos).all(axis=1) & np.isfinite(qvel).all(axis=1)
    return is_finite & (low <= qpos[:, 2]) & (qpos[:, 2] <= high)


def _humanoid_health(env: Any, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    low, high = env._healthy_z_range
    return (low < qpos[:, 2]) & (qpos[:, 2] < high)


def _walker_health(env: Any, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    (low, high), (low_angle, high_angle) = env._healthy_z_range, env._healthy_angle_range
    return (low < qpos[:, 1]) & (qpos[:, 1] < high) & (low_angle < qpos[:, 2]) & (qpos[:, 2] < high_angle)


def _hopper_health(env: Any, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    low, high = env._healthy_state_range
    rest = np.concatenate((qpos[:, 2:], qvel), axis=1)
    return _walker_health(env, qpos, qvel) & ((low < rest) & (rest < high)).all(axis=1)


@dataclass(frozen=True)
class V4Robot:
    """
    What gymnasium's ``-v4`` classes do not have in common.

    :param env_class: the class, and no id of gymnasium's: no keyword makes -v5 give the same numbers
    :param position: whose change in a step is the velocity: the centre of mass, the torso, or x (and y) of qpos
    :param has_y: whether qpos begins with x and y, else with x alone; what it begins with is not observed
    :param is_speed_along_x: whether the threshold is one on ``x_velocity``, else on the length of the velocity
    :param reward_keys: of info: for the forward reward, the negative control cost and the reward of health
    :param health: None: it has none
    :param clips_velocities: whether velocities are observed between -10 and 10
    :param starts_normal: whether velocities at the start are drawn from a normal distribution, else from a uniform one
    :param is_humanoid: observes inertia, velocity and forces of its bodies; controls cost what they are in double precision
    """

    env_class: type[MujocoEnv]
    position: Literal["centre of mass", "torso", "qpos"] = "qpos"
    has_y: bool = False
    is_speed_along_x: bool = True
    reward_keys: tuple[str, ...] = ()
    health: Health | None = None
    clips_velocities: bool = False
    starts_normal: bool = False
    is_humanoid: bool = False


V4_ROBOTS = {
    "Ant": V4Robot(
        AntEnv,
        position="torso",
        has_y=True,
        is_speed_along_x=False,
        reward_keys=("reward_forward", "reward_ctrl", "reward_survive"),
        health=_ant_health,
        starts_normal=True,
    ),
    "HalfCheetah": V4Robot(QuietHalfCheetahEnv, reward_keys=("reward_run", "reward_ctrl"), starts_normal=True),
    "Hopper": V4Robot(HopperEnv, health=_hopper_health, clips_velocities=True),
    "Humanoid": V4Robot(
        HumanoidEnv,
        position="centre of mass",
        has_y=True,
        is_speed_along_x=False,
        reward_keys=("reward_linvel", "reward_quadctrl", "reward_alive"),
        health=_humanoid_health,
        is_humanoid=True,
    ),
    "Swimmer": V4Robot(SwimmerEnv, has_y=True, reward_keys=("reward_fwd", "reward_ctrl")),
    "Walker2d": V4Robot(Walker2dEnv, health=_walker_health, clips_velocities=True),
}


class V4State(NamedTuple):
    """What the rules of the -v4 classes read after a step or a reset; n_envs rows each."""

    qpos: np.ndarray
    qvel: np.ndarray
    position: np.ndarray  # (n_envs, 2), whose difference is the velocity; x only where the robot is planar
    position_before: np.ndarray  # (n_envs, 2), before the step
    action: np.ndarray  # as given
    dynamics: tuple[np.ndarray, ...]  # what only the humanoid observes: cinert, cvel, qfrc_actuator, cfrc_ext
    is_broken: np.ndarray | None


def moving_speed(info: dict[str, np.ndarray], is_along_x: bool) -> np.ndarray:
    """Speed (n_envs,) that the threshold is compared with; along x backwards counts as slow."""
    return info["x_velocity"] if is_along_x else np.hypot(info["x_velocity"], info["y_velocity"])


def speed_cost(speed: np.ndarray, threshold: float) -> np.ndarray:
    return (speed > threshold).astype(np.float64)


class VelocityTask(BatchedTask):
    """
    Action, observation, reward and termination: those of gymnasium's ``-v4`` class.

    Cost: 1 if the speed in this step is greater than the threshold, else 0; the speed is the length of
    ``(x_velocity, y_velocity)`` for Ant and Humanoid, and ``x_velocity`` for the others.

    :param env: of one of the ``V4_ROBOTS``
    :param threshold: highest speed without a cost
    :param cost_limit: bound on an episode's mean cost: 25 in Safety-Gymnasium
    """

    def __init__(self, env: gym.Env, threshold: float, cost_limit: float | None = None):
        gym.utils.RecordConstructorArgs.__init__(self, threshold=threshold, cost_limit=cost_limit)
        gym.Wrapper.__init__(self, env)
        robot = next((robot for robot in V4_ROBOTS.values() if isinstance(env.unwrapped, robot.env_class)), None)
        if robot is None:
            raise TypeError(f"VelocityTask wraps one of gymnasium's -v4 classes of {', '.join(V4_ROBOTS)}, got {env}")
        if not threshold > 0.0:
            raise ValueError(f"threshold must be positive, got {threshold}")
        self.robot = robot
        self.v4: Any = env.unwrapped
        self.threshold = threshold
        self.cost_limit = cost_limit

    # One copy

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        action = np.asarray(action)
        robots.check_action(action[None], (1, self.v4.model.nu))
        observation, reward, terminated, truncated, v4_info = self.env.step(action)
        info = {key: np.array([value], dtype=np.float64) for key, value in v4_info.items()}
        self._add_speed(info)
        is_broken = any(self.v4.data.warning[warning].number > 0 for warning in robots.BAD_STATE_WARNINGS)
        result: dict[str, Any] = {"cost": float(speed_cost(info["speed"], self.threshold)[0])}
        result.update((key, float(value[0])) for key, value in info.items())
        if is_broken:
            result["simulation_broken"] = 1.0
            self.count_broken()
        return observation, float(reward), bool(terminated) or is_broken, bool(truncated), result

    def _add_speed(self, info: dict[str, np.ndarray]) -> None:
        if "distance_from_origin" in info:
            x, y = info["x_position"], info["y_position"]
            info["distance_from_origin"] = np.sqrt(x * x + y * y)
        info["speed"] = moving_speed(info, self.robot.is_speed_along_x)

    # Many copies

    def make_simulation(self, n_envs: int, n_threads: int = 0) -> "V4Simulation":
        return V4Simulation(self.v4, self.robot, n_envs, n_threads)

    def evaluate(self, state: V4State, episode: Episode) -> Outcome:
        env = self.v4
        x_velocity, y_velocity = ((state.position - state.position_before) / env.dt).T
        forward_reward = getattr(env, "_forward_reward_weight", 1.0) * x_velocity
        action = state.action.astype(np.float64) if self.robot.is_humanoid else state.action
        ctrl_cost = env._ctrl_cost_weight * np.sum(np.square(action), axis=1)
        reward = forward_reward
        is_alive = np.ones(len(x_velocity), dtype=bool)
        terms = [forward_reward, -ctrl_cost]
        if self.robot.health is not None:
            healthy = self.robot.health(env, state.qpos, state.qvel)
            healthy_reward = (healthy | env._terminate_when_unhealthy) * env._healthy_reward
            reward = reward + healthy_reward
            terms.append(healthy_reward)
            if env._terminate_when_unhealthy:
                is_alive = healthy
        reward = reward - ctrl_cost

        # Hopper and Walker2d, without keys, do not report the terms of their rewards
        info = dict(zip(self.robot.reward_keys, terms, strict=False))
        x_position, y_position = state.position.T
        info |= {"x_position": x_position, "x_velocity": x_velocity}
        if self.robot.has_y:
            info |= {"y_position": y_position, "y_velocity": y_velocity}
            info |= {"forward_reward": forward_reward, "distance_from_origin": x_position}
        self._add_speed(info)
        terminated = ~is_alive if state.is_broken is None else ~is_alive | state.is_broken
        return Outcome(reward, speed_cost(info["speed"], self.threshold), terminated, None, info, episode)

    def observe(self, state: V4State, episode: Episode) -> np.ndarray:
        qpos, qvel = state.qpos, state.qvel
        if self.v4._exclude_current_positions_from_observation:
            qpos = qpos[:, 2:] if self.robot.has_y else qpos[:, 1:]
        if self.robot.clips_velocities:
            qvel = np.clip(qvel, -10, 10)
        return np.concatenate((qpos, qvel, *(value.reshape(len(qpos), -1) for value in state.dynamics)), axis=1)


class V4Simulation:
    """
    Copies of one of gymnasium's -v4 robots; the arrays of a state are views that the next call overwrites.

    :param env: one of the copies; its model and settings count for all
    :param robot: which it is
    :param n_envs: number of copies
    :param n_threads: threads that step them, 0 for all cores
    """

    def __init__(self, env: Any, robot: V4Robot, n_envs: int, n_threads: int = 0):
        if getattr(env, "_use_contact_forces", False):
            raise ValueError("BatchVecEnv does not know use_contact_forces=True: take DummyVecEnv or SubprocVecEnv")
        self.env = env
        self.robot = robot
        self.n_envs = n_envs
        self.is_broken: np.ndarray | None = None
        # cfrc_ext of the humanoid needs the contacts of the last substep, which only a copy's own MjData keeps
        self.batch = make_batch(env.model, n_envs, n_threads, persistent=robot.is_humanoid)
        self.qpos, self.qvel, self._ctrl = (self.batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
        self._dynamics: tuple[np.ndarray, ...] = ()
        if robot.is_humanoid:
            self._cfrc_ext = np.zeros((n_envs, env.model.nbody, 6))
            self._dynamics = (*(self.batch.bind(name) for name in ("cinert", "cvel", "qfrc_actuator")), self._cfrc_ext)
            self._data = mujoco.MjData(env.model)
        if robot.position == "centre of mass":
            self._xipos = self.batch.bind("xipos")
        elif robot.position == "torso":
            self._xpos = self.batch.bind("xpos")[:, env.model.body("torso").id]
        self._n_bad_states: Any = n_bad_states(self.batch)
        self._position = self._get_position()

    def _get_position(self) -> np.ndarray:
        """Position (n_envs, 2) whose difference is the velocity; of the last substep for Ant and Humanoid, as in -v4."""
        if self.robot.position == "centre of mass":
            masses = self.env.model.body_mass
            return np.einsum("b,nbj->nj", masses, self._xipos)[:, :2] / masses.sum()
        if self.robot.position == "torso":
            return self._xpos[:, :2].copy()
        position = self.qpos[:, :2].copy()
        if not self.robot.has_y:
            position[:, 1] = 0.0  # the second coordinate is a height
        return position

    def draw(self, rngs: list[np.random.Generator]) -> tuple[np.ndarray, np.ndarray]:
        """Draw qpos and qvel with which some copies start, one row for each generator."""
        env, scale = self.env, self.env._reset_noise_scale
        qpos, qvel = [], []
        for rng in rngs:
            qpos.append(env.init_qpos + rng.uniform(low=-scale, high=scale, size=env.model.nq))
            if self.robot.starts_normal:
                qvel.append(env.init_qvel + scale * rng.standard_normal(env.model.nv))
            else:
                qvel.append(env.init_qvel + rng.uniform(low=-scale, high=scale, size=env.model.nv))
        return np.array(qpos), np.array(qvel)

    def start(self, rows: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> V4State:
        """Put some copies into a state; the result has one row for each of them."""
        ids = rows.astype(np.int32)
        self.batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self.qpos[rows], self.qvel[rows] = qpos, qvel
        self.batch.forward(ids)
        if self.robot.is_humanoid:
            self._cfrc_ext[rows] = 0.0  # mj_forward alone does not compute it
        self._position[rows] = self._get_position()[rows]
        position, action = self._position[rows], np.zeros((len(rows), self.env.model.nu))
        dynamics = tuple(value[rows] for value in self._dynamics)
        return V4State(self.qpos[rows], self.qvel[rows], position, position, action, dynamics, None)

    def step(self, actions: np.ndarray) -> V4State:
        robots.check_action(actions, self._ctrl.shape)
        self._ctrl[:] = actions
        self.batch.step(nstep=self.env.frame_skip)
        if self.robot.is_humanoid:
            for row in range(self.n_envs):
                self.batch.get_data(row, self._data)
                mujoco.mj_rnePostConstraint(self.env.model, self._data)
                self._cfrc_ext[row] = self._data.cfrc_ext
        before, self._position = self._position, self._get_position()
        self.is_broken = self._n_bad_states.any(axis=1) if self._n_bad_states.any() else None
        return V4State(self.qpos, self.qvel, self._position, before, actions, self._dynamics, self.is_broken)

    def get_checkpoint_state(self) -> dict[str, np.ndarray]:
        """Everything that the next steps depend on."""
        state = {"state": self.batch.state.copy(), "warning": self.batch.warning.copy(), "position": self._position.copy()}
        return {**state, "cfrc_ext": self._cfrc_ext.copy()} if self.robot.is_humanoid else state

    def set_checkpoint_state(self, state: dict[str, np.ndarray]) -> None:
        self.batch.state[:], self.batch.warning[:] = state["state"], state["warning"]
        self._position = state["position"].copy()
        if self.robot.is_humanoid:
            self._cfrc_ext[:] = state["cfrc_ext"]

    def show(self, env: Any, row: int) -> None:
        """Bring an environment to the state of one copy."""
        env.set_state(self.qpos[row].copy(), self.qvel[row].copy())


def make_velocity(
    robot: str = "Ant",
    threshold: float = 2.6222,
    cost_limit: float | None = None,
    render_mode: str | None = None,
    **kwargs: Any,
) -> VelocityTask:
    """
    Make the environment behind ``Safe<robot>Velocity-v0``.

    :param robot: name of the robot
    :param threshold: highest speed without a cost
    :param cost_limit: bound on an episode's mean cost
    :param render_mode: one of the class's ``metadata["render_modes"]``
    :param kwargs: arguments of gymnasium's class
    """
    if robot not in V4_ROBOTS:
        raise ValueError(f"no robot is named {robot!r}: choose one of {', '.join(V4_ROBOTS)}")
    return VelocityTask(V4_ROBOTS[robot].env_class(render_mode=render_mode, **kwargs), threshold, cost_limit)
