"""What a user replaces after construction, rollout buffer or policy, either works or is an error."""

import logging

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from toy_envs import RiskyEnv, ScriptedEnv, vec_env

from sb3_cpo import CPO, FPO, CostEvalCallback
from sb3_cpo.buffers import CostRolloutBuffer
from sb3_cpo.run_files import read_evaluations

KWARGS = {"n_steps": 8, "batch_size": 8, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}


def scripted_model(**kwargs):
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(4,), cost=lambda rank, t: 1.0 + (t >= 8)), 2)
    return CPO("MlpPolicy", env, 10.0, **KWARGS, **kwargs)


def new_buffer(model, cls=CostRolloutBuffer, size=8, n_envs=2, **kwargs):
    return cls(size, model.observation_space, model.action_space, "cpu", n_envs=n_envs, **kwargs)


def test_a_replaced_buffer_counts_costs():
    model = scripted_model().learn(16)
    assert model.ep_cost_mean == 4
    model.rollout_buffer = new_buffer(model)
    model.learn(16, reset_num_timesteps=False)
    assert model.ep_cost_mean == 8
    assert model.rollout_buffer.costs.sum() == 32


@pytest.mark.parametrize("kwargs", [{"size": 4}, {"size": 12}, {"n_envs": 1}, {"n_costs": 2}])
def test_a_replaced_buffer_without_room_is_an_error(kwargs):
    model = scripted_model().learn(16)
    model.rollout_buffer = new_buffer(model, **kwargs)
    with pytest.raises(ValueError, match=r"room for .* this model needs \(8, 2, 1\)"):
        model.learn(16)


def test_a_replaced_buffer_without_costs_is_an_error():
    model = scripted_model().learn(16)
    model.rollout_buffer = new_buffer(model, RolloutBuffer)
    with pytest.raises(ValueError, match="has no costs: it is a RolloutBuffer"):
        model.learn(16)


def test_a_buffer_replaced_within_a_rollout_is_an_error():
    class Replace(BaseCallback):
        def _on_rollout_start(self):
            self.model.rollout_buffer = new_buffer(self.model)

        def _on_step(self):
            return True

    with pytest.raises(ValueError, match="replaced within a rollout"):
        scripted_model().learn(16, callback=Replace())


def test_a_buffer_that_forgets_the_costs_is_an_error():
    class Own(CostRolloutBuffer):
        def compute_returns_and_advantage(self, last_values, dones):
            self.advantages[:] = self.returns[:] = 1.0

    with pytest.raises(ValueError, match=r"Own.compute_returns_and_advantage must call"):
        scripted_model(rollout_buffer_class=Own).learn(16)


def test_costs_are_counted_before_the_returns_are_computed():
    """A penalised reward is what the returns are of."""
    returns = {}

    class Look(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            returns["all"] = self.model.rollout_buffer.returns.copy()

    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(4,), cost=lambda rank, t: 1.0), 2)
    model = FPO("MlpPolicy", env, 10.0, penalty_coef=3.0, gae_lambda=1.0, gamma=1.0, **KWARGS)
    model.learn(16, callback=Look())
    # The second episode ends by termination; its rewards are 5, 6, 0, 1, its costs 1 each
    np.testing.assert_allclose(returns["all"][4:, 0], [0, -2, -5, -2], atol=1e-5)


def test_a_compiled_policy_keeps_its_cost_critic_and_its_statistics():
    models = []
    logging.disable()  # pytest would have the compiler write all that it does
    try:
        for is_compiled in (False, True):
            # One after the other: both draw from the generator that the seed sets
            model = CPO("MlpPolicy", vec_env(lambda rank: RiskyEnv(), 2), 1.0, seed=3, **KWARGS)
            if is_compiled:
                # "eager": everything of torch.compile but the compiler
                model.policy = th.compile(model.policy, backend="eager")
            models.append(model.learn(64))
    finally:
        logging.disable(logging.NOTSET)
    plain, compiled = (model.policy.state_dict() for model in models)
    assert len(plain) == len(compiled)
    for name, value in plain.items():
        th.testing.assert_close(compiled[f"_orig_mod.{name}"], value, rtol=1e-4, atol=1e-5)
    assert models[1].policy.observation_normalizer.moments[0].count == 64


@pytest.mark.parametrize(
    "names",
    [
        ("costs", "cost_limits"),
        ("results", "timesteps"),
        ("file", "allow_pickle"),
        ("ep_lengths", "x"),
        ("cost_names", "successes"),
    ],
)
def test_names_of_constraints_do_not_overwrite_arrays_of_evaluations(names, tmp_path):
    def make_env(rank):
        return ScriptedEnv(rank, lengths=(4,), keys=names, cost=lambda rank, t: 1.0)

    model = CPO("MlpPolicy", vec_env(make_env), dict.fromkeys(names, 9.0), **KWARGS)
    model.learn(16, callback=CostEvalCallback(vec_env(make_env), eval_freq=8, n_eval_episodes=3, log_path=tmp_path, verbose=0))
    with np.load(tmp_path / "evaluations.npz") as arrays:
        assert arrays["timesteps"].tolist() == [8, 16]
        assert arrays["results"].shape == arrays["ep_lengths"].shape == (2, 3)
        assert (arrays["ep_lengths"] == 4).all()
        assert arrays["costs"].shape == (2, 3, 2)
        assert arrays["cost_limits"].tolist() == [[9, 9]] * 2
        for index, name in enumerate(names):
            own = name if name == "x" else f"cost_of_{name}"
            assert (arrays[own] == 4 * (index + 1)).all()
    assert list(read_evaluations(tmp_path).costs) == list(names)
