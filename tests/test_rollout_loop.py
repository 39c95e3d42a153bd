"""Our rollout loop gives the rollouts of SB3's, bit for bit but for the rounding of values that are predicted together."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize
from toy_envs import RiskyEnv, ScriptedEnv, vec_env

from safe_envs import BatchVecEnv
from sb3_cpo import CPO, make_vec_env, rollout_loop
from sb3_cpo.policies import CostActorCriticPolicy

NAMES = ("observations", "actions", "rewards", "values", "log_probs", "advantages", "returns", "episode_starts", "costs")


class DoubledCost(VecEnvWrapper):
    """A user's wrapper that changes infos, terminal observations and rewards."""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        obs, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            info["cost"] *= 2
            if "terminal_observation" in info:
                info["terminal_observation"] = info["terminal_observation"] + 1
        return obs, rewards.astype(np.float64) / 3, dones, infos


class SameArrayEnv(ScriptedEnv):
    """Returns one array that it fills anew at every step."""

    def _obs(self):
        if not hasattr(self, "array"):
            self.array = np.zeros(3)
        self.array[:] = super()._obs()
        return self.array


def scripted(n_envs=3):
    return vec_env(lambda rank: SameArrayEnv(rank, lengths=(3, 5, 4)), n_envs)


def circles():
    # Horizons are drawn: episodes end at all times
    return make_vec_env("SafePointCircle-v0", n_envs=5, vec_env_cls=BatchVecEnv, seed=0)


ENVS = {
    "toy": (scripted, 20),
    "Point-Circle": (circles, 100),
    "VecNormalize": (lambda: VecNormalize(scripted()), 20),
    "VecMonitor": (lambda: VecMonitor(scripted()), 20),
    "VecFrameStack": (lambda: VecFrameStack(circles(), 2), 100),
    "a user's": (lambda: DoubledCost(scripted()), 20),
}


class Record(BaseCallback):
    """What a user's callback can see of each step."""

    def __init__(self):
        super().__init__()
        self.rows, self.names, self.buffers = [], [], []

    def _on_step(self):
        self.names.append(set(self.locals))
        names = ("actions", "rewards", "dones", "values", "log_probs", "new_obs")
        self.rows.append([np.array(self.locals[name].tolist()) for name in names])
        assert self.locals["self"] is self.model
        return True

    def _on_rollout_end(self):
        self.buffers.append({name: getattr(self.model.rollout_buffer, name).copy() for name in NAMES})


def recorded(make_env, n_steps, **kwargs):
    env, record = make_env(), Record()
    model = CPO("MlpPolicy", env, 10.0, n_steps=n_steps, batch_size=20, seed=1, device="cpu", **kwargs)
    # An opinion, for something to be bootstrapped from
    th.nn.init.constant_(model.policy.value_net.weight, 0.1)
    model.learn(2 * n_steps * env.num_envs, callback=record)
    return record


@pytest.mark.filterwarnings("ignore:only .* episodes ended")
@pytest.mark.parametrize("name", list(ENVS))
def test_rollouts_are_those_of_sb3_s_loop(name, monkeypatch):
    assert rollout_loop.is_supported(CPO("MlpPolicy", ENVS[name][0](), 10.0))
    # An update would make more of the rounding
    monkeypatch.setattr(CPO, "train", lambda model: None)
    own = recorded(*ENVS[name])
    monkeypatch.setattr(rollout_loop, "is_supported", lambda model: False)
    monkeypatch.setattr(CostActorCriticPolicy, "forward", ActorCriticPolicy.forward)
    sb3 = recorded(*ENVS[name])
    assert len(own.buffers) == len(sb3.buffers) == 2
    # To the bit, but for what is bootstrapped
    for mine, theirs in zip(own.buffers, sb3.buffers, strict=True):
        for name in ("observations", "actions", "values", "log_probs", "episode_starts", "costs"):
            np.testing.assert_array_equal(mine[name], theirs[name])
        for name in NAMES:
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-6, atol=1e-6, err_msg=name)
    assert (own.buffers[0]["rewards"] != np.round(own.buffers[0]["rewards"], 3)).any(), "nothing was bootstrapped"
    # Callbacks find what they find in SB3's loop
    assert sb3.names[0] <= own.names[0]
    for ours, theirs in zip(own.rows, sb3.rows, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


class OwnValues(CostActorCriticPolicy):
    def predict_values(self, obs):
        return super().predict_values(obs) * 2


class OwnExtractor(CostActorCriticPolicy):
    def extract_features(self, obs, features_extractor=None):
        return super().extract_features(obs, features_extractor)


@pytest.mark.parametrize(
    ("policy", "env", "kwargs", "fits"),
    [
        ("MlpPolicy", RiskyEnv(), {}, True),
        (OwnExtractor, RiskyEnv(), {}, True),
        (OwnValues, RiskyEnv(), {}, False),
        ("MlpPolicy", RiskyEnv(), {"use_sde": True}, False),
        ("MlpPolicy", RiskyEnv(action_space=spaces.Discrete(2)), {}, False),
        ("MlpPolicy", RiskyEnv("discrete"), {}, False),
        ("MultiInputPolicy", RiskyEnv("dict"), {}, False),
        ("CnnPolicy", RiskyEnv("image"), {}, False),
    ],
)
def test_what_is_not_known_to_be_equal_goes_through_sb3_s_loop(policy, env, kwargs, fits, monkeypatch):
    model = CPO(policy, env, 1.0, n_steps=8, batch_size=4, device="cpu", **kwargs)
    assert rollout_loop.is_supported(model) is fits
    if fits:
        # Replaced in this object only, as a user may do who tries something
        model.policy.predict_values = lambda obs: th.zeros(len(obs), 1)
        assert not rollout_loop.is_supported(model)


class WideGaussian(CostActorCriticPolicy):
    """A user's distribution."""

    def _get_action_dist_from_latent(self, latent_pi):
        return self.action_dist.proba_distribution(self.action_net(latent_pi), self.log_std + 1)


@pytest.mark.parametrize(
    ("policy", "kwargs"),
    [("MlpPolicy", {}), ("MlpPolicy", {"policy_kwargs": {"share_features_extractor": False}}), (WideGaussian, {})],
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_forward_is_that_of_sb3_bit_for_bit(policy, kwargs, deterministic):
    model = CPO(policy, RiskyEnv(), 1.0, n_steps=8, batch_size=4, seed=0, device="cpu", **kwargs)
    obs = th.randn(50, 3)
    th.manual_seed(0)
    own = model.policy(obs, deterministic)
    state = th.get_rng_state()
    th.manual_seed(0)
    for ours, theirs in zip(own, ActorCriticPolicy.forward(model.policy, obs, deterministic), strict=True):
        np.testing.assert_array_equal(ours.detach(), theirs.detach())
    assert th.equal(state, th.get_rng_state())


@pytest.mark.parametrize("is_checked", [True, False])
def test_a_policy_that_has_become_nan_is_an_error_of_the_policy_and_not_of_the_environment(is_checked, monkeypatch):
    # For all of the process, as some packages do
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", is_checked)
    model = CPO("MlpPolicy", RiskyEnv(), 1.0, n_steps=8, batch_size=4, device="cpu")
    model.policy.action_net.weight.data[:] = np.nan
    with pytest.raises(ValueError, match="parameter loc"):
        model.learn(8)
