"""What a cost function may ask for, and how it reaches specs and processes."""

import copy
import functools
import pickle
import threading

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import SubprocVecEnv
from test_wrappers import Counter, Falling, costs_of, fall

from safe_envs import CostWrapper
from safe_envs.cost_function import match_arguments


def test_cost_function_sees_both_observations_the_action_and_the_info():
    calls = []

    def cost_fn(obs, action, next_obs, info):
        calls.append((float(obs[0]), float(action[0]), float(next_obs[0]), info["speed"]))
        return next_obs[0] - obs[0]

    env = CostWrapper(Counter(), cost_fn)
    env.reset()
    costs = [env.step(np.array([action], dtype=np.float32))[4]["cost"] for action in (0.5, -0.25)]
    env.reset()
    costs.append(env.step(np.array([1.0], dtype=np.float32))[4]["cost"])
    assert calls == [(10.0, 0.5, 10.5, 0.5), (10.5, -0.25, 10.25, 0.25), (10.0, 1.0, 11.0, 1.0)]
    assert costs == [0.5, -0.25, 1.0]
    assert all(type(cost) is float for cost in costs)


def test_cost_function_sees_the_old_observation_of_an_environment_that_changes_it_in_place():
    class InPlace(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            self.x = np.zeros(1)
            return self.x, {}

        def step(self, action):
            self.x += 1
            return self.x, 0.0, False, False, {}

    env = CostWrapper(InPlace(), lambda obs, action, next_obs, info: next_obs[0] - obs[0])
    env.reset()
    assert [env.step(0)[4]["cost"] for _ in range(2)] == [1, 1]


def four_by_position(before, move, after, facts):
    return float(after[0] - before[0]) + facts["speed"] + float(move[0])


def four_and_a_reward(before, move, after, facts, reward):
    return four_by_position(before, move, after, facts) + reward


def keywords_only(*, reward, truncated, weight=10.0):
    return weight * reward + truncated


def everything(**values):
    assert set(values) == {"obs", "action", "next_obs", "info", "reward", "terminated", "truncated"}
    return values["reward"] + 100.0 * values["terminated"]


class Lava:
    """A cost function that belongs to something: counts its calls and cannot be copied or pickled."""

    def __init__(self):
        self.lock = threading.Lock()
        self.n_calls = 0

    def cost(self, next_obs, terminated):
        with self.lock:
            self.n_calls += 1
            return float(next_obs[0]) + terminated

    __call__ = cost


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def blind_decorator(function):
    return lambda *args, **kwargs: function(*args, **kwargs)


@pytest.mark.parametrize(
    ("cost_fn", "expected"),
    [
        (fall, [0.0, 0.0, 1.0]),
        (lambda: 7.0, [7.0, 7.0, 7.0]),
        (lambda reward: reward, [2.0, 4.0, 6.0]),
        (lambda info, obs: obs[0] + info["speed"], [10.5, 11.0, 11.5]),
        (lambda next_obs, obs: next_obs[0] - obs[0], [0.5, 0.5, 0.5]),
        (lambda action, *, reward: reward * action[0], [1.0, 2.0, 3.0]),
        (lambda terminated, speed_limit=3: speed_limit + terminated, [3.0, 3.0, 4.0]),
        (lambda _, action, next_obs, info: next_obs[0], [10.5, 11.0, 11.5]),
        (four_by_position, [1.5, 1.5, 1.5]),
        (four_and_a_reward, [3.5, 5.5, 7.5]),
        (lambda s, a, s2, i, **kwargs: sum((s2[0], kwargs["reward"], len(kwargs))), [15.5, 18.0, 20.5]),
        (keywords_only, [20.0, 40.0, 60.0]),
        (everything, [2.0, 4.0, 106.0]),
        (lambda *args: len(args), [4.0, 4.0, 4.0]),
        (functools.partial(keywords_only, weight=1.0), [2.0, 4.0, 6.0]),
        (decorated(fall), [0.0, 0.0, 1.0]),
        (blind_decorator(four_by_position), [1.5, 1.5, 1.5]),
        (Lava().cost, [10.5, 11.0, 12.5]),
        (Lava(), [10.5, 11.0, 12.5]),
    ],
)
def test_cost_function_gets_what_its_parameters_name(cost_fn, expected):
    assert costs_of(cost_fn) == expected


@pytest.mark.parametrize(
    ("cost_fn", "message"),
    [
        (lambda state, reward: 0.0, "asks for 'state'"),
        (lambda obs, velocity: 0.0, "asks for 'velocity'"),
        (lambda observation, action, next_observation, reward: 0.0, "asks for 'observation', 'next_observation'"),
        (lambda s, a, s2, i, done: 0.0, "asks for 'done': name the parameters obs, action"),
        (lambda s, *, reward: 0.0, "asks for 's'"),
        # By position, these would get the info: a cost of 1 in every step
        (lambda s, a, s2, done: float(bool(done)), r"asks for 's', 'a', 's2', 'done'.*done is terminated here"),
        (lambda s, a, r, s2: 0.0, "r is reward here, s2 is next_obs here"),
        (lambda *, penalty: 0.0, "asks for 'penalty'"),
        (lambda info, *rest: 0.0, "another order"),
    ],
)
def test_a_parameter_that_cannot_be_filled_is_named_when_the_wrapper_is_made(cost_fn, message):
    with pytest.raises(TypeError, match=message):
        CostWrapper(Falling(), cost_fn)


def test_functions_without_a_signature_get_the_four_by_position():
    class Opaque:
        __signature__ = "none"

        def __call__(self, *args):
            return len(args)

    assert costs_of(Opaque()) == [4.0, 4.0, 4.0]
    assert match_arguments(max).is_positional


def test_observations_are_copied_for_those_who_ask_for_them_only():
    class Uncopyable(np.ndarray):
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

    class Env(Falling):
        def step(self, action):
            observation, *rest = super().step(action)
            return observation.view(Uncopyable), *rest

    assert costs_of(lambda next_obs: next_obs[0], Env()) == [10.5, 11.0, 11.5]
    with pytest.raises(AssertionError, match="copied"):
        costs_of(lambda obs: obs[0], Env())


def test_function_is_neither_copied_nor_pickled_on_the_way_through_gymnasium():
    lava = Lava()
    env = gym.wrappers.TimeLimit(CostWrapper(gym.make("CartPole-v1"), lava.cost, terminal_cost=2.0), 30)
    twin = gym.make(env.spec)
    assert twin.get_wrapper_attr("cost_fn").__self__ is lava
    assert twin.spec == env.spec
    twin.reset(seed=0)
    assert "cost" in twin.step(0)[4]
    assert lava.n_calls == 1
    # What is asked through a pipe gets an answer, which says so when it is called
    spec = pickle.loads(pickle.dumps(env.spec))
    other = gym.make(spec)
    other.reset(seed=0)
    with pytest.raises(TypeError, match=r"Lava.cost.*did not come with the environment's spec"):
        other.step(0)


def test_specs_with_lambdas_can_be_pickled():
    env = CostWrapper(gym.make("CartPole-v1"), lambda next_obs: float(next_obs[0] > -1.0))
    twin = gym.make(pickle.loads(pickle.dumps(env.spec)))
    twin.reset(seed=0)
    assert twin.step(0)[4]["cost"] == 1.0
    copy.deepcopy(env.spec)


# Processes


def fast(obs, action, next_obs, info):
    return 10.0 * info["speed"]


def make_fast():
    return CostWrapper(Falling(), fast, cost_limit=3.0)


def make_with_lambda():
    return CostWrapper(gym.make("CartPole-v1"), lambda reward, terminated: 5.0 * reward + terminated, cost_limit=3.0)


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_processes_compute_costs_and_answer(start_method):
    weight = 5.0
    makers = [
        make_fast,
        lambda: CostWrapper(Falling(), lambda action, reward: weight + 0.0 * reward, cost_limit=3.0),
    ]
    venv = SubprocVecEnv(makers, start_method=start_method)
    try:
        venv.reset()
        for _ in range(4):
            _, _, _, infos = venv.step(np.full((2, 1), 0.5, dtype=np.float32))
            assert [info["cost"] for info in infos] == [5.0, 5.0]
        assert venv.get_attr("cost_limit") == [3.0, 3.0]
        assert venv.has_attr("cost_limit")
    finally:
        venv.close()


def test_processes_tell_their_spec_though_a_function_cannot_be_pickled():
    lava = Lava()
    makers = [make_with_lambda, lambda: CostWrapper(gym.make("CartPole-v1"), lava.cost)]
    venv = SubprocVecEnv(makers[:1], start_method="forkserver")
    try:
        venv.reset()
        assert venv.get_attr("spec")[0].id == "CartPole-v1"
        assert venv.step(np.zeros(1, dtype=int))[3][0]["cost"] == 5.0
    finally:
        venv.close()

    def make_lava():
        return CostWrapper(gym.make("CartPole-v1"), Lava().cost)

    venv = SubprocVecEnv([make_lava], start_method="forkserver")
    try:
        venv.reset()
        assert venv.get_attr("spec")[0].id == "CartPole-v1"
        assert "cost" in venv.step(np.zeros(1, dtype=int))[3][0]
    finally:
        venv.close()
