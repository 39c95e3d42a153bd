"""How the time of one update grows with the batch, the constraints and the cost rollouts: a table and a picture."""

import argparse
import statistics
from functools import partial

import numpy as np

from benchmarks.measuring import RepeatedCost, measure, update

SCALES = {
    "steps per update": (5_000, 10_000, 20_000, 40_000),
    "number of constraints": (1, 2, 4, 8),
    "cost rollouts": (1, 2, 4, 8),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", default="SafePointCircle-v0")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, measured in turns")
    parser.add_argument("--output", default="scaling.png", help="the picture")


def run(args: argparse.Namespace) -> None:
    import matplotlib
    import torch as th

    from safe_envs import BatchVecEnv
    from sb3_cpo import CPO, make_vec_env

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    th.set_num_threads(1)

    def model(axis: str, value: int):
        defaults = {"steps per update": 10_000, "number of constraints": 1, "cost rollouts": 1}
        n_steps, n_costs, n_rollouts = {**defaults, axis: value}.values()
        env = RepeatedCost(make_vec_env(args.env, n_envs=100, vec_env_cls=BatchVecEnv, seed=0), n_costs)
        kwargs = {"n_steps": n_steps // 100, "batch_size": 1000, "n_critic_updates": 3, "fisher_sub_sampling_factor": 4}
        cpo = CPO("MlpPolicy", env, [10.0] * n_costs, n_cost_rollouts=n_rollouts, **kwargs, device="cpu", seed=0)
        return cpo.learn(n_rollouts * n_steps)

    figure, plots = plt.subplots(1, len(SCALES), figsize=(11, 3.4), layout="constrained")
    for (axis, values), plot in zip(SCALES.items(), plots, strict=True):
        candidates = {str(value): partial(update, model(axis, value)) for value in values}
        seconds = [[1 / speed for speed in speeds] for speeds in measure(candidates, args.rounds).values()]
        medians = np.array([statistics.median(times) for times in seconds])
        slope, intercept = np.polyfit(values, medians, 1)
        print(f"\nOne update on {args.env}, CPU time of one thread, {args.rounds} rounds in turns")
        for value, times in zip(values, seconds, strict=True):
            line = f"  {axis} {value:>7,}   {min(times):.3f} / {statistics.median(times):.3f} / {max(times):.3f} s"
            print(f"{line}   straight line: {intercept + slope * value:.3f} s")
        plot.plot(values, intercept + slope * np.array(values), color="0.7", label="straight line")
        errors = [medians - np.min(seconds, axis=1), np.max(seconds, axis=1) - medians]
        plot.errorbar(values, medians, errors, fmt="o", capsize=3, label="min, median, max")
        plot.set(xlabel=axis, ylabel="CPU seconds of one update", xlim=(0, None), ylim=(0, None))
    plots[0].legend()
    figure.savefig(args.output, dpi=120)
    print(f"\n{args.output}")
