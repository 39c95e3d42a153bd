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
