"""``sb3-cpo plot``: draw return and cost of runs, with the limits."""

import argparse
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from sb3_cpo.plotting import Run, draw, read_run, summarise

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


def label_of(folder: Path) -> str:
    """The algorithm, where the folder is the zoo's or TensorBoard's; else the folder's own name without its number."""
    parent, name = folder.resolve().parent.name, RUN_NAME.sub("", folder.resolve().name)
    return parent if (folder / name).is_dir() else name


def main(args: list[str] | None = None, prog: str = "sb3-cpo plot") -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
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
