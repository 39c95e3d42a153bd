"""
Draw the README's figure, CPO, PDO and TRPO on SafePointCircle-v0, from runs that comparison.py has made.

    python scripts/experiments/readme_figure.py
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from comparison import ALGORITHMS, curve, load, shorten
from measures import measure

matplotlib.use("Agg")

from sb3_cpo.plotting import draw

RESULTS = Path(__file__).parents[2] / "docs" / "results"
# The cost axis ends at so many times the limit: what is far over it need not be read, what is near it must
LIMITS_IN_VIEW = 4.0


def draw_figure(logs: dict[str, list[pd.DataFrame]], title: str) -> Any:
    """Return above; cost below, on a linear axis around the limit."""
    figure = draw({name: [curve(log) for log in group] for name, group in logs.items()}, title)
    limit = max(log["limit cost"].iloc[-1] for group in logs.values() for log in group)
    figure.axes[1].set_ylim(0.0, LIMITS_IN_VIEW * limit)
    figure.set_size_inches(8, 4.6)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="SafePointCircle-v0", help="(default: SafePointCircle-v0)")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=["CPO", "PDO", "TRPO"])
    parser.add_argument("--runs", type=Path, default=RESULTS / "compared", help="folder of the runs")
    parser.add_argument("--cpo", type=Path, default=RESULTS / "promise", help="folder of the runs of CPO")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "readme.png", help="image to write")
    args = parser.parse_args()
    logs = load(args.runs, args.cpo, args.task)
    if missing := set(args.algorithms) - set(logs):
        raise SystemExit(f"no run of {', '.join(sorted(missing))} on {args.task} in {args.runs} and {args.cpo}")
    chosen = shorten({name: logs[name] for name in args.algorithms})
    draw_figure(chosen, args.task).savefig(args.output, dpi=110)
    for name, group in chosen.items():
        means = pd.DataFrame([measure(log) for log in group]).mean()
        print(f"{name}: {len(group)} seeds, last fifth {means['return']:.4g} at a cost of {means['cost']:.3g}")


if __name__ == "__main__":
    main()
