"""What training has cost: from a model, or from the files of its run."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sb3_cpo.cost_limits import CostLimits, exceeds


class TrainingRecord(NamedTuple):
    """Costs of training; arrays have shape (n_costs,)."""

    source: str
    """Where the numbers come from."""
    n_steps: int
    cumulative_cost: np.ndarray
    cost_regret: np.ndarray | None
    """Sum over updates of max(J - limit, 0); None: not known."""
    violation_rate: np.ndarray | None
    """Share of the updates (of the episodes, if it comes from a monitor) over the limit; None: not known."""
    n_updates: int | None


def training_record(
    model: Any, folder: str | Path | None, limits: CostLimits, final_limit: np.ndarray
) -> TrainingRecord | None:
    """
    From ``progress.csv``, else from what the model has counted itself, else from monitor files.

    :param folder: of the run; None: there is none
    :param limits: names of the constraints
    :param final_limit: (n_costs,) for monitor files, which have none
    :return: None where nobody has counted
    """
    record = None if folder is None else _of_progress(Path(folder), limits)
    record = record or _of_model(model, limits)
    return record if record is not None or folder is None else _of_monitor(Path(folder), limits, final_limit)


def _of_model(model: Any, limits: CostLimits) -> TrainingRecord | None:
    safety = getattr(model, "safety", None)
    if safety is None or safety.n_steps == 0 or safety.n_costs != limits.n_costs:
        return None
    if (limits.keys or ("cost",)) != (model.cost_limits.keys or ("cost",)):
        return None
    has_updates = safety.n_updates > 0 and model.cost_limits.is_limited
    return TrainingRecord(
        "the model, up to the moment when it was saved",
        safety.n_steps,
        safety.cumulative_cost,
        safety.cost_regret if has_updates else None,
        safety.violation_rate if has_updates else None,
        safety.n_updates or None,
    )


def _of_progress(folder: Path, limits: CostLimits) -> TrainingRecord | None:
    import pandas as pd

    path = folder / "progress.csv"
    if not path.is_file():
        return None
    table = pd.read_csv(path)
    names = [f"/{name}" for name in limits.names] or [""]

    def last(key: str) -> np.ndarray | None:
        columns = [f"safety/{key}{name}" for name in names]
        if not all(column in table and table[column].notna().any() for column in columns):
            return None
        return np.array([float(table[column].dropna().iloc[-1]) for column in columns])

    cumulative_cost = last("cumulative_cost")
    if cumulative_cost is None:
        return None
    n_steps = int(table["time/total_timesteps"].max())
    n_updates = int(table[f"rollout/ep_cost_mean{names[0]}"].notna().sum())
    return TrainingRecord(
        "progress.csv of the run", n_steps, cumulative_cost, last("cost_regret"), last("violation_rate"), n_updates
    )


def _of_monitor(folder: Path, limits: CostLimits, final_limit: np.ndarray) -> TrainingRecord | None:
    from stable_baselines3.common.monitor import get_monitor_files, load_results

    if not get_monitor_files(str(folder)):
        return None
    table = load_results(str(folder))
    keys = list(limits.keys or (["cost"] if limits.n_costs == 1 else [f"cost_{index}" for index in range(limits.n_costs)]))
    if table.empty or not all(key in table for key in keys):
        return None
    costs = table[keys].to_numpy(dtype=np.float64)
    return TrainingRecord(
        "monitor files of the run (shares are of its episodes)",
        int(table["l"].sum()),
        costs.sum(axis=0),
        None,
        exceeds(costs, final_limit).mean(axis=0),
        None,
    )
