"""A robot alone in a scene, as a gymnasium environment: no reward, no cost."""

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco import MujocoEnv

from safe_envs.mujoco.robots import (
    BAD_STATE_WARNINGS,
    POINT,
    Robot,
    Scenery,
    clip_action,
    compile_model,
    is_out_of_range,
    move_point,
    observe,
    physics_state,
    point_state,
    start_state,
    to_control,
)


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
