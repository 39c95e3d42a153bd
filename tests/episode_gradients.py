"""What single episodes contribute to the gradients of an update, and what random signs measure of it."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import torch as th

from sb3_cpo import distributed, trust_region_algorithm
from sb3_cpo.fisher import flat_grad


def balanced_signs(n_episodes):
    """(n_draws, n_episodes) every draw of signs of which as many are positive as negative, but for an odd one."""
    draws = [draw for draw in product([-1.0, 1.0], repeat=n_episodes) if abs(sum(draw)) == n_episodes % 2]
    return th.tensor(draws)


def watch_gradients(model, patch=setattr):
    """
    Spy on the updates of a model.

    :param patch: replaces an attribute
    :return: of the last update: ``probe``; ``draws``, (1 + n_costs, n_params) gradients of reward and costs under each draw of
        signs; ``contributions``, the same of each episode, a list for each rollout of each process
    """
    seen = SimpleNamespace()
    step, take_step = trust_region_algorithm.trust_region_step, model._trust_region_step

    def by_draws(params, evaluate, violation, target_kl, **kwargs):
        seen.probe = kwargs["probe_noise"]()
        gradients = [
            th.stack([flat_grad(output, params) for output in (objective, *costs)]).double()
            for objective, costs in zip(seen.probe.objective, seen.probe.costs, strict=True)
        ]
        seen.draws = distributed.mean(th.stack(gradients))
        return step(params, evaluate, violation, target_kl, **kwargs)

    def by_episodes(rollout, batches, violation, **kwargs):
        samples, params = rollout.samples, rollout.actor_params
        of_all = th.as_tensor(distributed.concatenate(samples.advantages.numpy()))
        standardised = (samples.advantages - of_all.mean()) / (of_all.std() + 1e-8)
        own = []
        for batch in batches:
            own.append([])
            log_prob = model.policy.get_distribution(batch.observations).log_prob(batch.actions)
            ratio = th.exp(log_prob - batch.old_log_prob)
            advantages = th.cat([th.zeros(len(ratio), 1), batch.advantages / len(batches)], dim=1)
            if batch is batches[-1]:
                advantages[:, 0] = standardised
            # Of an episode none of whose samples is in the batch, nothing
            for episode in range(int(batch.episodes.max()) + 1):
                is_own = (batch.episodes == episode).float()
                terms = ((is_own * ratio).unsqueeze(1) * advantages).mean(dim=0) / distributed.world_size()
                own[-1].append(th.stack([flat_grad(term, params) for term in terms]).double())
        seen.contributions = [gradients for rollouts in distributed.gather(own) for gradients in rollouts]
        return take_step(rollout, batches, violation, **kwargs)

    patch(trust_region_algorithm, "trust_region_step", by_draws)
    patch(model, "_trust_region_step", by_episodes)
    return seen


def assert_signs_measure_episodes(seen, atol):
    """
    With balanced signs, in a rollout of n episodes two of which have the same sign by r less than by chance,
    E[b_z b_z'] = (1 - r) sum_e b_e b_e' + r b b', and the sum of that over rollouts; the reward's is of the last one only.

    :param atol: of cosines
    """
    expected = th.zeros(len(seen.draws[0]), len(seen.draws[0]), dtype=th.float64)
    for gradients in seen.contributions:
        n_episodes, whole = len(gradients), sum(gradients)
        together = -1 / n_episodes if n_episodes % 2 else -1 / (n_episodes - 1)
        expected += (1 - together) * sum(gradient @ gradient.T for gradient in gradients) + together * whole @ whole.T
    measured = sum(gradients @ gradients.T for gradients in seen.draws) / len(seen.draws)
    scale = expected.diagonal().sqrt()
    np.testing.assert_allclose(measured / scale / scale[:, None], expected / scale / scale[:, None], atol=atol)
    assert seen.probe.n_episodes == sum(map(len, seen.contributions))
    assert seen.probe.n_unpaired == sum(len(gradients) % 2 for gradients in seen.contributions)
