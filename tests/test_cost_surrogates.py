import numpy as np
import pytest
import torch as th
from episode_gradients import assert_signs_measure_episodes, balanced_signs, watch_gradients
from toy_envs import RiskyEnv, ScriptedEnv, vec_env

from sb3_cpo import CPO, cost_surrogates
from sb3_cpo.fisher import flat_grad

KWARGS = {"n_steps": 32, "batch_size": 32, "device": "cpu", "seed": 0}


def test_ratios_of_earlier_rollouts_are_truncated_and_those_of_this_one_are_not():
    model = CPO("MlpPolicy", vec_env(lambda rank: RiskyEnv(), 4), 2.0, n_cost_rollouts=2, **KWARGS)
    model.learn(2 * 128)
    data = model._recent[0]
    ones = data._replace(advantages=th.ones_like(data.advantages))
    no_signs = th.zeros(0, len(data.actions))
    with th.no_grad():
        log_prob = model.policy.get_distribution(data.observations).log_prob(data.actions)
        # A ratio of e^5 in every sample of the earlier rollout, of 20 in this one
        earlier = cost_surrogates.surrogates_of_earlier(model.policy, ones._replace(old_log_prob=log_prob - 5.0), no_signs)
        present = cost_surrogates.surrogates_of(ones, th.full_like(log_prob, 20.0), no_signs)
    np.testing.assert_allclose([earlier.item(), present.item()], [10, 20], rtol=1e-5)


def test_gradients_on_earlier_rollouts_are_taken_one_rollout_at_a_time():
    """Same values and gradients as through one graph, with signs and without; the graph itself is gone."""
    model = CPO("MlpPolicy", vec_env(lambda rank: RiskyEnv(n_costs=2), 4), [2.0, 3.0], n_cost_rollouts=2, **KWARGS)
    model.learn(3 * 128)
    batch, params = model._recent[0], list(model.policy.mlp_extractor.policy_net.parameters())
    signs = cost_surrogates.random_signs(batch.episodes, 3, th.Generator().manual_seed(0))
    direct = cost_surrogates.surrogates_of_earlier(model.policy, batch, signs)
    linear = cost_surrogates.linear_surrogates_of_earlier(model.policy, batch, signs, params)
    assert direct.shape == (4, 2)
    th.testing.assert_close(linear, direct)
    for ours, reference in zip(linear.flatten(), direct.flatten(), strict=True):
        th.testing.assert_close(flat_grad(ours, params), flat_grad(reference, params))
    assert flat_grad(direct[0, 0], params).norm() > 1e-4


# Signs of three rollouts, so that the products of any two of them cancel
FLIPS = ((1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1))


@pytest.mark.parametrize(
    ("n_envs", "n_rollouts", "n_costs", "kwargs"),
    [
        (2, 1, 1, {}),
        (1, 1, 2, {}),
        (2, 3, 2, {}),
        (1, 2, 1, {}),
        (2, 1, 1, {"cost_gamma": 0.9}),
        (2, 2, 1, {"sub_sampling_factor": 2}),
    ],
)
def test_random_signs_measure_what_single_episodes_contribute(n_envs, n_rollouts, n_costs, kwargs, monkeypatch):
    """In the mean over all balanced draws, exactly. Six episodes in a rollout of two environments, five in one of one."""
    asked = []

    def all_signs(episodes, n_draws, generator):
        flips = FLIPS[len(asked) % n_rollouts]
        asked.append(n_draws)
        draws = balanced_signs(int(episodes.max()) + 1)
        return th.cat([flip * draws for flip in flips])[:, episodes]

    n_steps = 12 if n_envs == 2 else 20
    model = CPO(
        "MlpPolicy", vec_env(lambda rank: RiskyEnv(n_costs=n_costs), n_envs), [1.0] * n_costs, n_steps=n_steps,
        batch_size=n_steps, seed=0, n_cost_rollouts=n_rollouts, n_critic_updates=1, policy_kwargs={"net_arch": [3]},
        device="cpu", **kwargs,
    )  # fmt: skip
    model.learn((n_rollouts - 1) * n_steps * n_envs)
    monkeypatch.setattr(cost_surrogates, "random_signs", all_signs)
    seen = watch_gradients(model, monkeypatch.setattr)
    model.learn(n_steps * n_envs, reset_num_timesteps=False)
    assert len(asked) == len(seen.contributions) == n_rollouts
    assert len(seen.draws) == 80
    assert all(len(gradients) == (6 if n_envs == 2 else 5) for gradients in seen.contributions)
    assert_signs_measure_episodes(seen, atol=1e-4)


def test_episodes_that_thinning_leaves_no_sample_of_have_no_sign():
    """Of two steps each, and a third of the steps: not every one of twelve episodes is left."""
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,)), 1)
    model = CPO("MlpPolicy", env, 2.0, sub_sampling_factor=3, **{**KWARGS, "n_steps": 24, "batch_size": 24}).learn(24)
    (batch,) = model._recent
    assert 1 < batch.n_episodes <= 8
    np.testing.assert_array_equal(batch.episodes.unique(), np.arange(batch.n_episodes))
    assert cost_surrogates.count_unpaired([batch]) == batch.n_episodes % 2


@pytest.mark.parametrize("n_episodes", [1, 2, 5, 8])
def test_signs_are_balanced_and_each_episode_has_one(n_episodes):
    episodes = th.arange(n_episodes).repeat_interleave(3)
    signs = cost_surrogates.random_signs(episodes, 200, th.Generator().manual_seed(0)).view(200, n_episodes, 3)
    assert th.equal(signs, signs[:, :, :1].expand_as(signs))
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert set(signs[:, :, 0].sum(dim=1).tolist()) == ({-1.0, 1.0} if n_episodes % 2 else {0.0})
    # No episode has one sign more often than the other, and no two of them the same sign more often than any two
    assert signs[:, :, 0].mean(dim=0).abs().max() < 0.25
    products = signs[:, :, 0].T @ signs[:, :, 0] / 200
    together = -1 / n_episodes if n_episodes % 2 else -1 / (n_episodes - 1)
    assert (products - together)[~th.eye(n_episodes, dtype=th.bool)].abs().sum() <= 0.25 * n_episodes * (n_episodes - 1)
    assert cost_surrogates.random_signs(episodes, 0, th.Generator()).shape == (0, 3 * n_episodes)


def test_the_newest_rollouts_that_hold_enough_episodes():
    batches = [cost_surrogates.CostBatch(*[None] * 6, n_episodes=number) for number in (500, 30, 60, 100, 45)]

    def numbers(n_episodes):
        return [batch.n_episodes for batch in cost_surrogates.newest_with(n_episodes, batches)]

    assert numbers(1) == numbers(45) == [45]
    assert numbers(46) == numbers(145) == [100, 45]
    assert numbers(236) == [500, 30, 60, 100, 45]
    assert numbers(10_000) == [500, 30, 60, 100, 45]
