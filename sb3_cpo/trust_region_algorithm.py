"""What the algorithms with a trust region share: its arguments, the surrogates, and the step."""

from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution, kl_divergence
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs
from torch import nn

from sb3_cpo import distributed
from sb3_cpo.buffers import CostRolloutBufferSamples
from sb3_cpo.cost_limits import CostLimit
from sb3_cpo.dual import solve_dual
from sb3_cpo.fisher import Product, fisher_products, hessian_products
from sb3_cpo.on_policy_algorithm import ConstrainedOnPolicyAlgorithm, Rollout
from sb3_cpo.trust_region import NoiseProbe, Solver, Surrogates, TrustRegionStep, trust_region_step

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
    """(batch_size,) number of the sample's episode"""


class TrustRegionAlgorithm(ConstrainedOnPolicyAlgorithm):
    """
    Algorithms that change the policy by one step in a trust region.

    Arguments: see :class:`~sb3_cpo.CPO`; ``kwargs`` are those of the base class.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        cost_limit: CostLimit | None = None,
        *,
        cg_max_steps: int = 10,
        cg_damping: float | None = None,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 15,
        target_kl: float | None = None,
        sub_sampling_factor: int = 1,
        fisher_sub_sampling_factor: int | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        super().__init__(policy, env, cost_limit, _init_setup_model=False, **kwargs)
        self.cg_max_steps = cg_max_steps
        self.cg_damping: float = cg_damping  # type: ignore[assignment]
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.target_kl: float = target_kl  # type: ignore[assignment]
        self.sub_sampling_factor = sub_sampling_factor
        self.fisher_sub_sampling_factor: int = fisher_sub_sampling_factor  # type: ignore[assignment]

        if _init_setup_model:
            self._setup_model()

    def _rollout(self) -> Rollout:
        rollout = super()._rollout()
        return rollout._replace(samples=rollout.samples.thinned(self.sub_sampling_factor))

    def _trust_region_step(
        self,
        rollout: Rollout,
        cost_batches: Sequence[CostBatch] = (),
        violation: np.ndarray | None = None,
        solve: Solver = solve_dual,
        n_noise_draws: int = 0,
    ) -> TrustRegionStep:
        """
        Raise the surrogate return, subject to ``violation + change of the cost surrogates <= 0`` and ``KL <= target_kl``.

        :param cost_batches: what the cost surrogates are estimated on, this rollout last; empty: no constraints
        :param violation: (n_costs,) one per constraint
        :param n_noise_draws: draws of random signs by which the noise of the gradients is measured; 0: it is not
        :param solve: which step in the span of the gradients, see :func:`~sb3_cpo.trust_region.trust_region_step`
        """
        samples, actor_params = rollout.samples, rollout.actor_params
        advantages = samples.advantages
        if self.normalize_advantage:
            mean, variance, n_samples = distributed.moments(advantages)
            advantages = (advantages - mean) / ((variance * n_samples / max(n_samples - 1, 1)).sqrt() + 1e-8)
        # SB3's distributions are mutable singletons
        old_distribution = copy(self.policy.get_distribution(samples.observations))
        old_ratios = self._ratios(samples, cost_batches, old_distribution)

        def evaluate() -> Surrogates:
            # Gradients are taken at the old policy, which need not be evaluated again; the line search takes none
            is_old = th.is_grad_enabled()
            distribution = old_distribution if is_old else copy(self.policy.get_distribution(samples.observations))
            ratios = old_ratios if is_old else self._ratios(samples, cost_batches, distribution)
            return Surrogates(
                objective=(ratios[-1] * advantages).mean(),
                costs=_cost_surrogates(cost_batches, ratios),
                kl_div=mean_kl_divergence(old_distribution, distribution),
            )

        def probe_noise() -> NoiseProbe:
            # Not from torch's generator: actions and minibatches are those of a training without this measurement
            generator = th.Generator().manual_seed(self._update_seed)
            signs = [_random_signs(batch.episodes, n_noise_draws, generator) for batch in cost_batches]
            return NoiseProbe(
                objective=(signs[-1] * old_ratios[-1] * advantages).mean(dim=1),
                costs=_cost_surrogates(cost_batches, old_ratios, signs),
                n_episodes=sum(distributed.gather(sum(int(batch.episodes.unique().numel()) for batch in cost_batches))),
            )

        return trust_region_step(
            actor_params,
            evaluate,
            np.zeros(0) if violation is None else violation,
            self.target_kl,
            cg_max_steps=self.cg_max_steps,
            cg_damping=self.cg_damping,
            shrinking_factor=self.line_search_shrinking_factor,
            line_search_max_iter=self.line_search_max_iter,
            fisher_product=self._fisher_product(samples.thinned(self.fisher_sub_sampling_factor).observations, actor_params),
            solve=solve,
            probe_noise=probe_noise if n_noise_draws > 0 else None,
            average=distributed.mean,
        )

    def _fisher_product(self, observations: PyTorchObs, actor_params: Sequence[nn.Parameter]) -> Product:
        product = fisher_products(self.policy.get_distribution(observations), actor_params)
        if product is not None:
            return product
        # A user's distribution: by its own divergence
        with th.no_grad():
            old_distribution = copy(self.policy.get_distribution(observations))
        return hessian_products(mean_kl_divergence(old_distribution, self.policy.get_distribution(observations)), actor_params)

    def _ratios(
        self, samples: CostRolloutBufferSamples | CostBatch, cost_batches: Sequence[CostBatch], distribution: Distribution
    ) -> list[th.Tensor]:
        """
        (batch_size,) each: ratios between the policy and that of earlier rollouts, truncated; and, last, of this rollout.

        :param distribution: the policy's, in the states of this rollout
        """
        ratios = []
        for batch in cost_batches[:-1]:
            log_prob = self.policy.get_distribution(batch.observations).log_prob(batch.actions)
            ratios.append(th.exp(log_prob - batch.old_log_prob).clamp(max=MAX_RATIO))
        # Between old and new policy: one at the first evaluation
        return [*ratios, th.exp(distribution.log_prob(samples.actions) - samples.old_log_prob)]


def _cost_surrogates(
    cost_batches: Sequence[CostBatch], ratios: Sequence[th.Tensor], signs: Sequence[th.Tensor] | None = None
) -> th.Tensor:
    """
    (n_costs,), mean over rollouts; empty: there are no constraints.

    :param ratios: one (batch_size,) per rollout
    :param signs: (n_draws, batch_size) each, to multiply the advantages with; the result is (n_draws, n_costs) then
    """
    if not cost_batches:
        return ratios[-1].new_zeros(0)
    weighted = [ratio.unsqueeze(1) * batch.advantages for batch, ratio in zip(cost_batches, ratios, strict=True)]
    if signs is None:
        return th.stack([terms.mean(dim=0) for terms in weighted]).mean(dim=0)
    return th.stack([sign.to(terms) @ terms / len(terms) for sign, terms in zip(signs, weighted, strict=True)]).mean(dim=0)


def _random_signs(episodes: th.Tensor, n_draws: int, generator: th.Generator) -> th.Tensor:
    """(n_draws, batch_size) of +1 and -1, one per episode."""
    signs = 2.0 * th.randint(2, (n_draws, int(episodes.max()) + 1), generator=generator) - 1.0
    return signs.to(episodes.device)[:, episodes]


def mean_kl_divergence(old: Distribution, new: Distribution) -> th.Tensor:
    """Mean over states of KL(old || new) between the *joint* action distributions: summed over action dimensions."""
    kl_div = kl_divergence(old, new)
    # Of a Normal and a Bernoulli, torch returns one divergence per action dimension
    return kl_div.flatten(start_dim=1).sum(dim=1).mean() if kl_div.ndim > 1 else kl_div.mean()
