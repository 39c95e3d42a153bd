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
from measures import MEAN_SHARE, OVER_BY_ERROR, OVER_LATE, OVER_SINCE, judge, make_row, markdown
from runs import Run, run_all
from tasks import ALL_SMALL_TASKS, GROUPS, make_model, missing_package

STEPS = {"velocity": 3e6, "paper": 2e6}
BESIDE = "published / best possible"
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


def read_commits(folder: Path) -> dict[str, str]:
    """Name of a run -> commit of the code that made it, from the folder's ``commits.csv``, if it has one."""
    path = folder / "commits.csv"
    return dict(pd.read_csv(path, dtype=str).set_index("run")["commit"]) if path.exists() else {}


def judge_all(folder: Path) -> list[dict[str, Any]]:
    """A row per finished run in the folder and constraint."""
    order = [task for tasks in GROUPS.values() for task in tasks]
    paths = {path: path.stem.rsplit("_", 1)[0] for path in folder.glob("*_seed*.csv")}
    known = [path for path, task in paths.items() if task in order]
    if not known:
        raise SystemExit(f"no finished run in {folder}")
    rows, commits = [], read_commits(folder)
    for path in sorted(known, key=lambda path: (order.index(paths[path]), path.stem)):
        task, seed = path.stem.rsplit("_", 1)
        for row in judge(pd.read_csv(path)):
            code = {"code": commits.get(path.stem, "")} if commits else {}
            rows.append({"task": task, "seed": seed.removeprefix("seed"), **row, BESIDE: others(task, row["steps"]), **code})
    return rows


def others(task: str, n_steps: int) -> str:
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
        averaged = (MEAN_SHARE, OVER_SINCE, OVER_BY_ERROR, OVER_LATE, "return")
        means = {key: np.mean([row[key] for row in group]) for key in averaged}
        spread = "" if len(group) == 1 else f"{min(returns):.4g} to {max(returns):.4g}"
        row = {"task": task, "cost": cost, "steps": n_steps, "seeds": len(group), **means, "lowest to highest return": spread}
        summary.append({**row, BESIDE: group[0][BESIDE]})
    return summary


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
