"""What Optuna searches for our algorithms, and how the cost of a trial becomes a constraint."""

from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial
from rl_zoo3.hyperparams_opt import convert_onpolicy_params
from stable_baselines3.common.vec_env import VecEnv

from sb3_cpo.callbacks import CostEvalCallback
from sb3_cpo.cost_limits import excess

# The pruner compares trials by one number per evaluation: further than any return from that of a feasible trial
INFEASIBLE = -1e9


class ConstrainedTrialEvalCallback(CostEvalCallback):
    """
    Evaluate and report a trial, with its costs as constraints (rl_zoo3's ``TrialEvalCallback`` knows rewards only).

    Optuna's samplers and ``study.best_trial`` prefer any feasible trial to all that are not. Its pruners know nothing of
    constraints, so an evaluation over the limit is reported to them as worse than every feasible one.
    """

    def __init__(
        self,
        eval_env: VecEnv,
        trial: optuna.Trial,
        n_eval_episodes: int = 5,
        eval_freq: int = 10000,
        deterministic: bool = True,
        verbose: int = 0,
        best_model_save_path: str | None = None,
        log_path: str | None = None,
    ):
        super().__init__(
            eval_env,
            n_eval_episodes=n_eval_episodes,
            eval_freq=eval_freq,
            deterministic=deterministic,
            verbose=verbose,
            best_model_save_path=best_model_save_path,
            log_path=log_path,
        )
        self.trial = trial
        self.eval_idx = 0
        self.is_pruned = False

    def _on_step(self) -> bool:
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq != 0:
            return True
        super()._on_step()
        self.eval_idx += 1
        rank_feasible, value = self._rank(self.last_mean_reward, self.last_mean_cost)
        self.trial.report(value if rank_feasible else INFEASIBLE * (1.0 - value), self.eval_idx)
        if self.trial.should_prune():
            self.is_pruned = True
            return False
        return True

    def _on_training_end(self) -> None:
        if self.eval_idx == 0:
            # Shorter than the first evaluation: nothing is known of it, least of all that it satisfies its limits
            self.trial.set_user_attr("is_feasible", False)
            return
        # Optuna takes a constraint once per trial: that of the evaluation whose reward is the value of the trial
        names = self.cost_limits.names or [str(index) for index in range(len(self.last_violation))]
        limit = self.last_mean_cost - self.last_violation
        # Where it is not over, what rounding leaves of the sum must not make the trial infeasible for Optuna
        constraints = excess(self.last_mean_cost, limit)
        for name, cost, bound, violation in zip(names, self.last_mean_cost, limit, constraints, strict=True):
            if np.isfinite(bound):
                self.trial.set_constraint(name, float(violation))
                self.trial.set_user_attr(f"cost_limit_{name}", float(bound))
            self.trial.set_user_attr(f"mean_cost_{name}", float(cost))
        self.trial.set_user_attr("is_feasible", not (constraints > 0).any())


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial satisfies all its limits; not if it ended without an evaluation."""
    return bool(trial.user_attrs.get("is_feasible", False)) and all(v <= 0 for v in trial.constraints.values())


def violation_of(trial: FrozenTrial) -> float:
    """Sum of what it exceeds its limits by; infinity if it ended without an evaluation."""
    if not trial.constraints and not is_feasible(trial):
        return np.inf
    return sum(max(value, 0.0) for value in trial.constraints.values())


def describe_trial(trial: FrozenTrial) -> str:
    """What a report says of a trial."""
    lines = [f"    Number: {trial.number}", f"    Value: {trial.value}", "    Params:"]
    lines += [f"        {key}: {value}" for key, value in trial.params.items()]
    lines += ["    User attributes:", *(f"        {key}: {value}" for key, value in trial.user_attrs.items())]
    return "\n".join(lines)


def _sample_trust_region_params(trial: optuna.Trial) -> dict[str, Any]:
    """
    What all four algorithms share. ``n_steps`` and ``n_envs`` stay as in the YAML file: a rollout should hold whole episodes.
    """
    one_minus_gamma = trial.suggest_float("one_minus_gamma", 0.0005, 0.05, log=True)
    one_minus_gae_lambda = trial.suggest_float("one_minus_gae_lambda", 0.001, 0.2, log=True)
    trial.set_user_attr("gamma", 1 - one_minus_gamma)
    trial.set_user_attr("gae_lambda", 1 - one_minus_gae_lambda)
    return {
        "one_minus_gamma": one_minus_gamma,
        "one_minus_gae_lambda": one_minus_gae_lambda,
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 1, 20),
        "target_kl": trial.suggest_float("target_kl", 0.002, 0.05, log=True),
        "cg_damping": trial.suggest_float("cg_damping", 1e-5, 1.0, log=True),
        "net_arch": trial.suggest_categorical("net_arch", ["tiny", "small", "medium"]),
        "activation_fn": trial.suggest_categorical("activation_fn", ["tanh", "relu"]),
    }


def sample_trpo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict) -> dict[str, Any]:
    """Sampler for TRPO hyperparams."""
    return convert_params(_sample_trust_region_params(trial))


def sample_cpo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict) -> dict[str, Any]:
    """Sampler for CPO hyperparams."""
    sampled = _sample_trust_region_params(trial)
    sampled["cost_gae_lambda"] = trial.suggest_categorical("cost_gae_lambda", [0.5, 0.9, 0.95, 1.0])
    sampled["n_cost_rollouts"] = trial.suggest_categorical("n_cost_rollouts", [1, 5])
    sampled["cost_margin_lr"] = trial.suggest_categorical("cost_margin_lr", [0.0, 0.1, 0.3])
    return convert_params(sampled)


def sample_pdo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict) -> dict[str, Any]:
    """Sampler for PDO hyperparams."""
    sampled = _sample_trust_region_params(trial)
    sampled["penalty_lr"] = trial.suggest_float("penalty_lr", 1e-3, 1.0, log=True)
    return convert_params(sampled)


def sample_fpo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict) -> dict[str, Any]:
    """Sampler for FPO hyperparams."""
    sampled = _sample_trust_region_params(trial)
    sampled["penalty_coef"] = trial.suggest_float("penalty_coef", 0.01, 100.0, log=True)
    return convert_params(sampled)


def convert_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters from what was sampled: rl_zoo3's conversion, which leaves keys that it does not know as they are."""
    return convert_onpolicy_params(sampled_params)
