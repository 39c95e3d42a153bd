"""
How large must a batch be? The share of noise in the gradient of the cost against the number of steps in a rollout.

    python scripts/experiments/noise_share.py --tasks SafePointCircle-v0 SafeHalfCheetahVelocity-v0 --steps 5e5

CPO is trained with its defaults; then its policy plays rollouts of each size, and the share is measured by random signs of
the episodes (sixteen draws where training has two). Noise falls as 1 / size and the signal stays, so that the
share is 1 / (1 + size / half), where half is the size at which a half is noise. Trained policies and measured shares are kept.
"""

import argparse
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import pandas as pd
from measures import NOISE
from numpy.typing import ArrayLike
from scipy.optimize import curve_fit
from stable_baselines3.common.logger import Logger
from tasks import PAPER, VELOCITY

from safe_envs import BatchVecEnv
from sb3_cpo import CPO, make_vec_env

matplotlib.use("Agg")
from matplotlib import pyplot as plt

N_DRAWS, MAX_COPIES = 16, 100


def trained_policy(task: str, n_steps: int, seed: int, path: Path) -> CPO:
    """A model that has been trained for so many steps; from the file where it is there."""
    if path.exists():
        return CPO.load(path, device="cpu")
    model = CPO("MlpPolicy", task, seed=seed, device="cpu").learn(n_steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    return model


def time_limit(task: str) -> int:
    """Steps of the longest episode."""
    steps = gym.spec(task).max_episode_steps
    assert steps is not None
    return steps


def measure(trained: CPO, task: str, size: int, seed: int) -> float:
    """The noise share of the cost gradient in a fresh rollout of about so many steps."""
    horizon = time_limit(task)
    n_envs = int(np.clip(size // horizon, 1, MAX_COPIES))
    n_steps = max(size // n_envs // horizon, 1) * horizon
    env = make_vec_env(task, n_envs=n_envs, vec_env_cls=BatchVecEnv, seed=seed)
    model = CPO("MlpPolicy", env, n_steps=n_steps, n_noise_draws=N_DRAWS, seed=seed, device="cpu")
    model.set_parameters(trained.get_parameters())
    model.set_logger(Logger(None, []))
    model.learn(n_steps * n_envs)
    return float(model.logger.name_to_value[NOISE])


def expected_share(size: np.ndarray, half: float) -> np.ndarray:
    return 1 / (1 + size / half)


def size_of_half(sizes: ArrayLike, shares: ArrayLike) -> float:
    """The size at which a half is noise, by least squares."""
    (half,), _ = curve_fit(expected_share, sizes, shares, p0=[10_000.0])
    return float(half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["SafePointCircle-v0", "SafeHalfCheetahVelocity-v0"]
    parser.add_argument("--tasks", nargs="+", choices=(*PAPER, *VELOCITY), default=default)
    parser.add_argument("--steps", type=float, default=5e5, help="of training, before")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000])
    parser.add_argument("--repeats", type=int, default=5, help="rollouts of each size")
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--output", type=Path, default=Path("results/noise"))
    args = parser.parse_args()
    figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    rows = []
    for color, task in enumerate(args.tasks):
        path = args.output / f"{task}.csv"
        trained = trained_policy(task, int(args.steps), args.seed, args.output / f"{task}-{int(args.steps)}.zip")
        table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["size", "repeat", "share"])
        for size in args.sizes:
            for repeat in range(args.repeats):
                if not ((table["size"] == size) & (table["repeat"] == repeat)).any():
                    table.loc[len(table)] = [size, repeat, measure(trained, task, size, 1000 + repeat)]
                    table.to_csv(path, index=False, float_format="%.4g")
        known = table.dropna()
        half = size_of_half(known["size"], known["share"])
        means = known.groupby("size")["share"].agg(["mean", "std"])
        axis.errorbar(means.index, means["mean"], means["std"], fmt="o", color=f"C{color}", capsize=3)
        sizes = np.geomspace(min(args.sizes), max(args.sizes), 100)
        axis.plot(sizes, expected_share(sizes, half), color=f"C{color}", label=f"{task}: half at {half:,.0f} steps")
        rows.append(
            {"task": task, "half is noise at": round(half), "in episodes": half / time_limit(task), **means["mean"].to_dict()}
        )
    axis.set(xscale="log", xlabel="steps in a rollout", ylabel="share of noise in the cost gradient", ylim=(0, None))
    axis.legend(fontsize="small")
    axis.grid(alpha=0.3)
    figure.savefig(args.output / "noise.png", dpi=110)
    summary = pd.DataFrame(rows)
    summary.to_csv(args.output / "noise.csv", index=False, float_format="%.3g")
    print(summary.to_string(index=False, float_format="%.2f"))


if __name__ == "__main__":
    main()
