"""Draw return and cost of runs, with the limits: the interquartile mean over seeds and its bootstrap interval."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import gymnasium as gym
import numpy as np
import pandas as pd
import yaml
from matplotlib import pyplot as plt
from scipy import stats
from stable_baselines3.common.monitor import get_monitor_files, load_results

import safe_envs  # noqa: F401  (registers the tasks)

DESCRIPTION = """\
Draw return and cost of one or several runs over the steps of training.

A run is a folder that the zoo or an SB3 model wrote. Runs of the same algorithm (the folder above, or --labels) are one
curve: the interquartile mean over their seeds, with a bootstrap interval of 95 %. Numbers are read from the first of these
that a run has, or from --source:
  evaluations   evaluations.npz of CostEvalCallback: separate episodes, the deterministic policy unless told otherwise
  progress      progress.csv of SB3's logger: mean of each rollout, with the limits
  tensorboard   the same, from event files
  monitor       *.monitor.csv: the episodes of training, averaged over a window
"""

EXAMPLES = """\
examples:
  three seeds each of CPO and TRPO
      %(prog)s logs/cpo/SafePointCircle-v0_* logs/trpo/SafePointCircle-v0_* -o circle.png
  the episodes of training, with another limit line and a logarithmic cost
      %(prog)s logs/*/SafeAntCircle-v0_? --source monitor --window 500 --cost-limit 10 --log-cost
  runs with two named constraints, from TensorBoard; one curve per folder
      %(prog)s tb/CPO_1 tb/CPO_2 --source tensorboard --labels first second
"""

# rl_zoo3 writes <algo>/<env>_<number>, with a uuid where it was told to
RUN_NAME = re.compile(r"_\d+(_[0-9a-f-]{36})?$")


class Run(NamedTuple):
    """One run, as a table: rows are points in training."""

    steps: np.ndarray
    returns: np.ndarray
    costs: dict[str, np.ndarray]
    """Name of the constraint -> mean episode cost; "" where there is a single one without name."""
    limits: dict[str, np.ndarray]


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
    for to, prefix in ((costs, "rollout/ep_cost_mean"), (limits, "rollout/cost_limit")):
        for key in table.columns:
            if key == prefix or key.startswith(f"{prefix}/"):
                to[key.removeprefix(prefix).removeprefix("/")] = table[key].to_numpy()
    return Run(table["time/total_timesteps"].to_numpy(), returns, costs, limits)


def read_run(folder: Path, source: str = "auto", window: int = 100) -> Run:
    """
    Read a run.

    :raises FileNotFoundError: the folder has nothing of that source
    """
    found = {
        "evaluations": (folder / "evaluations.npz").is_file(),
        "progress": (folder / "progress.csv").is_file(),
        "tensorboard": any(folder.glob("events.out.tfevents*")),
        "monitor": bool(get_monitor_files(str(folder))),
    }
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

    return [Run(steps, at(run, run.returns), aligned(run, run.costs), aligned(run, run.limits)) for run in runs]


# ---------------------------------------------------------------- drawing


def draw(groups: dict[str, list[Run]], title: str = "", cost_limit: float | None = None, log_cost: bool = False) -> plt.Figure:
    """
    One panel for the return and one per constraint.

    :param groups: label -> runs of different seeds
    :param cost_limit: draw this limit instead of the runs' own
    """
    names = list(dict.fromkeys(name for runs in groups.values() for run in runs for name in run.costs)) or [""]
    fig, axes = plt.subplots(1, 1 + len(names), figsize=(5 * (1 + len(names)), 3.8), layout="constrained")
    drawn_limits: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}
    for index, (label, runs) in enumerate(groups.items()):
        runs = align(runs)
        color, steps = f"C{index}", runs[0].steps
        panels = [[run.returns for run in runs], *([run.costs[name] for run in runs if name in run.costs] for name in names)]
        for ax, values in zip(axes, panels, strict=True):
            if values:
                band = bootstrap_band(np.array(values))
                n_seeds = f" ({len(values)} seeds)" if len(values) > 1 else ""
                ax.plot(steps, band.iqm, color=color, label=f"{label}{n_seeds}", marker="." if len(steps) < 3 else None)
                ax.fill_between(steps, band.low, band.high, color=color, alpha=0.2, linewidth=0)
        for name in names:
            limits = [run.limits[name] for run in runs if name in run.limits]
            if cost_limit is not None:
                limits = [np.full(len(steps), cost_limit)]
            if limits and np.isfinite(limits).all():
                limit = np.mean(limits, axis=0)
                drawn_limits[name, tuple(limit) if np.ptp(limit) else limit[0]] = (steps, limit)
    # After the curves, and a constant limit from edge to edge, however long the runs that have it are
    for (name, _), (steps, limit) in drawn_limits.items():
        ax, style = axes[1 + names.index(name)], {"color": "black", "linestyle": "--", "linewidth": 1.2}
        if np.ptp(limit):
            ax.plot(steps, limit, label=f"limit, {limit[-1]:g} in the end", **style)
        else:
            ax.axhline(limit[0], label=f"limit {limit[0]:g}", **style)
    axes[0].set(ylabel="return of an episode")
    for ax, name in zip(axes[1:], names, strict=True):
        ax.set(ylabel=f"{name} of an episode" if name else "cost of an episode")
        if log_cost:
            ax.set_yscale("symlog", linthresh=1)
        else:
            ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    for ax in axes:
        ax.set(xlabel="steps")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        ax.ticklabel_format(axis="x", style="sci", scilimits=(0, 4))
    axes[-1].legend(frameon=False)
    fig.suptitle(title)
    return fig


def summarise(groups: dict[str, list[Run]], cost_limit: float | None = None) -> str:
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
            own = [run.limits.get(name) if cost_limit is None else np.full(len(run.steps), cost_limit) for run in runs]
            if what != "return" and all(limit is not None for limit in own):
                is_over = np.array(values) > np.array(own)
                line += f"  limit {own[0][-1]:g}, over it at {is_over.mean():.0%} of the points"  # type: ignore[index]
            lines.append(line)
    return "\n".join(lines)


def label_of(folder: Path) -> str:
    """The algorithm, where the folder is the zoo's or TensorBoard's; else the folder's own name without its number."""
    parent, name = folder.resolve().parent.name, RUN_NAME.sub("", folder.resolve().name)
    return parent if (folder / name).is_dir() else name


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="one folder per run")
    parser.add_argument("-o", "--output", type=Path, default=Path("plot.png"), help="image to write (default: plot.png)")
    parser.add_argument("--source", choices=["auto", "evaluations", "progress", "tensorboard", "monitor"], default="auto")
    parser.add_argument("-l", "--labels", nargs="+", help="one label per folder; folders of one label are one curve")
    parser.add_argument("-w", "--window", type=int, default=100, help="episodes of the monitor's mean (default: 100)")
    parser.add_argument("--cost-limit", type=float, help="limit to draw (default: the limits of the runs)")
    parser.add_argument("--log-cost", action="store_true", help="draw costs on a logarithmic axis, linear below 1")
    parser.add_argument("-t", "--title", default="", help="title of the image")
    options = parser.parse_args(args)
    labels = options.labels or [label_of(folder) for folder in options.folders]
    if len(labels) != len(options.folders):
        parser.error(f"{len(options.folders)} folders need as many labels, not {len(labels)}")

    groups: dict[str, list[Run]] = {}
    for folder, label in zip(options.folders, labels, strict=True):
        try:
            run = read_run(folder, options.source, options.window)
            if len(run.steps) == 0:
                print(f"no episodes in {folder}: skipped (a hyperparameter optimisation leaves such folders)")
                continue
            groups.setdefault(label, []).append(run)
        except FileNotFoundError as error:
            parser.error(str(error))
    print(summarise(groups, options.cost_limit))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(groups, options.title, options.cost_limit, options.log_cost).savefig(options.output, dpi=150)
    print(f"Image: {options.output}")


if __name__ == "__main__":
    main()
