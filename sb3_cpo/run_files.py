"""Runs as tables: read from what SB3 and the zoo write (extra: plot)."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pandas as pd
import yaml
from stable_baselines3.common.monitor import get_monitor_files, load_results

import safe_envs  # noqa: F401  (registers the tasks)

# What is known of training itself, the best first; evaluations are of other episodes
OF_TRAINING = ("progress", "tensorboard", "monitor", "evaluations")


class Run(NamedTuple):
    """One run, as a table: rows are points in training."""

    steps: np.ndarray
    returns: np.ndarray
    costs: dict[str, np.ndarray]
    """Name of the constraint -> mean episode cost; "" where there is a single one without name."""
    limits: dict[str, np.ndarray]
    errors: dict[str, np.ndarray] = {}
    """Name of the constraint -> standard error of the mean episode cost, where it is known."""


def read_evaluations(folder: Path) -> Run:
    """Means of the evaluations in ``evaluations.npz``."""
    with np.load(folder / "evaluations.npz") as file:
        arrays = dict(file)
    steps, costs = arrays["timesteps"], arrays.get("costs")
    if costs is None:
        return Run(steps, arrays["results"].mean(axis=1), {}, {})
    n_costs, names = costs.shape[2], arrays["cost_names"].tolist() if "cost_names" in arrays else []
    if len(names) != n_costs:
        # Nobody has named them
        names = [""] if n_costs == 1 else [str(index) for index in range(n_costs)]
    means = {name: costs[:, :, index].mean(axis=1) for index, name in enumerate(names)}
    limits = {name: arrays["cost_limits"][:, index] for index, name in enumerate(names)}
    return Run(steps, arrays["results"].mean(axis=1), means, limits)


def read_monitor(folder: Path, window: int = 100) -> Run:
    """Means over a window of the training episodes that ended last; the limits are those of the zoo's config.yml."""
    table = load_results(str(folder))
    keys = [key for key in table.columns if key == "cost" or key.startswith("cost_")]
    window = min(window, len(table))
    rolling = table[["r", *keys]].rolling(window).mean().dropna()
    deviations = table[keys].rolling(window).std().loc[rolling.index]
    steps = table["l"].cumsum().loc[rolling.index].to_numpy()
    names = {key: "" if keys == ["cost"] else key for key in keys}
    limits = {}
    for config in folder.glob("*/config.yml"):
        limit = yaml.load(config.read_text(), Loader=yaml.UnsafeLoader).get("cost_limit")
        if limit is None and (config.parent / "args.yml").exists():
            # The limit that the task carries
            env_id = yaml.load((config.parent / "args.yml").read_text(), Loader=yaml.UnsafeLoader)["env"]
            spec = gym.registry.get(env_id)
            limit = None if spec is None else spec.kwargs.get("cost_limit")
        given = limit if isinstance(limit, dict) else dict.fromkeys(names.values(), limit) if len(names) == 1 else {}
        limits = {name: np.full(len(steps), float(v)) for name, v in given.items() if isinstance(v, int | float)}
    costs = {name: rolling[key].to_numpy() for key, name in names.items()}
    errors = {name: deviations[key].to_numpy() / np.sqrt(window) for key, name in names.items()}
    return Run(steps, rolling["r"].to_numpy(), costs, limits, errors)


def read_progress(folder: Path) -> Run:
    """The rollouts in ``progress.csv``."""
    return from_log(pd.read_csv(folder / "progress.csv"))


def read_tensorboard(folder: Path) -> Run:
    """The rollouts in TensorBoard's event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # 0: all of them, where TensorBoard would thin them out
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("rollout/")]
    columns = {tag: pd.Series({event.step: event.value for event in events.Scalars(tag)}) for tag in tags}
    table = pd.DataFrame(columns)
    table["time/total_timesteps"] = table.index
    return from_log(table)


def from_log(table: pd.DataFrame) -> Run:
    """A run from a table whose columns are the keys of SB3's logger."""
    table = table.dropna(subset=["rollout/ep_rew_mean"])
    # The return of the same episodes as the cost; SB3's is of the last 100 episodes
    of_rollout = "rollout/ep_rew_mean_rollout"
    returns = table[of_rollout if of_rollout in table else "rollout/ep_rew_mean"].to_numpy()
    costs: dict[str, np.ndarray] = {}
    limits: dict[str, np.ndarray] = {}
    errors: dict[str, np.ndarray] = {}
    keys = ((costs, "rollout/ep_cost_mean"), (limits, "rollout/cost_limit"), (errors, "rollout/ep_cost_std_error"))
    for to, prefix in keys:
        for key in table.columns:
            if key == prefix or key.startswith(f"{prefix}/"):
                to[key.removeprefix(prefix).removeprefix("/")] = table[key].to_numpy()
    return Run(table["time/total_timesteps"].to_numpy(), returns, costs, limits, errors)


def _sources(folder: Path) -> dict[str, bool]:
    """What a run can be read from, and whether it is there."""
    return {
        "evaluations": (folder / "evaluations.npz").is_file(),
        "progress": (folder / "progress.csv").is_file(),
        "tensorboard": any(folder.glob("events.out.tfevents*")),
        "monitor": bool(get_monitor_files(str(folder))),
    }


def find_runs(folder: Path, source: str = "auto") -> list[Path]:
    """The folder if it is a run, else those of its sub-folders that are, at any depth; what is inside a run is part of it."""
    sources = _sources(folder)
    if any(sources.values()) if source == "auto" else sources[source]:
        return [folder]
    below = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [run for path in below for run in find_runs(path, source)]


def read_run(folder: Path, source: str = "auto", window: int = 100) -> Run:
    """
    Read a run.

    :raises FileNotFoundError: the folder has nothing of that source
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    found = _sources(folder)
    source = next((name for name, exists in found.items() if exists), "auto") if source == "auto" else source
    if not found.get(source, False):
        raise FileNotFoundError(f"{folder} has no {' or '.join(found) if source == 'auto' else source} to read")
    readers: dict[str, Callable[[Path], Run]] = {
        "evaluations": read_evaluations,
        "progress": read_progress,
        "tensorboard": read_tensorboard,
        "monitor": lambda path: read_monitor(path, window),
    }
    return readers[source](folder)


def source_of_training(folder: Path) -> str:
    """What to read where the episodes of training are asked for; "auto" where there is nothing."""
    found = _sources(folder)
    return next((name for name in OF_TRAINING if found[name]), "auto")
