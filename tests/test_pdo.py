import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from toy_envs import ScriptedEnv, vec_env

from sb3_cpo import PDO

KWARGS = {"n_steps": 4, "batch_size": 4, "device": "cpu", "seed": 0, "policy_kwargs": {"net_arch": [8]}}


class Penalties(BaseCallback):
    """What was added to the reward of each rollout, divided by the costs."""

    def __init__(self):
        super().__init__()
        self.used, self.means, self.limits, self.rewards = [], [], [], []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.used.append(self.model.penalty.copy())
        self.means.append(self.model.ep_cost_mean.copy())
        self.limits.append(self.model.current_cost_limit.copy())
        self.rewards.append(self.model.rollout_buffer.rewards.copy())


def test_penalty_follows_the_violation_exactly_and_is_used_before_it_is_updated():
    # Two steps at a cost of 4 until step 8, then none: J = 8, 8, 0, 0, 0, 0
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,), cost=lambda rank, t: 4.0 * (t < 8)))
    penalties = Penalties()
    model = PDO("MlpPolicy", env, 6.0, penalty_lr=0.5, **KWARGS).learn(24, callback=penalties)
    # nu: 0, +0.5 (8 - 6) = 1, + 1 = 2, then -0.5 * 6 = -3 each, and never below 0
    assert [penalty.tolist() for penalty in penalties.used] == [[0], [1], [2], [0], [0], [0]]
    assert model.penalty.tolist() == [0]


def test_each_constraint_has_its_own_penalty_and_a_scheduled_limit():
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,), n_costs=2, cost=lambda rank, t: 1.0))
    limit = lambda progress: 4 * progress  # noqa: E731
    penalties = Penalties()
    PDO("MlpPolicy", env, [limit, 5.0], penalty_coef=[0.25, 3.0], penalty_lr=1.0, **KWARGS).learn(16, callback=penalties)
    # J = 2 and 4. Limits 3, 2, 1, 0 and 5
    np.testing.assert_allclose(penalties.used, [[0.25, 3], [0, 2], [0, 1], [1, 0]])


def test_the_reward_of_iteration_k_has_the_penalty_of_iteration_k():
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,), cost=lambda rank, t: float(t)))
    penalties = Penalties()
    model = PDO("MlpPolicy", env, 0.0, penalty_coef=1.0, penalty_lr=1.0, gamma=0.0, **KWARGS)
    model.learn(12, callback=penalties)
    costs = np.arange(12.0).reshape(3, 4, 1)
    raw = (np.arange(1, 13) % 7).reshape(3, 4, 1)
    nu = np.array([1, 1 + 3, 4 + 11])  # J of the first rollout (0 + 1 + 2 + 3) / 2 = 3, of the second 11
    np.testing.assert_allclose(penalties.rewards, raw - nu.reshape(3, 1, 1) * costs)


def test_penalty_is_saved_and_goes_on_from_there(tmp_path):
    def make_env():
        return vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,), cost=lambda rank, t: 4.0))

    model = PDO("MlpPolicy", make_env(), 6.0, penalty_coef=2.0, penalty_lr=0.5, **KWARGS).learn(4)
    assert model.penalty.tolist() == [3]
    model.save(tmp_path / "pdo")
    loaded = PDO.load(tmp_path / "pdo", env=make_env())
    assert loaded.penalty.tolist() == [3]
    assert loaded.penalty_lr == 0.5
    assert loaded.learn(4).penalty.tolist() == [4]
    # with another limit
    assert PDO.load(tmp_path / "pdo", env=make_env(), cost_limit=8.0).learn(4).penalty.tolist() == [3]


@pytest.mark.parametrize("cost_limit", [0.0, 1e6])
def test_violated_limits_raise_the_penalty_and_slack_ones_lower_it(cost_limit):
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,)))
    model = PDO("MlpPolicy", env, cost_limit, penalty_coef=1.0, **KWARGS).learn(8)
    assert model.penalty > 1 if cost_limit == 0 else model.penalty == 0


def test_another_initial_penalty_given_to_load_replaces_the_saved_one(tmp_path):
    def make_env():
        return vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,), cost=lambda rank, t: 4.0))

    PDO("MlpPolicy", make_env(), 6.0, penalty_coef=2.0, penalty_lr=0.5, **KWARGS).learn(4).save(tmp_path / "pdo")
    loaded = PDO.load(tmp_path / "pdo", env=make_env(), penalty_coef=7.0)
    assert loaded.penalty.tolist() == [7]
    assert loaded.learn(4).penalty.tolist() == [8]


def test_costs_that_were_counted_of_other_constraints_are_forgotten(tmp_path):
    def make_env():
        return vec_env(lambda rank: ScriptedEnv(rank, keys=("a", "b"), cost=lambda rank, t: 1.0))

    PDO("MlpPolicy", make_env(), {"a": 1.0}, **KWARGS).learn(8).save(tmp_path / "pdo")
    loaded = PDO.load(tmp_path / "pdo", env=make_env(), cost_limit={"a": 1.0, "b": 1.0})
    loaded.learn(4, reset_num_timesteps=False)
    assert loaded.safety.cumulative_cost.tolist() == [4, 8]
