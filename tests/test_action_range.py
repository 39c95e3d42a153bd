"""Policies that know the range of the actions: how they begin, and that the unit of an action does not matter."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TransformAction
from stable_baselines3 import PPO
from toy_envs import RiskyEnv, ScriptedEnv, vec_env

from sb3_cpo import CPO, PDO
from sb3_cpo.policies import MlpPolicy

KWARGS = {"n_steps": 32, "batch_size": 16, "n_critic_updates": 2, "seed": 0, "device": "cpu"}
OBSERVATION = np.array([[0.3, -1.0, 2.0]], dtype=np.float32)


def make_policy(action_space: spaces.Box, **kwargs) -> MlpPolicy:
    return MlpPolicy(spaces.Box(-1, 1, (3,)), action_space, lambda _: 1e-3, **kwargs)


def first_actions(policy: MlpPolicy) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, with the means' weights at zero."""
    with th.no_grad():
        policy.action_net.weight.zero_()
        normal = policy.get_distribution(th.as_tensor(OBSERVATION)).distribution
    return normal.mean.numpy()[0], normal.stddev.detach().numpy()[0]


def test_actions_begin_at_the_centre_of_their_range_with_a_part_of_it_as_standard_deviation():
    low, high = np.array([-1, 0, -0.4, -300], dtype=np.float32), np.array([1, 1, 0.4, 100], dtype=np.float32)
    mean, std = first_actions(make_policy(spaces.Box(low, high)))
    np.testing.assert_allclose(mean, [0, 0.5, 0, -100], atol=1e-6)
    # Four dimensions: together a variance of 1.5 half ranges
    np.testing.assert_allclose(std / np.array([1, 0.5, 0.4, 200]), np.sqrt(1.5 / 4), rtol=1e-6)


@pytest.mark.parametrize(("n_dimensions", "share"), [(1, 0.7071068), (3, 0.7071068), (4, 0.6123724), (6, 0.5), (17, 0.5)])
def test_the_more_dimensions_an_action_has_the_less_each_is_explored(n_dimensions, share):
    _, std = first_actions(make_policy(spaces.Box(-2, 4, (n_dimensions,))))
    np.testing.assert_allclose(std, share * 3, rtol=1e-6)


@pytest.mark.parametrize("bound", [np.inf, np.finfo(np.float32).max, 1e30, 1e19])
def test_actions_without_a_range_begin_as_in_sb3(bound):
    low, high = np.array([-bound, 0, -1], dtype=np.float32), np.array([bound, bound, 1], dtype=np.float32)
    mean, std = first_actions(make_policy(spaces.Box(low, high)))
    np.testing.assert_allclose(mean, 0.0)
    np.testing.assert_allclose(std, [1.0, 1.0, np.sqrt(0.5)], rtol=1e-6)


@pytest.mark.parametrize("bound", [1e30, 1e19, 1e14, 1e-14, 1e-25])
def test_bounds_of_any_size_can_be_learned_with(bound):
    """Their squares, in the logarithm of a probability, may be too large or too small for single precision."""
    env = vec_env(lambda rank: ScriptedEnv(rank, action_space=spaces.Box(-bound, bound, (2,))))
    model = CPO("MlpPolicy", env, 1e6, **KWARGS).learn(64)
    assert all(bool(th.isfinite(param).all()) for param in model.policy.parameters())


def test_a_standard_deviation_that_is_given_is_in_the_unit_of_the_actions():
    policy = make_policy(spaces.Box(-10, 30, (2,)), log_std_init=-1.0)
    mean, std = first_actions(policy)
    np.testing.assert_allclose(mean, 0.0)
    np.testing.assert_allclose(std, np.exp(-1.0), rtol=1e-6)
    assert type(policy.action_net) is th.nn.Linear


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)])
def test_other_actions_have_no_range(space):
    env = vec_env(lambda rank: ScriptedEnv(rank, action_space=space))
    CPO("MlpPolicy", env, 1e6, **KWARGS).learn(64)


class Effort(RiskyEnv):
    """The reward is nearest to 0 for one action in each state, so that means are learned."""

    def __init__(self):
        super().__init__()
        self.action_space = spaces.Box(-1, 1, (2,))

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, -float(np.square(action - 0.5).sum()), terminated, truncated, {**info, "cost": float(action[0] > 0.2)}


class InUnits(TransformAction):
    """The same problem; an action is ``centre + unit * (the action of the problem)``."""

    def __init__(self, env: gym.Env, unit: float, centre: float):
        space = spaces.Box(centre - unit, centre + unit, (2,), dtype=np.float64)
        super().__init__(env, lambda action: (np.asarray(action, dtype=np.float64) - centre) / unit, space)


@pytest.mark.parametrize(("unit", "centre"), [(1e-3, 0.0), (64.0, 0.0), (0.5, 0.5)])
def test_the_unit_of_an_action_does_not_matter(unit, centre):
    def train(env):
        return CPO("MlpPolicy", vec_env(lambda rank: env, n_envs=1), 3.0, **KWARGS).learn(6 * 32)

    plain, scaled = train(Effort()), train(InUnits(Effort(), unit, centre))
    obs = plain.observation_space.sample()
    expected, _ = plain.predict(obs, deterministic=True)
    found, _ = scaled.predict(obs, deterministic=True)
    assert abs(expected).max() > 0.02  # something was learned
    np.testing.assert_allclose((found - centre) / unit, expected, rtol=1e-2, atol=1e-3)
    std = scaled.policy.log_std.exp().detach().numpy() / unit
    np.testing.assert_allclose(std, plain.policy.log_std.exp().detach().numpy(), rtol=1e-2)


@pytest.mark.parametrize("algorithm", [CPO, PDO])
def test_a_saved_model_keeps_its_range(algorithm, tmp_path):
    model = algorithm("MlpPolicy", InUnits(Effort(), 5.0, 2.0), 3.0, **KWARGS).learn(64)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    obs = model.observation_space.sample()
    expected, _ = model.predict(obs, deterministic=True)
    assert np.abs(expected - 2.0).max() < 1.0  # near the centre, and neither at 0 nor at a bound
    for loaded in (algorithm.load(tmp_path / "model", device="cpu"), MlpPolicy.load(tmp_path / "policy", device="cpu")):
        np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)


def test_parameters_of_ppo_act_as_they_did_there(tmp_path):
    env = InUnits(Effort(), 5.0, 2.0)
    ppo = PPO("MlpPolicy", env, n_steps=32, batch_size=16, seed=3, device="cpu").learn(64)
    ppo.save(tmp_path / "ppo")
    model = CPO("MlpPolicy", env, 3.0, **KWARGS)
    model.set_parameters(tmp_path / "ppo", exact_match=False)
    obs = th.as_tensor(model.observation_space.sample()[None])
    before, after = (policy.get_distribution(obs).distribution for policy in (ppo.policy, model.policy))
    th.testing.assert_close(after.mean, before.mean)
    th.testing.assert_close(after.stddev, before.stddev)


def test_a_model_that_was_saved_without_a_range_acts_as_it_did():
    policy = make_policy(spaces.Box(-10, 30, (2,)))
    older = {name: value for name, value in policy.state_dict().items() if "centre" not in name and "half_range" not in name}
    policy.load_state_dict(older)
    mean, _ = first_actions(policy)
    np.testing.assert_allclose(mean, 0.0)
