"""BatchVecEnv is DummyVecEnv, only faster."""

import csv
import json

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor, load_results

from safe_envs import BatchVecEnv

ALL_IDS = [
    "SafePointCircle-v0",
    "SafeAntCircle-v0",
    "SafeHumanoidCircle-v0",
    "SafePointGather-v0",
    "SafeAntGather-v0",
    "SafeAntVelocity-v0",
    "SafeHalfCheetahVelocity-v0",
    "SafeHopperVelocity-v0",
    "SafeHumanoidVelocity-v0",
    "SafeSwimmerVelocity-v0",
    "SafeWalker2dVelocity-v0",
]


def batch(env_id, n_envs=3, seed=0, n_threads=1, **kwargs):
    return make_vec_env(
        env_id, n_envs=n_envs, seed=seed, vec_env_cls=BatchVecEnv, vec_env_kwargs={"n_threads": n_threads}, **kwargs
    )


def without_time(info):
    info = dict(info)
    if "episode" in info:
        # SB3's Monitor knows no cost
        info["episode"] = {key: info["episode"][key] for key in ("r", "l")}
    observation = info.pop("terminal_observation", None)
    return info, observation


def test_all_ids_are_tested():
    assert sorted(ALL_IDS) == sorted(env_id for env_id in gym.registry if env_id.startswith("Safe") and "-v0" in env_id)


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_bit_identical_to_single_environments(env_id):
    """2,000 steps of 3 copies, at 1 and at 2 threads, with the same seeds and actions."""
    n_envs, n_steps, max_episode_steps = 3, 2000, 100
    env_kwargs = {} if env_id == "SafePointGather-v0" else {"max_episode_steps": max_episode_steps}
    dummy = make_vec_env(env_id, n_envs=n_envs, seed=5, env_kwargs=env_kwargs)
    batches = [batch(env_id, n_envs, 5, n_threads, env_kwargs=env_kwargs) for n_threads in (1, 2)]
    observations = dummy.reset()
    for venv in batches:
        assert np.array_equal(observations, venv.reset())
        assert venv.reset_infos == dummy.reset_infos
    rng = np.random.default_rng(5)
    episode_costs, n_episodes, ends = np.zeros(n_envs), 0, set()
    for step in range(n_steps):
        # From a stutter to more than the box, so that robots stand, walk and fall
        actions = rng.standard_normal((n_envs, *dummy.action_space.shape)) * (0.1 + 1.2 * (step % 400) / 400.0)
        actions = actions.astype(np.float32)
        observations, rewards, dones, infos = dummy.step(actions)
        episode_costs += [info["cost"] for info in infos]
        for venv in batches:
            other_observations, other_rewards, other_dones, other_infos = venv.step(actions)
            assert np.array_equal(observations, other_observations)
            assert np.array_equal(rewards, other_rewards)
            assert np.array_equal(dones, other_dones)
            assert (observations.dtype, rewards.dtype, dones.dtype) == (
                other_observations.dtype,
                other_rewards.dtype,
                other_dones.dtype,
            )
            for index in range(n_envs):
                info, observation = without_time(infos[index])
                other_info, other_observation = without_time(other_infos[index])
                assert info == other_info
                if dones[index]:
                    assert np.array_equal(observation, other_observation)
                    assert other_infos[index]["episode"]["cost"] == pytest.approx(episode_costs[index], abs=1e-6)
        n_episodes += dones.sum()
        ends |= {index for index in range(n_envs) if dones[index]}
        episode_costs[dones] = 0.0
    assert n_episodes >= 3 * 20 - 3
    assert ends == {0, 1, 2}


def test_copies_end_and_start_independently():
    venv = batch("SafePointCircle-v0", n_envs=16)
    venv.reset()
    lengths = np.zeros(16, dtype=int)
    seen = set()
    for _ in range(400):
        observations, _, dones, infos = venv.step(np.zeros((16, 2), dtype=np.float32))
        lengths += 1
        for index in np.flatnonzero(dones):
            assert infos[index]["episode"]["l"] == lengths[index]
            assert infos[index]["TimeLimit.truncated"] is True
            assert np.abs(observations[index, :2]).max() < 0.06  # a new start
            seen.add(lengths[index])
            lengths[index] = 0
        for index in np.flatnonzero(~dones):
            assert "episode" not in infos[index]
            assert "terminal_observation" not in infos[index]
            assert infos[index]["TimeLimit.truncated"] is False
        assert not dones.all()
    assert len(seen) > 8


@pytest.mark.parametrize("n_envs", [1, 2, 7, 64])
def test_a_copy_does_not_depend_on_the_number_of_copies(n_envs):
    for env_id in ("SafePointCircle-v0", "SafeHumanoidCircle-v0", "SafeHumanoidVelocity-v0", "SafeAntGather-v0"):
        one, many = batch(env_id, 1, seed=3), batch(env_id, n_envs, seed=3)
        assert np.array_equal(one.reset()[0], many.reset()[0])
        one.action_space.seed(0)
        for _ in range(25):
            action = one.action_space.sample()
            first = one.step(action[None])
            others = many.step(np.repeat(action[None], n_envs, axis=0))
            assert np.array_equal(first[0][0], others[0][0])
            assert first[1][0] == others[1][0]
            assert without_time(first[3][0])[0] == without_time(others[3][0])[0]


def test_seeds_follow_dummy_vec_env():
    for seed in (0, 42, None):
        dummy = make_vec_env("SafeAntCircle-v0", n_envs=2, seed=seed)
        venv = batch("SafeAntCircle-v0", n_envs=2, seed=seed)
        if seed is None:
            assert not np.array_equal(dummy.reset(), venv.reset())
        else:
            assert np.array_equal(dummy.reset(), venv.reset())
            # Seeds are used once; then the generators go on
            assert np.array_equal(dummy.reset(), venv.reset())
            assert dummy.seed(9) == venv.seed(9) == [9, 10]
            assert np.array_equal(dummy.reset(), venv.reset())


def test_infos_and_arrays_are_fresh_in_each_step():
    venv = batch("SafePointCircle-v0", n_envs=2)
    venv.reset()
    first = venv.step(np.ones((2, 2), dtype=np.float32))
    kept = [np.copy(first[0]), np.copy(first[1]), np.copy(first[2]), [dict(info) for info in first[3]]]
    second = venv.step(-np.ones((2, 2), dtype=np.float32))
    for before, value, after in zip(kept, first, second, strict=True):
        assert np.array_equal(before, value)
        assert value is not after
    assert first[3][0] is not first[3][1]
    assert first[3][0] is not second[3][0]


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_infos_hold_plain_floats(env_id):
    venv = batch(env_id, n_envs=2)
    venv.reset()
    _, _, _, infos = venv.step(np.array([venv.action_space.sample() for _ in range(2)]))
    for info in infos:
        assert type(info["cost"]) is float
        assert {"cost", "x_position", "speed"} <= set(info) or "x_velocity" in info
        assert all(type(value) is float for key, value in info.items() if key != "TimeLimit.truncated")
    json.dumps(infos)


@pytest.mark.parametrize("has_monitor", [True, False])
def test_episode_statistics_with_and_without_monitor(has_monitor):
    def make():
        env = gym.make("SafePointCircle-v0")
        return Monitor(env) if has_monitor else env

    venv = BatchVecEnv([make, make])
    venv.seed(1)
    venv.reset()
    assert venv.env_is_wrapped(Monitor) == [has_monitor] * 2
    returns, costs, n_done = np.zeros(2), np.zeros(2), 0
    for _ in range(200):
        _, rewards, dones, infos = venv.step(np.ones((2, 2), dtype=np.float32) * 0.9)
        returns += rewards
        costs += [info["cost"] for info in infos]
        for index in np.flatnonzero(dones):
            episode = infos[index]["episode"]
            assert episode["r"] == pytest.approx(returns[index], rel=1e-5)
            assert episode["cost"] == pytest.approx(costs[index])
            assert costs[index] > 0.0
            assert 50 <= episode["l"] <= 65
            assert 0.0 < episode["t"] < 600.0
            assert type(episode["cost"]) is float
            assert type(episode["l"]) is int
            returns[index] = costs[index] = 0.0
            n_done += 1
    assert n_done >= 6
    if has_monitor:
        assert len(venv.env_method("get_episode_rewards", indices=0)[0]) >= 3


def test_monitor_files_are_written(tmp_path):
    venv = batch(
        "SafePointGather-v0", n_envs=2, monitor_dir=str(tmp_path), monitor_kwargs={"info_keywords": ("cost", "x_position")}
    )
    venv.reset()
    episodes = []
    for _ in range(40):
        _, _, _, infos = venv.step(np.full((2, 2), 0.5, dtype=np.float32))
        episodes += [info["episode"] | {"last_x": info["x_position"]} for info in infos if "episode" in info]
    venv.close()
    assert len(episodes) >= 4
    for name in ("0.monitor.csv", "1.monitor.csv"):
        with open(tmp_path / name) as file:
            assert json.loads(file.readline()[1:])["env_id"] == "SafePointGather-v0"
            assert next(csv.reader(file)) == ["r", "l", "t", "cost", "x_position"]
    frame = load_results(str(tmp_path))
    assert len(frame) == len(episodes)
    assert sorted(frame["cost"]) == pytest.approx(sorted(episode["cost"] for episode in episodes))
    assert sorted(frame["x_position"]) == pytest.approx(sorted(episode["last_x"] for episode in episodes))


def test_plain_monitor_file_has_its_three_columns(tmp_path):
    venv = batch("SafePointGather-v0", n_envs=1, monitor_dir=str(tmp_path))
    venv.reset()
    for _ in range(16):
        venv.step(np.zeros((1, 2), dtype=np.float32))
    venv.close()
    assert list(load_results(str(tmp_path)).columns[1:]) == ["r", "l", "t"]


class SummingMonitor(Monitor):
    """Has the attribute by which a monitor asks for the sums of other costs."""

    def __init__(self, env, cost_keys):
        super().__init__(env)
        self.cost_keys = cost_keys


def test_monitor_chooses_what_is_summed():
    venv = BatchVecEnv([lambda: SummingMonitor(gym.make("SafePointCircle-v0"), ("cost", "speed"))])
    venv.reset()
    speed = 0.0
    while True:
        _, _, dones, infos = venv.step(np.full((1, 2), -0.25, dtype=np.float32))
        speed += infos[0]["speed"]
        if dones[0]:
            break
    assert infos[0]["episode"]["speed"] == pytest.approx(speed, abs=1e-6)
    venv = BatchVecEnv([lambda: SummingMonitor(gym.make("SafePointCircle-v0"), ("cost_noise",))])
    venv.reset()
    while not dones[0] or "cost_noise" not in infos[0]["episode"]:
        _, _, dones, infos = venv.step(np.zeros((1, 2)))
    # Never mentioned in the infos: unknown, as a CostMonitor has it
    assert np.isnan(infos[0]["episode"]["cost_noise"])


def test_monitor_forbids_early_resets():
    venv = batch("SafePointCircle-v0", n_envs=1, monitor_kwargs={"allow_early_resets": False})
    venv.reset()
    with pytest.raises(RuntimeError, match="before done"):
        venv.reset()
