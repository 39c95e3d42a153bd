"""n copies of a robot, stepped together: physics on MuJoCo's native threads, the Point in numpy."""

from typing import Any

import mujoco
import numpy as np

from safe_envs.mujoco import robots
from safe_envs.mujoco.robot_env import RobotEnv
from safe_envs.mujoco.robots import BAD_STATE_WARNINGS, MAX_STATE, RobotState


class RobotSimulation:
    """
    What copies of a robot have in common, with physics or without.

    :param env: one of the copies; its robot, model and settings count for all
    :param n_envs: number of copies
    """

    qpos: np.ndarray
    qvel: np.ndarray

    def __init__(self, env: RobotEnv, n_envs: int):
        self.env = env
        self.n_envs = n_envs
        self.is_broken: np.ndarray | None = None
        self._control_range = env.model.actuator_ctrlrange.copy()

    def draw(self, rngs: list[np.random.Generator]) -> tuple[np.ndarray, np.ndarray]:
        """Draw qpos and qvel with which some copies start, one row for each generator."""
        noise = np.array([rng.standard_normal(self.env.model.nq + self.env.model.nv) for rng in rngs])
        return robots.start_state(noise, self.env.init_qpos)

    def show(self, env: RobotEnv, row: int) -> None:
        """Bring an environment to the state of one copy."""
        env.set_state(self.qpos[row], self.qvel[row])


class PointSimulation(RobotSimulation):
    """Copies of a kinematic robot."""

    def __init__(self, env: RobotEnv, n_envs: int):
        super().__init__(env, n_envs)
        self.qpos = np.zeros((n_envs, env.model.nq))
        self.qvel = np.zeros((n_envs, env.model.nv))
        self._com_offset = env.com_offset.copy()

    def start(self, rows: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> RobotState:
        """Put some copies into a state; the result has one row for each of them."""
        self.qpos[rows], self.qvel[rows] = qpos, qvel
        action = np.zeros((len(rows), len(self._control_range)))
        return robots.point_state(self.qpos[rows], self.qvel[rows], action, self._com_offset)

    def step(self, actions: np.ndarray) -> RobotState:
        action = robots.clip_action(actions, self.n_envs, len(self._control_range))
        control = robots.to_control(action, self._control_range)
        self.qpos, self.qvel = robots.move_point(self.qpos, control, self.env.position_limit)
        return robots.point_state(self.qpos, self.qvel, action, self._com_offset)

    def get_checkpoint_state(self) -> dict[str, np.ndarray]:
        """Everything that the next steps depend on."""
        return {"qpos": self.qpos.copy(), "qvel": self.qvel.copy()}

    def set_checkpoint_state(self, state: dict[str, np.ndarray]) -> None:
        self.qpos, self.qvel = state["qpos"].copy(), state["qvel"].copy()


def make_batch(model: mujoco.MjModel, n_envs: int, n_threads: int, **kwargs: Any) -> Any:
    """
    MuJoCo's own copies of a simulation.

    :raises ImportError: MuJoCo is too old to have them; all else of this package works without
    """
    try:
        from mujoco.batch import Batch
    except (ImportError, AttributeError) as error:  # of an older mujoco, beside which pip has left parts of a newer one
        raise ImportError(
            f"BatchVecEnv steps robots with physics by mujoco.batch, which MuJoCo {mujoco.__version__} does not have: install "
            "mujoco>=4, or take DummyVecEnv or SubprocVecEnv"
        ) from error
    return Batch(model, n_envs, n_threads, **kwargs)


def n_bad_states(batch: Any) -> np.ndarray:
    """How often MuJoCo has met a bad state, (n_envs, number of the ``BAD_STATE_WARNINGS``), a view."""
    first, last = min(map(int, BAD_STATE_WARNINGS)), max(map(int, BAD_STATE_WARNINGS))
    return batch.warning[:, first : last + 1, 1]


class PhysicsSimulation(RobotSimulation):
    """
    Copies of a robot with physics; the arrays of a state are views that the next call overwrites.

    :param n_threads: threads that step them, 0 for all cores
    """

    def __init__(self, env: RobotEnv, n_envs: int, n_threads: int = 0):
        super().__init__(env, n_envs)
        self.batch = make_batch(env.model, n_envs, n_threads)
        self.qpos, self.qvel, self._ctrl = (self.batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
        self._sensordata = self.batch.bind("sensordata")
        self._cfrc_ext = self.batch.bind("cfrc_ext") if env.robot.observes_contact_forces else None
        # Contact forces follow from accelerations; else positions and velocities are all that anyone reads
        stage = mujoco.mjtStage.mjSTAGE_VEL if self._cfrc_ext is None else mujoco.mjtStage.mjSTAGE_ACC
        self.stage = stage.value
        self._n_bad_states = n_bad_states(self.batch)
        # The order of a state's components is that of the bits of mjtState: time, qpos, qvel, ...
        self._motion = self.batch.state[:, 1 : 1 + env.model.nq + env.model.nv]
        self._reset_state = self.batch.state[0].copy()

    def start(self, rows: np.ndarray, qpos: np.ndarray, qvel: np.ndarray) -> RobotState:
        """Put some copies into a state; the result has one row for each of them."""
        ids = rows.astype(np.int32)
        self.batch.state[rows] = self._reset_state  # what Batch.reset does, at a tenth of its time
        self.batch.warning[rows] = 0
        self.qpos[rows], self.qvel[rows] = qpos, qvel
        self.batch.forward(ids, stage=self.stage)
        action = np.zeros((len(rows), self.env.model.nu))
        cfrc_ext = None if self._cfrc_ext is None else self._cfrc_ext[rows]
        return robots.physics_state(
            self.env.robot, self.qpos[rows], self.qvel[rows], self._sensordata[rows], cfrc_ext, action, None
        )

    def step(self, actions: np.ndarray) -> RobotState:
        action = robots.clip_action(actions, self.n_envs, len(self._control_range))
        self._ctrl[:] = robots.to_control(action, self._control_range)
        self.batch.step(stage=self.stage)
        self.is_broken = self._find_broken()
        return robots.physics_state(
            self.env.robot, self.qpos, self.qvel, self._sensordata, self._cfrc_ext, action, self.is_broken
        )

    def _find_broken(self) -> np.ndarray | None:
        """Which copies MuJoCo had to reset, or would reset at the beginning of the next step; see RobotEnv.step."""
        if np.abs(self._motion).max() <= MAX_STATE and not self._n_bad_states.any():
            return None
        is_broken = self._n_bad_states.any(axis=1)
        is_out_of_range = robots.is_out_of_range(self.qpos, self.qvel)
        if is_out_of_range.any():
            self.batch.reset(np.flatnonzero(is_out_of_range).astype(np.int32), stage=self.stage)
        return is_broken | is_out_of_range

    def get_checkpoint_state(self) -> dict[str, np.ndarray]:
        """Everything that the next steps depend on."""
        return {"state": self.batch.state.copy(), "warning": self.batch.warning.copy()}

    def set_checkpoint_state(self, state: dict[str, np.ndarray]) -> None:
        self.batch.state[:], self.batch.warning[:] = state["state"], state["warning"]
