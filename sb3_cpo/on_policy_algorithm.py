"""What all our algorithms share: they see costs, estimate the cost of an episode, fit critics and log."""

import warnings
from collections.abc import Sequence
from copy import copy
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, PyTorchObs, Schedule, TensorDict
from stable_baselines3.common.utils import explained_variance, obs_as_tensor, safe_mean
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.patch_gym import _patch_env
from torch import nn
from torch.nn import functional as F

from sb3_cpo.buffers import CostDictRolloutBuffer, CostRolloutBuffer, CostRolloutBufferSamples
from sb3_cpo.cost_limits import CostLimit, CostLimits, parse_cost_limit, read_costs, record_per_constraint
from sb3_cpo.cost_shaping import FailurePredictor, coming_costs
from sb3_cpo.episode_costs import CostEstimate, EpisodeCosts
from sb3_cpo.monitor import CostMonitor
from sb3_cpo.policies import CnnPolicy, CostActorCriticPolicy, MlpPolicy, MultiInputPolicy
from sb3_cpo.safety import SafetyRecord
from sb3_cpo.trust_region import Surrogates, TrustRegionStep, mean_kl_divergence, trust_region_step

# Observations for which values are predicted at once
PREDICTION_CHUNK = 8192
# Truncated importance sampling (Ionides, 2008): in rollouts of earlier policies, no single sample decides the surrogate
MAX_RATIO = 10.0

SelfConstrainedOnPolicyAlgorithm = TypeVar("SelfConstrainedOnPolicyAlgorithm", bound="ConstrainedOnPolicyAlgorithm")


class CostData(NamedTuple):
    """What a cost surrogate and a cost critic are made of: one rollout."""

    observations: PyTorchObs
    actions: th.Tensor
    """As the distribution's ``log_prob`` takes them."""
    old_log_prob: th.Tensor
    advantages: th.Tensor
    """(batch_size, n_costs) centred, in units of an episode's cost"""
    returns: th.Tensor
    """(batch_size, n_costs) the cost critic's targets"""


class ConstrainedOnPolicyAlgorithm(OnPolicyAlgorithm):
    """
    The base of on-policy algorithms that see costs.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str). Every step's ``info`` holds the costs
    :param cost_limit: Bound on the cost of an episode, mean over episodes. A number, or a sequence with one entry per
        constraint, limits ``info["cost"]``; a mapping limits the keys of ``info`` that it names. Each limit can be a function
        of the current progress remaining (from 1 to 0)
    :param learning_rate: The learning rate of the critics, it can be a function
        of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per update
        (i.e. rollout buffer size is n_steps * n_envs where n_envs is number of environment copies running in parallel).
        A multiple of the episode length gives the most honest estimates of the episode cost
    :param batch_size: Minibatch size for the critics
    :param gamma: Discount factor of the reward
    :param cg_max_steps: maximum number of steps in the Conjugate Gradient algorithm
        for computing the Hessian vector product
    :param cg_damping: damping in the Hessian vector product computation
    :param line_search_shrinking_factor: step-size reduction factor for the line-search
        (i.e., ``theta_new = theta + alpha^i * step``)
    :param line_search_max_iter: maximum number of iteration
        for the backtracking line-search
    :param n_critic_updates: number of epochs of critic updates per policy update
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
        instead of action noise exploration (default: False)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        Default: -1 (only sample at the beginning of the rollout)
    :param rollout_buffer_class: Rollout buffer class to use, a subclass of ``CostRolloutBuffer``.
        If ``None``, it will be automatically selected.
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param normalize_advantage: Whether to standardise the reward advantages. Cost advantages are centred and keep their units
    :param target_kl: Target Kullback-Leibler divergence between updates, of the joint action distribution
        (summed over action dimensions; sb3-contrib's TRPO averages over them). Values like 0.01, 0.05.
    :param fisher_sub_sampling_factor: Estimate the Fisher matrix on every n-th state only
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: the verbosity level: 0 no output, 1 info, 2 debug
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param cost_gamma: Discount factor of the costs. With 1, ``cost_limit`` bounds the plain sum of an episode's costs
    :param cost_gae_lambda: Factor for trade-off of bias vs variance for the cost advantages
    :param cost_gae_gamma: Discount factor of the cost critic and the cost advantages, where it is to differ from
        ``cost_gamma``, which discounts J. Below 1 it trades bias for variance (Schulman et al., 2016, section 3): an action is
        held responsible for the costs of the next 1 / (1 - cost_gae_gamma) steps
    :param cost_confidence: z: constrain the mean episode cost plus z standard errors. 0 constrains the mean
    :param cost_margin_lr: Step size of a margin that is added to the violation and grows while the limit is exceeded (integral
        action), so that what every update fails to deliver does not become a lasting excess. 0 is the paper's: no margin
    :param n_cost_rollouts: Rollouts, this one included, whose data make the cost surrogates and fit the cost critic. 1 is the
        paper's. With few episodes in a rollout, a step is mostly fitted to their noise and does not lower costs as it
        promises; earlier rollouts, weighted by importance ratios, lend it theirs
    :param cost_shaping: A ``FailurePredictor`` that adds a bonus to the costs before they occur, or None
    :param missing_cost: What a step without cost means: "error", or "zero" for environments that only mention costs
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    has_cost_critic: ClassVar[bool] = True
    """Whether the algorithm needs cost advantages, and with them a policy with a cost head."""

    policy: ActorCriticPolicy
    rollout_buffer: CostRolloutBuffer
    n_costs: int
    """Number of constraints."""
    _sees_costs: bool = True
    cost_limits: CostLimits
    raw_cost_estimate: CostEstimate | None = None
    """J as the environment emitted the costs."""
    cost_estimate: CostEstimate | None = None
    """J that the algorithm constrains: of the shaped costs, where there is shaping."""
    _previous_estimate: CostEstimate | None = None
    _promised_cost_change: np.ndarray | None = None
    """(n_costs,) change of the cost surrogates by the last update."""
    safety: SafetyRecord | None = None

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        cost_limit: CostLimit | None = 25.0,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 2048,
        batch_size: int = 128,
        gamma: float = 0.99,
        cg_max_steps: int = 10,
        cg_damping: float = 0.1,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 15,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[CostRolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: float = 0.01,
        fisher_sub_sampling_factor: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        cost_gamma: float = 1.0,
        cost_gae_lambda: float = 0.95,
        cost_gae_gamma: float | None = None,
        cost_confidence: float = 0.0,
        cost_margin_lr: float = 0.0,
        n_cost_rollouts: int = 1,
        cost_shaping: FailurePredictor | None = None,
        missing_cost: str = "error",
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=0.0,  # no entropy bonus in a trust region
            vf_coef=0.0,  # the critics are optimised separately
            max_grad_norm=0.0,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            device=device,
            seed=seed,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        self.cost_limit = cost_limit
        self.batch_size = batch_size
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.n_critic_updates = n_critic_updates
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.fisher_sub_sampling_factor = fisher_sub_sampling_factor
        self.cost_gamma = cost_gamma
        self.cost_gae_lambda = cost_gae_lambda
        self.cost_gae_gamma = cost_gae_gamma
        self.cost_confidence = cost_confidence
        self.cost_margin_lr = cost_margin_lr
        self.n_cost_rollouts = n_cost_rollouts
        self._cost_data: list[CostData] = []
        self.cost_shaping = cost_shaping
        self.missing_cost = missing_cost
        self._rollout_rewards: list[float] = []
        self._has_warned_of_no_episode = False
        self._n_unreachable = 0
        self._n_vanishing = 0

        if _init_setup_model:
            self._setup_model()

    # ---------------------------------------------------------------- construction

    def _setup_model(self) -> None:
        self._check_arguments()
        n_costs_before = getattr(self, "n_costs", None)
        # Derived here because `load` writes keyword arguments, cost_limit among them, into __dict__ before this call
        self.cost_limits = self._parse_cost_limit()
        self.n_costs = self.cost_limits.n_costs
        if self.has_cost_critic and n_costs_before not in (None, self.n_costs):
            raise ValueError(f"cost_limit has {self.n_costs} entries, but this model was trained with {n_costs_before}")
        if n_costs_before != self.n_costs:
            self._forget_costs()
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = CostDictRolloutBuffer if is_dict else CostRolloutBuffer

        # SB3 builds policy and buffer from these; what the user passed is what is saved
        policy_kwargs, rollout_buffer_kwargs = self.policy_kwargs, self.rollout_buffer_kwargs
        if issubclass(self.policy_class, CostActorCriticPolicy):
            self.policy_kwargs = {**policy_kwargs, "n_costs": self.n_costs if self.has_cost_critic else 0}
        self.rollout_buffer_kwargs = {
            "n_costs": self.n_costs,
            "cost_gamma": self.cost_gamma if self.cost_gae_gamma is None else self.cost_gae_gamma,
            "cost_gae_lambda": self.cost_gae_lambda,
            **rollout_buffer_kwargs,
        }
        super()._setup_model()
        self.policy_kwargs, self.rollout_buffer_kwargs = policy_kwargs, rollout_buffer_kwargs

        self.rollout_buffer.on_full = self._complete_rollout
        self._episode_costs: list[EpisodeCosts] = []
        if self.cost_shaping is not None:
            self.cost_shaping.setup(self.observation_space, self.n_costs, self.device)

    def _forget_costs(self) -> None:
        """What was counted of other costs, or before training began."""
        self.safety = None
        self.cost_estimate = self.raw_cost_estimate = self._previous_estimate = None
        self._episode_costs = []
        self._cost_data = []

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
        return safe_mean(self._rollout_rewards)

    @property
    def current_cost_limit(self) -> np.ndarray:
        """The limits at the present progress of training, (n_costs,)."""
        return self.cost_limits.at(self._current_progress_remaining)

    def _parse_cost_limit(self) -> CostLimits:
        if self.cost_limit is None:
            raise ValueError(f"{type(self).__name__} needs a cost_limit; TRPO is the algorithm without")
        return parse_cost_limit(self.cost_limit)

    def _check_arguments(self) -> None:
        if self.has_cost_critic and not issubclass(self.policy_class, CostActorCriticPolicy):
            raise ValueError(
                f"{type(self).__name__} needs a policy with a cost critic, a subclass of "
                f"sb3_cpo.policies.CostActorCriticPolicy; {self.policy_class.__name__} has none"
            )
        if self.rollout_buffer_class is not None and not issubclass(self.rollout_buffer_class, CostRolloutBuffer):
            raise ValueError(
                f"{type(self).__name__} needs a rollout buffer that holds costs, a subclass of "
                f"sb3_cpo.buffers.CostRolloutBuffer; {self.rollout_buffer_class.__name__} holds none"
            )
        if not self.has_cost_critic:
            defaults = {"cost_confidence": 0.0, "cost_margin_lr": 0.0, "n_cost_rollouts": 1, "cost_gae_gamma": None}
            for name, default in defaults.items():
                if getattr(self, name) != default:
                    raise ValueError(f"{type(self).__name__} has no constraints for {name}={getattr(self, name)}: it is CPO's")
        if self.missing_cost not in ("error", "zero"):
            raise ValueError(f'missing_cost must be "error" or "zero", not {self.missing_cost!r}')
        for name in (
            "target_kl",
            "cg_max_steps",
            "line_search_max_iter",
            "fisher_sub_sampling_factor",
            "n_cost_rollouts",
            "n_critic_updates",
            "batch_size",
            "n_steps",
        ):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
        for name in ("gamma", "gae_lambda", "cost_gamma", "cost_gae_lambda", "cost_gae_gamma"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {value}")
        if self.cost_gae_gamma is not None and self.cost_gae_gamma > self.cost_gamma:
            raise ValueError(
                f"cost_gae_gamma must not exceed cost_gamma={self.cost_gamma}, not {self.cost_gae_gamma}: the cost advantages "
                "would answer for costs that J no longer counts"
            )
        for name in ("cg_damping", "cost_confidence", "cost_margin_lr"):
            value = getattr(self, name)
            if not (value >= 0 and np.isfinite(value)):
                raise ValueError(f"{name} must be a finite number >= 0, not {value}")
        if not 0 < self.line_search_shrinking_factor < 1:
            raise ValueError(f"line_search_shrinking_factor must lie in (0, 1), not {self.line_search_shrinking_factor}")
        if self.env is not None:
            buffer_size = self.env.num_envs * self.n_steps
            if buffer_size < 2:
                raise ValueError(
                    "`n_steps * n_envs` must be greater than 1, because advantages are normalised. "
                    f"Currently n_steps={self.n_steps} and n_envs={self.env.num_envs}"
                )
            if buffer_size % self.batch_size > 0:
                warnings.warn(
                    f"batch_size={self.batch_size} does not divide n_steps * n_envs = {buffer_size}: "
                    f"the last minibatch of each epoch has {buffer_size % self.batch_size} samples "
                    f"(n_steps={self.n_steps}, n_envs={self.env.num_envs})"
                )

    def _env_spec(self) -> EnvSpec | None:
        assert self.env is not None
        try:
            return self.env.get_attr("spec", indices=0)[0]
        except (AttributeError, NotImplementedError):
            return None

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """SB3's, with a :class:`CostMonitor` where SB3 would put a ``Monitor``."""
        if not isinstance(env, VecEnv) and monitor_wrapper:
            env = _patch_env(env)
            if not is_wrapped(env, Monitor):
                if verbose >= 1:
                    print("Wrapping the env with a `CostMonitor` wrapper")
                env = CostMonitor(env)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _maybe_recommend_cpu(self, mlp_class_name: str = "CostActorCriticPolicy") -> None:
        super()._maybe_recommend_cpu(mlp_class_name)

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "cost_limits",
            "_cost_data",
            "_episode_costs",
            "_rollout_callback",
            "_terminal_obs",
        ]

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        SB3's. With ``exact_match=False``, the parameters can come from a PPO or TRPO policy without cost critic: actor and
        reward critic are taken over, the state of an optimizer that has other parameters is not.
        """
        if not exact_match:
            if isinstance(load_path_or_dict, dict):
                params: dict[str, Any] = dict(load_path_or_dict)
            else:
                params = load_from_zip_file(load_path_or_dict, device=device, load_data=False)[1]
            optimizer_state = params.get("policy.optimizer")
            if optimizer_state is not None and not _fits(optimizer_state, self.policy.optimizer):
                del params["policy.optimizer"]
            load_path_or_dict = params
        super().set_parameters(load_path_or_dict, exact_match, device)

    # ---------------------------------------------------------------- rollout

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        # SB3 resets the environments in exactly these cases
        if reset_num_timesteps:
            self._forget_costs()
        elif self._last_obs is None:
            self._episode_costs = []
            self._cost_data = []
        assert self.env is not None
        spec = self._env_spec()
        self._max_episode_steps = None if spec is None else spec.max_episode_steps
        if self.cost_limits.keys and all(self.env.env_is_wrapped(CostMonitor)):
            self.env.env_method("watch_costs", self.cost_limits.keys)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        self._rollout_callback = callback
        self._rollout_rewards = []
        self._terminal_obs: list[tuple[int, int, Any]] = []
        self._check_finite("observation", self._last_obs)
        for episode_costs in self._episode_costs:
            episode_costs.start_rollout()
        try:
            is_complete = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        except BaseException:
            # Interrupted: if `learn` is called again, the episodes in progress go on
            if not rollout_buffer.full:
                self._count_stopped_rollout()
            raise
        if not is_complete:
            # The callback stopped inside a step, which SB3 then forgets; the episodes in progress must not lose its costs
            step = callback.locals
            self._update_info_buffer(step["infos"], step["dones"])
            rollout_buffer.add(
                self._last_obs,  # type: ignore[arg-type]
                step["actions"],
                step["rewards"],
                self._last_episode_starts,  # type: ignore[arg-type]
                step["values"],
                step["log_probs"],
            )
            self._last_obs, self._last_episode_starts = step["new_obs"], step["dones"]
            self._count_stopped_rollout()
        return is_complete

    def _count_stopped_rollout(self) -> None:
        """Count the costs of a rollout that ends before the buffer is full and makes no update."""
        n_steps = self.rollout_buffer.pos
        self.safety = self.safety or SafetyRecord(self.n_costs)
        self.safety.add_costs(self.rollout_buffer.costs[:n_steps])
        self._sum_episode_costs(n_steps)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        """SB3 calls this at every step, before ``rollout_buffer.add``: ``rollout_buffer.pos`` is the row being written."""
        assert dones is not None
        step = self._rollout_callback.locals
        self._check_finite("reward", step["rewards"])
        self._check_finite("observation", step["new_obs"])
        self._read_costs(infos)
        self.rollout_buffer.episode_ends[self.rollout_buffer.pos] = dones
        for index in np.flatnonzero(dones).tolist():
            info = infos[index]
            if "episode" in info:
                self._rollout_rewards.append(float(info["episode"]["r"]))
            terminal_obs = info.get("terminal_observation")
            self._check_finite("terminal observation", terminal_obs, index)
            # The limit is on the episode: with cost_gamma = 1 its end is the end of its costs, at a time limit too
            if self.cost_gamma < 1 and self.has_cost_critic and info.get("TimeLimit.truncated", False):
                self._terminal_obs.append((self.rollout_buffer.pos, index, terminal_obs))
        super()._update_info_buffer(infos, dones)

    def _read_costs(self, infos: list[dict[str, Any]]) -> None:
        if self.n_costs == 0:
            return
        keys = self.cost_limits.keys
        if self.missing_cost == "zero":
            nothing: Any = np.zeros(self.n_costs) if keys is None and self.n_costs > 1 else 0.0
            defaults = dict.fromkeys(keys or ("cost",), nothing)
            infos = [{**defaults, **info} for info in infos]
        try:
            self.rollout_buffer.costs[self.rollout_buffer.pos] = read_costs(infos, keys, self.n_costs)
        except KeyError as error:
            index, key, found = error.args
            raise KeyError(
                f"info has no {key!r}: {self._name_env(index)}, step {self.num_timesteps}; info has the keys {found}. "
                f"Costs reach the algorithm as info[{key!r}]: wrap the environment in safe_envs.CostWrapper, name the right "
                f"key with cost_limit={{key: limit}}, or pass missing_cost='zero' if a missing cost means 0"
            ) from None
        except ValueError as error:
            raise ValueError(f"{error} ({self._name_env()}, step {self.num_timesteps})") from None

    def _name_env(self, index: int | None = None) -> str:
        spec = self._env_spec()
        name = "environment" if index is None else f"environment {index}"
        return name if spec is None else f"{name} ({spec.id})"

    def _check_finite(self, what: str, value: Any, env_index: int | None = None) -> None:
        arrays: dict[str | None, Any] = value if isinstance(value, dict) else {None: value}
        for key, array in arrays.items():
            # A terminal observation comes as the environment made it, a Python integer perhaps
            array = np.asarray(array)
            if array.dtype.kind != "f" or np.isfinite(array).all():
                continue
            if env_index is None:
                env_index = int(np.argwhere(~np.isfinite(array))[0][0])
                array = array[env_index]
            place = "" if key is None else f"[{key!r}]"
            raise ValueError(
                f"the {what}{place} is NaN or infinite: {array} ({self._name_env(env_index)}, step {self.num_timesteps})"
            )

    def _sum_episode_costs(self, n_steps: int) -> None:
        """Shape the costs of the buffer's first steps, and add them to the sums of the episodes in progress."""
        buffer = self.rollout_buffer
        if not self._episode_costs:
            n_sums = 1 if self.cost_shaping is None else 2
            self._episode_costs = [EpisodeCosts(buffer.n_envs, self.n_costs, self.cost_gamma) for _ in range(n_sums)]
        raw_costs = buffer.costs[:n_steps].copy()
        if self.cost_shaping is not None:
            bonus = self.cost_shaping.bonus(_slice(self._flat_observations(), slice(n_steps * buffer.n_envs)))
            buffer.costs[:n_steps] += bonus.reshape(raw_costs.shape)
        for episode_costs, costs in zip(self._episode_costs, (raw_costs, buffer.costs), strict=False):
            for step in range(n_steps):
                episode_costs.add(costs[step], buffer.episode_ends[step])

    def _complete_rollout(self) -> None:
        """
        The rollout is full: estimate J, the values of the costs and their advantages. The buffer calls this before it computes
        the reward advantages, so that callbacks see everything in ``on_rollout_end``.
        """
        buffer = self.rollout_buffer
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        raw_costs = buffer.costs.copy()
        self._sum_episode_costs(buffer.buffer_size)
        last_values = self._compute_cost_advantages() if self.has_cost_critic and self.n_costs > 0 else None
        self._previous_estimate = self.cost_estimate
        # Values with another discount than J's say nothing about what is still to come of J
        cut_values = last_values if buffer.cost_gamma == self.cost_gamma else None
        self.raw_cost_estimate = self._episode_costs[0].estimate(cut_values, self._max_episode_steps)
        self.cost_estimate = self._episode_costs[-1].estimate(cut_values, self._max_episode_steps)
        self.safety = self.safety or SafetyRecord(self.n_costs)
        if self.cost_estimate.n_episodes == 0 and self.n_costs > 0 and not self._has_warned_of_no_episode:
            self._has_warned_of_no_episode = True
            warnings.warn(
                f"no episode ended in this rollout of {buffer.buffer_size} steps: the cost of an episode is estimated from "
                "what it has cost so far. Raise n_steps, or give the environment a time limit"
            )
        is_known = self.cost_estimate.n_episodes > 0
        self.safety.add(raw_costs, self.ep_cost_mean - self.current_cost_limit, self.num_timesteps, is_known)
        if self.cost_shaping is not None:
            self._fit_cost_shaping(self.cost_shaping, raw_costs)
        buffer.rewards[:] = self._combine_rewards(buffer.rewards, buffer.costs)

    def _fit_cost_shaping(self, predictor: FailurePredictor, raw_costs: np.ndarray) -> None:
        """After this batch's bonus: the bonus comes from earlier batches."""
        buffer = self.rollout_buffer
        labels = coming_costs(raw_costs, buffer.episode_ends, predictor.horizon).reshape(-1, self.n_costs)
        self.logger.record("train/cost_shaping_loss", predictor.fit(self._flat_observations(), labels))
        self._record("train/cost_bonus", (buffer.costs - raw_costs).mean(axis=(0, 1)))

    def _flat_observations(self) -> Any:
        """The buffer's observations with steps and environments on one axis."""

        def flatten(obs: np.ndarray) -> np.ndarray:
            return obs.reshape(-1, *obs.shape[2:])

        obs: Any = self.rollout_buffer.observations
        return {key: flatten(value) for key, value in obs.items()} if isinstance(obs, dict) else flatten(obs)

    def _compute_cost_advantages(self) -> np.ndarray:
        """Fill ``cost_values``, ``cost_advantages`` and ``cost_returns``; return the values at the cut, (n_envs, n_costs)."""
        buffer = self.rollout_buffer
        assert self._last_obs is not None
        obs = self._flat_observations()
        chunks = [
            slice(start, start + PREDICTION_CHUNK) for start in range(0, buffer.buffer_size * buffer.n_envs, PREDICTION_CHUNK)
        ]
        # As SB3 stores them: a discrete observation has a second dimension there
        values = [self._cost_values(obs_as_tensor(_slice(obs, chunk), self.device)) for chunk in chunks]
        buffer.cost_values = np.concatenate(values).reshape(buffer.costs.shape)
        last_values = self._cost_values(obs_as_tensor(self._last_obs, self.device))
        next_values = np.concatenate([buffer.cost_values[1:], last_values[None]])
        next_values[buffer.episode_ends] = 0.0
        for pos, index, terminal_obs in self._terminal_obs:
            next_values[pos, index] = self.predict_cost_values(terminal_obs)[0]
        buffer.compute_cost_returns_and_advantages(next_values)
        return np.where(buffer.episode_ends[-1][:, None], 0.0, last_values)

    def predict_cost_values(self, observation: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
        """
        The cost still to come in the episode, as the cost critic sees it: discounted by ``cost_gae_gamma`` where that is set.

        :param observation: one observation, or (n_envs, ...)
        :return: (n_envs, n_costs)
        """
        if not (self.has_cost_critic and isinstance(self.policy, CostActorCriticPolicy) and self.n_costs > 0):
            raise ValueError(f"this {type(self).__name__} has no cost critic")
        return self._cost_values(self.policy.obs_to_tensor(observation)[0])

    @th.no_grad()
    def _cost_values(self, obs: PyTorchObs) -> np.ndarray:
        self.policy.set_training_mode(False)
        return self.policy.predict_cost_values(obs).cpu().numpy().astype(np.float64)  # type: ignore[operator]

    def _combine_rewards(self, rewards: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """
        The reward that is maximised, for algorithms that mix costs into it.

        :param rewards: (n_steps, n_envs)
        :param costs: (n_steps, n_envs, n_costs)
        """
        return rewards

    # ---------------------------------------------------------------- update

    def train(self) -> None:
        """Update policy and critics using the currently gathered rollout buffer."""
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        # This will only loop once (get all data in one go)
        for rollout_data in self.rollout_buffer.get(batch_size=None):
            params = self._actor_parameters(rollout_data)
            step = self._update_policy(rollout_data, params)
        value_losses, cost_value_losses = self._update_critics(params)
        self._cost_data = self._cost_data[max(len(self._cost_data) - self.n_cost_rollouts + 1, 0) :]
        self._n_updates += 1
        self._log(step, value_losses, cost_value_losses)

    def _actor_parameters(self, rollout_data: CostRolloutBufferSamples) -> list[nn.Parameter]:
        """The parameters that the action distribution depends on, whatever modules a custom policy keeps them in."""
        params = [param for param in self.policy.parameters() if param.requires_grad]
        few = _thin(rollout_data, max(len(rollout_data.actions) // 8, 1))
        log_prob = self.policy.get_distribution(few.observations).log_prob(self._actions(few))
        grads = th.autograd.grad(log_prob.sum(), params, allow_unused=True)
        return [param for param, grad in zip(params, grads, strict=True) if grad is not None]

    def _actions(self, rollout_data: CostRolloutBufferSamples) -> th.Tensor:
        # Convert discrete action from float to long
        is_discrete = isinstance(self.action_space, spaces.Discrete)
        return rollout_data.actions.long().flatten() if is_discrete else rollout_data.actions

    def _update_policy(self, rollout_data: CostRolloutBufferSamples, params: Sequence[nn.Parameter]) -> TrustRegionStep:
        """Choose objective and constraints, and take the step. Implemented by individual algorithms."""
        raise NotImplementedError

    def _trust_region_step(
        self,
        rollout_data: CostRolloutBufferSamples,
        params: Sequence[nn.Parameter],
        cost_data: Sequence[CostData],
        violation: np.ndarray,
    ) -> TrustRegionStep:
        """
        :param params: the parameters that the step may move
        :param cost_data: what the cost surrogates are estimated on, the last entry of this rollout; empty without constraints
        :param violation: (n_constraints,)
        """
        actions = self._actions(rollout_data)
        advantages = rollout_data.advantages
        if self.normalize_advantage:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        thinned = _thin(rollout_data, self.fisher_sub_sampling_factor)
        with th.no_grad():
            # SB3's distributions are mutable singletons
            old_distribution = copy(self.policy.get_distribution(rollout_data.observations))
            old_thinned_distribution = copy(self.policy.get_distribution(thinned.observations))

        def evaluate() -> Surrogates:
            distribution = copy(self.policy.get_distribution(rollout_data.observations))
            # ratio between old and new policy, one at the first evaluation
            ratio = th.exp(distribution.log_prob(actions) - rollout_data.old_log_prob)
            return Surrogates(
                objective=(ratio * advantages).mean(),
                costs=self._cost_surrogates(cost_data, ratio),
                kl_div=mean_kl_divergence(old_distribution, distribution),
            )

        def evaluate_kl() -> th.Tensor:
            return mean_kl_divergence(old_thinned_distribution, self.policy.get_distribution(thinned.observations))

        return trust_region_step(
            params,
            evaluate,
            violation,
            self.target_kl,
            cg_max_steps=self.cg_max_steps,
            cg_damping=self.cg_damping,
            shrinking_factor=self.line_search_shrinking_factor,
            line_search_max_iter=self.line_search_max_iter,
            evaluate_kl=evaluate_kl if self.fisher_sub_sampling_factor > 1 else None,
        )

    def _cost_surrogates(self, cost_data: Sequence[CostData], ratio: th.Tensor) -> th.Tensor:
        """
        (n_costs,), mean over rollouts. Ratios of earlier rollouts are truncated.

        :param ratio: (batch_size,) of the last entry, which is this rollout's
        """
        if not cost_data:
            return ratio.new_zeros(0)
        ratios = []
        for data in cost_data[:-1]:
            log_prob = self.policy.get_distribution(data.observations).log_prob(data.actions)
            ratios.append(th.exp(log_prob - data.old_log_prob).clamp(max=MAX_RATIO))
        return th.stack(
            [
                (ratio.unsqueeze(1) * data.advantages).mean(dim=0)
                for data, ratio in zip(cost_data, [*ratios, ratio], strict=True)
            ]
        ).mean(dim=0)

    def _update_critics(self, actor_params: Sequence[nn.Parameter]) -> tuple[list[float], list[float]]:
        """Fit reward and cost critic in one loop over minibatches; return their losses."""
        value_losses, cost_value_losses = [], []
        has_cost_head = self.has_cost_critic and self.n_costs > 0
        if has_cost_head:
            cost_returns = self.rollout_buffer.to_torch(self.rollout_buffer.cost_returns.astype(np.float32))
            self.policy.update_cost_statistics(cost_returns)  # type: ignore[operator]
        for _ in range(self.n_critic_updates):
            for rollout_data in self.rollout_buffer.get(self.batch_size):
                values_pred = self.policy.predict_values(rollout_data.observations)
                loss = F.mse_loss(rollout_data.returns, values_pred.flatten())
                value_losses.append(loss.item())
                if has_cost_head:
                    observations, cost_returns = self._cost_minibatch(rollout_data)
                    cost_values_pred = self.policy.predict_standardised_cost_values(observations)  # type: ignore[operator]
                    targets = self.policy.standardise_costs(cost_returns)  # type: ignore[operator]
                    # Mean over samples, sum over constraints: one constraint learns no slower for the presence of another
                    cost_value_loss = ((targets - cost_values_pred) ** 2).mean(dim=0).sum()
                    cost_value_losses.append(cost_value_loss.item() / self.n_costs)
                    loss = loss + cost_value_loss
                self.policy.optimizer.zero_grad()
                loss.backward()
                # Removing gradients of parameters shared with the actor
                # otherwise it defeats the purposes of the KL constraint
                for param in actor_params:
                    param.grad = None
                self.policy.optimizer.step()
        return value_losses, cost_value_losses

    def _cost_minibatch(self, rollout_data: CostRolloutBufferSamples) -> tuple[PyTorchObs, th.Tensor]:
        """What the cost critic is fitted to: this minibatch, or as many samples of one of the recent rollouts."""
        if self.n_cost_rollouts == 1 or not self._cost_data:
            return rollout_data.observations, rollout_data.cost_returns
        # From the generator that SB3 seeds, and draws its minibatches with
        data = self._cost_data[np.random.randint(len(self._cost_data))]  # noqa: NPY002
        indices = np.random.randint(len(data.returns), size=len(rollout_data.returns))  # noqa: NPY002
        on_device = th.as_tensor(indices, device=self.device)
        return _slice(data.observations, on_device), data.returns[on_device]

    # ---------------------------------------------------------------- logs

    def _record(self, key: str, values: np.ndarray) -> None:
        """Log one number per constraint, as ``key`` or ``key/name``; nothing where no cost has been seen."""
        if self._sees_costs and self.n_costs > 0:
            record_per_constraint(self.logger, key, self.cost_limits.names, values)

    def _log(self, step: TrustRegionStep, value_losses: list[float], cost_value_losses: list[float]) -> None:
        buffer = self.rollout_buffer
        self.logger.record("train/policy_objective", float(step.surrogates.objective))
        self.logger.record("train/kl_divergence_loss", float(step.surrogates.kl_div))
        self.logger.record("train/step_size", step.step_size)
        self.logger.record("train/is_line_search_success", float(step.step_size > 0))
        self.logger.record("train/lambda", step.lam)
        self.logger.record("train/cg_residual", step.cg_residual)
        for reason, count in step.rejections.items():
            self.logger.record(f"train/n_rejected_{reason}", count, exclude=("stdout", "log"))
        self.logger.record("train/value_loss", np.mean(value_losses))
        self.logger.record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
        if cost_value_losses:
            self.logger.record("train/cost_value_loss", np.mean(cost_value_losses))
            pairs = zip(buffer.cost_values.T, buffer.cost_returns.T, strict=True)
            self._record("train/cost_explained_variance", np.array([explained_variance(*pair) for pair in pairs]))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def dump_logs(self, iteration: int = 0) -> None:
        """Write log."""
        if self._rollout_rewards:
            self.logger.record("rollout/ep_rew_mean_rollout", self.ep_rew_mean)
        estimate = self.raw_cost_estimate
        if estimate is not None and self.safety is not None and self.n_costs > 0 and self._sees_costs:
            self._record("rollout/ep_cost_mean", estimate.mean)
            self._record("rollout/ep_cost_std_error", estimate.standard_error)
            self.logger.record("rollout/n_episodes", estimate.n_episodes)
            self.logger.record("rollout/stale_share", estimate.stale_share, exclude=("stdout", "log"))
            self._record("safety/cumulative_cost", self.safety.cumulative_cost)
            self._record("safety/cost_rate", self.safety.cost_rate)
        if self.cost_limits.is_limited and self.safety is not None:
            self._record("rollout/cost_limit", self.current_cost_limit)
            self._record("safety/violation_rate", self.safety.violation_rate)
            self._record("safety/cost_regret", self.safety.cost_regret)
            self._record("safety/longest_streak", self.safety.longest_streak)
            self.logger.record("safety/first_feasible_step", self.safety.first_feasible_step)
        estimate = self.cost_estimate
        if estimate is not None and self.cost_shaping is not None:
            self._record("rollout/ep_shaped_cost_mean", estimate.mean)
        if estimate is not None and self._previous_estimate is not None and self.n_costs > 0:
            # What the last update did to J, in the same row as what it had promised (train/cost_surrogate)
            # (recorded again: an evaluation inside the rollout has written the update's own row)
            before = self._previous_estimate
            if self._promised_cost_change is not None:
                self._record("train/cost_surrogate", self._promised_cost_change)
            self._record("train/realised_cost_change", estimate.mean - before.mean)
            self._record("train/realised_cost_change_se", np.hypot(estimate.standard_error, before.standard_error))
        super().dump_logs(iteration)

    def learn(
        self: SelfConstrainedOnPolicyAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfConstrainedOnPolicyAlgorithm:
        super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name or type(self).__name__,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
        if self.verbose >= 1 and self.cost_limits.is_limited and self.safety is not None:
            print(self.safety.summary(self.cost_limits.names))
        return self


def _fits(state: dict[str, Any], optimizer: th.optim.Optimizer) -> bool:
    """Whether the saved state of an optimizer, Adam's moments for instance, has the shapes of the parameters."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    if len(params) != len(indices):
        return False
    return all(
        value.shape == param.shape
        for index, param in zip(indices, params, strict=True)
        for value in state["state"].get(index, {}).values()
        if isinstance(value, th.Tensor) and value.ndim > 0
    )


def _slice(data: Any, index: slice | th.Tensor) -> Any:
    return {key: value[index] for key, value in data.items()} if isinstance(data, dict) else data[index]


def _thin(rollout_data: CostRolloutBufferSamples, factor: int) -> CostRolloutBufferSamples:
    """Every ``factor``-th sample."""
    return CostRolloutBufferSamples(*(_slice(data, slice(None, None, factor)) for data in rollout_data))
