"""
What each mistake of well-known implementations of CPO does: to the cost, to the return, and to the cases of the solver.

    python scripts/experiments/common_mistakes.py --tasks SafePointCircle-v0 --steps 1e6 --seeds 0 1 2

Each mistake is made on purpose, here and not in the package, in CPO with its defaults and in the paper's plain update. J in
the table and in the pictures is always that of the rollout, whatever the algorithm takes for it. A third picture has actual
against predicted changes of J, of CPO with its defaults and of the plain update, both without mistakes; their slope without
the noise of J is printed. Runs that are done are skipped, those that were stopped go on.
"""

import argparse
from collections import deque
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from calibration import draw_calibration, slope_without_noise
from measures import (
    ACTUAL,
    COST,
    ERROR,
    HIGHEST_SHARE,
    MEAN_SHARE,
    NOISE,
    OVER_LATE,
    OVER_SINCE,
    PREDICTED,
    judge,
    make_row,
)
from runs import Run, load_logs, plan, run_all
from tasks import PAPER, PLAIN, VELOCITY

from sb3_cpo import CPO
from sb3_cpo.dual import Dual, solve_dual
from sb3_cpo.episode_costs import EndedEpisodes, mean_cost
from sb3_cpo.log_keys import Row
from sb3_cpo.on_policy_algorithm import Rollout

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from sb3_cpo.plotting import draw, from_log

WINDOW = 100


class SurrogatePerStep(CPO):
    """The violation is of an episode's cost, the surrogate of a step's: the mean length of an episode is left out."""

    def _cost_batches(self, rollout: Rollout) -> Any:
        *earlier, batch = super()._cost_batches(rollout)
        return [*earlier, batch._replace(advantages=batch.advantages / rollout.cost.mean_length)]


def solve_with_wrong_sign(q: float, r: np.ndarray, S: np.ndarray, violation: np.ndarray, target_kl: float) -> Dual | None:
    return solve_dual(q, -r, S, violation, target_kl)


class WrongSign(CPO):
    """The product of the gradients of return and cost enters the dual with the other sign."""

    def _trust_region_step(self, *args: Any, **kwargs: Any) -> Any:
        return super()._trust_region_step(*args, solve=solve_with_wrong_sign, **kwargs)


class Window:
    """The mean over the episodes of a rollout, as always; beside it, the costs of the last hundred episodes."""

    def __init__(self) -> None:
        self.costs: deque[np.ndarray] = deque(maxlen=WINDOW)

    def __call__(self, episodes: EndedEpisodes) -> tuple[np.ndarray, np.ndarray]:
        self.costs.extend(episodes.costs)
        return mean_cost(episodes)


class OldEpisodes(CPO):
    """The constraint is on the mean of the last hundred episodes, whichever policies played them."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self.window = self.cost_estimator = Window()

    def _update_policy(self, rollout: Rollout) -> Row:
        mean, error = mean_cost(EndedEpisodes(np.array(self.window.costs), np.zeros(0)))
        return super()._update_policy(rollout._replace(cost=rollout.cost._replace(mean=mean, standard_error=error)))


# name -> class, and arguments of CPO that differ from the defaults
VARIANTS: dict[str, tuple[type[CPO], dict[str, Any]]] = {
    "CPO": (CPO, {}),
    "surrogate per step": (SurrogatePerStep, {}),
    "wrong sign": (WrongSign, {}),
    "old episodes": (OldEpisodes, {}),
    "plain": (CPO, PLAIN),
    "plain, surrogate per step": (SurrogatePerStep, PLAIN),
    "plain, wrong sign": (WrongSign, PLAIN),
    "plain, old episodes": (OldEpisodes, PLAIN),
}
KEPT = {
    "time/total_timesteps",
    *(f"rollout/{name}" for name in ("ep_rew_mean", "ep_rew_mean_rollout", "n_episodes", "cost_limit")),
    *(COST, ERROR, "train/is_feasible", "train/nu", PREDICTED, ACTUAL, NOISE),
}


def make_model(run: Run) -> CPO:
    return VARIANTS[run.algorithm][0]("MlpPolicy", run.task, seed=run.seed, device="cpu", **run.settings)


def keep(log: dict[str, Any]) -> dict[str, Any]:
    """Of SB3's log, what the table and the pictures are made of."""
    return {name: value for name, value in log.items() if name in KEPT}


def describe(log: pd.DataFrame) -> dict[str, Any]:
    (judged,) = judge(pd.DataFrame([make_row(row) for row in log.to_dict("records")]))
    updates = log.dropna(subset=["train/is_feasible"])
    is_recovery = updates["train/is_feasible"] == 0
    is_active = ~is_recovery & (updates["train/nu"] > 0)
    return {
        **{key: judged[key] for key in (MEAN_SHARE, OVER_SINCE, OVER_LATE, HIGHEST_SHARE, "return")},
        "no constraint active": (~is_recovery & ~is_active).mean(),
        "constraint active": is_active.mean(),
        "recovery": is_recovery.mean(),
    }


def draw_task(logs: dict[str, list[pd.DataFrame]], title: str, path: Path) -> None:
    figure = draw({name: [from_log(run) for run in runs] for name, runs in logs.items()}, title, log_cost=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["SafePointCircle-v0", "SafeHalfCheetahVelocity-v0"]
    parser.add_argument("--tasks", nargs="+", choices=(*PAPER, *VELOCITY), default=default)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=float, default=1e6)
    parser.add_argument("--output", type=Path, default=Path("results/mistakes"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    args = parser.parse_args()
    runs = plan(
        args.tasks,
        args.variants,
        args.seeds,
        args.steps,
        lambda task, name: VARIANTS[name][1],
        lambda task, name, seed: args.output / task / f"{name}_seed{seed}.csv",
    )
    run_all(runs, make_model, keep, args.jobs)
    for task in args.tasks:
        logs = load_logs(runs, task)
        rows = [{"variant": name, **pd.DataFrame(map(describe, group)).mean()} for name, group in logs.items()]
        table = pd.DataFrame(rows)
        table.to_csv(args.output / f"{task}.csv", index=False, float_format="%.4g")
        print(f"{task}, mean over {len(args.seeds)} seeds\n{table.to_string(index=False, float_format='%.2f')}\n")
        for start, end in (("", "defaults"), ("plain", "plain")):
            drawn = {name: group for name, group in logs.items() if name.startswith("plain") == (start == "plain")}
            if drawn:
                draw_task(drawn, f"{task}: mistakes in CPO, {end}", args.output / f"{task}-{end}.png")
        late = {name: [log.iloc[len(log) // 2 :] for log in logs[name]] for name in ("CPO", "plain") if name in logs}
        if late:
            draw_calibration({name: pd.concat(group) for name, group in late.items()}, args.output / f"{task}-changes.png")
        for name, group in late.items():
            predicted, actual = (pd.concat(group)[column].mean() for column in (PREDICTED, ACTUAL))
            slope = np.mean([slope_without_noise(rows) for rows in group])
            print(f"{name}, late half: predicted {predicted:.2f}, actual {actual:.2f}, slope without noise {slope:.2f}")


if __name__ == "__main__":
    main()
