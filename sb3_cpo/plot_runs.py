"""``sb3-cpo plot``: draw return and cost of runs, with the limits."""

import argparse
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from sb3_cpo.cost_limits import read_limits
from sb3_cpo.plotting import Run, draw, find_runs, read_run, summarise

DESCRIPTION = """\
Draw return and cost of one or several runs over the steps of training.

A run is a folder that the zoo or an SB3 model wrote; folders that are none are searched for runs. Runs of the same
algorithm and task (or of one of --labels) are one curve: the interquartile mean over their seeds, with a bootstrap interval of
95 %. Numbers are read from the first of these that a run has, or from --source:
  evaluations   evaluations.npz of CostEvalCallback: separate episodes, the deterministic policy unless told otherwise
  progress      progress.csv of SB3's logger: mean of each rollout, with the limits
  tensorboard   the same, from event files
  monitor       *.monitor.csv: the episodes of training, averaged over a window
"""

EXAMPLES = """\
examples:
  three seeds each of CPO and TRPO
      %(prog)s logs/cpo/SafePointCircle-v0_* logs/trpo/SafePointCircle-v0_* -o circle.png
  all runs below a folder, with limits of two named constraints
      %(prog)s logs --cost-limit cost_speed:25 cost_energy:300
  the episodes of training, with another limit line and a logarithmic cost
      %(prog)s logs/*/SafeAntCircle-v0_? --source monitor --window 500 --cost-limit 10 --log-cost
  runs with two named constraints, from TensorBoard; one curve per folder
      %(prog)s tb/CPO_1 tb/CPO_2 --source tensorboard --labels first second
"""

# rl_zoo3 writes <algo>/<env>_<number>, with a uuid where it was told to
RUN_NAME = re.compile(r"_\d+(_[0-9a-f-]{36})?$")


def label_of(folder: Path) -> tuple[str, str]:
    """The algorithm and the task, where the folder is the zoo's; else the folder's own name without its number, and ""."""
    parent, name = folder.resolve().parent.name, RUN_NAME.sub("", folder.resolve().name)
    return (parent, name) if (folder / name).is_dir() else (name, "")


def _runs_of(folder: Path, options: argparse.Namespace) -> list[Path]:
    return find_runs(folder, options.source) or [folder]


def check_steps(label: str, runs: list[Run], folders: list[Path]) -> None:
    """
    Runs that are to be one curve must have steps in common.

    :raises ValueError: they have not; the message names two
    """
    late = max(range(len(runs)), key=lambda index: runs[index].steps[0])
    early = min(range(len(runs)), key=lambda index: runs[index].steps[-1])
    first, last = runs[late].steps[0], runs[early].steps[-1]
    if last < first:
        raise ValueError(
            f"the runs of {label!r} share no steps, so that there is no mean to draw: {folders[early]} ends at {last:,.0f}, "
            f"{folders[late]} begins at {first:,.0f}. Give them different --labels, or leave one out"
        )


def main(args: list[str] | None = None, prog: str = "sb3-cpo plot") -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders of runs, or folders above them")
    parser.add_argument("-o", "--output", type=Path, default=Path("plot.png"), help="image to write (default: plot.png)")
    parser.add_argument("--source", choices=["auto", "evaluations", "progress", "tensorboard", "monitor"], default="auto")
    parser.add_argument("-l", "--labels", nargs="+", help="one label per folder; folders of one label are one curve")
    parser.add_argument("-w", "--window", type=int, default=100, help="episodes of the monitor's mean (default: 100)")
    parser.add_argument(
        "--cost-limit", nargs="+", metavar="LIMIT", help="limit to draw, a number or name:number (default: those of the runs)"
    )
    parser.add_argument("--log-cost", action="store_true", help="draw costs on a logarithmic axis, linear below 1")
    parser.add_argument("-t", "--title", default="", help="title of the image")
    options = parser.parse_args(args)
    labels = options.labels or [""] * len(options.folders)
    if len(labels) != len(options.folders):
        parser.error(f"{len(options.folders)} folders need as many labels, not {len(labels)}")

    groups: dict[str, list[Run]] = {}
    folders: dict[str, list[Path]] = {}
    try:
        cost_limit = read_limits(options.cost_limit)
        if isinstance(cost_limit, list):
            raise ValueError(f"--cost-limit {options.cost_limit}: expected one number, or name:number for each constraint")
        found = [
            (folder, name) for given, name in zip(options.folders, labels, strict=True) for folder in _runs_of(given, options)
        ]
        has_several_tasks = len({label_of(folder)[1] for folder, _ in found}) > 1
        for folder, name in found:
            if folder.is_dir() and len(found) > 1 and not find_runs(folder):
                print(f"nothing to read in {folder}: skipped (a training that did not begin leaves such a folder)")
                continue
            run = read_run(folder, options.source, options.window)
            if len(run.steps) == 0:
                print(f"no episodes in {folder}: skipped (a hyperparameter optimisation leaves such folders)")
                continue
            algorithm, task = label_of(folder)
            label = name if options.labels else f"{algorithm} {task}".strip() if has_several_tasks else algorithm
            groups.setdefault(label, []).append(run)
            folders.setdefault(label, []).append(folder)
        for label, runs in groups.items():
            check_steps(label, runs, folders[label])
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    if not groups:
        parser.error("there is nothing to draw: no run has an episode yet")
    print(summarise(groups, cost_limit))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(groups, options.title, cost_limit, options.log_cost).savefig(options.output, dpi=150)
    print(f"Image: {options.output}")


if __name__ == "__main__":
    main()
