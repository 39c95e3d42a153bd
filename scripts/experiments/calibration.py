"""
Predicted against actual changes of the cost: does what an update expects come true?

    python scripts/experiments/calibration.py results/promise results/compared/"plain CPO" --output results/calibration.png

Of the runs in each folder (of promise.py, comparison.py), the late half: a row per task, and
a panel per task and folder.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from measures import ACTUAL, COST, ERROR, MARGIN, NOISE, OF_UPDATES, PREDICTED, markdown
from tasks import GROUPS

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator


def as_log(run: pd.DataFrame, name: str = "cost") -> pd.DataFrame:
    """A run of promise.py with the columns of SB3's log."""
    names = {"J": COST, "error": ERROR, **OF_UPDATES}
    return run.rename(columns={f"{short} {name}": full for short, full in names.items()})


def slope_without_noise(rows: pd.DataFrame) -> float:
    """
    The slope that the actual changes would have on the predicted ones if J were known without error.

    An estimate of J that is too high by its noise e makes the update predict more, and lets the next estimate fall by e: the
    plain slope counts this fall as a prediction that came true. Here cov(predicted, e) is taken out: the variance of e, times
    how much the prediction answers to the estimate at the same margin (Stein's lemma: cov(f(J + e), e) = var(e) E f' for
    normal e).

    :param rows: of SB3's log, one per update
    """
    if "rollout/ep_shaped_cost_mean" in rows:
        return np.nan  # predicted and actual are of the shaped cost, whose error is not logged
    columns = {
        "predicted": rows[PREDICTED],
        "actual": rows[ACTUAL],
        "error": rows[ERROR].shift(),
        "estimate": rows[COST].shift(),
    }
    if MARGIN in rows:
        # A row shows the margin after its update
        columns["margin"] = rows[MARGIN].shift()
    known = pd.DataFrame(columns).dropna()
    noise_variance = (known.pop("error") ** 2).mean()
    known -= known.mean()
    if not known["predicted"].any():
        return np.nan  # nothing was ever expected
    predicted, actual = known.pop("predicted"), known.pop("actual")
    answer = np.linalg.lstsq(known, predicted)[0][0]
    return ((predicted * actual).mean() + answer * noise_variance) / (predicted**2).mean()


def draw_calibration(groups: dict[str, pd.DataFrame], path: Path, n_columns: int = 4) -> None:
    """
    Actual against predicted changes of J, one panel per group.

    :param groups: title -> rows of SB3's log
    """
    n_columns = min(n_columns, len(groups))
    n_rows = -(-len(groups) // n_columns)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(4.5 * n_columns, 4.2 * n_rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(groups) :]:
        axis.remove()
    for axis, (title, rows) in zip(axes.flat, groups.items(), strict=False):
        known = rows[[PREDICTED, ACTUAL]].dropna()
        axis.scatter(known[PREDICTED], known[ACTUAL], s=6, alpha=0.5)
        axis.axline((0, 0), slope=1, color="black", linestyle=":", label="actual = predicted")
        axis.set(xlabel="predicted change of J", ylabel="actual change of J", title=title)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        # Under the data, not over it
        axis.legend(fontsize="small", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=90 if n_rows > 1 else 110)
    plt.close(figure)


def load(folder: Path) -> dict[str, list[pd.DataFrame]]:
    """Task -> the late halves of its runs, those with one cost that have logged their predictions."""
    runs: dict[str, list[pd.DataFrame]] = {}
    for path in sorted(folder.glob("*_seed*.csv")):
        log = as_log(pd.read_csv(path))
        if {PREDICTED, ACTUAL} <= set(log):
            runs.setdefault(path.stem.rsplit("_seed", 1)[0], []).append(log.iloc[len(log) // 2 :])
    return runs


def describe(task: str, folder: str, runs: list[pd.DataFrame]) -> dict[str, Any]:
    """A row: means over all late updates and seeds; the slopes are means over seeds."""
    late = pd.concat(runs)
    noise = late[NOISE].mean() if NOISE in late else np.nan
    slope = np.mean([slope_without_noise(run) for run in runs])
    return {
        "task": task,
        "runs": folder,
        "seeds": len(runs),
        "limit": late["limit cost"].iloc[-1],
        "predicted, mean": f"{late[PREDICTED].mean():+.3g}",
        "actual, mean": f"{late[ACTUAL].mean():+.3g}",
        "slope without noise": "" if np.isnan(slope) else f"{slope:.2f}",
        "noise share": "" if np.isnan(noise) else f"{noise:.2f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="of runs, one per algorithm")
    order = [task for group in GROUPS.values() for task in group]
    parser.add_argument("--tasks", nargs="+", choices=order, metavar="TASK", help="default: all that have runs")
    parser.add_argument("--output", type=Path, help="image to write")
    args = parser.parse_args()
    found = [
        (task, "CPO" if folder.name == "promise" else folder.name, runs)
        for folder in args.folders
        for task, runs in load(folder).items()
        if task in (args.tasks or order)
    ]
    if len({entry[:2] for entry in found}) < len(found):
        raise SystemExit("two folders of the same name have runs of the same task")
    if not found:
        raise SystemExit("no run that has logged its predictions")
    found.sort(key=lambda entry: order.index(entry[0]))
    print(markdown([describe(*entry) for entry in found]))
    if args.output is not None:
        draw_calibration({f"{task}\n{folder}": pd.concat(runs) for task, folder, runs in found}, args.output)


if __name__ == "__main__":
    main()
