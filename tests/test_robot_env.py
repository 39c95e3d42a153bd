"""The robots as environments: observations, starts, actions, ends, copies."""

import copy
import pickle

import mujoco
import numpy as np
import pytest

from safe_envs.mujoco import robots
from safe_envs.mujoco.circle import CircleScenery, CircleTask
from safe_envs.mujoco.robot_env import RobotEnv
from safe_envs.mujoco.robots import ANT, HUMANOID, POINT

ALL_ROBOTS = [POINT, ANT, HUMANOID]


@pytest.fixture
def in_temporary_folder(tmp_path, monkeypatch):
    """MuJoCo writes its warnings to a file in the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("robot", "size"), [(POINT, 9), (ANT, 32), (HUMANOID, 102)], ids=["Point", "Ant", "Humanoid"])
def test_observation_is_qpos_qvel_and_com(robot, size):
    env = RobotEnv(robot)
    env.reset(seed=3)
    observation, *_ = env.step(env.action_space.sample())
    nq, nv = env.model.nq, env.model.nv
    assert observation.shape == env.observation_space.shape == (size,)
    assert observation.dtype == np.float64
    assert np.array_equal(observation[:nq], env.data.qpos)
    assert np.array_equal(observation[nq : nq + nv], env.data.qvel)
    assert observation[-3:] == pytest.approx(env.data.subtree_com[1], abs=1e-12)


@pytest.mark.parametrize("robot", ALL_ROBOTS, ids=lambda robot: robot.name)
def test_start_is_drawn_around_the_robots_pose(robot):
    env = RobotEnv(robot)
    env.reset(seed=0)
    starts = np.array([(env.reset(), env.data.qpos.copy(), env.data.qvel.copy())[1:] for _ in range(400)], dtype=object)
    qpos = np.array(starts[:, 0].tolist()) - env.init_qpos
    qvel = np.array(starts[:, 1].tolist())
    # 400 * nq numbers: the estimated deviation is within 10 % at five sigma and more
    assert qpos.std() == pytest.approx(0.01, rel=0.1)
    assert qvel.std() == pytest.approx(0.1, rel=0.1)
    assert np.abs(qpos.mean(axis=0)).max() < 0.0025
    assert np.abs(qvel.mean(axis=0)).max() < 0.025


def test_normalised_action_is_mapped_to_the_control_range_and_clipped():
    env = RobotEnv(HUMANOID)
    env.reset(seed=0)
    env.step(np.array([1.0, -1.0, 0.5, 0.0, 7.0, -7.0, 1.0, -0.25, 0.0, 3.0], dtype=np.float32))
    assert env.data.ctrl.tolist() == [100.0, -100.0, 50.0, 0.0, 100.0, -100.0, 20.0, -5.0, 0.0, 20.0]
    control = robots.to_control(np.array([[-1.0, 0.0, 1.0]]), np.array([[0.0, 4.0], [2.0, 4.0], [-3.0, 1.0]]))
    assert control.tolist() == [[0.0, 3.0, 1.0]]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.full(8, np.nan), "not finite"),
        (np.array([0.0] * 7 + [np.inf]), "not finite"),
        (np.zeros(7), r"shape \(1, 8\)"),
        (np.zeros((1, 8)), r"got \(1, 1, 8\)"),
        (np.array(["a"] * 8), "numbers"),
    ],
)
def test_bad_actions_are_errors(action, message):
    env = RobotEnv(ANT)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)


@pytest.mark.parametrize("robot", [ANT, HUMANOID], ids=lambda robot: robot.name)
def test_looking_at_the_result_does_not_change_the_trajectory(robot):
    env = RobotEnv(robot)
    env.reset(seed=5)
    data = copy.copy(env.data)
    env.action_space.seed(5)
    for _ in range(40):
        action = env.action_space.sample()
        env.step(action)
        data.ctrl[:] = robots.to_control(action.astype(np.float64)[None], env.model.actuator_ctrlrange)[0]
        mujoco.mj_step(env.model, data)
        assert np.array_equal(env.data.qpos, data.qpos)
        assert np.array_equal(env.data.qvel, data.qvel)


@pytest.mark.parametrize("robot", ALL_ROBOTS, ids=lambda robot: robot.name)
def test_transition_depends_on_state_and_action_alone(robot):
    env = RobotEnv(robot)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(10):
        env.step(env.action_space.sample())
    qpos, qvel = env.data.qpos.copy(), env.data.qvel.copy()
    action = env.action_space.sample()
    results = []
    for n_steps_before in (0, 3, 17):
        for _ in range(n_steps_before):
            env.step(env.action_space.sample())
        env.set_state(qpos, qvel)
        results.append(env.step(action)[0])
    env = RobotEnv(robot)
    env.set_state(qpos, qvel)
    results.append(env.step(action)[0])
    for result in results[1:]:
        assert np.array_equal(results[0], result)


def test_set_state_names_a_wrong_shape():
    env = RobotEnv(ANT)
    with pytest.raises(ValueError, match=r"qpos of shape \(15,\)"):
        env.set_state(np.zeros(14), np.zeros(14))


@pytest.mark.parametrize(
    ("robot", "height", "expected"),
    [
        (ANT, 0.2, True), (ANT, 1.0, True), (ANT, 0.19999, False), (ANT, 1.00001, False), (ANT, np.nan, False),
        (HUMANOID, 0.8, True), (HUMANOID, 2.0, True), (HUMANOID, 0.79999, False), (HUMANOID, 2.00001, False),
        (POINT, 99.0, True),
    ],
)  # fmt: skip
def test_health_is_a_closed_range_of_heights(robot, height, expected):
    qpos = np.zeros((1, 15))
    qpos[0, 2] = height
    assert robots.is_healthy(robot, qpos).tolist() == [expected]


def test_falling_ends_the_episode():
    env = RobotEnv(ANT)
    env.reset(seed=0)
    qpos = env.init_qpos.copy()
    qpos[2] = 1.2
    env.set_state(qpos, np.zeros(14))
    assert env.step(np.zeros(8))[2] is True
    qpos[2] = 0.6
    env.set_state(qpos, np.zeros(14))
    assert env.step(np.zeros(8))[2] is False


@pytest.mark.parametrize("entry", [np.nan, 1e11])
def test_broken_simulation_ends_the_episode_and_is_counted(entry, in_temporary_folder):
    task = CircleTask(RobotEnv(ANT))
    task.reset(seed=0)
    env = task.unwrapped
    env.data.qvel[3] = entry
    with pytest.warns(UserWarning, match="numerically broken"):
        observation, _, terminated, _, info = task.step(np.zeros(8, dtype=np.float32))
    assert terminated
    assert info["simulation_broken"] == 1.0
    assert task.n_broken_simulations == 1
    assert np.isfinite(observation).all()
    task.reset()
    _, _, terminated, _, info = task.step(np.zeros(8, dtype=np.float32))
    assert not terminated
    assert "simulation_broken" not in info


def test_yaw_is_the_direction_of_the_torsos_x_axis():
    rng = np.random.default_rng(0)
    env = RobotEnv(ANT)
    for _ in range(20):
        qpos = env.init_qpos.copy()
        qpos[3:7] = rng.standard_normal(4)
        qpos[3:7] /= np.linalg.norm(qpos[3:7])
        env.set_state(qpos, np.zeros(14))
        ahead = env.data.body("torso").xmat.reshape(3, 3)[:, 0]
        assert robots.yaw(ANT, qpos[None])[0] == pytest.approx(np.arctan2(ahead[1], ahead[0]), abs=1e-9)
    assert robots.yaw(POINT, np.array([[1.0, 2.0, 7.5]])).tolist() == [7.5]


def test_scenery_touches_nothing():
    plain, scenic = RobotEnv(ANT), RobotEnv(ANT)
    scenic.add_scenery(CircleScenery(0.3, 0.1))
    added = range(plain.model.ngeom, scenic.model.ngeom)
    names = {scenic.model.geom(index).name for index in range(scenic.model.ngeom)}
    assert {"panel_left", "panel_right", "target_circle"} <= names
    assert len(added) == 4
    for name in ("panel_left", "panel_right", "target_circle", "safe_region"):
        geom = scenic.model.geom(name)
        assert (geom.bodyid[0], geom.contype[0], geom.conaffinity[0]) == (0, 0, 0)
    plain.reset(seed=0)
    scenic.reset(seed=0)
    plain.action_space.seed(0)
    for _ in range(60):
        action = plain.action_space.sample()
        assert np.array_equal(plain.step(action)[0], scenic.step(action)[0])


@pytest.mark.parametrize("robot", ALL_ROBOTS, ids=lambda robot: robot.name)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
def test_copy_goes_on_where_the_original_is(robot, duplicate):
    env = RobotEnv(robot)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(7):
        env.step(env.action_space.sample())
    twin = duplicate(env)
    for _ in range(20):
        action = env.action_space.sample()
        assert np.array_equal(env.step(action)[0], twin.step(action)[0])
    assert np.array_equal(env.reset()[0], twin.reset()[0])


def test_models_are_not_shared():
    first, second = RobotEnv(ANT), RobotEnv(ANT)
    first.model.body_mass[:] = 7.0
    assert second.model.body_mass.sum() == pytest.approx(0.9109, abs=5e-5)
    assert RobotEnv(ANT).model.body_mass.sum() == pytest.approx(0.9109, abs=5e-5)


def test_set_state_forgets_that_the_simulation_was_broken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings to a file in the working directory
    env = RobotEnv(ANT)
    env.reset(seed=0)
    env.data.qvel[5] = np.nan
    assert env.step(np.zeros(8))[4] == {"simulation_broken": 1.0}
    env.set_state(env.init_qpos, np.zeros(14))
    _, _, terminated, _, info = env.step(np.zeros(8))
    assert not terminated
    assert info == {}
