"""What is chosen where the user says nothing."""

import copy
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import kl_divergence
from toy_envs import RiskyEnv, ScriptedEnv, vec_env

from safe_envs import BatchVecEnv
from sb3_cpo import CPO, FPO, PDO, TRPO, make_vec_env
from sb3_cpo.defaults import default_batch_size, default_env, default_n_steps, fill_in
from sb3_cpo.env_watch import EnvWatch
from sb3_cpo.policies import CostActorCriticPolicy
from sb3_cpo.trust_region_algorithm import mean_kl_divergence


@pytest.mark.parametrize(
    ("n_envs", "max_episode_steps", "n_steps"),
    [
        (20, 1000, 1000),  # 20 episodes
        (1, 200, 4000),
        (1, 500, 10_000),
        (1, 700, 10_500),  # 15
        (1, 1000, 10_000),  # 10 are enough where they are long
        (1, 3000, 30_000),
        (8, 1000, 2000),  # 16
        (8, 500, 1500),  # 24: whole ones in each copy
        (100, 65, 260),  # at least 200 steps of each copy
        (1, 50, 2000),
        (1, 100, 2000),
        (1, None, 2048),
        (8, None, 2048),
        (1, 10_000, 100_000),
        (1, 108_000, 2048),  # Atari's
    ],
)
def test_rollouts_hold_whole_episodes(n_envs, max_episode_steps, n_steps):
    assert default_n_steps(n_envs, max_episode_steps) == n_steps
    if max_episode_steps is not None and max_episode_steps <= 10_000:
        assert n_steps % max_episode_steps == 0
        assert n_steps * n_envs >= min(20 * max_episode_steps, max(10 * max_episode_steps, 10_000))


@pytest.mark.parametrize(("length", "gamma"), [(1, 0.0), (50, 0.98), (99, 98 / 99), (100, 0.99), (1000, 0.99), (None, 0.99)])
@pytest.mark.parametrize("algorithm", [CPO, PDO, FPO, TRPO])
def test_the_discount_of_the_reward_looks_no_farther_than_a_short_episode(algorithm, length, gamma):
    def make(rank):
        env = RiskyEnv()
        return env if length is None else gym.wrappers.TimeLimit(env, length)

    model = algorithm("MlpPolicy", vec_env(make, 1), cost_limit=1.0, n_steps=8, batch_size=8, device="cpu")
    assert model.gamma == pytest.approx(gamma)
    model = algorithm("MlpPolicy", vec_env(make, 1), cost_limit=1.0, n_steps=8, batch_size=8, device="cpu", gamma=0.95)
    assert model.learn(8).rollout_buffer.gamma == 0.95


@pytest.mark.parametrize(("rollout_size", "batch_size"), [(20_000, 500), (4000, 100), (26_000, 650), (130, 65), (7, 7)])
def test_batches_divide_the_rollout(rollout_size, batch_size):
    assert default_batch_size(rollout_size) == batch_size
    assert rollout_size % batch_size == 0


@pytest.mark.parametrize(
    ("length", "cost_gamma", "cost_gae_gamma"),
    [(4, 1.0, 1.0), (99, 1.0, 1.0), (100, 1.0, 0.99), (1000, 1.0, 0.99), (4, 0.9, 0.9), (1000, 0.9, 0.9), (None, 1.0, 0.99)],
)
def test_an_action_is_responsible_for_a_hundred_steps_or_a_short_episode(length, cost_gamma, cost_gae_gamma):
    def make(rank):
        env = RiskyEnv()
        return env if length is None else gym.wrappers.TimeLimit(env, length)

    model = CPO("MlpPolicy", vec_env(make, 1), 1.0, n_steps=8, batch_size=8, cost_gamma=cost_gamma, device="cpu")
    model.learn(8)
    assert model.rollout_buffer.cost_gamma == pytest.approx(cost_gae_gamma)
    model = CPO("MlpPolicy", vec_env(make, 1), 1.0, n_steps=8, batch_size=8, cost_gamma=cost_gamma, n_noise_draws=0)
    assert model.learn(8).rollout_buffer.cost_gamma == cost_gamma


@pytest.mark.parametrize(
    ("made", "loaded", "cost_gae_gamma", "n_rollouts"),
    [
        ({}, {}, 0.99, 5),
        ({}, {"n_noise_draws": 0}, 1.0, 1),
        ({"n_noise_draws": 0}, {"n_noise_draws": 2}, 0.99, 5),
        ({}, {"cost_gamma": 0.9}, 0.9, 5),
        ({"cost_gae_gamma": 0.99, "n_cost_rollouts": 3}, {"n_noise_draws": 0}, 0.99, 3),
    ],
)
def test_what_was_not_given_is_chosen_anew_where_load_changes_what_it_depends_on(
    made, loaded, cost_gae_gamma, n_rollouts, tmp_path
):
    env = vec_env(lambda rank: RiskyEnv(), 2)
    CPO("MlpPolicy", env, 1.0, n_steps=8, batch_size=8, device="cpu", **made).save(tmp_path / "model")
    model = CPO.load(tmp_path / "model", env, device="cpu", **loaded)
    model.learn(6 * 16)
    assert model.rollout_buffer.cost_gamma == cost_gae_gamma
    assert len(model._recent) == n_rollouts
    # 0: the limit is on J itself
    assert (model.filtered_cost is None) == (model.n_noise_draws == 0)


@pytest.mark.parametrize(
    ("policy", "kind", "kwargs", "n_cost_rollouts"),
    [
        ("MlpPolicy", "box", {}, None),
        ("MlpPolicy", "box", {"n_noise_draws": 0}, 1),
        ("MlpPolicy", "box", {"n_cost_rollouts": 2, "n_noise_draws": 0}, 2),
        ("CnnPolicy", "image", {}, 1),
        ("MultiInputPolicy", "dict", {}, 1),  # one of its parts is an image
    ],
)
def test_costs_are_estimated_on_several_rollouts(policy, kind, kwargs, n_cost_rollouts):
    model = CPO(policy, vec_env(lambda rank: RiskyEnv(kind), 2), 1.0, n_steps=8, batch_size=8, device="cpu", **kwargs)
    model.learn(7 * 16)
    assert len(model._recent) == (n_cost_rollouts or 5)


def test_as_many_rollouts_as_hold_200_episodes(tmp_path):
    """64 episodes of four steps in a rollout: four of them. When there are 200 and more in one, that is enough."""
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=64 * (4,) + 1000 * (1,)), 4)
    model = CPO("MlpPolicy", env, 1.0, n_steps=64, batch_size=64, device="cpu")
    numbers = []
    for _ in range(7):
        model.learn(256, reset_num_timesteps=False)
        numbers.append([batch.n_episodes for batch in model._recent])
    assert numbers[:4] == [[64], [64, 64], [64, 64, 64], [64, 64, 64, 64]]
    assert numbers[4:] == [[256], [256], [256]]


@pytest.mark.parametrize(
    ("action_space", "target_kl"),
    [
        (spaces.Box(-1, 1, (6,)), 0.06),
        (spaces.Box(-1, 1, (2, 2)), 0.04),
        (spaces.MultiBinary(8), 0.08),
        (spaces.Discrete(5), 0.01),
        (spaces.MultiDiscrete([3] * 8), 0.01),
    ],
)
def test_the_trust_region_grows_with_the_dimensions_of_an_action(action_space, target_kl):
    arguments = {
        "n_steps": None,
        "batch_size": None,
        "target_kl": None,
        "cg_damping": None,
        "fisher_sub_sampling_factor": None,
    }
    fill_in(arguments, 20, 1000, action_space)
    assert arguments == {
        "n_steps": 1000,
        "batch_size": 500,
        "target_kl": pytest.approx(target_kl),
        "cg_damping": pytest.approx(10 * target_kl),
        "fisher_sub_sampling_factor": 4,
    }
    given = {"n_steps": 10, "batch_size": 5, "target_kl": 0.3, "cg_damping": 0.7, "fisher_sub_sampling_factor": 7}
    assert fill_in(dict(given), 20, 1000, action_space) is None
    filled = dict(given)
    fill_in(filled, 20, 1000, action_space)
    assert filled == given


@pytest.mark.parametrize(
    "action_space", [spaces.Box(-1, 1, (6,)), spaces.MultiBinary(8), spaces.Discrete(5), spaces.MultiDiscrete([3] * 8)]
)
def test_the_default_trust_region_is_contribs(action_space):
    """0.01 of what sb3-contrib's TRPO bounds, ``kl_divergence(...).mean()``."""
    policy = CostActorCriticPolicy(spaces.Box(-1, 1, (3,)), action_space, lambda _: 1e-3, n_costs=1)
    distributions = []
    for _ in range(2):
        th.nn.init.normal_(policy.action_net.weight)
        distributions.append(copy.copy(policy.get_distribution(th.linspace(-1, 1, 15).reshape(5, 3))))
    arguments = {"target_kl": None}
    fill_in(arguments, None, None, action_space)
    ours, contribs = mean_kl_divergence(*distributions).item(), kl_divergence(*distributions).mean().item()
    assert contribs > 0.01
    assert ours / contribs == pytest.approx(arguments["target_kl"] / 0.01)


def test_a_task_of_ours_given_by_its_id_is_stepped_in_many_copies(capsys):
    model = CPO("MlpPolicy", "SafePointGather-v0", verbose=1, device="cpu")
    assert isinstance(model.env, BatchVecEnv)
    assert (model.env.num_envs, model.n_steps, model.cost_limit) == (100, 210, 0.1)
    assert "Stepping 100 copies of SafePointGather-v0" in capsys.readouterr().out
    env = gym.make("SafePointGather-v0")
    assert CPO("MlpPolicy", env, device="cpu").env.num_envs == 1


def test_what_batch_vec_env_refuses_is_made_once_to_learn_that(monkeypatch):
    n_made = []
    make = gym.make
    monkeypatch.setattr(gym, "make", lambda *args, **kwargs: n_made.append(args) or make(*args, **kwargs))
    assert default_env("Pendulum-v1") == "Pendulum-v1"
    assert len(n_made) == 1
    assert default_env("NoSuchEnvironment-v0") == "NoSuchEnvironment-v0"
    env = vec_env(lambda rank: RiskyEnv())
    assert default_env(env) is env


def test_resets_by_others_are_noticed_and_the_environment_is_left_as_it_was():
    env, resets = vec_env(lambda rank: RiskyEnv()), []
    with EnvWatch(env, lambda: 0, lambda: resets.append(1)):
        assert not resets
        env.reset()
    assert resets == [1]
    assert "reset" not in vars(env)
    env.reset = own = lambda: np.full((1, 1), 7.0)
    with EnvWatch(env, lambda: 0, lambda: resets.append(2)):
        assert env.reset() == 7.0
    assert env.reset is own


class OldBatch:
    """What an older MuJoCo finds: no ``mujoco.batch``, or one that was left by a newer version."""

    def __init__(self, error):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name == "mujoco.batch":
            raise self.error


@pytest.mark.parametrize("error", [ImportError("no module"), AttributeError("no attribute mjSTATE_HISTORY")])
def test_without_mujocos_batch_tasks_are_stepped_one_by_one(error, monkeypatch):
    monkeypatch.delitem(sys.modules, "mujoco.batch", raising=False)
    monkeypatch.setattr(sys, "meta_path", [OldBatch(error), *sys.meta_path])
    with pytest.raises(ImportError, match=r"mujoco.batch, which MuJoCo .* does not have: install mujoco>=4"):
        make_vec_env("SafeHopperVelocity-v0", vec_env_cls=BatchVecEnv)
    assert default_env("SafeHopperVelocity-v0") == "SafeHopperVelocity-v0"
    assert default_env("SafePointCircle-v0").num_envs == 100  # moved by rule, without physics


@pytest.mark.parametrize(("limit", "verbose", "is_said"), [(None, 1, True), (None, 0, False), (7.0, 1, False)])
def test_the_limit_of_the_environment_is_said_where_one_asks_for_words(limit, verbose, is_said, capsys):
    CPO("MlpPolicy", "SafePointCircle-v0", limit, n_steps=65, verbose=verbose, device="cpu")
    assert ("Cost limit of the environment: 5.0" in capsys.readouterr().out) is is_said


def test_no_limit_of_the_environment_is_no_word(capsys):
    TRPO("MlpPolicy", RiskyEnv(), n_steps=40, verbose=1, device="cpu")
    assert "Cost limit" not in capsys.readouterr().out
