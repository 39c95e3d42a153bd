"""Return and cost of runs over training, with the limits: read from what SB3 and the zoo write, and drawn (extra: plot)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pandas as pd
import yaml
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FormatStrFormatter, NullFormatter, SymmetricalLogLocator
from scipy import stats
from stable_baselines3.common.monitor import get_monitor_files, load_results

import safe_envs  # noqa: F401  (registers the tasks)


class Run(NamedTuple):
    """One run, as a table: rows are points in training."""

    steps: np.ndarray
    returns: np.ndarray
    costs: dict[str, np.ndarray]
    """Name of the constraint -> mean episode cost; "" where there is a single one without name."""
    limits: dict[str, np.ndarray]
    errors: dict[str, np.ndarray] = {}
    """Name of the constraint -> standard error of the mean episode cost, where it is known."""


# ---------------------------------------------------------------- reading


def read_evaluations(folder: Path) -> Run:
    """Means of the evaluations in ``evaluations.npz``."""
    with np.load(folder / "evaluations.npz") as file:
        arrays = dict(file)
    steps, costs = arrays["timesteps"], arrays.get("costs")
    if costs is None:
        return Run(steps, arrays["results"].mean(axis=1), {}, {})
    known = {"timesteps", "results", "ep_lengths", "successes", "costs", "cost_limits"}
    names = [name for name in arrays if name not in known] or [""]
    if len(names) != costs.shape[2]:
        names = [str(index) for index in range(costs.shape[2])]
    means = {name: costs[:, :, index].mean(axis=1) for index, name in enumerate(names)}
    limits = {name: arrays["cost_limits"][:, index] for index, name in enumerate(names)}
    return Run(steps, arrays["results"].mean(axis=1), means, limits)


def read_monitor(folder: Path, window: int = 100) -> Run:
    """Means over a window of the training episodes that ended last; the limits are those of the zoo's config.yml."""
    table = load_results(str(folder))
    keys = [key for key in table.columns if key == "cost" or key.startswith("cost_")]
    rolling = table[["r", *keys]].rolling(min(window, len(table))).mean().dropna()
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
    return Run(steps, rolling["r"].to_numpy(), costs, limits)


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


# ---------------------------------------------------------------- statistics


class Band(NamedTuple):
    """(n_points,) each."""

    iqm: np.ndarray
    low: np.ndarray
    high: np.ndarray


def interquartile_mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Mean of the middle half (Agarwal et al., 2021, https://arxiv.org/abs/2108.13264)."""
    return stats.trim_mean(values, 0.25, axis=axis)


def bootstrap_band(values: np.ndarray, n_resamples: int = 2000, confidence: float = 0.95) -> Band:
    """
    The interquartile mean over seeds and its percentile bootstrap interval. A single seed has no interval.

    :param values: (n_seeds, n_points)
    """
    iqm = interquartile_mean(values)
    if len(values) < 2:
        return Band(iqm, iqm, iqm)
    # One draw of seeds for all points: a seed is a whole curve
    rows = np.random.default_rng(0).integers(len(values), size=(n_resamples, len(values)))
    resampled = interquartile_mean(values[rows], axis=1)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return Band(iqm, low, high)


def align(runs: list[Run], n_points: int = 200) -> list[Run]:
    """Bring runs to common steps, from the last of their beginnings to the first of their ends."""
    first, last = max(run.steps[0] for run in runs), min(run.steps[-1] for run in runs)
    if last < first:
        raise ValueError(f"the runs share no steps: one begins at {first}, another ends at {last}")
    longest = max(len(run.steps) for run in runs)
    steps = np.linspace(first, last, min(n_points, longest))

    def at(run: Run, values: np.ndarray) -> np.ndarray:
        return np.interp(steps, run.steps, values)

    def aligned(run: Run, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: at(run, values) for name, values in columns.items()}

    return [
        Run(steps, at(run, run.returns), *(aligned(run, table) for table in (run.costs, run.limits, run.errors)))
        for run in runs
    ]


# ---------------------------------------------------------------- drawing


Limits = float | Mapping[str, float] | None
# Of the first limit of a panel, the second, ...
LIMIT_STYLES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))


def limit_of(run: Run, name: str, cost_limit: Limits = None) -> np.ndarray | None:
    """
    The limit of a constraint over a run; None: there is none.

    :param cost_limit: one for all constraints, or by name, instead of the run's own
    """
    if isinstance(cost_limit, Mapping):
        cost_limit = cost_limit.get(name)
    return run.limits.get(name) if cost_limit is None else np.full(len(run.steps), cost_limit)


def draw(groups: dict[str, list[Run]], title: str = "", cost_limit: Limits = None, log_cost: bool = False) -> Figure:
    """
    The return above, and one panel per constraint below: interquartile mean over seeds and its bootstrap interval; of a single
    run, the mean episode cost with two standard errors.

    :param groups: label -> runs of different seeds
    :param cost_limit: draw this limit instead of the runs' own, or a mapping from names to limits
    :param log_cost: draw costs on a logarithmic axis, linear below 1 (below a limit that is smaller)
    """
    names = list(dict.fromkeys(name for runs in groups.values() for run in runs for name in run.costs)) or [""]
    fig, axes = plt.subplots(
        1 + len(names), 1, figsize=(8, 2.8 * (1 + len(names))), sharex=True, layout="constrained", squeeze=False
    )
    return_axis, *cost_axes = axes[:, 0]
    for index, (label, runs) in enumerate(groups.items()):
        runs = align(runs)
        style = {"color": f"C{index}", "label": f"{label} ({len(runs)} seeds)" if len(runs) > 1 else label}
        _draw_band(return_axis, runs[0].steps, bootstrap_band(np.array([run.returns for run in runs])), style)
        for axis, name in zip(cost_axes, names, strict=True):
            values = np.array([run.costs[name] for run in runs if name in run.costs])
            if len(values) == 1 and name in runs[0].errors:
                error = 2 * np.nan_to_num(runs[0].errors[name])
                _draw_band(axis, runs[0].steps, Band(values[0], values[0] - error, values[0] + error), style)
            elif len(values):
                _draw_band(axis, runs[0].steps, bootstrap_band(values), style)
    for axis, name in zip(cost_axes, names, strict=True):
        limits = _draw_limits(axis, [run for runs in groups.values() for run in runs], name, cost_limit)
        axis.set(ylabel=f"{name} of an episode" if name else "cost of an episode")
        if log_cost:
            threshold = min([limit for limit in limits if limit > 0], default=1.0)
            _set_log_scale(axis, min(threshold, 1.0))
        else:
            # An interval may reach below 0 where no cost does
            lowest = min((run.costs[name].min() for runs in groups.values() for run in runs if name in run.costs), default=0.0)
            axis.set_ylim(bottom=0.0 if lowest >= 0 else axis.get_ylim()[0])
    return_axis.set(ylabel="return of an episode", title=title)
    cost_axes[-1].set(xlabel="environment steps")
    for axis in (return_axis, *cost_axes):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 500k, 1M
        # Beside the data, not over it
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def _draw_band(axis: Any, steps: np.ndarray, band: Band, style: dict[str, Any]) -> None:
    axis.plot(steps, band.iqm, marker="." if len(steps) < 3 else None, **style)
    axis.fill_between(steps, band.low, band.high, color=style["color"], alpha=0.2, linewidth=0)


def _set_log_scale(axis: Any, threshold: float) -> None:
    """Logarithmic, and linear below a threshold; with ticks at 1, 2, 5, 10, ..., so that there are several in a decade."""
    axis.set_yscale("symlog", linthresh=threshold)
    axis.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=threshold, subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _draw_limits(axis: Any, runs: list[Run], name: str, cost_limit: Limits) -> list[float]:
    """Each limit once; a constant one from edge to edge, however long the runs that have it are. Returns where they end."""
    drawn: dict[Any, float] = {}
    for run in runs:
        limit = limit_of(run, name, cost_limit)
        if limit is None or not np.isfinite(limit).all():
            continue
        is_constant = not np.ptp(limit)
        key = limit[0] if is_constant else tuple(limit)
        if key in drawn:
            continue
        style: dict[str, Any] = {"color": "black", "linestyle": LIMIT_STYLES[len(drawn) % len(LIMIT_STYLES)], "linewidth": 1.2}
        drawn[key] = float(limit[-1])
        if is_constant:
            axis.axhline(limit[0], label=f"limit {limit[0]:g}", **style)
        else:
            axis.plot(run.steps, limit, label=f"limit, {limit[-1]:g} in the end", **style)
    return list(drawn.values())


def plot_training(run: Any, path: str | Path | None = None, title: str = "") -> Figure:
    """
    Return and cost of one run against its limit, in one call.

    :param run: a folder with a run, or a model that logs into one (``tensorboard_log``, or a logger with a folder)
    :param path: image to write
    :raises FileNotFoundError: the folder does not exist, or holds no run
    :raises ValueError: the model has logged to no folder, or the folder holds several runs
    """
    folder = run if isinstance(run, str | Path) else getattr(getattr(run, "_logger", None), "dir", None)
    if folder is None:
        raise ValueError(
            "this model has logged to no folder: learn with tensorboard_log=..., or with a logger that has one "
            '(model.set_logger(configure("run", ["stdout", "csv"])))'
        )
    runs = find_runs(Path(folder)) or [Path(folder)]
    if len(runs) > 1:
        names = ", ".join(map(str, runs[:5]))
        raise ValueError(
            f"{folder} holds {len(runs)} runs ({names}{', ...' if len(runs) > 5 else ''}): name one, or `sb3-cpo plot` all"
        )
    figure = draw({"mean of each rollout": [read_run(runs[0])]}, title)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    return figure


def summarise(groups: dict[str, list[Run]], cost_limit: Limits = None) -> str:
    """A table of the last point of each curve, and the share of points at which a run was over its limit."""
    lines = [f"{'runs':24} {'steps':>9}  {'':12} {'IQM':>9}  95 % interval"]
    for label, runs in groups.items():
        runs = align(runs)
        panels = {"return": [run.returns for run in runs]}
        panels.update(
            {f"cost {name}".strip(): [run.costs[name] for run in runs if name in run.costs] for name in runs[0].costs}
        )
        for what, values in panels.items():
            band = bootstrap_band(np.array(values)[:, -1:])
            line = (
                f"{label:24} {runs[0].steps[-1]:9.3g}  {what:12} {band.iqm[0]:9.4g}  [{band.low[0]:.4g}, {band.high[0]:.4g}]"
            )
            name = what.removeprefix("cost").strip()
            own = [limit_of(run, name, cost_limit) for run in runs]
            if what != "return" and all(limit is not None for limit in own):
                is_over = np.array(values) > np.array(own)
                line += f"  limit {own[0][-1]:g}, over it at {is_over.mean():.0%} of the points"  # type: ignore[index]
            lines.append(line)
    return "\n".join(lines)
