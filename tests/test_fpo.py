import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from toy_envs import ScriptedEnv, scripted_cost, scripted_steps, vec_env

from sb3_cpo import FPO, TRPO

KWARGS = {"n_steps": 8, "batch_size": 4, "device": "cpu", "seed": 0, "policy_kwargs": {"net_arch": [8]}}


class Buffer(BaseCallback):
    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        self.rewards, self.values, self.advantages = buffer.rewards.copy(), buffer.values.copy(), buffer.advantages.copy()
        self.last_value = self.model.policy.predict_values(th.as_tensor(self.model._last_obs)).item()


def test_reward_is_combined_before_the_advantages_are_estimated():
    gamma, gae_lambda = 0.9, 0.5
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(3, 2), n_costs=2))
    kept = Buffer()
    model = FPO("MlpPolicy", env, [5.0, 5.0], penalty_coef=[2.0, 0.5], gamma=gamma, gae_lambda=gae_lambda, **KWARGS)

    # What the critic thinks of the observation at the time limits
    def value_of(steps, episode):
        return model.policy.predict_values(th.tensor([[steps, episode, 0.0]])).item()

    _, ends, limits = scripted_steps((3, 2), 8)
    bootstraps = [gamma * value_of(3, 2 * index) for index in range(2)]
    model.learn(8, callback=kept)

    costs = np.array([scripted_cost(0, t) for t in range(8)])
    rewards = np.arange(1, 9) % 7 - 2.0 * costs - 0.5 * 2 * costs
    rewards[limits] += bootstraps
    np.testing.assert_allclose(kept.rewards[:, 0], rewards, rtol=1e-5)
    expected, later = np.zeros(8), 0.0
    next_values = np.append(kept.values[1:, 0], kept.last_value)
    for t in reversed(range(8)):
        alive = not ends[t]
        later = rewards[t] + gamma * alive * next_values[t] - kept.values[t, 0] + gamma * gae_lambda * alive * later
        expected[t] = later
    np.testing.assert_allclose(kept.advantages[:, 0], expected, rtol=1e-4)


def test_one_penalty_is_meant_for_every_constraint():
    env = vec_env(lambda rank: ScriptedEnv(rank, n_costs=3))
    model = FPO("MlpPolicy", env, [1.0, 2, 3], penalty_coef=5.0, **KWARGS)
    assert model.penalty.tolist() == [5, 5, 5]
    assert model.learn(16).penalty.tolist() == [5, 5, 5]


def test_without_penalty_it_is_trpo():
    models = [
        algorithm("MlpPolicy", vec_env(lambda rank: ScriptedEnv(rank), 2), cost_limit=5.0, **KWARGS, **kwargs).learn(32)
        for algorithm, kwargs in ((FPO, {"penalty_coef": 0.0}), (TRPO, {}))
    ]
    for mine, theirs in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.equal(mine, theirs)


def test_loading_restores_the_penalty_or_takes_another(tmp_path):
    def make_env():
        return vec_env(lambda rank: ScriptedEnv(rank))

    FPO("MlpPolicy", make_env(), 5.0, penalty_coef=7.0, **KWARGS).learn(8).save(tmp_path / "fpo")
    assert FPO.load(tmp_path / "fpo", env=make_env()).penalty.tolist() == [7]
    assert FPO.load(tmp_path / "fpo", env=make_env(), penalty_coef=9.0).penalty.tolist() == [9]
