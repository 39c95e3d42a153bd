"""The safety report: its numbers, its seeds, its verdicts, and that nothing else is touched."""

import hashlib
import json
import random
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_cpo import CPO, TRPO, make_vec_env, replay_episode, safety_report, seeded_episodes

stats = pytest.importorskip("scipy.stats")
pytest.importorskip("matplotlib")


class Coin(gym.Env):
    """
    Episodes of 5 steps. The cost is 1 with the probability 0.4 if the action is positive, by the environment's own chance; the
    reward is the action, and ``cost_b`` is 2 in each step.
    """

    observation_space = spaces.Box(-1, 1, (1,))

    def __init__(self, probability=0.4, action_space=None, length=5):
        self.probability, self.length = probability, length
        self.action_space = action_space or spaces.Box(-1, 1, (1,))
        self.n_resets = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.n_resets = 0, self.n_resets + 1
        return self.np_random.uniform(-1, 1, 1).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        is_up = float(np.ravel(action)[0]) > 0
        cost = float(is_up and self.np_random.random() < self.probability)
        obs = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return obs, float(np.ravel(action)[0]), False, self.t == self.length, {"cost": cost, "cost_b": 2.0}


def make_model(env=None, cost_limit=1.5, cls=CPO, **kwargs):
    return cls("MlpPolicy", env or Coin(), cost_limit, n_steps=50, batch_size=50, n_critic_updates=1, **{"seed": 0, **kwargs})


def report(model=None, env=None, n_episodes=20, **kwargs):
    return safety_report(model or make_model(), env or Coin(), n_episodes, **kwargs)


# ---------------------------------------------------------------- numbers


def test_numbers_are_those_of_the_episodes():
    result = report(n_episodes=60, alpha=0.1, max_episode_cost=5)
    stochastic, deterministic = result.policies
    assert (stochastic.policy, deterministic.policy) == ("stochastic", "deterministic")
    for policy in result.policies:
        (one,), costs = policy.constraints, policy.costs[:, 0]
        assert (one.name, one.limit, one.n_episodes) == ("cost", 1.5, 60)
        assert one.mean == pytest.approx(costs.mean())
        assert one.t_upper == pytest.approx(stats.ttest_1samp(costs, 0, alternative="less").confidence_interval(0.9).high)
        assert one.exact_upper == one.upper > one.mean
        assert one.n_exceeding == (costs > 1.5).sum()
        assert one.exceedance_upper == pytest.approx(stats.beta.isf(0.1, one.n_exceeding + 1, 60 - one.n_exceeding))
        assert one.quantiles[0.75] == np.quantile(costs, 0.75)
        assert one.cvar_95 == np.sort(costs)[-3:].mean()
        assert one.worst_cost == costs.max()
        assert policy.costs[policy.seeds == one.worst_seed, 0] == costs.max()
        assert (policy.lengths == 5).all()
    # An untrained Gaussian is positive half of the time: 5 * 0.5 * 0.4; of 60 episodes, the standard error is 0.12
    assert stochastic.constraints[0].mean == pytest.approx(1.0, abs=0.2)


def test_several_constraints_are_judged_each_and_together():
    limits = {"cost": 4.9, "cost_b": 8.0}
    result = report(make_model(cost_limit=limits), n_episodes=40)
    policy = result.policies[0]
    assert [one.name for one in policy.constraints] == ["cost", "cost_b"]
    assert [one.verdict for one in policy.constraints] == ["satisfied", "not satisfied"]
    assert result.verdict == "not satisfied"
    # All must be satisfied; to find one beyond its limit, the two share the probability of error
    costs = policy.costs[:, 0]
    assert policy.constraints[0].upper == pytest.approx(
        stats.ttest_1samp(costs, 0, alternative="less").confidence_interval(0.95).high
    )
    lower = stats.ttest_1samp(costs, 0, alternative="greater").confidence_interval(0.975).low
    assert policy.constraints[0].lower == pytest.approx(lower)
    assert (
        report(make_model(cost_limit=limits), cost_limit={"cost": 4.9, "cost_b": 10.0}, n_episodes=40).verdict == "satisfied"
    )


def test_limits_come_from_the_argument_the_model_or_the_environment():
    model = make_model(cost_limit=lambda progress: 1.0 + 2 * progress)
    assert report(model, n_episodes=2).policies[0].constraints[0].limit == 1.0  # where the schedule ends
    assert report(model, n_episodes=2, cost_limit=3.0).policies[0].constraints[0].limit == 3.0
    ppo = PPO("MlpPolicy", "SafePointGather-v0", n_steps=16, batch_size=16)
    result = safety_report(ppo, "SafePointGather-v0", 2, policies=["stochastic"])
    assert (result.policies[0].constraints[0].limit, len(result.policies)) == (0.1, 1)
    with pytest.raises(ValueError, match="no limit is known"):
        report(PPO("MlpPolicy", Coin(), n_steps=16, batch_size=16))
    assert report(TRPO("MlpPolicy", Coin(), n_steps=50, batch_size=50), cost_limit=1.0, n_episodes=2).cost_gamma == 1


def test_discounted_limits_are_on_discounted_costs():
    model = make_model(cost_limit={"cost_b": 9.0}, cost_gamma=0.5)
    result = report(model, n_episodes=2)
    # 2 (1 + 1/2 + 1/4 + 1/8 + 1/16)
    np.testing.assert_allclose(result.policies[0].costs, 3.875)
    assert "discounted by 0.5" in result.to_markdown()
    assert report(model, n_episodes=2, cost_limit={"cost_b": 9.0}).policies[0].constraints[0].mean == 10


# ---------------------------------------------------------------- verdicts


def test_inconclusive_says_how_many_episodes_would_decide():
    model = make_model()
    result = report(model, cost_limit=1.1)
    (one,) = result.policies[0].constraints
    assert result.verdict == "inconclusive"
    assert one.lower < 1.1 < one.upper
    assert f"inconclusive (about {one.n_more_episodes:,} more episodes needed)" in result.to_markdown()
    assert report(model, cost_limit=1.1, n_episodes=400, policies=["stochastic"]).verdict == "satisfied"


def test_equal_costs_of_random_episodes_prove_little():
    """Nobody has paid in 20 episodes; the limit of 0.01 may still be broken. Twenty equal episodes are another matter."""
    model = make_model(cost_limit=0.01)
    (one,) = report(model, Coin(probability=0.0), policies=["stochastic"]).policies[0].constraints
    assert (one.mean, one.t_upper, one.verdict) == (0.0, 0.0, "inconclusive")
    assert one.upper > 0.5
    assert "all cost the same" in one.method

    class Clockwork(Coin):
        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(1, dtype=np.float32), {}

        def step(self, action):
            _, *rest = super().step(action)
            return np.zeros(1, dtype=np.float32), *rest

    result = report(model, Clockwork(probability=0.0), policies=["deterministic"], n_episodes=3)
    assert result.verdict == "satisfied"
    assert "all episodes are the same" in result.to_markdown()


def test_wrong_bounds_and_arguments_are_explained():
    with pytest.raises(ValueError, match=r"do not lie in \[0, 0\.5\]"):
        report(max_episode_cost=0.5)
    with pytest.raises(ValueError, match=r"max_episode_cost names \['speed'\], but the constraints are \['cost'\]"):
        report(max_episode_cost={"speed": 3})
    with pytest.raises(ValueError, match="max_episode_cost has 2 entries for 1 constraints"):
        report(max_episode_cost=[3, 4])
    with pytest.raises(ValueError, match="n_episodes=1: a bound needs two"):
        report(n_episodes=1)
    with pytest.raises(ValueError, match="alpha must lie between"):
        report(alpha=5)
    with pytest.raises(ValueError, match="policies must be among"):
        report(policies=["greedy"])


# ---------------------------------------------------------------- episodes


@pytest.mark.parametrize(
    ("kwargs", "action_space"),
    [({}, None), ({"use_sde": True, "sde_sample_freq": 2}, None), ({}, spaces.Discrete(3))],
    ids=["Gaussian", "gSDE", "discrete"],
)
def test_seed_of_the_worst_episode_reproduces_it(kwargs, action_space):
    model = make_model(Coin(action_space=action_space), **kwargs)
    result = report(model, Coin(action_space=action_space))
    for policy in result.policies:
        (one,) = policy.constraints
        th.rand(7)
        env = Coin(action_space=action_space)
        again = replay_episode(model, env, one.worst_seed, policy.policy == "deterministic")
        index = int(np.flatnonzero(policy.seeds == one.worst_seed)[0])
        assert again.costs == policy.costs[index] == one.worst_cost
        assert (again.reward, again.length) == (policy.returns[index], policy.lengths[index])
    # The draws of the policy differ between episodes
    assert len(set(result.policies[0].returns)) > 5


def test_noise_of_gsde_is_drawn_for_each_episode():
    """One draw would be one policy of many: without resampling, equal observations have equal actions in all episodes."""
    model = make_model(use_sde=True)
    model.policy.predict = lambda obs, *_, **__: (model.policy.action_dist.exploration_mat.detach().numpy()[:1, :1], None)
    returns = report(model, n_episodes=5).policies[0].returns
    assert len(set(returns)) == 5


def test_seeds_are_apart_from_those_of_training():
    seeds = report(n_episodes=3).policies[0].seeds
    np.testing.assert_array_equal(seeds, [1_000_000, 1_000_001, 1_000_002])
    env = make_vec_env(Coin, n_envs=4)
    model = make_model(env, seed=999_998)
    assert min(report(model, n_episodes=3).policies[0].seeds) >= 1_000_002
    with pytest.raises(ValueError, match="among them those of training, 999998 to 1000001"):
        report(model, seed=1_000_001)
    high = make_model(seed=2**32 - 3)
    assert set(report(high, n_episodes=3, policies=["stochastic"]).policies[0].seeds) & {2**32 - 3} == set()


def test_random_numbers_of_the_caller_are_left_alone(monkeypatch):
    model = make_model()
    monkeypatch.setitem(gym.registry, "Coin-v0", gym.envs.registration.EnvSpec("Coin-v0", Coin))

    def draw():
        return random.random(), np.random.random(), float(th.rand(1))  # noqa: NPY002

    set_random_seed(1)
    expected = draw()
    set_random_seed(1)
    report(model, n_episodes=3)
    safety_report(model, "Coin-v0", 2)
    assert draw() == expected


def test_training_goes_on_as_if_there_had_been_no_report():
    parameters = []
    for has_report in (False, True):
        model = make_model().learn(100)
        if has_report:
            report(model, n_episodes=3)
        model.learn(100, reset_num_timesteps=False)
        parameters.append(th.nn.utils.parameters_to_vector(model.policy.parameters()))
    assert th.equal(*parameters)


@pytest.mark.parametrize(
    "wrap", [lambda env: env, lambda env: DummyVecEnv([lambda: env]), lambda env: VecNormalize(DummyVecEnv([lambda: env]))]
)
def test_the_training_environment_is_refused(wrap):
    env = wrap(Coin())
    model = make_model(env)
    n_resets = model.get_env().get_attr("n_resets")
    for one in (env, model.get_env()):
        with pytest.raises(ValueError, match="env is the environment in which the model trains"):
            report(model, one)
    assert model.get_env().get_attr("n_resets") == n_resets


def test_several_copies_are_refused():
    with pytest.raises(ValueError, match="env has 2 copies"):
        report(env=make_vec_env(Coin, n_envs=2))


def test_episodes_without_an_end_are_named(monkeypatch):
    monkeypatch.setattr(seeded_episodes, "MAX_STEPS", 50)
    with pytest.raises(ValueError, match="had not ended after 50 steps"):
        report(env=Coin(length=None))


# ---------------------------------------------------------------- VecNormalize


@pytest.fixture(scope="module")
def normalized(tmp_path_factory):
    """A model trained behind VecNormalize, whose statistics matter, and the file with them."""
    env = VecNormalize(make_vec_env(Coin, seed=3))
    model = make_model(env).learn(100)
    env.obs_rms.mean[:] = 5.0
    path = tmp_path_factory.mktemp("normalized")
    model.save(path / "model.zip")
    env.save(str(path / "vecnormalize.pkl"))
    return model, env, path


def test_statistics_of_training_are_used_frozen_with_raw_rewards(normalized):
    model, env, path = normalized
    count = env.obs_rms.count
    seen = []
    forward = model.policy.obs_to_tensor
    model.policy.obs_to_tensor = lambda obs: seen.append(obs) or forward(obs)
    ways = {"training": report(model, n_episodes=4)}
    del model.policy.obs_to_tensor
    assert np.max(seen) < -3  # (obs - 5) / std
    loaded = CPO.load(path / "model.zip")
    ways["path"] = report(loaded, n_episodes=4, vec_normalize_path=path / "vecnormalize.pkl")
    own = VecNormalize.load(str(path / "vecnormalize.pkl"), DummyVecEnv([Coin]))
    ways["own"] = report(loaded, own, n_episodes=4)
    assert own.training
    assert own.norm_reward
    ways["empty"] = report(model, VecNormalize(DummyVecEnv([Coin])), n_episodes=4)
    for result in ways.values():
        np.testing.assert_array_equal(result.policies[0].returns, ways["path"].policies[0].returns)
        np.testing.assert_array_equal(result.policies[0].costs, ways["path"].policies[0].costs)
    assert env.obs_rms.count == own.obs_rms.count == count
    # Rewards as the environment gives them
    assert abs(ways["path"].policies[0].returns).max() <= 5
    assert "statistics of VecNormalize" in ways["path"].hashes


def test_missing_statistics_are_an_error(normalized):
    _, _, path = normalized
    loaded = CPO.load(path / "model.zip")
    with pytest.raises(ValueError, match="was trained behind a VecNormalize: pass vec_normalize_path"):
        report(loaded)
    with pytest.raises(ValueError, match="has no statistics yet"):
        report(loaded, VecNormalize(DummyVecEnv([Coin])))


# ---------------------------------------------------------------- what training cost


def test_costs_of_training_come_from_the_log_the_model_or_the_monitor(tmp_path):
    env = make_vec_env(Coin, monitor_dir=str(tmp_path), seed=0)
    model = make_model(env, cost_limit={"cost": 0.1, "cost_b": 9.0})
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(150)
    safety = model.safety
    of_log = report(model, n_episodes=2, training_folder=tmp_path).training
    of_model = report(model, n_episodes=2).training
    for record in (of_log, of_model):
        np.testing.assert_allclose(record.cumulative_cost, safety.cumulative_cost)
        np.testing.assert_allclose(record.cost_regret, safety.cost_regret)
        np.testing.assert_allclose(record.violation_rate, safety.violation_rate)
        assert (record.n_steps, record.n_updates) == (150, 3)
    assert "progress.csv" in of_log.source
    text = report(model, n_episodes=2).to_markdown()
    assert f"| cumulative cost | {safety.cumulative_cost[0]:.4g} | 300 |" in text
    assert "| share of updates over the limit | 100.0% | 100.0% |" in text
    (tmp_path / "progress.csv").unlink()
    ppo = PPO("MlpPolicy", Coin(), n_steps=16, batch_size=16)
    of_monitor = report(ppo, n_episodes=2, cost_limit={"cost": 0.1, "cost_b": 9.0}, training_folder=tmp_path).training
    np.testing.assert_allclose(of_monitor.cumulative_cost, safety.cumulative_cost)
    assert of_monitor.cost_regret is None
    assert report(ppo, n_episodes=2, cost_limit=1.0).training is None


# ---------------------------------------------------------------- files


def test_files_hold_what_the_report_says(tmp_path):
    model = make_model(cost_limit={"cost": 4.9, "cost_b": 9.0})
    model.save(tmp_path / "model.zip")
    result = report(model, model_path=tmp_path / "model.zip", command="sb3-cpo report --algo cpo")
    assert result.save(tmp_path / "out") == tmp_path / "out"
    numbers = json.loads((tmp_path / "out/report.json").read_text(), parse_constant=pytest.fail)
    assert numbers["verdict"] == result.verdict
    entry = numbers["policies"]["stochastic"]
    assert entry["constraints"][0]["mean"] == result.policies[0].constraints[0].mean
    assert np.mean(entry["episodes"]["costs"], axis=0)[0] == pytest.approx(entry["constraints"][0]["mean"])
    digest = hashlib.sha256((tmp_path / "model.zip").read_bytes()).hexdigest()
    assert numbers["sha256"]["model file"] == digest
    text = (tmp_path / "out/report.md").read_text()
    assert all(part in text for part in (digest, "sb3-cpo report --algo cpo", "stable-baselines3 2", "costs.png", "CVaR 95"))
    assert text == str(result)
    figure = result.plot()
    labels = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in figure.axes]
    assert ["limit 4.9" in labels[0], "limit 9" in labels[1], len(labels)] == [True, True, 2]
    assert (tmp_path / "out/costs.png").stat().st_size > 10_000


def test_parameters_have_a_hash_where_there_is_no_file():
    model = make_model()
    first, again = (report(model, n_episodes=2).hashes for _ in range(2))
    assert first == again
    assert report(make_model(seed=1), n_episodes=2).hashes != first


def test_model_card_is_one_that_the_hub_reads(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("huggingface_sb3")
    model = CPO("MlpPolicy", "SafePointGather-v0", n_steps=15, batch_size=150)
    model.save(tmp_path / "model.zip")
    result = safety_report(model, "SafePointGather-v0", 3, model_path=tmp_path / "model.zip")
    result.save_model_card(tmp_path / "card", license="mit")
    card = hub.ModelCard.load(tmp_path / "card/README.md")
    assert (card.data.library_name, card.data.license) == ("stable-baselines3", "mit")
    results = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert f"{result.policies[0].constraints[0].mean:.4g} (at most" in results["mean_episode_cost"]
    assert "SafePointGather-v0" in card.data.tags
    assert "## Safety report: CPO on SafePointGather-v0" in card.text
    assert (tmp_path / "card/cpo-SafePointGather-v0.zip").read_bytes() == (tmp_path / "model.zip").read_bytes()
    assert 'CPO.load(load_from_hub("user/cpo-SafePointGather-v0", "cpo-SafePointGather-v0.zip"))' in card.text


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sb3_cpo.constraint_report", None)
    with pytest.raises(ImportError, match=r"safety_report needs packages.*pip install -e '\.\[report\]'"):
        report()
