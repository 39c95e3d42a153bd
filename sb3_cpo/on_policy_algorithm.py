"""SB3's on-policy algorithm for problems with costs: it asks the algorithm for an update, and logs."""

from collections.abc import Sequence
from copy import copy
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import nn

from sb3_cpo import critics, distributed, log_keys
from sb3_cpo.arguments import check_arguments
from sb3_cpo.buffers import CostRolloutBufferSamples
from sb3_cpo.checkpoints import TrainingCheckpoint
from sb3_cpo.checkpoints.callbacks import walk
from sb3_cpo.cost_limits import excess
from sb3_cpo.cost_rollouts import CostRollouts
from sb3_cpo.defaults import TOTAL_TIMESTEPS
from sb3_cpo.env_facts import is_wrapped, max_episode_steps, monitor_steps
from sb3_cpo.env_watch import EnvWatch
from sb3_cpo.episode_costs import CostEstimate
from sb3_cpo.log_keys import Row
from sb3_cpo.mistakes import check_learn
from sb3_cpo.monitor import CostMonitor
from sb3_cpo.torch_threads import is_small, one_thread

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
        return excess(self.cost.mean, self.limit)


class ConstrainedOnPolicyAlgorithm(CostRollouts):
    """
    The base of on-policy algorithms that see costs. It knows nothing of how the policy is updated: an algorithm says that in
    ``_update_policy(rollout)``, which returns a row of the log.

    Arguments: see :class:`~sb3_cpo.cost_model.CostModel`.
    """

    changed_by_update: ClassVar[tuple[str, ...]] = ()
    """Attributes beside the policy that an update changes, and that are put back if it fails."""
    _log_interval: int = 1

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_shared_statistics"]

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
        self._has_checked_lives = False
        resumption, has_custom_logger = self._resumption, self._custom_logger
        if resumption is not None:
            total_timesteps = resumption.begin_learn(self, total_timesteps, reset_num_timesteps)
            reset_num_timesteps = False
        # SB3 resets the environments in exactly these cases
        if reset_num_timesteps:
            self._run = None
            self._forget_costs()
        elif self._last_obs is None:
            self._forget_episodes()
        self._shared_statistics = distributed.join(self)
        if distributed.rank() > 0:
            callback, progress_bar = None, False
        with EnvWatch(self.env, lambda: self.num_timesteps):
            is_silence_zero = self.missing_cost == "zero"
            is_one_cost = is_silence_zero and self.cost_limits.is_limited and self.n_costs == 1
            keys = self.cost_limits.keys or (("cost",) if is_one_cost else ())
            if keys and is_wrapped(self.env, CostMonitor):
                self.env.env_method("watch_costs", keys, is_silence_zero)
            total_timesteps, callback = super()._setup_learn(
                total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
            )
            self._time_limit = max_episode_steps(self.env)
            if self.ledger.monitor_steps is None:
                self.ledger.monitor_steps = monitor_steps(self.env)
        self._n_updates_at_start = self._n_updates
        if resumption is not None:
            resumption.finish_setup(self, has_custom_logger)
        self._checkpoints = [part for part in walk(callback) if isinstance(part, TrainingCheckpoint)]
        for checkpoint in self._checkpoints:
            checkpoint.prepare(callback)
        return total_timesteps, callback

    # ---------------------------------------------------------------- update

    def train(self) -> None:
        """Update policy and critics using the currently gathered rollout buffer: all of them, or none if it fails."""
        self._update_learning_rate(self.policy.optimizer)
        self._shared_statistics = distributed.merge_statistics(self.get_vec_normalize_env(), self._shared_statistics)
        put_back = critics.snapshot(self.policy)
        before = {name: copy(vars(self)[name]) for name in self.changed_by_update}
        try:
            is_first = self._take_first_statistics()
            rollout = self._rollout()
            if is_first:
                rollout = self._as_acted_by_present_policy(rollout)
            row = self._update_policy(rollout) | self._fit_critics(rollout)
            # Asked by name: `torch.compile` hides the class
            if not is_first and hasattr(self.policy, "update_observation_statistics"):
                self.policy.update_observation_statistics(self.rollout_buffer.flat_observations())  # type: ignore[operator]
        except BaseException:
            put_back()
            vars(self).update(before)
            # Nothing is to be expected of an update that did not happen
            self.ledger.predicted_change = None
            raise
        self._n_updates += 1
        learning_rate = self.lr_schedule(self._current_progress_remaining)
        self._record({**row, "train/n_updates": self._n_updates, "train/learning_rate": learning_rate})

    def _rollout(self) -> Rollout:
        # As in the rollout (this affects batch norm / dropout): the policy that acted is the one that is changed
        self.policy.set_training_mode(False)
        samples = next(self.rollout_buffer.get(batch_size=None))
        assert self.cost_estimate is not None
        # A callback, which only the first process has, may have changed it
        limit = distributed.gather(self.current_cost_limit)[0]
        return Rollout(samples, self.cost_estimate, limit, critics.actor_parameters(self.policy, samples))

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

    @property
    def _update_seed(self) -> int:
        """Of random numbers on which no action and no other minibatch may depend: another for each update."""
        return (self.seed or 0) * 2**32 + self.num_timesteps

    def _update_policy(self, rollout: Rollout) -> Row:
        """Change the policy, and say how. Implemented by individual algorithms."""
        raise NotImplementedError

    def _critic_batches(self) -> Sequence[critics.CriticBatch]:
        """Rollouts that the cost critic is fitted to; empty: this one."""
        return ()

    def _fit_critics(self, rollout: Rollout) -> Row:
        critics.train_critics_only(self.policy, rollout.actor_params)
        # Torch takes none of numpy's whole numbers
        batch_size = int(self.batch_size) // distributed.world_size()
        with one_thread(is_small(self.policy, batch_size)):
            losses = critics.fit_critics(
                self.policy,
                self.rollout_buffer,
                rollout.actor_params,
                batch_size,
                self.n_critic_updates,
                self._critic_batches(),
                self._update_seed,
            )
        return log_keys.of_critics(losses, self.rollout_buffer, self.policy)

    # ---------------------------------------------------------------- logs

    def dump_logs(self, iteration: int = 0) -> None:
        """Write log."""
        if iteration > 0:
            # SB3 counts them from where this process began, and not from where this `learn` did
            iteration = self._n_updates - self._n_updates_at_start + 1
            if iteration % self._log_interval != 0:
                return
        limit = self.current_cost_limit if self.cost_limits.is_limited else None
        self._record(log_keys.of_ledger(self.ledger, limit, self.cost_shaping is not None))
        try:
            super().dump_logs(iteration)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(error.errno, f"the log could not be written at step {self.num_timesteps}: {reason}") from error

    def learn(
        self: SelfConstrainedOnPolicyAlgorithm,
        total_timesteps: int = TOTAL_TIMESTEPS,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfConstrainedOnPolicyAlgorithm:
        check_learn(total_timesteps, callback)
        self._log_interval = log_interval
        try:
            super().learn(
                total_timesteps=total_timesteps,
                callback=callback,
                log_interval=log_interval and 1,  # dump_logs knows better
                tb_log_name=tb_log_name or type(self).__name__,
                reset_num_timesteps=reset_num_timesteps,
                progress_bar=progress_bar,
            )
        except Exception as error:
            for checkpoint in self._checkpoints:
                checkpoint.exit_if_terminated(error)
            raise
        finally:
            for checkpoint in self._checkpoints:
                checkpoint.release()
            self._checkpoints = []
        if self.verbose >= 1 and self.cost_limits.is_limited:
            print(self.safety.summary(self.cost_limits.names))
        return self
