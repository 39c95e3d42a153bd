"""``sb3-cpo video``: record a trained agent, and print what it earned and what it cost."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

# Before MuJoCo is imported (by sb3_cpo.zoo, so that this module is not in there): without a screen it renders through EGL
if sys.platform == "linux" and "DISPLAY" not in os.environ and "WAYLAND_DISPLAY" not in os.environ:
    os.environ.setdefault("MUJOCO_GL", "egl")

import numpy as np
import yaml
from rl_zoo3.utils import ALGOS, StoreDict, get_model_path, get_saved_hyperparams
from stable_baselines3.common.vec_env import VecEnv

from sb3_cpo import make_vec_env
from sb3_cpo.videos import record_episodes, render_fps, write_video
from sb3_cpo.zoo.experiment_manager import HYPERPARAMS
from sb3_cpo.zoo.runs import create_test_env, load_statistics

DESCRIPTION = """\
Record a video of a trained agent, and print what its episodes earned and what they cost.

The agent is one of the zoo's (--algo, --env, --exp-id, --load-best, ...), or a file that model.save wrote (--model). The
statistics of VecNormalize are read from the zoo's folder, or from vecnormalize.pkl beside the file.
"""

EXAMPLES = """\
examples:
  the last model of the last run
      %(prog)s --algo cpo --env SafeAntCircle-v0
  the best feasible model of run 3, three episodes, the stochastic policy that the limit is for
      %(prog)s --algo cpo --env SafeAntCircle-v0 --exp-id 3 --load-best -n 3
  a model of your own
      %(prog)s --algo cpo --env SafePointCircle-v0 --model cpo_point.zip -o point.mp4
"""


def open_zoo_run(options: argparse.Namespace) -> tuple[str, VecEnv, Path]:
    """Path of the model, its environment, and where its video belongs."""
    env_name = options.env
    prefix, model_path, log_path = get_model_path(
        options.exp_id,
        options.folder,
        options.algo,
        env_name,
        options.load_best,
        options.load_checkpoint,
        options.load_last_checkpoint,
    )
    stats_path = os.path.join(log_path, env_name)
    hyperparams, maybe_stats_path = get_saved_hyperparams(stats_path, test_mode=True)
    env_kwargs = dict(hyperparams.pop("env_kwargs", None) or {})
    args_file = Path(stats_path) / "args.yml"
    if args_file.is_file():
        env_kwargs.update(yaml.load(args_file.read_text(), Loader=yaml.UnsafeLoader).get("env_kwargs") or {})
    env_kwargs.update(options.env_kwargs or {}, render_mode="rgb_array")
    env = create_test_env(
        env_name, model_path, maybe_stats_path, hyperparams, seed=options.seed, env_kwargs=env_kwargs, should_render=False
    )
    return model_path, env, Path(log_path) / "videos" / f"{prefix}.mp4"


def open_model(options: argparse.Namespace) -> tuple[str, VecEnv, Path]:
    """The same for a model that is not the zoo's."""
    path = Path(options.model)
    env = make_vec_env(options.env, seed=options.seed, env_kwargs={**(options.env_kwargs or {}), "render_mode": "rgb_array"})
    normalized = load_statistics(options.model, options.env, env)
    if normalized is not None:
        env, normalized.training, normalized.norm_reward = normalized, False, False
    return str(path), env, path.with_suffix(".mp4")


def main(args: list[str] | None = None, prog: str = "sb3-cpo video") -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algo", default="cpo", choices=list(ALGOS), help="algorithm (default: cpo)")
    parser.add_argument("--env", default="SafePointCircle-v0", help="environment ID (default: SafePointCircle-v0)")
    parser.add_argument("--model", help="a model file that is not in a folder of the zoo")
    parser.add_argument("-f", "--folder", default="logs", help="log folder of the zoo (default: logs)")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run (default: 0, the latest)")
    parser.add_argument("--load-best", action="store_true", help="the best feasible model instead of the last one")
    parser.add_argument("--load-checkpoint", type=int, help="the checkpoint of this number of steps")
    parser.add_argument("--load-last-checkpoint", action="store_true", help="the last checkpoint")
    parser.add_argument("-o", "--output", type=Path, help="video to write (default: beside the model)")
    parser.add_argument("-n", "--n-episodes", type=int, default=1, help="number of episodes (default: 1)")
    parser.add_argument("--max-frames", type=int, help="end the video after this number of frames")
    parser.add_argument(
        "--stochastic", action="store_true", help="use stochastic actions (--load-best does, for our algorithms)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random generator seed (default: 0)")
    parser.add_argument("--env-kwargs", nargs="+", action=StoreDict, help="keyword arguments of the environment, key:value")
    options = parser.parse_args(args)
    # The best model was chosen by its stochastic policy
    is_stochastic = options.stochastic or (options.load_best and options.algo in HYPERPARAMS)

    try:
        model_path, env, default_output = open_model(options) if options.model else open_zoo_run(options)
    except (AssertionError, ValueError) as error:
        # What rl_zoo3 raises where there is no such run
        parser.error(str(error))
    model: Any = ALGOS[options.algo].load(model_path, device="cpu")
    recording = record_episodes(model, env, options.n_episodes, not is_stochastic, options.max_frames)
    for reward, length, cost in zip(recording.rewards, recording.lengths, recording.costs, strict=True):
        print(f"return {reward:.2f}, cost {', '.join(f'{value:.2f}' for value in cost)}, {length} steps")
    if getattr(model, "cost_limits", None) is not None and model.cost_limits.is_limited:
        mean = ", ".join(f"{value:.2f}" for value in np.mean(recording.costs, axis=0))
        print(f"mean cost {mean}, limit {', '.join(f'{value:g}' for value in model.current_cost_limit)}")
    output = options.output or default_output
    write_video(recording.frames, str(output), render_fps(env))
    print(f"Video: {output}")
    env.close()


if __name__ == "__main__":
    main()
