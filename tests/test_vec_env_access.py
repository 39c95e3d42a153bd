"""Looking into the copies of a BatchVecEnv, and what it refuses."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecCheckNan, VecMonitor, VecNormalize
from test_vec_env import batch

import safe_envs
from safe_envs import BatchVecEnv


@pytest.fixture
def in_temporary_folder(tmp_path, monkeypatch):
    """MuJoCo writes its warnings to a file in the working directory."""
    monkeypatch.chdir(tmp_path)


def test_get_attr_knows_the_task_the_robot_and_its_present_state():
    venv = batch("SafePointCircle-v0", n_envs=3)
    venv.reset()
    observations, *_ = venv.step(np.array([[1.0, 0.0], [0.5, 0.0], [-1.0, 0.0]], dtype=np.float32))
    assert venv.get_attr("radius") == [15.0] * 3
    assert venv.get_attr("robot", indices=[1])[0].name == "Point"
    data = venv.get_attr("data", indices=[2, 0])
    assert np.array_equal(data[0].qpos, observations[2, :3])
    assert np.array_equal(data[1].qpos, observations[0, :3])
    assert venv.get_attr("episode", indices=0)[0]["elapsed"].tolist() == [1]
    assert venv.has_attr("radius")
    assert not venv.has_attr("no_such_thing")
    with pytest.raises(AttributeError, match="no_such_thing"):
        venv.get_attr("no_such_thing")


def test_set_attr_changes_the_task_of_all_copies_only():
    venv = batch("SafePointCircle-v0", n_envs=2)
    venv.reset()
    venv.set_attr("x_limit", 0.0)
    assert [info["cost"] for info in venv.step(np.zeros((2, 2)))[3]] == [1.0, 1.0]
    venv.set_attr("x_limit", 99.0)
    assert [info["cost"] for info in venv.step(np.zeros((2, 2)))[3]] == [0.0, 0.0]
    with pytest.raises(ValueError, match=r"set .x_limit. in all of them"):
        venv.set_attr("x_limit", 1.0, indices=[0])
    with pytest.raises(AttributeError, match="cannot set 'model'"):
        venv.set_attr("model", None)
    venv.set_attr("note", "mine", indices=1)
    assert venv.get_attr("note", indices=1) == ["mine"]


@pytest.mark.parametrize("name", ["step", "reset", "close"])
def test_a_single_copy_cannot_leave_the_batch(name):
    venv = batch("SafePointCircle-v0", n_envs=2)
    venv.reset()
    with pytest.raises(AttributeError, match=f"cannot {name} a single copy"):
        venv.env_method(name)


def test_set_state_sets_the_running_simulation():
    venv = batch("SafeAntCircle-v0", n_envs=2)
    venv.reset()
    single = gym.make("SafeAntCircle-v0", disable_env_checker=True)
    single.reset(seed=0)
    qpos = single.unwrapped.init_qpos + 0.1
    qvel = np.linspace(-1.0, 1.0, 14)
    action = np.linspace(-1.0, 1.0, 8)
    single.unwrapped.set_state(qpos, qvel)
    expected = single.step(action)
    for n_steps in (0, 5):
        for _ in range(n_steps):
            venv.step(np.ones((2, 8)))
        venv.env_method("set_state", qpos, qvel, indices=[1])
        observations, rewards, _, infos = venv.step(np.array([action, action]))
        assert np.array_equal(observations[1], expected[0])
        assert rewards[1] == np.float32(expected[1])
        assert infos[1]["cost"] == expected[4]["cost"]
        assert not np.array_equal(observations[0], expected[0])
    with pytest.raises(ValueError, match="shapes"):
        venv.env_method("set_state", qpos[:3], qvel)


@pytest.mark.parametrize("env_id", ["SafeAntCircle-v0", "SafeAntVelocity-v0", "SafeHalfCheetahVelocity-v0"])
def test_broken_copy_ends_alone(env_id, in_temporary_folder):
    venv = batch(env_id, n_envs=4)
    dummy = make_vec_env(env_id, n_envs=4, seed=0)
    venv.reset()
    dummy.reset()
    venv.simulation.qvel[2, 5] = np.nan
    dummy.envs[2].unwrapped.data.qvel[5] = np.nan
    for step in range(3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results = [one.step(np.full((4, *dummy.action_space.shape), 0.1, dtype=np.float32)) for one in (venv, dummy)]
        for left, right in zip(results[0][:3], results[1][:3], strict=True):
            assert np.array_equal(left, right)
        assert np.isfinite(results[0][0]).all()
        assert results[0][2].tolist() == [False, False, step == 0, False]
        assert [("simulation_broken" in info) for info in results[0][3]] == results[0][2].tolist()
        assert any("numerically broken" in str(warning.message) for warning in caught) == (step == 0)
    assert venv.get_attr("n_broken_simulations") == [0, 0, 1, 0]


def test_what_overflows_in_a_step_is_put_back_before_anyone_sees_it(in_temporary_folder):
    venv, dummy = batch("SafeAntCircle-v0", n_envs=2), make_vec_env("SafeAntCircle-v0", n_envs=2, seed=0)
    venv.reset()
    dummy.reset()
    # The largest speed that MuJoCo accepts: the step that follows goes beyond
    venv.simulation.qvel[0, :] = 9.9e9
    dummy.envs[0].unwrapped.data.qvel[:] = 9.9e9
    with pytest.warns(UserWarning, match="numerically broken"):
        observations, rewards, dones, infos = venv.step(np.zeros((2, 8), dtype=np.float32))
    with pytest.warns(UserWarning, match="numerically broken"):
        expected = dummy.step(np.zeros((2, 8), dtype=np.float32))
    assert dones.tolist() == [True, False]
    assert np.isfinite(infos[0]["terminal_observation"]).all()
    assert np.isfinite(rewards).all()
    assert np.array_equal(observations, expected[0])
    assert np.array_equal(infos[0]["terminal_observation"], expected[3][0]["terminal_observation"])


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.full((2, 8), np.nan), "copy 0 is not finite"),
        (np.array([[0.0] * 8, [0.0] * 7 + [np.inf]]), "copy 1 is not finite"),
        (np.zeros((2, 7)), r"expected actions of shape \(2, 8\)"),
        (np.zeros(8), r"got \(8,\)"),
        (np.zeros((3, 8)), r"got \(3, 8\)"),
    ],
)
@pytest.mark.parametrize("env_id", ["SafeAntCircle-v0", "SafeAntVelocity-v0"])
def test_bad_actions_are_errors(env_id, actions, message):
    venv = batch(env_id, n_envs=2)
    venv.reset()
    with pytest.raises(ValueError, match=message):
        venv.step(actions)


def test_step_before_reset_is_an_error():
    with pytest.raises(RuntimeError, match="reset before step"):
        batch("SafePointCircle-v0").step(np.zeros((3, 2)))


def test_unknown_wrappers_are_refused_by_name():
    with pytest.raises(TypeError, match=r"does not know gymnasium\.wrappers\..*\.RescaleAction in"):
        BatchVecEnv([lambda: gym.wrappers.RescaleAction(gym.make("SafePointCircle-v0"), np.float32(-2.0), np.float32(2.0))])
    with pytest.raises(TypeError, match=r"does not know .*CartPole"):
        BatchVecEnv([lambda: gym.make("CartPole-v1")])
    inner = safe_envs.RobotEnv(safe_envs.ANT)
    with pytest.raises(TypeError, match="ClipAction between the task and the robot"):
        BatchVecEnv([lambda: safe_envs.CircleTask(gym.wrappers.ClipAction(inner))])


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"id": "SafePointCircle-v0"}, {"id": "SafePointGather-v0"}, "copy 1 has task='GatherTask'"),
        ({"id": "SafePointCircle-v0"}, {"id": "SafeAntCircle-v0"}, "copy 1 has "),
        ({"id": "SafePointCircle-v0"}, {"id": "SafePointCircle-v0", "x_limit": 3.5}, "copy 1 has x_limit=3.5"),
        ({"id": "SafePointCircle-v0"}, {"id": "SafePointCircle-v0", "max_episode_steps": 7}, "max_episode_steps=7"),
        ({"id": "SafeAntVelocity-v0"}, {"id": "SafeHopperVelocity-v0"}, "copy 1 has "),
        ({"id": "SafeAntVelocity-v0"}, {"id": "SafeAntVelocity-v0", "healthy_reward": 2.0}, "copy 1 has arguments"),
    ],
)
def test_copies_must_be_alike(first, second, message):
    with pytest.raises(ValueError, match=message):
        BatchVecEnv([lambda: gym.make(**first), lambda: gym.make(**second)])


def test_one_environment_cannot_be_two_copies():
    env = gym.make("SafePointCircle-v0")
    with pytest.raises(ValueError, match="returned the same environment"):
        BatchVecEnv([lambda: env, lambda: env])


def test_tasks_composed_by_hand_run_without_registration():
    def make():
        return safe_envs.CircleTask(safe_envs.RobotEnv(safe_envs.HUMANOID), radius=3.0, x_limit=1.0)

    venv, env = BatchVecEnv([make, make]), make()
    venv.seed(4)
    assert np.array_equal(venv.reset()[0], env.reset(seed=4)[0])
    for _ in range(1100):  # no time limit of 1,000 steps here; only falls end the episode
        observations, _, dones, infos = venv.step(np.zeros((2, 10), dtype=np.float32))
        observation, _, terminated, _, _ = env.step(np.zeros(10, dtype=np.float32))
        assert dones[0] == terminated
        if terminated:
            assert infos[0]["TimeLimit.truncated"] is False
            observation, _ = env.reset()
        assert np.array_equal(observations[0], observation)


def test_it_renders_the_copy_that_one_asks_for(can_draw):
    venv = batch("SafePointGather-v0", n_envs=3, env_kwargs={"render_mode": "rgb_array", "width": 96, "height": 64})
    assert venv.render_mode == "rgb_array"
    venv.reset()
    venv.step(np.random.default_rng(0).uniform(-1, 1, (3, 2)).astype(np.float32))
    images = venv.get_images()
    assert [image.shape for image in images] == [(64, 96, 3)] * 3
    assert not np.array_equal(images[0], images[1])
    assert np.array_equal(venv.get_images(indices=[1])[0], images[1])
    assert np.array_equal(venv.env_method("render", indices=2)[0], images[2])
    assert venv.render().shape == (128, 192, 3)
    # Looking does not change anything
    blind = batch("SafePointGather-v0", n_envs=3)
    blind.reset()
    blind.step(np.random.default_rng(0).uniform(-1, 1, (3, 2)).astype(np.float32))
    for _ in range(30):
        results = [one.step(np.full((3, 2), 0.3, dtype=np.float32)) for one in (venv, blind)]
        venv.get_images(indices=[0])
        assert np.array_equal(results[0][0], results[1][0])
    venv.close()
    venv.close()


def test_get_images_needs_rgb_array():
    venv = BatchVecEnv([lambda: gym.make("SafePointCircle-v0")])
    venv.reset()
    with pytest.warns(UserWarning, match="rgb_array"):
        assert venv.get_images() == [None]


def test_it_works_below_sb3s_wrappers_and_algorithms():
    venv = VecNormalize(VecCheckNan(batch("SafeAntCircle-v0", n_envs=4), raise_exception=True))
    model = PPO("MlpPolicy", venv, n_steps=32, batch_size=64, n_epochs=1, seed=0, device="cpu")
    model.learn(256)
    assert model.num_timesteps == 256
    assert venv.obs_rms.mean.shape == (32,)
    monitored = VecMonitor(BatchVecEnv([lambda: gym.make("SafePointGather-v0")] * 2))
    monitored.reset()
    for _ in range(16):
        *_, infos = monitored.step(np.zeros((2, 2), dtype=np.float32))
        if "episode" in infos[0]:
            break
    assert infos[0]["episode"]["l"] <= 15


def test_zoo_can_patch_the_time_limit():
    """rl_zoo3 replaces gymnasium's TimeLimit by a subclass when it is imported."""

    class PatchedTimeLimit(gym.wrappers.TimeLimit):
        pass

    venv = BatchVecEnv([lambda: PatchedTimeLimit(gym.make("SafeAntCircle-v0", max_episode_steps=-1), 3)])
    venv.reset()
    assert [venv.step(np.zeros((1, 8)))[2][0] for _ in range(4)] == [False, False, True, False]


def test_arguments_that_running_episodes_are_made_for_cannot_change():
    venv = make_vec_env("SafePointGather-v0", n_envs=2, vec_env_cls=BatchVecEnv)
    with pytest.raises(AttributeError, match="n_bombs"):
        venv.set_attr("n_bombs", 3)
