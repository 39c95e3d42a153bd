"""
Train CPO and its comparisons side by side, and draw the paper's figures: return and cost over training, with statistics.

    python scripts/reproduce.py --tasks SafePointCircle-v0 SafePointGather-v0 --seeds 0 1 2

Every finished run leaves a CSV file under --output and is not repeated; a run that was stopped begins anew. The table and the
figures are made of all CSV files that are there (--draw-only: make nothing else).
"""

import argparse
import csv
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from safe_envs import BatchVecEnv
from sb3_cpo import CPO, FPO, PDO, TRPO, FailurePredictor, make_vec_env

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Achiam et al. 2017, supplement 10.3, but for the batch of 20,000 steps and the critics
SHARED: dict[str, Any] = {
    "batch_size": 500,
    "learning_rate": 3e-3,
    "n_critic_updates": 3,
    "gamma": 0.995,
    "cg_damping": 1e-5,
    "fisher_sub_sampling_factor": 5,
    "policy_kwargs": {"net_arch": [64, 32]},
}
N_ENVS = 100
# Gather: 13 whole episodes. Circle's horizons are random
N_STEPS = {"SafePointCircle-v0": 200, "SafePointGather-v0": 195}
LIMITS = {"SafePointCircle-v0": 5.0, "SafePointGather-v0": 0.1}
# Steps ahead that the predictor sees; the paper has no shaping for Point-Gather, 5 is a third of its episode
HORIZONS = {"SafePointCircle-v0": 5, "SafePointGather-v0": 5}

ALGORITHMS: dict[str, Callable[..., Any]] = {
    "CPO": lambda env, limit, horizon, **kwargs: CPO("MlpPolicy", env, limit, cost_gae_lambda=1.0, **kwargs),
    "CPO + margin": lambda env, limit, horizon, **kwargs: CPO(
        "MlpPolicy", env, limit, cost_gae_lambda=1.0, cost_margin_lr=0.1, **kwargs
    ),
    "CPO + shaping": lambda env, limit, horizon, **kwargs: CPO(
        "MlpPolicy", env, limit, cost_gae_lambda=1.0, cost_shaping=FailurePredictor(horizon), **kwargs
    ),
    "PDO": lambda env, limit, horizon, **kwargs: PDO("MlpPolicy", env, limit, **kwargs),
    "FPO 1": lambda env, limit, horizon, **kwargs: FPO("MlpPolicy", env, limit, penalty_coef=1.0, **kwargs),
    "FPO 5": lambda env, limit, horizon, **kwargs: FPO("MlpPolicy", env, limit, penalty_coef=5.0, **kwargs),
    "FPO 50": lambda env, limit, horizon, **kwargs: FPO("MlpPolicy", env, limit, penalty_coef=50.0, **kwargs),
    "TRPO": lambda env, limit, horizon, **kwargs: TRPO("MlpPolicy", env, cost_limit=limit, **kwargs),
}
COLUMNS = ("step", "return", "cost", "cost_se", "cumulative_cost", "cost_surrogate", "shaped_cost")


class Recorder(BaseCallback):
    """One row per update. ``cost_surrogate`` is what the update *before* this rollout promised."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[float, ...]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        raw, constrained = model.raw_cost_estimate, model.cost_estimate
        promised = model.logger.name_to_value.get("train/cost_surrogate", np.nan)
        cumulative = float(model.safety.cumulative_cost[0])
        self.rows.append(
            (
                self.num_timesteps,
                model.ep_rew_mean,
                raw.mean[0],
                raw.standard_error[0],
                cumulative,
                promised,
                constrained.mean[0],
            )
        )


def path_of(output: Path, task: str, algorithm: str, seed: int) -> Path:
    return output / task / f"{algorithm.replace(' ', '_')}-{seed}.csv"


def train(task: str, algorithm: str, seed: int, total_timesteps: int, output: Path) -> str:
    path = path_of(output, task, algorithm, seed)
    if path.exists():
        return f"{path}: there already"
    th.set_num_threads(1)
    env = make_vec_env(task, n_envs=N_ENVS, vec_env_cls=BatchVecEnv, vec_env_kwargs={"n_threads": 1}, seed=seed)
    model = ALGORITHMS[algorithm](env, LIMITS[task], HORIZONS[task], seed=seed, n_steps=N_STEPS[task], **SHARED)
    recorder = Recorder()
    model.learn(total_timesteps, callback=recorder)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(recorder.rows)
    unfinished.rename(path)
    return f"{path}: return {recorder.rows[-1][1]:.2f}, cost {recorder.rows[-1][2]:.3f}"


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
            over = run["cost"] > LIMITS[task]
            measures.append(
                {
                    "return (last fifth)": last["return"].mean(),
                    "cost (last fifth)": last["cost"].mean(),
                    "updates over the limit": over.mean(),
                    "regret": (run["cost"] - LIMITS[task]).clip(lower=0).sum(),
                    "cumulative cost": run["cumulative_cost"].iloc[-1],
                }
            )
        table = pd.DataFrame(measures)
        cells = {name: f"{table[name].mean():.3g} ± {table[name].std(ddof=0):.2g}" for name in table}
        rows.append({"task": task, "limit": LIMITS[task], "algorithm": algorithm, "seeds": len(runs), **cells})
    return pd.DataFrame(rows)


def draw_curves(output: Path, task: str, path: Path) -> None:
    """Return and cost over training: mean over seeds, and their range."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for algorithm, runs in load(output, task).items():
        length = min(len(run) for run in runs)
        steps = runs[0]["step"][:length] / 1e6
        for axis, column in zip(axes, ("return", "cost"), strict=True):
            values = np.array([run[column][:length].rolling(5, min_periods=1).mean() for run in runs])
            (line,) = axis.plot(steps, values.mean(axis=0), label=algorithm)
            axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.15)
    axes[1].axhline(LIMITS[task], color="black", linestyle="--", label=f"limit {LIMITS[task]:g}")
    axes[1].set_yscale("symlog", linthresh=LIMITS[task])
    for axis, label in zip(axes, ("return of an episode", "cost of an episode"), strict=True):
        axis.set(xlabel="million steps", ylabel=label, title=task)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_calibration(output: Path, task: str, path: Path) -> dict[str, float]:
    """Realised against promised change of J, in the late half of training; returns the slope of each variant of CPO."""
    variants = {name: runs for name, runs in load(output, task).items() if name.startswith("CPO")}
    figure, axes = plt.subplots(1, len(variants), figsize=(4.5 * len(variants), 4.2), layout="constrained", squeeze=False)
    slopes = {}
    for axis, (algorithm, runs) in zip(axes[0], variants.items(), strict=True):
        pairs = [(run["cost_surrogate"].iloc[1:], run["shaped_cost"].diff().iloc[1:]) for run in runs]
        promised, realised = (np.concatenate([pair[i].iloc[len(pair[i]) // 2 :] for pair in pairs]) for i in (0, 1))
        slope, intercept = np.polyfit(promised, realised, 1)
        slopes[algorithm] = float(slope)
        axis.scatter(promised, realised, s=6, alpha=0.5)
        ends = np.array([promised.min(), promised.max()])
        axis.plot(ends, slope * ends + intercept, color="tab:red", label=f"slope {slope:.2f}, intercept {intercept:.2f}")
        axis.plot(ends, ends, color="black", linestyle=":", label="realised = promised")
        axis.set(xlabel="promised change (surrogate after the line search)", ylabel="realised change of J", title=algorithm)
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
        print(f"slope of realised on promised change, late half: {slopes}")


if __name__ == "__main__":
    main()
