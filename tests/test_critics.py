"""Fitting the critics: what is computed once for many minibatches changes nothing."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn
from toy_envs import RiskyEnv, vec_env

from sb3_cpo import CPO, TRPO, critics
from sb3_cpo.policies import CostActorCriticPolicy


class OwnValues(CostActorCriticPolicy):
    def predict_values(self, obs):
        return super().predict_values(obs) * 2


class LearnedExtractor(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.layer = nn.Linear(self.features_dim, self.features_dim)

    def forward(self, observations):
        return self.layer(super().forward(observations))


CASES = {
    "CPO": (CPO, "MlpPolicy", "box", {}, True),
    "several rollouts": (CPO, "MlpPolicy", "box", {"n_cost_rollouts": 2}, True),
    "extractors of their own": (CPO, "MlpPolicy", "box", {"policy_kwargs": {"share_features_extractor": False}}, True),
    "observations as they are": (CPO, "MlpPolicy", "box", {"policy_kwargs": {"normalize_observations": False}}, True),
    "no cost critic": (TRPO, "MlpPolicy", "box", {}, True),
    "learned features": (CPO, "MlpPolicy", "box", {"policy_kwargs": {"features_extractor_class": LearnedExtractor}}, False),
    "a policy of one's own": (CPO, OwnValues, "box", {}, False),
    "discrete observations": (CPO, "MlpPolicy", "discrete", {}, False),
    "images": (CPO, "MlpPolicy", "image", {}, False),
    "dictionaries": (CPO, "MultiInputPolicy", "dict", {}, False),
}


def trained(algorithm, policy, kind, kwargs, monkeypatch, is_computed_once):
    computed = []
    find = critics._critic_features

    def critic_features(*args):
        computed.append(find(*args))
        return computed[-1] if is_computed_once else None

    with monkeypatch.context() as patch:
        patch.setattr(critics, "_critic_features", critic_features)
        limit = () if algorithm is TRPO else (1.0,)
        model = algorithm(
            policy, RiskyEnv(kind), *limit, n_steps=16, batch_size=8, n_critic_updates=3, seed=0, device="cpu", **kwargs
        )
        model.learn(48)
    return model.get_parameters()["policy"], computed


@pytest.mark.filterwarnings("ignore:MlpPolicy")
@pytest.mark.parametrize("case", list(CASES))
def test_features_that_are_computed_once_train_the_same_critics(case, monkeypatch):
    *setting, is_known = CASES[case]
    once, features = trained(*setting, monkeypatch, is_computed_once=True)
    assert [feature is not None for feature in features] == [is_known] * 3
    each_time, _ = trained(*setting, monkeypatch, is_computed_once=False)
    for name, value in once.items():
        np.testing.assert_allclose(value, each_time[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_replaced_method_is_called():
    model = CPO("MlpPolicy", RiskyEnv(), 1.0, n_steps=40, batch_size=8, device="cpu")
    calls, predict_values = [], model.policy.predict_values
    model.policy.predict_values = lambda obs: calls.append(len(obs)) or predict_values(obs)
    model.learn(40)
    assert calls.count(8) == 50
    assert critics._critic_features(model.policy, th.zeros(2, 3)) is None


def test_the_unit_of_the_reward_does_not_matter_whatever_the_optimizer():
    """Adam would forgive a loss in other units; gradient descent does not."""
    kwargs = {"n_steps": 16, "batch_size": 8, "n_critic_updates": 3, "seed": 0, "device": "cpu"}
    kwargs["policy_kwargs"] = {"optimizer_class": th.optim.SGD}
    observations, values = th.linspace(-1, 1, 12).reshape(4, 3), []
    for unit in (1.0, 1000.0):
        env = gym.wrappers.TransformReward(RiskyEnv(), lambda reward, unit=unit: unit * reward)
        model = CPO("MlpPolicy", env, 1.0, learning_rate=0.01, **kwargs)
        nn.init.zeros_(model.policy.value_net.weight)  # the first values are in no unit
        model.learn(48)
        values.append(model.policy.predict_values(observations).detach().numpy() / unit)
    assert np.std(values[0]) > 0.01
    np.testing.assert_allclose(values[1], values[0], rtol=1e-3)


class NoisyExtractor(LearnedExtractor):
    """Acts in another way while it is trained: dropout, and statistics of batches."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.layers = nn.Sequential(self.layer, nn.BatchNorm1d(self.features_dim, affine=False), nn.Dropout(0.3))
        self.modes = set()

    def forward(self, observations):
        if len(observations) == 48:
            self.modes.add(self.training)
        return self.layers(3 + FlattenExtractor.forward(self, observations))


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("algorithm", [CPO, TRPO])
def test_the_policy_that_acts_is_the_one_that_the_trust_region_holds(algorithm, is_shared):
    kwargs = {"features_extractor_class": NoisyExtractor, "share_features_extractor": is_shared, "net_arch": [16]}
    limit = () if algorithm is TRPO else (-3.0,)
    settings = {"n_steps": 48, "batch_size": 16, "n_critic_updates": 5, "seed": 0, "device": "cpu"}
    model = algorithm("MlpPolicy", RiskyEnv(), *limit, **settings, policy_kwargs={**kwargs, "normalize_observations": False})
    # From the beginning, its actions depend on the features
    model.policy.action_net.weight.data *= 100
    obs = th.as_tensor(np.random.default_rng(0).uniform(-3, 3, (300, 3)), dtype=th.float32)
    update, distances = model.train, []

    def acts_like():
        model.policy.set_training_mode(False)
        with th.no_grad():
            return copy.deepcopy(model.policy.get_distribution(obs).distribution)

    def train():
        before = acts_like()
        update()
        distances.append(th.distributions.kl_divergence(before, acts_like()).sum(dim=1).mean().item())

    model.train = train
    model.learn(3 * 48)
    # Other observations than those of the rollout, which are few
    assert max(distances) < 2 * model.target_kl
    assert np.mean(distances) > 0.1 * model.target_kl
    if not is_shared:
        # Only the critics' own extractors are in training mode, and only while they are fitted
        assert model.policy.pi_features_extractor.modes == {False}
        assert model.policy.vf_features_extractor.layers[1].num_batches_tracked > 0


def test_rewards_in_a_small_unit_teach_the_same():
    """A power of two: rounding is the same."""
    params = []
    for unit in (1.0, 2.0**-17):

        class Scaled(gym.RewardWrapper):
            def reward(self, reward, unit=unit):
                return unit * reward

        env = vec_env(lambda rank, Scaled=Scaled: Scaled(RiskyEnv()), 4)
        model = CPO("MlpPolicy", env, 2.0, n_steps=32, batch_size=np.int64(32), device="cpu", seed=0).learn(4 * 128)
        params.append(th.cat([param.flatten() for param in model.policy.mlp_extractor.policy_net.parameters()]))
    th.testing.assert_close(params[1], params[0], rtol=1e-3, atol=1e-4)
