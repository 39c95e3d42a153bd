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
from sb3_cpo.buffers import CostRolloutBufferSamples
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
        surrogates = BatchSurrogates(self.policy, samples, advantages, cost_batches, signs, actor_params)
        return trust_region_step(
            actor_params,
            surrogates.evaluate,
            np.zeros(0) if violation is None else violation,
            self.target_kl,
            cg_max_steps=self.cg_max_steps,
            cg_damping=self.cg_damping,
            shrinking_factor=self.line_search_shrinking_factor,
            line_search_max_iter=self.line_search_max_iter,
            fisher_product=self._fisher_product(samples.thinned(self.fisher_sub_sampling_factor).observations, actor_params),
            solve=solve,
            probe_noise=surrogates.probe_noise if n_noise_draws > 0 else None,
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


class BatchSurrogates:
    """
    The surrogates of return and costs on a batch, at the present parameters of the policy.

    They are made with the policy that collected the batch. Gradients are those there, where the policy need not be evaluated
    again; at other parameters, in the line search, there are none.

    :param samples: the rollout
    :param advantages: (batch_size,) of the return
    :param cost_batches: what the cost surrogates are estimated on, the rollout last; empty: no constraints
    :param signs: (n_draws, batch_size) random signs for each of them
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        samples: CostRolloutBufferSamples,
        advantages: th.Tensor,
        cost_batches: Sequence[CostBatch],
        signs: Sequence[th.Tensor],
        actor_params: Sequence[nn.Parameter],
    ):
        self.policy, self.samples, self.advantages = policy, samples, advantages
        self.cost_batches, self.signs = cost_batches, signs
        self._earlier = list(zip(cost_batches, signs, strict=True))[:-1]
        linear = [cost_surrogates.linear_surrogates_of_earlier(policy, *pair, actor_params) for pair in self._earlier]
        # SB3's distributions are mutable singletons
        self._old_distribution = copy(policy.get_distribution(samples.observations))
        # One, but a function of the parameters
        self._old_ratio = self._ratio(self._old_distribution)
        self._old_costs = self._costs(self._old_ratio, linear)

    def _ratio(self, distribution: Distribution) -> th.Tensor:
        return th.exp(distribution.log_prob(self.samples.actions) - self.samples.old_log_prob)

    def _costs(self, ratio: th.Tensor, on_earlier: list[th.Tensor]) -> th.Tensor:
        """(1 + n_draws, n_costs), mean over rollouts"""
        if not self.cost_batches:
            return ratio.new_zeros(1, 0)
        present = cost_surrogates.surrogates_of(self.cost_batches[-1], ratio, self.signs[-1])
        return th.stack([*on_earlier, present]).mean(dim=0)

    def evaluate(self) -> Surrogates:
        """Differentiable where gradients are enabled."""
        distribution, ratio, costs = self._old_distribution, self._old_ratio, self._old_costs
        if not th.is_grad_enabled():
            on_earlier = [cost_surrogates.surrogates_of_earlier(self.policy, *pair) for pair in self._earlier]
            distribution = copy(self.policy.get_distribution(self.samples.observations))
            ratio = self._ratio(distribution)
            costs = self._costs(ratio, on_earlier)
        return Surrogates(
            objective=(ratio * self.advantages).mean(),
            costs=costs[0],
            kl_div=mean_kl_divergence(self._old_distribution, distribution),
        )

    def probe_noise(self) -> NoiseProbe:
        """The same with random signs, differentiable."""
        return NoiseProbe(
            objective=(self.signs[-1] * self._old_ratio * self.advantages).mean(dim=1),
            costs=self._old_costs[1:],
            n_episodes=sum(batch.n_episodes for batch in self.cost_batches),
            n_unpaired=sum(distributed.gather(cost_surrogates.count_unpaired(self.cost_batches))),
        )


def mean_kl_divergence(old: Distribution, new: Distribution) -> th.Tensor:
    """Mean over states of KL(old || new) between the *joint* action distributions: summed over action dimensions."""
    kl_div = kl_divergence(old, new)
    # Of a Normal and a Bernoulli, torch returns one divergence per action dimension
    return kl_div.flatten(start_dim=1).sum(dim=1).mean() if kl_div.ndim > 1 else kl_div.mean()
