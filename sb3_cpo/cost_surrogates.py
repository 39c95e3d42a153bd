"""Surrogates of an episode's costs, on this rollout and on earlier ones. Torch only: no env, no buffer, no logger."""

from collections.abc import Sequence
from typing import NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_cpo import distributed
from sb3_cpo.buffers import CostRolloutBufferSamples
from sb3_cpo.fisher import flat_grad

# Truncated importance sampling (Ionides, 2008): in rollouts of earlier policies, no single sample decides the surrogate
MAX_RATIO = 10.0


class CostBatch(NamedTuple):
    """What a cost surrogate and a cost critic are made of: one rollout."""

    observations: PyTorchObs
    actions: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    """(batch_size, n_costs) centred, in units of an episode's cost"""
    returns: th.Tensor
    """(batch_size, n_costs) the cost critic's targets"""
    episodes: th.Tensor
    """(batch_size,) number of the sample's episode, from 0, without gaps"""
    n_episodes: int
    """of all processes"""


def cost_batch(samples: CostRolloutBufferSamples, mean_length: float) -> CostBatch:
    """
    The surrogate cost of an episode, ``mean_length * mean(ratio * discount * advantages)``: J is an expectation over episodes,
    the batch mean one over steps. Without the mean length, the constraint would weigh an episode's violation against one
    step's change. Centred, but in the units of the costs: their surrogate is compared with J - limit.

    :param samples: of one rollout
    :param mean_length: steps of an episode
    """
    discounts = samples.cost_discounts
    total = distributed.add_up((discounts * samples.cost_advantages).sum(dim=0))
    advantages = discounts * (samples.cost_advantages - total / distributed.add_up(discounts.sum(dim=0))) * mean_length
    # Numbered anew: thinned samples may lack the shortest episodes
    episodes = samples.episodes.unique(return_inverse=True)[1]
    return CostBatch(
        samples.observations,
        samples.actions,
        samples.old_log_prob,
        advantages,
        samples.cost_returns,
        episodes,
        n_episodes=sum(distributed.gather(_count(episodes))),
    )


def newest_with(n_episodes: int, batches: Sequence[CostBatch]) -> list[CostBatch]:
    """The newest rollouts that together hold so many episodes; all of them where these are fewer."""
    first = len(batches) - 1
    while first > 0 and sum(batch.n_episodes for batch in batches[first:]) < n_episodes:
        first -= 1
    return list(batches[first:])


def surrogates_of(batch: CostBatch, ratio: th.Tensor, signs: th.Tensor) -> th.Tensor:
    """
    (1 + n_draws, n_costs) surrogates on one rollout: as they are, and with the advantages multiplied by random signs.

    :param ratio: (batch_size,) between the policy and that of the rollout
    :param signs: (n_draws, batch_size)
    """
    weighted = ratio.unsqueeze(1) * batch.advantages
    return th.cat([weighted.mean(dim=0, keepdim=True), signs.to(weighted) @ weighted / len(weighted)])


def surrogates_of_earlier(policy: ActorCriticPolicy, batch: CostBatch, signs: th.Tensor) -> th.Tensor:
    """The same on a rollout of an earlier policy, with truncated ratios."""
    log_prob = policy.get_distribution(batch.observations).log_prob(batch.actions)
    return surrogates_of(batch, th.exp(log_prob - batch.old_log_prob).clamp(max=MAX_RATIO), signs)


def linear_surrogates_of_earlier(
    policy: ActorCriticPolicy, batch: CostBatch, signs: th.Tensor, params: Sequence[nn.Parameter]
) -> th.Tensor:
    """
    The same to first order in the parameters, which is all that gradients need. One graph is in the memory at a time.
    """
    values = surrogates_of_earlier(policy, batch, signs)
    gradients = th.stack([flat_grad(value, params) for value in values.flatten()])
    flat_params = th.cat([param.flatten() for param in params])
    return values.detach() + (gradients @ (flat_params - flat_params.detach())).view_as(values)


def random_signs(episodes: th.Tensor, n_draws: int, generator: th.Generator) -> th.Tensor:
    """
    (n_draws, batch_size) of +1 and -1, one per episode: in each draw as many of one as of the other, but for an odd one. What
    all episodes have in common then cancels in every draw, and not only in the mean of many.
    """
    n_episodes = _count(episodes)
    alternating = 1.0 - 2.0 * (th.arange(n_episodes) % 2)
    signs = alternating[th.rand(n_draws, n_episodes, generator=generator).argsort(dim=1)]
    odd_one = 2.0 * th.randint(2, (n_draws, 1), generator=generator) - 1.0
    return (signs * odd_one).to(episodes.device)[:, episodes]


def count_unpaired(batches: Sequence[CostBatch]) -> int:
    """Signs to which ``random_signs`` draws no opposite one, of this process."""
    return sum(_count(batch.episodes) % 2 for batch in batches)


def _count(episodes: th.Tensor) -> int:
    return int(episodes.max()) + 1
