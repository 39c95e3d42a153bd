"""
Velocity: gymnasium's ``-v4`` robots, and a cost of 1 in every step that is faster than a threshold (Safety-Gymnasium).

The single environment is gymnasium's own class. What ``BatchVecEnv`` needs, the rules of these classes over arrays with a
leading axis of copies, is written here once more; the tests hold the two against each other.
"""

import warnings
from typing import Any, NamedTuple

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
from safe_envs.mujoco.simulations import make_batch
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


# The classes, not gymnasium's ids: no keyword makes -v5 give the same numbers
ROBOT_CLASSES: dict[str, type[MujocoEnv]] = {
    "Ant": AntEnv,
    "HalfCheetah": QuietHalfCheetahEnv,
    "Hopper": HopperEnv,
    "Humanoid": HumanoidEnv,
    "Swimmer": SwimmerEnv,
    "Walker2d": Walker2dEnv,
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


def moving_speed(info: dict[str, np.ndarray], is_planar: bool) -> np.ndarray:
    """Speed (n_envs,) that the threshold is compared with; along x for planar robots, where backwards counts as slow."""
    return info["x_velocity"] if is_planar else np.hypot(info["x_velocity"], info["y_velocity"])


def speed_cost(speed: np.ndarray, threshold: float) -> np.ndarray:
    return (speed > threshold).astype(np.float64)


class VelocityTask(BatchedTask):
    """
    Action, observation, reward and termination: those of gymnasium's ``-v4`` class.

    Cost: 1 if the speed in this step is greater than the threshold, else 0; the speed is the length of
    ``(x_velocity, y_velocity)`` for Ant and Humanoid, and ``x_velocity`` for the others.

    :param env: one of the ``ROBOT_CLASSES``
    :param threshold: highest speed without a cost
    :param cost_limit: bound on an episode's mean cost: 25 in Safety-Gymnasium
    """

    def __init__(self, env: gym.Env, threshold: float, cost_limit: float | None = None):
        gym.utils.RecordConstructorArgs.__init__(self, threshold=threshold, cost_limit=cost_limit)
        gym.Wrapper.__init__(self, env)
        if not isinstance(env.unwrapped, tuple(ROBOT_CLASSES.values())):
            raise TypeError(f"VelocityTask wraps one of gymnasium's -v4 classes of {', '.join(ROBOT_CLASSES)}, got {env}")
        if not threshold > 0.0:
            raise ValueError(f"threshold must be positive, got {threshold}")
        self.v4: Any = env.unwrapped
        self.threshold = threshold
        self.cost_limit = cost_limit
        self.is_planar = not isinstance(self.v4, AntEnv | HumanoidEnv)

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
        info["speed"] = moving_speed(info, self.is_planar)

    # Many copies

    def make_simulation(self, n_envs: int, n_threads: int = 0) -> "V4Simulation":
        return V4Simulation(self.v4, n_envs, n_threads)

    def evaluate(self, state: V4State, episode: Episode) -> Outcome:
        env = self.v4
        x_velocity, y_velocity = ((state.position - state.position_before) / env.dt).T
        forward_reward = getattr(env, "_forward_reward_weight", 1.0) * x_velocity
        if isinstance(env, HumanoidEnv):
            ctrl_cost = env._ctrl_cost_weight * np.sum(np.square(state.action.astype(np.float64)), axis=1)
        else:
            ctrl_cost = env._ctrl_cost_weight * np.sum(np.square(state.action), axis=1)
        reward = forward_reward
        is_alive = np.ones(len(x_velocity), dtype=bool)
        if hasattr(env, "_healthy_reward"):
            healthy = self.is_healthy(state.qpos, state.qvel)
            healthy_reward = (healthy | env._terminate_when_unhealthy) * env._healthy_reward
            reward = reward + healthy_reward
            if env._terminate_when_unhealthy:
                is_alive = healthy
        reward = reward - ctrl_cost

        info: dict[str, np.ndarray] = {}
        x_position, y_position = state.position.T
        match env:
            case AntEnv():
                info = {"reward_forward": forward_reward, "reward_ctrl": -ctrl_cost, "reward_survive": healthy_reward}
            case HalfCheetahEnv():
                info = {"reward_run": forward_reward, "reward_ctrl": -ctrl_cost}
            case SwimmerEnv():
                info = {"reward_fwd": forward_reward, "reward_ctrl": -ctrl_cost}
            case HumanoidEnv():
                info = {"reward_linvel": forward_reward, "reward_quadctrl": -ctrl_cost, "reward_alive": healthy_reward}
        info |= {"x_position": x_position, "x_velocity": x_velocity}
        if isinstance(env, AntEnv | HumanoidEnv | SwimmerEnv):
            info |= {"y_position": y_position, "y_velocity": y_velocity}
            info |= {"forward_reward": forward_reward, "distance_from_origin": x_position}
        self._add_speed(info)
        terminated = ~is_alive if state.is_broken is None else ~is_alive | state.is_broken
        return Outcome(reward, speed_cost(info["speed"], self.threshold), terminated, None, info, episode)

    def is_healthy(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Health (n_envs,) of Ant, Hopper, Humanoid and Walker2d by the rules of their classes."""
        env = self.v4
        low, high = env._healthy_z_range
        if isinstance(env, AntEnv):
            is_finite = np.isfinite(qpos).all(axis=1) & np.isfinite(qvel).all(axis=1)
            return is_finite & (low <= qpos[:, 2]) & (qpos[:, 2] <= high)
        if isinstance(env, HumanoidEnv):
            return (low < qpos[:, 2]) & (qpos[:, 2] < high)
        low_angle, high_angle = env._healthy_angle_range
        healthy = (low < qpos[:, 1]) & (qpos[:, 1] < high) & (low_angle < qpos[:, 2]) & (qpos[:, 2] < high_angle)
        if isinstance(env, HopperEnv):
            low_state, high_state = env._healthy_state_range
            rest = np.concatenate((qpos[:, 2:], qvel), axis=1)
            healthy &= ((low_state < rest) & (rest < high_state)).all(axis=1)
        return healthy

    def observe(self, state: V4State, episode: Episode) -> np.ndarray:
        env = self.v4
        qpos, qvel = state.qpos, state.qvel
        if env._exclude_current_positions_from_observation:
            qpos = qpos[:, 2:] if isinstance(env, AntEnv | HumanoidEnv | SwimmerEnv) else qpos[:, 1:]
        if isinstance(env, HopperEnv | Walker2dEnv):
            qvel = np.clip(qvel, -10, 10)
        return np.concatenate((qpos, qvel, *(value.reshape(len(qpos), -1) for value in state.dynamics)), axis=1)


class V4Simulation:
    """
    Copies of one of gymnasium's -v4 robots; the arrays of a state are views that the next call overwrites.

    :param env: one of the copies; its model and settings count for all
    :param n_envs: number of copies
    :param n_threads: threads that step them, 0 for all cores
    """

    def __init__(self, env: Any, n_envs: int, n_threads: int = 0):
        if getattr(env, "_use_contact_forces", False):
            raise ValueError("BatchVecEnv does not know use_contact_forces=True: take DummyVecEnv or SubprocVecEnv")
        self.env = env
        self.n_envs = n_envs
        self.is_broken: np.ndarray | None = None
        self._is_humanoid = isinstance(env, HumanoidEnv)
        # cfrc_ext of the humanoid needs the contacts of the last substep, which only a copy's own MjData keeps
        self.batch = make_batch(env.model, n_envs, n_threads, persistent=self._is_humanoid)
        self.qpos, self.qvel, self._ctrl = (self.batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
        self._dynamics: tuple[np.ndarray, ...] = ()
        if self._is_humanoid:
            self._xipos = self.batch.bind("xipos")
            self._cfrc_ext = np.zeros((n_envs, env.model.nbody, 6))
            self._dynamics = (*(self.batch.bind(name) for name in ("cinert", "cvel", "qfrc_actuator")), self._cfrc_ext)
            self._data = mujoco.MjData(env.model)
        elif isinstance(env, AntEnv):
            self._xpos = self.batch.bind("xpos")[:, env.model.body("torso").id]
        first, last = min(map(int, robots.BAD_STATE_WARNINGS)), max(map(int, robots.BAD_STATE_WARNINGS))
        self._n_bad_states = self.batch.warning[:, first : last + 1, 1]
        self._position = self._get_position()

    def _get_position(self) -> np.ndarray:
        """Position (n_envs, 2) whose difference is the velocity; of the last substep for Ant and Humanoid, as in -v4."""
        if self._is_humanoid:
            masses = self.env.model.body_mass
            return np.einsum("b,nbj->nj", masses, self._xipos)[:, :2] / masses.sum()
        if isinstance(self.env, AntEnv):
            return self._xpos[:, :2].copy()
        position = self.qpos[:, :2].copy()
        if not isinstance(self.env, SwimmerEnv):
            position[:, 1] = 0.0  # the second coordinate is a height
        return position

    def draw(self, rngs: list[np.random.Generator]) -> tuple[np.ndarray, np.ndarray]:
        """Draw qpos and qvel with which some copies start, one row for each generator."""
        env, scale = self.env, self.env._reset_noise_scale
        qpos, qvel = [], []
        for rng in rngs:
            qpos.append(env.init_qpos + rng.uniform(low=-scale, high=scale, size=env.model.nq))
            if isinstance(env, AntEnv | HalfCheetahEnv):
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
        if self._is_humanoid:
            self._cfrc_ext[rows] = 0.0  # mj_forward alone does not compute it
        self._position[rows] = self._get_position()[rows]
        position, action = self._position[rows], np.zeros((len(rows), self.env.model.nu))
        dynamics = tuple(value[rows] for value in self._dynamics)
        return V4State(self.qpos[rows], self.qvel[rows], position, position, action, dynamics, None)

    def step(self, actions: np.ndarray) -> V4State:
        robots.check_action(actions, self._ctrl.shape)
        self._ctrl[:] = actions
        self.batch.step(nstep=self.env.frame_skip)
        if self._is_humanoid:
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
        return {**state, "cfrc_ext": self._cfrc_ext.copy()} if self._is_humanoid else state

    def set_checkpoint_state(self, state: dict[str, np.ndarray]) -> None:
        self.batch.state[:], self.batch.warning[:] = state["state"], state["warning"]
        self._position = state["position"].copy()
        if self._is_humanoid:
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
    if robot not in ROBOT_CLASSES:
        raise ValueError(f"no robot is named {robot!r}: choose one of {', '.join(ROBOT_CLASSES)}")
    return VelocityTask(ROBOT_CLASSES[robot](render_mode=render_mode, **kwargs), threshold, cost_limit)
