"""
The velocity benchmark: CPO with its defaults beside what is published, measured in the same way.

    python scripts/experiments/promise.py run --group velocity --seeds 0 1 2 --steps 1e7 --output results/promise
    python scripts/experiments/velocity_benchmark.py evaluate results/promise
    python scripts/experiments/velocity_benchmark.py show results/promise --output results/drawn

`show` prints the tables and draws return and cost over training; points are published means. J is that of the stochastic
training policy, over the last 50 episodes (of more, where a rollout has more), after every 20,000 steps. `evaluate` plays the
last policies without noise, which is how OmniSafe measures. Published numbers: docs/results/velocity/published*.csv.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from measures import OVER, OVER_LATE, markdown, measure, read_run
from tasks import VELOCITY

from sb3_cpo import CPO, evaluate_policy, make_vec_env
from sb3_cpo.checkpoints import list_checkpoints

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter

from sb3_cpo.plotting import Run, align, bootstrap_band, draw_band

DOCS = Path(__file__).parents[2] / "docs"
PUBLISHED = DOCS / "results" / "velocity"
LIMIT = 25.0
MARKS = (1e6, 2e6, 3e6, 5e6, 1e7)
# Published values on the way are means over so many epochs of 20,000 steps before the mark
EPOCHS = 10
OURS = "sb3-cpo"
MARKERS = {"CPO": "o", "C-TRPO": "s", "PPO-Lagrangian": "^"}
DETERMINISTIC = "deterministic.csv"
# Columns of the published table -> ours
PUBLISHED_AS = {"over all": OVER, "over late": OVER_LATE}

Runs = dict[str, list[pd.DataFrame]]
"""Task -> one table per seed, with the smoothed J; no task without a run"""


def load(folder: Path) -> Runs:
    runs = {task: [read_run(path) for path in sorted(folder.glob(f"{task}_seed*.csv"))] for task in VELOCITY}
    return {task: logs for task, logs in runs.items() if logs}


def on_the_way(ours: Runs) -> list[dict[str, Any]]:
    """Return / cost at the marks: ours, mean over seeds (how many are that long, if not all), and what is published."""
    published = pd.read_csv(PUBLISHED / "published.csv")
    rows = []
    for task, runs in ours.items():
        row: dict[str, Any] = {"task": task, "method": OURS, "seeds": len(runs)}
        for mark in MARKS:
            there = [run[run["steps"] <= mark].tail(EPOCHS) for run in runs if run["steps"].iloc[-1] >= mark]
            means = [[part["return"].mean(), part["J"].mean()] for part in there]
            fewer = f" ({len(there)})" if len(there) < len(runs) else ""
            row[f"{mark / 1e6:g}M"] = as_pair(*np.mean(means, axis=0)) + fewer if means else ""
        rows.append(row)
        for method, group in published[published["task"] == task].groupby("method", sort=False):
            at = {f"{line['steps'] / 1e6:g}M": as_pair(line["return"], line["cost"]) for line in group.to_dict("records")}
            rows.append({"task": task, "method": method, "seeds": 5, **{key: at.get(key, "") for key in list(row)[3:]}})
    return rows


def as_pair(value: float, cost: float) -> str:
    return f"{value:.4g} / {cost:.1f}"


def by_length(runs: list[pd.DataFrame]) -> list[dict[str, Any]]:
    """A row for each length of runs: means over seeds, of the highest J the largest."""
    lengths: dict[int, list[pd.DataFrame]] = {}
    for run in runs:
        lengths.setdefault(int(run["steps"].iloc[-1]), []).append(run)
    rows = []
    for steps, group in lengths.items():
        measures = pd.DataFrame([measure(run) for run in group])
        means = {**measures.mean(), "highest J": measures["highest J"].max()}
        rows.append({"steps": f"{steps / 1e6:g}M", "seeds": len(group), **means})
    return rows


def as_text(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"cost": f"{row['cost']:.1f}", "highest J": f"{row['highest J']:.0f}", "regret": f"{row['regret']:.0f}"}


def last_fifth(ours: Runs) -> list[dict[str, Any]]:
    """Of whole runs: ours, a row for each length, and published ones of ten million steps."""
    published = pd.read_csv(PUBLISHED / "published_last_fifth.csv")
    rows = []
    for task, runs in ours.items():
        rows += [{"task": task, "method": OURS, **row} for row in by_length(runs)]
        for line in published[published["task"] == task].to_dict("records"):
            row = {"task": task, "method": line.pop("method"), "steps": "10M", "seeds": 5}
            rows.append({**row, **{PUBLISHED_AS.get(key, key): value for key, value in line.items()}})
    return [as_text(row) for row in rows]


def deterministic(folder: Path) -> list[dict[str, Any]]:
    """Return / cost of the last policies without noise, mean over seeds, beside OmniSafe's table."""
    if not (folder / DETERMINISTIC).exists():
        return []
    ours = pd.read_csv(folder / DETERMINISTIC)
    rows = []
    for line in pd.read_csv(PUBLISHED / "published_deterministic.csv").to_dict("records"):
        runs = ours[ours["task"] == line["task"]]
        if len(runs):
            lengths = sorted({f"{steps / 1e6:g}M" for steps in runs["steps"]}, key=lambda text: float(text[:-1]))
            own = {"steps": " and ".join(lengths), "seeds": len(runs)}
            rows.append(
                {
                    "task": line["task"],
                    **own,
                    OURS: as_pair(runs["ep_rew_mean"].mean(), runs["ep_cost_mean"].mean()),
                    "CPO of OmniSafe, 10M": line["CPO"],
                    "best of its twenty, 10M": f"{line['best of twenty']} ({line['which']})",
                }
            )
    return rows


def evaluate(folder: Path, n_episodes: int) -> pd.DataFrame:
    """Play the last policies of the runs in a folder without noise."""
    rows = []
    for task in VELOCITY:
        for checkpoints in sorted(folder.glob(f"{task}_seed*.checkpoints")):
            if not (names := list_checkpoints(checkpoints)):
                continue
            model = CPO.load(names[0], device="cpu")
            rows_of_run = checkpoints.with_suffix(".csv")
            if not rows_of_run.exists() or pd.read_csv(rows_of_run)["steps"].iloc[-1] != model.num_timesteps:
                print(f"{checkpoints}: skipped, the run goes on")
                continue
            # From a seed that no training has
            env = make_vec_env(task, n_envs=1, seed=1_000_000)
            rewards, _, costs = evaluate_policy(model, env, n_episodes, return_episode_rewards=True)
            seed = int(checkpoints.stem.rsplit("_seed", 1)[1])
            rows.append({"task": task, "seed": seed, "steps": model.num_timesteps, "episodes": n_episodes})
            rows[-1] |= {"ep_rew_mean": np.mean(rewards), "ep_cost_mean": costs.mean()}
            print(rows[-1], flush=True)
    if not rows:
        raise SystemExit(f"no checkpoint of a run in {folder}")
    return pd.DataFrame(rows)


def draw(ours: Runs, path: Path) -> None:
    """
    Return above, J below, a column per task: all runs as far as the shortest goes, then each that is longer; points are
    published means.
    """
    published = pd.read_csv(PUBLISHED / "published.csv")
    figure, columns = plt.subplots(
        2, len(ours), figsize=(3.1 * len(ours), 5), sharex="col", layout="constrained", squeeze=False
    )
    for axes, (task, logs) in zip(columns.T, ours.items(), strict=True):
        runs = align([Run(log["steps"].to_numpy(), log["return"].to_numpy(), {"": log["J"].to_numpy()}, {}) for log in logs])
        for axis, values in zip(axes, ([run.returns for run in runs], [run.costs[""] for run in runs]), strict=True):
            draw_band(axis, runs[0].steps, bootstrap_band(np.array(values)), {"color": "C0", "label": OURS})
        end = runs[0].steps[-1]
        for longer in (log[log["steps"] >= end] for log in logs):
            for axis, column in zip(axes, ("return", "J"), strict=True):
                axis.plot(longer["steps"], longer[column], color="C0", linewidth=0.8, alpha=0.6)
        end = max(log["steps"].iloc[-1] for log in logs)
        for index, (method, marker) in enumerate(MARKERS.items(), start=1):
            points = published[(published["task"] == task) & (published["method"] == method)]
            points = points[points["steps"] <= end * 1.001]
            for axis, column in zip(axes, ("return", "cost"), strict=True):
                axis.plot(points["steps"], points[column], marker, color=f"C{index}", label=method, markersize=5)
        axes[1].axhline(LIMIT, color="black", linestyle="--", label=f"limit {LIMIT:g}")
        axes[1].set_xlabel("environment steps")
        for axis in axes:
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        seeds = f"{len(logs)} seed{'s' if len(logs) > 1 else ''}"
        axes[0].set_title(f"{task.removeprefix('Safe').removesuffix('Velocity-v0')} ({seeds})", fontsize="medium")
        # What is far above (the swimmer's beginning) is cut off: what is near the limit must be read
        axes[1].set_ylim(0, 2 * LIMIT)
    columns[0, 0].set_ylabel("return of an episode")
    columns[1, 0].set_ylabel("J, cost of an episode")
    handles, labels = columns[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print the tables, draw the picture")
    show.add_argument("folder", type=Path, help="what promise.py has left")
    show.add_argument("--output", type=Path, help="folder for the pictures")
    play = commands.add_parser("evaluate", help="play the last policies without noise")
    play.add_argument("folder", type=Path)
    play.add_argument("--episodes", type=int, default=20)
    args = parser.parse_args()
    if args.command == "evaluate":
        table = evaluate(args.folder, args.episodes)
        table.to_csv(args.folder / DETERMINISTIC, index=False, float_format="%.5g")
        return
    ours = load(args.folder)
    parts = [on_the_way(ours), last_fifth(ours), deterministic(args.folder)]
    if not any(parts):
        raise SystemExit(f"no finished run of a velocity task in {args.folder}")
    print("\n\n".join(markdown(rows) for rows in parts if rows))
    if args.output is not None:
        draw(ours, args.output / "velocity.png")


if __name__ == "__main__":
    main()
