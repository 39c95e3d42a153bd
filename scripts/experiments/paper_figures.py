"""
Train CPO and its comparisons side by side, and draw the paper's figures: return and cost over training, with statistics.

    python scripts/experiments/paper_figures.py --tasks SafePointCircle-v0 SafePointGather-v0 --seeds 0 1 2

Every finished run leaves a CSV file under --output and is not repeated; a run that was stopped begins anew. The table and the
figures are made of all CSV files that are there (--draw-only: make nothing else).
"""

import argparse
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
import pandas as pd
import torch as th
from calibration import ACTUAL, PREDICTED, slope_without_noise
from stable_baselines3.common.logger import configure

from safe_envs import BatchVecEnv
from sb3_cpo import CPO, FPO, PDO, TRPO, FailurePredictor, make_vec_env
from sb3_cpo.zoo.hyperparams import paper

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from sb3_cpo.plotting import draw, from_log

COST = "rollout/ep_cost_mean"

TASKS = ("SafePointCircle-v0", "SafePointGather-v0")
LIMITS = {task: gym.spec(task).kwargs["cost_limit"] for task in TASKS}
# Steps ahead that the predictor sees; the paper has no shaping for Point-Gather, 5 is a third of its episode
HORIZON = 5

Algorithm = Callable[..., Any]
ALGORITHMS: dict[str, Algorithm] = {
    "CPO": lambda env, settings: CPO("MlpPolicy", env, **{"gamma": settings["gamma"]}),
    "plain CPO": lambda env, settings: CPO("MlpPolicy", env, **settings),
    "plain CPO + shaping": lambda env, settings: CPO("MlpPolicy", env, cost_shaping=FailurePredictor(HORIZON), **settings),
    "PDO": lambda env, settings: PDO("MlpPolicy", env, **without_constraints(settings)),
    "FPO 1": lambda env, settings: FPO("MlpPolicy", env, penalty_coef=1.0, **without_constraints(settings)),
    "FPO 5": lambda env, settings: FPO("MlpPolicy", env, penalty_coef=5.0, **without_constraints(settings)),
    "FPO 50": lambda env, settings: FPO("MlpPolicy", env, penalty_coef=50.0, **without_constraints(settings)),
    "TRPO": lambda env, settings: TRPO("MlpPolicy", env, env.get_attr("cost_limit")[0], **without_constraints(settings)),
}


def paper_settings(task: str) -> tuple[int, dict[str, Any]]:
    """Copies of the environment and arguments of CPO, from the zoo's table."""
    entry = paper.hyperparams[task]
    n_envs = entry["n_envs"]
    return n_envs, {key: value for key, value in entry.items() if key not in {"vec_env", "policy", "n_envs", "n_timesteps"}}


def without_constraints(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in settings.items() if key not in {"n_noise_draws", "n_cost_rollouts", "cost_gae_lambda"}
    }


def path_of(output: Path, task: str, algorithm: str, seed: int) -> Path:
    return output / task / f"{algorithm.replace(' ', '_')}-{seed}.csv"


def train(task: str, algorithm: str, seed: int, total_timesteps: int, output: Path) -> str:
    path = path_of(output, task, algorithm, seed)
    if path.exists():
        return f"{path}: there already"
    th.set_num_threads(1)
    n_envs, settings = paper_settings(task)
    env = make_vec_env(task, n_envs=n_envs, vec_env_cls=BatchVecEnv, vec_env_kwargs={"n_threads": 1}, seed=seed)
    model = ALGORITHMS[algorithm](env, {**settings, "seed": seed} if algorithm != "CPO" else settings)
    folder = path.with_suffix(".part")
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(total_timesteps)
    (folder / "progress.csv").rename(path)
    shutil.rmtree(folder)
    rows = pd.read_csv(path)
    return f"{path}: return {rows['rollout/ep_rew_mean_rollout'].iloc[-1]:.2f}, cost {rows[COST].iloc[-1]:.3f}"


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


def draw_calibration(output: Path, task: str, path: Path) -> dict[str, float]:
    """Actual against predicted change of J, in the late half of training; returns the slope without noise of each CPO."""
    variants = {name: runs for name, runs in load(output, task).items() if "CPO" in name}
    figure, axes = plt.subplots(1, len(variants), figsize=(4.5 * len(variants), 4.2), layout="constrained", squeeze=False)
    slopes = {}
    for axis, (algorithm, runs) in zip(axes[0], variants.items(), strict=True):
        late = pd.concat([run.iloc[len(run) // 2 :] for run in runs])
        slopes[algorithm] = float(slope_without_noise(late))
        known = late[[PREDICTED, ACTUAL]].dropna()
        axis.scatter(known[PREDICTED], known[ACTUAL], s=6, alpha=0.5)
        ends = np.array([known[PREDICTED].min(), known[PREDICTED].max()])
        axis.plot(ends, ends, color="black", linestyle=":", label="actual = predicted")
        axis.set(xlabel="predicted change of J", ylabel="actual change of J", title=algorithm)
        axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return slopes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=LIMITS, default=list(LIMITS), help="tasks to train on")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS), help="algorithms to train")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one run per seed")
    parser.add_argument("--total-timesteps", type=int, default=1_000_000, help="steps of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder for runs, table and figures")
    parser.add_argument("--draw-only", action="store_true", help="train nothing")
    args = parser.parse_args()

    if not args.draw_only:
        # Seed by seed, so that a run of this script that is stopped has compared everything on fewer seeds
        jobs = [(task, name, seed) for seed in args.seeds for task in args.tasks for name in args.algorithms]
        with ProcessPoolExecutor(args.jobs) as pool:
            futures = [pool.submit(train, *job, args.total_timesteps, args.output) for job in jobs]
            for future in futures:
                print(future.result(), flush=True)
    for task in args.tasks:
        if not load(args.output, task):
            continue
        table = summarise(args.output, task)
        table.to_csv(args.output / f"{task}.csv", index=False)
        print(table.to_string(index=False))
        draw_curves(args.output, task, args.output / f"{task}.png")
        slopes = draw_calibration(args.output, task, args.output / f"{task}-calibration.png")
        print(f"slope of actual on predicted change without the noise of J, late half: {slopes}")


if __name__ == "__main__":
    main()
