"""
The promise of the package: with the defaults, on any task, the limit holds while the agent learns.

Runs CPO with nothing set but the limit (registered tasks bring theirs), one CSV per run, and prints a table. Runs that are
done are skipped; `show` prints the table of what is there. Example:

    python scripts/experiments/promise.py run --group velocity --seeds 0 --steps 1e6 --output results/promise
    python scripts/experiments/promise.py show results/promise
"""

import argparse
import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch as th
from small_tasks import SMALL_TASKS
from stable_baselines3.common.callbacks import BaseCallback

from sb3_cpo import CPO, make_vec_env

VELOCITY = tuple(f"Safe{robot}Velocity-v0" for robot in ("Ant", "HalfCheetah", "Hopper", "Humanoid", "Swimmer", "Walker2d"))
PAPER = tuple(f"Safe{task}-v0" for task in ("PointCircle", "PointGather", "AntCircle", "AntGather", "HumanoidCircle"))
GROUPS = {"velocity": VELOCITY, "paper": PAPER, "small": tuple(SMALL_TASKS)}
STEPS = {"velocity": 3e6, "paper": 2e6}
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


class Rows(BaseCallback):
    """One row per rollout, written as it comes."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        estimate = model.raw_cost_estimate
        row = {"steps": model.num_timesteps, "return": model.ep_rew_mean, "episodes": estimate.n_episodes}
        names = model.cost_limits.names or ("cost",)
        for name, cost, limit in zip(names, estimate.mean, model.current_cost_limit, strict=True):
            row |= {f"J {name}": cost, f"limit {name}": limit}
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if is_new:
                writer.writeheader()
            writer.writerow({key: f"{value:.6g}" for key, value in row.items()})


def train(task: str, seed: int, steps: int, path: Path, settings: dict[str, Any]) -> None:
    """
    One run, to ``path``; an unfinished one begins anew, a finished one is left alone.

    :raises ValueError: what is there is a run with other settings
    """
    described = {"task": task, "seed": seed, "steps": steps, "settings": settings}
    description = path.with_suffix(".json")
    if path.exists():
        if json.loads(description.read_text()) != described:
            raise ValueError(f"{path} is of {description.read_text()}, not of {described}: choose another --output")
        return
    print(f"{task}, seed {seed}, {steps:,} steps", file=sys.stderr, flush=True)
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    if task in SMALL_TASKS:
        env: Any = make_vec_env(SMALL_TASKS[task].make, seed=seed)
        limit: Any = SMALL_TASKS[task].cost_limit
    else:
        env, limit = task, None
    model = CPO("MlpPolicy", env, limit, seed=seed, device="cpu", **settings)
    model.learn(steps, callback=Rows(part))
    description.write_text(json.dumps(described))
    os.replace(part, path)


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


def judge(run: pd.DataFrame) -> list[dict[str, Any]]:
    """
    One row per constraint: all of the run, its last fifth, and from the first time that J reaches the limit (from below or
    from above) to the end; a run that never reaches it counts from its beginning.
    """
    rows = []
    late = slice(-max(len(run) // 5, 1), None)
    for name in (key[2:] for key in run if key.startswith("J ")):
        share = (run[f"J {name}"] / run[f"limit {name}"]).to_numpy()
        is_there = share <= 1 if share[0] > 1 else share >= 1
        first = int(np.argmax(is_there))
        fifty = smoothed(share, run["episodes"].to_numpy())
        rows.append(
            {
                "cost": name,
                "reached at": int(run["steps"].iloc[first]) if is_there.any() else "never",
                "mean J / limit": share[first:].mean(),
                "over, all": np.mean(fifty > 1),
                "over, since": np.mean(fifty[first:] > 1),
                "over, late": np.mean(fifty[late] > 1),
                "highest since": fifty[first:].max(),
                "return": run["return"].iloc[late].mean(),
                "steps": int(run["steps"].iloc[-1]),
            }
        )
    return rows


def table(folder: Path) -> str:
    """A Markdown table of all finished runs in the folder."""
    order = [task for tasks in GROUPS.values() for task in tasks]
    rows = []
    paths = {path: path.stem.rsplit("_", 1)[0] for path in folder.glob("*_seed*.csv")}
    known = [path for path, task in paths.items() if task in order]
    if not known:
        raise SystemExit(f"no finished run in {folder}")
    for path in sorted(known, key=lambda path: (order.index(paths[path]), path.stem)):
        task, seed = path.stem.rsplit("_", 1)
        for row in judge(pd.read_csv(path)):
            published = PUBLISHED.get(task, {})
            nearest = min(published, key=lambda steps: abs(steps - row["steps"]), default=None)
            beside = "" if nearest is None else f"{published[nearest]} at {nearest:.0e}".replace("e+0", "e")
            rows.append({"task": task, "seed": seed.removeprefix("seed"), **row, "published CPO": beside})
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = dict(row)
        for key in ("over, all", "over, since", "over, late"):
            cells[key] = f"{row[key]:.0%}"
        for key in ("mean J / limit", "highest since"):
            cells[key] = f"{row[key]:.2f}"
        cells["return"] = f"{row['return']:.4g}"
        lines.append("| " + " | ".join(str(cells[key]) for key in header) + " |")
    return "\n".join(lines)


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
    commands.add_parser("show", help="print the table").add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.command == "show":
        print(table(args.folder))
        return
    unknown = set(args.only or ()) - {task for group in args.group or GROUPS for task in GROUPS[group]}
    if unknown:
        parser.error(f"--only: no {', '.join(sorted(unknown))} in {', '.join(args.group or GROUPS)}")
    th.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    for group in args.group or GROUPS:
        for task in GROUPS[group]:
            for seed in args.seeds if not args.only or task in args.only else ():
                path = args.output / f"{task}_seed{seed}.csv"
                steps = int(args.steps or (SMALL_TASKS[task].steps if group == "small" else STEPS[group]))
                train(task, seed, steps, path, json.loads(args.settings))


if __name__ == "__main__":
    main()
