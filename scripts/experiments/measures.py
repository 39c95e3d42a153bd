"""
What a run is judged by: rows of its CSV file from SB3's log, the limit held against J, and tables in Markdown.

J of the published runs is the mean of the last 50 episodes; so it is here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

# Keys of the log
COST = "rollout/ep_cost_mean"
ERROR = "rollout/ep_cost_std_error"
PREDICTED = "train/predicted_cost_change"
ACTUAL = "train/actual_cost_change"
NOISE = "train/cost_gradient_noise"
MARGIN = "train/cost_margin"
# Column of a run -> what an update expected to change of J, what J did, and how much of the cost gradient is noise
OF_UPDATES = {"predicted": PREDICTED, "actual": ACTUAL, "noise": NOISE, "margin": MARGIN}

# Columns of the tables: shares of updates after which J is over the limit
OVER = "over the limit, whole run"
OVER_SINCE = "over the limit after reaching it"
OVER_LATE = "over the limit, last fifth"
OVER_BY_ERROR = "over by sampling error"
MEAN_SHARE = "mean J / limit"
HIGHEST_SHARE = "highest J / limit after reaching it"

WINDOW = 50


def make_row(log: dict[str, Any]) -> dict[str, Any]:
    """A row of a run's CSV file from one of SB3's log: for each cost J, its error, its limit, and what the update expected."""
    row = {
        "steps": log["time/total_timesteps"],
        "return": log.get("rollout/ep_rew_mean_rollout", np.nan),
        "episodes": log["rollout/n_episodes"],
    }
    # Where costs are shaped, the changes are of the shaped cost
    is_shaped = any(key.startswith("rollout/ep_shaped_cost_mean") for key in log)
    for key, cost in log.items():
        if key.startswith(COST):
            suffix = key.removeprefix(COST)
            name = suffix.removeprefix("/") or "cost"
            error = log.get(ERROR + suffix, np.nan)
            row |= {f"J {name}": cost, f"error {name}": error, f"limit {name}": log[f"rollout/cost_limit{suffix}"]}
            if not is_shaped:
                row |= {f"{short} {name}": log[full + suffix] for short, full in OF_UPDATES.items() if full + suffix in log}
    return row


def smoothed(j: np.ndarray, n_episodes: np.ndarray) -> np.ndarray:
    """
    After each rollout, the mean cost of the last 50 episodes (of more, where the rollout has more). A rollout in which none
    ended counts by its estimate, as one episode.
    """
    n_episodes = np.maximum(n_episodes, 1)
    means = []
    for last in range(len(j)):
        weight, total = 0.0, 0.0
        for index in range(last, -1, -1):
            share = n_episodes[index] if index == last else min(n_episodes[index], max(WINDOW - weight, 0))
            weight, total = weight + share, total + share * j[index]
            if weight >= WINDOW:
                break
        means.append(total / max(weight, 1))
    return np.array(means)


def share_by_error(share: np.ndarray, error: np.ndarray, n_episodes: np.ndarray) -> np.ndarray:
    """
    After each rollout, the probability that the mean cost of 50 episodes is over the limit by its error alone: where the
    expected one, what the ten rollouts around show, is within it. 0 where that is over the limit itself.

    :param share: J over the limit
    :param error: its standard error, NaN where it is not known
    """
    around = pd.Series(share).rolling(11, center=True, min_periods=1).mean().to_numpy()
    error = error * np.sqrt(np.minimum(n_episodes / WINDOW, 1))
    return np.where((error > 0) & (around <= 1), stats.norm.sf((1 - around) / np.where(error > 0, error, 1)), 0.0)


def last_fifth(run: pd.DataFrame) -> slice:
    return slice(-max(len(run) // 5, 1), None)


def judge(run: pd.DataFrame) -> list[dict[str, Any]]:
    """
    One row per constraint: all of the run, its last fifth, and from the first time that J reaches the limit (from below or
    from above) to the end; a run that never reaches it counts from its beginning.
    """
    rows = []
    late = last_fifth(run)
    for name in (key[2:] for key in run if key.startswith("J ")):
        share = (run[f"J {name}"] / run[f"limit {name}"]).to_numpy()
        is_there = share <= 1 if share[0] > 1 else share >= 1
        first = int(np.argmax(is_there))
        fifty = smoothed(share, run["episodes"].to_numpy())
        error = (run.get(f"error {name}", pd.Series(np.nan, run.index)) / run[f"limit {name}"]).to_numpy()
        by_error = (
            share_by_error(share, error, run["episodes"].to_numpy()) if np.isfinite(error).any() else np.full(len(run), np.nan)
        )
        rows.append(
            {
                "cost": name,
                "reached at": int(run["steps"].iloc[first]) if is_there.any() else "never",
                MEAN_SHARE: share[first:].mean(),
                OVER: np.mean(fifty > 1),
                OVER_SINCE: np.mean(fifty[first:] > 1),
                OVER_BY_ERROR: by_error[first:].mean(),
                OVER_LATE: np.mean(fifty[late] > 1),
                HIGHEST_SHARE: fifty[first:].max(),
                "return": run["return"].iloc[late].mean(),
                "steps": int(run["steps"].iloc[-1]),
            }
        )
    return rows


def read_run(path: Path) -> pd.DataFrame:
    """A run with one constraint, and beside its J, that of a rollout, the one of the last 50 episodes: ``J``."""
    log = pd.read_csv(path)
    return log.assign(J=smoothed(log["J cost"].to_numpy(), log["episodes"].to_numpy()))


def measure(log: pd.DataFrame) -> dict[str, float]:
    """
    Of one whole run, as the benchmarks of the field have it.

    :param log: from ``read_run``
    """
    is_over, late = log["J"] > log["limit cost"], last_fifth(log)
    return {
        "return": log["return"].iloc[late].mean(),
        "cost": log["J"].iloc[late].mean(),
        OVER: is_over.mean(),
        OVER_LATE: is_over.iloc[late].mean(),
        "highest J": log["J"].max(),
        "regret": (log["J"] - log["limit cost"]).clip(lower=0).sum(),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table, numbers rounded by what they are."""
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = dict(row)
        for key in row:
            if key.startswith("over"):
                cells[key] = "" if np.isnan(row[key]) else f"{row[key]:.0%}"
            elif key in (MEAN_SHARE, HIGHEST_SHARE):
                cells[key] = f"{row[key]:.2f}"
            elif key == "return":
                cells[key] = f"{row[key]:.4g}"
        lines.append("| " + " | ".join(str(cells[key]) for key in header) + " |")
    return "\n".join(lines)
