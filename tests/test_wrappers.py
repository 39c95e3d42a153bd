"""A user's own environment with a cost."""

import gymnasium as gym
import numpy as np
import pytest

from safe_envs import CostWrapper, SixTupleWrapper


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
