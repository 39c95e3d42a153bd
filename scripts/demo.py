"""Train CPO on SafePointCircle-v0 for a few minutes, and draw return and cost against the limit."""

import argparse
from pathlib import Path

import matplotlib
import torch as th
from stable_baselines3.common.logger import configure

from sb3_cpo import CPO

matplotlib.use("Agg")
from sb3_cpo.plotting import plot_training, read_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--total-timesteps", type=int, default=1_500_000, help="environment steps to train for")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for log, model and picture")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    args = parser.parse_args()

    # Networks this small run fastest on one thread; the environments have the other cores
    th.set_num_threads(1)
    model = CPO("MlpPolicy", "SafePointCircle-v0", seed=args.seed, verbose=1)
    model.set_logger(configure(str(args.output), ["stdout", "csv", "tensorboard"]))
    model.learn(args.total_timesteps, log_interval=1, progress_bar=True)
    model.save(args.output / "model")
    plot_training(args.output, args.output / "training.png", "CPO on SafePointCircle-v0")
    print(f"TensorBoard log, model and picture: {args.output}/ (tensorboard --logdir {args.output})")
    # One update's estimate has a standard error of about 0.25; five together say where training ended
    run = read_run(args.output)
    print(
        f"CPO ends with a return of {run.returns[-5:].mean():.1f} and an episode cost of {run.costs[''][-5:].mean():.2f}, "
        f"against a limit of {model.cost_limit:g} (means over the last {len(run.returns[-5:])} updates)."
    )


if __name__ == "__main__":
    main()
