"""``sb3-cpo video``: record a trained agent, and print what it earned and what it cost."""

import argparse
import os
import sys
from pathlib import Path

# Before MuJoCo is imported (by sb3_cpo.zoo, so that this module is not in there): without a screen it renders through EGL
if sys.platform == "linux" and "DISPLAY" not in os.environ and "WAYLAND_DISPLAY" not in os.environ:
    os.environ.setdefault("MUJOCO_GL", "egl")

import gymnasium as gym
import moviepy  # noqa: F401  (where it is missing, now rather than after the episodes)
import numpy as np

from sb3_cpo.videos import check_video_path, record_episodes, record_replay, render_fps, write_video
from sb3_cpo.zoo.agents import add_options, is_chosen_by_stochastic_policy, load_model, open_agent
from sb3_cpo.zoo.arguments import is_mistake

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
  the worst episode of a report (sb3-cpo report), by the seed that is written there
      %(prog)s --algo cpo --env SafeAntCircle-v0 --stochastic --episode-seed 1000042
  a model of your own
      %(prog)s --algo cpo --env SafePointCircle-v0 --model cpo_point.zip -o point.mp4
"""


def main(args: list[str] | None = None, prog: str = "sb3-cpo video") -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument(
        "-o", "--output", type=Path, help="video to write, .mp4 or .gif for instance (default: beside the model)"
    )
    parser.add_argument("-n", "--n-episodes", type=int, default=1, help="number of episodes (default: 1)")
    parser.add_argument("--max-frames", type=int, help="end the video after this number of frames")
    parser.add_argument(
        "--stochastic", action="store_true", help="use stochastic actions (--load-best does, for our algorithms)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random generator seed (default: 0)")
    parser.add_argument(
        "--episode-seed", type=int, help="the episode with this seed in a report, its worst perhaps (--stochastic as there)"
    )
    options = parser.parse_args(args)
    # The best model was chosen by its stochastic policy
    is_stochastic = options.stochastic or is_chosen_by_stochastic_policy(options)

    try:
        if options.output is not None:
            check_video_path(str(options.output))
        agent = open_agent(options, options.seed, render_mode="rgb_array")
        model, env = load_model(options, agent), agent.env
    except (AssertionError, ValueError, TypeError, gym.error.Error) as error:
        if is_mistake(error):
            parser.error(str(error))
        raise
    if options.episode_seed is None:
        recording = record_episodes(model, env, options.n_episodes, not is_stochastic, options.max_frames, caption=True)
    else:
        recording = record_replay(model, env, options.episode_seed, not is_stochastic, options.max_frames)
    for reward, length, cost in zip(recording.rewards, recording.lengths, recording.costs, strict=True):
        print(f"return {reward:.2f}, cost {', '.join(f'{value:.2f}' for value in cost)}, {length} steps")
    if getattr(model, "cost_limits", None) is not None and model.cost_limits.is_limited:
        mean = ", ".join(f"{value:.2f}" for value in np.mean(recording.costs, axis=0))
        discount = f" (costs are discounted by {model.cost_gamma:g} per step)" if model.cost_gamma < 1 else ""
        print(f"mean cost {mean}, limit {', '.join(f'{value:g}' for value in model.current_cost_limit)}{discount}")
    output = options.output or (
        agent.folder / f"{agent.name}.mp4" if options.model else agent.folder / "videos" / f"{agent.name}.mp4"
    )
    write_video(recording.frames, str(output), render_fps(env))
    print(f"Video: {output}")
    env.close()


if __name__ == "__main__":
    main()
