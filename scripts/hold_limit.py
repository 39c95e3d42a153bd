"""
Why a limit is exceeded while the ant learns to run, and what helps: variants of CPO, continued from one checkpoint.

    python scripts/hold_limit.py prepare --steps 5000000 --output results/ant
    python scripts/hold_limit.py compare --output results/ant --steps 2500000 --seeds 0 1

`prepare` trains plain CPO on the task and leaves a checkpoint. `compare` continues it with every variant and prints a table; a
finished variant is not repeated. `honesty` takes single updates from a checkpoint and compares what the surrogate promises on
the batch that the step was made from, on an independent batch, and what happens.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch as th
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from safe_envs import BatchVecEnv
from sb3_cpo import CPO, FailurePredictor, make_vec_env

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
    "policy_kwargs": {"net_arch": [64, 32]},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lambda_C 0.9": {"cost_gae_lambda": 0.9},
    "margin 0.1": {"cost_margin_lr": 0.1},
    "5 rollouts": {"n_cost_rollouts": 5},
    "5 rollouts, margin 0.1": {"n_cost_rollouts": 5, "cost_margin_lr": 0.1},
    "10 rollouts": {"n_cost_rollouts": 10},
    "10 rollouts, margin 0.1": {"n_cost_rollouts": 10, "cost_margin_lr": 0.1},
    "z = 1": {"cost_confidence": 1.0},
    "target_kl 0.004": {"target_kl": 0.004},
    "shaping": {"cost_shaping": "predictor"},
}


def make_env(task: str, n_envs: int, seed: int) -> VecEnv:
    return make_vec_env(task, n_envs=n_envs, vec_env_cls=BatchVecEnv, vec_env_kwargs={"n_threads": 1}, seed=seed)


def prepare(args: argparse.Namespace) -> None:
    env = VecNormalize(make_env(args.task, args.n_envs, args.seeds[0]), norm_reward=False)
    model = CPO("MlpPolicy", env, seed=args.seeds[0], **SETTINGS)
    model.set_logger(configure(str(args.output / "prepare"), ["csv"]))
    model.learn(args.steps)
    model.save(args.output / "checkpoint")
    env.save(str(args.output / "vecnormalize.pkl"))


def folder_of(args: argparse.Namespace, variant: str, seed: int) -> Path:
    return args.output / f"{variant.replace(' ', '_').replace(',', '')}-{seed}"


def load(args: argparse.Namespace, seed: int, **kwargs: Any) -> CPO:
    env = VecNormalize.load(str(args.output / "vecnormalize.pkl"), make_env(args.task, args.n_envs, 1000 + seed))
    model = CPO.load(args.output / "checkpoint", env=env, **kwargs)
    model.set_random_seed(seed)
    return model


def summarise(path: Path) -> dict[str, float]:
    """One line of the table: from the sixth update on."""
    rows = pd.read_csv(path).sort_values("time/total_timesteps").iloc[5:]
    cost, limit = rows["rollout/ep_cost_mean"], rows["rollout/cost_limit"]
    promised, realised = rows["train/cost_surrogate"], rows["train/realised_cost_change"]
    known = promised.notna() & realised.notna()
    slope, intercept = np.polyfit(promised[known], realised[known], 1)
    return {
        "mean cost": cost.mean(),
        "second half": cost.iloc[len(cost) // 2 :].mean(),
        "over 1.25 limit": (cost > 1.25 * limit).mean(),
        "promised": promised.mean(),
        "realised": realised.mean(),
        "slope": slope,
        "intercept": intercept,
        "SE of J": rows["rollout/ep_cost_std_error"].mean(),
        "final return": rows["rollout/ep_rew_mean_rollout"].iloc[-5:].mean(),
    }


def compare(args: argparse.Namespace) -> None:
    lines = []
    for name in args.variants:
        for seed in args.seeds:
            folder = folder_of(args, name, seed)
            if not (folder / "model.zip").exists():
                kwargs = dict(VARIANTS[name])
                if kwargs.get("cost_shaping") == "predictor":
                    kwargs["cost_shaping"] = FailurePredictor(horizon=20)
                model = load(args, seed, **kwargs)
                model.set_logger(configure(str(folder), ["csv"]))
                model.learn(args.steps, reset_num_timesteps=False)
                model.save(folder / "model")
            lines.append({"variant": name, "seed": seed, **summarise(folder / "progress.csv")})
            print(pd.DataFrame(lines).round(2).to_string(index=False), flush=True)
    pd.DataFrame(lines).round(3).to_csv(args.output / "variants.csv", index=False)
    draw(args)


def draw(args: argparse.Namespace) -> None:
    """Return and cost over training, means over five updates."""
    runs = {"common beginning": args.output / "prepare" / "progress.csv"}
    for name in args.variants:
        for seed in args.seeds:
            runs[f"{name}, seed {seed}"] = folder_of(args, name, seed) / "progress.csv"
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for name, path in runs.items():
        if not path.exists():
            continue
        rows = pd.read_csv(path).sort_values("time/total_timesteps")
        for axis, column in zip(axes, ("rollout/ep_rew_mean_rollout", "rollout/ep_cost_mean"), strict=True):
            axis.plot(rows["time/total_timesteps"] / 1e6, rows[column].rolling(5, min_periods=1).mean(), label=name)
    axes[1].axhline(SETTINGS["cost_limit"], color="black", linestyle="--", label="limit")
    for axis, label in zip(axes, ("return of an episode", "cost of an episode"), strict=True):
        axis.set(xlabel="million steps", ylabel=f"{label} (mean over 5 updates)", title=args.task)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.savefig(args.output / "variants.png", dpi=110)
    plt.close(figure)


def honesty(args: argparse.Namespace) -> None:
    """A promise is kept if it holds on episodes that did not shape the step."""
    model = load(args, args.seeds[0])
    model._logger = Logger(None, [])
    _, callback = model._setup_learn(10**9)
    callback.on_training_start({}, {})
    assert model.env is not None

    def rollout() -> tuple[Any, Any]:
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        return next(iter(model.rollout_buffer.get(None))), model.cost_estimate

    def surrogate_change(data: Any, estimate: Any) -> float:
        with th.no_grad():
            log_prob = model.policy.get_distribution(data.observations).log_prob(data.actions)
            advantages = (data.cost_advantages - data.cost_advantages.mean(dim=0)) * estimate.mean_length
            return float((th.exp(log_prob - data.old_log_prob) * advantages[:, 0]).mean())

    policy = copy.deepcopy(model.policy.state_dict())
    rollout()
    before = np.mean([rollout()[1].mean[0] for _ in range(args.rollouts)])
    rows = []
    for _ in range(args.updates):
        model.policy.load_state_dict(policy)
        rollout()  # episodes that other policies began
        independent, batch = rollout(), rollout()
        step = model._update_policy(batch[0], model._actor_parameters(batch[0]))
        promised, honest = surrogate_change(*batch), surrogate_change(*independent)
        rollout()
        realised = np.mean([rollout()[1].mean[0] for _ in range(args.rollouts)]) - before
        rows.append((step.predicted_cost_change[0] * step.step_size, promised, honest, realised))
        print(
            "linear {:8.3f}   promised {:8.3f}   on an independent batch {:8.3f}   realised {:8.3f}".format(*rows[-1]),
            flush=True,
        )
    means, errors = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1) / np.sqrt(len(rows))
    for name, mean, error in zip(("linear", "promised", "on an independent batch", "realised"), means, errors, strict=True):
        print(f"{name}: {mean:.3f} ± {error:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["prepare", "compare", "honesty"])
    parser.add_argument("--task", default="SafeAntCircle-v0", help="environment id")
    parser.add_argument("--n-envs", type=int, default=100, help="copies of the environment; 500 steps each make a batch")
    parser.add_argument("--steps", type=int, default=2_500_000, help="steps to train for")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of the continuations")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="what to compare")
    parser.add_argument("--updates", type=int, default=8, help="single updates that `honesty` takes")
    parser.add_argument("--rollouts", type=int, default=4, help="rollouts behind each mean in `honesty`")
    parser.add_argument("--output", type=Path, default=Path("results/ant"), help="folder of checkpoint, runs and table")
    args = parser.parse_args()
    th.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    {"prepare": prepare, "compare": compare, "honesty": honesty}[args.command](args)


if __name__ == "__main__":
    main()
