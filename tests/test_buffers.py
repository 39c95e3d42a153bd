import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_cpo.buffers import CostDictRolloutBuffer, CostRolloutBuffer, compute_gae

OBS, ACTION = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,))


def fill(buffer, rng, obs=None):
    """Random rewards, values and episodes; returns the arguments that end the rollout."""
    shape = (buffer.buffer_size, buffer.n_envs)
    starts = rng.random((buffer.buffer_size + 1, buffer.n_envs)) < 0.3
    values = rng.normal(size=shape).astype(np.float32)
    rewards = rng.normal(size=shape).astype(np.float32)
    for step in range(buffer.buffer_size):
        obs_step = np.zeros((buffer.n_envs, 2)) if obs is None else obs
        log_probs = th.as_tensor(values[step] + 1)
        buffer.add(obs_step, np.zeros((buffer.n_envs, 1)), rewards[step], starts[step], th.as_tensor(values[step]), log_probs)
    return rewards, values, starts


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (1.0, 0.5), (0.9, 1.0), (0.9, 0.0)])
def test_gae_equals_that_of_sb3_on_the_same_numbers(gamma, gae_lambda):
    rng = np.random.default_rng(0)
    sb3 = RolloutBuffer(50, OBS, ACTION, "cpu", gae_lambda, gamma, n_envs=4)
    rewards, values, starts = fill(sb3, rng)
    last_values = rng.normal(size=4).astype(np.float32)
    sb3.compute_returns_and_advantage(th.as_tensor(last_values), starts[-1])

    next_values = np.concatenate([values[1:], last_values[None]]) * ~starts[1:]
    advantages = compute_gae(rewards, values, next_values, starts[1:], gamma, gae_lambda)
    np.testing.assert_allclose(advantages, sb3.advantages, atol=1e-5)
    # Any trailing axes: each column by itself
    stack = [np.stack([array, 2 * array, -array], axis=-1) for array in (rewards, values, next_values)]
    expected = np.stack([sb3.advantages, 2 * sb3.advantages, -sb3.advantages], axis=-1)
    np.testing.assert_allclose(compute_gae(*stack, starts[1:], gamma, gae_lambda), expected, atol=1e-5)


def buffer_of_five_steps(cost_gamma):
    """A termination after step 1, a time limit after step 3, the rollout is cut after step 4."""
    buffer = CostRolloutBuffer(5, OBS, ACTION, "cpu", cost_gamma=cost_gamma, cost_gae_lambda=0.5)
    buffer.costs[:, 0, 0] = [1, 2, 3, 4, 5]
    buffer.cost_values[:, 0, 0] = [10, 20, 30, 40, 50]
    buffer.episode_ends[:, 0] = [False, True, False, True, False]
    return buffer


def test_cost_advantages_by_hand_where_the_time_limit_ends_the_costs():
    buffer = buffer_of_five_steps(cost_gamma=1.0)
    buffer.compute_cost_returns_and_advantages(np.array([20, 0, 40, 0, 7.0]).reshape(5, 1, 1))
    # cut: 5 + 7 - 50 = -38; limit: 4 - 40 = -36; 3 + 40 - 30 - 36/2 = -5; termination: 2 - 20 = -18; 1 + 20 - 10 - 18/2 = 2
    assert buffer.cost_advantages[:, 0, 0].tolist() == [2, -18, -5, -36, -38]
    # The targets are Monte-Carlo, whatever cost_gae_lambda: 1 + 2, 2 | 3 + 4, 4 | 5 + 7
    assert buffer.cost_returns[:, 0, 0].tolist() == [3, 2, 7, 4, 12]


def test_cost_advantages_by_hand_where_the_time_limit_is_bootstrapped():
    buffer = buffer_of_five_steps(cost_gamma=0.9)
    buffer.compute_cost_returns_and_advantages(np.array([20, 0, 40, 60, 7.0]).reshape(5, 1, 1))
    # cut: 5 + 6.3 - 50; limit: 4 + 54 - 40; 3 + 36 - 30 + 0.45 * 18; termination: 2 - 20; 1 + 18 - 10 - 0.45 * 18
    np.testing.assert_allclose(buffer.cost_advantages[:, 0, 0], [0.9, -18, 17.1, 18, -38.7], rtol=1e-12)
    # 1 + 0.9 * 2, 2 | 3 + 0.9 * 58, 4 + 54 | 5 + 6.3
    np.testing.assert_allclose(buffer.cost_returns[:, 0, 0], [2.8, 2, 55.2, 58, 11.3], rtol=1e-12)


@pytest.mark.parametrize("is_dict", [False, True])
def test_samples_keep_costs_beside_the_rewards_of_the_same_step(is_dict):
    rng = np.random.default_rng(1)
    buffer_class, space = (CostDictRolloutBuffer, spaces.Dict({"a": OBS})) if is_dict else (CostRolloutBuffer, OBS)
    buffer = buffer_class(6, space, ACTION, "cpu", n_envs=3, n_costs=2)
    fill(buffer, rng, {"a": np.zeros((3, 2))} if is_dict else None)
    buffer.advantages, buffer.returns = rng.normal(size=(2, 6, 3)).astype(np.float32)
    buffer.cost_advantages = np.stack([3 * buffer.advantages, buffer.advantages - 1], axis=-1)
    buffer.cost_returns = np.stack([buffer.returns + 5, -buffer.returns], axis=-1)
    n_samples = 0
    for batch in buffer.get(4):
        n_samples += len(batch.actions)
        expected = th.stack([3 * batch.advantages, batch.advantages - 1], dim=1)
        th.testing.assert_close(batch.cost_advantages, expected)
        th.testing.assert_close(batch.cost_returns, th.stack([batch.returns + 5, -batch.returns], dim=1))
        th.testing.assert_close(batch.old_log_prob, batch.old_values + 1)
    assert n_samples == 18


def test_a_buffer_is_used_again_after_its_samples_were_drawn():
    buffer = CostRolloutBuffer(6, OBS, ACTION, "cpu", n_envs=3, n_costs=2)
    for _ in range(2):
        buffer.reset()
        assert buffer.costs.shape == buffer.cost_values.shape == (6, 3, 2)
        assert not buffer.costs.any()
        assert not buffer.episode_ends.any()
        fill(buffer, np.random.default_rng(2))
        buffer.costs += 1
        buffer.episode_ends[:] = True
        assert len(next(buffer.get()).cost_returns) == 18


def test_without_constraints_the_samples_have_no_cost_columns():
    buffer = CostRolloutBuffer(6, OBS, ACTION, "cpu", n_envs=3, n_costs=0)
    fill(buffer, np.random.default_rng(3))
    buffer.compute_cost_returns_and_advantages(np.zeros((6, 3, 0)))
    assert next(buffer.get()).cost_advantages.shape == (18, 0)


def test_episodes_are_numbered_from_zero_environment_by_environment():
    """The pieces of an episode that the rollout cuts count as episodes, each with a random sign of its own."""
    buffer = CostRolloutBuffer(5, OBS, ACTION, "cpu", n_envs=2)
    fill(buffer, np.random.default_rng(4))
    buffer.episode_ends[:, 0] = [False, True, False, False, True]
    buffer.episode_ends[:, 1] = [True, False, False, True, False]
    # Of the first environment: 2 and 3 steps; of the second: 1, 3, and one that goes on
    assert next(buffer.get()).episodes.sort().values.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 3, 4]
    assert buffer.episodes.ravel().tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 3, 4]


@pytest.mark.parametrize("is_dict", [False, True])
def test_observations_on_one_axis_keep_their_shape(is_dict):
    image = spaces.Box(0, 255, (4, 3, 1), np.uint8)
    buffer_class, space = (
        (CostDictRolloutBuffer, spaces.Dict({"a": OBS, "b": image})) if is_dict else (CostRolloutBuffer, image)
    )
    buffer = buffer_class(6, space, ACTION, "cpu", n_envs=2)
    observations = buffer.observations if is_dict else {"b": buffer.observations}
    for index in range(12):
        observations["b"][index // 2, index % 2] = index
    flat = buffer.flat_observations()
    if is_dict:
        assert flat["a"].shape == (12, 2)
    flat_image = flat["b"] if is_dict else flat
    np.testing.assert_array_equal(flat_image, np.broadcast_to(np.arange(12).reshape(12, 1, 1, 1), (12, 4, 3, 1)))
