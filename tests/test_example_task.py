"""A task and a robot of one's own, as docs/extending.md writes them."""

import pickle
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env

from safe_envs import ANT, BatchVecEnv, CircleTask, Robot, RobotEnv
from safe_envs.mujoco.robots import get_robot

EXAMPLE = Path(__file__).parent.parent / "docs/examples/reach_task.py"
IDS = ["SafePointReach-v0", "SafeAntReach-v0"]

STRONG_ANT = Robot("StrongAnt", ANT.model_path, edit=ANT.edit, init_qpos=ANT.init_qpos, healthy_z=(0.1, 2.0))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The ids of the example; they go again, since other tests count the ids of the package."""
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    import reach_task

    yield reach_task
    for env_id in IDS:
        del gym.registry[env_id]
    del sys.modules["reach_task"]


def test_it_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 60


@pytest.mark.parametrize("env_id", IDS)
def test_example_is_stepped_by_batch_vec_env_bit_for_bit(env_id):
    kwargs = dict(n_envs=3, seed=1, env_kwargs={"max_episode_steps": 80})
    dummy, batch = make_vec_env(env_id, **kwargs), make_vec_env(env_id, vec_env_cls=BatchVecEnv, **kwargs)
    assert np.array_equal(dummy.reset(), batch.reset())
    assert batch.get_attr("cost_limit") == dummy.get_attr("cost_limit") == [10.0] * 3
    rng, costs, n_episodes = np.random.default_rng(0), 0.0, 0
    for _ in range(300):
        actions = rng.uniform(-1.0, 1.0, (3, *dummy.action_space.shape)).astype(np.float32)
        for left, right in zip(dummy.step(actions)[:3], (results := batch.step(actions))[:3], strict=True):
            assert np.array_equal(left, right)
        costs += sum(info["cost"] for info in results[3])
        n_episodes += results[2].sum()
    assert 0.0 < costs < 900.0
    assert n_episodes >= 3


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.filterwarnings("ignore:.*(infinity|unwrapped version)")
def test_example_passes_checks_and_round_trips(env_id):
    env = gym.make(env_id, speed_limit=0.25, cost_limit=3.0)
    check_env(env.env, skip_render_check=True)
    for twin in (
        gym.make(env.spec),
        gym.make(EnvSpec.from_json(env.spec.to_json())),
        pickle.loads(pickle.dumps(env)),
    ):
        assert twin.get_wrapper_attr("speed_limit") == 0.25
        assert twin.get_wrapper_attr("cost_limit") == 3.0
        assert np.array_equal(twin.reset(seed=2)[0], env.reset(seed=2)[0])


def test_example_pays_for_the_way_and_charges_for_speed(registered):
    env = registered.ReachTask.make("Point", distance=2.0, speed_limit=0.5)
    env.reset(seed=0)
    goal = env.episode["goal"][0]
    assert np.hypot(*goal) == pytest.approx(2.0)
    heading = np.arctan2(goal[1], goal[0])
    offset = env.robot_env.com_offset[0]
    env.unwrapped.set_state(np.array([0.0, 0.0, heading]), np.zeros(3))
    _, reward, terminated, _, info = env.step(np.array([0.25, 0.0]))
    assert (reward, terminated, info["cost"]) == (pytest.approx(0.25), False, 0.0)
    assert info["distance"] == pytest.approx(1.75 - offset)
    for speed, expected_reward in ((1.0, 1.0), (0.6, 10.6)):
        _, reward, terminated, _, info = env.step(np.array([speed, 0.0]))
        assert (reward, info["cost"]) == (pytest.approx(expected_reward), 1.0)
        assert terminated == (expected_reward > 10.0)


def test_goal_is_shown(registered, can_draw):
    env = gym.make("SafePointReach-v0", render_mode="rgb_array", width=64, height=48)
    env.reset(seed=0)
    goal = env.get_wrapper_attr("episode")["goal"][0]
    assert env.unwrapped.data.geom("goal").xpos[:2] == pytest.approx(goal)
    assert env.render().shape == (48, 64, 3)
    env.close()


def test_robot_of_ones_own_is_named_by_where_it_is_defined():
    name = f"{__name__}:STRONG_ANT"
    assert get_robot(name) is get_robot(STRONG_ANT) is STRONG_ANT
    env = gym.make("SafeAntCircle-v0", robot=name, disable_env_checker=True)
    assert env.unwrapped.robot is STRONG_ANT
    assert gym.make(EnvSpec.from_json(env.spec.to_json())).unwrapped.robot is STRONG_ANT
    # Lower than our ant may sink
    low = np.array([0.0, 0.0, 0.15, *STRONG_ANT.init_qpos[3:]])
    for robot, falls in ((STRONG_ANT, False), (ANT, True)):
        task = CircleTask(RobotEnv(robot))
        task.reset(seed=0)
        task.unwrapped.set_state(low, np.zeros(14))
        assert task.step(np.zeros(8))[2] is falls


@pytest.mark.parametrize("name", ["Dog", "json:Dog", "json:dumps", "json"])
def test_unknown_robots_are_named(name):
    with pytest.raises(ValueError, match=f"no robot is named '{name}': choose one of Point, Ant, Humanoid"):
        get_robot(name)
