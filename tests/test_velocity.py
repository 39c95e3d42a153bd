"""The velocity tasks against gymnasium's own -v4 classes."""

import subprocess
import sys
import textwrap

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.envs.mujoco.ant_v4 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v4 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v4 import HopperEnv
from gymnasium.envs.mujoco.humanoid_v4 import HumanoidEnv
from gymnasium.envs.mujoco.swimmer_v4 import SwimmerEnv
from gymnasium.envs.mujoco.walker2d_v4 import Walker2dEnv

import safe_envs
from safe_envs.mujoco.velocity import V4State, VelocityTask, make_velocity, moving_speed, speed_cost

THRESHOLDS = {
    "Ant": 2.6222,
    "HalfCheetah": 3.2096,
    "Hopper": 0.7402,
    "Humanoid": 1.4149,
    "Swimmer": 0.2282,
    "Walker2d": 2.3415,
}
# gymnasium's own, with nothing of ours
V4_CLASSES = {
    "Ant": AntEnv,
    "HalfCheetah": HalfCheetahEnv,
    "Hopper": HopperEnv,
    "Humanoid": HumanoidEnv,
    "Swimmer": SwimmerEnv,
    "Walker2d": Walker2dEnv,
}


@pytest.fixture
def in_temporary_folder(tmp_path, monkeypatch):
    """MuJoCo writes its warnings to a file in the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("robot", THRESHOLDS)
def test_observation_and_reward_are_those_of_v4(robot):
    threshold = 0.3  # low enough for random actions to cross it
    env = gym.make(f"Safe{robot}Velocity-v0", threshold=threshold)
    reference = V4_CLASSES[robot]()
    assert env.action_space == reference.action_space
    assert env.observation_space == reference.observation_space
    assert env.spec.max_episode_steps == 1000
    assert np.array_equal(env.reset(seed=7)[0], reference.reset(seed=7)[0])
    env.action_space.seed(7)
    costs = []
    for _ in range(300):
        action = env.action_space.sample()
        observation, reward, terminated, truncated, info = env.step(action)
        expected = reference.step(action)
        assert np.array_equal(observation, expected[0])
        assert reward == expected[1]
        assert terminated == expected[2]
        v4_info = expected[4]
        speed = v4_info["x_velocity"]
        if robot in ("Ant", "Humanoid"):
            speed = np.hypot(v4_info["x_velocity"], v4_info["y_velocity"])
        assert info["speed"] == pytest.approx(speed)
        assert info["cost"] == float(speed > threshold)
        assert all(type(value) is float for value in info.values())
        for key, value in v4_info.items():
            assert info[key] == pytest.approx(float(value), rel=1e-12)
        costs.append(info["cost"])
        if terminated or truncated:
            env.reset()
            reference.reset()
    if robot != "Walker2d":  # which falls backwards
        assert 0.0 < np.mean(costs) < 1.0


@pytest.mark.parametrize("robot", THRESHOLDS)
def test_batch_follows_v4_through_resets(robot):
    """Against the raw classes, with nothing of ours in between."""
    n_envs, n_steps = 3, 400
    venv = safe_envs.BatchVecEnv([lambda: gym.make(f"Safe{robot}Velocity-v0", max_episode_steps=150)] * n_envs, n_threads=2)
    venv.seed(11)
    observations = venv.reset()
    references = [V4_CLASSES[robot]() for _ in range(n_envs)]
    assert np.array_equal(observations, [env.reset(seed=11 + index)[0] for index, env in enumerate(references)])
    venv.action_space.seed(11)
    lengths, n_resets = [0] * n_envs, 0
    for _ in range(n_steps):
        actions = np.array([venv.action_space.sample() for _ in range(n_envs)])
        observations, rewards, dones, infos = venv.step(actions)
        for index, env in enumerate(references):
            expected, reward, terminated, _, v4_info = env.step(actions[index])
            assert {key: infos[index][key] for key in v4_info} == pytest.approx(v4_info, rel=1e-9, abs=1e-12)
            lengths[index] += 1
            assert rewards[index] == np.float32(reward)
            assert dones[index] == (terminated or lengths[index] == 150)
            if dones[index]:
                n_resets += 1
                lengths[index] = 0
                assert np.array_equal(infos[index]["terminal_observation"], expected)
                expected = env.reset()[0]
            assert np.array_equal(observations[index], expected)
    assert n_resets >= 6


def model_bytes(model):
    content = np.empty(mujoco.mj_sizeModel(model), dtype=np.uint8)
    mujoco.mj_saveModel(model, None, content)
    return content.tobytes()


@pytest.mark.parametrize("robot", THRESHOLDS)
def test_model_is_that_of_v4_byte_for_byte(robot):
    models = gym.make(f"Safe{robot}Velocity-v0").unwrapped.model, V4_CLASSES[robot]().model
    for model in models:
        # How large its pictures may be: gymnasium 1.2's are of 480 x 480, later ones of 640 x 480
        model.vis.global_.offwidth, model.vis.global_.offheight = 640, 480
    assert model_bytes(models[0]) == model_bytes(models[1])


def test_nothing_is_printed_when_an_environment_is_made_or_unpickled():
    code = """
        import pickle, warnings
        import gymnasium as gym, safe_envs
        for env_id in [env_id for env_id in gym.registry if env_id.startswith("Safe")]:
            pickle.loads(pickle.dumps(gym.make(env_id, disable_env_checker=True)))
        warnings.warn("of another kind")
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0
    assert result.stdout == ""
    assert [line for line in result.stderr.splitlines() if "Warning" in line] == ["<string>:6: UserWarning: of another kind"]
    assert result.stderr.upper().count("WARNING") == 1


def test_cost_begins_above_the_threshold():
    assert speed_cost(np.array([-9.0, 0.0, 1.0, 1.0 + 1e-9, 9.0]), 1.0).tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]


def test_planar_robots_may_run_backwards_and_the_others_not_even_sideways():
    info = {"x_velocity": np.array([-3.0, 0.0, 3.0]), "y_velocity": np.array([4.0, -5.0, -4.0])}
    assert moving_speed(info, is_along_x=False).tolist() == [5.0, 5.0, 5.0]
    assert moving_speed(info, is_along_x=True).tolist() == [-3.0, 0.0, 3.0]


@pytest.mark.parametrize(("robot", "threshold"), THRESHOLDS.items())
def test_threshold_is_the_registered_one(robot, threshold):
    spec = gym.spec(f"Safe{robot}Velocity-v0")
    assert spec.kwargs == {"robot": robot, "cost_limit": 25.0, "threshold": threshold}
    assert spec.max_episode_steps == 1000


def test_arguments_reach_task_and_robot():
    env = gym.make("SafeHopperVelocity-v0", threshold=0.1, healthy_reward=7.0)
    assert env.get_wrapper_attr("threshold") == 0.1
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.zeros(3, dtype=np.float32))
    assert reward == pytest.approx(7.0 + info["x_velocity"])


HEALTHY_RANGES = {"Ant": {2: (0.2, 1.0)}, "Humanoid": {2: (1.0, 2.0)}, "Hopper": {1: (0.7, np.inf), 2: (-0.2, 0.2)}}
HEALTHY_RANGES["Walker2d"] = {1: (0.8, 2.0), 2: (-1.0, 1.0)}


@pytest.mark.parametrize("robot", HEALTHY_RANGES)
def test_health_ends_where_that_of_v4_ends(robot):
    """At the very ends of the ranges, too, which are open in some classes and closed in others."""
    task, v4 = make_velocity(robot), V4_CLASSES[robot]()
    standing = v4.init_qpos.copy()
    states = [(standing, v4.init_qvel)]
    for index, ends in HEALTHY_RANGES[robot].items():
        for end in ends:
            for value in (end, np.nextafter(end, -np.inf), np.nextafter(end, np.inf)):
                qpos = standing.copy()
                qpos[index] = value
                states.append((qpos, v4.init_qvel))
    for value in (100.0, np.nextafter(100.0, 0.0), -100.0, np.nextafter(-100.0, 0.0), np.nan, np.inf):
        for index in (3, -1):
            qpos, qvel = standing.copy(), v4.init_qvel.copy()
            qpos[index] = qvel[index] = value
            states += [(qpos, v4.init_qvel), (standing, qvel)]
    expected = []
    for qpos, qvel in states:
        v4.data.qpos[:], v4.data.qvel[:] = qpos, qvel
        expected.append(bool(v4.is_healthy))
    qpos, qvel = (np.array(rows) for rows in zip(*states, strict=True))
    assert task.robot.health(task.v4, qpos, qvel).tolist() == expected
    assert expected[0] is True
    assert False in expected


@pytest.mark.parametrize("robot", [robot for robot in THRESHOLDS if robot != "Humanoid"])
def test_observation_of_any_state_is_that_of_v4(robot):
    """Of speeds beyond 10, too, which Hopper and Walker2d clip."""
    task, v4 = make_velocity(robot), V4_CLASSES[robot]()
    rng = np.random.default_rng(0)
    qpos, qvel = rng.standard_normal((5, v4.model.nq)), 15.0 * rng.standard_normal((5, v4.model.nv))
    state = V4State(qpos, qvel, qpos[:, :2], qpos[:, :2], np.zeros((5, v4.model.nu)), (), None)
    for index, observation in enumerate(task.observe(state, {})):
        v4.set_state(qpos[index], qvel[index])
        assert np.array_equal(observation, v4._get_obs())


def test_batch_reads_the_weights_of_its_robots():
    def make():
        return gym.make(
            "SafeWalker2dVelocity-v0",
            healthy_reward=7.0,
            ctrl_cost_weight=0.5,
            forward_reward_weight=2.0,
            terminate_when_unhealthy=False,
            exclude_current_positions_from_observation=False,
        )

    venv, env = safe_envs.BatchVecEnv([make]), make()
    venv.seed(0)
    assert np.array_equal(venv.reset()[0], env.reset(seed=0)[0])
    for _ in range(200):
        action = np.full(6, 0.9, dtype=np.float32)
        observations, rewards, dones, _ = venv.step(action[None])
        observation, reward, _, _, _ = env.step(action)
        assert np.array_equal(observations[0], observation)
        assert rewards[0] == np.float32(reward)
        assert not dones[0]
    assert not env.unwrapped.is_healthy


def test_broken_simulation_ends_the_episode(in_temporary_folder):
    env = gym.make("SafeHalfCheetahVelocity-v0")
    env.reset(seed=0)
    env.unwrapped.data.qvel[3] = 1e12
    with pytest.warns(UserWarning, match="numerically broken"):
        _, _, terminated, _, info = env.step(np.zeros(6, dtype=np.float32))
    assert terminated
    assert info["simulation_broken"] == 1.0


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="'Dog'"):
        gym.make("SafeAntVelocity-v0", robot="Dog")
    with pytest.raises(TypeError, match="-v4 classes"):
        VelocityTask(gym.make("CartPole-v1"), threshold=1.0)
    with pytest.raises(ValueError, match="threshold must be positive"):
        gym.make("SafeAntVelocity-v0", threshold=0.0)
    env = gym.make("SafeAntVelocity-v0", disable_env_checker=True)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="not finite"):
        env.step(np.full(8, np.nan))
    with pytest.raises(ValueError, match="use_contact_forces"):
        safe_envs.BatchVecEnv([lambda: gym.make("SafeAntVelocity-v0", use_contact_forces=True)])
