"""
Several constraints at once: position, speed and energy on the paper's circle, each with a limit of its own; beside it one
constraint on their weighted sum.

    python scripts/experiments/several_limits.py --tasks SafePointCircle-v0 SafeAntCircle-v0 --steps 2e6 --seeds 0 1 2

The weighted sum adds each cost divided by its limit, and is limited to the number of costs: a policy that satisfies all limits
also satisfies it, but not the other way round. CPO has its defaults but for the limits. Runs that are done are skipped, those
that were stopped go on.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from measures import HIGHEST_SHARE, MEAN_SHARE, OVER_LATE, OVER_SINCE, judge, make_row
from runs import Run, load_logs, plan, run_all
from stable_baselines3.common.vec_env import VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_cpo import CPO
from sb3_cpo.defaults import default_env

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from sb3_cpo.plotting import draw, from_log

# Limits of an episode: steps behind the panels, steps faster than SPEED, and the sum of squared actions in [-1, 1]
LIMITS: dict[str, dict[str, float]] = {
    "SafePointCircle-v0": {"cost_position": 5.0, "cost_speed": 8.0},
    "SafeAntCircle-v0": {"cost_position": 10.0, "cost_speed": 50.0, "cost_energy": 600.0},
}
SPEED = {"SafePointCircle-v0": 0.75, "SafeAntCircle-v0": 1.0}
WEIGHTED_SUM = "cost_weighted_sum"
METHODS = ("each limit", "weighted sum")


class SeveralCosts(VecEnvWrapper):
    """
    Adds costs to ``info``.

    :param venv: copies of a circle task
    :param limits: of which the weighted sum takes shares
    :param speed: what is faster costs
    """

    def __init__(self, venv: Any, limits: Mapping[str, float], speed: float):
        super().__init__(venv)
        self.limits, self.speed = dict(limits), speed
        self.largest_action = np.abs(venv.action_space.high)
        self.actions = np.zeros(0)

    def reset(self) -> np.ndarray:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        energy = np.square(self.actions / self.largest_action).sum(axis=1)
        for info, used in zip(infos, energy, strict=True):
            info["cost_position"] = info["cost"]
            info["cost_speed"] = float(info["speed"] > self.speed)
            info["cost_energy"] = float(used)
            info[WEIGHTED_SUM] = sum(info[name] / limit for name, limit in self.limits.items())
        return observations, rewards, dones, infos


def limits_of(task: str, method: str) -> dict[str, float]:
    limits = LIMITS[task]
    if method == "each limit":
        return limits
    # The costs themselves are only watched: their limits are out of reach
    return {WEIGHTED_SUM: float(len(limits)), **dict.fromkeys(limits, 1e6)}


def make_model(run: Run) -> CPO:
    env = SeveralCosts(default_env(run.task), LIMITS[run.task], SPEED[run.task])
    return CPO("MlpPolicy", env, seed=run.seed, device="cpu", **run.settings)


def keep(log: dict[str, Any]) -> dict[str, Any]:
    """Of SB3's log, what the table and the pictures are made of."""
    kept = ("rollout/ep_cost_mean/", "rollout/ep_cost_std_error/", "rollout/cost_limit/")
    names = ("time/total_timesteps", "rollout/ep_rew_mean", "rollout/ep_rew_mean_rollout", "rollout/n_episodes")
    return {name: value for name, value in log.items() if name in names or name.startswith(kept)}


def with_limits(log: pd.DataFrame, limits: Mapping[str, float]) -> pd.DataFrame:
    """The limits that were set out for, whichever of them the run knew; without the weighted sum."""
    log = log.drop(columns=[column for column in log if column.endswith(f"/{WEIGHTED_SUM}")])
    return log.assign(**{f"rollout/cost_limit/{name}": limit for name, limit in limits.items()})


def describe(log: pd.DataFrame) -> pd.DataFrame:
    """A row per constraint."""
    columns = ["cost", MEAN_SHARE, OVER_SINCE, OVER_LATE, HIGHEST_SHARE, "return"]
    return pd.DataFrame(judge(pd.DataFrame([make_row(row) for row in log.to_dict("records")])))[columns]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=float, default=2e6)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--settings",
        default="{}",
        help="JSON: arguments of CPO that differ from the defaults; they need an --output of their own",
    )
    parser.add_argument("--output", type=Path, default=Path("results/several"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    args = parser.parse_args()
    settings = json.loads(args.settings)
    runs = plan(
        args.tasks,
        args.methods,
        args.seeds,
        args.steps,
        lambda task, method: {**settings, "cost_limit": limits_of(task, method)},
        lambda task, method, seed: args.output / task / f"{method}_seed{seed}.csv",
    )
    run_all(runs, make_model, keep, args.jobs)
    for task in args.tasks:
        logs = {method: [with_limits(log, LIMITS[task]) for log in group] for method, group in load_logs(runs, task).items()}
        tables = [
            describe(log).assign(method=method, seed=seed)
            for method, group in logs.items()
            for seed, log in zip(args.seeds, group, strict=True)
        ]
        table = pd.concat(tables)[["method", "seed", *tables[0].columns[:-2]]]
        table.to_csv(args.output / f"{task}.csv", index=False, float_format="%.4g")
        print(f"{task}\n{table.to_string(index=False, float_format='%.2f')}\n")
        figure = draw({method: [from_log(log) for log in group] for method, group in logs.items()}, task)
        figure.savefig(args.output / f"{task}.png", dpi=110)
        plt.close(figure)


if __name__ == "__main__":
    main()
