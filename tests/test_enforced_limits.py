"""The limit that is logged is the limit that the step is taken under."""

from types import SimpleNamespace

import numpy as np
import pytest
from toy_envs import ScriptedEnv, vec_env

from sb3_cpo import CPO, PDO
from sb3_cpo.cpo import CostMargin

KWARGS = {"n_steps": 8, "batch_size": 8, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}


def make_env(rank):
    """Every episode has four steps and costs 4."""
    return ScriptedEnv(rank, lengths=(4,), cost=lambda rank, t: 1.0)


def test_a_scheduled_limit_reaches_the_step():
    model = CPO("MlpPolicy", vec_env(make_env), lambda progress: 12 * progress, n_noise_draws=0, **KWARGS)
    violations, logged, take_step = [], [], model._trust_region_step

    def watched_step(rollout, batches, violation, **kwargs):
        violations.append(float(violation[0]))
        return take_step(rollout, batches, violation, **kwargs)

    model._trust_region_step = watched_step
    record = model._record
    model._record = lambda row: (logged.append(row.get("rollout/cost_limit", row.get("train/violation"))), record(row))
    model.learn(24)
    # Limits 8, 4 and 0 at the ends of the three rollouts
    np.testing.assert_allclose(violations, [4 - 8, 4 - 4, 4 - 0], atol=1e-9)
    np.testing.assert_allclose(model.current_cost_limit, 0, atol=1e-9)


def test_a_scheduled_limit_reaches_the_penalty():
    model = PDO("MlpPolicy", vec_env(make_env), lambda progress: 3 * progress, penalty_lr=1.0, penalty_coef=0.0, **KWARGS)
    penalties = []
    update = model._update_policy
    model._update_policy = lambda rollout: (update(rollout), penalties.append(float(model.penalty[0])))[0]
    model.learn(24)
    # Limits 2, 1 and 0: violations 2, 3 and 4
    np.testing.assert_allclose(penalties, np.cumsum([2, 3, 4]), atol=1e-6)


@pytest.mark.parametrize(
    ("violation", "is_feasible", "expected"),
    [
        ([5.0, 0.5], True, [1.1, 1.05]),  # no more than an update can change
        ([-5.0, -0.5], True, [0.9, 0.95]),
        ([5.0, -5.0], False, [1.0, 0.5]),  # nothing could have helped: it does not grow
    ],
)
def test_the_margin_follows_the_violation_as_far_as_an_update_reaches(violation, is_feasible, expected):
    margin = CostMargin(2)
    margin.value = np.ones(2)
    step = SimpleNamespace(reachable_cost_change=np.ones(2), is_feasible=is_feasible)
    margin.update(np.array(violation), step, 0.1)
    np.testing.assert_allclose(margin.value, expected)


def test_the_margin_is_never_negative():
    margin = CostMargin(1)
    margin.update(np.array([-9.0]), SimpleNamespace(reachable_cost_change=np.full(1, 9.0), is_feasible=True), 1.0)
    assert margin.value == 0


@pytest.mark.parametrize("limit", [{"cost": 3.0}, [3.0], np.array([3.0])])
def test_an_entry_of_the_limit_that_is_assigned_counts(limit, tmp_path):
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(4,), cost=lambda rank, t: 1.0), 2)
    model = CPO("MlpPolicy", env, limit, n_steps=8, batch_size=16, device="cpu", n_noise_draws=0).learn(16)
    key = "train/violation/cost" if isinstance(limit, dict) else "train/violation"
    assert model.logger.name_to_value[key] == 4 - 3
    model.cost_limit["cost" if isinstance(limit, dict) else 0] = 11.0
    model.learn(16, reset_num_timesteps=False)
    assert model.logger.name_to_value[key] == 4 - 11
    model.save(tmp_path / "model")
    assert CPO.load(tmp_path / "model").current_cost_limit == 11


class Limited(ScriptedEnv):
    def __init__(self, rank, cost_limit):
        super().__init__(rank)
        self.cost_limit = cost_limit


def test_the_limit_of_another_environment_replaces_that_of_the_first_but_not_the_users():
    kwargs = {"n_steps": 8, "batch_size": 8, "device": "cpu"}
    model = CPO("MlpPolicy", vec_env(lambda rank: Limited(rank, 7.0)), **kwargs)
    assert model.current_cost_limit == 7
    model.set_env(vec_env(lambda rank: Limited(rank, 2.0)))
    assert model.current_cost_limit == 2
    model.set_env(vec_env(ScriptedEnv))
    assert model.current_cost_limit == 2
    model.cost_limit = 5.0
    model.set_env(vec_env(lambda rank: Limited(rank, 3.0)))
    assert model.current_cost_limit == 5


def test_copies_with_different_limits_have_none():
    env = vec_env(lambda rank: Limited(rank, 1.0 + rank), 2)
    with pytest.raises(ValueError, match=r"different limits, \[1.0, 2.0\]: pass cost_limit"):
        CPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu")
    assert CPO("MlpPolicy", env, 4.0, n_steps=8, batch_size=8, device="cpu").current_cost_limit == 4
