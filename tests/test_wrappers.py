"""A user's own environment with a cost."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from safe_envs import CostWrapper, ExceedanceCost, SixTupleWrapper


class Counter(gym.Env):
    """Counts its steps; the action is added to the observation."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = 10.0
        return np.array([self.position], dtype=np.float32), {}

    def step(self, action):
        self.position += float(action[0])
        return np.array([self.position], dtype=np.float32), 1.0, False, False, {"speed": abs(float(action[0]))}


class SixTuple(Counter):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, 3, terminated, truncated, info


def step(cost_fn, action=0.5):
    env = CostWrapper(Counter(), cost_fn)
    env.reset(seed=0)
    return env.step(np.array([action], dtype=np.float32))


def test_array_of_costs_stays_an_array():
    info = step(lambda obs, action, next_obs, info: np.array([1, 2, 3]))[4]
    assert info["cost"].tolist() == [1.0, 2.0, 3.0]
    assert info["cost"].dtype == np.float64


def test_mapping_is_merged_key_by_key():
    info = step(lambda obs, action, next_obs, info: {"cost_speed": info["speed"], "cost_height": True})[4]
    assert info == {"speed": 0.5, "cost_speed": 0.5, "cost_height": 1.0}


@pytest.mark.parametrize(
    ("cost", "error", "message"),
    [
        (None, TypeError, "'cost' must be a number"),
        ("much", TypeError, "'much'"),
        (np.zeros((2, 2)), TypeError, "one-dimensional"),
        ([], TypeError, "number"),
        ({}, ValueError, "empty mapping"),
        (np.nan, ValueError, "not finite: nan"),
        ({"cost_speed": np.inf}, ValueError, "'cost_speed' is not finite"),
    ],
)
def test_bad_costs_are_named(cost, error, message):
    with pytest.raises(error, match=message):
        step(lambda obs, action, next_obs, info: cost)


def test_cost_function_must_be_callable():
    with pytest.raises(TypeError, match="cost_fn must be callable"):
        CostWrapper(Counter(), 3.0)


def test_six_values_become_five():
    env = SixTupleWrapper(SixTuple())
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(np.array([0.5], dtype=np.float32))
    assert (float(observation[0]), reward, terminated, truncated) == (10.5, 1.0, False, False)
    assert info == {"speed": 0.5, "cost": 3.0}
    assert type(info["cost"]) is float


def test_five_values_are_an_error():
    env = SixTupleWrapper(Counter())
    env.reset(seed=0)
    with pytest.raises(ValueError, match="returned 5 values"):
        env.step(np.array([0.5], dtype=np.float32))
    with pytest.raises(TypeError, match="SixTupleWrapper wraps"):
        SixTupleWrapper(object())


def test_wrapped_environments_can_be_made_from_their_spec():
    def limit(obs, action, next_obs, info):
        return float(abs(next_obs[0]) > 0.05)

    env = CostWrapper(gym.make("CartPole-v1"), limit)
    twin = gym.make(env.spec)
    for one in (env, twin):
        one.reset(seed=3)
    for _ in range(8):
        first, second = env.step(1), twin.step(1)
        assert np.array_equal(first[0], second[0])
        assert first[4] == second[4]
    assert first[4]["cost"] == 1.0


class Falling(Counter):
    """Terminates in its third step, or is cut off in its fifth; the reward is twice the number of the step."""

    def __init__(self, falls=True):
        self.falls = falls

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return super().reset(seed=seed)

    def step(self, action):
        observation, _, _, _, info = super().step(action)
        self.t += 1
        return observation, 2.0 * self.t, self.falls and self.t == 3, self.t == 5, info


def play(env, n_steps=3, action=0.5):
    """The infos of some steps after a reset."""
    env.reset(seed=0)
    return [env.step(np.array([action], dtype=np.float32))[4] for _ in range(n_steps)]


def costs_of(cost_fn, env=None, **kwargs):
    return [info["cost"] for info in play(CostWrapper(env or Falling(), cost_fn, **kwargs))]


def fall(terminated):
    return float(terminated)


def test_spec_without_a_function_goes_through_json():
    env = CostWrapper(gym.make("CartPole-v1"), terminal_cost={"cost_fall": 1.0}, cost_limit={"cost_fall": 0.1})
    twin = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert twin.get_wrapper_attr("cost_limit") == {"cost_fall": 0.1}
    twin.reset(seed=0)
    assert twin.step(0)[4]["cost_fall"] == 0.0


# The end of an episode, running totals, limits


def test_terminal_cost_is_for_falls_and_not_for_time_limits():
    assert costs_of(None, terminal_cost=5.0) == [0.0, 0.0, 5.0]
    assert [info["cost"] for info in play(CostWrapper(Falling(False), terminal_cost=5.0), 5)] == [0.0] * 5
    assert costs_of(lambda reward: reward, terminal_cost=-1.0) == [2.0, 4.0, 5.0]
    # The environment's own cost is kept
    inner = CostWrapper(Falling(), lambda reward: reward)
    assert costs_of(None, inner, terminal_cost=5.0) == [2.0, 4.0, 11.0]


def test_terminal_cost_of_named_costs():
    env = CostWrapper(Falling(), lambda reward: {"cost_a": reward}, terminal_cost={"cost_a": 1.0, "cost_fall": 3.0})
    infos = play(env)
    assert [info["cost_a"] for info in infos] == [2.0, 4.0, 7.0]
    assert [info["cost_fall"] for info in infos] == [0.0, 0.0, 3.0]
    array = CostWrapper(Falling(), lambda reward: np.array([reward, 0.0]), terminal_cost={"cost": np.array([0.0, 1.0])})
    assert play(array)[2]["cost"].tolist() == [6.0, 1.0]


@pytest.mark.parametrize(
    ("cost_fn", "terminal_cost", "error", "message"),
    [
        (lambda: {"cost_a": 1.0}, 2.0, ValueError, "terminal_cost=2.0 is one number, but the costs are named cost_a"),
        (lambda: np.ones(2), 2.0, ValueError, r"terminal_cost 2.0 has shape \(\), the cost 'cost' \(2,\)"),
        (lambda: 1.0, np.nan, ValueError, "not finite"),
        (lambda: 1.0, {"cost": "much"}, TypeError, "'much'"),
        (None, 0.0, ValueError, "nothing to do"),
    ],
)
def test_mistakes_with_terminal_costs_are_named(cost_fn, terminal_cost, error, message):
    with pytest.raises(error, match=message):
        costs_of(cost_fn, terminal_cost=terminal_cost)


class Total(Counter):
    """A running total in ``info``: 0.5, 1, 1.5, ... since the last reset, or since the beginning of time."""

    def __init__(self, forgets=True, says_so=True):
        self.forgets, self.says_so, self.total = forgets, says_so, np.zeros(1)

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        if self.forgets:
            self.total[:] = 0.0
        return observation, {"total": self.total} if self.says_so else info

    def step(self, action):
        observation, *rest, info = super().step(action)
        self.total += info["speed"]  # in place
        return observation, *rest, {**info, "total": self.total}


@pytest.mark.parametrize(("forgets", "says_so"), [(True, True), (True, False), (False, True)])
def test_running_total_becomes_the_increase_in_each_step(forgets, says_so):
    env = CostWrapper(Total(forgets, says_so), total_key="total")
    for _ in range(3):
        assert [info["cost"].tolist() for info in play(env)] == [[0.5]] * 3


def test_running_total_may_be_a_number_and_must_be_there():
    class Count(Falling):
        def step(self, action):
            *rest, _ = super().step(action)
            return *rest, {"total_intrusions": self.t**2}

    infos = play(CostWrapper(Count(), total_key="total_intrusions", terminal_cost=1.0))
    assert [info["cost"] for info in infos] == [1.0, 3.0, 6.0]
    assert type(infos[0]["cost"]) is float
    with pytest.raises(KeyError, match=r"total_key='sum', but the info of .* holds 'total_intrusions'"):
        play(CostWrapper(Count(), total_key="sum"))
    with pytest.raises(ValueError, match="not both"):
        CostWrapper(Count(), fall, total_key="total_intrusions")


def test_limit_is_carried_where_an_algorithm_finds_it():
    named = {"cost_speed": 5.0}
    env = gym.wrappers.TimeLimit(CostWrapper(gym.make("CartPole-v1"), fall, cost_limit=0.25), 30)
    assert env.get_wrapper_attr("cost_limit") == 0.25
    assert gym.make(env.spec).get_wrapper_attr("cost_limit") == 0.25
    assert DummyVecEnv([lambda: CostWrapper(Falling(), fall, cost_limit=named)] * 2).get_attr("cost_limit") == [named] * 2
    # A limit alone, for an environment that tells its cost already
    limited = CostWrapper(SixTupleWrapper(SixTuple()), cost_limit=9.0)
    assert limited.cost_limit == 9.0
    assert [info["cost"] for info in play(limited)] == [3.0] * 3
    # The limit of a cost that was replaced does not hold for the new one
    assert CostWrapper(limited, fall).get_wrapper_attr("cost_limit") is None


@pytest.mark.parametrize("limit", [lambda progress: 5.0 * progress, {"cost": lambda progress: 5.0 * progress}])
def test_a_limit_that_changes_is_an_argument_of_the_algorithm(limit):
    """A worker of SubprocVecEnv that is asked for a lambda dies."""
    with pytest.raises(TypeError, match="to the algorithm"):
        CostWrapper(gym.make("CartPole-v1"), fall, cost_limit=limit)


# The probability of an expensive episode


class Scripted(gym.Env):
    """Episodes with these costs, one after the other."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, episodes, key="cost"):
        self.episodes, self.key, self.index = episodes, key, -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.index += 1
        self.costs = list(self.episodes[self.index % len(self.episodes)])
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        info = {self.key: self.costs.pop(0)}
        return np.zeros(1, dtype=np.float32), 0.0, not self.costs, False, info


def exceedances(env, key="cost_exceeded"):
    env.reset()
    values, is_over = [], False
    while not is_over:
        _, _, is_over, _, info = env.step(np.zeros(1, dtype=np.float32))
        values.append(info[key])
    return values


def test_exceedance_is_one_in_the_step_in_which_the_sum_first_exceeds_the_limit():
    episodes = [(1, 1, 1, 1), (2, 0, 0), (2, 1), (0, 0, 5, 5), (3, -3, 3, 0), (9,)]
    env = ExceedanceCost(Scripted(episodes), limit=2.0)
    expected = [[0, 0, 1, 0], [0, 0, 0], [0, 1], [0, 0, 1, 0], [1, 0, 0, 0], [1]]
    assert [exceedances(env) for _ in episodes] == expected
    # The mean of its sums is the share of the episodes that were too expensive
    assert np.mean([sum(values) for values in expected]) == np.mean([sum(costs) > 2.0 for costs in episodes])
    # Where costs are negative, an episode whose sum comes back counts, too
    assert exceedances(ExceedanceCost(Scripted([(3, -3)]), limit=2.0)) == [1, 0]


def test_exceedance_leaves_the_cost_and_knows_its_limit():
    env = ExceedanceCost(Scripted([(1.5, 1.5)], "cost_b"), 2.0, probability=0.1, key="too_much", cost_key="cost_b")
    env.reset()
    assert env.step(np.zeros(1))[4] == {"cost_b": 1.5, "too_much": 0.0}
    assert env.step(np.zeros(1))[4] == {"cost_b": 1.5, "too_much": 1.0}
    assert env.get_wrapper_attr("cost_limit") == {"too_much": 0.1}
    task = gym.make("safe_envs:SafePointCircle-v0")
    assert ExceedanceCost(task, 10.0).get_wrapper_attr("cost_limit") == 5.0
    twin = gym.make(ExceedanceCost(task, 10.0, 0.2).spec)
    assert twin.get_wrapper_attr("limit") == 10.0
    assert twin.get_wrapper_attr("cost_limit") == {"cost_exceeded": 0.2}


def test_two_exceedances_stand_beside_each_other():
    inner = ExceedanceCost(Scripted([(1, 1, 1)]), limit=0.5)
    env = ExceedanceCost(inner, limit=1.5, key="cost_exceeded_more")
    assert exceedances(env, "cost_exceeded_more") == [0, 1, 0]
    assert exceedances(env) == [1, 0, 0]
    with pytest.raises(ValueError, match="already holds 'cost_exceeded'"):
        exceedances(ExceedanceCost(inner, limit=1.0))


def test_mistakes_with_exceedances_are_named():
    with pytest.raises(ValueError, match="finite"):
        ExceedanceCost(Counter(), np.inf)
    with pytest.raises(ValueError, match=r"probability must lie in \[0, 1\], got 5"):
        ExceedanceCost(Counter(), 1.0, probability=5)
    with pytest.raises(KeyError, match=r"cost_key='cost', but the info of .* holds 'speed'"):
        play(ExceedanceCost(Counter(), 1.0))
    with pytest.raises(ValueError, match="sums one number"):
        play(ExceedanceCost(CostWrapper(Counter(), lambda: np.ones(2)), 1.0))


def test_an_algorithm_can_constrain_the_probability():
    from sb3_cpo import CPO

    def make():
        costly = CostWrapper(gym.make("CartPole-v1", max_episode_steps=20), lambda next_obs: float(abs(next_obs[2]) > 0.02))
        return ExceedanceCost(costly, limit=3.0)

    model = CPO("MlpPolicy", DummyVecEnv([make]), cost_limit={"cost_exceeded": 0.1}, n_steps=256, batch_size=64, device="cpu")
    model.learn(256)
    assert 0.0 < model.ep_cost_mean[0] <= 1.0
