import numpy as np
import pytest
import torch as th
from toy_envs import RiskyEnv, ScriptedEnv, vec_env

from sb3_cpo import CPO, cost_surrogates, trust_region_algorithm
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


@pytest.mark.parametrize(
    ("n_rollouts", "n_costs", "kwargs"),
    [(1, 1, {}), (3, 2, {}), (1, 1, {"cost_gamma": 0.9}), (2, 1, {"sub_sampling_factor": 3})],
)
def test_random_signs_measure_what_single_episodes_contribute(n_rollouts, n_costs, kwargs, monkeypatch):
    """
    With balanced signs, in a rollout of n episodes two of which have the same sign by r less than by chance,
    E[b_z b_z'] = (1 - r) sum_e b_e b_e' + r b b', and the sum of that over rollouts; the reward's is of the last one only.
    """
    seen = {}

    def spy(params, evaluate, violation, target_kl, **kwargs):
        seen["params"], seen["probe"] = params, kwargs["probe_noise"]()
        seen["draws"] = [
            th.stack([flat_grad(output, params) for output in (objective, *costs)]).double()
            for objective, costs in zip(seen["probe"].objective, seen["probe"].costs, strict=True)
        ]
        return step(params, evaluate, violation, target_kl, **kwargs)

    step = trust_region_algorithm.trust_region_step
    monkeypatch.setattr(trust_region_algorithm, "trust_region_step", spy)
    model = CPO(
        "MlpPolicy", vec_env(lambda rank: RiskyEnv(n_costs=n_costs), 2), [1.0] * n_costs, n_steps=24, batch_size=48, seed=0,
        n_noise_draws=400, n_cost_rollouts=n_rollouts, n_critic_updates=1, policy_kwargs={"net_arch": [3]}, device="cpu",
        **kwargs,
    )  # fmt: skip
    contributions = []
    take_step = model._trust_region_step

    def by_episodes(rollout, batches, violation, **kwargs):
        samples, params = rollout.samples, rollout.actor_params
        standardised = (samples.advantages - samples.advantages.mean()) / (samples.advantages.std() + 1e-8)
        contributions.clear()
        for batch in batches:
            contributions.append([])
            log_prob = model.policy.get_distribution(batch.observations).log_prob(batch.actions)
            ratio = th.exp(log_prob - batch.old_log_prob)
            advantages = th.cat([th.zeros(len(ratio), 1), batch.advantages / len(batches)], dim=1)
            if batch is batches[-1]:
                advantages[:, 0] = standardised
            for episode in batch.episodes.unique():
                is_own = (batch.episodes == episode).float()
                terms = ((is_own * ratio).unsqueeze(1) * advantages).mean(dim=0)
                contributions[-1].append(th.stack([flat_grad(term, params) for term in terms]).double())
        return take_step(rollout, batches, violation, **kwargs)

    monkeypatch.setattr(model, "_trust_region_step", by_episodes)
    model.learn(48 * n_rollouts)
    assert seen["probe"].n_episodes == sum(map(len, contributions)) > 5
    assert seen["probe"].n_unpaired == sum(len(gradients) % 2 for gradients in contributions)
    expected = th.zeros_like(seen["draws"][0] @ seen["draws"][0].T)
    for gradients in contributions:
        n_episodes, whole = len(gradients), sum(gradients)
        together = -1 / n_episodes if n_episodes % 2 else -1 / (n_episodes - 1)
        expected += (1 - together) * sum(gradient @ gradient.T for gradient in gradients) + together * whole @ whole.T
    measured = sum(gradients @ gradients.T for gradients in seen["draws"]) / len(seen["draws"])
    scale = expected.diagonal().sqrt()
    np.testing.assert_allclose(measured / scale / scale[:, None], expected / scale / scale[:, None], atol=0.2)


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
    # No episode has one sign more often than the other
    assert signs[:, :, 0].mean(dim=0).abs().max() < 0.25
    assert cost_surrogates.random_signs(episodes, 0, th.Generator()).shape == (0, 3 * n_episodes)


def test_the_newest_rollouts_that_hold_enough_episodes():
    batches = [cost_surrogates.CostBatch(*[None] * 6, n_episodes=number) for number in (500, 30, 60, 100, 45)]

    def numbers(n_episodes):
        return [batch.n_episodes for batch in cost_surrogates.newest_with(n_episodes, batches)]

    assert numbers(1) == numbers(45) == [45]
    assert numbers(46) == numbers(145) == [100, 45]
    assert numbers(236) == [500, 30, 60, 100, 45]
    assert numbers(10_000) == [500, 30, 60, 100, 45]
