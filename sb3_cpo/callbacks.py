"""SB3's callbacks where costs matter: evaluation, stopping and the progress bar."""

import io
import os
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, ProgressBarCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_cpo import log_keys
from sb3_cpo.checkpoints import files
from sb3_cpo.cost_limits import CostLimit, CostLimits, exceeds, parse_cost_limit
from sb3_cpo.evaluation import EpisodeCostRecorder
from sb3_cpo.mistakes import check_env
from sb3_cpo.monitor import as_vec_env

# Of the arguments of `np.savez`, and of arrays of evaluations.npz that SB3 writes or may write later
NAMES_OF_SB3 = ("file", "allow_pickle", "timesteps", "results", "ep_lengths", "successes")


class CostEvalCallback(EvalCallback):
    """
    SB3's ``EvalCallback`` for problems with costs: the best model is the best *feasible* one.

    Among models whose mean cost satisfies the limits, the one with the highest mean reward is saved as ``best_model.zip``; as
    long as none does, the one that exceeds them least. Where a limit is a schedule, the model that was saved before is judged
    again by the limit of today. ``best_mean_reward`` is the mean reward of the best feasible model (minus infinity before
    there is one): SB3's ``StopTrainingOnRewardThreshold`` and ``StopTrainingOnNoModelImprovement`` mean feasible models.

    ``evaluations.npz`` also holds ``costs`` (n_evaluations, n_episodes, n_costs), ``cost_limits`` (n_evaluations, n_costs) and
    ``cost_names`` (n_costs,), empty for a single constraint without name; and each constraint that is a key of ``info`` under
    its name (n_evaluations, n_episodes), where that is the name of another array, "results" for instance, under
    ``cost_of_results``.

    The arguments are those of ``EvalCallback`` and:

    :param cost_limit: Limits as for the algorithm. None: those of the model; a model that has none is judged by reward alone
    """

    def __init__(
        self,
        eval_env: gym.Env | VecEnv,
        callback_on_new_best: BaseCallback | None = None,
        callback_after_eval: BaseCallback | None = None,
        n_eval_episodes: int = 5,
        eval_freq: int = 10000,
        log_path: str | None = None,
        best_model_save_path: str | None = None,
        deterministic: bool = True,
        render: bool = False,
        verbose: int = 1,
        warn: bool = True,
        cost_limit: CostLimit | None = None,
    ):
        eval_env = as_vec_env(eval_env)
        check_env(eval_env)
        super().__init__(
            eval_env,
            callback_on_new_best,
            callback_after_eval,
            n_eval_episodes,
            eval_freq,
            log_path,
            best_model_save_path,
            deterministic,
            render,
            verbose,
            warn,
        )
        self.cost_limit = cost_limit
        self.best_mean_cost = np.zeros(0)
        self.last_mean_cost = np.zeros(0)
        """(n_costs,) of the last evaluation."""
        self.last_violation = np.zeros(0)
        """(n_costs,) mean cost minus limit of the last evaluation."""
        self.evaluations_costs: list[np.ndarray] = []
        self.evaluations_cost_limits: list[np.ndarray] = []
        self._best_reward_of_any = -np.inf

    @property
    def cost_limits(self) -> CostLimits:
        """What to judge by: the limits of this callback, else those that the model has at present."""
        if self.cost_limit is not None:
            return parse_cost_limit(self.cost_limit)
        return getattr(self.model, "cost_limits", CostLimits.unlimited())

    def current_cost_limit(self, n_costs: int) -> np.ndarray:
        """The limits to judge by at the present progress of training, (n_costs,)."""
        if self.cost_limits.is_unlimited:
            return np.full(n_costs, np.inf)
        # Models that SB3 provides have this attribute too
        return self.cost_limits.at(self.model._current_progress_remaining)

    def _new_recorder(self) -> EpisodeCostRecorder:
        missing_cost = getattr(self.model, "missing_cost", "error")
        gamma = getattr(self.model, "cost_gamma", 1.0) if self.cost_limit is None else 1.0
        return EpisodeCostRecorder.for_limits(self.cost_limits, missing_cost, gamma)

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        super()._log_success_callback(locals_, globals_)
        n_episodes = len(self._recorder.episodes)
        self._recorder(locals_)
        if len(self._recorder.episodes) > n_episodes:
            # SB3 dumps the log right after the last episode: the values of the last call are those that remain
            self._judge(self._recorder.episode_costs.mean(axis=0))

    def _judge(self, mean_cost: np.ndarray) -> None:
        self.last_mean_cost = mean_cost
        self.last_violation = mean_cost - self.current_cost_limit(len(mean_cost))
        if not len(mean_cost):
            # An environment without costs
            return
        row = log_keys.of_evaluation(self.last_mean_cost, self._is_feasible(mean_cost))
        log_keys.record(self.logger, row, self.cost_limits.names)

    def _is_feasible(self, mean_cost: np.ndarray) -> bool:
        return not exceeds(mean_cost, self.current_cost_limit(len(mean_cost))).any()

    def _rank(self, mean_reward: float, mean_cost: np.ndarray) -> tuple[bool, float]:
        """Of two models, the one with the greater rank is better: feasible ones by reward, others by how far they are off."""
        if self._is_feasible(mean_cost):
            return True, mean_reward
        limit = self.current_cost_limit(len(mean_cost))
        # Constraints of different units add up as shares of their limits
        scale = np.where(limit == 0, 1.0, abs(limit))
        return False, -float((np.maximum(mean_cost - limit, 0.0) / scale).sum())

    def _on_step(self) -> bool:
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq != 0:
            return True
        self._recorder = self._new_recorder()
        self.last_mean_cost = self.last_violation = np.zeros(0)
        # SB3 evaluates, logs and saves. It must not choose by reward, nor trigger what comes after the choice
        best_mean_reward, callback = self.best_mean_reward, self.callback
        self.best_mean_reward, self.callback = np.inf, None
        try:
            super()._on_step()
        finally:
            self.best_mean_reward, self.callback = best_mean_reward, callback
        self._save_costs()
        is_feasible = self._is_feasible(self.last_mean_cost)
        if self.verbose >= 1 and len(self.last_mean_cost):
            std = self._recorder.episode_costs.std(axis=0)
            text = ", ".join(f"{mean:.2f} +/- {spread:.2f}" for mean, spread in zip(self.last_mean_cost, std, strict=True))
            limit = ", ".join(f"{value:g}" for value in self.current_cost_limit(0)) if self.cost_limits.is_limited else "none"
            print(f"Episode cost: {text} (limit {limit})")

        is_first = self._best_reward_of_any == -np.inf
        rank = self._rank(self.last_mean_reward, self.last_mean_cost)
        best_rank = (False, -np.inf) if is_first else self._rank(self._best_reward_of_any, self.best_mean_cost)
        if not best_rank[0]:
            # None yet, or the limit has fallen below the cost of what was the best
            self.best_mean_reward = -np.inf
        continue_training = True
        if rank > best_rank:
            if self.verbose >= 1:
                print("New best feasible model!" if is_feasible else "No feasible model yet: new lowest violation")
            if self.best_model_save_path is not None:
                path = os.path.join(self.best_model_save_path, "best_model")
                files.save_model(self.model.save, self.model.get_vec_normalize_env(), path)
            self._best_reward_of_any, self.best_mean_cost = self.last_mean_reward, self.last_mean_cost
            if is_feasible:
                self.best_mean_reward = self.last_mean_reward
            # Trigger callback on new best model, if needed
            if self.callback_on_new_best is not None:
                continue_training = self.callback_on_new_best.on_step()

        # Trigger callback after every evaluation, if needed
        if self.callback is not None:
            continue_training = continue_training and self._on_event()
        return continue_training

    def _save_costs(self) -> None:
        if self.log_path is None or not len(self.last_mean_cost):
            return
        self.evaluations_costs.append(self._recorder.episode_costs)
        self.evaluations_cost_limits.append(self.current_cost_limit(len(self.last_mean_cost)))
        costs = np.array(self.evaluations_costs)
        with np.load(f"{self.log_path}.npz") as saved:
            arrays = dict(saved)
        names = np.array(self.cost_limits.names, dtype=np.str_)
        arrays.update(costs=costs, cost_limits=np.array(self.evaluations_cost_limits), cost_names=names)
        for index, name in enumerate(self.cost_limits.keys or ()):
            # Names that the file, or numpy's function, has for something else
            while name in NAMES_OF_SB3 or name in arrays:
                name = f"cost_of_{name}"
            arrays[name] = costs[:, :, index]
        content = io.BytesIO()
        np.savez(content, **arrays)
        files.write_atomically(f"{self.log_path}.npz", content.getvalue())


class StopTrainingOnViolation(BaseCallback):
    """
    Stop the training when the mean cost of an episode exceeds its limit, rollout after rollout.

    By itself, it judges the episodes of training, and training ends at the first step after the update that follows. As
    ``callback_after_eval`` of a :class:`CostEvalCallback`, it judges the evaluations.

    :param max_violation: How far the mean cost may exceed the limit, one number or one per constraint
    :param max_n_violations: Stop after more than this number of violations in a row
    :param verbose: Verbosity level: 0 for no output, 1 for indicating why training ended
    """

    def __init__(self, max_violation: float | Sequence[float] = 0.0, max_n_violations: int = 0, verbose: int = 0):
        super().__init__(verbose)
        self.max_violation = max_violation
        self.max_n_violations = max_n_violations
        self.n_violations = 0
        self._n_judged: int | None = None

    def _init_callback(self) -> None:
        if not isinstance(self.parent, CostEvalCallback) and not hasattr(self.model, "ep_cost_mean"):
            raise ValueError(
                f"StopTrainingOnViolation needs an algorithm with a cost_limit or a CostEvalCallback around it; "
                f"{type(self.model).__name__} has no costs"
            )

    def _on_training_start(self) -> None:
        # Another training, or the first that this callback sees
        if self._n_judged is None or self._n_judged > self._n_rollouts:
            self._n_judged = self._n_rollouts

    @property
    def _n_rollouts(self) -> int:
        """Rollouts of training so far."""
        return 0 if isinstance(self.parent, CostEvalCallback) else self.model.safety.n_updates  # type: ignore[attr-defined]

    def _count(self, mean_cost: np.ndarray, limit: np.ndarray) -> None:
        if np.ndim(self.max_violation) > 0 and np.shape(self.max_violation) != np.shape(limit):
            raise ValueError(f"max_violation has {np.size(self.max_violation)} entries, for {np.size(limit)} limit(s)")
        is_over = exceeds(mean_cost, limit + np.asarray(self.max_violation)).any()
        self.n_violations = self.n_violations + 1 if is_over else 0
        self._last_violation = mean_cost - limit

    def _on_step(self) -> bool:
        if isinstance(self.parent, CostEvalCallback):
            mean_cost = self.parent.last_mean_cost
            self._count(mean_cost, self.parent.current_cost_limit(len(mean_cost)))
        elif self._n_judged != self._n_rollouts:
            # Not in _on_rollout_end, of which callbacks inside of others hear nothing
            self._count(self.model.ep_cost_mean, self.model.current_cost_limit)  # type: ignore[attr-defined]
            self._n_judged = self._n_rollouts
        continue_training = self.n_violations <= self.max_n_violations
        if self.verbose >= 1 and not continue_training:
            print(
                f"Stopping training because the mean episode cost exceeded its limit by {self._last_violation} "
                f"({self.n_violations} times in a row)"
            )
        if not continue_training:
            # The next training begins anew
            self.n_violations = 0
        return continue_training


class CostProgressBarCallback(ProgressBarCallback):
    """
    SB3's progress bar, with the mean episode cost of the last rollout against its limit: ``return 91.3, cost 4.8/5``.

    SB3's own ``learn(progress_bar=True)`` shows the plain bar.
    """

    def _on_rollout_end(self) -> None:
        cost_limits: CostLimits | None = getattr(self.model, "cost_limits", None)
        parts = []
        if self.model.ep_info_buffer:
            parts.append(f"return {np.mean([episode['r'] for episode in self.model.ep_info_buffer]):.4g}")
        if cost_limits is not None and cost_limits.n_costs > 0:
            means = self.model.ep_cost_mean  # type: ignore[attr-defined]
            limits = self.model.current_cost_limit  # type: ignore[attr-defined]
            names = cost_limits.names or [""] * len(means)
            for name, mean, limit in zip(names, means, limits, strict=True):
                against = f"/{limit:.4g}" if cost_limits.is_limited else ""
                parts.append(f"{f'cost {name}'.strip()} {mean:.4g}{against}")
        # tqdm's rich bar has a description and no postfix
        self.pbar.set_description(", ".join(parts))


__all__ = [
    "CostEvalCallback",
    "CostProgressBarCallback",
    "StopTrainingOnViolation",
]
