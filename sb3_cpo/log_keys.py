"""
Every key of our logs, once. Functions of what an update or a rollout was, to rows of the log.

A value is a number, or an array with one number per constraint, which is logged as ``key`` or, where constraints have names,
as ``key/name``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import explained_variance
from torch import nn

from sb3_cpo.buffers import CostRolloutBuffer
from sb3_cpo.cost_filter import FilteredCost
from sb3_cpo.cost_ledger import CostLedger
from sb3_cpo.critics import CriticLosses
from sb3_cpo.trust_region import TrustRegionStep

Row = dict[str, Any]

# SB3's table cuts keys at 36 characters, three of them indentation
TABLE_WIDTH = 33
# Of a constraint, so that one name is written alike behind all keys that the table shows
NAME_WIDTH = TABLE_WIDTH - len("ep_cost_std_error/")
# Formats that show a table to people
TABLES = ("stdout", "log")


def of_step(step: TrustRegionStep) -> Row:
    """What the trust-region step did to the policy."""
    return {
        "train/policy_objective": float(step.surrogates.objective),
        "train/kl_divergence_loss": float(step.surrogates.kl_div),
        "train/step_size": step.step_size,
        "train/is_line_search_success": float(step.step_size > 0),
        "train/lambda": step.lam,
        "train/cg_residual": step.cg_residual,
        **{f"train/n_rejected_{reason}": count for reason, count in step.rejections.items()},
    }


def of_constraints(step: TrustRegionStep, violation: np.ndarray) -> Row:
    """
    How the step dealt with the constraints.

    :param violation: (n_costs,) J minus limit
    """
    return {
        **of_violation(violation),
        "train/nu": step.nu,
        "train/is_feasible": float(step.is_feasible),
        "train/linear_cost_change": step.step_size * step.linear_cost_change,
        "train/cost_surrogate": step.cost_surrogate_change,
        "train/predicted_cost_change": step.predicted_cost_change,
        **({} if step.gradient_noise is None else {"train/cost_gradient_noise": step.gradient_noise[1:]}),
    }


def of_violation(violation: np.ndarray) -> Row:
    """(n_costs,) J minus limit."""
    return {"train/violation": violation}


def of_filter(filtered: FilteredCost, confidence: np.ndarray) -> Row:
    """The filtered J, and the distance kept from the limit in its standard deviations."""
    return {"train/ep_cost_filtered": filtered.mean, "train/cost_confidence": confidence}


def of_margin(margin: np.ndarray) -> Row:
    """(n_costs,) what is added to the violation."""
    return {"train/cost_margin": margin}


def of_penalty(penalty: np.ndarray) -> Row:
    """(n_costs,) weights of the costs in the reward that is maximised."""
    return {"train/penalty_coef": penalty}


def of_worst_case(
    limit: np.ndarray, largest_advantages: np.ndarray, target_kl: float, gamma: float, mean_length: float
) -> Row:
    """
    The J that Proposition 2 of the paper guarantees, with the largest advantage seen for epsilon, and the episode's length for
    the horizon where there is no discount.

    :param limit: (n_costs,)
    :param largest_advantages: (n_costs,) of the costs that J sums
    """
    horizon = mean_length if gamma == 1 else 1 / (1 - gamma)
    excess = np.sqrt(2 * target_kl) * gamma * largest_advantages * horizon**2
    return {"train/worst_case_cost": limit + excess}


def of_critics(losses: CriticLosses, buffer: CostRolloutBuffer, policy: nn.Module) -> Row:
    """How well the critics did on this rollout, before and while they were fitted to it."""
    row: Row = {
        "train/value_loss": np.mean(losses.value),
        "train/explained_variance": explained_variance(buffer.values.flatten(), buffer.returns.flatten()),
    }
    if losses.cost_value:
        pairs = zip(buffer.cost_values.T, buffer.cost_returns.T, strict=True)
        # Nothing is there to be explained where all returns are the same but for rounding
        row["train/cost_value_loss"] = np.mean(losses.cost_value)
        row["train/cost_explained_variance"] = np.array([_explained_variance(*pair) for pair in pairs])
    if isinstance(log_std := getattr(policy, "log_std", None), th.Tensor):
        row["train/std"] = th.exp(log_std).mean().item()
    return row


def _explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    is_constant = np.std(returns) <= 1e-6 * max(np.abs(returns).max(), np.abs(values).max())
    return float("nan") if is_constant else float(explained_variance(values, returns))


def of_shaping(loss: float, bonus: np.ndarray) -> Row:
    """
    The learned bonus on the costs.

    :param loss: of the predictor
    :param bonus: (n_steps, n_envs, n_costs)
    """
    return {"train/cost_shaping_loss": loss, "train/cost_bonus": bonus.mean(axis=(0, 1))}


def of_ledger(ledger: CostLedger, limit: np.ndarray | None, is_shaped: bool) -> Row:
    """
    What the last rollout and training so far have cost.

    :param limit: (n_costs,) at the present progress; None: nothing is limited
    """
    row: Row = {}
    if ledger.returns:
        row["rollout/ep_rew_mean_rollout"] = ledger.ep_rew_mean
    estimate, safety = ledger.raw_estimate, ledger.safety
    if estimate is not None and ledger.n_costs > 0:
        row |= {
            "rollout/ep_cost_mean": estimate.mean,
            "rollout/ep_cost_std_error": estimate.standard_error,
            "rollout/n_episodes": estimate.n_episodes,
            "rollout/stale_share": estimate.stale_share,
            "safety/cumulative_cost": safety.cumulative_cost,
            "safety/cost_rate": safety.cost_rate,
        }
    if estimate is not None and limit is not None:
        row |= {
            "rollout/cost_limit": limit,
            "safety/violation_rate": safety.violation_rate,
            "safety/cost_regret": safety.cost_regret,
            "safety/longest_streak": safety.longest_streak,
            "safety/first_feasible_step": safety.first_feasible_step,
        }
    if ledger.estimate is not None and is_shaped:
        row["rollout/ep_shaped_cost_mean"] = ledger.estimate.mean
    change = ledger.actual_change
    if change is not None and ledger.n_costs > 0:
        # Predicted beside actual, in one row (an evaluation inside the rollout has written the update's own row)
        if ledger.predicted_change is not None:
            row["train/predicted_cost_change"] = ledger.predicted_change
        row |= {"train/actual_cost_change": change.mean, "train/actual_cost_change_se": change.standard_error}
    return row


def of_evaluation(mean_cost: np.ndarray, is_feasible: bool) -> Row:
    """
    :param mean_cost: (n_costs,) of the episodes of an evaluation
    :param is_feasible: whether it satisfies the limits
    """
    return {"eval/mean_cost": mean_cost, "eval/is_feasible": float(is_feasible)}


# What a person looks at to act is in the table; these are for TensorBoard and files, and for verbose=2
NOT_IN_TABLES = {
    "rollout/ep_rew_mean_rollout",
    "rollout/n_episodes",
    "rollout/stale_share",
    "rollout/ep_shaped_cost_mean",
    "safety/cumulative_cost",
    "safety/cost_rate",
    "safety/cost_regret",
    "safety/longest_streak",
    "safety/first_feasible_step",
    "train/violation",
    "train/ep_cost_filtered",
    "train/cost_confidence",
    "train/cost_margin",
    "train/worst_case_cost",
    "train/lambda",
    "train/cg_residual",
    "train/policy_objective",
    "train/kl_divergence_loss",
    "train/is_line_search_success",
    "train/n_rejected_objective",
    "train/n_rejected_kl",
    "train/n_rejected_cost",
    "train/n_rejected_not_finite",
    "train/linear_cost_change",
    "train/cost_surrogate",
    "train/predicted_cost_change",
    "train/actual_cost_change",
    "train/actual_cost_change_se",
    "train/cost_gradient_noise",
    "train/n_vanishing_gradients",
    "train/value_loss",
    "train/explained_variance",
    "train/cost_value_loss",
    "train/cost_explained_variance",
    "train/cost_shaping_loss",
    "train/cost_bonus",
    "train/std",
    "train/learning_rate",
    "train/n_updates",
}
# TensorBoard has this one on its other axis
NOT_IN_TENSORBOARD = {"train/n_updates"}


def record(logger: Logger, row: Mapping[str, Any], names: Sequence[str] = (), shows_all: bool = False) -> None:
    """
    Log a row.

    :param names: of the constraints; empty for a single unnamed one
    :param shows_all: in the table, too
    """
    for key, value in row.items():
        excluded: tuple[str, ...] = () if shows_all or key not in NOT_IN_TABLES else TABLES
        if key in NOT_IN_TENSORBOARD:
            excluded += ("tensorboard",)
        if np.ndim(value) == 0:
            logger.record(key, value, exclude=excluded)
        elif len(value) == 1 and not names:
            logger.record(key, float(value[0]), exclude=excluded)
        else:
            _record_per_constraint(logger, key, names, value, excluded)


def _record_per_constraint(
    logger: Logger, key: str, names: Sequence[str], values: np.ndarray, excluded: tuple[str, ...]
) -> None:
    """SB3's table raises when two keys become the same text: there, a long name is abbreviated."""
    names = names or [str(index) for index in range(len(values))]
    room = TABLE_WIDTH - len(key.split("/", 1)[1]) - 1
    for name, short, value in zip(names, short_names(names, min(room, NAME_WIDTH)), values, strict=True):
        if short == name or excluded[: len(TABLES)] == TABLES:
            logger.record(f"{key}/{name}", float(value), exclude=excluded)
        else:
            logger.record(f"{key}/{name}", float(value), exclude=(*TABLES, *excluded))
            logger.record(f"{key}/{short}", float(value), exclude=("tensorboard", "csv", "json"))


def short_names(names: Sequence[str], width: int) -> list[str]:
    """
    Names for SB3's table, all different.

    :param names: names of the constraints
    :param width: characters that there are
    :return: the names as they are or without ``cost_`` where that fits, else their number and their beginning
    """
    stems = [name.removeprefix("cost_") for name in names]
    # A short name may look like another's abbreviation
    for mark in "_~#":
        for own in (stems, names):
            short = [
                next((text for text in (name, stem) if len(text) <= width), f"{index}{mark}{stem}"[:width])
                for index, (name, stem) in enumerate(zip(names, own, strict=True))
            ]
            if len(set(short)) == len(short):
                return short
    return short
