"""Train CPO on SafePointCircle-v0 for a few minutes, and draw return and cost against the limit."""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from safe_envs import BatchVecEnv
from sb3_cpo import CPO, make_vec_env

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COST_LIMIT = 5.0


class History(BaseCallback):
    """Steps, return, cost and the cost's standard error at every update."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[float, float, float, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        estimate = self.model.cost_estimate
        self.rows.append((self.num_timesteps, self.model.ep_rew_mean, estimate.mean[0], estimate.standard_error[0]))


def draw(history: np.ndarray, path: Path) -> None:
    """Two panels over environment steps: return, and episode cost with the limit."""
    steps, returns, costs, errors = history.T
    figure, (return_axis, cost_axis) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
    return_axis.plot(steps, returns, color="tab:blue")
    return_axis.set(ylabel="return of an episode", title="CPO on SafePointCircle-v0")
    cost_axis.plot(steps, costs, color="tab:red", label="mean over the episodes of each update")
    cost_axis.fill_between(
        steps, costs - 2 * errors, costs + 2 * errors, color="tab:red", alpha=0.2, label="± 2 standard errors"
    )
    cost_axis.axhline(COST_LIMIT, color="black", linestyle="--", label=f"limit {COST_LIMIT:g}")
    cost_axis.set(ylabel="cost of an episode", xlabel="environment steps", ylim=(0, None))
    cost_axis.legend()
    for axis in (return_axis, cost_axis):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--total-timesteps", type=int, default=1_500_000, help="environment steps to train for")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for log, model and picture")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    args = parser.parse_args()

    # Networks this small run fastest on one thread; the environments have the other cores
    th.set_num_threads(1)
    env = make_vec_env("SafePointCircle-v0", n_envs=100, vec_env_cls=BatchVecEnv, seed=args.seed)
    model = CPO(
        "MlpPolicy",
        env,
        cost_limit=COST_LIMIT,
        n_steps=200,
        batch_size=500,
        learning_rate=3e-3,
        n_critic_updates=3,
        gamma=0.995,
        cg_damping=1e-5,
        fisher_sub_sampling_factor=5,
        cost_gae_lambda=1.0,
        cost_margin_lr=0.1,
        policy_kwargs=dict(net_arch=[64, 32]),
        seed=args.seed,
        verbose=1,
    )
    model.set_logger(configure(str(args.output), ["stdout", "csv", "tensorboard"]))
    history = History()
    model.learn(args.total_timesteps, callback=history, log_interval=5, progress_bar=True)
    model.save(args.output / "model")
    rows = np.array(history.rows)
    draw(rows, args.output / "training.png")
    print(f"TensorBoard log, model and picture: {args.output}/ (tensorboard --logdir {args.output})")
    # One update's estimate has a standard error of about 0.25; five together say where training ended
    _, final_return, final_cost, _ = rows[-5:].mean(axis=0)
    print(
        f"CPO ends with a return of {final_return:.1f} and an episode cost of {final_cost:.2f}, "
        f"against a limit of {COST_LIMIT:g} "
        f"(means over the last {len(rows[-5:])} updates)."
    )


if __name__ == "__main__":
    main()
