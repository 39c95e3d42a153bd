"""
The paper's comparisons: return and cost of CPO, PDO, TRPO and fixed penalties over training (figures 1, 3 and 4).

    python scripts/experiments/paper_figures.py run --tasks SafePointCircle-v0 --seeds 0 1 2 --steps 2e6
    python scripts/experiments/paper_figures.py draw --tasks SafePointCircle-v0

All algorithms learn under the same conditions: copies, batches, networks and trust region are the defaults, and differ in the
algorithm only. With `--conditions paper` they are the paper's, also the same for all, but CPO keeps its own. Runs of CPO with
its defaults are those of promise.py, which are used where they are (`--cpo results/promise`). A run that is done is skipped,
one that was stopped goes on.
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import pandas as pd
from promise import PAPER, judge, make_row, markdown
from runs import Run, plan, run_all

from safe_envs import BatchVecEnv
from sb3_cpo import CPO, FPO, PDO, TRPO, FailurePredictor, make_vec_env
from sb3_cpo.zoo.hyperparams import paper

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from sb3_cpo.plotting import Run as Curve
from sb3_cpo.plotting import draw

PLAIN: dict[str, Any] = {"n_noise_draws": 0}
# Name -> class, and what it has beside the conditions
ALGORITHMS: dict[str, tuple[type, dict[str, Any]]] = {
    "CPO": (CPO, {}),
    "plain CPO": (CPO, PLAIN),
    "PDO": (PDO, {}),
    "PDO 1000": (PDO, {"penalty_coef": 1000.0}),
    "TRPO": (TRPO, {}),
    "CPO + shaping": (CPO, {"is_shaped": True}),
    "plain CPO + shaping": (CPO, {**PLAIN, "is_shaped": True}),
    "FPO 1": (FPO, {"penalty_coef": 1.0}),
    "FPO 5": (FPO, {"penalty_coef": 5.0}),
    "FPO 50": (FPO, {"penalty_coef": 50.0}),
}
# Figure -> who is in it
FIGURES: dict[str, tuple[str, ...]] = {
    "1": ("CPO", "plain CPO", "PDO", "PDO 1000", "TRPO"),
    "3": ("CPO", "CPO + shaping", "plain CPO", "plain CPO + shaping"),
    "4": ("CPO", "FPO 1", "FPO 5", "FPO 50"),
}
# The predictor of each task (supplement 10.3); the paper has none for Point-Gather, 5 is a third of its episode
PREDICTORS: dict[str, dict[str, Any]] = {
    "SafePointCircle-v0": {"horizon": 5},
    "SafePointGather-v0": {"horizon": 5},
    "SafeAntCircle-v0": {"horizon": 20},
    "SafeAntGather-v0": {"horizon": 20, "coef": 0.01, "n_updates": 10},
    "SafeHumanoidCircle-v0": {"horizon": 20},
}
NOT_ARGUMENTS = {"vec_env", "policy", "n_envs", "n_timesteps"}
OF_CPO = {"n_noise_draws", "n_cost_rollouts", "cost_gae_lambda"}


def settings_of(task: str, algorithm: str, conditions: str = "defaults") -> dict[str, Any]:
    """
    Arguments that differ from the algorithm's defaults.

    :param conditions: "defaults", or "paper" for the zoo's table of the paper's settings; CPO with its defaults has only their
        discount
    """
    cls, own = ALGORITHMS[algorithm]
    if conditions == "defaults":
        return own
    settings = {key: value for key, value in paper.hyperparams[task].items() if key not in NOT_ARGUMENTS}
    if own.get("n_noise_draws") != 0 and cls is CPO:
        settings = {"gamma": settings["gamma"]}
    if cls is not CPO:
        settings = {key: value for key, value in settings.items() if key not in OF_CPO}
    return {**settings, **own}


def make_model(run: Run) -> Any:
    """With the paper's batches it has the paper's copies; else those of the default."""
    settings = dict(run.settings)
    if settings.pop("is_shaped", False):
        settings["cost_shaping"] = FailurePredictor(**PREDICTORS[run.task])
    cls = ALGORITHMS[run.algorithm][0]
    if cls is TRPO:
        settings["cost_limit"] = gym.spec(run.task).kwargs["cost_limit"]  # it only compares
    env: Any = run.task
    if "gamma" in settings:
        env = make_vec_env(run.task, n_envs=paper.hyperparams[run.task]["n_envs"], vec_env_cls=BatchVecEnv, seed=run.seed)
    return cls("MlpPolicy", env, seed=run.seed, device="cpu", **settings)


def path_of(output: Path, cpo: Path, task: str, algorithm: str, seed: int) -> Path:
    folder = cpo if algorithm == "CPO" else output / algorithm
    return folder / f"{task}_seed{seed}.csv"


def load(output: Path, cpo: Path, task: str) -> dict[str, list[pd.DataFrame]]:
    """Algorithm -> a table per finished run of a task; no algorithm without a run."""
    runs = {name: [pd.read_csv(path) for path in find(output, cpo, task, name)] for name in ALGORITHMS}
    return {name: tables for name, tables in runs.items() if tables}


def find(output: Path, cpo: Path, task: str, algorithm: str) -> list[Path]:
    one = path_of(output, cpo, task, algorithm, 0)
    return sorted(one.parent.glob(one.name.replace("_seed0", "_seed*")))


def shorten(logs: dict[str, list[pd.DataFrame]]) -> dict[str, list[pd.DataFrame]]:
    """All to the length of the shortest run, so that a last fifth is the same fifth."""
    end = min(log["steps"].iloc[-1] for group in logs.values() for log in group)
    return {name: [log[log["steps"] <= end] for log in group] for name, group in logs.items()}


def summarise(task: str, logs: dict[str, list[pd.DataFrame]]) -> list[dict[str, Any]]:
    """A row per algorithm, means over seeds."""
    rows = []
    for algorithm, group in logs.items():
        measures = []
        for log in group:
            late = log.tail(max(len(log) // 5, 1))
            (judged,) = judge(log)
            measures.append(
                {
                    "return": judged["return"],
                    "cost": late["J cost"].mean(),
                    "over, all": judged["over, all"],
                    "over, late": judged["over, late"],
                    "highest J": log["J cost"].max(),
                    "regret": (log["J cost"] - log["limit cost"]).clip(lower=0).sum(),
                }
            )
        means = pd.DataFrame(measures).mean()
        rows.append(
            {
                "task": task,
                "algorithm": algorithm,
                "steps": f"{group[0]['steps'].iloc[-1] / 1e6:.3g}M",
                "seeds": len(group),
                **means,
                **{key: f"{means[key]:.3g}" for key in ("cost", "highest J", "regret")},
            }
        )
    return rows


def curve(log: pd.DataFrame) -> Curve:
    # Older runs have no error
    values = ({"": log[column].to_numpy()} if (column := f"{name} cost") in log else {} for name in ("J", "limit", "error"))
    return Curve(log["steps"].to_numpy(), log["return"].to_numpy(), *values)


def draw_figure(logs: dict[str, list[pd.DataFrame]], title: str, path: Path) -> None:
    """Return and cost over training, with the limit."""
    figure = draw({name: [curve(log) for log in group] for name, group in logs.items()}, title, log_cost=True)
    figure.axes[1].set_ylim(bottom=0.0)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("run", help="train what is not done yet")
    train.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(FIGURES["1"]), help="default: figure 1")
    train.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one run per seed")
    train.add_argument("--steps", type=float, default=2e6, help="of each run")
    train.add_argument("--conditions", choices=("defaults", "paper"), default="defaults")
    train.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    show = commands.add_parser("draw", help="print the table, draw the figures")
    show.add_argument("--pictures", type=Path, help="folder for the pictures (default: that of the runs)")
    for command in (train, show):
        command.add_argument("--tasks", nargs="+", choices=PAPER, default=PAPER[:2])
        command.add_argument("--output", type=Path, default=Path("results/paper"), help="folder of the runs")
        command.add_argument("--cpo", type=Path, default=Path("results/promise"), help="folder of the runs of CPO")
    args = parser.parse_args()

    if args.command == "run":
        runs = plan(
            args.tasks,
            args.algorithms,
            args.seeds,
            args.steps,
            lambda task, name: settings_of(task, name, args.conditions),
            lambda task, name, seed: path_of(args.output, args.cpo, task, name, seed),
        )
        run_all(runs, make_model, make_row, args.jobs)
        return
    pictures = args.pictures or args.output
    pictures.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in args.tasks:
        logs = shorten(load(args.output, args.cpo, task))
        rows += summarise(task, logs)
        for figure, names in FIGURES.items():
            drawn = {name: logs[name] for name in names if name in logs}
            if len(drawn) > 1:
                draw_figure(drawn, task, pictures / f"{task}-figure{figure}.png")
    print(markdown(rows))


if __name__ == "__main__":
    main()
