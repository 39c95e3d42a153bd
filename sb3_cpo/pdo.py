"""Primal-Dual Optimization."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_cpo import log_keys
from sb3_cpo.buffers import CostRolloutBuffer
from sb3_cpo.cost_limits import CostLimit
from sb3_cpo.cost_shaping import FailurePredictor
from sb3_cpo.episode_costs import CostEstimator, mean_cost
from sb3_cpo.log_keys import Row
from sb3_cpo.mistakes import names_mistakes
from sb3_cpo.on_policy_algorithm import Rollout
from sb3_cpo.trust_region_algorithm import TrustRegionAlgorithm


class PDO(TrustRegionAlgorithm):
    """
    Primal-Dual Optimization (PDO): TRPO on ``reward - penalty . cost``, and the penalty follows the violation,
    ``penalty <- max(0, penalty + penalty_lr (J - cost_limit))``.

    Papers: Chow et al. (2015), https://arxiv.org/abs/1512.01629, as compared in section 8 of https://arxiv.org/abs/1705.10528

    One critic fits the combined return, with the reward's ``gamma`` and ``gae_lambda``. The penalty of iteration k is made of
    the violations before it: it is updated after the policy.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str). Every step's ``info`` holds the costs.
        Given as a string, a task that ``BatchVecEnv`` can step is made in many copies
    :param cost_limit: Bound on the cost of an episode, mean over episodes. A number, or a sequence with one entry per
        constraint, limits ``info["cost"]``; a mapping limits the keys of ``info`` that it names. Each limit can be a function
        of the current progress remaining (from 1 to 0). None: the limit that the environment has in an attribute
        ``cost_limit``, as the registered tasks do
    :param learning_rate: The learning rate of the critics, it can be a function
        of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per update
        (i.e. rollout buffer size is n_steps * n_envs where n_envs is number of environment copies running in parallel).
        None: whole episodes, where the time limit is known at least 20, or 10 that have 10,000 steps
    :param batch_size: Minibatch size for the critics. None: about a fortieth of the rollout, which it divides
    :param gamma: Discount factor of the reward. None: 0.99; 1 - 1/T where the time limit T is below 100 steps
    :param cg_max_steps: maximum number of steps in the Conjugate Gradient algorithm
        for computing the Hessian vector product
    :param cg_damping: damping in the Hessian vector product computation. None: 0.1 per action dimension, like ``target_kl``
    :param line_search_shrinking_factor: step-size reduction factor for the line-search
        (i.e., ``theta_new = theta + alpha^i * step``)
    :param line_search_max_iter: maximum number of iteration
        for the backtracking line-search
    :param n_critic_updates: number of epochs of critic updates per policy update
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param bootstrap_time_limits: Whether the value of the last observation stands for the rewards that a time limit cuts off,
        as in SB3: the policy then learns as if episodes went on. Costs end there all the same, unless ``cost_gamma`` < 1
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
        instead of action noise exploration (default: False)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        Default: -1 (only sample at the beginning of the rollout)
    :param rollout_buffer_class: Rollout buffer class to use, a subclass of ``CostRolloutBuffer``.
        If ``None``, it will be automatically selected.
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param normalize_advantage: Whether to standardise the reward advantages. Cost advantages are centred and keep their units
    :param target_kl: Target Kullback-Leibler divergence between updates, of the joint action distribution
        (summed over action dimensions; sb3-contrib's TRPO averages over them). None: 0.01 per action dimension,
        or bit of a MultiBinary; 0.01 for Discrete and MultiDiscrete actions
    :param sub_sampling_factor: Sub-sample the batch of the policy update to make it faster: every n-th sample
    :param fisher_sub_sampling_factor: Estimate the Fisher matrix on every n-th state only. None: on about 5,000 states
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: the verbosity level: 0 no output, 1 info, 2 debug
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param cost_gamma: Discount factor of the costs in J. With 1, ``cost_limit`` bounds the plain sum of an episode's costs
    :param penalty_coef: Penalty to begin with, one number or one per constraint (the paper: 0; 1000 in a variant)
    :param penalty_lr: Step size of the penalty
    :param cost_estimator: What J is of the episodes that ended in a rollout, see :mod:`sb3_cpo.episode_costs`
    :param cost_shaping: A ``FailurePredictor`` that adds a bonus to the costs before they occur, or None
    :param missing_cost: What a step without cost means: "error", or "zero" for environments that only mention costs
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    """

    has_cost_critic: ClassVar[bool] = False

    penalty: np.ndarray
    """(n_costs,) present weights of the costs."""

    changed_by_update = ("penalty",)

    @names_mistakes
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        cost_limit: CostLimit | None = None,
        *,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int | None = None,
        batch_size: int | None = None,
        gamma: float | None = None,
        cg_max_steps: int = 10,
        cg_damping: float | None = None,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 15,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        bootstrap_time_limits: bool = True,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[CostRolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: float | None = None,
        sub_sampling_factor: int = 1,
        fisher_sub_sampling_factor: int | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        cost_gamma: float = 1.0,
        penalty_coef: float | Sequence[float] = 0.0,
        penalty_lr: float = 0.01,
        cost_estimator: CostEstimator = mean_cost,
        cost_shaping: FailurePredictor | None = None,
        missing_cost: str = "error",
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,
            env,
            cost_limit,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            gamma=gamma,
            cg_max_steps=cg_max_steps,
            cg_damping=cg_damping,
            line_search_shrinking_factor=line_search_shrinking_factor,
            line_search_max_iter=line_search_max_iter,
            n_critic_updates=n_critic_updates,
            gae_lambda=gae_lambda,
            bootstrap_time_limits=bootstrap_time_limits,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            normalize_advantage=normalize_advantage,
            target_kl=target_kl,
            sub_sampling_factor=sub_sampling_factor,
            fisher_sub_sampling_factor=fisher_sub_sampling_factor,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            cost_gamma=cost_gamma,
            cost_estimator=cost_estimator,
            cost_shaping=cost_shaping,
            missing_cost=missing_cost,
            _init_setup_model=False,
        )
        self.penalty_coef = penalty_coef
        self.penalty_lr = penalty_lr

        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        # A loaded model goes on with the penalty that it had, unless `load` was given another to begin with
        penalty, began_with = self.__dict__.get("penalty"), self.__dict__.get("_began_with")
        super()._setup_model()
        self._began_with = self._initial_penalty()
        is_same = penalty is not None and began_with is not None and np.array_equal(self._began_with, began_with)
        self.penalty = penalty if is_same else self._began_with  # type: ignore[assignment]

    def _initial_penalty(self) -> np.ndarray:
        try:
            penalty = np.array(self.penalty_coef, dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"penalty_coef must be a number, or one per constraint, not {self.penalty_coef!r}") from None
        if penalty.ndim > 1 or (penalty.ndim == 1 and len(penalty) != self.n_costs):
            raise ValueError(f"penalty_coef has shape {penalty.shape} but cost_limit has {self.n_costs} entries")
        if not (np.isfinite(penalty).all() and (penalty >= 0).all()):
            raise ValueError(f"penalty_coef must be finite and not negative, not {self.penalty_coef}")
        return np.broadcast_to(penalty, (self.n_costs,)).copy()

    def _combine_rewards(self, rewards: np.ndarray, costs: np.ndarray) -> np.ndarray:
        return rewards - costs @ self.penalty

    def _update_policy(self, rollout: Rollout) -> Row:
        row = log_keys.of_step(self._trust_region_step(rollout))
        self.penalty = np.maximum(self.penalty + self.penalty_lr * rollout.violation, 0.0)
        return row | log_keys.of_violation(rollout.violation)

    def dump_logs(self, iteration: int = 0) -> None:
        self._record(log_keys.of_penalty(self.penalty))
        super().dump_logs(iteration)
