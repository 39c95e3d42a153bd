"""
CPO and plain CPO, PDO, PPO-Lagrangian, TRPO, fixed penalties, cost shaping, compared under the same conditions.
Return and cost over training (figures 1, 3 and 4 of the paper), and a table.

    python scripts/experiments/comparison.py run --tasks SafePointCircle-v0 --seeds 0 1 2 --steps 2e6
    python scripts/experiments/comparison.py draw --tasks SafePointCircle-v0

All algorithms learn under the same conditions, the defaults: copies, batches, networks, trust region. Runs of CPO are those of
promise.py (`--cpo`), which are used as they are where they are. With `--conditions paper`, copies, batches, networks and trust
region are the paper's, for all but CPO, which has the paper's copies and discount and keeps its other defaults. A run that is
done is skipped, one that was stopped goes on.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import pandas as pd
from measures import make_row, markdown, measure, read_run
from runs import Run, plan, run_all
from tasks import PAPER, PLAIN, VELOCITY

from safe_envs import BatchVecEnv
from sb3_cpo import CPO, FPO, PDO, TRPO, FailurePredictor, make_vec_env
from sb3_cpo.zoo.hyperparams import paper

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from sb3_cpo.plotting import Run as Curve
from sb3_cpo.plotting import draw

sys.path.append(str(Path(__file__).parents[2] / "docs" / "examples"))
from ppo_lagrangian import PPOLagrangian

# Name -> class, and what it has beside the conditions
ALGORITHMS: dict[str, tuple[type, dict[str, Any]]] = {
    "CPO": (CPO, {}),
    "plain CPO": (CPO, PLAIN),
    "PDO": (PDO, {}),
    "PDO 1000": (PDO, {"penalty_coef": 1000.0}),
    "PPO-Lagrangian": (PPOLagrangian, {}),
    "TRPO": (TRPO, {}),
    "CPO + shaping": (CPO, {"is_shaped": True}),
    "plain CPO + shaping": (CPO, {**PLAIN, "is_shaped": True}),
    "FPO 1": (FPO, {"penalty_coef": 1.0}),
    "FPO 5": (FPO, {"penalty_coef": 5.0}),
    "FPO 50": (FPO, {"penalty_coef": 50.0}),
}
# Figure -> what it is about, and what stands beside it
FIGURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "1": (("plain CPO", "PDO", "PDO 1000", "PPO-Lagrangian", "TRPO"), ("CPO",)),
    "3": (("CPO + shaping", "plain CPO + shaping"), ("CPO", "plain CPO")),
    "4": (("FPO 1", "FPO 5", "FPO 50"), ("CPO", "TRPO")),
}
# The predictor of each task (supplement 10.3); the paper has none for Point-Gather, 5 is a third of its episode
PREDICTORS: dict[str, dict[str, Any]] = {
    "SafePointCircle-v0": {"horizon": 5},
    "SafePointGather-v0": {"horizon": 5},
    "SafeAntCircle-v0": {"horizon": 20},
    "SafeAntGather-v0": {"horizon": 20, "coef": 0.01, "n_updates": 10},
    "SafeHumanoidCircle-v0": {"horizon": 20},
}
# Conditions -> folder of the runs
CONDITIONS = {"defaults": Path("results/compared"), "paper": Path("results/as-in-the-paper")}
NOT_ARGUMENTS = {"vec_env", "policy", "n_envs", "n_timesteps"}
OF_TRUST_REGIONS = {"target_kl", "cg_damping", "fisher_sub_sampling_factor"}
OF_CPO = {"n_noise_draws", "n_cost_rollouts", "cost_gae_lambda"}


def settings_of(task: str, algorithm: str, conditions: str = "defaults") -> dict[str, Any]:
    """
    Arguments that differ from the algorithm's defaults.

    :param conditions: "defaults", or "paper" for the zoo's table of the paper's settings, of which CPO has only the discount
    """
    cls, own = ALGORITHMS[algorithm]
    if conditions == "defaults":
        return own
    settings = {key: value for key, value in paper.hyperparams[task].items() if key not in NOT_ARGUMENTS}
    if own.get("n_noise_draws") != 0 and cls is CPO:
        settings = {"gamma": settings["gamma"]}
    if cls is not CPO:
        settings = {key: value for key, value in settings.items() if key not in OF_CPO}
    if cls is PPOLagrangian:
        settings = {key: value for key, value in settings.items() if key not in OF_TRUST_REGIONS}
    return {**settings, **own, "n_envs": paper.hyperparams[task]["n_envs"]}


def make_model(run: Run) -> Any:
    settings = dict(run.settings)
    if settings.pop("is_shaped", False):
        settings["cost_shaping"] = FailurePredictor(**PREDICTORS[run.task])
    cls = ALGORITHMS[run.algorithm][0]
    if cls is TRPO:
        settings["cost_limit"] = gym.spec(run.task).kwargs["cost_limit"]  # it only compares
    env: Any = run.task
    if n_envs := settings.pop("n_envs", None):
        env = make_vec_env(run.task, n_envs=n_envs, vec_env_cls=BatchVecEnv, seed=run.seed)
    return cls("MlpPolicy", env, seed=run.seed, device="cpu", **settings)


def folder_of(output: Path, cpo: Path, algorithm: str) -> Path:
    return cpo if algorithm == "CPO" else output / algorithm


def load(output: Path, cpo: Path, task: str) -> dict[str, list[pd.DataFrame]]:
    """Algorithm -> a table per finished run of a task; no algorithm without a run."""
    paths = {name: sorted(folder_of(output, cpo, name).glob(f"{task}_seed*.csv")) for name in ALGORITHMS}
    return {name: [read_run(path) for path in group] for name, group in paths.items() if group}


def shorten(logs: dict[str, list[pd.DataFrame]]) -> dict[str, list[pd.DataFrame]]:
    """All to the length of the shortest run, so that a last fifth is the same fifth."""
    end = min(log["steps"].iloc[-1] for group in logs.values() for log in group)
    return {name: [log[log["steps"] <= end] for log in group] for name, group in logs.items()}


def summarise(task: str, logs: dict[str, list[pd.DataFrame]]) -> list[dict[str, Any]]:
    """A row per algorithm, means over seeds."""
    rows = []
    for algorithm, group in logs.items():
        means = pd.DataFrame([measure(log) for log in group]).mean()
        row = {"task": task, "algorithm": algorithm, "steps": f"{group[0]['steps'].iloc[-1] / 1e6:.3g}M", "seeds": len(group)}
        rows.append({**row, **means, **{key: f"{means[key]:.3g}" for key in ("cost", "highest J", "regret")}})
    return rows


def curve(log: pd.DataFrame) -> Curve:
    """J is that of the table: of the last 50 episodes."""
    return Curve(
        *(log[name].to_numpy() for name in ("steps", "return")), *({"": log[name].to_numpy()} for name in ("J", "limit cost"))
    )


def draw_figure(logs: dict[str, list[pd.DataFrame]], title: str, path: Path) -> None:
    """Return and cost over training, with the limit."""
    figure = draw({name: [curve(log) for log in group] for name, group in logs.items()}, title, log_cost=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("run", help="train what is not done yet")
    train.add_argument(
        "--algorithms", nargs="+", choices=ALGORITHMS, default=["CPO", *FIGURES["1"][0]], help="default: those of figure 1"
    )
    train.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one run per seed")
    train.add_argument("--steps", type=float, default=2e6, help="of each run")
    train.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    show = commands.add_parser("draw", help="print the table, draw the figures")
    show.add_argument("--pictures", type=Path, help="folder for the pictures (default: that of the runs)")
    for command in (train, show):
        command.add_argument("--tasks", nargs="+", choices=(*PAPER, *VELOCITY), default=PAPER[:2])
        command.add_argument("--conditions", choices=CONDITIONS, default="defaults")
        command.add_argument("--output", type=Path, help="folder of the runs (default: by the conditions)")
        command.add_argument("--cpo", type=Path, help="folder of the runs of CPO (default: results/promise, or CPO)")
    args = parser.parse_args()
    if args.conditions == "paper" and (missing := set(args.tasks) - set(PAPER)):
        parser.error(f"--conditions paper: the paper has no {', '.join(sorted(missing))}")
    if args.command == "run" and (missing := {task for task in args.tasks if task not in PREDICTORS}):
        if shaped := [name for name in args.algorithms if name.endswith("shaping")]:
            parser.error(f"{', '.join(shaped)}: no predictor for {', '.join(sorted(missing))}")
    output = args.output or CONDITIONS[args.conditions]
    cpo = args.cpo or (Path("results/promise") if args.conditions == "defaults" else output / "CPO")

    if args.command == "run":
        runs = plan(
            args.tasks,
            args.algorithms,
            args.seeds,
            args.steps,
            lambda task, name: settings_of(task, name, args.conditions),
            lambda task, name, seed: folder_of(output, cpo, name) / f"{task}_seed{seed}.csv",
        )
        # However long they are: the table and the figures are cut to the shortest
        there = {path for path, run in runs.items() if run.algorithm == "CPO" and path.exists()}
        for path in there:
            print(f"{path}: there already")
        run_all({path: run for path, run in runs.items() if path not in there}, make_model, make_row, args.jobs)
        return
    logs_of = {task: logs for task in args.tasks if (logs := load(output, cpo, task))}
    if not logs_of:
        raise SystemExit(f"no finished run in {output} and {cpo}")
    pictures = args.pictures or output
    pictures.mkdir(parents=True, exist_ok=True)
    for task, logs in logs_of.items():
        for figure, (own, beside) in FIGURES.items():
            drawn = {name: logs[name] for name in ALGORITHMS if name in logs and name in own + beside}
            if set(own) & set(drawn):
                draw_figure(shorten(drawn), task, pictures / f"{task}-figure{figure}.png")
    print(markdown([row for task, logs in logs_of.items() for row in summarise(task, shorten(logs))]))


if __name__ == "__main__":
    main()
