"""
Draw the README's figure, CPO, PDO and TRPO on SafePointCircle-v0, from the CSV files in docs/results/curves.

    python scripts/experiments/readme_figure.py

The files are columns of runs that paper_figures.py has made (--keep copies them from its output):

    python scripts/experiments/paper_figures.py --tasks SafePointCircle-v0 --algorithms CPO PDO TRPO --total-timesteps 500000
    python scripts/experiments/readme_figure.py --keep results
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

matplotlib.use("Agg")

from sb3_cpo.plotting import Run, draw, from_log

RESULTS = Path(__file__).parents[2] / "docs" / "results"
COLUMNS = [
    "time/total_timesteps",
    "rollout/ep_rew_mean",
    "rollout/ep_rew_mean_rollout",
    "rollout/ep_cost_mean",
    "rollout/ep_cost_std_error",
    "rollout/cost_limit",
]
# The cost axis ends at so many times the limit: what is far over it need not be read, what is near it must
LIMITS_IN_VIEW = 4.0


def keep(output: Path, curves: Path, task: str, algorithms: list[str]) -> None:
    """Copy the columns that a figure needs."""
    (curves / task).mkdir(parents=True, exist_ok=True)
    for algorithm in algorithms:
        for path in sorted((output / task).glob(f"{algorithm.replace(' ', '_')}-[0-9]*.csv")):
            table = pd.read_csv(path)
            table = table[[column for column in COLUMNS if column in table]]
            table.to_csv(curves / task / path.name, index=False, float_format="%.5g")


def load(curves: Path, task: str, algorithms: list[str]) -> dict[str, list[Run]]:
    """Algorithm -> its runs."""
    files = {name: sorted((curves / task).glob(f"{name.replace(' ', '_')}-[0-9]*.csv")) for name in algorithms}
    return {name: [from_log(pd.read_csv(path)) for path in paths] for name, paths in files.items() if paths}


def draw_figure(groups: dict[str, list[Run]], title: str) -> Any:
    """Return above; cost below, on a linear axis around the limit."""
    figure = draw(groups, title)
    limit = max(float(run.limits[""][-1]) for runs in groups.values() for run in runs if "" in run.limits)
    figure.axes[1].set_ylim(0.0, LIMITS_IN_VIEW * limit)
    figure.set_size_inches(8, 4.6)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="first copy the runs from the output of paper_figures.py")
    parser.add_argument("--task", default="SafePointCircle-v0", help="(default: SafePointCircle-v0)")
    parser.add_argument("--algorithms", nargs="+", default=["CPO", "PDO", "TRPO"], help="(default: CPO PDO TRPO)")
    parser.add_argument("--curves", type=Path, default=RESULTS / "curves", help="folder of the CSV files")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "readme.png", help="image to write")
    args = parser.parse_args()
    if args.keep is not None:
        keep(args.keep, args.curves, args.task, args.algorithms)
    groups = load(args.curves, args.task, args.algorithms)
    n_seeds = min(len(runs) for runs in groups.values())
    draw_figure(groups, args.task).savefig(args.output, dpi=110)
    print(f"{args.output}: {', '.join(groups)}, {n_seeds} seeds or more")


if __name__ == "__main__":
    main()
