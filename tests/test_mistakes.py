"""What people type who come from elsewhere: each mistake is an error that says what to write instead."""

import inspect
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from toy_envs import ScriptedEnv

from safe_envs import CostWrapper, ExceedanceCost, SixTupleWrapper
from sb3_cpo import (
    CPO,
    FPO,
    PDO,
    TRPO,
    CostEvalCallback,
    CostMonitor,
    check_cost_env,
    evaluate_policy,
    make_vec_env,
    safety_report,
)
from sb3_cpo.mistakes import ELSEWHERE, HERE
from sb3_cpo.policies import MlpPolicy

SMALL = {"net_arch": [8]}
KWARGS = {"n_steps": 16, "batch_size": 16, "device": "cpu", "policy_kwargs": SMALL}


class Plain(gym.Env):
    """Sixteen steps, no cost."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, dtype=np.float32), 0.0, False, self.t == 4, {}


class Six(Plain):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward, 1.0, *rest


class Four(Plain):
    def step(self, action):
        observation, reward, _, done, info = super().step(action)
        return observation, reward, done, info


class OldReset(Plain):
    def reset(self):
        return super().reset()[0]


def env(cost=lambda: 1.0, **kwargs):
    return CostWrapper(Plain(), cost, **kwargs)


def learn(env, cost_limit=5.0, algorithm=CPO):
    algorithm("MlpPolicy", env, cost_limit, **KWARGS).learn(16)


# Arguments


@pytest.mark.parametrize("algorithm", [CPO, PDO, FPO, TRPO])
def test_arguments_of_ppo_are_answered_as_the_quickstart_does(algorithm):
    quickstart = (Path(__file__).parent.parent / "docs/guide/quickstart.md").read_text()
    here = inspect.signature(algorithm.__init__).parameters
    others = [name for name in inspect.signature(PPO.__init__).parameters if name not in here]
    assert {"n_epochs", "clip_range", "ent_coef", "vf_coef", "max_grad_norm", "clip_range_vf"} <= set(others)
    for name in others:
        with pytest.raises(TypeError, match=rf"{algorithm.__name__} has no argument '{name}': \w+"):
            algorithm("MlpPolicy", env(), **{name: 1})
        assert f"`{name}`" in quickstart
        for word in re.findall(r"n_critic_updates|target_kl", ELSEWHERE[name]):
            assert word in quickstart


@pytest.mark.parametrize(
    ("algorithm", "name", "message"),
    [
        (CPO, "n_epochs", "n_critic_updates"),
        (CPO, "clip_range", "target_kl"),
        (CPO, "cost_limits", "write cost_limit"),
        (CPO, "cost_limt", r"did you mean cost_limit\?"),
        (CPO, "n_critic_update", r"did you mean n_critic_updates\?"),
        (CPO, "cg_iters", "cg_max_steps"),
        (CPO, "buffer_size", "on-policy"),
        (CPO, "total_timesteps", r"learn\(\)"),
        (CPO, "n_envs", "make_vec_env"),
        (CPO, "penalty_lr", "argument of PDO"),
        (PDO, "cost_margin_lr", "argument of CPO"),
        (TRPO, "penalty_coef", "argument of PDO and FPO"),
        (CPO, "xyz", "help"),
    ],
)
def test_an_unknown_argument_is_named_with_what_to_write_instead(algorithm, name, message):
    with pytest.raises(TypeError, match=f"{algorithm.__name__} has no argument '{name}': .*{message}"):
        algorithm("MlpPolicy", env(), **{name: 1})


def test_what_the_messages_recommend_exists():
    arguments = {algorithm.__name__: inspect.signature(algorithm).parameters for algorithm in (CPO, PDO, FPO, TRPO)}
    for name, hint in ELSEWHERE.items():
        assert name not in arguments["CPO"]
        for word in re.findall(r"write (\w+)", hint):
            assert word in arguments["CPO"]
    for name, owners in HERE.items():
        assert {owner for owner in arguments if name in arguments[owner]} == set(owners.split(" and "))


def test_signatures_stay_readable():
    assert list(inspect.signature(CPO).parameters)[:4] == ["policy", "env", "cost_limit", "learning_rate"]
    assert "cost_limit" in CPO.__init__.__annotations__


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("MlpPolicy", env(), 5.0, 1e-3), r"the rest by name; it got 0.001 as well.*learning_rate=\.\.\."),
        (("SafePointCircle-v0",), "CPO needs an environment: CPO\\(\"MlpPolicy\", 'SafePointCircle-v0'"),
        (("MlpPolicy", None, 5.0), "CPO needs an environment"),
    ],
)
def test_mistakes_by_position(args, message):
    with pytest.raises(TypeError, match=message):
        CPO(*args)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("target_kl", lambda _: 0.01, "target_kl must be positive.*only learning_rate and cost_limit can be schedules"),
        ("n_steps", 64.0, "n_steps must be a whole number, not 64.0: write 64"),
        ("batch_size", 0.5, "batch_size must be a whole number, not 0.5"),
        ("cost_limit", {}, "names no cost"),
        ("cost_limit", "5.0", "cost_limit is '5.0': expected a number"),
        ("cost_limit", lambda _: "5", "cost_limit is '5' at progress_remaining=1.0"),
        ("cost_limit", {"cost": "5"}, r"cost_limit\['cost'\] is '5': .* returns one$"),
        ("cost_limit", ["cost"], r"cost_limit\[0\] is 'cost': .*cost_limit=\{'cost': limit\}"),
        ("learning_rate", "lin_1e-3", r"learning_rate is 'lin_1e-3': expected a number.*LinearSchedule\(1e-3"),
    ],
)
def test_values(name, value, message):
    with pytest.raises(ValueError, match=message):
        CPO("MlpPolicy", env(), **{"cost_limit": 1.0, **KWARGS, name: value})


# Policies


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        (ActorCriticPolicy, ValueError, 'ActorCriticPolicy has none. Pass "MlpPolicy"'),
        ("MLPPolicy", ValueError, '"MlpPolicy", "CnnPolicy", "MultiInputPolicy"; did you mean "MlpPolicy"'),
        ("MlpLstmPolicy", ValueError, "recurrent policies are not supported"),
        ("CartPole-v1", ValueError, "'CartPole-v1' is an environment, which comes second"),
        ("MultiInputPolicy", ValueError, 'these are Box.*pass "MlpPolicy"'),
        ("CnnPolicy", AssertionError, "instead of `MlpPolicy`"),
    ],
)
def test_policies(policy, error, message):
    with pytest.raises(error, match=message):
        CPO(policy, env(), 5.0, **KWARGS)


def test_a_policy_that_is_trained_already():
    policy = PPO("MlpPolicy", Plain(), n_steps=16, batch_size=16, device="cpu", policy_kwargs=SMALL).policy
    with pytest.raises(TypeError, match=r"object of ActorCriticPolicy: pass one of .*set_parameters"):
        CPO(policy, env(), 5.0, **KWARGS)


@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        ({"net_arc": [8]}, r"policy_kwargs has 'net_arc', which the policy does not take: did you mean 'net_arch'\?"),
        ({"log_std": 1.0}, r"'log_std', which the policy does not take: did you mean 'log_std_init'\?"),
        ({"optimizer_class": "adam"}, r"optimizer_class='adam': pass the class, torch.optim.Adam"),
        ({"net_arch": 64}, r"net_arch=64: expected the units of each hidden layer, \[64, 64\], or"),
        ({"net_arch": {"pi": 64}}, r"net_arch=\{'pi': 64\}: expected"),
        ({"net_arch": "64"}, r"net_arch='64': expected"),
        ({"net_arch": [64.0]}, r"net_arch=\[64.0\]: expected"),
    ],
)
def test_arguments_of_policies(policy_kwargs, message):
    with pytest.raises(TypeError, match=message):
        CPO("MlpPolicy", env(), 5.0, **{**KWARGS, "policy_kwargs": policy_kwargs})


@pytest.mark.parametrize("net_arch", [[], (8,), {"pi": [8], "cvf": []}, None])
def test_layers_that_are_right(net_arch):
    CPO("MlpPolicy", env(), 5.0, **{**KWARGS, "policy_kwargs": {"net_arch": net_arch}})


def test_type_errors_of_a_policy_itself_stay_as_they_are():
    class Broken(MlpPolicy):
        def __init__(self, *args, **kwargs):
            raise TypeError("my own error")

    with pytest.raises(TypeError, match=r"^my own error$"):
        CPO(Broken, env(), 5.0, **KWARGS)


# Environments


@pytest.mark.parametrize("algorithm", [CPO, PDO, FPO, TRPO])
@pytest.mark.parametrize("wrap", [Six, lambda: DummyVecEnv([Six]), lambda: make_vec_env(Six, 2), lambda: env_of_six()])
def test_six_values_without_the_wrapper_name_it(algorithm, wrap):
    with pytest.raises(ValueError, match=r"6 values|six values|SixTupleWrapper") as raised:
        learn(wrap(), algorithm=algorithm)
    assert str(raised.value).count("SixTupleWrapper") == 1


def env_of_six():
    return CostWrapper(Six(), lambda: 1.0)


def test_six_values_of_an_id():
    gym.register("SixValues-v0", entry_point=Six)
    try:
        with pytest.raises(ValueError, match="SixTupleWrapper"):
            learn("SixValues-v0")
        # As the message says
        learn(SixTupleWrapper(gym.make("SixValues-v0", disable_env_checker=True).unwrapped))
    finally:
        del gym.registry["SixValues-v0"]


def test_environments_of_the_old_gym():
    with pytest.raises(ValueError, match="four are those of OpenAI Gym"):
        learn(Four())
    with pytest.raises(TypeError, match=r"reset\(self, \*, seed=None, options=None\)"):
        learn(OldReset())


def test_errors_of_the_environment_itself_stay_as_they_are():
    class Broken(Plain):
        def step(self, action):
            raise ValueError("my own error")

    with pytest.raises(ValueError, match=r"^my own error") as raised:
        learn(Broken())
    assert str(raised.value) == "my own error"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Plain, r"the environment is Plain, which makes one: call it, Plain\(\)"),
        ([Plain(), Plain()], "the environment is a list of 2"),
        (object(), "object of object, which does not derive from gymnasium.Env"),
    ],
    ids=["class", "list", "object"],
)
def test_what_is_no_environment(wrong, message):
    with pytest.raises(TypeError, match=message):
        CPO("MlpPolicy", wrong, 5.0, **KWARGS)


def test_ids():
    with pytest.raises(gym.error.NameNotFound, match="Did you mean: `SafePointCircle`"):
        CPO("MlpPolicy", "SafePointCirle-v0", 5.0, **KWARGS)


@pytest.mark.filterwarnings("ignore:.*latest versioned.*")
def test_an_id_without_its_version_is_the_latest():
    model = CPO("MlpPolicy", "SafePointGather", **KWARGS)
    assert model.env.num_envs > 1
    assert model.cost_limit is not None


# Costs and limits


@pytest.mark.parametrize(
    ("costs", "cost_limit", "message"),
    [
        ({"cost_a": 1.0, "cost_b": 2.0}, 5.0, r"cost_limit=\{'cost_a': limit, 'cost_b': limit\}"),
        ({"cost_a": 1.0, "cost_b": 2.0}, [5.0, 1.0], r"cost_limit=\{'cost_a': limit, 'cost_b': limit\}"),
        ({"cost_speed": 1.0}, {"cost_sped": 1.0}, r"Did you mean 'cost_speed'\?"),
        ({"cost": 1.0}, {"cost_speed": 1.0}, r"write its limit as a number"),
        ({"fuel": 1.0}, 1.0, "wrap the environment in safe_envs.CostWrapper"),
    ],
)
def test_costs_under_other_names(costs, cost_limit, message):
    with pytest.raises(KeyError, match=message) as raised:
        learn(env(lambda: costs), cost_limit)
    assert str(raised.value)[0] not in "'\""


def test_several_limits_of_one_cost():
    with pytest.raises(ValueError, match=r"cost_limit has 2 entries but .*one number, and so is its limit: cost_limit=5.0"):
        learn(env(), [5.0, 1.0])


def test_key_errors_are_not_printed_in_quotes():
    with pytest.raises(KeyError) as raised:
        learn(CostWrapper(Plain(), total_key="total"), 5.0)
    assert str(raised.value).startswith("total_key='total', but the info of")


def test_a_negative_limit_of_costs_that_are_not_negative():
    with pytest.warns(UserWarning, match=r"^cost_limit is -5, but none of the 16 costs of the first rollout was negative"):
        learn(env(), -5.0)
    with pytest.warns(UserWarning, match=r"^cost_limit\['cost_b'\] is -1, but none"):
        learn(env(lambda: {"cost_a": -1.0, "cost_b": 1.0}), {"cost_a": -2.0, "cost_b": -1.0})
    with pytest.warns(UserWarning, match=r"^cost_limit\[1\] is -1, but none"):
        learn(env(lambda: [-1.0, 1.0]), [-2.0, -1.0])


def test_a_negative_limit_of_negative_costs(recwarn):
    learn(env(lambda: -1.0), -5.0)
    learn(env(), 0.0)
    assert not [warning for warning in recwarn if "negative" in str(warning.message)]


def test_a_cost_tensor_with_gradients():
    with pytest.raises(TypeError, match=r"the cost 'cost' is no number: tensor\(1., requires_grad=True\).*detach"):
        learn(env(lambda: th.ones((), requires_grad=True)))
    with pytest.raises(ValueError, match=r"info\['cost'\] of environment 0 is tensor.*detach it"):
        learn(DummyVecEnv([lambda: TensorCost(Plain())]))


class TensorCost(gym.Wrapper):
    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {**info, "cost": th.ones((), requires_grad=True)}


# Files


@pytest.fixture
def ppo_file(tmp_path):
    PPO("MlpPolicy", Plain(), n_steps=16, batch_size=16, device="cpu", policy_kwargs=SMALL).save(tmp_path / "ppo.zip")
    return str(tmp_path / "ppo.zip")


@pytest.mark.parametrize("algorithm", [CPO, PDO, FPO, TRPO])
def test_a_file_of_ppo_is_a_warm_start(algorithm, ppo_file):
    with pytest.raises(
        ValueError, match=rf"not hold a model of {algorithm.__name__}.*set_parameters\(.*ppo.zip', exact_match=False\)"
    ):
        algorithm.load(ppo_file, env=env())
    model = algorithm("MlpPolicy", env(), cost_limit=5.0, **KWARGS)
    with pytest.raises(RuntimeError, match="pass exact_match=False"):
        model.set_parameters(ppo_file)
    model.set_parameters(ppo_file, exact_match=False)
    model.learn(16)


def test_files_of_our_other_algorithms(tmp_path):
    TRPO("MlpPolicy", Plain(), **KWARGS).save(tmp_path / "trpo")
    with pytest.raises(ValueError, match="does not hold a model of CPO"):
        CPO.load(tmp_path / "trpo", env=env(), cost_limit=3.0)
    CPO("MlpPolicy", env(), 5.0, **KWARGS).save(tmp_path / "cpo")
    with pytest.raises(ValueError, match="does not hold a model of PDO"):
        PDO.load(tmp_path / "cpo", env=env())


def test_a_model_without_environment(tmp_path):
    CPO("MlpPolicy", env(), 5.0, **KWARGS).save(tmp_path / "cpo")
    model = CPO.load(tmp_path / "cpo")
    with pytest.raises(ValueError, match="this CPO has no environment: pass env= to load, or call set_env first"):
        model.learn(16)
    with pytest.raises(ValueError, match="env is None"):
        evaluate_policy(model, model.get_env())
    with pytest.raises(TypeError, match=r"the string 'CartPole-v1': make it first, gym.make\('CartPole-v1'\)"):
        model.set_env("CartPole-v1")


def test_correct_programs_are_left_alone():
    model = CPO(policy="MlpPolicy", env=ScriptedEnv(), cost_limit=5.0, **KWARGS)
    model.learn(16)
    assert model.num_timesteps == 16


# What comes from all over: found by typing it


class ResetWithoutInfo(Plain):
    """Its observation has as many entries as gymnasium's ``reset`` has values."""

    def reset(self, *, seed=None, options=None):
        return super().reset()[0]


class Total(gym.Wrapper):
    def reset(self, **kwargs):
        self.total = 0.0
        return super().reset(**kwargs)

    def step(self, action):
        *rest, info = super().step(action)
        self.total += 1.0
        return *rest, {**info, "cost": self.total, "cost_total": self.total}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n_steps", "2048", "n_steps must be a whole number, not '2048'"),
        ("batch_size", True, "batch_size must be a whole number, not True"),
        ("cost_shaping", True, r"cost_shaping is True: expected an object, sb3_cpo.FailurePredictor\(horizon=20\)"),
        ("cost_estimator", "mean", "cost_estimator is 'mean': expected a function"),
        ("cost_limit", "lin_25_5", r"names of schedules are for the zoo: write .*LinearSchedule"),
        ("cost_limit", ["cost_a", "cost_b"], r"names and limits are a mapping: cost_limit=\{'cost_a': limit\}"),
        ("cost_limit", True, "cost_limit is True: expected a number"),
        ("cost_limit", float("nan"), "^cost_limit is nan: a limit must be a finite number"),
        ("cost_limit", lambda progress: None, "cost_limit is None at progress_remaining=1.0: a limit must be a finite"),
    ],
)
def test_more_values(name, value, message):
    with pytest.raises(ValueError, match=message):
        CPO("MlpPolicy", env(), **{"cost_limit": 1.0, **KWARGS, name: value})


def test_a_schedule_with_two_parameters():
    with pytest.raises(TypeError) as raised:
        CPO("MlpPolicy", env(), lambda step, progress: 1.0, **KWARGS)
    assert "the remaining progress" in raised.value.__notes__[0]


@pytest.mark.parametrize("policy", ["mlp", "MlpPolicies", "cnn", "MultiInput"])
def test_short_names_of_policies(policy):
    with pytest.raises(ValueError, match=r'did you mean "(Mlp|Cnn|MultiInput)Policy"'):
        CPO(policy, env(), 5.0, **KWARGS)


def test_a_reset_without_info():
    with pytest.raises(TypeError, match=r"reset of .* must return \(obs, info\).*it returned array"):
        learn(ResetWithoutInfo())


@pytest.mark.parametrize(
    ("value", "cost_limit", "message"),
    [
        (None, 5.0, r"info\['cost'\] of environment 0 is None: expected a number"),
        (np.zeros(2), 5.0, r"cost_limit has 1 entry but .*\(2,\).*A limit for each entry: cost_limit=\[limit, limit\]"),
        (np.zeros(2), {"cost": 5.0}, r"a named cost is one number but info\['cost'\].*\(2,\).*cost_limit=\[limit, limit\]"),
        (np.zeros(100), 5.0, r"shape \(100,\): expected shape \(\) \("),
    ],
)
def test_costs_of_other_shapes(value, cost_limit, message):
    class Costs(gym.Wrapper):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, {**info, "cost": value}

    with pytest.raises(ValueError, match=message):
        learn(Costs(Plain()), cost_limit)


@pytest.mark.parametrize(
    ("key", "cost_limit", "total_key"), [("cost", 5.0, "'cost'"), ("cost_total", {"cost_total": 5.0}, "'cost_total'")]
)
def test_a_running_total_is_noticed_in_training(key, cost_limit, total_key):
    with pytest.warns(UserWarning, match=rf"info\['{key}'\] never fell .*CostWrapper\(env, total_key={total_key}\)"):
        learn(Total(Plain()), cost_limit)


@pytest.mark.filterwarnings("error:.*running total.*")
def test_a_cost_in_every_step_and_a_total_that_is_told_of_are_none():
    learn(env())
    learn(CostWrapper(Total(Plain()), total_key="cost"))


def test_cost_functions():
    with pytest.raises(TypeError, match=r"cost_fn .* returned None: the cost 'cost' must be a number"):
        learn(env(lambda: None))
    with pytest.raises(KeyError) as raised:
        learn(CostWrapper(Plain(), lambda info: info["speed"]))
    assert "cost_fn was called with an info that holds nothing" in raised.value.__notes__[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("CartPole-v1", r"make it first, CostWrapper\(gym.make\('CartPole-v1'\)"),
        (Plain, r"call it, CostWrapper\(Plain\(\)"),
        (DummyVecEnv([Plain]), r"got DummyVecEnv: wrap each copy"),
    ],
    ids=["id", "class", "vec_env"],
)
def test_what_a_wrapper_cannot_wrap(wrong, message):
    with pytest.raises(TypeError, match=message):
        CostWrapper(wrong, lambda: 1.0)


def test_evaluations_of_the_wrong_things(tmp_path):
    model = CPO("MlpPolicy", env(), 5.0, **KWARGS)
    for evaluate in (
        lambda wrong: evaluate_policy(model, wrong),
        CostEvalCallback,
        lambda wrong: safety_report(model, wrong, 2),
    ):
        with pytest.raises(TypeError, match=r"the environment is Plain, which makes one: call it, Plain\(\)"):
            evaluate(Plain)
    with pytest.raises(TypeError, match="the model comes first, the environment second"):
        evaluate_policy(env(), model)
    for evaluate in (evaluate_policy, safety_report):
        with pytest.raises(TypeError, match=r"load it first, CPO.load\('cpo.zip'\)"):
            evaluate("cpo.zip", env())


def test_calls_of_learn_and_make_vec_env():
    model = CPO("MlpPolicy", env(), 5.0, **KWARGS)
    with pytest.raises(TypeError, match="total_timesteps must be a number of steps, not '1e5'"):
        model.learn("1e5")
    with pytest.raises(TypeError, match=r"the class CostEvalCallback: pass an object, CostEvalCallback\(...\)"):
        model.learn(16, callback=[CostEvalCallback])
    with pytest.raises(TypeError, match=r"a function that makes one, lambda: Plain\(...\)"):
        make_vec_env(Plain(), n_envs=2)
    with pytest.raises(TypeError, match="vec_env_cls is 'subproc': pass the class"):
        make_vec_env(Plain, n_envs=2, vec_env_cls="subproc")
    model.learn(1.6e1)
    assert model.num_timesteps == 16


def test_a_file_of_an_off_policy_algorithm(tmp_path):
    SAC("MlpPolicy", ScriptedEnv(), buffer_size=10, device="cpu", policy_kwargs={**SMALL}).save(tmp_path / "sac")
    with pytest.raises(ValueError, match=r"sac does not hold a model of CPO"):
        CPO.load(tmp_path / "sac", env=ScriptedEnv())


def test_other_names_of_what_a_cost_function_gets():
    with pytest.raises(TypeError, match=r"asks for 'done': name the parameters obs.* by position \(done is terminated here\)"):
        env(lambda done: float(done))
    with pytest.raises(TypeError, match=r"\(new_obs is next_obs here, act is action here\)"):
        env(lambda new_obs, act: 1.0)


def test_a_mapping_of_costs_in_one_key():
    class Costs(gym.Wrapper):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, {**info, "cost": {"speed": 1.0, "energy": 2.0}}

    with pytest.raises(ValueError, match=r"A key of info for each: CostWrapper\(env, lambda info: ") as raised:
        learn(Costs(Plain()))
    function = eval(str(raised.value).split("CostWrapper(env, ")[1].split(") (sb3_cpo")[0])
    learn(CostWrapper(Costs(Plain()), function), {"cost_speed": 5.0, "cost_energy": 5.0})


@pytest.mark.parametrize("name", ["n_steps", "batch_size"])
@pytest.mark.parametrize("value", [0, -5])
def test_numbers_from_which_others_follow(name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive, not {value}"):
        CPO("MlpPolicy", env(), 5.0, **{name: value})


def test_arguments_of_the_policy():
    with pytest.raises(TypeError, match=r"policy_kwargs is \[64, 64\]: expected a mapping"):
        CPO("MlpPolicy", env(), 5.0, policy_kwargs=[64, 64])
    with pytest.raises(TypeError, match=r"activation_fn='tanh': pass the class, torch.nn.Tanh"):
        CPO("MlpPolicy", env(), 5.0, policy_kwargs={"activation_fn": "tanh"})


def test_callbacks_that_are_none():
    model = CPO("MlpPolicy", env(), 5.0, **KWARGS)
    with pytest.raises(TypeError, match="must be an object of BaseCallback, or a list of such; a function can be the only"):
        model.learn(16, callback=[lambda locals_, globals_: True])
    with pytest.raises(TypeError, match="must be an object of BaseCallback, or a list of such, not 5"):
        model.learn(16, callback=5)
    model.learn(16, callback=lambda locals_, globals_: True)


@pytest.mark.parametrize(
    ("name", "message"),
    [("cost_limt", r"did you mean cost_limit\?"), ("n_epochs", "n_critic_updates"), ("cost_limits", "write cost_limit")],
)
def test_arguments_of_load_that_nobody_would_look_for(tmp_path, name, message):
    """SB3 would write them into the model, and the limit would be the old one."""
    CPO("MlpPolicy", env(), 5.0, **KWARGS).save(tmp_path / "cpo")
    with pytest.raises(TypeError, match=f"CPO has no argument '{name}': .*{message}"):
        CPO.load(tmp_path / "cpo", env=env(), **{name: 3.0})
    model = CPO.load(tmp_path / "cpo", env=env(), cost_limit=3.0, num_timesteps=0, tensorboard_log=None)
    assert model.current_cost_limit == [3.0]


def test_more_calls(tmp_path):
    model = CPO("MlpPolicy", env(), 5.0, **KWARGS)
    with pytest.raises(ValueError, match=r"the observation is a tuple.*the first of its entries"):
        model.predict_cost_values(Plain().reset())
    with pytest.raises(ValueError, match="n_envs must be positive, not 0"):
        make_vec_env(Plain, n_envs=0)
    with pytest.raises(ValueError, match="limit must be a finite number, got '10'"):
        ExceedanceCost(env(), "10", 0.1)
    report = safety_report(model, env(), 5, policies="deterministic")
    assert [policy.policy for policy in report.policies] == ["deterministic"]


def test_one_key_may_be_a_string():
    model = CPO("MlpPolicy", env(), 5.0, **KWARGS)
    assert evaluate_policy(model, env(), 2, cost_keys="cost")[2] == [4.0]
    assert check_cost_env(env(lambda: {"fuel": 2.0}), 2, cost_keys="fuel", verbose=0).costs[0].name == "fuel"
    assert CostMonitor(env(), cost_keys="cost").cost_keys == ("cost",)
    with pytest.raises(TypeError, match=r"object of CPO, which does not derive from gymnasium.Env"):
        check_cost_env(model)


class Repeat(gym.Wrapper):
    """As MaxAndSkipEnv: three steps of one, and the info of the last."""

    def step(self, action):
        for _ in range(3):
            step = self.env.step(action)
            if step[2] or step[3]:
                break
        return step


def learn_behind(wrap, caught):
    env = CostMonitor(ScriptedEnv(0, lengths=(12,), cost=lambda rank, t: 1.0))
    model = CPO("MlpPolicy", DummyVecEnv([lambda: wrap(env)]), 3.5, n_steps=24, batch_size=24, device="cpu").learn(24)
    return model.ep_cost_mean.item(), [warning for warning in caught if "repeats actions" in str(warning.message)]


def test_costs_that_a_wrapper_skips_are_missed(recwarn):
    cost, warned = learn_behind(Repeat, recwarn)
    assert cost == 4
    assert len(warned) == 1
    assert "an episode of 12 steps has cost 12 by its monitor, and 4 in the 4 steps" in str(warned[0].message)


def test_a_wrapper_that_adds_up_what_it_skips_is_no_mistake(recwarn):
    class Sum(Repeat):
        def step(self, action):
            *step, info = super().step(action)
            return *step, {**info, "cost": 3 * info["cost"]}

    assert learn_behind(Sum, recwarn) == (12, [])
    assert learn_behind(lambda env: env, recwarn) == (12, [])


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (lambda ended: (np.array([np.nan]), np.array([1.0])), "returned J = .nan."),
        (lambda ended: (3.0, 1.0), "returned J = 3.0"),
        (lambda ended: (np.zeros(2), np.zeros(2)), "of 1 cost"),
    ],
)
def test_an_estimator_of_another_form_is_told_what_is_expected(estimator, message):
    env = ScriptedEnv(0, lengths=(4,))
    model = CPO("MlpPolicy", env, 5.0, n_steps=16, batch_size=16, device="cpu", cost_estimator=estimator)
    with pytest.raises(ValueError, match=f"{message}.*it takes the EndedEpisodes"):
        model.learn(16)


def test_nothing_is_no_number_of_steps_no_environment_and_no_penalty(tmp_path):
    model = CPO("MlpPolicy", ScriptedEnv(0), 5.0, n_steps=16, batch_size=16, device="cpu")
    with pytest.raises(TypeError, match="total_timesteps must be a number of steps, not None"):
        model.learn(None)
    with pytest.raises(TypeError, match=r"CPO.resume needs an environment"):
        CPO.resume(tmp_path, None)
    with pytest.raises(ValueError, match="penalty_coef must be a number, or one per constraint"):
        PDO("MlpPolicy", ScriptedEnv(0), 5.0, penalty_coef={"cost": 1.0}, n_steps=16, batch_size=16)


def test_the_check_of_an_environment_says_what_a_wrapper_skips():
    env = DummyVecEnv([lambda: Repeat(CostMonitor(ScriptedEnv(0, lengths=(12,), cost=lambda rank, t: 1.0)))])
    report = check_cost_env(env, n_episodes=3)
    assert [problem for problem in report.problems if "repeats actions" in problem] == [
        problem for problem in report.problems if "has cost 12 by its monitor, and 4 in the 4 steps" in problem
    ]
    assert len(report.problems) == 1
