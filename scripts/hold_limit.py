"""
Why a limit is exceeded while the ant learns to run, and what helps: variants of CPO, side by side.

    python scripts/hold_limit.py prepare --steps 5000000 --output results/ant
    python scripts/hold_limit.py compare --steps 2500000 --output results/ant
    python scripts/hold_limit.py train --steps 15000000 --variants plain held --output results/ant15

`prepare` trains plain CPO on the task and leaves a checkpoint. `compare` continues it with every variant, `train` begins each
from nothing; both print a table and draw return and cost over training, and the realised against the promised changes (`show`:
of the runs that are there). A finished run is not repeated, a run that was stopped goes on after its last part. `honesty`
takes single updates from where the first variant's run ended, and compares what the surrogate promises, what it says on
independent rollouts, and what happens.
"""

import argparse
import copy
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch as th
from scipy.stats import linregress, norm, theilslopes
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from safe_envs import BatchVecEnv
from sb3_cpo import CPO, FailurePredictor, make_vec_env
from sb3_cpo.buffers import CostRolloutBuffer, compute_gae
from sb3_cpo.trust_region import TrustRegionStep, mean_kl_divergence

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SETTINGS: dict[str, Any] = {
    "cost_limit": 10.0,
    "n_steps": 500,
    "batch_size": 1000,
    "learning_rate": 3e-3,
    "n_critic_updates": 3,
    "gamma": 0.995,
    "cost_gae_lambda": 0.5,
    "cg_damping": 1e-5,
    "fisher_sub_sampling_factor": 5,
    "policy_kwargs": {"net_arch": [64, 32], "log_std_init": -1.0},
}
# Logs of runs by variant and seed
Logs = dict[tuple[str, int], pd.DataFrame]
# The hyperparameters of SafeAntCircle-v0 in the zoo
HELD: dict[str, Any] = {"n_cost_rollouts": 5, "cost_gae_gamma": 0.99, "cost_margin_lr": 0.2}


class TDTargets(CostRolloutBuffer):
    """The cost critic's targets as SB3 makes those of the reward critic."""

    def compute_cost_returns_and_advantages(self, next_values: np.ndarray) -> None:
        super().compute_cost_returns_and_advantages(next_values)
        self.cost_returns = self.cost_advantages + self.cost_values


class SmallStepsCPO(CPO):
    """Goes the way of one step in four, each with gradients and curvature of its own from the same data."""

    n_small_steps = 4

    def _trust_region_step(self, rollout_data: Any, params: Any, cost_data: Any, violation: np.ndarray) -> TrustRegionStep:
        target_kl = self.target_kl
        old = copy.copy(self.policy.get_distribution(rollout_data.observations))
        # The divergence is quadratic in the distance
        self.target_kl = target_kl / self.n_small_steps**2
        steps: list[TrustRegionStep] = []
        left = violation
        try:
            for n_left in range(self.n_small_steps, 0, -1):
                asked = np.where(left > 0, left / n_left, left)
                steps.append(super()._trust_region_step(rollout_data, params, cost_data, asked))
                left = left + steps[-1].cost_surrogate_change
        finally:
            self.target_kl = target_kl
        with th.no_grad():
            kl_div = mean_kl_divergence(old, self.policy.get_distribution(rollout_data.observations))
        return steps[-1]._replace(
            surrogates=steps[-1].surrogates._replace(kl_div=kl_div),
            step_size=float(np.mean([step.step_size for step in steps])),
            is_feasible=all(step.is_feasible for step in steps),
            cost_surrogate_change=left - violation,
            reachable_cost_change=sum((step.reachable_cost_change for step in steps), np.zeros(self.n_costs)),
        )


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "held": HELD,
    "plain, TD targets": {"rollout_buffer_class": TDTargets},
    "plain, cost_gae_gamma 0.99": {"cost_gae_gamma": 0.99},
    "plain, 5 rollouts": {"n_cost_rollouts": 5},
    "plain, margin": {"cost_margin_lr": 0.2},
    "plain, shaping": {"cost_shaping": "predictor"},
    "plain, twice the batch": {"n_envs": 2.0},
    "held, TD targets": {**HELD, "rollout_buffer_class": TDTargets},
    "held, cost_gae_gamma 1": {**HELD, "cost_gae_gamma": None},
    "held, 1 rollout": {**HELD, "n_cost_rollouts": 1},
    "held, 10 rollouts": {**HELD, "n_cost_rollouts": 10},
    "held, no margin": {**HELD, "cost_margin_lr": 0.0},
    "held, margin 0.1": {**HELD, "cost_margin_lr": 0.1},
    "held, lambda_C 0.9": {**HELD, "cost_gae_lambda": 0.9},
    "held, target_kl 0.005": {**HELD, "target_kl": 0.005},
    "held, statistics at rest": {**HELD, "normalization_training": False},
    "held, 4 small steps": {**HELD, "algorithm": SmallStepsCPO},
    "held, z = 1": {**HELD, "cost_confidence": 1.0},
    "held, shaping": {**HELD, "cost_shaping": "predictor"},
    "held, twice the batch": {**HELD, "n_envs": 2.0},
}


def make_env(task: str, n_envs: int, seed: int) -> VecEnv:
    return make_vec_env(task, n_envs=n_envs, vec_env_cls=BatchVecEnv, vec_env_kwargs={"n_threads": 1}, seed=seed)


def save(model: CPO, folder: Path) -> None:
    """Model and observation statistics together: a run that is killed here leaves the ones before."""
    env = model.get_vec_normalize_env()
    assert env is not None
    new, old = folder / "saving", folder / "checkpoint"
    new.mkdir(parents=True, exist_ok=True)
    model.save(new / "model")
    env.save(str(new / "vecnormalize.pkl"))
    if old.exists():
        shutil.rmtree(old)
    new.rename(old)


def checkpoint_in(folder: Path) -> Path | None:
    """The last one that is whole: `save` writes the statistics last, and may be killed before it renames the folder."""
    candidates = (folder / "checkpoint", folder / "saving")
    return next((path for path in candidates if (path / "vecnormalize.pkl").exists()), None)


def load(
    args: argparse.Namespace,
    folder: Path,
    n_envs: int,
    seed: int,
    algorithm: type[CPO] = CPO,
    normalization_training: bool = True,
    **kwargs: Any,
) -> CPO:
    checkpoint = checkpoint_in(folder)
    if checkpoint is None:
        raise FileNotFoundError(f"no checkpoint in {folder}: run prepare or train first")
    env = VecNormalize.load(str(checkpoint / "vecnormalize.pkl"), make_env(args.task, n_envs, seed))
    env.training = normalization_training
    model = algorithm.load(checkpoint / "model", env=env, device="cpu", **kwargs)
    # `load` has seeded everything as at the beginning of the run
    model.set_random_seed(1000 * (seed + 1) + model.num_timesteps // 1000)
    return model


def folder_of(args: argparse.Namespace, variant: str, seed: int) -> Path:
    return args.output / f"{variant.replace(' ', '_').replace(',', '')}-{seed}"


def arguments_of(args: argparse.Namespace, name: str) -> tuple[int, dict[str, Any]]:
    """Number of copies, and the arguments of CPO."""
    kwargs: dict[str, Any] = {"cost_limit": args.cost_limit, **VARIANTS[name]}
    n_envs = round(args.n_envs * kwargs.pop("n_envs", 1.0))
    if kwargs.get("cost_shaping") == "predictor":
        kwargs["cost_shaping"] = FailurePredictor(horizon=20)
    return n_envs, kwargs


def begin(args: argparse.Namespace, name: str, seed: int) -> CPO:
    n_envs, kwargs = arguments_of(args, name)
    if args.command == "compare":
        return load(args, args.output / "prepare", n_envs, seed, **kwargs)
    env = VecNormalize(make_env(args.task, n_envs, seed), norm_reward=False)
    algorithm = kwargs.pop("algorithm", CPO)
    return algorithm("MlpPolicy", env, seed=seed, device="cpu", **{**SETTINGS, **kwargs})


def run(args: argparse.Namespace, name: str, seed: int, folder: Path) -> None:
    """Train one variant in parts, each with its own log: one that was stopped goes on after its last whole part."""
    n_envs, kwargs = arguments_of(args, name)
    kept = {key: kwargs[key] for key in ("algorithm", "normalization_training") if key in kwargs}
    model = load(args, folder, n_envs, seed, **kept) if checkpoint_in(folder) else begin(args, name, seed)
    starts = [int(path.name) for path in folder.glob("[0-9]*")]
    end = min(starts, default=model.num_timesteps) + args.steps
    while model.num_timesteps < end:
        model.set_logger(configure(str(folder / str(model.num_timesteps)), ["csv"]))
        model.learn(min(args.part, end - model.num_timesteps), reset_num_timesteps=False)
        save(model, folder)


def prepare(args: argparse.Namespace) -> None:
    run(args, "plain", args.seeds[0], args.output / "prepare")


def logs_in(folder: Path) -> list[Path]:
    """Of the parts of a run, in their order; a part that has just begun has an empty one."""
    parts = [path for path in folder.glob("[0-9]*/progress.csv") if path.stat().st_size > 0]
    return sorted(parts, key=lambda path: int(path.parent.name))


def read(folder: Path) -> pd.DataFrame:
    return pd.concat([pd.read_csv(part) for part in logs_in(folder)], ignore_index=True)


def settled(rows: pd.DataFrame, skip: float) -> pd.DataFrame:
    """From the sixth update on (a variant that continues another policy needs a few), and after ``skip`` steps."""
    return rows.iloc[5:][rows["time/total_timesteps"].iloc[5:] > skip]


def promises(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Promised and realised changes of J by the same update."""
    known = rows[["train/cost_surrogate", "train/realised_cost_change"]].dropna()
    return known["train/cost_surrogate"], known["train/realised_cost_change"]


def slope_without_noise(rows: pd.DataFrame) -> float:
    """
    The slope that the realised changes would have on the promised ones if J were known without error.

    The estimate of J that is too high by its noise e makes the update promise more, and lets the next estimate fall by e: the
    plain slope counts this fall as a promise that is kept. Here cov(promised, e) is taken out: the variance of e, times how
    much the promise answers to the estimate at the same margin (Stein's lemma: cov(f(J + e), e) = var(e) E f' for normal e).
    """
    if "rollout/ep_shaped_cost_mean" in rows:
        return np.nan  # promised and realised are of the shaped cost, whose error is not logged
    columns = {
        "promised": rows["train/cost_surrogate"],
        "realised": rows["train/realised_cost_change"],
        "error": rows["rollout/ep_cost_std_error"].shift(),
        "estimate": rows["rollout/ep_cost_mean"].shift(),
    }
    if "train/cost_margin" in rows:
        # A row shows the margin after its update
        columns["margin"] = rows["train/cost_margin"].shift()
    known = pd.DataFrame(columns).dropna()
    noise_variance = (known.pop("error") ** 2).mean()
    known -= known.mean()
    promised, realised = known.pop("promised"), known.pop("realised")
    answer = np.linalg.lstsq(known, promised)[0][0]
    return ((promised * realised).mean() + answer * noise_variance) / (promised**2).mean()


def summarise(rows: pd.DataFrame) -> dict[str, float]:
    """One line of the table."""
    cost, limit, error = rows["rollout/ep_cost_mean"], rows["rollout/cost_limit"], rows["rollout/ep_cost_std_error"]
    promised, realised = promises(rows)
    slope, intercept = np.polyfit(promised, realised, 1)
    return {
        "mean cost": cost.mean(),
        "second half": cost.iloc[len(cost) // 2 :].mean(),
        "over 1.25 limit": (cost > 1.25 * limit).mean(),
        # What a policy whose cost is exactly the limit would show
        "by the error alone": norm.sf(0.25 * limit.mean() / error.mean()),
        "promised": promised.mean(),
        "realised": realised.mean(),
        "slope": slope,
        "intercept": intercept,
        "slope without noise": slope_without_noise(rows),
        # Not moved by single updates that promise more than there is
        "Theil-Sen slope": theilslopes(realised, promised).slope,
        "SE of J": error.mean(),
        "explained variance": rows["train/cost_explained_variance"].mean(),
        "final return": rows["rollout/ep_rew_mean_rollout"].iloc[-5:].mean(),
    }


def compare(args: argparse.Namespace) -> None:
    for name in args.variants:
        for seed in args.seeds:
            run(args, name, seed, folder_of(args, name, seed))
            show(args)


def show(args: argparse.Namespace) -> None:
    """Table and pictures of the runs that are there."""
    runs = {(name, seed): folder_of(args, name, seed) for name in args.variants for seed in args.seeds}
    logs = {run: read(folder) for run, folder in runs.items() if logs_in(folder)}
    lines = [
        {"variant": name, "seed": seed, **summarise(settled(rows, args.skip))}
        for (name, seed), rows in logs.items()
        if len(settled(rows, args.skip)) > 2
    ]
    print(pd.DataFrame(lines).round(2).to_string(index=False), flush=True)
    pd.DataFrame(lines).round(3).to_csv(args.output / "variants.csv", index=False)
    draw(args, logs)
    draw_promises(args, logs)


def draw(args: argparse.Namespace, logs: Logs) -> None:
    """Return and cost over training, means over five updates; one colour per variant, one line per seed."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    if logs_in(args.output / "prepare"):
        logs = {("common beginning", 0): read(args.output / "prepare"), **logs}
    names = list(dict.fromkeys(name for name, _ in logs))
    labelled = set()
    colors = [plt.get_cmap("tab20")(index) for index in (*range(0, 20, 2), *range(1, 20, 2))]
    for (name, _), rows in logs.items():
        for axis, column in zip(axes, ("rollout/ep_rew_mean_rollout", "rollout/ep_cost_mean"), strict=True):
            axis.plot(
                rows["time/total_timesteps"] / 1e6, rows[column].rolling(5, min_periods=1).mean(),
                color=colors[names.index(name) % 20], label=None if name in labelled else name, linewidth=1.2,
            )  # fmt: skip
        labelled.add(name)
    axes[1].axhline(args.cost_limit, color="black", linestyle="--", label="limit")
    for axis, label in zip(axes, ("return of an episode", "cost of an episode"), strict=True):
        axis.set(xlabel="million steps", ylabel=f"{label} (mean over 5 updates)", title=args.task)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(args.output / "variants.png", dpi=110)
    plt.close(figure)


def draw_promises(args: argparse.Namespace, logs: Logs) -> None:
    """Realised against promised change of J, one panel per variant, one point per update."""
    points: dict[str, list[pd.DataFrame]] = {}
    for (name, _), rows in logs.items():
        points.setdefault(name, []).append(settled(rows, args.skip))
    points = {name: parts for name, parts in points.items() if sum(map(len, parts)) > 2}
    if not points:
        return
    n_columns = min(len(points), 4)
    n_rows = int(np.ceil(len(points) / n_columns))
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(4.2 * n_columns, 3.8 * n_rows), squeeze=False, layout="constrained"
    )  # fmt: skip
    for axis, (name, parts) in zip(axes.flat, points.items(), strict=False):
        promised, realised = promises(pd.concat(parts))
        line = theilslopes(realised, promised)
        ends = np.percentile(promised, [2, 100])
        is_shown = promised >= ends[0]
        axis.scatter(promised[is_shown], realised[is_shown], s=8, alpha=0.6, label=f"{(~is_shown).sum()} points further left")
        axis.plot(ends, ends, color="black", linestyle="--", label="promised = realised")
        label = f"Theil-Sen: slope {line.slope:.2f}, intercept {line.intercept:+.1f}"
        axis.plot(ends, line.slope * ends + line.intercept, color="C1", label=label)
        axis.set(title=name, xlabel="change of J promised by the surrogate", ylabel="realised at the next rollout")
        axis.legend(fontsize="x-small")
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(points) :]:
        axis.remove()
    figure.savefig(args.output / "promises.png", dpi=90)
    plt.close(figure)


def honesty(args: argparse.Namespace) -> None:
    """
    A promise is kept if it holds on episodes that did not shape the step. The cost advantages there are Monte-Carlo and
    undiscounted, so that an error of the cost critic cannot make both sides agree.
    """
    name, seed = args.variants[0], args.seeds[0]
    n_envs, kwargs = arguments_of(args, name)
    # Statistics that move on under a policy that stays would change what it does
    model = load(args, folder_of(args, name, seed), n_envs, seed, kwargs.get("algorithm", CPO), normalization_training=False)
    model._logger = Logger(None, [])
    _, callback = model._setup_learn(10**9)
    callback.on_training_start({}, {})
    policy, margin = copy.deepcopy(model.policy.state_dict()), model.cost_margin

    def rollout() -> tuple[Any, th.Tensor, float]:
        """Samples, their Monte-Carlo cost advantages, and J."""
        assert model.env is not None
        buffer = model.rollout_buffer
        model.collect_rollouts(model.env, callback, buffer, model.n_steps)
        next_values = np.concatenate([buffer.cost_values[1:], buffer.cost_values[-1:]])
        next_values[buffer.episode_ends] = 0.0
        advantages = compute_gae(buffer.costs, buffer.cost_values, next_values, buffer.episode_ends, 1.0, 1.0)
        explained.append(explained_variance(buffer.cost_values.ravel(), (advantages + buffer.cost_values).ravel()))
        # In the order of the buffer's samples when they are not shuffled
        flat = th.as_tensor(buffer.swap_and_flatten(advantages), dtype=th.float32)
        next(iter(buffer.get(None)))
        estimate = model.cost_estimate
        assert estimate is not None
        data = buffer._get_samples(np.arange(len(flat)))
        return data, (flat - flat.mean(dim=0)) * estimate.mean_length, float(estimate.mean[0])

    @th.no_grad()
    def surrogate_change(data: Any, advantages: th.Tensor) -> float:
        log_prob = model.policy.get_distribution(data.observations).log_prob(data.actions)
        return float((th.exp(log_prob - data.old_log_prob) * advantages[:, 0]).mean())

    explained: list[float] = []
    costs_before: list[float] = []
    rows = []
    for _ in range(args.updates):
        model.policy.load_state_dict(policy)
        model.cost_margin, model._cost_data = margin, []
        rollout()  # episodes that other policies began
        others = [rollout() for _ in range(args.rollouts)]
        for _ in range(model.n_cost_rollouts):
            model.policy.load_state_dict(policy)
            data = rollout()[0]
            step = model._update_policy(data, model._actor_parameters(data))
        honest = float(np.mean([surrogate_change(data, advantages) for data, advantages, _ in others]))
        rollout()
        after = [rollout()[2] for _ in range(args.rollouts)]
        del explained[-args.rollouts - 1 :]  # of the policy after the update
        costs_before += [j for *_, j in others]
        rows.append((float(step.cost_surrogate_change[0]), honest, float(np.mean(after))))
        print("promised {:8.3f}   on independent rollouts {:8.3f}   J after {:8.3f}".format(*rows[-1]), flush=True)
    # Every update began at the same policy: one J before for all of them
    before = np.mean(costs_before)
    rows = [(promised, honest, after - before) for promised, honest, after in rows]
    print(f"J {before:.2f}; explained variance of the costs to come: {np.mean(explained):.3f}")
    means, errors = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1) / np.sqrt(len(rows))
    # The J before is one number for all rows
    errors[2] = np.hypot(errors[2], np.std(costs_before, ddof=1) / np.sqrt(len(costs_before)))
    for label, mean, error in zip(("promised", "on independent rollouts", "realised"), means, errors, strict=True):
        print(f"{label}: {mean:.2f} ± {error:.2f}")
    if len(rows) > 2:
        promised, _, realised = np.transpose(rows)
        line = linregress(promised, realised)
        print(f"slope of realised on promised: {line.slope:.2f} ± {line.stderr:.2f}, intercept {line.intercept:+.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["prepare", "compare", "train", "show", "honesty"])
    parser.add_argument("--task", default="SafeAntCircle-v0", help="environment id")
    parser.add_argument("--cost-limit", type=float, default=SETTINGS["cost_limit"], help="limit on the cost of an episode")
    parser.add_argument("--n-envs", type=int, default=100, help="copies of the environment; 500 steps each make a batch")
    parser.add_argument("--steps", type=int, default=2_500_000, help="steps to train for")
    parser.add_argument("--part", type=int, default=1_000_000, help="steps after which a run is saved")
    parser.add_argument("--skip", type=float, default=0, help="steps of training that the table leaves out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of the runs")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="what to compare")
    parser.add_argument("--updates", type=int, default=8, help="single updates that `honesty` takes")
    parser.add_argument(
        "--rollouts", type=int, default=4, help="independent rollouts, and rollouts behind each mean, in `honesty`"
    )
    parser.add_argument("--output", type=Path, default=Path("results/ant"), help="folder of checkpoint, runs and table")
    args = parser.parse_args()
    if args.command == "train" and any("normalization_training" in VARIANTS[name] for name in args.variants):
        parser.error("statistics that rest from the beginning normalise nothing: name other --variants, or use compare")
    th.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    {"prepare": prepare, "compare": compare, "train": compare, "show": show, "honesty": honesty}[args.command](args)


if __name__ == "__main__":
    main()
