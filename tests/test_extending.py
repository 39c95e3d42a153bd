"""The examples of docs/extending.md."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th
from scipy import stats
from toy_envs import KnapsackEnv, RiskyEnv, ScriptedEnv, vec_env

from sb3_cpo import CPO, make_vec_env
from sb3_cpo.cost_surrogates import cost_batch
from sb3_cpo.dual import Dual
from sb3_cpo.trust_region_algorithm import TrustRegionAlgorithm

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
sys.path.insert(0, str(EXAMPLES))
from ppo_lagrangian import PPOLagrangian  # noqa: E402
from upper_bound import upper_bound  # noqa: E402

KWARGS = {"device": "cpu", "seed": 0, "policy_kwargs": {"net_arch": [16]}}


def test_ppo_lagrangian_is_an_algorithm_of_one_file(tmp_path):
    """On the knapsack, whose optimum is known."""
    assert len((EXAMPLES / "ppo_lagrangian.py").read_text().splitlines()) <= 100
    env = make_vec_env(KnapsackEnv, n_envs=20, seed=0)
    model = PPOLagrangian(
        "MlpPolicy", env, KnapsackEnv.cost_limit, n_steps=50, batch_size=100, learning_rate=1e-3, penalty_lr=0.05, **KWARGS
    ).learn(1000 * 30)
    assert model.ep_cost_mean < 1.1 * KnapsackEnv.cost_limit
    assert model.ep_rew_mean > 0.7 * KnapsackEnv.optimal_return
    model.save(tmp_path / "model")
    loaded = PPOLagrangian.load(tmp_path / "model", env=env)
    assert loaded.penalty == model.penalty
    loaded.learn(1000, reset_num_timesteps=False)


def test_ppo_lagrangian_with_two_limits_on_continuous_actions():
    env = vec_env(lambda rank: RiskyEnv(n_costs=2), 4)
    model = PPOLagrangian("MlpPolicy", env, [1.0, 100.0], n_steps=32, batch_size=32, **KWARGS).learn(128 * 3)
    assert model.penalty[0] > 0
    assert model.penalty[1] == 0


def test_an_upper_bound_is_what_is_constrained():
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,), cost=lambda rank, t: float(t % 4)), 1)
    model = CPO("MlpPolicy", env, 5.0, n_steps=16, batch_size=16, cost_estimator=upper_bound, n_noise_draws=0, **KWARGS)
    model.learn(16)
    episodes = np.array([1.0, 5.0] * 4)
    expected = 3 + stats.t.ppf(0.95, 7) * episodes.std(ddof=1) / np.sqrt(8)
    np.testing.assert_allclose(model.ep_cost_mean, expected)
    np.testing.assert_allclose(model.logger.name_to_value["train/violation"], expected - 5)


def test_another_step_in_the_span_of_the_gradients_is_one_function():
    """Projection-based CPO (Yang et al., 2020): TRPO's step, then the shortest way back into the constraint."""

    def project(q, r, S, c, delta):
        trpo = np.sqrt(2 * delta / q)
        back = np.maximum((trpo * r + c) / np.diagonal(S), 0.0)
        return Dual(1 / trpo, back / trpo, trpo, back)

    class PCPO(TrustRegionAlgorithm):
        def _update_policy(self, rollout):
            batch = cost_batch(rollout.samples, rollout.cost.mean_length)
            self.step = self._trust_region_step(rollout, [batch], rollout.violation, solve=project)
            return {"train/violation": rollout.violation}

    env = vec_env(lambda rank: RiskyEnv(), 4)
    model = PCPO("MlpPolicy", env, 3.0, n_steps=32, batch_size=32, target_kl=0.01, **KWARGS).learn(128 * 2)
    assert model.step.step_size > 0
    assert model.step.surrogates.kl_div <= 0.01
    assert all(th.isfinite(param).all() for param in model.policy.parameters())


@pytest.mark.parametrize("missing", ["_update_policy"])
def test_an_algorithm_says_how_it_updates(missing):
    env = vec_env(lambda rank: RiskyEnv(), 2)
    with pytest.raises(NotImplementedError):
        TrustRegionAlgorithm("MlpPolicy", env, 1.0, n_steps=8, batch_size=8, **KWARGS).learn(16)
