"""What the tests of resuming share: a training that is interrupted and resumed, and what must be the same."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from toy_envs import RiskyEnv

from sb3_cpo import CPO, TrainingCheckpoint, make_vec_env

N_STEPS, N_ENVS = 16, 2
ROLLOUT = N_STEPS * N_ENVS
KWARGS = {
    "n_steps": N_STEPS,
    "batch_size": 16,
    "n_critic_updates": 1,
    "policy_kwargs": {"net_arch": [4]},
    "device": "cpu",
    "seed": 3,
}
# What no two runs have in common
CLOCKS = ("time/fps", "time/time_elapsed")


class Killed(Exception):
    pass


class Kill(BaseCallback):
    """Ends training as a kill would: in the middle of a rollout, and nothing is tidied up."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def _on_step(self):
        if self.num_timesteps >= self.at:
            raise Killed
        return True


class Rows(KVWriter):
    """Keeps the rows of the log."""

    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append({"step": step, **{key: value for key, value in key_values.items() if key not in CLOCKS}})

    def get_checkpoint_state(self):
        return list(self.rows)

    def set_checkpoint_state(self, state):
        self.rows[:] = state


def with_rows(model):
    rows = Rows()
    model.set_logger(Logger(None, [rows]))
    return rows.rows


def assert_same_model(model, other):
    state, other_state = model.policy.state_dict(), other.policy.state_dict()
    assert state.keys() == other_state.keys()
    assert [key for key in state if not th.equal(state[key], other_state[key])] == []
    moments, others = (m.policy.optimizer.state_dict()["state"] for m in (model, other))
    assert moments.keys() == others.keys()
    assert all(th.equal(moments[i][key], others[i][key]) for i in moments for key in moments[i])
    assert model.num_timesteps == other.num_timesteps
    assert model._n_updates == other._n_updates
    observations, others = ({None: obs} if isinstance(obs, np.ndarray) else obs for obs in (model._last_obs, other._last_obs))
    assert observations.keys() == others.keys()
    for key in observations:
        np.testing.assert_array_equal(observations[key], others[key])
    np.testing.assert_array_equal(model.safety.cumulative_cost, other.safety.cumulative_cost)


def assert_same_rows(rows, others):
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for key in row:
            np.testing.assert_array_equal(row[key], other[key], err_msg=f"{key} at {row['step']}")


def check_resume(make_model, folder, n_rollouts=6, kill_at=3.5, make_callbacks=list, save_freq=1, **learn_kwargs):
    """Train without a break; then again, interrupted and resumed. Return both models."""
    total = n_rollouts * ROLLOUT
    whole = make_model()
    rows = with_rows(whole)
    whole.learn(total, callback=make_callbacks(), **learn_kwargs)

    broken = make_model()
    with_rows(broken)
    callbacks = [TrainingCheckpoint(save_freq, folder), *make_callbacks(), Kill(int(kill_at * ROLLOUT))]
    with pytest.raises(Killed):
        broken.learn(total, callback=callbacks, **learn_kwargs)

    env = make_model().env
    # Whatever the program that resumes has drawn before
    th.manual_seed(100)
    np.random.seed(100)  # noqa: NPY002
    resumed = type(whole).resume(folder, env)
    assert 0 < resumed.num_timesteps < total
    resumed_rows = with_rows(resumed)
    resumed.learn(total, callback=[TrainingCheckpoint(save_freq, folder), *make_callbacks()], **learn_kwargs)
    assert_same_model(resumed, whole)
    assert_same_rows(resumed_rows, rows)
    for model in (whole, broken, resumed):
        model.env.close()
    return whole, resumed


def risky(n_envs=N_ENVS, **kwargs):
    return make_vec_env(lambda: RiskyEnv(length=7, **kwargs), n_envs=n_envs, seed=5)


def interrupted(folder, total=6):
    model = CPO("MlpPolicy", risky(), lambda progress: 1 + progress, **KWARGS)
    with pytest.raises(Killed):
        model.learn(total * ROLLOUT, callback=[TrainingCheckpoint(1, folder), Kill(2 * ROLLOUT + 4)])
    return CPO.resume(folder, risky())
