import csv

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from toy_envs import RiskyEnv, ScriptedEnv, SparseCostEnv, scripted_cost

from sb3_cpo import CPO, CostMonitor, make_vec_env


def play(env, n_steps):
    """What ``info["episode"]`` said at the end of each episode."""
    env.reset()
    episodes = []
    for _ in range(n_steps):
        *_, terminated, truncated, info = env.step(env.action_space.sample())
        if terminated or truncated:
            episodes.append(info["episode"])
            env.reset()
    return episodes


def sums(rank=0):
    return [sum(scripted_cost(rank, t) for t in range(3)), sum(scripted_cost(rank, t) for t in range(3, 8))]


def test_costs_are_summed_over_the_episode():
    episodes = play(CostMonitor(ScriptedEnv()), 8)
    assert [episode["cost"] for episode in episodes] == sums()
    assert [episode["l"] for episode in episodes] == [3, 5]
    assert [episode["r"] for episode in episodes] == [1 + 2 + 3, 4 + 5 + 6 + 0 + 1]


def test_an_early_reset_forgets_the_episode():
    env = CostMonitor(ScriptedEnv(lengths=(3, 3)))
    env.reset()
    env.step(env.action_space.sample())
    assert play(env, 3)[0]["cost"] == sum(scripted_cost(0, t) for t in range(1, 4))


@pytest.mark.parametrize(
    ("kwargs", "columns"),
    [
        ({}, ["cost"]),
        ({"n_costs": 3}, ["cost_0", "cost_1", "cost_2"]),
        ({"keys": ("cost_left", "cost_right")}, ["cost_left", "cost_right"]),
        ({"n_costs": 0}, []),
    ],
    ids=["number", "array", "keys", "none"],
)
def test_csv_is_read_by_sb3_and_its_columns_are_the_keys_of_the_episode(kwargs, columns, tmp_path):
    env = CostMonitor(ScriptedEnv(**kwargs), str(tmp_path / "0"))
    episodes = play(env, 8)
    env.close()
    table = load_results(str(tmp_path))
    assert [key for key in table.columns if key.startswith("cost")] == columns
    assert table["l"].tolist() == [3, 5]
    for index, column in enumerate(columns):
        np.testing.assert_allclose(table[column], np.array(sums()) * (index + 1))
        assert [episode[column] for episode in episodes] == table[column].tolist()


def test_chosen_keys_only(tmp_path):
    env = CostMonitor(ScriptedEnv(keys=("cost_left", "speed", "cost_right")), str(tmp_path / "0"), cost_keys=("speed",))
    episodes = play(env, 8)
    assert [episode["speed"] for episode in episodes] == [2 * total for total in sums()]
    assert "cost_left" not in episodes[0]


def test_a_missing_cost_makes_the_sum_unknown_and_not_zero():
    assert np.isnan(play(CostMonitor(ScriptedEnv(n_costs=0), cost_keys=("cost",)), 3)[0]["cost"])


def test_other_arguments_are_those_of_sb3_s_monitor(tmp_path):
    class Says(gym.Wrapper):
        def step(self, action):
            *result, info = self.env.step(action)
            return *result, {**info, "is_success": True}

    env = CostMonitor(Says(ScriptedEnv()), str(tmp_path / "0"), info_keywords=("is_success",), allow_early_resets=False)
    episodes = play(env, 8)
    assert episodes[0]["is_success"]
    assert load_results(str(tmp_path))["is_success"].all()
    env.step(env.action_space.sample())
    with pytest.raises(RuntimeError):
        env.reset()


def test_info_that_only_looks_like_a_cost_does_no_harm():
    class Talks(gym.Wrapper):
        def step(self, action):
            *result, info = self.env.step(action)
            return *result, {**info, "cost_name": "speed", "cost_note": None}

    episodes = play(CostMonitor(Talks(ScriptedEnv())), 3)
    assert episodes[0]["cost"] == sums()[0]
    assert "cost_name" not in episodes[0]


def test_is_a_monitor_to_sb3():
    assert is_wrapped(CostMonitor(ScriptedEnv()), Monitor)
    assert make_vec_env(ScriptedEnv, n_envs=2).env_is_wrapped(Monitor) == [True, True]


def test_a_bare_environment_gets_a_cost_monitor_and_a_monitored_one_keeps_its_own():
    model = CPO("MlpPolicy", ScriptedEnv(), 5.0, n_steps=8, batch_size=8, device="cpu").learn(8)
    assert model.env.env_is_wrapped(CostMonitor) == [True]
    assert [episode["cost"] for episode in model.ep_info_buffer] == sums()
    model = CPO("MlpPolicy", Monitor(ScriptedEnv()), 5.0, n_steps=8, batch_size=8, device="cpu")
    assert model.env.env_is_wrapped(CostMonitor) == [False]


def test_the_algorithm_tells_the_monitor_the_keys_of_its_limits(tmp_path):
    env = make_vec_env(ScriptedEnv, monitor_dir=str(tmp_path), env_kwargs={"keys": ("speed", "energy")})
    CPO("MlpPolicy", env, {"speed": 1.0, "energy": 1.0}, n_steps=8, batch_size=8, device="cpu").learn(8)
    env.close()
    table = load_results(str(tmp_path))
    np.testing.assert_allclose(table["speed"], sums())
    np.testing.assert_allclose(table["energy"], 2 * np.array(sums()))


@pytest.mark.parametrize("subproc", [False, True], ids=["dummy", "subproc"])
def test_make_vec_env_from_a_function(subproc, tmp_path):
    kwargs = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}} if subproc else {}
    env = make_vec_env(ScriptedEnv, n_envs=2, seed=0, monitor_dir=str(tmp_path), env_kwargs={"rank": 1}, **kwargs)
    assert isinstance(env, SubprocVecEnv if subproc else DummyVecEnv)
    env.reset()
    costs = []
    for _ in range(8):
        *_, infos = env.step(np.zeros((2, 2)))
        costs += [info["episode"]["cost"] for info in infos if "episode" in info]
    env.close()
    assert costs == np.repeat(sums(rank=1), 2).tolist()
    assert sorted(load_results(str(tmp_path))["cost"]) == sorted(costs)


def test_make_vec_env_from_an_id_with_seeds_and_wrappers(tmp_path):
    class Double(gym.Wrapper):
        def step(self, action):
            obs, reward, *result = self.env.step(action)
            return obs, 2 * reward, *result

    env = make_vec_env("SafePointCircle-v0", n_envs=2, seed=7, wrapper_class=Double, monitor_dir=str(tmp_path))
    again = make_vec_env("SafePointCircle-v0", n_envs=2, seed=7)
    np.testing.assert_array_equal(env.reset(), again.reset())
    assert isinstance(env.envs[0], Double)
    assert isinstance(env.envs[0].env, CostMonitor)
    env.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["0.monitor.csv", "1.monitor.csv"]
    with open(tmp_path / files[0]) as file:
        assert "SafePointCircle-v0" in file.readline()
        assert "cost" in next(csv.reader(file))


def test_seeds_differ_between_environments():
    obs = make_vec_env(RiskyEnv, n_envs=2, seed=1).reset()
    assert not np.array_equal(obs[0], obs[1])


def test_a_cost_that_is_mentioned_only_when_it_occurs_is_zero_elsewhere(tmp_path):
    env = CostMonitor(SparseCostEnv(lengths=(3,), cost=lambda rank, t: float(t % 3 == 1)), str(tmp_path / "0"))
    assert [episode["cost"] for episode in play(env, 6)] == [1, 1]
    env.close()
    assert load_results(str(tmp_path))["cost"].tolist() == [1, 1]


def test_small_costs_are_not_rounded_away(tmp_path):
    env = CostMonitor(ScriptedEnv(0, lengths=(4,), cost=lambda rank, t: 2.5e-8), str(tmp_path / "0"))
    env.reset()
    for _ in range(4):
        info = env.step(env.action_space.sample())[-1]
    assert info["episode"]["cost"] == pytest.approx(1e-7, rel=1e-8)
    assert load_results(str(tmp_path))["cost"].item() == pytest.approx(1e-7, rel=1e-8)
