"""Trust Region Policy Optimization."""

from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_cpo import log_keys
from sb3_cpo.buffers import CostRolloutBuffer
from sb3_cpo.cost_limits import CostLimit, CostLimits
from sb3_cpo.cost_shaping import FailurePredictor
from sb3_cpo.cost_signal import CostSignal
from sb3_cpo.episode_costs import CostEstimator, mean_cost
from sb3_cpo.log_keys import Row
from sb3_cpo.mistakes import names_mistakes
from sb3_cpo.on_policy_algorithm import Rollout
from sb3_cpo.trust_region_algorithm import TrustRegionAlgorithm


class TRPO(TrustRegionAlgorithm):
    """
    Trust Region Policy Optimization (TRPO): the same step without constraints, for comparison.

    Paper: https://arxiv.org/abs/1502.05477

    Costs are logged where the environment has them and are never required. Beside sb3-contrib's TRPO: ``target_kl`` bounds
    the KL divergence of the joint action distribution (contrib averages over action dimensions), and the step solves the
    problem with conjugate gradients that start from zero.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str). Every step's ``info`` holds the costs.
        Given as a string, a task that ``BatchVecEnv`` can step is made in many copies
    :param cost_limit: A limit to compare the costs with, in the logs only. None: ``info["cost"]`` is logged if it is there
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
    :param cost_estimator: What J is of the episodes that ended in a rollout, see :mod:`sb3_cpo.episode_costs`
    :param cost_shaping: A ``FailurePredictor`` that adds a bonus to the costs before they occur, or None
    :param missing_cost: What a step without cost means where ``cost_limit`` names one: "error" or "zero"
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    """

    takes_registered_limit: ClassVar[bool] = False
    has_cost_critic: ClassVar[bool] = False

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
            _init_setup_model=_init_setup_model,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.cost_limit is None:
            # Nobody has said what the costs are; the first info that mentions one does
            self._cost_signal = CostSignal(None, self.n_costs or None, "zero")

    def _parse_cost_limit(self, cost_limit: CostLimit | None) -> CostLimits:
        if cost_limit is not None:
            return super()._parse_cost_limit(cost_limit)
        ledger = self.__dict__.get("ledger")
        return CostLimits.unlimited(0 if ledger is None or ledger.keys is not None else ledger.n_costs)

    def _read_costs(self, infos: list[dict[str, Any]]) -> np.ndarray:
        costs = super()._read_costs(infos)
        if costs.shape[1] != self.n_costs:
            self.cost_limits = CostLimits.unlimited(costs.shape[1])
            self.rollout_buffer.set_n_costs(self.n_costs)
            self._forget_costs()
            if self.cost_shaping is not None:
                self.cost_shaping.setup(self.observation_space, self.n_costs, self.device)
        return costs

    def _update_policy(self, rollout: Rollout) -> Row:
        return log_keys.of_step(self._trust_region_step(rollout))
