"""Collecting a rollout with costs: SB3's loop, and what its hooks read, check and count."""

import warnings
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from sb3_cpo import critics, distributed, log_keys, rollout_loop
from sb3_cpo.buffers import CostRolloutBuffer
from sb3_cpo.checkpoints import TrainingCheckpoint
from sb3_cpo.cost_ledger import Ends
from sb3_cpo.cost_limits import excess
from sb3_cpo.cost_signal import LARGEST_COST, MissingCost
from sb3_cpo.env_facts import (
    check_finite,
    innermost,
    is_same,
    is_wrapped,
    monitor_steps,
    name_env,
    shown_last,
)
from sb3_cpo.env_watch import EnvWatch
from sb3_cpo.episode_costs import CostEstimate
from sb3_cpo.log_keys import Row
from sb3_cpo.mistakes import explain_step, warn_of_negative_limits, warn_of_running_totals, warn_of_skipped_steps
from sb3_cpo.saved_model import SavedModel
from sb3_cpo.torch_threads import leave_cores_to

# Fewer episodes in a rollout are worth a warning
FEW_EPISODES = 10


class CostRollouts(SavedModel):
    """Collects rollouts with costs. Arguments: see :class:`~sb3_cpo.cost_model.CostModel`."""

    _checkpoints: Sequence[TrainingCheckpoint] = ()
    """Those among the callbacks of this ``learn``."""
    _last_shown: tuple[Any, list[Any] | None] = (None, None)
    """Our last observations, and what the environments showed then; None: that cannot be told"""
    _steps: Counter[int]
    """How often the environments were stepped at each value of ``num_timesteps``; more than once: by somebody else"""
    _first_episodes: list[tuple[int, int, dict[str, Any]]]
    """Step, environment and what the monitor says of those that ended in the first rollout"""
    _time_limit: int | None
    """Of the environments in this call of ``learn``; None: not known"""
    _has_checked_lives: bool
    """Whether this call of ``learn`` has checked already if episodes end before those of the monitors do"""

    def _excluded_save_params(self) -> list[str]:
        own = [
            "_rollout_callback",
            "_steps",
            "_is_stopped_elsewhere",
            "_last_shown",
            "_time_limit",
            "_checkpoints",
            "_first_episodes",
        ]
        return [*super()._excluded_save_params(), *own]

    def _forget_episodes(self) -> None:
        """The environments are reset, perhaps they are others."""
        self.ledger.forget_episodes()

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        rollout_buffer = self._check_buffer(rollout_buffer, n_rollout_steps)
        # Assigned since then, perhaps
        rollout_buffer.gamma, rollout_buffer.gae_lambda = self.gamma, self.gae_lambda
        rollout_buffer.cost_gamma = self._advantage_discount
        rollout_buffer.cost_gae_lambda = self.cost_gae_lambda
        if self._resumption is not None:
            self._resumption.begin_rollout(self, callback)
            self._resumption = None
        for checkpoint in self._checkpoints:
            checkpoint.between_updates()
        self._is_stopped_elsewhere, self._first_episodes = False, []
        check_finite("observation", self._last_obs, env, self.num_timesteps)
        self._rollout_callback, rollout_buffer.on_full = callback, self._complete_rollout
        steps_before = self.num_timesteps

        def on_reset() -> None:
            if watch.is_step_lost:
                # Within a step: the environments' own
                return
            # Before the first step or after the last; else in the callback, with a step that waits for being stored
            if self.num_timesteps == steps_before or rollout_buffer.full:
                self.ledger.restart_episodes(env.num_envs)
            else:
                rollout_buffer.was_reset_outside = True

        watch = EnvWatch(env, lambda: self.num_timesteps, on_reset)
        self._steps = watch.steps
        try:
            with watch, leave_cores_to(env):
                if self._is_played_by_others(env):
                    self.ledger.restart_episodes(env.num_envs)
                self.ledger.start_rollout(monitor_steps(env))
                if rollout_loop.is_supported(self):
                    is_complete = rollout_loop.collect(self, env, callback, rollout_buffer, n_rollout_steps)
                else:
                    is_complete = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
                if is_complete and self._steps[self.num_timesteps]:
                    self.ledger.restart_episodes(env.num_envs)
                self.ledger.monitor_steps = monitor_steps(env)
            if not is_complete:
                self._finish_stopped_step(callback.locals)
            elif rollout_buffer.on_full is not None:
                name = f"{type(rollout_buffer).__name__}.compute_returns_and_advantage"
                raise ValueError(f"{name} must call that of CostRolloutBuffer: the costs of the rollout were not counted")
            is_complete = is_complete and not self._is_stopped_elsewhere
        except BaseException as error:
            # Interrupted: if `learn` is called again, the episodes in progress go on. One of several processes is lost to the
            # others
            if not rollout_buffer.full and distributed.world_size() == 1:
                self._count_stopped_rollout()
            if watch.is_step_lost or isinstance(error, Exception):
                # unless nobody knows where the environments stand: they will be reset
                self._last_obs = None
            if isinstance(error, ValueError | gym.error.Error):
                explain_step(error)
            raise
        finally:
            # They hold the user's callback, its locals and this model
            del self._rollout_callback
            rollout_buffer.on_full = None
        self._last_shown = self._last_obs, shown_last(env)
        return is_complete

    @property
    def _advantage_discount(self) -> float:
        """Of the cost critic and the cost advantages."""
        return self.cost_gamma if self.cost_gae_gamma is None else self.cost_gae_gamma

    def _is_played_by_others(self, env: VecEnv) -> bool:
        """Whether the environments show something else than after our last step. A monitor knows it, too; not all have one."""
        last_obs, before = self._last_shown
        now = shown_last(env)
        return last_obs is self._last_obs and before is not None and now is not None and not is_same(before, now)

    def _check_buffer(self, buffer: RolloutBuffer, n_steps: int) -> CostRolloutBuffer:
        """The user may have replaced it."""
        if not isinstance(buffer, CostRolloutBuffer):
            raise ValueError(f"the rollout buffer has no costs: it is a {type(buffer).__name__}")
        has, needs = (buffer.buffer_size, buffer.n_envs, buffer.n_costs), (n_steps, self.n_envs, self.n_costs)
        if has != needs:
            raise ValueError(f"the rollout buffer has room for {has} steps, environments and costs; this model needs {needs}")
        return buffer

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
        # The other processes see it at the end of their rollouts
        distributed.gather(False)
        self._count_stopped_rollout()

    def _count_stopped_rollout(self) -> None:
        """Count the costs of a rollout that makes no update."""
        n_steps = self.rollout_buffer.buffer_size if self.rollout_buffer.full else self.rollout_buffer.pos
        self.safety.add_costs(self.rollout_buffer.costs[:n_steps])
        self._add_costs(n_steps)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        """SB3 calls this at every step, before ``rollout_buffer.add``: ``rollout_buffer.pos`` is the row being written."""
        assert dones is not None
        buffer, step = self.rollout_buffer, self._rollout_callback.locals
        if buffer is not step["rollout_buffer"]:
            raise ValueError("model.rollout_buffer was replaced within a rollout: replace it between two calls of learn")
        env = step["env"]
        # A callback may have stepped the environments: before our first step, or since this one
        if buffer.pos == 0 and self._steps[self.num_timesteps - len(dones)] > 1:
            self.ledger.restart_episodes(len(dones))
        if self._steps[self.num_timesteps]:
            buffer.was_reset_outside = True
        # Steps of all processes
        self.num_timesteps += (distributed.world_size() - 1) * len(dones)
        # What the environments themselves say is looked at by `EnvWatch`
        wrapper = None if env is innermost(env) else type(env).__name__
        if wrapper is not None:
            for what, values in (("reward", step["rewards"]), ("observation", step["new_obs"])):
                check_finite(f"{what} from {wrapper}", values, env, self.num_timesteps, largest=LARGEST_COST)
        # Some VecEnvs have nothing to say in most steps, not even one empty dictionary per environment
        infos = infos or [{} for _ in range(buffer.n_envs)]
        costs, lengths = self._read_costs(infos), {}
        for index in np.flatnonzero(dones).tolist():
            info = infos[index]
            if info.get("episode") is None:
                self._warn_of_lost_lives(env)
            else:
                self.ledger.returns.append(float(info["episode"]["r"]))
                lengths[index] = info["episode"]["l"]
                if self.ledger.estimate is None:
                    self._first_episodes.append((buffer.pos, index, info["episode"]))
            terminal_obs = info.get("terminal_observation")
            if wrapper is not None:
                what = f"terminal observation from {wrapper}"
                check_finite(what, terminal_obs, env, self.num_timesteps, index, LARGEST_COST)
            is_cut = info.get("TimeLimit.truncated", False)
            if is_cut and not self.bootstrap_time_limits:
                # Before SB3's loop adds the value of the last observation
                buffer.rewards_at_limits.append((buffer.pos, index, float(step["rewards"][index])))
            # The limit is on the episode: with cost_gamma = 1 its end is the end of its costs, at a time limit too
            is_bootstrapped = self.cost_gamma < 1 and self.has_cost_critic and is_cut
            # As SB3 for the reward: where nobody tells the last observation, nothing is bootstrapped
            if is_bootstrapped and terminal_obs is not None:
                # A copy: it may be an array that the environment fills anew at every step
                buffer.cut_at_time_limit.append((buffer.pos, index, deepcopy(terminal_obs)))
        buffer.add_step_info(costs, dones, lengths)
        super()._update_info_buffer(infos, dones)

    def _warn_of_lost_lives(self, env: VecEnv) -> None:
        """An episode has ended of which no monitor says anything."""
        if not self._has_checked_lives and is_wrapped(env, Monitor):
            warnings.warn(
                "an episode ended that goes on for the monitor: a wrapper around the monitor ends episodes, at a lost life "
                "for instance (EpisodicLifeEnv). The mean episode cost and its limit are of these short episodes; monitor.csv "
                "and evaluations sum the costs of the whole game"
            )
        self._has_checked_lives = True

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
        bonus = None if self.cost_shaping is None else self.cost_shaping.add_bonus(buffer, n_steps)
        arrays = (buffer.episode_ends, buffer.is_counted, buffer.monitor_lengths, buffer.was_reset_after)
        ends = Ends(*(array[:n_steps] for array in arrays))
        self.ledger.add_steps(buffer.costs[:n_steps], bonus, ends, self.cost_gamma)

    def _complete_rollout(self) -> None:
        """
        The rollout is full: estimate J, the values of the costs and their advantages. The buffer calls this before it computes
        the reward advantages, so that callbacks see everything in ``on_rollout_end``.
        """
        buffer, ledger = self.rollout_buffer, self.ledger
        buffer.on_full = None
        if not all(distributed.gather(True)):
            self._is_stopped_elsewhere = True
            self._count_stopped_rollout()
            return
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        if self.cost_gamma < 1:
            buffer.cost_discounts = self.cost_gamma ** ledger.steps_in_episode(buffer.episode_ends)[:, :, None]
        self._add_costs(buffer.buffer_size)
        before = ledger.estimate
        is_known = self._estimate_cost().n_episodes > 0
        self._warn_of_rollout(before)
        violation = excess(self.ep_cost_mean, self.current_cost_limit)
        ledger.safety.add(buffer.costs, violation, self.num_timesteps, is_known)
        if self.cost_shaping is not None and buffer.cost_bonus is not None:
            # After this batch's bonus: the bonus comes from earlier batches
            self._record(log_keys.of_shaping(self.cost_shaping.fit_to(buffer), buffer.cost_bonus))
        self._set_rewards()

    def _estimate_cost(self) -> CostEstimate:
        """J, and the values and advantages of the costs."""
        buffer, cut_values = self.rollout_buffer, None
        if self.has_cost_critic and self.n_costs > 0:
            last_values = critics.value_costs(self.policy, buffer, self._last_obs, self.device)
            # Values with another discount than J's say nothing about what is still to come of J
            cut_values = distributed.concatenate(last_values) if buffer.cost_gamma == self.cost_gamma else None
        return self.ledger.close_rollout(cut_values, self._time_limit, self.cost_estimator)

    def _warn_of_rollout(self, before: CostEstimate | None) -> None:
        """
        Of what makes J unreliable, or another number than the user thinks.

        :param before: J of the rollout before; None: this is the first
        """
        buffer, estimate = self.rollout_buffer, self.ledger.estimate
        assert estimate is not None
        is_known = estimate.n_episodes > 0
        if not is_known and self.n_costs > 0 and (before is None or before.n_episodes > 0):
            warnings.warn(
                f"no episode ended in this rollout of {buffer.buffer_size} steps: the cost of an episode is estimated from "
                "what it has cost so far. Raise n_steps, or give the environment a time limit (sb3_cpo.check_cost_env(env) "
                "shows how long its episodes are)"
            )
        if not is_known or before is not None:
            return
        if estimate.n_episodes < FEW_EPISODES and self.cost_limits.is_limited:
            warnings.warn(
                f"only {estimate.n_episodes} episodes ended in the first rollout of {buffer.buffer_size * buffer.n_envs} "
                "steps: the mean cost of so few says little, and how it changes with the policy less. Raise n_steps "
                f"(now {self.n_steps})"
            )
        warn_of_negative_limits(self.current_cost_limit, buffer.costs, self.cost_limits)
        if self.num_timesteps == buffer.buffer_size * buffer.n_envs * distributed.world_size() and not self._has_checked_lives:
            warn_of_skipped_steps(buffer.costs, buffer.episode_ends, self._first_episodes, self.cost_limits)
        warn_of_running_totals(buffer.costs, buffer.episode_ends, self.cost_limits)

    def _set_rewards(self) -> None:
        """The rewards that are maximised: without what SB3 adds at time limits if that is not wanted, less penalised costs."""
        buffer = self.rollout_buffer
        for pos, index, reward in buffer.rewards_at_limits:
            buffer.rewards[pos, index] = reward
        buffer.rewards[:] = self._combine_rewards(buffer.rewards, buffer.constrained_costs)
        for step, index in np.argwhere(~(np.abs(buffer.rewards) <= LARGEST_COST))[:1].tolist():
            assert self.env is not None
            played = self.num_timesteps - (buffer.buffer_size - 1 - step) * buffer.n_envs * distributed.world_size()
            check_finite("reward less the penalised costs", buffer.rewards[step, index], self.env, played, index, LARGEST_COST)

    def _combine_rewards(self, rewards: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """
        The reward that is maximised, for algorithms that mix costs into it.

        :param rewards: (n_steps, n_envs)
        :param costs: (n_steps, n_envs, n_costs)
        """
        return rewards

    def _record(self, row: Row) -> None:
        log_keys.record(self.logger, row, self.cost_limits.names, shows_all=self.verbose >= 2)
