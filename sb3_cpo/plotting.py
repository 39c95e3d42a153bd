"""Return and cost of runs over training, with the limits (extra: plot)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FormatStrFormatter, NullFormatter, SymmetricalLogLocator
from scipy import stats

from sb3_cpo.run_files import Run, find_runs, from_log, read_run, source_of_training

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
        draw_band(return_axis, runs[0].steps, bootstrap_band(np.array([run.returns for run in runs])), style)
        for axis, name in zip(cost_axes, names, strict=True):
            values = np.array([run.costs[name] for run in runs if name in run.costs])
            if len(values) == 1 and name in runs[0].errors:
                error = 2 * np.nan_to_num(runs[0].errors[name])
                draw_band(axis, runs[0].steps, Band(values[0], values[0] - error, values[0] + error), style)
            elif len(values):
                draw_band(axis, runs[0].steps, bootstrap_band(values), style)
    for axis, name in zip(cost_axes, names, strict=True):
        limits = _draw_limits(axis, [run for runs in groups.values() for run in runs], name, cost_limit)
        axis.set(ylabel=f"{name} of an episode" if name else "cost of an episode")
        if log_cost:
            threshold = min([limit for limit in limits if limit > 0], default=1.0)
            _set_log_scale(axis, min(threshold, 1.0))
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


def draw_band(axis: Any, steps: np.ndarray, band: Band, style: dict[str, Any]) -> None:
    """
    A curve and the area of its interval.

    :param steps: (n_points,)
    :param style: arguments of matplotlib's ``plot``, with a color
    """
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


# What a point of each source is
MEANS = {
    "progress": "mean of each rollout",
    "tensorboard": "mean of each rollout",
    "monitor": "mean of 100 episodes",
    "evaluations": "mean of each evaluation",
}


def plot_training(run: Any, path: str | Path | None = None, title: str = "") -> Figure:
    """
    Return and cost of one run's training against its limit, in one call: the means of its rollouts, with two standard errors
    of the cost, where they were logged; else those of the episodes in its monitor files, or of its evaluations.

    :param run: a folder with a run, or a model that logs into one (``tensorboard_log``, or a logger with a folder)
    :param path: image to write
    :raises FileNotFoundError: the folder does not exist, or holds no run
    :raises ValueError: the model has logged to no folder, or the folder holds several runs
    """
    is_folder = isinstance(run, str | Path)
    folder: str | Path = run if is_folder else getattr(getattr(run, "_logger", None), "dir", None) or ""
    runs = find_runs(Path(folder)) if folder else []
    if not runs and not is_folder:
        raise ValueError(
            "this model has logged to no folder: learn with tensorboard_log=..., or with a logger that has one "
            '(model.set_logger(configure("run", ["stdout", "csv"])))'
        )
    if len(runs) > 1:
        names = ", ".join(map(str, runs[:5]))
        raise ValueError(
            f"{folder} holds {len(runs)} runs ({names}{', ...' if len(runs) > 5 else ''}): name one, or `sb3-cpo plot` all"
        )
    (found,) = runs or [Path(folder)]
    source = source_of_training(found)
    figure = draw({MEANS.get(source, ""): [read_run(found, source)]}, title)
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


__all__ = ["Run", "draw", "find_runs", "from_log", "plot_training", "read_run", "summarise"]
