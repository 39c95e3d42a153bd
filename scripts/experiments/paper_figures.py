"""
Train CPO and its comparisons side by side, and draw the paper's figures: return and cost over training, with statistics.

    python scripts/experiments/paper_figures.py --tasks SafePointCircle-v0 SafePointGather-v0 --seeds 0 1 2

Every finished run leaves a CSV file under --output and is not repeated; a run that was stopped goes on. The table and the
figures are made of all CSV files that are there (--draw-only: make nothing else).
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import pandas as pd
from calibration import draw_calibration, slope_without_noise
from runs import Run, plan, run_all

from safe_envs import BatchVecEnv
from sb3_cpo import CPO, FPO, PDO, TRPO, FailurePredictor, make_vec_env
from sb3_cpo.zoo.hyperparams import paper

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from sb3_cpo.plotting import draw, from_log

COST = "rollout/ep_cost_mean"

TASKS = [f"Safe{task}-v0" for task in ("PointCircle", "PointGather", "AntCircle", "AntGather", "HumanoidCircle")]
LIMITS = {task: gym.spec(task).kwargs["cost_limit"] for task in TASKS}
# Steps ahead that the predictor sees; the paper has no shaping for Point-Gather, 5 is a third of its episode
HORIZON = 5

# Name -> class, and what it has beside the paper's settings
ALGORITHMS: dict[str, tuple[type, dict[str, Any]]] = {
    "CPO": (CPO, {}),
    "plain CPO": (CPO, {}),
    "plain CPO + shaping": (CPO, {"shaping_horizon": HORIZON}),
    "PDO": (PDO, {}),
    "FPO 1": (FPO, {"penalty_coef": 1.0}),
    "FPO 5": (FPO, {"penalty_coef": 5.0}),
    "FPO 50": (FPO, {"penalty_coef": 50.0}),
    "TRPO": (TRPO, {}),
}
NOT_ARGUMENTS = {"vec_env", "policy", "n_envs", "n_timesteps"}
OF_CPO = {"n_noise_draws", "n_cost_rollouts", "cost_gae_lambda"}


def settings_of(task: str, algorithm: str) -> dict[str, Any]:
    """The zoo's table of the paper's settings; of them, CPO with its defaults has the discount only."""
    cls, own = ALGORITHMS[algorithm]
    settings = {key: value for key, value in paper.hyperparams[task].items() if key not in NOT_ARGUMENTS}
    if algorithm == "CPO":
        settings = {"gamma": settings["gamma"]}
    if cls is not CPO:
        settings = {key: value for key, value in settings.items() if key not in OF_CPO}
    if cls is TRPO:
        settings["cost_limit"] = LIMITS[task]
    return {**settings, **own}


def make_model(run: Run) -> Any:
    n_envs = paper.hyperparams[run.task]["n_envs"]
    env = make_vec_env(run.task, n_envs=n_envs, vec_env_cls=BatchVecEnv, vec_env_kwargs={"n_threads": 1}, seed=run.seed)
    settings = dict(run.settings)
    if "shaping_horizon" in settings:
        settings["cost_shaping"] = FailurePredictor(settings.pop("shaping_horizon"))
    return ALGORITHMS[run.algorithm][0]("MlpPolicy", env, seed=run.seed, device="cpu", **settings)


def path_of(output: Path, task: str, algorithm: str, seed: int) -> Path:
    return output / task / f"{algorithm.replace(' ', '_')}-{seed}.csv"


def load(output: Path, task: str) -> dict[str, list[pd.DataFrame]]:
    runs = {name: sorted((output / task).glob(f"{name.replace(' ', '_')}-[0-9]*.csv")) for name in ALGORITHMS}
    return {name: [pd.read_csv(path) for path in paths] for name, paths in runs.items() if paths}


def summarise(output: Path, task: str) -> pd.DataFrame:
    """Mean and standard deviation over seeds: of the last fifth of training, and of all of it."""
    rows = []
    for algorithm, runs in load(output, task).items():
        measures = []
        for run in runs:
            last = run.iloc[-max(len(run) // 5, 1) :]
            over = run[COST] > LIMITS[task]
            measures.append(
                {
                    "return (last fifth)": last["rollout/ep_rew_mean_rollout"].mean(),
                    "cost (last fifth)": last[COST].mean(),
                    "updates over the limit": over.mean(),
                    "regret": (run[COST] - LIMITS[task]).clip(lower=0).sum(),
                    "cumulative cost": run["safety/cumulative_cost"].iloc[-1],
                }
            )
        table = pd.DataFrame(measures)
        cells = {name: f"{table[name].mean():.3g} ± {table[name].std(ddof=0):.2g}" for name in table}
        rows.append({"task": task, "limit": LIMITS[task], "algorithm": algorithm, "seeds": len(runs), **cells})
    return pd.DataFrame(rows)


def draw_curves(output: Path, task: str, path: Path) -> None:
    """Return and cost over training, with the limit."""
    groups = {name: [from_log(run) for run in runs] for name, runs in load(output, task).items()}
    figure = draw(groups, task)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS[:2], help="tasks to train on")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS), help="algorithms to train")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one run per seed")
    parser.add_argument("--total-timesteps", type=int, default=1_000_000, help="steps of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder for runs, table and figures")
    parser.add_argument("--draw-only", action="store_true", help="train nothing")
    args = parser.parse_args()

    if not args.draw_only:
        runs = plan(
            args.tasks,
            args.algorithms,
            args.seeds,
            args.total_timesteps,
            settings_of,
            lambda task, name, seed: path_of(args.output, task, name, seed),
        )
        run_all(runs, make_model, jobs=args.jobs)
    for task in args.tasks:
        if not load(args.output, task):
            continue
        table = summarise(args.output, task)
        table.to_csv(args.output / f"{task}.csv", index=False)
        print(table.to_string(index=False))
        draw_curves(args.output, task, args.output / f"{task}.png")
        late = {
            name: pd.concat([run.iloc[len(run) // 2 :] for run in runs])
            for name, runs in load(args.output, task).items()
            if "CPO" in name
        }
        if late:
            draw_calibration(late, args.output / f"{task}-calibration.png")
        slopes = {name: float(slope_without_noise(rows)) for name, rows in late.items()}
        print(f"slope of actual on predicted change without the noise of J, late half: {slopes}")


if __name__ == "__main__":
    main()
