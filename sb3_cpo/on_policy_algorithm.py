"""SB3's on-policy loop for algorithms that see costs: it reads and counts them, and asks the algorithm for an update."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_cpo import critics, log_keys
from sb3_cpo.arguments import check_arguments
from sb3_cpo.buffers import CostRolloutBuffer, CostRolloutBufferSamples
from sb3_cpo.cost_ledger import Ends
from sb3_cpo.cost_model import CostModel
from sb3_cpo.cost_signal import LARGEST_COST, MissingCost
from sb3_cpo.defaults import TOTAL_TIMESTEPS
from sb3_cpo.env_facts import check_finite, episode_length, name_env, notice_resets
from sb3_cpo.env_watch import EnvWatch
from sb3_cpo.episode_costs import CostEstimate
from sb3_cpo.log_keys import Row
from sb3_cpo.monitor import CostMonitor

# Fewer episodes in a rollout are worth a warning
FEW_EPISODES = 10

SelfConstrainedOnPolicyAlgorithm = TypeVar("SelfConstrainedOnPolicyAlgorithm", bound="ConstrainedOnPolicyAlgorithm")


class Rollout(NamedTuple):
    """What an update is made of."""

    samples: CostRolloutBufferSamples
    """All steps; several environments one after the other."""
    cost: CostEstimate
    """J, with shaping where there is shaping."""
    limit: np.ndarray
    """(n_costs,)"""
    actor_params: list[nn.Parameter]
    """What the action distribution depends on."""

    @property
    def violation(self) -> np.ndarray:
        """(n_costs,) J minus limit; > 0: exceeded"""
        return self.cost.mean - self.limit


class ConstrainedOnPolicyAlgorithm(CostModel):
    """
    The base of on-policy algorithms that see costs. It knows nothing of how the policy is updated: an algorithm says that in
    ``_update_policy(rollout)``, which returns a row of the log.

    Arguments: see :class:`~sb3_cpo.cost_model.CostModel`.
    """

    _knows_lives: bool
    """Whether somebody has looked, in this call of ``learn``, if episodes end before those of the monitors do"""

    # ---------------------------------------------------------------- rollout

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if self.env is None:
            raise ValueError(f"this {type(self).__name__} has no environment: pass env= to load, or call set_env first")
        # What the user assigned since then
        check_arguments(vars(self), None)
        self._knows_lives = False
        # SB3 resets the environments in exactly these cases
        if reset_num_timesteps:
            self._forget_costs()
        elif self._last_obs is None:
            self._forget_episodes()
        with EnvWatch(self.env, lambda: self.num_timesteps):
            is_silence_zero = self.missing_cost == "zero"
            is_one_cost = is_silence_zero and self.cost_limits.is_limited and self.n_costs == 1
            keys = self.cost_limits.keys or (("cost",) if is_one_cost else ())
            if keys and all(self.env.env_is_wrapped(CostMonitor)):
                self.env.env_method("watch_costs", keys, is_silence_zero)
            return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _forget_episodes(self) -> None:
        """The environments are reset, perhaps they are others."""
        self.ledger.forget_episodes()

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        self._check_buffer(rollout_buffer, n_rollout_steps)
        # Assigned since then, perhaps
        rollout_buffer.gamma, rollout_buffer.gae_lambda = self.gamma, self.gae_lambda
        rollout_buffer.cost_gamma = self.cost_gamma if self.cost_gae_gamma is None else self.cost_gae_gamma
        rollout_buffer.cost_gae_lambda = self.cost_gae_lambda
        self.ledger.start_rollout()
        check_finite("observation", self._last_obs, env, self.num_timesteps)
        self._rollout_callback, rollout_buffer.on_full = callback, self._complete_rollout
        watch = EnvWatch(env, lambda: self.num_timesteps)
        try:
            with notice_resets(env, rollout_buffer), watch:
                is_complete = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
            if not is_complete:
                self._finish_stopped_step(callback.locals)
            elif rollout_buffer.on_full is not None:
                name = f"{type(rollout_buffer).__name__}.compute_returns_and_advantage"
                raise ValueError(f"{name} must call that of CostRolloutBuffer: the costs of the rollout were not counted")
        except BaseException as error:
            # Interrupted: if `learn` is called again, the episodes in progress go on
            if not rollout_buffer.full:
                self._count_stopped_rollout()
            if watch.is_step_lost or isinstance(error, Exception):
                # unless nobody knows where the environments stand: they will be reset
                self._last_obs = None
            raise
        finally:
            # They hold the user's callback, its locals and this model
            del self._rollout_callback
            rollout_buffer.on_full = None
        return is_complete

    def _check_buffer(self, buffer: RolloutBuffer, n_steps: int) -> None:
        """The user may have replaced it."""
        if not isinstance(buffer, CostRolloutBuffer):
            raise ValueError(f"the rollout buffer has no costs: it is a {type(buffer).__name__}")
        has, needs = (buffer.buffer_size, buffer.n_envs, buffer.n_costs), (n_steps, self.n_envs, self.n_costs)
        if has != needs:
            raise ValueError(f"the rollout buffer has room for {has} steps, environments and costs; this model needs {needs}")

    def _finish_stopped_step(self, step: dict[str, Any]) -> None:
        """The callback stopped inside a step, which SB3 then forgets; the episodes in progress must not lose its costs."""
        self._update_info_buffer(step["infos"], step["dones"])
        self.rollout_buffer.add(
            self._last_obs,  # type: ignore[arg-type]
            step["actions"],
            step["rewards"],
            self._last_episode_starts,  # type: ignore[arg-type]
            step["values"],
            step["log_probs"],
        )
        self._last_obs, self._last_episode_starts = step["new_obs"], step["dones"]
        self._count_stopped_rollout()

    def _count_stopped_rollout(self) -> None:
        """Count the costs of a rollout that ends before the buffer is full and makes no update."""
        n_steps = self.rollout_buffer.pos
        self.safety.add_costs(self.rollout_buffer.costs[:n_steps])
        self._add_costs(n_steps)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        """SB3 calls this at every step, before ``rollout_buffer.add``: ``rollout_buffer.pos`` is the row being written."""
        assert dones is not None
        buffer, step = self.rollout_buffer, self._rollout_callback.locals
        if buffer is not step["rollout_buffer"]:
            raise ValueError("model.rollout_buffer was replaced within a rollout: replace it between two calls of learn")
        env = step["env"]
        # What the environments say is finite (`EnvWatch`)
        source = "" if env is env.unwrapped else f" from {type(env).__name__}"
        for what, values in (("reward", step["rewards"]), ("observation", step["new_obs"])):
            check_finite(what + source, values, env, self.num_timesteps, largest=LARGEST_COST)
        costs, lengths = self._read_costs(infos), {}
        for index in np.flatnonzero(dones).tolist():
            info = infos[index]
            if "episode" not in info:
                self._warn_of_lost_lives(env)
            else:
                self.ledger.returns.append(float(info["episode"]["r"]))
                lengths[index] = info["episode"]["l"]
            terminal_obs = info.get("terminal_observation")
            check_finite("terminal observation" + source, terminal_obs, env, self.num_timesteps, index, LARGEST_COST)
            # The limit is on the episode: with cost_gamma = 1 its end is the end of its costs, at a time limit too
            if self.cost_gamma < 1 and self.has_cost_critic and info.get("TimeLimit.truncated", False):
                buffer.cut_at_time_limit.append((buffer.pos, index, terminal_obs))
        buffer.add_step_info(costs, dones, lengths)
        super()._update_info_buffer(infos, dones)

    def _warn_of_lost_lives(self, env: VecEnv) -> None:
        """An episode has ended of which no monitor says anything."""
        if not self._knows_lives and all(env.env_is_wrapped(Monitor)):
            warnings.warn(
                "an episode ended that goes on for the monitor: a wrapper around it ends episodes, at a lost life perhaps "
                "(EpisodicLifeEnv). The mean episode cost and its limit are of these short episodes; monitor.csv and "
                "evaluations sum the costs of the whole game"
            )
        self._knows_lives = True

    def _read_costs(self, infos: list[dict[str, Any]]) -> np.ndarray:
        """(n_envs, n_costs)"""
        assert self.env is not None
        try:
            return self._cost_signal.read(infos)
        except MissingCost as error:
            error.place = f"{name_env(self.env, error.env_index)}, step {self.num_timesteps}"
            raise
        except ValueError as error:
            raise ValueError(f"{error} ({name_env(self.env)}, step {self.num_timesteps})") from None

    def _add_costs(self, n_steps: int) -> None:
        """Add the buffer's first steps to the sums of the episodes in progress, with the bonus of shaping."""
        buffer = self.rollout_buffer
        bonus = None if self.cost_shaping is None else self.cost_shaping.shape(buffer, n_steps)
        ends = Ends(buffer.episode_ends[:n_steps], buffer.is_counted[:n_steps], buffer.monitor_lengths[:n_steps])
        self.ledger.add_steps(buffer.costs[:n_steps], bonus, ends, self.cost_gamma)

    def _complete_rollout(self) -> None:
        """
        The rollout is full: estimate J, the values of the costs and their advantages. The buffer calls this before it computes
        the reward advantages, so that callbacks see everything in ``on_rollout_end``.
        """
        buffer, ledger, env = self.rollout_buffer, self.ledger, self.env
        assert env is not None
        buffer.on_full = None
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        if self.cost_gamma < 1:
            buffer.cost_discounts = self.cost_gamma ** ledger.steps_in_episode(buffer.episode_ends)[:, :, None]
        self._add_costs(buffer.buffer_size)
        cut_values = None
        if self.has_cost_critic and self.n_costs > 0:
            last_values = critics.value_costs(self.policy, buffer, self._last_obs, self.device)
            # Values with another discount than J's say nothing about what is still to come of J
            cut_values = last_values if buffer.cost_gamma == self.cost_gamma else None
        before = ledger.estimate
        # Asked only where it is needed: environments may be other processes
        length = None if buffer.is_counted.any() else episode_length(env)
        estimate = ledger.close_rollout(cut_values, length, self.cost_estimator)
        is_known = estimate.n_episodes > 0
        if not is_known and self.n_costs > 0 and (before is None or before.n_episodes > 0):
            warnings.warn(
                f"no episode ended in this rollout of {buffer.buffer_size} steps: the cost of an episode is estimated from "
                "what it has cost so far. Raise n_steps, or give the environment a time limit"
            )
        if is_known and before is None and estimate.n_episodes < FEW_EPISODES and self.cost_limits.is_limited:
            warnings.warn(
                f"only {estimate.n_episodes} episodes ended in the first rollout of {buffer.buffer_size * buffer.n_envs} "
                "steps: the mean cost of so few says little, and how it changes with the policy less. Raise n_steps "
                f"(now {self.n_steps})"
            )
        ledger.safety.add(buffer.costs, self.ep_cost_mean - self.current_cost_limit, self.num_timesteps, is_known)
        if self.cost_shaping is not None and buffer.cost_bonus is not None:
            # After this batch's bonus: the bonus comes from earlier batches
            self._record(log_keys.of_shaping(self.cost_shaping.fit_to(buffer), buffer.cost_bonus))
        buffer.rewards[:] = self._combine_rewards(buffer.rewards, buffer.constrained_costs)

    def _combine_rewards(self, rewards: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """
        The reward that is maximised, for algorithms that mix costs into it.

        :param rewards: (n_steps, n_envs)
        :param costs: (n_steps, n_envs, n_costs)
        """
        return rewards

    # ---------------------------------------------------------------- update

    def train(self) -> None:
        """Update policy and critics using the currently gathered rollout buffer: all of them, or none if it fails."""
        self._update_learning_rate(self.policy.optimizer)
        put_back = critics.snapshot(self.policy)
        try:
            is_first = self._take_first_statistics()
            rollout = self._rollout()
            if is_first:
                rollout = self._as_acted_by_present_policy(rollout)
            row = self._update_policy(rollout) | self._fit_critics(rollout)
            # Asked by name: `torch.compile` hides the class
            if not is_first and hasattr(self.policy, "update_observation_statistics"):
                self.policy.update_observation_statistics(self.rollout_buffer.flat_observations())
        except BaseException:
            put_back()
            # Nothing is to be expected of an update that did not happen
            self.ledger.predicted_change = None
            raise
        self._n_updates += 1
        self._record({**row, "train/n_updates": self._n_updates})

    def _rollout(self) -> Rollout:
        # As in the rollout (this affects batch norm / dropout): the policy that acted is the one that is changed
        self.policy.set_training_mode(False)
        samples = next(self.rollout_buffer.get(batch_size=None))
        assert self.cost_estimate is not None
        return Rollout(samples, self.cost_estimate, self.current_cost_limit, critics.actor_parameters(self.policy, samples))

    def _take_first_statistics(self) -> bool:
        """
        The first statistics of observations change the policy more than all later ones together. They are taken before the
        first update, while its actions hardly depend on the observations, and not after it, unseen by the trust region.
        """
        if not getattr(self.policy, "lacks_observation_statistics", False):
            return False
        self.policy.update_observation_statistics(self.rollout_buffer.flat_observations())  # type: ignore[operator]
        return True

    @th.no_grad()
    def _as_acted_by_present_policy(self, rollout: Rollout) -> Rollout:
        samples = rollout.samples
        log_prob = self.policy.get_distribution(samples.observations).log_prob(samples.actions)
        return rollout._replace(samples=samples._replace(old_log_prob=log_prob))

    def _update_policy(self, rollout: Rollout) -> Row:
        """Change the policy, and say how. Implemented by individual algorithms."""
        raise NotImplementedError

    def _fit_critics(self, rollout: Rollout, recent: Sequence[critics.CriticBatch] = ()) -> Row:
        """
        :param recent: rollouts that the cost critic is fitted to; empty: this one
        """
        self.policy.set_training_mode(True)
        losses = critics.fit_critics(
            self.policy, self.rollout_buffer, rollout.actor_params, self.batch_size, self.n_critic_updates, recent
        )
        return log_keys.of_critics(losses, self.rollout_buffer, self.policy)

    # ---------------------------------------------------------------- logs

    def _record(self, row: Row) -> None:
        log_keys.record(self.logger, row, self.cost_limits.names)

    def dump_logs(self, iteration: int = 0) -> None:
        """Write log."""
        limit = self.current_cost_limit if self.cost_limits.is_limited else None
        self._record(log_keys.of_ledger(self.ledger, limit, self.cost_shaping is not None))
        super().dump_logs(iteration)

    def learn(
        self: SelfConstrainedOnPolicyAlgorithm,
        total_timesteps: int = TOTAL_TIMESTEPS,
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
        if self.verbose >= 1 and self.cost_limits.is_limited:
            print(self.safety.summary(self.cost_limits.names))
        return self
