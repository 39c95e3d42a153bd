"""gymnasium's vectorised environments: arrays per copy, ``final_info``; costs as tensors."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import DummyVecEnv
from toy_envs import RiskyEnv

from safe_envs import CostWrapper, GymnasiumVecEnv
from safe_envs.vector_env import split_infos
from sb3_cpo import CPO, PDO, CostEvalCallback, CostMonitor, check_cost_env, evaluate_policy
from sb3_cpo.cost_signal import read_costs

KWARGS = {"n_steps": 50, "batch_size": 50, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}


def fall(next_obs, terminated):
    return float(next_obs[0] > 0) + 10.0 * terminated


def cart_poles(mode="SAME_STEP", n_envs=3, max_episode_steps=12, cost=fall):
    return gym.make_vec(
        "CartPole-v1",
        num_envs=n_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode[mode]},
        wrappers=[lambda env: CostWrapper(env, cost, cost_limit=4.0)],
        max_episode_steps=max_episode_steps,
    )


def in_processes(mode):
    def make():
        return CostWrapper(gym.make("CartPole-v1", max_episode_steps=12), fall)

    return gym.vector.AsyncVectorEnv([make] * 3, autoreset_mode=AutoresetMode[mode])


@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED", "NEXT_STEP"])
@pytest.mark.parametrize("make_vec", [cart_poles, in_processes])
def test_steps_are_those_of_a_dummy_vec_env(make_vec, mode):
    def make():
        return CostWrapper(gym.make("CartPole-v1", max_episode_steps=12), fall)

    ours, sb3 = GymnasiumVecEnv(make_vec(mode)), DummyVecEnv([make] * 3)
    for env in (ours, sb3):
        env.seed(3)
    np.testing.assert_array_equal(ours.reset(), sb3.reset())
    rng, ends = np.random.default_rng(0), 0
    for _ in range(60):
        actions = rng.integers(2, size=3)
        # gymnasium continues each copy's random numbers, as DummyVecEnv does
        results, expected = ours.step(actions), sb3.step(actions)
        for array, other in zip(results[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(array, other)
        for info, other in zip(results[3], expected[3], strict=True):
            assert info["cost"] == other["cost"]
            assert info["TimeLimit.truncated"] == other["TimeLimit.truncated"]
            assert ("terminal_observation" in info) == ("terminal_observation" in other)
            if "terminal_observation" in other:
                np.testing.assert_array_equal(info["terminal_observation"], other["terminal_observation"])
                ends += 1
    assert ends > 10
    ours.close()


def test_resets_in_the_next_step_that_nobody_can_forestall_are_refused_with_the_mode_that_works():
    native = gym.make_vec("CartPole-v1", num_envs=3)
    forgetful = gym.vector.AsyncVectorEnv([lambda: gym.make("CartPole-v1")], shared_memory=False)
    for venv in (native, gym.wrappers.vector.RecordEpisodeStatistics(native), forgetful):
        for wrap in (GymnasiumVecEnv, lambda venv: CPO("MlpPolicy", venv, 4.0, **KWARGS)):
            with pytest.raises(ValueError, match=r"NEXT_STEP.*autoreset_mode=AutoresetMode\.SAME_STEP"):
                wrap(venv)
    forgetful.close()


@pytest.mark.filterwarnings("ignore:only .* episodes")
@pytest.mark.parametrize("algorithm", [CPO, PDO])
def test_algorithms_take_them_as_they_are(algorithm):
    model = algorithm("MlpPolicy", cart_poles(), **KWARGS).learn(300)
    # The limit, the time limit and the episodes are found
    assert model.cost_limit == 4.0
    assert 0 < model.ep_cost_mean[0] < 22
    assert model.raw_cost_estimate.mean_length <= 12
    assert len(model.ep_info_buffer) > 20
    assert np.isfinite(model.ep_rew_mean)
    costs = evaluate_policy(model, GymnasiumVecEnv(cart_poles()), n_eval_episodes=6)[2]
    assert costs.shape == (1,)


def test_a_time_limit_is_found_for_the_default_rollout():
    arguments = {**KWARGS, "n_steps": None, "batch_size": None}
    model = CPO("MlpPolicy", cart_poles(n_envs=2, max_episode_steps=500), **arguments)
    assert model.n_steps == 5_000


def test_copies_in_other_processes_are_asked_only_for_what_they_have():
    """One that is asked for an attribute that it lacks, or for a spec that holds a user's function, would be dead."""

    def make():
        return CostWrapper(gym.make("CartPole-v1", max_episode_steps=12), lambda next_obs: 1.0)

    env = gym.vector.AsyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    vec_env = GymnasiumVecEnv(env)
    assert vec_env.has_attr("cost_limit")
    assert not vec_env.has_attr("total_steps")
    assert vec_env.get_attr("spec") == [None, None]
    model = CPO("MlpPolicy", env, 5.0, **KWARGS).learn(200)
    assert model.raw_cost_estimate.mean_length == model.ep_cost_mean[0] > 0
    env.close()


def test_infos_are_split_with_their_masks():
    infos = {
        "cost": np.array([1.0, 2.0]),
        "costs": np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        "tensor": th.tensor([1.0, 2.0]),
        "rare": np.array([7.0, 0.0]),
        "_rare": np.array([True, False]),
        "nested": {"r": np.array([0.0, 9.0]), "_r": np.array([False, True])},
        "_nested": np.array([False, True]),
        "clock": 5,
        "name": "ab",
    }
    first, second = split_infos(infos, 2)
    assert (first["cost"], first["costs"].tolist(), float(first["tensor"]), first["rare"]) == (1.0, [1.0, 2.0, 3.0], 1.0, 7.0)
    assert set(first) == {"cost", "costs", "tensor", "rare", "clock", "name"}
    assert (second["costs"].tolist(), second["nested"], second["clock"], second["name"]) == (
        [4.0, 5.0, 6.0],
        {"r": 9.0},
        5,
        "ab",
    )
    assert "rare" not in second
    rows = [{"cost": 1.0}, {"cost": 2.0}]
    assert split_infos(rows, 2) == rows


class OnTheGpu:
    """What a tensor of a GPU is like for numpy."""

    def __init__(self, values):
        self.values = values

    def __array__(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")

    def cpu(self):
        return th.tensor(self.values)


@pytest.mark.parametrize("tensor", [th.tensor, OnTheGpu])
def test_costs_may_be_tensors(tensor):
    assert read_costs([{"cost": tensor(1.5)}, {"cost": tensor(2.0)}], None, 1).tolist() == [[1.5], [2.0]]
    assert read_costs([{"cost": tensor([1.5, 3.0])}], None, 2).tolist() == [[1.5, 3.0]]
    assert read_costs([{"a": tensor(1.0), "b": tensor(2.0)}], ("a", "b"), 2).tolist() == [[1.0, 2.0]]
    env = CostWrapper(gym.make("CartPole-v1"), lambda: tensor([1.0, 2.0]))
    env.reset(seed=0)
    assert env.step(0)[4]["cost"].tolist() == [1.0, 2.0]


def test_a_monitor_sums_costs_that_are_tensors_of_a_gpu():
    class CostsOnTheGpu(RiskyEnv):
        def step(self, action):
            *others, _ = super().step(action)
            return (*others, {"cost": OnTheGpu(1.5)})

    env = CostMonitor(CostsOnTheGpu(length=3))
    env.reset()
    infos = [env.step(env.action_space.sample())[-1] for _ in range(3)]
    assert infos[-1]["episode"]["cost"] == 4.5


class Native(gym.vector.VectorEnv):
    """Three copies at once, episodes of five steps, each of which costs 1; ``told`` is where their ends are told."""

    num_envs = 3
    single_observation_space, single_action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)
    observation_space = gym.spaces.Box(-1, 1, (3, 2))
    action_space = gym.spaces.MultiDiscrete([2, 2, 2])
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, told, tensors=False):
        self.told = told
        self.as_array = th.as_tensor if tensors else np.asarray

    def reset(self, *, seed=None, options=None):
        self.t = np.array([0, 1, 2])  # they do not end together
        return self.as_array(np.zeros((3, 2), dtype=np.float32)), {}

    def step(self, actions):
        self.t = self.t + 1
        is_over = self.t >= 5
        observations, final = np.zeros((3, 2), dtype=np.float32), np.full((3, 2), 0.5, dtype=np.float32)
        infos = {"cost": self.as_array(np.ones(3))}
        if is_over.any() and self.told != "nowhere":
            infos = {"cost": self.as_array(np.where(is_over, 0.0, 1.0)), "_cost": ~is_over}
            if self.told == "arrays":  # gymnasium 1.2
                infos |= {"final_obs": self.as_array(final), "_final_obs": is_over, "_final_info": is_over}
                infos["final_info"] = {"cost": self.as_array(np.ones(3)), "_cost": is_over}
            else:  # 0.29
                objects = [np.full(3, None, dtype=object) for _ in range(2)]
                for index in np.flatnonzero(is_over):
                    objects[0][index], objects[1][index] = final[index], {"cost": 1.0}
                infos |= {"final_observation": objects[0], "_final_observation": is_over}
                infos |= {"final_info": objects[1], "_final_info": is_over}
        self.t[is_over] = 0
        nothing = self.as_array(np.zeros(3, dtype=bool))
        return self.as_array(observations), self.as_array(np.ones(3)), self.as_array(is_over), nothing, infos


@pytest.mark.filterwarnings("ignore:only .* episodes")
@pytest.mark.parametrize(("told", "tensors"), [("arrays", False), ("arrays", True), ("objects", False), ("nowhere", False)])
def test_ends_of_episodes_in_every_convention(told, tensors):
    env = GymnasiumVecEnv(Native(told, tensors))
    env.reset()
    infos = [env.step(np.zeros(3, dtype=int))[3] for _ in range(3)][-1]
    assert [info["cost"] for info in infos] == [1.0, 1.0, 1.0]
    assert ["terminal_observation" in info for info in infos] == [False, False, told != "nowhere"]
    if told != "nowhere":
        np.testing.assert_array_equal(infos[2]["terminal_observation"], [0.5, 0.5])
    model = CPO("MlpPolicy", Native(told, tensors), 5.0, cost_gamma=0.9, **KWARGS)
    model.learn(150)
    # Undiscounted, but for the episodes with which the copies begin
    np.testing.assert_allclose(model.ep_cost_mean, (1 - 0.9**5) / 0.1, atol=0.15)


def test_they_can_be_checked_and_evaluated():
    report = check_cost_env(Native("arrays"), 6, verbose=0)
    assert (report.problems, report.costs[0].mean) == ((), pytest.approx(4.5, abs=0.5))
    model = CPO("MlpPolicy", Native("arrays"), 5.0, **KWARGS)
    reward, _, cost, _ = evaluate_policy(model, Native("arrays"), 6)
    assert reward == pytest.approx(cost[0])
    callback = CostEvalCallback(Native("arrays"), n_eval_episodes=3, eval_freq=10)
    model.learn(150, callback=callback)
    assert callback.last_mean_cost[0] == pytest.approx(4.5, abs=0.5)
