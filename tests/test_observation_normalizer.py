"""Running statistics of observations inside the policy."""

import copy
import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize
from toy_envs import RiskyEnv, vec_env

from sb3_cpo import CPO, TRPO
from sb3_cpo.observation_normalizer import ObservationNormalizer, RunningMoments, normalized_keys
from sb3_cpo.trust_region_algorithm import mean_kl_divergence

KWARGS = {"n_steps": 16, "batch_size": 16, "device": "cpu", "seed": 0, "policy_kwargs": {"net_arch": [8]}}


@pytest.mark.parametrize(("shift", "scale"), [(0, 1), (1e4, 1), (-3, 1e-3), (1e3, 1e5)])
def test_moments_of_batches_are_those_of_all_observations(shift, scale):
    batches = [np.random.default_rng(seed).normal(shift + seed * scale, scale, size=(100 + seed, 3)) for seed in range(6)]
    moments = RunningMoments((3,))
    for batch in batches:
        moments.update(batch)
    every = np.concatenate(batches)
    np.testing.assert_allclose(moments.mean.numpy(), every.mean(axis=0), rtol=1e-5, atol=1e-3 * scale)
    np.testing.assert_allclose(moments.variance.numpy(), every.var(axis=0), rtol=2e-3)
    assert moments.count == len(every)


def test_as_they_are_before_the_first_update_then_standardised_and_clipped():
    moments = RunningMoments((2,))
    obs = th.tensor([[100.0, 5.0]])
    assert th.equal(moments(obs), obs)
    moments.update(np.array([[0.0, 5.0], [2.0, 5.0]]))
    # The second never changes: it is 0, and stays finite
    th.testing.assert_close(moments(th.tensor([[3.0, 5.0], [1e9, 5.0]])), th.tensor([[2.0, 0.0], [10.0, 0.0]]))


def test_only_vectors_of_numbers_are_standardised():
    image = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    assert normalized_keys(spaces.Box(-1, 1, (3,))) == [None]
    assert normalized_keys(image) == normalized_keys(spaces.Discrete(3)) == []
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "image": image, "room": spaces.Discrete(3)})
    assert normalized_keys(space) == ["a"]
    normalizer = ObservationNormalizer(space)
    normalizer.update({"a": np.array([[1.0, 2.0], [3.0, 6.0]]), "image": None, "room": None})
    out = normalizer({"a": th.tensor([[3.0, 6.0]]), "image": "image", "room": "room"})
    assert out["image"] == "image"
    th.testing.assert_close(out["a"], th.tensor([[1.0, 1.0]]))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("use_sde", [True, False])
def test_actor_and_both_critics_see_the_same_inputs(share, use_sde):
    """A policy with statistics equals one without on observations standardised by hand."""
    kwargs = {**KWARGS, "use_sde": use_sde, "policy_kwargs": {"net_arch": [8], "share_features_extractor": share}}
    model = CPO("MlpPolicy", vec_env(lambda rank: RiskyEnv(), 2), 1.0, **kwargs).learn(64)
    moments = model.policy.observation_normalizer.moments[0]
    assert moments.count == 64
    plain = CPO(
        "MlpPolicy",
        vec_env(lambda rank: RiskyEnv(), 2),
        1.0,
        **{**kwargs, "policy_kwargs": {**kwargs["policy_kwargs"], "normalize_observations": False}},
    )
    state = {key: value for key, value in model.policy.state_dict().items() if "normalizer" not in key}
    plain.policy.load_state_dict(state)
    obs = th.randn(5, 3) * 2
    by_hand = ((obs - moments.mean) / (moments.variance + 1e-8).sqrt()).clamp(-10, 10)
    for mine, theirs in zip(model.policy(obs, deterministic=True), plain.policy(by_hand, deterministic=True), strict=True):
        th.testing.assert_close(mine, theirs)
    th.testing.assert_close(model.policy.predict_values(obs), plain.policy.predict_values(by_hand))
    th.testing.assert_close(model.policy.predict_cost_values(obs), plain.policy.predict_cost_values(by_hand))
    actions = model.policy.get_distribution(obs).mode()
    th.testing.assert_close(actions, plain.policy.get_distribution(by_hand).mode())
    values, log_prob, _ = model.policy.evaluate_actions(obs, actions)
    th.testing.assert_close((values, log_prob), plain.policy.evaluate_actions(by_hand, actions)[:2])
    np.testing.assert_allclose(
        model.predict(obs.numpy(), deterministic=True)[0], plain.predict(by_hand.numpy(), deterministic=True)[0], rtol=1e-5
    )


def test_statistics_rest_during_a_rollout_and_count_every_observation_once():
    counts = []
    model = CPO("MlpPolicy", vec_env(lambda rank: RiskyEnv(), 2), 1.0, **KWARGS)
    collect = model.collect_rollouts

    def spy(*args, **kwargs):
        before = model.policy.observation_normalizer.moments[0].count.item()
        result = collect(*args, **kwargs)
        counts.append((before, model.policy.observation_normalizer.moments[0].count.item()))
        return result

    model.collect_rollouts = spy
    model.learn(32 * 3)
    assert counts == [(0, 0), (32, 32), (64, 64)]


class WideEnv(RiskyEnv):
    """Observations far from standardised: taking their statistics in is a large change of the policy."""

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        return 20 * obs + 5, info

    def step(self, action):
        obs, *rest = super().step(action)
        return (20 * obs + 5, *rest)


@pytest.mark.parametrize("algorithm", [CPO, TRPO])
def test_the_trust_region_sees_what_the_first_statistics_change(algorithm):
    """Between the policies of the first and the second rollout, with equal statistics, lies no more than target_kl."""
    limit = {"cost_limit": 1.0} if algorithm is CPO else {}
    model = algorithm("MlpPolicy", vec_env(lambda rank: WideEnv(), 2), target_kl=0.01, **limit, **KWARGS)
    train = model.train
    policies = []

    def spy():
        policies.append(copy.deepcopy(model.policy))
        train()
        policies.append(copy.deepcopy(model.policy))

    model.train = spy
    model.learn(32)
    before, after = policies
    obs = th.as_tensor(model.rollout_buffer.flat_observations())
    before.update_observation_statistics(obs.numpy())
    assert not before.lacks_observation_statistics
    for key, value in before.observation_normalizer.state_dict().items():
        th.testing.assert_close(after.observation_normalizer.state_dict()[key], value)
    with th.no_grad():
        kl_div = mean_kl_divergence(copy.copy(before.get_distribution(obs)), after.get_distribution(obs))
    assert 0.001 < kl_div <= 0.01001


def test_saved_copied_and_loaded_models_act_the_same(tmp_path):
    model = CPO("MlpPolicy", vec_env(lambda rank: RiskyEnv(), 2), 1.0, **KWARGS).learn(64)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy.pt")
    obs = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    expected = model.predict(obs, deterministic=True)[0]
    others = [
        CPO.load(tmp_path / "model", device="cpu"),
        copy.deepcopy(model),
        type(model.policy).load(tmp_path / "policy.pt", device="cpu"),
    ]
    for other in others:
        np.testing.assert_array_equal(other.predict(obs, deterministic=True)[0], expected)
    # A copy has statistics of its own
    others[1].policy.update_observation_statistics(np.ones((1000, 3)))
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], expected)


def test_vec_normalize_does_it_alone_also_after_loading(tmp_path):
    env = VecNormalize(vec_env(lambda rank: RiskyEnv(), 2))
    model = CPO("MlpPolicy", env, 1.0, **KWARGS).learn(32)
    assert not model.policy.normalize_observations
    model.save(tmp_path / "model")
    assert not CPO.load(tmp_path / "model").policy.normalize_observations
    assert CPO(
        "MlpPolicy", VecNormalize(vec_env(lambda rank: RiskyEnv(), 2), norm_obs=False), 1.0, **KWARGS
    ).policy.normalize_observations


@pytest.mark.parametrize(("norm_obs", "n_warnings"), [(True, 1), (False, 0)])
def test_loading_with_a_vec_normalize_that_was_not_there_in_training_is_warned_of(norm_obs, n_warnings, tmp_path):
    CPO("MlpPolicy", vec_env(lambda rank: RiskyEnv(), 2), 1.0, **KWARGS).save(tmp_path / "model")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CPO.load(tmp_path / "model", env=VecNormalize(vec_env(lambda rank: RiskyEnv(), 2), norm_obs=norm_obs))
    assert sum("standardised twice" in str(warning.message) for warning in caught) == n_warnings


def test_a_policy_of_ppo_as_a_warm_start_keeps_its_actions():
    env = vec_env(lambda rank: RiskyEnv(), 2)
    ppo = PPO("MlpPolicy", env, **KWARGS)
    model = TRPO("MlpPolicy", env, **KWARGS)
    model.set_parameters(ppo.get_parameters(), exact_match=False)
    obs = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], ppo.predict(obs, deterministic=True)[0])
    model.learn(32)
    # It was trained on observations as they are, and stays on them
    assert model.policy.observation_normalizer.moments[0].count == 0


@pytest.mark.parametrize(
    ("net_arch", "use_sde"), [([8], False), ([], False), ({"pi": [], "vf": [8], "cvf": [4]}, False), ([8], True)]
)
def test_later_statistics_change_no_action_and_no_value(net_arch, use_sde):
    kwargs = {**KWARGS, "policy_kwargs": {"net_arch": net_arch}, "use_sde": use_sde}
    model = CPO("MlpPolicy", vec_env(lambda rank: RiskyEnv(), 2), 1.0, **kwargs).learn(64)
    obs, rng = th.randn(50, 3), np.random.default_rng(0)

    def outputs():
        with th.no_grad():
            distribution = model.policy.get_distribution(obs).distribution
            return (
                distribution.mean,
                distribution.stddev,
                model.policy.predict_values(obs),
                model.policy.predict_cost_values(obs),
            )

    before = [value.clone() for value in outputs()]
    first = model.policy.observation_normalizer.state_dict()["moments.0.mean"].clone()
    model.policy.update_observation_statistics(rng.normal([2, -1, 0], [3, 0.1, 1], (500, 3)))
    assert (model.policy.observation_normalizer.moments[0].mean - first).abs().max() > 0.5
    for mine, theirs in zip(outputs(), before, strict=True):
        th.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_an_observation_that_begins_to_vary_is_no_surprise():
    """It was clipped so far: weights made for it would saturate the network."""
    policy = CPO("MlpPolicy", vec_env(lambda rank: RiskyEnv(), 2), 1.0, **KWARGS).policy
    policy.update_observation_statistics(np.tile([0.0, 0.0, 1.0], (100, 1)) + [[0.1], [-0.1]] * 50 * np.array([1, 1, 0]))
    weights = [layer.weight.clone() for layer in policy._first_layers()]
    assert len(weights) == 3
    policy.update_observation_statistics(np.random.default_rng(0).normal(size=(100, 3)))
    for layer, old in zip(policy._first_layers(), weights, strict=True):
        assert layer.weight.abs().max() < 20 * old.abs().max()
        assert th.equal(layer.weight[:, 2], old[:, 2])
