"""
What makes the limit hold: CPO with its defaults, with the paper's plain update, and with single parts, on one task.

    python scripts/experiments/variants.py --task SafeHalfCheetahVelocity-v0 --variants default plain --steps 1e6 --seeds 0

Runs that are done are skipped, those that were stopped go on. It prints a table, and draws return and cost over training and
the actual against the predicted changes of the cost.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from calibration import draw_calibration, slope_without_noise
from measures import ACTUAL, MEAN_SHARE, NOISE, OVER, OVER_LATE, OVER_SINCE, PREDICTED, judge, make_row
from runs import plan, run_all
from tasks import ALL_SMALL_TASKS, GROUPS, PLAIN, make_model

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from sb3_cpo.plotting import draw, from_log

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "default, no distance": {"cost_confidence": 0.0},
    "default, undiscounted costs": {"cost_gae_gamma": 1.0},
    "default, 1 rollout": {"n_cost_rollouts": 1},
    "default, margin": {"cost_margin_lr": 0.2},
    "default, rewards end": {"bootstrap_time_limits": False},
    "plain": PLAIN,
    "plain, discounted costs": {**PLAIN, "cost_gae_gamma": 0.99},
    "plain, 5 rollouts": {**PLAIN, "n_cost_rollouts": 5},
    "plain, margin": {**PLAIN, "cost_margin_lr": 0.2},
    "plain, all three": {**PLAIN, "cost_gae_gamma": 0.99, "n_cost_rollouts": 5, "cost_margin_lr": 0.2},
}
TASKS = [
    task
    for tasks in GROUPS.values()
    for task in tasks
    if task not in ALL_SMALL_TASKS or not isinstance(ALL_SMALL_TASKS[task].cost_limit, Mapping)
]


def describe(log: pd.DataFrame) -> dict[str, Any]:
    """A run in a row: of its late half where nothing else is said."""
    late = log.iloc[len(log) // 2 :]
    (judged,) = judge(pd.DataFrame([make_row(row) for row in log.to_dict("records")]))
    return {
        **{key: judged[key] for key in ("reached at", MEAN_SHARE, OVER, OVER_SINCE, OVER_LATE, "return")},
        "predicted": late[PREDICTED].mean(),
        "actual": late[ACTUAL].mean(),
        "slope without noise": slope_without_noise(late),
        "noise share": late[NOISE].mean() if NOISE in late else float("nan"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="SafePointCircle-v0")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=float, default=1e6)
    parser.add_argument("--settings", default="{}", help="JSON: arguments of CPO that all variants have")
    parser.add_argument("--output", type=Path, default=Path("results/variants"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    args = parser.parse_args()

    folder, common = args.output / args.task, json.loads(args.settings)
    runs = plan(
        [args.task],
        args.variants,
        args.seeds,
        args.steps,
        lambda task, variant: {**common, **VARIANTS[variant]},
        lambda task, variant, seed: folder / f"{variant}_seed{seed}.csv",
    )
    run_all(runs, make_model, jobs=args.jobs)
    logs: dict[str, list[pd.DataFrame]] = {}
    rows = []
    for path, run in runs.items():
        logs.setdefault(run.algorithm, []).append(pd.read_csv(path))
        rows.append({"variant": run.algorithm, "seed": run.seed, **describe(logs[run.algorithm][-1])})
    table = pd.DataFrame(rows)
    table.to_csv(folder / "table.csv", index=False)
    print(table.to_string(index=False, float_format="%.3g"))
    figure = draw({variant: [from_log(log) for log in group] for variant, group in logs.items()}, args.task)
    figure.savefig(folder / "curves.png", dpi=110)
    plt.close(figure)
    late = {variant: pd.concat([log.iloc[len(log) // 2 :] for log in group]) for variant, group in logs.items()}
    draw_calibration(late, folder / "calibration.png")


if __name__ == "__main__":
    main()
