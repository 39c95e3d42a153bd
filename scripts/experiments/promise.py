"""
What the package claims: with the defaults, on any task, the limit holds while the agent learns.

Runs CPO with nothing set but the limit (registered tasks bring theirs), one CSV per run, and prints a table. Runs that are
done are skipped, those that were stopped go on; `show` prints the table of what is there. Example:

    python scripts/experiments/promise.py run --group velocity --seeds 0 --steps 1e6 --output results/promise
    python scripts/experiments/promise.py show results/promise
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from runs import Run, run_all
from scipy import stats
from small_tasks import ALL_SMALL_TASKS, SMALL_TASKS, UNSEEN_TASKS, missing_package

from sb3_cpo import CPO, make_vec_env

VELOCITY = tuple(f"Safe{robot}Velocity-v0" for robot in ("Ant", "HalfCheetah", "Hopper", "Humanoid", "Swimmer", "Walker2d"))
PAPER = tuple(f"Safe{task}-v0" for task in ("PointCircle", "PointGather", "AntCircle", "AntGather", "HumanoidCircle"))
GROUPS = {"velocity": VELOCITY, "paper": PAPER, "small": tuple(SMALL_TASKS), "unseen": tuple(UNSEEN_TASKS)}
# The paper's update: its costs are then not discounted, and the limit is on the mean itself
PLAIN: dict[str, Any] = {"n_noise_draws": 0}
STEPS = {"velocity": 3e6, "paper": 2e6}
COST = "rollout/ep_cost_mean"
# What an update expected to change of J, what came, and how much of the cost gradient is noise
OF_UPDATES = {
    "predicted": "train/predicted_cost_change",
    "actual": "train/actual_cost_change",
    "noise": "train/cost_gradient_noise",
    "margin": "train/cost_margin",
}
# J of the published runs is the mean of the last 50 episodes
WINDOW = 50
# Published CPO on the way (return / cost; Milosevic et al., 2025, raw logs, 5 seeds): steps -> what it had
PUBLISHED = {
    "SafeAntVelocity-v0": {1e6: "1306 / 17.7", 2e6: "2325 / 19.5", 3e6: "2669 / 20.3"},
    "SafeHalfCheetahVelocity-v0": {1e6: "1141 / 19.7", 2e6: "1688 / 18.6", 3e6: "2055 / 18.7"},
    "SafeHopperVelocity-v0": {1e6: "1126 / 25.1", 2e6: "1387 / 31.0", 3e6: "1506 / 31.5"},
    "SafeHumanoidVelocity-v0": {1e6: "754 / 6.7", 2e6: "4247 / 12.1", 3e6: "4897 / 10.6"},
    # Deterministic evaluation (OmniSafe 0.5, benchmarks of its on-policy algorithms)
    "SafeSwimmerVelocity-v0": {1e7: "65 / 18.2"},
    "SafeWalker2dVelocity-v0": {1e7: "2075 / 21.9"},
}


def make_model(run: Run) -> CPO:
    """The one line: nothing is said but the limit, and that only where the environment does not say it."""
    if run.task not in ALL_SMALL_TASKS:
        return CPO("MlpPolicy", run.task, seed=run.seed, device="cpu", **run.settings)
    task = ALL_SMALL_TASKS[run.task]
    env = make_vec_env(task.make, seed=run.seed)
    return CPO("MlpPolicy", env, task.cost_limit, seed=run.seed, device="cpu", **run.settings)


def make_row(log: dict[str, Any]) -> dict[str, Any]:
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
            error = log.get(f"rollout/ep_cost_std_error{suffix}", np.nan)
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
                "mean J / limit": share[first:].mean(),
                "over, all": np.mean(fifty > 1),
                "over, since": np.mean(fifty[first:] > 1),
                "by error": by_error[first:].mean(),
                "over, late": np.mean(fifty[late] > 1),
                "highest since": fifty[first:].max(),
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
        "over, all": is_over.mean(),
        "over, late": is_over.iloc[late].mean(),
        "highest J": log["J"].max(),
        "regret": (log["J"] - log["limit cost"]).clip(lower=0).sum(),
    }


def judge_all(folder: Path) -> list[dict[str, Any]]:
    """A row per finished run in the folder and constraint."""
    order = [task for tasks in GROUPS.values() for task in tasks]
    paths = {path: path.stem.rsplit("_", 1)[0] for path in folder.glob("*_seed*.csv")}
    known = [path for path, task in paths.items() if task in order]
    if not known:
        raise SystemExit(f"no finished run in {folder}")
    rows = []
    for path in sorted(known, key=lambda path: (order.index(paths[path]), path.stem)):
        task, seed = path.stem.rsplit("_", 1)
        for row in judge(pd.read_csv(path)):
            rows.append({"task": task, "seed": seed.removeprefix("seed"), **row, "beside": beside(task, row["steps"])})
    return rows


def beside(task: str, n_steps: int) -> str:
    """What others have after about as many steps, or what the best policy has."""
    if task in ALL_SMALL_TASKS and ALL_SMALL_TASKS[task].best_return is not None:
        return f"best possible {ALL_SMALL_TASKS[task].best_return():.3g}"  # type: ignore[misc]
    published = PUBLISHED.get(task, {})
    nearest = min(published, key=lambda steps: abs(steps - n_steps), default=None)
    return "" if nearest is None else f"published CPO {published[nearest]} at {nearest:.0e}".replace("e+0", "e")


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per task and constraint: means over its seeds, the return with the lowest and the highest."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["cost"], row["steps"]), []).append(row)
    summary = []
    for (task, cost, n_steps), group in groups.items():
        returns = [row["return"] for row in group]
        means = {
            key: np.mean([row[key] for row in group])
            for key in ("mean J / limit", "over, since", "by error", "over, late", "return")
        }
        spread = "" if len(group) == 1 else f"{min(returns):.4g} to {max(returns):.4g}"
        row = {"task": task, "cost": cost, "steps": n_steps, "seeds": len(group), **means, "from to": spread}
        summary.append({**row, "beside": group[0]["beside"]})
    return summary


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table, numbers rounded by what they are."""
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = dict(row)
        for key in row:
            if key.startswith("over") or key == "by error":
                cells[key] = "" if np.isnan(row[key]) else f"{row[key]:.0%}"
            elif key in ("mean J / limit", "highest since"):
                cells[key] = f"{row[key]:.2f}"
            elif key == "return":
                cells[key] = f"{row[key]:.4g}"
        lines.append("| " + " | ".join(str(cells[key]) for key in header) + " |")
    return "\n".join(lines)


def table(folder: Path) -> str:
    """Means over seeds, and every finished run in the folder."""
    rows = judge_all(folder)
    return f"{markdown(summarise(rows))}\n\n{markdown(rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what is not done yet")
    run.add_argument("--group", choices=GROUPS, action="append", help="default: all")
    run.add_argument("--only", nargs="+", help="tasks by name")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    run.add_argument("--steps", type=float, help="default: 3e6, 2e6 or what a small task says")
    run.add_argument("--settings", default="{}", help="JSON: arguments of CPO that differ from the defaults")
    run.add_argument("--output", type=Path, default=Path("results/promise"))
    run.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    run.add_argument("--save-every", type=float, default=120.0, help="seconds between checkpoints")
    commands.add_parser("show", help="print the table").add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.command == "show":
        print(table(args.folder))
        return
    groups = args.group or list(GROUPS)
    unknown = set(args.only or ()) - {task for group in groups for task in GROUPS[group]}
    if unknown:
        parser.error(f"--only: no {', '.join(sorted(unknown))} in {', '.join(groups)}")
    runs = {}
    for group in groups:
        for task in args.only or GROUPS[group]:
            if task not in GROUPS[group]:
                continue
            if missing := missing_package(task):
                print(f"{task}: skipped, needs {missing}")
                continue
            steps = int(args.steps or (ALL_SMALL_TASKS[task].steps if task in ALL_SMALL_TASKS else STEPS[group]))
            for seed in args.seeds:
                runs[args.output / f"{task}_seed{seed}.csv"] = Run(task, seed, steps, json.loads(args.settings))
    run_all(runs, make_model, make_row, args.jobs, args.save_every)
    if any(path.exists() for path in runs):
        print(table(args.output))


if __name__ == "__main__":
    main()
