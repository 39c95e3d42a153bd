"""SB3's model for problems with costs: its arguments and attributes."""

import warnings
from collections.abc import MutableMapping, MutableSequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_cpo import critics, distributed, mistakes, policy_mistakes
from sb3_cpo.arguments import OtherModel, check_arguments, check_classes, check_whole_numbers
from sb3_cpo.buffers import CostDictRolloutBuffer, CostRolloutBuffer
from sb3_cpo.checkpoints import training
from sb3_cpo.cost_ledger import CostLedger, SafetyRecord
from sb3_cpo.cost_limits import CostLimit, CostLimits, MissingLimit, parse_cost_limit
from sb3_cpo.cost_shaping import FailurePredictor
from sb3_cpo.cost_signal import CostSignal
from sb3_cpo.defaults import default_env, fill_in
from sb3_cpo.env_facts import max_episode_steps, registered_cost_limit
from sb3_cpo.episode_costs import CostEstimate, CostEstimator, mean_cost
from sb3_cpo.monitor import as_vec_env, with_cost_monitor
from sb3_cpo.policies import CnnPolicy, CostActorCriticPolicy, MlpPolicy, MultiInputPolicy

# What the algorithm writes into its buffer before every rollout
_SET_ON_BUFFER = {"gamma", "gae_lambda", "cost_gamma", "cost_gae_lambda"}


class CostModel(OnPolicyAlgorithm):
    """
    An on-policy model that sees costs. :class:`~sb3_cpo.on_policy_algorithm.ConstrainedOnPolicyAlgorithm` makes it learn.

    Arguments that SB3's ``OnPolicyAlgorithm`` has, ``kwargs`` among them, are SB3's; :class:`~sb3_cpo.CPO` explains the rest.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    takes_registered_limit: ClassVar[bool] = True
    """Whether the limit is the environment's where the user says none."""
    has_cost_critic: ClassVar[bool] = True
    """Whether the algorithm needs cost advantages, and with them a policy with a cost head."""

    n_steps: int
    batch_size: int
    policy: ActorCriticPolicy
    rollout_buffer: CostRolloutBuffer
    cost_limits: CostLimits
    """``cost_limit``, parsed."""
    ledger: CostLedger
    """What has been counted."""
    _has_limit_of_env: bool = False
    """Whether the limit is the environment's own."""
    _resumption: training.Resumption | None = None
    """Where the next ``learn`` goes on."""
    _run: str | None = None
    """Name of the training, for its checkpoints."""
    _n_updates_at_start: int = 0
    """Updates before this ``learn``."""

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
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        bootstrap_time_limits: bool = True,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        normalize_advantage: bool = True,
        cost_gamma: float = 1.0,
        cost_gae_lambda: float = 0.95,
        cost_gae_gamma: float | None = None,
        cost_estimator: CostEstimator = mean_cost,
        cost_shaping: FailurePredictor | None = None,
        missing_cost: str = "error",
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        policy_mistakes.check_policy(policy, self.policy_aliases)
        super().__init__(
            policy,
            default_env(env, kwargs.get("verbose", 0)),
            learning_rate=learning_rate,
            n_steps=n_steps,  # type: ignore[arg-type]
            gamma=gamma,  # type: ignore[arg-type]
            gae_lambda=gae_lambda,
            ent_coef=0.0,
            vf_coef=0.0,  # the critics are optimised separately
            max_grad_norm=0.0,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
            **kwargs,
        )
        self.cost_limit = cost_limit
        self.batch_size = batch_size  # type: ignore[assignment]
        self.n_critic_updates = n_critic_updates
        self.normalize_advantage = normalize_advantage
        self.bootstrap_time_limits = bootstrap_time_limits
        self.cost_gamma = cost_gamma
        self.cost_gae_lambda = cost_gae_lambda
        self.cost_gae_gamma = cost_gae_gamma
        self.cost_estimator = cost_estimator
        self.cost_shaping = cost_shaping
        self.missing_cost = missing_cost

        if _init_setup_model:
            self._setup_model()

    # ---------------------------------------------------------------- construction

    def _setup_model(self) -> None:
        # First: a file of another algorithm has other arguments, too
        check_classes(type(self).__name__, self.policy_class, self.rollout_buffer_class, self.has_cost_critic)
        check_whole_numbers(vars(self))
        policy_mistakes.check_policy_kwargs(self.policy_kwargs)
        if self.policy_class is MultiInputPolicy and "features_extractor_class" not in self.policy_kwargs:
            policy_mistakes.check_dictionaries(self.observation_space)
        n_copies = None if self.env is None else self.env.num_envs * distributed.world_size()
        # Asked only where it is needed: environments may be other processes
        is_asked = None in (self.n_steps, self.gamma)
        time_limit = max_episode_steps(self.env) if self.env is not None and is_asked else None
        fill_in(vars(self), n_copies, time_limit, self.action_space)
        # A model that is loaded to act has other environments than in training: no word about minibatches then
        check_arguments(vars(self), n_copies if self.num_timesteps == 0 else None)
        # Derived here because `load` writes keyword arguments, cost_limit among them, into __dict__ before this call
        if self.cost_limit is None and self.takes_registered_limit and self.env is not None:
            vars(self)["cost_limit"] = registered_cost_limit(self.env)
            self._has_limit_of_env = True
            if self.verbose >= 1 and self.cost_limit is not None:
                print(f"Cost limit of the environment: {self.cost_limit}")
        self.cost_limits = self._parse_cost_limit(self.cost_limit)
        ledger = self.__dict__.get("ledger")
        if ledger is not None and self.has_cost_critic and ledger.n_costs != self.n_costs:
            error_class = ValueError if ledger.n_costs else OtherModel
            raise error_class(mistakes.other_number_of_costs(self.n_costs, ledger.n_costs))
        if ledger is None or not ledger.counts(self.cost_limits.keys, self.n_costs):
            self._forget_costs()
        self._cost_signal = CostSignal(self.cost_limits.keys, self.n_costs, self.missing_cost)
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = CostDictRolloutBuffer if is_dict else CostRolloutBuffer

        if clash := _SET_ON_BUFFER & set(self.rollout_buffer_kwargs):
            raise ValueError(f"rollout_buffer_kwargs has {min(clash)!r}: it is set by the algorithm, whose argument it is")
        # SB3 builds policy and buffer from these; what the user passed is what is saved
        policy_kwargs, rollout_buffer_kwargs = self.policy_kwargs, self.rollout_buffer_kwargs
        if issubclass(self.policy_class, CostActorCriticPolicy):
            self.policy_kwargs = {
                "normalize_observations": self._normalizes_observations(),
                "standardize_returns": True,
                **policy_kwargs,
                "n_costs": self.n_costs if self.has_cost_critic else 0,
            }
        self.rollout_buffer_kwargs = {"n_costs": self.n_costs, **rollout_buffer_kwargs}
        with policy_mistakes.names_policy_kwargs(self.policy_class, policy_kwargs):
            super()._setup_model()
        self.policy_kwargs, self.rollout_buffer_kwargs = policy_kwargs, rollout_buffer_kwargs

        if self.cost_shaping is not None:
            self.cost_shaping.setup(self.observation_space, self.n_costs, self.device)

    def set_random_seed(self, seed: int | None = None) -> None:
        """SB3's. Of several processes, each goes on where the seeds of the environments of the one before end."""
        super().set_random_seed(None if seed is None else seed + distributed.rank() * self.n_envs)

    def _normalizes_observations(self) -> bool:
        """Whether the policy does it: where no ``VecNormalize`` did when the model was made. Saved with the model."""
        vec_normalize = self.get_vec_normalize_env()
        is_done_outside = vec_normalize is not None and vec_normalize.norm_obs
        is_done_inside: bool = vars(self).setdefault("normalize_observations", not is_done_outside)
        if is_done_inside and is_done_outside:
            warnings.warn(
                "this model was made without VecNormalize and standardises observations itself: it will now see them "
                "standardised twice. Load it with an environment without VecNormalize, or with norm_obs=False there"
            )
        return is_done_inside

    def _forget_costs(self) -> None:
        """What was counted before training began anew, or of other costs."""
        self.ledger = CostLedger(self.cost_limits.keys, self.n_costs)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """SB3's, with a :class:`CostMonitor` where SB3 would put a ``Monitor``; gymnasium's vectorised environments, too."""
        env = as_vec_env(env)
        mistakes.check_env(env)
        env = with_cost_monitor(env, verbose) if monitor_wrapper else env
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _maybe_recommend_cpu(self, mlp_class_name: str = "CostActorCriticPolicy") -> None:
        super()._maybe_recommend_cpu(mlp_class_name)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        SB3's. What was estimated of the costs of another environment is forgotten (a loaded model has none yet), the record of
        what training has cost goes on.
        """
        is_another = self.env is not None
        super().set_env(env, force_reset)
        if is_another:
            safety = self.safety
            self._forget_costs()
            self.ledger.safety = safety
        if self._has_limit_of_env and self.env is not None and (limit := registered_cost_limit(self.env)) is not None:
            self.cost_limit = limit
            self._has_limit_of_env = True

    # ---------------------------------------------------------------- attributes

    def _parse_cost_limit(self, cost_limit: CostLimit | None) -> CostLimits:
        if cost_limit is None:
            raise MissingLimit(
                f"{type(self).__name__} needs a cost_limit, the bound on the mean cost of an episode: the environment has no "
                "attribute cost_limit that says one. sb3_cpo.check_cost_env(env) suggests one; TRPO is the algorithm without"
            )
        return parse_cost_limit(cost_limit)

    @property
    def cost_limit(self) -> CostLimit | None:
        """Bound on the mean cost of an episode. It can be assigned at any time, by a callback too; the next update uses it."""
        return vars(self)["cost_limit"]

    @cost_limit.setter
    def cost_limit(self, cost_limit: CostLimit | None) -> None:
        # In __dict__, where SB3 saves and loads it
        if "cost_limits" in vars(self):
            self.cost_limits = self._parse_same_costs(cost_limit)
        vars(self)["cost_limit"] = cost_limit
        self._has_limit_of_env = False

    def _parse_same_costs(self, cost_limit: CostLimit | None) -> CostLimits:
        limits, before = self._parse_cost_limit(cost_limit), self.cost_limits
        if (limits.keys, limits.n_costs) != (before.keys, before.n_costs):
            raise ValueError(
                f"cost_limit={cost_limit!r} limits other costs than {vars(self)['cost_limit']!r}, with which this model was "
                "made: save it, and load it with cost_limit=..."
            )
        return limits

    @property
    def n_costs(self) -> int:
        """Number of costs, one per constraint."""
        return self.cost_limits.n_costs

    @property
    def safety(self) -> SafetyRecord:
        """What training has cost so far."""
        return self.ledger.safety

    @property
    def raw_cost_estimate(self) -> CostEstimate | None:
        """J of the last rollout, as the environment emitted the costs."""
        return self.ledger.raw_estimate

    @property
    def cost_estimate(self) -> CostEstimate | None:
        """J of the last rollout that the algorithm constrains: of the shaped costs, where there is shaping."""
        return self.ledger.estimate

    @property
    def ep_cost_mean(self) -> np.ndarray:
        """J, the mean episode cost of the last rollout without any shaping, (n_costs,); NaN before the first."""
        return np.full(self.n_costs, np.nan) if self.raw_cost_estimate is None else self.raw_cost_estimate.mean

    @property
    def ep_rew_mean(self) -> float:
        """
        Mean return of the episodes that ended in the last rollout, those of ``ep_cost_mean``; NaN where none did.
        (SB3's ``rollout/ep_rew_mean`` covers the last 100 episodes, of older policies too.)
        """
        return self.ledger.ep_rew_mean

    @property
    def current_cost_limit(self) -> np.ndarray:
        """The limits at the present progress of training, (n_costs,)."""
        if isinstance(self.cost_limit, MutableMapping | MutableSequence | np.ndarray):
            # An entry may have been assigned
            self.cost_limits = self._parse_same_costs(self.cost_limit)
        return self.cost_limits.at(self._current_progress_remaining)

    def predict_cost_values(self, observation: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
        """
        The cost still to come in the episode, as the cost critic sees it: discounted by ``cost_gae_gamma`` where that is set.

        :param observation: one observation, or (n_envs, ...)
        :return: (n_envs, n_costs)
        """
        if isinstance(observation, tuple):
            raise ValueError(
                "the observation is a tuple, what gymnasium's reset returns perhaps: pass the first of its entries"
            )
        if not (self.has_cost_critic and critics.has_cost_critic(self.policy)):
            raise ValueError(f"this {type(self).__name__} has no cost critic")
        return critics.predict_cost_values(self.policy, self.policy.obs_to_tensor(observation)[0])
