import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO as ContribTRPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from toy_envs import RiskyEnv, ScriptedEnv, SparseCostEnv, vec_env

from sb3_cpo import CPO, FPO, PDO, TRPO

KWARGS = {
    "n_steps": 64, "batch_size": 64, "device": "cpu", "seed": 0, "cg_max_steps": 60, "n_critic_updates": 2, "gamma": 0.9,
    "policy_kwargs": {"net_arch": {"pi": [8], "vf": [16]}},
}  # fmt: skip
CRITIC = ("value_net", "mlp_extractor.value_net")


def make_env(action_space):
    return vec_env(lambda rank: RiskyEnv(action_space=action_space), 4)


def contrib_update(action_space, n_actions, start, target_kl, damping, **kwargs):
    """One update of sb3-contrib's TRPO, whose conjugate gradients start from noise of this seed.

    Its divergence is a mean over action dimensions, so that its trust region and its damping are scaled.
    """

    class OtherStart(ContribTRPO):
        def train(self):
            th.manual_seed(start)
            super().train()

    model = OtherStart(
        "MlpPolicy",
        make_env(action_space),
        target_kl=target_kl / n_actions,
        cg_damping=damping / n_actions,
        **KWARGS,
        **kwargs,
    )
    return parameters(model.learn(256)), model


def parameters(model):
    return {name: param.detach().clone() for name, param in model.policy.named_parameters() if "cost" not in name}


def distance(mine, theirs):
    return float(sum(((mine[name] - theirs[name]) ** 2).sum() for name in theirs if not name.startswith(CRITIC)) ** 0.5)


@pytest.mark.parametrize(
    ("action_space", "n_actions", "use_sde"),
    [
        (spaces.Box(-1, 1, (3,)), 3, False),
        (spaces.Box(-1, 1, (2,)), 2, True),
        (spaces.Discrete(3), 1, False),
        (spaces.MultiDiscrete([2, 3]), 1, False),
        (spaces.MultiBinary(3), 3, False),
    ],
    ids=["box", "gsde", "discrete", "multi_discrete", "multi_binary"],
)
@pytest.mark.parametrize("algorithm", ["TRPO", "CPO", "CPO without constraints"])
def test_one_update_equals_that_of_sb3_contrib(action_space, n_actions, use_sde, algorithm):
    kwargs = {"use_sde": use_sde}
    contribs = [contrib_update(action_space, n_actions, start, 0.01, 0.1, **kwargs) for start in (1, 2, 3)]
    theirs = [params for params, _ in contribs]
    spread = max(distance(theirs[0], theirs[1]), distance(theirs[0], theirs[2]), distance(theirs[1], theirs[2]))
    cls, limit = {"TRPO": (TRPO, None), "CPO": (CPO, 1e9), "CPO without constraints": (CPO, [])}[algorithm]
    # Where contrib has neither
    plain = {
        **KWARGS.get("policy_kwargs", {}),
        "log_std_init": 0.0,
        "normalize_observations": False,
        "standardize_returns": False,
    }
    model = cls(
        "MlpPolicy",
        make_env(action_space),
        cost_limit=limit,
        target_kl=0.01,
        cg_damping=0.1,
        **{**KWARGS, "policy_kwargs": plain},
        **kwargs,
    )
    before = parameters(model)
    mine = parameters(model.learn(256))
    moved = distance(mine, before)
    assert moved > 1e-2
    # As close as TRPO is to itself from another start of its conjugate gradients, up to the relative residual of 1e-5 at
    # which ours stop
    assert distance(mine, theirs[0]) <= 2 * spread + 1e-4 * moved
    assert spread < 0.01 * moved
    # Nor does the critic of the reward know the difference: same minibatches, same numbers but for the order of Adam's sums
    for name in theirs[0]:
        if name.startswith(CRITIC):
            th.testing.assert_close(mine[name], theirs[0][name], rtol=1e-4, atol=1e-6)


def test_costs_are_logged_where_they_are_and_not_needed_where_not():
    model = TRPO("MlpPolicy", vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,), cost=lambda *_: 3.0)), **KWARGS).learn(64)
    assert model.ep_cost_mean == 6
    assert model.safety.cumulative_cost == 64 * 3
    TRPO("MlpPolicy", vec_env(lambda rank: ScriptedEnv(rank, n_costs=0)), **KWARGS).learn(64)


def test_a_limit_changes_nothing_but_the_logs():
    models = [
        TRPO("MlpPolicy", make_env(spaces.Discrete(3)), cost_limit=limit, **KWARGS).learn(512) for limit in (None, 0.0, [1e9])
    ]
    for params in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.equal(params[0], params[1])
        assert th.equal(params[0], params[2])
    assert models[1].safety.violation_rate == 1


def test_policy_is_sb3_s_own():
    model = TRPO(ActorCriticPolicy, make_env(spaces.Discrete(3)), **KWARGS).learn(256)
    assert not any("cost" in name for name in model.policy.state_dict())
    assert np.isfinite(model.ep_cost_mean).all()


def test_the_return_rises():
    env = make_env(spaces.Box(-1, 1, (2,)))
    first = TRPO("MlpPolicy", env, **{**KWARGS, "cg_max_steps": 10}).learn(256).rollout_buffer.rewards.mean()
    last = (
        TRPO("MlpPolicy", env, target_kl=0.05, **{**KWARGS, "cg_max_steps": 10}).learn(256 * 10).rollout_buffer.rewards.mean()
    )
    assert last > first + 0.2


def logged(model):
    """The keys of the last row that the model logged."""
    keys = []
    model.set_logger(Logger(None, []))
    model.logger.dump = lambda step=0: keys.append(set(model.logger.name_to_value))
    model.learn(256)
    return keys[-1]


def test_costs_that_nobody_mentions_are_not_logged_as_zero():
    keys = logged(TRPO("MlpPolicy", vec_env(lambda rank: ScriptedEnv(rank, n_costs=0), 2), **KWARGS))
    assert "train/policy_objective" in keys
    assert not [key for key in keys if ("cost" in key and "rejected" not in key) or key.startswith("safety")]


def test_costs_that_are_mentioned_only_when_they_occur_are_logged():
    env = vec_env(lambda rank: SparseCostEnv(rank, lengths=(4,), cost=lambda rank, t: float(t % 4 == 3)))
    model = TRPO("MlpPolicy", env, **KWARGS)
    assert "rollout/ep_cost_mean" in logged(model)
    assert model.ep_cost_mean.tolist() == [1]


def test_array_of_costs_is_observed_without_a_limit():
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,), n_costs=3, cost=lambda rank, t: float(t % 2)))
    model = TRPO("MlpPolicy", env, **KWARGS).learn(64)
    assert model.ep_cost_mean.tolist() == [1, 2, 3]
    assert model.cost_limits.names == ("0", "1", "2")
    assert not model.cost_limits.is_limited


def test_a_cost_that_the_user_named_must_be_there():
    env = vec_env(lambda rank: ScriptedEnv(rank), 2)
    with pytest.raises(KeyError, match="cost_speeed"):
        TRPO("MlpPolicy", env, cost_limit={"cost_speeed": 1.0}, **KWARGS).learn(2)
    TRPO("MlpPolicy", env, cost_limit={"cost_speeed": 1.0}, missing_cost="zero", **KWARGS).learn(2)


def test_a_limit_named_on_load_is_expected_to_be_there(tmp_path):
    env = vec_env(lambda rank: ScriptedEnv(rank))
    TRPO("MlpPolicy", env, **KWARGS).learn(64).save(tmp_path / "model")
    model = TRPO.load(tmp_path / "model", env=env, cost_limit={"cots": 1.0})
    with pytest.raises(KeyError, match="info has no 'cots'"):
        model.learn(64)


def test_where_nobody_mentions_a_cost_there_is_none_to_show():
    from sb3_cpo import CostEvalCallback, evaluate_policy

    model = TRPO("MlpPolicy", vec_env(lambda rank: ScriptedEnv(rank, n_costs=0)), **KWARGS)
    evaluation = CostEvalCallback(Monitor(ScriptedEnv(n_costs=0)), n_eval_episodes=1, eval_freq=16, verbose=0)
    model.learn(64, callback=evaluation)
    assert model.n_costs == 0
    assert model.ep_cost_mean.shape == (0,)
    assert evaluation.last_mean_cost.shape == (0,)
    assert evaluate_policy(model, Monitor(ScriptedEnv(n_costs=0)), 1)[2].shape == (0,)


@pytest.mark.parametrize("algorithm", [CPO, PDO, FPO, TRPO])
def test_everything_after_the_limit_is_named_and_explained(algorithm):
    import inspect

    parameters = list(inspect.signature(algorithm).parameters.values())
    assert [parameter.name for parameter in parameters[:3]] == ["policy", "env", "cost_limit"]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters[3:])
    for parameter in parameters:
        assert f":param {parameter.name}:" in algorithm.__doc__, parameter.name
    shared = [name for name in inspect.signature(CPO).parameters if name in inspect.signature(algorithm).parameters]
    assert [p.name for p in parameters if p.name in inspect.signature(CPO).parameters] == shared
    with pytest.raises(TypeError):
        algorithm("MlpPolicy", ScriptedEnv(), 5.0, 1e-3)
