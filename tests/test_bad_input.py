"""Each mistake is an error that names it, its value and its place, and nothing is updated from bad data."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize
from toy_envs import BrokenEnv, RiskyEnv, ScriptedEnv, vec_env

from sb3_cpo import CPO, FPO, PDO, TRPO

SMALL = {"net_arch": [8]}
KWARGS = {"n_steps": 4, "batch_size": 4, "device": "cpu", "policy_kwargs": SMALL}


def fails_and_changes_nothing(mistake, error, *messages, when=6, is_dict=False, wrap=lambda env: env, algorithm=CPO, **kwargs):
    """Of two environments, the second goes wrong at its ``when``-th step, in the rollout of the steps 5 .. 8."""

    def make_env(rank):
        return BrokenEnv(mistake, when if rank == 1 else 10**9, is_dict)

    kwargs = {"cost_limit": 2.0, **KWARGS, **kwargs}
    model = algorithm("MultiInputPolicy" if is_dict else "MlpPolicy", wrap(vec_env(make_env, 2)), **kwargs)
    model.learn(8)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    with pytest.raises(error) as raised:
        model.learn(8, reset_num_timesteps=False)
    for message in messages:
        assert message in str(raised.value)
    assert all(th.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items())


def put(where, value):
    """A mistake: the step, but with this value in this place."""

    def mistake(*result):
        result = list(result)
        result[where] = value
        return tuple(result)

    return mistake


@pytest.mark.parametrize(
    ("info", "error", "messages"),
    [
        ({"run": 1, "other": 2}, KeyError, ["environment 1 (BrokenEnv), step 12", "'other', 'run'", "CostWrapper"]),
        ({"cost": np.nan}, ValueError, ["info['cost'] of environment 1 is nan", "finite", "step 12"]),
        ({"cost": np.inf}, ValueError, ["info['cost'] of environment 1 is inf", "step 12"]),
        ({"cost": [1.0, 2.0, 3.0]}, ValueError, ["cost_limit has 1 entry", "environment 1 has shape (3,)", "step 12"]),
        ({"cost": "high"}, ValueError, ["environment 1 is 'high': expected a number", "step 12"]),
    ],
    ids=["missing", "nan", "inf", "shape", "string"],
)  # fmt: skip
@pytest.mark.parametrize("algorithm", [CPO, PDO, FPO])
def test_costs(info, error, messages, algorithm):
    fails_and_changes_nothing(put(4, info), error, *messages, algorithm=algorithm)


def test_trpo_does_not_need_costs_but_refuses_wrong_ones():
    model = TRPO("MlpPolicy", vec_env(lambda rank: ScriptedEnv(rank, n_costs=0)), **KWARGS)
    model.learn(8)
    fails_and_changes_nothing(put(4, {"cost": np.nan}), ValueError, "is nan", algorithm=TRPO, cost_limit=None)


def test_missing_costs_can_be_declared_zero():
    model = CPO("MlpPolicy", vec_env(lambda rank: ScriptedEnv(rank, n_costs=0)), 2.0, missing_cost="zero", **KWARGS)
    model.learn(8)
    assert model.ep_cost_mean == 0
    keys = {"cost_a": 1.0, "cost_b": 1.0}
    model = CPO("MlpPolicy", vec_env(lambda rank: ScriptedEnv(rank, keys=("cost_a",))), keys, missing_cost="zero", **KWARGS)
    model.learn(8)
    assert model.ep_cost_mean[0] > 0
    assert model.ep_cost_mean[1] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rewards(value):
    fails_and_changes_nothing(
        put(1, value), ValueError, "the reward is NaN or infinite", str(value), "environment 1", "step 12"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("is_dict", [False, True], ids=["box", "dict"])
@pytest.mark.parametrize("is_terminal", [False, True], ids=["step", "terminal"])
def test_observations(value, is_dict, is_terminal):
    obs = np.array([0, value], dtype=np.float32)
    what = "terminal observation" if is_terminal else "observation"

    def mistake(_, reward, terminated, truncated, info):
        return {"position": obs} if is_dict else obs, reward, False, is_terminal, info

    place = "['position']" if is_dict else ""
    messages = [f"the {what}{place} is NaN or infinite", str(value), "environment 1", "step 10"]
    fails_and_changes_nothing(mistake, ValueError, *messages, is_dict=is_dict, when=5)


def test_first_observation():
    env = vec_env(lambda rank: BrokenEnv(put(1, 0.0)))
    env.envs[0]._obs = lambda: np.array([np.nan, 0], dtype=np.float32)
    with pytest.raises(ValueError, match=r"the observation is NaN or infinite.*environment 0"):
        CPO("MlpPolicy", env, 2.0, **KWARGS).learn(8)


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_normalisation_does_not_hide_it(where, value):
    bad = np.array([0, value], dtype=np.float32) if where == 0 else value
    fails_and_changes_nothing(put(where, bad), ValueError, "is NaN or infinite", "environment", wrap=VecNormalize, when=5)


@pytest.mark.parametrize(
    ("cost_limit", "message"),
    [
        (np.nan, "cost_limit is nan"),
        (np.inf, "cost_limit is inf"),
        ("ten", "cost_limit is 'ten': expected a number"),
        ([1.0, "two"], r"cost_limit\[1\] is 'two'"),
        ({"cost": np.nan}, r"cost_limit\['cost'\] is nan"),
        ([1.0] * 11, "11 entries; at most 10"),
        (None, "needs a cost_limit"),
    ],
)
@pytest.mark.parametrize("algorithm", [CPO, PDO])
def test_limits(cost_limit, message, algorithm):
    with pytest.raises(ValueError, match=message):
        algorithm("MlpPolicy", ScriptedEnv(), cost_limit, **KWARGS)


def test_limit_of_the_wrong_length():
    env = vec_env(lambda rank: ScriptedEnv(rank, n_costs=3))
    with pytest.raises(ValueError, match=r"cost_limit has 2 entries but info\['cost'\] of environment 0 has shape \(3,\)"):
        CPO("MlpPolicy", env, [1.0, 2.0], **KWARGS).learn(4)
    with pytest.raises(KeyError, match=r"no 'cost_speed'.*has the keys"):
        CPO("MlpPolicy", env, {"cost_speed": 1.0}, **KWARGS).learn(4)


def test_policy_class_without_a_cost_head():
    with pytest.raises(
        ValueError, match=r"CPO needs a policy with a cost critic.*CostActorCriticPolicy; ActorCriticPolicy has"
    ):
        CPO(ActorCriticPolicy, ScriptedEnv(), 5.0, **KWARGS)
    # The others need none
    PDO(ActorCriticPolicy, vec_env(lambda rank: ScriptedEnv(rank)), 5.0, **KWARGS).learn(4)


@pytest.mark.parametrize("algorithm", [CPO, PDO, FPO, TRPO])
def test_buffer_class_without_costs(algorithm):
    with pytest.raises(ValueError, match="CostRolloutBuffer; RolloutBuffer holds none"):
        algorithm("MlpPolicy", ScriptedEnv(), cost_limit=5.0, rollout_buffer_class=RolloutBuffer, **KWARGS)


def test_advantages_that_look_further_than_the_costs():
    with pytest.raises(ValueError, match=r"cost_gae_gamma must not exceed cost_gamma=0.9, not 0.95"):
        CPO("MlpPolicy", ScriptedEnv(), 5.0, cost_gamma=0.9, cost_gae_gamma=0.95, **KWARGS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_kl", 0.0), ("target_kl", -0.1), ("target_kl", np.nan), ("cg_max_steps", 0), ("line_search_max_iter", 0),
        ("fisher_sub_sampling_factor", 0), ("n_cost_rollouts", 0),
        ("cost_margin_lr", -1), ("n_steps", 0), ("gamma", 1.1), ("cost_gamma", -0.1), ("cost_gamma", np.nan),
        ("gae_lambda", 2), ("cost_gae_lambda", 2), ("cost_gae_gamma", 2), ("cg_damping", -1), ("cg_damping", np.inf),
        ("cost_confidence", -1),
        ("line_search_shrinking_factor", 1.0), ("line_search_shrinking_factor", 0.0), ("missing_cost", "ignore"),
        ("bootstrap_time_limits", "no"), ("bootstrap_time_limits", 0.5),
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        CPO("MlpPolicy", ScriptedEnv(), 5.0, **{**KWARGS, name: value})


def test_one_sample_is_too_few():
    with pytest.raises(ValueError, match="must be greater than 1"):
        CPO("MlpPolicy", ScriptedEnv(), 5.0, **{**KWARGS, "n_steps": 1})


def test_unsupported_action_space():
    env = RiskyEnv(action_space=spaces.Tuple([spaces.Discrete(2)]))
    with pytest.raises(AssertionError, match="action space"):
        CPO("MlpPolicy", env, 5.0, **KWARGS)


@pytest.mark.parametrize(
    ("algorithm", "kwargs", "message"),
    [
        (FPO, {"penalty_coef": -1.0}, "penalty_coef must be finite and not negative, not -1"),
        (FPO, {"penalty_coef": np.nan}, "penalty_coef must be finite"),
        (FPO, {"penalty_coef": [1.0, 2.0]}, r"penalty_coef has shape \(2,\) but cost_limit has 1 entries"),
        (PDO, {"penalty_coef": [[1.0]]}, r"penalty_coef has shape \(1, 1\)"),
        (PDO, {"penalty_lr": -0.1}, "penalty_lr must be finite and not negative, not -0.1"),
        (PDO, {"penalty_lr": np.nan}, "penalty_lr must be finite and not negative, not nan"),
    ],
)
def test_penalties(algorithm, kwargs, message):
    with pytest.raises(ValueError, match=message):
        algorithm("MlpPolicy", ScriptedEnv(), 5.0, **KWARGS, **kwargs)


@pytest.mark.parametrize("wrong", [-1.0, np.inf])
def test_each_of_several_penalties_is_checked(wrong):
    with pytest.raises(ValueError, match="penalty_coef must be finite and not negative"):
        FPO("MlpPolicy", ScriptedEnv(n_costs=2), [5.0, 5.0], penalty_coef=[1.0, wrong], **KWARGS)


@pytest.mark.parametrize(
    "argument", [{"cost_margin_lr": 0.1}, {"n_cost_rollouts": 2}, {"cost_confidence": 1.0}, {"cost_gae_gamma": 0.9}]
)
@pytest.mark.parametrize("algorithm", [PDO, FPO, TRPO])
def test_arguments_of_constraints_are_refused_where_there_are_none(algorithm, argument):
    with pytest.raises(TypeError, match=next(iter(argument))):
        algorithm("MlpPolicy", ScriptedEnv(), **argument)


@pytest.mark.parametrize("name", ["gamma", "cost_gae_lambda"])
def test_what_the_algorithm_sets_on_its_buffer_is_no_argument_of_the_buffer(name):
    with pytest.raises(ValueError, match=f"rollout_buffer_kwargs has '{name}': it is set by the algorithm"):
        CPO("MlpPolicy", ScriptedEnv(0), 5.0, n_steps=8, batch_size=8, rollout_buffer_kwargs={name: 0.5})
