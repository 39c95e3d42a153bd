"""What the algorithms with a trust region share: its arguments, the surrogates, and the step."""

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution, kl_divergence
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs
from torch import nn

from sb3_cpo import cost_surrogates, distributed
from sb3_cpo.cost_limits import CostLimit
from sb3_cpo.cost_surrogates import CostBatch
from sb3_cpo.dual import solve_dual
from sb3_cpo.fisher import Product, fisher_products, hessian_products
from sb3_cpo.on_policy_algorithm import ConstrainedOnPolicyAlgorithm, Rollout
from sb3_cpo.trust_region import NoiseProbe, Solver, Surrogates, TrustRegionStep, trust_region_step


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
        # Not from torch's generator: actions and minibatches are those of a training without this measurement
        generator = th.Generator().manual_seed(self._update_seed + distributed.rank())
        signs = [cost_surrogates.random_signs(batch.episodes, n_noise_draws, generator) for batch in cost_batches]
        earlier = list(zip(cost_batches, signs, strict=True))[:-1]
        linear = [cost_surrogates.linear_surrogates_of_earlier(self.policy, *pair, actor_params) for pair in earlier]
        # SB3's distributions are mutable singletons
        old_distribution = copy(self.policy.get_distribution(samples.observations))

        def ratio_of(distribution: Distribution) -> th.Tensor:
            return th.exp(distribution.log_prob(samples.actions) - samples.old_log_prob)

        def costs_at(ratio: th.Tensor, on_earlier: list[th.Tensor]) -> th.Tensor:
            """(1 + n_noise_draws, n_costs), mean over rollouts"""
            if not cost_batches:
                return ratio.new_zeros(1, 0)
            return th.stack([*on_earlier, cost_surrogates.surrogates_of(cost_batches[-1], ratio, signs[-1])]).mean(dim=0)

        # One, but a function of the parameters
        old_ratio = ratio_of(old_distribution)
        old_costs = costs_at(old_ratio, linear)

        def evaluate() -> Surrogates:
            # Gradients are taken at the old policy, which need not be evaluated again; the line search takes none
            if th.is_grad_enabled():
                distribution, ratio, costs = old_distribution, old_ratio, old_costs
            else:
                on_earlier = [cost_surrogates.surrogates_of_earlier(self.policy, *pair) for pair in earlier]
                distribution = copy(self.policy.get_distribution(samples.observations))
                ratio = ratio_of(distribution)
                costs = costs_at(ratio, on_earlier)
            return Surrogates(
                objective=(ratio * advantages).mean(),
                costs=costs[0],
                kl_div=mean_kl_divergence(old_distribution, distribution),
            )

        def probe_noise() -> NoiseProbe:
            return NoiseProbe(
                objective=(signs[-1] * old_ratio * advantages).mean(dim=1),
                costs=old_costs[1:],
                n_episodes=sum(batch.n_episodes for batch in cost_batches),
                n_unpaired=sum(distributed.gather(cost_surrogates.count_unpaired(cost_batches))),
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


def mean_kl_divergence(old: Distribution, new: Distribution) -> th.Tensor:
    """Mean over states of KL(old || new) between the *joint* action distributions: summed over action dimensions."""
    kl_div = kl_divergence(old, new)
    # Of a Normal and a Bernoulli, torch returns one divergence per action dimension
    return kl_div.flatten(start_dim=1).sum(dim=1).mean() if kl_div.ndim > 1 else kl_div.mean()
