"""Constrained Policy Optimization."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_cpo import distributed, log_keys
from sb3_cpo.buffers import CostRolloutBuffer
from sb3_cpo.cost_filter import (
    FIRST_CONFIDENCE,
    FilteredCost,
    adapt_distance,
    bound_process_noise,
    filter_cost,
    first_filtered_cost,
    fixed_distance,
    predict_cost,
)
from sb3_cpo.cost_limits import CostLimit, excess
from sb3_cpo.cost_shaping import FailurePredictor
from sb3_cpo.cost_surrogates import CostBatch, cost_batch, newest_with
from sb3_cpo.critics import CriticBatch
from sb3_cpo.defaults import (
    COST_EPISODES,
    COST_ROLLOUTS,
    UNKNOWN_EPISODE,
    default_cost_gae_gamma,
    default_n_cost_rollouts,
)
from sb3_cpo.episode_costs import CostEstimate, CostEstimator, mean_cost
from sb3_cpo.log_keys import Row
from sb3_cpo.mistakes import names_mistakes
from sb3_cpo.on_policy_algorithm import Rollout
from sb3_cpo.trust_region import TrustRegionStep
from sb3_cpo.trust_region_algorithm import TrustRegionAlgorithm
from sb3_cpo.watchdog import Watchdog


class CPO(TrustRegionAlgorithm):
    """
    Constrained Policy Optimization (CPO): maximise the return while the mean cost of an episode satisfies a limit.

    Paper: https://arxiv.org/abs/1705.10528

    Each update solves, for any number of constraints, ``max surrogate return`` subject to ``J - cost_limit + change of the
    surrogate costs <= 0`` and ``KL <= target_kl``. Where the trust region misses the safe set, the update only lowers costs.

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
    :param cost_gae_lambda: Factor for trade-off of bias vs variance for the cost advantages
    :param cost_gae_gamma: Discount factor of the cost critic and the cost advantages, where it is to differ from
        ``cost_gamma``, which discounts J. Below 1 it trades bias for variance (Schulman et al., 2016, section 3): an action is
        held responsible for the costs of the next 1 / (1 - cost_gae_gamma) steps. None: 0.99, at most ``cost_gamma``;
        ``cost_gamma`` itself, as in the paper, where the time limit is below 100 steps, and where ``n_noise_draws`` is 0
    :param n_cost_rollouts: Rollouts, this one included, whose data make the cost surrogates and fit the cost critic. With few
        episodes in a rollout, a step is mostly fitted to their noise; earlier rollouts, weighted by importance ratios, average
        it out. None: as many as hold 200 episodes, at most 5; 1, as in the paper, where observations are images, and where
        ``n_noise_draws`` is 0
    :param n_noise_draws: Draws of random signs by which the noise of the gradients is measured: an update then expects of the
        costs only what episodes have in common, and J is filtered over updates. 0: the paper's, which trusts every batch
    :param cost_confidence: z: constrain the mean episode cost plus z standard errors, or standard deviations of the filtered J
        with the usual difference between actual and predicted change. 0 constrains the mean. None: so much that 15 % of the
        rollouts near the limit exceed it, learned in training, and for the moment more after several that do; 0 where
        ``n_noise_draws`` is 0
    :param cost_margin_lr: Step size of a margin that is added to the violation and grows while the limit is exceeded (integral
        action), so that actual decreases smaller than the predicted ones cause no lasting excess. 0 is the paper's: no margin
    :param cost_estimator: What J is of the episodes that ended in a rollout, see :mod:`sb3_cpo.episode_costs`
    :param cost_shaping: A ``FailurePredictor`` that adds a bonus to the costs before they occur, or None
    :param missing_cost: What a step without cost means: "error", or "zero" for environments that only mention costs
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    """

    changed_by_update = ("margin", "filtered_cost", "distance", "_recent", "_watchdog")

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
        cost_gae_lambda: float = 0.95,
        cost_gae_gamma: float | None = None,
        n_cost_rollouts: int | None = None,
        n_noise_draws: int = 2,
        cost_confidence: float | None = None,
        cost_margin_lr: float = 0.0,
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
            cost_gae_lambda=cost_gae_lambda,
            cost_gae_gamma=cost_gae_gamma,
            cost_estimator=cost_estimator,
            cost_shaping=cost_shaping,
            missing_cost=missing_cost,
            _init_setup_model=False,
        )
        self.n_cost_rollouts = n_cost_rollouts
        self.n_noise_draws = n_noise_draws
        self.cost_confidence = cost_confidence
        self.cost_margin_lr = cost_margin_lr

        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        self._recent: list[CostBatch] = []

    def _forget_costs(self) -> None:
        super()._forget_costs()
        self._recent = []
        self.filtered_cost: FilteredCost | None = None
        self.distance = fixed_distance(FIRST_CONFIDENCE, self.n_costs)
        self.margin = CostMargin(self.n_costs)
        self._watchdog = Watchdog()

    def _forget_episodes(self) -> None:
        super()._forget_episodes()
        self._recent = []

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        # In standard deviations of J: as good for the costs of another environment as the first guess, or better
        distance = self.distance
        super().set_env(env, force_reset)
        self.distance = distance

    @property
    def cost_margin(self) -> np.ndarray:
        """(n_costs,) what is added to the violation, see ``cost_margin_lr``."""
        return self.margin.value

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_recent"]

    def _training_attributes(self) -> dict[str, Any]:
        # The next update takes no more of them
        n_needed = self._most_cost_rollouts - 1
        return super()._training_attributes() | {"_recent": self._recent[-n_needed:] if n_needed > 0 else []}

    # What None stands for depends on other arguments, which `load` or an assignment may change: it stays None

    @property
    def _advantage_discount(self) -> float:
        if self.cost_gae_gamma is not None or self.n_noise_draws == 0:
            return super()._advantage_discount
        return min(default_cost_gae_gamma(self._time_limit), self.cost_gamma)

    @property
    def _fixed_n_cost_rollouts(self) -> int | None:
        """None: as many as hold enough episodes."""
        if self.n_cost_rollouts is not None:
            return self.n_cost_rollouts
        return 1 if self.n_noise_draws == 0 else default_n_cost_rollouts(self.observation_space)

    @property
    def _most_cost_rollouts(self) -> int:
        return self._fixed_n_cost_rollouts or COST_ROLLOUTS

    def _update_policy(self, rollout: Rollout) -> Row:
        # 1. How much cheaper an episode must become
        violation = excess(self._constrained_cost(rollout.cost, rollout.limit), rollout.limit)

        # 2. How its cost changes with the policy
        recent = self._cost_batches(rollout)

        # 3. The step
        if self.cost_margin_lr == 0:
            self.margin = CostMargin(self.n_costs)
        step = self._trust_region_step(
            rollout,
            recent,
            violation + self.margin.value,
            n_noise_draws=self.n_noise_draws,
        )

        # 4. What it teaches
        self._recent = recent
        self.margin.update(violation, step, self.cost_margin_lr)
        self._watch(step, violation)
        self.ledger.predicted_change = step.predicted_cost_change
        return self._describe(rollout, step, violation)

    def _constrained_cost(self, cost: CostEstimate, limit: np.ndarray) -> np.ndarray:
        """(n_costs,) J that the constraints are about: filtered where predictions can be trusted, and on the safe side."""
        if cost.n_episodes == 0:
            return self._guessed_cost(cost)
        if self.n_noise_draws == 0:
            # No standard error is known from a single episode, and nothing is added
            return cost.mean + float(self.cost_confidence or 0.0) * np.nan_to_num(cost.standard_error)
        if self.filtered_cost is None or self.ledger.predicted_change is None:
            self.filtered_cost = first_filtered_cost(cost.mean, cost.standard_error)
        else:
            expected = self.filtered_cost.mean + self.ledger.predicted_change
            filtered = filter_cost(self.filtered_cost, self.ledger.predicted_change, cost.mean, cost.standard_error)
            self.filtered_cost = bound_process_noise(filtered, limit)
            if self.cost_confidence is None:
                self.distance = adapt_distance(self.distance, self.filtered_cost, expected, cost.mean, limit)
        if self.cost_confidence is not None:
            self.distance = fixed_distance(self.cost_confidence, self.n_costs)
        return self.filtered_cost.mean + self.distance.total * self.filtered_cost.deviation

    def _guessed_cost(self, cost: CostEstimate) -> np.ndarray:
        """(n_costs,) where no episode ended: what those in progress let one fear. A guess teaches the filter nothing."""
        # How long an episode is may be known to nobody
        guess = cost.mean if cost.is_length_known else np.maximum(cost.mean, cost.mean * UNKNOWN_EPISODE / cost.mean_length)
        if self.filtered_cost is None:
            return guess
        if self.ledger.predicted_change is not None:
            self.filtered_cost = predict_cost(self.filtered_cost, self.ledger.predicted_change)
        return np.maximum(guess, self.filtered_cost.mean + self.distance.total * self.filtered_cost.deviation)

    def _watch(self, step: TrustRegionStep, violation: np.ndarray) -> None:
        """Warn of what no number of updates will mend."""
        predicted, actual = self.ledger.predicted_change, self.ledger.actual_change
        if predicted is not None and actual is not None:
            self._watchdog.compare(violation, predicted, actual.mean, self.cost_limits)
        self._watchdog.watch(violation, step, self.cost_limits)

    def _cost_batches(self, rollout: Rollout) -> list[CostBatch]:
        """What the cost gradients are estimated on, this rollout last; empty: there are no constraints."""
        if self.n_costs == 0:
            return []
        recent = [*self._recent, cost_batch(rollout.samples, rollout.cost.mean_length)][-self._most_cost_rollouts :]
        return newest_with(COST_EPISODES, recent) if self._fixed_n_cost_rollouts is None else recent

    def _critic_batches(self) -> list[CriticBatch]:
        batches = self._recent if len(self._recent) > 1 else []
        return [CriticBatch(batch.observations, batch.returns) for batch in batches]

    def _describe(self, rollout: Rollout, step: TrustRegionStep, violation: np.ndarray) -> Row:
        row = log_keys.of_step(step) | log_keys.of_constraints(step, violation) | self._watchdog.row
        if self.filtered_cost is not None:
            row |= log_keys.of_filter(self.filtered_cost, self.distance.total)
        if self.cost_margin_lr > 0:
            row |= log_keys.of_margin(self.margin.value)
        # Proposition 2 needs the advantages of the costs that J sums
        if self.rollout_buffer.cost_gamma == self.cost_gamma:
            advantages = rollout.samples.cost_advantages
            largest = abs(advantages - distributed.moments(advantages)[0]).amax(dim=0).cpu().numpy()
            largest = np.max(distributed.gather(largest), axis=0)
            row |= log_keys.of_worst_case(rollout.limit, largest, self.target_kl, self.cost_gamma, rollout.cost.mean_length)
        return row


class CostMargin:
    """
    Integral action on the violation: a margin that is added to it and grows while the limit is exceeded, by no more than an
    update can change. It does not grow while no step could satisfy the constraint: a margin that has grown where it could not
    help would hold the costs down long afterwards.

    :param n_costs: number of constraints
    """

    def __init__(self, n_costs: int):
        self.value = np.zeros(n_costs)

    def update(self, violation: np.ndarray, step: TrustRegionStep, learning_rate: float) -> None:
        reach = step.reachable_cost_change
        change = np.clip(violation, -reach, reach) if step.is_feasible else np.minimum(violation, 0.0)
        self.value = np.maximum(self.value + learning_rate * change, 0.0)
